"""-L and -D on loopback: several listeners in one client, SOCKS5 spoken byte by byte, and programs that misbehave."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.address import TCPAddress, UnixAddress, parse_destination, parse_listen
from http2tcp.client.forwarder import forward
from http2tcp.client.forwards import Forward
from http2tcp.errors import ListenError
from http2tcp.net import dial as dial_module
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.transport import Transport
from tests.support.loopback import (
    TOKEN,
    asking,
    client_settings,
    closed_port,
    echo,
    exchange,
    forwarding,
    greet_and_close,
    read_all,
    read_until_broken,
    reset,
    served,
    target,
)

PORT_0 = parse_listen("0")
SOCKS = [Forward(PORT_0, socks=True)]
HELLO = b"\x05\x01\x00"
WELCOME = b"\x05\x00"
OPEN = b"\x05\x00\x00\x01" + bytes(6)


def asking_for(destination: str) -> bytes:
    """A request for an address as it is spelt: a name, or an IP address."""
    host, _, port = destination.rpartition(":")
    number = int(port).to_bytes(2, "big")
    try:
        return b"\x05\x01\x00\x01" + socket.inet_pton(socket.AF_INET, host) + number
    except OSError:
        pass
    if host.startswith("["):
        return b"\x05\x01\x00\x04" + socket.inet_pton(socket.AF_INET6, host[1:-1]) + number
    return bytes([5, 1, 0, 3, len(host)]) + host.encode() + number


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = await stream.receive_some(size - len(received))
        assert data, f"an end after {received!r}"
        received += data
    return received


async def by_socks(local: TCPAddress, destination: str) -> trio.SocketStream:
    """A connection to the destination."""
    stream = await trio.open_tcp_stream(*local)
    await stream.send_all(HELLO)
    assert await receive_exactly(stream, 2) == WELCOME
    await stream.send_all(asking_for(destination))
    assert await receive_exactly(stream, 10) == OPEN
    return stream


async def refused(local: TCPAddress, destination: str) -> int:
    """The reply's code of a destination that is not reached; the connection then ends, and is not reset."""
    async with await trio.open_tcp_stream(*local) as stream:
        # All at once, and more than what was asked for: it must not reset the reply away.
        await stream.send_all(HELLO + asking_for(destination) + bytes(100_000))
        answer = await read_all(stream)
    assert answer[:2] == WELCOME
    assert len(answer) == 12
    return answer[3]


async def echoed(stream: trio.SocketStream, data: bytes) -> bytes:
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        return await read_all(stream)


@asynccontextmanager
async def socks_proxy(url: str, **settings: Any) -> AsyncIterator[TCPAddress]:
    async with forwarding(url, None, forwards=SOCKS, **settings) as local:
        yield local


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    with trio.fail_after(5):
        while words not in caplog.text:
            await trio.testing.wait_all_tasks_blocked(0.01)


# --- several listeners --------------------------------------------------------------------------


async def test_every_listener_leads_where_it_was_told_and_one_client_has_them_all(tmp_path: Path) -> None:
    sock = tmp_path / "local.sock"
    async with target(echo) as where, target(greet_and_close) as greeter, served() as server:
        forwards = [
            Forward(PORT_0),
            Forward(PORT_0, parse_destination(greeter)),
            Forward(UnixAddress(str(sock)), parse_destination(where)),
            Forward(PORT_0, socks=True),
        ]
        settings = client_settings(server.url, where, forwards=forwards)
        async with trio.open_nursery() as nursery:
            listening = await nursery.start(forward, settings)
            assert [each[1:] for each in listening] == [each[1:] for each in forwards]
            assert len({each.listen for each in listening}) == 4
            assert await echoed(await trio.open_tcp_stream(*listening[0].listen), b"one") == b"one"
            async with await trio.open_tcp_stream(*listening[1].listen) as stream:
                assert await read_all(stream) == b"hello\n"
            assert await echoed(await trio.open_unix_socket(str(sock)), b"two") == b"two"
            assert await echoed(await by_socks(listening[3].listen, where), b"three") == b"three"
            nursery.cancel_scope.cancel()
    assert not sock.exists()


async def test_a_unix_socket_is_its_owner_s_alone(tmp_path: Path) -> None:
    sock = tmp_path / "socks.sock"
    async with served() as server, forwarding(server.url, None, forwards=[Forward(UnixAddress(str(sock)), socks=True)]):
        assert stat.S_IMODE(sock.stat().st_mode) == 0o600


async def test_a_name_with_two_families_is_listened_on_in_both_at_one_port() -> None:
    async with target(echo) as where, served() as server:
        settings = client_settings(server.url, forwards=[Forward(TCPAddress("", 0), parse_destination(where))])
        async with trio.open_nursery() as nursery:
            listening = await nursery.start(forward, settings)
            assert {each.listen.host for each in listening} == {"0.0.0.0", "::"}
            assert len({each.listen.port for each in listening}) == 1
            for host in ("127.0.0.1", "::1"):
                stream = await trio.open_tcp_stream(host, listening[0].listen.port)
                assert await echoed(stream, b"both") == b"both"
            nursery.cancel_scope.cancel()


