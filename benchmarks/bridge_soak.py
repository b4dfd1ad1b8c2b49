# ruff: noqa: INP001 - a program, not a module
"""Kills a bridge, the daemon and the receiver at random, and says whether anything was lost, doubled, or out of order.

    PYTHONPATH=tests .venv/bin/python benchmarks/bridge_soak.py webhook --seconds 600
    PYTHONPATH=tests .venv/bin/python benchmarks/bridge_soak.py mqtt --seconds 600      # needs mosquitto
    PYTHONPATH=tests .venv/bin/python benchmarks/bridge_soak.py files --seconds 600

Real processes, ended by SIGKILL; the daemon's detector is a stand-in that finds objects which come and go. The receiver
of web hooks is a process too, and answers 503 for a while now and then; a broker, which would lose what it has not
passed on, is frozen instead. At the end the daemon is stopped, so that its spool is complete, and started without
streams; when the last event of the spool has arrived, all that arrived is compared with it. Prints one JSON object;
exit code 1 if an event was lost, or came before an earlier one of its stream and kind. Those that came again have the
same key.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import duckdb

from support.mosquitto import Listener, Mosquitto, listener_of
from support.ports import free_port
from support.processes import DaemonProcess, stream
from support.spools import kept_events
from support.waiting import wait_until

Key = tuple[str, str, int]
"""Epoch, topic and number of an event."""
_STREAMS = ("one", "two")
_PAUSE_SECONDS = (2.0, 8.0)
_DRAIN_SECONDS = 300.0
_PATIENCE_SECONDS = 60.0


class Target(NamedTuple):
    """Where a bridge carries events.

    Attributes:
        table: of the configuration.
        arrived: the keys of the events that have come so far, in order, doubled ones as well.
        wanted: whether the bridge carries an event of the spool.
        faults: of the receiver, by name; each makes the fault and undoes it.
        rule: keys of the one rule.
    """

    table: str
    arrived: Callable[[], list[Key]]
    wanted: Callable[[dict[str, str]], bool]
    faults: dict[str, Callable[[], None]]


class Program:
    """A process that is killed and started again."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; what it writes is not kept."""
        command = [sys.executable, *self._arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603

    def kill(self) -> None:
        """Ends it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(_PATIENCE_SECONDS)


def _pause(chance: random.Random) -> None:
    time.sleep(chance.uniform(*_PAUSE_SECONDS))


# ---- receivers ----


def receive(port: int, path: Path) -> None:
    """Takes web hooks: writes the key of each into a file before it answers. Refuses while there is a file .busy."""
    busy = path.with_suffix(".busy")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = 503 if busy.exists() else 200
            if status == 200:
                with path.open("a", encoding="utf-8") as file:
                    file.write(self.headers["Idempotency-Key"] + "\n")
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def _key_of_hook(text: str) -> Key:
    epoch, _, rest = text.partition(":")
    topic, _, seq = rest.rpartition("/")
    return epoch, topic, int(seq)


@contextmanager
def webhook(folder: Path, chance: random.Random) -> Iterator[Target]:
    """A receiver of web hooks."""
    port, path = free_port(), folder / "received"
    path.touch()
    receiver = Program(__file__, "--receive", str(port), str(path))

    def die() -> None:
        receiver.kill()
        _pause(chance)
        receiver.start()

    def refuse() -> None:
        path.with_suffix(".busy").touch()
        _pause(chance)
        path.with_suffix(".busy").unlink()

    table = (
        f'[[webhooks]]\nname = "soak"\nurl = "http://127.0.0.1:{port}/"\nallow_private = true\n'
        'events = ["raised", "cleared", "ended"]\nretry_seconds = 0.1\n'
        f'[bridges]\nwebhook_metrics_endpoint = "127.0.0.1:{free_port()}"\n'
    )
    receiver.start()
    try:
        yield Target(
            table, lambda: [_key_of_hook(line) for line in path.read_text("utf-8").splitlines()],
            lambda event: event["phase"] in {"raised", "cleared", "end"}, {"receiver killed": die, "503": refuse},
        )  # fmt: skip
    finally:
        receiver.kill()


@contextmanager
def mqtt(folder: Path, chance: random.Random) -> Iterator[Target]:
    """A broker, and a client that listens to it."""
    with Mosquitto(folder) as broker, listener_of(broker) as listener:

        def freeze() -> None:
            broker.signal(signal.SIGSTOP)
            _pause(chance)
            broker.signal(signal.SIGCONT)

        table = f'[mqtt]\nbroker = "mqtt://127.0.0.1:{broker.port}"\nmetrics_endpoint = "127.0.0.1:{free_port()}"\n'
        yield Target(table, lambda: _keys_of_messages(listener), lambda _: True, {"broker frozen": freeze})


def _keys_of_messages(listener: Listener) -> list[Key]:
    keys = []
    for message in list(listener.messages):
        kind = message.topic.split("/")[2:3]
        if kind in (["alerts"], ["objects"]) and message.payload:
            event = json.loads(message.payload)
            keys.append((event["epoch"], event["topic"].rstrip("/"), event["seq"]))
    return keys


@contextmanager
def files(folder: Path, _chance: random.Random) -> Iterator[Target]:
    """Parquet files."""
    table = (
        f'[files]\ndirectory = "{folder}/files"\nrotate_seconds = 2\nformats = ["parquet"]\n'
        f'metrics_endpoint = "127.0.0.1:{free_port()}"\n'
    )

    def arrived() -> list[Key]:
        keys: list[Key] = []
        with duckdb.connect() as database:
            for kind in ("objects", "alerts"):
                paths = f"{folder}/files/{kind}/*/*/*.parquet"
                if any((folder / "files").glob(f"{kind}/*/*/*.parquet")):
                    events = database.read_parquet(paths, hive_partitioning=True, filename=True, file_row_number=True)
                    found = events.order("filename, file_row_number").project("epoch, stream, seq").fetchall()
                    keys += [(epoch, f"{kind}/{name}", seq) for epoch, name, seq in found]
        return keys

    yield Target(table, arrived, lambda _: True, {})


_TARGETS = {"webhook": webhook, "mqtt": mqtt, "files": files}


# ---- the run ----


def published(daemon: DaemonProcess, target: Target) -> list[Key]:
    """What the spool has that the bridge carries, in order."""
    events = [event for event in kept_events(daemon.folder / "spool") if target.wanted(event)]
    return [(event["epoch"], f"{event['type']}/{event['stream']}", event["seq"]) for event in events]


def soak(kind: str, folder: Path, seconds: float, chance: random.Random) -> dict[str, object]:
    """One run."""
    faults: Counter[str] = Counter()
    with ExitStack() as stack:
        target = stack.enter_context(_TARGETS[kind](folder, chance))
        daemon = stack.enter_context(DaemonProcess(folder / "d", comes_and_goes=True))
        streams = [stream(name, max_fps=10, track_max_lost_seconds=0.3) for name in _STREAMS]
        tables = f'[[rules]]\nname = "seen"\n{target.table}'
        daemon.write_config(*streams, more=tables)
        daemon.ready()
        bridge = Program("-m", "streamdet", "bridge", kind, "--config", str(daemon.path))
        stack.callback(bridge.kill)
        bridge.start()
        wait_until(target.arrived, "the first event")

        def kill_bridge() -> None:
            bridge.kill()
            _pause(chance)
            bridge.start()

        def kill_daemon() -> None:
            daemon.end(signal.SIGKILL)
            daemon.ready()

        all_faults = {"bridge killed": kill_bridge, "daemon killed": kill_daemon, **target.faults}
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            name = chance.choice(list(all_faults))
            all_faults[name]()
            faults[name] += 1
            _pause(chance)
        daemon.end()
        wanted = published(daemon, target)
        # What comes before was published before the bridge was there.
        wanted = wanted[wanted.index(target.arrived()[0]) :]
        daemon.write_config("", more=tables)  # nothing new comes while the old is carried
        daemon.ready()
        began = newest = time.monotonic()
        count = 0
        while not set(wanted) <= set(arrived := target.arrived()) and time.monotonic() < newest + _DRAIN_SECONDS:
            if len(arrived) > count:
                count, newest = len(arrived), time.monotonic()
            time.sleep(1)
        found = {"seconds": seconds, "faults": dict(faults), "drained_seconds": round(time.monotonic() - began, 1)}
        return {**found, **compare(wanted, target.arrived(), published(daemon, target))}


def compare(wanted: Sequence[Key], arrived: Sequence[Key], kept: Sequence[Key]) -> dict[str, object]:
    """What is wrong with what arrived.

    Args:
        wanted: what the spool had when the daemon was stopped, from the first event that arrived on.
        arrived: what has come, doubled events as well.
        kept: what the spool has now.
    """
    once = list(dict.fromkeys(arrived))
    places = {key: place for place, key in enumerate(kept)}
    by_topic = defaultdict(list)
    for key in once:
        if key in places:
            by_topic[key[1]].append(places[key])
    out_of_order = sum(later < earlier for found in by_topic.values() for earlier, later in pairwise(found))
    return {
        "published": len(wanted),
        "arrived": len(once),
        "lost": len(set(wanted) - set(once)),
        "repeated_with_the_same_key": len(arrived) - len(once),
        "out_of_order": out_of_order,
        "not_in_the_spool": len(set(once) - set(kept)),
    }


def main() -> None:
    """Runs, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bridge", choices=_TARGETS)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bridge-soak-") as folder:
        result = soak(arguments.bridge, Path(folder), arguments.seconds, random.Random(arguments.seed))  # noqa: S311
    print(json.dumps(result))  # noqa: T201 - its output
    sys.exit(1 if result["lost"] or result["out_of_order"] else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--receive":
        receive(int(sys.argv[2]), Path(sys.argv[3]))
    main()
