"""The resumable sessions of a server: who is away, who may come back, and who has to give up the place.

A session's relay and its records belong to the connection that opened it, whose task goes on while the client is away.
Another connection that proves the session hands its stream over (`net.resumable`), and waits until it is no longer
needed. Nothing here does I/O.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from http2tcp.protocol.capsule import ResetCode
from http2tcp.protocol.resume import Resumable, Terms
from http2tcp.protocol.resume_tombstone import Tombstone
from http2tcp.protocol.resume_wire import KEY_SIZE, gone
from http2tcp.server.outcome import Reason

if TYPE_CHECKING:
    from http2tcp.net.relay import Lifetime
    from http2tcp.net.resumable import ResumableStream
    from http2tcp.server.audit import SessionRecords
    from http2tcp.server.policy import Token
    from http2tcp.server.settings import ServerSettings

# Sessions that are over and are remembered, for a client whose last words were lost: about 450 bytes each.
_TOMBSTONES = 1000
# Attempts at one session that may be under way. Of more, the oldest goes: whoever shares the token can begin as many as
# they like, and must not keep the owner out, who needs one round trip.
ATTEMPTS = 8
# A session counts as absent, and may have to give up its place, only after so many seconds: where a front end restarts,
# all of its clients are away for a moment.
PATIENCE = 120.0
# Bytes that every session may keep in a direction, whatever the others do.
_OWN = 64 * 1024
# A name that `--node` takes.
NODE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


class Session(Protocol):
    """What a session is here: `http2tcp.server.session.Session`."""

    token: Token | None
    lifetime: Lifetime
    records: SessionRecords

    @property
    def id(self) -> str:
        """The id that the logs of both sides have."""

    def give_up_place(self) -> None:
        """Give up the place among the tunnels."""


@dataclass(eq=False, slots=True)
class Entry:
    """One resumable session."""

    session: Session
    stream: ResumableStream
    #: The client's address, as its records have it.
    client: str
    #: Attempts at it that have not proved anything yet, the oldest first: what cancels each.
    attempts: list[trio.CancelScope] = field(default_factory=list)
    #: When the client was lost, on trio's clock; None while it is there.
    away_since: float | None = None


class Memory:
    """How many bytes all sessions keep, by token. A session above its own 64 KiB shares what its token has."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._by_token: Counter[bytes] = Counter()

    def keeps(self, token: bytes, change: int) -> None:
        """A session of this token keeps so many bytes more, or fewer."""
        self.used += change
        self._by_token[token] += change
        if not self._by_token[token]:
            del self._by_token[token]

    def left(self, token: bytes) -> int:
        """How many more bytes sessions of this token may keep. Tokens that keep something have equal shares."""
        sharing = len(self._by_token) + (token not in self._by_token)
        # One token alone leaves an eighth for the others that may come.
        share = self.total * 7 // 8 if sharing == 1 else self.total // sharing
        return max(0, min(share - self._by_token[token], self.total - self.used))


class Account:
    """What one session keeps, as the memory of all counts it."""

    __slots__ = ("_counted", "_memory", "_token")

    def __init__(self, memory: Memory, token: bytes) -> None:
        self._memory = memory
        self._token = token
        self._counted = 0

    def settle(self, machine: Resumable) -> None:
        """Count what the session keeps now, and set how much it may keep."""
        change = machine.out.held - self._counted
        if change:
            self._memory.keeps(self._token, change)
            self._counted += change
        machine.keep_at_most = max(_OWN, machine.out.held + self._memory.left(self._token))

    def close(self) -> None:
        """The session keeps nothing any more."""
        self._memory.keeps(self._token, -self._counted)
        self._counted = 0


