"""What a client loads: it starts anew at every login, and each module is paid for by a person who waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.support.client_process import client, ended
from tests.support.loopback import TOKEN, echo, served, target
from tests.support.tls_front import tls_front

BARE = "import trio, h11, click, ssl, sys; print('\\n'.join(sys.modules))"
# Runs the command line to its end and only then tells what was loaded.
TELLING = """
import os, sys
from http2tcp.__main__ import main
try:
    main()
finally:
    with open(os.environ["MODULES_FILE"], "w") as file:
        file.write("\\n".join(sys.modules))
"""
# What `address` parses with. Up to Python 3.12 the libraries bring it, by pathlib.
PARSERS = {"ipaddress", "urllib", "urllib.parse"}
FOR_WEBSOCKET = {
    # Of Sec-WebSocket-Accept. Up to Python 3.13 the libraries bring it.
    *("hashlib", "_hashlib", "_blake2"),
}
# click's own: it looks for similar names whenever it meets a short option, before it finds the option itself.
BROUGHT_LATE = {"difflib"}
# Each costs a login milliseconds, and each is only one import away.
NEVER = (
    *("http2tcp.server", "http2tcp.client.check", "http2tcp.client.observer"),
    # The words for a failure, and what finds them.
    *("http2tcp.client.diagnosis", "http2tcp.client.front_ends", "http2tcp.client.handshake_faults"),
    *("http2tcp.client.forwarder", "http2tcp.client.forwards", "http2tcp.client.through_proxy"),
    *("http2tcp.client.proxy_choice", "http2tcp.net.tls_over", "http2tcp.net.tls_server", "http2tcp.units"),
    *("http2tcp.command.demo", "http2tcp.command.server_settings", "http2tcp.command.toml_file"),
    *("http2tcp.protocol.server_handshake", "http2tcp.protocol.socks5", "http2tcp.protocol.certificate"),
    *("http2tcp.net.listen", "http2tcp.net.fdpass", "asyncio", "json", "tomllib", "encodings.idna"),
)
# What only some transports and endpoints need.
FOR_TLS = ("http2tcp.net.tls",)
FOR_CAPSULES = ("http2tcp.net.capsules", "http2tcp.protocol.capsule")


def environment(**variables: str) -> dict[str, str]:
    """Without what would load a measuring tool into the process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "HTTP2TCP_"))}
    return {name: value for name, value in kept.items() if not name.upper().endswith("_PROXY")} | variables


async def brought() -> set[str]:
    """What the four libraries bring on their own."""
    done = await trio.run_process([sys.executable, "-c", BARE], capture_stdout=True, env=environment())
    return set(done.stdout.decode().split())


async def loaded(directory: Path, arguments: Sequence[str]) -> set[str]:
    """What a client has loaded by the time that its tunnel was used and is over."""
    file = directory / "modules"
    environ = environment(HTTP2TCP_TOKEN=TOKEN, MODULES_FILE=str(file))
    command = [sys.executable, "-c", TELLING]
    async with client(*arguments, command=command, environ=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"hello")
        with trio.fail_after(20):
            assert await process.stdout.receive_some() == b"hello"
        # Whoever reads leaves: an end of input would wait for half a minute on raw bytes over TLS.
        await process.stdout.aclose()
        assert await ended(process) == (0, "")
    return set(file.read_text().split())


@pytest.mark.parametrize("transport", ["tcp", "http2tcp/1.0", "connect-tcp", "websocket", "auto"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_login_loads_nothing_that_it_does_not_need(scheme: str, transport: str, tmp_path: Path) -> None:
    async with target(echo) as where, served() as server, tls_front(server.address, tmp_path) as front:
        endpoint = ("-e", server.url) if scheme == "http" else front.arguments
        modules = await loaded(tmp_path, [*endpoint, "-d", where, "--transport", transport])
    extra = {name for name in modules - await brought() if not name.startswith("http2tcp")}
    needed, never = set(PARSERS), list(NEVER)
    if scheme == "http":
        never += FOR_TLS
    if transport not in ("connect-tcp", "websocket", "auto"):
        never += FOR_CAPSULES
    if transport == "websocket":
        needed |= FOR_WEBSOCKET
        extra = {name for name in extra if name.partition(".")[0] != "wsproto"}
    else:
        never.append("wsproto")
    assert "http2tcp.client.connector" in modules
    assert extra - BROUGHT_LATE <= needed
    assert not {name for name in modules for room in never if name == room or name.startswith(room + ".")}


async def test_who_opens_tunnels_for_long_has_the_words_for_a_failure_before_one_fails() -> None:
    """Later a process may be out of descriptors, or its files those of another release: it could import nothing."""
    code = """
import sys, trio
from http2tcp.address import TCPAddress
from http2tcp.client.connector import open_tunnel
from http2tcp.client.forwarder import forward
from http2tcp.client.settings import ClientSettings
from http2tcp.address import parse_endpoint
from http2tcp.errors import ConnectFailed

assert "http2tcp.client.diagnosis" not in sys.modules

async def main():
    if sys.argv[1] == "forwarder":
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: forward(settings, task_status=task_status))
            nursery.cancel_scope.cancel()
    else:
        try:
            await open_tunnel(settings.endpoint, "db:5432", proxy=False)
        except ConnectFailed:
            pass

settings = ClientSettings(endpoint=parse_endpoint("http://127.0.0.1:1/"), destination=TCPAddress("db", 5432))
trio.run(main)
print("http2tcp.client.diagnosis" in sys.modules, "http2tcp.client.front_ends" in sys.modules)
"""
    for kind in ("forwarder", "open_tunnel"):
        done = await trio.run_process([sys.executable, "-c", code, kind], capture_stdout=True, env=environment())
        assert done.stdout.decode().split() == ["True", "True"], kind
