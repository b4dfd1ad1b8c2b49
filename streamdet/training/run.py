"""The folder of a training run: what lies in it, and what must not be lost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from streamdet.errors import ConfigError, DataError
from streamdet.training.checkpoint import remove_leftovers, write_atomically
from streamdet.training.recipe import TrainConfig, config_from_json, differences

CHECKPOINT = "last.pt"
CONFIG = "config.json"
RESULTS = "results.csv"
CURVES = "curves.png"
PREDICTIONS = "predictions.png"
LAST, BEST = "last.safetensors", "best.safetensors"
_OWN_FILES = (CHECKPOINT, CONFIG, RESULTS, CURVES, PREDICTIONS, LAST, BEST)


@dataclass(frozen=True)
class EpochResult:
    """One line of the results; losses are means over the epoch, metrics those of the averaged weights.

    Epoch 0 is that of the weights that the run starts from: it has metrics alone.

    Attributes:
        map: mAP, -1 if there was nothing to count; None after an epoch that was not evaluated.
        map_50: likewise.
    """

    epoch: int
    step: int
    loss: float | None
    objectness: float | None
    rpn_box: float | None
    classifier: float | None
    box: float | None
    map: float | None
    map_50: float | None
    learning_rate: float | None
    images_per_second: float | None
    seconds: float


def best_of(results: Sequence[EpochResult]) -> EpochResult | None:
    """The first trained epoch of the highest mAP; None while none was evaluated."""
    return max((r for r in results if r.epoch and r.map is not None), key=lambda r: r.map or 0.0, default=None)


def start_of(results: Sequence[EpochResult]) -> EpochResult | None:
    """Epoch 0: the weights that the run started from; None where they could find nothing."""
    return next((r for r in results if r.epoch == 0), None)


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run.

    Attributes:
        path: the folder.
    """

    path: Path

    def open(self, *, resume: bool) -> None:
        """Makes sure that nothing is overwritten that should not be, and clears what a killed writer left.

        Raises:
            ConfigError: there is a run already and it shall not be resumed, or the other way round.
        """
        if resume:
            if not (self.path / CHECKPOINT).is_file():
                msg = f"there is no run to resume in {self.path} ({CHECKPOINT} is missing); start without --resume"
                raise ConfigError([msg])
        elif there := [name for name in _OWN_FILES if (self.path / name).exists()]:
            msg = f"{self.path} already holds a run ({', '.join(there)}); go on with --resume or choose another --out"
            raise ConfigError([msg])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)
        except OSError as error:
            msg = f"cannot use {self.path} as a folder for the run: {error.strerror}"
            raise ConfigError([msg]) from None

    def write(self, name: str, data: bytes) -> None:
        """Writes one file, whole or not at all."""
        write_atomically(self.path / name, lambda file: file.write(data))

    def write_config(self, config: TrainConfig, categories: Sequence[str]) -> None:
        """Notes what defines the run."""
        content = {**asdict(config), "categories": list(categories)}
        self.write(CONFIG, json.dumps(content, indent=2).encode() + b"\n")

    def read_config(self) -> tuple[TrainConfig, list[str] | None] | None:
        """What `write_config` wrote; None where nothing was written, no categories where an old version wrote.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path / CONFIG
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            return config_from_json(content), content.get("categories")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            msg = (
                f"{path} is damaged ({type(error).__name__}: {error}); restore it, or delete it and repeat all options"
            )
            raise DataError(msg) from None

    def check_same(self, config: TrainConfig) -> None:
        """Makes sure that a resumed run goes on as it began.

        Raises:
            ConfigError: `config` differs from that of the run; every difference is named.
        """
        saved = self.read_config()
        if saved and (changed := differences(saved[0], config)):
            msg = f"{self.path} cannot be resumed with another configuration: {'; '.join(changed)}"
            raise ConfigError([msg])

    def write_results(self, results: Sequence[EpochResult]) -> None:
        """Writes results.csv, a line per epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(EpochResult)], lineterminator="\n")
        writer.writeheader()
        for result in results:
            writer.writerow({k: "" if v is None else round(v, 6) for k, v in asdict(result).items()})
        self.write(RESULTS, text.getvalue().encode())
