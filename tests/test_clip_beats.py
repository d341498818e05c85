"""The paper's backbone, from files of weights to a data set: values, batches, kills, shards."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import cache

import jax
import numpy as np
import pytest
import safetensors.numpy
from beats_reference import SMALL
from conftest import assert_equal_products
from test_extract import content, finished, good_video, read_rejected, wait_for
from test_media import changing_size, click_track, flash_frames, write_video

from scav_jax.base.errors import InputError
from scav_jax.extract import backbones, jobs, program, shards
from scav_jax.extract.backbones import Prepared, Preparer, beats, beats_weights, weights
from scav_jax.extract.backbones.beats_audio import BeatsPreparer
from scav_jax.extract.backbones.clip_model import FRAME_CHUNKS, ClipModel
from scav_jax.extract.backbones.clip_pixels import Preprocessing, resize_crop_pil
from scav_jax.extract.backbones.clip_towers import ClipConfig, VisionConfig
from scav_jax.extract.backbones.clip_visual import ClipPreparer, ClipVisual
from scav_jax.extract.backbones.clip_weights import random_weights
from scav_jax.extract.containers.film import KINDS
from scav_jax.extract.decoding import media
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import ClipRequest
from scav_jax.features import store

VISION = VisionConfig(24, 40, 10, 2, 3, 32, 8)
BEATS = dataclasses.replace(SMALL, encoder_layers=2)
CHUNK = FRAME_CHUNKS.frames_per_device


def write_weights(folder, seed=0):
    """A tiny CLIP as it lies on the hub, and a tiny BEATs as `beats_weights.convert` leaves it."""
    clip_folder = folder / "clip"
    weights.write(
        clip_folder / "model.safetensors", random_weights(ClipConfig(vision=VISION), seed)
    )
    config = {"model_type": "clip_vision_model", **dataclasses.asdict(VISION)}
    (clip_folder / "config.json").write_text(json.dumps(config))
    checkpoint = beats_weights.random_checkpoint(BEATS, seed)
    about = json.dumps({"cfg": BEATS.checkpoint_cfg(), "label_dict": None})
    file = folder / "beats.safetensors"
    file.write_bytes(safetensors.numpy.save(dict(checkpoint.state), {"beats": about}))
    return {"clip": clip_folder, "beats": file}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(files):
    """With frames that the host resizes, on an accelerator too."""
    return backbones.load("clip_beats", weights=files, options={"visual": {"resize": "pil"}})


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine videos of 1.5 to 3.5 s, of several sizes, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(9):
        good_video(folder / f"{number}.mp4", 1.5 + number % 3, seed=number)
    (folder / "bad.mp4").write_text("hello")
    return folder


@pytest.fixture(scope="module")
def whole(videos, model, tmp_path_factory):
    """The data set that an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole") / "data"
    program.extract(videos, out, backbone=model, workers=2)
    return out


def records(data):
    return [path.read_bytes() for path in sorted(data.glob("*array_record*"))]


@cache
def prepared(*steps):
    """Clips of noise, with so many frames each."""
    random = np.random.default_rng(5)
    side = VISION.image_size
    return [
        Prepared(
            random.integers(0, 256, (count, side, side, 3)).astype(np.uint8),
            random.uniform(-0.5, 0.5, 700 * count).astype(np.float32),
        )
        for count in steps
    ]


# -- values -----------------------------------------------------------------------------------


