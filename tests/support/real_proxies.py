"""Corporate proxies: squid, tinyproxy and microsocks, each with a password and without, started as the current user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.processes import free_port, listens, program, running

USER = "us3r"
# Letters alone: tinyproxy's configuration takes no others.
PASSWORD = "pr0xyS3cret"

#: A name that squid alone knows: this machine.
NAME = "site.example"

# Debian's; it counts only where squid is started as root.
_SQUID_USER = "proxy"


@dataclass(frozen=True)
class Proxies:
    """The ports of the running proxies, by name; the names of those with a password end in `-login`."""

    ports: dict[str, int]
    squid_log: Path

    def url(self, name: str, login: str | None = None) -> str:
        """The URL for `--proxy`, with the right login where one is wanted, unless another is given."""
        scheme, _, rest = name.partition(" ")
        if login is None:
            login = f"{USER}:{PASSWORD}@" if name.endswith("-login") else ""
        # The certificate is for that name.
        host = "localhost" if scheme == "https" else "127.0.0.1"
        return f"{scheme}://{login}{host}:{self.ports[rest + ('-tls' if scheme == 'https' else '')]}"


#: Every way in, as `scheme program`.
WITHOUT_LOGIN = ["http squid", "https squid", "http tinyproxy", "socks5 microsocks", "socks5h microsocks"]
WITH_LOGIN = [f"{name}-login" for name in WITHOUT_LOGIN]


def _all_listen(ports: list[int]) -> bool:
    return all(map(listens, ports))


@contextmanager
def run_proxies(directory: Path, certificate: Path) -> Iterator[Proxies]:
    """Start all of them. `certificate` has the key too, and is for `localhost`."""
    programs = ("squid", "tinyproxy", "microsocks")
    names = [name + suffix for name in programs for suffix in ("", "-login")]
    ports = {name: free_port() for name in (*names, "squid-tls", "squid-login-tls")}
    squid_logs = []
    with ExitStack() as stack:
        for name in names:
            login = name.endswith("-login")
            home = directory / name
            home.mkdir()
            if name.startswith("squid"):
                squid_home = stack.enter_context(_squid_home())
                squid_logs.append(squid_home / "access.log")
                command = _squid(squid_home, ports[name], ports[f"{name}-tls"], certificate, login)
            elif name.startswith("tinyproxy"):
                command = _tinyproxy(home, ports[name], login)
            else:
                command = [program("microsocks"), "-i", "127.0.0.1", "-p", str(ports[name])]
                command += ["-u", USER, "-P", PASSWORD] if login else []
            ready = [ports[name]] + ([ports[f"{name}-tls"]] if name.startswith("squid") else [])
            stack.enter_context(running(command, home / "output.log", partial(_all_listen, ready)))
        yield Proxies(ports, squid_logs[0])


@contextmanager
def tinyproxy(directory: Path) -> Iterator[int]:
    """A tinyproxy that wants the login above; its port."""
    directory.mkdir()
    port = free_port()
    with running(_tinyproxy(directory, port, login=True), directory / "output.log", lambda: listens(port)):
        yield port


@contextmanager
def _squid_home() -> Iterator[Path]:
    """Where squid may write: as root it becomes another user, who cannot enter the test's directories."""
    with tempfile.TemporaryDirectory(prefix="squid-") as name:
        if os.getuid() == 0:
            shutil.chown(name, _SQUID_USER)
        yield Path(name)


def _squid(home: Path, port: int, tls_port: int, certificate: Path, login: bool) -> list[str]:
    # With its key, which squid reads before it changes its user, and after.
    shutil.copy(certificate, home / "certificate.pem")
    (home / "certificate.pem").chmod(0o644)
    (home / "hosts").write_text(f"127.0.0.1 localhost {NAME}\n")
    lines = [
        f"http_port 127.0.0.1:{port}",
        f"https_port 127.0.0.1:{tls_port} tls-cert={home}/certificate.pem",
        f"hosts_file {home}/hosts",
        f"access_log stdio:{home}/access.log",
        f"cache_log {home}/cache.log",
        f"pid_filename {home}/squid.pid",
        f"coredump_dir {home}",
        f"cache_effective_user {_SQUID_USER}",
        "cache deny all",
        "pinger_enable off",
        "netdb_filename none",
        "shutdown_lifetime 0 seconds",
        "memory_cache_shared off",
        "workers 1",
    ]
    if login:
        hashed = subprocess.run(
            [program("openssl"), "passwd", "-apr1", PASSWORD], capture_output=True, check=True, timeout=20
        ).stdout.decode()
        (home / "passwords").write_text(f"{USER}:{hashed}")
        lines += [
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {home}/passwords",
            "auth_param basic children 1",
            "auth_param basic realm corporate, and private",
            "acl known proxy_auth REQUIRED",
            "http_access allow known",
        ]
    else:
        lines += ["acl closed port 9", "http_access deny closed", "http_access allow localhost"]
    lines += ["http_access deny all"]
    (home / "squid.conf").write_text("\n".join([*lines, ""]))
    # A name of its own: what it shares in memory has that name, and other squids of this machine have another.
    return [program("squid"), "-N", "-n", f"t{port}", "-f", str(home / "squid.conf")]


def _tinyproxy(home: Path, port: int, login: bool) -> list[str]:
    lines = [
        f"Port {port}",
        "Listen 127.0.0.1",
        "Allow 127.0.0.1",
        "Timeout 600",
        "MaxClients 50",
        f'LogFile "{home}/tinyproxy.log"',
        f'PidFile "{home}/tinyproxy.pid"',
        *([f"BasicAuth {USER} {PASSWORD}"] if login else []),
    ]
    (home / "tinyproxy.conf").write_text("\n".join([*lines, ""]))
    return [program("tinyproxy"), "-d", "-c", str(home / "tinyproxy.conf")]
