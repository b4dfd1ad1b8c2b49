"""A real Alertmanager on loopback."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.ports import free_port
from support.waiting import wait_until


class Alertmanager:
    """Its API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v2/alerts"
        self._port = port

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are firing."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", "/api/v2/alerts")
            found: list[dict[str, Any]] = json.load(connection.getresponse())
        finally:
            connection.close()
        return found

    def is_ready(self) -> bool:
        try:
            self.alerts()
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True


@contextmanager
def alertmanager_at(folder: Path) -> Iterator[Alertmanager]:
    """Runs one until the block ends."""
    config = folder / "alertmanager.yml"
    config.write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    port = free_port()
    command = [
        "prometheus-alertmanager", f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    with (folder / "alertmanager.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            server = Alertmanager(port)
            wait_until(server.is_ready, "Alertmanager")
            yield server
        finally:
            process.kill()
