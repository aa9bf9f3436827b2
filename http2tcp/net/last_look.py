"""One look more, before a peer is given up for its silence.

A process that was stopped (SIGSTOP, a frozen container) finds its deadlines over as it wakes, and what the peer
sent meanwhile unread in the socket.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

_T = TypeVar("_T")

# How many turns of the loop bytes may take from the socket up through the streams. All of them take no time.
_TURNS = 32


async def last_look(receive: Callable[[], Awaitable[_T]], given_up: Exception) -> _T:
    """What `receive` gives where that is there already; raises `given_up` where it would have to wait."""
    found: list[_T] = []
    failure = given_up
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_soon, nursery.cancel_scope)
        try:
            found.append(await receive())
        except Exception as error:  # out of the nursery without a group around it
            failure = error
        nursery.cancel_scope.cancel()
    if found:
        return found[0]
    raise failure


async def _cancel_soon(scope: trio.CancelScope) -> None:
    for _ in range(_TURNS):
        await trio.lowlevel.checkpoint()
    scope.cancel()
