"""The log: lines for people, JSON lines for programs, and never a secret; no thread ever waits for its reader.

Every line of streamdet's own is written. One that a single frame, message or request can cause goes through a
`LogThrottle`, one about what may fail for long through a `FailureLog`; the handler throttles the lines of libraries.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Protocol, TextIO

from streamdet.security.plain_text import plain_lines
from streamdet.security.redact import redact

QUIET_SECONDS = 60.0
"""A line that repeats is written once in this time."""

_MAX_THROTTLED = 1000
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
# sd-daemon(3): a line for the journal begins with its priority, which the journal takes off and keeps.
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
# What a line takes beside its text.
_OVERHEAD_BYTES = 128

Times = Literal["of day", "full", "none"]

_log = logging.getLogger(__name__)


class LogSettings(Protocol):
    """What configures a log; `LogConfig` is one."""

    @property
    def level(self) -> str:
        """debug, info, warning or error."""

    @property
    def format(self) -> str:
        """One of text and json, or auto, which is text."""


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sends the log of the whole process to a stream; may be called again, and then replaces what was set.

    Python's warnings and uncaught errors, also those of threads, go into the log too.

    Args:
        settings: what to write, and how.
        stream: where to; standard error when not given.
    """
    stream = sys.stderr if stream is None else stream
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
        handler.close()
    if stream is not None:  # Python's own is None when the descriptor was closed before the start
        root.addHandler(LogHandler(stream, _formatter(settings, stream), priorities=_is_journal(stream)))
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)
    _install_hooks()


def _formatter(settings: LogSettings, stream: TextIO) -> logging.Formatter:
    if settings.format == "json":
        return JsonFormatter()
    is_terminal = stream.isatty()
    colours = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    times: Times = "of day" if is_terminal else "none" if _is_journal(stream) else "full"
    return TextFormatter(colours=colours, times=times)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and stream, seq, exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if (stream := getattr(record, "stream", None)) is not None:
            line["stream"] = redact(str(stream))
        if isinstance(seq := getattr(record, "seq", None), int):
            line["seq"] = seq
        if exception := _exception(self, record):
            line["exception"] = exception
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for people: time, level, stream or logger, message; an exception on the lines below.

    Args:
        colours: whether the level is coloured.
        times: "of day", "full" with date and offset from UTC, or "none" for the journal, which has its own.
    """

    def __init__(self, *, colours: bool, times: Times = "of day") -> None:
        super().__init__()
        self._colours = colours
        self._times = times

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its end."""
        level = f"{record.levelname.lower():8}"
        if self._colours:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        stream = getattr(record, "stream", None)
        who = record.name.removeprefix("streamdet.") if stream is None else redact(str(stream))
        seq = getattr(record, "seq", None)
        frame = f" #{seq}" if isinstance(seq, int) else ""
        below = _exception(self, record)
        text = f"{who}{frame}: {_message(record)}" + (f"\n{below}" if below else "")
        return f"{self._time(record)}{level} {plain_lines(text)}".replace("\n", "\n    ")

    def _time(self, record: logging.LogRecord) -> str:
        if self._times == "none":
            return ""
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        return f"{at:%H:%M:%S.%f}"[:-3] + " " if self._times == "of day" else f"{at.isoformat(' ', 'milliseconds')} "


def _message(record: logging.LogRecord) -> str:
    try:
        return redact(record.getMessage())
    except Exception as error:  # noqa: BLE001 - str() of any object may raise anything; the line is still written
        return redact(f"{record.msg} (its values cannot be shown: {type(error).__name__})")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return redact("\n".join(parts))


