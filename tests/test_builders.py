"""Builders of VGGSound and MUSIC: lists, splits, files on disk, annotations, sizes, copies."""

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import noise

from scav_jax.base.errors import InputError
from scav_jax.base.files import ids_sha256
from scav_jax.datasets import __main__ as program
from scav_jax.datasets import clip_lists, music, sizes, vggsound, vggsounder
from scav_jax.extract import __main__ as extract_program
from scav_jax.extract import manifest
from scav_jax.extract.backbones import PAIRS, parse_weights
from scav_jax.features import batches, store
from scav_jax.features.clip import Clip, check_clip, trim
from scav_jax.training.config_files import load_file

ROOT = Path(__file__).parents[1]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def youtube_id(number):
    """11 characters that look like the real ones: dashes, underscores and digits anywhere."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return "".join(ALPHABET[byte % 64] for byte in digest[:11])


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    return folder


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments):
    program.main([str(argument) for argument in arguments])


def write(path, text):
    path.write_text(text)
    return path


def read(lists):
    return vggsound.read_lists(lists)[0]


# ---- VGGSound ------------------------------------------------------------------------------


OFFICIAL = """\
---g-f_I2yQ,1,"people eating, noisily",test
-0jeONf82dE,21,horse clip-clop,train
-0jeONf82dE,121,horse clip-clop,train
_2_3_4_5_67,30,"a ""label"", quoted",train
12345678901,0,zero,train
"""


@pytest.fixture
def official(tmp_path):
    return write(tmp_path / "vggsound.csv", OFFICIAL)


def test_the_official_list_is_read(official):
    wanted = read([str(official)])
    assert [(c.id, c.label, c.split) for c in wanted] == [
        ("---g-f_I2yQ_000001", "people eating, noisily", "test"),
        ("-0jeONf82dE_000021", "horse clip-clop", "train"),
        ("-0jeONf82dE_000121", "horse clip-clop", "train"),
        ("_2_3_4_5_67_000030", 'a "label", quoted', "train"),
        ("12345678901_000000", "zero", "train"),
    ]
    assert wanted[1].file == "-0jeONf82dE_000021.mp4" and wanted[1].video == "-0jeONf82dE"
    assert vggsound.shared_videos(wanted) == 0
    commented = write(
        official.parent / "c.csv", "# YouTube ID, start, label, split.\n\n" + OFFICIAL
    )
    assert read([str(commented)]) == wanted
    headed = write(official.parent / "h.csv", "ytid,start,label,split\n" + OFFICIAL)
    assert read([str(headed)]) == wanted
    named = write(official.parent / "n.csv", "ytid,start,label,split\n---g-f_I2yQ,1,Label,test\n")
    assert len(read([str(named)])) == 1
    assert len(read([str(write(named, named.read_text().partition("\n")[2]))])) == 1  # no header


def test_lists_of_file_names_say_which_split_they_are(tmp_path):
    train = write(tmp_path / "a.csv", "_2_3_4_5_67_000030.mp4,x\n-0jeONf82dE_000021.mp4,x\n")
    test = write(tmp_path / "b=c.csv", '---g-f_I2yQ_000001.mp4,"x, y"\n-0jeONf82dE_000121.mp4,x\n')
    wanted = read([f"train={train}", f"test={test}"])
    assert [(c.id, c.split) for c in wanted] == [
        ("_2_3_4_5_67_000030", "train"),
        ("-0jeONf82dE_000021", "train"),
        ("---g-f_I2yQ_000001", "test"),
        ("-0jeONf82dE_000121", "test"),
    ]
    assert wanted[2].label == "x, y"
    assert vggsound.shared_videos(wanted) == 1
    with pytest.raises(InputError, match=r"a\.csv, line 1: .*says no split.*test=LIST"):
        read([str(train)])


def test_a_row_that_is_repeated_is_one_clip(official):
    write(official, OFFICIAL + OFFICIAL.splitlines()[2] + "\n")
    wanted, repeated = vggsound.read_lists([str(official)])
    assert (len(wanted), repeated) == (5, 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("---g-f_I2yQ,1,x,test\n---g-f_I2yQ,1,y,train\n", r"line 2: .*I2yQ_000001' came before"),
        ("---g-f_I2yQ,1,x,test\n-0jeONf82dE,21,a, b,train\n", "line 2: .*got 5 cells; quote"),
        ("---g-f_I2yQ;1;x;test\n", "line 1: .*got 1 cell; commas separate them"),
        ("---g-f_I2yQ,1,x,val\n", "line 1: .*train or test"),
        ("---g-f_I2yQ,1,,test\n", "line 1: expected a label"),
        ("---g-f_I2y,1,x,test\n", "line 1: .*11 characters"),
        ("---g-f_I2yQ,1.5,x,test\n", "line 1: .*whole seconds"),
        ('---g-f_I2yQ,1,"x,test\n', "line 1: expected CSV"),
        ("", "at least one clip"),
    ],
)
def test_faults_of_a_list_are_one_line(tmp_path, text, message):
    path = write(tmp_path / "list.csv", text)
    with pytest.raises(InputError, match=message) as raised:
        read([str(path)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name, key",
    [
        ("-0jeONf82dE_000021", ("-0jeONf82dE", 21)),
        ("-0jeONf82dE_21", ("-0jeONf82dE", 21)),
        ("-0jeONf82dE_21_31", ("-0jeONf82dE", 21)),
        ("-0jeONf82dE_21000_31000", ("-0jeONf82dE", 21)),
        ("-0jeONf82dE_0_10000", ("-0jeONf82dE", 0)),
        ("-0jeONf82dE_0_10", ("-0jeONf82dE", 0)),
        ("_2_3_4_5_67_000030", ("_2_3_4_5_67", 30)),
        ("-0jeONf82dE_21_26", None),  # 5 seconds: another data set's
        ("-0jeONf82dE_21500_31500", None),
        ("-0jeONf82dE", None),
        ("-0jeONf82dE_000021_audio", None),
        ("x-0jeONf82dE_000021", None),
    ],
)
def test_names_on_disk(name, key):
    assert vggsound.key_of(name) == key


def test_what_is_there_is_listed_and_what_is_not_is_said(official, tmp_path, capsys):
    videos = touch(
        tmp_path / "videos",
        "train/-0jeONf82dE_21.webm",
        "b/-0jeONf82dE_000021.mp4",
        "b/-0jeONf82dE_000021.wav",
        "_2_3_4_5_67_30_40.MKV",
        "deep/er/---g-f_I2yQ_1000_11000.mp4",
        "holiday.mp4",
    )
    out = tmp_path / "lists" / "clips.csv"
    arguments = ("vggsound", official, "--videos", videos, "--out", out, "--validation", 1)
    run(*arguments, "--dry-run")
    assert not out.parent.exists()
    said = capsys.readouterr().out
    run(*arguments)
    done = capsys.readouterr().out
    assert done.startswith(said)
    # What it says to do next makes what configs/vggsound.py trains on.
    words = extract_program.parse(re.search(r"next: .*\bextract (.*)\n", done)[1].split())
    config = load_file(str(ROOT / "configs/vggsound.py")).data
    assert (str(words.out), words.backbone) == (config.path, config.backbone)
    assert parse_weights(words.weights).keys() == set(PAIRS[words.backbone])
    drawn = "12345678901_000000" if "12345678901_000000" in missing_of(out) else ""
    rows = {row["id"]: row for row in rows_of(out)}
    assert {name: row["file"] for name, row in rows.items()} == {
        "---g-f_I2yQ_000001": "deep/er/---g-f_I2yQ_1000_11000.mp4",
        "-0jeONf82dE_000021": "b/-0jeONf82dE_000021.mp4",
        "_2_3_4_5_67_000030": "_2_3_4_5_67_30_40.MKV",
    }
    assert drawn and missing_of(out) == {"-0jeONf82dE_000121", "12345678901_000000"}
    assert "VGGSound: 5 clips of 4 videos in 4 classes" in said
    assert re.search(r"all +5 +3 +2 +0\.0\n", said) and re.search(r"test +1 +1 +0 ", said)
    assert "1 are there more than once" in said and "not in the list, passed over: 1\n" in said
    assert "0.00 GB in all" in said and "1.15 MB a clip" in said
    # What is written is what extraction reads, in the order of the list.
    read = manifest.read_csv(out)[0]
    assert [clip.id for clip in read] == [c for c in rows]
    assert {c.label for c in read} >= {"people eating, noisily", 'a "label", quoted'}
    assert all(clip.start == 0 and clip.end is None for clip in read)
    assert clip_lists.COLUMNS == manifest.COLUMNS
    assert set(clip_lists.SUFFIXES) <= manifest.VIDEO_SUFFIXES


def test_what_cannot_be_a_clip_is_missing_and_said(official, tmp_path, capsys):
    """A file is walked once, whatever links lead back to it, and stands in the list to the letter.

    Links that lead back gave every file forty times, two of them no end.
    """
    no_text = os.fsdecode(b"d\xe9")
    videos = touch(
        tmp_path / "my videos",
        *(" sp/-0jeONf82dE_000021.mp4", "a\rb/_2_3_4_5_67_30.webm"),
        f"{no_text}/---g-f_I2yQ_000001.mp4",
    )
    for name in ("loop", "again"):
        (videos / name).symlink_to(".")
    (videos / "_2_3_4_5_67_000030.mp4").touch()  # empty: the other one is taken
    (videos / "-0jeONf82dE_000121.mp4").symlink_to("nothing")
    os.mkfifo(videos / "12345678901_000000.mp4")
    out = tmp_path / "clips.csv"
    run("vggsound", official, "--videos", videos, "--out", out, "--validation", 0)
    said = capsys.readouterr().out
    assert {clip.file for clip in manifest.read_csv(out, videos)[0]} == {
        " sp/-0jeONf82dE_000021.mp4",
        "a\rb/_2_3_4_5_67_30.webm",
    }
    assert missing_of(out) == {"---g-f_I2yQ_000001", "-0jeONf82dE_000121", "12345678901_000000"}
    assert "passed over 4 that are empty" in said and "more than once" not in said
    words = shlex.split(re.search(r"next: .*\bextract (.*)\n", said)[1])
    assert extract_program.parse(words).videos == videos
    for file in manifest.read_csv(out, videos)[0]:
        (videos / file.file).unlink()
    with pytest.raises(InputError, match="found none but 4 that are empty"):
        run("vggsound", official, "--videos", videos, "--out", out, "--validation", 0)


def missing_of(out):
    return {row["id"] for row in rows_of(out.with_name("missing.csv"))}


def test_a_wrong_folder_is_one_line(official, tmp_path):
    def build(videos, out="clips.csv"):
        run("vggsound", official, "--videos", videos, "--out", tmp_path / out, "--validation", 0)

    with pytest.raises(InputError, match=r"folder of videos.*is not one"):
        build(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none"):
        build(tmp_path / "empty")
    other = touch(tmp_path / "other", "a.mp4", "b.mp4")
    message = r"such as ---g-f_I2yQ_000001\.mp4, none of the 2 video files there \(such as a\.mp4\)"
    with pytest.raises(InputError, match=message):
        build(other)
    with pytest.raises(InputError, match="another file than the list"):
        build(other, "vggsound.csv")
    shutil.copy(official, tmp_path / "missing.csv")
    sounder = ["--vggsounder", write(tmp_path / "annotations.csv", SOUNDER)]
    common = ["--videos", other, "--validation", 0, "--out", tmp_path / "clips.csv"]
    for words, lost in (
        ([tmp_path / "missing.csv"], "missing"),
        ([official, *sounder], "annotations"),
    ):
        with pytest.raises(InputError, match=rf"would write over .*/{lost}\.csv"):
            run("vggsound", *words, *common)
    assert official.read_text() == OFFICIAL
    script = [sys.executable, "-m", "scav_jax.datasets", "vggsound", str(official)]
    script += ["--videos", str(other), "--out", str(tmp_path / "clips.csv"), "--validation", "0"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --videos") and done.stderr.count("\n") == 1


# ---- splits --------------------------------------------------------------------------------


CLIPS = {"train": 18_397, "test": 1_544}  # a tenth of VGGSound's


@pytest.fixture(scope="module")
def full_list(tmp_path_factory):
    """A list in VGGSound's form."""
    train, test = CLIPS["train"], CLIPS["test"]
    lines = [f"{youtube_id(n)},{n % 300},label {n % 309},train" for n in range(train)]
    lines += [f"{youtube_id(n)},{n % 300 + 400},label,train" for n in range(0, train, 1_200)]
    lines += [f"{youtube_id(n)},{n % 300},label,test" for n in range(-test, 0)]
    path = tmp_path_factory.mktemp("list") / "vggsound.csv"
    path.write_text("\n".join(lines))
    return read([str(path)])


