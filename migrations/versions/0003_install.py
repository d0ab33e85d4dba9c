"""Marks say which database they are meant for, and a local run may leave its own."""

from __future__ import annotations

from pgqueue.db.revision import down, up

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    up(__file__)


def downgrade() -> None:
    down(__file__)
