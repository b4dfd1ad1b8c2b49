"""A cluster under faults: real Ray with token and TLS, daemons, RTSP streams and a reader; each machine has a network
namespace of its own. Only the detector is a stand-in.

Machines are slow here, and share two cores with other tests: what takes 10 s in a cluster may take longer.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamdet.cli.cluster import command
from streamdet.cluster.keys import ClusterKeys, read_keys
from streamdet.cluster.placement import GROUP_STREAMS
from streamdet.cluster.requests import HeadClient
from streamdet.errors import ControlError, StreamdetError
from streamdet.security.curve import allow, generate
from support.cluster_process import PATIENCE_SECONDS, ClusterProcess
from support.cluster_reader import Reader
from support.machines import Machine, Switch
from support.paths import SUPPORT
from support.processes import DaemonProcess
from support.rtsp import RtspServer
from support.waiting import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.package("iproute2"),
    pytest.mark.package("iptables"),
    pytest.mark.package("gst-rtsp-server"),
    pytest.mark.package("gcc"),
    pytest.mark.timeout(1800),
]

Json = dict[str, Any]
Record = Callable[[str, object], None]
STREAMS = [f"s{number:02}" for number in range(24)]
EXTRA = "extra"
HEAD_PORT, RAY_PORT = 9094, 6379
# One frame in half a second, each of them a key frame.
VIDEO = (
    "videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,format=I420,framerate=2/1 ! "
    "x264enc tune=zerolatency sliced-threads=false threads=1 speed-preset=ultrafast key-int-max=1 ! "
    "rtph264pay name=pay0 config-interval=-1"
)


class Node:
    """A machine with a daemon, and what makes it a node."""

    def __init__(self, machine: Machine, daemon: DaemonProcess, agent: ClusterProcess) -> None:
        self.machine, self.daemon, self.agent = machine, daemon, agent
        self.is_running = False

    def start(self) -> None:
        self.is_running = True
        self.daemon.start()
        self.agent.start()

    def keep_running(self) -> None:
        """As systemd does."""
        if self.is_running:
            self.agent.keep_running()
            if self.daemon.process.poll() is not None:
                self.daemon.start()

    def lose_power(self, switch: Switch) -> None:
        """Nothing says goodbye: the network is gone before the processes are."""
        self.is_running = False
        switch.unplug(self.machine)
        self.agent.kill()
        self.daemon.end(signal.SIGKILL)

    @contextmanager
    def cut_off(self, other: Machine, ports: str = "") -> Iterator[None]:
        """Drops all packets from and to another machine; of ports of this one, FIRST:LAST, or of all."""
        tcp = [f" -p tcp --{side}port {ports}" if ports else "" for side in "ds"]
        rules = [f"INPUT -s {other.address}{tcp[0]} -j DROP", f"OUTPUT -d {other.address}{tcp[1]} -j DROP"]
        self.machine.sh(*(f"iptables -A {rule}" for rule in rules))
        yield
        self.machine.sh(*(f"iptables -D {rule}" for rule in rules))

    def watched(self) -> set[str]:
        """What the daemon watches for the cluster."""
        streams = self.daemon.ask("GET", "/v1/streams")["streams"]
        return {stream["name"] for stream in streams if stream["claim"] is not None}

    def is_exact(self) -> bool:
        """Whether each frame that was captured was published, was dropped for a reason, or is on its way."""
        page = self.machine.run(self.daemon.page)
        return all(self.daemon.is_exact(name, page) for name in re.findall(r'frames_in_flight{stream="(\w+)"}', page))


class Cluster:
    """A head, nodes and cameras at one switch.

    Attributes:
        nodes: by name.
        cameras: the server of all streams, which counts connections.
        head: the command that runs it.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.key = folder / "keys" / "cluster.key"
        ClusterKeys.make().write(self.key)
        self._clock = folder / "clock_shift.so"
        source = SUPPORT / "servers" / "clock_shift.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", self._clock, source], check=True)
        self._server_key = generate(folder / "curve", "node", "server")
        self._client_key = generate(folder / "curve", "reader", "client")
        allow(self._client_key[0], folder / "clients")
        self.switch = Switch(stack)
        self.cameras = stack.enter_context(
            RtspServer(
                {f"/{name}": VIDEO for name in [*STREAMS, EXTRA]}, transport="tcp", address=self.switch.address,
                under=self.switch.command(),
            )
        )  # fmt: skip
        self.machine = self.switch.machine(10)
        self.head_port = HEAD_PORT
        self.head = self._head(HEAD_PORT, RAY_PORT)
        self.nodes: dict[str, Node] = {}
        self._file = folder / "cameras.toml"
        self.has_extra = False

    def _head(self, port: int, ray_port: int) -> ClusterProcess:
        directory = self._folder / f"head-{port}"
        return self._process(
            f"head-{port}", "the head answers at", "head", "--listen", f"{self.machine.address}:{port}", "--ray-port",
            str(ray_port), "--directory", str(directory), machine=self.machine,
        )  # fmt: skip

    def _process(self, name: str, ready: str, *arguments: str, machine: Machine) -> ClusterProcess:
        process = ClusterProcess(
            self._folder / f"{name}.log", ready, *arguments, "--token-file", str(self.key), under=machine.command()
        )  # fmt: skip
        self._stack.callback(end, process)
        return process

    def node(self, name: str, number: int) -> Node:
        machine = self.switch.machine(number)
        shift = self._folder / f"{name}.clock"
        shift.write_bytes(bytes(8))
        daemon = DaemonProcess(
            self._folder / name, host=machine.address, under=machine.command(),
            environ={"LD_PRELOAD": str(self._clock), "CLOCK_SHIFT_FILE": str(shift)},
            publisher=f'curve_server_key_file = "{self._server_key[1]}"\n'
            f'curve_allowed_clients_directory = "{self._folder / "clients"}"\n',
        )  # fmt: skip
        daemon.write_config("", more=f'[node]\nname = "{name}"\n')
        self._stack.enter_context(daemon)
        agent = self._process(name, "joined the cluster", *self._join(daemon), machine=machine)
        self.nodes[name] = Node(machine, daemon, agent)
        return self.nodes[name]

    def replace_head(self) -> None:
        """The head dies, and another one begins at other ports; of its files it has that of the streams."""
        before = self._folder / f"head-{self.head_port}" / "cameras.toml"
        self.head.kill()
        self.head_port += 10
        after = self._folder / f"head-{self.head_port}"
        after.mkdir(mode=0o700)
        shutil.copy(before, after)
        self.head = self._head(self.head_port, RAY_PORT + self.head_port - HEAD_PORT).start()
        for node in self.nodes.values():
            # What systemctl edit changes is for the next start: the command ends by itself.
            node.agent.arguments = (*self._join(node.daemon), *node.agent.arguments[-2:])

    def set_clock(self, name: str, shift_seconds: int) -> None:
        """Sets the wall clock of a daemon that was started with a library for that."""
        with (self._folder / f"{name}.clock").open("r+b") as file:
            file.write(shift_seconds.to_bytes(8, sys.byteorder, signed=True))

    def _join(self, daemon: DaemonProcess) -> list[str]:
        head = f"{self.machine.address}:{self.head_port}"
        return ["join", head, "--socket", str(daemon.control_path), "--fps", "60"]

    @property
    def client(self) -> HeadClient:
        return HeadClient(self.machine.address, self.head_port, read_keys(self.key))

    def run(self, *arguments: str) -> str:
        """Runs a command on the machine with the cameras."""
        at = ("--head", f"{self.machine.address}:{self.head_port}", "--token-file", str(self.key))
        result = self.switch.run(lambda: CliRunner().invoke(command, [*arguments, *at]))
        if result.exception is not None:
            raise result.exception
        return result.output

    def apply(self) -> None:
        """Adds a stream, or takes it away again."""
        self.has_extra = not self.has_extra
        names = [*STREAMS, EXTRA] if self.has_extra else STREAMS
        urls = {name: self.cameras.url(f"/{name}", host=self.cameras_host) for name in names}
        self._file.write_text(
            "[stream_defaults]\nmax_fps = 2\n"
            + "".join(f'[[streams]]\nname = "{name}"\nurl = "{url}"\n' for name, url in urls.items())
        )
        assert "applied" in self.run("apply", str(self._file))

    @property
    def cameras_host(self) -> str:
        return self.switch.address

    @property
    def wanted(self) -> list[str]:
        return [*STREAMS, EXTRA] if self.has_extra else STREAMS

    def status(self) -> Json:
        """What the head says; nothing while it is away."""
        try:
            return self.switch.run(lambda: self.client.ask("GET", "/v1/cluster"))
        except StreamdetError:
            return {"nodes": [], "streams": [], "moves": {}}

    def owners(self) -> dict[str, str]:
        """Nodes of the streams that are up."""
        return {each["name"]: each["node"] for each in self.status()["streams"] if each["state"] == "up"}

    def streams_of(self, node: str) -> set[str]:
        """The streams that are up on a node; without the one that comes and goes."""
        return {name for name, owner in self.owners().items() if owner == node} - {EXTRA}

    def nodes_up(self) -> set[str]:
        return {node["name"] for node in self.status()["nodes"] if node["state"] == "up"}

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Waits, and starts again what has ended, as systemd does."""

        def is_met() -> object:
            time.sleep(0.5)  # each look asks the head and all daemons
            self.head.keep_running()
            for node in self.nodes.values():
                node.keep_running()
            return condition()

        wait_until(is_met, what, PATIENCE_SECONDS)

    def is_settled_on(self, names: Collection[str]) -> bool:
        """Whether these nodes and no others are up, and each stream is up on one of them and watched by no other."""
        if self.nodes_up() != set(names):
            return False
        owners = self.owners()
        held = [(stream, name) for name in names for stream in self.nodes[name].watched()]
        return owners.keys() == set(self.wanted) and sorted(held) == sorted(owners.items())

    @property
    def running(self) -> set[str]:
        """The nodes whose machines run."""
        return {name for name, node in self.nodes.items() if node.is_running}

    def settle(self) -> None:
        """Waits until all is well on all machines that run."""
        self.wait_until(lambda: self.is_settled_on(self.running), "each stream on one node")

    def is_read(self, reader: Reader) -> bool:
        """Whether a reader gets each stream from its owner."""
        return {name: reader.owners.get(name) for name in self.wanted} == self.owners()

    def balance(self) -> None:
        """Waits until nothing is to be moved to even out the load, which takes half a minute for each group."""
        self.wait_until(
            lambda: all(Counter(self.owners().values())[name] >= GROUP_STREAMS for name in self.running), "even shares"
        )

    def largest(self) -> str:
        """The node with the most streams."""
        return Counter(self.owners().values()).most_common(1)[0][0]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A reader, once it gets all streams; at its end, what it got must have been right."""
        reader = Reader(
            f"{self.machine.address}:{self.head_port}", self.switch.enter, head_ca_file=self.key.with_name("ca.pem"),
            head_token_file=self.key.with_name("reader.token"), server_key=self._server_key[0],
            client_key_file=self._client_key[1],
        )  # fmt: skip
        reader.start()
        try:
            self.wait_until(lambda: self.is_read(reader), "a reader of all streams")
            yield reader
        finally:
            reader.end()
        assert reader.wrong == []


