"""Each failure's sentence names what is at fault and what its reader can do."""

from __future__ import annotations

import errno
import os
import ssl

import pytest

from http2tcp.address import TCPAddress, parse_endpoint
from http2tcp.diagnosis import explain_certificates, explain_refusal, explain_tls, safe
from http2tcp.errors import (
    BadRequest,
    CredentialsRefused,
    DestinationForbidden,
    FrontEndFailed,
    InternalError,
    OriginalServer,
    ServerRefused,
    TargetFailed,
    TLSFailed,
    TunnelError,
    UpgradeNotPassed,
)
from http2tcp.protocol.client import Refused
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
    url: str = HTTPS,
    destination: TCPAddress | None = TCPAddress("db", 5432),
    transport: Transport = Transport.TCP,
    with_token: bool = True,
) -> TunnelError:
    refused = Refused(
        status=status, proxy_error=proxy_error, text=text, server=server, location=location, challenged=challenged
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


def test_with_a_wrong_token_the_user_is_told_to_compare_it() -> None:
    error = explained(401, "http_request_denied")
    assert isinstance(error, CredentialsRefused)
    assert "does not know this token" in str(error)


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
    assert sentence.startswith("the server does not let this token go to db:5432; over there, -s --check --as NAME")
    sentence = str(explained(403, "http_request_denied", "this destination is not allowed", with_token=False))
    assert sentence == "the server lets nobody without a token go to db:5432"


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


@pytest.mark.parametrize("status", [200, 400, 404, 426])
@pytest.mark.parametrize("url", [HTTPS, HTTP])
def test_a_front_end_that_did_not_pass_the_upgrade_is_named_and_shown_the_nginx_lines(status: int, url: str) -> None:
    error = explained(status, server="nginx/1.22.1", url=url)
    assert isinstance(error, FrontEndFailed)
    assert f"{url} answered {status} (nginx/1.22.1)" in str(error)
    assert "did not pass the upgrade on" in str(error)
    assert "proxy_http_version 1.1; proxy_set_header Connection upgrade; proxy_set_header Upgrade tcp;" in str(error)


def test_a_400_to_plain_http_asks_whether_https_was_meant() -> None:
    assert "https://?" in str(explained(400, url=HTTP))
    assert "https://?" not in str(explained(400))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://www.example.com/~http2tcp/?addr=db%3A5432", "https://www.example.com/~http2tcp/"),
        ("/login", "https://example.com/login"),
        ("other/#x", "https://example.com/~http2tcp/other/"),
        ("//cdn.example/", "https://cdn.example/"),
    ],
)
def test_a_redirect_gives_the_url_to_use(status: int, location: str, url: str) -> None:
    error = explained(status, location=location)
    assert isinstance(error, FrontEndFailed)
    assert str(error).endswith(f"-e {url}")


@pytest.mark.parametrize("location", ["http://[::1", "http://[x]/", "//\u2100/", "http://h\x1b[2J/"])
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
    error.reason = reason
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
