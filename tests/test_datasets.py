"""Data sets on disk: what is written is what is read, and what is wrong says so."""

import builtins
import csv
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_run import noise

from scav_jax.base.errors import InputError
from scav_jax.features import store
from scav_jax.features.clip import fingerprint_id

FINGERPRINT = {"backbone": {"name": "test"}, "audio_rate_hz": 16_000}


def make_clip(random, number, frames, steps):
    label = 'a "label", with a comma' if number % 2 else ""
    about = {"id": f"clip {number}, é", "source": f"folder/{number}.mp4", "label": label}
    about |= {"visual_span": (0.0, frames / 29.97), "audio_span": (0.0, steps * 0.16)}
    about |= {"start": number * 1.1, "end": number * 1.1 + 4}
    return noise(random, number, (frames, steps), (5, 7), **about)


@pytest.fixture
def clips(random):
    """Splits alternate, lengths differ."""
    made = [make_clip(random, n, 40 + 3 * n, 9 + n) for n in range(9)]
    return [("test" if n % 3 == 0 else "train", clip) for n, clip in enumerate(made)]


@pytest.fixture
def data(tmp_path, clips):
    return write(clips, tmp_path / "data")


def write(clips, out, **settings):
    settings = {"fingerprint": FINGERPRINT, "videos": "videos", "rejected": [], **settings}
    store.write(clips, out, **settings)
    return out


def edit_about(data, **changes):
    path = data / "scav.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_clip(got, expected):
    np.testing.assert_array_equal(got.visual, expected.visual)
    np.testing.assert_array_equal(got.audio, expected.audio)
    assert got.visual.dtype == got.audio.dtype == np.float16
    assert (got.id, got.label, got.source) == (expected.id, expected.label, expected.source)
    for name in ("visual_span", "audio_span", "start", "end"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-6)


def test_read_gives_what_was_written(data, clips):
    assert store.splits(data) == {"test": 3, "train": 6}
    for split in ("train", "test"):
        expected = [clip for name, clip in clips if name == split]
        got = store.read(data, split)
        assert len(got) == len(expected)
        assert got.ids == [clip.id for clip in expected]
        assert got.labels == [clip.label for clip in expected]
        assert got.sources == [clip.source for clip in expected]
        assert got.visual_lengths.tolist() == [len(clip.visual) for clip in expected]
        assert got.audio_lengths.tolist() == [len(clip.audio) for clip in expected]
        assert got.visual_lengths.dtype == np.int32 and got.starts.dtype == np.float64
        assert (got.visual_width, got.audio_width, got.videos) == (5, 7, "videos")
        assert got.fingerprint == FINGERPRINT
        assert got.fingerprint_id == fingerprint_id(FINGERPRINT)
        for index, clip in enumerate(expected):
            assert_same_clip(got[index], clip)
            # The list and the record say the same time to the last bit.
            assert tuple(got.visual_spans[index]) == got[index].visual_span
            assert tuple(got.audio_spans[index]) == got[index].audio_span
            assert got.starts[index] == np.float64(np.float32(got[index].start))
        with pytest.raises(IndexError):
            got[len(expected)]


def test_a_split_can_be_pickled_after_use(data):
    split = store.read(data, "train")
    first = split[0]
    assert_same_clip(pickle.loads(pickle.dumps(split))[0], first)


def test_tfds_reads_it_without_tensorflow(data, clips, tmp_path):
    code = f"""
import sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(data)!r}).as_data_source(split="train")
print(len(source), source[0]["id"].decode(), source[0]["visual"].shape)
every = tfds.builder_from_directory({str(tmp_path / "whole")!r}).as_data_source(split="all")
print(len(every))
assert "tensorflow" not in sys.modules
"""
    write([("all", clip) for _, clip in clips], tmp_path / "whole")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = clips[1][1]
    assert run.stdout.split("\n")[0] == f"6 {expected.id} {expected.visual.shape}"
    assert run.stdout.split("\n")[1] == "9"
    assert_same_clip(store.read(tmp_path / "whole", "all")[1], expected)
    write([("clips", clip) for _, clip in clips], tmp_path / "named")  # as "all" is stored
    assert_same_clip(store.read(tmp_path / "named", "clips")[1], expected)