def end(process: ClusterProcess) -> None:
    if process.process is not None and process.process.poll() is None:
        process.kill()
    process.forget()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        cluster.head.start()
        for number in (1, 2, 3):
            cluster.node(f"n{number}", 10 + number).start()
        cluster.node("n4", 14)  # joins late
        cluster.head.ready()
        cluster.wait_until(lambda: cluster.nodes_up() == {"n1", "n2", "n3"}, "three nodes")
        cluster.has_extra = True
        cluster.apply()
        yield cluster


class Since:
    """What has happened since a moment, and how long it took.

    Attributes:
        reader: that reads all the time.
    """

    def __init__(self, cluster: Cluster, reader: Reader) -> None:
        self._cluster, self.reader = cluster, reader
        self._began = time.monotonic()
        self._plays = Counter(cluster.cameras.plays)
        self._moves = len(reader.moves)

    def begin_again(self) -> None:
        """Counts the time from now on, once the reader has what was sent before."""
        time.sleep(0.3)
        self._began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def moved(self) -> set[str]:
        """Streams of which another node was reported to be the owner."""
        return {move.stream for move in self.reader.moves[self._moves :]}

    def connected(self) -> set[str]:
        """Streams that the cameras have sent to a new connection."""
        return {path.removeprefix("/") for path in self._cluster.cameras.plays - self._plays}

    def first(self, stream: str, nodes: set[str]) -> float | None:
        """After how many seconds an event of a stream came from one of these nodes."""
        times = [at for node in nodes for at in self.reader.heard[node, stream] if at > self._began]
        return min(times) - self._began if times else None

    def until_heard(self, streams: set[str], nodes: set[str]) -> float:
        """Waits until each of these streams is heard from one of these nodes; how long that took, at most."""
        self._cluster.wait_until(
            lambda: all(self.first(stream, nodes) for stream in streams), f"events of {sorted(streams)} from {nodes}"
        )
        return max(self.first(stream, nodes) or 0 for stream in streams)


