"""Searches the local network for cameras: WS-Discovery, a question by UDP multicast that each camera answers.

The answers come from anyone on the network: their number and size are bounded, and a camera is asked only at the
address that its answer came from.
"""

from __future__ import annotations

import errno
import fcntl
import math
import re
import selectors
import socket
import struct
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Self
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from streamdet.config.addresses import has_control
from streamdet.discovery.soap import ENVELOPE, find_all, raw_text_of, read_xml
from streamdet.errors import StreamdetError
from streamdet.security.plain_text import plain

# WS-Discovery, April 2005, which ONVIF uses.
_ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
_DISCOVERY = "http://schemas.xmlsoap.org/ws/2005/04/discovery"
_ANYONE = "urn:schemas-xmlsoap-org:ws:2005:04:discovery"
_PORT = 3702
_GROUP_4, _GROUP_6 = "239.255.255.250", "ff02::c"
# Profile S and T devices answer to the first, some others only to the second.
_TYPES = (
    ("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter"),
    ("http://www.onvif.org/ver10/device/wsdl", "Device"),
)
_SCOPE = "onvif://www.onvif.org/"
# SOAP over UDP: a multicast may be lost, so each is sent again.
_REPEAT_SECONDS = (0.0, 0.2, 0.6)
_MAX_CAMERAS = 256
_MAX_DATAGRAM_BYTES = 1 << 16
_RECEIVE_BYTES = 1 << 21
# Of one machine: a recorder may answer for each of its cameras, to each of our questions.
_MAX_ANSWERS_PER_ADDRESS = 64
_MAX_ADDRESSES = 4096
_MAX_SERVICES = 8
_MAX_URL_CHARACTERS = 1024
_MAX_SCOPES = 64
_MAX_TEXT_CHARACTERS = 100
# linux/if.h and linux/sockios.h
_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_LOOPBACK, _IFF_MULTICAST = 0x1, 0x8, 0x1000
# linux/in.h: struct ip_mreqn of group, own address, interface.
_IP_MREQN = "4s4si"
_SO_BINDTODEVICE = 25
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One camera that answered, or was named by the user.

    Attributes:
        host: the IP address that the answer came from, of a link-local one with its interface (fe80::1%eth0); or the
            name or address that the user gave.
        services: addresses of its device service, the best first, as it sent them; at least one.
        device: its own id; "" where it has none.
        name: as its owner or maker called it; "" where unknown.
        hardware: its model, as it reports it without a login; "" where unknown.
    """

    host: str
    services: tuple[str, ...]
    device: str = ""
    name: str = ""
    hardware: str = ""


@dataclass(slots=True)
class Search:
    """What a search has found so far.

    Attributes:
        interfaces: that were searched.
        is_cut: whether more cameras answered than are taken.
    """

    interfaces: tuple[str, ...] = ()
    is_cut: bool = False
    _found: set[tuple[str, str]] = field(default_factory=set)
    _answers: Counter[str] = field(default_factory=Counter)

    def run(self, interfaces: Sequence[str], seconds: float) -> Iterator[Answer]:
        """Yields each camera when it answers.

        Args:
            interfaces: names of network interfaces; all usable ones where empty.
            seconds: until the search ends, above 0.

        Raises:
            StreamdetError: an interface does not exist, or nothing could be sent.
        """
        known = dict(_interfaces())
        unknown = [name for name in interfaces if name not in known]
        if unknown:
            message = f"there is no interface {plain(unknown[0], 40)!r}; there are {', '.join(known)}"
            raise StreamdetError(message)
        names = tuple(dict.fromkeys(interfaces)) or usable_interfaces()
        questions = [uuid.uuid4() for _ in _TYPES]
        started = time.monotonic()
        with ExitStack() as stack:
            doors = [stack.enter_context(door) for name in names for door in _doors_of(name)]
            selector = stack.enter_context(selectors.DefaultSelector())
            for door in doors:
                selector.register(door.socket, selectors.EVENT_READ)
            sends = [started + later for later in _REPEAT_SECONDS]
            while (now := time.monotonic()) < started + seconds:
                if now >= sends[0]:
                    sends = [*sends[1:], math.inf]
                    sent = [door.interface for door in doors if door.send(questions)]
                    self.interfaces = tuple(dict.fromkeys([*self.interfaces, *sent]))
                    if not self.interfaces:
                        raise StreamdetError(_nowhere(interfaces))
                for key, _ in selector.select(max(0.0, min(started + seconds, sends[0]) - now)):
                    ours: socket.socket = key.fileobj  # type: ignore[assignment] # what was registered
                    yield from self._receive(ours, questions)

    def _receive(self, ours: socket.socket, questions: Sequence[uuid.UUID]) -> Iterator[Answer]:
        """Reads a datagram: the cameras in it that are new, of a recorder often several."""
        try:
            data, sender = ours.recvfrom(_MAX_DATAGRAM_BYTES)
        except OSError:
            return  # such as that a network has gone; the others go on
        host = _host_of(sender)
        if host is None or (host not in self._answers and len(self._answers) >= _MAX_ADDRESSES):
            return
        self._answers[host] += 1
        if self._answers[host] > _MAX_ANSWERS_PER_ADDRESS:
            return
        for answer in read_answers(data, host, questions):
            if (host, answer.device) in self._found:
                continue
            if len(self._found) >= _MAX_CAMERAS:
                self.is_cut = True
                return
            self._found.add((host, answer.device))
            yield answer


def read_answers(data: bytes, host: str, questions: Sequence[uuid.UUID]) -> Iterator[Answer]:
    """The cameras in a datagram; none where it is not an answer to one of our questions, or not of a camera.

    Args:
        data: as it was received.
        host: the IP address of its sender.
        questions: ids of what was asked.
    """
    try:
        root = read_xml(data)
    except ValueError:
        return
    relates = _UUID.search(raw_text_of(root, "Header", "RelatesTo"))
    if relates is None or uuid.UUID(relates[0]) not in questions:
        return
    for match in find_all(root, "Body", "ProbeMatches", "ProbeMatch"):
        answer = _read_match(match, host)
        if answer is not None:
            yield answer


def named(host: str) -> Answer:
    """A camera that the user names, with the path that ONVIF demands.

    Args:
        host: name or address, and a port where it is not 80: "192.0.2.5", "camera.lan:8080", "[2001:db8::5]:8080".

    Raises:
        StreamdetError: it is not one.
    """
    bare = f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
    try:
        parts = urlsplit(f"http://{bare}")
        is_host = parts.netloc == bare and parts.hostname and "@" not in bare and parts.port != 0
    except ValueError:
        is_host = False
    if not is_host or has_control(host) or re.search(r"\s", host):
        message = f"{plain(host, 60)!r} is not a host; write 192.0.2.5, camera.lan or camera.lan:8080"
        raise StreamdetError(message)
    return Answer(parts.hostname or "", (f"http://{bare}/onvif/device_service",))


def usable_interfaces() -> tuple[str, ...]:
    """Names of the interfaces that are up and can multicast, without loopback."""
    wanted = _IFF_UP | _IFF_MULTICAST
    return tuple(name for name, flags in _interfaces() if flags & (wanted | _IFF_LOOPBACK) == wanted)


def _interfaces() -> list[tuple[str, int]]:
    """Names and flags of all interfaces."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has gone meanwhile
                answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
                found.append((name, struct.unpack("16sH14x", answer)[1]))
    return found


