"""Hardware decoders: which of this machine may decode, and what happens to a stream when one fails.

Nothing but a trial says what a driver does, which may crash, hang, or be slower than the CPU. So each is tried, once in
a process, by a child (`hardware_trial`) that decodes a short film with it and with the CPU:

    HardwareDecoders.find(wanted, codec)  ->  the name of the one to use, or None for the CPU
    HardwareDecoders.open(name, decoder)  ->  HardwareDecoder, which goes on with the CPU where the hardware fails
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import av
from av.codec.context import Flags
from av.codec.hwaccel import HWAccel, HWConfig, hwdevices_available

from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.picture import MAX_PIXELS
from streamdet.monitoring.log import LogThrottle

_log = logging.getLogger(__name__)

TESTER = (sys.executable, "-P", "-m", "streamdet.capture.sources.hardware_trial")
# What "auto" tries, and the files by which the kernel shows such a device.
_AUTO = {
    "cuda": ("dev/nvidiactl", "dev/dxg"),
    "vaapi": ("dev/dri/renderD*",),
    "qsv": ("dev/dri/renderD*",),
    "v4l2m2m": ("dev/video*",),
}
# These are decoders of their own; the others are parts of FFmpeg's.
_OWN_DECODERS = frozenset({"qsv", "v4l2m2m"})
TRIED_CODECS = ("h264", "hevc")
"""Those of cameras."""

# The film takes a second or two of a core; a machine that starts many things at once is slow.
_TRIAL_SECONDS = 60.0
_POLL_SECONDS = 0.2
# A gain below this is not worth a driver.
_WORTH_IT = 0.8
# The mean difference of a colour of a picture, of 255. Decoding is exact; converting the colours of NV12 is nearly so.
MOST_DIFFERENCE = 1.0

# Damaged data make the CPU fail, too, so a few packets that fail say nothing of the device.
_MOST_FAILED = 8
# More than any decoder holds back before it returns a picture.
_MOST_SILENT = 64
_MOST_KEPT_BYTES = 16 << 20


class Decoder(Protocol):
    """What decodes packets; a `VideoCodecContext` does."""

    def decode(self, packet: av.Packet[av.VideoStream] | None = None) -> list[av.VideoFrame]:
        """The pictures that are complete with this packet; at None those that are left."""

    def flush_buffers(self) -> None:
        """Forgets what was decoded: the next packet begins."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the trial of a device found for one codec.

    Attributes:
        problem: why it cannot be used, in one line; empty if it can.
        cost: CPU time of a frame as a part of what the CPU alone needs.
    """

    problem: str = ""
    cost: float = 1.0


class HardwareDecoders:
    """Knows what the hardware decoders of this machine can do, or finds it out. Thread-safe.

    Args:
        command: tries the device that is named as its last argument; another one in tests.
        open_decoder: opens a device's decoder for a stream; another one in tests.
        root: of the file system in which devices are looked for.
        trial_seconds: the longest that the trial of a device may take.
    """

    def __init__(
        self,
        command: Sequence[str] = TESTER,
        open_decoder: Callable[[str, av.VideoCodecContext], Decoder] | None = None,
        root: Path = Path("/"),
        trial_seconds: float = _TRIAL_SECONDS,
    ) -> None:
        self._command = command
        self._open_decoder = open_decoder or open_hardware
        self._root = root
        self._trial_seconds = trial_seconds
        self._lock = threading.Lock()
        self._verdicts: dict[str, dict[str, Verdict]] = {}
        self._saying = threading.Lock()
        self._said: set[tuple[str, str]] = set()
        self._failed: set[str] = set()
        self._throttle = LogThrottle()

    def find(self, wanted: str, codec: str, stream: str, *, is_live: bool = True) -> str | None:
        """The device to decode a codec with; None for the CPU, which one line says for each codec.

        The first call for a device takes seconds; others wait for it.

        Args:
            wanted: "none", "auto" or a name.
            codec: FFmpeg's name.
            stream: its name; where its device has failed before, it gets none.
            is_live: whether it has no end.
        """
        if wanted == "none" or stream in self._failed:
            return None
        if not is_live:
            self._say(wanted, codec, {"any device": "it is used for live streams alone"})
            return None
        while not self._lock.acquire(timeout=_POLL_SECONDS):
            if current_interrupt().is_set():
                return None
        try:
            names = [name for name in _AUTO if self._has(name)] if wanted == "auto" else [wanted]
            verdicts = {name: self._verdict(name, codec) for name in names}
        finally:
            self._lock.release()
        good = {name: found.cost for name, found in verdicts.items() if found is not None and not found.problem}
        if wanted == "auto":
            good = {name: cost for name, cost in good.items() if cost <= _WORTH_IT}
        if good:
            return min(good, key=lambda name: good[name])
        if None not in verdicts.values():
            found = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
            problems = {name: each.problem or f"{each.cost:.2f} of the CPU time" for name, each in found.items()}
            self._say(wanted, codec, problems)
        return None

    def open(self, name: str, decoder: av.VideoCodecContext, stream: str) -> HardwareDecoder | None:
        """A decoder for a stream; None where the device does not open it, which one line says.

        Args:
            name: of the device.
            decoder: the CPU's, which has decoded nothing yet.
            stream: name of the stream.
        """

        def failed(problem: str) -> None:
            self._failed.add(stream)
            text = "hardware decoding by %s failed (%s); decoding with the CPU until the next start"
            self._throttle.log(_log, logging.WARNING, text, name, problem, stream=stream)

        try:
            hardware = self._open_decoder(name, decoder)
        except (av.FFmpegError, OSError, RuntimeError, ValueError) as error:
            failed(_line(error))
            return None
        return HardwareDecoder(name, hardware, decoder, failed)

    def _has(self, name: str) -> bool:
        return any(next(self._root.glob(pattern), None) is not None for pattern in _AUTO[name])

    def _say(self, wanted: str, codec: str, problems: dict[str, str]) -> None:
        with self._saying:
            if (wanted, codec) in self._said:
                return
            self._said.add((wanted, codec))
        why = "; ".join(f"{name}: {problem}" for name, problem in problems.items()) or "this machine has no such device"
        by = "" if wanted == "auto" else f" by {wanted}"
        _log.warning("%s is decoded with the CPU, not in hardware%s (%s)", codec, by, why)

    def _verdict(self, name: str, codec: str) -> Verdict | None:
        """What is known of a device, after its trial if need be; None if that was interrupted."""
        if not is_built(name, codec):
            return Verdict("FFmpeg was built without it")
        if codec not in TRIED_CODECS:
            return Verdict("it is used for H.264 and H.265 alone")
        if name not in self._verdicts:
            found = self._try(name)
            if found is None:
                return None
            self._verdicts[name] = found
        return self._verdicts[name].get(codec, Verdict("its trial said nothing of it"))

    def _try(self, name: str) -> dict[str, Verdict] | None:
        """Has a child try a device; None if that was interrupted."""
        ends_at = time.monotonic() + self._trial_seconds
        try:
            process = subprocess.Popen(  # noqa: S603 - ours
                [*self._command, name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            return _of_all(f"it cannot be tried: {error.strerror}")
        with process:
            try:
                while time.monotonic() < ends_at:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        output, _ = process.communicate(timeout=_POLL_SECONDS)
                        return _verdicts(output, process.returncode)
                    if current_interrupt().is_set():
                        return None
            finally:
                process.kill()
        return _of_all(f"no answer within {self._trial_seconds:g} s")


class HardwareDecoder:
    """Decodes in hardware, and with the CPU from the moment on in which that fails; no picture is lost by it.

    The packets from the last key frame on are kept for that: the CPU decodes them again.

    Args:
        name: of the device.
        hardware: its decoder.
        software: the CPU's.
        on_failure: called once, with the problem in a line.

    Attributes:
        name: of the device; None once it has failed.
    """

    def __init__(self, name: str, hardware: Decoder, software: Decoder, on_failure: Callable[[str], None]) -> None:
        self.name: str | None = name
        self._active = hardware
        self._software = software
        self._on_failure = on_failure
        self._kept: list[av.Packet[av.VideoStream]] = []
        self._kept_bytes = 0
        self._shown_pts: int | None = None
        self._failed = self._silent = 0

    def decode(self, packet: av.Packet[av.VideoStream] | None = None) -> list[av.VideoFrame]:
        """As `Decoder`."""
        if self.name is None:
            return self._active.decode(packet)
        self._keep(packet)
        try:
            frames = self._active.decode(packet)
        except av.InvalidDataError:
            self._failed += 1
            if self._failed < _MOST_FAILED:
                raise
            return self._go_on(f"{self._failed} packets in a row could not be decoded")
        except (av.FFmpegError, OSError, RuntimeError, MemoryError) as error:
            return self._go_on(_line(error))
        self._silent = 0 if frames or packet is None else self._silent + 1
        if self._silent > _MOST_SILENT:
            return self._go_on(f"no picture in {self._silent} packets")
        for frame in frames:
            self._failed = 0
            self._note(frame)
        return frames

    def flush_buffers(self) -> None:
        """As `Decoder`."""
        self._forget()
        self._active.flush_buffers()

    def _keep(self, packet: av.Packet[av.VideoStream] | None) -> None:
        if packet is None or not packet.size:
            return
        if not self._kept and not packet.is_keyframe:
            return
        self._kept.append(packet)
        self._kept_bytes += packet.size
        if self._kept_bytes > _MOST_KEPT_BYTES:
            self._forget()

    def _note(self, frame: av.VideoFrame) -> None:
        """Forgets what comes before a key frame that was returned: no later picture needs it."""
        self._shown_pts = frame.pts
        if frame.key_frame:
            first = next((n for n, kept in enumerate(self._kept) if kept.is_keyframe and kept.pts == frame.pts), 0)
            self._kept_bytes -= sum(kept.size for kept in self._kept[:first])
            del self._kept[:first]

    def _forget(self) -> None:
        self._kept, self._kept_bytes, self._shown_pts = [], 0, None

    def _go_on(self, problem: str) -> list[av.VideoFrame]:
        """Has the CPU decode from the last key frame on; returns what was not returned before."""
        self._on_failure(problem)
        kept, shown_pts = self._kept, self._shown_pts
        self.name, self._active = None, self._software
        self._forget()
        frames = [frame for packet in kept for frame in self._software.decode(packet)]
        if shown_pts is None:
            return frames
        return [frame for frame in frames if frame.pts is not None and frame.pts > shown_pts]


def is_built(name: str, codec: str) -> bool:
    """Whether this build of FFmpeg can decode a codec with a device, if there is one."""
    if name in _OWN_DECODERS:
        return f"{codec}_{name}" in av.codecs_available
    if name not in hwdevices_available() or codec not in av.codecs_available:
        return False
    return name in device_types(av.Codec(codec, "r").hardware_configs or ())


def device_types(configs: Iterable[HWConfig]) -> set[str]:
    """The names of devices that can be part of a decoder; those that PyAV has no name for are left out."""
    names = set()
    for config in configs:
        with contextlib.suppress(ValueError):
            names.add(config.device_type.name)
    return names


def open_hardware(name: str, decoder: av.VideoCodecContext) -> av.VideoCodecContext:
    """Opens the decoder of a device, for what another one would decode; pictures come into the machine's own memory.

    Args:
        name: of the device.
        decoder: the CPU's, which is not changed.

    Raises:
        av.FFmpegError, OSError, RuntimeError, ValueError: it cannot be opened.
    """
    codec = decoder.codec.canonical_name
    is_own = name in _OWN_DECODERS
    # What the device cannot decode is to fail, so that it is known; FFmpeg would go on with the CPU silently.
    accelerator = None if is_own else HWAccel(name, allow_software_fallback=False)
    made = av.CodecContext.create(f"{codec}_{name}" if is_own else codec, "r", accelerator)
    hardware = cast("av.VideoCodecContext", made)
    if accelerator is not None and not hardware.is_hwaccel:
        message = f"it does not decode {codec}"
        raise RuntimeError(message)
    hardware.extradata = decoder.extradata
    hardware.thread_count = 1
    hardware.options = {"max_pixels": str(MAX_PIXELS)}
    hardware.flags |= Flags.output_corrupt
    hardware.open()
    return hardware


def _verdicts(output: bytes, code: int) -> dict[str, Verdict]:
    """What a trial found for each codec; one that crashed in the end has found nothing good."""
    if code:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"code {code}"
        return _of_all(f"its trial ended with {name}")
    verdicts = {}
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        for line in output.decode(errors="replace").splitlines():
            found = json.loads(line)
            problem, difference = str(found.get("problem", "")), float(found.get("difference", 0))
            if not problem and difference > MOST_DIFFERENCE:
                problem = f"its pictures differ by {difference:.1f} of 255 in the mean"
            verdicts[str(found["codec"])] = Verdict(problem, float(found.get("cost", 1)))
    return verdicts


def _of_all(problem: str) -> dict[str, Verdict]:
    return dict.fromkeys(TRIED_CODECS, Verdict(problem))


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__


DECODERS = HardwareDecoders()
"""Those of this process."""