@contextmanager
def whole(cluster: Cluster, *, balanced: bool = False) -> Iterator[Since]:
    """A cluster in which all is well; at the end it must be so again, and nothing have been counted wrongly."""
    cluster.settle()
    if balanced:
        cluster.balance()
    with cluster.reader() as reader:
        since = Since(cluster, reader)
        yield since
        cluster.settle()
        running = [node for node in cluster.nodes.values() if node.is_running]
        assert all(node.is_exact() for node in running)
        cluster.wait_until(lambda: cluster.is_read(reader), "the reader of all streams")


def said(record: Record, what: str, seconds: float) -> None:
    """Reports how long something took on this machine."""
    assert seconds < PATIENCE_SECONDS
    record(what, round(seconds, 1))
    sys.stdout.write(f"{what}: {seconds:.1f} s\n")


def test_streams_of_a_machine_that_dies_are_watched_by_others(cluster: Cluster, record_property: Record) -> None:
    with whole(cluster) as since:
        name = cluster.largest()
        node, others = cluster.nodes[name], cluster.running - {name}
        lost = cluster.streams_of(name)
        node.lose_power(cluster.switch)
        cluster.apply()
        said(record_property, "streams of a machine that died were heard again after", since.until_heard(lost, others))
        cluster.settle()
        assert since.connected() - {EXTRA} <= since.moved()
        assert lost <= since.moved()
        cluster.switch.plug(node.machine)
        node.start()
        cluster.settle()
        assert since.connected() - {EXTRA} <= since.moved()


