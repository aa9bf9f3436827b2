"""Two servers that restart in turn behind the lines of docs/deploy/restarts.md: no login is lost."""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

import http2tcp
from http2tcp.client.settings import TLSSettings
from http2tcp.net.streams import Stream
from tests.support import processes
from tests.support.front_ends import FrontEnd, HAProxy, Nginx, Place
from tests.support.loopback import echo, read_all, target
from tests.support.openssh import Login
from tests.support.processes import free_port
from tests.support.service_manager import ServiceManager
from tests.support.site import UPSTREAM, Site

PAGE = Path(__file__).parents[2] / "docs" / "deploy" / "restarts.md"

# Longer than one ssh login takes on a busy machine: it may have begun as its server was told to stop.
GRACE = 8.0
LOGINS = 8
ESTABLISHED = 6
# How often both restart after the first time.
ROUNDS = 5


def lines(language: str, ports: list[int]) -> str:
    """The page's block, with ports of this machine."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for documented, port in zip(("12345", "12346"), ports, strict=True):
        assert block.count(f":{documented}") == 1
        block = block.replace(f":{documented}", f":{port}")
    return str(block)


def nginx_lines(ports: list[int]) -> dict[str, str]:
    begin = "    map $http_upgrade"
    assert "`proxy_pass http://http2tcp;`" in PAGE.read_text()
    return {UPSTREAM: "proxy_pass http://http2tcp;", begin: f"{lines('nginx', ports)}{begin}"}


def haproxy_lines(ports: list[int]) -> dict[str, str]:
    return {"server http2tcp 127.0.0.1:12345": lines("haproxy", ports).strip()}


@dataclass(frozen=True)
class Pair:
    """Two servers, and the front end's endpoint that leads to both."""

    endpoint: str
    servers: list[ServiceManager]
    token: str
    token_file: Path
    ca_file: Path

    async def log_in(self, where: str) -> Stream:
        """A new tunnel through the front end."""
        tls = TLSSettings(ca_file=str(self.ca_file))
        return await http2tcp.open_tunnel(self.endpoint, where, token=self.token, tls=tls)


FRONT_ENDS = [(Nginx(), nginx_lines), (HAProxy(), haproxy_lines)]


@pytest.fixture(params=FRONT_ENDS, ids=["nginx", "HAProxy"])
def pair(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Pair]:
    front_end: FrontEnd
    front_end, more = request.param
    token = secrets.token_hex(16)
    token_file = tmp_path / "token"
    token_file.touch(0o600)
    token_file.write_text(token + "\n")
    ports = [free_port(), free_port()]
    place = Place(tmp_path / "front", free_port(), "unused:1", site.certificates.good)
    with ExitStack() as stack:
        servers = []
        for port in ports:
            directory = tmp_path / str(port)
            directory.mkdir()
            command = processes.http2tcp(
                *("-s", "--token-file", str(token_file), "-l", f"127.0.0.1:{port}", "--grace", str(GRACE))
            )
            servers.append(stack.enter_context(ServiceManager(command, directory)))
            servers[-1].start()
        stack.enter_context(front_end.running(place, more(ports)))
        yield Pair(place.endpoint, servers, token, token_file, site.certificates.ca)


async def log_in_again_and_again(pair: Pair, where: str, done: trio.Event, count: list[int]) -> None:
    while not done.is_set():
        with trio.fail_after(60):
            async with await pair.log_in(where) as tunnel:
                await tunnel.send_all(b"ping")
                await tunnel.send_eof()
                assert await read_all(tunnel) == b"ping"
        count[0] += 1


async def ssh_again_and_again(login: Login, done: trio.Event, count: list[int]) -> None:
    while not done.is_set():
        ran = await trio.to_thread.run_sync(functools.partial(login.run, "ssh", "target", "echo in", timeout=60))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"in\n", b"")
        count[0] += 1


async def live(pair: Pair, established: trio.Event, ends: dict[str, float]) -> None:
    """A session with a target of its own, used all the time until it is cut."""
    async with target(echo) as where:
        async with await pair.log_in(where) as tunnel:
            try:
                while True:
                    await tunnel.send_all(b"x")
                    if await tunnel.receive_some() == b"":
                        break
                    established.set()
                    await trio.sleep(0.02)
            except trio.BrokenResourceError:
                pass
            ends[where] = trio.current_time()


async def test_a_rolling_restart_loses_no_login_and_sessions_live_out_their_grace(
    pair: Pair, site: Site, login: Callable[..., Login]
) -> None:
    done = trio.Event()
    logins, ssh_logins = [0], [0]
    ends: dict[str, float] = {}
    stopped_at: list[float] = []
    by_ssh = login(site.client(pair.endpoint, "--token-file", str(pair.token_file)))
    async with target(echo) as where, trio.open_nursery() as nursery:
        for _ in range(ESTABLISHED):
            established = trio.Event()
            nursery.start_soon(live, pair, established, ends)
            with trio.fail_after(20):
                await established.wait()
        for _ in range(LOGINS):
            nursery.start_soon(log_in_again_and_again, pair, where, done, logins)
        nursery.start_soon(ssh_again_and_again, by_ssh, done, ssh_logins)
        for server in pair.servers:
            stopped_at.append(trio.current_time())
            await trio.to_thread.run_sync(server.restart)
        with trio.fail_after(20):
            while len(ends) < ESTABLISHED:
                await trio.sleep(0.02)
        for _ in range(ROUNDS):
            for server in pair.servers:
                before = logins[0]
                await trio.to_thread.run_sync(server.restart)
                with trio.fail_after(60):
                    while logins[0] < before + LOGINS:
                        await trio.sleep(0.02)
        with trio.fail_after(60):
            while ssh_logins[0] < 5:
                await trio.sleep(0.02)
        done.set()

    # Both had some, and each ended because its own server's grace was over.
    for server, stopped in zip(pair.servers, stopped_at, strict=True):
        # A login of those that come and go may have been cut short too: by its target it is known.
        cut = [end for line in server.log.splitlines() if "reason=stopped" in line for end in _ends(line, ends)]
        assert cut, server.log
        for end in cut:
            assert end - stopped > GRACE - 0.1
    every = "".join(server.log for server in pair.servers)
    assert all(re.search(rf"ended .*target={re.escape(each)} .*reason=stopped", every) for each in ends)


def _ends(line: str, ends: dict[str, float]) -> list[float]:
    return [end for where, end in ends.items() if f"target={where} " in line]
