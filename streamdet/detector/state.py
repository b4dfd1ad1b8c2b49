"""State that is kept over restarts: the results of trials, and the sizes of the streams' frames.

This module does not import torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from streamdet.detector.choice import USUAL_SIZES, Report, Size, Sizes, Value
from streamdet.security.files import open_at_once, write_atomically

_log = logging.getLogger(__name__)

_FILE = "engines.json"
_MAX_FILE_BYTES = 1 << 20
_MOST_KEPT = 16
_WAIT_SECONDS = 0.2
# How long to wait for another process that tries the same; then both do.
_LOCK_SECONDS = 90.0


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The trial was stopped because the process is to end."""


class _Kept(Value):
    """The content of the file."""

    version: Literal[1] = 1
    reports: tuple[Report, ...] = ()
    frame_sizes: Sizes = ()


class Store:
    """Keeps the newest answers, and the sizes of the streams' frames, in a file; without a place for it, in memory.

    A file that is broken, too large, or belongs to another user is ignored.

    Args:
        folder: made when first needed; None to keep answers in memory alone.

    Attributes:
        path: of the file; None without a folder.
        is_written: whether all answers could be written to it.
    """

    _memory: dict[str, Report] = {}  # noqa: RUF012 - of the process: a second detector need not try again
    # Of the process, too: the file is read, and written with a change.
    _changing = threading.Lock()

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.path = None if folder is None else folder / _FILE
        self.is_written = folder is not None

    def read(self, key: Mapping[str, str] | None) -> Report | None:
        """The report kept for this key; None if no report is kept."""
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
        with self._changing:
            kept = self._read_all()
            others = [each for each in kept.reports if each.key != report.key]
            self._write(kept.model_copy(update={"reports": (report, *others)[:_MOST_KEPT]}))

    def frame_sizes(self) -> tuple[Size, ...]:
        """Sizes of the streams' frames in the last run; empty before the first."""
        return self._read_all().frame_sizes

    def write_frame_sizes(self, sizes: Sequence[Size]) -> None:
        """Keeps the sizes of the streams' frames for the next start, of more than 16 the last ones."""
        with self._changing:
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
                "cannot save the fastest engine in %s (%s): the engines are tried again at the next start",
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
            with open_at_once(self.path, follow=False) as file:
                about = os.fstat(file.fileno())
                is_ours = about.st_uid in {os.geteuid(), 0} and not about.st_mode & 0o022
                if not stat.S_ISREG(about.st_mode) or not is_ours or about.st_size > _MAX_FILE_BYTES:
                    _log.warning("%s is not a file that this daemon wrote: the engines are tried again", self.path)
                    return _Kept()
                return _Kept.model_validate_json(file.read(_MAX_FILE_BYTES))
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


class _Sized(Protocol):
    frame_sizes: tuple[Size, ...]

    def canvas_size(self, frame_size: Size) -> Size: ...

    def prepare(self, frame_size: Size) -> None: ...


class FrameSizes:
    """Has each detector warm up for the frames of the last run, and remembers those of this one.

    Args:
        store: where sizes are kept from one start to the next.
        detectors: that share what frames of a size need.
        admit: whether frames of a height and width can be detected now; asked before anything is laid out for them.
            None if all can.
    """

    def __init__(self, store: Store, *detectors: _Sized, admit: Callable[[Size], bool] | None = None) -> None:
        self._store = store
        self._admit = admit
        self._detector = detectors[0]
        self._lock = threading.Lock()
        self._seen: set[Size] = set()
        # One frame size stands for all that need the same canvas; one that is tried anyway, where there is one.
        self._of_canvas = {detectors[0].canvas_size(size): size for size in USUAL_SIZES}
        known = store.frame_sizes()
        for detector in detectors:
            detector.frame_sizes = known or detector.frame_sizes

    def prepare(self, size: Size) -> None:
        """Lays out what frames of this height and width need; from any thread."""
        if self._admit is not None and not self._admit(size):
            return
        self._detector.prepare(size)
        canvas = self._detector.canvas_size(size)
        with self._lock:
            size = self._of_canvas.setdefault(canvas, size)
            if size in self._seen:
                return
            self._seen.add(size)
            sizes = sorted(self._seen)
        self._store.write_frame_sizes(sizes)
