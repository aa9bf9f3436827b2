"""What `allow` and `deny` may say, and the sentences for what they may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http2tcp.address import TCPAddress, UnixAddress, parse_network
from http2tcp.errors import AddressError
from http2tcp.server.rules import parse_rule


@pytest.mark.parametrize(
    "text",
    [
        *("bastion:22", "Bastion.Example.:22", "*.prod.svc:22", "10.20.0.0/16:5432", "[fd00::/8]:22", "fd00::/8:22"),
        *(
            "10.0.0.1:22",
            "[::1]:22",
            "1:2:3:4:5:6:7:8:22",
            "db:5432-5439",
            "db:*",
            "*:443",
            "*:*",
            "unix:/run/x.sock",
            "a_b:1",
        ),
    ],
)
def test_a_rule_is_shown_as_it_was_written(text: str) -> None:
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bastion", "expected HOST:PORT"),
        ("10.0.0.0/8", "expected HOST:PORT"),
        ("[fd00::/8]", "expected HOST:PORT"),
        (":22", "expected HOST:PORT"),
        ("", "expected HOST:PORT"),
        ("db:", "expected a port"),
        ("db:0", "expected a port"),
        ("db:65536", "expected a port"),
        ("db:30-20", "expected a port"),
        ("db:-20", "expected a port"),
        ("db:\u0662\u0662", "expected a port"),
        ("db:ssh", "expected a port"),
        ("10.20.0.1/16:22", "the network is 10.20.0.0/16"),
        ("10.20.0.0/33:22", "neither an address nor a network"),
        ("300.1.1.1:22", "neither an address nor a network"),
        ("127.1:22", "neither an address nor a network"),
        ("2130706433:22", "neither an address nor a network"),
        ("0x7f.0.0.1:22", "expected a host name"),
        ("[::ffff:10.0.0.0/104]:22", "write IPv4 addresses as such"),
        ("*.:22", "expected a host name"),
        ("*.*.svc:22", "a \\* may stand"),
        ("db*.svc:22", "a \\* may stand"),
        ("a b:22", "expected a host name"),
        ("db\n:22", "expected a host name"),
        ("unix:run/x", "absolute path"),
        ("unix:/run/*", "whole path"),
        ("/run/x.sock", "unix:/PATH"),
        ("tcp://db:22", "expected HOST:PORT"),
        # A firewall's words for every address.
        *((f"{text}:25", "\\*:25") for text in ("any", "ALL", "0.0.0.0", "[::]")),
        ("::1", "\\[::1\\]:PORT"),
        # An address with a port, or an address of which the port was forgotten?
        ("::1:22", "\\[::1\\]:22.*\\[::1:22\\]:\\*"),
        ("2001:db8::5:443", "\\[2001:db8::5\\]:443.*\\[2001:db8::5:443\\]:\\*"),
    ],
)
def test_a_rule_that_could_mean_something_else_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words) as caught:
        parse_rule(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30) | st.from_regex(r"[*.0-9a-f:/\[\]-]{1,20}:[0-9*-]{1,6}", fullmatch=True))
def test_any_text_is_a_rule_or_an_address_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except AddressError:
        return
    rule.matches_name(TCPAddress("db", 22))
    rule.matches_name(UnixAddress("/run/x"))


def test_ports_are_one_a_range_or_all() -> None:
    for text, inside, outside in (("db:22", 22, 23), ("db:20-29", 29, 30), ("db:20-29", 20, 19)):
        assert parse_rule(text).matches_name(TCPAddress("db", inside))
        assert not parse_rule(text).matches_name(TCPAddress("db", outside))
    assert parse_rule("db:*").matches_name(TCPAddress("db", 65535))


def test_a_name_rule_never_matches_an_address_that_looks_like_it() -> None:
    for text in ("*.0.0.1:22", "*.1:22"):
        with pytest.raises(AddressError):
            parse_rule(text)


def test_a_network_is_an_address_or_cidr() -> None:
    assert str(parse_network("10.0.0.0/8")) == "10.0.0.0/8"
    assert str(parse_network("::1")) == "::1/128"
    for text in ("db", "10.0.0.1/8", "10.0.0.0/8:22", ""):
        with pytest.raises(AddressError):
            parse_network(text)
