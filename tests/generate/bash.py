"""The completion script for bash 4 and later. It needs nothing of the bash-completion package."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tests.generate.described import Described

_TEMPLATE = r"""# bash completion for http2tcp
# @HEADER@

_http2tcp() {
    local current=$2 before option word mode=any given=' ' candidates=()
    COMPREPLY=()

    # What stands before the cursor's word. COMP_WORDS does not do: bash splits at `=`, `:` and `@` too.
    before=${COMP_LINE:0:COMP_POINT}
    before=${before%"$current"}
    if [[ $before =~ [[:space:]](-[[:alnum:]]|--[[:alnum:]-]+)([[:space:]]+|=)[\"\']?$ ]]; then
        option=${BASH_REMATCH[1]}
    fi

    case $option in
@VALUES@
    esac

    # What was given is not offered again, and of the two modes only the options of the one that was chosen.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
@SHORT@
@REPEATABLE@) continue ;;
        esac
        case $word in
            --server) mode=server ;;
            --client | --ssh-config) mode=client ;;
        esac
        given+="$word "
    done
    if [[ $mode != client ]]; then
        candidates+=(
@SERVER@
        )
    fi
    if [[ $mode != server ]]; then
        candidates+=(
@CLIENT@
        )
    fi
    candidates+=(
@BOTH@
    )
    for word in "${candidates[@]}"; do
        if [[ $word == "$current"* && $given != *" $word "* ]]; then
            COMPREPLY+=("$word")
        fi
    done
}

complete -F _http2tcp http2tcp
"""

_FILES = "            compopt -o default\n            return\n            ;;"
_NONE = "            return\n            ;;"
_AT_FILES = r"""            if [[ $current == @* ]]; then
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -f -P @ -- "${current#@}")
                return
            fi
"""


def script(options: Sequence[Described], header: str) -> str:
    """The script. It ends in a newline."""
    values: dict[str, list[str]] = {}
    for option in options:
        if option.value is not None:
            values.setdefault(_reply(option), []).extend(option.names)
    parts = {
        "HEADER": header,
        "VALUES": "\n".join(f"{_pattern(names, 8)})\n{reply}" for reply, names in values.items()),
        "SHORT": "\n".join(
            f"            {short}) word={option.long} ;;"
            for option in options
            for short in option.names[:-1]
            if not option.repeatable
        ),
        "REPEATABLE": _pattern([name for option in options if option.repeatable for name in option.names], 12),
    }
    for group, indent in ("Server", 12), ("Client", 12), ("Both", 8):
        parts[group.upper()] = _filled([option.long for option in options if option.group == group], indent)
    text = _TEMPLATE
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _filled(words: Sequence[str], indent: int) -> str:
    return textwrap.fill(
        " ".join(words), 110, break_on_hyphens=False, initial_indent=" " * indent, subsequent_indent=" " * indent
    )


def _pattern(words: Sequence[str], indent: int) -> str:
    return _filled(" | ".join(words).split(), indent).replace("\n", " \\\n")


def _reply(option: Described) -> str:
    """What completes the option's value, as the body of a case."""
    if option.file:
        return _FILES
    body = _AT_FILES if option.at_file else ""
    if option.choices:
        if any(choice.endswith("/") for choice in option.choices):
            body += "            compopt -o nospace\n"
        body += f"            mapfile -t COMPREPLY < <(compgen -W '{' '.join(option.choices)}' -- \"$current\")\n"
    return body + _NONE
