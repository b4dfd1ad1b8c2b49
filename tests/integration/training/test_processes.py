from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamdet.training.dataset import load_dataset
from streamdet.training.pictures import AugmentConfig
from streamdet.training.processes import Group, LostProcessError, group_of
from streamdet.training.run import TrainConfig, load_checkpoint
from streamdet.training.train import Run
from support.followers import DiesAtTheStart, dies, finds_bad_data

# A process that imports torch takes its time on a busy machine.
pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

CONFIG = TrainConfig(epochs=1, batch_size=4, frozen_stages=0, min_size=64, max_size=96, augment=AugmentConfig((64,)))


def _run(shapes: Path, out: Path, group: Group) -> Run:
    """One step: four pictures are one epoch."""
    dataset, _ = load_dataset(shapes / "val" / "annotations.json", shapes / "val")
    few = type(dataset)(dataset.samples[:4], dataset.categories)
    return Run(out, CONFIG, few, few, group=group)


def _train(shapes: Path, out: Path, group: Group) -> None:
    _run(shapes, out, group).train()


@dataclass(frozen=True)
class _OneOfTwo(Group):
    """Plays a rank of two in this process: replaces the gradients by `means`, or notes them where there is none."""

    means: list[Tensor] = field(default_factory=list)
    noted: list[Tensor] = field(default_factory=list)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.noted.extend(g.clone() for g in gradients)
        for gradient, mean in zip(gradients, self.means, strict=bool(self.means)):
            gradient.copy_(mean)

    def share(self, tensors: Iterable[Tensor]) -> None:
        pass


def test_two_processes_do_what_one_does_with_both_halves(shapes: Path, tmp_path: Path) -> None:
    work = partial(_train, shapes, tmp_path / "two")
    with group_of(2, work) as group:
        work(group)
    halves = [_OneOfTwo(rank, 2) for rank in (0, 1)]
    for half in halves:
        _train(shapes, tmp_path / f"half{half.rank}", half)
    means = [(a + b) / 2 for a, b in zip(halves[0].noted, halves[1].noted, strict=True)]
    assert any((a != b).any() for a, b in zip(halves[0].noted, halves[1].noted, strict=True))
    _train(shapes, tmp_path / "one", _OneOfTwo(0, 2, means))
    two, one = (load_checkpoint(tmp_path / name / "last.pt") for name in ("two", "one"))
    assert two["step"] == one["step"] == 1
    torch.testing.assert_close(two["model"], one["model"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("work", "reported"),
    [
        (DiesAtTheStart(), r"exit code 4.*--resume"),
        (dies, r"exit code 3.*--resume"),
        (finds_bad_data, "picture 7 is gone"),
    ],
    ids=["at the start", "in the middle", "with a message"],
)
def test_a_follower_that_ends_ends_the_run_with_one_line(work: Callable[[Group], None], reported: str) -> None:
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.ones(3)
    with pytest.raises(LostProcessError, match=reported) as raised:
        _average_often(work, parameter)
    assert "\n" not in str(raised.value)


def _average_often(work: Callable[[Group], None], parameter: Tensor) -> None:
    with group_of(2, work) as group:
        for _ in range(10_000):
            group.average_gradients([parameter])


def test_a_start_that_fails_is_reported_and_does_not_harm_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.ones(3)

    def fails(*_: object, **__: object) -> None:
        msg = "Gloo connectFullMesh failed"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.distributed_c10d.ProcessGroupGloo", fails)
        with pytest.raises(LostProcessError, match="a training process ended"):
            _average_often(finds_bad_data, parameter)
    with pytest.raises(LostProcessError, match="picture 7 is gone"):
        _average_often(finds_bad_data, parameter)


def test_a_group_of_one_changes_nothing() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.arange(3.0)
    with group_of(1, dies) as group:
        group.average_gradients([parameter])
        group.share([parameter])
    assert parameter.grad.tolist() == [0, 1, 2]
