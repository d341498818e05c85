"""Features that others have extracted: every kind of place, what is refused, what becomes of it."""

import csv
import io
import tarfile

import numpy as np
import pytest
from small_run import small_config, untrained

from scav_jax.base.errors import InputError
from scav_jax.datasets import __main__ as program
from scav_jax.datasets.imported import COLUMNS, Arrays, read_manifest
from scav_jax.export.writing import export
from scav_jax.features import store
from scav_jax.retrieval import model
from scav_jax.score.__main__ import main as score


def arrays(seed, count=4, steps=6, width=5):
    draws = np.random.default_rng(seed)
    return [draws.normal(size=(steps + n % 3, width)).astype(np.float32) for n in range(count)]


def manifest(folder, rows):
    path = folder / "manifest.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in COLUMNS if name in rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def in_shard(path, members):
    with tarfile.open(path, "w") as shard:
        for name, values in members.items():
            content = io.BytesIO()
            np.save(content, values)
            about = tarfile.TarInfo(name)
            about.size = len(content.getvalue())
            shard.addfile(about, io.BytesIO(content.getvalue()))


def run(path, out, *words):
    program.main(["import", str(path), "--out", str(out), "--name", "theirs", *words])


def test_every_kind_of_place_gives_the_same_clips(tmp_path, capsys):
    import h5py

    visual, audio = arrays(0), arrays(1, width=3)
    for number, values in enumerate(visual):
        np.save(tmp_path / f"v{number}.npy", values)
    np.savez_compressed(tmp_path / "a.npz", **{f"a{n}": values for n, values in enumerate(audio)})
    in_shard(tmp_path / "0.tar", {f"{n}.visual.npy": values for n, values in enumerate(visual)})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number, values in enumerate(audio):
            file[f"clips/{number}"] = values
        file["nothing"] = h5py.Empty("f4")
        file["text"] = "no numbers"
    with (
        Arrays(tmp_path) as reading,
        pytest.raises(InputError, match="with numbers, there is none"),
    ):
        assert reading.read("a.h5:text").shape == ()  # an array, which is told as having no steps
        reading.read("a.h5:nothing")
    places = {
        "files": ("v{}.npy", "a.npz:a{}"),
        "shards": ("0.tar:{}.visual.npy", "a.h5:clips/{}"),
    }
    found = {}
    for kind, (of_visual, of_audio) in places.items():
        rows = [
            {"id": f"c{n}", "split": "test" if n == 3 else "train", "visual": of_visual.format(n),
             "audio": of_audio.format(n), "label": "x", "seconds": "2", "audio_end": "1.8"}
            for n in range(4)
        ]  # fmt: skip
        run(manifest(tmp_path, rows), tmp_path / kind)
        found[kind] = [
            clip for name in ("train", "test") for clip in store.read(tmp_path / kind, name)
        ]
    for number, (one, other) in enumerate(zip(*found.values(), strict=True)):
        for clip in (one, other):
            np.testing.assert_array_equal(clip.visual, visual[number].astype(np.float16))
            np.testing.assert_array_equal(clip.audio, audio[number].astype(np.float16))
            assert clip.visual_span == (0.0, 2.0)
            assert clip.audio_span == (0.0, pytest.approx(1.8))
            assert (clip.id, clip.label, clip.end) == (f"c{number}", "x", 2.0)
    printed = capsys.readouterr().out
    assert "name the clips of validation in" in printed and "--split train" in printed
    about = store.read(tmp_path / "files", "train").fingerprint
    assert about["backbone"]["name"] == "theirs" and about["audio_step_s"] == pytest.approx(0.3)


