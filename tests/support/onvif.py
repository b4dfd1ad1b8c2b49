"""Cameras that speak ONVIF, with real checks of the login; and others that only pretend to."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from xml.sax.saxutils import escape

REALM = "a camera"
# What the specification allows a clock to be off.
_TOKEN_SECONDS = 5.0
_NS = (
    'xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:tds="http://www.onvif.org/ver10/device/wsdl" '
    'xmlns:trt="http://www.onvif.org/ver10/media/wsdl" xmlns:tr2="http://www.onvif.org/ver20/media/wsdl" '
    'xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:ter="http://www.onvif.org/ver10/error"'
)
NOT_AUTHORIZED = (
    "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode></s:Code>"
    '<s:Reason><s:Text xml:lang="en">Sender not authorized</s:Text></s:Reason></s:Fault>'
)
UNKNOWN = (
    "<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>ter:ActionNotSupported</s:Value></s:Subcode>"
    '</s:Code><s:Reason><s:Text xml:lang="en">Not supported</s:Text></s:Reason></s:Fault>'
)
MAIN = ("main", "H264", 1920, 1080, 25, "/main")
SUB = ("sub", "H264", 640, 360, 15, "/sub")


@dataclass
class Behaviour:
    """How a camera is, and what is wrong with it.

    Attributes:
        host: that it names in its addresses.
        login: user and password that it wants.
        asks_for: how it wants the login.
        media2: whether it has the newer service, and only there the codec H265.
        services: whether it knows GetServices.
        skew_seconds: how far its clock is ahead.
        profiles: name, encoding, width, height, frames per second and path of each stream.
        answers: raw answers to operations; whole HTTP answers where they begin with "HTTP/".
        silent: operations that it never answers; "*" for all.
        drip_seconds: between two bytes of an answer.
    """

    host: str = "127.0.0.1"
    login: tuple[str, str] | None = ("admin", "se<r&t")
    asks_for: Literal["digest", "token", "basic"] = "token"
    media2: bool = True
    services: bool = True
    skew_seconds: float = 0.0
    model: str = "M1135"
    profiles: tuple[tuple[str, str, int, int, float, str], ...] = (MAIN, SUB)
    answers: dict[str, bytes] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    drip_seconds: float = 0.0
    device: str = field(default_factory=lambda: str(uuid.uuid4()))


class OnvifCamera(ThreadingHTTPServer):
    """The HTTP server of one camera.

    Attributes:
        asked: operations in the order in which they came, with what the camera thought of the login.
        heads: of all requests.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, behaviour: Behaviour, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.behaviour = behaviour
        self.asked: list[tuple[str, str]] = []
        self.heads: list[str] = []
        self.closing = threading.Event()
        self.nonce = uuid.uuid4().hex

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: OnvifCamera
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self._send(b"", 404)

    def do_POST(self) -> None:
        camera, behaviour = self.server, self.server.behaviour
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        camera.heads.append(f"{self.requestline}\n{self.headers}")
        match = re.search(r"<s:Body><t:(\w+)", body)
        name = match[1] if match else ""
        verdict = "free" if name == "GetSystemDateAndTime" else self._verdict(body)
        camera.asked.append((name, verdict))
        if behaviour.silent & {name, "*"}:
            camera.closing.wait()
            return
        raw = behaviour.answers.get(name, behaviour.answers.get("*"))
        if raw is not None:
            if raw.startswith(b"HTTP/"):
                self._write(raw)
                self.close_connection = True
            else:
                self._send(raw)
        elif verdict in ("none", "refused"):
            self._refuse()
        else:
            text = answer(name, body, behaviour, camera.port)
            self._send(envelope(text or UNKNOWN), 200 if text else 500)

    def _verdict(self, body: str) -> str:
        behaviour = self.server.behaviour
        if behaviour.login is None:
            return "free"
        user, password = behaviour.login
        if behaviour.asks_for == "token":
            values = dict(re.findall(r"<\w:(Username|Password|Nonce|Created)\b[^>]*>([^<]*)<", body))
            if len(values) < 4:
                return "none"
            created = values["Created"]
            nonce = base64.b64decode(values["Nonce"])
            digest = hashlib.sha1(nonce + created.encode() + password.encode(), usedforsecurity=False).digest()
            age = time.time() + behaviour.skew_seconds - datetime.fromisoformat(created).timestamp()
            good = values["Username"] == escape(user) and base64.b64decode(values["Password"]) == digest
            return "good" if good and abs(age) < _TOKEN_SECONDS else "refused"
        header = self.headers.get("Authorization", "")
        if not header.startswith("Digest "):
            return "refused" if header else "none"
        values = dict(re.findall(r'(\w+)="?([^",]*)"?', header))

        def md5(*parts: str) -> str:
            return hashlib.md5(":".join(parts).encode(), usedforsecurity=False).hexdigest()

        secret, request = md5(user, REALM, password), md5("POST", self.path)
        whole = md5(secret, self.server.nonce, values.get("nc", ""), values.get("cnonce", ""), "auth", request)
        return "good" if values.get("response") == whole and values.get("username") == user else "refused"

    def _refuse(self) -> None:
        asks_for = self.server.behaviour.asks_for
        if asks_for == "token":
            self._send(envelope(NOT_AUTHORIZED), 400)
            return
        challenge = f'Basic realm="{REALM}"'
        if asks_for == "digest":
            challenge = f'Digest realm="{REALM}", qop="auth", nonce="{self.server.nonce}", algorithm=MD5'
        self._send(b"", 401, {"WWW-Authenticate": challenge})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self._write(body)

    def _write(self, data: bytes) -> None:
        if not self.server.behaviour.drip_seconds:
            self.wfile.write(data)
            return
        for at in range(len(data)):
            self.wfile.write(data[at : at + 1])
            if self.server.closing.wait(self.server.behaviour.drip_seconds):
                return


