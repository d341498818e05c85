"""The clock of packets, on made-up files in which every packet says where it belongs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from scav_jax.extract.decoding.clock import Clock, Stamp

STEPS = {"video": 0.04, "audio": 0.024}


def recording(seconds: dict[str, float], start: float = 0.0, begin: float = 0.0):
    """(stamp, where it belongs) in order of time; the file's clock says `start` at `begin`."""
    packets = [
        (Stamp(kind, start + index * STEPS[kind], STEPS[kind]), (kind, begin + index * STEPS[kind]))
        for kind, length in seconds.items()
        for index in range(round(length / STEPS[kind]))
    ]
    return sorted(packets, key=lambda item: (item[0].seconds, item[0].kind))


def run(clock, packets):
    """[(kind, time on the clock, where it belongs)] in the order of coming back."""
    back = itertools.chain(*(clock.push(stamp, (stamp, place)) for stamp, place in packets))
    return [
        (stamp.kind, stamp.seconds + shift, place[1])
        for shift, (stamp, place) in itertools.chain(back, clock.rest())
    ]


def both(seconds):
    return {"video": seconds, "audio": seconds}


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("start", [0.0, -5.0, 50_000.0])
def test_a_clock_that_runs_forward_is_left_alone(trusted, start):
    packets = recording({"video": 3.0, "audio": 4.2}, start)
    clock = Clock(trusted)
    got = run(clock, packets)
    assert [time for _, time, _ in got] == [stamp.seconds for stamp, _ in packets]
    assert clock.doubt is None


def test_a_time_of_decoding_may_lie_long_before_one_of_showing():
    """Matroska stores times of showing; what libavformat guesses of the others begins late."""
    shown = [Stamp("video", time, 0.04, shown=True) for time in (0.0, 1.0)]
    decoded = [Stamp("video", time, 0.04) for time in (0.0, 1.0, 2.8, 2.84, 2.88)]
    sound = [Stamp("audio", time, 0.024) for time in np.arange(0.0, 3.0, 0.024).tolist()]
    packets = [(stamp, ("video", stamp.seconds)) for stamp in [*shown, *decoded]]
    packets[1:1] = [(stamp, ("audio", stamp.seconds)) for stamp in sound]
    clock = Clock(False)
    assert all(time == place for _, time, place in run(clock, packets))
    assert clock.doubt is None


@pytest.mark.parametrize("first", ["video", "audio"])
@pytest.mark.parametrize("start", [0.0, 1.4, 50_000.0, 90_000.0])
@pytest.mark.parametrize(
    "lengths", [both(6.0), {"video": 6.0, "audio": 9.0}, {"video": 9.0, "audio": 6.0}]
)
def test_what_is_joined_goes_on_where_the_longer_stream_ends(lengths, start, first):
    end = max(lengths.values())
    second = recording(lengths, start, end)
    second.sort(key=lambda item: (item[0].seconds, item[0].kind != first))
    clock = Clock(True)
    got = run(clock, recording(lengths) + second)
    assert clock.doubt is None
    assert len(got) == 2 * len(second)  # nothing is lost
    differences = np.array([time - place for _, time, place in got])
    assert np.abs(differences).max() <= 0.1 + 1e-6  # FFmpeg's own tolerance
    later = differences[[place >= end for _, _, place in got]]
    np.testing.assert_allclose(later, later[0], atol=1e-6)  # picture and sound by one number
    for kind in lengths:
        times = [time for one, time, _ in got if one == kind]
        assert times == sorted(times) or np.diff(times).min() > -0.1


@pytest.mark.parametrize("counted, overlap", [(None, 0.0), (0.024, 0.0), (0.0, 0.024)])
def test_it_goes_on_where_ffmpeg_awaits_the_next_packet(counted, overlap):
    """After AC-3 that is at the last packet's beginning: FFmpeg does not know how long that is."""
    lengths, period = {"video": 6.0, "audio": 9.0}, STEPS["audio"]
    stamped = [
        (replace(stamp, counted=counted) if stamp.kind == "audio" else stamp, place)
        for stamp, place in recording(lengths)
    ]
    got = [time for kind, time, _ in run(Clock(True), 2 * stamped) if kind == "audio"]
    joint = len(got) // 2
    assert got[joint] == pytest.approx(round(9.0 / period) * period - overlap)
    assert np.diff(got[joint:]) == pytest.approx(period)


