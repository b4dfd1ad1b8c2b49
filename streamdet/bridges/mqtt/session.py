"""One connection to an MQTT broker, from its login to its end. It is never repaired: what follows is a new session."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from streamdet.bridges.mqtt.messages import MAX_TOPIC_BYTES, Message
from streamdet.errors import StreamdetError
from streamdet.security.tls import client_context

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from streamdet.bridges.mqtt.publishing_client import PublishingClient

_CONNECT_TIMEOUT_SECONDS = 5.0
_LOGIN_TIMEOUT_SECONDS = 10.0
_CLOSE_TIMEOUT_SECONDS = 2.0
_KEEPALIVE_SECONDS = 15
# A broker that works answers a message within moments; one that sends pings back and nothing else is left.
_ACKNOWLEDGE_TIMEOUT_SECONDS = 60.0
# Of a broker that names none.
_MAX_RECEIVE_MAXIMUM = 65_535
# PUBLISH: type, length (4 bytes at most), length of the topic, number of the packet, properties.
_MAX_HEADER_BYTES = 16
# Reason codes of MQTT 5 after which the same message may be accepted later: quota exceeded, unspecified error,
# implementation specific error.
_TRY_AGAIN = frozenset((0x97, 0x80, 0x83))
_UNSPECIFIED = 0x80
_RETAIN_NOT_SUPPORTED = 0x9A
# What a person can do about a connection that is refused, by reason code of MQTT 5; paho translates those of 3.1.1.
_ADVICE = {
    0x84: "; see protocol in [mqtt]",
    0x86: "; see username and password in [mqtt]",
    0x87: "; see username and password in [mqtt]",
}


class MqttError(StreamdetError):
    """The broker cannot be reached, refuses the login, or has ended the connection."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is, and how to log in.

    Attributes:
        host: name or address.
        port: of TCP.
        client_id: by which the broker knows this client; a second one with the same id ends the first.
        protocol: version of MQTT.
        tls: whether the connection is encrypted.
        ca_file: PEM file of the authorities that may have signed the broker's certificate; None for the system's.
        certificate_file: PEM file of this client's own certificate; None for none.
        key_file: PEM file of its key.
        username: None for no login.
        password: None for none.
    """

    host: str
    port: int
    client_id: str
    protocol: Literal["5", "3.1.1"] = "5"
    tls: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class _Refusal(NamedTuple):
    """Why there is no connection.

    Attributes:
        reason: code of MQTT 5; None where the broker has given none.
        text: for people.
    """

    reason: int | None
    text: str


class Session:
    """A connection to the broker; a context manager, which closes it.

    Its network thread is paho's. Every message is sent with QoS 1: it has arrived when `acknowledged` returns it. It
    subscribes to nothing: a broker that sends anything but answers ends it.

    Args:
        address: of the broker.
        last_will: what the broker publishes if this connection ends without a farewell.

    Attributes:
        retains: whether the broker keeps what is to be retained; where it does not, that is sent as any other message.
        unacknowledged_bytes: size of the messages that the broker has not answered.

    Raises:
        MqttError: there is no connection; the message says why.
    """

    def __init__(self, address: BrokerAddress, last_will: Message) -> None:
        self.retains = True
        self._problem: str | None = None
        self._unacknowledged: dict[int, int] = {}  # size in bytes, by number
        self._waits_since = 0.0
        self._answer: queue.SimpleQueue[_Refusal | None] = queue.SimpleQueue()
        self._acknowledged: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._max_packet_bytes = 0
        self.unacknowledged_bytes = 0
        refusal = self._connect(address, last_will)
        if refusal is not None and refusal.reason == _RETAIN_NOT_SUPPORTED:
            self.retains, self._problem = False, None
            self._answer, self._ended = queue.SimpleQueue(), threading.Event()
            refusal = self._connect(address, replace(last_will, retain=False))
        if refusal is not None:
            raise MqttError(refusal.text)

    def _connect(self, address: BrokerAddress, last_will: Message) -> _Refusal | None:
        """Connects; returns why the broker does not accept it, None if it does.

        Raises:
            MqttError: the broker cannot be reached.
        """
        self._client = client = self._make_client(address)
        client.will_set(last_will.topic, last_will.payload, qos=1, retain=last_will.retain)
        try:
            client.connect(address.host, address.port, keepalive=_KEEPALIVE_SECONDS)
        except ssl.SSLCertVerificationError as error:
            message = f"the certificate of the broker is not valid: {error.verify_message}"
            raise MqttError(message) from error
        except (OSError, ValueError) as error:
            message = f"the broker cannot be reached: {error}"
            raise MqttError(message) from error
        client.loop_start()
        try:
            refusal = self._answer.get(timeout=_LOGIN_TIMEOUT_SECONDS)
        except queue.Empty:
            refusal = _Refusal(None, f"the broker has not answered for {_LOGIN_TIMEOUT_SECONDS:g} seconds")
        if refusal is not None:
            self._end()
        return refusal

    @property
    def problem(self) -> str | None:
        """Why the connection has ended, or is to be ended; None while it is open."""
        waits_seconds = time.monotonic() - self._waits_since
        if self._problem is None and self._unacknowledged and waits_seconds > _ACKNOWLEDGE_TIMEOUT_SECONDS:
            return f"the broker has acknowledged nothing for {_ACKNOWLEDGE_TIMEOUT_SECONDS:g} seconds"
        return self._problem

    def publish(self, message: Message) -> int | None:
        """Sends a message, without waiting; returns its number, None where it is larger than MQTT or the broker allows.

        Raises:
            MqttError: the connection has ended.
        """
        topic_bytes = len(message.topic.encode())
        size = len(message.payload) + topic_bytes + _MAX_HEADER_BYTES
        if topic_bytes > MAX_TOPIC_BYTES or (self._max_packet_bytes and size > self._max_packet_bytes):
            return None
        if self._problem is None:
            if not self._unacknowledged:
                self._waits_since = time.monotonic()
            sent = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain and self.retains)
            if sent.rc == 0:
                number: int = sent.mid
                self._unacknowledged[number] = size
                self.unacknowledged_bytes += size
                return number
        raise MqttError(self._problem or "the connection to the broker has ended")

    def acknowledged(self, timeout_seconds: float = 0.0) -> list[tuple[int, str | None]]:
        """Numbers of messages that the broker has answered, each with the reason if it refuses the message for good.

        Args:
            timeout_seconds: how long to wait for the first one.
        """
        answers = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._acknowledged.get(timeout=timeout_seconds) if timeout_seconds else
                           self._acknowledged.get_nowait())  # fmt: skip
            while True:
                answers.append(self._acknowledged.get_nowait())
        for number, _ in answers:
            self.unacknowledged_bytes -= self._unacknowledged.pop(number, 0)
            self._waits_since = time.monotonic()
        return answers

    def close(self, farewell: Message | None = None) -> None:
        """Ends the connection, so that the last will is not published; `acknowledged` can still be called.

        Args:
            farewell: the last message; waited for, for two seconds at most.
        """
        others: list[tuple[int, str | None]] = []
        if farewell is not None and self._problem is None:
            with contextlib.suppress(MqttError):
                number, deadline = self.publish(farewell), time.monotonic() + _CLOSE_TIMEOUT_SECONDS
                while number is not None and (left := deadline - time.monotonic()) > 0:
                    others += self.acknowledged(left)
                    if any(found == number for found, _ in others):
                        break
        self._end()
        for answer in others:
            self._acknowledged.put(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        # The socket first: after `disconnect` it may be closed at any time, and a broker that hangs would never close.
        connection = self._client.socket()
        self._client.disconnect()
        if not self._ended.wait(_CLOSE_TIMEOUT_SECONDS) and isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def _make_client(self, address: BrokerAddress) -> PublishingClient:
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion  # noqa: PLC0415 - part of an extra

        from streamdet.bridges.mqtt.publishing_client import PublishingClient  # noqa: PLC0415 - part of an extra

        client = PublishingClient(
            CallbackAPIVersion.VERSION2,
            client_id=address.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if address.protocol == "5" else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_TIMEOUT_SECONDS
        client.username_pw_set(address.username, address.password)
        if address.tls:
            client.tls_set_context(_tls_context(address))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def _on_connect(
        self,
        _client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", 0)
        self.retains = self.retains and bool(getattr(properties, "RetainAvailable", 1))
        self._client.limit_unacknowledged(getattr(properties, "ReceiveMaximum", _MAX_RECEIVE_MAXIMUM))
        if reason.is_failure:
            advice = _ADVICE.get(reason.value, "")
            self._answer.put(_Refusal(reason.value, f"the broker refuses the connection: {reason}{advice}"))
        elif getattr(properties, "MaximumQoS", 2) == 0:
            self._answer.put(_Refusal(None, "the broker accepts QoS 0 alone, with which events may be lost"))
        else:
            self._answer.put(None)

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        why = "" if reason.value == _UNSPECIFIED else f": {reason}"
        self._problem = self._problem or f"the connection to the broker has ended{why}"
        self._answer.put(_Refusal(None, self._problem))
        self._ended.set()

    def _on_publish(
        self, client: Client, _data: object, number: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure and reason.value in _TRY_AGAIN:
            self._problem = f"the broker does not accept messages: {reason}"
            client.disconnect()
            return
        self._acknowledged.put((number, str(reason) if reason.is_failure else None))


class _TlsSocket(ssl.SSLSocket):
    """Closes itself if the handshake fails, which paho does not."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - as in the standard library
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _tls_context(address: BrokerAddress) -> ssl.SSLContext:
    try:
        context = client_context(address.ca_file)
        context.sslsocket_class = _TlsSocket
        if address.certificate_file is not None:
            context.load_cert_chain(address.certificate_file, address.key_file)
    except (OSError, ValueError) as error:
        message = f"a file for TLS cannot be used: {error}"
        raise MqttError(message) from error
    return context