class _Door:
    """Where questions leave through one interface, by one version of IP, and answers come in."""

    def __init__(self, interface: str, family: socket.AddressFamily) -> None:
        index = socket.if_nametoindex(interface)
        self.interface = interface
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            with suppress(PermissionError):  # answers from other networks come in, too, and do no harm
                self.socket.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, interface.encode() + b"\0")
            if family is socket.AF_INET:
                out = struct.pack(_IP_MREQN, b"\0" * 4, b"\0" * 4, index)
                self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, out)
            else:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            # Cameras answer all at once.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            self.socket.bind(("", 0))
            self.socket.setblocking(False)  # noqa: FBT003 - takes no keywords
        except OSError:
            self.socket.close()
            raise
        self._group = (_GROUP_4 if family is socket.AF_INET else _GROUP_6, _PORT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, questions: Sequence[uuid.UUID]) -> bool:
        """Asks all questions; false where that is not possible, at least now."""
        try:
            for (namespace, kind), question in zip(_TYPES, questions, strict=True):
                self.socket.sendto(_probe(namespace, kind, question), self._group)
        except OSError:
            return False
        return True


def _doors_of(interface: str) -> Iterator[_Door]:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # it has no such addresses
            yield _Door(interface, family)


def _nowhere(interfaces: Sequence[str]) -> str:
    if interfaces:
        return f"{', '.join(interfaces)} cannot be searched: it is not up, or has no address"
    return "there is no network to search: no interface is up, has an address and can multicast"