def envelope(body: str) -> bytes:
    return f'<?xml version="1.0"?><s:Envelope {_NS}><s:Body>{body}</s:Body></s:Envelope>'.encode()


def answer(name: str, body: str, behaviour: Behaviour, port: int) -> str:
    """The content of the body; "" for an operation that is not known."""
    base = f"http://{behaviour.host}:{port}"
    newer = 'xmlns:t="http://www.onvif.org/ver20/media/wsdl"' in body
    media = "tr2" if newer else "trt"
    services = {"http://www.onvif.org/ver10/media/wsdl": "/onvif/media"}
    if behaviour.media2:
        services["http://www.onvif.org/ver20/media/wsdl"] = "/onvif/media2"
    if name == "GetSystemDateAndTime":
        at = datetime.fromtimestamp(time.time() + behaviour.skew_seconds, UTC)
        clock = f"<tt:Hour>{at.hour}</tt:Hour><tt:Minute>{at.minute}</tt:Minute><tt:Second>{at.second}</tt:Second>"
        date = f"<tt:Year>{at.year}</tt:Year><tt:Month>{at.month}</tt:Month><tt:Day>{at.day}</tt:Day>"
        utc = f"<tt:UTCDateTime><tt:Time>{clock}</tt:Time><tt:Date>{date}</tt:Date></tt:UTCDateTime>"
        return f"<tds:{name}Response><tds:SystemDateAndTime>{utc}</tds:SystemDateAndTime></tds:{name}Response>"
    if name == "GetDeviceInformation":
        known = {"Manufacturer": "Acme", "Model": behaviour.model, "FirmwareVersion": "1.2"}
        inner = "".join(f"<tds:{key}>{value}</tds:{key}>" for key, value in known.items())
    elif name == "GetServices" and behaviour.services:
        inner = "".join(
            f"<tds:Service><tds:Namespace>{namespace}</tds:Namespace><tds:XAddr>{base}{path}</tds:XAddr></tds:Service>"
            for namespace, path in services.items()
        )
    elif name == "GetCapabilities":
        address = f"<tt:XAddr>{base}/onvif/media</tt:XAddr>"
        inner = f"<tds:Capabilities><tt:Media>{address}</tt:Media></tds:Capabilities>"
    elif name == "GetProfiles" and (behaviour.media2 or not newer):
        inner = "".join(_profile(each, newer=newer) for each in behaviour.profiles)
        # Of sound alone.
        inner += f'<{media}:Profiles token="audio"><tt:Name>audio</tt:Name></{media}:Profiles>'
    elif name == "GetStreamUri":
        found = re.search(r"ProfileToken>([^<]*)<", body)
        token = found[1] if found else ""
        path = next((each[5] for each in behaviour.profiles if each[0] == token), "/unknown")
        uri = escape(path if "://" in path else f"rtsp://{behaviour.host}:554{path}")
        inner = f"<tr2:Uri>{uri}</tr2:Uri>" if newer else f"<trt:MediaUri><tt:Uri>{uri}</tt:Uri></trt:MediaUri>"
    else:
        return ""
    prefix = media if name in ("GetProfiles", "GetStreamUri") else "tds"
    return f"<{prefix}:{name}Response>{inner}</{prefix}:{name}Response>"


