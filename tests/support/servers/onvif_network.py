"""A network of cameras, at the other end of a virtual cable: `onvif_network.py INTERFACE`, in a network namespace.

Writes "waiting", waits for a line, then brings up the interface with the addresses of its cameras and writes "ready".
Ends when its standard input does.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.onvif import MAIN, SUB, answer_searches, onvif_camera, probe_match

LOGIN = ("admin", "secret")
# The last one floods the network with answers of cameras that do not exist.
CAMERAS: dict[str, dict[str, Any]] = {
    "192.0.2.5": {"login": LOGIN, "asks_for": "digest", "model": "M1135"},
    "192.0.2.6": {"login": LOGIN, "asks_for": "token", "skew_seconds": 3600.0, "model": "P3245"},
    "192.0.2.7": {"login": ("root", "other"), "model": "Q1656"},
    "192.0.2.8": {"login": LOGIN, "silent": frozenset({"*"})},
    "192.0.2.9": {"answers": {"*": b"<!DOCTYPE a><a/>"}},
    "192.0.2.10": {"login": LOGIN, "host": "198.51.100.1", "profiles": (MAIN, SUB)},
    "192.0.2.11": {"login": LOGIN, "model": "NVR"},
}
# Its channels are devices in one answer: more than there are questions, so that no repetition makes up for one.
RECORDER = "192.0.2.11"
CHANNELS = tuple(str(uuid.uuid4()) for _ in range(8))
# Without IPv4.
LINK_LOCAL = "fe80::5"
FLOODS = "192.0.2.66"


def replies_of(address: str, behaviour: dict[str, Any]) -> Callable[[str], Iterator[bytes]]:
    device, *others = CHANNELS if address == RECORDER else (str(uuid.uuid4()),)
    host = address if "[" in address else behaviour.get("host", address)
    services = f"http://{host}/onvif/device_service"
    scopes = f"onvif://www.onvif.org/name/cam{address[-1]} onvif://www.onvif.org/hardware/HW"

    def reply(question: str) -> Iterator[bytes]:
        yield b"\x00nonsense"
        yield probe_match(str(uuid.uuid4()), services, str(uuid.uuid4()), scopes)
        # Twice: networks repeat datagrams.
        yield probe_match(question, services, device, scopes, others=others)
        yield probe_match(question, services, device, scopes, others=others)

    return reply


def flood(question: str) -> Iterator[bytes]:
    for _ in range(300):
        yield probe_match(question, f"http://{FLOODS}:9/", str(uuid.uuid4()))


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    interface = sys.argv[1]
    say("waiting")
    sys.stdin.readline()
    for command in (
        "ip link set lo up",
        f"ip link set {interface} up",
        *(f"ip address add {address}/24 dev {interface}" for address in [*CAMERAS, FLOODS]),
        f"ip address add {LINK_LOCAL}/64 dev {interface} nodad",
    ):
        subprocess.run(command.split(), check=True)
    with ExitStack() as stack:
        for address, behaviour in CAMERAS.items():
            stack.enter_context(onvif_camera((address, 80), **behaviour))
        six = {"host": f"[{LINK_LOCAL}]", "login": LOGIN, "model": "six"}
        stack.enter_context(onvif_camera(("::", 81), **six))
        replies = {address: replies_of(address, behaviour) for address, behaviour in CAMERAS.items()}
        for address, reply in {**replies, LINK_LOCAL: replies_of(f"[{LINK_LOCAL}]:81", six), FLOODS: flood}.items():
            ready = threading.Event()
            threading.Thread(target=answer_searches, args=(address, interface, reply, ready), daemon=True).start()
            ready.wait()
        say("ready")
        sys.stdin.read()


if __name__ == "__main__":
    main()
