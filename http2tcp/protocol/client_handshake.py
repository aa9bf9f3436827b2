"""Sans-IO client handshake, the mirror of `http2tcp.protocol.server_handshake`. Never blocks, never logs, never dials.

`request` makes the bytes that ask for a tunnel. `AnswerReader` takes the bytes that come back and returns `Switched` or
`Refused`, or raises `FrontEndFailed` for anything but HTTP. `http2tcp.client.diagnosis` tells whether the server or a
front end has refused, and what to do about it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

import h11

from http2tcp.address import Address, Endpoint, TCPAddress
from http2tcp.errors import FrontEndFailed, UpgradeNotPassed
from http2tcp.protocol.heads import HeadFeed, TooManyBlanks
from http2tcp.protocol.transport import (
    CONFIRM_FIELD,
    KEEPALIVE_FIELD,
    PROXY_NAME,
    RESUME_FIELD,
    SESSION_FIELD,
    TOKEN_FIELD,
    Transport,
    parse_keepalive,
)

# A member of a list (RFC 8941, section 3.1). The pattern is only exact enough to split the list correctly.
_MEMBER = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')

# A session's id. The client shows it on the terminal, so no other characters are accepted.
_SESSION = re.compile(r"[0-9A-Za-z_-]{1,64}")

# RFC 9113, sections 4.1 and 6.5: a SETTINGS frame's head without its length, that is, the type, no flags, and stream 0.
_SETTINGS = b"\x04\0\0\0\0\0"

#: Every answer that we understand begins like this.
HTTP = b"HTTP/1."
# nginx and Apache add a few hundred bytes; identity-aware proxies send cookies of several KiB.
MAX_HEAD = 64 * 1024
# Enough for the one line that our server sends, and for a front end's error page up to its title.
MAX_BODY = 4 * 1024
_TITLE = re.compile(r"<title[^<>]*>([^<]*)</title", re.IGNORECASE)


# Modules that an ssh login loads use named tuples: each dataclass would add 0.5 ms to every login.
class Switched(NamedTuple):
    """101: the tunnel is open."""

    transport: Transport
    #: The answer has http2tcp's Proxy-Status. Then the target is connected: our server dials before it answers.
    from_http2tcp: bool
    #: The tunnel's bytes travel in capsules.
    capsules: bool = False
    #: The server's keepalive interval in seconds, if it announces one.
    keepalive: float | None = None
    #: The server confirms what has arrived (CONFIRM_FIELD).
    confirms: bool = False
    #: The server's first capsule is HELLO or CHALLENGE (RESUME_FIELD).
    resumes: bool = False
    #: The id of the connection in the server's log, safe to print; empty if the answer has none.
    session: str = ""
    #: The bytes that came with the 101. They belong to the tunnel.
    trailing_data: bytes = b""


class Refused(NamedTuple):
    """Any other final answer."""

    status: int
    #: The Proxy-Status error type, if the answer is http2tcp's own; None: a front end made it.
    proxy_error: str | None
    #: The first line of the body, if the answer is http2tcp's own, else empty. Not yet safe to print.
    text: str = ""
    #: The `Server` field, or empty. Not yet safe to print.
    server: str = ""
    #: Whether the answer says which credentials it wants (WWW-Authenticate).
    challenged: bool = False
    #: The `Location` field, or empty. Not yet safe to print.
    location: str = ""
    #: As in `Switched`.
    session: str = ""
    #: The title or first line of a front end's page, if it says more than the status. Not yet safe to print.
    page: str = ""


Answer = Switched | Refused


def request(
    endpoint: Endpoint,
    destination: Address | None,
    transport: Transport,
    *,
    token: str | None,
    user_agent: str,
    keepalive: float | None = None,
    headers: Sequence[tuple[str, str]] = (),
    websocket_key: str = "",
    resumes: bool = False,
    session: str | None = None,
) -> bytes:
    """Make the request head. `resumes`: this client can resume tunnels. `session`: the id of the session to resume.

    `keepalive` is our interval in seconds. It is only sent on transports that can carry capsules. `headers` come last
    and replace ours of the same name, `Host` included. `websocket_key` must be new for each request on that transport.
    """
    fields = [
        ("Host", endpoint.authority),
        ("User-Agent", user_agent),
        ("Connection", "Upgrade"),
        ("Upgrade", transport.value),
        *_credentials(endpoint, transport, token, headers),
    ]
    if transport is Transport.CONNECT_TCP:
        fields.append(("Capsule-Protocol", "?1"))
    elif transport is Transport.WEBSOCKET:
        # Imported here and below, and not at the top: a login by another transport does not need it.
        from http2tcp.protocol import websocket_handshake as websocket

        fields.append((websocket.KEY_FIELD, websocket_key))
        fields.append((websocket.VERSION_FIELD, websocket.VERSION))
        fields.append((websocket.PROTOCOL_FIELD, websocket.CAPSULES))
    if not transport.raw:
        fields.append((CONFIRM_FIELD, "?1"))
        if keepalive is not None:
            fields.append((KEEPALIVE_FIELD, f"{keepalive:g}"))
        if resumes:
            fields.append((RESUME_FIELD, "?1"))
            if session is not None:
                fields.append((SESSION_FIELD, session))
    own = {name.lower() for name, _ in headers}
    fields = [(name, value) for name, value in fields if name.lower() not in own] + list(headers)
    lines = [f"GET {_target(endpoint, destination, transport)} HTTP/1.1", *(f"{n}: {v}" for n, v in fields), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def _target(endpoint: Endpoint, destination: Address | None, transport: Transport) -> str:
    variables = {}
    # Only connect-tcp and templates have separate variables for host and port. A Unix socket has neither.
    if isinstance(destination, TCPAddress) and (endpoint.is_template or transport is Transport.CONNECT_TCP):
        # RFC 6570, section 3.2.2: everything but unreserved characters is encoded, even the colons of IPv6.
        variables = {"target_host": quote(destination.host, safe=""), "target_port": str(destination.port)}
    path, query = endpoint.expand(variables)
    if destination is None or (variables and endpoint.is_template):
        return path + ("?" + query if query else "")
    replaced = ("addr", "target_host", "target_port")
    pairs = [pair for pair in query.split("&") if pair and unquote(pair.partition("=")[0]) not in replaced]
    added = variables or {"addr": quote(str(destination), safe="")}
    return path + "?" + "&".join([*pairs, *(f"{name}={value}" for name, value in added.items())])


def _credentials(
    endpoint: Endpoint, transport: Transport, token: str | None, headers: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    fields = []
    if endpoint.username is not None or endpoint.password is not None:
        pair = f"{endpoint.username or ''}:{endpoint.password or ''}"
        fields.append(("Authorization", "Basic " + b64encode(pair.encode("utf-8", "surrogateescape")).decode("ascii")))
    if token is None:
        return fields
    if fields or any(name.lower() == "authorization" for name, _ in headers):
        return [*fields, (TOKEN_FIELD, token)]
    # The server of the original (movsb/http2tcp) only accepts a scheme of its own.
    scheme = "HTTP2TCP" if transport is Transport.HTTP2TCP else "Bearer"
    return [("Authorization", f"{scheme} {token}")]


class AnswerReader:
    """Reads the answer to `request`. Feed the answer to `receive`, then call `next_event`."""

    def __init__(self, transport: Transport, *, any_transport: bool = False, websocket_key: str = "") -> None:
        """`any_transport`: accept an answer with another Upgrade than ours. A front end may have changed ours."""
        self._transport = transport
        self._any_transport = any_transport
        self._websocket_key = websocket_key
        self._connection = self._begun()
        self._feed = HeadFeed(self._take)
        self._received = 0
        # The bytes since the last interim (1xx) answer, up to the final answer's head. If h11 cannot parse them,
        # `_mend` tries to repair them.
        self._unread = bytearray()
        self._mended = 0
        self._response: h11.Response | None = None
        self._body = bytearray()
        self._head: h11.InformationalResponse | h11.Response | None = None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The fields of the answer, names in lower case. Not yet safe to print."""
        fields = () if self._head is None else self._head.headers
        return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in fields]

    def _begun(self) -> h11.Connection:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        # h11 parses an answer only after it has sent a request. So give it this one, in place of the one that `request`
        # made.
        connection.send(
            h11.Request(method="GET", target="/", headers=[("Host", "-"), ("Upgrade", self._transport.value)])
        )
        connection.send(h11.EndOfMessage())
        return connection

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire; b"" means that no more come. Raises FrontEndFailed."""
        # Check the first bytes here: h11 would wait for a whole head, but a server such as sshd waits for us.
        begin = HTTP[self._received :]
        if data[: len(begin)] != begin[: len(data)]:
            # A server that only speaks HTTP/2 begins with a SETTINGS frame.
            if not self._received and data[3:9] == _SETTINGS:
                raise FrontEndFailed(
                    "the front end speaks HTTP/2 only here, which has no upgrade: have it speak HTTP/1.1 as well"
                )
            raise _no_http()
        self._received += len(data)
        try:
            self._feed.receive(data)
            if self._received > MAX_HEAD:
                self._feed.give_all()
        except TooManyBlanks:
            raise FrontEndFailed("the front end's answer is malformed: its head has too many blanks in a row") from None

    def _take(self, data: bytes) -> None:
        if self._response is None:
            self._unread += data
        self._connection.receive_data(data)

    def next_event(self) -> Answer | None:
        """Return the answer, or None if more bytes are needed. Raises FrontEndFailed."""
        while True:
            try:
                return self._next_event()
            except h11.RemoteProtocolError:
                # h11's error quotes the answer, and a debugging page in the answer may quote the request with its
                # token. So our error is raised outside of this block, without h11's as its context.
                pass
            if not self._mend():
                break
        if self._response is not None:
            return self._refused()  # the status is known; it does not matter that the body breaks off
        unread, ended = self._connection.trailing_data
        if ended and not unread:
            raise UpgradeNotPassed(
                "the front end closed the connection without an answer: check the port, and http:// or https://",
                seen="was closed without an answer",
                passing=True,
            )
        if ended and self._received:
            raise FrontEndFailed("the front end closed the connection within the head of its answer")
        raise _no_http()

    def _mend(self) -> bool:
        """Remove the malformed parts of a head that h11 cannot parse. Return whether that was possible."""
        from http2tcp.protocol.malformed_heads import MAX_MENDED, MalformedHead, mend

        # An interim answer and the final one may each need mending. Without a limit, this might never end.
        if self._response is not None or self._mended == MAX_MENDED:
            return False
        problem = ""
        try:
            mended = mend(bytes(self._unread), tunnel=False)
        except MalformedHead as error:
            problem = str(error)
        if problem:
            raise FrontEndFailed(f"the front end's answer is malformed: {problem}")
        if mended is None:
            return False
        ended = self._connection.trailing_data[1]
        self._mended += 1
        self._unread = bytearray(mended)
        self._connection = self._begun()
        self._connection.receive_data(mended)
        if ended:
            self._connection.receive_data(b"")
        return True

    def _next_event(self) -> Answer | None:
        while True:
            event = self._connection.next_event()
            match event:
                case h11.NEED_DATA:
                    if self._response is None and self._received > MAX_HEAD:
                        raise FrontEndFailed("the head of the front end's answer is too long")
                    return self.cut_short() if self._feed.cut else None
                case h11.InformationalResponse(status_code=101):
                    return self._switched(event)
                case h11.InformationalResponse():
                    self._unread = bytearray(self._connection.trailing_data[0])
                case h11.Response():
                    self._response = self._head = event
                    self._unread.clear()
                    if not self._ours(event) and not _has_page(event):
                        return self._refused()
                case h11.Data():
                    self._body += event.data
                    if len(self._body) > MAX_BODY:
                        return self._refused()
                case _:  # h11.EndOfMessage: if the connection ends before that, h11 raises an error
                    return self._refused()

    def _switched(self, event: h11.InformationalResponse) -> Switched:
        if event.http_version != b"1.1":
            raise FrontEndFailed("the answer switches protocols in a version of HTTP that has no upgrade")
        self._head = event
        transport = Transport.named(_field(event, b"upgrade"))
        if transport is None or (transport is not self._transport and not self._any_transport):
            raise FrontEndFailed(f"the answer switches to another protocol than {self._transport.value}")
        options = [option.strip() for option in _field(event, b"connection").lower().split(",")]
        if "upgrade" not in options:
            raise FrontEndFailed("the answer switches protocols without saying Connection: upgrade")
        data, _ = self._connection.trailing_data
        keepalive = parse_keepalive(_field(event, KEEPALIVE_FIELD.lower().encode()))
        capsules = transport is Transport.CONNECT_TCP
        if transport is Transport.WEBSOCKET:
            agreed = self._check_websocket(event)
            # Some servers, such as websocat, agree to any subprotocol that is offered.
            capsules = agreed and (keepalive is not None or self._ours(event))
            if keepalive is not None and not agreed:
                # A server that announces a keepalive speaks capsules.
                raise FrontEndFailed("something on the way has dropped Sec-WebSocket-Protocol from the answer")
        return Switched(
            transport,
            from_http2tcp=self._ours(event),
            capsules=capsules,
            keepalive=keepalive,
            confirms=_field(event, CONFIRM_FIELD.lower().encode()) == "?1",
            resumes=capsules and _field(event, RESUME_FIELD.lower().encode()) == "?1",
            session=_session(event),
            trailing_data=data,
        )

    def _check_websocket(self, event: h11.InformationalResponse) -> bool:
        """Whether the answer agrees to capsules. An unrequested option is an error (RFC 6455, section 4.1)."""
        from http2tcp.protocol import websocket_handshake as websocket

        def value(name: str) -> str:
            return _field(event, name.lower().encode())

        if not self._websocket_key or value(websocket.ACCEPT_FIELD) != websocket.accept_value(self._websocket_key):
            raise FrontEndFailed(
                "the answer's Sec-WebSocket-Accept is not for this request: what answers does not speak WebSocket"
            )
        if value(websocket.EXTENSIONS_FIELD):
            raise FrontEndFailed("the answer uses a WebSocket extension that was not asked for")
        if value(websocket.PROTOCOL_FIELD) not in ("", websocket.CAPSULES):
            raise FrontEndFailed("the answer uses a WebSocket subprotocol that was not asked for")
        return bool(value(websocket.PROTOCOL_FIELD))

    @property
    def refusing(self) -> bool:
        """Whether the answer is known to be a refusal, whose body may still arrive."""
        return self._response is not None

    def cut_short(self) -> Refused | None:
        """Return the refusal if its head is complete, even if its body is not; None if the head is not complete."""
        return self._refused() if self.refusing else None

    def _refused(self) -> Refused:
        response = self._response
        assert response is not None
        body = self._body[:MAX_BODY].decode("utf-8", "replace")
        ours = self._ours(response)
        return Refused(
            status=response.status_code,
            proxy_error=_proxy_error(response),
            text=next(iter(body.splitlines()), "") if ours else "",
            page="" if ours else _page(response, body),
            server=_field(response, b"server"),
            challenged=bool(_field(response, b"www-authenticate")),
            location=_field(response, b"location"),
            session=_session(response),
        )

    @staticmethod
    def _ours(event: h11.Response | h11.InformationalResponse) -> bool:
        return _proxy_error(event) is not None


def _has_page(response: h11.Response) -> bool:
    """Whether the body may say more than the head. A redirect's page never does: it only repeats the Location."""
    readable = _field(response, b"content-type").lower().startswith(("text/html", "text/plain"))
    return readable and not 300 <= response.status_code < 400 and not _field(response, b"content-encoding")


