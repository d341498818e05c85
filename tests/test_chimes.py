"""`chimes`: what the files show is what the score says, and nothing but the seed decides it."""

import csv
import json
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from scav_jax.base.errors import InputError
from scav_jax.datasets import chimes
from scav_jax.datasets.chimes.instrument import make_instrument
from scav_jax.datasets.chimes.performance import compose, motion_of
from scav_jax.datasets.chimes.picture import Camera, paint_scene
from scav_jax.datasets.chimes.rendering import render_performance
from scav_jax.datasets.chimes.room import make_room
from scav_jax.datasets.chimes.sound import make_notes, synthesize
from scav_jax.datasets.chimes.video import encode_mp4

# Ten short performances: every split, two instruments of training and one unseen.
SMALL = (
    "training_instruments=2",
    "training_performances=2",
    "validation_performances=2",
    "test_performances=2",
    "unseen_performances=2",
    "performance_seconds=5",
    "clip_seconds=2",
)
PARAMETERS = chimes.override(chimes.preset("tiny"), SMALL)
SEED = 3


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chimes") / "videos"
    assert chimes.render(out, preset="tiny", seed=SEED, workers=1, overrides=SMALL).exists()
    return out


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "clips.csv", newline="") as file:
        return list(csv.DictReader(file))


def decode(source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, int]:
    """Frames [n, h, w] of luma, their times, samples, the first sample's time, samples a second."""
    frames, times, samples, sound_times = [], [], [], []
    with av.open(str(source)) as container:
        rate = container.streams.audio[0].rate
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="gray").astype(np.float32))
                times.append(frame.time)
            else:
                samples.append(frame.to_ndarray()[0])
                sound_times.append(frame.time)
    return np.stack(frames), np.array(times), np.concatenate(samples), sound_times[0], rate


# --- the seed and nothing else


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_workers(rendered, tmp_path):
    again = tmp_path / "videos"
    chimes.render(again, preset="tiny", seed=SEED, workers=2, overrides=SMALL)
    assert contents(again) == contents(rendered)
    names = {performance.file for performance in chimes.performances(PARAMETERS)}
    assert contents(rendered).keys() == names | {"clips.csv", "chimes.json"}
    assert len({contents(rendered)[name] for name in names}) == len(names)  # none is a copy


def test_another_seed_gives_other_instruments_and_performances():
    performance = chimes.performances(PARAMETERS)[0]
    one, other = (chimes.score_of(performance, PARAMETERS, seed) for seed in (0, 5))
    assert not np.array_equal(one.times[:5], other.times[:5])
    looks = [make_instrument("instrument_000", PARAMETERS, seed).look for seed in (0, 5)]
    assert not np.array_equal(looks[0].background, looks[1].background)


def test_a_performance_does_not_depend_on_the_others():
    more = replace(PARAMETERS, training_instruments=9, test_performances=30)
    performance = chimes.performances(PARAMETERS)[1]
    one, other = (chimes.score_of(performance, p, SEED) for p in (PARAMETERS, more))
    np.testing.assert_array_equal(one.sound_times, other.sound_times)


def test_only_the_missing_file_is_rendered_again(rendered, tmp_path, monkeypatch):
    import shutil

    copy = tmp_path / "videos"
    shutil.copytree(rendered, copy)
    before = contents(copy)
    gone, *kept = sorted(copy.glob("*/*.mp4"))
    gone.unlink()
    (copy / "clips.csv").unlink()
    stale = kept[0].with_name("instrument_999_00.mp4.partial")  # of a run that was killed
    stale.write_bytes(b"half a file")
    times = {path: path.stat().st_mtime_ns for path in kept}
    submit, deaf = ProcessPoolExecutor.submit, []

    def submit_seen(pool, *job):  # which starts a worker
        deaf.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return submit(pool, *job)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_seen)
    chimes.render(copy, preset="tiny", seed=SEED, workers=1, overrides=SMALL)
    assert deaf == [True], "Ctrl-C is for the parent"
    assert contents(copy) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == times


# --- splits and clips


@pytest.mark.parametrize("name", chimes.PRESETS)
def test_every_performance_is_in_one_split_and_unseen_instruments_are_unseen(name):
    performances = chimes.performances(chimes.preset(name))
    assert len({performance.name for performance in performances}) == len(performances)
    by_split = {
        split: {p.instrument for p in performances if p.split == split} for split in chimes.SPLITS
    }
    assert all(by_split.values())
    assert by_split["validation"] | by_split["test"] <= by_split["train"]
    assert not by_split["unseen_instruments"] & by_split["train"]


