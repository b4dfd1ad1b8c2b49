# ruff: noqa: INP001 - a program, not a module
"""Measures what open pages cost: the daemon with a stand-in detector, the page, and browsers that ask as its script.

    .venv/bin/python benchmarks/page_load.py --browsers 0,1,50,0,50,0,50 --seconds 20
    .venv/bin/python benchmarks/page_load.py --pairs 8 --seconds 60 --chromium /usr/bin/chromium

The first one measures numbers of browsers, simulated, one part after the other. The second one measures pairs of an
empty page of the same server and of the page, in turns, each first in half of the pairs, and prints what the page costs
more: the median, and each pair. Run it while the machine does nothing else; each part has its load average.

Twelve streams of the sample clip at 10 frames per second, or of another video. Prints one JSON object: for each part of
the run the frames per second that were captured and published, the CPU of the daemon and of the page in parts of a
core, pictures per second, and the memory of the page.

With `--chromium` the browsers of pairs are real, and when one painted first is measured as well. Compared
are browsers with the same options and profiles of their own, of which one shows "ok" as plain text. Counted is what
they have allocated, alone and shared among them (Pss_Anon and Pss_Shmem: heaps, bitmaps, what is painted); and beside
it all of PSS, with the program's code, which the system can drop at any time. It has no GPU, so it does in memory what
others do in that of a graphics card.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

from streamdet.assets import sample_clip
from streamdet.bench.machine import cpu_seconds, resident_bytes
from streamdet.cli.beside import free_endpoint

_CHROMIUM = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--window-size=1440,900",
)  # fmt: skip
_INTERVAL_SECONDS = 0.09  # MIN_INTERVAL_MILLISECONDS of streamdet/web/page/wire.js
_SETTLE_SECONDS = 5.0


class Browser(threading.Thread):
    """Looks at the wall; counts the pictures that it gets."""

    def __init__(self, address: str, streams: list[str]) -> None:
        super().__init__(daemon=True)
        self.pictures = 0
        self._streams = streams
        self.done = threading.Event()
        self._address = address

    def run(self) -> None:
        """Asks again and again, as the page's script does."""
        have: dict[str, Any] = {"instance": "", "revision": 0, "sample": 0, "event": 0}
        pictures = dict.fromkeys(self._streams, 0)
        wanted = {"filter": {"stream": "", "only": "", "label": "", "min_score": 0}, "detail": None, "drops": True}
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


class Run(NamedTuple):
    """The processes that are measured."""

    metrics: str
    address: str
    daemon: int
    page: int
    streams: list[str]


def measure(run: Run, seconds: float, pictures: Callable[[], int]) -> dict[str, Any]:
    """What the daemon and the page do and cost for some time."""
    pids = (run.daemon, run.page)
    before, cpu, seen, began = frames(run.metrics), [cpu_seconds(pid) for pid in pids], pictures(), time.time()
    time.sleep(seconds)
    took = time.time() - began
    after, cpu_after = frames(run.metrics), [cpu_seconds(pid) for pid in pids]
    return {
        "fps_captured": round((after[0] - before[0]) / took, 1),
        "fps_published": round((after[1] - before[1]) / took, 1),
        "daemon_cores": round((cpu_after[0] - cpu[0]) / took, 3),
        "page_cores": round((cpu_after[1] - cpu[1]) / took, 3),
        "pictures_per_second": round((pictures() - seen) / took),
        "page_megabytes": round(resident_bytes(run.page) / 1e6),
        "load_average": float(Path("/proc/loadavg").read_text().split()[0]),
    }


def with_browsers(run: Run, count: int, seconds: float) -> dict[str, Any]:
    """One part of the run: a number of browsers for some time."""
    browsers = [Browser(run.address, run.streams) for _ in range(count)]
    for browser in browsers:
        browser.start()
    time.sleep(_SETTLE_SECONDS)
    measured = measure(run, seconds, lambda: sum(browser.pictures for browser in browsers))
    for browser in browsers:
        browser.done.set()
    for browser in browsers:
        browser.join()
    return {"browsers": count, **measured}


def processes_of(profile: Path) -> list[Path]:
    """Folders in /proc of the browser with this profile and of its descendants."""
    parents: dict[str, str] = {}
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if f"--user-data-dir={profile}" in (folder / "cmdline").read_text().split("\0"):
                found.append(folder.name)
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return [Path("/proc", pid) for pid in found]


