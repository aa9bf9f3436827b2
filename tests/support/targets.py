"""Targets of tunnels: plain TCP servers in threads, which serve until they are no longer needed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MIB = 1024 * 1024


def serve(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    """Give each connection to the handler, until the listener is shut down."""

    def handle(connection: socket.socket) -> None:
        with connection:
            try:
                handler(connection)
            except OSError:
                pass  # whoever was cut, by a front end or by us

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=handle, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(MIB):
        connection.sendall(data)


@contextmanager
def target(handler: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A server on loopback that gives each connection to the handler; its host and port."""
    with socket.create_server((host, port)) as listener:
        thread = threading.Thread(target=serve, args=(listener, handler))
        thread.start()
        try:
            yield f"{host}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
