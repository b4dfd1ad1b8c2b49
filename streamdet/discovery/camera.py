"""Asks one camera for its model and its streams: ONVIF's Device, Media and Media2 services.

A camera is asked at the address that it answered from, whatever addresses it names: otherwise any machine of the
network could have us, or the daemon that is configured from this, log in somewhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from streamdet.config.addresses import MAX_URL_CHARACTERS, UrlKind, kind_of_url
from streamdet.discovery.search import Answer, is_at
from streamdet.discovery.soap import SoapClient, find, find_all, new_budget, raw_text_of, text_of
from streamdet.errors import SourceError
from streamdet.types import Reason

_DEVICE = "http://www.onvif.org/ver10/device/wsdl"
_MEDIA = "http://www.onvif.org/ver10/media/wsdl"
_MEDIA2 = "http://www.onvif.org/ver20/media/wsdl"
_SCHEMA = "http://www.onvif.org/ver10/schema"
_STREAM_SETUP = (
    f'<t:StreamSetup xmlns:o="{_SCHEMA}"><o:Stream>RTP-Unicast</o:Stream>'
    "<o:Transport><o:Protocol>RTSP</o:Protocol></o:Transport></t:StreamSetup>"
)
# A recorder has several for each of its channels.
_MAX_PROFILES = 64
_MAX_TOKEN_CHARACTERS = 256
_MAX_PIXELS = 1 << 16
_MAX_FPS = 1000.0
# FFmpeg's names, as in `streamdet check --probe`.
_CODECS = {"h264": "h264", "h265": "hevc", "jpeg": "mjpeg", "mpeg4": "mpeg4", "mpv4-es": "mpeg4"}
# After these a camera may answer other questions.
_MAY_KNOW_OTHERS = (Reason.REFUSED, Reason.DECODE_ERROR)
_YEARS = range(1970, 2200)
_STREAM_KINDS = (UrlKind.RTSP, UrlKind.RTSPS, UrlKind.HTTP, UrlKind.HTTPS)


@dataclass(frozen=True, slots=True)
class Profile:
    """One stream that a camera offers.

    Attributes:
        name: as its owner or maker called it.
        codec: FFmpeg's name, such as "h264"; "" where unknown.
        width: in pixels; 0 where unknown.
        height: in pixels; 0 where unknown.
        fps: that the encoder is limited to; None where unknown.
        url: without a login; None where the camera gives none that can be used.
        problem: why there is no url, or what is peculiar about it, in one line; "" for nothing.
    """

    name: str
    codec: str
    width: int
    height: int
    fps: float | None
    url: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Camera:
    """What is known of a camera.

    Attributes:
        host: the IP address that it answered from, or the host that the user gave.
        device: its own id; "" where it has none.
        name: as its owner or maker called it; "" where unknown.
        manufacturer: "" where unknown.
        model: "" where unknown.
        firmware: "" where unknown.
        clock_skew_seconds: how far its clock is ahead of ours, to a second; None where unknown.
        profiles: its streams, the largest picture first.
        reason: why not all is known; None when it is.
        detail: the same in one line, without secrets.
    """

    host: str
    device: str = ""
    name: str = ""
    manufacturer: str = ""
    model: str = ""
    firmware: str = ""
    clock_skew_seconds: float | None = None
    profiles: tuple[Profile, ...] = ()
    reason: Reason | None = None
    detail: str = ""


def ask_camera(answer: Answer, login: tuple[str, str] | None, seconds: float, *, other_hosts: bool = False) -> Camera:
    """Asks a camera for everything; what it does not answer is left out, with the reason.

    Args:
        answer: where it is.
        login: user and password; None for none.
        seconds: for all questions together.
        other_hosts: whether addresses that it names on other hosts are used as they are.
    """
    return interview(answer, SoapClient(new_budget(seconds), login), other_hosts=other_hosts)


def interview(answer: Answer, client: SoapClient, *, other_hosts: bool) -> Camera:
    """The same, by a client that is there."""
    return _Interview(answer, client, other_hosts=other_hosts).run()


class _Interview:
    """The questions to one camera, one after the other."""

    def __init__(self, answer: Answer, client: SoapClient, *, other_hosts: bool) -> None:
        self._host = answer.host
        self._other_hosts = other_hosts
        self._device = self._at_home(answer.services[0])
        self._client = client
        self._camera = Camera(answer.host, answer.device, name=answer.name, model=answer.hardware)

    def run(self) -> Camera:
        try:
            self._read_clock()
            self._read_device()
            self._camera = replace(self._camera, profiles=tuple(self._profiles()))
        except SourceError as error:
            return replace(self._camera, reason=error.reason, detail=error.detail)
        if not self._camera.profiles:
            return replace(self._camera, reason=Reason.NO_VIDEO, detail="it offers no stream with video")
        return self._camera

    def _at_home(self, address: str) -> str:
        """The same service on the camera itself, unless the user trusts what cameras name."""
        return address if self._other_hosts else at_host(address, self._host)

    def _read_clock(self) -> None:
        """Takes over its time: a login with another time than the camera's is refused."""
        asked = time.time()
        try:
            answer = self._client.ask(self._device, _DEVICE, "GetSystemDateAndTime", logged_in=False)
        except SourceError as error:
            if error.reason in (Reason.UNAUTHORIZED, *_MAY_KNOW_OTHERS):
                return  # its clock may be right
            raise
        at = _time_in(find(answer, "SystemDateAndTime", "UTCDateTime"))
        if at is None:
            return
        # Its whole seconds are half a second late on average; ours are those of the middle.
        skew = at.timestamp() + 0.5 - (asked + time.time()) / 2
        self._client.clock_skew_seconds = skew
        self._camera = replace(self._camera, clock_skew_seconds=round(skew))

    def _read_device(self) -> None:
        answer = self._ask_if_known(self._device, _DEVICE, "GetDeviceInformation")
        if answer is not None:
            self._camera = replace(
                self._camera,
                manufacturer=text_of(answer, "Manufacturer"),
                model=text_of(answer, "Model") or self._camera.model,
                firmware=text_of(answer, "FirmwareVersion"),
            )

    def _profiles(self) -> list[Profile]:
        services = self._services()
        profiles: list[Profile] = []
        if _MEDIA2 in services:
            profiles = list(self._media2_profiles(services[_MEDIA2]))
        if not profiles:
            profiles = list(self._media_profiles(services.get(_MEDIA, self._device)))
        return sorted(profiles, key=lambda each: each.width * each.height, reverse=True)

    def _services(self) -> dict[str, str]:
        """Addresses of its services by their namespaces."""
        answer = self._ask_if_known(
            self._device, _DEVICE, "GetServices", "<t:IncludeCapability>false</t:IncludeCapability>"
        )
        found = [(raw_text_of(each, "Namespace"), raw_text_of(each, "XAddr")) for each in find_all(answer, "Service")]
        if not found:
            # Of before 2011.
            answer = self._ask_if_known(self._device, _DEVICE, "GetCapabilities", "<t:Category>Media</t:Category>")
            found = [(_MEDIA, raw_text_of(answer, "Capabilities", "Media", "XAddr"))]
        return {namespace: self._at_home(address) for namespace, address in found if _is_service(address)}

    def _media2_profiles(self, service: str) -> Iterator[Profile]:
        answer = self._ask_if_known(service, _MEDIA2, "GetProfiles", "<t:Type>VideoEncoder</t:Type>")
        for each in list(find_all(answer, "Profiles"))[:_MAX_PROFILES]:
            encoder = find(each, "Configurations", "VideoEncoder")
            token = _token_of(each)
            if encoder is not None and token:
                body = f"<t:Protocol>RTSP</t:Protocol><t:ProfileToken>{escape(token)}</t:ProfileToken>"
                yield self._with_url(_profile(each, encoder), service, _MEDIA2, body)

    def _media_profiles(self, service: str) -> Iterator[Profile]:
        answer = self._client.ask(service, _MEDIA, "GetProfiles")
        for each in list(find_all(answer, "Profiles"))[:_MAX_PROFILES]:
            encoder = find(each, "VideoEncoderConfiguration")
            token = _token_of(each)
            if encoder is not None and token:
                body = f"{_STREAM_SETUP}<t:ProfileToken>{escape(token)}</t:ProfileToken>"
                yield self._with_url(_profile(each, encoder), service, _MEDIA, body)

    def _with_url(self, profile: Profile, service: str, namespace: str, body: str) -> Profile:
        try:
            answer = self._client.ask(service, namespace, "GetStreamUri", body)
        except SourceError as error:
            if error.reason not in _MAY_KNOW_OTHERS:
                raise
            return replace(profile, problem=error.detail)
        url = raw_text_of(answer, "Uri") or raw_text_of(answer, "MediaUri", "Uri")
        try:
            usable = len(url) <= MAX_URL_CHARACTERS and kind_of_url(url) in _STREAM_KINDS
        except ValueError:
            usable = False
        if not usable:
            return replace(profile, problem="its url cannot be used")
        if is_at(url, self._host):
            return replace(profile, url=at_host(url, self._host))
        elsewhere = _host_in(url)
        if self._other_hosts:
            return replace(profile, url=at_host(url, elsewhere), problem=f"is on another host, {elsewhere}")
        return replace(
            profile,
            url=at_host(url, self._host),
            problem=f"the camera names {elsewhere} in its url; --other-hosts uses that",
        )

    def _ask_if_known(self, service: str, namespace: str, name: str, body: str = "") -> Element | None:
        """Asks what not every camera can answer; None where this one cannot."""
        try:
            return self._client.ask(service, namespace, name, body)
        except SourceError as error:
            # After a login that is refused no other question is better, and cameras lock out whom they refuse often.
            if error.reason not in _MAY_KNOW_OTHERS:
                raise
            return None