def test_importing_is_light():
    code = (
        "import scav_jax.features.store, scav_jax.extract.program, sys; "
        "print([m for m in ('jax', 'tensorflow_datasets', 'grain') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_many_shards_keep_the_order(tmp_path, clips, monkeypatch):
    from scav_jax.features import records

    monkeypatch.setattr(records, "CLIPS_A_SHARD", 2)
    data = write(clips, tmp_path / "data")
    assert len(list(data.glob("*train*"))) == 3
    got = store.read(data, "train")
    assert [got[i].id for i in range(len(got))] == got.ids


def test_rejected_clips_are_listed(tmp_path, clips):
    row = dict(file="a,b.mp4", start="0", end="", id="x", stage="check", reason="silent: 0")
    data = write(clips, tmp_path / "data", rejected=[row])
    with open(data / "rejected.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [row]


def test_writing_refuses_what_is_wrong(tmp_path, clips):
    out = tmp_path / "data"
    split, clip = clips[0]
    nan = replace(clip, id="broken", visual=np.full_like(clip.visual, np.nan))
    wide = replace(clip, id="wide", audio=np.ones((9, 8), np.float16))
    for bad, message in [
        ([*clips, (split, clip)], f"{clip.id!r} came twice"),
        ([*clips, (split, nan)], "'broken'.*NaN"),
        ([*clips, (split, wide)], "'wide'.*width"),
        ([], "at least one clip"),
    ]:
        with pytest.raises(InputError, match=message):
            write(bad, out)
        assert list(tmp_path.iterdir()) == []  # nothing half written stays
    write(clips, out)
    with pytest.raises(InputError, match="where nothing is"):
        write(clips, out)


def test_reading_says_what_is_wrong(data, tmp_path):
    for call, message in [
        (lambda: store.read(tmp_path / "absent", "train"), "does not exist"),
        (lambda: store.read(tmp_path, "train"), "has no scav.json"),
        (lambda: store.read(data, "trian"), r"no split 'trian'.*train \(6 clips\).*'train'\?"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    edit_about(data, format_version=99)
    with pytest.raises(InputError, match="format version 3, got 99"):
        store.read(data, "train")
    edit_about(data, format_version=3, visual_width=70)
    with pytest.raises(InputError, match="its checksum says that it was damaged or edited"):
        store.read(data, "train")


def test_a_list_that_contradicts_the_records_is_refused(data):
    """Whatever it says otherwise, and before a batch is planned by it."""
    path = data / "clips.csv"
    good = path.read_text()
    rows = good.splitlines(keepends=True)
    changes = [
        "".join(rows[:-1]),
        "".join([*rows[:-1], rows[-2]]),
        good.replace("clip 1, é", "another"),
        good.replace("audio_steps", "steps"),
        good.replace(",40,", ",41,", 1),
        good.replace("0.0", "nan", 1),
    ]
    for text in changes:
        assert text != good
        path.write_text(text)
        with pytest.raises(InputError, match="changed since and may contradict the records"):
            store.read(data, "train")
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        store.read(data, "train")


def test_records_of_other_clips_under_the_same_names_are_refused(data, clips, tmp_path):
    """The same ids and lengths, other features: what a mixed-up copy leaves."""
    others = [(split, replace(clip, visual=clip.visual[::-1])) for split, clip in clips]
    other = write(others, tmp_path / "other")
    assert store.read(other, "train").content != store.read(data, "train").content
    for file in other.glob("*.array_record-*"):
        shutil.copy(file, data / file.name)
    split = store.read(data, "train")
    with pytest.raises(InputError, match=r"record 0 as it was written, its checksum is another"):
        split[0]


def test_the_same_clips_elsewhere_are_the_same_content(data, clips, tmp_path):
    again = write(clips, tmp_path / "again", videos="elsewhere", fingerprint={"other": 1})
    assert store.read(again, "train").content == store.read(data, "train").content
    some = store.read(data, "train").take([0, 1])
    assert some.content == store.read(data, "train").take([0, 1]).content
    assert some.content != store.read(data, "train").take([1, 0]).content


def test_a_nan_in_a_record_names_the_clip_and_the_file(tmp_path, clips, monkeypatch):
    split, clip = clips[1]
    visual = clip.visual.copy()
    visual[3, 2] = np.nan
    monkeypatch.setattr(store, "check_clip", lambda *_: None)
    data = write([clips[0], (split, replace(clip, visual=visual))], tmp_path / "data")
    monkeypatch.undo()
    with pytest.raises(InputError, match=rf"{data.name}.*{re.escape(repr(clip.id))}.*step 3"):
        store.read(data, split)[0]


def test_a_full_disk_leaves_nothing_behind(tmp_path, clips, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        write(clips, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full_is_said_as_such(small_disk, random):
    clip = make_clip(random, 0, 9_000, 9_000)
    clips = [("all", replace(clip, id=str(n))) for n in range(20)]
    with pytest.raises(OSError, match="No space left") as raised:
        write(clips, small_disk / "data")
    assert raised.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("arrived", [False, True])
def test_reading_a_clip_imports_nothing(data, arrived, monkeypatch):
    """In a thread it would race with the modules that TFDS loads lazily."""
    split = store.read(data, "train")
    split = pickle.loads(pickle.dumps(split)) if arrived else split

    usual = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert name.startswith(("beartype", "jaxtyping")), name  # checks of signatures, in tests
        return usual(name, *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr("builtins.__import__", refuse)
        assert split[0].id == split.ids[0]


def test_some_clips_are_a_split_of_their_own(data):
    split = store.read(data, "train")
    numbers = np.arange(len(split))[::-2]
    some = pickle.loads(pickle.dumps(split.take(numbers))).take(np.arange(len(numbers)))
    assert len(some) == len(numbers) and some.ids == [split.ids[n] for n in numbers]
    for number, own in zip(numbers.tolist(), range(len(some)), strict=True):
        np.testing.assert_array_equal(some[own].visual, split[number].visual)
        assert some[own].id == split.ids[number] == some.ids[own]
        assert some.starts[own] == split.starts[number]
        assert some.audio_lengths[own] == split.audio_lengths[number]
        assert (some.visual_spans[own] == split.visual_spans[number]).all()
    with pytest.raises(IndexError):
        some[len(some)]
