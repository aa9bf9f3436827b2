"""WebSocket messages cut anywhere, and bytes that are none."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.protocol.websocket import WebSocket, WebSocketError
from tests.support.websocket_frames import BINARY, CONTINUATION, PING, PONG, close, frame, frames

_keys = st.binary(min_size=4, max_size=4)
_codes = st.integers(0, 0xFFFF)
# A frame's head has at most 14 bytes, and a control frame 125 behind it. Nothing else is waited for.
_HELD = 14 + 125


@st.composite
def _messages(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Messages as a client may send them, in fragments and with control frames in between, and their payload."""
    wire, payload = b"", b""
    for fragments in draw(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=4)):
        for number, fragment in enumerate(fragments):
            opcode = CONTINUATION if number else BINARY
            wire += frame(opcode, fragment, final=number == len(fragments) - 1, key=draw(_keys))
            payload += fragment
            if draw(st.booleans()):
                wire += frame(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), key=draw(_keys))
    return wire, payload


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def _take(end: WebSocket, piece: bytes) -> bytes:
    """Feed it, and take all there is. Raises WebSocketError."""
    end.receive(piece)
    parts = []
    while (part := end.payload()) is not None:
        parts.append(part)
        if end.ended:
            break
    return b"".join(parts)


_places = st.lists(st.integers(0, 10_000), max_size=20)


@given(_messages(), _places, st.booleans())
def test_the_payload_does_not_depend_on_where_the_stream_is_cut(
    messages: tuple[bytes, bytes], places: list[int], closes: bool
) -> None:
    wire, payload = messages
    end = WebSocket(client=False)
    received = b"".join([_take(end, piece) for piece in _cut(wire + (close(1000) if closes else b""), places)])
    assert received == payload
    assert end.ended == closes


@given(st.binary(max_size=400), st.booleans(), _places)
def test_what_one_end_sends_the_other_receives(data: bytes, client: bool, places: list[int]) -> None:
    ours, theirs = WebSocket(client=client), WebSocket(client=not client)
    wire = b"".join(ours.messages(data)) + ours.ping() + ours.close(1000)
    assert b"".join([_take(theirs, piece) for piece in _cut(wire, places)]) == data
    assert theirs.ended
    answer = theirs.answer() or theirs.close(1000)
    assert _take(ours, answer) == b""
    assert ours.ended


_pieces = st.one_of(
    st.binary(max_size=200),
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=130),
        final=st.booleans(),
        key=st.none() | _keys,
        reserved=st.sampled_from([0, 0, 0, 1, 4]),
    ),
    st.builds(close, _codes, st.text(max_size=20)),
    st.builds(lambda head, size, key: head + size.to_bytes(8, "big") + key, *[st.just(b"\x82\xff"), _codes, _keys]),
)


@given(st.lists(_pieces, max_size=12), _places, st.booleans())
def test_any_bytes_are_taken_or_refused_and_none_are_kept(pieces: list[bytes], places: list[int], client: bool) -> None:
    end = WebSocket(client=client)
    for piece in _cut(b"".join(pieces), places):
        try:
            payload = _take(end, piece)
        except WebSocketError as error:
            _closes(end, error)
            return
        assert len(payload) <= len(piece) + _HELD
        assert end.ended or _held(end) <= _HELD
        frames(end.answer())
        if end.ended:
            return


def _closes(end: WebSocket, error: WebSocketError) -> None:
    """What it is closed with is a whole frame, and fit for the wire."""
    assert 1000 <= error.code < 5000
    assert str(error).isprintable()
    assert len(frames(end.close(error.code, str(error)))) == 1


def _held(end: WebSocket) -> int:
    return len(end._connection._proto._frame_decoder.buffer)
