"""The files for containers and Kubernetes fit each other, the image and the configuration."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from streamdet import cli
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


@pytest.mark.parametrize("folder", ["base", "monitoring", "gpu", "cluster"])
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


CLUSTER = {
    (each["kind"], each["metadata"]["name"]): each
    for path in sorted((KUBERNETES / "cluster").glob("*.yml")) if path.name != "kustomization.yml"
    for each in yaml.safe_load_all(path.read_text())
}  # fmt: skip
HEAD, NODES = CLUSTER["Deployment", "streamdet-head"]["spec"], CLUSTER["StatefulSet", "streamdet-node"]["spec"]
PODS: dict[str, dict[str, Any]] = {
    "shard": POD, "head": HEAD["template"]["spec"], "node": NODES["template"]["spec"]
}  # fmt: skip


@pytest.mark.parametrize("name", PODS)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    """The rules of the Pod Security Standards, level restricted."""
    for namespace in (base("namespace"), CLUSTER["Namespace", "streamdet-cluster"]):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = PODS[name]
    of_pod = pod["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] == UID
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        of_container = container["securityContext"]
        assert of_container["allowPrivilegeEscalation"] is False
        assert of_container["readOnlyRootFilesystem"] is True
        assert of_container["capabilities"] == {"drop": ["ALL"]}
    kinds = {key for volume in pod["volumes"] for key in volume} - {"name"}
    assert kinds <= {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def options(container: dict[str, Any]) -> dict[str, Any]:
    """What the program makes of the arguments of a container."""
    words = list(container["args"])
    command: click.Command | None = cli.cli
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert rest == []
    return values


def test_the_parts_of_a_cluster_on_kubernetes_fit_each_other() -> None:
    (head,), (daemon, agent) = PODS["head"]["containers"], PODS["node"]["containers"]
    joins, heads = options(agent), options(head)
    (port,) = CLUSTER["Service", "streamdet-head"]["spec"]["ports"]
    assert joins["head_at"] == f"streamdet-head:{port['port']}"
    assert heads["listen_at"] == f"0.0.0.0:{head['ports'][0]['containerPort']}"
    # What the token is for is known to those alone who need it.
    for container, wanted in ((head, True), (agent, True), (daemon, False)):
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert ("cluster" in mounts) is wanted
    assert {heads["token_file"], joins["token_file"]} == {"/run/secrets/cluster.key"}
    # Daemon and agent share the control socket, and both are of the user who may use it.
    assert {"name": "RUNTIME_DIRECTORY", "value": "/run/streamdet"} in daemon["env"]
    assert joins["socket_path"] == "/run/streamdet/control.sock"
    shared = {"name": "control", "mountPath": "/run/streamdet"}
    assert shared in daemon["volumeMounts"]
    assert shared in agent["volumeMounts"]
    for spec in (HEAD, NODES):
        pod = spec["template"]["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        mounted = {each["name"] for container in pod["containers"] for each in container["volumeMounts"]}
        claimed = {each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])}
        assert mounted == {each["name"] for each in pod["volumes"]} | claimed
    assert CLUSTER["PersistentVolumeClaim", "streamdet-head"]
    for kind, spec in (("streamdet-head", HEAD), ("streamdet-node", NODES)):
        service = CLUSTER["Service", kind]["spec"]
        assert service["selector"].items() <= spec["template"]["metadata"]["labels"].items()
        named = {
            each["name"] for container in spec["template"]["spec"]["containers"] for each in container.get("ports", [])
        }
        assert {each["targetPort"] for each in service["ports"]} <= named
    policy = CLUSTER["NetworkPolicy", "streamdet-cluster"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= HEAD["selector"]["matchLabels"].items()
    assert policy["podSelector"]["matchLabels"].items() <= NODES["selector"]["matchLabels"].items()


def test_the_daemon_of_a_node_on_kubernetes_publishes_where_its_ports_are(tmp_path: Path) -> None:
    for words in (
        ("keys", "--name", "server", "--server"),
        ("gateway", "--name", "gateway", "--allow", str(tmp_path / "clients")),
    ):
        made = CliRunner().invoke(cli.cli, ["keys", "generate", str(tmp_path / words[0]), *words[1:]])
        assert made.exit_code == 0, made.output
    text = (KUBERNETES / "cluster" / "streamdet.toml").read_text()
    path = tmp_path / "streamdet.toml"
    path.write_text(
        text.replace("/run/secrets/", f"{tmp_path}/keys/").replace("/etc/streamdet/clients", str(tmp_path / "clients"))
    )
    config = load_config(path)
    ports = {each["name"]: each["containerPort"] for each in PODS["node"]["containers"][0]["ports"]}
    assert config.publisher.endpoint == f"tcp://0.0.0.0:{ports['events']}"
    assert config.replay.endpoint == f"tcp://0.0.0.0:{ports['replay']}"
    assert config.metrics.endpoint == f"0.0.0.0:{ports['metrics']}"
    assert config.streams == ()
    sources = next(each["projected"]["sources"] for each in PODS["node"]["volumes"] if each["name"] == "configuration")
    assert sources[1]["configMap"]["items"] == [{"key": "gateway.key", "path": "clients/gateway.key"}]


def test_the_alert_rules_become_a_resource_as_the_manual_says() -> None:
    text = (ROOT / "docs" / "container.md").read_text()
    head = re.search(r"printf '(apiVersion: monitoring.*?)'", text)
    assert head is not None
    rules = (ROOT / "configs" / "prometheus" / "streamdet-alerts.yml").read_text()
    resource = yaml.safe_load(head[1].replace("\\n", "\n") + re.sub("^", "  ", rules, flags=re.MULTILINE))
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == yaml.safe_load(rules)
