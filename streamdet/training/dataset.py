"""Data sets in COCO format: their annotation files and pictures, read and checked.

`load_dataset` reports every fault at once; `Problems` counts them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from streamdet.detector.picture_files import decode_rgb
from streamdet.detector.weights import MAX_CATEGORY_ID, MAX_LABEL_CHARACTERS, RESERVED_LABELS, is_label
from streamdet.detector.weights.state_dict import MAX_CLASSES
from streamdet.errors import ConfigError, DataError

_MAX_EXAMPLES = 3
_MAX_EXAMPLE_CHARACTERS = 100
_FAR_PIXELS = 1e9
# In float32 the ends of a narrower box may be one.
_LEAST_SIDE_PIXELS = 0.01
_BORDER_TOLERANCE_PIXELS = 1.0
Entry = dict[str, Any]
_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Markers in the compressed data of a JPEG: anything but a stuffed byte, a restart, or a filler.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = 0xD9
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True)
class Category:
    """A class of the data set: its id in the annotation file and its name."""

    id: int
    name: str


@dataclass(frozen=True)
class Sample:
    """One picture and what is known about it.

    Attributes:
        image_id: id in the annotation file.
        path: the picture.
        boxes: float32 [N, 4], xyxy in pixels.
        labels: int64 [N], 1 to C in the order of `Dataset.categories`.
        ignore: float32 [M, 4], areas that are neither object nor background.
        labelled: bool [C + 1], which classes are annotated throughout; [0], the background, is True.
        aspect_ratio: width over height.
    """

    image_id: int
    path: Path
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    aspect_ratio: float = 1.0


@dataclass(frozen=True)
class Dataset:
    """A data set whose every sample is sound."""

    samples: list[Sample]
    categories: list[Category]

    def keeping(self, names: Collection[str]) -> Dataset:
        """The same pictures with some of the categories alone; boxes of the others are background."""
        kept = [i for i, category in enumerate(self.categories, start=1) if category.name in names]
        samples = [_relabelled(sample, kept) for sample in self.samples]
        return Dataset(_telling(samples), [self.categories[i - 1] for i in kept])


def load_dataset(
    annotations: Path,
    images: Path,
    category_names: list[str] | None = None,
    *,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Dataset, Problems]:
    """Reads a COCO-format data set and checks all of it.

    Args:
        annotations: the JSON file; an image may carry `labelled`, the ids of the categories that are
            annotated throughout it (without it: all of them).
        images: the folder that the file names are relative to.
        category_names: the classes to keep, in this order; all of them when None. Boxes of other classes
            are background.
        skip_bad: go on without the broken images and boxes.
        on_progress: hears how many of how many pictures have been checked.

    Returns:
        The data set and what was left out of it.

    Raises:
        DataError: something is broken and `skip_bad` is off, or nothing is left.
        ConfigError: the data set lacks one of `category_names`.
    """
    problems = Problems()
    lists = load_annotations(annotations, problems)
    ids, same = sound_categories(lists["categories"], lists["annotations"], category_names or (), problems)
    categories = _choose_categories(ids, category_names, annotations, problems)
    known = {*ids.values(), *same}
    sound = sound_images(lists["images"], images, known, problems, on_progress or (lambda _done, _total: None))
    by_image = sound_annotations(lists, sound, known, problems)
    for annotation in (a for annotations in by_image.values() for a in annotations):
        annotation["category_id"] = same.get(annotation["category_id"], annotation["category_id"])
    for image in (i for i in sound.values() if "labelled" in i):
        image["labelled"] = [same.get(category_id, category_id) for category_id in image["labelled"]]
    if problems.counts and not skip_bad:
        lines = "\n  ".join(problems.lines())
        count = problems.counts.total()
        msg = f"{annotations}: {count} problem{'s' * (count > 1)}; --skip-bad goes on without them\n  {lines}"
        raise DataError(msg)
    index = {category.id: i for i, category in enumerate(categories, start=1)}
    samples = [_sample(sound[i], by_image[i], index, find_picture(images, sound[i]["file_name"])) for i in sound]
    samples = _telling(samples)
    if not samples:
        msg = f"{annotations}: no usable image is left" + "".join(f"\n  {line}" for line in problems.lines())
        raise DataError(msg)
    return Dataset(samples, categories), problems


def _choose_categories(ids: dict[str, int], names: list[str] | None, path: Path, problems: Problems) -> list[Category]:
    if not ids:
        msg = f"{path} has no category" + "".join(f"\n  {line}" for line in problems.lines())
        raise DataError(msg)
    if len(names or ids) >= MAX_CLASSES:
        count = len(names or ids)
        msg = f"{path} has {count} categories, and weights at most {MAX_CLASSES - 1}; name some in --categories"
        raise DataError(msg)
    if names is None:
        return [Category(number, name) for name, number in ids.items()]
    missing = [name for name in names if name not in ids]
    if missing:
        msg = f"{path} has no category {', '.join(missing)}; it has {', '.join(ids)}"
        raise ConfigError([msg])
    return [Category(ids[name], name) for name in dict.fromkeys(names)]


def _telling(samples: list[Sample]) -> list[Sample]:
    """The samples that are labelled for at least one of the categories."""
    return [s for s in samples if s.labelled[1:].any() or len(s.boxes)]


def _relabelled(sample: Sample, kept: list[int]) -> Sample:
    new_labels = np.zeros(len(sample.labelled), np.int64)
    new_labels[kept] = np.arange(1, len(kept) + 1)
    labels = new_labels[sample.labels]
    return replace(
        sample, boxes=sample.boxes[labels > 0], labels=labels[labels > 0], labelled=sample.labelled[[0, *kept]]
    )


def _sample(image: Entry, annotations: list[Entry], index: dict[int, int], path: Path) -> Sample:
    boxes, labels, ignore = [], [], []
    turn: Turn | None = image.get("turn")
    stored = image["width"], image["height"]
    width, height = reversed(stored) if turn else stored
    for annotation in annotations:
        x, y, w, h = turn.upright(annotation["bbox"], *stored) if turn else annotation["bbox"]
        box = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
        if annotation.get("iscrowd"):
            ignore.append(box)
        elif annotation["category_id"] in index:
            boxes.append(box)
            labels.append(index[annotation["category_id"]])
    labelled = np.ones(len(index) + 1, np.bool_)
    if "labelled" in image:
        labelled[1:] = [category_id in image["labelled"] for category_id in index]
    return Sample(
        image_id=image["id"],
        path=path,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        ignore=np.array(ignore, np.float32).reshape(-1, 4),
        labelled=labelled,
        aspect_ratio=image["width"] / image["height"],
    )


@dataclass
class Problems:
    """What is broken, counted by kind, with a few examples of each.

    Attributes:
        counts: of each kind.
        examples: of each kind, a few.
        notes: what is not broken but was understood in a way that the user should know, a line each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, example: str) -> None:
        """Counts one more of `kind`."""
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _MAX_EXAMPLES:
            shown.append(example)

    def lines(self) -> list[str]:
        """One line per kind: count, kind, examples."""
        return [f"{count} x {kind}: e.g. {'; '.join(self.examples[kind])}" for kind, count in self.counts.items()]


