"""Local copies: fetched once, checked, and given up in order of use."""

import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from adapterhub.storage.backends.local import LocalStore
from adapterhub.storage.backends.memory import MemoryStore
from adapterhub.storage.blobs import digest_of
from adapterhub.storage.cache import CachedStore
from adapterhub.storage.errors import BlobNotFound, DigestMismatch, StoreUnavailable
from tests.storage.faults import FlakyStore


def put(store: MemoryStore | LocalStore, content: bytes) -> str:
    with store.writer() as writer:
        writer.write(content)
        return writer.commit().digest


@pytest.fixture
def behind() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def counted(behind: MemoryStore) -> FlakyStore:
    return FlakyStore(behind)


@pytest.fixture
def store(counted: FlakyStore, tmp_path: Path) -> CachedStore:
    """Holds 100 bytes of copies and gives them up at once."""
    return CachedStore(counted, tmp_path / "cache", 100, grace_s=0)


def copies(folder: Path) -> set[str]:
    """Digests of the local copies."""
    return {"sha256:" + file.name for file in (folder / "cache/objects").rglob("*") if file.is_file()}


def used_at(store: CachedStore, digest: str, seconds: int) -> None:
    """Make the copy look as if it was last used `seconds` after the epoch."""
    os.utime(store.path(digest), (seconds, seconds))


def test_a_path_is_fetched_once(store: CachedStore, counted: FlakyStore, behind: MemoryStore) -> None:
    digest = put(behind, b"weights")
    path = store.path(digest)
    assert path.read_bytes() == b"weights"
    assert store.path(digest) == path
    assert b"".join(store.read(digest, 2)) == b"ights"
    assert counted.reads == 1


def test_a_read_alone_keeps_no_copy(store: CachedStore, behind: MemoryStore, tmp_path: Path) -> None:
    assert b"".join(store.read(put(behind, b"passing by"))) == b"passing by"
    assert copies(tmp_path) == set()


def test_many_who_ask_for_one_blob_wait_for_one_fetch(counted: FlakyStore, behind: MemoryStore, tmp_path: Path) -> None:
    digest = put(behind, bytes(10_000))
    together = Barrier(8)

    def ask() -> Path:
        # a store each, as every process has its own
        store = CachedStore(counted, tmp_path / "cache", 100_000)
        together.wait()
        return store.path(digest)

    with ThreadPoolExecutor(8) as pool:
        paths = {future.result() for future in [pool.submit(ask) for _ in range(8)]}
    assert len(paths) == 1
    assert counted.reads == 1


def test_the_copy_used_longest_ago_goes_first(store: CachedStore, behind: MemoryStore, tmp_path: Path) -> None:
    first, second, third = (put(behind, bytes([n]) * 40) for n in range(3))
    used_at(store, first, 1000)
    used_at(store, second, 500)
    store.path(third)
    assert copies(tmp_path) == {first, third}


def test_using_a_copy_keeps_it(store: CachedStore, behind: MemoryStore, tmp_path: Path) -> None:
    first, second, third = (put(behind, bytes([n]) * 40) for n in range(3))
    used_at(store, first, 500)
    used_at(store, second, 1000)
    assert b"".join(store.read(first)) == bytes(40)
    store.path(third)
    assert copies(tmp_path) == {first, third}


def test_a_blob_larger_than_the_cache_is_kept_alone(store: CachedStore, behind: MemoryStore, tmp_path: Path) -> None:
    small, large = put(behind, b"small"), put(behind, bytes(500))
    used_at(store, small, 500)
    assert store.path(large).stat().st_size == 500
    assert copies(tmp_path) == {large}


def test_a_copy_given_out_just_now_is_not_removed(counted: FlakyStore, behind: MemoryStore, tmp_path: Path) -> None:
    store = CachedStore(counted, tmp_path / "cache", 50, grace_s=60)
    first, second = put(behind, bytes(40)), put(behind, b"1" * 40)
    path = store.path(first)
    store.path(second)
    assert path.read_bytes() == bytes(40)


def test_a_mapped_copy_stays_readable_after_it_has_gone(
    store: CachedStore, behind: MemoryStore, tmp_path: Path
) -> None:
    first, second = put(behind, b"0" * 80), put(behind, b"1" * 80)
    used_at(store, first, 500)
    with store.path(first).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        store.path(second)
        assert copies(tmp_path) == {second}
        assert mapped[:] == b"0" * 80


def test_other_bytes_than_the_digest_says_are_never_given_out(tmp_path: Path) -> None:
    behind = LocalStore(tmp_path / "behind")
    digest = put(behind, b"the truth")
    behind.path(digest).chmod(0o600)
    behind.path(digest).write_bytes(b"a forgery")
    store = CachedStore(behind, tmp_path / "cache", 100)
    with pytest.raises(DigestMismatch):
        store.path(digest)
    assert copies(tmp_path) == set()


def test_a_fetch_that_breaks_off_leaves_nothing_and_may_be_repeated(
    store: CachedStore, counted: FlakyStore, behind: MemoryStore, tmp_path: Path
) -> None:
    digest = put(behind, b"in pieces")
    counted.failures = 1
    with pytest.raises(StoreUnavailable):
        store.path(digest)
    assert copies(tmp_path) == set()
    assert store.path(digest).read_bytes() == b"in pieces"


def test_a_missing_blob_is_missing_and_a_deleted_one_goes_from_the_copies_too(
    store: CachedStore, behind: MemoryStore, tmp_path: Path
) -> None:
    digest = put(behind, b"short life")
    store.path(digest)
    store.delete(digest)
    assert copies(tmp_path) == set()
    with pytest.raises(BlobNotFound):
        store.path(digest)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "wb") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_dies_while_it_fetches_holds_nobody_up(
    store: CachedStore, behind: MemoryStore, tmp_path: Path
) -> None:
    digest = put(behind, b"wanted by two")
    lock = tmp_path / "cache/locks" / digest.removeprefix("sha256:")[:3]
    command = [sys.executable, "-c", HOLD, str(lock)]
    with (
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        waiting = pool.submit(store.path, digest)
        assert digest_of(b"wanted by two") not in copies(tmp_path)
        child.kill()
        assert waiting.result(timeout=30).read_bytes() == b"wanted by two"
