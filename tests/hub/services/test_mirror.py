import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, BlobOwner, Mirror, MirrorBlob, Repository, RevisionFacts
from adapterhub.hub.errors import (
    Forbidden,
    GatedRepo,
    NotAuthenticated,
    OutboundFailed,
    RepoNotFound,
    TooLarge,
    WrongUpstream,
)
from adapterhub.hub.services import accounts, blobs, copies, mirror, mirror_care, mirror_files, refs, repos, trees
from adapterhub.hub.services.access import ANONYMOUS, Caller, require_discussion, require_upload, require_write
from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import digest_of
from adapterhub.storage.errors import StoreUnavailable
from tests.hub.conftest import EVERYWHERE
from tests.hub.services.otherhub import COMMIT, OtherHub, serving

NAME = "far/model"
WEIGHTS = os.urandom(300_000)
ASKER = Caller("an id", "somebody")


@pytest.fixture(params=EVERYWHERE)
def hub(request: pytest.FixtureRequest) -> Hub:
    """A hub on every database and store."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Hub)
    return found


@pytest.fixture
def other() -> Iterator[OtherHub]:
    """A hub elsewhere with one repository: a card, a folder, and one large file."""
    files = {"README.md": b"---\nlicense: mit\n---\nA model from afar.\n", "a/b.txt": b"b", "weights.bin": WEIGHTS}
    with serving(OtherHub(files=files | {"c.txt": b"b"}, large={"weights.bin"})) as other:
        yield other


@pytest.fixture
def near(hub: Hub, other: OtherHub) -> Hub:
    """A hub that mirrors it, and looks again at every read."""
    told = {"mirror_url": other.url + "/", "outbound_allow": "127.0.0.1", "mirror_ttl_s": 0, "mirror_missing_ttl_s": 0}
    return replace(hub, settings=hub.settings.model_copy(update=told))


def found(hub: Hub, revision: str = "main") -> tuple[Repository, str, dict[str, Entry]]:
    """The mirrored repository, its commit and files."""
    with hub.db.read() as session:
        repo = repos.find(session, ANONYMOUS, NAME)
        commit = refs.resolve(session, repo, revision)
        return repo, commit, {e.path: e for e in trees.files(session, repo, commit)}


def fetch(hub: Hub, path: str = "weights.bin") -> bytes:
    repo, commit, files = found(hub)
    mirror_files.fetch(hub, repo, commit, files[path])
    return b"".join(hub.store.read(files[path].digest))


def is_here(hub: Hub, digest: str) -> bool:
    with hub.db.read() as session:
        return session.exec(select(BlobOwner).where(BlobOwner.digest == digest)).first() is not None


def test_a_revision_is_recorded_under_the_ids_it_has_there(near: Hub, other: OtherHub) -> None:
    assert mirror.ensure(near, ASKER, NAME, None) is None
    repo, commit, files = found(near)
    assert commit == COMMIT
    assert sorted(files) == ["README.md", "a/b.txt", "c.txt", "weights.bin"]
    assert b"".join(near.store.read(files["README.md"].digest)) == other.files["README.md"]
    assert not is_here(near, digest_of(WEIGHTS))
    assert near.store.stat(digest_of(WEIGHTS)) is None
    with near.db.read() as session:
        facts = session.get_one(RevisionFacts, (repo.id, commit))
        owner = session.get_one(Account, repo.owner_id)
    assert (facts.licence, owner.kind, owner.name) == ("mit", "mirror", "far")


def test_nothing_is_fetched_by_default(hub: Hub, other: OtherHub) -> None:
    assert mirror.ensure(hub, ASKER, NAME, None) is None
    assert other.asked == []


def test_bytes_come_once_and_are_kept(near: Hub, other: OtherHub) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    assert fetch(near) == WEIGHTS
    assert fetch(near) == WEIGHTS
    assert other.downloads("weights.bin") == 1


def test_askers_at_once_share_one_download(near: Hub, other: OtherHub) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    repo, commit, files = found(near)
    other.hold = threading.Event()
    begun = threading.Barrier(5)

    def ask() -> None:
        begun.wait(30)
        mirror_files.fetch(near, repo, commit, files["weights.bin"])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        begun.wait(30)
        other.hold.set()
        for one in asking:
            one.result(30)
    assert other.downloads("weights.bin") == 1


def test_a_broken_download_goes_on_where_it_stopped(near: Hub, other: OtherHub) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    other.broken["weights.bin"] = 100_000
    assert fetch(near) == WEIGHTS
    parts = [part for _, path, part in other.asked if path.endswith("weights.bin")]
    assert parts == ["bytes=0-0", "bytes=0-299999", "bytes=100000-299999"]


@pytest.mark.parametrize("sent", [b"x" * len(WEIGHTS), WEIGHTS[:-1], b""])
def test_wrong_bytes_are_refused_and_not_kept(near: Hub, other: OtherHub, sent: bytes) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    other.sent["weights.bin"] = sent
    with pytest.raises(OutboundFailed, match=r"127\.0\.0\.1"):
        fetch(near)
    assert not is_here(near, digest_of(WEIGHTS))
    assert near.store.stat(digest_of(sent)) is None
    other.sent.clear()
    assert fetch(near) == WEIGHTS


def test_a_regular_file_with_wrong_bytes_brings_nothing_here(near: Hub, other: OtherHub) -> None:
    other.sent["README.md"] = b"?" * len(other.files["README.md"])
    with pytest.raises(WrongUpstream, match=r"README\.md"):
        mirror.ensure(near, ASKER, NAME, None)
    with near.db.read() as session, pytest.raises(RepoNotFound):
        repos.find(session, ANONYMOUS, NAME)


def test_a_digest_that_another_repository_owns_opens_nothing(near: Hub, other: OtherHub, admin: Caller) -> None:
    with near.store.writer() as writer:
        writer.write(WEIGHTS)
        writer.commit()
    mirror.ensure(near, ASKER, NAME, None)
    other.sent["weights.bin"] = b"x" * len(WEIGHTS)
    with pytest.raises(WrongUpstream):
        fetch(near)
    assert not is_here(near, digest_of(WEIGHTS))


def test_what_is_here_is_served_when_the_other_hub_is_gone(near: Hub, other: OtherHub) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    other.refused = (500, "")
    warning = mirror.ensure(near, ASKER, NAME, None)
    assert warning is not None
    assert "did not answer" in warning
    asked = len(other.asked)
    assert mirror.ensure(near, ASKER, NAME, None) == warning
    assert mirror.ensure(near, ASKER, NAME, COMMIT) is None
    assert len(other.asked) == asked
    assert found(near)[1] == COMMIT


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "RepoNotFound", RepoNotFound),
        (401, "", RepoNotFound),
        (403, "GatedRepo", GatedRepo),
        (403, "", Forbidden),
        (500, "", OutboundFailed),
    ],
)
def test_a_refusal_there_is_one_of_the_same_class_here(
    near: Hub, other: OtherHub, status: int, code: str, kind: type[Exception]
) -> None:
    other.refused = (status, code)
    with pytest.raises(kind):
        mirror.ensure(near, ASKER, NAME, None)


def test_a_branch_that_moved_is_followed_and_the_old_commit_stays(near: Hub, other: OtherHub) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    other.commit, other.files["c.txt"] = "f" * 40, b"changed"
    mirror.ensure(near, ASKER, NAME, None)
    assert found(near)[1] == "f" * 40
    assert found(near, COMMIT)[2]["c.txt"].size_bytes == 1


def test_a_branch_is_not_asked_for_again_before_its_time(near: Hub, other: OtherHub) -> None:
    later = replace(near, settings=near.settings.model_copy(update={"mirror_ttl_s": 3600}))
    mirror.ensure(later, ASKER, NAME, None)
    asked = len(other.asked)
    mirror.ensure(later, ASKER, NAME, "main")
    assert len(other.asked) == asked


def test_a_tag_is_a_tag_here_too(near: Hub, other: OtherHub) -> None:
    mirror.ensure(near, ASKER, NAME, "v1")
    with near.db.read() as session:
        names = [ref.name for ref in refs.list_refs(session, repos.find(session, ANONYMOUS, NAME))]
    assert names == ["refs/tags/v1"]


def test_names_of_this_hub_are_never_shadowed(near: Hub, other: OtherHub, admin: Caller) -> None:
    near.db.transact(lambda session: accounts.create_organisation(session, admin, "Far"))
    assert mirror.ensure(near, ASKER, NAME, None) is None
    repos.create(near, admin, "Far/model")
    near.db.transact(lambda session: repos.delete(session, admin, "Far/model"))
    assert mirror.ensure(near, ASKER, NAME, None) is None
    assert other.asked == []


def test_a_mirror_is_read_only_even_for_administrators(near: Hub, admin: Caller) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    repo = found(near)[0]
    for right in (require_write, require_discussion, require_upload):
        with near.db.read() as session, pytest.raises(Forbidden, match="a mirror of http"):
            right(session, admin, repo)
    near.db.transact(lambda session: repos.delete(session, admin, NAME))
    assert mirror.ensure(near, ASKER, NAME, None) is None


def test_too_many_bytes_in_regular_files_are_refused(
    near: Hub, other: OtherHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "REGULAR_BYTES", 10)
    with pytest.raises(TooLarge, match="regular files"):
        mirror.ensure(near, ASKER, NAME, None)


def aged(patch: pytest.MonkeyPatch) -> None:
    """As if the mirrored bytes had come, and been read, long ago."""
    patch.setattr(mirror_files, "KEPT", timedelta(minutes=-1))


def tight(hub: Hub) -> Hub:
    return replace(hub, settings=hub.settings.model_copy(update={"mirror_max_bytes": 1}))


def test_bytes_above_the_quota_go_and_come_again(near: Hub, other: OtherHub, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    fetch(near)
    assert mirror_files.make_room(tight(near)) == 0, "they came just now"
    aged(monkeypatch)
    assert mirror_files.make_room(tight(near)) == len(WEIGHTS)
    assert near.store.stat(digest_of(WEIGHTS)) is None
    assert fetch(near) == WEIGHTS
    assert other.downloads("weights.bin") == 2


def test_bytes_let_go_while_they_were_pushed_here_are_asked_for_again(
    near: Hub, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    fetch(near)
    own = repos.create(near, admin, f"{admin.name}/own")
    aged(monkeypatch)
    with near.store.writer() as writer:
        writer.write(WEIGHTS)
        stat = writer.commit()
    mirror_files.make_room(tight(near))
    with pytest.raises(StoreUnavailable, match="send it again"):
        near.db.transact(lambda session: blobs.record(session, own.id, [stat], store=near.store))
    assert not is_here(near, stat.digest)


def test_pinned_bytes_stay(near: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    fetch(near)
    aged(monkeypatch)
    with near.db.write() as session:
        session.exec(select(Mirror)).one().is_pinned = True
    assert mirror_files.make_room(tight(near)) == 0


def test_bytes_that_a_repository_of_this_hub_owns_stay(
    near: Hub, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    fetch(near)
    own = repos.create(near, admin, f"{admin.name}/own")
    with near.db.write() as session:
        session.add(BlobOwner(repository_id=own.id, digest=digest_of(WEIGHTS)))
    aged(monkeypatch)
    assert mirror_files.make_room(tight(near)) == len(WEIGHTS)
    assert b"".join(near.store.read(digest_of(WEIGHTS))) == WEIGHTS
    with near.db.read() as session:
        assert session.exec(select(MirrorBlob)).all() == []


def test_bytes_are_followed_to_another_host_and_verified_all_the_same(near: Hub, other: OtherHub) -> None:
    with serving(OtherHub(files={"weights.bin": WEIGHTS})) as elsewhere:
        other.redirects["weights.bin"] = f"{elsewhere.url}/weights.bin"
        mirror.ensure(near, ASKER, NAME, None)
        assert fetch(near) == WEIGHTS
        assert all("Authorization" not in sent and "Cookie" not in sent for sent in elsewhere.headers)


def test_bytes_that_are_not_here_cannot_be_copied(near: Hub, admin: Caller) -> None:
    mirror.ensure(near, ASKER, NAME, None)
    own = repos.create(near, admin, f"{admin.name}/own")
    source, digest = found(near)[0], digest_of(WEIGHTS)

    def share(session: Session) -> dict[str, str]:
        return dict(copies.share(session, admin, source, own, [digest]))

    assert "not asked for it yet" in near.db.transact(share)[digest]
    fetch(near)
    assert near.db.transact(share) == {}
    with pytest.raises(Forbidden, match="a mirror"):
        copies.duplicate(near, admin, NAME, f"{admin.name}/twin")


def test_an_administrator_sees_evicts_and_refreshes_mirrors(
    near: Hub, other: OtherHub, admin: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = replace(near, settings=near.settings.model_copy(update={"mirror_ttl_s": 3600}))
    mirror.ensure(later, ASKER, NAME, None)
    fetch(near)
    with near.db.read() as session:
        (seen,) = mirror_care.listing(session, admin)
        with pytest.raises(NotAuthenticated):
            mirror_care.listing(session, ANONYMOUS)
    assert (seen.name, seen.source, seen.size_bytes) == (NAME, other.url, len(WEIGHTS))
    aged(monkeypatch)
    assert mirror_care.evict(near, admin, NAME) == 1
    assert near.store.stat(digest_of(WEIGHTS)) is None
    asked = len(other.asked)
    near.db.transact(lambda session: mirror_care.refresh(session, near, admin, NAME))
    mirror.ensure(later, ASKER, NAME, None)
    assert len(other.asked) > asked
