"""Fine-grained tokens, likes, requests for gated repositories, disabled repositories, collections.

Who made a repository is taken from the audit log, so that contributors keep the right to what they made.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0001"

TABLES = ("collection_item", "collection", "access_request", "repository_like", "token_scope")


def upgrade() -> None:
    """Add the columns and tables, and fill in who made each repository."""
    op.add_column("token", sa.Column("reads_gated", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("repository", sa.Column("likes", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("repository", sa.Column("creator_id", sa.String(), nullable=True))
    op.add_column("repository", sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("repository", sa.Column("disabled_reason", sa.String(), nullable=False, server_default=""))
    op.execute(
        "UPDATE repository SET creator_id = (SELECT min(actor_id) FROM audit_event "
        "WHERE action = 'repo.create' AND target_id = repository.id)"
    )
    _create_tables()


def downgrade() -> None:
    """Drop what was added."""
    for table in TABLES:
        op.drop_table(table)
    for name in ("disabled_reason", "disabled_at", "creator_id", "likes"):
        op.drop_column("repository", name)
    op.drop_column("token", "reads_gated")


def _create_tables() -> None:
    op.create_table(
        "token_scope",
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("permission", sa.String(), nullable=False),
        sa.Column("entity_type", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"]),
        sa.PrimaryKeyConstraint("token_id", "entity_id", "permission"),
    )
    op.create_table(
        "repository_like",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"]),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"]),
        sa.PrimaryKeyConstraint("repository_id", "account_id"),
    )
    op.create_index("ix_repository_like_account_id", "repository_like", ["account_id"])
    op.create_table(
        "access_request",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"]),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("repository_id", "account_id"),
    )
    op.create_index("ix_access_request_repository_id", "access_request", ["repository_id"])
    op.create_index("ix_access_request_account_id", "access_request", ["account_id"])
    op.create_table(
        "collection",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("hex_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("is_private", sa.Boolean(), nullable=False),
        sa.Column("theme", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["account.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hex_id"),
        sa.UniqueConstraint("owner_id", "title"),
    )
    op.create_index("ix_collection_owner_id", "collection", ["owner_id"])
    op.create_index("ix_collection_updated_at", "collection", ["updated_at"])
    op.create_table(
        "collection_item",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("collection_id", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["collection_id"], ["collection.id"]),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("collection_id", "repository_id"),
    )
    op.create_index("ix_collection_item_collection_id", "collection_item", ["collection_id"])
    op.create_index("ix_collection_item_repository_id", "collection_item", ["repository_id"])
