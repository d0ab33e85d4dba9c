"""What waits in each queue is counted faster; sums become hourly after a day."""

from __future__ import annotations

from pgqueue.db.revision import down, up

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    up(__file__)


def downgrade() -> None:
    down(__file__)
