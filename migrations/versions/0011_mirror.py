"""Repositories of another hub that are kept here: where each came from, when it was asked, which bytes are here."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the tables."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "mirror",
        sa.Column("repository_id", sa.String(), sa.ForeignKey("repository.id"), primary_key=True),
        sa.Column("source_url", sa.String(), nullable=False),
        sa.Column("source_repo_id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), sa.ForeignKey("account.id"), nullable=True),
        sa.Column("is_pinned", sa.Boolean(), nullable=False),
        sa.Column("created_at", time, nullable=False),
    )
    op.create_table(
        "mirror_check",
        sa.Column("repository_id", sa.String(), sa.ForeignKey("mirror.repository_id"), primary_key=True),
        sa.Column("revision", sa.String(), primary_key=True),
        sa.Column("checked_at", time, nullable=False),
        sa.Column("problem", sa.String(), nullable=False),
    )
    op.create_table(
        "mirror_blob",
        sa.Column("repository_id", sa.String(), sa.ForeignKey("mirror.repository_id"), primary_key=True),
        sa.Column("digest", sa.String(), sa.ForeignKey("blob.digest"), primary_key=True),
        sa.Column("used_at", time, nullable=False),
    )
    op.create_index("ix_mirror_blob_used_at", "mirror_blob", ["used_at"])


def downgrade() -> None:
    """Forget them; the repositories stay as ordinary ones."""
    for name in ("mirror_blob", "mirror_check", "mirror"):
        op.drop_table(name)
