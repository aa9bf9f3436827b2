"""Sans-IO client's side of two proxy protocols: CONNECT (RFC 9110, section 9.3.6) and SOCKS5 (RFC 1928, 1929).

Never blocks, never logs, never dials. What is no answer raises `ProxyProtocolError`, whose text goes on
where a sentence has named the proxy. No text here holds a credential.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import NamedTuple

import h11

from http2tcp.protocol.client_handshake import HTTP
from http2tcp.protocol.heads import HeadFeed, TooManyBlanks

# As for any answer of a front end: proxies add cookies and pages of policy to their fields.
MAX_HEAD = 64 * 1024

# One that is left open takes the rest: to look for its end from every quote in it would be quadratic.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)')
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
        fields = [(b"Host", authority.encode()), (b"User-Agent", user_agent.strip().encode("utf-8", "surrogateescape"))]
        if credentials is not None:
            fields.append((b"Proxy-Authorization", b"Basic " + b64encode(b":".join(credentials))))
        self._asks = h11.Request(method="CONNECT", target=authority, headers=fields)
        self._connection, self.request = self._begun()
        self._feed = HeadFeed(self._take, opens=True)
        self._received = 0
        # What has arrived since the last interim answer: a head that may need mending.
        self._unread = bytearray()
        self._mended = 0

    def _begun(self) -> tuple[h11.Connection, bytes]:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        head = connection.send(self._asks) or b""
        return connection, head + (connection.send(h11.EndOfMessage()) or b"")

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; b"" is their end. Raises ProxyProtocolError."""
        # h11 waits for a whole head; who greets in another protocol waits for us.
        begin = HTTP[self._received :]
        if data[: len(begin)] != begin[: len(data)]:
            raise _no_http()
        self._received += len(data)
        try:
            self._feed.receive(data)
            if self._received > MAX_HEAD:
                self._feed.give_all()
        except TooManyBlanks:
            raise ProxyProtocolError("sends a malformed answer: its head has a row of blanks without end") from None

    def _take(self, data: bytes) -> None:
        self._unread += data
        self._connection.receive_data(data)

    def next_event(self) -> Connected | Refused | None:
        """The answer, or None where more bytes are needed. Raises ProxyProtocolError."""
        try:
            while isinstance(event := self._connection.next_event(), h11.InformationalResponse):
                self._unread = bytearray(self._connection.trailing_data[0])
        except h11.RemoteProtocolError:
            unread, ended = self._connection.trailing_data
            if ended and not unread:
                raise ProxyProtocolError(_CLOSED) from None
            if self._received <= MAX_HEAD and self._mend():
                return self.next_event()
            raise (_endless() if self._received > MAX_HEAD else _no_http()) from None
        if isinstance(event, h11.Response):
            if 200 <= event.status_code < 300:
                return Connected(self._connection.trailing_data[0])
            return Refused(event.status_code, bytes(event.reason).decode("latin-1"), _schemes(event))
        if self._received > MAX_HEAD:
            raise _endless()
        return None

    def _mend(self) -> bool:
        """Whether the head that h11 cannot read was replaced by one without what is malformed in it."""
        from http2tcp.protocol.malformed_heads import MAX_MENDED, MalformedHead, mend

        if self._mended == MAX_MENDED:
            return False
        try:
            mended = mend(bytes(self._unread), tunnel=True)
        except MalformedHead as error:
            raise ProxyProtocolError(f"sends a malformed answer: {error}") from None
        if mended is None:
            return False
        self._mended += 1
        self._unread = bytearray(mended)
        self._connection, _ = self._begun()
        self._connection.receive_data(mended)
        return True


def _no_http() -> ProxyProtocolError:
    return ProxyProtocolError(
        "does not answer in HTTP/1.1: is it a SOCKS or an https proxy, or another service's port?"
    )


def _endless() -> ProxyProtocolError:
    return ProxyProtocolError("sends an answer whose head has no end")


def _schemes(event: h11.Response) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name, value in event.headers:
        # tinyproxy answers a wrong password as an origin would, with 401 and its field.
        if name in (b"proxy-authenticate", b"www-authenticate"):
            for part in _QUOTED.sub('""', bytes(value).decode("latin-1")).split(","):
                match = _CHALLENGE.match(part.strip())
                if match is not None:
                    found[match[1]] = None
    return tuple(found)[:_MAX_SCHEMES]
