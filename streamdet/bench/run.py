"""Runs the measurements in order: load, compare, loop, daemon, capacity. An interrupted run keeps its results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamdet.assets import sample_clip
from streamdet.bench.analytics import measure_analytics
from streamdet.bench.cases import PRECISIONS, REFERENCE, Case, Model, load_exported, load_model, ways, with_int8
from streamdet.bench.compare import MIN_ROUNDS, Measured, compare, low_threshold_ratio
from streamdet.bench.contenders import Contender, make_contender
from streamdet.bench.end_to_end import OVERLOAD_ROUNDS, EndToEnd, Step
from streamdet.bench.floor import floor_seconds, flops_of, measure_peak
from streamdet.bench.frames import Size, describe, make_clip, pictures, read_frames
from streamdet.bench.machine import Disturbance, DisturbanceWatch, core_count, machine_facts
from streamdet.config import DetectorConfig
from streamdet.detector.choice import Choice
from streamdet.detector.device import choose_device
from streamdet.detector.missing import missing_parts
from streamdet.detector.reference import torchvision_model
from streamdet.detector.trial import settle
from streamdet.detector.weights import Weights
from streamdet.detector.weights.torchvision import PUBLISHED
from streamdet.errors import DetectorError, StreamdetError

BATCHES = (1, 4, 8, 16)

# Share of torchvision's time that streamdet's engines take, roughly; used for estimates only.
_USUAL_SHARE = 0.5

# Of the time; what is not here is loading.
_SHARES = {
    "peak": 0.02,
    "compare": 0.3,
    "low_threshold": 0.02,
    "analytics": 0.04,
    "plain": 0.04,
    "decode": 0.02,
    "stand_in": 0.06,
    "saturated": 0.08,
    "paced": 0.08,
    "overload": 0.34,
}
_LARGEST_DAEMON_BATCH = 8
_MAX_STREAMS = 64
_OVERLOAD_BATCHES = (1, 2, 4, 8)
_DAEMON_RUNS = 3 + OVERLOAD_ROUNDS * (1 + len(_OVERLOAD_BATCHES))
_MIXED_BATCH = 8
# Seconds of video that the analytics take in a second, roughly, in all steps.
_VIDEO_PER_SECOND = 0.5
_LEAST_VIDEO_SECONDS = 0.2


@dataclass(frozen=True)
class Options:
    """What to measure; empty tuples mean everything.

    Attributes:
        models: names or files; the first is also the daemon's.
        engines: of `cases.ENGINES`.
        precisions: of `cases.PRECISIONS`.
        batches: frames per batch.
        workers: batches at the same time; empty for one per core.
        seconds: of measuring, all together.
        exported: a file of `streamdet export`, to be compared with what it was made of.
        frames: a video of the user's; None for the sample clip.
        size: width and height of the frames; None for 1920x1080, or that of the user's video.
        fps: of each stream; None for 10, or that of the user's video.
        streams: of the daemon; None for as many as fit.
        device: "auto", "cpu", "cuda" or "cuda:N".
        daemon: whether to measure the daemon at all.
        capacity_only: whether to measure nothing that the capacity does not follow from.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    workers: tuple[int, ...] = ()
    seconds: float = 120.0
    exported: Path | None = None
    frames: Path | None = None
    size: Size | None = None
    fps: float | None = None
    streams: int | None = None
    device: str = "auto"
    daemon: bool = True
    capacity_only: bool = False


@dataclass
class Results:
    """What has been measured so far.

    Attributes:
        machine: facts of it.
        detector: a row for each case that has samples.
        peaks: operations per second by precision; None where they could not be measured.
        flops: of one frame, by model.
        origins: where the weights of each model are from.
        plain_loop: of OpenCV and torchvision; None before it was measured, as all that follow.
        daemon: "saturated" and "paced".
        capacity: streams, and what that was computed from.
        low_threshold: what a low threshold of one stream costs the others.
        analytics: what tracking, zones, objects, rules and events take of a core.
        disturbance: what else went on.
        notes: what people should know, a line each.
        interrupted: broken off by Ctrl-C.
        error: why the rest could not be measured.
    """

    machine: dict[str, Any]
    detector: list[Measured] = field(default_factory=list)
    peaks: dict[str, float | None] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    plain_loop: dict[str, Any] | None = None
    daemon: dict[str, Any] = field(default_factory=dict)
    capacity: dict[str, Any] | None = None
    low_threshold: dict[str, Any] | None = None
    analytics: dict[str, Any] | None = None
    disturbance: Disturbance | None = None
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    error: StreamdetError | None = None


