# ruff: noqa: E501 - a table of bad input is read best with one case per line
"""What may stand in `[[rules]]`, and how a rule that can never be met is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.config import Config, load_config
from streamdet.config.load import read_stream
from streamdet.config.rules import RuleConfig, minutes_of, rules_of
from streamdet.errors import ConfigError

SQUARE = "[[0, 0], [1, 0], [1, 1], [0, 1]]"
STREAMS = f"""[[streams]]
name = "yard"
url = "rtsp://192.0.2.5/x"
zones = [{{ name = "bay", polygon = {SQUARE} }}, {{ name = "parking", polygon = {SQUARE}, labels = ["car"] }}]
lines = [{{ name = "gate", points = [[0, 0.5], [1, 0.5]] }}]
[[streams]]
name = "dock-1"
url = "rtsp://192.0.2.6/x"
zones = [{{ name = "bay", polygon = {SQUARE} }}]
[[streams]]
name = "dock-2"
url = "rtsp://192.0.2.7/x"
track = false
"""
SLOW = """[[streams]]
name = "lobby"
url = "rtsp://192.0.2.8/x"
track_max_lost_seconds = 0
[[streams]]
name = "roof"
url = "rtsp://192.0.2.9/x"
max_fps = 0.2
labels = ["person"]
"""
LINE = STREAMS.count("\n") + 1
RULE = 'name = "busy"'
YARD = f'{RULE}; streams = ["yard"]'
# A semicolon stands for a new line.
BAD = {
    "no name": ('zone = "bay"; streams = ["yard"]', f'{LINE}: rules[#1].name: is missing; add a line such as name = "loading bay at night"'),
    "empty name": ('name = ""; streams = ["yard"]', f'{LINE + 1}: rules[#1].name: is ""; must be a text of 1 to 64 characters'),
    "long name": (f'name = "{"x" * 65}"; streams = ["yard"]', "must be a text of 1 to 64 characters"),
    "name of two lines": ('name = "a\\nb"; streams = ["yard"]', "must be a text of 1 to 64 characters without blanks around it or line breaks"),
    "name with blanks around it": ('name = " a"; streams = ["yard"]', "without blanks around it"),
    "unknown key": (f"{YARD}; cooldown = 3", f'{LINE + 3}: rules[busy].cooldown: is not a known key; did you mean "cooldown_seconds"?'),
    "key of a stream": (f"{YARD}; max_fps = 3", "rules[busy].max_fps: is not a key of this table; it belongs to [stream_defaults] or [[streams]]"),
    "unknown stream": (f'{RULE}; streams = ["yard", "yarrd"]', f'{LINE + 2}: rules[busy].streams[#2]: is "yarrd", which matches no stream; did you mean "yard"?'),
    "glob without a stream": (f'{RULE}; streams = ["hall-*"]', 'rules[busy].streams[#1]: is "hall-*", which matches no stream; the streams are yard, dock-1, dock-2'),
    "streams not a list": (f'{RULE}; streams = "yard"', 'rules[busy].streams: is "yard"; must be a list of names, such as streams = ["yard", "dock-*"]'),
    "stream without tracks": (f'{RULE}; streams = ["yard", "dock-2"]', 'rules[busy].streams: apply to dock-2, which has track = false; set track = true there, or leave it out here; to apply the rule to the others only, write streams = ["yard"]'),
    "all streams, one of them without tracks": (RULE, f"{LINE}: rules[busy].streams: apply to dock-2, which has track = false"),
    "unknown label": (f'{YARD}; labels = ["persn"]', f'{LINE + 3}: rules[busy].labels: hold "persn", which is not a published label; did you mean "person"?'),
    "label that the zone does not count": (f'{YARD}; labels = ["person"]; zone = "parking"', 'rules[busy].labels: hold "person", but zone "parking" of yard counts only car'),
    "unknown zone": (f'{YARD}; zone = "bays"', f'{LINE + 3}: rules[busy].zone: is "bays", and stream yard has no zone of this name; did you mean "bay"?'),
    "zone of another stream": (f'{RULE}; streams = ["yard", "dock-1"]; zone = "parking"', 'rules[busy].zone: is "parking", and stream dock-1 has no zone of this name; it has bay; to apply the rule to the others only, write streams = ["yard"]'),
    "zone where none is": (f'{RULE}; streams = ["dock-1"]; line = "gate"', 'rules[busy].line: is "gate", and stream dock-1 has no line of this name; it has none; add one'),
    "zone like no other": (f'{YARD}; zone = "roof"', 'is "roof", and stream yard has no zone of this name; it has bay, parking'),
    "line that is a zone": (f'{YARD}; line = "bay"', 'rules[busy].line: is "bay", and stream yard has no line of this name; it has gate'),
    "zone and line": (f'{YARD}; zone = "bay"; line = "gate"', f"{LINE + 4}: rules[busy].line: does not go with zone; a rule watches a zone or a line"),
    "direction without a line": (f'{YARD}; direction = "in"', f"{LINE + 3}: rules[busy].direction: needs a line; add line"),
    "unknown direction": (f'{YARD}; line = "gate"; direction = "inwards"', 'rules[busy].direction: is "inwards"; must be one of "in", "out"'),
    "line for some time": (f'{YARD}; line = "gate"; for_seconds = 3', "rules[busy].for_seconds: does not go with line: a single object crosses it at one moment"),
    "line by several": (f'{YARD}; line = "gate"; at_least = 3', "rules[busy].at_least: does not go with line"),
    "line by none": (f'{YARD}; line = "gate"; none_for_seconds = 3', "rules[busy].none_for_seconds: does not go with line"),
    "some and none": (f"{YARD}; at_least = 3; none_for_seconds = 3", "rules[busy].none_for_seconds: does not go with at_least; use two rules, one for absence and one for presence"),
    "none and for": (f"{YARD}; for_seconds = 3; none_for_seconds = 3", "rules[busy].none_for_seconds: does not go with for_seconds"),
    "at least none": (f"{YARD}; at_least = 0", "rules[busy].at_least: is 0; must be a whole number from 1 to 100"),
    "for no time": (f"{YARD}; for_seconds = 0", "rules[busy].for_seconds: is 0; must be a number above 0 and at most 604,800 seconds"),
    "for days": (f"{YARD}; for_seconds = '3 days'", 'rules[busy].for_seconds: is "3 days"; must be a number, or one with a unit'),
    "negative cooldown": (f"{YARD}; cooldown_seconds = -1", "rules[busy].cooldown_seconds: is -1; must be a number from 0 to 604,800 seconds"),
    "between one time": (f'{YARD}; between = ["22:00"]', f"{LINE + 3}: rules[busy].between: has 1 times instead of two"),
    "between words": (f'{YARD}; between = "22:00-06:00"', 'rules[busy].between: is "22:00-06:00"; must be a list of two times of day'),
    "between wrong times": (f'{YARD}; between = ["22:00", "6:00"]', 'rules[busy].between: holds "6:00", which is not a time of day; write it as "06:00"'),
    "after the last hour": (f'{YARD}; between = ["22:00", "25:00"]', 'holds "25:00", which is not a time of day'),
    "between numbers": (f"{YARD}; between = [22, 6]", "holds 22, which is not a time of day"),
    "between seconds": (f"{YARD}; between = [22:00:30, 06:00:00]", "holds 22:00:30, which is not a time of day"),
    "pairs and times": (f'{YARD}; between = [["22:00", "06:00"], "07:00"]', "which is not a time of day"),
    "from the end of the day": (f'{YARD}; between = ["24:00", "06:00"]', 'begins at "24:00"; write "00:00"'),
    "empty span": (f'{YARD}; between = ["06:00", "06:00"]', "ends when it begins; for the whole day, leave it out"),
    "spans that overlap": (f'{YARD}; between = [["06:00", "09:00"], ["08:00", "10:00"]]', "hold times that overlap: 06:00 to 09:00 and 08:00 to 10:00; write them as one"),
    "spans that overlap over midnight": (f'{YARD}; between = [["05:00", "07:00"], ["22:00", "06:00"]]', "hold times that overlap: 05:00 to 07:00 and 22:00 to 06:00"),
    "the same span twice": (f'{YARD}; between = [["05:00", "07:00"], ["05:00", "07:00"]]', "hold times that overlap"),
    "unknown day": (f'{YARD}; days = ["monday"]', 'rules[busy].days: hold "monday", which is not a day; did you mean "mon"?'),
    "no day": (f"{YARD}; days = [1]", 'hold 1, which is not a day; must be some of "mon", "tue"'),
    "a day twice": (f'{YARD}; days = ["mon", "mon"]', "hold a day twice"),
    "days in one text": (f'{YARD}; days = "mon"', 'is "mon"; must be a list of days'),
    "half a clip": (f"{YARD}; clip_seconds = 10", "rules[busy].clip_seconds: is 10; must be a list of two durations: before the alert and after it"),
    "long clip": (f"{YARD}; clip_seconds = [5, '10 min']", 'rules[busy].clip_seconds: holds "10 min"; each must be a number from 0 to 300 seconds'),
    "clip of nothing": (f"{YARD}; clip_seconds = [0, 0]", "is a clip of 0 seconds"),
    "clip longer than the ring": (f"{YARD}; clip_seconds = [25, 10]", f"{LINE + 3}: rules[busy].clip_seconds: is a clip of 35 s, longer than ring_seconds = 30 in [clips]; raise that"),
    "clip for nowhere": (f"{YARD}; clip_seconds = [5, 10]", f"{LINE + 3}: rules[busy].clip_seconds: needs a directory for clips; add [clips] and below it a directory"),
    "picture without a directory": (f"{YARD}; picture = true", "rules[busy].picture: needs a directory for pictures; add [pictures] and below it a directory"),
    "picture of a word": (f"{YARD}; picture = 'yes'", 'rules[busy].picture: is "yes"; must be true or false'),
    "zone of a number": (f"{YARD}; zone = 7", "rules[busy].zone: is 7; must be a text in quotes"),
}  # fmt: skip


def load(folder: Path, text: str) -> Config:
    file = folder / "streamdet.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, {})


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [line.removeprefix(f"{folder / 'streamdet.toml'}:") for line in caught.value.problems]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("lobby", "streams: apply to lobby, where track_max_lost_seconds = 0 ends an object that one frame misses; raise that"),
        ("roof", "streams: apply to roof, where max_fps = 0.2 and track_max_lost_seconds = 2 end each object before the next frame"),
    ],
)  # fmt: skip
def test_a_rule_is_refused_on_a_stream_that_cannot_have_objects(tmp_path: Path, stream: str, expected: str) -> None:
    (line,) = problems(tmp_path, f'{STREAMS}{SLOW}[[rules]]\n{RULE}\nstreams = ["{stream}"]\nlabels = ["person"]\n')
    assert expected in line


def test_a_label_must_be_one_that_the_stream_publishes(tmp_path: Path) -> None:
    lines = problems(tmp_path, f'{STREAMS}{SLOW}[[rules]]\n{RULE}\nstreams = ["roof"]\nlabels = ["car"]\n')
    assert 'rules[busy].labels: hold "car", but roof publishes only person' in lines[1]


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD.keys())
def test_a_wrong_rule_is_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = problems(tmp_path, f"{STREAMS}[[rules]]\n{text.replace('; ', chr(10))}\n")
    assert expected in line


def test_a_rule_of_many_streams_names_the_first_that_does_not_fit_and_counts_the_others(tmp_path: Path) -> None:
    more = "".join(f'[[streams]]\nname = "hall-{number}"\nurl = "rtsp://192.0.2.8/x"\n' for number in range(3))
    (line,) = problems(tmp_path, f'{STREAMS}{more}[[rules]]\n{RULE}\nstreams = ["hall-*", "yard"]\nzone = "bay"\n')
    assert "stream hall-0 has no zone of this name; it has none; add one; 2 other streams have the same problem" in line
    assert line.endswith('to apply the rule to the others only, write streams = ["yard"]')


def test_the_largest_clip_must_fit_on_the_disk(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f'[clips]\ndirectory = "clips"\nmax_bytes = "32 MiB"\n{STREAMS}')
    assert line.startswith("3: clips.max_bytes: is less than max_ring_bytes = 67108864")


def test_a_clip_does_not_go_with_blur(tmp_path: Path) -> None:
    streams = STREAMS.replace('name = "yard"', 'name = "yard"\nblur = ["person"]')
    rule = '[[rules]]\nname = "busy"\nstreams = ["yard", "dock-1"]\nclip_seconds = [5, 10]\n'
    (line,) = problems(tmp_path, f'[clips]\ndirectory = "clips"\n{streams}{rule}')
    assert "rules[busy].clip_seconds: does not go with blur of stream yard" in line
    assert line.endswith('leave that stream out here; to apply the rule to the others only, write streams = ["dock-1"]')
    config = load(tmp_path, f'[clips]\ndirectory = "clips"\n{STREAMS}{rule}')
    base = config.streams[0].model_dump(exclude_unset=True)
    with pytest.raises(ConfigError) as caught:
        read_stream({"blur": ["person"]}, base, tmp_path, {}, config=config)
    assert 'blur: the rule "busy" applies to this stream: its clip_seconds does not go with blur' in str(caught.value)


def test_two_rules_need_two_names(tmp_path: Path) -> None:
    rule = f'[[rules]]\n{RULE}\nstreams = ["yard"]\n'
    (line,) = problems(tmp_path, STREAMS + rule + rule)
    assert (
        line
        == f"{LINE + 4}: rules[busy].name: the rule of line {LINE + 1} has this name already; every rule needs a name of its own"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rules = 1\n", "1: rules: is 1; must be written with two brackets, [[rules]]"),
        ("rules = [1]\n", "1: rules[#1]: is 1; must be a table; write [[rules]], and name and a condition below it"),
        ('[rules]\nname = "a"\n', "1: rules: must be written with two brackets, [[rules]], once for every rule"),
    ],
)
def test_rules_are_a_list_of_tables(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = problems(tmp_path, text + STREAMS)
    assert line.startswith(expected)


def test_there_is_a_bound_on_their_number(tmp_path: Path) -> None:
    rules = "".join(f'[[rules]]\nname = "{number}"\nstreams = ["yard"]\n' for number in range(257))
    (line,) = problems(tmp_path, STREAMS + rules)
    assert line.endswith("rules[256]: is one too many; at most 256 rules are allowed")


def test_a_whole_rule(tmp_path: Path) -> None:
    text = """[pictures]
