# ruff: noqa: INP001 - a program, not a module
"""Compares each kind of layer of the embedded weights in OpenVINO, and each stage, with the time that it must take.

    .venv/bin/python benchmarks/floor.py --precision int8

The floor of a layer is the longer of two times: its arithmetic at the highest speed that was measured here for its
precision, and the bytes that it reads and writes at the speed of copying maps of this size. Depthwise convolutions have
no matrix products, so their arithmetic is set against that of vectors, in fp32; so is a box head that runs in fp32
beside int8. A stage beside the network moves bytes. All in one thread; of many rounds the shortest time counts, because
other processes only lengthen it. Times of layers are OpenVINO's own, those of stages are CPU time.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from streamdet.assets import sample_clip
from streamdet.bench import frames
from streamdet.bench.floor import measure_peak
from streamdet.config import DetectorConfig
from streamdet.detector.device import use_threads
from streamdet.detector.engines.openvino import (
    ExportedDense,
    Precision,
    convert_box_head,
    convert_features,
    core,
    has_int8_products,
    whole_features,
)
from streamdet.detector.memory import keep_memory
from streamdet.detector.pipeline import FasterRcnnDetector, StageOutputs, prepare_model, weights_for
from streamdet.detector.weights import Weights, load_weights

if TYPE_CHECKING:
    import openvino

_ROUNDS = 30
_SIZE = (1920, 1080)
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_BYTES = {"FP32": 4, "BF16": 2, "FP16": 2, "I8": 1, "U8": 1}


@dataclass
class Kind:
    """Layers of one kind, or a stage.

    Attributes:
        milliseconds: that they take.
        floor_ms: that they must take.
        count: how many there are.
    """

    milliseconds: float = 0.0
    floor_ms: float = 0.0
    count: int = 0

    def add(self, milliseconds: float, floor_ms: float) -> None:
        """Adds one layer."""
        self.milliseconds += milliseconds
        self.floor_ms += floor_ms
        self.count += 1


@dataclass(frozen=True)
class Machine:
    """What one core reaches: operations and bytes per second."""

    peak: float
    vector_peak: float
    bandwidth: float


def copy_bandwidth(megabytes: int = 4) -> float:
    """Bytes per second of one thread, read and written, that copying a map between caches and memory reaches."""
    source = np.ones(megabytes << 20, np.uint8)
    target = np.empty_like(source)
    best = math.inf
    for _ in range(100):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def layers_of(model: openvino.Model, precision: Precision, machine: Machine) -> dict[str, Kind]:
    """Times of the layers of a model of fixed shape, by kind, and their floors."""
    operations = {op.get_friendly_name(): _operations(op) for op in model.get_ops()}
    settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    compiled = core().compile_model(model, "CPU", settings | {"ENABLE_CPU_PINNING": False, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    random = np.random.default_rng(0)
    given = [(random.random(list(port.shape)) * 255).astype(port.element_type.to_dtype()) for port in model.inputs]
    times: defaultdict[str, float] = defaultdict(lambda: math.inf)
    for _ in range(_ROUNDS):
        request.infer(given)
        for layer in request.profiling_info:
            times[layer.node_name] = min(times[layer.node_name], 1000 * layer.real_time.total_seconds())
    kinds: dict[str, Kind] = {}
    for node in compiled.get_runtime_model().get_ops():
        took = times.get(node.get_friendly_name(), math.inf)
        info = node.get_rt_info()
        if not 0 < took < math.inf:
            continue  # it was fused with another
        count = max((operations.get(name, 0) for name in _original_names(info)), default=0)
        kind = _kind(model, info)
        peak = machine.vector_peak if kind.startswith("depthwise") else machine.peak
        floor = max(count / peak, _moved_bytes(node) / machine.bandwidth)
        kinds.setdefault(kind, Kind()).add(took, 1000 * floor)
    return kinds


def _text(info: openvino.RTMap, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _original_names(info: openvino.RTMap) -> list[str]:
    return _text(info, "originalLayersNames").split(",")


def _kind(model: openvino.Model, info: openvino.RTMap) -> str:
    kind = _text(info, "layerType")
    if kind in {"TopK", "NonMaxSuppression", "Gather"}:
        return "proposals"
    if kind in {"FullyConnected", "FullyConnectedQuantizedLegacy", "MatMul"}:
        return "matrix products"
    if kind == "Convolution":
        names = set(_original_names(info))
        found = [op for op in model.get_ops() if op.get_friendly_name() in names]
        if any(op.get_type_name() == "GroupConvolution" for op in found):
            return "depthwise convolutions"
        sizes = [op.input(1).get_shape()[2:] for op in found if op.get_type_name() == "Convolution"]
        return f"convolutions of {'x'.join(map(str, sizes[0]))}"
    return "conversions and others"


def _operations(op: openvino.Node) -> int:
    """A multiply-add counts as two; what is neither convolution nor matrix product counts as none."""
    kind = op.get_type_name()
    if kind not in {"Convolution", "GroupConvolution", "MatMul"}:
        return 0
    weights = list(op.input(1).get_shape())
    each = weights[1] if kind == "MatMul" else math.prod(weights[2 if kind == "GroupConvolution" else 1 :])
    count: int = 2 * math.prod(op.output(0).shape) * each
    return count


def _moved_bytes(node: openvino.Node) -> int:
    """Of maps and constants, each once."""
    ports = [port.get_source_output() for port in node.inputs()] + list(node.outputs())
    return sum(math.prod(port.shape) * _BYTES.get(_precision(port.get_node()), 4) for port in ports)


def _precision(node: openvino.Node) -> str:
    return _text(node.get_rt_info(), "outputPrecisions").split(",")[0]


def stages_of(
    detector_config: DetectorConfig, weights: Weights, machine: Machine
) -> tuple[dict[str, Kind], StageOutputs]:
    """CPU time of each stage of one frame of 1080p, and its floor where it only moves bytes; and what they yield."""
    times: defaultdict[str, float] = defaultdict(lambda: math.inf)
    ends = [0.0]

    def on_stage(stage: str, _seconds: float) -> None:
        now = time.process_time()
        times[stage] = min(times[stage], 1000 * (now - ends[0]))
        ends[0] = time.process_time()

    detector = FasterRcnnDetector(weights_for(detector_config, weights), detector_config, on_stage)
    shown = frames.read_frames(sample_clip(), _SIZE, 1)
    for _ in range(_ROUNDS):
        pictures = frames.pictures(shown, 1)
        ends[0] = time.process_time()
        outputs = detector.run(pictures)
    small = 3 * math.prod(outputs.batch.input_sizes[0])
    pool_rows = outputs.regions.numel() * 4  # each value from four places
    bytes_of = {
        # Of three rows of the frame, two are read; all of the frame in fp32.
        "input": math.prod(_SIZE) * 3 // 2 + (small if outputs.images[0].numel() == small else 3 * math.prod(_SIZE)),
        "preprocess": outputs.images[0].numel() + outputs.batch.tensor.element_size() * outputs.batch.tensor.numel(),
        "roi_pool": 4 * (pool_rows + outputs.regions.numel()),
        "postprocess": 4 * (outputs.classified.scores.numel() + outputs.classified.deltas.numel()),
    }
    return {
        stage: Kind(took, 1000 * bytes_of.get(stage, 0) / machine.bandwidth, 1) for stage, took in times.items()
    }, outputs


def features_of(weights: Weights, exported: ExportedDense | None) -> openvino.Model:
    """The graph of the features with the head of the RPN."""
    if exported is not None:
        return core().read_model(*exported.features)
    return convert_features(prepare_model(weights, torch.device("cpu")))


def box_head_floor(weights: Weights, exported: ExportedDense | None, precision: Precision, machine: Machine) -> float:
    """Seconds that the arithmetic of the box head takes for a region."""
    small = exported and exported.small_head
    if small:
        count = 2 * sum(layer.weight.numel() for layer in small.children() if isinstance(layer, nn.Linear))
    else:
        graph = convert_box_head(prepare_model(weights, torch.device("cpu")))
        graph.reshape([1, *graph.inputs[0].get_partial_shape().get_max_shape()[1:]])
        count = sum(map(_operations, graph.get_ops()))
    in_fp32 = precision == "fp32" or (small and not has_int8_products())
    return count / (machine.vector_peak if in_fp32 else machine.peak)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="int8")
    precision: Precision = parser.parse_args().precision
    keep_memory()
    use_threads(1)
    cpu = torch.device("cpu")
    peak, vectors = (measure_peak(name, cpu, 1, clock=time.process_time) or 0.0 for name in (precision, "fp32"))
    machine = Machine(peak, vectors, copy_bandwidth())
    print(f"one thread: {peak / 1e9:.0f} GOP/s in {precision}, {vectors / 1e9:.0f} in fp32, "  # noqa: T201 - its result
          f"{machine.bandwidth / 1e9:.1f} GB/s")  # fmt: skip
    config = DetectorConfig(engine="openvino", precision=precision, max_batch_size=1)
    weights = load_weights(config)
    stages, outputs = stages_of(config, weights, machine)
    batch = outputs.batch.tensor
    exported = weights_for(config, weights).exported
    graph = features_of(weights, exported)
    size = (batch.shape[2], batch.shape[3])
    whole = whole_features(graph, prepare_model(weights, cpu), size, precision)
    rows = {f"features: {kind}": found for kind, found in layers_of(whole, precision, machine).items()}
    stages["classify"].floor_ms = 1000 * len(outputs.regions) * box_head_floor(weights, exported, precision, machine)
    # The features' time is that of their layers, or nearly.
    rows |= {f"stage {stage}": found for stage, found in stages.items() if stage != "features"}
    print("| what | layers | ms | floor, ms | of the floor |\n|---|---|---|---|---|")  # noqa: T201 - its result
    for name, found in rows.items():
        share = f"{100 * found.floor_ms / found.milliseconds:.0f} %"
        print(f"| {name} | {found.count} | {found.milliseconds:.2f} | {found.floor_ms:.2f} | {share} |")  # noqa: T201 - the same
    took, floor = (sum(getattr(found, key) for found in rows.values()) for key in ("milliseconds", "floor_ms"))
    print(f"| all | | {took:.2f} | {floor:.2f} | {100 * floor / took:.0f} % |")  # noqa: T201 - the same


main()
