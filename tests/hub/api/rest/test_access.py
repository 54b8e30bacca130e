"""Gated and closed repositories over REST."""

from adapterhub.hub.services import repos
from tests.hub.api.rest.conftest import Site


def test_a_visitor_asks_and_sees_where_the_request_stands(site: Site) -> None:
    maria = site.caller("maria")
    repos.create(site.hub, maria, "maria/gated")
    site.hub.db.transact(lambda session: repos.update_settings(session, maria, "maria/gated", gated="manual"))
    path = "/api/access-requests/maria/gated"
    assert site.client("stranger").get(path).json() == {"status": "ask", "reason": ""}
    assert site.client("stranger").post(path, json={"fields": {"Company": "A"}}).json()["status"] == "pending"
    assert site.client("stranger").get(path).json()["status"] == "pending"
    assert site.client().get(path).json()["status"] == "open"
    refused = site.client("stranger").get("/api/patches/maria/gated/files/.gitattributes")
    assert (refused.status_code, refused.json()["code"]) == (403, "gated_repo")
    assert "waits for its owner" in refused.json()["detail"]
    anonymous = site.client(None).get("/maria/gated/resolve/main/.gitattributes")
    assert (anonymous.status_code, anonymous.headers["X-Error-Code"]) == (401, "GatedRepo")
    assert "/maria/gated" in anonymous.headers["X-Error-Message"]
    assert site.client(None).post(path).status_code == 401
    assert site.client("stranger").post(path, json={"field": {}}).status_code == 400
    shown = site.client("stranger").get("/api/patches/maria/gated").json()
    assert (shown["gated"], shown["access"], shown["likes"], shown["is_liked"]) == ("manual", "pending", 0, False)


def test_an_administrator_closes_a_repository_and_opens_it_again(site: Site) -> None:
    repos.create(site.hub, site.caller("maria"), "maria/x")
    path = "/api/admin/repos/maria/x"
    assert site.client().put(path, json={"disabled": True}).status_code == 403
    assert site.client("boss").put(path, json={"disabled": True, "reason": "stolen"}).status_code == 204
    for name in ("maria", "stranger", None):
        refused = site.client(name).get("/maria/x/resolve/main/.gitattributes")
        assert refused.status_code == 403
        assert refused.headers["X-Error-Message"] == "Access to this resource is disabled."
        assert "stolen" in refused.text
    assert site.client("boss").get("/api/models/maria/x").json()["disabled"] is True
    assert site.client("boss").put(path, json={"disabled": False}).status_code == 204
    assert site.client(None).get("/api/models/maria/x").json()["disabled"] is False
