"""A fatal alert or a record that nobody encrypted is a break for good, and never the end that close_notify is."""

from __future__ import annotations

import ssl
import threading

import pytest
import trio

from http2tcp.net.relay import End, Outcome, Traffic, relay
from http2tcp.net.streams import SocketStream
from tests.support.loopback import read_until_broken
from tests.support.processes import PATIENCE
from tests.support.tls_by_hand import SIDES, Contexts, Peer, connection, session

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
BREAKS = ["a fatal alert", "a flipped bit", "a flipped bit, and close_notify"]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(tmp_path_factory.mktemp("contexts"))


def breaking(peer: Peer, how: str) -> bytes:
    if how == "a fatal alert":
        return peer.fatal_alert()
    flipped = bytearray(peer.data(b"evil"))
    flipped[-1] ^= 1
    return bytes(flipped) + (peer.close_notify() if "close_notify" in how else b"")


@pytest.mark.parametrize("together", [True, False], ids=["with the data", "after the data"])
@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("side", SIDES)
async def test_a_break_after_data_is_a_break_whenever_it_is_asked_for(
    contexts: Contexts, side: str, version: ssl.TLSVersion, how: str, together: bool
) -> None:
    """The peer does not close: who waits for the connection's end waits for ever."""
    stream, peer = await session(contexts, side, version)
    good, bad = peer.data(b"good"), breaking(peer, how)
    with peer.socket, trio.fail_after(PATIENCE):
        if together:
            peer.socket.sendall(good + bad)
            assert await read_until_broken(stream) == b"good"
        else:
            peer.socket.sendall(good)
            assert await stream.receive_some() == b"good"
            peer.socket.sendall(bad)
        for _ in range(3):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        stream.abort()


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("side", SIDES)
async def test_a_relay_whose_session_breaks_behind_data_resets_the_target(
    contexts: Contexts, side: str, version: ssl.TLSVersion, how: str
) -> None:
    stream, peer = await session(contexts, side, version)
    ours, theirs = connection()
    outcomes: list[Outcome] = []
    heard = bytearray()
    reset = threading.Event()

    def target() -> None:
        try:
            while data := theirs.recv(65536):
                heard.extend(data)
        except ConnectionResetError:
            reset.set()

    with peer.socket, theirs, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                outcomes.append(await relay(stream, SocketStream(ours), Traffic()))

            nursery.start_soon(run)
            nursery.start_soon(trio.to_thread.run_sync, target)
            peer.socket.sendall(peer.data(b"good") + breaking(peer, how))
    assert outcomes[0].end is End.CLIENT_BROKE
    assert "TLS failed" in outcomes[0].words
    assert (bytes(heard), reset.is_set()) == (b"good", True)
