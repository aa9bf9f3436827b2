"""A Kubernetes pod as its manifest says, without Kubernetes: its containers, their files, users, probes and end.

What is real: the network that they share; each one's own processes, of which it is the first; its read-only root
file system; its user, its groups, no capability and no way to one; the Secrets' files with their owner and mode. What
is not: limits of memory and CPU, seccomp, and all that lies outside of the pod; cluster.py beside this has some of
that. As root only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.images import Image
from tests.support.machines import Machine, machine
from tests.support.processes import end, environment, program, wait_until

# Becomes the container's first process. What it mounts ends with its mount namespace.
_ENTER = """
import ctypes, json, os, subprocess, sys
PR_SET_NO_NEW_PRIVS = 38
entry = json.loads(sys.argv[1])
root = entry["root"]
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
mount("--bind", root, root)
mount("--rbind", "/dev", root + "/dev")
for source, place, how in entry["mounts"]:
    os.makedirs(root + (place if os.path.isdir(source) else os.path.dirname(place)), exist_ok=True)
    if not os.path.exists(root + place):
        open(root + place, "x").close()
    mount("--bind", source, root + place)
    if how == "ro":
        mount("-o", "remount,bind,ro", root + place)
mount("-o", "remount,bind,ro", root)
mount("-t", "proc", "proc", root + "/proc")
os.chroot(root)
os.chdir("/")
os.setgroups(entry["groups"])
os.setresgid(*[entry["group"]] * 3)
os.setresuid(*[entry["user"]] * 3)
if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
    sys.exit("no_new_privs")
os.execve(entry["command"][0], entry["command"], {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/nowhere"})
"""


@dataclass
class Container:
    """A container that runs."""

    name: str
    launcher: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its first process, as this machine counts."""
        (pid,) = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split()
        return int(pid)

    @property
    def runs(self) -> bool:
        """Whether that has its own files and its own user: the last thing before its program begins."""
        try:
            return "\nUid:\t0\t" not in Path(f"/proc/{self.pid}/status").read_text()
        except (ValueError, FileNotFoundError):
            return False

    def terminate(self) -> None:
        """What a kubelet sends first."""
        os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """All of it. What `--kill-child` asks of the kernel is forgotten where a process changes its user."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except (ValueError, OSError):
            pass  # it has ended
        end(self.launcher, signal.SIGKILL)


@dataclass
class Pod:
    """A pod that runs."""

    directory: Path
    machine: Machine
    stack: ExitStack
    containers: dict[str, Container] = field(default_factory=dict)

    def get(self, port: int, path: str, asked_by: Machine | None = None) -> int:
        """The status of a GET at a port of the pod, asked by itself unless told otherwise; 0 where none answers."""
        return int(self._asked(port, path, asked_by, "--output", "/dev/null", "--write-out", "%{http_code}"))

    def text(self, port: int, path: str, asked_by: Machine | None = None) -> str:
        """What the answer to a GET says."""
        return self._asked(port, path, asked_by)

    def _asked(self, port: int, path: str, asked_by: Machine | None, *answer: str) -> str:
        address = self.machine.address if asked_by else "127.0.0.1"
        url = f"http://{address}:{port}{path}"
        command = (asked_by or self.machine).command(program("curl"), "--silent", *answer, url)
        return subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment()).stdout

    def execute(self, name: str, command: Sequence[str]) -> int:
        """The exit status of a command in a container, as `kubectl exec` runs it."""
        pid = self.containers[name].pid
        status = Path(f"/proc/{pid}/status").read_text()
        user, group = (status.partition(f"{what}:\t")[2].split()[0] for what in ("Uid", "Gid"))
        enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", f"--root=/proc/{pid}/root", "--wd=/"]
        return subprocess.run(
            [*enter, "--setuid", user, "--setgid", group, "--", *command], capture_output=True, timeout=20
        ).returncode

    def start(
        self,
        name: str,
        image: Image,
        command: Sequence[str],
        ids: tuple[int, int],
        volumes: Sequence[tuple[Path, str, str]],
        fs_group: int | None = None,
    ) -> Container:
        """Run a container. A volume: a directory or file of this machine, its place in the container, ro or rw."""
        entry = {
            "root": str(image.root),
            "command": list(command),
            "user": ids[0],
            "group": ids[1],
            "groups": [*_groups(image.root, ids[0]), *([] if fs_group is None else [fs_group])],
            "mounts": [(str(source), place, how) for source, place, how in volumes],
        }
        log = self.directory / f"{name}.log"
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        with log.open("ab") as output:
            launcher = subprocess.Popen(
                self.machine.command(*own, sys.executable, "-c", _ENTER, json.dumps(entry)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
            )
        container = Container(name, launcher, log)
        self.stack.callback(container.end)
        wait_until(lambda: launcher.poll() is not None or container.runs, f"{name} is set up, see {log}")
        assert launcher.poll() is None, container.log
        self.containers[name] = container
        return container


@contextmanager
def pod(directory: Path, on: Machine | None = None) -> Iterator[Pod]:
    """An empty pod, on a machine of its own unless told otherwise."""
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        yield Pod(directory, on or stack.enter_context(machine()), stack)


def run_manifest(
    pod: Pod,
    template: Mapping[str, Any],
    images: Mapping[str, Image],
    secrets: Mapping[str, Mapping[str, str]],
    kubelet: Machine,
) -> None:
    """Start the containers of a pod's template in their order, each after the probes hold of the one before."""
    spec = template["spec"]
    fs_group = spec["securityContext"]["fsGroup"]
    places = {volume["name"]: _volume(pod.directory, volume, secrets, fs_group) for volume in spec["volumes"]}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        image = images[container["image"].rpartition("/")[2].partition(":")[0]]
        user = container["securityContext"]
        volumes = [
            (places[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw")
            for mount in container["volumeMounts"]
        ]
        volumes.append((pod.machine.hosts, "/etc/hosts", "ro"))
        command = [*image.config["Entrypoint"], *container.get("args", image.config.get("Cmd") or [])]
        running = pod.start(
            container["name"], image, command, (user["runAsUser"], user["runAsGroup"]), volumes, fs_group
        )
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in container:
                wait_until(
                    partial(holds, pod, container, kind, kubelet), f"{kind} of {running.name}, see {running.log_file}"
                )


def holds(pod: Pod, container: Mapping[str, Any], kind: str, kubelet: Machine) -> bool:
    """Whether a probe of a container's finds what it wants."""
    probe = container[kind]
    if "exec" in probe:
        return pod.execute(container["name"], probe["exec"]["command"]) == 0
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    return 200 <= pod.get(ports[probe["httpGet"]["port"]], probe["httpGet"]["path"], kubelet) < 400


def _volume(
    directory: Path, volume: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]], fs_group: int
) -> Path:
    """A directory as a kubelet makes it."""
    place: Path = directory / volume["name"]
    place.mkdir()
    if "secret" in volume:
        for name, text in secrets[volume["secret"]["secretName"]].items():
            file = place / name
            file.write_text(text)
            os.chown(file, 0, fs_group)
            file.chmod(volume["secret"]["defaultMode"])
        place.chmod(0o1777)
    else:
        os.chown(place, 0, fs_group)
        place.chmod(0o2777)
    return place


def _groups(root: Path, user: int) -> list[int]:
    """The groups that an image's own files give a user."""
    entries = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    names = {entry[0] for entry in entries if int(entry[2]) == user}
    groups = [line.split(":") for line in (root / "etc/group").read_text().splitlines()]
    return [int(group[2]) for group in groups if names & set(group[3].split(","))]
