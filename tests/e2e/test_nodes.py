"""Two servers behind the lines of docs/how-to/survive.md: a client that comes back is led to its own."""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

import http2tcp
from http2tcp.client.settings import TLSSettings
from http2tcp.net.resumable import ResumableStream
from tests.support import processes
from tests.support.front_ends import FrontEnd, HAProxy, Nginx, Place
from tests.support.loopback import echo, target
from tests.support.processes import environment, free_port, listens, running
from tests.support.site import UPSTREAM, Site

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "survive.md").read_text()
NODES = ("a", "b")
TUNNELS = 8


def lines(language: str, ports: list[int]) -> str:
    """The page's block, with ports of this machine."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for documented, port in zip(("12345", "12346"), ports, strict=True):
        assert f":{documented}" in block
        block = block.replace(f":{documented}", f":{port}")
    return str(block)


def nginx_lines(ports: list[int]) -> dict[str, str]:
    begin = "    map $http_upgrade"
    assert "`proxy_pass http://$http2tcp_node;`" in PAGE
    return {UPSTREAM: "proxy_pass http://$http2tcp_node;", begin: f"{lines('nginx', ports)}{begin}"}


def haproxy_lines(ports: list[int]) -> dict[str, str]:
    return {"server http2tcp 127.0.0.1:12345": lines("haproxy", ports).removeprefix("backend http2tcp\n").strip()}


@dataclass(frozen=True)
class Two:
    """Both servers' logs, and the front end's endpoint that leads to them."""

    endpoint: str
    token: str
    ca_file: Path
    logs: list[Path]


@pytest.fixture(params=[(Nginx(), nginx_lines), (HAProxy(), haproxy_lines)], ids=["nginx", "HAProxy"])
def two(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Two]:
    front_end: FrontEnd
    front_end, more = request.param
    token, ports = secrets.token_hex(16), [free_port() for _ in NODES]
    place = Place(tmp_path / "front", free_port(), "unused:1", site.certificates.good)
    logs = [tmp_path / node for node in NODES]
    with ExitStack() as stack:
        for node, port, log in zip(NODES, ports, logs, strict=True):
            command = processes.http2tcp("-s", "-l", f"127.0.0.1:{port}", "--node", node)
            environ = environment(HTTP2TCP_TOKEN=token)
            stack.enter_context(running(command, log, functools.partial(listens, port), env=environ))
        stack.enter_context(front_end.running(place, more(ports)))
        yield Two(place.endpoint, token, site.certificates.ca, logs)


async def test_each_client_comes_back_to_its_own_server_at_once(two: Two) -> None:
    tls = TLSSettings(ca_file=str(two.ca_file))
    sessions = []
    with trio.fail_after(60):
        async with target(echo) as where:
            for number in range(TUNNELS):
                settings = {"token": two.token, "tls": tls, "resume": True}
                async with await http2tcp.open_tunnel(two.endpoint, where, **settings) as tunnel:  # type: ignore[call-overload]
                    assert isinstance(tunnel, ResumableStream)
                    for word in (b"before %d" % number, b"after %d" % number, b"after another %d" % number):
                        await tunnel.send_all(word)
                        assert await tunnel.receive_some() == word
                        tunnel.detach("the test cuts it")
                    await tunnel.send_eof()
                    assert await tunnel.receive_some() == b""
                    assert tunnel.resumes == 3
                    sessions.append(tunnel.machine.session)
    # Both have served, or this would prove nothing.
    assert {session.partition("-")[0] for session in sessions} == set(NODES)
    for log in two.logs:
        # No attempt came to the wrong one.
        assert "not resumed" not in log.read_text()
    assert sum(log.read_text().count(" resumed session=") for log in two.logs) == 3 * TUNNELS
