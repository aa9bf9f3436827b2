"""examples/http2tcp.toml: every key with a comment, and two tokens."""

from __future__ import annotations

import textwrap
from typing import Any

from http2tcp.command import options
from http2tcp.command.options import Option

_HEAD = """\
# A server's configuration: http2tcp -s --config /etc/http2tcp/http2tcp.toml
#
# Every key is here. Those behind a "#" have the value that they have anyway, or an example of one.
# What the command line or the environment says wins over this file. After a change:
#
#   http2tcp -s --check --config /etc/http2tcp/http2tcp.toml     check the file, and show what it amounts to
#   systemctl reload http2tcp                                    SIGHUP; open tunnels stay
#
# The file holds no secret: of a token it has the hash. docs/configuration.md is the reference.
# Made from http2tcp/command/options.py by `python -m tests.generate`.
"""

# The rules come last, beside the tokens.
_SECTIONS = (options.LISTENING, options.ADDRESSES, options.LIMITS, options.MESSAGES, options.ACCESS)
_UNITS = (
    '# Times are in seconds, or text with a unit: "90s", "15m", "8h", "2d". Rates are bytes a second, or "64K", '
    '"10M", "1G".\n'
)

_TOKENS = """
# From here to the end, each line belongs to the [[token]] above it: what is for all tokens stands before.

# `http2tcp --new-token alice` prints a token once, and these lines for it.
[[token]]
name = "alice"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
# Good to the end of that day, in UTC; her open tunnels end then.
expires = 2030-12-31
# Names, all names below one, networks, a Unix socket; with a port, a range of ports, or "*".
allow = [
    "bastion:22",
    "*.prod.svc:22",
    "10.20.0.0/16:5432-5439",
    "[fd00::/8]:22",
    "unix:/run/postgresql/.s.PGSQL.5432",
]
deny = ["10.20.8.0/24:*"]
max_tunnels = 20

# Carol has no rules of her own: the `allow` at the top is for her.
[[token]]
name = "carol's laptop"
sha256 = "1111111111111111111111111111111111111111111111111111111111111111"
"""


def configuration() -> str:
    """The file."""
    rows = [row for row in options.rows() if row.mode != "client" and row.in_file]
    parts = [_HEAD]
    for section in _SECTIONS:
        parts.append(f"# --- {section.lower()} ".ljust(96, "-") + "\n")
        if section is options.LIMITS:
            parts.append(_UNITS)
        parts += [_entry(row) for row in rows if row.group == section]
    assert {row.group for row in rows} == set(_SECTIONS)
    return "\n".join(parts) + _TOKENS


def _entry(row: Option[Any]) -> str:
    comment = textwrap.wrap(row.comment or row.help, 116, break_long_words=False, break_on_hyphens=False)
    assert row.sample, f"{row.long}: an example needs a value"
    line = f"{'' if row.in_force else '#'}{row.key} = {row.sample}\n"
    return "".join(f"# {each}\n" for each in comment) + line