def at_host(address: str, host: str) -> str:
    """The address with this host, with its own port, and without a login."""
    parts = urlsplit(address)
    port = "" if parts.port is None else f":{parts.port}"
    return parts._replace(netloc=f"{f'[{host}]' if ':' in host else host}{port}", fragment="").geturl()


def _host_in(url: str) -> str:
    return (urlsplit(url).hostname or "")[:64]


def _is_service(address: str) -> bool:
    try:
        return kind_of_url(address) in (UrlKind.HTTP, UrlKind.HTTPS)
    except ValueError:
        return False


def _token_of(profile: Element) -> str:
    token = profile.get("token", "")
    return token if len(token) <= _MAX_TOKEN_CHARACTERS else ""


def _profile(profile: Element, encoder: Element) -> Profile:
    codec = text_of(encoder, "Encoding").lower()
    return Profile(
        text_of(profile, "Name"),
        _CODECS.get(codec, codec),
        int(_number(raw_text_of(encoder, "Resolution", "Width"), _MAX_PIXELS)),
        int(_number(raw_text_of(encoder, "Resolution", "Height"), _MAX_PIXELS)),
        _number(raw_text_of(encoder, "RateControl", "FrameRateLimit"), _MAX_FPS) or None,
    )


def _number(text: str, most: float) -> float:
    """A number within bounds; 0 for anything else."""
    try:
        value = float(text[:20])
    except ValueError:
        return 0.0
    return value if 0 < value <= most else 0.0


def _time_in(element: Element | None) -> datetime | None:
    """The time that a camera reports; None where it is none."""
    try:
        date = [int(raw_text_of(element, "Date", name)[:4]) for name in ("Year", "Month", "Day")]
        clock = [int(raw_text_of(element, "Time", name)[:4]) for name in ("Hour", "Minute", "Second")]
        if date[0] not in _YEARS:
            return None
        return datetime(date[0], date[1], date[2], clock[0], clock[1], min(clock[2], 59), tzinfo=UTC)
    except ValueError:
        return None