def test_validation_is_550_of_train_by_a_stated_seed(full_list):
    wanted = vggsound.hold_out(full_list)
    assert Counter(c.split for c in wanted) == {
        "train": CLIPS["train"] + 16 - 550,
        "validation": 550,
        "test": CLIPS["test"],
    }
    assert [c.id for c in wanted] == [c.id for c in full_list]
    moved = {c.id for c in wanted if c.split == "validation"}
    assert moved <= {c.id for c in full_list if c.split == "train"}
    # No video is in validation and elsewhere, and the draw is spread over the whole list.
    videos = Counter(c.video for c in wanted)
    assert all(videos[c.video] == 1 for c in wanted if c.split == "validation")
    places = [place for place, c in enumerate(wanted) if c.split == "validation"]
    assert 0.4 < np.mean(places) / CLIPS["train"] < 0.6
    # The draw does not depend on the order of the list, and hardly on what else is in it.
    again = vggsound.hold_out(full_list[::-1])
    assert {c.id for c in again if c.split == "validation"} == moved
    shorter = vggsound.hold_out(full_list[: len(full_list) // 2])
    both = {c.id for c in shorter if c.split == "validation"} & moved
    assert both == moved & {c.id for c in full_list[: len(full_list) // 2]}
    # It is this one, for ever.
    assert vggsound.VALIDATION_SEED == "scav_jax/vggsound/validation/1"
    order = sorted(moved, key=lambda name: digest(vggsound.VALIDATION_SEED, name))
    rest = (c.id for c in wanted if c.split == "train" and videos[c.video] == 1)
    limit = digest(vggsound.VALIDATION_SEED, order[-1])
    assert all(digest(vggsound.VALIDATION_SEED, name) > limit for name in rest)


def test_validation_shares_no_video(tmp_path):
    """Of 40 videos, 20 have two clips in train, 10 one in train and one in test."""
    lines = [f"{youtube_id(n)},{n},x,train" for n in range(40)]
    lines += [f"{youtube_id(n)},{n + 100},x,train" for n in range(20)]
    lines += [f"{youtube_id(n)},{n + 100},x,test" for n in range(20, 30)]
    wanted = read([str(write(tmp_path / "list.csv", "\n".join(lines)))])
    assert vggsound.shared_videos(wanted) == 10
    held = {c.video for c in vggsound.hold_out(wanted, 9) if c.split == "validation"}
    assert len(held) == 9 and held < {youtube_id(n) for n in range(30, 40)}


def digest(seed, name):
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()


def test_validation_does_not_depend_on_the_disk(tmp_path, capsys):
    lines = [f"{youtube_id(n)},{n},x,train" for n in range(60)]
    path = write(tmp_path / "list.csv", "\n".join(lines))
    splits = []
    for count in (60, 25):
        names = [f"{youtube_id(n)}_{n:06d}.mp4" for n in range(count)]
        out = tmp_path / f"{count}" / "clips.csv"
        videos = touch(tmp_path / f"videos{count}", *names)
        run("vggsound", path, "--videos", videos, "--out", out, "--validation", 20)
        splits.append({row["id"]: row["split"] for row in rows_of(out)})
        splits[-1] |= {row["id"]: row["split"] for row in rows_of(out.with_name("missing.csv"))}
    assert splits[0] == splits[1] and Counter(splits[0].values())["validation"] == 20
    hashes = re.findall(r"validation: 20 drawn .*sha256 of the ids (\w+)", capsys.readouterr().out)
    validation = [name for name, split in splits[0].items() if split == "validation"]
    assert hashes == [ids_sha256(validation)] * 2  # as evaluation prints it
    with pytest.raises(InputError, match="--validation: expected fewer than the 60 train"):
        vggsound.hold_out(read([str(path)]), 60)
    untouched = vggsound.hold_out(read([str(path)]), 0)
    assert {c.split for c in untouched} == {"train"}


def music_list(path, videos, labels=7):
    listed = {f"label_{n}": [] for n in range(labels)}
    for n in range(videos):
        listed[f"label_{n % labels}"].append(youtube_id(n))
    return write(path, json.dumps({"version": 2.0, "videos": listed}))


@pytest.mark.parametrize("videos, train", [(1164, 1000), (536, 372)])
def test_music_is_parted_by_video(tmp_path, videos, train):
    wanted = music.partition(music.read_list(music_list(tmp_path / "list.json", videos)))
    counts = Counter(clip.split for clip in wanted)
    assert counts == {"test": 103, "validation": 61, "train": train}
    assert len({clip.id for clip in wanted}) == videos
    again = music.partition(music.read_list(tmp_path / "list.json")[::-1])
    assert {c.id: c.split for c in again} == {c.id: c.split for c in wanted}
    by_hash = sorted((c.id for c in wanted), key=lambda name: digest(music.PARTITION_SEED, name))
    split_of = {c.id: c.split for c in wanted}
    assert [split_of[name] for name in by_hash[:165]] == (
        ["test"] * 103 + ["validation"] * 61 + ["train"]
    )
    assert "partitions are of this list only" in music.describe_list(wanted)


def test_a_published_music_list_is_recognised(tmp_path, monkeypatch):
    wanted = music.partition(music.read_list(music_list(tmp_path / "list.json", 200)))
    test = ids_sha256(c.id for c in wanted if c.split == "test")
    every = ids_sha256(c.id for c in wanted)
    monkeypatch.setitem(music.PUBLISHED, every, ("MUSIC99", test))
    assert music.describe_list(wanted) == "MUSIC99 as published; the test partition is ours"
    other = music.partition(wanted, 102)
    assert "NOT ours" in music.describe_list(other)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "expected.*videos.*got JSONDecodeError"),
        ("[1]", "expected.*videos.*TypeError"),
        ('{"version": 1}', "expected.*videos.*KeyError"),
        ('{"videos": ["a"]}', "got list without lists"),
        ('{"videos": {"flute": [1]}}', "got the id 1 under 'flute'"),
        ('{"videos": {"flute": []}}', "got no video"),
        (r'{"videos": {"flute": ["a\ud800"]}}', r"got the id 'a\\ud800'"),
        (r'{"videos": {"flute": ["a\u0000"]}}', r"got the id 'a\\x00'"),
        ('{"videos": {"flute": [" a"]}}', "got the id ' a'"),
        ('{"videos": {" ": ["a"]}}', "got the id 'a' under ''"),
        (r'{"videos": {"\ud800": ["a"]}}', r"under '\\ud800'"),
        ('{"videos": {"flute": ["a"], "tuba": ["b", "a"]}}', "tuba: .*'a' came before.*flute"),
    ],
)
def test_faults_of_a_music_list_are_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as raised:
        music.read_list(write(tmp_path / "list.json", text))
    assert "\n" not in str(raised.value)


def test_music_from_a_folder(tmp_path, capsys):
    path = music_list(tmp_path / "list.json", 9, labels=2)
    names = [f"label_{n % 2}/{youtube_id(n)}.{'mp4' if n else 'webm'}" for n in range(7)]
    out = tmp_path / "music.csv"
    arguments = ("music", path, "--videos", touch(tmp_path / "videos", *names), "--out", out)
    with pytest.raises(InputError, match="more than the 164 videos"):
        run(*arguments)
    run(*arguments, "--test", 3, "--validation", 1)
    said = capsys.readouterr().out
    clips = {clip.id: clip for clip in manifest.read_csv(out)[0]}
    assert {clip.file for clip in clips.values()} == set(names)
    assert clips[youtube_id(0)].label == "label_0" and clips[youtube_id(1)].end is None
    missing = {row["id"] for row in rows_of(tmp_path / "music.missing.csv")}
    assert missing == {youtube_id(7), youtube_id(8)}
    assert re.search(r"test +3 ", said) and "--clip-seconds 10" in said
    assert "without 7 files that do not say how long they are" in said


# ---- VGGSounder ----------------------------------------------------------------------------


HEADER = "video_id,label,modality,background_music,static_image,voice_over\n"
SOUNDER = (
    HEADER + '---g-f_I2yQ_000001,"child speech, kid speaking",A,False,True,True\n'
    "---g-f_I2yQ_000001,singing,AV,False,True,True\n"
    "---g-f_I2yQ_000001,dog,V,False,True,True\n"
    "unknown_yt__000007,dog,V,True,False,False\n"
)


def test_annotations_lie_beside_the_list(official, tmp_path, capsys):
    path = write(tmp_path / "vggsounder.csv", SOUNDER)
    expected = vggsounder.Annotation(
        audible=("child speech, kid speaking", "singing"),
        visible=("singing", "dog"),
        background_music=False,
        static_image=True,
        voice_over=True,
    )
    assert vggsounder.read_vggsounder(path)["---g-f_I2yQ_000001"] == expected
    videos = touch(tmp_path / "videos", "-0jeONf82dE_21.mp4")
    out = tmp_path / "clips.csv"
    common = ("vggsound", official, "--videos", videos, "--out", out, "--validation", 0)
    run(*common, "--vggsounder", path)
    written = tmp_path / "annotations.csv"
    assert vggsounder.read_annotations(written) == {"---g-f_I2yQ_000001": expected}
    assert rows_of(written)[0] == {
        "id": "---g-f_I2yQ_000001",
        "label": "child speech, kid speaking",
        "audible": "1",
        "visible": "0",
        "background_music": "0",
        "static_image": "1",
        "voice_over": "1",
    }
    assert "1 clips annotated (1 annotated clips are not in the list)" in capsys.readouterr().out
    write(path, HEADER + "unknown_yt__000007,dog,V,True,False,False\n")
    with pytest.raises(InputError, match="none of its 1 clips"):
        run(*common, "--vggsounder", path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("video_id,label\n", "line 1: expected .* with a header that has video_id, "),
        (HEADER + "---g-f_I2yQ_000001,x,B,False,False,False\n", "line 2: .*'B'"),
        (HEADER + "---g-f_I2yQ,x,A,False,False,False\n", "line 2: expected ytid_start"),
        (HEADER + "---g-f_I2yQ_000001,x,A,no,False,False\n", "line 2: background_music: .*'no'"),
        (HEADER + "---g-f_I2yQ_000001,x,y,A,False,False,False\n", "line 2: .*quote commas"),
        (SOUNDER + "---g-f_I2yQ_000001,dog,A,False,True,True\n", "line 6: .*'dog'.*twice"),
        (SOUNDER + "---g-f_I2yQ_000001,cat,A,False,True,False\n", "line 6: .*with other facts"),
    ],
)
def test_faults_of_annotations_are_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        vggsounder.read_vggsounder(write(tmp_path / "vggsounder.csv", text))


