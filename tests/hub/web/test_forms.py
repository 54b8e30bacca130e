"""What a visitor does on pages: liking, asking for gated files; and the pages of collections."""

import re
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from sqlmodel import Session
from starlette.testclient import TestClient

from adapterhub.hub.context import Hub
from adapterhub.hub.services import accounts, collections, gates, repos
from adapterhub.hub.services.access import Caller, authenticate
from adapterhub.hub.services.commits import AddRegular, commit
from tests.hub.api.conftest import TOKEN

CARD = b"""---
extra_gated_prompt: Say who you are & why.
extra_gated_fields:
  Company: text
  Country: {type: select, options: [Austria, <Brazil>]}
  I agree: checkbox
---
# A gated one
"""


@pytest.fixture(scope="module")
def hub(app: FastAPI) -> Hub:
    """The hub of the pages, with a gated repository, and a collection that holds a private one too."""
    hub: Hub = app.state.hub
    ann = sign_in(hub, TOKEN)
    repos.create(hub, ann, "ann/gated")
    commit(hub, ann, "ann/gated", "main", [AddRegular("README.md", CARD)], "push")
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/gated", gated="manual"))
    return hub


@pytest.fixture
def visitor(hub: Hub, site: TestClient) -> Callable[[str], TestClient]:
    """Signs a fresh user in."""

    def sign_up(name: str) -> TestClient:
        ann = sign_in(hub, TOKEN)

        def work(session: Session) -> str:
            account = accounts.create_user(session, ann, name)
            return accounts.issue_token(session, ann, account, "test", "write")[1]

        site.post("/login", data={"token": hub.db.transact(work)})
        return site

    return sign_up


def sign_in(hub: Hub, token: str) -> Caller:
    with hub.db.read() as session:
        return authenticate(session, f"Bearer {token}")


def test_a_visitor_likes_and_takes_it_back(visitor: Callable[[str], TestClient]) -> None:
    site = visitor("lena")
    assert "♡ Like · 0" in site.get("/ann/code").text
    assert "♥ Liked · 1" in site.post("/ann/code/like").text
    assert "♡ Like · 0" in site.post("/ann/code/unlike").text
    assert site.post("/ann/secret/like").status_code == site.post("/ann/nothing/like").status_code == 404
    assert site.post("/ann/code/like", headers={"Origin": "https://evil.example"}).status_code == 403


def test_nobody_likes_without_signing_in(hub: Hub, site: TestClient) -> None:
    assert "<button aria-pressed" not in site.get("/ann/code").text
    assert site.post("/ann/code/like").status_code == 401


def test_a_gated_page_asks_what_its_card_says_and_tells_what_became_of_it(
    hub: Hub, visitor: Callable[[str], TestClient]
) -> None:
    site = visitor("guest")
    page = site.get("/ann/gated").text
    for told in ("Say who you are &amp; why.", 'name="Company"', "<option>&lt;Brazil&gt;</option>", "Ask for access"):
        assert told in page, told
    assert "has not answered" in site.post("/ann/gated/ask-access", data={"Company": "A", "I agree": "yes"}).text
    ann = sign_in(hub, TOKEN)

    def waiting(session: Session) -> list[tuple[str, dict[str, str]]]:
        repo = repos.find(session, ann, "ann/gated")
        return [(who.name, asked.fields) for asked, who in gates.requests(session, ann, repo, "pending", limit=9)]

    def answer(status: str) -> None:
        hub.db.transact(
            lambda session: gates.answer(session, ann, repos.find(session, ann, "ann/gated"), status, user="guest")
        )

    assert hub.db.transact(waiting) == [("guest", {"Company": "A", "I agree": "yes"})]
    answer("rejected")
    assert "refused your request" in site.get("/ann/gated").text
    answer("accepted")
    assert "The files are gated" not in site.get("/ann/gated").text
    assert site.get("/ann/gated/resolve/main/README.md").status_code == 401
    assert site.post("/ann/code/ask-access").status_code == 400


def test_the_owner_sees_who_waits_and_lets_them_in_on_the_page(
    hub: Hub, visitor: Callable[[str], TestClient], app: FastAPI
) -> None:
    asker = visitor("asker")
    asker.post("/ann/gated/ask-access", data={"Company": "<b>B"})
    assert "Waiting for your answer" not in asker.get("/ann/gated").text
    owner = TestClient(app, base_url="http://127.0.0.1:8000", headers={"Accept": "text/html"})
    owner.post("/login", data={"token": TOKEN})
    page = owner.get("/ann/gated").text
    assert "Waiting for your answer" in page
    assert "Company: &lt;b&gt;B" in page
    found = re.search(r'name="request_id" value="(\w+)"', page)
    assert found is not None
    answer = {"request_id": found[1], "status": "accepted"}
    assert asker.post("/ann/gated/answer-access", data=answer).status_code == 403
    assert "Waiting for your answer" not in owner.post("/ann/gated/answer-access", data=answer).text
    assert "The files are gated" not in asker.get("/ann/gated").text
    owner.close()


def test_a_gated_page_sends_the_anonymous_to_sign_in(hub: Hub, site: TestClient) -> None:
    page = site.get("/ann/gated").text
    assert 'action="/ann/gated/ask-access"' not in page
    assert "to ask" in page


def test_a_collection_has_a_page_and_stands_on_its_owners(hub: Hub, site: TestClient) -> None:
    ann = sign_in(hub, TOKEN)

    def work(session: Session) -> str:
        made = collections.create(session, ann, "ann", "Prose <best>", description="What we use.")
        collections.add_item(session, ann, made.slug, "model", "ann/code", "note <one>")
        return collections.add_item(session, ann, made.slug, "model", "ann/secret").slug

    slug = hub.db.transact(work)
    page = site.get(f"/collections/{slug}")
    assert page.text.count("<h1") == 1
    for told in ("Prose &lt;best&gt;", "What we use.", "/ann/code", "note &lt;one&gt;", "1 item"):
        assert told in page.text, told
    assert "ann/secret" not in page.text
    assert f"/collections/{slug}" in site.get("/ann").text
    old = f"/collections/ann/another-title-{slug[-24:]}"
    assert site.get(old, follow_redirects=False).headers["location"] == f"/collections/{slug}"
    hub.db.transact(lambda session: collections.update(session, ann, slug, private=True))
    missing = site.get(f"/collections/ann/prose-best-{'0' * 24}")
    hidden = site.get(f"/collections/{slug}")
    assert hidden.status_code == missing.status_code == 404
    assert hidden.text.replace(slug[-24:], "0" * 24) == missing.text
    assert f"/collections/{slug}" not in site.get("/ann").text
    site.post("/login", data={"token": TOKEN})
    assert "ann/secret" in site.get(f"/collections/{slug}").text
