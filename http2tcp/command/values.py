"""The kinds of values that options take: how to parse each, and how the help and the documentation describe it."""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import click

from http2tcp.address import parse_destination, parse_endpoint, parse_host, parse_listen
from http2tcp.errors import Http2tcpError, SettingsError, os_reason
from http2tcp.protocol.transport import MIN_KEEPALIVE, Transport

if TYPE_CHECKING:
    from http2tcp.address import IPNetwork
    from http2tcp.client.forwards import Forward
    from http2tcp.server.rules import Rule

#: The value of `--transport` that means the first transport that gets through.
AUTO = "auto"

V = TypeVar("V")


def text_of(key: str | None) -> str:
    """Return the key of click's `Context.meta` under which an option's text is kept for --ssh-config."""
    return f"http2tcp.{key}"


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Say why a text file could not be read."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else os_reason(error)


# --- strings to values ------------------------------------------------------------------------


class Kind(click.ParamType, Generic[V]):  # type: ignore[type-arg]  # click's is generic from 8.4 on
    """A kind of value: the parser for an option's text, and how the value is described and written."""

    def __init__(
        self,
        name: str,
        parse: Callable[[str], V],
        *,
        toml: str,
        plural: str = "",
        number: bool = False,
        file: bool = False,
        choices: tuple[str, ...] = (),
    ) -> None:
        #: The placeholder for the value in the help, such as FILE.
        self.name = name
        #: Turns the text into the value. Raises Http2tcpError.
        self.parse = parse
        #: What one value is in the configuration file, and (`plural`) what a list of them is, in the words of
        #: docs/configuration.md.
        self.toml = toml
        self.plural = plural
        #: Whether the configuration file may have a number in place of a text.
        self.number = number
        #: Whether the value is a file name.
        self.file = file
        #: The possible values, or their possible beginnings, for the shells' completions.
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        # --ssh-config was given if its value is a str: while click parses, an option that was not given has a marker of
        # click's as its value, not None.
        if ctx is not None and isinstance(ctx.params.get("ssh_config"), str):
            from http2tcp.command.ssh_config import has_token, sample

            # The block repeats the text as the user gave it. Check what ssh will make of it, by a sample.
            ctx.meta.setdefault(text_of(param.name if param is not None else None), []).append(value)
            if (self is HEADER and value.startswith("@")) or (self is FILE and has_token(value)):
                return ()  # the user who runs ssh needs the file; it may not exist here
            value = sample(value)
        try:
            return self.parse(value)
        except Http2tcpError as error:
            self.fail(str(error), param, ctx)

    # The variable of a repeatable option has one value on each line. By default click splits it at blanks, but a header
    # field contains blanks.
    envvar_list_splitter = "\n"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line.strip() for line in rv.split("\n") if line.strip()]


def _parse_header(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `Name: value`, or `@FILE`, a file with one `Name: value` on each line."""
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
    """Parse a pin: `sha256//BASE64` as curl writes it, only the base64 part, or 64 hexadecimal digits."""
    value = text.removeprefix("sha256//")
    try:
        digest = bytes.fromhex(value) if len(value) == 64 else b64decode(value, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise SettingsError("expected the SHA-256 of a public key: sha256//BASE64, or 64 hexadecimal digits")
    return digest


def _parse_file(text: str) -> str:
    # Do not open the file here: it may be a pipe, which can be read only once, by the code that uses it.
    if not os.path.exists(text):
        raise SettingsError(f"{text!a}: no such file")
    if os.path.isdir(text) or not os.access(text, os.R_OK):
        raise SettingsError(f"{text!a}: cannot be read")
    return text


def _parse_origin(text: str) -> str:
    from http2tcp.server.settings import check_origin

    check_origin(text)
    return text


def _parse_trusted_proxy(text: str) -> IPNetwork | Literal["unix"]:
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


def _parse_duration_or_zero(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else _parse_duration(text)


def _parse_size(text: str) -> int:
    from http2tcp.units import parse_size

    return parse_size(text)


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


def _parse_log_format(text: str) -> Literal["text", "json"]:
    if text == "text":
        return "text"
    if text == "json":
        return "json"
    raise SettingsError(f"{text!a}: expected text or json")


def _parse_local_forward(text: str) -> Forward:
    from http2tcp.client.forwards import parse_local_forward

    return parse_local_forward(text)


def _parse_dynamic_forward(text: str) -> Forward:
    from http2tcp.client.forwards import parse_dynamic_forward

    return parse_dynamic_forward(text)


_A_FILE = "a file"
_A_TIME = "a time"
_TRANSPORTS = (AUTO, *(transport.value for transport in Transport))

BYTES = Kind("BYTES", _parse_rate, toml="bytes a second", number=True)
COUNT = Kind("N", _parse_count, toml="a whole number", number=True)
DESTINATION = Kind("HOST:PORT", parse_destination, toml='an address, such as `"localhost:22"`')
DYNAMIC_FORWARD = Kind("[BIND:]PORT", _parse_dynamic_forward, toml="text")
ENDPOINT = Kind("URL", parse_endpoint, toml="text")
NODE = Kind("NAME", str, toml="a name")
SIZE = Kind("BYTES", _parse_size, toml="bytes", number=True)
FIELD_NAME = Kind("NAME", _parse_field_name, toml="the name of a header field")
#: A file that must exist.
FILE = Kind("FILE", _parse_file, toml=_A_FILE, file=True)
#: A file that http2tcp creates, or whose reader reports the error if it cannot be opened.
FILE_NAME = Kind("FILE", str, toml=_A_FILE, file=True)
HEADER = Kind("NAME: VALUE", _parse_header, toml="text")
HOST = Kind("NAME", parse_host, toml="a name", plural="a list of names")
KEEPALIVE = Kind("TIME", _parse_keepalive, toml=_A_TIME, number=True)
LISTEN = Kind(
    "[HOST:]PORT",
    parse_listen,
    toml="an address",
    plural='a list of addresses, such as `"127.0.0.1:12345"` or `"unix:/run/http2tcp/http2tcp.sock"`',
)
LOCAL_FORWARD = Kind("[BIND:]PORT:HOST:HOSTPORT", _parse_local_forward, toml="text")
LOG_FORMAT = Kind("[text|json]", _parse_log_format, toml='`"text"` or `"json"`', choices=("text", "json"))
NAME = Kind("NAME", str, toml="text")
NETWORK = Kind(
    "NETWORK",
    _parse_trusted_proxy,
    toml="a network",
    plural='a list of addresses, networks and `"unix"`',
    choices=("unix",),
)
ORIGIN = Kind("ORIGIN", _parse_origin, toml="an origin", plural='a list of origins, such as `"https://example.com"`')
PATH = Kind("/PATH", _parse_path, toml="text that begins with `/`")
PIN = Kind("HASH", _parse_pin, toml="text")
#: A proxy's URL, or @FILE. It is parsed later, since the file has to be read first. No message may show its password.
PROXY_URL = Kind("URL", str, toml="text", choices=("http://", "https://", "socks5://", "socks5h://"))
RULE = Kind("RULE", _parse_rule, toml="a [rule](#rules)", plural="a list of [rules](#rules)")
SECRET = Kind("TOKEN", str, toml="text")
TEXT = Kind("TEXT", str, toml="text")
TIME = Kind("TIME", _parse_duration, toml=_A_TIME, number=True)
TIME_OR_ZERO = Kind("TIME", _parse_duration_or_zero, toml=_A_TIME, number=True)
TRANSPORT = Kind("NAME", _parse_transport, toml="text", choices=_TRANSPORTS)
