"""The process that tries the engines: `python -P -m streamdet.detector.tester`, with a job on its standard input.

It imports the libraries and reads the frames once, and forks a child for each candidate. A child that crashes, hangs,
or runs out of memory affects no other. On a CPU the children of those that are about as fast stay until the end, and
are timed again in turns: the speed of a machine that others share changes by a quarter within seconds. The results are
written to the standard output, one JSON object per line: the device, what is being tried, and the result of each
candidate.
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
# Of CPU time: no load of the machine makes an engine so much slower, so it is not tried again at a later start.
_FAR_TOO_SLOW = 2 * _TOO_SLOW
_REFERENCE_SHARE = 0.3
# Of CPU time. The embedded weights need one second for all sizes, so no machine that is fit for them skips a size.
_FAIR_SECONDS = 4.0
_DISTURBED_SHARE = 0.1
_PATIENCE = 2.5
_FEWEST_SECONDS = 60.0
# One that is nearly as fast as the fastest so far is timed in batches of up to 4 for this share of the budget, even if
# what it spent on compiling leaves no time for it: otherwise one that compiles nothing wins by the batches that only it
# was timed in.
_NEARLY_FASTEST = 0.75
_CONTENDER_SHARE = 0.14
_CONTENDER_BATCH = 4
# Those that reach this share of the fastest are timed again in turns, so often; the median counts.
_FINALIST = 0.7
_MOST_FINALISTS = 3
_FINAL_ROUNDS = 3
# Of the budget.
_FINAL_SHARE = 0.3
# A child that stays holds its weights and compiled models.
_FINAL_SPARE_BYTES = 1 << 30
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
        difference: as in `Result`, like those that follow.
        used_seconds: CPU time of the process, up to the outcome.
        is_sure: whether the outcome is the engine's own, however busy the machine was.
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
    used_seconds: float = 0.0
    is_sure: bool = False

    def fps(self, workers: int) -> float:
        """The highest frames per second with so many workers, and batches that are timed for all that are as fast."""
        points = (t for t in self.timings if t.workers == workers and t.batch <= _CONTENDER_BATCH)
        return max((t.frames_per_second for t in points), default=0.0)


class _Child:
    """The process of one candidate; a context manager that ends it.

    Args:
        be: what it does, with the pipe for what it says, and the one from which it takes orders.
    """

    def __init__(self, be: Callable[[IO[str], IO[str]], NoReturn]) -> None:
        reading, writing = os.pipe()
        orders, ordering = os.pipe()
        self.id = os.fork()
        if self.id == 0:
            os.close(reading)
            os.close(ordering)
            be(os.fdopen(writing, "w", encoding="utf-8"), os.fdopen(orders, encoding="utf-8"))
        os.close(writing)
        os.close(orders)
        self._said = os.fdopen(reading, "rb", buffering=0)
        self._orders = os.fdopen(ordering, "w", encoding="utf-8")
        self._silence = Silence(self.id)
        self.status: int | None = None
        self.used_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # One that has stayed may not see that the pipe of its orders is closed: later children hold it too.
        self.end(kill=True)

    def listen(self, found: _Found, limit_seconds: float, over_at: float) -> bool:
        """Takes what it says, until it has done what was ordered, or ends; false if it is silent for too long."""
        self._silence.begin()
        return _listen(self._said, found, limit_seconds, self._silence, over_at)

    def order(self, **order: object) -> None:
        """Has it time one more point."""
        with contextlib.suppress(BrokenPipeError):  # its end is found when it is listened to
            print(json.dumps(order), file=self._orders, flush=True)

    def end(self, *, kill: bool = False) -> None:
        """Ends it and waits for it; a second time does nothing."""
        if self.status is None:
            if kill:
                os.kill(self.id, signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                self._orders.close()
            _, self.status, used = os.wait4(self.id, 0)
            self.used_seconds = used.ru_utime + used.ru_stime
            self._said.close()


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
        self._takes_turns = device == "cpu" and not few
        self._contender_seconds = _CONTENDER_SHARE * budget_seconds
        self._final_seconds = _FINAL_SHARE * budget_seconds if self._takes_turns else 0.0
        self._left_seconds = budget_seconds - self._final_seconds
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
        self._finalists: list[tuple[_Child, _Found]] = []

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Tries all of them; the reference comes first, if it is among them: where it fails, no other is tried."""
        tried: list[tuple[Candidate, _Found]] = []
        with contextlib.ExitStack() as stack:
            for number, candidate in enumerate(candidates):
                self._say({"trying": candidate.name, "number": number + 1, "of": len(candidates)})
                share = _REFERENCE_SHARE if candidate == REFERENCE and number == 0 else 1 / (len(candidates) - number)
                if self._wanted is None and REFERENCE in candidates[:number]:
                    reason = f"{REFERENCE.name} gave no answer to compare with"
                    found = _Found(outcome=Outcome.NOT_COMPARED, reason=reason)
                elif number and time.monotonic() > self._over_at:
                    found = _Found(outcome=Outcome.NOT_TRIED, reason=self._is_over)
                else:
                    found = self._try(candidate, share * self._left_seconds, stack)
                self._left_seconds = max(self._left_seconds - found.spent_seconds, 0.0)
                if candidate == REFERENCE and found.outcome is Outcome.AGREES:
                    self._wanted = found
                if found.outcome is Outcome.AGREES and found.timings:
                    self._fastest = max(self._fastest, found.timings[0].frames_per_second)
                tried.append((candidate, found))
            self._compare_in_turns()
        for candidate, found in tried:
            agrees = found.outcome is Outcome.AGREES
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

    def _try(self, candidate: Candidate, seconds: float, stack: contextlib.ExitStack) -> _Found:
        """Forks a child for the candidate, and listens to it until it has an outcome or is silent for too long."""
        parent = os.getpid()
        before = _usage()
        child = stack.enter_context(
            _Child(lambda said, orders: self._be_child(candidate, seconds, said, orders, parent))
        )
        found = _Found()
        limit = self._step_seconds if self._wanted else max(self._step_seconds, _REFERENCE_STEP_SECONDS)
        if self._wanted:
            limit = max(limit, 5 * self._wanted.seconds)
        # The first is the one that all others need, and that runs where none of them may.
        over_at = self._over_at if self._wanted else math.inf
        is_hung = not child.listen(found, limit, over_at)
        if found.outcome is Outcome.AGREES and not is_hung and self._stays(found):
            used = found.used_seconds
            self._finalists.append((child, found))
        else:
            child.end(kill=is_hung)
            used = child.used_seconds
        wall, _, busy = (end - begin for begin, end in zip(before, _usage(), strict=True))
        found.is_disturbed = not found.is_sure and _is_disturbed(wall, used, busy)
        if is_hung and time.monotonic() > over_at:
            found.outcome, found.reason = Outcome.NOT_TRIED, self._is_over
        elif is_hung:
            found.outcome, found.reason = Outcome.HUNG, f"said nothing for {limit:.0f} s"
        elif child.status is not None and os.WIFSIGNALED(child.status):
            found.outcome, found.reason = _ended_by(os.WTERMSIG(child.status))
        elif child.status is not None and found.outcome is None:
            code = os.waitstatus_to_exitcode(child.status)
            found.outcome, found.reason = Outcome.CRASHED, f"ended by itself with exit code {code}"
        return found

    def _stays(self, found: _Found) -> bool:
        """Whether it may be one of the fastest; those that cannot be any more are ended."""
        if not self._takes_turns or available_bytes() < _FINAL_SPARE_BYTES:
            return False
        workers = self._workers[-1]
        best = max([found.fps(workers), *(other.fps(workers) for _, other in self._finalists)])
        for child, other in self._finalists:
            if other.fps(workers) < _FINALIST * best:
                child.end(kill=True)
        self._finalists = [(child, other) for child, other in self._finalists if child.status is None]
        return found.fps(workers) >= _FINALIST * best and len(self._finalists) < _MOST_FINALISTS

    def _compare_in_turns(self) -> None:
        """Times those that are about as fast again, in turns, so that a change of the machine's speed meets all."""
        if len(self._finalists) < 2:
            return
        workers, limit = self._workers[-1], self._step_seconds
        batches = [
            sorted({t.batch for t in found.timings if t.workers == workers and t.batch <= _CONTENDER_BATCH})
            for _, found in self._finalists
        ]
        seconds = self._final_seconds / (_FINAL_ROUNDS * sum(map(len, batches)))
        again: list[list[Timing]] = [[] for _ in self._finalists]
        for _ in range(_FINAL_ROUNDS):
            for (child, found), of_one, timings in zip(self._finalists, batches, again, strict=True):
                for batch in of_one:
                    if found.outcome is not Outcome.AGREES:
                        break
                    if time.monotonic() > self._ends_at:
                        return
                    one = _Found()
                    child.order(batch=batch, workers=workers, seconds=min(seconds, _POINT_SECONDS[1]))
                    is_hung = not child.listen(one, limit, self._over_at)
                    timings.extend(one.timings)
                    if is_hung:
                        found.outcome, found.reason = Outcome.HUNG, f"later said nothing for {limit:.0f} s"
                    elif not one.timings:
                        reason = one.reason or "it ended while it was timed once more"
                        found.outcome, found.reason = one.outcome or Outcome.CRASHED, reason
        for (_, found), timings in zip(self._finalists, again, strict=True):
            found.timings = _with_later(found.timings, timings)

    @property
    def _is_over(self) -> str:
        return f"the trial took longer than {self._longest_seconds:g} s"

    def _be_child(self, candidate: Candidate, seconds: float, said: IO[str], orders: IO[str], parent: int) -> NoReturn:
        """Never returns; whatever happens is said through the pipe, or by how the process ends."""
        try:
            die_with(parent)
            _limit_memory(self._device)

            def say(**message: object) -> None:
                said.write(json.dumps(message) + "\n")
                said.flush()

            try:
                detectors = self._measure(candidate, seconds, say)
                for order in map(json.loads, orders if detectors else ()):
                    point = _Point(detectors[: order["workers"]], self._timed(order["batch"]), self._device)
                    point.run(order["seconds"], warm_up_rounds=1)
                    say(timing=point.timing.model_dump(), done=True)
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

    def _measure(self, candidate: Candidate, seconds: float, say: Callable[..., None]) -> Sequence[Detects]:
        """Says all that is found about a candidate, the outcome last; returns its detectors, none unless it agrees."""
        # What other processes do meanwhile says nothing about an engine, so CPU time counts.
        clock = time.process_time if self._device == "cpu" else time.monotonic
        began = clock()
        first = self._make(candidate)
        detectors = [first, *(first.for_another_thread() for _ in range(self._workers[-1] - 1))]
        say(step="loaded", spent=clock() - began)
        found: Detections = []
        wanted = self._wanted.detections if self._wanted else None
        detecting = 0.0
        is_fast_enough = False
        for batch in self._samples.batches:
            if wanted is not None and len(found) + len(batch) > len(wanted):
                break
            if wanted is None and len(found) >= _SAME_SIZE and clock() - began > max(0.6 * seconds, _FAIR_SECONDS):
                break  # what the reference has no time for, nothing is compared with
            started = clock()
            found += first.detect(batch)
            detecting += clock() - started
            say(count=len(found), spent=clock() - began)
            if not is_fast_enough and self._looks_slow(detecting, len(found)):
                # The first frame of a size compiles a model for it; the second shows how fast it is.
                started = clock()
                first.detect(batch)
                spent = clock() - started
                too_slow = self._too_slow(spent, len(batch))
                if too_slow:
                    is_sure = self._device == "cpu" and spent >= _FAR_TOO_SLOW * self._reference_seconds(len(batch))
                    say(outcome=Outcome.TOO_SLOW, reason=too_slow, is_sure=is_sure)
                    return ()
                is_fast_enough = True
        if wanted is None:
            say(found=[[(d.label, d.score, d.box) for d in each] for each in found], seconds=detecting)
        else:
            good, difference = compare(
                wanted[: len(found)], found, self._device, exact=candidate.precision == "fp32", few=self._few
            )
            say(difference=difference)
            if not good:
                say(outcome=Outcome.WRONG, reason=f"not what torch finds in fp32: {difference}")
                return ()
        problem = self._time(detectors, found, clock() - began, seconds, exact=candidate.precision == "fp32", say=say)
        say(outcome=Outcome.WRONG if problem else Outcome.AGREES, reason=problem, used=time.process_time(), done=True)
        return () if problem else detectors

    def _looks_slow(self, seconds: float, frames: int) -> bool:
        theirs = self._reference_seconds(frames)
        return theirs > 0 and seconds >= _TOO_SLOW * theirs + _TOO_SLOW_GRACE_SECONDS

    def _too_slow(self, seconds: float, frames: int) -> str:
        """Why frames that took so long are too slow, in a line; empty if they are not."""
        theirs = self._reference_seconds(frames)
        if seconds < _TOO_SLOW * theirs:
            return ""
        return f"{1000 * seconds / frames:.0f} ms a frame, torch fp32 {1000 * theirs / frames:.0f}: not tried further"

    def _reference_seconds(self, frames: int) -> float:
        """What the reference took for so many frames, first ones of a size included; 0 where it is not known."""
        if self._wanted is None or not self._wanted.detections:
            return 0.0
        return self._wanted.seconds * frames / len(self._wanted.detections)

    def _timed(self, batch: int) -> list[Picture]:
        """A batch of the frames that are timed."""
        return [self._samples.timed[i % len(self._samples.timed)] for i in range(batch)]

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
                left = max(left, began + self._contender_seconds - spent)
            if number and (left <= 0 or _FEWEST_ROUNDS * latency * batch > left or time.monotonic() > self._ends_at):
                continue
            wanted_seconds = min(max(left / (len(points) - number), _POINT_SECONDS[0]), _POINT_SECONDS[1])
            point = _Point(detectors[:workers], self._timed(batch), self._device)
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


