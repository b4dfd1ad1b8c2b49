"""Which packages, and which rights, the tests of the outer world find on this machine."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _gstreamer_rtsp_server() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return _works("/usr/bin/python3", "-c", code)


def _root_has(program: str) -> bool:
    return shutil.which(program) is not None and os.geteuid() == 0


_PACKAGES = {
    "gst-rtsp-server": _gstreamer_rtsp_server,
    "prometheus": lambda: shutil.which("promtool") is not None,
    "prometheus-alertmanager": lambda: shutil.which("prometheus-alertmanager") is not None,
    "mosquitto-clients": lambda: shutil.which("mosquitto_sub") is not None,
    "mosquitto": lambda: shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None,
    "nodejs": lambda: shutil.which("node") is not None and shutil.which("npm") is not None,
    "chromium": lambda: Path("/usr/bin/chromium").exists(),
    "ffmpeg": lambda: shutil.which("ffprobe") is not None,
    "iproute2": lambda: _root_has("ip"),
    "systemd": lambda: shutil.which("systemd-analyze") is not None,
    "systemd-container": lambda: _root_has("systemd-nspawn"),
    "iptables": lambda: _root_has("iptables"),
    "gcc": lambda: shutil.which("gcc") is not None,
    "openssl": lambda: shutil.which("openssl") is not None,
    # Of requirements-deploy.txt.
    "kubernetes-validate": lambda: importlib.util.find_spec("kubernetes_validate") is not None,
    # Mounts of one's own: for root, and not in every container.
    "util-linux": lambda: _works("unshare", "--mount", "true"),
}


@functools.cache
def is_there(package: str) -> bool:
    """Whether tests may use the package; all are there where that is required, as in CI."""
    return bool(os.environ.get("STREAMDET_REQUIRE_PACKAGES")) or _PACKAGES[package]()
