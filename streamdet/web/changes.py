"""What operators change in the browser: streams and rules, over the daemon's control API, and who may do so."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streamdet.client.control import USER_HEADER, exchange, find_socket
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.config.stream import NAME_PATTERN
from streamdet.config.toml import is_nested_deeper
from streamdet.errors import ControlError, Refusal, StreamdetError
from streamdet.http.server import BadRequestError, read_body
from streamdet.monitoring.log import LogThrottle, more_like_this
from streamdet.security.limits import Rate
from streamdet.security.passwords import User
from streamdet.security.plain_text import plain
from streamdet.web.access import SHARED_NAME, AccessRules, address_of, name_of

CHANGEABLE = frozenset({
    "max_fps", "max_frame_age_seconds", "weight", "labels", "score_threshold", "score_thresholds", "min_size",
    "max_size", "track", "track_start_score", "track_max_lost_seconds", "zones", "lines", "masks", "time_zone", "blur",
    "paused",
})  # fmt: skip
"""Keys of a stream that the page shows and changes: none that says where a stream comes from, or how it is read."""

ADDED = frozenset({"name", "url"})
"""Keys of a stream that is tried or added on the page; its url leads over the network."""

CSRF_HEADER = "x-csrf-token"
CHANGES_PER_SECOND, CHANGES_AT_ONCE = 1.0, 30
CHANGES_PER_SECOND_OF_ALL, CHANGES_AT_ONCE_OF_ALL = 5.0, 100
_MAX_BODY_BYTES = 60 * 1024
# A patch, a list of zones, a zone, its corners, a corner.
_MAX_DEPTH = 10
_MAX_NAME_CHARACTERS = 64
_ANSWER_SECONDS = 15.0
# A camera that hangs is tried for as long as it takes to open it and to be called stalled.
_PROBE_SECONDS = 30.0
# Requests to the daemon at a time, each in a thread; the others wait, and too many are refused.
_AT_ONCE = 4
_MAX_WAITING = 64
_MAX_USERS = 1000
_MAX_LOGGED = 600
OFF = "changes are off; set allow_changes = true in [web], and start the page with --config FILE"
OF_CLUSTER = "streams of a cluster are changed with streamdet cluster apply, and rules in the files of its nodes"
_REFERENCE = "holds ${...}, which only the configuration file may hold"
_LOCAL = "leads to a file or a device of the daemon's machine; add it there, with streamdet streams add"
_OTHER_VERSION = "the daemon is of another version than the page; restart both, so that they are the same"
_STREAM_KEY = re.compile(r"streams\[[^\]]*\]\.(?P<key>[^:\s]+): (?P<text>.*)", re.DOTALL)
_RULE_KEY = re.compile(r"rules\[(?P<rule>[^\]]*)\](?:\.(?P<key>[^:\s]+))?: (?P<text>.*)", re.DOTALL)
_PROBE_PATH = "/v1/probe"
# Tables of the configuration with a directory, without which a rule may not ask for them.
_FILES_OF_ALERTS = ("pictures", "clips")
# Keys of a change that say how it is made.
_HOW = ("version", "persist", "try_only")
# What was renamed, its name before and after.
_RENAMED = ("zone|line", NAME_PATTERN, NAME_PATTERN)
_PART = re.compile(r"\[#(?P<number>[0-9]+)\]|\.?(?P<name>[^.\[\]]+)")

Json = dict[str, Any]

_log = logging.getLogger(__name__)
_throttle = LogThrottle(1.0)


class Daemon:
    """Sends requests to the daemon's control API, a few at a time; belongs to the event loop.

    Args:
        socket_path: of the daemon; None to look for it.
        config_path: the file that the daemon runs; None for the only daemon that is found.
        timeout_seconds: for one answer, unless a request has a time of its own.
    """

    def __init__(
        self, socket_path: Path | None, config_path: Path | None, timeout_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._socket_path = socket_path
        self._config_path = config_path
        self._timeout_seconds = timeout_seconds
        # Threads of their own: where the daemon hangs, logins must not wait for it.
        self._threads = ThreadPoolExecutor(_AT_ONCE, "control")
        self._waiting = 0

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of an answer.

        Raises:
            ControlError: no daemon answers, or too many requests wait for it.
        """
        if self._waiting >= _MAX_WAITING:
            raise ControlError(Refusal.UNAVAILABLE, "too many requests wait for the daemon; try again")
        self._waiting += 1
        try:
            ask = partial(self._ask, method, path, body, headers, timeout_seconds or self._timeout_seconds)
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Waits for no request that is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        timeout_seconds: float,
    ) -> tuple[int, bytes]:
        socket_path = find_socket(self._socket_path, self._config_path)
        return exchange(socket_path, method, path, body, timeout_seconds, headers)


