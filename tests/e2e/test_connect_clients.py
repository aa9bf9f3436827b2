"""nc, corkscrew, proxytunnel and curl, which know proxies and nothing of ours, and logins through each of them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.nginx import replaced
from tests.support.openssh import Login
from tests.support.processes import conversation, environment, free_port, http2tcp, listens, program, running
from tests.support.site import Server, Site, run_server

LoginTo = Callable[..., Login]

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "without-a-client.md"
BANNER = b"SSH-2.0-OpenSSH"


@dataclass(frozen=True)
class Proxy:
    """A server that takes CONNECT, and files with its token as each program wants it."""

    server: Server
    #: A server without a token, pinned to the sshd.
    pinned_port: int
    #: HAProxy before `server`, with TLS.
    tls_port: int
    directory: Path

    def command(self, name: str, host: str = "%h", port: str = "%p") -> list[str]:
        """The program as a ProxyCommand."""
        where = f"127.0.0.1:{self.server.port}"
        proxytunnel = [program("proxytunnel"), "-q", "-d", f"{host}:{port}", "-F", str(self.directory / "proxytunnel")]
        match name:
            case "nc":
                return [program("nc"), "-X", "connect", "-x", f"127.0.0.1:{self.pinned_port}", host, port]
            case "corkscrew":
                login = str(self.directory / "corkscrew")
                return [program("corkscrew"), "127.0.0.1", str(self.server.port), host, port, login]
            case "proxytunnel":
                return [*proxytunnel, "-p", where]
            case "proxytunnel over TLS":
                # HAProxy wants the destination for a Host.
                tls = ["-E", "-C", str(self.directory / "ca.pem"), "-o", f"{host}:{port}"]
                return [*proxytunnel, *tls, "-p", f"localhost:{self.tls_port}"]
            case _:
                raise AssertionError(name)


def haproxy_configuration(directory: Path, replacements: dict[str, str]) -> Path:
    """The how-to's own, word for word but for the replacements."""
    (block,) = re.findall(r"```haproxy\n(defaults\n.*?)```", HOW_TO.read_text(), re.DOTALL)
    path = directory / "haproxy.cfg"
    path.write_text(replaced(block, replacements))
    return path


@pytest.fixture(scope="module")
def proxy(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("connect")
    pinned, tls = free_port(), free_port()
    alone = http2tcp("-s", "--connect", "-d", site.sshd.address, "-l", f"127.0.0.1:{pinned}")
    with (
        run_server(directory / "server", "--connect") as server,
        running(alone, directory / "pinned.log", lambda: listens(pinned)),
    ):
        token = server.token
        for name, text in {
            "corkscrew": f"me:{token}\n",
            "proxytunnel": f"proxy_user=me\nproxy_passwd={token}\n",
        }.items():
            (directory / name).touch(0o600)
            (directory / name).write_text(text)
        (directory / "ca.pem").write_bytes(site.certificates.ca.read_bytes())
        configuration = haproxy_configuration(
            directory,
            {
                ":443 ssl": f"127.0.0.1:{tls} ssl",
                "/etc/haproxy/example.com.pem": str(site.certificates.good),
                "127.0.0.1:12345": f"127.0.0.1:{server.port}",
                "127.0.0.1:8080": site.http.split("/")[2].replace("localhost", "127.0.0.1"),
            },
        )
        command = [program("haproxy"), "-db", "-f", str(configuration)]
        with running(command, directory / "haproxy.log", lambda: listens(tls)):
            yield Proxy(server, pinned, tls, directory)


@pytest.mark.parametrize("name", ["nc", "corkscrew", "proxytunnel", "proxytunnel over TLS"])
def test_ssh_logs_in_through_a_program_that_knows_only_proxies(proxy: Proxy, login: LoginTo, name: str) -> None:
    done = login(proxy.command(name)).run("ssh", "target", "cat; exit 42", stdin=b"x" * 100_000)
    assert (done.returncode, done.stdout) == (42, b"x" * 100_000)


@pytest.mark.parametrize("name", ["nc", "corkscrew", "proxytunnel"])
def test_a_big_file_is_whole_both_ways(proxy: Proxy, login: LoginTo, name: str, tmp_path: Path) -> None:
    data = os.urandom(10_000_000)
    (tmp_path / "here").write_bytes(data)
    user = login(proxy.command(name))
    up = user.run("scp", "-q", str(tmp_path / "here"), f"target:{tmp_path}/there")
    down = user.run("scp", "-q", f"target:{tmp_path}/there", str(tmp_path / "back"))
    assert (up.returncode, down.returncode) == (0, 0), up.stderr + down.stderr
    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == data


def test_nc_that_asks_for_the_password_gets_in_with_the_token(proxy: Proxy, site: Site) -> None:
    """It reads it from its terminal alone, and connects anew after the 407."""
    host, port = site.sshd.address.split(":")
    nc = [program("nc"), "-P", "me", "-X", "connect", "-x", f"127.0.0.1:{proxy.server.port}", host, port]
    terminal, slave = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *nc], stdin=slave, stdout=slave, stderr=slave, env=environment()
    ) as process:
        # Once it has ended, reading fails.
        watchdog = threading.Timer(20, process.kill)
        watchdog.start()
        try:
            os.close(slave)
            shown = b""
            while not shown.endswith(b": "):
                shown += os.read(terminal, 4096)
            os.write(terminal, proxy.server.token.encode() + b"\n")
            while BANNER not in shown:
                shown += os.read(terminal, 4096)
            assert proxy.server.token.encode() not in shown
        finally:
            watchdog.cancel()
            process.kill()
            os.close(terminal)


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [program("curl"), "-sS", "-m", "20", *arguments]
    return subprocess.run(command, capture_output=True, timeout=30, env=environment())


