"""Xet uploads by hand: what is accepted, what is refused, and who may refer to whose chunks."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from blake3 import blake3
from fastapi import FastAPI
from httpx2 import Response
from sqlmodel import Session as DbSession
from sqlmodel import select
from starlette.testclient import TestClient

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Blob, Job, Repository, XetScope, Xorb, now
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import blobs, xet, xet_retention
from adapterhub.hub.services.xet_retention import Swept, sweep
from adapterhub.hub.worker import handlers_of
from adapterhub.storage.blobs import Hash
from tests.hub.api.conftest import TOKEN
from tests.hub.api.hf.test_bad_input import commit
from tests.storage.xet.forge import forged, shard, stored_name, term, wire_chunk, xorb_name

CHUNKS = [b"first chunk", b"second", b"third one", b"4"]
WIRE = b"".join(wire_chunk(chunk, scheme) for chunk, scheme in zip(CHUNKS, (0, 1, 2, 0), strict=True))
NAME = xorb_name(CHUNKS)
STORED = stored_name(WIRE)
CONTENT = b"".join(CHUNKS)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHARD = shard([term(CHUNKS, 0, 4)], CHUNKS, sha256=SHA256)


@dataclass
class Session:
    """One client's upload session: the path of its scope, and its token."""

    client: TestClient
    repo: str
    path: str
    token: str

    def post(self, route: str, content: bytes) -> Response:
        return self.client.post(self.path + route, content=content, headers={"Authorization": f"Bearer {self.token}"})

    def put_xorb(self, content: bytes = WIRE, name: str = NAME) -> Response:
        return self.post(f"/v1/xorbs/default/{name}", content)

    def put_shard(self, content: bytes = SHARD) -> Response:
        return self.post("/v1/shards", content)


Open = Callable[[str], Session]


@pytest.fixture
def hub(client: TestClient) -> Hub:
    app = client.app
    assert isinstance(app, FastAPI)
    found: Hub = app.state.hub
    return found


@pytest.fixture
def opened(admin_client: TestClient) -> Open:
    """Opens a session on a repository, which is made where it is missing."""

    def open_session(repo: str) -> Session:
        admin_client.post("/api/repos/create", json={"name": repo.partition("/")[2], "organization": "ann"})
        reply = admin_client.get(f"/api/models/{repo}/xet-write-token/main")
        body = reply.json()
        assert reply.headers["X-Xet-Cas-Url"] == body["casUrl"]
        assert reply.headers["X-Xet-Access-Token"] == body["accessToken"]
        assert reply.headers["X-Xet-Token-Expiration"] == str(body["exp"])
        path = body["casUrl"].removeprefix("http://127.0.0.1:8000")
        return Session(admin_client, repo, path, body["accessToken"])

    return open_session


def link(session: Session, oid: str = SHA256) -> Response:
    line = {"key": "lfsFile", "value": {"path": "a.bin", "oid": oid, "size": len(CONTENT)}}
    return commit(session.client, session.repo, line)


def test_a_file_is_rebuilt_and_can_be_committed(opened: Open) -> None:
    session = opened("ann/x")
    assert session.put_xorb().json() == {"was_inserted": True}
    assert session.put_xorb().json() == {"was_inserted": False}
    assert session.put_shard().json() == {"result": 1}
    assert session.put_shard().json() == {"result": 1}
    assert link(session).status_code == 200
    assert session.client.get("/ann/x/resolve/main/a.bin").content == CONTENT


def test_the_stream_of_a_shard_ends_in_its_result(opened: Open) -> None:
    session = opened("ann/x")
    session.put_xorb()
    lines = [json.loads(line) for line in session.post("/v2/shards", SHARD).text.splitlines()]
    assert lines[-1] == {"type": "result", "result": 1}
    assert {line["type"] for line in lines[:-1]} <= {"committing"}


def test_the_stream_of_a_bad_shard_ends_in_words_for_the_user(opened: Open) -> None:
    lines = [json.loads(line) for line in opened("ann/x").post("/v2/shards", SHARD).text.splitlines()]
    assert lines[-1]["type"] == "error"
    assert lines[-1]["retryable"] is False
    assert NAME in lines[-1]["message"]


