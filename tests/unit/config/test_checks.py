# ruff: noqa: E501 - a table of bad input is read best with one case per line
"""What `streamdet check` finds out about the detector without loading it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from streamdet.assets import embedded_int8_weights, embedded_weights
from streamdet.config import load_config
from streamdet.config.checks import labels_of
from streamdet.errors import ConfigError

STREAM = '[[streams]]\nname = "yard"\nurl = "rtsp://192.0.2.5/x"\n'
LABELS = ["person", "bicycle", "car", "motorcycle", "bus", "truck"]


def safetensors(metadata: dict[str, str] | None, data: bytes = b"\0" * 8) -> bytes:
    """A file with one tensor of two numbers."""
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header if metadata is None else {"__metadata__": metadata, **header}).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = safetensors({"labels": json.dumps(["__background__", "cat", "N/A", "dog"])})


def problem(tmp_path: Path, detector: str, weights: bytes = GOOD, more: str = "") -> str:
    (tmp_path / "w.safetensors").write_bytes(weights)
    (tmp_path / "w.pth").write_bytes(b"PK")
    file = tmp_path / "streamdet.toml"
    file.write_text(f"[detector]\n{detector}\n{STREAM}{more}", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    return "\n".join(line.removeprefix(f"{file}:") for line in caught.value.problems)


def test_labels_stand_in_the_header_of_a_file() -> None:
    assert labels_of(embedded_weights()) == labels_of(embedded_int8_weights()) == LABELS


@pytest.mark.parametrize(
    ("detector", "expected"),
    [
        ('labels = ["persn"]', '2: detector.labels[#1]: "persn" is not a label of the weights; did you mean "person"?'),
        ('labels = ["car", "zebra"]', f'2: detector.labels[#2]: "zebra" is not a label of the weights; they know {", ".join(LABELS)}'),
        ("score_thresholds = { cra = 0.3 }", '2: detector.score_thresholds.cra: "cra" is not a label of the weights; did you mean "car"?'),
        ('weights = "w.safetensors"\nlabels = ["person"]', '3: detector.labels[#1]: "person" is not a label of the weights; they know cat, dog'),
        ('weights = "w.pth"', "1: detector.model: is missing; a .pth file does not say what it is of"),
        ('engine = "torch"\nprecision = "int8"', '3: detector.precision: is "int8"; with engine = "torch" it must be one of "auto", "fp32", "bf16"'),
        ('engine = "reference"\nprecision = "bf16"', '3: detector.precision: is "bf16"; with engine = "reference" it must be one of "auto", "fp32"'),
        ('device = "cuda:all"', '2: detector.device: is "cuda:all", which needs engine = "graph"'),
    ],
)  # fmt: skip
def test_a_detector_that_cannot_be_loaded_is_reported_before_it_is(
    tmp_path: Path, detector: str, expected: str
) -> None:
    (line,) = problem(tmp_path, detector).splitlines()
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (b"hello", "is not a whole safetensors file"),
        (b"", "is not a whole safetensors file"),
        (GOOD[:-1], "is not a whole safetensors file"),
        (GOOD[:20], "is not a whole safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "is not a whole safetensors file"),
        (safetensors(None), "has no description of its model"),
        (safetensors({"labels": "7"}), "has no description of its model"),
    ],
)
def test_damaged_weights_are_reported_before_they_are_loaded(tmp_path: Path, weights: bytes, expected: str) -> None:
    (line,) = problem(tmp_path, 'weights = "w.safetensors"', weights).splitlines()
    assert line.startswith("2: detector.weights: ")
    assert expected in line


def test_mistakes_elsewhere_do_not_hide_it(tmp_path: Path) -> None:
    lines = problem(tmp_path, 'labels = ["persn"]', more="colour = 3\n").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["detector.labels[#1]", "streams[yard].colour"]


def test_good_ones_are_let_through(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(GOOD)
    file = tmp_path / "streamdet.toml"
    file.write_text(
        f'[detector]\nweights = "w.safetensors"\nlabels = ["dog"]\nscore_thresholds = {{ cat = 0.3 }}\n{STREAM}'
    )
    assert load_config(file, {}).detector.labels == ("dog",)


def test_weights_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(GOOD)
    path.chmod(0)
    before = os.geteuid()
    folders = [tmp_path, *list(tmp_path.parents)[:-2]]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o755)
    try:
        if before == 0:
            os.seteuid(65534)
        with pytest.raises(ValueError, match="cannot be read: Permission denied; let this user read it"):
            labels_of(path)
    finally:
        os.seteuid(before)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[pictures]\ndirectory = "kept"\n[spool]\ndirectory = "kept"', "2: pictures.directory: is that of [spool] as well"),
        ('[spool]\ndirectory = "./a/../kept"\n[pictures]\ndirectory = "kept"', "4: pictures.directory: is that of [spool]"),
        ('[pictures]\nsize = "corp"', '2: pictures.size: is "corp"; must be one of "crop", "frame"'),
        ("[pictures]\nmargin = 5", "2: pictures.margin: is 5; must be a number from 0 to 4"),
        ("[pictures]\nmax_byte = 5", 'did you mean "max_bytes"?'),
        ("[pictures]\nquality = 0", "2: pictures.quality: is 0; must be a whole number from 1 to 100"),
        ('[stream_defaults]\nblur = ["persn"]', '"persn", which is not a published label; did you mean "person"?'),
        ('[stream_defaults]\nblur = "person"', "2: stream_defaults.blur: "),
    ],
)  # fmt: skip
def test_wrong_pictures_are_refused_with_the_line_and_what_was_meant(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(f"{text}\n{STREAM}", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert len(caught.value.problems) == 1
    assert expected in caught.value.problems[0]


def test_the_directory_of_pictures_begins_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(f'[pictures]\ndirectory = "kept"\nmax_bytes = "2 GiB"\n{STREAM}', encoding="utf-8")
    pictures = load_config(file, {}).pictures
    assert pictures.directory == str(tmp_path / "kept")
    assert pictures.max_bytes == 2 << 30
