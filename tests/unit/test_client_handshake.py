"""The request, as the client writes it, and every answer that a server or a front end may give."""

from __future__ import annotations

from base64 import b64encode

import pytest

from http2tcp.address import Endpoint, TCPAddress, UnixAddress, parse_destination, parse_endpoint
from http2tcp.errors import FrontEndFailed
from http2tcp.protocol.client_handshake import MAX_BODY, MAX_HEAD, Answer, AnswerReader, Refused, Switched, request
from http2tcp.protocol.server_handshake import TunnelRequest
from http2tcp.protocol.transport import Transport
from http2tcp.protocol.websocket_handshake import new_key
from tests.support.heads import read

DB = TCPAddress("db", 5432)
AGENT = "http2tcp/0"


def asked(
    url: str = "https://example.com/p",
    destination: str | None = "db:5432",
    transport: Transport = Transport.TCP,
    *,
    token: str | None = "tok",
    headers: tuple[tuple[str, str], ...] = (),
) -> bytes:
    to = None if destination is None else parse_destination(destination)
    key = new_key() if transport is Transport.WEBSOCKET else ""
    return request(
        parse_endpoint(url), to, transport, token=token, user_agent=AGENT, headers=headers, websocket_key=key
    )


def lines(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].decode("utf-8", "surrogateescape").split("\r\n")


def as_the_server_reads_it(head: bytes) -> TunnelRequest:
    understood = read(head)
    assert understood is not None
    return understood


# --- the request ------------------------------------------------------------------------------


def test_the_request_is_exactly_this() -> None:
    assert asked() == (
        b"GET /p?addr=db%3A5432 HTTP/1.1\r\n"
        b"Host: example.com\r\n"
        b"User-Agent: http2tcp/0\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: tcp\r\n"
        b"Authorization: Bearer tok\r\n"
        b"\r\n"
    )


def test_a_server_of_the_original_gets_the_fields_it_knows() -> None:
    """Its comparison of the scheme and the token is case-sensitive."""
    first, *fields = lines(asked("http://example.com/p?k=v", "127.0.0.1:9", Transport.HTTP2TCP))
    target = first.removeprefix("GET ").removesuffix(" HTTP/1.1")
    path, _, query = target.partition("?")
    assert path == "/p"
    assert sorted(query.split("&")) == ["addr=127.0.0.1%3A9", "k=v"]
    named = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    assert named["authorization"] == "HTTP2TCP tok"
    assert named["connection"].lower() == "upgrade"
    assert named["upgrade"] == "http2tcp/1.0"
    assert named["host"] == "example.com"


@pytest.mark.parametrize(
    ("url", "destination", "target"),
    [
        ("https://h", "db:5432", "/?addr=db%3A5432"),
        ("https://h", None, "/"),
        ("https://h/p/?k=v&l", None, "/p/?k=v&l"),
        ("https://h/p/?k=v&l", "db:1", "/p/?k=v&l&addr=db%3A1"),
        ("https://h/p?addr=old:1&k=v", "db:1", "/p?k=v&addr=db%3A1"),
        ("https://h/p?addr=old:1&addr=older:1", "db:1", "/p?addr=db%3A1"),
        ("https://h/p?%61ddr=old:1", "db:1", "/p?addr=db%3A1"),
        ("https://h/p?addr=kept:1", None, "/p?addr=kept:1"),
        ("https://h/p?myaddr=x", "db:1", "/p?myaddr=x&addr=db%3A1"),
        ("https://h/p", "[::1]:22", "/p?addr=%5B%3A%3A1%5D%3A22"),
        ("https://h/p", "unix:/run/a b&c+d#%.sock", "/p?addr=unix%3A%2Frun%2Fa%20b%26c%2Bd%23%25.sock"),
    ],
)
def test_an_endpoints_own_query_is_kept_and_the_destination_added(
    url: str, destination: str | None, target: str
) -> None:
    assert lines(asked(url, destination))[0] == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize(
    ("url", "destination", "transport", "target"),
    [
        ("https://h/p?k=v", "db:1", Transport.CONNECT_TCP, "/p?k=v&target_host=db&target_port=1"),
        ("https://h/p?target_host=old", "[::1]:1", Transport.CONNECT_TCP, "/p?target_host=%3A%3A1&target_port=1"),
        ("https://h/p", "unix:/a", Transport.CONNECT_TCP, "/p?addr=unix%3A%2Fa"),
        ("https://h/p", None, Transport.CONNECT_TCP, "/p"),
        ("https://h/p{?target_host,target_port}", "db:1", Transport.TCP, "/p?target_host=db&target_port=1"),
        ("https://h/p?k{&target_host,target_port}", "db:1", Transport.TCP, "/p?k&target_host=db&target_port=1"),
        ("https://h/p{?target_host,target_port}", "unix:/a", Transport.TCP, "/p?addr=unix%3A%2Fa"),
        ("https://h/p{?target_host,target_port}", None, Transport.TCP, "/p"),
        ("https://h/{target_host}/{target_port}/", "[::1]:1", Transport.CONNECT_TCP, "/%3A%3A1/1/"),
    ],
)
def test_connect_tcp_and_templates_name_the_host_and_the_port(
    url: str, destination: str | None, transport: Transport, target: str
) -> None:
    assert lines(asked(url, destination, transport))[0] == f"GET {target} HTTP/1.1"


