"""PyAV: network streams and files."""

from __future__ import annotations

import errno
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from urllib.parse import urlsplit

import av
from av import _core as av_core
from av.stream import Discard

from streamdet.capture.sources import SourceFrame, SourceInfo
from streamdet.capture.sources.clocks import CameraClock, FileClock, LiveClock, Pacer
from streamdet.capture.sources.connections import ConnectionBudget, timed_out
from streamdet.capture.sources.diagnosis import (
    HTTP_KINDS,
    RTSP_KINDS,
    failure_of,
    look_up_name,
    refuse_text,
)
from streamdet.capture.sources.ffmpeg import (
    HLS_OPTIONS,
    RELAYED_OPTIONS,
    limit_allocations,
    options_for,
    transport_of,
)
from streamdet.capture.sources.fifo import Fifo, begins_with, is_fifo
from streamdet.capture.sources.hardware import DECODERS, HardwareDecoder, HardwareDecoders
from streamdet.capture.sources.hls.files import HlsFiles
from streamdet.capture.sources.hls.playlist import BEGINNING
from streamdet.capture.sources.http_client import HttpFile, host_of
from streamdet.capture.sources.http_stream import HttpStream
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.login import with_password
from streamdet.capture.sources.packets import PacketTap, tap
from streamdet.capture.sources.picture import MAX_PIXELS, AvPicture, check_size
from streamdet.capture.sources.rtsp import RtspRelay, Way, connect, find_way
from streamdet.capture.sources.selection import Selection
from streamdet.capture.sources.soundness import KEY_FRAME_SECONDS, LeftOut, Soundness, take_losses
from streamdet.capture.sources.turns import OPENING
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, file_path, kind_of_url
from streamdet.errors import HeldError, LeftOutError, SourceError
from streamdet.types import Demand, PacketSink, Reason

limit_allocations(av_core.__file__)

_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS
# Errors that name the cause exactly, so that no other way to the stream is tried.
_CLEAR = (
    av.HTTPNotFoundError, av.HTTPForbiddenError, av.DecoderNotFoundError, av.ExitError, av.error.MemoryError,
    ConnectionRefusedError, TimeoutError,
)  # fmt: skip
_LONGEST_LOOK_SECONDS = 2.0
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC, the cover of a song


