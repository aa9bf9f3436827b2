"""--check names the hop that fails, as the ordinary client does on the same way, and shows what it found before it."""

from __future__ import annotations

import datetime
import hashlib
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from http2tcp.address import TCPAddress, parse_destination, parse_listen
from http2tcp.client.check.hops import State
from http2tcp.client.connector import AUTO
from http2tcp.client.forwards import Forward
from http2tcp.client.proxy_choice import parse_proxy
from http2tcp.client.settings import ClientSettings, TLSSettings
from http2tcp.protocol.transport import Transport
from http2tcp.server.audit import Record
from tests.support.checking import checked, ordinary
from tests.support.choosy_front import ENVOY_REFUSES, answering, choosy_front
from tests.support.fake_proxy import Names, fake_proxy
from tests.support.loopback import (
    TOKEN,
    client_settings,
    closed_port,
    echo,
    full_backlog,
    greet_and_close,
    reset,
    served,
    target,
)
from tests.support.original import COMMAND
from tests.support.processes import environment, free_port, listens, running
from tests.support.tls_front import tls_front

# The transports, as they stand among the keys of the hops.
ALL = [f"+{transport.value}" for transport in AUTO]
UP_TO_TCP = ["name", "tcp"]
UP_TO_HTTP = [*UP_TO_TCP, "front_end"]

Way = AbstractAsyncContextManager[ClientSettings]
Issue = Callable[[trustme.CA], trustme.LeafCert]


def asking(url: str, destination: str | None = None, **settings: Any) -> ClientSettings:
    """The settings of a client that was given no transport."""
    return client_settings(url, destination, **{"transport": None, **settings})


# --- ways that fail -------------------------------------------------------------------------------


@asynccontextmanager
async def site(directory: Path, destination: str | None = None, **settings: Any) -> AsyncIterator[ClientSettings]:
    """A server without a front end, with a target that greets."""
    async with target(greet_and_close) as where, served(connect_timeout=0.3) as server:
        yield asking(server.url, destination or where, **settings)


@asynccontextmanager
async def tls_site(directory: Path, issue: Issue, **tls: Any) -> AsyncIterator[ClientSettings]:
    async with target(greet_and_close) as where, served() as server:
        async with tls_front(server.address, directory, issue=issue) as front:
            tls.setdefault("ca_file", str(front.ca_file))
            yield asking(front.url, where, tls=TLSSettings(**tls))


def other_name(directory: Path) -> Way:
    return tls_site(directory, lambda authority: authority.issue_cert("example.org", "www.example.org"))


def expired(directory: Path) -> Way:
    end = datetime.datetime(2020, 5, 17, tzinfo=datetime.UTC)
    start = end - datetime.timedelta(days=90)
    return tls_site(directory, lambda ca: ca.issue_cert("localhost", not_before=start, not_after=end))


def not_yet_valid(directory: Path) -> Way:
    start = datetime.datetime(2990, 1, 1, tzinfo=datetime.UTC)
    return tls_site(directory, lambda ca: ca.issue_cert("localhost", not_before=start))


def unknown_issuer(directory: Path) -> Way:
    other = directory / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    return tls_site(directory, lambda authority: authority.issue_cert("localhost"), ca_file=str(other))


def other_pin(directory: Path) -> Way:
    return tls_site(directory, lambda authority: authority.issue_cert("localhost"), pins=[bytes(32)])


@asynccontextmanager
async def https_to_http(directory: Path) -> AsyncIterator[ClientSettings]:
    async with served() as server:
        yield asking(server.url.replace("http:", "https:"), "db:1")


@asynccontextmanager
async def http_to_https(directory: Path) -> AsyncIterator[ClientSettings]:
    async with served() as server, tls_front(server.address, directory) as front:
        yield asking(front.url.replace("https:", "http:"), "db:1")


@asynccontextmanager
async def name_not_found(directory: Path) -> AsyncIterator[ClientSettings]:
    trio.socket.set_custom_hostname_resolver(Names())
    yield asking("https://nowhere.invalid/", "db:1")


@asynccontextmanager
async def port_closed(directory: Path) -> AsyncIterator[ClientSettings]:
    yield asking(f"http://127.0.0.1:{closed_port()}/", "db:1")


@asynccontextmanager
async def port_silent(directory: Path) -> AsyncIterator[ClientSettings]:
    with full_backlog() as where:
        yield asking(f"http://{where}/", "db:1", connect_timeout=0.3)


@asynccontextmanager
async def wants_login(directory: Path) -> AsyncIterator[ClientSettings]:
    answer = b'HTTP/1.1 407 Log in\r\nProxy-Authenticate: Basic realm="x", Negotiate\r\nContent-Length: 0\r\n\r\n'
    async with target(answering(answer)) as where:
        yield asking("https://site.invalid/", "db:1", proxy=parse_proxy(f"http://{where}", "HTTPS_PROXY"))


