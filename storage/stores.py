"""From a URL to the back end that answers it."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from adapterhub.storage import backends
from adapterhub.storage.blobs import Backend, BlobStore
from adapterhub.storage.errors import InvalidStoreUrl


def open_store(url: str, *, spool: Path | None = None) -> BlobStore:
    """The store at `url`, e.g. "file:///var/lib/adapterhub/blobs", "s3://bucket/prefix", "memory://".

    spool: folder for bytes that wait to be sent, where a back end needs one; the system's temporary folder by default.
    Raises InvalidStoreUrl, and StoreUnavailable where a folder cannot be made. Nothing is sent over the network.
    """
    known = known_backends()
    backend = known.get(url.partition("://")[0])
    if backend is None or "://" not in url:
        raise InvalidStoreUrl(url, tuple(each.example for each in known.values()))
    return backend.open(url, spool)


@cache
def known_backends() -> dict[str, Backend]:
    """Every back end by its scheme, found by scanning `backends/`: adding one is adding its file."""
    modules = (module.name for module in pkgutil.iter_modules(backends.__path__))
    found = (importlib.import_module(f"{backends.__name__}.{name}").BACKEND for name in sorted(modules))
    return {backend.scheme: backend for backend in found}
