"""Facts about this machine that the figures depend on, and the load of other processes during a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamdet import __version__

_LIBRARIES = ("torchvision", "openvino", "av", "opencv-python-headless")


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, ready for JSON."""
    versions = {"streamdet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": core_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": versions,
    }


_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int | None = None) -> float:
    """CPU time of a process so far, of all its threads.

    Args:
        pid: of the process; None for this one.

    Raises:
        OSError: there is no such process.
    """
    if pid is None:
        times = os.times()
        return times.user + times.system
    # The name, in parentheses, may hold blanks and parentheses itself.
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that lies in RAM; arguments and errors as `cpu_seconds`."""
    return int(Path(f"/proc/{pid or 'self'}/statm").read_text("ascii").split()[1]) * _PAGE_BYTES


@dataclass(frozen=True)
class MachineCpu:
    """CPU time of the whole machine since its start, in seconds summed over the cores.

    Attributes:
        total: all of it, idle time as well.
        idle: when there was nothing to do.
        stolen: that the host of a virtual machine gave to others.
    """

    total: float
    idle: float
    stolen: float


def machine_cpu() -> MachineCpu:
    """Reads the counters of proc(5): user nice system idle iowait irq softirq steal."""
    line = Path("/proc/stat").read_text("ascii").splitlines()[0]
    ticks = [int(field) / _TICKS_PER_SECOND for field in line.split()[1:9]]
    return MachineCpu(sum(ticks), ticks[3] + ticks[4], ticks[7])


@dataclass(frozen=True)
class Disturbance:
    """The other load of the machine during a measurement.

    Attributes:
        load_before: the load average of the last minute, before.
        others_share: CPU time of other processes, as a share of all that the machine has, 0 to 1.
        stolen_share: the same for what the host of a virtual machine took.
    """

    load_before: float
    others_share: float
    stolen_share: float

    @property
    def matters(self) -> bool:
        """Whether figures may be wrong by more than their spread says."""
        return max(self.others_share, self.stolen_share) > 0.05


class DisturbanceWatch:
    """Begins with its construction."""

    def __init__(self) -> None:
        self._load_before = os.getloadavg()[0]
        self._machine, self._own = machine_cpu(), cpu_seconds()

    def result(self, children_seconds: float = 0.0) -> Disturbance:
        """The load since the construction.

        Args:
            children_seconds: CPU time of processes that belong to the measurement.
        """
        now, own = machine_cpu(), cpu_seconds() - self._own + children_seconds
        total = max(now.total - self._machine.total, 1 / _TICKS_PER_SECOND)
        stolen = now.stolen - self._machine.stolen
        busy = total - (now.idle - self._machine.idle) - stolen
        others = max(busy - own, 0.0)
        return Disturbance(self._load_before, min(others / total, 1.0), min(stolen / total, 1.0))