class Bench:
    """One run.

    Args:
        options: what to measure.
        on_plan: called with the seconds that it will take, before it begins to measure.
        on_step: called with what is going on, and the progress of the run, 0 to 1.
        choice: what the daemon runs by itself, which is measured then; None to give it the fastest of the comparison.

    Attributes:
        results: grow while it runs.

    Raises:
        StreamdetError: a model, the video or the device is no good.
    """

    def __init__(
        self,
        options: Options,
        on_plan: Callable[[float], None],
        on_step: Callable[[str, float], None],
        choice: Choice | None = None,
    ) -> None:
        self._options = options
        self._choice = choice
        self._on_plan = on_plan
        self._step = Step(on_step)
        self._device = choose_device(options.device)
        source = options.frames or sample_clip()
        found = describe(source)
        own = options.frames is not None
        self._source = source
        self._size = options.size or (found.size if own else (1920, 1080))
        self._fps = options.fps or (found.fps if own else 10.0)
        self._frames = read_frames(source, self._size)
        self._models = [self._with_exported(load_model(name)) for name in options.models]
        self.results = Results(machine_facts(self._device))
        self.results.origins = {model.name: model.origin for model in self._models}

    def _with_exported(self, model: Model) -> Model:
        options = self._options
        exported = None if options.exported is None else load_exported(options.exported)
        if exported is not None and exported.architecture == model.weights.architecture:
            return replace(model, exported=exported)
        return with_int8(model, options.engines, options.precisions, self._device)

    def run(self) -> None:
        """Measures everything; Ctrl-C or an error of the daemon ends it early, and the results say so."""
        try:
            with tempfile.TemporaryDirectory(prefix="streamdet-bench-") as folder, ExitStack() as stack:
                self._compare(stack)
                if self._options.daemon:
                    self._measure_daemon(Path(folder))
        except KeyboardInterrupt:
            self.results.interrupted = True
        except StreamdetError as error:
            # What has been measured is not lost because the rest cannot be.
            if not any(row.samples for row in self.results.detector):
                raise
            self.results.error = error
        self.results.detector = [row for row in self.results.detector if row.samples]

    def _compare(self, stack: ExitStack) -> None:
        self._step.begin("loading the models", 0.0)
        contenders = {model.name: self._load(model, stack) for model in self._models}
        self._step.begin("measuring the peak of this machine", 0.0)
        self._measure_peaks({case.precision for cases in contenders.values() for case in cases})
        seconds = self._options.seconds * _SHARES["compare"]
        frame_seconds = {model.name: self._frame_seconds(contenders[model.name]) for model in self._models}
        counts = {name: len(cases) for name, cases in contenders.items()}
        groups, left_out = plan_groups(frame_seconds, counts, self._options.batches, seconds)
        self.results.notes += left_out
        compare_seconds = sum(group.seconds for group in groups)
        if self._options.capacity_only:
            share, starts = _SHARES["decode"] + _SHARES["stand_in"], 1
        elif self._options.daemon:
            share, starts = sum(_SHARES.values()) - _SHARES["peak"] - _SHARES["compare"], _DAEMON_RUNS
        else:
            share, starts = _SHARES["low_threshold"], 0
        self._on_plan(self._step.plan(compare_seconds + self._options.seconds * share, starts))
        watch = DisturbanceWatch()
        try:
            for group in groups:
                self._compare_group(group, contenders[group.model])
            if not self._options.capacity_only:
                self._measure_low_threshold(contenders[self._models[0].name])
        finally:
            self.results.disturbance = watch.result()

    def _load(self, model: Model, stack: ExitStack) -> dict[Case, Contender]:
        """A contender for each way that this machine has; torchvision's first. Batch sizes are filled in later."""
        options = self._options
        largest = max(options.batches or (16,))
        pairs = dict.fromkeys(ways(options.engines, options.precisions, self._device), model.weights)
        if model.exported is not None:
            pairs["openvino", _precision(model.exported)] = model.exported
        found: dict[Case, Contender] = {}
        for (engine, precision), weights in pairs.items():
            for count in (1,) if engine == REFERENCE else options.workers or self._usual_workers(engine):
                case = Case(engine, precision, largest, count)
                try:
                    found[case] = stack.enter_context(make_contender(weights, case, self._device))
                except DetectorError as error:
                    self.results.notes.append(f"{model.name} with {engine} {precision} was left out: {error}")
        reference = torchvision_model(model.weights, self._device)
        picture = pictures(self._frames, 1)[0]
        self.results.flops[model.name] = flops_of(reference, picture, self._device)
        return found

    def _usual_workers(self, engine: str) -> tuple[int, ...]:
        """As the daemon has them: one per core, or per CUDA device; two where copies overlap with the graph's work."""
        if self._device.type == "cpu":
            return (core_count(),)
        return (2,) if engine == "graph" else (1,)

    def _measure_peaks(self, precisions: set[str]) -> None:
        for precision in sorted(precisions):
            seconds = max(self._options.seconds * _SHARES["peak"], 0.1)
            self.results.peaks[precision] = measure_peak(precision, self._device, core_count(), seconds)

    def _frame_seconds(self, contenders: dict[Case, Contender]) -> float:
        """What torchvision takes for a frame, roughly: one batch of one."""
        reference = next(iter(contenders.values()))
        reference.round(self._frames, 1)
        return reference.round(self._frames, 1).seconds

    def _compare_group(self, group: Group, contenders: dict[Case, Contender]) -> None:
        of_batch = {Case(c.engine, c.precision, group.batch, c.workers): found for c, found in contenders.items()}
        measured = {}
        for case in of_batch:
            peak = self.results.peaks[case.precision]
            floor = floor_seconds(self.results.flops[group.model], peak) if peak else None
            measured[case] = Measured(group.model, case, floor_seconds=floor)
        self.results.detector += measured.values()
        self._step.begin(f"{group.model}, batches of {group.batch}", group.seconds)
        compare(of_batch, self._frames, measured, group.seconds, self._step.share)
        self._step.end()

    def _measure_low_threshold(self, contenders: dict[Case, Contender]) -> None:
        """With the fastest engine, if a batch may hold frames of several streams."""
        rows = [row for row in self.results.detector if row.model == self._models[0].name and row.samples]
        ours = [row for row in rows if row.case.engine != REFERENCE]
        batch = min(_MIXED_BATCH, max(self._options.batches or BATCHES))
        if batch == 1 or not ours:
            return
        best = min(ours, key=lambda row: row.seconds).case
        found = next(case for case in contenders if replace(case, batch=best.batch) == best)
        seconds = self._options.seconds * _SHARES["low_threshold"]
        self._step.begin("lowering the threshold of one stream", seconds)
        ratio, frame_seconds = low_threshold_ratio(contenders[found], self._frames, batch, seconds)
        self._step.end()
        self.results.low_threshold = {
            "engine": found.engine, "precision": found.precision, "batch": batch,
            "ms_per_frame": round(1000 * frame_seconds, 3), "ratio": round(ratio, 4),
        }  # fmt: skip

    def _measure_daemon(self, folder: Path) -> None:
        if not self._options.capacity_only:
            self._measure_analytics()
        model = self._models[0]
        self._step.begin("making a clip for the daemon", 0.0)
        clip = make_clip(self._source, self._size, self._fps, folder)
        best = self._best(model)
        exported = model.exported if best.case.precision == _precision(model.exported) else None
        end_to_end = EndToEnd(model, exported or model.weights, best, clip, folder, self._device, self._step)
        seconds = self._options.seconds
        results = self.results
        if not self._options.capacity_only:
            results.plain_loop = end_to_end.plain_loop(seconds * _SHARES["plain"])
        costs, results.daemon["without_detector"] = end_to_end.costs(
            seconds * _SHARES["decode"], seconds * _SHARES["stand_in"]
        )
        results.capacity = end_to_end.capacity(costs)
        if self._options.capacity_only or results.plain_loop is None:
            return
        workers = best.case.workers if self._options.workers or self._choice is not None else None
        results.daemon["saturated"] = end_to_end.saturated(
            workers, results.plain_loop["frames_per_second"], seconds * _SHARES["saturated"]
        )
        fitting = results.capacity["streams"]
        streams = self._options.streams or min(max(fitting, 1), _MAX_STREAMS)
        results.daemon["paced"] = paced = end_to_end.paced(workers, streams, seconds * _SHARES["paced"])
        if streams == fitting:
            results.capacity["checked"] = paced["kept_up"]
        batches = [batch for batch in self._options.batches or _OVERLOAD_BATCHES if batch <= _LARGEST_DAEMON_BATCH]
        results.daemon["overload"] = end_to_end.overload(
            workers, results.daemon["saturated"]["fps_published"], batches, self._detection_ms(model, best),
            seconds * _SHARES["overload"], as_chosen=self._choice is not None,
        )  # fmt: skip

    def _measure_analytics(self) -> None:
        seconds = self._options.seconds * _SHARES["analytics"]
        self._step.begin("analysing objects without a detector", seconds)
        self.results.analytics = measure_analytics(max(seconds * _VIDEO_PER_SECOND, _LEAST_VIDEO_SECONDS))
        self._step.end()

    def _detection_ms(self, model: Model, best: Measured) -> float:
        """Of one frame, while all workers are busy: of the smallest batch that was measured."""
        alike = [
            row for row in self.results.detector
            if row.model == model.name and row.samples
            and (row.case.engine, row.case.precision) == (best.case.engine, best.case.precision)
        ]  # fmt: skip
        row = min(alike, key=lambda row: row.case.batch)
        return 1000 * row.seconds * row.case.workers

    def _best(self, model: Model) -> Measured:
        """The row of what the daemon runs by default, or the fastest that it may use.

        That is of a precision that was asked for, or keeps the detections.
        """
        rows = [row for row in self.results.detector if row.model == model.name and row.samples]
        if self._choice is not None:
            workers = self._choice.workers or self._usual_workers(self._choice.candidate.engine)[0]
            self.results.notes.append(
                f"{model.name} runs in the daemon with {self._choice.candidate.name}, batches of up to "
                f"{self._choice.max_batch_size}, {workers} at a time: the fastest in the trial of the engines on this "
                "machine (streamdet engines)"
            )
            taken = row_of_choice(rows, self._choice, workers)
            if taken is not None:
                return taken
        safe = {"fp32", *self._options.precisions, _precision(model.exported)}
        if model.origin == "embedded":
            safe |= set(PRECISIONS)  # their mAP holds in each
        ours = [row for row in rows if row.case.engine != REFERENCE and row.case.precision in safe] or rows
        small = [row for row in ours if row.case.batch <= _LARGEST_DAEMON_BATCH] or ours
        return min(small, key=lambda row: row.seconds)


