"""Serving: listen, share, reload, drain. A tunnel's whole life is `Connection.run`, in connection.py.

Draining is the shape of the nurseries: the accepting one lies inside the sessions' one and is cancelled; the
sessions get a deadline.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from http2tcp.address import Address, TCPAddress, is_loopback
from http2tcp.audit import Refusals
from http2tcp.connection import Connection
from http2tcp.counters import Metrics
from http2tcp.descriptors import allowed
from http2tcp.limits import Failures, Limits, Tunnels, Waiting, share
from http2tcp.net.dial import LookUpLimiter, LookUps
from http2tcp.net.listen import Listener, open_listeners
from http2tcp.net.streams import SocketStream
from http2tcp.policy import Policy, Token
from http2tcp.server_settings import ServerSettings

logger = logging.getLogger(__name__)

# How often the wall clock is looked at, by which tokens expire: it may be put forward while sessions are open.
_WALL_CLOCK = 30.0
# What strangers were refused is summed up so often.
_SUM = 60.0
# What a relay gets beyond the grace to tell its peers that it is over.
_LAST_WORDS = 1.0


async def serve(
    settings: ServerSettings,
    *,
    drain: trio.Event | None = None,
    task_status: trio.TaskStatus[Sequence[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve tunnels until cancelled, or until `drain` is set and the sessions are over.

    Start it with `nursery.start`, which returns the addresses listened on once connections are taken.
    After `drain` no connection is accepted but those that the kernel has accepted already; all accepted
    ones are served as usual and have `settings.grace` seconds. Raises ListenError.
    """
    await Server(settings).run(drain=drain, task_status=task_status)


class Prepared(NamedTuple):
    """Settings, and what is made of them for new connections."""

    settings: ServerSettings
    policy: Policy
    #: With what they shake hands; None: they speak plain http.
    tls: ssl.SSLContext | None


def prepare(settings: ServerSettings) -> Prepared:
    """Read the certificate. A disk may be slow: where a server runs already, in a thread. Raises SettingsError."""
    policy = Policy(settings.tokens, settings.destination, allow=settings.allow, deny=settings.deny)
    return Prepared(settings, policy, _tls(settings))


