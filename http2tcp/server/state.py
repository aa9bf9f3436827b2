"""What the connections of one server share: its settings, limits, counters and open sessions.

Connections read and change it, and do not know the server that started them. `reload` replaces the settings and
everything made from them, and tells each open session.
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
    """A connection, as far as the limit of unauthenticated connections goes."""

    def evict(self) -> None:
        """Close it, since others need its place."""


class OpenSession(Protocol):
    """A session, as far as reloads and the clock go."""

    def limit_lifetime(self) -> None:
        """Set the latest time at which it ends, from everything that may end it."""

    def limit_by_expiry(self) -> None:
        """Compare its token's expiry with the wall clock again."""

    def settings_changed(self) -> None:
        """End it where the new settings no longer allow it, and take new times."""


class Prepared(NamedTuple):
    """Settings, and what is made from them for new connections."""

    settings: ServerSettings
    policy: Policy
    #: For the TLS handshake; None: connections speak plain http.
    tls: ssl.SSLContext | None


def prepare(settings: ServerSettings) -> Prepared:
    """Make the policy, and read the certificate. Call it in a thread where a server runs: disks may be slow.

    Raises SettingsError.
    """
    policy = Policy(settings.tokens, settings.destination, allow=settings.allow, deny=settings.deny)
    return Prepared(settings, policy, _tls(settings))


class State:
    """What connections share."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises SettingsError."""
        self.limits = _limits(settings)
        self.unauthenticated: Unauthenticated[Evictable] = Unauthenticated(
            self.limits, lambda connection: connection.evict()
        )
        self.tunnels = Tunnels(self.limits)
        self.failures = Failures(self.limits)
        #: The open sessions.
        self.sessions: set[OpenSession] = set()
        #: When open sessions end because the server stops: after the grace that begins with draining.
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
        """Take new settings. The listening addresses stay.

        Open sessions: `max_session` and the tokens' expiries apply to them too. A session ends where its token was
        removed, or where it has no token and one is needed now, unless `settings.keep_sessions`. The rules and all
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
        """The limiter of one token's look-ups; None where they are limited by the shared threads only."""
        if token is None or self.tunnels.tokens < 2:
            return None
        total = trio.to_thread.current_default_thread_limiter().total_tokens
        return self.look_ups.of(token.digest, share(int(min(total, sys.maxsize))))

    def unready(self) -> str:
        """Why the server takes no new tunnel now; "" where it does."""
        if self.draining:
            return "draining"
        if self.tunnels.full:
            return f"the limit of tunnels is reached: {len(self.tunnels)} are open"
        return ""


def _tls(settings: ServerSettings) -> ssl.SSLContext | None:
    """Raises SettingsError."""
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
