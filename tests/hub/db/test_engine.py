"""The one door to the database: snapshots, write transactions, and writers that wait for each other."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from adapterhub.hub.context import Hub
from adapterhub.hub.db import engine
from adapterhub.hub.db.engine import Database
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Account, Blob
from adapterhub.hub.errors import DatabaseBusy

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def db(hub: Hub) -> Database:
    return hub.db


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 5000), ("trusted_schema", 0)],
)
def test_sqlite_keeps_its_promises(db: Database, pragma: str, value: object) -> None:
    with db.read() as session:
        assert session.scalar(text(f"PRAGMA {pragma}")) == value


def test_a_reader_sees_one_snapshot(db: Database) -> None:
    with db.read() as reading:
        assert reading.get(Blob, DIGEST) is None
        db.transact(lambda session: session.add(Blob(digest=DIGEST, size_bytes=1)))
        assert reading.get(Blob, DIGEST) is None
    with db.read() as later:
        assert later.get(Blob, DIGEST) is not None


def test_an_error_leaves_nothing_behind(db: Database) -> None:
    def work(session: Session) -> None:
        session.add(Blob(digest=DIGEST, size_bytes=1))
        session.flush()
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        db.transact(work)
    with db.read() as session:
        assert session.get(Blob, DIGEST) is None


def test_foreign_keys_hold(db: Database) -> None:
    with pytest.raises(IntegrityError):
        db.transact(lambda session: session.execute(text("INSERT INTO membership VALUES ('no', 'body', 'admin')")))


def test_rows_stay_usable_after_their_session(db: Database) -> None:
    account = db.transact(lambda session: _added(session, Account(kind="user", name="ann", name_key="ann")))
    assert account.name == "ann"


def test_times_come_back_in_utc(db: Database) -> None:
    made = db.transact(lambda session: _added(session, Account(kind="user", name="ann", name_key="ann")))
    with db.read() as session:
        assert session.get_one(Account, made.id).created_at == made.created_at


def _added(session: Session, account: Account) -> Account:
    session.add(account)
    session.flush()
    return account


def test_what_is_there_stays_when_it_is_inserted_again(db: Database) -> None:
    rows = [{"digest": DIGEST, "size_bytes": size} for size in (1, 2)]
    db.transact(lambda session: insert_missing(session, Blob, rows))
    with db.read() as session:
        assert session.get_one(Blob, DIGEST).size_bytes == 1


def test_many_writers_count_without_losing_one(tmp_path: Path, db: Database) -> None:
    """Two Database objects, as two processes would have, eight threads, each read-modify-write."""
    db.transact(lambda session: session.add(Blob(digest=DIGEST, size_bytes=0)))
    other = Database(db.url)

    def count(mine: Database) -> None:
        for _ in range(10):
            mine.transact(increment)

    threads = [threading.Thread(target=count, args=(mine,)) for mine in (db, other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    with db.read() as session:
        assert session.get_one(Blob, DIGEST).size_bytes == 80


def increment(session: Session) -> None:
    row = session.get_one(Blob, DIGEST)
    session.execute(update(Blob).where(col(Blob.digest) == DIGEST).values(size_bytes=row.size_bytes + 1))


def test_a_database_that_stays_locked_is_busy(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(engine, "ATTEMPTS", 2)
    other = Database(db.url)
    with other.write(), pytest.raises(DatabaseBusy, match="try again"):
        db.transact(lambda session: None)
    with db.write(), pytest.raises(DatabaseBusy, match="try again"):
        db.transact(lambda session: None)
    other.close()
    db.transact(lambda session: None)


def test_a_key_that_another_writer_inserted_meanwhile_is_seen_at_the_next_look(postgres_hub: Hub) -> None:
    meet = threading.Barrier(2)
    looks: list[bool] = []

    def work(session: Session) -> None:
        is_there = session.get(Blob, DIGEST) is not None
        looks.append(is_there)
        if len(looks) <= 2:
            meet.wait()
        if not is_there:
            session.add(Blob(digest=DIGEST, size_bytes=1))

    threads = [threading.Thread(target=postgres_hub.db.transact, args=(work,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert looks == [False, False, True]


def test_a_transaction_of_postgres_is_begun_again_after_a_conflict(postgres_hub: Hub) -> None:
    """Two writers under serialisable isolation read what the other writes; one of them must try again."""
    db = postgres_hub.db
    db.transact(lambda session: session.add(Blob(digest=DIGEST, size_bytes=0)))
    meet = threading.Barrier(2)
    tries: list[int] = []

    def work(session: Session) -> None:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        row = session.get_one(Blob, DIGEST)
        tries.append(1)
        if len(tries) <= 2:
            meet.wait()
        session.execute(update(Blob).where(col(Blob.digest) == DIGEST).values(size_bytes=row.size_bytes + 1))

    threads = [threading.Thread(target=db.transact, args=(work,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.get_one(Blob, DIGEST).size_bytes == 2
    assert len(tries) == 3
