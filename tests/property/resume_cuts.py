"""Two machines and a wire that is cut at every byte of either direction, and then at every byte once more.

`python -m tests.property.resume_cuts --all` takes every pair of cuts, test_resume_cuts.py a sixth of them. A case is
derived from its number alone:

    python -m tests.property.resume_cuts --only 40123

Each case is a conversation: the client sends, the target answers in lower case, and both end, the target after all or
after a part of its answer, where it may reset instead. Besides the cuts it varies how much of what was in flight
arrives, when the server learns of the loss, whether the sessions are parked in between, and how fast the sinks are.
Bytes of an old connection still come, and so does an attempt that was there before. The handshakes are on the wire too,
so that they are cut as well.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from http2tcp.protocol.capsule import Reset, ResetCode
from http2tcp.protocol.resume import Resumable
from http2tcp.protocol.resume_outgoing import End
from http2tcp.protocol.resume_tombstone import Tombstone
from http2tcp.protocol.resume_wire import Challenge, FirstCapsule, Hello, Stale, challenge, gone
from tests.support.resumed import SECRET, SESSION, SMALL, Sink, nonce, terms

QUESTION = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WINDOW = 16
#: How far the target's answer gets; it is shorter than the question where the target ends or resets before the client.
ANSWERS = (0, 7, 20, len(QUESTION))
#: As much as the first and the second connection carry in either direction at most, which `run` checks.
LENGTHS = ({"up": 240, "down": 300}, {"up": 290, "down": 320})
FIRST, SECOND = ([(way, place) for way, length in each.items() for place in range(length)] for each in LENGTHS)
PAIRS = len(FIRST) * len(SECOND)
# Steps after which a conversation of a few dozen bytes does not get on any more.
_STUCK = 3000


class Case(NamedTuple):
    """What one run does."""

    first: tuple[str, int]
    second: tuple[str, int]
    #: Bytes of the answer, after which the target ends; or it resets.
    answer: int
    resets: bool
    #: What arrives of what was in flight when the wire was cut, by direction.
    up_arrives: bool
    down_arrives: bool
    #: The server learns of the loss from the next attempt, and reads the old connection until then.
    server_is_late: bool
    parked: bool
    slow: bool
    #: A client that is finished does not wait for the server's close.
    client_hurries: bool
    seed: int


def case(number: int) -> Case:
    """The case of a number below PAIRS."""
    a, b = divmod(number, len(SECOND))
    rng = random.Random(number)
    return Case(
        FIRST[a],
        SECOND[b],
        rng.choice(ANSWERS),
        *(rng.random() < 0.5 for _ in range(7)),  # type: ignore[misc]
        seed=number,
    )


class Wire:
    """One connection: what was put on it beyond its limit is lost, and then it is cut."""

    def __init__(self, cut: tuple[str, int] | None) -> None:
        self.limits = {"up": -1, "down": -1}
        if cut is not None:
            self.limits[cut[0]] = cut[1]
        self.carried = {"up": 0, "down": 0}
        self.flight = {"up": b"", "down": b""}
        self.is_cut = False

    def put(self, direction: str, data: bytes) -> None:
        """Send it, as far as it goes."""
        limit = self.limits[direction]
        if 0 <= limit < self.carried[direction] + len(data):
            data = data[: limit - self.carried[direction]]
            self.is_cut = True
        self.carried[direction] += len(data)
        self.flight[direction] += data

    def get(self, direction: str, most: int) -> bytes:
        """What arrives next."""
        data, self.flight[direction] = self.flight[direction][:most], self.flight[direction][most:]
        return data


class Unfinished(AssertionError):
    """The conversation stands still, and it should not."""


class Run:
    """One conversation over as many connections as it takes."""

    def __init__(self, what: Case) -> None:
        self.case = what
        self.rng = random.Random(what.seed)
        self.number = 0
        self.client: Resumable | None = None
        self.client_sink: Sink | None = None
        self.server = Resumable.offer(SESSION, SECRET, terms(WINDOW, grace=3600), bounds=SMALL)
        self.server_sink = Sink(self.server)
        self.tombstone: Tombstone | None = None
        self.question = QUESTION
        #: What the client is to get.
        self.answer = QUESTION.lower()[: what.answer]
        self.answered = 0
        #: The wire and the number of the connection before this one, as the server has them.
        self.old: tuple[Wire, int] | None = None

    def run(self) -> str:
        """How it ended. Raises AssertionError where a byte or an end was not what it should have been."""
        cuts = [self.case.first, self.case.second, None]
        for cut in cuts:
            self.number += 1
            wire = Wire(cut)
            outcome = self.begin(wire) if self.client is None else self.begin_again(wire)
            outcome = outcome or self.converse(wire)
            if cut is not None:
                for direction, most in LENGTHS[self.number - 1].items():
                    assert wire.carried[direction] <= most, f"more than {most} bytes {direction}: a place is not cut"
            self.look()
            if outcome:
                return outcome
            self.lose(wire)
            if self.client is None:
                # Its server has offered a session that nobody knows.
                assert not self.server.resumable
                return "never opened"
            if not self.server.resumable and not self.case.server_is_late:
                return self.refuse()
        raise Unfinished("the last connection had no end, and the conversation neither")

    # --- one connection ---------------------------------------------------------------------------

    def begin(self, wire: Wire) -> str | None:
        """The server offers, and the client agrees, as far as it hears the offer."""
        wire.put("down", self.server.data_to_send())
        reader = FirstCapsule()
        while self.client is None:
            data = wire.get("down", self.rng.randint(1, 60))
            if not data:
                return None
            hello = reader.receive(data)
            if hello is not None:
                assert isinstance(hello, Hello)
                self.client = Resumable.agree(hello, terms(WINDOW), bounds=SMALL)
                self.client_sink = Sink(self.client)
                self.client_sink.feed(reader.rest, 1)
        return None

    def begin_again(self, wire: Wire) -> str | None:
        """CHALLENGE, HELLO, HELLO, as far as the wire carries them."""
        client, sink = self.client, self.client_sink
        assert client is not None
        assert sink is not None
        server_nonce = nonce(self.number)
        wire.put("down", challenge(server_nonce))
        reader = FirstCapsule()
        said = reader.receive(wire.get("down", 100))
        if said is None:
            return None
        assert isinstance(said, Challenge)
        attempt = client.answer(said.nonce, nonce(1000 + self.number))
        wire.put("up", attempt.capsule)
        self.read_old()
        asked = FirstCapsule().receive(wire.get("up", 1000))
        if asked is None:
            return None
        assert isinstance(asked, Hello)
        if self.tombstone is not None:
            wire.put("down", self.tombstone.answer(asked, server_nonce))
        else:
            self.server.check(asked, server_nonce)
            self.server.detach(self.server.attachment)
            self.park()
            self.server.take_over(asked, server_nonce)
            self.read_stale(asked, server_nonce)
            wire.put("down", self.server.data_to_send(self.rng.randint(1, 9)))
        answer = reader.receive(wire.get("down", self.rng.choice([50, 1000])) or b"")
        while answer is None:
            data = wire.get("down", 1000)
            if not data:
                return None
            answer = reader.receive(data)
        if isinstance(answer, Reset):
            assert self.tombstone is not None
            return self.refuse()
        assert isinstance(answer, Hello)
        sink.feed(reader.rest, client.resume(attempt, answer))
        if self.tombstone is not None:
            assert client.finished, "the tombstone says that all has arrived"
            return "finished by the tombstone"
        return None

    def read_old(self) -> None:
        """A server that has not learned of the loss goes on reading."""
        if self.old is not None and self.server.attached:
            old, number = self.old
            self.server_sink.feed(old.get("up", self.rng.randint(1, 20)), number)

    def read_stale(self, hello: Hello, server_nonce: bytes) -> None:
        """What comes late changes nothing: bytes of the old connection, and the same attempt once more."""
        before = self.server.received
        if self.old is not None:
            old, number = self.old
            self.server_sink.feed(old.get("up", 1000) + b"\xff" * 20, number)
            assert not self.server.detach(number)
        assert self.server.received == before
        try:
            self.server.check(hello, server_nonce)
        except Stale:
            return
        raise AssertionError("an attempt was let in twice")

    def converse(self, wire: Wire) -> str | None:
        """Until the wire is cut, or both are done."""
        client, client_sink, rng = self.client, self.client_sink, self.rng
        if client is None or client_sink is None or (self.tombstone and not client.attached):
            return None
        if not client.attached or not self.server.attached:
            return None
        numbers = client.attachment, self.server.attachment
        still = 0
        for _ in range(_STUCK):
            moved = self.client_speaks(client) | self.target_speaks()
            for direction, machine in (("up", client), ("down", self.server)):
                if wire_data := machine.data_to_send(rng.randint(1, 9)):
                    wire.put(direction, wire_data)
                    moved = True
            if wire.is_cut:
                return self.last_bytes(wire, numbers)
            for direction, sink, number in (("up", self.server_sink, numbers[1]), ("down", client_sink, numbers[0])):
                data = wire.get(direction, rng.randint(1, 40))
                if data:
                    moved = True
                    sink.feed(data, number, most=rng.randint(0, 5) if self.case.slow else None)
                elif self.case.slow:
                    moved |= self.sink_takes(sink)
            if outcome := self.outcome():
                return outcome
            still = 0 if moved else still + 1
            if still == 2:
                # A second has passed: what is owed is said.
                client.acknowledge()
                self.server.acknowledge()
            elif still > 4:
                raise Unfinished("nothing moves any more")
        raise Unfinished("too many steps")

    def sink_takes(self, sink: Sink) -> bool:
        if not sink.hand and sink.end is sink.pending:
            return False
        sink.take(self.rng.randint(1, 5))
        return True

    def client_speaks(self, client: Resumable) -> bool:
        if client.out.end is not None or client.broken is not None:
            return False
        if self.question:
            count = min(client.room, self.rng.randint(1, 9), len(self.question))
            if count:
                client.give(self.question[:count])
                self.question = self.question[count:]
            return count > 0
        client.give_end()
        return True

    def target_speaks(self) -> bool:
        server, sink = self.server, self.server_sink
        if server.out.end is not None or server.broken is not None:
            return False
        if self.answered == len(self.answer):
            if self.case.resets:
                server.give_reset(ResetCode.TARGET, "the target reset")
            else:
                server.give_end()
            return True
        rest = self.answer[self.answered : len(sink.taken)]
        count = min(server.room, self.rng.randint(1, 9), len(rest))
        server.give(rest[:count])
        self.answered += count
        return count > 0

    def last_bytes(self, wire: Wire, numbers: tuple[int, int]) -> str | None:
        """Of what was in flight some arrives, and the client leaves where that made it finished."""
        assert self.client_sink is not None
        if self.case.down_arrives:
            self.client_sink.feed(wire.get("down", 1000), numbers[0])
        if self.case.up_arrives and not self.case.server_is_late:
            self.server_sink.feed(wire.get("up", 1000), numbers[1])
        return self.outcome()

    # --- between connections ----------------------------------------------------------------------

    def lose(self, wire: Wire) -> None:
        self.old = wire, self.server.attachment
        if not self.case.up_arrives:
            wire.flight["up"] = b""
        if self.client is not None:
            self.client.detach(self.client.attachment)
            if self.case.parked and self.client_sink is not None:
                self.client = self.client_sink.machine = Resumable.thaw(*self.client.freeze())
        if not self.case.server_is_late:
            self.server.detach(self.server.attachment)
            self.park()

    def park(self) -> None:
        """Serialise the server's side, and go on with what comes of it."""
        if self.case.parked:
            self.server = self.server_sink.machine = Resumable.thaw(*self.server.freeze())

    def refuse(self) -> str:
        """The session cannot go on: the client is told so, and nobody believes in a good end."""
        assert self.client is not None
        if self.tombstone is None:
            said = FirstCapsule().receive(gone("a", 1))
            assert isinstance(said, Reset)
            assert not self.client.may_retry(said)
        assert not self.client.finished
        self.look()
        return "refused"

    # --- what is believed -------------------------------------------------------------------------

    def outcome(self) -> str | None:
        """How it ended, where it has."""
        client, server = self.client, self.server
        assert client is not None
        if server.finished and self.tombstone is None:
            self.tombstone = server.tombstone(0, "")
        if self.case.resets:
            assert not client.finished
            assert not server.finished
            return "reset" if client.over and (server.over or self.case.client_hurries) else None
        if client.finished and (server.finished or self.case.client_hurries):
            return "finished" if server.finished else "finished, and the server does not know"
        return None

    def look(self) -> None:
        """Nothing was lost, doubled or put in another order, and nobody believes in an end that was none."""
        target, user = self.server_sink, self.client_sink
        assert QUESTION.startswith(target.taken)
        if target.end is not None:
            assert target.end == End(None)
            assert target.taken == QUESTION
        if user is None:
            return
        assert self.answer.startswith(user.taken)
        if user.end is not None:
            assert user.taken == self.answer
            assert user.end == End(Reset(ResetCode.TARGET, "the target reset") if self.case.resets else None)
        for machine in (self.client, self.server):
            if machine is not None and machine.finished:
                assert (target.taken, user.taken) == (QUESTION, self.answer)
                assert target.end == user.end == End(None)


