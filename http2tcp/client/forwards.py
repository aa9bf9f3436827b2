"""The forwards of -l, -L and -D: where to listen, and where the connections lead. No I/O. Loaded only if needed."""

from __future__ import annotations

import re
from typing import NamedTuple

from http2tcp.address import Address, parse_destination, parse_listen
from http2tcp.errors import AddressError

# Matches one field of -L or -D: a path, a text in brackets, or a text without colons and brackets; then a colon or the
# end.
_FIELD = re.compile(r"((?:unix:)?/[^:]*|\[[^][]*\]|[^][:]*)(:|\Z)")

_EXPECTED_LOCAL = "expected [BIND:]PORT:HOST:HOSTPORT, with IPv6 addresses in brackets and paths for Unix sockets"
_EXPECTED_DYNAMIC = "expected [BIND:]PORT, with IPv6 addresses in brackets, or a Unix socket's path"


class Forward(NamedTuple):
    """A local address to listen on, and where the connections to it lead."""

    listen: Address
    #: None: the client's destination (-d), or, without -d, the server's default destination.
    destination: Address | None = None
    #: Whether each connection names its own destination by SOCKS5.
    socks: bool = False

    def __str__(self) -> str:
        if self.socks:
            return f"{self.listen}, a SOCKS5 proxy"
        return f"{self.listen}, leads to {self.destination or 'the default destination of the server'}"


def parse_local_forward(text: str) -> Forward:
    """Parse `[bind:]port:host:hostport`, like ssh's -L. Either side may be a Unix socket's path (`/p` or `unix:/p`)."""
    fields = _fields(text)
    # The remote side is the last field (a Unix socket) or the last two (a host and its port).
    size = 1 if fields and _is_path(fields[-1]) else 2
    listen, remote = _local(fields[:-size]), fields[-size:]
    if listen is None or (size == 2 and _is_path(remote[0])):
        raise AddressError(f"{text!a}: {_EXPECTED_LOCAL}")
    return Forward(listen, parse_destination(_address(remote)))


def parse_dynamic_forward(text: str) -> Forward:
    """Parse `[bind:]port`, like ssh's -D, or a Unix socket's path."""
    listen = _local(_fields(text))
    if listen is None:
        raise AddressError(f"{text!a}: {_EXPECTED_DYNAMIC}")
    return Forward(listen, socks=True)


def _fields(text: str) -> list[str]:
    """Split the text at the colons outside of brackets. Return an empty list if the brackets do not match."""
    fields, start = [], 0
    while match := _FIELD.match(text, start):
        fields.append(match[1])
        if not match[2]:
            return fields
        start = match.end()
    return []


def _local(fields: list[str]) -> Address | None:
    """Return the address to listen on: a path, a loopback port, or a bind address and port. None for other fields."""
    match fields:
        case [path] if _is_path(path):
            return parse_listen(_address(fields))
        case [port] if port.isdecimal():
            return parse_listen(port)
        case ["" | "*", port]:
            return parse_listen(f":{port}")
        case [bind, port] if not _is_path(bind) and not _is_path(port):
            return parse_listen(f"{bind}:{port}")
        case _:
            return None


def _is_path(field: str) -> bool:
    return field.startswith(("/", "unix:/"))


def _address(fields: list[str]) -> str:
    text = ":".join(fields)
    return f"unix:{text}" if text.startswith("/") else text
