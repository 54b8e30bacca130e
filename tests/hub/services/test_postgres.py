"""The services on PostgreSQL: what could differ from SQLite is tried on both."""

import threading

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Commit
from adapterhub.hub.errors import (
    AccountNotFound,
    EntryNotFound,
    HeadMoved,
    InvalidCommit,
    RepoNotFound,
    RevisionNotFound,
)
from adapterhub.hub.services import (
    accounts,
    collections,
    copies,
    holdings,
    large_files,
    lineage,
    recipe_views,
    recipes,
    refs,
    repos,
    revisions,
    trees,
)
from adapterhub.hub.services import search as search_service
from adapterhub.hub.services.access import ANONYMOUS, Caller, authenticate
from adapterhub.hub.services.commits import AddRegular, DeleteFolder, commit
from adapterhub.hub.services.describe import repo_view
from adapterhub.hub.services.last_changes import last_commits
from adapterhub.hub.services.search import SORTS, Filters, listing, search
from tests.hub.services.samples import card, lora, stock


@pytest.fixture
def hub(postgres_hub: Hub) -> Hub:
    return postgres_hub


@pytest.fixture
def ann(hub: Hub) -> Caller:
    def work(session: Session) -> str:
        accounts.first_admin(session, "ann", "the token of ann, an administrator")
        return "the token of ann, an administrator"

    text = hub.db.transact(work)
    with hub.db.read() as session:
        return authenticate(session, f"Bearer {text}")


def test_the_catalogue_finds_and_pages_the_same(hub: Hub, ann: Caller) -> None:
    stock(hub, ann)
    with hub.db.read() as session:
        for query in ("python", "pyth", "cafe", "ann/code-lora", "writes python"):
            assert [i["id"] for i in search(session, ANONYMOUS, query)["items"]] == ["ann/code-lora"]
        for query in ('"', "* OR NEAR(", "python & secret", "'; --", "a:b", "python <-> x"):
            assert search(session, ANONYMOUS, query)["total"] in (0, 3)
        assert search(session, ANONYMOUS, base="ann/base", tags=["peft"])["total"] == 1
        for sort in SORTS:
            first = listing(session, ann, Filters(), sort=sort, limit=3)
            rest = listing(session, ann, Filters(), sort=sort, limit=3, cursor=first.cursor)
            assert len({row.repo.id for row in first.rows + rest.rows}) == 4
    hub.db.transact(lambda session: repos.move(session, ann, "ann/code-lora", "ann/snakes"))
    with hub.db.read() as session:
        assert search(session, ANONYMOUS, "snakes python")["total"] == 1


def test_a_patch_is_known_the_same(hub: Hub, ann: Caller) -> None:
    stock(hub, ann)
    view = repo_view(hub, ANONYMOUS, "ann/code-lora")
    assert (view["kind"], view["base"]["fits"], view["patches"][0]["rank_max"]) == ("lora", "exact", 2)
    assert repo_view(hub, ANONYMOUS, "ann/base")["lineage"]["children"][0]["name"] == "ann/code-lora"


def test_people_tags_and_collections_are_listed_the_same(hub: Hub, ann: Caller) -> None:
    stock(hub, ann)
    repos.create(hub, ann, "ann/said")
    commit(hub, ann, "ann/said", "main", [card(language=["en", "de"], datasets=["a/b"])], "push")
    repos.create(hub, ann, "ann/said-once")
    commit(hub, ann, "ann/said-once", "main", [card(language="fr")], "push")
    slug = hub.db.transact(lambda session: collections.create(session, ann, "ann", "All")).slug
    hub.db.transact(lambda session: collections.add_item(session, ann, slug, "model", "ann/hidden"))
    hub.db.transact(lambda session: collections.add_item(session, ann, slug, "model", "ann/base"))
    with hub.db.read() as session:
        tags = search_service.tags_by_type(session, ANONYMOUS)
        assert (tags["language"], tags["dataset"]) == (["de", "en", "fr"], ["dataset:a/b"])
        assert {"peft", "transformers"} <= set(tags["library"])
        assert "code" in tags["other"]
        held = holdings.repositories(session, ann, accounts.find(session, "ann"))
        assert [one.repo.full_name for one in held][:2] == ["ann/base", "ann/code-lora"]
        assert all(one.size_bytes > 0 for one in held)
        [shown] = collections.listing(session, ANONYMOUS, items=["models/ann/base"], limit=9)
        assert [repo.full_name for _, repo in shown.items] == ["ann/base"]


