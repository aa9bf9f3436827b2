"""The exit status tells the hop, and one line on stderr names it: what a script and a person go by."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.support.client_process import client, ended, one_line
from tests.support.loopback import Handler, closed_port, greet_and_close, reset, served, target
from tests.support.processes import environment

Arguments = tuple[str, ...]
Scene = Callable[[AsyncExitStack, Path], Awaitable[Arguments]]


async def _site(stack: AsyncExitStack, handler: Handler = greet_and_close, **settings: object) -> tuple[str, str]:
    """A server and a target: the endpoint and the destination."""
    where = await stack.enter_async_context(target(handler))
    server = await stack.enter_async_context(served(**settings))
    return server.url, where


async def done(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, where = await _site(stack)
    return ("-e", endpoint, "-d", where)


async def usage(stack: AsyncExitStack, _: Path) -> Arguments:
    return ("-e", "gopher://localhost/")


async def name(stack: AsyncExitStack, _: Path) -> Arguments:
    # No resolver has to be asked for a label of 64 characters.
    return ("-e", f"https://{'x' * 64}.invalid/")


async def tcp(stack: AsyncExitStack, _: Path) -> Arguments:
    return ("-e", f"http://127.0.0.1:{closed_port()}/")


async def tls(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, where = await _site(stack)
    return ("-e", endpoint.replace("http://", "https://"), "-d", where)


async def front_end(stack: AsyncExitStack, _: Path) -> Arguments:
    where = await stack.enter_async_context(target(greet_and_close))
    return ("-e", f"http://{where}/")


async def credentials(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, where = await _site(stack, tokens=("another",))
    return ("-e", endpoint, "-d", where)


async def forbidden(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, _where = await _site(stack)
    return ("-e", endpoint, "-d", "169.254.169.254:80")


async def target_refuses(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, _where = await _site(stack)
    return ("-e", endpoint, "-d", f"127.0.0.1:{closed_port()}")


async def cut(stack: AsyncExitStack, _: Path) -> Arguments:
    async def speak_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello\n")
        reset(stream)

    endpoint, where = await _site(stack, speak_and_reset)
    return ("-e", endpoint, "-d", where)


async def listen(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, where = await _site(stack)
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return ("-e", endpoint, "-d", where, "-l", str(taken.getsockname()[1]))


async def server_refuses(stack: AsyncExitStack, _: Path) -> Arguments:
    endpoint, where = await _site(stack, path="/elsewhere")
    return ("-e", endpoint, "-d", where)


@pytest.mark.parametrize(
    ("scene", "status", "hop"),
    [
        (done, 0, ""),
        (usage, 2, ""),
        (name, 64, "name: "),
        (tcp, 65, "TCP: "),
        (tls, 66, "TLS: "),
        (front_end, 67, "front end: "),
        (credentials, 68, "http2tcp server: "),
        (forbidden, 69, "http2tcp server: "),
        (target_refuses, 70, "target: "),
        (cut, 71, "tunnel: "),
        (listen, 73, "cannot listen on "),
        (server_refuses, 74, "http2tcp server: "),
    ],
)
async def test_each_hop_has_its_exit_status_and_its_line(scene: Scene, status: int, hop: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        arguments = await scene(stack, tmp_path)
        async with client(*arguments, stdin=subprocess.DEVNULL) as process:
            seen, said = await ended(process)
    assert seen == status, said
    if status:
        assert one_line(said).startswith(f"http2tcp: {hop}")
    else:
        assert said == ""


async def test_quiet_still_says_why_it_failed() -> None:
    async with client("-q", "-e", f"http://127.0.0.1:{closed_port()}/") as process:
        status, said = await ended(process)
    assert status == 65
    one_line(said)


async def test_verbose_tells_the_steps_and_no_secret() -> None:
    async with target(greet_and_close) as where, served() as server:
        url = server.url.replace("http://", "http://user:s3cret@")
        # As through a front end with a login of its own: the token is then in a field of its own.
        async with client("-v", "-e", url, "-d", where, "-H", "X-Key: s3cret", stdin=subprocess.DEVNULL) as process:
            status, said = await ended(process)
    assert status == 0
    assert len(said.splitlines()) >= 2
    assert all(line.startswith("http2tcp: ") for line in said.splitlines())
    assert "s3cret" not in said
    assert "tok-5ecret" not in said


async def test_a_token_in_the_clear_to_another_machine_is_warned_of_once() -> None:
    # A name that is not loopback's to us, and needs no resolver.
    environ = environment(HTTP2TCP_TOKEN="s3cret")
    async with client("-e", f"http://{'x' * 64}.invalid/", environ=environ) as process:
        status, said = await ended(process)
    assert status == 64
    warning, failure = said.splitlines()
    assert "in the clear" in warning
    assert failure.startswith("http2tcp: name: ")
    assert "s3cret" not in said


async def test_quiet_leaves_the_warning_out() -> None:
    async with client("-q", "-e", f"http://{'x' * 64}.invalid/") as process:
        status, said = await ended(process)
    assert status == 64
    one_line(said)


async def test_a_forwarder_says_where_it_listens_and_why_a_tunnel_failed_even_if_quiet() -> None:
    async with served(tokens=("another",)) as server:
        for quiet in ((), ("-q",)):
            port = closed_port()
            async with client(*quiet, "-e", server.url, "-d", "x:1", "-l", str(port)) as process:
                assert process.stderr is not None
                with trio.fail_after(20):
                    while True:
                        try:
                            stream = await trio.open_tcp_stream("127.0.0.1", port)
                            break
                        except OSError:
                            await trio.sleep(0.02)
                    async with stream:
                        try:
                            assert await stream.receive_some() == b""
                        except trio.BrokenResourceError:
                            pass
                process.terminate()
                status, said = await ended(process)
                lines = said.splitlines()
                assert status == 143
                assert ("listening on" in lines[0]) is not bool(quiet)
                assert "http2tcp server: " in lines[-1]
                assert len(lines) == (1 if quiet else 2)
