"""The second listener: /metrics, /healthz and /readyz for the operator's tools, and never a tunnel.

It asks for no token, so it belongs on loopback, on a Unix socket or in a network of the operator's own. Nobody
who reaches it can hold it up: a connection carries one request and has a few seconds for all of it, and where
there are too many, the oldest goes.

A browser reaches it too, on the same machine or network, and any web page can make it ask. So a page of another
origin is refused; and on loopback, whose names are few, a Host that is another name is refused as well: a page can have
its own name lead to 127.0.0.1, and is then of the same origin (DNS rebinding). An address in Host is never the page's.
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

# A scraper, two kinds of probes and a person need four.
_CONNECTIONS = 32
# For the request, the answer and the client's own close together. Prometheus itself gives up after 10 s.
_PATIENCE = 10.0
# How long an answered client may take to close.
_LINGER = 1.0
# What a browser sends with a few cookies of other services on the same host.
_MAX_HEAD = 8 * 1024

# RFC 9110, section 7.2.
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?", re.ASCII)
# What a browser says of an address that was typed or bookmarked, and of a page that this listener has served.
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
    """Answer until cancelled.

    `families` make /metrics; `unready` says why no tunnel is taken now, or nothing; `hosts` are the names by which
    a listener on loopback may be asked, beside localhost.
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
            # One a turn, so that whoever has asked is answered before others push it out.
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
            # To close with something unread would reset the answer away.
            with trio.move_on_after(_LINGER):
                await stream.linger()
            await stream.aclose()
    except (trio.BrokenResourceError, _Departed):
        pass
    except Exception:
        # What is told of the tunnels must not end them.
        logger.exception("the admin listener cannot answer; please report this")
    finally:
        stream.abort()


async def _exchange(stream: SocketStream, answer: Callable[[h11.Request], _Answer]) -> bytes:
    try:
        request = await _read_request(stream)
    except h11.RemoteProtocolError as error:
        # h11's own words quote the request.
        status = 431 if error.error_status_hint == 431 else 400
        return _wire(_Answer(status, f"{_PHRASES[status].lower()}\n"))
    return _wire(answer(request), head_only=request.method == b"HEAD")


async def _read_request(stream: SocketStream) -> h11.Request:
    """The head of a request; a body is not waited for. Raises h11.RemoteProtocolError, _Departed."""
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
    """Why it is refused: a browser asks for another site's page. Empty where it may go on."""
    own = {scheme + host.lower() for host in _values(request, b"host") for scheme in (b"http://", b"https://")}
    if any(origin.lower() not in own for origin in _values(request, b"origin")):
        return "no web page may ask here"
    if any(site not in _OWN_SITES for site in _values(request, b"sec-fetch-site")):
        return "no web page may lead here: type the address"
    return ""


def _misnamed(request: h11.Request, hosts: Iterable[str]) -> str:
    """Why it is refused: Host is a name that this listener does not have. Empty where it may go on."""
    known = {"localhost", *(_plain(host) for host in hosts)}
    for value in _values(request, b"host"):
        text = value.decode("ascii", "replace")
        found = _HOST.fullmatch(text)
        if not text or (found and (_is_address(found[1]) or _plain(found[1]) in known)):
            continue
        return "this name is not known here: ask by the address, by localhost, or list the name (--admin-name)"
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
        return _Answer(404, "here are /metrics, /healthz and /readyz\n")
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
        # What a cache on the way says of a probe is about another time.
        "Cache-Control: no-store",
        "Connection: close",
        *answer.fields,
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if head_only else body)


class _Departed(Exception):
    """The client left before its request was whole."""
