"""Windows and acknowledgements in one stream: two programs that get through on plain TCP get through here, too.

A target writes everything before it reads, and a client writes everything while it reads. The client's ACKs wait behind
its data, which the server does not read as long as the target takes nothing; and the target cannot go on writing, since
the server waits for an ACK. No task, no socket and no clock is here: buffers of a few bytes, and a round in which
nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from http2tcp.protocol.resume import Resumable
from tests.support.resumed import exchange, lost, opened, resumed

#: What a kernel holds, a socket each way. Much less than the window, as 400 kB are less than 4 MiB.
KERNEL = 24
WINDOW = 120
TOTAL = 600
FOREVER = 10_000


@dataclass
class Program:
    """What is at either end: it says `says`, and takes nothing before it has said `silent_until` bytes."""

    says: bytes
    silent_until: int
    said: int = 0
    #: What its own kernel holds for it to read.
    buffer: bytes = b""
    heard: bytes = b""

    def reads(self) -> bool:
        if self.said < self.silent_until or not self.buffer:
            return False
        self.heard, self.buffer = self.heard + self.buffer, b""
        return True


@dataclass
class Side:
    """One side's two pumps."""

    machine: Resumable
    program: Program
    lapses: bool
    #: What is being written, and blocks whoever writes.
    writing: bytes = b""
    #: What has come on the connection, and is in the kernel.
    inbox: bytes = b""
    hand: bytes = b""

    def step(self, other: Side) -> bool:
        """Whether anything moved."""
        machine, program = self.machine, self.program
        moved = program.reads()
        # The pump to the program: it reads the connection again once all is handed on.
        if self.hand:
            count = min(len(self.hand), KERNEL - len(program.buffer))
            program.buffer, self.hand = program.buffer + self.hand[:count], self.hand[count:]
            machine.sink_took(count)
            moved |= count > 0
        elif self.inbox:
            for part in machine.receive(self.inbox, machine.attachment):
                self.hand += part.payload
            self.inbox = b""
            moved = True
        # The pump from the program.
        count = min(machine.room, 10, len(program.says) - program.said)
        if count and not self.writing:
            machine.give(program.says[program.said : program.said + count])
            program.said += count
            moved = True
        if not self.writing:
            self.writing = machine.data_to_send()
        count = min(len(self.writing), KERNEL - len(other.inbox))
        other.inbox, self.writing = other.inbox + self.writing[:count], self.writing[count:]
        return moved or count > 0

    def time_passes(self) -> bool:
        """What a clock would do where nothing moves: a late ACK, and the lapse where it is turned on."""
        self.machine.acknowledge()
        blocked = bool(self.hand) and len(self.program.buffer) == KERNEL
        waits_for_room = not self.writing and self.machine.room == 0
        if self.machine.wants_write and not self.writing:
            return True
        return self.lapses and blocked and waits_for_room and self.machine.lapse()


def converse(client: Side, server: Side) -> bool:
    """True once both have heard everything, False where nothing moves any more."""
    for _ in range(FOREVER):
        if client.program.heard == server.program.says and server.program.heard == client.program.says:
            return True
        # Both, whatever the first one did.
        moved = [client.step(server), server.step(client)]
        if not any(moved) and not any([client.time_passes(), server.time_passes()]):
            return False
    raise AssertionError("it moves for ever and gets nowhere")


def sides(*, window: int = WINDOW, lapses: bool, client_waits: int = 0, target_waits: int = 0) -> tuple[Side, Side]:
    client, server = opened(window)
    asks = Program(bytes(number % 251 for number in range(TOTAL)), client_waits)
    answers = Program(bytes(number % 241 for number in range(TOTAL)), target_waits)
    return Side(client, asks, lapses), Side(server, answers, lapses)


#: Who says everything before it reads.
STUCK = {
    "the target": {"target_waits": TOTAL},
    "the client's program": {"client_waits": TOTAL},
    "the target, half of it": {"target_waits": TOTAL // 2},
}


@pytest.mark.parametrize("waits", STUCK.values(), ids=STUCK.keys())
def test_with_the_lapse_everything_gets_through(waits: dict[str, int]) -> None:
    client, server = sides(lapses=True, **waits)
    assert converse(client, server)
    assert client.machine.lapses + server.machine.lapses > 0


@pytest.mark.parametrize("waits", STUCK.values(), ids=STUCK.keys())
def test_without_it_the_same_hangs(waits: dict[str, int]) -> None:
    """The test above is one of the lapse."""
    client, server = sides(lapses=False, **waits)
    assert not converse(client, server)
    assert len(client.program.heard) < TOTAL or len(server.program.heard) < TOTAL


@pytest.mark.parametrize("waits", STUCK.values(), ids=STUCK.keys())
def test_without_windows_the_same_gets_through(waits: dict[str, int]) -> None:
    """So it is the window that would hang, and not the programs."""
    client, server = sides(window=TOTAL * 2, lapses=False, **waits)
    assert converse(client, server)


def test_where_nobody_is_stuck_nothing_lapses() -> None:
    client, server = sides(lapses=True)
    assert converse(client, server)
    assert client.machine.lapses == server.machine.lapses == 0


def test_programs_that_wait_for_each_other_wait_as_they_would_without_us() -> None:
    client, server = sides(lapses=True, client_waits=TOTAL, target_waits=TOTAL)
    assert not converse(client, server)


def test_after_a_lapse_a_tunnel_is_resumable_again() -> None:
    client, server = sides(lapses=True, target_waits=TOTAL)
    assert converse(client, server)
    exchange(client.machine, server.machine)
    server.machine.acknowledge()
    client.machine.acknowledge()
    exchange(client.machine, server.machine)
    assert server.machine.out.base == server.machine.out.acked == TOTAL
    lost(client.machine, server.machine)
    resumed(client.machine, server.machine)