class AvSource:
    """A network stream or file, read by FFmpeg with one decoding thread.

    Args:
        config: of the stream.
        packets: gets the encoded packets, too; None where they are not wanted.
        demand: which frames are worth decoding; None for all.
        decodes: whether pictures are decoded at all.
        hardware: what may decode instead of the CPU; of live streams alone, as only they go on for ever.

    Attributes:
        info: what was found at opening; `hwaccel` becomes None when the hardware fails.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(
        self,
        config: StreamConfig,
        packets: PacketSink | None = None,
        demand: Demand | None = None,
        *,
        decodes: bool = True,
        hardware: HardwareDecoders = DECODERS,
    ) -> None:
        self._config = config
        self._sink = packets
        self._demand = demand
        self._decodes = decodes
        self._tap: PacketTap | None = None
        self._kind = kind_of_url(config.url)
        self._is_file = self._kind is UrlKind.FILE
        self._path = file_path(config.url)
        self._has_end = self._is_file
        self._frames: deque[tuple[av.VideoFrame, bool]] = deque()
        self._returned: deque[weakref.ref[AvPicture]] = deque()
        self._left_out: deque[LeftOut] = deque()
        self._frames_of_round = 0
        self._decode_seconds = 0.0
        self._is_paced = False
        self._transport = transport_of(config)
        self._hardware = hardware
        self._decoder: HardwareDecoder | None = None
        self._container: av.container.InputContainer | None = None
        self._hls: HlsFiles | None = None
        self._fetched: HlsFiles | HttpFile | None = None
        self._hls_before: HlsFiles | None = None
        self._fifo: Fifo | None = None
        self._way: Way | None = None
        self._relay: RtspRelay | None = None
        self._open()
        self.info = self._describe()
        self._has_timeline = (self._has_end and self._fifo is None) or self._is_hls
        self._clock = FileClock(self.info.fps, joins_jumps=self._is_hls)
        self._live_clock = LiveClock()
        self._camera_clock = CameraClock()
        # HLS comes in pieces of some seconds, each as fast as the network allows.
        self._is_paced = self._has_timeline and not (self._is_file and config.pace == "fastest")
        # A wait that is longer than half of `stall_seconds` would look like a stall.
        self._pacer = Pacer(config.stall_seconds / 2, is_live=not self._has_end)

    def read(self) -> SourceFrame:
        """The next sound frame; a file or HLS waits until it is due."""
        frame = self._next_frame()
        if frame is None and self._has_end and self._config.loop and self._frames_of_round:
            self._begin_again()
            frame = self._next_frame()
        if frame is None:
            raise self._end()
        self._frames_of_round += 1
        check_size(frame.width, frame.height)
        return self._timed(frame)

    def close(self) -> None:
        """Releases the connection and the decoder."""
        self._frames.clear()
        self._left_out.clear()
        if self._tap is not None:
            self._tap.end()
            self._tap = None
        self._packets: Iterator[av.Packet[av.VideoStream]] = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._fetched is not None:
            self._fetched.close()
            self._fetched = self._hls = None
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._fifo is not None:
            self._fifo.close()
            self._fifo = None

    def _open(self) -> None:
        started = time.monotonic()
        take_losses()  # of what this thread has read before
        try:
            self._container = self._open_container()
            self._stream = self._choose_stream(self._container)
        except (SourceError, av.FFmpegError, OSError, RuntimeError, UnicodeError) as error:
            problem = (None if self._fetched is None else self._fetched.problem) or self._lacks_index() or error
            self.close()
            if isinstance(problem, SourceError):
                raise problem from None
            # FFmpeg calls a time-out by many names.
            waited_seconds = time.monotonic() - started
            late = waited_seconds >= self._config.connect_timeout_seconds or current_interrupt().is_set()
            if late and not self._is_file:
                raise timed_out(self._config.connect_timeout_seconds, "answer") from None
            # Not chained: the library's text holds the url.
            raise failure_of(error, self._config) from None
        self._is_hls = self._container.format.name == "hls"
        self._aspect_of_container = self._stream.sample_aspect_ratio
        self._aspect_of_decoder = self._stream.codec_context.sample_aspect_ratio
        self._has_end = self._is_file or self._ends(self._container)
        # FFmpeg then counts frames, 25 a second: MJPEG over HTTP, JPEG after JPEG, H.264 without a container.
        form = self._container.format
        self._has_no_timestamps = bool(form.flags & _NO_TIMESTAMPS) or form.name.endswith("pipe")
        self._packets = self._container.demux(self._stream)
        self._ahead: av.Packet[av.VideoStream] | None = None
        is_timed = self._has_end or not self._has_no_timestamps
        if self._sink is not None:
            self._tap = tap(self._stream, self._sink, is_timed=is_timed)
            if self._tap is not None and not self._decodes:
                self._tap.show(0)  # what a camera's stream says of its rotation is known from decoded pictures alone
        codec = self._stream.codec_context
        mode = self._config.decode if self._decodes else "none"
        # Not `self._shown_at`: the source and its decoder, ten megabytes, would hold each other after `close` until the
        # garbage collector looks at old objects, which may take hours.
        source = weakref.proxy(self)

        def shown_at(packet: av.Packet[av.VideoStream]) -> float:
            return float(source._shown_at(packet))  # noqa: SLF001 - of this class

        selection = Selection(codec, mode, self._demand, is_timed=is_timed, shown_at=shown_at)
        self._decoder = self._find_hardware(codec)
        self._soundness = Soundness(codec, tap=self._tap, selection=selection, hardware=self._decoder)

    def _find_hardware(self, codec: av.VideoCodecContext) -> HardwareDecoder | None:
        """What decodes instead of the CPU, if anything may."""
        if not self._decodes:
            return None
        config, name_of_codec = self._config, codec.codec.canonical_name
        name = self._hardware.find(config.hwaccel, name_of_codec, config.name, is_live=not self._has_end)
        return None if name is None else self._hardware.open(name, codec, config.name)

    def _lacks_index(self) -> SourceError | None:
        """The error if FFmpeg found no index in an MP4; None otherwise."""
        if not take_losses().index or self._hls is not None:
            return None
        if isinstance(self._fetched, HttpFile) and not self._fetched.has_parts:
            detail = (
                f"the index of this MP4 is at its end, and {host_of(self._config.url)} does not send parts of a file "
                "(HTTP Range); `ffmpeg -i IN -c copy -movflags +faststart OUT` writes the index at the beginning"
            )
            return SourceError(Reason.DECODE_ERROR, detail)
        return SourceError(Reason.DECODE_ERROR, "this MP4 has no index (moov): it was not written to its end")

    def _open_container(self) -> av.container.InputContainer:
        if self._is_file and is_fifo(self._path):
            self._fifo = Fifo(self._path, self._config.stall_seconds)
        elif self._is_file and begins_with(self._path, BEGINNING):
            return self._open_hls()
        if not self._is_file:
            look_up_name(self._config)
        if self._kind in HTTP_KINDS:
            return self._open_http()
        if self._kind in RTSP_KINDS:
            return self._open_rtsp()
        return self._open_with(options_for(self._config))

    def _open_rtsp(self) -> av.container.InputContainer:
        try:
            return self._open_offered()
        except _CLEAR:
            raise
        except (av.FFmpegError, OSError) as error:
            refused = isinstance(error, av.HTTPUnauthorizedError)
            if refused and urlsplit(self._config.url).username is None:
                raise
            # It may lead elsewhere, or want a login that FFmpeg does not know.
            way = find_way(self._config, refused_ffmpeg=refused)
            if way is None:
                raise
            self._way = way
        if self._way.needs_relay:
            budget = ConnectionBudget(time.monotonic() + self._config.connect_timeout_seconds, 1, 1)
            self._relay = RtspRelay(connect(self._config, self._way.url, budget), self._way)
            self._transport = "tcp"
        return self._open_offered()

    def _open_offered(self) -> av.container.InputContainer:
        try:
            return self._open_with(self._rtsp_options())
        except av.HTTPOtherClientError:
            # An RTSP server answers this if it has no video: ask for all kinds, to report what it has.
            return self._open_with(self._rtsp_options() | {"allowed_media_types": "video+audio+data+subtitle"})
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise
            raise SourceError(Reason.REFUSED, f"the server does not offer RTP over {self._transport}") from None

    def _rtsp_options(self) -> dict[str, str]:
        config = self._config
        if self._way is not None:
            config = config.model_copy(update={"url": self._way.url})
        return options_for(config) | (RELAYED_OPTIONS if self._relay is not None else {})

    def _open_http(self) -> av.container.InputContainer:
        config = self._config
        if urlsplit(config.url).path.lower().endswith(".m3u8"):
            return self._open_hls()
        stream = HttpStream(config)
        if stream.is_playlist:
            return self._open_hls()
        self._fetched = stream.file
        return self._open_with(options_for(config), stream.container_format)

    def _open_hls(self) -> av.container.InputContainer:
        config = self._config
        before, self._hls_before = self._hls_before, None
        self._hls = HlsFiles(config, before)
        self._fetched = self._hls
        options = options_for(config) | HLS_OPTIONS
        # The playlist then begins with the segment that is to come next.
        return self._open_with(options if before is None else options | {"live_start_index": "0"}, "hls")

    def _open_with(self, options: dict[str, str], container_format: str | None = None) -> av.container.InputContainer:
        open_seconds = self._config.connect_timeout_seconds
        if isinstance(self._fetched, HttpFile):
            # The connection is there. The look at the stream ends with the packet that comes after this time.
            open_seconds = min(open_seconds, _LONGEST_LOOK_SECONDS)
        is_plain_file = self._is_file and self._fifo is None and self._hls is None
        with OPENING.turn() if is_plain_file else nullcontext():
            return av.open(
                self._fifo or (None if self._hls else self._fetched) or self._location(),
                "r",
                container_format,
                options,
                timeout=(open_seconds, self._config.stall_seconds),
                io_open=self._hls,
                # A title in another encoding is no reason not to show the pictures.
                metadata_errors="replace",
            )

    def _location(self) -> str:
        # The prefix keeps a path with a colon from being taken for a protocol.
        if self._is_file:
            return f"file:{self._path}" if self._hls is None else self._hls.address
        if self._relay is not None:
            return self._relay.url
        return with_password(self._config.url if self._way is None else self._way.url)

    def _choose_stream(self, container: av.container.InputContainer) -> av.VideoStream:
        stream = self._best_stream(container)
        codec = stream.codec_context
        if codec is None:
            raise SourceError(Reason.UNSUPPORTED_CODEC, "there is no decoder for its codec")
        refuse_text(codec.name)
        check_size(codec.width, codec.height)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        if self._hls is not None:
            # Otherwise FFmpeg fetches all variants, of which only one is shown.
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
        return stream

    def _best_stream(self, container: av.container.InputContainer) -> av.VideoStream:
        """The configured video, otherwise the one that FFmpeg ranks best."""
        streams = [s for s in container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
        if not streams:
            raise SourceError(Reason.NO_VIDEO, "there is no video in it")
        number = self._config.video_track
        if number is None:
            # Some covers are not marked as such, but come first and are marked as default.
            films = [s for s in streams if s.frames != 1] or streams
            best = container.streams.best("video")
            return next((s for s in films if best is not None and s.index == best.index), films[0])
        if number >= len(streams):
            raise SourceError(Reason.NO_VIDEO, f"it has no video track {number}: there are {len(streams)}, from 0 on")
        return streams[number]

    def _ends(self, container: av.container.InputContainer) -> bool:
        """Whether what comes from the network is a file: it has an end that is known from the beginning."""
        if self._kind not in HTTP_KINDS or container.format.name == "mpjpeg":
            return False
        if self._hls is not None:
            return self._hls.is_complete
        says_length = isinstance(self._fetched, HttpFile) and self._fetched.has_end
        return says_length or container.duration is not None

    def _describe(self) -> SourceInfo:
        codec = self._stream.codec_context
        rate = self._stream.average_rate if self._has_end and self._fifo is None else None
        return SourceInfo(
            codec=codec.codec.canonical_name,
            width=codec.width,
            height=codec.height,
            fps=float(rate) if rate else None,
            backend="av",
            hwaccel=None if self._decoder is None else self._decoder.name,
            transport=self._transport,
            live=not self._has_end,
        )

    def _next_frame(self) -> av.VideoFrame | None:
        """The next sound frame; None at the end.

        Raises:
            HeldError: data come, and nothing of it can be shown yet.
        """
        give_up_at = time.monotonic() + self._config.stall_seconds
        broken_before = self._soundness.broken_packets
        packets = 0
        while not self._frames:
            self._pass_left_out()
            packet = self._next_packet(packets, give_up_at)
            if packet is None and self._changes_format:
                self._go_on_in_other_format()
                continue
            if packet is None:
                return None
            packets += 1
            self._decode(packet)
            if not self._frames and not self._left_out and self._soundness.waits:
                self._wait_for_key_frame()
            if not self._frames and not self._left_out and time.monotonic() > give_up_at:
                raise self._nothing_decodes(packets, self._soundness.broken_packets - broken_before)
        frame, is_sound = self._frames.popleft()
        if not is_sound:
            raise HeldError(has_picture=True)
        return frame

    def _pass_left_out(self) -> None:
        """Reports the next picture that is not decoded, at the time at which it would be shown.

        Raises:
            LeftOutError: there is one.
        """
        if not self._left_out:
            return
        packet, is_sound = self._left_out.popleft()
        self._frames_of_round += 1
        at = self._clock.ahead(_pts_seconds(packet)) if self._is_paced else None
        if at is not None and self._pacer.wait(at):
            raise SourceError(Reason.TIMEOUT, "interrupted")
        raise LeftOutError(is_sound=is_sound)

    def _shown_at(self, packet: av.Packet[av.VideoStream]) -> float:
        """When the picture of a packet is to be shown, in monotonic seconds."""
        at = self._clock.ahead(_pts_seconds(packet)) if self._is_paced else None
        return time.monotonic() if at is None else self._pacer.due_at(at)

    def _wait_for_key_frame(self) -> None:
        if self._soundness.has_waited_too_long:
            detail = f"no key frame within {KEY_FRAME_SECONDS:g} s, {self._soundness.broken_packets} broken packets"
            raise SourceError(Reason.DECODE_ERROR, detail)
        if current_interrupt().is_set():
            raise SourceError(Reason.TIMEOUT, "no key frame yet")
        raise HeldError(has_picture=False)

    def _next_packet(self, packets: int, give_up_at: float) -> av.Packet[av.VideoStream] | None:
        if self._fetched is not None:
            self._fetched.wait_at_most(give_up_at - time.monotonic())
        try:
            packet, self._ahead = self._ahead or next(self._packets, None), None
        except (av.FFmpegError, OSError, UnicodeError) as error:
            if self._problem is not None:
                raise self._problem from None
            if self._changes_format:
                return None
            if self._is_file and not current_interrupt().is_set():
                # Data after the damage cannot be read; reading the file again would not help.
                return None
            if current_interrupt().is_set() or time.monotonic() >= give_up_at:
                raise self._nothing_decodes(packets, 0) from None
            if isinstance(error, ConnectionError | av.EOFError):
                raise SourceError(Reason.ENDED, "the connection was closed") from None
            raise failure_of(error, self._config) from None
        problem = self._problem
        # A file of HLS that cannot be read is left out, and others follow; of one answer, the last packet is torn.
        if problem is not None and (packet is None or (self._hls is None and self._is_last())):
            # Much came, and nothing that is a picture.
            raise self._nothing_decodes(packets, packets) if packets and problem.reason is Reason.TIMEOUT else problem
        return packet

    def _is_last(self) -> bool:
        """Whether no packet comes after this one; for when nothing more is read from the network."""
        try:
            self._ahead = next(self._packets, None)
        except (av.FFmpegError, OSError, UnicodeError):
            self._ahead = None
        return self._ahead is None or not self._ahead.size

    @property
    def _changes_format(self) -> bool:
        """Whether FFmpeg has come to the end of one format of a stream of fragments, which goes on in another."""
        return self._hls is not None and self._hls.has_other_format

    @property
    def _problem(self) -> SourceError | None:
        """Why the file that FFmpeg needs cannot be fetched; None if it can, or if the format has changed."""
        return None if self._fetched is None or self._changes_format else self._fetched.problem

    def _decode(self, packet: av.Packet[av.VideoStream]) -> None:
        started = time.perf_counter()
        self._free_decoder()
        self._frames.extend(self._soundness.decode(packet))
        self._left_out.extend(self._soundness.take_left_out())
        self._decode_seconds = time.perf_counter() - started
        if self._decoder is not None and self._decoder.name != self.info.hwaccel:
            self.info = replace(self.info, hwaccel=self._decoder.name)

    def _free_decoder(self) -> None:
        """Copies older pictures that are still in use, such as one that is detected.

        The newest is mostly what the decoder builds the next one on, so that it keeps its memory anyway; and most of
        the newest are replaced before anyone looks at them.
        """
        while len(self._returned) > 1:
            picture = self._returned.popleft()()
            if picture is not None:
                picture.leave_decoder()

    def _nothing_decodes(self, packets: int, broken: int) -> SourceError:
        seconds = self._config.stall_seconds
        # One may be what was torn when no more came; FFmpeg hands it out when it has waited long enough.
        if packets <= 1:
            return timed_out(seconds, "data")
        detail = f"no picture in {packets} packets within {seconds:g} s, {broken} of them broken"
        return SourceError(Reason.DECODE_ERROR, detail)

    def _end(self) -> SourceError:
        if not self._has_end:
            return SourceError(Reason.ENDED, "the server has ended the stream")
        if self._frames_of_round:
            return SourceError(Reason.ENDED, "the end of the file", is_final=True)
        return SourceError(Reason.DECODE_ERROR, "there is no picture in it that can be decoded")

    def _go_on_in_other_format(self) -> None:
        """Opens a stream of fragments again, from the segment on whose format is another one."""
        self._hls_before = self._hls
        self.close()
        self._open()
        self._clock.begin_again()

    def _begin_again(self) -> None:
        self.close()
        self._frames_of_round = 0
        self._open()
        self._clock.begin_again()

    def _timed(self, frame: av.VideoFrame) -> SourceFrame:
        pts_seconds = _pts_seconds(frame)
        if not self._has_timeline and self._has_no_timestamps:
            pts_seconds = None
        if self._has_timeline:
            pts_seconds = self._clock.at(pts_seconds)
            if self._clock.has_jumped:
                self._pacer.begin_again()
            if self._is_paced and self._pacer.wait(pts_seconds):
                raise SourceError(Reason.TIMEOUT, "interrupted")
        start = self._container.start_time_realtime if self._transport is not None and self._container else None
        captured_at, clock = self._camera_clock.at(start, pts_seconds)
        if pts_seconds is not None and not self._has_timeline:
            pts_seconds = self._live_clock.at(pts_seconds)
        quarter_turns = round(frame.rotation / 90) % 4
        if self._tap is not None:
            self._tap.show(quarter_turns)
        picture = AvPicture(frame, quarter_turns, self._sample_aspect())
        self._returned.append(weakref.ref(picture))
        return SourceFrame(picture, pts_seconds, captured_at, clock, self._decode_seconds, frame.pts)

    def _sample_aspect(self) -> Fraction | None:
        """Width of a pixel as a part of its height; None where nothing says so.

        What the container says counts for as long as the decoder says what it said at opening: streams change.
        """
        of_decoder = self._stream.codec_context.sample_aspect_ratio
        if of_decoder and of_decoder != self._aspect_of_decoder:
            return of_decoder
        return self._aspect_of_container or of_decoder


def _pts_seconds(of: av.VideoFrame | av.Packet[av.VideoStream]) -> float | None:
    return None if of.pts is None or of.time_base is None else float(of.pts * of.time_base)
