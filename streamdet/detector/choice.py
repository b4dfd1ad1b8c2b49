"""What a trial of the engines finds, and which engine, batch size and workers follow from it.

This module does not import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamdet.config import DetectorConfig

_log = logging.getLogger(__name__)

ALL_ENGINES = ("torch", "openvino", "graph")
BATCHES = (1, 2, 4, 8)
"""Frames of a batch that are tried."""

# A gain below this is not worth a later event, more memory, or numbers that are less exact.
_WORTH_IT = 0.95
# Beside captures, which under overload decode several frames for each one that is detected, batches gain less than in
# the trial: a tenth there is no more than a twentieth in the daemon, and the measurement is no more exact than that.
_BATCH_WORTH_IT = 0.9
# A frame waits for all others of its batch. Events are to leave within the time of four detections and 100 ms; this is
# what the batch may take of that, in detections and seconds: the rest is for the frame's age, decoding and delivery.
_LONGEST_BATCH = (3.0, 0.05)
_EXACT_FIRST = ("fp32", "bf16", "int8")
# What a busy machine may have caused is tried again at a later start, this long after the last time; then it stays.
_AGAIN_AFTER_SECONDS = (60.0, 3600.0, 86400.0)


Text = Annotated[str, Field(max_length=500)]
Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
Size = tuple[Pixels, Pixels]
"""Height and width of a frame in pixels."""
Sizes = Annotated[tuple[Size, ...], Field(max_length=16)]
TriedSizes = Annotated[tuple[Size, ...], Field(max_length=256)]
Positive = Annotated[float, Field(gt=0, lt=1e9)]

USUAL_SIZES: tuple[Size, ...] = ((576, 768), (1080, 1920), (1920, 1080), (576, 640), (640, 416), (448, 608))
"""Of frames that are tried: as cameras send them, wide and upright, and such for which engines have crashed."""


class Value(BaseModel):
    """Something that is read from a file or another process: checked, bounded, and never changed."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Candidate(Value):
    """One way to run the model.

    Attributes:
        engine: as in the configuration.
        precision: as in the configuration.
        kernels: whether the CUDA graph contains streamdet's own kernels; plain torch otherwise.
    """

    engine: Literal["torch", "openvino", "graph"]
    precision: Literal["fp32", "bf16", "int8"]
    kernels: bool = True

    @property
    def name(self) -> str:
        """For people."""
        plain = ", plain torch" if self.engine == "graph" and not self.kernels else ""
        return f"{self.engine} {self.precision}{plain}"


REFERENCE = Candidate(engine="torch", precision="fp32")
"""All others are compared with it, and it runs where no other can."""

CANDIDATES = {
    "cpu": (
        REFERENCE,
        Candidate(engine="torch", precision="bf16"),
        Candidate(engine="openvino", precision="fp32"),
        Candidate(engine="openvino", precision="bf16"),
        Candidate(engine="openvino", precision="int8"),
    ),
    "cuda": (
        REFERENCE,
        Candidate(engine="torch", precision="bf16"),
        Candidate(engine="graph", precision="fp32"),
        Candidate(engine="graph", precision="fp32", kernels=False),
        Candidate(engine="graph", precision="bf16"),
        Candidate(engine="graph", precision="bf16", kernels=False),
    ),
}
"""Of each kind of device; the reference first."""


class Outcome(StrEnum):
    """What became of a candidate in its trial."""

    AGREES = "agrees"
    TOO_SLOW = "too slow"
    WRONG = "wrong answer"
    CRASHED = "crashed"
    HUNG = "hung"
    OUT_OF_MEMORY = "out of memory"
    NOT_INSTALLED = "not installed"
    NOT_SUPPORTED = "not supported"
    NOT_COMPARED = "not compared"
    NOT_TRIED = "not tried"
    FAILED = "failed"


# What may pass with time, and what may only if other processes were busy meanwhile. A crash never does: an engine that
# crashes now and then is not used.
_PASSING = frozenset({Outcome.HUNG, Outcome.OUT_OF_MEMORY, Outcome.NOT_COMPARED, Outcome.NOT_TRIED})
_PASSING_WHERE_DISTURBED = frozenset({Outcome.TOO_SLOW, Outcome.WRONG})
_LASTING = frozenset({Outcome.CRASHED, Outcome.WRONG, Outcome.FAILED, Outcome.NOT_SUPPORTED})
_MOST_SIZES = 256


