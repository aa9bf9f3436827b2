"""What a failure at a hop means, and what the user can do about it. No I/O.

This module turns TLS errors and refusals into a `TunnelError`. An answer whose Proxy-Status names http2tcp comes from
the http2tcp server; a front end made any other answer. Control characters are removed from a peer's text before it
becomes part of a sentence.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from urllib.parse import unquote, urljoin, urlsplit

from http2tcp.address import Address, Endpoint
from http2tcp.client.handshake_faults import HandshakeFault, fault_of, words_of
from http2tcp.errors import (
    BadRequest,
    CredentialsRefused,
    DestinationForbidden,
    Forbidden,
    FrontEndFailed,
    OriginalServer,
    ServerRefused,
    TargetFailed,
    TLSFailed,
    TLSRequired,
    TunnelError,
    UpgradeNotPassed,
    os_reason,
)
from http2tcp.printable import safe
from http2tcp.protocol.client_handshake import Refused
from http2tcp.protocol.transport import Transport
from http2tcp.units import repeated

# How many characters of an error page a message quotes. The quote is part of a sentence, so it must be short.
_MAX_PAGE = 100
# Header fields of the request that hold no secret.
_OPEN_FIELDS = ("host", "user-agent", "connection", "upgrade", "capsule-protocol")
# Ignore words of the request that are shorter than this: they may be on a page by chance.
_SHORTEST_SECRET = 4

# Seconds. A delay shorter than this is not worth a mention.
_NOTICEABLE = 0.1
# The statuses of answers that may come from something else while a server restarts: a default backend, a maintenance
# page, or a service mesh that has lost the route. Redirects count as well.
_PASSING = (403, 404, 405)


def quotes_credentials(page: str, head: bytes, token: str | None) -> bool:
    """Return whether a page repeats a possible secret of the request `head`, as debugging pages do."""
    _, *lines = head.decode("utf-8", "replace").split("\r\n")
    fields = (line.partition(":") for line in lines)
    words = [word for name, _, value in fields if name.lower() not in _OPEN_FIELDS for word in value.split()]
    secrets = [word for word in words if len(word) >= _SHORTEST_SECRET] + ([token] if token else [])
    return any(secret.lower() in page.lower() for secret in secrets)


def explain_refusal(
    refused: Refused, endpoint: Endpoint, destination: Address | None, transport: Transport, *, with_token: bool
) -> TunnelError:
    """Return the error for an answer other than 101."""
    if refused.proxy_error is None:
        error = _explain_front_end(refused, endpoint, destination, transport)
        if isinstance(error, UpgradeNotPassed):
            error.seen = f"was answered {refused.status}" + (f" by {safe(refused.server)}" if refused.server else "")
            error.passing = refused.status in _PASSING or 300 <= refused.status < 400
        return error
    text = safe(refused.text) or "its log says why"
    where = "its default destination" if destination is None else str(destination)
    match refused.status:
        case 400 if refused.text == TLSRequired.text and endpoint.tls:
            return FrontEndFailed(
                "the front end speaks plain http to the http2tcp server, which serves https itself (--tls-cert): "
                "let the one take up TLS, or the other leave it"
            )
        case 400 if refused.text == TLSRequired.text:
            return ServerRefused("the server serves https: write https:// in the endpoint")
        case 400 if refused.text == BadRequest.text:
            # The server also answers 400 if a front end turns every upgrade into websocket. Then the websocket
            # transport gets through.
            return UpgradeNotPassed(
                f"{endpoint} reached the http2tcp server with a changed request (400)",
                _hint(refused, transport),
                seen="was answered 400 by the http2tcp server, which got another request",
            )
        case 401 if not with_token:
            return CredentialsRefused("the server wants a token: give it one with --token-file or -t")
        case 401:
            return CredentialsRefused(
                "the server does not know this token: it was not reloaded after the token was added, or the token has "
                "expired, or something else was sent (the token must be the token file's first line; an env file may "
                "have kept quotes around it)"
            )
        case 403 if refused.text.startswith(f"{where} "):
            return DestinationForbidden(text)
        case 403 if refused.text == Forbidden.text and with_token:
            return DestinationForbidden(
                f"the server does not let this token go to {where}; {_why_forbidden(destination, refused.session)}"
            )
        case 403 if refused.text == Forbidden.text:
            advice = "" if destination is None else ": leave -d out to get to its default destination"
            return DestinationForbidden(f"the server lets nobody without a token go to {where}{advice}")
        case 403:
            return DestinationForbidden(f"{where} may not be reached through this server: {text}")
        case 404:
            return ServerRefused(f"the server does not answer at {endpoint.path}: compare -e with the server's --path")
        case 426:
            return UpgradeNotPassed(
                f"{endpoint} did not pass the upgrade to {transport.value} on (426)",
                _hint(refused, transport),
                seen="was answered 426 by the http2tcp server, which got no upgrade",
            )
        case 502 | 504:
            return TargetFailed(text, refused.proxy_error)
        case 500 if refused.session:
            return ServerRefused(f"the server refused (500): {text}, at session {refused.session}")
        case _:
            return ServerRefused(f"the server refused ({refused.status}): {text}")


def explain_detour(best: Transport, seen: Sequence[str], found: Transport, seconds: float, *, ours: bool) -> str:
    """Return the hint for when `found` gets through and `best` does not. `seen` says how each try of `best` ended.

    The failed tries took `seconds`. `ours`: the server that answered is http2tcp, not the original http2tcp.
    """
    tries = [f"{what}{repeated(len(list(same)))}" for what, same in groupby(seen)]
    name = found.value
    faster = f"--transport {name} is faster" + (f" by {seconds:.1f} s" if seconds >= _NOTICEABLE else "")
    history = f"{best.value} {', then '.join(tries)}"
    if found.raw and ours:
        # Say what this transport lacks, before the user chooses it for good.
        return (
            f"{history}; {name} gets through, without a keepalive and perhaps without half-close: "
            f"--check shows what the front end lacks, and {faster}"
        )
    return f"{history}; {name} gets through, and {faster}"


def _why_forbidden(destination: Address | None, session: str) -> str:
    """Say how the operator finds the rule: only the server knows the token's name and the default destination."""
    record = f"session {session} of its log" if session else "its log"
    if destination is None:
        return f"{record} names the token and the destination"
    from shlex import quote

    command = f"http2tcp -s --config FILE --check --as NAME {quote(str(destination))}"
    return f"on the server, `{command}` says why, with the server's FILE and the token's NAME, which {record} has"


