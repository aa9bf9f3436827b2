"""Sans-IO server handshake. Never blocks, never logs, never dials.

`RequestReader` takes bytes as they arrive and returns one `TunnelRequest`, or raises a `Refusal`. Its rules are
stricter than h11's: a head that a front end could read differently from us is refused. No error contains anything that
the client sent, since a head contains a token. CONNECT, for clients that only know proxies, gets a 400 unless it is
enabled.

This module checks the syntax. Later checks, in their order: path, token, upgrade, address, policy, dial.
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote

import h11

from http2tcp.errors import BadRequest, HeadTooLarge, Refusal, UpgradeRequired
from http2tcp.protocol import websocket_handshake as websocket
from http2tcp.protocol.transport import (
    CONFIRM_FIELD,
    DIAL_METRIC,
    KEEPALIVE_FIELD,
    PROXY_NAME,
    RESUME_FIELD,
    SESSION_FIELD,
    TIMING_FIELD,
    TOKEN_FIELD,
    Transport,
    parse_keepalive,
)

# Apache allows 8 KiB a line. A token and an address need much less.
MAX_HEAD = 16 * 1024
# How many fields a head may have. Browsers send about 20, and a chain of proxies adds about 10. Apache allows 100.
MAX_FIELDS = 64

_HEAD_END = b"\r\n\r\n"
# Bytes that a head may contain. Any other byte is refused at once, such as the first byte of a TLS client's hello.
_POSSIBLE = bytes({*b"\t\r\n", *range(0x20, 0x7F), *range(0x80, 0x100)})
# A valid Host: no userinfo, no path, no blank. Any other value gets a 400 (RFC 9112, section 3.2).
_HOST = re.compile(rb"[!$%&'()*+,;=:.\[\]_~0-9A-Za-z-]+")
# The default URI template of connect-tcp.
_WELL_KNOWN = re.compile(r"/\.well-known/masque/tcp/([^/]+)/([^/]+)/?")
# A session's id is `NODE-` (optional, a node has 63 characters at most) and 12 hexadecimal digits.
_MAX_SESSION = 76
_TARGET_PARAMETERS = ("addr", "target_host", "target_port")
# The target of CONNECT always has a port, and brackets around an IPv6 address (RFC 9112, section 3.2.3).
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([^][/?#@:]+)):([0-9]+)")

_Fields = dict[bytes, list[bytes]]

_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/[0-9]\.[0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelRequest:
    """A well-formed request to open a tunnel. Nothing in it has been authorised yet."""

    #: None for CONNECT, which has no path.
    path: str | None
    #: `addr` as it was sent; None: the server's default destination. It is parsed only after the token is accepted.
    addr: str | None = None
    #: Used instead of `addr`: `target_host` and `target_port` of connect-tcp's templates, or CONNECT's target.
    target: tuple[str, str] | None = None
    token: str | None = field(default=None, repr=False)
    #: None if the request asks for no upgrade, or for an unknown one.
    transport: Transport | None = None
    #: The Upgrade token as it was sent, in lower case. The answer repeats it.
    upgrade: str = ""
    #: The interval of the client's keepalives in seconds, if the request has one.
    keepalive: float | None = None
    #: The client confirms that everything has arrived (CONFIRM_FIELD).
    confirms: bool = False
    #: The client can resume tunnels (RESUME_FIELD).
    resumes: bool = False
    #: The id of the session that the client wants to resume (SESSION_FIELD); None: it opens a new one.
    session: str | None = None
    #: The tunnel's bytes travel in capsules.
    capsules: bool = False
    #: The client waits for a `100 Continue` (RFC 9110, section 10.1.1).
    expects_continue: bool = False
    #: The Origin field: a web page of this origin made the request. None: no browser made it.
    origin: str | None = None
    #: On websocket, the key from which the answer is computed.
    websocket_key: str = ""
    #: The values of the field that names the client's address, line by line. Do not trust them yet: anyone may have
    #: written them.
    forwarded: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def is_connect(self) -> bool:
        """Whether the request is a CONNECT. Then we answer like a proxy, and the tunnel's bytes are raw."""
        return self.path is None

    @property
    def carrier(self) -> str:
        """The log's name for what carries the tunnel: `connect`, or the transport."""
        assert self.transport is not None, "such a request opens no tunnel"
        return "connect" if self.is_connect else self.transport.value


