"""What holds for the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from support.paths import ROOT, TESTS

_FILES = sorted(TESTS.rglob("*.py"))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in _FILES:
        place = path.relative_to(TESTS).as_posix()
        yield from ((place, node) for node in ast.walk(ast.parse(path.read_text())))


def imports() -> Iterator[tuple[str, str]]:
    for place, node in nodes():
        if isinstance(node, ast.ImportFrom):
            yield place, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((place, name.name) for name in node.names)


def test_no_test_imports_another() -> None:
    assert [pair for pair in imports() if pair[1].rpartition(".")[2].startswith(("test_", "conftest"))] == []


def test_units_are_tested_without_processes_and_servers() -> None:
    elsewhere = {"subprocess", "multiprocessing"}
    elsewhere |= {f"support.{name}" for name in ("container", "hls", "page", "processes", "rtsp", "rtsp_door", "web")}
    assert [pair for pair in imports() if pair[0].startswith("unit/") and pair[1] in elsewhere] == []


def test_folders_are_those_of_the_package() -> None:
    rooms = {path.parent.name for path in (ROOT / "streamdet").glob("*/__init__.py")} | {"docs", "project"}
    for kind in ("unit", "integration"):
        assert {path.name for path in (TESTS / kind).iterdir() if path.is_dir() and path.name != "__pycache__"} <= rooms
    assert list(TESTS.glob("test_*.py")) == []


def test_no_thread_keeps_a_process_alive() -> None:
    """One that hangs fails its test, and not the whole run."""
    calls = [
        (place, node)
        for place, node in nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread")
    ]
    assert len(calls) > 20
    assert [place for place, call in calls if not any(key.arg == "daemon" for key in call.keywords)] == []
