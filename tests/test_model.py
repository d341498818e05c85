"""Files -> latents: the same as through a data set, alone as in a batch, one stream or both."""

import dataclasses
import functools
import shutil
import warnings

import av
import jax
import numpy as np
import pytest
from conftest import assert_equal_products
from small_run import TOWERS, drawn_run
from test_media import click_track, flash_frames, write_video

from scav_jax.base.documents import read_document, write_document
from scav_jax.base.errors import InputError
from scav_jax.extract import backbones, fbank, jobs, pool, program
from scav_jax.extract.backbones.plain import PlainVisual
from scav_jax.extract.decoding import media, usable
from scav_jax.extract.manifest import ClipOptions, cut_whole_videos, list_clips
from scav_jax.features import store
from scav_jax.retrieval import embed, files, model
from scav_jax.sequences import STREAMS
from scav_jax.training.config import Config

RATE = 16_000
WIDTHS = {"visual": 384, "audio": 2048}


def write_run(folder, seed=0, pre_resample="visual_to_audio", fingerprint=None, **distance):
    """A finished training with random parameters, on features of the backbone `plain`."""
    config = Config().replace(
        seed=seed,
        data={"path": "/data/mine", "buckets": 2},
        encoders=TOWERS | {"pre_resample": pre_resample},
        distance=distance,
    )
    fingerprint = fingerprint or program.make_fingerprint("plain")
    about = {"fingerprint": fingerprint, "widths": WIDTHS, "clips": {"train": 1200}}
    return drawn_run(folder, config, **about)


def film(path, seconds, seed, **options):
    frames = options.pop("frames", None) or flash_frames(seconds, [0.48], seed=seed)
    track = options.pop("track", click_track(seconds, RATE, [0.5], seed=seed))
    return write_video(path, frames, track, audio_rate=RATE, **options)


def write_sound(path, codec, track):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        samples = np.round(track[0] * 32767).astype(np.int16)
        for begin in range(0, samples.size, 1152):
            part = np.ascontiguousarray(samples[None, begin : begin + 1152])
            if codec == "libmp3lame":
                frame = av.AudioFrame.from_ndarray(part, "s16p", layout="mono")
            else:
                frame = av.AudioFrame.from_ndarray(part, "s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Films of 2.4, 7.3 and 3 s, one of them in a folder of its own, and one without sound."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "a").mkdir()
    film(folder / "a" / "c.mkv", 7.32, seed=2)
    film(folder / "b.mp4", 2.4, seed=1)
    film(folder / "d.mp4", 3, seed=3)
    film(folder / "e.mp4", 3, seed=3, track=None)
    (folder / "f.mp4").write_text("hello, I am not a film\n" * 400)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "pre")


@pytest.fixture(scope="module")
def made(run):
    return model.load(run)


@pytest.fixture(scope="module")
def post(tmp_path_factory):
    return model.load(write_run(tmp_path_factory.mktemp("run") / "post", pre_resample=None))


@pytest.fixture(scope="module")
def embedded(made, folder):
    return made.embed(folder, clip_seconds=2)


def real(stream, number):
    """The real steps of one sequence."""
    return np.asarray(stream.values)[number, : int(stream.lengths[number])]


def assert_same(one, other, exactly=True, streams=STREAMS):
    """The same clips, whatever they are padded to; padding is zero."""
    assert len(one) == len(other) > 0
    compare = assert_equal_products
    if not exactly:
        compare = functools.partial(np.testing.assert_allclose, atol=2e-5)
    for stream in streams:
        a, b = getattr(one, stream), getattr(other, stream)
        np.testing.assert_array_equal(a.lengths, b.lengths)
        for number in range(len(one)):
            compare(real(a, number), real(b, number))
            assert (a.values[number, int(a.lengths[number]) :] == 0).all()
        compare(getattr(one, f"{stream}_embeddings"), getattr(other, f"{stream}_embeddings"))


