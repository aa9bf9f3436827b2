"""Two machines, connections that come, overtake each other and go, and whatever else may happen, in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from http2tcp.protocol.capsule import Reset
from http2tcp.protocol.resume import Resumable
from http2tcp.protocol.resume_outgoing import End
from http2tcp.protocol.resume_wire import FirstCapsule, Gap, Hello, Stale
from tests.support.resumed import SECRET, SESSION, SMALL, Sink, nonce, terms

WINDOW = 24
#: Bytes that a program may give at once, where the window has room for one.
MOST_AT_ONCE = 40


class Pipe:
    """Where a bulk flow keeps its bytes: what the machine never sees."""

    def __init__(self) -> None:
        self.bytes = b""

    def append(self, data: bytes) -> None:
        self.bytes += data

    def drop(self, count: int) -> None:
        assert count <= len(self.bytes)
        self.bytes = self.bytes[count:]

    def read(self, offset: int, most: int) -> bytes:
        return self.bytes[offset : offset + most]


class Program:
    """One side: its machine, its sink, and what its program has given."""

    def __init__(self, machine: Resumable) -> None:
        self.machine = machine
        machine.out.kept = Pipe()
        self.sink = Sink(machine)
        self.given = b""

    def more(self, count: int) -> bytes:
        """The next bytes that it says: no two places look alike."""
        data = bytes((len(self.given) + number) * 7 % 251 for number in range(count))
        self.given += data
        return data


class Connection:
    """What is on its way, and which number each side gave it."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.up = self.down = b""
        self.client_number = self.server_number = 0
        self.attempt: object = None
        self.reader: FirstCapsule | None = None


