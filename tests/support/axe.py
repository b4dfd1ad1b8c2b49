"""axe-core, which checks a page against WCAG 2.2 AA and best practices."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import DATA

FINDINGS = """async () => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
  const { violations } = await axe.run(document, { runOnly: tags });
  return violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary: why }) => `${id}: ${html} ${why}`));
}"""
"""Returns what it finds, once its script has been evaluated in the page."""


def axe_script(folder: Path) -> str:
    """Installs axe-core into a folder and returns its script; skips the test where npm cannot."""
    shutil.copy(DATA / "axe" / "package.json", folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, timeout=180, check=False)
    if installed.returncode != 0:
        pytest.skip("npm cannot install the package axe-core here")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()
