"""Serves the page: its routes, and the life of the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from streamdet.client.cluster import key_of_node
from streamdet.client.head import HeadWatch, NodeAddress
from streamdet.client.past import AsyncPast
from streamdet.errors import EndpointError
from streamdet.http.access import Door
from streamdet.http.server import BadRequestError, HttpServer, Limits, listen, read_body, tls_context, url_of
from streamdet.security.curve import client_keys
from streamdet.security.endpoints import parse_endpoint
from streamdet.web.access import AccessRules, Login, Sessions, host_names
from streamdet.web.board import Board
from streamdet.web.changes import OF_CLUSTER, OFF, Changes, Daemon
from streamdet.web.cluster_board import ClusterBoard
from streamdet.web.cluster_past import ClusterPast
from streamdet.web.daemon_metrics import Stages, StagesOfNodes
from streamdet.web.html import HTML, Pages
from streamdet.web.marks import Marks
from streamdet.web.pictures import Pictures
from streamdet.web.review import Review
from streamdet.web.settings import Settings, WebError, check_settings
from streamdet.web.subscriber import EventSubscriber, PictureSubscriber
from streamdet.web.trial import Trial
from streamdet.web.updates import MAX_REQUEST_BYTES, Updates
from streamdet.web.updates import Request as UpdateRequest
from streamdet.web.users import Users
from streamdet.worker import Worker

LIMITS = Limits()
_NICENESS = 5
_PAST_SECONDS = 20.0
# A node of a cluster that hangs must not hold up what others have to say for long.
_PAST_OF_NODE_SECONDS = 6.0
# How often a daemon of which no stream is known is asked whether it has one. One that has just started has not reported
# its streams yet, so twice in a row.
_LOOK_SECONDS = 0.5
_LOOKS = 2

_log = logging.getLogger(__name__)


def make_app(settings: Settings, board: Board, pictures: Pictures, ring_with: Callable[[Updates], None]) -> Starlette:
    """The application.

    Args:
        settings: how to serve; already checked.
        board: what is known.
        pictures: the newest pictures.
        ring_with: given the updates once the loop runs, so that news can be sent.

    Raises:
        StreamdetError: the password or a key file cannot be read.
    """
    past = _past_of(settings, board)
    review = Review(past, board, Marks(settings.state_directory))
    stages = StagesOfNodes(board) if isinstance(board, ClusterBoard) else Stages(settings.metrics)
    users = Users(settings.password_file) if settings.password_file else None
    if settings.allow_changes and users is not None and not users.have_operator:
        _log.warning(
            "[web] allow_changes: %s has no operator, so no one may change anything; streamdet web --set-password %s "
            "--user NAME --role operator adds one",
            settings.password_file,
            settings.password_file,
        )
    sessions = Sessions(users.find) if users else None
    pages = Pages.load(with_log_out=users is not None)
    rules = AccessRules(
        content_security_policy=pages.content_security_policy,
        host_names=host_names(settings.host_names, off_loopback=not settings.is_loopback),
        secure=settings.behind_proxy or settings.tls_certificate is not None,
        sessions=sessions,
    )
    daemon = Daemon(settings.socket_path, settings.config_path) if settings.allow_changes else None
    why_off = OFF if settings.cluster is None else OF_CLUSTER
    changes = Changes(daemon, rules, behind_proxy=settings.behind_proxy, why_off=why_off)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with past:
            app.state.updates = Updates(board, pictures, stages, review)
            ring_with(app.state.updates)
            looking = asyncio.create_task(_look_for_streams(past, board))
            try:
                yield
            finally:
                looking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await looking
                if daemon is not None:
                    daemon.close()

    async def page(_request: Request) -> Response:
        return Response(pages.page, media_type=HTML)

    async def updates(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            return PlainTextResponse("application/json is expected\n", 415)
        try:
            wanted = UpdateRequest.read(await read_body(request, MAX_REQUEST_BYTES), board.instance)
        except BadRequestError as error:
            return PlainTextResponse(f"{error}\n", 400)
        answer = await request.app.state.updates.answer(wanted)
        return Response(answer, media_type="application/octet-stream")

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    routes = [
        Route("/", page),
        Route("/api/updates", updates, methods=["POST"]),
        *review.routes(),
        *changes.routes(),
        *Trial(past, board).routes(),
        Route("/healthz", healthz),
    ]
    if users is not None and sessions is not None:
        routes += Login(users, sessions, pages, rules, behind_proxy=settings.behind_proxy).routes()
    return Starlette(
        routes=routes, middleware=[Middleware(Door, refusal=rules.refusal, headers=rules.headers)], lifespan=lifespan
    )


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serves until a signal ends it; main thread only.

    Args:
        settings: how to serve.
        on_ready: called with the page's address once browsers can connect.

    Raises:
        StreamdetError: the settings are unsafe, a file cannot be read, the port is taken.
    """
    check_settings(settings)
    if settings.cluster is None:
        parse_endpoint(settings.endpoint)
    if settings.server_key is None or not settings.server_key.is_dir():
        client_keys(settings.server_key, settings.client_key_file)
    # Where cores are short, detection goes first: pages may come late, events must not.
    os.nice(_NICENESS)
    board = Board(settings.endpoint) if settings.cluster is None else ClusterBoard(HeadWatch(settings.cluster))
    pictures = Pictures()
    bells: list[Updates] = []
    app = make_app(settings, board, pictures, bells.append)
    tls = _tls_for(settings)

    def stop(_worker: Worker) -> None:
        server.should_exit = True

    def ring() -> None:
        for updates in bells:
            updates.ring()

    subscribers = EventSubscriber(settings, board, ring, stop), PictureSubscriber(settings, board, pictures, ring, stop)
    watch = board.watch if isinstance(board, ClusterBoard) else contextlib.nullcontext()
    listener = listen("the page", settings.host, settings.port, "address with --listen")
    server = HttpServer(app, listener, LIMITS, tls)
    with listener, watch, subscribers[0], subscribers[1]:
        on_ready(f"{url_of(listener, tls)}/")
        asyncio.run(_run(server, end_with_stdin=settings.end_with_stdin))
    if server.error is not None:
        raise server.error
    for subscriber in subscribers:
        if subscriber.error is not None:
            raise subscriber.error


