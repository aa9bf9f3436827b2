"""A session: a client's tunnel, apart from the connection that carries it.

It has the tunnel's id, the client's token, what that token allows, and how long the tunnel may live. It knows its
records, its byte counts and the place that it holds among the tunnels. It does not know its connection.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

import trio

from http2tcp.errors import LimitReached, TooManyRequests
from http2tcp.net.relay import Lifetime, Traffic
from http2tcp.server.audit import SessionRecords
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Outcome, Reason

if TYPE_CHECKING:
    from http2tcp.address import Address, TCPAddress
    from http2tcp.server.policy import Admission, Grant, Token
    from http2tcp.server.state import State


class Phase(Enum):
    """How far a session has come. A session goes through the phases in this order, but may skip OPEN."""

    #: There is no tunnel yet.
    REQUESTED = "requested"
    #: The target has accepted, and the tunnel carries bytes.
    OPEN = "open"
    #: The session has ended, and its outcome is recorded.
    OVER = "over"


class Session:
    """A client's tunnel, or its attempt to get one. It begins with a connection, and ends with one outcome."""

    __slots__ = ("_in_tunnels", "_opened_at", "_state", "grant", "lifetime", "phase", "records", "token")

    def __init__(self, state: State, peer: TCPAddress | None) -> None:
        """`peer` is the address that connected; None for a peer on a Unix socket."""
        self._state = state
        self.records = SessionRecords(peer, state.refusals, state.settings.node)
        #: Ends the tunnel from outside the relay: at a deadline, or at once.
        self.lifetime = Lifetime()
        self.phase = Phase.REQUESTED
        #: What the client may do; None until a destination is admitted.
        self.grant: Grant | None = None
        #: The client's token, as the last reload left it. None until a destination is admitted, or if the server needs
        #: no token.
        self.token: Token | None = None
        self._in_tunnels = False
        self._opened_at = 0.0

    @property
    def id(self) -> str:
        """The session's id, in the logs of the server and of the client."""
        return self.records.id

    @property
    def traffic(self) -> Traffic:
        """The bytes that the tunnel has carried."""
        return self.records.traffic

    def admit(self, grant: Grant, destination: Address) -> Admission:
        """Check the destination, and take a place among the tunnels. Raises Refusal.

        It may be called again, with another grant or destination, if a reload changes the rules.
        """
        admission = grant.admit(destination)
        # Give up the place of an earlier call: the new grant may have another token, for which tunnels are counted
        # separately.
        self._leave_tunnels()
        try:
            self._state.tunnels.enter(grant.token)
        except (LimitReached, TooManyRequests):
            # End a tunnel that waits for an absent client. The client may never come back, so the new tunnel is worth
            # more.
            if not self._state.resumption.give_place(grant.token, self.records.client):
                raise
            self._state.tunnels.enter(grant.token)
        self._in_tunnels = True
        self.grant, self.token = grant, grant.token
        return admission

    def open(self, dialled: Address, carrier: str, dial_time: float) -> None:
        """Open the session: the target accepted after `dial_time` seconds. From now on a session's limits apply."""
        self.phase = Phase.OPEN
        self.records.opened(dialled, carrier, dial_time)
        self._state.metrics.opened(self.traffic, carrier)
        self._state.sessions.add(self)
        self._opened_at = trio.current_time()
        self.limit_lifetime()
        idle = self._state.limits.idle_timeout
        if idle is not None:
            self.lifetime.idle(idle, f"no byte went either way for {idle:g} s", Reason.IDLE)

    def over(self, outcome: Outcome) -> None:
        """Record and count the outcome, and give up the place among the tunnels. Only the first outcome counts."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        self._state.sessions.discard(self)
        self._leave_tunnels()
        self._state.metrics.over(outcome, self.traffic)
        self.records.over(outcome)

    def stopped(self) -> None:
        """Record that the server stopped, unless the session has an outcome already."""
        self.over(Ended(Reason.STOPPED) if self.phase is Phase.OPEN else Abandoned(NoSession.STOPPED))

    def settings_changed(self) -> None:
        """Apply new settings: end an open session that they no longer allow, and compute its deadlines anew."""
        state = self._state
        if not state.settings.keep_sessions:
            if self.token is not None:
                token = state.policy.find(self.token)
                if token is None:
                    self.lifetime.end("the token was taken away", Reason.REVOKED)
                else:
                    self.token = token
            elif state.policy.asks_for_token:
                self.lifetime.end("a token is needed now, and this session has none", Reason.REVOKED)
        self.limit_lifetime()

    def limit_lifetime(self) -> None:
        """Set the latest time at which the session ends, from everything that may end it."""
        limits = self._state.limits
        self.lifetime.renew()
        self.lifetime.until(self._state.ends_at, "the server was stopped", Reason.STOPPED)
        if limits.max_session is not None:
            words = f"a session lasts {limits.max_session:g} s at most"
            self.lifetime.until(self._opened_at + limits.max_session, words, Reason.MAX_SESSION)
        self.limit_by_expiry()

    def limit_by_expiry(self) -> None:
        """End the session when its token expires, according to the wall clock's present time.

        The server calls this regularly, since the wall clock may be set. If it is set forward, the session ends
        earlier; if it is set back, the session does not end later.
        """
        if self.token is not None and not self._state.settings.keep_sessions:
            left = self.token.expires - time.time()
            self.lifetime.until(trio.current_time() + left, "the token has expired", Reason.EXPIRED)

    def give_up_place(self) -> None:
        """Give up the place among the tunnels, since a new tunnel needs it and this session is about to end."""
        self._leave_tunnels()

    def _leave_tunnels(self) -> None:
        if self._in_tunnels:
            assert self.grant is not None
            self._state.tunnels.leave(self.grant.token)
            self._in_tunnels = False
