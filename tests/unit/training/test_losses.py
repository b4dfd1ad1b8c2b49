from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from streamdet.detector.graph.suppress import Suppress, suppress_until_settled
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE, build_model
from streamdet.training import losses
from streamdet.training.losses import (
    Target,
    background_loss,
    detection_losses,
    ignored,
    labelled_at,
    match,
    pad_targets,
    sample,
)

SIDE = 96


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    torch.manual_seed(0)
    return build_model(EMBEDDED_ARCHITECTURE, 4).train()


def _target(
    boxes: list[list[float]],
    labels: list[int],
    ignore: list[list[float]] | None = None,
    regions: list[list[float]] | None = None,
    labelled: list[list[bool]] | None = None,
) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore or [], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(regions or [[0, 0, SIDE, SIDE]], dtype=torch.float32),
        torch.tensor(labelled or [[True] * 4]),
    )


@pytest.mark.parametrize("suppress", [None, suppress_until_settled])
def test_fully_labelled_pictures_give_torchvisions_own_losses(
    model: FasterRCNN, suppress: Suppress | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both choose at random among too many candidates; here they take all.
    for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
        monkeypatch.setattr(sampler, "batch_size_per_image", 10_000)
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    targets = [_target([[10, 10, 40, 50], [50, 20, 90, 80]], [1, 3]), _target([], [])]
    own = detection_losses(model, images, pad_targets(targets), suppress)
    features = model.backbone(images)
    theirs = [{"boxes": t.boxes, "labels": t.labels} for t in targets]
    sizes = [(SIDE, SIDE)] * 2
    proposals, rpn = model.rpn(ImageList(images, sizes), features, theirs)
    _, head = model.roi_heads(features, proposals, sizes, theirs)
    expected = {
        "objectness": rpn["loss_objectness"],
        "rpn_box": rpn["loss_rpn_box_reg"],
        "classifier": head["loss_classifier"],
        "box": head["loss_box_reg"],
    }
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6)


def test_background_loss_is_cross_entropy_where_all_is_labelled() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(7, dtype=torch.int64), reduction="none")
    torch.testing.assert_close(background_loss(logits, torch.ones(7, 4, dtype=torch.bool)), expected)


def test_background_loss_lets_unlabelled_classes_be() -> None:
    labelled = torch.tensor([[True, True, False, True]])
    sure = torch.tensor([[0.0, 0.0, 12.0, 0.0]])
    assert background_loss(sure, labelled) < 1e-4
    assert background_loss(sure, torch.ones_like(labelled)) > 10
    logits = torch.tensor([[0.3, -0.2, 0.9, 0.1]], requires_grad=True)
    background_loss(logits, labelled).sum().backward()
    exact = logits.detach().double().requires_grad_()
    p = exact.softmax(dim=1)
    (-(p[0, 0] + p[0, 2]).log()).backward()
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    # Pushed up like the background, while the labelled classes are pushed down.
    assert (logits.grad[0, [0, 2]] < 0).all()
    assert (logits.grad[0, [1, 3]] > 0).all()


def _objectness_gradient(model: FasterRCNN, scores: list[float], anchors: list[list[float]], target: Target) -> Tensor:
    objectness = torch.tensor([scores], requires_grad=True)
    deltas = torch.zeros(1, len(scores), 4, requires_grad=True)
    torch.manual_seed(0)
    loss, box_loss = losses._rpn_losses(model, objectness, deltas, torch.tensor(anchors), pad_targets([target]))
    (loss + box_loss).backward()
    assert objectness.grad is not None
    return objectness.grad[0]


ANCHORS = [[0.0, 0.0, 20.0, 20.0], [0.0, 40.0, 20.0, 60.0], [60.0, 0.0, 80.0, 20.0], [60.0, 40.0, 80.0, 60.0]]


def test_rpn_learns_no_background_where_an_unlabelled_object_may_be(model: FasterRCNN) -> None:
    scores = [1.0, -1.0, 1.0, -1.0]
    all_labelled = _objectness_gradient(model, scores, ANCHORS, _target([], []))
    assert (all_labelled > 0).all()
    partial = _target([], [], labelled=[[True, True, False, True]])
    gradient = _objectness_gradient(model, scores, ANCHORS, partial)
    assert gradient[[0, 2]].tolist() == [0.0, 0.0]  # taken for objects: who knows
    assert (gradient[[1, 3]] > 0).all()  # taken for background: agreed


