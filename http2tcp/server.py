"""The server's story: accept → head → authorise → dial → switch → relay → record.

`serve` listens and drains. `_Connection.run` is a tunnel's whole life. Draining is the shape of the
nurseries: the accepting one lies inside the sessions' one and is cancelled; the sessions get a deadline.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Sequence

import trio

from http2tcp.address import Address, TCPAddress, parse_destination, parse_target
from http2tcp.audit import Reason, Session
from http2tcp.errors import (
    AddressError,
    BadRequest,
    Forbidden,
    HeadTimeout,
    InternalError,
    LimitReached,
    ListenError,
    NotFound,
    ProxyAuthenticationRequired,
    Refusal,
    TargetTimeout,
    TargetUnreachable,
    Unauthorized,
    UpgradeRequired,
)
from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.dial import DialError, DialFailure, Dialled, dial
from http2tcp.net.listen import Listener, open_listeners
from http2tcp.net.relay import End, relay
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.policy import Policy, forbidden
from http2tcp.protocol.server import CONTINUE, MAX_HEAD, RequestReader, TunnelRequest, accept, refuse
from http2tcp.protocol.transport import Transport
from http2tcp.settings import ServerSettings

logger = logging.getLogger(__name__)

# How long a refused client may take to read the refusal, and how much it may still send meanwhile.
_LINGER = 1.0
_LINGER_BYTES = 256 * 1024


async def serve(
    settings: ServerSettings,
    *,
    drain: trio.Event | None = None,
    task_status: trio.TaskStatus[Sequence[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve tunnels until cancelled, or until `drain` is set and the sessions are over.

    Start it with `nursery.start`, which returns the addresses listened on once connections are taken.
    After `drain` no connection is accepted but those that the kernel has accepted already; all accepted
    ones are served as usual and have `settings.grace` seconds. Raises ListenError.
    """
    listeners = await _listen(settings)
    policy = Policy(settings.tokens, settings.destination)
    drain = trio.Event() if drain is None else drain
    try:
        async with trio.open_nursery() as sessions:

            def accepted(sock: socket.socket, peer: str) -> None:
                sessions.start_soon(_Connection(settings, policy, SocketStream(sock), peer).run)

            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(listener.accept_forever, accepted)
                task_status.started([listener.address for listener in listeners])
                await drain.wait()
                accepting.cancel_scope.cancel()
            for listener in listeners:
                if listener.accept_queued(accepted):
                    listener.close()
                else:
                    # Out of descriptors: as sessions end, what is queued gets theirs.
                    sessions.start_soon(listener.accept_rest, accepted)
            sessions.cancel_scope.deadline = trio.current_time() + settings.grace
    finally:
        for listener in listeners:
            listener.close()


async def _listen(settings: ServerSettings) -> list[Listener]:
    try:
        return await open_listeners(settings.listen)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ListenError(f"cannot listen on {settings.listen}: {reason}") from error


