"""Writes lines to a file descriptor in a thread of its own, so that no other thread ever waits for who reads them.

A pipe whose reader stands still, a journal that has stopped, a disk that does not answer: a write to them may take for
ever. Lines wait in a bounded queue; what does not fit, or cannot be written, is lost and counted.
"""

from __future__ import annotations

import os
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_QUEUED_BYTES = 4 * 1024 * 1024
CLOSE_SECONDS = 0.5
"""How long the end waits for lines to be written."""

# What a line takes beside its text.
_OVERHEAD_BYTES = 128


class LogWriter:
    """The part of a text file that a log needs; any thread may use it, and none waits.

    Args:
        descriptor: where to write; duplicated, so that its owner may close it. Its flags are left alone, because
            other processes may share it: it may be blocking or not.
        encoding: of the text.
        lost: makes the line that says how many lines were lost; written when lines can be written again.
    """

    def __init__(self, descriptor: int, encoding: str, lost: Callable[[int], str]) -> None:
        self.encoding = encoding
        self._descriptor = os.dup(descriptor)
        self._lost_line = lost
        self._begin()
        _writers.add(self)

    def write(self, text: str) -> None:
        """Takes whole lines; they are lost where too many wait."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            fits = self._queued_bytes + len(data) + _OVERHEAD_BYTES <= MAX_QUEUED_BYTES
            if fits:
                self._queue.append(data)
                self._queued_bytes += len(data) + _OVERHEAD_BYTES
                self._changed.notify_all()
            else:
                self._unsaid += 1
            if self._thread is None:
                self._start()
        if not fits:
            _count_lost(1)

    def flush(self) -> None:
        """Waits until everything is written, for `CLOSE_SECONDS` at the most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._is_writing, CLOSE_SECONDS)

    def close(self) -> None:
        """Writes what waits, for `CLOSE_SECONDS` at the most; a write that still hangs then is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            os.close(self._descriptor)
        else:
            thread.join(CLOSE_SECONDS)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._unsaid = 0
        self._is_writing = False
        self._is_torn = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="log", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no thread can be had now; the next line tries again
        self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                data = self._queue.popleft()
                self._queued_bytes -= len(data) + _OVERHEAD_BYTES
                self._is_writing = True
            self._write(data)
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        with self._changed:
            lost = self._unsaid
        if lost and self._write_all(self._lost_line(lost).encode(self.encoding, "backslashreplace")):
            with self._changed:
                self._unsaid -= lost
        if not self._write_all(data):
            with self._changed:
                self._unsaid += 1
            _count_lost(1)

    def _write_all(self, line: bytes) -> bool:
        """Writes all of it, however long that takes; False when it cannot be written."""
        data = b"\n" + line if self._is_torn else line
        while data:
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:
                # Who shares it has made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                # Its reader has gone, its disk is full, its terminal has hung up: there is no place where to say it.
                return False
            else:
                data = data[written:]
                self._is_torn = bool(data)
        return True


_writers: weakref.WeakSet[LogWriter] = weakref.WeakSet()
_lock = threading.Lock()
_lost_lines = 0


def _count_lost(count: int) -> None:
    global _lost_lines  # noqa: PLW0603 - one per process, as the log is
    with _lock:
        _lost_lines += count


class LogCollector(Collector):
    """The metric of lines that were lost."""

    def describe(self) -> Iterator[Metric]:
        """The family; the registry asks for its name."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """The family with its one sample."""
        name, text = "streamdet_log_lines_dropped", "Lines of the log that could not be written, or not in time."
        yield CounterMetricFamily(name, text, value=_lost_lines)


def _after_fork() -> None:
    """In the child there is no thread that writes, and what waits is written by the parent."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for writer in list(_writers):
        writer._begin()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
