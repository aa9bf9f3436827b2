"""The admin listener by itself: what it answers, and whom it does not let hold it up."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from http2tcp.address import Address, TCPAddress, UnixAddress
from http2tcp.net.listen import open_listeners
from http2tcp.server import admin
from http2tcp.server.admin import serve_admin
from http2tcp.server.prometheus import CONTENT_TYPE, Counter, Family
from tests.support.loopback import Answer, exchange, parse_answer, read_all, send_until_broken

TEXT = "# HELP things_total Things.\n# TYPE things_total counter\nthings_total 0\n"


@asynccontextmanager
async def answering(
    *families: Family,
    unready: Callable[[], str] = lambda: "",
    listen: Address = TCPAddress("127.0.0.1", 0),
    hosts: Sequence[str] = (),
) -> AsyncIterator[TCPAddress]:
    families = families or (Counter("things_total", "Things."),)
    listeners = await open_listeners(listen)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_admin, listeners, families, unready, lambda: hosts)
        address = listeners[0].address
        yield address if isinstance(address, TCPAddress) else TCPAddress("unix", 0)
        nursery.cancel_scope.cancel()
    for listener in listeners:
        listener.close()


async def ask(address: TCPAddress, path: str, method: str = "GET", *fields: str) -> Answer:
    head = [f"{method} {path} HTTP/1.1", f"Host: {address}", *fields, "", ""]
    return await exchange(address, "\r\n".join(head).encode())


# --- what it answers --------------------------------------------------------------------------


async def test_metrics_are_prometheus_text() -> None:
    async with answering() as address:
        answer = await ask(address, "/metrics")
    assert (answer.status, answer.body.decode()) == (200, TEXT)
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert answer.headers["content-length"] == str(len(TEXT))
    assert answer.headers["connection"] == "close"


async def test_metrics_are_of_the_moment_in_which_they_are_asked_for() -> None:
    counter = Counter("things_total", "Things.")
    async with answering(counter) as address:
        await ask(address, "/metrics")
        counter.add()
        assert (await ask(address, "/metrics")).body.endswith(b"things_total 1\n")


async def test_health_is_ok_as_long_as_anything_runs_and_readiness_says_why_not() -> None:
    why = ""
    async with answering(unready=lambda: why) as address:
        assert await ask(address, "/healthz") == await ask(address, "/readyz")
        assert (await ask(address, "/readyz")).body == b"ok\n"
        why = "draining"
        health, ready = await ask(address, "/healthz"), await ask(address, "/readyz")
    assert (health.status, health.body) == (200, b"ok\n")
    assert (ready.status, ready.body) == (503, b"draining\n")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_head_gets_the_same_head_and_no_body(path: str) -> None:
    async with answering() as address:
        got, head = await ask(address, path), await ask(address, path, "HEAD")
    assert head.body == b""
    assert (head.status, head.headers) == (got.status, got.headers)


async def test_a_query_changes_nothing() -> None:
    async with answering() as address:
        assert (await ask(address, "/metrics?module=tcp")).body.decode() == TEXT


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "//metrics", "/%6detrics", "*", "/?addr=localhost:22"])
async def test_every_other_path_is_a_404_that_says_what_is_there(path: str) -> None:
    async with answering() as address:
        answer = await ask(address, path)
    assert (answer.status, answer.body) == (404, b"not found: there are /metrics, /healthz and /readyz\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
async def test_other_methods_are_a_405(method: str) -> None:
    async with answering() as address:
        answer = await ask(address, "/metrics", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_a_client_of_http_1_0_is_answered() -> None:
    async with answering() as address:
        assert (await exchange(address, b"GET /healthz HTTP/1.0\r\n\r\n")).body == b"ok\n"


async def test_it_serves_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with answering(listen=UnixAddress(str(path))):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert parse_answer(await read_all(stream)).body == b"ok\n"
    assert not path.exists()


# --- browsers ---------------------------------------------------------------------------------


async def asked_as(address: TCPAddress, host: str, *fields: str, path: str = "/metrics") -> int:
    """The status of a request that names this host."""
    head = [f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]
    return (await exchange(address, "\r\n".join(head).encode())).status


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/"])
@pytest.mark.parametrize(
    "fields",
    [
        ["Origin: https://example.com"],
        ["Origin: null"],
        ["Origin: http://127.0.0.1"],  # another port is another origin
        ["Origin: "],
        ["Origin: https://example.com", "Sec-Fetch-Site: none"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: what-comes-next"],
        ["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"],
    ],
)
async def test_a_web_page_of_another_site_gets_a_403_that_tells_nothing(path: str, fields: list[str]) -> None:
    async with answering() as address:
        answer = await ask(address, path, "GET", *fields)
    assert answer.status == 403
    assert b"things" not in answer.body
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_who_types_the_address_or_asks_from_the_very_same_origin_is_served() -> None:
    async with answering() as address:
        port = address.port
        for host, *fields in [
            (f"{address}", "Sec-Fetch-Site: none"),
            (f"{address}", "Sec-Fetch-Site: same-origin", f"Origin: http://{address}"),
            (f"localhost:{port}", f"Origin: http://LocalHost:{port}"),
        ]:
            assert await asked_as(address, host, *fields) == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebound.example.com", 403),
        ("rebound.example.com:PORT", 403),
        ("localhost.example.com:PORT", 403),
        ("127.0.0.1.example.com:PORT", 403),
        ("notlocalhost", 403),
        ("metrics.internal:PORT", 403),
        ("user@localhost:PORT", 403),
        ("a b", 403),
        ("localhost:PORT", 200),
        ("LOCALHOST", 200),
        ("localhost.:PORT", 200),
        ("127.0.0.1:PORT", 200),
        ("10.1.2.3:9090", 200),  # by way of a forwarded port
        ("127.1:PORT", 200),
        ("[::1]:PORT", 200),
        ("[2001:db8::1]", 200),
    ],
)
async def test_a_page_whose_own_name_leads_to_loopback_is_refused(host: str, status: int) -> None:
    """DNS rebinding: to the browser, it asks its own site."""
    async with answering() as address:
        port = str(address.port)
        assert await asked_as(address, host.replace("PORT", port)) == status
        assert await asked_as(address, host.replace("PORT", port), path="/readyz") == status


async def test_a_name_that_is_listed_is_served_on_loopback() -> None:
    async with answering(hosts=["Metrics.Internal", "other"]) as address:
        assert await asked_as(address, "metrics.internal:9090") == 200
        assert await asked_as(address, "other.") == 200
        assert await asked_as(address, "another") == 403


async def test_where_other_machines_reach_it_all_names_are_served() -> None:
    """A scrape by a name in the cluster; a page there can ask without a trick."""
    async with answering(listen=TCPAddress("", 0)) as address:
        local = TCPAddress("127.0.0.1", address.port)
        assert await asked_as(local, "http2tcp.default.svc:9090") == 200
        assert await asked_as(local, "http2tcp.default.svc:9090", "Origin: https://example.com") == 403


async def test_on_a_unix_socket_any_name_is_served(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with answering(listen=UnixAddress(str(path))):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: metrics.example.com\r\n\r\n")
            assert parse_answer(await read_all(stream)).status == 200


async def test_a_request_without_a_host_is_no_browsers() -> None:
    async with answering() as address:
        assert (await exchange(address, b"GET /metrics HTTP/1.0\r\n\r\n")).status == 200


# --- what is no request for it ----------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,  # a TLS hello
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",  # without Host
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"\0\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_a_400_that_repeats_nothing(sent: bytes) -> None:
    async with answering() as address:
        answer = await exchange(address, sent)
    assert (answer.status, answer.body) == (400, b"bad request\n")


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
async def test_a_head_that_is_too_large_is_a_431(end: bytes) -> None:
    async with answering() as address:
        answer = await exchange(address, b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + end)
    assert answer.status == 431


async def test_no_second_request_is_answered_on_a_connection() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with answering() as address, await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(request * 3)
        assert (await read_all(stream)).count(b"HTTP/1.1 ") == 1


async def test_an_upgrade_is_not_made_here() -> None:
    async with answering() as address:
        answer = await ask(address, "/metrics", "GET", "Connection: Upgrade", "Upgrade: tcp")
    assert (answer.status, answer.body.decode()) == (200, TEXT)


async def test_a_large_body_that_nobody_asked_for_does_not_take_the_answer_away() -> None:
    async with answering() as address, await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_broken, stream, b"x" * 30_000)
            answer = b""
            while not answer.endswith(b"expected GET or HEAD\n"):
                answer += await stream.receive_some()
            nursery.cancel_scope.cancel()
    assert parse_answer(answer).status == 405


# --- whom it does not wait for ----------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"])
async def test_who_does_not_finish_his_request_is_gone_after_ten_seconds(
    sent: bytes, patient_clock: trio.testing.MockClock
) -> None:
    async with answering() as address, await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(sent)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert 9.9 <= trio.current_time() <= 10.5


async def test_who_sends_a_byte_a_second_is_gone_after_ten_seconds(patient_clock: trio.testing.MockClock) -> None:
    async with answering() as address, await trio.open_tcp_stream(address.host, address.port) as stream:
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n":
                    # Not in the second in which it is given up.
                    await trio.sleep(0.95)
                    await stream.send_all(bytes([byte]))

            nursery.start_soon(trickle)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            nursery.cancel_scope.cancel()
        assert 9.9 <= trio.current_time() <= 10.5


async def test_who_does_not_read_the_answer_is_gone_after_ten_seconds(patient_clock: trio.testing.MockClock) -> None:
    large = Counter("things_total", "Things. " * 2_000_000)
    async with answering(large) as address:
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await trio.sleep(11)
            assert (await ask(address, "/healthz")).status == 200
            with pytest.raises(trio.BrokenResourceError):
                await read_all(stream)


async def test_who_keeps_the_connection_after_the_answer_loses_it_a_second_later(
    patient_clock: trio.testing.MockClock,
) -> None:
    async with answering() as address, await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_all(stream)).endswith(b"ok\n")
        await trio.sleep(1.5)
        await send_until_broken(stream, b"x")


async def test_a_crowd_that_says_nothing_keeps_nobody_out() -> None:
    async with answering() as address:
        crowd = [await trio.open_tcp_stream(address.host, address.port) for _ in range(200)]
        with trio.fail_after(5):
            assert (await ask(address, "/healthz")).status == 200
            # The oldest are gone; who came last may still ask.
            with pytest.raises(trio.BrokenResourceError):
                await crowd[0].receive_some()
            await crowd[-1].send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert parse_answer(await read_all(crowd[-1])).status == 200
        for stream in crowd:
            await stream.aclose()


async def test_a_crowd_that_asks_all_at_once_is_answered() -> None:
    answers: list[Answer] = []
    async with answering() as address:

        async def scrape() -> None:
            for _ in range(20):
                answers.append(await ask(address, "/metrics"))

        async with trio.open_nursery() as nursery:
            for _ in range(admin._CONNECTIONS // 2):
                nursery.start_soon(scrape)
    assert len(answers) == 20 * (admin._CONNECTIONS // 2)
    assert {answer.body.decode() for answer in answers} == {TEXT}


async def test_a_client_that_resets_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with answering() as address:
        for sent in (b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with socket.create_connection((address.host, address.port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.sendall(sent)
        assert (await ask(address, "/healthz")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
