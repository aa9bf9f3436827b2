"""Sans-IO machine of a tunnel that comes back: what was sent, what has arrived, what to say on a new connection.

Theory of operation
===================

A *session* is one tunnel. It lives through any number of *connections*; one at a time is attached to it. Each side has
one `Resumable` for the session. A `Resumable` does no I/O and has no clock.

**Positions.** A direction of n bytes is n positions long, and n + 1 once it has ended: its end, FINAL_DATA or RESET,
takes one. So one number says everything about a direction. The peer's direction has three such numbers:

- `received`: how much has arrived, in this session's memory or already in the sink. It outlives the connection: on the
  next one, the peer sends from there.
- `handed_on`: how much the sink has taken (write(2) returned; for the end, the shutdown or the reset is done).
- `told`: the last `handed_on` that we sent to the peer, in an ACK or a HELLO.

The peer drops kept bytes only up to our `told`, so an end that is only in memory never counts as delivered.
`Outgoing` (resume_outgoing.py) has the numbers of our own direction.

**Lapse.** An ACK can be stuck behind data that nobody reads. If our sink is blocked *and* we wait for room to send,
both sides may wait for ever. Then `lapse` drops the kept bytes, and we send without keeping anything until the sink has
taken something. If the connection is lost before the peer has received up to `out.base`, bytes are lost (a gap): the
session ends with RESET 10, and both ends learn why.

**Attempts** are numbered. Both sides prove that they have the session's secret; each proof covers the nonces of both.
An attempt with a wrong proof, or one that is not newer than the last that attached, does not change the session.

The server, new tunnel (the request has Http2tcp-Resume: ?1)::

    machine = Resumable.offer(session, secret, terms)    # attached; HELLO is first in data_to_send
    The loop below. If the client's first capsule is not a HELLO, `mode` is PLAIN from then on: nothing is kept, DONE
    takes the place of ACK, and everything else stays the same. `resumable` is True once the client has sent HELLO and
    then ACK or PING: only then does the server wait for another connection when this one is lost.

The client, new tunnel::

    first = FirstCapsule(); event = first.receive(...)   # the server's first capsule
    Hello:      machine = Resumable.agree(event, terms); machine.receive(first.rest, machine.attachment)
    Mark.OTHER: the tunnel is not resumable; first.rest is the beginning of its capsules

Both, while attached::

    in    for part in machine.receive(data, attachment): a generator; each part is one turn of work
              hand part.payload on; machine.sink_took(n) for every n that the sink takes
              at part.end: shutdown or reset; machine.sink_ended()
          bulk: up to machine.payload_left bytes may be spliced; machine.took(n) as they leave the socket, and
          machine.sink_took(n) as they reach the sink. `took` returns the end if it follows these bytes.
    out   read at most machine.room from the source; machine.give(data), give_end(), give_reset(code, words)
          while wire := machine.data_to_send(most): write all of it, or give the connection up
          bulk: if wants_write is False, tee n bytes into machine.out.kept (skip this while machine.out.lapsed);
          head = machine.begin_data(n); write head; splice the n bytes after it
    After each of these check machine.wants_write: an ACK is due after each PING and each quarter of the window.
    ACK_WITHIN after machine.owed became more than 0: machine.acknowledge(), then data_to_send.
    When it is time for a keepalive: write what machine.keepalive() returns.
    If one pump has waited for its sink, and the other for room, both for LAPSE_AFTER: machine.lapse().

Hold a lock while you take bytes from `data_to_send`, `begin_data` or `keepalive` and write them: bytes count as sent on
this connection once they are taken, and must be written in the order in which they were taken.

A connection is lost::

    machine.detach(attachment)    # returns False, and does nothing, if it was not the current one
    While detached, `give` still takes bytes that were already read, `sink_took` works as before, and `room` is 0 once
    the window is full.

Resuming, at the client::

    Challenge:  attempt = machine.answer(event.nonce, nonce)     # write attempt.capsule
    Hello:      attachment = machine.resume(attempt, event)      # then receive(first.rest, attachment)
    Reset:      refused, the session is unchanged; machine.may_retry(event) says whether another attempt makes sense

Resuming, at the server::

    write challenge(nonce); read a Hello within its deadline
    machine.check(event, nonce)                     # before anything is changed: NotYours, Stale
    abort the old connection; wait until its tasks are gone; machine.detach(machine.attachment)
    attachment = machine.take_over(event, nonce)    # checks again: another attempt may have been faster
    Answer a ResumeError with its RESET. After Gap and Violation the session is over, on both ends.

The end. `finished`: both directions have ended well and each side knows it: close, exit 0. `over`: finished, or the
RESET of either side was handed on. The server keeps a `tombstone`, for a client whose last ACK was lost.

Parking: `freeze` saves a detached session, and `Resumable.thaw` restores it.
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

#: The longest time, in seconds, from the first byte that needs an ACK to that ACK.
ACK_WITHIN = 1.0
#: Seconds for which both directions must be stuck before the session lapses: a sink may just be slow for a moment.
LAPSE_AFTER = 1.0

# The most payload that one DATA capsule carries, in bytes, unless the caller says otherwise.
_CHUNK = 256 * 1024
# How many capsules are read in one turn of the loop. capsule.py has the same limit.
_BATCH = 32


class Bounds(NamedTuple):
    """The smallest and the largest window, and the least data worth an ACK, in bytes. Tests take smaller ones."""

    least: int = 256 * 1024
    most: int = 64 * 1024 * 1024
    acknowledged: int = 64 * 1024


BOUNDS = Bounds()


# --- the session ----------------------------------------------------------------------------------


class Side(Enum):
    """Which side of the tunnel this is."""

    CLIENT = "client"
    SERVER = "server"


class Mode(Enum):
    """Whether client and server have agreed to resume the tunnel."""

    #: The server has offered to resume, and the client's first capsule has not come yet.
    OFFERED = "offered"
    RESUMABLE = "resumable"
    #: The client did not take the offer: plain capsules, nothing is kept.
    PLAIN = "plain"


class Terms(NamedTuple):
    """The figures that one side sends in its HELLO."""

    #: Milliseconds: this side sends something at least this often.
    keepalive: int
    #: Bytes that this side keeps of its direction.
    window: int
    #: Seconds without a connection: how long the client wants the server to wait, or how long the server waits at most.
    grace: int
    #: Seconds of silence after which the server ends the tunnel; only the server sends this.
    idle_timeout: int | None = None


class Received(NamedTuple):
    """The payload and the end that one turn of reading brought."""

    payload: bytes
    #: The end of the peer's direction, after the payload; None: it goes on.
    end: End | None


class Resumable:
    """One side of a session: see the docstring of this module."""

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
        """Use `offer` at the server and `agree` at the client."""
        self.side = side
        self.session = session
        self._secret = secret
        self.terms = terms
        #: The peer's terms, once its HELLO has come.
        self.peer: Terms | None = None
        self._bounds = bounds
        self.mode = Mode.OFFERED if side is Side.SERVER else Mode.RESUMABLE
        #: At the server: whether the client has sent ACK or PING, which shows that it knows the session.
        self.confirmed = False
        #: In PLAIN: whether both sides send DONE (they agreed on Http2tcp-Confirm).
        self.confirms = confirms
        #: In PLAIN: whether the peer has sent DONE.
        self.done = False
        #: The number of the last attempt: at the server the last that attached, at the client the last that began.
        self.attempt = 0
        #: The number of the newest connection.
        self.attachment = 0
        self.attached = False
        self._reader: Reader | None = None
        # Capsules to send before anything else on this connection.
        self._due = b""
        self.out = Outgoing()
        #: How many bytes the process's memory allows this session to keep; more than 0. `room` obeys it at once.
        self.keep_at_most = terms.window
        #: How often the session has lapsed.
        self.lapses = 0
        # Whether to send a PING.
        self._ping_due = False
        # `out.acked` when this connection's last PING was sent; -1: none was.
        self._asked = -1
        #: Positions of the peer's direction that have arrived: in memory, or already in the sink.
        self.received = 0
        #: Positions of the peer's direction that the sink has taken.
        self.handed_on = 0
        #: The value of `handed_on` that we last sent to the peer.
        self.told = 0
        self.peer_end: End | None = None
        self._ack_due = False
        # `received` when the peer's last PING came: an ACK is due once that much is handed on. -1: nothing to wait for.
        self._promised = -1
        #: Our RESET, if we broke the tunnel off after our FINAL_DATA: it has no position.
        self.last_words: Reset | None = None

    @classmethod
    def offer(
        cls, session: str, secret: bytes, terms: Terms, *, confirms: bool = False, bounds: Bounds = BOUNDS
    ) -> Resumable:
        """Make the server's side of a new tunnel. `secret` is KEY_SIZE random bytes."""
        self = cls(Side.SERVER, session, secret, terms, confirms=confirms, bounds=bounds)
        self._due = self._hello(session=session, secret=secret).capsule()
        self._attach()
        return self

    @classmethod
    def agree(cls, hello: Hello, terms: Terms, *, bounds: Bounds = BOUNDS) -> Resumable:
        """Make the client's side of a new tunnel from the server's HELLO. Raises Violation."""
        if hello.session is None or hello.secret is None:
            raise Violation("the server's HELLO has no session or no secret")
        self = cls(Side.CLIENT, hello.session, hello.secret, terms, bounds=bounds)
        self._learn(hello)
        # The ACK tells the server that the client knows the session: from then on the server waits for a lost client.
        self._due = self._hello().capsule() + ack(0)
        self._attach()
        return self

    # --- what was agreed --------------------------------------------------------------------------

    @property
    def resumable(self) -> bool:
        """Whether the session can go on with another connection when this one is lost."""
        return self.mode is Mode.RESUMABLE and (self.side is Side.CLIENT or self.confirmed)

    @property
    def grace(self) -> int:
        """Seconds without a connection for which the server waits and the client tries to come back."""
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
        """Detach a lost connection. Return False, and do nothing, if it is not the current one."""
        if attachment != self.attachment or not self.attached:
            return False
        self.attached = False
        self._reader = None
        self._due = b""
        self._ack_due = self._ping_due = False
        self._asked = self._promised = -1
        # Keep all data that is given from here on: the next connection may have to send all of it.
        self.out.lapsed = False
        self.out.sent = self.out.most
        return True

    def answer(self, server_nonce: bytes, client_nonce: bytes) -> Attempt:
        """Make the attempt that answers a CHALLENGE. Older attempts become stale. Only while detached."""
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
        """Attach by the server's HELLO, its answer to the client's attempt. Return the connection's number.

        Raises Stale if a newer attempt has begun or attached, and NotYours if the server's proof is missing or wrong:
        drop the connection then; the session is unchanged. Gap and Violation end the session.
        """
        from http2tcp.protocol.resume_proof import Role

        # The session has been detached since the attempt began, so `received` is still what the attempt's HELLO said.
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
        """Whether to try again after a refusal: the server is busy, or another node has answered.

        Every other code ends the session, also a code that is unknown here.
        """
        if said.code == ResetCode.GONE:
            # The node of our session is its id without the 12 digits and the hyphen before them.
            return parse_gone(said.words).node not in ("", self.session[:-13])
        return said.code == ResetCode.BUSY

    def check(self, hello: Hello, server_nonce: bytes) -> None:
        """Check that a client's HELLO may take the session over. Changes nothing. Raises NotYours or Stale."""
        assert self.side is Side.SERVER
        if self.mode is Mode.PLAIN:
            raise NotYours("this tunnel cannot be resumed: its client did not agree to it")
        from http2tcp.protocol.resume_proof import verify

        verify(self._secret, self.session, self.attempt, hello, server_nonce)

    def take_over(self, hello: Hello, server_nonce: bytes) -> int:
        """Attach the connection of a client's HELLO, and return the connection's number.

        Only while detached, and after the tasks of the old connection are gone. Raises NotYours and Stale like `check`;
        Gap and Violation end the session.
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
        # The client's first HELLO and ACK may be lost with their connection. Its proof shows as well that it knows the
        # session.
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
        """Read what the connection brought; yield it in parts, each a short turn of work. Raises Violation.

        A part counts as received once it is yielded: the caller then has it in memory, and keeps it until its sink has
        taken it. Bytes of an older connection are dropped unread. A caller that stops in the middle must give the
        connection up: the parts that it did not get are not counted, and come again on the next connection.
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
            # The parts before the violation are already counted as received: yield them.
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
        """How many of the connection's next bytes are payload. The caller may move them past this machine."""
        return self._reader.payload_left if self._reader else 0

    def took(self, count: int) -> End | None:
        """Count `count` bytes of payload that were moved past this machine. Return the end, if it follows them.

        The bytes must be in memory that outlives the connection. Raises Violation.
        """
        assert self._reader is not None
        ended = self._reader.took(count)
        self._payload(count)
        return self._ended(None) if ended else None

    def _payload(self, count: int) -> bool:
        """Count payload as received. Return False if it is to be dropped: we have broken the tunnel off."""
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
        # A RESET from the peer after its FINAL_DATA breaks the tunnel, but has no position.
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
        """Count `count` bytes that the sink has taken, either from `receive` or spliced past this machine."""
        if self._broken_here:
            return
        assert 0 <= count <= self.in_hand
        self.handed_on += count
        if count and self.mode is not Mode.PLAIN:
            # Our sink takes bytes again, so we read on and get the peer's ACKs: keep again what is sent from here on.
            self.out.lapsed = False
        self._judge()

    def sink_ended(self) -> None:
        """Record that the sink got the peer's end, after all bytes. Before a RESET, bytes in hand may be dropped."""
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
        """How many received bytes the caller has not handed on yet. 0 if we have broken the tunnel off."""
        if self._broken_here:
            return 0
        return max(0, self.received - (self.peer_end is not None) - self.handed_on)

    @property
    def owed(self) -> int:
        """How many positions were handed on since the last ACK or HELLO to the peer."""
        return self.handed_on - self.told

    def acknowledge(self) -> None:
        """Make an ACK due, if one is owed. Does nothing while detached: the next HELLO does the same."""
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
        """How many bytes the caller may read for `give` now. `give` also takes more, if they are already read."""
        if self.out.end is not None or self.broken is not None:
            return 0
        window = min(self.terms.window, self.keep_at_most)
        return window if self.out.lapsed else max(0, window - self.out.held)

    def give(self, data: bytes) -> None:
        """Queue data to send; drop it if the tunnel is broken off. This direction must not have ended."""
        assert self.out.end is None
        if data and self.broken is None:
            self.out.give(data)

    def give_end(self) -> None:
        """End this direction well (FINAL_DATA). Does nothing if it has already ended."""
        if self.out.end is None:
            self.out.end = End(None)

    def give_reset(self, code: int, words: str) -> None:
        """Break the tunnel off, by a RESET behind all data. Nothing more is handed on, in either direction."""
        if self.broken is not None or self.finished:
            return
        why = Reset(code, words)
        if self.out.end is None or self.out.most <= self.out.length:
            self.out.end = End(why)
        else:
            # FINAL_DATA was already sent, and has the direction's last position: send the RESET without a position.
            self.last_words = why
            self._due += reset(*why) if self.attached else b""

    def ping(self) -> None:
        """Make a PING due, which asks the peer for an ACK."""
        self._ping_due = self.attached and self.mode is not Mode.PLAIN

    @property
    def wants_write(self) -> bool:
        """Whether `data_to_send` has something to send now."""
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
        """Whether to ask for an ACK because the window is full: once, until the peer has acknowledged more."""
        return (
            self.mode is Mode.RESUMABLE
            and self._sends
            and self.out.end is None
            and self.out.sent == self.out.length > self.out.acked > self._asked
            and self.room == 0
        )

    def data_to_send(self, most: int = _CHUNK) -> bytes:
        """Take the whole capsules that are due now, with at most `most` bytes of payload; b"" if nothing is due.

        The caller writes all of it to this connection, or gives the connection up.
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
        """Count `count` new bytes that go out past this machine. Return what to write before them.

        The bytes are already in `out.kept`; while `out.lapsed`, they are not kept. No other data may wait to be sent.
        """
        assert self.attached
        assert self.out.end is None
        self.out.put_elsewhere(count)
        return self._controls(True) + data_header(count)

    def keepalive(self) -> bytes:
        """Return what to send when a keepalive is due: the capsules that are due or owed, else a KEEPALIVE."""
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
        # An ACK that goes out together with data costs no packet of its own.
        if self._ack_due or (data and self.owed):
            wire += ack(self.handed_on)
            self.told = self.handed_on
            self._ack_due = False
        return wire

    def _question(self) -> bytes:
        """Return a PING if one is due. The PING goes out after the data that it asks about."""
        if not (self._ping_due or self._wants_room):
            return b""
        self._asked = self.out.acked
        self._ping_due = False
        return PING

    def lapse(self) -> bool:
        """Stop keeping what is sent: our sink is blocked, and we wait for room. Return whether that made room."""
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
        """The RESET by which either side broke the tunnel off; None: neither did."""
        if self.peer_end is not None and self.peer_end.reset is not None:
            return self.peer_end.reset
        return self.last_words or (self.out.end.reset if self.out.end else None)

    @property
    def _broken_here(self) -> bool:
        return self.last_words is not None or (self.out.end is not None and self.out.end.reset is not None)

    @property
    def end_acked(self) -> bool:
        """Whether the peer has handed on our whole direction, the end included."""
        return self.out.end is not None and self.out.acked > self.out.length

    @property
    def finished(self) -> bool:
        """Whether both directions have ended well, and each side knows that the other has everything.

        This side has handed on the peer's end and has acknowledged it, and its own end is acknowledged. If the last ACK
        is lost, the client comes back and finds the tombstone.
        """
        if self.peer_end is None or self.peer_end.reset is not None or self.out.end is None or self.out.end.reset:
            return False
        said = self.handed_on == self.received == self.told
        if self.mode is Mode.PLAIN and not self.confirms:
            return said and self.out.sent > self.out.length
        return said and self.end_acked and self.last_words is None

    @property
    def over(self) -> bool:
        """Whether neither side needs another connection: finished, or broken off and both sides know it."""
        if self.finished:
            return True
        if self.peer_end is not None and self.peer_end.reset is not None:
            return self.handed_on == self.received
        return self._broken_here and self.last_words is None and self.end_acked

    def tombstone(self, code: int, words: str) -> Tombstone:
        """Make what the server remembers of the session: enough to tell a client that comes back how it ended."""
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
        """Save a detached session. Return a line of JSON, which contains the secret, and the kept bytes.

        The received bytes that the caller still has (`in_hand`) are not included: the caller must save them.
        """
        import json  # imported here, since no client needs it

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
        """Restore a session that `freeze` saved. Raises StateError if it is damaged, or of another version."""
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
