# ruff: noqa: INP001, T201 - a program, not a module; it prints
"""The parts of `benchmarks/gpu.sh` that no other program measures, and its table.

    .venv/bin/python benchmarks/gpu.py kernels --model fasterrcnn_resnet50_fpn --seconds 30
    .venv/bin/python benchmarks/gpu.py decoding --seconds 8
    .venv/bin/python benchmarks/gpu.py table gpu-results

`kernels` measures the graph engine with streamdet's own Triton kernels and with plain torch, in turns. `decoding`
decodes the sample clip at 1080p on the device (`hwaccel = "cuda"`) and on one core. Both print one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import torch
from av.codec.hwaccel import HWAccel

from streamdet.assets import sample_clip
from streamdet.bench.cases import load_model
from streamdet.bench.contenders import Contender
from streamdet.bench.frames import make_clip, read_frames
from streamdet.config import DetectorConfig
from streamdet.detector.device import choose_device
from streamdet.detector.graph.detector import GraphDetector

_BATCHES = (1, 8, 16)
_SIZE = (1920, 1080)
_STEPS = ("tests", "detector", "kernels", "end_to_end", "decoding")
_TIMED_OUT = {124, 137}


def measure_kernels(device: torch.device, name: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of a frame by batch size, with the kernels and without, and the median ratio of a round."""
    weights, frames = load_model(name).weights, read_frames(sample_clip(), _SIZE)
    precision = "bf16" if device.type == "cuda" else "fp32"
    config = DetectorConfig(device=str(device), engine="graph", precision=precision, max_batch_size=max(_BATCHES))

    def contender(*, kernels: bool) -> Contender:
        return Contender(
            lambda on_stage: GraphDetector(weights, config, device, on_stage, kernels=kernels), 1, 1, device
        )

    rows: dict[str, Any] = {}
    with contender(kernels=True) as fast, contender(kernels=False) as plain:
        for batch in _BATCHES:
            for each in (fast, plain):
                each.round(frames, batch)
            times: dict[str, list[float]] = {"kernels": [], "plain": []}
            end = time.monotonic() + seconds / len(_BATCHES)
            while not times["plain"] or time.monotonic() < end:
                times["kernels"].append(fast.round(frames, batch).seconds)
                times["plain"].append(plain.round(frames, batch).seconds)
            ratios = [slow / quick for quick, slow in zip(times["kernels"], times["plain"], strict=True)]
            rows[str(batch)] = {
                "kernels_ms": round(1000 * statistics.median(times["kernels"]), 3),
                "plain_ms": round(1000 * statistics.median(times["plain"]), 3),
                "speedup": round(statistics.median(ratios), 3),
                "rounds": len(ratios),
            }
    return {"batches": rows}


def measure_decoding(device: torch.device, seconds: float) -> dict[str, Any]:
    """Frames per second of one stream that is decoded without a pause, on the device and on one core."""
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(sample_clip(), _SIZE, 25.0, Path(folder)).path

        def software() -> Iterator[av.VideoFrame]:
            with av.open(str(clip)) as container:
                container.streams.video[0].codec_context.thread_count = 1
                yield from container.decode(video=0)

        def hardware() -> Iterator[av.VideoFrame]:
            with av.open(str(clip), hwaccel=HWAccel("cuda", allow_software_fallback=False)) as container:
                yield from container.decode(video=0)

        result = {"software_fps": _frames_per_second(software, seconds)}
        if device.type == "cuda":
            result["hardware_fps"] = _frames_per_second(hardware, seconds)
        return result


def _frames_per_second(decode: Callable[[], Iterator[av.VideoFrame]], seconds: float) -> float:
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        count += sum(1 for _frame in decode())
    return round(count / passed, 1)


def table(out: Path) -> tuple[list[str], bool]:
    """The lines of the table, and whether every step succeeded."""
    rows: list[tuple[str, str]] = []
    good = True
    for step in _STEPS:
        status = int((out / f"{step}.status").read_text("utf-8"))
        if status == 0:
            rows += _ROWS[step](out)
            continue
        good = False
        last = (out / f"{step}.err").read_text("utf-8", "replace").strip().splitlines()[-1:] or [
            f"exit status {status}"
        ]
        rows += _ROWS[step](out) if step == "tests" and (out / "tests.xml").is_file() else []
        rows.append((step, "took too long" if status in _TIMED_OUT else f"failed: {last[0][:150]}"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {figure}" for name, figure in rows], good


def _of_tests(out: Path) -> list[tuple[str, str]]:
    suite = next(ET.parse(out / "tests.xml").getroot().iter("testsuite"))  # noqa: S314 - our own file
    count, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    rows = [("tests that need a GPU", f"{count - skipped - failed} passed, {failed} failed, {skipped} left out")]
    names = [
        f"{case.attrib['classname']}::{case.attrib['name']}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return rows + [("  failed", name) for name in names]


def _read(out: Path, step: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((out / f"{step}.out").read_text("utf-8"))


def _of_detector(out: Path) -> list[tuple[str, str]]:
    report = _read(out, "detector")
    rows = [("device", str(report["machine"].get("device") or report["machine"].get("cpu")))]
    for row in report["detector"]:
        name = f"{row['model']} {row['engine']} {row['precision']}, batch {row['batch']}"
        speedup = f", {row['speedup_over_torchvision']}x torchvision" if row["speedup_over_torchvision"] else ""
        rows.append((name, f"{row['ms_per_frame']} ms a frame, {1000 / row['ms_per_frame']:.0f} frames/s{speedup}"))
        if stages := row.get("stages_ms"):
            rows.append(("  stages, ms a frame", ", ".join(f"{stage} {ms}" for stage, ms in stages.items())))
    return rows


def _of_kernels(out: Path) -> list[tuple[str, str]]:
    return [
        (
            f"own kernels, batch {batch}",
            f"{row['kernels_ms']} ms a frame, plain torch {row['plain_ms']}: {row['speedup']}x",
        )
        for batch, row in _read(out, "kernels")["batches"].items()
    ]


def _of_end_to_end(out: Path) -> list[tuple[str, str]]:
    report = _read(out, "end_to_end")
    return [
        (
            f"daemon, {name}",
            ", ".join(f"{key} {value}" for key, value in run.items() if isinstance(value, (int, float))),
        )
        for name, run in (report["daemon"] or {}).items()
        if isinstance(run, dict)
    ]


def _of_decoding(out: Path) -> list[tuple[str, str]]:
    return [("decoding 1080p H.264", ", ".join(f"{key} {value}" for key, value in _read(out, "decoding").items()))]


_ROWS: dict[str, Callable[[Path], list[tuple[str, str]]]] = {
    "tests": _of_tests,
    "detector": _of_detector,
    "kernels": _of_kernels,
    "end_to_end": _of_end_to_end,
    "decoding": _of_decoding,
}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for part in ("kernels", "decoding"):
        one = parts.add_parser(part)
        one.add_argument("--device", default="cuda")
        one.add_argument("--model", default="fasterrcnn_resnet50_fpn")
        one.add_argument("--seconds", type=float, default=30.0)
    parts.add_parser("table").add_argument("folder", type=Path)
    chosen = parser.parse_args()
    if chosen.part == "table":
        lines, good = table(chosen.folder)
        print("\n".join(lines))
        sys.exit(0 if good else 1)
    device = choose_device(chosen.device)
    if chosen.part == "kernels":
        print(json.dumps(measure_kernels(device, chosen.model, chosen.seconds)))
    else:
        print(json.dumps(measure_decoding(device, chosen.seconds)))


if __name__ == "__main__":
    main()
