"""A queue on a database of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.hub.db.engine import Database, migrate
from adapterhub.hub.jobs.queue import JobQueue


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    migrate(url)
    return url


@pytest.fixture
def queue(database_url: str) -> Iterator[JobQueue]:
    database = Database(database_url)
    yield JobQueue(database)
    database.close()