class _RefusedError(StreamdetError):
    """Why a request is not carried out.

    Attributes:
        status: of the answer.
        code: a word for programs.
        key: of a stream, that it is about; None for none.
    """

    def __init__(self, status: int, code: str, why: str, key: str | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.code = code
        self.key = key

    def to_dict(self) -> Json:
        """As browsers get it."""
        return {"code": self.code, "problems": [{"key": self.key, "path": _path_of(self.key or ""), "text": str(self)}]}


@dataclass(frozen=True, slots=True)
class _Change:
    """What a browser asks for: a change, or to try a stream.

    Attributes:
        path: of the control API.
        method: of its request.
        body: of its request; None for none.
        what: for the log.
        version: that the browser has seen; None for any.
        persist: whether it is to last over restarts.
        try_only: whether nothing is to change.
        rules: names of rules, in their order.
        renamed: zones and lines whose new names rules take over, as the control API has it; empty for none.
    """

    path: str
    method: str
    body: Json | None
    what: str
    version: str | None = None
    persist: bool = False
    try_only: bool = False
    rules: tuple[object, ...] = ()
    renamed: str = ""

    @property
    def is_probe(self) -> bool:
        """Whether a stream is only tried."""
        return self.path == _PROBE_PATH


class Changes:
    """Answers requests about settings, and passes changes on; belongs to the event loop.

    Args:
        daemon: carries changes out; None where the page may change nothing.
        rules: know who sends a request.
        behind_proxy: whether the address of a client is what the proxy says.
        why_off: why there is no daemon that carries changes out.
    """

    def __init__(
        self, daemon: Daemon | None, rules: AccessRules, *, behind_proxy: bool, why_off: str = OFF
    ) -> None:  # fmt: skip
        self._daemon = daemon
        self._rules = rules
        self._behind_proxy = behind_proxy
        self._why_off = why_off
        self._rate_of_all = Rate(CHANGES_PER_SECOND_OF_ALL, burst=CHANGES_AT_ONCE_OF_ALL)
        self._rates: OrderedDict[str, Rate] = OrderedDict()

    def routes(self) -> list[Route]:
        """Everything under /api that is about settings."""
        return [
            Route("/api/account", self.get_account),
            Route("/api/streams/{name}/settings", self._answered(self._get_settings)),
            Route("/api/streams/{name}/picture", self._answered(self._get_picture)),
            Route("/api/rules", self._answered(self._get_rules)),
            Route("/api/changes", partial(self._change, read=_read_change), methods=["POST"]),
            Route("/api/probe", partial(self._change, read=_read_probe), methods=["POST"]),
        ]

    async def get_account(self, request: Request) -> Response:
        """Who has logged in, what they may do, and the token that each of their changes needs."""
        user, sessions = self._rules.user(request.headers), self._rules.sessions
        why = self._why_not(user)
        account = {
            "user": None if user is None else name_of(user),
            "role": "viewer" if user is None else user.role,
            "may_change": why is None,
            "may_read": self._daemon is not None,
            "why_not": None if why is None else str(why),
            "csrf_token": None if why or sessions is None else sessions.csrf_token(self._rules.token(request.headers)),
            "changeable": sorted(CHANGEABLE) if why is None else [],
        }
        return JSONResponse(account)

    def _answered(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except _RefusedError as refused:
                return JSONResponse(refused.to_dict(), refused.status)
            except ControlError as error:
                return _problem(HTTPStatus.SERVICE_UNAVAILABLE, error.code, [str(error)])

        return answer

    def _why_not(self, user: User | None) -> _RefusedError | None:
        """Why this user may change nothing; None for one who may."""
        if self._daemon is None:
            return _RefusedError(HTTPStatus.FORBIDDEN, "off", self._why_off)
        if user is None or user.role != "operator":
            name = "you are" if user is None else f"{name_of(user)} is"
            why = f"{name} a viewer; only operators may change anything"
            return _RefusedError(HTTPStatus.FORBIDDEN, "not_allowed", why)
        return None

    async def _get_settings(self, request: Request) -> Response:
        name = _name(request.path_params["name"])
        answer = _decoded(*await self._ask("GET", f"/v1/streams/{name}/settings"))
        return JSONResponse(_shown(answer))

    async def _get_picture(self, request: Request) -> Response:
        name, given = _name(request.path_params["name"]), request.query_params
        width = given.get("width", "")
        if any(key != "width" for key in given) or not re.fullmatch("[0-9]{0,5}", width, re.ASCII):
            _refuse("the query has nothing but width, in pixels")
        query = f"?{urlencode({'width': width})}" if width else ""
        status, body = await self._ask("GET", f"/v1/streams/{name}/picture{query}")
        if status != HTTPStatus.OK:
            _decoded(status, body)
        return Response(body, media_type="image/jpeg")

    async def _get_rules(self, request: Request) -> Response:
        """The rules in force; with `?keeps=1` also what the daemon keeps for alerts, and which streams lack clips."""
        answer = _decoded(*await self._ask("GET", "/v1/rules"))
        if "keeps" in request.query_params:
            config = _decoded(*await self._ask("GET", "/v1/config"))
            answer["keeps"] = {name: bool((config.get(name) or {}).get("directory")) for name in _FILES_OF_ALERTS}
            streams = _decoded(*await self._ask("GET", "/v1/streams"))["streams"]
            answer["clip_missing"] = {of["name"]: of["clip_missing"] for of in streams if of.get("clip_missing")}
        return JSONResponse(answer)

    async def _change(self, request: Request, read: Callable[[Json], _Change]) -> Response:
        """Carries out or tries what `read` finds in the body; each is logged, done or refused, but tried changes."""
        user, address = self._rules.user(request.headers), address_of(request, behind_proxy=self._behind_proxy)
        role = "viewer" if user is None else user.role
        who = f"{SHARED_NAME if user is None else name_of(user)} ({role}) from {address}"
        change: _Change | None = None
        try:
            self._check_may_change(request, user)
            change = read(await _body_of(request))
            status, answer = await self._carried_out(change, f"{who.partition(' ')[0]}; {role}; {address}")
        except _RefusedError as refused:
            status, answer = refused.status, refused.to_dict()
        except ControlError as error:
            status, answer = HTTPStatus.SERVICE_UNAVAILABLE, _problem_of(error.code, [str(error)])
        outcome = answer.get("reason") or "done"
        if status >= HTTPStatus.BAD_REQUEST:
            outcome = f"refused: {answer['problems'][0]['text']}"
        what = "a change" if change is None else change.what
        if change is None or not change.try_only:
            line = plain(f"{who} asked for {answer.pop('summary', None) or what}: {outcome}", _MAX_LOGGED)
            # What was not even read may come without end: of one user, one line a second.
            left_out = 0 if change is not None else _throttle.admit((who, answer["code"]))
            if left_out is not None:
                _log.log(logging.WARNING if change is None else logging.INFO, "%s%s", line, more_like_this(left_out))
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        return JSONResponse(answer, status, headers)

    def _check_may_change(self, request: Request, user: User | None) -> None:
        """Refuses those who may change nothing, other sites, and more changes than a person makes."""
        refused = self._why_not(user)
        if refused is not None:
            raise refused
        sessions = self._rules.sessions
        expected = "" if sessions is None else sessions.csrf_token(self._rules.token(request.headers))
        given = request.headers.get(CSRF_HEADER, "")
        if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
            why = "this request does not come from the page that you logged in to; reload the page"
            raise _RefusedError(HTTPStatus.FORBIDDEN, "csrf", why)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "bad_request", "application/json is expected")
        name = "" if user is None else user.name
        rate = self._rates.setdefault(name, Rate(CHANGES_PER_SECOND, burst=CHANGES_AT_ONCE))
        self._rates.move_to_end(name)
        if len(self._rates) > _MAX_USERS:
            self._rates.popitem(last=False)
        if not (rate.passes() and self._rate_of_all.passes()):
            raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too_many", "too many changes; try again in a second")

    async def _carried_out(self, change: _Change, user: str) -> tuple[int, Json]:
        how: Json = {} if change.is_probe else {"persist": change.persist, "try_only": change.try_only}
        if change.renamed:
            how["renamed"] = change.renamed
        path = "?".join(filter(None, (change.path, urlencode({key: str(value).lower() for key, value in how.items()}))))
        headers = {USER_HEADER: user} | ({} if change.version is None else {"If-Match": f'"{change.version}"'})
        status, body = await self._ask(
            change.method, path, change.body, headers, _PROBE_SECONDS if change.is_probe else None
        )
        answer = _object(body)
        if status < HTTPStatus.BAD_REQUEST:
            return HTTPStatus.OK, _probed(answer) if change.is_probe else _shown(answer)
        if status == HTTPStatus.PRECONDITION_FAILED:
            return HTTPStatus.CONFLICT, await self._changed_meanwhile(change, answer)
        problems = answer.get("problems")
        if not isinstance(problems, list) or not problems or _is_no_path(status, answer):
            return HTTPStatus.BAD_GATEWAY, _problem_of("bad_answer", [_OTHER_VERSION])
        return status, _problem_of(str(answer.get("code")), [str(each) for each in problems], change.rules)

    async def _changed_meanwhile(self, change: _Change, answer: Json) -> Json:
        """What someone else has changed, and how it is now."""
        path = "/v1/rules" if change.path.startswith("/v1/rules") else f"{change.path}/settings"
        now = _shown(_decoded(*await self._ask("GET", path)))
        keys = [key for key in answer.get("keys", ()) if key in CHANGEABLE]
        return {**_problem_of("changed", [str(answer.get("detail"))]), "changed": keys, "now": now}

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> tuple[int, bytes]:
        if self._daemon is None:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "off", self._why_off)
        return await self._daemon.ask(method, path, body, headers, timeout_seconds)