def test_a_framed_transport_says_that_it_is_and_how_often_we_break_our_silence() -> None:
    head = request(parse_endpoint("https://h"), DB, Transport.CONNECT_TCP, token=None, user_agent=AGENT, keepalive=12.5)
    assert "Capsule-Protocol: ?1" in lines(head)
    understood = as_the_server_reads_it(head)
    assert understood.keepalive == 12.5
    assert not any(line.startswith(("Capsule", "Http2tcp")) for line in lines(asked()))


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("destination", ["db:5432", "[2001:db8::1]:22", "unix:/run/a b&c+d#%é.sock", None])
def test_our_server_reads_what_our_client_writes(transport: Transport, destination: str | None) -> None:
    understood = as_the_server_reads_it(asked("https://h/p?k=v", destination, transport))
    assert understood.path == "/p"
    assert understood.token == "tok"
    assert understood.transport is transport
    if understood.target is None:
        assert understood.addr == destination
    else:
        host, port = understood.target
        assert destination is not None
        assert TCPAddress(host, int(port)) == parse_destination(destination)


def basic(pair: str) -> str:
    return f"Basic {b64encode(pair.encode()).decode()}"


@pytest.mark.parametrize(
    ("url", "token", "headers", "expected"),
    [
        ("https://h", None, (), {}),
        ("https://h", "tok", (), {"authorization": "Bearer tok"}),
        ("https://h", "to k=", (), {"authorization": "Bearer to k="}),
        ("https://us:p%40ss@h", "tok", (), {"authorization": basic("us:p@ss"), "http2tcp-token": "tok"}),
        ("https://us@h", "tok", (), {"authorization": basic("us:"), "http2tcp-token": "tok"}),
        ("https://us:pass@h", None, (), {"authorization": basic("us:pass")}),
        ("https://h", "tok", (("authorization", "N x"),), {"authorization": "N x", "http2tcp-token": "tok"}),
        ("https://us:pass@h", "tok", (("Authorization", "X y"),), {"authorization": "X y", "http2tcp-token": "tok"}),
    ],
)
def test_the_front_ends_login_and_the_token_do_not_get_in_each_others_way(
    url: str, token: str | None, headers: tuple[tuple[str, str], ...], expected: dict[str, str]
) -> None:
    fields = [field.partition(": ") for field in lines(asked(url, token=token, headers=headers))[1:]]
    found = [(name.lower(), value) for name, _, value in fields if name.lower() in ("authorization", "http2tcp-token")]
    assert dict(found) == expected
    assert len(found) == len(expected)


def test_further_fields_replace_ours_of_the_same_name() -> None:
    head = asked(headers=(("host", "inner.example"), ("User-Agent", "curl/8"), ("X-A", "1"), ("X-A", "2")))
    fields = lines(head)[1:]
    assert [field for field in fields if field.lower().startswith(("host", "user-agent", "x-a"))] == [
        "host: inner.example",
        "User-Agent: curl/8",
        "X-A: 1",
        "X-A: 2",
    ]


def test_a_token_beyond_ascii_arrives_as_it_was() -> None:
    assert as_the_server_reads_it(asked(token="schlüssel")).token == "schlüssel"
    assert as_the_server_reads_it(asked("https://us:pässword@h", token="schlüssel")).token == "schlüssel"
    assert as_the_server_reads_it(asked("https://us:pässword@h", token=None)).token == "pässword"


