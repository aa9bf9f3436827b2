"""Who may go where. Pure: no network, no clock, no log.

A token gives a `Grant`; a grant permits a destination as it was asked for; `forbidden` judges every
address that a permitted name resolves to, whatever spelling it came in.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from http2tcp.address import Address, UnixAddress
from http2tcp.errors import Forbidden, Unauthorized

IPAddress = IPv4Address | IPv6Address

_FORBIDDEN: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("169.254.0.0/16"),  # link-local (RFC 3927), and the metadata service of most clouds
    IPv4Network("100.100.100.200/32"),  # Alibaba Cloud
    IPv4Network("168.63.129.16/32"),  # Azure's WireServer
    IPv4Network("192.0.0.192/32"),  # Oracle Cloud
    IPv6Network("fe80::/10"),  # link-local (RFC 4291, section 2.5.6)
    IPv6Network("fd00:ec2::254/128"),  # Amazon EC2
)

# Where an IPv6 address carries an IPv4 address in its last 32 bits.
_LAST_32_BITS = (
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped (RFC 4291, section 2.5.5.2)
    IPv6Network("::/96"),  # IPv4-compatible (RFC 4291, section 2.5.5.1)
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated (RFC 2765, section 2.1)
    IPv6Network("64:ff9b::/96"),  # NAT64 (RFC 6052, section 2.1)
    IPv6Network("64:ff9b:1::/48"),  # NAT64 for local use (RFC 8215), as a /96
)
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_6TO4 = IPv6Network("2002::/16")  # RFC 3056, section 2
_TEREDO = IPv6Network("2001::/32")  # RFC 4380, section 4
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214, section 6.1: these 32 bits, then the IPv4 address


def forbidden(address: IPAddress) -> bool:
    """Whether the built-in list keeps the address from everybody: link-local and cloud metadata."""
    return any(
        address_there in network
        for address_there in _leads_to(address)
        for network in _FORBIDDEN
        if network.version == address_there.version
    )


def _leads_to(address: IPAddress) -> Iterator[IPAddress]:
    """The address, and every IPv4 address that is embedded in it."""
    yield address
    if isinstance(address, IPv4Address):
        return
    bits = int(address)
    if any(address in network for network in _LAST_32_BITS) or (bits >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(bits & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:
        # RFC 6052, section 2.2: /48, /56 and /64 have 16, 8 and no bits of it before the zero octet.
        yield IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)
        yield IPv4Address((bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFFFFFF)
        yield IPv4Address(bits >> 24 & 0xFFFFFFFF)
    if address in _6TO4:
        yield IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield IPv4Address(bits & 0xFFFFFFFF ^ 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Grant:
    """What an accepted request may do."""

    #: The server's default destination.
    default: Address | None
    #: Only the default may be reached.
    pinned: bool

    def permit(self, destination: Address) -> None:
        """Raises Forbidden. A name that passes has still to have its addresses judged."""
        if destination == self.default:
            return
        # No rule names a Unix socket yet, and the file system is not the network.
        if self.pinned or isinstance(destination, UnixAddress):
            raise Forbidden


@dataclass(frozen=True, slots=True)
class Policy:
    """The server's tokens and its default destination."""

    tokens: Sequence[str] = field(repr=False)
    default: Address | None = None

    def authenticate(self, token: str | None) -> Grant:
        """The grant of a token; without any token configured, of everybody. Raises Unauthorized."""
        if not self.tokens:
            return Grant(self.default, pinned=True)
        if token is None:
            raise Unauthorized
        # Digests have one length, and all of them are compared: time tells nothing.
        presented = _digest(token)
        if not sum([hmac.compare_digest(presented, _digest(known)) for known in self.tokens]):
            raise Unauthorized
        return Grant(self.default, pinned=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
