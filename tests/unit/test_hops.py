"""What a check says of a hop is true of it, fit to be printed, and stable for programs."""

from __future__ import annotations

import pytest

from http2tcp.address import TCPAddress
from http2tcp.client.check.hops import (
    Attempt,
    State,
    advise,
    before_http,
    failed,
    front_end_hop,
    key_of,
    name_hop,
    server_hop,
    target_hop,
    tls_hop,
    transport_hop,
)
from http2tcp.errors import (
    ConnectFailed,
    CredentialsRefused,
    DestinationForbidden,
    FrontEndFailed,
    ProxyFailed,
    ResolveFailed,
    ServerRefused,
    StdioFailed,
    TargetFailed,
    TLSFailed,
    TunnelCut,
    TunnelError,
    UpgradeNotPassed,
)
from http2tcp.protocol.client_handshake import Refused, Switched
from http2tcp.protocol.transport import Transport

TARGET = TCPAddress("db", 5432)


def opened(*fields: tuple[str, str], ours: bool = True, transport: Transport = Transport.CONNECT_TCP) -> Attempt:
    return Attempt(transport, Switched(transport, ours), fields, 0.5)


@pytest.mark.parametrize(
    ("kind", "key", "low"),
    [
        (ResolveFailed, "name", True),
        (ProxyFailed, "proxy", True),
        (ConnectFailed, "tcp", True),
        (TLSFailed, "tls", True),
        (FrontEndFailed, "front_end", False),
        (UpgradeNotPassed, "front_end", False),
        (CredentialsRefused, "authorisation", False),
        (DestinationForbidden, "authorisation", False),
        (ServerRefused, "server", False),
        (TargetFailed, "target", False),
        (TunnelCut, "tunnel", False),
        (StdioFailed, "tunnel", False),
    ],
)
def test_every_failure_lies_at_a_hop(kind: type[TunnelError], key: str, low: bool) -> None:
    assert key_of(kind("x")) == key
    assert before_http(kind("x")) is low


def test_a_name_with_many_addresses_is_still_one_line() -> None:
    addresses = [f"192.0.2.{number}" for number in range(20)]
    hop = name_hop("example.com", [*addresses, *addresses], 0.1)
    assert hop.text == "example.com is 192.0.2.0, 192.0.2.1, 192.0.2.2, 192.0.2.3 and 16 more"
    assert hop.facts["addresses"] == addresses


def test_an_address_is_not_said_to_be_itself() -> None:
    assert name_hop("192.0.2.1", ["192.0.2.1"], 0.1).text == "192.0.2.1 is an address"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("dial;dur=12.5", 0.0125),
        ("cache;dur=3, dial;dur=7", 0.007),
        ("dial; dur=1, total;dur=9", 0.001),
        ("dial;dur=1e9", None),
        ("dial;dur=-1", None),
        ("dial;dur=" + "9" * 400, None),
        ("radial;dur=5", None),
        ("dial", None),
        ("", None),
    ],
)
def test_the_time_of_the_dial_is_the_servers_own(value: str, seconds: float | None) -> None:
    hop = target_hop(opened(("server-timing", value)), TARGET, b"hello\n")
    assert hop.seconds == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\nmore", "SSH-2.0-OpenSSH_9.2"),
        (b"220 mail.example.com ESMTP \xd0\xbf\r\n", "220 mail.example.com ESMTP \u043f"),
        (b"+OK\x1b[31m red\x07\n", "+OK.[31m red."),
        ("220 \u202egnp.exe".encode(), "220 .gnp.exe"),
        (b"J\x00\x00\x00\x0a5.7.33\x00\x08\x00\x00\x00", "14 bytes that are not text"),
        (bytes(50), "50 bytes that are not text"),
        (b"\n", "1 bytes that are not text"),
        (b"x" * 4096, "x" * 60 + "\u2026"),
    ],
)
def test_a_greeting_is_shown_as_far_as_it_is_text(greeting: bytes, words: str) -> None:
    hop = target_hop(opened(), TARGET, greeting)
    assert hop.facts["greeting"] == words.replace("14 bytes", f"{len(greeting)} bytes")
    assert words.isprintable()
    assert hop.state is State.OK


def test_a_target_that_was_not_seen_to_accept_is_not_said_to() -> None:
    hop = target_hop(opened(ours=False, transport=Transport.HTTP2TCP), TARGET, None)
    assert hop.state is State.NOTE
    assert "may be" in hop.text


def test_a_server_that_does_not_name_itself_is_noted() -> None:
    assert server_hop(opened(ours=False), refuses=False).state is State.NOTE
    named = Attempt(Transport.TCP, Switched(Transport.TCP, from_http2tcp=True, session="5e55"))
    assert server_hop(named, refuses=False).text == "is there; its log has this as session 5e55"
    assert server_hop(named, refuses=False).facts["session"] == "5e55"
    refused = Attempt(Transport.TCP, Refused(502, "dns_error", session="5e55"), error=TargetFailed("x"))
    assert server_hop(refused, refuses=False).facts["session"] == "5e55"
    assert server_hop(opened(), refuses=False).facts["session"] is None
    assert "original" in server_hop(opened(ours=False, transport=Transport.HTTP2TCP), refuses=False).text


def test_what_is_no_certificate_is_no_crash() -> None:
    hop = tls_hop("example.com", "TLSv1.3", b"junk", 0.1)
    assert "not an X.509 certificate" in hop.text
    assert "pin" not in hop.facts