def test_a_port_of_its_own_is_in_the_host_field() -> None:
    endpoint = Endpoint(tls=False, host="2001:db8::1", port=8080)
    head = request(endpoint, UnixAddress("/a"), Transport.TCP, token=None, user_agent=AGENT)
    assert "Host: [2001:db8::1]:8080" in lines(head)


# --- the answer -------------------------------------------------------------------------------


def answered(*pieces: bytes, transport: Transport = Transport.TCP) -> Answer | None:
    """What the client makes of these pieces; an empty one is the end of the connection."""
    reader = AnswerReader(transport)
    for piece in pieces:
        reader.receive(piece)
        answer = reader.next_event()
        if answer is not None:
            return answer
    return None


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
OURS = SWITCH[:-2] + b"Proxy-Status: http2tcp\r\n\r\n"


def test_a_101_opens_the_tunnel() -> None:
    answer = answered(SWITCH)
    assert isinstance(answer, Switched)
    assert not answer.from_http2tcp
    assert answer.trailing_data == b""


def test_our_own_101_says_that_the_target_has_accepted() -> None:
    answer = answered(OURS)
    assert isinstance(answer, Switched)
    assert answer.from_http2tcp


@pytest.mark.parametrize(
    "status",
    [b"http2tcp", b"HTTP2TCPX, http2tcp", b"nginx; error=x, http2tcp", b"http2tcp, edge", b"http2tcp ; x=101"],
)
def test_our_member_is_found_among_those_of_other_proxies(status: bytes) -> None:
    answer = answered(SWITCH[:-2] + b"Proxy-Status: " + status + b"\r\n\r\n")
    assert isinstance(answer, Switched)
    assert answer.from_http2tcp


@pytest.mark.parametrize("status", [b"nginx", b"http2tcpx", b"x; next-hop=http2tcp", b'"http2tcp"', b""])
def test_another_proxys_status_is_not_taken_for_ours(status: bytes) -> None:
    answer = answered(SWITCH[:-2] + b"Proxy-Status: " + status + b"\r\n\r\n")
    assert isinstance(answer, Switched)
    assert not answer.from_http2tcp


@pytest.mark.parametrize(
    "banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\r\n\r\n", b"HTTP/1.1 400 Bad\r\n\r\n", b"\0" * 100_000]
)
def test_bytes_that_come_with_the_101_are_the_tunnels(banner: bytes) -> None:
    answer = answered(OURS + banner)
    assert isinstance(answer, Switched)
    assert answer.trailing_data == banner


def test_a_101_in_single_bytes_is_the_same() -> None:
    assert answered(*(OURS[i : i + 1] for i in range(len(OURS)))) == answered(OURS)


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 10,
    ],
)
def test_interim_answers_before_the_101_are_passed_over(before: bytes) -> None:
    assert answered(before + OURS + b"SSH") == answered(OURS + b"SSH")
    assert answered(before, OURS + b"SSH") == answered(OURS + b"SSH")


@pytest.mark.parametrize(
    "head",
    [
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: Upgrade\r\nUpgrade: http2tcp/1.0\r\n",
        b"Connection: Upgrade\r\nUpgrade: tcp, h2c\r\n",
        b"Connection: Upgrade\r\nUpgrade: tcp\r\nUpgrade: tcp\r\n",
        b"Connection: Upgrade\r\n",
        b"",
    ],
)
def test_a_101_to_another_protocol_is_no_tunnel(head: bytes) -> None:
    with pytest.raises(FrontEndFailed, match="another protocol than tcp"):
        answered(b"HTTP/1.1 101 Switching Protocols\r\n" + head + b"\r\n")


def test_a_101_without_connection_upgrade_is_no_tunnel() -> None:
    with pytest.raises(FrontEndFailed, match="Connection: upgrade"):
        answered(b"HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive\r\nUpgrade: tcp\r\n\r\n")


def test_a_101_is_understood_in_any_case() -> None:
    head = b"HTTP/1.1 101 x\r\nCONNECTION: keep-alive, UPGRADE\r\nUPGRADE: HTTP2TCP/1.0\r\n\r\n"
    assert isinstance(answered(head, transport=Transport.HTTP2TCP), Switched)


