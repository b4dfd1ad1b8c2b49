"""What the page says of zones, lines, masks and rules, compared with the daemon and the check of its configuration."""

from __future__ import annotations

import json
import random
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streamdet.analytics.zones import Zones
from streamdet.config.load import load_config
from streamdet.config.naming import slug
from streamdet.config.stream import StreamConfig
from streamdet.errors import ConfigError
from streamdet.types import Detection
from support.paths import PACKAGE

pytestmark = pytest.mark.package("nodejs")

_PAGE = PACKAGE / "web/page"
_KINDS = ("zones", "lines", "masks")
_LABELS = ("person", "car", "truck")


def in_node(expression: str, cases: list[Any]) -> list[Any]:
    """The value of an expression in JavaScript for each case, which it has as `it`."""
    scripts = "\n".join((_PAGE / f"{name}.js").read_text() for name in ("shapes", "toml"))
    script = (
        f'"use strict";\n{scripts}\nconst cases = JSON.parse(require("fs").readFileSync(0, "utf8"));\n'
        f"process.stdout.write(JSON.stringify(cases.map((it) => ({expression}))));"
    )
    done = subprocess.run(["node", "-e", script], input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    assert len(values) == len(cases)
    return values


def as_on_page(keys: dict[str, Any]) -> dict[str, Any]:
    """A shape of the configuration as the page keeps it."""
    return {"points" if key == "polygon" else key: value for key, value in keys.items()}


def shapes_of(draw: random.Random, kind: str, count: int, *, coarse: bool) -> list[dict[str, Any]]:
    """Shapes of any form; coarse ones have corners on a grid, so that sides touch, overlap and run back."""

    def part() -> float:
        return draw.randrange(5) / 4 if coarse else round(draw.random(), 4)

    shapes: list[dict[str, Any]] = []
    for number in range(count):
        points = [[part(), part()] for _ in range(2 if kind == "lines" else draw.choice((3, 3, 4, 5, 8)))]
        shape: dict[str, Any] = {"name": f"shape-{number}", "points" if kind == "lines" else "polygon": points}
        if draw.random() < 0.4:
            shape["labels"] = draw.sample(_LABELS, draw.choice((1, 2)))
        if draw.random() < 0.4:
            shape["min_size"], shape["max_size"] = sorted((draw.random() / 3, 0.3 + draw.random() * 0.7))
        if draw.random() < 0.6:
            shape["anchor"] = draw.choice(("bottom", "center") if kind == "lines" else ("bottom", "center", "any"))
        if kind != "masks" and draw.random() < 0.4:
            shape["min_score"] = round(draw.random(), 2)
        shapes.append(shape)
    return shapes


def is_sound(kind: str, shape: dict[str, Any]) -> bool:
    try:
        StreamConfig(name="s", url="rtsp://192.0.2.1/s", **{kind: (shape,)})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_the_page_finds_the_zones_and_masks_of_a_box_that_the_daemon_finds(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - the same cases each time
    cases: list[dict[str, Any]] = []
    expected: list[list[dict[str, Any]]] = []
    while len(cases) < 200:
        coarse = draw.random() < 0.3
        shapes = {
            kind: [shape for shape in shapes_of(draw, kind, draw.randrange(5), coarse=coarse) if is_sound(kind, shape)]
            for kind in ("zones", "masks")
        }
        width, height = draw.choice(((640, 360), (1920, 1080), (37, 401)))
        found = []
        for _ in range(12):
            if coarse:  # on the corners and sides of the shapes
                x1, x2 = sorted(draw.randrange(9) / 8 * width for _ in range(2))
                y1, y2 = sorted(draw.randrange(9) / 8 * height for _ in range(2))
            else:
                x1, y1 = draw.random() * width, draw.random() * height
                x2, y2 = (min(a + draw.random() ** 2 * a_max, a_max) for a, a_max in ((x1, width), (y1, height)))
            found.append(Detection(draw.choice(_LABELS), round(draw.random(), 3), (x1, y1, x2, y2)))
        config = StreamConfig(name="s", url="rtsp://192.0.2.1/s", **shapes)
        unmasked = config.model_copy(update={"masks": ()})
        boxes = [{"label": one.label, "score": one.score, "box": one.box} for one in found]
        cases.append({
            "shapes": {kind: [as_on_page(shape) for shape in all_of] for kind, all_of in shapes.items()},
            "found": boxes, "frame": {"width": width, "height": height},
        })  # fmt: skip
        verdicts = []
        for one in found:
            (in_zones,), _ = Zones(unmasked).see([one], (width, height), 1.0, {})
            kept, _ = Zones(config).see([one], (width, height), 1.0, {})
            verdicts.append({"zones": list(in_zones.zones), "masked": not kept})
        expected.append(verdicts)
    verdict = "{const {zones, masks} = verdictOf(it.shapes, one, it.frame); return {zones, masked: masks.length > 0};}"
    assert in_node(f"it.found.map((one) => {verdict})", cases) == expected
    every = [verdict for verdicts in expected for verdict in verdicts]
    assert sum(bool(verdict["zones"]) for verdict in every) > 100
    assert sum(verdict["masked"] for verdict in every) > 100


def what_check_says(path: Path, kind: str, shapes: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What is wrong with each shape, by its key: each is the only one of a stream of its own."""
    tables = []
    for number, shape in enumerate(shapes):
        keys = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in shape.items())
        tables.append(f'[[streams]]\nname = "s{number}"\nurl = "rtsp://192.0.2.1/s"\n[[streams.{kind}]]\n{keys}')
    path.write_text("".join(tables))
    said: list[dict[str, str]] = [{} for _ in shapes]
    try:
        load_config(path)
    except ConfigError as error:
        for line in str(error).splitlines():
            found = re.search(rf"streams\[s(\d+)\]\.{kind}\[[^\]]*\]\.(\w+)(?:\[#\d+\])*: (.*)", line)
            assert found, line
            said[int(found[1])][found[2]] = found[3]
    return said


@pytest.mark.parametrize("kind", _KINDS)
def test_the_page_says_of_a_wrong_shape_what_the_check_says(kind: str, tmp_path: Path) -> None:
    draw = random.Random(kind)  # noqa: S311 - the same cases each time
    shapes = [shape for coarse in (True, False) for shape in shapes_of(draw, kind, 150, coarse=coarse)]
    points = "points" if kind == "lines" else "polygon"
    many = [[round(number / 70, 3), round((number % 7) / 7, 3)] for number in range(65)]
    sound: dict[str, Any] = {"name": "a", points: [[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]][: 2 if kind == "lines" else 3]}
    names = ("", "Bay one", "-bay", "b" * 65, 'a"b', "über", "\U0001f600", "منطقة", "x" * 200, "__", "a.b-c_9")
    shapes += [{**sound, "name": name} for name in names]
    shapes += [{**sound, points: some} for some in ([[0.1, 0.2]], many, [[0.1, 0.2], [1.2, 0.3], [0.1, 0.9]])]
    shapes += [{**sound, "min_size": 0.5, "max_size": size} for size in (0.5, 0.1234567, 0.75)]
    if kind == "zones":
        dwells = ([5, 3], [3, 3], [1.5, 20], list(range(1, 10)))
        shapes += [{**sound, "dwell_seconds": seconds} for seconds in dwells]
    # The check lists a hundred problems at most.
    chunks = [shapes[begin : begin + 100] for begin in range(0, len(shapes), 100)]
    said = [each for chunk in chunks for each in what_check_says(tmp_path / "c.toml", kind, chunk)]
    cases = [as_on_page(shape) for shape in shapes]
    assert in_node(f'problemsOf("{kind}", it, [it])', cases) == said
    assert {key for each in said for key in each} >= {"name", points, "max_size"}
    assert sum(map(bool, said)) < len(said)


def test_the_page_says_of_a_list_what_the_check_says() -> None:
    draw = random.Random(5)  # noqa: S311 - the same cases each time
    zones = [shape for shape in shapes_of(draw, "zones", 60, coarse=False) if is_sound("zones", shape)][:17]
    with pytest.raises(ValueError, match="are 17; at most 16 are allowed"):
        StreamConfig(name="s", url="rtsp://192.0.2.1/s", zones=tuple(zones))
    twins = [{**zones[0], "name": "bay"}, {**zones[1], "name": "bay"}]
    with pytest.raises(ValueError, match='hold the name "bay" twice; every one needs a name of its own'):
        StreamConfig(name="s", url="rtsp://192.0.2.1/s", zones=tuple(twins))
    pages = [[as_on_page(shape) for shape in shapes] for shapes in (zones, zones[:16], twins)]
    assert in_node("problemOfList(it)", pages) == ["are 17; at most 16 are allowed", "", ""]
    twice = 'zones hold the name "bay" twice; every one needs a name of its own'
    assert in_node('problemsOf("zones", it[0], it)', pages) == [{}, {}, {"name": twice}]


def test_the_page_suggests_the_names_that_the_check_suggests() -> None:
    texts = ["Straße", "Überlauf Ägir", "São Łódź Ærø đ", "İstanbul ıǅ", "x\u0301\u20dd ½ ™ \ufb01", "منطقة", "--A B--"]
    texts.append("ẞ" * 60)
    assert in_node("slug(it)", texts) == [slug(text) for text in texts]


def test_what_the_page_writes_as_toml_is_what_it_shows(tmp_path: Path) -> None:
    draw = random.Random(9)  # noqa: S311 - the same cases each time
    head = '[[streams]]\nname = "s"\nurl = "rtsp://192.0.2.1/s"\n'
    cases: list[dict[str, Any]] = []
    for _ in range(40):
        case = {}
        for kind in _KINDS:
            case[kind] = [shape for shape in shapes_of(draw, kind, 6, coarse=False) if is_sound(kind, shape)]
        case["zones"] = [{**zone, "dwell_seconds": [1.5, 60], "loiter_seconds": 90} for zone in case["zones"]]
        cases.append(case)
    on_page = [{kind: [as_on_page(shape) for shape in case[kind]] for kind in _KINDS} for case in cases]
    path = tmp_path / "c.toml"
    for case, text in zip(cases, in_node('tomlOfShapes("s", it)', on_page), strict=True):
        path.write_text(head + text)
        assert load_config(path).streams == (StreamConfig(name="s", url="rtsp://192.0.2.1/s", **case),)


_TEXTS = (
    'with "quotes"', "back\\slash", "${HOME}", "$${HOME}", "$$${", "\U0001f6a8 alarm", "منطقة",
    "\u202eright to left\u202c",
    "tab\tand\nbreak", "\x00\x1f\x7f\x85\u2028", "'''", "x" * 200, "# no comment", "]]",
)  # fmt: skip


def test_texts_are_escaped(tmp_path: Path) -> None:
    rule = 'tomlOfRule({name: it, streams: ["a", it], at_least: 3, picture: true, clip_seconds: [1, 2.5]})'
    for text, toml in zip(_TEXTS, in_node(rule, list(_TEXTS)), strict=True):
        written = text.replace("${", "$${")
        assert tomllib.loads(toml)["rules"] == [
            {"name": written, "streams": ["a", written], "at_least": 3, "picture": True, "clip_seconds": [1, 2.5]}
        ]
        assert "\u202e" not in toml  # it would show what follows in another order than it is read
    assert in_node("tomlText(it.slice(0, 1))", ["\U0001f6a8"]) == ['"\ufffd"']
    path = tmp_path / "c.toml"
    name = '${HOME} "\U0001f6a8" $${x}'
    path.write_text(
        '[[streams]]\nname = "s"\nurl = "rtsp://192.0.2.1/s"\n' + in_node("tomlOfRule({name: it})", [name])[0]
    )
    assert load_config(path).rules[0].name == name
