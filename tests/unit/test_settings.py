"""Settings that cannot be served are refused with a sentence, and no repr shows a secret."""

from __future__ import annotations

import dataclasses
import math

import pytest

from http2tcp.address import Address, TCPAddress, UnixAddress, parse_endpoint, parse_listen
from http2tcp.client.settings import ClientSettings, TLSSettings
from http2tcp.errors import SettingsError
from http2tcp.fields import check_token
from http2tcp.protocol.transport import Transport
from http2tcp.server.settings import ServerSettings

SSHD = TCPAddress("localhost", 22)
ENDPOINT = parse_endpoint("https://example.com/")


def test_a_server_listens_on_loopback_unless_told_otherwise() -> None:
    settings = ServerSettings(tokens=["tok"])
    assert settings.addresses == [TCPAddress("127.0.0.1", 12345)]
    assert (settings.head_timeout, settings.connect_timeout, settings.grace) == (10, 10, 30)


def test_a_server_without_a_token_or_a_destination_says_which_of_the_two_to_add() -> None:
    with pytest.raises(SettingsError) as caught:
        ServerSettings()
    assert "-t" in str(caught.value)
    assert "-d" in str(caught.value)


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ("127.0.0.1:9090", "127.0.0.1:9090"),
        (":9090", "127.0.0.1:9090"),
        ("127.0.0.1:9090", ":9090"),
        ("unix:/run/http2tcp.sock", "unix:/run/http2tcp.sock"),
    ],
)
def test_what_the_operator_alone_may_see_is_not_told_where_everybody_asks(listen: str, admin: str) -> None:
    addresses = [parse_listen("127.0.0.1:12345"), parse_listen(listen)]
    with pytest.raises(SettingsError, match=r"--admin needs an address of its own"):
        ServerSettings(tokens=["tok"], listen=addresses, admin=parse_listen(admin))


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ("127.0.0.1:9091", "127.0.0.1:9090"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        (":0", "127.0.0.1:0"),
        ("10.0.0.1:9090", "127.0.0.1:9090"),
        ("unix:/run/http2tcp.sock", "unix:/run/admin.sock"),
        ("unix:/run/http2tcp.sock", ":9090"),
    ],
)
def test_the_admin_listener_may_be_beside_the_other(listen: str, admin: str) -> None:
    ServerSettings(tokens=["tok"], listen=[parse_listen(listen)], admin=parse_listen(admin))


@pytest.mark.parametrize("destination", [SSHD, UnixAddress("/run/sshd.sock")])
def test_a_server_without_a_token_starts_where_the_destination_is_pinned(destination: Address) -> None:
    assert ServerSettings(destination=destination).tokens == ()


BAD_TOKENS = [
    "",
    " ",
    "\t\n",
    " tok",
    "tok ",
    "tok\n",
    "to\nk",
    "to\0k",
    "to\x1bk",
    "\ufeff",
    "to\x7fk",
    "to\udcffk",
]


@pytest.mark.parametrize("token", BAD_TOKENS)
def test_an_empty_or_broken_token_is_refused_on_both_sides(token: str) -> None:
    for settings in (
        lambda: ServerSettings(tokens=["good", token]),
        lambda: ServerSettings(tokens=[token], destination=SSHD),
        lambda: ClientSettings(endpoint=ENDPOINT, token=token),
        lambda: check_token(token),
    ):
        with pytest.raises(SettingsError) as caught:
            settings()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("token", ["t", "schlüssel", "a b", "dG9r==", "~!@#$%^&*()", "x" * 4096])
def test_any_printable_token_will_do(token: str) -> None:
    assert ServerSettings(tokens=[token]).tokens == [token]
    assert ClientSettings(endpoint=ENDPOINT, token=token).token == token


def test_one_string_is_not_taken_for_a_list_of_one_letter_tokens() -> None:
    with pytest.raises(SettingsError):
        ServerSettings(tokens="secret")


