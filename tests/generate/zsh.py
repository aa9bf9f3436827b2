"""The completion function for zsh."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.generate.described import Described

_TEMPLATE = r"""#compdef http2tcp
# @HEADER@

local -a server client both
server=(
@SERVER@
)
client=(
@CLIENT@
)
both=(
@BOTH@
)

_http2tcp_at_file() {
    if compset -P @; then
        _files
    elif (( $# )); then
        compadd -S '' -- "$@"
    else
        _message 'NAME: VALUE, or @FILE'
    fi
}

# Of the two modes, only the options of the one that was chosen.
local mode=${words[(r)(-s|--server|-c|--client|--ssh-config|--ssh-config=*)]}
case $mode in
    (-s|--server) client=() ;;
    (-c|--client|--ssh-config*) server=() ;;
esac
_arguments -s -S : $server $client $both
"""


def script(options: Sequence[Described], header: str) -> str:
    """The function. It ends in a newline."""
    text = _TEMPLATE.replace("@HEADER@", header)
    for group in ("Server", "Client", "Both"):
        specs = [f"    {_quoted(spec)}" for option in options if option.group == group for spec in _specs(option)]
        text = text.replace(f"@{group.upper()}@", "\n".join(specs))
    return text


def _specs(option: Described) -> list[str]:
    """One spec of _arguments for each spelling."""
    if option.long in ("--help", "--version", "--demo"):
        before = "(- *)"
    elif option.long in ("--server", "--client"):
        before = "(-s --server -c --client)"
    elif option.repeatable:
        before = "*"
    else:
        before = f"({' '.join(option.names)})"
    explained = "[" + re.sub(r"[][]", r"\\\g<0>", option.summary) + "]"
    if option.value is None:
        return [f"{before}{name}{explained}" for name in option.names]
    message = option.value.replace("[", r"\[").replace("]", r"\]").replace(":", r"\:")
    rest = f"{explained}:{message}:{_action(option)}"
    return [f"{before}{name}{'=' if name.startswith('--') else '+'}{rest}" for name in option.names]


def _action(option: Described) -> str:
    if option.file:
        return "_files"
    if option.at_file:
        return " ".join(["_http2tcp_at_file", *(choice.replace(":", r"\:") for choice in option.choices)])
    if option.choices:
        return f"({' '.join(option.choices)})"
    return " "


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