@asynccontextmanager
async def socks_wants_login(directory: Path) -> AsyncIterator[ClientSettings]:
    async with fake_proxy("socks5h", login=b"user:password") as proxy:
        yield asking("https://site.invalid/", "db:1", proxy=parse_proxy(proxy.url("socks5h"), "--proxy"))


@asynccontextmanager
async def proxy_closed(directory: Path) -> AsyncIterator[ClientSettings]:
    proxy = parse_proxy(f"http://127.0.0.1:{closed_port()}", "ALL_PROXY")
    yield asking("https://site.invalid/", "db:1", proxy=proxy)


def front_end(answer: bytes, **settings: Any) -> Callable[[Path], Way]:
    """Something that gives this answer whatever it is asked."""

    @asynccontextmanager
    async def way(directory: Path) -> AsyncIterator[ClientSettings]:
        async with target(answering(answer)) as where:
            yield asking(f"http://{where}/~http2tcp/", "db:1", **settings)

    return way


def canned(status: str, *fields: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def silent_front_end(directory: Path) -> AsyncIterator[ClientSettings]:
    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with target(say_nothing) as where:
        yield asking(f"http://{where}/", "db:1", answer_timeout=0.2)


@asynccontextmanager
async def other_path(directory: Path) -> AsyncIterator[ClientSettings]:
    async with served(path="/there/") as server:
        yield asking(server.url, "db:1")


@asynccontextmanager
async def nothing_named(directory: Path) -> AsyncIterator[ClientSettings]:
    async with served() as server:
        yield asking(server.url)


@asynccontextmanager
async def dead_target(directory: Path) -> AsyncIterator[ClientSettings]:
    with full_backlog() as where:
        async with site(directory, where) as settings:
            yield settings


@asynccontextmanager
async def target_that_resets(directory: Path) -> AsyncIterator[ClientSettings]:
    async def break_off(stream: trio.SocketStream) -> None:
        reset(stream)

    async with target(break_off) as where, site(directory, where) as settings:
        yield settings


@asynccontextmanager
async def original(directory: Path, destination: str) -> AsyncIterator[ClientSettings]:
    port = free_port()
    command = [*COMMAND, "server", "-l", f"127.0.0.1:{port}", "-t", TOKEN]
    with running(command, directory / "original.log", lambda: listens(port), env=environment()):
        yield asking(f"http://127.0.0.1:{port}/", destination)


def original_refused(directory: Path) -> Way:
    return original(directory, f"127.0.0.1:{closed_port()}")


# The way; the ordinary client's hop and its exit status; what the sentence says; the hops that are shown, of which
# the last one fails, or all transports do; the key of the hop that fails.
CASES: dict[str, tuple[Callable[[Path], Way], str, int, list[str], list[str], str]] = {
    "another name": (other_name, "TLS", 66, ["not for localhost", "--tls-server-name"], [*UP_TO_TCP, "tls"], "tls"),
    "expired": (expired, "TLS", 66, ["localhost has expired"], [*UP_TO_TCP, "tls"], "tls"),
    "not yet valid": (not_yet_valid, "TLS", 66, ["not valid yet"], [*UP_TO_TCP, "tls"], "tls"),
    "unknown issuer": (unknown_issuer, "TLS", 66, ["authority", "--ca-file"], [*UP_TO_TCP, "tls"], "tls"),
    "another key": (other_pin, "TLS", 66, ["another public key", "sha256//"], [*UP_TO_TCP, "tls"], "tls"),
    "https to a port without TLS": (
        https_to_http,
        "TLS",
        66,
        ["does not speak TLS", "http://"],
        [*UP_TO_TCP, "tls"],
        "tls",
    ),
    "http to a port with TLS": (
        http_to_https,
        "front end",
        67,
        ["http:// or https://"],
        [*UP_TO_HTTP, *ALL],
        "front_end",
    ),
    "name not found": (name_not_found, "name", 64, ["cannot find nowhere.invalid", "-e"], ["name"], "name"),
    "port closed": (port_closed, "TCP", 65, ["connection refused", "-e"], UP_TO_TCP, "tcp"),
    "port silent": (port_silent, "TCP", 65, ["within 0.3 s", "firewall"], UP_TO_TCP, "tcp"),
    "proxy wants a login": (wants_login, "proxy", 75, ["407", "Basic, Negotiate", "HTTPS_PROXY"], ["proxy"], "proxy"),
    "SOCKS proxy wants a login": (socks_wants_login, "proxy", 75, ["wants a login", "--proxy"], ["proxy"], "proxy"),
    "proxy closed": (proxy_closed, "proxy", 75, ["connection refused", "ALL_PROXY"], ["proxy"], "proxy"),
    "front end without the lines": (
        front_end(canned("405 Not Allowed", "Server: nginx/1.25.3")),
        "front end",
        67,
        ["405 (nginx/1.25.3)", "did not pass the upgrade on"],
        [*UP_TO_HTTP, *ALL],
        "front_end",
    ),
    "a path that leads elsewhere": (
        front_end(canned("404 Not Found", "Server: nginx/1.25.3")),
        "front end",
        67,
        ["404 (nginx/1.25.3)", "path is wrong", "--path"],
        [*UP_TO_HTTP, *ALL],
        "front_end",
    ),
    "front end that wants a certificate of the client": (
        front_end(
            canned(
                "400 Bad Request",
                "Server: nginx/1.25.3",
                "Content-Type: text/html",
                body=b"<html><head><title>400 No required SSL certificate was sent</title></head></html>",
            )
        ),
        "front end",
        67,
        ["No required SSL certificate was sent", "--client-cert"],
        [*UP_TO_HTTP, ALL[0]],
        "front_end",
    ),
    "front end that refuses upgrades": (
        front_end(ENVOY_REFUSES),
        "front end",
        67,
        ["403 (envoy)", "refuses the upgrade"],
        [*UP_TO_HTTP, *ALL],
        "front_end",
    ),
    "front end that closes": (front_end(b""), "front end", 67, ["without an answer"], [*UP_TO_HTTP, *ALL], "front_end"),
    "front end that is silent": (
        silent_front_end,
        "front end",
        67,
        ["no answer within 0.2 s"],
        [*UP_TO_HTTP, ALL[0]],
        "front_end",
    ),
    "front end that redirects": (
        front_end(canned("302 Found", "Server: nginx", "Location: https://sso.example.com/there/?state=x")),
        "front end",
        67,
        ["a redirect", "probably to a login, at https://sso.example.com/there/: "],
        [*UP_TO_HTTP, *ALL],
        "front_end",
    ),
    "front end that wants a login": (
        front_end(canned("401 Who", "Server: nginx", 'WWW-Authenticate: Basic realm="x"')),
        "front end",
        67,
        ["a login of its own"],
        [*UP_TO_HTTP, ALL[0]],
        "front_end",
    ),
    "front end with nothing behind it": (
        front_end(canned("502 Bad Gateway", "Server: nginx")),
        "front end",
        67,
        ["502 (nginx)", "no http2tcp server behind it"],
        [*UP_TO_HTTP, ALL[0]],
        "front_end",
    ),
    "no HTTP": (
        front_end(b"SSH-2.0-OpenSSH_9.2\r\n"),
        "front end",
        67,
        ["does not speak HTTP"],
        [*UP_TO_HTTP, ALL[0]],
        "front_end",
    ),
    "another path": (
        other_path,
        "http2tcp server",
        74,
        ["does not answer at /", "--path"],
        [*UP_TO_HTTP, ALL[0], "server"],
        "server",
    ),
    "no destination": (
        nothing_named,
        "http2tcp server",
        74,
        ["names no destination", "-d"],
        [*UP_TO_HTTP, ALL[0], "server"],
        "server",
    ),
    "wrong token": (
        lambda directory: site(directory, token="wr0ng"),
        "http2tcp server",
        68,
        ["does not know this token"],
        [*UP_TO_HTTP, ALL[0], "server", "authorisation"],
        "authorisation",
    ),
    "no token": (
        lambda directory: site(directory, token=None),
        "http2tcp server",
        68,
        ["wants a token", "--token-file"],
        [*UP_TO_HTTP, ALL[0], "server", "authorisation"],
        "authorisation",
    ),
    "forbidden target": (
        lambda directory: site(directory, "169.254.169.254:80"),
        "http2tcp server",
        69,
        ["169.254.169.254:80 is not allowed"],
        [*UP_TO_HTTP, ALL[0], "server", "authorisation"],
        "authorisation",
    ),
    "refused target": (
        lambda directory: site(directory, f"127.0.0.1:{closed_port()}"),
        "target",
        70,
        ["cannot reach 127.0.0.1:", "connection refused"],
        [*UP_TO_HTTP, ALL[0], "server", "authorisation", "target"],
        "target",
    ),
    "dead target": (
        dead_target,
        "target",
        70,
        ["cannot reach 127.0.0.1:", "no answer in 0.3 s"],
        [*UP_TO_HTTP, ALL[0], "server", "authorisation", "target"],
        "target",
    ),
    "target that resets at once": (
        target_that_resets,
        "tunnel",
        71,
        ["the target broke the connection", "the server's log has session"],
        [*UP_TO_HTTP, *ALL, "server", "authorisation", "target"],
        "tunnel",
    ),
    "original server that cannot reach the target": (
        original_refused,
        "target",
        70,
        ["closed before its first byte", "probably refused"],
        [*UP_TO_HTTP, "+connect-tcp", "+http2tcp/1.0", "+tcp", "+websocket", "server", "authorisation", "target"],
        "target",
    ),
}


@pytest.fixture(autouse=True)
def _names_are_looked_up_as_usual() -> Any:
    yield
    if trio.lowlevel.in_trio_run():
        trio.socket.set_custom_hostname_resolver(None)


@pytest.fixture(autouse=True)
def _pauses_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("http2tcp.client.connector.REPEATS", (0.01, 0.01))


@pytest.mark.parametrize(("way", "hop", "status", "says", "shown", "key"), CASES.values(), ids=CASES.keys())
async def test_a_check_and_the_ordinary_client_name_the_hop_that_fails(
    way: Callable[[Path], Way], hop: str, status: int, says: list[str], shown: list[str], key: str, tmp_path: Path
) -> None:
    async with way(tmp_path) as settings:
        error = await ordinary(settings)
        found = await checked(settings)
    assert error is not None
    assert (error.hop, error.exit_code) == (hop, status)
    sentence = found.verdict.sentence
    assert sentence.startswith(f"It fails at {hop if hop == 'TCP' or hop == 'TLS' else f'the {hop}'}: ")
    for part in says:
        assert part in str(error)
        assert part in sentence
    assert found.verdict.exit_status == status
    assert (found.document["works"], found.document["exit_status"]) == (False, status)
    assert found.document["failed_hop"] == key
    assert found.keys() == shown
    # What has failed comes last: the hop, or every transport.
    failed = found.failed()
    assert failed
    assert failed == [name for name in shown if name in failed]
    assert shown[-1] in failed
    assert found.hops[0].state is State.OK or len(found.hops) == 1


# --- what is shown of them ------------------------------------------------------------------------


async def test_a_certificate_that_is_not_accepted_is_shown(tmp_path: Path) -> None:
    async with other_name(tmp_path) as settings:
        hop = (await checked(settings)).hop("tls")
    assert hop.state is State.FAILED
    assert hop.more[0] == "for example.org, www.example.org, and not for localhost"
    assert hop.facts["names"] == ["example.org", "www.example.org"]
    assert hop.facts["verified"] is False


async def test_the_day_on_which_a_certificate_expired_is_shown(tmp_path: Path) -> None:
    async with expired(tmp_path) as settings:
        hop = (await checked(settings)).hop("tls")
    assert "expired on 2020-05-17" in hop.more
    assert hop.facts["days_left"] < -2000
    assert hop.facts["not_after"] == "2020-05-17T00:00:00+00:00"


async def test_the_pin_that_is_shown_is_the_one_to_give(tmp_path: Path) -> None:
    leaf: list[trustme.LeafCert] = []

    def issue(authority: trustme.CA) -> trustme.LeafCert:
        leaf.append(authority.issue_cert("localhost"))
        return leaf[0]

    async with tls_site(tmp_path, issue, pins=[bytes(32)]) as settings:
        shown = (await checked(settings)).hop("tls").facts["pin"]
    key = x509.load_pem_x509_certificate(leaf[0].cert_chain_pems[0].bytes()).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    assert shown == "sha256//" + b64encode(digest).decode()


async def test_no_secret_goes_to_a_site_that_is_not_the_right_one(tmp_path: Path) -> None:
    async with served() as server, tls_front(server.address, tmp_path, issue=lambda ca: ca.issue_cert("x.y")) as front:
        await checked(asking(front.url, "db:1", tls=TLSSettings(ca_file=str(front.ca_file))))
        assert front.client_ends == []  # no byte of HTTP was ever sent


@pytest.mark.parametrize("days", [3, 1, 60])
async def test_a_certificate_that_was_not_renewed_is_noted_before_it_expires(days: int, tmp_path: Path) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days, hours=1)
    async with tls_site(tmp_path, lambda ca: ca.issue_cert("localhost", not_after=end)) as settings:
        found = await checked(settings)
    hop = found.hop("tls")
    assert found.verdict.exit_status == 0
    assert hop.state is (State.NOTE if days < 14 else State.OK)
    assert hop.facts["days_left"] == days
    assert f"{days} day{'s' if days > 1 else ''} left" in hop.more[1]


