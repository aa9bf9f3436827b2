"""What a proxy may send: cut anywhere it means the same, and whatever it is, only our own error comes of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.client.proxy_choice import is_exception, parse_proxy
from http2tcp.errors import AddressError
from http2tcp.protocol.http_connect import MAX_HEAD, Connect, Connected, ProxyProtocolError, Refused
from http2tcp.protocol.socks5 import Socks5

HEADS = [
    b"HTTP/1.1 200 Connection established\r\nVia: 1.1 squid\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\n\n",
    b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
]
BOUND = st.sampled_from(
    [
        b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50",
        b"\x05\x00\x00\x03\x05proxy\x00\x50",
        b"\x05\x00\x00\x04" + bytes(18),
    ]
)


def connect() -> Connect:
    return Connect("example.com:443", user_agent="x")


def feed(handshake: Connect, pieces: list[bytes]) -> Connected | Refused | None:
    """One piece a time, until there is an answer; what is left of the pieces is dropped."""
    for piece in pieces:
        handshake.receive(piece)
        if (event := handshake.next_event()) is not None:
            return event
    return None


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in cuts})
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


@given(st.sampled_from(HEADS), st.binary(max_size=50), st.lists(st.integers(0, 200), max_size=8))
def test_an_answer_cut_anywhere_connects_and_loses_no_byte(head: bytes, rest: bytes, cuts: list[int]) -> None:
    pieces = cut(head + rest, cuts)
    handshake = connect()
    kept = None
    for number, piece in enumerate(pieces):
        handshake.receive(piece)
        if (event := handshake.next_event()) is not None:
            assert isinstance(event, Connected)
            kept = event.trailing_data + b"".join(pieces[number + 1 :])
            break
    assert kept == rest


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.sampled_from([b"", b"HTTP/1.1 ", *HEADS]))
def test_no_bytes_raise_anything_but_our_own_error_from_connect(pieces: list[bytes], before: bytes) -> None:
    handshake = connect()
    try:
        feed(handshake, [piece for piece in (before[:-2], *pieces) if piece])
        handshake.receive(b"")
        handshake.next_event()
    except ProxyProtocolError:
        pass


@given(st.binary(min_size=1000, max_size=1000), st.integers(1, 5))
def test_a_head_without_an_end_is_held_within_its_limit(line: bytes, times: int) -> None:
    handshake = connect()
    received = 0
    try:
        handshake.receive(b"HTTP/1.1 200 OK\r\nA: ")
        while received < 2 * MAX_HEAD:
            handshake.receive(line.replace(b"\n", b"") * times)
            received += len(line) * times
            if handshake.next_event() is not None:
                raise AssertionError("an answer without an end")
    except ProxyProtocolError:
        assert received <= MAX_HEAD + 2 * len(line) * times


@given(BOUND, st.booleans(), st.binary(max_size=20), st.lists(st.integers(1, 12), max_size=40))
def test_socks_cut_anywhere_takes_its_answers_and_nothing_else(
    bound: bytes, login: bool, rest: bytes, sizes: list[int]
) -> None:
    handshake = Socks5("example.com", 443, credentials=(b"u", b"p"))
    wire = (b"\x05\x02\x01\x00" if login else b"\x05\x00") + bound + rest
    while handshake.needed:
        size = min(handshake.needed, sizes.pop() if sizes else 1)
        piece, wire = wire[:size], wire[size:]
        handshake.receive(piece)
    assert wire == rest


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_raise_anything_but_our_own_error_from_socks(wire: bytes, login: bool) -> None:
    handshake = Socks5("example.com", 443, credentials=(b"u", b"p") if login else None)
    try:
        while handshake.needed:
            piece, wire = wire[: handshake.needed], wire[handshake.needed :]
            handshake.receive(piece)
    except ProxyProtocolError:
        pass


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_our_own_error_as_a_proxy(text: str) -> None:
    try:
        shown = str(parse_proxy(text, "--proxy"))
    except AddressError as error:
        shown = str(error)
    assert shown.isprintable()


@given(st.text(max_size=60), st.sampled_from(["example.com", "10.1.2.3", "2001:db8::1", "fe80::1%eth0"]))
def test_no_text_makes_no_proxy_fail(text: str, host: str) -> None:
    assert is_exception(text, host, 443) in (True, False)
