"""The process's descriptors: how many it may have."""

from __future__ import annotations

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
