"""The gateway of a cluster, for readers in other languages: real publishers, a real head's server, plain ZeroMQ."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from click.testing import CliRunner

from streamdet import __version__
from streamdet.cli.cluster import command
from streamdet.client.head import HeadAddress
from streamdet.cluster.agent import Report
from streamdet.cluster.gateway import Gateway
from streamdet.cluster.reconciler import Reconciler
from streamdet.config import PublisherConfig, StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.errors import StreamdetError
from streamdet.security.curve import allow, client_keys, generate
from streamdet.types import Owner
from support.cluster_head import HeadServer
from support.publishing import PERSON, frame_of, metrics_of, publisher_at
from support.waiting import wait_until

Json = dict[str, Any]


class Cluster:
    """Two nodes, and what their head says."""

    def __init__(self, *publishers: Publisher) -> None:
        self.reconciler = Reconciler()
        self.nodes = dict(zip(("one", "other"), publishers, strict=False))
        for name, publisher in self.nodes.items():
            report = Report(name, __version__, addresses={"events": publisher.endpoint})
            self.reconciler.report(report, name, 10.0)
        self.seq = 0

    def owns(self, node: str, generation: int) -> None:
        config = StreamConfig(name="gate", url="rtsp://192.0.2.5/x")
        self.nodes[node].set_stream(config, Owner(node, generation))

    def sees(self, node: str) -> None:
        self.seq += 1
        self.nodes[node].put_detections(frame_of("gate", self.seq), [PERSON])


@contextmanager
def gateway(cluster: Cluster, config: PublisherConfig, *keys: Path) -> Iterator[Gateway]:
    with HeadServer(cluster.reconciler.status) as head:
        running = Gateway(HeadAddress.parse(head.address), config, *keys)
        try:
            with running:
                yield running
            assert running.error is None
        finally:
            running.close()


@contextmanager
def subscriber(endpoint: str, prefix: str = "detections/", keys: Any = None) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        if keys is not None:
            keys.apply_to(socket)
        socket.subscribe(prefix)
        socket.connect(endpoint)
        yield socket


def received(socket: zmq.Socket[bytes], milliseconds: int = 50) -> list[Json]:
    found = []
    while socket.poll(milliseconds):
        topic, payload = socket.recv_multipart()
        assert topic == b"detections/gate/"
        found.append(json.loads(payload))
    return found


def until_seen(cluster: Cluster, node: str, socket: zmq.Socket[bytes]) -> None:
    """Waits until the subscription has reached a node."""

    def is_seen() -> bool:
        cluster.sees(node)
        return any(event["node"] == node for event in received(socket))

    wait_until(is_seen)


def test_readers_get_each_stream_from_its_owner() -> None:
    with publisher_at(metrics=metrics_of("gate")) as one, publisher_at(metrics=metrics_of("gate")) as other:
        cluster = Cluster(one, other)
        cluster.owns("one", 5)
        with (
            gateway(cluster, PublisherConfig(endpoint="tcp://127.0.0.1:0")) as running,
            subscriber(running.endpoint) as socket,
        ):
            until_seen(cluster, "one", socket)
            cluster.owns("other", 9)
            until_seen(cluster, "other", socket)
            received(socket, 200)
            before = running.superseded
            cluster.sees("one")
            wait_until(lambda: running.superseded == before + 1)
            assert received(socket) == []
            cluster.sees("other")
            wait_until(lambda: [event["node"] for event in received(socket)] == ["other"])


def test_only_what_someone_wants_is_passed_on() -> None:
    with publisher_at(metrics=metrics_of("gate")) as one:
        cluster = Cluster(one)
        cluster.owns("one", 5)
        with gateway(cluster, PublisherConfig(endpoint="tcp://127.0.0.1:0")) as running:
            with subscriber(running.endpoint) as socket:
                until_seen(cluster, "one", socket)
            wait_until(lambda: len(one._sockets._subscriptions) == 0, "the node knows that no one is subscribed")
            passed = running.passed
            with subscriber(running.endpoint, "state/") as socket:
                wait_until(lambda: len(one._sockets._subscriptions) == 1)
                cluster.sees("one")
                assert received(socket, 200) == []
            assert running.passed == passed


def test_keys_are_asked_for_on_both_sides(tmp_path: Path) -> None:
    node_public, node_secret = generate(tmp_path, "node", "server")
    own_public, own_secret = generate(tmp_path, "own", "server")
    let_in, own_client = generate(tmp_path, "gateway", "client")
    alice_public, alice = generate(tmp_path, "alice", "client")
    allow(let_in, tmp_path / "of-node")
    allow(alice_public, tmp_path / "of-gateway")
    config = PublisherConfig(
        endpoint="tcp://127.0.0.1:0", curve_server_key_file=str(node_secret),
        curve_allowed_clients_directory=str(tmp_path / "of-node"),
    )  # fmt: skip
    with Publisher(config, "epoch", metrics_of("gate")) as one:
        cluster = Cluster(one)
        cluster.owns("one", 5)
        outside = PublisherConfig(
            endpoint="tcp://127.0.0.1:0", curve_server_key_file=str(own_secret),
            curve_allowed_clients_directory=str(tmp_path / "of-gateway"),
        )  # fmt: skip
        with gateway(cluster, outside, node_public, own_client) as running:
            keys = client_keys(own_public, alice)
            with subscriber(running.endpoint, keys=keys) as socket, subscriber(running.endpoint) as stranger:
                until_seen(cluster, "one", socket)
                assert received(stranger) == []


def test_what_is_no_event_is_left_out() -> None:
    running = Gateway(HeadAddress.parse("localhost"), PublisherConfig(endpoint="tcp://127.0.0.1:0"))
    for parts in ([b"detections/gate/"], [b"detections/gate/", b"["], [b"detections/gate/", b"[]"]):
        assert not running._is_owners(parts)
    assert running.unreadable == 3
    running.close()


def test_the_command_runs_until_it_is_stopped() -> None:
    arguments = [
        sys.executable,
        "-m",
        "streamdet",
        "cluster",
        "gateway",
        "127.0.0.1:9",
        "--listen",
        "tcp://127.0.0.1:0",
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"events of the cluster of http://127\.0\.0\.1:9 are at tcp://127\.0\.0\.1:\d+\n", line)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["head", "--listen", "tcp://0.0.0.0:0"], "other machines could connect there; give --own-key and --clients"),
        (["head", "--own-key", "x"], "go together"),
        (["a b"], "is no head of a cluster"),
        (["head", "--listen", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_one_clear_line(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(command, ["gateway", *arguments])
    assert done.exit_code != 0
    assert complaint in done.output + str(done.exception)
    assert isinstance(done.exception, SystemExit | StreamdetError)
