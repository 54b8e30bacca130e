"""What a caller may not see answers as what is not there: the same status, body and headers, on every route."""

import re

import pytest
from sqlmodel import Session
from starlette.testclient import TestClient

from adapterhub.hub.context import Hub
from adapterhub.hub.services import accounts, collections, repos
from adapterhub.hub.services.access import authenticate
from tests.hub.api.conftest import TOKEN

HIDDEN, MISSING = "ann/hidden", "ann/absent"
ASK = {"user": "eve", "status": "accepted"}

REPO_ROUTES: list[tuple[str, str, object]] = [
    ("POST", "/api/models/{repo}/like", None),
    ("DELETE", "/api/models/{repo}/like", None),
    ("GET", "/api/models/{repo}/likers", None),
    ("GET", "/api/models/{repo}/auth-check", None),
    ("GET", "/api/models/{repo}/auth-check/write", None),
    ("GET", "/api/models/{repo}/user-access-request/pending", None),
    ("POST", "/api/models/{repo}/user-access-request/handle", ASK),
    ("POST", "/api/models/{repo}/user-access-request/grant", {"user": "eve"}),
    ("PUT", "/api/models/{repo}/settings", {"gated": "auto"}),
    ("POST", "/api/access-requests/{repo}", {}),
    ("GET", "/api/access-requests/{repo}", None),
    ("PUT", "/api/admin/repos/{repo}", {"disabled": True}),
    ("POST", "/{repo}/like", None),
    ("POST", "/{repo}/ask-access", None),
    ("GET", "/{repo}", None),
    ("HEAD", "/{repo}/resolve/main/.gitattributes", None),
    ("GET", "/api/models/{repo}", None),
]
COLLECTION_ROUTES: list[tuple[str, str, object]] = [
    ("GET", "/api/collections/{slug}", None),
    ("PATCH", "/api/collections/{slug}", {"title": "x"}),
    ("DELETE", "/api/collections/{slug}", None),
    ("POST", "/api/collections/{slug}/items", {"item": {"id": "ann/hidden", "type": "model"}}),
    ("PATCH", "/api/collections/{slug}/items/x", {"note": "x"}),
    ("DELETE", "/api/collections/{slug}/items/x", None),
    ("GET", "/collections/{slug}", None),
]


@pytest.fixture
def slugs(client: TestClient) -> tuple[str, str]:
    """A private repository and a private collection of ann's; the slugs of that and of one that never was."""
    hub: Hub = client.app.state.hub  # type: ignore[attr-defined]
    with hub.db.read() as session:
        ann = authenticate(session, f"Bearer {TOKEN}")
    repos.create(hub, ann, HIDDEN, private=True)

    def work(session: Session) -> str:
        accounts.create_user(session, ann, "eve")
        accounts.issue_token(session, ann, accounts.find(session, "eve"), "w", "write", text="ah_write-token-of-eve")
        accounts.issue_token(session, ann, accounts.find(session, "eve"), "r", "read", text="ah_read-token-of-eve")
        return collections.create(session, ann, "ann", "Hidden", private=True).slug

    slug = hub.db.transact(work)
    return slug, f"{slug[:-24]}{'0' * 24}"


@pytest.mark.parametrize("token", [None, "ah_read-token-of-eve", "ah_write-token-of-eve"])
def test_a_hidden_thing_answers_as_a_missing_one(client: TestClient, slugs: tuple[str, str], token: str | None) -> None:
    if token:
        client.headers["Authorization"] = f"Bearer {token}"
    pairs = [(m, p, b, (HIDDEN, MISSING)) for m, p, b in REPO_ROUTES]
    pairs += [(m, p, b, slugs) for m, p, b in COLLECTION_ROUTES]
    for method, path, body, names in pairs:
        hidden, missing = (_answer(client, method, path.format(repo=name, slug=name), body, name) for name in names)
        assert hidden == missing, (method, path)
        assert hidden[0] == 404, (method, path)


def _answer(client: TestClient, method: str, path: str, body: object, name: str) -> tuple[object, ...]:
    """Status, body and headers, with what differs by name and by request taken out."""
    answer = client.request(method, path, json=body, follow_redirects=False)
    headers = {key: value for key, value in answer.headers.items() if key not in ("x-request-id", "content-length")}
    told = re.sub(re.escape(name), "NAME", f"{answer.text} {headers}")
    return answer.status_code, told


def test_a_hidden_thing_is_in_no_list(client: TestClient, slugs: tuple[str, str]) -> None:
    client.headers["Authorization"] = "Bearer ah_write-token-of-eve"
    assert client.get("/api/users/ann/overview").json()["numModels"] == 0
    for query in ("", "?owner=ann", "?item=models/ann/hidden"):
        assert client.get(f"/api/collections{query}").json() == []
    assert client.get("/api/organizations/ann/settings/repositories").status_code == 403
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client.get("/api/users/ann/overview").json()["numModels"] == 1
    assert [one["slug"] for one in client.get("/api/collections").json()] == [slugs[0]]
