"""Resolve and connect while the rest of the program is still being loaded.

Loading trio takes about as long as a name look-up and a round trip to a site. Threads do the look-up and begin to
connect while the main thread loads modules. Nothing here imports trio.

What `http2tcp.net.dial` must share with these threads is here too: the families, and how long the answer for one family
waits for the answer for the other.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

AddressInfo = tuple[Any, Any, int, str, Any]

# RFC 6761, section 6.3: localhost is loopback, whatever a name server says. Most tunnels ask for it, so it must not
# wait in the queue behind names that no server knows.
LOCALHOST = ("localhost", "localhost.")
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

#: The families that a name is looked up in, one look-up each (RFC 8305, section 3). A resolver that drops the
#: questions for one of them would hold up a look-up of both for many seconds.
FAMILIES = (socket.AF_INET, socket.AF_INET6)
# RFC 8305, section 3: how many seconds the answer of the first family waits for the answer of the other. IPv6 addresses
# do not wait if this machine prefers IPv6 for the name.
RESOLUTION_DELAY = 0.05


def other(family: socket.AddressFamily) -> socket.AddressFamily:
    """IPv4 for IPv6 and IPv6 for IPv4."""
    return socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6


def known_without_resolver(host: str, port: int) -> list[AddressInfo]:
    """The addresses of localhost, or of a host that is an IP address; empty for other names, which need a look-up."""
    if host in LOCALHOST:
        return [(family, socket.SOCK_STREAM, 0, "", (ip, port)) for family, ip in LOOPBACK]
    try:
        # Pass bytes: a str would go through the idna codec, whose import costs time and which accepts fewer names.
        return socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []


def look_up(host: str, port: int, family: socket.AddressFamily) -> list[AddressInfo]:
    """Ask the system's resolver for a name's addresses of one family. Blocks. Raises OSError or UnicodeError."""
    return socket.getaddrinfo(host.encode("ascii"), port, family, socket.SOCK_STREAM)


def prefers_ipv6(sockaddrs: Sequence[Any]) -> bool:
    """Whether to try IPv6 first for a name with these IPv6 addresses.

    False if this machine has no route to them, or if it would use a private source for a public address or the reverse.
    The resolver sorts by that too (RFC 6724, rules 1 and 5), but only if it is asked for both families.
    """
    if not sockaddrs:
        return False
    sockaddr = sockaddrs[0]
    try:
        # Connecting a datagram socket sends nothing: the kernel chooses the route and the source.
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(sockaddr)
            source = probe.getsockname()[0]
        return _is_private(source) == _is_private(sockaddr[0])
    except (OSError, ValueError):
        return False


def _is_private(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_private


class HeadStart:
    """Looks a name up at once, one thread for each family, and begins to connect to its first address."""

    def __init__(self, host: str, port: int) -> None:
        self._answers: dict[socket.AddressFamily, list[AddressInfo] | OSError | UnicodeError] = {}
        self._answered = {family: threading.Event() for family in FAMILIES}
        # A thread holds this lock while it reads or changes the three attributes below.
        self._lock = threading.Lock()
        self._begun: socket.socket | None = None
        self._begun_to: Any = None
        self._settled = False
        #: The host's addresses if no look-up was needed; otherwise empty.
        self.known = known_without_resolver(host, port)
        if self.known:
            self._begin(self.known)
            return
        for family in FAMILIES:
            threading.Thread(target=self._look_up, args=(host, port, family), daemon=True).start()

    def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> None:
        found: list[AddressInfo] = []
        try:
            self._answers[family] = found = look_up(host, port, family)
        except (OSError, UnicodeError) as error:
            self._answers[family] = error
        if family == socket.AF_INET6 and prefers_ipv6([sockaddr for *_, sockaddr in found]):
            # Begin to connect before the answer can be read, so that the dial finds the connection under way.
            self._begin(found)
            self._answered[family].set()
        else:
            self._answered[family].set()
            self._answered[other(family)].wait(RESOLUTION_DELAY)
            self._begin(found)

    def _begin(self, addresses: Sequence[AddressInfo]) -> None:
        with self._lock:
            if self._settled or self._begun is not None or not addresses:
                return
            family, _, _, _, sockaddr = addresses[0]
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                return  # the dial meets the same error, and reports it
            sock.setblocking(False)
            # The dial asks for the result later, when there is an event loop to wait in. It also repeats an attempt
            # that fails at once.
            if sock.connect_ex(sockaddr) in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                self._begun, self._begun_to = sock, sockaddr
            else:
                sock.close()

    def done(self, family: socket.AddressFamily) -> bool:
        """Whether `answer` returns at once."""
        return self._answered[family].is_set()

    def answer(self, family: socket.AddressFamily) -> list[AddressInfo]:
        """Return what `look_up` returned for this family, or raise what it raised. Blocks until `look_up` has ended."""
        self._answered[family].wait()
        answer = self._answers[family]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def settle(self) -> Any:
        """Begin no connection from now on. If one has begun, return its address, as `connect` takes it; else None."""
        with self._lock:
            self._settled = True
            return self._begun_to

    def take(self) -> socket.socket | None:
        """Hand over the socket connecting to the first address; None if there is none or it is already taken."""
        with self._lock:
            begun, self._begun = self._begun, None
            return begun

    def close(self) -> None:
        """Close the connecting socket if `take` has not handed it over, and begin no other connection."""
        self.settle()
        begun = self.take()
        if begun is not None:
            begun.close()