def test_features_are_those_of_the_two_models(videos, model, whole):
    """Decoded at the videos' own size and encoded by the models' own interfaces."""
    stored = store.read(whole, "all")
    assert len(stored) == 9 and (stored.visual_width, stored.audio_width) == (24, 256)
    assert stored.fingerprint["backbone"] == model.fingerprint()
    for index in (0, 5):
        with media.Reader(videos / stored.sources[index], None) as reader:
            decoded = reader.cut(0.0, None)
        assert decoded.frames.shape[1:] == (64, 96, 3)
        clip = stored[index]
        visual = model.visual.model.encode_images(decoded.frames)
        audio = model.audio.model.encode([decoded.waveform])[0]
        np.testing.assert_allclose(clip.visual, visual, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(clip.audio, audio, rtol=2e-3, atol=2e-3)
        assert clip.audio_span == (0.0, pytest.approx(0.16 * len(audio)))
        assert clip.visual_span == pytest.approx(decoded.frames_span)
    assert read_rejected(whole / "rejected.csv")["bad.mp4"]["stage"] == "open"


def test_frames_are_cropped_as_they_are_decoded(videos):
    """Not one by one later: a clip of whole frames would be gigabytes."""
    preparer = ClipPreparer(Preprocessing(32, (32, 32)))
    job = jobs.Job(0, ((0, ClipRequest("0.mp4", 0.0, None, "x")),))
    shapes = []

    class Watching(ClipPreparer):
        def shrink(self, frame):
            shapes.append(frame.shape)
            return super().shrink(frame)

    watching = Preparer(Watching(preparer.preprocessing), BeatsPreparer(), KINDS, 60.0, 0.16)
    (outcome,) = jobs.prepare(job, videos=videos, preparer=watching)
    assert set(shapes) == {(64, 96, 3)} and len(shapes) >= len(outcome.prepared.visual)
    with media.Reader(videos / "0.mp4", None) as reader:
        decoded = reader.cut(0.0, None)
    expected = np.stack([preparer.shrink(frame) for frame in decoded.frames])
    np.testing.assert_array_equal(outcome.prepared.visual, expected)
    np.testing.assert_array_equal(outcome.prepared.audio, decoded.waveform)


def test_batches_change_no_bit(model, monkeypatch):
    """However clips are put together. Nor do devices: test_scaling."""
    clips = prepared(1, CHUNK, 3 * CHUNK + 7, 38, 2 * CHUNK - 1)
    alone = [model.encode([clip])[0] for clip in clips]
    assert [len(visual) for visual, _ in alone] == [len(clip.visual) for clip in clips]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 0]):
        together = model.encode([clips[index] for index in order])
        for index, found in zip(order, together, strict=True):
            for stream in (0, 1):
                assert_equal_products(found[stream], alone[index][stream])
    rows, forward = [], beats._forward
    monkeypatch.setattr(
        beats, "_forward", lambda *given: rows.append(len(given[-1])) or forward(*given)
    )
    of_devices(1).audio.encode([clips[1].audio] * 3)
    assert rows == [1] * 3  # in larger products a sound is rounded by what stands beside it


def of_devices(count):
    """The model of seed 0 on so many devices, for test_scaling."""
    clip_model = ClipModel(
        ClipConfig(vision=VISION),
        random_weights(ClipConfig(vision=VISION), 0),
        batching=dataclasses.replace(FRAME_CHUNKS, devices=jax.local_devices()[:count]),
    )
    sound = beats.Beats(beats_weights.random_checkpoint(BEATS, 0), devices=count)
    model = backbones.load("clip_beats", weights={"clip": clip_model, "beats": sound})
    return model


def test_chunks_are_the_towers_own_features(model):
    clips = prepared(1, CHUNK, 3 * CHUNK + 7, 38, 2 * CHUNK - 1)
    chunked = model.visual.model.encode_clips([clip.visual for clip in clips])
    for clip, found in zip(clips, chunked, strict=True):
        expected = model.visual.model.encode_crops(clip.visual)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert model.visual.model.encode_clips([]) == []
    with pytest.raises(InputError, match=r"crops: expected uint8 \[N, 32, 32, 3\]"):
        model.visual.model.encode_clips([np.zeros((2, 31, 31, 3), np.uint8)])


def test_what_the_device_resizes_is_the_same_bytes(files, model, tmp_path):
    """Whole frames of several sizes beside crops; of a picture that changes its size, crops."""
    for number, size in enumerate([(64, 40), (48, 56), (32, 32), (96, 64)]):
        frames = flash_frames(1.5, [0.5], size=size)
        write_video(tmp_path / f"{number}.mp4", frames, click_track(1.5, 44_100, [1.0]), size=size)
    changing_size(tmp_path / "4.ts")
    on_device = backbones.load(
        "clip_beats", weights=files, options={"visual": {"resize": "device"}}
    )
    assert model.preparer.visual.whole is False and on_device.preparer.visual.whole is True
    clips = {}
    for name, one in (("host", model), ("device", on_device)):
        clips[name] = []
        for file in ("0.mp4", "1.mp4", "2.mp4", "3.mp4", "4.ts"):
            job = jobs.Job(0, ((0, ClipRequest(file, 0.0, None, "x")),))
            (outcome,) = jobs.prepare(job, videos=tmp_path, preparer=one.preparer)
            clips[name].append(outcome.prepared)
    shapes = [clip.visual.shape[1:3] for clip in clips["device"]]
    assert shapes == [(40, 64), (56, 48), (32, 32), (32, 32), (32, 32)]  # the fourth is too large
    assert {clip.visual.shape[1:3] for clip in clips["host"]} == {(32, 32)}
    expected, found = model.encode(clips["host"]), on_device.encode(clips["device"])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    assert on_device.fingerprint() == model.fingerprint()


