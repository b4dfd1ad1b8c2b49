# ruff: noqa: INP001 - part of a program, not a module
"""Whether the daemon held: what was counted, and how memory went."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from streamdet.detector.memory import TRIM_SECONDS

MAX_GROWTH_PERCENT_PER_HOUR = 1.0
_Z_95_PERCENT = 1.96


@dataclass(frozen=True)
class Slope:
    """How memory goes, in percent of its median per hour.

    Attributes:
        estimate: the middle one of the slopes between any two points (Theil and Sen).
        low: with 95 % confidence it is at least this much (Sen's interval, from Kendall's variance).
        high: and at most this much.
    """

    estimate: float
    low: float
    high: float

    @property
    def grows(self) -> bool:
        """Whether memory grows, and not by chance, by more than is allowed."""
        return self.estimate > MAX_GROWTH_PERCENT_PER_HOUR and self.low > 0


def memory_slope(at_seconds: Sequence[float], resident: Sequence[float]) -> Slope:
    """The slope over the least of each minute.

    Once a minute the daemon gives back what is not in use. What is resident then is what it needs; in between there
    are batches, and faults that take memory and give it back.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for at, size in zip(at_seconds, resident, strict=True):
        bins.setdefault(int(at // TRIM_SECONDS), []).append((at, size))
    points = [min(b, key=lambda point: point[1]) for b in bins.values()]
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))
    if not slopes:
        return Slope(math.nan, -math.inf, math.inf)
    n = len(points)
    half = _Z_95_PERCENT * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = slopes[max(0, math.floor((len(slopes) - half) / 2))]
    high = slopes[min(len(slopes) - 1, math.ceil((len(slopes) + half) / 2))]
    percent = 100 * 3600 / statistics.median(resident)
    return Slope(*(round(slope * percent, 3) for slope in (statistics.median(slopes), low, high)))
