#!/usr/bin/python3 -IS
"""Asks the daemon of this container over its control socket how it is: `streamdet-health [ready]`.

Exits 0 if it is healthy, or with "ready" if it detects; else 1, with the reason in one line. Needs the standard library
alone, so that it costs little although it runs all the time.
"""

import http.client
import json
import os
import socket
import sys

_TIMEOUT_SECONDS = 8.0
_MAX_BYTES = 1 << 24


def main() -> int:
    """Returns the exit code."""
    path = os.path.join(os.environ.get("RUNTIME_DIRECTORY", "/tmp"), "control.sock")  # noqa: PTH118, S108 - quick, and in an image
    connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(_TIMEOUT_SECONDS)
    try:
        connection.sock.connect(path)
        connection.request("GET", "/v1/health")
        page = json.loads(connection.getresponse().read(_MAX_BYTES))
        good = page["ready"] if sys.argv[1:] == ["ready"] else page["healthy"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"the daemon does not answer at {path}: {type(error).__name__}\n")
        return 1
    finally:
        connection.close()
    if good is not True:
        sys.stderr.write(f"{page.get('problem') or 'it does not detect yet'}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
