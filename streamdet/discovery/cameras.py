"""Asks many cameras at the same time, each from the moment it answers the search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from streamdet.capture.sources.interrupt import Interrupt
from streamdet.discovery.camera import Camera, ask_camera
from streamdet.discovery.search import Answer

_MOST_AT_ONCE = 64


def ask_cameras(
    answers: Iterable[Answer],
    login: tuple[str, str] | None,
    seconds: float,
    *,
    other_hosts: bool = False,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> list[Camera]:
    """Asks all of them; returns them in the order of their addresses.

    Args:
        answers: may still be coming in.
        login: user and password for all; None for none.
        seconds: for each camera.
        other_hosts: whether addresses that a camera names on other hosts are used as they are.
        on_answer: is called with each, before it is asked.
    """
    interrupt = Interrupt()

    def ask(answer: Answer) -> Camera:
        with interrupt.bound():
            return ask_camera(answer, login, seconds, other_hosts=other_hosts)

    with ThreadPoolExecutor(_MOST_AT_ONCE, "onvif") as pool:
        try:
            asked = []
            for answer in answers:
                on_answer(answer)
                asked.append(pool.submit(ask, answer))
            cameras = [each.result() for each in asked]
        except BaseException:
            # Raised again, Ctrl-C above all: without this the pool would wait for slow cameras.
            interrupt.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(_each_once(cameras), key=_place)


def _each_once(cameras: list[Camera]) -> list[Camera]:
    """Without the link-local IPv6 addresses of cameras that also answered from another one, and repeated failures."""
    elsewhere = {camera.device for camera in cameras if "%" not in camera.host and camera.device}
    kept: dict[tuple[str, ...], Camera] = {}
    for camera in cameras:
        if "%" not in camera.host or camera.device not in elsewhere:
            # A machine that floods the network answers as many cameras, of which none can be asked.
            own = () if camera.reason is None else (camera.detail,)
            kept.setdefault((camera.host, *(own or (camera.device,))), camera)
    return list(kept.values())


def _place(camera: Camera) -> tuple[int, int, str]:
    try:
        address = ip_address(camera.host)
    except ValueError:
        return (0, 0, camera.host)
    return (address.version, int(address), camera.device)
