"""The text of the page: a title and a paragraph for each stage, with the numbers of the traced picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Numbers that the paragraphs mention.

    Attributes:
        frame: "768x576".
        shown: size at which the network sees it.
        padded: the same with its zeros.
        channels: numbers in each cell of a feature map.
        strides: pixels between neighbouring cells, by level.
        anchors: places and shapes that are looked at.
        anchors_each: at each cell.
        per_level: anchors of each level that are looked at closely.
        proposal_overlap: above which one of two proposals goes, 0 to 1.
        proposals: that are left.
        most_proposals: that could be.
        classes: without the background.
        threshold: that a score must exceed.
        candidates: boxes whose score does.
        overlap: above which one of two boxes of a class goes, 0 to 1.
        detections: that are left.
    """

    frame: str
    shown: str
    padded: str
    channels: int
    strides: tuple[int, ...]
    anchors: int
    anchors_each: int
    per_level: int
    proposal_overlap: float
    proposals: int
    most_proposals: int
    classes: int
    threshold: float
    candidates: int
    overlap: float
    detections: int


TITLES = {
    "input": "From the camera's picture to numbers",
    "preprocess": "One size, one scale",
    "features": "What is where, coarse and fine",
    "proposals": "Something is here, whatever it is",
    "roi_pool": "Every proposal in the same form",
    "classify": "What is it, and where exactly?",
    "postprocess": "One box for each object",
}


def explain(facts: Facts) -> dict[str, str]:
    """A paragraph for each stage."""
    f = facts
    pooled_strides = f"{f.strides[0]}x{f.strides[0]}"
    coarsest = f"{f.strides[-1]}x{f.strides[-1]}"
    return {
        "input": (
            "A video decoder leaves a picture in its own form, often with brightness and colour stored apart. This "
            "stage turns it into amounts of red, green and blue for every pixel, whole numbers from 0 to 255, and "
            f"moves them to the device that computes. This picture has {f.frame} pixels. Where numbers of 8 or 16 bits "
            "are computed with on a CPU, it is made as small as the network wants it before its colours are converted, "
            "which is less work. Nothing is judged yet."
        ),
        "preprocess": (
            f"The network learned from pictures of a certain size, so {f.frame} becomes {f.shown}. Then the average "
            "colour of many photographs is subtracted and the result divided by the usual spread: 0 now means "
            "ordinary, +1 unusually bright, -1 unusually dark. The network will halve the picture several times over, "
            f"so zeros fill it up to sides that 32 divides: {f.padded}. Several frames of a batch lie one behind the "
            "other in the same block of numbers. Where OpenVINO computes with numbers of 8 bits, it subtracts and "
            "divides itself, at the beginning of the next stage: the batch still holds whole numbers then."
        ),
        "features": (
            "Here is nearly all of the arithmetic. The backbone looks through many small learned filters, layer after "
            "layer. Early layers answer to edges and colours; later ones to textures, wheels, heads, legs. On the way "
            "the maps get coarser: more is known about what, less about where. The feature pyramid (FPN) then adds "
            f"the coarse maps back into the fine ones. The result is {len(f.strides)} maps of the same picture. Each "
            f"cell holds {f.channels} numbers that describe a patch of the input: {pooled_strides} pixels in the "
            f"finest map, {coarsest} in the coarsest. Small objects are found in fine maps, large ones in coarse maps."
        ),
        "proposals": (
            f"At every cell of every map stand {f.anchors_each} boxes of fixed sizes and proportions, the anchors: "
            f"{f.anchors:,} in all. The region proposal network (RPN) gives each of them one number, the objectness "
            "(how likely is it that any object stands here?), and four numbers that move and stretch the box towards "
            f"that object. The {f.per_level} likeliest of each level go on, at most; where two of these overlap by "
            f"more than {f.proposal_overlap:.0%}, only the likelier stays. Of the rest at most {f.most_proposals} are "
            f"proposed, here {f.proposals}. What the objects are is not known yet. OpenVINO does all this together "
            "with the stage before, whose time includes it."
        ),
        "roi_pool": (
            "Proposals have all sizes, but the classifier needs the same amount of numbers for each. RoIAlign lays a "
            "grid of 7x7 over a proposal (a region of interest, RoI) and reads the feature map at the grid's points, "
            "weighing the four cells around each point so that no position is rounded. Small regions are read from "
            f"the finest map, large ones from coarser maps. Every region now is a tiny picture of 7x7 with "
            f"{f.channels} numbers in each place."
        ),
        "classify": (
            "A small network looks at all numbers of a region at once and divides 100% among the "
            f"{f.classes} classes and the background. For each class it also says how to move and stretch the "
            "proposal so that it fits an object of that class more tightly. Most regions are background; and several "
            "regions usually show the same object, because neighbouring anchors found it, too."
        ),
        "postprocess": (
            f"Boxes whose score does not exceed {f.threshold:.0%} go; {f.candidates} remain, several for one object. "
            "Non-maximum suppression (NMS) takes the box of highest score, removes every box of the same class that "
            f"covers mostly the same area (more than {f.overlap:.0%} of what both cover together), and goes on with "
            f"the next. Left are {f.detections}. Their corners are scaled back to the pixels of the camera's picture "
            "and cut at its border: these are the detections that subscribers receive."
        ),
    }
