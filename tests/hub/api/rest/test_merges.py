"""Merges, ports and recipes over REST, computed by a real worker process, which may be killed."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.jobs.process import ProcessExecutor
from adapterhub.hub.services import describe, rates, repos
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.wiring import worker_environment
from adapterhub.hub.worker import handlers_of
from tests.hub.api.rest.conftest import Site
from tests.hub.services.samples import HIDDEN, SITE, lora, model

PATIENCE_S = 90


def push(site: Site, repo_id: str, files: list[AddRegular]) -> None:
    repos.create(site.hub, site.caller("maria"), repo_id)
    commit(site.hub, site.caller("maria"), repo_id, "main", files, "push")


@pytest.fixture
def stocked(site: Site) -> Site:
    """A site with a base, its second version and a LoRA on it."""
    push(site, "maria/base", model())
    push(site, "maria/base-v2", model(seed=1))
    push(site, "maria/code", lora("maria/base"))
    return site


def work(site: Site, job: dict[str, Any]) -> dict[str, Any]:
    """The job after everything that waits was run."""
    InlineExecutor(site.hub.jobs, handlers_of(site.hub)).drain()
    shown = site.client().get(f"/api/jobs/{job['id']}").json()
    assert isinstance(shown, dict)
    return shown


FILE = """
merge_method: linear
base_model: maria/base
models:
  - {model: maria/base, parameters: {weight: 1}}
  - {model: maria/base-v2, parameters: {weight: [0, 1]}}
out_dtype: bfloat16
"""


def test_a_recipe_file_is_parsed_explained_and_merged(stocked: Site) -> None:
    client = stocked.client()
    parsed = client.post("/api/recipes/parse", json={"yaml": FILE}).json()
    assert parsed["text"] == "linear(maria/base; maria/base, [0, 1]*maria/base-v2)"
    plan = client.post("/api/recipes/explain", json={"yaml": FILE}).json()
    asked = client.post("/api/merges", json={"yaml": FILE, "push": "maria/mean"})
    done = work(stocked, asked.json())
    assert (done["state"], done["result"]["recipe_digest"]) == ("succeeded", plan["digest"])
    recipe = client.get(f"/api/recipes/{plan['digest']}").json()
    assert recipe["text"] == FILE
    assert recipe["canonical"]["dtype"] == "BF16"


def test_slices_are_stacked_and_told_as_what_the_result_was_made_of(stocked: Site) -> None:
    text = """
    merge_method: passthrough
    slices:
      - sources: [{model: maria/base, layer_range: [0, 2]}]
      - sources: [{model: maria/base-v2, layer_range: [1, 2]}]
    """
    client = stocked.client()
    assert client.post("/api/recipes/parse", json={"yaml": text}).json() == {
        "text": "stack(maria/base[0:2], maria/base-v2[1:2])",
        "references": ["maria/base", "maria/base-v2"],
    }
    done = work(stocked, client.post("/api/merges", json={"yaml": text, "push": "maria/tall"}).json())
    assert done["state"] == "succeeded"
    view = client.get("/api/patches/maria/tall").json()
    assert {one["name"] for one in view["lineage"]["parents"]} == {"maria/base", "maria/base-v2"}


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ({"yaml": FILE, "expression": "maria/base"}, 400, "give one of expression and yaml"),
        ({}, 400, "give one of expression and yaml"),
        ({"yaml": "merge_method: slurp"}, 400, "merge_method: slurp: no such merge method; did you mean slerp?"),
        ({"yaml": "a: &x [*x]"}, 400, "recipe file: the alias"),
        (
            {"yaml": "{merge_method: linear, models: [{model: ./a, parameters: {weight: 1}}]}"},
            400,
            "./a: is a folder of the machine that wrote the file",
        ),
        ({"yaml": FILE.replace("maria/base-v2", "maria/base-v3")}, 404, "maria/base-v3: no such repository"),
    ],
)
def test_a_recipe_file_that_means_nothing_is_refused(
    asked: dict[str, str], code: int, says: str, stocked: Site
) -> None:
    for route in ("/api/merges", "/api/recipes/explain"):
        answer = stocked.client().post(route, json=asked)
        assert answer.status_code == code
        assert says in answer.text


def test_a_merge_is_asked_for_watched_and_shown(stocked: Site) -> None:
    asked = stocked.client().post(
        "/api/merges", json={"expression": "maria/base + 0.7*maria/code", "push": "maria/both"}
    )
    assert asked.status_code == 202
    done = work(stocked, asked.json())
    assert done["state"] == "succeeded"
    assert done["progress"]["unit"] == "bytes"
    view = stocked.client(None).get("/api/patches/maria/both").json()
    assert (view["kind"], view["commit"]) == ("model", done["result"]["commit"])
    digest = done["result"]["recipe_digest"]
    recipe = stocked.client(None).get(f"/api/recipes/{digest}").json()
    assert recipe["text"] == "maria/base + 0.7*maria/code"
    assert [one["weight"] for one in recipe["canonical"]["sum"]] == [0.7]


def test_the_same_merge_again_gives_the_same_commit(stocked: Site) -> None:
    body = {"expression": "maria/base + maria/code", "push": "maria/both", "as": "lora"}
    results = [work(stocked, stocked.client().post("/api/merges", json=body).json())["result"] for _ in range(2)]
    assert results[0]["commit"] == results[1]["commit"]
    assert [result["is_new"] for result in results] == [True, False]


@pytest.mark.parametrize(
    ("expression", "status", "code", "said"),
    [
        ("maria/base + * maria/code", 400, "expression_error", "character 14"),
        ("maria/base + maria/cod", 404, "unknown_name", "did you mean maria/code?"),
        ("maria/base@nowhere + maria/code", 404, "revision_not_found", "nowhere"),
        ("tise(maria/base; maria/code)", 422, "unknown_method", "did you mean ties?"),
        ("ties(maria/base; maria/code, density=7)", 422, "invalid_parameter", "density"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_it_is_queued(
    stocked: Site, expression: str, status: int, code: str, said: str
) -> None:
    for address in ("/api/merges", "/api/recipes/explain"):
        refused = stocked.client().post(address, json={"expression": expression})
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert said in refused.json()["detail"]
    kinds = {job["kind"] for job in stocked.client().get("/api/jobs").json()["items"]}
    assert "merge" not in kinds


def carried() -> AddRegular:
    """Statistics of the sample LoRA's sites: inputs of equal size that know nothing of one another."""
    sites = [SITE.format(layer=layer, module="q_proj") for layer in range(2)]
    rows, columns = np.triu_indices(HIDDEN)
    tensors = {f"{sites[0]}::gram": np.eye(HIDDEN, dtype=np.float32)[rows, columns]}
    metadata = {"inputs": json.dumps(dict.fromkeys(sites, sites[0])), "counts": json.dumps({sites[0]: 9})}
    return AddRegular("statistics.safetensors", save(tensors, metadata))