async def test_insecure_is_noted_with_the_certificate(tmp_path: Path) -> None:
    async with tls_site(tmp_path, lambda ca: ca.issue_cert("x.y"), verify=False, ca_file=None) as settings:
        hop = (await checked(settings)).hop("tls")
    assert hop.state is State.NOTE
    assert "for x.y" in hop.more
    assert "not verified: --insecure" in hop.more
    assert hop.facts["verified"] is False


@pytest.mark.parametrize(
    ("answer", "name", "line"),
    [
        (canned("404 Not Found", "Server: nginx/1.25.3"), "nginx", "proxy_set_header Upgrade $http2tcp_upgrade;"),
        (canned("426 Upgrade", "Server: Apache/2.4.57 (Debian)"), "Apache", "upgrade=ANY"),
        (canned("200 OK", "Server: Caddy"), "Caddy", "reverse_proxy 127.0.0.1:12345"),
        (ENVOY_REFUSES, "Envoy", "- upgrade_type: connect-tcp"),
        (
            canned(
                "404 Not Found",
                "Content-Type: text/plain; charset=utf-8",
                "X-Content-Type-Options: nosniff",
                body=b"404 page not found\n",
            ),
            "Traefik",
            "rule: PathPrefix(`/~http2tcp/`)",
        ),
        (
            canned("403 Forbidden", "cache-control: no-cache", "content-type: text/html", body=b"<html>"),
            "HAProxy",
            "use_backend http2tcp if { path_beg /~http2tcp/ }",
        ),
        (canned("400 Bad Request", "Server: Microsoft-IIS/10.0"), None, "proxy_http_version 1.1;"),
    ],
    ids=["nginx", "Apache", "Caddy", "Envoy", "Traefik", "HAProxy", "unknown"],
)
async def test_a_front_end_gets_its_own_lines(answer: bytes, name: str | None, line: str, tmp_path: Path) -> None:
    async with front_end(answer)(tmp_path) as settings:
        found = await checked(settings)
        error = await ordinary(settings)
    advice = found.document["advice"]
    assert advice["front_end"] == name
    assert any(line in written for written in advice["lines"]), advice["lines"]
    assert all(f"    {written}".rstrip() in found.text.splitlines() for written in advice["lines"])
    # nginx's lines are no help to who has another front end.
    nginx_lines = "proxy_set_header" in str(error)
    assert nginx_lines is (name is None)
    if name in ("Apache", "Caddy"):
        assert f"--check shows what {name} needs" in str(error)
    assert "proxy_set_header" not in found.verdict.sentence