def choose_as_daemon(options: Options) -> Choice | None:
    """What the daemon runs by default with the first model; a trial determines it, if it is not known yet.

    None where the daemon is not measured, or the options leave it no choice, or it could not load the weights.
    """
    name = options.models[0]
    architecture = name if name in PUBLISHED else f"fasterrcnn_{name}"
    if not options.daemon or options.engines or options.precisions or options.workers or options.exported:
        return None
    named: dict[str, str] = {"weights": "embedded"}
    if architecture in PUBLISHED:
        named = {"weights": "coco", "model": architecture}
    elif name != "embedded":
        return None
    if options.frames is not None:
        describe(options.frames)  # what is wrong with it is reported before the trial
    config = DetectorConfig.model_validate(named | {"device": options.device})
    if any(missing_parts(config)):
        return None
    _, choice = settle(config)
    return choice


def row_of_choice(rows: Sequence[Measured], choice: Choice, workers: int) -> Measured | None:
    """The row that was measured the most like a choice, for just its batch and workers; None without its engine."""
    engine, precision = choice.candidate.engine, choice.candidate.precision
    alike = [row for row in rows if (row.case.engine, row.case.precision) == (engine, precision)]
    if not alike:
        return None
    nearest = min(alike, key=lambda row: abs(row.case.batch - choice.max_batch_size))
    return replace(nearest, case=Case(engine, precision, choice.max_batch_size, workers))


