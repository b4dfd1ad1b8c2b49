"""torchvision's published weights: found in a cache, or downloaded once with a progress bar and a checked hash."""

from __future__ import annotations

import hashlib
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from streamdet.detector.missing import cache_folders
from streamdet.errors import DetectorError

PUBLISHED = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)
"""The architectures that torchvision trained on COCO."""

_log = logging.getLogger(__name__)

# torchvision trained these before its frozen batch normalisation added an epsilon, and resets it to 0.
_WITHOUT_EPSILON = "fasterrcnn_resnet50_fpn"


def published_weights(architecture: str) -> WeightsEnum:
    """Finds torchvision's newest published weights of an architecture: URL, categories, measured accuracy."""
    weights: WeightsEnum = get_model_weights(architecture)["DEFAULT"]
    return weights


def coco_labels() -> tuple[str, ...]:
    """Names of COCO's 91 class ids, [0] the background; ids that COCO does not use are called N/A."""
    return tuple(published_weights(PUBLISHED[0]).meta["categories"])


def find_published(architecture: str, url: str | None = None, folders: tuple[Path, ...] | None = None) -> Path:
    """Finds the file of published weights on this machine, or downloads it.

    Args:
        architecture: one of `PUBLISHED`.
        url: where to download from; torchvision's own place unless given. Its last part is the file's name,
            which ends in the first 8 hexadecimal digits of its SHA-256.
        folders: where to look; a download goes to the first.

    Raises:
        DetectorError: there is no good file, and it cannot be downloaded.
    """
    url = url or published_weights(architecture).url
    folders = folders or cache_folders()
    name = url.rpartition("/")[2]
    for folder in folders:
        path = folder / name
        if path.is_file():
            if not hash_matches(path, name):
                msg = f"{path} is damaged: its SHA-256 does not match its name; delete it and start again"
                raise DetectorError(msg)
            return path
    target = folders[0] / name
    download(url, target)
    return target


def hash_matches(path: Path, name: str) -> bool:
    """Whether the file's SHA-256 begins with the digits that stand behind the last dash of `name`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest.startswith(_hash_prefix(name))


def download(url: str, target: Path, timeout_seconds: float = 20.0) -> None:
    """Downloads a file whose name carries the beginning of its SHA-256; it appears whole or not at all.

    Standard error shows the progress where it is a terminal, else the log has a line.

    Args:
        url: of the file.
        target: where it goes.
        timeout_seconds: for each answer of the server.

    Raises:
        DetectorError: the network or the disk fails, or what came has another hash.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot write to {target.parent} ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        raise DetectorError(msg) from error
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_terminal:
        _log.info("downloading %s", target.name)
    try:
        with _socket_timeout(timeout_seconds):
            torch.hub.download_url_to_file(url, str(target), _hash_prefix(target.name), progress=is_terminal)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        if isinstance(error, HTTPError):
            error.close()
        msg = f"cannot download {target.name}: {_reason(error)}; download {url} elsewhere and put it at {target}"
        raise DetectorError(msg) from error


def repair_published(architecture: str, path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Makes a published state dict right for an epsilon of 1e-5 where it was trained with one of 0.

    With w' = w * sqrt((variance + eps) / variance) the normalisation computes the same with the epsilon.
    Files that torchvision did not publish are left as they are.
    """
    name = published_weights(architecture).url.rpartition("/")[2] if architecture in PUBLISHED else ""
    if architecture != _WITHOUT_EPSILON or not hash_matches(path, name):
        return state
    eps = FrozenBatchNorm2d(1).eps
    repaired = dict(state)
    for key, variance in state.items():
        if key.endswith(".running_var"):
            weight_key = key.removesuffix("running_var") + "weight"
            factor = ((variance.double() + eps) / variance.double()).sqrt()
            repaired[weight_key] = (state[weight_key].double() * factor).float()
    return repaired


def _hash_prefix(name: str) -> str:
    return name.removesuffix(".pth").rpartition("-")[2]


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Lets no socket that is made meanwhile wait for longer; torch's download has no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
