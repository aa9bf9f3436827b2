"""The client's address behind trusted proxies: what a proxy says counts, what a client says never does."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from http2tcp.protocol.forwarded import Peer, TrustedProxy, client_address, is_trusted, unmapped

XFF, FORWARDED = "X-Forwarded-For", "Forwarded"
LOCALHOST = ip_address("127.0.0.1")
TRUSTED: list[TrustedProxy] = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")]


def client(*values: str, header: str = XFF, peer: Peer = LOCALHOST, trusted: Any = TRUSTED) -> str:
    """The client's address as the log shows it."""
    lines = [value.encode("latin-1") for value in values]
    return str(client_address(peer, lines, header=header, trusted=trusted))


def test_the_peer_is_the_client_where_no_proxy_is_trusted() -> None:
    assert client("203.0.113.7", trusted=[]) == "127.0.0.1"


@pytest.mark.parametrize("peer", ["198.51.100.1", "2001:db8:2::1", "11.0.0.1", "::1"])
def test_a_peer_that_is_not_trusted_is_the_client_whatever_it_says(peer: str) -> None:
    assert client("203.0.113.7", peer=ip_address(peer)) == peer
    assert client("for=203.0.113.7", header=FORWARDED, peer=ip_address(peer)) == peer


def test_a_trusted_peer_that_says_nothing_is_the_client() -> None:
    assert client() == "127.0.0.1"
    assert client(header=FORWARDED) == "127.0.0.1"


def test_the_peer_at_a_unix_socket_is_trusted_where_unix_is() -> None:
    assert client("203.0.113.7", peer="unix") == "unix"
    assert client("203.0.113.7", peer="unix", trusted=["unix"]) == "203.0.113.7"
    assert client("203.0.113.7", peer="unix", trusted=[ip_network("0.0.0.0/0"), ip_network("::/0")]) == "unix"
    assert client("203.0.113.7", trusted=["unix"]) == "127.0.0.1"


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        (["203.0.113.7,10.1.2.3,10.1.2.4,2001:db8:1::9"], "203.0.113.7"),
        # What a client made up stands on the left of its own address.
        (["6.6.6.6, 203.0.113.7"], "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        (["10.9.9.9, 203.0.113.7"], "203.0.113.7"),
        (["127.0.0.1,127.0.0.1 , 203.0.113.7\t, 10.1.2.3"], "203.0.113.7"),
        (["nonsense, 203.0.113.7"], "203.0.113.7"),
        (['"unbalanced, 203.0.113.7'], "203.0.113.7"),
        # Proxies that add a line in place of an element.
        (["6.6.6.6", "203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7", "10.1.2.3"], "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7", "10.1.2.3", "10.1.2.4, 10.1.2.5"], "203.0.113.7"),
        # All of them are ours: the farthest.
        (["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
        (["10.1.2.3"], "10.1.2.3"),
    ],
)
def test_the_client_is_the_right_most_address_that_is_no_proxy_of_ours(values: list[str], address: str) -> None:
    assert client(*values) == address


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("203.0.113.7:51234", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:51234", "2001:db8::7"),
        ('"203.0.113.7"', "203.0.113.7"),
        ('"[2001:db8::7]:51234"', "2001:db8::7"),
        (" \t203.0.113.7\t ", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:cb00:7107]:51234", "203.0.113.7"),
    ],
)
def test_an_address_is_understood_in_every_form_that_proxies_write(hop: str, address: str) -> None:
    assert client(hop) == address
    assert client(f"6.6.6.6, {hop}, 10.1.2.3") == address
    assert client(hop, header="X-Real-IP") == address


@pytest.mark.parametrize(
    "hop",
    [
        "", " ", "-", "unknown", "_hidden", "unix:", "localhost", "client.example", "203.0.113", "203.0.113.256",
        "203.0.113.07", "203.0.113.7:", "203.0.113.7:port", "203.0.113.7:123456", "203.0.113.7 6.6.6.6", "3405803783",
        "0xcb007107", "203.0.113.7/32", "fe80::1%eth0", "[fe80::1%eth0]", "[2001:db8::7", "2001:db8::7]", "[]", "[::]x",
        '"', '""', '"203.0.113.7', "'203.0.113.7'", "for=203.0.113.7", "\xb2.0.0.1", "\x00", "a\nclient=6.6.6.6",
        "1" * 9000,
    ],
)  # fmt: skip
def test_what_is_no_address_ends_the_walk_at_the_last_that_was_one(hop: str) -> None:
    assert client(hop) == "127.0.0.1"
    assert client(f"203.0.113.7, {hop}, 10.1.2.3") == "10.1.2.3"
    assert client("203.0.113.7", hop, "10.1.2.3, 10.1.2.4") == "10.1.2.3"


def test_an_ipv4_mapped_hop_is_trusted_as_the_address_that_it_is() -> None:
    assert client("203.0.113.7, ::ffff:10.1.2.3") == "203.0.113.7"


def test_ten_kilobytes_of_hops_are_walked() -> None:
    hops = ["203.0.113.7", *(["10.1.2.3"] * 1200)]
    assert len(", ".join(hops)) > 10_000
    assert client(", ".join(hops)) == "203.0.113.7"
    assert client(*hops) == "203.0.113.7"
    assert client(*(f"for={hop}" for hop in hops), header=FORWARDED) == "203.0.113.7"


