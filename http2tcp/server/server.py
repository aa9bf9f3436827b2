"""The server: it listens, starts a `Connection` for each client, and drains.

Draining needs two nurseries: the nursery that accepts connections lies inside the nursery that serves them. To drain,
the server cancels the inner nursery and gives the outer one a deadline.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from http2tcp.address import Address, TCPAddress, is_loopback
from http2tcp.net.listen import Listener, open_listeners
from http2tcp.net.streams import SocketStream
from http2tcp.server.connection import Connection
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import State

logger = logging.getLogger("http2tcp.server")

# How many seconds pass between checks of open sessions against the wall clock. Tokens expire by the wall clock, which
# may be set forward.
_WALL_CLOCK = 30.0
# How many seconds pass between log lines that sum up the refusals without a line of their own.
_SUM = 60.0
# After the grace, how many seconds a relay may take to tell client and target why the tunnel ends.
_LAST_WORDS = 1.0


async def serve(
    settings: ServerSettings,
    *,
    drain: trio.Event | None = None,
    task_status: trio.TaskStatus[Sequence[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve tunnels until cancelled, or until `drain` is set and the sessions are over.

    Start it with `nursery.start`, which returns the listening addresses once connections are accepted. After `drain`,
    the server still accepts the connections that wait in the kernel's queue, but no later ones. It serves all of them
    as usual, and they have `settings.grace` seconds to end. Raises ListenError.
    """
    await Server(settings).run(drain=drain, task_status=task_status)


class Server:
    """Listens, starts a `Connection` for each client, and drains."""

    def __init__(
        self, settings: ServerSettings, *, listeners: Sequence[Listener] = (), admin_listeners: Sequence[Listener] = ()
    ) -> None:
        """`listeners`, if given, replace the listening addresses of the settings.

        `admin_listeners` serve metrics and health, in addition to `settings.admin`. The server closes all listeners at
        the end.
        """
        self._listeners, self._admin_listeners = list(listeners), list(admin_listeners)
        self.state = State(settings)
        self.admin_addresses: Sequence[Address] = ()

    async def run(
        self,
        *,
        drain: trio.Event | None = None,
        task_status: trio.TaskStatus[Sequence[Address]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve tunnels: see the function `serve`."""
        drain = trio.Event() if drain is None else drain
        listeners = self._listeners
        try:
            for address in () if listeners else self.state.settings.addresses:
                listeners += await open_listeners(address)
            async with self._observed(), self._watched(), trio.open_nursery() as sessions:

                def accepted(sock: socket.socket, peer: TCPAddress | None) -> None:
                    self.state.metrics.accepted.add()
                    sessions.start_soon(Connection(self.state, SocketStream(sock), peer).run)

                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(
                            listener.accept_forever,
                            accepted,
                            self.state.unauthenticated.give_way,
                            self.state.unauthenticated.at_once,
                        )
                    task_status.started([listener.address for listener in listeners])
                    await drain.wait()
                    accepting.cancel_scope.cancel()
                self.state.draining = True
                for listener in listeners:
                    if listener.accept_queued(accepted):
                        listener.close()
                    else:
                        # Out of descriptors: accept the queued connections later, as sessions end and free descriptors.
                        sessions.start_soon(listener.accept_rest, accepted)
                self.state.ends_at = trio.current_time() + self.state.settings.grace
                for session in self.state.sessions:
                    session.limit_lifetime()
                # Each session ends with its lifetime. This deadline ends connections that have no open tunnel by then.
                sessions.cancel_scope.deadline = self.state.ends_at + _LAST_WORDS
        finally:
            for listener in listeners:
                listener.close()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Run the periodic tasks until the last session has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_wall_clock)
            nursery.start_soon(self._sum_up_refusals)
            try:
                yield
            finally:
                self.state.refusals.sum_up()
            nursery.cancel_scope.cancel()

    async def _follow_wall_clock(self) -> None:
        while True:
            await trio.sleep(_WALL_CLOCK)
            for session in list(self.state.sessions):
                session.limit_by_expiry()
            # A session whose client is away counts against the limits only after a while, so check them regularly.
            self.state.resumption.make_room()

    async def _sum_up_refusals(self) -> None:
        while True:
            await trio.sleep(_SUM)
            self.state.refusals.sum_up()

    @asynccontextmanager
    async def _observed(self) -> AsyncIterator[None]:
        """Serve the admin listener, if there is one, until the last session has ended. Raises ListenError."""
        listeners = self._admin_listeners
        if self.state.settings.admin is None and not listeners:
            yield
            return
        from http2tcp.server.admin import serve_admin
        from http2tcp.server.footprint import footprint
        from http2tcp.server.metrics import families

        own: list[str] = []
        if self.state.settings.admin is not None:
            if isinstance(self.state.settings.admin, TCPAddress):
                own.append(self.state.settings.admin.host)
            listeners += await open_listeners(self.state.settings.admin)
        self.admin_addresses = [listener.address for listener in listeners]
        logger.info("metrics and health on %s", " and ".join(map(str, self.admin_addresses)))
        for address in self.admin_addresses:
            if isinstance(address, TCPAddress) and not is_loopback(address.host):
                logger.warning(
                    "--admin needs no token, and other machines can reach %s: restrict it with a firewall", address
                )
        try:
            async with trio.open_nursery() as nursery:
                shown = [*families(self.state), *footprint()]
                nursery.start_soon(
                    serve_admin, listeners, shown, self.state.unready, lambda: [*own, *self.state.settings.admin_names]
                )
                yield
                nursery.cancel_scope.cancel()
        finally:
            for listener in listeners:
                listener.close()
