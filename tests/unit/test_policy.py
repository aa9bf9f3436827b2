"""Who may go where: tokens, the pinned destination, Unix sockets, and addresses closed to everybody."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from http2tcp.address import TCPAddress, UnixAddress
from http2tcp.errors import Forbidden, Unauthorized
from http2tcp.policy import Grant, Policy, forbidden
from tests.support.embeddings import EMBEDDINGS, Embed

CLOSED_IPV4 = [
    "169.254.0.0",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.255.255",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
]
OPEN_IPV4 = [
    "169.253.255.255",
    "169.255.0.0",
    "100.100.100.199",
    "100.100.100.201",
    "168.63.129.15",
    "192.0.0.191",
    "127.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "192.168.1.1",
    "8.8.8.8",
]


@pytest.mark.parametrize("text", CLOSED_IPV4)
def test_metadata_and_link_local_ipv4_is_closed(text: str) -> None:
    assert forbidden(IPv4Address(text))


@pytest.mark.parametrize("text", OPEN_IPV4)
def test_its_neighbours_and_private_addresses_are_open(text: str) -> None:
    assert not forbidden(IPv4Address(text))


@pytest.mark.parametrize("text", CLOSED_IPV4)
@pytest.mark.parametrize("embed", EMBEDDINGS, ids=list(EMBEDDINGS))
def test_a_closed_address_stays_closed_inside_an_ipv6_one(embed: str, text: str) -> None:
    assert forbidden(EMBEDDINGS[embed](IPv4Address(text)))


@pytest.mark.parametrize("embed", ["mapped", "compatible", "translated", "NAT64", "6to4"])
def test_an_open_address_stays_open_inside_an_ipv6_one(embed: str) -> None:
    inside: Embed = EMBEDDINGS[embed]
    assert not forbidden(inside(IPv4Address("10.0.0.1")))


@pytest.mark.parametrize(
    "text",
    [
        "::ffff:169.254.169.254",
        "::FFFF:A9FE:A9FE",
        "0:0:0:0:0:ffff:a9fe:a9fe",
        "::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "2002:a9fe:a9fe:1:2:3:4:5",
        "fe80::1",
        "febf:ffff::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd00:0ec2:0:0:0:0:0:0254",
    ],
)
def test_every_spelling_of_a_closed_ipv6_address_is_closed(text: str) -> None:
    assert forbidden(ip_address(text))


@pytest.mark.parametrize(
    "text", ["::1", "::", "fd00:ec2::253", "fec0::1", "fe7f::1", "2001:db8::1", "2002:7f00:1::", "2606:4700::1111"]
)
def test_other_ipv6_addresses_are_open(text: str) -> None:
    assert not forbidden(IPv6Address(text))


# --- tokens -----------------------------------------------------------------------------------

DB = TCPAddress("db", 5432)
SSHD = TCPAddress("localhost", 22)


def test_any_of_the_tokens_opens() -> None:
    policy = Policy(["one", "two"], SSHD)
    for token in ("one", "two"):
        grant = policy.authenticate(token)
        assert grant.default == SSHD
        grant.permit(DB)


@pytest.mark.parametrize("token", [None, "", " ", "on", "one ", "ONE", "onetwo", "one\0", "\udcff", "one,two"])
def test_a_wrong_token_is_refused(token: str | None) -> None:
    with pytest.raises(Unauthorized):
        Policy(["one", "two"]).authenticate(token)


def test_a_token_beyond_ascii_is_known_again_by_its_bytes() -> None:
    Policy(["schlüssel"]).authenticate("schlüssel")
    with pytest.raises(Unauthorized):
        Policy(["schlüssel"]).authenticate("schlu\u0308ssel")


@pytest.mark.parametrize("token", [None, "whatever"])
def test_without_a_token_only_the_pinned_destination_can_be_reached(token: str | None) -> None:
    grant = Policy([], SSHD).authenticate(token)
    grant.permit(SSHD)
    for other in (DB, TCPAddress("localhost", 23), TCPAddress("127.0.0.1", 22), UnixAddress("/run/docker.sock")):
        with pytest.raises(Forbidden):
            grant.permit(other)


def test_a_unix_socket_can_be_reached_only_where_the_server_pins_that_very_path() -> None:
    pinned = UnixAddress("/run/sshd.sock")
    grant = Policy(["one"], pinned).authenticate("one")
    grant.permit(pinned)
    grant.permit(DB)
    for path in ("/run/docker.sock", "/run/../run/sshd.sock", "/run/sshd.sock/"):
        with pytest.raises(Forbidden):
            grant.permit(UnixAddress(path))
    with pytest.raises(Forbidden):
        Policy(["one"]).authenticate("one").permit(pinned)


def test_a_grant_without_anything_pinned_permits_nothing() -> None:
    with pytest.raises(Forbidden):
        Grant(None, pinned=True).permit(DB)


def test_a_policy_does_not_show_its_tokens() -> None:
    assert "hunter2" not in repr(Policy(["hunter2"], SSHD))