@pytest.mark.parametrize("name", chimes.PRESETS)
def test_clips_lie_in_their_performance_and_do_not_overlap(name):
    parameters = chimes.preset(name)
    spans: dict[str, list[tuple[float, float]]] = {}
    clips = chimes.clips(parameters)
    for row in clips:
        spans.setdefault(row["file"], []).append((float(row["start"]), float(row["end"])))
    assert len(spans) == len(chimes.performances(parameters))
    assert len({row["id"] for row in clips}) == len(clips)
    for times in spans.values():
        assert times[0][0] >= 0 and times[-1][1] <= parameters.performance_seconds
        assert all(end <= start for (_, end), (start, _) in pairwise(sorted(times)))
        assert all(end - start == 4.0 for start, end in times)


def test_the_data_sheet_says_what_hard_is():
    hard, sheet = chimes.preset("hard"), Path(chimes.__file__).with_name("DATASHEET.md").read_text()
    one, other = hard.performance_delay_ms, hard.event_delay_ms
    assert f"(`hard`: {one:g} and {other:g})" in sheet
    assert f"{one + other:g} ms out of step ({one:g} a performance, {other:g} a strike)" in sheet
    assert f"fewer strikes ({hard.events_per_second:g} a second)" in sheet


def test_presets_are_as_large_as_they_promise():
    demo, large = (chimes.preset(name) for name in ("demo", "large"))
    for parameters, least in ((demo, 1000), (large, 3001)):
        clips = chimes.clips(parameters)
        test = Counter(row["file"] for row in clips if row["split"] == "test")
        assert sum(test.values()) >= least
        assert min(test.values()) >= 8
        assert 60 <= parameters.performance_seconds <= 90
        assert parameters.performance_delay_ms + parameters.event_delay_ms <= 20
        assert (parameters.min_bars, parameters.max_bars) == (5, 8)
    assert sum(row["split"] == "train" for row in chimes.clips(demo)) >= 1200
    played = Counter(p.instrument for p in chimes.performances(large) if p.split == "train")
    assert len(played) >= 200 and min(played.values()) >= 4


def test_the_csv_and_the_description_say_what_is_there(rendered):
    clips = rows(rendered)
    assert list(clips[0]) == ["file", "start", "end", "id", "label", "split"]
    for row in clips:
        assert (rendered / row["file"]).is_file()
        assert row["file"].split("/")[0] == row["split"]
        assert row["id"].startswith(Path(row["file"]).stem)
        assert Path(row["file"]).stem.startswith(row["label"])
    assert len(clips) == 10 * 2  # two clips of 2 s in 5 s
    description = json.loads((rendered / "chimes.json").read_text())
    assert (description["preset"], description["seed"]) == ("tiny", SEED)
    assert description["parameters"]["performance_seconds"] == 5
    assert description["versions"]["av"] == av.__version__


# --- what is seen and heard


def test_streams_start_together_and_are_as_long_as_they_say(rendered):
    for row in rows(rendered)[::7]:
        frames, times, samples, sound_start, rate = decode(rendered / row["file"])
        assert frames.shape == (125, 64, 96)
        np.testing.assert_allclose(times, np.arange(125) / 25, atol=1e-6)
        assert abs(sound_start) < 1 / rate
        assert 0 <= len(samples) - 5 * rate < 1024  # the last AAC frame is filled up


def test_clips_of_an_instrument_look_alike_and_others_do_not(rendered):
    """Between clips, the picture's mean differs by what is struck when, not by the look."""
    means, labels = [], []
    for performance in chimes.performances(PARAMETERS):
        frames = decode(rendered / performance.file)[0]
        means += [frames[:50].mean(axis=0), frames[50:100].mean(axis=0)]
        labels += [performance.instrument] * 2
    means, labels = np.stack(means), np.array(labels)
    distance = np.abs(means[:, None] - means[None]).mean(axis=(2, 3))
    same = labels[:, None] == labels[None]
    assert distance[same].max() < 0.5 * distance[~same].min()


@pytest.fixture(scope="module", params=range(5))  # one instrument of every layout
def played(request, tmp_path_factory):
    """A performance of 20 s on disk, its score and its instrument; nothing hides the bars."""
    clear = chimes.override(PARAMETERS, ["mallet_opacity=0", "sensor_noise=0.01"])
    parameters = replace(clear, training_instruments=5, performance_seconds=20.0)
    performance = chimes.performances(parameters)[request.param]
    instrument = make_instrument(performance.instrument, parameters, SEED)
    score = compose(instrument, performance, parameters, SEED)
    scene = paint_scene(instrument, parameters, SEED)
    motion = motion_of(instrument, performance, score, parameters, SEED)
    camera = Camera(scene, motion, performance, parameters, SEED)
    notes = make_notes(instrument, parameters, SEED)
    sound = synthesize(instrument, notes, performance, score, parameters, SEED)
    path = tmp_path_factory.mktemp("played") / "performance.mp4"
    path.write_bytes(encode_mp4(camera.frames, sound, parameters))
    return path, score, instrument


