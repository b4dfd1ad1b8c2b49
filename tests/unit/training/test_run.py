from __future__ import annotations

import csv
import errno
import io
import json
import resource
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from streamdet.detector.weights import load_weights_file
from streamdet.detector.weights.architectures import build_model
from streamdet.errors import ConfigError, DataError, DetectorError, StoreError, StreamdetError
from streamdet.training.dataset import Dataset, load_dataset
from streamdet.training.pictures import AugmentConfig, TrainingPictures, _by_processes, _by_thread
from streamdet.training.progress import TrainingProgress
from streamdet.training.run import (
    EpochResult,
    RunFolder,
    TrainConfig,
    best_of,
    canvas_sizes,
    frozen_norms_in,
    frozen_stages,
    learning_rate_at,
    load_checkpoint,
    load_initial,
    save_checkpoint,
)
from streamdet.training.train import Run
from support.tiny_run import CONFIG, Losses


def _data(shapes: Path, name: str) -> Dataset:
    return load_dataset(shapes / name / "annotations.json", shapes / name)[0]


def test_the_loss_falls(trained: tuple[Path, list[float]]) -> None:
    _, sums = trained
    assert len(sums) == 12
    assert sum(sums[-3:]) < 0.85 * sum(sums[:3])


def test_the_folder_holds_everything(trained: tuple[Path, list[float]]) -> None:
    out, _ = trained
    assert sorted(p.name for p in out.iterdir()) == [
        "best.safetensors", "config.json", "curves.png", "last.pt", "last.safetensors", "predictions.png",
        "results.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["1", "2"]
    parts = sum(float(rows[0][name]) for name in ("objectness", "rpn_box", "classifier", "box"))
    assert float(rows[0]["loss"]) == pytest.approx(parts, abs=1e-4)
    for name in ("curves.png", "predictions.png"):
        picture = cv2.imread(str(out / name))
        assert picture is not None
        assert min(picture.shape[:2]) > 300
    config = json.loads((out / "config.json").read_text())
    assert config["learning_rate"] == 1e-3
    assert config["categories"] == ["disc", "square"]
    weights = load_weights_file(out / "best.safetensors")
    assert weights.labels == ("__background__", "disc", "square")
    assert weights.category_ids == (0, 3, 7)
    assert (weights.min_size, weights.max_size) == (64, 96)


@pytest.mark.slow
def test_resume_goes_on_bit_by_bit(shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]) -> None:
    out = tmp_path / "run"
    train, val = _data(shapes, "train"), _data(shapes, "val")
    with pytest.raises(KeyboardInterrupt):
        Run(out, CONFIG, train, val).train(Losses(stop_after=9))
    listener = Losses()
    run = Run(out, CONFIG, train, val, resume=True)
    assert run.step == 8  # the last checkpoint, in the second epoch
    run.train(listener)
    assert listener.sums == trained[1][8:]
    whole, pieces = (load_checkpoint(folder / "last.pt") for folder in (trained[0], out))
    for key in ("model", "average", "optimizer"):
        torch.testing.assert_close(pieces[key], whole[key], rtol=0, atol=0)
    for name in ("last.safetensors", "best.safetensors"):
        torch.testing.assert_close(load_file(out / name), load_file(trained[0] / name), rtol=0, atol=0)
    assert [r["map"] for r in pieces["results"]] == [r["map"] for r in whole["results"]]


def test_an_existing_run_is_not_overwritten(shapes: Path, trained: tuple[Path, list[float]]) -> None:
    before = {p: p.read_bytes() for p in trained[0].iterdir()}
    data = _data(shapes, "val")
    with pytest.raises(ConfigError, match=r"already holds a run \(last\.pt.*--resume"):
        Run(trained[0], CONFIG, data, data)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.001, now 0\.002"):
        Run(trained[0], replace(CONFIG, learning_rate=2e-3), data, data, resume=True)
    with pytest.raises(ConfigError, match="trained on 24 pictures, now there are 8"):
        Run(trained[0], CONFIG, data, data, resume=True)
    fewer, _ = load_dataset(shapes / "val" / "annotations.json", shapes / "val", ["square"])
    with pytest.raises(ConfigError, match="other categories: disc, square; now they are square"):
        Run(trained[0], CONFIG, fewer, fewer, resume=True)
    assert {p: p.read_bytes() for p in trained[0].iterdir()} == before


def test_there_must_be_a_run_to_resume(shapes: Path, tmp_path: Path) -> None:
    data = _data(shapes, "val")
    with pytest.raises(ConfigError, match="no run to resume"):
        Run(tmp_path / "none", CONFIG, data, data, resume=True)
    assert not (tmp_path / "none").exists()


