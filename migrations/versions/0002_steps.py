"""Steps: what a running attempt has made durable already."""

from __future__ import annotations

from pgqueue.db.revision import down, up

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    up(__file__)


def downgrade() -> None:
    down(__file__)
