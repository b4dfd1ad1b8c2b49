# ruff: noqa: INP001, T201 - a program, not a module
"""How long the head of a large cluster needs for what it does: in CPU time, with nodes that are only simulated.

    python benchmarks/cluster.py --nodes 200 --streams 5000

The reconciler, the file of the streams, the status and the metrics are the real ones; of a node there is only what it
reports. What else a failover takes is known: 5 s until a node is lost, 0.3 s until the next nodes hear of it, and the
connection to the camera.

    python benchmarks/cluster.py --real 100 --nodes 4

grants so many claims, of eight streams each, to real daemons in processes of their own, kills one of them, and prints
how long it took until all streams were up. Sources are files of one frame per second, and the detector is a stand-in.

    python benchmarks/cluster.py --renew 100

grants so many claims to one daemon, of eight streams that are paused, and prints the CPU time that their renewal takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from prometheus_client import generate_latest

from streamdet import __version__
from streamdet.bench.machine import cpu_seconds
from streamdet.client.control import ask
from streamdet.cluster.agent import ANSWER_SECONDS, RENEW_SECONDS, Agent, Granted, Report, Reporter
from streamdet.cluster.cameras import read_cameras
from streamdet.cluster.placement import GROUP_STREAMS
from streamdet.cluster.reconciler import LOST_SECONDS, Reconciler
from streamdet.monitoring.cluster_metrics import cluster_registry

FPS = 5.0
# So much of the capacity is in use before a node dies.
LOAD = 0.8
# For so long what runs without a change is measured.
QUIET_SECONDS = 30.0
# As often as this, the head looks whether there is something to decide.
LOOK_SECONDS = 0.25


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


class RealNode:
    """A daemon in a process of its own, and its agent.

    Args:
        folder: for its files.
        name: of the node.
    """

    def __init__(self, folder: Path, name: str) -> None:
        socket, config = folder / f"{name}.s", folder / f"{name}.toml"
        config.write_text(
            f'[publisher]\nendpoint = "tcp://127.0.0.1:0"\n[metrics]\nendpoint = "127.0.0.1:0"\n'
            f'[control]\npath = "{socket}"\n[node]\nname = "{name}"\n[log]\nlevel = "error"\n'
        )
        self.name = name
        command = [sys.executable, "-P", "-m", "streamdet.bench.stand_in", str(config)]
        self.process = subprocess.Popen(command)  # noqa: S603 - this Python, and our own module
        health = partial(ask, socket, "GET", "/v1/health", timeout_seconds=ANSWER_SECONDS, refused=False)
        self.reporter = Reporter(Agent(partial(ask, socket)), health)

    def cpu_seconds(self) -> float:
        """CPU time that the daemon has taken."""
        return cpu_seconds(self.process.pid)

    def end(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.wait()
        self.reporter.close()


class RealCluster:
    """A reconciler that asks the agents of real daemons every two seconds, and at once where grants change.

    The head does so, too, over Ray.

    Args:
        nodes: what it asks.
        capacity_fps: of each of them.
    """

    def __init__(self, nodes: list[RealNode], capacity_fps: float) -> None:
        self.nodes, self.capacity_fps = nodes, capacity_fps
        self.head = Reconciler(settle_seconds=0.0)
        self.granted: dict[str, tuple[Granted, ...]] = {}
        self.asking = ThreadPoolExecutor(len(nodes))
        self.rounds = 0
        self._next_at = 0.0
        self._here: set[str] = set()

    def run_until(self, condition: Callable[[], object]) -> float:
        """Goes on until a condition is met; how many seconds that took."""
        began = time.monotonic()
        while not condition():
            is_round, here = time.monotonic() >= self._next_at, set(self.head.nodes)
            if is_round or here != self._here:
                self._here = here
                self._ask(is_round=is_round)
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - began

    def apply(self, path: Path) -> None:
        """Makes the streams of a file those of the cluster, at once."""
        self.head.apply(read_cameras(path))
        self._next_at = 0.0

    def _ask(self, *, is_round: bool) -> None:
        before, self.granted = self.granted, self.head.step()
        if is_round:
            self._next_at = time.monotonic() + RENEW_SECONDS
            self.rounds += 1
        asked = [node for node in self.nodes if is_round or self.granted.get(node.name) != before.get(node.name)]
        reports = self.asking.map(lambda node: node.reporter.report(self.granted.get(node.name)), asked)
        for node, report in zip(asked, reports, strict=True):
            self.head.report(report, node.name, self.capacity_fps)

    def measure_quiet(self) -> None:
        """Prints what everything takes while nothing changes."""
        rounds, daemons = self.rounds, sum(node.cpu_seconds() for node in self.nodes)
        head, process, until = time.thread_time(), time.process_time(), time.monotonic() + QUIET_SECONDS
        seconds = self.run_until(lambda: time.monotonic() > until)
        rounds = self.rounds - rounds
        head, process = time.thread_time() - head, time.process_time() - process
        daemons = sum(node.cpu_seconds() for node in self.nodes) - daemons
        print(f"{head / rounds * 1000:10.1f} ms of CPU time for each round of the head")
        print(f"{(process - head) / rounds / len(self.nodes) * 1000:10.1f} ms of CPU time for each turn of an agent")
        print(f"{daemons / seconds / len(self.nodes) * 100:10.1f} % of a core for each daemon, with its streams")

    def are_up(self) -> bool:
        """Whether all streams are up on nodes that are there."""
        here = set(self.head.nodes)
        return all(each["state"] == "up" and each["node"] in here for each in self.head.status()["streams"])

    def claims(self) -> int:
        """How many claims the daemons hold."""
        return sum(len(node.reporter.report(None).claims) for node in self.nodes)


def measure_real(claims: int, nodes: int) -> None:
    """Prints how long an apply and a failover take with real daemons."""
    streams = claims * GROUP_STREAMS
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clip, cameras = Path(folder) / "clip.mp4", Path(folder) / "cameras.toml"
        write_clip(clip)
        names = [f'[[streams]]\nname = "cam-{number:05}"\nurl = "{clip}"\n' for number in range(streams)]
        cameras.write_text("[stream_defaults]\nmax_fps = 1\nloop = true\n" + "".join(names))
        daemons = [RealNode(Path(folder), f"node-{number}") for number in range(nodes)]
        for daemon in daemons:
            stack.callback(daemon.end)
        # Some room is left: groups do not fill a node to the last frame.
        cluster = RealCluster(daemons, 1.1 * streams / (nodes - 1))
        stack.callback(cluster.asking.shutdown)
        cluster.run_until(lambda: len(cluster.head.nodes) == nodes)
        began = time.monotonic()
        cluster.apply(cameras)
        cluster.run_until(cluster.are_up)
        print(f"{cluster.claims()} claims of {streams} streams on {nodes} daemons")
        print(f"{time.monotonic() - began:10.1f}  s until all streams were up after the apply")
        cluster.measure_quiet()
        lost = _streams_of(cluster.head.status(), "node-0")
        began = time.monotonic()
        daemons[0].process.kill()
        seconds = cluster.run_until(lambda: "node-0" not in cluster.head.nodes)
        print(f"{seconds:10.1f}  s until a daemon that was killed was lost")
        cluster.run_until(cluster.are_up)
        print(f"{time.monotonic() - began:10.1f}  s until its {len(lost)} streams were up on the others")


def measure_renewals(claims: int) -> None:
    """Prints the CPU time of a turn of an agent in which nothing changes."""
    with tempfile.TemporaryDirectory() as folder:
        node = RealNode(Path(folder), "node")
        try:
            grants = [
                Granted(f"group-{number}", 1, tuple(_paused(number, place) for place in range(GROUP_STREAMS)))
                for number in range(claims)
            ]
            while len(node.reporter.report(grants).claims) < claims:
                time.sleep(0.5)
            before, began = node.cpu_seconds(), time.monotonic()
            time.sleep(QUIET_SECONDS / 2)
            idle = (node.cpu_seconds() - before) / (time.monotonic() - began)
            before, began, agent = node.cpu_seconds(), time.monotonic(), time.process_time()
            turns = 100
            for _ in range(turns):
                node.reporter.report(grants)
            agent = (time.process_time() - agent) / turns
            daemon = (node.cpu_seconds() - before - idle * (time.monotonic() - began)) / turns
        finally:
            node.end()
    print(f"{claims} claims of {claims * GROUP_STREAMS} streams, of {turns} turns")
    print(f"{daemon * 1000:10.1f} ms of CPU time of the daemon for each, {daemon / RENEW_SECONDS:.1%} of a core")
    print(f"{agent * 1000:10.1f} ms of CPU time of the agent for each, {agent / RENEW_SECONDS:.1%} of a core")


def _paused(claim: int, place: int) -> dict[str, object]:
    return {"name": f"cam-{claim}-{place}", "url": f"rtsp://127.0.0.1/{claim}/{place}", "max_fps": FPS, "paused": True}


def write_clip(path: Path) -> None:
    """Writes a video of one frame in a second, each of them a key frame."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=1, options={"g": "1"})
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        for number in range(60):
            picture = av.VideoFrame.from_ndarray(np.full((120, 160, 3), number * 4, np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="the least of so many rounds is shown")
    parser.add_argument("--real", type=int, metavar="CLAIMS", help="grant so many claims to real daemons instead")
    parser.add_argument("--renew", type=int, metavar="CLAIMS", help="measure the renewal of so many claims instead")
    options = parser.parse_args()
    if options.renew:
        measure_renewals(options.renew)
        return
    if options.real:
        measure_real(options.real, options.nodes)
        return
    rounds = [measure(options.nodes, options.streams) for _ in range(options.rounds)]
    print(f"{options.nodes} nodes, {options.streams} streams: ms of CPU time, least of {options.rounds} rounds")
    for name in rounds[0]:
        print(f"{min(each[name] for each in rounds):10.1f}  {name}")


if __name__ == "__main__":
    main()