async def _body_of(request: Request) -> Json:
    try:
        value = orjson.loads(await read_body(request, _MAX_BODY_BYTES))
    except BadRequestError as error:
        raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "bad_request", str(error)) from None
    except orjson.JSONDecodeError:
        _refuse("the body is not JSON")
    if not isinstance(value, dict) or is_nested_deeper(value, _MAX_DEPTH):
        _refuse(f"the body is not an object, or is nested more than {_MAX_DEPTH} deep")
    return value


def _read_change(given: Json) -> _Change:
    """Reads what a browser asks for: `stream` and `patch`, `add`, `remove` or `rules`; then how."""
    unknown = given.keys() - {"stream", "patch", "renamed", "add", "remove", "rules", "reset_rules", *_HOW}
    if unknown:
        _refuse(f"the key {plain(min(unknown), 40)!r} is not known")
    version, persist, try_only = _read_how(given)
    path = _with_reference(given.get("patch", given.get("rules")))
    if path is not None:
        _refuse(f"{path} {_REFERENCE}")
    if "add" in given:
        if given.keys() - {"add", "persist", "try_only"}:
            _refuse("what is added has no version, and nothing else is changed with it")
        stream = _read_stream(given["add"])
        # The daemon says what is wrong with a name.
        what = f"streams.add {plain(stream.setdefault('name', ''), _MAX_NAME_CHARACTERS)}"
        return _Change("/v1/streams", "POST", stream, what, persist=persist, try_only=try_only)
    if "remove" in given:
        if given.keys() - {"remove", *_HOW}:
            _refuse("nothing else is changed with what is removed")
        name = _name(given["remove"])
        return _Change(f"/v1/streams/{name}", "DELETE", None, f"streams.remove {name}", version, persist, try_only)
    if "rules" in given or "reset_rules" in given:
        return _read_rules(given, version, persist=persist, try_only=try_only)
    name, patch = _name(given.get("stream")), given.get("patch")
    if not isinstance(patch, dict) or not patch:
        _refuse("patch is an object with the keys that change")
    fixed = patch.keys() - CHANGEABLE
    if fixed:
        key = plain(min(fixed), 40)
        why = f"{key}: cannot be changed on the page; change it in the configuration, or with streamdet streams"
        raise _RefusedError(HTTPStatus.FORBIDDEN, "not_allowed", why)
    what = f"streams.change {name} {', '.join(sorted(patch))}"
    renamed = _read_renamed(given.get("renamed", []))
    return _Change(f"/v1/streams/{name}", "PATCH", patch, what, version, persist, try_only, renamed=renamed)


