"""Every error that streamdet raises on purpose.

    StreamdetError          has an exit code and a message that fits on one line
    ├── ConfigError         the configuration is wrong: all problems at once (exit 2)
    ├── SourceError         a stream cannot be opened or read; only `capture` catches it
    ├── HeldError           a stream sends data, but no undamaged picture yet: read again
    │   └── LeftOutError    a picture that is not to be decoded: read again
    ├── DetectorError       weights cannot be loaded or the detector cannot run
    │   └── DeviceLostError the CUDA context is gone: only a new process helps (exit 70)
    ├── StoreError          files cannot be kept in the directory that was given (exit 69)
    ├── SpoolError          events cannot be kept in the directory that was given (exit 69)
    ├── EndpointError       an endpoint cannot be bound or connected (exit 69)
    │   └── NotKeptError    the daemon keeps no events on disk to ask for
    ├── ControlError        a running daemon cannot be reached, or refuses (exit 1 or 69)
    ├── ApplyError          streams cannot be changed now: no thread, no memory (exit 69)
    ├── WireError           a message is not an event that this version can read (exit 65)
    ├── DataError           a data set or picture is broken (exit 65)
    └── InstallError        the service cannot be installed here (exit 1)

Exit codes follow sysexits.h where one of its codes fits; `streamdet --help` and docs/service.md list them.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdet.types import Reason

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_BAD_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_DEVICE_LOST = 70
EXIT_INTERRUPTED = 130


class StreamdetError(Exception):
    """Base of all errors of streamdet; `str()` is one line that a user can act on."""

    exit_code = EXIT_FAILURE


class ConfigError(StreamdetError):
    """The configuration is wrong.

    Attributes:
        problems: one line each, with file, line and key.
    """

    exit_code = EXIT_USAGE

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SourceError(StreamdetError):
    """A source cannot be opened, or broke while it was read.

    Attributes:
        reason: what went wrong, in one word.
        detail: one line, without secrets.
        is_final: whether trying again is pointless: a file has been played to its end.
    """

    def __init__(self, reason: Reason, detail: str, *, is_final: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.is_final = is_final


class HeldError(StreamdetError):
    """A source sends data, but no undamaged picture yet: not a failure, read again.

    Attributes:
        has_picture: whether one was decoded, and is held back because it is damaged.
    """

    def __init__(self, *, has_picture: bool) -> None:
        super().__init__("a damaged picture" if has_picture else "no picture before the next key frame")
        self.has_picture = has_picture


class LeftOutError(HeldError):
    """A source has received a picture that is not decoded, as `decode` wants it: not a failure, read again.

    Attributes:
        is_sound: whether nothing is known to be wrong with the stream.
    """

    def __init__(self, *, is_sound: bool) -> None:
        super().__init__(has_picture=False)
        self.is_sound = is_sound


class DetectorError(StreamdetError):
    """Weights cannot be loaded, or the detector cannot run."""

    exit_code = EXIT_UNAVAILABLE


class DeviceLostError(DetectorError):
    """The CUDA context is unusable; only a new process can go on."""

    exit_code = EXIT_DEVICE_LOST


class StoreError(StreamdetError):
    """Files, such as pictures and clips, cannot be kept in the directory that was given for them."""

    exit_code = EXIT_UNAVAILABLE


class SpoolError(StreamdetError):
    """Events cannot be kept in the directory that was given for them."""

    exit_code = EXIT_UNAVAILABLE


class EndpointError(StreamdetError):
    """An endpoint, of events or of pages, is malformed, in use, or out of bounds."""

    exit_code = EXIT_UNAVAILABLE


class NotKeptError(EndpointError):
    """The daemon keeps no events on disk, so that there are none to ask for."""


class Refusal(StrEnum):
    """Why a running daemon refused a request, or could not be reached; a word for programs."""

    UNAVAILABLE = "unavailable"
    AMBIGUOUS = "ambiguous"
    BAD_ANSWER = "bad_answer"
    NOT_ALLOWED = "not_allowed"
    BAD_REQUEST = "bad_request"
    TOO_MANY = "too_many"
    NOT_FOUND = "not_found"
    EXISTS = "exists"
    CONFLICT = "conflict"
    CHANGED = "changed"
    STALE = "stale"
    FAILED = "failed"


class ControlError(StreamdetError):
    """A running daemon cannot be reached, or refuses a request.

    Attributes:
        code: a `Refusal`, or a word of a newer daemon.
        keys: of settings that someone else has changed.
    """

    def __init__(self, code: str, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.keys = tuple(keys)
        self.exit_code = EXIT_UNAVAILABLE if code == Refusal.UNAVAILABLE else EXIT_FAILURE


class ApplyError(StreamdetError):
    """The streams cannot be changed now; they run as before."""

    exit_code = EXIT_UNAVAILABLE


class WireError(StreamdetError):
    """A message is not an event that this version can read."""

    exit_code = EXIT_BAD_DATA


class DataError(StreamdetError):
    """A data set, annotation file or picture is broken."""

    exit_code = EXIT_BAD_DATA


class InstallError(StreamdetError):
    """The service cannot be installed here."""


def accept_may_work_later(error: OSError) -> bool:
    """Whether a listening socket still works although `accept` failed: out of descriptors or memory, or a reset."""
    return error.errno not in {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EFAULT}
