"""Each failure's sentence names what is at fault and what its reader can do."""

from __future__ import annotations

import errno
import os
import re
import shlex
import ssl
from collections.abc import Iterator
from itertools import product

import pytest

from http2tcp.address import Address, TCPAddress, UnixAddress, parse_endpoint
from http2tcp.client.check.hops import Attempt, failed
from http2tcp.client.diagnosis import explain_certificates, explain_refusal, explain_tls, quotes_credentials
from http2tcp.errors import (
    BadRequest,
    CredentialsRefused,
    DestinationForbidden,
    Forbidden,
    FrontEndFailed,
    InternalError,
    OriginalServer,
    Refusal,
    ServerRefused,
    TargetFailed,
    TLSFailed,
    TunnelError,
    UpgradeNotPassed,
)
from http2tcp.printable import safe
from http2tcp.protocol.client_handshake import Refused
from http2tcp.protocol.transport import Transport

HTTPS = "https://example.com/~http2tcp/"
HTTP = "http://example.com/~http2tcp/"


def explained(
    status: int,
    proxy_error: str | None = None,
    text: str = "",
    *,
    server: str = "",
    location: str = "",
    challenged: bool = False,
    page: str = "",
    url: str = HTTPS,
    destination: TCPAddress | None = TCPAddress("db", 5432),
    transport: Transport = Transport.TCP,
    with_token: bool = True,
) -> TunnelError:
    refused = Refused(
        status=status,
        proxy_error=proxy_error,
        text=text,
        server=server,
        location=location,
        challenged=challenged,
        page=page,
    )
    error = explain_refusal(refused, parse_endpoint(url), destination, transport, with_token=with_token)
    assert str(error).isprintable()
    return error


# --- what our own server says -----------------------------------------------------------------


def test_a_bug_of_the_servers_is_told_with_the_id_under_which_its_log_says_why() -> None:
    refused = Refused(500, "proxy_internal_error", InternalError.text, session="5e55")
    error = explain_refusal(refused, parse_endpoint(HTTPS), None, Transport.TCP, with_token=True)
    assert isinstance(error, ServerRefused)
    assert str(error) == "the server refused (500): the http2tcp server failed; its log says why, at session 5e55"


def test_without_a_token_the_user_is_told_how_to_give_one() -> None:
    error = explained(401, "http_request_denied", with_token=False)
    assert isinstance(error, CredentialsRefused)
    assert "--token-file" in str(error)


def test_with_a_wrong_token_the_user_is_told_what_can_make_it_wrong() -> None:
    """The server may have nothing but a hash of it, so that there is nothing to compare it with."""
    error = explained(401, "http_request_denied")
    assert isinstance(error, CredentialsRefused)
    for words in ("does not know this token", "not reloaded", "expired", "first line", "quotes", "env file"):
        assert words in str(error)
    assert "compare" not in str(error)


@pytest.mark.parametrize("destination", [TCPAddress("db", 5432), TCPAddress("::1", 22), UnixAddress("/run/a b/$(id)")])
def test_the_command_that_says_why_a_destination_is_closed_can_be_run_as_it_is_printed(destination: Address) -> None:
    refused = Refused(403, "http_request_denied", Forbidden.text, session="5e55")
    sentence = str(explain_refusal(refused, parse_endpoint(HTTPS), destination, Transport.TCP, with_token=True))
    command = shlex.split(sentence.split("`")[1])
    assert command == ["http2tcp", "-s", "--config", "FILE", "--check", "--as", "NAME", str(destination)]
    # Where to find the name, which only the server has.
    assert "session 5e55 of its log" in sentence


def test_no_command_is_printed_for_a_destination_that_only_the_server_knows() -> None:
    sentence = str(explained(403, "http_request_denied", Forbidden.text, destination=None))
    assert "--as" not in sentence
    assert "log names the token and the destination" in sentence


def test_a_forbidden_destination_is_named_with_the_servers_reason() -> None:
    error = explained(403, "destination_ip_prohibited", "link-local addresses are closed")
    assert isinstance(error, DestinationForbidden)
    assert "db:5432" in str(error)
    assert "link-local addresses are closed" in str(error)