def _precision(weights: Weights | None) -> str:
    """Of exported weights; empty for others."""
    found = weights and weights.exported
    return found.precision if found else ""


@dataclass(frozen=True)
class Group:
    """Cases that are measured in turns.

    Attributes:
        model: its name.
        batch: frames per batch.
        seconds: how long.
    """

    model: str
    batch: int
    seconds: float


def plan_groups(
    frame_seconds: Mapping[str, float], contenders: Mapping[str, int], batches: tuple[int, ...], seconds: float
) -> tuple[list[Group], list[str]]:
    """Divides the time among models and batch sizes.

    Args:
        frame_seconds: what torchvision takes for one frame, by model.
        contenders: how many are compared, by model, torchvision among them.
        batches: that were asked for; empty for `BATCHES`, of which the largest are left out where they would take
            longer than there is time.
        seconds: for all groups together; more is taken where the fewest rounds need more.

    Returns:
        the groups, and a line for people about each model that lost a batch size.
    """
    least = {
        (model, batch): frame * batch * (1 + _USUAL_SHARE * (contenders[model] - 1)) * (MIN_ROUNDS + 1)
        for model, frame in frame_seconds.items()
        for batch in batches or BATCHES
    }
    left_out = [] if batches else _leave_out(least, seconds)
    # Small batches scatter more, so they get more than their share.
    weights = {key: needed / key[1] ** 0.5 for key, needed in least.items()}
    total = sum(weights.values())
    groups = [
        Group(model, batch, max(seconds * weights[model, batch] / total, needed))
        for (model, batch), needed in least.items()
    ]
    lines = [
        f"{model}: batches of {', '.join(str(batch) for key, batch in left_out if key == model)} were left out, "
        "because they would take too long; ask for them with --batch or more --seconds"
        for model in dict.fromkeys(model for model, _ in left_out)
    ]
    return groups, lines


def _leave_out(least: dict[tuple[str, int], float], seconds: float) -> list[tuple[str, int]]:
    """Removes the costliest groups from `least` until the others fit, keeping one of each model; returns those."""
    taken = []
    while sum(least.values()) > seconds:
        several = [key for key in least if sum(model == key[0] for model, _ in least) > 1]
        if not several:
            break
        costliest = max(several, key=lambda key: least[key])
        del least[costliest]
        taken.append(costliest)
    return sorted(taken)
