"""The state that all connections of one server share: its settings, limits, counters and open sessions.

Connections read and change the state, and do not know the server that started them. `reload` replaces the settings and
everything made from them, and then applies them to each open session.
"""

from __future__ import annotations

import logging
import math
import ssl
import sys
import time
from typing import NamedTuple, Protocol

import trio

from http2tcp.net.descriptors import allowed
from http2tcp.net.dial import LookUpLimiter, LookUps
from http2tcp.server.audit import Refusals
from http2tcp.server.counters import Metrics
from http2tcp.server.limits import Failures, Limits, Tunnels, Unauthenticated, share
from http2tcp.server.policy import Policy, Token
from http2tcp.server.resumption import Resumption
from http2tcp.server.settings import ServerSettings

logger = logging.getLogger("http2tcp.server")


class Evictable(Protocol):
    """The part of a connection that the limit of unauthenticated connections needs."""

    def evict(self) -> None:
        """Close the connection, since another connection needs its place."""


class OpenSession(Protocol):
    """The part of an open session that reloads, draining and the wall clock need."""

    def limit_lifetime(self) -> None:
        """Set the latest time at which the session ends, from everything that may end it."""

    def limit_by_expiry(self) -> None:
        """Compare the expiry of the session's token with the wall clock again."""

    def settings_changed(self) -> None:
        """End the session if the new settings no longer allow it, and compute its deadlines anew."""


class Prepared(NamedTuple):
    """Settings, and the policy and the TLS context made from them, which new connections use."""

    settings: ServerSettings
    policy: Policy
    #: The context for the TLS handshake. None: connections speak plain http.
    tls: ssl.SSLContext | None


def prepare(settings: ServerSettings) -> Prepared:
    """Make the policy, and read the certificate. While a server runs, call it in a thread: disks may be slow.

    Raises SettingsError.
    """
    policy = Policy(settings.tokens, settings.destination, allow=settings.allow, deny=settings.deny)
    return Prepared(settings, policy, _tls(settings))


class State:
    """The state that all connections of one server share."""

    def __init__(self, settings: ServerSettings) -> None:
        """Make the state of a new server. Raises SettingsError."""
        self.limits = _limits(settings)
        self.unauthenticated: Unauthenticated[Evictable] = Unauthenticated(
            self.limits, lambda connection: connection.evict()
        )
        self.tunnels = Tunnels(self.limits)
        self.failures = Failures(self.limits)
        #: The open sessions.
        self.sessions: set[OpenSession] = set()
        #: When open sessions must end because the server stops, on trio's clock: when draining begins, the end of the
        #: grace; until then, infinity.
        self.ends_at = math.inf
        self.draining = False
        self.metrics = Metrics(time.time())
        #: Decides which refusals of unauthenticated clients get a line in the log.
        self.refusals = Refusals()
        self.settings, self.policy, self.tls = prepare(settings)
        self.tunnels.tokens = len(self.policy.tokens)
        self.look_ups = LookUps()
        #: The sessions that can be resumed.
        self.resumption = Resumption(settings)

    def reload(self, prepared: Prepared) -> None:
        """Put new settings in force. The listening addresses stay the same.

        `max_session` and the tokens' expiries apply to open sessions, too. An open session ends if its token was
        removed, or if it has no token and needs one now; with `settings.keep_sessions` it goes on. The rules and all
        other limits apply to sessions that open later, that is, whose target accepts later. The certificate, timeouts
        and trusted proxies apply to connections that are accepted later.
        """
        self.settings, self.policy, self.tls = prepared
        limits = _limits(prepared.settings)
        self.limits = self.unauthenticated.limits = self.tunnels.limits = self.failures.limits = limits
        self.tunnels.tokens = len(self.policy.tokens)
        self.resumption.configure(prepared.settings)
        for session in list(self.sessions):
            session.settings_changed()
        self.metrics.reloaded(time.time())

    def look_up_limiter(self, token: Token | None) -> LookUpLimiter | None:
        """Return the limiter of one token's look-ups; None if only the number of shared threads limits them."""
        if token is None or self.tunnels.tokens < 2:
            return None
        total = trio.to_thread.current_default_thread_limiter().total_tokens
        return self.look_ups.of(token.digest, share(int(min(total, sys.maxsize))))

    def unready(self) -> str:
        """Return why the server opens no new tunnel now; "" if it does open new tunnels."""
        if self.draining:
            return "draining"
        if self.tunnels.full:
            return f"the limit of tunnels is reached: {len(self.tunnels)} are open"
        return ""


def _tls(settings: ServerSettings) -> ssl.SSLContext | None:
    """Read the certificate and make the TLS context; None for plain http. Raises SettingsError."""
    if settings.tls is None:
        return None
    from http2tcp.net.tls_server import server_context

    return server_context(settings.tls.certificate, settings.tls.key)


def _limits(settings: ServerSettings) -> Limits:
    asked, descriptors = settings.limits or Limits(), allowed()
    limits = asked.within(descriptors)
    if asked.max_tunnels is not None and limits.max_tunnels != asked.max_tunnels:
        words = "--max-tunnels is lowered to %d from %d: the process may open only %d files (ulimit -n, LimitNOFILE=)"
        logger.warning(words, limits.max_tunnels, asked.max_tunnels, descriptors)
    return limits
