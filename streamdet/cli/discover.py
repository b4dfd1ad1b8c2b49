"""`streamdet discover`: the cameras of the local network, and their streams."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from streamdet.cli.numbers import Number
from streamdet.cli.plural import counted
from streamdet.cli.refresh import console
from streamdet.config.secrets import environ_for
from streamdet.config.substitute import Substitution
from streamdet.discovery.camera import Camera, Profile
from streamdet.discovery.cameras import ask_cameras
from streamdet.discovery.configuration import tables_of
from streamdet.discovery.search import Answer, Search, named
from streamdet.errors import EXIT_FAILURE, ConfigError
from streamdet.security.plain_text import plain, plain_json
from streamdet.security.redact import redact, remember_secret

_MAX_LOGIN_CHARACTERS = 1024
# A clock that is further off than this is worth a word: its pictures show it, and its logins fail for others.
_NOTABLE_SKEW_SECONDS = 5.0
_SERVICE_FILE = Path("/etc/streamdet/streamdet.toml")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_.-]*)\}")
_DEFAULT_NAME = "CAMERA_LOGIN"
_EXAMPLES = """\b
Examples:
  streamdet discover
  streamdet discover --login '${CAMERA_LOGIN}'
  streamdet discover --interface eth1 --login-from-stdin --toml > cameras.toml
  streamdet discover 192.0.2.5 192.0.2.6:8080 --login-from-stdin
  streamdet discover --json | jq -r '.cameras[].profiles[].url'

