"""The head and the nodes of a cluster as actors of Ray, which starts them, carries their calls and starts them again.

    head   one, where Ray's head runs: asks every node each 2 s, and at once where its grants change; answers over HTTP
    node   one on each node: passes the grants on to the daemon beside it, over its control socket

A node does nothing unless the head asks it: when the head is gone, or cannot reach the node, leases are not renewed.
The daemon is not a child of Ray, and goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from streamdet.client.control import ask
from streamdet.cluster.actor_log import log_to_command
from streamdet.cluster.agent import ANSWER_SECONDS, RENEW_SECONDS, Agent, Granted, Report, Reporter
from streamdet.cluster.api import make_app
from streamdet.cluster.head import Head, nodes_before, settle_seconds
from streamdet.cluster.keys import read_keys
from streamdet.cluster.ray_processes import HEAD_RESOURCE, NODE_RESOURCE, SOCKET_VARIABLE
from streamdet.cluster.reconciler import Reconciler
from streamdet.http.server import HttpServer, HttpThread, Limits, listen, tls_context, url_of
from streamdet.monitoring.log import FailureLog
from streamdet.security.endpoints import is_loopback
from streamdet.worker import Worker

NAMESPACE = "streamdet"
_HEAD_NAME = "head"
_CALL_SECONDS = 10.0
_LOOK_SECONDS = 0.25

_log = logging.getLogger(__name__)


class NodeActor:
    """Acts for the cluster on one node."""

    def __init__(self) -> None:
        log_to_command()
        daemon = partial(ask, Path(os.environ[SOCKET_VARIABLE]))
        self._reporter = Reporter(
            Agent(daemon, ray.util.get_node_ip_address()),
            partial(daemon, "GET", "/v1/health", timeout_seconds=ANSWER_SECONDS, refused=False),
        )

    def turn(self, grants: tuple[Granted, ...] | None) -> Report:
        """Makes these all grants of the node, renews them, and reports; None leaves the grants as they are."""
        return self._reporter.report(grants)


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How the head works.

    Attributes:
        directory: keeps the file of the streams.
        token_file: with the keys of the cluster.
        host: where it answers over HTTP.
        port: of it; 0 for any free one.
    """

    directory: Path
    token_file: Path
    host: str
    port: int


class HeadActor:
    """The head, with its thread that talks with the nodes and the one that answers over HTTP.

    Args:
        settings: how it works.
    """

    def __init__(self, settings: HeadSettings) -> None:
        log_to_command()
        folder = settings.directory
        reconciler = Reconciler(settle_seconds=settle_seconds(folder), expected=nodes_before(folder))
        head = Head(folder, reconciler)
        certificate, key = (Path(os.environ[name]) for name in ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"))
        tls = None if is_loopback(settings.host) else tls_context(certificate, key)
        about = {"ray": ray.get_runtime_context().gcs_address, "ray_version": ray.__version__}
        listener = listen("the head", settings.host, settings.port, "address")
        self._url = url_of(listener, tls)
        server = HttpServer(
            make_app(head, read_keys(settings.token_file), about, is_open=tls is None), listener, Limits(), tls
        )
        self._threads = (HttpThread("head-http", [server], _end), Rounds(head, _end))
        for thread in self._threads:
            thread.start()

    def url(self) -> str:
        """Where it answers."""
        return self._url


def _end(worker: Worker) -> None:
    """Ends the process, so that Ray starts another one."""
    _log.critical("%s has failed", worker.name, exc_info=worker.error)
    logging.shutdown()
    os._exit(1)


@dataclass(slots=True)
class _Contact:
    """A node of Ray.

    Attributes:
        actor: on it.
        source: names it for the reconciler.
        capacity_fps: that it has declared.
        node: its name in the cluster; empty while it is not one of it.
        grants: that were passed on to it last.
        answer: of the call that is under way.
    """

    actor: Any
    source: str
    capacity_fps: float
    node: str = ""
    grants: tuple[Granted, ...] | None = None
    answer: Any = None


class Rounds(Worker):
    """Asks every node for a report each 2 s, and passes on what it is granted; at once where that has changed."""

    def __init__(self, head: Head, on_error: Callable[[Worker], None] | None = None) -> None:
        super().__init__("head-rounds", on_error)
        self._head = head
        self._contacts: dict[str, _Contact] = {}
        self._failures = FailureLog(_log, "{} calls of nodes failed")

    def run(self) -> None:
        """Goes on until asked to stop."""
        grants: dict[str, tuple[Granted, ...]] = {}
        next_at = time.monotonic()
        while not self.stopping:
            is_round = time.monotonic() >= next_at
            if is_round:
                next_at = time.monotonic() + RENEW_SECONDS
                self._find_nodes()
            if is_round or self._head.is_due:
                grants = self._head.step()
            for contact in self._contacts.values():
                granted = grants.get(contact.node)
                if contact.answer is None and (is_round or granted != contact.grants):
                    contact.grants, contact.answer = granted, contact.actor.turn.remote(granted)
            self._collect()

    def _find_nodes(self) -> None:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and NODE_RESOURCE in node["Resources"]}
        for gone in self._contacts.keys() - nodes.keys():
            ray.kill(self._contacts.pop(gone).actor)
        for node_id in nodes.keys() - self._contacts.keys():
            node = nodes[node_id]
            actor = ray.remote(NodeActor).options(
                name=f"node-{node_id}", namespace=NAMESPACE, get_if_exists=True, lifetime="detached", num_cpus=0,
                max_restarts=-1, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            ).remote()  # fmt: skip
            self._contacts[node_id] = _Contact(actor, node["NodeManagerAddress"], node["Resources"][NODE_RESOURCE])

    def _collect(self) -> None:
        """Takes in the reports that have come; a call that has no answer yet goes on."""
        asked = {contact.answer: contact for contact in self._contacts.values() if contact.answer is not None}
        if not asked:
            self.sleep(_LOOK_SECONDS)
            return
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_SECONDS)
        reports = []
        for answer in ready:
            contact = asked[answer]
            contact.answer = None
            try:
                reports.append((contact, ray.get(answer, timeout=_CALL_SECONDS)))
            except (RayError, GetTimeoutError) as error:
                self._failures.failed(f"a node at {contact.source} cannot be asked: {type(error).__name__}")
        taken = self._head.take((report, contact.source, contact.capacity_fps) for contact, report in reports)
        for (contact, report), is_one in zip(reports, taken, strict=True):
            contact.node = report.node if is_one else ""


def disconnect() -> None:
    """Ends the connection of this process, before Ray's processes end: Ray would end it with them, with code 1."""
    ray.shutdown()


def start_head(address: str, settings: HeadSettings) -> str:
    """Connects this process to Ray's head, and starts the head there, or finds the one that runs.

    Args:
        address: of Ray's head.
        settings: how the head works.

    Returns:
        Where it answers over HTTP.

    Raises:
        RayError: Ray cannot be reached, or the head not be started.
    """
    ray.init(address=address, namespace=NAMESPACE, logging_level=logging.WARNING, log_to_driver=False)
    actor = ray.remote(HeadActor).options(
        name=_HEAD_NAME, get_if_exists=True, lifetime="detached", num_cpus=0, max_restarts=-1,
        resources={HEAD_RESOURCE: 1},
    ).remote(settings)  # fmt: skip
    return str(ray.get(actor.url.remote()))