class RequestReader:
    """Reads one request head. Feed its bytes to `receive`, then call `next_event`."""

    def __init__(self, *, connect: bool = False, forwarded_header: str | None = None) -> None:
        """`connect`: accept CONNECT too. `forwarded_header`: the field that may name the client's address."""
        self._connect = connect
        self._forwarded_header = forwarded_header
        self._buffer = bytearray()
        self._lines = _LineScanner()
        #: How much of the buffer `_lines` has seen.
        self._scanned = 0
        self._request_line_checked = False

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire."""
        self._buffer += data

    def next_event(self) -> TunnelRequest | None:
        """Return the request, or None if more bytes are needed. Raises BadRequest or HeadTooLarge."""
        # Search again a few bytes before the new ones: a part of the blank line may have come earlier.
        end = self._buffer.find(_HEAD_END, max(0, self._scanned - len(_HEAD_END) + 1))
        size = len(self._buffer) if end < 0 else end + len(_HEAD_END)
        self._lines.scan(self._buffer[self._scanned : min(size, MAX_HEAD)])
        if size > MAX_HEAD:
            raise HeadTooLarge
        self._check_request_line()
        self._scanned = size
        if end < 0:
            return None
        head = bytes(self._buffer[:size])
        del self._buffer[:size]
        return _parse_head(head, connect=self._connect, forwarded_header=self._forwarded_header)

    def _check_request_line(self) -> None:
        """Refuse other protocols, such as ssh, at the first line that the client sends, and not at the timeout."""
        if self._request_line_checked:
            return
        # Search again one byte before the new ones: the CR of the line end may have come earlier.
        line_end = self._buffer.find(b"\r\n", max(0, self._scanned - 1))
        if line_end >= 0:
            if not _REQUEST_LINE.fullmatch(self._buffer, 0, line_end):
                raise BadRequest
            self._request_line_checked = True

    @property
    def trailing_data(self) -> bytes:
        """The bytes that followed the head. They belong to the tunnel, if one is opened."""
        return bytes(self._buffer)


class _LineScanner:
    """Refuses bytes that no head may contain: control characters, a CR without its LF, an LF without its CR.

    It scans each byte once. If the bytes end in a CR, it keeps the CR, until the next byte shows whether an LF follows.
    """

    def __init__(self) -> None:
        self._kept_cr = b""

    def scan(self, data: bytearray) -> None:
        """Scan the next bytes of the head. Raises BadRequest."""
        part = self._kept_cr + data
        self._kept_cr = b"\r" if part.endswith(b"\r") else b""
        # Anyone can send 16 KiB here. Counting takes a tenth of the time of a regular expression.
        pairs = part.count(b"\r\n")
        lone_lf = part.count(b"\n") - pairs
        lone_cr = part.count(b"\r") - pairs - len(self._kept_cr)
        if part.translate(None, _POSSIBLE) or lone_lf or lone_cr:
            raise BadRequest


def _parse_head(head: bytes, *, connect: bool, forwarded_header: str | None) -> TunnelRequest:
    lines = head[:-4].split(b"\r\n")
    if len(lines) - 1 > MAX_FIELDS:
        raise HeadTooLarge
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise BadRequest  # a folded line, which a server may refuse (RFC 9112, section 5.2)
    if sum(line[:15].lower() == b"content-length:" for line in lines) > 1:
        raise BadRequest  # h11 would accept the field twice, with equal values
    connect = connect and lines[0].startswith(b"CONNECT ")
    if connect:
        # Some clients send CONNECT without Host. h11 allows that in HTTP/1.0 only.
        head = head.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        connection.receive_data(head)
        request: object = connection.next_event()
    except h11.RemoteProtocolError:
        # h11's error quotes the head, including the token, so it must not even be the context of our own error.
        request = None
    if not isinstance(request, h11.Request):
        raise BadRequest
    fields: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        fields.setdefault(bytes(name), []).append(bytes(value))
    host = _only(fields, b"host")
    if (host is not None and not _HOST.fullmatch(host)) or b"transfer-encoding" in fields:
        raise BadRequest
    if _only(fields, b"content-length") not in (None, b"0") or len(fields.get(b"authorization", [])) > 1:
        raise BadRequest
    if connect:
        parsed = _parse_connect(request, fields)
    elif request.method != b"GET" or request.http_version != b"1.1" or host is None:
        raise BadRequest
    else:
        parsed = _parse_upgrade_request(request, fields)
    if forwarded_header is None:
        return parsed
    return replace(parsed, forwarded=tuple(fields.get(forwarded_header.lower().encode(), ())))


def _parse_connect(request: h11.Request, fields: _Fields) -> TunnelRequest:
    authority = _AUTHORITY.fullmatch(request.target.decode("ascii"))
    # A CONNECT that also asks for an upgrade is ambiguous.
    if authority is None or request.http_version != b"1.0" or b"upgrade" in fields:
        raise BadRequest
    ipv6, name, port = authority.groups()
    origin = _only(fields, b"origin")
    return TunnelRequest(
        path=None,
        target=(ipv6 or name, port),
        token=_parse_token(fields, b"proxy-authorization"),
        transport=Transport.TCP,
        origin=None if origin is None else _text(origin),
    )


def _parse_upgrade_request(request: h11.Request, fields: _Fields) -> TunnelRequest:
    path, addr, target = _parse_target(bytes(request.target))
    origin = _only(fields, b"origin")
    upgrade = _parse_upgrade(fields)
    transport = Transport.named(upgrade)
    key = b""
    if transport is Transport.WEBSOCKET:
        key = _only(fields, websocket.KEY_FIELD.lower().encode()) or b""
        if not websocket.is_key(key):
            raise BadRequest
        # Refuse another version of WebSocket like an unknown upgrade (RFC 6455, section 4.4).
        if _only(fields, websocket.VERSION_FIELD.lower().encode()) != websocket.VERSION.encode():
            transport = None
    return TunnelRequest(
        path=path,
        addr=addr,
        target=target,
        token=_parse_token(fields, b"authorization"),
        transport=transport,
        upgrade=upgrade,
        capsules=transport is Transport.CONNECT_TCP or (bool(key) and _offers_capsules(fields)),
        confirms=fields.get(CONFIRM_FIELD.lower().encode()) == [b"?1"],
        keepalive=parse_keepalive(_text(_only(fields, KEEPALIVE_FIELD.lower().encode()) or b"")),
        resumes=_resumes(fields),
        session=_parse_session(fields),
        expects_continue=fields.get(b"expect", [b""])[0].lower() == b"100-continue",
        origin=None if origin is None else _text(origin),
        websocket_key=key.decode("ascii"),
    )


def _resumes(fields: _Fields) -> bool:
    return fields.get(RESUME_FIELD.lower().encode()) == [b"?1"]


def _parse_session(fields: _Fields) -> str | None:
    value = _only(fields, SESSION_FIELD.lower().encode()) if _resumes(fields) else None
    if value is None:
        return None
    # An id that is too long cannot be one of ours. Treat it like that of any unknown session.
    return _text(value) if len(value) <= _MAX_SESSION else ""


def _offers_capsules(fields: _Fields) -> bool:
    offered = b",".join(fields.get(websocket.PROTOCOL_FIELD.lower().encode(), [])).split(b",")
    return websocket.CAPSULES.encode() in (protocol.strip() for protocol in offered)


def _only(fields: _Fields, name: bytes) -> bytes | None:
    """Return the value of a field, or None if it is absent. Raise BadRequest if the field is repeated."""
    values = fields.get(name, [])
    if len(values) > 1:
        raise BadRequest
    return values[0] if values else None


def _parse_target(request_target: bytes) -> tuple[str, str | None, tuple[str, str] | None]:
    if not request_target.startswith(b"/") or b"#" in request_target:
        raise BadRequest
    path, _, query = request_target.decode("ascii").partition("?")
    try:
        # Parameters that are not ours may contain bytes that are not UTF-8. An address with such bytes fails later.
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape", max_num_fields=MAX_FIELDS)
    except ValueError:
        raise BadRequest from None
    # An empty addr counts as absent: movsb/http2tcp sends it for "no destination", and a template can produce it.
    values = {name: value for name, value in pairs if name in _TARGET_PARAMETERS}
    if len(values) < sum(name in _TARGET_PARAMETERS for name, _ in pairs):
        raise BadRequest
    addr = values.pop("addr", None) or None
    target = (values.pop("target_host", ""), values.pop("target_port", ""))
    well_known = _WELL_KNOWN.fullmatch(path)
    if well_known:
        if any(target):
            raise BadRequest
        target = (unquote(well_known[1]), unquote(well_known[2]))
    if addr is not None and any(target):
        raise BadRequest
    return path, addr, target if any(target) else None


def _parse_upgrade(fields: _Fields) -> str:
    token = _only(fields, b"upgrade")
    if token is not None and b"," in token:
        raise BadRequest
    options = b",".join(fields.get(b"connection", [])).lower().split(b",")
    # An Upgrade field that Connection does not list must be ignored (RFC 9110, section 7.8).
    if token is None or b"upgrade" not in (option.strip() for option in options):
        return ""
    return token.decode("latin-1").lower()


def _parse_token(fields: _Fields, field: bytes) -> str | None:
    authorization = _only(fields, field)
    own = _only(fields, TOKEN_FIELD.lower().encode())
    if own is not None:
        return _text(own)
    scheme, _, rest = (authorization or b"").partition(b" ")
    credential = rest.strip()
    match scheme.lower():
        case b"bearer" | b"http2tcp":
            return _text(credential)
        case b"basic":
            return _basic_password(credential)
        case _:
            return None


def _basic_password(credential: bytes) -> str | None:
    try:
        _, colon, password = b64decode(credential, validate=True).partition(b":")
    except ValueError:
        return None
    return _text(password) if colon else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


#: The interim answer for a client that sent `Expect: 100-continue`.
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def accept(
    request: TunnelRequest, session: str, *, keepalive: float, dial_time: float | None = None, resumes: bool = False
) -> bytes:
    """Make the head that opens the tunnel: a 101, or a 200 for CONNECT. All bytes after it belong to the tunnel.

    Times are in seconds.
    """
    own = [("Proxy-Status", PROXY_NAME), (SESSION_FIELD, session)]
    if request.is_connect:
        # Send HTTP/1.1 and these exact words even in answer to HTTP/1.0: some clients compare the whole status line.
        return _head("200 Connection established", own)
    fields = [("Connection", "Upgrade"), ("Upgrade", request.upgrade), *own]
    if request.transport is Transport.WEBSOCKET:
        fields.append((websocket.ACCEPT_FIELD, websocket.accept_value(request.websocket_key)))
        if request.capsules:
            fields.append((websocket.PROTOCOL_FIELD, websocket.CAPSULES))
    elif request.capsules:
        fields.append(("Capsule-Protocol", "?1"))
    if request.capsules:
        fields.append((KEEPALIVE_FIELD, f"{keepalive:g}"))
        if request.confirms:
            fields.append((CONFIRM_FIELD, "?1"))
        if resumes:
            fields.append((RESUME_FIELD, "?1"))
    if dial_time is not None:
        fields.append((TIMING_FIELD, f"{DIAL_METRIC};dur={dial_time * 1000:.3f}"))
    return _head("101 Switching Protocols", fields)


def refuse(refusal: Refusal, session: str) -> bytes:
    """Make the whole answer to a request that gets no tunnel. The connection is closed after it."""
    body = str(refusal).encode() + b"\n"
    fields = [
        ("Connection", "close"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Proxy-Status", f"{PROXY_NAME}; error={refusal.proxy_error}"),
        (SESSION_FIELD, session),
        *refusal.headers,
    ]
    if isinstance(refusal, UpgradeRequired):
        # A 426 must list the upgrades that would work (RFC 9110, section 15.5.22).
        fields[0] = ("Connection", "Upgrade, close")
        fields.append(("Upgrade", ", ".join(transport.value for transport in Transport)))
        fields.append((websocket.VERSION_FIELD, websocket.VERSION))
    return _head(f"{refusal.status} {refusal.phrase}", fields) + body


def _head(status: str, fields: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("ascii")
