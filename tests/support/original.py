"""The original http2tcp's server and client, imitated from how they were seen to behave on the wire.

They share no code with ours, and need the standard library alone: `python original.py server|client …`.
What is kept, faults included:

- The server answers 101 before it dials, so that a refused target is a tunnel that ends at once.
- Its scheme and its token are case-sensitive; any other credential gets a bare 401.
- Another Upgrade than its own gets 400 `upgrade error`.
- Both ends close both directions at either EOF.
- The client gives up on a 101 that lacks Upgrade or Connection.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

UPGRADE = "http2tcp/1.0"
COMMAND = [sys.executable, str(Path(__file__).resolve())]


def read_head(sock: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """The first line, the fields by lower-case name, and what came after the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            raise EOFError
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return first, fields, rest


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), 10)


# --- the server -------------------------------------------------------------------------------------


def serve(listen: str, token: str) -> None:
    host, _, port = listen.rpartition(":")
    with socket.create_server((host, int(port))) as listener:
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve_one, args=(client, token), daemon=True).start()


def serve_one(client: socket.socket, token: str) -> None:
    with client, suppress(OSError, EOFError):
        first, fields, rest = read_head(client)
        if fields.get("authorization") != f"HTTP2TCP {token}":
            client.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            return
        if fields.get("upgrade", "").lower() != UPGRADE:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 13\r\n\r\nupgrade error")
            return
        client.sendall(
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode()
        )
        (address,) = parse_qs(urlsplit(first.split()[1]).query)["addr"]
        with connect(address) as target:
            target.settimeout(None)
            target.sendall(rest)
            upward = threading.Thread(target=copy, args=(client, target), daemon=True)
            upward.start()
            copy(target, client)
            upward.join()


def copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


# --- the client -------------------------------------------------------------------------------------


def request(endpoint: str, destination: str, token: str) -> tuple[str, bytes]:
    """Where to connect to, and the request's bytes."""
    url = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    # Its query is sorted by name.
    pairs = [f"addr={quote(destination, safe='')}", *(url.query.split("&") if url.query else [])]
    lines = [
        f"GET {url.path or '/'}?{'&'.join(sorted(pairs))} HTTP/1.1",
        f"Host: {url.netloc}",
        "User-Agent: http2tcp",
        f"Authorization: HTTP2TCP {token}",
        "Connection: upgrade",
        f"Upgrade: {UPGRADE}",
    ]
    return f"{url.hostname}:{url.port or 80}", "\r\n".join([*lines, "", ""]).encode()


def run_client(endpoint: str, destination: str, token: str) -> int:
    where, head = request(endpoint, destination, token)
    with connect(where) as server:
        server.settimeout(None)
        server.sendall(head)
        first, fields, rest = read_head(server)
        if first.split()[1] != "101":
            print(f"unexpected status: {first}", file=sys.stderr)
            return 1
        if "upgrade" not in fields or "connection" not in fields:
            print("panic: index out of range", file=sys.stderr)
            return 2

        def upward() -> None:
            with suppress(OSError):
                while data := os.read(0, 65536):
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=upward, daemon=True).start()
        with suppress(OSError):
            data = rest or server.recv(65536)
            while data:
                data = data[os.write(1, data) :] or server.recv(65536)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["server", "client"])
    parser.add_argument("-l", dest="listen", default="127.0.0.1:12345")
    parser.add_argument("-e", dest="endpoint", default="")
    parser.add_argument("-d", dest="destination", default="")
    parser.add_argument("-t", dest="token", default="")
    options = parser.parse_args()
    if options.mode == "server":
        serve(options.listen, options.token)
    return run_client(options.endpoint, options.destination, options.token)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Without waiting for the thread that reads stdin.
    os._exit(status)
