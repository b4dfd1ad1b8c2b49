"""The four losses of Faster R-CNN, where some classes may be unlabelled.

Public data sets often label only some classes: a picture full of cars may carry person boxes only. There,
"no box" does not mean "no object". So a picture is divided into regions (one, or one per piece of a
mosaic), and each region says which classes are labelled throughout it:

* Box head: a proposal without a box is background *or* any unlabelled class; its loss is
  -log(p_background + sum of p over the unlabelled classes). With everything labelled it is plain cross-entropy.
* RPN, which knows no classes: where a class is missing, an anchor without a box counts as background only
  while the RPN itself takes it for background (objectness below 1/2); the others may be unlabelled objects.

Boxes to be ignored (COCO's `iscrowd`) make neither positives nor negatives.

All pictures of a batch are computed at once; see `targets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from streamdet.detector.graph.propose import ProposeInGraph
from streamdet.detector.graph.suppress import Suppress
from streamdet.training.targets import NOTHING, Targets, ignored, labelled_at, match, sample

_SMOOTH_L1_BETA = 1 / 9


def background_loss(logits: Tensor, labelled: Tensor) -> Tensor:
    """-log P(background or unlabelled class) of each row.

    Args:
        logits: float [K, C + 1].
        labelled: bool [K, C + 1].
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    possible = ~labelled
    possible[:, 0] = True
    return -torch.logsumexp(log_p.masked_fill(~possible, -torch.inf), dim=1)


def _box_loss(deltas: Tensor, goals: Tensor, counts: Tensor) -> Tensor:
    """Sum of the smooth L1 losses of the boxes [K, 4] that count, bool [K]; other goals may be infinite."""
    goals = torch.where(counts[:, None], goals, 0)
    losses = functional.smooth_l1_loss(deltas.float(), goals, beta=_SMOOTH_L1_BETA, reduction="none")
    return (losses.sum(dim=1) * counts).sum()


def _chosen(boxes: Tensor, index: Tensor) -> Tensor:
    """Boxes [B or 1, K, 4] by index [B, S]: [B, S, 4]."""
    return boxes.expand(len(index), -1, -1).gather(1, index[..., None].expand(-1, -1, 4))


def _rpn_losses(model: FasterRCNN, objectness: Tensor, deltas: Tensor, anchors: Tensor,
                targets: Targets) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Objectness and box loss; objectness [B, A], deltas [B, A, 4], anchors [A, 4]."""
    anchors = anchors[None]
    found = match(targets, anchors, model.rpn.proposal_matcher)
    labels = (found >= 0).long()
    unknown = ~labelled_at(anchors, targets).all(dim=2) & (objectness.detach() > 0)
    unsure = found == model.rpn.proposal_matcher.BETWEEN_THRESHOLDS
    labels = labels.masked_fill((labels == 0) & (unsure | unknown | ignored(anchors, targets)), NOTHING)
    sampler = model.rpn.fg_bg_sampler
    index, counts = sample(labels, sampler.batch_size_per_image, sampler.positive_fraction)
    count = counts.sum().clamp(min=1)
    wanted = labels.gather(1, index)
    objectness_losses = functional.binary_cross_entropy_with_logits(
        objectness.gather(1, index), (wanted > 0).float(), reduction="none"
    )
    boxes = _chosen(targets.boxes, found.gather(1, index).clamp(min=0))
    goals = model.rpn.box_coder.encode_single(boxes.flatten(0, 1), _chosen(anchors, index).flatten(0, 1))
    box_loss = _box_loss(_chosen(deltas, index).flatten(0, 1), goals, (counts & (wanted > 0)).flatten())
    return (objectness_losses * counts).sum() / count, box_loss / count


def _sample_proposals(
    model: FasterRCNN, proposals: Tensor, there: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses proposals to learn from, S of each picture; the boxes of the targets are proposals, too.

    Args:
        model: gives thresholds and numbers.
        proposals: float32 [B, P, 4].
        there: bool [B, P]: other places are empty.
        targets: of B pictures.

    Returns:
        Proposals [B, S, 4], labels [B, S] (`NOTHING` where there is none), the box that each stands for [B, S, 4],
        labelled classes [B, S, C + 1].
    """
    heads = model.roi_heads
    proposals = torch.cat((proposals, targets.boxes), 1)
    there = torch.cat((there, targets.labels > 0), 1)
    found = match(targets, proposals, heads.proposal_matcher)
    labels = torch.where(found >= 0, targets.labels.gather(1, found.clamp(min=0)), 0)
    nothing = (found == heads.proposal_matcher.BETWEEN_THRESHOLDS) | ((labels == 0) & ignored(proposals, targets))
    labels = labels.masked_fill(nothing | ~there, NOTHING)
    size = heads.fg_bg_sampler.batch_size_per_image
    index, counts = sample(labels, size, heads.fg_bg_sampler.positive_fraction)
    # Those that count come first, and are not more than `size`.
    counts, order = counts.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    index, counts = index.gather(1, order)[:, :size], counts[:, :size]
    chosen = _chosen(proposals, index)
    boxes = _chosen(targets.boxes, found.gather(1, index).clamp(min=0))
    return chosen, labels.gather(1, index).masked_fill(counts == 0, NOTHING), boxes, labelled_at(chosen, targets)


