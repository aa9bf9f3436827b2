"""Look a name up, check each of its addresses, and connect to the first that accepts.

A name is looked up once in each family. Addresses that the check forbids are dropped. The others are dialled exactly as
they were checked, without a second look-up, which could answer differently. Every failure is a `DialError`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from ipaddress import ip_address
from typing import Any, NamedTuple

import trio

from http2tcp.address import Address, IPAddress, TCPAddress, UnixAddress
from http2tcp.errors import DialFailure, os_reason
from http2tcp.net.preconnect import (
    FAMILIES,
    RESOLUTION_DELAY,
    AddressInfo,
    HeadStart,
    known_without_resolver,
    look_up,
    other,
    prefers_ipv6,
)
from http2tcp.net.streams import SocketStream, reset_on_close

# RFC 8305, section 5: the recommended delay between two attempts.
STAGGER = 0.25
# How long, in seconds, to wait for a family whose look-up has not ended, once every address of the other has failed or
# is forbidden. Without a limit, a resolver that drops one family would turn each refusal into a time-out.
LAST_WAIT = 1.0
# Limits the connection attempts under way in the whole process, not counting the first one of each dial. A name can
# have more addresses that do not answer than this process may have descriptors.
_further = trio.CapacityLimiter(32)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# How many addresses of each family are used. A name may have thousands, and every rule is checked against each of
# them. In ten seconds 40 can be tried, one every `STAGGER`.
_MAX_ADDRESSES = 40
# How long, in seconds, to wait before the next attempt at a Unix listener whose backlog is full: connect(2) fails at
# once there, whereas on TCP it would wait.
_BACKLOG_PAUSE = 0.02

Permits = Callable[[IPAddress], bool]
Resolved = Callable[[Sequence["Candidate"]], None]


class DialError(Exception):
    """No connection could be made. `str(error)` says why in a few words, without the destination's name."""

    def __init__(self, failure: DialFailure, words: str) -> None:
        super().__init__(words)
        self.failure = failure


class Dialled(NamedTuple):
    """A connection and the address that it goes to."""

    stream: SocketStream
    address: Address


async def dial(
    destination: Address,
    permits: Permits | None = None,
    resolved: Resolved | None = None,
    limiter: LookUpLimiter | None = None,
    head_start: HeadStart | None = None,
) -> Dialled:
    """Connect to the first of the destination's permitted addresses that accepts (RFC 8305).

    `resolved` is called once, with the first addresses found for the name. Look-ups wait for places in `limiter`, but
    those of `head_start` have begun already. The caller sets the deadline. Raises DialError.
    """
    if isinstance(destination, UnixAddress):
        return Dialled(await _dial_unix(destination), destination)
    race = _Race(permits, resolved)
    known = head_start.known if head_start is not None else known_without_resolver(destination.host, destination.port)
    if known:
        race.add(_candidates(known, head_start))
        return await race.run()
    return await race.run(_LookUp(destination, limiter, head_start))


class Candidate(NamedTuple):
    """One address of a name, as `socket.connect` takes it."""

    family: socket.AddressFamily
    sockaddr: Any
    #: The head start that has begun to connect to this address, if any.
    head_start: HeadStart | None = None

    @property
    def ip(self) -> IPAddress:
        """The address without its zone, such as %eth0, which names one of this machine's links."""
        return ip_address(str(self.sockaddr[0]).partition("%")[0])


class LookUpLimiter:
    """All look-ups share one pool of threads. This class limits how many of them one owner's look-ups may use.

    A look-up of one family takes one thread and one place here, so a name takes two of each. A place is free again when
    its thread ends, not when the dial does: a cancelled dial leaves the resolver running in the thread.
    """

    def __init__(self, total: int) -> None:
        self._own = trio.CapacityLimiter(total)

    @property
    def idle(self) -> bool:
        """Whether no look-up has a place or waits for one."""
        statistics = self._own.statistics()
        return statistics.borrowed_tokens == statistics.tasks_waiting == 0

    def may_be(self, total: int) -> None:
        """Change the number of places."""
        self._own.total_tokens = total

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for one of the owner's places, and then for a thread."""
        await self._own.acquire_on_behalf_of(borrower)
        try:
            await trio.to_thread.current_default_thread_limiter().acquire_on_behalf_of(borrower)
        except BaseException:
            self._own.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        """Give the owner's place and the thread back."""
        trio.to_thread.current_default_thread_limiter().release_on_behalf_of(borrower)
        self._own.release_on_behalf_of(borrower)


