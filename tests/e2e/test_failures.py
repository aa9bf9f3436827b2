"""What a user reads when a hop fails: one line that names the hop and what to do, and the hop's exit status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import socket
import ssl
import subprocess
import threading
import tty
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.nginx import example, nginx
from tests.support.openssh import Login
from tests.support.processes import conversation, environment, free_port
from tests.support.site import Site, https_site, run_server

LoginTo = Callable[..., Login]


@dataclass(frozen=True)
class Broken:
    """A site whose front end is set up wrongly in every common way."""

    http: int
    https: int
    expired: int
    #: https that wants a certificate of the client.
    mutual: int


@pytest.fixture(scope="module")
def broken(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    directory = tmp_path_factory.mktemp("broken")
    page = directory / "index.html"
    page.write_text("<html>Welcome</html>\n")
    ports = Broken(http=free_port(), https=free_port(), expired=free_port(), mutual=free_port())
    server = f"http://127.0.0.1:{site.server.port}"
    configuration = f"""
events {{}}
http {{
    # A second request within a minute is one too many; `fill` makes the first.
    limit_req_zone $binary_remote_addr zone=none:1m rate=1r/m;
    server {{
        listen 127.0.0.1:{ports.mutual} ssl;
        ssl_certificate {site.certificates.good};
        ssl_certificate_key {site.certificates.good};
        ssl_client_certificate {site.certificates.ca};
        ssl_verify_client on;
    }}
    server {{
        listen 127.0.0.1:{ports.http};
        root {directory};
        location /static/ {{ try_files /index.html =500; }}
        location /defaults/ {{ proxy_pass {server}; }}
        location /http11/ {{ proxy_pass {server}; proxy_http_version 1.1; }}
        location /down/ {{ proxy_pass http://127.0.0.1:{free_port()}; proxy_http_version 1.1; }}
        location /replaced/ {{
            proxy_pass {server};
            proxy_http_version 1.1;
            proxy_set_header Connection upgrade;
            proxy_set_header Upgrade $http_upgrade;
            proxy_intercept_errors on;
            error_page 502 /index.html;
        }}
        location /limited/ {{ limit_req zone=none; proxy_pass {server}; }}
        location /denied/ {{ deny all; }}
        location /busy/ {{ return 500; }}
        location /to-https/ {{ return 301 https://localhost:{ports.https}$request_uri; }}
    }}
    server {{
        listen 127.0.0.1:{ports.https} ssl;
        ssl_certificate {site.certificates.good};
        ssl_certificate_key {site.certificates.good};
    }}
    server {{
        listen 127.0.0.1:{ports.expired} ssl;
        ssl_certificate {site.certificates.expired};
        ssl_certificate_key {site.certificates.expired};
    }}
}}
"""
    with nginx(directory, configuration, ports.http):
        yield ports


@dataclass(frozen=True)
class Case:
    """A client's arguments, the status that it ends with, and the parts of the line that it writes."""

    endpoint: str
    status: int
    says: list[str]
    destination: str = "{sshd}"
    more: list[str] = field(default_factory=list)


NGINX_LINES = [
    "proxy_http_version 1.1;",
    "proxy_set_header Connection upgrade;",
    "proxy_set_header Upgrade connect-tcp;",
]

CASES = {
    "wrong token": Case(
        "{good}", 68, ["http2tcp server: ", "does not know this token"], more=["--token-file", "{other_token}"]
    ),
    "forbidden destination": Case(
        "{good}", 69, ["http2tcp server: ", "169.254.169.254:80", "link-local"], destination="169.254.169.254:80"
    ),
    "refused target": Case(
        "{good}", 70, ["target: ", "cannot reach 127.0.0.1:{closed}", "refused"], destination="127.0.0.1:{closed}"
    ),
    "unknown target": Case(
        "{good}", 70, ["target: ", "cannot reach nowhere.invalid:22", "name"], destination="nowhere.invalid:22"
    ),
    "no location": Case("{http}/nothing/", 67, ["front end: ", "404", "nginx", "path is wrong", "/nothing/ in -e"]),
    "static page": Case("{http}/static/", 67, ["front end: ", "200", "nginx", "answers at /static/"]),
    "no upgrade lines": Case("{http}/defaults/", 67, ["front end: ", "400", *NGINX_LINES]),
    "no upgrade fields": Case("{http}/http11/", 67, ["front end: ", "426", *NGINX_LINES]),
    "server down": Case("{http}/down/", 67, ["front end: ", "502", "no http2tcp server", "proxy_pass"]),
    "page in place of a refused target": Case(
        "{http}/replaced/",
        67,
        ["front end: ", "502", "no http2tcp server", "cannot reach 127.0.0.1:{closed}", "proxy_intercept_errors"],
        destination="127.0.0.1:{closed}",
    ),
    "front end's limit": Case("{http}/limited/", 67, ["front end: ", "503", "limit_req"]),
    "http to nginx's https": Case(
        "http://localhost:{mutual}/", 67, ["front end: ", "plain HTTP request was sent to HTTPS port", "https://"]
    ),
    "certificate of the client missing": Case(
        "https://localhost:{mutual}/",
        67,
        ["front end: ", '"400 No required SSL certificate was sent"', "--client-cert"],
        more=["--ca-file", "{ca}"],
    ),
    "too many cookies": Case(
        "{http}/denied/",
        67,
        ["front end: ", '"400 Request Header Or Cookie Too Large"', "--header"],
        more=["--header", "Cookie: " + "x" * 20_000],
    ),
    "front end denies": Case("{http}/denied/", 67, ["front end: ", "403"]),
    "front end fails": Case("{http}/busy/", 67, ["front end: ", "500"]),
    "redirect": Case("{http}/to-https/", 67, ["front end: ", "301", "-e https://localhost:{https}/to-https/"]),
    "slash forgotten": Case("{good_without_slash}", 67, ["front end: ", "301", "-e {good}"]),
    "certificate unknown": Case("https://localhost:{https}/", 66, ["TLS: ", "localhost", "--ca-file"]),
    "certificate expired": Case(
        "https://localhost:{expired}/", 66, ["TLS: ", "localhost", "expired"], more=["--ca-file", "{ca}"]
    ),
    "certificate for another name": Case(
        "https://127.0.0.1:{https}/", 66, ["TLS: ", "127.0.0.1", "--tls-server-name"], more=["--ca-file", "{ca}"]
    ),
    "https to http": Case("https://localhost:{http_port}/", 66, ["TLS: ", "does not speak TLS", "http://"]),
    "http to https": Case("http://localhost:{https}/", 67, ["front end: ", "400", "https://"]),
    "nothing there": Case("https://localhost:{closed}/", 65, ["TCP: ", "localhost:{closed}", "refused"]),
    "name unknown": Case("https://nowhere.invalid/", 64, ["name: ", "nowhere.invalid", "-e"]),
}


@pytest.fixture
def fill(site: Site, broken: Broken, tmp_path: Path) -> Callable[[str], str]:
    """Fill a case's braces."""
    other_token = tmp_path / "token"
    other_token.touch(0o600)
    other_token.write_text("another\n")
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{broken.http}/limited/", timeout=10)
    values = {
        "good": site.https,
        "good_without_slash": site.https.rstrip("/"),
        "http": f"http://localhost:{broken.http}",
        "http_port": broken.http,
        "https": broken.https,
        "expired": broken.expired,
        "mutual": broken.mutual,
        "ca": site.certificates.ca,
        "closed": free_port(),
        "sshd": site.sshd.address,
        "other_token": other_token,
    }
    return lambda text: text.format(**values)


def client_of(case: Case, site: Site, fill: Callable[[str], str]) -> list[str]:
    # The site's own authority goes to the site's own endpoint only.
    command = site.client(fill(case.endpoint), *map(fill, case.more), destination=fill(case.destination))
    if "{good" not in case.endpoint and "--ca-file" not in case.more and "--ca-file" in command:
        at = command.index("--ca-file")
        del command[at : at + 2]
    return command


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_line_names_the_hop_and_the_fix(site: Site, case: Case, fill: Callable[[str], str]) -> None:
    command = client_of(case, site, fill)
    done = subprocess.run(command, input=b"", capture_output=True, timeout=30, env=environment())
    print(done.stderr.decode())
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"http2tcp: {fill(case.says[0])}")
    for part in case.says:
        assert fill(part) in line
    assert done.returncode == case.status
    assert done.stdout == b""
    assert site.server.token not in line
    assert re.search(r"Errno|Traceback|\bssl\.|\(_ssl|b'", line) is None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_check_names_the_same_hop_and_the_fix(site: Site, case: Case, fill: Callable[[str], str]) -> None:
    command = [*client_of(case, site, fill), "--check", "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, env=environment())
    assert done.stderr == b""
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_status"] == case.status
    hop = fill(case.says[0]).removesuffix(": ")
    assert document["sentence"].startswith(f"It fails at {hop if hop.isupper() else f'the {hop}'}: ")
    lines = document["advice"]["lines"] if document["advice"] else []
    for part in case.says[1:]:
        # In the lines for nginx the token is a variable.
        whole = fill(part).replace("Upgrade connect-tcp;", "Upgrade $http2tcp_upgrade;")
        assert whole in " ".join([document["sentence"], *lines])
    assert site.server.token not in done.stdout.decode()


@pytest.mark.parametrize("name", ["wrong token", "refused target", "server down", "certificate unknown"])
def test_ssh_s_user_reads_the_same_line(site: Site, login: LoginTo, name: str, fill: Callable[[str], str]) -> None:
    command = client_of(CASES[name], site, fill)
    alone = subprocess.run(command, input=b"", capture_output=True, timeout=30, env=environment())
    done = login(command).run("ssh", "target", "echo in")
    assert done.returncode == 255
    assert done.stdout == b""
    first, *_ = done.stderr.splitlines()
    assert first == alone.stderr.splitlines()[0]


def test_the_line_ends_at_the_left_margin_of_a_terminal_that_ssh_has_made_raw(site: Site) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    command = site.client(f"http://127.0.0.1:{free_port()}/", destination=site.sshd.address)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=slave, timeout=30, env=environment())
        assert done.returncode == 65
        # Without the CR the shell's prompt, or ssh's own words, would begin where this line ended.
        assert os.read(master, 4096).endswith(b"site is up\r\n")
    finally:
        os.close(master)
        os.close(slave)


def test_an_upload_that_the_front_end_ends_is_no_success(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.certificates.good)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def end_early() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as front:
                front.recv(65536)
                front.sendall(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
                # close_notify, and then no wait for the client's.
                front.setblocking(False)
                with contextlib.suppress(OSError):
                    front.unwrap()

        ending = threading.Thread(target=end_early)
        ending.start()
        command = site.client(f"https://localhost:{listener.getsockname()[1]}/", destination=site.sshd.address)
        done = subprocess.run(command, input=bytes(30_000_000), capture_output=True, timeout=30, env=environment())
        ending.join()
    assert done.returncode == 71
    assert done.stderr.startswith(b"http2tcp: tunnel: connection lost: ")
    assert b"unknown" not in done.stderr


def test_a_server_that_dies_under_a_login_is_told(site: Site, login: LoginTo, tmp_path: Path) -> None:
    with run_server(tmp_path / "server") as server:
        port = free_port()
        upstream = f"http://127.0.0.1:{server.port}"
        text = example(tmp_path / "nginx", https_site(port, upstream, site.certificates.good))
        with nginx(tmp_path / "nginx", text, port):
            endpoint = f"https://localhost:{port}/~http2tcp/"
            options = ("--transport", "connect-tcp", "--no-resume")
            client = site.client(endpoint, "--token-file", str(server.token_file), *options)
            command = [*login(client).command("ssh", "target", "echo ready; read line")]
            with conversation(command, stderr=subprocess.PIPE) as ssh:
                assert ssh.stdout is not None
                assert ssh.stdout.readline() == b"ready\n"
                server.process.kill()
                _, stderr = ssh.communicate(timeout=20)
    assert ssh.returncode == 255
    assert b"http2tcp: tunnel: connection lost: the tunnel was cut" in stderr
