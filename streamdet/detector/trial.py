"""Finds out which engine runs best on this machine: each is tried in a process of its own, and the answer is kept.

Flags of a CPU promise nothing: an engine may crash for some sizes, compute wrong numbers, or be slower than plain fp32.
So nothing runs by default that has not proven itself here:

    Trial  asks the tester process (`streamdet.detector.tester`), which forks once for each candidate
           -> Report: a verdict for each candidate, with its speed and how far it is from torch in fp32
           -> Choice: the fastest that agrees, and the batch size and workers that suit it
           -> kept in the state directory, under a key of everything that the answer depends on

This module does not import torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import select
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from streamdet import __version__
from streamdet.assets import embedded_int8_weights, embedded_weights
from streamdet.config import DetectorConfig
from streamdet.monitoring import systemd
from streamdet.security.files import write_atomically

_log = logging.getLogger(__name__)

TESTER = (sys.executable, "-P", "-m", "streamdet.detector.tester")
BUDGET_SECONDS = {"cpu": 18.0, "cuda": 60.0}
"""What a trial takes at the most on a machine with nothing else to do; a candidate that hangs adds its time limit."""

BATCHES = (1, 2, 4, 8)
CUDA_BATCH = 8
"""Frames of a batch where no trial says what is best."""

# A gain below this is not worth a later event, more memory, or numbers that are less exact.
_WORTH_IT = 0.95
# A batch delays its first frame by as many detections as it has frames, and beside captures it gains less than alone:
# with 12 streams on two cores, batches of 4 were 20 % faster in the trial, no faster in the daemon, and twice as late.
_BATCH_WORTH_IT = 0.75
_EXACT_FIRST = ("fp32", "bf16", "int8")

_STORE = "engines.json"
_MAX_STORE_BYTES = 1 << 20
_MOST_KEPT = 16
_WAIT_SECONDS = 0.2
# How long to wait for another process that tries the same; then both do.
_LOCK_SECONDS = 90.0
_EXTEND_SECONDS = 60.0
# What narrows or widens the instructions that the libraries use, or the devices that they see.
_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TRITON_INTERPRET",
)  # fmt: skip
_GPU_PATHS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
_LIBRARIES = ("torch", "torchvision", "openvino", "numpy", "opencv-python-headless", "triton")

Text = Annotated[str, Field(max_length=500)]
Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
Size = tuple[Pixels, Pixels]
"""Height and width of a frame in pixels."""
Sizes = Annotated[tuple[Size, ...], Field(max_length=16)]
Positive = Annotated[float, Field(gt=0, lt=1e9)]


class _Value(BaseModel):
    """Something that is read from a file or another process: checked, bounded, and never changed."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Candidate(_Value):
    """One way to run the model.

    Attributes:
        engine: as in the configuration.
        precision: as in the configuration.
        kernels: whether the CUDA graph contains the kernels of ours; plain torch in it otherwise.
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
"""What all others are compared with, and what runs where nothing else can."""

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
    FAILED = "failed"


class Timing(_Value):
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


class Result(_Value):
    """What the trial found about a candidate.

    Attributes:
        candidate: what was tried.
        outcome: in a word.
        reason: in a line; empty for one that agrees.
        difference: from torch in fp32, in a line; empty where there was nothing to compare.
        timings: empty unless it agrees.
    """

    candidate: Candidate
    outcome: Outcome
    reason: Text = ""
    difference: Text = ""
    timings: Annotated[tuple[Timing, ...], Field(max_length=64)] = ()

    def fps(self, most_batch: int, most_workers: int) -> float:
        """The highest frames per second within these bounds; 0 where it was not measured."""
        return max((t.frames_per_second for t in self.within(most_batch, most_workers)), default=0.0)

    def within(self, most_batch: int, most_workers: int) -> list[Timing]:
        """Timings of batches and workers that may be used."""
        return [t for t in self.timings if t.batch <= most_batch and t.workers <= most_workers]


class Report(_Value):
    """The answer of a trial.

    Attributes:
        key: what it depends on; it holds while these are the same.
        device: "cpu" or such as "cuda:0".
        results: of every candidate.
        frame_sizes: of the streams' last run, which were tried beside the usual ones.
        seconds: that the trial took.
        measured_at: Unix time in seconds.
    """

    key: dict[Text, Text]
    device: Annotated[str, Field(pattern=r"^(cpu|cuda:[0-9]{1,2})$")]
    results: Annotated[tuple[Result, ...], Field(max_length=32)]
    frame_sizes: Sizes = ()
    seconds: Annotated[float, Field(ge=0)]
    measured_at: Annotated[float, Field(ge=0)]

    def result(self, candidate: Candidate) -> Result | None:
        """Of this candidate; None where it was not tried."""
        return next((result for result in self.results if result.candidate == candidate), None)


@dataclass(frozen=True)
class Choice:
    """What is to run.

    Attributes:
        candidate: engine and precision.
        max_batch_size: frames of a batch at the most.
        workers: batches at the same time on a CPU; None where nothing was measured.
        left_out: name of each other candidate, and why it does not run.
        is_proven: whether a trial here found that it works.
    """

    candidate: Candidate
    max_batch_size: int
    workers: int | None
    left_out: tuple[tuple[str, str], ...]
    is_proven: bool = True


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The trial was stopped because the process is to end."""