class Timing(Value):
    """How fast a candidate was at one point.

    Attributes:
        batch: frames per batch.
        workers: batches at the same time.
        frames_per_second: of all workers together.
        latency_seconds: of one batch, in the median.
        is_disturbed: whether other processes were busy meanwhile; the speed is that of the CPU time then.
    """

    batch: Annotated[int, Field(ge=1, le=64)]
    workers: Annotated[int, Field(ge=1, le=1024)]
    frames_per_second: Positive
    latency_seconds: Positive
    is_disturbed: bool = False


class Result(Value):
    """What the trial found about a candidate.

    Attributes:
        candidate: what was tried.
        outcome: in a word.
        reason: in a line; empty for one that agrees.
        difference: from torch in fp32, in a line; empty where there was nothing to compare.
        timings: empty unless it agrees.
        proven_sizes: of frames that it has detected, each on a canvas of its own; empty unless it agrees.
        failed_sizes: of frames with which it failed later.
        is_disturbed: whether other processes took more than a tenth of the cores meanwhile.
    """

    candidate: Candidate
    outcome: Outcome
    reason: Text = ""
    difference: Text = ""
    timings: Annotated[tuple[Timing, ...], Field(max_length=64)] = ()
    proven_sizes: TriedSizes = ()
    failed_sizes: TriedSizes = ()
    is_disturbed: bool = False

    @property
    def may_pass(self) -> bool:
        """Whether it may be due to the load of the machine at that time, not to the engine."""
        return self.outcome in _PASSING or (self.is_disturbed and self.outcome in _PASSING_WHERE_DISTURBED)

    def fps(self, most_batch: int, most_workers: int) -> float:
        """The highest frames per second within these bounds; 0 where it was not measured."""
        return max((t.frames_per_second for t in self.within(most_batch, most_workers)), default=0.0)

    def fps_on_cpu(self, most_batch: int, most_workers: int) -> float:
        """The same with the batch size that it would use on a CPU."""
        timings = self.within(most_batch, most_workers)
        return self.fps(_batch(timings), most_workers) if timings else 0.0

    def within(self, most_batch: int, most_workers: int) -> list[Timing]:
        """Timings of batches and workers that may be used."""
        return [t for t in self.timings if t.batch <= most_batch and t.workers <= most_workers]

    def in_words(self) -> str:
        """Outcome and reason."""
        return f"{self.outcome.value}{f': {self.reason}' if self.reason else ''}"

    def with_size(self, size: Size, found: Result) -> Result:
        """The same with what was found later about one more size; what may pass with time is not kept."""
        if found.outcome is Outcome.AGREES:
            return self.model_copy(update={"proven_sizes": (*self.proven_sizes, size)[-_MOST_SIZES:]})
        if found.outcome in _LASTING and not found.may_pass:
            return self.model_copy(update={"failed_sizes": (*self.failed_sizes, size)[-_MOST_SIZES:]})
        return self


