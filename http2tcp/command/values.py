"""What the command line's options are made of: their values, their variables, and where a value came from."""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from http2tcp.address import parse_destination, parse_endpoint, parse_host, parse_listen
from http2tcp.errors import Http2tcpError, SettingsError, os_reason
from http2tcp.protocol.transport import MIN_KEEPALIVE, Transport

if TYPE_CHECKING:
    from http2tcp.client.forwards import Forward
    from http2tcp.server.rules import Rule

ENV_PREFIX = "HTTP2TCP"
#: `--transport`'s word for the first that gets through.
AUTO = "auto"
Source = click.core.ParameterSource


class Option(click.Option):
    """An option that knows its group in the help."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def value_from_envvar(self, ctx: click.Context) -> Any:
        value = super().value_from_envvar(ctx)
        if self.multiple and value is not None and not value:
            # click takes an empty variable for an unset one. One of blanks was meant to hold something, such as a pin.
            raise SettingsError(f"{variable(self)} holds blanks alone: it was probably not filled in")
        return value


def variable(param: click.Parameter) -> str:
    """The environment variable of an option."""
    return f"{ENV_PREFIX}_{str(param.name).upper()}"


def on_command_line(ctx: click.Context, name: str) -> bool:
    """Whether it was given there, and not by a variable."""
    return ctx.get_parameter_source(name) is Source.COMMANDLINE


def text_of(param: click.Parameter | None) -> str:
    """Where an option's text is kept for --ssh-config."""
    return f"http2tcp.{param.name if param is not None else None}"


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a file that was meant to hold text gave none."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else os_reason(error)


# --- strings to values ------------------------------------------------------------------------


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A value that one of our own parsers makes."""

    def __init__(self, name: str, parse: Callable[[str], Any], *, number: bool = False) -> None:
        self.name = name
        self._parse = parse
        #: Whether a number says it as well as a text does.
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        # While options are parsed, click has a mark of its own, and not None, for what was not given.
        if ctx is not None and isinstance(ctx.params.get("ssh_config"), str):
            from http2tcp.command.ssh_config import has_token, sample

            # The block repeats the text; what ssh will make of it is checked by a sample.
            ctx.meta.setdefault(text_of(param), []).append(value)
            if (self is HEADER and value.startswith("@")) or (self is FILE and has_token(value)):
                return ()  # a file that ssh's user has; here it is not opened
            value = sample(value)
        try:
            return self._parse(value)
        except Http2tcpError as error:
            self.fail(str(error), param, ctx)

    # Repeatable options split their variable here: a header field holds blanks.
    envvar_list_splitter = "\n"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line.strip() for line in rv.split("\n") if line.strip()]


def _parse_header(text: str) -> tuple[tuple[str, str], ...]:
    """`Name: value`, or `@file` with one such line a line."""
    if not text.startswith("@"):
        return (_parse_field(text),)
    try:
        with open(text[1:], encoding="utf-8") as file:
            return tuple(_parse_field(line) for line in file.read().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the header file {text[1:]}: {why_unreadable(error)}") from error


def _parse_field(line: str) -> tuple[str, str]:
    from http2tcp.client.settings import check_field

    # No message shows the line: it may hold a secret.
    name, colon, value = line.partition(":")
    name, value = name.strip(), value.strip()
    if not colon:
        raise SettingsError("expected 'Name: value', or @FILE with such lines")
    check_field(name, value)
    return name, value


def _parse_pin(text: str) -> bytes:
    """`sha256//BASE64` as curl writes it, the base64 alone, or 64 hexadecimal digits."""
    value = text.removeprefix("sha256//")
    try:
        digest = bytes.fromhex(value) if len(value) == 64 else b64decode(value, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise SettingsError("expected the SHA-256 of a public key: sha256//BASE64, or 64 hexadecimal digits")
    return digest


def _parse_file(text: str) -> str:
    # It is not opened: a pipe can be read once only, and that is for who uses it.
    if not os.path.exists(text):
        raise SettingsError(f"{text!a}: no such file")
    if os.path.isdir(text) or not os.access(text, os.R_OK):
        raise SettingsError(f"{text!a}: cannot be read")
    return text


def _parse_origin(text: str) -> str:
    from http2tcp.server.settings import check_origin

    check_origin(text)
    return text


def _parse_trusted_proxy(text: str) -> Any:
    from http2tcp.server.settings import parse_trusted_proxy

    return parse_trusted_proxy(text)


def _parse_field_name(text: str) -> str:
    from http2tcp.fields import check_field_name

    check_field_name(text)
    return text


def _parse_path(text: str) -> str:
    from http2tcp.server.settings import check_path

    check_path(text)
    return text


def _parse_rule(text: str) -> Rule:
    from http2tcp.server.rules import parse_rule

    return parse_rule(text)


def _parse_duration(text: str) -> float:
    from http2tcp.units import parse_duration

    return parse_duration(text)


def _parse_keepalive(text: str) -> float:
    from http2tcp.units import parse_duration

    seconds = parse_duration(text)
    if seconds < MIN_KEEPALIVE:
        raise SettingsError(f"{text!a}: expected 1 s at least")
    return seconds


def _parse_rate(text: str) -> float:
    from http2tcp.units import parse_rate

    return parse_rate(text)


def _parse_count(text: str) -> int:
    from http2tcp.units import parse_count

    return parse_count(text)


def _parse_transport(text: str) -> Transport | None:
    if text.lower() == AUTO:
        return None
    transport = Transport.named(text)
    if transport is None:
        known = ", ".join(transport.value for transport in Transport)
        raise SettingsError(f"{text!a}: expected {AUTO}, or one of {known}")
    return transport


def _parse_local_forward(text: str) -> Forward:
    from http2tcp.client.forwards import parse_local_forward

    return parse_local_forward(text)


def _parse_dynamic_forward(text: str) -> Forward:
    from http2tcp.client.forwards import parse_dynamic_forward

    return parse_dynamic_forward(text)


BYTES = _Parsed("BYTES", _parse_rate, number=True)
COUNT = _Parsed("N", _parse_count, number=True)
DESTINATION = _Parsed("HOST:PORT", parse_destination)
DYNAMIC_FORWARD = _Parsed("[BIND:]PORT", _parse_dynamic_forward)
ENDPOINT = _Parsed("URL", parse_endpoint)
FIELD_NAME = _Parsed("NAME", _parse_field_name)
FILE = _Parsed("FILE", _parse_file)
HEADER = _Parsed("NAME: VALUE", _parse_header)
KEEPALIVE = _Parsed("TIME", _parse_keepalive, number=True)
LISTEN = _Parsed("[HOST:]PORT", parse_listen)
LOCAL_FORWARD = _Parsed("[BIND:]PORT:HOST:HOSTPORT", _parse_local_forward)
NETWORK = _Parsed("NETWORK", _parse_trusted_proxy)
ORIGIN = _Parsed("ORIGIN", _parse_origin)
PATH = _Parsed("/PATH", _parse_path)
PIN = _Parsed("HASH", _parse_pin)
RULE = _Parsed("RULE", _parse_rule)
SERVER_NAME = _Parsed("NAME", parse_host)
TIME = _Parsed("TIME", _parse_duration, number=True)
TRANSPORT = _Parsed("NAME", _parse_transport)
