"""Hardware decodes only what its trial has shown, and where it fails the CPU goes on."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWConfig, HWDeviceType

from streamdet.capture.sources.av import AvSource
from streamdet.capture.sources.hardware import (
    TESTER,
    TRIED_CODECS,
    Decoder,
    HardwareDecoder,
    HardwareDecoders,
    device_types,
    is_built,
)
from streamdet.capture.sources.hardware_trial import compare, film
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.types import State
from support import rtsp
from support.capturing import Recorder, stream_config
from support.rtsp import RtspServer
from support.waiting import join, wait_until

Packet: TypeAlias = "av.Packet[av.VideoStream]"
BROKEN = av.error.ExternalError(1, "the driver has gone")


def copy_of(decoder: av.VideoCodecContext) -> av.VideoCodecContext:
    """Another decoder of the CPU for the same stream."""
    made = cast("av.VideoCodecContext", av.CodecContext.create(decoder.codec.canonical_name, "r"))
    made.extradata, made.thread_count = decoder.extradata, 1
    return made


class Device:
    """Decodes like the CPU; at one packet, and from then on, it does something else."""

    def __init__(self, decoder: av.VideoCodecContext, at: int, misbehave: Callable[[], list[av.VideoFrame]]) -> None:
        self._decoder = copy_of(decoder)
        self._left = at
        self._misbehave = misbehave

    def decode(self, packet: Packet | None = None) -> list[av.VideoFrame]:
        self._left -= packet is not None
        return self._decoder.decode(packet) if self._left >= 0 else self._misbehave()

    def flush_buffers(self) -> None:
        self._decoder.flush_buffers()


def fail(error: Exception) -> list[av.VideoFrame]:
    raise error


def noting(tmp_path: Path, code: str) -> list[str]:
    """A command that notes that it was run, and then runs this code; `name` is the device."""
    note = f"name = sys.argv[-1]; open({str(tmp_path / 'tried')!r}, 'a').write(name + ' ')"
    return [sys.executable, "-P", "-c", f"import json, os, signal, sys, time\n{note}\n{code}"]


def says(**found: Any) -> str:
    return "\n".join(f"print({json.dumps({'codec': codec, **found})!r})" for codec in TRIED_CODECS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a machine that has a device of each kind."""
    for name in ("nvidiactl", "dri/renderD128", "video0"):
        (tmp_path / "root/dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root/dev" / name).touch()
    return tmp_path / "root"


AUTO = [name for name in ("cuda", "vaapi", "qsv", "v4l2m2m") if is_built(name, "h264")]


def test_the_device_that_costs_least_is_found_by_one_trial_of_each(tmp_path: Path, root: Path) -> None:
    costs = {name: 0.3 if name == AUTO[-1] else 0.6 for name in AUTO}
    code = (
        f"costs = {costs}\nfor c in {TRIED_CODECS}: print(json.dumps(dict(codec=c, difference=0.4, cost=costs[name])))"
    )
    decoders = HardwareDecoders(noting(tmp_path, code), root=root)
    for codec in TRIED_CODECS:
        assert decoders.find("auto", codec, "yard") == AUTO[-1]
    assert decoders.find(AUTO[0], "h264", "door") == AUTO[0]
    assert decoders.find("none", "h264", "yard") is None
    assert decoders.find(AUTO[0], "vp9", "yard") is None
    assert (tmp_path / "tried").read_text().split() == AUTO


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (says(difference=0.1, cost=0.9), "0.90 of the CPU time"),
        (says(difference=3, cost=0.1), "its pictures differ by 3.0 of 255 in the mean"),
        (says(problem="no such thing"), "no such thing"),
        (says(difference=0, cost=0.1) + "\nsys.stdout.flush(); os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("sys.exit(3)", "its trial ended with code 3"),
        ("print('{'); print('[]'); print('7')", "its trial said nothing of it"),
        ("pass", "its trial said nothing of it"),
        ("time.sleep(600)", "no answer within 1 s"),
    ],
    ids=["slow", "wrong", "error", "crash", "exit", "nonsense", "silent", "hang"],
)
def test_whatever_a_device_does_in_its_trial_the_cpu_decodes_and_one_line_says_why(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture, code: str, why: str
) -> None:
    seconds = 1 if "sleep" in code else 60
    decoders = HardwareDecoders(noting(tmp_path, code), root=root, trial_seconds=seconds)
    for stream in ("yard", "door"):
        assert decoders.find("auto", "h264", stream) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("h264 is decoded with the CPU, not in hardware (")
    assert f"{AUTO[0]}: " in record.getMessage()
    assert why in record.getMessage()
    assert (tmp_path / "tried").read_text().split() == AUTO


