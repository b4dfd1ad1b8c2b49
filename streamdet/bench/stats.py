"""Figures of a few noisy measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies, between two of them by a straight line.

    Args:
        values: at least one, in any order.
        share: 0 to 1.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The values below which a quarter and three quarters lie."""
    return quantile(values, 0.25), quantile(values, 0.75)


def speedup(reference: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster: the median over the rounds, each compared with itself.

    A machine that slows down for a while slows both halves of a round, which a comparison of medians would miss.

    Args:
        reference: time of each round, the first of which belongs to the first of `other`, and so on.
        other: the same of what is compared.
    """
    return statistics.median(slow / fast for slow, fast in zip(reference, other, strict=False))
