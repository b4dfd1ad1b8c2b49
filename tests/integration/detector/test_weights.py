"""Weights: every origin, every way in which they can be wrong, the download against a real HTTP server."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from streamdet.bench.cases import calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector import weights as weights_module
from streamdet.detector.missing import PUBLISHED_FILES, cache_folders
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.weights import Weights, load_weights, load_weights_file, weights_to_bytes
from streamdet.detector.weights import torchvision as published
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE, build_model
from streamdet.detector.weights.torchvision import PUBLISHED, coco_labels, download, find_published
from streamdet.errors import DataError, DetectorError
from streamdet.training.run import load_initial
from support.waiting import join

BODY = b"some bytes that stand for weights" * 100_000
SHA = hashlib.sha256(BODY).hexdigest()
M320 = PUBLISHED[0]


@pytest.fixture(scope="module")
def good() -> Weights:
    torch.manual_seed(0)
    model = build_model(EMBEDDED_ARCHITECTURE, 3)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    return Weights(EMBEDDED_ARCHITECTURE, state, ("__background__", "person", "car"), (0, 1, 3), 320, 512)


@pytest.fixture(scope="module")
def own_file(good: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    path.write_bytes(weights_to_bytes(good))
    return path


def unchecked(**config: str) -> DetectorConfig:
    """What no configuration file can ask for; other callers can."""
    return DetectorConfig.model_construct(**config)  # type: ignore[arg-type]


def error_of(**config: str) -> str:
    with pytest.raises(DetectorError) as caught:
        load_weights(unchecked(**config))
    message = str(caught.value)
    assert "\n" not in message
    return message


def save_pth(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


# --- files of our own


def test_own_file_comes_back_whole(good: Weights, own_file: Path) -> None:
    loaded = load_weights(DetectorConfig(weights=str(own_file)))
    assert replace(loaded, state={}) == replace(good, state={})
    assert all(torch.equal(loaded.state[name], t) for name, t in good.state.items())


def test_half_precision_comes_back_as_single(good: Weights, tmp_path: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in good.state.items()}
    path = tmp_path / "half.safetensors"
    path.write_bytes(weights_to_bytes(replace(good, state=half)))
    assert {t.dtype for t in load_weights_file(path).state.values()} == {torch.float32, torch.int64}


def test_missing_file(tmp_path: Path) -> None:
    assert "there is no weights file" in error_of(weights=str(tmp_path / "nothing.safetensors"))


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in error_of(weights=str(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"empty.{suffix}"
    path.touch()
    assert "is empty" in error_of(weights=str(path), model=M320)


def test_truncated_safetensors(own_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(own_file.read_bytes()[:-1000])
    assert "not a whole safetensors file" in error_of(weights=str(path))


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are no weights at all")
    assert "not a whole safetensors file" in error_of(weights=str(path))


def test_safetensors_of_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"x": torch.zeros(1)}))
    assert "has no description of its model" in error_of(weights=str(path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": "not json"}, "broken description"),
        ({"min_size": "wide"}, "broken description"),
        ({"architecture": "yolo"}, "the model 'yolo' is not known"),
        ({"labels": json.dumps(["__background__", "person"])}, "2 labels and 3 category ids"),
        ({"min_size": "0"}, "the input size 0 to 512"),
        ({"architecture": "fasterrcnn_resnet50_fpn"}, "does not fit fasterrcnn_resnet50_fpn"),
    ],
)
def test_broken_description(good: Weights, tmp_path: Path, change: dict[str, str], expected: str) -> None:
    metadata = {
        "format": "streamdet-weights-1",
        "architecture": good.architecture,
        "labels": json.dumps(good.labels),
        "category_ids": json.dumps(good.category_ids),
        "min_size": "320",
        "max_size": "512",
    }
    path = tmp_path / "broken.safetensors"
    path.write_bytes(save(good.state, metadata | change))
    assert expected in error_of(weights=str(path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("rpn.head.cls_logits.bias"), "missing: rpn.head.cls_logits.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "not expected: extra"),
        (lambda s: s.update({"rpn.head.cls_logits.bias": torch.zeros(5)}), "[5] instead of [6]"),
    ],
)
def test_state_that_does_not_fit(good: Weights, tmp_path: Path, change: object, expected: str) -> None:
    state = dict(good.state)
    change(state)  # type: ignore[operator]
    path = tmp_path / "misfit.safetensors"
    path.write_bytes(weights_to_bytes(replace(good, state=state)))
    assert expected in error_of(weights=str(path))


# --- state dicts of torchvision's


def test_pth_takes_its_classes_from_the_shapes(good: Weights, tmp_path: Path) -> None:
    path = save_pth(tmp_path / "three.pth", good.state)
    loaded = load_weights(unchecked(weights=str(path), model=EMBEDDED_ARCHITECTURE))
    assert loaded.labels == ("__background__", "class_1", "class_2")
    assert (loaded.min_size, loaded.max_size) == (320, 512)
    assert torch.equal(loaded.state["rpn.head.conv.0.0.weight"], good.state["rpn.head.conv.0.0.weight"])


def test_pth_of_91_classes_has_the_labels_of_coco(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "coco.pth", build_model(EMBEDDED_ARCHITECTURE, 91).state_dict())
    loaded = load_weights(unchecked(weights=str(path), model=EMBEDDED_ARCHITECTURE))
    assert loaded.labels == coco_labels()
    assert loaded.labels[1] == "person"


def test_pth_needs_a_model(good: Weights, tmp_path: Path) -> None:
    path = save_pth(tmp_path / "three.pth", good.state)
    message = error_of(weights=str(path))
    assert "detector.model is needed" in message
    assert M320 in message


def test_unknown_model_names_the_nearest(good: Weights, tmp_path: Path) -> None:
    path = save_pth(tmp_path / "three.pth", good.state)
    assert "did you mean 'fasterrcnn_resnet50_fpn'?" in error_of(weights=str(path), model="fasterrcn_resnet50_fpn")


def test_pth_of_another_architecture(good: Weights, tmp_path: Path) -> None:
    path = save_pth(tmp_path / "three.pth", good.state)
    assert f"does not fit {M320}" in error_of(weights=str(path), model=M320)


def test_pth_that_is_no_detector(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "linear.pth", torch.nn.Linear(2, 2).state_dict())
    assert "not a Faster R-CNN of torchvision's" in error_of(weights=str(path), model=M320)


def test_pth_with_something_else_inside(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "list.pth", {"epoch": 3})
    assert "contains no state dict" in error_of(weights=str(path), model=M320)


def test_truncated_pth(good: Weights, tmp_path: Path) -> None:
    path = save_pth(tmp_path / "cut.pth", good.state)
    path.write_bytes(path.read_bytes()[:-100_000])
    assert "cannot be read as a .pth file" in error_of(weights=str(path), model=EMBEDDED_ARCHITECTURE)


class _Code:
    """Unpickling it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pth_never_runs(tmp_path: Path, legacy: bool) -> None:
    harm = tmp_path / "harm"
    path = tmp_path / "code.pth"
    if legacy:
        path.write_bytes(pickle.dumps(_Code(harm), protocol=2))
    else:
        torch.save(_Code(harm), path)
    error_of(weights=str(path), model=M320)
    assert not harm.exists()