def test_a_device_that_is_named_may_be_slow_but_not_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert HardwareDecoders(noting(tmp_path, says(difference=0, cost=2))).find(AUTO[0], "h264", "yard") == AUTO[0]
    assert HardwareDecoders(noting(tmp_path, says(difference=2, cost=2))).find(AUTO[0], "h264", "yard") is None
    assert f"not in hardware by {AUTO[0]} ({AUTO[0]}: its pictures differ" in caplog.text


def test_a_tester_that_cannot_begin_leaves_the_cpu(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert HardwareDecoders(["/nonexistent"], root=root).find("auto", "hevc", "yard") is None
    assert "it cannot be tried: No such file or directory" in caplog.text


def test_without_a_device_nothing_is_tried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoders = HardwareDecoders(noting(tmp_path, "pass"), root=tmp_path)
    assert decoders.find("auto", "h264", "yard") is None
    assert decoders.find("auto", "h264", "door") is None
    assert [record.getMessage() for record in caplog.records] == [
        "h264 is decoded with the CPU, not in hardware (this machine has no such device)"
    ]
    assert not (tmp_path / "tried").exists()


def test_a_kind_of_device_that_pyav_does_not_know_is_left_out() -> None:
    class Unknown:
        @property
        def device_type(self) -> HWDeviceType:
            return HWDeviceType(99)

    class Known:
        device_type = HWDeviceType.cuda

    assert device_types([cast("HWConfig", Unknown()), cast("HWConfig", Known())]) == {"cuda"}


def test_a_stop_ends_a_trial_and_says_nothing(tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoders = HardwareDecoders(noting(tmp_path, "time.sleep(600)"), root=root)
    interrupt, found = Interrupt(), list[str | None]()

    def look() -> None:
        with interrupt.bound():
            found.append(decoders.find("auto", "h264", "yard"))

    threads = [threading.Thread(target=look, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until((tmp_path / "tried").exists, "the trial begins")
    interrupt.set()
    for thread in threads:
        join(thread)
    assert found == [None, None]
    assert caplog.text == ""


@pytest.mark.parametrize("name", AUTO)
def test_the_real_trial_ends_with_an_answer_for_each_codec(name: str) -> None:
    """On a machine without the device, that is an error of FFmpeg."""
    decoders = HardwareDecoders(TESTER)
    for codec in TRIED_CODECS:
        assert decoders.find(name, codec, "yard") in {name, None}
    assert set(decoders._verdicts[name]) == set(TRIED_CODECS)
    assert not any("said nothing" in verdict.problem for verdict in decoders._verdicts[name].values())


@pytest.mark.parametrize("codec", TRIED_CODECS)
def test_a_device_that_decodes_as_the_cpu_does_is_right_and_its_cost_is_known(codec: str) -> None:
    found = compare(codec, copy_of)
    assert "problem" not in found
    assert found["difference"] == 0
    assert 0.2 < float(found["cost"]) < 5


@pytest.mark.parametrize(
    ("misbehave", "problem"),
    [
        (functools.partial(fail, BROKEN), "the driver has gone"),
        (list, "12 pictures of 24"),
        (functools.partial(fail, RuntimeError("surface lost")), "surface lost"),
    ],
    ids=["error", "silence", "other error"],
)
def test_a_device_that_stops_in_its_trial_is_found_out(misbehave: Callable[[], Any], problem: str) -> None:
    found = compare("h264", lambda decoder: Device(decoder, 12, misbehave))
    assert problem in str(found["problem"])


class Painter(Device):
    """Returns pictures that are half as bright; it marks key frames only where it should."""

    def __init__(self, decoder: av.VideoCodecContext, *, marks_keys: bool) -> None:
        super().__init__(decoder, 1000, list)
        self._marks_keys = marks_keys

    def decode(self, packet: Packet | None = None) -> list[av.VideoFrame]:
        return [self._painted(frame) for frame in super().decode(packet)]

    def _painted(self, frame: av.VideoFrame) -> av.VideoFrame:
        painted = frame.reformat(format="rgb24")
        if not self._marks_keys:
            painted = av.VideoFrame.from_ndarray(painted.to_ndarray(), format="rgb24")
            painted.pts, painted.time_base = frame.pts, frame.time_base
        plane = painted.planes[0]
        plane.update((np.frombuffer(bytes(plane), np.uint8) // 2).tobytes())
        return painted


def test_other_colours_and_key_frames_are_found_out() -> None:
    found = compare("h264", lambda decoder: Painter(decoder, marks_keys=False))
    assert "not marked as the key frame" in str(found["problem"])
    found = compare("h264", lambda decoder: Painter(decoder, marks_keys=True))
    assert float(found["difference"]) > 10


@pytest.mark.parametrize("at", [0, 1, 11, 16, 23])
@pytest.mark.parametrize(
    ("misbehave", "problem"),
    [
        (functools.partial(fail, BROKEN), "the driver has gone"),
        (functools.partial(fail, MemoryError()), "MemoryError"),
    ],
    ids=["lost", "memory"],
)
def test_no_picture_is_lost_when_the_device_fails(at: int, misbehave: Callable[[], Any], problem: str) -> None:
    wanted, found, problems = decode_twice(at, misbehave)
    assert found == wanted
    assert len(problems) == 1
    assert problem in problems[0]


def test_a_device_that_falls_silent_has_failed_and_loses_no_picture() -> None:
    wanted, found, problems = decode_twice(20, list, rounds=4)
    assert len(wanted) == 96
    assert found == wanted
    assert problems == ["no picture in 65 packets"]


def test_a_few_packets_that_cannot_be_decoded_say_nothing_of_the_device() -> None:
    data = av.error.InvalidDataError(1, "damaged")
    problems: list[str] = []
    with av.open(io.BytesIO(film("h264")), "r") as container:
        stream = container.streams.video[0]
        device = HardwareDecoder(
            "cuda",
            Device(stream.codec_context, 3, functools.partial(fail, data)),
            stream.codec_context,
            problems.append,
        )
        packets = [packet for packet in container.demux(stream) if packet.size]
        for packet in packets[:3]:
            device.decode(packet)
        for packet in packets[3:10]:
            with pytest.raises(av.InvalidDataError):
                device.decode(packet)
        assert (device.name, problems) == ("cuda", [])
        frames = device.decode(packets[10])
    assert (device.name, problems) == (None, ["8 packets in a row could not be decoded"])
    assert [frame.pts for frame in frames] == [packet.pts for packet in packets[3:11]]


def decode_twice(
    at: int, misbehave: Callable[[], list[av.VideoFrame]], rounds: int = 1
) -> tuple[list[Any], list[Any], list[str]]:
    """What the CPU makes of a film, and a device that fails at a packet; and the problems that are reported."""
    problems: list[str] = []
    results = []
    for is_device in (False, True):
        decoder: Decoder | None = None
        shown = []
        for number in range(rounds):
            with av.open(io.BytesIO(film("h264")), "r") as container:
                stream = container.streams.video[0]
                if decoder is None:
                    codec = copy_of(stream.codec_context)
                    decoder = codec
                    if is_device:
                        decoder = HardwareDecoder("cuda", Device(codec, at, misbehave), codec, problems.append)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts = (packet.pts or 0) + 10_000 * number
                        shown += decoder.decode(packet)
        assert decoder is not None
        shown += decoder.decode(None)
        results.append([(frame.pts, frame.key_frame, int(frame.to_ndarray().sum())) for frame in shown])
    return results[0], results[1], problems


def open_failing(_name: str, decoder: av.VideoCodecContext, at: int) -> Decoder:
    return Device(decoder, at, functools.partial(fail, BROKEN))


@pytest.mark.package("gst-rtsp-server")
def test_a_stream_goes_on_with_the_cpu_and_its_ledger_is_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = AUTO[0]
    devices = HardwareDecoders(noting(tmp_path, says(difference=0, cost=0.1)), functools.partial(open_failing, at=40))
    with RtspServer({"/h264": rtsp.h264()}) as server:
        config = stream_config(server.url("/h264"), name="yard", hwaccel=name)
        with Recorder(config, open_source=lambda config: AvSource(config, hardware=devices)) as recorder:
            recorder.wait_for_frames(10)
            assert f'streamdet_stream_decoder{{decoder="{name}",stream="yard"}} 1.0' in recorder.page()
            wait_until(lambda: 'streamdet_stream_decoder{decoder="cpu",stream="yard"} 1.0' in recorder.page())
            recorder.wait_for_frames(30)
            assert f'decoder="{name}"' not in recorder.page()
            frames = list(recorder.frames)
        assert recorder.statuses[-1].state is State.UP
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    steps = [b.pts_seconds - a.pts_seconds for a, b in itertools.pairwise(frames) if a.pts_seconds and b.pts_seconds]
    assert steps == pytest.approx([0.04] * len(steps), abs=0.01), "no picture is missing, and none comes twice"
    lines = [record.getMessage() for record in caplog.records if "hardware" in record.getMessage()]
    assert lines == [
        f"hardware decoding by {name} failed (the driver has gone); decoding with the CPU until the next start"
    ]
    assert devices.find(name, "h264", "yard") is None, "not when it is connected again"
    assert devices.find(name, "h264", "door") == name
