"""The application of a run's workers: `pgqueue worker -A pgqueue.bench.app:q`. Only `pgqueue bench` starts them."""

from __future__ import annotations

from pgqueue import PgQueue
from pgqueue.bench.tasks import define, from_environment

_setup = from_environment()
q = PgQueue(schema=_setup.schema, pooled=_setup.pooled)
define(q, _setup)
