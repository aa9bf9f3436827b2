"""The policy: it decides which client may reach which destination. Pure: no network, no clock, no log.

A token gives a `Grant`. A grant admits a destination as the client wrote it, and gives an `Admission`, which then
checks every address that the destination resolves to. `deny` wins over `allow`, and the built-in list (`forbidden`)
wins over both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from http2tcp.address import Address, IPAddress, UnixAddress
from http2tcp.errors import TokenExpired, Unauthorized
from http2tcp.server.destination_refusals import not_allowed
from http2tcp.server.rules import Rule, literal

#: Networks that no client can reach through the server, whatever the rules say.
BUILT_IN: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("169.254.0.0/16"),  # link-local (RFC 3927), and the metadata service of most clouds
    IPv4Network("100.100.100.200/32"),  # Alibaba Cloud
    IPv4Network("168.63.129.16/32"),  # Azure's WireServer
    IPv4Network("192.0.0.192/32"),  # Oracle Cloud
    IPv6Network("fe80::/10"),  # link-local (RFC 4291, section 2.5.6)
    # Metadata services on IPv6.
    IPv6Network("fd00:ec2::254/128"),  # Amazon EC2
    IPv6Network("fd00:ec2::23/128"),  # Amazon EKS, the credentials of pods
    IPv6Network("fd20:ce::254/128"),  # Google Cloud
    IPv6Network("fd00:c1::a9fe:a9fe/128"),  # Oracle Cloud
    IPv6Network("fd00:100::100:200/128"),  # Alibaba Cloud
    IPv6Network("fd00:a9fe:a9fe::1/128"),  # Akamai, formerly Linode
    IPv6Network("fd00:42::42/128"),  # Scaleway
)

# IPv6 networks whose addresses contain an IPv4 address in their last 32 bits.
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
_LOOPBACK: dict[int, IPAddress] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}

#: What an operator writes for the token without a name, or for a client without a token. No token may have this name.
UNNAMED = "-"

# Reasons for a refusal that only the operator sees, in the log.
_NOT_OPENED = "no rule of allow opens it"
_NOT_NAMED = "no rule of allow names this Unix socket"


def forbidden(address: IPAddress) -> bool:
    """Return whether the built-in list closes the address, as link-local or cloud metadata."""
    return any(
        address_there in network
        for address_there in _leads_to(address)
        for network in BUILT_IN
        if network.version == address_there.version
    )


def _leads_to(address: IPAddress) -> Iterator[IPAddress]:
    """Yield all addresses that a connection to `address` may reach.

    These are `address` itself, any IPv4 addresses embedded in it, and loopback for 0.0.0.0 or ::.
    """
    for each in _embedded(address):
        yield each
        if each.is_unspecified:
            # A connection to 0.0.0.0 or :: goes to 127.0.0.1 or ::1.
            yield _LOOPBACK[each.version]


def _embedded(address: IPAddress) -> Iterator[IPAddress]:
    yield address
    if isinstance(address, IPv4Address):
        return
    bits = int(address)
    if any(address in network for network in _LAST_32_BITS) or (bits >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(bits & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:
        # The prefix may be a /48, a /56 or a /64. Then 16, 8 or no bits of the IPv4 address come before the zero octet
        # (RFC 6052, section 2.2).
        yield IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)
        yield IPv4Address((bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFFFFFF)
        yield IPv4Address(bits >> 24 & 0xFFFFFFFF)
    if address in _6TO4:
        yield IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield IPv4Address(bits & 0xFFFFFFFF ^ 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Token:
    """A client's credential. The server keeps only its digest."""

    #: The token's name in records; empty for a token without a name.
    name: str
    digest: bytes = field(repr=False)
    #: The POSIX time, in seconds, from which on the token is refused.
    expires: float = math.inf
    #: What the token may reach; None: the server's own `allow` applies.
    allow: Sequence[Rule] | None = None
    #: What the token may not reach, in addition to the server's own `deny`.
    deny: Sequence[Rule] = ()
    #: How many tunnels the token may have open at once; None: the limit for all tokens applies.
    max_tunnels: int | None = None