class Tunnel(RuleBasedStateMachine):
    """Whatever happens: what a sink has is the beginning of what was given, and an end is the end."""

    connections = Bundle("connections")
    sides = st.sampled_from(["client", "server"])
    sizes = st.integers(0, MOST_AT_ONCE)

    @initialize(target=connections, breaks=st.booleans())
    def open(self, breaks: bool) -> Connection:
        server = Resumable.offer(SESSION, SECRET, terms(WINDOW, grace=3600), bounds=SMALL)
        reader = FirstCapsule()
        hello = reader.receive(server.data_to_send())
        assert isinstance(hello, Hello)
        self.client = Program(Resumable.agree(hello, terms(WINDOW), bounds=SMALL))
        self.server = Program(server)
        self.numbers = 1
        #: Whether anybody breaks the tunnel off: most of what there is to see comes before that.
        self.breaks = breaks
        #: A lapse may make a loss a gap; nothing else may.
        self.gap = False
        first = Connection(1)
        first.client_number = first.server_number = 1
        self.all = [first]
        self.server.sink.feed(self.client.machine.data_to_send(), 1)
        return first

    def side(self, name: str) -> Program:
        return self.client if name == "client" else self.server

    # --- the programs -----------------------------------------------------------------------------

    @rule(side=sides, size=sizes)
    def give(self, side: str, size: int) -> None:
        end = self.side(side)
        count = min(size, end.machine.room)
        if count:
            end.machine.give(end.more(count))

    @rule(side=sides)
    def give_end(self, side: str) -> None:
        self.side(side).machine.give_end()

    @precondition(lambda self: self.breaks)
    @rule(side=sides, code=st.integers(0, 12))
    def give_reset(self, side: str, code: int) -> None:
        self.side(side).machine.give_reset(code, side)

    @rule(side=sides, size=sizes)
    def sink_takes(self, side: str, size: int) -> None:
        sink = self.side(side).sink
        if self.side(side).machine.in_hand or not sink.hand:
            sink.take(size)

    @rule(side=sides)
    def a_second_passes(self, side: str) -> None:
        self.side(side).machine.acknowledge()

    @rule(side=sides)
    def ping(self, side: str) -> None:
        self.side(side).machine.ping()

    @rule(side=sides, size=st.integers(1, WINDOW))
    def memory_gets_short(self, side: str, size: int) -> None:
        self.side(side).machine.keep_at_most = size

    @rule(side=sides)
    def stuck(self, side: str) -> None:
        machine = self.side(side).machine
        held = machine.out.held
        if machine.lapse():
            assert held >= min(WINDOW, machine.keep_at_most)
            assert machine.room > 0

    # --- connections ------------------------------------------------------------------------------

    def current(self, side: str) -> Connection | None:
        """The connection that a side is attached to, and whose bytes still travel."""
        machine = self.side(side).machine
        for connection in self.all:
            if machine.attached and getattr(connection, f"{side}_number") == machine.attachment:
                return connection
        return None

    @rule(side=sides, size=st.integers(1, MOST_AT_ONCE), whole=st.booleans())
    def write(self, side: str, size: int, whole: bool) -> None:
        """What is due goes onto the connection that is attached, and sometimes past the machine."""
        machine = self.side(side).machine
        connection = self.current(side)
        if connection is None:
            return
        while wire := machine.data_to_send(size):
            self._put(connection, side, wire)
            if not whole:
                return
        count = min(size, machine.room)
        if whole and count and not machine.wants_write:
            data = self.side(side).more(count)
            if not machine.out.lapsed:
                assert machine.out.kept is not None
                machine.out.kept.append(data)
            self._put(connection, side, machine.begin_data(count) + data)

    def _put(self, connection: Connection, side: str, wire: bytes) -> None:
        if side == "client":
            connection.up += wire
        else:
            connection.down += wire

    @rule(side=sides, size=st.integers(1, 12) | st.just(200), take=st.none() | sizes, past=st.booleans())
    def arrive_here(self, side: str, size: int, take: int | None, past: bool) -> None:
        """Bytes reach a side on the connection that it is attached to."""
        if connection := self.current(side):
            self.arrive(connection, side, size, take, past)

    @rule(connection=connections, side=sides, size=st.integers(1, 200), take=st.none() | sizes, past=st.booleans())
    def arrive(self, connection: Connection, side: str, size: int, take: int | None, past: bool) -> None:
        """Bytes reach a side, those of a connection that is no more attached as well."""
        end = self.side(side)
        if not getattr(connection, f"{side}_number"):
            return
        if side == "client":
            data, connection.down = connection.down[:size], connection.down[size:]
        else:
            data, connection.up = connection.up[:size], connection.up[size:]
        machine, number = end.machine, getattr(connection, f"{side}_number")
        before = machine.received
        bulk = min(machine.payload_left, len(data))
        if past and bulk and machine.attached and machine.attachment == number:
            ended = machine.took(bulk)
            end.sink.hand += data[:bulk]
            end.sink.pending = ended or end.sink.pending
            data = data[bulk:]
        if not machine.in_hand:
            end.sink.hand = b""  # this side has broken it off: nobody wants it any more
        end.sink.feed(data, number, most=take)
        if machine.attachment != number or not machine.attached:
            assert machine.received == before, "an old connection's bytes were counted"

    @rule(connection=connections, side=sides)
    def notice(self, connection: Connection, side: str) -> None:
        """A side learns that a connection is lost, perhaps long after it was."""
        machine = self.side(side).machine
        number = getattr(connection, f"{side}_number")
        current = machine.attached and machine.attachment == number
        assert machine.detach(number) is current

    @rule(connection=consumes(connections), up=st.integers(0, 300), down=st.integers(0, 300))
    def cut(self, connection: Connection, up: int, down: int) -> None:
        """The wire is cut: so much of what was on its way arrives, and both learn."""
        for side, most in (("server", up), ("client", down)):
            if most and getattr(connection, f"{side}_number"):
                self.arrive(connection, side, most, None, False)
            self.side(side).machine.detach(getattr(connection, f"{side}_number"))

    @precondition(lambda self: not self.client.machine.attached and not self.gap)
    @rule(target=connections)
    def dial(self) -> Connection:
        """Another attempt; the ones before it may still be under way."""
        self.numbers += 1
        connection = Connection(self.numbers)
        self.all.append(connection)
        attempt = self.client.machine.answer(nonce(connection.name), nonce(1000 + connection.name))
        connection.attempt = attempt
        connection.reader = FirstCapsule()
        connection.up = attempt.capsule
        return connection

    @rule(connection=connections, kept=st.booleans())
    def hello_arrives(self, connection: Connection, kept: bool) -> None:
        """At the server: it takes the session over, or the attempt is too old. With `kept` it comes once more later."""
        server = self.server.machine
        if connection.server_number or connection.attempt is None or self.gap:
            return
        hello = FirstCapsule().receive(connection.up)
        assert isinstance(hello, Hello)
        assert hello.attempt is not None
        before = server.attempt, server.attachment, server.attached, server.received, server.out.acked
        try:
            server.check(hello, nonce(connection.name))
        except Stale:
            assert hello.attempt <= server.attempt
            assert before == (
                server.attempt, server.attachment, server.attached, server.received, server.out.acked,
            )  # fmt: skip
            return
        server.detach(server.attachment)
        try:
            connection.server_number = server.take_over(hello, nonce(connection.name))
        except Gap:
            assert server.lapses
            self.gap = True
            return
        if not kept:
            connection.up = b""
        else:
            again = FirstCapsule()
            again.receive(connection.up)
            connection.up = again.rest

    @rule(connection=connections, size=st.integers(1, 300))
    def answer_arrives(self, connection: Connection, size: int) -> None:
        """At the client: it goes on with its newest attempt alone."""
        client = self.client.machine
        if connection.reader is None or connection.client_number:
            return
        data, connection.down = connection.down[:size], connection.down[size:]
        answer = connection.reader.receive(data)
        if answer is None:
            return
        assert isinstance(answer, Hello)
        rest, connection.reader.rest = connection.reader.rest, b""
        reader, connection.reader = connection.reader, None
        assert reader is not None
        attempt = connection.attempt
        try:
            connection.client_number = client.resume(attempt, answer)  # type: ignore[arg-type]
        except Stale:
            assert client.attached or attempt.number < client.attempt  # type: ignore[attr-defined]
            return
        except Gap:
            assert client.lapses
            self.gap = True
            return
        self.client.sink.feed(rest, connection.client_number)

    @precondition(lambda self: not self.client.machine.attached and not self.gap)
    @rule(target=connections, size=st.integers(1, 300), kept=st.booleans())
    def come_back(self, size: int, kept: bool) -> Connection:
        """An attempt that nothing gets in the way of."""
        connection = self.dial()
        assert isinstance(connection, Connection)
        self.hello_arrives(connection, kept)
        self.write("server", MOST_AT_ONCE, True)
        while connection.reader is not None and connection.down and not self.gap:
            self.answer_arrives(connection, size)
        return connection

    @precondition(lambda self: self.client.machine.attached and self.server.machine.attached)
    @rule(take=st.none() | sizes)
    def go_on_for_a_while(self, take: int | None) -> None:
        """Everything that is due arrives, and the sinks take it, or some."""
        for side, other in (("client", "server"), ("server", "client")):
            self.write(side, MOST_AT_ONCE, False)
            self.write(side, MOST_AT_ONCE, False)
            if connection := self.current(other):
                self.arrive(connection, other, 1000, take, False)

    @rule(side=sides)
    def park(self, side: str) -> None:
        end = self.side(side)
        if end.machine.attached:
            return
        machine = Resumable.thaw(*end.machine.freeze())
        kept = Pipe()
        held = machine.out.held
        kept.bytes = machine.out.kept.read(0, held) if machine.out.kept and held else b""
        machine.out.kept = kept
        end.machine = end.sink.machine = machine

    # --- what holds always ------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_doubled_or_reordered(self) -> None:
        for here, there in ((self.client, self.server), (self.server, self.client)):
            assert there.given.startswith(here.sink.taken)
            if here.sink.end is not None and here.sink.end.reset is None:
                assert here.sink.taken == there.given
                assert there.machine.out.end is not None

    @invariant()
    def nobody_believes_more_than_is_true(self) -> None:
        for here, there in ((self.client, self.server), (self.server, self.client)):
            out, peer = here.machine.out, there.machine
            assert out.acked <= peer.handed_on <= peer.received <= out.most <= out.positions
            assert out.acked <= out.base <= out.length or out.acked == out.length + 1
            if here.machine.finished:
                assert there.sink.taken == here.given
                assert there.sink.end == here.sink.end == End(None)
                assert here.sink.taken == there.given

    @invariant()
    def what_is_kept_is_bounded_and_enough(self) -> None:
        for here, there in ((self.client, self.server), (self.server, self.client)):
            out = here.machine.out
            assert out.kept is not None
            assert out.kept.read(0, 1 << 20) == here.given[out.base : out.length]
            # One read may be in hand beyond the window: after a lapse is over.
            assert out.held <= WINDOW * 2
            if not here.machine.lapses:
                assert out.base <= there.machine.handed_on

    @invariant()
    def a_reset_is_never_an_end(self) -> None:
        for here, there in ((self.client, self.server), (self.server, self.client)):
            said = there.machine.out.end
            if said is not None and said.reset is not None:
                assert here.sink.end is None or isinstance(here.sink.end.reset, Reset)


TestTunnel = Tunnel.TestCase
# A run has fifty steps, and a look at everything after each.
TestTunnel.settings = settings(max_examples=min(settings().max_examples, 250))