def take(whole, number):
    """One clip of an `Embedded`."""
    cut = slice(number, number + 1)
    arrays = {
        name: jax.tree.map(lambda leaf: leaf[cut], getattr(whole, name))
        for name in (*STREAMS, "visual_embeddings", "audio_embeddings", "starts", "ends")
    }
    lists = {name: getattr(whole, name)[cut] for name in ("ids", "sources", "labels")}
    return dataclasses.replace(whole, **arrays, **lists)


def test_files_become_what_extraction_and_embedding_make_of_them(made, folder, embedded, tmp_path):
    program.extract(folder, tmp_path / "data", clips=ClipOptions(seconds=2), workers=1)
    split = store.read(tmp_path / "data", "all")
    expected = embed.embed(made.run, split, batch_size=3)
    assert embedded.ids == expected.ids == [
        "a/c.mkv#0.000", "a/c.mkv#2.000", "a/c.mkv#4.000", "b.mp4#0.000", "d.mp4#0.000"
    ]  # fmt: skip
    assert embedded.sources == expected.sources
    assert embedded.sources[0] == str(folder / "a" / "c.mkv")
    np.testing.assert_array_equal(embedded.starts, [0, 2, 4, 0, 0])
    np.testing.assert_array_equal(embedded.ends, expected.ends)
    assert_same(embedded, expected, exactly=False)
    assert np.abs(embedded.visual.values).max() > 0.5
    assert len(np.unique(embedded.audio_embeddings.round(4), axis=0)) == 5
    expected_rows = store.read_rejected(tmp_path / "data")
    assert [(row["id"], row["reason"]) for row in embedded.rejected] == [
        (row["id"], row["reason"]) for row in expected_rows
    ]
    assert [row["file"] for row in embedded.rejected] == ["e.mp4", "f.mp4"]


def test_alone_is_as_in_a_batch_to_the_bit(made, folder, tmp_path, monkeypatch):
    """Lengths alternate, so that clips of one padding are not neighbours."""
    monkeypatch.setattr(made, "batch_size", 3)
    other = film(tmp_path / "other.mp4", 3, seed=5)
    files = [folder / "d.mp4", folder / "b.mp4", other, folder / "a" / "c.mkv"]
    together = made.embed(files)
    assert len(set(together.audio.lengths.tolist())) == 3
    for number, file in enumerate(files):
        alone = made.embed(file)
        assert_same(alone, take(together, number))
    again = made.embed(files)
    assert_same(again, together)


def test_the_batch_size_and_padding_change_rounding_only(made, folder, embedded, monkeypatch):
    monkeypatch.setattr(made, "batch_size", 4)
    monkeypatch.setattr(embed, "padded_steps", lambda steps: steps + 29)
    assert_same(made.embed(folder, clip_seconds=2), embedded, exactly=False)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_stream_of_a_folder_is_the_whole(made, folder, embedded, monkeypatch, at_once):
    monkeypatch.setattr(files, "CLIPS_AT_ONCE", at_once)
    parts = list(made.stream(folder, clip_seconds=2))
    assert [len(part) for part in parts][:2] == [at_once] * 2
    assert [name for part in parts for name in part.ids] == embedded.ids
    assert [row for part in parts for row in part.rejected] == embedded.rejected
    assert_same(embed.join([part for part in parts if len(part)]), embedded)


def test_workers_give_the_same(made, folder, embedded):
    """Three files and two processes: results come in the order of the files."""
    other = made.embed(folder, clip_seconds=2, workers=2)
    assert other.ids == embedded.ids and other.rejected == embedded.rejected
    assert_same(other, embedded)