def needs_trial(config: DetectorConfig) -> bool:
    """Whether the configuration leaves the engine or the precision to us; what it names is run as it says."""
    return config.engine != "reference" and "auto" in {config.engine, config.precision}


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


ALL_ENGINES = ("torch", "openvino", "graph")


def choose(config: DetectorConfig, report: Report | None, engines: Sequence[str] = ALL_ENGINES) -> Choice:
    """The fastest that agrees; of those that are about as fast, the one whose numbers are the most exact.

    On a CPU the batch is the smallest that reaches three quarters of the best throughput, because events are early
    then; the workers are the fewest that come within 5 % of the best with that batch.

    Args:
        config: what it asks for is obeyed; `max_batch_size` is an upper bound.
        report: of the trial; None where there is none.
        engines: that the caller can run.
    """
    results = candidates_of(config, report.results, engines) if report else []
    most_workers = config.workers or 1024
    most_batch = config.largest_batch if config.max_batch_size != "auto" else max(BATCHES)
    rated = [(r.fps(most_batch, most_workers), r) for r in results if r.outcome is Outcome.AGREES]
    best = max((fps for fps, _ in rated), default=0.0)
    good = [result for fps, result in rated if fps >= _WORTH_IT * best]
    if report is None or not good:
        left_out = tuple((r.candidate.name, _why_not(r)) for r in results if r.candidate != REFERENCE)
        return Choice(_fallback(config, engines), config.largest_batch, None, left_out, is_proven=False)
    taken = min(good, key=lambda r: (_EXACT_FIRST.index(r.candidate.precision), -r.fps(most_batch, most_workers)))
    left_out = tuple(
        (r.candidate.name, _slower(r.fps(most_batch, most_workers), taken, most_batch, most_workers) or _why_not(r))
        for r in results
        if r is not taken
    )
    if report.device != "cpu":
        return Choice(taken.candidate, config.largest_batch, None, left_out)
    timings = taken.within(most_batch, most_workers)
    fps = taken.fps(most_batch, most_workers)
    if not timings:
        return Choice(taken.candidate, config.largest_batch, None, left_out)
    batch = min(t.batch for t in timings if t.frames_per_second >= _BATCH_WORTH_IT * fps)
    of_batch = [t for t in timings if t.batch == batch]
    fps = max(t.frames_per_second for t in of_batch)
    frugal = min((t for t in of_batch if t.frames_per_second >= _WORTH_IT * fps), key=lambda t: t.workers)
    return Choice(taken.candidate, frugal.batch, frugal.workers, left_out)