@pytest.mark.parametrize(
    ("content", "name"),
    [(WIRE[:-1], NAME), (WIRE + b"\0", NAME), (WIRE, "0" * 64), (WIRE, "nothing"), (b"", NAME)],
    ids=["cut", "longer", "another name", "no name", "empty"],
)
def test_a_xorb_that_is_not_what_it_says_is_refused(opened: Open, hub: Hub, content: bytes, name: str) -> None:
    session = opened("ann/x")
    before = [stat.digest for stat in hub.store.list()]
    reply = session.put_xorb(content, name)
    assert reply.status_code == 400
    assert reply.headers["X-Error-Code"] in ("InvalidXet", "InvalidRequest")
    assert [stat.digest for stat in hub.store.list()] == before


def test_a_file_with_another_sha256_than_announced_is_refused_and_gone(opened: Open, hub: Hub) -> None:
    session = opened("ann/x")
    session.put_xorb()
    before = [stat.digest for stat in hub.store.list()]
    reply = session.put_shard(shard([term(CHUNKS, 0, 4)], CHUNKS, sha256="ab" * 32))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "DigestMismatch")
    assert [stat.digest for stat in hub.store.list()] == before
    assert link(session, "ab" * 32).headers["X-Error-Code"] == "InvalidCommit"


def test_a_term_without_proof_of_its_chunks_is_refused(opened: Open) -> None:
    session = opened("ann/x")
    session.put_xorb()
    false = forged(term(CHUNKS, 0, 4), range_hash=bytes(32))
    reply = session.put_shard(shard([false], CHUNKS, sha256=SHA256))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "InvalidXet")


def test_nobody_reaches_the_chunks_of_another_repository(opened: Open) -> None:
    opened("ann/x").put_xorb()
    other = opened("ann/y")
    assert other.put_shard().headers["X-Error-Code"] == "InvalidXet"
    assert link(other).headers["X-Error-Code"] == "InvalidCommit"


def test_a_token_opens_its_own_scope_only(opened: Open) -> None:
    one, other = opened("ann/x"), opened("ann/y")
    other.token = one.token
    assert (other.put_xorb().status_code, other.put_shard().status_code) == (401, 401)
    one.token = "forged"
    assert one.put_xorb().headers["X-Error-Code"] == "InvalidToken"
    headers = {"Authorization": ""}
    assert one.client.post(one.path + "/v1/shards", content=SHARD, headers=headers).status_code == 401


def test_a_raised_epoch_gives_clients_another_address_and_leaves_running_sessions(opened: Open, hub: Hub) -> None:
    session = opened("ann/x")
    session.put_xorb()

    def raise_epoch(db: DbSession) -> None:
        scope = db.get_one(XetScope, session.path.rpartition("/")[2].partition(".")[0])
        scope.epoch += 1
        db.add(scope)

    hub.db.transact(raise_epoch)
    later = opened("ann/x")
    assert later.path != session.path
    assert later.put_shard().headers["X-Error-Code"] == "InvalidXet"
    assert session.put_shard().status_code == 200


def test_a_sweep_leaves_young_xorbs_alone(opened: Open, hub: Hub) -> None:
    session = opened("ann/x")
    session.put_xorb()
    assert sweep(hub, timedelta(days=22), now() + timedelta(days=21)) == Swept(0, 0, 0)
    assert opened("ann/x").path == session.path


def test_a_sweep_changes_the_address_first_and_drops_xorbs_once_uploads_have_ended(opened: Open, hub: Hub) -> None:
    session = opened("ann/x")
    session.put_xorb()
    assert sweep(hub, timedelta(0), now()) == Swept(1, 0, 0)
    later = opened("ann/x")
    assert later.path != session.path
    session.token = later.token  # a client renews its token and keeps the address that its upload began with
    assert session.put_shard().status_code == 200
    assert link(session).status_code == 200

    assert sweep(hub, timedelta(0), now() + timedelta(days=2)) == Swept(0, 1, len(WIRE))
    assert hub.store.stat(STORED) is None
    assert session.client.get("/ann/x/resolve/main/a.bin").content == CONTENT
    assert later.put_xorb().json() == {"was_inserted": True}
    assert later.put_shard().status_code == 200


