"""The detectors of a daemon: what each can do, what they are, and how many detect at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

from streamdet.detector.memory import release_library_pages, trim_memory
from streamdet.detector.stages.square_pixels import square_size
from streamdet.types import Detection, DetectionSettings, Picture
from streamdet.worker import Worker

Size = tuple[int, int]
"""Height and width in pixels."""

# The libraries' pages are given back in the first trims, while streams are opened, and then in each sixth.
_FIRST_TRIMS = 3
_TRIMS_BETWEEN = 6
# What a camera that is gone has had laid out is kept for this long: up to 60 MB in OpenVINO, for less than a second of
# work.
_UNUSED_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Running:
    """What detects, as it is reported everywhere.

    Attributes:
        device: "cpu" or such as "cuda:0"; several are joined by commas.
        engine: as in the configuration, never "auto".
        precision: likewise.
        max_batch_size: most frames of a batch.
        workers: most batches at the same time.
        weights: as the configuration names them.
        left_out: name of each other candidate of the trial, and why it does not run; empty without a trial.
    """

    device: str
    engine: str
    precision: str
    max_batch_size: int
    workers: int
    weights: str
    left_out: tuple[tuple[str, str], ...] = ()

    def facts(self) -> dict[str, str | int]:
        """All but why others were left out."""
        return {
            "device": self.device,
            "engine": self.engine,
            "precision": self.precision,
            "max_batch_size": self.max_batch_size,
            "workers": self.workers,
            "weights": self.weights,
        }

    def to_dict(self) -> dict[str, object]:
        """All of it, for programs."""
        return {**self.facts(), "left_out": dict(self.left_out)}

    def in_words(self) -> str:
        """One line, for a log."""
        text = (
            f"detecting with {self.engine} in {self.precision} on {self.device}, up to {self.max_batch_size} frames a "
            f"batch, {self.workers} batches at a time, weights {self.weights}"
        )
        others = "; ".join(f"{name}: {why}" for name, why in self.left_out)
        return f"{text}; left out: {others}" if others else text


class Detector(Protocol):
    """Finds objects in pictures; for one thread at a time."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that the weights know."""

    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings], /) -> list[list[Detection]]:
        """The detections of each picture, by falling score.

        Args:
            pictures: of any sizes.
            settings: what counts as a detection in each of them.
        """

    def warm_up(self) -> None:
        """Runs the largest batch once, so that memory errors happen at the start."""


class DetectorPool:
    """One detector for each inference worker; they may share their weights.

    While it is entered, it tries sizes of frames that are new to the engine.

    Args:
        detectors: each is used by one thread at a time; at least one.
        cores: that they share with captures, so that not all may detect at all times; None if they use none.
        shares: whether they divide what waits among them: where larger batches gain little.
        longest_batch_seconds: that a batch may take: it has fewer pictures while they take longer; None for any time.
        running: describes them; None for a stand-in.
        prepare: compiles what frames of a height and width need; called from threads of captures.
        release: frees what has not been used for this number of seconds.
        worker: runs while the pool is entered.

    Attributes:
        detectors: as given.
        cores: as given.
        shares: as given.
        longest_batch_seconds: as given.
        running: as given.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        cores: int | None = None,
        *,
        shares: bool = False,
        longest_batch_seconds: float | None = None,
        running: Running | None = None,
        prepare: Callable[[Size], None] = lambda _size: None,
        release: Callable[[float], None] = lambda _unused_seconds: None,
        worker: Worker | None = None,
    ) -> None:
        self.detectors = tuple(detectors)
        self.cores = cores
        self.shares = shares
        self.longest_batch_seconds = longest_batch_seconds
        self.running = running
        self._prepare = prepare
        self._release = release
        self._worker = worker
        self._trims = 0

    def __enter__(self) -> Self:
        if self._worker is not None:
            self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker.join()

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that the weights know."""
        return self.detectors[0].labels

    def warm_up(self) -> None:
        """Runs the largest batch of each once: the first alone, as it prepares what they share, then the others."""
        self.detectors[0].warm_up()
        with ThreadPoolExecutor(len(self.detectors), "warm-up") as pool:
            for done in [pool.submit(detector.warm_up) for detector in self.detectors[1:]]:
                done.result()

    def prepare(self, picture: Picture) -> None:
        """Lays out what pictures of this size need, if it is a new one; the detectors go on with others meanwhile.

        Raises:
            Exception: of the engine: it cannot detect pictures of this size.
        """
        self._prepare(square_size(picture))

    def trim(self) -> None:
        """Gives the system the memory that is not needed now; to be called once in a while."""
        self._release(_UNUSED_SECONDS)
        trim_memory()
        if self._trims < _FIRST_TRIMS or self._trims % _TRIMS_BETWEEN == 0:
            release_library_pages()
        self._trims += 1