class Report(Value):
    """The answer of a trial.

    Attributes:
        key: what it depends on; it holds while these are the same.
        device: "cpu" or such as "cuda:0".
        results: of every candidate.
        frame_sizes: of the streams' last run, which were tried beside the usual ones.
        seconds: that the trial took.
        measured_at: Unix time in seconds.
        repeats: how often it was repeated since for candidates whose result may pass.
    """

    key: dict[Text, Text]
    device: Annotated[str, Field(pattern=r"^(cpu|cuda:[0-9]{1,2})$")]
    results: Annotated[tuple[Result, ...], Field(max_length=32)]
    frame_sizes: Sizes = ()
    seconds: Annotated[float, Field(ge=0)]
    measured_at: Annotated[float, Field(ge=0)]
    repeats: Annotated[int, Field(ge=0)] = 0

    @property
    def doubtful(self) -> tuple[Candidate, ...]:
        """Candidates to try again at a later start: the load of the machine may be the cause of their results."""
        is_last = self.repeats >= len(_AGAIN_AFTER_SECONDS)
        return () if is_last else tuple(result.candidate for result in self.results if result.may_pass)

    def is_due(self, now: float) -> bool:
        """Whether it is time to try the doubtful candidates again.

        Args:
            now: Unix time in seconds.
        """
        return bool(self.doubtful) and abs(now - self.measured_at) >= _AGAIN_AFTER_SECONDS[self.repeats]

    def repeated(self, later: Report) -> Report:
        """The same with what was found later about the doubtful candidates; what agreed once is not doubted."""
        doubtful = self.doubtful
        found = {result.candidate: result for result in later.results if result.candidate in doubtful}
        results = tuple(found.get(result.candidate, result) for result in self.results)
        return self.model_copy(
            update={"results": results, "measured_at": later.measured_at, "repeats": self.repeats + 1}
        )

    def result(self, candidate: Candidate) -> Result | None:
        """Of this candidate; None where it was not tried."""
        return next((result for result in self.results if result.candidate == candidate), None)

    def with_size(self, size: Size, found: Result) -> Report:
        """The same with what was found later about a candidate and one more size."""
        results = (r.with_size(size, found) if r.candidate == found.candidate else r for r in self.results)
        return self.model_copy(update={"results": tuple(results)})


@dataclass(frozen=True)
class Choice:
    """What is to run.

    Attributes:
        candidate: engine and precision.
        max_batch_size: most frames of a batch.
        workers: batches at the same time on a CPU; None where nothing was measured.
        left_out: name of each other candidate, and why it does not run.
        longest_batch_seconds: that a batch may take, on a CPU that has other work as well; None where the size of
            batches is up to the file, or nothing was measured.
        is_proven: whether a trial here found that it works.
        proven_sizes: of frames that it has detected in its trial.
        failed_sizes: of frames with which it has failed.
    """

    candidate: Candidate
    max_batch_size: int
    workers: int | None
    left_out: tuple[tuple[str, str], ...]
    longest_batch_seconds: float | None = None
    is_proven: bool = True
    proven_sizes: tuple[Size, ...] = ()
    failed_sizes: tuple[Size, ...] = ()


def candidates_of(config: DetectorConfig, results: Sequence[Result], engines: Sequence[str]) -> list[Result]:
    """Results of those candidates that the configuration and the caller allow."""
    return [
        result
        for result in results
        if result.candidate.engine in engines
        and config.engine in {"auto", result.candidate.engine}
        and config.precision in {"auto", result.candidate.precision}
        and (config.device != "cuda:all" or result.candidate.engine == "graph")
    ]


def choose(config: DetectorConfig, report: Report | None, engines: Sequence[str] = ALL_ENGINES) -> Choice:
    """The fastest that agrees; of those that are about as fast, the one whose numbers are the most exact.

    On a CPU each is rated with the batch size that it would use: the smallest that comes within a tenth of the best
    throughput; but none that takes longer than three single detections and 50 ms, however much it gains, so that
    events are published early. The workers are the fewest that come within 5 % of the best with that batch.

    Args:
        config: restricts the candidates; `max_batch_size` is an upper bound.
        report: of the trial; None without a trial.
        engines: that the caller can run.
    """
    results = candidates_of(config, report.results, engines) if report else []
    most_workers = config.workers or 1024
    most_batch = config.largest_batch if config.max_batch_size != "auto" else max(BATCHES)
    on_cpu = report is not None and report.device == "cpu"

    def fps_of(result: Result) -> float:
        return result.fps_on_cpu(most_batch, most_workers) if on_cpu else result.fps(most_batch, most_workers)

    rated = [(fps_of(r), r) for r in results if r.outcome is Outcome.AGREES]
    best = max((fps for fps, _ in rated), default=0.0)
    good = [result for fps, result in rated if fps >= _WORTH_IT * best]
    if report is None or not good:
        left_out = tuple((r.candidate.name, r.in_words()) for r in results if r.candidate != REFERENCE)
        # Where nothing was measured, larger batches on a CPU mean later events and more memory, and mostly no gain.
        batch = 1 if on_cpu and config.max_batch_size == "auto" else config.largest_batch
        # A file of `streamdet export`, with which the reference cannot be tried, runs in one way alone.
        only = results[0].candidate if report and results and report.result(REFERENCE) is None else None
        return Choice(only or _fallback(config, engines), batch, None, left_out, is_proven=False)
    taken = min(good, key=lambda r: (_EXACT_FIRST.index(r.candidate.precision), -fps_of(r)))
    left_out = tuple(
        (r.candidate.name, _slower(fps_of(r), fps_of(taken)) or r.in_words()) for r in results if r is not taken
    )
    whole = Choice(
        taken.candidate,
        config.largest_batch,
        None,
        left_out,
        proven_sizes=taken.proven_sizes,
        failed_sizes=taken.failed_sizes,
    )
    timings = taken.within(most_batch, most_workers)
    if not on_cpu or not timings:
        return whole
    batch = _batch(timings)
    of_batch = [t for t in timings if t.batch == batch]
    fps = max(t.frames_per_second for t in of_batch)
    frugal = min((t for t in of_batch if t.frames_per_second >= _WORTH_IT * fps), key=lambda t: t.workers)
    longest_seconds = _longest_batch_seconds(timings) if config.max_batch_size == "auto" else None
    return replace(whole, max_batch_size=frugal.batch, workers=frugal.workers, longest_batch_seconds=longest_seconds)


