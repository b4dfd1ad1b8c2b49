"""The list of `make mutants` fits the code, and its program finds what no test notices."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from mutant_list import MUTANTS, Mutant
from mutants import LEAST_SHARE, ROOT, MutantsError, changed, run


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_change_fits_the_code(mutant: Mutant) -> None:
    before = (ROOT / mutant.file).read_text()
    after = changed(mutant, before)
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))
    else:
        assert after != before


def test_each_test_is_there() -> None:
    functions = {}
    for file, function in {tuple(mutant.test.split("::")) for mutant in MUTANTS}:
        if file not in functions:
            functions[file] = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text()))
                               if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}  # fmt: skip
        assert function.partition("[")[0] in functions[file], f"{file} has no {function}"


def test_each_name_is_there_once() -> None:
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    assert LEAST_SHARE * len(MUTANTS) >= 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in {
        "streamdet/__init__.py": "",
        "streamdet/sums.py": "MOST = 5\n\n\ndef double(x: int) -> int:\n    return 2 * min(x, MOST)\n",
        "tests/test_sums.py": "from streamdet.sums import double\n\n\ndef test_two():\n    assert double(2) == 4\n",
        "pytest.ini": "[pytest]\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _mutant(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "streamdet/sums.py", old, new, "tests/test_sums.py::test_two")


def test_what_no_test_notices_is_found_and_the_tree_stays_as_it_is(tree: Path) -> None:
    before = (tree / "streamdet/sums.py").read_bytes()
    bitten, missed = _mutant("sum", "return 2", "return 3"), _mutant("bound", "min(x, MOST)", "x")
    done: list[tuple[str, bool]] = []
    assert run([bitten, missed], tree, lambda mutant, is_noticed: done.append((mutant.name, is_noticed))) == ["bound"]
    assert sorted(done) == [("bound", False), ("sum", True)]
    assert (tree / "streamdet/sums.py").read_bytes() == before


def test_a_list_that_does_not_fit_is_one_clear_line(tree: Path) -> None:
    for old in ("return 4", "MOST"):
        with pytest.raises(MutantsError, match=r"^bound: streamdet/sums\.py holds [02] times, not once: "):
            run([_mutant("bound", old, "x")], tree)
    (tree / "tests/test_sums.py").write_text("def test_two():\n    assert False\n")
    with pytest.raises(MutantsError, match=r"^the tests do not pass as they are: "):
        run([_mutant("bound", "min(x, MOST)", "x")], tree)
