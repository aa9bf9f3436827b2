"""Heads cut at any byte, mutated heads, and arbitrary bytes, at both ends of the handshake."""

from __future__ import annotations

import re
import traceback

from hypothesis import example, given
from hypothesis import strategies as st

from http2tcp.errors import BadRequest, FrontEndFailed, HeadTooLarge, Http2tcpError, Refusal
from http2tcp.protocol.client_handshake import MAX_BODY, AnswerReader, Refused, Switched
from http2tcp.protocol.client_handshake import MAX_HEAD as MAX_ANSWER_HEAD
from http2tcp.protocol.server_handshake import MAX_HEAD, RequestReader, refuse
from http2tcp.protocol.transport import Transport
from tests.support.heads import BEARER, HOSTILE, HOSTILE_CONNECT, SECRET, UPGRADE, connect, good, head

REQUESTS = [
    good(),
    good("Content-Length: 0", "X-Forwarded-For: 1.2.3.4"),
    head(*UPGRADE, f"Http2tcp-Token: {SECRET}", "Authorization: Basic dXNlcjpwYXNz"),
    head("Connection: upgrade", "Upgrade: http2tcp/1.0", f"Authorization: HTTP2TCP {SECRET}"),
    head(*UPGRADE, BEARER, line="GET /.well-known/masque/tcp/db/5432/ HTTP/1.1"),
    *(data for data, _ in HOSTILE.values() if len(data) < 1000),
]
CONNECTS = [
    connect(),
    connect(host=None, version="HTTP/1.0"),
    connect(authority="[2001:db8::1]:22"),
    *(data for data, _ in HOSTILE_CONNECT.values() if len(data) < 1000),
]
ANSWERS = [
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nProxy-Status: http2tcp\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
    b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    refuse(BadRequest(), "5e55"),
    b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: http2tcp; error=dns_error\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: http2tcp; error=dns_error\r\n\r\nhello\nyou",
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 10\r\n\r\n<html>",
    b"HTTP/1.1 301 Moved\r\nLocation: https://other.example/\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    # Debugging pages show the request.
    b"HTTP/1.1 400 Bad Request\r\nX-Request: Authorization: Bearer " + SECRET.encode() + b"\r\n\r\n",
    b"HTTP/1.1 500 x\r\nAuthorization : Bearer " + SECRET.encode() + b"\r\n\r\n",
]

# What parsers trip over.
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"%", b"%00", b"&addr=x", b"?", b"#", b"\xff", b"\x7f",
    b"HTTP/1.0", b"HTTP/2.0", b"CONNECT ", b"101", b"100", b"chunked", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n", b"Upgrade: tcp\r\n", b"Host: h\r\n", b"Authorization: Bearer x\r\n", b"y" * 300,
]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn, sound: list[bytes]) -> bytes:
    """One of these heads with a few places overwritten, removed, repeated or added to."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        inserted = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4), st.just(bytes(data[start:end]) * 2)))
        data[start:end] = inserted
    return bytes(data)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


cuts = st.lists(st.integers(0, 1 << 16), max_size=8)


def read_request(parts: list[bytes], *, connect: bool = False) -> object:
    """The request and what it leaves, None where more is needed, or the refusal's class."""
    reader = RequestReader(connect=connect)
    try:
        for index, part in enumerate(parts):
            reader.receive(part)
            request = reader.next_event()
            assert len(reader.trailing_data) <= MAX_HEAD + len(part)
            if request is not None:
                return request, reader.trailing_data + b"".join(parts[index + 1 :])
    except (BadRequest, HeadTooLarge) as error:
        tells_nothing(error)
        return type(error)
    return None


def tells_nothing(error: Http2tcpError) -> None:
    """An error holds nothing that came over the wire, nor does any that it replaced."""
    assert str(error) == type(error).text if isinstance(error, Refusal) else str(error).isprintable()
    assert SECRET not in "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        assert SECRET not in str(link) + repr(link)
        link = link.__context__


# --- the server's side ------------------------------------------------------------------------


@given(data=mutations(REQUESTS), cuts=cuts)
def test_a_request_cut_anywhere_means_what_it_means_whole(data: bytes, cuts: list[int]) -> None:
    assert read_request(pieces(data, cuts)) == read_request([data])


# As the pattern has it, slowly.
NO_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]|(?<!\r)\n")


@given(
    data=st.lists(st.sampled_from([b"\r\n", b"a", b"\r", b"\n", b"\t", b"\x80", b"\0", b"\x7f"]), max_size=12),
    cuts=cuts,
)
def test_a_byte_that_no_head_holds_is_told_as_soon_as_it_is_there(data: list[bytes], cuts: list[int]) -> None:
    start = b"GET / HTTP/1.1\r\nHost: h\r\nA: b"
    reader = RequestReader()
    received = b""
    for part in [start, *pieces(b"".join(data).replace(b"\r\n\r\n", b"\r\nb"), cuts)]:
        reader.receive(part)
        received += part
        try:
            assert reader.next_event() is None
            refused = False
        except BadRequest:
            refused = True
        assert refused == bool(NO_HEAD.search(received))
        if refused:
            return


@given(data=mutations(REQUESTS + CONNECTS), cuts=cuts)
def test_it_does_so_where_connect_is_taken_too(data: bytes, cuts: list[int]) -> None:
    whole = read_request([data], connect=True)
    assert read_request(pieces(data, cuts), connect=True) == whole
    # Nothing but CONNECT is read in another way.
    if not data.startswith(b"CONNECT "):
        assert read_request([data]) == whole


