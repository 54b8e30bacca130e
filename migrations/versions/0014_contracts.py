"""What a patch needs to work, how it was made, and which parts of it can be had alone.

Empty for patches that were pushed before: their next commit tells.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

COLUMNS = {"contract": "{}", "training": "{}", "parts": "[]"}


def upgrade() -> None:
    """Add the columns."""
    for name, empty in COLUMNS.items():
        op.add_column("patch", sa.Column(name, sa.JSON(), nullable=False, server_default=empty))


def downgrade() -> None:
    """Forget them."""
    for name in COLUMNS:
        op.drop_column("patch", name)
