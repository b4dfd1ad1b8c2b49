"""Files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from streamdet.detector.weights.state_dict import check_unpacked_size
from streamdet.errors import DataError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a kill at any moment leaves the old or the new one in place.

    Args:
        path: the file.
        write: writes the content to an open binary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_leftovers(directory: Path) -> None:
    """Deletes what a killed writer left behind."""
    for part in directory.glob(".*.part"):
        part.unlink()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads what `save_checkpoint` wrote, without executing any code from the file.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        check_unpacked_size(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        msg = f"there is no checkpoint {path}; start without --resume"
        raise DataError(msg) from None
    except Exception as error:
        # torch.load documents no set of errors for damaged files: zip, pickle and OS errors all occur.
        msg = f"{path} is not a checkpoint of streamdet: {type(error).__name__}"
        raise DataError(msg) from error
    return state