@pytest.mark.parametrize("end", ["stalls", "is reset"])
async def test_a_page_that_does_not_come_costs_a_second_and_no_words(end: str, autojump_clock: None) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(
            b"HTTP/1.1 503 No\r\nServer: nginx\r\nContent-Type: text/html\r\nContent-Length: 900\r\n\r\n"
            b"<title>Oh no</title>"
        )
        if end == "is reset":
            await stream.receive_some()
            reset(stream)
        await trio.sleep_forever()

    async with target(answer) as where:
        error = await ordinary(asking(f"http://{where}/~http2tcp/", "db:1"))
    assert error is not None
    assert 'answered 503 (nginx, "Oh no"): ' in str(error)


async def test_a_page_that_repeats_the_request_is_not_quoted(tmp_path: Path) -> None:
    echoed = canned("500 Oh", "Content-Type: text/plain", body=b"GET / with Bearer " + TOKEN.encode() + b"\n")
    async with front_end(echoed)(tmp_path) as settings:
        error, found = await ordinary(settings), await checked(settings)
    assert TOKEN not in str(error) + found.text
    assert "Bearer" not in str(error)


async def test_a_redirect_gets_no_lines(tmp_path: Path) -> None:
    async with front_end(canned("302 Found", "Server: nginx", "Location: /there/"))(tmp_path) as settings:
        assert (await checked(settings)).verdict.advice is None


