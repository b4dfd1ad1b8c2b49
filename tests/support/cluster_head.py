"""The head of a cluster in this process: a real reconciler that calls real agents, and a real HTTP server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from prometheus_client import generate_latest

from streamdet.client.control import ask
from streamdet.cluster.agent import RENEW_SECONDS, Agent
from streamdet.cluster.cameras import Camera
from streamdet.cluster.reconciler import LOST_SECONDS, Reconciler
from streamdet.monitoring.cluster_metrics import cluster_registry, scrape_targets
from support.waiting import join

CAPACITY_FPS = 45.0


class HeadServer:
    """Answers `GET /v1/cluster`, `/v1/sd` and `/metrics`.

    Args:
        status: what it says of the cluster.
        port: to listen at; 0 for any.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]], port: int = 0) -> None:
        registry = cluster_registry(status)
        pages: dict[str, Callable[[], bytes]] = {
            "/v1/cluster": lambda: json.dumps(status()).encode(),
            "/v1/sd": lambda: json.dumps(scrape_targets(status())).encode(),
            "/metrics": lambda: generate_latest(registry),
        }
        self.asked = 0
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                head.asked += 1
                page = pages.get(self.path)
                body = b"{}" if page is None else page()
                self.send_response(404 if page is None else 200)
                kind = "text/plain; version=0.0.4" if self.path == "/metrics" else "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = False
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=partial(self._server.serve_forever, poll_interval=0.05), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops answering, and refuses connections from then on; may be called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            join(self._thread)
            self._server.server_close()


class Head:
    """A reconciler and the agents of some nodes, in steps that the test asks for.

    Its clock is faster than the real one, so that tests need not wait. A lock lets a server ask for the status.

    Args:
        sockets: of the daemons' control APIs, by node.
        cameras: what is to be watched.
    """

    def __init__(self, sockets: Mapping[str, Path], cameras: Mapping[str, Camera]) -> None:
        self.cameras = dict(cameras)
        self.agents = {name: Agent(partial(ask, socket)) for name, socket in sockets.items()}
        self.cut_off: set[str] = set()
        self.now = 1000.0
        self._lock = threading.Lock()
        self.replace()

    def replace(self) -> None:
        """Begins again, with the file alone."""
        with self._lock:
            self.reconciler = Reconciler(lambda: self.now, settle_seconds=LOST_SECONDS)
            self.reconciler.apply(self.cameras)

    def status(self) -> dict[str, Any]:
        """What it says of the cluster now."""
        with self._lock:
            return self.reconciler.status()

    def turn(self) -> None:
        """Calls every agent that can be reached once."""
        reports = {name: agent.turn() for name, agent in self.agents.items() if name not in self.cut_off}
        with self._lock:
            self.now += RENEW_SECONDS
            for name, report in reports.items():
                self.reconciler.report(report, name, CAPACITY_FPS)
            grants = self.reconciler.step()
        for name, of_node in grants.items():
            if name not in self.cut_off:
                self.agents[name].hold(of_node)

    def turn_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Goes on until a condition is met."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            self.turn()
            time.sleep(0.02)

    def owners(self) -> dict[str, str]:
        """The nodes by the streams that are up there."""
        return {one["name"]: one["node"] for one in self.status()["streams"] if one["state"] == "up"}