class Server:
    """A server, and what its connections share."""

    def __init__(
        self, settings: ServerSettings, *, listeners: Sequence[Listener] = (), admin_listeners: Sequence[Listener] = ()
    ) -> None:
        """Listeners that somebody else has opened take the place of the settings'. They are closed at the end."""
        self._listeners, self._admin_listeners = list(listeners), list(admin_listeners)
        self.limits = _limits(settings)
        self.waiting: Waiting[Connection] = Waiting(self.limits, Connection.push_out)
        self.tunnels = Tunnels(self.limits)
        self.failures = Failures(self.limits)
        #: The open sessions.
        self.sessions: set[Connection] = set()
        #: When they end: the grace after `drain`.
        self.ends_at = math.inf
        self.draining = False
        self.metrics = Metrics(time.time())
        #: Which of what strangers are refused is in the log.
        self.refusals = Refusals()
        self.admin_addresses: Sequence[Address] = ()
        self.settings, self.policy, self.tls = prepare(settings)
        self.tunnels.tokens = len(self.policy.tokens)
        self.look_ups = LookUps()

    def reload(self, prepared: Prepared) -> None:
        """Take new settings. Where it listens stays as it is.

        The longest time of a session and the tokens' times count for open sessions too, and a session whose token
        is gone ends, or that has none where one is needed now, unless `settings.keep_sessions`. All else is asked
        when a session opens only, which is when its target has accepted; the certificate, of new connections.
        """
        self.settings, self.policy, self.tls = prepared
        limits = _limits(prepared.settings)
        self.limits = self.waiting.limits = self.tunnels.limits = self.failures.limits = limits
        self.tunnels.tokens = len(self.policy.tokens)
        for session in list(self.sessions):
            session.settings_changed()
        self.metrics.reloaded(time.time())

    def look_up_limiter(self, token: Token | None) -> LookUpLimiter | None:
        """What a token's look-ups wait for, beside the threads that all share; None: for these alone."""
        if token is None or self.tunnels.tokens < 2:
            return None
        total = trio.to_thread.current_default_thread_limiter().total_tokens
        return self.look_ups.of(token.digest, share(int(min(total, sys.maxsize))))

    def unready(self) -> str:
        """Why it takes no tunnel now; empty where it does."""
        if self.draining:
            return "draining"
        if self.tunnels.full:
            return f"all of its tunnels are open: {len(self.tunnels)}"
        return ""

    async def run(
        self,
        *,
        drain: trio.Event | None = None,
        task_status: trio.TaskStatus[Sequence[Address]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `serve`."""
        drain = trio.Event() if drain is None else drain
        listeners = self._listeners
        try:
            for address in () if listeners else self.settings.addresses:
                listeners += await open_listeners(address)
            async with self._observed(), self._watched(), trio.open_nursery() as sessions:

                def accepted(sock: socket.socket, peer: TCPAddress | None) -> None:
                    self.metrics.accepted.add()
                    sessions.start_soon(Connection(self, SocketStream(sock), peer).run)

                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(
                            listener.accept_forever, accepted, self.waiting.give_way, self.waiting.at_once
                        )
                    task_status.started([listener.address for listener in listeners])
                    await drain.wait()
                    accepting.cancel_scope.cancel()
                self.draining = True
                for listener in listeners:
                    if listener.accept_queued(accepted):
                        listener.close()
                    else:
                        # Out of descriptors: as sessions end, what is queued gets theirs.
                        sessions.start_soon(listener.accept_rest, accepted)
                self.ends_at = trio.current_time() + self.settings.grace
                for session in self.sessions:
                    session.limit_term()
                # Those that are not open by then.
                sessions.cancel_scope.deadline = self.ends_at + _LAST_WORDS
        finally:
            for listener in listeners:
                listener.close()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """What goes by the minute is looked after, to the end of the last session."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_wall_clock)
            nursery.start_soon(self._sum_up_refusals)
            try:
                yield
            finally:
                self.refusals.sum_up()
            nursery.cancel_scope.cancel()

    async def _follow_wall_clock(self) -> None:
        while True:
            await trio.sleep(_WALL_CLOCK)
            for session in list(self.sessions):
                session.limit_by_expiry()

    async def _sum_up_refusals(self) -> None:
        while True:
            await trio.sleep(_SUM)
            self.refusals.sum_up()

    @asynccontextmanager
    async def _observed(self) -> AsyncIterator[None]:
        """What goes on inside can be asked for at the admin listener, to its end. Raises ListenError."""
        listeners = self._admin_listeners
        if self.settings.admin is None and not listeners:
            yield
            return
        from http2tcp.admin import serve_admin
        from http2tcp.footprint import footprint
        from http2tcp.metrics import families

        own: list[str] = []
        if self.settings.admin is not None:
            if isinstance(self.settings.admin, TCPAddress):
                own.append(self.settings.admin.host)
            listeners += await open_listeners(self.settings.admin)
        self.admin_addresses = [listener.address for listener in listeners]
        logger.info("metrics and health on %s", " and ".join(map(str, self.admin_addresses)))
        for address in self.admin_addresses:
            if isinstance(address, TCPAddress) and not is_loopback(address.host):
                logger.warning(
                    "--admin asks for no token, and other machines reach %s: let a firewall say who may", address
                )
        try:
            async with trio.open_nursery() as nursery:
                shown = [*families(self), *footprint()]
                nursery.start_soon(
                    serve_admin, listeners, shown, self.unready, lambda: [*own, *self.settings.admin_names]
                )
                yield
                nursery.cancel_scope.cancel()
        finally:
            for listener in listeners:
                listener.close()


def _tls(settings: ServerSettings) -> ssl.SSLContext | None:
    """Raises SettingsError."""
    if settings.tls is None:
        return None
    from http2tcp.net.tls_server import server_context

    return server_context(settings.tls.certificate, settings.tls.key)


def _limits(settings: ServerSettings) -> Limits:
    asked, descriptors = settings.limits or Limits(), allowed()
    limits = asked.within(descriptors)
    if asked.tunnels is not None and limits.tunnels != asked.tunnels:
        words = "--max-tunnels is %d and not %d: this process may have %d descriptors (ulimit -n, LimitNOFILE=)"
        logger.warning(words, limits.tunnels, asked.tunnels, descriptors)
    return limits
