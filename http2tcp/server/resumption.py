"""The resumable sessions of a server: which clients are away, which may come back, and which sessions to evict.

The task of the connection that opened a session runs its relay and its records, and goes on while the client is away.
The task of a later connection that proves the session hands its stream over to it (`net.resumable`), and waits until
the session no longer uses that stream. Nothing here does I/O.
"""

from __future__ import annotations

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

# How many sessions are remembered after they are over, for a client that lost its connection before it knew. Each takes
# about 450 bytes.
_TOMBSTONES = 1000
# How many attempts at one session may be under way. One more cancels the oldest. Anybody who shares the token can begin
# any number of attempts, but must not keep out the session's own client, which needs one round trip to prove itself.
ATTEMPTS = 8
# A session counts as absent, and can be evicted, only after its client has been away for this many seconds: when a
# front end restarts, all of its clients are away for a moment.
PATIENCE = 120.0
# How many bytes every session may keep, however much the others keep.
_OWN = 64 * 1024


class Session(Protocol):
    """The part of `http2tcp.server.session.Session` that this module uses."""

    token: Token | None
    lifetime: Lifetime
    records: SessionRecords

    @property
    def id(self) -> str:
        """The session's id, as it appears in the logs of both sides."""

    def give_up_place(self) -> None:
        """Free the session's place among the tunnels that are counted."""


@dataclass(eq=False, slots=True)
class Entry:
    """One resumable session."""

    session: Session
    stream: ResumableStream
    #: The client's address, as the session's records have it.
    client: str
    #: The cancel scopes of the attempts that have not proved the session yet, the oldest first.
    attempts: list[trio.CancelScope] = field(default_factory=list)
    #: When the client was lost, on trio's clock; None while the client is connected.
    away_since: float | None = None


class Memory:
    """Counts the bytes that all sessions keep, by token. Beyond its own 64 KiB, a session shares its token's part."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._by_token: Counter[bytes] = Counter()

    def keeps(self, token: bytes, change: int) -> None:
        """A session of this token keeps `change` more bytes than before (fewer if negative)."""
        self.used += change
        self._by_token[token] += change
        if not self._by_token[token]:
            del self._by_token[token]

    def left(self, token: bytes) -> int:
        """How many more bytes the sessions of this token may keep. All tokens that keep bytes have equal shares."""
        sharing = len(self._by_token) + (token not in self._by_token)
        # If only one token keeps bytes, it leaves an eighth for tokens that may come.
        share = self.total * 7 // 8 if sharing == 1 else self.total // sharing
        return max(0, min(share - self._by_token[token], self.total - self.used))


class Account:
    """Counts the bytes that one session keeps, as a part of the `Memory` of all sessions."""

    __slots__ = ("_counted", "_memory", "_token")

    def __init__(self, memory: Memory, token: bytes) -> None:
        self._memory = memory
        self._token = token
        self._counted = 0

    def settle(self, machine: Resumable) -> None:
        """Count the bytes that the session keeps now, and set how many it may keep."""
        change = machine.out.held - self._counted
        if change:
            self._memory.keeps(self._token, change)
            self._counted += change
        machine.keep_at_most = max(_OWN, machine.out.held + self._memory.left(self._token))

    def close(self) -> None:
        """The session no longer keeps bytes: count 0."""
        self._memory.keeps(self._token, -self._counted)
        self._counted = 0


class Resumption:
    """All resumable sessions of a server, and the tombstones of those that are over."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.started = int(time.time())
        self.memory = Memory(settings.resume_memory)
        self._entries: dict[str, Entry] = {}
        self._tombstones: OrderedDict[str, tuple[float, bytes, Tombstone]] = OrderedDict()
        #: Sessions whose client is away, the one that has been away longest first.
        self._away: OrderedDict[Entry, None] = OrderedDict()

    def configure(self, settings: ServerSettings) -> None:
        """Use new settings for new sessions. Their limits also apply at once to the sessions that are away."""
        self.settings = settings
        self.memory.total = settings.resume_memory
        self.make_room()

    # --- sessions ---------------------------------------------------------------------------------

    def offer(self, session: Session, *, keepalive: float, confirms: bool, idle_timeout: float | None) -> Resumable:
        """Make the machine of a new session."""
        terms = Terms(
            keepalive=int(keepalive * 1000),
            window=self.settings.resume_window,
            grace=int(self.settings.resume),
            idle_timeout=None if idle_timeout is None else int(idle_timeout),
        )
        return Resumable.offer(session.id, secrets.token_bytes(KEY_SIZE), terms, confirms=confirms)

    def account(self, session: Session) -> Account:
        """Make the account that counts the bytes that the session keeps."""
        return Account(self.memory, _owner(session.token))

    def add(self, entry: Entry) -> None:
        """Add a session that begins."""
        self._entries[entry.session.id] = entry

    def remove(self, entry: Entry, code: int, words: str) -> None:
        """Remove a session that is over. `code` and `words` are for its client, if that comes back all the same."""
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
        """Find a session, or its tombstone, by id; None if no session of this token has the id."""
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
        """The RESET that answers a request for a session that this server does not know."""
        return gone(self.settings.node, self.started)

    # --- who is away ------------------------------------------------------------------------------

    def left(self, entry: Entry) -> None:
        """Record that the client of a session was lost."""
        entry.away_since = trio.current_time()
        entry.client = entry.session.records.client
        self._away[entry] = None
        self.make_room()

    def returned(self, entry: Entry) -> None:
        """Record that the client of a session is back."""
        entry.away_since = None
        self._away.pop(entry, None)

    @property
    def away(self) -> int:
        """How many sessions wait for their client."""
        return len(self._away)

    def _absent(self) -> Iterator[Entry]:
        """Yield the sessions that have been away for `PATIENCE` or longer, the longest absence first."""
        latest = trio.current_time() - PATIENCE
        for entry in self._away:
            assert entry.away_since is not None
            if entry.away_since > latest:
                return
            yield entry

    def make_room(self) -> None:
        """Evict the sessions that are over the limits. Call it regularly: sessions become absent as time passes."""
        for owner, entries in self._by_owner().items():
            for _ in range(len(entries) - self.settings.max_detached_per_token):
                self._evict(_first_to_go(owner, entries))
        owners = self._by_owner()
        for _ in range(sum(map(len, owners.values())) - self.settings.max_detached):
            owner = max(owners, key=lambda each: len(owners[each]))
            self._evict(_first_to_go(owner, owners[owner]))

    def give_place(self, token: Token | None, client: str) -> bool:
        """Evict this token's longest absent session, one of this client if possible. Return whether there was one."""
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
    """Choose the session to evict and remove it from `entries`: the longest absent one of the client that has most.

    Without tokens, anybody can leave any number of sessions behind. Then choose that client's newest absent session, so
    that a flood does not drive out older sessions.
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
    """Whether both are the same token. A token that was given a new secret is recognized by its name."""
    if owner is None or token is None:
        return owner is token
    return owner.digest == token.digest or (bool(owner.name) and owner.name == token.name)
