"""The client's story: dial → (proxy) → TLS → upgrade → relay with stdio.

`connect` opens a tunnel, and `open_tunnel` does so for Python programs. ssh's ProxyCommand is in
`http2tcp.client.proxy_command`, and the local listeners are in `http2tcp.client.forwarder`.
Each phase has a deadline of its own. When one passes, the message names it.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import trio

from http2tcp.address import Address, Endpoint, TCPAddress, parse_destination, parse_endpoint
from http2tcp.client.settings import (
    DEFAULT_USER_AGENT,
    RESUME_OF_PROGRAMS,
    ClientSettings,
    TLSSettings,
    environment_proxy,
)
from http2tcp.errors import (
    ConnectFailed,
    FrontEndFailed,
    InputSilent,
    OriginalServer,
    ResolveFailed,
    SettingsError,
    TargetFailed,
    TLSFailed,
    TunnelCut,
    TunnelError,
    UpgradeNotPassed,
)
from http2tcp.net.dial import Candidate, DialError, dial
from http2tcp.net.framed import carrier, framed
from http2tcp.net.relay import End, Outcome, Traffic
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.protocol.client_handshake import Answer, AnswerReader, Refused, Switched, request
from http2tcp.protocol.transport import Transport

if TYPE_CHECKING:
    from http2tcp.client.observer import Progress
    from http2tcp.client.proxy_choice import Proxy
    from http2tcp.client.reconnect import Reconnector
    from http2tcp.net.preconnect import HeadStart
    from http2tcp.net.resumable import ResumableStream
    from http2tcp.net.tls import TLSStream
    from http2tcp.net.tls_over import TLSOverStream

_LOST = "connection lost: the tunnel was cut (a restart, timeout or reset on the way"
# How the relay's description of an end begins if it only says that the tunnel ended, and not why.
_BARE_ENDS = ("it ended ", "the connection broke")
# How many seconds to wait for the body of a refusal once its head has arrived.
_PAGE_PATIENCE = 1.0

logger = logging.getLogger("http2tcp.client")


class Tunnel(NamedTuple):
    """An open tunnel."""

    stream: Stream
    transport: Transport
    #: Whether an http2tcp server answered: it connects to the target before it answers. The original http2tcp answers
    #: first and connects then.
    target_accepted: bool
    #: The tunnel's session id in the server's log; empty if the server sent none.
    session: str = ""


@overload
async def open_tunnel(
    endpoint: str | Endpoint,
    destination: str | Address | None = None,
    *,
    token: str | None = None,
    transport: Transport | None = None,
    tls: TLSSettings = ...,
    headers: Sequence[tuple[str, str]] = (),
    user_agent: str = ...,
    proxy: str | Literal[False] | None = None,
    resume: bool = False,
) -> Stream: ...


@overload
async def open_tunnel(endpoint: ClientSettings, destination: str | Address | None = None) -> Stream: ...


async def open_tunnel(
    endpoint: str | Endpoint | ClientSettings,
    destination: str | Address | None = None,
    *,
    token: str | None = None,
    transport: Transport | None = None,
    tls: TLSSettings = TLSSettings(),  # noqa: B008
    headers: Sequence[tuple[str, str]] = (),
    user_agent: str = DEFAULT_USER_AGENT,
    proxy: str | Literal[False] | None = None,
    resume: bool = False,
) -> Stream:
    """Open a tunnel and return it as a trio stream.

    `endpoint` is the URL of the server's location, or a ClientSettings. A ClientSettings holds all the other
    parameters, so only `destination` may be given with it.
    `destination` is the target's address ("host:port"; None: the server's default destination).
    `transport` carries the tunnel (None: the first transport that gets through).
    `proxy` is the URL of a proxy to go through (None: the environment's proxy; False: no proxy).
    `resume`: bring a lost connection back, if the server and the transport can. Meanwhile, sending and receiving wait.

    Returns when the target has accepted the connection; on `http2tcp/1.0`, when the server has. The stream's `send_eof`
    half-closes, except on raw transports over https, where it raises HalfCloseUnsupported.
    Raises AddressError, SettingsError or TunnelError, which has a subclass for each hop that can fail.
    """
    load_failure_words()
    destination = parse_destination(destination) if isinstance(destination, str) else destination
    if isinstance(endpoint, ClientSettings):
        if (token, transport, tls, headers, user_agent, proxy, resume) != (
            None,
            None,
            TLSSettings(),
            (),
            DEFAULT_USER_AGENT,
            None,
            False,
        ):
            raise SettingsError("expected no further option: ClientSettings says them all")
        return (
            await connect(replace(endpoint, keepalive=None, destination=destination or endpoint.destination))
        ).stream
    endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
    settings = ClientSettings(
        endpoint=endpoint,
        destination=destination,
        token=token,
        transport=transport,
        tls=tls,
        headers=headers,
        user_agent=user_agent,
        proxy=_proxy(proxy, endpoint),
        # Announce no keepalive: only the command's relay sends them, and a server drops a client that announces
        # keepalives and sends none.
        keepalive=None,
        resume=RESUME_OF_PROGRAMS if resume else 0.0,
    )
    return (await connect(settings)).stream


def load_failure_words() -> None:
    """Import now the modules that `connect` otherwise imports only after a failure.

    For a process that lives long: by the time of the failure it may be out of descriptors, or an upgrade may have
    replaced the modules' files by those of another release.
    """
    import http2tcp.client.diagnosis
    import http2tcp.client.front_ends
    import http2tcp.client.reconnect  # noqa: F401


def _proxy(proxy: str | Literal[False] | None, endpoint: Endpoint) -> Proxy | None:
    if not isinstance(proxy, str):
        return environment_proxy(endpoint) if proxy is None else None
    from http2tcp.client.proxy_choice import parse_proxy

    return parse_proxy(proxy, "open_tunnel")


# The transports to try, in this order, if the user chose none. The first has half-close and a keepalive everywhere.
AUTO = (Transport.CONNECT_TCP, Transport.TCP, Transport.HTTP2TCP, Transport.WEBSOCKET)


# While a server restarts, something else answers in its place (404, a redirect, 403), or the connection is closed. So
# try the best transport again after each of these pauses, in seconds, before falling back to a lesser one.
REPEATS = (0.3, 1.0)
# How many seconds to use a lesser transport before looking for a better one. A forwarder runs for weeks, and meanwhile
# somebody may fix the front end's configuration.
LESSER_HOLDS = 600.0


class Connector:
    """Opens tunnels by `settings`, and remembers which transport gets through.

    It remembers the best transport for good, and a lesser one for `LESSER_HOLDS` seconds. After that, one connection
    looks for a better transport, while the others still use the known one.
    """

    def __init__(
        self, settings: ClientSettings, head_start: HeadStart | None = None, progress: Progress | None = None
    ) -> None:
        self.settings = settings
        self._progress = progress
        #: The connection to the endpoint that began before trio was loaded. Only the first attempt can use it.
        self._head_start = head_start
        #: The transport that got through, and until when to use it without looking for a better one.
        self._found: Transport | None = None
        self._holds_until = -math.inf
        self._looking = False

    async def connect(self, destination: Address | None = None) -> Tunnel:
        """Open a tunnel, to the settings' destination unless another is given. Raises TunnelError."""
        settings = self.settings if destination is None else replace(self.settings, destination=destination)
        if settings.transport is not None:
            return await self._attempt(settings, settings.transport)
        if self._found is AUTO[0]:
            # The best transport has worked before, so its failure is probably temporary: do not try the others.
            return await self._best(settings, [])
        if self._found is not None and (self._looking or trio.current_time() < self._holds_until):
            return await self._attempt(settings, self._found)
        self._looking = True
        try:
            tunnel = await self._first_through(settings)
        finally:
            self._looking = False
        # Another connection may have found the best transport meanwhile: do not overwrite that with a lesser one.
        if self._found is not AUTO[0]:
            self._found = tunnel.transport
            self._holds_until = trio.current_time() + LESSER_HOLDS
        return tunnel

    async def _first_through(self, settings: ClientSettings) -> Tunnel:
        started = trio.current_time()
        failures: list[UpgradeNotPassed | OriginalServer] = []
        try:
            return await self._best(settings, failures)
        except (UpgradeNotPassed, OriginalServer) as error:
            failure = error
        logger.debug("%s: %s: %s", AUTO[0].value, failure.hop, failure)
        original = isinstance(failure, OriginalServer)
        for transport in AUTO[1:]:
            if original and transport is not Transport.HTTP2TCP:
                continue
            detour = trio.current_time() - started
            try:
                tunnel = await self._attempt(settings, transport, any_transport=True)
            except (UpgradeNotPassed, OriginalServer) as error:
                logger.debug("%s: %s: %s", transport.value, error.hop, error)
                original = isinstance(error, OriginalServer)
                continue
            # Warn only once: if several connections begin together, only the first to get through still has no
            # known transport here.
            if self._progress is None and self._found is None:
                # Imported here, and where failures are handled below: a login that succeeds need not load it.
                from http2tcp.client.diagnosis import explain_detour

                seen = [error.seen for error in (*failures, failure)]
                logger.warning(
                    "%s", explain_detour(AUTO[0], seen, tunnel.transport, detour, ours=tunnel.target_accepted)
                )
            return tunnel
        raise failure

    async def _best(self, settings: ClientSettings, failures: list[UpgradeNotPassed | OriginalServer]) -> Tunnel:
        """Open a tunnel by the best transport. Try it again if it may have failed only because a server was restarting.

        The failure of each try that is repeated is added to `failures`; the failure of the last try is raised.
        """
        best = AUTO[0]
        for pause in REPEATS:
            try:
                return await self._attempt(settings, best, any_transport=True, repeats=True)
            except UpgradeNotPassed as error:
                if not error.passing:
                    raise
                logger.debug("%s: %s: %s; again in %g s", best.value, error.hop, error, pause)
                failures.append(error)
            await trio.sleep(pause)
        return await self._attempt(settings, best, any_transport=True)

    async def _attempt(
        self, settings: ClientSettings, transport: Transport, *, any_transport: bool = False, repeats: bool = False
    ) -> Tunnel:
        """Try once to open a tunnel. `repeats`: the caller tries again if the failure may be temporary."""
        head_start, self._head_start = self._head_start, None
        if self._progress is None:
            return await _attempt(settings, transport, head_start, any_transport=any_transport)
        self._progress.attempting(transport)
        try:
            return await _attempt(settings, transport, head_start, self._progress, any_transport=any_transport)
        except TunnelError as error:
            again = repeats and isinstance(error, UpgradeNotPassed) and error.passing
            self._progress.failed(error, again=again)
            raise


async def connect(settings: ClientSettings, head_start: HeadStart | None = None) -> Tunnel:
    """Open one tunnel. Raises TunnelError."""
    return await Connector(settings, head_start).connect()


async def _attempt(
    settings: ClientSettings,
    transport: Transport,
    head_start: HeadStart | None,
    progress: Progress | None = None,
    *,
    any_transport: bool,
) -> Tunnel:
    """Connect to the endpoint, do TLS if it is https, and upgrade. Raises TunnelError."""
    stream = await dial_endpoint(settings, head_start, progress)
    try:
        if settings.endpoint.tls:
            stream = await _secure(settings, stream, progress)
        answer = await _upgrade(settings, transport, stream, stream.receive_some, progress, any_transport=any_transport)
        stream.unread(answer.trailing_data)
        stream = await _agree(settings, stream, answer) if answer.resumes else _framed(settings, stream, answer)
        # A server of the original http2tcp answers before it connects to the target. If that connection fails, all
        # that we see is an immediate EOF.
        if answer.transport is Transport.HTTP2TCP and not answer.from_http2tcp:
            stream.ends = stream.ends._replace(empty_is_broken=True)
        return Tunnel(stream, answer.transport, answer.from_http2tcp, answer.session)
    except BaseException:
        stream.abort()
        raise


def _framed(settings: ClientSettings, stream: Stream, answer: Switched) -> Stream:
    return framed(
        stream,
        answer.transport,
        client=True,
        capsules=answer.capsules,
        keepalive=settings.keepalive or math.inf,
        peer_keepalive=answer.keepalive,
        confirms=answer.confirms,
    )


def _carrier(settings: ClientSettings, stream: Stream, answer: Switched) -> Stream:
    return carrier(
        stream,
        answer.transport,
        client=True,
        capsules=answer.capsules,
        keepalive=settings.keepalive or math.inf,
    )


async def _agree(settings: ClientSettings, stream: Stream, answer: Switched) -> Stream:
    """Return a stream that can resume on a new connection. Reads the server's HELLO first. Raises TunnelCut."""
    from http2tcp.net.resume_handshake import read_first
    from http2tcp.protocol.resume import Resumable, Terms
    from http2tcp.protocol.resume_wire import Hello, Violation

    keepalive = settings.keepalive
    kind: type[ResumableStream]
    if keepalive is None:
        from http2tcp.net.unattended import SILENCE, UnattendedStream

        keepalive, kind = SILENCE, UnattendedStream
    else:
        from http2tcp.net.resumable import ResumableStream

        kind = ResumableStream
    capsules = _carrier(settings, stream, answer)
    try:
        with trio.fail_after(settings.answer_timeout):
            hello = await read_first(capsules)
        if not isinstance(hello, Hello):
            raise TunnelCut(f"{_LOST}: its first capsule is not the server's)")
        # Send an interval even without a keepalive setting: the server needs one from every client that it waits for.
        terms = Terms(keepalive=int(keepalive * 1000), window=settings.resume_window, grace=int(settings.resume))
        machine = Resumable.agree(hello, terms)
    except (Violation, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise TunnelCut(f"{_LOST}: {error or 'no first capsule came'})") from error
    reconnector: Reconnector | None = None

    async def revive() -> None:
        nonlocal reconnector
        if reconnector is None:
            from http2tcp.client.reconnect import Reconnector

            reconnector = Reconnector(tunnel, lambda session: _another(settings, answer.transport, session))
        await reconnector.revive()

    tunnel = kind(
        machine,
        capsules,
        keepalive=keepalive,
        peer_keepalive=answer.keepalive,
        client=True,
        revive=revive,
    )
    return tunnel


async def _another(settings: ClientSettings, transport: Transport, session: str) -> Stream:
    """Open another connection for a session, by `transport` or the other one with capsules. Raises TunnelError."""
    if settings.read_token is not None:
        # In a thread: the file may be on a disk that has gone to sleep, and the read would block every task.
        token = await trio.to_thread.run_sync(settings.read_token, abandon_on_cancel=True)
        settings = replace(settings, token=token)
    try:
        return await _resuming(settings, transport, session)
    except UpgradeNotPassed:
        if settings.transport is not None:
            raise
        failure = sys.exc_info()[1]
    other = Transport.WEBSOCKET if transport is Transport.CONNECT_TCP else Transport.CONNECT_TCP
    try:
        return await _resuming(settings, other, session)
    except TunnelError:
        assert failure is not None
        raise failure from None


async def _resuming(settings: ClientSettings, transport: Transport, session: str) -> Stream:
    stream = await dial_endpoint(settings)
    try:
        if settings.endpoint.tls:
            stream = await _secure(settings, stream, None)
        answer = await _upgrade(settings, transport, stream, stream.receive_some, session=session)
        stream.unread(answer.trailing_data)
        if not answer.resumes and answer.from_http2tcp:
            older = TunnelCut("the server that answers now does not resume tunnels: it was replaced by an older one")
            older.lasting = True
            raise older
        if not answer.resumes:
            raise UpgradeNotPassed(
                "what answers there does not resume tunnels: a front end, or an older server",
                seen="was answered without the resume that was asked for",
                passing=True,
            )
        return _carrier(settings, stream, answer)
    except BaseException:
        stream.abort()
        raise


async def dial_endpoint(
    settings: ClientSettings, head_start: HeadStart | None = None, progress: Progress | None = None
) -> Stream:
    """Connect to the endpoint, through the proxy if there is one. Raises TunnelError."""
    if settings.proxy is not None:
        from http2tcp.client.through_proxy import dial_through

        return await dial_through(settings.proxy, settings, progress)
    endpoint, seconds = settings.endpoint, settings.connect_timeout
    where = f"{endpoint.host}:{endpoint.port}"
    late: TunnelError = ResolveFailed(
        f"cannot find {endpoint.host}: no answer within {seconds:g} s; check this machine's DNS"
    )
    known = False

    def resolved(candidates: Sequence[Candidate]) -> None:
        nonlocal known, late
        known = True
        logger.debug("addresses of %s: %d", endpoint.host, len(candidates))
        if progress is not None:
            progress.resolved(endpoint.host, [candidate.sockaddr[0] for candidate in candidates])
        late = ConnectFailed(f"no answer from {where} within {seconds:g} s: a firewall may drop the connection")

    with trio.move_on_after(seconds):
        try:
            dialled = await dial(TCPAddress(endpoint.host, endpoint.port), resolved=resolved, head_start=head_start)
        except DialError as error:
            if not known:
                words = f"cannot find {endpoint.host}: {error}; check -e, and this machine's DNS"
                raise ResolveFailed(words) from error
            raise ConnectFailed(f"cannot connect to {where}: {error}; check -e, and that the site is up") from error
        logger.debug("connected to %s", dialled.address)
        if progress is not None:
            progress.connected(dialled.address)
        return dialled.stream
    raise late


async def _secure(settings: ClientSettings, stream: Stream, progress: Progress | None) -> Stream:
    # Imported here: plain http does not need it.
    from http2tcp.net.tls import PinMismatch, beginnings, client_context, open_tls, unusable_authorities

    endpoint, tls = settings.endpoint, settings.tls
    server_name = tls.server_name or endpoint.host
    try:
        context = client_context(ca_file=tls.ca_file, cert=tls.client_cert, key=tls.client_key, verify=tls.verify)
    except OSError as error:
        from http2tcp.client.diagnosis import explain_certificates

        options = [("--ca-file", tls.ca_file), ("--client-cert", tls.client_cert), ("--client-key", tls.client_key)]
        raise explain_certificates(
            error, ca_file=tls.ca_file is not None, cert=tls.client_cert is not None, files=beginnings(options)
        ) from error
    try:
        with trio.fail_after(settings.tls_timeout):
            if isinstance(stream, SocketStream):
                secured: TLSStream | TLSOverStream = await open_tls(stream, context, server_name, tls.pins)
            else:
                from http2tcp.net.tls_over import open_tls_over

                secured = await open_tls_over(stream, context, server_name, tls.pins)
    except trio.TooSlowError:
        raise TLSFailed(
            f"no TLS handshake with {endpoint.host}:{endpoint.port} within {settings.tls_timeout:g} s: "
            "does that port speak TLS?"
        ) from None
    except PinMismatch as error:
        mismatch = TLSFailed(
            f"{server_name} has another public key than --pin-sha256 allows, {error}: "
            "it was renewed, or somebody stands in between"
        )
        mismatch.lasting = True
        raise mismatch from None
    except OSError as error:
        from http2tcp.client.diagnosis import explain_tls

        unusable = unusable_authorities() if tls.ca_file is None else ""
        raise explain_tls(error, endpoint, server_name, unusable) from error
    logger.debug("%s with %s", secured.version(), server_name)
    if progress is not None:
        progress.secured(secured.version(), secured.certificate())
    return secured


async def _upgrade(
    settings: ClientSettings,
    transport: Transport,
    stream: Stream,
    receive: Callable[[], Awaitable[bytes]],
    progress: Progress | None = None,
    *,
    any_transport: bool = False,
    session: str | None = None,
) -> Switched:
    endpoint = settings.endpoint
    websocket_key = ""
    if transport is Transport.WEBSOCKET:
        from http2tcp.protocol.websocket_handshake import new_key

        websocket_key = new_key()
    head = request(
        endpoint,
        settings.destination,
        transport,
        token=settings.token,
        user_agent=settings.user_agent,
        keepalive=settings.keepalive,
        headers=settings.headers,
        websocket_key=websocket_key,
        resumes=settings.resume > 0,
        session=session,
    )
    reader = AnswerReader(transport, any_transport=any_transport, websocket_key=websocket_key)
    answer: Answer | None = None
    waits_for_page = False
    try:
        with trio.fail_after(settings.answer_timeout) as scope:
            await stream.send_all(head)
            while (answer := reader.next_event()) is None:
                if reader.refusing and not waits_for_page:
                    # The status is known. The error page may help to explain it, but is not worth a long wait.
                    waits_for_page = True
                    scope.deadline = min(scope.deadline, trio.current_time() + _PAGE_PATIENCE)
                reader.receive(await receive())
    except (trio.TooSlowError, trio.BrokenResourceError) as error:
        answer = reader.cut_short()
        if answer is None and isinstance(error, trio.TooSlowError):
            seconds = settings.answer_timeout
            raise FrontEndFailed(f"{endpoint} gave no answer within {seconds:g} s: is http2tcp behind it?") from None
        if answer is None and "CERTIFICATE_REQUIRED" in str(error) and settings.tls.client_cert is None:
            # In TLS 1.3, a server that wants a certificate says so only after our handshake has ended.
            raise TLSFailed(f"{endpoint.host} wants a certificate of this client: --client-cert") from error
        if answer is None:
            raise UpgradeNotPassed(
                f"{endpoint} broke the connection off without an answer: {error}",
                seen="was cut off without an answer",
                # A TLS alert does not come from a restart: the front end refuses this client's certificate.
                passing=not str(error).startswith("TLS failed"),
            ) from error
    if isinstance(answer, Refused) and answer.page:
        from http2tcp.client.diagnosis import quotes_credentials

        if quotes_credentials(answer.page, head, settings.token):
            answer = answer._replace(page="")
    if progress is not None:
        progress.answered(answer, reader.fields)
    if isinstance(answer, Refused):
        from http2tcp.client.diagnosis import explain_refusal

        logger.debug("refused with %d%s", answer.status, _named(answer.session))
        raise explain_refusal(answer, endpoint, settings.destination, transport, with_token=settings.token is not None)
    logger.debug("tunnel open, transport %s%s", answer.transport.value, _named(answer.session))
    return answer


def why_it_ended(tunnel: Tunnel, outcome: Outcome, traffic: Traffic) -> TunnelError | None:
    """Return the failure that ended a relay; None if it ended well, or if our own side broke the connection."""
    if outcome.end is End.CLIENT_BROKE:
        return None
    if traffic.bytes_down == 0 and tunnel.transport is Transport.HTTP2TCP and not tunnel.target_accepted:
        return target_refused()
    match outcome.end:
        case End.TARGET_BROKE:
            return cut_off(tunnel, outcome.words)
        case End.EOF_NOT_RELAYED:
            carrier = "WebSocket" if tunnel.transport is Transport.WEBSOCKET else "raw bytes over TLS"
            return TunnelCut(
                f"the target sent nothing for {tunnel.stream.ends.eof_patience:g} s after our end of input, "
                f"which {carrier} cannot pass on: use connect-tcp"
            )
        case End.CLIENT_SILENT:
            # On raw bytes, a front end sends the same FIN, no matter what ended the tunnel.
            raw = tunnel.transport.raw
            ending = "the target, or something on the way, has ended the tunnel" if raw else "the target has ended"
            sentence = (
                f"{ending}, but the input stayed open and silent for {traffic.up.patience:g} s more: "
                "the tunnel was cut, so that the target does not take the input for complete"
            )
            return InputSilent(_with_session(sentence, tunnel))
        case _:
            return None


def cut_off(tunnel: Tunnel, words: str) -> TunnelCut:
    """Return the failure of a tunnel that broke. `words` say how; the sentence omits them if they name no cause."""
    logger.debug("the tunnel was cut: %s", words)
    if tunnel.stream.peer_reason:
        sentence = tunnel.stream.peer_reason
    elif words.startswith(_BARE_ENDS):
        sentence = f"{_LOST})"
    elif words.startswith("TLS ended"):
        sentence = f"{_LOST}: {words})"
    else:
        sentence = f"connection lost: {words}"
    return TunnelCut(_with_session(sentence, tunnel))


def _with_session(sentence: str, tunnel: Tunnel) -> str:
    return f"{sentence}; the server's log has session {tunnel.session}" if tunnel.session else sentence


def _named(session: str) -> str:
    return f", session {session}" if session else ""


def target_refused() -> TargetFailed:
    """Return the failure of a tunnel that ended before its first byte, for a server that answers before it dials."""
    return TargetFailed("closed before its first byte: it probably refused the server's connection")
