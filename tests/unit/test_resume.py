"""A tunnel that comes back, without a network: what each side says, believes and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from http2tcp.protocol.capsule import DONE, FINAL, KEEPALIVE, CapsuleReader, Reset, ResetCode, data_header, reset
from http2tcp.protocol.resume import BOUNDS, Bounds, Mode, Resumable
from http2tcp.protocol.resume_outgoing import End, KeptBytes
from http2tcp.protocol.resume_tombstone import Tombstone
from http2tcp.protocol.resume_wire import (
    PING,
    Ack,
    FirstCapsule,
    Gap,
    Hello,
    NotYours,
    Reader,
    ResumeError,
    Stale,
    StateError,
    Violation,
    ack,
    challenge,
)
from tests.support.resumed import (
    SECRET,
    SESSION,
    SMALL,
    Sink,
    attempted,
    exchange,
    first,
    lost,
    nonce,
    opened,
    resumed,
    terms,
)


def read(wire: bytes) -> list[object]:
    """What a wire says."""
    return list(Reader().read(wire))


def data(payload: bytes) -> bytes:
    return data_header(len(payload)) + payload


def said(machine: Resumable, wire: bytes) -> list[object]:
    """Have it receive this; what it hands over."""
    return [part for part in machine.receive(wire, machine.attachment) if part.payload or part.end]


# --- a new tunnel ---------------------------------------------------------------------------------


def test_the_first_capsule_of_each_side_is_hello() -> None:
    server = Resumable.offer(SESSION, SECRET, terms(64, grace=3600, idle_timeout=60), bounds=SMALL)
    server.give(b"SSH-2.0")
    wire = server.data_to_send()
    hello, banner = read(wire)
    assert hello == Hello(keepalive=25_000, window=64, grace=3600, session=SESSION, secret=SECRET, idle_timeout=60)
    assert banner == b"SSH-2.0"
    assert isinstance(hello, Hello)
    client = Resumable.agree(hello, terms(32), bounds=SMALL)
    client.give(b"SSH-2.0 too")
    assert read(client.data_to_send()) == [
        Hello(keepalive=25_000, window=32, grace=900),
        *read(ack(0)),
        b"SSH-2.0 too",
    ]
    assert client.peer == terms(64, grace=3600, idle_timeout=60)


def test_a_login_waits_for_nothing() -> None:
    """Both sides' first data goes out with HELLO, before anything has come."""
    server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
    server.give(b"banner")
    assert b"banner" in server.data_to_send()


def test_the_smaller_grace_counts() -> None:
    client, server = opened()
    assert client.grace == server.grace == 900
    assert Resumable.offer(SESSION, SECRET, terms()).grace == 0


def test_a_session_is_resumable_once_the_client_has_confirmed() -> None:
    for confirmation, expected in ((b"", False), (data(b"hello"), False), (ack(0), True), (PING, True)):
        server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
        assert not server.resumable
        said(server, Hello(keepalive=1, window=20, grace=9).capsule() + confirmation)
        assert server.mode is Mode.RESUMABLE
        assert server.resumable is expected
    client, server = opened()
    assert client.resumable
    assert server.resumable


@pytest.mark.parametrize("window", [BOUNDS.least - 1, BOUNDS.most + 1, 0])
def test_a_window_out_of_bounds_is_refused(window: int) -> None:
    hello = Hello(keepalive=1, window=window, grace=9, session=SESSION, secret=SECRET)
    with pytest.raises(Violation, match="out of bounds") as refused:
        Resumable.agree(hello, terms(BOUNDS.least))
    assert read(refused.value.capsule())[0].code == ResetCode.PROTOCOL  # type: ignore[attr-defined]
    server = Resumable.offer(SESSION, SECRET, terms(BOUNDS.least))
    with pytest.raises(Violation, match="out of bounds"):
        said(server, hello._replace(session=None, secret=None).capsule())
    assert not server.resumable


def test_the_bounds_are_these() -> None:
    assert Bounds(256 * 1024, 64 * 1024 * 1024, 64 * 1024) == BOUNDS


@pytest.mark.parametrize("missing", ["session", "secret"])
def test_a_server_s_hello_has_a_session_and_a_secret(missing: str) -> None:
    hello = Hello(keepalive=1, window=20, grace=9, session=SESSION, secret=SECRET)
    with pytest.raises(Violation):
        Resumable.agree(hello._replace(**{missing: None}), terms(), bounds=SMALL)  # type: ignore[arg-type]


# --- a client that does not agree ------------------------------------------------------------------


@pytest.mark.parametrize(
    "wire", [data(b"x"), FINAL, KEEPALIVE, DONE, data_header(0), ack(0), PING, challenge(b"c" * 32), reset(7, "")]
)
def test_a_client_whose_first_capsule_is_no_hello_has_a_tunnel_as_ever(wire: bytes) -> None:
    server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
    server.give(b"banner")
    server.data_to_send()
    said(server, wire)
    assert server.mode is Mode.PLAIN
    assert not server.resumable
    assert server.out.held == 0


def test_so_has_one_whose_first_payload_went_past_the_machine() -> None:
    server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
    said(server, data_header(1000))
    assert server.payload_left == 1000
    server.took(500)
    assert server.mode is Mode.PLAIN


