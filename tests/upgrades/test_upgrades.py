"""Data folders made by every released version open with the present one, whole and unchanged in meaning."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlmodel import select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import RevisionFacts
from adapterhub.hub.errors import RecipeNotFound
from adapterhub.hub.services import blobs, describe, fitness, recipe_views, recipes, refs, repos, search, trees
from adapterhub.hub.services.access import ANONYMOUS, Caller, authenticate
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.wiring import open_hub
from adapterhub.hub.settings import Settings
from tests.upgrades.make import TOKEN

FOLDERS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "adapterhub.db").exists())


@pytest.fixture(params=FOLDERS, ids=[folder.name for folder in FOLDERS])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """A hub of the present version on a copy of an old data folder."""
    data = tmp_path / "data"
    shutil.copytree(request.param, data)
    hub = open_hub(Settings(data=data, secret=SecretStr("kept" * 10)))
    yield hub
    hub.db.close()


@pytest.fixture
def ann(kept: Hub) -> Caller:
    """The user of the old folder, by the token made then."""
    with kept.db.read() as session:
        return authenticate(session, f"Bearer {TOKEN}")


def test_there_is_a_kept_folder() -> None:
    assert FOLDERS


def test_every_file_of_every_repository_reads_and_is_what_its_digest_says(kept: Hub, ann: Caller) -> None:
    with kept.db.read() as session:
        names = [item["id"] for item in search.search(session, ann)["items"]]
        assert set(names) >= {"ann/base", "ann/code", "ann/secret", "ann/both"}
        for name in names:
            repo = repos.find(session, ann, name)
            for entry in trees.files(session, repo, refs.resolve(session, repo)):
                content = b"".join(blobs.open_file(kept, entry))
                assert "sha256:" + hashlib.sha256(content).hexdigest() == entry.digest, f"{name}/{entry.path}"


def test_what_was_known_is_still_known(kept: Hub, ann: Caller) -> None:
    code = describe.repo_view(kept, ann, "ann/code")
    assert (code["kind"], code["base"]["name"], code["patches"][0]["rank_max"]) == ("lora", "ann/base", 2)
    both = describe.repo_view(kept, ann, "ann/both")
    assert recipes.show(kept, ann, both["recipe"]["digest"])["text"] == "ann/base + 0.5*ann/code"
    with kept.db.read() as session:
        assert "ann/secret" not in [item["id"] for item in search.search(session, ANONYMOUS)["items"]]


def test_saved_recipes_still_mean_what_they_meant(kept: Hub, ann: Caller) -> None:
    try:
        before, after = (recipe_views.show(kept, ann, "ann/trimmed", number) for number in (1, 2))
    except RecipeNotFound:
        pytest.skip("made before recipes were saved")
    assert after["text"] == "ties(ann/base; 0.5*ann/code, ann/secret, density=0.5)"
    told = recipes.difference(kept, ann, "recipe/ann/trimmed@1", "recipe/ann/trimmed@2")["changes"]
    assert [one["text"] for one in told] == ["ties.density: 0.2, now 0.5"]
    # made again now, at the commits that it was saved with, it is the same recipe
    pins = {ref: name.partition("@")[2] for ref, name in names_of(after["canonical"]).items()}
    again = recipes.planned(kept, ann, after["text"], pins=pins)[1]
    assert again.recipe_digest == after["digest"] != before["digest"]


def names_of(canonical: Mapping[str, Any]) -> dict[str, str]:
    """The full names of a recipe's inputs, by their repositories."""
    return {one["name"].partition("@")[0]: one["name"] for one in canonical["inputs"]}


def test_models_are_still_counted(kept: Hub) -> None:
    with kept.db.read() as session:
        facts = session.exec(select(RevisionFacts)).all()
    assert any(row.parameters for row in facts)
    assert all(row.parameter_count == sum(row.parameters.values()) for row in facts)


def test_work_goes_on(kept: Hub, ann: Caller) -> None:
    done = commit(kept, ann, "ann/code", "main", [AddRegular("notes.md", b"carried on")], "go on")
    assert describe.repo_view(kept, ann, "ann/code")["commit"] == done.oid


def test_who_made_a_repository_is_known_from_the_audit_log(kept: Hub, ann: Caller) -> None:
    with kept.db.read() as session:
        assert repos.find(session, ann, "ann/code").creator_id == ann.account_id


def test_accounts_follow_the_service_until_their_owners_choose(kept: Hub, ann: Caller) -> None:
    with kept.db.read() as session:
        before = fitness.choice(session, kept, ann, "ann")
    assert (before.chosen, before.effective) == (None, "refuse")
    after = kept.db.transact(lambda session: fitness.choose(session, kept, ann, "ann", "flag"))
    assert (after.chosen, after.effective) == ("flag", "flag")


def test_nothing_is_warned_of_where_nobody_looked(kept: Hub, ann: Caller) -> None:
    assert [one["warnings"] for one in describe.repo_view(kept, ann, "ann/code")["patches"]] == [[]]


def test_what_a_patch_needs_to_work_is_still_told(kept: Hub, ann: Caller) -> None:
    with kept.db.read() as session:
        names = [item["id"] for item in search.search(session, ann)["items"]]
    if "ann/sparse" not in names:
        pytest.skip("made before patches told what they need")
    (patch,) = describe.repo_view(kept, ann, "ann/sparse")["patches"]
    assert (patch["kind"], patch["contract"]) == ("sparse", {"chat_template": "KEPT"})
