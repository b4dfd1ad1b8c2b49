"""A real MQTT broker on loopback, which may be killed and started again, and a client that listens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from paho.mqtt import client as paho

from streamdet.bridges.mqtt.session import BrokerAddress
from support.ports import free_port
from support.waiting import wait_until

# Debian puts it where only root looks for programs.
_PATH = os.environ.get("PATH", "") + ":/usr/sbin"


class Mosquitto:
    """A broker; a context manager, which ends it. Its port stays the same over `kill` and `start`."""

    def __init__(
        self,
        folder: Path,
        *,
        password: str = "",
        certificate: tuple[Path, Path] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self._folder = folder
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(not password).lower()}", *settings]
        if os.geteuid() == 0:
            lines.append("user root")
        if password:
            passwords = folder / "passwords"
            passwords.write_text(f"bridge:{password}\nlistener:{password}\n")
            passwords.chmod(0o600)
            self._run("mosquitto_passwd", "-U", str(passwords))
            lines.append(f"password_file {passwords}")
        if certificate is not None:
            lines += [f"certfile {certificate[0]}", f"keyfile {certificate[1]}"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def address(self, **changes: Any) -> BrokerAddress:
        """For a bridge."""
        return BrokerAddress(**{"host": "127.0.0.1", "port": self.port, "client_id": "bridge", **changes})

    def start(self) -> None:
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["mosquitto", "-c", str(self._folder / "mosquitto.conf")],
                env={**os.environ, "PATH": _PATH}, stdout=log, stderr=log,
            )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, with all that it has retained."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGCONT)
        self.kill()

    def _run(self, *command: str) -> None:
        subprocess.run(command, env={**os.environ, "PATH": _PATH}, check=True, capture_output=True)


class Listener:
    """What a broker sends to a client that subscribes to everything, in order."""

    def __init__(self) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self.subscribed = threading.Event()

    def topic(self, topic: str) -> list[bytes]:
        """The payloads of one topic."""
        return [message.payload for message in list(self.messages) if message.topic == topic]

    def retained(self) -> dict[str, bytes]:
        """What it has been sent last of each topic, without what was removed."""
        last = {message.topic: message.payload for message in list(self.messages)}
        return {topic: payload for topic, payload in last.items() if payload}

    def wait_for(self, topic: str, payload: bytes) -> None:
        """Waits until this is the last message of the topic."""
        wait_until(lambda: self.topic(topic)[-1:] == [payload], f"{topic}: {payload!r}, not {self.topic(topic)[-1:]}")


@contextmanager
def listener_of(broker: Mosquitto, password: str = "") -> Iterator[Listener]:
    """Subscribes to all topics, until the block ends; connects again by itself."""
    listener = Listener()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.reconnect_delay_set(1, 1)
    if password:
        client.username_pw_set("listener", password)
    client.on_connect = lambda *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: listener.subscribed.set()
    client.on_disconnect = lambda *_: listener.subscribed.clear()
    client.on_message = lambda _client, _data, message: listener.messages.append(message)
    client.connect_async("127.0.0.1", broker.port)
    client.loop_start()
    try:
        assert listener.subscribed.wait(30), "the broker does not answer"
        yield listener
    finally:
        client.disconnect()
        client.loop_stop()
