"""The kinds of clients. Each opens a tunnel, is an `End` of it, and reports what became of it."""

from __future__ import annotations

import random
import re
import signal
import ssl
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import trio

import http2tcp
from http2tcp.errors import Http2tcpError
from http2tcp.net.streams import HalfCloseUnsupported, Stream
from http2tcp.protocol.transport import Transport
from tests.campaign.cases import Case, Client
from tests.campaign.handmade import (
    Capsules,
    Connection,
    WebSocketWire,
    open_connection,
    was_reset,
    websocket_fields,
)
from tests.campaign.talk import Gone
from tests.support.loopback import reset
from tests.support.processes import environment
from tests.support.processes import http2tcp as command

_CHUNK = 256 * 1024
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_LOOK = 0.05
#: The errors by which the local side sees a broken pipe or connection.
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True)
class Way:
    """Where a client connects to, and what for."""

    #: The port of 127.0.0.1 to connect to; it may lead through the weather.
    port: int
    #: The path of the endpoint.
    path: str
    #: The authority's certificate where the endpoint is https.
    ca_file: Path | None
    token: str
    #: Where the tunnel leads to.
    target: str
    #: The directory for the processes' output.
    stderr: Path

    @property
    def url(self) -> str:
        """The endpoint."""
        scheme = "http" if self.ca_file is None else "https"
        return f"{scheme}://localhost:{self.port}{self.path}"

    def context(self) -> ssl.SSLContext | None:
        """What peers made by hand verify the endpoint with."""
        return None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)


class Peer(ABC):
    """A client: an `End` that opens and closes itself."""

    #: A process's exit status, once it has ended.
    status: int | None = None
    #: Whether the campaign ended the process.
    ended_by_us = False

    @abstractmethod
    async def open(self) -> None:
        """Open the tunnel. Raises Gone."""

    @abstractmethod
    async def send(self, data: bytes) -> None: ...

    @abstractmethod
    async def send_eof(self) -> None: ...

    @abstractmethod
    async def receive(self) -> bytes: ...

    @abstractmethod
    async def break_off(self) -> None: ...

    @abstractmethod
    async def leave(self) -> None: ...

    @abstractmethod
    async def finish(self) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """This side has finished: close the tunnel, whatever has happened to it."""

    async def stop(self) -> None:
        """The tunnel is over on both sides: end what is left, such as a process."""
        await self.close()

    @abstractmethod
    def confirmed(self) -> bool | None:
        """Whether it was told that the target has everything; None: its protocol does not say."""


def peer_of(case: Case, way: Way) -> Peer:
    """The client of this case."""
    match case.client:
        case Client.STDIO:
            return Stdio(case, way)
        case Client.FORWARDER:
            return Forwarder(case, way)
        case Client.API:
            return Program(case, way)
        case _:
            return Handmade(case, way)


def _arguments(case: Case, way: Way) -> list[str]:
    authority = [] if way.ca_file is None else ["--ca-file", str(way.ca_file)]
    return command("-c", "-e", way.url, "-d", way.target, "--transport", case.transport.value, *authority)


def _environment(case: Case, way: Way) -> dict[str, str]:
    portable = {"HTTP2TCP_PORTABLE": "1"} if case.portable else {}
    return environment(HTTP2TCP_TOKEN=way.token, **portable)


class Process(Peer):
    """A client that is a process, whose words go to a file."""

    def __init__(self, case: Case, way: Way) -> None:
        self._case = case
        self._way = way
        self.process: trio.Process | None = None

    async def _start(self, *more: str, pipes: bool) -> trio.Process:
        inherited = subprocess.PIPE if pipes else subprocess.DEVNULL
        with self._way.stderr.open("wb") as stderr:
            self.process = await trio.lowlevel.open_process(
                [*_arguments(self._case, self._way), *more],
                stdin=inherited,
                stdout=inherited,
                stderr=stderr,
                env=_environment(self._case, self._way),
            )
        return self.process

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.ended_by_us = True
            self.process.send_signal(number)

    async def _reap(self) -> None:
        """Wait until it ends; kill it if this is cancelled."""
        process = self.process
        if process is None:
            return
        try:
            self.status = await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    self.ended_by_us = True
                    process.kill()
                    await process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        await trio.aclose_forcefully(pipe)


