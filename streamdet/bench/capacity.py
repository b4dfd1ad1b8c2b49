"""How many frames per second the daemon can detect here: measured once for a machine, and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamdet.bench.run import Bench, Options, choose_as_daemon
from streamdet.config import DetectorConfig
from streamdet.detector.trial import key_of
from streamdet.errors import StreamdetError
from streamdet.security.files import write_atomically

SECONDS = 40.0
_FILE = "capacity.json"

OnPlan = Callable[[float], None]
OnStep = Callable[[str, float], None]


def measure_capacity(options: Options, on_plan: OnPlan, on_step: OnStep) -> dict[str, Any]:
    """Measures what runs by default with the first model, as far as the options leave it a choice, and nothing else.

    Args:
        options: what is measured, and for how long.
        on_plan: as of `Bench`.
        on_step: as of `Bench`.

    Returns:
        What `streamdet bench --json` has as "capacity"; `fps_of_all_streams` are the frames per second.

    Raises:
        StreamdetError: it cannot be measured.
        KeyboardInterrupt: it was broken off.
    """
    choice = choose_as_daemon(options)
    options = replace(options, models=options.models[:1], capacity_only=True)
    if choice is not None:
        candidate, workers = choice.candidate, (choice.workers,) if choice.workers else ()
        options = replace(
            options, engines=(candidate.engine,), precisions=(candidate.precision,),
            batches=options.batches or (choice.max_batch_size,), workers=workers,
        )  # fmt: skip
    bench = Bench(options, on_plan, on_step, choice)
    bench.run()
    if bench.results.interrupted:
        raise KeyboardInterrupt
    if bench.results.error is not None:
        raise bench.results.error
    if bench.results.capacity is None:
        message = "the capacity of this machine was not measured"
        raise StreamdetError(message)
    return bench.results.capacity


def known_capacity(folder: Path | None) -> float | None:
    """The frames per second of the embedded weights, as they were measured on this machine with this program.

    Args:
        folder: where they are remembered; None for nowhere.
    """
    if folder is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((folder / _FILE).read_text("utf-8"))
            if found["key"] == key_of(DetectorConfig()):
                return float(found["fps"])
    return None


def remember_capacity(folder: Path | None, fps: float) -> None:
    """Remembers frames per second for the next start; where it cannot, they are measured again then."""
    if folder is None:
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / _FILE, json.dumps({"key": key_of(DetectorConfig()), "fps": fps}).encode())
