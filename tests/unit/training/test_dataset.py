from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.detector.picture_files import read_rgb
from streamdet.detector.weights.state_dict import MAX_CLASSES
from streamdet.errors import ConfigError, DataError
from streamdet.training.dataset import check_picture, load_dataset

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
        {**extra, "id": 902, "category_id": 8},
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


def test_all_faults_are_reported_at_once_and_can_be_skipped(shapes: Path, tmp_path: Path) -> None:
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
    # The one box of the second "disc" belongs to the first.
    assert [s.labels.tolist() for s in dataset.samples] == [[1], []]
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
    ("text", "reported"),
    [
        ("{", "is not JSON"),
        ("[]", "no list 'categories', 'images', 'annotations'"),
        ('{"categories": [], "images": {}, "annotations": []}', "no list 'images'"),
        ('{"categories": [], "images": [], "annotations": []}', "has no category"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": [], "annotations": []}', "no usable image is left"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_other_files_get_one_line(tmp_path: Path, text: str, reported: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reported) as raised:
        load_dataset(path, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("box", "kind"),
    [(None, "no box"), ([1, 1, math.nan, 4], "malformed box"), ([1, 1, 10**400, 4], "malformed box"),
     (["1", "1", "4", "4"], "malformed box"), ([1, 1, -4, 4], "empty box"), ([40.3, 1, 1e-9, 4], "empty box"),
     ([-1, 1, 1.001, 4], "box outside")],
)  # fmt: skip
def test_boxes_that_are_none(shapes: Path, tmp_path: Path, box: object, kind: str) -> None:
    content = json.loads((shapes / "val" / "annotations.json").read_text())
    content["annotations"][0]["bbox"] = box
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"1 x {kind}"):
        load_dataset(tmp_path / "a.json", shapes / "val")


def test_categories_that_cannot_be_used_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"categories": ["person", {"id": 1, "name": null}], "images": [], "annotations": []}')
    with pytest.raises(DataError, match="has no category") as raised:
        load_dataset(path, tmp_path)
    assert "1 x entry of 'categories' that is no object: e.g. 'person'" in str(raised.value)
    assert "1 x category without a numeric id or a name" in str(raised.value)


