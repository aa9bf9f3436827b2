"""The text of the figures, read by Prometheus's own parser."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from http2tcp.server.prometheus import Counter, Family, Histogram, Reading, Values, exposition


def read(*families: Family) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and its labels. A sample that comes twice is a failure."""
    samples = [sample for family in text_string_to_metric_families(exposition(families)) for sample in family.samples]
    read = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(read) == len(samples)
    return read


def of(name: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_a_counter_is_there_as_0_before_anything_happened_and_rises() -> None:
    counter = Counter("http2tcp_things_total", "Things.")
    assert exposition([counter]) == (
        "# HELP http2tcp_things_total Things.\n# TYPE http2tcp_things_total counter\nhttp2tcp_things_total 0\n"
    )
    counter.add()
    counter.add(amount=41)
    assert read(counter) == {of("http2tcp_things_total"): 42}


def test_known_labels_are_there_as_0_and_others_come_as_they_are_counted() -> None:
    counter = Counter("things_total", "Things.", ("status", "reason"), [("401", "denied"), ("403", "denied")])
    counter.add("403", "denied")
    counter.add("418", "teapot")
    assert read(counter) == {
        of("things_total", status="401", reason="denied"): 0,
        of("things_total", status="403", reason="denied"): 1,
        of("things_total", status="418", reason="teapot"): 1,
    }


def test_a_wrong_number_of_labels_is_no_line_that_says_something_else() -> None:
    counter = Counter("things_total", "Things.", ("status",))
    counter.add("401", "denied")
    with pytest.raises(ValueError, match="zip"):
        exposition([counter])


def test_a_reading_is_looked_up_anew_each_time() -> None:
    values: dict[Values, float] = {("tcp",): 1}
    reading = Reading("gauge", "open", "Open.", lambda: values, ("transport",))
    assert read(reading) == {of("open", transport="tcp"): 1}
    values["tcp",] = 2
    assert read(reading) == {of("open", transport="tcp"): 2}


def test_each_bucket_of_a_histogram_has_those_below_it_and_the_last_has_all() -> None:
    histogram = Histogram("wait_seconds", "Waits.", [0.1, 1])
    for seconds in (0.05, 0.1, 0.5, 1, 7):
        histogram.observe(seconds)
    assert exposition([histogram]).splitlines()[1:] == [
        "# TYPE wait_seconds histogram",
        'wait_seconds_bucket{le="0.1"} 2',
        'wait_seconds_bucket{le="1"} 4',
        'wait_seconds_bucket{le="+Inf"} 5',
        "wait_seconds_sum 8.65",
        "wait_seconds_count 5",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.0, "3"),
        (0.1, "0.1"),
        (1e-9, "1e-09"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (2**53 + 1, "9007199254740993"),
    ],
)
def test_numbers_are_written_as_prometheus_reads_them(value: float, text: str) -> None:
    reading = Reading("gauge", "number", "A number.", lambda: {(): value})
    assert exposition([reading]).splitlines()[-1] == f"number {text}"
    assert read(reading) == {of("number"): value}


_TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from('\\n\n\r"{}=, #a'))


@given(st.lists(_TEXTS, unique=True, max_size=5), _TEXTS)
def test_a_parser_reads_back_what_a_label_holds_whatever_that_is(names: Sequence[str], help: str) -> None:
    reading = Reading("gauge", "tokens", help, lambda: {(name,): n for n, name in enumerate(names)}, ("token",))
    assert read(reading) == {of("tokens", token=name): n for n, name in enumerate(names)}
    assert exposition([reading]).count("\n") == 2 + len(names)
