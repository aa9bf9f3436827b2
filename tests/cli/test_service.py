"""`http2tcp -s` as a unit: what the service manager hears, its sockets, its restarts, and SIGHUP. Real processes."""

from __future__ import annotations

import functools
import hashlib
import os
import pty
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trustme

from http2tcp.address import TCPAddress
from http2tcp.command import options
from http2tcp.server.limits import Limits
from http2tcp.server.settings import ServerSettings, option_of
from tests.support.loopback import TOKEN, asking, echo, exchange, open_raw, read_all, target, upgrade
from tests.support.processes import environment, http2tcp, wait_until
from tests.support.service_manager import ServiceManager, listening

#: Starts a unit: its sockets by their names, http2tcp's arguments, how often the watchdog wants to hear from it.
Unit = Callable[..., ServiceManager]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def unit(tmp_path: Path, token_file: Path) -> Iterator[Unit]:
    """Make a unit with TOKEN, on a free port where it gets no sockets; it is not started yet."""
    with ExitStack() as stack:

        def make(
            *arguments: str, watchdog: float | None = None, started: bool = True, **sockets: socket.socket
        ) -> ServiceManager:
            listen = () if set(sockets) - {"admin"} else ("-l", "127.0.0.1:0")
            command = http2tcp("-s", "--token-file", str(token_file), *listen, *arguments)
            manager = stack.enter_context(ServiceManager(command, tmp_path, sockets=sockets, watchdog=watchdog))
            if started:
                manager.start()
            return manager

        yield make


