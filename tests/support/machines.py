"""Machines in one machine: each with a network, an address, and a file of names of its own. As root only."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.processes import end, environment, program

_interfaces = count()


@dataclass(frozen=True)
class Machine:
    """Where commands run."""

    process: subprocess.Popen[bytes]
    #: Where others find it; 127.0.0.1 where it has no network.
    address: str
    #: Its /etc/hosts.
    hosts: Path

    def command(self, *command: str) -> list[str]:
        """The command, there; its working directory is /."""
        return [program("nsenter"), f"--target={self.process.pid}", "--net", "--mount", "--wd=/", *command]

    def run(self, *command: str) -> None:
        done = subprocess.run(self.command(*command), capture_output=True, timeout=20, env=environment())
        assert done.returncode == 0, (command, done.stderr)


@contextmanager
def machine(address: str = "127.0.0.1", names: Mapping[str, str] | None = None) -> Iterator[Machine]:
    """A machine without a network, which knows these names and their addresses."""
    ip = program("ip")
    if os.getuid() != 0:
        pytest.skip("only root can make machines here")
    with TemporaryDirectory(prefix="http2tcp-machine-") as name:
        hosts = Path(name) / "hosts"
        hosts.write_text(
            "".join(f"{at} {known}\n" for known, at in {"localhost": "127.0.0.1", **(names or {})}.items())
        )
        Path(name).chmod(0o755)
        script = f"mount --bind {hosts} /etc/hosts && {ip} link set lo up && echo up && exec cat"
        process = subprocess.Popen(
            [program("unshare"), "--net", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        # Closes its pipes, once it has been ended.
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
                yield Machine(process, address, hosts)
            finally:
                end(process, signal.SIGKILL)


def bridge(router: Machine, *networks: str) -> None:
    """Give the router a bridge, and there an address in each network, as in `10.0.0.1/24`."""
    ip = program("ip")
    router.run(ip, "link", "add", "bridge", "type", "bridge")
    for network in networks:
        router.run(ip, "address", "add", network, "dev", "bridge")
    router.run(ip, "link", "set", "bridge", "up")


def connect(one: Machine, router: Machine, network: str) -> None:
    """Connect a machine to the router's bridge, where it has an address in the network, as in `10.0.0.2/24`."""
    ip, end_there = program("ip"), f"port{next(_interfaces)}"
    peer = ("peer", "name", "eth0", "netns", str(one.process.pid))
    router.run(ip, "link", "add", end_there, "master", "bridge", "type", "veth", *peer)
    router.run(ip, "link", "set", end_there, "up")
    one.run(ip, "address", "add", network, "dev", "eth0")
    one.run(ip, "link", "set", "eth0", "up")
