"""The least that a relay on splice(2) can be: `python bare_splice.py TARGET_PORT` prints its port.

It reads no head, asks no policy, moves one direction only, and blocks in splice. No relay that uses splice, in whatever
language, can be faster on this machine with these drivers.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading

_PIPE = 1 << 20


def main(target: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print("port", listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=_relay, args=[listener.accept()[0], target], daemon=True).start()


def _relay(client: socket.socket, target: int) -> None:
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
        with client, socket.create_connection(("127.0.0.1", target)) as server:
            while size := os.splice(server.fileno(), writer, _PIPE):
                while size:
                    size -= os.splice(reader, client.fileno(), size)
    except OSError:
        pass  # the other end has left
    finally:
        os.close(reader)
        os.close(writer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
