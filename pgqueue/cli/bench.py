"""`pgqueue bench`: measures the queue on the user's own database, with jobs of its own, and removes them.

Guarantees: after the end, a Ctrl-C or an error nothing is left; what a killed run left goes with the next one, or by
`--clean`. Jobs, queues and workers of others are not touched. With --json stdout has one document and nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from types import FrameType
from typing import Literal

import click

from pgqueue import PgQueue
from pgqueue.bench import conditions as surroundings
from pgqueue.bench import trace
from pgqueue.bench.conditions import Conditions
from pgqueue.bench.figures import Figure
from pgqueue.bench.run import Interrupted, Plan, Run
from pgqueue.bench.workloads import WORKLOADS
from pgqueue.cli.options import DURATION, configured, json_option, opened
from pgqueue.cli.output import Column, fields, print_json, say, style, table
from pgqueue.config import Loaded
from pgqueue.db.schema import gate, installed_version
from pgqueue.demo.screen import Screen
from pgqueue.errors import ConfigError

LONGEST = timedelta(hours=1)
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@click.command()
@click.argument("workloads", nargs=-1, type=click.Choice(tuple(WORKLOADS)), metavar="[WORKLOAD]...")
@click.option(
    "--jobs", type=click.IntRange(1, 10_000_000), default=50_000, show_default=True,
    help="Jobs to enqueue, and to drain.",
)  # fmt: skip
@click.option(
    "--duration", type=DURATION, default="7s", show_default=True,
    help="How long latency and mixed take, and enqueuing one by one at most.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0.1, 10_000), default=50, show_default=True,
    help="Single jobs a second in latency and mixed.",
)  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--executor", type=click.Choice(("async", "thread", "process")), default="async", show_default=True,
    help="Where the tasks run.",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), default=10, show_default=True,
    help="Jobs that each worker process runs at once.",
)  # fmt: skip
@click.option("--clean", is_flag=True, help="Measure nothing; remove what a killed run has left.")
@json_option
@configured("dsn", "direct_dsn", "schema", "pooled")
def bench(
    loaded: Loaded,
    *,
    workloads: Sequence[str],
    jobs: int,
    duration: timedelta,
    rate: float,
    processes: int,
    executor: Literal["async", "thread", "process"],
    concurrency: int,
    clean: bool,
    as_json: bool,
) -> int:
    """Measure the queue on your own database: all workloads in half a minute, or those that are named.

    \b
    enqueue   one job after the other, then 1,000 at once; no worker is there
    drain     jobs that wait already, done by worker processes
    latency   from COMMIT to the start of a task, by workers that have nothing else to do
    mixed     bulk that keeps the workers busy, and single jobs of a higher priority among it

    The tasks do nothing, in processes of `pgqueue worker` on this machine. The jobs go to a queue of the bench's own,
    which no other worker serves, and are removed at the end; other workers notice the load and nothing else.

    \b
    pgqueue bench
    pgqueue bench drain --jobs 200000 --processes 4
    pgqueue bench latency --rate 200 --duration 1m --json
    pgqueue bench --clean                          after a kill -9

    With --json: {"conditions": {...}, "plan": {...}, "results": {...}, "warnings": [...]}; the results are
    enqueue_one, enqueue_many, drain, latency, mixed, mixed_enqueue and mixed_latency, those that were measured, each
    with jobs, seconds, jobs_per_second, p50, p90, p99, max and timed (of what; null: of nothing). All times in seconds.
    """
    if not timedelta(0) < duration <= LONGEST:
        raise ConfigError(f"--duration {duration.total_seconds():g}: must be more than 0 seconds and at most an hour")
    plan = Plan(
        jobs=jobs, duration=duration.total_seconds(), rate=rate, processes=processes, executor=executor,
        concurrency=concurrency,
    )  # fmt: skip
    with opened(loaded) as q:
        gate(q.pool.run(installed_version(q.schema)), schema=q.schema)
        removed = _clean(q, tell=clean)
        if clean:
            _report_clean(removed, as_json=as_json)
            return 0
        return _bench(q, plan, [name for name in WORKLOADS if name in workloads or not workloads], as_json=as_json)


def _clean(q: PgQueue, *, tell: bool) -> dict[str, int]:
    """Remove what killed runs have left; by queue, how many jobs that were."""
    dead, alive = trace.left(q)
    if alive and tell:
        say(f"{len(alive)} run{'s' * (len(alive) > 1)} in progress (heard of in the last half minute): left alone")
    return {queue: trace.remove(q, queue) for queue in dead}


def _report_clean(removed: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        print_json({"runs": len(removed), "jobs": sum(removed.values())})
    elif removed:
        click.echo(f"removed {sum(removed.values()):,} jobs of {len(removed)} killed run{'s' * (len(removed) > 1)}")
    else:
        click.echo("there is nothing to remove")


def _bench(q: PgQueue, plan: Plan, names: Sequence[str], *, as_json: bool) -> int:
    trace.check_rights(q)
    screen, asked = Screen(), _Asked()
    run = Run(q, plan, show=_silent if as_json else screen.change, wanted=asked.nobody)
    results: dict[str, Figure] = {}
    try:
        with asked, run:
            conditions = surroundings.look(q, run.trace.worker)
            if not as_json:
                _tell(conditions, plan)
            for name in names:
                results |= WORKLOADS[name](run)
    except Interrupted:
        screen.clear()
        say("interrupted: the workers are stopped, the jobs are removed")
        return 128 + asked.number
    finally:
        screen.clear()
        if not run.removed:
            say("not all of this run could be removed: `pgqueue bench --clean` does it later")
    _print(conditions, plan, results, as_json=as_json)
    return 0


def _silent(done: int, total: int, text: str) -> None:
    """With --json nobody looks."""


class _Asked:
    """Whether a signal has asked us to end. The first is obeyed when it suits, the second at once."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def __exit__(self, *error: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action or signal.SIG_DFL)  # None: not Python's, which can't be put back

    def nobody(self) -> bool:
        return self.number == 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


