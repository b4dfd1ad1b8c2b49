from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from streamdet.cli import cli
from streamdet.config.models import Config
from streamdet.config.stream import StreamConfig, StreamDefaults
from support.paths import ROOT

MANUAL = ROOT / "configs" / "streamdet.toml"
STREAM = {"name": "yard", "url": "rtsp://192.0.2.5/x"}


def schema(subject: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["schema", subject])
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    Draft202012Validator.check_schema(parsed)
    return parsed


def complaints(file: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(schema("config")).iter_errors(file)]


@pytest.mark.parametrize(
    "file",
    [
        {"streams": [STREAM]},
        {"streams": []},
        {"metrics": {}},
        {"streams": [{**STREAM, "max_fps": 5, "stall_seconds": "10 s", "max_frame_age_seconds": "500ms"}]},
        {"streams": [{**STREAM, "max_fps": "${FPS}", "loop": "${LOOP}", "name": "${NAME}-1", "hwaccel": "${HW}"}]},
        {"stream_defaults": {"max_fps": 5, "stall_seconds": 1.5, "transport": "udp"}, "streams": [STREAM]},
        {"detector": {"weights": "coco", "model": "fasterrcnn_resnet50_fpn", "labels": ["a"]}, "streams": [STREAM]},
        {"detector": {"score_thresholds": {"a": 0.5, "b": "${B}"}, "score_threshold": "${T}"}, "streams": [STREAM]},
        {"publisher": {"endpoint": "ipc:///a"}, "metrics": {}, "log": {"level": "debug"}, "streams": [STREAM]},
    ],
)
def test_the_schema_takes_what_is_right(file: dict[str, Any]) -> None:
    assert complaints(file) == []


@pytest.mark.parametrize(
    "file",
    [
        {},
        {"streams": [{"name": "a"}]},
        {"streams": [{**STREAM, "name": "A b"}]},
        {"streams": [{**STREAM, "max_fsp": 1}]},
        {"streams": [{**STREAM, "max_fps": "5"}]},
        {"streams": [{**STREAM, "max_fps": 0}]},
        {"streams": [{**STREAM, "stall_seconds": "10 days"}]},
        {"streams": [{**STREAM, "loop": "yes"}]},
        {"streams": [{**STREAM, "hwaccel": "cudaa"}]},
        {"streams": [STREAM], "stream_defaults": {"url": "x"}},
        {"streams": [STREAM], "log": {"level": "loud"}},
        {"streams": [STREAM], "detector": {"score_thresholds": {"a": 2}}},
        {"streams": [STREAM], "detektor": {}},
    ],
)
def test_the_schema_refuses_what_is_wrong(file: dict[str, Any]) -> None:
    assert complaints(file)


def test_the_manual_fits_the_schema() -> None:
    assert complaints(tomllib.loads(MANUAL.read_text(encoding="utf-8"))) == []


def test_every_key_is_described_with_its_default_and_an_example_that_fits() -> None:
    whole = schema("config")
    assert set(whole["properties"]) == {*Config.model_fields, "stream_defaults"}
    assert set(whole["$defs"]["StreamDefaults"]["properties"]) == set(StreamDefaults.model_fields)
    assert set(whole["$defs"]["StreamConfig"]["properties"]) == set(StreamConfig.model_fields)
    for table in whole["$defs"].values():
        assert table["description"]
        assert table["additionalProperties"] is False
        for key, value in table["properties"].items():
            assert len(value["description"]) > 20, key
            assert value["examples"], key
            for sample in [*value["examples"], *([value["default"]] if "default" in value else [])]:
                validator = Draft202012Validator({"$schema": whole["$schema"], "$defs": whole["$defs"], **value})
                assert not list(validator.iter_errors(sample)), (key, sample)


def test_the_schema_of_the_events_is_that_of_the_wire() -> None:
    assert "detections" in json.dumps(schema("events"))


def test_the_reference_is_printed_as_tables() -> None:
    result = CliRunner().invoke(cli, ["schema", "config", "--markdown"])
    assert result.exit_code == 0
    assert "| `score_threshold` | a number from 0 to 1 | `0.5` |" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["events", "--markdown"]])
def test_wrong_arguments_end_in_one_line_and_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["schema", *arguments])
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, streamdet.config, streamdet.monitoring.log, streamdet.cli.schema as s; s._schema('config')\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'av', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_metrics_are_to_be_had_for_programs_and_for_people() -> None:
    found = json.loads(CliRunner().invoke(cli, ["schema", "metrics"], catch_exceptions=False).output)
    captured = next(entry for entry in found if entry["name"] == "streamdet_frames_captured_total")
    assert captured == {
        "name": captured["name"],
        "kind": "counter",
        "labels": ["stream"],
        "meaning": "Frames received.",
    }
    table = CliRunner().invoke(cli, ["schema", "metrics", "--markdown"], catch_exceptions=False).output
    assert "| `streamdet_frames_captured_total` | counter | `stream` | Frames received. |" in table
