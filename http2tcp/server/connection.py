"""A tunnel's story: accept → head → authorise → dial → switch → relay → record.

`Connection.run` is a tunnel's whole life. What it shares with the others, and what may change while it lives, is the
server's.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

from http2tcp.address import Address, IPAddress, TCPAddress, normal_path, parse_destination, parse_target
from http2tcp.errors import (
    AddressError,
    BadRequest,
    Forbidden,
    HeadTimeout,
    InternalError,
    NotFound,
    ProxyAuthenticationRequired,
    ProxyHeaderRefused,
    Refusal,
    TokenExpired,
    TooManyRequests,
    Unauthorized,
    UpgradeRequired,
)
from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.dial import DialError, DialFailure, Dialled, dial
from http2tcp.net.paced import PacedStream
from http2tcp.net.relay import End, Term, relay
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.protocol.capsule import ResetCode
from http2tcp.protocol.forwarded import Peer, client_address, is_trusted, unmapped
from http2tcp.protocol.proxy_protocol import ProxyHeaderError, ProxyHeaderReader
from http2tcp.protocol.server_handshake import CONTINUE, MAX_HEAD, RequestReader, TunnelRequest, accept, refuse
from http2tcp.protocol.transport import Transport
from http2tcp.server.audit import NoSession, Reason, Session
from http2tcp.server.dial_refusals import dial_refusal, too_slow
from http2tcp.server.policy import Admission, Grant, Token

if TYPE_CHECKING:
    from http2tcp.net.tls_server import ServerTLSStream
    from http2tcp.server.settings import ServerSettings
    from http2tcp.server.state import State

logger = logging.getLogger("http2tcp.connection")

# How long a refused client may take to read the refusal, and how much it may still send meanwhile.
_LINGER = 1.0
_LINGER_BYTES = 256 * 1024
# How long descriptors may take to become free.
_EXHAUSTED_PAUSE = 0.1


class Connection:
    """One connection from a client."""

    def __init__(self, state: State, stream: SocketStream, peer: TCPAddress | None) -> None:
        self._state = state
        # How a connection is served, its times and whose word counts, is as it came under them. Who may go where is
        # asked of the server's at each step: they may change while the connection waits for its request or its target.
        self._settings = state.settings
        self._stream: SocketStream | ServerTLSStream = stream
        #: Who it comes from, as far as that is known: the peer, and then whom a trusted proxy names.
        self._client: Peer = "unix" if peer is None else unmapped(ip_address(peer.host))
        # Not behind a PROXY header that names nobody: the peer is trusted then, and its client is not.
        self._reads_forwarded = bool(self._settings.trusted_proxies)
        self._session = Session(peer, state.refusals)
        self._opening = trio.CancelScope()
        self._grant: Grant | None = None
        self._token: Token | None = None
        self._accepted_at = trio.current_time()
        self._dial_time = 0.0
        self._opened_at = 0.0
        self.term = Term()

    async def run(self) -> None:
        """A tunnel's whole life."""
        reason: Reason | NoSession = Reason.STOPPED
        words = ""
        give_up = self._accepted_at + self._settings.head_timeout
        # Who brings a PROXY header is a proxy, and the share is that of whom it names.
        self._state.waiting.enter(self, None if self._settings.proxy_protocol else self._address())
        try:
            try:
                with self._opening:
                    if self._settings.proxy_protocol:
                        await self._read_proxy_header(give_up)
                    if self._state.tls is not None:
                        await self._secure(self._state.tls, give_up)
                    request = await self._read_head(give_up)
                    admission = self._authorise(request)
                    target = await self._dial(request, admission)
                    reason, words = await self._switch_and_relay(request, target)
                if self._opening.cancelled_caught:
                    reason = NoSession.PUSHED_OUT
            except Refusal as refusal:
                await self._refuse(refusal, give_up)
            except _Departed:
                reason = NoSession.CLIENT_LEFT
            except _NoTLS as error:
                reason, words = NoSession.NO_TLS, str(error)
            except _TooLate as error:
                reason, words = NoSession.TIMED_OUT, str(error)
            except Exception:
                self._log_bug()
                reason = Reason.FAILED
                if not self._opened_at:
                    await self._refuse(InternalError(), give_up)
        except Exception:
            self._log_bug()  # in what refuses, which every stranger reaches
        finally:
            self._stream.abort()
            self._leave()
            if not self._session.is_over:
                self._state.metrics.ended(self._session.traffic, reason.value)
            self._session.ended(reason, words)

    def _log_bug(self) -> None:
        """One tunnel's bug must not end the others."""
        logger.exception("session %s failed; please report this", self._session.id)

    def push_out(self) -> None:
        """Others need its place: it has waited longest without a token, or with the answer that it got."""
        self._opening.cancel()

    def settings_changed(self) -> None:
        """What they say about an open session counts now."""
        state = self._state
        if not state.settings.keep_sessions:
            if self._token is not None:
                self._token = state.policy.find(self._token)
                if self._token is None:
                    self.term.end("the token was taken away", Reason.REVOKED)
            elif state.policy.asks_for_token:
                self.term.end("a token is needed now, and this session has none", Reason.REVOKED)
        self.limit_term()

    def _leave(self) -> None:
        self._state.waiting.leave(self)
        self._state.sessions.discard(self)
        self._free_tunnel()

    def _free_tunnel(self) -> None:
        """Others may have its place; a client that is slow to read its refusal holds none."""
        if self._grant is not None:
            self._state.tunnels.leave(self._grant.token)
            self._grant = None

    def _address(self) -> IPAddress | None:
        """The client's address, where it is the client's alone: not that of a front end, behind which all are."""
        if self._client == "unix" or self._client.is_loopback or self._is_proxy(self._client):
            return None
        return self._client

    def _is_proxy(self, peer: Peer) -> bool:
        """Whether it speaks for others."""
        return is_trusted(peer, self._settings.trusted_proxies)

    def _comes_from(self, client: IPAddress, port: int | None = None) -> None:
        """A trusted proxy says whom it speaks for."""
        self._client = client
        self._session.client_is(client, port)
        self._state.waiting.comes_from(self, self._address())

    async def _read_proxy_header(self, give_up: float) -> None:
        """What the PROXY protocol puts before all else, and not a byte of what follows."""
        # Without a list of proxies, all who reach the listener are.
        if self._settings.trusted_proxies and not self._is_proxy(self._client):
            raise ProxyHeaderRefused("it is not from a trusted proxy", proxy_error="http_request_denied")
        reader = ProxyHeaderReader()
        with trio.move_on_at(give_up):
            try:
                while (header := reader.next_event()) is None:
                    reader.receive(await self._receive(reader.needed))
            except ProxyHeaderError as error:
                raise ProxyHeaderRefused(str(error)) from None
            if header.source is None:
                self._reads_forwarded = False
            else:
                self._comes_from(header.source, header.port)
            return
        raise _TooLate("no PROXY header came in time")

    async def _receive(self, most: int) -> bytes:
        """Bytes of the request, or of what comes before it."""
        try:
            data = await self._stream.receive_some(most)
        except trio.BrokenResourceError:
            raise _Departed from None
        if not data:
            raise _Departed
        return data

    async def _secure(self, context: ssl.SSLContext, give_up: float) -> None:
        from http2tcp.net.tls_server import HandshakeFailed, accept_tls

        assert isinstance(self._stream, SocketStream)
        try:
            with trio.move_on_at(give_up):
                self._stream = await accept_tls(self._stream, context)
                self._state.waiting.speaks(self)
                return
        except trio.BrokenResourceError:
            raise _Departed from None
        except HandshakeFailed as error:
            raise _NoTLS(str(error)) from None
        raise _TooLate("the TLS handshake took too long")

    async def _read_head(self, give_up: float) -> TunnelRequest:
        forwarded_header = self._settings.forwarded_header if self._reads_forwarded else None
        reader = RequestReader(connect=self._settings.connect, forwarded_header=forwarded_header)
        with trio.move_on_at(give_up):
            while (request := reader.next_event()) is None:
                reader.receive(await self._receive(MAX_HEAD))
                self._state.waiting.speaks(self)
            self._stream.unread(reader.trailing_data)
            if forwarded_header is not None:
                trusted = self._settings.trusted_proxies
                named = client_address(self._client, request.forwarded, header=forwarded_header, trusted=trusted)
                if named != self._client and named != "unix":
                    self._comes_from(named)
            return request
        raise HeadTimeout

    def _authorise(self, request: TunnelRequest) -> Admission:
        """Where the request may go. The order of the checks is what an attacker may learn."""
        self._check_path(request)
        grant = self._authenticate(request)
        return self._admit(request, grant)

    def _check_path(self, request: TunnelRequest) -> None:
        settings = self._state.settings
        path = settings.path
        if path is not None and not request.is_connect and normal_path(path) != normal_path(request.path or ""):
            raise NotFound
        if request.is_connect and not settings.connect:
            # CONNECT was taken when the connection came, and is not any more.
            raise BadRequest

    def _admit(self, request: TunnelRequest, grant: Grant) -> Admission:
        """Where an accepted request may go; it holds a place among the tunnels from now on."""
        if request.transport is None:
            raise UpgradeRequired
        try:
            if request.target is not None:
                destination: Address | None = parse_target(*request.target)
            else:
                destination = grant.default if request.addr is None else parse_destination(request.addr)
        except AddressError as error:
            raise BadRequest(f"the destination is not understood: {error}") from None
        if destination is None:
            raise BadRequest("the request names no destination, and this server has no default one (-d)")
        self._session.asked(destination)
        if request.origin is not None and request.origin not in self._state.settings.allow_origins:
            raise Forbidden("a web page may not open tunnels")
        admission = grant.admit(destination)
        self._free_tunnel()
        self._state.tunnels.enter(grant.token)
        self._grant, self._token = grant, grant.token
        return admission

    def _authenticate(self, request: TunnelRequest) -> Grant:
        try:
            grant = self._state.policy.authenticate(request.token, time.time())
        except Unauthorized as error:
            if request.token is not None:
                self._session.failed_authentication(error.name if isinstance(error, TokenExpired) else None)
                self._state.metrics.authentication_failures.add()
                if self._state.failures.failed(self._address(), trio.current_time()):
                    raise TooManyRequests from None
            if request.is_connect:
                raise ProxyAuthenticationRequired from error
            raise
        self._state.waiting.leave(self)
        self._session.authenticated(None if grant.token is None else grant.token.name)
        return grant

    def _admit_again(self, request: TunnelRequest, admission: Admission, asked: ServerSettings) -> Admission:
        """Where the request may go by now: the rules that were `asked` may have changed, and the token's time be over.

        Raises Refusal.
        """
        state, now = self._state, time.time()
        if state.settings.keep_sessions:
            return admission
        if state.settings is asked and (self._token is None or now < self._token.expires):
            return admission
        self._check_path(request)
        try:
            # Nobody guesses here, so this one does not count as a failure.
            grant = state.policy.authenticate(request.token, now)
        except Unauthorized as error:
            if request.is_connect:
                raise ProxyAuthenticationRequired from error
            raise
        self._session.authenticated(None if grant.token is None else grant.token.name)
        return self._admit(request, grant)

    async def _dial(self, request: TunnelRequest, admission: Admission) -> Dialled:
        """Connect to the target. What counts is what the rules say once it has accepted."""
        try:
            if request.expects_continue:
                await self._stream.send_all(CONTINUE)
        except trio.BrokenResourceError:
            raise _Departed from None
        started = trio.current_time()
        give_up = started + self._settings.connect_timeout
        while True:
            asked = self._state.settings
            dialled: Dialled | None = None
            failure: Refusal | None = None
            try:
                dialled = await self._reach(admission, give_up)
            except Refusal as refusal:
                failure = refusal
            try:
                newest = self._admit_again(request, admission, asked)
            except Refusal:
                # A session that opened now would outlive what closed it; nor is it told how the target is.
                if dialled is not None:
                    dialled.stream.abort()
                raise
            if newest.destination == admission.destination:
                if failure is not None:
                    raise failure
                assert dialled is not None
                if newest is admission or _permits(newest, dialled.address):
                    self._dial_time = trio.current_time() - started
                    self._state.metrics.dials.observe(self._dial_time)
                    return dialled
            # The default destination is another now, or the name has addresses that may still be reached.
            if dialled is not None:
                dialled.stream.abort()
            admission = newest

    async def _reach(self, admission: Admission, give_up: float) -> Dialled:
        """Connect to an admitted destination. Raises Refusal."""
        destination = admission.destination
        closed = ""

        def permits(address: IPAddress) -> bool:
            nonlocal closed
            refusal = admission.refusal(address)
            closed = closed or refusal
            return not refusal

        known = trio.Event()
        limiter = self._state.look_up_limiter(self._token)
        try:
            with trio.fail_at(give_up):
                try:
                    return await dial(destination, permits, known.set, limiter)
                except DialError as error:
                    if error.failure is not DialFailure.EXHAUSTED:
                        raise
                    # Those who only wait give their descriptors up.
                    self._state.waiting.give_way()
                    await trio.sleep(_EXHAUSTED_PAUSE)
                    return await dial(destination, permits, known.set, limiter)
        except trio.TooSlowError:
            raise too_slow(admission, self._settings.connect_timeout, named=known.is_set()) from None
        except DialError as error:
            raise dial_refusal(admission, error, closed) from error

    async def _switch_and_relay(self, request: TunnelRequest, target: Dialled) -> tuple[Reason, str]:
        self._session.opened(target.address, request.carrier, self._dial_time)
        self._state.metrics.opened(self._session.traffic, request.carrier)
        self._state.sessions.add(self)
        self._opened_at = trio.current_time()
        self.limit_term()
        idle = self._state.limits.idle_timeout
        if idle is not None:
            self.term.idle(idle, f"no byte went either way for {idle:g} s", Reason.IDLE)
        try:
            keepalive = self._settings.keepalive
            answer = accept(request, self._session.id, keepalive=keepalive, dial_time=self._dial_time)
            await self._stream.send_all(answer)
            self._state.metrics.handshakes.observe(trio.current_time() - self._accepted_at)
        except trio.BrokenResourceError as error:
            return Reason.CLIENT_BROKE, str(error)
        else:
            client, session = self._framed(request), self._session
            outcome = await relay(client, self._paced(target), session.traffic, self.term, _CODES)
            return _reason(outcome.end, self.term), outcome.words
        finally:
            target.stream.abort()

    def limit_term(self) -> None:
        """When it ends at the latest, by all that may end it."""
        limits = self._state.limits
        self.term.renew()
        self.term.until(self._state.ends_at, "the server was stopped", Reason.STOPPED)
        if limits.max_session is not None:
            words = f"a session lasts {limits.max_session:g} s at most"
            self.term.until(self._opened_at + limits.max_session, words, Reason.MAX_SESSION)
        self.limit_by_expiry()

    def limit_by_expiry(self) -> None:
        """It ends when its token does, by the wall clock of now.

        A clock that was put forward ends it earlier than was thought; one that was put back lengthens nothing.
        """
        if self._token is not None and not self._state.settings.keep_sessions:
            left = self._token.expires - time.time()
            self.term.until(trio.current_time() + left, "the token has expired", Reason.EXPIRED)

    def _paced(self, target: Dialled) -> Stream:
        rate = self._state.limits.max_rate
        return target.stream if rate is None else PacedStream(target.stream.socket, rate)

    def _framed(self, request: TunnelRequest) -> Stream:
        """The tunnel's bytes: what the transport adds to them stays below."""
        stream: Stream = self._stream
        keepalive = self._settings.keepalive
        if request.transport is Transport.WEBSOCKET:
            # Its frames are wsproto's, which a server that has no such client does not load.
            from http2tcp.net.websocket import WebSocketStream

            # Capsules break the silence themselves.
            stream = WebSocketStream(stream, client=False, keepalive=math.inf if request.capsules else keepalive)
        if request.capsules:
            stream = CapsuleStream(
                stream, keepalive=keepalive, peer_keepalive=request.keepalive, confirms=request.confirms
            )
        return stream

    async def _refuse(self, refusal: Refusal, give_up: float) -> None:
        """Send the refusal and see it delivered: closing with bytes unread would reset it away."""
        self._session.refused(refusal)
        self._state.metrics.refused(refusal)
        self._free_tunnel()
        if isinstance(refusal, ProxyHeaderRefused):
            return
        # Before the token is accepted nobody is waited for beyond the head's own deadline.
        with trio.move_on_after(_LINGER) as linger:
            # It still holds a descriptor, and gives it up like the others that wait.
            self._opening = linger
            self._state.waiting.answered(self)
            if refusal.status in (400, 401, 404, 407, 408, 426, 429, 431):
                linger.deadline = min(linger.deadline, max(give_up, trio.current_time() + 0.1))
            try:
                await self._stream.send_all(refuse(refusal, self._session.id))
                await self._stream.send_eof()
                unread = _LINGER_BYTES
                while unread > 0 and (data := await self._stream.receive_some()):
                    unread -= len(data)
                await self._stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


