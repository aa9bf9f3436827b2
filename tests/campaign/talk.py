"""How one side sends, stalls, ends and reads, and the account that it gives of it.

Both sides of a tunnel are an `End`, and both are driven by `talk`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import trio

from tests.campaign.cases import Begin, Finish, Side

#: How much is read at a time.
_CHUNK = 256 * 1024


class Gone(Exception):
    """The connection is broken. `str(error)` says how."""


class End(Protocol):
    """One end of a tunnel, as a program sees it."""

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises Gone."""

    async def send_eof(self) -> None:
        """Send EOF. Does nothing if only closing can send it. Raises Gone."""

    async def receive(self) -> bytes:
        """Some bytes; b"" is a clean end. Raises Gone."""

    async def break_off(self) -> None:
        """End it so that the other side sees a break, not an end."""

    async def leave(self) -> None:
        """Let go of both directions, as a program that has no more use for them."""

    async def finish(self) -> None:
        """Both directions are over: close properly. Raises Gone."""


class Saw(Enum):
    """How the bytes that a side read ended."""

    NOTHING = "nothing"
    CLEAN = "a clean end"
    BROKEN = "a break"


class Witness:
    """Compares what is received with what is expected, as it comes."""

    def __init__(self, expected: bytes) -> None:
        self.expected = expected
        self.count = 0
        #: The offset of the first byte that differs from what was sent.
        self.wrong_at: int | None = None

    def receive(self, data: bytes) -> None:
        """The next bytes."""
        begin, self.count = self.count, self.count + len(data)
        expected = self.expected[begin : self.count]
        if self.wrong_at is None and data != expected:
            pairs = itertools.zip_longest(data, expected)
            self.wrong_at = begin + next(at for at, (got, wanted) in enumerate(pairs) if got != wanted)

    @property
    def has_all(self) -> bool:
        """Whether nothing is left to come."""
        return self.count >= len(self.expected)


@dataclass
class Account:
    """What one side did and saw. Times are trio's, in seconds."""

    got: Witness
    #: How many bytes it has handed over.
    sent: int = 0
    #: When it sent its EOF.
    ended_at: float | None = None
    #: Whether it had received everything by then.
    had_all_at_end: bool = False
    #: Whether it broke off, or left, because its case says so.
    broke_off: bool = False
    saw: Saw = Saw.NOTHING
    #: When it saw the other side's end.
    saw_at: float | None = None
    #: When the tunnel was open to it.
    opened_at: float | None = None
    #: What went wrong, in words.
    words: str = ""
    #: From when to when it was sending, or had something else to say.
    active: list[tuple[float, float]] = field(default_factory=list)
    #: When something was received.
    heard: list[float] = field(default_factory=list)
    #: When it had nothing more to do.
    over_at: float | None = None
    #: Whether it was told that the other side has everything; None: its protocol does not say.
    confirmed: bool | None = None

    @property
    def opened(self) -> bool:
        """Whether the tunnel was open to it."""
        return self.opened_at is not None

    @property
    def moments(self) -> list[float]:
        """When anything happened here."""
        marks = [moment for moment in (self.opened_at, self.ended_at, self.over_at) if moment is not None]
        return [*marks, *itertools.chain.from_iterable(self.active), *self.heard]

    def silence_after(self, moment: float) -> float:
        """The longest time from this moment on in which it sent nothing, and its end was still to come."""
        end = self.ended_at if self.ended_at is not None else self.over_at
        if end is None:
            return 0.0
        longest, since = 0.0, moment
        for begin, until in [*self.active, (end, end)]:
            longest = max(longest, begin - since)
            since = max(since, until)
        return longest


def payload(seed: int, index: int, way: str, size: int) -> bytes:
    """What is sent: no part of it resembles another."""
    return random.Random(f"{seed} {index} {way}").randbytes(size)


async def talk(end: End, side: Side, sending: bytes, account: Account, *, told_end: bool) -> None:
    """Do what `side` says on `end`, until both directions are over; `account` has what became of it.

    `told_end`: whether this side learns of the other's end before its own. Otherwise it goes by the count.
    """
    talker = _Talker(end, side, sending, account, told_end)
    account.opened_at = trio.current_time()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talker.read)
            await talker.send()
            if account.broke_off:
                nursery.cancel_scope.cancel()
        if account.saw is Saw.CLEAN and not account.broke_off:
            await end.finish()
    except Gone as error:
        account.words = account.words or str(error)
        account.saw = Saw.BROKEN
    # Not set if it was cancelled: then time was up, and the verdict reports what was still going on.
    account.over_at = trio.current_time()


class _Talker:
    def __init__(self, end: End, side: Side, sending: bytes, account: Account, told_end: bool) -> None:
        self._end = end
        self._side = side
        self._sending = sending
        self._account = account
        self._told_end = told_end
        #: What this side waits for: the other's end, or all of its bytes.
        self._heard_out = trio.Event()
        #: Nothing more can be received.
        self._over = trio.Event()

    async def read(self) -> None:
        account = self._account
        try:
            await trio.sleep(self._side.nap)
            self._look()
            while data := await self._end.receive():
                account.got.receive(data)
                account.heard.append(trio.current_time())
                self._look()
            account.saw = Saw.CLEAN
            account.saw_at = trio.current_time()
        except Gone as error:
            account.words = account.words or str(error)
            account.saw = Saw.BROKEN
        self._heard_out.set()
        self._over.set()

    def _look(self) -> None:
        if not self._told_end and self._account.got.has_all:
            self._heard_out.set()

    async def send(self) -> None:
        side, account = self._side, self._account
        if side.begin is Begin.AFTER_PEER:
            await self._heard_out.wait()
        try:
            await self._send_pieces()
            match side.finish:
                case Finish.BREAK | Finish.LEAVE:
                    account.broke_off = True
                    if side.finish is Finish.LEAVE:
                        self._ends()
                        await self._end.leave()
                    else:
                        await self._end.break_off()
                    return
                case Finish.AFTER_PEER:
                    await self._heard_out.wait()
            if account.saw is not Saw.BROKEN:
                self._ends()
                await self._end.send_eof()
        except Gone as error:
            account.words = account.words or str(error)

    def _ends(self) -> None:
        account = self._account
        account.ended_at = trio.current_time()
        account.had_all_at_end = account.got.has_all

    async def _send_pieces(self) -> None:
        side, account = self._side, self._account
        stop = side.breaks_at if side.finish in (Finish.BREAK, Finish.LEAVE) else side.size
        pauses = [pause for pause in side.pauses if pause.at <= stop]
        while True:
            while pauses and pauses[0].at <= account.sent:
                with trio.move_on_after(pauses.pop(0).seconds):
                    await self._over_and_broken()
            if account.sent >= stop:
                return
            until = min(stop, account.sent + side.piece, *(pause.at for pause in pauses[:1]))
            begin = trio.current_time()
            await self._end.send(self._sending[account.sent : until])
            account.active.append((begin, trio.current_time()))
            account.sent = until

    async def _over_and_broken(self) -> None:
        """Wait until the other side is gone; nobody stalls for a tunnel that is no more."""
        await self._over.wait()
        if self._account.saw is not Saw.BROKEN:
            await trio.sleep_forever()
        raise Gone("it broke while nothing was sent")