def test_a_forbidden_destination_is_named_once() -> None:
    words = "db:5432 is not allowed: every address of it is closed, by a deny rule or as link-local or metadata"
    assert str(explained(403, "destination_ip_prohibited", words)) == words


def test_who_may_not_go_there_is_told_how_the_operator_finds_the_rule() -> None:
    sentence = str(explained(403, "http_request_denied", "this destination is not allowed"))
    assert sentence.startswith("the server does not let this token go to db:5432; on the server, ")
    sentence = str(explained(403, "http_request_denied", "this destination is not allowed", with_token=False))
    assert sentence.startswith("the server lets nobody without a token go to db:5432: leave -d out")


def test_a_forbidden_default_destination_is_called_that() -> None:
    assert "its default destination" in str(explained(403, "http_request_denied", destination=None))


def test_a_wrong_path_names_the_two_options_to_compare() -> None:
    error = explained(404, "http_request_error")
    assert isinstance(error, ServerRefused)
    assert "/~http2tcp/" in str(error)
    assert "--path" in str(error)


@pytest.mark.parametrize("status", [502, 504])
def test_a_target_that_cannot_be_reached_is_told_in_the_servers_words(status: int) -> None:
    error = explained(status, "connection_refused", "cannot reach db:5432 from the server: connection refused")
    assert isinstance(error, TargetFailed)
    assert str(error) == "cannot reach db:5432 from the server: connection refused"


@pytest.mark.parametrize("transport", Transport)
def test_an_upgrade_that_a_front_end_dropped_shows_the_nginx_lines(transport: Transport) -> None:
    error = explained(426, "http_request_error", transport=transport)
    assert isinstance(error, FrontEndFailed)
    assert "proxy_set_header Connection upgrade;" in str(error)
    assert f"proxy_set_header Upgrade {transport.value};" in str(error)
    assert "proxy_http_version 1.1;" in str(error)


def test_a_request_that_a_front_end_changed_shows_the_nginx_lines() -> None:
    """Without proxy_http_version 1.1 nginx speaks HTTP/1.0 to the server."""
    error = explained(400, "http_request_error", BadRequest.text)
    assert isinstance(error, FrontEndFailed)
    assert "proxy_http_version 1.1;" in str(error)


def test_an_address_that_the_server_does_not_understand_is_told_in_its_words() -> None:
    error = explained(400, "http_request_error", "the destination is not understood: 'x': expected HOST:PORT")
    assert isinstance(error, ServerRefused)
    assert "expected HOST:PORT" in str(error)


@pytest.mark.parametrize("status", [408, 431, 429, 500, 503, 599])
def test_any_other_refusal_of_the_server_shows_its_status_and_reason(status: int) -> None:
    error = explained(status, "connection_limit_reached", "the http2tcp server is at its limit")
    assert isinstance(error, ServerRefused)
    assert str(status) in str(error)
    assert "at its limit" in str(error)


# --- what a front end says --------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 405, 426, 501])
@pytest.mark.parametrize("url", [HTTPS, HTTP])
def test_a_front_end_that_did_not_pass_the_upgrade_is_named_and_shown_the_nginx_lines(status: int, url: str) -> None:
    error = explained(status, server="nginx/1.22.1", url=url)
    assert isinstance(error, FrontEndFailed)
    assert f"{url} answered {status} (nginx/1.22.1)" in str(error)
    assert "did not pass the upgrade on" in str(error)
    assert "proxy_http_version 1.1; proxy_set_header Connection upgrade; proxy_set_header Upgrade tcp;" in str(error)


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("server", ["", "nginx/1.22.1", "Apache", "cloudflare"])
def test_where_something_else_answers_the_path_is_named_first_and_no_upgrade_lines(status: int, server: str) -> None:
    error = explained(status, server=server)
    assert isinstance(error, UpgradeNotPassed)
    assert "path" in str(error)
    assert "/~http2tcp/ in -e" in str(error) or "answers at /~http2tcp/" in str(error)
    assert "proxy_set_header" not in str(error)
    assert "pass the upgrade" not in str(error)
    if status == 404:
        assert str(error).index("path is wrong") < str(error).index("http2tcp itself")


