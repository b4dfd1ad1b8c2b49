"""The manifests, checked against the schemas of the API as an API server would check them, and stricter.

Kinds of the Prometheus Operator are none of the API: `tests/integration/project/test_deployments.py` compares them with
what they are about.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
FOREIGN = ("kustomize.config.k8s.io/", "monitoring.coreos.com/")
# The files are right from this version on, up to the newest that the package knows.
OLDEST = "1.29"

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def objects() -> Iterator[tuple[str, Object]]:
    """Each object of the API, and the file that it is in; patches are applied to what they name."""
    for kustomization in sorted(KUBERNETES.glob("*/kustomization.yml")):
        (found,) = read(kustomization)
        patches = {kustomization.parent / each["path"] for each in found.get("patches", [])}
        for path in sorted(kustomization.parent.glob("*.yml")):
            for each in read(path):
                if not each["apiVersion"].startswith(FOREIGN):
                    yield str(path.relative_to(KUBERNETES)), patched(each) if path in patches else each


def patched(patch: Object) -> Object:
    for path in (KUBERNETES / "base").glob("*.yml"):
        for each in read(path):
            if (each["kind"], each.get("metadata", {}).get("name")) == (patch["kind"], patch["metadata"]["name"]):
                whole: Object = merged(each, patch)
                return whole
    pytest.fail(f"nothing in base is called {patch['metadata']['name']}")


def merged(before: Any, patch: Any) -> Any:
    """As kustomize merges: objects by their keys, lists of objects by the names of these."""
    if isinstance(before, dict) and isinstance(patch, dict):
        return {**before, **{key: merged(before.get(key), value) for key, value in patch.items()}}
    if isinstance(before, list) and all(isinstance(each, dict) and "name" in each for each in [*before, *patch]):
        named = {each["name"]: each for each in before}
        return list((named | {each["name"]: merged(named.get(each["name"]), each) for each in patch}).values())
    return patch


@pytest.mark.package("kubernetes-validate")
@pytest.mark.parametrize(
    ("name", "found"), [pytest.param(*each, id=f"{each[0]}-{each[1]['kind']}") for each in objects()]
)
def test_an_object_is_what_the_schemas_of_the_api_allow(name: str, found: Object) -> None:
    utils = importlib.import_module("kubernetes_validate.utils")
    for version in (OLDEST, utils.latest_version()):
        try:
            utils.validate(found, version, strict=True)
        except utils.ValidationError as error:
            pytest.fail(f"{name}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")


@pytest.mark.package("kubernetes-validate")
def test_a_key_that_the_api_does_not_know_is_found() -> None:
    utils = importlib.import_module("kubernetes_validate.utils")
    (service,) = read(KUBERNETES / "base" / "service.yml")
    service["spec"]["selectors"] = service["spec"].pop("selector")
    with pytest.raises(utils.ValidationError, match="selectors"):
        utils.validate(service, OLDEST, strict=True)
