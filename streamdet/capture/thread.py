"""Runs one stream: opens its source, passes on its frames, and opens it again whenever it fails.

    connecting -> up -> (stalled) -> down -> connecting ...

This is the only retry loop of what is decoded (packets for clips may have another, in `packet_reader`). A stream is
`up` from its first sound frame on, `stalled` when sound frames are missing for `stall_seconds`, whatever the library
does meanwhile, and `down`, with a reason, until the next attempt. One that is joined between two key frames stays
`connecting` until the next one comes. A file that is played once ends `down` with the reason `ended`, for good.

An error here concerns one stream, and ends at most its connection: an unexpected one has the reason
`internal_error`, and a picture that the detector cannot use takes its stream down from outside.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable

from streamdet.capture import sources
from streamdet.capture.load_limit import LoadLimit
from streamdet.capture.sources import Source, SourceFrame
from streamdet.capture.sources.clocks import FrameRate
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.capture.watchdog import StallWatch
from streamdet.config import StreamConfig
from streamdet.errors import HeldError, LeftOutError, SourceError
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.unexpected import describe
from streamdet.security.plain_text import plain
from streamdet.security.redact import redact
from streamdet.types import Demand, Drop, EncodedPacket, Frame, PacketSink, Reason, State, StreamStatus
from streamdet.worker import Worker

_HEALTHY_SECONDS = 60.0
# Failures that may well come back with the next frames, and cost more than a connection.
_COSTLY = frozenset({Reason.OVERLOAD, Reason.DECODE_ERROR, Reason.INTERNAL_ERROR})
# Connections that bring frames begin at least this number of first waits apart.
_SHORTEST_ROUND = 4
# Key frames mostly come within a second: that is not reported.
_UNSAID_WAIT_SECONDS = 1.5
_WATCH = StallWatch()


class Backoff:
    """How long to wait before the next attempt: twice as long each time, from 1 s to 30 s, give or take a fifth.

    Args:
        first_seconds: before the first attempt.
        longest_seconds: the upper bound, before the random part.
    """

    def __init__(self, first_seconds: float = 1.0, longest_seconds: float = 30.0) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._next_seconds = first_seconds

    def next_seconds(self) -> float:
        """The next wait, in seconds."""
        seconds = self._next_seconds
        self._next_seconds = min(self._longest_seconds, seconds * 2)
        # Cameras that failed together should not all be asked in the same moment.
        return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret

    def reset(self, up_seconds: float) -> None:
        """Starts again with the first wait; with a longer one after a connection that brought frames only shortly.

        Args:
            up_seconds: how long frames came.
        """
        longest_seconds = min(self._longest_seconds, self._first_seconds * _SHORTEST_ROUND)
        self._next_seconds = max(self._first_seconds, longest_seconds - up_seconds)


class Capture(Worker):
    """One stream's thread.

    Args:
        config: of the stream.
        put: called with every frame; may block only for streams of pace "fastest".
        on_status: called with every change of state, from this thread or from the one that watches for stalls.
        metrics: counts frames, decoding times, states and reconnects.
        open_source: opens the source.
        on_error: called when the thread has ended by an error: not even the stream's state could be reported.
        waits: whether the thread, once started, waits for `begin` before it connects.
        backoff: waits between attempts.
        packets: gets the encoded packets of the stream, too; None where they are not wanted.
        demand: which frames are worth decoding; None for all.

    Attributes:
        last_seq: of the newest frame; 0 before the first.
        status: what the stream is doing.
    """

    # A library that does not end a read when it is interrupted is left behind; its thread then releases the source.
    join_timeout_seconds = 2.0

    def __init__(
        self,
        config: StreamConfig,
        put: Callable[[Frame], None],
        on_status: Callable[[StreamStatus], None],
        metrics: Metrics,
        open_source: Callable[[StreamConfig], Source] | None = None,
        on_error: Callable[[Worker], None] | None = None,
        *,
        waits: bool = False,
        backoff: Backoff | None = None,
        packets: PacketSink | None = None,
        demand: Demand | None = None,
    ) -> None:
        super().__init__(f"capture-{config.name}", on_error)
        self.last_seq = 0
        self.status = StreamStatus(config.name, State.CONNECTING, None, "", time.time())
        self._config = config.detected
        # Packets of another stream have other timestamps.
        self._has_own_packets = config.detect_url is None
        self._put = put
        self._on_status = on_status
        self._metrics = metrics
        own_packets = None if packets is None else _OwnPackets(self, packets)
        self._open_source = open_source or functools.partial(sources.open_source, packets=own_packets, demand=demand)
        self._backoff = backoff or Backoff()
        self._may_begin = threading.Event()
        if not waits:
            self._may_begin.set()
        self._was_live = False
        self._rate = FrameRate()
        self._interrupt = Interrupt()
        self._load = LoadLimit()
        self._lock = threading.Lock()
        self._connected_after_seq = 0
        self._condemned: SourceError | None = None
        self._up_since: float | None = None
        self._held_at = self._left_out_at = float("-inf")
        self._watched = _WATCH.watched(self._on_overdue, self._watch_failed)

    def begin(self, last_seq: int) -> None:
        """Lets a capture that waits connect.

        Args:
            last_seq: of the stream's newest frame; 0 for a new stream.
        """
        self.last_seq = last_seq
        self._may_begin.set()

    def wake(self) -> None:
        """Ends the wait for `begin`, or for the next frame."""
        self._may_begin.set()
        self._interrupt.set()

    def run(self) -> None:
        """Captures until a stop is asked for, or a file has come to its end."""
        self._may_begin.wait()
        with self._interrupt.bound(), self._watched:
            while not self.stopping:
                failure = self._attempt()
                # A live playlist that has ended looks like a film when it is read again; its encoder may come back.
                if self.stopping or (failure.is_final and not self._was_live):
                    break
                if self._up_since is not None:
                    up_seconds = time.monotonic() - self._up_since
                    if failure.reason not in _COSTLY or up_seconds > _HEALTHY_SECONDS:
                        self._backoff.reset(up_seconds)
                if self.sleep(self._backoff.next_seconds()):
                    break
                self._metrics.reconnect(self._config.name, failure.reason)

    def take_down(self, seq: int, failure: SourceError) -> None:
        """Closes the connection, which is opened again later, because a frame could not be used; from any thread.

        Args:
            seq: of the frame; one of an earlier connection changes nothing.
            failure: why.
        """
        with self._lock:
            if seq <= self._connected_after_seq or self._condemned is not None:
                return
            self._condemned = failure
        self._interrupt.set()

    def _attempt(self) -> SourceError:
        """Captures until that fails, and reports the failure."""
        try:
            failure = self._connect_and_capture()
            if not self.stopping:
                self._report(State.DOWN, failure.reason, failure.detail)
        except Exception as error:  # noqa: BLE001 - whatever it is: one stream must not end all others
            failure = self._unforeseen(error)
            if not self.stopping:
                self._report(State.DOWN, failure.reason, failure.detail)
        return failure

    def _unforeseen(self, error: BaseException) -> SourceError:
        self._metrics.unexpected.report("capture", error, "the stream is connected again", self._config.name)
        return SourceError(Reason.INTERNAL_ERROR, describe(error))

    def _connect_and_capture(self) -> SourceError:
        """Opens the source and passes on frames until it fails; returns why it failed."""
        self._up_since = None
        self._report(State.CONNECTING, self.status.reason, self.status.detail)
        with self._lock:
            self._connected_after_seq, self._condemned = self.last_seq, None
        self._interrupt.clear()
        if self.stopping:
            # The stop may have come just before the flag was cleared.
            self._interrupt.set()
        try:
            source = self._open_in_time()
        except SourceError as error:
            return error
        self._was_live |= source.info.live
        self._load.begin()
        self._rate = FrameRate()
        self._metrics.nominal_fps(self._config.name, None)
        connected_at = sound_at = time.monotonic()
        self._held_at = float("-inf")
        try:
            while not self.stopping:
                self._metrics.decoder(self._config.name, source.info.hwaccel or "cpu")
                frame = self._read_in_time(source, sound_at + self._config.stall_seconds)
                if source.info.live:
                    self._load.frame()
                if frame is None:
                    if self._up_since is None:
                        sound_at = time.monotonic()
                        self._wait_for_key_frame(sound_at - connected_at)
                    elif self._left_out_at > sound_at:
                        sound_at = self._left_out_at
                    continue
                begins = self._up_since is None
                if begins:
                    self._up_since = time.monotonic()
                    self._report(State.UP, None, "")
                self._hand_on(frame, begins=begins)
                del frame  # megabytes, not to be kept while the next one is waited for and decoded
                sound_at = time.monotonic()
        except SourceError as error:
            # A read that was interrupted because of an earlier frame fails with a time-out.
            return self._condemned or error
        finally:
            source.close()
        return SourceError(Reason.ENDED, "stopped")

    def _open_in_time(self) -> Source:
        # Opening goes through several steps, each with the connect time-out; then the first pictures may be slow.
        self._watched.begin(2 * (self._config.connect_timeout_seconds + self._config.stall_seconds))
        try:
            return self._open_source(self._config)
        finally:
            self._watched.end()

    def _read_in_time(self, source: Source, deadline: float) -> SourceFrame | None:
        """The next frame; None where data came, but no sound frame yet.

        Args:
            source: to read.
            deadline: for a sound frame, on the clock of `time.monotonic`.
        """
        self._watched.begin(deadline - time.monotonic())
        frame = None
        try:
            frame = source.read()
        except LeftOutError as left_out:
            self._count_left_out(is_sound=left_out.is_sound)
        except HeldError as held:
            self._held_at = time.monotonic()
            if held.has_picture:
                self.last_seq += 1
                self._metrics.frame_damaged(self._config.name)
        finally:
            overdue = self._watched.end()
        if self._condemned is not None:
            raise self._condemned
        if overdue and not self.stopping:
            # It came after all, but from a connection that has stalled.
            raise SourceError(Reason.TIMEOUT, f"no frame within {self._config.stall_seconds:g} s")
        return frame

    def _count_left_out(self, *, is_sound: bool) -> None:
        self.last_seq += 1
        self.beat()
        self._rate.add_left_out()
        self._metrics.frame_not_decoded(self._config.name, time.time())
        if is_sound:
            self._left_out_at = time.monotonic()

    def _wait_for_key_frame(self, waited_seconds: float) -> None:
        """Reports, once, that data arrive but no picture can be shown before the next key frame."""
        self.beat()
        text = "waiting for a key frame"
        if waited_seconds > _UNSAID_WAIT_SECONDS and self.status.detail != text:
            self._report(State.CONNECTING, self.status.reason, text)

    def _hand_on(self, frame: SourceFrame, *, begins: bool) -> None:
        self.last_seq += 1
        self.beat()
        self._metrics.capture_decode_seconds.observe(frame.decode_seconds)
        captured = Frame(
            stream=self._config.name,
            seq=self.last_seq,
            pts_seconds=frame.pts_seconds,
            captured_at=frame.captured_at,
            clock=frame.clock,
            captured_monotonic_seconds=time.monotonic(),
            picture=frame.picture,
            decode_seconds=frame.decode_seconds,
            packet_pts=frame.packet_pts if self._has_own_packets else None,
            begins=begins,
        )
        # This machine's clock: alerts on a stream's newest frame must not depend on a camera's clock.
        self._metrics.frame_captured(self._config.name, time.time())
        if self._rate.add(frame.pts_seconds, time.monotonic()):
            self._metrics.nominal_fps(self._config.name, self._rate.fps)
        try:
            self._put(captured)
        except Exception:
            # It is in the ledger already, and will not be published.
            self._metrics.frame_dropped(self._config.name, Drop.INTERNAL_ERROR)
            raise

    def _watch_failed(self, error: BaseException) -> None:
        """Called by the watch, when it could not report that this stream has stalled."""
        self.take_down(self.last_seq + 1, self._unforeseen(error))

    def _on_overdue(self) -> None:
        """Called by the watch, while the library blocks the capture's own thread."""
        reason, detail = Reason.TIMEOUT, f"no frame within {self._config.stall_seconds:g} s"
        if time.monotonic() - self._held_at < self._config.stall_seconds / 2:
            reason = Reason.DECODE_ERROR
            detail = f"nothing but damaged pictures for {self._config.stall_seconds:g} s, and no sound key frame"
            self._condemned = self._condemned or SourceError(reason, detail)
        if self.status.state is State.UP:
            self._report(State.STALLED, reason, detail)
        self._interrupt.set()

    def _report(self, state: State, reason: Reason | None, detail: str) -> None:
        self.status = StreamStatus(self._config.name, state, reason, plain(redact(detail)), time.time())
        self._metrics.status(self.status)
        self._on_status(self.status)


class _OwnPackets:
    """Passes on the packets of a capture until it is asked to stop.

    A capture that is left behind may still read a packet, when the next one of its stream has begun.
    """

    def __init__(self, capture: Capture, packets: PacketSink) -> None:
        self._capture = capture
        self._packets = packets

    @property
    def is_open(self) -> bool:
        return self._packets.is_open and not self._capture.stopping

    def put(self, packet: EncodedPacket) -> None:
        if not self._capture.stopping:
            self._packets.put(packet)

    def accept(self) -> None:
        if not self._capture.stopping:
            self._packets.accept()

    def refuse(self, codec: str) -> None:
        if not self._capture.stopping:
            self._packets.refuse(codec)
