"""The request head, as the server reads it, and the two kinds of answer."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode

import pytest

from http2tcp.errors import (
    BadRequest,
    Forbidden,
    HeadTooLarge,
    LimitReached,
    NotFound,
    Refusal,
    TargetUnreachable,
    Unauthorized,
    UpgradeRequired,
)
from http2tcp.protocol.server_handshake import MAX_FIELDS, MAX_HEAD, RequestReader, TunnelRequest, accept, refuse
from http2tcp.protocol.transport import Transport
from tests.support.heads import BEARER, HOST, HOSTILE, SECRET, TARGET, UPGRADE, good, head, read, target
from tests.support.loopback import parse_answer


def understood(data: bytes) -> TunnelRequest:
    request = read(data)
    assert request is not None
    return request


# --- what opens a tunnel ----------------------------------------------------------------------


def test_a_request_is_read() -> None:
    request = understood(good())
    assert (request.path, request.addr, request.token) == ("/p", "db:5432", SECRET)
    assert request.transport is Transport.TCP
    assert request.origin is None


def test_a_request_of_the_original_is_read() -> None:
    request = understood(
        b"GET /p?addr=127.0.0.1%3A9&k=v HTTP/1.1\r\n"
        b"Host: example.com\r\n"
        b"User-Agent: Go-http-client/1.1\r\n"
        b"Authorization: HTTP2TCP tok\r\n"
        b"Connection: upgrade\r\n"
        b"Upgrade: http2tcp/1.0\r\n"
        b"\r\n"
    )
    assert (request.path, request.addr, request.token) == ("/p", "127.0.0.1:9", "tok")
    assert request.transport is Transport.HTTP2TCP


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100])
def test_a_head_in_pieces_is_the_same_request(cut: int) -> None:
    assert read(good(), cut=cut) == read(good())


def test_nothing_is_said_before_the_head_is_whole() -> None:
    reader = RequestReader()
    assert reader.next_event() is None
    reader.receive(good()[:-1])
    assert reader.next_event() is None
    assert reader.next_event() is None
    reader.receive(b"\n")
    assert reader.next_event() is not None


@pytest.mark.parametrize("more", [b"SSH-2.0-x\r\n", b"\0\x1b\n", good(), b"\r\n\r\n"])
def test_what_follows_the_head_is_the_tunnels_and_never_a_second_request(more: bytes) -> None:
    reader = RequestReader()
    reader.receive(good() + more)
    assert reader.next_event() == understood(good())
    assert reader.trailing_data == more


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR"])
def test_the_one_header_for_the_clients_address_is_handed_on_line_by_line(name: str) -> None:
    reader = RequestReader(forwarded_header=name)
    reader.receive(
        good("X-Forwarded-For: 6.6.6.6", "X-Real-IP: 7.7.7.7", "x-forwarded-for:  8.8.8.8, \xff ", "Forwarded: a")
    )
    request = reader.next_event()
    assert request is not None
    assert request.forwarded == (b"6.6.6.6", b"8.8.8.8, \xff")
    assert "6.6.6.6" not in repr(request)


def test_no_other_header_is_taken_for_it() -> None:
    for name in (None, "X-Real-IP"):
        reader = RequestReader(forwarded_header=name)
        reader.receive(good("X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IPs: 6.6.6.6"))
        request = reader.next_event()
        assert request is not None
        assert request.forwarded == ()


@pytest.mark.parametrize(
    ("text", "path", "addr"),
    [
        ("/", "/", None),
        ("/?", "/", None),
        ("/~http2tcp/?addr=db:5432", "/~http2tcp/", "db:5432"),
        ("/?addr=", "/", None),
        ("/?addr", "/", None),
        ("/?k=v&addr=%5B%3A%3A1%5D%3A22&l", "/", "[::1]:22"),
        ("/?ADDR=db:5432", "/", None),
        ("/?address=db:5432", "/", None),
        ("/?addr=a:1;addr=b:2", "/", "a:1;addr=b:2"),
        ("/?addr=a%26addr%3Db:1", "/", "a&addr=b:1"),
        ("/?addr=a%2500:1", "/", "a%00:1"),
        ("/?addr=%ff:1", "/", "\udcff:1"),
        ("/?k=%ff&addr=db:5432", "/", "db:5432"),
        ("//evil.example/p?addr=a:1", "//evil.example/p", "a:1"),
        ("/a/../b?addr=a:1", "/a/../b", "a:1"),
    ],
)
def test_the_destination_is_taken_from_the_query_and_nothing_else_is(text: str, path: str, addr: str | None) -> None:
    request = understood(target(text))
    assert (request.path, request.addr) == (path, addr)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/?target_host=db&target_port=5432", ("db", "5432")),
        ("/?target_port=22&k=v&target_host=%3A%3A1", ("::1", "22")),
        ("/?addr=&target_host=db&target_port=1", ("db", "1")),
        ("/?target_host=db", ("db", "")),
        ("/?target_port=22", ("", "22")),
        ("/?target_host=&target_port=", None),
        ("/?target_hos=db", None),
        ("/.well-known/masque/tcp/db/5432/", ("db", "5432")),
        ("/.well-known/masque/tcp/%3A%3A1/22", ("::1", "22")),
        ("/.well-known/masque/tcp/a%2Fb/22/", ("a/b", "22")),
        ("/.well-known/masque/tcp/db/", None),
        ("/p/.well-known/masque/tcp/db/5432/", None),
    ],
)
def test_a_connect_tcp_target_is_taken_from_its_variables(text: str, expected: tuple[str, str] | None) -> None:
    request = understood(target(text))
    assert request.target == expected
    assert request.addr is None


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("25", 25),
        ("1", 1),
        ("1.5", 1.5),
        ("0.5", 1),
        ("0.00001", 1),
        ("0", None),
        ("-1", None),
        ("1e3", None),
        ("inf", None),
        ("", None),
        ("\xb2", None),
    ],
)
def test_a_clients_keepalive_is_a_sensible_number_of_seconds_or_none(field: str, seconds: float | None) -> None:
    assert understood(good(f"Http2tcp-Keepalive: {field}")).keepalive == seconds


def test_a_client_that_waits_for_a_100_is_known() -> None:
    assert understood(good("Expect: 100-Continue")).expects_continue
    assert not understood(good()).expects_continue


@pytest.mark.parametrize("upgrade", ["connect-tcp", "connect-tcp-12", "CONNECT-TCP"])
def test_the_101_of_connect_tcp_repeats_the_token_and_announces_capsules(upgrade: str) -> None:
    request = understood(head("Connection: Upgrade", f"Upgrade: {upgrade}", BEARER))
    assert request.transport is Transport.CONNECT_TCP
    fields = parse_answer(accept(request, "5e55", keepalive=12.5)).headers
    assert fields["upgrade"] == upgrade.lower()
    assert fields["capsule-protocol"] == "?1"
    assert fields["http2tcp-keepalive"] == "12.5"


@pytest.mark.parametrize(
    "fields",
    [
        ["Connection: upgrade", "Upgrade: TCP"],
        ["connection: keep-alive, UPGRADE", "upgrade: tcp"],
        ["Connection: keep-alive", "Connection: Upgrade", "Upgrade: tcp"],
        ["Connection:Upgrade", "Upgrade:tcp"],
        ["Connection: close ,\tupgrade", "Upgrade: tcp \t"],
    ],
)
def test_an_upgrade_is_understood_in_any_case_and_any_spacing(fields: list[str]) -> None:
    assert understood(head(*fields)).transport is Transport.TCP


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["Connection: Upgrade"],
        ["Upgrade: tcp"],
        ["Connection: keep-alive", "Upgrade: tcp"],
        ["Connection: upgrade-insecure", "Upgrade: tcp"],
        ["Connection: Upgrade", "Upgrade:"],
        ["Connection: Upgrade", "Upgrade: h2c"],
        ["Connection: Upgrade", "Upgrade: tcp/1"],
        ["Connection: Upgrade", "Upgrade: http2tcp"],
        ["Connection: Upgrade", "Upgrade: tcp http2tcp/1.0"],
        ["Connection: Upgrade", "Upgrade: \xfftcp"],
    ],
)
def test_no_known_upgrade_is_no_transport_but_a_sound_request(fields: list[str]) -> None:
    """So that it gets its 401 first, and its 426 only with a token."""
    request = understood(head(*fields, BEARER))
    assert request.transport is None
    assert (request.addr, request.token) == ("db:5432", SECRET)


def basic(pair: str) -> str:
    return f"Authorization: Basic {b64encode(pair.encode()).decode()}"


@pytest.mark.parametrize(
    ("fields", "token"),
    [
        ([], None),
        (["Authorization: Bearer tok"], "tok"),
        (["authorization: BEARER   tok  "], "tok"),
        (["Authorization: Bearer to k"], "to k"),
        (["Authorization: HTTP2TCP tok"], "tok"),
        (["Authorization: http2tcp tok"], "tok"),
        (["Authorization: bearer schl\xc3\xbcssel"], "schlüssel"),
        (["Authorization: Bearer \xff"], "\udcff"),
        ([basic("user:tok")], "tok"),
        ([basic(":tok")], "tok"),
        ([basic("user:t:o:k")], "t:o:k"),
        ([basic("user:schlüssel")], "schlüssel"),
        ([basic("tok")], None),
        (["Authorization: Basic !!!"], None),
        (["Authorization: Basic dXNlcjp0b2s"], None),
        (["Authorization: Basic"], None),
        (["Authorization: Bearer"], ""),
        (["Authorization:"], None),
        (["Authorization: tok"], None),
        (["Authorization: Bearer\ttok"], None),
        (["Authorization: Digest tok"], None),
        (["Authorization: Bearertok"], None),
        (["Proxy-Authorization: Bearer tok"], None),
        (["Cookie: token=tok"], None),
        (["Http2tcp-Token: tok"], "tok"),
        (["http2tcp-token: tok"], "tok"),
        (["Http2tcp-Token: tok", basic("user:password")], "tok"),
        (["Authorization: Bearer other", "Http2tcp-Token: tok"], "tok"),
        (["Http2tcp-Token:", "Authorization: Bearer other"], ""),
    ],
)
def test_every_credential_form_gives_the_token_and_nothing_else_does(fields: list[str], token: str | None) -> None:
    assert understood(head(*UPGRADE, *fields)).token == token


@pytest.mark.parametrize("name", ["token", "t", "access_token", "auth", "Http2tcp-Token"])
def test_a_token_is_never_taken_from_the_query(name: str) -> None:
    assert understood(head(*UPGRADE, line=f"GET /?addr=a:1&{name}=tok HTTP/1.1")).token is None


@pytest.mark.parametrize("value", ["https://evil.example", "null", ""])
def test_a_web_page_is_known_by_its_origin(value: str) -> None:
    assert understood(good(f"Origin: {value}")).origin == value


@pytest.mark.parametrize(
    "field",
    [
        "Content-Length: 0",
        "X-Forwarded-For: 1.2.3.4",
        "TE: trailers",
        "X: \xe4",
        "X:",
        "X: a\tb",
        "X_Y: z",
    ],
)
def test_fields_that_proxies_add_change_nothing(field: str) -> None:
    assert read(good(field)) == read(good())


def test_a_head_of_exactly_the_limit_is_read() -> None:
    data = good("X: " + "y" * (MAX_HEAD - len(good("X: "))))
    assert len(data) == MAX_HEAD
    assert read(data) == read(data, cut=1000) == read(good())


def test_exactly_as_many_fields_as_allowed_are_read() -> None:
    assert read(good(*["X: y"] * (MAX_FIELDS - 4))) == read(good())


@pytest.mark.parametrize(
    "host", ["Host: h", "Host: 127.0.0.1:80", "Host: [::1]:80", "Host: _x.example.", "Host: xn--a"]
)
def test_any_sound_host_will_do(host: str) -> None:
    assert read(good(host=host)) == read(good())


# --- what does not ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("cut", [None, 1, 997])
def test_a_hostile_head_is_refused_however_it_is_cut(name: str, cut: int | None) -> None:
    data, status = HOSTILE[name]
    with pytest.raises(Refusal) as caught:
        read(data, cut=cut)
    assert caught.value.status == status
    assert str(caught.value) == type(caught.value).text


@pytest.mark.parametrize("data", [b"\x16", b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\rX", b"\0" * 10, b"GET\x1b"])
@pytest.mark.parametrize("cut", [None, 1])
def test_what_is_no_http_is_refused_at_its_first_bytes_and_not_at_the_timeout(data: bytes, cut: int | None) -> None:
    with pytest.raises(BadRequest):
        read(data, cut=cut)


# What arrives, and after how many of its bytes it is refused; None: a head that may still become sound.
REFUSED_AFTER = [
    (b"GET / HTTP/1.1\r\nA: b\r\n", None),
    (b"GET / HTTP/1.1\r", None),
    (b"\r", None),
    (b"", None),
    (b"\n", 1),
    (b"\r\n", 2),
    (b"\r\r", 2),
    (b"\0", 1),
    (b"\x16\x03\x01", 1),
    (b"\x7f", 1),
    (b"GET\r\n", 5),
    (b"SSH-2.0-OpenSSH_9.9\r\n", 21),
    (b"GET / HTTP/1.1\n", 15),
    (b"GET / HTTP/1.1\rX", 16),
    (b"GET / HTTP/1.1\r\r\n", 16),
    (b"GET / HTTP/1.1\r\n\n", 17),
    (b"GET / HTTP/1.1\r\nA: b\n", 21),
    (b"GET / HTTP/1.1\r\nA: b\rc", 22),
    (b"GET / HTTP/1.1\r\nA: b\r\nC: \x1b", 26),
]


@pytest.mark.parametrize(("data", "after"), REFUSED_AFTER)
def test_what_no_head_may_hold_is_refused_at_its_byte_however_it_is_cut(data: bytes, after: int | None) -> None:
    for cut in range(1, len(data) + 1):
        reader, taken = RequestReader(), 0
        refused = None
        while taken < len(data) and refused is None:
            reader.receive(data[taken : taken + cut])
            taken = min(len(data), taken + cut)
            try:
                assert reader.next_event() is None
                assert reader.next_event() is None  # asking again changes nothing
            except BadRequest:
                refused = taken
        assert refused == (None if after is None else min(len(data), -(-after // cut) * cut))


def test_an_endless_head_is_refused_at_the_limit_and_not_later() -> None:
    reader = RequestReader()
    reader.receive(b"GET / HTTP/1.1\r\nX: ".ljust(MAX_HEAD, b"y"))
    assert reader.next_event() is None
    reader.receive(b"y")
    with pytest.raises(HeadTooLarge):
        reader.next_event()


@pytest.mark.parametrize("name", [name for name, (data, _) in HOSTILE.items() if SECRET.encode() in data])
def test_an_error_shows_the_token_to_nobody(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Refusal) as caught:
        read(HOSTILE[name][0])
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error)
        assert SECRET not in str(error)
        assert SECRET not in "".join(traceback.format_exception_only(error))
        error = error.__context__
    assert SECRET.encode() not in refuse(caught.value, "5e55")
    assert caplog.text == ""


def test_a_request_does_not_show_its_token() -> None:
    assert SECRET not in repr(understood(good()))


def test_a_request_says_whose_it_is_by_its_fields_alone() -> None:
    with pytest.raises(BadRequest):
        read(head(*UPGRADE, BEARER, host=None, line=f"GET {TARGET} HTTP/1.1"))
    assert read(head(*UPGRADE, BEARER, host=HOST.upper())) == read(good())


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("upgrade", ["tcp", "http2tcp/1.0"])
def test_the_101_of_a_raw_transport_is_exactly_this(upgrade: str) -> None:
    request = understood(head("Connection: Upgrade", f"Upgrade: {upgrade}", BEARER))
    assert accept(request, "5e55", keepalive=25) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: " + upgrade.encode() + b"\r\n"
        b"Proxy-Status: http2tcp\r\n"
        b"Http2tcp-Session: 5e55\r\n"
        b"\r\n"
    )


def test_a_refusal_is_exactly_this() -> None:
    assert refuse(Unauthorized(), "5e55") == (
        b"HTTP/1.1 401 Unauthorized\r\n"
        b"Connection: close\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 18\r\n"
        b"Cache-Control: no-store\r\n"
        b"Proxy-Status: http2tcp; error=http_request_denied\r\n"
        b"Http2tcp-Session: 5e55\r\n"
        b'WWW-Authenticate: Bearer realm="http2tcp"\r\n'
        b"\r\n"
        b"a token is needed\n"
    )


def test_a_426_lists_what_would_do() -> None:
    answer = parse_answer(refuse(UpgradeRequired(), "5e55"))
    assert answer.headers["upgrade"].split(", ") == [transport.value for transport in Transport]
    assert answer.headers["connection"] == "Upgrade, close"


def test_a_limit_says_when_to_come_back() -> None:
    assert parse_answer(refuse(LimitReached(), "5e55")).headers["retry-after"].isdigit()


@pytest.mark.parametrize(
    "refusal",
    [
        BadRequest(),
        BadRequest("'ü\\n': expected HOST:PORT"),
        Forbidden(),
        NotFound(),
        HeadTooLarge(),
        TargetUnreachable("cannot reach unix:/run/ü from the server: no such file", proxy_error="dns_error"),
    ],
)
def test_a_refusal_closes_the_connection_with_one_line_of_the_length_it_says(refusal: Refusal) -> None:
    answer = parse_answer(refuse(refusal, "5e55"))
    assert answer.status == refusal.status
    assert answer.headers["connection"] == "close"
    assert answer.error == refusal.proxy_error
    assert len(answer.body) == int(answer.headers["content-length"])
    assert answer.body.decode() == f"{refusal}\n"