@pytest.fixture
def sockets() -> Iterator[Callable[..., socket.socket]]:
    """Make a socket as a socket unit does."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(listening(*arguments))


def address_of(manager: ServiceManager) -> TCPAddress:
    """Where the last of its processes listens."""
    listening_on = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
    # The log has a thread of its own, which may be behind.
    wait_until(lambda: len(listening_on.findall(manager.log)) == manager.starts, "it says where")
    return TCPAddress("127.0.0.1", int(listening_on.findall(manager.log)[-1]))


async def in_thread(function: Callable[[], object], within: float = 60) -> None:
    """Let the service manager work beside the clients."""
    with trio.fail_after(within):
        await trio.to_thread.run_sync(function, abandon_on_cancel=True)


async def until(condition: Callable[[], object], what: str) -> None:
    await in_thread(functools.partial(wait_until, condition, what))


@asynccontextmanager
async def session(address: TCPAddress, token: str = TOKEN) -> AsyncIterator[trio.SocketStream]:
    """An open session with an echo target of its own, which has been used once."""
    async with target(echo) as where:
        stream, _ = await open_raw(address, asking(where, token=token))
        async with stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            yield stream


# --- what the service manager hears -------------------------------------------------------------


async def test_it_is_ready_when_it_takes_connections_and_says_when_it_stops(unit: Unit) -> None:
    manager = unit()
    assert manager.listen()[0] == "READY=1\nSTATUS=no session open"
    assert (await exchange(address_of(manager), upgrade(token=None))).status == 401
    assert manager.stop() == 0
    assert manager.listen()[-1] == "STOPPING=1\nSTATUS=no session open; draining, 30 s left"
    assert manager.count("WATCHDOG=1") == 0


async def test_a_start_that_fails_is_never_called_ready(unit: Unit) -> None:
    with listening() as taken:
        manager = unit("-l", f"127.0.0.1:{taken.getsockname()[1]}", started=False)
        assert manager.fail() == 73
    assert manager.listen() == []


async def test_the_status_tells_how_many_sessions_are_open(unit: Unit) -> None:
    # The watchdog's beat brings it.
    manager = unit(watchdog=0.2)
    async with session(address_of(manager)):
        await until(lambda: manager.status == "1 session open", "one is told")
        async with session(address_of(manager)):
            await until(lambda: manager.status == "2 sessions open", "two are told")
    await until(lambda: manager.status == "no session open", "none is told")


async def test_a_drain_that_takes_long_asks_for_patience(unit: Unit) -> None:
    manager = unit("--grace", "600", watchdog=0.2)
    async with session(address_of(manager)):
        manager.signal(signal.SIGTERM)
        await until(lambda: re.match(r"1 session open; draining, \d{3} s left", manager.status), "the drain is told")
        await until(lambda: "EXTEND_TIMEOUT_USEC=" in manager.listen()[-1], "patience is asked for")
    assert manager.process is not None
    assert await trio.to_thread.run_sync(manager.process.wait, 20) == 0


async def test_the_watchdog_is_fed_while_it_serves_and_not_while_it_is_stuck(unit: Unit) -> None:
    manager = unit(watchdog=0.2)
    before = manager.count("WATCHDOG=1")
    await until(lambda: manager.count("WATCHDOG=1") > before + 5, "it is fed")
    manager.signal(signal.SIGSTOP)
    assert manager.process is not None
    stat = Path(f"/proc/{manager.process.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
    stuck = manager.count("WATCHDOG=1")
    await trio.sleep(1)
    assert manager.count("WATCHDOG=1") == stuck
    manager.signal(signal.SIGCONT)
    await until(lambda: manager.count("WATCHDOG=1") > stuck, "it is fed again")


# --- its sockets --------------------------------------------------------------------------------


async def test_a_socket_of_the_unit_s_is_served_in_place_of_the_default(
    unit: Unit, sockets: Callable[..., socket.socket]
) -> None:
    sock = sockets()
    manager = unit(web=sock)
    assert address_of(manager).port == sock.getsockname()[1]
    async with session(address_of(manager)):
        pass


async def test_a_socket_for_both_families_names_an_ipv4_client_as_everywhere_else(
    unit: Unit, sockets: Callable[..., socket.socket]
) -> None:
    sock = sockets(socket.AF_INET6)
    manager = unit(web=sock)
    async with session(TCPAddress("127.0.0.1", sock.getsockname()[1])):
        pass
    await until(lambda: "ended session=" in manager.log, "it is recorded")
    assert re.search(r"ended session=\w+ .*client=127\.0\.0\.1\b", manager.log)
    assert "::ffff:" not in manager.log


async def test_the_path_of_a_unit_s_unix_socket_outlives_the_service(
    unit: Unit, sockets: Callable[..., socket.socket], tmp_path: Path
) -> None:
    path = f"/tmp/http2tcp-{os.urandom(8).hex()}"
    try:
        manager = unit(web=sockets(socket.AF_UNIX, path))
        wait_until(lambda: f"listening on unix:{path};" in manager.log, "it says where")
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(upgrade(token=None))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")
        manager.restart()
        assert manager.stop() == 0
        assert os.path.exists(path)
    finally:
        os.unlink(path)


async def test_a_socket_that_the_unit_calls_admin_tells_metrics_and_opens_no_tunnel(
    unit: Unit, sockets: Callable[..., socket.socket]
) -> None:
    admin = sockets()
    manager = unit(admin=admin)
    where = TCPAddress("127.0.0.1", admin.getsockname()[1])
    assert (await exchange(where, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200
    assert (await exchange(where, upgrade().replace(b"example.com", b"localhost"))).status == 404
    # The other listener is the command line's.
    assert address_of(manager) != where
    async with session(address_of(manager)):
        manager.signal(signal.SIGTERM)
        with trio.fail_after(20):
            while (await exchange(where, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")).status != 503:
                await trio.sleep(0.02)
        assert (await exchange(where, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200


@pytest.mark.parametrize(
    ("name", "arguments", "option"),
    [("web", ("-l", "127.0.0.1:1"), "--listen"), ("admin", ("--admin", "127.0.0.1:1"), "--admin")],
)
def test_a_socket_and_an_option_for_the_same_are_at_odds_and_both_are_named(
    unit: Unit, sockets: Callable[..., socket.socket], name: str, arguments: tuple[str, ...], option: str
) -> None:
    sock = sockets()
    manager = unit(*arguments, started=False, **{name: sock})
    assert manager.fail() == 2
    (line,) = manager.log.splitlines()
    assert f"127.0.0.1:{sock.getsockname()[1]}" in line
    assert f"{option} names 127.0.0.1:1" in line


def test_a_socket_that_does_not_listen_is_a_sentence(unit: Unit) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        manager = unit(started=False, web=sock)
        assert manager.fail() == 73
    assert manager.log.startswith("http2tcp: descriptor 3 ('web') of LISTEN_FDS is not a stream socket: ")
    assert manager.log.count("\n") == 1


def test_systemd_s_own_activation_starts_it_at_the_first_connection(tmp_path: Path, token_file: Path) -> None:
    """With the tool that systemd has for trying a service out."""
    from tests.support.processes import free_port, program, running

    port = free_port()
    log = tmp_path / "log"
    # By its name alone: the process number that systemd-socket-activate hands over is its own after exec.
    command = [program("systemd-socket-activate"), "-l", f"127.0.0.1:{port}", "--fdname=web"]
    command += http2tcp("-s", "--token-file", str(token_file))
    with running(command, log, lambda: "Listening on" in log.read_text()):
        assert "listening on" not in log.read_text()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(20)
            client.sendall(upgrade(token=None))
            assert client.recv(4096).startswith(b"HTTP/1.1 401 ")
        wait_until(lambda: f"listening on 127.0.0.1:{port};" in log.read_text(), "it says where")


# --- restarts -----------------------------------------------------------------------------------


async def keep_logging_in(connect: Callable[[], object], where: str, done: trio.Event, logins: list[float]) -> None:
    """Open sessions one after the other, each used and closed. Any that fails fails the test."""
    while not done.is_set():
        began = trio.current_time()
        stream = await connect()  # type: ignore[misc]
        async with stream:
            await stream.send_all(asking(where))
            raw = b""
            while b"\r\n\r\n" not in raw:
                data = await stream.receive_some(4096)
                assert data, raw
                raw += data
            assert raw.startswith(b"HTTP/1.1 101 ")
            await stream.send_all(b"ping")
            await stream.send_eof()
            assert (raw.partition(b"\r\n\r\n")[2] + await read_all(stream)) == b"ping"
        logins.append(trio.current_time() - began)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["TCP", "Unix"])
async def test_a_restart_with_the_unit_s_socket_refuses_nobody(
    unit: Unit, sockets: Callable[..., socket.socket], family: socket.AddressFamily
) -> None:
    path = f"/tmp/http2tcp-{os.urandom(8).hex()}"
    sock = sockets(family, path)
    manager = unit("--grace", "1", web=sock)
    done = trio.Event()
    logins: list[float] = []
    connect = functools.partial(trio.open_unix_socket, path)
    if family is socket.AF_INET:
        connect = functools.partial(trio.open_tcp_stream, *sock.getsockname())
    try:
        async with target(echo) as where, trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(keep_logging_in, connect, where, done, logins)
            for _ in range(3):
                before = len(logins)
                await until(lambda: len(logins) > before + 20, "logins go on")  # noqa: B023
                await in_thread(manager.restart)
            before = len(logins)
            await until(lambda: len(logins) > before + 20, "logins go on")
            done.set()
    finally:
        if family is socket.AF_UNIX:
            os.unlink(path)
    assert manager.count("STOPPING=1") == 3
    assert manager.starts == 4


async def test_who_comes_while_the_old_process_drains_is_served_by_the_new_one(
    unit: Unit, sockets: Callable[..., socket.socket]
) -> None:
    sock = sockets()
    manager = unit("--grace", "1", web=sock)
    address = address_of(manager)
    async with session(address) as old, trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, manager.restart)
        await until(lambda: "draining" in manager.log, "it drains")
        # In the kernel's queue, where nobody takes it yet.
        async with session(address) as new:
            assert manager.starts == 2
            await new.send_all(b"from the new one")
            assert await new.receive_some() == b"from the new one"
            # Its grace is over.
            with pytest.raises(trio.BrokenResourceError):
                await old.receive_some()


# --- SIGHUP -------------------------------------------------------------------------------------


async def status_with(address: TCPAddress, token: str) -> int:
    """401 for a wrong token; with a good one, 400: no destination is named."""
    return (await exchange(address, upgrade(token=token))).status


async def test_a_reload_takes_a_new_token_and_refuses_the_old_one(unit: Unit, token_file: Path) -> None:
    manager = unit()
    address = address_of(manager)
    assert await status_with(address, TOKEN) == 400
    token_file.write_text("another\n")
    await in_thread(manager.reload)
    assert await status_with(address, TOKEN) == 401
    assert await status_with(address, "another") == 400
    await until(lambda: "SIGHUP: reread; tokens: 1 added, 1 removed\n" in manager.log, "it says what changed")
    assert "another" not in manager.log
    (reloading,) = [said for said in manager.heard if said.startswith("RELOADING=1")]
    # In one datagram, or Type=notify-reload waits in vain.
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)


async def test_an_open_session_ends_with_its_token(unit: Unit, token_file: Path) -> None:
    manager = unit()
    async with session(address_of(manager)) as stream:
        await in_thread(manager.reload)
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"
        token_file.write_text("another\n")
        await in_thread(manager.reload)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(20):
            await stream.receive_some()
    await until(lambda: "reason=revoked" in manager.log, "it is recorded")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_text("\n"), "the token is empty"),
        (lambda path: path.write_bytes(b"\xff\n"), "it is not UTF-8"),
        (lambda path: path.unlink(), "no such file"),
    ],
    ids=["empty", "binary", "missing"],
)
async def test_a_broken_file_leaves_everything_as_it_was_and_says_why(
    unit: Unit, token_file: Path, spoil: Callable[[Path], object], why: str
) -> None:
    manager = unit()
    async with session(address_of(manager)) as stream:
        spoil(token_file)
        await in_thread(manager.reload)
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"
        assert await status_with(address_of(manager), TOKEN) == 400
    await until(lambda: "as it was\n" in manager.log, "it says why")
    (line,) = [line for line in manager.log.splitlines() if "SIGHUP" in line]
    assert why in line
    assert line.endswith("; everything stays as it was")
    assert re.match(r"\d session\w? open; the last reload failed: ", manager.status)
    assert why in manager.status
    token_file.touch(0o600)
    token_file.write_text(TOKEN + "\n")
    await in_thread(manager.reload)
    assert "failed" not in manager.status
    await until(lambda: "SIGHUP: reread; nothing has changed\n" in manager.log, "it says so")


async def test_a_file_whose_name_is_no_utf_8_may_be_broken_like_any_other(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.toml"))
    path.write_text(f'[[token]]\nname = "a"\nsha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n')
    with ServiceManager(http2tcp("-s", "--config", str(path), "-l", "127.0.0.1:0"), tmp_path) as manager:
        manager.start()
        path.write_text("no")
        await in_thread(manager.reload)
        assert "the last reload failed" in manager.status
        assert await status_with(address_of(manager), TOKEN) == 400


async def test_a_certificate_on_a_disk_that_hangs_holds_no_tunnel_up(unit: Unit, tmp_path: Path) -> None:
    """A pipe by name in place of the disk: whoever opens it waits."""
    path = tmp_path / "certificate.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
    path.chmod(0o600)
    manager = unit("--tls-cert", str(path))
    path.unlink()
    os.mkfifo(path)
    manager.signal(signal.SIGHUP)
    await until(lambda: manager.count("RELOADING=1"), "the reload has begun")
    # In plain http, which is answered in it.
    for _ in range(3):
        with trio.fail_after(20):
            assert (await exchange(address_of(manager), upgrade())).status == 400
        await trio.sleep(0.1)
    assert manager.count("READY=1") == 1
    assert await trio.to_thread.run_sync(manager.stop) == 0


# --- a configuration file: revocation, expiry, changes --------------------------------------------


class Configuration:
    """A configuration file with named tokens, which is written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *lines: str, **tokens: str) -> None:
        """Lines for the server, and by their names the tokens with a further line of theirs; each is its own secret."""
        blocks = [
            f'[[token]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n{more}\n'
            for name, more in tokens.items()
        ]
        grace = [] if any(line.startswith("grace") for line in lines) else ["grace = 1"]
        self.path.write_text("\n".join([*grace, *lines, *blocks]))


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(tmp_path / "http2tcp.toml")