def test_a_node_that_is_cut_off_from_the_head_loses_its_streams_in_the_eyes_of_readers(
    cluster: Cluster, record_property: Record
) -> None:
    with whole(cluster) as since:
        name = cluster.largest()
        node, others = cluster.nodes[name], cluster.running - {name}
        lost = cluster.streams_of(name)
        with node.cut_off(cluster.machine):
            cluster.apply()
            said(record_property, "streams of a node that was cut off were heard again after",
                 since.until_heard(lost, others))  # fmt: skip
            superseded = since.reader.events.superseded
            wait_until(lambda: since.reader.events.superseded > superseded + 10, "events of the node that is cut off")
            assert node.watched() - {EXTRA} >= lost
            cluster.wait_until(lambda: cluster.is_settled_on(others), "all streams on the other nodes")
        cluster.settle()
        said(record_property, "after the partition all was in order after", since.seconds())
        assert since.connected() - {EXTRA} <= since.moved()


def test_what_a_node_that_is_cut_off_from_readers_has_sent_comes_later(cluster: Cluster) -> None:
    with whole(cluster, balanced=True) as since:
        name = cluster.largest()
        node, streams = cluster.nodes[name], cluster.streams_of(name)
        with node.cut_off(cluster.switch, f"{node.daemon.port}:{node.daemon.port + 1}"):
            cluster.apply()
            time.sleep(10)
            since.begin_again()
            assert not any(since.first(stream, {name}) for stream in streams)
            assert cluster.nodes_up() == cluster.running
        since.until_heard(streams, {name})
        assert since.reader.counts["Gap"] == 0
        assert since.moved() - {EXTRA} == since.connected() - {EXTRA} == set()


def test_a_node_whose_cable_is_pulled_loses_its_streams(cluster: Cluster, record_property: Record) -> None:
    with whole(cluster) as since:
        name = cluster.largest()
        node, others = cluster.nodes[name], cluster.running - {name}
        lost = cluster.streams_of(name)
        cluster.switch.unplug(node.machine)
        said(record_property, "streams of a node without a cable were heard again after",
             since.until_heard(lost, others))  # fmt: skip
        cluster.apply()
        cluster.wait_until(lambda: cluster.is_settled_on(others), "all streams on the other nodes")
        assert since.connected() - {EXTRA} <= since.moved()
        cluster.switch.plug(node.machine)
        cluster.settle()


