"""The streams that the relay joins.

`Stream` is trio's HalfCloseableStream with five additions: `abort` tells the peer that it did not get everything;
`send_reason` tells it why; `flush` waits until the peer's kernel has what was sent; `ends` says what the end of one
direction means; `unread` gives back bytes that were read together with a head.
"""

from __future__ import annotations

import errno
import math
import operator
import os
import socket
import struct
import sys
from abc import abstractmethod
from typing import NamedTuple

import trio

from http2tcp.errors import Http2tcpError

# How many bytes to receive at a time. Measured in one direction: 1.6 GB/s with 256 KiB, 1.05 GB/s with 64 KiB, and no
# more than 1.6 GB/s with larger chunks.
CHUNK = 256 * 1024

# The kernel notices a dead peer after 30 + 3 x 10 s; an idle tunnel costs two packets a minute.
KEEPALIVE_IDLE = 30
KEEPALIVE_INTERVAL = 10
KEEPALIVE_COUNT = 3

# How long to wait for a peer that we cannot half-close to, in seconds. If it stays silent this long, it is probably
# waiting for our EOF: end the tunnel.
EOF_PATIENCE = 30.0

#: Whether to use the code for systems other than Linux, for relaying and for stdin and stdout. For tests and
#: comparisons.
PORTABLE = "HTTP2TCP_PORTABLE" in os.environ

#: The text of the error if a stream was closed while its peer took no more bytes, so that the end could not be sent.
UNSAID_END = "the other side took nothing more, not even the end"

Bytes = bytes | bytearray | memoryview

_RESET = struct.pack("ii", 1, 0)
_DELIVER = struct.pack("ii", 0, 0)
# linux/sockios.h. Python has it only in termios, which is not worth an import.
_SIOCOUTQ = 0x5411
# linux/tcp.h: the position of tcpi_bytes_acked in TCP_INFO. It is a number of 64 bits.
_ACKNOWLEDGED = slice(120, 128)
# linux/tcp_states.h: the state of a connection that has ended. The state is the first byte of TCP_INFO.
_TCP_CLOSE = 7


class Queue(NamedTuple):
    """How many sent bytes the peer's kernel has and has not acknowledged."""

    #: Sent by us, and not yet acknowledged by the peer's kernel.
    kept: int = 0
    #: Acknowledged by the peer's kernel so far, including what TLS and capsules add to the payload.
    acknowledged: int = 0


class Ends(NamedTuple):
    """What the end of one direction means on a stream. The relay acts on it."""

    #: Whether `send_eof` ends one direction only. Otherwise it raises HalfCloseUnsupported: it would end both.
    half_close: bool = True
    #: How long, in seconds, the peer may stay silent once the other side of the relay has sent its EOF.
    eof_patience: float = math.inf
    #: Whether silence for `eof_patience` counts as the peer's EOF. Otherwise the tunnel counts as cut, since the peer
    #: may have had more to say.
    silence_is_end: bool = False
    #: Whether the peer's EOF soon ends both directions, whatever the other side of the relay does.
    eof_is_last: bool = False
    #: Whether an EOF before the first byte counts as a break: the peer is a server that answers before it connects to
    #: the target, and it ends like this if it cannot connect.
    empty_is_broken: bool = False


#: The `Ends` of a stream that ends as TCP does.
TCP_ENDS = Ends()


