"""The metadata database: SQLite or PostgreSQL, read in short sessions, written through one helper.

SQLite runs in WAL with synchronous FULL, since a moved ref is a promise. Every write begins with BEGIN IMMEDIATE: a
deferred transaction that turns from reading to writing fails at once under contention, whatever the busy timeout.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlmodel import Session

from adapterhub import migrations
from adapterhub.hub.errors import DatabaseBusy

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""How long one attempt waits for SQLite's write lock."""

ATTEMPTS = 8
"""How often a write is begun before DatabaseBusy."""

_RETRIED_POSTGRES = frozenset({"40001", "40P01", "55P03"})
"""SQLSTATEs of a serialisation failure, a deadlock, and a lock not given in time."""

_UNIQUE_VIOLATION = "23505"

_WRITES = "adapterhub_writes"


class Database:
    """One database by URL. `read` and `transact` may be called from any thread; connecting happens at first use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        self._writing = self.engine.execution_options(**{_WRITES: True})
        self._turn = threading.Lock() if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite and not PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one snapshot, rolled back at the end. Rows stay usable after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one write transaction, committed at the end, rolled back on an exception.

        One attempt: raises DatabaseBusy when the lock is not given within BUSY_TIMEOUT_S. `transact` tries again.
        """
        with self._in_turn(), Session(self._writing, expire_on_commit=False) as session:
            try:
                session.connection()
                yield session
                session.commit()
            except DBAPIError as error:
                if not _passes(error):
                    raise
                raise DatabaseBusy("the database is locked by another writer; try again in a few seconds") from error

    def transact(self, work: Callable[[Session], T]) -> T:
        """What `work` gives back, done in one write transaction and begun again while the database is busy.

        Begun again too where another writer inserted a key between the look and the insert: the next look sees it.
        work: may run several times, so it must touch nothing but the session. Raises DatabaseBusy after ATTEMPTS.
        """
        for attempt in range(ATTEMPTS):
            try:
                with self.write() as session:
                    return work(session)
            except (DatabaseBusy, IntegrityError) as error:
                raced = isinstance(error, DatabaseBusy) or getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION
                if not raced or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  jitter, not a secret
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give every connection back; the database may be used again afterwards."""
        self.engine.dispose()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Threads of one process queue here in order: SQLite's own lock is a poll in which some would starve."""
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=BUSY_TIMEOUT_S):
            raise DatabaseBusy("the database is busy with other writes; try again in a few seconds")
        try:
            yield
        finally:
            self._turn.release()


def migrate(url: str) -> None:
    """Bring the database at `url` to the newest schema; nothing happens where it has it."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    engine = _engine(url)
    try:
        with engine.execution_options(**{_WRITES: True}).connect() as connection, connection.begin():
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(715517)")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_size=16, max_overflow=32, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, pool_size=16, max_overflow=48, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours to say, not the driver's
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
        "trusted_schema=OFF",
        "cell_size_check=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _passes(error: DBAPIError) -> bool:
    """Whether the same statement may succeed when it is tried again."""
    if getattr(error.orig, "sqlstate", None) in _RETRIED_POSTGRES:
        return True
    return isinstance(error, OperationalError) and "locked" in str(error.orig)
