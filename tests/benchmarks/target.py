"""The far end of the tunnels: `python target.py MODE` prints its port and serves until it is ended.

    source  sends without end
    echo    sends back what it receives
    greet   sends one byte and waits for the EOF; serves thousands at once

It writes 32 KiB at a time, as ssh and most servers do. sendfile, which goes page by page, costs twice as much here, and
was itself the limit for the fastest relays.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading

_SIZE = 32 * 1024


def main(mode: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print("port", listener.getsockname()[1], flush=True)
    if mode == "greet":
        _greet(listener)
    serve = {"source": _source, "echo": _echo}[mode]
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()


def _source(sock: socket.socket) -> None:
    data = os.urandom(_SIZE)
    try:
        with sock:
            while True:
                sock.send(data)
    except OSError:
        pass  # the other end has left


def _echo(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)
    except OSError:
        pass


def _greet(listener: socket.socket) -> None:
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    held: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                try:
                    sock, _ = listener.accept()
                    sock.send(b"!")
                except OSError:
                    continue
                held[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
                continue
            try:
                over = not held[descriptor].recv(65536)
            except OSError:
                over = True
            if over:
                held.pop(descriptor).close()


if __name__ == "__main__":
    main(sys.argv[1])
