"""Reads the packets of a camera's main stream for clips, where detection runs on a smaller one (`detect_url`).

Nothing is decoded, and there is no connection while no rule asks for clips of the stream. The stream's state is that of
the smaller one: while the main stream cannot be read, detection goes on, and clips that lack their packets are counted.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from streamdet.capture.sources import Source, open_packets
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.capture.thread import Backoff
from streamdet.capture.watchdog import StallWatch
from streamdet.config import StreamConfig
from streamdet.errors import HeldError, SourceError
from streamdet.monitoring.log import LogThrottle
from streamdet.monitoring.unexpected import UnexpectedErrors, describe
from streamdet.security.plain_text import plain
from streamdet.security.redact import redact
from streamdet.types import EncodedPacket, PacketSink, Reason
from streamdet.worker import Worker

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_WATCH = StallWatch()


class PacketReader(Worker):
    """Passes on the packets of one stream, and connects again whenever that fails.

    Args:
        config: of the stream; `url` is read.
        packets: where they go; there is a connection while it is open.
        unexpected: reports errors that no one has thought of.
        backoff: waits between attempts.

    Attributes:
        failure: why it cannot be read; None while it can, or is not wanted.
    """

    join_timeout_seconds = 2.0

    def __init__(
        self, config: StreamConfig, packets: PacketSink, unexpected: UnexpectedErrors, backoff: Backoff | None = None
    ) -> None:
        super().__init__(f"packets-{config.name}")
        self.failure: SourceError | None = None
        self._config = config
        self._packets = packets
        self._unexpected = unexpected
        self._backoff = backoff or Backoff()
        self._interrupt = Interrupt()
        self._throttle = LogThrottle()
        self._watched = _WATCH.watched(self._interrupt.set, self._watch_failed)

    @property
    def is_open(self) -> bool:
        """Whether packets are wanted; as in `PacketSink`."""
        return self._packets.is_open and not self.stopping

    def put(self, packet: EncodedPacket) -> None:
        """Passes on a packet."""
        if not self.stopping:
            self._packets.put(packet)

    def accept(self) -> None:
        """Passes on that clips can be made of what comes."""
        if not self.stopping:
            self._packets.accept()

    def refuse(self, codec: str) -> None:
        """Passes on that clips cannot be made of a codec."""
        if not self.stopping:
            self._packets.refuse(codec)

    def wake(self) -> None:
        """Ends the wait for the next packet."""
        self._interrupt.set()

    def run(self) -> None:
        """Reads until a stop is asked for."""
        with self._interrupt.bound(), self._watched:
            while not self.stopping:
                if not self._packets.is_open:
                    self.failure = None
                    self.sleep(_LOOK_SECONDS)
                    continue
                began = time.monotonic()
                failure = self._attempt()
                if failure is None or self.stopping:
                    continue
                if self.failure is None:
                    self._backoff.reset(time.monotonic() - began)
                self.failure = failure
                text = f"no clips: its main stream cannot be read ({failure.reason}: {plain(redact(failure.detail))})"
                self._throttle.log(_log, logging.WARNING, "%s", text, stream=self._config.name)
                self.sleep(self._backoff.next_seconds())

    def _attempt(self) -> SourceError | None:
        """Reads until that fails, and returns why; None where packets are no longer wanted."""
        self._interrupt.clear()
        if self.stopping:
            # The stop may have come just before the flag was cleared.
            self._interrupt.set()
        try:
            self._watched.begin(2 * (self._config.connect_timeout_seconds + self._config.stall_seconds))
            source = open_packets(self._config, self)
            try:
                self._read(source)
            finally:
                source.close()
        except SourceError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is: detection must not end with it
            self._unexpected.report("capture", error, "its main stream is connected again", self._config.name)
            return SourceError(Reason.INTERNAL_ERROR, describe(error))
        finally:
            self._watched.end()
        return None

    def _read(self, source: Source) -> None:
        while self.is_open:
            self._watched.begin(self._config.stall_seconds)
            with suppress(HeldError):
                source.read()
            if self._interrupt.is_set():
                raise SourceError(Reason.TIMEOUT, f"no data within {self._config.stall_seconds:g} s")
            if self.failure is not None:
                self.failure = None
                self._throttle.log(_log, logging.INFO, "its main stream is read again", stream=self._config.name)

    def _watch_failed(self, error: BaseException) -> None:
        """Called by the watch when the interrupt could not be set."""
        self._unexpected.report("capture", error, "its main stream is not watched", self._config.name)
