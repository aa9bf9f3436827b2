"""The rows: what is measured, and how. Rounds are interleaved, so that a machine that slows down slows all."""

from __future__ import annotations

import gc
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.contenders import (
    BARE_SPLICE,
    BARE_TRIO,
    CONTENDERS,
    FORKED_TUNNELS,
    ON_SSLSTREAM,
    TOKEN,
    Command,
    Contender,
    Socat,
    make_certificate,
)
from tests.benchmarks.drivers import (
    Door,
    Sample,
    drain_pipe,
    drain_socket,
    enter,
    open_greeted,
    round_trips,
    tunnels_a_second,
)
from tests.benchmarks.processes import ROOT, Programs, clean_environment
from tests.benchmarks.procfs import Group, settle
from tests.benchmarks.table import Ask, Figure, Samples

_TARGET = Path(__file__).with_name("target.py")
_AT_ONCE = 16
_KIB = 1024
# How much memory may grow and still count as flat: half a buffer.
_FLAT_KIB = 128


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 5
    seconds: float = 2.0
    trips: int = 5000
    starts: int = 25
    tunnels: int = 3000
    stalled: float = 10.0


QUICK = Effort(rounds=2, seconds=0.5, trips=1000, starts=5, tunnels=300, stalled=2.0)


@dataclass(frozen=True)
class Run:
    """One run of a row."""

    effort: Effort
    scratch: Path
    failed: Callable[[str, Exception], None]


@dataclass(frozen=True)
class Row:
    """A row's name for `--only`, its lines in the table, and what measures it."""

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[Run], Samples]


def start_target(programs: Programs, mode: str) -> int:
    """Start a far end of that kind; returns its port."""
    return int(programs.start(sys.executable, "-I", str(_TARGET), mode).said(r"port (\d+)"))


# --- the rows themselves ------------------------------------------------------------------------


def _relay(contender: Contender, programs: Programs, port: int) -> Door | None:
    return contender.relay(programs, port)


def _bulk(run: Run) -> Samples:
    return _in_rounds(run, "source", _relay, _drain_door, also=[BARE_SPLICE])


def _forwarder(run: Run) -> Samples:
    def open_up(contender: Contender, programs: Programs, port: int) -> Door | None:
        return contender.forwarder(programs, port)

    return _in_rounds(run, "source", open_up, _drain_door)


def _drain_door(run: Run, door: Door) -> Sample:
    sock, _ = enter(door)
    with sock:
        return drain_socket(sock, run.effort.seconds, door.groups)


def _stdio(run: Run) -> Samples:
    def open_up(contender: Contender, programs: Programs, port: int) -> Command | None:
        return contender.stdio(programs, port, None)

    return _in_rounds(run, "source", open_up, _drain_command)


def _stdio_tls(run: Run) -> Samples:
    tls = make_certificate(run.scratch)

    def open_up(contender: Contender, programs: Programs, port: int) -> Command | None:
        return contender.stdio(programs, port, tls)

    return _in_rounds(run, "source", open_up, _drain_command, also=[ON_SSLSTREAM])


def _drain_command(run: Run, command: Command) -> Sample:
    with Programs(run.scratch) as programs:
        program = programs.start(*command.argv, pipes=True, environment=command.environment)
        groups = {"client": Group(program.pid), "server": command.server}
        assert program.process.stdout is not None
        try:
            return drain_pipe(program.process.stdout.fileno(), run.effort.seconds, groups)
        except OSError as error:
            raise ConnectionError(f"{error}; {program.last_words()}") from error


def _round_trip(run: Run) -> Samples:
    def trip(run: Run, door: Door) -> Sample:
        sock, _ = enter(door)
        with sock:
            return round_trips(sock, run.effort.trips, door.groups)

    return _in_rounds(run, "echo", _relay, trip, also=[BARE_TRIO])


def _tunnels(run: Run) -> Samples:
    def mill(run: Run, door: Door) -> Sample:
        return tunnels_a_second(door, _AT_ONCE, run.effort.seconds)

    return _in_rounds(run, "greet", _relay, mill)


def _idle(run: Run) -> Samples:
    samples: Samples = {}
    for contender in _present():
        with _attempt(run, contender.name), Programs(run.scratch) as programs:
            door = contender.relay(programs, start_target(programs, "greet"))
            if door is not None and door.server:
                count = min(run.effort.tunnels, FORKED_TUNNELS) if isinstance(contender, Socat) else run.effort.tunnels
                samples[contender.name] = [_hold_idle(door, door.server, count)]
    return samples