@pytest.mark.parametrize("path", ["/", "/~http2tcp/", "/a%20b", "/%C3%A4;v=1,2/@:!$&'()*+", "/{a}|[b]"])
def test_a_path_is_compared_as_requests_carry_it(path: str) -> None:
    assert ServerSettings(tokens=["tok"], path=path).path == path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ä", "/%C3%A4"),
        ("/a b", "/a%20b"),
        ("/\x1b", "/%1B"),
        ("/\udcff", "/%FF"),
        ("/a?", r"before \? and #"),
        ("/#a", r"before \? and #"),
    ],
)
def test_a_path_that_no_request_can_carry_is_refused(path: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        ServerSettings(tokens=["tok"], path=path)


@pytest.mark.parametrize("name", ["head_timeout", "connect_timeout", "keepalive", "grace"])
@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_time_that_no_clock_reaches_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(SettingsError, match=f"{name}: expected seconds"):
        ServerSettings(tokens=["tok"], **{name: seconds})  # type: ignore[arg-type]


def test_a_server_may_end_its_tunnels_at_once_and_wait_for_ever() -> None:
    ServerSettings(tokens=["tok"], grace=0, keepalive=math.inf, head_timeout=math.inf)


@pytest.mark.parametrize("path", ["", "~http2tcp/", "https://example.com/", "*"])
def test_a_path_begins_with_a_slash(path: str) -> None:
    with pytest.raises(SettingsError, match="begins with /"):
        ServerSettings(tokens=["tok"], path=path)


def test_no_repr_shows_a_secret() -> None:
    server = ServerSettings(tokens=["hunter2"], destination=SSHD)
    client = ClientSettings(
        endpoint=parse_endpoint("https://us:hunter2@example.com/"),
        token="hunter2",
        headers=[("Cookie", "session=hunter2")],
    )
    for settings in (server, client):
        assert "hunter2" not in repr(settings)
        assert "hunter2" not in str(settings)
        assert "hunter2" not in f"{settings!r:>10}"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerSettings(tokens=["tok"]).tokens = ()  # type: ignore[misc]


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(SettingsError, match="--client-cert"):
        ClientSettings(endpoint=ENDPOINT, tls=TLSSettings(client_key="key.pem"))
    ClientSettings(endpoint=ENDPOINT, tls=TLSSettings(client_cert="both.pem"))


@pytest.mark.parametrize("agent", ["a\r\nX: y", "a\n", "\x1b"])
def test_a_user_agent_cannot_add_fields_to_the_request(agent: str) -> None:
    with pytest.raises(SettingsError):
        ClientSettings(endpoint=ENDPOINT, user_agent=agent)


def test_a_connection_with_tls_cannot_be_handed_over() -> None:
    with pytest.raises(SettingsError, match="http endpoint"):
        ClientSettings(endpoint=ENDPOINT, fdpass=True)
    ClientSettings(endpoint=parse_endpoint("http://example.com"), fdpass=True)


def test_only_raw_bytes_over_plain_http_can_be_handed_over() -> None:
    plain = parse_endpoint("http://example.com")
    ClientSettings(endpoint=plain, fdpass=True, transport=Transport.TCP)
    with pytest.raises(SettingsError, match="raw transport"):
        ClientSettings(endpoint=plain, fdpass=True, transport=Transport.CONNECT_TCP)


def test_a_template_that_names_the_destination_in_its_path_needs_one() -> None:
    endpoint = parse_endpoint("https://h/{target_host}/{target_port}/")
    with pytest.raises(SettingsError, match="-d"):
        ClientSettings(endpoint=endpoint)
    ClientSettings(endpoint=endpoint, destination=SSHD)


@pytest.mark.parametrize("field", [("X", "a\r\nY: b"), ("X\r\nY", "b"), ("X Y", "b"), ("", "b"), ("Upgrade", "h2c")])
def test_a_header_field_cannot_add_another_or_change_the_upgrade(field: tuple[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        ClientSettings(endpoint=ENDPOINT, headers=[field])
    assert str(caught.value).isprintable()


def test_the_clients_phases_have_the_documented_deadlines() -> None:
    settings = ClientSettings(endpoint=ENDPOINT)
    assert (settings.connect_timeout, settings.tls_timeout, settings.answer_timeout) == (10, 10, 20)


@pytest.mark.parametrize(
    ("name", "value"), [("X-A", "a\r\nX-B: b"), ("X A", "b"), ("", "b"), ("Upgrade", "h2c"), ("X-\u00e4", "b")]
)
def test_a_header_field_that_would_change_the_request_is_refused_in_a_program_too(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ClientSettings(endpoint=parse_endpoint("http://x/"), headers=((name, value),))
    assert "b" not in str(caught.value).split()
