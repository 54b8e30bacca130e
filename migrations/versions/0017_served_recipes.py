"""Which recipes are known only because they were served: those may be forgotten. Old ones are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the time, none for old rows."""
    op.add_column("recipe", sa.Column("served_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_recipe_served_at", "recipe", ["served_at"])


def downgrade() -> None:
    """Forget it."""
    op.drop_index("ix_recipe_served_at", "recipe")
    op.drop_column("recipe", "served_at")