def test_windows_are_those_of_extraction(made, folder):
    """`cut_whole_videos` has the rule; a part of a file is cut from its start."""
    for seconds in (2.0, 2.45, 3.0, 8.0):
        listing = list_clips(folder, ClipOptions(seconds=seconds))
        wanted, _, _ = cut_whole_videos(listing, {"a/c.mkv": 7.32, "b.mp4": 2.4, "d.mp4": 3.0}.get)
        for name in ("a/c.mkv", "b.mp4", "d.mp4"):
            got = made.embed(folder / name, clip_seconds=seconds, root=folder)
            expected = [clip for clip in wanted if clip.file == name]
            assert got.ids == [clip.id for clip in expected]
            np.testing.assert_array_equal(got.starts, [clip.start for clip in expected])
    part = made.embed(folder / "a" / "c.mkv", clip_seconds=2, start=1, end=6.5, root=folder)
    assert part.ids == ["a/c.mkv#1.000", "a/c.mkv#3.000"]
    np.testing.assert_array_equal(part.ends, [3, 5])
    whole = made.embed(folder / "a" / "c.mkv", start=1, end=3, root=folder)
    assert_same(whole, take(part, 0))


@pytest.mark.parametrize("name", ["made", "post"])
def test_a_silent_film_is_as_one_with_a_silent_sound(name, folder, tmp_path, request, monkeypatch):
    """With a model that resamples before its towers and with one that does not."""
    one = request.getfixturevalue(name)
    silent = film(tmp_path / "s.mkv", 3, seed=3, track=np.zeros((1, 3 * RATE), np.float32),
                  audio_codec="pcm_s16le")  # fmt: skip
    mute = film(tmp_path / "m.mkv", 3, seed=3, track=None)
    monkeypatch.setattr(usable, "SILENT_PEAK", 0.0)
    expected, got = one.embed(silent), one.embed(mute)
    assert got.audio is None and got.audio_embeddings is None
    assert_same(got, expected, streams=["visual"])
    steps = fbank.frame_count(3 * RATE) // 16
    assert got.visual.lengths.tolist() == [steps if name == "made" else round(25 * 0.16 * steps)]
    with pytest.raises(InputError, match="picture and sound"):
        _ = got.latents


def test_one_stream_of_a_film_is_as_with_the_other(made, post, folder):
    for one in (made, post):
        both = one.embed(folder / "d.mp4")
        for stream in STREAMS:
            alone = one.embed(folder / "d.mp4", streams=[stream])
            assert getattr(alone, {"visual": "audio", "audio": "visual"}[stream]) is None
            assert_same(alone, both, streams=[stream])


def test_sounds_without_a_picture_are_queries(made, tmp_path):
    track = click_track(3, RATE, [0.5], seed=3)
    filmed = film(tmp_path / "f.mkv", 3, 3, track=track, audio_codec="pcm_s16le")
    expected = made.embed(filmed, streams=["audio"])
    wav = made.embed(write_sound(tmp_path / "a.wav", "pcm_s16le", track))
    flac = made.embed(write_sound(tmp_path / "a.flac", "flac", track))
    mp3 = made.embed(write_sound(tmp_path / "a.mp3", "libmp3lame", track))
    for got in (wav, flac, mp3):
        assert got.visual is None and got.visual_embeddings is None
        assert got.audio.values.shape[0] == 1
    assert_same(wav, flac, streams=["audio"])
    gap = np.abs(real(wav.audio, 0) - real(expected.audio, 0)).max()
    assert 0 < gap < 1e-3  # 16 bits are rounded in another way
    assert mp3.audio.lengths[0] in (18, 19)
    assert np.abs(mp3.audio_embeddings - wav.audio_embeddings).max() < 0.5
    cut = made.embed(tmp_path / "a.wav", clip_seconds=1)
    assert cut.starts.tolist() == [0, 1, 2]


def test_a_sound_finds_its_visual_grid(tmp_path):
    """A model that brings the sound to the picture's steps takes 25 of them a second."""
    one = model.load(write_run(tmp_path / "run", pre_resample="audio_to_visual"))
    track = click_track(2, RATE, [0.5])
    got = one.embed(write_sound(tmp_path / "a.wav", "pcm_s16le", track))
    assert got.audio.lengths.tolist() == [48]  # of 50: 12 audio steps are 1.92 s


