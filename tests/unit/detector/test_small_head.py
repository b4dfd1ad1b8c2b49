"""A small box head starts as near to the original as it can, learns to answer like it, or is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from streamdet.assets import embedded_weights
from streamdet.bench.cases import calibrated_weights
from streamdet.config import DetectorConfig
from streamdet.detector.engines import small_head
from streamdet.detector.engines.openvino import BoxHead
from streamdet.detector.engines.quantise import observe
from streamdet.detector.engines.small_head import (
    Answers,
    decompose,
    make_small_head,
    score_difference,
    small_head_from_tensors,
    small_head_to_tensors,
    turned,
)
from streamdet.detector.pipeline import FasterRcnnDetector, prepare_model
from streamdet.detector.weights import load_weights_file
from support.detecting import clip_frames, pictures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    return prepare_model(load_weights_file(embedded_weights()), CPU)


@pytest.fixture(scope="module")
def answers() -> Answers:
    """Of the embedded weights, to regions of the sample clip."""
    config = DetectorConfig(engine="torch", precision="fp32", device="cpu", max_batch_size=1)
    detector = FasterRcnnDetector(load_weights_file(embedded_weights()), config)
    return observe(detector, pictures(clip_frames(24))).answers


@torch.no_grad()
def original(model: FasterRCNN, regions: Tensor) -> list[Tensor]:
    return list(BoxHead(model)(regions.float()))


def test_answers_are_those_of_the_box_head(model: FasterRCNN, answers: Answers) -> None:
    some = answers[:: len(answers) // 50]
    logits, deltas = original(model, some.regions)
    torch.testing.assert_close(logits.softmax(-1), some.scores, atol=5e-3, rtol=0)
    torch.testing.assert_close(torch.unflatten(deltas, 1, (-1, 4)), some.deltas, atol=5e-2, rtol=0)


def test_with_as_many_numbers_between_it_is_the_original(model: FasterRCNN, answers: Answers) -> None:
    some = answers[:: len(answers) // 50]
    found = decompose(model, answers.regions, 1.0)(some.regions.float())
    for have, want in zip(found, original(model, some.regions), strict=True):
        torch.testing.assert_close(have, want, atol=1e-3, rtol=1e-3)


def test_a_third_of_them_says_nearly_the_same(model: FasterRCNN, answers: Answers) -> None:
    nearest = decompose(model, answers.regions)
    assert nearest.narrow.weight.shape == (128, 7 * 7 * 128)
    assert 0 < score_difference(nearest, answers) < 0.1
    other = decompose(model, torch.randn(1000, 7, 7, 128, generator=torch.Generator().manual_seed(0)))
    assert score_difference(other, answers) > 2 * score_difference(nearest, answers)


def test_a_third_is_enough_where_the_pictures_are_alike(model: FasterRCNN, answers: Answers) -> None:
    steps: list[tuple[int, int]] = []
    made = make_small_head(model, answers, lambda done, of: steps.append((done, of)))
    assert made is not None
    assert len(made.narrow.weight) == 128
    assert steps == []  # it need not be trained
    kept_back = answers[round(0.9 * len(answers)) :]
    assert score_difference(made, kept_back) <= small_head._SCORE_DIFFERENCE
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert [t.shape for t in made(torch.zeros(0, 7, 7, 128))] == [(0, 7), (0, 28)]


def test_where_a_third_is_not_enough_and_training_does_not_help_it_is_a_half(
    model: FasterRCNN, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_back = answers[round(0.9 * len(answers)) :]
    nearest = decompose(model, answers[: round(0.9 * len(answers))].regions)
    monkeypatch.setattr(small_head, "_SCORE_DIFFERENCE", 0.6 * score_difference(nearest, kept_back))
    steps: list[tuple[int, int]] = []
    made = make_small_head(model, answers, lambda done, of: steps.append((done, of)))
    assert made is not None
    assert len(made.narrow.weight) == 192
    assert steps[-1][0] == steps[-1][1] == len(steps)  # the third was trained
    assert score_difference(made, kept_back) < 0.6 * score_difference(nearest, kept_back)


def test_turned_it_says_the_same_and_what_is_between_varies_alike(model: FasterRCNN, answers: Answers) -> None:
    nearest = decompose(model, answers.regions)
    other = turned(nearest)
    regions = answers.regions[:: len(answers) // 500].float()
    for have, want in zip(other(regions), nearest(regions), strict=True):
        torch.testing.assert_close(have, want, atol=1e-3, rtol=1e-3)
    before, after = (each.narrow(regions.flatten(1)).std(0) for each in (nearest, other))
    assert before.max() / before.min() > 10
    assert after.max() / after.min() < 4


def test_training_brings_it_nearer_to_the_answers(model: FasterRCNN, answers: Answers) -> None:
    nearest = decompose(model, answers.regions)
    before = float(small_head._distance(nearest, answers))
    trained = small_head._train(nearest, answers, None)
    assert float(small_head._distance(trained, answers)) < 0.8 * before


def test_there_is_none_of_few_answers_of_convolutions_or_unlike_the_original(
    model: FasterRCNN, answers: Answers
) -> None:
    assert make_small_head(model, answers[:1000]) is None
    convolutions = prepare_model(calibrated_weights("fasterrcnn_resnet50_fpn_v2"), CPU)
    assert make_small_head(convolutions, answers) is None
    turned = replace(answers, scores=answers.scores.flip(0))
    assert make_small_head(model, turned) is None


def test_it_keeps_what_it_says_in_a_file(model: FasterRCNN, answers: Answers) -> None:
    made = decompose(model, answers.regions)
    tensors = small_head_to_tensors(made)
    read = small_head_from_tensors({**tensors, "features.xml": torch.zeros(1, dtype=torch.uint8)})
    assert read is not None
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < 2.2e6
    some = answers[:200]
    with torch.no_grad():
        for have, want in zip(read(some.regions.float()), made(some.regions.float()), strict=True):
            torch.testing.assert_close(have, want, atol=0.05, rtol=0.01)
    assert small_head_from_tensors({"features.xml": torch.zeros(1, dtype=torch.uint8)}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("second.bias", None),
        ("narrow.weight", None),
        ("narrow.weight", torch.zeros(128, dtype=torch.float16)),
        ("wide.bias", torch.zeros(383, dtype=torch.float16)),
        ("wide.weight", torch.zeros(1 << 22, 128, dtype=torch.float16)),
        ("output.weight", torch.full((35, 384), torch.nan, dtype=torch.float16)),
        ("output.bias", torch.zeros(35)),
        ("another", torch.zeros(1, dtype=torch.float16)),
    ],
)
def test_what_is_not_whole_in_a_file_is_refused(
    model: FasterRCNN, answers: Answers, name: str, value: Tensor | None
) -> None:
    tensors = small_head_to_tensors(decompose(model, answers[:500].regions))
    tensors[f"small_head.{name}"] = value  # type: ignore[assignment]
    if value is None:
        del tensors[f"small_head.{name}"]
    with pytest.raises(ValueError, match="the small box head is not whole"):
        small_head_from_tensors(tensors)
