"""Requests that a web page makes: refused, on every transport, unless the server lists where it is from."""

from __future__ import annotations

import pytest
import trio

from http2tcp.errors import SettingsError
from http2tcp.protocol.transport import Transport
from http2tcp.protocol.websocket_handshake import new_key
from http2tcp.server.settings import ServerSettings
from tests.support.loopback import TOKEN, echo, exchange, open_raw, served, target, upgrade

LISTED = "https://pages.example"


def asking(where: str, transport: Transport, origin: str, token: str | None = TOKEN) -> bytes:
    websocket = (f"Sec-WebSocket-Key: {new_key()}", "Sec-WebSocket-Version: 13")
    return upgrade(f"/?addr={where}", f"Origin: {origin}", *websocket, token=token, transport=transport.value)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://pages.example.evil.example",
        "https://pages.example:8443",
        "http://pages.example",
        "pages.example",
        "https://PAGES.example",
        "https://pages.example/",
        "https://pages.example https://evil.example",
    ],
)
async def test_a_page_from_elsewhere_opens_no_tunnel(transport: Transport, origin: str) -> None:
    async with target(echo) as where, served(allow_origins=[LISTED]) as server:
        answer = await exchange(server.address, asking(where, transport, origin))
    assert (answer.status, answer.error) == (403, "http_request_denied")
    assert answer.body == b"a web page may not open tunnels\n"


async def test_without_a_list_no_page_opens_a_tunnel(transport: Transport) -> None:
    async with target(echo) as where, served() as server:
        assert (await exchange(server.address, asking(where, transport, LISTED))).status == 403


async def test_a_listed_page_opens_a_tunnel(transport: Transport) -> None:
    async with target(echo) as where, served(allow_origins=["http://localhost:8080", LISTED]) as server:
        for origin in ("http://localhost:8080", LISTED):
            stream, _ = await open_raw(server.address, asking(where, transport, origin))
            await stream.aclose()


async def test_a_listed_page_still_needs_the_token(transport: Transport) -> None:
    async with target(echo) as where, served(allow_origins=[LISTED]) as server:
        assert (await exchange(server.address, asking(where, transport, LISTED, token=None))).status == 401


async def test_two_origins_are_two_ways_to_read_it(transport: Transport) -> None:
    async with target(echo) as where, served(allow_origins=[LISTED]) as server:
        head = asking(where, transport, LISTED).replace(b"Origin:", b"Origin: https://evil.example\r\nOrigin:")
        with trio.fail_after(5):
            assert (await exchange(server.address, head)).status == 400


@pytest.mark.parametrize("origins", [["null"], ["*"], [""], ["https://a.example/"], "https://a.example"])
def test_what_every_page_could_send_cannot_be_listed(origins: list[str] | str) -> None:
    with pytest.raises(SettingsError):
        ServerSettings(tokens=("t",), allow_origins=origins)
