"""A cluster in simulated time: real reconciler, agents and claims; the network and streams of daemons are models."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import pytest

from streamdet import __version__
from streamdet.cluster.agent import LEASE_SECONDS, RENEW_SECONDS, Agent, Report
from streamdet.cluster.cameras import Camera
from streamdet.cluster.reconciler import LOST_SECONDS, SETTLE_SECONDS, Reconciler
from streamdet.errors import ConfigError, ControlError, Refusal
from streamdet.service.claims import Claims, Grant

Json = dict[str, Any]


class Daemon:
    """A daemon's control API over its real claims; counts the connections that its streams made."""

    def __init__(self, node: str, clock: Any) -> None:
        self.node = node
        self.claims = Claims(clock)
        self.is_running = True
        self.is_full = False
        self.version = __version__
        self.wrong: set[str] = set()
        self.running: dict[str, Mapping[str, Any]] = {}
        self.connections: dict[str, int] = {}
        self.requests: list[str] = []
        self._clock = clock

    def restart(self) -> None:
        self.claims, self.running = Claims(self._clock), {}

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Json:
        if not self.is_running:
            raise ControlError(Refusal.UNAVAILABLE, "no process listens")
        self.requests.append(f"{method} {path}")
        claim_id = re.sub(r"/v1/claims/([^?]+).*", r"\1", path)
        if method == "PUT" and body is not None:
            streams = {stream["name"]: stream for stream in body["streams"]}
            grant = Grant(claim_id, body["generation"], streams, body["lease_seconds"])
            after = self.claims.after_grant(grant)
            if self.is_full:
                raise ControlError(Refusal.FAILED, "the streams cannot be changed now, and run as before")
            if self.wrong & streams.keys():
                raise ConfigError([f"streams[{name}].url: is wrong" for name in sorted(self.wrong & streams.keys())])
            self._hold(after)
        renewed: list[str] = []
        if method == "PATCH" and body is not None:
            grants = [Grant(one["id"], one["generation"], lease_seconds=one["lease_seconds"]) for one in body["claims"]]
            renewed = self.claims.renew_known(grants)
        elif method == "DELETE":
            self._hold(self.claims.after_release(claim_id, int(path.partition("=")[2])))
        held = self.claims.held.values()
        return {
            "node": self.node,
            "newest_generation": self.claims.newest_generation,
            "version": self.version,
            "addresses": {},
            "claims": [
                {
                    "id": one.grant.claim_id,
                    "generation": one.grant.generation,
                    "streams": list(one.grant.streams),
                    "states": dict.fromkeys(one.grant.streams, "up"),
                }
                for one in held
            ],
            "renewed": renewed,
        }

    def _hold(self, claims: Any) -> None:
        self.claims.hold(claims)
        wanted = {name: keys for claim in claims.values() for name, keys in claim.grant.streams.items()}
        for name, keys in wanted.items():
            if self.running.get(name) != keys:
                self.connections[name] = self.connections.get(name, 0) + 1
        self.running = wanted

    def generations(self) -> dict[str, int]:
        return {
            name: claim.grant.generation for claim in self.claims.held.values() for name in claim.grant.streams
        } if self.is_running else {}  # fmt: skip


class Cluster:
    """Daemons with their agents, a head, and a clock that only the test moves."""

    def __init__(self, nodes: int, streams: int, capacity_fps: float = 100.0) -> None:
        self.now, self.wall_ahead = 1000.0, 1.7e9
        self.capacity_fps = capacity_fps
        self.daemons: dict[str, Daemon] = {}
        self.agents: dict[str, Agent] = {}
        self.cut_off: set[str] = set()
        self.cameras = {f"s{number:02}": camera(f"s{number:02}") for number in range(streams)}
        for number in range(nodes):
            self.join(f"n{number}")
        self.replace_head()
        self.run(SETTLE_SECONDS + 5)

    def join(self, name: str) -> None:
        self.daemons[name] = Daemon(name, lambda: self.now)
        self.agents[name] = Agent(self.daemons[name].ask)

    def replace_head(self) -> None:
        self.head = Reconciler(lambda: self.now, lambda: self.now + self.wall_ahead)
        self.head.apply(self.cameras)

    def apply(self, **changes: Camera | None) -> None:
        self.cameras = {name: one for name, one in {**self.cameras, **changes}.items() if one is not None}
        self.head.apply(self.cameras)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += RENEW_SECONDS / 2
            reports = {name: agent.turn() for name, agent in self.agents.items()}
            for name, report in reports.items():
                if name not in self.cut_off:
                    self.head.report(report, name, self.capacity_fps)
            for name, grants in self.head.step().items():
                if name not in self.cut_off and name in self.agents:
                    self.agents[name].hold(grants)

    def owners(self) -> dict[str, str]:
        """Who owns each stream in the eyes of a reader of all nodes: the highest generation."""
        newest: dict[str, tuple[int, str]] = {}
        for name, daemon in self.daemons.items():
            for stream, generation in daemon.generations().items():
                if stream in newest:
                    assert newest[stream][0] != generation, "two visible owners"
                newest[stream] = max(newest.get(stream, (0, "")), (generation, name))
        return {stream: name for stream, (_, name) in newest.items()}

    def connections(self) -> dict[str, int]:
        return {stream: count for daemon in self.daemons.values() for stream, count in daemon.connections.items()}

    def assert_settled(self) -> None:
        """Every stream has one owner that can be reached, and nothing else runs there."""
        owners = self.owners()
        assert owners.keys() == self.cameras.keys()
        for name, daemon in self.daemons.items():
            if name not in self.cut_off and daemon.is_running:
                assert {stream for stream, owner in owners.items() if owner == name} == daemon.running.keys()


