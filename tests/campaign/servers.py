"""The servers and nginx, as processes that serve all cases; and what their records say."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.cases import Case, Server
from tests.support.nginx import nginx
from tests.support.processes import environment, free_port, http2tcp, running
from tests.support.site import Certificates, issue_certificates

#: Bytes a second: three megabytes take some seconds.
RATE = 768 * 1024
#: Seconds: well above the short stalls, well below the long ones.
IDLE = 3.5
#: Short enough for several keepalives in every long stall; long enough that a loaded machine does not miss three.
_KEEPALIVE = 4

_OPTIONS: dict[Server, tuple[str, ...]] = {
    Server.PLAIN: (),
    Server.TLS: (),
    Server.PORTABLE: ("--keepalive", str(_KEEPALIVE)),
    Server.RATE: ("--max-rate", str(RATE)),
    Server.IDLE: ("--idle-timeout", str(IDLE)),
}

#: The port that nginx passes a request on to is in its path, so that each case has a way of its own.
_LEG = "/leg/"

_NGINX = """
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    map $http_upgrade $tunnel {{
        default "";
        tcp tcp;
        http2tcp/1.0 http2tcp/1.0;
        connect-tcp connect-tcp;
        websocket websocket;
    }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3;
        location ~ ^{leg}(\\d+)/ {{
            proxy_pass http://127.0.0.1:$1;
            proxy_http_version 1.1;
            proxy_set_header Connection upgrade;
            proxy_set_header Upgrade $tunnel;
            proxy_read_timeout 1d;
            proxy_send_timeout 1d;
            send_timeout 1d;
        }}
    }}
}}
"""


@dataclass
class Told:
    """What a server's log has about one case."""

    opened: int = 0
    ended: list[dict[str, Any]] = field(default_factory=list)
    #: Why there was no tunnel: records of a refusal, or of a client that left.
    not_opened: list[dict[str, Any]] = field(default_factory=list)


class Log:
    """A server's log, read on as it grows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position = 0
        self._rest = b""
        self._by_target: dict[str, Told] = {}
        #: Lines that report a bug.
        self.bugs: list[str] = []

    def about(self, target: str) -> Told:
        """All about this target since it was forgotten."""
        self._read_on()
        return self._by_target.setdefault(target, Told())

    def forget(self, target: str) -> None:
        """Another case may have the target's port."""
        self._by_target.pop(target, None)

    def read_bugs(self) -> list[str]:
        """All lines that report a bug."""
        self._read_on()
        return self.bugs

    def _read_on(self) -> None:
        with self._file.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            self.bugs.append(line)  # the log is JSON: another line comes from code that did not use the logger
            return
        if "traceback" in record or record.get("level") == "error":
            self.bugs.append(record.get("traceback") or line)
        if "target" not in record:
            return
        told = self._by_target.setdefault(record["target"], Told())
        match record["event"]:
            case "opened":
                told.opened += 1
            case "ended":
                told.ended.append(record)
            case _:
                told.not_opened.append(record)


@dataclass(frozen=True)
class Running:
    """A server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Log


@dataclass(frozen=True)
class Site:
    """All servers, and nginx."""

    directory: Path
    servers: dict[Server, Running]
    nginx_port: int | None
    certificates: Certificates
    token: str

    def serves(self, case: Case) -> bool:
        """Whether what this case needs is there."""
        return case.server is not Server.NGINX or self.nginx_port is not None

    def server(self, case: Case) -> Running:
        """The server whose record has this case."""
        return self.servers[Server.PLAIN if case.server is Server.NGINX else case.server]

    def front(self, case: Case) -> int:
        """The port that the client's connection leads to."""
        if case.server is not Server.NGINX:
            return self.server(case).port
        assert self.nginx_port is not None
        return self.nginx_port

    def path(self, case: Case, far: int) -> str:
        """The endpoint's path, with nginx's way to the server by the port `far`."""
        return f"{_LEG}{far}/" if case.server is Server.NGINX else "/"


def has_nginx() -> bool:
    """Whether it is installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin") is not None


@contextmanager
def site(directory: Path, *, with_nginx: bool = True) -> Iterator[Site]:
    """Start all of it, and end it."""
    certificates = issue_certificates(directory)
    token = secrets.token_hex(16)
    token_file = directory / "token"
    token_file.touch(0o600)
    token_file.write_text(token + "\n")
    with ExitStack() as stack:
        servers = {}
        for kind, options in _OPTIONS.items():
            port, log = free_port(), directory / f"{kind.value}.log"
            tls = ("--tls-cert", str(certificates.good)) if kind is Server.TLS else ()
            portable = {"HTTP2TCP_PORTABLE": "1"} if kind is Server.PORTABLE else {}
            arguments = ("-s", "--token-file", str(token_file), "-l", f"127.0.0.1:{port}", "--log-format", "json")
            process = stack.enter_context(
                running(
                    http2tcp(*arguments, *tls, *options),
                    log,
                    lambda log=log: "listening on" in log.read_text(),  # type: ignore[misc]
                    env=environment(**portable),
                )
            )
            servers[kind] = Running(process, port, Log(log))
        front = None
        if with_nginx:
            front = free_port()
            configuration = _NGINX.format(port=front, certificate=certificates.good, leg=_LEG)
            stack.enter_context(nginx(directory / "nginx", configuration, front))
        yield Site(directory, servers, front, certificates, token)
