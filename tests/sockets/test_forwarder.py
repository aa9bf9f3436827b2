"""The forwarder on loopback: many local connections, each with a tunnel and a fate of its own."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from http2tcp.address import UnixAddress
from http2tcp.client.forwarder import forward
from http2tcp.client.forwards import Forward
from http2tcp.errors import ListenError
from http2tcp.net.streams import reset_on_close
from tests.support.loopback import (
    client_settings,
    closed_port,
    echo,
    forwarding,
    greet_and_close,
    read_all,
    read_until_broken,
    reset,
    served,
    target,
)


async def exchange_all(stream: trio.abc.HalfCloseableStream, data: bytes) -> bytes:
    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return await read_all(stream)


async def test_a_hundred_connections_at_once_get_their_own_data_back() -> None:
    async def one(port: int) -> None:
        data = os.urandom(100_000)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await exchange_all(stream, data) == data

    async with target(echo) as where, served() as server, forwarding(server.url, where) as local:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one, local.port)


async def test_half_close_and_the_whole_echo_pass_a_forwarder() -> None:
    data = os.urandom(1024 * 1024)
    async with target(echo) as where, served() as server, forwarding(server.url, where) as local:
        async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
            assert await exchange_all(stream, data) == data


async def test_a_target_that_half_closes_first_still_receives_what_comes_hours_later(
    patient_clock: trio.testing.MockClock,
) -> None:
    """Unlike stdin, a socket can say that it has ended, so its silence means nothing."""
    late = b""

    async def half_close(stream: trio.SocketStream) -> None:
        nonlocal late
        await stream.send_all(b"done")
        await stream.send_eof()
        late = await read_all(stream)
        await stream.aclose()

    async with target(half_close) as where, served() as server, forwarding(server.url, where) as local:
        async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
            assert await read_all(stream) == b"done"
            # Each keepalive of these hours is a jump; loopback needs less than this to deliver one.
            patient_clock.autojump_threshold = 0.005
            await trio.sleep(3 * 3600)
            patient_clock.autojump_threshold = 0.2
            await stream.send_all(b"not yet")
        while late != b"not yet":
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_target_that_closes_ends_the_local_connection_and_the_tunnel() -> None:
    async with target(greet_and_close) as where, served() as server, forwarding(server.url, where) as local:
        async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
            assert await read_all(stream) == b"hello\n"


async def test_a_reset_target_resets_the_local_connection_and_the_reason_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.send_all(b"half a li")
        await stream.receive_some(1)
        reset(stream)

    async with target(break_off) as where, served() as server, forwarding(server.url, where) as local:
        async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
            await stream.send_all(b"x")
            assert await read_until_broken(stream) == b"half a li"
        await logged(caplog, "connection lost: the tunnel was cut (a restart, timeout or reset on the way)")


async def test_a_local_application_that_resets_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    seen = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        seen.set()

    async with target(listen) as where, served() as server, forwarding(server.url, where) as local:
        with socket.create_connection(("127.0.0.1", local.port)) as sock:
            # The tunnel is open once its record is there.
            while "opened session" not in caplog.text:
                await trio.testing.wait_all_tasks_blocked(0.01)
            reset_on_close(sock)
        await seen.wait()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("data", [b"", b"x" * 500_000])
async def test_a_tunnel_that_cannot_be_opened_resets_its_connection_logs_the_hop_and_the_listener_lives_on(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    async with served() as server, forwarding(server.url, nobody) as local:
        for _ in range(3):
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                try:
                    await stream.send_all(data)
                except trio.BrokenResourceError:
                    pass
                else:
                    assert await read_until_broken(stream) == b""
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 3
    for warning in warnings:
        peer, _, rest = warning.partition(": ")
        assert peer.startswith("127.0.0.1:")
        assert rest == f"target: cannot reach {nobody} from the server: connection refused"


async def test_a_server_that_comes_back_is_used_again_by_the_same_forwarder(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with target(echo) as where:
        async with served() as first:
            address = first.address
        async with forwarding(f"http://{address}/", where) as local:
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                assert await read_until_broken(stream) == b""
            await logged(caplog, f"TCP: cannot connect to {address}: connection refused")
            async with served(listen=address):
                async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                    assert await exchange_all(stream, b"again") == b"again"


async def test_a_wrong_token_is_named_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server, forwarding(server.url, "localhost:1", token="wr0ng-5ecret") as local:
        async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
            assert await read_until_broken(stream) == b""
    await logged(caplog, "http2tcp server: the server does not know this token")
    assert "wr0ng-5ecret" not in caplog.text


async def test_the_forwarder_listens_on_a_unix_socket_and_takes_its_path_away(tmp_path: Path) -> None:
    path = tmp_path / "local.sock"
    async with target(echo) as where, served() as server:
        async with trio.open_nursery() as nursery:
            settings = client_settings(server.url, where, forwards=[Forward(UnixAddress(str(path)))])
            assert await nursery.start(forward, settings) == settings.forwards
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with await trio.open_unix_socket(str(path)) as stream:
                assert await exchange_all(stream, b"local") == b"local"
            nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_local_port_that_is_taken_is_a_sentence() -> None:
    async with served() as server:
        with pytest.raises(ListenError, match=f"cannot listen on {server.address}: address already in use"):
            await forward(client_settings(server.url, forwards=[Forward(server.address)]))


async def test_a_forwarder_that_is_cancelled_resets_its_connections() -> None:
    async with target(echo) as where, served() as server:
        async with forwarding(server.url, where) as local:
            stream = await trio.open_tcp_stream("127.0.0.1", local.port)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        async with stream:
            assert await read_until_broken(stream) == b""


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Until the log has the words, whatever their case."""
    with trio.fail_after(5):
        while words.lower() not in caplog.text.lower():
            await trio.testing.wait_all_tasks_blocked(0.01)
