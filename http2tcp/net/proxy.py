"""Asking a proxy for a connection, over a stream to it.

Nothing is read beyond the proxy's answer from a bare socket: TLS, splice(2) and ssh take it from there.
"""

from __future__ import annotations

from http2tcp.address import TCPAddress
from http2tcp.net.fdpass import HeadReceiver
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.protocol.proxy import Connect, Refused
from http2tcp.protocol.socks import Socks5


async def connect_through(
    stream: Stream, target: TCPAddress, *, user_agent: str, credentials: tuple[bytes, bytes] | None
) -> Refused | None:
    """CONNECT; None where the proxy has connected us. What came with its answer is the stream's next.

    The caller sets the deadline. Raises ProxyProtocolError or BrokenResourceError.
    """
    handshake = Connect(str(target), user_agent=user_agent, credentials=credentials)
    receive = HeadReceiver(stream).receive if isinstance(stream, SocketStream) else stream.receive_some
    await stream.send_all(handshake.request)
    while (answer := handshake.next_event()) is None:
        handshake.receive(await receive())
    if isinstance(answer, Refused):
        return answer
    stream.unread(answer.trailing_data)
    return None


async def socks5_through(stream: Stream, target: TCPAddress, *, credentials: tuple[bytes, bytes] | None) -> None:
    """SOCKS5. The caller sets the deadline. Raises ProxyProtocolError, SocksRefusal or BrokenResourceError."""
    handshake = Socks5(target.host, target.port, credentials=credentials)
    await stream.send_all(handshake.outgoing)
    while handshake.needed:
        handshake.receive(await stream.receive_some(handshake.needed))
        await stream.send_all(handshake.outgoing)
