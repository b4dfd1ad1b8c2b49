from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from streamdet.cli import evaluate, train
from streamdet.detector.weights import SIZE_BOUNDS
from streamdet.errors import ConfigError, DataError, StoreError
from streamdet.training.dataset import load_dataset
from streamdet.training.progress import TrainingProgress, bar
from streamdet.training.run import RunFolder, load_checkpoint
from streamdet.training.train import Run
from support.tiny_run import CONFIG

pytestmark = pytest.mark.slow

_WAIT_SECONDS = 180.0


def _train_options(shapes: Path, out: Path, *more: str) -> list[str]:
    return [
        "--data", str(shapes / "train" / "annotations.json"), "--images", str(shapes / "train"),
        "--val", str(shapes / "val" / "annotations.json"), "--val-images", str(shapes / "val"),
        "--out", str(out), "--device", "cpu", *more,
    ]  # fmt: skip


def _recipe(processes: int) -> list[str]:
    """`tiny_run.CONFIG` as options."""
    return [
        "--epochs", "2", "--batch-size", "4", "--learning-rate", "1e-3", "--checkpoint-steps", "2",
        "--image-size", "64", "--min-size", "64", "--max-size", "96", "--processes", str(processes),
    ]  # fmt: skip


def _invoke_train(*options: str) -> Result:
    return CliRunner().invoke(train.command, list(options), catch_exceptions=False)