def _batch(timings: Sequence[Timing]) -> int:
    """The smallest batch that gains nearly all there is to gain, of those that are over soon enough."""
    compared = _with_all_workers(timings)
    longest_seconds = _longest_batch_seconds(timings)
    soon = [t for t in compared if t.latency_seconds <= longest_seconds] or [min(compared, key=lambda t: t.batch)]
    fps = max(t.frames_per_second for t in soon)
    return min(t.batch for t in soon if t.frames_per_second >= _BATCH_WORTH_IT * fps)


def _longest_batch_seconds(timings: Sequence[Timing]) -> float:
    detections, seconds = _LONGEST_BATCH
    single = min(_with_all_workers(timings), key=lambda t: t.batch)
    return detections * single.latency_seconds / single.batch + seconds


def _with_all_workers(timings: Sequence[Timing]) -> list[Timing]:
    workers = max(t.workers for t in timings)
    return [t for t in timings if t.workers == workers]


def verdict(result: Result, choice: Choice) -> str:
    """In a word or two, for the table: "fastest" for the one that is taken, "slower" for what agrees."""
    if result.candidate == choice.candidate and choice.is_proven:
        return "fastest"
    return "slower" if result.outcome is Outcome.AGREES else result.outcome.value


def _slower(fps: float, best: float) -> str:
    if not fps:
        return ""
    if fps >= _WORTH_IT * best:
        return f"about as fast ({fps:.0f} frames/s), less exact or no better"
    return f"slower: {fps:.0f} frames/s, not {best:.0f}"


def _fallback(config: DetectorConfig, engines: Sequence[str]) -> Candidate:
    """What runs where no trial helps: torch in fp32, or what the configuration names, in fp32."""
    engine = config.engine if config.engine in engines else "torch"
    precision = "fp32" if config.precision == "auto" else config.precision
    if config.engine == "auto" and precision == "int8" and "openvino" in engines:
        engine = "openvino"  # the only one that has it
    if config.device == "cuda:all" and "graph" in engines:
        engine = "graph"
    return Candidate.model_validate({"engine": engine, "precision": precision})


def settled(config: DetectorConfig, choice: Choice) -> tuple[DetectorConfig, Choice]:
    """The configuration with what was chosen; a choice that no trial has proven is said in a warning."""
    if not choice.is_proven:
        why = "; ".join(f"{name}: {reason}" for name, reason in choice.left_out) or "the trial gave no answer"
        _log.warning("no engine passed the trial on this machine: running %s (%s)", choice.candidate.name, why)
    update: dict[str, object] = {"max_batch_size": choice.max_batch_size}
    if choice.candidate != REFERENCE or choice.is_proven:
        update |= {"engine": choice.candidate.engine, "precision": choice.candidate.precision}
    # Else "auto" stays: it means torch in fp32 from here on, or what an exported file needs where no trial was held.
    return config.model_copy(update=update), choice
