"""Tokens by which organisations read at the mirrored hub, and what each was shown there.

A repository that only a token opened belongs to the organisations that proved their access, and to nobody else here.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the tables."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "mirror_token",
        sa.Column("organisation_id", sa.String(), sa.ForeignKey("account.id"), primary_key=True),
        sa.Column("source_url", sa.String(), nullable=False),
        sa.Column("token_sealed", sa.String(), nullable=False),
        sa.Column("set_by", sa.String(), sa.ForeignKey("account.id"), nullable=True),
        sa.Column("created_at", time, nullable=False),
    )
    op.create_table(
        "mirror_access",
        sa.Column("repository_id", sa.String(), sa.ForeignKey("mirror.repository_id"), primary_key=True),
        sa.Column("organisation_id", sa.String(), sa.ForeignKey("account.id"), primary_key=True),
        sa.Column("proven_at", time, nullable=False),
    )
    op.create_index("ix_mirror_access_organisation_id", "mirror_access", ["organisation_id"])


def downgrade() -> None:
    """Forget them; what only a token opened stays private to nobody."""
    for name in ("mirror_access", "mirror_token"):
        op.drop_table(name)
