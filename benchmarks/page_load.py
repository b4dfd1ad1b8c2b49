# ruff: noqa: INP001 - a program, not a module
"""Measures what open pages cost: the daemon with a stand-in detector, the page, and browsers that ask as its script.

    .venv/bin/python benchmarks/page_load.py --browsers 0,1,50,0,50,0,50 --seconds 20

Five streams of the sample clip at 10 frames per second. Prints one JSON object: for each part of the run the frames per
second that were captured and published, the CPU of the daemon and of the page in parts of a core, pictures per second,
and the memory of the page.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from streamdet.assets import sample_clip
from streamdet.bench.machine import cpu_seconds, resident_bytes
from streamdet.cli.beside import free_endpoint

_STREAMS = [f"s{number}" for number in range(5)]
_INTERVAL_SECONDS = 0.09  # MIN_INTERVAL_MILLISECONDS of streamdet/web/page/wire.js
_SETTLE_SECONDS = 5.0


class Browser(threading.Thread):
    """Looks at the wall; counts the pictures that it gets."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.pictures = 0
        self.done = threading.Event()
        self._address = address

    def run(self) -> None:
        """Asks again and again, as the page's script does."""
        have: dict[str, Any] = {"instance": "", "revision": 0, "sample": 0, "event": 0}
        pictures = dict.fromkeys(_STREAMS, 0)
        wanted = {"filter": {"stream": "", "only": "", "label": "", "min_score": 0}, "detail": None}
        connection = http.client.HTTPConnection(self._address, timeout=20)
        while not self.done.is_set():
            began = time.monotonic()
            body = json.dumps({**have, "pictures": pictures, **wanted})
            connection.request("POST", "/api/updates", body, {"Content-Type": "application/json"})
            answer = connection.getresponse().read()
            head = json.loads(answer[4 : 4 + int.from_bytes(answer[:4], "big")])
            have.update(instance=head["instance"], revision=head["revision"], event=head.get("event", have["event"]))
            have["sample"] = head["overview"]["sample"] if head["overview"] else have["sample"]
            for picture in head["pictures"]:
                pictures[picture["stream"]] = picture["id"]
                self.pictures += 1
            self.done.wait(max(0.0, began + _INTERVAL_SECONDS - time.monotonic()))
        connection.close()


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of this package."""
    full = [sys.executable, "-m", *command]
    with subprocess.Popen(full, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own programs
        try:
            yield process
        finally:
            process.terminate()


def frames(metrics: str) -> tuple[float, float]:
    """Frames captured and published so far."""
    with urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        lines = [line.split() for line in page.read().decode().splitlines() if line.startswith("streamdet_frames_")]

    def total(name: str) -> float:
        return sum(float(line[1]) for line in lines if line[0].startswith(f"streamdet_frames_{name}_total"))

    return total("captured"), total("published")


def measure(count: int, seconds: float, metrics: str, address: str, pids: tuple[int, int]) -> dict[str, Any]:
    """One part of the run: a number of browsers for some time."""
    browsers = [Browser(address) for _ in range(count)]
    for browser in browsers:
        browser.start()
    time.sleep(_SETTLE_SECONDS)
    before, began = (
        (frames(metrics), [cpu_seconds(pid) for pid in pids], sum(b.pictures for b in browsers)),
        time.time(),
    )
    time.sleep(seconds)
    took = time.time() - began
    after = (frames(metrics), [cpu_seconds(pid) for pid in pids], sum(b.pictures for b in browsers))
    for browser in browsers:
        browser.done.set()
    for browser in browsers:
        browser.join()
    return {
        "browsers": count,
        "fps_captured": round((after[0][0] - before[0][0]) / took, 1),
        "fps_published": round((after[0][1] - before[0][1]) / took, 1),
        "daemon_cores": round((after[1][0] - before[1][0]) / took, 3),
        "page_cores": round((after[1][1] - before[1][1]) / took, 3),
        "pictures_per_second": round((after[2] - before[2]) / took),
        "page_megabytes": round(resident_bytes(pids[1]) / 1e6),
    }


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browsers", default="0,1,50,0,50,0,50", help="how many at a time, one part after the other")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    events, metrics = free_endpoint("tcp://127.0.0.1:5555", "tcp://"), free_endpoint("127.0.0.1:9095")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "load.toml")
        streams = "".join(f'[[streams]]\nname = "{name}"\nurl = "{sample_clip()}"\nloop = true\n' for name in _STREAMS)
        config.write_text(
            f'[publisher]\nendpoint = "{events}"\n[metrics]\nendpoint = "{metrics}"\n[log]\nlevel = "warning"\n'
            f'[control]\npath = "{folder}/control.sock"\n{streams}'
        )
        web = ("streamdet", "web", events, "--metrics", metrics, "--listen", "127.0.0.1:0")
        with (
            running("streamdet.bench.stand_in", str(config)) as daemon,
            running(*web) as page,
        ):
            line = page.stdout.readline() if page.stdout else ""
            address, pids = line.removeprefix("the page is at http://").strip().rstrip("/"), (daemon.pid, page.pid)
            counts = map(int, arguments.browsers.split(","))
            parts = [measure(count, arguments.seconds, metrics, address, pids) for count in counts]
    print(json.dumps(parts, indent=2))  # noqa: T201 - its result


main()
