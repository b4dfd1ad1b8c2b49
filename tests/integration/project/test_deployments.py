"""The files for containers and Kubernetes fit each other, the image and the configuration."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamdet.config import load_bridges, load_config
from support.paths import ROOT

CONTAINER = ROOT / "container"
KUBERNETES = ROOT / "deploy" / "kubernetes"
CONTAINERFILE = (CONTAINER / "Containerfile").read_text()
NAME = {"app.kubernetes.io/name": "streamdet"}
UID = 10001


def read(path: Path) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(path.read_text())
    found: dict[str, Any] = document
    return found


def base(name: str) -> dict[str, Any]:
    return read(KUBERNETES / "base" / f"{name}.yml")


COMPOSE = read(CONTAINER / "compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SET = base("stateful-set")
POD: dict[str, Any] = SET["spec"]["template"]["spec"]
(POD_CONTAINER,) = POD["containers"]


# ---------------------------------------------------------------- Image


def test_the_image_is_built_from_locked_packages_by_an_unprivileged_user() -> None:
    assert "make setup" in CONTAINERFILE  # which checks hashes
    assert "--require-hashes" in (ROOT / "Makefile").read_text()
    # What else is installed is the wheel that was built before.
    assert re.findall(r"pip install (.*)", CONTAINERFILE) == [
        "--python /opt/streamdet/bin/python --no-deps --compile-bytecode dist/*.whl \\"
    ]
    assert not re.search(r"curl|wget|^ADD |https?://", CONTAINERFILE, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", CONTAINERFILE, re.MULTILINE) == [f"{UID}:{UID}"]
    assert f"--uid {UID}" in CONTAINERFILE


def test_what_the_image_copies_reaches_the_builder() -> None:
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    (copied,) = re.findall(r"^COPY (Makefile .*) \./$", CONTAINERFILE, re.MULTILINE)
    assert set(copied.split()) <= allowed
    for name in allowed:
        assert (ROOT / name).exists(), name
    assert "tests" not in allowed
    assert ".git" not in allowed


# ---------------------------------------------------------------- Compose


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_has_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["mem_limit"]


def test_what_compose_mounts_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (CONTAINER / source).exists(), (name, source)
                assert volume.endswith(":ro")
            else:
                assert source in COMPOSE["volumes"], (name, source)
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    script = (CONTAINER / "secrets.sh").read_text()
    assert [secret for secret in used if f"[ -e {secret} ] || " not in script] == []


@pytest.mark.package("openssl")
def test_a_secret_that_could_not_be_made_is_made_at_the_next_call(tmp_path: Path) -> None:
    """An empty file would count as one, and a broker with it would let no one in."""
    engine, folder = tmp_path / "engine", tmp_path / "secrets"

    def make(body: str) -> int:
        engine.write_text(f"#!/bin/sh\n{body}\n")
        engine.chmod(0o700)
        return subprocess.run(
            [CONTAINER / "secrets.sh", folder], input="admin:wonderland\n", text=True, check=False, timeout=60,
            env={**os.environ, "ENGINE": str(engine)}, capture_output=True,
        ).returncode  # fmt: skip

    assert make("exit 1") == 1
    assert {path.name for path in folder.iterdir()} == {"CAMERA_LOGIN", "MQTT_PASSWORD"}
    assert make("cat >/dev/null; echo hash") == 0
    assert {path.name for path in folder.iterdir()} == set(COMPOSE["secrets"])
    assert (folder / "mosquitto.passwords").read_text() == "hash\n"


def test_only_the_page_is_open_to_other_machines() -> None:
    (with_ports,) = [service for service in SERVICES.values() if "ports" in service]
    open_to_all = [port for port in with_ports["ports"] if not port.startswith("127.0.0.1:")]
    assert open_to_all == ["8095:8095"]
    page = " ".join(SERVICES["page"]["command"])
    assert "--password-file" in page
    assert "--tls-certificate" in page
    # All others use its network, and so its loopback.
    assert {each.get("network_mode") for each in SERVICES.values()} == {None, "service:streamdet"}


def test_the_configuration_of_compose_is_valid() -> None:
    path = CONTAINER / "streamdet.toml"
    config = load_config(path, {"CAMERA_LOGIN": "a:b", "MQTT_PASSWORD": "x"})
    assert config.spool.directory == "/var/lib/streamdet/spool"
    bridges = load_bridges(path, {"CAMERA_LOGIN": "a:b", "MQTT_PASSWORD": "x"})
    assert bridges.mqtt is not None
    (scraped, of_bridges) = read(CONTAINER / "prometheus.yml")["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [config.metrics.endpoint]}]
    assert of_bridges["static_configs"] == [{"targets": [bridges.mqtt.metrics_endpoint]}]
    assert {scraped["job_name"], of_bridges["job_name"]} == {"streamdet", "streamdet-bridge"}


# ---------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("folder", ["base", "monitoring", "gpu"])
def test_a_kustomization_names_what_is_there_and_all_of_it(folder: str) -> None:
    kustomization = read(KUBERNETES / folder / "kustomization.yml")
    named = [*kustomization["resources"], *(each["path"] for each in kustomization.get("patches", []))]
    assert [name for name in named if not (KUBERNETES / folder / name).exists()] == []
    files = {path.name for path in (KUBERNETES / folder).glob("*.yml")}
    assert files - {"kustomization.yml"} == {name for name in named if name.endswith(".yml")}


def test_each_pod_has_a_file_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    kustomization = base("kustomization")
    (generated,) = kustomization["configMapGenerator"]
    assert [Path(name).name for name in generated["files"]] == [
        f"streamdet-{number}.toml" for number in range(SET["spec"]["replicas"])
    ]
    assert POD_CONTAINER["args"][-1] == "/etc/streamdet/$(POD_NAME).toml"
    names = set()
    for name in generated["files"]:
        config = load_config(KUBERNETES / "base" / name, {"CAMERA_LOGIN": "a:b"})
        # Where the probes and Prometheus look for it.
        assert config.metrics.endpoint.endswith(f":{POD_CONTAINER['ports'][0]['containerPort']}")
        assert config.spool.directory.startswith("/var/lib/streamdet/")
        names |= {stream.name for stream in config.streams}
    assert len(names) == len(generated["files"])


def test_names_of_kubernetes_match() -> None:
    spec = SET["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == NAME
    assert spec["serviceName"] == base("service")["metadata"]["name"]
    assert base("service")["spec"]["selector"] == NAME
    assert base("network-policy")["spec"]["podSelector"]["matchLabels"] == NAME
    assert base("disruption-budget")["spec"]["selector"]["matchLabels"] == NAME
    monitor = read(KUBERNETES / "monitoring" / "service-monitor.yml")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= base("service")["metadata"]["labels"].items()
    (port,) = base("service")["spec"]["ports"]
    assert {port["name"], port["targetPort"], monitor["endpoints"][0]["port"]} == {POD_CONTAINER["ports"][0]["name"]}
    probes = [POD_CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [(each["path"], each["port"]) for each in probes] == [
        ("/readyz", "metrics"), ("/healthz", "metrics"), ("/readyz", "metrics"),
    ]  # fmt: skip
    mounted = {each["name"] for each in POD_CONTAINER["volumeMounts"]}
    claimed = {each["metadata"]["name"] for each in spec["volumeClaimTemplates"]}
    assert mounted == {each["name"] for each in POD["volumes"]} | claimed
    (configuration,) = [each["configMap"]["name"] for each in POD["volumes"] if "configMap" in each]
    assert configuration == base("kustomization")["configMapGenerator"][0]["name"]
    (image,) = base("kustomization")["images"]
    assert image["name"] == POD_CONTAINER["image"]
    (of_gpu,) = read(KUBERNETES / "gpu" / "kustomization.yml")["images"]
    assert of_gpu["name"] == image["newName"]
    patch = read(KUBERNETES / "gpu" / "gpu.yml")
    assert (patch["kind"], patch["metadata"]["name"]) == (SET["kind"], SET["metadata"]["name"])
    assert patch["spec"]["template"]["spec"]["containers"][0]["name"] == POD_CONTAINER["name"]


def test_pods_meet_the_restricted_standard() -> None:
    """The rules of the Pod Security Standards, level restricted."""
    assert base("namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    of_pod, of_container = POD["securityContext"], POD_CONTAINER["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] == UID
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container["allowPrivilegeEscalation"] is False
    assert of_container["readOnlyRootFilesystem"] is True
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    kinds = {key for volume in POD["volumes"] for key in volume} - {"name"}
    assert kinds <= {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()


def test_the_alert_rules_become_a_resource_as_the_manual_says() -> None:
    text = (ROOT / "docs" / "container.md").read_text()
    head = re.search(r"printf '(apiVersion: monitoring.*?)'", text)
    assert head is not None
    rules = (ROOT / "configs" / "prometheus" / "streamdet-alerts.yml").read_text()
    resource = yaml.safe_load(head[1].replace("\\n", "\n") + re.sub("^", "  ", rules, flags=re.MULTILINE))
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == yaml.safe_load(rules)