@pytest.fixture
def configured(tmp_path: Path, configuration: Configuration) -> Iterator[Callable[[], ServiceManager]]:
    """Start a service with that file."""
    with ExitStack() as stack:

        def start() -> ServiceManager:
            command = http2tcp("-s", "--config", str(configuration.path), "-l", "127.0.0.1:0")
            manager = stack.enter_context(ServiceManager(command, tmp_path))
            manager.start()
            return manager

        yield start


async def is_cut(stream: trio.SocketStream) -> None:
    """Wait until the server has reset it."""
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def is_open(stream: trio.SocketStream) -> None:
    await stream.send_all(b"still here")
    assert await stream.receive_some() == b"still here"


def record(manager: ServiceManager, reason: str) -> str:
    """The record of the session that ended for it, as far as there is one."""
    lines = manager.log.splitlines()
    return next((line for line in lines if " ended " in line and f" reason={reason}" in line), "")


async def test_who_is_taken_out_of_the_file_is_out_and_nobody_else(
    configuration: Configuration, configured: Callable[[], ServiceManager]
) -> None:
    configuration.write(alice="", bob="")
    manager = configured()
    address = address_of(manager)
    async with session(address, "alice") as alice, session(address, "bob") as bob:
        configuration.write("idle_timeout = 3600", bob='deny = ["10.0.0.0/8:*"]', carol="")
        await in_thread(manager.reload)
        await is_cut(alice)
        await is_open(bob)
        assert await status_with(address, "alice") == 401
        assert await status_with(address, "carol") == 400
    await until(lambda: "token=alice" in record(manager, "revoked"), "it is recorded")
    changes = "SIGHUP: reread; tokens: 1 added, 1 removed, 1 changed; changed: idle-timeout\n"
    await until(lambda: changes in manager.log, "it says what changed")


