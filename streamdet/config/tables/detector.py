"""`[detector]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator

from streamdet.config.tables.base import Threshold, table
from streamdet.config.values import AS_WHOLE_NUMBER, Seconds, WholeNumber, refuse

Model = Literal[
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
]


def _is_auto(value: object) -> str:
    return "[auto]" if value == "auto" else "[number]"


# The tags stand in brackets, so that they cannot be taken for keys where a mistake is explained.
AutoOrBatchSize = Annotated[
    Annotated[Literal["auto"], Tag("[auto]")] | Annotated[int, Field(ge=1, le=64), AS_WHOLE_NUMBER, Tag("[number]")],
    Discriminator(_is_auto),
]
_BATCH_SIZE = 8


class DetectorConfig(BaseModel):
    """What finds the objects: weights, thresholds, batches."""

    model_config = table("at a restart")

    weights: str = Field(
        "embedded",
        min_length=1,
        description='Weights of the detector: "embedded" (part of the package), "coco" (torchvision\'s own, downloaded '
        "at first use; needs `model`), or a file (.safetensors, or .pth with a state dict), relative to this file.",
        examples=["embedded", "coco", "/var/lib/streamdet/yard.safetensors"],
    )
    model: Model | None = Field(
        None,
        validate_default=True,
        description='Architecture; needed for weights = "coco" and for .pth files, not allowed for "embedded"; other '
        "weights carry it in themselves.",
        examples=["fasterrcnn_resnet50_fpn"],
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:all|cuda:[0-9]{1,2})$",
        description='Where the detector runs: "cpu", "cuda", "cuda:1", "cuda:all" (engine = "graph" only), or "auto", '
        'which takes CUDA when there is one; with engine = "graph", all there are.',
        examples=["auto", "cpu", "cuda:0"],
    )
    engine: Literal["auto", "torch", "graph", "openvino", "reference"] = Field(
        "auto",
        description='What runs the model: "torch"; "graph", all of it as one CUDA graph; "openvino", often faster on a '
        'CPU (needs the extra of that name); "reference", torchvision\'s own code, slow, to compare with; or "auto", '
        "the fastest that agrees with torch in fp32 in a trial on this machine, at the first start (see `streamdet "
        "engines`).",
        examples=["auto", "torch"],
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description='Numbers that the model computes with: "fp32", exact; "bf16", half the size; "int8", a quarter '
        '(engine = "openvino" only); or "auto": what is the fastest in the trial and keeps what fp32 finds.',
        examples=["auto", "fp32"],
    )
    workers: Annotated[int, Field(ge=1, le=64), AS_WHOLE_NUMBER] | None = Field(
        None,
        description="Batches that are detected at the same time on a CPU, each by one thread. Unless given, as many as "
        "the cores have room for, measured while it runs.",
        examples=[4],
    )
    score_threshold: Threshold = Field(
        0.5, description="Detections with a lower score are not published.", examples=[0.5, "${SCORE_THRESHOLD}"]
    )
    score_thresholds: dict[str, Threshold] = Field(
        {}, description="Thresholds for single labels, instead of `score_threshold`.", examples=[{"person": 0.4}]
    )
    labels: tuple[str, ...] = Field(
        (), description="Publish only these labels; empty for all that the weights know.", examples=[["person", "car"]]
    )
    max_detections: WholeNumber = Field(
        100, ge=1, le=1000, description="Detections per frame at most; those of the highest score stay.", examples=[50]
    )
    max_batch_size: AutoOrBatchSize = Field(
        "auto",
        description='Frames that are detected together at most, at most one per stream; or "auto": on a CPU the fewest '
        "that reach three quarters of the best throughput in the trial, because events are early then, else 8.",
        examples=["auto", 16],
    )
    max_batch_delay_seconds: Seconds = Field(
        0.01,
        ge=0,
        le=1,
        description="How long the first frame of a batch waits for others. More makes fuller batches and later events.",
        examples=["10 ms", 0.005],
    )

    @property
    def largest_batch(self) -> int:
        """Frames of a batch at the most; 8 for "auto" where no trial has said what is best."""
        return _BATCH_SIZE if self.max_batch_size == "auto" else self.max_batch_size

    @field_validator("model")
    @classmethod
    def _fits_weights(cls, model: str | None, info: ValidationInfo) -> str | None:
        weights = info.data.get("weights", "")
        if weights == "coco" and model is None:
            refuse('is missing; weights = "coco" needs a model, such as model = "fasterrcnn_resnet50_fpn"')
        if weights == "embedded" and model is not None:
            refuse('does not go with weights = "embedded"; delete it, or write weights = "coco"')
        return model