# --- files made to do harm, or by accident


def zeros_of(*shape: int) -> Tensor:
    """Two bytes that claim to be as many numbers as one likes."""
    return torch.zeros(1, dtype=torch.float16).expand(*shape)


def grown_by(work: Callable[[], object]) -> int:
    """Bytes by which the peak of memory rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


@pytest.mark.parametrize("is_zip", [True, False])
def test_numbers_that_a_file_does_not_have_take_no_memory(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "claims.pth"
    state = {"a": zeros_of(500_000_000), "roi_heads.box_predictor.cls_score.weight": zeros_of(3, 1024)}
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    assert path.stat().st_size < 10_000
    assert grown_by(lambda: error_of(weights=str(path), model=M320)) < 500 << 20
    assert f"does not fit {M320}" in error_of(weights=str(path), model=M320)
    with pytest.raises(DataError, match=r"no tensor of .* fits the model"):
        load_initial(build_model(EMBEDDED_ARCHITECTURE, 3), path, ["a"])


@pytest.mark.parametrize("classes", [0, 1, 10_001, 1 << 40])
def test_a_classifier_of_odd_size_is_refused(tmp_path: Path, classes: int) -> None:
    path = save_pth(tmp_path / "many.pth", {"roi_heads.box_predictor.cls_score.weight": zeros_of(classes, 1024)})
    assert f"its classifier has {classes} classes, not 2 to 10000" in error_of(weights=str(path), model=M320)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: t.long(), "int64"),
        (lambda t: t.to_sparse(), "sparse, quantised or without data"),
        (lambda t: t.to("meta"), "sparse, quantised or without data"),
    ],
)
def test_tensors_of_odd_kinds_are_refused(
    good: Weights, tmp_path: Path, odd: Callable[[Tensor], Tensor], expected: str
) -> None:
    name = "rpn.head.cls_logits.bias"
    path = save_pth(tmp_path / "odd.pth", good.state | {name: odd(good.state[name])})
    message = error_of(weights=str(path), model=EMBEDDED_ARCHITECTURE)
    assert expected in message or "cannot be read as a .pth file" in message


def test_double_and_half_precision_are_taken(good: Weights, tmp_path: Path) -> None:
    names = iter(good.state)
    first, second = next(names), next(names)
    state = good.state | {first: good.state[first].double(), second: good.state[second].half()}
    loaded = load_weights(unchecked(weights=str(save_pth(tmp_path / "d.pth", state)), model=EMBEDDED_ARCHITECTURE))
    assert {t.dtype for t in loaded.state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_that_are_no_numbers_are_refused(good: Weights, tmp_path: Path, kind: str, value: float) -> None:
    name = "roi_heads.box_head.fc6.weight"
    broken = good.state[name].clone()
    broken[0, 0] = value
    path = tmp_path / f"broken.{kind}"
    if kind == "pth":
        torch.save(good.state | {name: broken}, path)
    else:
        path.write_bytes(weights_to_bytes(replace(good, state=good.state | {name: broken})))
    assert f"numbers that are infinite or NaN: {name}" in error_of(weights=str(path), model=EMBEDDED_ARCHITECTURE)
    with pytest.raises((DataError, DetectorError), match="infinite or NaN"):
        load_initial(build_model(EMBEDDED_ARCHITECTURE, 3), path, list(good.labels[1:]))


def archive_bytes() -> bytearray:
    content = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, content)
    return bytearray(content.getvalue())


def of_version_99() -> bytes:
    content = archive_bytes()
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 6 : at + 8] = struct.pack("<H", 99)
        at = content.find(b"PK\x01\x02", at + 4)
    return bytes(content)


def with_a_name_that_is_no_text() -> bytes:
    content = archive_bytes()
    at = content.find(b"PK\x01\x02")
    flags = struct.unpack("<H", content[at + 8 : at + 10])[0]
    content[at + 8 : at + 10] = struct.pack("<H", flags | 0x800)
    content[at + 46] = 0xFF
    return bytes(content)


def that_python_cannot_read() -> bytes:
    """torch reads it: a directory in the form for large archives, said to lie on the second of two disks."""
    content = bytes(archive_bytes())
    end = content.rfind(b"PK\x05\x06")
    count, size, start = struct.unpack("<HII", content[end + 10 : end + 20])
    large = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, start)
    return content[:end] + large + struct.pack("<IIQI", 0x07064B50, 0, end, 2) + content[end:]


@pytest.mark.parametrize(
    "content",
    [of_version_99(), with_a_name_that_is_no_text(), that_python_cannot_read(), b"PK\x03\x04 and then nothing", b"PK"],
)
def test_damaged_archives_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    assert "cannot be read as a .pth file" in error_of(weights=str(path), model=M320)


def test_a_text_that_is_called_pth_is_damaged(tmp_path: Path) -> None:
    """pickle's error for it is a number alone."""
    path = tmp_path / "text.pth"
    path.write_text("hi")
    assert error_of(weights=str(path), model=M320).endswith("text.pth cannot be read as a .pth file: it is damaged")


