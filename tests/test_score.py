"""Synchrony: curves over shifts, where a sound belongs, calibration, files of any length."""

import csv
import itertools
import json
import re
import shutil
import signal
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_embed import CONFIG
from test_media import click_track
from test_model import RATE, film, write_run, write_sound

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.distances import pairwise
from scav_jax.encoders import Encoders
from scav_jax.features import store
from scav_jax.features.clip import Clip, trim
from scav_jax.retrieval import calibration, model, synchrony, tracks
from scav_jax.retrieval import shifts as shifts_module
from scav_jax.retrieval.embed import embed_clips
from scav_jax.retrieval.shifts import Shifted, Track, shifted
from scav_jax.retrieval.synchrony import Calibration
from scav_jax.retrieve import own_distances
from scav_jax.score import page, program
from scav_jax.score import scored as scored_pairs
from scav_jax.score.__main__ import main, parse
from scav_jax.score.scored import Curve, Pair, Scored, verdict
from scav_jax.sequences import AudioVisual
from scav_jax.training.config import as_dict
from scav_jax.training.runs import Run, build, example_batch

OFFSETS = np.arange(-25, 26) * 0.04
FINGERPRINT = {"backbone": "random", "rate_hz": 16000}


class Seen(Encoders):
    """Towers without parameters: what is seen and heard is the first channel."""

    def __call__(self, features, *, deterministic=True, rows=None):
        def first(stream):
            return stream.replace(values=jnp.asarray(stream.values)[..., :1].astype(jnp.float32))

        return AudioVisual(*(first(stream) for stream in features))


@pytest.fixture(scope="module")
def run():
    _, objective = build(CONFIG)
    return Run(None, as_dict(CONFIG), Seen(), objective, {"encoders": {}}, FINGERPRINT)


def clip(number, late=0.0, seconds=4.0, begin=0.0):
    """Strikes at random times, seen at 25 Hz and heard at 6.25 Hz, `late` seconds later."""
    strikes = np.random.default_rng(number).uniform(-2, 12, 24)

    def level(times):
        return np.exp(-(((times[:, None] - strikes) / 0.16) ** 2)).sum(axis=1)

    streams = {}
    for name, rate, width, after in (("visual", 25, 3, 0.0), ("audio", 6.25, 4, late)):
        steps = int(seconds * rate)
        values = np.zeros((steps, width), np.float16)
        values[:, 0] = level(begin + (np.arange(steps) + 0.5) / rate - after)
        streams |= {name: values, f"{name}_span": (0.0, steps / rate)}
    return Clip(id=f"clip {number}", source=f"{number}.mp4", start=0.0, end=seconds, **streams)


def both(made, moved=0.0):
    begin, end = made.audio_span
    return Track(made.visual, made.visual_span), Track(made.audio, (begin + moved, end + moved))


def scored(run, made, calibrated=None, *, moved=0.0, sound=None):
    """A clip, or its picture with another one's sound."""
    audio = both(sound or made, moved)[1]
    return synchrony.synchrony(run, both(made)[0], [audio], calibrated)


# ---- distances at shifts ------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.3, -0.46])
def test_a_sound_is_found_where_it_belongs(run, late):
    """Too late by 0.3 s: it has to be moved by -0.3 s, between steps of 0.16 s of sound too."""
    found = scored(run, clip(1, late))
    assert found.offset == pytest.approx(-late, abs=0.02)
    assert np.isnan(found.low) and found.score is None
    again = synchrony.synchrony(
        run, *both(clip(1, late), moved=0.2)[:1], [both(clip(1, late), 0.2)[1]]
    )
    assert again.offset == pytest.approx(found.offset - 0.2, abs=0.02)


def test_shifts_compare_clips_that_are_cut_anew(run):
    """The distance at a shift is that of the clip whose sound lies there, by the definition."""
    made = clip(2)
    visual, audio = both(made)
    found = shifted(run, visual, [audio], np.array([-3.1, -2.2, -0.5, 0.0, 0.28]))
    assert np.isnan(found.distances[0, :2]).all()  # 0.9 s are shared; less than half
    np.testing.assert_allclose(found.seconds[0], [0, 0, 3.5, 4.0, 3.72])
    for at, shift in enumerate((-0.5, 0.0, 0.28), start=2):
        alone = embed_clips(run, [replace(made, audio_span=(shift, 4.0 + shift))])
        ((expected,),) = np.asarray(
            jax.jit(partial(pairwise, "euclidean"))(*jax.tree.map(jnp.asarray, alone.latents))
        )
        assert found.distances[0, at] == pytest.approx(expected, rel=1e-5)


