"""Finds the engine that runs best on this machine: each is tried in a separate process, and the result is kept.

The flags of a CPU do not predict this: an engine may crash for some sizes, compute wrong numbers, or be slower than
plain fp32. So only engines that passed a trial on this machine run by default:

    Trial  asks the tester process (`streamdet.detector.tester`), which forks once for each candidate
           -> Report: a verdict for each candidate, with its speed and how far it is from torch in fp32
           -> Choice: the fastest that agrees, and the batch size and workers that suit it (`choice`)
           -> kept in the state directory, under a key of everything that the answer depends on (`state`)

What the load of the machine may have caused, such as a candidate that said nothing for too long, is tried again at a
later start.

This module does not import torch.
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from typing import Any, Self

from streamdet import __version__
from streamdet.assets import embedded_int8_weights, embedded_weights
from streamdet.config import DetectorConfig
from streamdet.detector.choice import (
    ALL_ENGINES,
    Candidate,
    Choice,
    Outcome,
    Report,
    Result,
    Size,
    choose,
    settled,
)
from streamdet.detector.state import Interrupted, Store
from streamdet.monitoring import systemd
from streamdet.security.files import state_folder

_log = logging.getLogger(__name__)

TESTER = (sys.executable, "-P", "-m", "streamdet.detector.tester")
BUDGET_SECONDS = {"cpu": 18.0, "cuda": 60.0}
"""What a trial shares out on an idle machine; the fastest may take a little more, one that hangs its time limit."""


_WAIT_SECONDS = 0.2
_EXTEND_SECONDS = 60.0
# Of a trial of one size: nothing is chosen by its speed.
_SHORT_SECONDS = 1.0
# What narrows or widens the instructions that the libraries use, or the devices that they see.
_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TRITON_INTERPRET",
)  # fmt: skip
_GPU_PATHS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
_LIBRARIES = ("torch", "torchvision", "openvino", "numpy", "opencv-python-headless", "triton")


def needs_trial(config: DetectorConfig) -> bool:
    """Whether the configuration leaves the engine, the precision, or on a CPU the batch size to us.

    What it names is run as it says.
    """
    if config.engine in {"reference", "graph"}:
        return config.engine == "graph" and config.precision == "auto"
    of_batch = config.max_batch_size == "auto" and _device(config) == "cpu"
    return of_batch or "auto" in {config.engine, config.precision}


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
        self._again = again
        self._kept: Report | None = None
        self._known = self._look()
        self._stack = contextlib.ExitStack()
        self._tester: _Tester | None = None
        self._extended_at = 0.0

    def __enter__(self) -> Self:
        if self._known is None and self._key is not None:
            self._stack.enter_context(self._store.locked(self._stopping))
            # Another process may have found out meanwhile.
            self._known = self._look()
            if self._known is None:
                job = _job(self._config, self._sizes, self._budget_seconds, again=self._kept)
                try:
                    self._tester = self._stack.enter_context(_Tester(self._command, job))
                except OSError as error:
                    _log.warning("engines cannot be tried: %s", error)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _look(self) -> Report | None:
        """The answer that is kept; None where there is none, or some of it is to be tried again."""
        self._kept = None if self._again else self._store.read(self._key)
        is_due = self._kept is not None and self._kept.is_due(time.time())
        return None if is_due else self._kept

    @property
    def is_known(self) -> bool:
        """Whether nothing has to be tried."""
        return self._known is not None

    def report(self) -> Report | None:
        """The answer; None where it cannot be found out, which a warning has said then.

        Raises:
            Interrupted: `stopping` said so.
        """
        if self._known is not None or self._tester is None or self._key is None:
            return self._known or self._kept
        began = time.monotonic()
        device, results = self._results(self._tester)
        if not results:
            _log.warning("engines cannot be tried: %s", self._tester.last_words())
            return self._kept
        report = Report(
            key=self._key,
            device=device,
            results=tuple(results),
            frame_sizes=self._sizes,
            seconds=round(time.monotonic() - began, 1),
            measured_at=time.time(),
        )
        if self._kept is not None:
            report = self._kept.repeated(report)
        if report.doubtful:
            doubtful = [f"{each.candidate.name}: {each.in_words()}" for each in report.results if each.may_pass]
            _log.warning("tried again at a later start, when this machine may be less busy: %s", "; ".join(doubtful))
        if any(result.outcome is Outcome.AGREES for result in results):
            self._store.write(report)
        self._known = report
        return report

    def _results(self, tester: _Tester) -> tuple[str, list[Result]]:
        """What the tester reports."""
        device, results = "cpu", []
        with _Progress("once" if self._kept is None else "again") as progress:
            for message in tester.messages(self._is_stopping):
                if isinstance(message, Result):
                    results.append(message)
                elif "device" in message:
                    device = str(message["device"])
                else:
                    progress.say(str(message["trying"]), int(message["number"]), int(message["of"]))
        return device, results

    def _is_stopping(self) -> bool:
        if time.monotonic() - self._extended_at > _EXTEND_SECONDS / 4:
            systemd.extend_start(_EXTEND_SECONDS)
            self._extended_at = time.monotonic()
        return self._stopping()


def try_size(
    config: DetectorConfig,
    candidate: Candidate,
    size: Size,
    stopping: Callable[[], bool],
    store: Store | None = None,
    command: Sequence[str] = TESTER,
) -> Result | None:
    """Tries one engine with one more size of frames, in a process of its own, and keeps the answer.

    Args:
        config: `weights`, `model` and `device` are used.
        candidate: the engine.
        size: height and width.
        stopping: asked a few times a second; true ends the trial.
        store: where the answer is kept.
        command: runs the tester; another one in tests.

    Returns:
        the result; None if there is no answer: a warning says why, unless `stopping` ended the trial.
    """
    store = Store(state_folder()) if store is None else store
    key = key_of(config)
    job = _job(config, [size], _SHORT_SECONDS, only=candidate)
    result = None
    try:
        with store.locked(stopping), _Tester(command, job) as tester:
            for message in tester.messages(stopping):
                if isinstance(message, Result) and message.candidate == candidate:
                    result = message
            if result is None:
                _log.warning("%s cannot be tried: %s", candidate.name, tester.last_words())
    except OSError as error:
        _log.warning("%s cannot be tried: %s", candidate.name, error)
    except Interrupted:
        return None
    report = store.read(key)
    if result is not None and report is not None:
        store.write(report.with_size(size, result))
    return result


def _job(
    config: DetectorConfig,
    sizes: Sequence[Size],
    budget_seconds: float | None,
    only: Candidate | None = None,
    again: Report | None = None,
) -> dict[str, object]:
    """What the tester is to do.

    Args:
        config: `weights`, `model` and `device` are used.
        sizes: heights and widths of frames to try.
        budget_seconds: None for `BUDGET_SECONDS`.
        only: restricts it to one candidate, the reference, and these sizes.
        again: restricts it to what is doubtful in this report, with more patience each time, and the reference.
    """
    budget = BUDGET_SECONDS if budget_seconds is None else dict.fromkeys(BUDGET_SECONDS, budget_seconds)
    return {
        "weights": config.weights,
        "model": config.model,
        "device": _device(config),
        "frame_sizes": sizes,
        "budget_seconds": budget,
        "only": None if only is None else only.model_dump(),
        "again": None if again is None else [candidate.model_dump() for candidate in again.doubtful],
        "patience": 1 if again is None else 2 ** (again.repeats + 1),
        "parent": os.getpid(),
    }


class _Tester:
    """The tester process; a context manager that starts and ends it.

    Args:
        command: runs it.
        job: that it is to do.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], job: Mapping[str, object]) -> None:
        self._command = command
        self._job = job
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # What a tester says in its last moment; nothing can block on a file.
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            self._process = stack.enter_context(
                subprocess.Popen(  # noqa: S603 - ours
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=_tester_environment(),
                )
            )
            stack.callback(self._process.kill)  # what it has forked ends with it
            with contextlib.suppress(BrokenPipeError), self._process.stdin or contextlib.nullcontext() as pipe:
                if pipe is not None:
                    pipe.write(json.dumps(self._job).encode())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def messages(self, stopping: Callable[[], bool]) -> Iterator[Result | dict[str, Any]]:
        """Its results, and what else it reports, until it ends.

        Raises:
            Interrupted: `stopping`, which is asked a few times a second, said so.
        """
        for line in self._lines(stopping):
            try:
                message = json.loads(line)
                if "result" in message:
                    yield Result.model_validate(message["result"])
                elif "device" in message or message.keys() >= {"trying", "number", "of"}:
                    yield message
            except (ValueError, AttributeError, TypeError):  # ValidationError is a ValueError
                _log.warning("the trial of the engines printed output that cannot be read")

    def _lines(self, stopping: Callable[[], bool]) -> Iterator[bytes]:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        pipe = self._process.stdout.fileno()
        rest = b""
        while True:
            if stopping():
                raise Interrupted
            ready, _, _ = select.select([pipe], [], [], _WAIT_SECONDS)
            if not ready:
                continue
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines

    def last_words(self) -> str:
        """The last line that it has written to its standard error."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 2000, 0))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "the tester ended without a word")


def _tester_environment() -> dict[str, str]:
    """The daemon's own, so that what is tried is what will run; threads only where we make them."""
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class _Progress:
    """Says what is being tried: a line that changes on a terminal, else a line for each candidate.

    Args:
        how_often: "once", or "again" for what is tried again.
    """

    def __init__(self, how_often: str) -> None:
        self._how_often = how_often
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
        about = f"finding the fastest engine for this machine, {self._how_often}"
        text = f"{about}: {number} of {of}, {name}"
        systemd.status(text)
        if self._update is not None:
            self._update(text)
        elif _log.isEnabledFor(logging.INFO):
            _log.info("%s", text)
        elif number == 1 and sys.stderr:
            print(f"streamdet: {about}: takes up to 25 s", file=sys.stderr)  # noqa: T201


# ---- what the answer depends on ----


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
