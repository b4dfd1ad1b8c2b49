"""The files for Prometheus and Grafana: right by their own tools, and true of a running daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from prometheus_client import generate_latest

from streamdet import __version__
from streamdet.assets import sample_clip
from streamdet.cluster.agent import Report
from streamdet.cluster.cameras import Camera
from streamdet.cluster.reconciler import Reconciler
from streamdet.config import Config
from streamdet.config.bridges import METRICS_KEYS
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.reference import markdown_table
from support.cluster_head import HeadServer
from support.paths import DATA, ROOT
from support.ports import free_port
from support.prometheus_server import Prometheus, prometheus_of

CONFIGS = ROOT / "configs"
DASHBOARD = json.loads((CONFIGS / "grafana" / "dashboards" / "streamdet.json").read_text(encoding="utf-8"))
RULES = CONFIGS / "prometheus" / "streamdet-alerts.yml"
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PATIENCE_SECONDS = 90.0

# Only where there is a CUDA device; that they are declared is tested without one.
OF_CUDA = {"streamdet_device_memory_used_bytes", "streamdet_device_memory_total_bytes", "streamdet_device_busy_ratio"}
_SELECTOR = re.compile(r"\b(?P<name>(?:streamdet|process)_\w+|up)\b(?:\{(?P<matchers>[^}]*)\})?")
_LABEL_LIST = re.compile(r"\b(?:by|on|ignoring|group_left|without) \((?P<labels>[^)]*)\)")
_MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')


def expressions() -> dict[str, str]:
    """Every expression of the dashboard, with its variables filled in, and of the alert rules, by where it stands."""
    found = {}
    for panel in PANELS:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "20s").replace("$instance", ".*").replace("$stream", ".*")
            found[f"panel {panel['title']}, {target['refId']}"] = text
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            found[f"alert {rule['alert']}"] = rule["expr"]
    return found


def is_of_cuda(expression: str) -> bool:
    return any(name in expression for name in OF_CUDA)


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.package("prometheus")
def test_promtool_finds_the_rules_right_and_they_fire_when_they_should() -> None:
    folder = CONFIGS / "prometheus"
    run("promtool", "check", "config", "prometheus.yml", folder=folder)
    run("promtool", "check", "rules", RULES.name, folder=folder)
    run("promtool", "test", "rules", "streamdet-alerts-test.yml", folder=folder)


@pytest.mark.package("prometheus")
def test_streams_of_two_daemons_with_the_same_name_are_two(tmp_path: Path) -> None:
    streams = [text for place, text in expressions().items() if place.startswith("panel") and "by (instance" in text]
    streams = [text for text in streams if re.search("stream_state|frames_(captured|published)", text)]
    assert len(streams) >= 3
    states = ("up", "connecting", "stalled", "down")
    of = {"a": "up", "b": "down"}
    labels = {instance: f'job="streamdet",instance="{instance}",stream="door"' for instance in of}
    series = [
        {"series": f'streamdet_stream_state{{{labels[instance]},state="{state}"}}', "values": f"{int(state == now)}x10"}
        for instance, now in of.items()
        for state in states
    ] + [
        {"series": f"streamdet_frames_{name}_total{{{labels[instance]}}}", "values": "0+50x10"}
        for instance in of
        for name in ("captured", "published")
    ]
    cases = [
        {
            "expr": text,
            "eval_time": "50s",
            "exp_samples": [
                {
                    "labels": f'{{instance="{instance}", stream="door"}}',
                    "value": states.index(now) + 1 if "stream_state" in text else 10,
                }
                for instance, now in of.items()
            ],
        }
        for text in streams
    ]
    test = {"rule_files": [], "evaluation_interval": "5s", "tests": [
        {"interval": "5s", "input_series": series, "promql_expr_test": cases}
    ]}  # fmt: skip
    (tmp_path / "test.yml").write_text(json.dumps(test), encoding="utf-8")
    run("promtool", "test", "rules", "test.yml", folder=tmp_path)


def test_each_bridge_has_its_line_in_the_scrapes() -> None:
    text = (CONFIGS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(re.sub(r"#(- targets: .*) # \w+$", r"\1", text, flags=re.MULTILINE))["scrape_configs"]
    (of_bridges,) = (job for job in jobs if job["job_name"] == "streamdet-bridge")
    config = Config.model_validate({"streams": [{"name": "one", "url": "rtsp://192.0.2.5/"}]})
    ports = [getattr(getattr(config, table), key) for table, key in METRICS_KEYS.values()]
    assert of_bridges["static_configs"] == [{"targets": [port]} for port in ports]
    assert [text.split(f'"{port}"] # ')[1].split()[0] for port in ports] == list(METRICS_KEYS)


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((CONFIGS / "prometheus" / "streamdet-alerts-test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    assert fired == {rule["alert"] for group in rules for rule in group["rules"]}


def test_alerts_that_follow_from_another_are_kept_back() -> None:
    folder = CONFIGS / "prometheus"
    rules = {
        rule["alert"]: rule
        for group in yaml.safe_load((folder / RULES.name).read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    }
    pairs = set()
    for inhibition in yaml.safe_load((folder / "alertmanager.yml").read_text(encoding="utf-8"))["inhibit_rules"]:
        (sources,), (targets,) = (
            [alerts_of(matcher, rules) for matcher in inhibition[f"{side}_matchers"]] for side in ("source", "target")
        )
        assert sources
        assert targets
        # An alert that keeps itself back would never be sent.
        assert not sources & targets
        pairs |= {(source, target) for source in sources for target in targets}
    assert ("StreamdetStreamDown", "StreamdetStreamFlapping") in pairs
    of_bridges, of_clusters = (
        {name for name in rules if name.startswith(f"Streamdet{of}")} for of in ("Bridge", "Cluster")
    )
    for source, others in (
        ("StreamdetUnreachable", rules.keys() - of_bridges - of_clusters),
        ("StreamdetBridgeUnreachable", of_bridges),
        ("StreamdetClusterHeadUnreachable", of_clusters),
    ):
        assert {target for cause, target in pairs if cause == source} == others - {source}
    # None is kept back by one that it keeps back itself.
    assert not {(target, source) for source, target in pairs} & pairs


def alerts_of(matcher: str, names: Iterable[str]) -> set[str]:
    found = re.fullmatch(r'alertname(=~?)"([^"]+)"', matcher)
    assert found, matcher
    pattern = found[2] if found[1] == "=~" else re.escape(found[2])
    return {name for name in names if re.fullmatch(pattern, name)}


def test_what_only_cuda_has_is_declared() -> None:
    metrics = Metrics(Ledger())
    metrics.add_device("cuda:0", lambda: (1, 2), lambda: 0.5)
    page = generate_latest(metrics.registry).decode()
    assert all(f"\n{name}{{device=" in page for name in OF_CUDA)


@pytest.mark.package("nodejs")
@pytest.mark.timeout(300)
@pytest.mark.network
def test_the_dashboard_is_one_by_grafanas_own_types(tmp_path: Path) -> None:
    shutil.copy(DATA / "node-dashboard" / "package.json", tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    if installed.returncode != 0 and not os.environ.get("STREAMDET_REQUIRE_PACKAGES"):
        pytest.skip("npm cannot install the package @grafana/schema here")
    assert installed.returncode == 0, installed.stderr
    compiler = [str(tmp_path / "node_modules" / ".bin" / "tsc"), "--strict", "--noEmit", "--skipLibCheck"]
    options = ["--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022", "dashboard.mts"]
    program = tmp_path / "dashboard.mts"
    program.write_text(typed(DASHBOARD), encoding="utf-8")
    run(*compiler, *options, folder=tmp_path)
    # The check can fail: a panel without a type is none.
    program.write_text(typed({**DASHBOARD, "panels": [{"title": "no type"}]}), encoding="utf-8")
    assert subprocess.run([*compiler, *options], cwd=tmp_path, capture_output=True, check=False).returncode != 0


def typed(dashboard: dict[str, Any]) -> str:
    """A program that compiles only if the dashboard, and the options of each panel, are of Grafana's types."""
    modules = {
        "heatmap": "HeatmapPanelCfg",
        "state-timeline": "StateTimelinePanelCfg",
        "stat": "StatPanelCfg",
        "table": "TablePanelCfg",
        "timeseries": "TimeSeriesPanelCfg",
    }
    lines = [
        'import type { Dashboard } from "@grafana/schema";',
        # JSON has the values of enumerations, not their names.
        "type Json<T> = T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[] :",
        "  T extends object ? { [K in keyof T]: Json<T[K]> } : T;",
        f"export default {json.dumps(dashboard)} satisfies Json<Dashboard>;",
    ]
    for kind, module in modules.items():
        path = f"@grafana/schema/dist/esm/raw/composable/{kind.replace('-', '')}/panelcfg/x/{module}_types.gen"
        lines.append(f'import type {{ Options as {module} }} from "{path}";')
    for panel in dashboard["panels"]:
        if panel.get("type") in modules:
            of = f"Json<Partial<{modules[panel['type']]}>>"
            lines.append(f"export const options{panel['id']} = {json.dumps(panel['options'])} satisfies {of};")
    return "\n".join(lines)