def test_a_frame_as_large_as_a_crop_is_no_crop(random):
    """Where the short edge is made longer than the crop: the device takes it for cropped."""
    frame = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    preprocessing = Preprocessing(size=40, crop=(32, 32))
    (expected,) = resize_crop_pil(frame[None], preprocessing)
    found = ClipPreparer(preprocessing, whole=True).shrink(frame)
    np.testing.assert_array_equal(found, expected)


def test_a_minute_is_the_longest_clip(videos):
    picture = ClipPreparer(Preprocessing(32, (32, 32)))
    short = Preparer(picture, BeatsPreparer(max_seconds=1.5), KINDS, 1.5, 0.16)
    job = jobs.Job(0, ((0, ClipRequest("2.mp4", 0.0, None, "x")),))
    (outcome,) = jobs.prepare(job, videos=videos, preparer=short)
    assert outcome.rejection["reason"].startswith("too long: 3.5 s, a clip has at most 1.5 s; cut")
    job = jobs.Job(0, ((0, ClipRequest("0.mp4", 0.0, None, "x")),))
    (outcome,) = jobs.prepare(job, videos=videos, preparer=short)  # 1.5 s and a little sound more
    assert len(outcome.prepared.audio) <= 1.5 * 16_000
    assert BeatsPreparer().max_seconds == beats.MAX_SECONDS


# -- workers ----------------------------------------------------------------------------------