def test_every_shift_that_shares_enough_is_compared_and_shown(run, monkeypatch, capsys):
    """Of windows far along a long sound too, to the last step at which a second is shared."""
    visual, audio = both(clip(2))
    windows = [audio._replace(span=(begin, begin + 4.0)) for begin in (0.0, 37.3, 74.6)]
    windows.append(Track(audio.values[:8], (90.0, 91.28)))
    shifts = np.round(np.arange(-93, 4, 0.5), 2)
    spans, compared = np.array([one.span for one in windows])[:, None], []
    begin, end = np.moveaxis(spans + shifts[None, :, None], 2, 0)
    shared = np.minimum(end, 4.0) - np.maximum(begin, 0.0)
    there = shared > np.maximum(1.0, np.minimum(end - begin, 4.0) / 2) - 1e-6
    monkeypatch.setattr(
        shifts_module._Parts,
        "compared",
        lambda _, cuts, *about: compared.extend(cuts) or np.ones((len(cuts), 2)),
    )
    found = shifted(run, visual, windows, shifts)
    assert len(compared) == there.sum() > 30
    np.testing.assert_array_equal(np.isfinite(found.distances), there)
    monkeypatch.undo()
    monkeypatch.setattr(shifts_module, "MANY", 2)
    shifted(run, visual, [audio], np.arange(3.0) / 2)
    assert "shifts: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "encoders, align",
    [
        ({"pre_resample": "visual_to_audio", "pre_points": 4}, "time"),
        ({"pre_resample": "audio_to_visual"}, "time"),
        ({}, "index"),
    ],
    ids=["pictures on sounds", "sounds on pictures", "after towers"],
)
def test_each_part_is_encoded_once_and_pairs_are_as_if_alone(monkeypatch, encoders, align):
    """Of a sound in windows that were heard apart, at fractions of a frame, with a gap in it."""
    config = CONFIG.replace(encoders={"visual_blocks": 0, "audio_blocks": 0} | encoders)
    config = config.replace(data={"align": align})
    towers, objective = build(config)
    made = clip(3, seconds=9.6)
    made.visual[30:34] = np.nan
    params = drawn.params(towers, objective, example_batch({"visual": 3, "audio": 4}))
    run = Run(None, as_dict(config), towers, objective, params, FINGERPRINT)
    visual, whole = both(made)
    random, audio = np.random.default_rng(0), []
    for begin in (0, 7, 14, 20, 28):  # steps of 0.16 s, 112 frames: a program's whole padding
        values = whole.values[begin : begin + 28]
        values = (values + 0.1 * random.normal(size=values.shape)).astype(np.float16)
        audio.append(Track(values, (0.16 * begin, 0.16 * begin + 4.48)))
    audio.append(audio[2]._replace(values=audio[2].values[:22]))  # longer steps
    audio.append(Track(audio[0].values[:24], (0.0, 3.84)))
    shifts = np.round(np.arange(-6, 6, 0.14), 2)
    count, encode = {"visual": 0, "audio": 0}, shifts_module._Parts._encode

    def counted(self, stream, clips):
        count[stream] += len(clips)
        return encode(self, stream, clips)

    monkeypatch.setattr(shifts_module._Parts, "_encode", counted)
    monkeypatch.setattr(shifts_module, "PAIRS", 50)  # parts of one block serve the next
    found = shifted(run, visual, audio, shifts)
    pairs = np.isfinite(found.distances).sum()
    assert count["visual"] < 0.6 * pairs and count["audio"] < 0.8 * pairs, (count, pairs)

    def alone(window, shift):
        begin, end = audio[window].span
        moved = {"audio": audio[window].values, "audio_span": (begin + shift, end + shift)}
        whole = replace(made, **moved)
        picture, _, sound, _ = trim(whole)
        return replace(whole, visual=picture, audio=sound) if align == "index" else whole

    places = np.argwhere(np.isfinite(found.distances))
    clips = [alone(window, float(shifts[shift])) for window, shift in places]
    latents = jax.tree.map(jnp.asarray, embed_clips(run, clips, batch_size=64).latents)
    name, options = run.objective.ranks_by()
    expected = jax.jit(partial(own_distances, name=name, options=options))(*latents)
    np.testing.assert_allclose(found.distances[tuple(places.T)], expected, rtol=2e-5)
    monkeypatch.setattr(shifts_module, "KEPT_NUMBERS", 2000)  # two or so
    for few, many in zip(shifted(run, visual, audio, shifts), found, strict=True):
        np.testing.assert_array_equal(few, many)


def test_features_that_are_missing_make_no_distance(run):
    visual, audio = both(clip(2))
    visual.values[:30] = np.nan  # the first 1.2 s
    found = shifted(run, visual, [audio], np.array([0.0, 1.2, 1.6]))
    np.testing.assert_array_equal(np.isfinite(found.distances[0]), [False, True, True])


# ---- curves -------------------------------------------------------------------------------------


def test_the_lowest_point_lies_between_steps():
    curve = 3 + 2 * (OFFSETS - 0.213) ** 2
    assert synchrony.best(OFFSETS, curve) == pytest.approx(0.213)
    curve[0] = np.nan
    assert synchrony.best(OFFSETS, curve) == pytest.approx(0.213)
    assert synchrony.best(OFFSETS, OFFSETS) == -1.0
    beside = np.where(np.abs(OFFSETS) <= 0.4, 1.7, 2.0)  # which says nothing of other shifts
    assert synchrony.dip(OFFSETS, np.where(OFFSETS == 0, 1.0, beside)) == pytest.approx(0.5)


