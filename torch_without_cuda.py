"""Lets torch run without NVIDIA's libraries, 4 GB on disk, where no NVIDIA GPU is: `make setup` runs it.

The torch that package indexes hold for x86-64 Linux is built for CUDA. It names NVIDIA's libraries as needed, so it
cannot be loaded without them; but where no GPU is, it calls none of their functions except "how many devices are
there?". So `make setup CPU=1` leaves NVIDIA's packages and triton out, and this program writes small libraries with
the names, versions and symbols that torch and torchvision look up. Each function in them returns 100, which is
cudaErrorNoDevice, or a text that says the same. Of torch's own files one is changed: the programs for GPUs within
libtorch_cuda.so, which only a GPU reads, become a hole in the file, 0.3 GB.

What is needed is read from torch's own files, and the result is tried before this program ends. Where torch has no
CUDA, as on aarch64, nothing is written. To have CUDA again, torch and torchvision have to be installed again.

    python torch_without_cuda.py    # for the environment of this Python

References: the chapters of the System V gABI on object files and dynamic linking, with its AMD64 supplement; symbol
versions: the Linux Standard Base, Core, chapter "Symbol Versioning".
"""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The build that this was tried with; the lock names the same one.
TORCH = "2.15.0"

# torchvision has two of them in its wheel, with a hash in their names.
_NVIDIA = re.compile(r"lib(cu|nccl|nv)\w*(\.[0-9a-f]{8})?\.so\.\d+")
# torch's code for GPUs, and the section of it that holds programs for them.
_CUDA_CODE = "libtorch_cuda.so"
_GPU_PROGRAMS = b".nv_fatbin"
# The driver brings it. Only the library that compiles code for a GPU needs it, and is opened when there is one.
_DRIVER = "libcuda.so.1"
# What returns a text; everything else returns a number. From the headers of CUDA 13, cuDNN 9 and NCCL 2.
_TEXTS = frozenset({
    "cudaGetErrorName", "cudaGetErrorString", "cudnnGetErrorString", "cusparseGetErrorString", "ncclGetErrorString",
    "ncclGetLastError", "nvrtcGetErrorString",
})  # fmt: skip
_NO_DEVICE = 100  # cudaErrorNoDevice
_TEXT = b"NVIDIA's libraries are not installed (make setup CPU=0 installs them)\0"

# ---- ELF ----

_SHT_DYNAMIC, _SHT_DYNSYM, _SHT_VERNEED, _SHT_VERSYM = 6, 11, 0x6FFFFFFE, 0x6FFFFFFF
_DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 1, 4, 5, 6, 10, 11, 14
_DT_VERSYM, _DT_VERDEF, _DT_VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_X86_64 = 62
_PAGE = 4096
# mov eax, 100; ret
_RETURN_NUMBER = b"\xb8" + struct.pack("<I", _NO_DEVICE) + b"\xc3"
# lea rax, [rip + 1], the address of what follows ret; ret
_RETURN_TEXT = b"\x48\x8d\x05\x01\x00\x00\x00\xc3" + _TEXT


class UnexpectedBuildError(Exception):
    """The installed torch is not the build that this program knows; str() is one line."""


@dataclass(frozen=True, slots=True)
class Library:
    """What the dynamic linker reads in a shared library.

    Attributes:
        needed: the names of the libraries that it needs.
        wanted: the symbols that it looks up elsewhere; for those that have a version, the library that has it, and its
            name.
    """

    needed: tuple[str, ...]
    wanted: tuple[tuple[str, tuple[str, str] | None], ...]


@dataclass(slots=True)
class StandIn:
    """A library to be written.

    Attributes:
        soname: its name.
        functions: the names of its functions.
        version: the version of all of them, if they have one.
    """

    soname: str
    functions: set[str] = field(default_factory=set)
    version: str | None = None


