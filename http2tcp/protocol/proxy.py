"""Sans-IO client's side of two proxy protocols: CONNECT (RFC 9110, section 9.3.6) and SOCKS5 (RFC 1928, 1929).

Never blocks, never logs, never dials. What is no answer raises `ProxyProtocolError`, whose text goes on
where a sentence has named the proxy. No text here holds a credential.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Generator
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

import h11

from http2tcp.protocol.client import HTTP
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
        from http2tcp.protocol.mended import MAX_MENDED, MalformedHead, mend

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


class SocksRefusal(ProxyProtocolError):
    """The proxy does not connect us."""

    def __init__(self, words: str, *, elsewhere: bool) -> None:
        super().__init__(words)
        #: Another address of the same name may do better.
        self.elsewhere = elsewhere


# What we send, and how many bytes we then wait for.
_Step = tuple[bytes, int]

_NO_LOGIN, _PASSWORD, _NONE_ACCEPTABLE = 0, 2, 255
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
_ELSEWHERE = (1, 3, 4, 5, 6, 8)


class Socks5:
    """Asks a SOCKS5 proxy for a connection.

    Send `outgoing`; while `needed` is not 0, read so many bytes at most (what follows is the endpoint's),
    give them to `receive`, and send `outgoing` again. RFC 1928; the login is that of RFC 1929.
    """

    def __init__(self, host: str, port: int, *, credentials: tuple[bytes, bytes] | None = None) -> None:
        """`host` is a name, which the proxy looks up, or an IP address."""
        self._steps = _converse(host, port, credentials)
        self._received = b""
        self.outgoing, self.needed = next(self._steps)

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; b"" is their end. Raises ProxyProtocolError, or SocksRefusal."""
        if not data:
            raise ProxyProtocolError(_CLOSED)
        assert len(data) <= self.needed
        self._received += data
        self.outgoing, self.needed = b"", self.needed - len(data)
        if not self.needed:
            whole, self._received = self._received, b""
            try:
                self.outgoing, self.needed = self._steps.send(whole)
            except StopIteration:
                pass


def _converse(host: str, port: int, credentials: tuple[bytes, bytes] | None) -> Generator[_Step, bytes, None]:
    methods = bytes([_NO_LOGIN]) if credentials is None else bytes([_NO_LOGIN, _PASSWORD])
    version, method = yield bytes([5, len(methods)]) + methods, 2
    if version != 5:
        raise ProxyProtocolError("does not speak SOCKS5: is it an http:// proxy, or another service's port?")
    if method == _NONE_ACCEPTABLE or method not in methods:
        raise ProxyProtocolError(
            "wants a login: put USER:PASSWORD@ before its host, best in a file (--proxy @FILE)"
            if credentials is None
            else "takes no user and password: it wants another kind of login"
        )
    if method == _PASSWORD and credentials is not None:
        user, password = credentials
        _, status = yield b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password, 2
        if status != 0:
            raise ProxyProtocolError("does not take this user and password")
    version, reply, _, kind = yield b"\x05\x01\x00" + _address(host) + port.to_bytes(2, "big"), 4
    if version != 5:
        raise ProxyProtocolError("does not speak SOCKS5: its answer is none")
    if reply != 0:
        # What would follow is the address of no connection.
        raise SocksRefusal(_REPLIES.get(reply, f"reply {reply}"), elsewhere=reply in _ELSEWHERE)
    # The address that it connects from, which is of no use to us.
    if kind == 3:
        (length,) = yield b"", 1
    elif kind in (1, 4):
        length = 4 if kind == 1 else 16
    else:
        raise ProxyProtocolError("does not speak SOCKS5: its answer is none")
    yield b"", length + 2


def _address(host: str) -> bytes:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        name = host.encode("ascii")
        return bytes([3, len(name)]) + name
    return (b"\x04" if isinstance(address, IPv6Address) else b"\x01") + address.packed