def test_filters_and_copies_work_the_same(hub: Hub, ann: Caller) -> None:
    stock(hub, ann)
    wanted = [
        (Filters(tags=["base_model:adapter:ann/base"]), ["ann/code-lora"]),
        (Filters(parameters=(100, None)), ["ann/base"]),
        (Filters(parameters=(None, 100)), ["ann/code-lora"]),
        (Filters(is_gated=True), []),
    ]
    with hub.db.read() as session:
        for filters, found in wanted:
            assert [row.repo.full_name for row in listing(session, ANONYMOUS, filters).rows] == found
        licences = search_service.tags_by_type(session, ANONYMOUS)["license"]
        assert licences == ["license:apache-2.0", "license:mit"]
    made = copies.duplicate(hub, ann, "ann/base", "ann/second")
    copies.duplicate(hub, ann, "ann/code-lora", "ann/third")
    with hub.db.read() as session:
        base = repos.find(session, ann, "ann/base")
        head = refs.branch_head(session, base, "main")
        assert refs.branch_head(session, made, "main") == head
        assert trees.stored_bytes(session, made) == trees.stored_bytes(session, base)
        changed = last_commits(session, made, head, ["model.safetensors", ".gitattributes"])
        assert {path: row.message for path, row in changed.items()} == {
            "model.safetensors": "push",
            ".gitattributes": "initial commit",
        }
        assert lineage.count_children(session, ann, base) == 3
        [large] = large_files.listing(session, made, limit=10)
    assert large.path == "model.safetensors"


def test_a_copy_made_while_others_commit_is_whole(hub: Hub, ann: Caller) -> None:
    repos.create(hub, ann, "ann/busy")
    is_over = threading.Event()

    def write() -> None:
        for n in range(400):
            if is_over.is_set():
                return
            commit(hub, ann, "ann/busy", "main", [AddRegular(f"d{n % 3}/f", b"%d" % n)], "push")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [copies.duplicate(hub, ann, "ann/busy", f"ann/copy{n}") for n in range(6)]
    finally:
        is_over.set()
        writer.join()
    for repo in made:
        with hub.db.read() as session:
            for row in session.exec(select(Commit).where(Commit.repository_id == repo.id)):
                names = [e.path for e in trees.list_tree(session, repo, row.oid, recursive=True) if not e.is_folder]
                objects = trees.objects_at(session, repo, [row.tree_oid], names)[0]
                assert ".gitattributes" in names
                assert {e.path for e in trees.blobs_at(session, repo, row.oid, names)} == set(names) <= set(objects)
            assert repo_view(hub, ann, repo.full_name)["commit"] == refs.branch_head(session, repo, "main")


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_no_database_takes_names_nothing(hub: Hub, ann: Caller, text: str) -> None:
    repo = repos.create(hub, ann, "ann/patch")
    with hub.db.read() as session:
        with pytest.raises(RepoNotFound):
            repos.find(session, ann, f"ann/{text}")
        with pytest.raises(RevisionNotFound):
            refs.resolve(session, repo, text)
        with pytest.raises(EntryNotFound):
            trees.entry(session, repo, refs.branch_head(session, repo, "main"), text)
        assert search(session, ann, author=text)["total"] == 0
        assert search(session, ann, text)["total"] in (0, 1)
        with pytest.raises(AccountNotFound):
            accounts.find(session, text)
    operations = [AddRegular("a", b"1")]
    with pytest.raises(RevisionNotFound):
        commit(hub, ann, "ann/patch", text, operations, "push")
    with pytest.raises(InvalidCommit, match="message"):
        commit(hub, ann, "ann/patch", "main", operations, text)
    commit(hub, ann, "ann/patch", "main", lora(text), "push")
    view = repo_view(hub, ann, "ann/patch")
    assert view["base"] is None
    assert view["kind"] == "unknown" or view["patches"][0]["problems"]


def test_four_writers_of_one_branch_lose_nothing(hub: Hub, ann: Caller) -> None:
    repo = repos.create(hub, ann, "ann/patch")
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for n in range(4):
                commit(hub, ann, "ann/patch", "main", [AddRegular(f"w{writer}/f{n}", b"%d" % n)], "push")
        except BaseException as error:  # noqa: BLE001  shown by the assertion below
            failures.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert failures == []
    with hub.db.read() as session:
        head = refs.branch_head(session, repo, "main")
        assert len(trees.files(session, repo, head)) == 1 + 16
        assert len(revisions.history(session, repo, head)) == 1 + 16
    with pytest.raises(HeadMoved):
        commit(hub, ann, "ann/patch", "main", [DeleteFolder("w0")], "push", parent="0" * 40)


def test_versions_saved_at_once_are_all_kept(hub: Hub, ann: Caller) -> None:
    stock(hub, ann)
    failed: list[Exception] = []

    def save(weight: int) -> None:
        try:
            recipes.save(hub, ann, "ann/support", f"ann/base + {weight}*ann/code-lora")
        except Exception as error:  # noqa: BLE001  a thread's error must not be lost
            failed.append(error)

    threads = [threading.Thread(target=save, args=(weight,)) for weight in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    first = recipe_views.versions(hub, ann, "ann/support", limit=3)
    assert ([one["version"] for one in first["items"]], first["before"]) == ([4, 3, 2], 2)
    assert len({one["text"] for one in recipe_views.versions(hub, ann, "ann/support")["items"]}) == 4
    assert [one["id"] for one in recipe_views.listing(hub, ANONYMOUS, query="SUPP", author="Ann")["items"]] == [
        "ann/support"
    ]
