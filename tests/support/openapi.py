"""Puts the keys of a stream, as the configuration has them, into the description of the control API.

.venv/bin/python tests/support/openapi.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamdet.config.schema import config_schema

FILE = Path(__file__).parents[2] / "streamdet" / "service" / "control" / "openapi.json"
_SHAPES = {"ZoneConfig": "Zone", "LineConfig": "Line", "MaskConfig": "Mask"}
Json = dict[str, Any]


def with_settings_of_streams(document: Json) -> Json:
    """The document, with the settings of a stream as they may stand in the file."""
    text = json.dumps(config_schema()["$defs"])
    for table, schema in _SHAPES.items():
        text = text.replace(f"#/$defs/{table}", f"#/components/schemas/{schema}")
    tables: Json = json.loads(text)
    keys: Json = tables["StreamConfig"]["properties"]
    document = json.loads(json.dumps(document))
    schemas = document["components"]["schemas"]
    schemas["NewStream"]["properties"]["name"] = keys.pop("name")
    schemas["StreamSettings"]["properties"] = keys
    schemas["StreamPatch"]["propertyNames"] = {"enum": ["name", *keys]}
    schemas |= {schema: tables[table] for table, schema in _SHAPES.items()}
    return document


if __name__ == "__main__":
    described = with_settings_of_streams(json.loads(FILE.read_text("utf-8")))
    FILE.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", "utf-8")
