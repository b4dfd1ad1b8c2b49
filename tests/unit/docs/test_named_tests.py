"""The tests that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.paths import ROOT, TESTS

_NAMED = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)?(?:::(\w+))?`")
_PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "test_" in path.read_text()]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_named_tests_are_there(page: Path) -> None:
    missing = []
    for line in page.read_text().splitlines():
        file = ""
        for match in _NAMED.finditer(line):
            file = match[1] or file  # `::name` alone is of the file before
            path = TESTS / file
            if match[1] and not path.is_file():
                missing.append(file)
            elif match[2] and (not path.is_file() or f"def {match[2]}(" not in path.read_text()):
                missing.append(f"{file}::{match[2]}")
    assert missing == []
