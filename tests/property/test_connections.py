"""Whole connections of hostile clients: whatever they send, one refusal or a silent end, in time, without a secret."""

from __future__ import annotations

import logging
from dataclasses import replace

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from http2tcp.address import TCPAddress
from http2tcp.server.connection import Connection
from http2tcp.server.policy import Token, digest
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import State
from tests.property.test_heads import CONNECTS, REQUESTS, cuts, mutations, pieces
from tests.support.heads import SECRET
from tests.support.loopback import parse_answer
from tests.support.memory_stream import MemoryStream, memory_pair

# The token is good and may go nowhere, so that nothing is dialled.
SETTINGS = ServerSettings(tokens=[Token("alice", digest(SECRET), allow=[])], path=None)

hostile = st.one_of(
    mutations(REQUESTS),
    mutations(CONNECTS),
    st.binary(max_size=200),
    st.builds(
        lambda line, tail: line + tail,
        st.sampled_from([b"GET ", b"CONNECT ", b"PRI * HTTP/2.0"]),
        st.binary(max_size=300),
    ),
    # Longer than any head.
    st.builds(lambda data, times: data * times, st.binary(min_size=1, max_size=50), st.integers(300, 2000)),
)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


async def _meet(settings: ServerSettings, parts: list[bytes], *, says_eof: bool) -> bytes:
    """What a client gets that sends these parts."""
    ours, client = memory_pair()
    connection = Connection(State(settings), ours, TCPAddress("192.0.2.7", 4711))  # type: ignore[arg-type]
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        nursery.start_soon(_send, client, parts, says_eof)
        try:
            while data := await client.receive_some():
                received += data
        except trio.BrokenResourceError:
            pass
    assert trio.current_time() <= settings.head_timeout + 2
    return received


async def _send(client: MemoryStream, parts: list[bytes], says_eof: bool) -> None:
    try:
        for part in parts:
            await client.send_all(part)
            await trio.testing.wait_all_tasks_blocked()
        if says_eof:
            await client.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it was refused before it had said all


@given(data=hostile, cuts=cuts, connect=st.booleans(), proxied=st.booleans(), says_eof=st.booleans())
def test_whatever_a_client_sends_it_gets_one_refusal_or_none(
    data: bytes, cuts: list[int], connect: bool, proxied: bool, says_eof: bool
) -> None:
    log = _Log()
    logger = logging.getLogger("http2tcp")
    logger.addHandler(log)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    settings = replace(SETTINGS, connect=connect, proxy_protocol=proxied)
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        received = trio.run(lambda: _meet(settings, pieces(data, cuts), says_eof=says_eof), clock=clock)
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
    if received:
        answer = parse_answer(received)
        assert 400 <= answer.status < 500
        assert answer.headers["connection"].endswith("close")
        assert len(answer.body) == int(answer.headers["content-length"])
    assert "please report" not in log.text
    assert SECRET not in log.text
    assert SECRET.encode() not in received