def _read_renamed(given: object) -> str:
    """Reads `[["zone", BEFORE, AFTER], ...]`."""
    if not isinstance(given, list) or not all(
        isinstance(each, list) and len(each) == len(_RENAMED) and
        all(isinstance(part, str) and re.fullmatch(pattern, part) for part, pattern in zip(each, _RENAMED, strict=True))
        for each in given
    ):  # fmt: skip
        _refuse('renamed is a list of ["zone" or "line", the name before, the name after]')
    return ",".join(":".join(each) for each in given)


def _read_how(given: Json) -> tuple[str | None, bool, bool]:
    """Reads which version was seen, whether a change is to last over restarts, and whether it is only tried."""
    version, persist, try_only = given.get("version"), given.get("persist", False), given.get("try_only", False)
    if not isinstance(persist, bool) or not isinstance(try_only, bool):
        _refuse("persist and try_only are true or false")
    if version is not None and (not isinstance(version, str) or not re.fullmatch("[0-9a-f]{1,1000}", version)):
        _refuse("version is that of an answer")
    return version, persist, try_only


def _read_probe(given: Json) -> _Change:
    """Reads which stream a browser wants to be tried."""
    stream = _read_stream(given)
    return _Change(_PROBE_PATH, "POST", stream, f"probe of {urlsplit(stream['url']).hostname}")


