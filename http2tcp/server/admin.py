"""The second listener. It serves /metrics, /healthz and /readyz to the operator's tools, and never a tunnel.

It asks for no token, so it belongs on loopback, on a Unix socket or in a network of the operator's own. No client
can block it: a connection carries one request and has a few seconds for that. When there are too many connections,
the oldest one is closed.

A browser on the same machine or network can reach it too, and any web page can make the browser send a request. So
requests from pages of another origin are refused. On loopback, a request with an unknown name in Host is refused as
well: a page can point its own name at 127.0.0.1 and so become the same origin (DNS rebinding). An IP address in Host is
always accepted, since a page cannot point an IP address elsewhere.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

import h11
import trio

from http2tcp.address import TCPAddress, is_loopback
from http2tcp.net.listen import Listener
from http2tcp.net.streams import SocketStream
from http2tcp.server.prometheus import CONTENT_TYPE, Family, exposition
from http2tcp.server.rules import ip_like

logger = logging.getLogger("http2tcp.admin")

# The most connections at once. A scraper, two kinds of probes and a person need only four.
_CONNECTIONS = 32
# How many seconds a connection may take in all: request, answer and the client's close. Prometheus gives up after 10 s
# too.
_PATIENCE = 10.0
# How many seconds a client may take to close the connection after the answer.
_LINGER = 1.0
# The longest head of a request, in bytes. A browser may also send a few cookies of other services on the same host.
_MAX_HEAD = 8 * 1024

# The value of Host: a host, with an optional port (RFC 9110, section 7.2).
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?", re.ASCII)
# Accepted values of Sec-Fetch-Site: the user typed the address or used a bookmark, or the request comes from a page of
# this listener.
_OWN_SITES = (b"none", b"same-origin")

_TEXT = "text/plain; charset=utf-8"
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


async def serve_admin(
    listeners: Sequence[Listener],
    families: Sequence[Family],
    unready: Callable[[], str],
    hosts: Callable[[], Iterable[str]] = tuple,
) -> None:
    """Answer requests until cancelled.

    `families` are the contents of /metrics. `unready` returns why the server takes no tunnel now, or "". `hosts`
    returns the names, besides localhost, that requests to a listener on loopback may have in Host.
    """
    scopes: dict[trio.CancelScope, None] = {}

    async def converse(sock: socket.socket, scope: trio.CancelScope, local: bool) -> None:
        def answer(request: h11.Request) -> _Answer:
            if why := _foreign(request) or (local and _misnamed(request, hosts())):
                return _Answer(403, f"{why}\n")
            return _answer(request, families, unready)

        with scope:
            await _converse(SocketStream(sock), answer)
        scopes.pop(scope, None)

    async with trio.open_nursery() as nursery:

        def accepted(local: bool, sock: socket.socket, peer: object) -> None:
            if len(scopes) >= _CONNECTIONS:
                oldest = next(iter(scopes))
                del scopes[oldest]
                oldest.cancel()
            scope = trio.CancelScope()
            scopes[scope] = None
            nursery.start_soon(converse, sock, scope, local)

        for listener in listeners:
            address = listener.address
            local = isinstance(address, TCPAddress) and is_loopback(address.host)
            # Accept one connection in each turn of the event loop, so that its request is answered before later
            # connections evict it.
            nursery.start_soon(listener.accept_forever, partial(accepted, local), None, lambda: 1)


class _Answer(NamedTuple):
    status: int
    body: str
    content_type: str = _TEXT
    fields: tuple[str, ...] = ()


async def _converse(stream: SocketStream, answer: Callable[[h11.Request], _Answer]) -> None:
    try:
        with trio.move_on_after(_PATIENCE):
            await stream.send_all(await _exchange(stream, answer))
            # Closing with bytes unread would send a reset, which can destroy the answer.
            with trio.move_on_after(_LINGER):
                await stream.linger()
            await stream.aclose()
    except (trio.BrokenResourceError, _Departed):
        pass
    except Exception:
        # A bug here must not end the tunnels.
        logger.exception("the admin listener cannot answer; please report this")
    finally:
        stream.abort()


async def _exchange(stream: SocketStream, answer: Callable[[h11.Request], _Answer]) -> bytes:
    try:
        request = await _read_request(stream)
    except h11.RemoteProtocolError as error:
        # Do not send the error's own text, since it quotes the request.
        status = 431 if error.error_status_hint == 431 else 400
        return _wire(_Answer(status, f"{_PHRASES[status].lower()}\n"))
    return _wire(answer(request), head_only=request.method == b"HEAD")


async def _read_request(stream: SocketStream) -> h11.Request:
    """Read the head of a request, and do not wait for a body. Raises h11.RemoteProtocolError or _Departed."""
    connection = h11.Connection(h11.SERVER)
    size = 0
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = await stream.receive_some(_MAX_HEAD)
        if not data:
            raise _Departed
        size += len(data)
        if size > _MAX_HEAD:
            raise h11.RemoteProtocolError("too large", error_status_hint=431)
        connection.receive_data(data)
    assert isinstance(event, h11.Request)
    return event


def _values(request: h11.Request, field: bytes) -> list[bytes]:
    return [value for name, value in request.headers if name == field]


def _foreign(request: h11.Request) -> str:
    """Return why the request is refused if a browser sent it for a page of another site; "" if it is not refused."""
    own = {scheme + host.lower() for host in _values(request, b"host") for scheme in (b"http://", b"https://")}
    if any(origin.lower() not in own for origin in _values(request, b"origin")):
        return "web pages may not send requests here"
    if any(site not in _OWN_SITES for site in _values(request, b"sec-fetch-site")):
        return "links from other web pages do not work here: type the address"
    return ""


def _misnamed(request: h11.Request, hosts: Iterable[str]) -> str:
    """Return why the request is refused if Host is not a name of this listener; "" if it is not refused."""
    known = {"localhost", *(_plain(host) for host in hosts)}
    for value in _values(request, b"host"):
        text = value.decode("ascii", "replace")
        found = _HOST.fullmatch(text)
        if not text or (found and (_is_address(found[1]) or _plain(found[1]) in known)):
            continue
        return "unknown name in Host: use the IP address or localhost, or allow the name with --admin-name"
    return ""


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    if not host.startswith("["):
        return ip_like(host.lower())
    try:
        return ip_address(host[1:-1].partition("%")[0]).version == 6
    except ValueError:
        return False


def _answer(request: h11.Request, families: Sequence[Family], unready: Callable[[], str]) -> _Answer:
    path = request.target.partition(b"?")[0]
    if path not in (b"/metrics", b"/healthz", b"/readyz"):
        return _Answer(404, "not found: there are /metrics, /healthz and /readyz\n")
    if request.method not in (b"GET", b"HEAD"):
        return _Answer(405, "expected GET or HEAD\n", fields=("Allow: GET, HEAD",))
    if path == b"/metrics":
        return _Answer(200, exposition(families), CONTENT_TYPE)
    if path == b"/readyz" and (why := unready()):
        return _Answer(503, f"{why}\n")
    return _Answer(200, "ok\n")


def _wire(answer: _Answer, *, head_only: bool = False) -> bytes:
    body = answer.body.encode()
    head = [
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(body)}",
        # A cached answer would show a probe how the server was earlier.
        "Cache-Control: no-store",
        "Connection: close",
        *answer.fields,
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if head_only else body)


class _Departed(Exception):
    """The client closed the connection before its request was complete."""