def run(number: int) -> str:
    """Run one case: how it ended. An AssertionError names the case."""
    try:
        return Run(case(number)).run()
    except Exception as error:
        error.add_note(f"python -m tests.property.resume_cuts --only {number}\n{case(number)}")
        raise


def some(part: int = 0, of: int = 1) -> Iterator[int]:
    """Every so many-th case, those of each place of either cut among them."""
    offer = len(Resumable.offer(SESSION, SECRET, terms(WINDOW, grace=3600), bounds=SMALL).data_to_send())
    for a, (direction, place) in enumerate(FIRST):
        # Without a whole offer there is no second connection.
        whole = direction == "up" or place >= offer
        # Beginning elsewhere for every first cut, so that each place of the second one is among them.
        for b in range((part - a) % of, len(SECOND) if whole else of, of):
            yield a * len(SECOND) + b


def main() -> int:
    """Run them, and say how many."""
    parser = argparse.ArgumentParser(prog="python -m tests.property.resume_cuts")
    parser.add_argument("--all", action="store_true", help="every pair of cuts")
    parser.add_argument("--part", type=int, default=0, help="which part, from 0 on")
    parser.add_argument("--of", type=int, default=6, help="of so many")
    parser.add_argument("--only", type=int, action="append", help="these cases")
    arguments = parser.parse_args()
    numbers = arguments.only or (some() if arguments.all else some(arguments.part, arguments.of))
    started = time.monotonic()
    outcomes = Counter(run(number) for number in numbers)
    for outcome, count in outcomes.most_common():
        print(f"{count:8d} {outcome}")
    print(f"{outcomes.total():8d} in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
