"""The README does not promise what is not so."""

from __future__ import annotations

import re
from pathlib import Path

from streamdet.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_configurations_load(tmp_path: Path) -> None:
    whole, shapes = blocks("toml")
    path = tmp_path / "streamdet.toml"
    path.write_text(whole)
    config = load_config(path, {"FRONT_DOOR_LOGIN": "ann:secret"})
    assert config.streams[0].url == "rtsp://ann:secret@192.0.2.5/stream1"
    path.write_text(shapes)
    (stream,) = load_config(path, {}).streams
    assert [len(of) for of in (stream.zones, stream.lines, stream.masks)] == [1, 1, 1]


def test_the_python_example_compiles_and_its_names_exist() -> None:
    (code,) = blocks("python")
    compile(code, "README.md", "exec")
    imported = re.search(r"from streamdet import (.*)", code)
    assert imported
    names: dict[str, object] = {}
    exec(imported.group(0), names)  # noqa: S102 - the line stands in our README
    assert set(imported.group(1).split(", ")) <= set(names)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", " ".join(blocks("sh")))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
