"""Open listening sockets, and accept connections from them.

trio's own `serve_listeners` sleeps and logs a traceback for each listener when descriptors run out, and it cannot
accept what is queued before it closes. This loop logs one line for a shortage, and accepts what is queued.
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

# The queue of a listening socket is as long as the kernel allows: Linux cuts this to net.core.somaxconn, 4096 by
# default.
BACKLOG = 65535
# How many connections to accept in one turn of the event loop. Every busy tunnel moves bytes in each turn. With one
# connection a turn, a login behind a thousand others would have to wait for a thousand turns of all these tunnels.
_AT_ONCE = 16
# How long, in seconds, to wait before the next attempt to accept when no descriptor is free.
_EXHAUSTED_PAUSE = 0.1
# Under load every freed descriptor is taken at once: log the shortage at most once in this many seconds.
_EXHAUSTED_SILENCE = 60.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: A callback that gets a connection and its peer's address. The address is None on a Unix socket: its peers have none.
Accepted = Callable[[socket.socket, TCPAddress | None], None]


class Listener:
    """One listening socket."""

    def __init__(self, sock: socket.socket, unix_path: str | None = None, *, shared: bool = False) -> None:
        """`unix_path` is the path of a Unix socket, which `close` removes.

        `shared`: another process, such as systemd, has the socket open too. It hands the socket to our successor, and
        with it the connections that we have not accepted.
        """
        sock.setblocking(False)
        self._socket = sock
        self._shared = shared
        self._unix_path = unix_path
        self._inode = os.stat(unix_path).st_ino if unix_path else None

    @property
    def address(self) -> Address:
        """The address on which it listens. If port 0 was asked for, the port is the one that the kernel chose."""
        name = self._socket.getsockname()
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            return TCPAddress(name[0], name[1])
        # The name is bytes if it is one of Linux's abstract names, which begin with a zero octet.
        return UnixAddress(name if isinstance(name, str) else name.decode(errors="replace").replace("\0", "@"))

    async def accept_forever(
        self,
        accepted: Accepted,
        give_way: Callable[[], None] | None = None,
        at_once: Callable[[], int] = lambda: _AT_ONCE,
    ) -> None:
        """Pass every connection and its peer's address to `accepted`, until cancelled.

        `give_way` is called when no descriptor is free for the next connection, and may free some. `at_once` returns
        how many connections may be accepted in this turn of the event loop.
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
                    continue  # this connection has failed already: accept(2) lists a dozen such errors
                now = trio.current_time()
                if not exhausted and now >= silent_until:
                    words = os.strerror(error.errno).lower()
                    if error.errno == errno.EMFILE:
                        words += " (raise ulimit -n, or a unit's LimitNOFILE=)"
                    logger.error("cannot accept connections: %s; retrying", words)
                    told, silent_until = True, now + _EXHAUSTED_SILENCE
                exhausted = True
                if give_way is not None:
                    give_way()
                await trio.sleep(_EXHAUSTED_PAUSE)

    def accept_queued(self, accepted: Accepted) -> bool:
        """Pass on the connections that are queued in the kernel. Return False if descriptors ran out before the last.

        A shared socket's queue is left to our successor.
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
        """Pass on all queued connections, as descriptors become free for them, and close."""
        while not self.accept_queued(accepted):  # noqa: ASYNC110  (nothing could set an event)
            await trio.sleep(_EXHAUSTED_PAUSE)
        self.close()

    def _accept(self) -> tuple[socket.socket, TCPAddress | None]:
        sock, peer = self._socket.accept()
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return sock, None
        # A socket for both families shows IPv4 peers as IPv4-mapped. We never make such a socket, but may inherit one.
        return sock, TCPAddress(peer[0].removeprefix("::ffff:") if "." in peer[0] else peer[0], peer[1])

    def close(self) -> None:
        """Stop listening, and remove a Unix socket's path, unless another process has taken it over."""
        self._socket.close()
        if self._unix_path is not None:
            try:
                if os.stat(self._unix_path).st_ino == self._inode:
                    os.unlink(self._unix_path)
            except OSError:
                pass


async def open_listeners(address: Address, unix_mode: int = 0o666) -> list[Listener]:
    """Listen on every address of the name; an empty host means every interface. Raises ListenError.

    `unix_mode` is the mode of a Unix socket. By default everybody on this machine may connect, as to a loopback port;
    the mode of its directory can narrow that.
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
                # A machine without IPv6 still resolves an empty host to :: as well; 0.0.0.0 is then enough.
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(family_hosts) > 1:
                    continue
                raise
            listeners.append(Listener(sock))
            # If the kernel chooses the port, it chooses one for the first socket, which the others then use.
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
            # On Windows, SO_REUSEADDR would let another program take over the port.
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
        # Setting the mode here is not too late: nobody can connect before the socket listens.
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that has ended, but not a socket on which a process still listens."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)
