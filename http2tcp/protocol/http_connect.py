"""Sans-IO client's side of an HTTP proxy's protocol: CONNECT (RFC 9110, section 9.3.6).

Never blocks, never logs, never dials. If the proxy sends anything but an HTTP answer, `ProxyProtocolError` is raised.
Its text continues a sentence that begins with the proxy's name, and never contains a credential.
`http2tcp.protocol.socks5` has the other proxy protocol.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import NamedTuple

import h11

from http2tcp.protocol.client_handshake import HTTP
from http2tcp.protocol.heads import HeadFeed, TooManyBlanks

# The same limit as for a front end's answer: proxies add cookies and other long fields.
MAX_HEAD = 64 * 1024

# A quoted string whose closing quote is missing matches the rest of the field. Otherwise the search would begin again
# at each quote in it, and take quadratic time.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)')
# RFC 9110, section 11.3: an authentication scheme is followed by a blank or by nothing, a parameter's name by a `=`.
_CHALLENGE = re.compile(r"([a-zA-Z0-9._-]{1,32})(?:\s+(?![\s=])|$)")
_MAX_SCHEMES = 8

_CLOSED = "closed the connection without an answer"


class ProxyProtocolError(Exception):
    """The proxy does not speak the protocol, or refuses the connection."""


class Connected(NamedTuple):
    """2xx: from here on, the connection leads to the endpoint."""

    #: The bytes that came with the answer. They come from the endpoint.
    trailing_data: bytes = b""


class Refused(NamedTuple):
    """Any other final answer."""

    status: int
    #: The words of the status line. Not yet safe to print.
    reason: str
    #: The authentication schemes that the proxy offers (Proxy-Authenticate), safe to print.
    schemes: tuple[str, ...] = ()


class Connect:
    """Asks an HTTP proxy for a connection. Send `request`, then feed the answer to `receive` and call `next_event`."""

    def __init__(self, authority: str, *, user_agent: str, credentials: tuple[bytes, bytes] | None = None) -> None:
        """`authority` is `host:port`. `credentials` are sent as Basic, in the first request, before the proxy asks."""
        fields = [(b"Host", authority.encode()), (b"User-Agent", user_agent.strip().encode("utf-8", "surrogateescape"))]
        if credentials is not None:
            fields.append((b"Proxy-Authorization", b"Basic " + b64encode(b":".join(credentials))))
        self._asks = h11.Request(method="CONNECT", target=authority, headers=fields)
        self._connection, self.request = self._begun()
        self._feed = HeadFeed(self._take, opens=True)
        self._received = 0
        # The bytes since the last interim (1xx) answer. If h11 cannot parse them, `_mend` tries to repair them.
        self._unread = bytearray()
        self._mended = 0

    def _begun(self) -> tuple[h11.Connection, bytes]:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        head = connection.send(self._asks) or b""
        return connection, head + (connection.send(h11.EndOfMessage()) or b"")

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; b"" means that the proxy sends no more. Raises ProxyProtocolError."""
        # Check the first bytes here: h11 would wait for a whole head, but a server of another protocol waits for us.
        begin = HTTP[self._received :]
        if data[: len(begin)] != begin[: len(data)]:
            raise _no_http()
        self._received += len(data)
        try:
            self._feed.receive(data)
            if self._received > MAX_HEAD:
                self._feed.give_all()
        except TooManyBlanks:
            raise ProxyProtocolError("sends a malformed answer: its head has too many blanks in a row") from None

    def _take(self, data: bytes) -> None:
        self._unread += data
        self._connection.receive_data(data)

    def next_event(self) -> Connected | Refused | None:
        """Return the answer, or None if more bytes are needed. Raises ProxyProtocolError."""
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
        """Remove the malformed parts of a head that h11 cannot parse. Return whether that was possible."""
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
    return ProxyProtocolError("sends an answer whose head is too long")


def _schemes(event: h11.Response) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name, value in event.headers:
        # To a wrong password tinyproxy answers like an origin server: with 401 and WWW-Authenticate.
        if name in (b"proxy-authenticate", b"www-authenticate"):
            for part in _QUOTED.sub('""', bytes(value).decode("latin-1")).split(","):
                match = _CHALLENGE.match(part.strip())
                if match is not None:
                    found[match[1]] = None
    return tuple(found)[:_MAX_SCHEMES]
