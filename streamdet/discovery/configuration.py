"""Writes what was found as tables of the configuration, one for each camera.

A camera sends the same pictures as several streams of different sizes. The detector makes every picture smaller than
most of them, so the smallest stream that is not below its input costs the least; the others are comments.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence

from streamdet.discovery.camera import Camera, Profile
from streamdet.security.plain_text import plain
from streamdet.security.redact import MASK, redact

# The longer side of the input of the embedded weights.
_INPUT_PIXELS = 640
_MAX_NAME_CHARACTERS = 48
_OF_STREAMS = ("h264", "hevc")


def tables_of(cameras: Sequence[Camera], reference: str | None) -> str:
    """Lines for a configuration file, empty where no camera has a stream that can be used.

    Args:
        cameras: as they answered.
        reference: name of the variable or the credential that holds the login; None where no login is needed.
    """
    names: set[str] = set()
    lines: list[str] = []
    for camera in cameras:
        usable = [profile for profile in camera.profiles if profile.url is not None]
        if usable:
            lines += [*_table(camera, usable, reference, _name_of(camera, names)), ""]
    if lines and reference is not None:
        place = f"an environment variable, or a file {reference} in streamdet.secrets/ beside this file (mode 0600)"
        head = f"# ${{{reference}}} is user:password: {place}"
        lines = [head, "", *lines]
    return "\n".join(lines)


def _table(camera: Camera, profiles: Sequence[Profile], reference: str | None, name: str) -> Iterator[str]:
    chosen = choose(profiles)
    what = " ".join(filter(None, (camera.manufacturer, camera.model))) or camera.name or "a camera"
    yield f"# {plain(what)}, {camera.host}"
    yield "[[streams]]"
    yield f"name = {_quoted(name)}"
    for profile in (chosen, *(each for each in profiles if each is not chosen)):
        url = _with_login(profile, reference)
        if MASK in url:
            yield f"# {MASK} in this url is a password that the camera put there; write it as ${{NAME}}"
        if profile.problem:
            yield f"# {profile.problem}"
        sign = "" if profile is chosen else "# "
        yield f"{sign}url = {_quoted(url)}  # {describe(profile)}"


def choose(profiles: Sequence[Profile]) -> Profile:
    """The smallest that is not below the detector's input, if possible H.264 or H.265; the largest if all are below.

    Args:
        profiles: at least one, the largest first.
    """
    common = [profile for profile in profiles if profile.codec in _OF_STREAMS] or list(profiles)
    enough = [profile for profile in common if max(profile.width, profile.height) >= _INPUT_PIXELS]
    return enough[-1] if enough else common[0]


def describe(profile: Profile) -> str:
    """Such as "h264 1920x1080, 25 fps"."""
    size = f"{profile.width}x{profile.height}" if profile.width and profile.height else ""
    fps = f"{profile.fps:g} fps" if profile.fps else ""
    return ", ".join(filter(None, (" ".join(filter(None, (profile.codec, size))), fps))) or "unknown size"


def _with_login(profile: Profile, reference: str | None) -> str:
    """The url with a reference for the login; all else in it means only itself."""
    # A camera could otherwise have the daemon send it any secret: ${NAME} in its url would be replaced, too.
    url = redact(profile.url or "").replace("${", "$${")
    if reference is None:
        return url
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}${{{reference}}}@{rest}"


def _quoted(text: str) -> str:
    # A basic string of TOML is written as in JSON; urls and names have no control characters.
    return json.dumps(text, ensure_ascii=False)


def _name_of(camera: Camera, names: set[str]) -> str:
    """A name for the stream that no other one has, such as "front-door" or "m1135-192-0-2-5"."""
    own = _words(camera.name)
    place = _words(camera.host.partition("%")[0]) or "camera"
    model = _words(camera.model)
    longer = f"{own or model}-{place}".strip("-")
    candidates = itertools.chain([own, longer], (f"{longer}-{number}" for number in itertools.count(2)))
    # Makers name all of their cameras the same.
    if own in ("", model, _words(camera.manufacturer), "ipc", "camera", "ip-camera", "network-camera"):
        next(candidates)
    name = next(each for each in candidates if each not in names)
    names.add(name)
    return name


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_MAX_NAME_CHARACTERS].strip("-")
