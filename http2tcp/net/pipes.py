"""Pipes for splice(2), and the bounded pool that lends them."""

from __future__ import annotations

import os

# The kernel's limit for everybody, fs.pipe-max-size, unless it was changed.
PIPE_SIZE = 1024 * 1024


# A pipe beyond the user's page limit gets two pages, with which copying is faster.
_PIPE_USEFUL = 64 * 1024
# Pipes at work at once; 64 MiB is also what fs.pipe-user-pages-soft lets a user have. Where descriptors are few, one
# in eight is a pipe's at most: the others are for those who connect.
_MAX_PIPES = 64
_PIPE_SHARE = 1 / 16
# Pipes kept for the next flow.
_MAX_SPARE = 8


class Pipe:
    """A pipe of 1 MiB, or of what the user's limits allow."""

    __slots__ = ("entry", "exit", "held", "size")

    def __init__(self) -> None:
        self.exit, self.entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        #: Bytes in it.
        self.held = 0
        self.size = grow(self.entry, PIPE_SIZE)

    def close(self) -> None:
        """Give its descriptors back."""
        os.close(self.entry)
        os.close(self.exit)


class PipePool:
    """A bounded pool of empty pipes."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self._taken = 0

    def take(self) -> Pipe | None:
        """A pipe, or None where there are to be no more."""
        if self._taken >= _MAX_PIPES:
            return None
        if self._spare:
            self._taken += 1
            return self._spare.pop()
        # It can change while the process runs; a pipe is seldom made. Below zero there is no limit.
        descriptors = os.sysconf("SC_OPEN_MAX")
        if 0 <= descriptors * _PIPE_SHARE < self._taken + 1:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.size < _PIPE_USEFUL:
            pipe.close()
            return None
        self._taken += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take it back. One that still holds bytes, of a flow that broke, is closed."""
        self._taken -= 1
        if pipe.held or len(self._spare) >= _MAX_SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)


pipes = PipePool()


def grow(pipe: int, size: int) -> int:
    """Make a pipe hold so many bytes, if it holds less and the kernel allows; what it holds then."""
    import fcntl

    held = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    if held >= size:
        return held
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return held