def camera(name: str, fps: float = 5.0, **keys: object) -> Camera:
    return Camera(fps, {"name": name, "url": f"rtsp://192.0.2.1/{name}", "max_fps": fps, **keys})


def test_every_stream_is_watched_once() -> None:
    cluster = Cluster(3, 24)
    cluster.assert_settled()
    assert sorted(len(daemon.running) for daemon in cluster.daemons.values()) == [8, 8, 8]
    before = cluster.connections()
    cluster.run(120)
    assert cluster.connections() == before
    assert set(before.values()) == {1}


def test_streams_of_a_dead_node_are_watched_again_within_ten_seconds() -> None:
    cluster = Cluster(3, 24)
    before = cluster.connections()
    stay = {stream for stream, owner in cluster.owners().items() if owner != "n1"}
    del cluster.daemons["n1"], cluster.agents["n1"]
    cluster.run(9)
    cluster.assert_settled()
    assert {stream: cluster.connections()[stream] for stream in stay} == {stream: before[stream] for stream in stay}
    assert cluster.head.moves["node_lost"] > 0


def test_a_node_that_is_cut_off_watches_on_and_gives_up_what_it_lost_when_it_is_back() -> None:
    cluster = Cluster(3, 24)
    lost = set(cluster.daemons["n1"].running)
    cluster.cut_off.add("n1")
    cluster.run(9)
    cluster.assert_settled()
    assert cluster.daemons["n1"].running.keys() == lost
    assert "n1" not in cluster.owners().values()
    cluster.cut_off.clear()
    cluster.run(9)
    cluster.assert_settled()
    assert not lost & cluster.daemons["n1"].running.keys()


def test_a_head_that_begins_again_moves_nothing_and_needs_no_right_clock() -> None:
    cluster = Cluster(3, 24)
    owners, connections = cluster.owners(), cluster.connections()
    cluster.wall_ahead -= 5.0
    cluster.replace_head()
    cluster.run(60)
    cluster.assert_settled()
    assert (cluster.owners(), cluster.connections()) == (owners, connections)


def test_a_head_waits_for_nodes_before_it_places_what_they_may_watch() -> None:
    cluster = Cluster(3, 24)
    connections = cluster.connections()
    cluster.replace_head()
    cluster.cut_off = {"n0", "n1"}
    cluster.run(10)
    cluster.cut_off = set()
    cluster.run(60)
    assert cluster.connections() == connections


def test_a_head_that_stood_still_blames_no_node_for_it() -> None:
    cluster = Cluster(3, 24)
    owners = cluster.owners()
    cluster.cut_off.add("n1")  # its answer is on its way
    cluster.run(RENEW_SECONDS)
    cluster.now += 20
    cluster.run(1)
    cluster.cut_off.clear()
    cluster.run(60)
    assert cluster.owners() == owners
    assert not cluster.head.moves
    cluster.cut_off.add("n1")
    cluster.now += 20
    cluster.run(RENEW_SECONDS + LOST_SECONDS + 2)
    cluster.assert_settled()
    assert "n1" not in cluster.owners().values()  # one that is gone is lost all the same


@pytest.mark.parametrize("seconds", [2.5, 3.4, 5.0, 9.0])
def test_a_short_standstill_of_the_head_costs_no_node_its_streams(seconds: float) -> None:
    now = [100.0]
    head = Reconciler(lambda: now[0], lambda: now[0], settle_seconds=0.0)
    head.apply({"a": camera("a")})
    head.report(Report("n0", __version__), "m0", 10.0)
    head.step()
    now[0] += RENEW_SECONDS - 0.1  # a step between two rounds, such as of an `apply`
    assert head.step()["n0"]
    now[0] += seconds
    assert head.step()["n0"]


