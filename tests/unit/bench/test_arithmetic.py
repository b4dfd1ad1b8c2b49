"""The arithmetic of `streamdet bench`, with numbers that are known."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamdet.bench import run
from streamdet.bench.cases import Case, background_bias, calibrated_weights, load_model, ways, with_int8
from streamdet.bench.compare import MIN_ROUNDS, Measured, quartiles, speedup
from streamdet.bench.contenders import Sample
from streamdet.bench.daemon import Load
from streamdet.bench.end_to_end import Costs, Step, capacity, capacity_fps, judge_overload
from streamdet.bench.floor import floor_seconds, flops_of, measure_peak
from streamdet.bench.frames import Clip
from streamdet.bench.machine import Disturbance, DisturbanceWatch, cpu_seconds, machine_cpu, resident_bytes
from streamdet.bench.report import _overload_lines
from streamdet.bench.run import Options, choose_as_daemon, plan_groups, row_of_choice
from streamdet.config import load_config
from streamdet.detector.choice import Candidate, Choice
from streamdet.detector.engines import openvino
from streamdet.detector.pipeline import ArrayPicture
from streamdet.detector.weights import weights_to_bytes
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from streamdet.errors import DetectorError

CPU = torch.device("cpu")


def test_capacity_is_the_time_of_the_cores_over_that_of_a_frame() -> None:
    costs = Costs(decode_ms=4, overhead_ms=1, detector_ms=35)
    assert capacity_fps(costs, cores=2, headroom=1.0) == pytest.approx(50)
    found = capacity(costs, cores=2, fps=10, headroom=0.8)
    assert found["streams"] == 4
    assert found["fps_of_all_streams"] == 40
    assert capacity(costs, cores=2, fps=13.4, headroom=0.8)["streams"] == 2


def test_an_accelerator_limits_too() -> None:
    costs = Costs(decode_ms=3, overhead_ms=1, detector_ms=1, device_ms=2)
    assert capacity_fps(costs, cores=16, headroom=1.0) == pytest.approx(500)
    assert capacity_fps(costs, cores=1, headroom=1.0) == pytest.approx(200)


def overloaded(p95: float = 200.0, fewest: int = 50, most: int = 54) -> dict[str, Any]:
    marks = {"p50": 90.0, "p95": p95, "p99": 300.0}
    return {"latency_ms": marks, "events_of_a_stream": [fewest, most], "streams": 12, "fps_captured": 120.0,
            "fps_published": 30.0}  # fmt: skip


def at_rates(*rates: float, p95: float = 200.0) -> list[dict[str, Any]]:
    return [overloaded(p95) | {"fps_published": fps} for fps in rates]


@pytest.mark.parametrize(
    ("run", "fps", "failed"),
    [
        (overloaded(), {1: 30.0, 4: 31.0, 8: 25.0}, set()),
        (overloaded(p95=261.0), {1: 30.0}, {"latency"}),  # four detections of 40 ms, and 100
        (overloaded(), {1: 30.0, 8: 32.0}, {"throughput"}),
        (overloaded(most=56), {1: 30.0}, {"fairness"}),
        (overloaded(fewest=3, most=5), {1: 30.0}, set()),  # so few may differ by two
        (overloaded(fewest=0, most=1), {1: 30.0}, {"fairness"}),
    ],
)
def test_an_overloaded_daemon_is_judged_by_age_throughput_and_fairness(
    run: dict[str, Any], fps: dict[int, float], failed: set[str]
) -> None:
    found = judge_overload([run] * 3, {batch: at_rates(each, each, each) for batch, each in fps.items()}, 1, 40.0)
    assert {name for name, holds in found["holds"].items() if not holds} == failed
    assert found["passed"] == (not failed)
    assert (found["bound_ms"], found["best_batch"]) == (260.0, max(fps, key=lambda batch: fps[batch]))
    lines = " ".join(_overload_lines({"daemon": {"overload": found}}))
    assert ("NOT within the bounds" in lines) == bool(failed)
    assert all(name in lines for name in failed)


def test_an_overloaded_daemon_is_compared_round_by_round() -> None:
    slow, fast = overloaded(p95=500.0) | {"fps_published": 15.0}, overloaded()
    found = judge_overload([fast, slow, fast], {4: at_rates(31.0, 15.5, 31.0), 8: at_rates(32.0, 15.0, 20.0)}, 1, 40.0)
    assert (found["best_batch"], found["throughput_of_best"]) == (4, 0.968)
    assert found["latency_ms"]["p95"] == 200.0
    assert found["passed"]
    assert "quartiles of 3 rounds 97% and 97%" in " ".join(_overload_lines({"daemon": {"overload": found}}))
    unfair = judge_overload([fast, overloaded(most=60), fast], {}, 1, 40.0)
    assert unfair["events_of_a_stream"] == [50, 60]
    assert not unfair["holds"]["fairness"]


def test_batches_that_detect_more_too_late_are_no_measure() -> None:
    others = {4: at_rates(29.0, 29.0, 29.0), 8: at_rates(36.0, 36.0, 36.0, p95=600.0)}
    found = judge_overload([overloaded()] * 3, others, 2, 40.0)
    assert (found["best_batch"], found["throughput_of_best"], found["passed"]) == (2, 1.0, True)
    assert found["fps_of_batches"] == {"2": 30.0, "4": 29.0, "8": 36.0}
    assert found["p95_ms_of_batches"] == {"2": 200.0, "4": 200.0, "8": 600.0}
    lines = " ".join(_overload_lines({"daemon": {"overload": found}}))
    assert "Batches of 8 detect 36.0, too late: p95 600 ms." in lines


def test_quartiles_lie_between_the_values() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0]) == (1.75, 3.25)
    assert quartiles([7.0]) == (7.0, 7.0)
    assert quartiles([0.0, 1.0, 2.0, 3.0, 4.0]) == (1.0, 3.0)


def test_speedup_compares_within_a_round() -> None:
    # The machine was three times slower in the second half; the ratio never changed.
    assert speedup([4, 4, 12, 12], [2, 2, 6, 6]) == 2


def test_a_row_says_median_ratio_and_distance_from_the_floor() -> None:
    samples = [Sample(s, 2 * s, {"features": s / 2, "input": s / 4}) for s in (0.02, 0.01, 0.04)]
    reference = [Sample(4 * s.seconds, 0, {}) for s in samples]
    row = Measured("m", Case("torch", "fp32", 8, 2), samples, reference, floor_seconds=0.005).to_dict()
    assert row["ms_per_frame"] == 20
    assert row["cpu_ms_per_frame"] == 40
    assert row["frames_per_second"] == 50
    assert row["ms_per_frame_quartiles"] == [15, 30]
    assert row["speedup_over_torchvision"] == 4
    assert row["floor_share"] == 0.25
    assert row["stages_ms"] == {"features": 10, "input": 5}


def test_the_floor_counts_two_operations_for_a_multiply_add() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)

        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            found: torch.Tensor = self.convolution(images[0][None])
            return found

    picture = ArrayPicture(torch.zeros(20, 30, 3, dtype=torch.uint8).numpy())
    assert flops_of(Model(), picture, CPU) == 2 * 3 * 5 * 9 * 20 * 30
    assert floor_seconds(5e9, 2e11) == pytest.approx(0.025)


def test_the_peak_of_this_machine_is_a_speed() -> None:
    threads = torch.get_num_threads()
    try:
        peak = measure_peak("fp32", CPU, 1, seconds=0.1)
    finally:
        torch.set_num_threads(threads)
    assert peak is not None
    assert 1e8 < peak < 1e14
    assert measure_peak("int8", torch.device("cuda"), 1) is None


def test_time_is_divided_and_large_batches_give_way() -> None:
    groups, left_out = plan_groups({"small": 0.01, "large": 0.1}, {"small": 3, "large": 3}, (), 60.0)
    assert left_out == []
    assert [(g.model, g.batch) for g in groups[:2]] == [("small", 1), ("small", 4)]
    assert sum(g.seconds for g in groups) == pytest.approx(60, rel=0.3)
    groups, left_out = plan_groups({"huge": 3.0}, {"huge": 3}, (), 60.0)
    assert [g.batch for g in groups] == [1]
    assert "huge: batches of 4, 8, 16 were left out" in left_out[0]
    # What was asked for is measured, however long it takes.
    groups, left_out = plan_groups({"huge": 3.0}, {"huge": 2}, (16,), 10.0)
    assert left_out == []
    assert groups[0].seconds == pytest.approx(3.0 * 16 * 1.5 * (MIN_ROUNDS + 1))


def test_a_run_knows_how_far_it_is() -> None:
    now = 100.0
    reported: list[tuple[str, float]] = []
    step = Step(lambda text, share: reported.append((text, share)), clock=lambda: now)
    step.begin("loading", 0)
    assert step.plan(10, 0) == 10
    step.begin("first", 4)
    now += 2
    step.share(0.5)
    now += 2
    step.end()
    step.begin("second", 6)
    now += 6
    step.share(1.0)
    assert reported == [("loading", 0), ("first", 0), ("first", 0.2), ("first", 0.4), ("second", 0.4), ("second", 1.0)]


def test_a_run_expects_further_starts_of_the_daemon_to_take_as_long_as_the_first() -> None:
    now = 0.0
    reported: list[float] = []
    step = Step(lambda _text, share: reported.append(share), clock=lambda: now)
    assert step.plan(10, 3) > 20
    step.begin("daemons", 10)
    for part in (1, 2, 3):
        now += 30
        step.started(30)
        now += 10 / 3
        step.share(part / 3)
    assert reported == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_what_others_do_is_noticed() -> None:
    assert not Disturbance(9.0, 0.04, 0.0).matters
    assert Disturbance(0.1, 0.0, 0.2).matters
    before = machine_cpu()
    watch = DisturbanceWatch()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        pass
    found = watch.result()
    assert machine_cpu().total > before.total
    assert 0 <= found.others_share <= 1
    assert 0 <= found.stolen_share <= 1
    assert cpu_seconds() > 0
    assert resident_bytes() > 1e6
    with pytest.raises(OSError, match="No such file"):
        cpu_seconds(2**22 + 1)


def test_found_share_decides_how_many_proposals_are_objects() -> None:
    logits = torch.randn(4000, 7, generator=torch.Generator().manual_seed(1)) * 2
    logits[:, 0] += background_bias(logits, 0.25)
    found = (logits.softmax(1)[:, 1:] > 0.05).any(1).float().mean().item()
    assert found == pytest.approx(0.25, abs=0.01)


def test_calibrated_weights_are_the_same_each_time_and_leave_torch_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = calibrated_weights(EMBEDDED_ARCHITECTURE, sizes=(96, 160), found_share=0.5)
    assert torch.rand(1) == expected
    second = calibrated_weights(EMBEDDED_ARCHITECTURE, sizes=(96, 160), found_share=0.5)
    assert all(torch.equal(tensor, second.state[name]) for name, tensor in first.state.items())


def test_models_are_found_by_name_or_file(tmp_path: Path) -> None:
    assert load_model("embedded").origin == "embedded"
    weights = calibrated_weights(EMBEDDED_ARCHITECTURE, sizes=(96, 160))
    (tmp_path / "yard.safetensors").write_bytes(weights_to_bytes(weights))
    assert load_model(str(tmp_path / "yard.safetensors")).name == "yard.safetensors"
    torch.save(weights.state, tmp_path / "yard.pth")
    found = load_model(str(tmp_path / "yard.pth"))
    assert (found.origin, found.weights.architecture) == ("file", EMBEDDED_ARCHITECTURE)
    torch.save({**weights.state, "more": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(DetectorError, match="fits none of"):
        load_model(str(tmp_path / "odd.pth"))


def test_the_embedded_weights_are_measured_as_the_daemon_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "is_installed", lambda: True)
    model = load_model("embedded")
    for engines, precisions in (((), ()), (("openvino",), ("int8", "fp32"))):
        exported = with_int8(model, engines, precisions, CPU).exported
        assert exported is not None
        assert exported.exported is not None
        assert exported.exported.precision == "int8"
    for engines, precisions in ((("torch",), ()), ((), ("fp32",))):
        assert with_int8(model, engines, precisions, CPU) is model
    assert with_int8(model, (), (), torch.device("cuda")) is model
    mine = replace(model, origin="file")
    assert with_int8(mine, (), (), CPU) is mine


def test_the_daemon_is_measured_with_what_it_chooses_itself() -> None:
    int8 = Candidate(engine="openvino", precision="int8")
    choice = Choice(int8, 2, 3, ())
    rows = [
        Measured("embedded", Case(engine, precision, batch, 1))
        for engine, precision in (("reference", "fp32"), ("torch", "fp32"), ("openvino", "int8"))
        for batch in (1, 4, 16)
    ]
    taken = row_of_choice(rows, choice, workers=3)
    assert taken is not None
    assert taken.case == Case("openvino", "int8", 2, 3)
    assert row_of_choice(rows[:6], choice, workers=3) is None


@pytest.mark.parametrize(
    "options",
    [
        Options(("embedded",), daemon=False),
        Options(("embedded",), engines=("torch",)),
        Options(("embedded",), precisions=("fp32",)),
        Options(("weights.safetensors",)),
    ],
)
def test_nothing_is_tried_where_the_options_leave_no_choice(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "settle", None)
    assert choose_as_daemon(options) is None


def test_the_reference_is_always_there_to_compare_with() -> None:
    assert ways((), ("fp32",), CPU) == [("reference", "fp32"), ("torch", "fp32"), ("openvino", "fp32")]
    assert ways(("torch",), ("bf16", "int8"), CPU) == [("reference", "fp32"), ("torch", "bf16")]
    assert ways(("reference",), (), CPU) == [("reference", "fp32")]
    assert ways((), ("fp32",), torch.device("cuda"))[1:] == [("torch", "fp32"), ("graph", "fp32")]


def test_the_daemon_gets_a_configuration_that_is_right(tmp_path: Path) -> None:
    clip = Clip(tmp_path / 'a "clip" of the yard.mp4', (64, 48), 10.0)
    clip.path.touch()
    load = Load(clip, 3, {"max_batch_size": 4, "engine": "torch", "workers": 2}, realtime=False)
    path = tmp_path / "streamdet.toml"
    path.write_text(load.to_toml(f"ipc://{tmp_path}/e", "127.0.0.1:0"))
    config = load_config(path)
    assert [stream.url for stream in config.streams] == [str(clip.path)] * 3
    assert {stream.pace for stream in config.streams} == {"fastest"}
    assert config.detector.max_batch_size == 4