@pytest.mark.parametrize("status", [403, 404, 429, 502, 503, 504])
@pytest.mark.parametrize("server", ["", "nginx", "envoy", "cloudflare", "Apache"])
def test_what_may_be_http2tcps_own_refusal_behind_another_page_names_both_causes(status: int, server: str) -> None:
    """A front end that replaces pages takes the Proxy-Status away with them."""
    sentence = str(explained(status, server=server))
    assert "http2tcp" in sentence.replace(HTTPS, "").replace("no http2tcp server", "")
    assert (
        "replaced its page" in sentence or "page was replaced" in sentence or "probably shows its own page" in sentence
    )
    assert "; or " in sentence or ", or " in sentence
    if status in (502, 504):
        assert "db:5432" in sentence
        assert "no http2tcp server behind it" in sentence
    assert ("Cloudflare" in sentence) is (server == "cloudflare")


def test_the_likelier_cause_comes_first() -> None:
    """Cloudflare has a status of its own for a dead origin, and shows a page of its own for an origin's 502."""
    own, nothing = "cannot reach db:5432", "no http2tcp server"
    sentence = str(explained(502, server="cloudflare"))
    assert sentence.index(own) < sentence.index(nothing)
    sentence = str(explained(502, server="nginx"))
    assert sentence.index(nothing) < sentence.index(own)


def test_nginx_s_503_is_a_limit_of_its_own_and_not_a_missing_server() -> None:
    """It says 502 where nothing is behind it."""
    sentence = str(explained(503, server="nginx/1.22.1"))
    assert "limit_req" in sentence
    assert "no http2tcp server" not in sentence


@pytest.mark.parametrize(
    ("page", "advice"),
    [
        ("400 No required SSL certificate was sent", "--client-cert"),
        ("400 The SSL certificate error", "does not accept the certificate"),
        ("400 The plain HTTP request was sent to HTTPS port", "https://"),
        ("400 Request Header Or Cookie Too Large", "--header"),
        ("414 Request-URI Too Large", "too long"),
    ],
)
def test_a_page_that_names_its_cause_is_believed_and_quoted(page: str, advice: str) -> None:
    error = explained(400, server="nginx/1.22.1", page=page)
    assert type(error) is FrontEndFailed
    assert f'(nginx/1.22.1, "{page}"): ' in str(error)
    assert advice in str(error)
    assert "pass the upgrade" not in str(error)


def test_any_other_page_s_words_are_quoted() -> None:
    assert 'answered 403 (cloudflare, "error code: 1020")' in str(
        explained(403, server="cloudflare", page="error code: 1020")
    )
    assert "answered 500 (\"Oh 'no'\")" in str(explained(500, page='Oh "no"'))
    assert len(str(explained(500, page="y" * 4000))) < 300


@pytest.mark.parametrize(
    "page", ["GET /?x HTTP/1.1 s3cr3t-t0ken", "S3CR3T-T0KEN", "dXNlcjpwYXNzd29yZA==", "team-cookie"]
)
def test_a_page_that_repeats_credentials_is_noticed(page: str) -> None:
    head = (
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: http2tcp/1\r\nUpgrade: tcp\r\n"
        b"Authorization: Basic dXNlcjpwYXNzd29yZA==\r\nHttp2tcp-Token: s3cr3t-t0ken\r\nCookie: team-cookie\r\n\r\n"
    )
    assert quotes_credentials(page, head, None)
    assert not quotes_credentials("400 No required SSL certificate was sent to example.com", head, None)
    assert quotes_credentials("abc", b"GET / HTTP/1.1\r\n\r\n", "abc")


# A stop after another mark. `https://?` and `::1` are none, and neither is an ellipsis before a mark.
DOUBLE_PUNCTUATION = re.compile(r"[.?!;,][.;:,?!]|: ?[.;,?!]|  |: *$")


