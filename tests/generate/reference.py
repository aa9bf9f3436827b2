"""The tables of docs/options.md and docs/configuration.md. The text around them is written by hand.

A table stands between two comments, which are kept: `<!-- made: NAME -->` and `<!-- /made -->`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from http2tcp.command import options
from http2tcp.command.options import Option

_WIDTH = 120


def options_page(page: str) -> str:
    """The page of all options, with its three tables made anew."""
    for mode in ("server", "client", "both"):
        rows = [row for row in options.rows() if row.mode == mode]
        page = _with(page, mode, "\n".join([*_table(rows), "", *_paragraphs(rows)]))
    return page


def keys_page(page: str) -> str:
    """The page of the configuration file, with its table of keys made anew."""
    rows = [row for row in options.rows() if row.mode != "client" and row.in_file]
    lines = ["| key | value |", "|---|---|", *(f"| `{row.key}` | {_toml(row)} |" for row in rows)]
    return _with(page, "keys", "\n".join(lines))


def _with(page: str, name: str, body: str) -> str:
    pattern = rf"(<!-- made: {name} -->\n).*?(<!-- /made -->)"
    made, count = re.subn(pattern, lambda match: f"{match[1]}\n{body}\n\n{match[2]}", page, flags=re.DOTALL)
    assert count == 1, f"the page has {count} places for {name}"
    return made


def _table(rows: list[Option[Any]]) -> Iterator[str]:
    yield "| option | variable | default | meaning |"
    yield "|---|---|---|---|"
    for row in rows:
        *short, long = row.names
        names = ", ".join(f"`{name}`" for name in [*short, f"{long} {row.value}" if row.value else long])
        variable = f"`{row.variable}`" if row.from_environment else "none"
        meaning = row.help + (" Repeatable." if row.repeatable else "")
        cells = (names, variable, _default(row), meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(row: Option[Any]) -> str:
    if row.kind is None and row.from_environment:
        return "off"
    # A word or a number is what one could type; the rest are words about it.
    return (
        f"`{row.shown}`" if re.fullmatch(r"[\w./-]+", row.shown) and row.shown not in ("never", "stderr") else row.shown
    )


def _paragraphs(rows: list[Option[Any]]) -> Iterator[str]:
    for row in rows:
        if row.more:
            text = f"- `{row.long}`: {row.more}"
            yield textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _toml(row: Option[Any]) -> str:
    if row.kind is None:
        return "`true` or `false`"
    return (row.kind.plural if row.repeatable else "") or row.kind.toml
