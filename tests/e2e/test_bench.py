"""`streamdet bench` as people run it: small runs, everything real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from jsonschema import validate

from streamdet.assets import sample_clip
from streamdet.bench.capacity import known_capacity, remember_capacity
from streamdet.bench.cases import Case, load_model
from streamdet.bench.compare import low_threshold_ratio
from streamdet.bench.contenders import make_contender
from streamdet.bench.frames import read_frames
from streamdet.bench.report import _low_threshold_lines, sentences, tables, to_dict
from streamdet.bench.run import Bench, Options
from streamdet.cli.bench import command
from streamdet.cli.cluster import _measured_fps
from streamdet.monitoring.metrics import STAGES
from streamdet.security.files import state_folder
from support.videos import make_video

NUMBER = {"type": "number", "exclusiveMinimum": 0}
ROW = {
    "type": "object",
    "required": [
        "model", "engine", "precision", "batch", "workers", "ms_per_frame", "speedup_over_torchvision", "floor_share",
        "stages_ms",
    ],
    "properties": {
        "engine": {"enum": ["reference", "torch", "graph", "openvino"]},
        "precision": {"enum": ["fp32", "bf16", "int8"]},
        "batch": {"type": "integer"},
        "workers": {"type": "integer"},
        "ms_per_frame": NUMBER,
        "ms_per_frame_quartiles": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
        "speedup_over_torchvision": NUMBER,
        "floor_share": NUMBER,
        "stages_ms": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    },
}  # fmt: skip
REPORT = {
    "type": "object",
    "required": ["machine", "models", "detector", "plain_loop", "daemon", "capacity", "notes", "interrupted"],
    "properties": {"detector": {"type": "array", "minItems": 1, "items": ROW}},
}
# Each starts torch, the daemon even four times: minutes where a machine is busy with other tests.
pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
SMALL = (
    "--model", "embedded", "--engine", "torch", "--precision", "fp32", "--batch", "1", "--workers", "1",
    "--size", "320x240",
)  # fmt: skip


def bench(*arguments: str, timeout: float = 380) -> subprocess.CompletedProcess[str]:
    command_line = [sys.executable, "-m", "streamdet", "bench", *SMALL, *arguments]
    return subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=timeout)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    picture = tmp_path_factory.mktemp("bench") / "bench.png"
    result = bench("--seconds", "4", "--fps", "5", "--streams", "2", "--json", "--out", str(picture))
    assert result.returncode == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "this will take about" in result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_the_detector_is_compared_with_torchvision_stage_by_stage(everything: dict[str, Any]) -> None:
    validate(everything, REPORT)
    reference, ours = everything["detector"]
    assert (reference["engine"], ours["engine"]) == ("reference", "torch")
    assert reference["speedup_over_torchvision"] == 1
    for row in (reference, ours):
        assert row["rounds"] >= 3
        assert set(row["stages_ms"]) == set(STAGES)
        assert sum(row["stages_ms"].values()) < 3 * row["ms_per_frame"]
        low, high = row["ms_per_frame_quartiles"]
        assert low <= row["ms_per_frame"] <= high
    assert everything["models"]["embedded"]["weights"] == "embedded"
    assert everything["models"]["embedded"]["gflop_per_frame"] > 1
    assert everything["peak_gflop_per_second"]["fp32"] > 1
    assert everything["machine"]["cores"] >= 1


def test_the_daemon_runs_end_to_end(everything: dict[str, Any]) -> None:
    for name in ("without_detector", "saturated", "paced", "overload"):
        run = everything["daemon"][name]
        assert (run["width"], run["height"]) == (320, 240)
        assert run["events_received"] > 0
        assert run["latency_ms"]["p50"] <= run["latency_ms"]["p95"] <= run["latency_ms"]["p99"]
        assert run["memory_megabytes"] > 10
    assert everything["daemon"]["saturated"]["frames_dropped"].get("superseded", 0) == 0
    assert everything["daemon"]["paced"]["streams"] == 2
    assert everything["daemon"]["paced"]["fps"] == 5
    overload = everything["daemon"]["overload"]
    assert overload["frames_dropped"]["superseded"] > 0
    assert set(overload["holds"]) == {"latency", "throughput", "fairness"}
    assert overload["fps_of_batches"] == {"1": overload["fps_published"]}
    assert everything["plain_loop"]["frames"] >= 3
    capacity = everything["capacity"]
    costs = capacity["cpu_ms_per_frame"]
    total = costs["decode_ms"] + costs["overhead_ms"] + costs["detector_ms"]
    assert capacity["fps_of_all_streams"] == pytest.approx(0.85 * 1000 * capacity["cores"] / total, rel=0.01, abs=0.1)
    # The figure is rounded: 14.96 frames/s, for two streams, reads 15.0.
    assert capacity["streams"] in {int((capacity["fps_of_all_streams"] + error) / 5) for error in (-0.05, 0.05)}


def test_the_cost_of_objects_and_rules_is_measured(everything: dict[str, Any]) -> None:
    found = everything["analytics"]
    assert (found["streams"], found["fps"], found["objects"], found["rules"]) == (30, 25, 20, 20)
    assert found["core_share"].keys() == {"tracking", "zones_and_objects", "rules", "events"}
    assert 0.02 < found["core_share"]["tracking"] < found["total_core_share"] < 20
    assert any(line.startswith("Analytics: 30 streams of 25 fps") for line in sentences(everything))
    assert everything["low_threshold"] is None  # a batch of one has no neighbours


def test_what_a_low_threshold_of_one_stream_costs_the_others_is_measured() -> None:
    case = Case("torch", "fp32", 4, 1)
    frames = read_frames(sample_clip(), (320, 240))
    threads = torch.get_num_threads()
    try:
        with make_contender(load_model("embedded").weights, case, torch.device("cpu")) as contender:
            ratio, seconds = low_threshold_ratio(contender, frames, case.batch, 0.5)
    finally:
        torch.set_num_threads(threads)
    assert ratio > 0  # how much, only a quiet machine says
    assert seconds > 0
    report = {"low_threshold": {"engine": "torch", "precision": "fp32", "batch": 4, "ratio": 1.004}}
    (line,) = _low_threshold_lines(report)
    assert "a batch of 4 takes 1.00 times as long as with all at 0.5 (torch fp32)" in line


def test_people_see_tables_and_what_changed(everything: dict[str, Any], tmp_path: Path) -> None:
    before = everything | {"detector": [row | {"ms_per_frame": 1e9} for row in everything["detector"]]}
    (tmp_path / "old.json").write_text(json.dumps(before))
    result = bench("--seconds", "1", "--no-daemon", "--baseline", str(tmp_path / "old.json"))
    assert result.returncode == 0, result.stderr
    assert "torchvision x1" in result.stdout
    assert "-100%" in result.stdout
    assert "preprocess" in result.stdout
    assert max(map(len, result.stdout.split("Machine:")[0].splitlines())) <= 80
    assert "Capacity" not in result.stdout


def test_the_capacity_alone_is_one_line_or_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (*SMALL, "--capacity", "--seconds", "5", "--json")
    done = bench(*small)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["engine"], found["precision"]) == ("embedded", "torch", "fp32")
    assert found["fps_of_all_streams"] > 0
    assert "plain loop" not in done.stderr
    assert "--capacity goes with neither" in run("--capacity", "--no-daemon").output

    # What a node of a cluster has measured, it does not measure again, on this machine with this program.
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    assert known_capacity(state_folder()) is None
    remember_capacity(state_folder(), 12.5)
    assert _measured_fps() == 12.5
    kept = tmp_path / "state" / "capacity.json"
    kept.write_text(kept.read_text().replace('"cores": "', '"cores": "1'))
    assert known_capacity(state_folder()) is None
    kept.write_text("[]")
    assert known_capacity(state_folder()) is None


def test_ctrl_c_ends_it_with_what_there_is() -> None:
    # Where a shell has put the tests into the background, programs begin with SIGINT ignored.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{start}; from streamdet.cli import main; main()"
    command_line = [sys.executable, "-c", code, "bench", *SMALL, "--seconds", "600", "--json"]
    process = subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any(line.startswith("embedded, batches of 1") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    report = json.loads(out)
    assert report["interrupted"]
    assert report["daemon"] is None
    assert "Traceback" not in err


def test_whole_rounds_are_kept_when_it_is_broken_off() -> None:
    reported = 0

    def on_step(text: str, _share: float) -> None:
        nonlocal reported
        reported += text.startswith("embedded")
        if reported == 8:  # its beginning, a warm-up of both, two rounds, and half of the third
            raise KeyboardInterrupt

    options = Options(
        ("embedded",), engines=("torch",), precisions=("fp32",), batches=(1,), workers=(1,), seconds=60, size=(64, 48)
    )
    threads = torch.get_num_threads()
    bench = Bench(options, lambda _seconds: None, on_step)
    try:
        bench.run()
    finally:
        torch.set_num_threads(threads)
    report = to_dict(bench.results)
    assert report["interrupted"]
    assert [row["rounds"] for row in report["detector"]] == [2, 2]
    assert "Broken off" in sentences(report)[-1]
    assert len(tables(report)) == 2


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"no weights")
    assert "cannot read the video" in str(run("--frames", text).exception)
    assert "no such model or file" in str(run("--model", "yolo").exception)
    assert "not a whole safetensors file" in str(run("--model", torn).exception)
    assert "not what `streamdet bench --json` prints" in str(run("--baseline", empty).exception)
    assert "must end in .png" in str(run("--out", tmp_path / "bench.bmp").exception)
    assert "there is no folder" in str(run("--out", tmp_path / "none" / "bench.png").exception)
    assert "is not a size" in run("--size", "1080p").output
    assert "does not exist" in run("--frames", tmp_path / "none.mp4").output
    assert "cuda" in str(run("--device", "cuda:99").exception)


def test_a_video_of_ones_own_keeps_its_size_and_rate(tmp_path: Path) -> None:
    from streamdet.bench.frames import describe, make_clip, pictures, read_frames  # noqa: PLC0415 - only here

    video = make_video(tmp_path / "own.mp4", frames=12, fps=6, width=96, height=64)
    found = describe(video)
    assert (found.size, found.fps) == ((96, 64), 6)
    assert make_clip(video, (96, 64), 6, tmp_path).path == video
    scaled = make_clip(video, (48, 32), 3, tmp_path)
    assert describe(scaled.path).size == (48, 32)
    assert describe(scaled.path).fps == 3
    shown = pictures(read_frames(video, (32, 16), count=5, stride=3), 7)
    assert [(p.width, p.height) for p in shown] == [(32, 16)] * 7
