"""Frames without a network: what is sent, what is taken, and how it is closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from http2tcp.protocol.websocket import MAX_MESSAGE, MAX_SENT, WebSocket, WebSocketError
from http2tcp.protocol.websocket_handshake import accept_value, is_key, new_key
from tests.support.websocket_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    close,
    close_of,
    frame,
    frames,
)


def server() -> WebSocket:
    return WebSocket(client=False)


def client() -> WebSocket:
    return WebSocket(client=True)


def received(end: WebSocket, wire: bytes) -> bytes:
    """What `end` makes of it."""
    end.receive(wire)
    parts = []
    while (part := end.payload()) is not None and not end.ended:
        parts.append(part)
    return b"".join([*parts, part or b""])


def refused(end: WebSocket, wire: bytes) -> WebSocketError:
    with pytest.raises(WebSocketError) as caught:
        received(end, wire)
    return caught.value


# --- the opening handshake --------------------------------------------------------------------


def test_the_answer_to_a_key_is_the_rfcs() -> None:
    assert accept_value("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_each_request_has_a_key_of_its_own() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(is_key(key.encode()) for key in keys)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"dGhlIHNhbXBsZSBub25jZQ",
        b"dGhlIHNhbXBsZSBub25jZQ== ",
        b"dGhlIHNhbXBsZSBub25jZQ=!",
        b"dGhlIHNhbXBsZSBub25jZTE=",  # 17 bytes
        b"AAAA",
        b"\xff" * 24,
    ],
)
def test_a_key_that_is_not_16_bytes_in_base64_is_none(value: bytes) -> None:
    assert not is_key(value)


# --- sending ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 65537, 300_000])
@pytest.mark.parametrize("make", [client, server])
def test_bytes_go_out_in_messages_that_every_peer_takes(make: Callable[[], WebSocket], size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    sent = frames(b"".join(make().messages(data)))
    assert b"".join(each.payload for each in sent) == data
    assert {(each.opcode, each.final) for each in sent} == {(BINARY, True)}
    assert max(len(each.payload) for each in sent) <= MAX_SENT
    assert all((each.key is None) == (make is server) for each in sent)


def test_nobody_can_foresee_a_mask() -> None:
    end = client()
    keys = [each.key for _ in range(50) for each in frames(b"".join(end.messages(b"x" * 2 * MAX_SENT)))]
    assert len(set(keys)) == len(keys) == 100


def test_a_client_s_control_frames_are_masked_too() -> None:
    end = client()
    end.receive(frame(PING, b"are you there", key=None))
    assert end.payload() is None
    sent = frames(end.ping() + end.answer() + end.close(1000))
    assert [each.opcode for each in sent] == [PING, PONG, CLOSE]
    assert None not in {each.key for each in sent}


# --- receiving --------------------------------------------------------------------------------


def test_fragments_and_what_comes_between_them_are_taken() -> None:
    wire = frame(BINARY, b"one ", final=False) + frame(PING, b"now") + frame(CONTINUATION, b"two ", final=False)
    wire += frame(PONG) + frame(CONTINUATION, b"") + frame(BINARY, b"") + frame(BINARY, b"three")
    end = server()
    assert received(end, wire) == b"one two three"
    assert frames(end.answer())[0][:2] == (PONG, b"now")


def test_part_of_a_message_is_given_before_the_rest_is_there() -> None:
    end = server()
    wire = frame(BINARY, b"0123456789")
    assert received(end, wire[:-4]) == b"012345"
    assert received(end, wire[-4:]) == b"6789"


def test_thousands_of_small_frames_are_not_taken_in_one_go() -> None:
    end = server()
    end.receive(frame(BINARY, b"x") * 10_000)
    first = end.payload()
    assert first is not None
    assert 1 <= len(first) <= 32
    rest = 0
    while (part := end.payload()) is not None:
        rest += len(part)
    assert len(first) + rest == 10_000


def test_a_flood_of_pings_is_answered_once_with_the_latest() -> None:
    end = server()
    assert received(end, b"".join(frame(PING, b"%d" % number) for number in range(5000))) == b""
    assert end.owes
    (pong,) = frames(end.answer())
    assert pong[:2] == (PONG, b"4999")
    assert not end.owes
    assert end.answer() == b""


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, b"hello"), 1003),
        (frame(TEXT, b"", final=False), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, b"x", key=None), 1002),
        (frame(BINARY, b"x", reserved=4), 1002),
        (frame(0x3, b"x"), 1002),
        (frame(0xB), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(BINARY, b"x", final=False) + frame(BINARY, b"y"), 1002),
        (frame(PING, b"x", final=False), 1002),
        (b"\x89\xfe\x00\x7e" + KEY + bytes(126), 1002),  # a ping of 126 bytes
        (b"\x82\xfe\x00\x01" + KEY + b"x", 1002),  # a length longer written than it has to be
        (b"\x82\xff" + b"\xff" * 8 + KEY, 1002),  # a length of 64 bits
        (frame(CLOSE, b"\x03"), 1002),
        (close(999), 1002),
        (close(1006), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
    ids=lambda value: "",
)
def test_what_breaks_the_rules_is_closed_with_the_code_that_says_so(wire: bytes, code: int) -> None:
    end = server()
    error = refused(end, wire)
    assert error.code == code
    assert "x" not in str(error).split()
    assert close_of(end.close(error.code, str(error))) == (code, str(error))
    # It stays so, and nothing more is said.
    assert end.close(1000) == b""
    with pytest.raises(WebSocketError):
        end.payload()


def test_what_came_before_the_nonsense_is_given_first() -> None:
    end = server()
    end.receive(frame(BINARY, b"good") + frame(TEXT, b"bad"))
    assert end.payload() == b"good"
    with pytest.raises(WebSocketError):
        end.payload()


@pytest.mark.parametrize("fragment", [MAX_MESSAGE, 1024 * 1024])
def test_a_message_without_an_end_is_too_big(fragment: int) -> None:
    end = server()
    whole = fragment
    assert len(received(end, frame(BINARY, bytes(fragment), final=False))) == fragment
    while whole < MAX_MESSAGE:
        assert len(received(end, frame(CONTINUATION, bytes(fragment), final=False))) == fragment
        whole += fragment
    error = refused(end, frame(CONTINUATION, b"x", final=False))
    assert (error.code, str(error)) == (1009, "a message of more than 16 MiB came")


def test_a_frame_that_announces_too_much_is_too_big_before_it_came() -> None:
    end = server()
    head = b"\x82\xff" + (MAX_MESSAGE + 1).to_bytes(8, "big") + KEY
    assert refused(end, head + b"x").code == 1009


def test_many_large_messages_are_no_large_message() -> None:
    end = server()
    wire = frame(BINARY, bytes(MAX_MESSAGE // 2))
    assert sum(len(received(end, wire)) for _ in range(5)) == 5 * MAX_MESSAGE // 2


# --- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, None])
def test_a_close_without_complaint_is_an_end(code: int | None) -> None:
    end = client()
    end.receive(frame(BINARY, b"last", key=None) + close(code, key=None))
    assert end.payload() == b"last"
    assert end.ended
    assert not end.can_send
    assert end.owes
    assert close_of(end.answer()) == (code, "")
    assert end.closed


def test_a_server_still_sends_to_a_client_that_has_closed_until_it_answers() -> None:
    end = server()
    received(end, frame(PING) + close(1000))
    assert end.ended
    assert end.can_send
    assert not end.owes
    assert end.ping() == b""
    assert frames(b"".join(end.messages(b"reply")))[0].payload == b"reply"
    assert close_of(end.close(1000)) == (1000, "")
    assert not end.can_send


def test_after_our_close_what_the_peer_had_still_to_say_is_taken() -> None:
    end = server()
    assert close_of(end.close(1000)) == (1000, "")
    assert not end.can_send
    assert received(end, frame(BINARY, b"late") + frame(PING)) == b"late"
    assert not end.owes
    assert received(end, close(1000)) == b""
    assert end.ended
    assert end.answer() == end.close(1000) == end.ping() == b""


@pytest.mark.parametrize("code", [1001, 1011, 1013, 3000, 4999])
def test_a_close_with_any_other_code_is_no_good_end(code: int) -> None:
    end = server()
    error = refused(end, close(code, "because"))
    assert not end.ended
    assert str(error) == f"the peer closed it with code {code}"
    assert close_of(end.close(error.code)) == (code, "because")


@pytest.mark.parametrize("code", [1000, None])
def test_an_answer_that_tells_of_a_failure_does_not_repeat_the_peer_s_good_end(code: int | None) -> None:
    end = server()
    received(end, close(code))
    assert close_of(end.close(1011, "the target broke")) == (1011, "the target broke")


def test_a_user_reads_why_the_server_has_closed() -> None:
    error = refused(client(), close(1011, "the target\r\nbroke \x1b[2J", key=None))
    assert str(error) == "the peer closed it with code 1011: the target??broke ?[2J"


def test_a_reason_is_cut_to_fit_and_stays_utf8() -> None:
    code, reason = close_of(client().close(1001, "é" * 100))
    assert (code, reason) == (1001, "é" * 61)
