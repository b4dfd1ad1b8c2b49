"""The process that tries the engines: `python -P -m streamdet.detector.tester`, with a job on its standard input.

It imports the libraries and reads the frames once, and forks a child for each candidate. A child that crashes, hangs,
or runs out of memory affects no other. The results are written to the standard output, one JSON object per line: the
device, what is being tried, and the result of each candidate.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, Self

import numpy as np

from streamdet.detector.agreement import SCORE_THRESHOLD, Detections, compare
from streamdet.detector.choice import (
    BATCHES,
    CANDIDATES,
    REFERENCE,
    USUAL_SIZES,
    Candidate,
    Outcome,
    Result,
    Size,
    Timing,
)
from streamdet.detector.memory import available_bytes, import_torchvision, keep_memory
from streamdet.detector.trial import usable_cores
from streamdet.errors import DetectorError
from streamdet.types import Detection, Picture

_POINT_SECONDS = (0.08, 0.25)
# Candidates that are so much slower than torch in fp32 are not worth their time.
_TOO_SLOW = 2.0
_TOO_SLOW_GRACE_SECONDS = 1.5
_REFERENCE_SHARE = 0.3
# Of CPU time. The embedded weights need one second for all sizes, so no machine that is fit for them skips a size.
_FAIR_SECONDS = 4.0
_DISTURBED_SHARE = 0.1
_PATIENCE = 2.5
_FEWEST_SECONDS = 60.0
# One that is nearly as fast as the fastest so far is timed in batches of up to 4 for so long, even if what it spent on
# compiling leaves no time for it: otherwise one that compiles nothing wins by the batches that only it was timed in.
_NEARLY_FASTEST = 0.75
_CONTENDER_SECONDS = 2.5
_CONTENDER_BATCH = 4
# The first rounds compile, allocate, and lay out what threads have of their own.
_WARM_UP_ROUNDS = 4
_FEWEST_ROUNDS = 3
_STEP_SECONDS = 20.0
_LOOK_SECONDS = 0.5
# A child that waits for a core is not silent: it gets up to this many times its limit.
_MOST_PATIENCE = 3.0
# Ten times what a trial takes on an idle machine: what is not done by then is left to a later start.
_LONGEST_SECONDS = 240.0
_REFERENCE_STEP_SECONDS = 120.0
# Of a trial beside a daemon that detects already.
_NICENESS = 10

# prctl(2), from linux/prctl.h.
_PR_SET_PDEATHSIG = 1

_SAME_SIZE = 4


class Detects(Protocol):
    """What is tried."""

    def detect(self, pictures: Sequence[Picture]) -> Detections:
        """The detections of each picture."""

    def for_another_thread(self) -> Self:
        """One that shares its weights and can be used at the same time."""


@dataclass(frozen=True)
class Samples:
    """What candidates detect.

    Attributes:
        batches: to compare; the first two have the frames that are also timed.
        timed: frames of one size; their detections are those of the first two batches.
    """

    batches: list[list[Picture]]
    timed: list[Picture]

    def sizes(self, count: int) -> tuple[Size, ...]:
        """Height and width of the first frames, each once."""
        frames = [frame for batch in self.batches for frame in batch][:count]
        return tuple(dict.fromkeys((frame.height, frame.width) for frame in frames))


@dataclass
class _Found:
    """What a child has said so far.

    Attributes:
        detections: of the reference.
        seconds: that it took to detect these.
        spent_seconds: of the budget.
        count: of frames that it has detected.
        difference: as in `Result`, like all that follow.
    """

    detections: Detections = field(default_factory=list)
    seconds: float = 0.0
    spent_seconds: float = 0.0
    count: int = 0
    difference: str = ""
    timings: list[Timing] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str = ""
    is_disturbed: bool = False


class Tester:
    """Tries candidates, one after the other.

    Args:
        make: loads a candidate; called in its child. Raises `DetectorError` for what is not there.
        samples: to detect.
        say: reports a message.
        budget_seconds: for all candidates together.
        step_seconds: how long a candidate may be silent before it counts as hung.
        longest_seconds: after which no candidate but the first goes on.
        cores: most workers to time.
        device: "cpu" or such as "cuda:0".
        few: that few detections are enough to compare, as there are in a few frames of one size.
    """

    def __init__(
        self,
        make: Callable[[Candidate], Detects],
        samples: Samples,
        say: Callable[[dict[str, Any]], None],
        *,
        budget_seconds: float,
        step_seconds: float = _STEP_SECONDS,
        longest_seconds: float = _LONGEST_SECONDS,
        cores: int = 1,
        device: str = "cpu",
        few: bool = False,
    ) -> None:
        self._make = make
        self._samples = samples
        self._say = say
        self._left_seconds = budget_seconds
        # A busy machine takes longer, but is not waited for without a bound.
        self._ends_at = time.monotonic() + max(_PATIENCE * budget_seconds, _FEWEST_SECONDS)
        self._longest_seconds = longest_seconds
        self._over_at = time.monotonic() + longest_seconds
        self._step_seconds = step_seconds
        self._workers = _powers_up_to(cores)
        self._device = device
        self._few = few
        self._wanted: _Found | None = None
        # Of those that agree: single frames, all workers.
        self._fastest = 0.0

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Tries all of them; the reference comes first, if it is among them: where it fails, no other is tried."""
        for number, candidate in enumerate(candidates):
            self._say({"trying": candidate.name, "number": number + 1, "of": len(candidates)})
            share = _REFERENCE_SHARE if candidate == REFERENCE and number == 0 else 1 / (len(candidates) - number)
            if self._wanted is None and REFERENCE in candidates[:number]:
                reason = f"{REFERENCE.name} gave no answer to compare with"
                found = _Found(outcome=Outcome.NOT_COMPARED, reason=reason)
            elif number and time.monotonic() > self._over_at:
                found = _Found(outcome=Outcome.NOT_TRIED, reason=self._is_over)
            else:
                found = self._try(candidate, share * self._left_seconds)
            self._left_seconds = max(self._left_seconds - found.spent_seconds, 0.0)
            if candidate == REFERENCE and found.outcome is Outcome.AGREES:
                self._wanted = found
            agrees = found.outcome is Outcome.AGREES
            if agrees and found.timings:
                self._fastest = max(self._fastest, found.timings[0].frames_per_second)
            result = Result(
                candidate=candidate,
                outcome=found.outcome or Outcome.FAILED,
                reason=found.reason[:500],
                difference=found.difference,
                timings=tuple(found.timings) if agrees else (),
                proven_sizes=self._samples.sizes(found.count) if agrees else (),
                is_disturbed=found.is_disturbed,
            )
            self._say({"result": result.model_dump(mode="json")})

    def _try(self, candidate: Candidate, seconds: float) -> _Found:
        """Forks a child for the candidate, and listens to it until it ends or is silent for too long."""
        reading, writing = os.pipe()
        parent = os.getpid()
        before = _usage()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._be_child(candidate, seconds, writing, parent)
        os.close(writing)
        found = _Found()
        limit = self._step_seconds if self._wanted else max(self._step_seconds, _REFERENCE_STEP_SECONDS)
        if self._wanted:
            limit = max(limit, 5 * self._wanted.seconds)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            # The first is the one that all others need, and that runs where none of them may.
            over_at = self._over_at if self._wanted else math.inf
            is_hung = not _listen(pipe, found, limit, Silence(child), over_at)
        if is_hung:
            os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        wall, _, busy = (end - begin for begin, end in zip(before, _usage(), strict=True))
        found.is_disturbed = _is_disturbed(wall, used.ru_utime + used.ru_stime, busy)
        if is_hung and time.monotonic() > over_at:
            found.outcome, found.reason = Outcome.NOT_TRIED, self._is_over
        elif is_hung:
            found.outcome, found.reason = Outcome.HUNG, f"said nothing for {limit:.0f} s"
        elif os.WIFSIGNALED(status):
            found.outcome, found.reason = _ended_by(os.WTERMSIG(status))
        elif found.outcome is None:
            code = os.waitstatus_to_exitcode(status)
            found.outcome, found.reason = Outcome.CRASHED, f"ended by itself with exit code {code}"
        return found

    @property
    def _is_over(self) -> str:
        return f"the trial took longer than {self._longest_seconds:g} s"

    def _be_child(self, candidate: Candidate, seconds: float, writing: int, parent: int) -> NoReturn:
        """Never returns; whatever happens is said through the pipe, or by how the process ends."""
        try:
            die_with(parent)
            _limit_memory(self._device)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:

                def say(**message: object) -> None:
                    pipe.write(json.dumps(message) + "\n")
                    pipe.flush()

                try:
                    self._measure(candidate, seconds, say)
                except MemoryError as error:
                    say(outcome=Outcome.OUT_OF_MEMORY, reason=_line(error))
                except DetectorError as error:
                    is_missing = "not installed" in str(error)
                    say(outcome=Outcome.NOT_INSTALLED if is_missing else Outcome.NOT_SUPPORTED, reason=_line(error))
                except Exception as error:  # noqa: BLE001 - of any library: it is the verdict
                    memory = any(word in str(error).lower() for word in ("bad_alloc", "out of memory", "allocate"))
                    outcome = Outcome.OUT_OF_MEMORY if memory else Outcome.FAILED
                    say(outcome=outcome, reason=f"{type(error).__name__}: {_line(error)}")
        finally:
            # Not the interpreter's orderly end: libraries that were loaded here may hang or crash in it.
            os._exit(0)

    def _measure(self, candidate: Candidate, seconds: float, say: Callable[..., None]) -> None:
        # What other processes do meanwhile says nothing about an engine, so CPU time counts.
        clock = time.process_time if self._device == "cpu" else time.monotonic
        began = clock()
        first = self._make(candidate)
        detectors = [first, *(first.for_another_thread() for _ in range(self._workers[-1] - 1))]
        say(step="loaded", spent=clock() - began)
        found: Detections = []
        wanted = self._wanted.detections if self._wanted else None
        detecting = 0.0
        for batch in self._samples.batches:
            if wanted is not None and len(found) + len(batch) > len(wanted):
                break
            if wanted is None and len(found) >= _SAME_SIZE and clock() - began > max(0.6 * seconds, _FAIR_SECONDS):
                break  # what the reference has no time for, nothing is compared with
            started = clock()
            found += first.detect(batch)
            detecting += clock() - started
            say(count=len(found), spent=clock() - began)
            too_slow = self._too_slow(detecting, len(found))
            if too_slow:
                say(outcome=Outcome.TOO_SLOW, reason=too_slow)
                return
        if wanted is None:
            say(found=[[(d.label, d.score, d.box) for d in each] for each in found], seconds=detecting)
        else:
            good, difference = compare(
                wanted[: len(found)], found, self._device, exact=candidate.precision == "fp32", few=self._few
            )
            say(difference=difference)
            if not good:
                say(outcome=Outcome.WRONG, reason=f"not what torch finds in fp32: {difference}")
                return
        problem = self._time(detectors, found, clock() - began, seconds, exact=candidate.precision == "fp32", say=say)
        say(outcome=Outcome.WRONG if problem else Outcome.AGREES, reason=problem)

    def _too_slow(self, seconds: float, frames: int) -> str:
        if self._wanted is None or not self._wanted.detections:
            return ""
        theirs = self._wanted.seconds * frames / len(self._wanted.detections)
        if seconds < _TOO_SLOW * theirs + _TOO_SLOW_GRACE_SECONDS:
            return ""
        return f"{1000 * seconds / frames:.0f} ms a frame, torch fp32 {1000 * theirs / frames:.0f}: not tried further"

    def _time(
        self,
        detectors: Sequence[Detects],
        found: Detections,
        spent: float,
        seconds: float,
        *,
        exact: bool,
        say: Callable[..., None],
    ) -> str:
        """Times points while time is left; returns in one line how the detections differ meanwhile."""
        # The most important first: all workers, one frame each.
        points = [(batch, self._workers[-1]) for batch in BATCHES]
        points += [(1, workers) for workers in self._workers[:-1]]
        latency = 0.0
        began = spent
        contends = False
        for number, (batch, workers) in enumerate(points):
            left = seconds - spent
            if contends and batch <= _CONTENDER_BATCH and workers == self._workers[-1]:
                left = max(left, began + _CONTENDER_SECONDS - spent)
            if number and (left <= 0 or _FEWEST_ROUNDS * latency * batch > left or time.monotonic() > self._ends_at):
                continue
            wanted_seconds = min(max(left / (len(points) - number), _POINT_SECONDS[0]), _POINT_SECONDS[1])
            pictures = [self._samples.timed[i % len(self._samples.timed)] for i in range(batch)]
            point = _Point(detectors[:workers], pictures, self._device)
            point.run(wanted_seconds, warm_up_rounds=1 if number else _WARM_UP_ROUNDS)
            timing, results = point.timing, point.results
            spent += point.spent_seconds
            say(timing=timing.model_dump(), spent=spent)
            latency = timing.latency_seconds / batch
            contends |= number == 0 and timing.frames_per_second >= _NEARLY_FASTEST * self._fastest
            theirs = [found[i % len(self._samples.timed)] for i in range(batch)]
            for result in results:
                good, difference = compare(theirs, result, self._device, exact=exact, few=True)
                if not good:
                    return f"batches of {batch} in {workers} threads differ from single frames: {difference}"
        return ""