def _hold_idle(door: Door, server: Group, count: int) -> Sample:
    # What the program allocates once, for its first tunnels, must not count as the cost of a tunnel.
    _open_and_close(door, server, 20)
    memory, descriptors = server.memory(), server.descriptors()
    held, spread = _open_and_close(door, server, count)
    after = server.memory()
    _open_and_close(door, server, count)
    return {
        "kib": (held - memory) / count / _KIB,
        "descriptors": (spread - descriptors) / count,
        "kib after": (after - memory) / count / _KIB,
        "kib after two": (server.memory() - after) / count / _KIB,
        "descriptors after": server.descriptors() - descriptors,
    }


def _open_and_close(door: Door, server: Group, count: int) -> tuple[int, int]:
    """Memory and descriptors with `count` tunnels open. It returns when the server has closed them."""
    before = server.descriptors()
    with ExitStack() as tunnels:
        for _ in range(count):
            tunnels.enter_context(open_greeted(door))
        settle(server)
        held = server.memory(), server.descriptors()
    deadline = time.monotonic() + 10
    while server.descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    settle(server)
    return held


def _stalled(run: Run) -> Samples:
    samples: Samples = {}
    for contender in _present():
        with _attempt(run, contender.name), Programs(run.scratch) as programs:
            door = contender.relay(programs, start_target(programs, "source"))
            if door is not None and door.server:
                samples[contender.name] = [_hold_stalled(door, door.server, run.effort.stalled)]
    return samples


def _hold_stalled(door: Door, server: Group, seconds: float) -> Sample:
    before = server.memory()
    sock, _ = enter(door)
    with sock:
        time.sleep(1)
        first = most = server.memory()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.25)
            most = max(most, server.memory())
    return {"kib": (first - before) / _KIB, "kib grown": (most - first) / _KIB}


def _start(run: Run) -> Samples:
    """From exec to the first byte of the request; the reference is a process that only imports."""
    samples: Samples = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        commands = _start_commands(port)
        for _ in range(run.effort.starts):
            for name, keys in commands.items():
                sample = {key: _to_first_byte(argv, listener) for key, argv in keys.items()}
                samples.setdefault(name, []).append(sample)
            for name, code in (("reference", "import trio, h11, click, ssl"), ("direct", "pass")):
                samples.setdefault(name, []).append({"ms": _to_end(sys.executable, "-c", code)})
    return samples


def _start_commands(port: int) -> dict[str, dict[str, tuple[str, ...]]]:
    asked = "-c", "-t", TOKEN, "-d", "localhost:22", "-e", f"http://127.0.0.1:{port}/"
    commands: dict[str, dict[str, tuple[str, ...]]] = {
        "http2tcp": {"ms": (sys.executable, "-m", "http2tcp", *asked)},
        "socat": {"ms": ("socat", "STDIO", f"TCP:127.0.0.1:{port}")},
        "http2tcp-go": {"ms": ("http2tcp-go", *asked)},
        "websocat": {"ms": ("websocat", "-b", "-", f"ws://127.0.0.1:{port}/")},
    }
    script = shutil.which("http2tcp", path=str(Path(sys.executable).parent))
    if script is not None:
        commands["http2tcp"]["script ms"] = (script, *asked)
    present = {contender.name for contender in _present()}
    return {name: keys for name, keys in commands.items() if name in present}


def _to_first_byte(argv: Sequence[str], listener: socket.socket) -> float:
    begin = time.perf_counter()
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        argv, cwd=ROOT, env=clean_environment(), stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, bufsize=0
    )
    try:
        assert process.stdin is not None
        if argv[0] == "socat":
            process.stdin.write(b"!")  # this client sends nothing by itself
        with listener.accept()[0] as sock:
            sock.recv(1)
            return (time.perf_counter() - begin) * 1000
    finally:
        process.kill()
        process.communicate()


def _to_end(*argv: str) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, cwd=ROOT, env=clean_environment(), check=True)
    return (time.perf_counter() - begin) * 1000


# --- rounds -------------------------------------------------------------------------------------


Opened = TypeVar("Opened", Door, Command)


