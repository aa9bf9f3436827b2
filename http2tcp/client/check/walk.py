"""`--check`: run the ordinary client, and report each hop that it passes.

The client's own code reports its hops (`http2tcp.client.observer`), so a check cannot succeed if the client would
fail. `http2tcp.client.check.hops` makes the report's lines.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import replace

import trio

from http2tcp.address import Address, TCPAddress
from http2tcp.client.check import hops
from http2tcp.client.check.hops import Attempt, Comeback, Hop, Report, Verdict
from http2tcp.client.connector import AUTO, Connector, Tunnel, cut_off, dial_endpoint, target_refused
from http2tcp.client.handshake_faults import HandshakeFault, fault_of
from http2tcp.client.proxy_choice import Proxy
from http2tcp.client.settings import ClientSettings
from http2tcp.errors import (
    CredentialsRefused,
    DestinationForbidden,
    ServerRefused,
    SettingsError,
    TargetFailed,
    TunnelError,
)
from http2tcp.net.resumable import ResumableStream
from http2tcp.net.streams import SocketStream
from http2tcp.net.tls import PinMismatch, TLSStream, client_context, open_tls
from http2tcp.net.tls_over import TLSOverStream, open_tls_over
from http2tcp.printable import safe
from http2tcp.protocol.client_handshake import Answer, Refused
from http2tcp.protocol.transport import Transport

# How many seconds to wait for the target's greeting. sshd is slow if it looks the client's name up.
_GREETING = 1.5
_MAX_GREETING = 4096
_CLOSING = 1.0
# How many seconds a tunnel that was cut may take to come back, and how many seconds to wait between looks whether the
# server has answered.
_COMEBACK = 10.0
_LOOK = 0.05


async def check(settings: ClientSettings, report: Report) -> Verdict:
    """Check each hop to the target of `settings`, and show it on `report`. Opens no listener; leaves no tunnel open."""
    return await _Walk(settings, report).run()


class _Walk:
    """One run of `--check`. It is the client's `Progress`: it collects the attempts, and reports what they show."""

    def __init__(self, settings: ClientSettings, report: Report) -> None:
        if settings.fdpass and settings.transport is None:
            settings = replace(settings, transport=Transport.TCP)  # like `hand_over`
        led = [forward.destination or settings.destination for forward in settings.forwards if not forward.socks]
        self._destinations: list[Address | None] = list(dict.fromkeys(led)) or [settings.destination]
        #: Whether only the later SOCKS5 connections will name a destination: then there is none to try now.
        self._later = bool(settings.forwards) and not led and settings.destination is None
        if self._later and settings.endpoint.needs_target:
            raise SettingsError("a check of -D needs a destination (-d) to try: this endpoint's template names it")
        self._settings = replace(settings, destination=self._destinations[0], forwards=())
        self._report = report
        self._path = settings.endpoint.path.partition("{")[0]
        self._way = _hops_of(self._settings)
        #: The attempts at the first destination. The report has a line for each of their hops and transports.
        self._attempts: list[Attempt] = []
        #: The list to which the next attempt is added. Each further destination has a list of its own.
        self._current = self._attempts
        #: How many of the lines that `_attempts` make have been reported.
        self._shown = 0
        #: What the report shows as the hop that the check waits for.
        self._awaited: tuple[str, str] | None = None
        self._lap_started = 0.0

    async def run(self) -> Verdict:
        """Run the whole check, and return its verdict."""
        self._report.begin(str(self._settings.endpoint), [str(address) for address in self._destinations if address])
        verdict = await self._walk()
        self._report.end(verdict)
        return verdict

    async def _walk(self) -> Verdict:
        connector = Connector(self._settings, progress=self)
        try:
            tunnel = await connector.connect()
        except TunnelError as error:
            return await self._explain(error)
        chosen = self._attempts[-1]
        greeting, chosen.error = await _listen(tunnel, chosen)
        if chosen.comeback is None and not isinstance(tunnel.stream, ResumableStream):
            chosen.comeback = hops.no_comeback(chosen, asked=self._settings.resume > 0)
        await self._try_the_other_transports()
        self._report.hop(hops.server_hop(chosen, refuses=False))
        self._tell_authorisation(chosen)
        self._report.hop(hops.target_hop(chosen, self._destinations[0], greeting))
        failures = [chosen.error] if chosen.error else []
        for destination in self._destinations[1:]:
            failures += await self._try_destination(connector, destination)
        if failures:
            return hops.failed(failures[0], chosen, self._path)
        return hops.works(self._attempts, chosen, self._destinations, self._path)

    async def _try_the_other_transports(self) -> None:
        """Report which transports get through besides the one that the client uses."""
        tried = [attempt.transport for attempt in self._attempts]
        for transport in AUTO if self._settings.transport is None else ():
            if transport not in tried:
                try:
                    await _close(await Connector(replace(self._settings, transport=transport), progress=self).connect())
                except TunnelError:
                    continue  # `failed` (below) has put the error into the attempt

    async def _try_destination(self, connector: Connector, destination: Address | None) -> list[TunnelError]:
        """Try a further destination, by the transport that is known to get through. Return its failure in a list."""
        self._current = []
        self._report.waiting("target", hops.target_name(destination))
        greeting = None
        try:
            tunnel = await connector.connect(destination)
            greeting, self._current[-1].error = await _listen(tunnel)
        except TunnelError:
            pass  # `failed` (below) has put the error into the attempt
        attempt = self._current[-1]
        self._report.hop(hops.target_hop(attempt, destination, greeting))
        return [attempt.error] if attempt.error else []

    async def _explain(self, error: TunnelError) -> Verdict:
        """Report the hop that failed, and the hops before it that the answer shows. Return the verdict."""
        attempt = self._attempts[-1]
        lacks_destination = self._later and isinstance(attempt.answer, Refused) and attempt.answer.status == 400
        if attempt is self._attempts[0].first_try and attempt.ended_below_http:
            self._report.hop(await self._failed_hop(error, attempt.seconds))
        elif attempt.refused_by_us:
            refuses = isinstance(error, ServerRefused) and not lacks_destination
            self._report.hop(hops.server_hop(attempt, refuses=refuses))
            if lacks_destination or isinstance(error, CredentialsRefused | DestinationForbidden | TargetFailed):
                self._tell_authorisation(attempt)
            if isinstance(error, TargetFailed):
                self._report.hop(hops.target_hop(attempt, self._settings.destination, None))
            if lacks_destination and not refuses:
                return hops.works_for_any(attempt)
        return hops.failed(error, self._attempts[0], self._path)

    async def _failed_hop(self, error: TunnelError, seconds: float | None) -> Hop:
        """Make the line for a hop below HTTP that failed."""
        settings = self._settings
        match hops.key_of(error):
            case "name":
                return hops.name_hop(settings.endpoint.host, [], seconds)
            case "proxy":
                assert settings.proxy is not None
                return hops.proxy_hop(settings.proxy, self._site, None, seconds)
            case "tcp":
                return hops.tcp_hop(self._site, None, seconds)
            case _:
                version, certificate = await self._look_at_certificate(error)
                cause = error.__cause__
                wrong_name = isinstance(cause, OSError) and fault_of(cause) is HandshakeFault.OTHER_NAME
                return hops.tls_hop(
                    self._server_name, version, certificate, seconds, failed=True, wrong_name=wrong_name
                )

    async def _look_at_certificate(self, error: TunnelError) -> tuple[str | None, bytes | None]:
        """Get the TLS version and the certificate that was not accepted, by a second handshake that sends no data."""
        if not isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError | PinMismatch):
            return None, None
        context = client_context(verify=False)
        secured: TLSStream | TLSOverStream
        try:
            stream = await dial_endpoint(self._settings)
            with trio.fail_after(self._settings.tls_timeout):
                if isinstance(stream, SocketStream):
                    secured = await open_tls(stream, context, self._server_name)
                else:
                    secured = await open_tls_over(stream, context, self._server_name)
        except (TunnelError, OSError, trio.TooSlowError):
            return None, None
        try:
            return secured.version(), secured.certificate()
        finally:
            secured.abort()

    # --- the client's events: http2tcp.client.observer ---------------------------------------------------

    def attempting(self, transport: Transport) -> None:
        """See `Progress` for this method and the next six."""
        earlier: tuple[Attempt, ...] = ()
        if self._current and self._current[-1].again:
            last = self._current.pop()
            earlier = (*last.earlier, last)
        self._current.append(Attempt(transport, earlier=earlier))
        self._lap_started = trio.current_time()
        self._show()

    def resolved(self, host: str, addresses: Sequence[str]) -> None:
        self._passed(hops.name_hop(host, addresses, self._lap()))

    def connected(self, address: Address) -> None:
        self._passed(hops.tcp_hop(self._site, address, self._lap()))

    def proxied(self, proxy: Proxy, address: Address) -> None:
        self._passed(hops.proxy_hop(proxy, self._site, address, self._lap()))

    def secured(self, version: str | None, certificate: bytes | None) -> None:
        verify = self._settings.tls.verify
        self._passed(hops.tls_hop(self._server_name, version, certificate, self._lap(), verify=verify))

    def answered(self, answer: Answer, fields: Sequence[tuple[str, str]]) -> None:
        attempt = self._current[-1]
        attempt.answer, attempt.fields, attempt.seconds = answer, fields, self._lap()
        self._show()

    def failed(self, error: TunnelError, *, again: bool) -> None:
        attempt = self._current[-1]
        attempt.error, attempt.again = error, again
        if attempt.seconds is None:
            attempt.seconds = self._lap()
        self._show()

    # --- reporting ----------------------------------------------------------------------------------

    def _lap(self) -> float:
        """Return the seconds since the last hop, and start to count for the next."""
        now = trio.current_time()
        seconds, self._lap_started = now - self._lap_started, now
        return seconds

    @property
    def _site(self) -> str:
        return str(TCPAddress(self._settings.endpoint.host, self._settings.endpoint.port))

    @property
    def _server_name(self) -> str:
        return self._settings.tls.server_name or self._settings.endpoint.host

    def _passed(self, hop: Hop) -> None:
        self._current[-1].passed_hops.append(hop)
        self._show()

    def _show(self) -> None:
        """Report what the last event has added: new lines, and what the check waits for now."""
        if self._current is not self._attempts:
            return
        lines = hops.attempt_hops(self._attempts)
        for line in lines[self._shown :]:
            self._report.hop(line)
        self._shown = len(lines)
        awaited = hops.awaited(self._attempts, self._way)
        if awaited is not None and awaited != self._awaited:
            self._report.waiting(*awaited)
        self._awaited = awaited

    def _tell_authorisation(self, attempt: Attempt) -> None:
        target = hops.target_name(self._settings.destination)
        self._report.hop(hops.authorisation_hop(attempt, with_token=self._settings.token is not None, target=target))


