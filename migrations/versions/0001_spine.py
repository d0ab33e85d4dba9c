"""The spine: jobs, what may run now, who holds what, and what became of it."""

from __future__ import annotations

from pgqueue.db.revision import down, up

revision = "0001"
down_revision = None
branch_labels = ("pgqueue",)
depends_on = None


def upgrade() -> None:
    up(__file__)


def downgrade() -> None:
    down(__file__)
