"""Drawn shapes to learn from: discs and squares on noise, small enough for a real training in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from streamdet.training.dataset import load_dataset
from streamdet.training.train import Run
from support.tiny_run import CONFIG, Losses

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "square"}]


def draw_shapes(folder: Path, count: int, seed: int, side: int = 80) -> Path:
    """Writes `count` pictures and their annotation file, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {"categories": CATEGORIES, "images": [], "annotations": []}
    for number in range(1, count + 1):
        picture = rng.integers(90, 130, (side, side, 3), dtype=np.uint8)
        for place in rng.permutation(4)[:2]:
            size = int(rng.integers(22, 34))
            x, y = 3 + 40 * (int(place) % 2), 3 + 40 * (int(place) // 2)
            if rng.random() < 0.5:
                category = 3
                cv2.circle(picture, (x + size // 2, y + size // 2), size // 2, (250, 40, 40), -1)
            else:
                category = 7
                cv2.rectangle(picture, (x, y), (x + size, y + size), (40, 40, 250), -1)
            box = [x, y, size, size]
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": number, "category_id": category,
                "bbox": box, "area": size * size, "iscrowd": 0,
            })  # fmt: skip
        name = f"{folder.name}_{number}.jpg"
        cv2.imwrite(str(folder / name), picture)
        content["images"].append({"id": number, "file_name": name, "width": side, "height": side})
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data sets `train` (24 pictures) and `val` (8)."""
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(folder / "train", 24, seed=1)
    draw_shapes(folder / "val", 8, seed=2)
    return folder


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of 12 steps, never interrupted, and its losses."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained") / "run"
    listener = Losses()
    train, val = (load_dataset(shapes / name / "annotations.json", shapes / name)[0] for name in ("train", "val"))
    Run(out, CONFIG, train, val).train(listener)
    return out, listener.sums


@pytest.fixture
def edit_annotations(shapes: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Makes a changed copy of val's annotation file."""

    def edit(change: Callable[[dict[str, Any]], None]) -> Path:
        content = json.loads((shapes / "val" / "annotations.json").read_text())
        change(content)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(content))
        return path

    return edit


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models gain nothing from threads, and results depend on their number."""
    torch.set_num_threads(1)
