from __future__ import annotations

import subprocess
import sys


def test_this_module_loads_without_torch() -> None:
    code = "import sys, streamdet.inference.thread; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
