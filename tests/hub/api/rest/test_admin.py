"""Users and organisations over REST."""

from tests.hub.api.rest.conftest import Site


def test_an_administrator_makes_a_user_whose_token_works(site: Site) -> None:
    made = site.client("boss").post("/api/admin/users", json={"name": "lee"})
    assert made.status_code == 201
    token = made.json()["token"]
    assert token.startswith("ah_")
    new = site.client(None).post(
        "/api/organisations", json={"name": "team"}, headers={"Authorization": f"Bearer {token}"}
    )
    assert new.status_code == 201
    names = [user["name"] for user in site.client("boss").get("/api/admin/users").json()["items"]]
    assert {"lee", "maria", "boss"} <= set(names)


def test_users_are_made_and_listed_by_administrators_only(site: Site) -> None:
    for name, status in (("maria", 403), (None, 401)):
        assert site.client(name).post("/api/admin/users", json={"name": "lee"}).status_code == status
        assert site.client(name).get("/api/admin/users").status_code == status


def test_names_that_are_taken_reserved_or_wrong_are_refused(site: Site) -> None:
    for name, status, code in (
        ("Maria", 409, "account_exists"),
        ("docs", 409, "name_reserved"),
        ("a b", 400, "invalid_name"),
    ):
        refused = site.client("boss").post("/api/admin/users", json={"name": name})
        assert (refused.status_code, refused.json()["code"]) == (status, code)


def test_an_unknown_field_is_refused_and_named(site: Site) -> None:
    refused = site.client("boss").post("/api/admin/users", json={"name": "lee", "is_admn": True})
    assert refused.status_code == 400
    assert "is_admn" in refused.json()["detail"]


def test_the_administrator_of_an_organisation_chooses_its_members(site: Site) -> None:
    assert site.client().post("/api/organisations", json={"name": "team"}).json() == {"name": "team", "fullname": ""}
    member = "/api/organisations/team/members/stranger"
    assert site.client("stranger").put(member, json={"role": "admin"}).status_code == 403
    assert site.client().put(member, json={"role": "write"}).status_code == 204
    assert site.client().put(member, json={"role": None}).status_code == 204
    assert site.client().put(member, json={"role": "king"}).status_code == 400
