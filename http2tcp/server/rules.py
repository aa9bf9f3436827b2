"""Rules of `allow` and `deny`: how an operator writes them, and what they match. Pure.

    bastion:22          a name, as the client writes it
    *.prod.svc:22       every name below prod.svc
    10.20.0.0/16:5432   a network of addresses, also if a name resolves to one of them; or a single address
    [fd00::/8]:22
    db:5432-5439        ports: one, a range, or * for all
    *:443               every host
    unix:/run/x.sock    a Unix socket, which no other rule matches

A rule with a name matches only names, and a rule with a network matches only addresses. Addresses are checked after the
look-up, so `deny = ["10.0.0.0/8:*"]` applies to every name that resolves to such an address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

from http2tcp.address import (
    Address,
    IPAddress,
    IPNetwork,
    TCPAddress,
    UnixAddress,
    find_network,
    parse_destination,
    parse_host,
)
from http2tcp.errors import AddressError

_MAX_PORT = 65535
# Words that mean every host in other programs. No machine has such a name, so a rule with one of them is an error.
_EVERYWHERE = ("any", "all", "0.0.0.0", "[::]")  # noqa: S104  (nothing is bound)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


class _Kind(Enum):
    ANY = "any host"
    NAME = "a name"
    SUFFIX = "the names below one"
    NETWORK = "addresses"
    UNIX = "a Unix socket"


class Rule(NamedTuple):
    """One rule of `allow` or `deny`. `str(rule)` is the rule as it was written."""

    text: str
    kind: _Kind
    #: The name, the suffix with the dot before it, or the path; empty for any host and for addresses.
    name: str = ""
    network: IPNetwork | None = None
    first_port: int = 0
    last_port: int = _MAX_PORT

    def __str__(self) -> str:
        return self.text

    def matches_name(self, destination: Address) -> bool:
        """Return whether the rule matches the name or the Unix socket that the client wrote. `*` matches every host."""
        if isinstance(destination, UnixAddress):
            return self.kind is _Kind.UNIX and destination.path == self.name
        if not self.first_port <= destination.port <= self.last_port:
            return False
        if self.kind is _Kind.ANY:
            return True
        host = _without_dot(destination.host)
        if self.kind is _Kind.NAME:
            return host == self.name
        # Do not match an IPv6 address, whose scope could look like the end of a name: fe80::1%a.example.com.
        return self.kind is _Kind.SUFFIX and host.endswith(self.name) and literal(destination) is None

    def matches_address(self, addresses: Sequence[IPAddress], port: int) -> bool:
        """Return whether the rule matches one of these addresses at this port."""
        if not self.first_port <= port <= self.last_port:
            return False
        if self.kind is _Kind.ANY:
            return True
        network = self.network
        return network is not None and any(
            address.version == network.version and address in network for address in addresses
        )

    def is_about_addresses_at(self, port: int) -> bool:
        """Return whether the rule has a network and includes this port.

        If so, a name must be looked up to know whether the rule matches it.
        """
        return self.kind is _Kind.NETWORK and self.first_port <= port <= self.last_port


def literal(destination: TCPAddress) -> IPAddress | None:
    """Return the destination's IP address if its host is one; None if its host is a name."""
    try:
        return ip_address(destination.host.partition("%")[0])
    except ValueError:
        return None


def _without_dot(name: str) -> str:
    # A single dot at the end stands for the DNS root and does not change the name (RFC 1034, section 3.1).
    return name.removesuffix(".")


def parse_rule(text: str) -> Rule:
    """Parse a rule as the module's docstring describes. Raises AddressError."""
    if text.startswith("unix:"):
        path = parse_destination(text)
        assert isinstance(path, UnixAddress)
        if "*" in path.path:
            raise AddressError(f"{text!a}: a rule for a Unix socket needs its whole path, without a *")
        return Rule(text, _Kind.UNIX, path.path)
    host, colon, ports = text.rpartition(":")
    if _is_ipv6(text):
        # Without brackets, an IPv6 address with a port could be mistaken for another address.
        meant = f"[{host}]:{ports}, or [{text}]:* for every port" if _is_ipv6(host) else f"[{text}]:PORT"
        raise AddressError(f"{text!a}: an IPv6 address needs brackets, so that its port is clear: {meant}")
    # If a bracket or a mask comes after the last colon, the colon belongs to the address, and there is no port.
    if not colon or not host or "]" in ports or "/" in ports or "//" in host:
        raise AddressError(
            f"{text!a}: expected HOST:PORT, such as bastion:22, 10.0.0.0/8:*, [fd00::/8]:22; or unix:/PATH"
        )
    first, last = _parse_ports(ports, text)
    if host.lower() in _EVERYWHERE:
        raise AddressError(f"{text!a}: for every host, write *:{ports}")
    if host != "*" and "*" in host.removeprefix("*."):
        raise AddressError(
            f"{text!a}: a * may stand alone, for all hosts, or before the first dot, as in *.example.com"
        )
    if host == "*":
        return Rule(text, _Kind.ANY, first_port=first, last_port=last)
    if host.startswith("*."):
        return Rule(text, _Kind.SUFFIX, f".{_parse_name(host[2:], text)}", None, first, last)
    network = find_network(host, text)
    if network is not None:
        return Rule(text, _Kind.NETWORK, "", network, first, last)
    return Rule(text, _Kind.NAME, _parse_name(host, text), None, first, last)


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


def _parse_name(name: str, text: str) -> str:
    host = _without_dot(parse_host(name)) if name else ""
    if not host or ip_like(host):
        raise AddressError(f"{text!a}: expected a host name, or an address, before the port")
    return host


def ip_like(host: str) -> bool:
    """Return whether a resolver may read the host as an IPv4 address in any spelling. No real name ends in a number."""
    last = host.rpartition(".")[2]
    return last.isdecimal() or last.startswith("0x")


def _parse_ports(ports: str, text: str) -> tuple[int, int]:
    if ports == "*":
        return 1, _MAX_PORT
    found = _PORTS.fullmatch(ports)
    first = int(found[1]) if found else 0
    last = int(found[2]) if found and found[2] else first
    if not 1 <= first <= last <= _MAX_PORT:
        raise AddressError(f"{text!a}: expected a port after the last colon: 22, 8000-8099, or * for all")
    return first, last
