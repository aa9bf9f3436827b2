"""Counters, gauges and histograms, and their text for Prometheus. Pure: no clock. Not thread-safe: there is no lock.

The text is version 0.0.4 of https://prometheus.io/docs/instrumenting/exposition_formats/, which Prometheus and all
compatible collectors read. Figures are in base units, and the name of a counter ends in `_total`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: The values of a series' labels, in the order of its family's `labels`.
Values = tuple[str, ...]


class Sample(NamedTuple):
    """One line of the text. `suffix` is added to the family's name; only histograms have suffixes."""

    suffix: str
    labels: Sequence[tuple[str, str]]
    value: float


class Family(Protocol):
    """All series that have one name."""

    name: str
    kind: str
    help: str
    labels: Sequence[str]

    def samples(self) -> Iterator[Sample]:
        """Return the samples at this moment."""


class Counter:
    """A number that only grows, for each combination of its labels' values."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), known: Iterable[Values] = ()) -> None:
        """Set the combinations in `known` to 0 from the start, so that Prometheus sees their first increase."""
        self.name = name
        self.help = help
        self.labels = labels
        self._values = dict.fromkeys(known if labels else [()], 0.0)

    def add(self, *values: str, amount: float = 1) -> None:
        """Add 1, or `amount`, for these values of the labels."""
        self._values[values] = self._values.get(values, 0) + amount

    def of(self, *values: str) -> float:
        """Return the number for these values of the labels."""
        return self._values.get(values, 0)

    def samples(self) -> Iterator[Sample]:
        """Return one sample for each combination of values."""
        return (Sample("", tuple(zip(self.labels, values, strict=True)), n) for values, n in self._values.items())


class Reading:
    """A family whose numbers are read from elsewhere whenever /metrics is requested."""

    def __init__(
        self,
        kind: str,
        name: str,
        help: str,
        read: Callable[[], Mapping[Values, float]],
        labels: Sequence[str] = (),
    ) -> None:
        """`kind` is gauge or counter. For a counter, the numbers that `read` returns must never become smaller."""
        self.kind = kind
        self.name = name
        self.help = help
        self.labels = labels
        self._read = read

    def samples(self) -> Iterator[Sample]:
        """Return one sample for each combination of values."""
        return (Sample("", tuple(zip(self.labels, values, strict=True)), n) for values, n in self._read().items())


class Histogram:
    """Counts observations by size: for each bound, how many observations were at most as large as the bound."""

    kind = "histogram"
    labels: Sequence[str] = ()

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        """`bounds` are in rising order. Observations above the last bound are counted as well, up to infinity."""
        self.name = name
        self.help = help
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[Sample]:
        """Yield the buckets, each including all smaller ones; then the sum and the number of all observations."""
        for bound, count in zip(self._bounds, accumulate(self._counts), strict=True):
            yield Sample("_bucket", (("le", _number(bound)),), count)
        yield Sample("_sum", (), self._sum)
        yield Sample("_count", (), sum(self._counts))


def exposition(families: Iterable[Family]) -> str:
    """Return the text of all families at this moment."""
    return "".join(line for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escaped(family.help)}\n# TYPE {family.name} {family.kind}\n"
    for suffix, labels, value in family.samples():
        pairs = ",".join(f'{name}="{_escaped(text, quote=True)}"' for name, text in labels)
        yield f"{family.name}{suffix}{f'{{{pairs}}}' if pairs else ''} {_number(value)}\n"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    # Write whole numbers exactly, whatever their size. For other numbers use repr, which Go's parser can read.
    return str(int(value)) if value == int(value) else repr(value)