def _hops_of(settings: ClientSettings) -> list[tuple[str, str]]:
    """Return the hops up to the front end, each as a label and the text to show while the check waits for it."""
    endpoint, proxy = settings.endpoint, settings.proxy
    way = [] if proxy is not None and proxy.resolves else [("name", endpoint.host)]
    way.append(("TCP", str(TCPAddress(endpoint.host, endpoint.port))) if proxy is None else ("proxy", str(proxy)))
    return [*way, *([("TLS", "")] if endpoint.tls else []), ("front end", "")]


async def _listen(tunnel: Tunnel, attempt: Attempt | None = None) -> tuple[bytes | None, TunnelError | None]:
    """Return the target's first bytes (b"": it ended instead; None: it sent nothing), or a failure. Close the tunnel.

    If an `attempt` is given and its tunnel is resumable, cut the connection and note whether the tunnel comes back.
    """
    data = None
    try:
        with trio.move_on_after(_GREETING):
            data = await tunnel.stream.receive_some(_MAX_GREETING)
            if not data and tunnel.stream.ends.empty_is_broken:
                return None, target_refused()
        if attempt is not None and isinstance(tunnel.stream, ResumableStream):
            # Do not cut a tunnel that has ended: the target may be gone already.
            attempt.comeback = hops.UNTRIED if data == b"" else await _cut_and_resume(tunnel.stream)
        return data, None
    except trio.BrokenResourceError as error:
        if tunnel.stream.ends.empty_is_broken:
            return None, target_refused()
        return None, cut_off(tunnel, safe(str(error)))
    finally:
        await _close(tunnel)


