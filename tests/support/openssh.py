"""A real sshd, started as the current user with keys of its own, and the clients that log in to it."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import environment, free_port, listens, program, running


@dataclass(frozen=True)
class Sshd:
    """A running sshd, and what a client needs to log in."""

    port: int
    directory: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def sshd(directory: Path) -> Iterator[Sshd]:
    """sshd on a free port, which lets the current user in by the key `directory`/user."""
    directory.mkdir(exist_ok=True)
    if os.getuid() == 0:
        # Where its unprivileged part lives; the system creates it at its own sshd's start.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (directory / "home").mkdir()
    for name in ("host", "user"):
        keygen = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
        subprocess.run(keygen, check=True, timeout=20)
    port = free_port()
    host_key = (directory / "host.pub").read_text()
    (directory / "known_hosts").write_text(f"sshd-behind-http2tcp {host_key}")
    configuration = directory / "sshd_config"
    lines = [
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {directory / 'host'}",
        f"PidFile {directory / 'sshd.pid'}",
        f"AuthorizedKeysFile {directory / 'user.pub'}",
        # The directory is a temporary one, below one that everybody may write to.
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "Subsystem sftp internal-sftp",
        "MaxStartups 200",
        "PrintMotd no",
        "PrintLastLog no",
        # Else bash runs the user's own .bashrc at each login, which may be slow, or fail where two run it at once.
        f"SetEnv HOME={directory / 'home'}",
    ]
    configuration.write_text("\n".join([*lines, "PerSourcePenalties no", ""]))
    check = [program("sshd"), "-t", "-f", str(configuration)]
    if subprocess.run(check, capture_output=True, timeout=20).returncode != 0:
        # Before 9.8 it knows no such penalties; every tunnel comes from one address.
        configuration.write_text("\n".join([*lines, ""]))
    command = [program("sshd"), "-D", "-e", "-f", str(configuration)]
    with running(command, directory / "sshd.log", lambda: listens(port)):
        yield Sshd(port, directory)


@dataclass(frozen=True)
class Login:
    """ssh, scp and sftp, which reach `target` by a ProxyCommand. Their host is called `target`."""

    target: Sshd
    proxy_command: Sequence[str]
    #: A directory for the configuration, one a Login.
    directory: Path
    #: Further lines of the configuration.
    options: Sequence[str] = ()

    def command(self, name: str, *arguments: str) -> list[str]:
        """The whole command line of `ssh`, `scp` or `sftp`."""
        configuration = self.directory / "ssh_config"
        self.directory.mkdir(exist_ok=True)
        keys = self.target.directory
        configuration.write_text(
            "\n".join(
                [
                    *self.options,
                    "Host target",
                    "HostName 127.0.0.1",
                    f"Port {self.target.port}",
                    f"User {getpass.getuser()}",
                    f"IdentityFile {keys / 'user'}",
                    "IdentitiesOnly yes",
                    "BatchMode yes",
                    f"UserKnownHostsFile {keys / 'known_hosts'}",
                    "HostKeyAlias sshd-behind-http2tcp",
                    "StrictHostKeyChecking yes",
                    # `exec`, which ssh itself puts before a single command.
                    f"ProxyCommand {shlex.join(self.proxy_command)}",
                    "",
                ]
            )
        )
        return [program(name), "-F", str(configuration), *arguments]

    def run(
        self, name: str, *arguments: str, stdin: bytes = b"", timeout: float = 30
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return subprocess.run(
            self.command(name, *arguments), input=stdin, capture_output=True, timeout=timeout, env=environment()
        )
