"""The least that a relay on trio can be: `python bare_trio.py TARGET_PORT` prints its port.

It waits, reads and writes, and does nothing else. A byte to and fro cannot cost less with this event loop.
"""

from __future__ import annotations

import os
import socket
import sys

import trio

_SIZE = 64 * 1024


async def _serve(target: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        print("port", listener.getsockname()[1], flush=True)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                nursery.start_soon(_relay, listener.accept()[0], target)


async def _relay(client: socket.socket, target: int) -> None:
    with client, socket.create_connection(("127.0.0.1", target)) as server:
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, client.fileno(), server.fileno())
                nursery.start_soon(_pump, server.fileno(), client.fileno())
        except* OSError:
            pass  # the other end has left


async def _pump(source: int, sink: int) -> None:
    while True:
        await trio.lowlevel.wait_readable(source)
        data = os.read(source, _SIZE)
        if not data:
            raise ConnectionError
        os.write(sink, data)


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]))
