"""The pods and the routes of examples/kubernetes, run without Kubernetes, from a user's ssh to the pod's sshd.

tests/support/cluster.py and tests/support/pod.py say what is real of that, and what stands in.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from http2tcp.client.connector import AUTO
from http2tcp.server.policy import digest
from tests.support.cluster import KUBERNETES, NODE, SITE, USER, Cluster, cluster, manifests
from tests.support.images import Image
from tests.support.nginx import replaced
from tests.support.pod import Pod
from tests.support.processes import conversation, environment, http2tcp, program, running, wait_until

# debootstrap, two builds with packages of Debian and PyPI.
pytestmark = pytest.mark.timeout(900)

each_route = pytest.mark.parametrize("route", ["http-route.yaml", "ingress.yaml"])


def one(name: str, kind: str) -> dict[str, Any]:
    (found,) = (each for each in manifests(name) if each["kind"] == kind)
    return found


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(secrets.token_hex() + "\n")
    return file


@pytest.fixture
def route() -> str:
    """How the site leads to the pods, unless a test tries all ways."""
    return "http-route.yaml"


def client(running: Cluster, token_file: Path, *more: str) -> list[str]:
    """`http2tcp -c` as a user types it, but for the site's authority."""
    endpoint = ("-e", f"https://{SITE}/~http2tcp/", "--token-file", str(token_file), "--ca-file", str(running.ca))
    return http2tcp("-c", *endpoint, *more)


# --- a debug container, with sshd in it ------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """The debug pod, and how a user logs in to it."""

    cluster: Cluster
    pod: Pod
    ssh: tuple[str, ...]

    def command(self, *words: str, terminal: bool = False) -> list[str]:
        return self.cluster.user.command(*self.ssh, *(("-tt",) if terminal else ()), "debug@box", *words)

    def run(self, *words: str, terminal: bool = False) -> subprocess.CompletedProcess[bytes]:
        command = self.command(*words, terminal=terminal)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=environment())


def keys(directory: Path) -> tuple[Path, Path]:
    """A host key, and a user's."""
    made = directory / "host_key", directory / "user_key"
    for file in made:
        command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)]
        subprocess.run(command, check=True, timeout=20)
    return made


@pytest.fixture
def box(built: dict[str, Image], tmp_path: Path, token_file: Path, route: str) -> Iterator[Box]:
    host_key, user_key = keys(tmp_path)
    known = tmp_path / "known_hosts"
    known.write_text(f"box {host_key.with_suffix('.pub').read_text()}")
    files = {
        "http2tcp": {"token": token_file.read_text()},
        "debug-sshd": {
            "host_key": host_key.read_text(),
            "authorized_keys": user_key.with_suffix(".pub").read_text(),
        },
    }
    with cluster(tmp_path / "cluster", built, route, one("debug.yaml", "Service")) as running_cluster:
        pod = running_cluster.start("box", one("debug.yaml", "Deployment"), files)
        # No -d: the server's own destination is the sshd.
        options = (
            f"UserKnownHostsFile={known}",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            f"ProxyCommand={shlex.join(client(running_cluster, token_file))}",
        )
        words = (word for option in options for word in ("-o", option))
        yield Box(running_cluster, pod, (program("ssh"), "-F", "none", "-i", str(user_key), *words))


@each_route
def test_a_user_logs_in_to_the_debug_pod_and_finds_a_terminal_and_the_tools(box: Box) -> None:
    done = box.run("id -un; psql --version; dig -v; curl --version; redis-cli --version; ps -p 1 -o comm=")
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode()
    assert said.startswith("debug\npsql (PostgreSQL)")
    assert said.endswith("\nsshd\n")
    assert b"/dev/pts/" in box.run("tty", terminal=True).stdout
    # By X-Forwarded-For, from Traefik.
    (opened, *_) = re.findall(r" opened .*", box.pod.containers["http2tcp"].log)
    assert f" client={USER} via={NODE}:" in opened
    assert " transport=connect-tcp" in opened


