"""OpenVINO finds what torchvision's own forward finds, on real video; nothing of it reports to anyone."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models.detection import FasterRCNN

from streamdet.assets import embedded_int8_weights, embedded_weights
from streamdet.bench.cases import calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector.agreement import measure_agreement
from streamdet.detector.device import use_threads
from streamdet.detector.engines import make_dense
from streamdet.detector.engines import openvino as openvino_dense
from streamdet.detector.engines.openvino import (
    OpenVinoDense,
    compile_model,
    core,
    cpu_precisions,
    has_int8_products,
    is_installed,
    load_openvino,
)
from streamdet.detector.engines.opset import make_graph, operations
from streamdet.detector.engines.pytorch import TorchDense
from streamdet.detector.engines.small_head import SmallHead
from streamdet.detector.pipeline import FasterRcnnDetector, load_detector, prepare_model, weights_for
from streamdet.detector.trial import settle
from streamdet.detector.weights import Weights, load_embedded_int8, load_weights_file, weights_to_bytes
from streamdet.detector.weights.architectures import ARCHITECTURES, EMBEDDED_ARCHITECTURE, outline_model
from streamdet.errors import DetectorError
from streamdet.extras import how_to_install
from support.detecting import EASY, clip_frames, forward, pictures, reference
from support.waiting import join

pytestmark = [pytest.mark.skipif(not is_installed(), reason="needs the extra, streamdet[openvino]"), pytest.mark.slow]

Rgb = NDArray[np.uint8]

CPU = torch.device("cpu")
OPENVINO = EASY.model_copy(update={"engine": "openvino", "precision": "fp32"})
TORCH_FP32 = {"engine": "torch", "precision": "fp32"}
TORCH = EASY.model_copy(update=TORCH_FP32)


@pytest.fixture(scope="module")
def frames() -> list[Rgb]:
    return clip_frames(3)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return calibrated_weights(EMBEDDED_ARCHITECTURE)


def dense_of(weights: Weights, config: DetectorConfig) -> OpenVinoDense:
    dense = make_dense(prepare_model(weights, CPU), config, CPU)
    assert isinstance(dense, OpenVinoDense)
    return dense


def torch_dense_of(weights: Weights) -> TorchDense:
    return TorchDense(prepare_model(weights, CPU))


def assert_keeps(expected: list[dict[str, torch.Tensor]], weights: Weights, frames: list[Rgb]) -> None:
    """Each of torchvision's detections has its counterpart; a hair's breadth below the threshold counts too."""
    config = OPENVINO.model_copy(update={"score_threshold": OPENVINO.score_threshold - 1e-3})
    for wanted, found in zip(expected, FasterRcnnDetector(weights, config).detect(pictures(frames)), strict=True):
        for box, score, label in zip(wanted["boxes"], wanted["scores"], wanted["labels"], strict=True):
            assert any(
                d.label == weights.labels[label]
                and abs(d.score - score) <= 1e-3
                and (torch.tensor(d.box) - box).abs().max() <= 0.5
                for d in found
            )
        assert len(found) <= len(wanted["boxes"]) + 2


def noise(*shape: int) -> torch.Tensor:
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 4 - 2
    return images.contiguous(memory_format=torch.channels_last)


def assert_close(dense: OpenVinoDense, expected: TorchDense, images: torch.Tensor) -> None:
    """Equal to the rounding of a deep network, whose values are about 1."""
    levels, wanted_levels = dense.features(images), expected.features(images)
    objectness, _ = expected.rpn_head(wanted_levels)
    most = outline_model(EMBEDDED_ARCHITECTURE, 7).eval().rpn.pre_nms_top_n()
    wanted = [t.flatten(1).topk(min(t[0].numel(), most), dim=1).values for t in objectness]
    logits = torch.stack([proposed.logits for proposed in dense.propose(levels)])
    for found, want in zip((*levels, logits), (*wanted_levels, torch.cat(wanted, 1)), strict=True):
        assert found.shape == want.shape
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "fasterrcnn_resnet50_fpn"])
def test_every_architecture_equals_torchvision(
    architecture: str, frames: list[Rgb], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ARCHITECTURES[architecture]

    def build_with_fewer_proposals(num_classes: int) -> FasterRCNN:
        model = build(num_classes)
        model.rpn._post_nms_top_n["testing"] = 60  # a thousand would take the largest model half a minute
        return model

    monkeypatch.setitem(ARCHITECTURES, architecture, build_with_fewer_proposals)
    weights = calibrated_weights(architecture)
    expected = forward(reference(weights, OPENVINO), frames[:1])
    assert len(expected[0]["boxes"]) >= 5
    assert_keeps(expected, weights, frames[:1])


def test_frames_of_different_sizes_equal_torchvision(weights: Weights, frames: list[Rgb]) -> None:
    mixed = [frames[0], np.ascontiguousarray(frames[1][:, 100:400]), np.ascontiguousarray(frames[2][50:300, :])]
    model = reference(weights, OPENVINO)
    expected = [forward(model, [frame])[0] for frame in mixed]
    assert min(len(e["boxes"]) for e in expected) >= 3
    assert_keeps(expected, weights, mixed)


ODD_SIZES = (
    (1080, 1920), (576, 704), (480, 640), (288, 352), (1920, 1080), (500, 1000), (1000, 500), (480, 720), (416, 640),
    (608, 608), (607, 577), (333, 777), (800, 601), (97, 513), (513, 97), (720, 480), (240, 1000), (360, 300),
    (410, 321), (321, 410), (150, 400), (400, 150), (222, 512), (250, 800), (31, 400), (640, 400), (300, 360),
)  # fmt: skip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the daemon computes; several threads of one operation wait for each other on a busy machine."""
    before = torch.get_num_threads()
    use_threads(1)
    yield
    use_threads(before)


