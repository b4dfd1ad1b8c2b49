"""How to install an optional part, in this environment: a command for messages about packages that are missing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

_WANTED = re.compile(r"""(?P<package>[\w.-]+).*;.*\bextra\s*==\s*["'](?P<extra>[\w-]+)["']""")


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this environment.

    In an environment that `make setup` made from a checkout, it keeps the extras that are installed. In one that was
    made from a wheel, it names that wheel, since no package index may have streamdet.

    Args:
        extra: its name in pyproject.toml, such as "mqtt".
    """
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415 - 20 ms, for errors only

    def is_here(name: str) -> bool:
        try:
            distribution(name)
        except PackageNotFoundError:
            return False
        return True

    if not is_here("streamdet"):  # run from a folder, without an installation
        return f"pip install 'streamdet[{extra}]'"
    if (Path(sys.prefix) / "streamdet-version.json").is_file():  # a copy, made by install-service
        return f"add the extra {extra} to the environment that install-service ran in, and run it there again"
    package = distribution("streamdet")
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if "dir_info" not in origin:
        where = f" @ {origin['url']}" if str(origin.get("url", "")).endswith(".whl") else ""
        return f"pip install 'streamdet[{extra}]{where}'"
    complete: dict[str, bool] = {extra: True}
    for wanted in filter(None, map(_WANTED.fullmatch, package.requires or ())):
        name = wanted["extra"]
        complete[name] = complete.get(name, True) and (name == extra or is_here(wanted["package"]))
    return f'make setup EXTRAS="{" ".join(sorted(name for name in complete if complete[name]))}"'
