"""A machine whose first process is systemd, as a real one's is: in namespaces, from an image. As root only.

What is real: systemd, its sockets, users, sandbox and journal. What is not: the kernel is this machine's, with its
settings, and there are no controllers for cgroups, so that no limit by these holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.images import Image
from tests.support.processes import end, environment, program, wait_until

# Its first argument is the new root. What it mounts ends with its namespace.
_BOOT = """
set -e
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
# The kernel's settings are everybody's.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ip link set lo up
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
# As at a real boot: a unit's credentials are mounted beside it and have to appear in it.
mount --make-rshared /
# The kernel's modules are everybody's too.
exec env -i container=other setpriv --bounding-set=-sys_module /lib/systemd/systemd --unit=basic.target
"""

_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Booted:
    """The machine, running."""

    #: systemd's, as this machine counts.
    pid: int

    def run(self, *command: str, input: str | None = None) -> str:
        """What a command in it says; raises AssertionError where it fails."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--root", "env", "--chdir=/", "-i", f"PATH={_PATH}", *command],
            input=input,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit's."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str, *more: str) -> list[str]:
        """What a unit has logged."""
        return self.run("journalctl", "--quiet", "--no-pager", "--output=cat", "--unit", unit, *more).splitlines()

    def beside(self, *command: str) -> list[str]:
        """A command of this machine's, in that one's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]


@contextmanager
def booted(image: Image) -> Iterator[Booted]:
    """Boot it. What it writes stays in the image."""
    unshare = program("unshare")
    with _cgroup() as cgroup:
        own = ["--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
        enter = 'echo $$ > "$1/cgroup.procs"; root=$2; shift 2; exec "$@" "$root"'
        boot = [unshare, *own, "sh", "-c", _BOOT, "boot"]
        process = subprocess.Popen(
            ["sh", "-c", enter, "enter", str(cgroup), str(image.root), *boot],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        with process:
            try:
                wait_until(lambda: process.poll() is not None or _first(process.pid), "systemd has begun")
                if process.poll() is not None:
                    assert process.stderr is not None
                    pytest.skip(f"this machine cannot hold another one: {process.stderr.read().decode()}")
                machine = Booted(_first(process.pid))
                wait_until(lambda: _is_up(machine), "systemd is up")
                yield machine
            finally:
                end(process, signal.SIGKILL)


@contextmanager
def _cgroup() -> Iterator[Path]:
    """A cgroup that systemd can have for its own."""
    if os.getuid() != 0:
        pytest.skip("only root can boot a machine here")
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2" and os.access(place, os.W_OK)]
    if not roots:
        pytest.skip("this machine has no cgroups (version 2) to give away")
    cgroup = roots[0] / f"http2tcp-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"this machine gives no cgroup away: {error}")
    try:
        yield cgroup
    finally:
        wait_until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), "all of it has ended")
        for directory, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(directory)


def _first(unshare: int) -> int:
    """systemd's process, once it is that; else 0."""
    try:
        (pid,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        return int(pid) if Path(f"/proc/{pid}/comm").read_text() == "systemd\n" else 0
    except (ValueError, FileNotFoundError):
        return 0


def _is_up(machine: Booted) -> bool:
    try:
        return machine.run("systemctl", "is-system-running") == "running\n"
    except AssertionError:
        return False
