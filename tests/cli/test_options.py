"""Every option, its short form, its variable, and what the settings make of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from http2tcp.address import TCPAddress, UnixAddress, parse_endpoint
from http2tcp.client.settings import RESUME_OF_STDIO, ClientSettings
from http2tcp.command import options
from http2tcp.protocol.resume import BOUNDS
from http2tcp.protocol.transport import Transport
from http2tcp.server.limits import Limits, described_limits
from http2tcp.server.settings import ServerSettings
from http2tcp.version import __version__

from .conftest import Ran, Run, complaint

ENDPOINT = "https://example.com/~http2tcp/"
CLIENT = ("-c", "-e", ENDPOINT)
SERVER = ("-s", "-t", "secret")
PIN = bytes(range(32))

# --- the original's command lines ---------------------------------------------------------------


def test_a_server_with_a_token_alone_listens_where_the_original_does(http2tcp: Run) -> None:
    server = http2tcp("-s", "-t", "secret").server
    assert server.addresses == [TCPAddress("127.0.0.1", 12345)]
    assert list(server.tokens) == ["secret"]
    assert server.destination is None
    assert server.path is None
    assert not server.connect
    assert server.connect_timeout == 10
    assert server.grace == 30
    assert (server.resume, server.resume_window, server.resume_memory) == (3600, 4 * 1024**2, 256 * 1024**2)
    assert (server.max_detached, server.max_detached_per_token, server.node) == (1000, 32, "")


@pytest.mark.parametrize("server", ["-s", "--server"])
@pytest.mark.parametrize("listen", ["-l", "--listen"])
@pytest.mark.parametrize("token", ["-t", "--token"])
@pytest.mark.parametrize("destination", ["-d", "--destination"])
def test_the_originals_server_flags_work_in_both_spellings(
    http2tcp: Run, server: str, listen: str, token: str, destination: str
) -> None:
    settings = http2tcp(server, listen, "0.0.0.0:8080", token, "secret", destination, "localhost:22").server
    assert list(settings.addresses) == [TCPAddress("0.0.0.0", 8080)]
    assert list(settings.tokens) == ["secret"]
    assert settings.destination == TCPAddress("localhost", 22)


@pytest.mark.parametrize("client", ["-c", "--client"])
@pytest.mark.parametrize("endpoint", ["-e", "--endpoint"])
@pytest.mark.parametrize("destination", ["-d", "--destination"])
@pytest.mark.parametrize("listen", ["-l", "--listen"])
@pytest.mark.parametrize("token", ["-t", "--token"])
def test_the_originals_client_flags_work_in_both_spellings(
    http2tcp: Run, client: str, endpoint: str, destination: str, listen: str, token: str
) -> None:
    ran = http2tcp(
        client, endpoint, ENDPOINT, destination, "db:5432", listen, "127.0.0.1:5432", token, "x", "--user-agent", "me/1"
    )
    assert str(ran.client.endpoint) == ENDPOINT
    assert ran.client.destination == TCPAddress("db", 5432)
    assert ran.listen == TCPAddress("127.0.0.1", 5432)
    assert ran.client.token == "x"
    assert ran.client.user_agent == "me/1"


def test_values_may_follow_a_short_flag_directly_or_an_equals_sign(http2tcp: Run) -> None:
    client = http2tcp("-c", f"-e{ENDPOINT}", "-dlocalhost:22", "--token=-x=y").client
    assert str(client.endpoint) == ENDPOINT
    assert client.destination == TCPAddress("localhost", 22)
    assert client.token == "-x=y"


def test_a_token_may_begin_with_a_dash(http2tcp: Run) -> None:
    assert http2tcp(*CLIENT, "-t", "-secret").client.token == "-secret"


def test_a_client_without_further_options_has_the_documented_defaults(http2tcp: Run) -> None:
    ran = http2tcp(*CLIENT)
    client = ran.client
    assert ran.listen is None
    assert client.destination is None
    assert client.token is None
    assert client.transport is None  # the first that gets through
    assert client.keepalive == 25
    assert client.resume == 900
    assert client.user_agent == f"http2tcp/{__version__}"
    assert list(client.headers) == []
    assert client.tls.verify
    assert (client.connect_timeout, client.tls_timeout, client.answer_timeout) == (10, 10, 20)


# --- tunnels that come back -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        # A login is worth waiting for; who uses a listener connects again.
        ((), 900),
        (("-l", "5432", "-d", "db:5432"), 60),
        (("-L", "5432:db:5432"), 60),
        (("-D", "1080"), 60),
        (("--no-resume",), 0),
        (("--no-resume", "-D", "1080"), 0),
    ],
)
def test_a_client_asks_to_be_waited_for_as_its_use_needs_it(
    http2tcp: Run, arguments: tuple[str, ...], seconds: float
) -> None:
    assert http2tcp(*CLIENT, *arguments).client.resume == seconds


def test_what_is_handed_to_ssh_cannot_come_back(http2tcp: Run) -> None:
    assert http2tcp("-c", "-e", "http://h/", "--fdpass").client.resume == 0


@pytest.mark.parametrize("text", ["0", "0.0"])
def test_a_server_can_do_without(http2tcp: Run, text: str) -> None:
    assert http2tcp(*SERVER, "--resume", text).server.resume == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume", "-1"), "--resume"),
        (("--resume", "soon"), "expected a time"),
        # Every client would end its tunnels for such a window.
        (("--resume-window", "255K"), "256K to 64M"),
        (("--resume-window", "65M"), "256K to 64M"),
        (("--resume-window", "0"), "expected bytes"),
        (("--resume-memory", "much"), "expected bytes"),
        (("--max-detached", "0"), "expected a whole number"),
        (("--max-detached-per-token", "x"), "expected a whole number"),
        *((("--node", name), "expected a name") for name in ("A", "a b", "-a", "a-", "a_b", "a" * 64, "a/b")),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(http2tcp: Run, arguments: tuple[str, ...], words: str) -> None:
    assert words in complaint(http2tcp(*SERVER, *arguments))


@pytest.mark.parametrize("text", ["256K", "64M"])
def test_a_window_that_clients_take_is_taken(http2tcp: Run, text: str) -> None:
    window = http2tcp(*SERVER, "--resume-window", text).server.resume_window
    assert BOUNDS.least <= window <= BOUNDS.most


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("db:5432", TCPAddress("db", 5432)),
        ("[2001:db8::1]:22", TCPAddress("2001:db8::1", 22)),
        ("2001:db8::1:22", TCPAddress("2001:db8::1", 22)),  # ssh's %h:%p
        (":22", TCPAddress("localhost", 22)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
    ],
)
def test_a_destination_is_read_in_every_spelling(http2tcp: Run, text: str, address: object) -> None:
    assert http2tcp(*CLIENT, "-d", text).client.destination == address
    assert http2tcp(*SERVER, "-d", text).server.destination == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("5432", TCPAddress("127.0.0.1", 5432)),
        (":5432", TCPAddress("", 5432)),
        ("10.0.0.1:5432", TCPAddress("10.0.0.1", 5432)),
        ("[::1]:5432", TCPAddress("::1", 5432)),
        ("127.0.0.1:0", TCPAddress("127.0.0.1", 0)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
    ],
)
def test_a_listening_address_is_read_in_every_spelling(http2tcp: Run, text: str, address: object) -> None:
    assert list(http2tcp(*SERVER, "-l", text).server.addresses) == [address]
    assert http2tcp(*CLIENT, "-l", text).listen == address


def test_an_endpoint_without_a_scheme_is_http(http2tcp: Run) -> None:
    endpoint = http2tcp("-c", "-e", "127.0.0.1:12345").client.endpoint
    assert not endpoint.tls
    assert (endpoint.host, endpoint.port, endpoint.path) == ("127.0.0.1", 12345, "/")


def test_an_endpoint_that_is_no_utf8_is_sent_as_it_is(http2tcp: Run) -> None:
    endpoint = http2tcp("-c", "-e", "http://us\udcffer:p%FFw@h/\udcff?\udcfe").client.endpoint
    assert (endpoint.path, endpoint.query) == ("/%FF", "%FE")
    assert endpoint.username == "us\udcffer"
    assert endpoint.password == "p\udcffw"


# --- one variable for every option --------------------------------------------------------------


def _ca_file(tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    path.write_text("")
    return str(path)


# What each option makes of its variable: the value, the arguments that it needs, and where to look for it.
VARIABLES: dict[str, tuple[str, tuple[str, ...], Any, Any]] = {
    "server": ("1", ("-t", "x"), lambda ran: ran.server_settings is not None, True),
    "config": ("FILE", SERVER, lambda ran: ran.server.path, "/in-the-file"),
    "allow": (
        "db:22\n10.0.0.0/8:*",
        SERVER,
        lambda ran: list(map(str, ran.server.allow or ())),
        ["db:22", "10.0.0.0/8:*"],
    ),
    "deny": ("*:25\ndb:22", SERVER, lambda ran: list(map(str, ran.server.deny)), ["*:25", "db:22"]),
    "head_timeout": ("2", SERVER, lambda ran: ran.server.head_timeout, 2),
    "keep_sessions": ("1", SERVER, lambda ran: ran.server.keep_sessions, True),
    "path": ("/p", SERVER, lambda ran: ran.server.path, "/p"),
    "connect": ("1", SERVER, lambda ran: ran.server.connect, True),
    "allow_origin": (
        "https://a.example\nhttp://b:8080",
        SERVER,
        lambda ran: list(ran.server.allow_origins),
        ["https://a.example", "http://b:8080"],
    ),
    "tls_cert": ("FILE", SERVER, lambda ran: ran.server.tls.certificate, "FILE"),
    "tls_key": ("FILE", (*SERVER, "--tls-cert", "FILE"), lambda ran: ran.server.tls.key, "FILE"),
    "admin": ("9090", SERVER, lambda ran: ran.server.admin, TCPAddress("127.0.0.1", 9090)),
    "admin_name": (
        "a.internal\nb",
        (*SERVER, "--admin", "9090"),
        lambda ran: list(ran.server.admin_names),
        ["a.internal", "b"],
    ),
    "trusted_proxy": (
        "10.0.0.0/8\nunix\n2001:db8::1",
        SERVER,
        lambda ran: [str(proxy) for proxy in ran.server.trusted_proxies],
        ["10.0.0.0/8", "unix", "2001:db8::1/128"],
    ),
    "forwarded_header": (
        "X-Real-IP",
        (*SERVER, "--trusted-proxy", "unix"),
        lambda ran: ran.server.forwarded_header,
        "X-Real-IP",
    ),
    "proxy_protocol": ("1", SERVER, lambda ran: ran.server.proxy_protocol, True),
    "connect_timeout": ("3", SERVER, lambda ran: ran.server.connect_timeout, 3),
    "grace": ("4.5", SERVER, lambda ran: ran.server.grace, 4.5),
    "resume": ("15m", SERVER, lambda ran: ran.server.resume, 900),
    "resume_window": ("1M", SERVER, lambda ran: ran.server.resume_window, 1024 * 1024),
    "resume_memory": ("1G", SERVER, lambda ran: ran.server.resume_memory, 1024**3),
    "max_detached": ("20", SERVER, lambda ran: ran.server.max_detached, 20),
    "max_detached_per_token": ("5", SERVER, lambda ran: ran.server.max_detached_per_token, 5),
    "node": ("pod-0", SERVER, lambda ran: ran.server.node, "pod-0"),
    "log_format": ("json", SERVER, lambda ran: ran.server.log_format, "json"),
    "log_file": ("FILE", SERVER, lambda ran: ran.server.log_file, "FILE"),
    "client": ("1", ("-e", ENDPOINT), lambda ran: ran.client_settings is not None, True),
    "endpoint": (ENDPOINT, ("-c",), lambda ran: str(ran.client.endpoint), ENDPOINT),
    "transport": ("http2tcp/1.0", CLIENT, lambda ran: ran.client.transport, Transport.HTTP2TCP),
    "header": ("A: 1\nB: two words", CLIENT, lambda ran: list(ran.client.headers), [("A", "1"), ("B", "two words")]),
    "user_agent": ("me/1 (x)", CLIENT, lambda ran: ran.client.user_agent, "me/1 (x)"),
    "ca_file": ("FILE", CLIENT, lambda ran: ran.client.tls.ca_file, "FILE"),
    "client_cert": ("FILE", CLIENT, lambda ran: ran.client.tls.client_cert, "FILE"),
    "client_key": ("FILE", (*CLIENT, "--client-cert", "FILE"), lambda ran: ran.client.tls.client_key, "FILE"),
    "tls_server_name": ("inner.example", CLIENT, lambda ran: ran.client.tls.server_name, "inner.example"),
    "pin_sha256": (
        f"{PIN.hex()}\nsha256//{base64.b64encode(PIN[::-1]).decode()}",
        CLIENT,
        lambda ran: list(ran.client.tls.pins),
        [PIN, PIN[::-1]],
    ),
    "local_forward": (
        "8080:web:80\n[::1]:5432:[2001:db8::1]:5432",
        CLIENT,
        lambda ran: [str(forward) for forward in ran.client.forwards],
        ["127.0.0.1:8080, leads to web:80", "[::1]:5432, leads to [2001:db8::1]:5432"],
    ),
    "dynamic_forward": (
        "1080\n*:1081",
        CLIENT,
        lambda ran: [str(forward) for forward in ran.client.forwards],
        ["127.0.0.1:1080, a SOCKS5 proxy", ":1081, a SOCKS5 proxy"],
    ),
    "proxy": ("http://p:3128", CLIENT, lambda ran: str(ran.client.proxy), "http://p:3128"),
    # That there would be one without it is in test_proxy_options.py.
    "no_proxy": ("1", CLIENT, lambda ran: ran.client.proxy, None),
    "no_resume": ("1", CLIENT, lambda ran: ran.client.resume, 0),
    "fdpass": ("1", ("-c", "-e", "http://h/"), lambda ran: ran.client.fdpass, True),
    "insecure": ("1", CLIENT, lambda ran: ran.client.tls.verify, False),
    "token": ("t0k", CLIENT, lambda ran: ran.client.token, "t0k"),
    "token_file": ("FILE", CLIENT, lambda ran: ran.client.token, "in-the-file"),
    "destination": ("db:5432", CLIENT, lambda ran: ran.client.destination, TCPAddress("db", 5432)),
    "listen": ("127.0.0.1:7", CLIENT, lambda ran: ran.listen, TCPAddress("127.0.0.1", 7)),
    "keepalive": ("7.5", CLIENT, lambda ran: ran.client.keepalive, 7.5),
    "verbose": ("1", CLIENT, lambda ran: ran.started, True),
    "quiet": ("1", CLIENT, lambda ran: ran.started, True),
}
# Each limit has a field of its own, which is called as the option is.
LIMITS = {"count": ("20", 20), "time": ("15m", 900), "rate": ("64K", 65536)}
for _name, _, _limit in described_limits():
    _text, _expected = LIMITS[_limit.kind]
    VARIABLES[_name] = (_text, SERVER, lambda ran, name=_name: getattr(ran.server.limits, name), _expected)
ACTIONS = {"as", "check", "json", "new_token", "ssh_config", "demo", "version", "help"}


def test_every_option_is_held_to_its_variable_here() -> None:
    names = {row.key for row in options.rows()}
    assert names == VARIABLES.keys() | ACTIONS, "a new option needs a line in VARIABLES"


@pytest.mark.parametrize("name", VARIABLES)
def test_every_option_can_come_from_its_variable(http2tcp: Run, tmp_path: Path, name: str) -> None:
    value, arguments, look, expected = VARIABLES[name]
    path = tmp_path / "file"
    path.write_text('path = "/in-the-file"\n' if name == "config" else "in-the-file\n")
    path.chmod(0o600)

    def named(text: Any) -> Any:
        return str(path) if text == "FILE" else text

    ran = http2tcp(*map(named, arguments), **{f"HTTP2TCP_{name.upper()}": named(value)})
    assert ran.status == 0, ran.err
    assert look(ran) == named(expected)


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_an_action_has_no_variable_that_could_take_every_command_over(http2tcp: Run, name: str) -> None:
    ran = http2tcp(*SERVER, **{f"HTTP2TCP_{name.upper()}": "1"})
    assert ran.status == 0
    assert ran.server_settings is not None
    assert ran.out == ""


@pytest.mark.parametrize("name", sorted(VARIABLES.keys() - {"token", "token_file", "config", "allow", "deny"}))
def test_an_empty_variable_is_no_value(http2tcp: Run, name: str) -> None:
    _, arguments, look, expected = VARIABLES[name]
    if name in ("server", "client", "endpoint", "client_key"):
        arguments = CLIENT
        look = lambda ran: ran.client.tls.client_key  # noqa: E731
        expected = "FILE"
    if name in ("tls_cert", "tls_key"):
        arguments = SERVER
        look = lambda ran: None if ran.server.tls is None else ran.server.tls.certificate  # noqa: E731
    ran = http2tcp(*arguments, **{f"HTTP2TCP_{name.upper()}": ""})
    assert ran.status == 0, ran.err
    assert look(ran) != expected or name in ("verbose", "quiet", "no_proxy")


@pytest.mark.parametrize(("name", "value"), [("config", "FILE"), ("allow", "db:22"), ("deny", "*:25")])
def test_a_server_whose_rules_were_not_filled_in_is_not_open_to_all(
    http2tcp: Run, tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "FILE").write_text("")
    empty = {f"HTTP2TCP_{name.upper()}": ""}
    assert f"HTTP2TCP_{name.upper()} is empty" in complaint(http2tcp(*SERVER, **empty))
    assert f"HTTP2TCP_{name.upper()} is empty" in complaint(http2tcp(*SERVER, "--check", **empty))
    # It is no client's, and the command line beats it.
    assert http2tcp(*CLIENT, **empty).client_settings is not None
    assert (
        http2tcp(*SERVER, f"--{name}", value.replace("FILE", str(tmp_path / "FILE")), **empty).server_settings
        is not None
    )


def test_the_command_line_beats_the_environment(http2tcp: Run) -> None:
    ran = http2tcp(
        *("-c", "-e", ENDPOINT, "-d", "a:1", "-H", "A: 1", "--transport", "tcp"),
        HTTP2TCP_ENDPOINT="https://other.example/",
        HTTP2TCP_DESTINATION="b:2",
        HTTP2TCP_HEADER="B: 2",
        HTTP2TCP_TRANSPORT="http2tcp/1.0",
    )
    client = ran.client
    assert str(client.endpoint) == ENDPOINT
    assert client.destination == TCPAddress("a", 1)
    assert list(client.headers) == [("A", "1")]
    assert client.transport is Transport.TCP


def test_a_variable_that_is_wrong_is_told_like_an_argument(http2tcp: Run) -> None:
    assert "HTTP2TCP_DESTINATION: 'nowhere': expected HOST:PORT" in complaint(
        http2tcp(*CLIENT, HTTP2TCP_DESTINATION="nowhere")
    )


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("HTTP2TCP_TOKN_FILE", "HTTP2TCP_TOKEN_FILE"),
        ("HTTP2TCP_ENDPIONT", "HTTP2TCP_ENDPOINT"),
        ("HTTP2TCP_MAX_TUNNEL", "HTTP2TCP_MAX_TUNNELS"),
        ("HTTP2TCP_CA", None),
        # Of an option that has none, and what Kubernetes sets for a Service that is called http2tcp or http2tcp-admin.
        ("HTTP2TCP_CHECK", None),
        ("HTTP2TCP_SERVICE_HOST", None),
        ("HTTP2TCP_SERVICE_PORT", None),
        ("HTTP2TCP_SERVICE_PORT_HTTP", None),
        ("HTTP2TCP_PORT", None),
        ("HTTP2TCP_PORT_12345_TCP", None),
        ("HTTP2TCP_PORT_12345_TCP_ADDR", None),
        ("HTTP2TCP_PORT_12345_TCP_PORT", None),
        ("HTTP2TCP_PORT_12345_TCP_PROTO", None),
        ("HTTP2TCP_ADMIN_SERVICE_HOST", None),
        ("HTTP2TCP_ADMIN_PORT", None),
        ("HTTP2TCP_PORTABLE", None),
        ("HTTP2TCP_TOKN\x1b[2J", None),
    ],
)
def test_a_variable_that_resembles_one_of_ours_is_warned_of(http2tcp: Run, mistyped: str, meant: str | None) -> None:
    for arguments in (SERVER, CLIENT):
        ran = http2tcp(*arguments, **{mistyped: "secret"})
        assert ran.started
        warning = f"http2tcp: the variable {mistyped} means nothing here: is it {meant}?\n"
        assert ran.err == (warning if meant else "")


def test_a_repeatable_variable_is_split_at_newlines_and_blank_lines_are_nothing(http2tcp: Run) -> None:
    ran = http2tcp(*CLIENT, HTTP2TCP_HEADER="\n  A: b c  \r\n\n X-D: e:f\n")
    assert list(ran.client.headers) == [("A", "b c"), ("X-D", "e:f")]


# --- the mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("-s",), {"HTTP2TCP_CLIENT": "1"}),
        (("--server",), {"HTTP2TCP_CLIENT": "true", "HTTP2TCP_SERVER": "0"}),
        ((), {"HTTP2TCP_SERVER": "1"}),
        ((), {"HTTP2TCP_SERVER": "1", "HTTP2TCP_CLIENT": "0"}),
    ],
)
def test_a_mode_on_the_command_line_beats_the_other_in_the_environment(
    http2tcp: Run, arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    assert http2tcp(*arguments, "-t", "x", "-e", ENDPOINT, **variables).server_settings is not None


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ((), {}),
        (("-s", "-c"), {}),
        ((), {"HTTP2TCP_SERVER": "1", "HTTP2TCP_CLIENT": "1"}),
        ((), {"HTTP2TCP_SERVER": "0"}),
    ],
)
def test_neither_mode_or_both_is_told_what_to_type(
    http2tcp: Run, arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    sentence = complaint(http2tcp(*arguments, "-t", "x", "-e", ENDPOINT, **variables))
    assert "-s" in sentence
    assert "-c" in sentence


# --- options of the other mode ------------------------------------------------------------------

#: A value for each kind that a wrong mode must not even look at.
FOREIGN = {
    row.long: [row.long, *["n/a"] * (0 if row.kind is None else 1 + row.named)]
    for row in options.rows()
    if row.mode != "both"
}


def foreign(mode: str) -> list[str]:
    """The other mode's options, but for those that are a mistake already or an action by themselves."""
    but = {"--server", "--client", "--config", "--as", "--json", "--new-token", "--ssh-config"}
    return [row.long for row in options.rows() if row.mode == mode and row.long not in but]