directory = "pictures"
[clips]
directory = "clips"
[[rules]]
name = "Ladebucht nachts"
streams = ["yard", "dock-1"]
labels = ["person"]
zone = "bay"
for_seconds = "10 s"
between = ["22:00", "06:00"]
days = ["fri", "sat"]
cooldown_seconds = "1 min"
picture = true
clip_seconds = [5, "10 s"]
[[rules]]
name = "gate"
streams = ["ya?d"]
line = "gate"
direction = "in"
between = [[06:00:00, 08:00:00], ["17:00", "24:00"]]
"""
    config = load(tmp_path, STREAMS + text)
    night, gate = config.rules
    assert (night.for_seconds, night.cooldown_seconds, night.clip_seconds) == (10.0, 60.0, (5.0, 10.0))
    assert night.between == (("22:00", "06:00"),)
    assert gate.between == (("06:00", "08:00"), ("17:00", "24:00"))
    assert [rule.name for rule in rules_of("yard", config.rules)] == ["Ladebucht nachts", "gate"]
    assert [rule.name for rule in rules_of("dock-1", config.rules)] == ["Ladebucht nachts"]
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("Europe/Berln", 'did you mean "Europe/Berlin"?'),
        ("europe/berlin", 'did you mean "Europe/Berlin"?'),
        ("Mars", 'write one such as "Europe/Berlin"'),
        ("../../etc/passwd", "which is not a time zone that this machine knows"),
        ("/etc/localtime", "which is not a time zone that this machine knows"),
        ("a\\u0000b", "which is not a time zone that this machine knows"),
        ("", "is empty; must be a text, or leave the line out"),
    ],
)
def test_an_unknown_time_zone_is_refused(tmp_path: Path, zone: str, expected: str) -> None:
    (line,) = problems(tmp_path, f'[[streams]]\nname = "yard"\nurl = "0"\ntime_zone = "{zone}"\n')
    assert line.startswith("4: streams[yard].time_zone: ")
    assert expected in line


def test_a_time_zone_can_be_a_default_for_all_streams(tmp_path: Path) -> None:
    config = load(tmp_path, f'[stream_defaults]\ntime_zone = "Asia/Kolkata"\n{STREAMS}')
    assert {stream.time_zone for stream in config.streams} == {"Asia/Kolkata"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"zones": []}, 'streams[yard].zones: the rule "bay" applies to this stream: its zone is "bay", and stream yard has no zone'),
        ({"lines": []}, 'streams[yard].lines: the rule "gate" applies to this stream: its line is "gate"'),
        ({"track": False, "lines": []}, "streams[yard].track: the rule"),
        ({"zones": [{"name": "bay", "polygon": [[0, 0], [1, 0], [1, 1]], "labels": ["car"]}]}, 'streams[yard].zones: the rule "bay" applies to this stream: its labels hold "person"'),
    ],
)  # fmt: skip
def test_a_stream_of_run_time_must_fit_the_rules(tmp_path: Path, values: dict[str, object], expected: str) -> None:
    text = '[[rules]]\nname = "bay"\nstreams = ["yard"]\nzone = "bay"\nlabels = ["person"]\n[[rules]]\nname = "gate"\nstreams = ["yard"]\nline = "gate"\n'
    config = load(tmp_path, STREAMS + text)
    base = config.streams[0].model_dump(exclude_unset=True)
    assert read_stream({"max_fps": 3}, base, tmp_path, {}, config=config).max_fps == 3
    with pytest.raises(ConfigError) as caught:
        read_stream(values, base, tmp_path, {}, config=config)
    assert expected in str(caught.value)


TIMES = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda time: f"{time[0]:02}:{time[1]:02}")


@given(spans=st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=4))
def test_spans_are_refused_exactly_where_a_minute_belongs_to_two(spans: list[tuple[str, str]]) -> None:
    minutes: list[int] = []
    for begin, end in spans:
        first, last = minutes_of(begin), minutes_of(end)
        minutes += [minute % 1440 for minute in range(first, last if last > first else last + 1440)]
    is_wrong = len(set(minutes)) < len(minutes) or any(begin == end for begin, end in spans)
    try:
        rule = RuleConfig.model_validate({"name": "a", "between": spans})
    except ValueError:
        assert is_wrong
    else:
        assert not is_wrong
        assert rule.between == tuple(spans)
