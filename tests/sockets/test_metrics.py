"""What the admin listener tells of a server that works: the figures add up, and name nobody."""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import fields
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

import http2tcp
from http2tcp import log
from http2tcp.address import TCPAddress, UnixAddress, parse_listen
from http2tcp.errors import ListenError
from http2tcp.log import BackgroundHandler
from http2tcp.protocol.transport import Transport
from http2tcp.server.counters import CARRIERS
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from http2tcp.server.server import serve
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import prepare
from tests.support.loopback import (
    TOKEN,
    Answer,
    Served,
    asking,
    closed_port,
    echo,
    exchange,
    full_backlog,
    open_raw,
    read_all,
    served,
    target,
    upgrade,
)

ADMIN = parse_listen("127.0.0.1:0")

Series = tuple[str, tuple[tuple[str, str], ...]]


async def ask(server: Served, path: str) -> Answer:
    address = server.server.admin_addresses[0]
    assert isinstance(address, TCPAddress)
    return await exchange(address, f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())


async def scrape(server: Served) -> dict[Series, float]:
    """Every sample, by its name and its labels. A sample that comes twice is a failure."""
    answer = await ask(server, "/metrics")
    assert answer.status == 200
    read: dict[Series, float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            series = sample.name, tuple(sorted(sample.labels.items()))
            assert series not in read, f"{series} comes twice"
            read[series] = sample.value
    return read


async def figure(server: Served, name: str, /, **labels: str) -> float:
    return (await scrape(server))[f"http2tcp_{name}", tuple(sorted(labels.items()))]


async def reaches(server: Served, expected: float, name: str, /, **labels: str) -> None:
    """Wait until a figure is this one."""
    with trio.fail_after(20):
        while await figure(server, name, **labels) != expected:
            await trio.sleep(0.01)


def differences(before: dict[Series, float], after: dict[Series, float]) -> dict[Series, float]:
    """What has changed of the server's own figures, but for those in seconds."""
    return {
        series: after[series] - before[series]
        for series in after
        if after[series] != before[series] and series[0].startswith("http2tcp_") and "_seconds_" not in series[0]
    }


def of(name: str, /, **labels: str) -> Series:
    return f"http2tcp_{name}", tuple(sorted(labels.items()))


# --- sessions ---------------------------------------------------------------------------------


async def test_a_tunnel_is_counted_when_it_opens_and_when_it_ends(transport: Transport) -> None:
    async with target(echo) as where, served(admin=ADMIN) as server:
        before = await scrape(server)
        tunnel = await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport)
        async with tunnel:
            open_now = await scrape(server)
            assert differences(before, open_now) == {
                of("connections_accepted_total"): 1,
                of("sessions_open", transport=transport.value): 1,
                of("sessions_opened_total", transport=transport.value): 1,
            }
            assert open_now[of("dial_seconds_count")] == open_now[of("handshake_seconds_count")] == 1
            assert 0 < open_now[of("dial_seconds_sum")] <= open_now[of("handshake_seconds_sum")] < 60
            await tunnel.send_all(b"12345")
            await tunnel.send_eof()
            assert await read_all(tunnel) == b"12345"
        await reaches(server, 1, "sessions_ended_total", reason="closed")
        assert differences(before, await scrape(server)) == {
            of("connections_accepted_total"): 1,
            of("sessions_opened_total", transport=transport.value): 1,
            of("sessions_ended_total", reason="closed"): 1,
            of("bytes_total", direction="up"): 5,
            of("bytes_total", direction="down"): 5,
        }


@pytest.mark.usefixtures("_moved")
async def test_the_bytes_of_open_tunnels_are_counted_and_never_taken_back() -> None:
    seen: list[tuple[float, float]] = []

    async with target(echo) as where, served(admin=ADMIN) as server:

        async def look() -> None:
            now = await scrape(server)
            seen.append((now[of("bytes_total", direction="up")], now[of("bytes_total", direction="down")]))

        streams = [(await open_raw(server.address, asking(where)))[0] for _ in range(3)]
        for number, stream in enumerate(streams, 1):
            await stream.send_all(b"x" * 1000 * number)
            for _ in range(1000 * number):
                await stream.receive_some(1)
            await look()
        assert seen[-1] == (6000, 6000)
        for stream in streams:
            await stream.send_eof()
            assert await read_all(stream) == b""
            await stream.aclose()
            await look()
        await reaches(server, 3, "sessions_ended_total", reason="closed")
        await look()
    assert seen == sorted(seen)
    assert seen[-1] == (6000, 6000)


