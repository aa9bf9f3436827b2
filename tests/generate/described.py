"""The table of options as the man page and the completions need it."""

from __future__ import annotations

import re
from typing import NamedTuple

from http2tcp.command import options
from http2tcp.command.ssh_config import AT_FILE


class Described(NamedTuple):
    """One option."""

    #: All its spellings, the short one first.
    names: tuple[str, ...]
    #: What stands for its value in the help; None of a flag.
    value: str | None
    help: str
    #: A paragraph in Markdown; may be empty.
    more: str
    #: Server, Client or Both.
    group: str
    #: Its environment variable, where it has one.
    variable: str | None
    repeatable: bool
    #: Values, or the starts of values.
    choices: tuple[str, ...] = ()
    #: Whether the value is the name of a file.
    file: bool = False
    #: Whether the value may be @ and the name of a file.
    at_file: bool = False

    @property
    def long(self) -> str:
        """Its long spelling."""
        return self.names[-1]

    @property
    def summary(self) -> str:
        """Its help's first sentence, without defaults."""
        text = re.sub(r"\s*\[[^]]*\]$", "", self.help) or self.help.strip("[]")
        first = re.split(r"\.\s|\.$", text)[0]
        return first.replace("(default)", "").strip()


def describe() -> list[Described]:
    """All options, in the order of the reference."""
    described = [
        Described(
            names=row.names,
            value=row.value,
            help=" ".join(row.help_text.split()),
            more=row.more,
            group=row.mode.capitalize(),
            variable=row.variable if row.from_environment else None,
            repeatable=row.repeatable,
            choices=() if row.kind is None else row.kind.choices,
            file=row.kind is not None and row.kind.file,
            at_file=bool(set(row.names) & set(AT_FILE)),
        )
        for row in options.rows()
    ]
    order = {"Server": 0, "Client": 1, "Both": 2}
    return sorted(described, key=lambda option: order[option.group])
