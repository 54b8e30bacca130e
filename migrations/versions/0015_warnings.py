"""What looks like a mistake in a patch and keeps nothing from being merged; old rows have none."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the sentences, none for old rows; new rows bring their own."""
    op.add_column("patch", sa.Column("warnings", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Forget them."""
    op.drop_column("patch", "warnings")