@pytest.mark.parametrize(
    "filler", [",", '"', '\\"', ';",', "; ", "for=,", 'for="', "for=10.1.2.3,", "a=b;", '="', "\\"]
)
def test_a_header_of_sixteen_kilobytes_takes_no_time(filler: str) -> None:
    """It would take minutes where its parts could be read in many ways."""
    for header in (XFF, FORWARDED):
        client(filler * (16384 // len(filler)), header=header)
        client(filler * (16384 // len(filler)) + ", for=10.1.2.3", header=header)


# --- RFC 7239 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["for=203.0.113.7"], "203.0.113.7"),
        (["For=203.0.113.7;Proto=https;by=10.1.2.3;host=example.com"], "203.0.113.7"),
        (["proto=https;for=203.0.113.7"], "203.0.113.7"),
        (['for="203.0.113.7:51234"'], "203.0.113.7"),
        (['for="203.0.113.7:_hidden"'], "203.0.113.7"),
        (['for="[2001:db8::7]"'], "2001:db8::7"),
        (['for="[2001:db8::7]:51234";by="[2001:db8:1::9]"'], "2001:db8::7"),
        # Not quoted, which is against the grammar and common.
        (["for=[2001:db8::7]:51234"], "2001:db8::7"),
        (["for=2001:db8::7"], "2001:db8::7"),
        (['for="\\2\\03.0.113.7"'], "203.0.113.7"),
        (["for=203.0.113.7;;proto=https;"], "203.0.113.7"),
        ([" for=203.0.113.7 ; proto=https "], "203.0.113.7"),
        (["for=6.6.6.6, for=203.0.113.7, for=10.1.2.3"], "203.0.113.7"),
        (["for=6.6.6.6", 'for=203.0.113.7;host="a,b\\"c;d"', 'for=10.1.2.3;host="for=6.6.6.6"'], "203.0.113.7"),
        # A client cannot hide behind a quote that it does not close.
        (['for="6.6.6.6', "for=203.0.113.7", "for=10.1.2.3"], "203.0.113.7"),
        (['for="6.6.6.6\\', 'for="203.0.113.7";host="x"'], "203.0.113.7"),
        # Nor does its Host become an element, where a proxy quotes it.
        (['for=203.0.113.7;host="x, for=6.6.6.6"'], "203.0.113.7"),
        (['for=203.0.113.7;host="x\\", for=6.6.6.6;y=\\"z"'], "203.0.113.7"),
        (['for=203.0.113.7;host="x\\\\"', "for=10.1.2.3"], "203.0.113.7"),
    ],
)
def test_forwarded_is_read_as_its_rfc_has_it(values: list[str], address: str) -> None:
    assert client(*values, header=FORWARDED) == address
    assert client(*values, header="forwarded") == address


@pytest.mark.parametrize(
    "element",
    [
        "", "203.0.113.7", "for", "for=", "for=unknown", "for=_hidden", 'for="_hidden:_port"', "by=203.0.113.7",
        'for=""', "for=203.0.113.7;for=6.6.6.6", "for=203.0.113.7 by=6.6.6.6", "for = 203.0.113.7",
        'for="203.0.113.7"x', "for=203.0.113.7;=x", "for=203.0.113.7;x", 'x="y;for=203.0.113.7', "xfor=203.0.113.7",
    ],
)  # fmt: skip
def test_an_element_that_names_no_address_ends_the_walk(element: str) -> None:
    assert client(element, header=FORWARDED) == "127.0.0.1"
    assert client(f"for=203.0.113.7, {element}, for=10.1.2.3", header=FORWARDED) == "10.1.2.3"


@pytest.mark.parametrize(
    "end",
    [
        # How the element before ours ends: closed, never closed, with commas in it.
        'x="y"',
        'x="y\\"',
        'x="y\\\\"',
        'x="y\\\\\\"',
        'x="a, b"',
        'x="a\\", b"',
        'x="a", b"',
        'x="',
        "x=\\",
    ],
)
def test_nothing_before_our_proxies_element_reaches_into_it(end: str) -> None:
    assert client(f"for=6.6.6.6;{end}, for=203.0.113.7", header=FORWARDED) == "203.0.113.7"
    assert client(f'for=6.6.6.6;{end}, for="203.0.113.7"', header=FORWARDED) == "203.0.113.7"
    assert client(f'for=6.6.6.6;{end}, for=203.0.113.7;z="a, b\\", c"', header=FORWARDED) == "203.0.113.7"


@pytest.mark.parametrize(
    ("quoted", "address"),
    [
        # Inside quotes a comma divides nothing, and a quote after an odd number of backslashes ends nothing.
        ('"a, for=6.6.6.6"', "203.0.113.7"),
        ('"\\", for=6.6.6.6"', "203.0.113.7"),
        ('"\\\\\\", for=6.6.6.6"', "203.0.113.7"),
        ('"\\\\, for=6.6.6.6"', "203.0.113.7"),
        # After an even number it does: what follows is an element, and it names no address.
        ('"\\\\", for=x"', "127.0.0.1"),
    ],
)
def test_a_comma_in_quotes_divides_nothing(quoted: str, address: str) -> None:
    assert client(f"for=203.0.113.7;host={quoted}", header=FORWARDED) == address


def test_other_header_fields_are_no_forwarded() -> None:
    assert client("for=203.0.113.7", header=XFF) == "127.0.0.1"
    assert client("203.0.113.7", header=FORWARDED) == "127.0.0.1"


def test_a_peer_on_a_socket_for_both_families_is_its_ipv4_address() -> None:
    assert str(unmapped(ip_address("::ffff:10.1.2.3"))) == "10.1.2.3"
    assert str(unmapped(ip_address("10.1.2.3"))) == "10.1.2.3"
    assert str(unmapped(ip_address("2001:db8::1"))) == "2001:db8::1"


def test_a_link_local_proxy_is_trusted_by_its_network() -> None:
    assert is_trusted(ip_address("fe80::1%eth0"), [ip_network("fe80::/10")])
    assert not is_trusted(ip_address("fe80::1%eth0"), [ip_network("fd00::/8")])
