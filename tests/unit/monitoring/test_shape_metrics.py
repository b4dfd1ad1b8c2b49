from __future__ import annotations

from prometheus_client import generate_latest

from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Crossing, State, StreamStatus


def series(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    shown = (line.rsplit(" ", 1) for line in lines if line.startswith(("streamdet_line", "streamdet_zone")))
    return {name: float(value) for name, value in shown}


def test_shapes_have_series_from_the_start_and_lose_them() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("a", ["person"], ["door", "path"], ["gate"])
    crossings = {
        f'streamdet_line_crossings_total{{direction="{way}",line="gate",stream="a"}}': 0.0 for way in ("in", "out")
    }
    objects = {f'streamdet_zone_objects{{stream="a",zone="{zone}"}}': 0.0 for zone in ("door", "path")}
    assert series(metrics) == crossings | objects
    metrics.set_stream("a", ["person"], ["door"], [])
    assert list(series(metrics)) == ['streamdet_zone_objects{stream="a",zone="door"}']
    metrics.remove_stream("a")
    metrics.shapes_seen("a", {"door": 2}, [Crossing("gate", "in", 1, "person")])
    assert series(metrics) == {}


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
