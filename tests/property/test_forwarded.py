"""No header makes the server fail, and none that a client sends through a trusted proxy changes its address."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http2tcp.protocol.forwarded import TrustedProxy, client_address, unmapped

PEER = ip_address("127.0.0.1")
TRUSTED: list[TrustedProxy] = [
    ip_network("127.0.0.0/8"),
    ip_network("10.0.0.0/8"),
    ip_network("2001:db8:1::/48"),
    "unix",
]
PROXIES = st.sampled_from([ip_address(text) for text in ("127.0.0.1", "127.9.9.9", "10.1.2.3", "2001:db8:1::9")])

PIECES = [
    ",", ", ", '"', "\\", '\\"', ";", "=", "for=", "For=", 'for="', "10.1.2.3", "6.6.6.6", "[2001:db8:1::9]", "[", "]",
    ":80", "unknown", "host=x", " ", "\t", "\xff", "\0", "%eth0", "::ffff:10.1.2.3",
]  # fmt: skip
made_up = st.lists(st.one_of(st.sampled_from(PIECES), st.text(alphabet=string.printable, max_size=5)), max_size=20).map(
    lambda pieces: "".join(pieces).encode("latin-1")
)
headers = st.sampled_from(["X-Forwarded-For", "Forwarded", "X-Real-IP"])


@given(values=st.lists(st.one_of(made_up, st.binary(max_size=200)), max_size=4), header=headers)
def test_every_header_gives_an_address_or_the_peer(values: list[bytes], header: str) -> None:
    for peer in (PEER, "unix"):
        found = client_address(peer, values, header=header, trusted=TRUSTED)
        assert found == peer or isinstance(found, IPv4Address | IPv6Address)
        # Nothing that the log shows is the client's own words.
        assert set(str(found)) <= set("0123456789abcdef.:") or found == "unix"


@given(values=st.lists(st.one_of(made_up, st.binary(max_size=200)), max_size=4), header=headers)
def test_nothing_counts_that_comes_from_elsewhere(values: list[bytes], header: str) -> None:
    stranger = ip_address("198.51.100.1")
    assert client_address(stranger, values, header=header, trusted=TRUSTED) == stranger
    assert client_address(PEER, values, header=header, trusted=[]) == PEER


def hop(address: IPv4Address | IPv6Address, port: int | None) -> str:
    """As proxies write it in a list."""
    host = f"[{address}]" if port is not None and address.version == 6 else str(address)
    return host if port is None else f"{host}:{port}"


def element(address: IPv4Address | IPv6Address, port: int | None, host: str) -> str:
    """As proxies write it in `Forwarded`, with the client's Host quoted as it has to be."""
    node = f"[{address}]" if address.version == 6 else str(address)
    quoted = host.replace("\\", "\\\\").replace('"', '\\"')
    return f'for="{node}{"" if port is None else f":{port}"}";host="{quoted}";proto=https'


strangers = st.ip_addresses().filter(
    lambda address: not any(network != "unix" and unmapped(address) in network for network in TRUSTED)
)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
@given(
    sent=st.lists(made_up, max_size=3),
    address=strangers,
    proxies=st.lists(PROXIES, max_size=4),
    port=st.one_of(st.none(), st.integers(0, 65535)),
    host=st.one_of(made_up.map(lambda value: value.decode("latin-1")), st.just('x", for=6.6.6.6')),
    own_line=st.booleans(),
)
def test_a_client_cannot_change_its_address_by_what_it_sends_through_our_proxies(
    header: str,
    sent: list[bytes],
    address: IPv4Address | IPv6Address,
    proxies: list[IPv4Address | IPv6Address],
    port: int | None,
    host: str,
    own_line: bool,
) -> None:
    added = [hop(seen, port) if header != "Forwarded" else element(seen, port, host) for seen in (address, *proxies)]
    if own_line:
        values = [*sent, *(value.encode("latin-1") for value in added)]
    else:
        # nginx's $proxy_add_x_forwarded_for and its like.
        values = [b", ".join([*sent, *(value.encode("latin-1") for value in added)])]
    assert client_address(PEER, values, header=header, trusted=TRUSTED) == unmapped(address)
