"""What systemd passes to a service, taken in this process: the sockets, the notifications, the watchdog's beat."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest
import trio
import trio.testing

from http2tcp.errors import ListenError
from http2tcp.server import systemd
from http2tcp.server.systemd import Notifier, inherited_sockets

# Not 3: that one is pytest's own here.
FIRST = 200


@pytest.fixture(autouse=True)
def no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run in a unit themselves."""
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(systemd, "_FIRST", FIRST)


# --- sockets ------------------------------------------------------------------------------------

Pass = Callable[..., None]


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pass]:
    """Pass these sockets on, as to a process that is started with them."""
    count = 0

    def pass_on(*sockets: Any, names: str | None = None, pid: int | None = None) -> None:
        nonlocal count
        for sock in sockets:
            os.dup2(sock.fileno(), FIRST + count, inheritable=True)
            count += 1
        monkeypatch.setenv("LISTEN_FDS", str(count))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
        if names is not None:
            monkeypatch.setenv("LISTEN_FDNAMES", names)

    yield pass_on
    for index in range(count):
        try:
            os.close(FIRST + index)
        except OSError:
            pass


def listening(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    if family is socket.AF_UNIX:
        sock.bind("\0http2tcp-test-" + os.urandom(4).hex())
    else:
        sock.bind(("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
    sock.listen()
    return sock


def test_without_a_service_manager_nothing_is_inherited() -> None:
    assert inherited_sockets() == []


def test_sockets_of_every_kind_come_with_their_names_in_order(passed: Pass) -> None:
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    made = [listening(family) for family in families]
    passed(*made, names="web:admin:http2tcp.socket")
    inherited = inherited_sockets()
    assert [each.name for each in inherited] == ["web", "admin", "http2tcp.socket"]
    assert [each.socket.getsockname() for each in inherited] == [sock.getsockname() for sock in made]
    assert [each.socket.family for each in inherited] == list(families)
    for each, sock in zip(inherited, made, strict=True):
        assert not each.socket.get_inheritable()
        each.socket.close()
        sock.close()


@pytest.mark.parametrize("names", [None, "", "one", "one:"])
def test_a_name_that_is_missing_is_unknown(passed: Pass, names: str | None) -> None:
    with listening() as first, listening() as second:
        passed(first, second, names=names)
        inherited = inherited_sockets()
        assert [each.name for each in inherited] == [names.strip(":") if names else "unknown", "unknown"]
        for each in inherited:
            each.socket.close()


def test_the_variables_go_to_nobody_else(passed: Pass) -> None:
    with listening() as sock:
        passed(sock, names="x")
        (each,) = inherited_sockets()
        each.socket.close()
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()


@pytest.mark.parametrize("pid", [1, 0])
def test_the_sockets_of_another_process_are_left_alone_and_that_is_told(
    passed: Pass, caplog: pytest.LogCaptureFixture, pid: int
) -> None:
    with listening() as sock:
        passed(sock, pid=pid)
        assert inherited_sockets() == []
        os.fstat(FIRST)
    assert "LISTEN_FDS" not in os.environ
    assert "exec" in caplog.text


def test_a_count_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "many")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with pytest.raises(ListenError, match="LISTEN_FDS is not a number"):
        inherited_sockets()


def a_datagram_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def a_connection() -> socket.socket:
    with listening() as listener:
        sock = socket.create_connection(listener.getsockname())
        listener.accept()[0].close()
        return sock


def a_file() -> IO[bytes]:
    return tempfile.TemporaryFile()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_datagram_socket, "is not a stream socket: expected a socket unit with ListenStream="),
        (a_connection, "is not listening: expected a socket unit with ListenStream= and without Accept=yes"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "is neither a TCP nor a Unix socket"),
        (a_file, "is not a socket: socket operation on non-socket"),
    ],
    ids=["datagrams", "connection", "netlink", "file"],
)
def test_a_descriptor_that_cannot_be_served_is_a_sentence_and_none_is_kept(
    passed: Pass, make: Callable[[], Any], words: str
) -> None:
    with listening() as good, make() as bad:
        passed(good, bad, names="web:other")
        with pytest.raises(ListenError) as caught:
            inherited_sockets()
    said = str(caught.value)
    assert said.startswith(f"descriptor {FIRST + 1} ('other') of LISTEN_FDS {words}")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(FIRST)


def test_a_descriptor_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with pytest.raises(ListenError, match="is not a socket: bad file descriptor"):
        inherited_sockets()


# --- notifications ------------------------------------------------------------------------------


class Ear:
    """What systemd hears."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every datagram since the last time."""
        said = []
        while True:
            try:
                said.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return said


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ear]:
    # pytest's own temporary paths are too long for a socket at times.
    path = f"/tmp/http2tcp-{os.urandom(4).hex()}"
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    listens = Ear(path)
    yield listens
    listens.socket.close()
    os.unlink(path)


@pytest.fixture
def notifier(ear: Ear) -> Iterator[Notifier]:
    """One that tells `ear`. What it is to find in the environment comes before it."""
    notifier = Notifier()
    yield notifier
    notifier.close()


