"""The daemon gets the detector that its configuration asks for, once for each worker."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from streamdet.config import Config
from streamdet.detector import load
from streamdet.detector.engines import openvino
from streamdet.detector.engines.openvino import compile_model, is_installed
from streamdet.detector.load import choose_workers, load_real_detector, nvidia_device
from streamdet.detector.pipeline import ArrayPicture, FasterRcnnDetector
from streamdet.detector.pool import Running
from streamdet.detector.reference import ReferenceDetector
from streamdet.detector.state import Store
from streamdet.errors import DetectorError
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import STAGES, Metrics
from support.detecting import clip_frames, pictures
from support.paths import TESTS


def config(streams: int = 1, **detector: object) -> Config:
    return Config.model_validate(
        {
            "detector": {"device": "cpu", **detector},
            "streams": [{"name": f"s{i}", "url": f"rtsp://192.0.2.1/{i}"} for i in range(streams)],
        }
    )


@pytest.fixture
def _settings_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What loading sets for the whole process is as before after the test; memory is left to glibc."""
    monkeypatch.setattr(load, "keep_memory", lambda: True)
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(threads)
    cv2.setNumThreads(cv2_threads)


def count_of(metrics: Metrics, stage: str) -> float:
    count = metrics.registry.get_sample_value("streamdet_stage_seconds_count", {"stage": stage})
    assert count is not None
    return count


@pytest.mark.usefixtures("_settings_kept")
def test_workers_share_the_weights_and_find_the_same() -> None:
    metrics = Metrics(Ledger())
    several = load_real_detector(config(engine="torch", workers=3), metrics)
    assert len(several.detectors) == len(set(map(id, several.detectors))) == 3
    assert all(isinstance(detector, FasterRcnnDetector) for detector in several.detectors)
    assert len({id(detector._model) for detector in several.detectors}) == 1  # type: ignore[union-attr]
    assert torch.get_num_threads() == 1
    shown = pictures(clip_frames(1))
    first, *others = [detector.detect(shown) for detector in several.detectors]
    assert len(first[0]) > 0
    assert others == [first] * 2
    assert [count_of(metrics, stage) for stage in STAGES] == [3] * len(STAGES)


@pytest.mark.usefixtures("_settings_kept")
def test_reference_is_chosen_by_name() -> None:
    several = load_real_detector(config(engine="reference", workers=1), Metrics(Ledger()))
    (detector,) = several.detectors
    assert isinstance(detector, ReferenceDetector)
    assert several.labels == detector.labels


@pytest.mark.usefixtures("_settings_kept")
def test_what_an_engine_cannot_do_is_reported() -> None:
    with pytest.raises(DetectorError, match=r'detector\.precision: engine = "torch" has no "int8"; use "auto"'):
        load_real_detector(config(engine="torch", precision="int8"), Metrics(Ledger()))


@pytest.mark.usefixtures("_settings_kept")
def test_frames_of_the_last_run_are_warmed_up_for_and_those_of_this_one_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    Store(tmp_path).write_frame_sizes([(720, 1280), (300, 400)])
    several = load_real_detector(
        config(engine="torch", precision="fp32", workers=2, max_batch_size=8), Metrics(Ledger())
    )
    assert [detector.frame_sizes for detector in several.detectors] == [((720, 1280), (300, 400))] * 2  # type: ignore[attr-defined]
    wide, wider, upright = (ArrayPicture(np.zeros((*size, 3), np.uint8)) for size in ((90, 160), (180, 320), (160, 90)))
    for picture in (wide, wider, upright, wide):
        several.prepare(picture)
    # Of those that need the same canvas, one stands for all: one that is tried anyway, or the first.
    assert Store(tmp_path).frame_sizes() == ((1080, 1920), (1920, 1080))
    several.prepare(ArrayPicture(np.zeros((100, 300, 3), np.uint8)))
    assert Store(tmp_path).frame_sizes() == ((100, 300), (1080, 1920), (1920, 1080))
    several.trim()
    assert several.detectors[0].detect([wide]) == several.detectors[1].detect([wide])


