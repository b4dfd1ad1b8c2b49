"""Torch without NVIDIA's libraries: what stands in for them, and what is refused. `make setup` tries the whole."""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_without_cuda", ROOT / "torch_without_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module


def test_it_knows_the_torch_of_the_lock(program: ModuleType) -> None:
    assert f"\ntorch=={program.TORCH} " in (ROOT / "requirements.txt").read_text()


@pytest.mark.parametrize("version", [None, "libcudart.so.13"])
def test_a_stand_in_is_loaded_and_reports_that_there_is_no_device(
    program: ModuleType, tmp_path: Path, version: str | None
) -> None:
    functions = {f"cudaFunction{number}" for number in range(100)} | {"cudaGetDeviceCount", "cudaGetErrorString"}
    # By no name that torch looks for: it would take this one, and lack most of its functions.
    path = tmp_path / "libstandin.so.13"
    path.write_bytes(program.shared_library(program.StandIn(path.name, functions, version)))
    library = ctypes.CDLL(str(path))
    assert {library[name]() for name in functions - {"cudaGetErrorString"}} == {100}
    library.cudaGetErrorString.restype = ctypes.c_char_p
    assert b"CPU=0" in library.cudaGetErrorString(100)
    assert not hasattr(library, "cudaOther")
    dlvsym = ctypes.CDLL(None).dlvsym
    dlvsym.restype, dlvsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    assert dlvsym(library._handle, b"cudaGetDeviceCount", b"libcudart.so.13")
    # A library without versions fits all of them.
    assert bool(dlvsym(library._handle, b"cudaGetDeviceCount", b"libcudart.so.12")) == (version is None)


def test_symbols_belong_to_the_library_that_their_version_or_their_name_says(program: ModuleType) -> None:
    cudart = ("libcudart.so.13", "libcudart.so.13")
    torch = program.Library(
        ("libcudart.so.13", "libcusparse.so.12", "libcusparseLt.so.0", "libcuda.so.1", "libc.so.6"),
        (
            ("cudaMalloc", cudart),
            ("cusparseLtInit", None),
            ("cuLaunchKernel", None),
            ("write", ("libc.so.6", "GLIBC_2")),
        ),
    )
    found = {one.soname: one for one in program.stand_ins_for([torch])}
    assert found.keys() == {"libcudart.so.13", "libcusparse.so.12", "libcusparseLt.so.0"}
    assert found["libcudart.so.13"].functions == {"cudaMalloc"}
    assert found["libcudart.so.13"].version == "libcudart.so.13"
    assert found["libcusparseLt.so.0"].functions == {"cusparseLtInit"}
    assert not found["libcusparse.so.12"].functions


def test_two_versions_of_a_library_are_refused(program: ModuleType) -> None:
    wanted = tuple(("cudaMalloc", ("libcudart.so.13", version)) for version in ("a", "b"))
    with pytest.raises(program.UnexpectedBuildError, match=r"versions a and b of libcudart\.so\.13"):
        program.stand_ins_for([program.Library(("libcudart.so.13",), wanted)])


def _library(programs: bytes) -> bytes:
    """A file with the sections of a library for GPUs, without anything to run."""
    names, size = b"\0.nv_fatbin\0.shstrtab\0", 64 + 3 * 64
    start = 4096
    rows = [(0, 0, 0, 0), (1, 1, start, len(programs)), (12, 3, start + len(programs), len(names))]
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, len(rows), 2
    )  # fmt: skip
    table = b"".join(struct.pack("<II16xQQ24x", *row) for row in rows)
    return (header + table + bytes(start - size)) + programs + names + b"the end"


def test_programs_for_gpus_become_a_hole_and_a_link_to_the_file_stays_whole(
    program: ModuleType, tmp_path: Path
) -> None:
    path, link = tmp_path / "libtorch_cuda.so", tmp_path / "cache"
    content = _library(b"\x07" * (1 << 20))
    path.write_bytes(content)
    path.chmod(0o755)
    link.hardlink_to(path)
    assert program.drop_gpu_programs(path) >= 0
    assert path.read_bytes() == content.replace(b"\x07", b"\0")
    assert path.stat().st_mode & 0o777 == 0o755
    assert link.read_bytes() == content
    assert program.drop_gpu_programs(path) == 0
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_another_torch_is_refused_and_one_without_cuda_stays_as_it_is(program: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "torch/lib").mkdir(parents=True)
    (tmp_path / "torch-9.9.0.dist-info").mkdir()
    assert program.remove_cuda(tmp_path) == (0, 0)
    (tmp_path / "torch/lib/libtorch_cuda.so").write_bytes(b"x")
    with pytest.raises(program.UnexpectedBuildError, match=r"torch 9\.9\.0 is installed, and this program knows torch"):
        program.remove_cuda(tmp_path)
    (tmp_path / "torch-9.9.0.dist-info").rename(tmp_path / f"torch-{program.TORCH}.dist-info")
    with pytest.raises(program.UnexpectedBuildError, match=r"libtorch_cuda\.so is no library"):
        program.remove_cuda(tmp_path)
    assert (tmp_path / "torch/lib/libtorch_cuda.so").read_bytes() == b"x"
