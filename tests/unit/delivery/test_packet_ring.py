"""A ring is bounded, its time never begins again, and a clip is cut exactly once, whatever the timestamps say."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.delivery.packet_ring import Cut, PacketRing
from streamdet.types import EncodedPacket, VideoParameters

FPS = 10
SECOND = 90_000
ONE, OTHER = VideoParameters("h264", (b"one",)), VideoParameters("h264", (b"other",))


def packet(
    number: int,
    *,
    pts: int | None = None,
    is_timed: bool = True,
    group: int = FPS,
    begins: bool = False,
    parameters: VideoParameters = ONE,
    at: float | None = None,
    size: int = 1000,
) -> EncodedPacket:
    """The packet with a number, a key frame each second, that arrived when it was to."""
    shown = number if pts is None else pts
    return EncodedPacket(
        bytes(size),
        pts=shown if is_timed else None,
        dts=shown if is_timed else None,
        duration=1 if is_timed else None,
        time_base=Fraction(1, FPS),
        is_key=number % group == 0,
        begins=begins or number == 0,
        parameters=parameters,
        arrived_monotonic_seconds=number / FPS if at is None else at,
    )


class Ring(PacketRing):
    """A ring that keeps what is cut out of it."""

    def __init__(self, seconds: float = 10, max_bytes: int = 1 << 30) -> None:
        self.cuts: list[Cut] = []
        self._ids = iter(range(1000))
        super().__init__("yard", seconds, max_bytes, self.cuts.append)
        self.open(is_open=True)

    def put_all(self, *packets: EncodedPacket) -> None:
        for each in packets:
            self.put(each)

    def ask(self, pts: int | None, captured: float, before: float = 1, after: float = 1) -> str:
        return self.want(lambda: str(next(self._ids)), pts, captured, (before, after))


def numbers(cut: Cut) -> list[int | None]:
    return [timed.packet.pts for timed in cut.packets]


def places(cut: Cut) -> list[float]:
    first = cut.packets[0].at
    return [(timed.at - first) / SECOND for timed in cut.packets]


def test_a_clip_is_cut_when_its_last_picture_has_come() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(36)))
    ring.ask(34, 3.6)
    ring.put_all(*map(packet, range(36, 45)))
    assert ring.cuts == []
    ring.put(packet(45))
    (cut,) = ring.cuts
    assert numbers(cut) == [*range(20, 45)]
    assert not cut.lacks_begin
    assert not cut.lacks_end
    ring.put_all(*map(packet, range(46, 80)))
    assert len(ring.cuts) == 1


def test_what_has_come_already_is_cut_at_once() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(60)))
    ring.ask(34, 3.45)
    assert numbers(ring.cuts[0]) == [*range(20, 45)]


@given(st.integers(1, 40), st.integers(1, 30))
def test_a_ring_is_bounded_in_seconds(group: int, seconds: int) -> None:
    ring = Ring(seconds)
    for number in range(FPS * (seconds + 10)):
        ring.put(packet(number, group=group))
        assert ring.size_bytes <= (FPS * (seconds + 2) + group + 1) * 1500


@given(st.integers(1, 10), st.integers(20_000, 60_000))
def test_a_ring_is_bounded_in_bytes_and_full_up_to_a_group(group: int, max_bytes: int) -> None:
    ring = Ring(1000, max_bytes)
    for number in range(200):
        ring.put(packet(number, group=group))
        assert ring.size_bytes <= max_bytes
    assert ring.size_bytes > max_bytes - (group + 1) * 1500


def test_a_group_that_is_larger_than_the_ring_is_given_up_until_the_next() -> None:
    ring = Ring(max_bytes=20_000)
    ring.put_all(*(packet(number, group=50) for number in range(40)))
    with pytest.raises(LookupError, match="too_large"):
        ring.ask(39, 3.95)
    ring.put_all(*(packet(number, group=50) for number in range(40, 60)))
    ring.ask(55, 5.95)
    assert numbers(ring.cuts[0] if ring.cuts else ring_rest(ring)) == [*range(50, 60)]


def ring_rest(ring: Ring) -> Cut:
    ring.expire(0.0, all_of_them=True)
    return ring.cuts[-1]


@pytest.mark.parametrize("gap", [0.1, 3.0])
def test_time_goes_on_over_connections(gap: float) -> None:
    """The timestamps of the second one begin again, and say nothing of the first one's."""
    ring = Ring()
    ring.put_all(*map(packet, range(20)))
    ring.put_all(*(packet(n, pts=n - 20, begins=n == 20, at=n / FPS + gap - 0.1) for n in range(20, 40)))
    ring.ask(5, 2.5 + gap - 0.05, before=9, after=0)
    (cut,) = ring.cuts
    assert numbers(cut) == [*range(20), *range(6)]
    assert places(cut)[19:21] == pytest.approx([1.9, 1.9 + gap])
    assert cut.lacks_begin


def test_other_parameters_begin_another_clip() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(20)))
    ring.ask(15, 1.55, before=1, after=3)
    ring.put_all(*(packet(number, parameters=OTHER) for number in range(20, 60)))
    assert numbers(ring.cuts[0]) == [*range(20)]
    assert ring.cuts[0].lacks_end
    ring.ask(25, 2.55, before=2, after=1)
    assert numbers(ring.cuts[1]) == [*range(20, 36)]
    assert ring.cuts[1].lacks_begin


def test_an_encoder_that_starts_again_on_the_same_connection() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(30)))
    ring.put_all(*(packet(number, pts=number + 5_000_000) for number in range(30, 40)))
    ring.put_all(*(packet(number, pts=number - 40) for number in range(40, 60)))
    ring.ask(10, 5.05, before=9, after=0.5)
    assert places(ring.cuts[0]) == pytest.approx([n / FPS for n in range(56)])


