"""ssh's ProxyCommand: relay stdin and stdout through a tunnel, or hand the tunnel's socket to ssh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from http2tcp.client.connector import _upgrade, connect, dial_endpoint, why_it_ended
from http2tcp.client.settings import ClientSettings
from http2tcp.errors import (
    StdioFailed,
    TunnelCut,
    TunnelError,
    os_reason,
)
from http2tcp.net.relay import End, Traffic, relay
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.transport import Transport

if TYPE_CHECKING:
    from http2tcp.net.preconnect import HeadStart
    from http2tcp.net.stdio import StdioStream

# How many seconds to go on sending stdin once the reader of stdout has gone: ssh sends its last packet and exits.
LAST_WORDS = 1.0


async def run_stdio(settings: ClientSettings, stdio: StdioStream, head_start: HeadStart | None = None) -> None:
    """Relay `stdio` through a tunnel until both directions have ended, or until the reader of stdout has gone.

    Raises TunnelError.
    """
    failure: TunnelError | None = None
    traffic = Traffic()
    reader_left = False
    async with trio.open_nursery() as nursery:

        async def end_with_the_reader() -> None:
            nonlocal reader_left
            await stdio.reader_gone()
            reader_left = True
            traffic.up.limit_silence(LAST_WORDS / 2)
            nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS

        nursery.start_soon(end_with_the_reader)
        try:
            tunnel = await connect(settings, head_start)
            outcome = await relay(stdio, tunnel.stream, traffic)
            if stdio.fault:
                failure = StdioFailed(stdio.fault)
            elif not (reader_left and outcome.end is End.CLIENT_SILENT):
                failure = why_it_ended(tunnel, outcome, traffic)
        except TunnelError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def hand_over(settings: ClientSettings, output_fd: int) -> None:
    """Open a tunnel and give its socket to the process behind `output_fd`, a Unix socket. Raises TunnelError.

    From then on the bytes do not pass through this process. So the endpoint cannot be https: TLS runs in this process.
    """
    from http2tcp.net.fdpass import HeadReceiver, pass_socket

    stream = await dial_endpoint(settings)
    assert isinstance(stream, SocketStream)
    try:
        # Only a transport of raw bytes can be handed over: ssh does not speak the others.
        transport = settings.transport or Transport.TCP
        await _upgrade(settings, transport, stream, HeadReceiver(stream).receive)
        pass_socket(stream, output_fd)
    except OSError as error:
        raise TunnelCut(f"ssh did not take the connection: {os_reason(error)}") from error
    finally:
        stream.abort()
