"""`http2tcp -s --tls-cert` as a process: what it says at its start. SIGHUP is in tests/e2e."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from tests.support.loopback import TOKEN
from tests.support.processes import environment
from tests.support.processes import http2tcp as program_line

from .conftest import Run, complaint
from .test_server_process import ServerProcess

CA = trustme.CA()
LEAF = CA.issue_cert("localhost")


def pem(path: Path, leaf: trustme.LeafCert = LEAF) -> Path:
    path.touch(0o600)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


# --- mistakes ---------------------------------------------------------------------------------


def test_a_key_without_a_certificate_is_a_mistake(http2tcp: Run, tmp_path: Path) -> None:
    said = complaint(http2tcp("-s", "-t", "x", "--tls-key", str(pem(tmp_path / "key.pem"))))
    assert said == "--tls-key needs --tls-cert, the certificate that goes with it"


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key"])
def test_a_file_that_is_not_there_is_named_with_its_option(http2tcp: Run, tmp_path: Path, option: str) -> None:
    others = ("--tls-cert", str(pem(tmp_path / "cert.pem"))) if option == "--tls-key" else ()
    said = complaint(http2tcp("-s", "-t", "x", *others, option, str(tmp_path / "nowhere")))
    assert option in said
    assert "no such file" in said


def test_without_them_a_server_speaks_plain_http(http2tcp: Run) -> None:
    assert http2tcp("-s", "-t", "x").server.tls is None


async def test_a_key_of_another_certificate_ends_the_start_with_one_line(tmp_path: Path) -> None:
    cert, key = pem(tmp_path / "cert.pem"), pem(tmp_path / "key.pem", CA.issue_cert("localhost"))
    command = program_line("-s", "-l", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
    with trio.fail_after(60):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment(HTTP2TCP_TOKEN=TOKEN)
        )
    words = f"http2tcp: the key in {key} is not that of the first certificate in {cert}\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", words)


# --- words at the start -----------------------------------------------------------------------


@asynccontextmanager
async def starting(*arguments: str) -> AsyncIterator[ServerProcess]:
    """A server with TOKEN whose first lines are unread."""
    process = await trio.lowlevel.open_process(
        program_line("-s", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(HTTP2TCP_TOKEN=TOKEN),
    )
    try:
        yield ServerProcess(process)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()


async def said_until_it_listens(server: ServerProcess) -> list[str]:
    lines: list[str] = []
    while "listening on" not in (lines or [""])[-1]:
        lines.append((await server.line()).partition(" ")[2])
    return lines


async def test_a_server_for_https_says_so_and_warns_of_no_clear_text(tmp_path: Path) -> None:
    cert = pem(tmp_path / "cert.pem")
    async with starting("--tls-cert", str(cert), "-l", "0.0.0.0:0") as server:
        lines = await said_until_it_listens(server)
        server.process.terminate()
        _, rest = await server.ended()
    assert lines[0].startswith(f"the certificate in {cert} is good until ")
    assert " for https; open to any destination" in lines[-1]
    assert "unencrypted" not in rest


@pytest.mark.parametrize(
    ("arguments", "warns"),
    [
        (("-l", "0.0.0.0:0"), True),
        (("-l", "127.0.0.1:0"), False),
        (("-l", "[::1]:0"), False),
        (("-l", "unix:{directory}/socket"), False),
    ],
)
async def test_tokens_in_the_clear_beyond_this_machine_earn_one_warning(
    arguments: tuple[str, ...], warns: bool, tmp_path: Path
) -> None:
    async with starting(*(each.format(directory=tmp_path) for each in arguments)) as server:
        await said_until_it_listens(server)
        server.process.terminate()
        _, rest = await server.ended()
    assert rest.count("unencrypted: let only a front end connect, or serve https (--tls-cert)") == warns


async def test_an_expired_certificate_and_an_open_key_are_served_with_a_warning(tmp_path: Path) -> None:
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    cert = pem(tmp_path / "cert.pem", CA.issue_cert("localhost", not_before=now - 9 * day, not_after=now - day))
    cert.chmod(0o644)
    async with starting("-l", "127.0.0.1:0", "--tls-cert", str(cert)) as server:
        lines = await said_until_it_listens(server)
    assert lines[:-1] == [
        f"the key in {cert} can be read by everybody on this machine: chmod o-r it",
        f"the certificate in {cert} expired on {now - day:%Y-%m-%d}: clients refuse it until it is renewed",
    ]