def described(good: Weights, **change: str) -> dict[str, str]:
    return {
        "format": "streamdet-weights-1",
        "architecture": good.architecture,
        "labels": json.dumps(good.labels),
        "category_ids": json.dumps(good.category_ids),
        "min_size": "320",
        "max_size": "512",
    } | change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": "[" * 100_000}, "broken description"),
        ({"labels": json.dumps(["__background__", "<b>\x1b[2J", "car"])}, "printable characters are allowed"),
        ({"labels": json.dumps(["__background__", "x" * 101, "car"])}, "printable characters are allowed"),
        ({"labels": json.dumps(["__background__", "", "car"])}, "printable characters are allowed"),
        ({"labels": json.dumps(["__background__", "car", "car"])}, "label 'car' twice"),
        ({"labels": json.dumps({"a": 1, "b": 2, "c": 3})}, "the labels are not a list of strings"),
        ({"labels": json.dumps(["__background__", 1, 2])}, "the labels are not a list of strings"),
        ({"category_ids": json.dumps([0, 1, 2**63])}, "whole numbers from 0 to 2^63 - 1"),
        ({"category_ids": json.dumps([0, 1, 1e400])}, "whole numbers from 0 to 2^63 - 1"),
        ({"category_ids": json.dumps([0, 1, -1])}, "whole numbers from 0 to 2^63 - 1"),
        ({"min_size": "60000", "max_size": "60000"}, "the input size 60000 to 60000 pixels; 32 to 4096 are allowed"),
        ({"min_size": "1", "max_size": "1"}, "32 to 4096 are allowed"),
        ({"min_size": "9" * 5000}, "broken description"),
        ({"architecture": "\x1b[2J" * 1000}, "is not known to this version"),
    ],
)
def test_hostile_descriptions(good: Weights, tmp_path: Path, change: dict[str, str], expected: str) -> None:
    path = tmp_path / "hostile.safetensors"
    # Whatever stands in the file: the description is refused before any tensor is read.
    path.write_bytes(save({"x": torch.zeros(1)}, described(good, **change)))
    message = error_of(weights=str(path))
    assert expected in message
    assert message.isprintable()
    assert len(message) < 600