def verdict(result: Result, choice: Choice) -> str:
    """In a word or two, for the table: "fastest" for the one that is taken, "slower" for what agrees."""
    if result.candidate == choice.candidate and choice.is_proven:
        return "fastest"
    return "slower" if result.outcome is Outcome.AGREES else result.outcome.value


def _slower(fps: float, taken: Result, most_batch: int, most_workers: int) -> str:
    if not fps:
        return ""
    best = taken.fps(most_batch, most_workers)
    if fps >= _WORTH_IT * best:
        return f"about as fast ({fps:.0f} frames/s), less exact or no better"
    return f"slower: {fps:.0f} frames/s, not {best:.0f}"


def _why_not(result: Result) -> str:
    return f"{result.outcome.value}{f': {result.reason}' if result.reason else ''}"


def _fallback(config: DetectorConfig, engines: Sequence[str]) -> Candidate:
    """What runs where no trial helps: torch in fp32, or what the configuration names, in fp32."""
    engine = config.engine if config.engine in engines else "torch"
    precision = "fp32" if config.precision == "auto" else config.precision
    if config.engine == "auto" and precision == "int8" and "openvino" in engines:
        engine = "openvino"  # the only one that has it
    if config.device == "cuda:all" and "graph" in engines:
        engine = "graph"
    return Candidate.model_validate({"engine": engine, "precision": precision})


def settle(
    config: DetectorConfig, engines: Sequence[str] = ALL_ENGINES, stopping: Callable[[], bool] = lambda: False
) -> tuple[DetectorConfig, Choice | None]:
    """Replaces every "auto" of engine, precision and batch size by what runs best here.

    Takes up to `BUDGET_SECONDS` where the answer is not known yet, and next to nothing later.

    Args:
        config: `[detector]`.
        engines: that the caller can run.
        stopping: asked a few times a second; true ends the trial.

    Returns:
        the configuration without "auto"; and the choice, None where there was none.

    Raises:
        Interrupted: `stopping` said so.
    """
    if not needs_trial(config):
        return config.model_copy(update={"max_batch_size": config.largest_batch}), None
    with Trial(config, stopping=stopping) as trial:
        return settled(config, choose(config, trial.report(), engines))


def settled(config: DetectorConfig, choice: Choice) -> tuple[DetectorConfig, Choice]:
    """The configuration with what was chosen; a choice that no trial has proven is said in a warning."""
    if not choice.is_proven:
        why = "; ".join(f"{name}: {reason}" for name, reason in choice.left_out) or "the trial gave no answer"
        _log.warning("no engine has proven itself here: running %s (%s)", choice.candidate.name, why)
    update: dict[str, object] = {"max_batch_size": choice.max_batch_size}
    if choice.candidate != REFERENCE or choice.is_proven:
        update |= {"engine": choice.candidate.engine, "precision": choice.candidate.precision}
    # Else "auto" stays: it means torch in fp32 from here on, or the one engine that can read an exported file.
    return config.model_copy(update=update), choice