async def test_a_client_that_breaks_and_a_target_that_breaks_are_told_apart() -> None:
    async def cut(stream: trio.SocketStream) -> None:
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()

    async with target(echo) as where, target(cut) as broken, served(admin=ADMIN) as server:
        stream, _ = await open_raw(server.address, asking(where))
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()
        await reaches(server, 1, "sessions_ended_total", reason="client_broke")
        stream, _ = await open_raw(server.address, asking(broken))
        async with stream:
            await reaches(server, 1, "sessions_ended_total", reason="target_broke")


async def test_who_has_not_shown_a_token_yet_is_counted_apart() -> None:
    async with served(admin=ADMIN) as server:
        crowd = [await trio.open_tcp_stream(server.address.host, server.address.port) for _ in range(5)]
        await reaches(server, 5, "connections_unauthenticated")
        assert await figure(server, "connections_accepted_total") == 5
        for stream in crowd:
            await stream.aclose()
        await reaches(server, 0, "connections_unauthenticated")


async def test_every_connection_becomes_one_of_opened_refused_or_abandoned() -> None:
    async with target(echo) as where, served(admin=ADMIN, limits=Limits(max_unauthenticated=3)) as server:

        async def settled() -> dict[Series, float]:
            with trio.fail_after(20):
                while True:
                    now = await scrape(server)
                    settled = (
                        "sessions_opened_total",
                        "refused_total",
                        "abandoned_total",
                        "connections_unauthenticated",
                    )
                    parts = [n for series, n in now.items() if series[0].removeprefix("http2tcp_") in settled]
                    if sum(parts) == now[of("connections_accepted_total")] == 10:
                        return now
                    await trio.sleep(0.01)

        crowd = [await trio.open_tcp_stream(server.address.host, server.address.port) for _ in range(5)]
        await reaches(server, 2, "abandoned_total", reason="pushed_out")
        await crowd.pop().aclose()
        await reaches(server, 1, "abandoned_total", reason="client_left")
        for request in (asking("a"), asking("localhost:1", token="wrong"), asking(f"127.0.0.1:{closed_port()}")):
            await exchange(server.address, request)
        for _ in range(2):
            stream, _ = await open_raw(server.address, asking(where))
            crowd.append(stream)
        now = await settled()
        for stream in crowd:
            await stream.aclose()
    assert now[of("connections_unauthenticated")] == now[of("abandoned_total", reason="pushed_out")] == 2


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "settings", "status", "reason"),
    [
        (b"\r\n\r\n", {}, 400, "http_request_error"),
        (asking("a"), {}, 400, "http_request_error"),
        (asking("localhost:22", token=None), {}, 401, "http_request_denied"),
        (asking("localhost:22", token="wrong"), {}, 401, "http_request_denied"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", {"connect": True}, 407, "http_request_denied"),
        (asking("169.254.169.254:80"), {}, 403, "destination_ip_prohibited"),
        (asking("localhost:22", "Origin: https://a.example"), {}, 403, "http_request_denied"),
        (asking("localhost:22"), {"path": "/elsewhere"}, 404, "http_request_error"),
        (b"", {"head_timeout": 0.05}, 408, "http_request_error"),
        (upgrade(transport="h2c"), {}, 426, "http_request_error"),
        (upgrade("/", "X: " + "x" * 20000), {}, 431, "http_request_error"),
        (asking(f"127.0.0.1:{closed_port()}"), {}, 502, "connection_refused"),
    ],
)
async def test_a_refusal_is_counted_by_its_status_and_its_error(
    request_: bytes, settings: dict[str, Any], status: int, reason: str
) -> None:
    async with served(admin=ADMIN, **settings) as server:
        before = await scrape(server)
        answer = await exchange(server.address, request_)
        assert (answer.status, answer.error) == (status, reason)
        changed = differences(before, await scrape(server))
    assert changed.pop(of("connections_accepted_total")) == 1
    assert changed.pop(of("refused_total", status=str(status), reason=reason)) == 1
    assert set(changed) <= {of("authentication_failures_total"), of("limit_reached_total", limit="head_timeout")}


