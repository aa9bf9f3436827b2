"""TLS servers to connect to: Python's ssl in a thread, and OpenSSL's own s_server."""

from __future__ import annotations

import os
import pty
import select
import socket
import ssl
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from tests.support.processes import PATIENCE, program

Habit = Callable[[ssl.SSLSocket], object]


def server_context(leaf: trustme.LeafCert, *, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A server's context with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    if newest is not None:
        context.maximum_version = newest
    return context


@contextmanager
def tls_server(
    context: ssl.SSLContext, habit: Habit, *, breaks: bool = False, receive_buffer: int | None = None
) -> Iterator[int]:
    """A server for one connection: its port. What the handshake or `habit` raises is raised at the end.

    `breaks` says that the client has to break the connection off.

    The connection is closed without close_notify; `habit` calls `unwrap` where it is to be sent.
    """
    failures: list[BaseException] = []

    def serve() -> None:
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        try:
            with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
                habit(tls)
        except BaseException as error:
            failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server's side hangs"
    if breaks and failures and isinstance(failures[0], OSError):
        return
    if failures:
        raise failures[0]
    assert not breaks, "the client did not break the connection off"


def talk_both_ways(tls: ssl.SSLSocket, data: bytes, received: bytearray, wanted: int, *, piece: int) -> None:
    """Send all of `data` while `received` fills up to `wanted` bytes, at most `piece` of them at a time."""
    sent = 0
    tls.setblocking(False)
    while sent < len(data) or len(received) < wanted:
        sending = sent < len(data)
        select.select([tls], [tls] if sending else [], [], 0.1)
        with suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if sending:
                sent += tls.send(data[sent : sent + 16384])
        with suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            received.extend(tls.recv(piece))


def read_exactly(tls: ssl.SSLSocket, size: int) -> bytes:
    """So many bytes."""
    data = bytearray()
    while len(data) < size:
        part = tls.recv(min(65536, size - len(data)))
        assert part, f"an EOF after {len(data)} bytes"
        data += part
    return bytes(data)


class SServer:
    """`openssl s_server`. A line that is said to it goes to the client, but for its commands, such as K and R."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int, port: int) -> None:
        self._process = process
        self._keyboard = keyboard
        self.port = port
        self._heard = bytearray()
        self.listening = threading.Thread(target=self._listen, daemon=True)
        self.listening.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 65536):
            self._heard += data

    def say(self, line: bytes) -> None:
        """Type a line. A terminal gives it to the program by itself, never together with the next."""
        rest = line + b"\n"
        while rest:
            rest = rest[os.write(self._keyboard, rest) :]

    def heard(self) -> bytes:
        """What it printed so far: the client's bytes, and its own words."""
        return bytes(self._heard)

    def wait_for(self, condition: Callable[[bytes], bool]) -> None:
        """Until what it printed is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.heard()):
            assert time.monotonic() < deadline, self.heard()[-2000:]
            assert self._process.poll() is None, self.heard()[-2000:]
            time.sleep(0.005)


@contextmanager
def s_server(certificate: Path, *options: str) -> Iterator[SServer]:
    """Run s_server on a free port of loopback; `certificate` is a PEM file with the key."""
    keyboard, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    process = subprocess.Popen(
        [
            program("openssl"),
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-naccept",
            "1",
            "-cert",
            str(certificate),
            *options,
        ],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.close(slave)
    assert process.stdout is not None
    server: SServer | None = None
    try:
        greeting = b""
        while b"ACCEPT 127.0.0.1:" not in greeting or not greeting.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            assert ready, greeting
            part = os.read(process.stdout.fileno(), 4096)
            assert part, greeting
            greeting += part
        server = SServer(process, keyboard, int(greeting.rpartition(b"ACCEPT 127.0.0.1:")[2].split()[0]))
        yield server
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
        if server is not None:
            server.listening.join(PATIENCE)
        process.stdout.close()


@contextmanager
def tls_client(context: ssl.SSLContext, habit: Habit, *, name: str = "localhost") -> Iterator[socket.socket]:
    """A client for one connection: the server's end of it. What the handshake or `habit` raises is raised at the end.

    The connection is closed without close_notify; `habit` calls `unwrap` where it is to be sent.
    """
    failures: list[BaseException] = []

    def talk() -> None:
        try:
            with context.wrap_socket(theirs, server_hostname=name, suppress_ragged_eofs=False) as tls:
                habit(tls)
        except BaseException as error:
            failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), PATIENCE)
        ours, _ = listener.accept()
    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    with ours:
        yield ours
        thread.join(PATIENCE)
    assert not thread.is_alive(), "the client's side hangs"
    if failures:
        raise failures[0]


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client says first, to localhost."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class BIOClient:
    """A client whose TLS runs apart from its socket, which blocks: it can half-close, and stop anywhere."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, *, before: bytes = b"") -> None:
        """`before` goes out in front of TLS."""
        self._socket = sock
        self._before = before
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def handshake(self, piece: int = 65536) -> None:
        """Shake hands, and send so many bytes at a time."""
        while True:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self.flush(piece)
            if done:
                return
            self._receive()

    def flush(self, piece: int = 65536) -> None:
        """Send what TLS has to say, so many bytes at a time."""
        flight, self._before = self._before + self._outgoing.read(), b""
        for start in range(0, len(flight), piece):
            self._socket.sendall(flight[start : start + piece])

    def made(self) -> bytes:
        """What TLS has to say, for the caller to send."""
        return self._outgoing.read()

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.tls.write(data)
        self.flush()

    def send_eof(self) -> None:
        """Send close_notify, and go on."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()

    def read_all(self) -> bytes:
        """Everything until the server's close_notify. Raises ssl.SSLEOFError where it does not come."""
        heard = bytearray()
        while True:
            try:
                part = self.tls.read(65536)
            except ssl.SSLWantReadError:
                self._receive()
                continue
            except ssl.SSLZeroReturnError:
                part = b""
            if not part:
                return bytes(heard)
            heard += part
