"""The result as pictures: drain, enqueue and latency, as PNG and as SVG.

Guarantees: bars are medians, whiskers reach from the smallest to the largest sample; what was too slow or failed
is named, with no bar.
Never: shows a figure that is not in the JSON. matplotlib is imported when something is drawn, not before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from benchmarks.peers.interface import DRAIN, ENQUEUE, LATENCY
from benchmarks.peers.runner import FEW

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # type: ignore[import-not-found,unused-ignore]

Json: TypeAlias = Mapping[str, object]
FORMATS = ("png", "svg")
WIDTH, INCHES_PER_BAR, INCHES_AROUND = 9.0, 0.29, 1.25
OURS, OTHERS = "#1f5fbf", "#a9b3be"


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: a panel per figure, side by side, all scales linear from zero.

    figures  name in the JSON -> title of its panel
    """

    workload: str
    title: str
    unit: str
    figures: Mapping[str, str]
    digits: int = 0


CHARTS = (
    Chart(DRAIN, "One worker process: no-op jobs completed per second", "jobs/s", {"drain": "longer is better"}),
    Chart(
        ENQUEUE,
        "One producer process: jobs enqueued and committed per second",
        "jobs/s",
        {"enqueue many": "in batches of 1,000: longer is better", "enqueue one": "one by one: longer is better"},
    ),
    Chart(
        LATENCY,
        "Idle worker, 20 jobs a second: from enqueue's return to the first line of the task",
        "ms",
        {"latency p50": "p50: shorter is better", "latency p99": "p99: shorter is better"},
        digits=1,
    ),
)


def check() -> None:
    """Exits with what to install if matplotlib isn't there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("--plots needs matplotlib: pip install '.[bench]'")


def write(document: Json, directory: Path) -> Iterator[Path]:
    """Draw the charts for which there are figures; where they are."""
    directory.mkdir(parents=True, exist_ok=True)
    for chart in CHARTS:
        if rows := _rows(document, chart):
            yield from _draw(chart, rows, _footnote(document), directory)


def _rows(document: Json, chart: Chart) -> list[Json]:
    """The results that have something to say about it, the best first."""
    results = cast("Sequence[Json]", document["results"])
    wanted = [each for each in results if _median(each, chart) is not None or _trouble(each, chart)]
    best_first = -1 if chart.workload != LATENCY else 1
    return sorted(wanted, key=lambda each: best_first * (_median(each, chart) or best_first * float("inf")))


def _of(result: Json, key: str) -> Json:
    return cast("Json", result[key])


def _median(result: Json, chart: Chart) -> float | None:
    figure = _of(result, "figures").get(next(iter(chart.figures)))
    return None if figure is None else cast("float", cast("Json", figure)["median"])


def _trouble(result: Json, chart: Chart) -> str:
    """Why there is no bar; empty where it wasn't measured."""
    if chart.workload in _of(result, "too_slow"):
        return "too slow to be measured"
    return "failed" if chart.workload in _of(result, "failures") else ""


def _draw(chart: Chart, rows: Sequence[Json], footnote: str, directory: Path) -> Iterator[Path]:
    from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

    picture = Figure(figsize=(WIDTH, INCHES_AROUND + INCHES_PER_BAR * len(rows)))
    panels = picture.subplots(1, len(chart.figures), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, chart.figures.items(), strict=True):
        for place, result in enumerate(rows):
            _bar(axes, chart, result, name, place)
        _dress(axes, title, chart.unit)
    panels[0].set_yticks(range(len(rows)), [_label(each, rows) for each in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    picture.suptitle(chart.title, x=0.01, ha="left", fontsize=11)
    picture.text(0.01, 0.012, footnote, fontsize=6.5, color="#667")
    picture.tight_layout(rect=(0, 0.02, 1, 1))
    for suffix in FORMATS:
        path = directory / f"{chart.workload}.{suffix}"
        picture.savefig(path, dpi=150, facecolor="white")
        yield path


def _bar(axes: Axes, chart: Chart, result: Json, name: str, place: int) -> None:
    figure = cast("Json | None", _of(result, "figures").get(name))
    if figure is None:
        axes.text(0, place, f" {_trouble(result, chart)}", va="center", fontsize=7.5)
        return
    samples, median = cast("Sequence[float]", figure["samples"]), cast("float", figure["median"])
    whisker = [[median - min(samples)], [max(samples) - median]]
    colour = OURS if result["peer"] == "pgqueue" else OTHERS
    axes.barh(place, median, 0.72, color=colour, xerr=whisker, ecolor="#333", capsize=2)
    digits = chart.digits + int(median < FEW)
    axes.text(max(samples), place, f"  {median:,.{digits}f}", va="center", fontsize=7.5)


def _dress(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=8.5, color="#445")
    axes.set_xlabel(unit, fontsize=8.5)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.15)


def _label(result: Json, rows: Sequence[Json]) -> str:
    """Its title, and which configuration where there are several."""
    alone = sum(each["peer"] == result["peer"] for each in rows) == 1
    return str(result["title"] if alone else f"{result['title']}, {result['configuration']}")


def _footnote(document: Json) -> str:
    conditions = _of(document, "conditions")
    where = f"PostgreSQL {conditions.get('server_version')}, {conditions.get('cores')} cores, {conditions.get('cpu')}"
    quick = "; quick: not figures to quote" if document["quick"] else ""
    return f"{where}; fsync and synchronous_commit on; medians, whiskers from smallest to largest run{quick}"