def test_a_source_has_a_name(tmp_path):
    (tmp_path / "m.csv").write_text("id,audio,seconds\na,a.npy,1\n")
    with pytest.raises(InputError, match="--name: expected what made the features"):
        program.main(
            ["import", str(tmp_path / "m.csv"), "--out", str(tmp_path / "d"), "--name", " "]
        )


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(tmp_path, capsys):
    good = np.ones((4, 3), np.float32)
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "wide.npy", np.ones((4, 5)))
    np.save(tmp_path / "flat.npy", np.ones(4))
    np.save(tmp_path / "nan.npy", np.full((4, 3), np.nan))
    np.save(tmp_path / "large.npy", np.full((4, 3), 1e6))  # infinite in float16
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-7])
    huge = (tmp_path / "good.npy").read_bytes().replace(b"(4, 3), }", b"(4, 3000000000), }", 1)
    (tmp_path / "huge.npy").write_bytes(huge)  # a header is a claim
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "deep.npy").write_bytes(b"\x93NUMPY\1\0\xf6\0" + b"(" * 246)
    (tmp_path / "folder.npy").mkdir()
    in_shard(tmp_path / "0.tar", {"good.npy": good})
    (tmp_path / "broken.tar").write_bytes(b"x" * 100)
    bad = ["wide", "flat", "nan", "large", "object", "cut", "huge", "text", "deep"]
    bad += ["folder", "absent"]
    places = ["good.npy", *(f"{name}.npy" for name in bad)]
    places += ["0.tar:other.npy", "broken.tar:good.npy", "good.txt", "0.tar:good.npy"]
    rows = [
        {"id": f"{n} {place}", "audio": place, "seconds": "1"} for n, place in enumerate(places)
    ]
    rows[1]["id"] = "red\x1b[31m\n2"
    run(manifest(tmp_path, rows), tmp_path / "data")
    kept = store.read(tmp_path / "data", "all")
    assert kept.ids == ["0 good.npy", "15 0.tar:good.npy"] and kept[0].visual.shape == (0, 0)
    rejected = {row["id"]: row["reason"] for row in store.read_rejected(tmp_path / "data")}
    assert list(rejected) == [row["id"] for row in rows[1:-1]]
    words = [
        "width and dtype of the first",
        "[steps, width]",
        "NaN",
        "to 65,504, got 1e+06 at most",
        "array of numbers",
    ]
    words += ["array of numbers"] * 4 + [
        "got a folder",
        "there is none; correct the manifest",
        "there is none",
    ]
    words += ["ReadError", "expected FILE.npy"]
    for (name, reason), word in zip(rejected.items(), words, strict=True):
        assert word in reason and "\n" not in reason, (name, reason)
    printed = capsys.readouterr().out
    assert "14 could not be used" in printed and r"the first: red\x1b[31m\n2: clip" in printed
    assert "have audio features only" in printed and "scav train" not in printed


@pytest.mark.parametrize("bad", [None, np.ones(4), np.zeros((0, 3)), np.full((8, 3), np.nan)])
def test_a_bad_first_clip_is_told_like_any_other(tmp_path, bad):
    if bad is not None:
        np.save(tmp_path / "bad.npy", bad)
    np.save(tmp_path / "good.npy", np.ones((4, 3)))
    rows = [
        {"id": name, "audio": f"{name}.npy", "seconds": seconds}
        for name, seconds in (("bad", "9"), ("good", "2"))
    ]
    run(manifest(tmp_path, rows), tmp_path / "data")
    kept = store.read(tmp_path / "data", "all")
    assert kept.ids == ["good"] and kept.fingerprint["audio_step_s"] == 0.5
    assert [row["id"] for row in store.read_rejected(tmp_path / "data")] == ["bad"]
    for stream in ("audio", "visual"):
        path = manifest(tmp_path, [{"id": "a", stream: "bad.npy", "seconds": "9"}])
        with pytest.raises(InputError, match=r"manifest\.csv: expected a clip.*none in 1.*: a: "):
            run(path, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_float16_would_round_away_are_told(tmp_path, dtype):
    ones = np.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)
    beside = np.where(np.eye(4, 3) > 0, 1, 1e-9).astype(dtype)  # as probabilities are
    found = {"fine": ones, "small": 1e-9 * ones, "subnormal": -6e-5 * np.abs(ones)}
    found |= {"normal": 6.2e-5 * ones, "zero": 0 * ones, "beside": beside}
    for name, values in found.items():
        np.save(tmp_path / f"{name}.npy", values)
    rows = [{"id": name, "audio": f"{name}.npy", "seconds": "1"} for name in found]
    run(manifest(tmp_path, rows), tmp_path / "data")
    assert store.read(tmp_path / "data", "all").ids == ["fine", "normal", "zero", "beside"]
    first, second = (row["reason"] for row in store.read_rejected(tmp_path / "data"))
    assert first.startswith("small.npy: expected features that float16 can hold, from 6.1e-05")
    assert first.endswith("got 1e-09 at most; scale those of all clips by one factor, to about 1")
    assert second.startswith("subnormal.npy: ")


