"""How often another hub is asked, for whom, and for how much at once."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import InvalidRequest, OutboundFailed, Overloaded, RepoNotFound, RevisionNotFound
from adapterhub.hub.services import accounts, mirror, mirror_care, mirror_missing, mirror_tokens, repos
from adapterhub.hub.services.access import ANONYMOUS, Caller
from tests.hub.conftest import EVERYWHERE
from tests.hub.services.otherhub import OtherHub, serving

ASKER = Caller("an id", "somebody")


@pytest.fixture(params=EVERYWHERE)
def hub(request: pytest.FixtureRequest) -> Hub:
    """A hub on every database and store."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Hub)
    return found


@pytest.fixture
def other() -> Iterator[OtherHub]:
    """A hub elsewhere with one repository of many small files."""
    files = {f"{number}.txt": str(number).encode() for number in range(20)}
    with serving(OtherHub(files=files)) as other:
        yield other


@pytest.fixture
def near(hub: Hub, other: OtherHub) -> Hub:
    told = {"mirror_url": other.url, "outbound_allow": "127.0.0.1", "mirror_ttl_s": 0}
    return replace(hub, settings=hub.settings.model_copy(update=told))


def missing(hub: Hub, name: str = "far/nothing", caller: Caller = ASKER) -> None:
    with pytest.raises(RepoNotFound):
        mirror.ensure(hub, caller, name, None)


def test_what_is_missing_there_is_asked_for_once_in_a_while(
    near: Hub, other: OtherHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(near)
    missing(near, "FAR/Nothing")
    assert len(other.asked) == 1
    later = time.monotonic() + near.settings.mirror_missing_ttl_s + 1
    monkeypatch.setattr(mirror_missing, "clock", lambda: later)
    missing(near)
    assert len(other.asked) == 2


def test_an_administrator_has_a_name_asked_for_again(near: Hub, other: OtherHub, admin: Caller) -> None:
    missing(near)
    near.db.transact(lambda session: mirror_care.refresh(session, near, admin, "far/nothing"))
    missing(near)
    assert len(other.asked) == 2
    repos.create(near, admin, f"{admin.name}/own")
    with pytest.raises(InvalidRequest, match="no mirror"):
        near.db.transact(lambda session: mirror_care.refresh(session, near, admin, f"{admin.name}/own"))


def test_a_missing_revision_says_nothing_about_the_others(near: Hub, other: OtherHub) -> None:
    other.unknown = {"gone"}
    for _ in range(2):
        with pytest.raises(RevisionNotFound):
            mirror.ensure(near, ASKER, "far/model", "gone")
    assert len(other.asked) == 1
    assert mirror.ensure(near, ASKER, "far/model", "main") is None


def test_a_hub_that_does_not_answer_is_given_time(near: Hub, other: OtherHub) -> None:
    other.refused = (500, "")
    for _ in range(3):
        with pytest.raises(OutboundFailed):
            mirror.ensure(near, ASKER, "far/model", None)
    assert len(other.asked) == 1


def test_a_new_token_is_tried_at_once(near: Hub, other: OtherHub, ann: Caller) -> None:
    near.db.transact(lambda session: accounts.create_organisation(session, ann, "ours"))

    def keep(token: str) -> None:
        def work(session: Session) -> None:
            mirror_tokens.put(session, near, ann, "ours", token)

        near.db.transact(work)

    other.wants = "right"
    keep("wrong")
    missing(near, "far/model", ann)
    missing(near, "far/model", ann)
    assert len(other.asked) == 2, "once for everybody, once for the organisation"
    keep("right")
    assert mirror.ensure(near, ann, "far/model", None) is None


def test_few_refusals_are_kept(near: Hub, other: OtherHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_missing, "KEPT", 2)
    for name in ("a", "b", "c", "a"):
        missing(near, f"far/{name}")
    assert len(other.asked) == 4


def test_who_has_no_token_has_nothing_fetched_but_sees_what_is_here(near: Hub, other: OtherHub) -> None:
    assert mirror.ensure(near, ANONYMOUS, "far/model", None) is None
    assert other.asked == []
    mirror.ensure(near, ASKER, "far/model", None)
    asked = len(other.asked)
    assert mirror.ensure(near, ANONYMOUS, "far/model", None) is None
    assert len(other.asked) == asked
    with near.db.read() as session:
        assert repos.find(session, ANONYMOUS, "far/model").full_name == "far/model"


def test_a_setting_lets_everybody_have_things_fetched(near: Hub, other: OtherHub) -> None:
    wide = replace(near, settings=near.settings.model_copy(update={"mirror_anonymous": True}))
    mirror.ensure(wide, ANONYMOUS, "far/model", None)
    assert other.asked != []


def test_small_files_are_fetched_a_few_at_once(near: Hub, other: OtherHub) -> None:
    other.hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(mirror.ensure, near, ASKER, "far/model", None)
        while len(other.asked) < 1 + mirror.REGULAR_AT_ONCE:
            assert not asking.done()
            time.sleep(0.01)
        assert len(other.asked) == 1 + mirror.REGULAR_AT_ONCE
        other.hold.set()
        assert asking.result(30) is None
    assert len(other.asked) == 1 + len(other.files)


def test_one_bad_small_file_ends_the_others(near: Hub, other: OtherHub) -> None:
    other.sent["0.txt"] = b"?"
    with pytest.raises(OutboundFailed, match=r"0\.txt"):
        mirror.ensure(near, ASKER, "far/model", None)
    assert len(other.asked) < 1 + len(other.files)


def test_looks_wait_for_each_other_and_not_for_ever(near: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "WAIT_S", 0.01)
    monkeypatch.setattr(mirror, "_looks", threading.BoundedSemaphore(1))
    with mirror._a_look(near, "far/other"), pytest.raises(Overloaded, match="try again"):
        mirror.ensure(near, ASKER, "far/model", None)