class LookUps:
    """Keeps one `LookUpLimiter` for each owner, such as a token."""

    def __init__(self) -> None:
        self._limiters: dict[bytes, LookUpLimiter] = {}

    def of(self, owner: bytes, total: int) -> LookUpLimiter:
        """Return this owner's limiter, and give it `total` places from now on."""
        limiter = self._limiters.get(owner)
        if limiter is None:
            # Forget the limiters that nobody uses: their owners may be gone.
            self._limiters = {each: kept for each, kept in self._limiters.items() if not kept.idle}
            limiter = self._limiters[owner] = LookUpLimiter(total)
        limiter.may_be(total)
        return limiter


def _candidates(found: Sequence[AddressInfo], head_start: HeadStart | None) -> list[Candidate]:
    """List the addresses in the resolver's order, but put first the one that `head_start` is connecting to."""
    begun_to = None if head_start is None else head_start.settle()
    candidates = [
        Candidate(family, sockaddr, head_start if sockaddr == begun_to else None) for family, _, _, _, sockaddr in found
    ]
    return sorted(candidates, key=lambda candidate: candidate.head_start is None)


class _LookUp:
    """The look-ups of one name, one task for each family, and what they have found so far (RFC 8305, section 3).

    `more` returns IPv6 addresses as soon as they are known, unless this machine prefers IPv4 for the name. Addresses of
    the other family wait up to `RESOLUTION_DELAY` for those of the preferred family, so a resolver that drops one
    family's questions costs no more time than that.
    """

    def __init__(self, destination: TCPAddress, limiter: LookUpLimiter | None, head_start: HeadStart | None) -> None:
        self._host, self._port = destination
        self._limiter = limiter
        self._head_start = head_start
        self._found: dict[socket.AddressFamily, list[AddressInfo]] = {}
        self._answered = {family: trio.Event() for family in FAMILIES}
        self._ipv6_first = False
        # How many of the two tasks are still running. Each sets the event when it ends, which wakes `more`.
        self._running = len(FAMILIES)
        self._ended = trio.Event()
        #: Whether `more` returns addresses at once.
        self.has_news = False
        self._errors: list[OSError | UnicodeError] = []

    def start(self, nursery: trio.Nursery) -> None:
        """Start a look-up of each family."""
        for family in FAMILIES:
            nursery.start_soon(self._run, family)

    async def _run(self, family: socket.AddressFamily) -> None:
        try:
            found = await self._ask(family)
        except (OSError, UnicodeError) as error:
            self._errors.append(error)
        else:
            if family == socket.AF_INET6:
                self._ipv6_first = prefers_ipv6([sockaddr for *_, sockaddr in found])
            self._found[family] = found
        self._answered[family].set()
        if family in self._found and not (family == socket.AF_INET6 and self._ipv6_first):
            with trio.move_on_after(RESOLUTION_DELAY):
                await self._answered[other(family)].wait()
        # If `more` has already returned these addresses, together with the other family's, they are not news.
        self.has_news = self.has_news or family in self._found
        self._running -= 1
        self._ended.set()

    async def _ask(self, family: socket.AddressFamily) -> list[AddressInfo]:
        if self._head_start is not None:
            if self._head_start.done(family):
                return self._head_start.answer(family)
            return await trio.to_thread.run_sync(self._head_start.answer, family, abandon_on_cancel=True)
        if self._limiter is None:
            # Like `look_up`, but this also uses a custom resolver, if one was set for trio.
            host = self._host.encode("ascii")
            return await trio.socket.getaddrinfo(host, self._port, family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            # Let IPv4 always enter the limiter's queue first. Otherwise, with one place left, IPv6 might take it, and
            # a resolver that drops the questions for IPv6 would hold up IPv4.
            await trio.lowlevel.checkpoint()
        return await trio.to_thread.run_sync(
            look_up,
            self._host,
            self._port,
            family,
            abandon_on_cancel=True,
            limiter=self._limiter,  # type: ignore[arg-type]  # run_sync calls no more than its two methods
        )

    async def more(self) -> list[Candidate]:
        """Wait for the next addresses. The list is empty if no more will come; then `error` says why."""
        while self._running and not self.has_news:
            await self._ended.wait()
            self._ended = trio.Event()
        self.has_news = False
        found: list[AddressInfo] = []
        for family in sorted(self._found, reverse=self._ipv6_first):
            found += self._found.pop(family)[:_MAX_ADDRESSES]
        return _candidates(found, self._head_start)

    def error(self) -> DialError:
        """Say why there is no address. If the two look-ups failed in different ways, choose the more telling error."""
        reasons = [_explain_look_up(error) for error in self._errors] or [_no_address()]
        return min(reasons, key=lambda reason: _TELLING.index(reason.failure))


def _no_address() -> DialError:
    return DialError(DialFailure.NAME, "the name has no address")


def _explain_look_up(error: OSError | UnicodeError) -> DialError:
    reason = _no_address()
    if isinstance(error, socket.gaierror):
        if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL):
            reason = DialError(DialFailure.NAME_TEMPORARY, "the name server did not answer")
    elif isinstance(error, OSError) and error.errno in _EXHAUSTED:
        reason = _explain(error)
    reason.__cause__ = error
    return reason


