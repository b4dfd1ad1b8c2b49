from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamdet.errors import DataError
from streamdet.training.run import load_checkpoint, remove_leftovers, save_checkpoint, write_atomically

# Writes half of the new content, says so, and waits to be killed.
_WRITER = """
import sys, time
from pathlib import Path
from streamdet.training.run import write_atomically

def write(file):
    file.write(b"n" * 500_000)
    file.flush()
    print("there", flush=True)
    time.sleep(600)

write_atomically(Path(sys.argv[1]), write)
"""


def test_kill_in_the_middle_of_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"o" * 1_000_000)
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "there\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert path.read_bytes() == b"o" * 1_000_000
    assert len(list(tmp_path.iterdir())) == 2  # the half is there, under another name
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def write(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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