@given(data=mutations([connect(), connect(host=None, version="HTTP/1.0")]))
def test_whatever_is_accepted_as_connect_is_one_sound_request(data: bytes) -> None:
    """An independent and much cruder reader has to agree on the fields that decide."""
    result = read_request([data], connect=True)
    if not isinstance(result, tuple) or not result[0].is_connect:
        return
    request, rest = result
    line, *fields = data.removesuffix(rest).removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, authority, version = line.split(b" ")
    assert method == b"CONNECT"
    assert version in (b"HTTP/1.0", b"HTTP/1.1")
    host, _, port = authority.decode().rpartition(":")
    assert request.target == (host.strip("[]"), port)
    assert port.isdigit()
    assert not set(host) & set("/?#@")
    names = [field.partition(b":")[0].lower() for field in fields]
    for name in (b"host", b"proxy-authorization", b"authorization", b"http2tcp-token"):
        assert names.count(name) <= 1
    assert b"transfer-encoding" not in names
    assert b"upgrade" not in names


@given(data=mutations(REQUESTS))
def test_a_request_in_single_bytes_means_what_it_means_whole(data: bytes) -> None:
    assert read_request([data[i : i + 1] for i in range(len(data))]) == read_request([data])


@given(data=st.binary(max_size=2000), cuts=cuts)
def test_arbitrary_bytes_make_the_server_refuse_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    assert read_request(pieces(data, cuts)) == read_request([data])


@given(
    filler=st.sampled_from([b"y", b"X: y\r\n", b" ", b"\xff", b"\r\n", b"a:", b"\r"]),
    size=st.integers(MAX_HEAD - 40, MAX_HEAD + 40),
    end=st.sampled_from([b"", b"\r\n\r\n", b"\n\n", b"\r\n"]),
    cuts=cuts,
)
@example(filler=b"y", size=MAX_HEAD, end=b"\r\n\r\n", cuts=[MAX_HEAD])
def test_a_head_about_as_long_as_the_limit_means_one_thing(
    filler: bytes, size: int, end: bytes, cuts: list[int]
) -> None:
    start = head(*UPGRADE, BEARER)[:-2] + b"X: "
    data = (start + filler * MAX_HEAD)[: size - len(end)] + end
    result = read_request([data])
    assert read_request(pieces(data, cuts)) == result
    if isinstance(result, tuple):
        assert len(data) - len(result[1]) <= MAX_HEAD
    else:
        assert result is not None or len(data) <= MAX_HEAD


@given(data=mutations([good()]))
def test_whatever_is_accepted_is_one_sound_request(data: bytes) -> None:
    """An independent and much cruder reader has to agree on the fields that decide."""
    result = read_request([data])
    if not isinstance(result, tuple):
        return
    request, rest = result
    whole = data.removesuffix(rest)
    assert data == whole + rest
    assert whole.endswith(b"\r\n\r\n")
    assert whole.count(b"\r") == whole.count(b"\n") == whole.count(b"\r\n")
    line, *fields = whole[:-4].split(b"\r\n")
    method, target, version = line.split(b" ")
    assert (method, version) == (b"GET", b"HTTP/1.1")
    assert target.startswith(b"/")
    names = [field.partition(b":")[0].lower() for field in fields]
    assert all(name and name == name.strip() for name in names)
    for name in (b"host", b"authorization", b"upgrade", b"http2tcp-token"):
        assert names.count(name) <= 1
    assert names.count(b"host") == 1
    assert b"transfer-encoding" not in names
    values = {name: field.partition(b":")[2].strip() for name, field in zip(names, fields, strict=True)}
    assert values.get(b"content-length", b"0") == b"0"
    if request.transport is not None:
        assert values[b"upgrade"].lower() == request.upgrade.encode()
    if request.token is not None:
        assert request.token.encode("utf-8", "surrogateescape") in whole


# --- the client's side ------------------------------------------------------------------------


def read_answer(parts: list[bytes]) -> object:
    """The answer, None where more is needed, or the sentence of the failure."""
    reader = AnswerReader(Transport.TCP)
    try:
        for index, part in enumerate(parts):
            reader.receive(part)
            answer = reader.next_event()
            if isinstance(answer, Switched):
                return answer._replace(trailing_data=answer.trailing_data + b"".join(parts[index + 1 :]))
            if answer is not None:
                return answer
    except FrontEndFailed as error:
        tells_nothing(error)
        return str(error)
    return None


@given(data=mutations(ANSWERS), cuts=cuts, ended=st.booleans())
def test_an_answer_cut_anywhere_means_what_it_means_whole(data: bytes, cuts: list[int], ended: bool) -> None:
    end = [b""] if ended else []
    whole = read_answer([*([data] if data else []), *end])
    assert read_answer([part for part in pieces(data, cuts) if part] + end) == whole
    if ended:
        assert whole is not None


@given(data=st.binary(max_size=2000), cuts=cuts)
@example(data=b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n" + SECRET.encode(), cuts=[])
def test_arbitrary_bytes_make_the_client_say_so_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    assert read_answer([part for part in pieces(data, cuts) if part] + [b""]) is not None


@given(
    start=st.sampled_from([*ANSWERS, b"", b"HTTP/1.1 200 OK\r\nX: "]),
    filler=st.sampled_from([b"y", b"X: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n", b"\0", b" "]),
)
def test_an_endless_answer_is_read_only_so_far(start: bytes, filler: bytes) -> None:
    reader = AnswerReader(Transport.TCP)
    chunk = filler * (4096 // len(filler))
    received = 0
    try:
        reader.receive(start)
        while (answer := reader.next_event()) is None:
            reader.receive(chunk)
            received += len(chunk)
            assert received <= MAX_ANSWER_HEAD + 2 * MAX_BODY
    except FrontEndFailed:
        return
    assert isinstance(answer, Refused | Switched)
