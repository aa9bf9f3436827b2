"""The programs that are measured, each started as its users start it.

For a target's port, a contender starts up to three things: `relay`, a server in front of the target; `forwarder`, a
local listener whose tunnels go through that server; `stdio`, a command whose stdin and stdout are such a tunnel. They
return None where the program has no such thing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.drivers import Door
from tests.benchmarks.processes import Programs, free_port
from tests.benchmarks.procfs import Group

TOKEN = "benchmark"
#: How many idle tunnels to open where each of them is a process.
FORKED_TUNNELS = 300


@dataclass(frozen=True)
class Command:
    """A client on stdin and stdout, and the programs behind it."""

    argv: tuple[str, ...]
    server: Group
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, Group]:
        """The programs that run before the client starts."""
        return {"server": self.server}


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for localhost; the file `both` has the key too."""

    public: Path
    both: Path


class Direct:
    """No relay: how fast this machine and the drivers are by themselves."""

    name = "direct"
    found = True

    def relay(self, programs: Programs, target: int) -> Door:
        return Door(target)

    def forwarder(self, programs: Programs, target: int) -> Door:
        return Door(target)

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        return None


class Socat:
    """socat: one process for each connection, buffers of 8 KiB."""

    name = "socat"
    found = shutil.which("socat") is not None

    def relay(self, programs: Programs, target: int) -> Door:
        port = free_port()
        listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=4096,nodelay"
        program = programs.start("socat", listen, f"TCP:127.0.0.1:{target},nodelay")
        program.accepts(port)
        return Door(port, server=Group(program.pid, forks=True))

    def forwarder(self, programs: Programs, target: int) -> Door:
        server = self.relay(programs, target)
        client = self.relay(programs, server.port)
        return Door(client.port, server=server.server, client=client.server)

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        server = self.relay(programs, target)
        if tls is None:
            return Command(("socat", "STDIO", f"TCP:127.0.0.1:{server.port}"), server.server)
        port = tls_front(programs, server.port, tls)
        return Command(("socat", "STDIO", f"OPENSSL:localhost:{port},pf=ip4,cafile={tls.public}"), server.server)


class HAProxy:
    """HAProxy: one thread, TCP mode, splicing. It has no client for stdio, so socat takes that place."""

    name = "haproxy"
    found = shutil.which("haproxy") is not None

    def relay(self, programs: Programs, target: int, tls: Certificate | None = None) -> Door:
        port = free_port()
        secured = f" ssl crt {tls.both} alpn http/1.1" if tls is not None else ""
        config = programs.scratch / f"haproxy-{port}.cfg"
        config.write_text(
            "global\n"
            "    nbthread 1\n"
            "    maxconn 4000\n"
            "defaults\n"
            "    mode tcp\n"
            "    option splice-auto\n"
            "    timeout connect 10s\n"
            "    timeout client 1h\n"
            "    timeout server 1h\n"
            "listen relay\n"
            f"    bind 127.0.0.1:{port}{secured}\n"
            f"    server target 127.0.0.1:{target}\n"
        )
        program = programs.start("haproxy", "-db", "-f", str(config))
        program.accepts(port)
        return Door(port, server=Group(program.pid))

    def forwarder(self, programs: Programs, target: int) -> Door:
        server = self.relay(programs, target)
        client = self.relay(programs, server.port)
        return Door(client.port, server=server.server, client=client.server)

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        server = self.relay(programs, target, tls)
        if tls is None:
            return Command(("socat", "STDIO", f"TCP:127.0.0.1:{server.port}"), server.server)
        argv = "socat", "STDIO", f"OPENSSL:localhost:{server.port},pf=ip4,cafile={tls.public}"
        return Command(argv, server.server)


class Http2tcp:
    """This project, as `python -m http2tcp`. Only its own client speaks connect-tcp, so there is no bare relay."""

    found = True

    def __init__(self, name: str, client: str = "http2tcp", transport: str = "tcp", **environment: str) -> None:
        self.name = name
        self._transport = transport
        self._client = sys.executable, "-m", client, "-c", "-t", TOKEN, "--transport", transport
        self._environment = environment

    def relay(self, programs: Programs, target: int) -> Door | None:
        return self._serve(programs, target) if self._transport == "tcp" else None

    def forwarder(self, programs: Programs, target: int) -> Door | None:
        server = self._serve(programs, target)
        argv = *self._client, "-e", f"http://127.0.0.1:{server.port}/", "-d", f"127.0.0.1:{target}", "-l", "127.0.0.1:0"
        program = programs.start(*argv, environment=self._environment)
        port = int(program.said(r"listening on 127\.0\.0\.1:(\d+)"))
        return Door(port, server=server.server, client=Group(program.pid))

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        server = self._serve(programs, target)
        endpoint: tuple[str, ...] = (f"http://127.0.0.1:{server.port}/",)
        if tls is not None:
            port = tls_front(programs, server.port, tls)
            endpoint = f"https://localhost:{port}/", "--ca-file", str(tls.public)
        return Command((*self._client, "-d", f"127.0.0.1:{target}", "-e", *endpoint), server.server, self._environment)

    def _serve(self, programs: Programs, target: int) -> Door:
        argv = sys.executable, "-m", "http2tcp", "-s", "-t", TOKEN, "-l", "127.0.0.1:0"
        program = programs.start(*argv, environment=self._environment)
        port = int(program.said(r"listening on 127\.0\.0\.1:(\d+)"))
        return Door(port, upgrade(target, "tcp", f"Bearer {TOKEN}"), server=Group(program.pid))


