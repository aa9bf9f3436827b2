"""The completions for fish 3 and later."""

from __future__ import annotations

from collections.abc import Sequence

from tests.generate.described import Described

_HEAD = r"""# fish completions for http2tcp
# @HEADER@

function __http2tcp_server --description 'Whether the command may become a server'
    not __fish_contains_opt -s c client ssh-config
end

function __http2tcp_client --description 'Whether the command may become a client'
    not __fish_contains_opt -s s server
end

function __http2tcp_at_file --description 'Files behind an @'
    set -l start (commandline --current-token | string replace --regex '^(-H|--header=|--proxy=)' '')
    if string match --quiet '@*' -- $start
        set -l name (string sub --start 2 -- $start)
        for file in $name*
            test -d $file; and echo @$file/; or echo @$file
        end
    end
end

complete -c http2tcp -f
"""

_CONDITIONS = {"Server": " -n __http2tcp_server", "Client": " -n __http2tcp_client", "Both": ""}


def script(options: Sequence[Described], header: str) -> str:
    """The script. It ends in a newline."""
    return "\n".join([_HEAD.replace("@HEADER@", header).rstrip("\n"), *map(_line, options), ""])


def _line(option: Described) -> str:
    line = f"complete -c http2tcp{_CONDITIONS[option.group]}"
    for name in option.names:
        line += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
    if option.file:
        line += " -r -F"
    elif option.value is not None:
        line += " -x"
        candidates = [*(["(__http2tcp_at_file)"] if option.at_file else []), *option.choices]
        if candidates:
            line += f" -a {_quoted(' '.join(candidates))}"
    return f"{line} -d {_quoted(option.summary)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
