"""Sans-IO machine of a tunnel that comes back: what was sent, what has arrived, what to say on a new connection.

Theory of operation
===================

A *session* is one tunnel. It lives through any number of *connections*; one at a time is attached to it. Each side has
one `Resumable` for the session. It does no I/O and has no clock.

**Positions.** A direction of n bytes is n positions long, and n + 1 once it has ended: its end, FINAL_DATA or RESET,
takes one. So one number says everything about a direction. Of the peer's direction there are three:

- `received`: what this session has in memory, or further. It survives the connection. It says where sending goes on.
- `handed_on`: what the sink has taken (write(2) returned; for the end, shutdown or the reset is done).
- `told`: what we have said of `handed_on`, in ACK or HELLO.

The peer drops what it keeps by ACK alone, so that an end that is only in memory is never taken for delivered.
`Outgoing` (resume_outgoing.py) has the numbers of our own direction.

**Lapse.** An ACK can hide behind data that nobody reads. Where my sink is blocked *and* I wait for room for what I
send, both sides may wait for ever. Then `lapse` drops what is kept, and sending goes on unkept until the sink has taken
something. A connection that is lost before the peer has got as far as `out.base` is a gap: RESET 10, which both ends
learn.

**Attempts** are numbered, and both sides prove that they have the session's secret, over nonces of both. An attempt
that is not newer than the last one that attached touches nothing, and neither does a wrong proof.

The server, new tunnel (the request has Http2tcp-Resume: ?1)::

    machine = Resumable.offer(session, secret, terms)    # attached; HELLO is first in data_to_send
    The loop below. If the client's first capsule is no HELLO, `mode` is PLAIN from then on: nothing is kept, DONE takes
    the place of ACK, and everything else goes on as before. `resumable` is True once the client has said HELLO and ACK
    or PING: only then is a lost connection a reason to wait for another one.

The client, new tunnel::

    first = FirstCapsule(); event = first.receive(...)   # the server's first capsule
    Hello:      machine = Resumable.agree(event, terms); machine.receive(first.rest, machine.attachment)
    Mark.OTHER: the tunnel is not resumable; first.rest is the beginning of its capsules

Both, while attached::

    in    for part in machine.receive(data, attachment): a generator, with one turn of work a part
              hand part.payload on; machine.sink_took(n) for every n that the sink takes
              at part.end: shutdown or reset; machine.sink_ended()
          bulk: up to machine.payload_left bytes may be spliced; machine.took(n) as they leave the socket, and
          machine.sink_took(n) as they reach the sink. `took` tells of an end, as `receive` does.
    out   read at most machine.room from the source; machine.give(data), give_end(), give_reset(code, words)
          while wire := machine.data_to_send(most): write all of it, or give the connection up
          bulk: where wants_write is False, tee n bytes into machine.out.kept (nowhere while machine.out.lapsed);
          head = machine.begin_data(n); write head; splice the n bytes after it
    After each of these look at machine.wants_write: a PING that came, and every quarter of the window, owe an ACK.
    ACK_WITHIN after machine.owed became more than 0: machine.acknowledge(), then data_to_send.
    In the place of a keepalive: machine.keepalive().
    Where one pump waits for its sink, the other for room, and both for LAPSE_AFTER: machine.lapse().

Taking bytes out of `data_to_send`, `begin_data` or `keepalive` and writing them is one step under a lock: the bytes
count as sent on this connection from then on, and their order is the protocol.

A connection is lost::

    machine.detach(attachment)    # False where it was not the current one: then nothing happened
    Detached, `give` still takes what is in hand, `sink_took` goes on, and `room` is 0 once the window is full.

Resuming, at the client::

    Challenge:  attempt = machine.answer(event.nonce, nonce)     # write attempt.capsule
    Hello:      attachment = machine.resume(attempt, event)      # then receive(first.rest, attachment)
    Reset:      refused, and the session is untouched; machine.may_retry(event) says whether another attempt makes sense

Resuming, at the server::

    write challenge(nonce); read a Hello within its deadline
    machine.check(event, nonce)                     # before anything is touched: NotYours, Stale
    abort the old connection; wait until its tasks are gone; machine.detach(machine.attachment)
    attachment = machine.take_over(event, nonce)    # checks again: another attempt may have been faster
    A ResumeError has the RESET to answer with. After Gap and Violation the session is over, on both ends.

The end. `finished`: both directions have ended well and each side knows it: close, exit 0. `over`: that, or the RESET
of either side was handed on. The server keeps a `tombstone`, for a client whose last ACK was lost.

Parking: `freeze` a session that is detached; `Resumable.thaw`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from http2tcp.protocol.capsule import DONE, KEEPALIVE, Reset, ResetCode, data_header, reset
from http2tcp.protocol.resume_outgoing import End, KeptBytes, Outgoing
from http2tcp.protocol.resume_wire import (
    PING,
    VERSION,
    Ack,
    Event,
    Hello,
    Mark,
    NotYours,
    Reader,
    Stale,
    StateError,
    Violation,
    ack,
    parse_gone,
)

if TYPE_CHECKING:
    from http2tcp.protocol.resume_proof import Attempt, Claim, Role
    from http2tcp.protocol.resume_tombstone import Tombstone

#: Seconds after the first byte that is owed an ACK, at the latest.
ACK_WITHIN = 1.0
#: Seconds for which both directions have to be stuck before they lapse: a sink that is slow for a moment is not stuck.
LAPSE_AFTER = 1.0

# What a DATA capsule carries at most, unless the caller says otherwise.
_CHUNK = 256 * 1024
# Capsules that are read in one turn of the loop, as in capsule.py.
_BATCH = 32


class Bounds(NamedTuple):
    """The smallest and the largest window, and the least data worth an ACK, in bytes. Tests take smaller ones."""

    least: int = 256 * 1024
    most: int = 64 * 1024 * 1024
    acknowledged: int = 64 * 1024


BOUNDS = Bounds()


# --- the session ----------------------------------------------------------------------------------


class Side(Enum):
    """Which of the two this is."""

    CLIENT = "client"
    SERVER = "server"


class Mode(Enum):
    """What was agreed."""

    #: The server has offered, and the client's first capsule is to come.
    OFFERED = "offered"
    RESUMABLE = "resumable"
    #: The client did not take the offer: capsules as ever.
    PLAIN = "plain"


class Terms(NamedTuple):
    """One side's figures, which it says in HELLO."""

    #: Milliseconds.
    keepalive: int
    #: Bytes kept in a direction.
    window: int
    #: Seconds: how long it wants to be missed for, or misses the other side at most.
    grace: int
    #: Seconds; the server's alone.
    idle_timeout: int | None = None


