"""What the server holds at most, and whom it lets go when that is reached.

Pure counting: no network, no clock; times are handed in. Every limit counts how often it was reached, for
the metrics. Peers behind which everybody is (loopback, a Unix socket, a trusted proxy) have no share of
their own: the caller gives None for their address.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Generic, TypeVar

from http2tcp.address import IPAddress
from http2tcp.errors import LimitReached, TooManyRequests
from http2tcp.server.policy import Token
from http2tcp.units import counted

# What is not a connection: spliced flows' pipes, which are 64 and an eighth of all at most (net/splice.py), dials'
# further attempts (net/dial.py has 32), the log, the listeners, epoll, look-ups under way.
_PIPES = 128
_PIPE_SHARE = 1 / 8
_RESERVED_DESCRIPTORS = 64
_RESERVED_SHARE = 1 / 16
# An attacker with one IPv6 address has all of its /64 (RFC 6177, section 2).
_IPV6_PREFIX = 64
# Where there are several tokens, this part of what all share is kept from each: one alone does not shut the others out.
_KEPT_FOR_OTHERS = 1 / 8
# Addresses of which wrong tokens are remembered; of more, the oldest is forgotten.
_MAX_FAILING = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times are in seconds; None: no limit, or for `tunnels` what the descriptors allow."""

    #: Connections whose token has not been accepted yet.
    unauthenticated: int = 4096
    #: … of one client address (IPv6: of its /64).
    unauthenticated_per_address: int = 64
    #: Wrong tokens a minute from one client address before it is told to wait.
    failures_per_minute: int = 10
    tunnels: int | None = None
    #: … of one token that has no number of its own; None: `share` of them where there are several tokens.
    tunnels_per_token: int | None = None
    #: Silence in both directions.
    idle_timeout: float | None = None
    #: A session's whole life.
    max_session: float | None = None
    #: Bytes a second of one tunnel in each direction.
    max_rate: float | None = None

    def within(self, descriptors: int) -> Limits:
        """The same, so far lowered that so many descriptors suffice. A tunnel takes two of them."""
        reserved = _RESERVED_DESCRIPTORS + min(_PIPES, int(descriptors * _PIPE_SHARE))
        left = descriptors - max(reserved, int(descriptors * _RESERVED_SHARE))
        unauthenticated = max(1, min(self.unauthenticated, left // 4))
        possible = max(1, (left - unauthenticated) // 2)
        tunnels = possible if self.tunnels is None else min(self.tunnels, possible)
        return replace(self, unauthenticated=unauthenticated, tunnels=tunnels)


def share(total: int) -> int:
    """What one of several tokens may take of so many tunnels or look-ups: all but an eighth, and one at least."""
    return max(1, total - math.ceil(total * _KEPT_FOR_OTHERS))


_C = TypeVar("_C")


class Waiting(Generic[_C]):
    """The connections whose token has not been accepted yet, and those that have been refused and still stay.

    When there are too many, the one that has waited longest goes; first one that has had its answer, then one
    that has said nothing, as long as these are not the fewer: a newcomer with a good token needs a moment only, and
    gets it.
    """

    def __init__(self, limits: Limits, push_out: Callable[[_C], None]) -> None:
        """`push_out` ends a connection; it is no longer counted when that is called."""
        self.limits = limits
        self._push_out = push_out
        self._silent: OrderedDict[_C, str | None] = OrderedDict()
        self._speaking: OrderedDict[_C, str | None] = OrderedDict()
        self._answered: OrderedDict[_C, str | None] = OrderedDict()
        self._of_address: dict[str, OrderedDict[_C, None]] = {}
        #: How often each limit was reached.
        self.reached = 0
        self.reached_per_address = 0

    def __len__(self) -> int:
        return len(self._silent) + len(self._speaking) + len(self._answered)

    def at_once(self) -> int:
        """How many may enter in one turn of the loop: each has a few turns before others can push it out."""
        return max(1, min(self.limits.unauthenticated // 32, self.limits.unauthenticated_per_address // 4))

    def enter(self, connection: _C, address: IPAddress | None) -> None:
        """A connection was accepted."""
        self._silent[connection] = None
        self._make_room()
        self.comes_from(connection, address)

    def comes_from(self, connection: _C, address: IPAddress | None) -> None:
        """Its address is known, or known better: a proxy's header said so."""
        waiting = self._silent if connection in self._silent else self._speaking
        if connection not in waiting:
            return
        self._forget_address(connection, waiting[connection])
        waiting[connection] = key = None if address is None else group(address)
        if key is None:
            return
        same = self._of_address.setdefault(key, OrderedDict())
        same[connection] = None
        if len(same) > self.limits.unauthenticated_per_address:
            self.reached_per_address += 1
            self._end(next(iter(same)))

    def speaks(self, connection: _C) -> None:
        """It has sent something."""
        if connection in self._silent:
            self._speaking[connection] = self._silent.pop(connection)

    def answered(self, connection: _C) -> None:
        """It was refused, and may stay to read that as long as nobody needs its place. It may have left before."""
        key = None
        for waiting in (self._silent, self._speaking, self._answered):
            if connection in waiting:
                key = waiting.pop(connection)
        self._answered[connection] = key
        self._make_room()

    def leave(self, connection: _C) -> None:
        """Its token was accepted, or it is over. It may have left before."""
        for waiting in (self._silent, self._speaking, self._answered):
            if connection in waiting:
                self._forget_address(connection, waiting.pop(connection))

    def give_way(self) -> None:
        """The process has no descriptor left: some of them give theirs up, of which the next login needs two."""
        for _ in range(math.ceil(len(self) / 4)):
            self.reached += 1
            self._end(next(iter(self._crowd())))

    def _make_room(self) -> None:
        if len(self) > self.limits.unauthenticated:
            self.reached += 1
            self._end(next(iter(self._crowd())))

    def _crowd(self) -> OrderedDict[_C, str | None]:
        """Of whom the oldest goes. The only one of its kind may just have come."""
        if len(self._answered) > 1:
            return self._answered
        # A newcomer is silent at first. Where those that have said a byte had all places but a few, newcomers would
        # push each other out; so neither kind goes below half of the places on the other's account.
        if len(self._silent) >= max(2, len(self._speaking)):
            return self._silent
        return self._speaking or self._answered or self._silent

    def _end(self, connection: _C) -> None:
        self.leave(connection)
        self._push_out(connection)

    def _forget_address(self, connection: _C, key: str | None) -> None:
        if key is not None:
            same = self._of_address[key]
            del same[connection]
            if not same:
                del self._of_address[key]


class Tunnels:
    """The sessions from their accepted token on, all of them and each token's."""

    def __init__(self, limits: Limits, tokens: int = 0) -> None:
        """`tokens` is how many there are. It may change, as `limits` may."""
        self.limits = limits
        self.tokens = tokens
        self._of_token: dict[bytes, int] = {}
        self._all = 0
        #: How often each limit was reached.
        self.reached = 0
        self.reached_per_token = 0

    def __len__(self) -> int:
        return self._all

    @property
    def full(self) -> bool:
        """Whether nobody gets one more."""
        return self.limits.tunnels is not None and self._all >= self.limits.tunnels

    @property
    def per_token(self) -> int | None:
        """How many a token may have that has no number of its own."""
        if self.limits.tunnels_per_token is not None or self.limits.tunnels is None or self.tokens < 2:
            return self.limits.tunnels_per_token
        return share(self.limits.tunnels)

    def enter(self, token: Token | None) -> None:
        """One more. Raises LimitReached or TooManyRequests."""
        if self.full:
            self.reached += 1
            raise LimitReached
        if token is not None:
            held = self._of_token.get(token.digest, 0)
            most = self.per_token if token.max_tunnels is None else token.max_tunnels
            if most is not None and held >= most:
                self.reached_per_token += 1
                words = f"this token has its {counted(most, 'tunnel')} open already"
                if token.max_tunnels is None and self.limits.tunnels_per_token is None:
                    words += "; the last eighth of the server's is kept for other tokens"
                raise TooManyRequests(words)
            self._of_token[token.digest] = held + 1
        self._all += 1

    def leave(self, token: Token | None) -> None:
        """One that had entered is over."""
        self._all -= 1
        if token is not None:
            held = self._of_token[token.digest] - 1
            if held:
                self._of_token[token.digest] = held
            else:
                del self._of_token[token.digest]


class Failures:
    """Wrong tokens by client address: how many lately, as a bucket that leaks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        #: How often the limit was reached.
        self.reached = 0

    def failed(self, address: IPAddress | None, now: float) -> bool:
        """Count one; whether the address has had too many. `now` is of a clock that does not jump."""
        if address is None:
            return False
        key = group(address)
        level, since = self._buckets.pop(key, (0.0, now))
        per_minute = self.limits.failures_per_minute
        level = max(0.0, level - (now - since) * per_minute / 60)
        too_many = level + 1 > per_minute
        # What is refused does not count: the address is heard again as soon as it slows down.
        self._buckets[key] = (level if too_many else level + 1, now)
        self.reached += too_many
        if len(self._buckets) > _MAX_FAILING:
            self._buckets.popitem(last=False)
        return too_many


def group(address: IPAddress) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 address's /64."""
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> _IPV6_PREFIX << _IPV6_PREFIX)}/{_IPV6_PREFIX}"
    return str(address)