def test_while_the_head_is_gone_streams_run_on_and_edits_wait() -> None:
    cluster = Cluster(3, 24)
    connections, running = cluster.connections(), {name: set(one.running) for name, one in cluster.daemons.items()}
    for name in cluster.agents:  # an agent ends some time after its head
        cluster.agents[name] = Agent(cluster.daemons[name].ask)
    cluster.now += 3600
    assert {name: set(one.running) for name, one in cluster.daemons.items()} == running
    cluster.replace_head()
    cluster.run(60)
    assert cluster.connections() == connections


def test_a_daemon_that_was_killed_gets_its_streams_again() -> None:
    cluster = Cluster(3, 24)
    before = cluster.owners()
    cluster.daemons["n1"].restart()
    cluster.run(RENEW_SECONDS * 2)
    cluster.assert_settled()
    assert cluster.owners() == before


def test_however_many_claims_a_node_has_they_are_renewed_in_one_request() -> None:
    cluster = Cluster(1, 24, capacity_fps=1000.0)
    daemon = cluster.daemons["n0"]
    assert len(daemon.claims.held) == 3
    daemon.requests.clear()
    cluster.run(RENEW_SECONDS)
    assert daemon.requests == ["GET /v1/about", "PATCH /v1/claims"] * 2
    assert {daemon.claims.lease_seconds_left(claim) for claim in daemon.claims.held.values()} == {LEASE_SECONDS}


def test_a_grant_that_is_refused_lets_no_lease_of_its_claim_end() -> None:
    cluster = Cluster(1, 4)
    daemon = cluster.daemons["n0"]
    daemon.is_full = True
    cluster.apply(new=camera("new"))
    cluster.run(4 * LEASE_SECONDS)
    assert daemon.claims.newly_over() == []


def test_streams_leave_a_daemon_that_does_not_come_back() -> None:
    cluster = Cluster(3, 24)
    cluster.daemons["n1"].is_running = False
    cluster.run(LOST_SECONDS + 2 * RENEW_SECONDS)
    cluster.assert_settled()
    cluster.daemons["n1"].restart()
    cluster.daemons["n1"].is_running = True
    cluster.run(120)
    cluster.assert_settled()
    assert cluster.daemons["n1"].running  # it has got a group again


def test_a_node_whose_daemon_is_slow_keeps_its_streams_and_the_status_says_so() -> None:
    head = Reconciler(lambda: 0.0, lambda: 0.0, settle_seconds=0.0)
    head.apply({"a": camera("a")})
    head.report(Report("n0", __version__, slow_seconds=12.5), "m0", 10.0)
    assert [grant.claim_id for grant in head.step()["n0"]]
    (node,) = head.status()["nodes"]
    assert (node["state"], node["slow_seconds"]) == ("up", 12.5)


def test_a_draining_node_hands_over_and_takes_streams_again_later() -> None:
    cluster = Cluster(3, 24)
    cluster.head.drain("n1")
    cluster.run(5)
    cluster.assert_settled()
    assert not cluster.daemons["n1"].running
    cluster.head.drain("n1", is_draining=False)
    cluster.run(120)
    assert cluster.daemons["n1"].running


def test_an_edit_touches_what_it_is_about() -> None:
    cluster = Cluster(3, 24)
    before = cluster.connections()
    cluster.apply(s03=camera("s03", stall_seconds=7), s04=None, new=camera("new"))
    cluster.run(5)
    cluster.assert_settled()
    after = cluster.connections()
    changed = {stream for stream in before if after[stream] != before[stream]}
    assert changed == {"s03"}
    assert after["new"] == 1


def test_a_stream_that_a_node_refuses_takes_nothing_from_its_group() -> None:
    cluster = Cluster(1, 5)
    cluster.daemons["n0"].wrong = {"bad"}
    before = cluster.connections()
    cluster.apply(bad=camera("bad"))
    cluster.run(60)
    assert cluster.connections() == before
    assert cluster.daemons["n0"].running.keys() == before.keys()
    (node,) = cluster.head.status()["nodes"]
    assert list(node["refused"].values()) == ["streams[bad].url: is wrong"]
    assert cluster.daemons["n0"].claims.newly_over() == []
    cluster.daemons["n0"].wrong = set()
    cluster.run(4)
    cluster.assert_settled()


