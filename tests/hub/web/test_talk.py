"""The pages of discussions: read by anybody, taken part in by who is signed in."""

import secrets

import pytest
from starlette.testclient import TestClient

from tests.hub.api.conftest import TOKEN
from tests.hub.api.hf.test_bad_input import commit


@pytest.fixture
def repo(site: TestClient) -> str:
    """A fresh repository of ann's, who is signed in as in a browser from here on."""
    name = f"talk-{secrets.token_hex(4)}"
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    site.post("/api/repos/create", json={"name": name, "organization": "ann"}, headers=bearer)
    site.headers["Origin"] = "http://127.0.0.1:8000"
    site.post("/login", data={"token": TOKEN}, follow_redirects=False)
    return f"ann/{name}"


def test_a_visitor_opens_a_discussion_talks_and_closes_it(site: TestClient, repo: str) -> None:
    assert "None are open" in site.get(f"/{repo}/discussions").text
    opened = site.post(f"/{repo}/discussions", data={"title": "Is <b>it</b> good?", "text": "I *wonder* <script>"})
    assert str(opened.url).endswith(f"/{repo}/discussions/1")
    assert "Is &lt;b&gt;it&lt;/b&gt; good?" in opened.text
    assert "<em>wonder</em>" in opened.text
    assert "<script>" not in opened.text.partition("<main")[2]
    said = site.post(f"/{repo}/discussions/1", data={"deed": "close", "text": "it is"})
    assert "it is" in said.text
    assert "made it closed" in said.text
    assert "Is &lt;b&gt;" not in site.get(f"/{repo}/discussions").text
    assert "Is &lt;b&gt;" in site.get(f"/{repo}/discussions?status=closed").text


def test_a_pull_request_is_read_and_merged_on_its_page(site: TestClient, repo: str) -> None:
    site.headers["Authorization"] = f"Bearer {TOKEN}"
    line = {"key": "file", "value": {"path": "a.txt", "content": "bGluZQo=", "encoding": "base64"}}
    assert commit(site, repo, line, branch="main?create_pr=1").status_code == 200
    del site.headers["Authorization"]
    page = site.get(f"/{repo}/discussions/1").text
    assert "+line" in page
    assert "refs/pr/1" in page
    assert "made it merged" in site.post(f"/{repo}/discussions/1", data={"deed": "merge"}).text
    assert site.get(f"/{repo}/resolve/main/a.txt").text == "line\n"


def test_who_is_not_signed_in_reads_only(site: TestClient, repo: str) -> None:
    site.post(f"/{repo}/discussions", data={"title": "a title", "text": "text"})
    site.cookies.clear()
    assert "<textarea" not in site.get(f"/{repo}/discussions/1").text
    reply = site.post(f"/{repo}/discussions/1", data={"deed": "comment", "text": "x"})
    assert reply.status_code == 401
    assert site.get(f"/{repo}/discussions/9").status_code == 404


def test_another_site_cannot_take_part(site: TestClient, repo: str) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    data = {"title": "a title", "text": "text"}
    assert site.post(f"/{repo}/discussions", data=data, headers=headers).status_code == 403
