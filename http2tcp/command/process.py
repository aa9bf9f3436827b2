"""Runs a server, a client or a check as a process: it handles the signals, and returns the exit status."""

from __future__ import annotations

import gc
import io
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from http2tcp.address import Address, is_loopback
from http2tcp.command.awake_clock import AwakeClock
from http2tcp.errors import (
    Http2tcpError,
    InputSilent,
    SettingsError,
)
from http2tcp.log import log_in_background

if TYPE_CHECKING:
    from http2tcp.client.forwards import Forward
    from http2tcp.client.settings import ClientSettings
    from http2tcp.net.preconnect import HeadStart
    from http2tcp.server.settings import ServerSettings

logger = logging.getLogger("http2tcp")

_STDOUT = 1

OnSignal = Callable[[signal.Signals, trio.CancelScope], None]


def run_server(settings: ServerSettings, reread: Callable[[], ServerSettings] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain until the grace ends or a second signal comes. Return the exit status.

    On SIGHUP the server switches to the settings that `reread` returns. If `reread` raises Http2tcpError, nothing
    changes.
    Raises ListenError, SettingsError or TooFewDescriptors.
    """
    from http2tcp.net.descriptors import require
    from http2tcp.server.log_writer import log_as_service
    from http2tcp.server.service import Service

    # Two descriptors for each address: a host name may have an IPv4 and an IPv6 address. The admin listener needs a
    # third, for a connection, and a log file needs one.
    require(2 * len(settings.addresses) + (3 if settings.admin else 0) + (1 if settings.log_file else 0))
    log_as_service(settings.log_format, settings.log_file)
    signals = [signal.SIGINT, signal.SIGTERM, *_hang_up()]
    if hasattr(signal, "SIGUSR1"):
        signals.append(signal.SIGUSR1)
    service = Service(settings, reread)
    _run(service.run, signals, service.on_signal, _take_for_good(signals))
    return 0


def _hang_up() -> list[signal.Signals]:
    """Return SIGHUP in a list; or an empty list if SIGHUP is ignored (as under nohup), so that it stays ignored."""
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return []
    # Ignore SIGHUP before trio handles it and afterwards: while we start or end, it would kill the process before the
    # process has logged its last line.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return [signal.SIGHUP]


def run_client(settings: ClientSettings, head_start: HeadStart | None = None) -> int:
    """Tunnel stdin and stdout, or the connections to the settings' forwards, until they end or a signal comes.

    Return the exit status. Raises TunnelError, ListenError or SettingsError.
    """
    from http2tcp.client.proxy_command import LAST_WORDS, hand_over, run_stdio

    if settings.fdpass:
        from http2tcp.net.fdpass import is_unix_socket

        if not is_unix_socket(_STDOUT):
            raise SettingsError("--fdpass is for ssh with ProxyUseFdpass yes: here, stdout is not ssh's Unix socket")

    _warn(settings)
    # ssh ends its ProxyCommand by SIGHUP, so after SIGHUP exit cleanly, with status 0.
    signals = [signal.SIGINT, signal.SIGTERM, *_hang_up()]
    status = 0

    def on_signal(number: signal.Signals, everything: trio.CancelScope) -> None:
        nonlocal status
        if number in (signal.SIGINT, signal.SIGTERM):
            status = 128 + number
            everything.cancel()
        else:
            everything.deadline = min(everything.deadline, trio.current_time() + LAST_WORDS)

    async def tunnel() -> None:
        if settings.forwards:
            from http2tcp.client.forwarder import forward

            await forward(settings, task_status=_Announcement(started))
        elif settings.fdpass:
            await hand_over(settings, _STDOUT)
        else:
            from http2tcp.net.stdio import StdioStream

            await run_stdio(settings, StdioStream(), head_start)

    def started(forwards: Sequence[Forward]) -> None:
        for each in forwards:
            logger.info("listening on %s", each)

    if settings.forwards:
        log_in_background()
    try:
        _run(tunnel, signals, on_signal)
    except InputSilent as error:
        # Only a warning, since all that the target sent has arrived. With --quiet, only the exit status shows it.
        logger.warning("%s: %s", error.hop, error)
        return error.exit_code
    return status


def run_check(settings: ClientSettings, *, as_json: bool, quiet: bool) -> int:
    """Check each hop of the client's way, and report on stdout. Return the failure's exit status, or 0."""
    from http2tcp.client.check.layout import JSONReport, TextReport
    from http2tcp.client.check.walk import check

    _warn(settings)
    # With -v, log lines appear between the report's lines. They would break up a line that is rewritten in place.
    live = not logger.isEnabledFor(logging.DEBUG)
    # stdout is None if it was closed when we began. The exit status still has the result.
    out = sys.stdout or io.StringIO()
    report = JSONReport(out) if as_json else TextReport(out, quiet=quiet, live=live)
    status = 0

    def on_signal(number: signal.Signals, everything: trio.CancelScope) -> None:
        nonlocal status
        status = 128 + number
        report.interrupted()
        everything.cancel()

    async def walk() -> None:
        nonlocal status
        status = (await check(settings, report)).exit_status

    _run(walk, [signal.SIGINT, signal.SIGTERM], on_signal)
    return status


def run_server_check(settings: ServerSettings, question: tuple[str, Address] | None, *, quiet: bool) -> int:
    """Check the settings as a starting server does, and show the resulting policy and limits. Return the exit status.

    With a question (the name of a token, and a destination), say instead whether the token may go to the destination,
    and why. The exit status is then what a client of this server would exit with, if only the policy and the name
    look-up could fail. `quiet`: show failures only. Raises SettingsError.
    """
    from http2tcp.net.descriptors import allow_many
    from http2tcp.server.policy_report import describe
    from http2tcp.server.state import State

    allow_many()
    state = State(settings)
    status, words = 0, ""
    if question is not None:
        from http2tcp.command.policy_question import answer

        status, words = answer(state, *question)
    elif not quiet:
        words = describe(settings, state.policy, state.limits, time.time())
    if words and (status or not quiet):
        # If stdout is closed (None), print writes nothing. The exit status still has the answer.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(words.encode(encoding, "replace").decode(encoding))
    return status


def _take_for_good(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Install handlers for good, so that no signal has its default action. Return the list that they add signals to.

    When trio ends, it restores the earlier handlers, and raises again the signals that came too late for it. With the
    default action, a second SIGTERM would then kill a server that is about to exit with 0. These handlers stay
    installed until `__main__` ignores the signals, before the interpreter removes the handlers.
    """
    came: list[signal.Signals] = []
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: came.append(signal.Signals(number)))
    return came