@pytest.mark.parametrize("confirms", [True, False])
def test_that_tunnel_is_carried_to_its_end_in_capsules_that_a_plain_client_reads(confirms: bool) -> None:
    server = Resumable.offer(SESSION, SECRET, terms(20), confirms=confirms, bounds=SMALL)
    reader, got = CapsuleReader(), b""
    sink = Sink(server)
    sink.feed(data(b"up"), 1)
    for _ in range(40):
        assert server.room == 20
        server.give(b"ten bytes.")
        got += b"".join(reader.receive(server.data_to_send()))
    assert got == b"ten bytes." * 40
    assert server.out.held == 0
    server.ping()
    assert not server.wants_write
    assert server.keepalive() == KEEPALIVE
    server.give_end()
    reader.receive(server.data_to_send())
    assert reader.ended
    assert not reader.done
    sink.feed(FINAL, 1)
    last = server.data_to_send()
    assert last == (DONE if confirms else b"")
    assert server.finished is not confirms
    sink.feed(DONE, 1)
    assert server.finished
    assert sink.taken == b"up"
    assert server.data_to_send() == b""


def test_that_client_s_done_means_nothing_before_our_end() -> None:
    server = Resumable.offer(SESSION, SECRET, terms(20), confirms=True, bounds=SMALL)
    sink = Sink(server)
    sink.feed(FINAL + DONE, 1)
    server.give_end()
    server.data_to_send()
    assert not server.finished


def test_a_plain_tunnel_cannot_be_taken_over() -> None:
    server = Resumable.offer(SESSION, SECRET, terms(20), bounds=SMALL)
    client = Resumable.agree(first(server.data_to_send()), terms(), bounds=SMALL)
    said(server, data(b"x"))
    lost(client, server)
    with pytest.raises(NotYours):
        server.check(attempted(client, nonce(1), nonce(2))[1], nonce(1))


# --- bytes, positions, acknowledgements --------------------------------------------------------------


def test_bytes_are_kept_until_they_are_acknowledged() -> None:
    client, server = opened(20)
    client.give(b"0123456789")
    wire = client.data_to_send()
    assert (client.out.held, client.room) == (10, 10)
    sink = Sink(server)
    sink.feed(wire, 1, most=4)
    assert (server.received, server.handed_on, server.in_hand) == (10, 4, 6)
    server.acknowledge()
    said(client, server.data_to_send())
    assert (client.out.held, client.room) == (6, 14)


def test_a_quarter_of_the_window_owes_an_ack() -> None:
    client, server = opened(64)
    sink = Sink(server)
    client.give(b"x" * 40)
    sink.feed(client.data_to_send(), 1, most=15)
    assert (server.owed, server.wants_write) == (15, False)
    sink.take(1)
    assert server.wants_write
    assert server.data_to_send() == ack(16)
    assert (server.owed, server.wants_write) == (0, False)
    sink.take(15)
    assert not server.wants_write


@pytest.mark.parametrize(("window", "quantum"), [(256 << 10, 64 << 10), (4 << 20, 1 << 20), (64 << 20, 16 << 20)])
def test_a_quarter_is_what_the_page_says(window: int, quantum: int) -> None:
    _client, server = opened(window, bounds=BOUNDS)
    server.received = window
    server.sink_took(quantum - 1)
    assert not server.wants_write
    server.sink_took(1)
    assert server.wants_write


def test_an_end_is_acknowledged_at_once_but_not_before_it_is_handed_on() -> None:
    client, server = opened(64)
    sink = Sink(server)
    client.give(b"abc")
    client.give_end()
    sink.feed(client.data_to_send(), 1, most=0)
    assert server.received == 4
    assert not server.wants_write
    server.acknowledge()
    assert not server.wants_write
    sink.take(2)
    server.acknowledge()
    said(client, server.data_to_send())
    assert not client.end_acked
    sink.take(1)
    assert server.data_to_send() == ack(4)


def test_what_is_owed_goes_out_with_data_and_costs_no_packet() -> None:
    client, server = opened(64)
    sink = Sink(server)
    client.give(b"k")
    sink.feed(client.data_to_send(), 1)
    assert not server.wants_write
    server.give(b"K")
    assert server.data_to_send() == ack(1) + data(b"K")


def test_pings_are_answered_at_once_and_with_one_ack() -> None:
    _client, server = opened(64)
    said(server, PING * 50)
    assert server.data_to_send() == ack(0)
    assert not server.wants_write


def test_a_ping_promises_another_ack_once_what_came_before_it_is_handed_on() -> None:
    _client, server = opened(64)
    sink = Sink(server)
    sink.feed(data(b"0123456789") + PING, 1, most=2)
    assert server.data_to_send() == ack(2)
    sink.take(7)
    assert not server.wants_write
    sink.take(1)
    assert server.data_to_send() == ack(10)


def test_who_waits_for_room_asks_once_until_the_peer_gets_on() -> None:
    client, _server = opened(20)
    client.give(b"x" * 20)
    assert client.data_to_send() == data(b"x" * 20) + PING
    assert client.room == 0
    assert not client.wants_write
    said(client, ack(0))
    assert not client.wants_write
    said(client, ack(8))
    assert client.room == 8
    client.out.kept = Pipe()
    client.out.kept.append(b"x" * 12 + b"y" * 8)
    assert client.begin_data(8) == data_header(8)
    assert client.data_to_send() == PING


