"""Both sides of a resumable tunnel in memory, with figures that are small enough to cut everywhere."""

from __future__ import annotations

from http2tcp.protocol.resume import Bounds, Resumable, Terms
from http2tcp.protocol.resume_outgoing import End
from http2tcp.protocol.resume_proof import Attempt
from http2tcp.protocol.resume_wire import Challenge, FirstCapsule, Hello, challenge

SESSION = "a-5f0c9a3be172"
SECRET = bytes(range(32))
#: Windows of a few bytes, each of which counts.
SMALL = Bounds(least=8, most=64 * 1024 * 1024, acknowledged=4)


def terms(window: int = 20, *, grace: int = 900, idle_timeout: int | None = None) -> Terms:
    """One side's figures."""
    return Terms(keepalive=25_000, window=window, grace=grace, idle_timeout=idle_timeout)


def nonce(number: int) -> bytes:
    """One that is like no other."""
    return number.to_bytes(32, "big")


class Sink:
    """What a side hands on to. It takes everything at once, or as much as it is told to."""

    def __init__(self, machine: Resumable) -> None:
        self.machine = machine
        self.taken = b""
        self.hand = b""
        self.pending: End | None = None
        self.end: End | None = None

    def feed(self, data: bytes, attachment: int, *, most: int | None = None) -> None:
        """What a connection brought."""
        for part in self.machine.receive(data, attachment):
            self.hand += part.payload
            self.pending = part.end or self.pending
            self.take(most)

    def take(self, most: int | None = None) -> int:
        """Take so many bytes of what is in hand, and the end where that is all."""
        part = self.hand[:most]
        self.hand = self.hand[len(part) :]
        self.taken += part
        self.machine.sink_took(len(part))
        if self.pending is not None and not self.hand and self.end is not self.pending:
            self.end = self.pending
            self.machine.sink_ended()
        return len(part)


def opened(window: int = 20, *, bounds: Bounds = SMALL, confirms: bool = False) -> tuple[Resumable, Resumable]:
    """A client and a server that have said HELLO to each other."""
    server = Resumable.offer(SESSION, SECRET, terms(window, grace=3600), confirms=confirms, bounds=bounds)
    hello = first(server.data_to_send())
    client = Resumable.agree(hello, terms(window), bounds=bounds)
    exchange(client, server)
    return client, server


def first(wire: bytes) -> Hello:
    """The HELLO that is all of it."""
    reader = FirstCapsule()
    hello = reader.receive(wire)
    assert isinstance(hello, Hello)
    assert not reader.rest
    return hello


def exchange(client: Resumable, server: Resumable, sinks: tuple[Sink, Sink] | None = None) -> None:
    """Carry everything both ways until both are quiet."""
    to_client, to_server = sinks or (Sink(client), Sink(server))
    while client.wants_write or server.wants_write:
        while wire := client.data_to_send():
            to_server.feed(wire, server.attachment)
        while wire := server.data_to_send():
            to_client.feed(wire, client.attachment)


def lost(client: Resumable, server: Resumable) -> None:
    """Both notice that the connection is gone."""
    client.detach(client.attachment)
    server.detach(server.attachment)


def attempted(client: Resumable, server_nonce: bytes, client_nonce: bytes) -> tuple[Attempt, Hello]:
    """The client's next attempt, and its HELLO as the server reads it."""
    reader = FirstCapsule()
    said = reader.receive(challenge(server_nonce))
    assert isinstance(said, Challenge)
    attempt = client.answer(said.nonce, client_nonce)
    return attempt, first(attempt.capsule)


def resumed(client: Resumable, server: Resumable, number: int = 1, sink: Sink | None = None) -> None:
    """A new connection, and nothing on it but the handshake, and an end where that is all that is left."""
    attempt, hello = attempted(client, nonce(number), nonce(-number % (1 << 256)))
    server.check(hello, nonce(number))
    server.detach(server.attachment)
    server.take_over(hello, nonce(number))
    reader = FirstCapsule()
    answer = reader.receive(server.data_to_send(0))
    assert isinstance(answer, Hello)
    attachment = client.resume(attempt, answer)
    (sink or Sink(client)).feed(reader.rest, attachment)