def _run(
    main: Callable[[], Awaitable[None]],
    signals: Sequence[signal.Signals],
    on_signal: OnSignal,
    early: Sequence[signal.Signals] | None = None,
) -> None:
    # `__main__` turned the garbage collector off. Turn it on, but freeze the modules first: they stay until the end, so
    # the collector need not look at them.
    gc.freeze()
    gc.enable()
    trio.run(_with_signals, main, signals, on_signal, early, clock=AwakeClock())


async def _with_signals(
    main: Callable[[], Awaitable[None]],
    signals: Sequence[signal.Signals],
    on_signal: OnSignal,
    early: Sequence[signal.Signals] | None,
) -> None:
    """Run `main`. Call `on_signal` for each signal, with the cancel scope that ends `main`.

    `early` has the signals that came before trio could handle them. If it is given, ignore the signals once `main` has
    ended. A Http2tcpError of `main` is raised by itself, not in an exception group.
    """
    failure: Http2tcpError | None = None
    with trio.open_signal_receiver(*signals) as received:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                for each in tuple(early or ()):
                    on_signal(each, nursery.cancel_scope)
                async for number in received:
                    on_signal(signal.Signals(number), nursery.cancel_scope)

            nursery.start_soon(watch)
            try:
                await main()
            except Http2tcpError as error:
                failure = error
            nursery.cancel_scope.cancel()
    if early is not None:
        # Let the kernel ignore the signals: if Python handled a flood of them one by one, trio would never finish
        # closing.
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
    if failure is not None:
        raise failure


_T = TypeVar("_T")


class _Announcement(Generic[_T]):
    """A TaskStatus that calls a function: for a caller that awaits a service directly, without `nursery.start`."""

    def __init__(self, announce: Callable[[Sequence[_T]], None]) -> None:
        self._announce = announce

    def started(self, value: Sequence[_T] | None = None) -> None:
        self._announce(value or ())


def _warn(settings: ClientSettings) -> None:
    endpoint = settings.endpoint
    if not endpoint.tls and not is_loopback(endpoint.host) and (settings.token or endpoint.password):
        secret = "token" if settings.token else "password"
        words = "the %s travels in the clear to %s: anybody on the way can read it; use https"
        logger.warning(words, secret, endpoint.host)
    if endpoint.tls and not settings.tls.verify:
        instead = "only its pinned key is" if settings.tls.pins else "anybody can pretend to be it"
        logger.warning("--insecure: the certificate of %s is not verified; %s", endpoint.host, instead)
    if settings.proxy is not None and settings.proxy.tls and not settings.tls.verify:
        logger.warning(
            "--insecure: the certificate of %s is not verified: anybody can pretend to be it", settings.proxy
        )
