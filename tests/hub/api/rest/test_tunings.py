"""Searches of weights over REST: asked for with a token, refused with a sentence."""

from tests.hub.api.rest.conftest import Site
from tests.hub.api.rest.test_merges import stocked

__all__ = ["stocked"]

BODY = {"expression": "maria/base + 0.5*maria/code", "task": [{"text": [1, 2, 3]}]}


def test_a_search_is_a_job_of_who_asks(stocked: Site) -> None:
    asked = stocked.client().post("/api/tunings", json=BODY)
    assert (asked.status_code, asked.json()["kind"], asked.json()["state"]) == (202, "tuning", "queued")
    assert stocked.client().post("/api/tunings", json=BODY).json()["id"] == asked.json()["id"]
    assert stocked.client(None).post("/api/tunings", json=BODY).status_code == 401
    assert stocked.client("stranger").get(f"/api/jobs/{asked.json()['id']}").status_code == 404


def test_a_search_that_cannot_work_is_refused_at_once(stocked: Site) -> None:
    for more, status, code in (
        ({"task": None}, 400, "invalid_request"),
        ({"optimiser": "adam"}, 400, "invalid_request"),
        ({"expression": "maria/base"}, 422, "invalid_parameter"),
        ({"task": None, "judge": "gopher://x"}, 400, "outbound_refused"),
        ({"pins": {}}, 400, "invalid_request"),
    ):
        refused = stocked.client().post("/api/tunings", json=BODY | more)
        assert (refused.status_code, refused.json()["code"]) == (status, code), more
