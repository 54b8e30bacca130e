"""What every service call may need, wired once by `app.create_app` and by the worker."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.hub.db.engine import Database
from adapterhub.hub.settings import Settings
from adapterhub.storage.blobs import BlobStore

if TYPE_CHECKING:
    from adapterhub.hub.jobs.queue import JobQueue


@dataclass(frozen=True)
class Hub:
    """The parts of one running service.

    store: the byte store, cached on local disk where blobs rest elsewhere. secret: key of every signature.
    """

    settings: Settings
    db: Database
    store: BlobStore
    secret: bytes
    jobs: "JobQueue"