def test_intervals_are_those_of_a_normal_distribution_or_of_no_knowledge():
    low, high = synchrony.interval(OFFSETS, (OFFSETS - 0.1) ** 2 / (2 * 0.15**2), 0.1)
    assert (low, high) == pytest.approx((0.1 - 1.96 * 0.15, 0.1 + 1.96 * 0.15), abs=0.01)
    low, high = synchrony.interval(OFFSETS, np.zeros(51), 0.0)
    assert (low, high) == pytest.approx((-0.95 * 1.02, 0.95 * 1.02))
    low, high = synchrony.interval(OFFSETS, 1e3 * np.abs(OFFSETS + 1), -1.0)
    assert low == OFFSETS[0] < high < OFFSETS[1]  # nothing beyond was tried


def test_a_dip_is_the_same_wherever_it_lies():
    """What is just `NEAR_S` away is near, whatever rounding makes of it: on all grids there are."""
    of_programs, of_calibration = -1.0 + 0.04 * np.arange(51), np.arange(-1.0, 1.02, 0.04)
    for offsets, at in itertools.product((OFFSETS, of_programs, of_calibration), range(51)):
        away = np.abs(np.arange(51) - at)
        curve = np.select([away == 0, away == 10], [0.5, 3.0], 1.0)
        assert synchrony.dip(offsets, curve) == pytest.approx(0.5)


def test_what_windows_say_adds_up_over_the_seconds_that_they_share(monkeypatch):
    """Two windows, one of which is far worse, and under the picture at some shifts only."""
    monkeypatch.setattr(synchrony, "SMOOTH_S", 1e-3)
    there = OFFSETS <= 0.5
    distances = np.stack([1 + np.abs(OFFSETS - 0.2), np.where(there, 9 + OFFSETS**2, np.nan)])
    seconds = np.stack([4 - np.abs(OFFSETS), np.where(there, 3.0, 0.0)])
    curve = synchrony.curve_of(Shifted(distances, distances, seconds), 0.04)
    means = [np.mean(distances[0]), np.mean(distances[1][there])]
    level = (4.0 * means[0] + 3.0 * means[1]) / 7.0
    for at in range(len(OFFSETS)):
        said = seconds[0, at] * (distances[0, at] - means[0])
        said += 3.0 * (distances[1, at] - means[1]) if there[at] else 0.0
        assert curve[at] == pytest.approx(level + said / 7.0)
    with pytest.raises(InputError, match="share at least a second"):
        synchrony.curve_of(Shifted(distances * np.nan, distances, distances * 0), 0.04)


def test_a_window_beside_the_picture_has_no_offset_of_its_own():
    """At the offset of 0.2 s the second one shares too little: what it has elsewhere is chance."""
    distances = np.stack([1 + np.abs(OFFSETS - 0.2), np.where(OFFSETS < 0, 2 + OFFSETS, np.nan)])
    seconds = np.where(np.isfinite(distances), 2.0, 0.0)
    around = [Track(np.zeros((25, 1)), (begin, begin + 4.0)) for begin in (0.0, 2.0)]
    found = Shifted(distances, distances, seconds)
    said = synchrony.read(found, OFFSETS, around[0], around, None)
    (alone,) = said.windows
    assert (alone["begin"], alone["end"]) == (0.0, 4.0)
    assert alone["offset"] == pytest.approx(0.2, abs=0.01)


def test_a_window_alone_is_laid_as_a_sound_of_one_window_is():
    """Where it shares a quarter of itself, it is a little nearer by chance."""
    distances = np.where(OFFSETS < -0.9, 0.95, 1 + np.abs(OFFSETS - 0.2))[None]
    seconds, track = (4 - 3 * np.abs(OFFSETS))[None], Track(np.zeros((25, 1)), (0.0, 4.0))
    said = synchrony.read(Shifted(distances, distances, seconds), OFFSETS, track, [track], None)
    assert said.windows[0]["offset"] == said.offset == pytest.approx(0.2, abs=0.05)


def test_smoothing_keeps_lines_and_gaps():
    line = 2.0 + OFFSETS
    line[7] = np.nan
    found = synchrony.smoothed(line, 0.04)
    assert np.isnan(found[7])
    np.testing.assert_allclose(found[20:30], line[20:30])
    spike = synchrony.smoothed(np.eye(51)[25], 0.04)
    np.testing.assert_allclose(spike[27] / spike[25], np.exp(-0.5), rtol=1e-6)
    tracemalloc.start()
    synchrony.smoothed(np.zeros(2_001), 0.04)  # 40 s to either side
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_seconds_of_overlapping_windows_count_once():
    audio = [Track(np.zeros((25, 1)), span) for span in ((0.0, 4.0), (2.0, 6.0), (4.0, 8.0))]
    seconds = np.array([[4.0, 3.0], [4.0, 4.0], [0.0, 0.0]])
    assert synchrony.compared_seconds(Shifted(seconds, seconds, seconds), audio) == 6.0


