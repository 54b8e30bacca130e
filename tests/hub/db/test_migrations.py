"""The migrated schema is the one that tables.py describes, on both databases."""

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlmodel import SQLModel

from adapterhub import migrations
from adapterhub.hub.db import tables
from adapterhub.hub.db.engine import migrate

SCRIPTS = str(Path(migrations.__file__).parent)
SEARCH = "search_document"
"""The full-text index, which the two databases spell too differently for one description."""


def differences(url: str) -> list[object]:
    def is_described(name: str | None, kind: str, _parents: object) -> bool:
        return not (kind == "table" and name and name.startswith(SEARCH))

    options = {"include_name": is_described, "compare_type": True}
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return list(compare_metadata(context, SQLModel.metadata))
    finally:
        engine.dispose()


def test_sqlite_has_the_schema_of_the_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'a.db'}"
    migrate(url)
    migrate(url)
    assert differences(url) == []


def test_postgres_has_the_schema_of_the_tables(postgres_url: str) -> None:
    migrate(postgres_url)
    migrate(postgres_url)
    assert differences(postgres_url) == []


@pytest.mark.parametrize("name", [t.name for t in SQLModel.metadata.sorted_tables])
def test_every_table_is_documented(name: str) -> None:
    table = next(t for t in vars(tables).values() if getattr(t, "__tablename__", None) == name)
    assert table.__doc__


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory(SCRIPTS).get_heads()) == 1


def test_every_step_can_be_undone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    migrate(url)
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_the_search_index_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    migrate(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert SEARCH in inspect(connection).get_table_names()
        assert connection.scalar(text(f"SELECT count(*) FROM {SEARCH}")) == 0
    engine.dispose()