def test_a_bar_lights_up_and_sounds_when_the_score_says(played):
    """Read from the file: most strikes are found in their frame, and none of the two is late.

    A picture that is a frame late fails, and so does a sound that is 10 ms late.
    """
    path, score, instrument = played
    frames, times, samples, sound_start, rate = decode(path)
    lone = np.flatnonzero(np.diff(score.times, prepend=-1.0) > 0.25)
    assert len(lone) > 15
    bars = instrument.look.bars
    spots = np.round(64 * bars.centers).astype(int)
    # A knock is brighter than what still rings: the second difference is a high-pass filter.
    knocks = np.diff(samples, n=2)
    seen, heard = [], []
    for k in lone:
        x, y = spots[score.bars[k]]
        light = frames[:, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].mean(axis=(1, 2))
        # The rise is sharpest in the frame of the strike, or in the next one if the strike is in
        # the second half of its exposure: up to half a frame to either side of a frame's start.
        rise = np.diff(light, prepend=light[:1])
        near = np.flatnonzero(np.abs(times - score.times[k]) < 0.15)
        seen.append(times[near[rise[near].argmax()]] - score.times[k])
        begin = int((score.sound_times[k] - sound_start - 0.1) * rate)
        part = knocks[max(begin, 0) : begin + int(0.2 * rate)]
        blocks = part[: len(part) // 32 * 32].reshape(-1, 32)  # 2 ms
        power = np.sqrt(np.mean(blocks**2, axis=1))
        onset = np.argmax(power[2:] - power[:-2]) + 2
        heard.append((max(begin, 0) + onset * 32) / rate + sound_start - score.sound_times[k])
    assert np.mean(np.abs(seen) <= 0.025) > 0.9, seen
    assert abs(np.median(seen)) <= 0.015
    assert np.mean(np.abs(heard) <= 0.010) > 0.85, heard
    assert abs(np.median(heard)) <= 0.005


def test_sound_and_picture_are_jittered_within_the_limit():
    performance = chimes.performances(PARAMETERS)[0]
    score = chimes.score_of(performance, replace(PARAMETERS, performance_seconds=60.0), SEED)
    delays = score.sound_times - score.times
    assert 0.001 < np.abs(delays).max() <= 0.020
    assert np.ptp(delays) > 0.005  # every strike has its own besides the performance's


def test_strikes_are_as_many_as_asked_and_irregular():
    performance = chimes.performances(PARAMETERS)[0]
    parameters = replace(PARAMETERS, performance_seconds=400.0, events_per_second=2.0)
    score = chimes.score_of(performance, parameters, SEED)
    assert len(score.times) / 400 == pytest.approx(2.0, rel=0.1)
    gaps = np.diff(score.times)
    assert gaps.min() >= 0.1 and gaps.std() > 0.3 * gaps.mean()
    assert set(score.bars) == set(range(make_instrument("instrument_000", parameters, SEED).bars))


# --- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": SEED + 1}, "seed"), ({"preset": "demo"}, "preset"), ({"overrides": ()}, "clip")],
)
def test_a_folder_with_other_data_is_refused(rendered, change, words):
    before = contents(rendered)
    settings = {"preset": "tiny", "seed": SEED, "overrides": SMALL, **change}
    with pytest.raises(InputError, match=words):
        chimes.render(rendered, **settings)
    assert contents(rendered) == before


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="other files"):
        chimes.render(tmp_path, preset="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("flahs=0.3", "Did you mean 'flash'"),
        ("flash", "name=value"),
        ("flash=bright", "a number"),
        ("crf=2.5", "a whole number"),
        ("flash=2", "expected flash in 0..1"),
        ("flash=nan", "expected flash in 0..1"),
        ("width=100", "multiple of 16"),
        ("performance_seconds=1", "performance_seconds >= clip_seconds"),
        ("performance_seconds=1e308", "expected performance_seconds in 0.5..3600"),
        ("test_performances=100000000000", "at most 1,000,000 clips in all, got 4[0-9,]+: give"),
        (f"test_performances={10**400}", "a whole number, got '1000"),
    ],
)
def test_a_wrong_parameter_is_one_clear_line(assignment, words):
    with pytest.raises(InputError, match=words):
        chimes.override(chimes.preset("tiny"), [assignment])


