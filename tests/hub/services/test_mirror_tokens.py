"""What another hub, a real one, shows to an organisation alone, and who sees it here."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import AuditEvent, Job, Mirror, MirrorAccess, MirrorToken
from adapterhub.hub.errors import GatedRepo, HubError, InvalidRequest, NotFound, Refused, RepoNotFound
from adapterhub.hub.services import accounts, describe, merges, mirror, mirror_care, mirror_tokens, repos, search
from adapterhub.hub.services.access import ANONYMOUS, FINE_GRAINED, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from tests.hub.conftest import EVERYWHERE
from tests.hub.services.farhub import FarHub, far_hub
from tests.hub.services.otherhub import OtherHub, serving
from tests.hub.services.samples import lora, model
from tests.hub.services.test_mirror_inputs import run

pytestmark = pytest.mark.slow

MakeUser = Callable[..., Caller]
CANARY = "hf_canary0123456789"


@pytest.fixture(params=EVERYWHERE)
def hub(request: pytest.FixtureRequest) -> Hub:
    """A hub on every database and store."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Hub)
    return found


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHub]:
    """Another hub, with a private base."""
    with far_hub(tmp_path_factory.mktemp("far") / "data") as far:
        far.push("secret", model(), private=True)
        yield far


@pytest.fixture
def near(hub: Hub, far: FarHub) -> Hub:
    (hub.settings.data / "spool").mkdir(exist_ok=True)
    return replace(hub, settings=hub.settings.model_copy(update=far.told))


@dataclass(frozen=True)
class People:
    """ann and tom administer organisations of their own, ben belongs to ann's, eve to none."""

    ann: Caller
    ben: Caller
    tom: Caller
    eve: Caller


@pytest.fixture
def people(near: Hub, user: MakeUser) -> People:
    found = People(*(user(name) for name in ("ann", "ben", "tom", "eve")))

    def work(session: Session) -> None:
        accounts.create_organisation(session, found.ann, "ours")
        accounts.set_member(session, found.ann, "ours", "ben", "read")
        accounts.create_organisation(session, found.tom, "theirs")

    near.db.transact(work)
    return found


def keep(hub: Hub, caller: Caller, organisation: str, token: str) -> None:
    hub.db.transact(lambda session: mirror_tokens.put(session, hub, caller, organisation, token))


def sees(hub: Hub, caller: Caller, name: str = "far/secret", *, asks: bool = True) -> bool:
    """Whether a read of the repository succeeds; asks: by a route that may ask the other hub."""
    try:
        if asks:
            mirror.ensure(hub, caller, name, None)
        with hub.db.read() as session:
            repos.find(session, caller, name)
    except NotFound:
        return False
    return True


def listed(hub: Hub, caller: Caller) -> list[str]:
    with hub.db.read() as session:
        return [line["id"] for line in search.search(session, caller)["items"]]


def refusal(hub: Hub, caller: Caller, name: str) -> tuple[type[HubError], str]:
    with pytest.raises(HubError) as refused:
        mirror.ensure(hub, caller, name, None)
    return type(refused.value), str(refused.value)


def test_a_private_repository_is_shown_to_members_of_the_organisation_alone(
    near: Hub, far: FarHub, people: People, admin: Caller
) -> None:
    assert not sees(near, people.ann)
    keep(near, people.ann, "ours", far.token("first"))
    assert sees(near, people.ben), "a member in whatever role"
    assert sees(near, people.ann)
    assert sees(near, admin)
    for stranger in (people.tom, people.eve):
        kind, text = refusal(near, stranger, "far/secret")
        assert (kind, text) == (refusal(near, stranger, "far/nothing")[0], text.replace("nothing", "secret"))
        assert text == refusal(near, stranger, "far/nothing")[1].replace("nothing", "secret")
        assert not sees(near, stranger, asks=False)
        assert listed(near, stranger) == []
        assert not sees(near, ANONYMOUS)
    assert listed(near, people.ben) == ["far/secret"]
    with near.db.read() as session:
        organisation = accounts.find(session, "ours")
        assert session.exec(select(Mirror)).one().organisation_id == organisation.id
        assert accounts.find_organisation(session, "ours").id == organisation.id
        with pytest.raises(NotFound, match="no such user"):
            accounts.find(session, "far")


def test_a_fine_grained_token_sees_it_where_it_reaches_the_organisation(near: Hub, far: FarHub, people: People) -> None:
    keep(near, people.ann, "ours", far.token("fine"))
    assert sees(near, people.ann)
    with near.db.read() as session:
        ours = accounts.find(session, "ours").id
    narrow = replace(people.ann, token_role=FINE_GRAINED)
    wide = replace(narrow, scopes=frozenset({("repo.content.read", ours)}))
    assert (sees(near, narrow, asks=False), listed(near, narrow)) == (False, [])
    assert (sees(near, wide, asks=False), listed(near, wide)) == (True, ["far/secret"])
    assert not sees(near, narrow)


