"""Sans-IO SOCKS5 (RFC 1928), both sides. Never blocks, never logs, never dials.

`Negotiation` is the server's side, for -D: CONNECT only, and no login. Every program on this machine can connect to the
port of -D, and so can a web page in a browser. So anything but SOCKS5 is refused at its first byte. The format limits
the length of a request. `Socks5` is the client's side, for a proxy on the way, with the login of RFC 1929.
"""

from __future__ import annotations

from collections.abc import Generator
from ipaddress import IPv4Address, IPv6Address, ip_address

from http2tcp.address import TCPAddress, target_address
from http2tcp.errors import AddressError, DestinationForbidden, TargetFailed, TunnelError
from http2tcp.protocol.http_connect import _CLOSED, ProxyProtocolError

_VERSION, _CONNECT = 5, 1
_NO_LOGIN, _NONE_ACCEPTABLE = 0, 255
_IPV4, _NAME, _IPV6 = 1, 3, 4
# RFC 1928, section 6.
_GENERAL_FAILURE, _NOT_ALLOWED, _HOST_UNREACHABLE, _REFUSED = 1, 2, 4, 5
_UNKNOWN_COMMAND, _UNKNOWN_ADDRESS_TYPE = 7, 8


def _reply(code: int) -> bytes:
    # A reply has a field for the address from which the target is reached. We do not know it, so send 0.0.0.0:0.
    return bytes([_VERSION, code, 0, _IPV4]) + bytes(6)


#: The reply for a tunnel that is open. All bytes after it belong to the tunnel.
ACCEPTED = _reply(0)


def refuse(error: TunnelError) -> bytes:
    """Make the reply for a tunnel that could not be opened. The connection is closed after it."""
    if isinstance(error, DestinationForbidden):
        return _reply(_NOT_ALLOWED)
    if isinstance(error, TargetFailed):
        return _reply(_REFUSED if error.proxy_error == "connection_refused" else _HOST_UNREACHABLE)
    return _reply(_GENERAL_FAILURE)


class SocksError(Exception):
    """The request cannot be served. `reply` has the bytes to send before the connection is closed."""

    def __init__(self, words: str, reply: bytes = b"") -> None:
        super().__init__(words)
        self.reply = reply


class Negotiation:
    """Reads a client's request. Feed bytes to `receive`, call `next_event`, and send what `take_outgoing` returns."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._outgoing = b""
        self._greeted = False

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire."""
        self._buffer += data

    def take_outgoing(self) -> bytes:
        """Return the bytes to send to the client now, and forget them; b"" if there are none."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    @property
    def trailing_data(self) -> bytes:
        """The bytes after the request. They belong to the tunnel, if it opens."""
        return bytes(self._buffer)

    def next_event(self) -> TCPAddress | None:
        """Return the destination that the client asks for, or None if more bytes are needed. Raises SocksError."""
        if not self._greeted:
            methods = self._take_greeting()
            if methods is None:
                return None
            if _NO_LOGIN not in methods:
                raise SocksError(
                    "the client insists on a login, and there is none here", bytes([_VERSION, _NONE_ACCEPTABLE])
                )
            self._outgoing += bytes([_VERSION, _NO_LOGIN])
            self._greeted = True
        try:
            return self._take_request()
        except SocksError as error:
            # A client may send its request before it has our answer to its greeting. Send that answer first.
            error.reply = self.take_outgoing() + error.reply
            raise

    def _take_greeting(self) -> bytes | None:
        if self._buffer and self._buffer[0] != _VERSION:
            raise SocksError(_other_protocol(self._buffer[0]))
        if len(self._buffer) < 2:
            return None
        greeting = self._take(2 + self._buffer[1])
        return None if greeting is None else greeting[2:]

    def _take_request(self) -> TCPAddress | None:
        head = self._buffer[:5]
        if head and head[0] != _VERSION:
            raise SocksError("the request is not SOCKS5", _reply(_GENERAL_FAILURE))
        if len(head) > 1 and head[1] != _CONNECT:
            raise SocksError("only CONNECT is served, neither BIND nor UDP", _reply(_UNKNOWN_COMMAND))
        if len(head) > 3 and head[3] not in (_IPV4, _NAME, _IPV6):
            raise SocksError("the kind of address is not known", _reply(_UNKNOWN_ADDRESS_TYPE))
        if len(head) < 5:
            return None
        kind, length = head[3], {_IPV4: 4, _IPV6: 16}.get(head[3], 1 + head[4])
        request = self._take(4 + length + 2)
        if request is None:
            return None
        return _destination(kind, request[4:-2], int.from_bytes(request[-2:], "big"))

    def _take(self, size: int) -> bytes | None:
        if len(self._buffer) < size:
            return None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _destination(kind: int, address: bytes, port: int) -> TCPAddress:
    try:
        if kind == _NAME:
            host = address[1:].decode()
        else:
            host = str(IPv4Address(address) if kind == _IPV4 else IPv6Address(address))
        return target_address(host, port)
    except UnicodeDecodeError:
        raise SocksError("the name that is asked for is not UTF-8", _reply(_HOST_UNREACHABLE)) from None
    except AddressError as error:
        raise SocksError(f"the destination is not understood: {error}", _reply(_HOST_UNREACHABLE)) from None


def _other_protocol(first: int) -> str:
    if first == 4:
        return "the client speaks SOCKS4: tell it to speak SOCKS5"
    if chr(first).isalpha() and first < 128:
        return "the client speaks HTTP or the like: tell it that this is a SOCKS5 proxy"
    return "the client does not speak SOCKS5"


class SocksRefusal(ProxyProtocolError):
    """The proxy refuses the connection to the endpoint."""

    def __init__(self, words: str, *, elsewhere: bool) -> None:
        super().__init__(words)
        #: Whether another address of the same name may succeed.
        self.elsewhere = elsewhere


# The bytes that we send, and the number of bytes that we then wait for.
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

    Send `outgoing`. While `needed` is not 0, read at most `needed` bytes (any bytes after them come from the endpoint),
    give them to `receive`, and send `outgoing` again.
    """

    def __init__(self, host: str, port: int, *, credentials: tuple[bytes, bytes] | None = None) -> None:
        """`host` is an IP address, or a name that the proxy looks up."""
        self._steps = _converse(host, port, credentials)
        self._received = b""
        self.outgoing, self.needed = next(self._steps)

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; b"" means that no more come. Raises ProxyProtocolError, or SocksRefusal."""
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
        raise ProxyProtocolError("does not speak SOCKS5: its answer makes no sense")
    if reply != 0:
        # The address in a reply that refuses has no meaning, so do not read it.
        raise SocksRefusal(_REPLIES.get(reply, f"reply {reply}"), elsewhere=reply in _ELSEWHERE)
    # Read the address that the proxy connects from, and ignore it: the endpoint's bytes come after it.
    if kind == 3:
        (length,) = yield b"", 1
    elif kind in (1, 4):
        length = 4 if kind == 1 else 16
    else:
        raise ProxyProtocolError("does not speak SOCKS5: its answer makes no sense")
    yield b"", length + 2


def _address(host: str) -> bytes:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        name = host.encode("ascii")
        return bytes([3, len(name)]) + name
    return (b"\x04" if isinstance(address, IPv6Address) else b"\x01") + address.packed