class Stream(trio.abc.HalfCloseableStream):
    """One side of a relay."""

    #: What the end of a direction means on this stream.
    ends: Ends = TCP_ENDS

    #: True if `source_fd` and `sink_fd` carry capsules, not bare payload.
    framed: bool = False
    #: True if the stream may move to another connection at any time, and so shows no descriptors.
    changes_carriers: bool = False
    #: Whether `attend` has something to do.
    needs_attention: bool = False
    #: How many bytes a caller best sends at a time.
    chunk: int = CHUNK
    #: How many bytes a pump hands to `send_all` at most. They count as moved only once `send_all` returns, so a slow
    #: stream takes small pieces.
    piece: int = CHUNK

    #: Why the peer ended the tunnel, in its own words, as a sentence fit for a terminal. Empty if it gave no reason.
    peer_reason: str = ""

    _ahead: bytes = b""
    #: Whether a task is sending. The default is on the class, so that an idle tunnel uses no memory for it.
    _sending: bool = False

    def unread(self, data: bytes) -> None:
        """Give back bytes that were received and not used: the next `receive_some` returns them."""
        self._ahead = data + self._ahead

    @property
    def has_ahead(self) -> bool:
        """Whether `unread` has given back bytes that nobody has taken yet."""
        return bool(self._ahead)

    def take_ahead(self, max_bytes: int | None = None) -> bytes:
        """Take the bytes that were given back by `unread`; b"" if there are none."""
        data, self._ahead = self._ahead[:max_bytes], self._ahead[max_bytes:] if max_bytes else b""
        return data

    def _begin_sending(self) -> None:
        """Raise BusyResourceError if another task is sending. The caller resets `_sending` when it is done."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True

    def source_fd(self) -> int | None:
        """The non-blocking descriptor whose bytes `receive_some` returns unchanged; None if there is none."""
        return None

    def sink_fd(self) -> int | None:
        """The non-blocking descriptor that `send_all` writes to unchanged; None if there is none."""
        return None

    async def attend(self) -> None:
        """Do what has to be done while the tunnel is open, such as keepalives, until cancelled."""

    @abstractmethod
    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...

    @abstractmethod
    def abort(self) -> None:
        """Close at once, with a reset if the transport has one: the peer must not mistake a part for the whole."""

    async def send_reason(self, why: str, code: int = 0) -> None:
        """Before `abort`: tell the peer why, if the transport can carry a reason. The caller sets a deadline.

        `code` is one of `http2tcp.protocol.capsule.ResetCode`, for transports that have codes.
        """

    async def leave(self) -> None:
        """Before `abort` of a cancelled relay: say that we leave, if the peer would otherwise wait for us to come back.

        This takes a second at most.
        """

    def delivery_patience(self, code: int) -> float:
        """How many seconds `send_reason` (with this `code`) and `flush` may take, if that is longer than usual."""
        return 0.0

    async def flush(self) -> None:
        """Wait until the peer's kernel has everything that was sent. The caller sets a deadline."""

    def queue(self) -> Queue:
        """How many sent bytes the peer's kernel has and has not acknowledged. All zeros if our kernel does not say."""
        return Queue()

    def reset_on_exit(self) -> None:
        """Make the kernel send a reset if the process ends before `aclose`.

        Otherwise the peer might mistake a part for the whole.
        """

    def acknowledge_eof(self) -> None:
        """Tell the peer, now or soon, that all its bytes and its EOF were handed on, if the transport can say so."""

    @property
    def eof_acknowledged(self) -> bool:
        """Whether we have told the peer that all its bytes were handed on. If so, none of them may be dropped now."""
        return False

    async def wait_acknowledged(self) -> None:
        """After the peer's EOF: wait until the peer has acknowledged ours. Raises BrokenResourceError if it is gone."""

    async def finish(self) -> None:
        """Once both directions have ended: send what is still owed, and wait until the peer has everything.

        Raises BrokenResourceError. Once `finish` has returned, `aclose` sends nothing that the peer needs. `finish`
        takes as long as the peer does, so the caller sets a deadline, and aborts the stream if `finish` did not return.
        """

    async def linger(self) -> None:
        """Receive and drop what the peer still sends until it ends.

        A socket that is closed with bytes unread sends a reset, which makes the peer lose what was sent to it. The
        caller sets a deadline, and closes the stream afterwards.
        """
        while await self.receive_some():
            pass


def check_size(max_bytes: int | None) -> None:
    """Raise ValueError or TypeError for a `max_bytes` that `receive_some` does not take."""
    if max_bytes is not None and operator.index(max_bytes) < 1:
        raise ValueError("max_bytes must be at least 1")


class HalfCloseUnsupported(Http2tcpError):
    """`send_eof` was called on a stream whose `ends.half_close` is False."""


