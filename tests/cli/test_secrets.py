"""No secret leaves the file that holds it: all that a server and its clients say, write and show is searched."""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.loopback import asking
from tests.support.processes import environment, free_port, http2tcp, listens, running
from tests.support.targets import target


def forms(secret: str) -> list[bytes]:
    """A secret as it could be read somewhere."""
    plain = secret.encode()
    basic = base64.b64encode(b"user:" + plain)
    return [plain, basic, base64.b64encode(plain), hashlib.sha256(plain).hexdigest().encode(), plain.hex().encode()]


def exchange(port: int, request: bytes) -> bytes:
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            answer += data
    return answer


Command = tuple[list[str], dict[str, str] | None]


def client(file: Path, port: int, where: str, token: str, in_file: bool, *more: str) -> Command:
    """A client's command line and environment; the token is in the one or in the other."""
    file.write_text(token)
    file.chmod(0o600)
    command = http2tcp("-c", "-v", "-e", f"http://127.0.0.1:{port}/", "-d", where, *more)
    if in_file:
        return [*command, "--token-file", str(file)], environment()
    return command, environment(HTTP2TCP_TOKEN=token)


def side_by_side(commands: dict[str, Command]) -> dict[str, bytes]:
    """What each of them says. A check waits for its target for seconds, so that they run at the same time."""

    def run(command: Command) -> bytes:
        ran = subprocess.run(command[0], env=command[1], input=b"", capture_output=True, timeout=60, check=False)
        return ran.stdout + ran.stderr

    with ThreadPoolExecutor(len(commands)) as threads:
        return dict(zip(commands, threads.map(run, commands.values()), strict=True))


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_token_shows_anywhere_but_in_the_file_that_holds_it(log_format: str, tmp_path: Path) -> None:
    good, named, expired, wrong = (secrets.token_urlsafe(24) for _ in range(4))
    port, admin = free_port(), free_port()
    token_file = tmp_path / "token"
    token_file.write_text(good)
    token_file.chmod(0o600)
    config = tmp_path / "http2tcp.toml"
    config.write_text(
        "\n".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n{more}\n'
            for name, token, more in [("named", named, ""), ("expired", expired, "expires = 2001-01-01")]
        )
    )
    command = http2tcp("-s", "-v", "--token-file", str(token_file), "--config", str(config), "--connect")
    command += ["-l", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--log-format", log_format]
    said: dict[str, bytes] = {}
    log = tmp_path / "log"
    # The target greets and closes: one that is silent holds up a check, and then the server's end.
    with (
        target(lambda connection: connection.sendall(b"hello\n")) as where,
        running(command, log, lambda: listens(port) and listens(admin)) as server,
    ):
        for number, token in enumerate((good, named, expired, wrong)):
            said[f"answer {number}"] = exchange(port, asking("127.0.0.1:1", token=token))
            basic = base64.b64encode(f"user:{token}".encode()).decode()
            head = f"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Basic {basic}\r\n\r\n"
            said[f"answer to CONNECT {number}"] = exchange(port, head.encode())
            # A head that cannot be read, and one that holds the token where it does not belong.
            bad = f"GET /?addr={token}&token={token} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n x\r\n\r\n"
            said[f"answer to nonsense {number}"] = exchange(port, bad.encode())
        said["metrics"] = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=20).read()
        said["command line"] = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        said |= side_by_side(
            {
                "client 0": client(tmp_path / "client0", port, where, good, True, "--check"),
                "client 1": client(tmp_path / "client1", port, where, good, False, "--check", "--json"),
                "client 2": client(tmp_path / "client2", port, where, wrong, True),
                "client 3": client(tmp_path / "client3", port, where, wrong, False, "--check"),
                "server's check": (http2tcp("-s", "--check", "--config", str(config)), None),
                "server's answer": (http2tcp("-s", "--check", "--config", str(config), "--as", "named", where), None),
            }
        )
    said["log"] = log.read_bytes()
    assert b" 502 " in said["answer 0"]
    assert b" 502 " in said["answer 1"]
    assert b" 401 " in said["answer 2"]
    assert b"expired" in said["log"]
    assert all(said.values()), [name for name, text in said.items() if not text]
    for name, text in said.items():
        for secret in (good, named, expired, wrong):
            for form in forms(secret):
                assert form not in text, f"in {name}"