async def test_a_target_that_does_not_answer_counts_for_the_limit_that_gave_it_up() -> None:
    with full_backlog() as where:
        async with served(admin=ADMIN, connect_timeout=0.1) as server:
            before = await scrape(server)
            assert (await exchange(server.address, asking(where))).status == 504
            assert differences(before, await scrape(server)) == {
                of("connections_accepted_total"): 1,
                of("refused_total", status="504", reason="connection_timeout"): 1,
                of("limit_reached_total", limit="connect_timeout"): 1,
            }


async def test_a_wrong_token_is_a_failure_and_none_at_all_is_not() -> None:
    async with served(admin=ADMIN) as server:
        await exchange(server.address, asking("localhost:22", token=None))
        assert await figure(server, "authentication_failures_total") == 0
        await exchange(server.address, asking("localhost:22", token="wrong"))
        assert await figure(server, "authentication_failures_total") == 1


async def test_no_series_comes_that_was_not_there_from_the_start() -> None:
    async with target(echo) as where, served(admin=ADMIN, connect=True) as server:
        before = await scrape(server)
        for request in (b"nonsense\r\n\r\n", asking("a"), asking("localhost:22", token="wrong"), asking("localhost:1")):
            await exchange(server.address, request)
        for transport in Transport:
            async with await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport):
                pass
        head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n"
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
            await stream.send_all(head.encode())
            assert b" 200 " in await stream.receive_some()
        for carrier in CARRIERS:
            await reaches(server, 1, "sessions_opened_total", transport=carrier)
        await reaches(server, 0, "sessions_open", transport="connect")
        after = await scrape(server)
    assert after.keys() == before.keys()
    assert not [series for series, value in after.items() if value < before[series] and "_total" in series[0]]


# --- limits -----------------------------------------------------------------------------------


async def test_every_limit_is_told_and_none_is_infinite() -> None:
    limits = Limits(max_tunnels=7, max_unauthenticated=50, max_rate=1e6)
    async with served(admin=ADMIN, limits=limits, connect_timeout=3) as server:
        told = {
            dict(labels)["limit"]: value
            for (name, labels), value in (await scrape(server)).items()
            if name == "http2tcp_limit"
        }
    # Every field of Limits is one, also one that is added later.
    assert told.keys() == {each.name for each in fields(Limits)} | {"head_timeout", "connect_timeout"}
    assert told.items() >= {
        ("max_unauthenticated", 50),
        ("max_unauthenticated_per_address", 64),
        ("max_failures_per_minute", 10),
        ("max_tunnels", 7),
        ("max_tunnels_per_token", math.inf),
        ("head_timeout", 10),
        ("connect_timeout", 3),
        ("idle_timeout", math.inf),
        ("max_session", math.inf),
        ("max_rate", 1e6),
    }


async def test_a_server_that_has_all_its_tunnels_says_so_and_is_not_ready_until_one_ends() -> None:
    async with target(echo) as where, served(admin=ADMIN, limits=Limits(max_tunnels=1)) as server:
        assert (await ask(server, "/readyz")).status == 200
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            assert (await exchange(server.address, asking(where))).status == 503
            assert await figure(server, "limit_reached_total", limit="max_tunnels") == 1
            ready = await ask(server, "/readyz")
            assert ready.status == 503
            assert b"tunnels" in ready.body
            assert (await ask(server, "/healthz")).status == 200
        await reaches(server, 0, "sessions_open", transport="tcp")
        assert (await ask(server, "/readyz")).status == 200


async def test_who_is_pushed_out_or_lasts_too_long_counts_for_its_limit() -> None:
    limits = Limits(max_unauthenticated=2, max_session=0.2)
    async with target(echo) as where, served(admin=ADMIN, limits=limits) as server:
        crowd = [await trio.open_tcp_stream(server.address.host, server.address.port) for _ in range(5)]
        await reaches(server, 3, "limit_reached_total", limit="max_unauthenticated")
        assert await figure(server, "connections_unauthenticated") == 2
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            await reaches(server, 1, "limit_reached_total", limit="max_session")
        for stream in crowd:
            await stream.aclose()