class _Connection:
    """One connection from a client."""

    def __init__(self, settings: ServerSettings, policy: Policy, stream: SocketStream, peer: str) -> None:
        self._settings = settings
        self._policy = policy
        self._stream = stream
        self._session = Session(peer)
        self._dial_time = 0.0

    async def run(self) -> None:
        """A tunnel's whole life."""
        reason, words = Reason.STOPPED, ""
        give_up = trio.current_time() + self._settings.head_timeout
        try:
            request = await self._read_head(give_up)
            destination = self._authorise(request)
            target = await self._dial(request, destination)
            reason, words = await self._switch_and_relay(request, target)
        except Refusal as refusal:
            self._session.refused(refusal)
            await self._refuse(refusal, give_up)
        except _Departed:
            logger.debug("session %s: the client left before it had asked", self._session.id)
        except Exception:
            # One tunnel's bug must not end the others.
            logger.exception("session %s failed; please report this", self._session.id)
            reason = Reason.FAILED
            await self._refuse(InternalError(), give_up)
        finally:
            self._stream.abort()
            self._session.ended(reason, words)

    async def _read_head(self, give_up: float) -> TunnelRequest:
        reader = RequestReader(connect=self._settings.connect)
        with trio.move_on_at(give_up):
            while (request := reader.next_event()) is None:
                try:
                    data = await self._stream.receive_some(MAX_HEAD)
                except trio.BrokenResourceError:
                    raise _Departed from None
                if not data:
                    raise _Departed
                reader.receive(data)
            self._stream.unread(reader.trailing_data)
            return request
        raise HeadTimeout

    def _authorise(self, request: TunnelRequest) -> Address:
        """Where the request may go. The order of the checks is what an attacker may learn."""
        if self._settings.path not in (None, request.path) and not request.is_connect:
            raise NotFound
        try:
            grant = self._policy.authenticate(request.token)
        except Unauthorized:
            raise (ProxyAuthenticationRequired if request.is_connect else Unauthorized) from None
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
        if request.origin is not None and request.origin not in self._settings.allow_origins:
            raise Forbidden("a web page may not open tunnels")
        grant.permit(destination)
        return destination

    async def _dial(self, request: TunnelRequest, destination: Address) -> Dialled:
        try:
            if request.expects_continue:
                await self._stream.send_all(CONTINUE)
            started = trio.current_time()
            known = trio.Event()
            with trio.fail_after(self._settings.connect_timeout):
                dialled = await dial(destination, lambda address: not forbidden(address), known.set)
            self._dial_time = trio.current_time() - started
            return dialled
        except trio.TooSlowError:
            raise _too_slow(destination, self._settings.connect_timeout, named=known.is_set()) from None
        except DialError as error:
            raise _dial_refusal(destination, error) from error
        except trio.BrokenResourceError:
            raise _Departed from None

    async def _switch_and_relay(self, request: TunnelRequest, target: Dialled) -> tuple[Reason, str]:
        self._session.opened(target.address, request.carrier)
        try:
            keepalive = self._settings.keepalive
            await self._stream.send_all(accept(request, keepalive=keepalive, dial_time=self._dial_time))
        except trio.BrokenResourceError as error:
            return Reason.CLIENT_BROKE, str(error)
        else:
            outcome = await relay(self._framed(request), target.stream, self._session.traffic)
            return _REASONS[outcome.end], outcome.words
        finally:
            target.stream.abort()

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
        # Before the token is accepted nobody is waited for beyond the head's own deadline.
        with trio.move_on_after(_LINGER) as linger:
            if refusal.status in (400, 401, 404, 407, 408, 426, 431):
                linger.deadline = min(linger.deadline, max(give_up, trio.current_time() + 0.1))
            try:
                await self._stream.send_all(refuse(refusal))
                await self._stream.send_eof()
                unread = _LINGER_BYTES
                while unread > 0 and (data := await self._stream.receive_some()):
                    unread -= len(data)
                await self._stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


class _Departed(Exception):
    """The client closed or broke the connection before its request was whole."""


_REASONS = {
    End.CLOSED: Reason.CLOSED,
    End.LEFT_BROKE: Reason.CLIENT_BROKE,
    End.RIGHT_BROKE: Reason.TARGET_BROKE,
}


def _too_slow(destination: Address, seconds: float, *, named: bool) -> Refusal:
    if named or not isinstance(destination, TCPAddress):
        return TargetTimeout(f"cannot reach {destination} from the server: no answer in {seconds:g} s")
    words = f"cannot find {destination.host} from the server: no name server answered in {seconds:g} s"
    return TargetTimeout(words, proxy_error="dns_timeout")


def _dial_refusal(destination: Address, error: DialError) -> Refusal:
    if error.failure is DialFailure.PROHIBITED:
        return Forbidden(
            f"{destination} is not allowed: link-local and metadata addresses are closed to everybody",
            proxy_error="destination_ip_prohibited",
        )
    words = f"cannot reach {destination} from the server: {error}"
    match error.failure:
        case DialFailure.EXHAUSTED:
            return LimitReached(words)
        case DialFailure.TIMEOUT:
            return TargetTimeout(words)
        case DialFailure.NAME | DialFailure.NAME_TEMPORARY:
            return TargetUnreachable(words, proxy_error="dns_error")
        case DialFailure.REFUSED:
            return TargetUnreachable(words, proxy_error="connection_refused")
        case DialFailure.UNROUTABLE:
            return TargetUnreachable(words, proxy_error="destination_ip_unroutable")
        case _:
            return TargetUnreachable(words, proxy_error="destination_unavailable")
