"""A server as a service: signals tell it what to do, and it tells its service manager how it is.

SIGTERM and SIGINT drain, and a second one ends; SIGHUP rereads the settings, or leaves them as they were and says
why; SIGUSR1 is a line in the log and no more. What is told of a reload are counts and names of settings, never their
values.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import fields

import trio

from http2tcp.address import Address, TCPAddress, is_loopback
from http2tcp.errors import Http2tcpError, SettingsError
from http2tcp.net.descriptors import allow_many
from http2tcp.net.listen import Listener
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Policy, Token
from http2tcp.server.policy_report import reach
from http2tcp.server.server import Server
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import prepare
from http2tcp.server.systemd import Notifier, inherited_sockets

logger = logging.getLogger("http2tcp.service")

# Look-ups under way at once, of which a name takes two, one for each family. A thread that waits costs 30 kB.
_LOOK_UPS = 256
# What a socket unit calls the admin listener's socket (FileDescriptorName=).
_ADMIN = "admin"
# What only a new process can change.
_FIXED = ("listen", "admin", "log_format", "log_file")
# What the command line calls otherwise.
_FLAGS = {
    "admin_names": "admin_name",
    "allow_origins": "allow_origin",
    "tls": "tls_cert",
    "trusted_proxies": "trusted_proxy",
    "tunnels": "max_tunnels",
    "tunnels_per_token": "max_tunnels_per_token",
    "unauthenticated": "max_unauthenticated",
    "unauthenticated_per_address": "max_unauthenticated_per_address",
    "failures_per_minute": "max_failures_per_minute",
}

Reread = Callable[[], ServerSettings]


class Service:
    """A server's process from its start to its end."""

    def __init__(self, settings: ServerSettings, reread: Reread | None = None) -> None:
        """`reread` is called in a thread, and gives new settings or raises Http2tcpError.

        Raises ListenError or SettingsError.
        """
        allow_many()
        listeners, admin_listeners = _inherited_listeners(settings)
        self._server = Server(settings, listeners=listeners, admin_listeners=admin_listeners)
        self._started_with = settings
        self._reread = reread
        self._ready = trio.Event()
        self._drain = trio.Event()
        self._hung_up = trio.Event()
        self._notifier = Notifier()
        # Why the last reload failed.
        self._complaint = ""
        self._terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]

    async def run(self) -> None:
        """Serve until drained or cancelled. Raises ListenError."""
        # One look-up a thread: those for which no name server answers are not to hold up the others soon.
        trio.to_thread.current_default_thread_limiter().total_tokens = _LOOK_UPS
        failure: Http2tcpError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_telling)
                nursery.start_soon(self._reload_when_told)
                try:
                    await self._server.run(drain=self._drain, task_status=self)
                except Http2tcpError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self._notifier.close()
        if failure is not None:
            raise failure

    def on_signal(self, number: signal.Signals, everything: trio.CancelScope) -> None:
        """Do as the signal says; `everything` ends all of it."""
        if number == getattr(signal, "SIGHUP", None) and not self._terminal_is_gone():
            self._hung_up.set()
        elif number == getattr(signal, "SIGUSR1", None):
            # Who rotates the logs of others sends it. This line is all that it takes: a file that was moved is noticed.
            logger.info("%s: nothing to do; a log file that was moved is opened anew without it", number.name)
        elif self._drain.is_set():
            logger.warning("%s again: ending at once", number.name)
            everything.cancel()
        else:
            logger.info("%s: draining; open tunnels have %g s", number.name, self._server.state.settings.grace)
            self._drain.set()
            self._notifier.tell("STOPPING=1", f"STATUS={self._status()}")

    def _terminal_is_gone(self) -> bool:
        """Whether it was started in a terminal, and that was closed: nobody is left who could type Ctrl-C."""
        return bool(self._terminals) and not any(map(os.isatty, self._terminals))

    def started(self, addresses: Sequence[Address] | None = None) -> None:
        """The server listens: to it, this is its TaskStatus."""
        settings = self._server.state.settings
        reached = reach(settings, self._server.state.policy, time.time())
        how = "" if settings.tls is None else " for https"
        logger.info("listening on %s%s; open to %s", _and(addresses or ()), how, reached)
        exposed = [each for each in addresses or () if isinstance(each, TCPAddress) and not is_loopback(each.host)]
        if exposed and settings.proxy_protocol and not settings.trusted_proxies:
            words = "--proxy-protocol believes whoever reaches %s: name the proxies with --trusted-proxy"
            logger.warning(words, _and(exposed))
        for proxies in settings.trusted_proxies:
            if proxies != "unix" and proxies.prefixlen == 0:
                logger.warning("--trusted-proxy %s trusts every client: each can pass for any address", proxies)
        if exposed and settings.tls is None and settings.tokens:
            words = "tokens travel to %s in the clear: keep all but a front end away, or serve https (--tls-cert)"
            logger.warning(words, _and(exposed))
        self._notifier.tell("READY=1", f"STATUS={self._status()}")
        self._ready.set()

    # --- what the service manager is told ---------------------------------------------------------

    async def _keep_telling(self) -> None:
        await self._ready.wait()
        await self._notifier.keep_telling(self._status, self._patience)

    def _status(self) -> str:
        count = len(self._server.state.sessions)
        words = f"{count or 'no'} session{'' if count <= 1 else 's'} open"
        if self._drain.is_set():
            words += f"; draining, {self._patience():.0f} s left"
        return f"{words}; the last reload failed: {self._complaint}" if self._complaint else words

    def _patience(self) -> float:
        if not self._drain.is_set():
            return 0.0
        if self._server.state.ends_at == math.inf:
            return self._server.state.settings.grace  # it begins now
        return max(0.0, self._server.state.ends_at - trio.current_time())

    # --- reload -----------------------------------------------------------------------------------

    async def _reload_when_told(self) -> None:
        await self._ready.wait()
        while True:
            await self._hung_up.wait()
            # One that comes meanwhile means another reload: it may have missed what was written since.
            self._hung_up = trio.Event()
            # To the service manager one that stops does not reload; who is taken out is to be out all the same.
            if not self._drain.is_set():
                self._notifier.reloading()
            self._complaint = await self._reload()
            if not self._drain.is_set():
                self._notifier.tell("READY=1", f"STATUS={self._status()}")

    async def _reload(self) -> str:
        """Take what is written now; or why that was not possible."""
        old = self._server.state.settings
        try:
            # In a thread, since a disk may be slow; with a limiter of its own, since look-ups may have theirs full.
            prepared = await trio.to_thread.run_sync(
                lambda: prepare(self._reread() if self._reread else old),
                abandon_on_cancel=True,
                limiter=trio.CapacityLimiter(1),
            )
            self._server.state.reload(prepared)
            new = prepared.settings
        except Http2tcpError as error:
            self._server.state.metrics.reload_failed()
            logger.error("SIGHUP: %s; everything stays as it was", error)
            # One line, whatever a file is called: the next one would be another assignment to the service manager.
            return " ".join(str(error).split())
        except Exception:
            # A bug in what reads the settings must not end the sessions.
            self._server.state.metrics.reload_failed()
            logger.exception("SIGHUP: the settings could not be reread; please report this")
            return "see the log"
        # Where a certificate is renewed, its file alone changes: whoever did that is not to read that nothing did.
        what, nothing = ("reread, the certificate too", "nothing else") if new.tls else ("reread", "nothing")
        logger.info("SIGHUP: %s; %s", what, "; ".join(_changes(old, new)) or f"{nothing} has changed")
        fixed = [_flag(name) for name in _FIXED if getattr(new, name) != getattr(self._started_with, name)]
        if fixed:
            logger.warning("SIGHUP: %s can change by a restart only, and nothing changes there", " and ".join(fixed))
        return ""


