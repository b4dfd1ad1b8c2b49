from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streamdet.config.toml import lines_of_keys


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        return found.union(*(_paths(inner, (*path, key)) for key, inner in value.items()))
    if isinstance(value, list):
        return found.union(*(_paths(inner, (*path, number)) for number, inner in enumerate(value)))
    return found


TRICKY = '''# comment [a]
top = "with \\" quote # and [table]" # comment
'quoted key'."and \\u0041.dot" = 'x = 1'
a . b.c = 1
text = """
[not.a.table]
x = "1" \\"""
""\\""""""
raw = \'\'\'
[[no]] \'\'\'\'\'
list = [ # comment ]
  1, [2, "]"], { x = 1, y.z = [3] }, # more
  2026-01-01 00:00:00,
]
inline = { a = { b = "}" }, c = [] }
[table]
x = 1
[table.sub."two words"]
y = 2
[[streams]]
name = "a"
[streams.deep]
k = 1
[[streams.inner]]
k = 2
[[streams.inner]]
k = 3
[[streams]]
name = "b"
[[streams.inner]]
k = 4
'''


def test_every_key_has_its_line() -> None:
    lines = lines_of_keys(TRICKY)
    assert set(lines) == _paths(tomllib.loads(TRICKY))
    expected = {
        ("top",): 2, ("quoted key", "and A.dot"): 3, ("a", "b", "c"): 4, ("text",): 5, ("raw",): 9, ("list",): 11,
        ("list", 0): 12, ("list", 1, 1): 12, ("list", 2, "y", "z", 0): 12, ("list", 3): 13, ("inline", "a", "b"): 15,
        ("table",): 16, ("table", "x"): 17, ("table", "sub", "two words", "y"): 19, ("streams",): 20,
        ("streams", 0, "name"): 21, ("streams", 0, "deep", "k"): 23, ("streams", 0, "inner", 0, "k"): 25,
        ("streams", 0, "inner", 1, "k"): 27, ("streams", 1): 28, ("streams", 1, "inner", 0, "k"): 31,
    }  # fmt: skip
    assert {path: lines[path] for path in expected} == expected
    assert lines_of_keys(TRICKY.replace("\n", "\r\n")) == lines


PIECES = st.sampled_from(
    ["a", "b", "'c d'", '"e"', ".", "=", "=1", '="x"', "='y'", "[", "]", "[[", "]]", "{", "}", ",", "\n", " ",
     "#", '"""', "'''",
     "[a]\n", "[[a]]\n", "a=1\n", "\\", '"', "'", "1979-05-27 07:32:00", "true",
     "\r\n", "\t", "a.b=[]\n", "{}", "[[a.b]]\n"]
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=25).map("".join))
@example('a="""x"""""\nb=1\n')
@example("a=''''x'''''\nb=1")
@example('a=""\nb=[""]\n')
def test_the_locator_agrees_with_tomllib(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(lines_of_keys(text)) == _paths(data)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.text(st.characters(exclude_categories=("C",)), max_size=6) | st.integers(-9, 9) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab. '\"é", max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", # ]\n".join(map(_inline, value)) + "]"
    return str(value) if isinstance(value, int) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc. '\"é", max_size=4), VALUES, max_size=5))
def test_generated_files_are_located_whole(data: dict[str, Any]) -> None:
    text = "".join(f"\n{_inline(key)} = {_inline(value)} # x\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    lines = lines_of_keys(text)
    assert set(lines) == _paths(data)
    for key in data:
        assert text.split("\n")[lines[key,] - 1].startswith(_inline(key))
