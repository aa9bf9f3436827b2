"""The process around a server or a client: its signals and its exit status."""

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
    """Serve until SIGTERM or SIGINT and the end of the grace, or until a second signal. Return the exit status.

    On SIGHUP the server takes the settings that `reread` returns. If `reread` raises Http2tcpError, nothing changes.
    Raises ListenError, SettingsError or TooFewDescriptors.
    """
    from http2tcp.net.descriptors import require
    from http2tcp.server.log_writer import log_as_service
    from http2tcp.server.service import Service

    # Two descriptors an address: a name may have an IPv4 and an IPv6 address. The admin listener needs one more, for a
    # connection, and a log file needs one.
    require(2 * len(settings.addresses) + (3 if settings.admin else 0) + (1 if settings.log_file else 0))
    log_as_service(settings.log_format, settings.log_file)
    signals = [signal.SIGINT, signal.SIGTERM, *_hang_up()]
    if hasattr(signal, "SIGUSR1"):
        signals.append(signal.SIGUSR1)
    service = Service(settings, reread)
    _run(service.run, signals, service.on_signal, _take_for_good(signals))
    return 0


def _hang_up() -> list[signal.Signals]:
    """SIGHUP, unless it is ignored: under nohup it is, and stays so."""
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return []
    # Ignore it until trio takes it, and after: while we start or end, it would kill the process before its last line is
    # written.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return [signal.SIGHUP]


def run_client(settings: ClientSettings, head_start: HeadStart | None = None) -> int:
    """Tunnel stdin and stdout, or the connections to the settings' forwards, until done or signalled.

    Return the exit status. Raises TunnelError, ListenError or SettingsError.
    """
    from http2tcp.client.proxy_command import LAST_WORDS, hand_over, run_stdio

    if settings.fdpass:
        from http2tcp.net.fdpass import is_unix_socket

        if not is_unix_socket(_STDOUT):
            raise SettingsError("--fdpass is for ssh with ProxyUseFdpass yes: here, stdout is not ssh's Unix socket")

    _warn(settings)
    # ssh ends its ProxyCommand by SIGHUP, so SIGHUP is a clean end.
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
        # A warning only, since all that the target sent has arrived. With --quiet, just the exit status says it.
        logger.warning("%s: %s", error.hop, error)
        return error.exit_code
    return status


def run_check(settings: ClientSettings, *, as_json: bool, quiet: bool) -> int:
    """Check each hop of the client's way, and report on stdout. Return the failure's exit status, or 0."""
    from http2tcp.client.check.layout import JSONReport, TextReport
    from http2tcp.client.check.walk import check

    _warn(settings)
    # With -v, log lines are mixed in: a line of the report that is rewritten in place would be torn apart.
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
    """Check the settings as a starting server does, and show what they amount to. Return the exit status.

    With a question (the name of a token, and a destination), answer that instead: whether the token may go there, and
    why. The exit status is then the one that a client of this server would have, before it reaches the target. `quiet`
    shows failures only. Raises SettingsError.
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
        # Without a stdout, print writes nothing. The exit status still has the answer.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(words.encode(encoding, "replace").decode(encoding))
    return status


def _take_for_good(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Install handlers for good, so that no signal has its default action. They collect early signals in the list.

    When trio ends, it restores the handlers that it found, and raises again the signals that came too late. With the
    default action, a second SIGTERM would kill a server that is about to exit with 0. These handlers stay, and
    `__main__` ignores the signals before the interpreter removes the handlers.
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
    # `__main__` turned the collector off. From now on it runs, but need not look at the modules: they stay.
    gc.freeze()
    gc.enable()
    trio.run(_with_signals, main, signals, on_signal, early, clock=AwakeClock())


async def _with_signals(
    main: Callable[[], Awaitable[None]],
    signals: Sequence[signal.Signals],
    on_signal: OnSignal,
    early: Sequence[signal.Signals] | None,
) -> None:
    """Run `main`. Each signal calls `on_signal` with the scope that ends `main`. Http2tcpError is raised ungrouped.

    `early` has the signals that came before trio could take them. If there is such a list, late signals are ignored.
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
        # Ignored by the kernel: if Python handled a flood of signals one by one, trio would never get to close.
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
    if failure is not None:
        raise failure


_T = TypeVar("_T")


class _Announcement(Generic[_T]):
    """A TaskStatus that calls a function. For a caller that awaits the service itself and starts it in no nursery."""

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