@pytest.mark.skipif(not is_installed(), reason="needs OpenVINO")
@pytest.mark.usefixtures("_settings_kept")
def test_a_new_size_is_prepared_for_while_the_detector_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    Store(tmp_path).write_frame_sizes([(90, 160)])
    several = load_real_detector(
        config(engine="openvino", precision="fp32", workers=1, max_batch_size=8), Metrics(Ledger())
    )
    several.warm_up()
    begun, go_on = threading.Event(), threading.Event()

    def compile_slowly(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return compile_model(*args)

    monkeypatch.setattr(openvino, "compile_model", compile_slowly)
    known, new = (ArrayPicture(np.zeros((*size, 3), np.uint8)) for size in ((90, 160), (160, 90)))
    with ThreadPoolExecutor(1) as capture:
        preparing = capture.submit(several.prepare, new)
        assert begun.wait(60)
        several.detectors[0].detect([known])
        assert not preparing.done()
        go_on.set()
        preparing.result(60)
    monkeypatch.setattr(openvino, "compile_model", None)
    several.detectors[0].detect([new])


@pytest.mark.skipif(not is_installed(), reason="needs OpenVINO")
@pytest.mark.usefixtures("_settings_kept")
def test_the_first_start_takes_memory_for_the_commonest_shape_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    several = load_real_detector(
        config(engine="openvino", precision="fp32", workers=2, max_batch_size=1), Metrics(Ledger())
    )
    compiled: list[list[int]] = []

    def compile_and_note(model: Any, *args: Any) -> Any:
        compiled.append(list(model.inputs[0].shape))
        return compile_model(model, *args)

    monkeypatch.setattr(openvino, "compile_model", compile_and_note)
    several.warm_up()
    assert len(compiled) == 1
    wide, narrow = (ArrayPicture(np.zeros((*size, 3), np.uint8)) for size in ((1080, 1920), (960, 1280)))
    several.prepare(wide)
    assert len(compiled) == 1
    several.prepare(narrow)
    assert len(compiled) == 2


def test_there_is_a_worker_for_each_core_by_default() -> None:
    assert choose_workers(None, cores=2) == 2
    assert choose_workers(None, cores=256) == 64
    assert choose_workers(5, cores=2) == 5


def test_this_module_loads_without_torch() -> None:
    command = "import sys, streamdet.detector.load; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=TESTS, timeout=60)


@pytest.mark.usefixtures("_settings_kept")
def test_what_runs_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        several = load_real_detector(
            config(engine="torch", precision="fp32", workers=2, max_batch_size=8), Metrics(Ledger())
        )
    running = several.running
    assert running is not None
    assert running.facts() == {
        "device": "cpu", "engine": "torch", "precision": "fp32", "max_batch_size": 8, "workers": 2,
        "weights": "embedded",
    }  # fmt: skip
    assert "detecting with torch in fp32 on cpu, up to 8 frames a batch, 2 batches at a time" in caplog.text
    metrics = Metrics(Ledger())
    metrics.engine(running.facts())
    labels = {name: str(value) for name, value in running.facts().items()}
    assert metrics.registry.get_sample_value("streamdet_engine_info", labels) == 1
    left_out = Running("cpu", "torch", "fp32", 1, 2, "embedded", (("openvino int8", "crashed: SIGSEGV"),))
    assert left_out.in_words().endswith("; left out: openvino int8: crashed: SIGSEGV")
    assert left_out.to_dict()["left_out"] == {"openvino int8": "crashed: SIGSEGV"}


def test_an_nvidia_device_is_found_by_what_the_kernel_shows(tmp_path: Path) -> None:
    assert not nvidia_device(tmp_path)
    for name, vendor, kind in (("0000:00:01.0", "0x8086", "0x030000"), ("0000:00:02.0", "0x10de", "0x040300")):
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    assert not nvidia_device(tmp_path)  # a sound device of NVIDIA's is none
    (tmp_path / "sys/bus/pci/devices/0000:00:02.0/class").write_text("0x030200\n")
    assert nvidia_device(tmp_path) == "PCI 0000:00:02.0"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert nvidia_device(tmp_path) == "/dev/nvidia0"


def test_a_gpu_that_cuda_cannot_use_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(load, "nvidia_device", lambda: "/dev/nvidia0")
    load._warn_of_silent_gpu("cpu", "cpu")
    load._warn_of_silent_gpu("auto", "cuda")
    assert not caplog.text
    load._warn_of_silent_gpu("auto", "cpu")
    assert "this machine has an NVIDIA device (/dev/nvidia0) that CUDA cannot use" in caplog.text