def _with_later(first: Sequence[Timing], later: Sequence[Timing]) -> list[Timing]:
    """The median of the first and later timings of each point; points that have no later ones change as the others."""
    medians = []
    for one in first:
        same = [one, *(t for t in later if (t.batch, t.workers) == (one.batch, one.workers))]
        update = {
            "frames_per_second": statistics.median(t.frames_per_second for t in same),
            "latency_seconds": statistics.median(t.latency_seconds for t in same),
            "is_disturbed": any(t.is_disturbed for t in same),
        }
        medians.append((one, one.model_copy(update=update) if len(same) > 1 else None))
    pairs = [(one.frames_per_second, new.frames_per_second) for one, new in medians if new is not None]
    change = sum(new for _, new in pairs) / sum(old for old, _ in pairs) if pairs else 1.0
    return [new or _scaled(one, change) for one, new in medians]


def _scaled(timing: Timing, change: float) -> Timing:
    return timing.model_copy(
        update={
            "frames_per_second": round(timing.frames_per_second * change, 3),
            "latency_seconds": round(timing.latency_seconds / change, 6),
        }
    )


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
    """Takes what a child says until it is done or closes the pipe; false if it is silent for so long, or late."""
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
        messages = [json.loads(line) for line in lines]
        for message in messages:
            _note(message, found)
        if any("done" in message for message in messages):
            return True


def _note(message: dict[str, Any], found: _Found) -> None:
    if "found" in message:
        found.detections = [
            [Detection(label, score, tuple(box)) for label, score, box in each] for each in message["found"]
        ]
        found.seconds = message["seconds"]
    found.spent_seconds = message.get("spent", found.spent_seconds)
    found.is_sure = message.get("is_sure", found.is_sure)
    found.used_seconds = message.get("used", found.used_seconds)
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
