"""What an account's repositories do with patches that hold NaN or do not fit their base.

Accounts that are there follow the service's own setting until their owners choose.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the choice, made by nobody yet."""
    op.add_column("account", sa.Column("unfit_patches", sa.String(), nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("account", "unfit_patches")
