"""Recipes under names of their own, with every version that was saved."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "saved_recipe",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("full_name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=True),
        sa.Column("is_private", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["account.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name_key"),
    )
    op.create_index("ix_saved_recipe_owner_id", "saved_recipe", ["owner_id"])
    op.create_index("ix_saved_recipe_updated_at", "saved_recipe", ["updated_at"])
    op.create_table(
        "saved_recipe_version",
        sa.Column("recipe_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("syntax", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("as_kind", sa.String(), nullable=True),
        sa.Column("dtype", sa.String(), nullable=True),
        sa.Column("pins", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["account.id"]),
        sa.ForeignKeyConstraint(["digest"], ["recipe.digest"]),
        sa.ForeignKeyConstraint(["recipe_id"], ["saved_recipe.id"]),
        sa.PrimaryKeyConstraint("recipe_id", "number"),
    )
    op.create_index("ix_saved_recipe_version_digest", "saved_recipe_version", ["digest"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("saved_recipe_version")
    op.drop_table("saved_recipe")