def _tell(conditions: Conditions, plan: Plan) -> None:
    workers = f"{plan.processes} process{'es' * (plan.processes > 1)}, {plan.concurrency} jobs at once in each"
    click.echo(style("Conditions", bold=True))
    fields(
        {
            "database": f"{conditions.database}, schema {conditions.schema}",
            "server": f"PostgreSQL {conditions.server}; fsync {conditions.fsync}, synchronous_commit "
            f"{conditions.synchronous_commit}, full_page_writes {conditions.full_page_writes}",
            "round trip": f"{_time(conditions.round_trip)}; a commit takes {_time(conditions.commit)} more",
            "connection": _connection(conditions),
            "workers": f"{workers}, tasks {_EXECUTORS[plan.executor]}",
            "client": f"{conditions.cores} cores, Python {conditions.python}, pgqueue {conditions.pgqueue}",
        }
    )
    for warning in conditions.warnings:
        click.echo(f"  {style('!', fg='yellow')} {warning}")
    click.echo()


def _connection(conditions: Conditions) -> str:
    if not conditions.pooled:
        return "direct"
    return f"through a pooler, {'LISTEN around it' if conditions.listen else 'without LISTEN'}"


def _print(conditions: Conditions, plan: Plan, results: Mapping[str, Figure], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "conditions": asdict(conditions),
                "plan": asdict(plan),
                "results": {name: asdict(each) for name, each in results.items()},
                "warnings": list(conditions.warnings),
            }
        )
        return
    table(_COLUMNS, [_row(name, each) for name, each in results.items()])


def _row(name: str, each: Figure) -> tuple[str, ...]:
    times = ["" if value is None else _time(value) for value in (each.p50, each.p90, each.p99, each.max)]
    return (_TITLES[name], f"{each.jobs:,}", _rate(each.jobs_per_second), *times, each.timed or "")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _time(seconds: float) -> str:
    """Three leading figures, in ms or s."""
    scaled, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    places = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{places}f} {unit}"


_EXECUTORS: Mapping[str, str] = {
    "async": "are coroutines", "thread": "run in threads", "process": "run in processes of their own",
}  # fmt: skip
_TITLES: Mapping[str, str] = {
    "enqueue_one": "enqueue, one by one",
    "enqueue_many": "enqueue, 1,000 at once",
    "drain": "drain",
    "latency": "latency, idle workers",
    "mixed": "mixed: all jobs",
    "mixed_enqueue": "mixed: enqueue, one by one",
    "mixed_latency": "mixed: latency, higher priority",
}
_COLUMNS = (
    Column(title="WORKLOAD"),
    *(Column(title=title, right=True) for title in ("JOBS", "JOBS/S", "P50", "P90", "P99", "MAX")),
    Column(title="TIMED", optional=True),
)