# ---- calibration --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips whose sound is late by 0.12 s, all of them."""
    folder = tmp_path_factory.mktemp("score") / "data"
    clips = [("validation", clip(number, 0.12)) for number in range(20)]
    clips += [("few", clip(number)) for number in range(30, 40)]
    clips += [
        ("mixed", clip(number, seconds=0.96 if number > 71 else 4.0)) for number in range(52, 74)
    ]
    store.write(clips, folder, fingerprint=FINGERPRINT, videos="", rejected=[])
    return folder


@pytest.fixture(scope="module")
def calibrated(run, data):
    return calibration.calibrate(run, "me", store.read(data, "validation"))


def test_a_constant_error_is_taken_off(run, data, calibrated):
    assert calibrated.clips == 20 and "rough" in calibrated.in_words()
    assert calibrated.bias_s == pytest.approx(-0.12, abs=0.01)
    assert calibrated.clip_seconds == pytest.approx(4.0, abs=0.01)
    found = synchrony.synchrony(
        run, both(clip(50, 0.12 + 0.4))[0], [both(clip(50, 0.52))[1]], calibrated
    )
    assert found.offset == pytest.approx(-0.4, abs=0.02)
    assert found.low <= -0.4 <= found.high and found.high - found.low < 0.4
    for chance, low, high, word in (
        (0.05, -0.5, 0.5, "in place"),
        (0.05, 0.1, 0.2, "move it"),
        (0.05, -0.2, -0.1, "move it"),
        (0.05, -0.5, 0.6, "place unclear"),
        (0.06, -0.1, 0.1, "no fit found"),
    ):
        assert verdict(replace(found, chance=chance, low=low, high=high)) == word
    with pytest.raises(InputError, match="at least 20 clips") as few:
        calibration.calibrate(run, "me", store.read(data, "few"))
    assert calibration.calibrate(run, "me", store.read(data, "mixed"), most=3).clips == 3
    command = str(few.value).partition("scav score ")[2]
    assert command and parse(command.split()).calibrate  # what it says to do can be done


def test_as_much_of_a_longer_clip_says_as_much(random):
    """D of twice the seconds counts twice, so half of the sharpness is as sharp."""
    far = np.arange(-2.0, 2.02, 0.04)
    own = [np.abs(far - at) + 0.2 * random.standard_normal(len(far)) for at in (-0.03, 0.0, 0.05)]
    once, twice = (calibration._sharpness(far, own, n * np.ones(3)) for n in (1.0, 2.0))
    assert twice == pytest.approx(once / 2)


def test_a_narrow_range_of_offsets_changes_no_verdict(run, calibrated):
    """What it is compared with are shifts beyond that range."""
    for number in range(60, 66):
        picture, sound = both(clip(number, 0.12))
        found = [
            synchrony.synchrony(run, picture, [sound], calibrated, around=around)
            for around in ((-1.0, 1.0), (-0.4, 0.4), (-0.2, 0.2))
        ]
        assert [len(one.offsets) for one in found] == [51, 21, 11]
        for one in found[1:]:
            assert one.offset == pytest.approx(found[0].offset, abs=0.01)
            assert one.sync == pytest.approx(found[0].sync, rel=0.01)
            assert one.score == pytest.approx(found[0].score, rel=0.01)
    steps = synchrony.synchrony(run, picture, [sound], around=(-1.0, 1.0), step_s=0.3)
    np.testing.assert_allclose(steps.offsets, 0.3 * np.arange(-3, 4), atol=1e-9)  # and no 1.1 s
    away = synchrony.synchrony(run, picture, [sound], calibrated, around=(0.5, 0.9))
    assert 0.5 <= away.offset <= 0.9 and len(away.offsets) == 11 and away.sync < 0


def test_a_runs_own_clips_are_those_that_it_was_trained_with(run, data, calibrated):
    own = {**run.config["data"], "path": str(data), "validation_split": "validation"}
    content = {"validation": store.read(data, "validation").content}
    config = {**run.config, "data": own, "features": {"content": content}}
    trained = replace(run, path=data, config=config)
    assert calibration.of_data(trained, "me", None, None) == calibrated
    config["features"] = {"content": {"validation": "of other clips"}}
    with pytest.raises(InputError, match="other clips or features lie there now"):
        calibration.of_data(trained, "me", None, None)
    assert calibration.of_data(trained, "me", data, "validation") == calibrated  # named: as asked
    config["features"] = {"content": {"train": content["validation"]}}
    with pytest.raises(InputError, match="it has learned from these"):
        calibration.of_data(trained, "me", data, "validation")