def test_a_second_organisation_sees_it_by_its_own_token_only(
    near: Hub, far: FarHub, people: People, admin: Caller
) -> None:
    keep(near, people.ann, "ours", far.token("one"))
    assert sees(near, people.ann)
    keep(near, people.tom, "theirs", "ah_of-no-use-there")
    assert not sees(near, people.tom)
    keep(near, people.tom, "theirs", far.token("two"))
    assert sees(near, people.tom)
    with near.db.read() as session:
        assert [one.organisations for one in mirror_care.listing(session, admin)] == [("ours", "theirs")]
    far.revoke("one")
    assert not sees(near, people.ann), "refused there, withdrawn here"
    assert not sees(near, people.ann, asks=False)
    assert sees(near, people.tom)


def test_silence_withdraws_nothing(near: Hub, far: FarHub, people: People) -> None:
    keep(near, people.ann, "ours", far.token("silent"))
    assert sees(near, people.ben)
    with near.db.write() as session:
        for row in [*session.exec(select(Mirror)), *session.exec(select(MirrorToken))]:
            row.source_url = "http://127.0.0.1:9"
    warning = mirror.ensure(near, people.ben, "far/secret", None)
    assert warning is not None
    assert "did not answer" in warning
    assert sees(near, people.ben)


def test_removing_the_token_closes_what_it_opened(near: Hub, far: FarHub, people: People) -> None:
    keep(near, people.ann, "ours", far.token("removed"))
    assert sees(near, people.ben)
    near.db.transact(lambda session: mirror_tokens.remove(session, near, people.ann, "ours"))
    assert not sees(near, people.ben)
    assert not sees(near, people.ann)
    keep(near, people.ann, "ours", far.token("again"))
    assert sees(near, people.ben)


def test_what_becomes_public_there_is_so_here(near: Hub, far: FarHub, people: People) -> None:
    far.push("opened", model(seed=3), private=True)
    keep(near, people.ann, "ours", far.token("opened"))
    assert sees(near, people.ann, "far/opened")
    far.settings("opened", private=False)
    assert sees(near, people.eve, "far/opened")
    assert sees(near, ANONYMOUS, "far/opened")
    with near.db.read() as session:
        assert session.exec(select(MirrorAccess)).all() == []


def test_a_gated_repository_needs_the_token_for_its_files(near: Hub, far: FarHub, people: People) -> None:
    far.push("gated", model(seed=4))
    far.settings("gated", gated="manual")
    with pytest.raises(GatedRepo):
        mirror.ensure(near, people.eve, "far/gated", None)
    keep(near, people.ann, "ours", far.token("gated"))
    assert sees(near, people.ann, "far/gated")
    with pytest.raises(GatedRepo):
        mirror.ensure(near, people.eve, "far/gated", None)
    assert not sees(near, people.eve, "far/gated", asks=False)


def test_a_merge_on_a_private_base_reads_it_by_the_token_and_stays_private(
    near: Hub, far: FarHub, people: People
) -> None:
    keep(near, people.ann, "ours", far.token("merge"))
    assert sees(near, people.ann)
    repos.create(near, people.ann, "ann/code")
    commit(near, people.ann, "ann/code", "main", lora("far/secret"), "push")
    job = run(near, merges.request(near, people.ann, "far/secret + ann/code", push="ann/both"))
    assert job.error is None
    with near.db.read() as session:
        assert repos.find(session, people.ann, "ann/both").is_private
    assert describe.repo_view(near, people.ann, "ann/both")["kind"] == "model"


def test_only_administrators_of_the_organisation_set_its_token(near: Hub, people: People, admin: Caller) -> None:
    for caller in (people.ben, people.tom, ANONYMOUS, replace(people.ann, token_role="read")):
        with pytest.raises(Refused):
            keep(near, caller, "ours", CANARY)
    keep(near, admin, "ours", CANARY)
    with near.db.read() as session:
        assert mirror_tokens.listing(session, people.ben) == []
        assert [one.organisation for one in mirror_tokens.listing(session, people.ann)] == ["ours"]


