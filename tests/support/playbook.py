"""Playbooks: a connection's life as a list of what happens to it and of what it does.

    Playbook() >> client_sends(HEAD) << dials("192.0.2.1") >> refuses() << answers(502) << records("refused")

`>>` is something that happens to the connection, `<<` is something that it must have done by now. Time stands still
but for `later`. When the playbook ends, the connection must be over, must have done nothing that the playbook does not
name, must hold no place anywhere, and each record that ends it must have been counted once.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.address import TCPAddress
from http2tcp.net import dial as dial_module
from http2tcp.net.dial import Candidate
from http2tcp.server.connection import Connection
from http2tcp.server.prometheus import Counter
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import State, prepare
from tests.support.loopback import TOKEN
from tests.support.memory_stream import MemoryStream, memory_pair

PEER = TCPAddress("198.51.100.1", 4711)


class End:
    """The far end of one of the connection's streams, and what has arrived there and no step has named yet."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.arrived = b""
        #: "eof" or "reset", once it has come.
        self.end = ""
        #: The playbook named that end, or ended the stream itself.
        self.end_named = False

    async def read(self) -> None:
        try:
            while data := await self.stream.receive_some():
                self.arrived += data
            self.end = "eof"
        except trio.BrokenResourceError:
            self.end = "reset"
        except trio.ClosedResourceError:
            pass  # the playbook closed it

    def take(self, expected: bytes) -> None:
        assert self.arrived.startswith(expected), f"{expected!r} is not the next of {self.arrived!r}"
        self.arrived = self.arrived.removeprefix(expected)


class _Dial:
    """One attempt to reach a target, which a step decides."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._decided = trio.Event()
        self._result: MemoryStream | Exception | None = None

    async def decision(self) -> MemoryStream:
        await self._decided.wait()
        assert self._result is not None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def decide(self, result: MemoryStream | Exception) -> None:
        self._result = result
        self._decided.set()


class Stage:
    """One connection and all that surrounds it."""

    def __init__(self, settings: ServerSettings, nursery: trio.Nursery, log: Log) -> None:
        self.state = State(settings)
        self.nursery = nursery
        self.clock = trio.lowlevel.current_clock()
        self.log = log
        self.dials: list[_Dial] = []
        self.dial: _Dial | None = None
        self.target: End | None = None
        ours, theirs = memory_pair()
        self.ours = ours
        self.client = End(theirs)
        nursery.start_soon(self.client.read)
        self.connection = Connection(self.state, ours, PEER)  # type: ignore[arg-type]
        self.over = False
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self.connection.run()
        self.over = True

    async def connect(self, candidate: Candidate) -> MemoryStream:
        """In the place of the dial's own."""
        dial = _Dial(str(candidate.ip))
        self.dials.append(dial)
        return await dial.decision()

    @property
    def ends(self) -> list[End]:
        return [self.client] if self.target is None else [self.client, self.target]

    def check_end(self) -> None:
        """Check what every connection leaves behind."""

        def total(counter: Counter) -> float:
            return sum(sample.value for sample in counter.samples())

        assert self.over, "the connection lives on"
        assert not self.dials, f"a dial that no step names: {self.dials[0].host}"
        assert not self.log.records, f"a record that no step names: {self.log.records[0]}"
        for end in self.ends:
            assert not end.arrived, f"bytes that no step names: {end.arrived!r}"
            assert end.end_named or not end.end, f"an end that no step names: {end.end}"
        state = self.state
        assert (len(state.unauthenticated), len(state.tunnels), len(state.sessions)) == (0, 0, 0)
        assert self.ours.closed or self.ours.aborted
        metrics = state.metrics
        assert not sum(metrics.sessions_open().values())
        for event, counter in [
            ("opened", metrics.sessions_opened),
            ("ended", metrics.sessions_ended),
            ("abandoned", metrics.abandoned),
        ]:
            assert total(counter) == self.log.seen.count(event), event
        refused = self.log.seen.count("refused") + self.log.seen.count("authentication_failed")
        assert total(metrics.refusals) == refused
        last = self.log.seen.count("ended") + self.log.seen.count("abandoned") + refused
        assert last == 1, "one record says how a connection ended, and only one"


