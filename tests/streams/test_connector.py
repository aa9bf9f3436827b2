"""Which transport the client takes, and when: a front end that hiccups costs a second, and not the better transport."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.client import connector as client
from http2tcp.client.connector import AUTO, LESSER_HOLDS, Connector
from http2tcp.errors import (
    CredentialsRefused,
    DestinationForbidden,
    FrontEndFailed,
    ServerRefused,
    TunnelError,
    UpgradeNotPassed,
)
from http2tcp.net.streams import Stream
from http2tcp.protocol.transport import Transport
from http2tcp.protocol.websocket_handshake import accept_value
from tests.support.loopback import client_settings
from tests.support.memory_stream import MemoryStream, memory_pair

#: Given the Upgrade and the time since the start: an answer; b"" to close without one; RST.
Behaviour = Callable[[str, float], bytes]

RST = b"RST"
SERVER = b"Proxy-Status: http2tcp; error=x\r\n"


def refusing(status: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "Content-Length: 0", "", ""]).encode()


NOT_FOUND = refusing("404 Not Found", "Server: nginx")
# What something that restarts, or what stands in for it, may answer for a moment.
HICCUPS = {
    "404": NOT_FOUND,
    "302": refusing("302 Found", "Location: /maintenance"),
    "403": refusing("403 Forbidden", "Server: envoy"),
    "405": refusing("405 Method Not Allowed"),
    "FIN": b"",
    "RST": RST,
}


class Site:
    """A front end in memory, and what was asked of it: the Upgrade and when."""

    def __init__(self, nursery: trio.Nursery, behaviour: Behaviour) -> None:
        self.asked: list[tuple[str, float]] = []
        self.behaviour = behaviour
        self._nursery = nursery
        self._started = trio.current_time()

    async def dial(self, *_: Any) -> Stream:
        ours, theirs = memory_pair()
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: MemoryStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        upgrade = re.search(rb"\r\nUpgrade: (\S+)", head)
        key = re.search(rb"\r\nSec-WebSocket-Key: (\S+)", head)
        assert upgrade is not None
        name, since = upgrade[1].decode(), trio.current_time() - self._started
        self.asked.append((name, round(since, 6)))
        answer = self.behaviour(name, since)
        if answer == RST:
            stream.abort()
            return
        if answer.startswith(b"HTTP/1.1 101") and key is not None:
            answer = answer[:-2] + f"Sec-WebSocket-Accept: {accept_value(key[1].decode())}\r\n\r\n".encode()
        if answer:
            await stream.send_all(answer)
        if not answer.startswith(b"HTTP/1.1 101"):
            await stream.aclose()

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def passes(name: str) -> bytes:
    """The server's own 101."""
    return f"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: {name}\r\nProxy-Status: http2tcp\r\n\r\n".encode()


SiteOf = Callable[[Behaviour], Site]
Clock = trio.testing.MockClock