class Original:
    """movsb/http2tcp, from which the command line and `http2tcp/1.0` come."""

    name = "http2tcp-go"
    found = shutil.which("http2tcp-go") is not None

    def relay(self, programs: Programs, target: int) -> Door:
        port = free_port()
        program = programs.start("http2tcp-go", "-s", "-l", f"127.0.0.1:{port}", "-t", TOKEN)
        program.accepts(port)
        return Door(port, upgrade(target, "http2tcp/1.0", f"HTTP2TCP {TOKEN}"), server=Group(program.pid))

    def forwarder(self, programs: Programs, target: int) -> Door:
        server, port = self.relay(programs, target), free_port()
        program = programs.start(*self._client(server.port, target), "-l", f"127.0.0.1:{port}")
        program.accepts(port)
        return Door(port, server=server.server, client=Group(program.pid))

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        if tls is not None:
            return None  # it accepts certificates of the system's authorities only
        server = self.relay(programs, target)
        return Command(self._client(server.port, target), server.server)

    @staticmethod
    def _client(server: int, target: int) -> tuple[str, ...]:
        endpoint = f"http://127.0.0.1:{server}/"
        return "http2tcp-go", "-c", "-e", endpoint, "-d", f"127.0.0.1:{target}", "-t", TOKEN


class Chisel:
    """ssh inside a WebSocket. All its tunnels begin at its own client."""

    name = "chisel"
    found = shutil.which("chisel") is not None

    def relay(self, programs: Programs, target: int) -> Door:
        return self.forwarder(programs, target)

    def forwarder(self, programs: Programs, target: int) -> Door:
        port, local = free_port(), free_port()
        server = programs.start("chisel", "server", "--host", "127.0.0.1", "--port", str(port))
        server.accepts(port)
        remote = f"127.0.0.1:{local}:127.0.0.1:{target}"
        client = programs.start("chisel", "client", f"http://127.0.0.1:{port}", remote)
        client.accepts(local)
        return Door(local, server=Group(server.pid), client=Group(client.pid))

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        return None


class Websocat:
    """WebSocket messages. Its tunnels begin at its own client, too."""

    name = "websocat"
    found = shutil.which("websocat") is not None

    def relay(self, programs: Programs, target: int) -> Door:
        return self.forwarder(programs, target)

    def forwarder(self, programs: Programs, target: int) -> Door:
        server, port = self._server(programs, target)
        local = free_port()
        client = programs.start("websocat", "-q", "-b", f"tcp-l:127.0.0.1:{local}", f"ws://127.0.0.1:{port}/")
        client.accepts(local)
        return Door(local, server=server, client=Group(client.pid))

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        server, port = self._server(programs, target)
        if tls is None:
            return Command(("websocat", "-q", "-b", "-", f"ws://127.0.0.1:{port}/"), server)
        front = tls_front(programs, port, tls)
        trust = {"SSL_CERT_FILE": str(tls.public)}
        return Command(("websocat", "-q", "-b", "-", f"wss://localhost:{front}/"), server, trust)

    @staticmethod
    def _server(programs: Programs, target: int) -> tuple[Group, int]:
        port = free_port()
        program = programs.start("websocat", "-q", "-b", f"ws-l:127.0.0.1:{port}", f"tcp:127.0.0.1:{target}")
        program.accepts(port)
        return Group(program.pid), port


class Bare:
    """A loop of a dozen lines that relays and does nothing else: the best that can be reached."""

    name = "reference"
    found = True

    def __init__(self, script: str) -> None:
        self._script = str(Path(__file__).with_name(script))

    def relay(self, programs: Programs, target: int) -> Door:
        program = programs.start(sys.executable, self._script, str(target))
        return Door(int(program.said(r"port (\d+)")), server=Group(program.pid))

    def forwarder(self, programs: Programs, target: int) -> Door | None:
        return None

    def stdio(self, programs: Programs, target: int, tls: Certificate | None) -> Command | None:
        return None


Contender = Bare | Direct | Socat | HAProxy | Http2tcp | Original | Chisel | Websocat

#: In the order of the table's columns.
CONTENDERS: tuple[Contender, ...] = (
    Direct(),
    Socat(),
    HAProxy(),
    Http2tcp("http2tcp"),
    Http2tcp("portable", HTTP2TCP_PORTABLE="1"),
    Http2tcp("connect-tcp", transport="connect-tcp"),
    Original(),
    Chisel(),
    Websocat(),
)

#: Only in the rows that ask for them.
BARE_SPLICE = Bare("bare_splice.py")
BARE_TRIO = Bare("bare_trio.py")
ON_SSLSTREAM = Http2tcp("reference", client="tests.benchmarks.sslstream")


def upgrade(target: int, transport: str, credential: str) -> bytes:
    """The request that opens a tunnel, written by hand, so that the near end costs nothing."""
    return (
        f"GET /?addr=127.0.0.1%3A{target} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        f"Upgrade: {transport}\r\nAuthorization: {credential}\r\n\r\n"
    ).encode()


def tls_front(programs: Programs, upstream: int, tls: Certificate) -> int:
    """A front end that ends TLS. It is the same for all contenders, so that only their own programs differ."""
    return HAProxy().relay(programs, upstream, tls).port


def make_certificate(scratch: Path) -> Certificate:
    """Make a certificate, which the clients are configured to trust."""
    public, key, both = scratch / "public.pem", scratch / "key.pem", scratch / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", public], check=True, capture_output=True)
    both.write_bytes(public.read_bytes() + key.read_bytes())
    return Certificate(public, both)
