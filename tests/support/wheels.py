"""Wheels of streamdet with another version, and with a part replaced: what an upgrade may bring."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import streamdet

_PACKAGE = Path(streamdet.__file__).parent


def make_wheel(folder: Path, version: str, replaced: Mapping[str, str] | None = None, requires: str = "") -> Path:
    """A wheel of the code that is tested.

    Args:
        folder: for the file.
        version: of the wheel.
        replaced: new texts of files, and new files, by their paths below `streamdet/`.
        requires: one more requirement.
    """
    path, info = folder / f"streamdet-{version}-py3-none-any.whl", f"streamdet-{version}.dist-info"
    texts = {"__init__.py": (_PACKAGE / "__init__.py").read_text().replace(streamdet.__version__, version)}
    texts |= replaced or {}
    metadata = (distribution("streamdet").read_text("METADATA") or "").splitlines()
    metadata = [f"Version: {version}" if line.startswith("Version: ") else line for line in metadata]
    if requires:
        metadata.insert(3, f"Requires-Dist: {requires}")
    with zipfile.ZipFile(path, "w") as wheel:
        for file in _PACKAGE.rglob("*"):
            name = file.relative_to(_PACKAGE).as_posix()
            if file.is_file() and "__pycache__" not in name:
                wheel.writestr(f"streamdet/{name}", texts.get(name, file.read_bytes()))
        for name in set(texts) - {file.relative_to(_PACKAGE).as_posix() for file in _PACKAGE.rglob("*")}:
            wheel.writestr(f"streamdet/{name}", texts[name])
        for link in (file for file in _PACKAGE.rglob("*") if file.is_symlink() and file.is_dir()):
            for file in link.rglob("*"):  # Path.rglob does not enter links to folders
                if file.is_file():
                    wheel.write(file, f"streamdet/{file.relative_to(_PACKAGE)}")
        wheel.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
