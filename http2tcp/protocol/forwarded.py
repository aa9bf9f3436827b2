"""The client's address behind trusted proxies, from the one header field that they fill in. Pure.

Each proxy adds, at the right end of the field, the address from which it was reached. So the field is read from the
right, for as long as the addresses are those of trusted proxies. The first other address is the client's. Everything
to the left of it may come from the client itself and is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

#: The address that a connection comes from. A peer on a Unix socket has no address, so it is `unix`.
Peer = IPv4Address | IPv6Address | Literal["unix"]
#: A proxy that may name the client; `unix` stands for every peer on a Unix socket.
TrustedProxy = IPv4Network | IPv6Network | Literal["unix"]

# An address in brackets or with a port. The port may be a name such as _hidden (RFC 7239, section 6).
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]+))?")
# A pair as in RFC 7239, section 4. The RFC does not allow blanks around the semicolon, but some proxies write them.
_PAIR = re.compile(r"""[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^ \t",;]+)[ \t]*)?(?:;|\Z)""")
# A comma, or a quote with all backslashes before it. The look-behind makes a match begin at the first backslash of a
# row. Without it, the search would begin again at each one, and 16 KiB of backslashes would take a second.
_COMMA_OR_QUOTE = re.compile(r'(?<!\\)\\*"|,')
_ESCAPED = re.compile(r"\\(.)")


def is_trusted(peer: Peer, trusted: Sequence[TrustedProxy]) -> bool:
    """Whether the peer is one of the trusted proxies."""
    if peer == "unix":
        return "unix" in trusted
    return any(network != "unix" and peer.version == network.version and peer in network for network in trusted)


def client_address(peer: Peer, values: Sequence[bytes], *, header: str, trusted: Sequence[TrustedProxy]) -> Peer:
    """Return the right-most address that is not a trusted proxy's. If all are, return the left-most one.

    `values` are the values of the field's lines, in order. `header` is the field's name: `Forwarded` is read as in
    RFC 7239, any other field as a list of addresses. If an element is not an address, the search stops there.
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
    """Turn an IPv4-mapped address (RFC 4291, section 2.5.5.2), as sockets for both families report it, into IPv4."""
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _parse(hop: str) -> IPv4Address | IPv6Address | None:
    hop = hop.strip(" \t")
    if len(hop) > 1 and hop[0] == hop[-1] == '"':
        hop = hop[1:-1]
    node = _NODE.fullmatch(hop)
    if node is not None:
        hop = node[1] or node[2]
    try:
        # An address with a zone only has a meaning on the proxy's machine. So it does not count as an address.
        return None if "%" in hop else unmapped(ip_address(hop))
    except ValueError:
        return None


def _forwarded_hops(text: str) -> Iterator[str]:
    """Yield the `for` of each element, from the right; "" for an element without one.

    Quotes are matched from the right too. So a client that leaves a quote open cannot hide what proxies added.
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
            # Backslashes escape each other in pairs. If their number is odd, the last one escapes the quote.
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
    # A parameter may occur only once in an element (RFC 7239, section 4).
    return found[0] if len(found) == 1 else ""
