"""How many descriptors this process may have."""

from __future__ import annotations

import os

from http2tcp.errors import TooFewDescriptors, os_reason

# What one tunnel needs: trio's epoll and its two pairs of sockets; the tunnel's own sockets, with a pipe or two; a file
# of certificates, or two sockets for look-ups. A server adds its listeners.
_ONE_TUNNEL = 16
# The number to assume if the system says "no limit": in fact there always is one.
_PLENTY = 65536


def allowed() -> int:
    """The number of descriptors that the process may have."""
    try:
        import resource
    except ImportError:  # Windows
        return _PLENTY
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _PLENTY if soft == resource.RLIM_INFINITY else soft


def require(more: int = 0) -> None:
    """Raise TooFewDescriptors if there are too few descriptors for one tunnel and `more` others.

    Call it at the start. Later, a lack of descriptors could not even be reported: Python opens files to print a
    traceback.
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
    """Raise the soft limit to the hard limit. It is low for programs that use select(2), which the server does not."""
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
            pass  # macOS has a lower limit than the hard one that it reports
