"""COCO-format data sets, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamdet.errors import ConfigError, DataError
from streamdet.training.dataset_check import (
    Entry,
    Problems,
    load_annotations,
    sound_annotations,
    sound_categories,
    sound_images,
)
from streamdet.training.picture_files import Turn, find_picture


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
    ids, same = sound_categories(lists["categories"], lists["annotations"], problems)
    categories = _choose_categories(ids, category_names, annotations, problems)
    known = {*ids.values(), *same}
    sound = sound_images(lists["images"], images, known, problems, on_progress or (lambda _done, _total: None))
    by_image = sound_annotations(lists, sound, known, problems)
    for annotation in (a for annotations in by_image.values() for a in annotations):
        annotation["category_id"] = same.get(annotation["category_id"], annotation["category_id"])
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
    if names is None:
        return [Category(number, name) for name, number in ids.items()]
    missing = [name for name in names if name not in ids]
    if missing:
        msg = f"{path} has no category {', '.join(missing)}; it has {', '.join(ids)}"
        raise ConfigError([msg])
    return [Category(ids[name], name) for name in dict.fromkeys(names)]


def _telling(samples: list[Sample]) -> list[Sample]:
    """Those that say something about one of the categories at least."""
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
