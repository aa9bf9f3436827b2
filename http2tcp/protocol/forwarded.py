"""The client's address behind trusted proxies, from the one header field that they fill in. Pure.

Each proxy adds the address that it was reached from at the end of what it got. What is there from the right
is true as far as the proxies who wrote it are trusted, and ends at the first address that is none of
theirs: that is the client's. What stands before it is whatever the client made up, and is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

#: Where a connection comes from; a Unix socket's peer has no address.
Peer = IPv4Address | IPv6Address | Literal["unix"]
#: Whose word about the client counts; `unix` is everybody at a Unix socket that is listened on.
TrustedProxy = IPv4Network | IPv6Network | Literal["unix"]

# An address with a port or in brackets; RFC 7239, section 6 allows a port to be hidden behind a name.
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]+))?")
# RFC 7239, section 4; blanks around the semicolon are no part of it, but are met.
_PAIR = re.compile(r"""[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^ \t",;]+)[ \t]*)?(?:;|\Z)""")
# A run of backslashes is looked at from its first one only: from each of them, 16 KiB would take a second.
_COMMA_OR_QUOTE = re.compile(r'(?<!\\)\\*"|,')
_ESCAPED = re.compile(r"\\(.)")


def is_trusted(peer: Peer, trusted: Sequence[TrustedProxy]) -> bool:
    """Whether the peer is one of the trusted proxies."""
    if peer == "unix":
        return "unix" in trusted
    return any(network != "unix" and peer.version == network.version and peer in network for network in trusted)


def client_address(peer: Peer, values: Sequence[bytes], *, header: str, trusted: Sequence[TrustedProxy]) -> Peer:
    """The right-most address that is no trusted proxy's; the left-most where all are.

    `values` are those of the field's lines, in their order. `header` is its name: `Forwarded` is read as
    RFC 7239 has it, any other as a list of addresses. From the first thing on that is no address, nothing
    counts.
    """
    client = peer
    text = ",".join(value.decode("latin-1") for value in values)
    hops = _forwarded_hops(text) if header.lower() == "forwarded" else reversed(text.split(","))
    while is_trusted(client, trusted):
        address = _parse(next(hops, ""))
        if address is None:
            break
        client = address
    return client


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address where it is IPv4-mapped (RFC 4291, section 2.5.5.2), as on a socket for both families."""
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _parse(hop: str) -> IPv4Address | IPv6Address | None:
    hop = hop.strip(" \t")
    if len(hop) > 1 and hop[0] == hop[-1] == '"':
        hop = hop[1:-1]
    node = _NODE.fullmatch(hop)
    if node is not None:
        hop = node[1] or node[2]
    try:
        # A zone means something on the proxy's machine alone.
        return None if "%" in hop else unmapped(ip_address(hop))
    except ValueError:
        return None


def _forwarded_hops(text: str) -> Iterator[str]:
    """The `for` of each element, from the right; "" for an element without one.

    Quotes are matched from the right too, so that a quote which the client left open hides nothing that proxies added.
    """
    end, quoted = len(text), False
    for match in reversed(list(_COMMA_OR_QUOTE.finditer(text))):
        if match[0] == ",":
            if not quoted:
                yield _for(text[match.end() : end])
                end = match.start()
        elif not quoted:
            quoted = True  # read from the right, this is the closing quote
        else:
            # Backslashes escape each other in pairs; one that is left over escapes the quote.
            backslashes = len(match[0]) - 1
            escaped = backslashes % 2 == 1
            quoted = escaped
    yield _for(text[:end])


def _for(element: str) -> str:
    found = []
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            return ""
        if (pair[1] or "").lower() == "for":
            found.append(_ESCAPED.sub(r"\1", pair[2]))
        position = pair.end()
    # Section 4: a parameter comes once in an element.
    return found[0] if len(found) == 1 else ""
