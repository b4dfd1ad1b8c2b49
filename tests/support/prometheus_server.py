"""A real Prometheus on loopback."""

from __future__ import annotations

import http
import http.client
import json
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.ports import free_port

_PATIENCE_SECONDS = 60.0


class Prometheus:
    """A server that scrapes one address."""

    def __init__(self, port: int) -> None:
        self._port = port

    def results(self, expression: str) -> list[dict[str, Any]]:
        """What the expression yields now: series with their labels and values; OSError while it is still starting."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            response = connection.getresponse()
            if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise ConnectionRefusedError  # it is still starting
            answer = json.load(response)
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def query(self, expression: str) -> dict[str, float]:
        """The value of each series now, by its stream."""
        return {result["metric"].get("stream", ""): float(result["value"][1]) for result in self.results(expression)}

    def wait_for(self, expression: str, expected: dict[str, float]) -> None:
        """Waits until the expression has these values."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        found: object = None
        while found != expected:
            assert time.monotonic() < deadline, f"{expression}: {found}, expected {expected}"
            time.sleep(0.1)
            try:
                found = self.query(expression)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                # It is still starting.
                found = error


@contextmanager
def prometheus_of(
    target: str, folder: Path, interval: str = "200ms", options: str = "", *, bridge: str = "", head: str = ""
) -> Iterator[Prometheus]:
    """Scrapes `target` (HOST:PORT) as job streamdet, with further options of the job, until the block ends.

    Args:
        target: of the daemon.
        folder: for its files.
        interval: between two scrapes.
        options: of the daemon's job.
        bridge: HOST:PORT of a bridge, scraped as job streamdet-bridge.
        head: HOST:PORT of the head of a cluster, scraped as job streamdet-cluster.
    """
    port = free_port()
    config = folder / "prometheus.yml"
    others = {"streamdet-bridge": bridge, "streamdet-cluster": head}
    of_others = "".join(
        f", {{job_name: {job}, static_configs: [{{targets: ['{address}']}}]}}"
        for job, address in others.items()
        if address
    )
    config.write_text(
        f"global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}\n"
        f"scrape_configs: [{{job_name: streamdet, static_configs: [{{targets: ['{target}']}}]{options}}}{of_others}]\n"
    )
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
