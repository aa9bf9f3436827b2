"""What -L and -D take, in all of ssh's spellings, and what they make of a mistake."""

from __future__ import annotations

import pytest

from http2tcp.address import Address, TCPAddress, UnixAddress
from http2tcp.client.forwards import Forward, parse_dynamic_forward, parse_local_forward
from http2tcp.errors import AddressError

DB = TCPAddress("db", 5432)


@pytest.mark.parametrize(
    ("text", "listen", "destination"),
    [
        ("5432:db:5432", TCPAddress("127.0.0.1", 5432), DB),
        ("0:db:5432", TCPAddress("127.0.0.1", 0), DB),
        ("localhost:5433:db:5432", TCPAddress("localhost", 5433), DB),
        ("10.0.0.1:5433:DB:5432", TCPAddress("10.0.0.1", 5433), DB),
        ("[::1]:5433:db:5432", TCPAddress("::1", 5433), DB),
        (":5433:db:5432", TCPAddress("", 5433), DB),
        ("*:5433:db:5432", TCPAddress("", 5433), DB),
        ("[::]:5433:db:5432", TCPAddress("::", 5433), DB),
        ("5433:[2001:db8::1]:5432", TCPAddress("127.0.0.1", 5433), TCPAddress("2001:db8::1", 5432)),
        ("[::1]:5433:[2001:db8::1]:5432", TCPAddress("::1", 5433), TCPAddress("2001:db8::1", 5432)),
        ("5433::5432", TCPAddress("127.0.0.1", 5433), TCPAddress("localhost", 5432)),
        ("/run/pg.sock:db:5432", UnixAddress("/run/pg.sock"), DB),
        ("unix:/run/pg.sock:db:5432", UnixAddress("/run/pg.sock"), DB),
        ("/tmp/a b/[x].sock:db:5432", UnixAddress("/tmp/a b/[x].sock"), DB),
        ("5433:/run/pg.sock", TCPAddress("127.0.0.1", 5433), UnixAddress("/run/pg.sock")),
        ("*:5433:unix:/run/pg.sock", TCPAddress("", 5433), UnixAddress("/run/pg.sock")),
        ("/tmp/here.sock:/run/there.sock", UnixAddress("/tmp/here.sock"), UnixAddress("/run/there.sock")),
        ("unix:/tmp/here.sock:unix:/run/there.sock", UnixAddress("/tmp/here.sock"), UnixAddress("/run/there.sock")),
    ],
)
def test_a_local_forward_is_read_as_ssh_reads_it(text: str, listen: Address, destination: Address) -> None:
    assert parse_local_forward(text) == Forward(listen, destination)


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("1080", TCPAddress("127.0.0.1", 1080)),
        ("localhost:1080", TCPAddress("localhost", 1080)),
        ("[::1]:1080", TCPAddress("::1", 1080)),
        (":1080", TCPAddress("", 1080)),
        ("*:1080", TCPAddress("", 1080)),
        ("/run/socks", UnixAddress("/run/socks")),
        ("unix:/run/socks", UnixAddress("/run/socks")),
    ],
)
def test_a_dynamic_forward_is_read_as_ssh_reads_it(text: str, listen: Address) -> None:
    assert parse_dynamic_forward(text) == Forward(listen, socks=True)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "::", "5432", "5432:db", "db:5432", "5432:db:", ":db:5432", "a:b:c:5432:5", "5432:db:5432:"),
        *("::1:5433:db:5432", "5433:2001:db8::1:5432", "[::1:5433:db:5432", "5433:[::1:5432", "5433:[::1]x:5432"),
        *("x:db:5432", "99999:db:5432", "-1:db:5432", "٣:db:5432", "5433:db:0", "5433:db:99999", "5433:d b:5432"),
        *("/:db", "relative.sock:db:5432", "/a:/b:/c", "/a:5433:db:5432", "5433:/a:5432", "5433:db:5432\n"),
        *("a b:5433:db:5432", "[]:5433:db:5432", "5433:[]:5432", "5433:/\x1b[2J", "\udcff:5433:db:5432"),
    ],
)
def test_a_local_forward_that_is_none_is_one_printable_sentence(text: str) -> None:
    with pytest.raises(AddressError, match="expected") as caught:
        parse_local_forward(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["", ":", "x", "99999", "::1:1080", "db:1080:x", "1080:db:22", "/a:/b", "/a:1080", "1080:/a", "a b:1080"]
)
def test_a_dynamic_forward_that_is_none_is_one_printable_sentence(text: str) -> None:
    with pytest.raises(AddressError, match="expected") as caught:
        parse_dynamic_forward(text)
    assert str(caught.value).isprintable()


def test_what_is_forgotten_of_a_local_forward_is_shown_in_ssh_s_words() -> None:
    for text in ("5432", "db:5432"):
        with pytest.raises(AddressError, match=r"expected \[BIND:\]PORT:HOST:HOSTPORT"):
            parse_local_forward(text)


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (Forward(TCPAddress("127.0.0.1", 5432), DB), "127.0.0.1:5432, leads to db:5432"),
        (Forward(UnixAddress("/run/x"), TCPAddress("::1", 22)), "unix:/run/x, leads to [::1]:22"),
        (Forward(TCPAddress("::1", 5432)), "[::1]:5432, leads to the default destination of the server"),
        (Forward(TCPAddress("127.0.0.1", 1080), socks=True), "127.0.0.1:1080, a SOCKS5 proxy"),
    ],
)
def test_a_forward_says_where_it_leads(forward: Forward, line: str) -> None:
    assert str(forward) == line