def _explain_front_end(
    refused: Refused, endpoint: Endpoint, destination: Address | None, transport: Transport
) -> TunnelError:
    page = _words_of(refused.page)
    said = ", ".join(filter(None, (safe(refused.server), page and f'"{page}"')))
    made_by = f"{endpoint} answered {refused.status}" + (f" ({said})" if said else "")
    for mark, cause in _PAGES:
        if refused.status >= 400 and mark in page.lower():
            return FrontEndFailed(f"{made_by}: {cause}")
    where = "the target" if destination is None else str(destination)
    match refused.status:
        case status if 300 <= status < 400:
            return UpgradeNotPassed(f"{made_by}, a redirect; {_redirect(refused, endpoint)}")
        case 400 if not endpoint.tls:
            # nginx and Apache answer 400 to plain HTTP on a port that expects TLS.
            return UpgradeNotPassed(
                f"{made_by}: does that port want https://? If not, it did not pass the upgrade on",
                _hint(refused, transport),
            )
        case 200:
            return UpgradeNotPassed(
                f"{made_by} with a page: something else than http2tcp answers at {endpoint.path}, such as the site or "
                "its login; compare the path of -e with the front end's location",
                _hint_to_check(refused),
            )
        case 404:
            return UpgradeNotPassed(
                f"{made_by}: probably the path is wrong: compare {endpoint.path} in -e with the front end's location; "
                f"or {_hidden(refused, 'whose --path is another')}",
                _hint_to_check(refused),
            )
        case 400 | 405 | 426 | 501:
            return UpgradeNotPassed(f"{made_by} and did not pass the upgrade on", _hint(refused, transport))
        case 401 if transport is Transport.HTTP2TCP:
            return CredentialsRefused(f"{made_by}: the token is wrong, or the front end wants a login of its own")
        case 401 if not refused.challenged and endpoint.username is None:
            return OriginalServer(
                f"{made_by} without saying which login it wants: a server of the original http2tcp does that, "
                "and takes --transport http2tcp/1.0"
            )
        case 401 if endpoint.username is not None:
            return FrontEndFailed(f"{made_by}: it does not take the login in the endpoint")
        case 401:
            return FrontEndFailed(
                f"{made_by} and wants a login of its own: put it in the endpoint as https://USER:PASSWORD@…; "
                "a server of the original http2tcp takes --transport http2tcp/1.0"
            )
        case 403:
            return UpgradeNotPassed(
                f"{made_by}: it refuses the upgrade, or this client; "
                f"or {_hidden(refused, f'which does not let this client go to {where}')}"
            )
        case 502 | 504 if _is("Cloudflare", refused):
            outcome = "cannot reach" if refused.status == 502 else "got no answer in time from"
            return FrontEndFailed(
                f"{made_by}: Cloudflare probably shows its own page in place of what it was answered: "
                f"http2tcp {outcome} {where}, or the front end behind Cloudflare has no http2tcp server behind it"
            )
        case 429:
            return FrontEndFailed(
                f"{made_by}: a limit of the front end; or {_hidden(refused, 'after too many tries or tunnels')}"
            )
        case 503 if _is("nginx", refused):
            return FrontEndFailed(
                f"{made_by}: a limit of nginx (limit_req, limit_conn) or its maintenance; "
                f"or {_hidden(refused, 'which is at its limit')}"
            )
        case 502 | 503 | 504:
            own = {502: f"which cannot reach {where}", 504: f"which got no answer in time from {where}"}
            return FrontEndFailed(
                f"{made_by}: no http2tcp server behind it (does one run where proxy_pass or its like points?); "
                f"or {_hidden(refused, own.get(refused.status, 'which is at its limit'))}"
            )
        case _:
            return FrontEndFailed(
                f"{made_by}, which does not answer an upgrade; the log of whatever answered may say why"
            )


