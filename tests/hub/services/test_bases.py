"""Finding the base of a patch: by the fingerprint it carries before the name it declares."""

import pytest
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import RevisionFacts
from adapterhub.hub.services import bases, refs, repos
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.merging.patch import TrainingBase
from tests.hub.services.samples import model

FINGERPRINT = "sha256:" + "f" * 64


@pytest.fixture
def commits(hub: Hub, ann: Caller) -> dict[str, str]:
    """Two public bases and a private one, all with the same tensors; their heads by name."""
    heads = {}
    for name in ("first", "second", "hidden"):
        repos.create(hub, ann, f"ann/{name}", private=name == "hidden")
        heads[name] = commit(hub, ann, f"ann/{name}", "main", model(), "push").oid

    def fingerprint(session: Session) -> None:
        for row in session.exec(select(RevisionFacts).where(col(RevisionFacts.kind) == "model")):
            row.fingerprint = FINGERPRINT
            session.add(row)

    hub.db.transact(fingerprint)
    return heads


def locate(hub: Hub, caller: Caller, base: TrainingBase, *declared: str) -> tuple[str, str, str] | None:
    with hub.db.read() as session:
        found = bases.locate(session, caller, base, declared)
    return (found.repo.full_name, found.commit, found.evidence) if found else None


def test_a_fingerprint_finds_the_base_whatever_its_name(hub: Hub, ann: Caller, commits: dict[str, str]) -> None:
    carried = TrainingBase(name="/home/x/model", fingerprint=FINGERPRINT)
    assert locate(hub, ANONYMOUS, carried) == ("ann/first", commits["first"], "fingerprint")


@pytest.mark.parametrize("declared", [True, False])
def test_of_equal_bases_the_named_one_is_taken(hub: Hub, ann: Caller, commits: dict[str, str], declared: bool) -> None:
    base = TrainingBase(name=None if declared else "ann/second", fingerprint=FINGERPRINT)
    found = locate(hub, ANONYMOUS, base, *(["ann/second"] if declared else []))
    assert found == ("ann/second", commits["second"], "fingerprint")


def test_a_private_base_is_found_only_by_its_readers(hub: Hub, ann: Caller, commits: dict[str, str]) -> None:
    named = TrainingBase(name="ann/hidden")
    assert locate(hub, ann, named) == ("ann/hidden", commits["hidden"], "declared")
    assert locate(hub, ANONYMOUS, named) is None
    assert locate(hub, ANONYMOUS, named, "ann/first") == ("ann/first", commits["first"], "declared")


def test_a_declared_revision_is_pinned(hub: Hub, ann: Caller, commits: dict[str, str]) -> None:
    newer = commit(hub, ann, "ann/first", "main", [AddRegular("note.txt", b"x")], "push").oid
    hub.db.transact(
        lambda session: refs.create_tag(session, ann, repos.find(session, ann, "ann/first"), "v1", commits["first"], "")
    )
    assert locate(hub, ann, TrainingBase(name="ann/first")) == ("ann/first", newer, "declared")
    for revision in ("v1", commits["first"][:10]):
        found = locate(hub, ann, TrainingBase(name="ann/first", revision=revision))
        assert found == ("ann/first", commits["first"], "declared")


def test_what_is_no_model_is_no_base(hub: Hub, ann: Caller, commits: dict[str, str]) -> None:
    repos.create(hub, ann, "ann/empty")
    for name in ("ann/empty", "ann/none", "../x", "gpt2", ""):
        assert locate(hub, ann, TrainingBase(name=name)) is None
    assert locate(hub, ann, TrainingBase(fingerprint="sha256:unknown")) is None
