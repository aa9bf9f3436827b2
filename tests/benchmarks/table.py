"""Medians, ratios, and the table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.drivers import Sample

#: The measurements of a row by contender, one sample for each round.
Samples = dict[str, list[Sample]]
#: The contender that the goals are for.
SUBJECT = "http2tcp"

_RATIOS = ("socat", "haproxy")


@dataclass(frozen=True)
class Ask:
    """A goal for a figure: a number, or a multiple of another contender's figure."""

    at_most: float | None = None
    at_least: float | None = None
    of: str | None = None

    def __str__(self) -> str:
        sign, bound = ("≤", self.at_most) if self.at_most is not None else ("≥", self.at_least)
        return f"{sign} {bound:g}" + (f" × {self.of}" if self.of else "")

    def verdict(self, medians: Mapping[str, float]) -> str:
        """`yes` or `no` with what was measured; `?` if a figure is missing."""
        ours, base = medians.get(SUBJECT), 1.0 if self.of is None else medians.get(self.of)
        if ours is None or not base:
            return "?"
        measured = ours / base
        met = measured <= self.at_most if self.at_most is not None else measured >= (self.at_least or 0)
        return f"{'yes' if met else 'no'} ({_short(measured)})"


@dataclass(frozen=True)
class Figure:
    """One line of the table: the key of its samples, its title, its goal."""

    key: str
    title: str
    asks: tuple[Ask, ...] = ()


def medians(samples: Samples, key: str) -> dict[str, float]:
    """The median of each contender that has this figure."""
    return {name: median(s[key] for s in taken) for name, taken in samples.items() if taken and key in taken[0]}


def markdown(columns: Sequence[str], measured: Sequence[tuple[Figure, Samples]]) -> str:
    """The table."""
    heads = ["", *columns, *(f"÷ {name}" for name in _RATIOS), "asked", "met"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 3), "---", "---"]]
    for figure, samples in measured:
        values = medians(samples, figure.key)
        cells = [_short(values[name]) if name in values else "–" for name in columns]
        for name in _RATIOS:
            known = values.get(name) and SUBJECT in values
            cells.append(f"{values[SUBJECT] / values[name]:.2f}" if known else "–")
        asked = "; ".join(map(str, figure.asks))
        met = "; ".join(ask.verdict(values) for ask in figure.asks)
        lines.append([figure.title, *cells, asked, met])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(_pad, line, widths, heads)) + " |" for line in lines)


def _pad(cell: str, width: int, head: str) -> str:
    if set(cell) <= {"-", ":"} and len(cell) >= 3:
        return "-" * (width - cell.count(":")) + cell[3:]
    return cell.ljust(width) if head in ("", "asked", "met") else cell.rjust(width)


def _short(value: float) -> str:
    """Three significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
