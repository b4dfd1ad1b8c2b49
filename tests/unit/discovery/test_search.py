"""What counts as the answer of a camera to a search."""

from __future__ import annotations

import uuid
from xml.etree.ElementTree import tostring

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamdet.discovery.camera import at_host
from streamdet.discovery.search import Answer, named, read_answers
from streamdet.discovery.soap import read_xml
from streamdet.errors import StreamdetError
from support.onvif import probe_match

QUESTION = uuid.UUID(int=0xA1B2C3D4E5)
DEVICE = str(uuid.UUID(int=0xF0E1D2))
OURS = "http://192.0.2.5/onvif/device_service"


def answers(services: str = OURS, question: object = f"urn:uuid:{QUESTION}", **more: str) -> list[Answer]:
    return list(read_answers(probe_match(str(question), services, DEVICE, **more), "192.0.2.5", [QUESTION]))


def test_an_answer_holds_what_a_camera_says_of_itself() -> None:
    assert answers() == [Answer("192.0.2.5", (OURS,), DEVICE, "Front Door", "M1135")]


@pytest.mark.parametrize("question", [f"uuid:{QUESTION}", str(QUESTION).upper()])
def test_ids_may_be_written_in_other_ways(question: str) -> None:
    assert len(answers(question=question)) == 1


@pytest.mark.parametrize("question", ["", "urn:uuid:1", uuid.UUID(int=7)])
def test_an_answer_to_another_question_is_none(question: object) -> None:
    assert answers(question=question) == []


def test_printers_are_no_cameras() -> None:
    assert answers(scopes="http://printer/scope", types="wsdp:Device") == []
    assert len(answers(scopes="http://other/scope")) == 1
    assert len(answers(types="tds:Device")) == 1


def test_the_own_address_comes_first() -> None:
    (answer,) = answers(f"http://198.51.100.7/a ftp://192.0.2.5/ http://[fe80::1]/b {OURS} https://192.0.2.5:99999/")
    assert answer.services == (OURS, "http://198.51.100.7/a", "http://[fe80::1]/b")


@pytest.mark.parametrize("services", ["", "nonsense", "http://", "http://[", "x" * 5000, "file:///etc/passwd"])
def test_without_an_address_it_is_the_usual_one(services: str) -> None:
    assert answers(services)[0].services == (OURS,)


def test_what_a_camera_says_of_itself_cannot_reach_the_terminal() -> None:
    (answer,) = answers(scopes="onvif://www.onvif.org/name/%1b[2J%E2%80%AE" + "x" * 500)
    assert answer.name.startswith("\\x1b[2J\\u202e")
    assert len(answer.name) <= 100


@given(st.binary(max_size=200))
@example(b"<!DOCTYPE a []><a/>")
@example(b"\xff\xfe<\x00a\x00/\x00>\x00")
@example(b"<a xmlns:\xc3\xa9='u'/>")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert list(read_answers(data, "192.0.2.5", [QUESTION])) == []


@given(st.data())
def test_a_broken_answer_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(probe_match(f"urn:uuid:{QUESTION}", OURS, DEVICE))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert len(list(read_answers(bytes(raw), "192.0.2.5", [QUESTION]))) <= 1


def test_names_of_elements_are_without_their_namespaces() -> None:
    read = read_xml(b'<x:a xmlns:x="urn:1" b="&lt;"><x:c>d&amp;e</x:c></x:a>')
    assert tostring(read) == b'<a b="&lt;"><c>d&amp;e</c></a>'


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.5", "http://192.0.2.5/onvif/device_service"),
        ("camera.lan:8080", "http://camera.lan:8080/onvif/device_service"),
        ("2001:db8::5", "http://[2001:db8::5]/onvif/device_service"),
        ("[2001:db8::5]:81", "http://[2001:db8::5]:81/onvif/device_service"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]/onvif/device_service"),
    ],
)
def test_a_host_may_be_named(host: str, address: str) -> None:
    assert named(host).services == (address,)


@pytest.mark.parametrize("host", ["", "http://192.0.2.5", "a:b@192.0.2.5", "a/b", "a b", "h:x", "h:0", "h:99999", "\n"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(StreamdetError, match="is not a host"):
        named(host)


def test_a_camera_is_asked_on_its_own_host() -> None:
    assert at_host("http://a:b@198.51.100.7:81/x?y=1#z", "192.0.2.5") == "http://192.0.2.5:81/x?y=1"
    assert at_host("rtsp://198.51.100.7/x", "fe80::1%eth0") == "rtsp://[fe80::1%eth0]/x"