@pytest.mark.parametrize("option", foreign("server"))
def test_a_client_warns_of_an_option_of_the_server_s_and_takes_no_notice_of_it(http2tcp: Run, option: str) -> None:
    for arguments in ([*CLIENT, *FOREIGN[option]], [*FOREIGN[option], *CLIENT]):
        ran = http2tcp(*arguments)
        assert (
            ran.err
            == f"http2tcp: a client ignores {option}, which only a server has; the next release will refuse this\n"
        )
        assert ran.client == http2tcp(*CLIENT).client


@pytest.mark.parametrize("option", foreign("client"))
def test_a_server_warns_of_an_option_of_the_client_s_and_takes_no_notice_of_it(http2tcp: Run, option: str) -> None:
    ran = http2tcp(*SERVER, *FOREIGN[option])
    assert f"a server ignores {option}, which only a client has" in ran.err
    assert ran.server == http2tcp(*SERVER).server


def test_several_options_of_the_other_mode_are_named_in_one_line_and_not_with_their_values(http2tcp: Run) -> None:
    ran = http2tcp("-c", "--grace", "s3cret", "-e", ENDPOINT, "--path=s3cret")
    assert ran.err.count("\n") == 1
    assert "--path and --grace" in ran.err
    assert "s3cret" not in ran.err
    assert http2tcp("-c", "--grace", "5", "-e", ENDPOINT, "-q").err == ""


