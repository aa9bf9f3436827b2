"""How many tunnels and connections the server allows, and which connection it evicts when a limit is reached.

Pure counting: no network and no clock; the caller gives the time. Every limit counts how often it was reached, for the
metrics. The limits per address do not apply to addresses that many clients share (loopback, a Unix socket, a trusted
proxy): for such an address the caller passes None.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from ipaddress import IPv6Address
from typing import Generic, Literal, TypeVar

from http2tcp.address import IPAddress
from http2tcp.errors import LimitReached, TooManyRequests
from http2tcp.server.policy import Token
from http2tcp.units import counted

# Descriptors that connections may not use. First, descriptors for the pipes of spliced flows: at most 64 pipes, and at
# most an eighth of all descriptors (net/splice_pump.py). Then a reserve for further attempts of dials (32,
# net/dial.py), the log, the listeners, epoll and look-ups.
_PIPES = 128
_PIPE_SHARE = 1 / 8
_RESERVED_DESCRIPTORS = 64
_RESERVED_SHARE = 1 / 16
# A client that has one IPv6 address has its whole /64 (RFC 6177, section 2), so a /64 counts as one client.
_IPV6_PREFIX = 64
# If there are several tokens, each of them leaves this part of all tunnels to the other tokens.
_KEPT_FOR_OTHERS = 1 / 8
# How many addresses that sent wrong tokens are remembered. Beyond that the oldest one is forgotten.
_MAX_FAILING = 10_000

_L = TypeVar("_L")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOption:
    """The option that sets a limit: its kind, and its words in the help, the documentation and the reports."""

    kind: Literal["count", "time", "rate"]
    #: The text of --help.
    help: str
    #: A paragraph of docs/options.md, in Markdown.
    more: str = ""
    #: The default in words; "" if the number is enough.
    shown: str = ""
    #: The limit's line in `-s --check`. `{}` stands for the number with its unit; `noun` is the unit of a count.
    report: str
    noun: str = ""
    #: The value in examples/http2tcp.toml, in TOML, and its comment there. Empty: the default, and `help`.
    sample: str = ""
    comment: str = ""


def _limit(default: _L, option: LimitOption) -> _L:
    """Make a field of `Limits` that has this option."""
    made: _L = field(default=default, metadata={"option": option})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server. Times are in seconds, rates in bytes a second.

    None means no limit; for the two numbers of tunnels, the comments say what it means. Each field defines an option of
    the same name. The command line, the configuration file, the documentation, a reload's report, `-s --check` and the
    gauge `http2tcp_limit` read the option from here.
    """

    #: How many tunnels may be open at once. None: as many as the process's descriptors allow.
    max_tunnels: int | None = _limit(
        None,
        LimitOption(
            kind="count",
            help="How many tunnels may be open at once.",
            more="Further clients get 503. The server lowers the number by itself to what the process's limit on "
            "descriptors allows.",
            shown="as many as descriptors allow",
            report="{} at once",
            noun="tunnel",
            sample="1000",
        ),
    )
    #: How many tunnels a token may have open, unless it has a number of its own. None: if there are several tokens, the
    #: `share` of all tunnels.
    max_tunnels_per_token: int | None = _limit(
        None,
        LimitOption(
            kind="count",
            help="How many of them may be of one token.",
            more="It counts for the token of `--token`, too. A token that has them all gets 429. Where the server "
            "knows several tokens and no number is given, an eighth of `--max-tunnels` is kept from each token for the "
            "others; the only token may take all. `max_tunnels` of a `[[token]]` replaces the number for that token.",
            shown="all; of several tokens, all but an eighth",
            report="{} of one token that has no number of its own",
            sample="20",
            comment="How many of them may be of one token that has no `max_tunnels` of its own. Without this line, "
            "all; where there are several tokens, all but an eighth.",
        ),
    )
    #: How many connections may be open whose token has not been accepted.
    max_unauthenticated: int = _limit(
        4096,
        LimitOption(
            kind="count",
            help="How many connections may be open without an accepted token.",
            more="When there are more, the server closes the connection that has waited longest, so that a newcomer "
            "with a token always gets in. The server lowers the number by itself to what the descriptors allow.",
            report="{} without an accepted token",
            noun="connection",
        ),
    )
    #: How many connections of one client address (IPv6: of its /64) may be open without an accepted token.
    max_unauthenticated_per_address: int = _limit(
        64,
        LimitOption(
            kind="count",
            help="How many of these may come from one address.",
            more="Of IPv6, from one /64. Loopback, a Unix socket and trusted proxies are exempt: many clients share "
            "them.",
            report="{} without an accepted token from one address",
            noun="connection",
        ),
    )
    #: How many wrong tokens a minute one client address may send. Further wrong tokens get 429.
    max_failures_per_minute: int = _limit(
        10,
        LimitOption(
            kind="count",
            help="How many wrong tokens one address may send before it gets 429.",
            more="Of IPv6, one /64. Only further wrong tokens get 429; a good token is never kept waiting. Loopback, a "
            "Unix socket and trusted proxies are exempt, as above.",
            report="{} a minute from one address",
            noun="wrong token",
        ),
    )
    #: End a tunnel that is silent in both directions for this long.
    idle_timeout: float | None = _limit(
        None,
        LimitOption(
            kind="time",
            help="End tunnels that are silent both ways for this long.",
            shown="never",
            report="{} of silence in a tunnel",
            sample='"8h"',
        ),
    )
    #: End a session that has lasted this long.
    max_session: float | None = _limit(
        None,
        LimitOption(
            kind="time",
            help="End tunnels that have lasted this long.",
            shown="never",
            report="{} for a tunnel",
            sample='"1d"',
        ),
    )
    #: How many bytes a second one tunnel may carry in each direction.
    max_rate: float | None = _limit(
        None,
        LimitOption(
            kind="rate",
            help="A tunnel's bytes a second each way, as in 10M.",
            more="`65536`, `64K`, `10M`, `1G`: the units are by 1024.",
            shown="no limit",
            report="{} a second each way in a tunnel",
            sample='"10M"',
        ),
    )

    def within(self, descriptors: int) -> Limits:
        """Return the same limits, lowered until this many descriptors are enough. A tunnel takes two descriptors."""
        reserved = _RESERVED_DESCRIPTORS + min(_PIPES, int(descriptors * _PIPE_SHARE))
        left = descriptors - max(reserved, int(descriptors * _RESERVED_SHARE))
        unauthenticated = max(1, min(self.max_unauthenticated, left // 4))
        possible = max(1, (left - unauthenticated) // 2)
        tunnels = possible if self.max_tunnels is None else min(self.max_tunnels, possible)
        return replace(self, max_unauthenticated=unauthenticated, max_tunnels=tunnels)


def described_limits() -> list[tuple[str, float | None, LimitOption]]:
    """Return each limit's name, its default, and its option."""
    default = Limits()
    return [(each.name, getattr(default, each.name), each.metadata["option"]) for each in fields(Limits)]


def share(total: int) -> int:
    """Return how many of `total` tunnels or look-ups one of several tokens may use: all but an eighth, at least one."""
    return max(1, total - math.ceil(total * _KEPT_FOR_OTHERS))


_C = TypeVar("_C")


class Group(Enum):
    """What an unauthenticated connection has done so far."""

    #: The server accepted the connection, and its client has sent nothing yet.
    SILENT = "silent"
    SENT_SOMETHING = "sent something"
    #: The server refused the request, and the client may still be reading the answer.
    ANSWERED = "answered"


def evict_from(silent: int, sent_something: int, answered: int) -> Group:
    """Return the group whose oldest connection is evicted. The arguments are how many connections each group has.

    | silent | sent something | answered | evict from | because |
    |---|---|---|---|---|
    | 50 | 50 | 2 | answered | refused connections go first, since they have had their answer |
    | 0 | 0 | 2 | answered | |
    | 50 | 50 | 1 | silent | a group of one is spared: its only member may have just arrived |
    | 50 | 50 | 0 | silent | silent connections go next, |
    | 49 | 51 | 0 | sent something | unless they are the smaller group |
    | 2 | 98 | 0 | sent something | |
    | 98 | 2 | 0 | silent | |
    | 2 | 1 | 0 | silent | |
    | 1 | 1 | 0 | sent something | the silent one may have just arrived |
    | 1 | 0 | 1 | answered | the silent one may have just arrived |
    | 1 | 0 | 0 | silent | there is no other |
    | 0 | 1 | 1 | sent something | the answered one may have just been answered |
    | 0 | 1 | 0 | sent something | there is no other |
    | 0 | 0 | 1 | answered | there is no other |

    A new client with a good token is silent for a moment, until its request arrives. If silent connections were always
    evicted first, slow clients that send one byte each could hold nearly all places, and the new clients would evict
    each other from the rest. So each of the two groups keeps at least half of the places, as long as it fills them.
    """
    if answered > 1:
        return Group.ANSWERED
    if silent >= max(2, sent_something):
        return Group.SILENT
    if sent_something:
        return Group.SENT_SOMETHING
    return Group.ANSWERED if answered else Group.SILENT


class Unauthenticated(Generic[_C]):
    """The connections without an accepted token: some may still send one, others were refused and are still open.

    When there are too many, the oldest connection of one group is evicted; `evict_from` chooses the group. A client
    with a good token gets a place, and needs it only for a moment.
    """

    def __init__(self, limits: Limits, evict: Callable[[_C], None]) -> None:
        """`evict` closes a connection. The connection is no longer counted when `evict` is called."""
        self.limits = limits
        self._close = evict
        #: Each group's connections, the oldest first. The value is the key (`group`) of the address that a connection
        #: counts for; None if the limit per address does not apply to it.
        self._groups: dict[Group, OrderedDict[_C, str | None]] = {each: OrderedDict() for each in Group}
        self._of_address: dict[str, OrderedDict[_C, None]] = {}
        #: How often each limit was reached.
        self.reached = 0
        self.reached_per_address = 0

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def at_once(self) -> int:
        """Return how many connections to accept before other tasks run.

        A new connection needs a few turns of the event loop until its token is read. It must not be evicted before
        that, even if all places, or all places of its address, are filled again and again.
        """
        return max(1, min(self.limits.max_unauthenticated // 32, self.limits.max_unauthenticated_per_address // 4))

    def enter(self, connection: _C, address: IPAddress | None) -> None:
        """Count a connection that was just accepted."""
        self._groups[Group.SILENT][connection] = None
        self._make_room()
        self.comes_from(connection, address)

    def comes_from(self, connection: _C, address: IPAddress | None) -> None:
        """Count a connection for an address. Call it again if a proxy's header names another address.

        Do nothing if the connection was evicted or answered.
        """
        members = self._group_of(connection)
        if members is None or members is self._groups[Group.ANSWERED]:
            return
        self._forget_address(connection, members[connection])
        members[connection] = key = None if address is None else group(address)
        if key is None:
            return
        same = self._of_address.setdefault(key, OrderedDict())
        same[connection] = None
        if len(same) > self.limits.max_unauthenticated_per_address:
            self.reached_per_address += 1
            self._evict(next(iter(same)))

    def sent_something(self, connection: _C) -> None:
        """Move a connection that has sent its first bytes to SENT_SOMETHING. Do nothing if it is no longer SILENT."""
        silent = self._groups[Group.SILENT]
        if connection in silent:
            self._groups[Group.SENT_SOMETHING][connection] = silent.pop(connection)

    def answered(self, connection: _C) -> None:
        """Count a refused connection. It may stay to read its answer until another connection needs its place.

        It is counted again if it had left before.
        """
        members = self._group_of(connection)
        key = None if members is None else members.pop(connection)
        self._groups[Group.ANSWERED][connection] = key
        self._make_room()

    def leave(self, connection: _C) -> None:
        """Stop counting a connection whose token was accepted, or that is closed. Do nothing if it has left before."""
        members = self._group_of(connection)
        if members is not None:
            self._forget_address(connection, members.pop(connection))

    def give_way(self) -> None:
        """Evict a quarter of the connections, since the process is out of descriptors. The next tunnel needs two."""
        for _ in range(math.ceil(len(self) / 4)):
            self._evict_oldest()

    def _make_room(self) -> None:
        if len(self) > self.limits.max_unauthenticated:
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        self.reached += 1
        silent, sent_something, answered = (len(self._groups[each]) for each in Group)
        self._evict(next(iter(self._groups[evict_from(silent, sent_something, answered)])))

    def _evict(self, connection: _C) -> None:
        self.leave(connection)
        self._close(connection)

    def _group_of(self, connection: _C) -> OrderedDict[_C, str | None] | None:
        return next((members for members in self._groups.values() if connection in members), None)

    def _forget_address(self, connection: _C, key: str | None) -> None:
        if key is not None:
            same = self._of_address[key]
            del same[connection]
            if not same:
                del self._of_address[key]


class Tunnels:
    """Counts tunnels, in total and for each token. A session takes its place before its target is dialled."""

    def __init__(self, limits: Limits, tokens: int = 0) -> None:
        """`tokens` is how many tokens are configured. A reload may change that and `limits`."""
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
        """Whether the limit of all tunnels is reached."""
        return self.limits.max_tunnels is not None and self._all >= self.limits.max_tunnels

    @property
    def per_token(self) -> int | None:
        """The limit for a token without a limit of its own; None: no limit."""
        if self.limits.max_tunnels_per_token is not None or self.limits.max_tunnels is None or self.tokens < 2:
            return self.limits.max_tunnels_per_token
        return share(self.limits.max_tunnels)

    def enter(self, token: Token | None) -> None:
        """Count one more tunnel, for its token as well. Raises LimitReached or TooManyRequests."""
        if self.full:
            self.reached += 1
            raise LimitReached
        if token is not None:
            held = self._of_token.get(token.digest, 0)
            most = self.per_token if token.max_tunnels is None else token.max_tunnels
            if most is not None and held >= most:
                self.reached_per_token += 1
                words = f"this token has its {counted(most, 'tunnel')} open already"
                if token.max_tunnels is None and self.limits.max_tunnels_per_token is None:
                    words += "; an eighth of the server's tunnels is kept for other tokens"
                raise TooManyRequests(words)
            self._of_token[token.digest] = held + 1
        self._all += 1

    def leave(self, token: Token | None) -> None:
        """Stop counting a tunnel that is over."""
        self._all -= 1
        if token is not None:
            held = self._of_token[token.digest] - 1
            if held:
                self._of_token[token.digest] = held
            else:
                del self._of_token[token.digest]


class Failures:
    """Counts recent wrong tokens for each client address, with a leaky bucket."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        #: How often the limit was reached.
        self.reached = 0

    def failed(self, address: IPAddress | None, now: float) -> bool:
        """Count one wrong token, and return whether the address has sent too many. `now` is a monotonic time."""
        if address is None:
            return False
        key = group(address)
        level, since = self._buckets.pop(key, (0.0, now))
        per_minute = self.limits.max_failures_per_minute
        level = max(0.0, level - (now - since) * per_minute / 60)
        too_many = level + 1 > per_minute
        # A token beyond the limit does not fill the bucket, so the address may try again as soon as it slows down.
        self._buckets[key] = (level if too_many else level + 1, now)
        self.reached += too_many
        if len(self._buckets) > _MAX_FAILING:
            self._buckets.popitem(last=False)
        return too_many


def group(address: IPAddress) -> str:
    """Return the key under which an address is counted: the IPv4 address, or the /64 of the IPv6 address."""
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> _IPV6_PREFIX << _IPV6_PREFIX)}/{_IPV6_PREFIX}"
    return str(address)
