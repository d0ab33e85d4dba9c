"""${message}."""

from __future__ import annotations

from pgqueue.db.revision import down, up

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    up(__file__)


def downgrade() -> None:
    down(__file__)
