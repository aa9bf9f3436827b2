"""The server's deadlines, on a client in memory and a clock that jumps."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.address import TCPAddress
from http2tcp.net import dial as dial_module
from http2tcp.net.dial import Candidate, resolve
from http2tcp.server import connection as connection_module
from http2tcp.server.connection import Connection
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import State
from tests.support.loopback import TOKEN, Answer, asking, parse_answer
from tests.support.memory_stream import MemoryStream, memory_pair

SETTINGS = ServerSettings(tokens=(TOKEN,))


def connected(settings: ServerSettings = SETTINGS) -> tuple[Connection, MemoryStream]:
    """A connection that the server has accepted, and the client's end of it."""
    ours, client = memory_pair()
    connection = Connection(
        State(settings),
        ours,  # type: ignore[arg-type]
        TCPAddress("192.0.2.7", 4711),
    )
    return connection, client


async def answer(client: MemoryStream) -> Answer:
    raw = b""
    try:
        while data := await client.receive_some():
            raw += data
    except trio.BrokenResourceError:
        pass
    return parse_answer(raw)


@pytest.mark.parametrize("sent", [b"", b"GET /?addr=a HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r"])
async def test_a_head_that_does_not_end_is_answered_with_408_after_ten_seconds(
    sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    connection, client = connected()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await client.send_all(sent)
        refused = await answer(client)
        assert trio.current_time() == pytest.approx(10)
        assert (refused.status, refused.error) == (408, "http_request_error")
        assert refused.headers["connection"] == "close"
    assert trio.current_time() <= 10.5


async def test_a_head_that_trickles_in_has_no_more_time_than_one_that_does_not_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    connection, client = connected()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)

        async def trickle() -> None:
            for byte in asking("localhost:22", "X-Padding: " + "x" * 200):
                try:
                    await client.send_all(bytes([byte]))
                except trio.BrokenResourceError:
                    return
                await trio.sleep(0.9)

        nursery.start_soon(trickle)
        assert (await answer(client)).status == 408
        assert trio.current_time() <= 10.5


@pytest.mark.parametrize("request_head", [b"\x16\x03\x01", asking("localhost:22", token="wrong")])
async def test_a_refused_client_that_reads_nothing_is_not_waited_for_beyond_the_heads_own_deadline(
    request_head: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    connection, client = connected()
    client.stall()
    await client.send_all(request_head)
    await connection.run()
    assert trio.current_time() <= 1
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"more")


async def test_a_refused_client_that_never_stops_sending_is_left(autojump_clock: trio.testing.MockClock) -> None:
    connection, client = connected()
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            try:
                while True:
                    await client.send_all(b"x" * 1024)
                    await trio.sleep(0.001)
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(flood)
        await connection.run()
        assert trio.current_time() <= 1.5
    assert (await answer(client)).status in (400, 431)


async def test_a_target_that_does_not_answer_is_a_504_after_the_connect_timeout(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def drop(candidate: Candidate) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr(dial_module, "_connect", drop)
    caplog.set_level(logging.INFO)
    connection, client = connected(ServerSettings(tokens=(TOKEN,), connect_timeout=3))
    await client.send_all(asking("192.0.2.1:22"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        refused = await answer(client)
    assert trio.current_time() == pytest.approx(3, abs=1.1)
    assert (refused.status, refused.error) == (504, "connection_timeout")
    assert refused.body == b"cannot reach 192.0.2.1:22 from the server: no answer in 3 s\n"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "status=504" in caplog.text


async def test_a_name_server_that_does_not_answer_is_a_504_too(autojump_clock: trio.testing.MockClock) -> None:
    class Silent(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: Any, **more: Any) -> Any:
            await trio.sleep_forever()

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Silent())
    connection, client = connected()
    await client.send_all(asking("slow.example:22"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        refused = await answer(client)
    assert (refused.status, refused.error) == (504, "dns_timeout")
    assert refused.body == b"cannot find slow.example from the server: no name server answered in 10 s\n"


async def test_a_login_to_the_server_itself_waits_for_no_name_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Forbidding(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: Any, **more: Any) -> Any:
            raise AssertionError("localhost was looked up")

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Forbidding())
    candidates = await resolve(TCPAddress("localhost", 22))
    assert [candidate.sockaddr for candidate in candidates] == [("127.0.0.1", 22), ("::1", 22)]


async def test_a_name_that_leads_to_forbidden_addresses_alone_is_a_403_that_says_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Metadata(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: Any, **more: Any) -> Any:
            await trio.lowlevel.checkpoint()
            family = arguments[2]
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::ffff:169.254.169.254", 80, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80)),
            ][family == socket.AF_INET :][:1]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Metadata())
    connection, client = connected()
    await client.send_all(asking("innocent.example:80"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        refused = await answer(client)
    assert (refused.status, refused.error) == (403, "destination_ip_prohibited")
    assert b"innocent.example:80" in refused.body


@pytest.mark.parametrize("how", ["aclose", "abort"])
async def test_a_client_that_leaves_before_it_has_asked_leaves_no_record(
    how: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    connection, client = connected()
    await client.send_all(b"GET / HT")
    if how == "abort":
        client.abort()
    else:
        await client.aclose()
    await connection.run()
    assert caplog.records == []
    assert trio.current_time() == 0


async def test_a_bug_in_one_session_is_a_500_and_a_logged_traceback_without_the_token(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(candidate: Candidate) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(dial_module, "_connect", buggy)
    connection, client = connected()
    await client.send_all(asking("192.0.2.1:22"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        refused = await answer(client)
    assert (refused.status, refused.error) == (500, "proxy_internal_error")
    assert "ZeroDivisionError" in caplog.text
    assert TOKEN not in caplog.text


async def test_a_bug_in_what_refuses_ends_no_more_than_its_own_connection(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the code that every stranger reaches."""

    def buggy(*_: object) -> bytes:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(connection_module, "refuse", buggy)
    connection, client = connected()
    await client.send_all(asking("192.0.2.1:22", token="wrong"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    assert "ZeroDivisionError" in caplog.text
