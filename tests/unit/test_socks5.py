"""The SOCKS5 listener's side of the conversation, byte by byte (RFC 1928)."""

from __future__ import annotations

import socket

import pytest

from http2tcp.address import TCPAddress, parse_endpoint
from http2tcp.client.diagnosis import explain_refusal
from http2tcp.errors import (
    ConnectFailed,
    CredentialsRefused,
    DestinationForbidden,
    Forbidden,
    FrontEndFailed,
    Refusal,
    TargetFailed,
    TargetTimeout,
    TargetUnreachable,
    TunnelError,
)
from http2tcp.protocol.client_handshake import Refused
from http2tcp.protocol.socks5 import ACCEPTED, Negotiation, Socks5, SocksError, SocksRefusal, refuse
from http2tcp.protocol.transport import Transport

HELLO = b"\x05\x01\x00"
WELCOME = b"\x05\x00"


def asking_for(host: bytes, port: int = 443, *, command: int = 1) -> bytes:
    """A request for a name."""
    return bytes([5, command, 0, 3, len(host)]) + host + port.to_bytes(2, "big")


def negotiate(data: bytes, *, cut: int | None = None) -> tuple[TCPAddress | None, bytes, bytes]:
    """The destination, what was said to the client, and what is left, of these bytes in pieces of `cut` bytes."""
    negotiation, said = Negotiation(), b""
    for start in range(0, len(data), cut or len(data) or 1):
        negotiation.receive(data[start : start + (cut or len(data))])
        try:
            destination = negotiation.next_event()
        except SocksError as error:
            error.reply = said + error.reply
            raise
        said += negotiation.take_outgoing()
        if destination is not None:
            return destination, said, negotiation.trailing_data + data[start + (cut or len(data)) :]
    return None, said, negotiation.trailing_data


@pytest.mark.parametrize("cut", [None, 1, 2, 3])
@pytest.mark.parametrize(
    ("request_bytes", "destination"),
    [
        (b"\x05\x01\x00\x01" + socket.inet_aton("10.0.0.7") + b"\x01\xbb", TCPAddress("10.0.0.7", 443)),
        (
            b"\x05\x01\x00\x04" + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + b"\0\x16",
            TCPAddress("2001:db8::1", 22),
        ),
        (asking_for(b"db.example"), TCPAddress("db.example", 443)),
        (asking_for(b"DB"), TCPAddress("db", 443)),
        (asking_for(b"localhost"), TCPAddress("localhost", 443)),
        (asking_for(b"127.0.0.1"), TCPAddress("127.0.0.1", 443)),
        (asking_for(b"::1"), TCPAddress("::1", 443)),
        (asking_for("bücher.example".encode()), TCPAddress("xn--bcher-kva.example", 443)),
        (asking_for(b"a." * 126 + b"a", 65535), TCPAddress("a." * 126 + "a", 65535)),
    ],
)
def test_every_kind_of_address_is_asked_for(request_bytes: bytes, destination: TCPAddress, cut: int | None) -> None:
    assert negotiate(HELLO + request_bytes, cut=cut) == (destination, WELCOME, b"")


def test_the_client_is_answered_before_it_asks() -> None:
    negotiation = Negotiation()
    negotiation.receive(HELLO)
    assert negotiation.next_event() is None
    assert negotiation.take_outgoing() == WELCOME
    assert negotiation.take_outgoing() == b""


@pytest.mark.parametrize("methods", [b"\x00", b"\x00\x01\x02", b"\x02\x01\x00", bytes(range(255, -1, -1))[:-1] + b"\0"])
def test_any_offer_with_no_login_in_it_is_taken(methods: bytes) -> None:
    methods = methods[-255:]
    hello = bytes([5, len(methods)]) + methods
    assert negotiate(hello + asking_for(b"db")) == (TCPAddress("db", 443), WELCOME, b"")


def test_what_follows_the_request_is_the_tunnels() -> None:
    assert negotiate(HELLO + asking_for(b"db") + HELLO) == (TCPAddress("db", 443), WELCOME, HELLO)