def test_panels_do_not_overlap_and_have_words() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus beside a real daemon, a bridge and the head of a cluster without a camera.

    The daemon has one stream of the sample clip, and one whose server refuses.
    """
    folder = tmp_path_factory.mktemp("dashboards")
    target, bridge, refused = (f"127.0.0.1:{free_port()}" for _ in range(3))
    config = folder / "streamdet.toml"
    config.write_text(
        f'[metrics]\nendpoint = "{target}"\n[publisher]\nendpoint = "ipc://{folder}/events"\n'
        f'[[streams]]\nname = "clip"\nurl = "{sample_clip()}"\nloop = true\n'
        'track_max_lost_seconds = 0.5\ngate = "motion"\n'
        'zones = [{name = "all", polygon = [[0, 0], [1, 0], [1, 1], [0, 1]], loiter_seconds = 0.5}]\n'
        f'[[streams]]\nname = "dead"\nurl = "rtsp://{refused}/video"\n'
        '[[rules]]\nname = "seen"\nstreams = ["clip"]\n'
        f'[bridges]\nwebhook_metrics_endpoint = "{bridge}"\n'
        f'[[webhooks]]\nname = "pager"\nurl = "http://{refused}/"\nallow_private = true\n'
    )
    with (
        (folder / "log").open("wb") as log,
        process(["run", "--config", str(config)], log),
        process(["bridge", "webhook", "--config", str(config)], log),
        HeadServer(status_of_a_cluster) as head,
        prometheus_of(target, folder, "1s", bridge=bridge, head=f"127.0.0.1:{head.port}") as running,
    ):
        yield running


def status_of_a_cluster() -> dict[str, Any]:
    """Of a real reconciler with a node that drains and one that does not; what one stream needs is too much."""
    head = Reconciler(settle_seconds=0.0)
    head.apply({name: Camera(fps, {"name": name}) for name, fps in (("clip", 5.0), ("huge", 500.0))})
    for name in ("n0", "n1"):
        head.report(Report(name, __version__, states={"clip": "up"}), name, 20.0)
    head.drain("n1")
    head.step()
    return head.status()


@contextmanager
def process(arguments: list[str], log: IO[bytes]) -> Iterator[None]:
    """Runs streamdet until the block ends."""
    with subprocess.Popen([sys.executable, "-m", "streamdet", *arguments], stdout=log, stderr=log) as running:
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()


@pytest.mark.package("prometheus")
@pytest.mark.timeout(240)
def test_every_metric_and_label_exists_and_every_panel_has_data(prometheus: Prometheus) -> None:
    panels = {
        place: text for place, text in expressions().items() if place.startswith("panel") and not is_of_cuda(text)
    }
    # Audits are rare, and there are none while something moves all the time.
    empty = {place: text for place, text in panels.items() if "streamdet_gate_missed_total" not in text}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while empty and time.monotonic() < deadline:
        try:
            empty = {place: text for place, text in empty.items() if not has_data(prometheus, text)}
        except OSError:
            # It is still starting.
            time.sleep(0.5)
        time.sleep(0.5)
    assert not empty
    for place, text in expressions().items():
        if not is_of_cuda(text):
            check_names(prometheus, place, text)


def has_data(prometheus: Prometheus, expression: str) -> bool:
    return any(result["value"][1] != "NaN" for result in prometheus.results(expression))


def check_names(prometheus: Prometheus, place: str, expression: str) -> None:
    """Fails if a metric, a label or the value of a label does not exist."""
    labels: set[str] = set()
    for found in _SELECTOR.finditer(expression):
        name, matchers = found["name"], _MATCHER.findall(found["matchers"] or "")
        series = [result["metric"] for result in prometheus.results(name)]
        assert series, f"{place}: there is no metric {name}"
        labels |= {label for one in series for label in one}
        for label, operator, value in matchers:
            assert all(label in one for one in series), f"{place}: {name} has no label {label}"
            if operator in ("=", "!="):
                assert any(one[label] == value for one in series), f"{place}: {name} has no {label}={value}"
    for found in _LABEL_LIST.finditer(expression):
        for label in filter(None, re.split(r",\s*", found["labels"])):
            assert label in labels, f"{place}: nothing has a label {label}"


def test_the_variables_ask_for_labels_that_exist() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("door", ["person"])
    page = generate_latest(metrics.registry).decode()
    queries = [
        variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
    ]
    assert len(queries) == 2
    for query in queries:
        found = re.fullmatch(r"label_values\((\w+)(?:\{[^}]*\})?, (\w+)\)", query)
        assert found, query
        # The instance is given by Prometheus itself.
        assert found[2] == "instance" or re.search(rf'^{found[1]}\{{.*{found[2]}="', page, re.MULTILINE)
        assert f"\n{found[1]}" in page


def test_the_page_lists_every_metric_and_every_alert() -> None:
    page = (CONFIGS.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "print it again: streamdet schema metrics --markdown"
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in page