# Words in the titles of front ends' error pages, and what they mean. nginx's are in ngx_http_special_response.c.
_PAGES = (
    ("no required ssl certificate", "the site wants a certificate of this client: --client-cert"),
    ("ssl certificate error", "the site does not accept the certificate of --client-cert"),
    ("plain http request was sent to https port", "that port wants https:// in the endpoint"),
    (
        "header or cookie too large",
        "the request's header fields are too large for it: shorten what --header adds, such as cookies, or the token, "
        "or let it take more (in nginx large_client_header_buffers)",
    ),
    ("header fields too large", "the request's header fields are too large for it: shorten what --header adds"),
    ("uri too large", "the path and query of -e are too long for it"),
)


def _words_of(page: str) -> str:
    """Return a page's text ready to be quoted: safe to print, short, and without double quotes."""
    words = safe(page).replace('"', "'")
    return words if len(words) <= _MAX_PAGE else words[:_MAX_PAGE] + "…"


def _is(name: str, refused: Refused) -> bool:
    """Return whether the answer's `Server` field shows that it comes from the front end called `name`."""
    from http2tcp.client.front_ends import recognise

    found = recognise([("server", refused.server)])
    return found is not None and found.front_end.name == name


def _hidden(refused: Refused, meaning: str) -> str:
    """Describe the other possible cause: http2tcp refused, and a front end replaced that answer by its own page."""
    if _is("nginx", refused):
        how = "nginx replaced its page (proxy_intercept_errors on)"
    elif _is("Cloudflare", refused):
        how = "Cloudflare, or what is behind it, replaced its page"
    else:
        how = "its page was replaced on the way (as by proxy_intercept_errors in nginx)"
    return f"http2tcp itself refused, {meaning}, and {how}; the server's log tells"


