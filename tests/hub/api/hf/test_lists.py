"""The list of models, as huggingface_hub asks for it."""

from typing import get_args
from urllib.parse import parse_qs

import pytest
from huggingface_hub.hf_api import ExpandModelProperty_T
from starlette.testclient import TestClient

from adapterhub.hub.api.hf.shapes import EXPANDABLE
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


@pytest.mark.parametrize("base", ["ann/base", "ann/renamed"])
def test_what_was_made_of_a_base_is_found_by_each_of_its_names(stocked: TestClient, base: str) -> None:
    move = {"fromRepo": "ann/base", "toRepo": "ann/renamed", "type": "model"}
    stocked.post("/api/repos/move", json=move).raise_for_status()
    assert ids(stocked, filter=f"base_model:{base}") == ["ann/code-lora"]
    assert ids(stocked, filter=f"base_model:adapter:{base}") == ["ann/code-lora"]
    assert ids(stocked, filter=f"base_model:finetune:{base}") == []


def test_a_base_that_one_may_not_see_is_found_under_its_declared_name_alone(stocked: TestClient) -> None:
    move = {"fromRepo": "ann/base", "toRepo": "ann/secret", "type": "model"}
    stocked.post("/api/repos/move", json=move).raise_for_status()
    stocked.put("/api/models/ann/secret/settings", json={"private": True}).raise_for_status()
    del stocked.headers["Authorization"]
    assert ids(stocked, filter="base_model:adapter:ann/base") == ["ann/code-lora"]
    assert ids(stocked, filter="base_model:adapter:ann/secret") == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("min:1", ["ann/code-lora", "ann/base"]),
        ("max:0.1K", ["ann/code-lora"]),
        ("min:100,max:1B", ["ann/base"]),
        ("min:6B", []),
    ],
)
def test_models_are_filtered_by_their_number_of_parameters(stocked: TestClient, wanted: str, found: list[str]) -> None:
    assert ids(stocked, num_parameters=wanted) == found


def test_gated_models_are_told_apart(stocked: TestClient) -> None:
    stocked.put("/api/models/ann/base/settings", json={"gated": "manual"}).raise_for_status()
    for spelled in ("true", "True"):
        assert ids(stocked, gated=spelled) == ["ann/base"]
    assert "ann/base" not in ids(stocked, gated="false")


def test_a_list_runs_the_other_way_where_that_is_asked(stocked: TestClient) -> None:
    forward = ids(stocked, sort="createdAt", direction=-1)
    assert ids(stocked, sort="createdAt", direction=1) == forward[::-1]
    seen, url = [], "/api/models?limit=1&sort=createdAt&direction=1"
    while url:
        page = stocked.get(url)
        seen += [model["id"] for model in page.json()]
        url = page.links.get("next", {}).get("url", "")
    assert seen == forward[::-1]


def test_every_filter_stays_in_the_link(stocked: TestClient) -> None:
    asked = "limit=1&filter=text-generation&filter=safetensors&gated=false&num_parameters=min:1&expand=sha"
    link = stocked.get(f"/api/models?{asked}").links["next"]["url"]
    kept = parse_qs(link.partition("?")[2])
    assert kept.pop("cursor")
    assert kept == parse_qs(asked)


def test_nobody_serves_these_models_and_which_programs_run_them_is_not_known(stocked: TestClient) -> None:
    assert ids(stocked, inference="warm") == ids(stocked, inference_provider="all") == []
    refused = stocked.get("/api/models?apps=vllm")
    assert (refused.status_code, refused.headers["X-Error-Code"]) == (400, "InvalidRequest")


def test_every_field_that_a_client_knows_may_be_asked_for(stocked: TestClient) -> None:
    assert set(get_args(ExpandModelProperty_T)) <= EXPANDABLE
    for url in ("/api/models", "/api/models/ann/code-lora"):
        for name in sorted(EXPANDABLE):
            found = stocked.get(url, params={"expand": name})
            assert found.status_code == 200, found.text
            shapes = found.json() if isinstance(found.json(), list) else [found.json()]
            assert all(set(shape) <= {"_id", "id", name} for shape in shapes)
        refused = stocked.get(url, params={"expand": "colour"})
        assert refused.status_code == 400
        assert "safetensors" in refused.json()["error"]


def test_fields_that_are_looked_up_on_demand(stocked: TestClient) -> None:
    names = ["baseModels", "childrenModelCount", "downloadsAllTime", "usedStorage", "transformersInfo", "xetEnabled"]
    base, lora = (
        stocked.get(f"/api/models/ann/{name}", params={"expand": names}).json() for name in ("base", "code-lora")
    )
    assert (base["childrenModelCount"], lora["childrenModelCount"]) == (1, 0)
    assert lora["baseModels"] == ["ann/base"]
    assert base["transformersInfo"] == {
        "auto_model": "AutoModelForCausalLM",
        "pipeline_tag": "text-generation",
        "processor": "AutoTokenizer",
    }
    assert "transformersInfo" not in lora
    siblings = stocked.get("/api/models/ann/base?blobs=true").json()["siblings"]
    assert base["usedStorage"] == sum(sibling["size"] for sibling in siblings)


def test_a_list_that_makes_no_sense_is_refused(stocked: TestClient) -> None:
    for query in ("sort=colour", "limit=-1", "cursor=x", "num_parameters=many", "direction=2"):
        assert stocked.get(f"/api/models?{query}").status_code in (400, 422)


@pytest.mark.parametrize(
    ("agent", "status"),
    [
        ("transformers/5.24.0; python/3.11.7; session_id/1; torch/2.13.0", 403),
        ("transformers/5.24.0; hf_hub/2.4.0; python/3.11.7", 200),
        ("unknown/None; hf_hub/2.4.0; python/3.11.7", 200),
    ],
)
def test_only_the_converter_of_transformers_is_refused(stocked: TestClient, agent: str, status: int) -> None:
    reply = stocked.get("/api/models/ann/base/commits/main", headers={"User-Agent": agent})
    assert reply.status_code == status
