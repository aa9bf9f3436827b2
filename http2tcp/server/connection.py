"""The life of a connection: accept → head → authorise → dial → switch → relay → record.

`Connection.run` is the whole of it: `_serve` goes through the steps to one outcome; `run` records the outcome and
cleans up. A `Session` outlives its connection. All connections share the `State`.
"""

from __future__ import annotations

import logging
import ssl
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

from http2tcp.address import Address, IPAddress, TCPAddress, normal_path, parse_destination, parse_target
from http2tcp.errors import (
    AddressError,
    BadRequest,
    DialFailure,
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
from http2tcp.net.dial import DialError, Dialled, dial
from http2tcp.net.framed import carrier, framed
from http2tcp.net.last_answer import LINGER, send_last_answer
from http2tcp.net.paced import PacedStream
from http2tcp.net.relay import End, relay
from http2tcp.net.relay import Outcome as Relayed
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.protocol.capsule import ResetCode
from http2tcp.protocol.forwarded import Peer, client_address, is_trusted, unmapped
from http2tcp.protocol.proxy_protocol import ProxyHeaderError, ProxyHeaderReader
from http2tcp.protocol.server_handshake import CONTINUE, MAX_HEAD, RequestReader, TunnelRequest, accept, refuse
from http2tcp.protocol.transport import Transport
from http2tcp.server.destination_refusals import dial_refusal, too_slow
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Outcome, Reason, Refused, Resumed
from http2tcp.server.policy import Admission, Grant
from http2tcp.server.session import Phase, Session

if TYPE_CHECKING:
    from http2tcp.net.resumable import ResumableStream
    from http2tcp.net.tls_server import ServerTLSStream
    from http2tcp.server.resumption import Entry
    from http2tcp.server.settings import ServerSettings
    from http2tcp.server.state import State

logger = logging.getLogger("http2tcp.connection")

# The statuses of refusals that a client without a token can get. Such a client may stay until the deadline of its
# request's head, but always has at least _SHORTEST_LINGER seconds to read the refusal.
_WITHOUT_TOKEN = (400, 401, 404, 407, 408, 426, 429, 431)
_SHORTEST_LINGER = 0.1
# How many seconds to wait, when no descriptor is free, until evicted connections have freed some.
_EXHAUSTED_PAUSE = 0.1


class Connection:
    """One connection from a client."""

    def __init__(self, state: State, stream: SocketStream, peer: TCPAddress | None) -> None:
        self._state = state
        # The settings when the connection was accepted. Use them for timeouts, wire format and trusted proxies, which
        # stay the same for the connection's whole life. Always read paths, tokens and rules from `state`: they may
        # change while the connection waits for its request or its target.
        self._settings = state.settings
        self._stream: SocketStream | ServerTLSStream = stream
        #: The client's address: at first the peer's, later the address that a trusted proxy names.
        self._client: Peer = "unix" if peer is None else unmapped(ip_address(peer.host))
        # Whether to read the forwarded header. False after a PROXY header without an address: then `_client` is still
        # the address of the trusted proxy, so a forwarded header would be believed, although the client may have
        # written it.
        self._reads_forwarded = bool(self._settings.trusted_proxies)
        self._session = Session(state, peer)
        #: The scope that an eviction cancels: that of the request, and later that of the delivery of a refusal.
        self._evictable = trio.CancelScope()
        self._accepted_at = trio.current_time()
        self._head_deadline = self._accepted_at + self._settings.head_timeout

    async def run(self) -> None:
        """Serve the connection, record its outcome, and clean up."""
        try:
            outcome = await self._serve()
            self._session.over(outcome)
            if isinstance(outcome, Refused):
                await self._deliver(outcome.refusal)
        except Exception:
            # A bug in the code that refuses must not end the server: every client can reach it, even without a token.
            self._log_bug()
        finally:
            self._stream.abort()
            self._state.unauthenticated.leave(self)
            # If there was no outcome, the connection was cancelled because the server stops: record that.
            self._session.stopped()

    async def _serve(self) -> Outcome:
        """Go through a connection's steps, until its tunnel ends or a step fails."""
        # With PROXY headers the peer is a front end, so do not count the connection for the peer's address. Once the
        # header is read, the connection counts for the client that the header names.
        self._state.unauthenticated.enter(self, None if self._settings.proxy_protocol else self._address())
        try:
            with self._evictable:
                if self._settings.proxy_protocol:
                    await self._read_proxy_header()
                if self._state.tls is not None:
                    await self._secure(self._state.tls)
                request = await self._read_head()
                if request.session is not None:
                    return await self._resume(request, request.session)
                admission = self._authorise(request)
                target, dial_time = await self._dial(request, admission)
                return await self._switch_and_relay(request, target, dial_time)
            return Abandoned(NoSession.PUSHED_OUT)
        except Refusal as refusal:
            return Refused(refusal)
        except _Abandon as error:
            return error.outcome
        except Exception:
            # One connection's bug must not end the others.
            self._log_bug()
            if self._session.phase is Phase.OPEN:
                return Ended(Reason.FAILED)
            return Refused(InternalError())

    def _log_bug(self) -> None:
        logger.exception("session %s failed; please report this", self._session.id)

    def evict(self) -> None:
        """Close the connection, since another connection needs its place."""
        self._evictable.cancel()

    def _address(self) -> IPAddress | None:
        """Return the address for the per-address limits; None if many clients share it (such as a front end's)."""
        if self._client == "unix" or self._client.is_loopback or self._is_proxy(self._client):
            return None
        return self._client

    def _is_proxy(self, peer: Peer) -> bool:
        """Return whether the peer is a trusted proxy, so that its word about the client's address is believed."""
        return is_trusted(peer, self._settings.trusted_proxies)

    def _comes_from(self, client: IPAddress, port: int | None = None) -> None:
        """Take the client's address from a trusted proxy."""
        self._client = client
        self._session.records.client_is(client, port)
        self._state.unauthenticated.comes_from(self, self._address())

    async def _read_proxy_header(self) -> None:
        """Read the PROXY protocol's header, and not a byte beyond it."""
        # Without a list of trusted proxies, every peer that reaches the listener counts as a trusted proxy.
        if self._settings.trusted_proxies and not self._is_proxy(self._client):
            raise ProxyHeaderRefused("it is not from a trusted proxy", proxy_error="http_request_denied")
        reader = ProxyHeaderReader()
        with trio.move_on_at(self._head_deadline):
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
        raise _Abandon(NoSession.TIMED_OUT, "no PROXY header came in time")

    async def _receive(self, most: int) -> bytes:
        """Receive some bytes of the request, or of the PROXY header before it."""
        try:
            data = await self._stream.receive_some(most)
        except trio.BrokenResourceError:
            raise _Abandon(NoSession.CLIENT_LEFT) from None
        if not data:
            raise _Abandon(NoSession.CLIENT_LEFT)
        return data

    async def _secure(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake. From then on `_stream` is the TLS stream."""
        from http2tcp.net.tls_server import HandshakeFailed, accept_tls

        assert isinstance(self._stream, SocketStream)
        try:
            with trio.move_on_at(self._head_deadline):
                self._stream = await accept_tls(self._stream, context)
                self._state.unauthenticated.sent_something(self)
                return
        except trio.BrokenResourceError:
            raise _Abandon(NoSession.CLIENT_LEFT) from None
        except HandshakeFailed as error:
            raise _Abandon(NoSession.NO_TLS, str(error)) from None
        raise _Abandon(NoSession.TIMED_OUT, "the TLS handshake took too long")

    async def _read_head(self) -> TunnelRequest:
        """Read the head of the request. Give bytes that came after it back to the stream."""
        forwarded_header = self._settings.forwarded_header if self._reads_forwarded else None
        reader = RequestReader(connect=self._settings.connect, forwarded_header=forwarded_header)
        with trio.move_on_at(self._head_deadline):
            while (request := reader.next_event()) is None:
                reader.receive(await self._receive(MAX_HEAD))
                self._state.unauthenticated.sent_something(self)
            self._stream.unread(reader.trailing_data)
            if forwarded_header is not None:
                trusted = self._settings.trusted_proxies
                named = client_address(self._client, request.forwarded, header=forwarded_header, trusted=trusted)
                if named != self._client and named != "unix":
                    self._comes_from(named)
            return request
        raise HeadTimeout

    def _authorise(self, request: TunnelRequest) -> Admission:
        """Check the path, the token and the destination, and return where the request may go. Raises Refusal.

        The order of the checks decides what an attacker can learn from a refusal.
        """
        self._check_path(request)
        grant = self._authenticate(request)
        return self._admit(request, grant)

    def _check_path(self, request: TunnelRequest) -> None:
        settings = self._state.settings
        path = settings.path
        if path is not None and not request.is_connect and normal_path(path) != normal_path(request.path or ""):
            raise NotFound
        if request.is_connect and not settings.connect:
            # A reload turned CONNECT off after the connection was accepted.
            raise BadRequest

    def _authenticate(self, request: TunnelRequest) -> Grant:
        """Return what the request's token allows. A wrong token counts against the client's address."""
        grant = self._accept_token(request)
        self._state.unauthenticated.leave(self)
        return grant

    def _accept_token(self, request: TunnelRequest) -> Grant:
        try:
            grant = self._state.policy.authenticate(request.token, time.time())
        except Unauthorized as error:
            if request.token is not None:
                self._session.records.failed_authentication(error.name if isinstance(error, TokenExpired) else None)
                self._state.metrics.authentication_failures.add()
                if self._state.failures.failed(self._address(), trio.current_time()):
                    raise TooManyRequests from None
            if request.is_connect:
                raise ProxyAuthenticationRequired from error
            raise
        self._session.records.authenticated(None if grant.token is None else grant.token.name)
        return grant

    async def _resume(self, request: TunnelRequest, session: str) -> Outcome:
        """Let the client resume a tunnel of its own that has lost its connection.

        The connection counts as unauthenticated until the client has proved that it knows the session's secret.
        """
        self._check_path(request)
        grant = self._accept_token(request)
        if request.transport is None:
            raise UpgradeRequired
        if not request.capsules:
            raise BadRequest("a tunnel of raw bytes cannot be resumed")
        self._check_origin(request)
        # Import it at the first attempt to resume: many servers see no such attempt for days.
        from http2tcp.server.attempt import Attempt

        found = self._state.resumption.find(session, grant.token)
        try:
            answer = accept(request, self._session.id, keepalive=self._settings.keepalive, resumes=True)
            await self._stream.send_all(answer)
        except trio.BrokenResourceError:
            raise _Abandon(NoSession.CLIENT_LEFT) from None
        attempt = Attempt(self._state, self._carrier(request), self._session.records, transport=request.carrier)
        result = await attempt.run(found, lambda: self._state.unauthenticated.leave(self))
        if result == "denied":
            self._state.failures.failed(self._address(), trio.current_time())
        if result not in ("resumed", "over"):
            self._session.records.not_resumed(result)
        return Resumed(result)

    def _check_origin(self, request: TunnelRequest) -> None:
        if request.origin is not None and request.origin not in self._state.settings.allow_origins:
            raise Forbidden("a web page may not open tunnels")

    def _admit(self, request: TunnelRequest, grant: Grant) -> Admission:
        """Return where an authenticated request may go, and take a place among the tunnels for it. Raises Refusal."""
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
        self._session.records.asked(destination)
        self._check_origin(request)
        return self._session.admit(grant, destination)

    def _admit_again(self, request: TunnelRequest, admission: Admission, asked: ServerSettings) -> Admission:
        """Return where the request may go now, after the dial. Raises Refusal.

        `asked` is the server's settings from before the dial. Since then the rules may have changed, or the token may
        have expired.
        """
        state, now = self._state, time.time()
        if state.settings.keep_sessions:
            return admission
        token = self._session.token
        if state.settings is asked and (token is None or now < token.expires):
            return admission
        self._check_path(request)
        try:
            # The token was right before, so the client did not guess it: do not count a failure against its address.
            grant = state.policy.authenticate(request.token, now)
        except Unauthorized as error:
            if request.is_connect:
                raise ProxyAuthenticationRequired from error
            raise
        self._session.records.authenticated(None if grant.token is None else grant.token.name)
        return self._admit(request, grant)

    async def _dial(self, request: TunnelRequest, admission: Admission) -> tuple[Dialled, float]:
        """Connect to the target. Return the connection, and how many seconds it took. Raises Refusal.

        After the dial, check the rules again: a reload may have changed them meanwhile.
        """
        try:
            if request.expects_continue:
                await self._stream.send_all(CONTINUE)
        except trio.BrokenResourceError:
            raise _Abandon(NoSession.CLIENT_LEFT) from None
        started = trio.current_time()
        deadline = started + self._settings.connect_timeout
        while True:
            asked = self._state.settings
            dialled: Dialled | None = None
            failure: Refusal | None = None
            try:
                dialled = await self._reach(admission, deadline)
            except Refusal as refusal:
                failure = refusal
            try:
                newest = self._admit_again(request, admission, asked)
            except Refusal:
                # The rules now forbid the tunnel, so do not open it. Raise this refusal even if the dial failed as
                # well: the client must not learn whether the target is up.
                if dialled is not None:
                    dialled.stream.abort()
                raise
            if newest.destination == admission.destination:
                if failure is not None:
                    raise failure
                assert dialled is not None
                if newest is admission or _permits(newest, dialled.address):
                    dial_time = trio.current_time() - started
                    self._state.metrics.dials.observe(dial_time)
                    return dialled, dial_time
            # Dial again: the default destination has changed, or the new rules forbid the address that was dialled, but
            # may permit another address of the same name.
            if dialled is not None:
                dialled.stream.abort()
            admission = newest

    async def _reach(self, admission: Admission, deadline: float) -> Dialled:
        """Connect to an admitted destination. Raises Refusal."""
        destination = admission.destination
        closed = ""

        def permits(address: IPAddress) -> bool:
            nonlocal closed
            refusal = admission.refusal(address)
            closed = closed or refusal
            return not refusal

        known = trio.Event()
        limiter = self._state.look_up_limiter(self._session.token)
        try:
            with trio.fail_at(deadline):
                try:
                    return await dial(destination, permits, lambda _: known.set(), limiter)
                except DialError as error:
                    if error.failure is not DialFailure.EXHAUSTED:
                        raise
                    # Out of descriptors: close some unauthenticated connections, then try once more.
                    self._state.unauthenticated.give_way()
                    await trio.sleep(_EXHAUSTED_PAUSE)
                    return await dial(destination, permits, lambda _: known.set(), limiter)
        except trio.TooSlowError:
            raise too_slow(admission, self._settings.connect_timeout, named=known.is_set()) from None
        except DialError as error:
            raise dial_refusal(admission, error.failure, str(error), closed) from error

    async def _switch_and_relay(self, request: TunnelRequest, target: Dialled, dial_time: float) -> Ended:
        """Send the answer that opens the tunnel, and relay the tunnel's bytes until it ends."""
        session = self._session
        session.open(target.address, request.carrier, dial_time)
        entry: Entry | None = None
        relayed: Relayed | None = None
        try:
            resumable = request.resumes and request.capsules and self._settings.resume > 0
            answer = accept(
                request, session.id, keepalive=self._settings.keepalive, dial_time=dial_time, resumes=resumable
            )
            if resumable:
                entry = self._resumable(request)
                if request.transport is not Transport.WEBSOCKET:
                    # Send HELLO together with the answer, so that it costs no packet of its own.
                    answer += entry.stream.machine.data_to_send()
            await self._stream.send_all(answer)
            self._state.metrics.handshakes.observe(trio.current_time() - self._accepted_at)
            client = self._framed(request) if entry is None else entry.stream
            relayed = await relay(client, self._paced(target), session.traffic, session.lifetime, _CODES)
            return _ended(relayed, session, entry)
        except trio.BrokenResourceError as error:
            return Ended(Reason.CLIENT_BROKE, str(error))
        finally:
            if entry is not None:
                self._forget(entry, relayed)
            target.stream.abort()

    def _resumable(self, request: TunnelRequest) -> Entry:
        """Make the session resumable, so that it outlives this connection, and register it."""
        # Import these for the first resumable tunnel: a server that has only raw tunnels does not need them.
        from http2tcp.net.resumable import ResumableStream
        from http2tcp.server.resumption import Entry

        resumption, session = self._state.resumption, self._session
        machine = resumption.offer(
            session,
            keepalive=self._settings.keepalive,
            confirms=request.confirms,
            idle_timeout=self._state.limits.idle_timeout,
        )

        def lost(why: str) -> None:
            resumption.left(entry)
            session.records.detached(why)

        def broken_off(why: str) -> None:
            session.lifetime.end(why, _broken_reason(stream))

        stream = ResumableStream(
            machine,
            self._carrier(request),
            keepalive=self._settings.keepalive,
            peer_keepalive=request.keepalive,
            client=False,
            on_lost=lost,
            on_broken_off=broken_off,
            account=resumption.account(session),
        )
        entry = Entry(session, stream, session.records.client)
        resumption.add(entry)
        return entry

    def _forget(self, entry: Entry, relayed: Relayed | None) -> None:
        """Forget a resumable session that is over, but keep an answer for its client.

        The client may not know that the session is over. If it comes back, it gets the code and the words kept here.
        """
        code, words = ResetCode.GONE, "the session is over"
        if entry.stream.given_up:
            code, words = ResetCode.AWAY_TOO_LONG, "the client was away for too long"
        elif relayed is not None and relayed.end is End.TERMINATED:
            code, words = ResetCode(_CODES.get(self._session.lifetime.cause, ResetCode.GONE)), relayed.words
        elif relayed is not None and relayed.end is End.TARGET_BROKE:
            code, words = ResetCode.TARGET, relayed.words
        self._state.metrics.lapses.add(amount=entry.stream.machine.lapses)
        self._state.resumption.remove(entry, code, words)

    def _paced(self, target: Dialled) -> Stream:
        rate = self._state.limits.max_rate
        return target.stream if rate is None else PacedStream(target.stream.socket, rate)

    def _carrier(self, request: TunnelRequest) -> Stream:
        """Return the stream that carries the tunnel's capsules."""
        return carrier(
            self._stream,
            request.transport,
            client=False,
            capsules=request.capsules,
            keepalive=self._settings.keepalive,
        )

    def _framed(self, request: TunnelRequest) -> Stream:
        """Return the stream of the tunnel's bytes, without the transport's framing around them."""
        return framed(
            self._stream,
            request.transport,
            client=False,
            capsules=request.capsules,
            keepalive=self._settings.keepalive,
            peer_keepalive=request.keepalive,
            confirms=request.confirms,
        )

    async def _deliver(self, refusal: Refusal) -> None:
        """Send the refusal, and wait for the client to read it, for at most `LINGER` seconds."""
        if isinstance(refusal, ProxyHeaderRefused):
            return  # the peer does not send what the settings say, so it may not even speak HTTP
        with trio.move_on_after(LINGER) as linger:
            # The connection still has a descriptor open, so keep it evictable.
            self._evictable = linger
            self._state.unauthenticated.answered(self)
            if refusal.status in _WITHOUT_TOKEN:
                linger.deadline = min(linger.deadline, max(self._head_deadline, trio.current_time() + _SHORTEST_LINGER))
            await send_last_answer(self._stream, refuse(refusal, self._session.id))


class _Abandon(Exception):
    """The connection cannot go on, and its client gets no answer."""

    def __init__(self, reason: NoSession, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.outcome = Abandoned(reason, detail)


_REASONS = {
    End.CLOSED: Reason.CLOSED,
    End.CLIENT_BROKE: Reason.CLIENT_BROKE,
    End.TARGET_BROKE: Reason.TARGET_BROKE,
    End.CLIENT_SILENT: Reason.CLIENT_BROKE,
    End.TARGET_SILENT: Reason.TARGET_BROKE,
}


# The code of the RESET capsule that says why the tunnel was ended.
_CODES: dict[object, int] = {
    End.TARGET_BROKE: ResetCode.TARGET,
    Reason.REVOKED: ResetCode.REVOKED,
    Reason.EXPIRED: ResetCode.EXPIRED,
    Reason.IDLE: ResetCode.IDLE,
    Reason.MAX_SESSION: ResetCode.LONGEST,
    Reason.STOPPED: ResetCode.STOPPED,
    Reason.EVICTED: ResetCode.AWAY_TOO_LONG,
    Reason.GAP: ResetCode.GAP,
}


def _ended(relayed: Relayed, session: Session, entry: Entry | None) -> Ended:
    """Return how the tunnel ended.

    The entry of a resumable tunnel shows two more reasons: its client stayed away for too long, or bytes were lost.
    """
    if entry is not None and relayed.end is End.CLIENT_BROKE:
        return Ended(_broken_reason(entry.stream), relayed.words)
    return Ended(_reason(relayed.end, session), relayed.words)


def _broken_reason(stream: ResumableStream) -> Reason:
    """Why a resumable tunnel broke at its client's side."""
    if stream.given_up:
        return Reason.CLIENT_LOST
    return Reason.GAP if stream.gap else Reason.CLIENT_BROKE


def _reason(end: End, session: Session) -> Reason:
    """Return why the tunnel ended: the reason for the relay's end, or the cause if the session's lifetime ended it."""
    if end is not End.TERMINATED:
        return _REASONS[end]
    assert isinstance(session.lifetime.cause, Reason)
    return session.lifetime.cause


def _permits(admission: Admission, dialled: Address) -> bool:
    """Return whether the address that was dialled is permitted. A Unix socket has no IP address to check."""
    return not isinstance(dialled, TCPAddress) or not admission.refusal(ip_address(dialled.host))
