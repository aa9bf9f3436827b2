"""A connection that asks to resume a tunnel: challenge → proof → take-over, or a RESET that says why not.

The proof is checked before anything in the session changes. A team may share one token, so a token without the proof
must not even disturb the session of another member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from http2tcp.net.resume_handshake import receive_claim
from http2tcp.protocol.capsule import ResetCode, reset
from http2tcp.protocol.resume_tombstone import Tombstone
from http2tcp.protocol.resume_wire import Gap, NotYours, ResumeError, Stale
from http2tcp.server.resumption import ATTEMPTS, Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from http2tcp.net.streams import Stream
    from http2tcp.server.audit import SessionRecords
    from http2tcp.server.state import State

# How long a client may take to answer the challenge, in seconds.
_HELLO_TIMEOUT = 5.0
# How long a refused client may take to read the reason, in seconds.
_LINGER = 1.0


class Attempt:
    """One connection that asks to resume a tunnel."""

    def __init__(self, state: State, carrier: Stream, records: SessionRecords, *, transport: str) -> None:
        """`records` are those of this connection, not of the session: they have the client's present address."""
        self._state = state
        self._carrier = carrier
        self._records = records
        self._transport = transport

    async def run(self, found: Entry | Tombstone | None, proved: Callable[[], None]) -> str:
        """Resume the session that was found. Return the outcome: a word of `counters.RESUMES`.

        Calls `proved` once the client has proved that the session is its own. If the session is resumed, this returns
        only when the session no longer uses this connection.
        """
        try:
            if isinstance(found, Entry):
                return await self._resume(found, proved)
            if isinstance(found, Tombstone):
                return await self._tell_end(found)
        except trio.BrokenResourceError:
            return "left"
        await self._refuse(self._state.resumption.unknown())
        return "gone"

    async def _resume(self, entry: Entry, proved: Callable[[], None]) -> str:
        stream = entry.stream
        if len(entry.attempts) >= ATTEMPTS:
            entry.attempts.pop(0).cancel()
        with trio.move_on_after(_HELLO_TIMEOUT) as scope:
            entry.attempts.append(scope)
            try:
                hello, nonce = await receive_claim(self._carrier)
            except ResumeError as error:
                return await self._deny(error)
            finally:
                if scope in entry.attempts:
                    entry.attempts.remove(scope)
        if scope.cancelled_caught:
            if trio.current_time() < scope.deadline:
                await self._refuse(reset(ResetCode.BUSY, "there are newer attempts at this session"))
                return "busy"
            return "left"
        kept = stream.machine.out.most
        leaves = hello.grace == 0
        try:
            attachment = stream.replace(hello, nonce, self._carrier)
        except ResumeError as error:
            return await self._deny(error)
        proved()
        if leaves:
            # The client came back only to end the session. It could not say so on its last connection, which was lost
            # or blocked by bytes that nobody reads.
            stream.break_off("the client has left")
            return "left"
        away = stream.last_gap
        self._state.resumption.returned(entry)
        replayed = max(0, kept - stream.machine.out.sent)
        metrics = self._state.metrics
        metrics.resume_gaps.observe(away)
        metrics.replayed.add(amount=replayed)
        entry.session.records.resumed(self._records, self._transport, away, replayed)
        await stream.wait_detached(attachment)
        return "resumed"

    async def _tell_end(self, stone: Tombstone) -> str:
        """The session is over. Tell the client how it ended, if the client proves that the session was its own."""
        try:
            with trio.fail_after(_HELLO_TIMEOUT):
                hello, nonce = await receive_claim(self._carrier)
            await self._refuse(stone.answer(hello, nonce))
        except trio.TooSlowError:
            return "left"
        except ResumeError as error:
            return await self._deny(error)
        return "over"

    async def _deny(self, error: ResumeError) -> str:
        await self._refuse(error.capsule())
        return _result(error)

    async def _refuse(self, capsule: bytes) -> None:
        with trio.move_on_after(_LINGER):
            try:
                await self._carrier.send_all(capsule)
                await self._carrier.linger()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client did not wait for the answer


def _result(error: ResumeError) -> str:
    match error:
        case NotYours():
            return "denied"
        case Stale():
            return "stale"
        case Gap():
            return "gap"
        case _:
            return "violation"
