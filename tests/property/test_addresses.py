"""What is parsed can be written and parsed again, and what cannot be parsed is a sentence."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import assume, example, given
from hypothesis import strategies as st

from http2tcp.address import (
    Address,
    Endpoint,
    TCPAddress,
    UnixAddress,
    parse_destination,
    parse_endpoint,
    parse_host,
    parse_listen,
    parse_target,
)
from http2tcp.errors import AddressError
from http2tcp.protocol.client_handshake import request
from http2tcp.protocol.transport import Transport
from http2tcp.protocol.websocket_handshake import new_key
from http2tcp.server.policy import forbidden
from tests.support.embeddings import EMBEDDINGS
from tests.support.heads import read

ports = st.integers(1, 65535)
labels = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=5).map(".".join)
hosts = st.one_of(names, st.ip_addresses().map(str).map(parse_host), st.just("fe80::1%eth0"))
unix_paths = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=30).filter(str.isprintable)
destinations = st.one_of(
    st.builds(TCPAddress, hosts, ports), st.builds(UnixAddress, unix_paths.map(lambda path: "/" + path))
)

# What addresses are made of, so that arbitrary text is not refused at its first character.
address_text = st.one_of(
    st.text(max_size=60),
    st.text("a1.:[]%/-_@ \n\0é１。", max_size=30),
    st.tuples(st.text("a1.:[]%\n", max_size=12), st.integers(-1, 70000)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.text(max_size=40).map(lambda path: f"unix:/{path}"),
    st.text(max_size=20).map(lambda scope: f"[::1%{scope}]:22"),
    st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


SECRET = "hunter2"


def is_a_sentence(error: AddressError) -> None:
    """One line for a person, without the password."""
    assert str(error).isprintable()
    assert SECRET not in str(error)


@given(destinations)
def test_a_destination_survives_being_written(destination: Address) -> None:
    assert parse_destination(str(destination)) == destination
    assert parse_listen(str(destination)) == destination


@given(st.ip_addresses(v=6).map(str), ports)
def test_an_ipv6_address_needs_no_brackets(host: str, port: int) -> None:
    plain, bracketed = parse_destination(f"{host}:{port}"), parse_destination(f"[{host}]:{port}")
    assert isinstance(plain, TCPAddress)
    assert plain == bracketed
    assert (ip_address(plain.host), plain.port) == (ip_address(host), port)


@given(address_text)
@example("[::1%\nended session=0]:22")
@example("unix:/\nended session=0")
def test_any_text_is_an_address_of_one_line_or_a_sentence_of_one_line(text: str) -> None:
    for parse in (parse_destination, parse_listen):
        try:
            address = parse(text)
        except AddressError as error:
            is_a_sentence(error)
        else:
            assert str(address).isprintable()
            # Only where to listen may the host be empty.
            if parse is parse_destination:
                assert parse_destination(str(address)) == address


@given(st.text(max_size=30), st.text(max_size=8))
@example("::1", "22")
@example("[::1]", "22")
@example("unix:/a", "22")
@example("a:1", "22")
def test_the_variables_of_a_template_are_a_tcp_address_or_a_sentence(host: str, port: str) -> None:
    try:
        address = parse_target(host, port)
    except AddressError as error:
        is_a_sentence(error)
    else:
        assert parse_destination(str(address)) == address


@given(
    st.one_of(
        st.text(max_size=60),
        st.text("ahtps:/@.?#[]%{}&= \\\n１", max_size=40),
        st.binary(max_size=40).map(lambda raw: "http://" + raw.decode("utf-8", "surrogateescape")),
        st.text(max_size=20).map(lambda rest: f"https://user:{SECRET}@{rest}"),
        st.text(max_size=20).map(lambda rest: f"https://user:{SECRET}{rest}@host/"),
        st.text(max_size=10).map(lambda scheme: f"{scheme}://user:{SECRET}@host/"),
    )
)
def test_any_text_is_an_endpoint_or_a_sentence_and_neither_shows_a_password(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except AddressError as error:
        is_a_sentence(error)
    else:
        assert str(endpoint).isascii()
        assert str(endpoint).isprintable()
        if endpoint.password is not None and SECRET in endpoint.password:
            assert SECRET not in str(endpoint) + repr(endpoint)


# --- from our client to our server ------------------------------------------------------------

paths = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="?#{}[]"), max_size=20)
queries = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="#{}[]"), max_size=12), max_size=8
).map("&".join)


def sent(endpoint: Endpoint, destination: Address | None, transport: Transport, token: str | None) -> bytes:
    return request(endpoint, destination, transport, token=token, user_agent="test", websocket_key=new_key())


@given(path=paths, query=queries, destination=destinations, transport=st.sampled_from(Transport))
@example(path="p", query="addr=a:1&%61ddr=b:2&k=%ff", destination=TCPAddress("db", 1), transport=Transport.TCP)
@example(path="p", query="target_host=a&%74arget_port=1", destination=TCPAddress("::1", 1), transport=Transport.TCP)
@example(path="p", query="target_host=a", destination=UnixAddress("/a"), transport=Transport.CONNECT_TCP)
def test_the_server_is_asked_for_what_the_user_asked_for(
    path: str, query: str, destination: Address, transport: Transport
) -> None:
    endpoint = parse_endpoint(f"https://example.com/{path}?{query}")
    assume(not endpoint.path.startswith("/.well-known/"))
    understood = read(sent(endpoint, destination, transport, "tok"))
    assert understood is not None
    assert understood.path == endpoint.path
    assert understood.transport is transport
    if understood.target is not None:
        assert understood.addr is None
        assert parse_target(*understood.target) == destination
    else:
        assert understood.addr is not None
        assert parse_destination(understood.addr) == destination


@given(
    token=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.isprintable),
    login=st.booleans(),
    transport=st.sampled_from(Transport),
)
def test_any_token_arrives_as_it_was(token: str, login: bool, transport: Transport) -> None:
    assume(token == token.strip())
    endpoint = parse_endpoint("https://user:password@example.com/" if login else "https://example.com/")
    understood = read(sent(endpoint, None, transport, token))
    assert understood is not None
    assert understood.token == token


# --- addresses that are closed to everybody ---------------------------------------------------

closed = st.one_of(
    st.ip_addresses(network="169.254.0.0/16"),
    st.sampled_from(["100.100.100.200", "168.63.129.16", "192.0.0.192"]).map(IPv4Address),
)


@given(inner=closed, embed=st.sampled_from(list(EMBEDDINGS)))
def test_a_closed_address_is_closed_in_every_embedding(inner: IPv4Address, embed: str) -> None:
    assert forbidden(inner)
    assert forbidden(EMBEDDINGS[embed](inner))


@given(inner=closed, where=st.sampled_from([(0x20010DB8 << 96, 0), (0xFD << 120, 1)]))
def test_an_address_that_embeds_nothing_is_open_whatever_its_bits(inner: IPv4Address, where: tuple[int, int]) -> None:
    prefix, gap = where
    assert not forbidden(IPv6Address(prefix | 1 << 64 | gap << 40 | int(inner)))


@given(st.ip_addresses(network="fe80::/10"))
def test_every_link_local_ipv6_address_is_closed(address: IPv6Address) -> None:
    assert forbidden(address)