async def test_where_one_port_is_taken_nothing_is_left_half_started(tmp_path: Path) -> None:
    sock = tmp_path / "local.sock"
    free = closed_port()
    async with served() as server:
        forwards = [
            Forward(TCPAddress("127.0.0.1", free), TCPAddress("db", 1)),
            Forward(UnixAddress(str(sock)), TCPAddress("db", 1)),
            Forward(server.address, socks=True),
        ]
        with pytest.raises(ListenError, match=f"cannot listen on {server.address}: address already in use"):
            await forward(client_settings(server.url, forwards=forwards))
    assert not sock.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", free)) != 0


async def test_the_same_port_twice_is_told_as_taken() -> None:
    port = closed_port()
    twice = [Forward(TCPAddress("127.0.0.1", port), TCPAddress(name, 1)) for name in ("a", "b")]
    with pytest.raises(ListenError, match="already in use"):
        await forward(client_settings("http://127.0.0.1:1/", forwards=twice))


async def test_all_listeners_share_what_is_known_of_the_transport(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server knows no capsules: the detour is taken by the connections that come first, and told once."""
    known = Transport.named
    monkeypatch.setattr(Transport, "named", lambda token: None if token == "connect-tcp" else known(token))
    async with target(echo) as where, served() as server:
        forwards = [Forward(PORT_0, parse_destination(where)), *SOCKS]
        settings = client_settings(server.url, forwards=forwards, transport=None)
        async with trio.open_nursery() as nursery:
            listening = await nursery.start(forward, settings)

            async def one() -> None:
                stream = await trio.open_tcp_stream(*listening[0].listen)
                assert await echoed(stream, b"x") == b"x"

            async with trio.open_nursery() as at_once:
                for _ in range(10):
                    at_once.start_soon(one)
            tried = caplog.text.count("status=426")
            assert tried > 1
            assert await echoed(await by_socks(listening[1].listen, where), b"y") == b"y"
            assert caplog.text.count("status=426") == tried
            nursery.cancel_scope.cancel()
    assert caplog.text.count("is faster") == 1


# --- SOCKS5 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_a_destination_is_reached_by_its_name_and_by_its_address(name: str, transport: Transport) -> None:
    data = os.urandom(300_000)
    async with target(echo) as where, served() as server, socks_proxy(server.url, transport=transport) as local:
        destination = where.replace("127.0.0.1", name)
        assert await echoed(await by_socks(local, destination), data) == data


async def test_a_name_is_looked_up_by_the_server_and_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    looked_up = trio.socket.getaddrinfo

    async def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return await looked_up("127.0.0.1" if host == b"inside.example" else host, *rest, **more)

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    async with target(greet_and_close) as where, served() as server, socks_proxy(server.url) as local:
        async with await by_socks(local, where.replace("127.0.0.1", "inside.example")) as stream:
            assert await read_all(stream) == b"hello\n"
    # The server and the client are one process here; the name is looked up once in each family.
    assert asked.count(b"inside.example") == 2


async def test_bytes_sent_before_the_reply_reach_the_target() -> None:
    async with target(echo) as where, served() as server, socks_proxy(server.url) as local:
        async with await trio.open_tcp_stream(*local) as stream:
            await stream.send_all(HELLO + asking_for(where) + b"early")
            await stream.send_eof()
            assert await read_all(stream) == WELCOME + OPEN + b"early"


async def test_a_conversation_in_single_bytes_is_understood() -> None:
    async with target(greet_and_close) as where, served() as server, socks_proxy(server.url) as local:
        async with await trio.open_tcp_stream(*local) as stream:
            for byte in HELLO + asking_for(where):
                await stream.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked()
            assert await read_all(stream) == WELCOME + OPEN + b"hello\n"


async def test_each_failure_has_its_reply_and_its_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    async with served() as server, socks_proxy(server.url) as local:
        assert await refused(local, nobody) == 5
        assert await refused(local, "169.254.169.254:80") == 2
        assert await refused(local, "no-such-name.invalid:80") == 4
        assert await refused(local, "a b:80") == 4
        await logged(caplog, "the destination is not understood")
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"target: cannot reach {nobody} from the server: connection refused" in errors[0]
    assert "http2tcp server: 169.254.169.254:80 is not allowed" in errors[1]
    assert "target: cannot reach no-such-name.invalid:80 from the server" in errors[2]
    assert len(errors) == 4


async def test_a_wrong_token_and_a_server_that_is_gone_are_a_general_failure() -> None:
    async with served() as server, socks_proxy(server.url, token="wr0ng") as local:
        assert await refused(local, "localhost:22") == 1
    async with socks_proxy(f"http://127.0.0.1:{closed_port()}/") as local:
        assert await refused(local, "localhost:22") == 1


async def test_a_target_that_does_not_answer_is_an_unreachable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = dial_module._connect

    async def silent(candidate: dial_module.Candidate) -> SocketStream:
        if candidate.sockaddr[0] == "10.255.255.1":
            await trio.sleep_forever()
        return await connect(candidate)

    monkeypatch.setattr(dial_module, "_connect", silent)
    async with served(connect_timeout=0.05) as server, socks_proxy(server.url) as local:
        assert await refused(local, "10.255.255.1:22") == 4


@pytest.mark.parametrize(
    ("data", "answer", "words"),
    [
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(200_000), b"", "speaks HTTP"),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n", b"", "speaks HTTP"),
        (b"\x04\x01\x00\x16\x7f\x00\x00\x01\x00", b"", "speaks SOCKS4"),
        (b"\x16\x03\x01\x02\x00", b"", "does not speak SOCKS5"),
        (b"\x05\x01\x02", b"\x05\xff", "insists on a login"),
        (HELLO + b"\x05\x03\x00\x01" + bytes(6), WELCOME + b"\x05\x07\x00\x01" + bytes(6), "neither BIND nor UDP"),
    ],
)
async def test_what_is_no_request_is_closed_at_once_and_told(
    data: bytes, answer: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as server, socks_proxy(server.url) as local:
        async with await trio.open_tcp_stream(*local) as stream:
            await stream.send_all(data)
            with trio.fail_after(5):
                assert await read_all(stream) == answer
        await logged(caplog, words)
        assert "session" not in caplog.text


@pytest.mark.parametrize("said", [b"", b"\x05", HELLO, HELLO + b"\x05\x01\x00\x03\xff" + b"x" * 200])
async def test_a_program_that_is_slow_to_say_what_it_wants_is_given_up(
    said: bytes, caplog: pytest.LogCaptureFixture, patient_clock: trio.testing.MockClock
) -> None:
    async with served(head_timeout=1e6) as server, socks_proxy(server.url) as local:
        async with await trio.open_tcp_stream(*local) as stream:
            await stream.send_all(said)
            started = trio.current_time()
            assert await read_all(stream) == (WELCOME if said.startswith(HELLO) else b"")
            assert 9 < trio.current_time() - started < 13
        await logged(caplog, "did not say within 10 s where it wants to go")


@pytest.mark.parametrize("said", [b"", HELLO, HELLO + b"\x05\x01"])
@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_program_that_leaves_early_is_no_warning(
    said: bytes, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as server, socks_proxy(server.url) as local:
        stream = await trio.open_tcp_stream(*local)
        await stream.send_all(said)
        if said:
            assert await receive_exactly(stream, 2) == WELCOME
        if how == "resets":
            reset(stream)
        await stream.aclose()
        await logged(caplog, "left before its tunnel was open")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_program_that_leaves_while_its_tunnel_opens_leaves_nothing_open(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def late(*arguments: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await dial_module.dial(*arguments)

    monkeypatch.setattr("http2tcp.server.connection.dial", late)
    async with target(echo) as where, served() as server, socks_proxy(server.url) as local:
        stream = await trio.open_tcp_stream(*local)
        await stream.send_all(HELLO + asking_for(where))
        await asked.wait()
        reset(stream)
        go_on.set()
        await logged(caplog, "ended session")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_hundred_programs_at_once_get_their_own_data_back() -> None:
    async def one(local: TCPAddress, where: str) -> None:
        data = os.urandom(50_000)
        assert await echoed(await by_socks(local, where), data) == data

    async with target(echo) as where, served() as server, socks_proxy(server.url) as local:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one, local, where)


async def test_a_reset_target_resets_the_program() -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        reset(stream)

    async with target(break_off) as where, served() as server, socks_proxy(server.url) as local:
        async with await by_socks(local, where) as stream:
            await stream.send_all(b"x")
            assert await read_until_broken(stream) == b""


async def test_a_server_without_a_token_lets_socks_go_to_its_one_destination_alone() -> None:
    async with target(greet_and_close) as where, target(echo) as other:
        pinned = parse_destination(where)
        async with served(tokens=(), destination=pinned) as server, socks_proxy(server.url, token=None) as local:
            async with await by_socks(local, where) as stream:
                assert await read_all(stream) == b"hello\n"
            assert await refused(local, other) == 2


async def test_the_listeners_are_loopback_s_unless_told_otherwise() -> None:
    async with served() as server, socks_proxy(server.url) as local:
        assert local.host == "127.0.0.1"
        assert TOKEN not in str(local)
        assert (await exchange(server.address, asking("x:1", token=None))).status == 401