async def test_a_silent_tunnel_that_is_ended_counts_for_its_limit() -> None:
    async with target(echo) as where, served(admin=ADMIN, limits=Limits(idle_timeout=0.1)) as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            await reaches(server, 1, "limit_reached_total", limit="idle_timeout")


async def test_a_token_with_all_its_tunnels_counts_for_its_limit() -> None:
    token = Token("alice", digest(TOKEN), max_tunnels=1)
    async with target(echo) as where, served(admin=ADMIN, tokens=[token]) as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            assert (await exchange(server.address, asking(where))).status == 429
        assert await figure(server, "limit_reached_total", limit="max_tunnels_per_token") == 1


# --- tokens and settings ----------------------------------------------------------------------


async def test_a_named_token_that_expires_says_when_and_others_say_nothing() -> None:
    expires = time.time() + 86400
    tokens = [TOKEN, Token("alice", digest("a"), expires=expires), Token("bob", digest("b"))]
    async with served(admin=ADMIN, tokens=tokens) as server:
        told = {series: n for series, n in (await scrape(server)).items() if "expiry" in series[0]}
        assert told == {of("token_expiry_timestamp_seconds", token="alice"): expires}


async def test_a_reload_is_counted_and_what_it_brings_is_told() -> None:
    settings = ServerSettings(tokens=[TOKEN, Token("alice", digest("a"), expires=2e9)], limits=Limits(max_session=60))
    async with served(admin=ADMIN) as server:
        before = await scrape(server)
        server.server.state.metrics.reload_failed()
        assert differences(before, await scrape(server)) == {
            of("config_reloads_total", result="failure"): 1,
            of("config_last_reload_successful"): -1,
        }
        server.server.state.reload(prepare(settings))
        after = await scrape(server)
    assert after[of("config_reloads_total", result="success")] == after[of("config_last_reload_successful")] == 1
    assert after[of("limit", limit="max_session")] == 60
    assert after[of("token_expiry_timestamp_seconds", token="alice")] == 2e9
    loaded = of("config_last_reload_success_timestamp_seconds")
    assert before[loaded] < after[loaded] < time.time()


async def test_lines_that_the_log_has_dropped_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = BackgroundHandler(logging.NullHandler())
    monkeypatch.setattr(log, "_WAITING", 0)
    log.logger.addHandler(handler)
    try:
        async with served(admin=ADMIN) as server:
            before = await figure(server, "log_lines_dropped_total")
            log.logger.error("nobody reads this")
            assert await figure(server, "log_lines_dropped_total") == before + 1
    finally:
        log.logger.removeHandler(handler)
        handler.close()


async def test_it_says_what_it_is_and_what_it_takes_of_its_machine() -> None:
    async with served(admin=ADMIN) as server:
        (build,) = [dict(labels) for name, labels in await scrape(server) if name == "http2tcp_build_info"]
        assert build["version"] == http2tcp.__version__
        assert re.fullmatch(r"3\.\d+\.\d+", build["python"])
        first = await scrape(server)
        opened = [await trio.open_tcp_stream(server.address.host, server.address.port) for _ in range(10)]
        await reaches(server, 10, "connections_unauthenticated")
        second = await scrape(server)
        for stream in opened:
            await stream.aclose()
    assert first["process_cpu_seconds_total", ()] < second["process_cpu_seconds_total", ()]
    assert 10e6 < first["process_resident_memory_bytes", ()] < 10e9
    assert second["process_open_fds", ()] - first["process_open_fds", ()] == 20
    assert first["process_open_fds", ()] < first["process_max_fds", ()]
    assert time.time() - 600 < first["process_start_time_seconds", ()] <= time.time()


# --- what is not told -------------------------------------------------------------------------


async def test_no_token_no_destination_and_no_client_is_ever_told() -> None:
    wrong = "wr0ng-tok-5ecret"
    async with target(echo) as where, served(admin=ADMIN, tokens=[TOKEN, Token("", digest("un-named"))]) as server:
        stream, _ = await open_raw(server.address, asking(where, "User-Agent: curious-agent/1"))
        async with stream:
            await exchange(server.address, asking("hidden-destination.invalid:4711", token=wrong))
            await exchange(server.address, asking("hidden-destination.invalid:4711"))
            await exchange(server.address, asking(f"127.0.0.1:{closed_port()}"))
            text = (await ask(server, "/metrics")).body.decode()
            client = stream.socket.getsockname()[1]
    for hidden in (
        TOKEN,
        wrong,
        digest(TOKEN).hex(),
        "hidden-destination",
        "4711",
        "curious",
        "127.0.0.1",
        "localhost",
    ):
        assert hidden not in text
    for port in (where.partition(":")[2], str(client)):
        assert not re.search(rf":{port}\b", text)
        assert f'"{port}"' not in text


