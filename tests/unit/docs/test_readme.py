"""The README does not promise what is not so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamdet.config import load_config
from support.paths import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_configurations_load(tmp_path: Path) -> None:
    (whole,) = blocks("toml")
    shapes, counted = blocks("toml", (ROOT / "docs" / "zones.md").read_text())
    path = tmp_path / "streamdet.toml"
    path.write_text(whole)
    config = load_config(path, {"FRONT_DOOR_LOGIN": "ann:secret"})
    assert config.streams[0].url == "rtsp://ann:secret@192.0.2.5/stream1"
    path.write_text(shapes)
    (stream,) = load_config(path, {}).streams
    assert [len(of) for of in (stream.zones, stream.lines, stream.masks)] == [1, 1, 1]
    path.write_text(counted)
    (stream,) = load_config(path, {}).streams
    assert stream.zones[0].loiter_seconds == 300


def test_the_python_example_compiles_and_its_names_exist() -> None:
    (code,) = blocks("python")
    compile(code, "README.md", "exec")
    imported = re.search(r"from streamdet import (.*)", code)
    assert imported
    names: dict[str, object] = {}
    exec(imported.group(0), names)  # noqa: S102 - the line stands in our README
    assert set(imported.group(1).split(", ")) <= set(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        leads_to = (page.parent / file).resolve() if file else page
        assert leads_to.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", leads_to.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_the_table_of_contents_names_every_page() -> None:
    contents = (ROOT / "docs" / "README.md").read_text()
    named = set(re.findall(r"\]\(([\w-]+\.md)", contents))
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"} == named


def test_the_readme_stays_short() -> None:
    assert len(README.encode()) <= 6000


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", " ".join(blocks("sh")))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
