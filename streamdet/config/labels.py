"""Which labels detections will carry, as far as that is known without loading the detector."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from streamdet.config.checks import labels_of, weights_path
from streamdet.config.locate import Path as KeyPath
from streamdet.config.models import Config
from streamdet.config.shapes import SHAPES


def unknown_labels(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """Tells which labels of zones, lines and masks no detection will ever have."""
    known = _published_labels(config)
    if known is None:
        return
    for number, stream in enumerate(config.streams):
        for key in SHAPES:
            for index, shape in enumerate(getattr(stream, key)):
                for label in sorted({*shape.labels} - {*known}):
                    near = difflib.get_close_matches(label, known, 1, cutoff=0.6)
                    meant = f'did you mean "{near[0]}"?' if near else f"published are {', '.join(known)}"
                    path = ("streams", number, key, index, "labels")
                    yield path, f'hold "{label[:40]}", which is no label that is published; {meant}'


def _published_labels(config: Config) -> list[str] | None:
    """None where only the detector itself knows them."""
    if config.detector.labels:
        return list(config.detector.labels)
    path = weights_path(config.detector.weights)
    try:
        return None if path is None else labels_of(path)
    except ValueError:
        return None  # what is wrong with the file is told of `[detector]`