async def test_an_open_session_ends_when_its_token_expires_and_a_reload_can_put_that_off(
    configuration: Configuration, configured: Callable[[], ServiceManager]
) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=8)
    configuration.write(alice=f"expires = {soon.isoformat()}", bob=f"expires = {soon.isoformat()}")
    manager = configured()
    address = address_of(manager)
    async with session(address, "alice") as alice, session(address, "bob") as bob:
        configuration.write(alice=f"expires = {soon.isoformat()}", bob="expires = 2999-12-31")
        await in_thread(manager.reload)
        await is_cut(alice)
        assert datetime.now(UTC) >= soon
        await is_open(bob)
        assert await status_with(address, "alice") == 401
        assert await status_with(address, "bob") == 400
    await until(lambda: "token=alice" in record(manager, "expired"), "it is recorded")


async def test_with_keep_sessions_open_ones_outlive_their_token(
    configuration: Configuration, configured: Callable[[], ServiceManager]
) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=8)
    configuration.write("keep_sessions = true", alice="", bob=f"expires = {soon.isoformat()}")
    manager = configured()
    address = address_of(manager)
    async with session(address, "alice") as alice, session(address, "bob") as bob:
        configuration.write("keep_sessions = true", bob=f"expires = {soon.isoformat()}")
        await in_thread(manager.reload)
        assert await status_with(address, "alice") == 401
        with trio.fail_after(20):
            while await status_with(address, "bob") != 401:
                await trio.sleep(0.05)
        await is_open(alice)
        await is_open(bob)