def test_the_command_reports_bad_input_in_one_line(tmp_path):
    command = [sys.executable, "-m", "scav_jax.datasets.chimes", "--out", str(tmp_path / "videos")]
    done = subprocess.run([*command, "--preset", "tiney"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: chimes: expected a preset of tiny, demo, large, rooms, mixed, static, hard, got "
        "'tiney'. Did you mean 'tiny'?"
    ]
    assert not (tmp_path / "videos").exists()


# --- rooms, shared scores, other times


ROOMS = chimes.override(
    chimes.preset("rooms"), [*SMALL, "rooms=4", "rooms_per_performance=2", "sensor_noise=0"]
)


def seen_and_heard(performance, parameters):
    """Frames and samples of a performance before they are encoded."""
    instrument = make_instrument(performance.instrument, parameters, SEED)
    score = compose(instrument, performance, parameters, SEED)
    motion = motion_of(instrument, performance, score, parameters, SEED)
    room = make_room(performance.room, parameters, SEED)
    scene = paint_scene(instrument, parameters, SEED)
    frames = Camera(scene, motion, performance, parameters, SEED, room.lit).frames(0, 100)
    sound = synthesize(
        instrument, make_notes(instrument, parameters, SEED), performance, score,
        replace(parameters, room_noise=1e-6), SEED,
    )  # fmt: skip
    return frames.astype(float), room.heard(sound, parameters.audio_rate_hz)


def spectra(sound):
    """`[windows, bands]` decibels of windows of 64 ms, in bands as narrow as a log-mel's."""
    windows = sound[: len(sound) // 1024 * 1024].reshape(-1, 1024) * np.hanning(1024)
    bands = np.abs(np.fft.rfft(windows))[:, 12:492].reshape(len(windows), -1, 4)
    return 10 * np.log10((bands**2).sum(axis=2))


def test_a_room_is_constant_and_nothing_of_a_strike_tells_it():
    """Two rooms differ by a picture that stands still, up to contrast, and by levels of bands."""
    performances = chimes.performances(ROOMS)
    one, other = (p for p in performances[:2])
    assert (one.played, one.split) == (other.played, other.split) and one.room != other.room
    assert one.name == f"{one.played}_{one.room}" and len({p.name for p in performances}) == 20
    assert {p.room for p in performances if p.split == "train"} == {
        f"room_{n:02d}" for n in range(4)
    }
    (frames, sound), (frames_there, sound_there) = (seen_and_heard(p, ROOMS) for p in (one, other))
    apart = frames - frames_there
    assert np.abs(apart.mean(axis=0)).max() > 8  # of 219
    assert np.ptp(apart, axis=0).max() <= 1.01  # rounding to whole numbers
    assert np.ptp(frames, axis=0).max() > 50  # while strikes are seen
    decibels = spectra(sound) - spectra(sound_there)
    loud = spectra(sound) > spectra(sound).max() - 45
    heard = np.flatnonzero(loud.sum(axis=0) > 5)
    rest = [decibels[loud[:, b], b] for b in heard]
    level = np.array([np.median(band) for band in rest])
    rest = np.concatenate([band - band.mean() for band in rest])
    assert np.ptp(level) > 4 and np.percentile(np.abs(rest), 95) < 1.0


def test_instruments_share_a_score_up_to_their_own_jitter():
    mixed = chimes.override(chimes.preset("mixed"), ["performance_seconds=16"])
    train = [p for p in chimes.performances(mixed) if p.split == "train"]
    scores = [chimes.score_of(p, mixed, SEED) for p in train[:12]]
    together, others = scores[:6], scores[6:]
    assert len({p.instrument for p in train[:6]}) == 6
    lengths = [len(score.times) for score in together]
    assert len(set(lengths)) == 1
    times = np.stack([score.times for score in together])
    assert 0 < np.abs(times[1:] - times[:1]).max() <= 0.010 + 1e-9
    delays = np.stack([score.sound_times - score.times for score in together])
    assert np.abs(delays).max() <= 0.020 + 1e-9 and np.ptp(delays, axis=0).min() > 0
    assert not np.allclose(others[0].times[:6], together[0].times[:6], atol=0.02)
    alone = chimes.preset("demo")
    assert not any(p.shared_score for p in chimes.performances(alone))


def test_in_the_control_the_sound_has_other_times_than_the_picture(tmp_path):
    """Energy rises where the picture's strikes are, unless the sound plays another score."""
    shares = []
    for other in (0, 1):
        words = [*SMALL, "rooms=0", "rooms_per_performance=1", f"other_times={other}"]
        parameters = chimes.override(chimes.preset("static"), [*words, "performance_seconds=12"])
        performance = chimes.performances(parameters)[0]
        (tmp_path / performance.split).mkdir(exist_ok=True)
        render_performance(tmp_path, performance, parameters, SEED)
        _, _, samples, _, rate = decode(tmp_path / performance.file)
        power = np.square(samples[: len(samples) // 320 * 320].reshape(-1, 320)).sum(axis=1)
        rises = np.maximum(np.diff(np.log(power + 1e-6)), 0.0)
        places = (chimes.score_of(performance, parameters, SEED).times * rate / 320).astype(int)
        near = [rises[max(place - 3, 0) : place + 3].max() > 0.5 for place in places if place > 3]
        shares.append(np.mean(near))
    assert shares[0] > 0.8 > 0.65 > shares[1], shares