class SocketStream(Stream):
    """A TCP or Unix stream socket. The stream makes the socket non-blocking and owns it."""

    _resets_on_exit = False
    _eof_sent = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        if sock.family != getattr(socket, "AF_UNIX", None):
            _tune(sock)

    def source_fd(self) -> int | None:
        fd = self.socket.fileno()
        return None if fd < 0 else fd

    sink_fd = source_fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive up to `max_bytes` (default 256 KiB); b"" is EOF. Raises BrokenResourceError on a reset."""
        check_size(max_bytes)
        if self._ahead:
            self._open()
            await trio.lowlevel.checkpoint()
            return self.take_ahead(max_bytes)
        while True:
            # Wait before reading: a read that finds nothing costs more than waiting for readiness does.
            await trio.lowlevel.wait_readable(self._open())
            try:
                return self.socket.recv(max_bytes or CHUNK)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise broken(error) from error

    async def send_all(self, data: Bytes) -> None:
        """Send everything. Raises BrokenResourceError if the peer is gone.

        Once everything is sent, a cancellation has no effect. Otherwise the caller would believe that a part was not
        sent.
        """
        self._begin_sending()
        try:
            await self._send(data)
        finally:
            self._sending = False

    async def _send(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._open()
        if self._eof_sent:
            raise trio.ClosedResourceError("this stream's EOF was already sent")
        waited = False
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                try:
                    sent += self._open().send(view[sent:])
                except (BlockingIOError, InterruptedError):
                    await trio.lowlevel.wait_writable(self.socket)
                    waited = True
                except OSError as error:
                    raise broken(error) from error
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room."""
        self._begin_sending()
        try:
            await trio.lowlevel.wait_writable(self._open())
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Send FIN and go on receiving. If the peer is gone, raise nothing: `receive_some` reports it."""
        self._begin_sending()
        try:
            await self._send_fin()
        finally:
            self._sending = False
        self._eof_sent = True

    async def _send_fin(self) -> None:
        await trio.lowlevel.checkpoint()
        try:
            self._open().shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET):
                raise broken(error) from error

    def reset_on_exit(self) -> None:
        """See `Stream.reset_on_exit`. Without it, the kernel sends FIN for a process that was killed."""
        self._resets_on_exit = True
        reset_on_close(self.socket)

    async def linger(self) -> None:
        """See `Stream.linger`. Sends FIN first, since the peer may be waiting for it; a send under way then fails."""
        await self._send_fin()
        await super().linger()

    async def flush(self) -> None:
        """See `Stream.flush`. Returns at once if our kernel does not say what the peer's kernel has."""
        await delivered(self.socket)

    def queue(self) -> Queue:
        """See `Stream.queue`."""
        return queue_of(self.socket)

    def abort(self) -> None:
        """Send RST and close. A Unix socket has no RST; its peer sees an EOF."""
        if self.socket.fileno() < 0:
            return
        reset_on_close(self.socket)
        self._close()

    async def aclose(self) -> None:
        """Close. The kernel still delivers what was sent."""
        if self._resets_on_exit and self.socket.fileno() >= 0:
            deliver_on_close(self.socket)
        self._close()
        await trio.lowlevel.checkpoint()

    def _open(self) -> socket.socket:
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was already closed")
        return self.socket

    def _close(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


def reset_on_close(sock: socket.socket) -> None:
    """Make closing the socket send RST, if it is TCP, and drop what was not sent yet."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # the peer has reset it already


def deliver_on_close(sock: socket.socket) -> None:
    """Undo `reset_on_close`."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DELIVER)
    except OSError:
        pass  # the peer has reset it already


def broken(error: OSError) -> Exception:
    """Translate a socket's error into an exception of trio's."""
    if error.errno == errno.EBADF:
        return trio.ClosedResourceError("another task closed this stream")
    return trio.BrokenResourceError(f"the connection broke: {error.strerror}")


def _tune(sock: socket.socket) -> None:
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_COUNT),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError:
                pass  # a socket that was reset already takes no options; reading from it will raise


async def delivered(sock: socket.socket) -> None:
    """Wait until the peer's kernel has what was sent. Returns at once if our own kernel does not say."""
    if sys.platform == "linux":
        pause = 0.001
        while sock.fileno() >= 0 and _unsent(sock):
            await trio.sleep(pause)
            pause = min(pause * 2, 0.1)


def _unsent(sock: socket.socket) -> int:
    import fcntl

    try:
        # After a reset, the kernel still counts the bytes that it dropped as unsent.
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            return 0
        answer = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0  # a Unix socket, whose peer has everything at once
    return int.from_bytes(answer, sys.byteorder)


def queue_of(sock: socket.socket) -> Queue:
    """See `Stream.queue`. Only Linux has these numbers, and only for TCP."""
    if sys.platform != "linux" or sock.fileno() < 0:
        return Queue()
    kept = _unsent(sock)
    if not kept:
        return Queue()
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.stop)
    except OSError:
        return Queue()
    return Queue(kept, int.from_bytes(info[_ACKNOWLEDGED], sys.byteorder))
