"""A tunnel that outlives its connections: the stream that the relay uses in place of `CapsuleStream`.

`http2tcp.protocol.resume.Resumable` decides; this stream moves the bytes. It has one *carrier* at a time: the stream of
the connection that is attached. A carrier that breaks, ends early or falls silent is only detached: nothing is raised,
received bytes stay in memory, and `send_all` keeps the bytes that it was given and waits, so that the relay stops
reading its other side. `attach` goes on with another carrier. The tunnel breaks if the client does not come back within
the grace, if either side breaks it off, or if bytes were lost.

Bytes count as handed on once the pump comes back for more: by then it has written them to its sink.
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
from http2tcp.net.streams import CHUNK, UNSAID_END, Bytes, Queue, Stream, check_size
from http2tcp.protocol.capsule import KEEPALIVE, ResetCode
from http2tcp.protocol.resume import ACK_WITHIN, LAPSE_AFTER, Mode, Resumable
from http2tcp.protocol.resume_wire import Gap, Hello, Violation

# For how many of its own keepalive intervals a peer may be silent before its connection is given up.
_MISSED = 3
# How many seconds it may take to send our end when the stream closes, or the reason when the tunnel breaks.
_CLOSING = 1.0
# How long a finished client waits for the server to close first, in seconds. If the client closed first, with bytes
# unread, the kernel would reset the connection, and the reset could overtake the client's last ACK.
_LAST_CLOSE = 2.0
# A client that has unacknowledged bytes and receives nothing sends a PING after this long, and gives the connection up
# after as long again. Eternal Terminal has the same figure; a keystroke should not wait longer for its echo.
_PROBE = 5.0
# After the machine wakes up, the client sends a PING at once, and gives the connection up after this long without an
# answer.
_PROBE_AFTER_SUSPEND = 3.0
# How often a client checks whether the machine was suspended, and how far the two clocks may drift apart between checks
# without that counting as a suspend. Both in seconds.
_SUSPEND_LOOK = 5.0
_SUSPENDED = 2.0


class Account(Protocol):
    """Counts the bytes that a session keeps."""

    def settle(self, machine: Resumable) -> None:
        """Count the bytes that are kept now, and set how many may be (`keep_at_most`)."""

    def close(self) -> None:
        """Count no bytes from now on: the session is over."""


class Bell:
    """Wakes the tasks that wait for a change. It costs nothing while no task waits."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def ring(self) -> None:
        """Wake all tasks that wait."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait until the next `ring`."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


class Piped(Protocol):
    """Kept bytes that may lie in a pipe."""

    def fold(self) -> None:
        """Move all bytes from the pipe into the heap."""

    def close(self) -> None:
        """Forget the bytes, and give the pipe back."""


class Attachment:
    """One connection of a session."""

    __slots__ = ("asked_at", "carrier", "heard_at", "lock", "number", "patience", "reading", "taken")

    def __init__(self, carrier: Stream, number: int) -> None:
        self.carrier = carrier
        #: The connection's number in the machine.
        self.number = number
        #: Only the task that holds this lock writes capsules.
        self.lock = SendLock()
        #: When bytes last came, on trio's clock.
        self.heard_at = trio.current_time()
        #: Whether a task waits for bytes from the connection: otherwise its silence proves nothing.
        self.reading = False
        #: When a PING asked whether the peer is still there; None: no PING was sent, or bytes came since.
        self.asked_at: float | None = None
        #: How long the peer may take to answer that PING, in seconds.
        self.patience = _PROBE
        #: How many bytes the peer's kernel had acknowledged at that PING, or at the last check since.
        self.taken = 0


class ResumableStream(Stream):
    """The bytes of a session, over the connection that it has at the time. Owns its carriers."""

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
        """Times are in seconds. `peer_keepalive` applies until the peer's HELLO brings the peer's own figure.

        `revive` gets a client another connection: it calls `attach`, or raises BrokenResourceError if the tunnel cannot
        come back. `on_lost` is called with the reason each time a connection is lost and the session waits for another.
        `on_broken_off` is called with the reason if `break_off` ends the tunnel: the relay may be blocked at its other
        side, and not notice. `account` counts the kept bytes and limits them.
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
        #: Why the last connection was lost, or why the last attempt to reconnect failed.
        self.lost_words = ""
        #: Whether the tunnel broke because no connection came back.
        self.given_up = False
        #: Whether the tunnel broke because bytes were lost in between.
        self.gap = False
        #: How often the session was resumed.
        self.resumes = 0
        #: How long the session was without a connection, in seconds: in total, and the last time.
        self.lost_for = self.last_gap = 0.0
        self._is_reviving = False
        #: The most bytes to read at a time from a carrier with a descriptor. The pump lowers it: it splices the rest.
        self.sip = CHUNK
        #: The store of the kept bytes, if some of them may be in a pipe.
        self.piped: Piped | None = None
        # Why the tunnel is broken for good; None: it is not broken.
        self._failure: str | None = None
        # How many bytes the pump has taken and not yet reported as written to its sink.
        self._lent = 0
        # When the pump last took bytes, or last reported some as written.
        self._lent_at = 0.0
        # Since when a sender has waited for room; None: none waits.
        self._full_since: float | None = None
        # Since when we have owed the peer an ACK; None: we owe none.
        self._owed_since: float | None = None
        #: Rings when a connection comes or goes, and when the tunnel is over.
        self._changed = Bell()
        #: Rings when there may be room to send, and when there will never be any.
        self._room = Bell()
        #: Rings when `attend` has something to do before it would wake up by itself.
        self._stir = Bell()
        self._drift = _clock_drift()
        self._is_attended = False

    # --- connections ------------------------------------------------------------------------------

    def attach(self, carrier: Stream) -> None:
        """Go on with this carrier, after the machine's `take_over` or `resume`. Bytes read too far are unread in it."""
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
        """Give the connection up. A session that cannot be resumed is then broken."""
        if self.attachment is not None:
            self._lose(self.attachment, why)

    def replace(self, hello: Hello, server_nonce: bytes, carrier: Stream) -> Attachment:
        """At the server: let a client's HELLO take the session over. Its connection replaces the old one.

        Raises NotYours and Stale, which change nothing; Gap and Violation, which end the session; BrokenResourceError
        if the session has just ended.
        """
        self.machine.check(hello, server_nonce)
        if self._failure is not None:
            # The session has just ended. The client's next attempt finds the tombstone.
            raise trio.BrokenResourceError(self._failure)
        if self.attachment is not None:
            # The proof shows that the client knows the session, even if its first HELLO and ACK were lost.
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
        """Wait until the session no longer uses this connection."""
        while self.attachment is attachment:
            await self._changed.wait()

    def _lose(self, attachment: Attachment, why: str) -> None:
        if attachment is not self.attachment:
            return
        self.attachment = None
        attachment.carrier.abort()
        self.machine.detach(attachment.number)
        if self.piped is not None:
            # The kept bytes will be sent again, and a session that waits for a connection should hold no pipe.
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
        """Break the tunnel for good. The first reason counts."""
        if self._failure is None:
            self._failure = why
        self._ring()

    def break_off(self, why: str) -> None:
        """Like `fail`, but also call `on_broken_off`: a relay that is blocked at its other side would not notice."""
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
        """Receive payload; b"" after the peer's end. Raises BrokenResourceError if the tunnel is broken for good."""
        check_size(max_bytes)
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
        """See `Stream.unread`. These bytes do not count as handed on."""
        self._lent -= len(data)
        super().unread(data)

    def take_back(self) -> None:
        """Count the lent bytes as handed on: the pump is back, so its sink has taken them."""
        if self._lent:
            self.machine.sink_took(self._lent)
            self._lent = 0
            self._owe()

    async def take_past(self, attachment: Attachment, count: int) -> None:
        """Count `count` bytes of payload that the pump took from the connection past this stream, as lent to it.

        Raises BrokenResourceError if the peer broke the rules.
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
        """Count `count` of the lent bytes as handed on: the pump's sink has taken them."""
        self.machine.sink_took(count)
        self._lent -= count
        self._lent_at = trio.current_time()
        self._owe()

    def keep_in_hand(self, count: int) -> None:
        """Count `count` of the lent bytes as not handed on: they will not reach the pump's sink."""
        self._lent -= count

    def incoming_fd(self) -> int | None:
        """The descriptor on which the connection's next bytes come; None if it has none, or if bytes wait in memory."""
        attachment = self.attachment
        if attachment is None or self._ahead or attachment.carrier.has_ahead:
            return None
        return attachment.carrier.source_fd()

    def _owe(self) -> None:
        """Make `attend` send an ACK for the bytes that were handed on, in time."""
        if self.machine.wants_write:
            self._stir.ring()
        elif self.machine.owed and self._owed_since is None and self.machine.mode is not Mode.PLAIN:
            self._owed_since = trio.current_time()
            self._stir.ring()

    async def _check_end(self) -> None:
        """Raise BrokenResourceError if the peer's end is a RESET."""
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
        """Read once from the connection, or wait for a connection. Raises BrokenResourceError."""
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
            return  # a newer connection has taken over: ignore what the old one still brings
        if not data:
            self._lose(attachment, "it ended before the tunnel did")
            return
        attachment.heard_at, attachment.asked_at = trio.current_time(), None
        try:
            parts = self.machine.receive(data, attachment.number)
            self._ahead += next(parts).payload
            for part in parts:
                # Let other tunnels have their turn. Shielded: a cancel must not drop bytes that have arrived.
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
        """Close the account: the tunnel is over, and its kept bytes are forgotten."""
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
        """Tell the peer which rule it broke, break the tunnel, and give the connection up."""
        self.fail(str(error))
        with trio.move_on_after(_CLOSING):
            try:
                async with attachment.lock:
                    await attachment.carrier.send_all(error.capsule())
                await attachment.carrier.flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the connection is already gone
        self._lose(attachment, str(error))

    # --- sending ----------------------------------------------------------------------------------

    async def send_all(self, data: Bytes) -> None:
        """Keep `data` and send it, and wait until there is room for more. Raises BrokenResourceError."""
        self._check()
        machine = self.machine
        if machine.out.end is not None:
            raise trio.ClosedResourceError("the end was already sent")
        # A cancel takes effect here, before the session has the bytes, or it only ends the wait for room: the bytes are
        # the session's then.
        await trio.lowlevel.checkpoint_if_cancelled()
        machine.give(data if isinstance(data, bytes) else bytes(data))
        self._settle()
        self.stir_if_asleep()
        await self.wait_for_room()

    async def wait_for_room(self) -> None:
        """Send what is due. Wait until there is a connection and room for more. Raises BrokenResourceError."""
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
        """Whether bytes, or our end, wait to be sent."""
        return self.machine.out.sent < self.machine.out.positions

    async def wait_for_input(self) -> None:
        """While detached: wait until more is given to send."""
        given = self.machine.out.positions
        while self.machine.out.positions == given:
            await self._stir.wait()

    def stir_if_asleep(self) -> None:
        """At a client that sends again after a pause: wake `attend`, to watch for the answer, or a pausing `revive`."""
        if self._client and (self.attachment is None or self.machine.out.acked == self.machine.out.sent):
            self._stir.ring()

    async def _transmit(self) -> None:
        """Write what is due, as long as there is a connection."""
        while (attachment := self.attachment) is not None and self.machine.wants_write:
            await self._write(attachment, self.machine.data_to_send)

    def carrier_fd(self) -> int | None:
        """The descriptor to which the connection's next bytes are written; None if there is none."""
        return None if self.attachment is None else self.attachment.carrier.sink_fd()

    async def write_past(
        self, begin: Callable[[int], bytes], follow: Callable[[Attachment, bytes], Awaitable[None]]
    ) -> None:
        """Let `follow` write what `begin` returns, and more after it, past this stream. Do nothing if that is b""."""
        if self.attachment is not None:
            await self._write(self.attachment, begin, follow)
            self._settle()

    async def _write(
        self,
        attachment: Attachment,
        take: Callable[[int], bytes],
        follow: Callable[[Attachment, bytes], Awaitable[None]] | None = None,
    ) -> None:
        """Take what is due and write it under one lock: capsules must be written in the order they are taken."""
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
                # Perhaps only a part of a capsule was written: nothing can follow it on this connection.
                self._lose(attachment, "a write was cut short")
            raise

    async def send_eof(self) -> None:
        """End our direction. The end is sent now, or on the next connection if there is none now."""
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
        """Keep the connection alive and acknowledge in time. Once it is lost, wait for another one, or make one.

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
            return b""  # we have sent DONE, which is our last capsule
        return machine.keepalive() or KEEPALIVE

    def _next_look(self, attachment: Attachment) -> float:
        """The time, on trio's clock, at which `_tend` has to check again."""
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
        # Return no time in the past: `_tend` has just tried whatever is overdue.
        return max(min(looks), now + 0.05) if min(looks) <= now else min(looks)

    def _is_stuck(self, now: float) -> bool:
        """Whether both directions have been stuck for `LAPSE_AFTER`: our sink takes no bytes, and we get no room."""
        if self._full_since is None or not self._lent:
            return False
        return now >= max(self._full_since, self._lent_at) + LAPSE_AFTER

    def _probe(self, attachment: Attachment, now: float) -> None:
        """Send a PING on a silent connection, and give the connection up if no answer comes."""
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
                # The connection is slow, not dead: the peer's kernel still acknowledges queued bytes.
                attachment.taken, attachment.asked_at = taken, now
            else:
                silent = now - attachment.heard_at
                self._lose(attachment, f"nothing came for {silent:.0f} s, not even an answer to a PING")

    async def _await_return(self) -> None:
        """Wait for another connection, at most for the grace. A client makes one itself."""
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
        """See `Stream.acknowledge_eof`. `attend` or `finish` sends the ACK."""
        self.take_back()
        if self.machine.peer_end is not None and not self.machine.in_hand:
            self.machine.sink_ended()
            self._stir.ring()

    @property
    def eof_acknowledged(self) -> bool:
        """See `Stream.eof_acknowledged`."""
        return self.machine.peer_end is not None and self.machine.told == self.machine.received

    async def wait_acknowledged(self) -> None:
        """See `Stream.wait_acknowledged`. Returns at once if the peer sends no confirmations."""
        machine = self.machine
        while not (machine.end_acked or (machine.mode is Mode.PLAIN and not machine.confirms)):
            if machine.peer_end is not None and machine.peer_end.reset is not None:
                await self._check_end()
            await self._receive()

    async def finish(self) -> None:
        """See `Stream.finish`. Uses any number of connections, and waits for each at most for the grace."""
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
        """See `Stream.leave`. A client sends a RESET that says that it leaves, after the data that it has given.

        If that takes too long, or the connection is lost, the client makes another connection, whose HELLO has a grace
        of 0: the server is not to wait for it any longer.
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
                pass  # the server ends the session once the grace is over

    def delivery_patience(self, code: int) -> float:
        """See `Stream.delivery_patience`. If the target broke the tunnel, wait the grace for a client that is away."""
        return self.machine.grace if self.machine.resumable and code == ResetCode.TARGET else 0.0

    async def send_reason(self, why: str, code: int = 0) -> None:
        """Send a RESET behind all data, to break the tunnel off. The peer gets the reason now, or when it is back."""
        # Bytes that are still lent do not count as handed on: the pump may have been cancelled while it wrote them.
        self.machine.give_reset(code or (ResetCode.LEAVING if self._client else 0), why)
        self._ring()
        with trio.move_on_after(_CLOSING):
            await self._transmit()

    async def flush(self) -> None:
        """After `send_reason` at the server, wait until the client has the reason. Otherwise flush the carrier."""
        # Only the server waits. A client that leaves has said so on this connection, and makes no other one.
        said = self.machine.broken
        if self.attachment is None and said is not None and said.code == ResetCode.AWAY_TOO_LONG:
            return  # the session was evicted: its place is needed now, and its client finds the tombstone
        if not self._client and self.machine.resumable and said is not None:
            while not self.machine.over and self._failure is None:
                try:
                    if self.attachment is None and self.lost_at is not None:
                        await self._await_return()
                    else:
                        await self._receive()
                        self._ahead = b""  # drop the payload: no task receives it any more
                        await self._transmit()
                except trio.BrokenResourceError:
                    return
        elif self.attachment is not None:
            await self.attachment.carrier.flush()

    def queue(self) -> Queue:
        """See `Stream.queue`: the queue of the present connection."""
        return self.attachment.carrier.queue() if self.attachment is not None else Queue()

    def reset_on_exit(self) -> None:
        """See `Stream.reset_on_exit`."""
        if self.attachment is not None:
            self.attachment.carrier.reset_on_exit()

    def abort(self) -> None:
        """Drop the session and its connection."""
        self.fail("another task closed this stream")
        self._drop_pipe()
        if self.attachment is not None:
            self._lose(self.attachment, "it was closed")

    def _drop_pipe(self) -> None:
        if self.piped is not None:
            self.piped.close()
            self.piped = None

    async def aclose(self) -> None:
        """End our direction and close. If the peer has ended too, first wait until each side has everything.

        Closing before the peer has ended breaks the tunnel off, by a RESET: the peer is not to wait for us. Raises
        BrokenResourceError if our end could not be sent.
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
            self._drop_pipe()
            attachment, self.attachment = self.attachment, None
            if attachment is not None:
                machine.detach(attachment.number)
                if closed:
                    try:
                        await attachment.carrier.aclose()
                    except trio.BrokenResourceError:
                        pass  # harmless: all that matters was sent in capsules
                else:
                    attachment.carrier.abort()
            self.fail("this stream was already closed")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _clock_drift() -> float:
    """By how many seconds the clock that runs while the machine sleeps is ahead of the clock that stops."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return (time.time() if boot is None else time.clock_gettime(boot)) - time.monotonic()
