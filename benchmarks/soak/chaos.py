# ruff: noqa: INP001 - part of a program, not a module
"""What goes wrong around the daemon, by chance: each fault is made, lasts a while, and is undone."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq
from scene import Camera, Scene

from streamdet import subscribe
from streamdet.assets import sample_clip
from streamdet.errors import ConfigError, ControlError

# A fault is a generator: it makes the fault, yields how long that is to last, and then undoes it.
Fault = Iterator[float]

_VANISHING = "import sys, streamdet\nwith streamdet.subscribe(sys.argv[1]) as events:\n    [0 for _ in events]"


class Faults:
    """The faults that there are, each a method.

    Args:
        scene: what they happen to.
        seed: of chance.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._whole = list(scene.cameras.values())
        self._added = 0

    @contextmanager
    def _one_camera(self) -> Iterator[Camera]:
        """One that nothing else happens to meanwhile."""
        camera = self._whole.pop(self._random.randrange(len(self._whole)))
        try:
            yield camera
        finally:
            self._whole.append(camera)

    def _seconds(self, least: float, most: float) -> float:
        return self._random.uniform(least, most)

    def camera_killed(self) -> Fault:
        """Its server is gone, and comes back at the same port."""
        with self._one_camera() as camera:
            camera.server.kill()
            yield self._seconds(1, 6)
            camera.server.start()

    def camera_frozen(self) -> Fault:
        """It says nothing more, and keeps its connections."""
        with self._one_camera() as camera:
            camera.server.freeze()
            yield self._seconds(1, 10)
            camera.server.thaw()

    def camera_corrupted(self) -> Fault:
        """Some of what it sends arrives as other bytes."""
        with self._one_camera() as camera:
            camera.relay.damage = 10 ** self._seconds(-5, -2)
            yield self._seconds(2, 8)
            camera.relay.damage = 0.0

    def stream_added(self) -> Fault:
        """At the control socket; half of them can be read."""
        self._added += 1
        name, readable = f"added-{self._added}", self._added % 2 == 0
        url, values = (str(sample_clip()), {"loop": True, "max_fps": 2}) if readable else ("rtsp://127.0.0.1:1/x", {})
        self._scene.ask("POST", "/v1/streams", {**values, "name": name, "url": url})
        yield self._seconds(2, 8)
        self._scene.ask("DELETE", f"/v1/streams/{name}")

    def stream_paused(self) -> Fault:
        """At the control socket."""
        name = self._random.choice(list(self._scene.cameras))
        self._scene.ask("PATCH", f"/v1/streams/{name}", {"paused": True})
        yield self._seconds(1, 5)
        self._scene.ask("POST", f"/v1/streams/{name}/reset")

    def reloaded(self) -> Fault:
        """Other rates, and one stream more."""
        more = f'[[streams]]\nname = "reloaded"\nurl = "{sample_clip()}"\nloop = true\nmax_fps = 2\n'
        self._scene.write_config(more=more, fps=2)
        self._scene.ask("POST", "/v1/reload")
        yield self._seconds(3, 8)
        self._scene.write_config()
        self._scene.ask("POST", "/v1/reload")

    def reloaded_badly(self) -> Fault:
        """A file that is refused."""
        self._scene.write_config(more='[[streams]]\nname = "x"\ncolour = 3\n')
        with suppress(ConfigError):
            self._scene.ask("POST", "/v1/reload")
            message = "a bad configuration was taken"
            raise AssertionError(message)
        yield 0.0
        self._scene.write_config()

    def preview_watched(self) -> Fault:
        """Pictures of every stream, for a viewer."""
        with subscribe(self._scene.endpoint, kinds=["preview"]) as pictures:
            for _ in range(self._random.randint(10, 50)):
                pictures.receive(0)
                yield 0.2

    def subscriber_stalled(self) -> Fault:
        """Subscribes to everything, and does not read."""
        with zmq.Context() as context, context.socket(zmq.SUB) as socket_:
            socket_.linger, socket_.rcvhwm, socket_.rcvbuf = 0, 1, 4096
            socket_.subscribe("")
            socket_.connect(self._scene.endpoint)
            yield self._seconds(5, 20)

    def subscriber_vanished(self) -> Fault:
        """A process that is killed while it reads."""
        process = subprocess.Popen([sys.executable, "-c", _VANISHING, self._scene.endpoint])  # noqa: S603 - ours
        yield self._seconds(2, 6)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def subscribers_come_and_go(self) -> Fault:
        """A hundred connections that end as soon as they stand."""
        for _ in range(100):
            with zmq.Context() as context, context.socket(zmq.SUB) as socket_:
                socket_.linger = 0
                socket_.subscribe(self._random.choice(["", "detections/", "preview/"]))
                socket_.connect(self._scene.endpoint)
                yield 0.02

    def replay_flooded(self) -> Fault:
        """Requests without end, most of them nonsense."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket_:
            socket_.linger, socket_.sndhwm = 0, 100
            socket_.connect(f"tcp://127.0.0.1:{self._scene.port + 1}")
            for number in range(50):
                for _ in range(20):
                    request = b'{"version":1,"id":%d,"request":"snapshot"}' % number
                    noise = self._random.randbytes(self._random.randrange(200))
                    with suppress(zmq.Again):
                        socket_.send(self._random.choice([request, noise]), zmq.NOBLOCK)
                yield 0.05

    def ports_knocked_at(self) -> Fault:
        """Bytes that are no ZeroMQ, no HTTP and no request."""
        for _ in range(20):
            for port in (self._scene.port, self._scene.port + 1, self._scene.metrics_port):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as knock:
                    knock.sendall(self._random.randbytes(self._random.randrange(1, 2000)))
            with suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
                knock.connect(str(self._scene.control_path))
                knock.sendall(self._random.randbytes(200) + b"\n")
            yield 0.1


class Chaos:
    """Lets faults happen, several at the same time; everything from the caller's thread.

    Attributes:
        happened: how often each fault did.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        faults = Faults(scene, seed)
        self._kinds: dict[str, Callable[[], Fault]] = {
            name: getattr(faults, name) for name in vars(Faults) if not name.startswith("_")
        }
        self._random = random.Random(seed + 1)  # noqa: S311 - not a secret
        self._running: dict[str, tuple[Fault, float]] = {}
        self.happened: Counter[str] = Counter()

    @property
    def running(self) -> list[str]:
        """The faults that last."""
        return list(self._running)

    def begin_one(self) -> None:
        """Begins a fault of a kind that does not last already."""
        name = self._random.choice(list(self._kinds))
        if name not in self._running:
            self.happened[name] += 1
            self._advance(name, self._kinds[name]())

    def tick(self) -> None:
        """Goes on with the faults whose time has come."""
        now = time.monotonic()
        for name, (fault, due_at) in list(self._running.items()):
            if now >= due_at:
                self._advance(name, fault)

    def end(self) -> None:
        """Undoes everything."""
        while self._running:
            for name, (fault, _) in list(self._running.items()):
                self._advance(name, fault)

    def _advance(self, name: str, fault: Fault) -> None:
        try:
            self._running[name] = (fault, time.monotonic() + next(fault))
        except StopIteration:
            self._running.pop(name, None)
        except ControlError as error:
            message = f"{name}: the daemon refused: {error}"
            raise AssertionError(message) from error
