"""A store that asks again when the one behind it does not answer."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from adapterhub.storage.blobs import PIECE_BYTES, BlobStat, BlobStore, BlobWriter, Capabilities, Hash
from adapterhub.storage.errors import RangeNotSatisfiable, StoreUnavailable

_T = TypeVar("_T")


class RetryingStore:
    """`store`, with every call that may safely be made twice made again after StoreUnavailable.

    A read that breaks off goes on where it stopped, since a blob never changes; so does a listing. Writers are the
    store's own: what was sent piece by piece cannot be sent again from here.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        attempts: int = 5,
        first_delay_s: float = 0.2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """attempts: calls in all, at least 1.

        first_delay_s: before the second call, in seconds; each later pause is twice as long.
        """
        self._store = store
        self._delays_s = [first_delay_s * 2**n for n in range(attempts - 1)]
        self._sleep = sleep

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    def stat(self, digest: str) -> BlobStat | None:
        return self._again(lambda: self._store.stat(digest))

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        pieces = self._again(lambda: self._store.read(digest, start, end, piece_bytes=piece_bytes))

        def resume(done: int) -> Iterator[bytes]:
            try:
                return self._store.read(digest, start + done, end, piece_bytes=piece_bytes)
            except RangeNotSatisfiable:  # it broke off behind the last byte
                return iter(())

        return self._resuming(pieces, resume, len)

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> BlobWriter:
        return self._store.writer(limit_bytes=limit_bytes, made=made)

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        return self._again(lambda: self._store.put_file(path, expected=expected))

    def path(self, digest: str) -> Path | None:
        return self._again(lambda: self._store.path(digest))

    def presign(self, digest: str, *, filename: str, expires_s: int) -> str | None:
        return self._again(lambda: self._store.presign(digest, filename=filename, expires_s=expires_s))

    def delete(self, digest: str) -> None:
        self._again(lambda: self._store.delete(digest))

    def list(self) -> Iterator[BlobStat]:
        last = ""

        def seen(found: BlobStat) -> int:
            nonlocal last
            last = found.digest
            return 1

        def resume(_: int) -> Iterator[BlobStat]:
            return (found for found in self._store.list() if found.digest > last)

        return self._resuming(self._again(self._store.list), resume, seen)

    def _again(self, call: Callable[[], _T]) -> _T:
        for delay_s in self._delays_s:
            try:
                return call()
            except StoreUnavailable:
                self._sleep(delay_s)
        return call()

    def _resuming(
        self, items: Iterator[_T], resume: Callable[[int], Iterator[_T]], measure: Callable[[_T], int]
    ) -> Iterator[_T]:
        """`items`, and after a break those of `resume(done)`, where done is the sum of `measure` over what came.

        Every item that arrives makes the store count as answering again.
        """
        done, delays_s = 0, iter(self._delays_s)
        while True:
            try:
                for item in items:
                    done, delays_s = done + measure(item), iter(self._delays_s)
                    yield item
                return
            except StoreUnavailable:
                delay_s = next(delays_s, None)
                if delay_s is None:
                    raise
                self._sleep(delay_s)
                items = self._again(partial(resume, done))