class Received(NamedTuple):
    """What one turn of reading brought."""

    payload: bytes
    #: The direction's end, after the payload.
    end: End | None


class Resumable:
    """One side of a session: see the module."""

    __slots__ = (
        "_ack_due",
        "_asked",
        "_bounds",
        "_due",
        "_ping_due",
        "_promised",
        "_reader",
        "_secret",
        "attached",
        "attachment",
        "attempt",
        "confirmed",
        "confirms",
        "done",
        "handed_on",
        "keep_at_most",
        "lapses",
        "last_words",
        "mode",
        "out",
        "peer",
        "peer_end",
        "received",
        "session",
        "side",
        "terms",
        "told",
    )

    def __init__(
        self, side: Side, session: str, secret: bytes, terms: Terms, *, confirms: bool = False, bounds: Bounds = BOUNDS
    ) -> None:
        """See `offer` and `agree`."""
        self.side = side
        self.session = session
        self._secret = secret
        self.terms = terms
        #: The peer's, once it has said HELLO.
        self.peer: Terms | None = None
        self._bounds = bounds
        self.mode = Mode.OFFERED if side is Side.SERVER else Mode.RESUMABLE
        #: At the server: the client has said ACK or PING, so that it knows the session.
        self.confirmed = False
        #: In PLAIN: both sides say DONE (Http2tcp-Confirm).
        self.confirms = confirms
        #: In PLAIN: the peer has said DONE.
        self.done = False
        #: The last attempt: at the server the last that attached, at the client the last that began.
        self.attempt = 0
        #: The number of the newest connection.
        self.attachment = 0
        self.attached = False
        self._reader: Reader | None = None
        # What comes before anything else on this connection.
        self._due = b""
        self.out = Outgoing()
        #: Bytes: how much the process's memory allows to be kept, more than 0; `room` follows it at once.
        self.keep_at_most = terms.window
        #: How often it has lapsed.
        self.lapses = 0
        # A PING is to be sent; and how far the peer had acknowledged when the last one asked for room.
        self._ping_due = False
        self._asked = -1
        #: Positions of the peer's direction that are in memory or further.
        self.received = 0
        #: Those that the sink has taken.
        self.handed_on = 0
        #: Those that the peer was told of.
        self.told = 0
        self.peer_end: End | None = None
        self._ack_due = False
        # The peer has asked when it had sent so much: an ACK is due once that is handed on.
        self._promised = -1
        #: A RESET that came after our FINAL_DATA: it has no position.
        self.last_words: Reset | None = None

    @classmethod
    def offer(
        cls, session: str, secret: bytes, terms: Terms, *, confirms: bool = False, bounds: Bounds = BOUNDS
    ) -> Resumable:
        """The server's side of a new tunnel. `secret` is KEY_SIZE random bytes."""
        self = cls(Side.SERVER, session, secret, terms, confirms=confirms, bounds=bounds)
        self._due = self._hello(session=session, secret=secret).capsule()
        self._attach()
        return self

    @classmethod
    def agree(cls, hello: Hello, terms: Terms, *, bounds: Bounds = BOUNDS) -> Resumable:
        """The client's side of a new tunnel, by the server's HELLO. Raises Violation."""
        if hello.session is None or hello.secret is None:
            raise Violation("the server's HELLO has no session or no secret")
        self = cls(Side.CLIENT, hello.session, hello.secret, terms, bounds=bounds)
        self._learn(hello)
        # The ACK says that the client knows the session: from here on the server waits for it.
        self._due = self._hello().capsule() + ack(0)
        self._attach()
        return self

    # --- what was agreed --------------------------------------------------------------------------

    @property
    def resumable(self) -> bool:
        """Whether a lost connection is worth waiting for another one."""
        return self.mode is Mode.RESUMABLE and (self.side is Side.CLIENT or self.confirmed)

    @property
    def grace(self) -> int:
        """Seconds for which the server waits for the client, and the client tries."""
        return min(self.terms.grace, self.peer.grace) if self.peer else 0

    def _hello(
        self,
        *,
        session: str | None = None,
        secret: bytes | None = None,
        received: int | None = None,
        acked: int | None = None,
        attempt: int | None = None,
        nonce: bytes | None = None,
        proof: bytes | None = None,
    ) -> Hello:
        return Hello(
            keepalive=self.terms.keepalive,
            window=self.terms.window,
            grace=self.terms.grace,
            idle_timeout=self.terms.idle_timeout,
            session=session,
            secret=secret,
            received=received,
            acked=acked,
            attempt=attempt,
            nonce=nonce,
            proof=proof,
        )

    def _learn(self, hello: Hello) -> None:
        if not self._bounds.least <= hello.window <= self._bounds.most:
            raise Violation(f"a window of {hello.window} bytes is out of bounds")
        grace = hello.grace if hello.grace is not None else self.peer.grace if self.peer else 0
        self.peer = Terms(keepalive=hello.keepalive, window=hello.window, grace=grace, idle_timeout=hello.idle_timeout)

    # --- connections ------------------------------------------------------------------------------

    def _attach(self) -> int:
        self.attachment += 1
        self.attached = True
        self._reader = Reader()
        return self.attachment

    def detach(self, attachment: int) -> bool:
        """This connection is lost. False, and nothing else, where it was not the current one."""
        if attachment != self.attachment or not self.attached:
            return False
        self.attached = False
        self._reader = None
        self._due = b""
        self._ack_due = self._ping_due = False
        self._asked = self._promised = -1
        # What is given from here on is kept: it may all be sent on the next connection.
        self.out.lapsed = False
        self.out.sent = self.out.most
        return True

    def answer(self, server_nonce: bytes, client_nonce: bytes) -> Attempt:
        """The client's next attempt, in answer to a CHALLENGE; older ones are over. Only while detached."""
        assert self.side is Side.CLIENT
        assert not self.attached
        from http2tcp.protocol.resume_proof import Attempt, Role

        self.attempt += 1
        claim = self._claim(Role.CLIENT, self.attempt, self.received, self.handed_on, server_nonce, client_nonce)
        hello = self._hello(
            received=claim.received,
            acked=claim.acked,
            attempt=claim.attempt,
            nonce=client_nonce,
            proof=claim.prove(self._secret),
        )
        return Attempt(self.attempt, claim.acked, hello.capsule(), server_nonce, client_nonce)

    def resume(self, attempt: Attempt, hello: Hello) -> int:
        """The server's HELLO to the client's attempt; the number of the connection.

        Raises Stale where a newer attempt has begun or attached, NotYours where the server has no proof: then the
        connection is dropped and the session untouched. Gap and Violation end the session.
        """
        from http2tcp.protocol.resume_proof import Role

        # Only a detached session begins an attempt, so `received` is what this one has said.
        if attempt.number != self.attempt or self.attached:
            raise Stale("a newer attempt has begun")
        if hello.received is None or hello.acked is None or hello.proof is None:
            raise NotYours("the server's HELLO has no proof")
        claim = self._claim(
            Role.SERVER, attempt.number, hello.received, hello.acked, attempt.server_nonce, attempt.client_nonce
        )
        if not claim.holds(self._secret, hello.proof):
            raise NotYours("the server does not prove that it has the session's secret")
        self._learn(hello)
        self.out.go_on(hello.received, hello.acked)
        self.told = attempt.acked
        return self._attach()

    def may_retry(self, said: Reset) -> bool:
        """Whether a refused attempt may be followed by another one: the server is busy, or it is another node.

        A code that is not known here is an end, as any code is.
        """
        if said.code == ResetCode.GONE:
            # The id without its 12 digits and the hyphen before them.
            return parse_gone(said.words).node not in ("", self.session[:-13])
        return said.code == ResetCode.BUSY

    def check(self, hello: Hello, server_nonce: bytes) -> None:
        """Whether a client's HELLO may take the session over. Touches nothing. Raises NotYours or Stale."""
        assert self.side is Side.SERVER
        if self.mode is Mode.PLAIN:
            raise NotYours("this tunnel cannot be resumed: its client did not agree to it")
        from http2tcp.protocol.resume_proof import verify

        verify(self._secret, self.session, self.attempt, hello, server_nonce)

    def take_over(self, hello: Hello, server_nonce: bytes) -> int:
        """Attach the connection of a client's HELLO; its number. Only while detached, its old tasks gone.

        Raises NotYours and Stale as `check` does; Gap and Violation end the session.
        """
        from http2tcp.protocol.resume_proof import Role

        self.check(hello, server_nonce)
        assert not self.attached
        assert hello.received is not None
        assert hello.acked is not None
        assert hello.attempt is not None
        assert hello.nonce is not None
        self._learn(hello)
        self.out.go_on(hello.received, hello.acked)
        self.attempt = hello.attempt
        # The proof says it, too, where the client's first words were lost with the connection.
        self.mode = Mode.RESUMABLE
        self.confirmed = True
        claim = self._claim(Role.SERVER, hello.attempt, self.received, self.handed_on, server_nonce, hello.nonce)
        self.told = self.handed_on
        self._due = self._hello(received=claim.received, acked=claim.acked, proof=claim.prove(self._secret)).capsule()
        if self.last_words is not None:
            self._due += reset(*self.last_words)
        return self._attach()

    def _claim(
        self, role: Role, attempt: int, received: int, acked: int, server_nonce: bytes, client_nonce: bytes
    ) -> Claim:
        from http2tcp.protocol.resume_proof import Claim

        return Claim(
            role=role,
            session=self.session,
            attempt=attempt,
            received=received,
            acked=acked,
            server_nonce=server_nonce,
            client_nonce=client_nonce,
        )

    # --- receiving --------------------------------------------------------------------------------

    def receive(self, data: bytes, attachment: int) -> Iterator[Received]:
        """What the connection brought, in parts that take a moment each. Raises Violation.

        A part counts as received once it is yielded: the caller has it in memory then, and keeps it until its sink has
        taken it. What an older connection still brings is dropped unread. Whoever stops in the middle gives the
        connection up: what it did not get is not counted, and comes again on the next one.
        """
        parts: list[bytes] = []
        heads = 0
        end = None
        try:
            for event in self._events(data, attachment):
                heads += 1
                if isinstance(event, bytes):
                    if self._payload(len(event)):
                        parts.append(event)
                elif event is Mark.FINAL or isinstance(event, Reset):
                    end = self._ended(event if isinstance(event, Reset) else None) or end
                else:
                    self._control(event)
                if heads % _BATCH == 0:
                    yield Received(b"".join(parts), end)
                    if attachment != self.attachment or not self.attached:
                        return
                    parts, end = [], None
        except Violation:
            # What came before it has been counted.
            if parts or end:
                yield Received(b"".join(parts), end)
            raise
        yield Received(b"".join(parts), end)

    def _events(self, data: bytes, attachment: int) -> Iterator[Event]:
        if attachment != self.attachment or self._reader is None:
            return
        yield from self._reader.read(data)

    @property
    def payload_left(self) -> int:
        """How many of the connection's next bytes are payload, which may go past this machine."""
        return self._reader.payload_left if self._reader else 0

    def took(self, count: int) -> End | None:
        """So many bytes of payload were moved elsewhere, into memory that outlives the connection; the end behind them.

        Raises Violation.
        """
        assert self._reader is not None
        ended = self._reader.took(count)
        self._payload(count)
        return self._ended(None) if ended else None

    def _payload(self, count: int) -> bool:
        """Count it; False where nobody wants it any more."""
        if self.mode is Mode.OFFERED:
            self._go_plain()
        if self.peer_end is not None:
            raise Violation("data came after the end")
        self.received += count
        return not self._broken_here

    def _ended(self, why: Reset | None) -> End | None:
        if self.mode is Mode.OFFERED:
            self._go_plain()
        if why is not None and self.finished:
            return None  # both sides have everything: ignore a RESET that the peer sent before it knew that
        if self.peer_end is None:
            self.received += 1
        elif why is None:
            raise Violation("a second end came")
        # A RESET after FINAL_DATA breaks the tunnel and has no position.
        self.peer_end = End(why)
        return None if why is None and self._broken_here else self.peer_end

    def _control(self, event: Event) -> None:
        if self.mode is Mode.OFFERED:
            if not isinstance(event, Hello):
                self._go_plain()
            else:
                self.mode = Mode.RESUMABLE
                self._learn(event)
                return
        if self.mode is Mode.PLAIN:
            if event is Mark.DONE and self.out.sent > self.out.length:
                self.done = True
                self.out.acked = self.out.sent
            return
        if isinstance(event, Ack):
            self.confirmed = True
            self.out.acknowledge(event.position)
        elif event is Mark.PING:
            self.confirmed = True
            self._ack_due = True
            self._promised = self.received
        elif event is not Mark.OTHER and event is not Mark.DONE:
            raise Violation(f"a {type(event).__name__.upper()} came in the middle of a connection")

    def _go_plain(self) -> None:
        self.mode = Mode.PLAIN
        self.out.lapsed = True
        self.out.drop_all()

    def sink_took(self, count: int) -> None:
        """The sink has taken so many bytes, in whatever way they went."""
        if self._broken_here:
            return
        assert 0 <= count <= self.in_hand
        self.handed_on += count
        if count and self.mode is not Mode.PLAIN:
            # My sink moves, so ACKs will come: what is sent from here on is kept again.
            self.out.lapsed = False
        self._judge()

    def sink_ended(self) -> None:
        """The sink has been told of the peer's end, after all bytes; after a RESET those in hand may be dropped."""
        assert self.peer_end is not None
        if self.peer_end.reset is None:
            if self._broken_here:
                return
            assert self.in_hand == 0
        if self.handed_on < self.received:
            self.handed_on = self.received
            self.acknowledge()

    @property
    def in_hand(self) -> int:
        """Bytes that were received and not yet handed on: the caller has them. None where we have broken it off."""
        if self._broken_here:
            return 0
        return max(0, self.received - (self.peer_end is not None) - self.handed_on)

    @property
    def owed(self) -> int:
        """Positions that were handed on and that the peer was not told of."""
        return self.handed_on - self.told

    def acknowledge(self) -> None:
        """An ACK is due, if anything is owed. A new connection begins with what is owed until then."""
        self._ack_due = self._ack_due or (self.attached and self.owed > 0)

    def _judge(self) -> None:
        window = self.peer.window if self.peer else self._bounds.least
        if self.owed >= max(self._bounds.acknowledged, window // 4):
            self.acknowledge()
        if 0 <= self._promised <= self.handed_on:
            self._promised = -1
            self.acknowledge()

    # --- sending ----------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many bytes may be read for `give` now. What was read already is taken in any case."""
        if self.out.end is not None or self.broken is not None:
            return 0
        window = min(self.terms.window, self.keep_at_most)
        return window if self.out.lapsed else max(0, window - self.out.held)

    def give(self, data: bytes) -> None:
        """These are to be sent. Nothing may have ended this direction."""
        assert self.out.end is None
        if data and self.broken is None:
            self.out.give(data)

    def give_end(self) -> None:
        """This direction has ended well. Nothing where it has ended already."""
        if self.out.end is None:
            self.out.end = End(None)

    def give_reset(self, code: int, words: str) -> None:
        """The tunnel is broken, after what was given: nothing more is handed on, either way."""
        if self.broken is not None or self.finished:
            return
        why = Reset(code, words)
        if self.out.end is None or self.out.most <= self.out.length:
            self.out.end = End(why)
        else:
            # FINAL_DATA has been said, and has the direction's last position.
            self.last_words = why
            self._due += reset(*why) if self.attached else b""

    def ping(self) -> None:
        """Ask for an ACK."""
        self._ping_due = self.attached and self.mode is not Mode.PLAIN

    @property
    def wants_write(self) -> bool:
        """Whether `data_to_send` has something now."""
        if not self.attached:
            return False
        if self._due or self._ack_due or self._ping_due or self._wants_room:
            return True
        return self._sends and self.out.sent < self.out.positions

    @property
    def _sends(self) -> bool:
        # A peer that has broken the tunnel off (by a RESET) reads no more.
        return self.peer_end is None or self.peer_end.reset is None

    @property
    def _wants_room(self) -> bool:
        """Whether to ask for an ACK because the window is full: once, until the peer gets on."""
        return (
            self.mode is Mode.RESUMABLE
            and self._sends
            and self.out.end is None
            and self.out.sent == self.out.length > self.out.acked > self._asked
            and self.room == 0
        )

    def data_to_send(self, most: int = _CHUNK) -> bytes:
        """Whole capsules that are due now, with `most` bytes of payload at most; b"" where nothing is.

        All of it has to be written to this connection, or the connection to be given up.
        """
        if not self.attached:
            return b""
        payload = self.out.take(most) if self._sends else b""
        parts = [self._controls(bool(payload)), data_header(len(payload)) if payload else b"", payload]
        if self._sends:
            parts.append(self.out.take_end())
        parts.append(self._question())
        return b"".join(parts)

    def begin_data(self, count: int) -> bytes:
        """So many new bytes go out now, past this machine: what to write before them.

        They are in `out.kept` already, or, where `out.lapsed`, nowhere. Nothing else may wait to be sent.
        """
        assert self.attached
        assert self.out.end is None
        self.out.put_elsewhere(count)
        return self._controls(True) + data_header(count)

    def keepalive(self) -> bytes:
        """What to send in the place of a keepalive: what is due or owed, else a keepalive."""
        self.acknowledge()
        return self.data_to_send() or (KEEPALIVE if self.attached else b"")

    def _controls(self, data: bool) -> bytes:
        wire, self._due = self._due, b""
        if self.mode is Mode.PLAIN:
            if self._ack_due and self.peer_end is not None and self.handed_on == self.received:
                self.told = self.received
                wire += DONE if self.confirms else b""
            self._ack_due = False
            return wire
        # With data on its way, an ACK costs no packet.
        if self._ack_due or (data and self.owed):
            wire += ack(self.handed_on)
            self.told = self.handed_on
            self._ack_due = False
        return wire

    def _question(self) -> bytes:
        """A PING where one is due. It comes after the data that it asks about."""
        if not (self._ping_due or self._wants_room):
            return b""
        self._asked = self.out.acked
        self._ping_due = False
        return PING

    def lapse(self) -> bool:
        """My sink is blocked, and I wait for room. True where that made room; what is in flight is kept no more."""
        if not self.attached or self.mode is not Mode.RESUMABLE or self.out.end is not None:
            return False
        if self.room or self.broken or self.out.lapsed or self.out.sent < self.out.length:
            return False
        self.out.lapsed = True
        self.out.drop_all()
        self.lapses += 1
        return True

    # --- the end ----------------------------------------------------------------------------------

    @property
    def broken(self) -> Reset | None:
        """Why the tunnel was broken off, by either side."""
        if self.peer_end is not None and self.peer_end.reset is not None:
            return self.peer_end.reset
        return self.last_words or (self.out.end.reset if self.out.end else None)

    @property
    def _broken_here(self) -> bool:
        return self.last_words is not None or (self.out.end is not None and self.out.end.reset is not None)

    @property
    def end_acked(self) -> bool:
        """Whether the peer has handed on all of ours, the end included."""
        return self.out.end is not None and self.out.acked > self.out.length

    @property
    def finished(self) -> bool:
        """Whether both directions have ended well, and each side knows that the other has everything.

        This side has handed on the peer's end and has said so, and its own end is acknowledged. If the ACK that said
        so is lost, the client comes back and finds the tombstone.
        """
        if self.peer_end is None or self.peer_end.reset is not None or self.out.end is None or self.out.end.reset:
            return False
        said = self.handed_on == self.received == self.told
        if self.mode is Mode.PLAIN and not self.confirms:
            return said and self.out.sent > self.out.length
        return said and self.end_acked and self.last_words is None

    @property
    def over(self) -> bool:
        """Whether neither side needs another connection: finished, or broken and both know."""
        if self.finished:
            return True
        if self.peer_end is not None and self.peer_end.reset is not None:
            return self.handed_on == self.received
        return self._broken_here and self.last_words is None and self.end_acked

    def tombstone(self, code: int, words: str) -> Tombstone:
        """What is left of the server's side: enough to tell a client that comes back how it ended."""
        from http2tcp.protocol.resume_tombstone import Tombstone

        return Tombstone(
            session=self.session,
            attempt=self.attempt,
            received=self.received,
            acked=self.handed_on,
            finished=self.finished,
            reset=self.broken or Reset(code, words),
            hello=self._hello(),
            secret=self._secret,
        )

    # --- parking ----------------------------------------------------------------------------------

    def freeze(self) -> tuple[str, bytes]:
        """All of a detached session: a line of JSON, which has the secret in it, and the bytes that are kept.

        What the caller has in hand (`in_hand`) is the caller's to keep.
        """
        import json  # no client needs it

        assert not self.attached

        out = self.out
        kept = bytearray()
        while len(kept) < out.held:
            assert out.kept is not None
            kept += out.kept.read(len(kept), out.held - len(kept))
        state = {
            "version": VERSION,
            "side": self.side.value,
            "session": self.session,
            "secret": self._secret.hex(),
            "terms": self.terms,
            "peer": self.peer,
            "bounds": self._bounds,
            "mode": self.mode.value,
            "out": {name: getattr(out, name) for name in _OUT_NUMBERS} | {"end": out.end},
            "peer_end": self.peer_end,
            "last_words": self.last_words,
        }
        state |= {name: getattr(self, name) for name in _PLAIN}
        return json.dumps(state), bytes(kept)

    @classmethod
    def thaw(cls, line: str, kept: bytes) -> Resumable:
        """The session that was frozen. Raises StateError for what another version wrote."""
        import json

        try:
            state = json.loads(line)
            if state["version"] != VERSION:
                raise StateError(f"expected a state of version {VERSION}, got {state['version']!r}")
            self = cls(
                Side(state["side"]),
                state["session"],
                bytes.fromhex(state["secret"]),
                Terms(*state["terms"]),
                bounds=Bounds(*state["bounds"]),
            )
            self.peer = Terms(*state["peer"]) if state["peer"] else None
            self.mode = Mode(state["mode"])
            self.peer_end = _end(state["peer_end"])
            self.last_words = Reset(*state["last_words"]) if state["last_words"] else None
            for name in _PLAIN:
                setattr(self, name, state[name])
            for name in _OUT_NUMBERS:
                setattr(self.out, name, state["out"][name])
            self.out.end = _end(state["out"]["end"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError("the state of a session cannot be read") from error
        if len(kept) != self.out.held:
            raise StateError(f"the state of a session has {len(kept)} bytes with it, and {self.out.held} are meant")
        for start in range(0, len(kept), _CHUNK):
            self.out.kept = self.out.kept or KeptBytes()
            self.out.kept.append(kept[start : start + _CHUNK])
        return self


_PLAIN = (
    "attachment", "attempt", "confirmed", "confirms", "done", "handed_on", "keep_at_most", "lapses",
    "received", "told",
)  # fmt: skip
_OUT_NUMBERS = ("acked", "base", "length", "most", "sent")


def _end(state: list[list[object]] | None) -> End | None:
    if state is None:
        return None
    return End(Reset(*state[0]) if state[0] else None)  # type: ignore[arg-type]
