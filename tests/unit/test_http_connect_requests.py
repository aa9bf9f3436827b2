"""CONNECT, as the server reads it where it was turned on, and what it answers."""

from __future__ import annotations

from base64 import b64encode

import pytest

from http2tcp.errors import BadRequest, ProxyAuthenticationRequired, Refusal, Unauthorized
from http2tcp.protocol.server_handshake import RequestReader, TunnelRequest, accept, refuse
from http2tcp.protocol.transport import Transport
from tests.support.heads import BEARER, HOSTILE, HOSTILE_CONNECT, SECRET, connect, good, head, read
from tests.support.loopback import parse_answer

HOSTS = ["Host: db:5432", "Host: db", "Host: proxy.example:3128", None]


def understood(data: bytes) -> TunnelRequest:
    request = read(data, connect=True)
    assert request is not None
    return request


# --- what opens a tunnel ----------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_connect_is_read_in_both_versions_with_any_host_and_without_one(version: str, host: str | None) -> None:
    request = understood(connect(version=version, host=host))
    assert request.is_connect
    assert (request.path, request.addr, request.target) == (None, None, ("db", "5432"))
    assert (request.token, request.transport, request.carrier) == (SECRET, Transport.TCP, "connect")
    assert request.origin is None


@pytest.mark.parametrize(
    ("authority", "target"),
    [
        ("10.0.0.7:22", ("10.0.0.7", "22")),
        ("[2001:db8::1]:22", ("2001:db8::1", "22")),
        ("[::ffff:10.0.0.7]:22", ("::ffff:10.0.0.7", "22")),
        ("my_db.example.:22", ("my_db.example.", "22")),
        # What is no host and no port is told once the token is known.
        ("a,b:22", ("a,b", "22")),
        ("db:0", ("db", "0")),
        ("db:123456", ("db", "123456")),
        ("[:::]:22", (":::", "22")),
    ],
)
def test_what_is_asked_for_is_a_host_and_a_port(authority: str, target: tuple[str, str]) -> None:
    assert understood(connect(authority=authority)).target == target


@pytest.mark.parametrize(
    ("field", "token"),
    [
        ("Proxy-Authorization: Basic " + b64encode(b"me:tok").decode(), "tok"),
        ("proxy-authorization: basic " + b64encode(b":t:o:k").decode(), "t:o:k"),
        ("Proxy-Authorization: Bearer tok", "tok"),
        ("Http2tcp-Token: tok", "tok"),
        ("Authorization: Bearer tok", None),
        ("Authorization: Basic " + b64encode(b"me:tok").decode(), None),
        ("Proxy-Authorization: Digest tok", None),
        ("Proxy-Authorization: Basic !!!", None),
        ("Proxy-Authorization: Basic " + b64encode(b"tok").decode(), None),
        ("X: y", None),
    ],
)
def test_the_token_is_a_proxys_login_or_our_own_field_and_no_sites_login(field: str, token: str | None) -> None:
    assert understood(head(field, line="CONNECT db:22 HTTP/1.0", host=None)).token == token


def test_our_own_field_alone_counts_where_there_is_one() -> None:
    assert understood(connect("Http2tcp-Token: tok")).token == "tok"


def test_a_proxys_login_is_none_for_an_upgrade() -> None:
    assert understood(good(f"Proxy-Authorization: Bearer {SECRET}x")).token == SECRET
    upgrade = ("Connection: Upgrade", "Upgrade: tcp", f"Proxy-Authorization: Bearer {SECRET}")
    assert understood(head(*upgrade)).token is None


@pytest.mark.parametrize("field", ["Proxy-Connection: Keep-Alive", "User-Agent: x", "Content-Length: 0", BEARER])
def test_what_clients_of_proxies_add_changes_nothing(field: str) -> None:
    assert understood(connect(field)) == understood(connect())


def test_a_web_page_is_known_by_its_origin() -> None:
    assert understood(connect("Origin: null")).origin == "null"


@pytest.mark.parametrize("more", [b"SSH-2.0-x\r\n", connect(), b"\r\n\r\n"])
def test_what_follows_the_head_is_the_tunnels_and_never_a_second_request(more: bytes) -> None:
    reader = RequestReader(connect=True)
    reader.receive(connect() + more)
    assert reader.next_event() == understood(connect())
    assert reader.trailing_data == more


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_head_in_pieces_is_the_same_request(cut: int) -> None:
    assert read(connect(), cut=cut, connect=True) == understood(connect())


def test_an_upgrade_is_the_same_where_connect_is_taken_too() -> None:
    assert understood(good()) == read(good())
    assert not understood(good()).is_connect


# --- what does not ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("host", HOSTS)
def test_connect_is_a_400_where_it_was_not_turned_on(version: str, host: str | None) -> None:
    with pytest.raises(BadRequest):
        read(connect(version=version, host=host))


@pytest.mark.parametrize("cut", [None, 1, 997])
@pytest.mark.parametrize("name", HOSTILE_CONNECT)
def test_a_hostile_connect_is_refused_however_it_is_cut(name: str, cut: int | None) -> None:
    data, status = HOSTILE_CONNECT[name]
    with pytest.raises(Refusal) as caught:
        read(data, cut=cut, connect=True)
    assert caught.value.status == status
    assert str(caught.value) == type(caught.value).text


@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("CONNECT")])
def test_a_head_that_is_hostile_is_so_where_connect_is_taken_too(name: str) -> None:
    data, status = HOSTILE[name]
    with pytest.raises(Refusal) as caught:
        read(data, connect=True)
    assert caught.value.status == status


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_the_200_is_exactly_this_for_both_versions(version: str) -> None:
    assert accept(understood(connect(version=version)), "5e55", keepalive=25) == (
        b"HTTP/1.1 200 Connection established\r\nProxy-Status: http2tcp\r\nHttp2tcp-Session: 5e55\r\n\r\n"
    )


def test_the_407_is_the_401_in_a_proxys_words() -> None:
    mine, theirs = (
        parse_answer(refuse(refusal, "5e55")) for refusal in (ProxyAuthenticationRequired(), Unauthorized())
    )
    assert mine.status == 407
    assert mine.headers["proxy-authenticate"] == 'Basic realm="http2tcp"'
    assert "www-authenticate" not in mine.headers
    assert (mine.body, mine.error) == (theirs.body, theirs.error)
    assert mine.headers["connection"] == "close"
