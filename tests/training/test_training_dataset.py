from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamdet.errors import ConfigError, DataError
from streamdet.training.dataset import load_dataset

Edit = Callable[[Callable[[dict[str, Any]], None]], Path]


def test_sound_data_is_read_whole(shapes: Path) -> None:
    dataset, problems = load_dataset(shapes / "val" / "annotations.json", shapes / "val")
    assert not problems.counts
    assert [c.name for c in dataset.categories] == ["disc", "square"]
    assert len(dataset.samples) == 8
    assert sum(len(s.boxes) for s in dataset.samples) == 16
    x1, y1, x2, y2 = dataset.samples[0].boxes[0]
    assert 0 <= x1 < x2 <= 80
    assert 0 <= y1 < y2 <= 80


def _break_everything(content: dict[str, Any], folder: Path) -> dict[str, str]:
    """Breaks one thing after another; returns the kind of fault with an example's text."""
    images, annotations = content["images"], content["annotations"]
    cut = (folder / images[1]["file_name"]).read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "text.jpg").write_text("no picture")
    images[0]["file_name"] = "gone.jpg"
    images[1]["file_name"] = "cut.jpg"
    images[2]["file_name"] = "text.jpg"
    images[3]["width"] = 79
    images[4]["labelled"] = "disc"
    images[5]["labelled"] = [99]
    images.append(dict(images[6]))
    images.append({"id": "one", "file_name": "x.jpg"})
    images.append({"id": 400, "file_name": "x.jpg", "width": 0, "height": 3})
    sound = [a for a in annotations if a["image_id"] in (7, 8)]
    sound[0]["bbox"] = [70, 10, 20, 5]
    sound[1]["bbox"] = [10, 10, 0, 5]
    sound[2]["bbox"] = [1, 2, "x", 4]
    sound[3]["category_id"] = 12
    extra = {"image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9]}
    annotations += [
        {**extra, "id": sound[0]["id"]},
        {**extra, "id": 900, "image_id": 12345},
        extra,
        {**extra, "id": 901, "iscrowd": "yes"},
        7,
    ]
    content["categories"] += [{"id": 8, "name": "disc"}, {"id": 3, "name": "ring"}, {"name": "no id"}]
    return {
        "missing image": "gone.jpg",
        "truncated JPEG": "cut.jpg",
        "unreadable image": "text.jpg",
        "image of another size": "is 80x80, annotated as 79x80",
        "malformed 'labelled'": "'id': 5",
        "unknown category id in 'labelled'": "'id': 6",
        "duplicate image id": images[6]["file_name"],
        "image without a numeric id or a file_name": "'one'",
        "image without width and height": "400",
        "box outside the image": "[70, 10, 20, 5]",
        "empty box": "[10, 10, 0, 5]",
        "malformed box": "'x'",
        "unknown category": "category 12",
        "duplicate annotation id": str(sound[0]["id"]),
        "annotation of an unknown image": "12345",
        "annotation without a numeric id": "[1, 1, 9, 9]",
        "malformed iscrowd": "'yes'",
        "entry of 'annotations' that is no object": "7",
        "duplicate category name": "'disc', ids 3 and 8",
        "duplicate category id": "3 (ring)",
        "category without a numeric id or a name": "no id",
    }


def test_all_faults_are_told_at_once_and_can_be_skipped(shapes: Path, tmp_path: Path) -> None:
    for picture in (shapes / "val").glob("*.jpg"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    content = json.loads((shapes / "val" / "annotations.json").read_text())
    faults = _break_everything(content, tmp_path)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))

    with pytest.raises(DataError) as raised:
        load_dataset(path, tmp_path)
    assert raised.value.exit_code == 65
    lines = str(raised.value).splitlines()
    assert f"{len(faults)} problems" in lines[0]
    assert "--skip-bad" in lines[0]
    for kind, example in faults.items():
        assert any(f"1 x {kind}" in line and example in line for line in lines), (kind, lines)

    seen: list[tuple[int, int]] = []
    dataset, problems = load_dataset(path, tmp_path, skip_bad=True, on_progress=lambda d, t: seen.append((d, t)))
    assert problems.counts.total() == len(faults)
    assert sorted(s.image_id for s in dataset.samples) == [7, 8]
    assert sum(len(s.boxes) for s in dataset.samples) == 0
    assert seen == [(i, 6) for i in range(1, 7)]


def test_labelled_and_iscrowd_are_kept(shapes: Path, edit_annotations: Edit) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["labelled"] = [7]
        content["images"][1]["labelled"] = []
        content["annotations"] = [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [-0.5, 0, 10, 10]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [20, 20, 10, 10], "iscrowd": 1},
        ]

    path = edit_annotations(change)
    dataset, _ = load_dataset(path, shapes / "val", ["square"])
    first = dataset.samples[0]
    assert first.labels.tolist() == [1]
    np.testing.assert_allclose(first.boxes, [[0, 0, 9.5, 10]])
    np.testing.assert_allclose(first.ignore, [[20, 20, 30, 30]])  # ignored for any class, also one left out
    assert first.labelled.tolist() == [True, True]
    assert 2 not in [s.image_id for s in dataset.samples]  # nothing is known of it
    both, _ = load_dataset(path, shapes / "val")
    assert both.samples[0].labelled.tolist() == [True, False, True]
    kept = both.keeping(["square"])
    assert kept.categories == dataset.categories
    assert len(kept.samples) == len(dataset.samples)
    for found, wanted in zip(kept.samples, dataset.samples, strict=True):
        for name in ("boxes", "labels", "ignore", "labelled"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert not both.keeping([]).samples


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "no list 'categories', 'images', 'annotations'"),
        ('{"categories": [], "images": {}, "annotations": []}', "no list 'images'"),
        ('{"categories": [], "images": [], "annotations": []}', "has no category"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": [], "annotations": []}', "no usable image is left"),
    ],
)
def test_other_files_get_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=told) as raised:
        load_dataset(path, tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_file_and_unknown_category_get_one_line(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_dataset(tmp_path / "none.json", tmp_path)
    with pytest.raises(ConfigError, match="no category ring; it has disc, square"):
        load_dataset(shapes / "val" / "annotations.json", shapes / "val", ["disc", "ring"])