def test_a_window_that_memory_has_shrunk_still_moves() -> None:
    """The peer would acknowledge a quarter of what was announced, which is more than is kept now."""
    client, server = opened(400)
    client.keep_at_most = 10
    sink = Sink(server)
    moved = 0
    for _ in range(200):
        if moved == 1000:
            break
        count = min(client.room, 1000 - moved)
        client.give(b"x" * count)
        moved += count
        while wire := client.data_to_send():
            sink.feed(wire, 1)
        assert client.out.held <= 10
        while wire := server.data_to_send():
            said(client, wire)
    assert len(sink.taken) == 1000


def test_in_the_place_of_a_keepalive_goes_what_is_owed() -> None:
    _client, server = opened(64)
    assert server.keepalive() == KEEPALIVE
    Sink(server).feed(data(b"x"), 1)
    assert server.keepalive() == ack(1)
    assert server.keepalive() == KEEPALIVE


def test_an_idle_session_holds_nothing_once_it_is_acknowledged() -> None:
    client, server = opened(64)
    client.give(b"key")
    Sink(server).feed(client.data_to_send(), 1)
    said(client, server.keepalive())
    assert client.out.held == 0
    assert isinstance(client.out.kept, KeptBytes)
    assert not client.out.kept._pieces


def test_an_idle_session_is_small() -> None:
    _, server = opened(64)
    parts = [server, server.out, server._reader, server.terms, server.peer]
    assert sum(sys.getsizeof(part) for part in parts) < 1024


def test_capsules_are_no_larger_than_asked_for() -> None:
    client, _ = opened(64)
    client.give(b"0123456789")
    assert [client.data_to_send(4) for _ in range(4)] == [data(b"0123"), data(b"4567"), data(b"89"), b""]


# --- bytes that go past the machine ------------------------------------------------------------------


class Pipe:
    """Bytes that tee(2) has put elsewhere."""

    def __init__(self) -> None:
        self.bytes = b""

    def append(self, data: bytes) -> None:
        self.bytes += data

    def drop(self, count: int) -> None:
        assert count <= len(self.bytes)
        self.bytes = self.bytes[count:]

    def read(self, offset: int, most: int) -> bytes:
        return self.bytes[offset : offset + most]


def test_a_bulk_flow_is_counted_and_never_seen() -> None:
    client, server = opened(64)
    sink = Sink(client)
    pipe = server.out.kept = Pipe()
    for piece in (b"a" * 30, b"b" * 20):
        pipe.bytes += piece
        head = server.begin_data(len(piece))
        assert read(head + piece) == [piece]
        said(client, head)
        assert client.payload_left == len(piece)
        client.took(len(piece))
        assert client.payload_left == 0
        client.sink_took(len(piece))
        sink.taken += piece
    assert (client.received, client.handed_on) == (50, 50)
    said(server, client.data_to_send())
    assert pipe.bytes == b""
    # And what is lost is replayed from where it is kept.
    pipe.bytes += b"c" * 10
    server.begin_data(10)
    lost(client, server)
    resumed(client, server)
    exchange(client, server, (sink, Sink(server)))
    assert sink.taken == b"a" * 30 + b"b" * 20 + b"c" * 10


def test_before_bulk_goes_what_is_due() -> None:
    client, _server = opened(64)
    said(client, data(b"x" * 20))
    client.sink_took(20)
    client.out.kept = Pipe()
    client.out.kept.append(b"y" * 5)
    assert client.begin_data(5) == ack(20) + data_header(5)


def test_final_data_with_payload_that_goes_past_tells_of_the_end() -> None:
    client, _ = opened(64)
    said(client, FINAL[:-1] + b"\x05")
    assert client.took(3) is None
    assert client.took(2) == End(None)
    assert client.received == 6
    with pytest.raises(Violation):
        said(client, data(b"x"))


# --- a connection is lost ---------------------------------------------------------------------------


def test_what_was_in_flight_is_sent_again_and_nothing_twice() -> None:
    client, server = opened(64)
    to_client, to_server = Sink(client), Sink(server)
    client.give(b"0123456789")
    wire = client.data_to_send()
    to_server.feed(wire[:-3], 1)
    lost(client, server)
    client.give(b"abc")
    resumed(client, server)
    exchange(client, server, (to_client, to_server))
    assert to_server.taken == b"0123456789abc"
    assert client.attachment == server.attachment == 2


def test_who_detaches_twice_or_late_detaches_nothing_else() -> None:
    client, server = opened()
    assert server.detach(1)
    assert not server.detach(1)
    client.detach(1)
    resumed(client, server)
    assert not server.detach(1)
    assert server.attached
    assert server.detach(2)


def test_bytes_of_an_older_connection_are_dropped_unread() -> None:
    client, server = opened()
    lost(client, server)
    assert not [part for part in server.receive(data(b"stale"), 1) if part.payload]
    resumed(client, server)
    assert not [part for part in server.receive(data(b"stale") + FINAL + b"\xff" * 40, 1) if part.payload or part.end]
    assert (server.received, server.peer_end) == (0, None)


def test_a_reader_that_stops_in_the_middle_has_counted_what_it_got_and_no_more() -> None:
    _client, server = opened(4096)
    wire = b"".join(data(b"%d" % (number % 10)) for number in range(100))
    parts = server.receive(wire, 1)
    got = next(parts).payload
    assert server.received == len(got) < 100
    server.detach(1)
    assert list(parts) == []
    assert server.received == len(got)


def test_thousands_of_small_capsules_are_read_in_turns() -> None:
    _client, server = opened(4096)
    assert len(list(server.receive(PING * 3200, 1))) > 50


