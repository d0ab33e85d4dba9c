"""What running attempts remember, a statement's worth at a time: only what is new, and not too much at once.

Guarantees: outcomes have their turn after every few MiB; what the database did not take, because a row was locked, is
taken the next time.
Never: sends anything.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pgqueue.engine.lane import Attempt
from pgqueue.extension import Parted

KEEP_BYTES = 4 * 1024 * 1024  # in a statement

_read_patch = msgspec.json.Decoder(Parted).decode


class Keeping:
    """The attempts whose memory is to be made durable, and what of it is under way."""

    def __init__(self) -> None:
        self._waiting: list[Attempt] = []
        self._sent: dict[int, tuple[Attempt, Parted]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, attempts: Iterable[Attempt]) -> None:
        """It is time for these."""
        self._waiting.extend(attempts)

    def take(self) -> str | None:
        """A document for `jobs.keep`; None if there is nothing new."""
        self._sent, size = {}, 0
        while self._waiting and size < KEEP_BYTES:
            attempt = self._waiting.pop()
            patch = None if attempt.leftover is None else attempt.leftover.patch()
            news = {} if patch is None else _news(attempt.kept or {}, patch)
            if news:
                self._sent[attempt.job.id] = attempt, news
                size += sum(len(value) for part in news.values() for value in part.values())
        if not self._sent:
            return None
        rows = [
            {"id": id, "claim": attempt.job.claim, "lease": attempt.lease.id, "patch": news}
            for id, (attempt, news) in self._sent.items()
        ]
        return msgspec.json.encode(rows).decode()

    def kept(self, ids: Iterable[int]) -> None:
        """The database has taken those of these jobs; the rows of others were locked."""
        for id in ids:
            attempt, news = self._sent[id]
            attempt.kept = attempt.kept or {}
            for part, values in news.items():
                attempt.kept.setdefault(part, {}).update(values)


def _news(kept: Parted, patch: str) -> Parted:
    """What of a patch has not been kept yet: large results aren't sent again with every cursor."""
    news = {
        part: {name: value for name, value in values.items() if kept.get(part, {}).get(name) != value}
        for part, values in _read_patch(patch).items()
    }
    return {part: values for part, values in news.items() if values}
