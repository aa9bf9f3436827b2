"""Sans-IO client's side of two proxy protocols: CONNECT (RFC 9110, section 9.3.6) and SOCKS5 (RFC 1928, 1929).

Never blocks, never logs, never dials. What is no answer raises `ProxyProtocolError`, whose text goes on
where a sentence has named the proxy. No text here holds a credential.
"""

from __future__ import annotations

import re
from base64 import b64encode
from enum import Enum
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

import h11

# As for any answer of a front end: proxies add cookies and pages of policy to their fields.
MAX_HEAD = 64 * 1024

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
# RFC 9110, section 11.3: a scheme stands alone or before a blank; a parameter's name before a `=`.
_CHALLENGE = re.compile(r"([a-zA-Z0-9._-]{1,32})(?:\s+(?![\s=])|$)")
_MAX_SCHEMES = 8

_CLOSED = "closed the connection without an answer"


class ProxyProtocolError(Exception):
    """The proxy's answer is none, or says no."""


class Connected(NamedTuple):
    """2xx: what follows goes to the endpoint and comes from it."""

    #: What came with the answer. It belongs to the endpoint.
    trailing_data: bytes = b""


class Refused(NamedTuple):
    """Any other final answer."""

    status: int
    #: The status line's own words. Not yet safe to print.
    reason: str
    #: The authentication schemes that the proxy offers (Proxy-Authenticate), safe to print.
    schemes: tuple[str, ...] = ()


class Connect:
    """Asks an HTTP proxy for a connection. Send `request`, then feed it with `receive` and ask `next_event`."""

    def __init__(self, authority: str, *, user_agent: str, credentials: tuple[bytes, bytes] | None = None) -> None:
        """`authority` is `host:port`; `credentials` are sent unasked, as Basic."""
        fields = [("Host", authority.encode()), ("User-Agent", user_agent.encode("utf-8", "surrogateescape"))]
        if credentials is not None:
            fields.append(("Proxy-Authorization", b"Basic " + b64encode(b":".join(credentials))))
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        head = self._connection.send(h11.Request(method="CONNECT", target=authority, headers=fields))
        self.request: bytes = (head or b"") + (self._connection.send(h11.EndOfMessage()) or b"")
        self._received = 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; b"" is their end. Raises ProxyProtocolError."""
        self._received += len(data)
        try:
            self._connection.receive_data(data)
        except h11.RemoteProtocolError:
            raise _no_http() from None

    def next_event(self) -> Connected | Refused | None:
        """The answer, or None where more bytes are needed. Raises ProxyProtocolError."""
        try:
            while isinstance(event := self._connection.next_event(), h11.InformationalResponse):
                continue
        except h11.RemoteProtocolError:
            unread, ended = self._connection.trailing_data
            if ended and not unread:
                raise ProxyProtocolError(_CLOSED) from None
            raise _no_http() from None
        if isinstance(event, h11.Response):
            if 200 <= event.status_code < 300:
                return Connected(self._connection.trailing_data[0])
            return Refused(event.status_code, bytes(event.reason).decode("latin-1"), _schemes(event))
        if self._received > MAX_HEAD:
            raise ProxyProtocolError("sends an answer whose head has no end")
        return None


def _no_http() -> ProxyProtocolError:
    return ProxyProtocolError("does not answer in HTTP/1.1: is it a SOCKS or an https proxy, or another service's port?")


def _schemes(event: h11.Response) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name, value in event.headers:
        if name == b"proxy-authenticate":
            for part in _QUOTED.sub('""', bytes(value).decode("latin-1")).split(","):
                match = _CHALLENGE.match(part.strip())
                if match is not None:
                    found[match[1]] = None
    return tuple(found)[:_MAX_SCHEMES]


class SocksRefusal(ProxyProtocolError):
    """The proxy has no connection for us."""

    def __init__(self, words: str, *, address_failed: bool) -> None:
        super().__init__(words)
        #: Another address of the same name may do better.
        self.address_failed = address_failed


class _Phase(Enum):
    METHOD = 2
    LOGIN = 2.0
    REPLY = 4
    ADDRESS = 5
    DONE = 0


# RFC 1928, section 6.
_REPLIES = {
    1: "it failed and does not say why",
    2: "its rules do not allow it",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "it does not know CONNECT",
    8: "it does not know this kind of address",
}
_ADDRESS_FAILED = (1, 3, 4, 5, 6, 8)
