"""Writes the software bill of materials (CycloneDX 1.6, JSON) of the environment that it runs in: `make sbom`.

Metadata of Python packages name the licence of their own code only. A wheel also brings libraries of others, and those
of PyAV, OpenCV and torch matter most to who redistributes an image; so every shared library and program in a wheel is
listed as a part of its package, and so is what the wheel's own bill (PEP 770) says. docs/licences.md explains it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent
Component = dict[str, Any]

# Libraries that lie in wheels as files, by the beginning of their names, under the terms that their projects publish. A
# file that no line fits has the licence of its package, as libtorch.so and libopenvino.so do.
FILES = {
    "libx264": "GPL-2.0-or-later", "libx265": "GPL-2.0-or-later",
    "libgmp": "LGPL-3.0-or-later OR GPL-2.0-or-later", "libgnutls": "LGPL-2.1-or-later",
    "libhogweed": "LGPL-3.0-or-later OR GPL-2.0-or-later", "libnettle": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libunistring": "LGPL-3.0-or-later OR GPL-2.0-or-later", "libmp3lame": "LGPL-2.0-or-later",
    "libasound": "LGPL-2.1-or-later", "libopencore": "Apache-2.0", "libdav1d": "BSD-2-Clause",
    "libSvtAv1": "BSD-3-Clause-Clear", "libaom": "BSD-2-Clause", "libavif": "BSD-2-Clause", "libvpx": "BSD-3-Clause",
    "libvpl": "MIT", "libopus": "BSD-3-Clause", "libwebp": "BSD-3-Clause", "libsharpyuv": "BSD-3-Clause",
    "libdrm": "MIT", "libxcb": "MIT", "libXau": "MIT", "libssl": "OpenSSL", "libcrypto": "OpenSSL",
    "libpng": "libpng-2.0", "libjpeg": "IJG AND BSD-3-Clause", "libz.": "Zlib", "liblzma": "0BSD",
    "libzstd": "BSD-3-Clause",
    "libbrotli": "MIT", "libfreetype": "FTL OR GPL-2.0-only", "libharfbuzz": "MIT-Modern-Variant", "liblcms2": "MIT",
    "libopenjp2": "BSD-2-Clause", "libtiff": "libtiff", "libzmq": "MPL-2.0", "libsodium": "ISC",
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1", "libquadmath": "LGPL-2.1-or-later",
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1", "libscipy_openblas": "BSD-3-Clause",
    "libopenblas": "BSD-3-Clause",
    "libtbb": "Apache-2.0", "libhwloc": "BSD-3-Clause", "libcudart": "LicenseRef-NVIDIA-Proprietary",
    "libnvjpeg": "LicenseRef-NVIDIA-Proprietary", "ptxas": "LicenseRef-NVIDIA-Proprietary",
    "cuobjdump": "LicenseRef-NVIDIA-Proprietary", "nvdisasm": "LicenseRef-NVIDIA-Proprietary",
}  # fmt: skip
# FFmpeg says of itself what it may be distributed under; the two builds here differ.
FFMPEG = re.compile(r"lib(avcodec|avdevice|avfilter|avformat|avutil|swresample|swscale)-")
FFMPEG_LICENCES = {"av": "LGPL-3.0-or-later", "opencv-python-headless": "LGPL-2.1-or-later"}
# Linked into a library of its package, where no file shows it.
INSIDE = {
    "torch": (("oneDNN", "Apache-2.0"), ("Intel oneAPI MKL", "LicenseRef-Intel-Simplified-Software-License")),
    "openvino": (("oneDNN", "Apache-2.0"),),
}  # fmt: skip
# Where metadata say nothing that a program could read; looked up in the packages' own texts.
UNSAID = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary", "faster-coco-eval": "Apache-2.0", "matplotlib": "PSF-2.0",
}  # fmt: skip
_SHARED = re.compile(r"(?P<name>lib[\w+-]+?)(-[0-9a-f]{8})?(\.[0-9a-f]{8})?\.so(\.(?P<version>[0-9][0-9a-z.]*))?")
_PROGRAMS = re.compile(r"ptxas(-blackwell)?|cuobjdump|nvdisasm")


def names_of_the_lock() -> list[str]:
    """What may be installed to run; test tools may be installed beside it, and do not belong here."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").replace("\\\n", " ").splitlines()
    wanted = [Requirement(line.split(" --hash")[0]) for line in lines if line.strip()]
    return [canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate()]


