"""`streamdet trace`: the page explains, stands alone, and its numbers are those of the detector."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from streamdet.assets import sample_clip
from streamdet.cli.trace import command
from streamdet.config import DetectorConfig
from streamdet.detector.pipeline import ArrayPicture, load_detector
from streamdet.detector.weights import Weights, weights_to_bytes
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE, build_model
from streamdet.errors import StreamdetError
from streamdet.monitoring.metrics import STAGES
from streamdet.trace.draw import heat, signed
from streamdet.trace.page import human_bytes, render_page
from streamdet.trace.read import read_picture
from streamdet.trace.run import trace_picture
from support.detecting import claiming_png
from support.web import WebServer

THRESHOLD = 0.3


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights whose classifier prefers one class a little, so that there are detections."""
    torch.manual_seed(0)
    model = build_model(EMBEDDED_ARCHITECTURE, 3)
    state = model.state_dict()
    state["roi_heads.box_predictor.cls_score.bias"][1] += 1.0
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    labels = ("__background__", "person", "car")
    path.write_bytes(weights_to_bytes(Weights(EMBEDDED_ARCHITECTURE, dict(state), labels, (0, 1, 3), 160, 320)))
    return path


@pytest.fixture(scope="module")
def rgb() -> np.ndarray[Any, np.dtype[np.uint8]]:
    with av.open(str(sample_clip())) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def image(rgb: np.ndarray[Any, np.dtype[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "frame.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path


EXACTLY: Any = {"device": "cpu", "engine": "torch", "precision": "fp32"}
EXACT = ("--device", "cpu", "--engine", "torch", "--precision", "fp32")


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=True)


def error_of(*args: object) -> str:
    result = run(*args)
    assert isinstance(result.exception, StreamdetError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "srcset", "action"}:
                self.references.append(value or "")
            if name == "id":
                self.ids.add(value or "")


def test_page_and_json_of_a_picture(weights: Path, image: Path, tmp_path: Path) -> None:
    args = (
        "--weights",
        weights,
        "--score-threshold",
        THRESHOLD,
        "--device",
        "cpu",
        "--engine",
        "torch",
        "--precision",
        "fp32",
        "--json",
    )
    result = run(image, "--out", tmp_path / "new" / "folder", *args)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    assert report["frame"] == {"width": 768, "height": 576}
    for stage in report["stages"]:
        assert stage["milliseconds"] > 0
        assert len(stage["explanation"]) > 200
        for datum in stage["inputs"] + stage["outputs"]:
            assert datum["bytes"] == np.prod(datum["shape"]) * np.dtype(datum["dtype"]).itemsize
    assert report["stages"][0]["inputs"][0]["shape"] == [576, 768, 3]
    assert report["stages"][1]["outputs"][0]["shape"] == [1, 3, 160, 224]
    page = _Page(Path(report["page"]).read_text("utf-8"))
    assert set(STAGES) <= page.ids
    assert len([r for r in page.references if r.startswith("data:image/")]) > 20
    assert all(r.startswith("data:image/") or r[1:] in page.ids for r in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_an_engine_without_stages_is_refused(image: Path, tmp_path: Path) -> None:
    result = run(image, "--out", tmp_path, "--engine", "reference")
    assert result.exit_code == 2
    assert "'reference' is not one of 'auto', 'torch', 'openvino'" in result.output


def test_detections_are_the_detector_s(weights: Path, rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    config = DetectorConfig(
        weights=str(weights), score_threshold=THRESHOLD, device="cpu", engine="torch", precision="fp32"
    )
    trace = trace_picture(config, ArrayPicture(rgb), "frame")
    (expected,) = load_detector(config).detect([ArrayPicture(rgb)])
    assert list(trace.detections) == expected
    assert len(expected) > 3
    survivors = trace.stages[-1].survivors
    assert [(s.label, s.score) for s in survivors] == [(d.label, d.score) for d in expected]
    assert any(s.suppressed_scores for s in survivors)
    for survivor in survivors:
        assert list(survivor.suppressed_scores) == sorted(survivor.suppressed_scores, reverse=True)
        assert all(THRESHOLD < score <= survivor.score for score in survivor.suppressed_scores)
    candidates = int(trace.stages[-1].figures[0].caption.split()[2])
    assert sum(len(s.suppressed_scores) for s in survivors) + len(survivors) <= candidates


def test_nothing_found_still_makes_a_page(weights: Path) -> None:
    config = DetectorConfig(weights=str(weights), score_threshold=1.0, **EXACTLY)
    page = render_page(trace_picture(config, ArrayPicture(np.zeros((48, 64, 3), np.uint8)), "<script>alert()</script>"))
    assert "<b>nothing</b>" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


@pytest.mark.parametrize("shape", [(20_000, 40), (66_000, 1), (1, 66_000), (1, 1)])
def test_strips_and_dots_make_a_page(weights: Path, shape: tuple[int, int]) -> None:
    """A JPEG has no side of more than 65,500 pixels."""
    config = DetectorConfig(weights=str(weights), score_threshold=THRESHOLD, **EXACTLY)
    trace = trace_picture(config, ArrayPicture(np.full((*shape, 3), 100, np.uint8)), "strip")
    for stage in trace.stages:
        for figure in stage.figures:
            assert max(figure.picture.shape[:2]) <= 4096
    assert "data:image/" in render_page(trace)


def test_a_video_s_frame_and_the_table(weights: Path, tmp_path: Path) -> None:
    result = run(sample_clip(), "--frame", 3, "--out", tmp_path, "--weights", weights, *EXACT)
    assert result.exit_code == 0, result.output
    for stage in STAGES:
        assert stage in result.output
    assert (tmp_path / "trace.html").stat().st_size > 100_000


def test_errors_are_one_line(weights: Path, image: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    assert "No such file" in error_of(tmp_path / "none.png", *out)
    assert "cannot be decoded as a picture" in error_of(tmp_path / "text.png", *out)
    assert "cannot be decoded as a picture" in error_of(tmp_path / "empty.jpg", *out)
    (tmp_path / "claims.png").write_bytes(claiming_png(100_000, 100_000))
    assert "cannot be decoded as a picture" in error_of(tmp_path / "claims.png", *out)
    assert "ends after 600 frames; --frame asks for number 601" in error_of(sample_clip(), "--frame", 601, *out)
    assert "there is no weights file" in error_of(image, "--weights", tmp_path / "none", *out)
    assert '--device: is "abacus"; must be "auto"' in error_of(image, "--device", "abacus", *out)
    assert "--model: is missing; weights" in error_of(image, "--weights", "coco", *out)
    assert "cannot write" in error_of(image, "--weights", weights, *EXACT, "--out", image / "below")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "no description" in error_of(image, "--weights", tmp_path / "x.safetensors", *out)


def test_secrets_of_a_url_stay_secret(tmp_path: Path) -> None:
    message = error_of("rtsp://user:topsecret@127.0.0.1:9/stream", "--out", tmp_path)
    assert "topsecret" not in message
    assert "127.0.0.1:9 refuses the connection" in message


def test_a_frame_of_a_camera(tmp_path: Path) -> None:
    with WebServer(tmp_path) as web:
        picture = read_picture(web.url("/mjpeg"), 2)
    assert (picture.width, picture.height) == (64, 48)


def test_colours_mean_what_the_page_says() -> None:
    low, high = heat(np.array([[0.0, 1.0]], np.float32))[0].astype(int)
    assert low.sum() < high.sum()
    below, zero, above = signed(np.array([[-1.0, 0.0, 1.0]], np.float32), 1.0)[0].astype(int)
    assert below[2] > below[0]
    assert above[0] > above[2]
    assert zero.min() > 240


def test_bytes_for_people() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 5 << 20)] == ["0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB"]
