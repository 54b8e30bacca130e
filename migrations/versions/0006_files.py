"""Number of parameters of a revision, as a column.

Why: lists are filtered by it, and a sum over a JSON column is spelled differently by the two databases.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0003"

_FACTS = sa.table(
    "revision_facts",
    sa.column("repository_id", sa.String()),
    sa.column("commit_oid", sa.String()),
    sa.column("parameters", sa.String()),
    sa.column("parameter_count", sa.BigInteger()),
)


def upgrade() -> None:
    op.add_column(
        "revision_facts", sa.Column("parameter_count", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    connection = op.get_bind()
    key = _FACTS.c.repository_id, _FACTS.c.commit_oid
    rows = connection.execute(sa.select(*key, sa.cast(_FACTS.c.parameters, sa.String()))).all()
    for repository_id, commit_oid, parameters in rows:
        if count := sum(json.loads(parameters).values()):
            here = sa.and_(key[0] == repository_id, key[1] == commit_oid)
            connection.execute(sa.update(_FACTS).where(here).values(parameter_count=count))


def downgrade() -> None:
    op.drop_column("revision_facts", "parameter_count")