def test_a_daemon_that_is_killed_gets_its_streams_again(cluster: Cluster, record_property: Record) -> None:
    with whole(cluster) as since:
        name = cluster.largest()
        lost = cluster.streams_of(name)
        cluster.nodes[name].daemon.end(signal.SIGKILL)
        since.begin_again()
        said(record_property, "streams of a daemon that was killed were heard again after",
             since.until_heard(lost, set(cluster.nodes)))  # fmt: skip
        cluster.apply()
        cluster.settle()
        assert since.connected() - {EXTRA} <= since.moved() | lost


def test_a_raylet_that_stands_still_moves_nothing(cluster: Cluster) -> None:
    with whole(cluster, balanced=True) as since:
        node = cluster.nodes[cluster.largest()]
        raylet = node.agent.pid_of("raylet")
        os.kill(raylet, signal.SIGSTOP)
        cluster.apply()
        wait_until(lambda: since.seconds() > 15)
        os.kill(raylet, signal.SIGCONT)
        cluster.settle()
        assert since.moved() - {EXTRA} == since.connected() - {EXTRA} == set()


def test_a_head_that_loses_its_tables_moves_nothing(cluster: Cluster, record_property: Record) -> None:
    with whole(cluster, balanced=True) as since:
        owners = cluster.owners()
        os.kill(cluster.head.pid_of("gcs_server"), signal.SIGKILL)
        wait_until(lambda: cluster.head.process.poll() is not None, "the end of the head")
        with pytest.raises(ControlError, match="does not answer"):
            cluster.apply()
        cluster.has_extra = not cluster.has_extra
        cluster.settle()
        said(record_property, "after the tables of the head were lost all was in order after", since.seconds())
        cluster.apply()
        cluster.settle()
        kept = {name: node for name, node in cluster.owners().items() if name != EXTRA}
        assert kept == {name: node for name, node in owners.items() if name != EXTRA}
        assert since.connected() - {EXTRA} == since.moved() - {EXTRA} == set()


def test_a_head_at_another_port_that_has_the_file_alone_moves_nothing(
    cluster: Cluster, record_property: Record
) -> None:
    with whole(cluster, balanced=True) as since:
        owners = cluster.owners()
        cluster.replace_head()
        cluster.settle()
        said(record_property, "a head at another port was followed after", since.seconds())
        assert cluster.owners() == owners
        assert since.connected() == since.moved() == set()
        cluster.apply()
        cluster.settle()


def test_a_node_that_joins_late_gets_streams_and_one_that_drains_has_none(cluster: Cluster) -> None:
    with whole(cluster) as since:
        late = cluster.nodes["n4"]
        late.start()
        cluster.settle()
        cluster.apply()
        name = cluster.largest()
        assert "is being emptied" in cluster.run("drain", name)
        cluster.wait_until(lambda: name not in cluster.owners().values(), f"{name} without streams")
        cluster.wait_until(lambda: len(cluster.owners()) == len(cluster.wanted), "all streams")
        assert not cluster.nodes[name].watched()
        cluster.run("drain", name, "--undo")
        cluster.wait_until(late.watched, "streams on the node that has joined")
        cluster.run("drain", "n4")
        cluster.wait_until(lambda: not late.watched(), "the new node without streams")
        assert late.agent.stop() == 0
        late.is_running = False
        late.daemon.end()
        cluster.settle()
        assert since.connected() - {EXTRA} <= since.moved()


def test_a_clock_that_is_wrong_moves_nothing_and_hides_no_event(cluster: Cluster) -> None:
    with whole(cluster, balanced=True) as since:
        owners = cluster.owners()
        cluster.set_clock("n2", 5)
        cluster.apply()
        wait_until(lambda: since.seconds() > 10)
        assert {**owners, EXTRA: ""} == {**cluster.owners(), EXTRA: ""}
        assert since.connected() - {EXTRA} == set()
        for name in ("n2", "n1"):
            cluster.run("drain", name)
            cluster.wait_until(lambda name=name: not cluster.nodes[name].watched(), f"{name} without streams")
            cluster.wait_until(lambda: cluster.is_read(since.reader), "the reader of all streams")
            cluster.run("drain", name, "--undo")
        cluster.set_clock("n2", 0)
        cluster.settle()
        assert since.connected() - {EXTRA} <= since.moved()