class Stdio(Process):
    """`http2tcp -c`, as ssh starts it."""

    async def open(self) -> None:
        await self._start(pipes=True)

    def _pipes(self) -> tuple[trio.abc.SendStream, trio.abc.ReceiveStream]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    async def send(self, data: bytes) -> None:
        try:
            await self._pipes()[0].send_all(data)
        except _BROKEN as error:
            raise Gone(f"stdin: {error}") from error

    async def send_eof(self) -> None:
        await self._pipes()[0].aclose()

    async def receive(self) -> bytes:
        try:
            return bytes(await self._pipes()[1].receive_some(_CHUNK))
        except _BROKEN as error:
            raise Gone(f"stdout: {error}") from error

    async def break_off(self) -> None:
        self._signal(signal.SIGKILL if self._case.whim % 2 else signal.SIGTERM)

    async def leave(self) -> None:
        for pipe in self._pipes():
            await pipe.aclose()

    async def finish(self) -> None:
        """Its output has ended: its exit status says whether that was everything."""
        await self._reap()
        if self.status:
            raise Gone(f"exit status {self.status}")

    async def close(self) -> None:
        try:
            # A client that was told to leave must not get an EOF too: it might see that first, and pass it on.
            if self.process is not None and self.process.stdin is not None and not self.ended_by_us:
                await self.process.stdin.aclose()
        finally:
            await self._reap()

    def confirmed(self) -> bool | None:
        return None if self.ended_by_us or self.status is None else self.status == 0


