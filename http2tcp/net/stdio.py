"""Standard input and output as one stream.

stdin and stdout are shared with whoever started us, and O_NONBLOCK is a property of the open file, not
of the descriptor: setting it would break theirs. So a pipe is opened anew through /proc on Linux, a
socket is asked with MSG_DONTWAIT, and all else (a terminal, a file, another system) is read and written
by threads. Descriptor 2 is never touched.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
from abc import ABC, abstractmethod

import trio

from http2tcp.errors import os_reason
from http2tcp.net.streams import CHUNK, PORTABLE, Bytes, Ends, Stream, broken, check_size

# How long, in seconds, stdin may stay open and silent after the target's end. ssh closes its pipe within milliseconds.
SILENCE = 3.0
# A terminal has no end of its own: after the target's end, its user has nobody left to type to.
TERMINAL_SILENCE = 0.5
# Where the kernel cannot wake us, how often to look whether stdout's reader is gone.
_LOOK = 0.25


class StdioStream(Stream):
    """Two descriptors as a stream: receiving reads the one, sending writes to the other.

    `send_eof` closes the output.
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1, *, portable: bool = PORTABLE) -> None:
        terminal = os.isatty(input_fd)
        self.ends = Ends(eof_patience=TERMINAL_SILENCE if terminal else SILENCE, silence_is_end=terminal)
        self._input = _open_input(input_fd, portable)
        self._output = _open_output(output_fd, portable)
        self._output_closed = False

    @property
    def fault(self) -> str:
        """What made reading or writing fail; empty where nothing did, or where the other side has left."""
        return self._input.fault or self._output.fault

    def source_fd(self) -> int | None:
        return self._input.own_fd()

    def sink_fd(self) -> int | None:
        return self._output.own_fd()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to `max_bytes` (256 KiB by default); b"" is EOF."""
        check_size(max_bytes)
        _check_open(self._input)
        return await self._input.read(max_bytes or CHUNK)

    async def send_all(self, data: Bytes) -> None:
        """Write everything. Raises BrokenResourceError where the reader is gone."""
        _check_open(self._output)
        self._begin_sending()
        try:
            await self._output.write(data)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: `send_all` waits where it must."""
        _check_open(self._output)
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Close the output, for its reader to see."""
        self._output.close()
        self._output_closed = True
        await trio.lowlevel.checkpoint()

    async def reader_gone(self) -> None:
        """Wait until nobody can read the open output any more; for ever where that cannot be told."""
        await self._output.reader_gone()
        if self._output_closed:
            await trio.sleep_forever()

    def abort(self) -> None:
        """Let go of both, which end with the process: ssh leaves at their end, and our last words come first."""
        self._input.let_go()
        self._output.let_go()

    async def aclose(self) -> None:
        """Close both."""
        self._input.close()
        self._output.close()
        await trio.lowlevel.checkpoint()


def _check_open(end: _Input | _Output) -> None:
    if end.closed:
        raise trio.ClosedResourceError("this stream was already closed")


class _Input(ABC):
    fault = ""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.closed = False

    @abstractmethod
    async def read(self, max_bytes: int) -> bytes: ...

    def own_fd(self) -> int | None:
        return None

    def close(self) -> None:
        self.let_go()
        if not self.closed:
            self.closed = True
            _give_back(self.fd)

    def let_go(self) -> None:
        return


class _Output(ABC):
    fault = ""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.closed = False

    @abstractmethod
    async def write(self, data: Bytes) -> None: ...

    def own_fd(self) -> int | None:
        return None

    async def reader_gone(self) -> None:
        await _hung_up(self.fd)

    def close(self) -> None:
        """Tell the reader that nothing more comes."""
        if not self.closed:
            self.closed = True
            _shut_down(self.fd)
            _give_back(self.fd)

    def let_go(self) -> None:
        return


class _PolledInput(_Input):
    """A pipe through an open file of our own, or a socket."""

    def __init__(self, fd: int, own: int | socket.socket) -> None:
        super().__init__(fd)
        self._own = own

    def own_fd(self) -> int | None:
        # A socket here is not non-blocking, which splice(2) would need.
        return self._own if isinstance(self._own, int) and self._own >= 0 else None

    async def read(self, max_bytes: int) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._own)
            try:
                if isinstance(self._own, int):
                    return os.read(self._own, max_bytes)
                return self._own.recv(max_bytes, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise broken(error) from error

    def let_go(self) -> None:
        if _close_own(self._own):
            self._own = -1


class _PolledOutput(_Output):
    def __init__(self, fd: int, own: int | socket.socket) -> None:
        super().__init__(fd)
        self._own = own

    def own_fd(self) -> int | None:
        # A socket here is not non-blocking, which splice(2) would need.
        return self._own if isinstance(self._own, int) and self._own >= 0 else None

    async def write(self, data: Bytes) -> None:
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                try:
                    if isinstance(self._own, int):
                        written += os.write(self._own, view[written:])
                    else:
                        written += self._own.send(view[written:], socket.MSG_DONTWAIT)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._own)
                except OSError as error:
                    raise broken(error) from error
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.let_go()
        super().close()

    def let_go(self) -> None:
        if _close_own(self._own):
            self._own = -1


class _ThreadInput(_Input):
    async def read(self, max_bytes: int) -> bytes:
        try:
            return await trio.to_thread.run_sync(_read, self.fd, max_bytes, abandon_on_cancel=True)
        except OSError as error:
            if not _has_left(self.fd, error):
                self.fault = f"cannot read stdin: {os_reason(error)}"
            raise trio.BrokenResourceError(f"stdin broke: {error.strerror}") from error


class _ThreadOutput(_Output):
    async def write(self, data: Bytes) -> None:
        try:
            await trio.to_thread.run_sync(_write, self.fd, bytes(data), abandon_on_cancel=True)
        except OSError as error:
            if not _has_left(self.fd, error):
                self.fault = f"cannot write to stdout: {os_reason(error)}"
            raise trio.BrokenResourceError(f"stdout broke: {error.strerror}") from error


def _has_left(fd: int, error: OSError) -> bool:
    """Whether the error says that the other side is gone: for a terminal that is a hang-up."""
    if error.errno == errno.EIO:
        return stat.S_ISCHR(os.fstat(fd).st_mode)
    return error.errno in (errno.EPIPE, errno.ECONNRESET)


def _open_input(fd: int, portable: bool) -> _Input:
    own = None if portable else _open_own(fd, os.O_RDONLY)
    return _ThreadInput(fd) if own is None else _PolledInput(fd, own)


def _open_output(fd: int, portable: bool) -> _Output:
    own = None if portable else _open_own(fd, os.O_WRONLY)
    return _ThreadOutput(fd) if own is None else _PolledOutput(fd, own)


def _open_own(fd: int, flags: int) -> int | socket.socket | None:
    """A way to the descriptor that does not change what others share; None where a thread is the way."""
    if sys.platform != "linux":
        return None
    mode = os.fstat(fd).st_mode
    try:
        if stat.S_ISSOCK(mode):
            return socket.socket(fileno=os.dup(fd))
        if stat.S_ISFIFO(mode):
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass  # no /proc, a pipe of another user's, or one without a reader: the thread finds out
    return None


def _close_own(own: int | socket.socket) -> bool:
    """Close what `_open_own` gave; False where it was closed before."""
    if isinstance(own, int):
        if own < 0:
            return False
        trio.lowlevel.notify_closing(own)
        os.close(own)
    else:
        if own.fileno() < 0:
            return False
        trio.lowlevel.notify_closing(own)
        own.close()
    return True


def _shut_down(fd: int) -> None:
    """Say EOF on a socket: it may be stdin too, so that closing it would tell nobody."""
    if os.name == "posix" and stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # nobody is there to be told


def _give_back(fd: int) -> None:
    # The number stays taken: a descriptor opened later must not become stdin or stdout.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, fd)
    os.close(nothing)


def _read(fd: int, max_bytes: int) -> bytes:
    while True:
        try:
            return os.read(fd, max_bytes)
        except BlockingIOError:
            select.select([fd], [], [])  # somebody else has made it non-blocking


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


async def _hung_up(fd: int) -> None:
    if sys.platform == "linux":
        # Without events asked for, epoll reports errors and hang-ups alone. It can be polled itself.
        with select.epoll() as epoll:
            try:
                epoll.register(fd, 0)
            except OSError:
                await trio.sleep_forever()  # a file has no reader that could go
            await trio.lowlevel.wait_readable(epoll.fileno())
    elif sys.platform == "win32":
        await trio.sleep_forever()
    else:
        poll = select.poll()
        poll.register(fd, 0)
        while not poll.poll(0):  # noqa: ASYNC110  (nothing could set an event)
            await trio.sleep(_LOOK)