def test_a_worker_imports_no_jax(videos):
    """It would take a second and 100 MB each, or the memory of the accelerator."""
    job = jobs.Job(0, ((0, ClipRequest("0.mp4", 0.0, None, "x")),))
    preparer = Preparer(ClipPreparer(), BeatsPreparer(), KINDS, 60.0, 0.16)
    work = pickle.dumps((job, videos, preparer))
    code = (
        "import pickle, sys; from scav_jax.extract import jobs, pool;"
        "job, videos, preparer = pickle.load(sys.stdin.buffer);"
        "(outcome,) = jobs.prepare(job, videos=videos, preparer=preparer);"
        "print(outcome.prepared.visual.shape, [m for m in ('jax', 'flax', 'tensorflow_datasets',"
        " 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=work, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() in ("(37, 224, 224, 3) []", "(38, 224, 224, 3) []")


# -- the same bytes ---------------------------------------------------------------------------


def command(videos, out, files, *more):
    options = [f"--weights={name}={value}" for name, value in files.items()]
    base = ["--videos", videos, "--out", out, "--backbone", "clip_beats", *options, *more]
    return [sys.executable, "-m", "scav_jax.extract", *map(str, base)]


@pytest.mark.slow
def test_killed_runs_go_on_and_end_the_same(videos, files, model, whole, tmp_path, capsys):
    """Killed once; test_extract does it again, and scripts/benchmarks/kills.py at many moments."""
    out = tmp_path / "data"
    line = command(videos, out, files, "--workers", 1)
    # One CPU device as in any other process: the bytes do not depend on their number.
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment)
    wait_for(lambda: len(finished(tmp_path)) >= 3, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(finished(tmp_path)) >= 3, (tmp_path / "log").read_text()
    assert not out.exists()
    time.sleep(0.2)
    before = len(finished(tmp_path))
    program.extract(videos, out, backbone=model, workers=1)
    said = capsys.readouterr()
    assert f"going on: {before} of 10 clips were already done" in said.out
    assert "h of video/h" in said.err
    assert content(out) == content(whole)


def test_shards_join_to_the_same_bytes(videos, model, whole, tmp_path, capsys):
    out = tmp_path / "data"
    for index in (2, 0, 1):
        program.extract(videos, out, backbone=model, workers=1, shard=shards.Shard(index, 3))
        said = capsys.readouterr().out
        assert f"shard {index} of 3 is finished" in said
        if index == 2:
            assert "2 shards are not finished yet: 0, 1" in said
            with pytest.raises(InputError, match=r"expected 3 finished shards, 2 are not: 0, 1;"):
                program.merge(videos, out, count=3)
    assert "--num-shards 3 --merge writes" in said
    program.merge(videos, out, count=3)
    assert content(out) == content(whole) and records(out) == records(whole)
    for name in ("scav.json", "dataset_info.json", "features.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    capsys.readouterr()
    program.merge(videos, out, count=3)
    assert "is complete: 9 clips" in capsys.readouterr().out


# -- what can go wrong ------------------------------------------------------------------------


def test_features_that_are_not_finite_reject_their_clip(videos, model, tmp_path):
    class Broken(ClipVisual):
        def encode(self, clips):
            features = super().encode(clips)
            for visual in features:
                if len(visual) > 70:
                    visual[3] = np.nan
            return features

    broken = dataclasses.replace(model, visual=Broken(model.visual.model))
    program.extract(videos, tmp_path / "data", backbone=broken, workers=1)
    rows = read_rejected(tmp_path / "data" / "rejected.csv")
    assert sorted(rows) == ["2.mp4", "5.mp4", "8.mp4", "bad.mp4"]
    assert rows["5.mp4"]["stage"] == "features"
    assert rows["5.mp4"]["reason"].startswith("unusable features: clip '5.mp4': visual")


def test_an_encoder_that_fails_ends_the_run_and_keeps_what_was_done(videos, model, whole, tmp_path):
    class Failing(ClipVisual):
        calls = 0

        def encode(self, clips):
            Failing.calls += 1
            if Failing.calls == 4:
                raise RuntimeError("out of memory on the accelerator")
            return super().encode(clips)

    failing = dataclasses.replace(model, visual=Failing(model.visual.model))
    with pytest.raises(RuntimeError, match="out of memory on the accelerator"):
        program.extract(videos, tmp_path / "data", backbone=failing, workers=1)
    assert 3 <= len(finished(tmp_path)) < 10 and not (tmp_path / "data").exists()
    program.extract(videos, tmp_path / "data", backbone=model, workers=1)
    assert content(tmp_path / "data") == content(whole)


def test_other_weights_are_named(videos, model, whole, tmp_path):
    other = backbones.load("clip_beats", weights=write_weights(tmp_path, seed=1))
    with pytest.raises(
        InputError,
        match=r"another extractor \(backbone\.audio\.weights: expected '\w{64}', got '\w{64}'; "
        r"backbone\.visual\.weights_sha256: expected '\w{64}', got '\w{64}'\)",
    ):
        program.extract(videos, whole, backbone=other)
    half = backbones.load(
        "clip_beats", weights=write_weights(tmp_path), options={"": {"dtype": "bfloat16"}}
    )
    with pytest.raises(
        InputError, match=r"backbone\.visual\.dtype: expected 'float32', got 'bfloat16'"
    ):
        program.extract(videos, whole, backbone=half)
    with pytest.raises(InputError, match=r"backbone\.name: expected 'clip_beats', got 'plain'"):
        program.extract(videos, whole)


def test_the_fingerprint_says_what_features_depend_on(model):
    found = backbones.make_fingerprint(model)
    picture, sound = found["backbone"]["visual"], found["backbone"]["audio"]
    assert picture["weights_sha256"] != sound["weights"]
    assert picture["preprocessing"]["mean"][0] == 0.48145466
    assert picture["options"] == {"dtype": "float32", "output": "pooled"}
    assert sound["fbank"]["mel_bins"] == 128 and found["audio_step_s"] == 0.16
    assert found["audio_rate_hz"] == 16_000 and "libswresample" in found["decoding"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": None}, "--weights clip=PATH: expected the weights of clip"),
        ({"beats": None}, "--weights beats=PATH: expected the weights"),
        ({"dtype": "float16"}, "clip: dtype: expected one of float32, bfloat16, got 'float16'"),
        ({"output": "poolt"}, "clip: output: expected one of pooled, projected, got 'poolt'"),
        ({"resize": "gpu"}, "clip: resize: expected one of pil, device, got 'gpu'"),
        ({"ouput": "pooled"}, "--option ouput: expected .*dtype, output.* Did you mean 'output'"),
        ({"beats": "nowhere.safetensors"}, "nowhere.safetensors: expected a safetensors"),
        ({"dino": "x"}, r"--weights dino: expected the name of a side with .*clip, beats.*'dino'"),
    ],
)
def test_wrong_settings_get_one_line(files, change, message):
    given = {k: v for k, v in (files | change).items() if v is not None}
    options = {k: given.pop(k) for k in ("dtype", "output", "ouput", "resize") if k in given}
    with pytest.raises(InputError, match=message):
        backbones.load("clip_beats", weights=given, options={"": options})


def test_a_job_without_all_of_its_clips_is_never_kept(tmp_path):
    from scav_jax.extract.encoding import Results

    job = jobs.Job(0, ((0, ClipRequest("x", 0.0, 1.0, "x")), (1, ClipRequest("x", 1.0, 2.0, "y"))))
    with Results(Ledger(tmp_path), lambda *_: None) as results:
        results.add(0, jobs.Outcome(0, job.clips[0][1], rejection={"id": "x"}), None)
        with pytest.raises(RuntimeError, match="job 0: 1 of 2 clips came"):
            results.keep(job)
    assert not Ledger(tmp_path).is_done(0)
