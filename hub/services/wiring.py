"""Opens the parts of one running service, for the web process and for the workers."""

import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from adapterhub.hub.context import Hub
from adapterhub.hub.db.engine import Database, migrate
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.services import lfs_parts
from adapterhub.hub.services.outbound import Allowed
from adapterhub.hub.services.secret import load_or_make
from adapterhub.hub.settings import Settings
from adapterhub.storage.blobs import BlobStore
from adapterhub.storage.cache import CachedStore
from adapterhub.storage.retry import RetryingStore
from adapterhub.storage.stores import open_store

SPOOL_FOLDER = "spool"
"""Folder, inside the data folder, of request bodies on their way."""

ABANDONED_S = 24 * 3600
"""Age at which a file of the spool folder belongs to nobody any more."""


def open_hub(settings: Settings) -> Hub:
    """The hub on the data folder of `settings`, which is made, and migrated, where that is needed.

    Raises StoreUnavailable, InvalidStoreUrl, DatabaseBusy, InvalidRequest for a setting that makes no sense.
    """
    try:
        Allowed.parse(settings.outbound_allow)
    except ValueError as error:
        raise InvalidRequest(f"ADAPTERHUB_OUTBOUND_ALLOW: {error}") from None
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(settings.data / SPOOL_FOLDER)
    lfs_parts.sweep(settings.data)
    migrate(settings.sqlalchemy_url)
    db = Database(settings.sqlalchemy_url)
    return Hub(settings=settings, db=db, store=_store(settings), secret=load_or_make(settings), jobs=JobQueue(db))


def _sweep(folder: Path) -> None:
    """Make the spool folder, and remove from it what a killed process left. Other processes may be using it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime < time.time() - ABANDONED_S:
                path.unlink()


def _store(settings: Settings) -> BlobStore:
    """The byte store of the settings, with local copies of what rests elsewhere: merging and serving map files."""
    store = open_store(settings.blob_url, spool=settings.data / SPOOL_FOLDER)
    if store.capabilities.has_local_paths:
        return store
    return CachedStore(RetryingStore(store), settings.data / "cache", settings.cache_bytes)


def worker_environment(settings: Settings) -> dict[str, str]:
    """The environment in which a child process reads these very settings, whatever this process was started with."""
    given = {name: getattr(settings, name) for name in type(settings).model_fields}
    plain = {name: v.get_secret_value() if isinstance(v, SecretStr) else v for name, v in given.items()}
    return {**os.environ, **{f"ADAPTERHUB_{name.upper()}": str(v) for name, v in plain.items() if v is not None}}
