"""A hub on a fresh SQLite file and a folder of blobs, with accounts to act as."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.engine import Database, migrate
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.services import accounts
from adapterhub.hub.services.access import Caller, authenticate
from adapterhub.hub.services.wiring import open_hub
from adapterhub.hub.settings import Settings
from adapterhub.storage.backends.local import LocalStore
from tests import servers

SECRET = b"a secret for tests only, 32 bytes"


EVERYWHERE = [
    "sqlite_hub",
    pytest.param("servers_hub", marks=[pytest.mark.postgres, pytest.mark.s3, pytest.mark.slow]),
]
"""Fixtures of hubs on every database and store, for tests to be run on each; on servers by .ci/run alone."""


def make_hub(url: str, folder: Path) -> Hub:
    """A hub on that migrated database, its blobs in `folder`."""
    db = Database(url)
    settings = Settings(data=folder, database_url=url, regular_max_bytes=1024)
    return Hub(settings=settings, db=db, store=LocalStore(folder / "blobs"), secret=SECRET, jobs=JobQueue(db))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database of the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def hub(sqlite_hub: Hub) -> Hub:
    """A hub on SQLite. Files above 1024 bytes count as large."""
    return sqlite_hub


@pytest.fixture
def sqlite_hub(migrated: Path, tmp_path: Path) -> Iterator[Hub]:
    """The same by a name of its own."""
    path = shutil.copy(migrated, tmp_path / "hub.db")
    hub = make_hub(f"sqlite:///{path}", tmp_path)
    yield hub
    hub.db.close()


@pytest.fixture(scope="session")
def migrated_postgres(postgres: servers.PostgresServer) -> Iterator[str]:
    """Name of an empty PostgreSQL database of the newest schema, to be copied."""
    with postgres.database() as url:
        migrate(url)
        yield str(make_url(url).database)


@pytest.fixture
def migrated_postgres_url(postgres: servers.PostgresServer, migrated_postgres: str) -> Iterator[str]:
    """URL of a copy of it."""
    with postgres.database(migrated_postgres) as url:
        yield url


@pytest.fixture
def postgres_hub(migrated_postgres_url: str, tmp_path: Path) -> Iterator[Hub]:
    """The same on PostgreSQL."""
    hub = make_hub(migrated_postgres_url, tmp_path)
    yield hub
    hub.db.close()


@pytest.fixture
def servers_hub(migrated_postgres_url: str, s3_bucket: servers.S3Bucket, tmp_path: Path) -> Iterator[Hub]:
    """The same on PostgreSQL, its blobs in S3 with copies in the data folder."""
    told = {
        "data": tmp_path,
        "database_url": migrated_postgres_url,
        "storage_url": s3_bucket.url,
        "regular_max_bytes": 1024,
    }
    hub = open_hub(Settings.model_validate(told))
    yield hub
    hub.db.close()


@pytest.fixture
def admin(hub: Hub) -> Caller:
    """The first administrator."""
    return make_admin(hub)


def make_admin(hub: Hub) -> Caller:
    """The first administrator of a fresh hub."""
    text = hub.db.transact(lambda session: accounts.first_admin(session, "root-admin"))
    with hub.db.read() as session:
        return authenticate(session, f"Bearer {text}")


@pytest.fixture
def user(hub: Hub, admin: Caller) -> Callable[..., Caller]:
    """Makes a user of that name, who comes with a token of that role."""

    def make(name: str, role: str = "write") -> Caller:
        def work(session: Session) -> str:
            account = accounts.create_user(session, admin, name)
            return accounts.issue_token(session, admin, account, "test", role)[1]

        text = hub.db.transact(work)
        with hub.db.read() as session:
            return authenticate(session, f"Bearer {text}")

    return make


@pytest.fixture
def ann(user: Callable[..., Caller]) -> Caller:
    """A user with a token that may write."""
    return user("ann")
