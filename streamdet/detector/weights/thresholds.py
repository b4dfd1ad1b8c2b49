"""Labels and score thresholds, for each class that the weights know."""

from __future__ import annotations

import difflib

from streamdet.config import DetectorConfig
from streamdet.errors import DetectorError
from streamdet.types import DetectionSettings

NEVER = 2.0
"""A threshold that no score is above."""

_UNUSED_LABEL = "N/A"  # COCO's ids have gaps


def known_labels(classes: tuple[str, ...], config: DetectorConfig) -> tuple[str, ...]:
    """Every label that a detection may carry.

    Args:
        classes: name of each class, [0] is the background.
        config: names labels.

    Raises:
        DetectorError: the configuration names a label that the weights do not have.
    """
    known = tuple(label for label in classes[1:] if label != _UNUSED_LABEL)
    for key, names in (("labels", config.labels), ("score_thresholds", tuple(config.score_thresholds))):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                msg = f"detector.{key}: unknown label {name!r}; did you mean {near!r}? Known are {', '.join(known)}"
                raise DetectorError(msg)
    return known


def thresholds_of(classes: tuple[str, ...], settings: DetectionSettings) -> list[float]:
    """The score that a detection of each class must exceed.

    Args:
        classes: name of each class, [0] is the background.
        settings: thresholds and wanted labels; those that the weights do not know have no effect.
    """
    wanted = settings.labels or tuple(label for label in classes if label != _UNUSED_LABEL)
    own = dict(settings.score_thresholds)
    limits = [own.get(label, settings.score_threshold) if label in wanted else NEVER for label in classes[1:]]
    return [NEVER, *limits]