def _read_stream(given: object) -> dict[str, str]:
    """Reads a stream that is to be tried or added: nothing but a url that leads over the network, and a name."""
    if not isinstance(given, dict) or given.keys() - ADDED or not all(isinstance(each, str) for each in given.values()):
        _refuse(f"a stream has nothing but {' and '.join(sorted(ADDED))}, both texts")
    url = given.get("url", "")
    if _with_reference(given) is not None:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "bad_request", _REFERENCE, "url")
    try:
        kind = kind_of_url(url)
    except ValueError as error:
        raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", str(error), "url") from None
    if kind in (UrlKind.FILE, UrlKind.DEVICE):
        raise _RefusedError(HTTPStatus.FORBIDDEN, "not_allowed", _LOCAL, "url")
    return given


def _read_rules(given: Json, version: str | None, *, persist: bool, try_only: bool) -> _Change:
    if given.keys() & {"stream", "patch", "renamed"} or ("rules" in given) == ("reset_rules" in given):
        _refuse("a change is either stream and patch, or rules, or reset_rules")
    if "reset_rules" in given:
        if given["reset_rules"] is not True:
            _refuse("reset_rules is true")
        return _Change("/v1/rules/reset", "POST", {}, "rules.reset", version, persist, try_only)
    rules = given["rules"]
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        _refuse("rules is a list of objects")
    names = tuple(rule.get("name") for rule in rules)
    return _Change("/v1/rules", "PUT", {"rules": rules}, "rules.set", version, persist, try_only, names)


