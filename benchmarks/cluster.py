# ruff: noqa: INP001, T201 - a program, not a module
"""How long the head of a large cluster needs for what it does: in CPU time, with nodes that are only simulated.

    python benchmarks/cluster.py --nodes 200 --streams 5000

The reconciler, the file of the streams, the status and the metrics are the real ones; of a node there is only what it
reports. What else a failover takes is known: 5 s until a node is lost, at most 2 s until the head asks the next nodes
again, and the connection to the camera.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from streamdet import __version__
from streamdet.cluster.agent import RENEW_SECONDS, Granted, Report
from streamdet.cluster.cameras import read_cameras
from streamdet.cluster.reconciler import LOST_SECONDS, Reconciler
from streamdet.monitoring.cluster_metrics import cluster_registry

FPS = 5.0
# So much of the capacity is in use before a node dies.
LOAD = 0.8


class Simulation:
    """A reconciler, and nodes that follow every grant at once.

    Args:
        nodes: how many.
        streams: how many they are to watch together.
    """

    def __init__(self, nodes: int, streams: int) -> None:
        self.now = 0.0
        self.head = Reconciler(lambda: self.now, lambda: self.now, settle_seconds=0.0)
        self.capacity_fps = FPS * streams / nodes / LOAD
        self.granted: dict[str, tuple[Granted, ...]] = {f"node-{number:03}": () for number in range(nodes)}

    def report(self) -> None:
        """Has every node report what it was granted."""
        for name, grants in self.granted.items():
            claims = tuple(
                {"id": one.claim_id, "generation": one.generation, "streams": [each["name"] for each in one.streams]}
                for one in grants
            )
            newest = max((one.generation for one in grants), default=0)
            states = {each["name"]: "up" for one in grants for each in one.streams}
            addresses = {"events": f"tcp://{name}:5555", "metrics": f"http://{name}:9095/metrics"}
            report = Report(name, __version__, claims, newest, states, addresses=addresses)
            self.head.report(report, name, self.capacity_fps)

    def step(self) -> None:
        """Has the head decide, and the nodes follow."""
        self.granted = {**self.granted, **self.head.step()}

    def turn(self, seconds: float = RENEW_SECONDS) -> None:
        """One round of reports and grants."""
        self.now += seconds
        self.report()
        self.step()


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of CPU time that an action takes."""
    began = time.process_time()
    action()
    return (time.process_time() - began) * 1000


def measure(nodes: int, streams: int) -> dict[str, float]:
    """Milliseconds of CPU time of each thing that the head does; and how many streams moved, of how many."""
    simulation = Simulation(nodes, streams)
    head = simulation.head
    lines = [f'[[streams]]\nname = "cam-{number:05}"\nurl = "rtsp://192.0.2.1/{number}"' for number in range(streams)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cameras.toml"
        path.write_text("\n".join([f"[stream_defaults]\nmax_fps = {FPS:g}", *lines, ""]))
        simulation.report()
        found: dict[str, float] = {"read the file": timed(lambda: head.apply(read_cameras(path)))}
        cameras = read_cameras(path)
    found["plan the first apply"] = timed(lambda: head.plan(cameras))
    found["first step"] = timed(simulation.step)
    simulation.turn()
    found["reports of all nodes"] = timed(simulation.report)
    found["step without a change"] = timed(simulation.step)
    found["status as JSON"] = timed(lambda: json.dumps(head.status()))
    found["metrics page"] = timed(lambda: generate_latest(cluster_registry(head.status)))
    watched_there = _streams_of(head.status(), "node-000")
    del simulation.granted["node-000"]
    simulation.turn(LOST_SECONDS / 2)
    simulation.now += LOST_SECONDS / 2 + 0.1
    simulation.report()
    found["failover of a node"] = timed(simulation.step)
    status = head.status()
    moved = sum(one["name"] in watched_there and one["node"] is not None for one in status["streams"])
    found["streams that moved"], found["of"] = moved, len(watched_there)
    return found


def _streams_of(status: Mapping[str, Any], node: str) -> set[str]:
    return {one["name"] for one in status["streams"] if one["node"] == node}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="the least of so many rounds is shown")
    options = parser.parse_args()
    rounds = [measure(options.nodes, options.streams) for _ in range(options.rounds)]
    print(f"{options.nodes} nodes, {options.streams} streams: ms of CPU time, least of {options.rounds} rounds")
    for name in rounds[0]:
        print(f"{min(each[name] for each in rounds):10.1f}  {name}")


if __name__ == "__main__":
    main()