def read_library(path: Path) -> Library:
    """Reads a shared library.

    Raises:
        UnexpectedBuildError: it is none for x86-64.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 18) != (_X86_64,):
            message = f"{path.name} is no library for x86-64"
            raise UnexpectedBuildError(message)
        (table,) = struct.unpack_from("<Q", data, 40)
        width, count = struct.unpack_from("<HH", data, 58)
        # Of each section: its kind, where it begins, its size, and the number of the section with its strings.
        headers = [struct.unpack_from("<4xI16xQQI", data, table + width * number) for number in range(count)]

        def content(kind: int) -> tuple[bytes, bytes]:
            """The section of a kind, and its strings."""
            for found, start, size, link in headers:
                if found == kind:
                    _kind, strings, length, _link = headers[link]
                    return data[start : start + size], data[strings : strings + length]
            return b"", b""

        dynamic, names = content(_SHT_DYNAMIC)
        needed = [_text(names, value) for tag, value in struct.iter_unpack("<QQ", dynamic) if tag == _DT_NEEDED]
        symbols, names = content(_SHT_DYNSYM)
        wanted = [
            (number, _text(names, name))
            for number, (name, section) in enumerate(struct.iter_unpack("<I2xH16x", symbols))
            if number and not section
        ]
        numbers = content(_SHT_VERSYM)[0]
        versions = dict(_versions(*content(_SHT_VERNEED)))
    if numbers:
        version_of = {
            number: versions.get(struct.unpack_from("<H", numbers, 2 * number)[0]) for number, _name in wanted
        }
    else:
        version_of = {}
    return Library(tuple(needed), tuple((name, version_of.get(number)) for number, name in wanted))


def _versions(table: bytes, names: bytes) -> Iterator[tuple[int, tuple[str, str]]]:
    """The number of each version that a library needs, with the library that has it and its name."""
    library = 0
    while table:
        count, file, first, following = struct.unpack_from("<2xHIII", table, library)
        version = library + first
        for _ in range(count):
            number, name, step = struct.unpack_from("<6xHII", table, version)
            yield number, (_text(names, file), _text(names, name))
            version += step
        if not following:
            return
        library += following


def _text(strings: bytes, start: int) -> str:
    return strings[start : strings.index(b"\0", start)].decode()


def stand_ins_for(libraries: Sequence[Library]) -> list[StandIn]:
    """What has to be written for these libraries.

    Raises:
        UnexpectedBuildError: a library of NVIDIA's has several versions, which this program does not write.
    """
    sonames = {soname for library in libraries for soname in library.needed if _NVIDIA.fullmatch(soname)} - {_DRIVER}
    found = {soname: StandIn(soname) for soname in sorted(sonames)}
    # Names of functions begin with that of their library: libcufile.so.0 has cuFileRead().
    stems = {soname.removeprefix("lib").partition(".")[0].partition("_")[0].lower(): soname for soname in found}
    for name, version in (symbol for library in libraries for symbol in library.wanted):
        if version is not None and version[0] in found:
            stand_in = found[version[0]]
            if stand_in.version not in (None, version[1]):
                message = f"it needs versions {stand_in.version} and {version[1]} of {stand_in.soname}"
                raise UnexpectedBuildError(message)
            stand_in.version = version[1]
            stand_in.functions.add(name)
        elif version is None:
            fitting = [stem for stem in stems if name.lower().startswith(stem)]
            if fitting:
                found[stems[max(fitting, key=len)]].functions.add(name)
    return list(found.values())


def shared_library(stand_in: StandIn) -> bytes:
    """A stand-in as an ELF file: a part to be read and run, and the dynamic section, which the linker writes to."""
    functions = sorted(stand_in.functions)
    image, at = bytearray(64 + 4 * 56), {}

    def add(part: str, content: bytes, alignment: int = 8) -> None:
        image.extend(bytes(-len(image) % alignment))
        at[part] = len(image)
        image.extend(content)

    strings, places = b"\0", {}
    for text in (stand_in.soname, stand_in.version or "", *functions):
        places[text] = len(strings)
        strings += text.encode() + b"\0"
    add("strings", strings)
    add("number", _RETURN_NUMBER)
    add("text", _RETURN_TEXT)
    code = [at["text" if name in _TEXTS else "number"] for name in functions]
    # The name, 0x12 for a function that all may use, and where it is; 1 is any section but "undefined".
    rows = [
        struct.pack("<IBBHQQ", places[name], 0x12, 0, 1, place, 0) for name, place in zip(functions, code, strict=True)
    ]
    add("symbols", bytes(24) + b"".join(rows))
    add("hash", _hash_table(functions))
    entries = [
        (_DT_SONAME, places[stand_in.soname]), (_DT_HASH, at["hash"]), (_DT_STRTAB, at["strings"]),
        (_DT_SYMTAB, at["symbols"]), (_DT_STRSZ, len(strings)), (_DT_SYMENT, 24),
    ]  # fmt: skip
    if stand_in.version is not None:
        add("versions", struct.pack("<H", 0) + struct.pack("<H", 2) * len(functions))
        # The first definition is the library itself. Each takes 20 bytes, and 8 more for the place of its name.
        add("definitions", b"".join(
            struct.pack("<HHHHIIIII", 1, flags, number, 1, _hash(name), 20, step, places[name], 0)
            for flags, number, name, step in ((1, 1, stand_in.soname, 28), (0, 2, stand_in.version, 0))
        ))  # fmt: skip
        entries += [(_DT_VERSYM, at["versions"]), (_DT_VERDEF, at["definitions"]), (_DT_VERDEFNUM, 2)]
    add("dynamic", b"".join(struct.pack("<QQ", *entry) for entry in [*entries, (0, 0)]), _PAGE)

    start, size = at["dynamic"], len(image) - at["dynamic"]
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, _X86_64, 1, 0, 64, 0, 0, 64, 56, 4, 64, 0, 0)
    # Kind; access (1: run, 2: write, 4: read); place in the file and in memory; size in both; alignment.
    image[: 64 + 4 * 56] = header + b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in (
        (_PT_LOAD, 5, 0, 0, 0, start, start, _PAGE),
        (_PT_LOAD, 6, start, start, start, size, size, _PAGE),
        (_PT_DYNAMIC, 6, start, start, start, size, size, 8),
        (_PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16),
    ))  # fmt: skip
    return bytes(image)


def _hash(name: str) -> int:
    """The hash of a symbol's or a version's name, as in the gABI."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        value = (value ^ (value & 0xF0000000) >> 24) & 0x0FFFFFFF
    return value