def test_many_joints_and_a_hole_in_a_trusted_clock_are_closed():
    parts = [(0.0, 2.0), (0.0, 1.0), (700.0, 3.0), (20.0, 2.0)]
    begins = np.cumsum([0.0, *(length for _, length in parts)])
    packets = [
        packet
        for (start, length), begin in zip(parts, begins, strict=False)
        for packet in recording(both(length), start, float(begin))
    ]
    clock = Clock(True)
    got = run(clock, packets)
    assert clock.doubt is None and len(got) == len(packets)
    assert max(abs(time - place) for _, time, place in got) < 0.1


def test_a_hole_in_a_clock_that_cannot_start_anew_stays():
    packets = recording(both(2.0)) + recording(both(2.0), 50.0)
    clock = Clock(False)
    assert [time for _, time, _ in run(clock, packets)] == [s.seconds for s, _ in packets]
    assert clock.doubt is None
    for kind in ("video", "audio"):
        assert clock.gaps(kind) == [pytest.approx((2.0, 50.0), abs=0.03)]


def test_packets_that_do_not_say_how_long_they_last_leave_no_holes():
    """As of ADPCM in FLV: a third of a second each, whose length libavformat does not know."""
    times = [0.37 * n for n in range(9)] + [0.37 * n + 2.0 for n in range(9, 18)]
    clock = Clock(False)
    run(clock, [(Stamp("audio", time), ("audio", time)) for time in times])
    assert clock.gaps("audio") == [pytest.approx((8 * 0.37, 9 * 0.37 + 2.0))]


def test_what_a_format_does_not_allow_is_in_doubt_from_there_on():
    clock = Clock(False)
    got = run(clock, recording(both(2.0)) + recording(both(2.0), 0.0, 2.0))
    assert len(got) == 2 * len(recording(both(2.0)))
    time, reason = clock.doubt
    assert time == pytest.approx(2.0, abs=0.03) and "start anew" in reason


@pytest.mark.parametrize(("jumps", "stays"), [("video", "sound"), ("audio", "picture")])
def test_one_stream_that_starts_anew_alone_is_in_doubt(jumps, stays):
    packets = [
        (Stamp(s.kind, s.seconds - 10.0, s.duration), place)
        if s.kind == jumps and s.seconds >= 20.0
        else (s, place)
        for s, place in recording(both(40.0))
    ]
    clock = Clock(True)
    run(clock, packets)
    time, reason = clock.doubt
    assert time >= 20.0 - 0.05 and f"not those of the {stays}" in reason


def test_a_straggler_behind_a_joint_keeps_its_time_and_the_rest_is_in_doubt():
    """FFmpeg's program shifts everything twice there, and leaves a hole."""
    first, second = recording(both(6.0)), recording(both(6.0), 0.0, 6.0)
    last = max(n for n, (stamp, _) in enumerate(first) if stamp.kind == "audio")
    straggler = first.pop(last)
    new = next(n for n, (stamp, _) in enumerate(second) if stamp.kind == "video")
    packets = [*first, second.pop(new), straggler, *second]
    clock = Clock(True)
    got = run(clock, packets)
    assert max(abs(time - place) for _, time, place in got) < 0.1
    assert clock.doubt[0] == pytest.approx(6.0, abs=0.05)


@pytest.mark.parametrize(("period", "trusted"), [(0.04, True), (1.0, True), (1.0, False)])
def test_packets_without_decoding_times_may_come_in_their_own_order(period, trusted):
    order = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8]
    times = [period * n for n in order]
    packets = [(Stamp("video", t, period, shown=True), ("video", t)) for t in times]
    unknown = [(Stamp("video", None), ("video", 0.0))]
    clock = Clock(trusted)
    back = [item for s, p in packets + unknown for item in clock.push(s, (s, p))]
    assert [shift for shift, _ in back] == [0.0] * 11 and clock.doubt is None
    assert [place for _, (_, place) in back] == [place for _, place in packets + unknown]


def test_a_sound_that_begins_behind_a_joint_is_shifted_with_the_picture():
    second = recording(both(4.0), 0.0, 4.0)
    second.sort(key=lambda item: (item[0].seconds, item[0].kind == "audio"))
    clock = Clock(True)
    got = run(clock, recording({"video": 4.0}) + second)
    assert clock.doubt is None
    assert max(abs(time - place) for _, time, place in got) < 0.1
