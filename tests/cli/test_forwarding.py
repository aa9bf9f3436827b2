"""-L and -D as a process: what it prints, and how it ends where a port is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from tests.support.client_process import client, ended, one_line
from tests.support.loopback import closed_port, echo, served, target


async def test_what_is_listened_on_is_printed_with_where_it_leads_one_line_each(tmp_path: Path) -> None:
    port, sock = closed_port(), tmp_path / "s"
    async with target(echo) as where, served() as server:
        forwards = ["-L", f"{port}:{where}", "-L", f"{sock}:db:5432", "-D", "0"]
        async with client("-e", server.url, *forwards) as process:
            assert process.stderr is not None
            said = b""
            with trio.fail_after(20):
                while said.count(b"\n") < 3:
                    said += await process.stderr.receive_some()
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"through")
                assert await stream.receive_some() == b"through"
            process.terminate()
            status, more = await ended(process)
    lines = said.decode().splitlines()
    assert lines[:2] == [
        f"http2tcp: listening on 127.0.0.1:{port}, leads to {where}",
        f"http2tcp: listening on unix:{sock}, leads to db:5432",
    ]
    start, _, rest = lines[2].rpartition(":")
    assert start == "http2tcp: listening on 127.0.0.1"
    assert rest.endswith(", a SOCKS5 proxy")
    assert int(rest.partition(",")[0]) > 0
    assert (status, more) == (143, "")
    assert not sock.exists()


async def test_a_port_that_is_taken_is_one_sentence_and_nothing_is_left_half_started(tmp_path: Path) -> None:
    free, sock = closed_port(), tmp_path / "s"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        forwards = ["-L", f"{free}:db:1", "-L", f"{sock}:db:1", "-D", where]
        async with client("-e", "http://127.0.0.1:1/", *forwards) as process:
            status, said = await ended(process)
    assert status == 73
    assert one_line(said) == f"http2tcp: cannot listen on {where}: address already in use"
    assert not sock.exists()


async def test_stdin_and_stdout_are_left_alone() -> None:
    async with client("-e", "http://127.0.0.1:1/", "-D", "0") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        await process.stdin.aclose()
        with trio.fail_after(20):
            said = (await process.stderr.receive_some()).decode()
            async with await trio.open_tcp_stream("127.0.0.1", int(said.split(":")[2].partition(",")[0])) as stream:
                await stream.send_all(b"\x05\x01\x00")
                assert await stream.receive_some() == b"\x05\x00"
        process.terminate()
        assert await ended(process) == (143, "")
