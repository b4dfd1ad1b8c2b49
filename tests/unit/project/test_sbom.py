"""The bill of materials: its form, and that it lists what metadata of wheels keep quiet about."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from support.paths import ROOT

LICENCES = (ROOT / "docs/licences.md").read_text()
# What CycloneDX 1.6 asks of the parts that are used here.
COMPONENT = {
    "type": "object",
    "required": ["type", "name", "bom-ref"],
    "properties": {
        "type": {"enum": ["application", "library"]},
        "name": {"type": "string", "minLength": 1},
        "version": {"type": "string"},
        "bom-ref": {"type": "string", "minLength": 1},
        "purl": {"type": "string", "pattern": "^pkg:"},
        "licenses": {
            "type": "array",
            "items": {
                "oneOf": [
                    {"required": ["expression"], "properties": {"expression": {"type": "string"}}},
                    {
                        "required": ["license"],
                        "properties": {"license": {"oneOf": [{"required": ["id"]}, {"required": ["name"]}]}},
                    },
                ]
            },
        },
        "hashes": {"items": {"required": ["alg", "content"], "properties": {"content": {"pattern": "^[a-f0-9]{64}$"}}}},
        "evidence": {"required": ["occurrences"], "additionalProperties": False, "properties": {"occurrences": {}}},
        "components": {"type": "array", "items": {"$ref": "#/$defs/component"}},
    },
    "additionalProperties": False,
}  # fmt: skip
BILL = {
    "$defs": {"component": COMPONENT},
    "type": "object",
    "required": ["bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"],
    "properties": {
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.6"},
        "serialNumber": {"pattern": "^urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
        "version": {"const": 1},
        "metadata": {"properties": {"component": {"$ref": "#/$defs/component"}}, "additionalProperties": False},
        "components": {"type": "array", "items": {"$ref": "#/$defs/component"}},
        "dependencies": {
            "items": {
                "required": ["ref", "dependsOn"],
                "properties": {"ref": {}, "dependsOn": {"uniqueItems": True}},
                "additionalProperties": False,
            }
        },
    },
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bill(sbom: ModuleType) -> dict[str, Any]:
    """Of the packages that bring the libraries that matter; the libraries of CUDA take a minute to read."""
    names = ("av", "opencv-python-headless", "pyzmq", "numpy", "orjson", "pydantic")
    found: dict[str, Any] = sbom.bill_of([distribution(name) for name in names], distribution("streamdet"))
    return found


def references(components: list[dict[str, Any]]) -> list[str]:
    return [ref for one in components for ref in (one["bom-ref"], *references(one.get("components", [])))]


def test_it_has_the_form_of_cyclonedx(bill: dict[str, Any]) -> None:
    jsonschema.validate(bill, BILL, cls=jsonschema.Draft202012Validator)
    known = [bill["metadata"]["component"]["bom-ref"], *references(bill["components"])]
    assert len(set(known)) == len(known)
    needed = {ref for one in bill["dependencies"] for ref in (one["ref"], *one["dependsOn"])}
    assert needed <= set(known)
    assert "pkg:pypi/av@" in bill["dependencies"][0]["dependsOn"][0]


def test_it_lists_what_wheels_bring_of_others(bill: dict[str, Any]) -> None:
    parts = {
        (package["name"], part["name"]): [one.get("expression") for one in part.get("licenses", [])]
        for package in bill["components"]
        for part in package.get("components", [])
    }
    assert parts["av", "libx264"] == parts["av", "libx265"] == ["GPL-2.0-or-later"]
    assert parts["av", "libavcodec"] == ["LGPL-3.0-or-later"]
    assert parts["opencv-python-headless", "libavcodec"] == ["LGPL-2.1-or-later"]
    assert parts["opencv-python-headless", "libssl"] == ["OpenSSL"]
    # From the wheel's own bill, with the number of the build.
    assert ("opencv-python-headless", "openssl-libs") in parts
    assert parts["pyzmq", "libzmq"] == ["MPL-2.0"]
    assert len([part for package, part in parts if package == "orjson"]) > 3


def test_it_covers_what_the_service_runs_with_and_no_test_tools(sbom: ModuleType) -> None:
    names = sbom.names_of_the_lock()
    assert {"av", "torch", "openvino", "opencv-python-headless"} <= set(names)
    assert not {"pytest", "mypy", "hypothesis"} & set(names)
    assert [one.name for one in sbom.installed(["pyzmq", "no-such-package", "av"])] == ["av", "pyzmq"]


def test_it_does_not_take_our_own_libraries_for_those_of_nvidia(sbom: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "torch_without_cuda.py").read_text()
    (marker,) = re.findall(r'_TEXT = b"(.*)\\0"', text)
    stand_in, real = tmp_path / "libcudart.so.13", tmp_path / "libnvjpeg.so.13"
    stand_in.write_bytes(b"\x7fELF" + marker.encode())
    real.write_bytes(b"\x7fELF" + bytes(9))
    assert sbom.is_ours(stand_in)
    assert not sbom.is_ours(real)


def test_what_the_page_about_licences_says_is_so(bill: dict[str, Any]) -> None:
    """Versions change with the lock; the page is read again then."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+) ", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    for name in ("av", "opencv-python-headless", "pyzmq", "numpy", "torch", "openvino", "triton"):
        assert f"{name} {locked[name]}" in LICENCES
    files = set(re.findall(r"`(lib[a-z0-9]+)`", LICENCES))
    for package in ("av", "opencv-python-headless", "pyzmq", "numpy", "torch", "openvino"):
        files -= {file for file in files for entry in distribution(package).files or () if entry.name.startswith(file)}
    assert not files


def test_the_wheel_brings_notice_and_licence() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'license-files = ["LICENSE", "NOTICE"]' in text
    assert "streamdet/assets/NOTICE.md" in (ROOT / "NOTICE").read_text()
