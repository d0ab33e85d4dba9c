"""`python -m benchmarks [CLAIM ...] [--quick] [--json FILE] [--dsn DSN]`: measure, say what was found, pass or miss."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import drain, enqueue_many, enqueue_one, idle, latency, memory, rescue, steps, wake
from benchmarks.harness import Bench, open_bench
from benchmarks.machine import Steal
from benchmarks.report import Report

CLAIMS: dict[str, Callable[[Bench], Report]] = {
    "enqueue-one": enqueue_one.measure,
    "enqueue-many": enqueue_many.measure,
    "drain": drain.measure,
    "latency": latency.measure,
    "rescue": rescue.measure,
    "memory": memory.measure,
    "wake": wake.measure,
    "idle": idle.measure,
    "steps": steps.measure,
}


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for; 1 if a claim missed its bar."""
    options = _checked(_parser(), arguments)
    with open_bench(options.dsn, quick=options.quick) as bench:
        conditions = bench.conditions()
        print("  ".join(f"{name} {value}" for name, value in conditions.items()), flush=True)
        if options.quick:
            print("quick: fewer jobs, once; not figures to quote")
        reports = [_measure(CLAIMS[name], bench) for name in options.claims or CLAIMS]
    if options.json:
        document = {"conditions": conditions, "quick": options.quick, "claims": [each.as_json() for each in reports]}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    missed = sum(verdict.passed is False for report in reports for verdict in report.verdicts)
    print(f"\n{missed or 'no'} claim{'s' * (missed != 1)} missed")
    return 1 if missed else 0


def _measure(claim: Callable[[Bench], Report], bench: Bench) -> Report:
    steal, started = Steal(), time.monotonic()
    report = claim(bench)
    report.steal_percent, report.seconds = steal.percent(), time.monotonic() - started
    print("", *report.lines(), sep="\n", flush=True)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="The measurements behind README's numbers."
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"which: {', '.join(CLAIMS)} (all of them)")
    parser.add_argument("--quick", action="store_true", help="fewer jobs, and once: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and every sample there too")
    parser.add_argument(
        "--dsn", help="measure on this server (its role must be able to create databases) instead of one of our own"
    )
    parser.epilog = "Exit code 1 if a claim missed its bar."
    return parser


def _checked(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    for name in options.claims:
        if name not in CLAIMS:
            parser.error(f"there is no claim {name!r}: choose from {', '.join(CLAIMS)}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
