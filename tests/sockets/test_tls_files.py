"""What is wrong with TLS is told with its cause and the fix: files that OpenSSL made, and handshakes that are real."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from http2tcp.client.connector import connect
from http2tcp.client.proxy_choice import parse_proxy
from http2tcp.client.settings import TLSSettings
from http2tcp.errors import ProxyFailed, TLSFailed, TunnelError
from tests.support.fake_proxy import fake_proxy
from tests.support.loopback import client_settings, closed_port
from tests.support.processes import program
from tests.support.tls_peer import s_server, server_context, tls_server

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs openssl in the test's directory, where `leaf.pem` is a certificate and `key.pem` its key."""
    leaf = trustme.CA().issue_cert("client@example.com")
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "leaf.pem"))
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))

    def run(out: str, *arguments: str) -> Path:
        command = [program("openssl"), *arguments, "-out", out]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=20)
        return tmp_path / out

    return run


async def failure(port: int, **tls: Any) -> TunnelError:
    settings = client_settings(f"https://localhost:{port}/", "db:1", tls=TLSSettings(**tls))
    with pytest.raises(TunnelError) as caught:
        await connect(settings)
    assert str(caught.value).isprintable()
    assert "_ssl" not in str(caught.value)
    return caught.value


async def refused_files(**tls: str | None) -> str:
    """The sentence for files that are read before the handshake: the endpoint is never spoken to."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _read_on, 0)
        error = await failure(listeners[0].socket.getsockname()[1], **tls)
        nursery.cancel_scope.cancel()
    assert isinstance(error, TLSFailed)
    return str(error)


async def _read_on(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


def shown_command(sentence: str) -> list[str]:
    """The command in parentheses, as it is to be typed."""
    match = re.search(r"\((umask 077; openssl [^()]+)\)", sentence)
    assert match is not None, sentence
    return ["sh", "-c", match[1]]


# --- files ----------------------------------------------------------------------------------------

ENCRYPTED = {
    "PKCS#8": ("pkcs8", "-topk8", "-in", "key.pem", "-passout", "pass:secret"),
    "traditional": ("ec", "-in", "key.pem", "-aes256", "-passout", "pass:secret"),
}


@pytest.mark.parametrize("arguments", ENCRYPTED.values(), ids=ENCRYPTED.keys())
async def test_an_encrypted_key_is_named_with_the_command_that_decrypts_it(
    arguments: tuple[str, ...], make: Make, tmp_path: Path
) -> None:
    key = make("enc.pem", *arguments)
    sentence = await refused_files(client_cert=str(tmp_path / "leaf.pem"), client_key=str(key))
    assert f"cannot use --client-key {key}: its key is encrypted" in sentence
    command = shown_command(sentence)
    command[-1] += " -passin pass:secret"
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=20)
    assert b"BEGIN PRIVATE KEY" in (tmp_path / "key.pem").read_bytes()
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tmp_path / "leaf.pem", tmp_path / "key.pem")


async def test_an_encrypted_key_behind_its_certificate_in_one_file_is_named_too(make: Make, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "leaf.pem").read_bytes() + make("enc.pem", *ENCRYPTED["PKCS#8"]).read_bytes())
    sentence = await refused_files(client_cert=str(both))
    assert f"cannot use --client-cert {both}: its key is encrypted" in sentence


async def test_a_pkcs12_file_is_named_with_the_command_that_makes_pem_of_it(make: Make, tmp_path: Path) -> None:
    export = ("pkcs12", "-export", "-in", "leaf.pem", "-inkey", "key.pem", "-passout", "pass:secret")
    file = make("it's mine.p12", *export)
    sentence = await refused_files(client_cert=str(file))
    assert "it is a PKCS#12 file" in sentence
    command = shown_command(sentence)
    command[-1] += " -passin pass:secret"
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=20)
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tmp_path / "client.pem")
    assert "it is a PKCS#12 file" in await refused_files(ca_file=str(file))


async def test_a_file_in_der_is_named_with_the_command_that_makes_pem_of_it(make: Make, tmp_path: Path) -> None:
    certificate = make("leaf.der", "x509", "-in", "leaf.pem", "-outform", "der")
    key = make("key.der", "pkey", "-in", "key.pem", "-outform", "der")
    for sentence in (
        await refused_files(ca_file=str(certificate)),
        await refused_files(client_cert=str(certificate), client_key=str(tmp_path / "key.pem")),
        await refused_files(client_cert=str(tmp_path / "leaf.pem"), client_key=str(key)),
    ):
        assert "it is in DER" in sentence
        subprocess.run(shown_command(sentence), cwd=tmp_path, check=True, capture_output=True, timeout=20)
        assert b"-----BEGIN" in (tmp_path / "FILE").read_bytes()


# --- handshakes -----------------------------------------------------------------------------------


def chain(directory: Path) -> tuple[trustme.CA, trustme.LeafCert]:
    """An authority, and a certificate of an intermediate one of its."""
    root = trustme.CA()
    root.cert_pem.write_to_path(str(directory / "root.pem"))
    return root, root.create_child_ca().issue_cert("localhost")


async def test_an_intermediate_certificate_that_is_not_sent_is_named(tmp_path: Path) -> None:
    _, leaf = chain(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    alone = tmp_path / "alone.pem"
    alone.write_bytes(leaf.private_key_pem.bytes() + leaf.cert_chain_pems[0].bytes())
    context.load_cert_chain(alone)
    with pytest.raises(ssl.SSLError), tls_server(context, lambda tls: None) as port:
        sentence = str(await failure(port, ca_file=str(tmp_path / "root.pem")))
    assert "does not send its intermediate certificate" in sentence
    assert "whole chain" in sentence
    assert "--ca-file" in sentence


@pytest.mark.parametrize("problem", ["missing", "empty"])
async def test_a_variable_that_leads_to_no_authorities_is_named(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, leaf = chain(tmp_path)
    named = tmp_path / "no\nwhere.pem"
    if problem == "empty":
        named.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(named))
    with pytest.raises(ssl.SSLError), tls_server(server_context(leaf), lambda tls: None) as port:
        sentence = str(await failure(port))
    assert f"SSL_CERT_FILE names {tmp_path}/no?where.pem (no " in sentence
    assert "unset it" in sentence
    # With authorities that were named, the variable is not read.
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with pytest.raises(ssl.SSLError), tls_server(server_context(leaf), lambda tls: None) as port:
        assert "SSL_CERT_FILE" not in str(await failure(port, ca_file=str(other)))


async def test_a_directory_variable_that_leads_nowhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, leaf = chain(tmp_path)
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}/a:{tmp_path}/b")
    with pytest.raises(ssl.SSLError), tls_server(server_context(leaf), lambda tls: None) as port:
        assert f"SSL_CERT_DIR names {tmp_path}/a:{tmp_path}/b (no such directory)" in str(await failure(port))


async def test_a_server_that_speaks_http_2_alone_is_named(tmp_path: Path) -> None:
    _, leaf = chain(tmp_path)
    pem = tmp_path / "server.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(str(pem))
    with s_server(pem, "-alpn", "h2") as server:
        error = await failure(server.port, ca_file=str(tmp_path / "root.pem"))
    assert isinstance(error, TLSFailed)
    assert "speaks HTTP/2 only" in str(error)
    assert "offer http/1.1 as well" in str(error)


async def test_an_https_proxy_whose_authorities_are_nowhere_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, leaf = chain(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere"))
    async with fake_proxy("https", tls=server_context(leaf)) as proxy:
        url = parse_proxy(proxy.url("https", host="localhost"), "--proxy")
        settings = client_settings(f"https://localhost:{closed_port()}/", "db:1", proxy=url)
        with pytest.raises(ProxyFailed, match=r"SSL_CERT_FILE names .*nowhere"):
            await connect(settings)