def test_a_clock_that_was_set_back_by_an_hour_stops_no_grant() -> None:
    cluster = Cluster(2, 16)
    cluster.head.drain("n1")
    cluster.run(5)
    cluster.wall_ahead -= 3600.0
    cluster.replace_head()
    cluster.run(SETTLE_SECONDS + 120)
    cluster.assert_settled()
    assert cluster.daemons["n1"].running  # it has watched these streams before, by generations of the earlier clock


def test_a_head_that_did_not_know_a_newer_grant_makes_another() -> None:
    cluster = Cluster(1, 4)
    daemon = cluster.daemons["n0"]
    (claim,) = daemon.claims.held.values()
    newer = Grant(claim.grant.claim_id, claim.grant.generation + 10**9, claim.grant.streams, 6.0)
    daemon.claims.hold(daemon.claims.after_grant(newer))
    cluster.run(5)
    (claim,) = daemon.claims.held.values()
    assert claim.grant.generation > newer.generation
    cluster.assert_settled()


def test_a_node_that_has_no_thread_left_is_not_lost() -> None:
    cluster = Cluster(2, 8)
    cluster.daemons["n0"].is_full = True
    before = cluster.connections()
    cluster.apply(new=camera("new"))
    cluster.run(60)
    assert cluster.head.nodes == ["n0", "n1"]
    assert {stream: cluster.connections()[stream] for stream in before} == before


def test_a_node_of_another_version_or_of_a_taken_name_gets_nothing() -> None:
    cluster = Cluster(2, 8)
    cluster.join("old")
    cluster.daemons["old"].version = "0.0.9"
    cluster.join("twin")
    cluster.daemons["twin"].node = "n1"
    cluster.run(60)
    assert cluster.head.nodes == ["n0", "n1"]
    assert cluster.head.status()["problems"] == [
        "another machine calls itself n1, too; give it another [node] name",
        f"old runs streamdet 0.0.9, and the head {__version__}; upgrade one of them",
    ]
    assert not cluster.daemons["old"].running
    assert not cluster.daemons["twin"].running


def test_before_there_are_streams_nothing_is_released() -> None:
    head = Reconciler(lambda: 0.0, lambda: 0.0)
    claim = {"id": "c", "generation": 5, "streams": ["a"]}
    head.report(Report("n0", __version__, (claim,), 5), "m0", 10.0)
    assert head.step() == {}
    head.apply({"a": camera("a")})
    (granted,) = head.step()["n0"]
    assert (granted.claim_id, granted.generation) == ("c", 6)


def test_the_status_says_why_a_stream_is_not_placed() -> None:
    cluster = Cluster(1, 2, capacity_fps=12.0)
    cluster.apply(huge=camera("huge", 30.0))
    cluster.run(3)
    streams = {stream["name"]: stream for stream in cluster.head.status()["streams"]}
    assert streams["huge"]["state"] == "unplaced"
    assert streams["huge"]["reason"] == "needs 30 frames per second, and the largest node can do 12"
    assert streams["huge"]["blind_seconds"] == 3.0
    assert (streams["s00"]["state"], streams["s00"]["node"], streams["s00"]["reason"]) == ("up", "n0", "")
    assert cluster.head.plan({**cluster.cameras, "big": camera("big", 5.0)}).unplaced.keys() == {"huge", "big"}
    assert cluster.head.status()["nodes"][0]["load_fps"] == 10.0


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_faults_heals(seed: int) -> None:  # noqa: C901 - a case for each fault
    chance = random.Random(seed)  # noqa: S311 - no secret
    cluster = Cluster(4, 24)
    for number in range(15):
        name = chance.choice(list(cluster.daemons))
        match chance.randrange(8):
            case 0:
                cluster.cut_off.add(name)
            case 1:
                cluster.cut_off.discard(name)
            case 2:
                cluster.daemons[name].restart()
            case 3:
                cluster.daemons[name].is_running = not cluster.daemons[name].is_running
            case 4:
                cluster.wall_ahead += chance.choice([-5.0, 5.0])
                cluster.replace_head()
            case 5:
                cluster.head.drain(name, is_draining=chance.random() < 0.5)
            case 6:
                cluster.agents[name] = Agent(cluster.daemons[name].ask)
            case 7:
                cluster.apply(**{f"s{chance.randrange(24):02}": None, f"t{number}": camera(f"t{number}")})
        cluster.run(chance.choice([1, 3, 10, 40]))
        cluster.owners()  # never two visible owners
    cluster.cut_off.clear()
    for name, daemon in cluster.daemons.items():
        daemon.is_running = True
        cluster.head.drain(name, is_draining=False)
    cluster.run(SETTLE_SECONDS + 30)
    cluster.assert_settled()
