"""What a measurement says: figures with their spread, and one sentence per claim that passes or misses its bar.

Guarantees: a figure is the median of its samples and is shown with the smallest and the largest; verdicts are judged
by the median.
Never: measures anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Figure:
    """The samples of one quantity.

    digits  after the point when it is shown
    """

    samples: Sequence[float]
    unit: str = ""
    digits: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Largest less smallest, as a share of the median."""
        return (max(self.samples) - min(self.samples)) / self.median if self.median else 0.0

    def show(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"

    def __str__(self) -> str:
        text = self.show(self.median)
        if len(self.samples) > 1:
            text += f" ({self.show(min(self.samples))}-{self.show(max(self.samples))})"
        return f"{text} {self.unit}".rstrip()

    def over(self, other: Figure) -> Figure:
        """This divided by `other`, sample by sample: what was measured in the same round belongs together."""
        return Figure([mine / theirs for mine, theirs in zip(self.samples, other.samples, strict=True)], digits=2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim as a sentence; `passed` is None where there is no bar."""

    sentence: str
    passed: bool | None

    def __str__(self) -> str:
        return f"{ {None: 'INFO', True: 'PASS', False: 'MISS'}[self.passed] }  {self.sentence}"


@dataclass(slots=True)
class Report:
    """What one file of claims measured.

    method  how it was measured, in a sentence or two
    """

    title: str
    method: str
    figures: dict[str, Figure] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    steal_percent: float | None = None
    seconds: float = 0.0

    def at_least(self, text: str, figure: Figure, bar: float) -> None:
        """Claim that `figure` reaches `bar`; `text` has a {} where the figure goes."""
        self._judge(text, figure, bar, passed=figure.median >= bar, sign="≥")

    def at_most(self, text: str, figure: Figure, bar: float) -> None:
        """Claim that `figure` does not exceed `bar`."""
        self._judge(text, figure, bar, passed=figure.median <= bar, sign="≤")

    def tell(self, text: str, figure: Figure) -> None:
        """State `figure`, without a bar."""
        self.verdicts.append(Verdict(text.format(figure), None))

    def _judge(self, text: str, figure: Figure, bar: float, *, passed: bool, sign: str) -> None:
        self.verdicts.append(Verdict(f"{text.format(figure)}; bar {sign} {figure.show(bar)}", passed))

    def lines(self) -> Iterable[str]:
        """The report as text."""
        steal = "" if self.steal_percent is None else f", steal {self.steal_percent:.1f} %"
        yield f"{self.title}  [{self.seconds:.0f} s{steal}]"
        yield f"  {self.method}"
        width = max(map(len, self.figures), default=0)
        for name, figure in self.figures.items():
            yield f"    {name:<{width}}  {figure}"
        for verdict in self.verdicts:
            yield f"  {verdict}"

    def as_json(self) -> dict[str, object]:
        """The report with every sample."""
        return {
            "title": self.title,
            "method": self.method,
            "seconds": round(self.seconds, 1),
            "steal_percent": self.steal_percent,
            "figures": {
                name: {"unit": figure.unit, "median": figure.median, "samples": list(figure.samples)}
                for name, figure in self.figures.items()
            },
            "verdicts": [{"sentence": verdict.sentence, "passed": verdict.passed} for verdict in self.verdicts],
        }


def interleave(rounds: int, measurements: Mapping[K, Callable[[], T]]) -> dict[K, list[T]]:
    """Take each measurement once per round, in turning order, so that what disturbs the machine disturbs them all."""
    results: dict[K, list[T]] = {name: [] for name in measurements}
    order = list(measurements)
    for number in range(rounds):
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            results[name].append(measurements[name]())
    return results
