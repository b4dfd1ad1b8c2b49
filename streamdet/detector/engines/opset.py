"""OpenVINO's operations, of which graphs are made; imported when they are first used, because OpenVINO is an extra."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


@cache
def operations() -> ModuleType:
    """The functions that make operations."""
    return importlib.import_module("openvino.opset13")


def make_graph(
    results: Sequence[openvino.Node], parameters: Sequence[openvino.Node], like: openvino.Model
) -> openvino.Model:
    """A graph from its outputs and inputs, with the name of another."""
    made: openvino.Model = importlib.import_module("openvino").Model(
        list(results), list(parameters), like.get_friendly_name()
    )
    return made
