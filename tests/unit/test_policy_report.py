"""What a server's settings amount to, in words that an operator reads before and after a mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from http2tcp.address import parse_destination, parse_listen, parse_network
from http2tcp.command.policy_question import grant_of, judged, why_admitted
from http2tcp.errors import SettingsError
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Policy, Token, digest
from http2tcp.server.policy_report import describe, expiry, reach, who
from http2tcp.server.rules import parse_rule
from http2tcp.server.settings import ServerSettings, ServerTLS

# 2026-07-01, noon in UTC.
NOW = 1_782_907_200.0
MIDNIGHT = NOW + 43_200
DAY = 86_400
SSHD = parse_destination("localhost:22")


def named(
    name: str,
    *allow: str,
    deny: Sequence[str] = (),
    expires: float = math.inf,
    max_tunnels: int | None = None,
) -> Token:
    rules = [parse_rule(text) for text in allow] or None
    return Token(name, digest(name), expires, rules, [parse_rule(text) for text in deny], max_tunnels)


def policy(settings: ServerSettings) -> Policy:
    return Policy(settings.tokens, settings.destination, allow=settings.allow, deny=settings.deny)


def said(settings: ServerSettings) -> str:
    return reach(settings, policy(settings), NOW)


def shown(settings: ServerSettings) -> str:
    return describe(settings, policy(settings), Limits(max_tunnels=4000), NOW)


# --- at the start ---------------------------------------------------------------------------------


def test_a_server_without_any_policy_says_that_it_is_open_to_everything_but_the_built_in_list() -> None:
    open_to_all = "any destination but link-local and metadata addresses, with"
    assert said(ServerSettings(tokens=["x"])) == f"{open_to_all} the token"
    assert said(ServerSettings(tokens=["x", "y"])) == f"{open_to_all} any of 2 tokens"
    assert said(ServerSettings(tokens=[named("alice")])) == f"{open_to_all} the token"


def test_a_server_with_rules_for_every_token_says_so() -> None:
    alice, bob = named("alice", "db:22"), named("bob")
    assert said(ServerSettings(tokens=[alice])) == "what the rules allow, with the token"
    web = [parse_rule("web:80")]
    assert said(ServerSettings(tokens=[alice, bob], allow=web)) == "what the rules allow, with any of 2 tokens"
    assert said(ServerSettings(tokens=[bob], deny=web)) == "what the rules allow, with the token"
    assert said(ServerSettings(tokens=[alice, bob], allow=())) == "what the rules allow, with any of 2 tokens"


def test_a_server_names_those_tokens_that_no_rule_holds() -> None:
    tokens: list[str | Token] = [named("alice", "db:22"), named("bob"), "s3cret"]
    words = said(ServerSettings(tokens=tokens))
    assert words.startswith("what the rules allow, with any of 3 tokens; ")
    assert words.endswith("metadata addresses: bob, the token without a name")
    assert "s3cret" not in words
    many = [named("alice", "db:22"), *(named(f"t{number}") for number in range(9))]
    assert said(ServerSettings(tokens=many)).endswith(": t0, t1, t2, t3, t4, 4 more")


def test_a_server_without_a_token_says_what_everybody_reaches() -> None:
    assert said(ServerSettings(destination=SSHD)) == "localhost:22 alone, for everybody"
    closed = ServerSettings(destination=SSHD, allow=[parse_rule("db:22")])
    assert said(closed) == "nothing: without tokens only localhost:22 could be reached, but the rules close it"
    assert "no token nobody may go anywhere: the rules close localhost:22" in " ".join(shown(closed).split())


def test_tokens_that_have_expired_open_nothing_and_are_not_counted() -> None:
    over = Token("old", digest("old"), expires=NOW)
    assert said(ServerSettings(tokens=[over])) == "nothing: every token has expired"
    assert said(ServerSettings(tokens=[over, "x"])).endswith(", with the token")


# --- -s --check -----------------------------------------------------------------------------------


def test_the_whole_policy_is_shown() -> None:
    settings = ServerSettings(
        listen=[parse_listen("127.0.0.1:1"), parse_listen("unix:/run/x.sock")],
        tokens=[
            named("alice", "bastion:22", "*.prod.svc:22", deny=["10.20.9.0/24:*"], expires=MIDNIGHT, max_tunnels=20),
            named("bob"),
            "s3cret",
        ],
        path="/p",
        connect=True,
        destination=SSHD,
        allow_origins=["https://a.example"],
        allow=[parse_rule("web:80")],
        deny=[parse_rule("192.0.2.0/24:*"), parse_rule("*:25")],
        trusted_proxies=["unix", parse_network("10.0.0.0/8")],
        tls=ServerTLS(certificate="c.pem", key="k.pem"),
        admin=parse_listen("127.0.0.1:9090"),
        log_format="json",
        log_file="/var/log/x",
    )
    text = shown(settings)
    assert [line.split(maxsplit=1)[0] for line in text.splitlines() if line and not line.startswith(" ")] == [
        *("listen", "http", "path", "transports", "web", "destination", "clients", "admin", "log", "limits"),
        *("token", "token", "token", "every"),
    ]
    words = " ".join(text.split())
    for expected in (
        "listen 127.0.0.1:1 unix:/run/x.sock http https, by c.pem and k.pem path /p",
        "websocket, CONNECT web pages https://a.example destination localhost:22",
        "clients X-Forwarded-For of unix, 10.0.0.0/8; else the connection's address",
        "admin 127.0.0.1:9090 log json, to /var/log/x",
        "limits 4000 tunnels at once 3500 of one token that has no number of its own",
        "4096 connections without an accepted token 64 connections without an accepted token from one address",
        "token alice good to the end of 2026-07-01 (UTC), 12 h from now; 20 tunnels at once"
        " allow bastion:22 *.prod.svc:22 deny 10.20.9.0/24:*",
        "token bob never expires allow as every token token without a name never expires allow as every token",
        "every token allow web:80 deny 192.0.2.0/24:* *:25 closed 169.254.0.0/16,",
    ):
        assert expected in words
    assert "s3cret" not in text
    assert digest("s3cret").hex() not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_what_nobody_has_said_is_shown_as_what_it_then_is() -> None:
    words = " ".join(shown(ServerSettings(tokens=[named("alice")])).split())
    for expected in (
        "listen 127.0.0.1:12345, or the sockets of a socket unit http plain, for a front end path every path",
        "web pages none destination as the client says clients the connection's address admin nowhere",
        "log text, to stderr",
        "allow any destination but link-local and metadata addresses every token closed 169.254",
    ):
        assert expected in words


def test_an_empty_allow_is_shown_as_nothing() -> None:
    alone = replace(named("alice"), allow=())
    words = " ".join(shown(ServerSettings(tokens=[alone], allow=())).split())
    assert "token alice never expires allow nothing every token allow nothing" in words


def test_without_a_token_it_is_shown_what_everybody_may() -> None:
    words = " ".join(shown(ServerSettings(destination=SSHD, deny=[parse_rule("*:25")])).split())
    assert "no token everybody may go to localhost:22, and nowhere else deny *:25 closed" in words


def test_limits_are_shown_in_units_that_a_person_reads() -> None:
    limits = Limits(max_tunnels=20, idle_timeout=900, max_session=8 * 3600, max_rate=10 * 1024**2)
    settings = ServerSettings(tokens=["x"], head_timeout=2.5, grace=90, proxy_protocol=True)
    words = " ".join(describe(settings, policy(settings), limits, NOW).split())
    assert "limits 20 tunnels at once" in words
    assert "15 min of silence in a tunnel 8 h for a tunnel 10 MiB a second each way in a" in words
    assert "2.5 s for a request to be complete 10 s to reach its target 90 s for open tunnels" in words
    assert "clients the PROXY protocol's header" in words
    for rate, shown_rate in ((1.5 * 1024**3, "1.5 GiB"), (2048, "2 KiB"), (512, "512 bytes")):
        assert f"{shown_rate} a second" in describe(settings, policy(settings), replace(limits, max_rate=rate), NOW)


@pytest.mark.parametrize(
    ("expires", "words"),
    [
        (math.inf, "never expires"),
        (MIDNIGHT + 71 * DAY, "good to the end of 2026-09-10 (UTC), 71 d from now"),
        (NOW + 100, "good until 2026-07-01 12:01:40 UTC, 1 min from now"),
        (MIDNIGHT - DAY, "expired at the end of 2026-06-30 (UTC)"),
        (NOW, "expired at 2026-07-01 12:00:00 UTC"),
        (253402300800, "good to the end of 9999-12-31 (UTC), 2912261 d from now"),
        (253402387139, "good until 9999-12-31 23:59:59 UTC, 2912262 d from now"),
        (-62135683140, "expired at 0001-01-01 00:00:00 UTC"),
    ],
)
def test_the_end_of_a_token_is_told_in_its_own_words_and_how_far_that_is(expires: float, words: str) -> None:
    assert expiry(named("alice", expires=expires), NOW) == words


# --- --as -----------------------------------------------------------------------------------------


def test_a_name_rule_is_named_and_every_address_judged() -> None:
    grant = grant_of(Policy([named("alice", "db:22", deny=["10.9.0.0/16:*"])]), "alice")
    admission = grant.admit(parse_destination("db:22"))
    assert who(grant) == "alice"
    assert why_admitted(grant, admission) == "allow db:22"
    addresses = [ip_address(text) for text in ("10.1.1.1", "10.9.1.1", "169.254.169.254", "10.1.1.1")]
    opened, lines = judged(admission, addresses)
    assert opened
    assert [line.split(maxsplit=1) for line in lines.splitlines()] == [
        ["10.1.1.1", "open"],
        ["10.9.1.1", "closed: deny 10.9.0.0/16:*"],
        ["169.254.169.254", "closed: link-local and metadata addresses are closed to everybody"],
    ]


def test_where_addresses_decide_the_rule_is_told_for_each() -> None:
    grant = grant_of(Policy([named("alice", "10.0.0.0/8:22")]), "alice")
    admission = grant.admit(parse_destination("db:22"))
    assert why_admitted(grant, admission) == ""
    opened, lines = judged(admission, [ip_address("10.1.1.1"), ip_address("192.0.2.1")])
    assert opened == "allow 10.0.0.0/8:22"
    assert [line.split(maxsplit=1)[1] for line in lines.splitlines()] == [
        "open: allow 10.0.0.0/8:22",
        "closed: no rule of allow opens it",
    ]
    assert judged(admission, [ip_address("192.0.2.1")])[0] == ""


def test_without_any_allow_that_is_the_reason() -> None:
    grant = grant_of(Policy([named("alice")]), "alice")
    assert "there is no allow for it" in why_admitted(grant, grant.admit(parse_destination("db:22")))


def test_who_has_no_name_is_called_by_a_dash() -> None:
    assert who(grant_of(Policy(["s3cret", named("alice")]), "-")) == "the token without a name"
    everybody = grant_of(Policy([], SSHD), "-")
    assert who(everybody) == "a client"
    assert "default destination" in why_admitted(everybody, everybody.admit(SSHD))


@pytest.mark.parametrize(
    ("tokens", "name", "known"),
    [
        ([named("alice"), "s3cret"], "bob", "alice, -"),
        ([named("alice")], "-", "alice"),
        ([], "alice", "no token"),
    ],
)
def test_a_name_that_no_token_has_is_told_those_that_there_are(
    tokens: Sequence[str | Token], name: str, known: str
) -> None:
    with pytest.raises(SettingsError, match=known) as error:
        grant_of(Policy(tokens, SSHD), name)
    assert "s3cret" not in str(error.value)
