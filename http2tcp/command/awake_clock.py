"""A clock that does not count the time in which the process was stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

# Whoever looks at the clock so much later than was to be expected, in seconds, was stopped.
_STOPPED = 0.5
# What a deadline that fell into that time is put off by: to take what has come meanwhile.
_LOOK = 0.5


class AwakeClock(trio.abc.Clock):
    """A monotonic clock that stands still while the process is stopped (SIGSTOP, a frozen container).

    As it wakes, every deadline would be over, and what its peers have sent would be unread: nobody is given up, found
    idle or refused for a silence that was our own. A suspended machine needs nothing: its clock stands still by itself.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._missed = 0.0
        #: The last look, and until when no other is to be expected.
        self._last = self._until = monotonic()
        self._put_off = -math.inf

    def start_clock(self) -> None:
        """Nothing: it has no start."""

    def current_time(self) -> float:
        """Seconds in which the process could run. Never less than before."""
        now = self._monotonic() - self._missed
        if now - self._until > _STOPPED:
            now = self._wake(now)
        self._last = self._until = now
        return now

    def _wake(self, now: float) -> float:
        if self._until <= self._last:
            # It had work to do. Where the work is what took so long, time goes on all the same.
            earlier = self._last + _STOPPED
        elif self._until > self._put_off:
            # Each deadline once: a machine that is always late has to meet it some time.
            self._put_off = self._until
            earlier = max(self._last, self._until - _LOOK)
        else:
            return now
        self._missed += now - earlier
        return earlier

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long to wait for it, which the loop does next. Its first look at the clock then says how late it is."""
        now = self.current_time()
        self._until = max(deadline, now)
        return deadline - now
