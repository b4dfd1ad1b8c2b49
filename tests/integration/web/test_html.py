"""The page as one document: its scripts share one scope."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

import pytest

from streamdet.web.html import Pages
from support.paths import PACKAGE

_DECLARED = re.compile(r"^(?:async function|function|const|let) (\w+)", re.MULTILINE)


def test_no_script_declares_a_name_of_another() -> None:
    # Of two functions of one name the second would quietly replace the first.
    scripts = [path.read_text() for path in (PACKAGE / "web/page").glob("*.js")]
    names = Counter(name for script in scripts for name in _DECLARED.findall(script))
    assert len(names) > 100
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.package("nodejs")
def test_all_scripts_together_are_one_that_is_sound() -> None:
    page = Pages.load(with_log_out=True).page.decode()
    script = page.partition("<script>")[2].partition("</script>")[0]
    checked = subprocess.run(["node", "--check", "-"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
