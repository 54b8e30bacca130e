"""Blobs: bytes that are written once and named by their digest.

What every back end promises, and `tests/storage/test_backends.py` holds it to:

- a blob is visible under its digest only after `BlobWriter.commit`, whole and durable, or never;
- two writers of one digest both succeed, and the first bytes stay (they are the same bytes);
- bytes whose digest is not the announced one are refused and leave nothing;
- a stored blob is never modified.

The digest is the SHA-256, which the world knows files by. What nobody asks for by its digest may be named otherwise: by
its BLAKE3, as safe a name at a third of the CPU, and a xorb by hashes that are taken of its chunks anyway. Different
digests name different blobs, also of equal bytes.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from blake3 import blake3

from adapterhub.storage.errors import InvalidDigest, RangeNotSatisfiable

Algorithm: TypeAlias = Literal["sha256", "blake3", "xorb"]

_DIGEST = re.compile(r"(sha256|blake3|xorb):[0-9a-f]{64}")

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes a reader yields at once, unless asked for fewer."""


def check_digest(text: str) -> str:
    """`text` itself when it is "sha256:", "blake3:" or "xorb:", and 64 lower-case hexadecimal digits.

    Raises InvalidDigest otherwise; every path and key is made only from what passed here.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidDigest(text)
    return text


def digest_of(content: bytes) -> str:
    """The SHA-256 of `content`, as "sha256:<hex>"."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def check_range(digest: str, start: int, end: int | None, size_bytes: int) -> tuple[int, int]:
    """The bytes [start, end) that a reader yields of a blob of `size_bytes`; end is cut to the size, never below start.

    Raises RangeNotSatisfiable when start is at or past the end of a blob that is not empty; of an empty one every range
    is empty.
    """
    if start < 0 or (end is not None and end < 0):
        raise ValueError(f"range [{start}, {end}) counts from the end; resolve it against the size first")
    if start >= size_bytes > 0:
        raise RangeNotSatisfiable(digest, start, size_bytes)
    start = min(start, size_bytes)
    return start, max(start, size_bytes if end is None else min(end, size_bytes))


class Hash(Protocol):
    """A digest in the making: `name`, a colon, and the hexadecimal digits."""

    @property
    def name(self) -> str: ...

    def update(self, data: bytes | memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


def _xorb_check() -> Hash:
    from adapterhub.storage.xet.xorb import XorbCheck  # loads numpy, which most who name blobs do without

    return XorbCheck()


HASHES: Mapping[Algorithm, Callable[[], Hash]] = {
    "sha256": hashlib.sha256,
    "blake3": blake3,
    "xorb": _xorb_check,
}
"""What makes each kind of digest."""


def hash_like(digest: str) -> Hash:
    """The beginning of a digest of the same kind. Raises InvalidDigest when `digest` is none."""
    return next(make() for kind, make in HASHES.items() if check_digest(digest).startswith(kind))


def digest_by(made: Hash) -> str:
    """The digest of what went into `made`."""
    return f"{made.name}:{made.hexdigest()}"


@dataclass(frozen=True)
class Capabilities:
    """What a back end can do besides the protocol; callers ask this and never the class."""

    has_local_paths: bool = False
    """`BlobStore.path` costs nothing: blobs rest as plain files of this machine."""
    can_presign: bool = False
    """`BlobStore.presign` gives a URL that a client may read from directly."""


@dataclass(frozen=True)
class BlobStat:
    digest: str
    size_bytes: int
    modified_at: float
    """Seconds since the epoch, by the back end's clock."""


class BlobWriter(Protocol):
    """Takes the bytes of one blob; used as a context manager, it aborts unless committed."""

    def write(self, *pieces: bytes | memoryview) -> None:
        """Append the pieces, many of them in one write. Raises TooLarge past the limit given to `BlobStore.writer`."""

    def commit(self, expected: str | None = None) -> BlobStat:
        """Make the blob durable and visible, and give its digest and size.

        expected: digest announced by the sender. Raises DigestMismatch, and stores nothing, when it differs. May be
        called once.
        """

    def abort(self) -> None:
        """Throw the bytes away. May be called repeatedly, and after commit, where it does nothing."""

    def __enter__(self) -> "BlobWriter": ...

    def __exit__(self, *exc: object) -> None: ...


class BlobStore(Protocol):
    """One place where blobs rest. Thread-safe; every method may raise StoreUnavailable."""

    @property
    def capabilities(self) -> Capabilities:
        """What this back end can do besides."""

    def stat(self, digest: str) -> BlobStat | None:
        """Size and age of the blob, None where there is none."""

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Bytes [start, end) in pieces of at most `piece_bytes`; end None or past the end means the end.

        Raises BlobNotFound, and RangeNotSatisfiable when start is at or past the end of a blob that is not empty;
        both at the call, not at the first piece. A reader that began before `delete` may finish or raise, but never
        yields wrong bytes.
        """

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> BlobWriter:
        """A writer for one new blob, in bounded memory.

        made: what makes its digest, and may refuse the bytes by an error of its own; the SHA-256 where none is given.
        """

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        """Store the content of a local file, which is left as it was.

        Hashes on the way; raises DigestMismatch and stores nothing when `expected` differs.
        """

    def path(self, digest: str) -> Path | None:
        """A plain local file holding exactly the blob, or None where the back end keeps no files.

        Raises BlobNotFound. The file must not be written to. `cache.CachedStore` gives one for every back end, by
        fetching the blob first.
        """

    def presign(self, digest: str, *, filename: str, expires_s: int) -> str | None:
        """A URL that reads the blob without credentials for `expires_s` seconds, or None."""

    def delete(self, digest: str) -> None:
        """Remove the blob; nothing happens where there is none."""

    def list(self) -> Iterator[BlobStat]:
        """Every blob, in order of digest."""


@dataclass(frozen=True)
class Backend:
    """One kind of store; a module of `backends/` gives its own as BACKEND."""

    scheme: str
    """Of its URLs, e.g. "s3"."""
    example: str
    """A URL that shows the form."""
    open: Callable[[str, Path | None], BlobStore]
    """(url, folder to spool in) -> the store. Raises InvalidStoreUrl. Costly libraries are imported in here."""
