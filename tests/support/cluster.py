"""A cluster of one node, without Kubernetes: a network, pods, Traefik as the controller of its routes, a user outside.

What is real: Traefik, which reads the manifests' routes, Services and endpoints from an API; the pods' addresses; the
probes, which come from the node. What is not: Kubernetes. Its defaults, its endpoints and its order of steps
are told here as its documentation has them, and nobody enforces a NetworkPolicy. As root only.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme
import yaml  # type: ignore[import-untyped]

from tests.support import kubernetes_api
from tests.support.images import Image
from tests.support.machines import Machine, bridge, connect, machine
from tests.support.pod import Pod, holds, pod, run_manifest
from tests.support.processes import environment, program, running, wait_until

KUBERNETES = Path(__file__).parents[2] / "examples" / "kubernetes"

SITE = "example.com"
#: The user's address.
USER = "203.0.113.7"
NODE = "10.244.0.1"
_API = 6443
_DASHBOARD = 8080
#: What Traefik is told to read, by the file that has the route.
_PROVIDERS = {"http-route.yaml": "kubernetesgateway", "ingress.yaml": "kubernetesingress"}

Manifest = dict[str, Any]


def manifests(name: str) -> list[Manifest]:
    """A file's, as they stand."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


@dataclass
class Cluster:
    """A cluster that runs."""

    directory: Path
    images: Mapping[str, Image]
    node: Machine
    user: Machine
    #: The authority of the site's certificate, for the user.
    ca: Path
    stack: ExitStack
    #: What the API has, but for the endpoints.
    objects: list[Manifest]
    pods: dict[str, Pod] = field(default_factory=dict)
    _templates: dict[str, Manifest] = field(default_factory=dict)
    #: Deleted, but not ended.
    _leaving: set[str] = field(default_factory=set)

    def start(self, name: str, deployment: Manifest, secrets: Mapping[str, Mapping[str, str]]) -> Pod:
        """One more pod of a Deployment, ready and known to Traefik."""
        address = f"10.244.0.{10 + len(self.pods)}"
        # The cluster's names that a tunnel may ask for lead to the node.
        names = {"db.prod.svc.cluster.local": NODE}
        own = self.stack.enter_context(machine(address, names))
        connect(own, self.node, f"{address}/16")
        self.pods[name] = self.stack.enter_context(pod(self.directory / name, own))
        self._templates[name] = deployment["spec"]["template"]
        run_manifest(self.pods[name], self._templates[name], self.images, secrets, self.node)
        self.publish()
        return self.pods[name]

    def leave(self, name: str) -> None:
        """Delete a pod, up to the end of its preStop: it is out of the endpoints, and has its SIGTERM."""
        self._leaving.add(name)
        self.publish()
        self.pods[name].containers["http2tcp"].terminate()

    def publish(self) -> None:
        """Make the endpoints of the pods that are ready, and wait until Traefik has them."""
        (service,) = (each for each in self.objects if each["kind"] == "Service")
        ready = sorted(filter(partial(self._serves, service), self.pods))
        slices = [_endpoints(service, self.pods[name].machine.address, self._templates[name]) for name in ready]
        _replace(self.directory / "objects.json", [*self.objects, *slices])
        addresses = {self.pods[name].machine.address for name in ready}
        wait_until(lambda: self._known_to_traefik() == addresses, f"Traefik leads to {addresses}")

    def _serves(self, service: Manifest, name: str) -> bool:
        """Whether a pod is one of the Service's endpoints."""
        template = self._templates[name]
        selected = service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        stays = name not in self._leaving
        return selected and stays and holds(self.pods[name], container, "readinessProbe", self.node)

    def asked(self, path: str, port: int = _API) -> Any:
        """What the API says, or another port of the node; None where nobody answers."""
        command = self.node.command(program("curl"), "--silent", f"http://127.0.0.1:{port}{path}")
        done = subprocess.run(command, capture_output=True, timeout=20, env=environment())
        return json.loads(done.stdout or "null")

    def _known_to_traefik(self) -> set[str | None]:
        services = self.asked("/api/http/services", _DASHBOARD) or []
        servers = [server for each in services for server in each.get("loadBalancer", {}).get("servers", [])]
        return {urlsplit(server["url"]).hostname for server in servers}