def test_tls_without_a_certificate_to_show_names_the_site() -> None:
    assert tls_hop("example.com", None, None, 0.1, failed=True).text == "with example.com"


@pytest.mark.parametrize(
    ("refused", "error", "text", "state"),
    [
        (Refused(404, None), UpgradeNotPassed("x"), "404, it does not get through", State.FAILED),
        (Refused(502, None), FrontEndFailed("x"), "502 from the front end", State.FAILED),
        (Refused(426, "e"), UpgradeNotPassed("x"), "426, it comes to http2tcp without its Upgrade", State.FAILED),
        (Refused(400, "e"), FrontEndFailed("x"), "400, it comes to http2tcp as another request", State.FAILED),
        (Refused(401, "e"), CredentialsRefused("x"), "401, it gets through to http2tcp", State.OK),
        (Refused(504, "e"), TargetFailed("x"), "504, it gets through to http2tcp", State.OK),
        (None, UpgradeNotPassed("closed"), "closed", State.FAILED),
    ],
)
def test_a_transports_answer_says_how_far_it_came(
    refused: Refused | None, error: TunnelError, text: str, state: State
) -> None:
    hop = transport_hop(Attempt(Transport.TCP, refused, (), 0.1, error))
    assert (hop.text, hop.state) == (text, state)
    assert hop.facts == {"transport": "tcp", "status": None if refused is None else refused.status, "tries": 1}


def test_the_tries_of_a_transport_are_one_line() -> None:
    def tried(*answers: Refused | Switched) -> Attempt:
        attempts: list[Attempt] = []
        for answer in answers:
            error = UpgradeNotPassed("x") if isinstance(answer, Refused) else None
            attempts.append(Attempt(Transport.TCP, answer, (), 0.1, error, tuple(attempts)))
        return attempts[-1]

    missing, forbidden, open_ = Refused(404, None), Refused(403, None), Switched(Transport.TCP, from_http2tcp=True)
    for attempt, text, state in [
        (tried(missing, missing, missing), "404, it does not get through, three times", State.FAILED),
        (tried(missing, open_), "101, it gets through; before that: 404, it does not get through", State.NOTE),
        (
            tried(missing, missing, forbidden),
            "403, it does not get through; before that: 404, it does not get through, twice",
            State.FAILED,
        ),
    ]:
        hop = transport_hop(attempt)
        assert (hop.text, hop.state) == (text, state)
        assert hop.facts["tries"] == len(attempt.earlier) + 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([("server", "nginx/1.22.1")], "nginx/1.22.1"),
        ([("server", "openresty")], "openresty (nginx)"),
        ([("server", "istio-envoy")], "istio-envoy"),
        ([("server", "x\x1b[31m")], "x?[31m"),
        ([("cache-control", "no-cache"), ("content-type", "text/html")], "probably HAProxy"),
        ([("via", "1.1 google")], "Google Cloud's load balancer"),
        ([], "does not say what it is"),
    ],
)
def test_a_front_end_is_named_as_it_names_itself(fields: list[tuple[str, str]], text: str) -> None:
    assert front_end_hop(Attempt(Transport.TCP, Refused(400, None), fields)).text == text


def test_a_verdict_is_one_sentence_and_its_hint_becomes_lines() -> None:
    error = UpgradeNotPassed(
        "https://x/ answered 400 and did not pass the upgrade on", "in nginx the location needs: y"
    )
    verdict = failed(error, Attempt(Transport.TCP, Refused(400, None), (), 0.1, error), "/")
    assert verdict.sentence == "It fails at the front end: https://x/ answered 400 and did not pass the upgrade on."
    assert verdict.advice is not None
    assert "HTTP/1.1" in verdict.advice.note


@pytest.mark.parametrize("server", ["nginx", "Apache", "Caddy", "envoy", "x"])
@pytest.mark.parametrize("status", [200, 400, 403, 404, 405])
def test_no_lines_take_the_whole_site_from_what_answers_there(server: str, status: int) -> None:
    attempt = Attempt(Transport.TCP, Refused(status, None), [("server", server)], 0.1, UpgradeNotPassed("x", "y"))
    found = advise(attempt, "/")
    assert found is not None
    assert "/~http2tcp/" in "\n".join(found.lines)
    assert "/~http2tcp/" in found.note
    assert not any(line.split()[:2] == ["location", "/"] or '"/"' in line for line in found.lines)
    # Where a path was named it stands, and a path that is wrong is not taken for granted.
    found = advise(attempt, "/there/")
    assert found is not None
    assert "/there/" in "\n".join(found.lines)
    assert ("If /there/ is meant for http2tcp" in found.note) is (status in (200, 404))


def test_no_lines_take_the_whole_site_where_the_front_end_said_nothing() -> None:
    found = advise(Attempt(Transport.TCP, error=UpgradeNotPassed("closed")), "/")
    assert found is not None
    assert not any(line.split()[:2] == ["location", "/"] for line in found.lines)


def test_a_site_that_is_http2tcps_own_gets_lines_for_the_whole_of_it() -> None:
    attempt = Attempt(Transport.TCP, Refused(426, "e"), [("server", "nginx")], 0.1, UpgradeNotPassed("x", "y"))
    found = advise(attempt, "/")
    assert found is not None
    assert any(line.split()[:2] == ["location", "/"] for line in found.lines)