class Trial:
    """Knows the answer, or finds it out; a context manager that begins the work and ends the tester.

    Args:
        config: `weights`, `model` and `device` are used: one answer serves all other settings.
        store: where answers are kept.
        command: runs the tester; another one in tests.
        stopping: asked a few times a second; true ends the trial.
        again: try even where the answer is known.
        budget_seconds: None for `BUDGET_SECONDS`.
    """

    def __init__(
        self,
        config: DetectorConfig,
        store: Store | None = None,
        command: Sequence[str] = TESTER,
        *,
        stopping: Callable[[], bool] = lambda: False,
        again: bool = False,
        budget_seconds: float | None = None,
    ) -> None:
        self._config = config
        self._store = Store(state_folder()) if store is None else store
        self._command = command
        self._stopping = stopping
        self._budget_seconds = budget_seconds
        self._key = key_of(config)
        self._sizes = self._store.frame_sizes()
        self._known = None if again else self._read()
        self._again = again
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._known is None and self._key is not None:
            self._stack.enter_context(self._store.locked(self._stopping))
            # Another process may have found out meanwhile.
            self._known = None if self._again else self._read()
            if self._known is None:
                try:
                    self._start()
                except OSError as error:
                    _log.warning("engines cannot be tried: %s", error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()  # what it has forked ends with it
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._stack.close()

    def _read(self) -> Report | None:
        """The answer, if the frames of all streams of the last run have been tried for it."""
        report = self._store.read(self._key)
        return report if report is not None and set(self._sizes) <= set(report.frame_sizes) else None

    @property
    def is_known(self) -> bool:
        """Whether nothing has to be tried."""
        return self._known is not None

    def report(self) -> Report | None:
        """The answer; None where it cannot be found out, which a warning has said then.

        Raises:
            Interrupted: `stopping` said so.
        """
        if self._known is not None or self._process is None or self._key is None:
            return self._known
        began = time.monotonic()
        device, results = self._results()
        if not results:
            _log.warning("engines cannot be tried: %s", self._last_words())
            return None
        report = Report(
            key=self._key,
            device=device,
            results=tuple(results),
            frame_sizes=self._sizes,
            seconds=round(time.monotonic() - began, 1),
            measured_at=time.time(),
        )
        if any(result.outcome is Outcome.AGREES for result in results):
            self._store.write(report)
        self._known = report
        return report

    def _start(self) -> None:
        # What a tester says in its last moment; nothing can block on a file.
        self._errors = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is one
        self._process = subprocess.Popen(  # noqa: S603 - ours
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=_tester_environment()
        )
        budget = self._budget_seconds
        job = {
            "weights": self._config.weights,
            "model": self._config.model,
            "device": _device(self._config),
            "frame_sizes": self._sizes,
            "budget_seconds": BUDGET_SECONDS if budget is None else dict.fromkeys(BUDGET_SECONDS, budget),
            "parent": os.getpid(),
        }
        with contextlib.suppress(BrokenPipeError), self._process.stdin or contextlib.nullcontext() as pipe:
            if pipe is not None:
                pipe.write(json.dumps(job).encode())

    def _results(self) -> tuple[str, list[Result]]:
        """What the tester reports, line by line."""
        device, results = "cpu", []
        with _Progress() as progress:
            for line in self._lines():
                try:
                    message = json.loads(line)
                    if "result" in message:
                        results.append(Result.model_validate(message["result"]))
                    elif "device" in message:
                        device = str(message["device"])
                    elif "trying" in message:
                        progress.say(str(message["trying"]), int(message["number"]), int(message["of"]))
                except (ValueError, KeyError, TypeError):  # ValidationError is a ValueError
                    _log.warning("the trial of the engines said something that cannot be read")
        return device, results

    def _lines(self) -> Iterator[bytes]:
        """Lines of the tester until it ends, asking meanwhile whether to stop."""
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018 - for mypy
        pipe = self._process.stdout.fileno()
        rest = b""
        extended_at = 0.0
        while True:
            if self._stopping():
                raise Interrupted
            if time.monotonic() - extended_at > _EXTEND_SECONDS / 4:
                systemd.extend_start(_EXTEND_SECONDS)
                extended_at = time.monotonic()
            ready, _, _ = select.select([pipe], [], [], _WAIT_SECONDS)
            if not ready:
                continue
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines

    def _last_words(self) -> str:
        assert self._errors is not None  # noqa: S101 - for mypy
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 2000, 0))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "the tester ended without a word")


def _tester_environment() -> dict[str, str]:
    """The daemon's own, so that what is tried is what will run; threads only where we make them."""
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class _Progress:
    """Says what is being tried: a line that changes on a terminal, else a line for each candidate."""

    def __init__(self) -> None:
        self._status: contextlib.AbstractContextManager[object] | None = None
        self._update: Callable[[str], object] | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415 - only where someone looks

            status = Console(stderr=True).status("trying the engines ...")
            self._status, self._update = status, status.update
            status.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.__exit__(None, None, None)

    def say(self, name: str, number: int, of: int) -> None:
        text = f"trying which engine is the fastest here, once: {number} of {of}, {name}"
        systemd.status(text)
        if self._update is not None:
            self._update(text)
        elif _log.isEnabledFor(logging.INFO):
            _log.info("%s", text)
        elif number == 1 and sys.stderr:
            print("streamdet: trying which engine is the fastest here, once: takes up to 20 s", file=sys.stderr)  # noqa: T201