def installed(names: Iterable[str]) -> Iterator[Distribution]:
    """Those of the packages that are here: extras, and NVIDIA's libraries, are the operator's choice."""
    for name in sorted(names):
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        # Not what PYTHONPATH adds.
        if Path(str(package.locate_file(""))).resolve().is_relative_to(Path(sys.prefix).resolve()):
            yield package


def licence_of(package: Distribution) -> str:
    """What a package says of its own code: an SPDX expression, or its own words."""
    meta = package.metadata.json
    said = meta.get("license_expression") or UNSAID.get(canonicalize_name(package.name))
    if said:
        return str(said)
    words = str(meta.get("license", "")).strip()
    if words and len(words.splitlines()) == 1:
        return words
    classifiers = [c.rpartition(" :: ")[2] for c in meta.get("classifier", ()) if c.startswith("License")]
    return ", ".join(classifiers) or "unknown"


def licences(text: str) -> list[dict[str, Any]]:
    """A licence as CycloneDX writes it."""
    try:
        return [{"expression": canonicalize_license_expression(text)}]
    except InvalidLicenseExpression:
        return [{"license": {"name": text}}]


def is_ours(path: Path) -> bool:
    """Whether torch_without_cuda.py wrote the file in place of one of NVIDIA's."""
    return path.stat().st_size < 1 << 16 and b"(make setup CPU=0 installs them)" in path.read_bytes()


def parts_of(package: Distribution) -> Iterator[Component]:
    """What a wheel brings of others: files, what is linked into them, what its own bill says."""
    name = canonicalize_name(package.name)
    for entry in package.files or ():
        path = Path(str(package.locate_file(entry)))
        shared, own = _SHARED.fullmatch(entry.name), licence_of(package)
        if path.is_file() and (shared or _PROGRAMS.fullmatch(entry.name)) and not is_ours(path):
            known = (licence for start, licence in FILES.items() if entry.name.startswith(start))
            licence = FFMPEG_LICENCES.get(name, own) if FFMPEG.match(entry.name) else next(known, own)
            yield {
                "type": "library" if shared else "application",
                "bom-ref": f"{name}/{entry}",
                "name": shared["name"] if shared else entry.name,
                **({"version": shared["version"]} if shared and shared["version"] else {}),
                "licenses": licences(licence),
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
                "evidence": {"occurrences": [{"location": str(entry)}]},
            }
        if ".dist-info/sboms/" in str(entry) and entry.suffix == ".json":
            bill = json.loads(path.read_text("utf-8"))
            for number, part in enumerate(bill.get("components", [])):
                if canonicalize_name(part["name"]) != name:
                    keys = ("type", "name", "version", "purl", "licenses")
                    yield {key: part[key] for key in keys if key in part} | {"bom-ref": f"{name}/{entry.name}/{number}"}
    for inside, licence in INSIDE.get(name, ()):
        yield {"type": "library", "bom-ref": f"{name}/{inside}", "name": inside, "licenses": licences(licence)}


def component_of(package: Distribution) -> Component:
    """A package with everything in it."""
    name, parts = canonicalize_name(package.name), list(parts_of(package))
    purl = f"pkg:pypi/{name}@{package.version}"
    component: Component = {"type": "library", "bom-ref": purl, "name": name, "version": package.version, "purl": purl}
    component["licenses"] = licences(licence_of(package))
    return component | ({"components": parts} if parts else {})


def bill_of(packages: Iterable[Distribution], itself: Distribution) -> dict[str, Any]:
    """The whole bill; the same environment always gives the same."""
    components = [component_of(package) for package in packages]
    about = {key: value for key, value in component_of(itself).items() if key != "components"} | {"type": "application"}
    known = {component["name"]: component["bom-ref"] for component in components}
    needs = []
    for package, ref in [(itself, about["bom-ref"])] + [(distribution(name), ref) for name, ref in known.items()]:
        wanted: set[str] = {canonicalize_name(Requirement(text).name) for text in package.requires or ()}
        needs.append({"ref": ref, "dependsOn": sorted(known[name] for name in wanted & known.keys())})
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1,
        "metadata": {"component": about}, "components": components, "dependencies": needs,
    }  # fmt: skip


def main(target: Path) -> None:
    """Writes the bill into a file, and prints what is in it."""
    bill = bill_of(installed(names_of_the_lock()), distribution("streamdet"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill, indent=1) + "\n", "utf-8")
    parts = sum(len(component.get("components", ())) for component in bill["components"])
    print(f"{target}: {len(bill['components'])} packages, {parts} libraries and programs in them")  # noqa: T201 - its output


if __name__ == "__main__":
    main(Path(sys.argv[1]))
