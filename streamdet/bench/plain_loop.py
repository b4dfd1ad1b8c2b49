"""The usual alternative: a loop of OpenCV and torchvision, in a separate process without streamdet's settings.

python -m streamdet.bench.plain_loop VIDEO WEIGHTS DEVICE SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from streamdet.bench.contenders import SCORE_THRESHOLD
from streamdet.bench.machine import cpu_seconds
from streamdet.detector.reference import torchvision_model
from streamdet.detector.weights import Weights, load_weights_file
from streamdet.errors import DataError

_MIN_FRAMES = 3


@torch.inference_mode()
def plain_loop(path: Path, weights: Weights, device: torch.device, seconds: float) -> dict[str, Any]:
    """Reads frames with OpenCV and detects each with torchvision, one after the other, as fast as it goes.

    Args:
        path: of a video; read again at its end.
        weights: for torchvision's own model.
        device: where that runs.
        seconds: how long.

    Returns:
        frames per second, milliseconds and CPU milliseconds per frame.

    Raises:
        DataError: OpenCV cannot read the video.
    """
    model = torchvision_model(weights, device)
    model.roi_heads.score_thresh = SCORE_THRESHOLD
    capture = cv2.VideoCapture(str(path))
    frames, began, cpu = -1, time.perf_counter(), cpu_seconds()
    while frames < _MIN_FRAMES or time.perf_counter() - began < seconds:
        ok, bgr = capture.read()
        if not ok:
            capture.release()
            capture = cv2.VideoCapture(str(path))
            ok, bgr = capture.read()
            if not ok:
                msg = f"OpenCV cannot read {path}"
                raise DataError(msg)
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        image = torch.from_numpy(np.asarray(rgb, np.uint8)).to(device).permute(2, 0, 1).float() / 255
        boxes = model([image])[0]["boxes"]
        boxes.cpu()
        frames += 1
        if frames == 0:  # the first one warmed up
            began, cpu = time.perf_counter(), cpu_seconds()
    took, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    capture.release()
    return {
        "frames": frames,
        "frames_per_second": round(frames / took, 2),
        "ms_per_frame": round(1000 * took / frames, 3),
        "cpu_ms_per_frame": round(1000 * cpu / frames, 3),
    }


def main(video: str, weights: str, device: str, seconds: str) -> None:
    """Prints the result as JSON."""
    found = plain_loop(Path(video), load_weights_file(Path(weights)), torch.device(device), float(seconds))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
