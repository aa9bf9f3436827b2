"""Names to addresses, each checked before it is dialled.

A name is resolved once; what the check forbids is dropped; the rest is dialled as checked. A second
look-up could answer differently. Every failure is a `DialError`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

import trio

from http2tcp.address import Address, TCPAddress, UnixAddress
from http2tcp.errors import os_reason
from http2tcp.net.preconnect import LOCALHOST, LOOPBACK, HeadStart
from http2tcp.net.streams import SocketStream, reset_on_close

# RFC 8305, section 5: the recommended delay between two attempts.
STAGGER = 0.25
# Attempts under way beyond one for each dial. A name can have more addresses that do not answer than there are
# descriptors.
_further = trio.CapacityLimiter(32)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# A name may have thousands, each to be judged by every rule. In ten seconds 40 can be tried, one a `STAGGER`.
_MAX_ADDRESSES = 40
# A Unix listener whose backlog is full says so at once, where TCP would wait.
_BACKLOG_PAUSE = 0.02

IPAddress = IPv4Address | IPv6Address
Permits = Callable[[IPAddress], bool]


class DialFailure(Enum):
    """Why there is no connection."""

    NAME = "name not found"
    NAME_TEMPORARY = "name look-up failed"
    PROHIBITED = "address not allowed"
    REFUSED = "connection refused"
    UNROUTABLE = "no route"
    TIMEOUT = "timed out"
    EXHAUSTED = "out of descriptors"
    OTHER = "failed"


class DialError(Exception):
    """No connection. `str(error)` is a few words without the destination's name."""

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
    resolved: Callable[[], None] | None = None,
    limiter: LookUpLimiter | None = None,
) -> Dialled:
    """Connect to the first of the destination's permitted addresses that accepts (RFC 8305).

    `resolved` is called once the name is known, whose look-up waits for a place in `limiter`. The caller sets the
    deadline. Raises DialError.
    """
    if isinstance(destination, UnixAddress):
        return Dialled(await _dial_unix(destination), destination)
    candidates = await resolve(destination, limiter=limiter)
    if resolved is not None:
        resolved()
    if permits is not None:
        candidates = [candidate for candidate in candidates if permits(candidate.ip)]
        if not candidates:
            raise DialError(DialFailure.PROHIBITED, "none of its addresses is allowed")
    return await dial_first(candidates)


class Candidate(NamedTuple):
    """One address of a name: what `socket.connect` takes."""

    family: socket.AddressFamily
    sockaddr: Any
    #: Has begun to connect to it.
    head_start: HeadStart | None = None

    @property
    def ip(self) -> IPAddress:
        """The address alone: a scope such as %eth0 says which link it is on."""
        return ip_address(str(self.sockaddr[0]).partition("%")[0])


class LookUpLimiter:
    """How many look-ups of one owner may be under way, of the threads that all share.

    It is given back by the thread and not by the dial: one that was given up asks on until no name server is left.
    """

    def __init__(self, total: int) -> None:
        self._own = trio.CapacityLimiter(total)

    @property
    def idle(self) -> bool:
        """Whether nobody has a place, or waits for one."""
        statistics = self._own.statistics()
        return statistics.borrowed_tokens == statistics.tasks_waiting == 0

    def may_be(self, total: int) -> None:
        """So many from now on."""
        self._own.total_tokens = total

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """A place of the owner's, and then a thread."""
        await self._own.acquire_on_behalf_of(borrower)
        try:
            await trio.to_thread.current_default_thread_limiter().acquire_on_behalf_of(borrower)
        except BaseException:
            self._own.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        """Both are free."""
        trio.to_thread.current_default_thread_limiter().release_on_behalf_of(borrower)
        self._own.release_on_behalf_of(borrower)


class LookUps:
    """The limiter of each owner that looks names up."""

    def __init__(self) -> None:
        self._limiters: dict[bytes, LookUpLimiter] = {}

    def of(self, owner: bytes, total: int) -> LookUpLimiter:
        """An owner's."""
        limiter = self._limiters.get(owner)
        if limiter is None:
            # Those that nobody uses are of owners that may be gone.
            self._limiters = {each: kept for each, kept in self._limiters.items() if not kept.idle}
            limiter = self._limiters[owner] = LookUpLimiter(total)
        limiter.may_be(total)
        return limiter


