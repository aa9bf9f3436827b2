"""Standard input and output as one stream.

We share stdin and stdout with the program that started us. O_NONBLOCK is a property of the open file, not of the
descriptor, so setting it would change the file for that program too. Instead, a pipe is opened a second time through
/proc (on Linux), a socket is read and written with MSG_DONTWAIT, and everything else (a terminal, a file, another
system) is read and written by threads. Descriptor 2 is never touched.
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

# How long, in seconds, stdin may stay open and silent after the target's EOF. ssh closes its pipe within milliseconds.
SILENCE = 3.0
# The same limit for a terminal, which does not end by itself: after the target's EOF, nobody reads what its user types.
TERMINAL_SILENCE = 0.5
# How often, in seconds, to look whether stdout's reader is gone, on systems whose kernel cannot wake us for that.
_LOOK = 0.25


class StdioStream(Stream):
    """A stream made of two descriptors: it receives from the first and sends to the second.

    `send_eof` closes the second descriptor.
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1, *, portable: bool = PORTABLE) -> None:
        terminal = os.isatty(input_fd)
        self.ends = Ends(eof_patience=TERMINAL_SILENCE if terminal else SILENCE, silence_is_end=terminal)
        self._input = _open_input(input_fd, portable)
        self._output = _open_output(output_fd, portable)
        self._output_closed = False

    @property
    def fault(self) -> str:
        """Why reading or writing failed; empty if neither failed, or if the other side has merely left."""
        return self._input.fault or self._output.fault

    def source_fd(self) -> int | None:
        return self._input.own_fd()

    def sink_fd(self) -> int | None:
        return self._output.own_fd()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive up to `max_bytes` (default 256 KiB); b"" is EOF."""
        check_size(max_bytes)
        _check_open(self._input)
        return await self._input.read(max_bytes or CHUNK)

    async def send_all(self, data: Bytes) -> None:
        """Write everything. Raises BrokenResourceError if the reader is gone."""
        _check_open(self._output)
        self._begin_sending()
        try:
            await self._output.write(data)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: `send_all` does the waiting."""
        _check_open(self._output)
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Close the output, so that its reader sees the end."""
        self._output.close()
        self._output_closed = True
        await trio.lowlevel.checkpoint()

    async def reader_gone(self) -> None:
        """Wait until nobody can read the output any more.

        Wait for ever if we have closed the output, or if the system cannot say when its reader leaves.
        """
        await self._output.reader_gone()
        if self._output_closed:
            await trio.sleep_forever()

    def abort(self) -> None:
        """Close only our own copies. The two descriptors themselves stay open until the process ends.

        ssh ends as soon as these are closed, and our error message must be on the terminal before that.
        """
        self._input.let_go()
        self._output.let_go()

    async def aclose(self) -> None:
        """Close both descriptors."""
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
        """Close the output, so that its reader sees the end."""
        if not self.closed:
            self.closed = True
            _shut_down(self.fd)
            _give_back(self.fd)

    def let_go(self) -> None:
        return


class _PolledInput(_Input):
    """A pipe that we have opened a second time, or a socket."""

    def __init__(self, fd: int, own: int | socket.socket) -> None:
        super().__init__(fd)
        self._own = own

    def own_fd(self) -> int | None:
        # Return no socket: sockets stay blocking here, and splice(2) needs a non-blocking descriptor.
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
        # Return no socket: sockets stay blocking here, and splice(2) needs a non-blocking descriptor.
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
    """Whether the error says that the other side is gone. A terminal reports its hang-up as EIO."""
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
    """Return a descriptor or socket of our own for the file of `fd`, which other programs share.

    Using it does not change the file for them. None if only a thread can read or write the file.
    """
    if sys.platform != "linux":
        return None
    mode = os.fstat(fd).st_mode
    try:
        if stat.S_ISSOCK(mode):
            return socket.socket(fileno=os.dup(fd))
        if stat.S_ISFIFO(mode):
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass  # no /proc, another user's pipe, or a pipe without a reader: the thread meets and reports the error
    return None


def _close_own(own: int | socket.socket) -> bool:
    """Close what `_open_own` returned; False if it was closed already."""
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
    """Send EOF on a socket. The same socket may be stdin too, and then closing one descriptor sends nothing."""
    if os.name == "posix" and stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the peer is gone


def _give_back(fd: int) -> None:
    # Put /dev/null in the place of `fd`, so that the next descriptor that is opened does not become stdin or stdout.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, fd)
    os.close(nothing)


def _read(fd: int, max_bytes: int) -> bytes:
    while True:
        try:
            return os.read(fd, max_bytes)
        except BlockingIOError:
            select.select([fd], [], [])  # another process has made it non-blocking


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


async def _hung_up(fd: int) -> None:
    if sys.platform == "linux":
        # Register `fd` for no events: epoll then reports only errors and hang-ups. trio can wait for the epoll itself.
        with select.epoll() as epoll:
            try:
                epoll.register(fd, 0)
            except OSError:
                await trio.sleep_forever()  # it is a file, which has no reader that could leave
            await trio.lowlevel.wait_readable(epoll.fileno())
    elif sys.platform == "win32":
        await trio.sleep_forever()
    else:
        poll = select.poll()
        poll.register(fd, 0)
        while not poll.poll(0):  # noqa: ASYNC110  (nothing could set an event)
            await trio.sleep(_LOOK)
