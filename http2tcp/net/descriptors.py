"""The process's descriptors: how many it may have."""

from __future__ import annotations

import os

from http2tcp.errors import TooFewDescriptors, os_reason

# For one tunnel: trio's epoll and its two pairs of sockets, and those of the tunnel with a pipe or two, a look-up's or
# the certificates' file. It needs no more than that to be of use; a server counts its listeners as well.
_ONE_TUNNEL = 16
# Where a system says "no limit", and has one all the same.
_PLENTY = 65536


def allowed() -> int:
    """How many the process may have."""
    try:
        import resource
    except ImportError:  # Windows
        return _PLENTY
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _PLENTY if soft == resource.RLIM_INFINITY else soft


def require(more: int = 0) -> None:
    """Raise TooFewDescriptors where one tunnel could not be opened. `more` is what is needed beside it.

    Out of descriptors, not even a traceback can be printed, since Python has to load what prints it.
    """
    taken: list[int] = []
    try:
        while len(taken) < _ONE_TUNNEL + more:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        missing = _ONE_TUNNEL + more - len(taken)
        raise TooFewDescriptors(
            f"{os_reason(error)}: at least {missing} more are needed (raise ulimit -n, or a unit's LimitNOFILE=)"
        ) from None
    finally:
        for fd in taken:
            os.close(fd)


def allow_many() -> None:
    """Raise the soft limit to the hard one, as a server may: it is low for the sake of select(2)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _PLENTY if hard == resource.RLIM_INFINITY else hard
    if soft not in (wanted, resource.RLIM_INFINITY) and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # macOS has a lower limit that it does not name