def test_in_the_debug_pod_only_what_ends_with_it_can_be_written(box: Box) -> None:
    assert box.run("echo kept > ~/file && echo kept > /tmp/file && cat ~/file /tmp/file").stdout == b"kept\nkept\n"
    for place in ("/file", "/etc/file", "/run/secrets/sshd/file", "/usr/bin/file"):
        assert box.run(f"echo no > {place}").returncode == 1, place
    # The other container's Secret is not there.
    assert box.run("ls /run/secrets").stdout == b"sshd\n"


def test_the_route_is_accepted_by_a_controller_that_knows_all_of_its_fields(box: Box) -> None:
    path = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes/http2tcp"
    wait_until(lambda: "status" in box.cluster.asked(path), "Traefik has set the route's status")
    (parent,) = box.cluster.asked(path)["status"]["parents"]
    assert {condition["type"]: condition["status"] for condition in parent["conditions"]} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
    }


@each_route
def test_the_route_passes_every_transport(box: Box, token_file: Path) -> None:
    check = box.cluster.user.command(*client(box.cluster, token_file, "--check"))
    done = subprocess.run(
        check, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    through = re.findall(r"✓ (\S+) +101, it gets through", done.stdout)
    assert through == [transport.value for transport in AUTO]


@each_route
def test_a_pod_that_leaves_lets_its_sessions_end_and_takes_no_new_ones(box: Box) -> None:
    server = box.pod.containers["http2tcp"]
    with conversation(box.command("echo ready; read line; echo got $line")) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        box.cluster.leave("box")
        wait_until(lambda: box.pod.get(9090, "/readyz", box.cluster.node) == 503, "it is no longer ready")
        assert box.pod.get(9090, "/healthz", box.cluster.node) == 200
        assert box.run("true").returncode == 255
        output, _ = ssh.communicate(b"the last word\n", timeout=20)
        assert output == b"got the last word\n"
    assert server.launcher.wait(20) == 0
    # Kubernetes ends the sidecar only now.
    box.pod.containers["debug"].terminate()
    box.pod.containers["debug"].launcher.wait(20)


# --- a way in for several people, in several replicas ----------------------------------------------


DATABASE = "db.prod.svc.cluster.local:5432"


@dataclass(frozen=True)
class Replicas:
    """The pods of replicas.yaml, a database that echoes, and a user who may use it."""

    cluster: Cluster
    names: tuple[str, ...]
    token_file: Path

    def command(self, destination: str) -> list[str]:
        return self.cluster.user.command(*client(self.cluster, self.token_file, "-d", destination))

    def refusal(self, destination: str) -> tuple[int, str]:
        """The exit status and the words of a client that gets no tunnel."""
        command = self.command(destination)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment()
        )
        return done.returncode, done.stderr

    def opened(self) -> list[int]:
        """How many tunnels each replica has opened."""
        return [len(self.records(name, "opened")) for name in self.names]

    def records(self, name: str, event: str) -> list[dict[str, Any]]:
        """Of a replica's log, which is JSON."""
        lines = map(json.loads, self.cluster.pods[name].containers["http2tcp"].log.splitlines())
        return [line for line in lines if line.get("event") == event]

    def figure(self, name: str, series: str) -> float:
        """Of a replica's metrics, as Prometheus gets them."""
        text = self.cluster.pods[name].text(9090, "/metrics", self.cluster.node)
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series))


@pytest.fixture
def max_tunnels() -> int:
    """Alice's, as the example has it."""
    return 20


@pytest.fixture
def replicas(
    built: dict[str, Image], tmp_path: Path, token_file: Path, route: str, max_tunnels: int
) -> Iterator[Replicas]:
    """As many as replicas.yaml has."""
    text = replaced(
        (KUBERNETES / "http2tcp.toml").read_text(),
        {"0" * 64: digest(token_file.read_text().strip()).hex(), "max_tunnels = 20": f"max_tunnels = {max_tunnels}"},
    )
    deployment = one("replicas.yaml", "Deployment")
    names = tuple(f"replica-{number}" for number in range(deployment["spec"]["replicas"]))
    with cluster(tmp_path / "cluster", built, route, one("replicas.yaml", "Service")) as running_cluster:
        for name in names:
            running_cluster.start(name, deployment, {"http2tcp": {"http2tcp.toml": text}})
        node, log = running_cluster.node, tmp_path / "database.log"
        database = (program("socat"), "-d", "-d", f"TCP-LISTEN:5432,bind={NODE},fork,reuseaddr", "EXEC:cat")
        with running(node.command(*database), log, lambda: "listening" in log.read_text()):
            yield Replicas(running_cluster, names, token_file)