async def test_control_characters_of_a_peer_reach_no_terminal(tmp_path: Path) -> None:
    evil = canned("404 Not Found", "Server: ngi\x9bnx\x85 \xad" + "x" * 500)
    async with front_end(evil)(tmp_path) as settings:
        found = await checked(settings)
    assert len(found.hop("front_end").text) < 70


async def test_a_target_that_greets_in_binary_is_not_shown_as_text() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\x1b]0;owned\x07\x1b[31m" + bytes(range(256)))
        await stream.receive_some()

    async with target(greet) as where, served() as server:
        hop = (await checked(asking(server.url, where))).hop("target")
    assert hop.more[0].isprintable()
    assert "\x1b" not in hop.more[0]


async def test_every_key_of_the_document_is_documented(tmp_path: Path) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "check.md").read_text()
    _, _, hops = documentation.partition("further keys")
    async with target(greet_and_close) as where, served() as server, tls_front(server.address, tmp_path) as front:
        settings = asking(front.url, where, tls=TLSSettings(ca_file=str(front.ca_file)))
        works = (await checked(settings)).document
    async with wants_login(tmp_path) as settings:
        fails = (await checked(settings)).document
    for document in (works, fails):
        for key in document:
            assert f"| `{key}` |" in documentation
        for hop in document["hops"]:
            (row,) = (line for line in hops.splitlines() if line.startswith(f"| `{hop['hop']}` |"))
            for key in hop.keys() - {"hop", "state", "ms", "text"}:
                assert f"`{key}`" in row


# --- ways that work -------------------------------------------------------------------------------


