"""A TLS peer whose every byte a test decides on, and one of our streams that has shaken hands with it."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path

import trio
import trustme

from http2tcp.net.streams import SocketStream, Stream
from http2tcp.net.tls import client_context, open_tls
from http2tcp.net.tls_over import open_tls_over
from http2tcp.net.tls_server import accept_tls, server_context
from tests.support.processes import PATIENCE

#: What ours is: ServerTLSStream, TLSStream, TLSOverStream.
SIDES = ["server", "client", "client over a stream"]


class Contexts:
    """The server's and the client's, which trusts it; their secrets go to `keylog`."""

    def __init__(self, directory: Path) -> None:
        authority, file, ca_file = trustme.CA(), directory / "server.pem", directory / "ca.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(file))
        authority.cert_pem.write_to_path(str(ca_file))
        file.chmod(0o600)
        self.server, self.client = server_context(str(file)), client_context(ca_file=str(ca_file))
        # The first record after the handshake is then the first that a test makes.
        self.server.num_tickets = 0
        self.keylog = directory / "secrets"
        self.server.keylog_filename = str(self.keylog)


def connection() -> tuple[socket.socket, socket.socket]:
    """Ours and theirs, which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), PATIENCE)
        return listener.accept()[0], theirs


class Peer:
    """The other side: TLS apart from its socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else "localhost"
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side, name)

    def handshake(self) -> None:
        """Blocks until it is done."""
        while True:
            with suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                break
            self.socket.sendall(self._outgoing.read())
            self._incoming.write(self.socket.recv(65536))
        self.socket.sendall(self._outgoing.read())

    def data(self, payload: bytes) -> bytes:
        """Payload as it goes on the wire."""
        self.tls.write(payload)
        return self._outgoing.read()

    def fatal_alert(self) -> bytes:
        """What OpenSSL says once it was given a record that nobody encrypted."""
        self._incoming.write(b"\x17\x03\x03\x00\x20" + b"evil" * 8)
        with suppress(ssl.SSLError):
            self.tls.read(1)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """The end, and well."""
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._outgoing.read()


async def session(
    contexts: Contexts, side: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> tuple[Stream, Peer]:
    """One of our streams, which is `side`, and its peer."""
    contexts.client.maximum_version = version
    ours, theirs = connection()
    served = side == "server"
    peer = Peer(theirs, contexts.client if served else contexts.server, server_side=not served)
    opened: list[Stream] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, peer.handshake)
            if served:
                opened.append(await accept_tls(SocketStream(ours), contexts.server))
            elif side == "client":
                opened.append(await open_tls(SocketStream(ours), contexts.client, "localhost"))
            else:
                opened.append(await open_tls_over(SocketStream(ours), contexts.client, "localhost"))
    return opened[0], peer