def digest(token: str) -> bytes:
    """Return the SHA-256 of a token. Tokens are random, so a slow hash, as for passwords, would gain nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Policy:
    """The tokens, the rules for all of them, and the default destination.

    If no token is configured, every client may reach the default destination and nothing else. `allow` applies to
    tokens without an `allow` of their own. If neither is given, everything but the built-in list is open. `deny`
    applies to all tokens.
    """

    def __init__(
        self,
        tokens: Sequence[str | Token],
        default: Address | None = None,
        *,
        allow: Sequence[Rule] | None = None,
        deny: Sequence[Rule] = (),
    ) -> None:
        named = [Token("", digest(token)) if isinstance(token, str) else token for token in tokens]
        self._by_digest = {token.digest: token for token in named}
        self._default = default
        self._allow = allow
        self._deny = tuple(deny)

    @property
    def tokens(self) -> list[Token]:
        """All tokens."""
        return list(self._by_digest.values())

    @property
    def asks_for_token(self) -> bool:
        """Whether a client needs a token."""
        return bool(self._by_digest)

    def authenticate(self, token: str | None, now: float) -> Grant:
        """Return the grant of a token at a POSIX time. If no token is configured, all clients have the same grant.

        Raises Unauthorized, or TokenExpired, which looks the same to the client.
        """
        if not self._by_digest:
            return Grant(None, self._default, pinned=True, allow=self._allow, deny=self._deny)
        # Look the token up by its digest: the time that this takes may reveal something about the digest, but nothing
        # about the token.
        known = None if token is None else self._by_digest.get(digest(token))
        if known is None:
            raise Unauthorized
        if now >= known.expires:
            raise TokenExpired(known.name)
        return self.grant(known)

    def grant(self, token: Token) -> Grant:
        """Return what one of the configured tokens may do. Its expiry is not checked."""
        allow = self._allow if token.allow is None else token.allow
        return Grant(token, self._default, pinned=False, allow=allow, deny=(*self._deny, *token.deny))

    def find(self, known: Token) -> Token | None:
        """Return this policy's version of a token from an older policy; None if the token was removed."""
        return self._by_digest.get(known.digest)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client may do once its token is accepted."""

    #: The client's token; None on a server without tokens.
    token: Token | None
    #: The server's default destination.
    default: Address | None
    #: Whether the client may reach only the default destination.
    pinned: bool
    #: What the client may reach. None: everything but the built-in list.
    allow: Sequence[Rule] | None = None
    deny: Sequence[Rule] = ()

    def admit(self, destination: Address) -> Admission:
        """Admit the destination as the client wrote it. The admission then checks its addresses. Raises Forbidden."""
        if self.pinned and destination != self.default:
            raise not_allowed("without a token, the default destination alone is open")
        if (rule := _about(self.deny, destination)) is not None:
            raise not_allowed(f"deny {rule}")
        if self.allow is None:
            # "Everything" means the network. A Unix socket is open only if a rule or -d names it.
            if isinstance(destination, UnixAddress) and destination != self.default:
                raise not_allowed(_NOT_NAMED)
            return Admission(destination, None, self.deny, by_name=True)
        if (rule := _about(self.allow, destination)) is not None:
            return Admission(destination, None, self.deny, by_name=True, rule=rule)
        if isinstance(destination, UnixAddress):
            raise not_allowed(_NOT_NAMED)
        networks = [rule for rule in self.allow if rule.is_about_addresses_at(destination.port)]
        admission = Admission(destination, networks, self.deny, by_name=False)
        address = literal(destination)
        if not networks:
            raise not_allowed(_NOT_OPENED)
        if address is not None and (refusal := admission.refusal(address)):
            raise not_allowed(refusal)
        return admission


def _about(rules: Sequence[Rule], destination: Address) -> Rule | None:
    return next((rule for rule in rules if rule.matches_name(destination)), None)


@dataclass(frozen=True, slots=True)
class Admission:
    """A destination that was admitted: by its name, or on the condition that a rule opens the address to dial."""

    destination: Address
    #: The address to dial must match one of these rules. None: it need not match any rule of `allow`.
    networks: Sequence[Rule] | None
    deny: Sequence[Rule]
    #: Whether a rule, or the absence of rules, admits the name itself. If not, the client must not learn whether the
    #: name exists or where it leads.
    by_name: bool
    #: The rule of `allow` that admits the name; None if no rule does.
    rule: Rule | None = None

    def refusal(self, address: IPAddress) -> str:
        """Return why this address of the destination may not be dialled; "" if it may be dialled."""
        if forbidden(address):
            return "link-local and metadata addresses are closed to everybody"
        if (rule := self.refusing(address)) is not None:
            return f"deny {rule}"
        if self.networks is not None and self.admitting(address) is None:
            return _NOT_OPENED
        return ""

    def refusing(self, address: IPAddress) -> Rule | None:
        """Return the rule of `deny` that closes the address or an IPv4 address embedded in it; None if no rule does."""
        assert not isinstance(self.destination, UnixAddress), "it has no addresses"
        inside = list(_leads_to(address))
        return next((rule for rule in self.deny if rule.matches_address(inside, self.destination.port)), None)

    def admitting(self, address: IPAddress) -> Rule | None:
        """Return the rule of `networks` that opens the address; None if no rule does.

        An IPv4-mapped address counts as its IPv4 address. Other addresses that embed an IPv4 address do not count as
        that: they lead through a gateway.
        """
        assert not isinstance(self.destination, UnixAddress), "it has no addresses"
        port = self.destination.port
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return next((rule for rule in self.networks or () if rule.matches_address([mapped or address], port)), None)