def _wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def _start(options: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "streamdet", "train", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.timeout(400)
def test_killed_at_a_random_moment_a_run_resumes_bit_by_bit(
    shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]
) -> None:
    out = tmp_path / "run"
    with _start(_train_options(shapes, out, *_recipe(processes=1))) as process:
        _wait_for((out / "last.pt").exists, "the first checkpoint")
        time.sleep(random.uniform(0, 3))  # noqa: S311 - any moment will do
        process.kill()
    saved = RunFolder(out).read_config()
    assert saved is None or saved[0] == CONFIG
    result = _invoke_train(*_train_options(shapes, out, "--resume", *_recipe(processes=1)))
    assert "best epoch" in result.output
    whole, pieces = (load_checkpoint(folder / "last.pt") for folder in (trained[0], out))
    assert pieces["step"] == 12
    for key in ("model", "average", "optimizer"):
        torch.testing.assert_close(pieces[key], whole[key], rtol=0, atol=0)
    assert not list(out.glob(".*"))


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, level = set(), {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= level
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(400)
def test_killing_the_first_process_leaves_none_behind(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with _start(_train_options(shapes, out, "--batch-size", "4", "--processes", "2", "--epochs", "500")) as process:
        _wait_for((out / "config.json").exists, "the run to begin")
        others = _descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    assert others
    _wait_for(lambda: not any(_is_alive(pid) for pid in others), f"the end of {others}")


@pytest.mark.timeout(400)
def test_ctrl_c_ends_after_the_step_and_says_how_to_go_on(shapes: Path, tmp_path: Path) -> None:
    """As a terminal does it: the signal reaches all processes of the group."""
    out = tmp_path / "run"
    options = _train_options(shapes, out, *_recipe(processes=2), "--checkpoint-steps", "1000", "--epochs", "500")
    command = [sys.executable, "-m", "streamdet", "train", *options]
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        _wait_for((out / "results.csv").exists, "the first epoch")
        os.killpg(process.pid, signal.SIGINT)
        _, reported = process.communicate(timeout=_WAIT_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in reported
    step = load_checkpoint(out / "last.pt")["step"]
    assert step >= 6
    last = reported.splitlines()[-1]
    assert last.startswith(f"streamdet: stopped after step {step} of 3000; to go on: streamdet train --data ")
    assert last.endswith("--processes 2 --resume")
    resumed = last.partition("streamdet train ")[2]
    run = RunFolder(out)
    assert run.read_config() is not None
    assert f"--out {out}" in resumed


def test_evaluate_agrees_with_the_run(shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]) -> None:
    options = [
        "--weights", str(trained[0] / "last.safetensors"), "--data", str(shapes / "val" / "annotations.json"),
        "--images", str(shapes / "val"), "--device", "cpu", "--out", str(tmp_path / "out"),
        "--engine", "torch", "--precision", "fp32",
    ]  # fmt: skip
    result = CliRunner().invoke(evaluate.command, [*options, "--json"], catch_exceptions=False)
    summary = json.loads(result.stdout)
    last = load_checkpoint(trained[0] / "last.pt")["results"][-1]
    assert summary["map"] == pytest.approx(last["map"], abs=1e-6)
    assert summary["map_50"] == pytest.approx(last["map_50"], abs=1e-6)
    assert set(summary["per_class"]) == {"disc", "square"}
    assert set(summary["per_class"]["disc"]) == {"ap", "ap_50"}
    assert summary["images"] == 8
    assert summary["images_per_second"] > 0
    for name in ("precision_recall.png", "confusion.png", "predictions.png"):
        assert cv2.imread(str(tmp_path / "out" / name)) is not None
    text = CliRunner().invoke(evaluate.command, options, catch_exceptions=False).stdout
    assert "mAP@.50" in text
    assert "square" in text


def test_names_of_categories_are_no_markup(shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]) -> None:
    content = json.loads((shapes / "val" / "annotations.json").read_text())
    for category, name in zip(content["categories"], ("[/red]", "[bold]$x_{"), strict=True):
        category["name"] = name
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    options = [
        "--weights", str(trained[0] / "last.safetensors"), "--data", str(path), "--images", str(shapes / "val"),
        "--categories", "[/red],[bold]$x_{", "--device", "cpu", "--engine", "torch", "--precision", "fp32",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    text = CliRunner().invoke(evaluate.command, options, catch_exceptions=False).stdout
    assert "[/red]" in text
    assert "[bold]$x_{" in text
    console = Console(force_terminal=True, file=io.StringIO())
    with bar("checking [/odd].json", console) as on_progress:
        on_progress(1, 2)
    assert isinstance(console.file, io.StringIO)
    assert "[/odd" in console.file.getvalue()


def _evaluate_renamed(
    shapes: Path, weights: Path, path: Path, renamed: list[str], *options: str
) -> tuple[dict[str, Any], str]:
    """What evaluating says, as JSON and on stderr, when the categories of the data set have other names."""
    content = json.loads((shapes / "val" / "annotations.json").read_text())
    for category, name in zip(content["categories"], renamed, strict=True):
        category["name"] = name
    path.write_text(json.dumps(content))
    given = [
        "--weights",
        str(weights),
        "--data",
        str(path),
        "--images",
        str(shapes / "val"),
        "--device",
        "cpu",
        "--engine",
        "torch",
        "--precision",
        "fp32",
        "--json",
    ]
    result = CliRunner().invoke(evaluate.command, [*given, *options], catch_exceptions=False)
    return json.loads(result.stdout), result.stderr


def test_evaluate_leaves_out_categories_that_the_weights_do_not_know(
    shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, path = trained[0] / "last.safetensors", tmp_path / "rings.json"
    summary, reported = _evaluate_renamed(shapes, weights, path, ["disc", "ring"])
    assert "the weights do not know ring: evaluated without" in reported
    assert set(summary["per_class"]) == {"disc"}
    assert summary["map"] == summary["per_class"]["disc"]["ap"]
    assert summary["images"] == 8
    counted, reported = _evaluate_renamed(shapes, weights, path, ["disc", "ring"], "--categories", "disc,ring")
    assert "the weights do not know ring: they will not be found" in reported
    assert counted["per_class"]["ring"]["ap"] == 0
    assert counted["map"] == pytest.approx(summary["map"] / 2)
    monkeypatch.setattr(evaluate, "_SHOWN_NAMES", 1)
    with pytest.raises(ConfigError, match="the weights know disc and 1 more; the data set has ring and 1 more"):
        _evaluate_renamed(shapes, weights, path, ["ring", "bow"])


def test_a_run_that_was_killed_before_its_config_was_written_resumes_as_it_began(
    shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]
) -> None:
    shutil.copy(trained[0] / "last.pt", tmp_path)
    result = _invoke_train(*_train_options(shapes, tmp_path, "--resume", "--processes", "1"))
    assert "going on after step 12 of 12" in result.output
    assert RunFolder(tmp_path).read_config() == RunFolder(trained[0]).read_config()


def test_two_trainings_do_not_share_a_folder(shapes: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(ConfigError, match="another process uses it"):
        _invoke_train(*_train_options(shapes, tmp_path, *_recipe(processes=1)))
    assert not list(tmp_path.iterdir())


def test_what_was_evaluated_is_printed_also_where_its_pictures_cannot_be_kept(
    shapes: Path, tmp_path: Path, trained: tuple[Path, list[float]]
) -> None:
    options = [
        "--weights", str(trained[0] / "last.safetensors"), "--data", str(shapes / "val" / "annotations.json"),
        "--images", str(shapes / "val"), "--device", "cpu", "--engine", "torch", "--precision", "fp32", "--json",
    ]  # fmt: skip
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        result = CliRunner().invoke(evaluate.command, [*options, "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads(result.stdout)["images"] == 8
    assert isinstance(result.exception, StoreError)
    assert re.fullmatch(r"--out: cannot write .*precision_recall\.png: File too large", str(result.exception))
    assert not list((tmp_path / "out").iterdir())
    wrong = [*options, "--data", str(tmp_path / "none.json"), "--out", str(shapes / "val" / "annotations.json" / "out")]
    with pytest.raises(ConfigError, match=r"--out: cannot write .*: Not a directory"):  # before anything is read
        CliRunner().invoke(evaluate.command, wrong, catch_exceptions=False, standalone_mode=False)


def test_resume_takes_the_options_of_the_run(shapes: Path, trained: tuple[Path, list[float]]) -> None:
    out = trained[0]
    assert "best epoch" in _invoke_train(*_train_options(shapes, out, "--resume", "--processes", "1")).output
    with pytest.raises(ConfigError, match="epochs was 2, now 3"):
        _invoke_train(*_train_options(shapes, out, "--resume", "--epochs", "3", "--processes", "1"))
    with pytest.raises(ConfigError, match="already holds a run"):
        _invoke_train(*_train_options(shapes, out))


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (["--init", "none.pth"], "--init: there is no file none.pth"),
        (["--categories", " , "], "--categories names no category"),
        (["--categories", "ring"], "has no category ring; it has disc, square"),
        (["--min-size", "640", "--max-size", "320"], "--min-size 640 is more than --max-size 320"),
        (["--batch-size", "3", "--processes", "2"], "a batch of 3 cannot be shared evenly"),
        pytest.param(
            ["--device", "cuda"], "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_wrong_options_get_one_line(shapes: Path, tmp_path: Path, options: list[str], reported: str) -> None:
    with pytest.raises(ConfigError, match=reported) as raised:
        _invoke_train(*_train_options(shapes, tmp_path / "run"), *options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_set_without_a_box_is_refused_for_training_and_reported_for_validation(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "val" / "annotations.json").read_text())
    content["annotations"] = [{**entry, "iscrowd": 1} for entry in content["annotations"]]
    path = tmp_path / "crowds.json"
    path.write_text(json.dumps(content))
    options = _train_options(shapes, tmp_path / "run", "--images", str(shapes / "val"), *_recipe(1), "--epochs", "1")
    with pytest.raises(DataError, match=r"crowds\.json has no box of disc, square: there is nothing to learn"):
        _invoke_train(*options, "--data", str(path))
    sound = ["--data", str(shapes / "val" / "annotations.json")]
    output = _invoke_train(*options, *sound, "--val", str(path)).output
    assert "warning: --val has no box to find" in output
    assert "mAP -  mAP@.50 -" in output


@pytest.mark.parametrize("option", ["--min-size", "--max-size"])
@pytest.mark.parametrize("side", [SIZE_BOUNDS[0] - 1, SIZE_BOUNDS[1] + 1])
def test_an_input_that_no_weights_may_ask_for_is_refused(shapes: Path, tmp_path: Path, option: str, side: int) -> None:
    result = CliRunner().invoke(train.command, _train_options(shapes, tmp_path / "run", option, str(side)))
    assert result.exit_code == 2
    assert f"{side} is not in the range 32<=x<=4096" in result.output


def test_evaluate_reads_the_data_before_it_loads_a_detector(tmp_path: Path) -> None:
    data = tmp_path / "broken.json"
    data.write_text("{")
    options = ["--data", str(data), "--images", str(tmp_path), "--weights", str(tmp_path / "missing.safetensors")]
    with pytest.raises(DataError, match=r"broken\.json"):
        CliRunner().invoke(evaluate.command, options, catch_exceptions=False, standalone_mode=False)


def test_broken_data_is_reported_before_anything_begins(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "train" / "annotations.json").read_text())
    content["images"][0]["file_name"] = "gone.jpg"
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    options = _train_options(shapes, tmp_path / "run", "--data", str(path), "--processes", "1", *_recipe(1))
    with pytest.raises(DataError, match=r"1 problem; .*\n  1 x missing image"):
        _invoke_train(*options)
    result = _invoke_train(*options, "--skip-bad", "--epochs", "1")
    assert "left out of" in result.stderr
    assert "23 pictures to learn from" in result.stdout


@pytest.mark.parametrize(
    ("width", "shown"),
    [(120, {"epoch", "objectness", "rate", "mAP", "time left"}), (80, {"epoch", "loss", "mAP@.50", "time left"}),
     (20, {"epoch", "mAP"})],
)  # fmt: skip
def test_a_terminal_shows_whole_columns_alone(
    shapes: Path, trained: tuple[Path, list[float]], width: int, shown: set[str]
) -> None:
    """80 columns are what most terminals have."""
    data = [load_dataset(shapes / name / "annotations.json", shapes / name)[0] for name in ("train", "val")]
    run = Run(trained[0], CONFIG, *data, resume=True)
    console = Console(force_terminal=True, color_system=None, width=width, height=24, file=io.StringIO())
    with TrainingProgress(run, console=console):
        pass
    assert isinstance(console.file, io.StringIO)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    heading = next(line for line in lines if line.startswith("epoch "))
    assert shown <= set(re.split("  +", heading))
    last = lines[lines.index(heading) + 3]  # of two epochs, below the line
    assert f"{run.results[-1].map:.3f}" in last.split()
    assert len(last) <= width


def test_a_terminal_shows_the_table(shapes: Path, trained: tuple[Path, list[float]]) -> None:
    data = [load_dataset(shapes / name / "annotations.json", shapes / name)[0] for name in ("train", "val")]
    run = Run(trained[0], CONFIG, *data, resume=True)
    console = Console(force_terminal=True, width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with console.file, TrainingProgress(run, console=console) as progress:
        progress.on_step(12, 12, {"box": 0.5}, 4.0)
    text = console.export_text()
    for word in ("epoch", "classifier", "mAP@.50", "images/s", "time left", "going on after step 12 of 12"):
        assert word in text
