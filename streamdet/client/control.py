"""Finds a running daemon and sends requests to its control API."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamdet.config.control_paths import AUTO, OFF, possible_sockets
from streamdet.config.toml import parse, read_text
from streamdet.errors import ConfigError, ControlError, Refusal

# Stopping a camera that hangs takes seconds; a request that comes during the warm-up waits for its end.
ANSWER_TIMEOUT_SECONDS = 60.0
# A list of more than ten thousand streams fits.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
DEFAULT_CONFIG = Path("/etc/streamdet/streamdet.toml")
USER_HEADER = "Streamdet-User"
"""Says for which of its own users a program with users, such as the page, asks; for the daemon's log."""
USER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}; [a-z]{1,20}; [0-9A-Za-z.:%_/-]{1,64}")
"""Name, role and address of such a user."""
_CONNECT_TIMEOUT_SECONDS = 5.0
_CONNECT_AGAIN_SECONDS = 0.05


def ask(
    socket_path: Path,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
    *,
    refused: bool = True,
) -> dict[str, Any]:
    """Sends one request to the control API and waits for its result.

    Args:
        socket_path: of the daemon.
        method: such as "GET".
        path: such as "/v1/streams", with a query if wanted.
        body: sent as JSON; None for no body.
        timeout_seconds: for all of it.
        refused: whether a status of 400 or more is an error; /v1/health answers 503 with its result.

    Raises:
        ConfigError: the daemon found mistakes in a configuration or in a stream.
        ControlError: no daemon answers, or it refused the request for another reason.
    """
    status, answer = exchange(socket_path, method, path, body, timeout_seconds)
    return decode_answer(status if refused else http.HTTPStatus.OK, answer)


def fetch(socket_path: Path, path: str, timeout_seconds: float = ANSWER_TIMEOUT_SECONDS) -> bytes:
    """Fetches a picture or a clip from the control API.

    Args:
        socket_path: of the daemon.
        path: such as "/v1/pictures/ID".
        timeout_seconds: for all of it.

    Raises:
        ControlError: no daemon answers, or it refused the request; code `not_found` where it keeps no such file.
    """
    status, answer = exchange(socket_path, "GET", path, None, timeout_seconds)
    if status >= http.HTTPStatus.BAD_REQUEST:
        decode_answer(status, answer)
    return answer


def exchange(
    socket_path: Path,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    timeout_seconds: float,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body of the answer to a request, whatever they are.

    Args:
        socket_path: of the daemon.
        method: such as "GET".
        path: such as "/v1/streams", with a query if wanted.
        body: sent as JSON; None for no body.
        timeout_seconds: for all of it.
        headers: to be sent besides.

    Raises:
        ControlError: no daemon answers.
    """
    deadline = time.monotonic() + timeout_seconds
    connection = _UnixConnection(socket_path, timeout_seconds)
    sent = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": "application/json"})
    try:
        # A refusal may come before the request was read.
        with suppress(BrokenPipeError):
            connection.request(
                method, path, None if body is None else json.dumps(body).encode(), sent | dict(headers or {})
            )
        response = connection.getresponse()
        answer = _read(connection, response, deadline)
    except TimeoutError:
        problem = f"the daemon at {socket_path} did not answer within {timeout_seconds:g} s"
        raise ControlError(Refusal.UNAVAILABLE, problem) from None
    except (http.client.RemoteDisconnected, ConnectionResetError, http.client.IncompleteRead):
        problem = f"the daemon at {socket_path} closed the connection without an answer; it may be ending"
        raise ControlError(Refusal.UNAVAILABLE, problem) from None
    except OSError as error:
        raise ControlError(Refusal.UNAVAILABLE, _why(socket_path, error)) from None
    except http.client.HTTPException:
        problem = (
            f"the daemon at {socket_path} does not speak HTTP: it is older than this command; restart it, so that both "
            "are of the same version"
        )
        raise ControlError(Refusal.BAD_ANSWER, problem) from None
    finally:
        connection.close()
    return response.status, answer


def decode_answer(status: int, body: bytes) -> dict[str, Any]:
    """The result in an answer.

    Args:
        status: of HTTP.
        body: of the answer.

    Raises:
        ConfigError: the daemon found mistakes in a configuration or in a stream.
        ControlError: the daemon refused the request for another reason, or this is no answer.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and status < http.HTTPStatus.BAD_REQUEST:
        return answer
    problems = answer.get("problems") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(problems, list) or not problems:
        problem = f"what came back ({status}) is no answer of a streamdet daemon; is this its socket?"
        raise ControlError(Refusal.BAD_ANSWER, problem)
    lines = [str(problem) for problem in problems]
    if answer.get("code") == "invalid":
        raise ConfigError(lines)
    raise ControlError(str(answer.get("code")), "; ".join(lines))


def find_socket(socket_path: Path | None, config_path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Finds the control socket of a daemon.

    Args:
        socket_path: given by the user; then it is the one.
        config_path: the file that the daemon runs; None for the only daemon that is found.
        environ: RUNTIME_DIRECTORY and XDG_RUNTIME_DIR are looked at.

    Raises:
        ControlError: no daemon is found, or several are.
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
        whose = f"runs {config_path}" if config_path else "runs"
        how = "that of the service may need sudo, and --socket names one in another place"
        problem = f"no daemon {whose} that this user may ask; streamdet run starts one, {how}"
        raise ControlError(Refusal.UNAVAILABLE, problem)
    listed = ", ".join(f"{path} ({config})" for path, config in running.items())
    problem = f"several daemons are running; choose one with --socket or --config: {listed}"
    raise ControlError(Refusal.AMBIGUOUS, problem)


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path
        self._timeout_seconds = timeout_seconds

    def connect(self) -> None:
        """Connects; waits while the daemon has more connections to accept than the kernel keeps for it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_seconds)
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                self.sock.connect(str(self._path))
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(_CONNECT_AGAIN_SECONDS)
            else:
                return


def _read(connection: _UnixConnection, response: http.client.HTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    while True:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError
        if connection.sock is not None:  # else the answer is the last one, and its end is the connection's
            connection.sock.settimeout(left_seconds)
        part = response.read1(65536)
        if not part and response.length:
            raise http.client.IncompleteRead(bytes(body), response.length)
        if not part:
            return bytes(body)
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            problem = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
            raise ControlError(Refusal.BAD_ANSWER, problem)


def _named_in(config_path: Path) -> Path | None:
    """What a file, which may be wrong otherwise, says about the socket; None where "auto" decides."""
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
    """Whether a process listens at a socket, and this user may connect."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_TIMEOUT_SECONDS)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            return True  # more connect than are accepted
        except OSError:
            return False
    return True


def _config_of(path: Path) -> str:
    """The file that the daemon at a socket runs, or why that is not known."""
    try:
        config = ask(path, "GET", "/v1/about")["config"]
        return "without a file" if config is None else str(config)
    except (ControlError, ConfigError, KeyError) as error:
        return f"does not say which file it runs: {error}"


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no socket {path}; is the daemon running, and is [control] path the same?"
    if isinstance(error, ConnectionRefusedError):
        return f"no process listens at {path}; is the daemon running?"
    if isinstance(error, PermissionError):
        return f"this user may not use {path}; be the daemon's user or root, or join the group of [control] group"
    return f"the daemon at {path} cannot be asked: {error.strerror or error}"