class Local:
    """A local connection to a forwarder; any plain TCP connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except _BROKEN as error:
            raise Gone(f"sending: {error.__cause__ or error}") from error

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except _BROKEN as error:
            raise Gone(f"ending: {error}") from error

    async def receive(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(_CHUNK))
        except _BROKEN as error:
            raise Gone(f"receiving: {error.__cause__ or error}") from error
        if not data and was_reset(self._stream):
            raise Gone("receiving: it was reset")
        return data

    async def break_off(self) -> None:
        if self._stream.socket.fileno() >= 0:
            reset(self._stream)

    async def leave(self) -> None:
        await self.break_off()

    async def finish(self) -> None:
        await self._stream.aclose()


class Forwarder(Process):
    """`http2tcp -c -l`, and a connection to it."""

    _local: Local | None = None

    async def open(self) -> None:
        process = await self._start("-l", "127.0.0.1:0", pipes=False)
        while not (found := _LISTENING.search(self._way.stderr.read_text(errors="replace"))):
            if process.returncode is not None:
                raise Gone(f"the forwarder ended with {process.returncode}")
            await trio.sleep(_LOOK)
        self._local = Local(await trio.open_tcp_stream("127.0.0.1", int(found[1])))

    def _connection(self) -> Local:
        assert self._local is not None
        return self._local

    async def send(self, data: bytes) -> None:
        await self._connection().send(data)

    async def send_eof(self) -> None:
        await self._connection().send_eof()

    async def receive(self) -> bytes:
        return await self._connection().receive()

    async def break_off(self) -> None:
        if self._case.whim % 3 == 0:
            self._signal(signal.SIGKILL)
        else:
            await self._connection().break_off()

    async def leave(self) -> None:
        await self.break_off()

    async def finish(self) -> None:
        await self._connection().finish()

    async def close(self) -> None:
        if self._local is not None:
            await self._local.break_off()

    async def stop(self) -> None:
        """Only now: it may still have had something to deliver when its local connection was closed."""
        self._signal(signal.SIGTERM)
        await self._reap()

    def confirmed(self) -> bool | None:
        return None


class Program(Peer):
    """`open_tunnel`."""

    def __init__(self, case: Case, way: Way) -> None:
        self._case = case
        self._way = way
        self._stream: Stream | None = None
        self._closed_well = False

    async def open(self) -> None:
        tls = http2tcp.TLSSettings(ca_file=None if self._way.ca_file is None else str(self._way.ca_file))
        try:
            self._stream = await http2tcp.open_tunnel(
                self._way.url,
                self._way.target,
                token=self._way.token,
                transport=self._case.transport,
                tls=tls,
                proxy=False,
            )
        except Http2tcpError as error:
            raise Gone(str(error)) from error

    def _tunnel(self) -> Stream:
        assert self._stream is not None
        return self._stream

    async def send(self, data: bytes) -> None:
        try:
            await self._tunnel().send_all(data)
        except _BROKEN as error:
            raise Gone(f"sending: {error}") from error

    async def send_eof(self) -> None:
        try:
            await self._tunnel().send_eof()
        except HalfCloseUnsupported:
            if self._case.tells_client_end:
                raise
        except _BROKEN as error:
            raise Gone(f"ending: {error}") from error

    async def receive(self) -> bytes:
        try:
            return await self._tunnel().receive_some()
        except _BROKEN as error:
            raise Gone(f"receiving: {error}") from error

    async def break_off(self) -> None:
        self._tunnel().abort()

    async def leave(self) -> None:
        self._tunnel().abort()

    async def finish(self) -> None:
        try:
            await self._tunnel().aclose()
        except _BROKEN as error:
            raise Gone(f"closing: {error}") from error
        self._closed_well = True

    async def close(self) -> None:
        if self._stream is not None:
            self._stream.abort()

    def confirmed(self) -> bool | None:
        return self._closed_well or None


class Handmade(Peer):
    """A peer made by hand: raw bytes, WebSocket, or capsules on either."""

    def __init__(self, case: Case, way: Way) -> None:
        self._case = case
        self._way = way
        self._connection: Connection | None = None
        self._end: Capsules | Plain | None = None

    async def open(self) -> None:
        case, whim = self._case, random.Random(self._case.whim)
        self._connection = await open_connection(self._way.port, self._way.context())
        await self._connection.ask(self._request())
        wire: Connection | WebSocketWire = self._connection
        if case.transport is Transport.WEBSOCKET:
            wire = WebSocketWire(self._connection, whim)
        self._end = Capsules(wire, whim, confirms=case.confirms) if case.capsules else Plain(wire)

    def _request(self) -> bytes:
        case, way = self._case, self._way
        fields = [
            f"GET {way.path}?addr={way.target} HTTP/1.1",
            f"Host: localhost:{way.port}",
            "Connection: Upgrade",
            f"Upgrade: {case.transport.value}",
            f"Authorization: Bearer {way.token}",
        ]
        if case.transport is Transport.WEBSOCKET:
            fields += websocket_fields(capsules=case.capsules)
        if case.capsules:
            fields += ["Capsule-Protocol: ?1"]
            fields += ["Http2tcp-Confirm: ?1"] * case.confirms
        return "\r\n".join([*fields, "", ""]).encode()

    def _tunnel(self) -> Capsules | Plain:
        assert self._end is not None
        return self._end

    async def send(self, data: bytes) -> None:
        await self._tunnel().send(data)

    async def send_eof(self) -> None:
        await self._tunnel().send_eof()

    async def receive(self) -> bytes:
        return await self._tunnel().receive()

    async def break_off(self) -> None:
        await self._tunnel().break_off()

    async def leave(self) -> None:
        await self._tunnel().leave()

    async def finish(self) -> None:
        await self._tunnel().finish()

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.cut()

    def confirmed(self) -> bool | None:
        return self._end.done if self._case.confirms and isinstance(self._end, Capsules) else None


class Plain:
    """The tunnel's bytes as they are, on a connection or in WebSocket messages."""

    def __init__(self, wire: Connection | WebSocketWire) -> None:
        self._wire = wire

    async def send(self, data: bytes) -> None:
        await self._wire.send(data)

    async def send_eof(self) -> None:
        await self._wire.send_eof()

    async def receive(self) -> bytes:
        return await self._wire.receive()

    async def break_off(self) -> None:
        self._wire.cut()

    async def leave(self) -> None:
        self._wire.cut()

    async def finish(self) -> None:
        await self._wire.close()
