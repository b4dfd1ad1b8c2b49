"""Trying the likeliest proposals first changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamdet.bench.cases import calibrated_weights
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.stages import proposals
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE
from support.detecting import EASY, clip_frames, pictures


@pytest.fixture(scope="module")
def detector() -> FasterRcnnDetector:
    return FasterRcnnDetector(calibrated_weights(EMBEDDED_ARCHITECTURE), EASY)


@pytest.mark.parametrize("wanted", [1, 20, 200, 100_000])
def test_the_likeliest_are_the_same_however_many_are_tried(
    detector: FasterRcnnDetector, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(detector._propose._rpn._post_nms_top_n, "testing", wanted)
    shown = pictures(clip_frames(2))

    def boxes(tried_per_wanted: float) -> list[Tensor]:
        monkeypatch.setattr(proposals, "_TRIED_PER_WANTED", tried_per_wanted)
        return detector.run(shown).proposals.boxes

    everything, some, few = boxes(10**6), boxes(1.5), boxes(0.3)
    assert [len(b) for b in everything] == [len(b) for b in some] == [len(b) for b in few]
    assert all(0 < len(b) <= wanted for b in everything)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(everything, some, few, strict=True))
