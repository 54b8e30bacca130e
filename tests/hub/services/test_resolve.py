"""Names in expressions: what they mean, for whom, and what is said when they mean nothing."""

from collections.abc import Callable

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import InvalidRequest, RevisionNotFound
from adapterhub.hub.services import repos
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.resolve import mapped, resolve_expression
from adapterhub.merging.errors import ExpressionError, UnknownName
from adapterhub.merging.folders import MappedFolder
from tests.hub.services.samples import lora, model


@pytest.fixture
def ann(hub: Hub, user: Callable[..., Caller]) -> Caller:
    """A user with a base, a LoRA, and a repository with two LoRAs in folders."""
    ann = user("ann")
    push(hub, ann, "ann/base", model())
    push(hub, ann, "ann/code", lora("ann/base"))
    push(hub, ann, "ann/pair", [*lora("ann/base", folder="left/"), *lora("ann/base", folder="right/")])
    return ann


def push(hub: Hub, caller: Caller, repo_id: str, files: list[AddRegular]) -> str:
    repos.create(hub, caller, repo_id)
    return commit(hub, caller, repo_id, "main", files, "push").oid


def test_names_become_commits_and_kinds(hub: Hub, ann: Caller) -> None:
    found = resolve_expression(hub, ANONYMOUS, "ann/base + 0.5*ann/code")
    assert [(one.name.partition("@")[0], one.kind) for one in found.inputs.values()] == [
        ("ann/base", "model"),
        ("ann/code", "lora"),
    ]
    assert all(len(commit) == 40 for commit in found.pins.values())


def test_a_pinned_recipe_means_the_same_after_a_push(hub: Hub, ann: Caller) -> None:
    before = resolve_expression(hub, ann, "ann/base + ann/code")
    commit(hub, ann, "ann/code", "main", [AddRegular("note", b"changed")], "push")
    assert resolve_expression(hub, ann, "ann/base + ann/code").pins != before.pins
    assert resolve_expression(hub, ann, "ann/base + ann/code", before.pins).digest == before.digest


def test_two_texts_of_one_meaning_have_one_digest(hub: Hub, ann: Caller) -> None:
    first = resolve_expression(hub, ann, "ann/base + ann/code + 2*ann/pair/left")
    assert resolve_expression(hub, ann, "ann/base + 2*ann/pair/left + ann/code@main").digest == first.digest


def test_patches_alone_stand_on_the_base_they_were_trained_on(hub: Hub, ann: Caller) -> None:
    alone = resolve_expression(hub, ann, "ann/code")
    assert alone.digest == resolve_expression(hub, ann, "ann/base + ann/code").digest


def test_several_patches_of_a_repository_are_told_apart_by_folder(hub: Hub, ann: Caller) -> None:
    found = resolve_expression(hub, ann, "ann/base + ann/pair/right")
    assert [one.path for one in found.inputs.values()] == ["", "right"]
    with pytest.raises(InvalidRequest, match="ann/pair/left, ann/pair/right"):
        resolve_expression(hub, ann, "ann/base + ann/pair")
    with pytest.raises(InvalidRequest, match="no patch lies there"):
        resolve_expression(hub, ann, "ann/base + ann/pair/middle")


def test_an_unknown_name_is_refused_with_a_near_one(hub: Hub, ann: Caller) -> None:
    with pytest.raises(UnknownName, match=r"ann/coda: .*did you mean ann/code\?"):
        resolve_expression(hub, ann, "ann/base + ann/coda")
    with pytest.raises(RevisionNotFound, match="v9"):
        resolve_expression(hub, ann, "ann/base + ann/code@v9")
    with pytest.raises(ExpressionError, match="character"):
        resolve_expression(hub, ann, "ann/base +")


def test_a_private_name_is_unknown_to_others_and_never_proposed(hub: Hub, ann: Caller) -> None:
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/code", private=True))
    for text in ("ann/base + ann/code", "ann/base + ann/coda"):
        with pytest.raises(UnknownName) as refused:
            resolve_expression(hub, ANONYMOUS, text)
        assert "did you mean ann/code" not in str(refused.value)


def test_what_holds_no_patch_is_refused(hub: Hub, ann: Caller) -> None:
    push(hub, ann, "ann/notes", [AddRegular("notes.txt", b"hello")])
    with pytest.raises(InvalidRequest, match="ann/notes: holds no model and no patch"):
        resolve_expression(hub, ann, "ann/base + ann/notes")


def test_inputs_are_handed_to_other_processes_as_paths(hub: Hub, ann: Caller) -> None:
    [one] = resolve_expression(hub, ann, "ann/base").inputs.values()
    sent = mapped(one).folder
    assert isinstance(sent, MappedFolder)
    back = MappedFolder.from_json(sent.to_json())
    assert {name: back.read(name) for name in back.names()} == {
        name: one.folder.read(name) for name in one.folder.names()
    }


def test_each_member_of_a_composition_stands_on_a_base_of_its_own(hub: Hub, ann: Caller) -> None:
    push(hub, ann, "ann/large", model(seed=9))
    short = resolve_expression(hub, ann, "proxy(ann/large; 0.5*ann/code, anti=ann/base)")
    long = resolve_expression(hub, ann, "proxy(ann/large; 0.5*(ann/base + ann/code), anti=ann/base@main)")
    assert short.digest == long.digest
    assert short.digest != resolve_expression(hub, ann, "proxy(ann/large; ann/code, anti=ann/base)").digest
    assert resolve_expression(hub, ann, "ensemble(ann/code)").recipe.references()[0].name == "ann/base"
