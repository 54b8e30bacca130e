"""The catalogue: what is found, in which order, and by whom."""

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import repos
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.search import SORTS, Filters, listing, search
from tests.hub.services.samples import MakeUser, stock


@pytest.fixture
def stocked(hub: Hub, ann: Caller) -> Hub:
    return stock(hub, ann)


def names(hub: Hub, caller: Caller, **filters: object) -> list[str]:
    with hub.db.read() as session:
        return [item["id"] for item in search(session, caller, **filters)["items"]]  # type: ignore[arg-type]


def test_a_private_repository_is_found_only_by_those_who_may_read_it(stocked: Hub, ann: Caller, user: MakeUser) -> None:
    assert "ann/hidden" in names(stocked, ann, query="secret")
    for other in (ANONYMOUS, user("eve")):
        assert names(stocked, other, query="secret") == []
        assert "ann/hidden" not in names(stocked, other)
        with stocked.db.read() as session:
            assert search(session, other)["total"] == 3


@pytest.mark.parametrize(
    "query", ["python", "PYTHON", "pyth", "code-lora", "ann/code-lora", "cafe", "café uber", "writes python", "code"]
)
def test_words_of_name_tags_and_card_find_a_repository(stocked: Hub, query: str) -> None:
    assert names(stocked, ANONYMOUS, query=query) == ["ann/code-lora"]


@pytest.mark.parametrize("query", ['"', "* OR NEAR(", "python AND secret", "name:python", "'; --", "%", "zzz"])
def test_signs_of_a_query_language_mean_nothing(stocked: Hub, query: str) -> None:
    found = names(stocked, ANONYMOUS, query=query)
    assert len(found) in (0, 3)


@pytest.mark.parametrize("query", ["x" * 401, "a " * 17])
def test_a_query_past_its_limits_is_refused(stocked: Hub, query: str) -> None:
    with pytest.raises(InvalidRequest, match="search"):
        names(stocked, ANONYMOUS, query=query)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"kind": "lora"}, ["ann/code-lora"]),
        ({"kind": "model"}, ["ann/base"]),
        ({"base": "ann/base"}, ["ann/code-lora"]),
        ({"licence": "mit"}, ["ann/code-lora"]),
        ({"task": "text-generation", "sort": "name"}, ["ann/base", "ann/code-lora"]),
        ({"author": "Ann", "sort": "name"}, ["ann/base", "ann/code-lora", "ann/notes"]),
        ({"author": "a%"}, []),
        ({"tags": ["peft", "license:mit"]}, ["ann/code-lora"]),
        ({"tags": ["peft", "license:apache-2.0"]}, []),
        ({"base": "ann/base", "query": "python", "kind": "lora"}, ["ann/code-lora"]),
    ],
)
def test_filters_narrow(stocked: Hub, filters: dict[str, object], found: list[str]) -> None:
    assert names(stocked, ANONYMOUS, **filters) == found


@pytest.mark.parametrize("sort", SORTS)
def test_pages_show_everything_once(stocked: Hub, ann: Caller, sort: str) -> None:
    seen: list[str] = []
    cursor: str | None = None
    with stocked.db.read() as session:
        whole = [row.repo.full_name for row in listing(session, ann, Filters(), sort=sort).rows]
        for _ in range(4):
            page = listing(session, ann, Filters(), sort=sort, limit=1, cursor=cursor)
            seen += [row.repo.full_name for row in page.rows]
            assert page.total == 4
            cursor = page.cursor
    assert cursor is None
    assert seen == whole
    assert sorted(seen) == ["ann/base", "ann/code-lora", "ann/hidden", "ann/notes"]


@pytest.mark.parametrize("cursor", ["x", "bnVsbA", "WyJuYW1lIiwxLDJd", "é"])
def test_a_cursor_that_is_none_of_ours_is_refused(stocked: Hub, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        names(stocked, ANONYMOUS, cursor=cursor)


def test_an_unknown_sort_is_refused_and_a_wild_limit_clamped(stocked: Hub) -> None:
    with pytest.raises(InvalidRequest, match="colour"):
        names(stocked, ANONYMOUS, sort="colour")
    assert len(names(stocked, ANONYMOUS, limit=10**9)) == 3
    assert len(names(stocked, ANONYMOUS, limit=-1)) == 1


def test_a_line_of_the_catalogue_tells_what_a_patch_is(stocked: Hub) -> None:
    with stocked.db.read() as session:
        line = search(session, ANONYMOUS, "python")["items"][0]
    assert (line["kind"], line["rank_max"], line["licence"]) == ("lora", 2, "mit")
    assert line["base"] == {"name": "ann/base", "repository": "ann/base"}


def test_a_moved_repository_is_found_by_its_new_name(stocked: Hub, ann: Caller) -> None:
    stocked.db.transact(lambda session: repos.move(session, ann, "ann/code-lora", "ann/snakes"))
    assert names(stocked, ANONYMOUS, query="snakes python") == ["ann/snakes"]
    stocked.db.transact(lambda session: repos.delete(session, ann, "ann/snakes"))
    assert names(stocked, ANONYMOUS, query="snakes") == []
