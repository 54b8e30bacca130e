import threading

import pytest
import torch

from adapterhub.merging.workers import each


@pytest.mark.parametrize("threads", [1, 2, None])
def test_outcomes_come_in_the_order_of_the_items(threads: int | None) -> None:
    assert list(each(range(20), lambda item: item * 2, threads)) == [item * 2 for item in range(20)]


def test_no_more_work_runs_at_a_time_than_threads() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(each(range(4), lambda item: both.wait() >= 0, 2)) == [True] * 4


def test_torch_has_one_thread_in_each_worker_and_all_of_them_afterwards() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        inside = list(each(range(3), lambda item: torch.get_num_threads(), 2))
        assert inside == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_it_and_what_has_not_begun_is_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one is bad")
        return item

    found = each(range(1000), work, 1)
    assert next(found) == 0
    with pytest.raises(ValueError, match="one is bad"):
        list(found)
    assert begun == [0, 1]