def test_missing_file_and_unknown_category_get_one_line(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_dataset(tmp_path / "none.json", tmp_path)
    with pytest.raises(ConfigError, match="no category ring; it has disc, square"):
        load_dataset(shapes / "val" / "annotations.json", shapes / "val", ["disc", "ring"])


@pytest.mark.parametrize("name", ["disc", "shapes"])
def test_the_category_of_a_whole_project_is_left_out_and_not_a_class(
    shapes: Path, edit_annotations: Edit, name: str
) -> None:
    """As Roboflow writes it: before the others, without a box, parent of all, perhaps with the name of one."""

    def change(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["supercategory"] = name
        content["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})

    path = edit_annotations(change)
    dataset, problems = load_dataset(path, shapes / "val")
    sound, _ = load_dataset(shapes / "val" / "annotations.json", shapes / "val")
    assert dataset.categories == sound.categories
    assert [s.labels.tolist() for s in dataset.samples] == [s.labels.tolist() for s in sound.samples]
    assert problems.notes == [f"category 0, '{name}', is left out: no box has it"]


def test_a_category_of_the_training_set_stays_one_in_validation(shapes: Path, edit_annotations: Edit) -> None:
    """As a tool may write both: the parent is a class of its own, of which the validation pictures have none."""

    def change(content: dict[str, Any]) -> None:
        content["categories"][0]["supercategory"] = "square"
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 3]

    dataset, problems = load_dataset(edit_annotations(change), shapes / "val", ["disc", "square"])
    assert [c.name for c in dataset.categories] == ["disc", "square"]
    assert not problems.notes


def test_a_category_that_is_left_out_may_be_labelled(shapes: Path, edit_annotations: Edit) -> None:
    """Also where the second id of a class alone is named."""

    def change(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["supercategory"] = "shapes"
        content["categories"] += [{"id": 0, "name": "shapes"}, {"id": 9, "name": "disc"}]
        for image in content["images"]:
            image["labelled"] = [0, 7, 9]

    dataset, problems = load_dataset(edit_annotations(change), shapes / "val")
    assert len(problems.notes) == 2
    assert len(dataset.samples) == 8
    assert all(sample.labelled.all() for sample in dataset.samples)


@pytest.mark.parametrize(
    ("category", "kind"),
    [({"id": 9, "name": "red\nring"}, "category whose name is none for a class"),
     ({"id": 9, "name": "r" * 101}, "category whose name is none for a class"),
     ({"id": 9, "name": "\ud800"}, "category whose name is none for a class"),
     ({"id": 9, "name": "__background__"}, "category whose name is none for a class"),
     ({"id": 9, "name": "N/A"}, "category whose name is none for a class"),
     ({"id": -1, "name": "ring"}, "category id that is not from 0"),
     ({"id": 1 << 63, "name": "ring"}, "category id that is not from 0")],
)  # fmt: skip
def test_what_no_weights_can_have_is_refused_before_training(
    edit_annotations: Edit, shapes: Path, category: dict[str, Any], kind: str
) -> None:
    path = edit_annotations(lambda content: content["categories"].append(category))
    with pytest.raises(DataError, match=f"1 x {kind}"):
        load_dataset(path, shapes / "val")
    dataset, _ = load_dataset(path, shapes / "val", skip_bad=True)
    assert [c.name for c in dataset.categories] == ["disc", "square"]


def test_more_categories_than_weights_can_have_get_one_line(edit_annotations: Edit, shapes: Path) -> None:
    many = [{"id": number, "name": f"shape {number}"} for number in range(100, 100 + MAX_CLASSES)]
    path = edit_annotations(lambda content: content["categories"].extend(many))
    with pytest.raises(DataError, match="has 10002 categories, and weights at most 9999; name some in --categories"):
        load_dataset(path, shapes / "val")
    assert len(load_dataset(path, shapes / "val", ["square"])[0].categories) == 1


@pytest.mark.parametrize("parent", [["shapes"], {"name": "shapes"}, 7, None])
def test_a_parent_that_is_no_name_is_none(edit_annotations: Edit, shapes: Path, parent: object) -> None:
    path = edit_annotations(lambda content: content["categories"][0].update(supercategory=parent))
    assert len(load_dataset(path, shapes / "val")[0].categories) == 2


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 300 + "/a.jpg", "x" * 300 + "\\a.jpg", "\ud800.jpg"])
def test_a_picture_s_name_that_cannot_be_one_is_a_fault_like_others(
    edit_annotations: Edit, shapes: Path, name: str
) -> None:
    path = edit_annotations(lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(DataError, match=r"1 problem;.*\n  1 x (unreadable|missing) image"):
        load_dataset(path, shapes / "val")
    assert len(load_dataset(path, shapes / "val", skip_bad=True)[0].samples) == 7


def test_a_class_without_a_box_stays_a_class(shapes: Path, edit_annotations: Edit) -> None:
    """As in COCO, where `person` is its own parent."""

    def change(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": 9, "name": "ring", "supercategory": "ring"}, {"id": 10, "name": "cone"}]

    dataset, problems = load_dataset(edit_annotations(change), shapes / "val")
    assert [c.name for c in dataset.categories] == ["disc", "square", "ring", "cone"]
    assert not problems.notes


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("behind", [b"", b"\0" * 6000, b"ftypmp42" + bytes(range(256)) * 300])
def test_what_follows_a_whole_picture_does_not_count_and_a_cut_one_is_reported(
    tmp_path: Path, suffix: str, behind: bytes
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    whole = cv2.imencode(suffix, picture)[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole + behind)
    assert check_picture(path, 50, 40).problem is None
    for part in (0.3, 0.6, 0.9, 0.999):
        path.write_bytes(whole[: int(part * len(whole))])
        problem = check_picture(path, 50, 40).problem
        assert problem is not None
        assert problem[0].startswith("truncated")


def test_a_cut_picture_with_a_whole_thumbnail_is_reported(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    whole, small = (cv2.imencode(".jpg", p)[1].tobytes() for p in (picture, picture[:8, :8]))
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2) + small
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:2] + segment + whole[2:])
    assert check_picture(path, 50, 40).problem is None
    path.write_bytes((whole[:2] + segment + whole[2:])[:-200])
    assert check_picture(path, 50, 40).problem == ("truncated JPEG", str(path))
    progressive = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    path.write_bytes(progressive + b"behind")
    assert check_picture(path, 50, 40).problem is None


def test_names_with_backslashes_are_found(shapes: Path, edit_annotations: Edit) -> None:
    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"val\\{image['file_name']}"

    dataset, _ = load_dataset(edit_annotations(change), shapes)
    assert all(sample.path.is_file() for sample in dataset.samples)
    assert len(dataset.samples) == 8


@pytest.mark.parametrize(
    ("name", "hint"),
    [("x\\val_1.jpg", "backslashes"), ("gone/val_1.jpg", "there is no folder"), ("val_1.JPG", "there is val_1.jpg"),
     ("val_1.jpeg", "there is val_1.jpg")],
)  # fmt: skip
def test_a_missing_picture_comes_with_what_may_be_meant(shapes: Path, name: str, hint: str) -> None:
    problem = check_picture(shapes / "val" / name, 80, 80).problem
    assert problem is not None
    assert hint in problem[1]


def oriented(picture: NDArray[np.uint8], orientation: int) -> bytes:
    """A JPEG that says in its EXIF data how it is to be turned."""
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2) + b"\0" * 6
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + jpeg[2:]


# From 1 to 4 the sizes are the same both ways, so nothing says which is meant.
@pytest.mark.parametrize(
    ("orientation", "as_stored"), [(n, False) for n in range(1, 9)] + [(1, True)] + [(n, True) for n in range(5, 9)]
)
def test_boxes_lie_on_their_object_however_the_picture_is_turned(
    tmp_path: Path, orientation: int, *, as_stored: bool
) -> None:
    stored = np.zeros((60, 90, 3), np.uint8)
    stored[5:20, 60:85] = 255
    (tmp_path / "a.jpg").write_bytes(oriented(stored, orientation))
    upright = read_rgb(tmp_path / "a.jpg")
    rows, columns = np.nonzero(upright[..., 0] > 128)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    x1, y1, x2, y2 = (int(side) for side in expected)
    bbox = [60, 5, 25, 15] if as_stored else [x1, y1, x2 - x1, y2 - y1]
    width, height = (90, 60) if as_stored else (upright.shape[1], upright.shape[0])
    (tmp_path / "a.json").write_text(json.dumps({
        "categories": [{"id": 1, "name": "x"}],
        "images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox}],
    }))  # fmt: skip
    dataset, problems = load_dataset(tmp_path / "a.json", tmp_path)
    np.testing.assert_allclose(dataset.samples[0].boxes, [expected], atol=2)
    assert bool(problems.notes) == (as_stored and orientation > 4)