def _box_head_losses(
    model: FasterRCNN,
    features: dict[str, Tensor],
    proposals: tuple[Tensor, Tensor],
    image_size: tuple[int, int],
    targets: Targets,
) -> tuple[Tensor, Tensor]:
    rois, labels, boxes, labelled = _sample_proposals(model, *proposals, targets)
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, list(rois), [image_size] * len(rois))
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    labels = labels.flatten()
    counts, foreground = labels != NOTHING, labels > 0
    labels = labels.clamp(min=0)
    count = counts.sum().clamp(min=1)
    class_losses = torch.where(
        foreground,
        functional.cross_entropy(logits.float(), labels, reduction="none"),
        background_loss(logits, labelled.flatten(0, 1)),
    )
    goals = heads.box_coder.encode_single(boxes.flatten(0, 1), rois.flatten(0, 1))
    own_class = labels[:, None, None].expand(-1, 1, 4)
    of_class = deltas.unflatten(1, (-1, 4)).gather(1, own_class)[:, 0]
    return (class_losses * counts).sum() / count, _box_loss(of_class, goals, foreground) / count


@torch.no_grad()
def _proposals(
    model: FasterRCNN,
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    image_size: tuple[int, int],
    suppress: Suppress | None,
) -> tuple[Tensor, Tensor]:
    """Proposals [B, P, 4] and which of them there are, bool [B, P]."""
    shapes = model.rpn.anchor_generator.num_anchors_per_location()
    per_level = [n * o.shape[2] * o.shape[3] for n, o in zip(shapes, objectness, strict=True)]
    objectness, deltas = [o.float() for o in objectness], [d.float() for d in deltas]
    if suppress is not None:
        levels = torch.split(anchors, per_level)
        slots = ProposeInGraph(model.rpn, levels, image_size, suppress)(objectness, deltas)
        return slots.boxes, slots.objectness >= 0
    batch = len(objectness[0])
    scores, flat_deltas = concat_box_prediction_layers(list(objectness), list(deltas))
    decoded = model.rpn.box_coder.decode(flat_deltas, [anchors] * batch).reshape(batch, -1, 4)
    found, likely = model.rpn.filter_proposals(decoded, scores, [image_size] * batch, per_level)
    return pad_sequence(found, batch_first=True), pad_sequence(likely, batch_first=True, padding_value=-1.0) >= 0


def detection_losses(
    model: FasterRCNN, images: Tensor, targets: Targets, suppress: Suppress | None = None
) -> dict[str, Tensor]:
    """The four losses for a batch of equally large pictures.

    Args:
        model: in training mode.
        images: float32 [B, 3, H, W], already normalised with the model's mean and deviation.
        targets: of B pictures.
        suppress: non-maximum suppression of many groups at once, which a GPU wants; torchvision's when None.

    Returns:
        Scalars by name: objectness, rpn_box, classifier, box.
    """
    features = model.backbone(images)
    feature_list = list(features.values())
    height, width = images.shape[-2:]
    anchors = model.rpn.anchor_generator(ImageList(images[:1], [(height, width)]), feature_list)[0]
    objectness, deltas = model.rpn.head(feature_list)
    proposals = _proposals(model, objectness, deltas, anchors, (height, width), suppress)
    batch = len(images)
    flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
    objectness_loss, rpn_box_loss = _rpn_losses(
        model, flat_objectness.float().reshape(batch, -1), flat_deltas.float().reshape(batch, -1, 4), anchors, targets
    )
    class_loss, box_loss = _box_head_losses(model, features, proposals, (height, width), targets)
    return {
        "objectness": objectness_loss,
        "rpn_box": rpn_box_loss,
        "classifier": class_loss,
        "box": box_loss,
    }
