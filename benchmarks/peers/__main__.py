"""`python -m benchmarks.peers [--only NAME,..] [--workload NAME,..] [--quick] [--runs N] [--dsn DSN] [--json FILE]
[--plots DIR] [--cache DIR]`: pgqueue and its peers on one PostgreSQL server, each as it comes and at its fastest."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import open_bench
from benchmarks.machine import Steal, end_in_order_on_sigterm
from benchmarks.peers import table
from benchmarks.peers.install import DEFAULT_CACHE
from benchmarks.peers.interface import WORKLOADS
from benchmarks.peers.registry import PEERS
from benchmarks.peers.runner import run

MUST_BE_ON = ("fsync", "synchronous_commit")


def main(arguments: Sequence[str]) -> int:
    """Measure and show; 1 if a peer failed or was skipped. Being too slow is a finding, not a failure."""
    options = _parser().parse_args(arguments)
    if options.plots is not None:
        from benchmarks.peers import plots  # matplotlib is optional: not having it is said before the measurements

        plots.check()
    end_in_order_on_sigterm()
    with open_bench(options.dsn, quick=options.quick) as bench:
        conditions = _durable(bench.conditions(), options.dsn)
        print("  ".join(f"{name} {value}" for name, value in conditions.items()), flush=True)
        steal, before = Steal(), _load()
        peers = [PEERS[name] for name in options.only]
        outcome = run(bench, peers, options.workload, rounds=1 if options.quick else options.runs, cache=options.cache)
    machine = {"load_before": before, "load_after": _load(), "steal_percent": steal.percent()}
    document = table.as_json(outcome, {**conditions, **machine}, quick=options.quick)
    print("", *table.lines(outcome, machine, quick=options.quick), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.plots is not None:
        for path in plots.write(document, options.plots):
            print(f"wrote {path}")
    return 1 if outcome.skipped or any(result.failures for result in outcome.results) else 0


def _durable(conditions: dict[str, object], dsn: str | None) -> Mapping[str, object]:
    """The conditions, if the server's commits are durable. Exits if they aren't: such figures would mean nothing."""
    off = [name for name in MUST_BE_ON if conditions.get(name) == "off"]
    if off:
        raise SystemExit(
            f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off on {dsn}: a commit there is no promise,"
            " so its figures would be none; measure on a server where they are on"
        )
    return conditions


def _load() -> float | None:
    """Of the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="pgqueue and its peers on one PostgreSQL server, each as it comes and at its fastest.",
        epilog="Exit code 1 if a peer could not be measured; the table says why.",
    )
    parser.add_argument(
        "--only", type=_names(PEERS), default=list(PEERS), metavar="NAME,..", help=f"of {', '.join(PEERS)} (all)"
    )
    parser.add_argument(
        "--workload", type=_names(WORKLOADS), default=list(WORKLOADS), metavar="NAME,..", help=f"of {WORKLOADS} (all)"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, and once: to see that it works")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="how often each is measured (3)")
    parser.add_argument("--dsn", help="measure on this server instead of one of our own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions, versions and every sample there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw drain, enqueue and latency there, PNG and SVG")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, metavar="DIR", help=f"of peers ({DEFAULT_CACHE})")
    return parser


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names of these, in the order in which they are known."""

    def read(text: str) -> list[str]:
        wanted = [name.strip() for name in text.split(",")]
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name!r}: choose from {', '.join(known)}")
        return [name for name in known if name in wanted]

    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