def test_while_detached_the_window_is_a_bound_and_what_is_in_hand_is_taken() -> None:
    client, server = opened(20)
    lost(client, server)
    server.give(b"x" * 15)
    assert server.room == 5
    server.give(b"y" * 15)
    assert server.room == 0
    assert server.data_to_send() == b""
    assert not server.wants_write
    sink = Sink(client)
    resumed(client, server)
    exchange(client, server, (sink, Sink(server)))
    assert sink.taken == b"x" * 15 + b"y" * 15


def test_acknowledgements_go_on_where_the_sink_took_bytes_meanwhile() -> None:
    client, server = opened(64)
    sink = Sink(server)
    client.give(b"0123456789")
    sink.feed(client.data_to_send(), 1, most=0)
    lost(client, server)
    sink.take(7)
    resumed(client, server)
    assert client.out.acked == 7
    assert client.out.sent == 10
    assert server.owed == 0


def test_two_losses_without_a_byte_between_them() -> None:
    client, server = opened()
    sinks = Sink(client), Sink(server)
    client.give(b"abc")
    for number in (1, 2, 3):
        lost(client, server)
        resumed(client, server, number)
    exchange(client, server, sinks)
    assert sinks[1].taken == b"abc"


def test_a_client_whose_first_words_were_lost_is_known_by_its_proof() -> None:
    """The server has not noticed yet: it still waits for HELLO on the old connection."""
    server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
    client = Resumable.agree(first(server.data_to_send()), terms(), bounds=SMALL)
    client.give(b"abc")
    client.data_to_send()
    client.detach(1)
    sinks = Sink(client), Sink(server)
    resumed(client, server, 1, sinks[0])
    assert server.resumable
    exchange(client, server, sinks)
    assert sinks[1].taken == b"abc"


# --- attempts -------------------------------------------------------------------------------------


def tried(client: Resumable, *, server_nonce: bytes = nonce(1), client_nonce: bytes = nonce(2)) -> Hello:
    return attempted(client, server_nonce, client_nonce)[1]


Change = Callable[[Hello], Hello]

#: What somebody without the secret may do to a HELLO that he has seen.
FORGED: dict[str, Change] = {
    "no proof": lambda hello: hello._replace(proof=None),
    "another proof": lambda hello: hello._replace(proof=bytes(32)),
    "no nonce": lambda hello: hello._replace(nonce=None),
    "another nonce": lambda hello: hello._replace(nonce=nonce(99)),
    "no attempt": lambda hello: hello._replace(attempt=None),
    "a later attempt": lambda hello: hello._replace(attempt=9),
    "no count": lambda hello: hello._replace(received=None),
    "another count": lambda hello: hello._replace(received=1),
    "nothing handed on": lambda hello: hello._replace(acked=None),
    "more handed on": lambda hello: hello._replace(acked=5),
    "a new tunnel's": lambda hello: Hello(keepalive=1, window=20, grace=9),
}


def untouched(machine: Resumable) -> tuple[object, ...]:
    out = machine.out
    return (
        machine.attached, machine.attachment, machine.attempt, machine.received, machine.told, machine.peer,
        out.acked, out.base, out.sent, out.held,
    )  # fmt: skip


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_who_has_not_the_secret_touches_nothing(change: Change) -> None:
    client, server = opened()
    server.give(b"secret data")
    server.data_to_send()
    client.detach(1)
    before = untouched(server)
    hello = change(tried(client))
    with pytest.raises(NotYours) as refused:
        server.check(hello, nonce(1))
    assert refused.value.code == ResetCode.NOT_YOURS
    assert untouched(server) == before
    server.detach(1)
    with pytest.raises(NotYours):
        server.take_over(hello, nonce(1))
    assert not server.attached


def test_a_fellow_user_with_another_secret_touches_nothing() -> None:
    _client, server = opened()
    other = Resumable.offer(SESSION, bytes(32), terms(), bounds=SMALL)
    thief = Resumable.agree(first(other.data_to_send()), terms(), bounds=SMALL)
    thief.detach(1)
    with pytest.raises(NotYours):
        server.check(tried(thief), nonce(1))
    assert server.attached


def test_a_recorded_attempt_is_worth_nothing_under_another_nonce() -> None:
    client, server = opened()
    client.detach(1)
    hello = tried(client, server_nonce=nonce(1))
    server.check(hello, nonce(1))
    with pytest.raises(NotYours):
        server.check(hello, nonce(3))


def test_a_server_s_proof_is_no_client_s() -> None:
    client, server = opened()
    lost(client, server)
    hello = tried(client)
    server.take_over(hello, nonce(1))
    answer = first(server.data_to_send())
    reflected = answer._replace(attempt=hello.attempt + 1 if hello.attempt else 1, nonce=hello.nonce)
    with pytest.raises(NotYours):
        server.check(reflected, nonce(1))


def test_a_delayed_attempt_does_not_take_a_healthy_session_over() -> None:
    client, server = opened()
    client.detach(1)
    late = tried(client, server_nonce=nonce(1))
    resumed(client, server, 2)
    before = untouched(server)
    with pytest.raises(Stale) as refused:
        server.check(late, nonce(1))
    assert refused.value.code == ResetCode.BUSY
    assert untouched(server) == before


