"""The front ends that have an example: each runs from that very file, but for ports, paths and the certificate."""

from __future__ import annotations

import grp
import http.client
import os
import pwd
import signal
import ssl
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
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

    def checker(self, file: Path) -> list[str]:
        """Its own check of a configuration, as the example names it."""
        raise NotImplementedError

    def configuration(self, place: Place, more: Mapping[str, str]) -> Path:
        """The file, written."""
        place.directory.mkdir(exist_ok=True)
        text = (EXAMPLES / self.example).read_text()
        file = place.directory / Path(self.example).name
        file.write_text(replaced(text, {**self.replacements(place), **more}))
        return file

    @contextmanager
    def running(self, place: Place, more: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """It as a process."""
        file = self.configuration(place, more)
        env = environment(HOME=str(place.directory))
        log = place.directory / "output.log"
        with running(self.command(file), log, lambda: self.ready(place), env=env) as process:
            yield process

    def ready(self, place: Place) -> bool:
        """Whether it serves what its configuration says."""
        return listens(place.port)

    @contextmanager
    def reloaded(self, process: subprocess.Popen[bytes], place: Place) -> Iterator[None]:
        """It, once it has loaded its configuration again."""
        self.reload(process, place)
        yield

    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        """Make it load its configuration again; returns once that has happened."""
        raise NotImplementedError


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


class Traefik(FrontEnd):
    name = "Traefik"
    #: The file with all that concerns http2tcp; the other one has the rest.
    example = "traefik/http2tcp.yml"
    start: ClassVar = "traefik/traefik.yml"

    def replacements(self, place: Place) -> dict[str, str]:
        return {
            "  routers:\n": f"  routers:\n{self._sign('loaded')}",
            "http://127.0.0.1:12345": f"http://{place.server}",
            "/etc/ssl/example.com/fullchain.pem": str(place.certificate),
            "/etc/ssl/example.com/privkey.pem": str(place.certificate),
        }

    @staticmethod
    def _sign(name: str) -> str:
        """A router whose path is there once the file has been loaded: Traefik listens before that."""
        return f"    sign: {{entryPoints: [site], rule: Path(`/{name}`), service: noop@internal, tls: {{}}}}\n"

    def configuration(self, place: Place, more: Mapping[str, str]) -> Path:
        dynamic = super().configuration(place, more)
        replacements = {"address: :443": f"address: 127.0.0.1:{place.port}", "/etc/traefik/http2tcp.yml": str(dynamic)}
        file = place.directory / Path(self.start).name
        file.write_text(replaced((EXAMPLES / self.start).read_text(), replacements))
        return file

    def command(self, file: Path) -> list[str]:
        return [program("traefik"), f"--configfile={file}"]

    def ready(self, place: Place) -> bool:
        return listens(place.port) and self._is_there(place, "loaded")

    def reload(self, process: subprocess.Popen[bytes], place: Place) -> None:
        # It notices by itself.
        dynamic = place.directory / Path(self.example).name
        dynamic.write_text(replaced(dynamic.read_text(), {self._sign("loaded"): self._sign("reloaded")}))
        wait_until(lambda: self._is_there(place, "reloaded"), "the new configuration is in force")

    @staticmethod
    def _is_there(place: Place, name: str) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", place.port, timeout=20, context=context)
        with closing(connection):
            try:
                connection.request("GET", f"/{name}")
            except ssl.SSLError:
                return False  # it has no certificate before its file is loaded
            return connection.getresponse().status != 404


class Envoy(FrontEnd):
    name = "Envoy"
    example = "envoy.yaml"
    impatience: ClassVar = {"idle_timeout: 86400s": f"idle_timeout: {PATIENCE:g}s"}

    def replacements(self, place: Place) -> dict[str, str]:
        host, _, port = place.server.rpartition(":")
        return {
            "{address: 0.0.0.0, port_value: 443}": f"{{address: 127.0.0.1, port_value: {place.port}}}",
            "{address: 127.0.0.1, port_value: 12345}": f"{{address: {host}, port_value: {port}}}",
            "/etc/ssl/example.com/fullchain.pem": str(place.certificate),
            "/etc/ssl/example.com/privkey.pem": str(place.certificate),
        }

    def command(self, file: Path) -> list[str]:
        # Several may run on one machine, and each has a name to be reloaded by.
        return [program("envoy"), "-c", str(file), "--use-dynamic-base-id", "--base-id-path", f"{file}.id"]

    def checker(self, file: Path) -> list[str]:
        return [program("envoy"), "--mode", "validate", "-c", str(file)]

    @contextmanager
    def running(self, place: Place, more: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        with super().running(place, more) as process:
            try:
                yield process
            finally:
                # It leaves that behind when it ends.
                identity = Path(f"{place.directory / self.example}.id").read_text()
                Path(f"/dev/shm/envoy_shared_memory_{identity}0").unlink(missing_ok=True)

    @contextmanager
    def reloaded(self, process: subprocess.Popen[bytes], place: Place) -> Iterator[None]:
        file = place.directory / self.example
        identity = Path(f"{file}.id").read_text()
        command = [program("envoy"), "-c", str(file), "--restart-epoch", "1", "--base-id", identity]
        log = place.directory / "output.log"
        with running(command, log, lambda: "closing and draining listeners" in log.read_text(errors="replace")):
            yield


#: Traefik has no check of a file.
CHECKED: tuple[FrontEnd, ...] = (Nginx(), HAProxy(), Apache(), Caddy(), Envoy())
FRONT_ENDS: tuple[FrontEnd, ...] = (Nginx(), HAProxy(), Apache(), Caddy(), Traefik(), Envoy())


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