# ---- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [250, 300, None])
def test_predicted_sizes_are_what_is_written(tmp_path, random, frames):
    clips = []
    for number in range(4):
        visual = random.standard_normal((frames or 62, sizes.VISUAL_WIDTH)).astype(np.float16)
        audio = random.standard_normal((62, sizes.AUDIO_WIDTH)).astype(np.float16)
        clip = Clip(f"{number}", visual, (0.0, 10.0), audio, (0.0, 9.92), "a.mp4", 0.0, 10.0)
        clips.append(("train", clip))
    store.write(clips, tmp_path / "data", fingerprint={}, videos="", rejected=[])
    stored = sum(file.stat().st_size for file in (tmp_path / "data").iterdir())
    predicted = 4 * sizes.clip_bytes(10, frames and frames / 10)
    assert predicted < stored < 1.01 * predicted + 2**17
    assert any(f"{4 * predicted / 4e9:.2f} GB" in line for line in sizes.prediction(4, 10))


# ---- resampled copies ----------------------------------------------------------------------


def make_clip(random, number, frames, steps, begin=0.0, rate=29.97):
    about = {"source": f"{number}.mp4", "label": f"label {number % 2}"}
    about |= {"visual_span": (begin, begin + frames / rate), "audio_span": (0.0, steps * 0.16)}
    about |= {"start": number * 1.0, "end": number + 4.0}
    return noise(random, number, (frames, steps), (5, 7), **about)


