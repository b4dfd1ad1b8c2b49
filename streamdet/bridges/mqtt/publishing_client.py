"""paho's client for a program that only publishes: what a broker sends beside its answers ends the connection."""

from __future__ import annotations

import struct

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes

_ANSWERS = frozenset((PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.PINGRESP, PacketTypes.DISCONNECT))
# The longest answer has a reason and properties for people.
_MAX_ANSWER_BYTES = 65_536


class PublishingClient(Client):
    """A client that has subscribed to nothing, so that only answers can come, and these are short.

    paho itself reads a packet of up to 256 MiB into memory, keeps messages that it has not asked for, and ends its
    thread at some malformed packets.
    """

    def limit_unacknowledged(self, receive_maximum: int) -> None:
        """Sends at most so many messages before the first is acknowledged; others wait. Before the first message.

        Args:
            receive_maximum: what the broker takes; paho ignores it, and a broker may end the connection for that.
        """
        self._max_inflight_messages = min(self._max_inflight_messages, receive_maximum)

    def _sock_recv(self, bufsize: int) -> bytes:
        """Receives; paho asks for all that is left of a packet."""
        if bufsize > _MAX_ANSWER_BYTES:
            message = f"the broker sends a packet of more than {_MAX_ANSWER_BYTES} bytes"
            raise ConnectionError(message)
        return super()._sock_recv(bufsize)

    def _packet_handle(self) -> MQTTErrorCode:
        """Handles a packet that is complete."""
        if self._in_packet["command"] >> 4 not in _ANSWERS:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            return super()._packet_handle()
        except (struct.error, LookupError, TypeError, ValueError, AttributeError, AssertionError):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
