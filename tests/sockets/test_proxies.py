"""A client behind a proxy: every kind of proxy to every kind of endpoint, and what a user reads when one fails."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import http2tcp
from http2tcp.address import parse_listen
from http2tcp.client.connector import connect
from http2tcp.client.forwarder import forward
from http2tcp.client.forwards import Forward
from http2tcp.client.proxy_choice import parse_proxy
from http2tcp.client.settings import ClientSettings, TLSSettings
from http2tcp.client.through_proxy import dial_through
from http2tcp.errors import ProxyFailed, ResolveFailed, SettingsError, TLSFailed, TunnelError
from http2tcp.net import dial as dial_module
from http2tcp.net.streams import HalfCloseUnsupported, SocketStream
from http2tcp.net.tls import TLSStream
from http2tcp.net.tls_over import TLSOverStream
from http2tcp.protocol.transport import Transport
from tests.support.fake_proxy import CONNECTED, Names, fake_proxy
from tests.support.loopback import TOKEN, Handler, client_settings, closed_port, echo, reset, served, target
from tests.support.tls_front import tls_front

SCHEMES = ["http", "https", "socks5", "socks5h"]
SECRET = "pa%73s%3Aw%C3%B6rd"
DECODED = "us@r:pass:wörd".encode()
LOGIN = f"us%40r:{SECRET}@"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    """What a client trusts: the https proxy's authority."""
    path = tmp_path / "proxy-ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def proxy_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(autouse=True)