def echoed(tunnel: subprocess.Popen[bytes], line: bytes) -> bytes:
    assert tunnel.stdin is not None
    assert tunnel.stdout is not None
    tunnel.stdin.write(line)
    tunnel.stdin.flush()
    return tunnel.stdout.readline()


@pytest.mark.parametrize("max_tunnels", [1])
def test_each_replica_has_tunnels_limits_and_figures_of_its_own(replicas: Replicas) -> None:
    with ExitStack() as stack:
        # Traefik leads to one after the other.
        for _ in replicas.names:
            assert echoed(stack.enter_context(conversation(replicas.command(DATABASE))), b"hello\n") == b"hello\n"
        assert replicas.opened() == [1] * len(replicas.names)
        assert [replicas.figure(name, "http2tcp_sessions_open{") for name in replicas.names] == [1, 1]
        # Together these are more than max_tunnels. One more is too many for whichever it comes to.
        status, words = replicas.refusal(DATABASE)
        assert (status, "has its 1 tunnel open already" in words) == (74, True), words


def test_what_a_replica_records_says_who_went_where(replicas: Replicas) -> None:
    with conversation(replicas.command(DATABASE)) as tunnel:
        assert echoed(tunnel, b"hello\n") == b"hello\n"
    (opened,) = (record for name in replicas.names for record in replicas.records(name, "opened"))
    said = {key: opened[key] for key in ("token", "client", "target", "dialled", "transport")}
    assert said == {
        "token": "alice",
        "client": USER,
        "target": DATABASE,
        "dialled": f"{NODE}:5432",
        "transport": "connect-tcp",
    }
    # Neither by its address, nor to the admin port of the pod itself.
    for elsewhere in (f"{NODE}:5432", "localhost:9090"):
        assert replicas.refusal(elsewhere)[0] == 69


def test_a_replica_that_leaves_keeps_its_tunnels_and_the_other_one_gets_the_new_ones(replicas: Replicas) -> None:
    first, second = replicas.names
    with conversation(replicas.command(DATABASE)) as old:
        assert echoed(old, b"before\n") == b"before\n"
        leaving, staying = (first, second) if replicas.opened() == [1, 0] else (second, first)
        replicas.cluster.leave(leaving)
        for _ in range(3):
            with conversation(replicas.command(DATABASE)) as new:
                assert echoed(new, b"hello\n") == b"hello\n"
        assert len(replicas.records(staying, "opened")) == 3
        assert echoed(old, b"meanwhile\n") == b"meanwhile\n"
        assert replicas.figure(leaving, "http2tcp_draining") == 1
        old.communicate(timeout=20)
        assert old.returncode == 0
    # Its grace is not waited for.
    assert replicas.cluster.pods[leaving].containers["http2tcp"].launcher.wait(20) == 0


def test_a_token_that_is_taken_out_of_the_secret_ends_its_tunnels_at_the_documented_signal(replicas: Replicas) -> None:
    page = (KUBERNETES.parents[1] / "docs" / "deploy" / "kubernetes.md").read_text()
    hers = digest(replicas.token_file.read_text().strip()).hex()
    ((container, signal),) = re.findall(r"kubectl exec \$pod -c (\S+) -- (.*)", page)
    with conversation(replicas.command(DATABASE)) as tunnel:
        assert echoed(tunnel, b"hello\n") == b"hello\n"
        for name in replicas.names:
            pod = replicas.cluster.pods[name]
            file = pod.directory / "config" / "http2tcp.toml"
            # Somebody else's, in place of hers.
            file.write_text(replaced(file.read_text(), {'"alice"': '"bob"', hers: "1" * 64}))
            assert pod.execute(container, shlex.split(signal)) == 0
        assert tunnel.wait(20) == 71
    (ended,) = (record for name in replicas.names for record in replicas.records(name, "ended"))
    assert ended["reason"] == "revoked"
    assert replicas.refusal(DATABASE)[0] == 68