def _redirect(refused: Refused, endpoint: Endpoint) -> str:
    """Say where the redirect leads, and what to do. Show no query: it may hold a login's secret, or our destination.

    A single sign-on gateway redirects everybody to its login page. So offer a URL for -e only if it is the endpoint in
    another spelling.
    """
    try:
        url = urlsplit(urljoin(str(endpoint), refused.location))
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        return f"to something that is not a URL: {safe(refused.location.partition('?')[0].rpartition('@')[2])}"
    if not refused.location or url.scheme not in ("http", "https") or not url.hostname:
        return "it names no other http or https URL"
    tls, host = url.scheme == "https", url.hostname.rstrip(".")
    # Build the offered URL from the endpoint's own parts, apart from the scheme, the port and a slash at the end: the
    # user should not copy text that a stranger wrote into -e.
    bare = replace(endpoint, username=None, password=None)
    moved = replace(bare, tls=tls, port=port)
    if not endpoint.is_template:
        moved = replace(moved, path=endpoint.path.rstrip("/") + "/" * (url.path[-1:] in ("", "/")) or "/")
    ours = _same_path(url.path, endpoint) and _without_target(url.query) == _without_target(endpoint.expand({})[1])
    # From http to https, the port may change as well. Never go from https to http: others could read the token.
    secure = tls >= endpoint.tls and (port == endpoint.port or tls > endpoint.tls)
    rest = "template" if endpoint.is_template else "query"
    and_rest = f", with your {rest} behind it" if endpoint.is_template or endpoint.query else ""
    # `moved != bare`: a redirect to the same URL comes from a gateway that has set a cookie; another -e would not help.
    if ours and secure and moved != bare and host == endpoint.host.rstrip("."):
        return f"use that URL: -e {moved}{and_rest}"
    if ours and secure and _is_www_of(host, endpoint.host.rstrip(".")):
        return f"if that site is yours, use that URL: -e {replace(moved, host=host)}{and_rest}"
    if ours and host == endpoint.host.rstrip(".") and endpoint.tls and not tls:
        return "to plain http, where the token would be for all to read: it is not followed"
    place, path = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}", endpoint.path.partition("{")[0]
    return (
        f"probably to a login, at {safe(place)}: no tunnel gets past one, and the token is not for that place; "
        f"have the front end let {path} through without it, or compare -e with its path there"
    )


def _same_path(path: str, endpoint: Endpoint) -> bool:
    """Return whether `path` is the endpoint's path, apart from a slash at the end and percent-encoding."""
    return unquote(path).rstrip("/") == unquote(endpoint.expand({})[0]).rstrip("/")


def _without_target(query: str) -> list[str]:
    """Return the parts of a query, without the parts that name our target."""
    ours = ("addr=", "target_host=", "target_port=")
    return [pair for pair in query.split("&") if pair and not pair.startswith(ours)]


def _is_www_of(one: str, other: str) -> bool:
    return one == f"www.{other}" or other == f"www.{one}"


def _hint_to_check(refused: Refused) -> str:
    """Return the hint for an answer that is more likely due to a wrong path than to missing configuration."""
    from http2tcp.client.front_ends import recognise

    found = recognise([("server", refused.server)])
    return f"--check shows what {'a front end' if found is None else found.front_end.name} needs"


def _hint(refused: Refused, transport: Transport) -> str:
    # Imported here: only some failures need it.
    from http2tcp.client.front_ends import NGINX, recognise

    found = recognise([("server", refused.server)])
    if found is not None and found.front_end is not NGINX:
        return f"--check shows what {found.front_end.name} needs"
    return (
        "in nginx the location needs: proxy_http_version 1.1; "
        f"proxy_set_header Connection upgrade; proxy_set_header Upgrade {transport.value};"
    )


# RFC 7292, section 4: a PKCS#12 file is a DER sequence that begins with version 3. Certificates and keys in DER begin
# differently.
_PKCS12 = re.compile(rb"0(?:[\x00-\x80]|\x81.|\x82..|\x83.{3}|\x84.{4})\x02\x01\x03", re.DOTALL)
# Matches an encrypted key, in PKCS#8 or in OpenSSL's older format.
_ENCRYPTED = re.compile(rb"^(?:-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED)", re.MULTILINE)


def explain_certificates(
    error: OSError, *, ca_file: bool, cert: bool, files: Sequence[tuple[str, str, bytes]] = ()
) -> TLSFailed:
    """Return the error for unusable certificate files. `ca_file` and `cert`: whether these options were given.

    `files` holds, for each file, its option, its path and its first bytes.
    """
    options = ["--ca-file"] * ca_file + ["--client-cert (and its key)"] * cert
    if isinstance(error, ssl.SSLError):
        for option, path, data in files:
            if problem := _unfit(option, path, data):
                return TLSFailed(f"cannot use {option} {safe(path)}: {problem}")
        words = (error.reason or "no certificate with its key in PEM").lower().replace("_", " ")
    else:
        words = os_reason(error)
    return TLSFailed(f"cannot use {' or '.join(options) or 'the authorities of this system'}: {words}")


def _unfit(option: str, path: str, data: bytes) -> str:
    """Say what is wrong with a certificate or key file, and which command converts it; "" if it looks right."""
    from shlex import quote

    name = safe(quote(path))
    if _ENCRYPTED.search(data) and option != "--ca-file":
        return (
            "its key is encrypted, and nobody can be asked for the passphrase: write it without one by "
            f"(umask 077; openssl pkey -in {name} -out key.pem) and give that to --client-key"
        )
    what = "-nokeys -out ca.pem" if option == "--ca-file" else "-nodes -out client.pem"
    if _PKCS12.match(data):
        return (
            f"it is a PKCS#12 file, and http2tcp reads PEM: (umask 077; openssl pkcs12 -in {name} {what}) makes it, "
            f"for {'--ca-file' if option == '--ca-file' else '--client-cert alone'}"
        )
    if data[:1] == b"0" and b"-----BEGIN" not in data:
        kind = "pkey" if option == "--client-key" else "x509"
        command = f"openssl {kind} -inform der -in {name} -out FILE"
        return f"it is in DER, and http2tcp reads PEM: (umask 077; {command}) makes it"
    return ""


def explain_tls(error: OSError, endpoint: Endpoint, server_name: str, unusable: str = "") -> TLSFailed:
    """Return the error for a failed TLS handshake.

    `unusable` names an environment variable that points to no usable certificate authorities, or is empty.
    """
    site = f"{endpoint.host}:{endpoint.port}"
    fault = fault_of(error)
    match fault:
        case HandshakeFault.EXPIRED:
            return TLSFailed(f"the certificate of {server_name} has expired: renew it, or check this machine's clock")
        case HandshakeFault.NOT_YET_VALID:
            return TLSFailed(f"the certificate of {server_name} is not valid yet: check this machine's clock")
        case HandshakeFault.OTHER_NAME:
            return TLSFailed(
                f"the certificate is not for {server_name}: use the name that it is for, in -e or --tls-server-name"
            )
        case HandshakeFault.SELF_SIGNED | HandshakeFault.UNKNOWN_ISSUER:
            words = f"the certificate of {server_name} comes from an authority that is not known here: "
            if unusable:
                return TLSFailed(f"{words}{safe(unusable)}: unset it, or name a private authority with --ca-file")
            words += "name a private one with --ca-file"
            if fault is HandshakeFault.UNKNOWN_ISSUER:
                words += (
                    "; if it is a known one, the site does not send its intermediate certificate: "
                    "its own file has to hold the whole chain (in nginx, ssl_certificate)"
                )
            return TLSFailed(words)
        case HandshakeFault.INVALID:
            return TLSFailed(f"the certificate of {server_name} is not valid: {words_of(error)}")
        case HandshakeFault.NOT_TLS:
            return TLSFailed(f"{site} does not speak TLS: is the endpoint http://?")
        case HandshakeFault.ENDED:
            return TLSFailed(f"{site} ended the handshake: does that port speak TLS?")
        case HandshakeFault.NO_HTTP_1:
            return TLSFailed(
                f"{site} does not take http/1.1 by TLS (ALPN): it speaks HTTP/2 only, "
                "which has no upgrade, or the port is another service's; have the front end offer http/1.1 as well"
            )
        case HandshakeFault.OTHER:
            return TLSFailed(f"no TLS session with {site}: {words_of(error)}")
        case HandshakeFault.BROKEN:
            return TLSFailed(f"the handshake with {site} broke: {words_of(error)}")
