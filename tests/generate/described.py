"""The command's options as plain data: what --help is made from."""

from __future__ import annotations

import re
from typing import NamedTuple

import click

from http2tcp.command.cli import command
from http2tcp.command.ssh_config import AT_FILE
from http2tcp.command.values import ENV_PREFIX
from http2tcp.protocol.transport import Transport

# What a value may be where no click.Choice says so. An ending without a blank is the start of a value.
_CHOICES = {
    "transport": ("auto", *(transport.value for transport in Transport)),
    "proxy": ("http://", "https://", "socks5://", "socks5h://"),
    "trusted_proxy": ("unix",),
}


class Described(NamedTuple):
    """One option."""

    #: All its spellings, the short one first.
    names: tuple[str, ...]
    #: What stands for its value in the help; None of a flag.
    value: str | None
    help: str
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
    """All options, in the order of the help."""
    context = click.Context(command)
    options = []
    for param in command.get_params(context):
        assert isinstance(param, click.Option)
        name = param.name or ""
        choices = _CHOICES.get(name, ())
        if isinstance(param.type, click.Choice):
            choices = tuple(map(str, param.type.choices))
        value = None if param.is_flag else param.make_metavar(context)
        options.append(
            Described(
                names=tuple(sorted(param.opts, key=len)),
                value=value,
                help=" ".join((param.help or "").split()),
                group=getattr(param, "group", "Both"),
                variable=f"{ENV_PREFIX}_{name.upper()}" if param.allow_from_autoenv else None,
                repeatable=param.multiple,
                choices=choices,
                file=value == "FILE",
                at_file=bool(set(param.opts) & set(AT_FILE)),
            )
        )
    order = {"Server": 0, "Client": 1, "Both": 2}
    return sorted(options, key=lambda option: order[option.group])
