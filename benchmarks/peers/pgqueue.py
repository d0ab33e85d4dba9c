"""pgqueue itself, from this checkout."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.interface import Configuration, Environment
from benchmarks.peers.postgres import PostgresPeer

PROGRAM = "benchmarks.peers.programs.pgqueue"
WORKER = (sys.executable, "-m", "pgqueue", "worker", "-A", f"{PROGRAM}:q", "--log-level", "error")


def _here(cache: Path) -> Environment:
    versions = {name: version(name) for name in ("pgqueue-jobs", "psycopg", "psycopg-pool", "msgspec")}
    return Environment((sys.executable, "-m", PROGRAM), versions | {"python": platform.python_version()}, worker=WORKER)


PEER = PostgresPeer(
    name="pgqueue",
    title="pgqueue",
    history="the job's row, for ever",
    recipe=_here,
    unfinished="select %(jobs)s - coalesce(sum(jobs), 0) from pgqueue.tally where state = 'completed'",
    enqueues=(2_000, 200_000),
    configurations=(Configuration("default", "`pgqueue worker -A app:q`: 10 jobs at once", {}, jobs=200_000),),
)