\b
Exit codes: 0 a camera was found, 1 none was, 2 wrong options or login.
"""


@click.command("discover", epilog=_EXAMPLES)
@click.argument("hosts", metavar="[HOST]...", nargs=-1)
@click.option(
    "--interface", "interfaces", multiple=True, metavar="NAME",
    help="Search this network interface; may be repeated. All that are up if left out.",
)  # fmt: skip
@click.option(
    "--seconds", type=Number(0.2, 60), default=3.0, show_default=True, metavar="N",
    help="Wait so long for cameras to answer.",
)  # fmt: skip
@click.option(
    "--seconds-per-camera", type=Number(0.2, 60), default=10.0, show_default=True, metavar="N",
    help="Spend at most so long on the questions to one camera; 64 are asked at the same time.",
)  # fmt: skip
@click.option(
    "--login", "reference", metavar="'${NAME}'",
    help="Log in with user:password from this environment variable, or from this file in /etc/streamdet/secrets.",
)  # fmt: skip
@click.option("--login-from-stdin", is_flag=True, help="Read user:password from standard input; a terminal asks.")
@click.option(
    "--other-hosts", is_flag=True,
    help="Use addresses that a camera names on other hosts; otherwise it is asked where it answered.",
)  # fmt: skip
@click.option("--toml", "as_toml", is_flag=True, help="Print tables for the configuration, with ${NAME} as the login.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    hosts: tuple[str, ...],
    interfaces: tuple[str, ...],
    seconds: float,
    seconds_per_camera: float,
    reference: str | None,
    login_from_stdin: bool,
    other_hosts: bool,
    as_toml: bool,
    as_json: bool,
) -> None:
    """Find the cameras of the local network that speak ONVIF, and list their streams.

    The search is one question by multicast on each network (UDP, port 3702), and nothing else is sent to machines that
    do not answer. A HOST is asked directly instead, for example in a network that multicasts do not reach.

    Most cameras list their streams only after a login. It is sent to every camera that answers, as a digest and never
    in clear text; search only networks that you trust with it.
    """
    if as_toml and as_json:
        message = "--toml and --json exclude each other"
        raise click.UsageError(message)
    if hosts and interfaces:
        message = "--interface is for a search, and a HOST is asked without one; give either"
        raise click.UsageError(message)
    login, name = _login(reference, from_stdin=login_from_stdin)
    search = Search()
    where = f"{len(hosts)} hosts" if len(hosts) > 1 else (hosts or (", ".join(interfaces) or "all networks",))[0]
    doing = f"asking {plain(where)}" if hosts else f"searching {plain(where)} for {seconds:g} s"
    with console(error=True).status(doing) as line:
        count = 0

        def on_answer(_: Answer) -> None:
            nonlocal count
            count += 1
            line.update(f"{doing}: {counted(count, 'camera')}")

        answers = map(named, dict.fromkeys(hosts)) if hosts else search.run(interfaces, seconds)
        cameras = ask_cameras(answers, login, seconds_per_camera, other_hosts=other_hosts, on_answer=on_answer)
    if as_json:
        found = {"cameras": [_as_json(each) for each in cameras], "interfaces": search.interfaces}
        click.echo(plain_json(json.dumps(found, ensure_ascii=False, indent=2)))
    elif as_toml:
        click.echo(tables_of(cameras, name if login else None), nl=False)
        for camera in cameras:
            if camera.reason is not None:
                click.echo(f"{camera.host} is left out: {redact(camera.detail)}", err=True)
    elif cameras:
        _print(cameras)
    _print_hints(cameras, search, seconds, is_search=not hosts, has_login=login is not None)
    if not cameras or (hosts and all(camera.reason is not None for camera in cameras)):
        sys.exit(EXIT_FAILURE)


def _login(reference: str | None, *, from_stdin: bool) -> tuple[tuple[str, str] | None, str]:
    """The login, and the name of the variable that the configuration is to take it from.

    Raises:
        ConfigError: it is not user:password, or is not there.
    """
    if from_stdin and reference is not None:
        message = "give either --login or --login-from-stdin"
        raise click.UsageError(message)
    if from_stdin:
        return _parsed(_from_stdin(), "--login-from-stdin"), _DEFAULT_NAME
    if reference is None:
        return None, _DEFAULT_NAME
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        # It is not repeated: it may be a password.
        message = "--login takes the name of a variable, such as '${CAMERA_LOGIN}': all users can see what stands here"
        raise click.UsageError(message)
    substitution = Substitution(_environ())
    text = substitution.apply(reference, ("login",))
    if substitution.problems:
        raise ConfigError([f"--login: {problem}" for problem in substitution.problems.values()])
    return _parsed(str(text), f"--login {reference}"), match[1]


def _environ() -> Mapping[str, str]:
    """With the secrets of the service, for users who may read them."""
    return environ_for(_SERVICE_FILE)


def _from_stdin() -> str:
    if sys.stdin.isatty():
        answer: str = click.prompt("user:password of the cameras", hide_input=True, err=True)
        return answer
    return sys.stdin.readline(_MAX_LOGIN_CHARACTERS + 2).rstrip("\r\n")


def _parsed(text: str, source: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    remember_secret(text)
    if not colon or not user or len(text) > _MAX_LOGIN_CHARACTERS or not text.isprintable():
        raise ConfigError([f"{source}: is not user:password"])
    return user, password


def _as_json(camera: Camera) -> dict[str, Any]:
    return {
        "host": camera.host,
        "device": camera.device or None,
        "name": camera.name,
        "manufacturer": camera.manufacturer,
        "model": camera.model,
        "firmware": camera.firmware,
        "clock_skew_seconds": camera.clock_skew_seconds,
        "reason": camera.reason,
        "detail": redact(camera.detail),
        "profiles": [
            {
                "name": each.name,
                "codec": each.codec,
                "width": each.width,
                "height": each.height,
                "fps": each.fps,
                "url": None if each.url is None else redact(each.url),
                "problem": redact(each.problem),
            }
            for each in camera.profiles
        ],
    }


def _print(cameras: list[Camera]) -> None:
    table = Table("address", "camera", "profile", "codec", "size", "fps", "url", "problem", box=None, pad_edge=False)
    for camera in cameras:
        model = " ".join(filter(None, (camera.manufacturer, camera.model))) or camera.name
        problem = "" if camera.reason is None else f"{camera.reason}: {camera.detail}"
        first = (camera.host, model)
        if camera.reason is not None:
            table.add_row(*_texts(*first, "", "", "", "", "", problem), style="red")
            first = ("", "")
        for profile in camera.profiles:
            table.add_row(*_texts(*first, *_row(profile)))
            first = ("", "")
    console().print(table)
    if any(profile.url for camera in cameras for profile in camera.profiles):
        click.echo("next: streamdet init NAME=URL, or --toml for the tables of all cameras", err=True)


def _row(profile: Profile) -> tuple[str, ...]:
    size = f"{profile.width}x{profile.height}" if profile.width and profile.height else "?"
    fps = f"{profile.fps:g}" if profile.fps else "?"
    return (profile.name, profile.codec or "?", size, fps, profile.url or "", profile.problem)


def _texts(*cells: str) -> list[Text]:
    # A url is worth nothing in pieces.
    return [Text(plain(redact(cell)), overflow="fold") for cell in cells]


def _print_hints(
    cameras: list[Camera], search: Search, seconds: float, *, is_search: bool, has_login: bool
) -> None:  # fmt: skip
    """What is worth knowing besides, on standard error."""
    if is_search and not cameras:
        networks = ", ".join(search.interfaces)
        click.echo(
            f"streamdet: no camera answered within {seconds:g} s on {networks}; switch on ONVIF in the camera, let its"
            " answers through the firewall (UDP from port 3702), or name its HOST",
            err=True,
        )
    if search.is_cut:
        click.echo("more cameras answered than are taken; name interfaces or hosts", err=True)
    for camera in cameras:
        skew = camera.clock_skew_seconds
        if skew is not None and abs(skew) > _NOTABLE_SKEW_SECONDS:
            way = "ahead of" if skew > 0 else "behind"
            click.echo(f"{camera.host}: its clock is {abs(skew):.0f} s {way} this machine's", err=True)
    if not has_login and any(camera.reason == "unauthorized" for camera in cameras):
        click.echo("give a login with --login '${NAME}' or --login-from-stdin", err=True)
