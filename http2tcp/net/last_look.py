"""Makes one more attempt to receive before a peer is given up for its silence.

When a process was stopped for a while (SIGSTOP, a frozen container), its deadlines have passed by the time it wakes,
although the socket holds what the peer sent in the meantime.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

_T = TypeVar("_T")

# How many passes of trio's loop to allow until bytes have come from the socket up through all streams. The passes take
# no time.
_TURNS = 32


async def last_look(receive: Callable[[], Awaitable[_T]], given_up: Exception) -> _T:
    """Return what `receive` returns, or raise `given_up` if it would have to wait."""
    found: list[_T] = []
    failure = given_up
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_soon, nursery.cancel_scope)
        try:
            found.append(await receive())
        except Exception as error:  # raised below, outside of the nursery, which would put it into a group
            failure = error
        nursery.cancel_scope.cancel()
    if found:
        return found[0]
    raise failure


async def _cancel_soon(scope: trio.CancelScope) -> None:
    for _ in range(_TURNS):
        await trio.lowlevel.checkpoint()
    scope.cancel()