@pytest.mark.parametrize("token", ["", "two words", "x" * 501, "né", "a\nb"])
def test_what_is_no_token_is_refused_and_not_repeated(near: Hub, people: People, token: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        keep(near, people.ann, "ours", token)
    assert not token or token not in str(refused.value)


def test_no_token_is_taken_where_no_hub_is_mirrored(hub: Hub, people: People) -> None:
    with pytest.raises(InvalidRequest, match="ADAPTERHUB_MIRROR_URL"):
        keep(hub, people.ann, "ours", CANARY)


@pytest.fixture
def other(near: Hub) -> Iterator[OtherHub]:
    """A hub that answers only who sends the canary, and sends the bytes of its files from another origin."""
    files = {file.path: file.content for file in model()}
    with (
        serving(OtherHub(files=files)) as elsewhere,
        serving(OtherHub(files=files, large={"model.safetensors"}, wants=CANARY)) as other,
    ):
        other.redirects = {name: f"{elsewhere.url}/{name}" for name in files}
        other.elsewhere = elsewhere
        yield other


def test_the_token_goes_to_the_hub_it_is_for_and_never_along(
    near: Hub, other: OtherHub, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    near = replace(near, settings=near.settings.model_copy(update={"mirror_url": other.url}))
    caplog.set_level(logging.DEBUG)
    keep(near, people.ann, "ours", CANARY)
    assert sees(near, people.ann, "far/model")
    repos.create(near, people.ann, "ann/code")
    commit(near, people.ann, "ann/code", "main", lora("far/model"), "push")
    job = run(near, merges.request(near, people.ann, "far/model + ann/code", push="ann/both"))
    assert job.error is None
    assert other.elsewhere is not None
    assert any("Range" in sent for sent in other.elsewhere.headers)
    assert all("Authorization" not in sent for sent in other.elsewhere.headers)
    assert sum("Authorization" in sent for sent in other.headers) > 1
    asked = other.headers[0]
    assert "Authorization" not in asked, "first without"
    moved = replace(near, settings=near.settings.model_copy(update={"mirror_url": other.elsewhere.url}))
    before = len(other.elsewhere.headers)
    assert not sees(moved, people.ann, "far/unseen")
    assert all("Authorization" not in sent for sent in other.elsewhere.headers[before:])
    with near.db.read() as session:
        rows = [*session.exec(select(AuditEvent)), *session.exec(select(Job)), *session.exec(select(MirrorToken))]
        kept = json.dumps([row.model_dump(mode="json") for row in rows])
    assert CANARY not in kept
    assert CANARY not in caplog.text
    other.wants = "another"
    assert CANARY not in refusal(near, people.ann, "far/model")[1]


def test_a_name_that_was_given_away_there_opens_nothing_here(near: Hub, other: OtherHub, people: People) -> None:
    near = replace(near, settings=near.settings.model_copy(update={"mirror_url": other.url}))
    keep(near, people.ann, "ours", CANARY)
    assert sees(near, people.ann, "far/model")
    other.unknown, other.commit = {other.commit}, "d" * 40
    other.wants = ""
    assert not sees(near, people.eve, "far/model"), "another's, public"
    other.wants = "theirs"
    keep(near, people.tom, "theirs", "theirs")
    assert not sees(near, people.tom, "far/model"), "another's, shown to another organisation"
    other.unknown = set()


def test_a_moved_repository_is_known_by_a_commit_that_is_here(near: Hub, far: FarHub, people: People) -> None:
    far.push("moving", model(seed=5), private=True)
    keep(near, people.ann, "ours", far.token("moving ours"))
    assert sees(near, people.ann, "far/moving")
    far.push("moving", [AddRegular("more.txt", str(id(near)).encode())], private=True)
    keep(near, people.tom, "theirs", far.token("moving theirs"))
    assert sees(near, people.tom, "far/moving")


def test_a_token_that_was_replaced_meanwhile_grants_nothing(near: Hub, far: FarHub, people: People) -> None:
    keep(near, people.ann, "ours", far.token("before"))
    with near.db.read() as session:
        (upstream,) = mirror_tokens.of_caller(session, near, people.ann, far.url, "far/secret")
        assert mirror_tokens.is_kept(session, near, upstream)
    keep(near, people.ann, "ours", far.token("after"))
    with near.db.read() as session:
        assert not mirror_tokens.is_kept(session, near, upstream)


def test_a_token_that_is_not_accepted_there_is_named_to_members(near: Hub, far: FarHub, people: People) -> None:
    keep(near, people.ann, "ours", "ah_of-no-use-there")
    with pytest.raises(RepoNotFound, match="does not accept your organisation's token"):
        mirror.ensure(near, people.ann, "far/secret", None)
    with pytest.raises(RepoNotFound, match="neither here"):
        mirror.ensure(near, people.eve, "far/secret", None)