def test_anothers_run_is_calibrated_for_one_call(
    run, data, calibrated, monkeypatch, capsys, tmp_path
):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(program, "check_may_be_written", refused)
    monkeypatch.setattr(calibration, "of_data", lambda *_: calibrated)
    own = {**run.config, "data": {**run.config["data"], "path": str(data)}}
    mine = model.Model(replace(run, path=data, config=own))
    assert program.calibration_of(mine, parse(["a.mp4", "--model", "run"])) == calibrated
    said = capsys.readouterr().err
    assert f"Permission denied: '{data / calibration.FILE}'; so every call" in said
    assert not (data / calibration.FILE).exists()
    asked = parse(["--calibrate", "--model", "run"])
    with pytest.raises(PermissionError):
        program.calibration_of(mine, asked)
    monkeypatch.setattr(program, "check_may_be_written", lambda *_: None)
    own_run = model.Model(replace(mine.run, path=tmp_path))
    monkeypatch.setattr(program, "load_as_asked", lambda _: own_run)
    assert program.run(asked) == 0 and calibration.load(tmp_path, "me") == calibrated


def test_strangers_score_nothing_and_own_sounds_much(run, calibrated):
    own = [scored(run, clip(k, 0.12), calibrated) for k in range(60, 66)]
    others = [scored(run, clip(k), calibrated, sound=clip(k + 10)) for k in range(60, 66)]
    assert min(one.score for one in own) > max(one.score for one in others)
    assert max(one.chance for one in own) == pytest.approx(1 / 21)
    assert abs(np.mean(calibrated.strangers)) < 1e-3
    assert calibrated.chance(calibrated.strangers[-2]) == pytest.approx(3 / 21)  # itself included
    assert np.mean([one.chance for one in others]) > 0.2


def test_strangers_are_of_other_files():
    sources = ["a", "a", "a", "b", "c", "b"]
    for number, other in enumerate(calibration.strangers(sources)):
        assert sources[number] != sources[other]


def test_a_calibration_is_stored_with_the_model_that_it_is_of(tmp_path, data, calibrated):
    assert calibration.load(tmp_path, "me") is None
    calibration.write(tmp_path, calibrated)
    assert calibration.load(tmp_path, "me") == calibrated
    assert (
        calibration.load(tmp_path, "me")
        .in_words()
        .startswith(
            f"calibrated on 20 clips of {data.parent.name}/data (validation): constant error -0.1"
        )
    )
    with pytest.raises(InputError, match="calibration of the model other"):
        calibration.load(tmp_path, "other")
    write_document(tmp_path / calibration.FILE, {"format": 1})  # which did not name its clips
    with pytest.raises(InputError, match="calibration of format 2; calibrate again: scav score"):
        calibration.load(tmp_path, "me")


# ---- files --------------------------------------------------------------------------------------


def test_windows_reach_from_the_first_to_the_last_second():
    assert tracks.windows(4.1, 4.0) == [(0.0, None)] == tracks.windows(None, 4.0)
    cuts = tracks.windows(61.3, 4.0)
    assert cuts[0][0] == 0 and cuts[-1] == (57.3, None)
    begins = np.array([begin for begin, _ in cuts])
    assert (np.diff(begins) <= 2.0).all() and np.allclose([e - b for b, e in cuts[:-1]], 4.0)