@pytest.mark.parametrize("mode", ["server", "client"])
def test_variables_of_the_other_mode_are_ignored(http2tcp: Run, mode: str) -> None:
    other = "client" if mode == "server" else "server"
    arguments = SERVER if mode == "server" else CLIENT
    for row in options.rows():
        if row.mode == other and row.from_environment and row.key not in ("server", "client"):
            ran = http2tcp(*arguments, **{row.variable: "\x1bnonsense"})
            assert ran.err == "", row.variable
            assert (ran.server_settings or ran.client_settings) is not None


def test_a_mode_from_the_environment_ignores_the_other_mode_s_variables_too(http2tcp: Run) -> None:
    ran = http2tcp("-e", ENDPOINT, HTTP2TCP_CLIENT="yes", HTTP2TCP_GRACE="soon")
    assert ran.client.endpoint.host == "example.com"
    assert ran.err == ""


def test_a_value_that_looks_like_a_mode_is_none(http2tcp: Run) -> None:
    assert http2tcp("-t", "-c", "-s").server.tokens == ["-c"]
    assert http2tcp("-t", "-s", "-c", "-e", ENDPOINT).client.token == "-s"
    assert http2tcp("-ct-s", "-e", ENDPOINT).client.token == "-s"


# --- defaults -----------------------------------------------------------------------------------


