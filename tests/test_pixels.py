"""Pixels from end to end: extracted, trained on by EquiAV, resumed, evaluated, searched."""

import json
import re

import jax
import numpy as np
import pytest
from conftest import unchecked
from PIL import Image
from small_run import parameters, records, train_here
from test_backbone_door import extract, ten_films

from scav_jax.base.errors import InputError
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.export.writing import export
from scav_jax.extract import fbank
from scav_jax.extract.backbones.pixels import PixelsVisual
from scav_jax.extract.decoding import media
from scav_jax.features import store
from scav_jax.features.batches import Padding, load_batch
from scav_jax.index import __main__ as index_program
from scav_jax.index import open_index
from scav_jax.objectives.pixels import sound_steps
from scav_jax.retrieval import embed, model
from scav_jax.training import config_files
from scav_jax.training.config import override
from scav_jax.training.runs import load_run

SIDE, FRAMES = 32, 3
SMALL = {
    "data.batch_size": 4,
    "data.backbone": "pixels",
    "encoders.width": 8,
    "encoders.heads": 2,
    "encoders.feedforward": 12,
    "encoders.visual_blocks": 0,
    "encoders.audio_blocks": 0,
    "encoders.side": SIDE,
    "objective.audio_frames": 208,
    "objective.hidden": 10,
    "objective.intra_width": 6,
    "objective.inter_width": 5,
    "objective.code_width": 7,
    "objective.centroid": 2,
    "optimizer.warmup_steps": 2,
    "train.steps": 6,
    "train.log_every": 1,
    "train.validate_every": 3,
    "train.keep_best": 2,
    "train.devices": 1,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return ten_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def features(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("pixels") / "data"
    words = ["--backbone", "pixels", "--frames", FRAMES, "--side", SIDE]
    return extract(videos, out, *words)


def trained(features, run, until=None, **changes):
    demo = config_files.load_file("configs/equiav/demo.py")
    settings = SMALL | {"data.path": str(features)} | changes
    return train_here(override(demo, settings), run, until)


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    assert trained(features, run) is not None
    return run


def test_pixels_are_stored_as_they_are(features, videos):
    split = store.read(features, "validation")
    about = json.loads((features / "scav.json").read_text())
    assert (about["visual_dtype"], about["audio_dtype"]) == ("uint8", "float16")
    assert about["fingerprint"]["backbone"]["visual"]["options"] == {"frames": 3, "side": 32}
    clip = split[1]
    assert clip.visual.shape == (FRAMES, SIDE * SIDE * 3) and clip.visual.dtype == np.uint8
    with media.Reader(videos / split.sources[1], None) as reader:
        decoded = reader.cut(0.0, None)
    count = len(decoded.frames)
    for number, row in enumerate(clip.visual):
        frame = Image.fromarray(decoded.frames[int((number + 0.5) * count / FRAMES)])
        short = min(frame.size)
        size = [int(SIDE * edge / short) for edge in frame.size]
        left, top = ((edge - SIDE) // 2 for edge in size)
        crop = frame.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        difference = np.abs(row.reshape(SIDE, SIDE, 3).astype(int) - np.asarray(crop, int))
        assert difference.max() <= 1, number
    log_mel = fbank.log_mel(decoded.waveform, fbank.hann_window(), 1.0)
    stored = clip.audio.astype(np.float32).reshape(-1, 128)
    np.testing.assert_allclose(stored, log_mel[: len(stored)], atol=8e-3)
    assert clip.audio_span == (0.0, pytest.approx(0.16 * len(clip.audio)))
    assert clip.visual_span == pytest.approx((0.0, 2.0), abs=0.05)


def test_the_window_and_the_scale_of_a_log_mel_are_those_that_are_asked_for():
    wave = np.random.default_rng(0).normal(0, 0.1, 3200)
    hann = np.hanning(fbank.WINDOW_SAMPLES)
    np.testing.assert_allclose(fbank.hann_window(), hann, atol=1e-6)
    np.testing.assert_allclose(fbank.povey_window(), hann**0.85, atol=1e-6)
    loud = fbank.log_mel(wave, fbank.hann_window())
    quiet = fbank.log_mel(wave, fbank.hann_window(), 1.0)
    held = quiet > np.log(fbank.ENERGY_FLOOR) + 1e-3
    assert held.mean() > 0.9
    np.testing.assert_allclose((loud - quiet)[held], 2 * np.log(32_768), rtol=1e-4)


def test_a_batch_has_pixels_in_bytes(features):
    split = store.read(features, "train")
    for dtype in ("float16", "float32"):
        batch = load_batch(split, np.array([2, 0]), Padding(4, 13), "time", dtype)
        visual, audio = batch.features
        assert visual.values.dtype == np.uint8 and audio.values.dtype == dtype
        np.testing.assert_array_equal(visual.values[0, :FRAMES], split[2].visual)
        assert visual.lengths.tolist() == [FRAMES, FRAMES]
    steps = sound_steps(jax.numpy.zeros((48, 128)))
    assert steps.values.shape == (3, 2048) and int(steps.lengths) == 3


def test_sizes_are_said_before_the_work_and_too_much_is_refused(
    videos, tmp_path, monkeypatch, capsys
):
    from scav_jax.extract import program

    monkeypatch.setattr(program.shutil, "disk_usage", lambda _: type("", (), {"free": 1e6})())
    with pytest.raises(InputError, match=r"--out: expected .* GB of space"):
        extract(videos, tmp_path / "out", "--backbone", "pixels")
    assert re.search(r"\(1\.7\d MB a clip of 10 s\)", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    for options, message in (
        ({"side": 50}, "--side: expected a multiple of 16"),
        ({"frames": 0}, "--frames: expected 1 to 1000"),
    ):
        with pytest.raises(InputError, match=message):
            PixelsVisual(**options)


def test_it_trains_and_resumes_to_the_bit(features, run, tmp_path):
    assert trained(features, tmp_path / "stopped", until=4) is None
    assert trained(features, tmp_path / "stopped") is not None
    jax.tree.map(np.testing.assert_array_equal, parameters(run), parameters(tmp_path / "stopped"))
    lines = records(run)
    assert lines == records(tmp_path / "stopped")
    names = {name for line in lines for name in line}
    assert {"equivariance_gain", "loss_inter", "loss_intra_audio"} <= names


def test_other_pixels_and_other_features_are_refused(features, tmp_path):
    with pytest.raises(InputError, match="expected pictures of 48 pixels a side, got 32"):
        trained(features, tmp_path / "run", **{"encoders.side": 48})
    assert not (tmp_path / "run").exists()


def test_one_vector_a_clip_is_evaluated(features, run, tmp_path):
    words = ["--run", run, "--split", "validation", "--out", tmp_path / "e", "--bootstrap", 0]
    words += ["--save", tmp_path / "own.npz"]
    assert not evaluate_program.main([*map(str, words)])
    (row,) = json.loads((tmp_path / "e" / "metrics.json").read_text())["runs"]
    assert [method["method"] for method in row["methods"]] == ["aggregation"]
    assert row["name"] == "EquiAV"
    words = ["--embeddings", tmp_path / "own.npz", "--data", features, "--split", "validation"]
    words += ["--out", tmp_path / "f", "--bootstrap", 0]
    assert not evaluate_program.main([*map(str, words)])
    (same,) = json.loads((tmp_path / "f" / "metrics.json").read_text())["runs"]
    for direction in ("a2v", "v2a"):
        assert same["methods"][0][direction] == row["methods"][0][direction]
    assert (same["name"], same["parameters"]) == (row["name"], row["parameters"])


@pytest.mark.slow
def test_it_is_exported_indexed_and_searched(features, run, videos, tmp_path):
    with unchecked():  # sizes of exported towers are symbols
        export(run, tmp_path / "out")
    loaded = model.load(tmp_path / "out")
    stored = embed.embed(load_run(run), store.read(features, "validation"))
    made = loaded.embed(videos / "7.mp4")
    np.testing.assert_allclose(made.visual_embeddings[0], stored.visual_embeddings[1], atol=1e-4)
    assert made.visual.values.shape == (1, 1, 5)
    words = ["--model", tmp_path / "out", "--videos", videos]
    assert index_program.main(["build", str(tmp_path / "i"), *map(str, words)]) == 0
    index = open_index(tmp_path / "i")
    (hits,) = index.search(made, "v2a", 10)
    unit = [
        e / np.linalg.norm(e, axis=1, keepdims=True)
        for e in (made.visual_embeddings, loaded.embed(videos).audio_embeddings)
    ]
    order = np.argsort(-(unit[0] @ unit[1].T)[0], kind="stable")
    assert [hit.id for hit in hits] == [f"{number}.mp4" for number in order]
