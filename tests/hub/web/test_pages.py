import re

import pytest
from starlette.testclient import TestClient

from tests.hub.api.conftest import TOKEN

PAGES = ["/", "/patches", "/patches?search=code&kind=lora", "/help", "/login", "/ann", "/ann/base", "/ann/code"]
PAGES += ["/ann/voices", "/ann/voices?path=voices/03 %26 co", "/ann/voices/patches", "/ann/voices/patches?search=none"]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_and_loads_only_from_this_server(site: TestClient, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 200
    assert answer.text.count("<h1") == 1
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', answer.text)
    for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
        assert site.get(asset).status_code == 200, asset


def test_a_patch_page_tells_what_is_inside(site: TestClient) -> None:
    text = site.get("/ann/code").text
    for told in ("lora", "ann/base", "q_proj", "apache-2.0", "adapter_model.safetensors", "peft", "<svg"):
        assert told in text, told


def test_a_repository_of_many_patches_lists_some_and_links_to_all(site: TestClient) -> None:
    text = site.get("/ann/voices").text
    links = re.findall(r'href="(/ann/voices\?path=[^"]+)"', text)
    assert len(links) == 20
    assert "All 25 patches" in text
    one = site.get(links[3]).text
    assert "voices/03 &amp; co" in one
    assert "voices/04" not in one
    assert "subfolder=&#34;voices/03 &amp; co&#34;" in one


def test_patches_of_a_repository_are_searched_by_their_folders(site: TestClient) -> None:
    found = re.findall(r'href="/ann/voices\?path=([^"]+)"', site.get("/ann/voices/patches?search=voices 1").text)
    assert found == [f"voices%2F{number}%20%26%20co" for number in ("01", *range(10, 20), "21")]
    assert "No patch lies in such a folder" in site.get("/ann/voices/patches?search=none").text
    assert site.get("/ann/voices?path=voices/99").status_code == 404


def test_a_pickle_is_marked_unsafe_and_nothing_else(site: TestClient) -> None:
    rows = re.findall(r"<tr><td>.*?</tr>", site.get("/ann/code").text, re.DOTALL)
    marked = [row for row in rows if "unsafe: pickle" in row]
    assert len(rows) > len(marked) == 1
    assert "training_args.bin" in marked[0]


def test_a_hostile_card_is_shown_and_does_nothing(site: TestClient) -> None:
    text = site.get("/ann/code").text
    assert "<script>alert" not in text
    assert "onerror" not in text
    assert 'href="javascript:' not in text


def test_search_finds_by_word_and_says_when_nothing_matches(site: TestClient) -> None:
    assert "/ann/code" in site.get("/patches?search=prose").text
    assert "Nothing matches" in site.get("/patches?search=nonsense").text


def test_private_repositories_are_for_those_who_signed_in(site: TestClient) -> None:
    assert "ann/secret" not in site.get("/patches").text
    assert site.get("/ann/secret").status_code == 404
    assert site.post("/login", data={"token": TOKEN}, follow_redirects=False).status_code == 303
    assert "ann/secret" in site.get("/patches").text
    assert site.get("/ann/secret").status_code == 200
    site.post("/logout")
    assert site.get("/ann/secret").status_code == 404


def test_the_session_cookie_does_not_hold_the_token(site: TestClient) -> None:
    answer = site.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert TOKEN not in answer.headers["set-cookie"]
    assert "httponly" in answer.headers["set-cookie"].lower()


def test_a_wrong_token_is_told_and_signs_nobody_in(site: TestClient) -> None:
    answer = site.post("/login", data={"token": "ah_wrong"})
    assert answer.status_code == 401
    assert "unknown here" in answer.text
    assert "set-cookie" not in answer.headers


def test_a_form_of_another_site_is_refused(site: TestClient) -> None:
    answer = site.post("/login", data={"token": TOKEN}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


def test_errors_are_pages_for_people_and_json_for_programs(site: TestClient) -> None:
    page = site.get("/ann/nothing")
    assert page.status_code == 404
    assert "no such repository" in page.text
    assert page.headers["x-error-code"] == "RepoNotFound"
    data = site.get("/ann/nothing", headers={"Accept": "application/json"})
    assert "no such repository" in data.json()["error"]


def test_an_old_revision_has_a_page_of_its_own(site: TestClient) -> None:
    assert site.get("/ann/code?revision=main").status_code == 200
    assert site.get("/ann/code?revision=gone").status_code == 404


@pytest.mark.parametrize("path", ["/ann/code/commit/{commit}", "/ann/code/tree/{commit}", "/ann/code/tree/main"])
def test_the_addresses_that_clients_print_lead_to_the_page(site: TestClient, path: str) -> None:
    commit = site.get("/api/patches/ann/code").json()["commit"]
    answer = site.get(path.format(commit=commit))
    assert answer.status_code == 200
    assert commit[:10] in answer.text