def test_pieces_of_a_picture_are_joined_on_one_grid():
    whole = np.arange(100.0)[:, None]
    pieces = [
        Track(whole[:40], (0.0, 1.6)),
        Track(whole[40:70], (1.6, 2.8)),
        Track(whole[70:], (2.8, 4.0)),
    ]
    joined = tracks.joined_pieces(pieces)
    np.testing.assert_array_equal(joined.values, whole)
    assert joined.span == pytest.approx((0.0, 4.0))
    holed = tracks.joined_pieces([pieces[0], pieces[2]]).values
    there = np.repeat([True, False, True], [40, 30, 30])
    np.testing.assert_array_equal(np.isfinite(holed[:, 0]), there)
    np.testing.assert_array_equal(holed[70:], whole[70:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of random numbers that takes files, with a calibration; and files."""
    folder = tmp_path_factory.mktemp("score")
    write_run(folder / "run")
    made = model.load(folder / "run")
    of, nulls = ("", "data/x", "new"), ((2.0, 1.0), (0.5, 0.1), (-1.0, 0.0, 1.0))
    told = Calibration(made.identity, *of, 60, 2.0, 0.0, 10.0, *nulls)
    calibration.write(folder / "run", told)
    (folder / "videos").mkdir()
    film(folder / "videos" / "a.mp4", 3, seed=1)
    film(folder / "videos" / "b.mkv", 5, seed=2)
    (folder / "videos" / "c.mp4").write_text("no film\n" * 400)
    write_sound(folder / "s.wav", "pcm_s16le", click_track(2.4, RATE, [0.5], seed=4))
    return folder


def test_a_folder_is_scored_and_what_is_bad_is_named(trained, capsys, tmp_path, monkeypatch):
    words = ["--model", str(trained / "run"), "--csv", str(tmp_path / "scores.csv")]
    words += ["--json", str(tmp_path / "scores.json"), "--html", str(tmp_path / "scores.html")]
    (trained / "videos" / "notes.txt").touch()
    assert main([str(trained / "videos"), *words, "--most-offset", "0.4"]) == 0
    shown = capsys.readouterr()
    assert "a.mp4" in shown.out and "b.mkv" in shown.out and "rejected" in shown.err
    assert "videos: other files, passed over: .txt 1\n" in shown.err
    assert re.search(r"\n2 scored: .+ [12]; rejected 1: not a readable video 1\n", shown.err)
    document = json.loads((tmp_path / "scores.json").read_text())
    first, second = document["pairs"]
    assert first["picture"].endswith("a.mp4") and len(first["offsets"]) == 21
    begins = [window["begin"] for window in second["windows"]]
    assert begins[0] == 0.0 and max(np.diff(begins)) <= 1.0 and 2.9 < begins[-1] < 3.2
    assert first["low"] <= first["offset"] <= first["high"]
    assert len(second["over_time"]["times"]) > len(first["over_time"]["times"]) > 10
    (refused,) = document["rejected"]
    assert refused["file"].endswith("c.mp4") and refused["reason"]
    with open(tmp_path / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"].rpartition("/")[2] for row in rows] == ["a.mp4", "b.mkv", "c.mp4"]
    assert rows[2]["reason"] and not rows[2]["score"]
    page = (tmp_path / "scores.html").read_text()
    assert page.count('class="offsets"') == 2 and page.count("data-offset=") == 2
    assert re.findall("<(video|audio) src", page) == 2 * ["video", "audio", "audio"]
    assert refused["reason"] in page

    def stopped(*_):
        raise KeyboardInterrupt

    def full(*_):
        raise OSError(28, "No space left on device")

    mixed = ["--json", str(tmp_path / "full.json"), "--csv", str(tmp_path / "new" / "other.csv")]
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(program, "write_json", full)
        main([str(trained / "videos"), *words[:2], *mixed, "--most-offset", "0.4"])
    assert len((tmp_path / "new" / "other.csv").read_text().splitlines()) == 4  # nothing is lost

    def terminated(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(program, "_score_all", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        main([str(trained / "videos"), *words])
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(program, "_score_all", stopped)  # before anything was scored
    with pytest.raises(KeyboardInterrupt, match=r"0 of 3 pairs are scored; .* all of them anew"):
        main([str(trained / "videos"), *words])
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 4


def test_scoring_that_was_killed_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch, capsys):
    """The last line is cut, a file has changed; other options, and others' work, are not taken."""
    monkeypatch.setattr(program, "AT_ONCE", 1)
    shutil.copytree(trained / "videos", tmp_path / "videos")
    shutil.copy(trained / "videos" / "a.mp4", tmp_path / "videos" / "d.mp4")
    out, journal = tmp_path / "out.json", tmp_path / "out.json.unfinished"
    words = [str(tmp_path / "videos"), "--model", str(trained / "run"), "--json", str(out)]
    scored, score = [], program._score

    def noted(model, calibrated, pair, *rest):
        scored.append(pair.picture.name)
        if len(scored) == 4:
            raise KeyboardInterrupt
        return score(model, calibrated, pair, *rest)

    monkeypatch.setattr(program, "_score", noted)
    with pytest.raises(KeyboardInterrupt, match=r"3 of 4 pairs are scored; .* goes on from there"):
        main([*words, "--most-offset", "0.4"])
    assert scored == ["a.mp4", "b.mkv", "c.mp4", "d.mp4"] and len(journal.read_text()) > 100
    lines = journal.read_text().splitlines(keepends=True)
    assert [len(json.loads(line)["pair"]) for line in lines[1:]] == [2, 2, 2]
    journal.write_text("".join(lines[:-1]) + lines[-1][:40])  # of c.mp4
    film(tmp_path / "videos" / "b.mkv", 4, seed=3)
    capsys.readouterr()
    assert main([*words, "--most-offset", "0.4"]) == 0
    assert scored[4:] == ["b.mkv", "c.mp4", "d.mp4"] and not journal.exists()
    assert "going on: 1 of 4 are done" in capsys.readouterr().err
    found = out.read_bytes()
    assert main([*words, "--most-offset", "0.4"]) == 0
    assert scored[7:] == ["a.mp4", "b.mkv", "c.mp4", "d.mp4"] and out.read_bytes() == found
    journal.write_text("".join(lines))
    assert main([*words, "--most-offset", "0.8"]) == 0
    assert scored[11:] == ["a.mp4", "b.mkv", "c.mp4", "d.mp4"] and not journal.exists()


def test_a_pair_as_python_scores_it(trained, tmp_path):
    picture, sound = trained / "videos" / "b.mkv", trained / "s.wav"
    (tmp_path / "pairs.csv").write_text(f"picture,sound\n{picture},{sound}\n")
    out = tmp_path / "out.json"
    assert (
        main([str(tmp_path / "pairs.csv"), "--run", str(trained / "run"), "--json", str(out)]) == 0
    )
    (told,) = json.loads(out.read_text())["pairs"]
    made = model.load(trained / "run")
    found = made.synchrony(made.tracks(picture, "visual"), made.tracks(sound, "audio"))
    assert told["offset"] == found.offset and told["score"] == found.score
    np.testing.assert_array_equal(np.array(told["curve"], float), found.curve)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,sound,sound\na,b,c\n", r"twice: \['picture', 'sound', 'sound'\]"),
        ("picture,sound\na,b,c\n", "line 2: expected as many cells"),
        ("picture,sound\na\n", "line 2: expected as many cells"),
        ("picture,sound\na, \n", "line 2: expected a picture and a sound, got no sound; "),
        ('picture,sound\n"a,b\n', "line 2: expected CSV: unexpected end"),
        ("picture,sound\n" + "a" * 200_000 + ",b\n", "line 2: expected CSV: field larger"),
        ("picture,sound\n", "at least one row"),
        ("", r"picture, sound, got \[\]"),
    ],
)
def test_a_list_of_pairs_with_a_fault_is_named(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        program.read_pairs(tmp_path / "pairs.csv")


def test_spaces_of_a_list_are_of_a_name_where_a_file_has_them(tmp_path):
    (tmp_path / "a .mp4 ").touch()
    (tmp_path / "pairs.csv").write_text("picture, sound\na .mp4 , b.wav\n")
    (pair,) = program.read_pairs(tmp_path / "pairs.csv")
    assert (pair.picture.name, pair.sound.name) == ("a .mp4 ", "b.wav")


def test_sounds_are_laid_under_a_picture(trained, capsys, tmp_path):
    (tmp_path / "heard").mkdir()
    (tmp_path / "heard" / "s.wav").symlink_to(trained / "s.wav")
    sounds = [str(tmp_path / "heard" / "s.wav"), str(trained / "videos" / "a.mp4")]
    words = ["--lay", str(tmp_path / "heard"), sounds[1], "--step", "0.1"]
    words += ["--under", str(trained / "videos" / "b.mkv")]
    assert main([*words, "--model", str(trained / "run"), "--json", str(tmp_path / "o.json")]) == 0
    pairs = json.loads((tmp_path / "o.json").read_text())["pairs"]
    assert sorted(pair["sound"] for pair in pairs) == sorted(sounds)
    assert pairs[0]["score"] >= pairs[1]["score"]
    longest = max(pairs, key=lambda pair: len(pair["offsets"]))
    curve = np.array(longest["curve"], float)
    told = "calibrated on 60 clips of data/x (new): constant error +0.000 s; intervals and scores "
    assert f"{told}want 100 clips or more: take them as rough" in capsys.readouterr().err
    assert np.nanmax(np.array(longest["offsets"])[np.isfinite(curve)]) > 2.5


def found_at(offset, low, high, **changes):
    found = synchrony.Synchrony(
        offset,
        *(low, high, 1.0, 0.5, 0.75, 0.02),
        np.array([-1.0, -0.5, 0.0, 0.5, 1.0]),
        np.array([np.nan, 2.0, 1.0, 3.0, np.nan]),
        4.0,
        ((0.0, 5.0), (0.0, 4.0)),
        [],
    )
    return replace(found, **changes)


def test_people_read_what_was_found(monkeypatch):
    none = Curve(np.zeros(0), np.zeros(0))
    own = Scored(Pair(Path("a.mp4"), Path("a.mp4")), found_at(0.0, -0.1, 0.2), none)
    other = Pair(Path("a.mp4"), Path("b.wav"))
    moved = Scored(other, found_at(-0.3, -0.4, -0.2, chance=0.0254), none)
    rejected = [{"file": "c.mp4", "reason": "no audio stream"}]
    head, first, second = program.table([own, moved]).splitlines()
    columns = "offset 95 % interval score sync match chance file"
    assert head.split() == columns.split()
    told = "0.00 s -0.10 to +0.20 s 0.75 1.00 0.50 0.020 in place a.mp4"
    assert first.split() == told.split()
    told = "-0.30 s -0.40 to -0.20 s 0.75 1.00 0.50 0.025 move it b.wav under a.mp4"
    assert second.split() == told.split() and second.index("b.wav") == head.index("file")
    counted = "2 scored: in place 1, move it 1; rejected 1: no audio stream 1"
    assert program.summary([own, moved], rejected) == counted
    assert program.summary([], rejected) == "0 scored; rejected 1: no audio stream 1"
    monkeypatch.setattr(page, "_one", lambda one: f"<p>player of {one.pair.name}</p>")
    monkeypatch.setattr(page, "MOST", 1)
    shown = page.page([own, moved], rejected)
    assert shown.count("player of") == 1 and "The first 1 of 2 are played below." in shown
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", shown.partition("b.wav under")[2])
    assert cells[:6] == ["-0.30 s", "-0.40 to -0.20", "0.75", "1.00", "0.50", "0.025"]
    assert "c.mp4" in shown and "no audio stream" in shown


@pytest.mark.parametrize("seconds, kind, cut", [(61, "video", 1), (60, "video", 0), (61, "", 0)])
def test_a_card_says_that_less_plays_than_was_compared(seconds, kind, cut):
    shown = page.card(
        page.Shown("a", "a.mp4", 1.0, 1.0 + seconds, "", kind, ""), "", "", "", True, ""
    )
    assert shown.count("its first 60 s play") == cut and f"1.00 to {1 + seconds}.00 s" in shown


def test_the_distance_over_offsets_is_drawn_where_it_is_known():
    drawn = page._offsets(found_at(0.1, 0.0, 0.2))
    assert '<line x1="384.0" x2="384.0"' in drawn and 'class="zero" x1="320.0"' in drawn
    assert '<rect x="320.0" y="0" width="128.0"' in drawn
    assert "distance over offsets, -0.50 to +0.50 s; lowest at +0.10 s" in drawn
    room = 0.08 * 2
    heights = [120 * (3 + room - value) / (2 + 2 * room) for value in (2, 1, 3)]
    places = re.findall(r"([\d.]+)[ ,]([\d.]+)", re.search(r'<path d="([^"]*)"', drawn)[1])
    np.testing.assert_allclose(
        np.array(places, float), list(zip((0, 320, 640), heights, strict=True)), atol=0.06
    )
    beside = page._offsets(found_at(-3.0, -4.0, -2.0, curve=np.array([np.nan] * 3 + [1.0, 2.0])))
    assert "zero" not in beside and '<line x1="0.0"' in beside  # what lies outside is at its edge


def test_over_time_windows_that_overlap_are_averaged(monkeypatch, unchecked_shapes):
    windows = {
        "a": (SimpleNamespace(clip="a", begin=0.0, end=2.0), [1.0, 1.0, 2.0, 2.0]),
        "b": (SimpleNamespace(clip="b", begin=1.0, end=3.0), [4.0, 4.0, 6.0, 6.0]),
        "beside": (None, []),
    }
    asked = []

    def curve(name, options, visual, audio, *, visual_seconds, audio_step_s):
        asked.append((visual, audio, visual_seconds))
        return Curve(0.25 + 0.5 * np.arange(4), np.array(windows[visual][1]))

    made = SimpleNamespace(run=None, batch_size=4, audio_step_s=0.5, distance=("euclidean", {}))
    both = SimpleNamespace(latents=("ab", "ab"))
    monkeypatch.setattr(scored_pairs, "cut_at", lambda visual, track, shift: windows[track][0])
    monkeypatch.setattr(scored_pairs, "embed_clips", lambda run, clips, batch_size: both)
    monkeypatch.setattr(scored_pairs.match, "one", lambda part, number: part[number])
    monkeypatch.setattr(scored_pairs.match, "match_curve", curve)
    found = scored_pairs.over_time(made, None, ["beside", "a", "b"], 0.0)
    np.testing.assert_allclose(found.values, [1, 1, 3, 3, 6, 6])
    np.testing.assert_allclose(found.times, 0.25 + 0.5 * np.arange(6))
    assert asked == [("a", "a", 2.0), ("b", "b", 2.0)]
    assert not len(scored_pairs.over_time(made, None, ["beside"], 0.0).values)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "or --calibrate, got none"),
        (["a.mp4", "--lay", "b.wav", "--under", "c.mp4"], "got files and --lay and --under"),
        (["--picture", "a.mp4"], "--picture and --sound, got one"),
        (["a.mp4", "--step", "0"], "--step: expected 0.005 to 1"),
        (["a.mp4", "--most-offset", "0.1"], "--most-offset: expected from 4 steps"),
        (["a.mp4", "--data", "d"], "with --calibrate"),
    ],
)
def test_what_cannot_be_asked_is_said(words, said):
    with pytest.raises(InputError, match=said):
        parse([*words, "--model", "run"])


def test_a_model_that_nobody_calibrated_is_refused(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=r"expected a calibrated model.*--calibrate --data"):
        main([str(tmp_path / "a.mp4"), "--model", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.mp4"], "no.mp4: expected a video or a sound file, there is none"),
        (["--picture", __file__, "--sound", "no.wav"], "no.wav: expected a video or a sound"),
        (["--lay", __file__, "--under", "no.mp4"], "no.mp4: expected a video or a sound"),
        (["no.csv"], "expected a CSV of pairs"),
        ([__file__, "--json", "/"], "/: expected the name of a file to write, a folder is there"),
    ],
)
def test_a_name_that_is_mistyped_is_said_before_the_model_is_loaded(words, said):
    with pytest.raises(InputError, match=said):
        main([*words, "--model", "no such model"])
