"""glibc keeps memory once it is configured to; in a process of its own, because that cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Page faults of ten large blocks that are filled and given back, after a first one.
_COUNT_PAGE_FAULTS = """
import resource, sys
import numpy as np
from streamdet.detector.memory import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    print("kept" if keep_memory() else "no glibc")
for i in range(11):
    if i == 1:
        before = faults()
    np.ones(64 * 1024 * 1024, np.uint8)
print(faults() - before)
"""


def page_faults(how: str) -> list[str]:
    command = [sys.executable, "-c", _COUNT_PAGE_FAULTS, how]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split("\n")[:-1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_pages_are_used_again() -> None:
    reported, kept = page_faults("keep")
    if reported == "no glibc":
        pytest.skip("this C library has no mallopt")
    (mapped,) = page_faults("by default")
    assert int(kept) < int(mapped) / 10


# Resident MB before anything is allocated, with holes in a heap that keeps everything, and when they were given back.
_LEAVE_HOLES = """
from pathlib import Path
import numpy as np
from streamdet.detector.memory import keep_memory, trim_memory

keep_memory()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
at_first = resident()
blocks = [np.ones(2**20 if i % 2 else 2**10, np.uint8) for i in range(400)]
blocks = [block for block in blocks if len(block) == 2**10]
before = resident()
trim_memory()
print(at_first, before, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_holes_are_given_back() -> None:
    reported, _ = page_faults("keep")
    if reported == "no glibc":
        pytest.skip("this C library has no mallopt")
    command = [sys.executable, "-c", _LEAVE_HOLES]
    result = subprocess.run(command, check=True, capture_output=True, timeout=60)
    at_first, with_holes, after = map(int, result.stdout.split())
    assert after - at_first < (with_holes - at_first) / 2


# Resident MB before a thread has allocated and freed, and when what is free was given back.
_FREE_IN_A_THREAD = """
import sys
import threading
from pathlib import Path
import numpy as np
from streamdet.detector.memory import keep_memory, trim_memory, use_one_heap

def run():
    np.ones(1000, np.uint8)
    is_running.set()
    goes_on.wait()
    keep_memory()
    blocks = [np.ones(2**20, np.uint8) for i in range(200)]
    blocks.clear()

resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
if sys.argv[1] == "one":
    use_one_heap()
is_running, goes_on = threading.Event(), threading.Event()
thread = threading.Thread(target=run)
thread.start()
is_running.wait()
before = resident()
goes_on.set()
thread.join()
trim_memory()
print(before, resident())
"""


def _kept_of_a_thread(how: str) -> int:
    command = [sys.executable, "-c", _FREE_IN_A_THREAD, how]
    before, after = map(int, subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.split())
    return after - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_what_a_thread_has_freed_is_given_back() -> None:
    if _kept_of_a_thread("several") < 20:
        pytest.skip("this C library has no heaps for threads, or gives their memory back")
    assert _kept_of_a_thread("one") < 20


# Memory that ten thousand results of the encoder take, and as many kept events.
_KEEP_EVENTS = """
from pathlib import Path
import orjson
from streamdet.delivery.replay import Ring
from streamdet.types import Detection, DetectionEvent, FrameInfo
from streamdet.wire import encode

frame = FrameInfo(1, 0.04, 1.5, "daemon", 640, 480)
found = (Detection("person", 0.9, (1.0, 2.0, 30.0, 40.0)),)
event = orjson.loads(encode(DetectionEvent("a", "e", 1, 2.5, frame, found)))
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = pages()
results = [orjson.dumps(event) for _ in range(10_000)]
of_results = pages() - before
ring = Ring(20_000, 2**30)
before = pages()
for seq in range(1, 10_001):
    ring.add("detections/a/", seq, encode(DetectionEvent("a", "e", seq, 2.5, frame, found)))
print(of_results, pages() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_kept_events_take_much_less_than_what_the_encoder_gives_back() -> None:
    command = [sys.executable, "-c", _KEEP_EVENTS]
    of_results, kept = map(int, subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.split())
    if of_results < 5_000:
        pytest.skip("with this allocator the encoder's results take little more than their bytes")
    assert kept < of_results / 3


_IMPORT = """
import sys
from streamdet.detector.memory import import_torchvision

import_torchvision()
from streamdet.config import DetectorConfig
from streamdet.detector.pipeline import FasterRcnnDetector
from streamdet.detector.weights import load_weights
from torchvision.ops.roi_align import is_compile_supported

config = DetectorConfig(device="cpu", engine="torch", precision="fp32")
FasterRcnnDetector(load_weights(config), config).check_weights()
compiler = ("torch._dynamo", "torch._inductor", "torch._meta_registrations", "torch._decomp.", "sympy", "triton")
print([name for name in sys.modules if name.startswith(compiler)])
print(is_compile_supported("cpu"), "torch._dynamo.utils" in sys.modules)
import torch
print(torch.compile(torch.relu, backend="aot_eager")(torch.tensor([-1.0, 2.0])).tolist())
"""


def test_a_detector_does_not_import_the_compiler_of_torch() -> None:
    command = [sys.executable, "-c", _IMPORT]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    assert result.stdout.split("\n")[:-1] == ["[]", "True True", "[0.0, 2.0]"]


_RELEASE = """
import sys
from pathlib import Path
import cv2
import numpy as np
from streamdet.detector.memory import release_library_pages

def figures():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["Rss"] - kilobytes["Anonymous"], kilobytes["Anonymous"]

files, own = figures()
release_library_pages()
files_later, own_later = figures()
picture = cv2.resize(np.full((90, 160, 3), 7, np.uint8), (32, 32))
print(files, files_later, own_later - own, picture.min(), picture.max())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's")
def test_pages_that_only_loading_has_read_are_released() -> None:
    command = [sys.executable, "-c", _RELEASE]
    result = subprocess.run(command, check=True, capture_output=True, timeout=60)
    files, files_later, own, darkest, brightest = map(int, result.stdout.split())
    assert files_later < files / 2
    assert own > -1000  # kB: nothing that was written is lost
    assert darkest == brightest == 7


_TRIMS = """
import sys
from pathlib import Path
from streamdet.detector.pool import DetectorPool

def kilobytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Rss"] - sizes["Anonymous"]

pool = DetectorPool([])
pool.trim()
before = kilobytes()
import av
loaded = kilobytes()
pool.trim()
print(before, loaded, kilobytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's")
def test_pages_that_only_opening_streams_has_read_are_released() -> None:
    command = [sys.executable, "-c", _TRIMS]
    result = subprocess.run(command, check=True, capture_output=True, timeout=60)
    before, loaded, after = map(int, result.stdout.split())
    assert loaded > before
    assert after - before < (loaded - before) / 2