@contextmanager
def cluster(directory: Path, images: Mapping[str, Image], route: str, service: Manifest) -> Iterator[Cluster]:
    """A cluster without pods, with a route to the Service: the one in the file of that name."""
    directory.mkdir(exist_ok=True)
    certificate = _certificate(directory)
    objects = [_with_defaults(each) for each in [*manifests(route), service]]
    objects += [*_site(), {**_SECRET, "data": certificate}]
    _replace(directory / "objects.json", objects)
    provider = f"--providers.{_PROVIDERS[route]}"
    traefik = (
        *("--entrypoints.site.address=:443", f"--entrypoints.traefik.address=127.0.0.1:{_DASHBOARD}"),
        *("--entrypoints.site.http.tls=true", "--api.insecure=true", "--providers.providersthrottleduration=100ms"),
        *(f"{provider}=true", f"{provider}.endpoint=http://127.0.0.1:{_API}", f"{provider}.token=any"),
    )
    with ExitStack() as stack:
        node = stack.enter_context(machine(NODE))
        user = stack.enter_context(machine(USER, {SITE: "203.0.113.1"}))
        bridge(node, f"{NODE}/16", "203.0.113.1/24")
        connect(user, node, f"{USER}/24")

        def start(name: str, url: str, *command: str) -> None:
            answers = node.command(program("curl"), "--silent", "--fail", "--output", "/dev/null", url)
            ready = partial(_succeeds, answers)
            stack.enter_context(running(node.command(*command), directory / f"{name}.log", ready))

        api = Path(kubernetes_api.__file__)
        start(
            "api",
            f"http://127.0.0.1:{_API}/version",
            sys.executable,
            str(api),
            str(_API),
            str(directory / "objects.json"),
        )
        start("traefik", f"http://127.0.0.1:{_DASHBOARD}/api/version", program("traefik"), *traefik)
        yield Cluster(directory, images, node, user, directory / "ca.pem", stack, objects)


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, timeout=20, env=environment()).returncode == 0


def _replace(file: Path, objects: Sequence[Manifest]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(objects))
    new.replace(file)


# --- what the API has ------------------------------------------------------------------------------

_GATEWAY = "gateway.networking.k8s.io"
_SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "example-com-tls", "namespace": "default"},
    "type": "kubernetes.io/tls",
}


def _certificate(directory: Path) -> dict[str, str]:
    """The site's, as a Secret has it; its authority's goes into ca.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate = authority.issue_cert(SITE)
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    files = {"tls.crt": chain, "tls.key": certificate.private_key_pem.bytes()}
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def _site() -> list[Manifest]:
    """What a site has before http2tcp comes: a Gateway with a certificate, and a class of Ingresses."""
    listener = {
        "name": "https",
        "port": 443,
        "protocol": "HTTPS",
        "tls": {"mode": "Terminate", "certificateRefs": [{"group": "", "kind": "Secret", "name": "example-com-tls"}]},
        "allowedRoutes": {"namespaces": {"from": "Same"}},
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}},
        {
            "apiVersion": f"{_GATEWAY}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": "traefik"},
            "spec": {"controllerName": "traefik.io/gateway-controller"},
        },
        {
            "apiVersion": f"{_GATEWAY}/v1",
            "kind": "Gateway",
            "metadata": {"name": "site", "namespace": "default"},
            "spec": {"gatewayClassName": "traefik", "listeners": [listener]},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": "traefik"},
            "spec": {"controller": "traefik.io/ingress-controller"},
        },
    ]


def _with_defaults(manifest: Manifest) -> Manifest:
    """As Kubernetes stores it."""
    each: Manifest = json.loads(json.dumps(manifest))
    each["metadata"]["namespace"] = "default"
    spec = each["spec"]
    if each["kind"] == "Service":
        for port in spec["ports"]:
            port.setdefault("protocol", "TCP")
    elif each["kind"] == "HTTPRoute":
        spec["parentRefs"] = [{"group": _GATEWAY, "kind": "Gateway", **parent} for parent in spec["parentRefs"]]
        for rule in spec["rules"]:
            to = {"group": "", "kind": "Service", "weight": 1}
            rule["backendRefs"] = [{**to, **reference} for reference in rule["backendRefs"]]
    return each


def _endpoints(service: Manifest, address: str, template: Manifest) -> Manifest:
    """Of one pod."""
    name = service["metadata"]["name"]
    (container,) = template["spec"]["containers"]
    numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
    ports = [{**port, "port": numbers[port.pop("targetPort")]} for port in map(dict, service["spec"]["ports"])]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{address}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [address], "conditions": {"ready": True, "serving": True, "terminating": False}}],
    }