class Resumption:
    """All of them."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.started = int(time.time())
        self.memory = Memory(settings.resume_memory)
        self._entries: dict[str, Entry] = {}
        self._tombstones: OrderedDict[str, tuple[float, bytes, Tombstone]] = OrderedDict()
        #: Sessions whose client is away, the one that has been away longest first.
        self._away: OrderedDict[Entry, None] = OrderedDict()

    def configure(self, settings: ServerSettings) -> None:
        """Take new settings, for sessions to come; the limits hold for those that are away, too."""
        self.settings = settings
        self.memory.total = settings.resume_memory
        self.make_room()

    # --- sessions ---------------------------------------------------------------------------------

    def offer(self, session: Session, *, keepalive: float, confirms: bool, idle_timeout: float | None) -> Resumable:
        """The machine of a new session."""
        terms = Terms(
            keepalive=int(keepalive * 1000),
            window=self.settings.resume_window,
            grace=int(self.settings.resume),
            idle_timeout=None if idle_timeout is None else int(idle_timeout),
        )
        return Resumable.offer(session.id, secrets.token_bytes(KEY_SIZE), terms, confirms=confirms)

    def account(self, session: Session) -> Account:
        """What counts the bytes that the session keeps."""
        return Account(self.memory, _owner(session.token))

    def add(self, entry: Entry) -> None:
        """Add a session that begins."""
        self._entries[entry.session.id] = entry

    def remove(self, entry: Entry, code: int, words: str) -> None:
        """A session is over. What its client is told if it comes back all the same."""
        del self._entries[entry.session.id]
        self._away.pop(entry, None)
        entry.stream.keeps_nothing()
        machine = entry.stream.machine
        if machine.resumable:
            until = trio.current_time() + machine.grace
            stone = machine.tombstone(code or ResetCode.GONE, words)
            self._tombstones[entry.session.id] = until, _owner(entry.session.token), stone
            if len(self._tombstones) > _TOMBSTONES:
                self._tombstones.popitem(last=False)

    def find(self, session: str, token: Token | None) -> Entry | Tombstone | None:
        """The session, or what is left of it; None where this token has none of that id."""
        entry = self._entries.get(session)
        if entry is not None:
            return entry if _is_same(entry.session.token, token) else None
        until, owner, stone = self._tombstones.get(session, (0.0, b"", None))
        if stone is None or owner != _owner(token):
            return None
        if trio.current_time() > until:
            del self._tombstones[session]
            return None
        return stone

    def unknown(self) -> bytes:
        """What is said of a session that is not known here."""
        return gone(self.settings.node, self.started)

    # --- who is away ------------------------------------------------------------------------------

    def left(self, entry: Entry) -> None:
        """Its client was lost."""
        entry.away_since = trio.current_time()
        entry.client = entry.session.records.client
        self._away[entry] = None
        self.make_room()

    def returned(self, entry: Entry) -> None:
        """Its client is back."""
        entry.away_since = None
        self._away.pop(entry, None)

    @property
    def away(self) -> int:
        """How many sessions wait for their client."""
        return len(self._away)

    def _absent(self) -> Iterator[Entry]:
        """Those that have been away for long enough to count, the longest first."""
        latest = trio.current_time() - PATIENCE
        for entry in self._away:
            assert entry.away_since is not None
            if entry.away_since > latest:
                return
            yield entry

    def make_room(self) -> None:
        """End what is over the limits. To be called now and then: those who are away begin to count with time."""
        for owner, entries in self._by_owner().items():
            for _ in range(len(entries) - self.settings.max_detached_per_token):
                self._evict(_first_to_go(owner, entries))
        owners = self._by_owner()
        for _ in range(sum(map(len, owners.values())) - self.settings.max_detached):
            owner = max(owners, key=lambda each: len(owners[each]))
            self._evict(_first_to_go(owner, owners[owner]))

    def give_place(self, token: Token | None, client: str) -> bool:
        """End the session of this token that has been away longest, those of this client first; False: none may go."""
        mine = self._by_owner().get(_owner(token))
        if not mine:
            return False
        self._evict(next((entry for entry in mine if entry.client == client), mine[0]))
        return True

    def _by_owner(self) -> dict[bytes, list[Entry]]:
        owners: dict[bytes, list[Entry]] = {}
        for entry in self._absent():
            owners.setdefault(_owner(entry.session.token), []).append(entry)
        return owners

    def _evict(self, entry: Entry) -> None:
        self._away.pop(entry, None)
        entry.session.lifetime.end("its client was away, and its place was needed", Reason.EVICTED)
        entry.session.give_up_place()


def _first_to_go(owner: bytes, entries: list[Entry]) -> Entry:
    """Take out who makes room: of the client that has most of these, the one that has been away longest.

    Without tokens anybody may leave any number: there the newest goes, so that a flood drives nobody out.
    """
    clients = Counter(entry.client for entry in entries)
    most = clients.most_common(1)[0][0]
    order = entries if owner else reversed(entries)
    entry = next(entry for entry in order if entry.client == most)
    entries.remove(entry)
    return entry


def _owner(token: Token | None) -> bytes:
    return b"" if token is None else token.digest


def _is_same(owner: Token | None, token: Token | None) -> bool:
    """Whether both are the same token; one that was given a new secret keeps its name."""
    if owner is None or token is None:
        return owner is token
    return owner.digest == token.digest or (bool(owner.name) and owner.name == token.name)
