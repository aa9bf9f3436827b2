"""The client over TLS: raw bytes cannot be half-closed there, and a stream without close_notify was cut.

Where the test does not say otherwise the transport is raw.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import trio

from tests.support.client_process import client, close_stdin, ended, one_line, patched
from tests.support.loopback import echo, greet_and_close, read_all, served, target
from tests.support.tls_front import TLSFront, tls_front

# The patience of a user in a test: half a minute is for users.
IMPATIENT = "import http2tcp.net.tls as tls; tls.TLSStream.ends = tls.TLS_ENDS._replace(eof_patience=1.0)"


def raw(front: TLSFront) -> tuple[str, ...]:
    return (*front.arguments, "--transport", "tcp")


async def test_bytes_go_both_ways_over_tls(tmp_path: Path) -> None:
    async with target(echo) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*raw(front), "-d", where) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in (b"one\n", b"two\n"):
                await process.stdin.send_all(line)
                with trio.fail_after(20):
                    assert await process.stdout.receive_some() == line


async def test_the_clean_end_of_a_tunnel_is_a_clean_end(tmp_path: Path) -> None:
    async with target(greet_and_close) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*raw(front), "-d", where) as process:
            assert process.stdout is not None
            assert await read_all(process.stdout) == b"hello\n"
            await close_stdin(process)
            assert await ended(process) == (0, "")


async def test_a_connection_that_ends_without_close_notify_was_cut_and_is_a_failure(tmp_path: Path) -> None:
    async with target(greet_and_close) as where, served() as server:
        async with tls_front(server.address, tmp_path, close_notify=False) as front:
            async with client(*raw(front), "-d", where) as process:
                assert process.stdout is not None
                assert await read_all(process.stdout) == b"hello\n"
                status, said = await ended(process)
    assert status == 71
    assert "close_notify" in one_line(said)


async def test_the_end_of_stdin_is_not_sent_and_a_late_reply_still_arrives(tmp_path: Path) -> None:
    line_is_there, may_reply = trio.Event(), trio.Event()

    async def reply_late(stream: trio.SocketStream) -> None:
        assert await stream.receive_some() == b"request\n"
        line_is_there.set()
        await may_reply.wait()
        await stream.send_all(b"reply\n")
        await stream.aclose()

    async with target(reply_late) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*raw(front), "-d", where) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"request\n")
            await process.stdin.aclose()
            await line_is_there.wait()
            assert front.client_ends == []
            may_reply.set()
            assert await read_all(process.stdout) == b"reply\n"
            assert await ended(process) == (0, "")


async def test_a_target_that_waits_for_the_end_of_stdin_in_vain_is_given_up_with_a_sentence(tmp_path: Path) -> None:
    async with target(echo) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*raw(front), "-d", where, command=patched(IMPATIENT)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"hello\n")
            await process.stdin.aclose()
            # Nothing but our leaving makes this target end: it has not been told of the end of stdin.
            assert await read_all(process.stdout) == b"hello\n"
            status, said = await ended(process)
    assert status == 71
    sentence = one_line(said)
    assert "1 s" in sentence
    assert "end of input" in sentence


async def test_patience_is_measured_from_the_last_byte(tmp_path: Path) -> None:
    async def drip(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for _ in range(6):
            await stream.send_all(b".")
            await trio.sleep(0.3)  # longer together than the patience, shorter each
        await stream.aclose()

    async with target(drip) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*raw(front), "-d", where, command=patched(IMPATIENT)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"go\n")
            await process.stdin.aclose()
            assert await read_all(process.stdout) == b"......"
            assert await ended(process) == (0, "")


async def test_an_immediate_end_of_input_still_gets_what_the_target_says(tmp_path: Path) -> None:
    async with target(greet_and_close) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*raw(front), "-d", where, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert await read_all(process.stdout) == b"hello\n"
            assert await ended(process) == (0, "")


async def test_not_verifying_is_said_each_time(tmp_path: Path) -> None:
    async with target(greet_and_close) as where, served() as server, tls_front(server.address, tmp_path) as front:
        for _ in range(2):
            async with client("-e", front.url, "--insecure", "-d", where) as process:
                assert process.stdout is not None
                assert await read_all(process.stdout) == b"hello\n"
                await close_stdin(process)
                status, said = await ended(process)
                assert status == 0
                assert "--insecure" in one_line(said)


async def test_a_file_that_is_no_certificate_is_told_by_its_option(tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("no certificate\n")
    async with served() as server, tls_front(server.address, tmp_path) as front:
        for arguments, option in (
            (("--ca-file", str(prose)), "--ca-file"),
            (("--ca-file", str(front.ca_file), "--client-cert", str(prose)), "--client-cert"),
        ):
            async with client("-e", front.url, *arguments, "-d", "x:1") as process:
                status, said = await ended(process)
                assert status == 66
                assert option in one_line(said)
                assert "_ssl.c" not in said


async def test_capsules_tell_the_end_of_stdin_over_tls_too(tmp_path: Path) -> None:
    async def count(stream: trio.SocketStream) -> None:
        size = len(await read_all(stream))
        await stream.send_all(b"got %d bytes" % size)
        await stream.aclose()

    async with target(count) as where, served() as server, tls_front(server.address, tmp_path) as front:
        async with client(*front.arguments, "--transport", "connect-tcp", "-d", where) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"hello")
            await process.stdin.aclose()
            assert await read_all(process.stdout) == b"got 5 bytes"
            assert await ended(process) == (0, "")
