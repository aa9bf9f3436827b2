"""What a program gets through a tunnel on loopback: `open_tunnel`, a server and a target, nothing between."""

from __future__ import annotations

import errno
import logging
import os
import socket

import pytest
import trio
import trio.testing

import http2tcp
from http2tcp.errors import CredentialsRefused, DestinationForbidden, TargetFailed, TunnelError
from http2tcp.net.streams import Stream
from http2tcp.protocol.transport import Transport
from tests.support.loopback import (
    TOKEN,
    asking,
    closed_port,
    echo,
    exchange,
    greet_and_close,
    open_raw,
    read_all,
    read_until_broken,
    reset,
    served,
    target,
)

MIB = 1024 * 1024


async def exchange_all(tunnel: trio.abc.HalfCloseableStream, data: bytes) -> bytes:
    """Send everything and half-close, while reading until EOF."""

    async def send() -> None:
        await tunnel.send_all(data)
        await tunnel.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return await read_all(tunnel)


@pytest.mark.usefixtures("_moved")
@pytest.mark.parametrize("size", [0, 1, MIB, 16 * MIB + 1])
async def test_a_client_that_half_closes_gets_the_whole_echo(size: int, transport: Transport) -> None:
    data = os.urandom(size)
    async with target(echo) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            assert await exchange_all(tunnel, data) == data


async def test_the_echo_is_whole_where_the_client_reads_only_after_it_has_sent_all(transport: Transport) -> None:
    data = os.urandom(MIB)

    async def collect(stream: trio.SocketStream) -> None:
        everything = await read_all(stream)
        await stream.send_all(everything)
        await stream.aclose()

    async with target(collect) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            await tunnel.send_all(data)
            await tunnel.send_eof()
            assert await read_all(tunnel) == data


@pytest.mark.usefixtures("_moved")
async def test_a_target_that_half_closes_first_still_receives_what_the_client_sends_later(transport: Transport) -> None:
    received = trio.Event()
    everything = b""

    async def half_close(stream: trio.SocketStream) -> None:
        nonlocal everything
        await stream.send_all(b"no more from me\n")
        await stream.send_eof()
        everything = await read_all(stream)
        received.set()

    async with target(half_close) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            assert await read_all(tunnel) == b"no more from me\n"
            for number in range(5):
                await tunnel.send_all(b"%d" % number)
            await tunnel.send_eof()
            await received.wait()
    assert everything == b"01234"


async def test_a_banner_that_comes_before_anything_is_sent_is_delivered(transport: Transport) -> None:
    async with target(greet_and_close) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            assert await read_all(tunnel) == b"hello\n"


async def test_a_banner_in_one_segment_with_the_101_is_delivered_in_pieces_of_any_size() -> None:
    async def front_end(stream: trio.SocketStream) -> None:
        while b"\r\n\r\n" not in await stream.receive_some():
            pass
        head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n"
        await stream.send_all(head + b"SSH-2.0-OpenSSH_9.2\r\n")
        await stream.aclose()

    async with target(front_end) as where:
        async with await http2tcp.open_tunnel(
            f"http://{where}/", "localhost:22", token=TOKEN, transport=Transport.TCP
        ) as tunnel:
            parts = [await tunnel.receive_some(3) for _ in range(5)]
            assert parts == [b"SSH", b"-2.", b"0-O", b"pen", b"SSH"]
            assert await read_all(tunnel) == b"_9.2\r\n"


async def test_what_a_client_sends_behind_its_request_reaches_the_target() -> None:
    async with target(echo) as where, served() as server:
        stream, early = await open_raw(server.address, asking(where) + b"too early")
        async with stream:
            await stream.send_eof()
            assert early + await read_all(stream) == b"too early"


@pytest.mark.usefixtures("_moved")
@pytest.mark.parametrize("amount", [0, 1, 3 * MIB])
async def test_a_targets_reset_is_an_error_after_what_it_had_sent(amount: int, transport: Transport) -> None:
    data = os.urandom(amount)

    async def send_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.receive_some(1)  # the client has everything
        reset(stream)

    async with target(send_and_reset) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            received = b""
            while len(received) < amount:
                received += await tunnel.receive_some()
            assert received == data
            await tunnel.send_all(b"now")
            with pytest.raises(trio.BrokenResourceError, match="reset"):
                await tunnel.receive_some()


