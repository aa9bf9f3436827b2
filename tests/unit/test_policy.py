"""Who may go where: tokens, the pinned destination, Unix sockets, and addresses closed to everybody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from http2tcp.address import TCPAddress, UnixAddress, parse_destination
from http2tcp.errors import AddressError, Forbidden, TokenExpired, Unauthorized
from http2tcp.server.policy import Grant, Policy, Token, digest, forbidden
from http2tcp.server.rules import parse_rule
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
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:100::100:200",
        "fd00:a9fe:a9fe::1",
        "fd00:42::42",
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
NOW = 1_800_000_000.0


def test_any_of_the_tokens_opens() -> None:
    policy = Policy(["one", "two"], SSHD)
    for token in ("one", "two"):
        grant = policy.authenticate(token, NOW)
        assert grant.default == SSHD
        grant.admit(DB)


@pytest.mark.parametrize("token", [None, "", " ", "on", "one ", "ONE", "onetwo", "one\0", "\udcff", "one,two"])
def test_a_wrong_token_is_refused(token: str | None) -> None:
    with pytest.raises(Unauthorized):
        Policy(["one", "two"]).authenticate(token, NOW)


def test_a_token_beyond_ascii_is_known_again_by_its_bytes() -> None:
    Policy(["schlüssel"]).authenticate("schlüssel", NOW)
    with pytest.raises(Unauthorized):
        Policy(["schlüssel"]).authenticate("schlu\u0308ssel", NOW)


@pytest.mark.parametrize("token", [None, "whatever"])
def test_without_a_token_only_the_pinned_destination_can_be_reached(token: str | None) -> None:
    grant = Policy([], SSHD).authenticate(token, NOW)
    grant.admit(SSHD)
    for other in (DB, TCPAddress("localhost", 23), TCPAddress("127.0.0.1", 22), UnixAddress("/run/docker.sock")):
        with pytest.raises(Forbidden):
            grant.admit(other)


def test_a_unix_socket_can_be_reached_only_where_the_server_pins_that_very_path() -> None:
    pinned = UnixAddress("/run/sshd.sock")
    grant = Policy(["one"], pinned).authenticate("one", NOW)
    grant.admit(pinned)
    grant.admit(DB)
    for path in ("/run/docker.sock", "/run/../run/sshd.sock", "/run/sshd.sock/"):
        with pytest.raises(Forbidden):
            grant.admit(UnixAddress(path))
    with pytest.raises(Forbidden):
        Policy(["one"]).authenticate("one", NOW).admit(pinned)


def test_a_grant_without_anything_pinned_permits_nothing() -> None:
    with pytest.raises(Forbidden):
        Grant(None, None, pinned=True).admit(DB)


def test_a_policy_does_not_show_its_tokens() -> None:
    assert "hunter2" not in repr(Policy(["hunter2"], SSHD))


# --- tokens with names, times and rules ---------------------------------------------------------


def token(*allow: str, deny: Sequence[str] = (), expires: float = math.inf) -> Token:
    rules = [parse_rule(text) for text in allow] or None
    return Token("alice", digest("secret"), expires, rules, [parse_rule(text) for text in deny])


def grant(*allow: str, deny: Sequence[str] = ()) -> Grant:
    """The grant of a token with these rules."""
    return Policy([token(*allow, deny=deny)]).authenticate("secret", NOW)


def admits(rules: Grant, destination: str, *addresses: str) -> bool:
    """Whether it is admitted, and at least one of these addresses may be dialled."""
    try:
        admission = rules.admit(parse_destination(destination))
    except Forbidden:
        return False
    return not addresses or any(not admission.refusal(ip_address(address)) for address in addresses)


def test_a_token_expires_and_the_answer_does_not_say_so() -> None:
    policy = Policy([token(expires=NOW)])
    policy.authenticate("secret", NOW - 0.001)
    with pytest.raises(TokenExpired) as expired:
        policy.authenticate("secret", NOW)
    with pytest.raises(Unauthorized) as unknown:
        policy.authenticate("another", NOW)
    assert str(expired.value) == str(unknown.value)
    assert expired.value.headers == unknown.value.headers
    assert expired.value.name == "alice"


def test_a_token_shows_neither_itself_nor_its_digest() -> None:
    assert digest("secret").hex() not in repr(token())
    assert repr(digest("secret")) not in repr(token())


@pytest.mark.parametrize("destination", ["bastion:22", "BASTION:22", "bastion.:22"])
def test_a_name_rule_allows_the_name_in_every_case_and_with_the_root_s_dot(destination: str) -> None:
    assert admits(grant("bastion:22"), destination, "10.0.0.1")


@pytest.mark.parametrize("destination", ["bastion:23", "bastion2:22", "x.bastion:22", "bastion..:22", "10.0.0.1:22"])
def test_a_name_rule_allows_nothing_else(destination: str) -> None:
    try:
        parse_destination(destination)
    except AddressError:
        return
    assert not admits(grant("bastion:22"), destination, "10.0.0.1")


def test_a_leading_star_allows_what_is_below_the_name_and_not_the_name() -> None:
    rules = grant("*.prod.svc:22")
    assert admits(rules, "db.prod.svc:22", "10.0.0.1")
    assert admits(rules, "a.b.prod.svc.:22", "10.0.0.1")
    for other in (
        *("prod.svc:22", "xprod.svc:22", "db.prod.svc:23", "db.prod.svc.evil:22"),
        # The scope of an address can look like a name.
        "[2001:db8::1%db.prod.svc]:22",
    ):
        assert not admits(rules, other, "10.0.0.1")


def test_an_address_rule_is_applied_to_what_the_name_resolves_to() -> None:
    rules = grant("10.20.0.0/16:5432")
    assert admits(rules, "db:5432", "10.20.1.2")
    assert admits(rules, "db:5432", "192.0.2.1", "::ffff:10.20.1.2")
    assert not admits(rules, "db:5432", "10.21.0.1")
    assert not admits(rules, "db:5433", "10.20.1.2")
    # These lead through somebody's gateway, whose word it would be that they are the same.
    assert not admits(rules, "db:5432", "64:ff9b::10.20.1.2", "2002:0a14:0102::")


def test_an_address_that_is_written_out_is_judged_at_once() -> None:
    rules = grant("10.20.0.0/16:5432", "[fd00::/8]:22", "192.0.2.7:*")
    for inside in ("10.20.1.2:5432", "[::ffff:10.20.1.2]:5432", "[fd00::1]:22", "192.0.2.7:9"):
        assert admits(rules, inside)
    for outside in ("10.21.0.1:5432", "10.20.1.2:22", "[fe00::1]:22", "192.0.2.8:9"):
        assert not admits(rules, outside)


def test_deny_wins_whichever_way_the_address_is_spelled() -> None:
    rules = grant("*:*", deny=["10.20.9.0/24:*", "secret.example:443"])
    assert not admits(rules, "db:22", "10.20.9.1")
    assert not admits(rules, "db:22", "::ffff:10.20.9.1", "64:ff9b::10.20.9.1", "2002:0a14:0901::")
    assert not admits(rules, "secret.example:443")
    assert admits(rules, "secret.example:80", "10.20.8.1")
    assert admits(rules, "db:22", "10.20.9.1", "10.20.8.1")


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "::ffff:0.0.0.0", "::"])
def test_the_address_that_stands_for_this_host_is_closed_with_its_loopback(unspecified: str) -> None:
    rules = grant(deny=["127.0.0.0/8:*", "[::1]:*"])
    assert not admits(rules, "db:22", unspecified)
    # It is nobody's way to an address that was opened under its own name.
    assert not admits(grant("127.0.0.1:22", "[::1]:22"), "db:22", unspecified)
    assert admits(grant(deny=["10.0.0.0/8:*"]), "db:22", unspecified)


def test_a_name_that_is_allowed_has_still_to_pass_deny_and_the_built_in_list() -> None:
    rules = grant("rebind.example:80", deny=["127.0.0.0/8:*"])
    assert not admits(rules, "rebind.example:80", "127.0.0.1")
    assert not admits(rules, "rebind.example:80", "169.254.169.254")
    assert admits(rules, "rebind.example:80", "192.0.2.1")


def test_the_rules_for_all_deny_every_token_and_allow_those_without_their_own() -> None:
    own, none = token("db:5432"), Token("bob", digest("other"))
    policy = Policy([own, none], allow=[parse_rule("web:80")], deny=[parse_rule("*:25")])
    assert admits(policy.authenticate("secret", NOW), "db:5432")
    assert not admits(policy.authenticate("secret", NOW), "web:80")
    assert admits(policy.authenticate("other", NOW), "web:80")
    assert not admits(policy.authenticate("other", NOW), "db:5432")
    assert not admits(Policy([none], deny=[parse_rule("*:25")]).authenticate("other", NOW), "mail:25")


def test_no_star_opens_a_unix_socket() -> None:
    assert not admits(grant("*:*"), "unix:/run/docker.sock")
    assert admits(grant("unix:/run/a.sock"), "unix:/run/a.sock")
    assert not admits(grant("unix:/run/a.sock"), "unix:/run/../run/a.sock")


def test_an_empty_allow_allows_nothing() -> None:
    alone = Policy([Token("alice", digest("secret"), allow=())])
    assert not admits(alone.authenticate("secret", NOW), "db:22")


def test_a_default_destination_is_allowed_by_rules_where_there_are_any() -> None:
    policy = Policy([token("db:5432")], SSHD)
    assert not admits(policy.authenticate("secret", NOW), "localhost:22")
    assert admits(Policy([token()], SSHD).authenticate("secret", NOW), "localhost:22")


@pytest.mark.parametrize(
    ("allow", "told"), [(["db:22"], True), (["*:22"], True), (["10.0.0.0/8:22"], False), ([], True)]
)
def test_only_a_token_that_may_use_a_name_learns_whether_it_exists(allow: list[str], told: bool) -> None:
    assert grant(*allow).admit(TCPAddress("db", 22)).by_name == told


def test_a_token_that_was_taken_away_is_not_found_and_one_that_stays_is_as_it_is_now() -> None:
    known = token()
    later = token(expires=NOW + 5)
    assert Policy([later]).find(known) is later
    assert Policy([Token("bob", digest("other"))]).find(known) is None


# --- why not --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "deny", "destination", "why"),
    [
        (["db:22"], ["db:*"], "db:22", "deny db:*"),
        (["db:22"], [], "web:22", "no rule of allow"),
        (["db:22", "10.0.0.0/8:22"], [], "web:23", "no rule of allow"),
        (["10.0.0.0/8:22"], ["10.9.0.0/16:*"], "10.9.1.1:22", "deny 10.9.0.0/16:*"),
        (["10.0.0.0/8:22"], [], "192.0.2.1:22", "no rule of allow"),
        (["169.254.0.0/16:80"], [], "169.254.169.254:80", "closed to everybody"),
        (["*:*"], [], "unix:/run/a.sock", "Unix socket"),
        ([], [], "unix:/run/a.sock", "Unix socket"),
    ],
)
def test_an_operator_is_told_what_closes_a_destination(
    allow: list[str], deny: list[str], destination: str, why: str
) -> None:
    with pytest.raises(Forbidden) as refused:
        grant(*allow, deny=deny).admit(parse_destination(destination))
    assert why in refused.value.rule
    # The client is not.
    assert str(refused.value) == Forbidden.text


def test_an_operator_is_told_which_rule_opens_or_closes_an_address() -> None:
    admission = grant("10.0.0.0/8:22", "[fd00::/8]:22", deny=["10.9.0.0/16:*"]).admit(TCPAddress("db", 22))
    assert str(admission.admitting(ip_address("::ffff:10.1.2.3"))) == "10.0.0.0/8:22"
    assert str(admission.admitting(ip_address("fd00::1"))) == "[fd00::/8]:22"
    assert admission.admitting(ip_address("192.0.2.1")) is None
    assert admission.refusal(ip_address("10.1.2.3")) == ""
    assert admission.refusal(ip_address("10.9.2.3")) == "deny 10.9.0.0/16:*"
    assert "no rule of allow" in admission.refusal(ip_address("192.0.2.1"))
    assert "everybody" in admission.refusal(ip_address("::ffff:169.254.169.254"))


def test_without_a_token_an_operator_is_told_so() -> None:
    with pytest.raises(Forbidden) as refused:
        Policy([], SSHD).authenticate(None, NOW).admit(DB)
    assert "without a token" in refused.value.rule
