"""nginx in front of a server, which a test reloads, kills, stops and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.nginx import command, example, prepared
from tests.support.processes import end, environment, exists, free_port, listens, wait_until
from tests.support.site import http_site, https_site


class Front:
    """One nginx, at one port, whoever runs it at the moment."""

    def __init__(self, directory: Path, scheme: str, upstream: int, certificate: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"{scheme}://localhost:{self.port}/~http2tcp/"
        site = https_site if scheme == "https" else http_site
        text = example(directory, site(self.port, f"http://127.0.0.1:{upstream}", certificate))
        file = directory / "nginx.conf"
        # What operators set, and what cuts the tunnels of a worker that is to go.
        file.write_text(f"worker_shutdown_timeout 1s;\nworker_processes 1;\n{text}")
        self._command = command(prepared(file))
        self._log = (directory / "output.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment()
        )
        wait_until(lambda: listens(self.port) and self.workers(), "nginx serves")

    def workers(self) -> list[int]:
        """The pids of the workers."""
        assert self.process is not None
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def reload(self) -> None:
        """As `nginx -s reload`; until the old worker, and with it each old connection, is gone."""
        assert self.process is not None
        old = self.workers()
        assert old
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not any(map(exists, old)), "the old worker is gone")

    def cut(self) -> None:
        """A worker dies, and the master starts another one at once."""
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """All of it dies at once."""
        assert self.process is not None
        workers = self.workers()
        self.process.kill()
        self.process.wait(5)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not listens(self.port), "nothing listens")

    def stop(self) -> None:
        """End it as a service manager does."""
        if self.process is not None:
            end(self.process)

    def restart(self, away: float = 0.0) -> None:
        """End it, and start it again after so many seconds."""
        self.stop()
        time.sleep(away)
        self.start()

    def close(self) -> None:
        """For good."""
        self.stop()
        self._log.close()


@contextmanager
def front(directory: Path, scheme: str, upstream: int, certificate: Path) -> Iterator[Front]:
    """It runs."""
    made = Front(directory, scheme, upstream, certificate)
    made.start()
    try:
        yield made
    finally:
        made.close()
