"""Where things are."""

from __future__ import annotations

from pathlib import Path

import streamdet

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
# That of a wheel is not in the checkout.
PACKAGE = Path(streamdet.__file__).parent
DATA = TESTS / "data"