def test_every_piece_of_a_mosaic_has_its_own_labels(model: FasterRCNN) -> None:
    halves = [[0.0, 0.0, 48.0, SIDE], [48.0, 0.0, SIDE, SIDE]]
    target = _target([], [], regions=halves, labelled=[[True] * 4, [True, False, True, True]])
    gradient = _objectness_gradient(model, [1.0] * 4, ANCHORS, target)
    assert (gradient[:2] > 0).all()
    assert gradient[2:].tolist() == [0.0, 0.0]
    assert labelled_at(torch.tensor([ANCHORS]), pad_targets([target]))[0, :, 1].tolist() == [True, True, False, False]
    outside = labelled_at(torch.tensor([[[90.0, 90.0, 130.0, 130.0]]]), pad_targets([target]))
    assert outside.tolist() == [[[True, False, True, True]]]  # of no piece: only what all pieces label


def test_positives_are_learned_whatever_is_labelled(model: FasterRCNN) -> None:
    target = _target([ANCHORS[0]], [1], labelled=[[True, True, False, False]])
    assert _objectness_gradient(model, [1.0, 1.0, 1.0, 1.0], ANCHORS, target)[0] < 0


def test_nothing_is_learned_in_ignored_boxes(model: FasterRCNN) -> None:
    target = _target([ANCHORS[3]], [2], ignore=[[0, 0, 30, 30], [55, 35, 85, 65]])
    gradient = _objectness_gradient(model, [1.0, 1.0, -1.0, -1.0], ANCHORS, target)
    assert gradient[0] == 0  # mostly inside an ignored box
    assert gradient[1] > 0
    assert gradient[3] < 0  # an object all the same
    proposals, there = torch.tensor([ANCHORS]), torch.ones(1, len(ANCHORS), dtype=torch.bool)
    rois, labels, _, _ = losses._sample_proposals(model, proposals, there, pad_targets([target]))
    assert ANCHORS[0] not in rois[labels >= 0].tolist()
    assert sorted(labels[labels >= 0].tolist()) == [0, 0, 2, 2]  # two anchors; the object as proposal and as itself


def test_whole_loss_ignores_an_unlabelled_class(model: FasterRCNN) -> None:
    """The classifier's bias of a class that no picture labels gets no push down from background."""
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    pushes = []
    for labelled in ([True] * 4, [True, True, False, True]):
        model.zero_grad()
        torch.manual_seed(3)
        parts = detection_losses(model, images, pad_targets([_target([[10, 10, 40, 50]], [1], labelled=[labelled])]))
        parts["classifier"].backward()
        gradient = model.roi_heads.box_predictor.cls_score.bias.grad
        pushes.append(float(gradient[2]))
    assert pushes[0] > 0
    assert pushes[1] < 0


def test_samples_are_as_many_as_asked_for_and_objects_at_most_their_share() -> None:
    torch.manual_seed(0)
    labels = torch.full((3, 100), -1)
    labels[0, :40] = 2  # more objects than their share
    labels[0, 40:] = 0
    labels[1, :3] = 1
    labels[1, 50:] = 0
    labels[2, 7] = 0
    seen: list[set[int]] = [set(), set(), set()]
    for _ in range(50):
        index, counts = sample(labels, 20, 0.25)
        chosen = [labels[i][index[i][counts[i]]].tolist() for i in range(3)]
        assert [len(c) for c in chosen] == [20, 20, 1]
        assert [sum(label > 0 for label in c) for c in chosen] == [5, 3, 0]
        assert all(label >= 0 for c in chosen for label in c)
        for i in range(3):
            places = index[i][counts[i]].tolist()
            assert len(places) == len(set(places))
            seen[i] |= set(places)
    assert seen[0] == set(range(100))
    assert seen[2] == {7}


def test_pictures_of_a_batch_are_matched_as_if_alone(model: FasterRCNN) -> None:
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(400, 2, generator=generator) * 80
    candidates = torch.cat((corner, corner + 4 + 40 * torch.rand(400, 2, generator=generator)), 1)
    halves = [[0.0, 0.0, 48.0, SIDE], [48.0, 0.0, SIDE, SIDE]]
    targets = [
        _target([[10, 10, 40, 50], [50, 20, 90, 80], [5, 60, 20, 90]], [1, 3, 2]),
        _target([], [], regions=halves, labelled=[[True] * 4, [True, False, True, True]]),
        _target([[30, 30, 70, 90]], [2], ignore=[[0, 0, 30, 30], [70, 0, 96, 96]]),
    ]
    together = pad_targets(targets)
    for matcher in (model.rpn.proposal_matcher, model.roi_heads.proposal_matcher):
        found = match(together, candidates[None], matcher)
        for i, target in enumerate(targets):
            expected = matcher(box_iou(target.boxes, candidates)) if len(target.boxes) else torch.full((400,), -1)
            assert found[i].tolist() == expected.tolist()
    for i, target in enumerate(targets):
        alone = pad_targets([target])
        assert torch.equal(ignored(candidates[None], together)[i], ignored(candidates[None], alone)[0])
        assert torch.equal(labelled_at(candidates[None], together)[i], labelled_at(candidates[None], alone)[0])
    assert ignored(candidates[None], together).any(dim=1).tolist() == [False, False, True]