def test_a_merge_by_what_patches_carry_finds_it_beside_them_and_names_who_lacks_it(stocked: Site) -> None:
    push(stocked, "maria/law", [*lora("maria/base"), carried()])
    body = {"expression": "regmean(maria/base; maria/law)", "push": "maria/both"}
    done = work(stocked, stocked.client().post("/api/merges", json=body).json())
    assert done["state"] == "succeeded"
    assert stocked.client().get("/api/patches/maria/law").json()["kind"] == "lora"
    refused = stocked.client().post("/api/recipes/explain", json={"expression": "regmean(maria/base; maria/code)"})
    assert refused.status_code == 422
    assert "maria/code" in refused.json()["detail"]
    assert "no statistics.safetensors beside it" in refused.json()["detail"]


def test_nobody_merges_into_what_is_not_theirs(stocked: Site) -> None:
    body = {"expression": "maria/base + maria/code", "push": "maria/both"}
    assert stocked.client("stranger").post("/api/merges", json=body).status_code == 403
    assert stocked.client(None).post("/api/merges", json=body).status_code == 401
    wrong = stocked.client().post("/api/merges", json=body | {"pusch": "x"})
    assert wrong.status_code == 400
    assert "pusch" in wrong.json()["detail"]


def test_a_recipe_that_names_something_private_is_nobodys_business(stocked: Site) -> None:
    body = {"expression": "maria/base + maria/code", "push": "maria/both"}
    digest = work(stocked, stocked.client().post("/api/merges", json=body).json())["result"]["recipe_digest"]
    maria = stocked.caller("maria")
    stocked.hub.db.transact(lambda session: repos.update_settings(session, maria, "maria/code", private=True))
    assert stocked.client().get(f"/api/recipes/{digest}").status_code == 200
    assert stocked.client("stranger").get(f"/api/recipes/{digest}").json()["code"] == "recipe_not_found"


def test_an_expression_is_parsed_and_explained(stocked: Site) -> None:
    parsed = stocked.client(None).post("/api/recipes/parse", json={"expression": "a/b:c/d"}).json()
    assert parsed == {"text": "a/b + c/d", "references": ["a/b", "c/d"]}
    explained = stocked.client(None).post("/api/recipes/explain", json={"expression": "maria/base:maria/code"}).json()
    assert (explained["tensors"], explained["tensors_touched"]) == (4, 2)
    assert explained["canonical"]["inputs"]
    assert explained["methods"] == {"sum": 2, "copied": 2}
    assert explained["estimate"]["source"].startswith("stated: ")
    as_lora = {"expression": "maria/base:maria/code", "as": "lora"}
    assert stocked.client(None).post("/api/recipes/explain", json=as_lora).json()["as"] == "lora"