def _in_rounds(
    run: Run,
    mode: str,
    open_up: Callable[[Contender, Programs, int], Opened | None],
    measure: Callable[[Run, Opened], Sample],
    also: Sequence[Contender] = (),
) -> Samples:
    """Start all contenders before a target of their own, then measure one after the other, round by round."""
    samples: Samples = {}
    with Programs(run.scratch) as programs:
        opened: dict[str, Opened] = {}
        for contender in [*_present(), *also]:
            with _attempt(run, contender.name):
                found = open_up(contender, programs, start_target(programs, mode))
                if found is not None:
                    opened[contender.name] = found
        for _ in range(run.effort.rounds):
            for name in list(opened):
                with _attempt(run, name) as attempt:
                    samples.setdefault(name, []).append(measure(run, opened[name]))
                    settle(*opened[name].groups.values())
                if attempt.failed:
                    del opened[name]
                    samples.pop(name, None)
    return samples


def _present() -> list[Contender]:
    return [contender for contender in CONTENDERS if contender.found]


class _Attempt:
    failed = False


@contextmanager
def _attempt(run: Run, name: str) -> Iterator[_Attempt]:
    """Report a contender that fails and leave it out of the row; the others go on."""
    attempt = _Attempt()
    gc.collect()
    gc.disable()
    try:
        yield attempt
    except (OSError, AssertionError) as error:
        attempt.failed = True
        run.failed(name, error)
    finally:
        gc.enable()


# --- the table's lines --------------------------------------------------------------------------


def _faster(than: dict[str, float]) -> tuple[Ask, ...]:
    return tuple(Ask(at_least=factor, of=name) for name, factor in than.items())


def _cheaper(than: dict[str, float]) -> tuple[Ask, ...]:
    return tuple(Ask(at_most=factor, of=name) for name, factor in than.items())


ROWS = (
    Row(
        "bulk",
        (
            Figure(
                "gib/s",
                "bulk through the server, GiB/s (reference: a bare splice loop)",
                _faster({"socat": 3, "haproxy": 1.5}),
            ),
            Figure("server s/gib", "… CPU of the server, s/GiB", _cheaper({"socat": 0.25, "haproxy": 0.5})),
        ),
        _bulk,
    ),
    Row(
        "stdio",
        (
            Figure("gib/s", "bulk through the stdio client, GiB/s"),
            Figure("client s/gib", "… CPU of the client, s/GiB"),
            Figure("server s/gib", "… CPU of the server, s/GiB"),
        ),
        _stdio,
    ),
    Row(
        "tls",
        (
            Figure("gib/s", "bulk through the stdio client on https, GiB/s (reference: on trio.SSLStream)"),
            Figure("client s/gib", "… CPU of the client, s/GiB", _cheaper({"reference": 0.6})),
            Figure("server s/gib", "… CPU of the server, s/GiB"),
        ),
        _stdio_tls,
    ),
    Row(
        "forwarder",
        (
            Figure("gib/s", "bulk through the forwarder, GiB/s"),
            Figure("client s/gib", "… CPU of the forwarder, s/GiB"),
            Figure("server s/gib", "… CPU of the server, s/GiB"),
        ),
        _forwarder,
    ),
    Row(
        "round-trip",
        (
            Figure(
                "p50",
                "a byte to and fro through the server, µs, median (reference: a bare trio loop)",
                _cheaper({"socat": 1.5}),
            ),
            Figure("p99", "… 99th percentile"),
            Figure("server us", "… CPU of the server, µs"),
        ),
        _round_trip,
    ),
    Row(
        "start",
        (
            Figure(
                "ms",
                "exec to the first byte of the request, ms (reference: the bare imports)",
                _cheaper({"reference": 1.2}),
            ),
            Figure("script ms", "… of the installed script"),
        ),
        _start,
    ),
    Row(
        "tunnels",
        (
            Figure("tunnels/s", f"tunnels a second, {_AT_ONCE} at once"),
            Figure("server us", "… CPU of the server a tunnel, µs"),
        ),
        _tunnels,
    ),
    Row(
        "idle",
        (
            Figure("kib", "memory of an idle tunnel, KiB", (Ask(at_most=16),)),
            Figure("descriptors", "… its descriptors", (Ask(at_most=2),)),
            Figure("descriptors after", "… descriptors left after all are closed", (Ask(at_most=0),)),
            Figure("kib after", "… memory kept a tunnel after all are closed, KiB"),
            Figure("kib after two", "… and grown after as many again, KiB"),
        ),
        _idle,
    ),
    Row(
        "stalled",
        (
            Figure("kib", "memory of a stalled tunnel after 1 s, KiB"),
            Figure("kib grown", "… and grown while the sender pushes on, KiB", (Ask(at_most=_FLAT_KIB),)),
        ),
        _stalled,
    ),
)