class LogHandler(logging.Handler):
    """Writes records to a stream; a line that a library repeats once in `QUIET_SECONDS`.

    Args:
        stream: where to; a file of the system is written by a thread of its own, so that no other thread waits for it.
        formatter: how.
        clock: monotonic seconds.
        priorities: whether each line begins with its priority, for systemd's journal.
    """

    def __init__(
        self,
        stream: TextIO,
        formatter: logging.Formatter,
        clock: Callable[[], float] = time.monotonic,
        *,
        priorities: bool = False,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._writer = _writer_for(stream, self._lost_line)
        self._stream = stream
        self._priorities = priorities
        self._libraries = LogThrottle(clock=clock)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        if record.name.partition(".")[0] != "streamdet":
            # Without words of its own, a template does not distinguish one line from another.
            text = _message(record) if record.msg == "%s" else str(record.msg)
            left_out = self._libraries.admit((record.name, record.levelno, text))
            if left_out is None:
                return
            if left_out:
                record = logging.makeLogRecord(
                    {**record.__dict__, "msg": _message(record) + more_like_this(left_out), "args": ()}
                )
        self._write(self._line(record))

    def flush(self) -> None:
        """Waits until lines are written, for a bounded time."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Writes what waits; the stream stays open."""
        if self._writer is not None:
            self._writer.close()
        super().close()

    def _line(self, record: logging.LogRecord) -> str:
        line = self.format(record)
        if self._priorities:
            priority = f"<{_PRIORITIES.get(record.levelname, 6)}>"
            line = priority + line.replace("\n", f"\n{priority}")
        return f"{line}\n"

    def _lost_line(self, count: int) -> str:
        text = f"{count} lines of the log were lost: they could not be written in time"
        return self._line(logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": text}))

    def _write(self, line: str) -> None:
        if self._writer is not None:
            self._writer.write(line)
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):
            # The log has no reader any more (a closed pipe, a full disk): this cannot be logged anywhere.
            return


def _writer_for(stream: TextIO, lost: Callable[[int], str]) -> LogWriter | None:
    """What writes to a stream; None where it is not a file of the system, such as in tests."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return None
    return LogWriter(descriptor, stream.encoding or "utf-8", lost)


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream goes to systemd's journal, as systemd.exec(5) describes it (JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        # Not a file of the system, or closed.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LogThrottle:
    """Admits a line once in a while for each key, and counts those that were left out. Thread-safe.

    Args:
        quiet_seconds: how long a line is left out after it was written.
        clock: monotonic seconds.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # In the order of their last use: until when each is quiet, and how often it was left out.
        self._keys: dict[Hashable, tuple[float, int]] = {}

    def log(self, logger: logging.Logger, level: int, text: str, *arguments: object, stream: str | None = None) -> None:
        """Logs a line, unless one with this text was logged just now for the same stream.

        Args:
            logger: gets the line.
            level: of the line.
            text: with a place for each of the arguments.
            arguments: differ from line to line.
            stream: that the line is about; None for none.
        """
        left_out = self.admit((text, stream))
        if left_out is not None:
            extra = {} if stream is None else {"stream": stream}
            template = text + more_like_this(left_out)
            logger.log(level, template, *arguments, extra=extra)

    def admit(self, key: Hashable = None) -> int | None:
        """Whether a line is due.

        Returns:
            How many were left out since the last one; None if this one is to be left out.
        """
        now = self._clock()
        with self._lock:
            quiet_until, left_out = self._keys.pop(key, (float("-inf"), 0))
            is_due = now >= quiet_until
            self._keys[key] = (now + self._quiet_seconds, 0) if is_due else (quiet_until, left_out + 1)
            if len(self._keys) > _MAX_THROTTLED:
                del self._keys[next(iter(self._keys))]
            return left_out if is_due else None

    def is_quiet(self, key: Hashable = None) -> bool:
        """Whether a line would be left out now."""
        with self._lock:
            return self._clock() < self._keys.get(key, (float("-inf"), 0))[0]


def more_like_this(left_out: int) -> str:
    """The end of a line that says how many were left out; empty for none."""
    return f" ({left_out} more like this since the last such line)" if left_out else ""


class FailureLog:
    """Logs that one thing fails, which may go on for long, and that it works again; for one thread.

    Args:
        logger: gets the lines.
        counted: says how much was lost, as in "{} events were not kept".
        clock: monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, counted: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._counted = counted
        self._throttle = LogThrottle(clock=clock)
        self._lost = 0
        self._is_failing = False

    def failed(self, problem: str, lost: int = 1) -> None:
        """It has failed, and this much was lost with it."""
        self._lost += lost
        if self._throttle.admit() is not None:
            self._write(logging.WARNING, problem)
            self._is_failing = True

    def works(self, text: str) -> None:
        """It has not failed; logged after a failure that was logged, or once those left out are a minute old."""
        if self._is_failing or (self._lost and not self._throttle.is_quiet()):
            self._write(logging.INFO, text)
            self._is_failing = False

    def end(self, text: str) -> None:
        """Logs what was lost since the last line."""
        if self._lost:
            self._write(logging.WARNING, text)

    def _write(self, level: int, text: str) -> None:
        count = f" ({self._counted.format(self._lost)} since the last such line)" if self._lost else ""
        self._logger.log(level, "%s%s", text, count)
        self._lost = 0


class LogWriter:
    """Writes lines to a file descriptor in a thread of its own; any thread may use it, and none waits.

    A pipe whose reader stands still, a journal that has stopped, a disk that does not answer: a write may take for
    ever. Lines wait in a bounded queue; what does not fit, or cannot be written, is lost and counted.

    Args:
        descriptor: where to write; duplicated, so that its owner may close it. Its flags are left alone, because
            other processes may share it: it may be blocking or not.
        encoding: of the text.
        lost: makes the line that says how many lines were lost; written when lines can be written again.
        max_queued_bytes: that may wait.
        close_seconds: how long `flush` and `close` wait for lines to be written.
    """

    def __init__(
        self,
        descriptor: int,
        encoding: str,
        lost: Callable[[int], str],
        *,
        max_queued_bytes: int = 4 * 1024 * 1024,
        close_seconds: float = 0.5,
    ) -> None:
        self.encoding = encoding
        self._max_queued_bytes = max_queued_bytes
        self._close_seconds = close_seconds
        self._descriptor = os.dup(descriptor)
        self._lost_line = lost
        self._begin()
        _writers.add(self)

    def write(self, text: str) -> None:
        """Takes whole lines; they are lost where too many wait."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            fits = self._queued_bytes + len(data) + _OVERHEAD_BYTES <= self._max_queued_bytes
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
        """Waits until everything is written, for at most `close_seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._is_writing, self._close_seconds)

    def close(self) -> None:
        """Writes the lines that wait, for at most `close_seconds`; a write that hangs longer is abandoned."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            os.close(self._descriptor)
        else:
            thread.join(self._close_seconds)

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
            return  # no thread is left; the next line tries again
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
                # Another process that shares it has made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                # Its reader has gone, its disk is full, its terminal has hung up: this cannot be logged anywhere.
                return False
            else:
                data = data[written:]
                self._is_torn = bool(data)
        return True


_writers: weakref.WeakSet[LogWriter] = weakref.WeakSet()
_lock = threading.Lock()
_lost_lines = 0


def lost_lines() -> int:
    """Lines of this process's log that could not be written, or not in time."""
    return _lost_lines


def _count_lost(count: int) -> None:
    global _lost_lines  # noqa: PLW0603 - one per process, as the log is
    with _lock:
        _lost_lines += count


def _after_fork() -> None:
    """In a child no thread writes, and what waits is written by the parent."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for writer in list(_writers):
        writer._begin()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)


def _install_hooks() -> None:
    """Logs what nothing has caught, unless another hook is installed."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _log_unraisable


_uncaught = LogThrottle()


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    _log.critical("unexpected error: %s", kind.__name__, exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    if _uncaught.admit(args.exc_type.__name__) is None:
        return
    name = args.thread.name if args.thread else "one that has ended"
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    _log.critical("unexpected error in thread %s: %s", name, args.exc_type.__name__, exc_info=info)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is None or _uncaught.admit(args.exc_type.__name__) is None:
        return
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    _log.error("error that could not be raised: %s", args.exc_type.__name__, exc_info=info)
