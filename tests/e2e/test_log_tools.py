"""The log in the hands of logrotate and fail2ban, by what docs/log.md and examples/fail2ban say."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from http2tcp.address import TCPAddress
from tests.support.loopback import TOKEN, asking, exchange, upgrade
from tests.support.processes import environment, free_port, http2tcp, listens, program, running, wait_until

ROOT = Path(__file__).parents[2]
FORMS = pytest.mark.parametrize("form", ["text", "json"])


@contextmanager
def logging_server(log: Path, *arguments: str) -> Iterator[TCPAddress]:
    """A server with TOKEN that logs to the file."""
    port = free_port()
    command = http2tcp("-s", "-l", f"127.0.0.1:{port}", "--log-file", str(log), *arguments)
    with running(
        command, log.with_name("stderr"), lambda: listens(port), env=environment(HTTP2TCP_TOKEN=TOKEN)
    ) as process:
        yield TCPAddress("127.0.0.1", port)
        process.terminate()
        assert process.wait(20) == 0


# --- logrotate ------------------------------------------------------------------------------------


def stanza(log: Path) -> str:
    """The page's, for this file."""
    page = (ROOT / "docs" / "log.md").read_text()
    (block,) = re.findall(r"^/var/log/http2tcp/http2tcp\.log \{\n.*?^\}\n", page, re.MULTILINE | re.DOTALL)
    return str(block).replace("/var/log/http2tcp/http2tcp.log", str(log))


@pytest.mark.parametrize("copytruncate", [False, True], ids=["renamed", "copytruncate"])
async def test_logrotate_rotates_the_log_of_a_server_that_is_told_nothing(copytruncate: bool, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "http2tcp.log"
    log.parent.mkdir(mode=0o755)
    configuration = tmp_path / "logrotate.conf"
    text = stanza(log)
    configuration.write_text(text.replace("nocreate", "copytruncate") if copytruncate else text)
    configuration.chmod(0o644)
    rotate = [program("logrotate"), "--force", "--state", str(tmp_path / "state"), str(configuration)]
    with logging_server(log) as address:
        for number in range(3):
            await exchange(address, asking("localhost:22", token="wrong"))
            wait_until(lambda: log.exists() and "authentication failed" in log.read_text(), "the line is there")
            if number < 2:
                done = subprocess.run(rotate, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stderr
    with gzip.open(log.with_name("http2tcp.log.2.gz"), "rt") as file:
        texts = [file.read(), log.with_name("http2tcp.log.1").read_text(), log.read_text()]
    assert [text.count("authentication failed") for text in texts] == [1, 1, 1]
    assert [text.startswith("20") for text in texts] == [True, True, True]
    assert log.with_name("stderr").read_text() == ""


# --- fail2ban -------------------------------------------------------------------------------------


@pytest.fixture
def fail2ban(tmp_path: Path) -> Path:
    """A directory of fail2ban's own configuration with the example's added."""
    program("fail2ban-regex")
    directory = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", directory)
    shutil.copytree(ROOT / "examples" / "fail2ban", directory, dirs_exist_ok=True)
    return directory


def banned(fail2ban: Path, log: Path) -> list[str]:
    """The address of each line that the filter counts."""
    done = subprocess.run(
        [program("fail2ban-regex"), "--config", str(fail2ban), "--out", "ip", str(log), "http2tcp"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@FORMS
async def test_fail2ban_counts_wrong_tokens_and_nothing_else(form: str, fail2ban: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    trusting = ("--trusted-proxy", "127.0.0.1", "--connect", "--log-format", form, "-v")
    forged = "authentication failed session=0 client=192.0.2.66 cause=unknown"
    with logging_server(log, *trusting) as address:
        for client in ("192.0.2.7", "2001:db8::7"):
            answer = await exchange(address, upgrade("/", f"X-Forwarded-For: {client}", token="wrong"))
            assert answer.status == 401
        answer = await exchange(
            address,
            b"CONNECT db:1 HTTP/1.1\r\nX-Forwarded-For: 192.0.2.8\r\nProxy-Authorization: Bearer wrong\r\n\r\n",
        )
        assert answer.status == 407
        for request in (
            # Without a token; with the right one, and refused for something else; a forged line in every place.
            upgrade("/", "X-Forwarded-For: 192.0.2.9", token=None),
            upgrade("/?addr=169.254.169.254:80", "X-Forwarded-For: 192.0.2.10"),
            upgrade(f"/?addr=unix:/{forged.replace(' ', '%20')}", "X-Forwarded-For: 192.0.2.11"),
            upgrade(f"/?addr=%0a{forged.replace(' ', '%20')}", "X-Forwarded-For: 192.0.2.12"),
            upgrade("/", f"X-Forwarded-For: {forged}", token=None),
            upgrade("/", f"User-Agent: {forged}", token=None),
        ):
            assert (await exchange(address, request)).status in (400, 401, 403)
    assert log.read_text().count("unix:/authentication") == 1
    assert banned(fail2ban, log) == ["192.0.2.7", "2001:db8::7", "192.0.2.8"]


@FORMS
async def test_fail2ban_counts_the_same_lines_from_the_journal(form: str, fail2ban: Path, tmp_path: Path) -> None:
    """As its systemd backend gives them to the filter: behind the host's and the program's name."""
    log, journal = tmp_path / "log", tmp_path / "journal"
    with logging_server(log, "--trusted-proxy", "127.0.0.1", "--log-format", form) as address:
        await exchange(address, upgrade("/", "X-Forwarded-For: 192.0.2.7", token="wrong"))
        await exchange(address, upgrade("/", "X-Forwarded-For: 192.0.2.8", token=None))
    lines = log.read_text().splitlines()
    prefixes = [f"2027-01-31T09:20:11.730+0000 host {name}[4711]: " for name in ("http2tcp", "python3", "python3.11")]
    # In text, the server leaves its own time out there.
    bare = lines if form == "json" else [line.partition(" ")[2] for line in lines]
    journal.write_text("".join(f"{prefix}{line}\n" for prefix in prefixes for line in bare))
    assert banned(fail2ban, journal) == ["192.0.2.7"] * 3


def test_fail2ban_takes_the_jail(fail2ban: Path) -> None:
    for jail in fail2ban.glob("jail.d/*"):
        if jail.name != "http2tcp.conf":
            jail.unlink()
    done = subprocess.run(
        [program("fail2ban-client"), "-c", str(fail2ban), "--dp"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "['add', 'http2tcp', 'systemd']" in done.stdout
    assert "['set', 'http2tcp', 'addjournalmatch', '_SYSTEMD_UNIT=http2tcp.service']" in done.stdout
