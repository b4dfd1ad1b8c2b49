"""The dense parts of the detector in OpenVINO, on the CPU.

In this order: loading the library; converting the modules of torch to OpenVINO's graphs; such graphs in a file; running
them. Graphs leave the size of a picture open, and are compiled for one fixed size each: int8 models of open size end
the process on CPUs with AMX.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN

from streamdet.detector.engines.normalising import with_normalising
from streamdet.detector.engines.proposing import Proposed, with_proposals
from streamdet.detector.engines.pytorch import ChannelsLastHead
from streamdet.detector.engines.small_head import (
    SMALL_HEAD_PREFIX,
    SmallHead,
    small_head_from_tensors,
    small_head_to_tensors,
)
from streamdet.detector.memory import available_bytes
from streamdet.detector.stages.preprocess import Size
from streamdet.errors import DetectorError
from streamdet.extras import how_to_install

if TYPE_CHECKING:
    import openvino

Precision = Literal["fp32", "bf16", "int8"]

FORMAT_FAMILY = "streamdet-openvino-"
FORMAT = f"{FORMAT_FAMILY}2"
"""Of a file with exported dense parts, as its metadata name it."""

_GRAPHS = ("features.xml", "features.bin", "box_head.xml", "box_head.bin")  # tensors of bytes in such a file

# What OpenVINO computes with where the model itself does not say int8.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_TELEMETRY = "openvino_telemetry"

_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_ISAS_WITHOUT_PRODUCTS = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}

_EXAMPLE_PIXELS = 128  # any size does; the converted model takes all
_POOLED_PIXELS = 7

# The graph of the largest architecture has 1 MB.
_MAX_GRAPH_BYTES = 16 << 20
# What a graph in a file may hold: no loops, and in a picture of this size no map of more numbers; ours have 2 million.
_CONTROL_FLOW = {"If", "Loop", "TensorIterator"}
_CHECKED_PIXELS = 320
_MOST_NUMBERS = 1 << 26
_REASON_CHARACTERS = 300

# Models for this number of sizes are kept; up to the second number while this memory is free. A model takes 30 to
# 40 MB with the embedded weights, 200 MB with those of a ResNet-50, and a quarter of a second and more to make.
_KEPT_MODELS = 8
_MOST_MODELS = 32
_SPARE_BYTES = 2 << 30
# Regions that go through the box head at once; the rest, and pictures that have few, use the smaller portion.
_REGIONS = 64
_FEW_REGIONS = 16

_log = logging.getLogger(__name__)


# ---- the library ----


def is_installed() -> bool:
    """Whether OpenVINO can be imported; does not import it."""
    return importlib.util.find_spec("openvino") is not None


@cache
def load_openvino() -> ModuleType:
    """The module `openvino`.

    Raises:
        DetectorError: it is not installed.
    """
    return _load("openvino", extra="openvino", instead='; or set engine = "torch"')


def load_nncf() -> ModuleType:
    """The module `nncf`, which quantises.

    Raises:
        DetectorError: it is not installed.
    """
    return _load("nncf", extra="export")


def _load(name: str, *, extra: str, instead: str = "") -> ModuleType:
    # Importing openvino or nncf reports to their maker over the network, unless this module cannot be imported.
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type] # None is how Python spells "cannot be imported"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about each other, nothing that a user could change
            return importlib.import_module(name)
    except ImportError as error:
        msg = f"{name} is not installed ({error}): {how_to_install(extra)}{instead}"
        raise DetectorError(msg) from None


@cache
def core() -> openvino.Core:
    """OpenVINO's own beginning; one for the process.

    Raises:
        DetectorError: OpenVINO is not installed.
    """
    made: openvino.Core = load_openvino().Core()
    return made


def has_int8_products(cpuinfo: Path = Path("/proc/cpuinfo"), environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the CPU multiplies and adds numbers of 8 bits in one instruction: VNNI, AMX, or Arm's dot products.

    Args:
        cpuinfo: where the kernel shows the CPU's flags; true where that cannot be read.
        environ: may keep oneDNN from newer instructions.
    """
    if environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_PRODUCTS:
        return False
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return True
    lines = [line.partition(":")[2].split() for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return not lines or not _PRODUCT_FLAGS.isdisjoint(lines[0])


def cpu_precisions() -> set[Precision]:
    """What the CPU computes with natively.

    Raises:
        DetectorError: OpenVINO is not installed.
    """
    names: dict[str, Precision] = {"FP32": "fp32", "BF16": "bf16", "INT8": "int8"}
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {names[name] for name in capabilities if name in names}


# ---- converting ----


def convert_features(model: FasterRCNN) -> openvino.Model:
    """Makes one OpenVINO model of the backbone, the feature pyramid and the head of the RPN.

    Its input is float32 [batch, height, width, 3]; its outputs are the level maps, then the objectness of each level,
    then the deltas of each level, all float32 [batch, height / stride, width / stride, channels].

    Args:
        model: prepared by `pipeline.prepare_model`, on the CPU.
    """
    example = torch.zeros(1, _EXAMPLE_PIXELS, _EXAMPLE_PIXELS, 3)
    return _convert(_FeaturesAndRpnHead(model.backbone, model.rpn.head), example)


def convert_box_head(model: FasterRCNN) -> openvino.Model:
    """Makes an OpenVINO model of the box head and its predictor.

    Its input is float32 [regions, 7, 7, channels]; its outputs are class logits and deltas.
    """
    return _convert_head(BoxHead(model), model.backbone.out_channels)


def convert_small_head(small: SmallHead) -> openvino.Model:
    """The same of a small box head."""
    return _convert_head(small, small.inputs // _POOLED_PIXELS**2)


def _convert_head(head: nn.Module, channels: int) -> openvino.Model:
    example = torch.zeros(2, _POOLED_PIXELS, _POOLED_PIXELS, channels)
    converted = _convert(head, example)
    converted.reshape([-1, *example.shape[1:]])
    return converted


class _FeaturesAndRpnHead(nn.Module):
    """As one graph: the maps need not leave the layout that convolutions like best.

    Channels come last at both ends, as they lie in the memory of the stages before and after.
    """

    def __init__(self, backbone: nn.Module, rpn_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn_head = rpn_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = list(self.backbone(images.permute(0, 3, 1, 2)).values())
        objectness, deltas = self.rpn_head(levels)
        return tuple(t.permute(0, 2, 3, 1) for t in (*levels, *objectness, *deltas))


class BoxHead(nn.Module):
    """The box head and its predictor in torch, for regions whose channels come last.

    Args:
        model: prepared by `pipeline.prepare_model`.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self._head = ChannelsLastHead(model.roi_heads.box_head)
        self._predictor = model.roi_heads.box_predictor

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and deltas of regions, float32 [regions, 7, 7, channels]."""
        logits, deltas = self._predictor(self._head(regions))
        return logits, deltas


@torch.no_grad()
def _convert(module: nn.Module, example: Tensor) -> openvino.Model:
    with warnings.catch_warnings():
        # OpenVINO reads what torch traced; torch deprecates tracing, and says so at every module.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), example, check_trace=False)  # type: ignore[no-untyped-call] # torch's own
        model: openvino.Model = load_openvino().convert_model(traced, example_input=example)
    return model


# ---- in a file ----


@dataclass(frozen=True, eq=False)
class ExportedDense:
    """The dense parts of a detector, as OpenVINO writes them.

    Attributes:
        precision: that they were exported in.
        features: graph (XML) and its constants, of what `convert_features` makes.
        box_head: the same, of what `convert_box_head` or `convert_small_head` makes.
        small_head: what `box_head` was made of, for CPUs where products of int8 are no faster; None if it is the
            original.
    """

    precision: Precision
    features: tuple[bytes, bytes]
    box_head: tuple[bytes, bytes]
    small_head: SmallHead | None = None


def is_part(name: str) -> bool:
    """Whether a tensor of such a file is one of those that `dense_from_tensors` reads."""
    return name in _GRAPHS or name.startswith(SMALL_HEAD_PREFIX)


def dense_to_tensors(dense: ExportedDense) -> dict[str, Tensor]:
    """The contents as named tensors, graphs as bytes, for a safetensors file."""
    contents = zip(_GRAPHS, (*dense.features, *dense.box_head), strict=True)
    tensors = {name: torch.from_numpy(np.frombuffer(content, np.uint8).copy()) for name, content in contents}
    return tensors | (small_head_to_tensors(dense.small_head) if dense.small_head else {})


def dense_from_tensors(tensors: Mapping[str, Tensor], precision: str) -> ExportedDense:
    """The inverse of `dense_to_tensors`.

    Raises:
        ValueError: a part is missing or strange, or the precision is not known.
    """
    if precision not in {"fp32", "int8"}:
        msg = f"precision {precision!r}"
        raise ValueError(msg)
    missing = [name for name in _GRAPHS if name not in tensors or tensors[name].dtype is not torch.uint8]
    if missing:
        msg = f"no {', '.join(missing)}"
        raise ValueError(msg)
    contents = [tensors[name].numpy().tobytes() for name in _GRAPHS]
    for graph in (contents[0], contents[2]):
        if len(graph) > _MAX_GRAPH_BYTES or b"<!" in graph:
            msg = f"a graph of more than {_MAX_GRAPH_BYTES >> 20} MiB, or with declarations in its XML"
            raise ValueError(msg)
    features, box_head = (contents[0], contents[1]), (contents[2], contents[3])
    return ExportedDense(cast("Precision", precision), features, box_head, small_head_from_tensors(tensors))


def _check_fit(
    features: openvino.Model, box_head: openvino.Model, small_head: SmallHead | None, model: FasterRCNN
) -> None:
    """Compares the parts of a file with what a model's dense parts take and yield, before any memory is taken.

    Raises:
        ValueError: they differ, or a map would be too large.
        RuntimeError: raised by OpenVINO if the graphs do not accept pictures or regions.
    """
    channels: int = model.backbone.out_channels
    classes: int = model.roi_heads.box_predictor.cls_score.out_features
    shapes = model.rpn.anchor_generator.num_anchors_per_location()
    wanted = [channels] * len(shapes) + shapes + [4 * n for n in shapes]
    for graph, shape, dimensions, last in (
        (features, [1, _CHECKED_PIXELS, _CHECKED_PIXELS, 3], 4, wanted),
        (box_head, [_FEW_REGIONS, 7, 7, channels], 2, [classes, 4 * classes]),
    ):
        fixed = graph.clone()
        fixed.reshape(shape)
        for operation in fixed.get_ops():
            if operation.get_type_name() in _CONTROL_FLOW:
                msg = f"it has an operation {operation.get_type_name()}"
                raise ValueError(msg)
            for port in operation.outputs():
                if port.partial_shape.is_dynamic or math.prod(port.shape) > _MOST_NUMBERS:
                    msg = f"an operation {operation.get_type_name()} yields {port.partial_shape}"
                    raise ValueError(msg)
        _check_ports(fixed, dimensions, last)
    with_proposals(_of_shape(features, [1, _CHECKED_PIXELS, _CHECKED_PIXELS, 3]), model.rpn)
    if small_head and (small_head.inputs, small_head.classes) != (channels * _POOLED_PIXELS**2, classes):
        msg = f"its small box head takes {small_head.inputs} numbers and knows {small_head.classes} classes"
        raise ValueError(msg)


def _check_ports(graph: openvino.Model, dimensions: int, channels: list[int]) -> None:
    """Compares types and shapes of a graph of fixed shape with what is asked of it.

    Args:
        graph: its first input is for as many pictures or regions as its outputs are to be of.
        dimensions: of each output.
        channels: of the outputs, the last number of their shapes.

    Raises:
        ValueError: they differ.
    """
    types = {port.element_type.get_type_name() for port in (*graph.inputs, *graph.outputs)}
    if types != {"f32"}:
        msg = f"it takes or yields {', '.join(sorted(types - {'f32'}))}"
        raise ValueError(msg)
    shapes, count = [list(port.shape) for port in graph.outputs], graph.inputs[0].shape[0]
    if any(len(shape) != dimensions or shape[0] != count for shape in shapes):
        msg = f"its outputs are {shapes}"
        raise ValueError(msg)
    found = [shape[-1] for shape in shapes]
    if found != channels:
        msg = f"its outputs have {found} channels instead of {channels}"
        raise ValueError(msg)


# ---- running ----


def whole_features(graph: openvino.Model, model: FasterRCNN, size: Size, precision: Precision) -> openvino.Model:
    """What runs for pictures of one size: the network, in int8 from pixels on, and up to proposals.

    Args:
        graph: made by `convert_features`.
        model: gives the mean and deviation of pixels, and what proposals are made by.
        size: height and width of the batch in pixels, multiples of 32.
        precision: to compute with.
    """
    made = _of_shape(graph, [1, *size, 3])
    if _takes_bytes(precision):
        made = with_normalising(made, model.transform.image_mean, model.transform.image_std)
    return with_proposals(made, model.rpn)


def _takes_bytes(precision: Precision) -> bool:
    return precision == "int8"


def _of_shape(model: openvino.Model, shape: list[int]) -> openvino.Model:
    own = model.clone()
    own.reshape(shape)
    return own


def compile_model(model: openvino.Model, precision: Precision, workers: int, threads: int) -> openvino.CompiledModel:
    """Makes machine code of a model.

    Args:
        model: as read or converted, for inputs of one fixed shape.
        precision: to compute with; "int8" needs a quantised model.
        workers: threads that will infer at the same time; they share one copy of the weights.
        threads: CPU threads for one inference.

    Raises:
        ValueError: a side of an input is left open: in int8, such models end the process on CPUs with AMX.
    """
    shapes = [port.partial_shape for port in model.inputs]
    if any(shape.is_dynamic for shape in shapes):
        msg = f"the shape of an input is not fixed: {', '.join(map(str, shapes))}"
        raise ValueError(msg)
    return core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": workers * threads,
            # Pinned threads of several models, or of another process, would all sit on the first cores.
            "ENABLE_CPU_PINNING": False,
        },
    )


class OpenVinoDense:
    """Runs the dense parts in OpenVINO; see `Dense`.

    Pictures of a batch go through one after the other: what a picture needs stays in the cache that way, and one
    compiled model serves batches of any length. Threads beside each other are what uses several cores.

    Args:
        models: what to run; shared between threads.
    """

    def __init__(self, models: _Models) -> None:
        self._models = models
        self._proposed: tuple[list[Tensor], list[Proposed]] | None = None

    @property
    def takes_bytes(self) -> bool:
        """See `Dense`."""
        return self._models.takes_bytes

    @classmethod
    def of_model(cls, model: FasterRCNN, precision: Precision) -> Self:
        """Converts a model of torch.

        Args:
            model: prepared by `pipeline.prepare_model`, on the CPU.
            precision: fp32 or bf16.

        Raises:
            DetectorError: OpenVINO is not installed, or the CPU has no such precision.
        """
        if precision == "int8":
            msg = 'detector.precision: "int8" needs weights that `streamdet export --int8` made; use "auto" or "fp32"'
            raise DetectorError(msg)
        if precision not in cpu_precisions():
            msg = f'detector.precision: this CPU has no {precision}; use "auto" or "fp32"'
            raise DetectorError(msg)
        heads = model.roi_heads
        # Two large matrix products are as fast in torch, or faster when there are few regions.
        torch_head = None
        if precision == "bf16" or _has_convolutions(heads.box_head):
            box_head = convert_box_head(model)
        else:
            box_head, torch_head = None, BoxHead(model)
        return cls(_Models(convert_features(model), model, box_head, torch_head, precision))

    @classmethod
    def of_export(cls, exported: ExportedDense, model: FasterRCNN) -> Self:
        """Takes what `streamdet export` made.

        Args:
            exported: read from a file.
            model: whose dense parts these should be.

        Raises:
            DetectorError: OpenVINO is not installed, or cannot read it, or it is of another model.
        """
        with _memory_errors(), _graph_errors():
            features, box_head = (
                core().read_model(xml, constants) for xml, constants in (exported.features, exported.box_head)
            )
            _check_fit(features, box_head, exported.small_head, model)
        if exported.small_head and not has_int8_products():
            box_head = convert_small_head(exported.small_head)
        return cls(_Models(features, model, box_head, None, exported.precision))

    def features(self, images: Tensor, input_sizes: Sequence[Size] = ()) -> list[Tensor]:
        """See `Dense`; proposals are made along with the maps, and `propose` yields them."""
        pixels = images.permute(0, 2, 3, 1).contiguous()
        size = (int(pixels.shape[1]), int(pixels.shape[2]))
        with _memory_errors():
            outputs, proposed = _run_pictures(self._models.features(size), pixels, input_sizes or [size] * len(pixels))
        levels = [output.permute(0, 3, 1, 2) for output in outputs]
        self._proposed = (levels, proposed)
        return list(levels)

    def propose(self, levels: Sequence[Tensor]) -> list[Proposed]:
        """See `ProposingDense`."""
        if self._proposed is None or any(a is not b for a, b in zip(levels, self._proposed[0], strict=True)):
            msg = "these are not the level maps that `features` returned last"
            raise ValueError(msg)
        _, proposed = self._proposed
        self._proposed = None
        return proposed

    def box_head(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dense`."""
        by_place = regions.permute(0, 2, 3, 1).contiguous()  # as they lie in memory: no copy
        if self._models.torch_head is not None:
            logits, deltas = self._models.torch_head(by_place)
            return logits, deltas
        with _memory_errors():
            outputs = _run_regions(self._models.box_head(_REGIONS), self._models.box_head(_FEW_REGIONS), by_place)
        return outputs[0], outputs[1]

    def prepare(self, size: Size) -> None:
        """See `Dense`: compiles the model for this size unless it is already compiled."""
        with _memory_errors():
            self._models.features(size)

    def release(self, unused_seconds: float) -> None:
        """See `Dense`."""
        for height, width in self._models.release(unused_seconds):
            _log.debug("released the model for %d x %d, which no stream has sent for a while", width, height)

    def for_another_thread(self) -> Self:
        """One that shares the compiled models and their weights; to be called before the first inference."""
        self._models.workers += 1
        return type(self)(self._models)


class _Models:
    """Compiles a model for each size of picture when it is first needed, once for all threads.

    Few sizes occur, because one side of a picture is always the shortest or the longest that its weights look at. The
    models of those that were used last are kept.

    Args:
        features: converted by `convert_features`.
        model: gives the mean and deviation of pixels, and what proposals are made by.
        box_head: converted by `convert_box_head`; or
        torch_head: float32 [regions, 7, 7, channels] -> logits, deltas.
        precision: to compile for.

    Attributes:
        torch_head: as given.
        takes_bytes: whether the features take pixels as they are.
        workers: threads that infer at the same time.
    """

    def __init__(
        self,
        features: openvino.Model,
        model: FasterRCNN,
        box_head: openvino.Model | None,
        torch_head: nn.Module | None,
        precision: Precision,
    ) -> None:
        self.workers = 1
        self.torch_head = torch_head
        self._features = features
        self._model = model
        self._box_head = box_head
        self._precision = precision
        self.takes_bytes = _takes_bytes(precision)
        # Of one operation, as everywhere in the process (`device.use_threads`).
        self._threads = torch.get_num_threads()
        self._lock = threading.Lock()
        self._of_size: OrderedDict[Size, Future[Compiled]] = OrderedDict()  # the one used last is the last
        self._used_at: dict[Size, float] = {}
        self._of_regions: dict[int, Future[Compiled]] = {}

    def features(self, size: Size) -> Compiled:
        """The model for pictures of a size.

        Threads that need a model which another one compiles wait for it; threads with other sizes go on.

        Args:
            size: multiples of 32.
        """
        with self._lock:
            is_new = size not in self._of_size
            if is_new:
                self._make_room()
            future: Future[Compiled] = self._of_size.setdefault(size, Future())
            self._of_size.move_to_end(size)
            self._used_at[size] = time.monotonic()
        if is_new:
            self._compile(future, lambda: whole_features(self._features, self._model, size, self._precision))
        try:
            return future.result()
        except BaseException:
            # Raised again, whatever it is: the next frame of this size compiles once more instead of failing for good.
            # One who was only interrupted while another thread compiles leaves that its model.
            with self._lock:
                if self._of_size.get(size) is future and future.done():
                    self._remove(size)
            raise

    def release(self, unused_seconds: float) -> list[Size]:
        """Releases the models of sizes that did not occur for so long, and returns these sizes."""
        with self._lock:
            since = time.monotonic() - unused_seconds
            sizes = [size for size, used_at in self._used_at.items() if used_at < since]
            for size in sizes:
                self._remove(size)
        return sizes

    def box_head(self, regions: int) -> Compiled:
        """The model for this number of regions."""
        if self._box_head is None:
            msg = "the box head runs in torch"
            raise ValueError(msg)
        with self._lock:
            is_new = regions not in self._of_regions
            future: Future[Compiled] = self._of_regions.setdefault(regions, Future())
        if is_new:
            channels = self._box_head.inputs[0].partial_shape[3].get_length()
            self._compile(future, partial(_of_shape, self._box_head, [regions, 7, 7, channels]))
        try:
            return future.result()
        except BaseException:
            # Raised again, whatever it is: the next regions compile once more, as in `features`.
            with self._lock:
                if self._of_regions.get(regions) is future and future.done():
                    del self._of_regions[regions]
            raise

    def _make_room(self) -> None:
        """Releases the model that was used the longest ago, where there are enough; the lock is held."""
        count = len(self._of_size)
        if count >= _MOST_MODELS or (count >= _KEPT_MODELS and available_bytes() < _SPARE_BYTES):
            oldest = next(iter(self._of_size))
            self._remove(oldest)
            _log.debug("releasing the model for %d x %d", *oldest[::-1])

    def _remove(self, size: Size) -> None:
        del self._of_size[size], self._used_at[size]

    def _compile(self, future: Future[Compiled], make: Callable[[], openvino.Model]) -> None:
        """Compiles a model and hands it to all who wait for it, or the error."""
        try:
            with _graph_errors():  # a graph of a file may fit some sizes alone
                model = make()
            future.set_result(Compiled(compile_model(model, self._precision, self.workers, self._threads)))
        except BaseException as error:  # noqa: BLE001 - raised again by those who wait
            future.set_exception(error)


class Compiled:
    """A compiled model with its requests; each is used by one thread at a time, and kept for the next one.

    Args:
        model: of one fixed shape.

    Attributes:
        model: as given.
        output_shapes: of one run; up to the first one that differs from run to run.
    """

    def __init__(self, model: openvino.CompiledModel) -> None:
        self.model = model
        fixed = takewhile(lambda port: port.partial_shape.is_static, model.outputs)
        self.output_shapes = [tuple(port.shape) for port in fixed]
        self._idle: list[openvino.InferRequest] = []

    @contextmanager
    def request(self) -> Iterator[openvino.InferRequest]:
        """A request that no other thread uses meanwhile; one that failed is not used again."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.model.create_infer_request()
        yield request
        self._idle.append(request)


def _run_pictures(model: Compiled, pixels: Tensor, input_sizes: Sequence[Size]) -> tuple[list[Tensor], list[Proposed]]:
    """Infers picture by picture; OpenVINO reads and writes the tensors' own memory.

    Args:
        model: for pictures of this size.
        pixels: float32 or uint8 [pictures, height, width, 3], contiguous.
        input_sizes: height and width of each picture within `pixels`.

    Returns:
        each level, [pictures, height / stride, width / stride, channels], one behind the other in memory; and what
        is proposed for each picture.
    """
    levels = [shape for shape in model.output_shapes if len(shape) == pixels.dim()]
    counts = [len(pixels) * math.prod(shape[1:]) for shape in levels]
    parts = torch.split(torch.empty(sum(counts)), counts)
    outputs = [part.view(-1, *shape[1:]) for part, shape in zip(parts, levels, strict=True)]
    proposed = []
    # OpenVINO does not keep alive what it shares.
    limits = torch.tensor([[width, height] * 2 for height, width in input_sizes], dtype=torch.float32)
    with model.request() as request:
        for number in range(len(pixels)):
            request.set_input_tensor(1, _shared(limits[number]))
            _infer(request, pixels, outputs, slice(number, number + 1))
            others = range(len(outputs), len(request.model_outputs))
            proposed.append(Proposed(*(torch.tensor(request.get_output_tensor(port).data) for port in others)))
    return outputs, proposed


def _run_regions(many: Compiled, few: Compiled, regions: Tensor) -> list[Tensor]:
    """Infers regions in portions; the last one is filled up with zeros, whose results are left out.

    Args:
        many: for a large portion.
        few: for a small one.
        regions: float32 [regions, 7, 7, channels], contiguous; there may be none.

    Returns:
        each output, [regions, ...].
    """
    large, small = many.output_shapes[0][0], few.output_shapes[0][0]
    count, whole = len(regions), len(regions) // small * small
    outputs = [torch.empty(_rounded_up(count, small), *shape[1:]) for shape in many.output_shapes]
    with many.request() as of_many, few.request() as of_few:
        at = 0
        while at < whole:
            portion, request = (large, of_many) if whole - at >= large else (small, of_few)
            _infer(request, regions, outputs, slice(at, at + portion))
            at += portion
        if whole < count:
            rest = functional.pad(regions[whole:], (0, 0, 0, 0, 0, 0, 0, whole + small - count))
            _infer(of_few, rest, [output[whole:] for output in outputs], slice(0, small))
    return [output[:count] for output in outputs]


def _infer(request: openvino.InferRequest, inputs: Tensor, outputs: list[Tensor], rows: slice) -> None:
    """Infers some rows of the inputs into the same rows of the outputs."""
    request.set_input_tensor(0, _shared(inputs[rows]))
    for port, output in enumerate(outputs):
        request.set_output_tensor(port, _shared(output[rows]))
    request.infer()


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _shared(tensor: Tensor) -> openvino.Tensor:
    shared: openvino.Tensor = load_openvino().Tensor(tensor.numpy(), shared_memory=True)
    return shared


def _has_convolutions(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


@contextmanager
def _memory_errors() -> Iterator[None]:
    """OpenVINO wraps what C++ says when memory runs out, also that for the stack of a thread."""
    try:
        yield
    except RuntimeError as error:
        if _is_of_memory(error):
            msg = "OpenVINO got no memory, or no thread"
            raise MemoryError(msg) from error
        raise


@contextmanager
def _graph_errors() -> Iterator[None]:
    """Puts what is wrong with the graphs of a file into one line."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if _is_of_memory(error):
            raise
        reason = " ".join(str(error).split())[-_REASON_CHARACTERS:]
        msg = f"OpenVINO cannot run these weights; make them again with `streamdet export` ({reason})"
        raise DetectorError(msg) from None


def _is_of_memory(error: Exception) -> bool:
    # The second is what its compiler of kernels says, the third what `std::thread` says.
    return any(words in str(error) for words in ("bad_alloc", "can't alloc", "Resource temporarily unavailable"))