class Log(logging.Handler):
    """The audit log's records that no step has named yet, and the events of all of them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[dict[str, Any]] = []
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.msg, dict)
        self.records.append(record.msg)
        self.seen.append(record.msg["event"])


Step = Callable[[Stage], Awaitable[None]]


class Playbook:
    """The steps, in their order. `settings` are those of the server, with TOKEN as its only token by default."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("tokens", (TOKEN,))
        self._settings = ServerSettings(**settings)
        self._steps: list[Step] = []

    def __rshift__(self, step: Step) -> Playbook:
        self._steps.append(step)
        return self

    __lshift__ = __rshift__

    async def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Play it on a connection of its own."""
        log = Log()
        logger = logging.getLogger("http2tcp.audit")
        logger.addHandler(log)
        level = logger.level
        logger.setLevel(logging.DEBUG)
        try:
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                stage = Stage(self._settings, nursery, log)
                monkeypatch.setattr(dial_module, "_connect", stage.connect)
                nursery.start_soon(stage.run)
                try:
                    for step in self._steps:
                        await trio.testing.wait_all_tasks_blocked()
                        await step(stage)
                    await trio.testing.wait_all_tasks_blocked()
                    stage.check_end()
                except Exception as error:
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        finally:
            logger.removeHandler(log)
            logger.setLevel(level)


# --- what happens to it -----------------------------------------------------------------------


def client_sends(data: bytes) -> Step:
    async def step(stage: Stage) -> None:
        await stage.client.stream.send_all(data)

    return step


def client_ends() -> Step:
    """It closes its sending half."""

    async def step(stage: Stage) -> None:
        await stage.client.stream.send_eof()

    return step


def client_resets() -> Step:
    async def step(stage: Stage) -> None:
        stage.client.end_named = True
        stage.client.stream.abort()

    return step


def client_stalls() -> Step:
    """It reads nothing more."""

    async def step(stage: Stage) -> None:
        stage.client.stream.stall()

    return step


def accepts() -> Step:
    """The target that was dialled last does."""

    async def step(stage: Stage) -> None:
        assert stage.dial is not None, "nothing was dialled"
        ours, theirs = memory_pair()
        stage.target = End(theirs)
        stage.nursery.start_soon(stage.target.read)
        stage.dial.decide(ours)

    return step


def refuses() -> Step:
    """The target that was dialled last does."""
    return dial_fails(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))


def dial_fails(error: Exception) -> Step:
    async def step(stage: Stage) -> None:
        assert stage.dial is not None, "nothing was dialled"
        stage.dial.decide(error)

    return step


def target_sends(data: bytes) -> Step:
    async def step(stage: Stage) -> None:
        assert stage.target is not None
        await stage.target.stream.send_all(data)

    return step


def target_ends() -> Step:
    async def step(stage: Stage) -> None:
        assert stage.target is not None
        await stage.target.stream.send_eof()

    return step


def target_resets() -> Step:
    async def step(stage: Stage) -> None:
        assert stage.target is not None
        stage.target.end_named = True
        stage.target.stream.abort()

    return step


def later(seconds: float) -> Step:
    """This time passes."""

    async def step(stage: Stage) -> None:
        assert isinstance(stage.clock, trio.testing.MockClock)
        stage.clock.jump(seconds)

    return step


def evicted() -> Step:
    """Others need the place of the one that has waited longest."""

    async def step(stage: Stage) -> None:
        stage.state.unauthenticated.give_way()

    return step


def stopped() -> Step:
    """The server's time is over: every task is cancelled."""

    async def step(stage: Stage) -> None:
        stage.scope.cancel()

    return step


def reloads(**changes: Any) -> Step:
    """The server takes other settings."""

    async def step(stage: Stage) -> None:
        stage.state.reload(prepare(replace(stage.state.settings, **changes)))

    return step


# --- what it must have done -------------------------------------------------------------------


def dials(host: str) -> Step:
    async def step(stage: Stage) -> None:
        assert stage.dials, f"{host} is not dialled"
        stage.dial = stage.dials.pop(0)
        assert stage.dial.host == host

    return step


def answers(status: int, words: bytes = b"") -> Step:
    """The client got this answer, with these words in its body."""

    async def step(stage: Stage) -> None:
        head, blank, rest = stage.client.arrived.partition(b"\r\n\r\n")
        assert blank, f"no whole head in {stage.client.arrived!r}"
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        fields = dict(line.lower().split(b": ") for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        assert words in rest[:length]
        stage.client.arrived = rest[length:]

    return step


def client_gets(data: bytes) -> Step:
    async def step(stage: Stage) -> None:
        stage.client.take(data)

    return step


def target_gets(data: bytes) -> Step:
    async def step(stage: Stage) -> None:
        assert stage.target is not None
        stage.target.take(data)

    return step


def client_sees(end: str) -> Step:
    """`eof` or `reset`."""

    async def step(stage: Stage) -> None:
        assert stage.client.end == end
        stage.client.end_named = True

    return step


def target_sees(end: str) -> Step:
    """`eof` or `reset`."""

    async def step(stage: Stage) -> None:
        assert stage.target is not None
        assert stage.target.end == end
        stage.target.end_named = True

    return step


def records(event: str, **fields: object) -> Step:
    """The next record of the audit log is of this event and has these fields; `detail` is a part of the record's."""

    async def step(stage: Stage) -> None:
        assert stage.log.records, f"there is no record of {event}"
        record = stage.log.records.pop(0)
        assert record["event"] == event, record
        detail = fields.pop("detail", "")
        assert str(detail) in str(record.get("detail", "")), record
        assert {key: record.get(key) for key in fields} == fields

    return step


def logs_nothing() -> Step:
    """No record yet."""

    async def step(stage: Stage) -> None:
        assert not stage.log.records

    return step


def holds(*, unauthenticated: int = 0, tunnels: int = 0, sessions: int = 0) -> Step:
    """The places that it takes now."""

    async def step(stage: Stage) -> None:
        state = stage.state
        assert (len(state.unauthenticated), len(state.tunnels), len(state.sessions)) == (
            unauthenticated,
            tunnels,
            sessions,
        )

    return step
