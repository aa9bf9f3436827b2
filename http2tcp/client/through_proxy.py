"""The way to the endpoint through a proxy, under one deadline: connect to the proxy → (TLS) → ask for a connection.

A failure is a `ProxyFailed`. Its sentence says which proxy failed, which option or variable named the proxy, and what
to do. The exceptions are `ResolveFailed`, for a socks5:// proxy, since this machine then looks the endpoint's name up,
and `TLSFailed`, if the certificate files of this machine are unusable.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from http2tcp.address import TCPAddress
from http2tcp.client.proxy_choice import Proxy
from http2tcp.client.settings import ClientSettings, TLSSettings
from http2tcp.errors import ProxyFailed, ResolveFailed, TunnelError
from http2tcp.net.dial import DialError, dial, interleave, resolve
from http2tcp.net.fdpass import HeadReceiver
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.net.tls import TLSStream, beginnings, client_context, open_tls, unusable_authorities
from http2tcp.printable import safe
from http2tcp.protocol.http_connect import Connect, ProxyProtocolError, Refused
from http2tcp.protocol.socks5 import Socks5, SocksRefusal

if TYPE_CHECKING:
    from http2tcp.client.observer import Progress

logger = logging.getLogger("http2tcp.client")


async def dial_through(proxy: Proxy, settings: ClientSettings, progress: Progress | None = None) -> Stream:
    """Connect to the endpoint through the proxy. Returns a SocketStream, unless the proxy is https.

    Raises TunnelError.
    """
    return await _Way(proxy, settings, progress).dial()


class _Way:
    """One connection to the endpoint through a proxy. `_late` is the error to raise if the deadline passes now."""

    def __init__(self, proxy: Proxy, settings: ClientSettings, progress: Progress | None) -> None:
        self._proxy = proxy
        self._progress = progress
        self._settings = settings
        self._target = TCPAddress(settings.endpoint.host, settings.endpoint.port)
        self._name = f"{proxy} (from {proxy.source})"
        self._late: TunnelError = self._failed("")

    async def dial(self) -> Stream:
        logger.debug("through the proxy %s", self._name)
        with trio.move_on_after(self._settings.proxy_timeout):
            targets = [self._target] if self._proxy.resolves else await self._look_up()
            for target in targets:
                try:
                    return await self._dial(target)
                except SocksRefusal as error:
                    words = f"{self._name} does not connect to {self._target}: {error}"
                    if target is targets[-1] or not error.elsewhere:
                        raise ProxyFailed(words) from error
                    logger.debug("%s (%s)", words, target)
        raise self._late

    async def _look_up(self) -> list[TCPAddress]:
        host = self._target.host
        advice = "check -e, and this machine's DNS; a socks5h:// proxy looks names up itself"
        self._late = ResolveFailed(f"cannot find {host}: no answer within {self._settings.proxy_timeout:g} s; {advice}")
        try:
            found = await resolve(self._target)
        except DialError as error:
            raise ResolveFailed(f"cannot find {host}: {error}; {advice}") from error
        addresses = [TCPAddress(candidate.sockaddr[0], candidate.sockaddr[1]) for candidate in interleave(found)]
        if self._progress is not None:
            self._progress.resolved(host, [address.host for address in addresses])
        return addresses

    async def _dial(self, target: TCPAddress) -> Stream:
        seconds = f"within {self._settings.proxy_timeout:g} s"
        self._late = ProxyFailed(f"no connection to {self._name} {seconds}: a firewall may drop it")
        try:
            dialled = await dial(TCPAddress(self._proxy.host, self._proxy.port))
        except DialError as error:
            raise self._failed(f"cannot be reached: {error}") from error
        logger.debug("connected to the proxy at %s", dialled.address)
        stream: Stream = dialled.stream
        try:
            if self._proxy.tls:
                self._late = self._failed(f"did not complete the TLS handshake {seconds}")
                stream = await self._secure(dialled.stream)
            self._late = self._failed(f"gave no answer {seconds}: it may be unable to reach {self._target}")
            await self._ask(stream, target)
        except BaseException:
            stream.abort()
            raise
        logger.debug("connected to %s through the proxy", target)
        if self._progress is not None:
            self._progress.proxied(self._proxy, dialled.address)
        return stream

    async def _secure(self, stream: SocketStream) -> TLSStream:
        # The options for the server's name, pins and client certificate apply to the site only, not to the proxy.
        # --ca-file applies to both.
        tls = self._settings.tls
        try:
            context = client_context(ca_file=tls.ca_file, verify=tls.verify)
        except OSError as error:
            # Imported here and below: a login that succeeds need not load it.
            from http2tcp.client.diagnosis import explain_certificates

            files = beginnings([("--ca-file", tls.ca_file)])
            raise explain_certificates(error, ca_file=tls.ca_file is not None, cert=False, files=files) from error
        try:
            return await open_tls(stream, context, self._proxy.host)
        except OSError as error:
            raise self._failed(_tls_words(error, tls)) from error

    async def _ask(self, stream: Stream, target: TCPAddress) -> None:
        credentials = self._proxy.credentials
        try:
            if self._proxy.socks:
                await socks5_through(stream, target, credentials=credentials)
                return
            refused = await connect_through(
                stream, target, user_agent=self._settings.user_agent, credentials=credentials
            )
        except SocksRefusal:
            raise
        except ProxyProtocolError as error:
            raise self._failed(str(error)) from error
        except trio.BrokenResourceError as error:
            raise self._failed(f"broke off without an answer: {error}") from error
        if refused is not None:
            raise self._failed(self._refusal(refused))

    def _refusal(self, refused: Refused) -> str:
        answered = f"answered {refused.status} {safe(refused.reason)}".rstrip()
        match refused.status:
            case 401 | 407:
                return self._wanted_login(refused)
            case 403 | 405 if not self._settings.endpoint.tls:
                return f"{answered}: it does not allow {self._target}; many allow https endpoints at port 443 only"
            case 403 | 405:
                return f"{answered}: it does not allow {self._target}; ask who runs it, or try port 443"
            case 500 | 502 | 503 | 504:
                return f"{answered}: it cannot reach {self._target}; check -e, and that the site is up"
            case _:
                return f"{answered} to CONNECT {self._target}: is it a proxy at all?"

    def _wanted_login(self, refused: Refused) -> str:
        offered = f"it offers {', '.join(refused.schemes)}" if refused.schemes else "it names no scheme"
        if refused.schemes and "basic" not in map(str.lower, refused.schemes):
            return (
                f"wants a login ({refused.status}) of a kind that http2tcp does not support "
                f"({offered}; http2tcp supports Basic): "
                "a local proxy such as cntlm or px can log in for it"
            )
        if self._proxy.credentials is not None:
            return f"does not take this user and password ({refused.status}; {offered})"
        advice = "put USER:PASSWORD@ before its host, best in a file (--proxy @FILE)"
        return f"wants a login ({refused.status}; {offered}): {advice}"

    def _failed(self, words: str) -> ProxyFailed:
        return ProxyFailed(f"{self._name} {words}")


def _tls_words(error: OSError, tls: TLSSettings) -> str:
    from http2tcp.client.handshake_faults import HandshakeFault, fault_of, words_of

    match fault_of(error):
        case HandshakeFault.ENDED:
            return "ended the TLS handshake: is it an http:// proxy?"
        case HandshakeFault.NOT_TLS:
            return "does not speak TLS: is it an http:// proxy?"
        case HandshakeFault.NO_HTTP_1:
            return "does not take http/1.1 by TLS (ALPN): it speaks HTTP/2 only, or is not a proxy"
        case HandshakeFault.OTHER:
            return f"failed the TLS handshake: {words_of(error)}"
        case HandshakeFault.BROKEN:
            return f"broke the TLS handshake off: {words_of(error)}"
        case _:
            # The certificate is not valid. OpenSSL's own words say why: expired, self-signed, for another name.
            authority = "--ca-file" if tls.ca_file is None else "--ca-file, which may hold several"
            unusable = unusable_authorities() if tls.ca_file is None else ""
            authority += f"; {safe(unusable)}: unset it, if the authority is a public one" if unusable else ""
            return (
                f"has a certificate that is not valid here: {words_of(error)}; "
                f"name a private authority with {authority}"
            )


async def connect_through(
    stream: Stream, target: TCPAddress, *, user_agent: str, credentials: tuple[bytes, bytes] | None
) -> Refused | None:
    """Ask an HTTP proxy to CONNECT. Return None if it has connected us, otherwise its refusal.

    The stream's next bytes are those that came after the proxy's answer. The caller sets the deadline. Raises
    ProxyProtocolError or BrokenResourceError.
    """
    handshake = Connect(str(target), user_agent=user_agent, credentials=credentials)
    receive = HeadReceiver(stream).receive if isinstance(stream, SocketStream) else stream.receive_some
    await stream.send_all(handshake.request)
    while (answer := handshake.next_event()) is None:
        handshake.receive(await receive())
    if isinstance(answer, Refused):
        return answer
    stream.unread(answer.trailing_data)
    return None


async def socks5_through(stream: Stream, target: TCPAddress, *, credentials: tuple[bytes, bytes] | None) -> None:
    """Ask a SOCKS5 proxy to connect us. The caller sets the deadline.

    Raises ProxyProtocolError, SocksRefusal or BrokenResourceError.
    """
    handshake = Socks5(target.host, target.port, credentials=credentials)
    await stream.send_all(handshake.outgoing)
    while handshake.needed:
        handshake.receive(await stream.receive_some(handshake.needed))
        await stream.send_all(handshake.outgoing)
