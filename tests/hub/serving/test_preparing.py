"""Work in threads that end with it."""

import threading
import time

import pytest

from adapterhub.hub.serving.preparing import Preparing


def test_work_is_begun_in_order_and_a_few_at_a_time() -> None:
    preparing, done = Preparing(2), threading.Semaphore(0)
    lock, begun, running = threading.Lock(), list[int](), [0, 0]

    def work(number: int) -> None:
        with lock:
            begun.append(number)
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        done.release()

    for number in range(8):
        preparing.submit(lambda number=number: work(number))  # type: ignore[misc]
    for _ in range(8):
        assert done.acquire(timeout=10)
    assert sorted(begun) == list(range(8))
    assert all(begun.index(number) >= number - 1 for number in range(8))  # one beside it may have been quicker
    assert running[1] == 2


def test_a_thread_ends_with_its_work() -> None:
    preparing, threads = Preparing(4), list[threading.Thread]()
    for _ in range(3):
        preparing.submit(lambda: threads.append(threading.current_thread()))
    deadline = time.monotonic() + 10
    while len(threads) < 3 or any(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert len(set(threads)) == 3


def test_what_has_not_begun_can_be_forgotten() -> None:
    preparing, gate, done = Preparing(1), threading.Event(), threading.Event()

    preparing.submit(lambda: gate.wait(10))
    preparing.submit(lambda: pytest.fail("forgotten work has begun"))
    preparing.cancel()
    preparing.submit(done.set)
    gate.set()
    assert done.wait(10)
