"""`http2tcp -s --admin` as a process: reloads and drains, as a scraper and a probe see them."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families

from http2tcp.address import TCPAddress
from tests.support.loopback import TOKEN, Answer, asking, echo, exchange, open_raw, read_all, target

from .test_server_process import ServerProcess, serving

ADMIN = ("--admin", "127.0.0.1:0")


async def ask(server: ServerProcess, path: str) -> Answer:
    found = re.search(r"metrics and health on 127\.0\.0\.1:(\d+)", server.before)
    assert found is not None
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return await exchange(TCPAddress("127.0.0.1", int(found[1])), request.encode())


async def figures(server: ServerProcess) -> dict[str, float]:
    """Those of reloads, and of what has no label."""
    families = text_string_to_metric_families((await ask(server, "/metrics")).body.decode())
    samples = [sample for family in families for sample in family.samples]
    return {"".join((sample.name, *sample.labels.values())): sample.value for sample in samples}


async def until(server: ServerProcess, **expected: float) -> dict[str, float]:
    with trio.fail_after(20):
        while True:
            now = await figures(server)
            if all(now[f"http2tcp_{name}"] == value for name, value in expected.items()):
                return now
            await trio.sleep(0.02)


async def test_a_reload_that_fails_is_told_until_one_succeeds(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    async with serving("--token-file", str(file), *ADMIN) as server:
        first = await until(server, config_last_reload_successful=1)
        file.write_text("")
        server.process.send_signal(signal.SIGHUP)
        broken = await until(server, config_last_reload_successful=0, config_reloads_totalfailure=1)
        assert (await ask(server, "/readyz")).status == 200
        file.write_text("another-token")
        server.process.send_signal(signal.SIGHUP)
        mended = await until(server, config_last_reload_successful=1, config_reloads_totalsuccess=1)
        assert mended["http2tcp_config_reloads_totalfailure"] == 1
    when = "http2tcp_config_last_reload_success_timestamp_seconds"
    assert first[when] == broken[when] < mended[when]


async def test_a_probe_sees_the_drain_and_the_process_alive_until_the_last_tunnel_ends() -> None:
    async with target(echo) as where, serving(*ADMIN) as server:
        assert (await ask(server, "/readyz")).status == 200
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            server.process.terminate()
            await until(server, draining=1, sessions_opentcp=1)
            ready, health = await ask(server, "/readyz"), await ask(server, "/healthz")
            assert (ready.status, ready.body, health.status) == (503, b"draining\n", 200)
            await stream.send_eof()
            assert await read_all(stream) == b""
        status, _ = await server.ended()
    assert status == 0


async def test_a_second_signal_ends_the_admin_listener_too() -> None:
    async with target(echo) as where, serving(*ADMIN) as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            server.process.terminate()
            await until(server, draining=1)
            server.process.terminate()
            status, said = await server.ended()
    assert status == 0
    assert "Traceback" not in said
