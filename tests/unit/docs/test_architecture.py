"""What docs/architecture.md says of places is so."""

from __future__ import annotations

import re
import tomllib

from support.paths import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_it_names_is_there() -> None:
    names = set(re.findall(r"`([a-z_/]+\.py)`", TEXT))
    assert len(names) > 25
    files = [path.relative_to(ROOT / "streamdet").as_posix() for path in (ROOT / "streamdet").rglob("*.py")]
    for name in names:
        assert any(file == name or file.endswith(f"/{name}") for file in files), name


def test_the_layers_are_those_that_are_checked() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    checked = {name for layer in contract["layers"] for name in re.findall(r"\w+", layer)}
    rooms = {
        path.stem for path in (ROOT / "streamdet").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert checked == rooms - {"__init__"}
    drawn = TEXT.partition("```")[2].partition("```")[0]
    for room in checked - {"__main__", "_moved", "wakeup"}:
        assert re.search(rf"\b{room}\b", drawn), room