async def test_a_mistake_in_the_file_is_told_with_its_place_and_changes_nothing(
    configuration: Configuration, configured: Callable[[], ServiceManager]
) -> None:
    configuration.write(alice="")
    manager = configured()
    async with session(address_of(manager), "alice") as alice:
        configuration.write(bob='allow = ["nowhere"]')
        await in_thread(manager.reload)
        await is_open(alice)
        assert await status_with(address_of(manager), "bob") == 401
    assert "token[0].allow[0]" in manager.status
    await until(lambda: "token[0].allow[0]" in manager.log, "it says where")


async def test_what_only_a_restart_can_change_is_named_and_left(
    configuration: Configuration, configured: Callable[[], ServiceManager]
) -> None:
    configuration.write(alice="")
    manager = configured()
    configuration.write('admin = "127.0.0.1:1"', 'log_format = "json"', alice="")
    await in_thread(manager.reload)
    words = "SIGHUP: admin and log-format can be changed only by a restart; the old values stay\n"
    await until(lambda: words in manager.log, "it says so")
    assert await status_with(address_of(manager), "alice") == 400


def test_a_reload_names_what_has_changed_as_the_command_line_does() -> None:
    names = {each.name for each in (*fields(ServerSettings), *fields(Limits))} - {"tokens", "limits"}
    assert {f"--{option_of(name)}" for name in names} <= {row.long for row in options.rows()}


