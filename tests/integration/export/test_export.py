"""`streamdet export` makes a file that runs as weights, and reports truly what it gained and lost."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from streamdet.assets import embedded_weights, sample_clip
from streamdet.cli import export as cli_export
from streamdet.config import DetectorConfig
from streamdet.detector.agreement import measure_agreement
from streamdet.detector.engines import openvino
from streamdet.detector.engines.openvino import is_installed
from streamdet.detector.pipeline import FasterRcnnDetector, load_detector
from streamdet.detector.reference import ReferenceDetector
from streamdet.detector.weights import load_weights, load_weights_file, weights_to_bytes
from streamdet.detector.weights.architectures import build_model
from streamdet.errors import ConfigError, DataError, DetectorError
from streamdet.export.frames import read_frames
from streamdet.training.run import load_initial
from streamdet.types import Detection
from support.detecting import claiming_png, clip_frames, pictures
from support.web import WebServer

needs_openvino = pytest.mark.skipif(not is_installed(), reason="needs the extra, streamdet[openvino]")


def run_export(*options: str) -> Result:
    return CliRunner().invoke(cli_export.command, list(options), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number, frame in enumerate(clip_frames(10)):
        cv2.imwrite(str(folder / f"{number}.png"), frame[::2, ::2, ::-1])
    return folder


@pytest.fixture(scope="module")
def int8_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    path = tmp_path_factory.mktemp("export") / "int8.safetensors"
    result = run_export("--int8", "--frames", str(folder), "--out", str(path), "--json")
    return path, json.loads(result.stdout)


@needs_openvino
def test_int8_runs_as_weights_and_keeps_most_detections(int8_file: tuple[Path, dict[str, object]]) -> None:
    path, report = int8_file
    assert report["precision"] == "int8"
    assert report["calibration_frames"] == 8
    assert report["small_head"] is False  # of so few frames it learns too little
    assert report["bytes_after"] == path.stat().st_size < report["bytes_before"] / 2  # type: ignore[operator]
    agreement = report["agreement"]
    assert agreement["frames"] == 2  # type: ignore[index]
    assert agreement["kept_share"] > 0.7  # type: ignore[index]
    detector = load_detector(DetectorConfig(weights=str(path), device="cpu", engine="openvino", precision="int8"))
    original = FasterRcnnDetector(load_weights_file(embedded_weights()), DetectorConfig(engine="torch", device="cpu"))
    shown = pictures(clip_frames(2))
    assert detector.labels == original.labels
    found, wanted = detector.detect(shown), original.detect(shown)
    assert sum(map(len, wanted)) > 10
    assert found != wanted
    assert measure_agreement(wanted, found).kept_share > 0.7


@needs_openvino
@pytest.mark.timeout(400)  # quantising and the training of a head: half a minute of two cores
def test_some_ten_frames_make_a_small_box_head_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, frame in enumerate(clip_frames(26)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame[::2, ::2, ::-1])
    path = tmp_path / "int8.safetensors"
    report = json.loads(run_export("--int8", "--frames", str(tmp_path), "--out", str(path), "--json").stdout)
    assert report["small_head"] is True
    weights = load_weights_file(path)
    original = FasterRcnnDetector(load_weights_file(embedded_weights()), DetectorConfig(engine="torch", device="cpu"))
    shown = pictures(clip_frames(2))
    wanted = original.detect(shown)
    for has_products in (True, False):
        monkeypatch.setattr(openvino, "has_int8_products", lambda has=has_products: has)
        found = FasterRcnnDetector(weights, DetectorConfig(engine="openvino", device="cpu")).detect(shown)
        assert measure_agreement(wanted, found).kept_share > 0.7


@needs_openvino
def test_an_export_of_weights_that_find_nothing_promises_nothing(folder: Path, tmp_path: Path) -> None:
    weights = load_weights_file(embedded_weights())
    weights.state["roi_heads.box_predictor.cls_score.bias"][0] += 20.0  # all is background
    path = tmp_path / "blind.safetensors"
    path.write_bytes(weights_to_bytes(weights))
    out = tmp_path / "fp32.safetensors"
    text = run_export("--weights", str(path), "--frames", str(folder), "--count", "10", "--out", str(out)).stdout
    assert "fp32 detects nothing on 2 frames that were kept back" in text
    assert "100" not in text.partition("fp32 detects")[2].partition(".")[0]
    build = build_model(weights.architecture, len(weights.labels))
    with pytest.raises(DataError, match=r"fp32\.safetensors is an export, which cannot be trained"):
        load_initial(build, out, list(weights.labels[1:]))


def test_a_name_that_would_not_be_read_as_weights_is_refused(tmp_path: Path) -> None:
    for name in ("x.pth", "x.pt"):
        with pytest.raises(ConfigError, match=r"--out: .* would be read as a state dict of torch"):
            run_export("--out", str(tmp_path / name))


def test_a_file_that_cannot_be_written_is_reported_before_minutes_of_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out: cannot write /proc/x\.safetensors"):
        run_export("--int8", "--frames", str(tmp_path / "none"), "--out", "/proc/x.safetensors")


@needs_openvino
def test_fp32_file_finds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "fp32.safetensors"
    output = run_export("--out", str(path)).stdout
    assert f'weights = "{path}"' in output.replace("\n", "")
    shown = pictures(clip_frames(2))
    found = load_detector(DetectorConfig(weights=str(path), device="cpu", engine="openvino", precision="fp32")).detect(
        shown
    )
    wanted = load_detector(DetectorConfig(engine="torch", precision="fp32", device="cpu")).detect(shown)
    agreement = measure_agreement(wanted, found)
    assert agreement.kept_share == 1
    assert agreement.added == 0
    assert agreement.score_difference < 1e-3
    assert agreement.box_difference_pixels < 0.5


@needs_openvino
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"engine": "torch", "precision": "int8"}, "engine: the weights are an OpenVINO file"),
        ({"engine": "openvino", "precision": "fp32"}, 'precision: the weights were exported in int8; use "auto"'),
    ],
)
def test_what_does_not_go_with_an_export(
    int8_file: tuple[Path, dict[str, object]], config: dict[str, str], expected: str
) -> None:
    with pytest.raises(DetectorError, match=expected):
        load_detector(DetectorConfig.model_validate({"weights": str(int8_file[0]), "device": "cpu", **config}))


@needs_openvino
def test_reference_and_a_second_export_refuse_an_export(
    int8_file: tuple[Path, dict[str, object]], folder: Path, tmp_path: Path
) -> None:
    config = DetectorConfig(weights=str(int8_file[0]), engine="reference", device="cpu")
    with pytest.raises(DetectorError, match='"reference" cannot run an OpenVINO file'):
        ReferenceDetector(load_weights(config), config)
    with pytest.raises(DetectorError, match="the weights are an export already"):
        run_export("--weights", str(int8_file[0]), "--out", str(tmp_path / "again"))


@needs_openvino
@pytest.mark.parametrize("damage", ["missing", "precision", "graph"])
def test_a_damaged_export_is_reported(int8_file: tuple[Path, dict[str, object]], tmp_path: Path, damage: str) -> None:
    tensors = load_file(int8_file[0])
    with safe_open(int8_file[0], framework="pt") as file:
        metadata = file.metadata()
    if damage == "missing":
        del tensors["features.bin"]
    elif damage == "precision":
        metadata["precision"] = "int1"
    else:
        tensors["features.xml"] = tensors["features.xml"][:100].clone()
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path, metadata)
    expected = {"missing": "no features.bin", "precision": "precision 'int1'", "graph": "cannot run these weights"}
    with pytest.raises(DetectorError, match=expected[damage]) as caught:
        load_detector(DetectorConfig(weights=str(path), device="cpu", engine="openvino", precision="int8"))
    assert "\n" not in str(caught.value)


def test_int8_needs_frames_and_a_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--int8 needs --frames"):
        run_export("--int8", "--out", str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="--out: there is no folder"):
        run_export("--out", str(tmp_path / "none" / "x"))


def test_frames_are_spread_over_a_folder_and_over_time(folder: Path, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    frames = read_frames(str(folder), 10, 1.0, lambda done, total: reported.append((done, total)))
    assert reported == [(number, 10) for number in range(1, 11)]
    wanted = [cv2.imread(str(folder / f"{number}.png"))[..., ::-1] for number in range(10)]
    assert all(np.array_equal(frame.to_rgb(), want) for frame, want in zip(frames, wanted, strict=True))
    # `clip_frames` takes one every three seconds.
    spread = read_frames(str(sample_clip()), 20, 1.0)
    assert len(spread) == 20
    assert np.array_equal(spread[3].to_rgb(), clip_frames(2)[1])
    assert len(read_frames(str(sample_clip()), 12, 0.0)) == 12


def test_too_few_or_broken_frames_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 0 frames; at least 10 are needed"):
        read_frames(str(tmp_path), 10, 1.0)
    for content in (claiming_png(100_000, 100_000), b""):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jpg cannot be decoded as a picture; take it out of the folder"):
            read_frames(str(tmp_path), 10, 1.0)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
        read_frames(str(tmp_path), 10, 1.0)
    with pytest.raises(DataError, match="is neither a folder of pictures nor a video or stream"):
        read_frames("gopher://user:secret@host/x", 10, 1.0)


def test_frames_of_a_camera(tmp_path: Path) -> None:
    with WebServer(tmp_path) as web:
        assert len(read_frames(web.url("/mjpeg"), 10, 0.0)) == 10


def test_agreement_counts_each_detection_once() -> None:
    person, other = Detection("person", 0.9, (0, 0, 10, 10)), Detection("person", 0.8, (0, 0, 10, 12))
    car = Detection("car", 0.7, (0, 0, 10, 10))
    far = Detection("person", 0.6, (50, 50, 60, 60))
    agreement = measure_agreement([[person, far], [], [car]], [[other, person, car], [far], []])
    assert (agreement.frames, agreement.detections, agreement.kept, agreement.added) == (3, 3, 1, 3)
    assert agreement.kept_share == pytest.approx(1 / 3)
    moved = measure_agreement([[person]], [[other]])
    assert moved.score_difference == pytest.approx(0.1)
    assert moved.box_difference_pixels == 2
    assert measure_agreement([[]], [[]]).kept_share == 1