def load_annotations(path: Path, problems: Problems) -> dict[str, list[Entry]]:
    """The three lists of an annotation file: `categories`, `images`, `annotations`.

    Raises:
        DataError: the file is missing, no JSON, or has another structure.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise DataError(msg) from None
    except ValueError as error:
        msg = f"{path} is not JSON: {error}"
        raise DataError(msg) from None
    except RecursionError:
        msg = f"{path} is nested too deeply to be in COCO format"
        raise DataError(msg) from None
    names = ("categories", "images", "annotations")
    missing = [n for n in names if not (isinstance(content, dict) and isinstance(content.get(n), list))]
    if missing:
        msg = f"{path} is not in COCO format: it has no list {', '.join(repr(n) for n in missing)}"
        raise DataError(msg)
    lists: dict[str, list[Entry]] = {}
    for name in names:
        lists[name] = [e for e in content[name] if isinstance(e, dict)]
        for entry in content[name]:
            if not isinstance(entry, dict):
                problems.add(f"entry of {name!r} that is no object", _short(entry))
    return lists


def sound_categories(
    entries: list[Entry], annotations: list[Entry], wanted: Collection[str], problems: Problems
) -> tuple[dict[str, int], dict[int, int]]:
    """The categories without a fault.

    Some tools (Roboflow) write a category for the whole project, which no box has. It is left out with a note: where it
    has the name of a class this class would be lost, elsewhere it would be learned as one more.

    Args:
        entries: the list `categories`.
        annotations: the list `annotations`.
        wanted: names of those that are needed, whether they have boxes or not.
        problems: gets the faults and notes.

    Returns:
        The id by name; and for the id of each category whose name stands twice the one that its boxes belong to, of
        others that are left out the same id.
    """
    used = {a["category_id"] for a in annotations if _is_id(a.get("category_id"))}
    parents = {parent for entry in entries if isinstance(parent := entry.get("supercategory"), str)}
    ids: dict[str, int] = {}
    same: dict[int, int] = {}
    # Of two of the same name the one with boxes is meant.
    for entry in sorted(entries, key=lambda entry: not _is_in(entry.get("id"), used)):
        name, number = entry.get("name"), entry.get("id")
        if not (isinstance(number, int) and _is_id(number) and isinstance(name, str) and name):
            problems.add("category without a numeric id or a name", _short(entry))
        elif number in ids.values() or number in same:
            problems.add("duplicate category id", f"{number} ({name})")
        elif not 0 <= number <= MAX_CATEGORY_ID:
            problems.add("category id that is not from 0 to 2^63 - 1", f"{number} ({name})")
        elif number not in used and (name in ids or (name in parents and name not in wanted and _has_no_parent(entry))):
            problems.notes.append(f"category {number}, {_short(name)}, is left out: no box has it")
            same[number] = ids.get(name, number)
        elif not is_label(name) or name in RESERVED_LABELS:
            kind = f"category whose name is none for a class (1 to {MAX_LABEL_CHARACTERS} printable characters)"
            problems.add(kind, f"{number} ({_short(name)})")
        elif name in ids:
            problems.add("duplicate category name", f"{name!r}, ids {ids[name]} and {number}")
            same[number] = ids[name]
        else:
            ids[name] = number
    order = [entry.get("name") for entry in entries]
    return dict(sorted(ids.items(), key=lambda item: order.index(item[0]))), same


def _is_in(number: object, numbers: set[int]) -> bool:
    return _is_id(number) and number in numbers


def _has_no_parent(entry: Entry) -> bool:
    return entry.get("supercategory") in (None, "", "none")


def sound_images(
    entries: list[Entry],
    directory: Path,
    category_ids: set[int],
    problems: Problems,
    on_progress: Callable[[int, int], None],
) -> dict[int, Entry]:
    """The images without a fault, by id. Every file is opened, several at a time.

    Args:
        entries: the list `images`.
        directory: what file names are relative to.
        category_ids: all known ids.
        problems: gets the faults.
        on_progress: hears how many of how many files have been checked.

    Returns:
        By id; an image that is annotated as stored, before its EXIF turn, has the `Turn` as `turn`.
    """
    unique: dict[int, Entry] = {}
    for image in entries:
        if kind := _image_problem(image, category_ids):
            problems.add(kind, _short({k: v for k, v in image.items() if k != "labelled"}))
        elif image["id"] in unique:
            problems.add("duplicate image id", f"{image['id']} ({image['file_name']})")
        else:
            unique[image["id"]] = image

    def check(image: Entry) -> PictureCheck:
        try:
            path = find_picture(directory, image["file_name"])
            return check_picture(path, image["width"], image["height"])
        except OSError as error:  # no permission, or a name that is too long
            return PictureCheck(("unreadable image", f"{directory / image['file_name']}: {error.strerror}"))

    images = list(unique.values())
    turned = 0
    with ThreadPoolExecutor() as pool:
        for i, (image, found) in enumerate(zip(images, pool.map(check, images), strict=True), start=1):
            if found.problem:
                problems.add(*found.problem)
                del unique[image["id"]]
            elif found.turn:
                turned += 1
                unique[image["id"]] = image | {"turn": found.turn}
            on_progress(i, len(images))
    if turned:
        problems.notes.append(
            f"{turned} picture{'s are' if turned > 1 else ' is'} annotated as stored, on the side: "
            "boxes are turned with the EXIF orientation"
        )
    return unique


def sound_annotations(
    lists: dict[str, list[Entry]], images: dict[int, Entry], category_ids: set[int], problems: Problems
) -> dict[int, list[Entry]]:
    """The annotations without a fault, by the id of their sound image; those of broken images go with these."""
    by_image: dict[int, list[Entry]] = {image_id: [] for image_id in images}
    mentioned = {image.get("id") for image in lists["images"] if _is_id(image.get("id"))}
    seen: set[int] = set()
    for annotation in lists["annotations"]:
        identity, image_id = annotation.get("id"), annotation.get("image_id")
        where = f"annotation {identity}"
        if not _is_id(identity):
            problems.add("annotation without a numeric id", _short(annotation))
            continue
        if identity in seen:
            problems.add("duplicate annotation id", where)
        elif not _is_id(image_id) or image_id not in mentioned:
            problems.add("annotation of an unknown image", f"{where}, image {image_id!r}")
        elif not _is_id(annotation.get("category_id")) or annotation["category_id"] not in category_ids:
            problems.add("unknown category", f"{where}, category {annotation.get('category_id')!r}")
        elif annotation.get("iscrowd", 0) not in (0, 1):
            problems.add("malformed iscrowd", f"{where}, iscrowd {annotation['iscrowd']!r}")
        elif image_id in images:
            image = images[cast("int", image_id)]
            if kind := _box_problem(annotation.get("bbox"), image["width"], image["height"]):
                problems.add(kind, f"{where} in {image['file_name']}, bbox {_short(annotation.get('bbox'))}")
            else:
                by_image[image["id"]].append(annotation)
        seen.add(cast("int", identity))
    return by_image


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_EXAMPLE_CHARACTERS else text[:_MAX_EXAMPLE_CHARACTERS] + "..."


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _image_problem(image: Entry, category_ids: set[int]) -> str | None:
    name = image.get("file_name")
    if not (_is_id(image.get("id")) and isinstance(name, str) and name and "\0" not in name):
        return "image without a numeric id or a file_name"
    if not all(_is_id(image.get(side)) and image[side] > 0 for side in ("width", "height")):
        return "image without width and height in pixels"
    labelled = image.get("labelled", [])
    if not (isinstance(labelled, list) and all(_is_id(v) for v in labelled)):
        return "malformed 'labelled' (a list of category ids is due)"
    if not category_ids.issuperset(labelled):
        return "unknown category id in 'labelled'"
    return None


def _is_pixels(value: object) -> bool:
    # Not NaN either, and no whole number that is too large for arithmetic with others.
    return isinstance(value, int | float) and abs(value) < _FAR_PIXELS


def _box_problem(box: object, width: float, height: float) -> str | None:
    if box is None:
        return "no box (an outline alone is no bbox)"
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_pixels, box))):
        return "malformed box"
    x, y, w, h = box
    if w < _LEAST_SIDE_PIXELS or h < _LEAST_SIDE_PIXELS:
        return "empty box"
    low, high = -_BORDER_TOLERANCE_PIXELS, _BORDER_TOLERANCE_PIXELS
    if x < low or y < low or x + w > width + high or y + h > height + high:
        return "box outside the image"
    # Within the tolerance at the border, and nothing is left once it is clipped.
    if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < _LEAST_SIDE_PIXELS:
        return "box outside the image"
    return None


def find_picture(directory: Path, name: str) -> Path:
    """The file that an annotation file means, which may have been written on Windows, with backslashes.

    Args:
        directory: what the names are relative to.
        name: as it is written in the annotation file.
    """
    path = directory / name
    if "\\" in name and not path.is_file():
        slashed = directory / name.replace("\\", "/")
        return slashed if slashed.is_file() else path
    return path


class Turn(Enum):
    """How a picture that is stored on its side is made upright; the numbers are those of EXIF's orientation."""

    TRANSPOSED = 5
    CLOCKWISE = 6
    TRANSVERSED = 7
    COUNTER_CLOCKWISE = 8

    def upright(self, box: Sequence[float], width: float, height: float) -> list[float]:
        """A box of the stored picture in pixels of the upright one.

        Args:
            box: x, y, width, height.
            width: pixels of the stored picture.
            height: pixels of the stored picture.
        """
        x, y, w, h = box
        left = y if self in (Turn.TRANSPOSED, Turn.COUNTER_CLOCKWISE) else height - y - h
        top = x if self in (Turn.TRANSPOSED, Turn.CLOCKWISE) else width - x - w
        return [left, top, h, w]