def _profile(profile: tuple[str, str, int, int, float, str], *, newer: bool) -> str:
    name, encoding, width, height, fps, _ = profile
    size = f"<tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution>"
    rate = f"<tt:RateControl><tt:FrameRateLimit>{fps}</tt:FrameRateLimit></tt:RateControl>"
    # The older service does not know the newer codec.
    encoding = encoding if newer else encoding.replace("H265", "H264")
    inner = f"<tt:Encoding>{encoding}</tt:Encoding>{size}{rate}"
    if newer:
        encoder = f"<tr2:Configurations><tr2:VideoEncoder>{inner}</tr2:VideoEncoder></tr2:Configurations>"
        return f'<tr2:Profiles token="{name}"><tr2:Name>{name}</tr2:Name>{encoder}</tr2:Profiles>'
    encoder = f"<tt:VideoEncoderConfiguration>{inner}</tt:VideoEncoderConfiguration>"
    return f'<trt:Profiles token="{name}"><tt:Name>{name}</tt:Name>{encoder}</trt:Profiles>'


@contextmanager
def onvif_camera(address: tuple[str, int] = ("127.0.0.1", 0), **behaviour: Any) -> Iterator[OnvifCamera]:
    """A camera that is asked by its address."""
    camera = OnvifCamera(Behaviour(**{"host": address[0], **behaviour}), address)
    thread = threading.Thread(target=camera.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield camera
    finally:
        camera.closing.set()
        camera.shutdown()
        thread.join()
        camera.server_close()


def probe_match(
    question: str, services: str, device: str = "", scopes: str = "", types: str = "", others: Iterable[str] = ()
) -> bytes:
    """The answer of a camera to a search.

    Args:
        question: the id that it answers.
        services: its addresses.
        device: its own id.
        scopes: what it says of itself.
        types: of what kind it is.
        others: ids of more devices in the same answer.
    """
    scopes = scopes or "onvif://www.onvif.org/name/Front_Door onvif://www.onvif.org/hardware/M1135"
    matches = "".join(
        f"<d:ProbeMatch><a:EndpointReference><a:Address>urn:uuid:{each}</a:Address></a:EndpointReference>"
        f"<d:Types>{types or 'dn:NetworkVideoTransmitter'}</d:Types><d:Scopes>{scopes}</d:Scopes>"
        f"<d:XAddrs>{services}</d:XAddrs></d:ProbeMatch>"
        for each in (device or uuid.uuid4(), *others)
    )
    return (
        f'<?xml version="1.0"?><s:Envelope {_NS} xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
        'xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" '
        'xmlns:dn="http://www.onvif.org/ver10/network/wsdl">'
        f"<s:Header><a:RelatesTo>{question}</a:RelatesTo></s:Header>"
        f"<s:Body><d:ProbeMatches>{matches}</d:ProbeMatches></s:Body></s:Envelope>"
    ).encode()


def answer_searches(
    address: str, interface: str, reply: Callable[[str], Iterable[bytes]], ready: threading.Event
) -> None:
    """Answers searches by multicast from this address, until the process ends.

    Args:
        address: of this machine.
        interface: that has it.
        reply: returns the datagrams for a question's id.
        ready: is set when it listens.
    """
    index = socket.if_nametoindex(interface)
    is_six = ":" in address
    family = socket.AF_INET6 if is_six else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as ours, socket.socket(family, socket.SOCK_DGRAM) as out:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_six:
            group = socket.inet_pton(family, "ff02::c") + struct.pack("@I", index)
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            ours.bind(("ff02::c", 3702, 0, index))
            out.bind((address, 3702, 0, index))
        else:
            group = socket.inet_aton("239.255.255.250") + socket.inet_aton(address)
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            ours.bind(("239.255.255.250", 3702))
            out.bind((address, 3702))
        ready.set()
        while True:
            data, sender = ours.recvfrom(65536)
            found = re.search(rb"MessageID>([^<]+)<", data)
            for datagram in reply(found[1].decode()) if found else ():
                out.sendto(datagram, sender)