def sentences() -> Iterator[TunnelError]:
    ours = [kind.text for kind in Refusal.__subclasses__() if hasattr(kind, "text")]
    texts = [*ours, "is it down?", "It is down.", "no!", ""]
    for status in (*range(200, 209), *range(300, 309), *range(400, 432), *range(500, 512), 599):
        for url, server, page in product((HTTPS, HTTP), ("", "nginx", "cloudflare", "x"), ("", "Oh no", "Why?")):
            for transport in (Transport.TCP, Transport.HTTP2TCP):
                for with_token in (True, False):
                    given = {"url": url, "server": server, "transport": transport, "with_token": with_token}
                    yield explained(status, page=page, location="/there/", **given)  # type: ignore[arg-type]
        for text, destination in product(texts, (None, TCPAddress("db", 5432))):
            yield explained(status, "http_request_denied", text, destination=destination)
    for error in (ssl_error(None), ssl_error("HTTP_REQUEST"), OSError("odd"), verification_error(10)):
        yield explain_tls(error, parse_endpoint(HTTPS), "inner.example")
    yield explain_certificates(ssl_error(None), ca_file=True, cert=True)
    yield explain_certificates(OSError("odd"), ca_file=True, cert=True)


def test_no_sentence_has_two_marks_where_one_is_meant() -> None:
    attempt = Attempt(Transport.TCP)
    for error in sentences():
        assert DOUBLE_PUNCTUATION.search(str(error)) is None, str(error)
        verdict = failed(error, attempt, "/").sentence
        assert DOUBLE_PUNCTUATION.search(verdict) is None, verdict
        assert verdict.endswith((".", "?", "!"))


def test_a_400_to_plain_http_asks_whether_https_was_meant() -> None:
    assert "https://?" in str(explained(400, url=HTTP))
    assert "https://?" not in str(explained(400))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("url", "location", "offered"),
    [
        (HTTPS, "https://example.com/~http2tcp?addr=db%3A5432", "https://example.com/~http2tcp"),
        (HTTPS.rstrip("/"), "/~http2tcp/?target_host=db&target_port=5432", HTTPS),
        (HTTPS.rstrip("/"), "//EXAMPLE.com./%7Ehttp2tcp/", HTTPS),
        (HTTPS.rstrip("/"), "https://user:secret@example.com:443/~http2tcp/#x", HTTPS),
        (HTTP, HTTPS, HTTPS),
        ("http://example.com:8080/p", "https://example.com:8443/p/", "https://example.com:8443/p/"),
        ("http://example.com", "https://example.com/", "https://example.com/"),
        ("https://example.com/p?k=v", "/p/?k=v&addr=db%3A1", "https://example.com/p/, with your query behind it"),
        (
            HTTP + "{?target_host,target_port}",
            HTTPS + "?target_host=db&target_port=1",
            HTTPS + ", with your template behind it",
        ),
        ("https://[2001:db8::1]/p", "https://[2001:db8::1]/p/", "https://[2001:db8::1]/p/"),
    ],
)
def test_a_redirect_to_the_endpoint_itself_gives_the_url_to_use(
    status: int, url: str, location: str, offered: str
) -> None:
    error = explained(status, location=location, url=url)
    assert isinstance(error, FrontEndFailed)
    assert str(error).endswith(f"; use that URL: -e {offered}")


@pytest.mark.parametrize(
    ("url", "location"),
    [
        (HTTPS, "https://www.example.com/~http2tcp/?addr=db%3A5432"),
        (HTTP, "https://www.example.com/~http2tcp"),
        ("https://www.example.com/~http2tcp/", HTTPS),
    ],
)
def test_a_redirect_between_a_site_and_its_www_is_offered_to_who_has_both(url: str, location: str) -> None:
    sentence = str(explained(301, location=location, url=url))
    host = location.partition("://")[2].partition("/")[0]
    assert f"; if that site is yours, use that URL: -e https://{host}/~http2tcp" in sentence
    assert "?" not in sentence


