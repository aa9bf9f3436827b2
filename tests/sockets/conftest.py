"""What holds for every test on sockets: no descriptor stays open, no log shows the token or a traceback."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
import trio.testing

from http2tcp.net import resumable_pump as resumable_splice
from http2tcp.net import splice_pump as splice
from http2tcp.protocol.transport import Transport
from tests.support.descriptors import open_descriptors
from tests.support.loopback import TOKEN


@pytest.fixture(autouse=True)
def _no_descriptor_stays_open() -> Iterator[None]:
    # The process keeps it from its first resumable bulk flow on.
    resumable_splice.nowhere()
    before = open_descriptors()
    yield
    deadline = time.monotonic() + 2
    # A thread that was left behind may still be closing its own.
    while (left := open_descriptors()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == before


@pytest.fixture(autouse=True)
def _no_log_shows_the_token(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert TOKEN not in record.getMessage()
        assert "Authorization" not in record.getMessage()
        assert record.exc_info is None, "a traceback"


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps only when nothing has happened for a while, so that real sockets have time to deliver."""
    return trio.testing.MockClock(autojump_threshold=0.2)


@pytest.fixture(params=list(Transport), ids=[transport.value for transport in Transport])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each of the transports: what a user gets does not depend on it over http."""
    chosen: Transport = request.param
    return chosen


@pytest.fixture(params=["spliced", "copied"])
def _moved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By splice(2) where the kernel has it, and as on other systems."""
    if request.param == "copied":
        monkeypatch.setattr(splice, "AVAILABLE", False)