def _probe(namespace: str, kind: str, question: uuid.UUID) -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        f'<s:Envelope xmlns:s="{ENVELOPE}" xmlns:a="{_ADDRESSING}"><s:Header>'
        f"<a:Action>{_DISCOVERY}/Probe</a:Action><a:MessageID>urn:uuid:{question}</a:MessageID>"
        f"<a:To>{_ANYONE}</a:To></s:Header>"
        f'<s:Body><d:Probe xmlns:d="{_DISCOVERY}"><d:Types xmlns:n="{namespace}">n:{kind}</d:Types></d:Probe>'
        "</s:Body></s:Envelope>"
    ).encode()


def _host_of(sender: tuple[str, int] | tuple[str, int, int, int]) -> str | None:
    """The address of a sender; None for one that no camera has."""
    host = sender[0].partition("%")[0]
    address = ip_address(host)
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return None
    if len(sender) == 4 and address.is_link_local:
        try:
            return f"{host}%{socket.if_indextoname(sender[3])}"
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENODEV):
                raise
            return None
    return host


def _read_match(match: Element, host: str) -> Answer | None:
    scopes = raw_text_of(match, "Scopes").split()[:_MAX_SCOPES]
    types = raw_text_of(match, "Types")
    # Printers, too, answer to "Device".
    if "NetworkVideoTransmitter" not in types and not any(scope.startswith(_SCOPE) for scope in scopes):
        return None
    services = [each for each in raw_text_of(match, "XAddrs").split()[:_MAX_SERVICES] if _is_http(each)]
    services.sort(key=lambda each: not is_at(each, host))
    own = f"http://[{host}]/onvif/device_service" if ":" in host else f"http://{host}/onvif/device_service"
    device = _UUID.search(raw_text_of(match, "EndpointReference", "Address"))
    return Answer(
        host,
        tuple(services) or (own,),
        device[0].lower() if device else "",
        _scope(scopes, "name"),
        _scope(scopes, "hardware"),
    )


def is_at(address: str, host: str) -> bool:
    """Whether a url names this host."""
    named_host = urlsplit(address).hostname or ""
    try:
        return ip_address(named_host.partition("%")[0]) == ip_address(host.partition("%")[0])
    except ValueError:
        return named_host.lower() == host.lower()


def _is_http(address: str) -> bool:
    if len(address) > _MAX_URL_CHARACTERS or has_control(address):
        return False
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _scope(scopes: Sequence[str], name: str) -> str:
    """What a camera says of itself: onvif://www.onvif.org/name/Front%20door."""
    prefix = f"{_SCOPE}{name}/"
    found = next((scope.removeprefix(prefix) for scope in scopes if scope.startswith(prefix)), "")
    return plain(unquote(found).replace("_", " "), _MAX_TEXT_CHARACTERS)
