"""Capsules of resuming, cut anywhere, and bytes that are none."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.protocol.capsule import FINAL, KEEPALIVE, MAX_VARINT, data_header, encode_varint, reset
from http2tcp.protocol.resume import Resumable
from http2tcp.protocol.resume_wire import (
    ACK_TYPE,
    CHALLENGE_TYPE,
    HELLO_TYPE,
    PING,
    PING_TYPE,
    FirstCapsule,
    Hello,
    Reader,
    ResumeError,
    Violation,
    ack,
    challenge,
)
from tests.support.resumed import SECRET, SESSION, SMALL, terms

numbers = st.integers(0, MAX_VARINT)
times = st.integers(0, (1 << 31) - 1)
keys = st.binary(min_size=32, max_size=32)
hellos = st.builds(
    Hello,
    keepalive=st.integers(1, (1 << 31) - 1),
    window=numbers,
    grace=st.none() | times,
    session=st.none() | st.from_regex(r"([a-z0-9][a-z0-9.-]{0,62}-)?[0-9a-f]{12}", fullmatch=True),
    secret=st.none() | keys,
    received=st.none() | numbers,
    proof=st.none() | keys,
    idle_timeout=st.none() | times,
    acked=st.none() | numbers,
    attempt=st.none() | numbers,
    nonce=st.none() | keys,
)
capsules = st.one_of(
    st.binary(max_size=60).map(lambda data: data_header(len(data)) + data),
    hellos.map(Hello.capsule),
    numbers.map(ack),
    keys.map(challenge),
    st.sampled_from([PING, KEEPALIVE, FINAL, reset(1, "words")]),
)
#: What looks like the beginning of one of ours, and what does not.
nonsense = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda kind, length, value: encode_varint(kind) + encode_varint(length) + value,
        st.sampled_from([HELLO_TYPE, CHALLENGE_TYPE, ACK_TYPE, PING_TYPE]) | numbers,
        st.integers(0, 1200) | numbers,
        st.binary(max_size=300),
    ),
)


def whole(events: Sequence[object]) -> list[object]:
    """Payload that belongs together as one piece."""
    found: list[object] = []
    for event in events:
        if isinstance(event, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += event
        else:
            found.append(event)
    return found


@given(hellos)
def test_a_hello_is_read_as_it_was_written(hello: Hello) -> None:
    assert list(Reader().read(hello.capsule())) == [hello]


@given(st.lists(capsules, max_size=8), st.integers(1, 20))
def test_what_is_read_does_not_depend_on_where_the_bytes_are_cut(parts: list[bytes], piece: int) -> None:
    wire = b"".join(parts)
    reader = Reader()
    cut = [event for start in range(0, len(wire), piece) for event in reader.read(wire[start : start + piece])]
    assert whole(cut) == whole(list(Reader().read(wire)))


@given(st.lists(capsules | nonsense, max_size=8), st.integers(1, 40))
def test_any_bytes_are_read_or_are_a_violation_and_memory_is_bounded(parts: list[bytes], piece: int) -> None:
    wire = b"".join(parts)
    reader = Reader()
    try:
        for start in range(0, len(wire), piece):
            list(reader.read(wire[start : start + piece]))
            assert len(reader._value) <= 1024
            assert len(reader._head) < 16
    except Violation:
        pass


@given(st.lists(capsules | nonsense, min_size=1, max_size=3), st.integers(1, 40))
def test_a_first_capsule_is_found_or_is_a_violation_and_no_more_is_kept(parts: list[bytes], piece: int) -> None:
    wire = b"".join(parts)
    reader = FirstCapsule()
    for start in range(0, len(wire), piece):
        try:
            if reader.receive(wire[start : start + piece]) is not None:
                assert wire[: start + piece].endswith(reader.rest)
                return
        except Violation:
            return
        assert len(reader.rest) < 1100


@given(st.booleans(), st.lists(capsules | nonsense, max_size=8), st.integers(1, 40))
def test_whatever_a_peer_sends_a_machine_raises_nothing_else(agreed: bool, parts: list[bytes], piece: int) -> None:
    server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
    wire = b"".join(parts)
    if agreed:
        wire = Hello(keepalive=1, window=20, grace=1).capsule() + ack(0) + wire
    try:
        for start in range(0, len(wire), piece):
            for part in server.receive(wire[start : start + piece], 1):
                server.sink_took(len(part.payload))
                if part.end:
                    server.sink_ended()
            server.data_to_send()
            assert server.handed_on == server.received
    except ResumeError:
        pass


@given(hellos, keys)
def test_whatever_a_client_claims_a_take_over_raises_nothing_else(hello: Hello, nonce: bytes) -> None:
    server = Resumable.offer(SESSION, SECRET, terms(), bounds=SMALL)
    server.data_to_send()
    server.detach(1)
    try:
        server.take_over(hello, nonce)
    except ResumeError:
        assert not server.attached
    else:
        raise AssertionError("it was let in without the secret")
