"""How a session gets its next connection: the first capsules of an attempt, both sides.

The caller bounds the time. Nothing here touches the session before the other side's proof holds.
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
    """The server refuses this attempt. The session may go on, or not: `Resumable.may_retry` says which."""

    def __init__(self, said: Reset) -> None:
        super().__init__(said.words)
        self.said = said


async def read_first(carrier: Stream) -> Hello | Challenge | Reset | Mark:
    """The first capsule of a connection; what came behind it is unread. Mark.OTHER is not consumed.

    Raises Violation, and BrokenResourceError where the connection ends before that.
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

    Raises AttemptRefused, BrokenResourceError where the connection is of no use, and ResumeError: NotYours and Stale
    leave the session as it is, Gap and Violation end it.
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
    """At the server: challenge a client that names a session; its HELLO and the nonce of ours that it proves.

    Raises NotYours where it answers otherwise, Violation, and BrokenResourceError.
    """
    nonce = os.urandom(KEY_SIZE)
    await carrier.send_all(challenge(nonce))
    event = await read_first(carrier)
    if not isinstance(event, Hello):
        raise NotYours("the client did not answer the challenge")
    return event, nonce
