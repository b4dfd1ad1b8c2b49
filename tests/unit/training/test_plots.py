from __future__ import annotations

import numpy as np

from streamdet.training.metrics import Metrics
from streamdet.training.plots import confusion_png, precision_recall_png


def test_names_of_categories_are_not_formulas_and_may_lack_letters_in_the_font() -> None:
    """matplotlib takes what stands between dollars for TeX, and warns of letters that its font does not have."""
    names = ["$x_{$", "US$ or A$^", "\u4eba", "_hidden"]
    assert confusion_png(np.eye(5, dtype=np.int64), names, 0.5).startswith(b"\x89PNG")
    per_class = {name: {"ap": 0.5, "ap_50": 0.5} for name in names}
    metrics = Metrics({"map_50": 0.5}, per_class, np.full((10, 101, 4), 0.5))
    assert precision_recall_png(metrics).startswith(b"\x89PNG")
