"""Times, rates and counts: every spelling, and what is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from http2tcp.errors import SettingsError
from http2tcp.units import counted, parse_count, parse_duration, parse_rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5", 0.5), ("90s", 90), ("15m", 900), ("8h", 28800), ("2d", 172800), ("1.5h", 5400), ("1e3", 1000)],
)
def test_a_time_is_in_seconds_or_has_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "rate"), [("65536", 65536), ("64K", 65536), ("64k", 65536), ("1.5M", 1572864), ("1G", 1024**3), ("1", 1)]
)
def test_a_rate_is_in_bytes_a_second_and_its_units_are_by_1024(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("020", 20), ("1000000000", 10**9)])
def test_a_count_is_a_whole_number(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *[(parse_duration, text) for text in ("", "0", "-1", "nan", "inf", "infd", "1e9", "32y", "m", "1h30m", "1 0")],
        *[(parse_rate, text) for text in ("", "0", "0.5", "-1K", "nan", "inf", "10T", "K", "10MB", "1e300G")],
        *[(parse_count, text) for text in ("", "0", "-1", "1.0", "1e3", "²", "1000000001", "9" * 5000, " 1")],
    ],
)
def test_what_is_none_is_told_what_is_expected(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(SettingsError, match="expected"):
        parse(text)


def test_one_is_one_and_not_several() -> None:
    assert [counted(number, "wrong token") for number in (0, 1, 2)] == [
        "0 wrong tokens",
        "1 wrong token",
        "2 wrong tokens",
    ]
