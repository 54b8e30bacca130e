"""The list of models, as huggingface_hub asks for it."""

import pytest
from starlette.testclient import TestClient

from adapterhub.hub.context import Hub
from adapterhub.hub.services.access import authenticate
from tests.hub.services.samples import stock


@pytest.fixture
def stocked(admin_client: TestClient) -> TestClient:
    hub: Hub = admin_client.app.state.hub  # type: ignore[attr-defined]
    with hub.db.read() as session:
        ann = authenticate(session, admin_client.headers["Authorization"])
    stock(hub, ann)
    return admin_client


def ids(client: TestClient, **params: object) -> list[str]:
    found = client.get("/api/models", params=params)  # type: ignore[arg-type]
    assert found.status_code == 200, found.text
    return [model["id"] for model in found.json()]


def test_models_are_listed_newest_first(stocked: TestClient) -> None:
    assert ids(stocked) == ["ann/hidden", "ann/code-lora", "ann/base", "ann/notes"]
    del stocked.headers["Authorization"]
    assert ids(stocked) == ["ann/code-lora", "ann/base", "ann/notes"]


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"search": "über"}, ["ann/code-lora"]),
        ({"filter": ["peft", "license:mit"]}, ["ann/code-lora"]),
        ({"filter": "base_model:adapter:ann/base"}, ["ann/code-lora"]),
        ({"author": "nobody"}, []),
        ({"pipeline_tag": "text-generation", "sort": "createdAt"}, ["ann/code-lora", "ann/base"]),
    ],
)
def test_the_clients_filters_narrow(stocked: TestClient, params: dict[str, object], found: list[str]) -> None:
    assert ids(stocked, **params) == found


def test_the_link_leads_through_every_page_with_its_filters(stocked: TestClient) -> None:
    seen, url = [], "/api/models?limit=1&author=ann&sort=downloads"
    while url:
        page = stocked.get(url)
        seen += [model["id"] for model in page.json()]
        url = page.links.get("next", {}).get("url", "")
        assert not url or ("author=ann" in url and url.startswith("http://127.0.0.1:8000/"))
    assert sorted(seen) == ["ann/base", "ann/code-lora", "ann/hidden", "ann/notes"]


def test_more_is_told_when_it_is_asked_for(stocked: TestClient) -> None:
    brief = stocked.get("/api/models?search=python+über").json()[0]
    full = stocked.get("/api/models?search=python+über&full=true").json()[0]
    named = stocked.get("/api/models?search=python+über&expand=sha&expand=cardData").json()[0]
    assert "cardData" not in brief
    assert "siblings" not in brief
    assert {"rfilename": "adapter_config.json"} in full["siblings"]
    assert full["cardData"]["license"] == "mit"
    assert set(named) == {"_id", "id", "sha", "cardData"}


def test_a_list_that_makes_no_sense_is_refused(stocked: TestClient) -> None:
    for query in ("sort=colour", "limit=-1", "cursor=x"):
        assert stocked.get(f"/api/models?{query}").status_code in (400, 422)