async def _look_up(host: bytes, port: int, limiter: LookUpLimiter | None) -> list[Any]:
    if limiter is None:
        return await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    try:
        # An address takes no thread.
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    return await trio.to_thread.run_sync(
        lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
        abandon_on_cancel=True,
        limiter=limiter,  # type: ignore[arg-type]  # all that is asked of one is these two methods
    )


async def resolve(
    destination: TCPAddress, head_start: HeadStart | None = None, limiter: LookUpLimiter | None = None
) -> list[Candidate]:
    """The name's first addresses in the resolver's order, which `head_start` may know already. Raises DialError."""
    try:
        if head_start is not None:
            return await _resolved_before(head_start)
        if destination.host in LOCALHOST:
            return [Candidate(family, (address, destination.port)) for family, address in LOOPBACK]
        # Bytes, since a str is put through the idna codec, whose import costs time and which knows fewer names.
        host = destination.host.encode("ascii")
        found = await _look_up(host, destination.port, limiter)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL):
            raise DialError(DialFailure.NAME_TEMPORARY, "the name server did not answer") from error
        raise DialError(DialFailure.NAME, "the name has no address") from error
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise _explain(error) from error
        raise DialError(DialFailure.NAME, "the name has no address") from error
    return [Candidate(family, sockaddr) for family, _, _, _, sockaddr in found[:_MAX_ADDRESSES]]


async def _resolved_before(head_start: HeadStart) -> list[Candidate]:
    if head_start.done:
        found = head_start.addresses()
    else:
        found = await trio.to_thread.run_sync(head_start.addresses, abandon_on_cancel=True)
    candidates = [Candidate(family, sockaddr) for family, _, _, _, sockaddr in found]
    return [candidates[0]._replace(head_start=head_start), *candidates[1:]]


def interleave(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The families in turn, so that one broken family costs one delay (RFC 8305, section 4)."""
    first = [c for c in candidates if c.family == candidates[0].family]
    other = [c for c in candidates if c.family != candidates[0].family]
    woven = [c for pair in zip(first, other, strict=False) for c in pair]
    return woven + first[len(other) :] + other[len(first) :]


async def dial_first(candidates: Sequence[Candidate]) -> Dialled:
    """Connect to the first that accepts (RFC 8305, section 5). The caller sets the deadline. Raises DialError."""
    if len(candidates) == 1:
        # Without a race: it would be a sixth of what a tunnel costs the server.
        return await _dial_only(candidates[0])
    winner: Dialled | None = None
    failures: list[OSError] = []
    begun = 0

    async def attempt(candidate: Candidate, failed: trio.Event) -> None:
        nonlocal winner, begun
        alone = begun == len(failures)
        begun += 1
        try:
            async with nullcontext() if alone else _further:
                stream = await _connect(candidate)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if winner is None:
            winner = Dialled(stream, _address(candidate))
            race.cancel_scope.cancel()
        else:
            stream.abort()

    try:
        async with trio.open_nursery() as race:
            for candidate in interleave(candidates):
                failed = trio.Event()
                race.start_soon(attempt, candidate, failed)
                with trio.move_on_after(STAGGER):
                    await failed.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        # Cancelled, alone or as the nursery's group of them.
        if winner is not None:
            winner.stream.abort()
        raise
    if winner is None:
        raise min(map(_explain, failures), key=lambda error: _TELLING.index(error.failure))
    return winner


# Where a name's addresses fail in different ways, the earliest here is what to tell.
_TELLING = [DialFailure.EXHAUSTED, DialFailure.REFUSED, DialFailure.TIMEOUT, DialFailure.OTHER, DialFailure.UNROUTABLE]


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
            # So that whoever is to listen there finds the port free.
            reset_on_close(sock)
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock)


def _leads_to_itself(sock: socket.socket, port: int) -> bool:
    """Whether the kernel has chosen the port that was dialled, where nobody listens (RFC 9293, section 3.5).

    Once in some ten thousand times it does, for ports of the range that it chooses from.
    """
    own = sock.getsockname()
    try:
        return bool(own[1] == port and own == sock.getpeername())
    except OSError:
        return False  # reset by now, which whoever uses it finds out


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