@dataclass(frozen=True)
class PictureCheck:
    """The result of checking a picture file.

    Attributes:
        problem: the kind of fault and an example's text; None when it is sound.
        turn: how it was made upright, where the annotation file describes it as it is stored.
    """

    problem: tuple[str, str] | None = None
    turn: Turn | None = None


def check_picture(path: Path, width: int, height: int) -> PictureCheck:
    """Checks a picture file.

    A truncated file shows by its missing end alone: decoders fill the rest with grey without a word.

    Args:
        path: the picture.
        width: pixels, as the annotation file says.
        height: pixels, as the annotation file says.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file():
        return PictureCheck(("missing image", _missing(path)))
    data = path.read_bytes()
    image = decode_rgb(data)
    kind = _truncated(data)
    if kind or image is None:
        return PictureCheck((kind or "unreadable image", str(path)))
    true_height, true_width = image.shape[:2]
    if (true_width, true_height) == (width, height):
        return PictureCheck()
    if (true_width, true_height) == (height, width) and (turn := _turn_of(data, image)):
        return PictureCheck(turn=turn)
    text = f"{path} is {true_width}x{true_height}, annotated as {width}x{height}"
    return PictureCheck(("image of another size", text))


def _missing(path: Path) -> str:
    """The path of a missing file, with a suggestion."""
    if "\\" in path.name:
        return f"{path} (its name holds backslashes, and with slashes there is no such file either)"
    folder = path.parent
    if not folder.is_dir():
        return f"{path} (there is no folder {folder}; names are relative to --images)"
    for other in (path.with_suffix(path.suffix.swapcase()), path.with_suffix(".jpg"), path.with_suffix(".png")):
        if other.is_file():
            return f"{path} (there is {other.name})"
    return str(path)


def _turn_of(data: bytes, upright: NDArray[np.uint8]) -> Turn | None:
    """How the stored picture was made upright; None where it was not turned."""
    stored = decode_rgb(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is None:
        return None
    transposed = stored.transpose(1, 0, 2)
    turned = {
        Turn.TRANSPOSED: transposed,
        Turn.CLOCKWISE: transposed[:, ::-1],
        Turn.TRANSVERSED: transposed[::-1, ::-1],
        Turn.COUNTER_CLOCKWISE: transposed[::-1],
    }
    return next((turn for turn, image in turned.items() if np.array_equal(image, upright)), None)


def _truncated(data: bytes) -> str | None:
    """The kind of fault, where a JPEG or PNG ends before its end. What follows the end does not count."""
    if data.startswith(_JPEG_START) and not _has_jpeg_end(data):
        return "truncated JPEG"
    if data.startswith(_PNG_START) and not _has_png_end(data):
        return "truncated PNG"
    return None


def _has_jpeg_end(data: bytes) -> bool:
    """Goes from marker to marker (ITU T.81, annex B): a thumbnail or a film within or behind has ends of its own."""
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        kind, at = data[marker.start() + 1], marker.end()
        if kind == _JPEG_END:
            return True
        if kind not in _JPEG_WITHOUT_LENGTH:
            if at + 2 > len(data):
                return False
            # After a scan's header comes compressed data, in which the next marker is searched all the same.
            at += max(int.from_bytes(data[at : at + 2]), 2)
    return False


def _has_png_end(data: bytes) -> bool:
    """Goes from chunk to chunk: length, type, content, checksum."""
    at = len(_PNG_START)
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4])
    return False