@pytest.mark.parametrize(
    ("location", "where"),
    [
        (
            "https://sso.example.net/auth?state=s3cret&rd=https://example.com/~http2tcp/",
            "https://sso.example.net/auth:",
        ),
        # The same path at another site: that of a gateway which serves many, or a stranger's.
        ("https://sso.example.net/~http2tcp/", "https://sso.example.net/~http2tcp/:"),
        ("https://wwwexample.com/~http2tcp/", "https://wwwexample.com/~http2tcp/:"),
        ("https://www.www.example.com/~http2tcp/", "https://www.www.example.com/~http2tcp/:"),
        ("https://example.com.evil.example/~http2tcp/", "evil.example/~http2tcp/:"),
        ("https://example.com@evil.example/~http2tcp/", "https://evil.example/~http2tcp/:"),
        ("https://user:s3cret@evil.example/", "https://evil.example/:"),
        ("https://example.com:8443/~http2tcp/", "https://example.com:8443/~http2tcp/:"),
        # To itself, with a cookie that nobody keeps here.
        ("/~http2tcp/", "https://example.com/~http2tcp/:"),
        ("/login?next=s3cret", "https://example.com/login:"),
        ("/~http2tcp/?login=s3cret", "https://example.com/~http2tcp/:"),
        ("/~http2tcp/login#s3cret", "https://example.com/~http2tcp/login:"),
        ("/", "https://example.com/:"),
        ("https://example.com\\@evil.example/~http2tcp/", "evil.example/~http2tcp/:"),
    ],
)
def test_a_redirect_to_anything_else_is_called_a_login_and_never_offered(location: str, where: str) -> None:
    error = explained(302, location=location)
    sentence = str(error)
    assert isinstance(error, FrontEndFailed)
    assert "probably to a login" in sentence
    assert where in sentence
    assert "-e https" not in sentence
    assert "let /~http2tcp/ through without it" in sentence
    assert "s3cret" not in sentence
    assert "?" not in sentence


def test_a_redirect_to_plain_http_is_not_offered() -> None:
    sentence = str(explained(301, location=HTTP))
    assert "to plain http, where the token would be for all to read" in sentence
    assert "-e " not in sentence


@pytest.mark.parametrize(
    "location", ["http://[::1", "http://[x]/", "//\u2100/", "http://h\x1b[2J/", "http://h:99999/", "https:///p"]
)
def test_a_redirect_to_nonsense_is_a_sentence_and_not_a_crash(location: str) -> None:
    error = explained(302, location=location)
    assert isinstance(error, FrontEndFailed)
    assert "redirect" in str(error)


def test_a_redirect_to_nowhere_gives_no_url() -> None:
    assert "-e " not in str(explained(302))


def test_a_front_end_that_wants_a_login_is_told_from_our_server() -> None:
    error = explained(401, challenged=True)
    assert isinstance(error, FrontEndFailed)
    assert "https://USER:PASSWORD@" in str(error)


def test_a_login_that_the_front_end_does_not_take_is_called_that_and_not_shown() -> None:
    error = explained(401, url="https://us:hunter2@example.com/")
    assert isinstance(error, FrontEndFailed)
    assert "does not take the login" in str(error)
    assert "hunter2" not in str(error)


def test_a_401_that_asks_for_no_login_is_taken_for_the_originals() -> None:
    error = explained(401)
    assert isinstance(error, OriginalServer)
    assert "--transport http2tcp/1.0" in str(error)


def test_a_bare_401_of_the_original_is_a_wrong_token() -> None:
    error = explained(401, transport=Transport.HTTP2TCP)
    assert isinstance(error, CredentialsRefused)
    assert "token is wrong" in str(error)


def test_a_403_of_a_front_end_is_not_blamed_on_the_destination() -> None:
    error = explained(403, server="envoy")
    assert isinstance(error, FrontEndFailed)
    assert "envoy" in str(error)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_front_end_with_nothing_behind_it_is_told_from_a_target_that_is_down(status: int) -> None:
    error = explained(status)
    assert isinstance(error, FrontEndFailed)
    assert "proxy_pass" in str(error)


