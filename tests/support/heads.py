"""Request heads, field by field: good ones, and ones that an attacker or a strange proxy would send."""

from __future__ import annotations

from typing import Any

from http2tcp.errors import BadRequest, HeadTooLarge
from http2tcp.protocol.server_handshake import MAX_HEAD, RequestReader, TunnelRequest

#: What no error may ever show.
SECRET = "s3cret-token"

TARGET = "/p?addr=db%3A5432"
HOST = "Host: example.com"
UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")
BEARER = f"Authorization: Bearer {SECRET}"


def head(*fields: str, line: str = f"GET {TARGET} HTTP/1.1", host: str | None = HOST, end: str = "\r\n") -> bytes:
    """A request head of these fields and a Host."""
    lines = [line, *([] if host is None else [host]), *fields, "", ""]
    return end.join(lines).encode("latin-1")


def good(*fields: str, **parts: str) -> bytes:
    """A head that opens a tunnel, with further fields."""
    return head(*UPGRADE, BEARER, *fields, **parts)


def target(text: str) -> bytes:
    """A good head with this request target."""
    return good(line=f"GET {text} HTTP/1.1")


def connect(*fields: str, authority: str = "db:5432", version: str = "HTTP/1.1", **parts: Any) -> bytes:
    """A head of CONNECT with the token, with further fields."""
    login = f"Proxy-Authorization: Bearer {SECRET}"
    return head(login, *fields, line=f"CONNECT {authority} {version}", **parts)


def read(data: bytes, *, cut: int | None = None, connect: bool = False) -> TunnelRequest | None:
    """What the server makes of these bytes, in one piece or in pieces of `cut` bytes."""
    reader = RequestReader(connect=connect)
    for start in range(0, len(data), cut or len(data) or 1):
        reader.receive(data[start : start + (cut or len(data))])
        request = reader.next_event()
        if request is not None:
            return request
    return None