def _inherited_listeners(settings: ServerSettings) -> tuple[list[Listener], list[Listener]]:
    """Those for tunnels, and those whose unit calls them `admin`."""
    inherited = inherited_sockets()
    tunnels = [Listener(each.socket, shared=True) for each in inherited if each.name != _ADMIN]
    admin = [Listener(each.socket, shared=True) for each in inherited if each.name == _ADMIN]
    ours = [] if settings.admin is None else [settings.admin]
    try:
        _check_alone("--listen", settings.addresses if settings.listen else [], tunnels)
        _check_alone("--admin", ours, admin)
    except SettingsError:
        for each in inherited:
            each.socket.close()
        raise
    return tunnels, admin


def _check_alone(option: str, ours: Sequence[Address], theirs: Sequence[Listener]) -> None:
    # Either may be what the operator believes to be in force: a guess could open a port, or close one, unnoticed.
    if ours and theirs:
        listening = _and([listener.address for listener in theirs])
        raise SettingsError(
            f"the service manager's socket unit listens on {listening}, and {option} names {_and(ours)}: "
            "leave one of them out"
        )


def _and(addresses: Sequence[Address]) -> str:
    return " and ".join(map(str, addresses))


def _changes(old: ServerSettings, new: ServerSettings) -> list[str]:
    """In counts and names."""
    words = []
    tokens, before = _tokens(new), _tokens(old)
    counts = {
        "added": len(tokens.keys() - before.keys()),
        "removed": len(before.keys() - tokens.keys()),
        "changed": sum(tokens[key] != before[key] for key in tokens.keys() & before.keys()),
    }
    if any(counts.values()):
        words.append("tokens: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count))
    changed = _differing(old, new, {"tokens", "limits", *_FIXED})
    changed += _differing(old.limits or Limits(), new.limits or Limits(), set())
    if changed:
        words.append("changed: " + ", ".join(changed))
    return words


def _differing(old: ServerSettings | Limits, new: ServerSettings | Limits, but: Set[str]) -> list[str]:
    names = [each.name for each in fields(old) if each.name not in but]
    return [_flag(name) for name in names if getattr(old, name) != getattr(new, name)]


def _tokens(settings: ServerSettings) -> dict[str | bytes, Token]:
    """By their names; those without one by what they are."""
    return {token.name or token.digest: token for token in Policy(settings.tokens).tokens}


def _flag(name: str) -> str:
    return _FLAGS.get(name, name).replace("_", "-")
