"""The whole web application in this process, on a fresh data folder, without child processes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from adapterhub.hub.app import create_app
from adapterhub.hub.services import accounts
from adapterhub.hub.settings import Settings

TOKEN = "ah_the-token-of-the-first-administrator-in-tests"


@pytest.fixture
def client(migrated: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a fresh service, anonymous."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(migrated, data / "adapterhub.db")
    settings = Settings(data=data, engine="none", workers=0, admin_token=SecretStr(TOKEN), regular_max_bytes=1024)
    app = create_app(settings)
    app.state.hub.db.transact(lambda session: accounts.first_admin(session, "ann", TOKEN))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def admin_client(client: TestClient) -> TestClient:
    """The same client, which sends the first administrator's token with every request."""
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    return client