@pytest.mark.parametrize("option", ["-p", "--proxytunnel"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_reads_a_site_through_it(proxy: Proxy, site: Site, scheme: str, option: str) -> None:
    url = site.https if scheme == "https" else site.http
    through = ["-x", f"http://127.0.0.1:{proxy.server.port}", "-U", f"me:{proxy.server.token}"]
    done = curl(option, *through, "--cacert", str(site.certificates.ca), "-w", "%{http_connect} %{http_code}", url)
    assert (done.returncode, done.stderr) == (0, b"")
    # The site's own server behind nginx wants a token: a whole answer of nginx's came back.
    assert done.stdout == b"a token is needed\n200 401"


def test_curl_goes_through_haproxy_with_tls_which_shares_its_port_with_the_site(proxy: Proxy, site: Site) -> None:
    ca, front = str(site.certificates.ca), f"https://localhost:{proxy.tls_port}"
    login = ["-U", f"me:{proxy.server.token}", "--proxy-cacert", ca]
    done = curl("-p", "-x", front, *login, "-w", "%{http_connect} %{http_code}", site.http)
    assert (done.returncode, done.stdout) == (0, b"a token is needed\n200 401"), done.stderr
    own = curl("--cacert", ca, "-w", "%{http_code}", f"{front}/~http2tcp/")
    assert (own.returncode, own.stdout) == (0, b"a token is needed\n401"), own.stderr


@pytest.mark.parametrize(
    ("login", "destination", "status"),
    [
        ([], "sshd", "407"),
        (["-U", "me:wrong"], "sshd", "407"),
        (None, "169.254.169.254:80", "403"),
        (None, "nobody", "502"),
        (None, "no.such.name.invalid:80", "502"),
    ],
)
def test_curl_tells_which_refusal_it_got(
    proxy: Proxy, site: Site, login: list[str] | None, destination: str, status: str
) -> None:
    where = {"sshd": site.sshd.address, "nobody": f"127.0.0.1:{free_port()}"}.get(destination, destination)
    through = ["-x", f"http://127.0.0.1:{proxy.server.port}"]
    through += ["-U", f"me:{proxy.server.token}"] if login is None else login
    done = curl("-p", *through, "-w", "%{http_connect}", f"http://{where}/")
    assert done.returncode == 56
    assert done.stdout.decode() == status


@pytest.mark.parametrize("name", ["nc", "corkscrew", "proxytunnel"])
def test_a_refused_target_ends_the_program_with_its_own_error(proxy: Proxy, name: str) -> None:
    command = proxy.command(name, "127.0.0.1", str(free_port()))
    with conversation(command, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.wait(20) != 0


def test_the_log_of_the_server_has_the_carrier_and_no_token(proxy: Proxy, site: Site) -> None:
    host, port = site.sshd.address.split(":")
    with conversation(proxy.command("corkscrew", host, port)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(BANNER)
    assert f"target={site.sshd.address} dialled={site.sshd.address} transport=connect" in proxy.server.log
    assert proxy.server.token not in proxy.server.log
