"""The forwarder over TLS, where raw bytes have no half-close: what a local application sees of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from http2tcp.client.settings import TLSSettings
from http2tcp.protocol.transport import Transport
from tests.support.loopback import (
    echo,
    forwarding,
    greet_and_close,
    read_all,
    read_until_broken,
    served,
    target,
)
from tests.support.tls_front import tls_front


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_target_that_closes_is_a_clean_end_over_tls(
    tmp_path: Path, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(greet_and_close) as where, served() as server, tls_front(server.address, tmp_path) as front:
        tls = TLSSettings(ca_file=str(front.ca_file))
        async with forwarding(front.url, where, tls=tls, transport=transport) as local:
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                assert await read_all(stream) == b"hello\n"
    assert warnings(caplog) == []


async def test_a_local_half_close_over_tls_waits_for_the_reply(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, may_reply = os.urandom(500_000), trio.Event()

    async def reply(stream: trio.SocketStream) -> None:
        received = b""
        while len(received) < len(data):
            received += await stream.receive_some()
        await may_reply.wait()
        await stream.send_all(received)
        await stream.aclose()

    async with target(reply) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with forwarding(front.url, where, tls=TLSSettings(ca_file=str(front.ca_file))) as local:
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                await stream.send_all(data)
                await stream.send_eof()
                may_reply.set()
                assert await read_all(stream) == data
    assert warnings(caplog) == []


async def test_a_target_that_waits_for_an_eof_in_vain_is_given_up_and_the_application_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patient_clock: trio.testing.MockClock
) -> None:
    async with target(read_all) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with forwarding(front.url, where, tls=TLSSettings(ca_file=str(front.ca_file))) as local:
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                await stream.send_eof()
                started = trio.current_time()
                assert await read_until_broken(stream) == b""
                assert trio.current_time() - started == pytest.approx(30, abs=1)
    assert len(warnings(caplog)) == 1
    assert "TLS" in warnings(caplog)[0]


async def test_connect_tcp_carries_a_half_close_through_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = os.urandom(1024 * 1024)
    async with target(echo) as where, served() as server, tls_front(server.address, tmp_path) as front:
        tls = TLSSettings(ca_file=str(front.ca_file))
        async with forwarding(front.url, where, tls=tls, transport=Transport.CONNECT_TCP) as local:
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                async with trio.open_nursery() as nursery:

                    async def send() -> None:
                        await stream.send_all(data)
                        await stream.send_eof()

                    nursery.start_soon(send)
                    assert await read_all(stream) == data
    assert warnings(caplog) == []


async def test_a_front_end_that_cuts_tls_resets_the_application(
    tmp_path: Path, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(greet_and_close) as where, served() as server:
        async with tls_front(server.address, tmp_path, close_notify=False) as front:
            tls = TLSSettings(ca_file=str(front.ca_file))
            async with forwarding(front.url, where, tls=tls, transport=transport) as local:
                async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                    if not transport.raw:
                        # Its own end is in the stream, so that nothing is lost with the cut behind it.
                        assert await read_all(stream) == b"hello\n"
                        return
                    assert await read_until_broken(stream) == b"hello\n"
    assert "without close_notify" in warnings(caplog)[0]