def _page(response: h11.Response, body: str) -> str:
    """Return what a front end's page says beyond the status: the title of HTML, or the first line of plain text."""
    kind = _field(response, b"content-type").lower()
    if kind.startswith("text/plain"):
        # If the line has no end, it may have been cut at MAX_BODY. Do not quote a part of a line.
        line, end, _ = body.strip().partition("\n")
        words = line if end or len(body) < MAX_BODY else ""
    else:
        title = _TITLE.search(body)
        words = title[1] if title else ""
    if "&" in words:
        from html import unescape

        words = unescape(words)
    words = " ".join(words.split())
    reason = response.reason.decode("latin-1")
    known = (str(response.status_code), reason, f"{response.status_code} {reason}")
    return "" if words.lower() in (each.lower() for each in known) else words


def _no_http() -> FrontEndFailed:
    return FrontEndFailed(
        "what answered at the endpoint does not speak HTTP/1.1: check the port, and http:// or https://"
    )


def _field(event: h11.Response | h11.InformationalResponse, name: bytes) -> str:
    return ", ".join(bytes(value).decode("latin-1") for key, value in event.headers if key == name)


def _session(event: h11.Response | h11.InformationalResponse) -> str:
    value = _field(event, SESSION_FIELD.lower().encode())
    return value if _SESSION.fullmatch(value) else ""


def _proxy_error(event: h11.Response | h11.InformationalResponse) -> str | None:
    """Return the error type in http2tcp's member of Proxy-Status: "" if it has none, None without such a member."""
    # RFC 9209, section 2: the field is a list. Proxies on the way append members, whose strings may hold commas.
    for member in _MEMBER.findall(_field(event, b"proxy-status")):
        name, *parameters = (part.strip() for part in member.split(";"))
        if name == PROXY_NAME:
            pairs = (parameter.partition("=") for parameter in parameters)
            return next((value for key, _, value in pairs if key == "error"), "")
    return None
