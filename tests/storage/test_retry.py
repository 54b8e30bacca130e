"""Asking again: what is repeated, what goes on, and when it gives up."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.storage.backends.memory import MemoryStore
from adapterhub.storage.blobs import BlobStore, digest_of
from adapterhub.storage.errors import BlobNotFound, StoreUnavailable
from adapterhub.storage.retry import RetryingStore
from tests.storage.faults import FlakyStore

CONTENT = b"twenty bytes of blob"
DIGEST = digest_of(CONTENT)


@pytest.fixture
def pauses() -> list[float]:
    """Seconds that the store under test asked to sleep."""
    return []


@pytest.fixture
def flaky() -> FlakyStore:
    """Holds CONTENT and the digits; fails when told to."""
    memory = MemoryStore()
    for content in [CONTENT, *(str(n).encode() for n in range(10))]:
        with memory.writer() as writer:
            writer.write(content)
            writer.commit()
    return FlakyStore(memory)


@pytest.fixture
def store(flaky: FlakyStore, pauses: list[float]) -> RetryingStore:
    return RetryingStore(flaky, attempts=4, first_delay_s=0.5, sleep=pauses.append)


CALLS: dict[str, Callable[[BlobStore], object]] = {
    "stat": lambda store: store.stat(DIGEST),
    "path": lambda store: store.path(DIGEST),
    "presign": lambda store: store.presign(DIGEST, filename="x", expires_s=1),
    "delete": lambda store: store.delete(DIGEST),
    "put_file": lambda store: store.put_file(Path(__file__)),
    "read": lambda store: list(store.read(DIGEST)),
    "list": lambda store: list(store.list()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_made_again_with_growing_pauses(
    call: Callable[[BlobStore], object], store: RetryingStore, flaky: FlakyStore, pauses: list[float]
) -> None:
    flaky.failures = 3
    call(store)
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_store_that_stays_away_is_said_to_be(
    call: Callable[[BlobStore], object], store: RetryingStore, flaky: FlakyStore
) -> None:
    flaky.failures = 1000
    with pytest.raises(StoreUnavailable, match="away"):
        call(store)


def test_a_read_goes_on_where_it_broke_off(store: RetryingStore, flaky: FlakyStore) -> None:
    read = b""
    for number, piece in enumerate(store.read(DIGEST, 2, 19)):
        read += piece
        flaky.failures = number % 3
    assert read == CONTENT[2:19]


def test_a_read_that_breaks_off_behind_its_last_byte_is_whole(store: RetryingStore, flaky: FlakyStore) -> None:
    read = b""
    for piece in store.read(DIGEST):
        read += piece
        flaky.failures = int(read == CONTENT)
    assert read == CONTENT


def test_a_listing_goes_on_and_names_nothing_twice(store: RetryingStore, flaky: FlakyStore) -> None:
    found = []
    for blob in store.list():
        found.append(blob.digest)
        flaky.failures = 1
    assert found == sorted(set(found))
    assert len(found) == 11


def test_what_asking_again_cannot_mend_is_raised_at_once(store: RetryingStore, pauses: list[float]) -> None:
    with pytest.raises(BlobNotFound):
        store.read(digest_of(b"absent"))
    assert pauses == []


def test_a_writer_is_not_made_again(store: RetryingStore, flaky: FlakyStore, pauses: list[float]) -> None:
    flaky.failures = 1
    with pytest.raises(StoreUnavailable):
        store.writer()
    assert pauses == []
