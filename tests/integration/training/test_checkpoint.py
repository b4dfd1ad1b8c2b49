from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamdet.errors import DataError
from streamdet.training.run import load_checkpoint, save_checkpoint


def test_checkpoints_come_back_and_damaged_ones_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 3, "model": {"w": torch.arange(4.0)}})
    state = load_checkpoint(path)
    assert state["step"] == 3
    assert state["model"]["w"].tolist() == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"last\.pt is not a checkpoint") as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