def test_a_sweep_keeps_bytes_that_are_a_file_or_another_xorb(opened: Open, hub: Hub) -> None:
    one, other = opened("ann/x"), opened("ann/y")
    one.put_xorb()
    sweep(hub, timedelta(0), now())
    other.put_xorb()
    assert sweep(hub, timedelta(days=22), now() + timedelta(days=2)) == Swept(0, 1, 0)
    stat = hub.store.stat(STORED)
    assert stat is not None

    def own(db: DbSession) -> None:
        blobs.record(db, db.get_one(Repository, one.path.rpartition("/")[2].partition(".")[0]).id, [stat])

    hub.db.transact(own)
    sweep(hub, timedelta(0), now())
    assert sweep(hub, timedelta(0), now() + timedelta(days=2)) == Swept(0, 1, 0)
    assert hub.store.stat(STORED) is not None


@pytest.mark.parametrize("made", [hashlib.sha256, blake3])
def test_a_xorb_that_was_kept_under_a_hash_of_its_bytes_is_rebuilt_from_and_swept(
    opened: Open, hub: Hub, made: Callable[[], Hash]
) -> None:
    session = opened("ann/x")
    session.put_xorb()
    with hub.store.writer(made=made()) as writer:
        writer.write(WIRE)
        stat = writer.commit()

    def move(db: DbSession) -> None:  # to where releases before this one kept it
        db.add(Blob(digest=stat.digest, size_bytes=stat.size_bytes))
        db.flush()
        db.exec(select(Xorb)).one().digest = stat.digest

    hub.db.transact(move)
    hub.store.delete(STORED)
    assert session.put_shard().json() == {"result": 1}
    sweep(hub, timedelta(0), now())
    assert sweep(hub, timedelta(0), now() + timedelta(days=2)) == Swept(0, 1, len(WIRE))
    assert hub.store.stat(stat.digest) is None


def test_a_xorb_whose_bytes_a_sweep_takes_meanwhile_is_asked_for_again(
    opened: Open, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened("ann/x").put_xorb()
    sweep(hub, timedelta(0), now())
    later = opened("ann/x")
    transact = hub.db.transact

    def sweep_first(work: Callable[[DbSession], object]) -> object:
        monkeypatch.setattr(hub.db, "transact", transact)
        assert sweep(hub, timedelta(0), now() + timedelta(days=2)).size_bytes == len(WIRE)
        return transact(work)

    monkeypatch.setattr(hub.db, "transact", sweep_first)
    reply = later.put_xorb()
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (503, "StoreUnavailable")
    assert later.put_xorb().json() == {"was_inserted": True}
    assert later.put_shard().json() == {"result": 1}


def test_a_sweep_is_due_when_there_are_old_xorbs_and_then_once_a_day(opened: Open, hub: Hub) -> None:
    hub.settings.xet_retention_days = 0

    def queued() -> list[Job]:
        xet_retention.submit_due(hub)
        InlineExecutor(hub.jobs, handlers_of(hub)).drain()
        return [job for job in hub.jobs.list() if job.kind == xet_retention.KIND]

    assert queued() == []
    opened("ann/x").put_xorb()
    assert [job.result for job in queued()] == [{"repositories": 1, "xorbs": 0, "size_bytes": 0}]
    assert len(queued()) == 1


def test_only_an_administrator_starts_a_sweep(client: TestClient) -> None:
    assert client.post("/api/storage/sweep").status_code == 401
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client.post("/api/storage/sweep").json()["kind"] == "xet-sweep"


def test_a_shard_that_would_make_too_much_is_refused_before_work(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xet, "EXPANSION_FREE_BYTES", 0)
    monkeypatch.setattr(xet, "EXPANSION_LIMIT", 1)
    session = opened("ann/x")
    session.put_xorb()
    reply = session.put_shard(shard([term(CHUNKS, 0, 4)] * 1000, CHUNKS, sha256=SHA256))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (413, "TooLarge")


@pytest.mark.parametrize("route", ["/v1/chunks/default/" + NAME, "/v1/xorb-grants/default/" + NAME, "/v2/other"])
def test_the_rest_of_xet_is_not_offered(opened: Open, route: str) -> None:
    session = opened("ann/x")
    assert session.client.get(session.path + route).status_code == 404
    assert session.post(route, b"{}").status_code == 404
