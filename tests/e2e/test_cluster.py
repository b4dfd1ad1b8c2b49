"""A cluster with real Ray: processes of a head and of nodes, and real daemons; only the detector is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamdet.assets import sample_clip
from streamdet.cli.cluster import command
from streamdet.cluster.keys import ClusterKeys, read_keys
from streamdet.cluster.requests import HeadClient
from streamdet.errors import StreamdetError
from support.cluster_process import PATIENCE_SECONDS, ClusterProcess
from support.ports import free_port
from support.processes import DaemonProcess
from support.waiting import wait_until

Json = dict[str, Any]
NAMES = [f"s{number:02}" for number in range(12)]


class Cluster:
    """A head and its nodes on one machine."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.key = folder / "cluster.key"
        ClusterKeys.make().write(self.key)
        self._cameras = folder / "cameras.toml"
        self._streams = 0
        self.port = free_port()
        self.client = HeadClient("127.0.0.1", self.port, read_keys(self.key))
        self.head = self._process(
            "head", "the head answers at", "head", "--listen", f"127.0.0.1:{self.port}",
            "--ray-port", str(_port_of_ray()), "--directory", str(folder / "head"),
        )  # fmt: skip
        self.daemons: dict[str, DaemonProcess] = {}
        self.nodes: dict[str, ClusterProcess] = {}

    def _process(self, name: str, ready: str, *arguments: str) -> ClusterProcess:
        process = ClusterProcess(
            self._folder / f"{name}.log", ready, *arguments, "--token-file", str(self.key)
        )  # fmt: skip
        return self._stack.enter_context(process)

    def add_daemon(self, name: str) -> None:
        daemon = DaemonProcess(self._folder / name)
        daemon.write_config(more=f'[node]\nname = "{name}"\n')
        self.daemons[name] = self._stack.enter_context(daemon.start())

    def join(self, name: str) -> None:
        """Makes a daemon that runs a node."""
        self.daemons[name].wait_for("READY=1")
        self.nodes[name] = self._process(
            name, "joined the cluster", "join", f"127.0.0.1:{self.port}", "--socket",
            str(self.daemons[name].control_path), "--fps", "40",
        )  # fmt: skip

    def run(self, *arguments: str) -> str:
        at = ("--head", f"127.0.0.1:{self.port}", "--token-file", str(self.key))
        result = CliRunner().invoke(command, [*arguments, *at])
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.output

    def apply(self, names: Sequence[str]) -> str:
        """Makes these the streams of the cluster."""
        self._streams = len(names)
        streams = (f'[[streams]]\nname = "{name}"\nurl = "{sample_clip()}"\n' for name in names)
        self._cameras.write_text("[stream_defaults]\nmax_fps = 2\nloop = true\n" + "".join(streams))
        return self.run("apply", str(self._cameras))

    def status(self) -> Json:
        """What the head says; nothing while it is away."""
        try:
            return self.client.ask("GET", "/v1/cluster")
        except StreamdetError:
            return {"nodes": [], "streams": []}

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Waits, and starts again what has ended, as systemd does."""

        def is_met() -> object:
            time.sleep(0.2)  # each look asks the head and all daemons
            for process in (self.head, *self.nodes.values()):
                process.keep_running()
            return condition()

        wait_until(is_met, what, PATIENCE_SECONDS)

    def owners(self) -> dict[str, tuple[str, int]]:
        """Node and generation of the streams that are up."""
        streams = self.status()["streams"]
        return {each["name"]: (each["node"], each["generation"]) for each in streams if each["state"] == "up"}

    def nodes_up(self) -> set[str]:
        return {node["name"] for node in self.status()["nodes"] if node["state"] == "up"}

    def watched(self, node: str) -> set[str]:
        """What the daemon of a node says that it watches for the cluster."""
        streams = self.daemons[node].ask("GET", "/v1/streams")["streams"]
        return {stream["name"] for stream in streams if stream["claim"] is not None}

    def all_on(self, *nodes: str) -> bool:
        """Whether each stream is up on exactly one of these nodes, and no other node that is there watches it."""
        owners = self.owners()
        held = [(name, node) for node in self.daemons for name in self.watched(node)]
        wanted = sorted((name, node) for name, (node, _) in owners.items())
        return len(owners) == self._streams and sorted(held) == wanted and {node for _, node in wanted} == set(nodes)

    def lose(self, node: str) -> None:
        """The machine of a node loses its power."""
        self.nodes.pop(node).kill()
        self.daemons.pop(node).end(signal.SIGKILL)


def _port_of_ray() -> int:
    """None of those that its workers use."""
    return next(port for port in iter(free_port, None) if not 10_002 <= port <= 19_999)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that answers, a node that joins it, and the daemon of another; Ray's processes take long to start."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        for name in ("n1", "n2"):
            cluster.add_daemon(name)
        cluster.head.ready()
        cluster.join("n1")
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_ray_starts_waits_for_the_processors_no_longer_than_a_daemon(cluster: Cluster) -> None:
    cluster.wait_until(lambda: cluster.nodes_up() == {"n1"}, "a node")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    priorities = set()
    for pid in cluster.head.pids():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            priorities.add(os.getpriority(os.PRIO_PROCESS, pid))
    assert priorities == {own}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_streams_are_placed_and_follow_the_nodes_through_faults(cluster: Cluster) -> None:
    cluster.wait_until(lambda: cluster.nodes_up() == {"n1"}, "a node")
    assert cluster.apply(NAMES[:8]).endswith("applied: 8 streams\n")
    cluster.wait_until(lambda: cluster.all_on("n1"), "all streams on the only node")
    wait_until(lambda: "cluster.head: node n1 has joined\n" in cluster.head.printed())

    # One joins late, and the other is drained; later both take streams.
    cluster.join("n2")
    cluster.wait_until(lambda: cluster.nodes_up() == {"n1", "n2"}, "a second node")
    assert "n1 is being emptied" in cluster.run("drain", "n1")
    cluster.wait_until(lambda: cluster.all_on("n2"), "all streams away from the node that is drained")
    assert json.loads(cluster.run("status", "--json"))["moves"]["drain"] >= 1
    cluster.run("drain", "n1", "--undo")
    assert cluster.apply(NAMES).endswith("applied: 12 streams\n")
    cluster.wait_until(lambda: cluster.all_on("n1", "n2"), "all streams on two nodes")
    owners = cluster.owners()

    # Ray's head dies, and another one takes over from the file: nothing moves, nothing is granted again.
    cluster.head.kill()
    assert {name for node in cluster.daemons for name in cluster.watched(node)} == set(NAMES)
    cluster.wait_until(lambda: cluster.all_on("n1", "n2"), "all streams after the head was replaced")
    assert {name: node for name, (node, _) in cluster.owners().items()} == {
        name: node for name, (node, _) in owners.items()
    }

    # A machine dies: the other takes its streams, with higher generations.
    cluster.lose("n2")
    cluster.wait_until(lambda: cluster.all_on("n1"), "all streams on the node that is left")
    after = cluster.owners()
    moved = [name for name, (node, _) in owners.items() if node == "n2"]
    assert moved
    assert all(after[name][1] > owners[name][1] for name in moved)
    assert all(cluster.daemons["n1"].is_exact(name) for name in NAMES)

    # What runs nodes and head ends when it is asked to, and the daemon of the node watches on.
    for process in (cluster.nodes["n1"], cluster.head):
        assert process.stop() == 0, process.printed()
    assert cluster.watched("n1") == set(NAMES)
