"""Figures, and their text as Prometheus reads it. Pure: no clock and no lock; one thread counts and reads.

The text is version 0.0.4 of https://prometheus.io/docs/instrumenting/exposition_formats/, which every collector
of that family takes. Names are in base units, and a counter's ends in `_total`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: The values of a series' labels, in the order of its family's.
Values = tuple[str, ...]


class Sample(NamedTuple):
    """One line. `suffix` follows the family's name, and only a histogram's has one."""

    suffix: str
    labels: Sequence[tuple[str, str]]
    value: float


class Family(Protocol):
    """All series of one name."""

    name: str
    kind: str
    help: str
    labels: Sequence[str]

    def samples(self) -> Iterator[Sample]:
        """Its lines, as of now."""


class Counter:
    """A number that only rises, for each combination of its labels' values."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), known: Iterable[Values] = ()) -> None:
        """`known` exist from the start, as 0: a rate needs something to rise from."""
        self.name = name
        self.help = help
        self.labels = labels
        self._values = dict.fromkeys(known if labels else [()], 0.0)

    def add(self, *values: str, amount: float = 1) -> None:
        """Count: once, or `amount` times."""
        self._values[values] = self._values.get(values, 0) + amount

    def of(self, *values: str) -> float:
        """The number of these values."""
        return self._values.get(values, 0)

    def samples(self) -> Iterator[Sample]:
        """One for each combination."""
        return (Sample("", tuple(zip(self.labels, values, strict=True)), n) for values, n in self._values.items())


class Reading:
    """Numbers that are looked up whenever somebody asks for them."""

    def __init__(
        self,
        kind: str,
        name: str,
        help: str,
        read: Callable[[], Mapping[Values, float]],
        labels: Sequence[str] = (),
    ) -> None:
        """`kind` is gauge or counter; a counter's readings may not fall."""
        self.kind = kind
        self.name = name
        self.help = help
        self.labels = labels
        self._read = read

    def samples(self) -> Iterator[Sample]:
        """One for each combination."""
        return (Sample("", tuple(zip(self.labels, values, strict=True)), n) for values, n in self._read().items())


class Histogram:
    """How many observations were at most so large, for each of some bounds."""

    kind = "histogram"
    labels: Sequence[str] = ()

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        """`bounds` rise; what is above the last is counted, too."""
        self.name = name
        self.help = help
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[Sample]:
        """Its buckets, each with those below it; the sum and the number of all."""
        for bound, count in zip(self._bounds, accumulate(self._counts), strict=True):
            yield Sample("_bucket", (("le", _number(bound)),), count)
        yield Sample("_sum", (), self._sum)
        yield Sample("_count", (), sum(self._counts))


def exposition(families: Iterable[Family]) -> str:
    """The text of all families, as of now."""
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
    # An int of any size stays exact; Go's parser takes what repr writes of a float.
    return str(int(value)) if value == int(value) else repr(value)
