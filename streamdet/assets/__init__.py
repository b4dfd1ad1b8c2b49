"""The sample clip and the embedded weights; NOTICE.md beside them states their origin and licences."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def sample_clip() -> Path:
    """A minute of people crossing a campus: H.264, 768x576, 10 frames a second, 600 frames."""
    return _FOLDER / "sample.mp4"


def embedded_weights() -> Path:
    """The weights that are used unless the configuration names others."""
    return _FOLDER / "embedded.safetensors"


def embedded_int8_weights() -> Path:
    """The same weights quantised for OpenVINO, as `streamdet export --int8` makes them."""
    return _FOLDER / "embedded-int8.safetensors"
