"""Pipes for splice(2), and the bounded pool that lends them."""

from __future__ import annotations

import os

# The default of fs.pipe-max-size, which bounds every process without privileges.
PIPE_SIZE = 1024 * 1024
# Do not use a smaller pipe. Once a user has too many pipe pages, the kernel gives a new pipe only two pages, and
# copying is faster than splicing through such a pipe.
_PIPE_USEFUL = 64 * 1024
# How many pipes may be lent at once. They hold 64 MiB, which is also the default of fs.pipe-user-pages-soft. If few
# descriptors are allowed, pipes take at most one in eight of them (each pipe takes two), so that enough are left for
# connections.
_MAX_PIPES = 64
_PIPE_SHARE = 1 / 16
# How many idle pipes are kept for later flows.
_MAX_SPARE = 8


class Pipe:
    """A pipe of 1 MiB, or smaller if the user's limits do not allow that."""

    __slots__ = ("entry", "exit", "held", "size")

    def __init__(self) -> None:
        self.exit, self.entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        #: How many bytes the pipe holds.
        self.held = 0
        self.size = grow(self.entry, PIPE_SIZE)

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.entry)
        os.close(self.exit)


class PipePool:
    """A bounded pool of empty pipes."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self._taken = 0

    def take(self) -> Pipe | None:
        """Lend a pipe; None if the limit is reached, or no useful pipe can be made."""
        if self._taken >= _MAX_PIPES:
            return None
        if self._spare:
            self._taken += 1
            return self._spare.pop()
        # Ask each time, since the limit may change while the process runs. A negative value means no limit.
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
        """Take a pipe back. Close it if it still holds bytes, because its flow broke, or if enough pipes are idle."""
        self._taken -= 1
        if pipe.held or len(self._spare) >= _MAX_SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)


pipes = PipePool()


def grow(pipe: int, size: int) -> int:
    """Enlarge a pipe to `size` bytes if the kernel allows it, and return its size. A larger pipe stays as it is."""
    import fcntl

    held = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    if held >= size:
        return held
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return held
