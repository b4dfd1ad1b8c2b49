# ruff: noqa: E501 - a table of bad input is read best with one case per line
"""What counts as a detection: what a stream says, and [detector] for the rest; and labels that fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamdet.config import Config, DetectorConfig, StreamConfig, load_config
from streamdet.config.load import check_labels, read_stream
from streamdet.config.stream import KEEPS_CONNECTION
from streamdet.config.values import takes_effect
from streamdet.errors import ConfigError
from streamdet.types import DetectionSettings

URL = 'url = "rtsp://192.0.2.5/x"'
YARD = f'[[streams]]\nname = "yard"\n{URL}\n'


def stream(**keys: Any) -> StreamConfig:
    return StreamConfig(name="yard", url="rtsp://192.0.2.5/x", **keys)


DETECTOR = DetectorConfig(
    score_threshold=0.6, score_thresholds={"person": 0.4, "car": 0.7}, labels=("person", "car"), max_detections=50
)


def test_a_stream_without_settings_has_those_of_the_detector() -> None:
    expected = DetectionSettings(("person", "car"), 0.6, (("car", 0.7), ("person", 0.4)), max_detections=50)
    assert DETECTOR.settings_for(stream()) == DETECTOR.settings_for() == expected


def test_a_threshold_of_a_stream_replaces_all_of_the_detector() -> None:
    settings = DETECTOR.settings_for(stream(score_threshold=0.3))
    assert (settings.score_threshold, settings.score_thresholds) == (0.3, ())
    settings = DETECTOR.settings_for(stream(score_threshold=0.3, score_thresholds={"car": 0.8}))
    assert (settings.score_threshold, settings.score_thresholds) == (0.3, (("car", 0.8),))


def test_a_threshold_for_a_label_leaves_the_others_alone() -> None:
    settings = DETECTOR.settings_for(stream(score_thresholds={"car": 0.8}))
    assert (settings.score_threshold, settings.score_thresholds) == (0.6, (("car", 0.8), ("person", 0.4)))


def test_labels_and_sizes_of_a_stream() -> None:
    settings = DETECTOR.settings_for(stream(labels=["car"], min_size=0.1, max_size=0.5))
    assert (settings.labels, settings.min_size, settings.max_size) == (("car",), 0.1, 0.5)


def test_what_takes_effect_on_reload() -> None:
    keys = {key for key in DetectorConfig.model_fields if takes_effect(DetectorConfig, key) == "on reload"}
    assert keys == {"score_threshold", "score_thresholds", "labels", "max_detections"}
    for key in ("labels", "score_threshold", "score_thresholds", "min_size", "max_size"):
        extra = StreamConfig.model_fields[key].json_schema_extra
        assert isinstance(extra, dict)
        assert extra[KEEPS_CONNECTION]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{YARD}labels = ["person", "cra"]', ':4: streams[yard].labels: hold "cra", which is not a published label; did you mean "car"?'),
        (f'[detector]\nlabels = ["person"]\n{YARD}labels = ["car"]', ':6: streams[yard].labels: hold "car", which is not a published label; published are person'),
        (f"{YARD}score_thresholds = {{ cra = 0.3 }}", ':4: streams[yard].score_thresholds.cra: "cra" is not a label of the weights; did you mean "car"?'),
        (f"{YARD}score_thresholds = {{ car = 3 }}", ":4: streams[yard].score_thresholds.car: is 3; must be a number from 0 to 1"),
        (f'[stream_defaults]\nlabels = ["cra"]\n{YARD}{YARD.replace("yard", "hall")}', ':2: stream_defaults.labels: hold "cra", which is not a published label; did you mean "car"?'),
        (f"{YARD}min_size = 0.5\nmax_size = 0.2", ":5: streams[yard].max_size: is 0.2; must be above min_size, 0.5"),
        (f"[stream_defaults]\nmin_size = 0.5\nmax_size = 0.2\n{YARD}", ":3: stream_defaults.max_size: is 0.2; must be above min_size, 0.5"),
        (f'[stream_defaults]\nblur = ["person"]\n{YARD}labels = ["car"]', ':6: streams[yard].labels: leave out "person", which `blur` names: what is not found cannot be blurred'),
        (f'{YARD}labels = ["car"]\nzones = [{{ name = "a", polygon = [[0, 0], [1, 0], [1, 1]], labels = ["person"] }}]', ':5: streams[yard].zones[#1].labels: hold "person", which is not a published label; published are car'),
        (f'{YARD}labels = ["car"]\n[[rules]]\nname = "r"\nlabels = ["person"]', ':7: rules[r].labels: hold "person", but yard publishes only car'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_reported_once_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(f"{text}\n")
    with pytest.raises(ConfigError) as error:
        load_config(file, {})
    assert error.value.problems == [f"{file}{expected}"]


def test_defaults_for_all_streams_fit_and_a_stream_overrides_them(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(f'[stream_defaults]\nlabels = ["car"]\nmin_size = 0.2\n{YARD}labels = []\nmax_size = 0.5\n')
    (yard,) = load_config(file, {}).streams
    assert (yard.labels, yard.min_size, yard.max_size) == ((), 0.2, 0.5)


def test_labels_must_be_those_of_the_weights_that_run(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(f'[detector]\nlabels = ["car"]\n{YARD}')
    assert load_config(file, {}, running_labels=["person", "car"]).detector.labels == ("car",)
    with pytest.raises(ConfigError) as error:
        load_config(file, {}, running_labels=["person"])
    reason = '"car" is not a label of the weights; they know person; other weights take effect only at a restart'
    assert error.value.problems == [f"{file}:2: detector.labels[#1]: {reason}"]


def test_labels_that_only_the_detector_knows() -> None:
    config = Config(detector=DetectorConfig(score_thresholds={"cta": 0.2}), streams=(stream(labels=["dog", "ca"]),))
    check_labels(config, ["dog", "ca", "cta"])
    with pytest.raises(ConfigError) as error:
        check_labels(config, ["dog", "cat"])
    assert error.value.problems == [
        'detector.score_thresholds.cta: "cta" is not a label of the weights; did you mean "cat"?',
        'streams[yard].labels: hold "ca", which is not a published label; did you mean "cat"?',
    ]


def test_a_stream_of_run_time_fits_the_labels_and_rules_of_the_file(tmp_path: Path) -> None:
    config = Config.model_validate({"rules": [{"name": "r", "labels": ["person"]}]})
    base = {"name": "yard", "url": "rtsp://192.0.2.5/x"}
    assert read_stream({"labels": ["person"]}, base, tmp_path, {}, config=config, weights_labels=["person", "car"])
    with pytest.raises(ConfigError) as error:
        read_stream({"labels": ["car"]}, base, tmp_path, {}, config=config, weights_labels=["person", "car"])
    reason = 'the rule "r" applies to this stream: its labels hold "person", but yard publishes only car'
    assert error.value.problems == [f"streams[yard].labels: {reason}"]
