"""What the page says of rules, of counts and of times, and which streams a rule applies to."""

from __future__ import annotations

import json
import random
import subprocess
from fnmatch import fnmatchcase
from typing import Any

import pytest

from support.paths import PACKAGE

pytestmark = pytest.mark.package("nodejs")


def in_node(expression: str, cases: list[Any]) -> list[Any]:
    """The value of an expression in JavaScript for each case, which it has as `it`."""
    script = "\n".join((PACKAGE / f"web/page/{name}.js").read_text() for name in ("words", "rules"))
    source = (
        f'"use strict";\nconst addView = () => {{}};\n{script}\n'
        'const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));\n'
        f"process.stdout.write(JSON.stringify(cases.map((it) => ({expression}))));"
    )
    done = subprocess.run(["node", "-e", source], input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    return values


def test_patterns_fit_the_streams_that_they_fit_in_the_daemon() -> None:
    draw = random.Random(3)  # noqa: S311 - the same cases each time
    pieces = ("a", "b", "-", ".", "*", "?", "[ab]", "[!a]", "[a-c]", "[", "]", "(", "+", "$", "\\", "1")
    cases = [
        ("".join(draw.choices(pieces, k=draw.randrange(6))), "".join(draw.choices("ab-.1c", k=draw.randrange(6))))
        for _ in range(3000)
    ]
    expected = [fnmatchcase(name, glob) for glob, name in cases]
    assert in_node("fitsGlob(...it)", cases) == expected
    assert 100 < sum(expected) < 2900


def test_a_sentence_says_what_a_rule_does() -> None:
    rules = [
        {"labels": ["person"], "streams": ["yard"], "zone": "bay", "for_seconds": 10, "picture": True},
        {
            "line": "gate",
            "direction": "in",
            "labels": ["car", "truck"],
            "between": [["22:00", "06:00"]],
            "days": ["sat"],
        },
        {"at_least": 4, "labels": ["person"], "zone": "bay", "cooldown_seconds": 60},
        {"at_least": 2},
        {"at_least": 1, "labels": ["bus", "truck"]},
        {"at_least": 3, "labels": ["dog", "person"]},
        {"none_for_seconds": 600, "streams": ["a", "b-*"], "clip_seconds": [5, 10]},
    ]
    assert in_node("ruleInWords(it)", rules) == [
        "When a person is in the zone bay of yard for 10 seconds, once for each: raise an alert with a picture.",
        (
            "When a car or truck crosses the line gate going in of any stream, once for each: raise an alert. Only "
            "from 22:00 to 06:00 on Saturday."
        ),
        (
            "When at least 4 people are in the zone bay of any stream at once: raise an alert. After an alert there "
            "is none on the same stream for 1 min."
        ),
        "When at least 2 objects are in the picture of any stream at once: raise an alert.",
        "When at least 1 bus or truck is in the picture of any stream at once: raise an alert.",
        "When at least 3 of dog or person are in the picture of any stream at once: raise an alert.",
        (
            "When no object has been in the picture of a or b-* for 10 min: raise an alert with a clip from 5 seconds "
            "before to 10 seconds after."
        ),
    ]


def test_objects_are_counted_in_words_and_labels_of_any_language_without_a_plural() -> None:
    times = "\u00d7"
    counts = [{"person": 9, "car": 1}, {"bus": 2, "Fahrrad": 3}, {"toString": 2}, {}]
    assert in_node("counted(it)", counts) == [
        "9 people, 1 car",
        f"3 {times} Fahrrad, 2 buses",
        f"2 {times} toString",
        "",
    ]


def test_what_takes_no_time_is_not_said_to_last() -> None:
    times = [0, 0.04, 0.3, 1.2, 75]
    assert in_node('lasting(it, ", for ")', times) == ["", "", ", for less than 1 s", ", for 1 s", ", for 1 min"]


def test_why_fewer_frames_go_out_begins_with_what_is_lost() -> None:
    drops = [{"rate_limited": 4.4, "superseded": 1.5, "stale": 1.0, "not_decoded": 0.8}, {}]
    assert in_node("whyFewer(it)", drops) == [
        {"text": "2.5 fps left out by overload, 4.4 by max_fps, 0.8 by decode", "isLoss": True},
        {"text": "", "isLoss": False},
    ]
