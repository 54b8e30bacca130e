"""Own tokens over REST."""

import httpx

from tests.hub.api.rest.conftest import Site


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_is_made_used_listed_and_ended(site: Site) -> None:
    made = site.client().post("/api/tokens", json={"name": "ci", "role": "read", "days": 30})
    assert made.status_code == 201
    token = made.json()["token"]
    assert httpx.get(f"{site.url}/api/whoami-v2", headers=bearer(token)).json()["auth"]["accessToken"]["role"] == "read"
    listed = site.client().get("/api/tokens").json()["items"]
    assert [one["name"] for one in listed] == ["ci", "test"]
    assert token not in str(listed)
    assert site.client("stranger").delete("/api/tokens/ci").status_code == 404
    assert site.client().delete("/api/tokens/ci").status_code == 204
    assert httpx.get(f"{site.url}/api/whoami-v2", headers=bearer(token)).status_code == 401


def test_a_fine_grained_token_is_told_by_whoami_as_clients_expect(site: Site) -> None:
    scoped = [{"name": "maria", "permissions": ["repo.write"]}]
    body = {"name": "fine", "role": "fine-grained", "scoped": scoped, "everywhere": ["discussion.write"]}
    made = site.client().post("/api/tokens", json=body).json()
    told = httpx.get(f"{site.url}/api/whoami-v2", headers=bearer(made["token"])).json()["auth"]["accessToken"]
    [entity] = told["fineGrained"]["scoped"]
    assert told["role"] == "fineGrained"
    assert (entity["entity"]["type"], entity["entity"]["name"]) == ("user", "maria")
    assert entity["permissions"] == ["repo.write"]
    assert told["fineGrained"]["global"] == ["discussion.write"]
    assert told["fineGrained"]["canReadGatedRepos"] is False


def test_only_a_token_that_may_write_makes_tokens(site: Site) -> None:
    read = site.client().post("/api/tokens", json={"name": "r", "role": "read"}).json()["token"]
    for headers, status in ((bearer(read), 403), ({}, 401)):
        refused = httpx.post(f"{site.url}/api/tokens", json={"name": "x", "role": "write"}, headers=headers)
        assert refused.status_code == status
    assert site.client().post("/api/tokens", json={"name": "x", "role": "admin"}).status_code == 403
    wrong = site.client().post("/api/tokens", json={"name": "x", "role": "fine-grained"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_request")


def test_members_are_listed_for_members(site: Site) -> None:
    site.client().post("/api/organisations", json={"name": "team"})
    members = "/api/organisations/team/members"
    assert site.client().get(members).json()["items"] == [{"name": "maria", "fullname": "", "role": "admin"}]
    assert site.client("stranger").get(members).status_code == 403
    assert site.client(None).get(members).status_code == 401
    assert site.client().get("/api/organisations").json()["items"] == [
        {"name": "team", "fullname": "", "role": "admin"}
    ]
    assert site.client("stranger").get("/api/organisations").json()["items"] == []
