"""The score thresholds of the configuration, for each class that the weights know."""

from __future__ import annotations

import difflib

from streamdet.config import DetectorConfig
from streamdet.errors import DetectorError

NEVER = 2.0
"""A threshold that no score is above."""

_UNUSED_LABEL = "N/A"  # COCO's ids have gaps


def thresholds_of(labels: tuple[str, ...], config: DetectorConfig) -> list[float]:
    """The score that a detection of each class must exceed.

    Args:
        labels: name of each class, [0] is the background.
        config: thresholds and wanted labels.

    Raises:
        DetectorError: the configuration names a label that the weights do not have.
    """
    known = [label for label in labels[1:] if label != _UNUSED_LABEL]
    for key, names in (("labels", config.labels), ("score_thresholds", tuple(config.score_thresholds))):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                msg = f"detector.{key}: unknown label {name!r}; did you mean {near!r}? Known are {', '.join(known)}"
                raise DetectorError(msg)
    wanted = config.labels or tuple(known)
    default = config.score_threshold
    limits = [config.score_thresholds.get(label, default) if label in wanted else NEVER for label in labels[1:]]
    return [NEVER, *limits]