def test_shapes_are_refused_before_tensors_are_read(
    good: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = {"a\n": {"dtype": "F8_E4M3", "shape": [900 << 20], "data_offsets": [0, 900 << 20]}}
    content = json.dumps(header | {"__metadata__": described(good)}).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + (900 << 20))
    message = ""

    def load() -> None:
        nonlocal message
        message = error_of(weights=str(path))

    assert grown_by(load) < 500 << 20
    assert r"not expected: 'a\n'" in message


def test_a_long_header_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "header.safetensors"
    content = b'{"__metadata__":{"x":"' + b"a" * (5 << 20) + b'"}}'
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    assert f"claims {len(content)} bytes of header" in error_of(weights=str(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is a pipe, socket or device" in error_of(weights=str(tmp_path / "pipe.safetensors"))


@pytest.mark.parametrize(
    ("zeroed", "expected"),
    [
        ("backbone.", "the backbone returns the same for every picture"),
        ("rpn.", "the proposal network returns the same for every picture"),
        ("roi_heads.", "the classifier returns the same for every picture"),
    ],
)
def test_weights_that_see_nothing_are_refused_at_the_start(zeroed: str, expected: str) -> None:
    calibrated = calibrated_weights(EMBEDDED_ARCHITECTURE)
    state = {n: torch.zeros_like(t) if n.startswith(zeroed) else t for n, t in calibrated.state.items()}
    config = DetectorConfig(device="cpu", engine="torch", precision="fp32", max_batch_size=1)
    with pytest.raises(DetectorError, match=expected):
        FasterRcnnDetector(replace(calibrated, state=state), config).warm_up()


def test_weights_whose_results_are_no_numbers_are_refused_at_the_start() -> None:
    calibrated = calibrated_weights(EMBEDDED_ARCHITECTURE)
    # Each is finite; what they make of a picture is not.
    state = {n: t * 1e30 if n.startswith("backbone.body") else t for n, t in calibrated.state.items()}
    config = DetectorConfig(device="cpu", engine="torch", precision="fp32", max_batch_size=1)
    with pytest.raises(DetectorError, match="the backbone returns numbers that are infinite or NaN"):
        FasterRcnnDetector(replace(calibrated, state=state), config).warm_up()


# --- torchvision's published weights


def test_coco_needs_one_of_four_models() -> None:
    assert "detector.model is needed with weights = 'coco'" in error_of(weights="coco")
    assert M320 in error_of(weights="coco", model=EMBEDDED_ARCHITECTURE)


def test_an_export_of_another_version_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "yard-int8.safetensors"
    path.write_bytes(save({"features.xml": torch.zeros(1, dtype=torch.uint8)}, {"format": "streamdet-openvino-1"}))
    assert "exported by another version of streamdet; make it again with `streamdet export`" in error_of(
        weights=str(path)
    )


def test_every_published_name_carries_its_hash() -> None:
    for architecture in PUBLISHED:
        name = published.published_weights(architecture).url.rpartition("/")[2]
        assert PUBLISHED_FILES[architecture] == name
        assert len(published._hash_prefix(name)) == 8
        int(published._hash_prefix(name), 16)


def test_cache_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert cache_folders() == (tmp_path / "cache" / "streamdet", tmp_path / "torch" / "hub" / "checkpoints")


def test_a_file_of_torch_hub_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole way of weights = "coco", with a file whose hash the published URL is made to carry."""
    state = {name: t.half() for name, t in build_model(M320, 91).state_dict().items() if t.is_floating_point()}
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"{M320}-{digest[:8]}.pth").write_bytes(content.getvalue())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"http://127.0.0.1:9/{M320}-{digest[:8]}.pth"
    monkeypatch.setattr(weights_module, "find_published", lambda architecture: find_published(architecture, url))
    loaded = load_weights(DetectorConfig(weights="coco", model=M320))
    assert loaded.labels[1] == "person"
    assert (loaded.min_size, loaded.max_size) == (320, 640)


def test_a_damaged_cached_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "w-01234567.pth").write_bytes(b"damaged")
    with pytest.raises(DetectorError, match=r"w-01234567\.pth is damaged.*delete it"):
        find_published(M320, "http://127.0.0.1:9/w-01234567.pth", (tmp_path,))


def test_epsilon_of_the_old_weights_is_made_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With an epsilon of 1e-5 the repaired normalisation computes what the original does with 0."""
    variance = torch.tensor([1e-6, 1e-3, 1.0])
    state = {"n.weight": torch.tensor([1.0, 2.0, 3.0]), "n.running_var": variance}
    path = tmp_path / "x.pth"
    path.write_bytes(BODY)
    name = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.url.rpartition("/")[2]
    assert published.repair_published("fasterrcnn_resnet50_fpn", path, state) is state  # not the published file
    monkeypatch.setattr(published, "hash_matches", lambda file, wanted: wanted == name)
    repaired = published.repair_published("fasterrcnn_resnet50_fpn", path, state)
    torch.testing.assert_close(repaired["n.weight"] / (variance + 1e-5).sqrt(), state["n.weight"] / variance.sqrt())
    assert published.repair_published("fasterrcnn_resnet50_fpn_v2", path, state) is state


# --- the download


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000] if "cut" in self.path else BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        join(thread)


def test_a_download_is_logged_and_leaves_the_file_alone(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / f"w-{SHA[:8]}.pth"
    with caplog.at_level(logging.INFO):
        download(f"{server}/w-{SHA[:8]}.pth", target)
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]
    assert f"downloading w-{SHA[:8]}.pth" in caplog.text
    assert capsys.readouterr().err == ""  # a bar is for terminals


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    name = f"w-{SHA[:8]}.pth"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DetectorError, match="timed out"):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/{name}", tmp_path / name, timeout_seconds=0.2)
    assert socket.getdefaulttimeout() is None
    assert list(tmp_path.iterdir()) == []