def test_of_two_attempts_that_were_both_let_in_the_newer_one_stays() -> None:
    """Both have passed the check, and wait for the old connection's tasks."""
    client, server = opened()
    client.detach(1)
    older = tried(client, server_nonce=nonce(1))
    newer, hello = attempted(client, nonce(2), nonce(3))
    server.check(older, nonce(1))
    server.check(hello, nonce(2))
    server.detach(1)
    server.take_over(hello, nonce(2))
    with pytest.raises(Stale):
        server.take_over(older, nonce(1))
    assert server.attached
    client.resume(newer, first(server.data_to_send()))


def test_a_client_goes_on_with_its_newest_attempt_alone() -> None:
    """It has told the server its count in the newer one, and must not get further meanwhile."""
    client, server = opened()
    client.detach(1)
    older, hello = attempted(client, nonce(1), nonce(2))
    newer, later = attempted(client, nonce(3), nonce(4))
    server.detach(1)
    server.take_over(hello, nonce(1))
    server.give(b"to the older one")
    answer = server.data_to_send()
    reader = FirstCapsule()
    greeting = reader.receive(answer)
    assert isinstance(greeting, Hello)
    with pytest.raises(Stale):
        client.resume(older, greeting)
    server.detach(2)
    server.take_over(later, nonce(3))
    sink = Sink(client)
    client.resume(newer, first(server.data_to_send(0)))
    with pytest.raises(Stale):
        client.resume(newer, greeting)
    exchange(client, server, (sink, Sink(server)))
    assert sink.taken == b"to the older one"


def answered(change: Callable[[Hello], Hello]) -> Resumable:
    """A client whose server's answer was changed on its way; it raises what the client raises."""
    client, server = opened()
    client.give(b"abc")
    client.data_to_send()
    lost(client, server)
    attempt, hello = attempted(client, nonce(1), nonce(2))
    server.take_over(hello, nonce(1))
    answer = first(server.data_to_send())
    before = untouched(client)
    try:
        client.resume(attempt, change(answer))
    except ResumeError:
        assert untouched(client) == before
        raise
    return client


FORGED_ANSWERS: dict[str, Change] = {
    "no proof": lambda hello: hello._replace(proof=None),
    "another proof": lambda hello: hello._replace(proof=bytes(32)),
    "no count": lambda hello: hello._replace(received=None),
    "a count that skips": lambda hello: hello._replace(received=3),
    "nothing acknowledged": lambda hello: hello._replace(acked=None),
    "more acknowledged": lambda hello: hello._replace(acked=3, received=3),
    "a new tunnel": lambda hello: Hello(keepalive=1, window=20, grace=9, session=SESSION, secret=SECRET),
}


@pytest.mark.parametrize("change", FORGED_ANSWERS.values(), ids=FORGED_ANSWERS.keys())
def test_a_server_that_does_not_prove_itself_is_dropped_and_the_session_kept(change: Change) -> None:
    assert answered(lambda hello: hello).attached
    with pytest.raises(NotYours):
        answered(change)


def test_figures_may_change_with_the_connection() -> None:
    client, server = opened(64)
    lost(client, server)
    client.terms = terms(32)
    resumed(client, server)
    assert server.peer is not None
    assert server.peer.window == 32


def test_a_window_out_of_bounds_is_refused_on_a_resume_too() -> None:
    client, server = opened(64)
    lost(client, server)
    client.terms = terms(4)
    with pytest.raises(Violation):
        server.take_over(tried(client), nonce(1))
    assert not server.attached


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (13, "", True),
        (9, "b 1790000000", True),
        (9, "a 1790000000", False),
        (9, "- 1790000000", False),
        (9, "", False),
        *[(code, "", False) for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14, 1 << 40)],
    ],
)
def test_a_refused_client_tries_again_where_that_may_help(code: int, words: str, expected: bool) -> None:
    client, _ = opened()
    assert client.session.startswith("a-")
    assert client.may_retry(Reset(code, words)) is expected


def test_without_nodes_a_session_that_is_gone_is_gone() -> None:
    client, _ = opened()
    client.session = client.session.removeprefix("a-")
    assert not client.may_retry(Reset(9, "- 1790000000"))


# --- peers that lie -------------------------------------------------------------------------------


def with_counts(client: Resumable, received: int, acked: int) -> Hello:
    """What the owner of a session could claim of itself."""
    client.received, client.handed_on = received, acked
    return tried(client)


@pytest.mark.parametrize(
    ("received", "acked", "error"),
    [
        (5, 5, None),
        (10, 5, None),
        (10, 10, None),
        (11, 5, Violation),
        (11, 11, Violation),
        (4, 4, Violation),
        (0, 0, Violation),
        (6, 7, Violation),
        ((1 << 62) - 1, 5, Violation),
    ],
)
def test_a_peer_that_lies_about_its_counts_is_refused(
    received: int, acked: int, error: type[ResumeError] | None
) -> None:
    client, server = opened(64)
    server.give(b"0123456789")
    server.data_to_send()
    said(server, ack(5))
    lost(client, server)
    hello = with_counts(client, received, acked)
    if error is None:
        server.take_over(hello, nonce(1))
        return
    with pytest.raises(error):
        server.take_over(hello, nonce(1))
    assert (server.attached, server.out.acked, server.out.held) == (False, 5, 5)


@pytest.mark.parametrize(
    "wire",
    [
        ack(11),
        ack(4),
        ack((1 << 62) - 1),
        Hello(keepalive=1, window=20, grace=9).capsule(),
        challenge(b"c" * 32),
        FINAL + data(b"x"),
        FINAL + FINAL,
    ],
    ids=["ack of more", "ack of less", "ack of very much", "second hello", "challenge", "data after end", "two ends"],
)
def test_a_peer_that_breaks_the_rules_on_the_way_is_told_so(wire: bytes) -> None:
    _client, server = opened(64)
    server.give(b"0123456789")
    server.data_to_send()
    said(server, ack(5))
    with pytest.raises(Violation) as broken:
        said(server, wire)
    assert broken.value.code == ResetCode.PROTOCOL
    assert server.out.acked == 5