@pytest.fixture
def originals(tmp_path, random):
    """Clips whose pictures are longer, shorter, later than their sound, and at several rates."""
    shapes = [
        (122, 24),
        (100, 24),
        (100, 24, 0.5),
        (47, 24, 0.07, 12.5),
        (9, 24, 0.31, 2),
        (70, 40),
    ]
    clips = [make_clip(random, number, *shape) for number, shape in enumerate(shapes * 2)]
    rejected = [dict(file="a", start="0", end="", id="a", stage="check", reason="silent: 0")]
    written = [("test" if n % 4 == 0 else "train", clip) for n, clip in enumerate(clips)]
    fingerprint = {"backbone": {"name": "test"}}
    data = tmp_path / "data"
    store.write(written, data, fingerprint=fingerprint, videos="v", rejected=rejected)
    return data


@pytest.mark.parametrize("align", ["time", "index"])
def test_a_copy_gives_what_resampling_in_training_gives(originals, tmp_path, align):
    import jax

    from scav_jax import sequences

    resample_pairs = jax.jit(sequences.resample_pairs, static_argnums=1)
    copy = tmp_path / "copy"
    run("resample", originals, "--out", copy, "--align", align)
    assert store.splits(copy) == store.splits(originals)
    for name in ("train", "test"):
        before, after = store.read(originals, name), store.read(copy, name)
        assert (after.ids, after.labels, after.sources) == (
            before.ids,
            before.labels,
            before.sources,
        )
        assert after.fingerprint == before.fingerprint | {
            "resampled": {
                **{"direction": "visual_to_audio", "align": align, "revision": 1},
                **{"points": 1, "rise": 0.0},
            }
        }
        assert (after.visual_lengths == after.audio_lengths).all()
        settings = dict(batch_size=len(before), align=align, buckets=1, read_threads=0)
        old, new = (
            next(batches.evaluation_batches(split, **settings)).features
            for split in (before, after)
        )
        wanted = resample_pairs(jax.tree.map(jax.numpy.asarray, old), "visual_to_audio")
        for got, expected in zip(
            resample_pairs(jax.tree.map(jax.numpy.asarray, new), "visual_to_audio"),
            wanted,
            strict=True,
        ):
            np.testing.assert_array_equal(got.lengths, expected.lengths)
            np.testing.assert_allclose(got.windows, expected.windows, atol=1e-4)
        for got, expected in zip(new, wanted, strict=True):
            steps = expected.values.shape[1]
            np.testing.assert_array_equal(got.lengths, expected.lengths)
            np.testing.assert_allclose(got.values[:, :steps], expected.values, rtol=5e-4, atol=1e-6)
        np.testing.assert_array_equal(new.audio.values, old.audio.values)
        again = resample_pairs(jax.tree.map(jax.numpy.asarray, new), "visual_to_audio")
        np.testing.assert_allclose(again.visual.values, new.visual.values, atol=1e-4)
        assert np.ptp(np.asarray(new.visual.windows)[:, 0]) > 0.05 or align == "index"
    assert store.read_rejected(copy) == store.read_rejected(originals)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_copy_serves_its_own_setting_only(originals, tmp_path):
    from scav_jax.features.clip import check_resampled, original

    copy = tmp_path / "copy"
    run("resample", originals, "--out", copy)
    split = store.read(copy, "train")
    with pytest.raises(InputError, match="align: expected 'time', got 'index'"):
        batches.training_batches(split, batch_size=2, seed=0, align="index")
    with pytest.raises(InputError, match="align: expected 'time', got 'index'"):
        batches.evaluation_batches(split, batch_size=2, align="index")
    check_resampled(split.fingerprint, align="time", direction="visual_to_audio")
    with pytest.raises(InputError, match="expected 'visual_to_audio', got None"):
        check_resampled(split.fingerprint, align="time", direction=None)
    before = store.read(originals, "train").fingerprint
    check_resampled(before, align="index", direction=None)
    assert original(split.fingerprint) == before == original(before)
    with pytest.raises(InputError, match="a resampled copy already"):
        run("resample", copy, "--out", tmp_path / "again")
    with pytest.raises(InputError, match="where nothing is"):
        run("resample", originals, "--out", copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "data"]


def test_a_clip_with_little_in_common_can_be_copied(random):
    from scav_jax.features.resampled import resampled

    clip = make_clip(random, 0, 100, 24, begin=3.84 - 0.51)
    copy = resampled(clip)
    check_clip(copy)  # 3 steps of 0.16 s, but 0.51 s in common
    assert len(copy.visual) == len(copy.audio) == 3
    assert copy.visual_span == copy.audio_span == pytest.approx((21 * 0.16, 24 * 0.16))
    assert trim(copy)[1] == pytest.approx(trim(clip)[3], abs=1e-6)
    np.testing.assert_array_equal(copy.audio, clip.audio[21:])
    short = replace(copy, shared=(3.4, 3.8))
    with pytest.raises(InputError, match="share at least"):
        check_clip(short)


def test_lists_of_the_project_are_not_in_it():
    """The lists are others': the project holds only what recognises them."""
    package = Path(store.__file__).parent
    assert not [path for path in package.rglob("*") if path.suffix in (".csv", ".json")]