def test_our_refusal_brings_its_status_its_type_and_its_sentence() -> None:
    answer = answered(
        b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: http2tcp; error=connection_refused\r\n"
        b"Server: nginx\r\nContent-Length: 20\r\n\r\ncannot reach db:5432"
    )
    assert answer == Refused(
        status=502, proxy_error="connection_refused", text="cannot reach db:5432", server="nginx", location=""
    )


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 50\r\n\r\ncannot reach\nmore",
        b"\r\ncannot reach\n",
        b"Transfer-Encoding: chunked\r\n\r\nff\r\ncannot reach\n",
        b"Transfer-Encoding: chunked\r\n\r\nd\r\ncannot reach\n\r\nzz",
    ],
)
def test_a_refusal_whose_body_is_cut_still_tells_what_it_told(rest: bytes) -> None:
    head = b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: http2tcp; error=connection_refused\r\n"
    answer = answered(head + rest, b"")
    assert isinstance(answer, Refused)
    assert (answer.status, answer.proxy_error, answer.text) == (502, "connection_refused", "cannot reach")


def test_a_refusal_that_never_ends_is_read_only_so_far() -> None:
    reader = AnswerReader(Transport.TCP)
    reader.receive(b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: http2tcp; error=x\r\n\r\n")
    for _ in range(MAX_BODY // 1000):
        reader.receive(b"y" * 1000)
        assert reader.next_event() is None
    reader.receive(b"y" * 1000)
    answer = reader.next_event()
    assert isinstance(answer, Refused)
    assert len(answer.text) <= MAX_BODY + 1000


@pytest.mark.parametrize(
    ("head", "status", "server", "location"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nContent-Length: 1000000\r\n\r\n<html>", 200, "nginx/1.22.1", ""),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://other/\r\n\r\n", 301, "", "https://other/"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, "", ""),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", 400, "", ""),
        (b"HTTP/1.1 403\r\n\r\n", 403, "", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 Bad Gateway\r\n\r\n", 502, "", ""),
        (b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: edge; error=http_request_error\r\n\r\n", 502, "", ""),
    ],
)
def test_a_front_ends_answer_without_a_page_is_told_by_its_head_alone(
    head: bytes, status: int, server: str, location: str
) -> None:
    assert answered(head) == Refused(status=status, proxy_error=None, server=server, location=location)


HTML = b"Content-Type: text/html; charset=utf-8\r\n"
PLAIN = b"Content-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("fields", "body", "page"),
    [
        (
            HTML,
            b"<html><head><title>400 No required SSL certificate was sent</title>",
            "400 No required SSL certificate was sent",
        ),
        (HTML, b"<TITLE lang=en>\n a &lt;b&gt;\t c\n</TITLE>", "a <b> c"),
        (PLAIN, b"error code: 1020\nmore", "error code: 1020"),
        (PLAIN, b"error code: 1020", "error code: 1020"),
        # What the status line has already said.
        (HTML, b"<title>400 Bad Request</title>", ""),
        (HTML, b"<title>Bad request</title>", ""),
        (PLAIN, b"400", ""),
        # No title, an open one, one beyond the bound; a line without an end, of which the rest is unknown.
        (HTML, b"<p>No required SSL certificate", ""),
        (HTML, b"<title>No required", ""),
        (HTML, b"x" * MAX_BODY + b"<title>late</title>", ""),
        (PLAIN, b"y" * MAX_BODY * 2, ""),
        (HTML + b"Content-Encoding: gzip\r\n", b"<title>squeezed</title>", ""),
        (b"Content-Type: application/json\r\n", b"<title>no page</title>", ""),
        (b"", b"<title>no page</title>", ""),
    ],
)
def test_a_front_end_s_page_tells_its_title_or_its_first_line(fields: bytes, body: bytes, page: str) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body)
    answer = answered(head + body)
    assert isinstance(answer, Refused)
    assert (answer.page, answer.text) == (page, "")


def test_a_page_that_is_late_leaves_its_status() -> None:
    reader = AnswerReader(Transport.TCP)
    assert not reader.refusing
    assert reader.cut_short() is None
    reader.receive(b"HTTP/1.1 400 Bad Request\r\n" + HTML + b"Content-Length: 900\r\n\r\n<title>Oh no</title>")
    assert reader.next_event() is None
    assert reader.refusing
    assert reader.cut_short() == Refused(400, None, page="Oh no")


@pytest.mark.parametrize("pieces", [(b"",), (b"HTTP/1.1 100 Continue\r\n\r\n", b"")])
def test_a_connection_that_ends_without_an_answer_is_called_that(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(FrontEndFailed, match="closed the connection without an answer"):
        answered(*pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", b""),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n",),
        (bytes.fromhex("15030100020246"), b""),
        (b"220 mail.example ESMTP\r\n", b""),
        (b"HTTP/1.1 xyz Bad\r\n\r\n",),
        (b"HTTP/1.1 099 Low\r\n\r\n",),
        (b"<html>\r\n\r\n",),
        (b"\0" * 100,),
    ],
)
def test_what_is_no_http_is_called_that(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(FrontEndFailed, match="does not speak HTTP"):
        answered(*pieces)


# --- a head with mistakes in it -------------------------------------------------------------------

# Lines that are no fields. None of them may give what it seems to.
MALFORMED = [
    b"X Powered By: us\r\n",
    b"no colon\r\n",
    b": no name\r\n",
    b"X-NUL: a\0b\r\n",
    b"X\xe9: y\r\n",
    b"X-CR: a\rb\r\n",
    b"Proxy-Status : http2tcp\r\n",
    b"Upgrade : websocket\r\n",
    b"Http2tcp-Session : evil\r\n",
    b"Bad line\r\n folded: into it\r\n",
    b"Bad line\r\n\tProxy-Status: http2tcp\r\n",
    b"Bad line\n",
]


@pytest.mark.parametrize("line", MALFORMED)
@pytest.mark.parametrize("place", range(4))
def test_a_malformed_line_in_a_101_is_left_out_and_changes_nothing_else(line: bytes, place: int) -> None:
    lines = SWITCH.splitlines(keepends=True)
    # At the first place a line that goes on would continue the status line, which is another mistake.
    head = b"".join([*lines[: place + 1], line, *lines[place + 1 :]]) if place < 3 else SWITCH[:-2] + line + b"\r\n"
    assert answered(head + b"SSH") == answered(SWITCH + b"SSH")
    assert answered(*(bytes([byte]) for byte in head)) == answered(SWITCH)
    ours = head[:-2] + b"Proxy-Status: http2tcp\r\n\r\n"
    assert answered(ours + b"SSH") == answered(OURS + b"SSH")
    assert answered(b"HTTP/1.1 103 Early\r\nAlso bad\r\n\r\n" + ours) == answered(OURS)


@pytest.mark.parametrize(
    "head",
    [
        b"Connection: Upgrade\r\nUpgrade : tcp\r\n",
        b"Connection: Upgrade\r\nUpgrade: tcp\0\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nBad line\r\nUpgrade : tcp\r\n",
        # What continues a field is part of it, with or without a malformed line elsewhere.
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n , h2c\r\nBad line\r\n",
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n \0\r\n",
    ],
)
def test_an_upgrade_is_never_taken_from_a_malformed_line(head: bytes) -> None:
    with pytest.raises(FrontEndFailed, match="another protocol than tcp"):
        answered(b"HTTP/1.1 101 Switching Protocols\r\n" + head + b"\r\n")


@pytest.mark.parametrize(
    "field", [b"Content-Length: x\r\n", b"Transfer-Encoding: gzip\r\n", b"Content-Length: 1\r\nContent-Length: 2\r\n"]
)
def test_what_a_101_says_about_a_body_that_it_cannot_have_is_passed_over(field: bytes) -> None:
    assert answered(SWITCH[:-2] + field + b"\r\nSSH") == answered(SWITCH + b"SSH")


def test_only_so_many_heads_are_mended() -> None:
    """Each of them is taken apart twice; a hostile server could send thousands."""
    with pytest.raises(FrontEndFailed):
        answered(1000 * b"HTTP/1.1 100 Continue\r\nBad line\r\n\r\n" + SWITCH)


def test_a_malformed_line_in_a_refusal_leaves_its_status_and_its_sentence() -> None:
    head = b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: http2tcp; error=dns_error\r\nX : y\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nno\n\r\n0\r\n\r\n"
    for answer in (
        answered(chunked),
        answered(head + b"Content-Length: 3\r\n\r\nno\n"),
        answered(head + b"\r\nno\n", b""),
    ):
        assert isinstance(answer, Refused)
        assert (answer.status, answer.proxy_error, answer.text) == (502, "dns_error", "no")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((b"HTTP/1.1 101 x\r\nUpgrade: tcp\r\n" + 5 * b"Bad line\r\n" + b"\r\n",), "5 lines .* first of them line 3"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",), "Content-Length or Transfer-Encoding makes no sense"),
        ((b"HTTP/1.1 200 OK\r\nBad line\r\nContent-Length: x\r\n\r\n",), "Content-Length or Transfer-Encoding makes"),
        ((b"HTTP/1.1 20", b""), "closed the connection within the head"),
        ((b"HTTP/1.1 101 x\r\nBad line\r\n", b""), "closed the connection within the head"),
    ],
)
def test_what_is_malformed_beyond_that_is_named(pieces: tuple[bytes, ...], words: str) -> None:
    with pytest.raises(FrontEndFailed, match=words) as caught:
        answered(*pieces)
    assert "does not speak HTTP" not in str(caught.value)
    assert "Bad line" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("endless", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 100 Continue\r\n\r\n", b"x", b"\r\n"])
def test_an_answer_without_an_end_is_given_up(endless: bytes) -> None:
    pieces = (endless for _ in range(0, 2 * MAX_HEAD, len(endless)))
    with pytest.raises(FrontEndFailed):
        answered(*pieces)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01", b"2", b"HTTP/2.0 200 OK\r\n\r\n"])
def test_a_greeting_in_another_protocol_is_told_at_once(greeting: bytes) -> None:
    def receive() -> None:
        reader = AnswerReader(Transport.TCP)
        for byte in greeting:
            reader.receive(bytes([byte]))

    with pytest.raises(FrontEndFailed, match="does not speak HTTP"):
        receive()


def test_a_server_that_speaks_http_2_alone_is_called_that() -> None:
    reader = AnswerReader(Transport.TCP)
    with pytest.raises(FrontEndFailed, match="speaks HTTP/2 only here"):
        reader.receive(bytes.fromhex("000012 04 00 00000000 0003 00000080") + bytes(12))


def test_an_answer_in_http_1_0_switches_nothing() -> None:
    reader = AnswerReader(Transport.TCP)
    reader.receive(b"HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    with pytest.raises(FrontEndFailed):
        reader.next_event()


def test_a_string_in_another_proxys_status_is_not_taken_for_ours() -> None:
    reader = AnswerReader(Transport.TCP)
    reader.receive(
        b'HTTP/1.1 502 Bad Gateway\r\nProxy-Status: other; details="a, http2tcp; error=q"\r\nContent-Length: 0\r\n\r\n'
    )
    answer = reader.next_event()
    assert isinstance(answer, Refused)
    assert answer.proxy_error is None


# --- the id in the server's log -------------------------------------------------------------------

SESSIONS = [
    (b"Http2tcp-Session: 5f0c9a3be172\r\n", "5f0c9a3be172"),
    (b"http2tcp-session: A-b_9\r\n", "A-b_9"),
    (b"", ""),
    # It goes to the terminal: what is no id is none.
    (b"Http2tcp-Session: \r\n", ""),
    (b"Http2tcp-Session: a b\r\n", ""),
    (b"Http2tcp-Session: a\xe9\r\n", ""),
    (b"Http2tcp-Session: " + 65 * b"a" + b"\r\n", ""),
    (b"Http2tcp-Session: a\r\nHttp2tcp-Session: b\r\n", ""),
]


@pytest.mark.parametrize(("field", "session"), SESSIONS)
def test_a_tunnel_brings_its_id_in_the_servers_log(field: bytes, session: str) -> None:
    answer = answered(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n" + field + b"\r\n")
    assert isinstance(answer, Switched)
    assert answer.session == session


@pytest.mark.parametrize(("field", "session"), SESSIONS)
def test_a_refusal_brings_its_id_in_the_servers_log(field: bytes, session: str) -> None:
    answer = answered(b"HTTP/1.1 502 x\r\nProxy-Status: http2tcp; error=dns_error\r\n" + field + b"\r\n", b"")
    assert isinstance(answer, Refused)
    assert answer.session == session