def test_what_came_before_the_broken_rule_is_not_lost() -> None:
    _, server = opened(64)
    parts = server.receive(data(b"good") + ack(1 << 40), 1)
    assert next(parts).payload == b"good"
    with pytest.raises(Violation):
        next(parts)
    assert server.received == 4


def test_who_never_acknowledges_costs_a_window_and_no_more() -> None:
    _, server = opened(64)
    given = 0
    for _ in range(1000):
        given += server.room
        server.give(b"x" * server.room)
        while server.data_to_send():
            pass
    assert given == server.out.held == 64


def test_nor_does_a_flood_of_attempts_cost_anything() -> None:
    client, server = opened(64)
    client.detach(1)
    before = untouched(server)
    for number in range(1000):
        with pytest.raises(NotYours):
            server.check(tried(client)._replace(proof=nonce(number)), nonce(1))
    assert untouched(server) == before


# --- lapse ----------------------------------------------------------------------------------------


def full(window: int = 20) -> tuple[Resumable, Resumable]:
    """A server that waits for room. Its client has sent 10 bytes, and they are in hand."""
    client, server = opened(window)
    said(server, data(b"0123456789"))
    server.give(b"x" * window)
    server.data_to_send()
    assert server.room == 0
    return client, server


def test_a_lapse_makes_room_and_ends_when_the_sink_moves() -> None:
    _, server = full()
    assert server.lapse()
    assert (server.room, server.out.held, server.lapses) == (20, 0, 1)
    for _ in range(10):
        server.give(b"y" * 20)
        server.data_to_send()
        assert server.out.held == 0
    server.sink_took(0)
    assert server.out.lapsed
    server.sink_took(1)
    assert not server.out.lapsed
    server.give(b"z" * 15)
    server.data_to_send()
    assert (server.out.held, server.room) == (15, 5)


@pytest.mark.parametrize("state", ["room", "detached", "unsent", "ended", "broken", "lapsed", "plain"])
def test_nothing_lapses_that_is_not_stuck(state: str) -> None:
    _, server = full()
    match state:
        case "room":
            said(server, ack(3))
        case "detached":
            server.detach(1)
        case "unsent":
            server.give(b"more")
        case "ended":
            server.give_end()
        case "broken":
            said(server, reset(7, ""))
        case "lapsed":
            server.lapse()
        case "plain":
            server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
            said(server, data(b"x"))
    held, lapses = server.out.held, server.lapses
    assert not server.lapse()
    assert (server.out.held, server.lapses) == (held, lapses)


def test_a_loss_within_a_lapse_is_a_gap_that_both_ends_learn() -> None:
    client, server = full()
    server.lapse()
    lost(client, server)
    with pytest.raises(Gap) as gap:
        server.take_over(tried(client), nonce(1))
    assert gap.value.code == ResetCode.GAP


def test_a_loss_after_a_lapse_is_none_where_everything_that_was_not_kept_has_arrived() -> None:
    client, server = opened(20)
    sinks = Sink(client), Sink(server)
    client.give(b"0")
    said(server, client.data_to_send())
    server.give(b"x" * 20)
    sinks[0].feed(server.data_to_send(), 1, most=0)
    assert server.lapse()
    server.give(b"y" * 20)
    sinks[0].feed(server.data_to_send(), 1, most=0)
    server.sink_took(1)
    server.give(b"z" * 5)
    server.data_to_send()
    lost(client, server)
    resumed(client, server, 1, sinks[0])
    exchange(client, server, sinks)
    assert sinks[0].taken == b"x" * 20 + b"y" * 20 + b"z" * 5


def test_what_is_given_while_it_has_lapsed_and_not_yet_sent_is_kept() -> None:
    _client, server = full()
    server.lapse()
    server.give(b"not yet")
    server.detach(1)
    assert server.out.held == 7
    assert not server.out.lapsed


# --- ends -----------------------------------------------------------------------------------------


def test_a_good_end_is_known_by_both() -> None:
    client, server = opened()
    sinks = Sink(client), Sink(server)
    client.give(b"question")
    client.give_end()
    exchange(client, server, sinks)
    assert client.end_acked
    assert not client.finished
    server.give(b"answer")
    server.give_end()
    exchange(client, server, sinks)
    assert client.finished
    assert server.finished
    assert client.over
    assert server.over
    assert (sinks[0].taken, sinks[1].taken) == (b"answer", b"question")


def test_an_end_in_the_server_s_memory_lets_no_client_leave() -> None:
    client, server = opened(64)
    sinks = Sink(client), Sink(server)
    client.give(b"abc")
    client.give_end()
    sinks[1].feed(client.data_to_send(), 1, most=0)
    server.give_end()
    sinks[0].feed(server.data_to_send(), 1)
    server.ping()
    lost(client, server)
    resumed(client, server, 1, sinks[0])
    exchange(client, server, (sinks[0], Sink(server)))
    assert client.out.sent == 4
    assert not client.end_acked
    assert not client.finished
    sinks[1].take()
    exchange(client, server, (sinks[0], Sink(server)))
    assert client.finished