@pytest.fixture
def with_int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exported box head runs, whatever CPU this is."""
    monkeypatch.setattr(openvino_dense, "has_int8_products", lambda: True)


@pytest.mark.usefixtures("one_thread", "with_int8_products")
@pytest.mark.timeout(300)  # two dozen compilations: ten seconds of one core
def test_int8_over_two_dozen_canvases(frames: list[Rgb], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[list[int]] = []

    def compile_and_note(model: Any, *args: Any) -> Any:
        shapes.append(list(model.inputs[0].shape))  # raises where one is left open
        return compile_model(model, *args)

    monkeypatch.setattr(openvino_dense, "compile_model", compile_and_note)
    config = DetectorConfig(device="cpu", engine="openvino", score_threshold=0.5)
    detector = FasterRcnnDetector(load_weights_file(embedded_int8_weights()), config)
    exact = FasterRcnnDetector(load_weights_file(embedded_weights()), config.model_copy(update=TORCH_FP32))
    found, wanted = [], []
    for number, (height, width) in enumerate(ODD_SIZES):
        shown = pictures([np.ascontiguousarray(cv2.resize(frames[number % len(frames)], (width, height)))])
        wanted += exact.detect(shown)
        # More than have room: the models of those that came first leave on the way.
        found += detector.detect(shown)
    agreement = measure_agreement(wanted, found)
    assert agreement.detections > 50
    assert agreement.kept_share > 0.85
    assert agreement.score_difference < 0.05
    canvases = {tuple(shape) for shape in shapes if shape[-1] == 3}
    assert len(canvases) >= 20
    assert {tuple(shape) for shape in shapes if shape[-1] != 3} == {(64, 7, 7, 128), (16, 7, 7, 128)}


@pytest.mark.usefixtures("one_thread")
def test_the_small_box_head_is_in_int8_where_the_cpu_has_products_of_it(
    frames: list[Rgb], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DetectorConfig(device="cpu", engine="openvino", score_threshold=0.3)
    exact = FasterRcnnDetector(load_weights_file(embedded_weights()), config.model_copy(update=TORCH_FP32))
    rounded: set[bool] = set()

    def compile_and_note(model: Any, *args: Any) -> Any:
        if model.inputs[0].shape[-1] != 3:
            rounded.add(any(op.get_type_name() == "FakeQuantize" for op in model.get_ops()))
        return compile_model(model, *args)

    monkeypatch.setattr(openvino_dense, "compile_model", compile_and_note)
    for has_products in (False, True):
        rounded.clear()
        monkeypatch.setattr(openvino_dense, "has_int8_products", lambda has=has_products: has)
        found = FasterRcnnDetector(load_embedded_int8(), config).detect(pictures(frames))
        assert rounded == {has_products}
        agreement = measure_agreement(exact.detect(pictures(frames)), found)
        assert agreement.detections > 10
        assert agreement.kept_share > 0.85
        assert agreement.score_difference < 0.06


@pytest.mark.parametrize(
    ("cpuinfo", "isa", "has"),
    [
        ("model name : x\nflags\t\t: fpu avx2 fma\n\nprocessor : 1\nflags : avx_vnni", "", False),
        ("flags : fpu avx512f avx512_vnni", "", True),
        ("flags : fpu avx512f avx512_vnni", "AVX2", False),
        ("flags : fpu avx_vnni", "AVX2_VNNI", True),
        ("Features : fp asimd asimddp", "", True),
        ("Features : fp asimd", "", False),
        ("CPU part : 0x1", "", True),
        (None, "", True),
    ],
)
def test_what_the_cpu_multiplies_is_read_from_its_flags(
    tmp_path: Path, cpuinfo: str | None, isa: str, *, has: bool
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert has_int8_products(path, {"ONEDNN_MAX_CPU_ISA": isa}) is has


def test_a_model_of_open_height_and_width_is_refused() -> None:
    exported = load_weights_file(embedded_int8_weights()).exported
    assert exported is not None
    for part in (exported.features, exported.box_head):
        with pytest.raises(ValueError, match="the shape of an input is not fixed"):
            compile_model(core().read_model(*part), "int8", 1, 1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"<net ", b"<ten ", "cannot run these weights"),
        (b"<net ", b"<!DOCTYPE x><net ", "declarations in its XML"),
        (b"</net>", b"", "cannot run these weights"),
        (b'type="Convolution"', b'type="Loop"', "cannot run these weights"),
    ],
)
def test_hostile_graphs_are_refused_in_one_line(tmp_path: Path, old: bytes, new: bytes, expected: str) -> None:
    exported = load_weights_file(embedded_int8_weights())
    assert exported.exported is not None
    features, box_head = (
        (xml.replace(old, new), data) for xml, data in (exported.exported.features, exported.exported.box_head)
    )
    path = tmp_path / "hostile.safetensors"
    dense = replace(exported.exported, features=features, box_head=box_head)
    path.write_bytes(weights_to_bytes(replace(exported, exported=dense)))
    with pytest.raises(DetectorError, match=expected) as caught:
        FasterRcnnDetector(load_weights_file(path), DetectorConfig(device="cpu", engine="openvino"))
    assert "\n" not in str(caught.value)


def mangled(part: str, number: int, change: Callable[[Any, Any], Any]) -> Weights:
    """The weights in int8, with one output of a graph changed.

    Args:
        part: `features` or `box_head`.
        number: of the output.
        change: given OpenVINO's operations and the output, what takes its place.
    """
    weights = load_embedded_int8()
    assert weights.exported is not None
    graph = core().read_model(*getattr(weights.exported, part))
    outputs = [result.input_value(0) for result in graph.get_results()]
    outputs[number] = change(operations(), outputs[number])
    results = [operations().result(output) for output in outputs]
    changed = make_graph(results, graph.get_parameters(), graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        load_openvino().save_model(changed, str(path), compress_to_fp16=False)
        content = (path.read_bytes(), path.with_suffix(".bin").read_bytes())
    return replace(weights, exported=replace(weights.exported, **{part: content}))


@pytest.mark.parametrize("part", ["features", "box_head"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda ops, output: ops.reduce_max(output, list(range(len(output.partial_shape)))), "its outputs are"),
        (lambda ops, output: ops.unsqueeze(output, [1]), "its outputs are"),
        (lambda ops, output: ops.concat([output, output], 0), "its outputs are"),
        (lambda ops, output: ops.convert(output, "f16"), "it takes or yields f16"),
    ],
    ids=["no dimension", "a dimension more", "twice as many", "half precision"],
)
def test_outputs_of_another_shape_or_type_are_refused(
    part: str, change: Callable[[Any, Any], Any], expected: str
) -> None:
    with pytest.raises(DetectorError, match=f"cannot run these weights.*{expected}"):
        FasterRcnnDetector(mangled(part, 0, change), DetectorConfig(device="cpu", engine="openvino"))


def test_a_graph_that_fits_one_size_alone_is_refused_in_one_line() -> None:
    # The size that is looked at when a file is read.
    weights = mangled("features", 0, lambda ops, output: ops.add(output, np.zeros((1, 40, 40, 1), np.float32)))
    detector = FasterRcnnDetector(weights, DetectorConfig(device="cpu", engine="openvino", max_batch_size=1))
    with pytest.raises(DetectorError, match=r"cannot run these weights.*inconsistent") as caught:
        detector.warm_up()
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_model_is_refused() -> None:
    exported = load_weights_file(embedded_int8_weights())
    fewer = replace(exported, labels=exported.labels[:-1], category_ids=exported.category_ids[:-1])
    with pytest.raises(DetectorError, match=r"its outputs have \[7, 28\] channels instead of \[6, 24\]"):
        FasterRcnnDetector(fewer, DetectorConfig(device="cpu", engine="openvino"))


def test_a_small_box_head_of_another_model_is_refused() -> None:
    exported = load_weights_file(embedded_int8_weights())
    assert exported.exported is not None
    for head, expected in (
        (SmallHead(7 * 7 * 64, 8, 16, 7), "takes 3136 numbers and knows 7 classes"),
        (SmallHead(7 * 7 * 128, 8, 16, 6), "takes 6272 numbers and knows 6 classes"),
    ):
        other = replace(exported, exported=replace(exported.exported, small_head=head))
        with pytest.raises(DetectorError, match=f"cannot run these weights.*{expected}"):
            FasterRcnnDetector(other, DetectorConfig(device="cpu", engine="openvino"))


@pytest.mark.usefixtures("with_int8_products")
def test_an_exported_constant_that_is_no_number_is_found_at_the_start() -> None:
    exported = load_weights_file(embedded_int8_weights())
    assert exported.exported is not None
    xml, constants = exported.exported.box_head
    broken = np.frombuffer(constants, np.uint8).copy()
    floats = broken[len(broken) % 4 :].view(np.float32)
    floats[np.isfinite(floats) & (abs(floats) > 1e-3) & (abs(floats) < 1)] = np.nan
    dense = replace(exported.exported, box_head=(xml, broken.tobytes()))
    config = DetectorConfig(device="cpu", engine="openvino", max_batch_size=1)
    with pytest.raises(DetectorError, match="the classifier returns"):
        FasterRcnnDetector(replace(exported, exported=dense), config).warm_up()


def sizes_of(dense: OpenVinoDense) -> list[tuple[int, int]]:
    return list(dense._models._of_size)  # type: ignore[attr-defined]


def test_a_size_is_compiled_once_while_others_go_on(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dense_of(weights, OPENVINO)
    dense.features(noise(1, 3, 96, 160))
    begun, go_on = threading.Event(), threading.Event()
    compiled: list[object] = []

    def compile_slowly(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        compiled.append(args)
        return compile_model(*args)

    monkeypatch.setattr(openvino_dense, "compile_model", compile_slowly)
    several = [dense, *(dense.for_another_thread() for _ in range(2))]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(each.features, noise(1, 3, 64, 96)) for each in several[:2]]
        assert begun.wait(60)
        several[2].features(noise(1, 3, 96, 160))
        assert not any(one.done() for one in waiting)
        go_on.set()
        one, two = (future.result() for future in waiting)
    assert len(compiled) == 1
    assert sorted(sizes_of(dense)) == [(64, 96), (96, 160)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# As OpenVINO says it where a limit of the process leaves it no memory (RLIMIT_AS).
@pytest.mark.parametrize(
    "message",
    [
        "std::bad_alloc",
        "Exception from src/inference/src/dev/plugin.cpp:54:\ncan't alloc",
        "Exception from src/inference/src/cpp/core.cpp:112:\nResource temporarily unavailable",
    ],
)
def test_a_size_that_cannot_be_compiled_is_tried_again(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    dense = dense_of(weights, OPENVINO)

    def run_out(*_: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr(openvino_dense, "compile_model", run_out)
    with pytest.raises(MemoryError):
        dense.features(noise(1, 3, 64, 96))
    assert sizes_of(dense) == []
    int8 = FasterRcnnDetector(load_embedded_int8(), DetectorConfig(device="cpu", engine="openvino"))._dense
    with pytest.raises(MemoryError):
        int8.box_head(noise(3, 128, 7, 7))
    monkeypatch.setattr(openvino_dense, "compile_model", compile_model)
    dense.features(noise(1, 3, 64, 96))
    assert len(int8.box_head(noise(3, 128, 7, 7))[0]) == 3


def test_who_is_interrupted_while_it_waits_leaves_the_model_to_others(weights: Weights) -> None:
    class Interrupted(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            raise KeyboardInterrupt

    dense = dense_of(weights, OPENVINO)
    compiling = dense._models._of_size[64, 96] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        dense.features(noise(1, 3, 64, 96))
    assert dense._models._of_size[64, 96] is compiling


def test_every_size_is_exact_however_many_there_are(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_dense, "_KEPT_MODELS", 2)
    monkeypatch.setattr(openvino_dense, "available_bytes", lambda: 0)
    dense, expected = dense_of(weights, OPENVINO), torch_dense_of(weights)
    for width in (64, 96, 128, 64, 96, 128):
        assert_close(dense, expected, noise(2, 3, 64, width))
    assert sizes_of(dense) == [(64, 96), (64, 128)]
    # Where memory is free, more are kept, within limits.
    monkeypatch.setattr(openvino_dense, "available_bytes", lambda: 1 << 40)
    monkeypatch.setattr(openvino_dense, "_MOST_MODELS", 3)
    for width in (64, 160):
        dense.features(noise(1, 3, 64, width))
    assert sizes_of(dense) == [(64, 128), (64, 64), (64, 160)]


def test_sizes_that_no_stream_sends_any_more_are_released(weights: Weights) -> None:
    dense = dense_of(weights, OPENVINO)
    dense.prepare((64, 96))
    assert sizes_of(dense) == [(64, 96)]
    dense.release(unused_seconds=60)
    assert sizes_of(dense) == [(64, 96)]
    dense.prepare((64, 128))
    began = time.monotonic()
    dense.features(noise(1, 3, 64, 128))
    dense.prepare((64, 128))
    dense.release(unused_seconds=(time.monotonic() - began) / 2)
    assert sizes_of(dense) == [(64, 128)]
    dense.features(noise(1, 3, 64, 96))


def test_a_batch_keeps_its_results_when_the_next_one_runs(weights: Weights) -> None:
    dense = dense_of(weights, OPENVINO)
    for images in (noise(1, 3, 64, 96), noise(8, 3, 64, 96), noise(8, 3, 64, 96)):
        levels = dense.features(images)
        before = [level.clone() for level in levels]
        dense.features(images + 1)
        assert all(torch.equal(a, b) for a, b in zip(levels, before, strict=True))


def test_threads_share_the_weights_and_get_their_own_results(weights: Weights) -> None:
    first, expected = dense_of(weights, OPENVINO), torch_dense_of(weights)
    workers = [first, *(first.for_another_thread() for _ in range(3))]
    assert len({id(worker._models) for worker in workers}) == 1  # type: ignore[attr-defined]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with torch.inference_mode():
                for _ in range(5):
                    assert_close(workers[number], expected, noise(2, 3, 64, 96) + number)
        except BaseException as error:  # noqa: BLE001 - of another thread; shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert failures == []


def test_levels_of_another_batch_are_refused(weights: Weights) -> None:
    dense = dense_of(weights, OPENVINO)
    levels = dense.features(noise(1, 3, 64, 64))
    dense.features(noise(1, 3, 64, 64))
    with pytest.raises(ValueError, match="not the level maps that `features` returned last"):
        dense.propose(levels)


def test_box_head_takes_any_number_of_regions(weights: Weights) -> None:
    dense, expected = dense_of(weights, OPENVINO), torch_dense_of(weights)
    for count in (0, 1, 16, 33, 64, 150):
        for found, want in zip(
            dense.box_head(noise(count, 128, 7, 7)), expected.box_head(noise(count, 128, 7, 7)), strict=True
        ):
            torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


def test_bf16_only_where_the_cpu_has_it(weights: Weights) -> None:
    config = OPENVINO.model_copy(update={"precision": "bf16"})
    if "bf16" not in cpu_precisions():
        with pytest.raises(DetectorError, match='precision: this CPU has no bf16; use "auto" or "fp32"'):
            dense_of(weights, config)
        return
    # Random weights make rounding grow from layer to layer; trained ones do not.
    trained = load_weights_file(embedded_weights())
    found = dense_of(trained, config).features(noise(1, 3, 96, 160))
    wanted = torch_dense_of(trained).features(noise(1, 3, 96, 160))
    assert all((a - b).abs().mean() < 0.05 * b.abs().mean() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("change", "device", "expected"),
    [
        ({"precision": "int8"}, "cpu", r'precision: "int8" needs weights that `streamdet export --int8` made'),
        ({}, "cuda:0", r"device: .* runs on the CPU alone, not on cuda:0"),
    ],
)
def test_what_openvino_cannot_do_is_said(weights: Weights, change: dict[str, str], device: str, expected: str) -> None:
    with pytest.raises(DetectorError, match=expected):
        make_dense(prepare_model(weights, CPU), OPENVINO.model_copy(update=change), torch.device(device))


@pytest.mark.usefixtures("_engines_known")
def test_auto_runs_what_has_proven_itself_here(frames: list[Rgb]) -> None:
    config = DetectorConfig(device="cpu")
    settings, choice = settle(config)
    assert choice is not None
    assert choice.is_proven
    assert "auto" not in {settings.engine, settings.precision, settings.max_batch_size}
    found = load_detector(config).detect(pictures(frames))
    assert found == load_detector(settings).detect(pictures(frames))
    wanted = load_detector(DetectorConfig(device="cpu", engine="torch", precision="fp32")).detect(pictures(frames))
    assert measure_agreement(wanted, found).kept_share > 0.85


def test_the_embedded_weights_have_an_int8_form_for_openvino_alone(weights: Weights) -> None:
    int8 = DetectorConfig(engine="openvino", precision="int8")
    assert weights_for(int8, weights).exported is not None
    for other in ({"engine": "torch"}, {"precision": "fp32"}, {"weights": "mine.safetensors"}):
        assert weights_for(int8.model_copy(update=other), weights) is weights


def test_a_missing_extra_is_said_in_one_line(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    load_openvino.cache_clear()
    try:
        how = re.escape(how_to_install("openvino"))
        with pytest.raises(DetectorError, match=rf'^openvino is not installed .*{how}; or set engine = "torch"$'):
            load_openvino()
    finally:
        load_openvino.cache_clear()


def test_nothing_is_reported_to_the_makers(tmp_path: Path) -> None:
    code = """if True:
        import socket, sys
        def connect(*args): raise SystemExit(f"connects to {args[1:]}")
        socket.socket.connect = connect
        socket.getaddrinfo = connect
        from streamdet.detector.engines.openvino import load_nncf, load_openvino
        import torch
        openvino = load_openvino()
        model = openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
        load_nncf().quantize(model, load_nncf().Dataset([torch.zeros(1, 2).numpy()] * 3))
        print(sorted(m for m in sys.modules if "telemetry" in m and sys.modules[m] is not None and "openvino_t" in m))
    """
    # CI is where their own switch would be off.
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert not [path for path in tmp_path.rglob("*") if "intel" in path.name or "telemetry" in path.name]
