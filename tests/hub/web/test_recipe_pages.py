"""The pages of saved recipes: what they tell, and to whom."""

from starlette.testclient import TestClient

from tests.hub.api.conftest import TOKEN
from tests.hub.web.test_pages import test_every_page_is_whole_and_loads_only_from_this_server as check_whole

PAGES = ["/recipes", "/recipes?search=none", "/recipes/ann/support", "/recipes/ann/support?version=1"]


def test_every_page_is_whole(site: TestClient) -> None:
    for path in PAGES:
        check_whole(site, path)


def test_recipes_are_listed_and_searched(site: TestClient) -> None:
    text = site.get("/recipes").text
    assert "/recipes/ann/support" in text
    assert "ann/base + 0.7*ann/code" in text
    assert "ann/hidden" not in text
    assert "names something that you may not see" in text  # of half-hidden
    assert "secret" not in text
    assert "No recipe that you may see has" in site.get("/recipes?search=none").text
    assert "/recipes/ann/support" not in site.get("/recipes?author=eve").text


def test_a_recipe_is_told_with_its_versions_and_what_changed(site: TestClient) -> None:
    text = site.get("/recipes/ann/support").text
    for told in (
        "ann/base + 0.7*ann/code",
        "recipe/ann/support@2",
        "Since version 1",
        "weight of ann/code: 0.5, now 0.7",
        "/recipes/ann/support?version=1",
        "&lt;b&gt;0.7&lt;/b&gt;",
        'href="/api/recipes/ann/support?version=2"',
    ):
        assert told in text, told
    first = site.get("/recipes/ann/support?version=1").text
    assert "Since version" not in first
    assert "the latest is version 2" in first
    back = site.get("/recipes/ann/support?version=1&against=2").text
    assert "weight of ann/code: 0.7, now 0.5" in back


def test_private_recipes_are_for_those_who_signed_in(site: TestClient) -> None:
    for path in (
        "/recipes/ann/hidden",
        "/recipes/ann/half-hidden",
        "/recipes/ann/nothing",
        "/recipes/ann/support?version=9",
    ):
        assert site.get(path).status_code == 404, path
    older = site.get("/recipes/ann/half-hidden?version=1").text
    assert "secret" not in older
    assert site.get("/recipes/ann/half-hidden?version=1&against=2").status_code == 404
    site.post("/login", data={"token": TOKEN})
    assert "ann/secret" in site.get("/recipes/ann/hidden").text
    assert "input ann/secret: added" in site.get("/recipes/ann/half-hidden").text


def test_a_version_that_is_no_number_is_a_page_of_an_error(site: TestClient) -> None:
    answer = site.get("/recipes/ann/support?version=first")
    assert answer.status_code == 400
    assert "<h1" in answer.text
