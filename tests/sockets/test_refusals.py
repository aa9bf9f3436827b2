"""Every refusal on the wire: its status, its Proxy-Status, one line of text, and a connection that is closed."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from http2tcp.errors import BadRequest, HeadTooLarge, NotFound, Unauthorized, UpgradeRequired
from tests.support.loopback import (
    TOKEN,
    asking,
    closed_port,
    echo,
    exchange,
    open_raw,
    parse_answer,
    read_all,
    send_until_broken,
    served,
    target,
    upgrade,
)

SWITCH = ("Connection: upgrade", "Upgrade: tcp")
AUTH = f"Authorization: Bearer {TOKEN}"


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def good(*more: str) -> bytes:
    return head("GET /?addr=localhost:22 HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: tcp", AUTH, *more)


SYNTAX = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an ssh banner": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "another method": head("POST / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: tcp", AUTH),
    "HTTP/1.0": head("GET / HTTP/1.0", "Host: a", "Connection: Upgrade", "Upgrade: tcp", AUTH),
    "HTTP/2.0": head("GET / HTTP/2.0", "Host: a", "Connection: Upgrade", "Upgrade: tcp", AUTH),
    "no Host": head("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: tcp", AUTH),
    "two Hosts": good("Host: b"),
    "two tokens": good("Authorization: Bearer other"),
    "two tokens of our own field": good("Http2tcp-Token: a", "Http2tcp-Token: b"),
    "two Upgrades": good("Upgrade: websocket"),
    "a list of Upgrades": head("GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: tcp, h2c", AUTH),
    "two addr": head("GET /?addr=a:1&addr=b:2 HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: tcp", AUTH),
    "a body": good("Content-Length: 5"),
    "two lengths": good("Content-Length: 0", "Content-Length: 5"),
    "a chunked body": good("Transfer-Encoding: chunked"),
    "bare line feeds": good().replace(b"\r\n", b"\n"),
    "a folded field": good("X-A: b", " c"),
    "a blank before a colon": good("X-A : b"),
    "a NUL": good("X-A: b\0c"),
    "an absolute target": head("GET http://a/ HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: tcp", AUTH),
}


@pytest.mark.parametrize("request_head", SYNTAX.values(), ids=SYNTAX.keys())
async def test_what_two_readers_could_read_differently_is_a_400(request_head: bytes) -> None:
    async with served() as server:
        refused = await exchange(server.address, request_head)
    assert (refused.status, refused.error) == (400, "http_request_error")
    assert refused.body == BadRequest.text.encode() + b"\n"
    assert_closed_refusal(refused)


@pytest.mark.parametrize(
    "request_head",
    [good("X-Long: " + "x" * 17_000), good(*[f"X-{n}: y" for n in range(65)]), b"GET /" + b"x" * 70_000],
    ids=["16 KiB", "64 fields", "no end"],
)
async def test_a_head_that_is_too_large_is_a_431_that_the_client_reads(request_head: bytes) -> None:
    async with served() as server:
        refused = await exchange(server.address, request_head)
    assert (refused.status, refused.error) == (431, "http_request_error")
    assert refused.body == HeadTooLarge.text.encode() + b"\n"
    assert_closed_refusal(refused)


async def test_a_length_of_zero_is_no_body() -> None:
    async with target(echo) as where, served(destination=None) as server:
        stream, _ = await open_raw(server.address, asking(where, "Content-Length: 0"))
        await stream.aclose()


@pytest.mark.parametrize("token", [None, "wrong", "", TOKEN.upper(), TOKEN + "x", TOKEN[:-1], "tök"])
async def test_a_wrong_token_is_a_401_that_says_the_same_to_everybody(token: str | None) -> None:
    async with served() as server:
        refused = await exchange(server.address, asking("localhost:22", token=token))
    assert (refused.status, refused.error) == (401, "http_request_denied")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.body == Unauthorized.text.encode() + b"\n"
    assert_closed_refusal(refused)


async def test_a_token_in_the_query_opens_nothing() -> None:
    async with served() as server:
        request = head(
            f"GET /?token={TOKEN}&addr=localhost:22 HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: tcp"
        )
        assert (await exchange(server.address, request)).status == 401


@pytest.mark.parametrize(
    "credential",
    [
        f"Authorization: Bearer {TOKEN}",
        f"Authorization: bearer {TOKEN}",
        f"Authorization: HTTP2TCP {TOKEN}",
        "Authorization: Basic " + __import__("base64").b64encode(f"anyone:{TOKEN}".encode()).decode(),
        f"Http2tcp-Token: {TOKEN}",
        f"http2tcp-token: {TOKEN}\r\nAuthorization: Basic Zm9vOmJhcg==",
    ],
)
async def test_every_form_of_the_token_opens_a_tunnel(credential: str) -> None:
    async with target(echo) as where, served() as server:
        stream, _ = await open_raw(server.address, asking(where, credential, token=None))
        async with stream:
            await stream.send_all(b"through")
            await stream.send_eof()
            assert await read_all(stream) == b"through"


async def test_our_own_field_alone_counts_where_it_is_present() -> None:
    async with served() as server:
        refused = await exchange(server.address, asking("localhost:22", "Http2tcp-Token: wrong"))
    assert refused.status == 401


@pytest.mark.parametrize(
    "fields",
    [
        ("Connection: Upgrade",),
        ("Connection: Upgrade", "Upgrade: h2c"),
        ("Connection: Upgrade", "Upgrade: tcpx"),
        ("Connection: keep-alive", "Upgrade: tcp"),
        ("Upgrade: tcp",),
    ],
)
async def test_no_upgrade_that_is_known_is_a_426_that_lists_the_known(fields: tuple[str, ...]) -> None:
    async with served() as server:
        refused = await exchange(server.address, head("GET / HTTP/1.1", "Host: a", AUTH, *fields))
    assert (refused.status, refused.error) == (426, "http_request_error")
    assert {"tcp", "http2tcp/1.0"} <= set(refused.headers["upgrade"].split(", "))
    assert refused.body == UpgradeRequired.text.encode() + b"\n"
    assert_closed_refusal(refused)


async def test_an_escape_that_says_nothing_does_not_make_another_path() -> None:
    for path in ("/~a%2Fb/", "/%7Ea%2Fb/"):
        async with served(path=path) as server:
            for asked in ("/~a%2Fb/", "/%7ea%2Fb/", "/%7E%61%2Fb/"):
                assert (await exchange(server.address, upgrade(asked))).status != 404
            assert (await exchange(server.address, upgrade("/~a/b/"))).status == 404


@pytest.mark.parametrize("path", ["/", "/elsewhere", "/tunnel", "/tunnel/more", "/TUNNEL/", "/tunnel%2F"])
async def test_another_path_than_the_servers_own_is_a_404(path: str) -> None:
    async with served(path="/tunnel/") as server:
        refused = await exchange(server.address, upgrade(path + "?addr=localhost:22"))
    assert (refused.status, refused.error) == (404, "http_request_error")
    assert refused.body == NotFound.text.encode() + b"\n"
    assert_closed_refusal(refused)


@pytest.mark.parametrize(
    "addr", ["localhost", "localhost:0", "localhost:65536", "localhost:ssh", "a b:22", "unix:relative", "[::1", ":x"]
)
async def test_an_address_that_is_not_understood_is_a_400_that_says_what_was_expected(addr: str) -> None:
    from urllib.parse import quote

    async with served() as server:
        refused = await exchange(server.address, asking(quote(addr)))
    assert (refused.status, refused.error) == (400, "http_request_error")
    assert b"expected" in refused.body
    assert_closed_refusal(refused)


async def test_no_destination_on_either_side_is_a_400_that_says_so() -> None:
    async with served() as server:
        for path in ("/", "/?addr="):
            refused = await exchange(server.address, upgrade(path))
            assert refused.status == 400
            assert b"names no destination" in refused.body


@pytest.mark.parametrize(
    "addr",
    [
        "169.254.169.254:80",
        "[fe80::1]:80",
        "[fd00:ec2::254]:80",
        "100.100.100.200:80",
        "168.63.129.16:80",
        "192.0.0.192:80",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::169.254.169.254]:80",
        "[2002:a9fe:a9fe::1]:80",
        "2852039166:80",
        "0xa9.254.0xa9fe:80",
    ],
)
async def test_metadata_and_link_local_addresses_are_a_403_in_every_spelling(addr: str) -> None:
    async with served() as server:
        refused = await exchange(server.address, asking(addr))
    assert (refused.status, refused.error) == (403, "destination_ip_prohibited")
    assert_closed_refusal(refused)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ""])
async def test_a_web_page_may_not_open_a_tunnel(origin: str) -> None:
    async with target(echo) as where, served() as server:
        refused = await exchange(server.address, asking(where, f"Origin: {origin}"))
    assert (refused.status, refused.error) == (403, "http_request_denied")
    assert_closed_refusal(refused)


async def test_a_web_page_may_not_open_a_tunnel_where_no_token_is_needed_either() -> None:
    from http2tcp.address import parse_destination

    async with target(echo) as where, served(tokens=(), destination=parse_destination(where)) as server:
        refused = await exchange(server.address, upgrade("/", "Origin: https://evil.example", token=None))
    assert refused.status == 403


async def test_a_target_that_refuses_is_a_502_with_its_reason() -> None:
    where = f"127.0.0.1:{closed_port()}"
    async with served() as server:
        refused = await exchange(server.address, asking(where))
    assert (refused.status, refused.error) == (502, "connection_refused")
    assert refused.body == f"cannot reach {where} from the server: connection refused\n".encode()
    assert_closed_refusal(refused)


async def test_a_name_that_does_not_exist_is_a_502_with_its_reason() -> None:
    async with served() as server:
        refused = await exchange(server.address, asking("nobody.invalid:22"))
    assert (refused.status, refused.error) == (502, "dns_error")
    assert refused.body.startswith(b"cannot reach nobody.invalid:22 from the server: ")
    assert_closed_refusal(refused)


async def test_a_network_without_a_route_is_a_502_with_its_reason() -> None:
    async with served() as server:
        refused = await exchange(server.address, asking("[ff05::1]:22"))
    assert refused.status == 502
    assert refused.error in ("destination_ip_unroutable", "destination_unavailable")
    assert_closed_refusal(refused)


# --- the order of the checks ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("GET /wrong?addr=x HTTP/1.1", "Connection: close"), 400),
        (("GET /wrong?addr=x HTTP/1.1", "Host: a"), 404),
        (("GET /right?addr=x HTTP/1.1", "Host: a"), 401),
        (("GET /right?addr=x HTTP/1.1", "Host: a", "Authorization: Bearer wrong", "Origin: b"), 401),
        (("GET /right?addr=x HTTP/1.1", "Host: a", AUTH, "Origin: b"), 426),
        (("GET /right?addr=x HTTP/1.1", "Host: a", AUTH, *SWITCH, "Origin: b"), 400),
        (
            (
                "GET /right?addr=127.0.0.1:1 HTTP/1.1",
                "Host: a",
                AUTH,
                "Connection: upgrade",
                "Upgrade: tcp",
                "Origin: b",
            ),
            403,
        ),
        (("GET /right?addr=169.254.0.1:1 HTTP/1.1", "Host: a", AUTH, *SWITCH), 403),
    ],
)
async def test_the_checks_come_in_the_order_that_tells_a_stranger_least(lines: tuple[str, ...], status: int) -> None:
    async with served(path="/right") as server:
        assert (await exchange(server.address, head(*lines))).status == status


async def test_a_stranger_learns_nothing_about_targets() -> None:
    async with target(echo) as where, served() as server:
        answers = [
            await exchange(server.address, asking(address, token="wrong"))
            for address in (where, f"127.0.0.1:{closed_port()}", "169.254.169.254:80", "unix:/etc/passwd", "nonsense")
        ]
    # The id of each connection's record is random.
    assert len({answer.headers.pop("http2tcp-session") for answer in answers}) == len(answers)
    assert len({(a.status, a.body, tuple(a.headers.items())) for a in answers}) == 1


# --- no token, a pinned destination -----------------------------------------------------------


async def test_a_server_without_a_token_reaches_its_pinned_destination_and_nothing_else() -> None:
    from http2tcp.address import parse_destination

    async with target(echo) as where, target(echo) as other:
        async with served(tokens=(), destination=parse_destination(where)) as server:
            for request in (upgrade("/", token=None), asking(where, token=None), asking(where, token="any")):
                stream, _ = await open_raw(server.address, request)
                async with stream:
                    await stream.send_eof()
                    assert await read_all(stream) == b""
            for addr in (other, where.replace("127.0.0.1", "localhost"), "unix:/run/docker.sock"):
                refused = await exchange(server.address, asking(addr, token=None))
                assert (refused.status, refused.error) == (403, "http_request_denied")


async def test_the_default_destination_serves_who_names_none() -> None:
    from http2tcp.address import parse_destination

    async with target(echo) as where, target(echo) as other:
        async with served(destination=parse_destination(where)) as server:
            for request in (upgrade("/"), upgrade("/?addr="), asking(other)):
                stream, _ = await open_raw(server.address, request)
                await stream.aclose()


# --- the connection after a refusal -----------------------------------------------------------


@pytest.mark.parametrize(
    "request_head", [b"\x16\x03\x01", good("Content-Length: 9999999"), asking("localhost:22", token="wrong")]
)
async def test_a_client_that_goes_on_sending_still_reads_its_refusal_and_is_closed(request_head: bytes) -> None:
    async with served() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            await stream.send_all(request_head + os.urandom(100_000))
            raw = await read_all(stream)
            assert parse_answer(raw).status in (400, 401)
            await send_until_broken(stream, b"x" * 65536)


async def test_a_client_that_floods_without_reading_is_cut_off() -> None:
    async with served() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            await send_until_broken(stream, b"\0" * 65536)


async def test_a_second_request_behind_a_refused_one_is_not_answered() -> None:
    async with target(echo) as where, served() as server:
        raw_requests = asking(where, token="wrong") + asking(where)
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            await stream.send_all(raw_requests)
            assert (await read_all(stream)).count(b"HTTP/1.1 ") == 1


async def test_a_client_that_half_closes_behind_its_request_still_reads_the_refusal() -> None:
    async with served() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            await stream.send_all(asking("localhost:22", token="wrong"))
            await stream.send_eof()
            assert parse_answer(await read_all(stream)).status == 401


async def test_a_head_in_single_bytes_is_read_as_one() -> None:
    async with target(echo) as where, served() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.address.port) as stream:
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in asking(where) + b"tail":
                await stream.send_all(bytes([byte]))
            await stream.send_eof()
            raw = await read_all(stream)
    assert raw.startswith(b"HTTP/1.1 101 ")
    assert raw.endswith(b"\r\n\r\ntail")


def assert_closed_refusal(refused: object) -> None:
    headers = refused.headers  # type: ignore[attr-defined]
    body: bytes = refused.body  # type: ignore[attr-defined]
    assert "close" in headers["connection"].lower().split(", ")
    assert headers["content-type"].startswith("text/plain")
    assert headers["content-length"] == str(len(body))
    assert body.count(b"\n") == 1
    assert body.endswith(b"\n")
    assert TOKEN.encode() not in body