def test_a_clip_longer_than_extract_takes_is_told(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    times = [
        {"seconds": "600.4"},
        {"seconds": "601"},
        {"seconds": "10", "end": "700"},
        {"seconds": "10", "start": "1000"},
        {"visual_begin": "-590", "visual_end": "20"},
        {"visual_begin": "1000", "visual_end": "1004"},
    ]
    blank = dict.fromkeys(name for row in times for name in row)
    rows = [{"id": str(n), "visual": "a.npy", **blank, **row} for n, row in enumerate(times)]
    run(manifest(tmp_path, rows), tmp_path / "data")
    assert store.read(tmp_path / "data", "all").ids == ["0", "3"]
    reasons = [row["reason"] for row in store.read_rejected(tmp_path / "data")]
    told = ["601.0", "700.0", "610.0", "1004.0"]
    for reason, seconds in zip(reasons, told, strict=True):
        assert reason.startswith(f"too long: {seconds} s, a clip has at most 600 s; cut its arrays")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,visual\n", "at least one row"),
        ("id,viusal\na,b.npy\n", "Did you mean 'visual'"),
        ("id,label\na,b\n", "id and visual, audio or both"),
        ("id,visual\na,b.npy\n", "what time the visual steps cover; got no end"),
        ("id,visual,seconds\na,b.npy,0\n", "line 2: expected seconds, or visual_begin before"),
        ("id,visual,seconds\na,b.npy,nan\n", "line 2: seconds: expected seconds, got 'nan'"),
        ("id,visual,seconds\na,b.npy,1\na,c.npy,1\n", "'a'"),
        ("id,visual,audio,seconds\na,b.npy,,1\nb,,b.npy,1\n", "line 3: expected the streams"),
        ("id,visual,seconds,split\na,b.npy,1,train\nb,b.npy,1,\n", "cannot stand beside ['train']"),
        ("id,visual,seconds\na,b.npy\n", "line 2: expected as many cells"),
        ("id,visual,seconds,split\na,b.npy,1,a b\n", "line 2: split"),
        ("id,visual,seconds,start,end\na,b.npy,1,5,4\n", "line 2: expected start before end"),
        ("id,visual,seconds,start,end\na,b.npy,1,5,5\n", "0 or more), got 5 and 5"),
        ("id,visual,seconds,start\na,b.npy,1,-2\n", "line 2: expected start before end"),
        ("id,visual,seconds,start\na,b.npy,1,1e39\n", "source below 1e+08 (0 or more), got"),
        ("id,visual,seconds,end\na,b.npy,1,inf\n", "line 2: end: expected seconds, got 'inf'"),
    ],
)
def test_a_manifest_with_a_fault_names_its_line(text, words, tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert words in str(error.value)


def test_a_model_of_them_says_that_it_cannot_make_them(tmp_path):
    from scav_jax.extract import backbones

    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    path = manifest(tmp_path, [{"id": "a", "audio": "a.npy", "seconds": "1"}])
    about = read_manifest(path).fingerprint("theirs")
    with pytest.raises(InputError, match="were imported, nothing here can make them"):
        backbones.from_fingerprint(about["backbone"])


def test_a_model_of_them_is_exported_and_embeds_their_data_set(tmp_path, unchecked_shapes):
    for name, seed in (("v", 1), ("a", 2)):
        np.save(tmp_path / f"{name}.npy", arrays(seed)[0])
    row = {"visual": "v.npy", "audio": "a.npy", "seconds": "3"}
    rows = [{"id": f"c{n}", "split": ("train", "validation")[n % 2], **row} for n in range(8)]
    run(manifest(tmp_path, rows), tmp_path / "data")
    changes = {"data.batch_size": 2, "train.microbatch": 0}
    trained = untrained(small_config(tmp_path / "data", **changes), tmp_path / "run")
    export(trained, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'model.embed_split(store.read("DATA", "test"))' in card and "door.wav" not in card
    clips = store.read(tmp_path / "data", "train")
    one, other = (model.load(folder).embed_split(clips) for folder in (trained, tmp_path / "out"))
    np.testing.assert_array_equal(one.visual.values, other.visual.values)
    run(manifest(tmp_path, rows[:6]), tmp_path / "other")
    with pytest.raises(InputError, match=r"these differ .*; import all clips with one manifest"):
        model.load(tmp_path / "out").embed_split(store.read(tmp_path / "other", "train"))
    (tmp_path / "film.mp4").touch()
    with pytest.raises(InputError, match="were imported, nothing here can make them"):
        score([str(tmp_path / "film.mp4"), "--model", str(tmp_path / "out")])