def left_behind() -> tuple[Resumable, Resumable]:
    """A server that is finished, and a client that has not heard the last ACK."""
    client, server = opened(64)
    sinks = Sink(client), Sink(server)
    server.give(b"bye")
    server.give_end()
    exchange(client, server, sinks)
    client.give_end()
    sinks[1].feed(client.data_to_send(), 1)
    server.data_to_send()
    assert server.finished
    assert not client.finished
    lost(client, server)
    return client, server


def test_a_tombstone_tells_that_all_has_arrived() -> None:
    client, server = left_behind()
    tombstone = server.tombstone(0, "")
    attempt, hello = attempted(client, nonce(1), nonce(2))
    client.resume(attempt, first(tombstone.answer(hello, nonce(1))))
    assert client.finished


def test_a_tombstone_tells_why_a_session_ended() -> None:
    client, server = opened(64)
    lost(client, server)
    tombstone = server.tombstone(ResetCode.AWAY_TOO_LONG, "the client was away for 60 s")
    hello = tried(client)
    assert read(tombstone.answer(hello, nonce(1))) == [Reset(12, "the client was away for 60 s")]
    server.give_reset(1, "the connection broke")
    assert read(server.tombstone(0, "").answer(hello, nonce(1))) == [Reset(1, "the connection broke")]


def test_a_tombstone_tells_nobody_else_anything() -> None:
    client, server = left_behind()
    tombstone = server.tombstone(0, "")
    hello = tried(client)
    assert "secret" not in repr(tombstone)
    with pytest.raises(NotYours):
        tombstone.answer(hello, nonce(5))
    with pytest.raises(NotYours):
        tombstone.answer(hello._replace(proof=bytes(32)), nonce(1))
    with pytest.raises(Stale):
        replace(tombstone, attempt=9).answer(hello, nonce(1))


@pytest.mark.parametrize("finished", [True, False])
def test_a_tombstone_is_the_same_after_parking(finished: bool) -> None:
    if finished:
        _, server = left_behind()
    else:
        _, server = opened()
        server.give_reset(2, "gone")
    tombstone = server.tombstone(0, "")
    assert tombstone.finished is finished
    assert Tombstone.thaw(tombstone.freeze()) == tombstone


# --- resets ---------------------------------------------------------------------------------------


def test_a_reset_comes_after_the_bytes_before_it_and_is_no_end_of_file() -> None:
    client, server = opened(64)
    sinks = Sink(client), Sink(server)
    server.give(b"half an ans")
    server.give_reset(ResetCode.TARGET, "the connection broke")
    server.data_to_send(4)
    lost(client, server)
    assert not server.over
    resumed(client, server, 1, sinks[0])
    exchange(client, server, sinks)
    assert sinks[0].taken == b"half an ans"
    assert sinks[0].end == End(Reset(1, "the connection broke"))
    assert client.broken == server.broken == Reset(1, "the connection broke")
    assert client.over
    assert server.over
    assert not client.finished
    assert not server.finished


def test_after_a_reset_nothing_is_read_or_sent_any_more() -> None:
    client, server = opened(64)
    client.give(b"in vain")
    server.give_reset(2, "")
    sink = Sink(server)
    sink.feed(client.data_to_send(), 1)
    assert sink.taken == b""
    assert server.room == 0
    assert server.lapse() is False
    to_client = Sink(client)
    to_client.feed(server.data_to_send(), 1)
    client.give(b"more in vain")
    assert client.room == 0
    assert read(client.data_to_send()) == read(ack(1))
    assert client.out.held == 7


def test_what_comes_after_our_reset_is_neither_handed_on_nor_acknowledged() -> None:
    """The target is gone: an ACK would say that it has what the client still sends."""
    client, server = opened(64)
    sink = Sink(server)
    client.give(b"0123456789")
    sink.feed(client.data_to_send(), 1, most=4)
    server.give_reset(1, "")
    client.give_end()
    assert said(server, client.data_to_send()) == []
    server.sink_took(6)
    server.sink_ended()
    assert (server.received, server.in_hand, server.handed_on) == (11, 0, 4)
    assert not [event for event in read(server.keepalive()) if isinstance(event, Ack) and event.position > 4]


def test_a_reset_takes_the_place_of_an_end_that_was_not_sent() -> None:
    _client, server = opened(20)
    server.give(b"x")
    server.give_end()
    server.give_reset(6, "stopped")
    assert read(server.data_to_send()) == [b"x", Reset(6, "stopped")]


def test_a_reset_after_our_end_is_said_too_and_again_on_the_next_connection() -> None:
    client, server = opened(64)
    sinks = Sink(client), Sink(server)
    server.give_end()
    exchange(client, server, sinks)
    server.give_reset(6, "stopped")
    assert read(server.data_to_send()) == [Reset(6, "stopped")]
    lost(client, server)
    resumed(client, server, 1, sinks[0])
    assert client.broken == Reset(6, "stopped")
    assert not client.finished
    assert not server.finished


def test_a_reset_after_both_were_finished_undoes_nothing() -> None:
    client, server = opened()
    for machine in (client, server):
        machine.give_end()
    exchange(client, server)
    server.give_reset(6, "stopped")
    assert server.broken is None
    assert server.data_to_send() == b""
    said(client, reset(1, "late"))
    assert client.finished