async def resolve(destination: TCPAddress, *, patience: float = RESOLUTION_DELAY) -> list[Candidate]:
    """Return the name's first addresses, in the order in which to try them. Raises DialError.

    `patience`: how long, in seconds, to wait for the second family once the first one has answered.
    """
    known = known_without_resolver(destination.host, destination.port)
    if known:
        return _candidates(known, None)
    names = _LookUp(destination, None, None)
    found: list[Candidate] = []
    async with trio.open_nursery() as nursery:
        names.start(nursery)
        found += await names.more()
        with trio.move_on_after(patience):
            found += await names.more()
        nursery.cancel_scope.cancel()
    if not found:
        raise names.error()
    return found


def interleave(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Let the families take turns, so that one broken family costs one delay (RFC 8305, section 4)."""
    first = [c for c in candidates if c.family == candidates[0].family]
    other = [c for c in candidates if c.family != candidates[0].family]
    woven = [c for pair in zip(first, other, strict=False) for c in pair]
    return woven + first[len(other) :] + other[len(first) :]


async def dial_first(candidates: Sequence[Candidate]) -> Dialled:
    """Connect to the first candidate that accepts (RFC 8305, section 5). The caller sets the deadline.

    Raises DialError.
    """
    race = _Race()
    race.add(candidates)
    return await race.run()


class _Race:
    """Attempts to connect to the addresses of one name; the first connection wins (RFC 8305, sections 4 and 5).

    If the attempts ran one after the other, an address that drops packets would hold up the rest for minutes. If they
    all ran at once, they would burden the target and use up descriptors. So the next attempt starts when the latest has
    failed, or when it has gone on for `STAGGER` without a result. Earlier attempts go on meanwhile: a slow first
    address may still win.

    The race is a queue and a loop. The loop (`_try_all`) takes the next address from the queue (`start_next`) and waits
    for one of two things: the failure of the attempt that it has just started, or the end of the delay. An attempt ends
    in `won` or in `lost`. `won` cancels the nursery, which ends the loop, the look-ups and all other attempts. A second
    attempt that connects in the same turn sees that there is a winner, and closes its own connection. `lost` records
    the error.

    When the queue is empty, the loop waits for a family whose look-up has not ended. Once all known addresses have
    failed or are forbidden, it waits for that family no longer than `LAST_WAIT`. When there is nothing left to wait
    for, the nursery waits for the attempts. If none of them wins, the most telling error is raised.
    """

    def __init__(self, permits: Permits | None = None, resolved: Resolved | None = None) -> None:
        self._permits = permits
        self._resolved = resolved
        self._queue: list[Candidate] = []
        self._prohibited = False
        self._under_way = 0
        self._failures: list[OSError] = []
        self._winner: Dialled | None = None
        # How long to wait for more addresses.
        self._patience = trio.CancelScope()

    def add(self, candidates: Sequence[Candidate]) -> None:
        """Queue the permitted ones of these new addresses. In the queue, the two families take turns."""
        if candidates and self._resolved is not None:
            self._resolved(candidates)
            self._resolved = None
        if self._permits is not None:
            permitted = [candidate for candidate in candidates if self._permits(candidate.ip)]
            self._prohibited = self._prohibited or len(permitted) < len(candidates)
            candidates = permitted
        self._queue = interleave([*candidates, *self._queue])

    async def run(self, names: _LookUp | None = None) -> Dialled:
        """Connect to one of the addresses that were added or that `names` finds. Raises DialError."""
        if names is None and len(self._queue) == 1:
            # Do without a nursery here: it would be a sixth of what a tunnel costs the server.
            return await _dial_only(self._queue[0])
        raised: Exception | None = None
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    await self._try_all(names)
                except Exception as error:
                    # A callback raised this error. Raise it outside of the nursery, which would put it into a group.
                    raised = error
                    self._nursery.cancel_scope.cancel()
            if raised is not None:
                raise raised
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            # A callback failed, or the dial was cancelled: the error is one Cancelled, or the nursery's group of them.
            if self._winner is not None:
                self._winner.stream.abort()
            raise
        if self._winner is None:
            raise self._why(names)
        return self._winner

    async def _try_all(self, names: _LookUp | None) -> None:
        if names is not None:
            names.start(self._nursery)
        while self._queue or (names is not None and await self._found_more(names)):
            failed = self.start_next()
            with trio.move_on_after(STAGGER):
                await failed.wait()
            if names is not None and names.has_news:
                self.add(await names.more())

    async def _found_more(self, names: _LookUp) -> bool:
        """Wait for more addresses, and queue them. Return False if there will be none."""
        while not self._queue:
            with trio.CancelScope() as self._patience:
                self._limit_patience()
                found = await names.more()
            if self._patience.cancelled_caught:
                # Cancel the look-up that has not ended: nothing else is under way.
                self._nursery.cancel_scope.cancel()
                return False
            if not found:
                return False
            self.add(found)
        return True

    def _limit_patience(self) -> None:
        if not self._under_way and (self._failures or self._prohibited):
            self._patience.deadline = trio.current_time() + LAST_WAIT

    def start_next(self) -> trio.Event:
        """Start an attempt at the queue's first address. Return an event that is set if the attempt fails."""
        failed = trio.Event()
        self._nursery.start_soon(self._attempt, self._queue.pop(0), failed)
        # Count the attempt here already, since its task runs later.
        self._under_way += 1
        return failed

    async def _attempt(self, candidate: Candidate, failed: trio.Event) -> None:
        try:
            async with nullcontext() if self._under_way == 1 else _further:
                stream = await _connect(candidate)
        except OSError as error:
            self.lost(error)
            failed.set()
        else:
            self.won(Dialled(stream, _address(candidate)))

    def won(self, dialled: Dialled) -> None:
        """Record the connection of the attempt that won; close the connection of a second one."""
        if self._winner is None:
            self._winner = dialled
            self._nursery.cancel_scope.cancel()
        else:
            dialled.stream.abort()

    def lost(self, error: OSError) -> None:
        """Record that an attempt has failed."""
        self._failures.append(error)
        self._under_way -= 1
        self._limit_patience()

    def _why(self, names: _LookUp | None) -> DialError:
        if self._failures:
            return min(map(_explain, self._failures), key=lambda error: _TELLING.index(error.failure))
        if self._prohibited or names is None:
            return DialError(DialFailure.PROHIBITED, "none of its addresses is allowed")
        return names.error()


# If a name's addresses or look-ups fail in different ways, the failure that comes first in this list is reported.
_TELLING = [
    DialFailure.EXHAUSTED,
    DialFailure.REFUSED,
    DialFailure.TIMEOUT,
    DialFailure.OTHER,
    DialFailure.UNROUTABLE,
    DialFailure.NAME_TEMPORARY,
    DialFailure.NAME,
]


async def _dial_only(candidate: Candidate) -> Dialled:
    try:
        return Dialled(await _connect(candidate), _address(candidate))
    except OSError as error:
        raise _explain(error) from error


async def _dial_unix(destination: UnixAddress) -> SocketStream:
    try:
        return await _connect(Candidate(socket.AF_UNIX, destination.path))
    except OSError as error:
        raise _explain(error) from error


async def _connect(candidate: Candidate) -> SocketStream:
    begun = candidate.head_start and candidate.head_start.take()
    sock = begun or socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        status = errno.EINPROGRESS
        if begun is None:
            sock.setblocking(False)
            status = sock.connect_ex(candidate.sockaddr)
        while status == errno.EAGAIN and candidate.family == getattr(socket, "AF_UNIX", None):
            await trio.sleep(_BACKLOG_PAUSE)
            status = sock.connect_ex(candidate.sockaddr)
        if status in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            await trio.lowlevel.wait_writable(sock)
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise OSError(status, os.strerror(status))
        if candidate.family != getattr(socket, "AF_UNIX", None) and _leads_to_itself(sock, candidate.sockaddr[1]):
            # Close it with a reset: then the port is free at once for the program that should listen there.
            reset_on_close(sock)
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock)


def _leads_to_itself(sock: socket.socket, port: int) -> bool:
    """Whether the connection is one to itself (RFC 9293, section 3.5, "simultaneous open").

    If no program listens on a port of this machine, the kernel may choose that same port as the source port: about once
    in ten thousand dials, if the port is in the range that the kernel chooses from.
    """
    own = sock.getsockname()
    try:
        return bool(own[1] == port and own == sock.getpeername())
    except OSError:
        return False  # the connection was reset in the meantime: the first read or write reports that


def _explain(error: OSError) -> DialError:
    match error.errno:
        case errno.ECONNREFUSED:
            failure = DialFailure.REFUSED
        case errno.ENETUNREACH | errno.EHOSTUNREACH | errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            failure = DialFailure.UNROUTABLE
        case errno.ETIMEDOUT:
            failure = DialFailure.TIMEOUT
        case code if code in _EXHAUSTED:
            failure = DialFailure.EXHAUSTED
        case _:
            failure = DialFailure.OTHER
    return DialError(failure, os_reason(error))


def _address(candidate: Candidate) -> TCPAddress:
    return TCPAddress(str(candidate.ip), candidate.sockaddr[1])
