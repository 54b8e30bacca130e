"""Saved recipes over REST: saved, listed by pages, compared, run again, shared and deleted."""

from typing import Any

import httpx
import pytest

from adapterhub.hub.services import repos
from adapterhub.hub.services.commits import commit
from tests.hub.api.rest.conftest import Site
from tests.hub.api.rest.test_merges import stocked, work
from tests.hub.services.samples import lora

__all__ = ["stocked"]

PLAIN = "maria/base + 0.5*maria/code"


def save(site: Site, name: str = "maria/support", expression: str = PLAIN, **more: Any) -> httpx.Response:
    return site.client().post("/api/recipes", json={"name": name, "expression": expression, **more})


def test_a_recipe_is_saved_shown_and_run_again(stocked: Site) -> None:
    saved = save(stocked, message="a start")
    assert saved.status_code == 201
    assert saved.json()["name"] == "recipe/maria/support"
    assert saved.json()["canonical"]["inputs"][0]["name"].startswith("maria/")
    commit(stocked.hub, stocked.caller("maria"), "maria/code", "main", lora("maria/base", r=4), "retrain")
    assert save(stocked).json()["version"] == 2
    shown = stocked.client(None).get("/api/recipes/maria/support", params={"version": 1}).json()
    assert (shown["text"], shown["message"], shown["author"]) == (PLAIN, "a start", "maria")
    run = stocked.client().post("/api/recipes/maria/support/runs", json={"version": 1, "push": "maria/again"})
    assert run.status_code == 202
    assert work(stocked, run.json())["result"]["recipe_digest"] == shown["digest"]
    text = f"recipe/maria/support@1 + {PLAIN.partition(' + ')[2]}"
    inline = stocked.client().post("/api/merges", json={"expression": text, "push": "maria/x"})
    assert work(stocked, inline.json())["state"] == "succeeded"


def test_lists_come_page_by_page(stocked: Site) -> None:
    for name in ("a", "b", "c", "c"):
        assert save(stocked, f"maria/{name}").status_code == 201
    client = stocked.client(None)
    first = client.get("/api/recipes", params={"limit": 2, "author": "maria"}).json()
    assert [one["id"] for one in first["items"]] == ["maria/a", "maria/b"]
    rest = client.get(first["next"]).json()
    assert ([(one["id"], one["version"]) for one in rest["items"]], rest["next"]) == ([("maria/c", 2)], None)
    newest = client.get("/api/recipes/maria/c/versions", params={"limit": 1}).json()
    assert [one["version"] for one in newest["items"]] == [2]
    assert [one["version"] for one in client.get(newest["next"]).json()["items"]] == [1]


def test_two_recipes_are_compared(stocked: Site) -> None:
    save(stocked)
    body = {"before": "maria/support", "after": "maria/base + 0.7*maria/code"}
    found = stocked.client(None).post("/api/recipes/diff", json=body).json()
    assert [one["text"] for one in found["changes"]] == ["weight of maria/code: 0.5, now 0.7"]
    assert (found["is_same"], found["before"]["name"]) == (False, "recipe/maria/support@1")


def test_a_recipe_is_renamed_hidden_and_deleted_by_its_owner_alone(stocked: Site) -> None:
    save(stocked)
    address, stranger = "/api/recipes/maria/support", stocked.client("stranger")
    assert stranger.patch(address, json={"private": True}).status_code == 403
    assert stranger.delete(address).status_code == 403
    assert stranger.post("/api/recipes", json={"name": "maria/x", "expression": PLAIN}).status_code == 403
    renamed = stocked.client().patch(address, json={"name": "maria/help", "private": True}).json()
    assert (renamed["id"], renamed["private"]) == ("maria/help", True)
    assert stranger.get("/api/recipes/maria/help").json()["code"] == "recipe_not_found"
    assert stranger.post("/api/recipes/maria/help/runs", json={}).status_code == 404
    assert stocked.client().delete("/api/recipes/maria/help").status_code == 204
    assert stocked.client().get("/api/recipes/maria/help").status_code == 404


def test_what_a_recipe_names_may_hide_what_it_says(stocked: Site) -> None:
    save(stocked)
    maria = stocked.caller("maria")
    stocked.hub.db.transact(lambda session: repos.update_settings(session, maria, "maria/code", private=True))
    stranger = stocked.client("stranger")
    [line] = stranger.get("/api/recipes").json()["items"]
    assert (line["id"], line["text"]) == ("maria/support", None)
    assert stranger.get("/api/recipes/maria/support").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "support"}, 400, "invalid_request"),
        ({"name": "maria/a b"}, 400, "invalid_name"),
        ({"syntax": "prose"}, 400, "invalid_request"),
        ({"expression": "maria/base + maria/cod"}, 404, "unknown_name"),
        ({"expression": "tise(maria/base; maria/code)"}, 422, "unknown_method"),
        ({"expression": "ties(maria/base; maria/code, densty=0.2)"}, 422, "invalid_parameter"),
        ({"wehn": "now"}, 400, "invalid_request"),
        ({"message": "x" * 1001}, 400, "invalid_request"),
    ],
)
def test_what_makes_no_recipe_is_refused(stocked: Site, body: dict[str, Any], status: int, code: str) -> None:
    refused = save(stocked, **{"name": "maria/support", "expression": PLAIN, **body})
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert stocked.client().get("/api/recipes").json()["items"] == []
