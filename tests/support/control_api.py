"""A whole daemon with its control API in a thread; only the detector is a stand-in."""

from __future__ import annotations

import http.client
import json
import re
import threading
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any, Self

from jsonschema import Draft202012Validator

from streamdet.assets import sample_clip
from streamdet.bench.stand_in import StandIn
from streamdet.client.control import _UnixConnection, ask
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.errors import ControlError
from streamdet.service.daemon import Daemon
from support.processes import free_ports
from support.waiting import join, wait_until

Json = dict[str, Any]
OPENAPI: Json = json.loads(resources.files("streamdet.service.control").joinpath("openapi.json").read_bytes())


class Api:
    """A daemon in a thread, with two streams in its file."""

    def __init__(self, folder: Path, control: str = "", more: str = "") -> None:
        self.config, self.socket = folder / "streamdet.toml", folder / "c.sock"
        control = control or f'path = "{self.socket}"'
        port, _ = free_ports()
        stream = f'url = "{sample_clip()}"\nloop = true\n'
        self.config.write_text(
            f'[publisher]\nendpoint = "tcp://127.0.0.1:{port}"\n[metrics]\nendpoint = "127.0.0.1:0"\n'
            f"[control]\n{control}\n{more}"
            f'[[streams]]\nname = "east"\n{stream}[[streams]]\nname = "west"\n{stream}'
        )
        self.daemon = Daemon(load_config(self.config), self.config, load=lambda *_: DetectorPool([StandIn()]))
        self.thread = threading.Thread(target=self.daemon.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        wait_until(self._is_ready, "the daemon")
        return self

    def _is_ready(self) -> bool:
        try:
            ask(self.socket, "GET", "/v1/streams")
        except ControlError:
            return False  # it does not listen yet
        return True

    def __exit__(self, *_: object) -> None:
        self.daemon.stop()
        join(self.thread)

    def request(self, method: str, path: str, body: object = None, **more: str) -> tuple[int, Json]:
        """Status and answer; both are checked against the description."""
        with closing(_UnixConnection(self.socket, 30)) as connection:
            data = None if body is None else json.dumps(body).encode()
            headers = {} if body is None else {"Content-Type": "application/json"}
            headers |= {name.replace("_", "-"): value for name, value in more.items()}
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        check_answer(method, path.partition("?")[0], response, answer)
        return response.status, answer

    def picture(self, stream: str, query: str = "") -> tuple[int, bytes]:
        with closing(_UnixConnection(self.socket, 30)) as connection:
            connection.request("GET", f"/v1/streams/{stream}/picture{query}")
            response = connection.getresponse()
            described = OPENAPI["paths"]["/v1/streams/{name}/picture"]["get"]["responses"]
            assert str(response.status) in described
            return response.status, response.read()

    def streams(self) -> dict[str, Json]:
        return {stream["name"]: stream for stream in self.request("GET", "/v1/streams")[1]["streams"]}


def check_answer(method: str, path: str, response: http.client.HTTPResponse, answer: Json) -> None:
    template = re.sub("/claims/[^/]+", "/claims/{id}", re.sub("/streams/[^/]+", "/streams/{name}", path))
    described = OPENAPI["paths"][template][method.lower()]["responses"][str(response.status)]
    if "$ref" in described:
        described = OPENAPI["components"]["responses"][described["$ref"].rpartition("/")[2]]
    schema = described["content"][response.headers["Content-Type"]]["schema"]
    errors = [error.message for error in validator(schema).iter_errors(answer)]
    assert errors == []


def validator(schema: Json) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": OPENAPI["components"]})
