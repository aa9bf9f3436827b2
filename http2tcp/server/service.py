"""A server as a service: it obeys signals, and reports its state to the service manager.

SIGTERM and SIGINT drain the server; a second one ends it at once. SIGHUP rereads the settings; if they are invalid, the
server keeps the old settings and logs why. SIGUSR1 only logs a line. After a reload, the log has counts and names of
the settings that have changed, never their values.
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
from http2tcp.server.settings import RESTART, ServerSettings, option_of
from http2tcp.server.state import prepare
from http2tcp.server.systemd import Notifier, inherited_sockets

logger = logging.getLogger("http2tcp.service")

# How many look-ups may run at once, each in a thread. A name takes two look-ups: one for IPv4, one for IPv6. A waiting
# thread costs 30 kB.
_LOOK_UPS = 256
# FileDescriptorName= of the admin listener's socket in a socket unit.
_ADMIN = "admin"
Reread = Callable[[], ServerSettings]


class Service:
    """A server's process from its start to its end."""

    def __init__(self, settings: ServerSettings, reread: Reread | None = None) -> None:
        """`reread` reads the settings again and returns them, or raises Http2tcpError. It is called in a thread.

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
        # Why the last reload failed; "" if it did not fail.
        self._complaint = ""
        self._terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]

    async def run(self) -> None:
        """Serve until drained or cancelled. Raises ListenError."""
        # Allow many threads, since each look-up takes one: otherwise a few look-ups without an answer would block all
        # other look-ups.
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
        """Obey a signal. `everything` is the scope of the whole server."""
        if number == getattr(signal, "SIGHUP", None) and not self._terminal_is_gone():
            self._hung_up.set()
        elif number == getattr(signal, "SIGUSR1", None):
            # Programs that rotate logs send SIGUSR1. The log needs no signal: it notices by itself that its file was
            # moved.
            logger.info("%s: nothing to do; a log file that was moved is reopened without a signal", number.name)
        elif self._drain.is_set():
            logger.warning("%s again: ending at once", number.name)
            everything.cancel()
        else:
            logger.info("%s: draining; open tunnels have %g s", number.name, self._server.state.settings.grace)
            self._drain.set()
            self._notifier.tell("STOPPING=1", f"STATUS={self._status()}")

    def _terminal_is_gone(self) -> bool:
        """Return whether the server was started in a terminal that is now closed.

        Then a SIGHUP must drain the server, since nobody can press Ctrl-C any more.
        """
        return bool(self._terminals) and not any(map(os.isatty, self._terminals))

    def started(self, addresses: Sequence[Address] | None = None) -> None:
        """Log the addresses and any warnings, and report READY.

        The service is the server's TaskStatus: the server calls this once it listens.
        """
        settings = self._server.state.settings
        reached = reach(settings, self._server.state.policy, time.time())
        how = "" if settings.tls is None else " for https"
        logger.info("listening on %s%s; open to %s", _and(addresses or ()), how, reached)
        exposed = [each for each in addresses or () if isinstance(each, TCPAddress) and not is_loopback(each.host)]
        if exposed and settings.proxy_protocol and not settings.trusted_proxies:
            words = "--proxy-protocol believes everyone who can reach %s: list the proxies with --trusted-proxy"
            logger.warning(words, _and(exposed))
        for proxies in settings.trusted_proxies:
            if proxies != "unix" and proxies.prefixlen == 0:
                logger.warning("--trusted-proxy %s trusts every client: each can claim to be any address", proxies)
        if exposed and settings.tls is None and settings.tokens:
            words = "tokens travel to %s unencrypted: let only a front end connect, or serve https (--tls-cert)"
            logger.warning(words, _and(exposed))
        self._notifier.tell("READY=1", f"STATUS={self._status()}")
        self._ready.set()

    # --- reports to the service manager -----------------------------------------------------------

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
            return self._server.state.settings.grace  # draining has not begun yet, but will begin at once
        return max(0.0, self._server.state.ends_at - trio.current_time())

    # --- reload -----------------------------------------------------------------------------------

    async def _reload_when_told(self) -> None:
        await self._ready.wait()
        while True:
            await self._hung_up.wait()
            # Renew the event first: a SIGHUP during the reload starts one more reload, since the files may have changed
            # after they were read.
            self._hung_up = trio.Event()
            # While draining, do not tell systemd about a reload; but do reload, so that a revoked token stops working.
            if not self._drain.is_set():
                self._notifier.reloading()
            self._complaint = await self._reload()
            if not self._drain.is_set():
                self._notifier.tell("READY=1", f"STATUS={self._status()}")

    async def _reload(self) -> str:
        """Reread the settings and put them in force. Return why that failed, or ""."""
        old = self._server.state.settings
        try:
            # Read in a thread, since disks may be slow. The thread has its own limiter, since look-ups may occupy all
            # threads of the default limiter.
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
            # Return one line, even if a file's name contains a line break: systemd would read a second line as another
            # variable.
            return " ".join(str(error).split())
        except Exception:
            # A bug in the code that reads the settings must not end the sessions.
            self._server.state.metrics.reload_failed()
            logger.exception("SIGHUP: the settings could not be reread; please report this")
            return "see the log"
        # With TLS, do not say "nothing has changed": a renewed certificate changes its file, but no setting.
        what, nothing = ("reread, the certificate too", "nothing else") if new.tls else ("reread", "nothing")
        logger.info("SIGHUP: %s; %s", what, "; ".join(_changes(old, new)) or f"{nothing} has changed")
        fixed = [option_of(name) for name in RESTART if getattr(new, name) != getattr(self._started_with, name)]
        if fixed:
            logger.warning("SIGHUP: %s can be changed only by a restart; the old values stay", " and ".join(fixed))
        return ""


def _inherited_listeners(settings: ServerSettings) -> tuple[list[Listener], list[Listener]]:
    """Return the listeners that the service manager opened: first those for tunnels, then those named `admin`."""
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
    # Refuse to start if both the options and the socket unit name addresses: the operator may expect either of them to
    # be in force, and a wrong guess could leave a port open or closed by mistake.
    if ours and theirs:
        listening = _and([listener.address for listener in theirs])
        raise SettingsError(
            f"the service manager's socket unit listens on {listening}, and {option} names {_and(ours)}: "
            "use only one of them"
        )


def _and(addresses: Sequence[Address]) -> str:
    return " and ".join(map(str, addresses))


def _changes(old: ServerSettings, new: ServerSettings) -> list[str]:
    """Say what differs between the settings, as counts of tokens and names of options."""
    words = []
    tokens, before = _tokens(new), _tokens(old)
    counts = {
        "added": len(tokens.keys() - before.keys()),
        "removed": len(before.keys() - tokens.keys()),
        "changed": sum(tokens[key] != before[key] for key in tokens.keys() & before.keys()),
    }
    if any(counts.values()):
        words.append("tokens: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count))
    changed = _differing(old, new, {"tokens", "limits", *RESTART})
    changed += _differing(old.limits or Limits(), new.limits or Limits(), set())
    if changed:
        words.append("changed: " + ", ".join(changed))
    return words


def _differing(old: ServerSettings | Limits, new: ServerSettings | Limits, but: Set[str]) -> list[str]:
    names = [each.name for each in fields(old) if each.name not in but]
    return [option_of(name) for name in names if getattr(old, name) != getattr(new, name)]


def _tokens(settings: ServerSettings) -> dict[str | bytes, Token]:
    """Return the tokens by their names. The key of a token without a name is its digest."""
    return {token.name or token.digest: token for token in Policy(settings.tokens).tokens}
