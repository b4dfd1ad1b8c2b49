"""Finds everything that is broken in a COCO-format annotation file, all of it at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from streamdet.errors import DataError
from streamdet.training.picture_files import PictureCheck, check_picture, find_picture

_MAX_EXAMPLES = 3
_MAX_EXAMPLE_CHARACTERS = 100
_FAR_PIXELS = 1e9
_BORDER_TOLERANCE_PIXELS = 1.0

Entry = dict[str, Any]


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
    entries: list[Entry], annotations: list[Entry], problems: Problems
) -> tuple[dict[str, int], dict[int, int]]:
    """The categories without a fault.

    Some tools (Roboflow) write a category for the whole project, which no box has. It is left out with a note: where it
    has the name of a class this class would be lost, elsewhere it would be learned as one more.

    Args:
        entries: the list `categories`.
        annotations: the list `annotations`.
        problems: gets the faults and notes.

    Returns:
        The id by name; and for the id of each category whose name stands twice the one that its boxes belong to.
    """
    used = {a["category_id"] for a in annotations if _is_id(a.get("category_id"))}
    parents = {entry.get("supercategory") for entry in entries}
    ids: dict[str, int] = {}
    same: dict[int, int] = {}
    # Of two of the same name the one with boxes is meant.
    for entry in sorted(entries, key=lambda entry: not _is_in(entry.get("id"), used)):
        name, number = entry.get("name"), entry.get("id")
        if not (isinstance(number, int) and _is_id(number) and isinstance(name, str) and name):
            problems.add("category without a numeric id or a name", _short(entry))
        elif number in ids.values() or number in same:
            problems.add("duplicate category id", f"{number} ({name})")
        elif number not in used and (name in ids or (name in parents and _has_no_parent(entry))):
            problems.notes.append(f"category {number}, {_short(name)}, is left out: no box has it")
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
        path = find_picture(directory, image["file_name"])
        return check_picture(path, image["width"], image["height"])

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
    if w <= 0 or h <= 0:
        return "empty box"
    low, high = -_BORDER_TOLERANCE_PIXELS, _BORDER_TOLERANCE_PIXELS
    if x < low or y < low or x + w > width + high or y + h > height + high:
        return "box outside the image"
    # Within the tolerance at the border, and nothing is left once it is clipped.
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return "box outside the image"
    return None
