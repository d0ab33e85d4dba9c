"""`python -m benchmarks [CLAIM ...] [--all] [--quick] [--json FILE] [--dsn DSN]`: measure, say what was found, pass or
miss."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    backlog,
    defaults,
    drain,
    due,
    enqueue_many,
    enqueue_one,
    executors,
    fleet,
    fresh,
    history,
    idle,
    latency,
    memory,
    mixed,
    pinned,
    questions,
    queues,
    rescue,
    singles,
    soak,
    steps,
    wake,
    wal,
)
from benchmarks.harness import Bench, open_bench
from benchmarks.machine import Steal, end_in_order_on_sigterm
from benchmarks.report import Report

Claim = Callable[[Bench], Report]

CLAIMS: dict[str, Claim] = {
    "enqueue-one": enqueue_one.measure,
    "enqueue-many": enqueue_many.measure,
    "drain": drain.measure,
    "latency": latency.measure,
    "rescue": rescue.measure,
    "memory": memory.measure,
    "wake": wake.measure,
    "idle": idle.measure,
    "steps": steps.measure,
    "singles": singles.measure,
    "defaults": defaults.measure,
    "fleet": fleet.measure,
    "executors": executors.measure,
    "fresh": fresh.measure,
    "mixed": mixed.measure,
    "queues": queues.measure,
    "due": due.measure,
    "wal": wal.measure,
}
LONG: dict[str, Claim] = {  # over three minutes each, or gigabytes: by name, or with --all
    "backlog": backlog.measure,
    "history": history.measure,
    "questions": questions.measure,
    "pinned": pinned.measure,
}
SOAK: dict[str, Claim] = {"soak": soak.measure}  # an hour: only by name
KNOWN = CLAIMS | LONG | SOAK


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for; 1 if a claim missed its bar."""
    options = _checked(_parser(), arguments)
    chosen = options.claims or [*CLAIMS, *(LONG if options.all else ())]
    end_in_order_on_sigterm()
    with open_bench(options.dsn, quick=options.quick, minutes=options.minutes) as bench:
        conditions = bench.conditions()
        print("  ".join(f"{name} {value}" for name, value in conditions.items()), flush=True)
        if options.quick:
            print("quick: fewer jobs, once; not figures to quote")
        reports = [_measure(KNOWN[name], bench) for name in chosen]
    if options.json:
        document = {"conditions": conditions, "quick": options.quick, "claims": [each.as_json() for each in reports]}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    missed = sum(verdict.passed is False for report in reports for verdict in report.verdicts)
    print(f"\n{missed or 'no'} claim{'s' * (missed != 1)} missed")
    return 1 if missed else 0


def _measure(claim: Claim, bench: Bench) -> Report:
    steal, started, load = Steal(), time.monotonic(), os.getloadavg()[0]
    report = claim(bench)
    report.steal_percent, report.seconds = steal.percent(), time.monotonic() - started
    report.method += f" Load of the machine before and after: {load:.1f}, {os.getloadavg()[0]:.1f}."
    print("", *report.lines(), sep="\n", flush=True)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="The measurements behind README's numbers."
    )
    parser.add_argument(
        "claims",
        nargs="*",
        metavar="CLAIM",
        help=f"which: {', '.join(CLAIMS)} (all of these); of several minutes each: {', '.join(LONG)}; and"
        f" {', '.join(SOAK)}",
    )
    parser.add_argument("--all", action="store_true", help=f"those of several minutes too, but not {', '.join(SOAK)}")
    parser.add_argument("--quick", action="store_true", help="fewer jobs, and once: to see that it works")
    parser.add_argument("--minutes", type=float, help=f"how long {', '.join(SOAK)} goes on ({soak.MINUTES:.0f})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and every sample there too")
    parser.add_argument(
        "--dsn", help="measure on this server (its role must be able to create databases) instead of one of our own"
    )
    parser.epilog = "Exit code 1 if a claim missed its bar."
    return parser


def _checked(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    for name in options.claims:
        if name not in KNOWN:
            parser.error(f"there is no claim {name!r}: choose from {', '.join(KNOWN)}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