def _past_of(settings: Settings, board: Board) -> AsyncPast | ClusterPast:
    key, client_key = settings.server_key, settings.client_key_file
    if not isinstance(board, ClusterBoard):
        return AsyncPast(
            settings.endpoint, timeout_seconds=_PAST_SECONDS, server_key=key, client_key_file=client_key
        )  # fmt: skip

    def connect(node: NodeAddress) -> AsyncPast:
        return AsyncPast(
            node.events, replay_endpoint=node.replay, timeout_seconds=_PAST_OF_NODE_SECONDS,
            server_key=key_of_node(key, node.node), client_key_file=client_key,
        )  # fmt: skip

    return ClusterPast(board, connect)


async def _look_for_streams(past: AsyncPast | ClusterPast, board: Board) -> None:
    """Asks a daemon of which no stream is known whether it has one; where its replay is off, there is no answer."""
    if isinstance(past, ClusterPast):
        return  # its head says what there is
    looks = 0
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        looks = looks + 1 if board.is_bare else 0
        if looks:
            try:
                looks = 0 if await past.has_streams() else looks
            except (EndpointError, TimeoutError):
                looks = 0
        if looks >= _LOOKS:
            board.note_none()


async def _run(server: HttpServer, *, end_with_stdin: bool) -> None:
    if end_with_stdin:
        asyncio.get_running_loop().add_reader(sys.stdin, _end_at_eof, server)
    await server.serve()


def _end_at_eof(server: HttpServer) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin)
        server.should_exit = True


def _tls_for(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return tls_context(settings.tls_certificate, settings.tls_key)
    except (OSError, ValueError) as error:
        message = f"the certificate or its key cannot be used: {getattr(error, 'strerror', None) or error}"
        raise WebError(message) from error
