"""The web application with a base, a patch with a hostile card, and a private repository in it."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

from adapterhub.hub.app import create_app
from adapterhub.hub.services import accounts, recipes, repos
from adapterhub.hub.services.access import authenticate
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.settings import Settings
from tests.hub.api.conftest import TOKEN
from tests.hub.services.samples import lora, model

CARD = b"""---
license: apache-2.0
tags: [prose]
---
# Code
<script>alert(1)</script> <img src=x onerror=alert(1)> [click](javascript:alert(1))
"""


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The application, with four repositories; pages change nothing, so that tests share it."""
    data = tmp_path_factory.mktemp("site")
    settings = Settings(data=data, engine="none", workers=0, admin_token=SecretStr(TOKEN), regular_max_bytes=1024)
    app = create_app(settings)
    hub = app.state.hub
    hub.db.transact(lambda session: accounts.first_admin(session, "ann", TOKEN))
    with hub.db.read() as session:
        ann = authenticate(session, f"Bearer {TOKEN}")
    content = {
        "ann/base": model(),
        "ann/code": [*lora("ann/base"), AddRegular("README.md", CARD), AddRegular("training_args.bin", b"pickled")],
        "ann/secret": lora("ann/base"),
        "ann/voices": [one for number in range(25) for one in lora("ann/base", folder=f"voices/{number:02} & co/")],
    }
    for repo_id, files in content.items():
        repos.create(hub, ann, repo_id, private=repo_id == "ann/secret")
        commit(hub, ann, repo_id, "main", files, "push")
    for weight in (0.5, 0.7):
        recipes.save(hub, ann, "ann/support", f"ann/base + {weight}*ann/code", message=f"<b>{weight}</b>")
    recipes.save(hub, ann, "ann/hidden", "ann/base + ann/secret")
    recipes.save(hub, ann, "ann/half-hidden", "ann/base + ann/code")  # made public: what it names later is not
    recipes.save(hub, ann, "ann/half-hidden", "ann/base + ann/secret")
    return app


@pytest.fixture
def site(app: FastAPI) -> Iterator[TestClient]:
    """A browser that accepts HTML and is not signed in."""
    client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    client.headers["Accept"] = "text/html"
    yield client
    client.close()