def test_a_client_that_leaves_says_so_after_what_it_had_read() -> None:
    client, server = opened(64)
    client.give(b"last words")
    client.give_reset(ResetCode.LEAVING, "")
    sink = Sink(server)
    sink.feed(client.data_to_send(), 1)
    assert sink.taken == b"last words"
    assert server.broken == Reset(7, "")
    assert server.over


# --- parking --------------------------------------------------------------------------------------


def fields(machine: Resumable) -> dict[str, object]:
    """Every field, so that a new one that is not frozen makes a test fail."""
    found = {name: getattr(machine, name) for name in Resumable.__slots__ if name != "out"}
    found |= {"out." + name: getattr(machine.out, name) for name in type(machine.out).__slots__ if name != "kept"}
    held = machine.out.held
    found["kept"] = machine.out.kept.read(0, held) if machine.out.kept and held else b""
    return found


def busy() -> tuple[Resumable, Resumable]:
    """Both in the middle of everything: no field has the value that it began with."""
    client, server = opened(64)
    sink = Sink(server)
    client.give(b"0123456789")
    sink.feed(client.data_to_send(), 1, most=7)
    said(server, data(b"x"))
    for machine in (client, server):
        machine.give(b"y" * 64)
    said(server, client.data_to_send())
    server.data_to_send()
    said(server, ack(20))
    server.give(b"y" * server.room)
    server.data_to_send()
    assert server.lapse()
    lost(client, server)
    server.give(b"kept")
    return client, server


def test_every_field_of_a_parked_session_comes_back() -> None:
    client, server = busy()
    server.keep_at_most = 33
    server.last_words = Reset(1, "last")
    server.done = server.confirms = True
    server.attempt = 5
    server.peer_end = End(Reset(7, "left"))
    server.out.end = End(None)
    fresh = fields(Resumable.offer(SESSION, SECRET, terms(64, grace=3600), bounds=SMALL))
    same = {"_ack_due", "_asked", "_bounds", "_ping_due", "_promised", "_secret", "session", "side", "terms"}
    same |= {"out.lapsed", "attachment"}
    for name, value in fields(server).items():
        if name not in same and not name.startswith("_"):
            assert value != fresh[name], f"{name}: the test has to change it"
    for machine in (client, server):
        line, kept = machine.freeze()
        assert "\n" not in line
        assert fields(Resumable.thaw(line, kept)) == fields(machine)


def test_a_parked_session_goes_on() -> None:
    client, server = opened(64)
    to_client, to_server = Sink(client), Sink(server)
    server.give(b"0123456789")
    to_client.feed(server.data_to_send()[:-4], 1)
    client.give(b"abc")
    client.give_end()
    lost(client, server)
    back = Resumable.thaw(*server.freeze())
    to_server = Sink(back)
    resumed(client, back, 1, to_client)
    back.give_end()
    exchange(client, back, (to_client, to_server))
    assert (to_client.taken, to_server.taken) == (b"0123456789", b"abc")
    assert client.finished
    assert back.finished


def test_a_large_window_comes_back_in_pieces_that_are_freed_one_by_one() -> None:
    _, server = opened(4 << 20, bounds=BOUNDS)
    server.give(bytes(4 << 20))
    server.data_to_send(4 << 20)
    server.detach(1)
    back = Resumable.thaw(*server.freeze())
    assert isinstance(back.out.kept, KeptBytes)
    assert max(len(piece) for piece in back.out.kept._pieces) <= 256 * 1024


@pytest.mark.parametrize(
    "change",
    [
        lambda state: "",
        lambda state: "[]",
        lambda state: "7",
        lambda state: "{}",
        lambda state: json.dumps(state | {"version": 2}),
        lambda state: json.dumps({key: value for key, value in state.items() if key != "told"}),
        lambda state: json.dumps(state | {"side": "both"}),
        lambda state: json.dumps(state | {"secret": "xyz"}),
        lambda state: json.dumps(state | {"terms": {}}),
        lambda state: json.dumps(state | {"out": []}),
        lambda state: json.dumps(state | {"peer_end": 5}),
        lambda state: json.dumps(state | {"bounds": None}),
    ],
)
def test_a_state_that_is_not_known_is_refused_and_never_guessed(change: Callable[[dict[str, object]], str]) -> None:
    _, server = busy()
    line, kept = server.freeze()
    Resumable.thaw(line, kept)
    with pytest.raises(StateError):
        Resumable.thaw(change(json.loads(line)), kept)
    with pytest.raises(StateError):
        Resumable.thaw(line, kept + b"x")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: "",
        lambda state: "[]",
        lambda state: json.dumps(state | {"version": 2}),
        lambda state: json.dumps({key: value for key, value in state.items() if key != "acked"}),
        lambda state: json.dumps(state | {"later": 1}),
        lambda state: json.dumps(state | {"secret": "xyz"}),
        lambda state: json.dumps(state | {"hello": None}),
    ],
)
def test_nor_is_a_tombstone(change: Callable[[dict[str, object]], str]) -> None:
    _, server = opened()
    with pytest.raises(StateError):
        Tombstone.thaw(change(json.loads(server.tombstone(0, "").freeze())))


# --- secrets --------------------------------------------------------------------------------------


def test_nothing_that_is_shown_has_a_secret() -> None:
    client, server = opened()
    secret = repr(SECRET)[2:-1]
    lost(client, server)
    attempt, hello = attempted(client, nonce(1), nonce(2))
    for shown in (client, server, attempt, hello, server.tombstone(0, "")):
        assert secret not in repr(shown)
        assert secret not in str(shown)
