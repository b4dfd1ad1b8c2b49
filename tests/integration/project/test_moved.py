"""Modules by their former names."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

from streamdet._moved import MOVED


def test_every_new_name_is_there_and_no_old_one_is() -> None:
    for old, new in MOVED.items():
        spec = find_spec(f"streamdet.{new}")
        assert spec is not None
        assert spec.origin is not None, new
        before = find_spec(f"streamdet.{old}")
        assert before is not None
        assert before.origin is None, old


@pytest.mark.parametrize("old", ["gaps", "sources", "detector.models"])
def test_an_old_name_gives_the_new_module_with_a_warning(old: str) -> None:
    code = (
        f"import warnings; warnings.simplefilter('error'); import streamdet\n"
        f"try: import streamdet.{old}\n"
        f"except DeprecationWarning as warning: print(warning)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"streamdet.{old} is streamdet.{MOVED[old]} now; the old name goes\n"
    with pytest.warns(DeprecationWarning, match="the old name goes"):
        module = importlib.import_module(f"streamdet.{old}")
    new = importlib.import_module(f"streamdet.{MOVED[old]}")
    public = [name for name, value in vars(new).items() if getattr(value, "__module__", None) == new.__name__]
    assert public
    assert all(getattr(module, name) is getattr(new, name) for name in public)
    for name in [name for name in sys.modules if name.removeprefix("streamdet.") in (old, old.partition(".")[0])]:
        del sys.modules[name]