@pytest.mark.parametrize(
    ("data", "words", "reply"),
    [
        (b"\x05\x01\x02", "login", b"\x05\xff"),
        (b"\x05\x00", "login", b"\x05\xff"),
        (b"\x04\x01\x01\xbb\x0a\0\0\x07\0", "SOCKS4", b""),
        (b"GET http://example.com/ HTTP/1.1\r\n", "HTTP", b""),
        (b"CONNECT db:22 HTTP/1.1\r\n", "HTTP", b""),
        (b"\x16\x03\x01", "does not speak SOCKS5", b""),
        (b"\0", "does not speak SOCKS5", b""),
        (b"\xff", "does not speak SOCKS5", b""),
        (HELLO + b"\x04", "not SOCKS5", b"\x05\x01"),
        (HELLO + b"GET /", "not SOCKS5", b"\x05\x01"),
        (HELLO + asking_for(b"db", command=2), "BIND", b"\x05\x07"),
        (HELLO + asking_for(b"db", command=3), "UDP", b"\x05\x07"),
        (HELLO + b"\x05\x01\x00\x02", "kind of address", b"\x05\x08"),
        (HELLO + asking_for(b""), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"db", 0), "port", b"\x05\x04"),
        (HELLO + asking_for(b"a b"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"a\r\nb"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"a\0b"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"\x1b[2J"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"unix:/run/x"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"[::1]"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"db:22"), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"x" * 255), "not understood", b"\x05\x04"),
        (HELLO + asking_for(b"\xff\xfe"), "UTF-8", b"\x05\x04"),
    ],
)
@pytest.mark.parametrize("cut", [None, 1])
def test_what_is_not_served_is_told_in_words_and_in_a_reply(
    data: bytes, words: str, reply: bytes, cut: int | None
) -> None:
    with pytest.raises(SocksError, match=words) as caught:
        negotiate(data, cut=cut)
    assert str(caught.value).isprintable()
    said = caught.value.reply
    if data.startswith(HELLO):
        # However the client hurries, it is welcomed first.
        assert said.startswith(WELCOME)
        said = said.removeprefix(WELCOME)
        reply += b"\0\x01" + bytes(6)
    assert said == reply


def test_what_is_no_socks_is_told_at_its_first_byte() -> None:
    negotiation = Negotiation()
    negotiation.receive(b"G")
    with pytest.raises(SocksError):
        negotiation.next_event()


# --- replies ----------------------------------------------------------------------------------


def test_the_reply_of_an_open_tunnel_is_exactly_this() -> None:
    assert ACCEPTED == b"\x05\x00\x00\x01\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetFailed("x", "connection_refused"), 5),
        (TargetFailed("x", "dns_error"), 4),
        (TargetFailed("x", "destination_ip_unroutable"), 4),
        (TargetFailed("x", "connection_timeout"), 4),
        (TargetFailed("x", "destination_unavailable"), 4),
        (TargetFailed("x", "dns_timeout"), 4),
        (TargetFailed("x"), 4),
        (DestinationForbidden("x"), 2),
        (CredentialsRefused("x"), 1),
        (ConnectFailed("x"), 1),
        (FrontEndFailed("x"), 1),
    ],
)
def test_why_there_is_no_tunnel_is_told_by_the_reply(error: TunnelError, code: int) -> None:
    assert refuse(error) == bytes([5, code, 0, 1]) + bytes(6)


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (TargetUnreachable("x", proxy_error="connection_refused"), 5),
        (TargetUnreachable("x", proxy_error="dns_error"), 4),
        (TargetTimeout("x"), 4),
        (Forbidden("x"), 2),
        (Forbidden("x", proxy_error="destination_ip_prohibited"), 2),
    ],
)
def test_the_server_s_own_refusal_becomes_the_reply(refusal: Refusal, code: int) -> None:
    answer = Refused(status=refusal.status, proxy_error=refusal.proxy_error, text=str(refusal))
    error = explain_refusal(answer, parse_endpoint("http://x/"), None, Transport.TCP, with_token=True)
    assert refuse(error)[1] == code


def test_our_own_client_of_socks5_understands_it() -> None:
    """The other side of RFC 1928, which was written apart from this one."""
    for reply, elsewhere in ((ACCEPTED, None), (refuse(TargetFailed("x", "connection_refused")), True)):
        ours, theirs = Socks5("db.example", 443), Negotiation()
        theirs.receive(ours.outgoing)
        assert theirs.next_event() is None
        ours.receive(theirs.take_outgoing())
        theirs.receive(ours.outgoing)
        assert theirs.next_event() == TCPAddress("db.example", 443)
        rest, refused = reply, None
        try:
            while ours.needed:
                part, rest = rest[: ours.needed], rest[ours.needed :]
                ours.receive(part)
        except SocksRefusal as error:
            refused = error.elsewhere
        assert refused is elsewhere
