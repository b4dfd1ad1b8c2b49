"""The daemon gets the detector that its configuration asks for, once for each worker."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch

from streamdet.config import Config
from streamdet.detector import load
from streamdet.detector.load import choose_workers, load_real_detector, nvidia_device
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.pool import Running
from streamdet.detector.reference import ReferenceDetector
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
def test_what_an_engine_cannot_do_is_told() -> None:
    with pytest.raises(DetectorError, match=r'detector\.precision: engine = "torch" has no "int8"; use "auto"'):
        load_real_detector(config(engine="torch", precision="int8"), Metrics(Ledger()))


def test_there_is_a_worker_for_each_core_unless_told_otherwise() -> None:
    assert choose_workers(None, cores=2) == 2
    assert choose_workers(None, cores=256) == 64
    assert choose_workers(5, cores=2) == 5


def test_this_module_loads_without_torch() -> None:
    command = "import sys, streamdet.detector.load; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=TESTS, timeout=60)


@pytest.mark.usefixtures("_settings_kept")
def test_what_runs_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        several = load_real_detector(config(engine="torch", precision="fp32", workers=2), Metrics(Ledger()))
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
