"""Capsules cut anywhere, and bytes that are none."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.protocol.capsule import (
    DATA_TYPES,
    MAX_VARINT,
    CapsuleError,
    CapsuleReader,
    decode_varint,
    encode_varint,
)
from tests.support.held import held

_known = {kind for pair in DATA_TYPES for kind in pair}


def _padded(value: int, size: int) -> bytes:
    """An integer in at least `size` bytes: longer than needed is valid."""
    shortest = encode_varint(value)
    if len(shortest) >= size:
        return shortest
    prefix = {2: 0x40, 4: 0x80, 8: 0xC0}[size]
    data = bytearray(value.to_bytes(size, "big"))
    data[0] |= prefix
    return bytes(data)


_sizes = st.sampled_from([1, 2, 4, 8])


@st.composite
def _capsules(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A whole stream of capsules, and its payload."""
    stream, payload = b"", b""
    for value in draw(st.lists(st.binary(max_size=300), max_size=6)):
        kind = draw(st.sampled_from([data for data, _ in DATA_TYPES]) | st.integers(0, MAX_VARINT))
        if kind in _known:
            kind = DATA_TYPES[0][0]
            payload += value
        stream += _padded(kind, draw(_sizes)) + _padded(len(value), draw(_sizes)) + value
    last = draw(st.binary(max_size=100))
    final = draw(st.sampled_from([final for _, final in DATA_TYPES]))
    return stream + _padded(final, draw(_sizes)) + _padded(len(last), draw(_sizes)) + last, payload + last


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(_capsules(), st.lists(st.integers(0, 10_000), max_size=20))
def test_the_payload_does_not_depend_on_where_the_stream_is_cut(
    capsules: tuple[bytes, bytes], places: list[int]
) -> None:
    stream, payload = capsules
    reader = CapsuleReader()
    received = b"".join(part for piece in _cut(stream, places) for part in reader.receive(piece))
    assert received == payload
    assert reader.ended


@given(_capsules())
def test_a_stream_that_was_cut_short_never_counts_as_ended(capsules: tuple[bytes, bytes]) -> None:
    stream, _ = capsules
    reader = CapsuleReader()
    reader.receive(stream[:-1])
    assert not reader.ended


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_taken_or_refused_and_none_are_kept(pieces: list[bytes]) -> None:
    reader = CapsuleReader()
    empty = held(reader)
    for piece in pieces:
        try:
            payload = reader.receive(piece)
        except CapsuleError:
            return
        assert sum(map(len, payload)) <= len(piece)
        # The start of a capsule's head, and a number or two.
        assert held(reader).bytes < empty.bytes + 256


@given(st.integers(0, MAX_VARINT), _sizes, st.binary(max_size=4))
def test_an_integer_survives_in_every_length(value: int, size: int, rest: bytes) -> None:
    data = _padded(value, size)
    assert decode_varint(data + rest, 0) == (value, len(data))
    assert decode_varint(data[:-1], 0) is None
