"""Measures several contenders in alternating rounds, so that a slowdown of the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from streamdet.bench.cases import Case
from streamdet.bench.contenders import Contender, Sample
from streamdet.types import DetectionSettings

MIN_ROUNDS = 3


@dataclass
class Measured:
    """The results of one case.

    Attributes:
        model: its name.
        case: what ran.
        samples: a round each, in time order.
        reference: those of torchvision's forward in the same rounds; empty when it was not measured.
        floor_seconds: what the arithmetic alone would take at the machine's peak; None when that is not known.
    """

    model: str
    case: Case
    samples: list[Sample] = field(default_factory=list)
    reference: list[Sample] = field(default_factory=list)
    floor_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Median time of a frame."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU time of a frame."""
        return statistics.median(sample.cpu_seconds for sample in self.samples)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Median time of a frame in each stage, over the rounds that reported stages: a graph does so now and then."""
        reported = [sample.stage_seconds for sample in self.samples if sample.stage_seconds]
        return {
            stage: statistics.median(s.get(stage, 0.0) for s in reported) for stage in (reported[0] if reported else ())
        }

    @property
    def speedup(self) -> float | None:
        """How many times faster than torchvision's forward in the same rounds."""
        if not self.reference:
            return None
        return speedup([s.seconds for s in self.reference], [s.seconds for s in self.samples])

    @property
    def floor_share(self) -> float | None:
        """Share of the time that the arithmetic alone would need; 1 if nothing more can be gained."""
        return None if self.floor_seconds is None else self.floor_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        low, high = quartiles([sample.seconds for sample in self.samples])
        ratio, share = self.speedup, self.floor_share
        return {
            "model": self.model,
            "engine": self.case.engine,
            "precision": self.case.precision,
            "batch": self.case.batch,
            "workers": self.case.workers,
            "ms_per_frame": round(1000 * self.seconds, 3),
            "ms_per_frame_quartiles": [round(1000 * low, 3), round(1000 * high, 3)],
            "cpu_ms_per_frame": round(1000 * self.cpu_seconds, 3),
            "frames_per_second": round(1 / self.seconds, 2),
            "rounds": len(self.samples),
            "speedup_over_torchvision": None if ratio is None else round(ratio, 3),
            "floor_share": None if share is None else round(share, 4),
            "stages_ms": {stage: round(1000 * seconds, 3) for stage, seconds in self.stage_seconds.items()},
        }


def compare(
    contenders: Mapping[Case, Contender],
    frames: Sequence[av.VideoFrame],
    measured: Mapping[Case, Measured],
    seconds: float,
    on_sample: Callable[[float], None],
) -> None:
    """Runs rounds over all contenders until the time is over, but at least `MIN_ROUNDS` and one to warm up.

    Args:
        contenders: of one batch size; the first is what the others are compared with.
        frames: real ones.
        measured: gets the samples, so that what is there stays when the rounds are broken off.
        seconds: how long to go on.
        on_sample: called after each sample with the progress, 0 to 1.
    """
    began = time.monotonic()
    for case, contender in contenders.items():
        contender.round(frames, case.batch)
        on_sample(0.0)
    first = next(iter(contenders))
    rounds = 0
    while rounds < MIN_ROUNDS or time.monotonic() - began < seconds:
        # What is broken off within a round must not leave halves of comparisons behind.
        samples = {}
        for case, contender in contenders.items():
            samples[case] = contender.round(frames, case.batch)
            share = (rounds + len(samples) / len(contenders)) / MIN_ROUNDS
            on_sample(min(share, (time.monotonic() - began) / max(seconds, 1e-9), 1.0))
        for case, sample in samples.items():
            measured[case].samples.append(sample)
            measured[case].reference.append(samples[first])
        rounds += 1


def low_threshold_ratio(
    contender: Contender, frames: Sequence[av.VideoFrame], batch: int, seconds: float
) -> tuple[float, float]:
    """How much longer a batch takes in which one frame has a threshold of 0.05 and the others have 0.5.

    Args:
        contender: detects.
        frames: real ones.
        batch: frames of a batch, 2 at least.
        seconds: how long to go on; the fewest rounds are done anyway.

    Returns:
        the time of the batch as a part of that of one in which all have 0.5, the median over rounds of both; and the
        seconds of a frame in the latter.
    """
    high = [DetectionSettings(score_threshold=0.5)] * batch
    mixed = [DetectionSettings(score_threshold=0.05), *high[1:]]
    ends_at = time.monotonic() + seconds
    contender.round(frames, batch, high)
    pairs: list[list[float]] = []
    while len(pairs) < MIN_ROUNDS or time.monotonic() < ends_at:
        pairs.append([contender.round(frames, batch, settings).seconds for settings in (mixed, high)])
    return speedup(*zip(*pairs, strict=True)), statistics.median(seconds for _, seconds in pairs)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The values below which a quarter and three quarters lie."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def speedup(reference: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster: the median over the rounds, each compared with itself.

    A machine that slows down for a while slows both halves of a round, which a comparison of medians would miss.

    Args:
        reference: time of each round, the first of which belongs to the first of `other`, and so on.
        other: the same of what is compared.
    """
    return statistics.median(slow / fast for slow, fast in zip(reference, other, strict=False))