def _no_log_shows_the_password(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for record in caplog.get_records("call"):
        for secret in (SECRET, "pass:w", "us@r", "us%40r"):
            assert secret not in record.getMessage()


def through(url: str, endpoint: str, destination: str | None = None, **more: object) -> ClientSettings:
    return client_settings(endpoint, destination, proxy=parse_proxy(url, "--proxy"), **more)


def tls_of(scheme: str, context: ssl.SSLContext) -> ssl.SSLContext | None:
    return context if scheme == "https" else None


async def failure(settings: ClientSettings, kind: type[TunnelError] = ProxyFailed) -> str:
    """The sentence with which opening a tunnel fails."""
    with pytest.raises(kind) as caught:
        await connect(settings)
    sentence = str(caught.value)
    assert sentence.isprintable()
    for secret in (SECRET, "pass:w", "us@r", "us%40r"):
        assert secret not in sentence
    return sentence


# --- what works ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", [Transport.CONNECT_TCP, Transport.TCP])
@pytest.mark.parametrize("endpoint", ["http", "https"])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_tunnel_goes_through_every_kind_of_proxy(
    scheme: str, endpoint: str, transport: Transport, proxy_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(target(echo))
        server = await stack.enter_async_context(served())
        front = await stack.enter_async_context(tls_front(server.address, tmp_path))
        proxy = await stack.enter_async_context(fake_proxy(scheme, tls=tls_of(scheme, proxy_tls)))
        with open(ca_file, "ab") as file:
            file.write(front.ca_file.read_bytes())
        settings = through(
            proxy.url(scheme),
            front.url if endpoint == "https" else server.url,
            where,
            transport=transport,
            tls=TLSSettings(ca_file=ca_file),
        )
        tunnel = await connect(settings)
        data = os.urandom(300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel.stream.send_all, data)
            back = b""
            while len(back) < len(data):
                back += await tunnel.stream.receive_some()
        assert back == data
        assert len(proxy.asked) == 1
        await tunnel.stream.aclose()


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_the_proxy_looks_the_endpoint_s_name_up_and_this_machine_does_not(
    scheme: str, proxy_tls: ssl.SSLContext, ca_file: str
) -> None:
    names = Names(**{"127.0.0.1": ["127.0.0.1"]})
    trio.socket.set_custom_hostname_resolver(names)
    async with target(echo) as where, served() as server:
        hosts = {"site.invalid:80": str(server.address)}
        async with fake_proxy(scheme, tls=tls_of(scheme, proxy_tls), hosts=hosts) as proxy:
            tls = TLSSettings(ca_file=ca_file)
            tunnel = await connect(through(proxy.url(scheme), "http://site.invalid/", where, tls=tls))
            await tunnel.stream.aclose()
    assert proxy.asked == ["site.invalid:80"]
    assert "site.invalid" not in names.asked


async def test_socks5_is_given_an_address_that_was_looked_up_here() -> None:
    trio.socket.set_custom_hostname_resolver(Names(**{"127.0.0.1": ["127.0.0.1"]}, site=["192.0.2.1"]))
    async with target(echo) as where, served() as server:
        async with fake_proxy("socks5", hosts={"ip 192.0.2.1:80": str(server.address)}) as proxy:
            tunnel = await connect(through(proxy.url("socks5"), "http://site/", where))
            await tunnel.stream.aclose()
    assert proxy.asked == ["ip 192.0.2.1:80"]


async def test_socks5_tries_a_name_s_other_addresses_where_the_proxy_cannot_reach_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dial_module, "prefers_ipv6", lambda _: True)
    addresses = ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
    trio.socket.set_custom_hostname_resolver(Names(**{"127.0.0.1": ["127.0.0.1"]}, site=addresses))
    async with target(echo) as where, served() as server:
        hosts = {"ip 192.0.2.1:80": str(server.address)}
        async with fake_proxy("socks5", hosts=hosts, unreachable=("2001:db8::1",)) as proxy:
            tunnel = await connect(through(proxy.url("socks5"), "http://site/", where))
            await tunnel.stream.aclose()
        assert proxy.asked == ["ip 2001:db8::1:80", "ip 192.0.2.1:80"]
        async with fake_proxy("socks5", unreachable=tuple(addresses)) as proxy:
            sentence = await failure(through(proxy.url("socks5"), "http://site/", where))
        assert len(proxy.asked) == 3
        assert "does not connect to site:80: host unreachable" in sentence


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_user_and_the_password_arrive_decoded(scheme: str, proxy_tls: ssl.SSLContext, ca_file: str) -> None:
    async with target(echo) as where, served() as server:
        login = DECODED if scheme.startswith("socks") else None
        async with fake_proxy(scheme, tls=tls_of(scheme, proxy_tls), login=login) as proxy:
            settings = through(proxy.url(scheme, LOGIN), server.url, where, tls=TLSSettings(ca_file=ca_file))
            tunnel = await connect(settings)
            await tunnel.stream.aclose()
    assert proxy.logins == [DECODED]
    # The token is the server's, and travels to it alone.
    assert not any(TOKEN.encode() in head for head in proxy.heads)


@pytest.mark.parametrize("answer", [CONNECTED, b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n", b"HTTP/1.1 200 OK\n\n"])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_bytes_that_follow_the_proxy_s_answer_are_kept(
    scheme: str, answer: bytes, proxy_tls: ssl.SSLContext, ca_file: str
) -> None:
    async with target(echo) as where:
        tls = tls_of(scheme, proxy_tls)
        async with fake_proxy(scheme, tls=tls, answer=answer, extra=b"HTTP/1.1 103 early\r\n\r\n") as proxy:
            settings = through(proxy.url(scheme), f"http://{where}/", tls=TLSSettings(ca_file=ca_file))
            assert settings.proxy is not None
            stream = await dial_through(settings.proxy, settings)
            # A bare socket has everything still in it: that is what TLS, splice and ssh take over.
            assert isinstance(stream, TLSStream if scheme == "https" else SocketStream)
            if isinstance(stream, SocketStream):
                assert stream.take_ahead() == b""
            assert await stream.receive_some(22) == b"HTTP/1.1 103 early\r\n\r\n"
            await stream.send_all(b"ping")
            assert await stream.receive_some() == b"ping"
            await stream.aclose()


async def test_the_user_agent_is_the_tunnel_s() -> None:
    async with target(echo) as where, served() as server, fake_proxy("http") as proxy:
        tunnel = await connect(through(proxy.url("http"), server.url, where, user_agent=" me/1 "))
        await tunnel.stream.aclose()
    assert b"\r\nUser-Agent: me/1\r\n" in proxy.heads[0]


async def test_each_transport_that_is_tried_goes_through_the_proxy() -> None:
    async with target(echo) as where, served() as server, fake_proxy("http") as proxy:
        tunnel = await connect(through(proxy.url("http"), server.url, where, transport=None))
        await tunnel.stream.aclose()
    assert set(proxy.asked) == {str(server.address)}


async def test_a_forwarder_s_tunnels_go_through_the_proxy() -> None:
    async with target(echo) as where, served() as server, fake_proxy("socks5h") as proxy:
        settings = through(proxy.url("socks5h"), server.url, where, forwards=[Forward(parse_listen("0"))])
        async with trio.open_nursery() as nursery:
            (listening,) = await nursery.start(forward, settings)
            for _ in range(2):
                async with await trio.open_tcp_stream(*listening.listen) as local:
                    await local.send_all(b"ping")
                    assert await local.receive_some() == b"ping"
            nursery.cancel_scope.cancel()
    assert len(proxy.asked) == 2


# --- a program's own tunnel ---------------------------------------------------------------------


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    return monkeypatch


async def test_a_program_can_name_a_proxy_leave_it_to_the_environment_or_want_none(
    bare_environment: pytest.MonkeyPatch,
) -> None:
    async with target(echo) as where, served() as server:
        async with fake_proxy("http", hosts={"site.invalid:80": str(server.address)}) as proxy:

            async def ask(**more: Any) -> None:
                tunnel = await http2tcp.open_tunnel("http://site.invalid/", where, token=TOKEN, **more)
                await tunnel.aclose()

            await ask(proxy=proxy.url("http"))
            assert len(proxy.asked) == 1
            bare_environment.setenv("http_proxy", proxy.url("http"))
            await ask()
            assert len(proxy.asked) == 2
            with pytest.raises(ResolveFailed):
                await ask(proxy=False)
            with pytest.raises(http2tcp.Http2tcpError, match="begins with http://"):
                await ask(proxy="ftp://h")
            bare_environment.setenv("NO_PROXY", "site.invalid")
            with pytest.raises(ResolveFailed):
                await ask()
            assert len(proxy.asked) == 2


# --- TLS in TLS ---------------------------------------------------------------------------------


async def test_a_stream_that_was_cut_inside_the_proxy_s_session_is_no_clean_end(
    proxy_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")

    async with target(greet) as where, served() as server, fake_proxy("https", tls=proxy_tls) as proxy:
        for close_notify in (True, False):
            async with tls_front(server.address, tmp_path, close_notify=close_notify) as front:
                path = tmp_path / "both.pem"
                path.write_bytes(Path(ca_file).read_bytes() + front.ca_file.read_bytes())
                settings = through(proxy.url("https"), front.url, where, tls=TLSSettings(ca_file=str(path)))
                tunnel = await connect(settings)
                assert isinstance(tunnel.stream, TLSOverStream)
                assert await tunnel.stream.receive_some() == b"hello"
                if close_notify:
                    assert await tunnel.stream.receive_some() == b""
                    assert await tunnel.stream.receive_some() == b""
                else:
                    with pytest.raises(trio.BrokenResourceError, match="close_notify"):
                        await tunnel.stream.receive_some()
                await tunnel.stream.aclose()


@pytest.mark.parametrize("ending", ["eof", "cut"])
async def test_the_endpoint_learns_whether_we_ended_or_broke_off(
    ending: str, proxy_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    async with target(echo) as where, served() as server, fake_proxy("https", tls=proxy_tls) as proxy:
        async with tls_front(server.address, tmp_path) as front:
            with open(ca_file, "ab") as file:
                file.write(front.ca_file.read_bytes())
            settings = through(proxy.url("https"), front.url, where, tls=TLSSettings(ca_file=ca_file))
            tunnel = await connect(settings)
            assert not tunnel.stream.ends.half_close
            with pytest.raises(HalfCloseUnsupported):
                await tunnel.stream.send_eof()
            if ending == "eof":
                await tunnel.stream.aclose()
            else:
                tunnel.stream.abort()
            with trio.fail_after(5):
                while not front.client_ends:
                    await trio.sleep(0.01)
            assert front.client_ends == [ending]


async def test_the_endpoint_s_certificate_and_key_are_verified_inside_the_proxy_s_session(
    proxy_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    async with target(echo) as where, served() as server, fake_proxy("https", tls=proxy_tls) as proxy:
        async with tls_front(server.address, tmp_path) as front:
            unknown = through(proxy.url("https"), front.url, where, tls=TLSSettings(ca_file=ca_file))
            assert "authority that is not known here" in await failure(unknown, TLSFailed)
            with open(ca_file, "ab") as file:
                file.write(front.ca_file.read_bytes())
            pinned = TLSSettings(ca_file=ca_file, pins=(bytes(32),))
            sentence = await failure(through(proxy.url("https"), front.url, where, tls=pinned), TLSFailed)
            assert "another public key" in sentence
            named = TLSSettings(ca_file=ca_file, server_name="other.example")
            sentence = await failure(through(proxy.url("https"), front.url, where, tls=named), TLSFailed)
            assert "not for other.example" in sentence
            # Through the proxy, but no TLS there.
            plain = f"https://{server.address}/"
            settings = through(proxy.url("https"), plain, where, tls=TLSSettings(ca_file=ca_file))
            assert "does not speak TLS" in await failure(settings, TLSFailed)


async def test_a_session_inside_the_proxy_s_session_is_used_like_any_stream(
    proxy_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    async with target(echo) as where, served() as server, fake_proxy("https", tls=proxy_tls) as proxy:
        async with tls_front(server.address, tmp_path) as front:
            with open(ca_file, "ab") as file:
                file.write(front.ca_file.read_bytes())
            settings = through(proxy.url("https"), front.url, where, tls=TLSSettings(ca_file=ca_file))
            stream = (await connect(settings)).stream
            assert isinstance(stream, TLSOverStream)
            assert stream.version() == "TLSv1.3"
            stream.unread(b"ahead")
            assert await stream.receive_some(2) == b"ah"
            assert await stream.receive_some() == b"ead"
            await stream.wait_send_all_might_not_block()
            # A send that was cut off leaves half a record behind.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(50_000_000))
                # Until nobody on the way takes more.
                await trio.testing.wait_all_tasks_blocked(0.1)
                nursery.cancel_scope.cancel()
            with pytest.raises(trio.BrokenResourceError, match="cancelled half-way"):
                await stream.send_all(b"more")
            stream.abort()
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await stream.receive_some()


async def test_a_proxy_that_leaves_in_the_endpoint_s_handshake_breaks_the_endpoint_s_hop(
    proxy_tls: ssl.SSLContext, ca_file: str
) -> None:
    async with target(resetting) as where, fake_proxy("https", tls=proxy_tls) as proxy:
        settings = through(proxy.url("https"), f"https://{where}/", tls=TLSSettings(ca_file=ca_file))
        sentence = await failure(settings, TLSFailed)
    assert where in sentence
    assert "handshake" in sentence


# --- what fails ---------------------------------------------------------------------------------

SILENCE = object()


async def answered(answer: bytes | object, scheme: str = "http", endpoint: str = "https://site.invalid/") -> str:
    """The sentence for a proxy that says this, whatever it is asked, and closes."""

    async def handler(stream: trio.SocketStream) -> None:
        if isinstance(answer, bytes):
            await stream.receive_some(1000)
            await stream.send_all(answer)
            # To close with bytes unread would be a reset.
            while await stream.receive_some(1000):
                pass
        else:
            await trio.sleep_forever()

    async with target(handler) as where:
        return await failure(through(f"{scheme}://{LOGIN}{where}", endpoint))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "answered 403 Forbidden: it does not allow site.invalid:443"),
        (b"HTTP/1.1 403 \x1b[31mred\r\n\r\n", "answered 403"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered 502 Bad Gateway: it cannot reach site.invalid:443"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "it cannot reach site.invalid:443"),
        (b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 9999\r\n\r\n<html>", "it cannot reach site.invalid:443"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "is it a proxy at all?"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://x/\r\n\r\n", "is it a proxy at all?"),
        (b"HTTP/1.1 500 \xff\xfe\r\n\r\n", "answered 500"),
        (b"HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic\r\n\r\n", "user and password (401; it offers Basic)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer in HTTP/1.1"),
        (b"\x00\xff" * 40_000, "does not answer in HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000, "head is too long"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000, "head is too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, "head is too long"),
    ],
)
async def test_a_proxy_s_refusal_is_a_sentence_that_names_it(answer: bytes, words: str) -> None:
    sentence = await answered(answer)
    assert words in sentence
    assert sentence.startswith("http://127.0.0.1:")
    assert "(from --proxy)" in sentence


async def test_a_403_for_an_http_endpoint_says_that_port_443_may_be_all_that_is_allowed() -> None:
    sentence = await answered(b"HTTP/1.1 403 Forbidden\r\n\r\n", endpoint="http://site.invalid/")
    assert "port 443" in sentence
    assert "https" in sentence


@pytest.mark.parametrize(
    ("fields", "login", "words"),
    [
        ('Basic realm="x"', "", ["wants a login (407; it offers Basic)", "USER:PASSWORD@", "--proxy @FILE"]),
        ("NEGOTIATE, NTLM, Basic", "", ["it offers NEGOTIATE, NTLM, Basic", "USER:PASSWORD@"]),
        ("", "", ["wants a login (407; it names no scheme)", "USER:PASSWORD@"]),
        ("Basic", LOGIN, ["does not take this user and password (407; it offers Basic)"]),
        ("Negotiate, NTLM", "", ["it offers Negotiate, NTLM; http2tcp supports Basic", "cntlm"]),
        ("Negotiate, NTLM", LOGIN, ["it offers Negotiate, NTLM; http2tcp supports Basic", "cntlm"]),
    ],
)
async def test_a_407_says_which_schemes_the_proxy_offers(fields: str, login: str, words: list[str]) -> None:
    answer = f"HTTP/1.1 407 Authentication Required\r\nProxy-Authenticate: {fields}\r\n\r\n".encode()

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(answer)

    async with target(handler) as where:
        sentence = await failure(through(f"http://{login}{where}", "https://site.invalid/"))
    for part in words:
        assert part in sentence


async def closing(stream: trio.SocketStream) -> None:
    # The whole of it: whoever closes with bytes unread resets. With a key share of ML-KEM it is over 1,500 bytes.
    await stream.receive_some()


async def resetting(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    reset(stream)


async def alerting(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    # RFC 8446, section 6: fatal, handshake_failure.
    await stream.send_all(b"\x15\x03\x03\x00\x02\x02\x28")


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_a_proxy_that_closes_or_resets_instead_of_answering_is_told(scheme: str) -> None:
    async with target(closing) as where:
        sentence = await failure(through(f"{scheme}://{LOGIN}{where}", "https://site.invalid/"))
        assert "closed the connection without an answer" in sentence
    async with target(resetting) as where:
        sentence = await failure(through(f"{scheme}://{LOGIN}{where}", "https://site.invalid/"))
        assert "broke off without an answer: the connection broke: Connection reset by peer" in sentence


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_is_not_there_is_told(scheme: str) -> None:
    settings = through(f"{scheme}://{LOGIN}127.0.0.1:{closed_port()}", "https://127.9.9.9/")
    assert "cannot be reached: connection refused" in await failure(settings)
    trio.socket.set_custom_hostname_resolver(Names())
    settings = through(f"{scheme}://{LOGIN}proxy.invalid:1", "https://127.9.9.9/")
    if scheme == "socks5":
        trio.socket.set_custom_hostname_resolver(Names(**{"127.9.9.9": ["127.9.9.9"]}))
    assert "cannot be reached: the name has no address" in await failure(settings)


async def test_a_name_that_socks5_leaves_to_this_machine_and_that_has_no_address_is_told() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    sentence = await failure(through("socks5://127.0.0.1:1", "https://site.invalid/"), ResolveFailed)
    assert "cannot find site.invalid" in sentence
    assert "socks5h://" in sentence


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("http", "gave no answer within 10 s: it may be unable to reach site.invalid:443"),
        ("https", "did not complete the TLS handshake within 10 s"),
        ("socks5h", "gave no answer within 10 s: it may be unable to reach site.invalid:443"),
    ],
)
async def test_a_silent_proxy_is_given_up_after_its_own_deadline(
    scheme: str, words: str, patient_clock: trio.testing.MockClock
) -> None:
    started = trio.current_time()
    assert words in await answered(SILENCE, scheme)
    assert 10 <= trio.current_time() - started < 11


async def test_a_proxy_that_answers_a_byte_a_second_is_given_up_too(patient_clock: trio.testing.MockClock) -> None:
    async def drip(stream: trio.SocketStream) -> None:
        for byte in b"HTTP/1.1 200 " + b"O" * 100:
            await stream.send_all(bytes([byte]))
            await trio.sleep(1)

    async with target(drip) as where:
        sentence = await failure(through(f"http://{where}", "https://site.invalid/"))
    assert "gave no answer within 10 s" in sentence


async def test_a_deadline_that_was_set_is_the_one_that_is_named(patient_clock: trio.testing.MockClock) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with target(silent) as where:
        sentence = await failure(through(f"http://{where}", "https://site.invalid/", proxy_timeout=2.5))
    assert "within 2.5 s" in sentence


async def test_an_https_proxy_has_to_be_the_one_that_its_certificate_is_for(
    proxy_tls: ssl.SSLContext, ca_file: str, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    async with fake_proxy("https", tls=proxy_tls) as proxy:
        tls = TLSSettings(ca_file=str(stranger))
        sentence = await failure(through(proxy.url("https", LOGIN), "http://127.9.9.9/", tls=tls))
        assert "has a certificate that is not valid here: unable to get local issuer certificate" in sentence
        assert "--ca-file" in sentence
        # --tls-server-name is the endpoint's, not the proxy's.
        tls = TLSSettings(ca_file=ca_file, server_name="127.0.0.1")
        trio.socket.set_custom_hostname_resolver(Names(**{"proxy.example": ["127.0.0.1"]}))
        url = proxy.url("https", LOGIN, "proxy.example")
        sentence = await failure(through(url, "http://127.9.9.9/", tls=tls))
        assert "certificate is not valid for 'proxy.example'" in sentence
    # Nothing was asked, so no password was sent.
    assert proxy.logins == []


@pytest.mark.parametrize(
    ("habit", "words"),
    [
        (closing, "ended the TLS handshake: is it an http:// proxy?"),
        (resetting, "broke the TLS handshake off: connection reset by peer"),
        (alerting, "failed the TLS handshake: "),
    ],
)
async def test_an_https_proxy_that_leaves_in_the_handshake_is_told(habit: Handler, words: str) -> None:
    async with target(habit) as where:
        assert words in await failure(through(f"https://{LOGIN}{where}", "https://site.invalid/"))


async def test_authorities_that_cannot_be_read_are_no_fault_of_the_proxy(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    async with target(closing) as where:
        tls = TLSSettings(ca_file=str(tmp_path / "ca.pem"))
        assert "--ca-file" in await failure(through(f"https://{where}", "https://site.invalid/", tls=tls), TLSFailed)


async def test_insecure_trusts_any_proxy_s_certificate_too(proxy_tls: ssl.SSLContext) -> None:
    async with target(echo) as where, served() as server, fake_proxy("https", tls=proxy_tls) as proxy:
        tunnel = await connect(through(proxy.url("https"), server.url, where, tls=TLSSettings(verify=False)))
        await tunnel.stream.aclose()
    assert proxy.asked


async def test_the_wrong_scheme_for_a_proxy_is_told(proxy_tls: ssl.SSLContext, ca_file: str) -> None:
    async with fake_proxy("http") as proxy:
        assert "does not speak TLS: is it an http:// proxy?" in await answered(b"HTTP/1.1 400 Bad\r\n\r\n", "https")
        assert "is it an http:// proxy" in await answered(b"HTTP/1.1 400 Bad\r\n\r\n", "socks5h")
        assert not proxy.asked
    async with fake_proxy("socks5h") as proxy:
        assert "is it a SOCKS or an https proxy" in await answered(b"\x05\xff", "http")
    async with fake_proxy("https", tls=proxy_tls) as proxy:
        sentence = await failure(through(proxy.url("http"), "https://site.invalid/"))
        assert "without an answer" in sentence or "does not answer in HTTP" in sentence


async def test_a_socks_proxy_that_wants_a_login_or_another_one_is_told() -> None:
    async with fake_proxy("socks5h", login=b"someone:else") as proxy:
        sentence = await failure(through(proxy.url("socks5h"), "https://site.invalid/"))
        assert "wants a login: put USER:PASSWORD@" in sentence
        sentence = await failure(through(proxy.url("socks5h", LOGIN), "https://site.invalid/"))
        assert "does not take this user and password" in sentence


async def test_a_verbose_client_says_which_proxy_and_who_named_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with target(echo) as where, served() as server, fake_proxy("http") as proxy:
        tunnel = await connect(through(proxy.url("http", LOGIN), server.url, where))
        await tunnel.stream.aclose()
    assert f"through the proxy {proxy.url('http')} (from --proxy)" in caplog.messages


def test_ssh_cannot_be_handed_a_connection_that_is_inside_a_session_of_ours() -> None:
    with pytest.raises(SettingsError, match="--fdpass cannot go through https://"):
        through("https://h:1", "http://site/", fdpass=True)
    through("socks5h://h:1", "http://site/", fdpass=True)
    through("http://h:1", "http://site/", fdpass=True)
