"""What is asked of a proxy, and what its answers mean."""

from __future__ import annotations

from base64 import b64decode

import pytest

from http2tcp.protocol.http_connect import MAX_HEAD, Connect, Connected, ProxyProtocolError, Refused
from http2tcp.protocol.socks5 import Socks5, SocksRefusal

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"
LOGIN = (b"user", b"s3cret")


def connect(**more: object) -> Connect:
    return Connect("example.com:443", user_agent="http2tcp/1", **more)  # type: ignore[arg-type]


def answer(data: bytes) -> Connected | Refused | None:
    handshake = connect()
    handshake.receive(data)
    return handshake.next_event()


def feed(handshake: Connect, pieces: list[bytes]) -> None:
    for piece in pieces:
        handshake.receive(piece)
        assert handshake.next_event() is None


# --- CONNECT ------------------------------------------------------------------------------------


def test_connect_names_the_endpoint_and_who_asks() -> None:
    assert connect().request == (
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: http2tcp/1\r\n\r\n"
    )


def test_credentials_are_sent_at_once_as_basic() -> None:
    fields = connect(credentials=LOGIN).request.split(b"\r\n")
    (field,) = [field for field in fields if field.startswith(b"Proxy-Authorization: Basic ")]
    assert b64decode(field.rpartition(b" ")[2]) == b"user:s3cret"


def test_a_user_agent_with_blanks_around_it_is_no_bug() -> None:
    head = Connect("h:1", user_agent=" ü/1 ", credentials=None).request
    assert "\r\nUser-Agent: ü/1\r\n".encode() in head


