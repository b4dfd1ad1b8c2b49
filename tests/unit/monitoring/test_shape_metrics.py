from __future__ import annotations

from prometheus_client import generate_latest

from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Crossing, State, StreamStatus, ZoneChange, ZoneVisit

OF_A_ZONE = ("objects", "entries_total", "loitering_total", "dwell_seconds_count", "dwell_seconds_sum")


def series(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    shown = (line.rsplit(" ", 1) for line in lines if line.startswith(("streamdet_line", "streamdet_zone")))
    return {name: float(value) for name, value in shown if "_bucket{" not in name}


def of_zone(zone: str) -> dict[str, float]:
    return {f'streamdet_zone_{name}{{stream="a",zone="{zone}"}}': 0.0 for name in OF_A_ZONE}


def test_shapes_have_series_from_the_start_and_lose_them() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("a", ["person"], ["door", "path"], ["gate"])
    crossings = {
        f'streamdet_line_crossings_total{{direction="{way}",line="gate",stream="a"}}': 0.0 for way in ("in", "out")
    }
    assert series(metrics) == crossings | of_zone("door") | of_zone("path")
    metrics.set_stream("a", ["person"], ["door"], [])
    assert series(metrics) == of_zone("door")
    metrics.remove_stream("a")
    metrics.shapes_seen("a", {"door": 2}, [Crossing("gate", "in", 1, "person")])
    metrics.zones_changed("a", [ZoneChange("enter", "door", 0.0)])
    metrics.zones_visited("a", [ZoneVisit("door", 4.0, inside=True)])
    assert series(metrics) == {}


def test_visits_are_counted_when_they_begin_and_measured_when_the_object_ends() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("a", ["person"], ["door"])
    changes: list[ZoneChange] = [
        ZoneChange("enter", "door", 0.0),
        ZoneChange("dwell", "door", 5.0),
        ZoneChange("loiter", "door", 10.0),
        ZoneChange("leave", "door", 12.0),
        ZoneChange("enter", "door", 0.0),
        ZoneChange("enter", "gone", 0.0),
    ]
    metrics.zones_changed("a", changes)
    metrics.zones_visited("a", [ZoneVisit("door", 15.0, inside=True), ZoneVisit("gone", 1.0, inside=False)])
    assert series(metrics) == of_zone("door") | {
        'streamdet_zone_entries_total{stream="a",zone="door"}': 2.0,
        'streamdet_zone_loitering_total{stream="a",zone="door"}': 1.0,
        'streamdet_zone_dwell_seconds_count{stream="a",zone="door"}': 1.0,
        'streamdet_zone_dwell_seconds_sum{stream="a",zone="door"}': 15.0,
    }


def test_what_stays_goes_on_counting() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("a", ["person"], ["door"], ["gate"])
    metrics.shapes_seen(
        "a", {"door": 3, "gone": 1}, [Crossing("gate", "in", 1, "person"), Crossing("gone", "in", 1, "x")]
    )
    metrics.set_stream("a", ["person"], ["door"], ["gate", "path"])
    assert series(metrics)['streamdet_line_crossings_total{direction="in",line="gate",stream="a"}'] == 1
    assert series(metrics)['streamdet_zone_objects{stream="a",zone="door"}'] == 3


def test_no_one_stands_in_the_zone_of_a_stream_that_is_down() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("a", ["person"], ["door"])
    metrics.shapes_seen("a", {"door": 3}, [])
    metrics.status(StreamStatus("a", State.UP, None, "", 0.0))
    assert series(metrics)['streamdet_zone_objects{stream="a",zone="door"}'] == 3
    metrics.status(StreamStatus("a", State.STALLED, None, "", 0.0))
    assert series(metrics)['streamdet_zone_objects{stream="a",zone="door"}'] == 0
