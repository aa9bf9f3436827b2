"""The end of a tunnel in capsules: nothing is closed over what the other side has not taken yet."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest
import trio

from http2tcp.address import parse_listen
from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.relay import End, Outcome, Traffic, relay
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.capsule import DONE, FINAL, KEEPALIVE
from http2tcp.protocol.transport import Transport
from tests.support.loopback import TOKEN, forwarding, open_raw, read_all, send_until_broken, served, target, upgrade

SIZE = 8_000_000
#: Many times the keepalive and longer than any moment that closing may take.
PAUSE = 2.5


@pytest.fixture(params=[Transport.CONNECT_TCP, Transport.WEBSOCKET], ids=["connect-tcp", "websocket"])
def in_capsules(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


async def test_an_upload_to_a_target_that_has_ended_first_and_is_slow_arrives_whole(in_capsules: Transport) -> None:
    received = b""
    over = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        nonlocal received
        await stream.send_eof()
        await trio.sleep(PAUSE)
        received = await read_all(stream)
        over.set()

    async with target(slow) as where, served(keepalive=0.2) as server:
        async with forwarding(server.url, where, transport=in_capsules, keepalive=0.2) as address:
            async with await trio.open_tcp_stream(address.host, address.port) as local:
                await local.send_all(bytes(SIZE))
                await local.send_eof()
                with trio.fail_after(20):
                    assert await local.receive_some() == b""
                    await over.wait()
    assert len(received) == SIZE


@pytest.mark.parametrize("size", [3_000_000, SIZE])
async def test_a_download_by_a_reader_that_has_ended_first_and_is_slow_arrives_whole(
    in_capsules: Transport, size: int
) -> None:
    async def generous(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b""
        await stream.send_all(bytes(size))
        await stream.send_eof()

    async with target(generous) as where, served(keepalive=0.2) as server:
        async with forwarding(server.url, where, transport=in_capsules, keepalive=0.2) as address:
            async with await trio.open_tcp_stream(address.host, address.port) as local:
                await local.send_eof()
                await trio.sleep(PAUSE)
                with trio.fail_after(20):
                    assert len(await read_all(local)) == size


async def test_a_client_that_dies_after_its_end_of_input_does_not_keep_its_target() -> None:
    """A long query whose client is gone: it sends no keepalives any more."""
    gone = trio.Event()

    async def reset_target(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        # Only a reset is seen by who has read an EOF and goes on sending.
        await send_until_broken(stream, b"row")
        gone.set()

    async with target(reset_target) as where, served(keepalive=0.2) as server:
        head = upgrade(f"/?addr={where}", "Http2tcp-Keepalive: 0.3", "Http2tcp-Confirm: ?1", transport="connect-tcp")
        stream, _ = await open_raw(server.address, head)
        async with stream:
            await stream.send_all(FINAL)
            # It reads, but says nothing.
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass

                nursery.start_soon(read)
                with trio.fail_after(10):
                    await gone.wait()
                nursery.cancel_scope.cancel()


def tcp_pair() -> tuple[SocketStream, trio.SocketStream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return SocketStream(near), trio.SocketStream(trio.socket.from_stdlib_socket(far))


async def ending(*, peer_says: bytes, then_closes: bool) -> Outcome:
    """A relay whose peer in capsules confirms; both directions have ended but for what the peer says."""
    carrier, peer = tcp_pair()
    framed = CapsuleStream(carrier, keepalive=25, peer_keepalive=25, confirms=True)
    right, application = tcp_pair()
    outcome = []

    async def run() -> None:
        outcome.append(await relay(framed, right, Traffic()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await application.send_eof()
        await peer.send_all(peer_says)
        assert await application.receive_some() == b""
        said = b""
        while DONE not in said:
            said += await peer.receive_some()
        assert said == FINAL + DONE
        if then_closes:
            await peer.aclose()
    await peer.aclose()
    await application.aclose()
    return outcome[0]


async def test_a_peer_that_has_confirmed_ends_the_tunnel_well() -> None:
    outcome = await ending(peer_says=KEEPALIVE + FINAL + KEEPALIVE + DONE, then_closes=False)
    assert outcome.end is End.CLOSED


async def test_a_peer_that_leaves_without_having_confirmed_has_not_got_it_all() -> None:
    outcome = await ending(peer_says=FINAL, then_closes=True)
    assert outcome.end is End.CLIENT_BROKE
    assert "confirmed" in outcome.words


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
async def test_a_server_that_is_killed_resets_its_target() -> None:
    """The kernel would say FIN for it, and the target would take a part for the whole."""
    ended = []
    over = trio.Event()

    begun = trio.Event()

    async def judge(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some():
                begun.set()
            ended.append("eof")
        except trio.BrokenResourceError:
            ended.append("reset")
        over.set()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with target(judge) as where, trio.open_nursery() as nursery:
        command = [sys.executable, "-m", "http2tcp", "-s", "-q", "-t", TOKEN, "-l", str(port)]
        process = await nursery.start(
            lambda task_status: trio.run_process(command, check=False, task_status=task_status)
        )
        address = parse_listen(str(port))
        with trio.fail_after(20):
            while True:
                try:
                    stream, _ = await open_raw(address, upgrade(f"/?addr={where}"))  # type: ignore[arg-type]
                    break
                except OSError:
                    await trio.sleep(0.05)
            async with stream:
                await stream.send_all(b"part")
                await begun.wait()
                os.kill(process.pid, signal.SIGKILL)
                await over.wait()
    assert ended == ["reset"]
