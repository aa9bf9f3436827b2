"""What an error says of itself: to the client in a status, to the user in an exit code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from http2tcp import errors
from http2tcp.errors import Http2tcpError, Refusal, TunnelError

# RFC 9209, section 2.3: the registered types.
REGISTERED_TYPES = [
    "dns_timeout",
    "dns_error",
    "destination_not_found",
    "destination_unavailable",
    "destination_ip_prohibited",
    "destination_ip_unroutable",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "connection_read_timeout",
    "connection_write_timeout",
    "connection_limit_reached",
    "tls_protocol_error",
    "tls_certificate_error",
    "tls_alert_received",
    "http_request_error",
    "http_request_denied",
    "http_response_incomplete",
    "proxy_internal_response",
    "proxy_internal_error",
    "proxy_configuration_error",
    "proxy_loop_detected",
]


def below(kind: type[Http2tcpError]) -> Iterator[type[Http2tcpError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


REFUSALS = list(below(Refusal))
TUNNEL_ERRORS = list(below(TunnelError))


@pytest.mark.parametrize(
    ("name", "status", "proxy_error"),
    [
        ("BadRequest", 400, "http_request_error"),
        ("Unauthorized", 401, "http_request_denied"),
        ("ProxyAuthenticationRequired", 407, "http_request_denied"),
        ("Forbidden", 403, "http_request_denied"),
        ("NotFound", 404, "http_request_error"),
        ("HeadTimeout", 408, "http_request_error"),
        ("UpgradeRequired", 426, "http_request_error"),
        ("HeadTooLarge", 431, "http_request_error"),
        ("InternalError", 500, "proxy_internal_error"),
        ("LimitReached", 503, "connection_limit_reached"),
        ("TargetTimeout", 504, "connection_timeout"),
    ],
)
def test_a_refusal_has_the_status_and_the_type_of_the_table(name: str, status: int, proxy_error: str) -> None:
    refusal = getattr(errors, name)()
    assert (refusal.status, refusal.proxy_error) == (status, proxy_error)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_one_printable_line_with_a_registered_type(kind: type[Refusal]) -> None:
    refusal = kind()
    assert str(refusal) == kind.text
    assert kind.text.isprintable()
    assert refusal.phrase
    assert refusal.proxy_error in REGISTERED_TYPES


def test_a_refusal_can_say_more_without_changing_the_others() -> None:
    refusal = errors.TargetUnreachable("cannot reach db:5432", proxy_error="connection_refused")
    assert (str(refusal), refusal.proxy_error) == ("cannot reach db:5432", "connection_refused")
    assert errors.TargetUnreachable().proxy_error == "destination_unavailable"


def test_a_401_says_which_scheme_is_wanted_and_a_503_when_to_come_back() -> None:
    assert errors.Unauthorized.headers[0][0] == "WWW-Authenticate"
    assert errors.Unauthorized.headers[0][1].startswith("Bearer")
    assert errors.LimitReached.headers[0][0] == "Retry-After"


def test_scripts_can_tell_the_hops_apart_by_the_exit_code() -> None:
    codes = [kind.exit_code for kind in TunnelError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert all(64 <= code <= 78 for code in codes)
    assert errors.ListenError.exit_code not in codes


@pytest.mark.parametrize("kind", TUNNEL_ERRORS)
def test_a_tunnel_error_names_its_hop(kind: type[TunnelError]) -> None:
    assert kind.exit_code >= 64
    assert kind.hop in ("name", "TCP", "TLS", "front end", "http2tcp server", "target", "tunnel", "stdio", "proxy")
    assert kind.__doc__


@pytest.mark.parametrize("kind", [errors.AddressError, errors.SettingsError])
def test_a_mistake_of_the_user_is_exit_2(kind: type[Http2tcpError]) -> None:
    assert kind.exit_code == 2
