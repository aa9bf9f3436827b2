"""A clock that does not count the time during which the process was stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

# If the loop looks at the clock this many seconds later than it planned to, the process was stopped.
_STOPPED = 0.5
# How many seconds to put off a deadline that passed while the process was stopped: long enough to read the bytes that
# have arrived.
_LOOK = 0.5


class AwakeClock(trio.abc.Clock):
    """A monotonic clock that stands still while the process is stopped (SIGSTOP, a frozen container).

    With an ordinary clock, all deadlines would have passed when the process continues, while the bytes that its peers
    sent are still unread. It would close tunnels as idle and refuse clients as too slow, although they sent in time.
    For a suspended machine no such clock is needed: its monotonic clock stands still.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._missed = 0.0
        # When the loop last looked at the clock, and when it planned to look again.
        self._last = self._until = monotonic()
        self._put_off = -math.inf

    def start_clock(self) -> None:
        """Do nothing: the clock is running already."""

    def current_time(self) -> float:
        """Return a time in seconds that omits the stops of the process. It never goes back."""
        now = self._monotonic() - self._missed
        if now - self._until > _STOPPED:
            now = self._wake(now)
        self._last = self._until = now
        return now

    def _wake(self, now: float) -> float:
        if self._until <= self._last:
            # The loop did not plan to sleep. It may have been working all the time, so count some of it: `_STOPPED`.
            earlier = self._last + _STOPPED
        elif self._until > self._put_off:
            # Put each deadline off only once, so that it passes at some time even on a machine that is always late.
            self._put_off = self._until
            earlier = max(self._last, self._until - _LOOK)
        else:
            return now
        self._missed += now - earlier
        return earlier

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long to sleep until the deadline. Note in `_until` when trio will look at the clock again.

        If trio looks much later than `_until`, the process was stopped.
        """
        now = self.current_time()
        self._until = max(deadline, now)
        return deadline - now
