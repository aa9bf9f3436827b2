"""Puts the framing of a tunnel's transport on the stream that was upgraded. The client and the server share this."""

from __future__ import annotations

import math

from http2tcp.net.streams import Stream
from http2tcp.protocol.transport import Transport


def carrier(stream: Stream, transport: Transport | None, *, client: bool, capsules: bool, keepalive: float) -> Stream:
    """Return a stream that carries the tunnel's capsules or raw bytes. It owns `stream`, or is `stream` itself.

    The arguments are those of `framed`.
    """
    if transport is not Transport.WEBSOCKET:
        return stream
    # Imported only if needed: this loads wsproto, whose import costs a login the most milliseconds.
    from http2tcp.net.websocket import WebSocketStream

    # Capsules have keepalives of their own, so pings would only repeat them.
    return WebSocketStream(stream, client=client, keepalive=math.inf if capsules else keepalive)


def framed(
    stream: Stream,
    transport: Transport | None,
    *,
    client: bool,
    capsules: bool,
    keepalive: float,
    peer_keepalive: float | None,
    confirms: bool,
) -> Stream:
    """Return a stream of the tunnel's payload. It owns `stream`, or is `stream` itself for a raw transport.

    `client`: this end is the client. `capsules`: both ends agreed to put the payload into capsules.
    `keepalive`, `peer_keepalive` and `confirms` are those of `http2tcp.net.capsules.CapsuleStream`.
    """
    stream = carrier(stream, transport, client=client, capsules=capsules, keepalive=keepalive)
    if capsules:
        # Each framing is imported by its first tunnel: an import costs a login milliseconds.
        from http2tcp.net.capsules import CapsuleStream

        stream = CapsuleStream(
            stream, keepalive=keepalive, peer_keepalive=peer_keepalive, confirms=confirms, client=client
        )
    return stream
