"""What the page's form of rules says of a rule, and which streams it applies to."""

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
    script = (PACKAGE / "web/page/rules.js").read_text()
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
        {"none_for_seconds": 600, "streams": ["a", "b-*"], "clip_seconds": [5, 10]},
    ]
    assert in_node("ruleInWords(it)", rules) == [
        "When a person is in the zone bay of yard for 10 seconds, once for each: raise an alert with a picture.",
        (
            "When a car or truck crosses the line gate going in of any stream, once for each: raise an alert. Only "
            "from 22:00 to 06:00 on Saturday."
        ),
        (
            "When at least 4 of person are in the zone bay of any stream at once: raise an alert. After an alert there "
            "is none on the same stream for 1 min."
        ),
        (
            "When no object has been in the picture of a or b-* for 10 min: raise an alert with a clip from 5 seconds "
            "before to 10 seconds after."
        ),
    ]
