"""HELLO, CHALLENGE, ACK and PING, byte by byte, and the proofs."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import replace
from pathlib import Path

import pytest

from http2tcp.protocol.capsule import FINAL, KEEPALIVE, MAX_VARINT, Reset, ResetCode, data_header, encode_varint, reset
from http2tcp.protocol.resume import Resumable, Terms
from http2tcp.protocol.resume_proof import Claim, Role
from http2tcp.protocol.resume_wire import (
    ACK_TYPE,
    CHALLENGE_TYPE,
    HELLO_TYPE,
    MAX_HELLO,
    PING,
    PING_TYPE,
    Ack,
    Challenge,
    FirstCapsule,
    Gap,
    Gone,
    Hello,
    Mark,
    NotYours,
    Reader,
    Stale,
    Violation,
    ack,
    challenge,
    gone,
    parse_gone,
    parse_hello,
)

FULL = Hello(
    keepalive=25_000,
    window=4 << 20,
    grace=900,
    session="a-5f0c9a3be172",
    secret=bytes(range(32)),
    received=12_345,
    proof=b"p" * 32,
    idle_timeout=600,
    acked=12_000,
    attempt=3,
    nonce=b"n" * 32,
)


def parameter(key: int, value: bytes) -> bytes:
    return encode_varint(key) + encode_varint(len(value)) + value


LEAST = parameter(1, encode_varint(25_000)) + parameter(2, encode_varint(1 << 20))


def hello(value: bytes) -> bytes:
    return encode_varint(HELLO_TYPE) + encode_varint(len(value)) + value


# --- the page -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs/wire.md").read_text()


def test_the_page_has_the_types_the_keys_and_the_codes() -> None:
    section = PAGE[PAGE.index("### Resuming") : PAGE.index("### http2tcp/1.0")]
    for name, kind in (("HELLO", HELLO_TYPE), ("CHALLENGE", CHALLENGE_TYPE), ("ACK", ACK_TYPE), ("PING", PING_TYPE)):
        assert f"| `0x{kind:08X}` | {name} |" in section
    rows = dict(re.findall(r"^\| (\d+) \| ([a-z ]+) \| .* \| .* \|$", section, re.MULTILINE))
    names = {
        1: "keepalive", 2: "window", 3: "grace", 4: "session", 5: "secret", 6: "received", 7: "proof",
        8: "idle timeout", 9: "acked", 10: "attempt", 11: "nonce",
    }  # fmt: skip
    assert rows == {str(key): name for key, name in names.items()}
    codes = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE)
    assert codes == [str(int(code)) for code in ResetCode if code > ResetCode.LEAVING]


def test_the_page_s_example_is_what_both_sides_say() -> None:
    example = PAGE[PAGE.index("```\nb16eef55") + 4 :]
    said = bytes.fromhex(example[: example.index("```")])
    server = Resumable.offer("a-5f0c9a3be172", bytes(range(32)), Terms(keepalive=25_000, window=4 << 20, grace=3600))
    offer = server.data_to_send()
    hello = FirstCapsule().receive(offer)
    assert isinstance(hello, Hello)
    client = Resumable.agree(hello, Terms(keepalive=25_000, window=4 << 20, grace=900))
    assert said == offer + client.data_to_send()


# --- bytes ----------------------------------------------------------------------------------------


def test_the_capsules_are_exactly_these_bytes() -> None:
    """docs/wire.md has them."""
    assert PING.hex() == "bdd10190" + "00"
    assert ack(300).hex() == "96f884a5" + "02" + "412c"
    assert challenge(b"\x07" * 32).hex() == "bfe5eba9" + "20" + "07" * 32
    assert Hello(keepalive=25_000, window=4 << 20, grace=900).capsule().hex() == (
        "b16eef55" + "10" + "0104" + "800061a8" + "0204" + "80400000" + "0302" + "4384"
    )


def test_a_hello_is_read_as_it_was_written() -> None:
    read = list(Reader().read(FULL.capsule()))
    assert read == [FULL]
    assert len(FULL.capsule()) < MAX_HELLO / 3


def test_every_parameter_has_the_key_of_the_page() -> None:
    keys = {
        1: encode_varint(25_000),
        2: encode_varint(4 << 20),
        3: encode_varint(900),
        4: b"a-5f0c9a3be172",
        5: bytes(range(32)),
        6: encode_varint(12_345),
        7: b"p" * 32,
        8: encode_varint(600),
        9: encode_varint(12_000),
        10: encode_varint(3),
        11: b"n" * 32,
    }
    assert parse_hello(b"".join(parameter(key, value) for key, value in keys.items())) == FULL


def test_unknown_parameters_are_ignored() -> None:
    assert parse_hello(parameter(77, b"later") + LEAST + parameter(MAX_VARINT, b"")) == parse_hello(LEAST)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "no keepalive"),
        (parameter(1, b"\x01"), "no window"),
        (LEAST + parameter(1, b"\x01"), "twice"),
        (LEAST + parameter(77, b"") + parameter(77, b""), "twice"),
        (LEAST[:-1], "cut short"),
        (LEAST + b"\x03", "cut short"),
        (LEAST + b"\x03\xff", "cut short"),
        (LEAST + b"\x03\x05\x01", "cut short"),
        (LEAST + parameter(3, b""), "not a number"),
        (LEAST + parameter(3, b"\x01\x01"), "not a number"),
        (LEAST + parameter(3, b"\x40"), "not a number"),
        (LEAST + parameter(3, encode_varint(1 << 31)), "grace of a HELLO is out of bounds"),
        (LEAST + parameter(8, encode_varint(MAX_VARINT)), "idle_timeout of a HELLO is out of bounds"),
        (parameter(1, b"\x00") + parameter(2, b"\x01"), "keepalive of a HELLO is out of bounds"),
        (LEAST + parameter(4, b""), "not an id"),
        (LEAST + parameter(4, b"5f0c9a3be17"), "not an id"),
        (LEAST + parameter(4, b"5f0c9a3be172\r\nX: y"), "not an id"),
        (LEAST + parameter(4, b"A-5f0c9a3be172"), "not an id"),
        (LEAST + parameter(4, b"-5f0c9a3be172"), "not an id"),
        (LEAST + parameter(4, b"a" * 64 + b"-5f0c9a3be172"), "not an id"),
        (LEAST + parameter(5, b"s" * 31), "secret of a HELLO has 31 bytes"),
        (LEAST + parameter(7, b"s" * 33), "proof of a HELLO has 33 bytes"),
        (LEAST + parameter(11, b""), "nonce of a HELLO has 0 bytes"),
    ],
)
def test_a_hello_that_breaks_the_rules_is_refused(value: bytes, words: str) -> None:
    with pytest.raises(Violation, match=words):
        list(Reader().read(hello(value)))


@pytest.mark.parametrize("session", ["5f0c9a3be172", "a-5f0c9a3be172", "http2tcp-0-5f0c9a3be172", "n.x-5f0c9a3be172"])
def test_an_id_may_have_its_node_before_it(session: str) -> None:
    assert parse_hello(LEAST + parameter(4, session.encode())).session == session


@pytest.mark.parametrize(
    "wire",
    [
        encode_varint(HELLO_TYPE) + encode_varint(MAX_HELLO + 1),
        challenge(b"c" * 32).replace(b"\x20", b"\x1f", 1)[:-1],
        challenge(b"c" * 32).replace(b"\x20", b"\x21", 1),
        ack(1)[:-2] + b"\x00",
        ack(1)[:-2] + b"\x02\x01\x01",
        ack(1)[:-2] + b"\x09" + b"\x00" * 9,
        PING[:-1] + b"\x01x",
    ],
)
def test_a_capsule_of_the_wrong_length_is_refused(wire: bytes) -> None:
    with pytest.raises(Violation):
        list(Reader().read(wire))


def test_no_secret_is_in_a_repr() -> None:
    claim = Claim(
        role=Role.CLIENT, session="5f0c9a3be172", attempt=1, received=1, acked=1,
        server_nonce=b"NONCENONCE", client_nonce=b"NONCENONCE",
    )  # fmt: skip
    said = FULL._replace(secret=b"SECRETSECRET", proof=b"SECRETSECRET", nonce=b"NONCENONCE")
    for shown in (repr(said), repr(claim)):
        assert "SECRET" not in shown
        assert "NONCE" not in shown


# --- the order of what is read --------------------------------------------------------------------


def test_what_is_read_comes_in_its_order() -> None:
    wire = data_header(2) + b"ab" + ack(7) + PING + KEEPALIVE + challenge(b"c" * 32)
    wire += data_header(0) + data_header(1) + b"c" + FINAL
    expected = [b"ab", Ack(7), Mark.PING, Mark.OTHER, Challenge(b"c" * 32), Mark.OTHER, b"c", Mark.FINAL]
    assert list(Reader().read(wire)) == expected


def test_wherever_the_bytes_are_cut_the_same_is_read() -> None:
    wire = FULL.capsule() + data_header(3) + b"abc" + ack(70_000) + PING + FINAL + reset(1, "bye") + PING
    whole = list(Reader().read(wire))
    assert whole[-1] == Reset(1, "bye")
    for cut in range(len(wire) + 1):
        reader = Reader()
        parts = [*reader.read(wire[:cut]), *reader.read(wire[cut:])]
        joined = b"".join(part for part in parts if isinstance(part, bytes))
        assert joined == b"abc"
        assert [part for part in parts if not isinstance(part, bytes)] == [
            part for part in whole if not isinstance(part, bytes)
        ]


def test_payload_may_go_past_the_reader() -> None:
    reader = Reader()
    assert list(reader.read(data_header(10) + b"abc")) == [b"abc"]
    assert reader.payload_left == 7
    assert not reader.took(7)
    final = FINAL[:-1] + b"\x02"
    assert list(reader.read(final)) == []
    assert not reader.took(1)
    assert reader.took(1)


def test_the_last_payload_of_final_data_comes_before_the_end() -> None:
    assert list(Reader().read(FINAL[:-1] + b"\x02ab")) == [b"ab", Mark.FINAL]


def test_the_words_of_a_reset_are_not_waited_for_beyond_what_is_kept() -> None:
    wire = encode_varint(0x3A85D15D) + encode_varint(MAX_VARINT) + b"\x06" + b"w" * 300
    (said,) = list(Reader().read(wire))
    assert isinstance(said, Reset)
    assert said.code == ResetCode.STOPPED


# --- the first capsule ----------------------------------------------------------------------------


@pytest.mark.parametrize("capsule", [FULL.capsule(), challenge(b"c" * 32), reset(9, "a 0")], ids=str)
def test_the_first_capsule_is_taken_and_the_rest_is_left(capsule: bytes) -> None:
    (expected,) = Reader().read(capsule)
    for cut in range(len(capsule)):
        reader = FirstCapsule()
        assert reader.receive(capsule[:cut]) is None
        assert reader.receive(capsule[cut:] + b"more") == expected
        assert reader.rest == b"more"


@pytest.mark.parametrize("capsule", [data_header(5) + b"ab", KEEPALIVE, ack(0), PING, FINAL, b"\x3f"])
def test_a_first_capsule_that_is_none_of_ours_is_left_whole(capsule: bytes) -> None:
    reader = FirstCapsule()
    assert reader.receive(capsule) is Mark.OTHER
    assert reader.rest == capsule


def test_a_first_capsule_of_the_wrong_length_is_refused_at_its_head() -> None:
    with pytest.raises(Violation):
        FirstCapsule().receive(encode_varint(HELLO_TYPE) + encode_varint(MAX_HELLO + 1))


# --- gone, and what errors say --------------------------------------------------------------------


def test_a_server_that_does_not_know_a_session_names_itself() -> None:
    for node, said in (("a", Gone("a", 1_790_000_000)), ("", Gone("", 1_790_000_000))):
        (answer,) = Reader().read(gone(node, 1_790_000_000))
        assert isinstance(answer, Reset)
        assert answer.code == ResetCode.GONE
        assert parse_gone(answer.words) == said


@pytest.mark.parametrize("words", ["", "-", "gone", "A 12", "a b c", "a 99999999999999999", "é 1"])
def test_other_words_of_gone_are_no_error(words: str) -> None:
    assert parse_gone(words)[1:] in ((0,), (12,), (1,))


@pytest.mark.parametrize(("error", "code"), [(Violation, 8), (Gap, 10), (NotYours, 11), (Stale, 13)])
def test_an_error_has_the_reset_that_answers_it(error: type[Violation], code: int) -> None:
    assert list(Reader().read(error("why").capsule())) == [Reset(code, "why")]


# --- proofs ---------------------------------------------------------------------------------------

CLAIM = Claim(
    role=Role.CLIENT,
    session="a-5f0c9a3be172",
    attempt=3,
    received=10,
    acked=9,
    server_nonce=b"s" * 32,
    client_nonce=b"c" * 32,
)


def test_a_proof_is_hmac_over_what_the_page_lists() -> None:
    message = (
        b"http2tcp resume 1\x00client\x00a-5f0c9a3be172\x00" + b"s" * 32 + b"c" * 32
        + (10).to_bytes(8, "big") + (9).to_bytes(8, "big") + (3).to_bytes(8, "big")
    )  # fmt: skip
    assert CLAIM.prove(b"k" * 32) == hmac.new(b"k" * 32, message, hashlib.sha256).digest()


def test_a_proof_holds_for_what_it_covers_and_for_nothing_else() -> None:
    secret = b"k" * 32
    proof = CLAIM.prove(secret)
    assert CLAIM.holds(secret, proof)
    assert not CLAIM.holds(b"K" * 32, proof)
    assert not CLAIM.holds(secret, proof[:-1])
    assert not CLAIM.holds(secret, bytes([proof[0] ^ 1]) + proof[1:])
    for other in (
        replace(CLAIM, role=Role.SERVER),
        replace(CLAIM, session="b-5f0c9a3be172"),
        replace(CLAIM, attempt=4),
        replace(CLAIM, received=11),
        replace(CLAIM, acked=8),
        replace(CLAIM, server_nonce=b"t" * 32),
        replace(CLAIM, client_nonce=b"d" * 32),
        replace(CLAIM, server_nonce=b"c" * 32, client_nonce=b"s" * 32),
    ):
        assert not other.holds(secret, proof), other
