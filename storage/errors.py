"""Errors of the byte store.

StorageError
├── BlobNotFound        no blob of that digest rests here
├── DigestMismatch      the bytes received are not those that were announced
├── RangeNotSatisfiable the range starts past the end of the blob
├── InvalidDigest       the text is not "sha256:", "blake3:" or "xorb:" and 64 hex
├── InvalidStoreUrl     no back end answers to that URL
├── TooLarge            more bytes than the limit given
├── StoreUnavailable    the back end does not answer; trying again may help
└── InvalidXet          a xorb or shard that does not hold what it says
"""

from adapterhub.errors import AdapterHubError


class StorageError(AdapterHubError):
    """Anything the byte store refuses or cannot do."""


class BlobNotFound(StorageError):
    """No blob of that digest rests here."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"{digest}: no such blob in this store")
        self.digest = digest


class DigestMismatch(StorageError):
    """The bytes received hash to something else than was announced; they were thrown away."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"content was announced as {expected} and is {found}; nothing was stored, send it again")
        self.expected = expected
        self.found = found


class RangeNotSatisfiable(StorageError):
    """The range starts at or past the end of the blob."""

    def __init__(self, digest: str, start: int, size_bytes: int) -> None:
        super().__init__(f"{digest}: range starts at byte {start}, the blob has {size_bytes} bytes")
        self.digest = digest
        self.start = start
        self.size_bytes = size_bytes


class InvalidDigest(StorageError):
    """The text is not "sha256:", "blake3:" or "xorb:" and 64 lower-case hexadecimal digits."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} is not a digest; write sha256: and 64 lower-case hexadecimal digits")
        self.text = text


class InvalidStoreUrl(StorageError):
    """No back end answers to that URL."""

    def __init__(self, url: str, known: tuple[str, ...]) -> None:
        super().__init__(f"{url!r}: no storage back end for that URL; known are {', '.join(known)}")
        self.url = url


class TooLarge(StorageError):
    """More bytes arrived than the limit given allows; they were thrown away."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(f"{what}: more than the {limit_bytes} bytes allowed; nothing was stored")
        self.what = what
        self.limit_bytes = limit_bytes


class StoreUnavailable(StorageError):
    """The back end does not answer or refuses its credentials; trying again may help."""


class InvalidXet(StorageError):
    """A xorb or shard whose bytes do not hold what they say."""