def test_what_cannot_be_used_is_said_in_one_line(made, folder, tmp_path):
    write_sound(tmp_path / "a.wav", "pcm_s16le", click_track(2, RATE, [0.5]))
    (tmp_path / "empty.wav").write_bytes(b"")
    for path, options, words in (
        (folder / "f.mp4", {}, r"f\.mp4: cannot be used: not a readable video"),
        (folder / "e.mp4", {"streams": ["audio"]}, r"e\.mp4: cannot be used: no audio stream"),
        (tmp_path / "a.wav", {"streams": ["visual"]}, "no video stream"),
        (tmp_path / "empty.wav", {}, "empty: the file has no bytes"),
        (tmp_path / "none.wav", {}, "expected a video or a sound file, there is none"),
        (tmp_path, {}, "no video files under"),
        ([folder / "f.mp4", folder / "e.mp4"], {"streams": STREAMS}, "all 2 were rejected; the fi"),
        (folder, {"start": 1.0}, "start, end: expected with single files"),
        (folder / "b.mp4", {"start": 2.0, "end": 1.0}, r"end: expected seconds after the start"),
        (folder / "b.mp4", {"start": 9.0}, "cannot be used: no frames"),
        (folder / "b.mp4", {"clip_seconds": 0.5}, "clip seconds: expected at least 1"),
        (folder / "b.mp4", {"streams": ["sound"]}, "streams: expected some of visual, audio"),
        (folder / "b.mp4", {"root": tmp_path}, "expected a file below"),
        ([folder / "b.mp4"] * 2, {}, "expected each file once"),
        ([], {}, "expected a file or a folder"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            made.embed(path, **options)
        assert "\n" not in str(caught.value)


def test_good_files_survive_bad_ones(made, folder):
    got = made.embed([folder / "f.mp4", folder / "d.mp4", folder / "e.mp4"], root=folder)
    assert got.ids == ["d.mp4"]
    reasons = {row["id"]: row["reason"] for row in got.rejected}
    assert reasons["e.mp4"] == "no audio stream"
    assert list(reasons) == ["f.mp4", "e.mp4"]
    shapes = [f"{name} {list(getattr(got, name).values.shape)}" for name in STREAMS]
    assert repr(got) == f"Embedded(1 clip, 2 rejected, {', '.join(shapes)})"


def test_labels_of_a_list_are_kept(made, folder, tmp_path):
    shutil.copy(folder / "d.mp4", tmp_path)
    (tmp_path / "clips.csv").write_text("file,start,end,id,label\nd.mp4,0.5,2.5,x,dog\n")
    got = made.embed(tmp_path)
    assert (got.ids, got.labels, got.starts.tolist()) == (["x"], ["dog"], [0.5])


# ---- which model, which extractor ---------------------------------------------------------------


def test_identity_is_of_what_decides_latents_and_ranks(run, made, tmp_path):
    def changed(change):
        config = read_document(run / "config.json", "a config", "")
        change(config)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(run, folder)
        write_document(folder / "config.json", config)
        return model.load(folder).identity

    assert made.identity == model.load(run).identity and len(made.identity) == 16
    assert changed(lambda c: c["data"].update(path="/elsewhere")) == made.identity
    assert changed(lambda c: c.update(seed=9)) == made.identity
    others = [
        changed(lambda c: c["distance"].update(resample="audio_to_visual")),
        changed(lambda c: c["data"].update(align="index")),
        changed(lambda c: c["encoders"].update(pre_resample=None)),
        changed(lambda c: c["features"]["fingerprint"].update(pyav="0")),
        model.load(write_run(tmp_path / "seed1", seed=1)).identity,
    ]
    assert len({made.identity, *others}) == 6


def test_distance_is_the_one_that_retrieves(tmp_path, made):
    assert made.distance == ("euclidean", {"resample": "visual_to_audio"})
    folder = write_run(tmp_path / "dtw")
    config = read_document(folder / "config.json", "a config", "")
    config["distance"] = {"name": "soft_dtw", "gamma": 0.2}
    write_document(folder / "config.json", config)
    assert model.load(folder).distance == ("dtw", {})


def test_another_extractor_is_named(tmp_path, folder):
    from scav_jax.index import __main__ as index_main

    print_ = program.make_fingerprint("plain")
    other = write_run(tmp_path / "a", fingerprint=print_ | {"decoding": {"rules": 1}})
    differs = rf"this one differs \(decoding.rules: expected 1, got {media.DECODING_RULES}\)"
    with pytest.raises(InputError, match=differs):
        model.load(other).embed(folder / "b.mp4")
    words = ["build", str(tmp_path / "new.index"), "--model", str(other), "--videos", str(folder)]
    with pytest.raises(InputError, match=differs):
        index_main.main(words)
    assert not (tmp_path / "new.index").exists()
    older = write_run(
        tmp_path / "b", fingerprint=print_ | {"decoding": {**print_["decoding"], "pyav": "0.1"}}
    )
    with pytest.warns(UserWarning, match=r"other versions .*pyav: expected '0\.1'"):
        model.load(older).embed(folder / "b.mp4")


class Halved(PlainVisual):
    """A side with weights: what workers prepare goes through an encoder."""

    def __init__(self, weights, share=0.5):
        self.digest, self.share = str(weights), share

    def fingerprint(self):
        return {"weights_sha256": self.digest}

    def encode(self, clips):
        return [clip * self.share for clip in clips]


def test_weights_are_given_and_checked(tmp_path, folder, made):
    without = made.embed(folder / "b.mp4", streams=STREAMS)
    name = "test_model:Halved"
    side = backbones.load(
        visual=name, audio="plain", weights={name: "c0ffee"}, options={"visual": {"share": 0.25}}
    )
    other = write_run(tmp_path / "run", fingerprint=program.make_fingerprint(side))
    with pytest.raises(
        InputError,
        match=rf"run: its visual backbone {name}: .* not part of this package; .*--trust",
    ):
        model.load(other).embed(folder / "b.mp4")
    with pytest.raises(InputError, match=rf"run: .*give --weights {name}=PATH \(in Python"):
        model.load(other, trust=[name]).embed(folder / "b.mp4")
    weighted = model.load(other, weights={name: "c0ffee"})
    assert weighted.backbone.visual.share == 0.25
    got = weighted.embed(folder / "b.mp4", streams=STREAMS)
    assert not np.allclose(got.visual_embeddings, without.visual_embeddings)
    np.testing.assert_array_equal(got.audio_embeddings, without.audio_embeddings)
    with pytest.raises(InputError, match=r"visual\.weights_sha256: expected 'c0ffee', got 'decaf'"):
        model.load(other, weights={name: "decaf"})
    with pytest.raises(InputError, match="here none has"):
        model.load(made.run.path, weights={"clip": "c"})
    former = write_run(tmp_path / "old", fingerprint={"format_version": 1, "backbone": {}})
    with pytest.raises(InputError, match="expected a model of features of format version 3, got 1"):
        model.load(former).embed(folder / "b.mp4")


def test_a_warning_free_load(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = model.load(run).backbone


def test_no_model_says_so(tmp_path):
    with pytest.raises(InputError, match="expected a run directory"):
        model.load(tmp_path)


def test_the_index_program_goes_on_where_it_was_killed(made, folder, tmp_path, monkeypatch, capsys):
    """From features on disk, some clips at a time, of which none is embedded twice."""
    from scav_jax.index import __main__ as index_main
    from scav_jax.index import open_index
    from scav_jax.index import program as index_program

    program.extract(folder, tmp_path / "data", clips=ClipOptions(seconds=2), workers=1)
    run = made.run.path
    given = ["--model", str(run), "--data", str(tmp_path / "data"), "--split", "all"]
    assert index_main.main(["build", str(tmp_path / "whole"), *given]) == 0

    monkeypatch.setattr(index_program, "CLIPS_AT_ONCE", 2)
    embedded_ids = []

    def until_killed(one, split, **options):
        if len(embedded_ids) == 4:
            raise KeyboardInterrupt
        embedded_ids.extend(split.ids)
        return embed.embed(one.run, split, **options)

    monkeypatch.setattr(model.Model, "embed_split", until_killed)
    with pytest.raises(KeyboardInterrupt):
        index_main.main(["build", str(tmp_path / "parts"), *given])
    assert len(open_index(tmp_path / "parts")) == 4
    embedded_ids.clear()
    monkeypatch.setattr(index_program, "MANY_SEGMENTS", 3)
    capsys.readouterr()
    assert index_main.main(["build", str(tmp_path / "parts"), *given]) == 0
    assert embedded_ids == ["d.mp4#0.000"]
    said = capsys.readouterr()
    assert "1 clip added, 5 in all" in said.out
    assert f"3 small segments: `scav index compact {tmp_path / 'parts'}`" in said.err
    whole, parts = open_index(tmp_path / "whole"), open_index(tmp_path / "parts")
    assert sorted(parts.ids()) == sorted(whole.ids()) and parts.verify() == 5
    asking = made.embed(folder / "b.mp4")
    scores = [
        [hit.score for hit in index.search(asking, "a2v", 5, "sequence")[0]]
        for index in (whole, parts)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)

    embedded_ids.clear()
    tuning = ["--queries", "2", "--k", "2", "--out", str(tmp_path / "tuned.json")]
    assert index_main.main(["tune", str(tmp_path / "parts"), *given, *tuning]) == 0
    assert len(embedded_ids) == 2 and "proposed" in (tmp_path / "tuned.json").read_text()


def test_the_index_program_adds_all_of_a_split_or_none(made, folder, tmp_path, monkeypatch):
    """Also where a part of it that came earlier had no clip that is there."""
    from scav_jax.index import __main__ as index_main
    from scav_jax.index import create, open_index
    from scav_jax.index import program as index_program

    program.extract(folder, tmp_path / "data", clips=ClipOptions(seconds=2), workers=1)
    monkeypatch.setattr(index_program, "CLIPS_AT_ONCE", 2)
    path, videos = str(tmp_path / "i"), ["--videos", str(folder)]
    of_model, data = ["--model", str(made.run.path)], ["--data", str(tmp_path / "data")]
    split = store.read(tmp_path / "data", "all")
    index = create(path, identity=made.identity, distance=made.distance)
    index.add(embed.embed(made.run, split.take([4])))
    there = open_index(path).ids()
    assert there == split.ids[4:]
    with pytest.raises(InputError, match="nothing was added"):
        index_main.main(["add", path, *of_model, *data, "--split", "all"])
    assert open_index(path).ids() == there
    for command in ("build", "add", "tune"):
        with pytest.raises(InputError, match="one of them"):
            index_main.main([command, path, *of_model, *data, "--split", "all", *videos])
        with pytest.raises(InputError, match="expected --split"):
            index_main.main([command, path, *of_model, *data])


def test_what_a_lost_job_gave_is_forgotten_and_order_is_of_jobs(monkeypatch):
    events = [(1, "b"), (0, "a"), (0, pool.Lost("crashed", 1)), (1, pool.Done(None)), (0, "a"),
              (0, "c"), (0, pool.Done(None))]  # fmt: skip
    todo = [jobs.Job(number, ()) for number in range(2)]

    def run(work, waiting, **settings):
        for number, event in events:
            yield todo[number], pool.Step(event) if isinstance(event, str) else event

    monkeypatch.setattr(jobs, "run", run)
    assert list(files.outcomes_of(todo, iter, 2, 1.0)) == ["a", "c", "b"]


def test_of_many_files_processes_decode():
    cores = pool.cores()
    chosen = [files.workers_for(range(count), None) for count in (1, 7, 8, 1000)]
    assert chosen == [0, 0, min(8, cores), cores]
    assert [files.workers_for(range(9), given) for given in (0, 3)] == [0, 3]
    with pytest.raises(InputError, match="workers: expected 0 or more, got -1"):
        files.workers_for(range(9), -1)
