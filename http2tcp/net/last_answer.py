"""Sends the last answer on a connection, so that the peer gets it before the connection is closed."""

from __future__ import annotations

import trio

from http2tcp.net.streams import Stream

#: How many seconds a peer gets to read a last answer.
LINGER = 1.0
# How many bytes the peer may still send meanwhile. It may be in the middle of a large request.
_MOST_UNREAD = 256 * 1024


async def send_last_answer(stream: Stream, answer: bytes) -> None:
    """Send the answer and EOF, drop what the peer still sends until it ends, and close.

    Closing a socket while received bytes are unread sends a reset, and the peer's kernel may then throw away the
    answer. The caller sets a deadline, such as LINGER, and aborts the stream in any case: this returns early if the
    peer is gone, or if it does not stop sending.
    """
    try:
        await stream.send_all(answer)
        await stream.send_eof()
        unread = _MOST_UNREAD
        while unread > 0 and (data := await stream.receive_some()):
            unread -= len(data)
        await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