def test_without_timestamps_the_time_of_arrival_counts() -> None:
    ring = Ring()
    ring.put_all(*(packet(number, is_timed=False) for number in range(50)))
    ring.ask(None, 2.55)
    assert places(ring.cuts[0]) == pytest.approx([n / FPS for n in range(26)])


def test_clips_that_overlap_are_one_as_long_as_the_ring_holds_both() -> None:
    ring = Ring(seconds=4)
    ring.put_all(*map(packet, range(26)))
    first = ring.ask(25, 2.55)
    ring.put_all(*map(packet, range(26, 34)))
    assert ring.ask(33, 3.35) == first
    other = ring.ask(33, 3.35, before=1, after=3)
    assert other != first
    ring.put_all(*map(packet, range(34, 70)))
    assert [cut.clip_id for cut in ring.cuts] == [first, other]
    assert {*range(15, 43)} <= {*numbers(ring.cuts[0])}


def test_alerts_in_two_formats_have_a_clip_each() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(20)))
    first = ring.ask(15, 1.55, before=1, after=3)
    ring.put_all(*(packet(number, parameters=OTHER) for number in range(20, 30)))
    other = ring.ask(25, 2.55, before=1, after=1)
    assert other != first
    ring.put_all(*(packet(number, parameters=OTHER) for number in range(30, 60)))
    found = {cut.clip_id: numbers(cut) for cut in ring.cuts}
    assert found == {first: [*range(20)], other: [*range(20, 36)]}


def test_what_does_not_come_is_not_waited_for_for_ever() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(26)))
    ring.ask(25, 2.55)
    due = ring.expire(2.6)
    assert due == pytest.approx(5.55)
    assert ring.cuts == []
    assert ring.expire(5.6) is None
    assert numbers(ring.cuts[0])[-1] == 25
    assert ring.cuts[0].lacks_end


def test_a_slow_stream_is_waited_for_while_it_goes_on() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(26)))
    ring.ask(25, 2.55)
    ring.put(packet(26, at=9.0))
    assert ring.expire(9.5) is not None
    assert ring.cuts == []
    assert ring.expire(12.0) is None
    assert len(ring.cuts) == 1


def test_a_ring_that_was_just_opened_begins_with_the_next_key_frame() -> None:
    ring = Ring()
    opened = time.monotonic()
    first = ring.ask(3, opened - 0.1, after=1)
    assert ring.ask(4, opened, after=1.5) == first
    ring.put_all(*(packet(number, at=opened + number / FPS) for number in range(5, 26)))
    assert ring.cuts == []
    ring.put_all(*(packet(number, at=opened + number / FPS) for number in range(26, 30)))
    (cut,) = ring.cuts
    assert (cut.clip_id, numbers(cut)) == (first, [*range(10, 26)])
    assert (cut.lacks_begin, cut.lacks_end, cut.missing) == (True, False, "")


def test_a_frame_from_before_the_first_key_frame_has_a_clip_that_begins_with_it() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(5, 16)))
    ring.ask(7, 0.7, before=2, after=1)
    ring.put_all(*map(packet, range(16, 22)))
    (cut,) = ring.cuts
    assert (numbers(cut), cut.lacks_begin) == ([*range(10, 21)], True)


def test_a_key_frame_that_does_not_come_is_not_waited_for_for_ever() -> None:
    ring = Ring()
    opened = time.monotonic()
    ring.ask(3, opened, after=1)
    due = ring.expire(opened)
    assert due == pytest.approx(opened + 13)
    assert ring.expire(opened + 14) is None
    assert [(cut.packets, cut.missing) for cut in ring.cuts] == [([], "no_key_frame")]


def test_why_there_is_no_clip() -> None:
    ring = Ring()
    later = time.monotonic() + 60
    with pytest.raises(LookupError, match="no_packets"):
        ring.ask(0, later)
    ring.put_all(*map(packet, range(1, 5)))
    with pytest.raises(LookupError, match="no_key_frame"):
        ring.ask(4, later)
    ring.refuse("mjpeg")
    with pytest.raises(LookupError, match="codec"):
        ring.ask(4, 1e9)
    assert ring.refused_codec == "mjpeg"
    # Also after a rule with clips was taken away and given again, while the connection goes on.
    ring.open(is_open=False)
    ring.open(is_open=True)
    with pytest.raises(LookupError, match="codec"):
        ring.ask(1, time.monotonic())
    ring.accept()
    assert ring.refused_codec == ""
    with pytest.raises(LookupError, match="no_packets"):
        ring.ask(1, later)
    ring.refuse("mjpeg")
    ring.put_all(*map(packet, range(10, 30)))
    assert ring.refused_codec == ""
    # A connection that has brought no key frame yet: what is here is of the one before.
    ring.put(packet(31, begins=True))
    with pytest.raises(LookupError, match="no_key_frame"):
        ring.ask(31, 3.15)


def test_a_frame_is_looked_for_in_its_own_connection() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(20)))
    ring.put_all(packet(20, pts=0, begins=True), packet(21, pts=1))
    # The capture still holds the packet of the frame itself.
    ring.ask(2, 2.25, before=0, after=0.3)
    ring.put_all(packet(22, pts=2), packet(23, pts=3), packet(24, pts=4), packet(25, pts=5), packet(26, pts=6))
    assert numbers(ring.cuts[0]) == [0, 1, 2, 3, 4]


def test_a_ring_that_is_closed_cuts_what_there_is_and_keeps_nothing() -> None:
    ring = Ring()
    ring.put_all(*map(packet, range(26)))
    ring.ask(25, 2.55)
    ring.open(is_open=False)
    assert numbers(ring.cuts[0])[-1] == 25
    assert ring.size_bytes == 0
    assert ring.expire(1e9) is None
