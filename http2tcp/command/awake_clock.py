"""A clock that does not count the time in which the process was stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

# If the loop looks at the clock this many seconds later than it planned to, the process was stopped.
_STOPPED = 0.5
# How many seconds a deadline that passed meanwhile is put off: long enough to read what has arrived.
_LOOK = 0.5


class AwakeClock(trio.abc.Clock):
    """A monotonic clock that stands still while the process is stopped (SIGSTOP, a frozen container).

    With an ordinary clock, all deadlines would have passed when the process wakes, while what its peers sent is still
    unread: it would close tunnels as idle, and refuse clients as too slow, for a silence that was its own. A suspended
    machine needs no such clock: its monotonic clock stands still.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._missed = 0.0
        # When the loop last looked at the clock, and when it planned to look again.
        self._last = self._until = monotonic()
        self._put_off = -math.inf

    def start_clock(self) -> None:
        """Do nothing: the clock runs already."""

    def current_time(self) -> float:
        """The seconds in which the process could run. Never less than before."""
        now = self._monotonic() - self._missed
        if now - self._until > _STOPPED:
            now = self._wake(now)
        self._last = self._until = now
        return now

    def _wake(self, now: float) -> float:
        if self._until <= self._last:
            # The loop did not plan to sleep: it was working, and that may have taken all the time.
            earlier = self._last + _STOPPED
        elif self._until > self._put_off:
            # Put each deadline off only once: on a machine that is always late, it has to pass at some time.
            self._put_off = self._until
            earlier = max(self._last, self._until - _LOOK)
        else:
            return now
        self._missed += now - earlier
        return earlier

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long to wait for the deadline. trio sleeps next; when it looks again, `_until` shows how late it is."""
        now = self.current_time()
        self._until = max(deadline, now)
        return deadline - now