async def test_a_way_that_works_is_shown_hop_by_hop_with_the_targets_first_words(tmp_path: Path) -> None:
    async def ssh(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        await stream.receive_some()

    async with target(ssh) as where, served(keepalive=7) as server, tls_front(server.address, tmp_path) as front:
        settings = asking(front.url, where, tls=TLSSettings(ca_file=str(front.ca_file)))
        assert await ordinary(settings) is None
        found = await checked(settings)
    assert found.verdict.sentence == f"It works: connect-tcp carries the tunnel to {where}."
    assert (found.verdict.exit_status, found.document["transport"]) == (0, "connect-tcp")
    assert found.keys() == [*UP_TO_TCP, "tls", "front_end", *ALL, "server", "authorisation", "target"]
    assert found.failed() == []
    assert found.hop("name").facts["addresses"][0] in ("127.0.0.1", "::1")
    assert found.hop("tcp").facts["address"] == f"127.0.0.1:{front.port}"
    assert found.hop("tls").facts["version"] == "TLSv1.3"
    assert "trustme" in found.hop("tls").text
    assert all(found.hop(transport).facts["status"] == 101 for transport in ALL)
    facts = found.hop("server").facts
    assert {**facts, "session": None} == {
        "proxy_status": True,
        "keepalive": 7.0,
        "session": None,
        "resumes": False,  # a program's settings do not ask for it
    }
    assert f"its log has this as session {facts['session']}" in found.text
    assert found.hop("target").facts["greeting"] == "SSH-2.0-OpenSSH_9.2p1 Debian-2"
    assert found.hop("target").seconds is not None  # the server's own measure
    assert "says SSH-2.0-OpenSSH_9.2p1 Debian-2" in found.text


async def test_the_server_s_records_of_a_check_are_those_of_finished_sessions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        await stream.receive_some()

    caplog.set_level(logging.INFO, "http2tcp.audit")
    async with target(greet) as where, served() as server:
        await checked(asking(server.url, where))
    ends = [entry.msg for entry in caplog.records if isinstance(entry.msg, Record) and entry.msg["event"] == "ended"]
    assert [(end["transport"], end["reason"]) for end in ends] == [(transport.value, "closed") for transport in AUTO]


# --- tunnels that come back -----------------------------------------------------------------------


async def greets(stream: trio.SocketStream) -> None:
    """A target that speaks first and then waits, as sshd does."""
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
    await stream.receive_some()


@pytest.mark.parametrize("habit", [greets, echo])
async def test_a_tunnel_is_cut_and_comes_back_to_see_that_it_does(
    habit: Callable[[trio.SocketStream], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "http2tcp.audit")
    async with target(habit) as where, served() as server:
        found = await checked(asking(server.url, where, resume=60.0))
    assert found.verdict.exit_status == 0
    assert found.hop("server").facts["resumes"] is True
    assert "a tunnel that was cut came back within" in found.text
    events = [entry.msg for entry in caplog.records if isinstance(entry.msg, Record)]
    assert [event["event"] for event in events[:4]] == ["opened", "detached", "resumed", "ended"]
    assert events[3]["reason"] == "closed"


async def test_one_that_does_not_come_back_is_noted_with_the_reason() -> None:
    """A front end that leads each connection to another server, which does not have the session."""
    servers: list[TCPAddress] = []

    async def alternate(client: trio.SocketStream) -> None:
        there = servers.pop(0)
        server = await trio.open_tcp_stream(there.host, there.port)
        async with server, trio.open_nursery() as nursery:

            async def pass_on(one: trio.SocketStream, other: trio.SocketStream) -> None:
                try:
                    async for data in one:
                        await other.send_all(data)
                    await other.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(pass_on, client, server)
            nursery.start_soon(pass_on, server, client)

    async with target(greets) as where, served() as one, served() as two, target(alternate) as front:
        servers += [one.address, two.address]
        settings = asking(f"http://{front}/", where, resume=60.0, transport=Transport.CONNECT_TCP)
        found = await checked(settings)
    hop = found.hop("server")
    assert found.verdict.exit_status == 0
    assert (hop.state, hop.facts["resumes"]) == (State.NOTE, False)
    assert "the server no longer knows the session" in found.text


@pytest.mark.parametrize(
    ("settings", "offers", "words"),
    [
        ({"resume": 0.0}, 3600.0, "the client's settings say so"),
        ({"resume": 60.0}, 0.0, "the server does not offer to go on"),
        ({"resume": 60.0, "transport": Transport.TCP}, 3600.0, "tcp has no way to go on"),
    ],
)
async def test_one_that_cannot_come_back_is_not_cut_and_the_report_says_why(
    settings: dict[str, Any], offers: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "http2tcp.audit")
    async with target(greets) as where, served(resume=offers) as server:
        found = await checked(asking(server.url, where, **settings))
    assert found.verdict.exit_status == 0
    assert (found.hop("server").state, found.hop("server").facts["resumes"]) == (State.OK, False)
    assert f"tunnels end with their connection: {words}" in found.text
    assert "detached" not in caplog.text


async def test_where_the_target_has_ended_nothing_is_cut() -> None:
    async with target(greet_and_close) as where, served() as server:
        found = await checked(asking(server.url, where, resume=60.0))
    assert found.verdict.exit_status == 0
    # It has said a line before that, and may or may not have ended by the time of the cut.
    assert found.hop("server").facts["resumes"] in (True, None)


async def test_a_target_that_never_ends_keeps_no_session_at_the_server() -> None:
    async def stubborn(stream: trio.SocketStream) -> None:
        await stream.send_all(b"I stay\n")
        await trio.sleep_forever()

    async with target(stubborn) as where, served() as server:
        await checked(asking(server.url, where, resume=60.0, transport=Transport.CONNECT_TCP))
        with trio.fail_after(5):
            while server.server.state.sessions:
                await trio.sleep(0.01)


async def test_a_target_that_waits_for_its_client_is_no_failure() -> None:
    async with target(echo) as where, served() as server:
        found = await checked(asking(server.url, where))
    assert found.verdict.exit_status == 0
    assert found.hop("target").state is State.OK
    assert found.hop("target").facts["greeting"] is None


async def test_a_target_that_ends_without_a_word_is_noted() -> None:
    async def leave(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with target(leave) as where, served() as server:
        settings = asking(server.url, where)
        assert await ordinary(settings) is None
        found = await checked(settings)
    assert found.verdict.exit_status == 0
    assert found.hop("target").state is State.NOTE
    assert "without a word" in found.text


async def test_a_transport_that_was_chosen_is_the_only_one_that_is_tried() -> None:
    async with target(greet_and_close) as where, served() as server:
        for transport in AUTO:
            found = await checked(asking(server.url, where, transport=transport))
            assert found.keys() == [*UP_TO_HTTP, f"+{transport.value}", "server", "authorisation", "target"]
            assert found.verdict.sentence == f"It works: {transport.value} carries the tunnel to {where}."


@pytest.mark.parametrize("passes", ["websocket", "tcp", "http2tcp/1.0"])
async def test_a_front_end_that_passes_one_transport_works_and_is_told_how_to_pass_the_best(passes: str) -> None:
    async with target(greet_and_close) as where, served() as server:
        async with choosy_front(server.address, {passes}) as url:
            settings = asking(url, where)
            assert await ordinary(settings) is None
            found = await checked(settings)
    assert found.verdict.exit_status == 0
    assert found.verdict.transport == passes
    assert found.verdict.sentence.endswith(f"; --transport {passes} is faster.")
    assert found.failed() == [transport for transport in ALL if transport != f"+{passes}"]
    assert found.hop("+connect-tcp").facts["status"] == 403
    assert found.document["advice"]["front_end"] == "Envoy"
    assert found.document["advice"]["note"].startswith("To let connect-tcp through as well. ")


async def test_a_transport_that_the_front_end_does_not_pass_fails_where_it_was_chosen() -> None:
    async with target(greet_and_close) as where, served() as server:
        async with choosy_front(server.address, {"websocket"}) as url:
            settings = asking(url, where, transport=AUTO[1])
            error, found = await ordinary(settings), await checked(settings)
    assert error is not None
    assert found.verdict.exit_status == error.exit_code == 67
    assert found.keys() == [*UP_TO_HTTP, "+tcp"]


@pytest.mark.parametrize("hiccup", [canned("404 Not Found", "Server: nginx"), b""], ids=["404", "FIN"])
async def test_a_front_end_that_hiccups_works_and_its_hiccup_is_shown(hiccup: bytes) -> None:
    requests = 0

    async def connection(client: trio.SocketStream) -> None:
        nonlocal requests
        requests += 1
        if requests < 3:
            await answering(hiccup)(client)
            return
        async with await trio.open_tcp_stream(*server.address) as upstream, trio.open_nursery() as both:

            async def upwards() -> None:
                async for data in client:
                    await upstream.send_all(data)
                await upstream.send_eof()

            both.start_soon(upwards)
            async for data in upstream:
                await client.send_all(data)
            await client.send_eof()

    async with target(greet_and_close) as where, served() as server, target(connection) as front:
        found = await checked(asking(f"http://{front}/", where))
    assert found.verdict.sentence == f"It works: connect-tcp carries the tunnel to {where}."
    assert found.verdict.advice is None
    assert found.failed() == []
    assert found.keys() == [*UP_TO_HTTP, *ALL, "server", "authorisation", "target"]
    hop = found.hop("+connect-tcp")
    assert (hop.state, hop.facts["tries"]) == (State.NOTE, 3)
    assert hop.text.startswith("101, it gets through; before that: ")
    assert hop.text.endswith(", twice")
    assert all(found.hop(name).facts["tries"] == 1 for name in ALL[1:])


async def test_a_front_end_that_writes_an_upgrade_of_its_own_is_seen_through() -> None:
    async with target(greet_and_close) as where, served() as server:
        async with choosy_front(server.address, [name[1:] for name in ALL], instead="tcp") as url:
            settings = asking(url, where)
            assert await ordinary(settings) is None
            found = await checked(settings)
    assert found.verdict.exit_status == 0
    assert found.verdict.transport == "tcp"
    assert "as tcp" in found.hop("+connect-tcp").text
    # To ask for one of these by name would fail.
    assert found.failed() == ["+http2tcp/1.0", "+websocket"]


async def test_a_front_end_that_makes_a_websocket_of_every_upgrade_is_got_through() -> None:
    async with target(greet_and_close) as where, served() as server:
        async with choosy_front(server.address, [name[1:] for name in ALL], instead="websocket") as url:
            settings = asking(url, where)
            assert await ordinary(settings) is None
            found = await checked(settings)
    assert (found.verdict.exit_status, found.verdict.transport) == (0, "websocket")
    assert found.failed() == [name for name in ALL if name != "+websocket"]
    assert [found.hop(name).facts["tries"] for name in ALL] == [1, 1, 1, 1]


async def test_a_server_of_the_original_is_recognised(tmp_path: Path) -> None:
    async with target(greet_and_close) as where, original(tmp_path, where) as settings:
        assert await ordinary(settings) is None
        found = await checked(settings)
    assert found.verdict.exit_status == 0
    assert found.verdict.transport == "http2tcp/1.0"
    assert found.verdict.advice is None
    assert found.hop("server").state is State.NOTE
    assert "original" in found.hop("server").text
    assert found.hop("target").facts["greeting"] == "hello"


async def test_an_original_server_whose_target_waits_is_not_taken_for_proof(tmp_path: Path) -> None:
    async with target(echo) as where, original(tmp_path, where) as settings:
        found = await checked(settings)
    assert found.verdict.exit_status == 0
    assert found.hop("target").state is State.NOTE


async def test_a_proxy_that_works_is_a_hop_with_who_named_it() -> None:
    async with target(greet_and_close) as where, served() as server, fake_proxy("http") as proxy:
        settings = asking(server.url, where, proxy=parse_proxy(proxy.url("http", "user:secret@"), "HTTPS_PROXY"))
        found = await checked(settings)
    assert found.keys() == ["proxy", "front_end", *ALL, "server", "authorisation", "target"]
    assert found.hop("proxy").facts["source"] == "HTTPS_PROXY"
    assert "secret" not in found.text + str(found.document)
    assert found.hop("proxy").seconds is not None


async def test_a_certificate_is_shown_through_an_https_proxy_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with other_name(tmp_path) as settings, fake_proxy("https", tls=context) as proxy:
        ca_file = tmp_path / "both.pem"
        ca_file.write_bytes(authority.cert_pem.bytes() + Path(settings.tls.ca_file or "").read_bytes())
        proxied = replace(
            settings,
            proxy=parse_proxy(proxy.url("https", host="localhost"), "--proxy"),
            tls=TLSSettings(ca_file=str(ca_file)),
        )
        found = await checked(proxied)
    assert found.keys() == ["proxy", "tls"]
    assert found.hop("tls").facts["names"] == ["example.org", "www.example.org"]


async def test_a_proxy_that_leaves_names_to_us_shows_the_look_up_too() -> None:
    async with target(greet_and_close) as where, served() as server, fake_proxy("socks5") as proxy:
        settings = asking(server.url, where, proxy=parse_proxy(proxy.url("socks5"), "--proxy"))
        found = await checked(settings)
    assert found.keys()[:3] == ["name", "proxy", "front_end"]


# --- what listens ---------------------------------------------------------------------------------


async def test_the_targets_of_all_forwards_are_tried_and_none_is_listened_for() -> None:
    port = closed_port()
    async with target(greet_and_close) as one, target(echo) as two, served() as server:
        forwards = [Forward(TCPAddress("127.0.0.1", port), parse_destination(where)) for where in (one, two)]
        found = await checked(asking(server.url, forwards=[*forwards, Forward(parse_listen("0"), socks=True)]))
    assert found.verdict.exit_status == 0
    assert found.verdict.sentence == f"It works: connect-tcp carries the tunnel to {one} and to {two}."
    assert [hop.facts["destination"] for hop in found.hops if hop.key == "target"] == [one, two]
    assert found.document["destinations"] == [one, two]


async def test_one_forward_that_fails_is_a_failure() -> None:
    closed = f"127.0.0.1:{closed_port()}"
    async with target(greet_and_close) as one, served() as server:
        forwards = [Forward(parse_listen("0"), parse_destination(where)) for where in (one, closed)]
        found = await checked(asking(server.url, forwards=forwards))
    assert (found.verdict.exit_status, found.verdict.failed_hop) == (70, "target")
    assert closed in found.verdict.sentence


async def test_a_socks_listener_needs_no_destination_to_be_checked() -> None:
    async with served() as server:
        found = await checked(asking(server.url, forwards=[Forward(parse_listen("0"), socks=True)]))
        assert found.verdict.exit_status == 0
        assert found.failed() == []
        assert found.keys()[-2:] == ["server", "authorisation"]
        assert "each connection names its target" in found.verdict.sentence
        wrong = await checked(asking(server.url, token="wr0ng", forwards=[Forward(parse_listen("0"), socks=True)]))
        assert wrong.verdict.exit_status == 68


async def test_a_check_for_fdpass_tries_the_one_transport_that_can_be_handed_over() -> None:
    async with target(greet_and_close) as where, served() as server:
        found = await checked(asking(server.url, where, fdpass=True))
    assert found.verdict.transport == "tcp"
    assert found.keys() == [*UP_TO_HTTP, "+tcp", "server", "authorisation", "target"]
