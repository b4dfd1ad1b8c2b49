"""The control API of a whole daemon, and its description; only the detector is a stand-in."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from streamdet import subscribe
from streamdet.assets import sample_clip
from streamdet.client.control import ask
from streamdet.errors import ControlError
from streamdet.service.control.api import _Api
from streamdet.service.control.probes import Probes
from streamdet.service.pages import HealthSnapshot
from support.control_api import OPENAPI, Api, Json
from support.openapi import with_settings_of_streams
from support.paths import ROOT
from support.processes import free_ports
from support.waiting import wait_until

SECRET = "pl4nted-Secret"  # noqa: S105 - a planted one


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with Api(tmp_path) as api:
        yield api


def test_every_path_and_method_is_described_and_no_other() -> None:
    health = HealthSnapshot(healthy=True, ready=True)
    with closing(Probes()) as probes:
        routes = _Api(lambda _: None, dict, lambda: health, probes=probes).app.routes
    served = {(route.path, method) for route in routes for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]
    methods = {"get", "post", "put", "patch", "delete"}
    described = {
        (path, method.upper()) for path, item in OPENAPI["paths"].items() for method in item if method in methods
    }
    assert served == described
    operations = [item[method] for item in OPENAPI["paths"].values() for method in item if method in methods]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_the_description_is_sound() -> None:
    text = json.dumps(OPENAPI)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found = OPENAPI
        for key in reference.split("/"):
            found = found[key]
    for kind in ("schemas", "responses", "parameters"):
        for name in OPENAPI["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, f"{name} is not used"
    for schema in OPENAPI["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_the_settings_of_a_stream_are_those_of_the_file() -> None:
    assert with_settings_of_streams(OPENAPI) == OPENAPI, "run tests/support/openapi.py"


def test_the_life_of_a_stream(api: Api) -> None:
    status, answer = api.request("POST", "/v1/streams", {"name": "north", "url": str(sample_clip()), "loop": True})
    assert (status, answer["streams"]["added"]) == (201, ["north"])
    assert api.request("POST", "/v1/streams", {"name": "north", "url": "x.mp4"})[0] == 409
    wait_until(lambda: api.streams()["north"]["state"] == "up", "the stream")
    assert api.request("PATCH", "/v1/streams/north", {"max_fps": 3})[1]["streams"]["updated"] == ["north"]
    assert api.request("PATCH", "/v1/streams/north", {"max_fps": None, "paused": True})[0] == 200
    assert api.request("GET", "/v1/streams/north")[1]["reason"] == "paused"
    assert api.request("PATCH", "/v1/streams/north", {"paused": False})[1]["streams"]["reconnected"] == ["north"]
    assert api.request("POST", "/v1/streams/north/reset")[0] == 404
    status, answer = api.request("DELETE", "/v1/streams/north")
    assert (status, answer["stream"], answer["streams"]["removed"]) == (200, None, ["north"])
    assert api.request("GET", "/v1/streams/north")[0] == 404
    assert api.request("DELETE", "/v1/streams/north")[0] == 404


def test_put_describes_a_stream_whole(api: Api) -> None:
    clip = {"url": str(sample_clip()), "loop": True}
    assert api.request("PUT", "/v1/streams/north", {**clip, "max_fps": 3})[0] == 201
    status, answer = api.request("PUT", "/v1/streams/north", clip)
    assert (status, answer["streams"]["updated"]) == (200, ["north"])
    answer = api.request("PUT", "/v1/streams/north", clip)[1]
    assert not any(answer["streams"].values())
    # One of the file is as the file says, but for what is put.
    assert api.request("PATCH", "/v1/streams/east", {"max_fps": 3})[0] == 200
    assert api.request("PUT", "/v1/streams/east", {"stall_seconds": "9 s"})[1]["stream"]["changed"] == ["stall_seconds"]
    assert api.request("DELETE", "/v1/streams/east")[0] == 200
    assert api.request("GET", "/v1/streams")[1]["removed"] == ["east"]
    assert api.request("PUT", "/v1/streams/east", {})[0] == 201
    assert api.streams()["east"]["changed"] == []
    status, answer = api.request("PUT", "/v1/streams/south", {"max_fps": 3})
    assert (status, answer["code"]) == (422, "invalid")
    assert "streams[south].url" in answer["problems"][0]
    assert api.request("PUT", "/v1/streams/South", clip)[0] == 422


def test_what_resume_leaves_is_what_the_file_says(api: Api) -> None:
    for paused in (True, False, False):
        changed = api.request("PATCH", "/v1/streams/east", {"paused": paused})[1]["stream"]["changed"]
        assert changed == ["paused"] * paused
    # As well together with another key.
    api.request("PATCH", "/v1/streams/east", {"paused": True, "max_fps": 3})
    assert api.request("PATCH", "/v1/streams/east", {"paused": False, "max_fps": 4})[1]["stream"]["changed"] == [
        "max_fps"
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"url": 3}, "streams[east].url"),
        ({"max_fps": "many"}, "streams[east].max_fps"),
        ({"max_fps": [1]}, "streams[east].max_fps"),
        ({"zones": {"a": 1}}, "streams[east].zones"),
        ({"maxfps": 1}, 'did you mean "max_fps"?'),
        ({"loop": "true"}, "streams[east].loop"),
        ({"zones": [{"name": "z", "polygon": [[0, 0], [1, 1]]}]}, "a polygon has 3 to"),
    ],
)
def test_wrong_settings_name_the_key_and_change_nothing(api: Api, body: Json, words: str) -> None:
    before = api.daemon.config
    for method in ("PATCH", "PUT"):
        status, problem = api.request(method, "/v1/streams/east", body)
        assert (status, problem["code"]) == (422, "invalid")
        assert words in problem["detail"]
    assert api.daemon.config == before


def test_the_configuration_shows_no_secret(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARD_LOGIN", f"user:{SECRET}")
    for name, url in (("a", "rtsp://${YARD_LOGIN}@127.0.0.1:1/x"), ("b", f"http://127.0.0.1:1/x?token={SECRET}")):
        assert api.request("POST", "/v1/streams", {"name": name, "url": url})[0] == 201
    status, config = api.request("GET", "/v1/config")
    assert status == 200
    assert SECRET not in json.dumps(config)
    assert [stream["name"] for stream in config["streams"]] == ["east", "west", "a", "b"]
    assert config["streams"][2]["url"] == "rtsp://***@127.0.0.1:1/x"
    assert config["metrics"]["endpoint"] == "127.0.0.1:0"
    assert SECRET not in json.dumps(api.streams())


def test_about_and_health(api: Api) -> None:
    status, about = api.request("GET", "/v1/about")
    assert (status, about["pid"], about["config"]) == (200, os.getpid(), str(api.config))
    # A stream is shown from its first state on, which its own thread reports.
    wait_until(lambda: set(api.request("GET", "/v1/health")[1]["streams"]) == {"east", "west"}, "both streams")
    status, health = api.request("GET", "/v1/health")
    assert (status, health["ready"]) == (200, True)


def test_a_reload_of_a_bad_file_names_line_and_key(api: Api) -> None:
    assert api.request("POST", "/v1/reload")[1]["streams"]["added"] == []
    assert api.request("POST", "/v1/reload", {"config": str(api.config)})[0] == 200
    for other in ("/other.toml", "/a\0b", "x" * 5000):
        status, problem = api.request("POST", "/v1/reload", {"config": other})
        assert (status, problem["code"]) == (409, "conflict")
    api.config.write_text(api.config.read_text().replace("loop = true", 'loop = "yes"', 1))
    status, problem = api.request("POST", "/v1/reload")
    assert (status, problem["code"]) == (422, "invalid")
    assert re.search(r":\d+: streams\[east\]\.loop:", problem["problems"][0])


def test_a_change_at_run_time_must_fit_the_rules(api: Api) -> None:
    zone = {"name": "door", "polygon": [[0, 0], [1, 0], [1, 1]]}
    text = api.config.read_text()
    rule = '[[rules]]\nname = "person at the door"\nzone = "door"\n'
    api.config.write_text(text + rule)
    status, answer = api.request("POST", "/v1/reload")
    assert status == 422
    assert 'rules[person at the door].zone: is "door", and stream east has no zone' in answer["problems"][0]
    api.config.write_text(
        text.replace("loop = true", "loop = true\nzones = [{name = 'door', polygon = [[0,0], [1,0], [1,1]]}]") + rule
    )
    assert api.request("POST", "/v1/reload")[0] == 200
    assert api.request("GET", "/v1/config")[1]["rules"][0]["zone"] == "door"
    needs = 'the rule "person at the door" applies to this stream: its '
    for method, path, body in (
        ("PATCH", "/v1/streams/east", {"zones": []}),
        ("POST", "/v1/streams", {"name": "new", "url": str(sample_clip())}),
    ):
        status, answer = api.request(method, path, body)
        assert status == 422
        assert needs + 'zone is "door", and stream' in answer["problems"][0]
    status, answer = api.request("PATCH", "/v1/streams/east", {"track": False})
    assert (status, needs + "streams apply to east, which has track = false" in answer["problems"][0]) == (422, True)
    assert api.request("PATCH", "/v1/streams/east", {"max_fps": 5})[0] == 200
    body = {"name": "new", "url": str(sample_clip()), "loop": True, "zones": [zone]}
    assert api.request("POST", "/v1/streams", body)[0] == 201


def test_each_change_is_logged_with_who_asked_for_it(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    api.request(
        "POST", "/v1/streams?persist=true", {"name": "north", "url": f"rtsp://u:{SECRET}@127.0.0.1:1/x", "max_fps": 3}
    )
    api.request("PATCH", "/v1/streams/north", {"max_fps": None, "stall_seconds": "9 s\n\x1b[2J"})
    api.request("PATCH", "/v1/streams/north", {"max_fps": None, "paused": True})
    api.request("PUT", "/v1/streams/east", {"max_fps": 5})
    api.request("POST", "/v1/streams/east/reset")
    api.request("DELETE", "/v1/streams/north?persist=true")
    api.request("DELETE", "/v1/streams/north")
    api.request("POST", "/v1/reload")
    api.request("GET", "/v1/streams")
    api.request("GET", "/v1/config")
    who = f"user {os.geteuid()} (process {os.getpid()}) asked for "
    lines = [text.removeprefix(who) for text in caplog.messages if text.startswith(who)]
    assert lines == [
        "streams.add north url max_fps=3 kept over restarts: done",
        lines[1],
        "streams.change north paused=true (was false) without max_fps: done",
        "streams.set east max_fps=5 (was null): done",
        "streams.reset east: done",
        "streams.remove north kept over restarts: done",
        "streams.remove north: refused: there is no stream north; streamdet streams list names them",
        "reload: done",
    ]
    assert lines[1].startswith("streams.change north stall_seconds=9 s")
    assert "refused: streams[north].stall_seconds" in lines[1]
    assert all(line.isprintable() for line in lines)
    assert SECRET not in caplog.text


def test_two_editors_do_not_overwrite_each_other(api: Api) -> None:
    seen = api.request("GET", "/v1/streams/east/settings")[1]
    assert (seen["settings"]["max_fps"], seen["settings"]["zones"], seen["origin"]) == (None, [], "file")
    first = f'"{seen["version"]}"'
    status, answer = api.request("PATCH", "/v1/streams/east", {"max_fps": 5}, If_Match=first)
    assert (status, answer["settings"]["max_fps"]) == (200, 5.0)
    for method, body in (("PATCH", {"zones": []}), ("PUT", {"zones": []}), ("DELETE", None)):
        status, answer = api.request(method, "/v1/streams/east", body, If_Match=first)
        assert (status, answer["code"]) == (412, "changed")
        assert answer["detail"] == "east was changed meanwhile: max_fps; read its settings again"
    assert api.request("POST", "/v1/streams/east/reset", If_Match=first)[0] == 412
    assert api.request("PATCH", "/v1/streams/east", {"zones": []}, If_Match='"abcdef"')[0] == 412
    assert api.request("PATCH", "/v1/streams/east", {"zones": []}, If_Match="W/1")[0] == 400
    now = api.request("GET", "/v1/streams/east/settings")[1]
    assert (now["settings"]["max_fps"], now["changed"]) == (5.0, ["max_fps"])
    assert api.request("DELETE", "/v1/streams/east", If_Match=f'"{now["version"]}"')[0] == 200


def test_what_is_only_tried_is_checked_and_changes_nothing(api: Api) -> None:
    before = api.request("GET", "/v1/config")[1]
    zone = {"name": "gate", "polygon": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}
    for method, path, body in (
        ("PATCH", "/v1/streams/east", {"zones": [zone], "max_fps": 5}),
        ("PUT", "/v1/streams/east", {"paused": True}),
        ("POST", "/v1/streams", {"name": "new", "url": str(sample_clip())}),
        ("DELETE", "/v1/streams/west", None),
        ("PUT", "/v1/rules", {"rules": [{"name": "someone", "labels": ["person"]}]}),
    ):
        status, answer = api.request(method, f"{path}?try_only=true&persist=true", body)
        assert (status, answer["tried"]) == (200, True)
    tried = api.request("PATCH", "/v1/streams/east?try_only=true", {"zones": [zone]})[1]
    assert tried["settings"]["zones"][0]["name"] == "gate"
    tried = api.request("PATCH", "/v1/streams/east?try_only=true", {"paused": True})[1]
    assert tried["streams"]["reconnected"] == ["east"]
    status, answer = api.request("PATCH", "/v1/streams/east?try_only=true", {"zones": [{**zone, "polygon": [[0, 0]]}]})
    assert (status, answer["problems"][0].partition(": ")[0]) == (422, "streams[east].zones[#1].polygon")
    assert api.request("GET", "/v1/config")[1] == before
    assert not api.config.with_suffix(".streams.json").exists()


def test_rules_change_as_a_whole_and_only_what_fits(api: Api) -> None:
    at_the_gate = {"name": "at the gate", "streams": ["east"], "labels": ["person"], "zone": "gate"}
    seen = api.request("GET", "/v1/rules")[1]
    assert (seen["rules"], seen["origin"], seen["persisted"]) == ([], "file", True)
    status, answer = api.request("PUT", "/v1/rules", {"rules": [{"name": "a"}, at_the_gate]})
    assert status == 422
    assert answer["problems"] == [
        'rules[at the gate].zone: is "gate", and stream east has no zone of this name; it has none; add one'
    ]
    zone = {"name": "gate", "polygon": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}
    assert api.request("PATCH", "/v1/streams/east", {"zones": [zone]})[0] == 200
    status, answer = api.request("PUT", "/v1/rules", {"rules": [at_the_gate]}, If_Match=f'"{seen["version"]}"')
    assert (status, answer["rules"]) == (200, [at_the_gate])
    assert api.request("PUT", "/v1/rules", {"rules": []}, If_Match=f'"{seen["version"]}"')[0] == 412
    status, answer = api.request("PATCH", "/v1/streams/east", {"zones": None})
    assert (status, "at the gate" in answer["detail"]) == (422, True)
    for body, status, words in (
        ({"rules": [{"name": "x", "zon": "gate"}]}, 422, "rules[x].zon: "),
        ({"rules": [{"name": "x"}, {"name": "x"}]}, 422, "rules[x].name: another rule has this name already"),
        ({"rules": [{"labels": ["person"]}]}, 422, "rules[#1].name: "),
        ({"rules": [{"name": "x", "streams": ["gone"]}]}, 422, "rules[x].streams[#1]: "),
        ({"rules": {"name": "x"}}, 400, '"rules" must be a list'),
        ({"rules": ["x"]}, 400, '"rules" must be a list'),
        ({"rule": []}, 400, "known are rules"),
    ):
        answered, answer = api.request("PUT", "/v1/rules", body)
        assert (answered, answer["problems"][0][: len(words)] == words or words in answer["detail"]) == (status, True)
    assert api.request("GET", "/v1/rules")[1]["rules"] == [at_the_gate]
    assert api.request("POST", "/v1/reload")[1]["notes"][-1].startswith("the rules were changed at run time")
    assert api.request("POST", "/v1/rules/reset")[1]["rules"] == []
    assert api.request("GET", "/v1/rules")[1]["origin"] == "file"


def test_a_renamed_zone_is_carried_into_the_rules_of_its_stream_or_nothing_changes(api: Api) -> None:
    def zone(name: str) -> dict[str, Any]:
        return {"name": name, "polygon": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}

    def rules() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.request("GET", "/v1/rules")[1]["rules"]
        return found

    of_file = "zones = [{name = 'gate', polygon = [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}]"
    text = api.config.read_text().replace("loop = true", f"loop = true\n{of_file}")
    api.config.write_text(f'{text}[[rules]]\nname = "$${{HOME}}"\nstreams = ["east"]\nzone = "gate"\n')
    assert api.request("POST", "/v1/reload")[0] == 200
    assert api.request("PATCH", "/v1/streams/east", {"zones": [zone("door")]})[0] == 422
    path = "/v1/streams/east?renamed=zone:gate:door"
    assert api.request("PATCH", f"{path}&try_only=true", {"zones": [zone("door")]})[0] == 200
    assert rules()[0]["zone"] == "gate"
    assert api.request("PATCH", path, {"zones": [zone("gone")]})[0] == 422
    assert api.request("PATCH", path, {"zones": [zone("door")]})[0] == 200
    assert rules() == [{"name": "${HOME}", "streams": ["east"], "zone": "door"}]
    # Back to the file: neither fits without the other.
    status, answer = api.request("POST", "/v1/streams/east/reset")
    assert (status, "streamdet streams reset east --rules" in answer["problems"][-1]) == (422, True)
    status, answer = api.request("POST", "/v1/rules/reset")
    assert (status, "streamdet streams reset NAME --rules" in answer["problems"][-1]) == (422, True)
    assert api.request("POST", "/v1/streams/east/reset?rules=true&try_only=true")[0] == 200
    assert rules()[0]["zone"] == "door"
    assert api.request("POST", "/v1/streams/east/reset?rules=true")[0] == 200
    assert (rules()[0]["zone"], api.request("GET", "/v1/rules")[1]["origin"]) == ("gate", "file")
    assert api.request("POST", "/v1/streams/east/reset?rules=maybe")[0] == 400
    # A rule that needs the zone of another stream as well.
    both = {"name": "both", "streams": ["*st"], "zone": "gate"}
    assert api.request("PATCH", "/v1/streams/east", {"zones": [zone("door"), zone("gate")]})[0] == 200
    assert api.request("PUT", "/v1/rules", {"rules": [both]})[0] == 200
    status, answer = api.request("PATCH", path, {"zones": [zone("door")]})
    assert (status, "west" in answer["detail"]) == (422, True)
    assert rules() == [both]
    for wrong in ("gate:door", "mask:a:b", "zone:a:b,zone:a:c", "zone:A:b"):
        status, answer = api.request("PATCH", f"/v1/streams/east?renamed={wrong}", {})
        assert (status, '"renamed" must be a list' in answer["detail"]) == (400, True)


def test_a_new_name_that_is_kept_lasts_with_the_rules_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    line = {"name": "kerb", "points": [[0.1, 0.1], [0.5, 0.1]]}
    rule = {"name": "crossed", "streams": ["east"], "line": "kerb"}
    with Api(tmp_path) as api:
        assert api.request("PATCH", "/v1/streams/east?persist=true", {"lines": [line]})[0] == 200
        assert api.request("PUT", "/v1/rules?persist=true", {"rules": [rule]})[0] == 200
        renamed = {"lines": [{**line, "name": "gate"}]}
        assert api.request("PATCH", "/v1/streams/east?renamed=line:kerb:gate&persist=true", renamed)[0] == 200
        assert api.request("GET", "/v1/rules")[1]["persisted"] is True
    with Api(tmp_path) as api:
        assert api.request("GET", "/v1/rules")[1]["rules"] == [{**rule, "line": "gate"}]
        assert api.request("GET", "/v1/streams/east/settings")[1]["settings"]["lines"][0]["name"] == "gate"


def test_kept_rules_last_over_a_restart_and_those_that_no_longer_fit_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    of_file = '[[rules]]\nname = "of the file"\n'
    with Api(tmp_path, more=of_file) as api:
        assert (
            api.request("PUT", "/v1/rules?persist=true", {"rules": [{"name": "kept", "streams": ["west"]}]})[0] == 200
        )
        assert api.request("PUT", "/v1/rules", {"rules": [{"name": "lost"}]})[0] == 200
        assert api.request("GET", "/v1/rules")[1]["persisted"] is False
    with Api(tmp_path, more=of_file) as api:
        rules = api.request("GET", "/v1/rules")[1]
        assert ([rule["name"] for rule in rules["rules"]], rules["persisted"]) == (["kept"], True)
        assert api.request("PATCH", "/v1/streams/west?persist=true", {"track": False})[0] == 422
    kept = api.config.with_suffix(".streams.json")
    kept.write_text(kept.read_text().replace("west", "gone"))
    with Api(tmp_path, more=of_file) as api:
        assert [rule["name"] for rule in api.request("GET", "/v1/rules")[1]["rules"]] == ["of the file"]
        assert "the rules that were kept are left out: rules[kept]" in api.request("POST", "/v1/reload")[1]["notes"][0]
        assert api.request("POST", "/v1/rules/reset?persist=true")[0] == 200
        assert api.request("POST", "/v1/reload")[1]["notes"] == []
    assert json.loads(kept.read_text()) == {"version": 1, "streams": {}}
    assert api.config.read_text().count(of_file) == 1


def test_a_change_of_a_user_of_the_page_is_logged_and_counted_as_such(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    def count(via: str, outcome: str) -> float:
        labels = {"via": via, "outcome": outcome}
        return api.daemon.metrics.registry.get_sample_value("streamdet_control_changes_total", labels) or 0.0

    caplog.set_level(logging.INFO)
    before = [count("page", "done"), count("page", "refused"), count("api", "done")]
    zones = [{"name": name, "polygon": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]} for name in ("gate", "yard")]
    user = {"Streamdet_User": "alice; operator; 192.0.2.7"}
    api.request("PATCH", "/v1/streams/east", {"zones": zones}, **user)
    moved = [{**zones[1], "polygon": [[0.2, 0.1], [0.5, 0.1], [0.5, 0.5]]}]
    api.request("PATCH", "/v1/streams/east?try_only=true", {"zones": moved}, **user)
    api.request("PATCH", "/v1/streams/east", {"zones": moved, "max_fps": 0}, **user)
    api.request("PATCH", "/v1/streams/east", {"zones": moved})
    for wrong in ("alice", "alice; operator; 192.0.2.7\t", "al ice; operator; ::1", "alice; Operator; ::1"):
        assert api.request("PATCH", "/v1/streams/east", {"zones": []}, Streamdet_User=wrong.strip())[0] in (200, 400)
    who = f"alice (operator, from 192.0.2.7) via the page of user {os.geteuid()} (process {os.getpid()}) asked for "
    lines = [text.removeprefix(who) for text in caplog.messages if text.startswith(who)]
    assert lines[0] == "streams.change east zones: +gate +yard: done"
    assert lines[1].startswith("streams.change east zones: -gate ~yard max_fps=0 (was null): refused: ")
    assert any("(process" in text and text.endswith("east zones: -gate ~yard: done") for text in caplog.messages)
    assert [count("page", "done"), count("page", "refused"), count("api", "done")] >= [n + 1 for n in before]


def test_requests_are_counted(api: Api) -> None:
    def count(outcome: str) -> float:
        value = api.daemon.metrics.registry.get_sample_value("streamdet_control_requests_total", {"outcome": outcome})
        return value or 0.0

    before = count("done"), count("refused")
    api.request("GET", "/v1/streams")
    api.request("DELETE", "/v1/streams/nobody")
    assert (count("done"), count("refused")) == (before[0] + 1, before[1] + 1)


@pytest.mark.skipif(not Path("/usr/bin/curl").exists(), reason="needs curl")
def test_the_examples_of_the_documentation_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with Api(tmp_path, more=f'[spool]\ndirectory = "{tmp_path / "spool"}"\n') as api:
        run_examples(api, tmp_path)


def run_examples(api: Api, folder: Path) -> None:
    text = (ROOT / "docs" / "control.md").read_text()
    (example,) = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "--unix-socket" in block]
    script = re.sub("^SOCKET=.*$", f"SOCKET={api.socket}", example, flags=re.MULTILINE)
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    decoder, answers, rest = json.JSONDecoder(), [], done.stdout
    while rest := rest.lstrip():
        answer, end = decoder.raw_decode(rest)
        answers.append(answer)
        rest = rest[end:]
    assert len(answers) == len(re.findall(r"^ask (?!-o)", example, re.MULTILINE))
    assert (folder / "east.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert answers[0]["streams"][0]["name"] == "east"
    assert answers[2]["name"] == "yard"
    assert answers[4]["stream"]["reason"] == "paused"
    assert answers[-1]["ready"] is True


def test_alerts_objects_and_the_newest_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    more = f'[spool]\ndirectory = "{tmp_path / "spool"}"\n[[rules]]\nname = "anyone"\nstreams = ["east"]\n'
    with Api(tmp_path, more=more) as api:
        assert api.request("PATCH", "/v1/streams/west", {"paused": True})[0] == 200
        wait_until(lambda: api.request("GET", "/v1/alerts?rule=anyone&phase=raised")[1]["events"], "an alert")
        (alert,) = api.request("GET", "/v1/alerts?stream=east&limit=1")[1]["events"]
        assert (alert["type"], alert["alert"]["rule"]) == ("alerts", "anyone")
        objects = api.request("GET", "/v1/objects?stream=east&label=person&phase=begin")[1]
        assert objects["events"][0]["object"]["label"] == "person"
        subscriber = api.daemon.config.publisher.endpoint
        with subscribe(subscriber, kinds=["objects"], timeout_seconds=30) as events:
            event = next(events)
        query = f"since={event.published_at}&until={time.time() + 60}&stream={event.stream}"
        wait_until(
            lambda: event.seq in [found["seq"] for found in api.request("GET", f"/v1/objects?{query}")[1]["events"]],
            "the very event that a subscriber got",
        )
        for query, width in (("", 768), ("?width=160&boxes=1", 160)):
            status, picture = api.picture("east", query)
            assert status == 200
            image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            assert image.shape[1] == width
        status, problem = api.picture("west")
        assert (status, json.loads(problem)["detail"]) == (503, "west has no frame: it is down: paused")
        status, problem = api.picture("nothing")
        assert (status, json.loads(problem)["code"]) == (404, "not_found")


def test_it_answers_at_once_while_a_camera_hangs(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/x"
        api.request("POST", "/v1/streams", {"name": "deaf", "url": url, "connect_timeout_seconds": 60})
        deaf.accept()[0].close()
        held, _ = deaf.accept()
        with held:
            for path in ("/v1/streams", "/v1/streams/deaf", "/v1/health"):
                took = []
                for _ in range(10):
                    began = time.monotonic()
                    assert api.request("GET", path)[0] == 200
                    took.append(time.monotonic() - began)
                # A busy machine may take longer now and then.
                assert min(took) < 0.1
            assert api.request("DELETE", "/v1/streams/deaf")[0] == 200


def test_it_is_served_over_tcp_where_auto_finds_no_place_for_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/dev/null")
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    _, port = free_ports()
    api = Api(tmp_path, f'listen = "127.0.0.1:{port}"')
    api.thread.start()

    def is_ready() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/v1/health", timeout=5) as answer:
                return bool(json.load(answer)["ready"])
        except OSError:
            return False

    wait_until(is_ready, "the API over TCP")
    with urlopen(f"http://127.0.0.1:{port}/v1/streams", timeout=5) as answer:
        assert [stream["name"] for stream in json.load(answer)["streams"]] == ["east", "west"]
    api.__exit__()
    assert "streamdet reload and streams cannot reach this daemon" in caplog.text


def test_an_ending_daemon_says_so(tmp_path: Path) -> None:
    with Api(tmp_path) as api:
        socket = api.socket
    assert not socket.exists()
    with pytest.raises(ControlError, match="there is no socket"):
        ask(socket, "GET", "/v1/about")
