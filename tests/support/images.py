"""The image that `container/test` has built, and podman to run it."""

from __future__ import annotations

import os
import subprocess

import pytest

IMAGE = os.environ.get("STREAMDET_TEST_IMAGE", "")
# The first start tries engines; machines are busy.
PATIENCE_SECONDS = 400.0

needs_image = pytest.mark.skipif(not IMAGE, reason="needs an image: run container/test")


def podman(*words: str, check: bool = True, text: str | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["podman", *words], capture_output=True, text=True, check=False, input=text, timeout=PATIENCE_SECONDS
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
