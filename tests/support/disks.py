"""A disk of 2 MB, for tests of what a full one costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import TESTS


def run_on_small_disk(folder: Path, code: str) -> None:
    """Runs a program in a mount namespace of its own, where this folder, its only argument, is a disk of 2 MB.

    The program prints "well" where all is well. Skips the test where nothing can be mounted.
    """
    mount = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(folder), sys.executable, code],
        capture_output=True, text=True, check=False, cwd=TESTS, timeout=100,
    )  # fmt: skip
    if "mount:" in done.stderr and not os.environ.get("STREAMDET_REQUIRE_PACKAGES"):
        pytest.skip("nothing can be mounted here")
    assert done.stdout.strip() == "well", done.stderr
