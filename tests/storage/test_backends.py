"""What every store promises: the laws of `adapterhub.storage.blobs`, held against each back end and each wrapper."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.storage.backends.memory import MemoryStore
from adapterhub.storage.blobs import PIECE_BYTES, BlobStore, digest_of
from adapterhub.storage.cache import CachedStore
from adapterhub.storage.errors import (
    BlobNotFound,
    DigestMismatch,
    InvalidDigest,
    InvalidXet,
    RangeNotSatisfiable,
    TooLarge,
)
from adapterhub.storage.retry import RetryingStore
from adapterhub.storage.stores import open_store
from adapterhub.storage.xet.xorb import XorbCheck
from tests.storage.xet.forge import stored_name, wire_chunk

ABSENT = digest_of(b"never stored")


KINDS = ["file", "memory", "retry", "cache", pytest.param("s3", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """One store of each kind, empty."""
    kind = request.param
    if kind == "s3":
        return open_store(request.getfixturevalue("s3_bucket").url, spool=tmp_path)
    if kind == "retry":
        return RetryingStore(MemoryStore())
    if kind == "cache":
        return CachedStore(MemoryStore(), tmp_path / "cache", max_bytes=1 << 30)
    return open_store({"file": f"file://{tmp_path}/blobs", "memory": "memory://"}[kind])


def put(store: BlobStore, content: bytes) -> str:
    """Store `content` and give its digest."""
    with store.writer() as writer:
        writer.write(content)
        return writer.commit().digest


def whole(pieces: Iterator[bytes]) -> bytes:
    return b"".join(pieces)


@pytest.mark.parametrize("content", [b"", b"x", b"hello world", bytes(range(256)) * 40_000], ids=len)
def test_what_is_written_is_read_back(store: BlobStore, content: bytes) -> None:
    with store.writer() as writer:
        for at in range(0, len(content), 1_000_003):
            writer.write(memoryview(content)[at : at + 1_000_003])
        stat = writer.commit(digest_of(content))
    assert (stat.digest, stat.size_bytes) == (digest_of(content), len(content))
    assert store.stat(stat.digest) == stat
    pieces = list(store.read(stat.digest))
    assert b"".join(pieces) == content
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


def test_a_blob_may_be_named_by_its_blake3(store: BlobStore) -> None:
    content = b"asked for by nobody" * 100_000
    named = "blake3:" + blake3(content).hexdigest()
    with store.writer(made=blake3()) as writer:
        writer.write(content)
        assert writer.commit(named).digest == named
    other = put(store, content)
    assert [stat.digest for stat in store.list()] == [named, other]
    assert whole(store.read(named, 5)) == content[5:]
    path = store.path(named)
    assert path is None or path.read_bytes() == content
    store.delete(other)
    assert store.stat(other) is None
    assert [stat.digest for stat in store.list()] == [named]


def test_a_xorb_may_be_named_by_its_chunks(store: BlobStore) -> None:
    content = wire_chunk(b"as it is" * 1000) + wire_chunk(bytes(70_000), 1)
    named = stored_name(content)
    with store.writer(made=XorbCheck()) as writer:
        writer.write(content[:5])
        writer.write(content[5:20], content[20:])
        assert writer.commit(named).digest == named
    assert [stat.digest for stat in store.list()] == [named]
    assert whole(store.read(named)) == content
    path = store.path(named)
    assert path is None or path.read_bytes() == content
    with pytest.raises(InvalidXet), store.writer(made=XorbCheck()) as writer:
        writer.write(b"no xorb, but long enough")
    assert [stat.digest for stat in store.list()] == [named]


def test_other_bytes_than_a_blake3_says_are_refused(store: BlobStore) -> None:
    with store.writer(made=blake3()) as writer:
        writer.write(b"other")
        with pytest.raises(DigestMismatch):
            writer.commit("blake3:" + blake3(b"announced").hexdigest())
    assert list(store.list()) == []


def test_bytes_are_visible_only_after_commit(store: BlobStore) -> None:
    with store.writer() as writer:
        writer.write(b"half")
        assert store.stat(digest_of(b"half")) is None
        assert list(store.list()) == []
    assert store.stat(digest_of(b"half")) is None


@pytest.mark.parametrize("count", [0, 1, 3, 3000])
def test_many_pieces_may_be_written_at_once(store: BlobStore, count: int) -> None:
    pieces = [b"%d," % number for number in range(count)]
    with store.writer() as writer:
        writer.write(*pieces)
        writer.write(b"end")
        assert whole(store.read(writer.commit().digest)) == b"".join([*pieces, b"end"])


def test_abort_may_be_called_again_and_after_commit(store: BlobStore) -> None:
    writer = store.writer()
    writer.write(b"kept")
    digest = writer.commit().digest
    writer.abort()
    writer.abort()
    assert whole(store.read(digest)) == b"kept"


def test_other_bytes_than_announced_are_refused_and_leave_nothing(store: BlobStore) -> None:
    with store.writer() as writer:
        writer.write(b"other")
        with pytest.raises(DigestMismatch, match=digest_of(b"announced")):
            writer.commit(digest_of(b"announced"))
    assert list(store.list()) == []


def test_more_bytes_than_the_limit_are_refused_and_leave_nothing(store: BlobStore) -> None:
    with store.writer(limit_bytes=4) as writer:
        writer.write(b"1234")
        with pytest.raises(TooLarge, match="4 bytes"):
            writer.write(b"5")
    assert list(store.list()) == []


def test_a_blob_as_large_as_the_limit_is_taken(store: BlobStore) -> None:
    with store.writer(limit_bytes=4) as writer:
        writer.write(b"1234")
        assert writer.commit().size_bytes == 4


def test_two_writers_of_one_digest_both_succeed(store: BlobStore) -> None:
    content = b"the same bytes" * 1000
    together = Barrier(4)

    def write() -> str:
        with store.writer() as writer:
            writer.write(content)
            together.wait()
            return writer.commit(digest_of(content)).digest

    with ThreadPoolExecutor(4) as pool:
        digests = {future.result() for future in [pool.submit(write) for _ in range(4)]}
    assert digests == {digest_of(content)}
    assert [stat.size_bytes for stat in store.list()] == [len(content)]
    assert whole(store.read(digest_of(content))) == content


def test_a_second_write_leaves_the_first_blob_as_it_was(store: BlobStore) -> None:
    first = store.stat(put(store, b"once"))
    put(store, b"once")
    assert store.stat(digest_of(b"once")) == first


def test_a_file_is_stored_and_left_as_it_was(store: BlobStore, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights" * 1000)
    stat = store.put_file(file, expected=digest_of(b"weights" * 1000))
    assert whole(store.read(stat.digest)) == file.read_bytes()
    with pytest.raises(DigestMismatch):
        store.put_file(file, expected=ABSENT)
    assert store.stat(ABSENT) is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(start=st.integers(0, 40), end=st.none() | st.integers(0, 45))
def test_a_range_is_the_slice_of_the_whole(store: BlobStore, start: int, end: int | None) -> None:
    content = bytes(range(40))
    digest = put(store, content)
    if start >= len(content):
        with pytest.raises(RangeNotSatisfiable, match="40 bytes"):
            store.read(digest, start, end)
    else:
        assert whole(store.read(digest, start, end)) == content[start:end]


def test_a_range_may_span_pieces(store: BlobStore) -> None:
    content = hashlib.shake_128(b"seed").digest(2 * PIECE_BYTES + 77)
    digest = put(store, content)
    assert (
        whole(store.read(digest, PIECE_BYTES - 3, 2 * PIECE_BYTES + 5))
        == content[PIECE_BYTES - 3 : 2 * PIECE_BYTES + 5]
    )


def test_pieces_are_as_small_as_asked_for(store: BlobStore) -> None:
    content = bytes(range(200))
    pieces = list(store.read(put(store, content), 3, 150, piece_bytes=40))
    assert b"".join(pieces) == content[3:150]
    assert all(0 < len(piece) <= 40 for piece in pieces)


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 0), (0, 9), (3, 5)])
def test_every_range_of_an_empty_blob_is_empty(store: BlobStore, start: int, end: int | None) -> None:
    assert whole(store.read(put(store, b""), start, end)) == b""


def test_a_missing_blob_is_said_to_be_missing_at_the_call(store: BlobStore) -> None:
    assert store.stat(ABSENT) is None
    with pytest.raises(BlobNotFound, match=ABSENT):
        store.read(ABSENT)
    with pytest.raises(BlobNotFound, match=ABSENT):
        store.path(ABSENT)
    store.delete(ABSENT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha256:../../etc/passwd",
        "md5:" + "0" * 64,
        "blake3:0",
        "0" * 64,
        ABSENT + "\n",
    ],
)
def test_what_is_not_a_digest_reaches_no_path(store: BlobStore, text: str) -> None:
    for method in (store.stat, store.read, store.path, store.delete):
        with pytest.raises(InvalidDigest):
            method(text)


def test_a_path_holds_exactly_the_blob(store: BlobStore) -> None:
    path = store.path(put(store, b"plain bytes"))
    if store.capabilities.has_local_paths:
        assert path is not None
    assert path is None or path.read_bytes() == b"plain bytes"


def test_a_deleted_blob_is_gone_and_may_come_back(store: BlobStore) -> None:
    digest = put(store, b"again")
    store.delete(digest)
    assert store.stat(digest) is None
    assert list(store.list()) == []
    assert whole(store.read(put(store, b"again"))) == b"again"


def test_the_list_is_in_order_of_digest(store: BlobStore) -> None:
    digests = [put(store, str(n).encode()) for n in range(30)]
    listed = list(store.list())
    assert [stat.digest for stat in listed] == sorted(digests)
    assert listed == [store.stat(digest) for digest in sorted(digests)]
