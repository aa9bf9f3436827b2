"""Hands a connected socket to another process, as ssh's `ProxyUseFdpass yes` expects (ssh_config(5))."""

from __future__ import annotations

import os
import re
import socket
import stat

import trio

from http2tcp.net.streams import SocketStream, broken

_PEEK = 64 * 1024
# The end of a head, with or without CR, as h11 finds it.
_BLANK_LINE = re.compile(rb"\n\r?\n")
_LONGEST = 3


class HeadReceiver:
    """Receives up to the blank line that ends a head, and leaves the rest in the socket for the next process."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._tail = b""

    async def receive(self) -> bytes:
        """Receive what has arrived, up to the end of a head; b"" is EOF. Raises BrokenResourceError."""
        sock = self._stream.socket
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                seen = self._tail + sock.recv(_PEEK, socket.MSG_PEEK)
                blank = _BLANK_LINE.search(seen)
                wanted = (len(seen) if blank is None else blank.end()) - len(self._tail)
                data = sock.recv(wanted) if wanted else b""
            except BlockingIOError:
                continue
            except OSError as error:
                raise broken(error) from error
            # A blank line may arrive in pieces, so keep the last bytes that were seen. After a whole blank line, keep
            # nothing: otherwise the next call would find the same blank line again.
            self._tail = b"" if blank else seen[-_LONGEST + 1 :]
            return data


def is_unix_socket(fd: int) -> bool:
    """Whether `fd` is a socket over which another descriptor can be sent."""
    if not hasattr(socket, "SCM_RIGHTS") or not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.family == socket.AF_UNIX


def pass_socket(stream: SocketStream, fd: int) -> None:
    """Send the stream's socket over `fd`, together with one byte, and close our copy. Raises OSError."""
    with socket.socket(fileno=os.dup(fd)) as receiver:
        # The receiver expects a blocking socket, as connect(2) makes it.
        stream.socket.setblocking(True)
        socket.send_fds(receiver, [b"\0"], [stream.socket.fileno()])
    stream.socket.close()