async def test_the_public_listener_tells_nothing_of_it() -> None:
    async with served(admin=ADMIN) as server:
        for path in ("/metrics", "/healthz", "/readyz"):
            answer = await exchange(server.address, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert answer.status == 401
            answer = await exchange(server.address, upgrade(path, transport="none"))
            assert answer.status == 426
            assert b"http2tcp_" not in answer.body


async def test_the_admin_listener_opens_no_tunnel() -> None:
    async with target(echo) as where, served(admin=ADMIN) as server:
        address = server.server.admin_addresses[0]
        assert isinstance(address, TCPAddress)
        upgrading = asking(where).replace(b"Host: example.com", b"Host: localhost")
        for request in (upgrading, f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()):
            assert (await exchange(address, request)).status == 404


async def test_the_admin_listener_knows_the_name_that_it_was_given_and_those_that_are_listed_now() -> None:
    async def status(address: TCPAddress, host: str) -> int:
        return (await exchange(address, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())).status

    async with served(admin=parse_listen("localhost:0"), admin_names=["one.internal"]) as server:
        address = server.server.admin_addresses[0]
        assert isinstance(address, TCPAddress)
        hosts = ("localhost", "one.internal", "two.internal")
        assert [await status(address, host) for host in hosts] == [200, 200, 403]
        server.reload(admin_names=["two.internal"])
        assert [await status(address, host) for host in hosts] == [200, 403, 200]


async def test_other_machines_that_reach_it_earn_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with served(admin=ADMIN):
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    async with served(admin=parse_listen(":0")):
        words = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(words) == 2
    assert all("--admin needs no token" in each for each in words)


# --- from the start to the end ----------------------------------------------------------------


async def test_it_tells_until_the_last_session_has_ended() -> None:
    async with target(echo) as where, served(admin=ADMIN) as server:
        stream, _ = await open_raw(server.address, asking(where))
        assert await figure(server, "draining") == 0
        server.drain.set()
        await reaches(server, 1, "draining")
        async with stream:
            ready, health = await ask(server, "/readyz"), await ask(server, "/healthz")
            assert (ready.status, ready.body) == (503, b"draining\n")
            assert health.status == 200
            assert await figure(server, "sessions_open", transport="tcp") == 1
            await stream.send_eof()
            assert await read_all(stream) == b""
        with trio.fail_after(20):
            await server.ended.wait()
        address = server.server.admin_addresses[0]
        assert isinstance(address, TCPAddress)
        with pytest.raises(OSError, match=r"all attempts to connect|[Rr]efused"):
            await trio.open_tcp_stream(address.host, address.port)


async def test_a_scraper_that_stays_holds_up_no_end() -> None:
    async with served(admin=ADMIN) as server:
        address = server.server.admin_addresses[0]
        assert isinstance(address, TCPAddress)
        async with await trio.open_tcp_stream(address.host, address.port):
            server.drain.set()
            with trio.fail_after(5):
                await server.ended.wait()


async def test_an_admin_address_that_is_taken_is_a_sentence_and_nothing_is_left_listening() -> None:
    port = closed_port()
    async with served(admin=ADMIN) as server:
        taken = server.server.admin_addresses[0]
        with pytest.raises(ListenError) as caught:
            await serve(ServerSettings(listen=TCPAddress("127.0.0.1", port), admin=taken, tokens=[TOKEN]))
        assert str(caught.value) == f"cannot listen on {taken}: address already in use"
        with pytest.raises(OSError, match=r"all attempts to connect|[Rr]efused"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_it_listens_on_a_unix_socket_that_goes_at_the_end(tmp_path: Any) -> None:
    path = tmp_path / "admin.sock"
    async with served(admin=UnixAddress(str(path))) as server:
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"\nhttp2tcp_draining 0\n" in await read_all(stream)
        server.drain.set()
        await server.ended.wait()
    assert not path.exists()
