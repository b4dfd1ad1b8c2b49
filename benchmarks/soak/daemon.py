# ruff: noqa: INP001 - part of a program, not a module
"""The daemon under test, as `streamdet run` runs it; what it knew of every frame at its end is written to a file."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from prometheus_client import Gauge

from streamdet.config import load_config
from streamdet.monitoring.log import configure_logging
from streamdet.service.daemon import Daemon


class _Malloc(ctypes.Structure):
    """mallinfo2(3); all of them sizes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
    ]


def allocated_bytes() -> float:
    """What glibc has given out and not got back: grows with a leak, and not with holes between what is in use."""
    malloc = ctypes.CDLL(None).mallinfo2
    malloc.restype = _Malloc
    now = malloc()
    return float(now.uordblks + now.hblkhd)


def main(config_path: Path, result_path: Path) -> int:
    """Runs until SIGTERM; the exit code."""
    config = load_config(config_path)
    configure_logging(config.log)
    daemon = Daemon(config, config_path)
    allocated = Gauge("soak_allocated_bytes", "Given out by glibc.", registry=daemon.metrics.registry)
    allocated.set_function(allocated_bytes)
    with daemon.signals():
        code = daemon.run()
    ledgers = {
        name: {
            "captured": ledger.captured,
            "published": ledger.published,
            "dropped": sum(ledger.dropped.values()),
            "in_flight": ledger.in_flight,
        }
        for name, ledger in daemon.ledger.snapshot().items()
    }
    result_path.write_text(json.dumps({"epoch": daemon.epoch, "streams": ledgers}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
