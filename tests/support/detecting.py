"""Frames of the sample clip, and what torchvision's own model finds in them."""

from __future__ import annotations

import itertools
import struct
import zlib

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from streamdet.assets import sample_clip
from streamdet.config import DetectorConfig
from streamdet.detector.pipeline import ArrayPicture
from streamdet.detector.weights import Weights
from streamdet.detector.weights.architectures import build_model

Rgb = NDArray[np.uint8]


EASY = DetectorConfig(device="cpu", engine="torch", score_threshold=0.2, max_batch_size=2)


def clip_frames(count: int) -> list[Rgb]:
    """Frames of the sample clip, 768x576, 3 s apart."""
    with av.open(str(sample_clip())) as container:
        decoded = container.decode(video=0)
        return [frame.to_ndarray(format="rgb24") for frame in itertools.islice(decoded, 0, 30 * count, 30)]


def reference(weights: Weights, config: DetectorConfig) -> FasterRCNN:
    """torchvision's own model, untouched."""
    model = build_model(weights.architecture, len(weights.labels))
    model.load_state_dict(weights.state)
    model.transform.min_size, model.transform.max_size = (weights.min_size,), weights.max_size
    model.roi_heads.score_thresh = config.score_threshold
    model.roi_heads.detections_per_img = config.max_detections
    return model.eval()


@torch.inference_mode()
def forward(model: FasterRCNN, frames: list[Rgb]) -> list[dict[str, Tensor]]:
    images = [torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames]
    results: list[dict[str, Tensor]] = model(images)
    return results


def pictures(frames: list[Rgb]) -> list[ArrayPicture]:
    return [ArrayPicture(frame) for frame in frames]


def claiming_png(width: int, height: int) -> bytes:
    """A PNG that claims to have this many pixels, and has next to none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