def test_find_downloads_once(server: str, tmp_path: Path) -> None:
    url = f"{server}/w-{SHA[:8]}.pth"
    path = find_published(M320, url, (tmp_path,))
    assert path.read_bytes() == BODY
    assert find_published(M320, "http://127.0.0.1:9/" + path.name, (tmp_path,)) == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("w-00000000.pth", f'invalid hash value (expected "00000000", got "{SHA}")'),
        (f"cut-{SHA[:8]}.pth", "invalid hash value"),
        (f"missing-{SHA[:8]}.pth", "the server answers 404"),
    ],
)
def test_a_bad_download_leaves_nothing(server: str, tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(DetectorError) as caught:
        download(f"{server}/{name}", tmp_path / name)
    message = str(caught.value)
    assert expected in message
    assert f"download {server}/{name} elsewhere and put it at {tmp_path / name}" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_offline_says_which_file_to_put_where(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/w-{SHA[:8]}.pth"
        with pytest.raises(DetectorError) as caught:
            find_published(M320, url, (tmp_path / "cache",))
    assert "Connection refused" in str(caught.value)
    assert f"download {url} elsewhere and put it at {tmp_path / 'cache' / f'w-{SHA[:8]}.pth'}" in str(caught.value)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DetectorError, match=r"cannot write to .* set XDG_CACHE_HOME"):
        download("http://127.0.0.1:9/w-0.pth", tmp_path / "file" / "w-0.pth")


def test_published_state_is_left_alone_by_name(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {}
    assert published.repair_published(EMBEDDED_ARCHITECTURE, tmp_path / "none", state) is state
