"""Saved recipes: versions that stay as they were, who sees and changes them, and recipes inside of recipes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Job, Membership
from adapterhub.hub.errors import Forbidden, InvalidName, InvalidRequest, NotAuthenticated, RecipeExists, RecipeNotFound
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import accounts, describe, inlining, merges, recipe_views, recipes, repos, saved_recipes
from adapterhub.hub.services.access import ANONYMOUS, FINE_GRAINED, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.resolve import resolve_expression
from adapterhub.hub.worker import handlers_of
from adapterhub.merging.errors import BaseMismatch, ExpressionError, NotRepresentable, RecipeTooLarge, UnknownName
from tests.hub.services.samples import lora, model

MakeUser = Callable[..., Caller]

PLAIN = "ann/base + 0.5*ann/code"


def push(hub: Hub, caller: Caller, repo_id: str, files: list[AddRegular], *, private: bool = False) -> None:
    repos.create(hub, caller, repo_id, private=private)
    commit(hub, caller, repo_id, "main", files, "push")


@pytest.fixture
def ann(hub: Hub, user: MakeUser) -> Caller:
    """A user with a base, its second version, two LoRAs on the base, and the folder where jobs work."""
    ann = user("ann")
    (hub.settings.data / "spool").mkdir(exist_ok=True)
    push(hub, ann, "ann/base", model())
    push(hub, ann, "ann/code", lora("ann/base"))
    push(hub, ann, "ann/more", lora("ann/base", r=3))
    return ann


@pytest.fixture
def eve(user: MakeUser) -> Caller:
    return user("eve")


def finished(hub: Hub, job: Job) -> Job:
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    return hub.jobs.get(job.id)


def change(hub: Hub, caller: Caller, name: str, **changes: object) -> None:
    hub.db.transact(lambda session: saved_recipes.update(session, caller, name, **changes))  # type: ignore[arg-type]


def delete(hub: Hub, caller: Caller, name: str) -> None:
    hub.db.transact(lambda session: saved_recipes.remove(session, caller, name))


def test_each_save_makes_a_version_and_overwrites_none(hub: Hub, ann: Caller) -> None:
    first = recipes.save(hub, ann, "ann/support", PLAIN, message="a start")
    second = recipes.save(hub, ann, "Ann/Support", f"{PLAIN} + ann/more", as_kind="lora", message="more")
    assert (first["version"], second["version"], second["latest"]) == (1, 2, 2)
    assert recipe_views.show(hub, ann, "ann/support", 1)["text"] == PLAIN
    latest = recipe_views.show(hub, ann, "ann/support")
    assert (latest["text"], latest["as"], latest["author"], latest["message"]) == (
        f"{PLAIN} + ann/more",
        "lora",
        "ann",
        "more",
    )
    listed = recipe_views.versions(hub, ann, "ann/support")["items"]
    assert [one["version"] for one in listed] == [2, 1]
    assert listed[1]["digest"] == first["digest"] == recipes.explain(hub, ann, PLAIN)["digest"]
    with pytest.raises(RecipeNotFound, match="the latest is 2"):
        recipe_views.show(hub, ann, "ann/support", 3)


def test_a_version_means_the_commits_of_the_day_it_was_saved(hub: Hub, ann: Caller) -> None:
    saved = recipes.save(hub, ann, "ann/support", PLAIN)
    commit(hub, ann, "ann/code", "main", lora("ann/base", r=4), "retrain")
    again = finished(hub, merges.rerun(hub, ann, "ann/support", push="ann/again"))
    anew = finished(hub, merges.rerun(hub, ann, "ann/support", latest=True, push="ann/anew"))
    assert again.result is not None
    assert anew.result is not None
    assert again.result["recipe_digest"] == saved["digest"]
    assert anew.result["recipe_digest"] == recipes.explain(hub, ann, PLAIN)["digest"] != saved["digest"]
    changed = recipes.difference(hub, ann, "ann/support", PLAIN)["changes"]
    [moved] = [one["text"] for one in changed]
    assert moved.startswith("input ann/code: moved from ")


def test_a_saved_form_is_what_a_run_makes(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/both", "ann/base + ann/code + ann/more", as_kind="lora")
    done = finished(hub, merges.rerun(hub, ann, "ann/both", 1, push="ann/joined"))
    assert done.error is None
    assert describe.repo_view(hub, ann, "ann/joined")["patches"][0]["rank_max"] == 5


def test_what_cannot_be_merged_is_not_saved(hub: Hub, ann: Caller) -> None:
    for text, error in (
        ("ann/base + ann/cod", UnknownName),
        ("ann/base +", ExpressionError),
        ("2*ann/base", BaseMismatch),
    ):
        with pytest.raises(error):
            recipes.save(hub, ann, "ann/support", text)
    with pytest.raises(InvalidRequest, match="a recipe is written as expression"):
        recipes.save(hub, ann, "ann/support", PLAIN, syntax="prose")
    with pytest.raises(InvalidName):
        recipes.save(hub, ann, "support", PLAIN)
    assert recipe_views.listing(hub, ann)["items"] == []


def test_nobody_saves_or_changes_what_is_not_theirs(hub: Hub, ann: Caller, eve: Caller) -> None:
    recipes.save(hub, ann, "ann/support", PLAIN)
    for caller, error in ((eve, Forbidden), (ANONYMOUS, NotAuthenticated)):
        with pytest.raises(error):
            recipes.save(hub, caller, "ann/support", PLAIN)
        with pytest.raises(error):
            change(hub, caller, "ann/support", private=True)
        with pytest.raises(error):
            delete(hub, caller, "ann/support")
    assert recipe_views.show(hub, eve, "ann/support")["version"] == 1


def test_a_private_recipe_is_nobodys_business(hub: Hub, ann: Caller, eve: Caller) -> None:
    recipes.save(hub, ann, "ann/support", PLAIN, private=True)
    for caller in (eve, ANONYMOUS):
        assert recipe_views.listing(hub, caller)["items"] == []
        with pytest.raises(RecipeNotFound):
            recipe_views.show(hub, caller, "ann/support")
        with pytest.raises(RecipeNotFound):
            recipe_views.versions(hub, caller, "ann/support")
        with pytest.raises(UnknownName):
            resolve_expression(hub, caller, "recipe/ann/support")
    change(hub, ann, "ann/support", private=False)
    assert [one["id"] for one in recipe_views.listing(hub, eve)["items"]] == ["ann/support"]


def test_a_recipe_of_something_private_is_made_private_and_hides_what_it_says(
    hub: Hub, ann: Caller, eve: Caller
) -> None:
    push(hub, ann, "ann/secret", lora("ann/base"), private=True)
    assert recipes.save(hub, ann, "ann/support", "ann/base + ann/secret")["private"]
    change(hub, ann, "ann/support", private=False)
    [line] = recipe_views.listing(hub, eve)["items"]
    assert (line["id"], line["text"], line["digest"], line["message"]) == ("ann/support", None, None, None)
    assert "secret" not in json.dumps(recipe_views.versions(hub, eve, "ann/support"))
    with pytest.raises(UnknownName) as refused:
        resolve_expression(hub, eve, "recipe/ann/support")
    assert "secret" not in str(refused.value)


def test_members_of_an_organisation_share_its_recipes(hub: Hub, ann: Caller, eve: Caller, admin: Caller) -> None:
    def join(role: str) -> None:
        def work(session: object) -> None:
            account = accounts.find(session, "team")  # type: ignore[arg-type]
            session.merge(Membership(organisation_id=account.id, user_id=str(eve.account_id), role=role))  # type: ignore[attr-defined]

        hub.db.transact(work)

    hub.db.transact(lambda session: session.add(Account(kind="organisation", name="team", name_key="team")))
    hub.db.transact(
        lambda session: session.add(
            Membership(organisation_id=accounts.find(session, "team").id, user_id=str(ann.account_id), role="write")
        )
    )
    recipes.save(hub, ann, "team/support", PLAIN, private=True)
    join("read")
    assert recipe_views.show(hub, eve, "team/support")["text"] == PLAIN
    with pytest.raises(Forbidden):
        recipes.save(hub, eve, "team/support", PLAIN)
    join("write")
    assert recipes.save(hub, eve, "team/support", PLAIN)["author"] == "eve"


def test_a_recipe_is_renamed_and_its_old_name_is_free_again(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/support", PLAIN)
    recipes.save(hub, ann, "ann/other", PLAIN)
    with pytest.raises(RecipeExists):
        change(hub, ann, "ann/support", new_name="ann/Other")
    with pytest.raises(Forbidden):
        change(hub, ann, "ann/support", new_name="nobody/support")
    change(hub, ann, "ann/support", new_name="ann/help")
    assert recipe_views.show(hub, ann, "ann/help")["version"] == 1
    with pytest.raises(RecipeNotFound):
        recipe_views.show(hub, ann, "ann/support")
    assert recipes.save(hub, ann, "ann/support", PLAIN)["version"] == 1


def test_recipes_are_listed_a_page_at_a_time(hub: Hub, ann: Caller) -> None:
    for name in ("c", "a", "b"):
        recipes.save(hub, ann, f"ann/{name}", PLAIN)
    first = recipe_views.listing(hub, ann, limit=2)
    assert ([one["id"] for one in first["items"]], first["after"]) == (["ann/a", "ann/b"], "ann/b")
    rest = recipe_views.listing(hub, ann, limit=2, after=first["after"])
    assert ([one["id"] for one in rest["items"]], rest["after"]) == (["ann/c"], None)
    assert [one["id"] for one in recipe_views.listing(hub, ann, query="/B")["items"]] == ["ann/b"]
    assert recipe_views.listing(hub, ann, author="eve")["items"] == []
    for _ in range(2):
        recipes.save(hub, ann, "ann/a", PLAIN)
    newest = recipe_views.versions(hub, ann, "ann/a", limit=2)
    assert ([one["version"] for one in newest["items"]], newest["before"]) == ([3, 2], 2)
    assert [one["version"] for one in recipe_views.versions(hub, ann, "ann/a", before=2)["items"]] == [1]


def test_a_saved_recipe_stands_where_a_patch_or_base_would(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/support", PLAIN)
    same = {
        "recipe/ann/support": PLAIN,
        "recipe/ann/support@1 + 2*ann/more": f"{PLAIN} + 2*ann/more",
        "ties(ann/base; recipe/ann/support, ann/more)": "ties(ann/base; ann/base + 0.5*ann/code, ann/more)",
    }
    for text, plain in same.items():
        assert resolve_expression(hub, ann, text).digest == resolve_expression(hub, ann, plain).digest
    with pytest.raises(BaseMismatch):
        resolve_expression(hub, ann, "0.5*recipe/ann/support").digest  # noqa: B018  it is worked out when asked for
    with pytest.raises(ExpressionError, match="delta takes the names"):
        resolve_expression(hub, ann, "ann/base + delta(recipe/ann/support, ann/base)")
    for missing in ("recipe/ann/nothing", "recipe/ann/support@2", "recipe/ann/support/x", "recipe/ann", "recipe/a b/c"):
        with pytest.raises(UnknownName):
            resolve_expression(hub, ann, f'ann/base + "{missing}"')


def test_a_recipe_in_a_recipe_stays_at_its_version_and_commits(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/inner", "ann/base + ann/code")
    outer = recipes.save(hub, ann, "ann/outer", "recipe/ann/inner + ann/more")
    commit(hub, ann, "ann/code", "main", lora("ann/base", r=4), "retrain")
    recipes.save(hub, ann, "ann/inner", "ann/base + 3*ann/code")
    change(hub, ann, "ann/inner", new_name="ann/renamed")
    recipes.save(hub, ann, "ann/inner", "ann/base - ann/code")  # somebody else's recipe by now
    again = finished(hub, merges.rerun(hub, ann, "ann/outer", push="ann/x"))
    assert again.result is not None
    assert again.result["recipe_digest"] == outer["digest"]
    anew = finished(hub, merges.rerun(hub, ann, "ann/outer", latest=True, push="ann/x"))
    assert anew.result is not None
    assert anew.result["recipe_digest"] == recipes.explain(hub, ann, "ann/base - ann/code + ann/more")["digest"]
    delete(hub, ann, "ann/renamed")
    with pytest.raises(UnknownName, match="is deleted"):
        merges.rerun(hub, ann, "ann/outer", push="ann/x")


def test_a_recipe_inside_of_itself_is_refused(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/a", PLAIN)
    recipes.save(hub, ann, "ann/b", "recipe/ann/a + ann/more")
    for text in ("recipe/ann/a + ann/more", "recipe/ann/b", "recipe/ann/a@1"):
        with pytest.raises(InvalidRequest, match="inside of itself"):
            recipes.save(hub, ann, "ann/a", text)


def test_recipes_nest_to_a_depth_and_to_a_number_of_names(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/r0", PLAIN)
    for number in range(inlining.MAX_DEPTH):
        recipes.save(hub, ann, f"ann/r{number + 1}", f"recipe/ann/r{number}")
    with pytest.raises(RecipeTooLarge, match="more than 8 deep"):
        recipes.save(hub, ann, "ann/deepest", f"recipe/ann/r{inlining.MAX_DEPTH}")
    recipes.save(hub, ann, "ann/wide", "ann/base + " + " + ".join(["ann/code"] * 240))
    with pytest.raises(RecipeTooLarge, match="more than 2048 terms"):
        resolve_expression(hub, ann, "ann/base + " + " + ".join(["recipe/ann/wide"] * 10))


def test_difference_takes_names_digests_and_expressions(hub: Hub, ann: Caller, eve: Caller) -> None:
    first = recipes.save(hub, ann, "ann/support", PLAIN)
    recipes.save(hub, ann, "ann/support", "ann/base + 0.7*ann/code")
    changed = recipes.difference(hub, eve, "ann/support@1", "recipe/ann/support")
    assert [one["text"] for one in changed["changes"]] == ["weight of ann/code: 0.5, now 0.7"]
    assert (changed["before"]["name"], changed["after"]["name"]) == ("recipe/ann/support@1", "recipe/ann/support@2")
    assert recipes.difference(hub, eve, first["digest"], PLAIN)["is_same"]
    assert recipes.difference(hub, eve, "ann/code", "ann/base + ann/code")["is_same"]  # no recipe has that name
    with pytest.raises(RecipeNotFound):
        recipes.difference(hub, eve, "sha256:" + "0" * 64, PLAIN)


def test_a_served_name_may_be_a_saved_recipe(hub: Hub, ann: Caller) -> None:
    from adapterhub.hub.services import variants

    recipes.save(hub, ann, "ann/support", PLAIN)
    named = variants.served(hub, ANONYMOUS, "recipe/ann/support")
    assert named.vid == variants.served(hub, ann, PLAIN).vid


def test_the_folder_of_spooled_results_is_empty_again(hub: Hub, ann: Caller, tmp_path: Path) -> None:
    recipes.save(hub, ann, "ann/support", PLAIN)
    finished(hub, merges.rerun(hub, ann, "ann/support", push="ann/x"))
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_fine_grained_token_reaches_the_recipes_of_its_accounts_alone(hub: Hub, ann: Caller) -> None:
    recipes.save(hub, ann, "ann/support", PLAIN, private=True)
    own = str(ann.account_id)

    def token(*permissions: str) -> Caller:
        scopes = frozenset((permission, own) for permission in permissions)
        return Caller(ann.account_id, ann.name, token_id="t", token_role=FINE_GRAINED, scopes=scopes)

    with pytest.raises(RecipeNotFound):
        recipe_views.show(hub, token("discussion.write"), "ann/support")
    assert recipe_views.show(hub, token("repo.content.read"), "ann/support")["version"] == 1
    with pytest.raises(Forbidden, match=r"repo\.write"):
        recipes.save(hub, token("repo.content.read"), "ann/support", PLAIN)
    assert recipes.save(hub, token("repo.write"), "ann/support", PLAIN)["version"] == 2


def test_a_composition_is_saved_and_compared_and_never_merged(hub: Hub, ann: Caller) -> None:
    before = recipes.save(hub, ann, "ann/steered", "ensemble(ann/base, ann/base + ann/code)")
    recipes.save(hub, ann, "ann/steered", "ensemble(ann/base, 2*(ann/base + ann/more))")
    found = recipes.difference(hub, ann, "recipe/ann/steered@1", "recipe/ann/steered@2")
    texts = [one["text"] for one in found["changes"]]
    assert "weight of model, in member 2: 1, now 2" in texts
    named = resolve_expression(hub, ann, "recipe/ann/steered@1")
    assert named.digest == before["digest"]
    for text in ("recipe/ann/steered", "ensemble(ann/base)"):
        with pytest.raises(NotRepresentable, match="no merged result; serve it under model="):
            merges.request(hub, ann, text)
    with pytest.raises(NotRepresentable, match="lora"):
        recipes.save(hub, ann, "ann/steered", "ensemble(ann/base)", as_kind="lora")
    with pytest.raises(ExpressionError, match="stands alone"):
        recipes.save(hub, ann, "ann/more", "recipe/ann/steered + ann/code")
    with pytest.raises(InvalidRequest, match="inside of itself"):
        recipes.save(hub, ann, "ann/steered", "recipe/ann/steered")