# ---- the key ----


def key_of(config: DetectorConfig) -> dict[str, str] | None:
    """Everything that the answer depends on; None where the weights cannot be read, which loading them will report."""
    weights = _weights_digest(config)
    if weights is None:
        return None
    cpu = _cpu()
    return {
        "streamdet": f"{__version__} {_code()}",
        "libraries": " ".join(f"{name}-{_version(name)}" for name in _LIBRARIES),
        "cpu": cpu[0],
        "cpu_flags": cpu[1],
        "cores": str(usable_cores()),
        "cpu_quota": _first_line(Path("/sys/fs/cgroup/cpu.max")),
        "memory_gib": str(_memory_gib()),
        "gpu": _gpu(),
        "environment": " ".join(f"{name}={os.environ[name]}"[:80] for name in _ENVIRONMENT if name in os.environ)[:500],
        "device": _device(config),
        "weights": weights,
    }


def _device(config: DetectorConfig) -> str:
    """As the configuration says it; "auto" where there is nothing but a CPU is the same as "cpu"."""
    return "cpu" if config.device == "auto" and not any(map(os.path.exists, _GPU_PATHS)) else config.device


def _code() -> str:
    """A digest of the package's own code that detects: a checkout changes without its version."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def usable_cores() -> int:
    """How many cores this process may use, by its affinity and by the quota of its control group; from 1."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _first_line(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(cores, 1)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu() -> tuple[str, str]:
    """Model of the first CPU, and a digest of what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        text = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    model = facts.get("model name") or facts.get("CPU part") or platform.processor() or "unknown"
    numbers = [facts.get(name, "") for name in ("cpu family", "model", "stepping", "CPU implementer", "CPU part")]
    flags = facts.get("flags") or facts.get("Features") or ""
    digest = hashlib.sha256(" ".join([platform.machine(), *numbers, *sorted(flags.split())]).encode()).hexdigest()
    return model[:100], digest[:16]


def _memory_gib() -> int:
    """Of the machine, or of the control group where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_line(Path("/sys/fs/cgroup/memory.max"))
    return (min(total, int(limit)) if limit.isdecimal() else total) >> 30


def _gpu() -> str:
    """Models and driver, as NVIDIA's driver says them; empty without."""
    driver = _first_line(Path("/proc/driver/nvidia/version"))
    folder = Path("/proc/driver/nvidia/gpus")
    models = []
    with contextlib.suppress(OSError):
        models = [_first_line(path / "information") for path in sorted(folder.iterdir())]
    return "; ".join(filter(None, [driver, *models]))[:500]


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(500).strip()
    except OSError:
        return ""


def _weights_digest(config: DetectorConfig) -> str | None:
    if config.weights == "coco":
        return f"coco {config.model}"  # the version of torchvision says which these are
    digest = hashlib.sha256()
    paths = [Path(config.weights).expanduser()]
    if config.weights == "embedded":
        paths = [embedded_weights(), embedded_int8_weights()]
    try:
        for path in paths:
            with path.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return None
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    except (OSError, ValueError):
        return None
    return f"{config.model or ''} {digest.hexdigest()[:32]}".strip()


# ---- the store ----


