"""The page of `streamdet trace` in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from streamdet.config import DetectorConfig
from streamdet.detector.pipeline import ArrayPicture
from streamdet.trace.page import render_page
from streamdet.trace.run import trace_picture

pytestmark = pytest.mark.package("chromium")

NO_COMPLAINTS = re.compile(r"(?!)")  # it has nothing to complain of
_SIZES = "[...document.querySelectorAll('figure img')].map(i => [i.naturalWidth, i.width, i.height])"


@pytest.mark.parametrize("shape", [(360, 640), (640, 360), (300, 1), (1, 300)])
def test_every_picture_is_seen_whole_on_a_screen(
    open_page: Callable[..., Page], tmp_path: Path, shape: tuple[int, int]
) -> None:
    config = DetectorConfig(device="cpu", engine="torch", precision="fp32")
    picture = ArrayPicture(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    path = tmp_path / "trace.html"
    path.write_text(render_page(trace_picture(config, picture, "noise")), "utf-8")
    page = open_page(path.as_uri(), viewport={"width": 1000, "height": 800})
    sizes = page.evaluate(_SIZES)
    assert len(sizes) > 10
    for natural, width, height in sizes:
        assert natural > 0
        assert 0 < width <= 1000
        assert 0 < height <= 800
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
