"""The dense parts of the detector, run by OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from streamdet.detector.openvino_convert import BoxHead, convert_box_head, convert_features
from streamdet.detector.openvino_file import ExportedDense
from streamdet.detector.openvino_runtime import OpenVinoPrecision, compile_model, core, cpu_precisions, load_openvino
from streamdet.errors import DetectorError

if TYPE_CHECKING:
    import openvino

# A model made for one size of picture is 5 to 20 % faster than one for all sizes, and costs memory and some tenths of
# a second. Streams keep their size; a folder of photographs has many.
_OWN_MODEL_AFTER_PICTURES = 8
_MOST_OWN_MODELS = 4

Size = tuple[int, int]


class OpenVinoDense:
    """Runs the dense parts in OpenVINO; see `dense.Dense`.

    Pictures of a batch go through one after the other: what a picture needs stays in the cache that way, and one
    compiled model serves batches of any length. Threads beside each other are what uses several cores.

    Args:
        models: what to run; shared between threads.
    """

    def __init__(self, models: _Models) -> None:
        self._models = models
        self._requests: dict[Size | None, openvino.InferRequest] = {}
        self._box_request: openvino.InferRequest | None = None
        self._heads: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None

    @classmethod
    def of_model(cls, model: FasterRCNN, precision: OpenVinoPrecision) -> Self:
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
        return cls(_Models(convert_features(model), box_head, torch_head, precision))

    @classmethod
    def of_export(cls, exported: ExportedDense) -> Self:
        """Takes what `streamdet export` made.

        Raises:
            DetectorError: OpenVINO is not installed, or cannot read it.
        """
        try:
            parts = [core().read_model(xml, constants) for xml, constants in (exported.features, exported.box_head)]
        except RuntimeError as error:
            msg = f"this version of OpenVINO cannot read the weights; make them anew with `streamdet export` ({error})"
            raise DetectorError(" ".join(msg.split())) from None
        return cls(_Models(parts[0], parts[1], None, exported.precision))

    def features(self, images: Tensor) -> list[Tensor]:
        """See `Dense`; the RPN's head runs along, and `rpn_head` yields what it said."""
        pixels = images.permute(0, 2, 3, 1).contiguous()
        size = (int(pixels.shape[1]), int(pixels.shape[2]))
        key, compiled = self._models.features(size, len(pixels))
        with _memory_errors():
            if key not in self._requests:
                self._requests[key] = compiled.create_infer_request()
            run = _run_any_size if key is None else _run_one_size
            outputs = [t.permute(0, 3, 1, 2) for t in run(self._requests[key], compiled, pixels)]
        count = len(outputs) // 3
        levels, objectness, deltas = outputs[:count], outputs[count : 2 * count], outputs[2 * count :]
        self._heads = (levels, objectness, deltas)
        return list(levels)

    def rpn_head(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See `Dense`; the levels must be those that `features` returned last."""
        if self._heads is None or any(a is not b for a, b in zip(levels, self._heads[0], strict=True)):
            msg = "these are not the level maps that `features` returned last"
            raise ValueError(msg)
        _, objectness, deltas = self._heads
        self._heads = None
        return objectness, deltas

    def box_head(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dense`."""
        by_place = regions.permute(0, 2, 3, 1).contiguous()  # as they lie in memory: no copy
        if self._models.torch_head is not None:
            logits, deltas = self._models.torch_head(by_place)
            return logits, deltas
        compiled = self._models.box_head()
        if not len(regions):
            empty = [regions.new_empty(0, port.partial_shape[1].get_length()) for port in compiled.outputs]
            return empty[0], empty[1]
        with _memory_errors():
            if self._box_request is None:
                self._box_request = compiled.create_infer_request()
            outputs = _run_any_size(self._box_request, compiled, by_place)
        return outputs[0], outputs[1]

    def for_another_thread(self) -> Self:
        """One that shares the compiled models and their weights; to be called before the first inference."""
        self._models.workers += 1
        return type(self)(self._models)


class _Models:
    """Compiles what is needed, once for all threads.

    Args:
        features: converted by `convert_features`.
        box_head: converted by `convert_box_head`; or
        torch_head: float32 [regions, 7, 7, channels] -> logits, deltas.
        precision: to compile for.

    Attributes:
        torch_head: as given.
        workers: threads that infer at the same time.
    """

    def __init__(
        self,
        features: openvino.Model,
        box_head: openvino.Model | None,
        torch_head: nn.Module | None,
        precision: OpenVinoPrecision,
    ) -> None:
        self.workers = 1
        self.torch_head = torch_head
        self._features = features
        self._box_head = box_head
        self._precision = precision
        # Of one operation, as everywhere in the process (`device.use_threads`).
        self._threads = torch.get_num_threads()
        self._lock = threading.Lock()
        self._seen: dict[Size, int] = {}
        self._own: set[Size] = set()  # sizes that have a model of their own, or will have one in a moment
        self._of_size: dict[Size | None, openvino.CompiledModel] = {}
        self._compiled_box_head: openvino.CompiledModel | None = None

    def features(self, size: Size, pictures: int) -> tuple[Size | None, openvino.CompiledModel]:
        """The model for one picture of that size, with the size; or None and the model for all sizes.

        Who finds that a size is common compiles its model; others go on with the one for all sizes meanwhile.
        """
        with self._lock:
            if size in self._of_size:
                return size, self._of_size[size]
            if None not in self._of_size:
                self._of_size[None] = self._compiled_features(None)
            self._seen[size] = self._seen.get(size, 0) + pictures
            is_common = self._seen[size] >= _OWN_MODEL_AFTER_PICTURES
            if not is_common or size in self._own or len(self._own) == _MOST_OWN_MODELS:
                return None, self._of_size[None]
            self._own.add(size)
        compiled = self._compiled_features(size)
        with self._lock:
            self._of_size[size] = compiled
        return size, compiled

    def _compiled_features(self, size: Size | None) -> openvino.CompiledModel:
        model = self._features.clone()
        model.reshape([1, *size, 3] if size else [-1, -1, -1, 3])
        return compile_model(model, self._precision, self.workers, self._threads)

    def box_head(self) -> openvino.CompiledModel:
        """The model for any number of regions."""
        with self._lock:
            if self._compiled_box_head is None:
                self._compiled_box_head = compile_model(self._box_head, self._precision, self.workers, self._threads)
            return self._compiled_box_head


def _run_one_size(request: openvino.InferRequest, compiled: openvino.CompiledModel, pixels: Tensor) -> list[Tensor]:
    """Infers picture by picture; OpenVINO reads and writes the tensors' own memory."""
    outputs = [torch.empty(len(pixels), *list(port.shape)[1:]) for port in compiled.outputs]
    for number in range(len(pixels)):
        request.set_input_tensor(_shared(pixels[number : number + 1]))
        for port, output in enumerate(outputs):
            request.set_output_tensor(port, _shared(output[number : number + 1]))
        request.infer()
    return outputs


def _run_any_size(request: openvino.InferRequest, compiled: openvino.CompiledModel, batch: Tensor) -> list[Tensor]:
    """Infers the whole batch; the outputs are copied, because OpenVINO uses their memory again."""
    request.set_input_tensor(_shared(batch))
    request.infer()
    return [torch.tensor(request.get_output_tensor(port).data) for port in range(len(compiled.outputs))]


def _shared(tensor: Tensor) -> openvino.Tensor:
    shared: openvino.Tensor = load_openvino().Tensor(tensor.numpy(), shared_memory=True)
    return shared


def _has_convolutions(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


@contextmanager
def _memory_errors() -> Iterator[None]:
    """OpenVINO wraps what C++ says when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if "bad_alloc" in str(error):
            msg = "OpenVINO ran out of memory"
            raise MemoryError(msg) from error
        raise