def test_what_is_told_is_heard_one_datagram_at_a_time(ear: Ear, notifier: Notifier) -> None:
    notifier.tell("READY=1", "STATUS=no session open")
    notifier.tell("STOPPING=1")
    assert ear.heard() == ["READY=1\nSTATUS=no session open", "STOPPING=1"]
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize("text", ["x" * 9000, "é" * 9000, "caf\udce9"])
def test_a_status_of_any_length_and_kind_is_one_line_that_systemd_takes(
    ear: Ear, notifier: Notifier, text: str
) -> None:
    """It reads 4,096 bytes, and drops a longer datagram whole: nobody would learn that the reload is over."""
    notifier.tell("READY=1", f"STATUS={text}")
    (said,) = ear.heard()
    assert len(said.encode()) < 4096
    ready, status = said.split("\n")
    assert ready == "READY=1"
    assert status.startswith(f"STATUS={text[:3]}")


def test_an_abstract_socket_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"http2tcp-{os.urandom(4).hex()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    ear, notifier = Ear(f"\0{name}"), Notifier()
    notifier.tell("READY=1")
    assert ear.heard() == ["READY=1"]
    notifier.close()
    notifier.tell("READY=1")
    assert ear.heard() == []
    ear.socket.close()


def test_a_reload_is_told_with_the_time_of_the_clock_that_systemd_reads(ear: Ear, notifier: Notifier) -> None:
    notifier.reloading()
    (said,) = ear.heard()
    first, _, second = said.partition("\n")
    assert first == "RELOADING=1"
    name, _, microseconds = second.partition("=")
    assert name == "MONOTONIC_USEC"
    with open("/proc/uptime") as uptime:
        # Since boot, as CLOCK_MONOTONIC, but with the time that the machine slept.
        assert 0 < int(microseconds) / 1e6 <= float(uptime.read().split()[0]) + 1


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_where_nobody_listens_nothing_is_told_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    notifier = Notifier()
    notifier.tell("READY=1")
    assert notifier.watchdog is None
    # It returns.
    trio.run(notifier.keep_telling, lambda: "", lambda: 0.0)


def test_a_service_manager_that_is_gone_stops_nothing(ear: Ear, notifier: Notifier) -> None:
    ear.socket.close()
    notifier.tell("READY=1")
    notifier.tell("STOPPING=1")


def test_a_service_manager_that_is_slow_hears_everything_in_order_later(ear: Ear, notifier: Notifier) -> None:
    expected = [f"STATUS={number}" for number in range(2000)]
    for line in expected:
        notifier.tell(line)
    heard: list[str] = []
    while len(heard) < len(expected):
        heard += ear.heard()
        notifier._flush()
    assert heard == expected


# --- the watchdog -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("microseconds", "pid", "expected"),
    [
        ("30000000", None, 30.0),
        ("30000000", "ours", 30.0),
        ("500000", "ours", 0.5),
        ("30000000", "1", None),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_watchdog_is_ours_only_where_it_says_so(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str | None, expected: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    notifier = Notifier()
    notifier.close()
    assert notifier.watchdog == expected
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch, ear: Ear) -> None:
    """It wants to hear from us every two seconds."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")


async def beats(
    notifier: Notifier,
    seconds: float,
    status: Callable[[], str] = lambda: "",
    extend: Callable[[], float] = lambda: 0.0,
) -> None:
    with trio.move_on_after(seconds):
        await notifier.keep_telling(status, extend)


async def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    watchdog: None, ear: Ear, notifier: Notifier, autojump_clock: trio.testing.MockClock
) -> None:
    await beats(notifier, 10.5)
    assert ear.heard() == ["WATCHDOG=1"] * 11


async def test_the_status_is_told_when_it_changes_and_not_again(
    ear: Ear, notifier: Notifier, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    await beats(notifier, 60, lambda: "busy" if trio.current_time() - began > 29 else "idle")
    assert ear.heard() == ["STATUS=idle", "STATUS=busy"]


async def test_a_drain_asks_for_patience_again_and_again_until_it_needs_none(
    ear: Ear, notifier: Notifier, autojump_clock: trio.testing.MockClock
) -> None:
    ends_at = trio.current_time() + 12
    await beats(notifier, 60, lambda: "draining", lambda: ends_at - trio.current_time())
    assert ear.heard() == [
        "STATUS=draining\nEXTEND_TIMEOUT_USEC=10000000",
        "EXTEND_TIMEOUT_USEC=10000000",
        "EXTEND_TIMEOUT_USEC=7000000",
    ]


async def test_a_manager_that_takes_nothing_is_not_heaped_with_what_is_old(
    watchdog: None, ear: Ear, notifier: Notifier, autojump_clock: trio.testing.MockClock
) -> None:
    while not notifier._untold:
        notifier.tell("STATUS=full")
    await beats(notifier, 3600)
    assert len(notifier._untold) == 1
    while ear.heard():
        notifier._flush()
    await beats(notifier, 0.5)
    assert ear.heard() == ["WATCHDOG=1"]
