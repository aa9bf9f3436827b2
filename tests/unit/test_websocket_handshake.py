"""WebSocket's opening handshake: what our client asks, what our server answers, and what either refuses."""

from __future__ import annotations

import pytest

from http2tcp.address import parse_endpoint
from http2tcp.errors import BadRequest, FrontEndFailed, UpgradeRequired
from http2tcp.protocol.client_handshake import AnswerReader, Switched, request
from http2tcp.protocol.server_handshake import TunnelRequest, accept, refuse
from http2tcp.protocol.transport import Transport
from http2tcp.protocol.websocket_handshake import new_key
from tests.support.heads import read

# RFC 6455, section 1.3.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FIELDS = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")


def asked(*fields: str) -> TunnelRequest:
    """What the server understands of a request with these fields."""
    understood = read("\r\n".join(["GET /?addr=db:1 HTTP/1.1", "Host: h", *fields, "", ""]).encode())
    assert understood is not None
    return understood


def answered(*fields: str, any_transport: bool = False, key: str = KEY, transport: str = "websocket") -> Switched:
    """What the client understands of a 101 with these fields."""
    reader = AnswerReader(Transport(transport), any_transport=any_transport, websocket_key=key)
    head = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", *fields, "", ""]
    reader.receive("\r\n".join(head).encode() + b"ahead")
    answer = reader.next_event()
    assert isinstance(answer, Switched)
    return answer


# --- the server -------------------------------------------------------------------------------


def test_a_plain_clients_request_is_taken_and_carries_raw_bytes() -> None:
    understood = asked(*FIELDS, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    assert understood.transport is Transport.WEBSOCKET
    assert not understood.capsules
    head = accept(understood, "5e55", keepalive=25).decode()
    assert f"\r\nSec-WebSocket-Accept: {ACCEPT}\r\n" in head
    assert "\r\nUpgrade: websocket\r\n" in head
    # Nothing is agreed that was not asked for, nor what we do not do.
    for name in ("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Http2tcp-Keepalive", "Capsule-Protocol"):
        assert name not in head


@pytest.mark.parametrize(
    "offer",
    [
        ("Sec-WebSocket-Protocol: http2tcp-capsules",),
        ("Sec-WebSocket-Protocol: binary,http2tcp-capsules , x",),
        ("Sec-WebSocket-Protocol: binary", "Sec-WebSocket-Protocol: http2tcp-capsules"),
    ],
)
def test_who_offers_capsules_gets_them(offer: tuple[str, ...]) -> None:
    understood = asked(*FIELDS, *offer)
    assert understood.capsules
    head = accept(understood, "5e55", keepalive=7).decode()
    assert "\r\nSec-WebSocket-Protocol: http2tcp-capsules\r\n" in head
    assert "\r\nHttp2tcp-Keepalive: 7\r\n" in head


@pytest.mark.parametrize("offer", ["binary", "http2tcp-capsules-2", "HTTP2TCP-CAPSULES", ""])
def test_who_offers_something_else_gets_raw_bytes(offer: str) -> None:
    assert not asked(*FIELDS, f"Sec-WebSocket-Protocol: {offer}").capsules


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["Sec-WebSocket-Key: "],
        ["Sec-WebSocket-Key: abc"],
        ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTE="],
        ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=!"],
        [f"Sec-WebSocket-Key: {KEY}", f"Sec-WebSocket-Key: {KEY}"],
        [f"Sec-WebSocket-Key: {KEY}, {KEY}"],
    ],
)
def test_a_request_without_one_good_key_is_no_websocket(fields: list[str]) -> None:
    with pytest.raises(BadRequest):
        asked(*FIELDS[:2], *fields, FIELDS[3])


def test_two_versions_are_two_ways_to_read_it() -> None:
    with pytest.raises(BadRequest):
        asked(*FIELDS, "Sec-WebSocket-Version: 8")


@pytest.mark.parametrize("version", [(), ("Sec-WebSocket-Version: 8",), ("Sec-WebSocket-Version: 13, 8",)])
def test_another_version_is_answered_with_the_one_that_is_known(version: tuple[str, ...]) -> None:
    # The upgrade is judged after the token, so it is no error of syntax.
    assert asked(*FIELDS[:3], *version).transport is None
    head = refuse(UpgradeRequired(), "5e55").decode()
    assert head.startswith("HTTP/1.1 426 ")
    assert "\r\nSec-WebSocket-Version: 13\r\n" in head
    assert "websocket" in head.partition("\r\nUpgrade: ")[2].partition("\r\n")[0].split(", ")


def test_websocket_fields_of_another_upgrade_mean_nothing() -> None:
    assert asked("Connection: Upgrade", "Upgrade: tcp", "Sec-WebSocket-Key: x").transport is Transport.TCP


# --- the client -------------------------------------------------------------------------------


def test_our_client_s_request_is_one() -> None:
    key = new_key()
    head = request(
        parse_endpoint("https://example.com/p"),
        None,
        Transport.WEBSOCKET,
        token="tok",
        user_agent="me",
        keepalive=25,
        websocket_key=key,
    )
    assert head.decode().split("\r\n") == [
        "GET /p HTTP/1.1",
        "Host: example.com",
        "User-Agent: me",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Authorization: Bearer tok",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: http2tcp-capsules",
        "Http2tcp-Confirm: ?1",
        "Http2tcp-Keepalive: 25",
        "",
        "",
    ]
    understood = read(head)
    assert understood is not None
    assert (understood.websocket_key, understood.capsules, understood.keepalive) == (key, True, 25)


def test_a_plain_servers_answer_means_raw_bytes() -> None:
    answer = answered(f"Sec-WebSocket-Accept: {ACCEPT}")
    assert (answer.transport, answer.capsules, answer.from_http2tcp) == (Transport.WEBSOCKET, False, False)
    assert answer.trailing_data == b"ahead"


def test_our_own_servers_answer_means_capsules() -> None:
    head = accept(asked(*FIELDS, "Sec-WebSocket-Protocol: http2tcp-capsules"), "5e55", keepalive=7).decode()
    answer = answered(*head.split("\r\n")[3:-2])
    assert (answer.capsules, answer.from_http2tcp, answer.keepalive) == (True, True, 7)


def test_a_server_that_says_yes_to_every_subprotocol_gets_raw_bytes() -> None:
    answer = answered(f"Sec-WebSocket-Accept: {ACCEPT}", "Sec-WebSocket-Protocol: http2tcp-capsules")
    assert not answer.capsules


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "Sec-WebSocket-Accept"),
        (["Sec-WebSocket-Accept: " + ACCEPT.lower()], "Sec-WebSocket-Accept"),
        ([f"Sec-WebSocket-Accept: {ACCEPT}"] * 2, "Sec-WebSocket-Accept"),
        ([f"Sec-WebSocket-Accept: {ACCEPT}", "Sec-WebSocket-Extensions: permessage-deflate"], "extension"),
        ([f"Sec-WebSocket-Accept: {ACCEPT}", "Sec-WebSocket-Protocol: chat"], "subprotocol"),
        ([f"Sec-WebSocket-Accept: {ACCEPT}", "Proxy-Status: http2tcp", "Http2tcp-Keepalive: 25"], "dropped"),
    ],
)
def test_an_answer_that_agrees_to_something_else_is_refused(fields: list[str], words: str) -> None:
    with pytest.raises(FrontEndFailed, match=words):
        answered(*fields)


def test_a_websocket_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(FrontEndFailed):
        answered(f"Sec-WebSocket-Accept: {ACCEPT}", transport="tcp", key="", any_transport=True)
