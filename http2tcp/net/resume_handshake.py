"""How a session gets its next connection: the first capsules of an attempt, on both sides.

The caller sets the deadlines. Nothing here changes the session before the other side's proof has been checked.
"""

from __future__ import annotations

import os
from typing import TypeVar

import trio

from http2tcp.net.resumable import ResumableStream
from http2tcp.net.streams import CHUNK, Stream
from http2tcp.protocol.capsule import Reset
from http2tcp.protocol.resume_wire import KEY_SIZE, Challenge, FirstCapsule, Hello, Mark, NotYours, challenge

_T = TypeVar("_T", Challenge, Hello)


class AttemptRefused(Exception):
    """The server refuses this attempt. `Resumable.may_retry` says whether another attempt makes sense."""

    def __init__(self, said: Reset) -> None:
        super().__init__(said.words)
        self.said = said


async def read_first(carrier: Stream) -> Hello | Challenge | Reset | Mark:
    """Read the first capsule of a connection, and unread the bytes behind it. Mark.OTHER is not consumed.

    Raises Violation, and BrokenResourceError if the connection ends before the capsule is complete.
    """
    first = FirstCapsule()
    while True:
        data = await carrier.receive_some(CHUNK)
        if not data:
            if first.rest:
                carrier.unread(first.rest)
            raise trio.BrokenResourceError("it ended before its first capsule")
        event = first.receive(data)
        if event is not None:
            if first.rest:
                carrier.unread(first.rest)
            return event


async def resume(stream: ResumableStream, carrier: Stream) -> None:
    """At the client: prove on a new connection that the session is ours, and go on with it.

    Raises AttemptRefused, BrokenResourceError if the connection breaks, and ResumeError: NotYours and Stale leave the
    session as it is, Gap and Violation end it.
    """
    challenged = await _expect(carrier, Challenge)
    attempt = stream.machine.answer(challenged.nonce, os.urandom(KEY_SIZE))
    await carrier.send_all(attempt.capsule)
    hello = await _expect(carrier, Hello)
    stream.machine.resume(attempt, hello)
    stream.attach(carrier)


async def _expect(carrier: Stream, kind: type[_T]) -> _T:
    event = await read_first(carrier)
    if isinstance(event, Reset):
        raise AttemptRefused(event)
    if not isinstance(event, kind):
        raise NotYours("what answers there does not resume tunnels")
    return event


async def receive_claim(carrier: Stream) -> tuple[Hello, bytes]:
    """At the server: challenge a client that names a session. Return its HELLO, and the nonce that we sent to it.

    Raises NotYours if its answer is not a HELLO, Violation, and BrokenResourceError. The proof is not checked here.
    """
    nonce = os.urandom(KEY_SIZE)
    await carrier.send_all(challenge(nonce))
    event = await read_first(carrier)
    if not isinstance(event, Hello):
        raise NotYours("the client did not answer the challenge")
    return event, nonce
