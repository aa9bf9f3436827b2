"""The front ends that have an example: each runs from that very file, but for ports, paths and the certificate."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.support import nginx, site
from tests.support.nginx import replaced
from tests.support.processes import environment, free_port, listens, program, running, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"

#: How long a front end that was made impatient, and can be, bears silence.
PATIENCE = 3.0


@dataclass(frozen=True)
class Place:
    """Where a front end runs, and what it leads to."""

    directory: Path
    port: int
    #: The http2tcp server's host and port.
    server: str
    #: A file with the certificate, its chain, and its key.
    certificate: Path

    @property
    def endpoint(self) -> str:
        return f"https://localhost:{self.port}/~http2tcp/"


class FrontEnd(ABC):
    """A front end with an example."""

    #: As a person writes it.
    name: ClassVar[str]
    example: ClassVar[str]
    #: Replacements that make it cut a tunnel after PATIENCE seconds of silence; none where it never does.
    impatience: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def replacements(self, place: Place) -> dict[str, str]:
        """What is replaced in the example, each exactly once."""

    @abstractmethod
    def command(self, file: Path) -> list[str]:
        """It, in the foreground."""

    @abstractmethod
    def checker(self, file: Path) -> list[str]:
        """Its own check of a configuration, as the example names it."""

    def configuration(self, place: Place, more: Mapping[str, str]) -> Path:
        """The file, written."""
        place.directory.mkdir(exist_ok=True)
        text = (EXAMPLES / self.example).read_text()
        file = place.directory / self.example
        file.write_text(replaced(text, {**self.replacements(place), **more}))
        return file

    @contextmanager
    def running(self, place: Place, more: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """It as a process."""
        file = self.configuration(place, more)
        env = environment(HOME=str(place.directory))
        log = place.directory / "output.log"
        with running(self.command(file), log, lambda: listens(place.port), env=env) as process:
            yield process

    @abstractmethod
    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        """Make it load its configuration again; returns once that has happened."""


class Nginx(FrontEnd):
    name = "nginx"
    example = "nginx.conf"
    impatience: ClassVar = {"proxy_read_timeout 1d;": f"proxy_read_timeout {PATIENCE:g}s;"}

    def replacements(self, place: Place) -> dict[str, str]:
        return {
            **site.https_site(place.port, f"http://{place.server}", place.certificate),
            "/var/log/nginx/http2tcp.log": str(place.directory / "access.log"),
        }

    def command(self, file: Path) -> list[str]:
        return nginx.command(file)

    def checker(self, file: Path) -> list[str]:
        return [*self.command(file), "-t"]

    def configuration(self, place: Place, more: Mapping[str, str]) -> Path:
        return nginx.prepared(super().configuration(place, more))

    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        _signal_for_a_new_child(process, signal.SIGHUP)


class HAProxy(FrontEnd):
    name = "HAProxy"
    example = "haproxy.cfg"
    impatience: ClassVar = {"timeout tunnel 1d": f"timeout tunnel {PATIENCE:g}s"}

    def replacements(self, place: Place) -> dict[str, str]:
        return {
            "bind :443 ssl": f"bind 127.0.0.1:{place.port} ssl",
            "/etc/ssl/example.com/fullchain-and-key.pem": str(place.certificate),
            "server http2tcp 127.0.0.1:12345": f"server http2tcp {place.server}",
            **({} if os.getuid() == 0 else {"user haproxy": f"user {_user()}", "group haproxy": f"group {_group()}"}),
        }

    def command(self, file: Path) -> list[str]:
        # With a master that can be told to reload, as the service has it.
        return [program("haproxy"), "-W", "-f", str(file)]

    def checker(self, file: Path) -> list[str]:
        return [program("haproxy"), "-c", "-f", str(file)]

    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        _signal_for_a_new_child(process, signal.SIGUSR2)


class Apache(FrontEnd):
    name = "Apache"
    example = "apache.conf"
    impatience: ClassVar = {" timeout=86400 ": f" timeout={PATIENCE:g} ", "Timeout 60": f"Timeout {PATIENCE:g}"}

    def replacements(self, place: Place) -> dict[str, str]:
        return {
            "Listen 443": f"Listen 127.0.0.1:{place.port}",
            "<VirtualHost *:443>": f"<VirtualHost 127.0.0.1:{place.port}>",
            '"http://127.0.0.1:12345/~http2tcp/"': f'"http://{place.server}/~http2tcp/"',
            "/etc/ssl/example.com/fullchain.pem": str(place.certificate),
            "/etc/ssl/example.com/privkey.pem": str(place.certificate),
            "DefaultRuntimeDir /run/apache2\n": f"DefaultRuntimeDir {place.directory}\n",
            "/run/apache2/apache2.pid": str(place.directory / "apache2.pid"),
            "/var/log/apache2/error.log": str(place.directory / "error.log"),
            "/var/log/apache2/http2tcp.log": str(place.directory / "access.log"),
        }

    def command(self, file: Path) -> list[str]:
        return [program("apache2"), "-D", "FOREGROUND", "-f", str(file)]

    def checker(self, file: Path) -> list[str]:
        return [program("apache2"), "-t", "-f", str(file)]

    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        _signal_for_a_new_child(process, signal.SIGUSR1)


class Caddy(FrontEnd):
    name = "Caddy"
    example = "Caddyfile"

    def replacements(self, place: Place) -> dict[str, str]:
        tls = "tls /etc/ssl/example.com/fullchain.pem /etc/ssl/example.com/privkey.pem"
        # What it would listen on besides.
        places = f"\tadmin localhost:{free_port()}\n\thttp_port {free_port()}"
        return {
            "\n{\n": f"\n{{\n{places}\n",
            "\nexample.com {": f"\nhttps://localhost:{place.port} {{\n\tbind 127.0.0.1",
            # What the file has in a comment for those who have a certificate.
            f"# {tls}": f"tls {place.certificate} {place.certificate}",
            "reverse_proxy 127.0.0.1:12345": f"reverse_proxy {place.server}",
        }

    def command(self, file: Path) -> list[str]:
        return [program("caddy"), "run", "--config", str(file)]

    def checker(self, file: Path) -> list[str]:
        return [program("caddy"), "validate", "--config", str(file)]

    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        # It would notice that nothing has changed.
        command = [program("caddy"), "reload", "--force", "--config", str(place.directory / self.example)]
        env = environment(HOME=str(place.directory))
        subprocess.run(command, check=True, capture_output=True, timeout=20, env=env)


FRONT_ENDS: tuple[FrontEnd, ...] = (Nginx(), HAProxy(), Apache(), Caddy())


def _signal_for_a_new_child(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    before = _children(process.pid)
    process.send_signal(number)
    wait_until(lambda: _children(process.pid) - before, "a child with the new configuration runs")


def _children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _group() -> str:
    return grp.getgrgid(os.getgid()).gr_name
