"""What an agent reports; how it renews and releases is tested with the reconciler."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from streamdet.cluster.agent import ANSWER_SECONDS, SLOW_SECONDS, Agent, Granted, Report, Reporter
from streamdet.errors import ConfigError, ControlError, Refusal, StreamdetError
from support.waiting import wait_until

ADDRESSES = {
    "events": "tcp://0.0.0.0:5555", "replay": "tcp://[::]:5556", "metrics": "http://0.0.0.0:9095/metrics",
    "control": ["/run/streamdet/control.sock"], "page": None,
}  # fmt: skip


def daemon(method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"version": "1", "addresses": ADDRESSES, "node": "n0", "newest_generation": 0, "claims": []}


@pytest.mark.parametrize(("host", "written"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "[2001:db8::7]")])
def test_addresses_are_those_by_which_others_reach_the_node(host: str, written: str) -> None:
    assert Agent(daemon, host).turn().addresses == {
        "events": f"tcp://{written}:5555", "replay": f"tcp://{written}:5556",
        "metrics": f"http://{written}:9095/metrics", "control": ["/run/streamdet/control.sock"], "page": None,
    }  # fmt: skip
    assert Agent(daemon).turn().addresses == ADDRESSES


def test_an_address_that_the_daemon_was_given_stays() -> None:
    def elsewhere(method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        return daemon(method, path, body) | {"addresses": {"events": "tcp://192.0.2.9:5555"}}

    assert Agent(elsewhere, "192.0.2.7").turn().addresses == {"events": "tcp://192.0.2.9:5555"}


def test_only_what_is_granted_is_renewed() -> None:
    sent: list[tuple[str, list[str]]] = []

    def follows(method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        renewed = [] if body is None or method != "PATCH" else [claim["id"] for claim in body["claims"]]
        if method in ("PUT", "PATCH"):
            sent.append((method, renewed or [path.rpartition("/")[2]]))
        return daemon(method, path, body) | {"renewed": renewed}

    agent = Agent(follows)
    a, b = Granted("a", 7, ({"name": "gate"},)), Granted("b", 8, ({"name": "yard"},))
    agent.hold([a, b])
    agent.turn()
    assert sent == [("PUT", ["a"]), ("PUT", ["b"])]
    sent.clear()
    agent.turn()
    assert sent == [("PATCH", ["a", "b"])]
    sent.clear()
    agent.hold([b])
    agent.turn()
    assert sent == [("PATCH", ["b"])]
    sent.clear()
    agent.hold([])
    agent.turn()
    agent.hold([a])
    agent.turn()
    assert sent == [("PUT", ["a"])]  # it was released meanwhile


class RefusingDaemon:
    """Answers everything but grants, as long as it has something against them."""

    def __init__(self) -> None:
        self.problem: StreamdetError | None = None
        self.agent = Agent(self.ask)
        self.agent.hold([Granted("group-1", 7, ({"name": "gate"}, {"name": "yard"}))])

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        if method == "PUT" and self.problem is not None:
            raise self.problem
        return daemon(method, path, body)


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (ConfigError(["streams[yard].url: is wrong", "streams[gate].url: too"]), "wrong; streams[gate].url: too"),
        (ControlError(Refusal.FAILED, "the streams cannot be changed now"), "the streams cannot be changed now"),
        (ControlError(Refusal.STALE, "generation 7 is stale"), "generation 7 is stale"),
    ],
    ids=["wrong", "failed", "stale"],
)
def test_a_grant_that_is_refused_is_one_line_of_the_log_until_it_is_followed(
    problem: StreamdetError, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refusing = RefusingDaemon()
    refusing.agent.turn()
    assert caplog.messages == []
    refusing.problem = problem
    for _ in range(3):
        refusing.agent.turn()
    (line,) = caplog.messages
    assert line.startswith("claim group-1 generation 7 for gate, yard is refused by the daemon: ")
    assert why in line
    refusing.problem = None
    for _ in range(2):
        refusing.agent.turn()
    assert caplog.messages[1:] == ["claim group-1 generation 7 is followed (2 grants refused since the last such line)"]


def test_a_daemon_that_cannot_be_asked_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusing = RefusingDaemon()
    refusing.problem = ControlError(Refusal.UNAVAILABLE, "the daemon at /run/c did not answer within 60 s")
    for _ in range(2):
        assert refusing.agent.turn().problem
    (line,) = caplog.messages
    assert line.startswith("grants cannot be renewed: the daemon at /run/c did not answer within 60 s")
    refusing.problem = None
    refusing.agent.turn()
    assert caplog.messages[1:] == ["the daemon answers again (1 turns failed since the last such line)"]


class SlowDaemon:
    """Answers at once, but a grant only as soon as it may."""

    def __init__(self) -> None:
        self.now = 100.0
        self.may_go_on = threading.Event()
        self.granted: list[str] = []
        self.health: dict[str, Any] = {"healthy": True, "ready": True, "problem": ""}
        self.reporter = Reporter(Agent(self.ask), self.ask_health, lambda: self.now)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        if method == "PUT":
            assert self.may_go_on.wait(60)
            self.granted.append(path.rpartition("/")[2])
        return daemon(method, path, body)

    def ask_health(self) -> dict[str, Any]:
        if not self.health:
            raise ControlError(Refusal.UNAVAILABLE, "it hangs")
        return self.health

    def report(self, *claims: str) -> Report:
        """Also checks that the head does not wait for long."""
        began = time.monotonic()
        report = self.reporter.report([Granted(claim, 7, ()) for claim in claims])
        assert time.monotonic() - began < 10 * ANSWER_SECONDS
        return report


@pytest.fixture
def slow() -> Iterator[SlowDaemon]:
    slow = SlowDaemon()
    yield slow
    slow.may_go_on.set()
    slow.reporter.close()


def test_a_slow_daemon_holds_up_no_report_and_the_report_says_how_slow_it_is(slow: SlowDaemon) -> None:
    assert (slow.report().node, slow.report().slow_seconds) == ("n0", 0)
    slow.now += 2
    assert (slow.report("a").node, slow.report("a").slow_seconds) == ("n0", 2)
    slow.now += 20
    assert slow.report("b").slow_seconds == 22
    slow.may_go_on.set()
    # What came meanwhile is granted, too.
    wait_until(lambda: slow.report("b").slow_seconds == 0 and "b" in slow.granted)


def test_a_daemon_that_is_slow_and_does_not_detect_is_reported_as_none(slow: SlowDaemon) -> None:
    slow.report()
    slow.report("a")
    slow.health["ready"] = False
    assert slow.report("a").problem.endswith("and does not detect: it starts, or ends")
    slow.health |= {"healthy": False, "problem": "inference ended"}
    assert slow.report("a").problem.endswith("and does not detect: inference ended")
    slow.health.clear()
    assert slow.report("a").problem == "it hangs"


def test_a_daemon_that_is_slow_for_ever_is_lost(slow: SlowDaemon) -> None:
    slow.report()
    slow.now += SLOW_SECONDS
    assert slow.report("a").problem == ""
    slow.now += 1
    assert slow.report("a").problem == "the daemon has not finished a request for 61 s"


def test_a_daemon_that_is_slow_from_the_start_is_none_yet(slow: SlowDaemon) -> None:
    assert "has not finished a request" in slow.report("a").problem
