"""The command that installs a missing part names what a person has at hand: the checkout, or the wheel."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from streamdet.extras import how_to_install

METADATA = """Metadata-Version: 2.4
Name: streamdet
Version: 9.9.9
Requires-Dist: pydantic<3,>=2
Requires-Dist: pytest<99; extra == 'mqtt'
Requires-Dist: a-package-that-is-not-there>=1; extra == 'otel'
Requires-Dist: pytest; extra == 'train'
Requires-Dist: another-that-is-not-there; extra == 'train'
"""


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///src", "dir_info": {"editable": True}}, 'make setup EXTRAS="mqtt otel"'),
        (
            {"url": "file:///srv/streamdet-9.9.9-py3-none-any.whl", "archive_info": {}},
            "pip install 'streamdet[otel] @ file:///srv/streamdet-9.9.9-py3-none-any.whl'",
        ),
        (None, "pip install 'streamdet[otel]'"),
    ],
)
def test_it_names_the_checkout_or_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, object] | None, command: str
) -> None:
    folder = tmp_path / "streamdet-9.9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert how_to_install("otel") == command


def test_the_copy_that_a_service_runs_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "streamdet-version.json").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "the environment that install-service ran in" in how_to_install("otel")