def _hash_table(names: Sequence[str]) -> bytes:
    """The symbols by their hashes: how many, the first one of each hash, and the one after each."""
    count = len(names) + 1
    first, following = [0] * count, [0] * count
    for number, name in enumerate(names, 1):
        place = _hash(name) % count
        following[number], first[place] = first[place], number
    return struct.pack(f"<{2 + 2 * count}I", count, count, *first, *following)


# ---- the programs for GPUs ----


def _place_of_gpu_programs(data: mmap.mmap) -> tuple[int, int]:
    """Where they begin and end in the file; equal if there are none."""
    (table,) = struct.unpack_from("<Q", data, 40)
    width, count, strings = struct.unpack_from("<HHH", data, 58)
    (names,) = struct.unpack_from("<24xQ", data, table + width * strings)
    for number in range(count):
        name, start, size = struct.unpack_from("<I20xQQ", data, table + width * number)
        if data[names + name : names + name + len(_GPU_PROGRAMS) + 1] == _GPU_PROGRAMS + b"\0":
            return start, start + size
    return 0, 0


def drop_gpu_programs(path: Path) -> int:
    """Puts a file of the same length in the place of a library, with a hole instead of its programs for GPUs.

    The old file stays as it is: an installer's cache may have a link to it.

    Returns:
        How many bytes on disk this frees.
    """
    before = path.stat()
    new = path.with_name(f".{path.name}.new")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start, end = _place_of_gpu_programs(data)
        if not any(data[start : min(start + 4 * _PAGE, end)]):
            return 0
        with new.open("wb") as copy:
            for first, last in ((0, start), (end, len(data))):
                copy.seek(first)
                for at in range(first, last, 1 << 24):
                    copy.write(data[at : min(at + (1 << 24), last)])
    new.chmod(before.st_mode & 0o777)
    freed = 512 * (before.st_blocks - new.stat().st_blocks)
    new.replace(path)
    return freed


