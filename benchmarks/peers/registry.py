"""Which peers there are: one line each."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.peers import awa, celery, graphile, oban, pgboss, pgqueue, pgqueuer, procrastinate
from benchmarks.peers.interface import Peer

_ALL: tuple[Peer, ...] = (
    pgqueue.PEER,
    awa.PEER,
    pgqueuer.PEER,
    oban.PEER,
    procrastinate.PEER,
    graphile.PEER,
    pgboss.PEER,
    celery.PEER,
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
