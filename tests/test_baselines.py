"""Baselines that cost nothing: each against its formula, and in the table of an evaluation."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import reference
import scipy.linalg
from test_evaluate import write_run
from test_index import embedded

from scav_jax.base.errors import InputError
from scav_jax.evaluate import __main__ as program
from scav_jax.evaluate import baselines, evaluation, parts
from scav_jax.features import store
from scav_jax.features.clip import Clip
from scav_jax.retrieval import results
from scav_jax.retrieve import sequence_distances

FINGERPRINT = {"backbone": "random", "rate_hz": 16000}
STEPS, FRAMES = 10, 40  # of 0.16 s and of 0.04 s


def write(folder, seed=0):
    """Pictures that brighten 0.04 s before the sound rises, beside noise; and what stays."""
    random = np.random.default_rng(seed)
    looks = random.normal(size=(4, 7 + 6))
    mixing = random.normal(size=(3, 7)), random.normal(size=(3, 6))
    clips = []
    for number in range(32):
        strikes = random.uniform(size=(FRAMES, 3)) < 0.12
        heard = np.roll(strikes, 1, axis=0).reshape(STEPS, 4, 3).sum(axis=1)
        look = looks[number % 4]
        visual = strikes @ np.abs(mixing[0]) + 0.02 * random.normal(size=(FRAMES, 7)) + look[:7]
        audio = heard @ np.abs(mixing[1]) + 0.02 * random.normal(size=(STEPS, 6)) + look[7:]
        clip = Clip(
            id=f"clip {number}", visual=visual.astype(np.float16), visual_span=(0.0, 1.6),
            audio=audio.astype(np.float16), audio_span=(0.0, 1.6), source="a.mp4",
            start=2.0 * number, end=2.0 * number + 1.6, label="x",
        )  # fmt: skip
        clips.append((("train", "train", "validation", "test")[number // 8], clip))
    store.write(clips, folder, fingerprint=FINGERPRINT, videos="", rejected=[])
    return folder


def of(split):
    """Features of every clip: pictures at the middle of each step of sound (by hand), sounds."""
    pairs = []
    for number in range(len(split)):
        clip = split[number]
        visual, audio = (np.asarray(x, float) for x in (clip.visual, clip.audio))
        pairs.append(((visual[1::4] + visual[2::4]) / 2, audio))
    return pairs


def test_linear_cca_is_the_generalised_eigenproblem(tmp_path):
    """Hotelling's correlations and directions, by SciPy's solver."""
    data = write(tmp_path / "data")
    train = store.read(data, "train")
    moments = baselines.Moments()
    x, y = (np.concatenate(column) for column in zip(*of(train), strict=True))
    moments.add(x[:50], y[:50])
    moments.add(x[50:], y[50:])
    maps, common = moments.fitted(3), baselines.Moments()
    common.add(x[:50] + 3000, y[:50] - 3000)
    common.add(x[50:] + 3000, y[50:] - 3000)
    np.testing.assert_allclose(common.fitted(3).correlations, maps.correlations, rtol=1e-4)
    both = np.cov(x.T, y.T, ddof=0)
    cxx, cxy, cyy = both[:7, :7], both[:7, 7:], both[7:, 7:]
    cxx, cyy = (c + 0.1 * np.trace(c) / len(c) * np.eye(len(c)) for c in (cxx, cyy))
    squares, vectors = scipy.linalg.eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx)
    np.testing.assert_allclose(maps.correlations, np.sqrt(squares[::-1][:3]), rtol=1e-3)
    ours = maps.matrices[0] / np.linalg.norm(maps.matrices[0], axis=0)
    theirs = vectors[:, ::-1][:, :3] / np.linalg.norm(vectors[:, ::-1][:, :3], axis=0)
    np.testing.assert_allclose(np.abs((ours * theirs).sum(axis=0)), 1.0, atol=1e-3)
    np.testing.assert_allclose(maps.means[0], x.mean(axis=0), atol=1e-4)
    projected = maps.apply(0, x), maps.apply(1, y)
    cross = projected[0].T @ projected[1] / len(x)  # r sqrt(r)^2 apart from the ridge
    assert np.abs(cross - np.diag(np.diag(cross))).max() < 0.05 * np.abs(np.diag(cross)).max()

    # Both parts: r of dynamic CCA and s of static CCA, as the distance has them.
    splits = [store.read(data, name) for name in ("train", "validation", "test")]
    whole, summed = baselines.correlations(*splits, "time")
    assert summed.distance[0] == "euclidean+static"
    e, options = summed.embedded, summed.distance[1]
    options = options | {"static_weight": 0.0}
    distances = sequence_distances(e.latents, "euclidean+static", options)
    moved = [[part - part.mean(axis=0) for part in pair] for pair in of(splits[0])]
    dynamic = baselines.Moments()
    dynamic.add(*(np.concatenate(column) for column in zip(*moved, strict=True)))
    matrices = dynamic.fitted().matrices
    flat = [
        np.stack([((p - p.mean(axis=0)) @ matrices[k]).ravel() for p in column])
        for k, column in enumerate(zip(*of(splits[2]), strict=True))
    ]
    flat = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in flat]
    np.testing.assert_allclose(distances, 2 - 2 * flat[0] @ flat[1].T, atol=2e-3)
    own = np.diagonal(distances)
    assert np.mean(own <= distances.min(axis=1)) > 0.8
    assert whole.embedded.ids == splits[2].ids


@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_a_lag_stays_within_a_clip_whatever_lies_beside_it(random, lag):
    alone, end = random.normal(size=(1, 6)), np.full((1, 4), np.nan)
    found = baselines.lagged(np.concatenate([alone, end], axis=1), lag)
    expected = [alone[0, min(max(cell - lag, 0), 5)] for cell in range(6)]
    np.testing.assert_array_equal(found, [[*expected, *end[0]]])


def test_onset_envelopes_are_rises_less_their_mean(tmp_path):
    """By loops; the lag of the sound is found on the training clips."""
    data = write(tmp_path / "data")
    train, test = (store.read(data, name) for name in ("train", "test"))
    found = baselines.onsets(train, test, "time").embedded

    def envelope(values, repeat):
        rise = [0.0]
        for before, after in itertools.pairwise(values):
            rise.append(sum(max(b - a, 0.0) for a, b in zip(before, after, strict=True)))
        return np.repeat(np.array(rise) / values.shape[1], repeat)

    def unit(x):
        return (x - x.mean()) / np.linalg.norm(x - x.mean())

    def pairs(split, lag):
        for number in range(len(split)):
            clip = split[number]
            heard = envelope(np.asarray(clip.audio, float), 4)
            places = np.clip(np.arange(FRAMES) - lag, 0, FRAMES - 1)
            yield unit(envelope(np.asarray(clip.visual, float), 1)), unit(heard[places])

    fits = {lag: np.mean([v @ a for v, a in pairs(train, lag)]) for lag in range(-4, 5)}
    visual, audio = zip(*pairs(test, max(fits, key=fits.get)), strict=True)
    expected = np.stack(visual) @ np.stack(audio).T
    cosines = found.visual_embeddings @ found.audio_embeddings.T
    np.testing.assert_allclose(cosines, expected, atol=1e-5)
    assert np.diagonal(cosines).mean() > cosines.mean() + 0.2


@pytest.mark.parametrize("resample", ["visual_to_audio", "audio_to_visual"])
def test_the_euclidean_distance_is_the_sum_of_both_parts(resample):
    """D_static and D_dynamic of every pair, from their definitions; ragged clips, NaN behind."""
    clips = embedded(5, 9, lengths=[9, 4, 6, 9, 2])
    clips = replace(clips, audio=embedded(5, 6, seed=4, lengths=[3, 6, 6, 5, 2]).audio)
    options = {"resample": resample}
    distances = sequence_distances(clips.latents, "euclidean", options)
    rows = {part.label: part for part in parts.of_euclidean(clips, distances, options)}
    static, dynamic = np.zeros((2, 5, 5))
    streams = [
        [values[:length].astype(float) for values, length in zip(x.values, x.lengths, strict=True)]
        for x in clips.latents
    ]
    for i, visual in enumerate(streams[0]):
        for j, audio in enumerate(streams[1]):
            moving, target = (visual, audio) if resample == "visual_to_audio" else (audio, visual)
            windows = (0, len(moving)), len(target), (0, len(target))
            difference = reference.resample(moving, *windows) - target
            static[i, j] = (difference.mean(axis=0) ** 2).mean()
            dynamic[i, j] = ((difference - difference.mean(axis=0)) ** 2).mean()
    found = [rows[f"{part} part of D"].v2a for part in ("static", "dynamic")]
    np.testing.assert_allclose(found[0], static, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1], dynamic, rtol=1e-3, atol=1e-5)
    for axis, of in ((1, "v2a"), (0, "a2v")):
        expected = sum(x / x.std(axis=axis, keepdims=True) for x in found)
        by_deviation = getattr(rows["both parts by deviation"], of)
        np.testing.assert_allclose(by_deviation, expected, rtol=1e-3)
    one_step = embedded(20, 1)  # nothing changes over them, so what rounding leaves orders nothing
    distances = sequence_distances(one_step.latents, "euclidean", options)
    of_one = parts.of_euclidean(one_step, distances, options)
    assert [part.label for part in of_one if not part.v2a.any()] == ["dynamic part of D"]
    assert {(part.ranks("v2a") == of_one[0].ranks("v2a")).all() for part in of_one[::2]} == {True}


def test_they_are_rows_of_the_table_and_say_who_does_not_beat_them(tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "data")
    run = write_run(tmp_path / "run", data, distance={"resample": "visual_to_audio"})
    said = ["--run", str(run), "--split", "test", "--bootstrap", "0", "--baselines", "--parts"]
    assert program.main([*said, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    names = [one["name"] for one in found["runs"]]
    assert names == ["SCAV", "onset envelopes", "linear CCA", "linear CCA, both parts"]
    labels = [results.method_name(one) for one in found["runs"][3]["methods"]]
    assert {"static part", "dynamic part"} <= set(labels)
    assert any(label.startswith("sum, static weight ") for label in labels)
    labels = [results.method_name(one) for one in found["runs"][0]["methods"]]
    assert labels[-3:] == ["static part of D", "dynamic part of D", "both parts by deviation"]
    printed = capsys.readouterr().out
    assert "CAUTION: SCAV finds" in printed and "costs nothing" in printed
    report = (tmp_path / "out" / "report.html").read_text()
    assert "was not worth its electricity" in report
    assert "by the static part of D alone " in report  # which part found it
    monkeypatch.setattr(evaluation, "evaluate_source", None)  # what is wrong is said before it
    with pytest.raises(InputError, match="--parts: expected the Euclidean distance"):
        program.main([*said, "--distance", "dtw"])
    with pytest.raises(InputError, match="expected --run"):
        np.savez(tmp_path / "x.npz", ids=store.read(data, "test").ids, visual=np.eye(8),
                 audio=np.eye(8), name="x", parameters=0, training="x")  # fmt: skip
        program.main(["--embeddings", str(tmp_path / "x.npz"), "--data", str(data),
                      "--split", "test", "--baselines"])  # fmt: skip


def test_what_no_search_can_do_beats_no_baseline():
    """A run is worth what its rows find that look at one query."""

    def run(objective, **found):
        methods = [
            {"method": "part", "label": label, "k": 9}
            | {direction: {"recall_at_1": share} for direction in results.DIRECTIONS}
            for label, share in found.items()
        ]
        return {"name": objective, "objective": objective, "methods": methods}

    baseline = run(results.BASELINE, CCA=0.4)
    beaten = run("sequence", hubness=0.3, **{results.TRANSDUCTIVE: 0.9})
    assert "finds 30.0 %, baseline, CCA costs nothing and finds 40.0 %" in " ".join(
        results.unbeaten({"runs": [beaten, baseline]})
    )
    assert not results.unbeaten({"runs": [run("sequence", hubness=0.5), baseline]})
