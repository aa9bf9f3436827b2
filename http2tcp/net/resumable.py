"""A tunnel that outlives its connections: what the relay sees in place of `CapsuleStream`.

`http2tcp.protocol.resume.Resumable` decides; this stream moves the bytes. It has one *carrier* at a time, the stream of
the connection that is attached. A carrier that breaks, ends early or falls silent is only a detachment: nothing is
raised, what is received stays in memory, and `send_all` keeps what it was given and waits, so that the other side of
the relay is read no further. `attach` goes on with another carrier. The tunnel breaks where nobody comes back within
the grace, where either side breaks it off, and where bytes were lost.

Bytes count as handed on once the pump comes back for more: it has then given them to its sink.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from http2tcp.net.capsules import told_by
from http2tcp.net.last_look import last_look
from http2tcp.net.send_lock import SendLock
from http2tcp.net.streams import CHUNK, UNSAID_END, Bytes, Queue, Stream
from http2tcp.protocol.capsule import KEEPALIVE, ResetCode
from http2tcp.protocol.resume import ACK_WITHIN, LAPSE_AFTER, Mode, Resumable
from http2tcp.protocol.resume_wire import Gap, Hello, Violation

# How many of its own intervals a peer may miss before its connection is given up.
_MISSED = 3
# How long closing may try to say that nothing more comes, and a broken tunnel why.
_CLOSING = 1.0
# How long a client that has everything waits for the server's close: closing first, with bytes unread, would reset the
# connection, and a reset overtakes the last ACK.
_LAST_CLOSE = 2.0
# A client that has unacknowledged bytes and hears nothing asks after this long, and gives the connection up after as
# long again. Eternal Terminal's figure; a keystroke without an echo should not wait longer.
_PROBE = 5.0
# After the machine wakes up, the client sends a PING at once, and gives the connection up after this long without an
# answer.
_PROBE_AFTER_SUSPEND = 3.0
# How often a client looks whether the machine was suspended, and how much the two clocks may differ for other reasons.
_SUSPEND_LOOK = 5.0
_SUSPENDED = 2.0


class Account(Protocol):
    """What counts the bytes that a session keeps."""

    def settle(self, machine: Resumable) -> None:
        """Count what is kept now, and set how much may be (`keep_at_most`)."""

    def close(self) -> None:
        """Nothing is kept any more."""


class Bell:
    """Wakes those who wait for something to have changed. It costs nothing while nobody waits."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def ring(self) -> None:
        """Wake all."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Until the next ring."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


class Piped(Protocol):
    """Kept bytes that may lie in a pipe."""

    def fold(self) -> None:
        """Move all bytes from the pipe into the heap."""

    def close(self) -> None:
        """Forget them."""


class Attachment:
    """One connection of a session."""

    __slots__ = ("asked_at", "carrier", "heard_at", "lock", "number", "patience", "reading", "taken")

    def __init__(self, carrier: Stream, number: int) -> None:
        self.carrier = carrier
        #: What the machine calls it.
        self.number = number
        #: Capsules are written one sender at a time.
        self.lock = SendLock()
        #: When something last came, on trio's clock.
        self.heard_at = trio.current_time()
        #: Whether somebody waits for bytes from it: otherwise its silence means nothing.
        self.reading = False
        #: When a PING asked whether it is still there; None: it was not asked, or something came since.
        self.asked_at: float | None = None
        #: How long it may take to answer that PING, and what the peer's kernel had acknowledged then.
        self.patience = _PROBE
        self.taken = 0


class ResumableStream(Stream):
    """The bytes of a session, over whichever connection it has. It owns its carriers."""

    needs_attention = True
    changes_carriers = True

    def __init__(
        self,
        machine: Resumable,
        carrier: Stream,
        *,
        keepalive: float,
        peer_keepalive: float | None,
        client: bool,
        revive: Callable[[], Awaitable[None]] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_broken_off: Callable[[str], None] | None = None,
        account: Account | None = None,
    ) -> None:
        """Times are seconds. `peer_keepalive` counts until the peer's HELLO says another.

        `revive`: how a client gets another connection; it calls `attach`, or raises BrokenResourceError where the
        tunnel cannot come back. `on_lost` is told why, each time that a connection is lost and waited for, and
        `on_broken_off` where the tunnel is over all at once: the relay may be stuck at its other side. `account`
        counts what is kept, and bounds it.
        """
        self.machine = machine
        self._keepalive = keepalive
        self._peer_keepalive = peer_keepalive
        self._client = client
        self._revive = revive
        self._on_lost = on_lost
        self._on_broken_off = on_broken_off
        self._account = account
        self.attachment: Attachment | None = Attachment(carrier, machine.attachment)
        #: When the connection was lost, on trio's clock; None while one is attached.
        self.lost_at: float | None = None
        #: Why the last one was lost.
        self.lost_words = ""
        #: Whether the tunnel broke because nobody came back.
        self.given_up = False
        #: Whether it broke because bytes were lost in between.
        self.gap = False
        #: How often it was resumed, and how long it was without a connection, in seconds.
        self.resumes = 0
        self.lost_for = self.last_gap = 0.0
        self._is_reviving = False
        #: How much is read at a time: less where more would be spliced.
        self.sip = CHUNK
        #: Where the kept bytes are that have not come through memory.
        self.piped: Piped | None = None
        # Why the tunnel is broken for good; None: it is not.
        self._failure: str | None = None
        # Bytes that the pump has taken and not come back from.
        self._lent = 0
        self._lent_at = 0.0
        # Since when a sender waits for the peer to acknowledge something.
        self._full_since: float | None = None
        self._owed_since: float | None = None
        #: A connection came or went, or the tunnel is over.
        self._changed = Bell()
        #: There may be room, or a reason to have none.
        self._room = Bell()
        #: `attend` has something to do before the time that it sleeps to.
        self._stir = Bell()
        self._drift = _clock_drift()
        self._is_attended = False

    # --- connections ------------------------------------------------------------------------------

    def attach(self, carrier: Stream) -> None:
        """Go on with this carrier: the machine has taken it over, or resumed with it. What came too far is unread."""
        assert self.attachment is None
        carrier.reset_on_exit()
        self.attachment = Attachment(carrier, self.machine.attachment)
        if self.lost_at is not None:
            self.last_gap = trio.current_time() - self.lost_at
            self.lost_for += self.last_gap
            self.resumes += 1
        self.lost_at = None
        self._ring()

    def detach(self, why: str) -> None:
        """Give the connection up; a session that cannot come back is broken."""
        if self.attachment is not None:
            self._lose(self.attachment, why)

    def replace(self, hello: Hello, server_nonce: bytes, carrier: Stream) -> Attachment:
        """At the server: a client's HELLO takes the session over, and its connection the place of the old one.

        Raises NotYours and Stale, which touch nothing, and Gap and Violation, which end the session.
        """
        self.machine.check(hello, server_nonce)
        if self._failure is not None:
            # It has just ended. Another attempt finds what is left of it.
            raise trio.BrokenResourceError(self._failure)
        if self.attachment is not None:
            # The proof says that the client knows the session, even where its first words were lost.
            self.machine.mode, self.machine.confirmed = Mode.RESUMABLE, True
            self._lose(self.attachment, "a newer connection of this client took its place")
        try:
            self.machine.take_over(hello, server_nonce)
        except (Gap, Violation) as error:
            self.gap = isinstance(error, Gap)
            self.break_off(str(error))
            raise
        self.attach(carrier)
        assert self.attachment is not None
        return self.attachment

    async def wait_detached(self, attachment: Attachment) -> None:
        """Until this connection is no longer the session's."""
        while self.attachment is attachment:
            await self._changed.wait()

    def _lose(self, attachment: Attachment, why: str) -> None:
        if attachment is not self.attachment:
            return
        self.attachment = None
        attachment.carrier.abort()
        self.machine.detach(attachment.number)
        if self.piped is not None:
            # They are about to be sent again, and nobody keeps a pipe while he waits for that.
            self.piped.fold()
        self._owed_since = None
        if self.machine.resumable and self._failure is None:
            if not self.machine.finished:
                self.lost_at, self.lost_words = trio.current_time(), why
                if self._on_lost is not None:
                    self._on_lost(why)
        else:
            self._failure = self._failure or why
        self._ring()

    def fail(self, why: str) -> None:
        """The tunnel is broken for good."""
        if self._failure is None:
            self._failure = why
        self._ring()

    def break_off(self, why: str) -> None:
        """As `fail`, where the relay may be stuck at its other side, and would not notice."""
        self.fail(why)
        if self._on_broken_off is not None:
            self._on_broken_off(why)

    def _ring(self) -> None:
        self._changed.ring()
        self._room.ring()
        self._stir.ring()

    def _check(self) -> None:
        if self._failure is not None and not self.machine.finished:
            raise trio.BrokenResourceError(self._failure)

    # --- receiving --------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Payload; b"" after the peer's end. Raises BrokenResourceError where the tunnel is broken for good."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        self.take_back()
        while not self._ahead:
            if self.machine.peer_end is not None:
                await self._check_end()
                await trio.lowlevel.checkpoint()
                return b""
            await self._receive()
        self._lent_at = trio.current_time()
        data = self.take_ahead(max_bytes)
        self._lent = len(data)
        return data

    def unread(self, data: bytes) -> None:
        """See `Stream.unread`: it was not handed on."""
        self._lent -= len(data)
        super().unread(data)

    def take_back(self) -> None:
        """The pump is back: its sink has taken what it was given."""
        if self._lent:
            self.machine.sink_took(self._lent)
            self._lent = 0
            self._owe()

    async def take_past(self, attachment: Attachment, count: int) -> None:
        """So many bytes of payload have left the connection past this stream, and are lent to the pump.

        Raises BrokenResourceError where the peer broke the rules.
        """
        try:
            self.machine.took(count)
        except Violation as error:
            await self._accuse(attachment, error)
            raise trio.BrokenResourceError(str(error)) from error
        attachment.heard_at, attachment.asked_at = trio.current_time(), None
        self._lent += count
        self._lent_at = attachment.heard_at

    def handed_on(self, count: int) -> None:
        """The pump's sink has taken so many of the bytes that it was lent."""
        self.machine.sink_took(count)
        self._lent -= count
        self._lent_at = trio.current_time()
        self._owe()

    def keep_in_hand(self, count: int) -> None:
        """So many of the bytes that the pump was lent will not reach its sink."""
        self._lent -= count

    def incoming_fd(self) -> int | None:
        """The descriptor on which the connection's next bytes come; None where there is none, or not only one."""
        attachment = self.attachment
        if attachment is None or self._ahead or attachment.carrier.has_ahead:
            return None
        return attachment.carrier.source_fd()

    def _owe(self) -> None:
        """See to it that the peer is told of what was handed on, in time."""
        if self.machine.wants_write:
            self._stir.ring()
        elif self.machine.owed and self._owed_since is None and self.machine.mode is not Mode.PLAIN:
            self._owed_since = trio.current_time()
            self._stir.ring()

    async def _check_end(self) -> None:
        """Raises BrokenResourceError where the peer's end is a RESET."""
        assert self.machine.peer_end is not None
        said = self.machine.peer_end.reset
        if said is None:
            return
        self.machine.sink_ended()
        with trio.move_on_after(_CLOSING):
            await self._transmit()
        if not self._client:
            raise trio.BrokenResourceError("the client broke it off before both sides were done")
        self.peer_reason = told_by(said)
        raise trio.BrokenResourceError(self.peer_reason)

    async def _receive(self) -> None:
        """One read of the connection, or a wait for one. Raises BrokenResourceError."""
        self._check()
        attachment = self.attachment
        if attachment is None:
            if self._is_attended or self.lost_at is None:
                await self._changed.wait()
            else:
                await self._await_return()
            return
        if not self._is_attended and self.machine.wants_write:
            await self._transmit()
        try:
            data = await self._read(attachment)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lose(attachment, str(error))
            return
        if attachment is not self.attachment:
            return  # a newer connection has taken over: what the old one still brings is not counted
        if not data:
            self._lose(attachment, "it ended before the tunnel did")
            return
        attachment.heard_at, attachment.asked_at = trio.current_time(), None
        try:
            parts = self.machine.receive(data, attachment.number)
            self._ahead += next(parts).payload
            for part in parts:
                # The other tunnels have their turn. What has arrived is not dropped if this one is over.
                await trio.lowlevel.cancel_shielded_checkpoint()
                self._ahead += part.payload
        except Violation as error:
            await self._accuse(attachment, error)
            raise trio.BrokenResourceError(str(error)) from error
        self._settle()
        self._room.ring()
        if self.machine.wants_write:
            self._stir.ring()

    def _settle(self) -> None:
        if self._account is not None:
            self._account.settle(self.machine)

    def keeps_nothing(self) -> None:
        """The tunnel is over, and what it kept is forgotten."""
        if self._account is not None:
            self._account.close()
            self._account = None

    async def _read(self, attachment: Attachment) -> bytes:
        carrier = attachment.carrier
        most = CHUNK if carrier.source_fd() is None else self.sip
        attachment.reading = True
        try:
            with trio.move_on_after(self._patience):
                return await carrier.receive_some(most)
            silent = trio.BrokenResourceError(f"the peer was silent for {self._patience:g} s")
            return await last_look(lambda: carrier.receive_some(most), silent)
        finally:
            attachment.reading = False

    @property
    def _patience(self) -> float:
        peer = self.machine.peer
        if peer is not None:
            return _MISSED * peer.keepalive / 1000
        return math.inf if self._peer_keepalive is None else _MISSED * self._peer_keepalive

    async def _accuse(self, attachment: Attachment, error: Violation) -> None:
        """Tell a peer that broke the rules so, and give it up."""
        self.fail(str(error))
        with trio.move_on_after(_CLOSING):
            try:
                async with attachment.lock:
                    await attachment.carrier.send_all(error.capsule())
                await attachment.carrier.flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it is gone
        self._lose(attachment, str(error))

    # --- sending ----------------------------------------------------------------------------------

    async def send_all(self, data: Bytes) -> None:
        """Keep it and send it, and wait until there is room for more. Raises BrokenResourceError."""
        self._check()
        machine = self.machine
        if machine.out.end is not None:
            raise trio.ClosedResourceError("the end was already sent")
        # A cancel comes before the bytes are taken, or only stops the wait: they are the session's from then on.
        await trio.lowlevel.checkpoint_if_cancelled()
        machine.give(data if isinstance(data, bytes) else bytes(data))
        self._settle()
        self.stir_if_asleep()
        await self.wait_for_room()

    async def wait_for_room(self) -> None:
        """Send what is due, and wait until there is a connection and room for more. Raises BrokenResourceError."""
        machine = self.machine
        await self._transmit()
        while self._failure is None and machine.broken is None and (self.attachment is None or machine.room <= 0):
            if self._full_since is None:
                self._full_since = trio.current_time()
                self._stir.ring()
            if self.attachment is None and self.lost_at is not None and not self._is_attended:
                await self._await_return()
            else:
                await self._room.wait()
            await self._transmit()
        self._full_since = None
        self._check()
        if machine.broken is not None:
            raise trio.BrokenResourceError("the peer broke the tunnel off")

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for a connection."""
        return self.machine.out.sent < self.machine.out.positions

    async def wait_for_input(self) -> None:
        """While detached: until there is something to send that was not there before."""
        given = self.machine.out.positions
        while self.machine.out.positions == given:
            await self._stir.wait()

    def stir_if_asleep(self) -> None:
        """Something is to be sent after a while without: its answer may fail to come."""
        if self._client and (self.attachment is None or self.machine.out.acked == self.machine.out.sent):
            self._stir.ring()

    async def _transmit(self) -> None:
        """Write what is due, as far as there is a connection."""
        while (attachment := self.attachment) is not None and self.machine.wants_write:
            await self._write(attachment, self.machine.data_to_send)

    def carrier_fd(self) -> int | None:
        """The descriptor to which the connection's next bytes go; None where there is none."""
        return None if self.attachment is None else self.attachment.carrier.sink_fd()

    async def write_past(
        self, begin: Callable[[int], bytes], follow: Callable[[Attachment, bytes], Awaitable[None]]
    ) -> None:
        """Let `follow` write what `begin` gives, and more after it, past this stream; nothing if that is b""."""
        if self.attachment is not None:
            await self._write(self.attachment, begin, follow)
            self._settle()

    async def _write(
        self,
        attachment: Attachment,
        take: Callable[[int], bytes],
        follow: Callable[[Attachment, bytes], Awaitable[None]] | None = None,
    ) -> None:
        """Take what is due and write it, as one step: their order is the protocol."""
        taken = False
        try:
            async with attachment.lock:
                if attachment is not self.attachment:
                    return
                wire = take(attachment.carrier.chunk)
                if not self.machine.owed:
                    self._owed_since = None
                taken = bool(wire)
                if wire and follow is not None:
                    await follow(attachment, wire)
                elif wire:
                    await attachment.carrier.send_all(wire)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lose(attachment, str(error))
        except trio.Cancelled:
            if taken:
                # A part of a capsule may be out. Nothing can follow it on this connection.
                self._lose(attachment, "a write was cut short")
            raise

    async def send_eof(self) -> None:
        """End our direction, once. It is sent on whichever connection there is."""
        self._check()
        self.machine.give_end()
        await self._transmit()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for a connection and for room."""
        while self._failure is None and (self.attachment is None or self.machine.room <= 0):
            await self._room.wait()
        attachment = self.attachment
        if attachment is not None:
            await attachment.carrier.wait_send_all_might_not_block()

    # --- attending --------------------------------------------------------------------------------

    async def attend(self) -> None:
        """Keep the connection alive, acknowledge in time, and wait for, or make, another one.

        If no task runs `attend`, the task that receives or sends makes the next connection.
        """
        self._is_attended = True
        while self._failure is None:
            attachment = self.attachment
            if attachment is not None:
                await self._attend_to(attachment)
            elif self.machine.finished:
                return
            else:
                await self._await_return()

    async def _attend_to(self, attachment: Attachment) -> None:
        carrier = attachment.carrier
        if not carrier.needs_attention:
            await self._tend(attachment)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carrier.attend)
            await self._tend(attachment)
            nursery.cancel_scope.cancel()

    async def _tend(self, attachment: Attachment) -> None:
        while attachment is self.attachment:
            now = trio.current_time()
            if self._owed_since is not None and now >= self._owed_since + ACK_WITHIN:
                self._owed_since = None
                self.machine.acknowledge()
            if self._is_stuck(now) and self.machine.lapse():
                self._room.ring()
            if self._client:
                self._probe(attachment, now)
            if self.machine.wants_write:
                # This also sends the first capsules of a new connection.
                await self._transmit()
            elif not attachment.lock.held and now >= attachment.lock.released_at + self._keepalive:
                await self._write(attachment, self._keepalive_due)
            else:
                with trio.move_on_at(self._next_look(attachment)):
                    await self._stir.wait()

    def _keepalive_due(self, _: int) -> bytes:
        machine = self.machine
        if machine.mode is Mode.PLAIN and machine.out.sent > machine.out.length and machine.told == machine.received:
            return b""  # DONE was our last word
        return machine.keepalive() or KEEPALIVE

    def _next_look(self, attachment: Attachment) -> float:
        """When there is something to do, at the latest."""
        now = trio.current_time()
        silent_since = now if attachment.lock.held else attachment.lock.released_at
        looks = [silent_since + self._keepalive]
        if self._owed_since is not None:
            looks.append(self._owed_since + ACK_WITHIN)
        if self._full_since is not None:
            # The pump may be lent bytes at any time from now on, which wakes nobody: look again soon in any case.
            since = max(self._full_since, self._lent_at) if self._lent else now
            looks.append(since + LAPSE_AFTER)
        if self._client:
            looks.append(now + _SUSPEND_LOOK)
            if self.machine.out.sent > self.machine.out.acked:
                looks.append(attachment.heard_at + _PROBE)
            if attachment.asked_at is not None:
                looks.append(attachment.asked_at + attachment.patience)
        # Never in the past: what is overdue was tried just now.
        return max(min(looks), now + 0.05) if min(looks) <= now else min(looks)

    def _is_stuck(self, now: float) -> bool:
        """Whether both directions have been: our sink takes nothing, and the peer acknowledges nothing."""
        if self._full_since is None or not self._lent:
            return False
        return now >= max(self._full_since, self._lent_at) + LAPSE_AFTER

    def _probe(self, attachment: Attachment, now: float) -> None:
        """Ask a silent connection whether it is still there, and give it up where it does not answer."""
        drift = _clock_drift()
        suspended, self._drift = drift - self._drift > _SUSPENDED, drift
        if not attachment.reading:
            # No task reads, so silence proves nothing: the connection of a slow reader is not dead.
            attachment.heard_at, attachment.asked_at = now, None
        elif self.machine.mode is Mode.PLAIN:
            return
        elif attachment.asked_at is None:
            unacknowledged = self.machine.out.sent > self.machine.out.acked
            if suspended or (unacknowledged and now >= attachment.heard_at + _PROBE):
                attachment.asked_at = now
                attachment.patience = _PROBE_AFTER_SUSPEND if suspended else _PROBE
                attachment.taken = attachment.carrier.queue().acknowledged
                self.machine.ping()
        elif now >= attachment.asked_at + attachment.patience:
            taken = attachment.carrier.queue().acknowledged
            if taken != attachment.taken:
                # It is slow, not dead: the peer's kernel goes on taking what is queued.
                attachment.taken, attachment.asked_at = taken, now
            else:
                silent = now - attachment.heard_at
                self._lose(attachment, f"nothing came for {silent:.0f} s, not even an answer to a PING")

    async def _await_return(self) -> None:
        """Wait for another connection, for the grace at most; a client makes one."""
        if self.lost_at is None or self._is_reviving:
            await self._changed.wait()
            return
        grace = self.machine.grace
        with trio.move_on_at(self.lost_at + grace):
            if self._revive is not None:
                self._is_reviving = True
                try:
                    await self._revive()
                except trio.BrokenResourceError as error:
                    self.given_up = True
                    self.fail(str(error))
                finally:
                    self._is_reviving = False
                    # If this try was cancelled, a task that waited for it makes the next one.
                    self._changed.ring()
                return
            while self.attachment is None and self._failure is None:
                await self._changed.wait()
            return
        self.given_up = True
        if self._client:
            ago = _duration(grace)
            self.peer_reason = f"the connection was lost {ago} ago and did not come back: {self.lost_words}"
        self.break_off(f"it did not come back within {grace:g} s: {self.lost_words}")

    # --- the end ----------------------------------------------------------------------------------

    def acknowledge_eof(self) -> None:
        """See `Stream.acknowledge_eof`. `attend` sends it, or `finish`."""
        self.take_back()
        if self.machine.peer_end is not None and not self.machine.in_hand:
            self.machine.sink_ended()
            self._stir.ring()

    @property
    def eof_acknowledged(self) -> bool:
        """See `Stream.eof_acknowledged`."""
        return self.machine.peer_end is not None and self.machine.told == self.machine.received

    async def wait_acknowledged(self) -> None:
        """See `Stream.wait_acknowledged`. Returns at once where the peer confirms nothing."""
        machine = self.machine
        while not (machine.end_acked or (machine.mode is Mode.PLAIN and not machine.confirms)):
            if machine.peer_end is not None and machine.peer_end.reset is not None:
                await self._check_end()
            await self._receive()

    async def finish(self) -> None:
        """See `Stream.finish`: through any number of connections, for the grace each."""
        machine = self.machine
        machine.give_end()
        self.acknowledge_eof()
        await self._transmit()
        while not machine.finished:
            if machine.peer_end is not None and machine.peer_end.reset is not None:
                await self._check_end()
            await self._receive()
            await self._transmit()
        attachment = self.attachment
        if attachment is None:
            return
        if self._client or (machine.mode is Mode.PLAIN and not machine.confirms):
            with trio.move_on_after(_LAST_CLOSE if machine.mode is Mode.RESUMABLE else _CLOSING):
                try:
                    await attachment.carrier.linger()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # harmless: each side already has everything

    async def leave(self) -> None:
        """See `Stream.leave`. A client says so behind what it has given.

        Where that takes too long, or the connection is lost, it says so by another one, whose HELLO wants to be missed
        for no time at all.
        """
        machine = self.machine
        if not self._client or not machine.resumable or machine.over or self._failure is not None:
            return
        with trio.move_on_after(_CLOSING):
            try:
                with trio.move_on_after(_CLOSING / 4):
                    machine.give_reset(ResetCode.LEAVING, "the client leaves")
                    await self._transmit()
                    while not machine.over and self.attachment is not None:
                        await self._receive()
                    if machine.over:
                        return
                if self._revive is not None:
                    self.detach("the client leaves")
                    machine.terms = machine.terms._replace(grace=0)
                    await self._revive()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the server will find out

    def delivery_patience(self, code: int) -> float:
        """See `Stream.delivery_patience`. A client that is away is waited for where its target has ended the tunnel."""
        return self.machine.grace if self.machine.resumable and code == ResetCode.TARGET else 0.0

    async def send_reason(self, why: str, code: int = 0) -> None:
        """Break the tunnel off, after what was given; the peer learns it on this connection or on the next."""
        self.take_back()
        self.machine.give_reset(code or (ResetCode.LEAVING if self._client else 0), why)
        self._ring()
        with trio.move_on_after(_CLOSING):
            await self._transmit()

    async def flush(self) -> None:
        """After `send_reason`, wait until the peer has learnt it; else as the stream below."""
        # A client that leaves has said so on this connection, and waits for nobody.
        said = self.machine.broken
        if self.attachment is None and said is not None and said.code == ResetCode.AWAY_TOO_LONG:
            return  # its place is needed now; a client that comes back finds the tombstone
        if not self._client and self.machine.resumable and said is not None:
            while not self.machine.over and self._failure is None:
                try:
                    if self.attachment is None and self.lost_at is not None:
                        await self._await_return()
                    else:
                        await self._receive()
                        self._ahead = b""  # nobody takes it any more
                        await self._transmit()
                except trio.BrokenResourceError:
                    return
        elif self.attachment is not None:
            await self.attachment.carrier.flush()

    def queue(self) -> Queue:
        """As the connection's."""
        return self.attachment.carrier.queue() if self.attachment is not None else Queue()

    def reset_on_exit(self) -> None:
        """See `Stream.reset_on_exit`."""
        if self.attachment is not None:
            self.attachment.carrier.reset_on_exit()

    def abort(self) -> None:
        """Drop the session and its connection."""
        self.fail("another task closed this stream")
        if self.piped is not None:
            self.piped.close()
            self.piped = None
        if self.attachment is not None:
            self._lose(self.attachment, "it was closed")

    async def aclose(self) -> None:
        """End our direction and close. Where the peer has ended too, wait until each side has everything.

        Whoever closes before the peer has ended leaves: the peer is told so, and waits for nobody. Raises
        BrokenResourceError where the peer could not be told.
        """
        machine = self.machine
        closed = False
        try:
            if machine.peer_end is not None and machine.peer_end.reset is None:
                await self.finish()
            elif machine.peer_end is None:
                gone = self._failure is not None or self.attachment is None
                machine.give_end()
                if machine.mode is Mode.RESUMABLE:
                    machine.give_reset(ResetCode.LEAVING if self._client else 0, "closed")
                with trio.move_on_after(_CLOSING):
                    await self._transmit()
                if machine.out.sent <= machine.out.length and not gone:
                    raise trio.BrokenResourceError(UNSAID_END)
            closed = True
        finally:
            if self.piped is not None:
                self.piped.close()
                self.piped = None
            attachment, self.attachment = self.attachment, None
            if attachment is not None:
                machine.detach(attachment.number)
                if closed:
                    try:
                        await attachment.carrier.aclose()
                    except trio.BrokenResourceError:
                        pass  # what matters was said in capsules
                else:
                    attachment.carrier.abort()
            self.fail("this stream was already closed")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _clock_drift() -> float:
    """How far the clock that goes on while the machine sleeps is ahead of the one that does not, in seconds."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return (time.time() if boot is None else time.clock_gettime(boot)) - time.monotonic()
