import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapterhub.hub.errors import Overloaded, TooLarge, UnfitPatch
from adapterhub.hub.serving.pool import MOST_REMEMBERED, REMEMBERED_S, Key, Pool


def put(pool: Pool, name: str, size_bytes: int = 40) -> str:
    return pool.acquire(("thing", name), lambda: size_bytes, lambda: name)


def names(pool: Pool) -> set[str]:
    return {one.key[1] for one in pool.held()}


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
    assert names(pool) == {"t"}
    assert pool.counts.evictions == 2


def test_a_lasting_error_is_told_again_without_another_try_until_it_is_forgotten() -> None:
    now, tries = [0.0], []

    def make() -> int:
        tries.append(now[0])
        raise UnfitPatch("no such tensor")

    pool = Pool(100, lasting=(UnfitPatch,), clock=lambda: now[0])
    for at in (0.0, 1.0, REMEMBERED_S - 1, REMEMBERED_S + 1, REMEMBERED_S + 2):
        now[0] = at
        with pytest.raises(UnfitPatch, match="no such tensor"):
            pool.acquire(("thing", "a"), lambda: 1, make)
    assert tries == [0.0, REMEMBERED_S + 1]
    assert (pool.counts.loads, pool.counts.refused, pool.used_bytes) == (2, 3, 0)
    assert put(pool, "b") == "b"


def test_the_oldest_errors_are_forgotten_first() -> None:
    def fail() -> int:
        raise UnfitPatch("no")

    pool = Pool(100, lasting=(UnfitPatch,))
    for number in range(MOST_REMEMBERED + 2):
        with pytest.raises(UnfitPatch):
            pool.acquire(("thing", str(number)), lambda: 1, fail)
    for number in (0, MOST_REMEMBERED + 1):
        with pytest.raises(UnfitPatch):
            pool.acquire(("thing", str(number)), lambda: 1, fail)
    assert (pool.counts.loads, pool.counts.refused) == (MOST_REMEMBERED + 3, 1)


def test_bytes_that_others_fill_are_counted_and_make_idle_entries_go() -> None:
    pool = Pool(100)
    put(pool, "held")
    put(pool, "idle")
    pool.release(("thing", "idle"))
    pool.reserve(50)
    assert names(pool) == {"held"}
    assert (pool.used_bytes, pool.reserved_bytes) == (90, 50)
    with pytest.raises(Overloaded, match="no room in memory for this answer"):
        pool.reserve(11)
    with pytest.raises(Overloaded, match="no room in memory for this one"):
        put(pool, "next")
    pool.give_back(50)
    put(pool, "next")
    assert (pool.used_bytes, pool.reserved_bytes) == (80, 0)
    with pytest.raises(TooLarge):
        pool.reserve(101)
    assert names(pool) == {"held", "next"}
