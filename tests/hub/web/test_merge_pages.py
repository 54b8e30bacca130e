"""The form that merges and the page of a job: fields, plans, refusals, and who may do what."""

import re
from html import unescape

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from adapterhub.hub.web.merge_pages import MOST_ROWS, expression_of
from adapterhub.merging.errors import ExpressionError, InvalidParameter, UnknownMethod
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.registry import parameters_of
from tests.hub.api.conftest import TOKEN
from tests.hub.web.test_pages import test_every_page_is_whole_and_loads_only_from_this_server as check_whole

FILLED = {"base": "ann/base", "input-1": "ann/code", "weight-1": "0.7"}


def text_of(page: str) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_every_page_is_whole(site: TestClient) -> None:
    for path in ("/merge", "/merge?method=ties&base=ann/base&input=ann/code"):
        check_whole(site, path)
    assert 'href="/merge"' in site.get("/").text
    assert 'href="/merge?base=ann%2Fbase&amp;input=ann%2Fcode"' in site.get("/ann/code").text
    assert "/merge?" not in site.get("/ann/base").text


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        (FILLED, "ann/base + 0.7*ann/code"),
        ({**FILLED, "weight-1": ""}, "ann/base + ann/code"),
        (
            {**FILLED, "input-3": "ann/voices/x & y@v1", "weight-3": "-2"},
            'ann/base + 0.7*ann/code - 2*"ann/voices/x & y@v1"',
        ),
        ({**FILLED, "method": "ties"}, "ties(ann/base; 0.7*ann/code)"),
        (
            {**FILLED, "method": "ties", "p.density": "0.2", "p.normalize": "count", "p.elect": "weighted", "p.t": "1"},
            "ties(ann/base; 0.7*ann/code, density=0.2, normalize=count)",
        ),
        ({**FILLED, "method": "linear", "p.normalize": "false"}, "linear(ann/base; 0.7*ann/code, normalize=false)"),
    ],
)
def test_fields_mean_an_expression(said: dict[str, str], expression: str) -> None:
    assert expression_of(said) == expression
    assert str(parse(expression)) == expression


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ({}, InvalidParameter, "base: name the model"),
        ({"base": "ann/base"}, InvalidParameter, "inputs: name at least one"),
        ({**FILLED, "weight-1": "much"}, InvalidParameter, "weight 1: 'much' is no number"),
        ({**FILLED, "weight-1": "nan"}, InvalidParameter, "weight 1: 'nan' is no number"),
        ({**FILLED, "method": "tise"}, UnknownMethod, "ties"),
        (
            {**FILLED, "method": "ties", "p.density": "2"},
            InvalidParameter,
            r"ties: density is 2.0; expected float in \(0, 1\]",
        ),
        ({**FILLED, "base": "../x"}, ExpressionError, "is no name"),
    ],
)
def test_fields_that_mean_nothing_are_refused(said: dict[str, str], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        expression_of(said)


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_form_has_every_parameter_of_every_method(name: str, site: TestClient) -> None:
    page = site.get(f"/merge?method={name}").text
    for one in parameters_of(methods()[name].parameters):
        assert f'name="p.{one.name}"' in page
        assert one.help in unescape(page)
    # what the form shows first is what the method does when nothing is said
    shown = dict(re.findall(r'name="(p\.[^"]+)" value="([^"]*)"', page))
    chosen = dict(re.findall(r'<select name="(p\.[^"]+)">.*?<option selected>([^<]*)</option>', page))
    said = {**FILLED, "weight-1": "1", "method": name, **shown, **chosen}
    assert expression_of(said) == f"{name}(ann/base; ann/code)"


def test_a_plan_is_shown_and_what_was_said_stays(site: TestClient) -> None:
    page = site.post("/merge", data={**FILLED, "method": "dare_ties", "p.density": "0.3", "deed": "explain"})
    assert page.status_code == 200
    told = text_of(page.text)
    assert "dare_ties(ann/base; 0.7*ann/code, density=0.3)" in told
    assert "draws random masks" in told
    assert 'name="p.density" value="0.3"' in page.text
    assert 'name="input-1" value="ann/code"' in page.text


def test_room_for_another_input(site: TestClient) -> None:
    page = site.post("/merge", data={**FILLED, "input-2": "", "input-3": "", "deed": "more"}).text
    assert 'name="input-4"' in page
    assert 'name="input-5"' not in page
    full = {f"input-{number}": "" for number in range(1, MOST_ROWS + 1)}
    assert f'name="input-{MOST_ROWS + 1}"' not in site.post("/merge", data={**full, "deed": "more"}).text


def test_a_refusal_is_told_above_the_form_with_its_status(site: TestClient) -> None:
    for said, status, told in (
        ({**FILLED, "input-1": "ann/cod", "deed": "explain"}, 404, "ann/cod"),
        ({**FILLED, "input-1": "ann/secret", "deed": "explain"}, 404, "ann/secret"),
        ({**FILLED, "weight-1": "<b>", "deed": "explain"}, 422, "weight 1: '<b>' is no number"),
        ({**FILLED, "deed": "merge"}, 401, "ign in"),
    ):
        page = site.post("/merge", data=said)
        assert page.status_code == status
        assert '<p class="problem" role="alert">' in page.text
        assert told in text_of(page.text) or told in unescape(page.text)
        assert "<b>" not in page.text
    other = site.post("/merge", data=FILLED, headers={"Origin": "http://evil.example"})
    assert other.status_code == 403


def test_a_merge_leads_to_its_job_which_others_do_not_see(app: FastAPI, site: TestClient) -> None:
    site.post("/login", data={"token": TOKEN})
    asked = {**FILLED, "push": "ann/merged", "as": "lora", "message": "because", "deed": "merge"}
    moved = site.post("/merge", data=asked, follow_redirects=False)
    assert (moved.status_code, moved.headers["location"][:6]) == (303, "/jobs/")
    page = site.get(moved.headers["location"])
    assert page.status_code == 200
    assert "Waiting for a worker" in page.text
    assert '<meta http-equiv="refresh" content="2">' in page.text
    job = app.state.hub.jobs.get(moved.headers["location"].removeprefix("/jobs/"))
    assert (job.payload["expression"], job.payload["push"]) == ("ann/base + 0.7*ann/code", "ann/merged")
    app.state.hub.jobs.cancel(job.id)
    ended = site.get(moved.headers["location"]).text
    assert "cancelled" in ended
    assert "http-equiv" not in ended
    site.cookies.clear()
    assert site.get(moved.headers["location"]).status_code == 404
