"""Heads for h11, one at a time: what it is given, and what it is spared."""

from __future__ import annotations

import pytest

from http2tcp.protocol.heads import MAX_BLANKS, HeadFeed, TooManyBlanks

BLANKS = b" " * (MAX_BLANKS + 1)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
REFUSAL = b"HTTP/1.1 404 Not Found\r\n\r\n"


def given(data: bytes, *, piece: int, opens: bool = False) -> tuple[bytes, HeadFeed]:
    """All that h11 gets of it, in pieces of so many bytes and without an end."""
    taken: list[bytes] = []
    feed = HeadFeed(taken.append, opens=opens)
    for start in range(0, len(data), piece):
        feed.receive(data[start : start + piece])
    return b"".join(taken), feed


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
@pytest.mark.parametrize("data", [SWITCH + b"ssh" + BLANKS, INTERIM + INTERIM + SWITCH + BLANKS, REFUSAL + b"<html>"])
def test_what_follows_the_last_head_is_given_as_it_comes(data: bytes, piece: int) -> None:
    assert given(data, piece=piece)[0] == data


@pytest.mark.parametrize("piece", [1, 1000])
def test_a_head_is_given_whole_or_not_yet(piece: int) -> None:
    assert given(SWITCH[:-1], piece=piece)[0] == b""
    assert given(INTERIM + SWITCH[:-1], piece=piece)[0] == INTERIM


@pytest.mark.parametrize("piece", [1, 1000])
@pytest.mark.parametrize("before", [b"", INTERIM])
@pytest.mark.parametrize("field", [b"a:" + BLANKS + b"\0", b"a: b" + BLANKS, b"a:" + b"\t \r\n " * MAX_BLANKS + b"\0"])
def test_a_head_with_a_row_of_blanks_is_never_given(field: bytes, before: bytes, piece: int) -> None:
    with pytest.raises(TooManyBlanks):
        given(before + b"HTTP/1.1 101 -\r\n" + field + b"\r\n\r\n", piece=piece)


def test_a_head_without_an_end_is_looked_at_too() -> None:
    _, feed = given(b"HTTP/1.1 101 -\r\na:" + BLANKS, piece=1000)
    with pytest.raises(TooManyBlanks):
        feed.give_all()


@pytest.mark.parametrize("piece", [1, 1000])
def test_of_a_page_the_part_before_a_row_of_blanks_is_given(piece: int) -> None:
    data, feed = given(REFUSAL + b"<title>No</title>", piece=piece)
    assert not feed.cut
    feed.receive(BLANKS + b"</html>")
    assert feed.cut
    assert data == REFUSAL + b"<title>No</title>"


def test_blanks_of_a_tunnel_through_a_proxy_are_the_tunnel_s() -> None:
    data = b"HTTP/1.1 200 Connected\r\n\r\n" + BLANKS
    assert given(data, piece=1000, opens=True)[0] == data


def test_the_end_comes_after_all_that_was_held() -> None:
    taken: list[bytes] = []
    feed = HeadFeed(taken.append)
    feed.receive(b"HTTP/1.1 404")
    feed.receive(b"")
    assert taken == [b"HTTP/1.1 404", b""]
