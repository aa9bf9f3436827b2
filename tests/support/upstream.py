"""What a front end passes on, seen by a server behind it that only listens."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 20.0


@dataclass(frozen=True)
class Upstream:
    """Takes requests from a front end, answers each with 404, and gives their heads; or tells that none came."""

    listener: socket.socket
    #: The authority that signed the front end's certificate.
    ca: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def head(self, port: int, *fields: str) -> str:
        """What arrives here of a request with these fields to the location of the front end at `port`.

        Nothing, where the front end refuses it with 403.
        """
        lines = ["GET /~http2tcp/?addr=a%3A1&k=v HTTP/1.1", "Host: localhost", *fields, "", ""]
        tls = ssl.create_default_context(cafile=self.ca)
        with (
            socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection,
            tls.wrap_socket(connection, server_hostname="localhost") as client,
        ):
            client.sendall("\r\n".join(lines).encode())
            if refusal := self._answer_that_comes_first(client):
                assert refusal.startswith(b"HTTP/1.1 403")
                return ""
            accepted, _ = self.listener.accept()
            with accepted:
                accepted.settimeout(_PATIENCE)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += accepted.recv(65536)
                accepted.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 404")
        return head.decode()

    def _answer_that_comes_first(self, client: ssl.SSLSocket) -> bytes:
        """What the front end answers by itself; nothing where it passes the request on."""
        while True:
            ready, _, _ = select.select([self.listener, client], [], [], _PATIENCE)
            assert ready, "neither a request nor an answer"
            if client not in ready:
                return b""
            client.setblocking(False)
            try:
                return client.recv(65536)
            except ssl.SSLWantReadError:
                pass  # it was no more than a session ticket
            finally:
                client.settimeout(_PATIENCE)


@contextmanager
def upstream(ca: Path) -> Iterator[Upstream]:
    """Listen, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_PATIENCE)
        yield Upstream(listener, ca)
