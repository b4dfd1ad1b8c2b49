"""`streamdet version`: what a report of a fault should name."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import click

from streamdet import __version__

_LIBRARIES = ("torch", "torchvision", "openvino", "nncf", "av", "opencv-python-headless", "numpy", "pyzmq", "pydantic")
# Features of a CPU that decide how fast it detects, as Linux names them (x86-64, then Arm).
_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "sve", "i8mm", "bf16",
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  streamdet version
  streamdet version --json | jq -r .libraries.torch"""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def command(*, as_json: bool) -> None:
    """Show the versions of streamdet, its libraries and this machine."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"streamdet {facts['streamdet']}")
    for key in ("python", "system", "cpu", "engine"):
        if facts[key] is not None:
            click.echo(f"{key:<11}{facts[key]}")
    click.echo(f"{'features':<11}{' '.join(facts['cpu_features']) or 'none that matter'}; {facts['cores']} cores")
    missing = [name for name, version in facts["libraries"].items() if version is None]
    there = [f"{name} {version}" for name, version in facts["libraries"].items() if version is not None]
    click.echo(f"{'libraries':<11}{', '.join(there)}")
    if missing:
        click.echo(f"{'':<11}not installed: {', '.join(missing)}")


def _facts() -> dict[str, Any]:
    model, features = _cpu()
    return {
        "streamdet": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": model,
        "cpu_features": features,
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
        "engine": _engine(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def _engine() -> str | None:
    """What the last trial on this machine chose for the embedded weights; None where there was none."""
    from streamdet.config import DetectorConfig
    from streamdet.detector.choice import choose
    from streamdet.detector.state import Store
    from streamdet.detector.trial import key_of
    from streamdet.security.files import state_folder

    config = DetectorConfig()
    report = Store(state_folder()).read(key_of(config))
    return None if report is None else choose(config, report).candidate.name


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, list[str]]:
    """The model of the first CPU, and which of `_FEATURES` it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        text = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    model = facts.get("model name") or platform.processor() or platform.machine()
    return model, [feature for feature in _FEATURES if feature in flags]


def _gpus() -> list[str]:
    """The NVIDIA GPUs that the driver knows."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        except OSError:
            continue
        names.append(first.partition(":")[2].strip())
    return names