# ---- the installation ----


def remove_cuda(packages: Path) -> tuple[int, int]:
    """Writes what the torch in a folder of packages needs of NVIDIA, and drops what only a GPU reads.

    Returns:
        How many libraries were written, and how many bytes were freed: both 0 if torch needs nothing of NVIDIA.

    Raises:
        UnexpectedBuildError: the torch there is another one.
    """
    folder = packages / "torch/lib"
    if not (folder / _CUDA_CODE).exists():
        return 0, 0
    (info,) = packages.glob("torch-*.dist-info")
    version = info.name.removeprefix("torch-").removesuffix(".dist-info")
    if version != TORCH:
        message = f"torch {version} is installed, and this program knows torch {TORCH}"
        raise UnexpectedBuildError(message)
    paths = [*folder.glob("*.so*"), *(packages / "torch").glob("*.so"), *(packages / "torchvision").glob("*.so")]
    own = [path for path in sorted(paths) if not _NVIDIA.fullmatch(path.name)]
    stand_ins = stand_ins_for([read_library(path) for path in own])
    for stand_in in stand_ins:
        bundled = packages / "torchvision.libs" / stand_in.soname
        path = bundled if bundled.exists() else folder / stand_in.soname
        # Another process may have the old one open, and an installer's cache a link to it.
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(shared_library(stand_in))
        new.replace(path)
    return len(stand_ins), drop_gpu_programs(folder / _CUDA_CODE)


_TRIAL = """
import torch, torchvision, torchvision.io
from torch.nn import functional
assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
try:
    torch.zeros(1, device="cuda")
except RuntimeError as error:
    assert "No CUDA GPUs" in str(error), error
else:
    raise SystemExit("a tensor on a GPU that is not there")
torch.manual_seed(0)
picture, weight = torch.rand(1, 3, 32, 48), torch.rand(8, 3, 3, 3, requires_grad=True)
found = functional.conv2d(picture, weight, padding=1)
expected = (weight.view(8, -1) @ functional.unfold(picture, 3, padding=1)).view(1, 8, 32, 48)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
found.sum().backward()
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
pooled = torchvision.ops.roi_align(torch.ones(1, 4, 16, 16), [boxes[:1]], (7, 7))
torch.testing.assert_close(pooled, torch.ones(1, 4, 7, 7))
torch.linalg.svd(torch.rand(8, 8)), torch.fft.fft(torch.rand(8))
"""


def main() -> int:
    """Writes them for the environment of this Python, and tries torch."""
    try:
        count, freed = remove_cuda(Path(sysconfig.get_path("platlib")))
    except UnexpectedBuildError as error:
        print(f"torch cannot run without CUDA: {error}; use `make setup CPU=0`", file=sys.stderr)  # noqa: T201
        return 1
    trial = subprocess.run([sys.executable, "-W", "error", "-c", _TRIAL], check=False, capture_output=True, text=True)  # noqa: S603
    if trial.returncode != 0:
        print(trial.stderr, file=sys.stderr)  # noqa: T201
        print("torch does not work without CUDA; use `make setup CPU=0`", file=sys.stderr)  # noqa: T201
        return 1
    if count:
        what = f"{count} small libraries stand in for NVIDIA's, {freed / 1e9:.1f} GB of programs for GPUs dropped"
        print(f"torch runs without CUDA: {what}; tried")  # noqa: T201 - its output
    return 0


if __name__ == "__main__":
    sys.exit(main())