def _name(value: object) -> str:
    """The name of a stream, as part of a path."""
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        shown = plain(value, _MAX_NAME_CHARACTERS) if isinstance(value, str) else type(value).__name__
        raise _RefusedError(HTTPStatus.NOT_FOUND, "not_found", f"there is no stream {shown!r}")
    return quote(value, safe="")


def _with_reference(value: object, path: str = "") -> str | None:
    """Where a text in a change refers to a variable or secret of the daemon; None for nowhere."""
    if isinstance(value, str):
        return path or "it" if "${" in value else None
    items: Sequence[tuple[object, object]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(f"#{number}", each) for number, each in enumerate(value, 1)]
    found = (_with_reference(each, f"{path}.{key}".lstrip(".")) for key, each in items)
    in_keys = next((f"{path}.{key}" for key, _ in items if "${" in str(key)), None)
    return in_keys or next((where for where in found if where is not None), None)


def _shown(answer: Json) -> Json:
    """An answer of the daemon as browsers get it: without what says where a stream comes from."""
    shown = {key: answer[key] for key in _SHOWN if key in answer}
    if isinstance(answer.get("settings"), dict):
        shown["settings"] = {key: value for key, value in answer["settings"].items() if key in CHANGEABLE}
    if isinstance(shown.get("changed"), list):
        shown["changed"] = [key for key in shown["changed"] if key in CHANGEABLE]
    return shown


def _probed(answer: Json) -> Json:
    """What the daemon has found of a stream, as browsers get it."""
    return {key: answer[key] for key in _PROBED if key in answer}


_PROBED = (
    "reason", "detail", "codec", "width", "height", "fps", "first_frame_seconds", "transport", "hwaccel", "live",
)  # fmt: skip
_SHOWN = ("name", "version", "origin", "changed", "persisted", "rules", "tried", "streams", "summary")


def _decoded(status: int, body: bytes) -> Json:
    """The object in an answer of the daemon that is no refusal."""
    answer = _object(body)
    if status < HTTPStatus.BAD_REQUEST and answer:
        return answer
    if _is_no_path(status, answer) or not isinstance(answer.get("detail"), str):
        raise _RefusedError(HTTPStatus.BAD_GATEWAY, "bad_answer", _OTHER_VERSION)
    raise _RefusedError(status, str(answer.get("code")), answer["detail"])


def _is_no_path(status: int, answer: Json) -> bool:
    """Whether the daemon does not know what the page asks it for."""
    is_unknown = status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
    return is_unknown and "path" in str(answer.get("detail"))


def _object(body: bytes) -> Json:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _problem(status: int, code: str, lines: Sequence[str]) -> Response:
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(_problem_of(code, lines), status, headers)


def _problem_of(code: str, lines: Sequence[str], rules: Sequence[object] = ()) -> Json:
    """Why something was refused, a sentence for each problem and, where it is known, the key that it is about."""
    return {"code": code, "problems": [_located(line, rules) for line in lines]}


def _located(line: str, rules: Sequence[object]) -> Json:
    """A problem with its key: `path` as an editor finds it, with lists counted from 0."""
    of_stream, of_rule = _STREAM_KEY.fullmatch(line), _RULE_KEY.fullmatch(line)
    if of_stream is not None:
        return {"key": of_stream["key"], "path": _path_of(of_stream["key"]), "text": of_stream["text"]}
    if of_rule is not None:
        rule, key = of_rule["rule"], of_rule["key"] or ""
        number = int(rule[1:]) - 1 if re.fullmatch("#[0-9]{1,6}", rule) else None
        if number is None and rule in rules:
            number = rules.index(rule)
        path = ["rules", *([] if number is None else [number]), *_path_of(key)]
        return {"key": f"rules[{rule}]{'.' * bool(key)}{key}", "path": path, "text": of_rule["text"]}
    return {"key": None, "path": [], "text": line}


def _path_of(key: str) -> list[str | int]:
    parts = _PART.finditer(key)
    return [int(part["number"]) - 1 if part["number"] else part["name"] for part in parts]


def _refuse(why: str) -> NoReturn:
    raise _RefusedError(HTTPStatus.BAD_REQUEST, "bad_request", why)