def test_a_finished_run_resumes_to_its_results(shapes: Path, trained: tuple[Path, list[float]]) -> None:
    run = Run(trained[0], CONFIG, _data(shapes, "train"), _data(shapes, "val"), resume=True)
    assert [r.epoch for r in run.train()] == [1, 2]


def test_a_loss_that_is_no_number_is_reported(shapes: Path, tmp_path: Path) -> None:
    data = _data(shapes, "val")
    run = Run(tmp_path / "run", CONFIG, data, data)
    with torch.no_grad():
        run.model.rpn.head.cls_logits.bias.fill_(torch.nan)
    with pytest.raises(StreamdetError, match="try a lower --learning-rate"):
        run.train()


@pytest.mark.parametrize("of", ["numpy", "torch"])
def test_lack_of_memory_gets_one_line(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    data = _data(shapes, "val")
    config = CONFIG
    if of == "numpy":
        config = replace(CONFIG, augment=AugmentConfig((10**8,)))
    else:
        monkeypatch.setattr("streamdet.training.train.detection_losses", lambda *_: torch.empty(1 << 50))
    with pytest.raises(DetectorError, match=r"not enough memory on cpu .*--batch-size") as raised:
        Run(tmp_path / "run", config, data, data).train()
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 69


def test_a_full_disk_gets_one_line_and_costs_no_checkpoint(shapes: Path, tmp_path: Path) -> None:
    data = _data(shapes, "val")
    run = Run(tmp_path / "run", CONFIG, data, data)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*last\.safetensors: File too large; .*--resume"):
            run.train()
        with pytest.raises(StoreError, match=r"cannot write .*last\.pt: File too large") as raised:
            save_checkpoint(tmp_path / "run" / "last.pt", {"model": torch.zeros(100_000)})
        with pytest.raises(StoreError, match=r"cannot write .*x\.png: File too large"):
            RunFolder(tmp_path / "run").write("x.png", bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.exit_code == 69
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_checkpoint_of_another_model_gets_one_line(
    shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]
) -> None:
    """As an old version wrote it, without the configuration, where that is lost."""
    state = load_checkpoint(trained[0] / "last.pt")
    del state["config"]
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "last.pt", state)
    other = replace(CONFIG, model="fasterrcnn_mobilenet_v3_large_320_fpn")
    with pytest.raises(
        ConfigError, match=r"last\.pt does not fit fasterrcnn_mobilenet_v3.*repeat the options"
    ) as raised:
        Run(tmp_path / "run", other, _data(shapes, "train"), _data(shapes, "val"), resume=True)
    assert "\n" not in str(raised.value)


def test_a_folder_is_for_one_process_unless_it_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / ".last.pt.0123.part").touch()
    with folder.locked():
        assert not list(tmp_path.iterdir())
        (tmp_path / ".last.pt.4567.part").touch()  # of a writer at work
        with pytest.raises(ConfigError, match="another process uses it"), folder.locked():
            pass
        assert list(tmp_path.iterdir())

    def has_no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with folder.locked(), monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", has_no_locks)
        with folder.locked():
            pass
    with folder.locked():
        pass


def test_a_picture_that_vanishes_is_reported(shapes: Path, tmp_path: Path) -> None:
    data = _data(shapes, "val")
    gone = [replace(s, path=tmp_path / "gone.jpg") for s in data.samples]
    with pytest.raises(DataError, match=r"cannot read .*gone\.jpg"):
        Run(tmp_path / "run", CONFIG, Dataset(gone, data.categories), data).train()


@pytest.mark.slow
def test_fine_tuning_takes_what_fits(shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]) -> None:
    weights = load_weights_file(trained[0] / "best.safetensors")
    same, other = (build_model(CONFIG.model, 3) for _ in range(2))
    taken = load_initial(same, trained[0] / "best.safetensors", ["disc", "square"])
    assert len(taken.taken) == taken.total
    assert "from nothing" not in str(taken)
    torch.testing.assert_close(same.state_dict(), weights.state)
    taken = load_initial(other, trained[0] / "best.safetensors", ["square", "disc"])
    assert taken.total - len(taken.taken) == 4  # weight and bias of class scores and of boxes
    assert f"{taken.total - 4} of {taken.total} tensors taken" in str(taken)
    assert "the classifier starts from nothing (--categories disc,square would keep it)" in str(taken)
    assert "--categories" not in str(load_initial(other, trained[0] / "best.safetensors", ["square", "ring"]))
    # Normalisation that came with the file keeps its statistics, here that of the pyramid.
    names = frozen_norms_in(other, taken.taken)
    assert names
    data = _data(shapes, "val")
    run = Run(tmp_path / "run", CONFIG, data, data, initial=trained[0] / "best.safetensors")
    before = {n: run.model.get_buffer(f"{n}.running_mean").clone() for n in names}
    run.train()
    for name, mean in before.items():
        assert torch.equal(run.model.get_buffer(f"{name}.running_mean"), mean)


