"""Parse and write times, rates and counts as people write them. Pure. Every parser raises SettingsError."""

from __future__ import annotations

import re

from http2tcp.errors import SettingsError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"K": 1024, "M": 1024**2, "G": 1024**3}
# The longest time, in seconds: 31 years, more than anybody needs. At this size a float still resolves microseconds.
_LONGEST = 1e9
_MOST = 10**9
# float() would also accept signs, blanks, underscores and the digits of other scripts.
_NUMBER = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Parse a time above 0, such as `90`, `0.5`, `15m`, `8h` or `2d`. Return it in seconds."""
    seconds = _scaled(text, text[-1:], _SECONDS)
    if not 0 < seconds < _LONGEST:
        raise SettingsError(f"{text!a}: expected a time above 0, in seconds or as in 90s, 15m, 8h, 2d")
    return seconds


def parse_rate(text: str) -> float:
    """Parse a rate of at least one byte a second: `65536`, `64K`, `1.5M`, `1G`. K is 1024 bytes."""
    rate = _scaled(text, text[-1:].upper(), _BYTES)
    if not 1 <= rate < 1e15:
        raise SettingsError(f"{text!a}: expected bytes a second, as in 65536, 64K, 10M, 1G")
    return rate


def parse_size(text: str) -> int:
    """Parse a number of bytes, written like the bytes of `parse_rate`."""
    size = _scaled(text, text[-1:].upper(), _BYTES)
    if not 1 <= size < 1e15:
        raise SettingsError(f"{text!a}: expected bytes, as in 65536, 64K, 10M, 1G")
    return int(size)


def parse_count(text: str) -> int:
    """Parse a whole number from 1 on."""
    count = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST)) else 0
    if not 1 <= count <= _MOST:
        raise SettingsError(f"{text!a}: expected a whole number from 1 on")
    return count


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, as in `1 tunnel` or `2 tunnels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def repeated(times: int) -> str:
    """Return words such as `, twice`, to follow the name of an event that happened `times` times; "" for once."""
    return {1: "", 2: ", twice", 3: ", three times"}.get(times, f", {times} times")


def _scaled(text: str, unit: str, units: dict[str, int]) -> float:
    """Return the number, multiplied by its unit; NaN if the text is not a number."""
    number = text[:-1] if unit in units else text
    return float(number) * units.get(unit, 1) if _NUMBER.fullmatch(number) else float("nan")
