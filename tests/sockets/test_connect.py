"""CONNECT on loopback: a tunnel for clients that know only proxies, and what refuses them one."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path

import pytest
import trio
import trio.testing

from http2tcp.address import UnixAddress, parse_destination
from tests.support.loopback import (
    TOKEN,
    Answer,
    Served,
    asking,
    closed_port,
    echo,
    exchange,
    greet_and_close,
    open_raw,
    read_all,
    served,
    target,
)

BASIC = "Proxy-Authorization: Basic " + b64encode(f"anyone:{TOKEN}".encode()).decode()


def connect(authority: str, *fields: str, version: str = "HTTP/1.0") -> bytes:
    """What nc and corkscrew send, with further fields."""
    return "\r\n".join([f"CONNECT {authority} {version}", *fields, "", ""]).encode()


async def opened(server: Served, request: bytes) -> tuple[trio.SocketStream, bytes]:
    """Send the request and read the 200; the stream, and what came after the head."""
    stream = await trio.open_tcp_stream(server.address.host, server.address.port)
    await stream.send_all(request)
    raw = b""
    while b"\r\n\r\n" not in raw:
        data = await stream.receive_some(64 * 1024)
        assert data, f"the connection ended after {raw!r}"
        raw += data
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    assert status == b"HTTP/1.1 200 Connection established"
    assert [field.partition(b":")[0] for field in fields] == [b"Proxy-Status", b"Http2tcp-Session"]
    assert fields[0] == b"Proxy-Status: http2tcp"
    return stream, rest


def assert_refused(answer: Answer, status: int, error: str) -> None:
    assert (answer.status, answer.error) == (status, error)
    assert answer.headers["connection"] == "close"
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1


@pytest.mark.parametrize("credential", [BASIC, f"Proxy-Authorization: Bearer {TOKEN}", f"Http2tcp-Token: {TOKEN}"])
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
async def test_both_versions_and_every_form_of_the_token_open_a_tunnel(version: str, credential: str) -> None:
    data = os.urandom(1024 * 1024)
    async with target(echo) as where, served(connect=True) as server:
        for host in ((), (f"Host: {where}",)):
            stream, rest = await opened(server, connect(where, *host, credential, version=version))
            async with stream, trio.open_nursery() as nursery:

                async def send(stream: trio.SocketStream = stream) -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                nursery.start_soon(send)
                assert rest + await read_all(stream) == data


async def test_bytes_in_the_same_packet_belong_to_the_tunnel_both_ways() -> None:
    async with target(echo) as where, served(connect=True) as server:
        stream, rest = await opened(server, connect(where, BASIC) + b"early")
        async with stream:
            await stream.send_eof()
            assert rest + await read_all(stream) == b"early"
    async with target(greet_and_close) as where, served(connect=True) as server:
        stream, rest = await opened(server, connect(where, BASIC))
        async with stream:
            assert rest + await read_all(stream) == b"hello\n"


async def test_the_log_says_that_it_was_connect_and_shows_no_token(caplog: pytest.LogCaptureFixture) -> None:
    async with target(greet_and_close) as where, served(connect=True) as server:
        stream, _ = await opened(server, connect(where, BASIC))
        await read_all(stream)
        await stream.aclose()
        while "ended session" not in caplog.text:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert caplog.text.count(f"target={where} dialled={where} transport=connect") == 2


async def test_connect_is_off_unless_it_is_turned_on() -> None:
    async with target(echo) as where, served() as server:
        assert_refused(await exchange(server.address, connect(where, BASIC)), 400, "http_request_error")


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (f"Authorization: Bearer {TOKEN}",),
        ("Proxy-Authorization: Bearer wrong",),
        ("Proxy-Authorization: Basic " + b64encode(f"{TOKEN}:".encode()).decode(),),
        ("Http2tcp-Token: wrong", BASIC),
    ],
    ids=["none", "a site's", "wrong", "the token as the user", "a wrong one of our own field"],
)
async def test_no_token_and_a_wrong_one_are_a_407_that_asks_for_basic(fields: tuple[str, ...]) -> None:
    async with served(connect=True) as server:
        answers = [
            await exchange(server.address, connect(authority, *fields))
            for authority in ("localhost:22", "no.such:99999")
        ]
    for answer in answers:
        assert_refused(answer, 407, "http_request_denied")
        assert answer.headers["proxy-authenticate"] == 'Basic realm="http2tcp"'
        assert answer.body == b"a token is needed\n"


async def test_what_is_no_destination_is_told_once_the_token_is_known() -> None:
    async with served(connect=True) as server:
        answer = await exchange(server.address, connect("localhost:99999", BASIC))
    assert_refused(answer, 400, "http_request_error")
    assert b"expected a port from 1 to 65535" in answer.body


async def test_a_refused_target_is_a_502_with_its_reason() -> None:
    nobody = f"127.0.0.1:{closed_port()}"
    async with served(connect=True) as server:
        answer = await exchange(server.address, connect(nobody, BASIC))
    assert_refused(answer, 502, "connection_refused")
    assert answer.body.decode() == f"cannot reach {nobody} from the server: connection refused\n"


async def test_a_target_that_does_not_answer_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("http2tcp.net.dial._connect", never)
    async with served(connect=True, connect_timeout=0.05) as server:
        answer = await exchange(server.address, connect("127.0.0.1:22", BASIC))
    assert_refused(answer, 504, "connection_timeout")


@pytest.mark.parametrize("authority", ["169.254.169.254:80", "[::ffff:a9fe:a9fe]:80", "[fe80::1]:22"])
async def test_addresses_that_are_closed_to_everybody_are_closed_to_connect(authority: str) -> None:
    async with served(connect=True) as server:
        assert_refused(await exchange(server.address, connect(authority, BASIC)), 403, "destination_ip_prohibited")


async def test_a_web_page_gets_a_403() -> None:
    async with target(echo) as where, served(connect=True) as server:
        answer = await exchange(server.address, connect(where, BASIC, "Origin: https://evil.example"))
    assert_refused(answer, 403, "http_request_denied")


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
async def test_without_a_token_the_pinned_destination_alone_is_open(version: str) -> None:
    async with target(greet_and_close) as where, target(echo) as other:
        async with served(connect=True, tokens=(), destination=parse_destination(where)) as server:
            stream, rest = await opened(server, connect(where, version=version))
            async with stream:
                assert rest + await read_all(stream) == b"hello\n"
            for authority in (other, f"localhost:{where.partition(':')[2]}"):
                answer = await exchange(server.address, connect(authority, BASIC, version=version))
                assert_refused(answer, 403, "http_request_denied")


async def test_no_spelling_reaches_a_pinned_unix_socket(tmp_path: Path) -> None:
    pinned = UnixAddress(str(tmp_path / "target.sock"))
    async with served(connect=True, tokens=(), destination=pinned) as server:
        for authority in (f"unix:{pinned.path}", "unix:22", "localhost:22"):
            assert (await exchange(server.address, connect(authority))).status in (400, 403)


async def test_a_path_is_asked_of_an_upgrade_and_not_of_connect() -> None:
    async with target(greet_and_close) as where, served(connect=True, path="/secret") as server:
        stream, rest = await opened(server, connect(where, BASIC))
        async with stream:
            assert rest + await read_all(stream) == b"hello\n"
        assert (await exchange(server.address, asking(where))).status == 404


async def test_an_upgrade_works_as_ever_beside_connect() -> None:
    async with target(greet_and_close) as where, served(connect=True) as server:
        stream, rest = await open_raw(server.address, asking(where))
        async with stream:
            assert rest + await read_all(stream) == b"hello\n"
