"""What the head of a cluster is asked for; keeps the file of the streams on its disk.

A `Head` may be used by several threads: by the one that talks with the nodes, and by those that answer requests.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamdet.cluster.agent import Granted, Report
from streamdet.cluster.cameras import Camera, read_cameras
from streamdet.cluster.reconciler import COME_BACK_SECONDS, LOST_SECONDS, SETTLE_SECONDS, Reconciler
from streamdet.errors import ConfigError, ControlError, Refusal, StoreError
from streamdet.security.files import write_atomically

Json = dict[str, Any]

_log = logging.getLogger(__name__)


class Head:
    """A reconciler, and what outlasts it.

    Args:
        directory: keeps `cameras.toml`, in `draining.json` the names of the nodes that are to be emptied, and in
            `nodes.json` those of the nodes that are there.
        reconciler: that decides.

    Raises:
        ConfigError: the file of the streams is wrong, or cannot be read.
    """

    def __init__(self, directory: Path, reconciler: Reconciler) -> None:
        self._cameras_path, self._draining_path = directory / "cameras.toml", directory / "draining.json"
        self._reconciler = reconciler
        self._lock = threading.Lock()
        self._cameras: Mapping[str, Camera] = {}
        self._draining: set[str] = set()
        self._nodes_path, self._nodes = directory / "nodes.json", reconciler.nodes
        self._here: set[str] = set()
        self._is_changed = False
        if self._cameras_path.exists():
            self._cameras = read_cameras(self._cameras_path)
            reconciler.apply(self._cameras)
        if self._draining_path.exists():
            self._draining = _read_names(self._draining_path)
            for node in self._draining:
                reconciler.drain(node)

    def status(self) -> Json:
        """As `Reconciler.status`."""
        with self._lock:
            return self._reconciler.status()

    def apply(self, text: str, *, dry_run: bool = False) -> Json:
        """Makes the streams of a file those of the cluster: all of them, or none.

        Args:
            text: of the file.
            dry_run: only says what would happen.

        Returns:
            The plan: names of streams that are "added", "changed", "removed" and "same"; "moves"; and why which are
            "unplaced".

        Raises:
            ConfigError: the file is wrong, or a stream is too large for any node; nothing has changed.
            StoreError: the file cannot be kept; nothing has changed.
        """
        cameras = read_cameras(Path("cameras.toml"), text)
        with self._lock:
            plan = self._plan(cameras)
            if not dry_run:
                _write(self._cameras_path, text)
                self._cameras = cameras
                self._reconciler.apply(cameras)
                self._is_changed = True
            return plan

    def drain(self, node: str, *, is_draining: bool = True) -> Json:
        """Empties a node, or lets it take streams again.

        Raises:
            ControlError: there is no such node.
            StoreError: it cannot be remembered; nothing has changed.
        """
        with self._lock:
            known = [each["name"] for each in self._reconciler.status()["nodes"]]
            if node not in known:
                named = f"there are {', '.join(known)}" if known else "there is none"
                message = f"the cluster has no node {node[:64]!r}; {named}"
                raise ControlError(Refusal.NOT_FOUND, message)
            draining = self._draining | {node} if is_draining else self._draining - {node}
            _write(self._draining_path, json.dumps(sorted(draining)))
            self._draining = draining
            self._reconciler.drain(node, is_draining=is_draining)
            self._is_changed = True
        return {"node": node, "draining": is_draining}

    def take(self, reports: Iterable[tuple[Report, str, float]]) -> list[bool]:
        """Takes in reports, as `Reconciler.report`; says of each whether its node is one of the cluster."""
        with self._lock:
            return [self._reconciler.report(*each) for each in reports]

    @property
    def is_due(self) -> bool:
        """Whether there is something to decide: a node has come or is lost, or the streams or drained nodes changed."""
        with self._lock:
            return self._is_changed or set(self._reconciler.nodes) != self._here

    def step(self) -> dict[str, tuple[Granted, ...]]:
        """As `Reconciler.step`."""
        with self._lock:
            self._is_changed = False
            grants = self._reconciler.step()
            self._log_nodes()
            # For the next head; a node that is lost is no longer waited for.
            if grants and self._nodes != self._reconciler.nodes:
                self._nodes = self._reconciler.nodes
                with suppress(StoreError):  # the next head only waits for the wrong ones, and not for ever
                    _write(self._nodes_path, json.dumps(self._nodes))
            return grants

    def _log_nodes(self) -> None:
        before, self._here = self._here, set(self._reconciler.nodes)
        for name in sorted(self._here - before):
            _log.info("node %s has joined", name)
        for name in sorted(before - self._here):
            _log.warning("node %s is lost: neither it nor its daemon has answered for %g s", name, LOST_SECONDS)

    def _plan(self, cameras: Mapping[str, Camera]) -> Json:
        nodes = [node for node in self._reconciler.status()["nodes"] if node["state"] != "lost"]
        largest = max(nodes, key=lambda node: float(node["capacity_fps"]), default=None)
        too_large = [
            f"cameras.toml: streams[{name}].max_fps: {camera.fps:g} frames per second are more than any node can do; "
            f"the largest, {largest['name']}, can do {largest['capacity_fps']:g}"
            for name, camera in cameras.items()
            if largest is not None and camera.fps > largest["capacity_fps"]
        ]
        if too_large:
            raise ConfigError(too_large)
        placement = self._reconciler.plan(cameras)
        before = self._cameras
        kept = [name for name in cameras if name in before]
        return {
            "added": sorted(cameras.keys() - before.keys()),
            "changed": sorted(name for name in kept if cameras[name] != before[name]),
            "removed": sorted(before.keys() - cameras.keys()),
            "same": sum(cameras[name] == before[name] for name in kept),
            "moves": [
                {"streams": list(move.streams), "from": move.from_node, "to": move.to_node, "reason": move.reason}
                for move in placement.moves
            ],
            "unplaced": dict(placement.unplaced),
        }


def settle_seconds(directory: Path) -> float:
    """How long a head waits for nodes before it places what none of those watches that have reported.

    One that has the file of the streams alone replaces a head elsewhere, whose nodes may take long to find it.
    """
    return (
        COME_BACK_SECONDS if (directory / "cameras.toml").exists() and not nodes_before(directory) else SETTLE_SECONDS
    )


def nodes_before(directory: Path) -> set[str]:
    """The nodes that the head before this one has known; empty where there was none, or it cannot be read."""
    try:
        return _read_names(directory / "nodes.json")
    except ConfigError:
        return set()


def _read_names(path: Path) -> set[str]:
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}; delete it, and drain again"]) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError([f"{path}: is no list of names; delete it, and drain again"])
    return set(names)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise StoreError(message) from None