@pytest.mark.parametrize("status", [200, 302, 400, 403, 404, 405, 426, 501])
def test_what_another_transport_may_get_past_is_told_from_the_rest(status: int) -> None:
    assert isinstance(explained(status), UpgradeNotPassed)
    for other in (401, 429, 500, 502, 503):
        assert not isinstance(explained(other, challenged=True), UpgradeNotPassed)


@pytest.mark.parametrize("status", [201, 204, 418, 429, 500, 511])
def test_any_other_answer_is_shown_with_its_status(status: int) -> None:
    error = explained(status)
    assert isinstance(error, FrontEndFailed)
    assert f"answered {status}" in str(error)


# --- text from elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r\nfake: line", "\x9b31m", "\u202etxt", "\0", "\u2028"])
def test_a_peer_cannot_drive_the_terminal(evil: str) -> None:
    assert safe(f"a{evil}b").isprintable()
    for error in (
        explained(403, "x", f"no{evil}"),
        explained(502, "x", f"no{evil}"),
        explained(599, "x", f"no{evil}"),
        explained(200, server=f"nginx{evil}"),
        explained(404, page=f"no{evil}"),
        explained(400, page=f"No required SSL certificate was sent{evil}"),
        explained(302, location=f"https://h/{evil}"),
        explained(302, location=f"https://[{evil}"),
    ):
        assert evil not in str(error)


def test_a_peers_text_is_shown_only_so_far() -> None:
    assert len(safe("y" * 10_000)) < 300
    assert len(str(explained(502, "x", "y" * 10_000))) < 400


# --- TLS --------------------------------------------------------------------------------------


def verification_error(code: int, message: str = "") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.verify_code, error.verify_message = code, message
    return error


def ssl_error(reason: str | None, kind: type[ssl.SSLError] = ssl.SSLError) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}]")
    error.reason = reason  # type: ignore[assignment]  # typeshed leaves out None, which OpenSSL may well give
    return error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (verification_error(10), "expired: renew it"),
        (verification_error(9), "clock"),
        (verification_error(18), "--ca-file"),
        (verification_error(19), "--ca-file"),
        (verification_error(20), "--ca-file"),
        (verification_error(21), "--ca-file"),
        (verification_error(62), "--tls-server-name"),
        (verification_error(64), "--tls-server-name"),
        (verification_error(23, "certificate revoked"), "certificate revoked"),
        (ssl_error("WRONG_VERSION_NUMBER"), "http://?"),
        (ssl_error("HTTP_REQUEST"), "http://?"),
        (ssl_error("RECORD_LAYER_FAILURE"), "http://?"),
        (ssl_error("UNEXPECTED_EOF_WHILE_READING", ssl.SSLEOFError), "does that port speak TLS?"),
        (ssl_error("UNEXPECTED_EOF_WHILE_READING"), "does that port speak TLS?"),
        (ssl_error("TLSV1_ALERT_PROTOCOL_VERSION"), "tlsv1 alert protocol version"),
        (ssl_error(None), "unknown error"),
        (OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), "connection reset by peer"),
        (OSError("odd"), "failed"),
    ],
)
def test_a_failed_handshake_says_what_to_check(error: OSError, advice: str) -> None:
    explained = explain_tls(error, parse_endpoint(HTTPS), "inner.example")
    assert isinstance(explained, TLSFailed)
    assert advice in str(explained)
    assert "example" in str(explained)
    assert str(explained).isprintable()


@pytest.mark.parametrize(
    ("ca_file", "cert", "names"),
    [
        (True, False, "--ca-file:"),
        (False, True, "--client-cert (and its key):"),
        (True, True, "--ca-file or --client-cert (and its key):"),
        (False, False, "the authorities of this system:"),
    ],
)
def test_certificate_files_that_cannot_be_used_are_named_by_their_options(
    ca_file: bool, cert: bool, names: str
) -> None:
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    explained = explain_certificates(missing, ca_file=ca_file, cert=cert)
    assert isinstance(explained, TLSFailed)
    assert f"cannot use {names} no such file or directory" in str(explained)
    assert "no start line" in str(explain_certificates(ssl_error("NO_START_LINE"), ca_file=ca_file, cert=cert))
