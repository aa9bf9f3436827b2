"""Capsules, as RFC 9297 and the connect-tcp draft write them."""

from __future__ import annotations

import pytest

from http2tcp.protocol.capsule import (
    DATA_TYPES,
    FINAL,
    KEEPALIVE,
    MAX_VARINT,
    MAX_WORDS,
    RESET_TYPE,
    CapsuleError,
    CapsuleReader,
    Reset,
    ResetCode,
    data_header,
    decode_varint,
    encode_varint,
    reset,
)


# RFC 9000, appendix A.1.
@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_an_integer_of_the_standards_own_examples_is_read(encoded: str, value: int) -> None:
    data = bytes.fromhex(encoded)
    assert decode_varint(data, 0) == (value, len(data))


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30, MAX_VARINT])
def test_an_integer_is_written_as_short_as_it_can_be(value: int) -> None:
    data = encode_varint(value)
    assert decode_varint(data, 0) == (value, len(data))
    assert len(data) == next(size for size, bits in ((1, 6), (2, 14), (4, 30), (8, 62)) if value < 1 << bits)


def test_an_integer_of_more_than_62_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="62 bits"):
        encode_varint(MAX_VARINT + 1)


def test_what_we_send_is_exactly_this() -> None:
    assert data_header(5) == bytes.fromhex("a028d7f2 05")
    assert bytes.fromhex("a028d7f3 00") == FINAL


@pytest.mark.parametrize(("data_type", "final_type"), DATA_TYPES)
def test_either_pair_of_types_is_understood(data_type: int, final_type: int) -> None:
    reader = CapsuleReader()
    stream = encode_varint(data_type) + b"\x03abc" + encode_varint(final_type) + b"\x02de"
    assert b"".join(reader.receive(stream)) == b"abcde"
    assert reader.ended


def test_payload_is_handed_on_before_its_capsule_is_whole() -> None:
    reader = CapsuleReader()
    assert reader.receive(data_header(1000) + b"a") == [b"a"]
    assert reader.payload_left == 999
    assert reader.receive(b"bc") == [b"bc"]


def test_what_was_moved_past_the_reader_counts() -> None:
    reader = CapsuleReader()
    reader.receive(encode_varint(DATA_TYPES[0][1]) + encode_varint(10))
    assert not reader.ended
    reader.took(10)
    assert reader.ended


@pytest.mark.parametrize("length", [0, 1, 70_000])
def test_an_unknown_capsule_is_skipped_whatever_its_length(length: int) -> None:
    reader = CapsuleReader()
    stream = encode_varint(0x29 * 7 + 0x17) + encode_varint(length) + bytes(length)
    assert reader.receive(KEEPALIVE + stream + data_header(2) + b"ok" + FINAL) == [b"ok"]
    assert reader.ended


def test_capsules_that_are_none_of_ours_may_follow_the_last_data() -> None:
    reader = CapsuleReader()
    assert reader.receive(FINAL + KEEPALIVE + encode_varint(9) + b"\x02xy") == []
    assert reader.ended


@pytest.mark.parametrize("late", [data_header(1) + b"x", data_header(0), FINAL])
def test_data_after_the_last_data_is_an_error(late: bytes) -> None:
    reader = CapsuleReader()
    with pytest.raises(CapsuleError, match="after FINAL_DATA"):
        reader.receive(FINAL + late)


def test_a_reset_on_the_wire() -> None:
    assert reset(ResetCode.REVOKED, "bye").hex() == "ba85d15d" + "04" + "02" + b"bye".hex()


def test_a_reset_is_understood_wherever_it_is_cut_and_ends_everything() -> None:
    stream = data_header(2) + b"hi" + reset(ResetCode.IDLE, "für 60 s") + data_header(1) + b"x" + FINAL + FINAL
    for cut in range(len(stream)):
        reader = CapsuleReader()
        assert b"".join(reader.receive(stream[:cut]) + reader.receive(stream[cut:])) == b"hi"
        assert reader.reset == Reset(ResetCode.IDLE, "für 60 s")
        assert not reader.ended


def test_words_that_are_too_long_are_cut_at_both_ends() -> None:
    mine = reset(ResetCode.TARGET, "ü" * 1000)
    assert len(mine) == 4 + 2 + 1 + MAX_WORDS
    reader = CapsuleReader()
    reader.receive(mine)
    assert reader.reset == Reset(ResetCode.TARGET, "ü" * (MAX_WORDS // 2))
    # Somebody else's: its end is not waited for.
    reader = CapsuleReader()
    reader.receive(encode_varint(RESET_TYPE) + encode_varint(MAX_VARINT) + b"\x01" + b"x" * 1000)
    assert reader.reset == Reset(ResetCode.TARGET, "x" * MAX_WORDS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", Reset(ResetCode.UNSPECIFIED, "")),
        (b"\xc0\x00", Reset(ResetCode.UNSPECIFIED, "")),
        (encode_varint(MAX_VARINT), Reset(MAX_VARINT, "")),
        (b"\x02\x1b[31m\xff\r\n\xe2\x80\xae", Reset(ResetCode.REVOKED, "?[31m\ufffd???")),
    ],
)
def test_a_reset_of_any_make_is_a_reset_that_no_terminal_obeys(value: bytes, said: Reset) -> None:
    reader = CapsuleReader()
    assert reader.receive(encode_varint(RESET_TYPE) + encode_varint(len(value)) + value) == []
    assert reader.reset == said


def test_a_turn_of_the_loop_takes_few_capsules_however_small_they_are() -> None:
    """Fifty tunnels of one-byte capsules, 256 a turn, made everybody else wait for 0.3 s."""
    reader = CapsuleReader()
    turns = [len(pieces) for pieces in reader.batches((data_header(1) + b"x") * 1000)]
    assert sum(turns) == 1000
    assert max(turns) <= 33