# --- hang-ups at other times ----------------------------------------------------------------------


async def test_hang_ups_in_a_flurry_end_nothing_and_the_last_one_counts(unit: Unit, token_file: Path) -> None:
    manager = unit()
    async with session(address_of(manager)) as stream:
        for _ in range(200):
            manager.signal(signal.SIGHUP)
        token_file.write_text("another\n")
        manager.signal(signal.SIGHUP)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(20):
            await stream.receive_some()
    await until(lambda: manager.count("RELOADING=1") == manager.count("READY=1") - 1, "every reload is over")
    assert manager.stop() == 0
    assert "Traceback" not in manager.log


async def test_a_token_can_be_taken_away_while_it_drains(
    configuration: Configuration, configured: Callable[[], ServiceManager]
) -> None:
    """With two servers behind a front end the grace may be hours, and whoever is out has to be out at once."""
    configuration.write("grace = 600", alice="", bob="")
    manager = configured()
    address = address_of(manager)
    async with session(address, "bob") as bob:
        async with session(address, "alice") as alice:
            manager.signal(signal.SIGTERM)
            await until(lambda: "draining" in manager.log, "it drains")
            configuration.path.write_text("no")
            manager.signal(signal.SIGHUP)
            await until(lambda: "everything stays as it was" in manager.log, "it says why not")
            await is_open(alice)
            configuration.write("grace = 1", bob="")
            manager.signal(signal.SIGHUP)
            await is_cut(alice)
        # The grace is the one with which the drain began.
        await until(lambda: re.match(r"1 session open; draining, 5\d\d s left", manager.status), "the drain is told")
        await is_open(bob)
    assert manager.process is not None
    assert await trio.to_thread.run_sync(manager.process.wait, 20) == 0
    assert "token=alice" in record(manager, "revoked")
    # To the service manager it stops, and is not ready again.
    assert (manager.count("RELOADING=1"), manager.count("READY=1")) == (0, 1)


async def test_under_nohup_a_hang_up_is_nothing_at_all(token_file: Path, tmp_path: Path) -> None:
    from tests.support.processes import program

    command = [program("nohup"), *http2tcp("-s", "--token-file", str(token_file), "-l", "127.0.0.1:0")]
    with ServiceManager(command, tmp_path) as manager:
        manager.start()
        manager.signal(signal.SIGHUP)
        assert await status_with(address_of(manager), TOKEN) == 400
        assert manager.stop() == 0
    assert "SIGHUP" not in manager.log


def test_a_server_in_a_terminal_drains_when_that_is_closed(token_file: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = http2tcp("-s", "--token-file", str(token_file), "-l", "127.0.0.1:0", "--log-file", str(tmp_path / "log"))
    # A session of its own, whose terminal this is, as a shell's.
    process = subprocess.Popen(
        ["setsid", "-c", *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment()
    )
    os.close(theirs)
    try:
        log = tmp_path / "log"
        wait_until(lambda: log.exists() and "listening on" in log.read_text(), "it listens")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: reread" in log.read_text(), "with its terminal, it rereads")
        os.close(ours)
        assert process.wait(20) == 0
        assert "SIGHUP: draining" in log.read_text()
    finally:
        process.kill()
        process.wait()


async def test_a_hang_up_ends_no_server_that_is_still_starting(unit: Unit, tmp_path: Path) -> None:
    """From the moment on at which its own code runs; before that, it is Python that starts."""
    manager = unit(started=False)
    process = manager.spawn()
    ready = time.monotonic() + 20
    while not manager.count("READY=1"):
        assert time.monotonic() < ready
        if _ignores_hang_up(process.pid):
            process.send_signal(signal.SIGHUP)
        assert process.poll() is None, manager.log
        await trio.sleep(0.001)
    assert await status_with(address_of(manager), TOKEN) == 400


def _ignores_hang_up(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigCgt:"))]
    return any(mask >> signal.SIGHUP - 1 & 1 for mask in masks)
