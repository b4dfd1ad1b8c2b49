"""How long each part of a run may take, and how far the run is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from streamdet.bench.compare import MIN_ROUNDS

BATCHES = (1, 4, 8, 16)

# An engine of ours takes about so much of torchvision's time; only estimates rest on it.
_USUAL_SHARE = 0.5


@dataclass(frozen=True)
class Group:
    """Cases that are measured in turns.

    Attributes:
        model: its name.
        batch: frames per batch.
        seconds: how long.
    """

    model: str
    batch: int
    seconds: float


def plan_groups(
    frame_seconds: Mapping[str, float], contenders: Mapping[str, int], batches: tuple[int, ...], seconds: float
) -> tuple[list[Group], list[str]]:
    """Divides the time among models and batch sizes.

    Args:
        frame_seconds: what torchvision takes for one frame, by model.
        contenders: how many are compared, by model, torchvision among them.
        batches: that were asked for; empty for `BATCHES`, of which the largest are left out where they would take
            longer than there is time.
        seconds: for all groups together; more is taken where the fewest rounds need more.

    Returns:
        the groups, and a line for people about each model that lost a batch size.
    """
    least = {
        (model, batch): frame * batch * (1 + _USUAL_SHARE * (contenders[model] - 1)) * (MIN_ROUNDS + 1)
        for model, frame in frame_seconds.items()
        for batch in batches or BATCHES
    }
    left_out = [] if batches else _leave_out(least, seconds)
    # Small batches scatter more, so they get more than their share.
    weights = {key: needed / key[1] ** 0.5 for key, needed in least.items()}
    total = sum(weights.values())
    groups = [
        Group(model, batch, max(seconds * weights[model, batch] / total, needed))
        for (model, batch), needed in least.items()
    ]
    lines = [
        f"{model}: batches of {', '.join(str(batch) for key, batch in left_out if key == model)} were left out, "
        "because they would take too long; ask for them with --batch or more --seconds"
        for model in dict.fromkeys(model for model, _ in left_out)
    ]
    return groups, lines


def _leave_out(least: dict[tuple[str, int], float], seconds: float) -> list[tuple[str, int]]:
    """Takes the costliest groups out of `least` until the others fit, one of each model at least; what was taken."""
    taken = []
    while sum(least.values()) > seconds:
        several = [key for key in least if sum(model == key[0] for model, _ in least) > 1]
        if not several:
            break
        costliest = max(several, key=lambda key: least[key])
        del least[costliest]
        taken.append(costliest)
    return sorted(taken)


class Step:
    """Follows a run through its steps.

    Args:
        on_step: told what is going on, and the share of the run that is over, 0 to 1.

    Attributes:
        total_seconds: of all steps; 0 while that is not known.
    """

    def __init__(self, on_step: Callable[[str, float], None]) -> None:
        self._on_step = on_step
        self._done_seconds = 0.0
        self._text = ""
        self._seconds = 0.0
        self.total_seconds = 0.0

    def begin(self, text: str, seconds: float) -> None:
        """Something new, which will take so long."""
        self._text, self._seconds = text, seconds
        self.share(0.0)

    def share(self, share: float) -> None:
        """So much of it is over, 0 to 1."""
        done = self._done_seconds + share * self._seconds
        self._on_step(self._text, min(done / self.total_seconds, 1.0) if self.total_seconds else 0.0)

    def end(self) -> None:
        """It is over."""
        self._done_seconds += self._seconds
        self._seconds = 0.0
        self.share(0.0)