def state_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where answers are kept: systemd's state directory, else the user's; None where there is neither."""
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    state = environ.get("XDG_STATE_HOME", "")
    if state and Path(state).is_absolute():
        return Path(state, "streamdet")
    home = environ.get("HOME", "")
    return Path(home, ".local", "state", "streamdet") if home and Path(home).is_absolute() else None


class _Kept(_Value):
    """The content of the file."""

    version: Literal[1] = 1
    reports: tuple[Report, ...] = ()
    frame_sizes: Sizes = ()


class Store:
    """Keeps the newest answers, and the sizes of the streams' frames, in a file; without a place for it, in memory.

    A file that is broken, too large, or someone else's is as good as none.

    Args:
        folder: made when first needed; None to keep answers in memory alone.

    Attributes:
        path: of the file; None without a folder.
        is_written: whether all answers could be written to it.
    """

    _memory: dict[str, Report] = {}  # noqa: RUF012 - of the process: a second detector need not try again

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.path = None if folder is None else folder / _STORE
        self.is_written = folder is not None

    def read(self, key: Mapping[str, str] | None) -> Report | None:
        """The answer for this key; None where there is none."""
        if key is None:
            return None
        kept = next((report for report in self._read_all().reports if report.key == key), None)
        return kept or self._memory.get(self._name(key))

    def write(self, report: Report) -> None:
        """Keeps an answer, and forgets the oldest beyond 16; where nothing can be written, in memory, with a line."""
        self._memory[self._name(report.key)] = report
        if self._folder is None or self.path is None:
            _log.info("there is no state directory: the trial of the engines is repeated at the next start")
            return
        kept = self._read_all()
        others = [each for each in kept.reports if each.key != report.key]
        self._write(kept.model_copy(update={"reports": (report, *others)[:_MOST_KEPT]}))

    def frame_sizes(self) -> tuple[Size, ...]:
        """Sizes of the streams' frames in the last run; empty before the first."""
        return self._read_all().frame_sizes

    def write_frame_sizes(self, sizes: Sequence[Size]) -> None:
        """Keeps the sizes of the streams' frames for the next start, of more than 16 the last ones."""
        kept = self._read_all()
        if self._folder is not None and set(kept.frame_sizes) != set(sizes[-_MOST_KEPT:]):
            self._write(kept.model_copy(update={"frame_sizes": tuple(sizes[-_MOST_KEPT:])}))

    def _write(self, kept: _Kept) -> None:
        if self._folder is None or self.path is None:
            return
        try:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            write_atomically(self.path, kept.model_dump_json(indent=1).encode())
        except OSError as error:
            self.is_written = False
            _log.warning(
                "cannot keep which engine is the fastest in %s (%s): it is tried again at the next start",
                self._folder, error.strerror,
            )  # fmt: skip

    @contextlib.contextmanager
    def locked(self, stopping: Callable[[], bool]) -> Iterator[None]:
        """Lets one process at a time try: two would disturb each other, and the second can use the first's answer."""
        number = None
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                number = os.open(
                    self._folder / ".engines.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
        try:
            if number is not None:
                _lock(number, stopping)
            yield
        finally:
            if number is not None:
                os.close(number)

    def _name(self, key: Mapping[str, str]) -> str:
        return json.dumps([str(self.path), sorted(key.items())])

    def _read_all(self) -> _Kept:
        if self.path is None:
            return _Kept()
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(number, "rb") as file:
                about = os.fstat(file.fileno())
                is_ours = about.st_uid in {os.geteuid(), 0} and not about.st_mode & 0o022
                if not stat.S_ISREG(about.st_mode) or not is_ours or about.st_size > _MAX_STORE_BYTES:
                    _log.warning("%s is not a file of ours: the engines are tried again", self.path)
                    return _Kept()
                return _Kept.model_validate_json(file.read(_MAX_STORE_BYTES))
        except FileNotFoundError:
            return _Kept()
        except OSError as error:
            _log.warning("cannot read %s (%s): the engines are tried again", self.path, error.strerror)
            return _Kept()
        except ValueError:
            _log.warning("%s is broken: the engines are tried again", self.path)
            return _Kept()


def _lock(number: int, stopping: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < deadline:
        if stopping():
            raise Interrupted
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_WAIT_SECONDS)
        else:
            return
