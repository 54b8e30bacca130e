"""GET /v1/models: what is listed, what is in memory of it, and for whom."""

import httpx
import openai
import pytest

from tests.clients.server import Server


@pytest.fixture(scope="module")
def saved(serving: Server) -> str:
    with serving.http() as http:
        body = {"name": "admin/mixed", "expression": "admin/base + 0.7*admin/one"}
        assert http.post("/api/recipes", json=body).status_code == 201
        hidden = {"name": "admin/hidden", "expression": "admin/base + admin/two"}
        assert http.post("/api/recipes", json=hidden).status_code == 201
    return "recipe/admin/mixed"


def state_of(client: openai.OpenAI, name: str) -> str:
    told = client.models.retrieve(name).to_dict()["adapterhub"]
    assert isinstance(told, dict)
    return str(told["state"])


def test_recipes_are_listed_and_served_by_their_names(client: openai.OpenAI, saved: str) -> None:
    found = {one.id: one.to_dict() for one in client.models.list()}
    assert found[saved]["owned_by"] == "admin"
    assert {found[name]["adapterhub"]["kind"] for name in ("admin/base", "admin/one", saved)} == {  # type: ignore[index]
        "model",
        "lora",
        "recipe",
    }
    merged = {"adapterhub": {"execution": "merged"}}
    asked = {"prompt": "hello", "max_tokens": 8, "temperature": 0, "extra_body": merged}
    of_recipe, of_text = (
        client.completions.create(model=model, **asked)  # type: ignore[call-overload]
        for model in (saved, "admin/base + 0.7*admin/one")
    )
    assert of_recipe.choices[0].text == of_text.choices[0].text
    assert of_recipe.system_fingerprint == of_text.system_fingerprint


def test_what_is_in_memory_is_told_with_its_bytes(client: openai.OpenAI, saved: str) -> None:
    for name in ("admin/base", "admin/one", saved):
        client.completions.create(model=name, prompt="x", max_tokens=1)
    found = {one.id: one.to_dict()["adapterhub"] for one in client.models.list()}
    for name in ("admin/base", "admin/one", saved):
        told = found[name]
        assert isinstance(told, dict)
        assert (told["state"], told["bytes"] > 0) == ("resident", True), name
    assert state_of(client, "admin/vit") == "cold"


def test_what_a_caller_may_not_see_is_not_listed(serving: Server, outsider: str, saved: str) -> None:
    with httpx.Client(base_url=serving.url, headers={"Authorization": f"Bearer {outsider}"}) as http:
        names = {one["id"] for one in http.get("/v1/models").json()["data"]}
    assert saved in names
    assert names.isdisjoint({"admin/two", "recipe/admin/hidden"})


def test_a_digest_names_what_answered_before(serving: Server, outsider: str, saved: str) -> None:
    asked = {"prompt": "hello", "max_tokens": 8, "temperature": 0}
    with serving.http() as http:
        first = http.post("/v1/completions", json={**asked, "model": "admin/base - 0.3*admin/one"})
        digest = first.headers["x-adapterhub-variant"]
        name = "vid:" + digest.replace(":", "-")
        again = http.post("/v1/completions", json={**asked, "model": name})
        assert (again.status_code, again.headers["x-adapterhub-variant"]) == (200, digest)
        assert again.json()["choices"] == first.json()["choices"]
        assert again.json()["system_fingerprint"] == first.json()["system_fingerprint"]
        with http.stream("POST", "/v1/completions", json={**asked, "model": name, "stream": True}) as stream:
            assert stream.headers["x-adapterhub-variant"] == digest
        secret = http.post("/v1/completions", json={**asked, "model": "admin/base + 0.2*admin/two"})
        unknown = http.post("/v1/completions", json={**asked, "model": "vid:sha256-" + "0" * 64})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    of_secret = "vid:" + secret.headers["x-adapterhub-variant"].replace(":", "-")
    with httpx.Client(base_url=serving.url, headers={"Authorization": f"Bearer {outsider}"}) as http:
        assert http.post("/v1/completions", json={**asked, "model": of_secret}).status_code == 404
        assert http.post("/v1/completions", json={**asked, "model": name}).status_code == 200
    with httpx.Client(base_url=serving.url) as http:
        assert http.post("/v1/completions", json={**asked, "model": name}).status_code == 401


def test_one_is_found_as_it_is_listed(client: openai.OpenAI, saved: str) -> None:
    listed = {one.id: one.to_dict() for one in client.models.list()}
    for name in ("admin/base", "admin/one", saved):
        assert client.models.retrieve(name).to_dict() == listed[name]
    for name in ("admin/nobody", "recipe/admin/mixed2", "recipe/admin/mixe"):
        with pytest.raises(openai.NotFoundError, match="no model of that name"):
            client.models.retrieve(name)