@pytest.mark.usefixtures("_moved")
async def test_a_targets_reset_behind_unread_data_does_not_swallow_the_data(transport: Transport) -> None:
    """The client is slow to read; the bytes wait in kernels while the target resets."""
    data = os.urandom(200_000)
    gone = trio.Event()

    async def send_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await flushed(stream)
        reset(stream)
        gone.set()

    async with target(send_and_reset) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            await gone.wait()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert await read_until_broken(tunnel) == data


async def flushed(stream: trio.SocketStream) -> None:
    """Until the peer's kernel has everything: a reset would take back the rest."""
    import fcntl

    while int.from_bytes(fcntl.ioctl(stream.socket.fileno(), 0x5411, b"\0" * 4), "little"):
        await trio.sleep(0.001)


@pytest.mark.usefixtures("_moved")
async def test_a_clients_reset_reaches_the_target_as_a_reset(transport: Transport) -> None:
    seen: list[BaseException] = []
    ended = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError as error:
            seen.append(error)
        ended.set()

    async with target(listen) as where, served() as server:
        tunnel = await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport)
        assert isinstance(tunnel, Stream)
        await tunnel.send_all(b"x")
        tunnel.abort()
        await ended.wait()
    assert len(seen) == 1


async def test_a_refused_target_is_an_error_that_says_so(transport: Transport) -> None:
    where = f"127.0.0.1:{closed_port()}"
    async with served() as server:
        with pytest.raises(TargetFailed) as caught:
            await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport)
    assert str(caught.value) == f"cannot reach {where} from the server: connection refused"
    assert caught.value.exit_code == 70


async def test_a_wrong_token_a_missing_token_and_a_closed_destination_are_told_apart() -> None:
    async with served() as server:
        with pytest.raises(CredentialsRefused, match="does not know this token"):
            await http2tcp.open_tunnel(server.url, "localhost:22", token="wrong")
        with pytest.raises(CredentialsRefused, match="wants a token"):
            await http2tcp.open_tunnel(server.url, "localhost:22")
        with pytest.raises(DestinationForbidden, match="link-local or metadata"):
            await http2tcp.open_tunnel(server.url, "169.254.169.254:80", token=TOKEN, transport=Transport.TCP)


async def test_two_hundred_tunnels_at_once_carry_random_data_unmixed(transport: Transport) -> None:
    whole = 0

    async def one(url: str, where: str) -> None:
        nonlocal whole
        data = os.urandom(64 * 1024 + int.from_bytes(os.urandom(2), "big"))
        async with await http2tcp.open_tunnel(url, where, token=TOKEN, transport=transport) as tunnel:
            assert await exchange_all(tunnel, data) == data
        whole += 1

    async with target(echo) as where, served() as server:
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one, server.url, where)
    assert whole == 200


async def test_a_tunnel_that_stalls_does_not_hold_the_others_up(transport: Transport) -> None:
    async with target(echo) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as stalled:
            with trio.move_on_after(0.5):
                while True:
                    await stalled.send_all(b"x" * MIB)
            async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as lively:
                assert await exchange_all(lively, b"quick") == b"quick"
            stalled.abort()


@pytest.mark.usefixtures("_moved")
async def test_a_stalled_reader_stops_the_sender_within_the_kernels_buffers(transport: Transport) -> None:
    sent = 0

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        while True:
            await stream.send_all(b"x" * 65536)
            sent += 65536

    async with target(flood) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport):
            before = -1
            while sent != before:
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.1)
            assert MIB / 4 < sent < 64 * MIB


