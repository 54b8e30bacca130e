"""When an epoch of a repository's Xet address began: the sweep drops what lies under older ones only after a while."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the time; null for an epoch that nobody raised."""
    op.add_column("xet_scope", sa.Column("raised_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Forget it."""
    with op.batch_alter_table("xet_scope") as table:
        table.drop_column("raised_at")
