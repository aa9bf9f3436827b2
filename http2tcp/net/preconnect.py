"""Resolving and connecting while the rest of the program is still being loaded.

Loading trio takes about as long as a name look-up and a round trip to a site. A thread does the one
while the main thread does the other. Nothing here imports trio.
"""

from __future__ import annotations

import errno
import socket
import threading
from typing import Any

AddressInfo = tuple[Any, Any, int, str, Any]

# RFC 6761, section 6.3: it is loopback, whatever a name server says. It is what most tunnels ask for, and
# must not wait in the queue behind names that no server knows.
LOCALHOST = ("localhost", "localhost.")
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class HeadStart:
    """Looks the name up at once, and begins to connect to its first address."""

    def __init__(self, host: str, port: int) -> None:
        self._addresses: list[AddressInfo] = []
        self._error: OSError | UnicodeError | None = None
        self._begun: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, args=(host, port), daemon=True)
        self._thread.start()

    def _run(self, host: str, port: int) -> None:
        try:
            if host in LOCALHOST:
                self._addresses = [(family, socket.SOCK_STREAM, 0, "", (ip, port)) for family, ip in LOOPBACK]
            else:
                self._addresses = list(socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            self._error = error
            return
        family, _, _, _, sockaddr = self._addresses[0]
        try:
            self._begun = socket.socket(family, socket.SOCK_STREAM)
            self._begun.setblocking(False)
            # Its result is asked for later, when there is a loop to wait in; what fails at once is tried again.
            if self._begun.connect_ex(sockaddr) not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                self.close()
        except OSError:
            self.close()

    @property
    def done(self) -> bool:
        """Whether `addresses` returns at once."""
        return not self._thread.is_alive()

    def addresses(self) -> list[AddressInfo]:
        """What `socket.getaddrinfo` said. Blocks until it has; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._addresses

    def take(self) -> socket.socket | None:
        """The socket that is connecting to the first address, once."""
        begun, self._begun = self._begun, None
        return begun

    def close(self) -> None:
        """Close it where nobody has taken it."""
        begun = self.take()
        if begun is not None:
            begun.close()
