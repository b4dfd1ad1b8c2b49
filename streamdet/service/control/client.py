"""Asks a running daemon, and finds it first."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamdet.config.toml import parse, read_text
from streamdet.errors import ConfigError, ControlError, Refusal
from streamdet.service.control.paths import AUTO, OFF, possible_sockets
from streamdet.service.control.protocol import MAX_ANSWER_BYTES, Request, decode_answer, encode_request

# Stopping a camera that hangs takes seconds; a request that comes during the warm-up waits for its end.
ANSWER_TIMEOUT_SECONDS = 60.0
_GREETING_TIMEOUT_SECONDS = 5.0
DEFAULT_CONFIG = Path("/etc/streamdet/streamdet.toml")


def ask(
    path: Path,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Sends one request and waits for its result.

    Raises:
        ConfigError: the daemon found mistakes in a configuration or in a stream.
        ControlError: no daemon answers, or it refused the request for another reason.
    """
    deadline = time.monotonic() + timeout_seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout_seconds)
            connection.connect(str(path))
            # Who is refused at once is told so all the same.
            with suppress(BrokenPipeError):
                connection.sendall(encode_request(Request(command, dict(arguments or {}))))
            line = _read_line(connection, deadline)
        except TimeoutError:
            problem = f"the daemon at {path} did not answer within {timeout_seconds:g} s"
            raise ControlError(Refusal.UNAVAILABLE, problem) from None
        except OSError as error:
            raise ControlError(Refusal.UNAVAILABLE, _why(path, error)) from None
    if not line:
        problem = f"the daemon at {path} closed the connection without an answer; it may be ending"
        raise ControlError(Refusal.UNAVAILABLE, problem)
    return decode_answer(line)


def find_socket(socket_path: Path | None, config_path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket of the daemon that is meant.

    Args:
        socket_path: given by the user; then it is the one.
        config_path: the file that the daemon runs; None for whichever daemon there is.
        environ: RUNTIME_DIRECTORY and XDG_RUNTIME_DIR are looked at.

    Raises:
        ControlError: there is none, or there are several.
    """
    if socket_path is not None:
        return socket_path
    named = None if config_path is None else _named_in(config_path)
    if named is not None:
        return named
    default = _named_in(DEFAULT_CONFIG) if config_path is None else None
    possible = [*possible_sockets(environ), *([default] if default else [])]
    listening = [path for path in possible if _listens(path)]
    if config_path is None and len(listening) == 1:
        return listening[0]
    running = {path: _config_of(path) for path in listening}
    if config_path is not None:
        running = {path: config for path, config in running.items() if config == str(config_path.resolve())}
    if len(running) == 1:
        return next(iter(running))
    if not running:
        whose = f"runs {config_path}" if config_path else "can be found"
        problem = f"no daemon {whose} that may be asked by this user; is it running? Name its socket with --socket"
        raise ControlError(Refusal.UNAVAILABLE, problem)
    listed = ", ".join(f"{path} ({config})" for path, config in running.items())
    problem = f"several daemons are running; choose one with --socket or --config: {listed}"
    raise ControlError(Refusal.AMBIGUOUS, problem)


def _named_in(config_path: Path) -> Path | None:
    """What a file, which may be wrong otherwise, says about the socket; None where it leaves that to us."""
    try:
        control = parse(config_path, read_text(config_path)).get("control")
    except ConfigError:
        return None
    path = control.get("path") if isinstance(control, dict) else None
    if not isinstance(path, str) or path == AUTO or "${" in path:
        return None
    if path == OFF and config_path != DEFAULT_CONFIG:
        problem = f'{config_path} says [control] path = "off": such a daemon cannot be asked; SIGHUP makes it reload'
        raise ControlError(Refusal.UNAVAILABLE, problem)
    if path == OFF:
        return None
    return config_path.absolute().parent / path


def _listens(path: Path) -> bool:
    """Whether there is a process behind a socket, and this user may ask it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_GREETING_TIMEOUT_SECONDS)
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def _config_of(path: Path) -> str:
    """The file that the daemon at a socket runs, or why that is not known."""
    try:
        return str(ask(path, "about")["config"])
    except (ControlError, ConfigError, KeyError) as error:
        return f"does not say which file it runs: {error}"


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError
        connection.settimeout(left_seconds)
        received = connection.recv(65536)
        if not received:
            return b""
        line += received
        if len(line) > MAX_ANSWER_BYTES:
            problem = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
            raise ControlError(Refusal.BAD_ANSWER, problem)
    return bytes(line)


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no socket {path}; is the daemon running, and is [control] path the same?"
    if isinstance(error, ConnectionRefusedError):
        return f"no one listens at {path}; is the daemon running?"
    if isinstance(error, PermissionError):
        return f"this user may not use {path}; be the daemon's user or root, or join the group of [control] group"
    return f"the daemon at {path} cannot be asked: {error.strerror or error}"
