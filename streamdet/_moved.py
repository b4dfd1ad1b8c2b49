"""Former names of modules that programs may import; the next version removes them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PACKAGE = "streamdet."
MOVED = {
    "daemon": "service.daemon",
    "detector.models": "detector.weights.architectures",
    "gaps": "client.gaps",
    "keys": "security.curve",
    "log": "monitoring.log",
    "metrics": "monitoring.metrics",
    "publisher": "delivery.publisher",
    "redact": "security.redact",
    "sources": "capture.sources",
    "tracker": "analytics.tracker",
    "zones": "analytics.zones",
}
"""The former name of a module and the new one, both without the package's."""


class MovedModules:
    """Imports a module by its former name, with a DeprecationWarning that says the new one; for `sys.meta_path`."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the library's own signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """What loads the module; None for any but a former name."""
        if not fullname.startswith(_PACKAGE) or fullname.removeprefix(_PACKAGE) not in MOVED:
            return None
        from importlib.machinery import ModuleSpec  # noqa: PLC0415 - `import streamdet` waits for nothing

        loader: Any = self
        return ModuleSpec(fullname, loader)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None, for an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module with the content of the new one."""
        import importlib  # noqa: PLC0415 - as above
        import warnings  # noqa: PLC0415

        new = _PACKAGE + MOVED[module.__name__.removeprefix(_PACKAGE)]
        warnings.warn(f"{module.__name__} is {new} now; the old name goes", DeprecationWarning, stacklevel=2)
        found = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})