def test_the_time_of_a_merge_follows_from_this_hubs_own_merges(stocked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stocked.client()
    for expression in ("maria/base + maria/code", "ties(maria/base; maria/code)"):
        work(stocked, client.post("/api/merges", json={"expression": expression, "push": "maria/both"}).json())

    def source(expression: str) -> str:
        return str(client.post("/api/recipes/explain", json={"expression": expression}).json()["estimate"]["source"])

    assert source("maria/base + 2*maria/code").startswith("stated: ")  # a few kB tell nothing
    monkeypatch.setattr(rates, "LEAST_BYTES", 1)
    assert source("maria/base + 2*maria/code").endswith("in the last merge here by the same methods")
    assert source("dare_linear(maria/base; maria/code)").endswith("in the last 2 merges here by other methods")


def test_a_port_reports_and_lands_on_its_branch(stocked: Site) -> None:
    asked = stocked.client().post("/api/ports", json={"patch": "maria/code", "to": "maria/base-v2"})
    assert asked.status_code == 202
    done = work(stocked, asked.json())["result"]
    assert done["branch"].startswith("ported/base-v2-")
    assert done["report"]["sentence"]
    ported = stocked.client().get("/api/patches/maria/code", params={"revision": done["branch"]}).json()
    assert ported["base"]["repository"] == "maria/base-v2"
    refused = stocked.client().post("/api/ports", json={"patch": "maria/code", "to": "maria/bse"})
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_name")


def test_the_picture_by_layer_comes_when_its_job_is_done(stocked: Site) -> None:
    client = stocked.client(None)
    first = client.get("/api/patches/maria/code/layers")
    assert (first.status_code, first.json()["state"], first.json()["sites"]) == (202, "queued", [])
    InlineExecutor(stocked.hub.jobs, handlers_of(stocked.hub)).drain()
    shown = client.get("/api/patches/maria/code/layers")
    assert shown.status_code == 200
    assert {(one["layer"], one["module"]) for one in shown.json()["sites"]} == {
        ("0", "self_attn.q_proj"),
        ("1", "self_attn.q_proj"),
    }
    assert client.get("/api/patches/maria/base/layers").json()["sites"] == []


def test_a_gated_repository_shows_its_page_and_keeps_its_bytes(stocked: Site) -> None:
    maria = stocked.caller("maria")
    stocked.hub.db.transact(lambda session: repos.update_settings(session, maria, "maria/code", gated="manual"))
    stranger = stocked.client("stranger")
    assert stranger.get("/maria/code", headers={"Accept": "text/html"}).status_code == 200
    assert stranger.get("/api/patches/maria/code").status_code == 200
    for what in ("files/adapter_config.json", "archive", "layers"):
        refused = stranger.get(f"/api/patches/maria/code/{what}")
        assert (refused.status_code, refused.json()["code"]) == (403, "gated_repo")
    merge = stranger.post("/api/merges", json={"expression": "maria/base + maria/code"})
    assert (merge.status_code, merge.json()["code"]) == (403, "gated_repo")


def test_the_catalogue_is_listed_page_by_page(stocked: Site) -> None:
    first = stocked.client(None).get("/api/patches", params={"limit": 2, "sort": "name"}).json()
    assert [item["id"] for item in first["items"]] == ["maria/base", "maria/base-v2"]
    rest = stocked.client(None).get(first["next"]).json()
    assert ([item["id"] for item in rest["items"]], rest["next"]) == (["maria/code"], None)
    only = stocked.client(None).get("/api/patches", params={"kind": "lora"}).json()
    assert [item["id"] for item in only["items"]] == ["maria/code"]
    for query in ("sort=luck", "limit=0", "cursor=x"):
        assert stocked.client(None).get(f"/api/patches?{query}").status_code == 400


def test_a_worker_killed_in_the_middle_of_a_merge_costs_nothing_but_time(site: Site) -> None:
    push(site, "maria/base", model(1024, layers=8))
    push(site, "maria/code", lora("maria/base", hidden=1024, layers=8))
    InlineExecutor(site.hub.jobs, handlers_of(site.hub)).drain()  # the base's fingerprint
    client = site.client()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def scenario() -> str:
        executor = ProcessExecutor(site.hub.jobs, 1, worker_environment(site.hub.settings))
        await executor.start()
        try:
            body = {"expression": "maria/base + maria/code", "push": "maria/both"}
            job_id = str(client.post("/api/merges", json=body).json()["id"])
            await until(lambda: site.hub.jobs.get(job_id).progress.get("done", 0) > 0)
            [pid] = executor.pids
            os.kill(pid, signal.SIGKILL)
            # nothing half written is to be seen, and the service goes on
            assert client.get("/api/patches/maria/both").status_code == 404
            assert client.get("/api/patches/maria/code").status_code == 200
            assert client.put("/api/patches/maria/code/files/note", content=b"pushed meanwhile").status_code == 201
            await until(lambda: site.hub.jobs.get(job_id).finished_at is not None)
            return job_id
        finally:
            await executor.stop()

    done = site.hub.jobs.get(asyncio.run(scenario()))
    assert (done.state, done.attempts) == ("succeeded", 2)
    assert done.result is not None
    assert describe.repo_view(site.hub, site.caller("maria"), "maria/both")["commit"] == done.result["commit"]
    assert not list((site.hub.settings.data / "spool").glob("job-*"))
