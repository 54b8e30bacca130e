"""The files of one commit as the algebra reads them: lazily, by range, out of the byte store."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import BlobStore
from adapterhub.storage.errors import StoreUnavailable


class RepositoryFolder:
    """A `merging.checkpoint.Folder` over files that the caller was allowed to read."""

    def __init__(self, store: BlobStore, files: Iterable[Entry]) -> None:
        self._store = store
        self._files = {e.path: e for e in files}
        self._names = tuple(sorted(self._files))

    def names(self) -> Sequence[str]:
        return self._names

    def size(self, name: str) -> int:
        return self._entry(name).size_bytes

    def digest(self, name: str) -> str:
        return self._entry(name).digest

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        entry = self._entry(name)
        if start >= entry.size_bytes:
            return b""
        return b"".join(self._store.read(entry.digest, start, end))

    def path(self, name: str) -> Path:
        path = self._store.path(self._entry(name).digest)
        if path is None:
            raise StoreUnavailable(f"{name}: this store keeps no local files; put a cache in front of it")
        return path

    def _entry(self, name: str) -> Entry:
        if name not in self._files:
            raise FileNotFoundError(f"{name}: no such file among {len(self._files)}")
        return self._files[name]