@pytest.fixture
def site(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> SiteOf:
    """Makes the one that all connections go to."""

    def make(behaviour: Behaviour) -> Site:
        made = Site(nursery, behaviour)
        monkeypatch.setattr(client, "dial_endpoint", made.dial)
        return made

    return make


def connector(**settings: Any) -> Connector:
    return Connector(client_settings("http://example.com/p/", "db:1", **{"transport": None, **settings}))


async def opened(by: Connector) -> Transport:
    tunnel = await by.connect()
    tunnel.stream.abort()
    return tunnel.transport


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def times_of(site: Site, name: str) -> list[float]:
    return [since for asked, since in site.asked if asked == name]


# --- hiccups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hiccup", HICCUPS.values(), ids=HICCUPS.keys())
@pytest.mark.parametrize(("lasts", "tries"), [(0.001, 2), (0.5, 3), (1.0, 3)])
async def test_a_front_end_that_hiccups_does_not_cost_the_best_transport(
    hiccup: bytes, lasts: float, tries: int, site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made = site(lambda name, since: hiccup if since < lasts else passes(name))
    assert await opened(connector()) is Transport.CONNECT_TCP
    assert made.asked == [("connect-tcp", since) for since in (0, 0.3, 1.3)[:tries]]
    # It works as it should: there is nothing to say.
    assert warned(caplog) == []


async def test_a_hiccup_between_two_connections_of_a_forwarder_is_waited_out_too(
    site: SiteOf, autojump_clock: Clock
) -> None:
    made = site(lambda name, since: NOT_FOUND if 100 <= since < 101 else passes(name))
    forwarder = connector()
    assert await opened(forwarder) is Transport.CONNECT_TCP
    await trio.sleep(100)
    assert await opened(forwarder) is Transport.CONNECT_TCP
    assert times_of(made, "connect-tcp") == [0, 100, 100.3, 101.3]


async def test_what_has_kept_every_promise_once_is_never_given_up_for_less(site: SiteOf, autojump_clock: Clock) -> None:
    made = site(lambda name, since: passes(name) if since < 1 or name == "tcp" else NOT_FOUND)
    forwarder = connector()
    await opened(forwarder)
    await trio.sleep(100)
    with pytest.raises(UpgradeNotPassed):
        await opened(forwarder)
    assert set(made.names()) == {"connect-tcp"}


# --- what is not repeated -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "asked"),
    [
        (refusing("401 x"), CredentialsRefused, ["connect-tcp", "http2tcp/1.0"]),
        (refusing("401 x", 'WWW-Authenticate: Basic realm="x"'), FrontEndFailed, ["connect-tcp"]),
        (refusing("502 x"), FrontEndFailed, ["connect-tcp"]),
        (refusing("401 x", "Proxy-Status: http2tcp; error=x"), CredentialsRefused, ["connect-tcp"]),
        (refusing("403 x", "Proxy-Status: http2tcp; error=x"), DestinationForbidden, ["connect-tcp"]),
        (refusing("404 x", "Proxy-Status: http2tcp; error=x"), ServerRefused, ["connect-tcp"]),
        (refusing("426 x", "Proxy-Status: http2tcp; error=x"), UpgradeNotPassed, [each.value for each in AUTO]),
        (refusing("200 x"), UpgradeNotPassed, [each.value for each in AUTO]),
    ],
    ids=["401", "401 with a login", "502", "our 401", "our 403", "our 404", "our 426", "200"],
)
async def test_an_answer_that_waiting_does_not_change_is_not_waited_for(
    answer: bytes, kind: type[TunnelError], asked: list[str], site: SiteOf, autojump_clock: Clock
) -> None:
    made = site(lambda name, since: answer)
    with pytest.raises(kind):
        await opened(connector())
    assert made.asked == [(name, 0) for name in asked]


async def test_a_changed_answer_ends_the_waiting(site: SiteOf, autojump_clock: Clock) -> None:
    made = site(lambda name, since: NOT_FOUND if since < 0.1 else refusing("401 x", "Proxy-Status: http2tcp; error=x"))
    with pytest.raises(CredentialsRefused):
        await opened(connector())
    assert made.asked == [("connect-tcp", 0), ("connect-tcp", 0.3)]


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("hiccup", HICCUPS.values(), ids=HICCUPS.keys())
async def test_a_transport_that_was_chosen_is_tried_once(
    transport: Transport, hiccup: bytes, site: SiteOf, autojump_clock: Clock
) -> None:
    made = site(lambda name, since: hiccup)
    with pytest.raises(UpgradeNotPassed):
        await opened(connector(transport=transport))
    assert made.asked == [(transport.value, 0)]


async def test_a_wrong_path_costs_the_two_pauses_and_no_more(site: SiteOf, autojump_clock: Clock) -> None:
    made = site(lambda name, since: NOT_FOUND)
    with pytest.raises(UpgradeNotPassed, match="404"):
        await opened(connector())
    rest = [(transport.value, 1.3) for transport in AUTO[1:]]
    assert made.asked == [("connect-tcp", 0), ("connect-tcp", 0.3), ("connect-tcp", 1.3), *rest]


# --- a lesser transport ---------------------------------------------------------------------------


def only(*passed: str, answer: bytes = NOT_FOUND) -> Behaviour:
    return lambda name, since: passes(name) if name in passed else answer


async def test_the_hint_says_what_was_seen_and_what_saves_the_time(
    site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    site(only("websocket"))
    assert await opened(connector()) is Transport.WEBSOCKET
    assert warned(caplog) == [
        "connect-tcp was answered 404 by nginx, three times; websocket gets through, "
        "and --transport websocket is faster by 1.3 s"
    ]


async def test_the_hint_tells_different_answers_apart_and_what_raw_bytes_lack(
    site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(name: str, since: float) -> bytes:
        return passes(name) if name == "tcp" else NOT_FOUND if since < 1 else b""

    site(answer)
    assert await opened(connector()) is Transport.TCP
    (hint,) = warned(caplog)
    assert hint.startswith("connect-tcp was answered 404 by nginx, twice, then was closed without an answer; tcp gets")
    assert "without a keepalive" in hint
    assert "--check" in hint
    assert hint.endswith("--transport tcp is faster by 1.3 s")


async def test_a_peer_cannot_drive_the_terminal_by_the_hint(
    site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    site(only("tcp", answer=b"HTTP/1.1 404 x\r\nServer: a\x1b[2Jb" + b"y" * 5000 + b"\r\n\r\n"))
    await opened(connector())
    (hint,) = warned(caplog)
    assert hint.isprintable()
    assert len(hint) < 600


async def test_a_forwarder_forgets_a_lesser_choice_after_ten_minutes(
    site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made = site(only("websocket"))
    forwarder = connector()
    assert await opened(forwarder) is Transport.WEBSOCKET
    made.behaviour = lambda name, since: passes(name)
    await trio.sleep(LESSER_HOLDS - 1)
    made.asked.clear()
    assert await opened(forwarder) is Transport.WEBSOCKET
    assert made.names() == ["websocket"]
    await trio.sleep(2)
    assert await opened(forwarder) is Transport.CONNECT_TCP
    await trio.sleep(10 * LESSER_HOLDS)
    made.asked.clear()
    assert await opened(forwarder) is Transport.CONNECT_TCP
    assert made.names() == ["connect-tcp"]
    assert len(warned(caplog)) == 1


async def test_one_connection_looks_for_a_better_transport_and_the_others_do_not_wait(
    site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made = site(only("websocket"))
    forwarder = connector()
    await opened(forwarder)
    await trio.sleep(LESSER_HOLDS + 1)
    made.asked.clear()
    async with trio.open_nursery() as together:
        for _ in range(10):
            together.start_soon(opened, forwarder)
    assert made.names().count("connect-tcp") == 3
    first = min(since for _, since in made.asked)
    assert times_of(made, "websocket").count(first) == 9
    # It found the same: the choice holds for as long again, and is not told again.
    made.asked.clear()
    await opened(forwarder)
    assert made.names() == ["websocket"]
    assert len(warned(caplog)) == 1


async def test_a_look_that_fails_leaves_the_choice_and_the_next_connection_looks_again(
    site: SiteOf, autojump_clock: Clock
) -> None:
    made = site(only("tcp"))
    forwarder = connector()
    await opened(forwarder)
    await trio.sleep(LESSER_HOLDS + 1)
    made.behaviour = lambda name, since: refusing("502 x")
    with pytest.raises(FrontEndFailed):
        await opened(forwarder)
    made.behaviour = lambda name, since: passes(name)
    assert await opened(forwarder) is Transport.CONNECT_TCP


async def test_a_look_that_is_cancelled_leaves_the_next_connection_to_look(site: SiteOf, autojump_clock: Clock) -> None:
    made = site(only("tcp"))
    forwarder = connector()
    await opened(forwarder)
    await trio.sleep(LESSER_HOLDS + 1)
    with trio.move_on_after(0.1) as scope:
        await opened(forwarder)
    assert scope.cancelled_caught
    made.behaviour = lambda name, since: passes(name)
    assert await opened(forwarder) is Transport.CONNECT_TCP


async def test_the_best_that_one_connection_finds_is_not_replaced_by_what_another_settled_on(
    site: SiteOf, autojump_clock: Clock
) -> None:
    made = site(only("tcp"))
    forwarder = connector()
    async with trio.open_nursery() as together:
        together.start_soon(opened, forwarder)  # settles on tcp after 1.3 s
        await trio.sleep(0.9)
        made.behaviour = lambda name, since: passes(name) if name == "tcp" or 1.1 < since < 1.25 else NOT_FOUND
        assert await opened(forwarder) is Transport.CONNECT_TCP  # at its second try
    made.behaviour = lambda name, since: passes(name)
    made.asked.clear()
    assert await opened(forwarder) is Transport.CONNECT_TCP
    assert made.names() == ["connect-tcp"]


async def test_a_front_end_that_makes_a_websocket_of_every_upgrade_is_got_through(
    site: SiteOf, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The server then gets a WebSocket request without a key, unless it was one."""
    text = b"this is not a request that http2tcp takes\n"
    ours = b"HTTP/1.1 400 Bad Request\r\n" + SERVER + b"Content-Length: %d\r\n\r\n" % len(text) + text
    made = site(only("websocket", answer=ours))
    assert await opened(connector()) is Transport.WEBSOCKET
    # It was the server who answered, so that nothing is waited for.
    assert made.asked == [(transport.value, 0) for transport in AUTO]
    (hint,) = warned(caplog)
    assert "400 by the http2tcp server" in hint
    assert hint.endswith("--transport websocket is faster")
