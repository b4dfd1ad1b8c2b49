from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamdet.training.dataset import Category, Dataset, Sample
from streamdet.training.metrics import COCO_NUMBERS, ImageDetections, coco_metrics, confusion_matrix

# What COCO's own evaluator, pycocotools 2.0.11, says of the data in the first test.
_PYCOCOTOOLS = [
    0.261266,
    0.516064,
    0.199355,
    0.030603,
    0.37549,
    0.75,
    0.184559,
    0.425368,
    0.425368,
    0.141667,
    0.479167,
    0.75,
]
CATEGORIES = [Category(1, "person"), Category(3, "car")]


def _sample(
    image_id: int,
    boxes: list[list[float]],
    labels: list[int],
    ignore: list[list[float]] | None = None,
    labelled: tuple[bool, bool] = (True, True),
) -> Sample:
    return Sample(
        image_id,
        Path(f"{image_id}.jpg"),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(ignore or [], np.float32).reshape(-1, 4),
        np.array([True, *labelled]),
    )


def _found(*rows: tuple[list[float], float, int]) -> ImageDetections:
    return ImageDetections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )


def test_numbers_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    samples, detections = [], []
    for image_id in range(1, 13):
        count = int(rng.integers(1, 6))
        corner, side = rng.uniform(0, 200, (count, 2)), rng.uniform(8, 120, (count, 2))
        boxes = np.hstack([corner, corner + side])
        labels = rng.integers(1, 3, count)
        samples.append(_sample(image_id, boxes.tolist(), labels.tolist()))
        shaken = boxes + rng.normal(0, 5, boxes.shape)
        wrong = np.where(rng.random(count) < 0.2, 3 - labels, labels)
        rows = [(b.tolist(), float(rng.random()), int(c)) for b, c in zip(shaken, wrong, strict=True)]
        detections.append(_found(*rows, ([1.0, 1.0, 30.0, 30.0], float(rng.random()), 1)))
    dataset = Dataset(samples, CATEGORIES)
    metrics = coco_metrics(dataset, detections)
    assert [metrics.numbers[name] for name in COCO_NUMBERS] == pytest.approx(_PYCOCOTOOLS, abs=1e-6)
    assert np.mean([v["ap"] for v in metrics.per_class.values()]) == pytest.approx(metrics.numbers["map"])


@pytest.mark.parametrize("first", [-5, 1 << 53, 1 << 62, 10**30])
def test_numbers_do_not_depend_on_the_ids_of_pictures(first: int) -> None:
    """Two ids that are one as a floating-point number, and ids that are no 64-bit number."""
    samples = [_sample(number, [[0, 0, 40, 40]], [1]) for number in (first, first + 1, first + 2)]
    found = [_found(([0, 0, 40, 40], 0.9, 1)), _found(([50, 50, 90, 90], 0.8, 1)), _found()]
    metrics = coco_metrics(Dataset(samples, CATEGORIES[:1]), found)
    assert metrics.per_class["person"]["ap_50"] == pytest.approx(34 / 101)  # precision 1 up to a recall of a third


def test_a_hand_made_case() -> None:
    """Two persons; the better scored detection is right, one is nothing, one person is missed."""
    dataset = Dataset([_sample(1, [[0, 0, 40, 40], [50, 50, 90, 90]], [1, 1])], CATEGORIES[:1])
    found = _found(([0, 0, 40, 40], 0.9, 1), ([100, 100, 120, 120], 0.8, 1))
    metrics = coco_metrics(dataset, [found])
    # Precision 1 up to recall 0.5: 51 of 101 points.
    assert metrics.per_class["person"]["ap_50"] == pytest.approx(51 / 101)
    assert metrics.numbers["mar_100"] == pytest.approx(0.5)


def test_a_class_counts_only_where_it_is_labelled() -> None:
    right, stray = ([0, 0, 40, 40], 0.6, 1), ([50, 50, 90, 90], 0.9, 2)
    boxes = [[0, 0, 40, 40]]
    full = [_sample(1, [*boxes, [100, 0, 140, 40]], [1, 2]), _sample(2, boxes, [1])]
    partial = [full[0], _sample(2, boxes, [1], labelled=(True, False))]
    found = [_found(right, ([100, 0, 140, 40], 0.5, 2)), _found(right, stray)]
    assert coco_metrics(Dataset(full, CATEGORIES), found).per_class["car"]["ap_50"] == pytest.approx(0.5)
    assert coco_metrics(Dataset(partial, CATEGORIES), found).per_class["car"]["ap_50"] == pytest.approx(1.0)
    matrix = confusion_matrix(Dataset(partial, CATEGORIES), found, 0.5)
    assert matrix.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    # The box of a class that the picture does not label throughout does not count either.
    odd = [_sample(1, boxes, [1], labelled=(False, True)), full[0]]
    assert coco_metrics(Dataset(odd, CATEGORIES), [_found(), found[0]]).per_class["person"]["ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("label", [1, 2])
def test_an_ignored_area_excuses_any_class(label: int) -> None:
    boxes, truth = [[0, 0, 40, 40]], [label]
    found = [_found(([0, 0, 40, 40], 0.5, label), ([60, 60, 80, 80], 0.9, label), ([62, 62, 82, 82], 0.8, label))]
    strict = Dataset([_sample(1, boxes, truth)], CATEGORIES)
    lenient = Dataset([_sample(1, boxes, truth, ignore=[[50, 50, 100, 100]])], CATEGORIES)
    name = CATEGORIES[label - 1].name
    assert coco_metrics(strict, found).per_class[name]["ap_50"] == pytest.approx(1 / 3)
    assert coco_metrics(lenient, found).per_class[name]["ap_50"] == pytest.approx(1.0)
    assert confusion_matrix(strict, found, 0.1)[2, label - 1] == 2
    assert confusion_matrix(lenient, found, 0.1)[2].sum() == 0


def test_nothing_found_and_nothing_there() -> None:
    dataset = Dataset([_sample(1, [[0, 0, 40, 40]], [1])], CATEGORIES)
    nothing = coco_metrics(dataset, [_found()])
    assert nothing.numbers["map"] == 0.0
    assert nothing.per_class["car"] == {"ap": -1.0, "ap_50": -1.0}
    empty = Dataset([_sample(1, [], [])], CATEGORIES)
    for found in (_found(), _found(([0, 0, 9, 9], 0.5, 1))):
        assert coco_metrics(empty, [found]).numbers["map"] == -1.0


def test_confusion_counts_mistaken_missed_and_invented() -> None:
    dataset = Dataset([_sample(1, [[0, 0, 40, 40], [50, 50, 90, 90], [0, 60, 20, 80]], [1, 2, 2])], CATEGORIES)
    found = _found(
        ([0, 0, 40, 40], 0.9, 2), ([50, 50, 90, 88], 0.8, 2), ([200, 200, 220, 220], 0.7, 1), ([0, 60, 20, 80], 0.2, 2)
    )
    assert confusion_matrix(dataset, [found], 0.5).tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