async def _cut_and_resume(stream: ResumableStream) -> Comeback:
    """Cut the tunnel's connection, and return whether the tunnel comes back."""
    try:
        if not await _is_confirmed(stream):
            return hops.came_back("the server did not answer a PING")
        stream.detach("the check has cut it")
        with trio.move_on_after(_COMEBACK):
            await stream.wait_for_room()
            return hops.came_back(None, stream.last_gap)
        return hops.came_back(f"not within {_COMEBACK:g} s: {safe(stream.lost_words)}")
    except trio.BrokenResourceError as error:
        return hops.came_back(safe(str(error)))


async def _is_confirmed(stream: ResumableStream) -> bool:
    """Ping the server, and return whether it answered.

    The server waits for a lost client only if it has heard from that client before. An answer shows that it has.
    """
    attachment = stream.attachment
    with trio.move_on_after(_COMEBACK):
        while attachment is not None and attachment is stream.attachment:
            heard, more = attachment.heard_at, b""
            stream.machine.ping()
            while attachment.heard_at == heard and attachment is stream.attachment:
                with trio.move_on_after(_LOOK):
                    more = await stream.receive_some()
                    break
            if not more:
                return True
            # These bytes came from the target; the server may not have answered the PING yet. Send another.
    return False


async def _close(tunnel: Tunnel) -> None:
    """End both directions cleanly, so that the server's log records a finished session if the target ends too."""
    stream = tunnel.stream
    try:
        with trio.move_on_after(_CLOSING) as closing:
            if stream.ends.half_close:
                await stream.send_eof()
                while await stream.receive_some():
                    pass
                await stream.finish()
            await stream.aclose()
        if closing.cancelled_caught:
            # The target has not ended. Tell the server that we leave, or it would wait for us to come back.
            await stream.leave()
    except trio.BrokenResourceError:
        pass  # the tunnel is closed either way
    finally:
        tunnel.stream.abort()
