"""What travels over the control socket: one request or answer per line, JSON in UTF-8, bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from streamdet.errors import ConfigError, ControlError, Refusal
from streamdet.security.redact import redact

VERSION = 1
MAX_REQUEST_BYTES = 64 * 1024
# A list of more than ten thousand streams fits.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# The deepest that means anything: arguments, values, a list, an element of it, and its own values.
_MAX_DEPTH = 12

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a program asks for.

    Attributes:
        command: such as "streams.add".
        arguments: of the command; not checked yet.
        id: whatever the program gave, to know the answer by; a text, a number or None.
    """

    command: str
    arguments: Json = field(default_factory=dict)
    id: str | int | None = None


def encode_request(request: Request) -> bytes:
    """The line of a request, with its end."""
    message = {"version": VERSION, "command": request.command, "arguments": request.arguments}
    return _line(message if request.id is None else {**message, "id": request.id})


def decode_request(line: bytes) -> Request:
    """Reads a request.

    Args:
        line: with or without its end.

    Raises:
        ControlError: it is not one; the message says what would be.
    """
    message = _decode(line)
    version, command = message.get("version"), message.get("command")
    arguments, number = message.get("arguments", {}), message.get("id")
    if version != VERSION:
        _refuse(f'needs "version": {VERSION}, the only one that this daemon speaks')
    if not isinstance(command, str):
        _refuse('needs a "command", such as "streams.list"')
    if not isinstance(arguments, dict):
        _refuse('has "arguments" that are not an object')
    if isinstance(number, bool) or not isinstance(number, str | int | None):
        _refuse('has an "id" that is neither a text nor a whole number')
    unknown = sorted(message.keys() - {"version", "command", "arguments", "id"})
    if unknown:
        _refuse(f"has {quoted(unknown[0])}, which is not known; known are version, id, command, arguments")
    return Request(command, arguments, number)


def encode_result(request_id: str | int | None, result: Json) -> bytes:
    """The line that answers a request which was carried out."""
    return _line({"version": VERSION, "id": request_id, "ok": True, "result": result})


def encode_error(request_id: str | int | None, error: ControlError | ConfigError) -> bytes:
    """The line that answers a request which was not carried out: why, a line per problem, without secrets."""
    code = "invalid" if isinstance(error, ConfigError) else error.code
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    body = {"code": code, "problems": [redact(problem) for problem in problems]}
    return _line({"version": VERSION, "id": request_id, "ok": False, "error": body})


def decode_answer(line: bytes) -> Json:
    """The result in an answer.

    Raises:
        ConfigError: the daemon found mistakes in a configuration or in a stream.
        ControlError: the daemon refused the request for another reason, or this is no answer.
    """
    message = _decode(line)
    result, error = message.get("result"), message.get("error")
    if message.get("ok") is True and isinstance(result, dict):
        return result
    if not isinstance(error, dict) or not isinstance(error.get("problems"), list) or not error["problems"]:
        problem = "what came back is no answer of a streamdet daemon; is this its socket?"
        raise ControlError(Refusal.BAD_ANSWER, problem)
    problems = [str(problem) for problem in error["problems"]]
    if error.get("code") == "invalid":
        raise ConfigError(problems)
    raise ControlError(str(error.get("code")), "; ".join(problems))


def quoted(text: str) -> str:
    """The beginning of a stranger's text as JSON: line ends, and what a terminal would obey, are escaped."""
    return json.dumps(text[:40])


def _line(message: Json) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> Json:
    try:
        message = json.loads(line.decode(), parse_constant=_no_constant)
        # Half a surrogate pair can be written as JSON, and nowhere else.
        json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        _refuse("is not JSON in UTF-8")
    if not isinstance(message, dict):
        _refuse("is not an object")
    if _is_deeper(message, _MAX_DEPTH):
        _refuse(f"is nested more than {_MAX_DEPTH} deep")
    return message


def _no_constant(name: str) -> NoReturn:
    problem = f"{name} is not JSON"
    raise ValueError(problem)


def _is_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [each for item in inner for each in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def _refuse(problem: str) -> NoReturn:
    message = f"the message {problem}"
    raise ControlError(Refusal.BAD_REQUEST, message) from None