def test_a_state_dict_of_torchvision_fits(tmp_path: Path) -> None:
    theirs = build_model("fasterrcnn_mobilenet_v3_large_320_fpn", 91)
    path = tmp_path / "coco.pth"
    torch.save(theirs.state_dict(), path)
    model = build_model("fasterrcnn_mobilenet_v3_large_320_fpn", 3)
    taken = load_initial(model, path, ["disc", "square"])
    assert taken.total - len(taken.taken) == 4
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(frozen_norms_in(model, taken.taken)) == norms > 30
    # A file without a classifier is none whose detections could be compared with those of the run.
    torch.save({k: v for k, v in theirs.state_dict().items() if "box_predictor" not in k}, path)
    taken = load_initial(model, path, ["disc", "square"])
    assert taken.new_head
    assert str(taken).endswith(f"{path}; the classifier starts from nothing")
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(DataError, match=r"no tensor of .* fits"):
        load_initial(model, path, ["disc", "square"])


def test_what_follows_from_the_model() -> None:
    assert canvas_sizes(320) == (320, 352, 384, 416)
    assert canvas_sizes(800) == (800, 896, 960, 1024)
    assert frozen_stages("fasterrcnn_resnet50_fpn", initialised=True) == 5
    assert frozen_stages("fasterrcnn_resnet50_fpn", initialised=False) == 0


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 3000, TrainConfig()) for step in range(3000)]
    assert max(rates) == rates[199] == pytest.approx(4e-4)
    assert rates[0] == pytest.approx(4e-4 / 200)
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert rates[-1] == pytest.approx(4e-6, rel=0.01)
    assert max(learning_rate_at(step, 50, TrainConfig()) for step in range(50)) == pytest.approx(4e-4)


def test_only_some_epochs_are_evaluated(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = replace(CONFIG, epochs=3, batch_size=8, evaluate_every=2)
    results = Run(out, config, _data(shapes, "train"), _data(shapes, "val")).train()
    assert [r.map is None for r in results] == [True, False, False]
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [bool(r["map"]) for r in rows] == [False, True, True]
    assert {"best.safetensors", "predictions.png", "curves.png"} <= {p.name for p in out.iterdir()}
    assert [config.evaluations_after(epoch) for epoch in range(4)] == [2, 2, 1, 0]


def test_processes_make_the_same_batches_as_threads(shapes: Path) -> None:
    pictures = TrainingPictures(_data(shapes, "train"), AugmentConfig((64, 96)), 4, seed=3)
    shares = [range(4), range(4, 8), range(8, 12)]
    with closing(_by_processes(pictures, shares)) as by_processes, closing(_by_thread(pictures, shares)) as by_thread:
        for (picture, target), (expected, known) in zip(by_processes, by_thread, strict=True):
            assert torch.equal(picture, expected)
            assert torch.equal(target.boxes, known.boxes)
            assert torch.equal(target.labelled, known.labelled)


@pytest.mark.slow
def test_what_the_run_starts_from_is_epoch_0_and_a_worse_run_is_reported(
    shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]
) -> None:
    out = tmp_path / "run"
    data = _data(shapes, "train"), _data(shapes, "val")
    run = Run(out, replace(CONFIG, epochs=1), *data, initial=trained[0] / "best.safetensors")
    run.train()
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    before = list(csv.DictReader((trained[0] / "results.csv").read_text().splitlines()))
    assert [(r["epoch"], bool(r["loss"]), bool(r["learning_rate"])) for r in rows] == [
        ("0", False, False), ("1", True, True),
    ]  # fmt: skip
    # Measured again, on the same pictures, the weights are as good as when they were the best.
    assert float(rows[0]["map"]) == pytest.approx(max(float(r["map"]) for r in before), abs=1e-6)
    start, first = (EpochResult(**r) for r in load_checkpoint(out / "last.pt")["results"])
    for difference, is_worse in ((-0.01, True), (0.01, False)):
        run.results = [start, replace(first, map=(start.map or 0) + difference)]
        assert best_of(run.results) is run.results[1]
        console = Console(record=True, file=io.StringIO(), width=200)
        with TrainingProgress(run, console=console):
            pass
        text = console.export_text()
        assert ("the starting weights are better" in text) == is_worse
        assert "epoch 0  loss -" in text
        assert "best epoch 1" in text
