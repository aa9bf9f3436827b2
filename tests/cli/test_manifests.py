"""The manifests of examples/kubernetes: as Kubernetes has them, at one with each other and with http2tcp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from http2tcp.address import TCPAddress

from .conftest import Run

KUBERNETES = Path(__file__).parents[2] / "examples" / "kubernetes"
FILES = sorted(KUBERNETES.glob("*.yaml"))
#: The oldest that the files name, and the newest whose schema there is.
VERSIONS = ("1.30", kubernetes_validate.latest_version())

Manifest = dict[str, Any]


def manifests(name: str, kind: str) -> list[Manifest]:
    return [each for each in yaml.safe_load_all((KUBERNETES / name).read_text()) if each["kind"] == kind]


def manifest(name: str, kind: str) -> Manifest:
    (found,) = manifests(name, kind)
    return found


def pod(name: str) -> Manifest:
    """What a Deployment's pods are."""
    spec: Manifest = manifest(name, "Deployment")["spec"]["template"]["spec"]
    return spec


def server(name: str) -> Manifest:
    """The container."""
    (found,) = pod(name)["containers"]
    assert isinstance(found, dict)
    return found


DEPLOYED = ("debug.yaml", "replicas.yaml")
each_deployment = pytest.mark.parametrize("name", DEPLOYED)


# --- as Kubernetes has them ------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_kubernetes_schema_finds_nothing_wrong(file: Path, version: str) -> None:
    for each in yaml.safe_load_all(file.read_text()):
        if each["apiVersion"].startswith("gateway.networking.k8s.io/"):
            continue  # no part of Kubernetes; tests/e2e/test_kubernetes.py has a controller read it
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_refuses_a_field_that_is_not_there() -> None:
    wrong = manifest("debug.yaml", "Service")
    wrong["spec"]["port"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


# --- at one with each other ------------------------------------------------------------------------


@each_deployment
def test_the_service_and_the_policy_lead_to_the_pods_by_ports_that_they_have(name: str) -> None:
    labels = manifest(name, "Deployment")["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in server(name)["ports"]}
    assert manifest(name, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    service, policy = manifest(name, "Service")["spec"], manifest("network-policy.yaml", "NetworkPolicy")["spec"]
    assert service["selector"].items() <= labels.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    # The admin port asks for no token.
    assert [port["targetPort"] for port in service["ports"]] == ["tunnels"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    for budget in manifests(name, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


@each_deployment
def test_the_route_and_the_ingress_lead_to_the_service(name: str) -> None:
    service = manifest(name, "Service")
    (port,) = service["spec"]["ports"]
    ((reference,),) = (rule["backendRefs"] for rule in manifest("http-route.yaml", "HTTPRoute")["spec"]["rules"])
    assert reference == {"name": service["metadata"]["name"], "port": port["port"]}
    ((path,),) = (rule["http"]["paths"] for rule in manifest("ingress.yaml", "Ingress")["spec"]["rules"])
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": port["name"]}}


@each_deployment
def test_every_volume_is_there_and_every_secret_is_a_file_that_only_its_container_has(name: str) -> None:
    spec = pod(name)
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    mounted = [mount["name"] for container in containers for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in spec["volumes"])
    assert not [container for container in containers if "env" in container or "envFrom" in container]
    secrets = {volume["name"] for volume in spec["volumes"] if "secret" in volume}
    for container in containers:
        for mount in container["volumeMounts"]:
            assert mount.get("readOnly", False) == (mount["name"] in secrets)


@each_deployment
def test_every_container_is_confined(name: str) -> None:
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container["securityContext"]
        assert context["runAsUser"] > 0
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


# --- at one with http2tcp --------------------------------------------------------------------------


@each_deployment
def test_the_arguments_start_a_server_that_the_probes_find_and_that_has_the_time_to_drain(
    http2tcp: Run, tmp_path: Path, name: str
) -> None:
    container = server(name)
    (mount,) = container["volumeMounts"]
    for file, text in {"token": "s3cret\n", "http2tcp.toml": (KUBERNETES / "http2tcp.toml").read_text()}.items():
        (tmp_path / file).touch(0o600)
        (tmp_path / file).write_text(text)
    settings = http2tcp(*(word.replace(mount["mountPath"], str(tmp_path)) for word in container["args"])).server

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.addresses == (TCPAddress("", ports["tunnels"]),)
    assert settings.admin == TCPAddress("", ports["admin"])
    for probe, path in {"readinessProbe": "/readyz", "livenessProbe": "/healthz"}.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}
    spec = pod(name)
    # And some seconds to end what is left.
    needed = container["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.grace + 10
    assert spec["terminationGracePeriodSeconds"] >= needed
    assert [str(network) for network in settings.trusted_proxies] == ["10.244.0.0/16"]


def test_the_sshd_listens_where_the_server_leads_to(http2tcp: Run, tmp_path: Path) -> None:
    lines = (KUBERNETES.parent / "docker" / "debug" / "sshd_config").read_text().splitlines()
    said = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert f"--destination=localhost:{said['Port']}" in server("debug.yaml")["args"]
    (sidecar,) = pod("debug.yaml")["initContainers"]
    assert sidecar["startupProbe"]["exec"]["command"] == ["nc", "-z", said["ListenAddress"], said["Port"]]
    places = [mount["mountPath"] for mount in sidecar["volumeMounts"]]
    assert {str(Path(said[key]).parent) for key in ("HostKey", "AuthorizedKeysFile")} <= set(places)