#: name: (head, the status that it gets)
HOSTILE: dict[str, tuple[bytes, int]] = {
    # What h11 alone lets through.
    "Content-Length with Transfer-Encoding": (good("Content-Length: 0", "Transfer-Encoding: chunked"), 400),
    "Transfer-Encoding in HTTP/1.0": (good("Transfer-Encoding: chunked", line=f"GET {TARGET} HTTP/1.0"), 400),
    "bare LF": (good(end="\n"), 400),
    "bare LF in one place": (good("X: a\nY: b"), 400),
    "folded header": (good("X: a\r\n b"), 400),
    "header folded by a tab": (good("X: a\r\n\tb"), 400),
    "folded Authorization": (head(*UPGRADE, f"Authorization: Bearer\r\n {SECRET}"), 400),
    "folding before the first field": (head(*UPGRADE, BEARER, host=" Host: example.com"), 400),
    "HTTP/2.0": (good(line=f"GET {TARGET} HTTP/2.0"), 400),
    "HTTP/1.0": (good(line=f"GET {TARGET} HTTP/1.0"), 400),
    "HTTP/1.2": (good(line=f"GET {TARGET} HTTP/1.2"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "CONNECT without Host": (head(line="CONNECT db:5432 HTTP/1.1", host=None), 400),
    "CONNECT in HTTP/1.0": (head(line="CONNECT db:5432 HTTP/1.0", host=None), 400),
    "CONNECT": (good(line="CONNECT db:5432 HTTP/1.1"), 400),
    "two Authorization": (good(BEARER), 400),
    "two Authorization in two cases": (good(BEARER.replace("Auth", "AUTH")), 400),
    "two Upgrade": (good("Upgrade: tcp"), 400),
    "two Upgrade that differ": (good("upgrade: h2c"), 400),
    "1500 fields": (good(*["X: y"] * 1500), 431),
    "65 fields": (good(*["X: y"] * 61), 431),
    "a body": (good("Content-Length: 5") + b"hello", 400),
    "a chunked body": (good("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "a 60 kB head": (good("X: " + "y" * 60_000), 431),
    "a head one byte too large": (good("X: " + "y" * (MAX_HEAD - len(good("X: ")) + 1)), 431),
    "a head without an end": (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * MAX_HEAD, 431),
    # Two readings.
    "bare CR in a value": (good("X: a\rb"), 400),
    "bare CR before a field": (good("\rTransfer-Encoding: chunked"), 400),
    "CR CR LF": (good("X: a\r"), 400),
    "NUL in a value": (good("X: a\0b"), 400),
    "escape in a value": (good("X: \x1b[2J"), 400),
    "DEL in a value": (good("X: \x7f"), 400),
    "vertical tab": (good("X:\x0ba"), 400),
    "blank before the colon": (good("Transfer-Encoding : chunked"), 400),
    "blank before the colon of Authorization": (head(*UPGRADE, BEARER.replace(":", " :")), 400),
    "blank before the colon of Http2tcp-Token": (head(*UPGRADE, f"Http2tcp-Token : {SECRET}"), 400),
    "tab before the colon": (good("Content-Length\t: 5"), 400),
    "a field without a name": (good(": x"), 400),
    "a field without a colon": (good("Transfer-Encoding"), 400),
    "a field name that is none": (good("Transfer Encoding: chunked"), 400),
    "a field name beyond ASCII": (good("Trans\xe9: chunked"), 400),
    "Transfer-Encoding: identity": (good("Transfer-Encoding: identity"), 400),
    "empty Transfer-Encoding": (good("Transfer-Encoding:"), 400),
    "two Content-Length that differ": (good("Content-Length: 0", "Content-Length: 5"), 400),
    "a list of Content-Length": (good("Content-Length: 0, 5"), 400),
    "Content-Length with a sign": (good("Content-Length: +0"), 400),
    "Content-Length: -1": (good("Content-Length: -1"), 400),
    "Content-Length: 00": (good("Content-Length: 00"), 400),
    "Content-Length: 0x0": (good("Content-Length: 0x0"), 400),
    "empty Content-Length": (good("Content-Length:"), 400),
    "no Host": (head(*UPGRADE, BEARER, host=None), 400),
    "two Host": (good(HOST), 400),
    "two Host that differ": (good("Host: other"), 400),
    "empty Host": (good(host="Host:"), 400),
    "Host of two words": (good(host="Host: a b"), 400),
    "Host with a login": (good(host="Host: user@example.com"), 400),
    "Host with a path": (good(host="Host: example.com/p"), 400),
    "Host beyond ASCII": (good(host="Host: ex\xe4mple.com"), 400),
    "a list of upgrades": (head("Connection: Upgrade", "Upgrade: tcp, h2c", BEARER), 400),
    "a list that ends in a comma": (head("Connection: Upgrade", "Upgrade: tcp,", BEARER), 400),
    "two Http2tcp-Token": (good(f"Http2tcp-Token: {SECRET}", f"Http2tcp-Token: {SECRET}"), 400),
    # The request line.
    "POST": (good(line=f"POST {TARGET} HTTP/1.1"), 400),
    "HEAD": (good(line=f"HEAD {TARGET} HTTP/1.1"), 400),
    "get": (good(line=f"get {TARGET} HTTP/1.1"), 400),
    "OPTIONS *": (good(line="OPTIONS * HTTP/1.1"), 400),
    "absolute form": (good(line=f"GET http://example.com{TARGET} HTTP/1.1"), 400),
    "authority form": (good(line="GET db:5432 HTTP/1.1"), 400),
    "asterisk form": (good(line="GET * HTTP/1.1"), 400),
    "a fragment": (target(TARGET + "#x"), 400),
    "two blanks": (good(line=f"GET  {TARGET} HTTP/1.1"), 400),
    "a tab": (good(line=f"GET\t{TARGET} HTTP/1.1"), 400),
    "a blank at the end": (good(line=f"GET {TARGET} HTTP/1.1 "), 400),
    "a blank at the start": (good(line=f" GET {TARGET} HTTP/1.1"), 400),
    "an empty line first": (b"\r\n" + good(), 400),
    "two empty lines": (b"\r\n\r\n", 400),
    "no version": (good(line=f"GET {TARGET}"), 400),
    "http/1.1": (good(line=f"GET {TARGET} http/1.1"), 400),
    "HTTP/1.10": (good(line=f"GET {TARGET} HTTP/1.10"), 400),
    "HTTP/1.1 behind bytes beyond ASCII": (good(line="GET /\xe4 HTTP/1.1"), 400),
    "an empty target": (good(line="GET  HTTP/1.1"), 400),
    # The query.
    "two addr": (target("/?addr=a:1&addr=b:2"), 400),
    "the same addr twice": (target("/?addr=a:1&addr=a:1"), 400),
    "an addr, and one that is percent-encoded": (target("/?addr=a:1&%61ddr=b:2"), 400),
    "an addr, and an empty one": (target("/?addr=a:1&addr"), 400),
    "two target_host": (target("/?target_host=a&target_port=1&target_host=b"), 400),
    "two target_port": (target("/?target_host=a&target_port=1&%74arget_port=2"), 400),
    "an addr and a target_host": (target("/?addr=a:1&target_host=b&target_port=2"), 400),
    "an addr and the well-known path": (target("/.well-known/masque/tcp/a/1/?addr=b:2"), 400),
    "a target_host and the well-known path": (target("/.well-known/masque/tcp/a/1/?target_host=b"), 400),
    "a thousand parameters": (target("/?" + "&".join(["a=b"] * 1000)), 400),
    # Other protocols.
    "a TLS hello": (bytes.fromhex("16030100f8010000f40303") + bytes(200), 400),
    "an ssh banner": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a PROXY header": (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + good(), 400),
    "a PROXY header of version 2": (b"\r\n\r\n\0\r\nQUIT\n" + good(), 400),
}

#: The same of CONNECT, at a server that takes it.
HOSTILE_CONNECT: dict[str, tuple[bytes, int]] = {
    "no port": (connect(authority="db"), 400),
    "no port after the colon": (connect(authority="db:"), 400),
    "no host": (connect(authority=":5432"), 400),
    "a port that is a name": (connect(authority="db:ssh"), 400),
    "a port with a sign": (connect(authority="db:+22"), 400),
    "two ports": (connect(authority="db:22:5432"), 400),
    "IPv6 without brackets": (connect(authority="2001:db8::1:22"), 400),
    "a bracket that stays open": (connect(authority="[::1:22"), 400),
    "a name in brackets": (connect(authority="[db]:22"), 400),
    "something before the bracket": (connect(authority="x[::1]:22"), 400),
    "a link in brackets": (connect(authority="[fe80::1%25eth0]:22"), 400),
    "a login": (connect(authority="user:password@db:22"), 400),
    "a login without a password": (connect(authority="user@db:22"), 400),
    "a path": (connect(authority="db:22/"), 400),
    "a query": (connect(authority="db:22?addr=other:22"), 400),
    "a fragment": (connect(authority="db:22#x"), 400),
    "origin form": (connect(authority="/db:22"), 400),
    "absolute form": (connect(authority="http://db:22"), 400),
    "asterisk form": (connect(authority="*"), 400),
    "a Unix socket": (connect(authority="unix:/run/sshd.sock"), 400),
    "bytes beyond ASCII": (connect(authority="d\xf6b:22"), 400),
    "lower case": (head(f"Proxy-Authorization: Bearer {SECRET}", line="connect db:22 HTTP/1.1"), 400),
    "HTTP/1.2": (connect(version="HTTP/1.2"), 400),
    "HTTP/2.0": (connect(version="HTTP/2.0"), 400),
    "HTTP/0.9": (connect(version="HTTP/0.9"), 400),
    "no version": (b"CONNECT db:22\r\n\r\n", 400),
    "two Host": (connect(HOST), 400),
    "two Host in HTTP/1.0": (connect(HOST, version="HTTP/1.0"), 400),
    "empty Host": (connect(host="Host:"), 400),
    "Host with a login": (connect(host="Host: user@db"), 400),
    "two Proxy-Authorization": (connect("Proxy-Authorization: Bearer other"), 400),
    "two Authorization": (connect(BEARER, BEARER), 400),
    "two Http2tcp-Token": (connect("Http2tcp-Token: a", "Http2tcp-Token: b"), 400),
    "an upgrade too": (connect(*UPGRADE), 400),
    "a body": (connect("Content-Length: 5") + b"hello", 400),
    "a chunked body": (connect("Transfer-Encoding: chunked"), 400),
    "a chunked body in HTTP/1.0": (connect("Transfer-Encoding: chunked", version="HTTP/1.0"), 400),
    "two Content-Length": (connect("Content-Length: 0", "Content-Length: 5"), 400),
    "bare LF": (connect(end="\n"), 400),
    "a folded field": (connect("X: a\r\n b"), 400),
    "a blank before the colon": (connect("Transfer-Encoding : chunked"), 400),
    "NUL in a value": (connect("X: a\0b"), 400),
    "a bare CR": (connect("X: a\rb"), 400),
    "a head without an end": (b"CONNECT db:22 HTTP/1.1\r\nX: " + b"y" * MAX_HEAD, 431),
    "65 fields": (connect(*["X: y"] * 63), 431),
}

#: The status of each refusal that reading a head may end in.
STATUSES = {BadRequest: 400, HeadTooLarge: 431}