class _Point:
    """Times one batch size with one number of workers.

    Args:
        detectors: a thread for each.
        pictures: the batch that each detects again and again.
        device: "cpu" or another.

    Attributes:
        results: the last detections of each.
        timing: how fast it was. Where other processes take more than a tenth of the cores meanwhile, it is computed
            from the CPU time.
        spent_seconds: that it took, warm-up included, or would have taken on an idle machine.
    """

    timing: Timing

    def __init__(self, detectors: Sequence[Detects], pictures: list[Picture], device: str) -> None:
        self._detectors = detectors
        self._pictures = pictures
        self._device = device
        self._durations: list[list[float]] = [[] for _ in detectors]
        self._errors: list[Exception] = []
        self._usage: list[tuple[float, float, float]] = []
        self._together = threading.Barrier(len(detectors), lambda: self._usage.append(_usage()))
        self.results: list[Detections] = [[] for _ in detectors]
        self.spent_seconds = 0.0

    def run(self, seconds: float, warm_up_rounds: int) -> None:
        """Runs every detector for `seconds`, after `warm_up_rounds` that do not count.

        Raises:
            Exception: what a detector raised.
        """
        before = _usage()
        workers = range(len(self._detectors))
        threads = [threading.Thread(target=self._work, args=(n, seconds, warm_up_rounds)) for n in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        after = _usage()
        wall, own, busy = (end - begin for begin, end in zip(self._usage[0], after, strict=True))
        on_cpu = self._device == "cpu"
        self.spent_seconds = (after[1] - before[1]) / len(threads) if on_cpu else after[0] - before[0]
        count = sum(map(len, self._durations))
        rate = sum(len(each) / sum(each) for each in self._durations)
        latency = statistics.median(duration for each in self._durations for duration in each)
        is_disturbed = on_cpu and own > 0 and _is_disturbed(wall, own, busy)
        if is_disturbed:
            rate, latency = count * len(threads) / own, own / count
        self.timing = Timing(
            batch=len(self._pictures),
            workers=len(threads),
            frames_per_second=round(len(self._pictures) * rate, 3),
            latency_seconds=round(latency, 6),
            is_disturbed=is_disturbed,
        )

    def _work(self, number: int, seconds: float, warm_up_rounds: int) -> None:
        detector, durations = self._detectors[number], self._durations[number]
        try:
            for _ in range(warm_up_rounds):
                detector.detect(self._pictures)
            self._together.wait()
            ends_at = time.perf_counter() + seconds
            while len(durations) < _FEWEST_ROUNDS or time.perf_counter() < ends_at:
                began = time.perf_counter()
                self.results[number] = detector.detect(self._pictures)
                durations.append(time.perf_counter() - began)
        except threading.BrokenBarrierError:
            pass  # the error of another thread counts
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            self._errors.append(error)
            self._together.abort()


def _usage() -> tuple[float, float, float]:
    """Seconds: of the clock, of CPU time of this process, and of all processes and the host on all cores."""
    busy = 0
    with contextlib.suppress(OSError, ValueError):
        # user, nice, system, idle, iowait, irq, softirq, steal
        ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
        busy = sum(ticks) - ticks[3] - ticks[4]
    return time.perf_counter(), time.process_time(), busy / os.sysconf("SC_CLK_TCK")


def _is_disturbed(wall_seconds: float, own_seconds: float, busy_seconds: float) -> bool:
    """Whether other processes took more than a tenth of the cores; of CPU time, our own and that of all."""
    return busy_seconds - own_seconds > _DISTURBED_SHARE * wall_seconds * usable_cores()


class Silence:
    """How long a process has said nothing although it could have: its threads waited for no core meanwhile.

    Where the kernel does not count such waits, all time counts.

    Args:
        process: its id.
        proc: where the kernel shows it.
        clock: monotonic seconds.
    """

    def __init__(self, process: int, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._threads = proc / str(process) / "task"
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Begins again: it has said something."""
        self._began_at, self._waited = self._clock(), self._waits()

    def seconds(self) -> tuple[float, float]:
        """How long it has been silent: what counts, less the longest wait of one of its threads, and all."""
        passed = self._clock() - self._began_at
        waits = (seconds - self._waited.get(thread, 0.0) for thread, seconds in self._waits().items())
        return passed - max(waits, default=0.0), passed

    def _waits(self) -> dict[str, float]:
        """Seconds that each thread has been ready to run without a core."""
        waits = {}
        with contextlib.suppress(OSError):
            for thread in self._threads.iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    waits[thread.name] = int((thread / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
        return waits


def _listen(pipe: IO[bytes], found: _Found, limit_seconds: float, silence: Silence, over_at: float) -> bool:
    """Takes what a child says until it closes the pipe; false if it is silent for so long, or not done in time."""
    rest = b""
    while True:
        if time.monotonic() > over_at:
            return False
        ready, _, _ = select.select([pipe], [], [], min(_LOOK_SECONDS, limit_seconds))
        if not ready:
            counted, passed = silence.seconds()
            if counted >= limit_seconds or passed >= _MOST_PATIENCE * limit_seconds:
                return False
            continue
        silence.begin()
        chunk = os.read(pipe.fileno(), 1 << 16)
        if not chunk:
            return True
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _note(json.loads(line), found)


def _note(message: dict[str, Any], found: _Found) -> None:
    if "found" in message:
        found.detections = [
            [Detection(label, score, tuple(box)) for label, score, box in each] for each in message["found"]
        ]
        found.seconds = message["seconds"]
    found.spent_seconds = message.get("spent", found.spent_seconds)
    found.count = message.get("count", found.count)
    if "difference" in message:
        found.difference = message["difference"]
    if "timing" in message:
        found.timings.append(Timing.model_validate(message["timing"]))
    if "outcome" in message:
        found.outcome, found.reason = Outcome(message["outcome"]), message["reason"]


def _ended_by(number: int) -> tuple[Outcome, str]:
    if number == signal.SIGKILL:
        return Outcome.OUT_OF_MEMORY, "killed, as the kernel does when memory runs out"
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = {signal.SIGSEGV: " (segmentation fault)", signal.SIGILL: " (an instruction that this CPU has not)"}
    return Outcome.CRASHED, f"{name}{meaning.get(signal.Signals(number), '') if number in set(signal.Signals) else ''}"


# ---- the process ----


def die_with(parent: int) -> None:
    """Has the kernel kill this process when that one ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(device: str) -> None:
    """A candidate that wants more than there is fails alone, instead of having the kernel choose what to kill."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if device != "cpu":
        return  # drivers reserve address space in terabytes
    with contextlib.suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        used = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:")))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = used + available_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _powers_up_to(count: int) -> list[int]:
    count = max(count, 1)
    return sorted({*(1 << n for n in range(count.bit_length())), count})


def samples(sizes: Sequence[Size]) -> Samples:
    """Frames of the sample clip in the sizes that are tried.

    Args:
        sizes: heights and widths; the first is that of the frames that are timed.
    """
    import av  # noqa: PLC0415 - not for tests of the rest
    import cv2  # noqa: PLC0415

    from streamdet.assets import sample_clip  # noqa: PLC0415
    from streamdet.detector.pipeline import ArrayPicture  # noqa: PLC0415

    with av.open(str(sample_clip())) as clip:
        clip.streams.video[0].thread_count = 1  # a thread would not survive a fork
        frames = [frame.to_ndarray(format="rgb24") for frame in _some(clip.decode(video=0))]
    numbers = iter(range(1 << 20))

    def picture(height: int, width: int) -> Picture:
        frame = frames[next(numbers) % len(frames)]
        return ArrayPicture(np.ascontiguousarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)))

    first, *others = dict.fromkeys(sizes)
    timed = [picture(*first) for _ in range(_SAME_SIZE)]
    batches = [timed[:1], timed[1:], *([picture(*size)] for size in others)]
    return Samples(batches, timed)


def _some(frames: Iterator[Any]) -> Iterator[Any]:
    """One in twenty, the first of which in the third second."""
    for number, frame in enumerate(frames):
        if number % 20 == 0:
            yield frame
        if number >= 280:
            return


def _make_loader(
    job: dict[str, Any], device: str
) -> tuple[Callable[[Candidate], Detects], Sequence[Candidate], Sequence[Size]]:
    """Loads the weights.

    Returns:
        how to make a detector of a candidate; which candidates there are; and sizes of frames, wide and upright, on
        whose canvases there is room for frames of any size.
    """
    from streamdet.config import DetectorConfig  # noqa: PLC0415 - costly, and not for tests of the rest
    from streamdet.detector.device import use_threads  # noqa: PLC0415
    from streamdet.detector.pipeline import FasterRcnnDetector  # noqa: PLC0415
    from streamdet.detector.weights import load_embedded_int8, load_weights  # noqa: PLC0415

    base = DetectorConfig.model_construct(
        weights=job["weights"], model=job["model"], device=device, score_threshold=SCORE_THRESHOLD
    )
    weights = load_weights(base)

    def make(candidate: Candidate) -> Detects:
        # A fork leaves torch's pool of threads behind; it is made again here, while there is one thread.
        use_threads(1)
        update = {"engine": candidate.engine, "precision": candidate.precision, "max_batch_size": max(BATCHES)}
        config = base.model_copy(update=update)
        if candidate.engine == "graph":
            import torch  # noqa: PLC0415

            from streamdet.detector.graph.detector import GraphDetector  # noqa: PLC0415

            return GraphDetector(weights, config, torch.device(device), kernels=candidate.kernels)
        if candidate.precision == "int8" and base.weights == "embedded":
            return FasterRcnnDetector(load_embedded_int8(), config)
        return FasterRcnnDetector(weights, config)

    largest = [(weights.min_size, weights.max_size), (weights.max_size, weights.min_size)]
    if weights.exported is not None:
        return make, [Candidate(engine="openvino", precision=weights.exported.precision)], largest
    return make, CANDIDATES[device.partition(":")[0]], largest


def _device_of(name: str) -> str:
    """The device that the configuration means, asked for in a child: CUDA does not survive a fork."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            from streamdet.detector.device import choose_device  # noqa: PLC0415

            os.write(writing, str(choose_device("cuda" if name == "cuda:all" else name)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        device = pipe.read().decode() or "cpu"
    os.wait()
    return device


def main() -> None:
    """Does the job on the standard input."""
    began = time.monotonic()
    job = json.loads(sys.stdin.buffer.read())
    die_with(job["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent ends us
    if job["only"] is not None:
        os.nice(_NICENESS)
    output = reserve_output()
    keep_memory()
    import_torchvision()
    from streamdet.detector.device import use_threads  # noqa: PLC0415 - what children need; loaded once, for all

    use_threads(1)
    device = _device_of(job["device"])
    output({"device": device})
    make, candidates, largest = _make_loader(job, device)
    sizes = [(height, width) for height, width in job["frame_sizes"]]
    if job["only"] is None:
        first, *others = USUAL_SIZES
        sizes = [first, *largest, *sizes, *others]
    else:
        only = Candidate.model_validate(job["only"])
        candidates = [candidate for candidate in candidates if candidate in {REFERENCE, only}]
    budget = float(job["budget_seconds"][device.partition(":")[0]])
    if job["again"] is not None:
        again = {REFERENCE, *map(Candidate.model_validate, job["again"])}
        candidates = [candidate for candidate in candidates if candidate in again]
    tester = Tester(
        make, samples(sizes), output,
        # What the start took with the cores to itself.
        budget_seconds=budget - (time.process_time() if device == "cpu" else time.monotonic() - began),
        step_seconds=_STEP_SECONDS * job["patience"] if job["only"] is None else _REFERENCE_STEP_SECONDS,
        longest_seconds=_LONGEST_SECONDS * job["patience"],
        cores=usable_cores() if device == "cpu" else 2,
        device=device,
        few=job["only"] is not None,
    )  # fmt: skip
    tester.run(candidates)


def reserve_output() -> Callable[[dict[str, Any]], None]:
    """Keeps the standard output for messages: what libraries print goes to the standard error."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    return say


if __name__ == "__main__":
    main()
