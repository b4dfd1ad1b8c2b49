"""Graphs, slots and streams on a CUDA device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamdet.assets import sample_clip
from streamdet.bench.cases import EMBEDDED_LABELS, calibrated_weights
from streamdet.capture.sources.picture import AvPicture
from streamdet.config import DetectorConfig
from streamdet.detector.graph.detector import GraphDetector
from streamdet.detector.graph.finish import packed_limits
from streamdet.detector.graph.pixels import PixelFormat, read_bytes
from streamdet.detector.graph.runner import EagerRunner
from streamdet.detector.graph.step import GraphStep
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from streamdet.types import Detection, DetectionSettings

pytestmark = pytest.mark.gpu

CONFIG = DetectorConfig(device="cuda", precision="fp32", score_threshold=0.2, max_batch_size=6)


def pictures(count: int) -> list[AvPicture]:
    with av.open(str(sample_clip())) as container:
        return [AvPicture(frame) for frame in itertools.islice(container.decode(video=0), 0, 20 * count, 20)]


@pytest.fixture
def detector() -> GraphDetector:
    return GraphDetector(calibrated_weights(EMBEDDED_ARCHITECTURE), CONFIG, torch.device("cuda", 0))


def limits_of(count: int) -> NDArray[np.float32]:
    """Of frames with a threshold each, from 0.2 on."""
    settings = [DetectionSettings(score_threshold=0.2 + 0.1 * number) for number in range(count)]
    return np.array([packed_limits(EMBEDDED_LABELS, each) for each in settings], np.float32)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_close(found: list[list[Detection]], wanted: list[list[Detection]]) -> None:
    assert [[d.label for d in frame] for frame in found] == [[d.label for d in frame] for frame in wanted]
    assert min(map(len, wanted)) >= 3
    for one, other in zip(itertools.chain(*found), itertools.chain(*wanted), strict=True):
        assert abs(one.score - other.score) <= 1e-3
        assert max(abs(a - b) for a, b in zip(one.box, other.box, strict=True)) <= 0.5


def test_graph_equals_eager_and_the_cpu(detector: GraphDetector) -> None:
    assert detector._graphs is not None
    pixel_format, _ = read_bytes(pictures(1)[0])
    frames = [read_bytes(picture)[1] for picture in pictures(5)]
    limits = limits_of(5)
    eager = EagerRunner(detector.model).run(pixel_format, 512, frames, limits)
    # The fifth has a bucket of its own, with frames of the batch before in it.
    for count in (4, 1, 5, 3):
        found = detector._graphs.run(pixel_format, 512, frames[:count], limits[:count])
        np.testing.assert_allclose(found, eager[:count], atol=0.05)
    assert all(graph.captured for graph in detector._graphs._graphs.values())
    cpu = GraphDetector(calibrated_weights(EMBEDDED_ARCHITECTURE), CONFIG, torch.device("cpu"))
    assert_close(detector.detect(pictures(5)), cpu.detect(pictures(5)))


def test_nothing_waits_between_upload_and_download(detector: GraphDetector) -> None:
    runner = detector._graphs
    assert runner is not None
    pixel_format, pixels = read_bytes(pictures(1)[0])
    runner.run(pixel_format, 512, [pixels], limits_of(1))
    (graph,) = runner._graphs.values()
    slot = runner._slots.get()
    size_bytes = slot.fill([pixels], limits_of(1))
    with no_waiting(), torch.inference_mode():
        runner.enqueue(slot, graph, size_bytes, 1)
        graph._step(graph.pixels, graph.limits)  # not as a graph either
    slot.downloaded.synchronize()


def test_threads_share_a_detector(detector: GraphDetector) -> None:
    batches = [pictures(6)[start : start + size] for start, size in ((0, 6), (1, 1), (2, 3), (0, 2), (4, 2))] * 4
    wanted = [detector.detect(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        for found, expected in zip(pool.map(detector.detect, batches), wanted, strict=True):
            assert_close(found, expected)


def test_what_cannot_be_captured_runs_without_a_graph(
    detector: GraphDetector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = GraphStep.__call__

    def waits(step: GraphStep, pixels: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        assert pixels.float().mean().item() >= 0
        return call(step, pixels, limits)

    wanted = detector.detect(pictures(2))
    fresh = GraphDetector(calibrated_weights(EMBEDDED_ARCHITECTURE), CONFIG, torch.device("cuda", 0))
    monkeypatch.setattr(GraphStep, "__call__", waits)
    with caplog.at_level(logging.WARNING):
        assert_close(fresh.detect(pictures(2)), wanted)
    assert "no CUDA graph for batches of 2 frames" in caplog.text


def test_one_batch_in_a_hundred_is_staged() -> None:
    reported: list[str] = []
    detector = GraphDetector(
        calibrated_weights(EMBEDDED_ARCHITECTURE),
        CONFIG,
        torch.device("cuda", 0),
        lambda stage, _: reported.append(stage),
    )
    for _ in range(100):
        detector.detect(pictures(1))
    assert reported == ["input", "preprocess", "features", "proposals", "roi_pool", "classify", "postprocess"]


def test_many_formats_are_forgotten(detector: GraphDetector) -> None:
    assert detector._graphs is not None
    for width in range(64, 64 + 2 * 34, 2):
        detector._graphs.run(PixelFormat(64, width), 512, [np.zeros(64 * width * 3, np.uint8)], limits_of(1))
    assert len(detector._graphs._graphs) == 32