class _Departed(Exception):
    """The client closed or broke the connection before its request was whole."""


class _NoTLS(Exception):
    """No TLS session came about. `str(error)` says why."""


class _TooLate(Exception):
    """What comes before the head took all of its time. `str(error)` says what."""


_REASONS = {
    End.CLOSED: Reason.CLOSED,
    End.LEFT_BROKE: Reason.CLIENT_BROKE,
    End.RIGHT_BROKE: Reason.TARGET_BROKE,
    End.LEFT_SILENT: Reason.CLIENT_BROKE,
    End.RIGHT_SILENT: Reason.TARGET_BROKE,
}


# What a client is told of these, in capsules.
_CODES: dict[object, int] = {
    End.RIGHT_BROKE: ResetCode.TARGET,
    Reason.REVOKED: ResetCode.REVOKED,
    Reason.EXPIRED: ResetCode.EXPIRED,
    Reason.IDLE: ResetCode.IDLE,
    Reason.MAX_SESSION: ResetCode.LONGEST,
    Reason.STOPPED: ResetCode.STOPPED,
}


def _reason(end: End, term: Term) -> Reason:
    if end is not End.TERMINATED:
        return _REASONS[end]
    assert isinstance(term.cause, Reason)
    return term.cause


def _permits(admission: Admission, dialled: Address) -> bool:
    """Whether a destination's address, which was dialled, may be. A Unix socket is its own."""
    return not isinstance(dialled, TCPAddress) or not admission.refusal(ip_address(dialled.host))
