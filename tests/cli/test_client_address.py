"""--trusted-proxy, --forwarded-header and --proxy-protocol as an operator types them."""

from __future__ import annotations

import re
import subprocess

import pytest
import trio

from tests.support.loopback import TOKEN, asking, exchange
from tests.support.processes import environment
from tests.support.processes import http2tcp as command

from .conftest import Run, complaint
from .test_server_process import ServerProcess, serving

SERVER = ("-s", "-t", "s3cret")


def test_without_options_nobody_is_believed(http2tcp: Run) -> None:
    server = http2tcp(*SERVER).server
    assert list(server.trusted_proxies) == []
    assert server.forwarded_header == "X-Forwarded-For"
    assert not server.proxy_protocol


def test_the_option_may_be_given_again_and_again(http2tcp: Run) -> None:
    server = http2tcp(
        *SERVER, "--trusted-proxy", "unix", "--trusted-proxy=10.0.0.5", "--trusted-proxy", "[fd00::/8]"
    ).server
    assert [str(proxy) for proxy in server.trusted_proxies] == ["unix", "10.0.0.5/32", "fd00::/8"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--trusted-proxy", "front.example"), "expected an address or a network, such as 10.0.0.0/8"),
        (("--trusted-proxy", "unix:/run/nginx.sock"), "neither an address"),
        (("--trusted-proxy", "10.0.0.1:80"), "neither an address"),
        (("--trusted-proxy", "10.0.0.5/8"), "the network is 10.0.0.0/8"),
        (("--trusted-proxy", "10.0.0.0/33"), "neither an address"),
        (("--trusted-proxy", "*"), "expected an address or a network"),
        (("--trusted-proxy", ""), "expected an address or a network"),
        (("--forwarded-header", "X-Real-IP"), "needs --trusted-proxy"),
        (("--trusted-proxy", "unix", "--forwarded-header", "X-Real-IP:"), "such as X-Real-IP"),
        (("--trusted-proxy", "unix", "--forwarded-header", "a b"), "such as X-Real-IP"),
        (("--trusted-proxy", "unix", "--forwarded-header", ""), "such as X-Real-IP"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_was_expected(
    http2tcp: Run, arguments: tuple[str, ...], expected: str
) -> None:
    ran = http2tcp(*SERVER, *arguments)
    assert expected in complaint(ran)


async def test_a_trusted_proxy_is_believed_by_the_process_that_was_told_so() -> None:
    async with serving("--trusted-proxy", "127.0.0.1") as server:
        await exchange(server.address, asking("localhost:22", "X-Forwarded-For: 6.6.6.6, 203.0.113.7", token="wrong"))
        line = await server.line()
    assert re.search(r" client=203\.0\.113\.7 via=127\.0\.0\.1:\d+ ", line), line


@pytest.mark.parametrize(
    ("arguments", "warns"),
    [
        (("-l", "0.0.0.0:0"), True),
        (("-l", "127.0.0.1:0"), False),
        (("-l", "0.0.0.0:0", "--trusted-proxy", "10.0.0.5"), False),
    ],
)
async def test_where_anybody_may_bring_a_proxy_header_the_server_says_so(
    arguments: tuple[str, ...], warns: bool
) -> None:
    process = await trio.lowlevel.open_process(
        command("-s", "--proxy-protocol", *arguments), stderr=subprocess.PIPE, env=environment(HTTP2TCP_TOKEN=TOKEN)
    )
    assert process.stderr is not None
    async with process.stderr:
        server = ServerProcess(process)
        while "listening on" not in await server.line():
            pass
        process.terminate()
        status, rest = await server.ended()
    assert status == 0
    assert ("believes everyone who can reach 0.0.0.0:" in rest) == warns


@pytest.mark.parametrize(("network", "warns"), [("0.0.0.0/0", True), ("::/0", True), ("10.0.0.0/8", False)])
async def test_a_server_that_trusts_everybody_says_what_that_means(network: str, warns: bool) -> None:
    async with serving("--trusted-proxy", network) as server:
        server.process.terminate()
        status, rest = await server.ended()
    assert status == 0
    assert (f"--trusted-proxy {network} trusts every client" in rest) == warns