@pytest.mark.parametrize(
    "head",
    [
        OK,
        b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 204 Fine\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        # RFC 9110, section 9.3.6: these two mean nothing in a 2xx to CONNECT.
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
def test_every_success_connects_and_what_follows_is_kept(head: bytes) -> None:
    assert answer(head + b"SSH-2.0-x\r\n") == Connected(b"SSH-2.0-x\r\n")


@pytest.mark.parametrize(
    ("fields", "schemes"),
    [
        ([], ()),
        (['Basic realm="squid"'], ("Basic",)),
        (["Negotiate", "NTLM", 'Basic realm="a, NTLM b"'], ("Negotiate", "NTLM", "Basic")),
        (['Digest realm="x", nonce="a\\"b, Evil c", qop = "auth", Basic realm="y"'], ("Digest", "Basic")),
        (["NTLM TlRMTVNTUAAB==, Basic"], ("NTLM", "Basic")),
        (["Basic, basic, Basic"], ("Basic", "basic")),
        (["Bearer   realm=x,  nonce   =  1"], ("Bearer",)),
        (["", ",,", "=", '"', "a" * 33], ()),
        ([", ".join(f"S{n}" for n in range(50))], tuple(f"S{n}" for n in range(8))),
    ],
)
def test_a_407_tells_the_schemes_that_the_proxy_offers(fields: list[str], schemes: tuple[str, ...]) -> None:
    lines = "".join(f"Proxy-Authenticate: {field}\r\n" for field in fields)
    refused = answer(f"HTTP/1.1 407 Log in\r\n{lines}Content-Length: 5\r\n\r\nhello".encode())
    assert refused == Refused(407, "Log in", schemes)


def test_a_401_in_place_of_a_407_tells_them_too() -> None:
    assert answer(b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n') == Refused(
        401, "Unauthorized", ("Basic",)
    )


def test_a_refusal_is_known_before_its_body_is_there() -> None:
    assert answer(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5000\r\n\r\n") == Refused(
        503, "Service Unavailable"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"\x05\x00",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\nConnection: upgrade\r\n\r\n",
        b"\r\n\r\n" + OK,
        b"\x00" * 100,
    ],
)
def test_what_is_no_answer_is_told_at_once(data: bytes) -> None:
    with pytest.raises(ProxyProtocolError, match=r"does not answer in HTTP/1\.1"):
        answer(data)


@pytest.mark.parametrize(
    "line",
    [
        b"no colon\r\n",
        b"Proxy Agent: x\r\n",
        b"X : y\r\n",
        b"X: a\0b\r\n",
        b"Bad line\r\n that goes on\r\n",
        # A tunnel has no body, whatever its answer says.
        b"Content-Length: x\r\n",
        b"Transfer-Encoding: identity\r\n",
    ],
)
def test_a_malformed_line_in_a_200_is_passed_over(line: bytes) -> None:
    connected = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n" + line + b"\r\n"
    assert answer(connected + b"\x16\x03") == Connected(b"\x16\x03")
    assert answer(b"HTTP/1.1 100 x\r\nAlso bad\r\n\r\n" + connected + b"\x16") == Connected(b"\x16")


def test_a_malformed_line_does_not_make_a_refusal_of_it() -> None:
    refused = answer(b"HTTP/1.1 407 Log in\r\nBad line\r\nProxy-Authenticate: Basic\r\n\r\n")
    assert refused == Refused(407, "Log in", ("Basic",))


def test_more_malformed_lines_are_named() -> None:
    with pytest.raises(ProxyProtocolError, match="malformed answer: 5 lines of its head are no header fields"):
        answer(b"HTTP/1.1 200 OK\r\n" + 5 * b"Bad line\r\n" + b"\r\n")


@pytest.mark.parametrize("begun", [b"", b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nVia: x"])
def test_a_proxy_that_closes_instead_is_told(begun: bytes) -> None:
    handshake = connect()
    if begun:
        handshake.receive(begun)
        assert handshake.next_event() is None
    handshake.receive(b"")
    with pytest.raises(ProxyProtocolError):
        handshake.next_event()


def test_a_head_without_an_end_is_given_up() -> None:
    lines = [b"HTTP/1.1 200 OK\r\n"] + [b"A: " + b"a" * 995 + b"\r\n"] * (MAX_HEAD // 1000 + 2)
    with pytest.raises(ProxyProtocolError):
        feed(connect(), lines)


# --- SOCKS5 -------------------------------------------------------------------------------------

NO_LOGIN, PASSWORD = b"\x05\x00", b"\x05\x02"
BOUND = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"


def converse(handshake: Socks5, answers: bytes) -> tuple[bytes, bytes]:
    """Play the proxy: what the client said, and which of the bytes it left for the endpoint."""
    said = handshake.outgoing
    while handshake.needed and answers:
        data, answers = answers[: handshake.needed], answers[handshake.needed :]
        handshake.receive(data)
        said += handshake.outgoing
    return said, answers


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("example.com", b"\x03\x0bexample.com"),
        ("192.0.2.1", b"\x01\xc0\x00\x02\x01"),
        ("2001:db8::1", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ("fe80::1%eth0", b"\x04\xfe\x80" + bytes(13) + b"\x01"),
    ],
)
def test_socks_names_the_endpoint(host: str, address: bytes) -> None:
    handshake = Socks5(host, 443)
    said, _ = converse(handshake, NO_LOGIN + BOUND)
    assert said == b"\x05\x01\x00" + b"\x05\x01\x00" + address + b"\x01\xbb"
    assert handshake.needed == 0


def test_socks_logs_in_where_the_proxy_asks_for_it() -> None:
    handshake = Socks5("h", 1, credentials=LOGIN)
    said, _ = converse(handshake, PASSWORD + b"\x01\x00" + BOUND)
    assert said == b"\x05\x02\x00\x02" + b"\x01\x04user\x06s3cret" + b"\x05\x01\x00\x03\x01h\x00\x01"
    assert handshake.needed == 0


def test_socks_keeps_the_password_where_the_proxy_does_not_ask() -> None:
    handshake = Socks5("h", 1, credentials=LOGIN)
    said, _ = converse(handshake, NO_LOGIN + BOUND)
    assert b"s3cret" not in said
    assert handshake.needed == 0


@pytest.mark.parametrize(
    "bound",
    [
        BOUND,
        b"\x05\x00\x00\x04" + bytes(16) + b"\x00\x50",
        b"\x05\x00\x00\x03\x05proxy\x00\x50",
        b"\x05\x00\x00\x03\x00\x00\x50",
    ],
)
def test_socks_takes_its_answer_and_nothing_after_it(bound: bytes) -> None:
    handshake = Socks5("h", 1)
    _, rest = converse(handshake, NO_LOGIN + bound + b"SSH-2.0-x")
    assert (handshake.needed, rest) == (0, b"SSH-2.0-x")


@pytest.mark.parametrize(
    ("answers", "credentials", "words"),
    [
        (b"\x05\xff", None, "wants a login"),
        (b"\x05\x02", None, "wants a login"),
        (b"\x05\xff", LOGIN, "another kind of login"),
        (b"\x05\x01", LOGIN, "another kind of login"),
        (PASSWORD + b"\x01\x01", LOGIN, "does not take this user and password"),
        (b"HT", None, "does not speak SOCKS5"),
        (b"\x04\x5a", None, "does not speak SOCKS5"),
        (NO_LOGIN + b"\x04\x00\x00\x01", None, "does not speak SOCKS5"),
        (NO_LOGIN + b"\x05\x00\x00\x07", None, "does not speak SOCKS5"),
        (NO_LOGIN + b"\x05\x02\x00\x01", None, "rules do not allow"),
        (NO_LOGIN + b"\x05\x63\x00\x01", None, "reply 99"),
    ],
)
def test_socks_refusals_are_told_apart(answers: bytes, credentials: tuple[bytes, bytes] | None, words: str) -> None:
    with pytest.raises(ProxyProtocolError, match=words) as caught:
        converse(Socks5("h", 1, credentials=credentials), answers)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("reply", [1, 3, 4, 5, 6, 8])
def test_another_address_is_worth_a_try_where_this_one_fails(reply: int) -> None:
    with pytest.raises(SocksRefusal) as caught:
        converse(Socks5("h", 1), NO_LOGIN + bytes([5, reply, 0, 1]))
    assert caught.value.elsewhere


@pytest.mark.parametrize("reply", [2, 7, 9])
def test_no_other_address_is_tried_where_it_would_get_the_same_answer(reply: int) -> None:
    with pytest.raises(SocksRefusal) as caught:
        converse(Socks5("h", 1), NO_LOGIN + bytes([5, reply, 0, 1]))
    assert not caught.value.elsewhere


@pytest.mark.parametrize("begun", [b"", b"\x05", NO_LOGIN, NO_LOGIN + BOUND[:7]])
def test_a_socks_proxy_that_closes_is_told(begun: bytes) -> None:
    handshake = Socks5("h", 1)
    converse(handshake, begun)
    with pytest.raises(ProxyProtocolError, match="closed the connection"):
        handshake.receive(b"")
