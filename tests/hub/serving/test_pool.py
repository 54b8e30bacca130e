import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapterhub.hub.errors import Overloaded, TooLarge
from adapterhub.hub.serving.pool import Key, Pool


def put(pool: Pool, name: str, size_bytes: int = 40) -> str:
    return pool.acquire(("thing", name), lambda: size_bytes, lambda: name)


def names(pool: Pool) -> set[str]:
    return {name for _, name in pool.sizes()}


def test_what_many_ask_for_at_once_is_made_once() -> None:
    pool = Pool(100)
    made: list[int] = []
    all_here = threading.Barrier(8)

    def make() -> int:
        made.append(1)
        return 7

    def ask(_: int) -> int:
        all_here.wait()
        return pool.acquire(("thing", "a"), lambda: 10, make)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [7] * 8
    assert len(made) == 1
    assert pool.used_bytes == 10


def test_the_pinned_stays_and_the_idle_makes_room() -> None:
    pool = Pool(100)
    put(pool, "held")
    put(pool, "idle")
    pool.release(("thing", "idle"))
    put(pool, "next")
    assert names(pool) == {"held", "next"}
    with pytest.raises(Overloaded):
        put(pool, "further")
    assert names(pool) == {"held", "next"}


def test_what_is_larger_than_everything_is_refused_and_evicts_nothing() -> None:
    pool = Pool(100)
    put(pool, "idle")
    pool.release(("thing", "idle"))
    with pytest.raises(TooLarge, match="ADAPTERHUB_POOL_BYTES"):
        put(pool, "huge", 101)
    assert names(pool) == {"idle"}


def test_an_error_reaches_who_waits_and_the_next_tries_again() -> None:
    pool = Pool(100)

    def fail() -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        pool.acquire(("thing", "a"), lambda: 10, fail)
    assert pool.used_bytes == 0
    assert put(pool, "a") == "a"


def test_an_eviction_tells_so_that_what_it_kept_can_go_too() -> None:
    pool = Pool(100)
    base: Key = ("base", "b")
    pool.acquire(base, lambda: 50, lambda: "base")
    pool.acquire(("variant", "v"), lambda: 30, lambda: "variant", on_evict=lambda: pool.release(base))
    pool.release(("variant", "v"))
    pool.acquire(("thing", "t"), lambda: 90, lambda: "thing")
    assert set(pool.sizes()) == {("thing", "t")}
    assert pool.counts.evictions == 2
