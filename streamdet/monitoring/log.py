"""The log: lines for people, JSON lines for programs, and never a secret; no thread ever waits for who reads it.

A line that repeats is left out, for a second at first and for a minute at last; how many there were is told.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Protocol, TextIO

from streamdet.monitoring.log_writer import LogWriter
from streamdet.security.plain_text import plain_lines
from streamdet.security.redact import redact

_REPEAT_SECONDS = 1.0
_MOST_SECONDS = 60.0
# Where there are more different lines at a time than this, the one that is due next is forgotten.
_MAX_REPEATS = 1000
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
# sd-daemon(3): what begins a line on the way to the journal, which takes it off and keeps it as the line's priority.
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

_Key = tuple[object, ...]
Times = Literal["of day", "full", "none"]

_log = logging.getLogger(__name__)


class LogSettings(Protocol):
    """What is asked of a log; `LogConfig` is one."""

    @property
    def level(self) -> str:
        """debug, info, warning or error."""

    @property
    def format(self) -> str:
        """One of text and json, or auto, which is text."""


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sends the log of the whole process to a stream; may be called again, and then replaces what was set.

    Python's warnings and errors that no one caught, also of threads, go into the log too.

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
    except Exception as error:  # noqa: BLE001 - str() of any object may raise anything; the line is told all the same
        return redact(f"{record.msg} (its values cannot be shown: {type(error).__name__})")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return redact("\n".join(parts))


@dataclass(slots=True)
class _Repeat:
    """A line that was written, and what came after it.

    Attributes:
        record: the newest repetition.
        quiet_seconds: how long repetitions are left out.
        quiet_until: until when, monotonic seconds.
        left_out: how many were, since that was said last.
    """

    record: logging.LogRecord
    quiet_until: float
    quiet_seconds: float = _REPEAT_SECONDS
    left_out: int = 0

    def be_quiet(self, now: float) -> float:
        """Begins a time of quiet twice as long as the one before; its end."""
        self.quiet_seconds = min(2 * self.quiet_seconds, _MOST_SECONDS)
        self.quiet_until = now + self.quiet_seconds
        return self.quiet_until


class _Repeats:
    """Which lines have been written lately, and how often they were left out since.

    Repetitions are left out for a second, and where they go on for two, four, up to `_MOST_SECONDS`, with a line in
    between. A line that has not come for `_MOST_SECONDS` after that is new again.
    """

    def __init__(self) -> None:
        self._lines: dict[_Key, _Repeat] = {}
        # When each is looked at again; more than once, where a time of quiet began again.
        self._due: list[tuple[float, int, _Key]] = []
        self._count = itertools.count()

    def admits(self, record: logging.LogRecord, now: float) -> bool:
        """Whether a record is written; counts it when it is not."""
        message = str(record.msg)
        # Without words of its own, a template does not tell one line from another.
        template = _message(record) if message == "%s" else message
        key = (getattr(record, "stream", None), record.name, record.levelno, template)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Repeat(record, now + _REPEAT_SECONDS)
            self._look_at(key, line.quiet_until)
        elif now < line.quiet_until:
            line.record = record
            line.left_out += 1
            return False
        else:
            self._look_at(key, line.be_quiet(now))
        return True

    def over(self, now: float) -> Iterator[logging.LogRecord]:
        """Looks at what is due by now; yields a record for each line that had repetitions."""
        while self._due and (self._due[0][0] <= now or len(self._lines) > _MAX_REPEATS):
            at, _, key = heapq.heappop(self._due)
            line = self._lines.get(key)
            if line is None or at < line.quiet_until:
                continue
            left_out, line.left_out = line.left_out, 0
            if at > now or at >= line.quiet_until + _MOST_SECONDS or now == float("inf"):
                del self._lines[key]
            elif left_out:
                self._look_at(key, line.be_quiet(now))
            else:
                self._look_at(key, line.quiet_until + _MOST_SECONDS)
            if left_out:
                yield _summary(line.record, left_out)

    def _look_at(self, key: _Key, at: float) -> None:
        heapq.heappush(self._due, (at, next(self._count), key))


def _summary(record: logging.LogRecord, count: int) -> logging.LogRecord:
    values = {**record.__dict__, "created": time.time(), "exc_info": None, "stack_info": None, "args": ()}
    values["msg"] = f"{count} more like this left out: {_message(record)}"
    return logging.makeLogRecord(values)


class LogHandler(logging.Handler):
    """Writes records to a stream, and of repetitions by stream, logger and message template only their number.

    Args:
        stream: where to; a file of the system's is written by a thread of its own, so that no one waits for it.
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
        self._clock = clock
        self._priorities = priorities
        self._repeats = _Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, unless it repeats another, and what there is to say about earlier ones."""
        now = self._clock()
        for summary in self._repeats.over(now):
            self._write(summary)
        if self._repeats.admits(record, now):
            self._write(record)

    def close(self) -> None:
        """Tells what was left out until now; the stream stays open."""
        with self.lock or threading.RLock():
            for summary in self._repeats.over(float("inf")):
                self._write(summary)
        if self._writer is not None:
            self._writer.close()
        super().close()

    def flush(self) -> None:
        """Waits for lines to be written, but not for ever."""
        if self._writer is not None:
            self._writer.flush()

    def _line(self, record: logging.LogRecord) -> str:
        line = self.format(record)
        if self._priorities:
            priority = f"<{_PRIORITIES.get(record.levelname, 6)}>"
            line = priority + line.replace("\n", f"\n{priority}")
        return f"{line}\n"

    def _lost_line(self, count: int) -> str:
        text = f"{count} lines of the log were lost: they could not be written in time"
        return self._line(logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": text}))

    def _write(self, record: logging.LogRecord) -> None:
        line = self._line(record)
        if self._writer is not None:
            self._writer.write(line)
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):
            # No one reads the log any more (a closed pipe, a full disk): the work goes on, and there is no
            # place left where this could be told.
            return


def _writer_for(stream: TextIO, lost: Callable[[int], str]) -> LogWriter | None:
    """What writes to a stream without anyone waiting; None where it is no file of the system's, such as in tests."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return None
    return LogWriter(descriptor, stream.encoding or "utf-8", lost)


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream goes to systemd's journal, the way systemd.exec(5) finds out (JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        # Not a file of the system's, or closed.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _install_hooks() -> None:
    """Logs what no one caught, unless someone else already asked for it."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _log_unraisable


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    _log.critical("unexpected error: %s", kind.__name__, exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread else "one that has ended"
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    _log.critical("unexpected error in thread %s: %s", name, args.exc_type.__name__, exc_info=info)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is None:
        return
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    _log.error("error that could not be raised: %s", args.exc_type.__name__, exc_info=info)


QUIET_SECONDS = 60.0


class FailureLog:
    """What the log is told of one thing that may fail again and again; for one thread.

    Args:
        logger: that gets the lines.
        counted: says how much was lost, as in "{} events were not kept".
        clock: monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, counted: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._counted = counted
        self._clock = clock
        self._quiet_until = float("-inf")
        self._lost = 0
        self._has_told = False

    def failed(self, problem: str, lost: int = 1) -> None:
        """It has failed, and so much was lost with it."""
        self._lost += lost
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + QUIET_SECONDS
            self._tell(logging.WARNING, problem)
            self._has_told = True

    def works(self, text: str) -> None:
        """It has not failed; said when it was said that it does, and when failures of the minute before were not."""
        if self._has_told or (self._lost and self._clock() >= self._quiet_until):
            self._tell(logging.INFO, text)
            self._has_told = False

    def end(self, text: str) -> None:
        """Says what has been lost and not been told."""
        if self._lost:
            self._tell(logging.WARNING, text)

    def _tell(self, level: int, text: str) -> None:
        count = f" ({self._counted.format(self._lost)} since the last such line)" if self._lost else ""
        self._logger.log(level, "%s%s", text, count)
        self._lost = 0
