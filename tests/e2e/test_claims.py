"""Claims of a cluster on a whole daemon: real captures, events and sockets; only the detector is a stand-in."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from streamdet import DetectionEvent, Subscription, subscribe
from streamdet.assets import sample_clip
from streamdet.cli.status import command as status_command
from streamdet.cli.streams import command as streams_command
from streamdet.client.control import ask
from streamdet.cluster.agent import ANSWER_SECONDS, Agent, Granted, Reporter
from streamdet.monitoring.ledger import Ledger
from streamdet.service import live_config
from streamdet.service.claims import Claims
from streamdet.service.control.operations import Operation
from streamdet.service.housekeeping import Housekeeping
from streamdet.types import Owner
from support.control_api import Api
from support.waiting import wait_until

SECRET = "pl4nted-Secret"  # noqa: S105 - a planted one
NODE = '[node]\nname = "hall-2"\n'


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with Api(tmp_path, more=NODE) as api:
        yield api


def clip(name: str, **keys: object) -> dict[str, object]:
    return {"name": name, "url": str(sample_clip()), "loop": True, **keys}


def grant(api: Api, claim: str, generation: int, *streams: object, lease_seconds: float = 60) -> tuple[int, Any]:
    body = {"streams": list(streams), "generation": generation, "lease_seconds": lease_seconds}
    return api.request("PUT", f"/v1/claims/{claim}", body)


def detections(events: Subscription, stream: str, count: int = 1) -> list[DetectionEvent]:
    found: list[DetectionEvent] = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline
        event = events.receive(1.0)
        if isinstance(event, DetectionEvent) and event.stream == stream:
            found.append(event)
    return found


def subscribed(api: Api, *streams: str) -> Subscription:
    assert api.daemon.addresses is not None
    return subscribe(api.daemon.addresses.events, streams=streams)


def captures(api: Api) -> dict[str, object]:
    assert api.daemon._streams is not None
    return dict(api.daemon._streams._captures)


def assert_ledger_is_exact(api: Api) -> None:
    for name, counts in api.daemon.ledger.snapshot().items():
        assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.in_flight, name


def test_events_of_a_claimed_stream_say_who_owns_it(api: Api) -> None:
    status, answer = grant(api, "group-1", 7, clip("gate"), clip("yard"))
    assert (status, answer["streams"]["added"]) == (200, ["gate", "yard"])
    assert answer["claim"] | {"lease_seconds_left": 0} == {
        "id": "group-1", "generation": 7, "streams": ["gate", "yard"], "lease_seconds": 60.0, "lease_seconds_left": 0,
        "states": {"gate": "connecting", "yard": "connecting"},
    }  # fmt: skip
    with subscribed(api, "gate", "east") as events:
        assert detections(events, "gate")[0].owner == Owner("hall-2", 7)
        assert detections(events, "east")[0].owner is None
        before = captures(api)["gate"]
        assert grant(api, "group-1", 8, clip("gate"))[1]["streams"] == {
            "added": [], "reconnected": [], "updated": ["gate"], "removed": ["yard"],
        }  # fmt: skip
        wait_until(lambda: detections(events, "gate")[0].owner == Owner("hall-2", 8))
    assert captures(api)["gate"] is before
    shown = api.streams()
    assert {name: (one["origin"], one["claim"]) for name, one in shown.items()} == {
        "east": ("file", None), "west": ("file", None), "gate": ("cluster", "group-1"),
    }  # fmt: skip
    assert_ledger_is_exact(api)


def test_the_state_of_a_stream_follows_its_owner_at_once(api: Api) -> None:
    grant(api, "group-1", 7, clip("gate"))
    wait_until(lambda: api.streams()["gate"]["state"] == "up")
    assert api.daemon.addresses is not None
    with subscribe(api.daemon.addresses.events, streams=["gate"], kinds=["state"]) as events:
        first = events.receive(10)
        assert first is not None
        grant(api, "group-1", 8, clip("gate"))
        wait_until(lambda: (event := events.receive(1)) is not None and event.owner == Owner("hall-2", 8))  # type: ignore[union-attr]


def test_a_renewal_changes_nothing_and_is_not_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    grant(api, "group-1", 7, clip("gate"))
    before = captures(api)
    wait_until(lambda: "asked for claims.set group-1 generation 7 for gate: done" in caplog.text)
    caplog.clear()
    for _ in range(3):
        status, answer = grant(api, "group-1", 7, clip("gate"))
        assert (status, answer["streams"]["added"], answer["claim"]["streams"]) == (200, [], ["gate"])
    assert captures(api) == before
    assert "claims.set" not in caplog.text


def renew(api: Api, *claims: tuple[str, int], lease_seconds: float = 60) -> tuple[int, Any]:
    renewals = [{"id": name, "generation": number, "lease_seconds": lease_seconds} for name, number in claims]
    return api.request("PATCH", "/v1/claims", {"claims": renewals})


def test_many_claims_are_renewed_in_one_request_that_changes_nothing(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    grant(api, "group-1", 7, clip("gate"), clip("yard"), lease_seconds=1)
    grant(api, "group-2", 8, clip("roof"), lease_seconds=1)
    before = captures(api)
    wait_until(lambda: 'streamdet_claims{lease="over"} 2.0' in metrics_page(api))
    caplog.clear()
    status, answer = renew(api, ("group-1", 7), ("group-2", 8), ("group-3", 8))
    assert (status, answer["renewed"]) == (200, ["group-1", "group-2"])
    assert [(claim["id"], claim["streams"]) for claim in answer["claims"]] == [
        ("group-1", ["gate", "yard"]), ("group-2", ["roof"]),
    ]  # fmt: skip
    assert all(59 < claim["lease_seconds_left"] <= 60 for claim in answer["claims"])
    wait_until(lambda: 'streamdet_claims{lease="holds"} 2.0' in metrics_page(api))
    wait_until(lambda: {**renew(api)[1]["claims"][0]["states"]} == {"gate": "up", "yard": "up"})
    assert captures(api) == before
    assert "claims.renew" not in caplog.text
    # Streams that a newer grant has taken over, another generation: nothing that was not granted is renewed.
    grant(api, "group-4", 9, clip("yard"))
    assert renew(api, ("group-1", 7), ("group-2", 7), ("group-4", 9))[1]["renewed"] == ["group-4"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, '"claims" must be a list of 1000 claims at most'),
        ({"claims": {}}, '"claims" must be a list'),
        ({"claims": [{}] * 1001}, '"claims" must be a list'),
        ({"claims": ["a"]}, 'each of "claims" must be an object'),
        ({"claims": [{"id": "A", "generation": 1, "lease_seconds": 6}]}, "the id of a claim must be"),
        ({"claims": [{"generation": 1, "lease_seconds": 6}]}, "the id of a claim must be"),
        ({"claims": [{"id": "a", "generation": 0, "lease_seconds": 6}]}, '"generation" must be'),
        ({"claims": [{"id": "a", "generation": 1}]}, '"lease_seconds" must be'),
        ({"claims": [{"id": "a", "generation": 1, "lease_seconds": 6}] * 2}, "has a twice"),
        ({"claims": [{"id": "a", "generation": 1, "lease_seconds": 6, "streams": []}]}, '"streams" is not known'),
        ({"claims": [], "node": "x"}, '"node" is not known'),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_renews_no_claim_is_one_clear_line(api: Api, body: object, complaint: str) -> None:
    status, answer = api.request("PATCH", "/v1/claims", body)
    assert (status, answer["code"]) == (400, "bad_request")
    assert complaint in answer["detail"]
    assert "\n" not in answer["detail"]


def test_a_renewal_costs_the_same_however_many_streams_there_are(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    grant(api, "group-1", 7, clip("gate"))
    calls: Counter[str] = Counter()

    def count(owner: object, name: str) -> None:
        called = getattr(owner, name)

        def counted(*args: object, **named: object) -> object:
            calls[name] += 1
            return called(*args, **named)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in (
        (Housekeeping, "beat"), (Claims, "hold"), (Claims, "newly_over"), (live_config, "read_stream"),
        (Ledger, "snapshot"),
    ):  # fmt: skip
        count(owner, name)
    began = time.monotonic()
    for _ in range(50):
        assert grant(api, "group-1", 7, clip("gate"))[0] == 200
    beats = time.monotonic() - began + 2  # as many as without renewals: one in a second
    assert calls["beat"] <= beats
    assert calls["newly_over"] <= beats
    assert calls["hold"] == calls["read_stream"] == 0
    # Another claim: what is watched already is not read again.
    grant(api, "group-2", 8, clip("yard"))
    assert calls["read_stream"] == 1
    calls.clear()
    began = time.monotonic()
    for _ in range(5):
        assert set(api.streams()) == {"east", "west", "gate", "yard"}
    # One for the rates of all streams; housekeeping takes two more in a second.
    assert calls["snapshot"] <= 5 + 2 * (time.monotonic() - began + 2)


def test_a_daemon_that_was_busy_stops_nothing_for_that_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with Api(tmp_path, more=NODE + 'on_lost_head = "stop"\n') as api:
        grant(api, "group-1", 7, clip("gate"), lease_seconds=5)
        before = captures(api)["gate"]
        # A request that takes longer than the lease, as of a camera that hangs; renewals wait behind it.
        claims, release = api.daemon._in_force.claims, api.daemon._in_force.release

        def slow(claim_id: str, generation: int | None = None) -> object:
            wait_until(lambda: claims.is_over(claims.held["group-1"]))
            return release(claim_id, generation)

        monkeypatch.setattr(api.daemon._in_force, "release", slow)
        assert api.request("DELETE", "/v1/claims/other")[0] == 404
        assert api.request("GET", "/v1/claims")[1]["claims"][0]["lease_seconds_left"] > 0
        assert captures(api)["gate"] is before
        wait_until(lambda: "gate" not in api.streams())  # no one renews it


def test_a_change_of_one_stream_leaves_the_others_connected(api: Api) -> None:
    grant(api, "group-1", 7, clip("gate"), clip("yard"), clip("hall"))
    before = captures(api)
    answer = grant(api, "group-1", 8, clip("gate"), clip("yard", stall_seconds=7), clip("roof"))[1]
    assert answer["streams"] == {
        "added": ["roof"], "reconnected": ["yard"], "updated": ["gate"], "removed": ["hall"],
    }  # fmt: skip
    after = captures(api)
    assert after["gate"] is before["gate"]
    assert after["east"] is before["east"]
    assert after["yard"] is not before["yard"]
    assert api.request("DELETE", "/v1/claims/group-1")[1]["streams"]["removed"] == ["gate", "yard", "roof"]
    assert set(api.streams()) == {"east", "west"}
    assert api.request("GET", "/v1/claims")[1] == {"node": "hall-2", "newest_generation": 8, "claims": []}
    assert_ledger_is_exact(api)


def test_a_stale_grant_is_refused_and_changes_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    grant(api, "group-1", 7, clip("gate"))
    before = captures(api)
    status, answer = grant(api, "group-1", 6, clip("gate"))
    assert (status, answer["code"]) == (409, "stale")
    assert answer["problems"] == ["claim group-1: generation 6 is stale: gate was granted with generation 7 since"]
    assert api.request("DELETE", "/v1/claims/group-1?generation=6")[0] == 409
    assert api.request("DELETE", "/v1/claims/other")[0] == 404
    assert captures(api) == before
    assert any("claims.set group-1 generation 6 for gate: refused" in text for text in caplog.messages)
    assert api.request("DELETE", "/v1/claims/group-1?generation=7")[0] == 200


def test_a_newer_claim_takes_a_stream_over_without_a_new_connection(api: Api) -> None:
    grant(api, "old", 7, clip("gate"), clip("yard"))
    before = captures(api)
    assert grant(api, "new", 8, clip("gate"))[1]["streams"]["updated"] == ["gate"]
    assert captures(api) == before
    claims = {claim["id"]: claim["streams"] for claim in api.request("GET", "/v1/claims")[1]["claims"]}
    assert claims == {"old": ["yard"], "new": ["gate"]}


def test_all_of_a_grant_is_followed_or_nothing(api: Api) -> None:
    before = captures(api)
    status, answer = grant(api, "group-1", 7, clip("gate"), clip("yard", max_fps="many"), {"name": "hall"})
    assert (status, answer["code"]) == (422, "invalid")
    assert [problem.partition(":")[0] for problem in answer["problems"]] == [
        "streams[yard].max_fps", "streams[hall].url",
    ]  # fmt: skip
    assert captures(api) == before
    assert api.request("GET", "/v1/claims")[1]["claims"] == []
    assert grant(api, "group-1", 1, clip("gate"))[0] == 200


def test_a_name_belongs_to_the_file_or_to_a_claim(api: Api) -> None:
    status, answer = grant(api, "group-1", 7, clip("east"), clip("gate"))
    assert status == 422
    assert answer["problems"] == [
        (
            "streams[east].name: the file has a stream of this name, and claim group-1 of the cluster, too; "
            "give one of the two another name"
        )
    ]
    api.request("POST", "/v1/streams", clip("late"))
    assert "was added at run time" in grant(api, "group-1", 7, clip("late"))[1]["detail"]
    api.request("DELETE", "/v1/streams/east")
    assert "the file has a stream" in grant(api, "group-1", 7, clip("east"))[1]["detail"]
    api.request("POST", "/v1/streams/east/reset")
    grant(api, "group-1", 7, clip("gate"))
    before = captures(api)
    taken = "gate belongs to claim group-1 of the cluster; change it there"
    for method, path, body in [
        ("POST", "/v1/streams", clip("gate")),
        ("PUT", "/v1/streams/gate", {"url": str(sample_clip())}),
        ("PATCH", "/v1/streams/gate", {"paused": True}),
        ("DELETE", "/v1/streams/gate", None),
    ]:
        status, answer = api.request(method, path, body)
        assert (status, answer["code"], answer["detail"]) == (409, "conflict", taken), method
    text = api.config.read_text()
    api.config.write_text(f'{text}[[streams]]\nname = "gate"\nurl = "{sample_clip()}"\n')
    status, answer = api.request("POST", "/v1/reload")
    assert (status, "claim group-1" in answer["detail"]) == (422, True)
    assert captures(api) == before
    api.config.write_text(text)
    assert api.request("POST", "/v1/reload")[0] == 200
    assert captures(api) == before
    assert api.streams()["gate"]["claim"] == "group-1"


def test_a_claim_needs_what_a_stream_of_the_file_needs(api: Api) -> None:
    status, answer = grant(api, "group-1", 7, clip("gate", labels=["unicorn"]))
    assert (status, answer["code"], "unicorn" in answer["detail"]) == (422, "invalid", True)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"generation": 1, "lease_seconds": 6}, '"streams" must be a list of 1 to 100'),
        ({"streams": [], "generation": 1, "lease_seconds": 6}, '"streams" must be a list of 1 to 100'),
        ({"streams": [5], "generation": 1, "lease_seconds": 6}, "must be an object with a"),
        ({"streams": [{"name": "A"}], "generation": 1, "lease_seconds": 6}, '"A" is none'),
        ({"streams": [clip("a"), clip("a")], "generation": 1, "lease_seconds": 6}, "has a twice"),
        ({"streams": [clip("a")], "generation": 0, "lease_seconds": 6}, '"generation" must be'),
        ({"streams": [clip("a")], "generation": True, "lease_seconds": 6}, '"generation" must be'),
        ({"streams": [clip("a")], "generation": 2**53, "lease_seconds": 6}, '"generation" must be'),
        ({"streams": [clip("a")], "generation": 1.5, "lease_seconds": 6}, '"generation" must be'),
        ({"streams": [clip("a")], "generation": 1}, '"lease_seconds" must be a number from 1 to 3600'),
        ({"streams": [clip("a")], "generation": 1, "lease_seconds": 0.5}, '"lease_seconds" must be'),
        ({"streams": [clip("a")], "generation": 1, "lease_seconds": 6, "node": "x"}, '"node" is not known'),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_grant_is_one_clear_line(api: Api, body: object, complaint: str) -> None:
    status, answer = api.request("PUT", "/v1/claims/group-1", body)
    assert (status, answer["code"]) == (400, "bad_request")
    assert complaint in answer["detail"]
    assert "\n" not in answer["detail"]


def test_an_id_is_a_name(api: Api) -> None:
    assert grant(api, "Group", 1, clip("gate"))[0] == 400
    assert api.request("DELETE", "/v1/claims/group-1?generation=x")[0] == 400


def test_secrets_of_a_claim_stay_out_of_log_and_answers(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    camera = {"name": "gate", "url": f"rtsp://user:{SECRET}@127.0.0.1:9/x"}
    assert grant(api, "group-1", 7, camera)[0] == 200
    answers = [api.request("GET", path)[1] for path in ("/v1/claims", "/v1/streams", "/v1/config")]
    answers += [grant(api, "group-1", 6, camera)[1], grant(api, "group-2", 9, {**camera, "max_fps": "x"})[1]]
    assert SECRET not in caplog.text + json.dumps(answers)


def test_streams_whose_lease_ends_run_on_until_the_cluster_is_back(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    grant(api, "group-1", 7, clip("gate"), lease_seconds=1)
    before = captures(api)
    wait_until(lambda: "claim group-1 was not renewed for 1 s: its 1 streams run on" in caplog.text)
    assert captures(api) == before
    assert api.request("GET", "/v1/claims")[1]["claims"][0]["lease_seconds_left"] == 0
    wait_until(lambda: 'streamdet_claims{lease="over"} 1.0' in metrics_page(api))
    assert grant(api, "group-1", 6, clip("gate"))[1]["code"] == "stale"
    grant(api, "group-1", 7, clip("gate"), lease_seconds=60)
    assert captures(api) == before
    wait_until(lambda: 'streamdet_claims{lease="holds"} 1.0' in metrics_page(api))
    assert 'streamdet_claims{lease="over"} 0.0' in metrics_page(api)


def metrics_page(api: Api) -> str:
    assert api.daemon.addresses is not None
    with urlopen(api.daemon.addresses.metrics) as page:  # noqa: S310 - its own page
        return str(page.read().decode())


def test_streams_whose_lease_ends_stop_where_the_file_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Api(tmp_path, more=f'{NODE}on_lost_head = "stop"\n') as api:
        grant(api, "short", 7, clip("gate"), lease_seconds=1)
        grant(api, "long", 7, clip("yard"))
        kept = captures(api)["yard"]
        wait_until(lambda: "gate" not in api.streams())
        assert captures(api)["yard"] is kept
        assert [claim["id"] for claim in api.request("GET", "/v1/claims")[1]["claims"]] == ["long"]
        assert "its 1 streams stop" in caplog.text
        assert grant(api, "short", 7, clip("gate"))[0] == 200
        assert_ledger_is_exact(api)


def test_what_becomes_of_lost_claims_may_be_changed_by_a_reload(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    grant(api, "group-1", 7, clip("gate"), lease_seconds=1)
    wait_until(lambda: "was not renewed" in caplog.text)
    api.config.write_text(api.config.read_text().replace(NODE, f'{NODE}on_lost_head = "stop"\n'))
    assert api.request("POST", "/v1/reload")[1]["needs_restart"] == []
    wait_until(lambda: "gate" not in api.streams())


def test_a_daemon_that_was_restarted_gets_its_streams_with_the_next_renewal(tmp_path: Path) -> None:
    for _ in range(2):
        with Api(tmp_path, more=NODE) as api:
            assert set(api.streams()) == {"east", "west"}
            assert grant(api, "group-1", 7, clip("gate"))[1]["streams"]["added"] == ["gate"]


def test_a_daemon_that_is_slow_to_carry_out_a_request_is_reported_with_what_it_watches(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations, may_go_on = api.daemon._operations, threading.Event()
    assert operations is not None
    carry_out = operations.carry_out
    reporter = Reporter(
        Agent(partial(ask, api.socket)),
        partial(ask, api.socket, "GET", "/v1/health", timeout_seconds=ANSWER_SECONDS, refused=False),
    )
    grant = Granted("group-1", 7, (clip("gate"),))
    try:
        wait_until(lambda: reporter.report([grant]).states == {"gate": "up"})

        def slow(operation: Operation) -> None:
            assert may_go_on.wait(60)
            carry_out(operation)

        monkeypatch.setattr(operations, "carry_out", slow)
        wait_until(lambda: (report := reporter.report([grant])).slow_seconds > 3 and report.node == "hall-2")
        with subscribed(api, "gate") as events:
            assert detections(events, "gate", 3)
        may_go_on.set()
        wait_until(lambda: reporter.report([grant]).slow_seconds == 0)
        assert reporter.report([grant]).problem == ""
    finally:
        may_go_on.set()
        reporter.close()


def test_claims_are_changed_over_the_unix_socket_alone(tmp_path: Path) -> None:
    control = f'path = "{tmp_path}/c.sock"\nlisten = "127.0.0.1:0"'
    with Api(tmp_path, control, NODE) as api:
        assert api.daemon.addresses is not None
        host, _, port = api.daemon.addresses.control[1].removeprefix("http://").partition(":")
        body = json.dumps({"streams": [clip("gate")], "generation": 1, "lease_seconds": 6}).encode()
        for method, status in [("PUT", 403), ("DELETE", 403), ("PATCH", 403), ("GET", 200)]:
            path = "/v1/claims" if method in ("GET", "PATCH") else "/v1/claims/group-1"
            with closing(HTTPConnection(host, int(port), timeout=10)) as connection:
                headers = {"Content-Type": "application/json"}
                connection.request(method, path, None if method == "GET" else body, headers)
                response = connection.getresponse()
                text = response.read().decode()
            assert response.status == status, text
        assert set(api.streams()) == {"east", "west"}


def test_the_name_of_a_node_is_that_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "-hall/2 (new)")
    with Api(tmp_path) as api:
        assert api.request("GET", "/v1/claims")[1]["node"] == "hall-2--new"


def test_the_list_says_where_a_stream_comes_from(api: Api) -> None:
    grant(api, "group-1", 7, clip("gate"))
    run = CliRunner().invoke
    listed = run(streams_command, ["--socket", str(api.socket), "list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert any("gate" in line and "claim group-1" in line for line in listed.output.splitlines())
    status = run(status_command, ["--socket", str(api.socket)])
    assert "cluster  1 of the streams, by 1 claim\n" in status.output
    shown = run(streams_command, ["--socket", str(api.socket), "show", "gate"])
    assert any(line.split() == ["from", "claim", "group-1"] for line in shown.output.splitlines())