@pytest.mark.usefixtures("_moved")
async def test_both_directions_at_full_speed_at_once_lose_nothing(transport: Transport) -> None:
    up, down = os.urandom(8 * MIB), os.urandom(8 * MIB)
    got_up = b""

    async def both(stream: trio.SocketStream) -> None:
        nonlocal got_up

        async def send() -> None:
            await stream.send_all(down)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got_up = await read_all(stream)

    async with target(both) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            assert await exchange_all(tunnel, up) == down
            while len(got_up) < len(up):
                await trio.testing.wait_all_tasks_blocked()
    assert got_up == up


async def test_one_byte_at_a_time_arrives_in_order(transport: Transport) -> None:
    async with target(echo) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            for number in range(500):
                await tunnel.send_all(bytes([number % 256]))
                assert await tunnel.receive_some() == bytes([number % 256])


async def test_a_tunnel_ends_on_both_sides_where_the_client_just_closes(transport: Transport) -> None:
    ended = trio.Event()

    async def wait(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b"bye"
        await stream.aclose()
        ended.set()

    async with target(wait) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            await tunnel.send_all(b"bye")
        await ended.wait()


async def test_the_sockets_have_no_delay_and_keepalive() -> None:
    async with target(echo) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=Transport.TCP) as tunnel:
            sock = tunnel.socket  # type: ignore[attr-defined]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# --- the records ------------------------------------------------------------------------------


async def test_a_session_has_one_line_when_it_opens_and_one_when_it_ends(
    caplog: pytest.LogCaptureFixture, transport: Transport
) -> None:
    async with target(echo) as where, served() as server:
        async with await http2tcp.open_tunnel(
            server.url, where.replace("127.0.0.1", "localhost"), token=TOKEN, transport=transport
        ) as t:
            assert await exchange_all(t, b"12345") == b"12345"
        while len(records(caplog)) < 2:
            await trio.testing.wait_all_tasks_blocked(0.01)
    opened, ended = records(caplog)
    port = where.rpartition(":")[2]
    session = opened.split(" ")[1]
    assert opened.startswith(f"opened {session} client=127.0.0.1 port=")
    assert f" target=localhost:{port} dialled=127.0.0.1:{port} transport={transport.value}" in opened
    assert ended.startswith(f"ended {session} client=127.0.0.1 port=")
    assert " bytes_up=5 bytes_down=5 seconds=" in ended
    assert ended.endswith(" reason=closed")


@pytest.mark.parametrize("who", ["client", "target"])
async def test_the_record_says_who_broke_the_tunnel(
    who: str, caplog: pytest.LogCaptureFixture, transport: Transport
) -> None:
    async def habit(stream: trio.SocketStream) -> None:
        if who == "target":
            reset(stream)
        else:
            await trio.sleep_forever()

    async with target(habit) as where, served() as server:
        try:
            tunnel = await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport)
        except TunnelError:
            pytest.fail("the server dials before it answers, so the tunnel was open")
        if who == "client":
            assert isinstance(tunnel, Stream)
            tunnel.abort()
        while len(records(caplog)) < 2:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await tunnel.aclose()
    assert f"reason={who}_broke detail='the connection broke: {os.strerror(errno.ECONNRESET)}'" in records(caplog)[1]


async def test_a_refused_request_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        await exchange(server.address, asking("169.254.169.254:80"))
        await exchange(server.address, asking("localhost:22", token="wrong"))
    first, second = records(caplog)
    assert " target=169.254.169.254:80 status=403 error=destination_ip_prohibited rule='link-local and meta" in first
    assert second.startswith("authentication failed session=")
    assert second.endswith(" status=401 error=http_request_denied cause=unknown")
    assert "target" not in second


async def test_a_server_that_is_cancelled_records_the_sessions_it_ends(
    caplog: pytest.LogCaptureFixture, transport: Transport
) -> None:
    async with target(echo) as where, served() as server:
        async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport) as tunnel:
            server.scope.cancel()
            with trio.CancelScope(shield=True):
                with pytest.raises(trio.BrokenResourceError):
                    await tunnel.receive_some()
    assert records(caplog)[1].endswith(" reason=stopped")


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "http2tcp.audit" and record.levelno >= logging.INFO
    ]
