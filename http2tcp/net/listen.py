"""Listening: sockets to accept from, and the loop that accepts.

trio's own `serve_listeners` sleeps and logs a traceback per listener when descriptors run out, and
cannot take what is queued before it closes. This one does neither.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import stat
from collections.abc import Callable

import trio

from http2tcp.address import Address, TCPAddress, UnixAddress
from http2tcp.errors import ListenError

logger = logging.getLogger("http2tcp.listen")

# The kernel cuts it to net.core.somaxconn, 4096 by default.
BACKLOG = 65535
# Connections taken in one turn of the loop, in which every tunnel that is busy has its turn too. With one a turn, a
# login behind a thousand others would wait for a thousand turns of all tunnels.
_AT_ONCE = 16
# How long to wait for a descriptor to become free.
_EXHAUSTED_PAUSE = 0.1
# In a crowd each one that becomes free is gone at once, and that is no news.
_EXHAUSTED_SILENCE = 60.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: A connection, and whom it comes from; None: by a Unix socket, where peers have no address.
Accepted = Callable[[socket.socket, TCPAddress | None], None]


class Listener:
    """One listening socket."""

    def __init__(self, sock: socket.socket, unix_path: str | None = None, *, shared: bool = False) -> None:
        """`unix_path` is taken away at the end.

        A socket that is `shared` stays open elsewhere: who holds it gives it to our successor, and with it all
        connections that we have not accepted.
        """
        sock.setblocking(False)
        self._socket = sock
        self._shared = shared
        self._unix_path = unix_path
        self._inode = os.stat(unix_path).st_ino if unix_path else None

    @property
    def address(self) -> Address:
        """What it listens on; the port is the real one where 0 was asked for."""
        name = self._socket.getsockname()
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            return TCPAddress(name[0], name[1])
        # Bytes where Linux has an abstract name, which begins with a zero octet.
        return UnixAddress(name if isinstance(name, str) else name.decode(errors="replace").replace("\0", "@"))

    async def accept_forever(
        self,
        accepted: Accepted,
        give_way: Callable[[], None] | None = None,
        at_once: Callable[[], int] = lambda: _AT_ONCE,
    ) -> None:
        """Hand every connection and its peer's name to `accepted`, until cancelled.

        `give_way` is called where there is no descriptor for the next one, and may free some; `at_once` says how many
        are taken at most in one turn of the loop.
        """
        exhausted = told = False
        silent_until = -math.inf
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                for _ in range(at_once()):
                    accepted(*self._accept())
                    if exhausted and told:
                        logger.warning("connections can be accepted again")
                        told = False
                    exhausted = False
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # that connection is gone already: accept(2) names a dozen ways
                now = trio.current_time()
                if not exhausted and now >= silent_until:
                    words = os.strerror(error.errno).lower()
                    if error.errno == errno.EMFILE:
                        words += " (raise ulimit -n, or a unit's LimitNOFILE=)"
                    logger.error("no connection can be accepted: %s; trying on", words)
                    told, silent_until = True, now + _EXHAUSTED_SILENCE
                exhausted = True
                if give_way is not None:
                    give_way()
                await trio.sleep(_EXHAUSTED_PAUSE)

    def accept_queued(self, accepted: Accepted) -> bool:
        """Hand on what the kernel has accepted already; False where descriptors ran out before the last.

        What is queued at a shared socket is left for the successor.
        """
        while not self._shared:
            try:
                accepted(*self._accept())
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    return False
        return True

    async def accept_rest(self, accepted: Accepted) -> None:
        """Hand on what is queued as descriptors become free, and close."""
        while not self.accept_queued(accepted):  # noqa: ASYNC110  (nothing could set an event)
            await trio.sleep(_EXHAUSTED_PAUSE)
        self.close()

    def _accept(self) -> tuple[socket.socket, TCPAddress | None]:
        sock, peer = self._socket.accept()
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return sock, None
        # A socket for both families, which only who hands us one makes, shows IPv4 peers as mapped.
        return sock, TCPAddress(peer[0].removeprefix("::ffff:") if "." in peer[0] else peer[0], peer[1])

    def close(self) -> None:
        """Stop listening; a Unix socket's path goes too, unless another process has taken it over."""
        self._socket.close()
        if self._unix_path is not None:
            try:
                if os.stat(self._unix_path).st_ino == self._inode:
                    os.unlink(self._unix_path)
            except OSError:
                pass


async def open_listeners(address: Address, unix_mode: int = 0o666) -> list[Listener]:
    """Listen on every address of the name; an empty host is every interface. Raises ListenError.

    `unix_mode` is a Unix socket's; by default it is as open as a loopback port, and its directory says who may
    reach it.
    """
    try:
        if isinstance(address, UnixAddress):
            return [Listener(_listen_unix(address.path, unix_mode), address.path)]
        return await _open_tcp_listeners(address)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}") from error


async def _open_tcp_listeners(address: TCPAddress) -> list[Listener]:
    try:
        family_hosts = await trio.socket.getaddrinfo(
            address.host.encode("ascii") or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except UnicodeError as error:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from error
    listeners: list[Listener] = []
    port = address.port
    try:
        for family, _, _, _, sockaddr in dict.fromkeys(family_hosts):
            try:
                sock = _listen_tcp(family, (sockaddr[0], port, *sockaddr[2:]))
            except OSError as error:
                # A host without IPv6 still resolves ::, and one may be enough.
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(family_hosts) > 1:
                    continue
                raise
            listeners.append(Listener(sock))
            # All of them share the port that the first one got.
            port = port or sock.getsockname()[1]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return listeners


def _listen_tcp(family: int, sockaddr: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            # On Windows SO_REUSEADDR would let another program take the port over.
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_unix(path: str, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # Nobody can connect before it listens.
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone. One that still answers stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)
