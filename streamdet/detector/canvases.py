"""Which canvases the daemon detects on: only those on which the engine has proven itself on this machine.

An engine may crash for one size alone, and a camera may send any size at any time. What the trial of the engines did
not have is tried later, in a child process, while the frames stand on a larger canvas that was tried. If that child
crashes, they stay there.

This module does not import torch.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from streamdet.detector.choice import Outcome, Result, Size
from streamdet.errors import DetectorError
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.worker import Worker

_log = logging.getLogger(__name__)


class Canvases:
    """The canvases that may be used; read by any thread, changed by one.

    Args:
        proven: heights and widths; None if all may be used.
    """

    def __init__(self, proven: Iterable[Size] | None = None) -> None:
        self._proven = None if proven is None else frozenset(proven)

    def has(self, canvas: Size) -> bool:
        """Whether it may be used."""
        return self._proven is None or canvas in self._proven

    def fit(self, canvas: Size) -> Size | None:
        """The canvas itself, else the smallest in which it has room; None if no canvas is large enough."""
        if self._proven is None or canvas in self._proven:
            return canvas
        larger = [(h * w, h, w) for h, w in self._proven if h >= canvas[0] and w >= canvas[1]]
        return min(larger)[1:] if larger else None

    def add(self, canvas: Size) -> None:
        """Has it used from now on."""
        if self._proven is not None:
            self._proven |= {canvas}


class CanvasTrials(Worker):
    """Tries the engine on canvases that are new to it, one after the other.

    Args:
        canvases: gets what has proven itself.
        canvas_of: the canvas of a frame's height and width.
        try_size: tries the engine with frames of a height and width in another process; asks now and then whether to
            stop; None if there was no answer.
        failed: heights and widths of frames with which the engine has failed before.
        unexpected: counts errors that cost the trial of a size.
    """

    def __init__(
        self,
        canvases: Canvases,
        canvas_of: Callable[[Size], Size],
        try_size: Callable[[Size, Callable[[], bool]], Result | None],
        failed: Iterable[Size] = (),
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        super().__init__("canvas-trials")
        self._unexpected = unexpected or UnexpectedErrors()
        self._canvases = canvases
        self._canvas_of = canvas_of
        self._try_size = try_size
        self._changed = threading.Condition()
        self._waiting: deque[Size] = deque()
        self._problems = {canvas_of(size): "failed in an earlier trial" for size in failed}
        self._known = set(self._problems)

    def admit(self, size: Size) -> bool:
        """Has a new size tried; waits for the answer only where no larger canvas is proven. From any thread.

        Args:
            size: height and width of a frame.

        Returns:
            Whether frames of the size can be detected now; false at a stop.

        Raises:
            DetectorError: they cannot be detected at all.
        """
        canvas = self._canvas_of(size)
        if self._canvases.has(canvas):
            return True
        with self._changed:
            if canvas not in self._known:
                self._known.add(canvas)
                self._waiting.append(size)
                self._changed.notify_all()
            if self._canvases.fit(canvas) is not None:
                return True
            self._changed.wait_for(lambda: self.stopping or self._canvases.has(canvas) or canvas in self._problems)
            if canvas in self._problems:
                message = f"frames of {_text(size)} cannot be detected: the engine {self._problems[canvas]}"
                raise DetectorError(message)
        return not self.stopping

    def run(self) -> None:
        """Tries sizes until a stop."""
        while (size := self._next()) is not None:
            result = None
            try:
                result = self._try_size(size, lambda: self.stopping)
            except Exception as error:  # noqa: BLE001 - whatever it is: captures may wait for the answer
                self._unexpected.report("detection", error, f"frames of {_text(size)} are not tried")
            if result is not None or not self.stopping:
                self._note(size, result)

    def wake(self) -> None:
        """Ends all waits."""
        with self._changed:
            self._changed.notify_all()

    def _next(self) -> Size | None:
        with self._changed:
            self._changed.wait_for(lambda: self.stopping or self._waiting)
            return None if self.stopping else self._waiting.popleft()

    def _note(self, size: Size, result: Result | None) -> None:
        canvas = self._canvas_of(size)
        with self._changed:
            if result is not None and result.outcome is Outcome.AGREES:
                self._canvases.add(canvas)
                _log.info("%s has passed its trial with frames of %s", result.candidate.name, _text(size))
            else:
                why = "could not be tried" if result is None else f"failed in its trial ({result.in_words()})"
                self._problems[canvas] = why
                _log.warning(
                    "frames of %s: the engine %s; they %s",
                    _text(size),
                    why,
                    "cannot be detected"
                    if self._canvases.fit(canvas) is None
                    else "are detected on a larger canvas, which takes longer and may change scores a little",
                )
            self._changed.notify_all()


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