def test_the_command_line_has_the_defaults_of_the_api(http2tcp: Run) -> None:
    assert http2tcp(*SERVER).server == ServerSettings(tokens=["secret"], limits=Limits())
    # A program has to ask for it: it may have a way of its own to go on after a loss.
    assert http2tcp(*CLIENT).client == ClientSettings(endpoint=parse_endpoint(ENDPOINT), resume=RESUME_OF_STDIO)


# --- header fields ------------------------------------------------------------------------------


def test_header_fields_come_from_arguments_and_files_in_order(http2tcp: Run, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("X-Secret: s3cret\n\n  X-Empty:\nX-Tab: a\tb\n", encoding="utf-8")
    ran = http2tcp(*CLIENT, "-H", "Host: inner.example", "-H", f"@{path}", "--header", "X-Umlaut: ä")
    assert list(ran.client.headers) == [
        ("Host", "inner.example"),
        ("X-Secret", "s3cret"),
        ("X-Empty", ""),
        ("X-Tab", "a\tb"),
        ("X-Umlaut", "ä"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "no colon s3cret",
        ": s3cret",
        "two words: s3cret",
        "Ünicode: s3cret",
        "X: s3cret\x7f",
        "X: s3cret\x00",
        "X: s3cret\x1b[2J",
        "Connection: s3cret",
        "UPGRADE: s3cret",
        "Content-Length: s3cret",
        "transfer-encoding: s3cret",
        "Http2tcp-Token: s3cret",
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_a_header_field_that_would_break_the_request_is_refused_and_its_value_not_shown(
    http2tcp: Run, tmp_path: Path, line: str, from_file: bool
) -> None:
    argument = line
    if from_file:
        path = tmp_path / "headers"
        path.write_text(f"X-Good: 1\n{line}\n", encoding="utf-8", newline="")
        argument = f"@{path}"
    sentence = complaint(http2tcp(*CLIENT, "-H", argument))
    assert "s3cret" not in sentence
    assert "-H" in sentence


def test_a_header_file_that_cannot_be_read_is_named(http2tcp: Run, tmp_path: Path) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"X: \xe4\n")
    assert str(tmp_path / "nothing") in complaint(http2tcp(*CLIENT, "-H", f"@{tmp_path / 'nothing'}"))
    assert str(tmp_path) in complaint(http2tcp(*CLIENT, "-H", f"@{tmp_path}"))
    assert "UTF-8" in complaint(http2tcp(*CLIENT, "-H", f"@{latin}"))


def test_a_user_agent_cannot_smuggle_a_field_in(http2tcp: Run) -> None:
    assert "user agent" in complaint(http2tcp(*CLIENT, "--user-agent", "a\r\nX-Evil: 1"))


# --- TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [PIN.hex(), PIN.hex().upper(), base64.b64encode(PIN).decode(), f"sha256//{base64.b64encode(PIN).decode()}"],
)
def test_a_pin_is_read_as_curl_and_openssl_write_it(http2tcp: Run, text: str) -> None:
    assert list(http2tcp(*CLIENT, "--pin-sha256", text).client.tls.pins) == [PIN]


def test_more_pins_are_alternatives(http2tcp: Run) -> None:
    other = PIN[::-1]
    client = http2tcp(*CLIENT, "--pin-sha256", PIN.hex(), "--pin-sha256", other.hex()).client
    assert set(client.tls.pins) == {PIN, other}


@pytest.mark.parametrize(
    "text", ["", "abc", PIN.hex()[:-1], "z" * 64, base64.b64encode(PIN[:-1]).decode(), "sha1//AAAA", PIN.hex() + "00"]
)
def test_a_pin_of_another_form_is_told_what_a_pin_is(http2tcp: Run, text: str) -> None:
    assert "sha256//" in complaint(http2tcp(*CLIENT, "--pin-sha256", text))


def test_tls_options_reach_the_client(http2tcp: Run, tmp_path: Path) -> None:
    file = _ca_file(tmp_path)
    tls = http2tcp(
        *(*CLIENT, "--ca-file", file, "--client-cert", file, "--client-key", file),
        *("--tls-server-name", "Inner.Example", "--insecure"),
    ).client.tls
    assert (tls.ca_file, tls.client_cert, tls.client_key) == (file, file, file)
    assert tls.server_name == "inner.example"
    assert not tls.verify


@pytest.mark.parametrize("option", ["--ca-file", "--client-cert", "--client-key"])
def test_a_certificate_file_that_is_missing_is_told_before_anything_is_dialled(
    http2tcp: Run, tmp_path: Path, option: str
) -> None:
    sentence = complaint(http2tcp(*CLIENT, option, str(tmp_path / "nothing.pem")))
    assert option in sentence
    assert "nothing.pem" in sentence
    assert option in complaint(http2tcp(*CLIENT, option, str(tmp_path)))


def test_a_key_without_its_certificate_is_told_what_it_needs(http2tcp: Run, tmp_path: Path) -> None:
    assert "--client-cert" in complaint(http2tcp(*CLIENT, "--client-key", _ca_file(tmp_path)))


@pytest.mark.parametrize("name", ["", "a b", "f\xf6\xf6..\xf6", ".example.com", "a\0b", "x" * 300])
def test_a_server_name_that_is_none_is_a_mistake_and_not_a_bug(http2tcp: Run, name: str) -> None:
    assert "--tls-server-name" in complaint(http2tcp(*CLIENT, "--tls-server-name", name))


def test_a_server_name_may_be_international(http2tcp: Run) -> None:
    assert http2tcp(*CLIENT, "--tls-server-name", "bücher.example").client.tls.server_name == "xn--bcher-kva.example"


# --- the transport ------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", Transport)
def test_every_transport_can_be_asked_for(http2tcp: Run, transport: Transport) -> None:
    assert http2tcp(*CLIENT, "--transport", transport.value).client.transport is transport


def test_an_unknown_transport_is_told_the_known_ones(http2tcp: Run) -> None:
    sentence = complaint(http2tcp(*CLIENT, "--transport", "quic"))
    assert "auto" in sentence
    assert all(transport.value in sentence for transport in Transport)


# --- forwarding ---------------------------------------------------------------------------------


def test_every_listener_of_a_command_line_is_there_in_order(http2tcp: Run) -> None:
    ran = http2tcp(*CLIENT, "-D", "1080", "-L8080:web:80", "-l", "5432", "-d", "db:5432", "-L", "/tmp/s:h:1", "-D:1")
    assert [str(forward) for forward in ran.client.forwards] == [
        "127.0.0.1:5432, leads to db:5432",
        "127.0.0.1:8080, leads to web:80",
        "unix:/tmp/s, leads to h:1",
        "127.0.0.1:1080, a SOCKS5 proxy",
        ":1, a SOCKS5 proxy",
    ]


def test_a_template_needs_a_destination_only_where_nothing_else_names_one(http2tcp: Run) -> None:
    template = ("-c", "-e", "https://h/{target_host}/{target_port}")
    assert http2tcp(*template, "-D", "1080", "-L", "80:web:80").started
    assert "-d" in complaint(http2tcp(*template, "-D", "1080", "-l", "80"))


# --- the log ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "debug", "info", "warning"),
    [((), False, True, True), (("-v",), True, True, True), (("-q",), False, False, False)],
)
def test_verbose_says_more_and_quiet_says_errors_only(
    http2tcp: Run, arguments: tuple[str, ...], debug: bool, info: bool, warning: bool
) -> None:
    import logging

    http2tcp(*SERVER, *arguments)
    logger = logging.getLogger("http2tcp.server")
    assert logger.isEnabledFor(logging.DEBUG) is debug
    assert logger.isEnabledFor(logging.INFO) is info
    assert logger.isEnabledFor(logging.WARNING) is warning
    assert logger.isEnabledFor(logging.ERROR)


def test_what_is_shown_of_settings_holds_no_secret(http2tcp: Run) -> None:
    ran: Ran = http2tcp("-c", "-e", "https://u:s3cret@h/", "-t", "s3cret", "-H", "Authorization: Bearer s3cret")
    assert "s3cret" not in repr(ran.client)
    assert "s3cret" not in repr(http2tcp("-s", "-t", "s3cret").server)
