"""The command line run in this process, up to the point where a server or a client would start."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from http2tcp import log
from http2tcp.address import Address
from http2tcp.client.settings import ClientSettings
from http2tcp.command import cli, process
from http2tcp.command.exit_status import run
from http2tcp.server.settings import ServerSettings


@dataclass
class Ran:
    """What a command line came to: words and a status, or settings."""

    status: int | None = None
    out: str = ""
    err: str = ""
    server_settings: ServerSettings | None = None
    client_settings: ClientSettings | None = None

    @property
    def started(self) -> bool:
        return self.server_settings is not None or self.client_settings is not None

    @property
    def server(self) -> ServerSettings:
        assert self.server_settings is not None, f"no server was started: {self.err}"
        return self.server_settings

    @property
    def listen(self) -> Address | None:
        """The client's -l."""
        return self.client.forwards[0].listen if self.client.forwards else None

    @property
    def client(self) -> ClientSettings:
        assert self.client_settings is not None, f"no client was started: {self.err}"
        return self.client_settings


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets up the process's log; the next test starts without it."""
    logger = logging.getLogger("http2tcp")
    handlers, level = logger.handlers[:], logger.level
    monkeypatch.setattr(logging, "raiseExceptions", True)
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of whoever runs the tests are not theirs to find."""
    for name in [name for name in os.environ if name.startswith("HTTP2TCP_") or name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def http2tcp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`http2tcp("-s", "-t", "x", HTTP2TCP_PATH="/p")`: the command line with these variables."""

    def start(*arguments: str, **variables: str) -> Ran:
        ran = Ran()

        def run_server(settings: ServerSettings, reread: object) -> int:
            # What was said before the log's form was known; the process itself lets it go.
            log.flush()
            ran.server_settings = settings
            return 0

        def run_client(settings: ClientSettings, head_start: object) -> int:
            ran.client_settings = settings
            return 0

        with monkeypatch.context() as patch:
            patch.setattr(process, "run_server", run_server)
            patch.setattr(process, "run_client", run_client)
            # No name is looked up here.
            patch.setattr(cli, "_head_start", lambda settings: None)
            for name, value in variables.items():
                patch.setenv(name, value)
            capsys.readouterr()
            ran.status = run(arguments)
            ran.out, ran.err = capsys.readouterr()
        return ran

    return start


def complaint(ran: Ran) -> str:
    """The one sentence about a mistake in the arguments; nothing may have been started or printed."""
    assert ran.status == 2, ran
    assert not ran.started
    assert ran.out == ""
    assert ran.err.startswith("http2tcp: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    return ran.err.removeprefix("http2tcp: ").rstrip("\n")