def memory_of(processes: list[Path]) -> dict[str, int]:
    """Megabytes by kind of process, and their sum; memory that several of them share counts once.

    Returns:
        `allocated`: Pss_Anon and Pss_Shmem of all; `with_code`: PSS of all; and `allocated` of each kind.
    """
    allocated: Counter[str] = Counter()
    with_code = 0
    for process in processes:
        with suppress(OSError):
            kind = re.search("--type=([a-z-]+)", (process / "cmdline").read_text())
            rollup = (process / "smaps_rollup").read_text()
            size = {key: int(kilobytes) << 10 for key, kilobytes in re.findall(r"\b(Pss\w*): +(\d+) kB", rollup)}
            allocated[kind[1] if kind else "browser"] += size["Pss_Anon"] + size["Pss_Shmem"]
            with_code += size["Pss"]
    total = {"allocated": allocated.total(), "with_code": with_code, **allocated}
    return {what: round(size / 1e6) for what, size in total.items()}


def with_chromium(run: Run, executable: str, seconds: float, *, shows_page: bool) -> dict[str, Any]:
    """A part with a real browser, which no one controls: that would keep all that it loads in its memory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"http://{run.address}/{'' if shows_page else 'healthz'}"
        command = [executable, *_CHROMIUM, f"--user-data-dir={profile}", address]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:  # noqa: S603 - as the user says
            time.sleep(2 * _SETTLE_SECONDS)
            measured = measure(run, seconds, lambda: 0)
            memory = memory_of(processes_of(Path(profile)))
            browser.terminate()
    return {"shows": "the page" if shows_page else "an empty page", **measured, "chromium_megabytes": memory}


def in_pairs(count: int, part: Callable[[bool], dict[str, Any]]) -> dict[str, Any]:
    """Measures without and with the page in turns: what it costs more, as a median and of each pair, and all parts."""
    parts: list[dict[str, Any]] = []
    more: dict[str, list[float]] = {"daemon_cores": [], "page_cores": [], "chromium_megabytes": []}
    for number in range(count):
        is_first = number % 2 == 1
        both = {shows_page: part(shows_page) for shows_page in (is_first, not is_first)}
        parts += both.values()
        for key, found in more.items():
            without, with_page = (both[shows_page].get(key) for shows_page in (False, True))
            if isinstance(without, dict) and isinstance(with_page, dict):
                found.append(with_page["allocated"] - without["allocated"])
            elif without is not None and with_page is not None:
                found.append(round(with_page - without, 3))
    medians = {key: {"median": round(median(found), 3), "each": found} for key, found in more.items() if found}
    return {"with_the_page_more": medians, "pairs": parts}


def first_paint(run: Run, executable: str) -> dict[str, int]:
    """Milliseconds until a new browser has painted the page, and until it has the first picture of a stream."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(f"http://{run.address}/")
        page.locator("canvas[data-frame]").first.wait_for()
        pictured = page.evaluate("performance.now()")
        painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return {"first_paint_ms": round(painted), "first_picture_ms": round(pictured)}


def measured(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line asks for."""
    if not arguments.pairs:
        counts = map(int, arguments.browsers.split(","))
        return {"parts": [with_browsers(run, count, arguments.seconds) for count in counts]}

    def part(shows_page: bool) -> dict[str, Any]:
        if arguments.chromium:
            return with_chromium(run, arguments.chromium, arguments.seconds, shows_page=shows_page)
        return with_browsers(run, int(shows_page), arguments.seconds)

    painted = first_paint(run, arguments.chromium) if arguments.chromium else {}
    return {**painted, **in_pairs(arguments.pairs, part)}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browsers", default="0,1,50,0,50,0,50", help="how many at a time, one part after the other")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--video", default=str(sample_clip()), help="file that every stream shows")
    parser.add_argument("--pairs", type=int, help="compare an empty page with the page so many times, instead")
    parser.add_argument("--chromium", help="the browser of the pairs; else they are simulated")
    arguments = parser.parse_args()
    events, metrics = free_endpoint("tcp://127.0.0.1:5555", "tcp://"), free_endpoint("127.0.0.1:9095")
    streams = [f"s{number}" for number in range(arguments.streams)]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "load.toml")
        tables = "".join(f'[[streams]]\nname = "{name}"\nurl = "{arguments.video}"\nloop = true\n' for name in streams)
        config.write_text(
            f'[publisher]\nendpoint = "{events}"\n[metrics]\nendpoint = "{metrics}"\n[log]\nlevel = "warning"\n'
            f'[control]\npath = "{folder}/control.sock"\n{tables}'
        )
        web = ("streamdet", "web", events, "--metrics", metrics, "--listen", "127.0.0.1:0")
        with (
            running("streamdet.bench.stand_in", str(config)) as daemon,
            running(*web) as page,
        ):
            line = page.stdout.readline() if page.stdout else ""
            address = line.removeprefix("the page is at http://").strip().rstrip("/")
            run = Run(metrics, address, daemon.pid, page.pid, streams)
            time.sleep(_SETTLE_SECONDS)
            print(json.dumps(measured(run, arguments), indent=2))  # noqa: T201 - its result


main()
