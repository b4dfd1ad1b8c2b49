"""The process that tries engines, with engines that cost nothing and misbehave as the arguments say: NAME=HOW.

HOW may end with @WIDTHxHEIGHT: then only frames of this size are treated so.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from streamdet.detector.choice import CANDIDATES, REFERENCE, Candidate
from streamdet.detector.tester import Samples, Tester, die_with, reserve_output
from streamdet.errors import DetectorError
from streamdet.types import Detection

BOXES = [(10.0 * i, 20.0, 10.0 * i + 8.0, 60.0) for i in range(25)]
PIECE = bytes(1 << 16)


@dataclass
class Frame:
    width: int = 640
    height: int = 480


def misbehave(how: str) -> None:
    match how.partition(":")[0]:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(600)
        case "memory":
            np.ones(1 << 45, np.uint8)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "raise":
            msg = "the kernel does not like this shape"
            raise RuntimeError(msg)
        case "shout":
            print('{"result": "printed by a library"}', flush=True)  # noqa: T201 - as libraries do


def work(seconds: float) -> None:
    """Works without the interpreter's lock, as engines do, and does not sleep: CPU time counts on a busy machine."""
    ends_at = time.thread_time() + seconds
    while time.thread_time() < ends_at:
        hashlib.sha256(PIECE)


class Fake:
    def __init__(self, how: str) -> None:
        self.how = how
        self.calls = 0
        self.asked_at = 0.0
        self.has_waited = False

    def for_another_thread(self) -> Self:
        return self

    def detect(self, pictures: list[Any]) -> list[list[Detection]]:
        how, _, size = self.how.partition("@")
        if size and size not in {f"{picture.width}x{picture.height}" for picture in pictures}:
            how = "good"
        misbehave(how)
        self.calls += 1
        if how == "warms" and self.calls <= 2:
            work(0.8)  # as one that compiles a model for each size
        # What came later than at once was asked in turns with others.
        self.has_waited |= self.calls > 1 and time.monotonic() - self.asked_at > 0.3
        self.asked_at = time.monotonic()
        if how.startswith("tires") and self.has_waited:
            os._exit(3)
        milliseconds = float(how.partition(":")[2] or 2)
        if how == "fades":
            milliseconds = 12 if self.has_waited else 5
        work(milliseconds / 1000 * len(pictures))
        shift, score = (500.0, 0.9) if how.startswith("wrong") else (0.0, 0.9)
        shift = 0.3 if how.startswith("near") else shift
        if how.startswith("batch") and len(pictures) > 3:
            shift = 500.0
        found = [Detection("person", score, (x1 + shift, y1, x2 + shift, y2 + shift)) for x1, y1, x2, y2 in BOXES]
        return [found[: 0 if how.startswith("blind") else None] for _ in pictures]


def make(candidate: Candidate) -> Fake:
    how = behaviour.get(candidate.name, behaviour.get("all", "good"))
    if how == "missing":
        msg = 'openvino is not installed (no module): install the extra, or set engine = "torch"'
        raise DetectorError(msg)
    if how == "unsupported":
        msg = "detector.precision: this CPU has no bf16"
        raise DetectorError(msg)
    if how.startswith("compiles"):
        work(1.5)  # longer than its share of the budget
    return Fake(how)


if __name__ == "__main__":
    behaviour = dict(argument.split("=") for argument in sys.argv[1:])
    job = json.loads(sys.stdin.buffer.read())
    die_with(job["parent"])
    if "sizes" in behaviour:
        Path(behaviour["sizes"]).write_text(json.dumps(job["frame_sizes"]), encoding="utf-8")
    say = reserve_output()
    say({"device": "cpu"})
    if "pidfile" in behaviour:
        Path(behaviour["pidfile"]).write_text(str(os.getpid()), encoding="ascii")
    candidates = CANDIDATES["cpu"]
    frames: list[Any] = [Frame()] * 4
    if job["only"] is not None:
        only = Candidate.model_validate(job["only"])
        candidates = tuple(candidate for candidate in candidates if candidate in {REFERENCE, only})
        ((height, width),) = job["frame_sizes"]
        frames = [Frame(width, height)] * 4
    if job["again"] is not None:
        again = {REFERENCE, *map(Candidate.model_validate, job["again"])}
        candidates = tuple(candidate for candidate in candidates if candidate in again)
    if "tried" in behaviour:
        names = {"tried": [candidate.name for candidate in candidates], "patience": job["patience"]}
        Path(behaviour["tried"]).write_text(json.dumps(names), encoding="utf-8")
    samples = Samples([frames[:1], frames[1:], frames[:1]], frames)
    tester = Tester(
        make, samples, say,
        budget_seconds=job["budget_seconds"]["cpu"], step_seconds=float(behaviour.get("silence", 20)),
        longest_seconds=float(behaviour.get("longest", 240)), cores=2,
    )  # fmt: skip
    tester.run(candidates)
