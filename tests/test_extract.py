"""The extraction program: lists, workers that fail, resuming, and clips that cannot be used."""

import dataclasses
import errno
import os
import random as stdlib_random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from films import without_pictures
from test_media import click_track, flash_frames, write_video

from scav_jax.base import errors, files
from scav_jax.base.errors import InputError
from scav_jax.extract import backbones, jobs, manifest, pool, program
from scav_jax.extract.backbones.plain import PlainAudio
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import ClipOptions, ClipRequest, list_clips
from scav_jax.features import store

RATE = 16_000


def good_video(path, seconds=2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = flash_frames(seconds, [0.48], seed=seed)
    return write_video(path, frames, click_track(seconds, RATE, [0.5], seed=seed), audio_rate=RATE)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos: 2 s, 7 s and 3 s, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("videos")
    good_video(folder / "b.mp4", 2, seed=1)
    good_video(folder / "a" / "c.mkv", 7, seed=2)
    good_video(folder / "d.mp4", 3, seed=3)
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory):
    """One good video among everything that can be wrong; file name -> start of the reason."""
    folder = tmp_path_factory.mktemp("bad")
    loud, moving = click_track(3, RATE, [1.0]), list(flash_frames(3, [1.0]))

    def video(name, frames=moving, track=loud):
        return write_video(folder / name, frames, track, audio_rate=RATE)

    video("good.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello, I am not a video\n" * 400)
    video("half.mp4").write_bytes((folder / "good.mp4").read_bytes()[:20_000])
    whole = video("half.mkv").read_bytes()
    (folder / "half.mkv").write_bytes(whole[: len(whole) // 2])
    video("mute.mp4", track=None)
    video("blind.mp4", frames=None)
    video("silent.mp4", track=np.zeros((1, 3 * RATE), np.float32))
    noise = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    video("still.mp4", frames=[noise] * 75)
    video("short.mp4", frames=moving[:15], track=loud[:, : RATE * 15 // 25])
    video("one.mp4", frames=moving[:1])
    no_frames(folder / "none.mp4", loud)
    reasons = {
        "empty.mp4": ("open", "empty"),
        "text.mp4": ("open", "not a readable video"),
        "half.mp4": ("open", "not a readable video"),
        "half.mkv": ("decode", "truncated"),
        "mute.mp4": ("open", "no audio stream"),
        "blind.mp4": ("open", "no video stream"),
        "silent.mp4": ("check", "silent"),
        "still.mp4": ("check", "still"),
        "short.mp4": ("check", "too short"),
        "one.mp4": ("check", "too short"),
        "none.mp4": ("decode", "no frames"),
    }
    return folder, reasons


def no_frames(path, track):
    """A file whose picture stream has no decodable frame: its packets are noise."""
    write_video(path, list(flash_frames(3, [])), track, audio_rate=RATE)
    without_pictures(path)


def run_program(*arguments):
    command = [sys.executable, "-m", "scav_jax.extract", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def content(data, split="all"):
    """Everything in a data set, in a form that compares exactly."""
    clips = store.read(data, split)
    features = [
        (c.visual.tobytes(), c.audio.tobytes()) for c in (clips[i] for i in range(len(clips)))
    ]
    lists = [(data / name).read_bytes() for name in ("clips.csv", "rejected.csv")]
    return lists, features, clips.fingerprint_id


# Lists -------------------------------------------------------------------------------------


def test_a_folder_is_listed_in_order(videos):
    listing = list_clips(videos)
    assert [clip.file for clip in listing.clips] == ["a/c.mkv", "b.mp4", "d.mp4"]
    assert [clip.id for clip in listing.clips] == ["a/c.mkv", "b.mp4", "d.mp4"]
    assert {clip.split for clip in listing.clips} == {"all"}
    assert dict(listing.passed_over) == {".txt": 1}


def test_links_that_lead_back_do_not_loop(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"1")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert manifest.find_videos(tmp_path)[0] == ["x.mp4"]


def test_whole_videos_are_cut_and_the_rest_is_counted(videos):
    listing = list_clips(videos, ClipOptions(seconds=2.5))
    seconds = {"a/c.mkv": 7.0, "b.mp4": 2.0, "d.mp4": 4.95}
    clips, videos_cut, rest = manifest.cut_whole_videos(listing, seconds.get)
    assert [(c.file, c.start, c.end, c.id) for c in clips] == [
        ("a/c.mkv", 0.0, 2.5, "a/c.mkv#0.000"),
        ("a/c.mkv", 2.5, 5.0, "a/c.mkv#2.500"),
        ("b.mp4", 0.0, None, "b.mp4"),  # shorter than a clip: stays whole
        ("d.mp4", 0.0, 2.5, "d.mp4#0.000"),
        ("d.mp4", 2.5, 5.0, "d.mp4#2.500"),  # a few frames short
    ]
    assert (videos_cut, rest) == (1, pytest.approx(2.0))


def write_csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_is_read_with_defaults(tmp_path):
    path = write_csv(
        tmp_path / "list.csv",
        "\ufefffile, start,end,id,label,split\n"
        'b.mp4,,,,"rain, heavy",train\n\n'
        "b.mp4,1.5,3,,,train\n"
        "c.mp4,0,2,mine,dog,test\n",
    )
    assert manifest.read_csv(path)[0] == [
        ClipRequest("b.mp4", 0.0, None, "b.mp4", "rain, heavy", "train"),
        ClipRequest("b.mp4", 1.5, 3.0, "b.mp4#1.500", "", "train"),
        ClipRequest("c.mp4", 0.0, 2.0, "mine", "dog", "test"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,session\na,1\n", "unknown column 'session', expected .* --split-by COLUMN"),
        ("file,lable\na,1\n", "Did you mean 'label'"),
        ("id,label\na,1\n", "line 1: expected a CSV of clips with a header that has file, got"),
        ("file\n", "at least one row"),
        ("file,start\na,1,2\n", "line 2.*as many cells"),
        ("file,start,end\na,1,2\nb,3,3\n", "line 3.*start before end, got 3 and 3"),
        ("file,start\na,soon\n", "line 2.*start.*'soon'"),
        ("file,start\na,nan\n", "line 2.*start.*'nan'"),
        ("file,start\na,-1\n", "line 2.*start.*'-1'"),
        ("file,start\na,1e9\n", r"line 2.*start: expected seconds.*below 1e\+08\), got '1e9'"),
        ("file,id\na,x\nb,y\nc,x\n", r"line 4: expected every id once, 'x'.*line 2"),
        ("file,split\na,x y\n", "line 2: split"),
        ("file,split\na,train\nb,\n", "split 'all'.*train"),
        ("file\n/a/b.mp4\n", "relative to --videos"),
    ],
)
def test_faults_in_a_csv_name_the_row(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        manifest.read_csv(write_csv(tmp_path / "list.csv", text))


SHARES = {"train": 0.5, "validation": 0.3, "test": 0.2}


def test_every_file_belongs_to_one_split_and_shares_are_kept():
    clips = [ClipRequest(f"{n:02d}.mp4", k, k + 1, f"{n}-{k}") for n in range(20) for k in range(3)]
    assigned = manifest.assign_splits(clips, SHARES)
    assert [clip.id for clip in assigned] == [clip.id for clip in clips]
    files = {name: {c.file for c in assigned if c.split == name} for name in SHARES}
    assert {name: len(found) for name, found in files.items()} == {
        "train": 10,
        "validation": 6,
        "test": 4,
    }
    assert len(set.union(*files.values())) == 20  # so no file is in two of them
    first_half = {f"{n:02d}.mp4" for n in range(10)}
    assert files["train"] != first_half  # names that count up are spread
    again = manifest.assign_splits(clips[::-1], SHARES)
    assert {c.id: c.split for c in again} == {c.id: c.split for c in assigned}


def test_splits_keep_folders_or_what_a_column_says_together(tmp_path):
    folders = [f"{folder}/{n}.mp4" for folder in "abcdefgh" for n in range(5)]
    for file in folders:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = list_clips(tmp_path, ClipOptions(None, None, SHARES, "folder")).clips
    split_of = {(clip.file[0], clip.split) for clip in listed}
    assert len(split_of) == 8 and {split for _, split in split_of} == set(SHARES)

    # Session 0 is in files 0 and 1, and file 1 in sessions 0 and 9: all three go together.
    rows = [f"{n}.mp4,{n},{n + 1},s{n // 2}" for n in range(20)] + ["1.mp4,5,6,s9"]
    path = write_csv(tmp_path / "list.csv", "\n".join(["file,start,end,session", *rows]))
    listed = list_clips(tmp_path, ClipOptions(path, None, SHARES, "session")).clips
    groups = {}
    for n, clip in enumerate(listed[:20]):
        groups.setdefault(n // 2, set()).add(clip.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert groups[0] == groups[9] == {listed[20].split}
    for word, said in (
        ("sesion", r"expected file, folder or a column of .*Did you mean 'session'"),
    ):
        with pytest.raises(InputError, match=said):
            list_clips(tmp_path, ClipOptions(path, None, SHARES, word))
    with pytest.raises(InputError, match="unknown column 'session'"):
        list_clips(tmp_path, ClipOptions(path, None, SHARES))
    with pytest.raises(InputError, match="together with --split"):
        list_clips(tmp_path, ClipOptions(path, None, None, "folder"))

    # One recording under several names: links, and other ways to write its path.
    for n in range(5):
        (tmp_path / f"a/link{n}.mp4").symlink_to(tmp_path / f"b/{n}.mp4")
        os.link(tmp_path / f"c/{n}.mp4", tmp_path / f"a/hard{n}.mp4")
    names = [f"{way}{n}.mp4" for way in ("b/", "a/link", "./b/", "a/../b/") for n in range(5)]
    names += [f"{way}{n}.mp4" for way in ("c/", "a/hard") for n in range(5)]
    listed = write_csv(tmp_path / "all.csv", "\n".join(["file", *names]))
    clips = list_clips(tmp_path, ClipOptions(listed, None, SHARES)).clips
    split_of = {clip.file: clip.split for clip in clips}
    for n in range(5):
        assert len({split_of[name] for name in names[n:20:5]}) == 1
        assert len({split_of[name] for name in names[20 + n :: 5]}) == 1


def test_splits_that_cannot_be_made_are_refused():
    whole = [ClipRequest(f"{n}.mp4", 0.0, None, str(n)) for n in range(4)]
    with pytest.raises(InputError, match=r"test=0\.1 of 4 videos is none; give it a larger"):
        manifest.assign_splits(whole, {"train": 0.9, "test": 0.1})
    given = [ClipRequest("x.mp4", 0.0, None, "x", split="train")]
    with pytest.raises(InputError, match=r"the CSV gives \['train'\]"):
        manifest.assign_splits(given, SHARES)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".a").mkdir()
    (tmp_path / ".a.mp4").touch()
    run = run_program("--videos", tmp_path, "--out", tmp_path / "data")
    assert run.returncode == 2
    assert run.stderr.startswith("error: no video files under")
    assert ".mp4" in run.stderr and "1 x .txt" in run.stderr
    assert "1 x hidden (.*)" in run.stderr and "1 x hidden folder (.*)" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a", ".a.mp4", "notes.txt"]
    (tmp_path / "a.flac").touch()
    with pytest.raises(InputError, match="extract --visual none makes features of sounds"):
        list_clips(tmp_path)


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (["no audio stream"] * 2, r"stream 2\); for features of pictures alone add --audio none"),
        (["no video stream: a"], "for features of sounds alone add --visual none"),
        (["no audio stream", "silent"], r"silent 1\); the first: no audio stream; see"),
    ],
)
def test_where_all_lack_a_stream_the_way_out_is_named(tmp_path, reasons, words):
    rows = [dict.fromkeys(store.REJECTED_COLUMNS, "") | {"reason": one} for one in reasons]
    with pytest.raises(InputError, match=words):
        program._nothing_usable(rows, Ledger.beside(tmp_path / "data"), tmp_path)


# Workers -----------------------------------------------------------------------------------


def work_of_all_kinds(job):
    """A worker's job: `job` steps and its square, or what its name says."""
    if job == "hang":
        yield
        time.sleep(60)
    elif job == "crash":
        yield
        yield
        os.kill(os.getpid(), signal.SIGSEGV)
    elif job == "full":
        yield
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
    elif job == "deaf":  # to Ctrl-C, before it ignores that too
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for _ in range(job):
        yield
    return job * job


@pytest.mark.slow
def test_workers_that_hang_or_crash_lose_only_their_job():
    jobs = deque([1, "hang", "deaf", 2, "crash", 3])
    events = list(pool.run(work_of_all_kinds, jobs, workers=2, timeout_s=1.0))
    results = {job: event.result for job, event in events if isinstance(event, pool.Done)}
    assert results == {1: 1, "deaf": True, 2: 4, 3: 9}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    lost = {job: event for job, event in events if isinstance(event, pool.Lost)}
    assert lost["hang"].steps == 1 and lost["hang"].reason.startswith("timed out: over 1 s")
    assert lost["crash"].steps == 2 and "SIGSEGV" in lost["crash"].reason
    assert sum(isinstance(event, pool.Step) for _, event in events) == 1 + 2 + 3 + 1 + 2


def test_a_full_disk_in_a_worker_ends_the_run():
    with pytest.raises(OSError, match="No space left") as raised:
        list(pool.run(work_of_all_kinds, deque(["full", 1]), workers=1, timeout_s=30))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "somewhere")


def test_a_clip_that_kills_its_worker_is_rejected_and_those_before_it_are_kept(videos):
    clips = [ClipRequest("a/c.mkv", s, s + 2.0, f"c{s:g}") for s in (0.0, 2.0, 4.0)]
    job = jobs.Job(0, tuple(enumerate(clips)))
    lost = pool.Lost("crashed: the decoding process died (SIGSEGV)", steps=1)
    again = jobs.again(job, lost)
    assert (again.attempt, again.lost) == (2, "")  # once more as it was: it may have been chance
    last = jobs.again(again, lost)
    model = backbones.load("plain")
    result = jobs.JobResult()
    for outcome in jobs.prepare(last, videos=videos, preparer=model.preparer):
        features = outcome.prepared and model.encode([outcome.prepared])[0]
        result.add(outcome, features)
    assert result.rejected[1]["reason"] == lost.reason
    assert result.rejected[2]["reason"].startswith("not reached")
    assert result.clips[0].id == "c0" and 0 not in result.rejected


def test_a_step_is_told_before_the_next_clip_is_touched(videos):
    """Or a worker that dies would lose a clip that it had done, and another one be blamed."""
    done = []

    class Counting(PlainAudio):
        def prepare(self, waveform):
            done.append(len(waveform))
            return super().prepare(waveform)

    clips = [ClipRequest("a/c.mkv", s, s + 2.0, f"c{s:g}") for s in (0.0, 2.0, 4.0)]
    job = jobs.Job(0, tuple(enumerate(clips)))
    counting = dataclasses.replace(backbones.load("plain"), audio=Counting()).preparer
    for number, _ in enumerate(jobs.prepare(job, videos=videos, preparer=counting), 1):
        assert len(done) == number
    assert (number, len(done)) == (3, 3)


# The whole program -------------------------------------------------------------------------


def test_bad_files_are_rejected_with_their_reason(bad_videos, tmp_path, capsys):
    folder, reasons = bad_videos
    program.extract(folder, tmp_path / "data", workers=1)
    rows = read_rejected(tmp_path / "data" / "rejected.csv")
    assert sorted(rows) == sorted(reasons)
    for file, (stage, reason) in reasons.items():
        assert rows[file]["stage"] == stage, rows[file]
        assert rows[file]["reason"].startswith(reason), rows[file]
    assert store.read(tmp_path / "data", "all").ids == ["good.mp4"]
    said = capsys.readouterr().out
    assert "rejected 11" in said and "too short 2" in said and "1 clip (all 1) in" in said


def read_rejected(path):
    import csv

    with open(path, newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_folder_of_broken_files_is_an_error_with_counts(bad_videos, tmp_path):
    folder, _ = bad_videos
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("empty.mp4", "text.mp4", "half.mp4", "mute.mp4"):
        shutil.copy(folder / name, broken)
    for _ in range(2):  # and again: nothing of the first run is in the way
        run = run_program("--videos", broken, "--out", tmp_path / "data", "--workers", 1)
        assert run.returncode == 2, run.stderr
        line = run.stderr.strip().splitlines()[-1]
        assert "all 4 were rejected (not a readable video 2, empty 1, no audio stream 1)" in line
        rows = read_rejected(tmp_path / "data.partial" / "rejected.csv")
        assert rows["mute.mp4"]["reason"] == "no audio stream"
    assert not (tmp_path / "data").exists()


def test_a_csv_of_clips(videos, tmp_path, capsys):
    path = write_csv(
        tmp_path / "clips.csv",
        "file,start,end,id,label,split\n"
        "a/c.mkv,4,6,late,x,train\n"
        "b.mp4,,,whole,y,test\n"
        "a/c.mkv,0,2,early,x,train\n"
        "gone.mp4,,,gone,y,test\n"
        f"{'x' * 300},,,long,y,test\n"
        "a/c.mkv,6,9,beyond,x,train\n",
    )
    program.extract(videos, tmp_path / "data", ClipOptions(path), workers=1)
    data = tmp_path / "data"
    train = store.read(data, "train")
    assert train.ids == ["late", "early"]  # in the order of the CSV
    assert train.visual_lengths.tolist() == [50, 50] and train.audio_lengths.tolist() == [12, 12]
    assert train.starts.tolist() == [4, 0] and train.labels == ["x", "x"]
    assert store.splits(data) == {"train": 2, "test": 1}
    whole = store.read(data, "test")
    assert whole[0].end == pytest.approx(2.0, abs=0.07)
    rows = read_rejected(data / "rejected.csv")
    assert rows["gone.mp4"]["reason"].startswith("missing")
    assert "File name too long" in rows["x" * 300]["reason"]
    assert rows["a/c.mkv"]["id"] == "beyond"
    assert rows["a/c.mkv"]["reason"].startswith("past the end: the clip should end at 9 s")
    # The first frame of a clip from the middle differs from the one before it, not from nothing.
    late, early = train[0], train[1]
    assert np.abs(late.visual[0, 192:]).max() > 0 == np.abs(early.visual[0, 192:]).max()


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same(videos, tmp_path):
    for workers in (1, 2):
        program.extract(videos, tmp_path / str(workers), ClipOptions(seconds=1.5), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    records = [sorted((tmp_path / n).glob("*array_record*")) for n in "12"]
    assert [p.read_bytes() for p in records[0]] == [p.read_bytes() for p in records[1]]
    assert len(store.read(tmp_path / "1", "all")) == 4 + 1 + 2


@pytest.mark.slow
def test_killed_runs_go_on_and_end_the_same(tmp_path):
    folder = tmp_path / "videos"
    for number in range(8):
        good_video(folder / f"{number:02d}.mp4", 2 + number % 3, seed=number)
    program.extract(folder, tmp_path / "whole", workers=2)
    arguments = ["--videos", folder, "--out", tmp_path / "data", "--workers", 1]
    command = [sys.executable, "-m", "scav_jax.extract", *map(str, arguments)]
    chance = stdlib_random.Random(0)
    done_before = 0
    for kill_after in (1, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda n=kill_after: len(finished(tmp_path)) >= n)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "data").exists()
        time.sleep(0.2)  # its worker sees the end of the pipe and goes
        assert len(finished(tmp_path)) >= max(done_before, kill_after)
        done_before = len(finished(tmp_path))
    stamps = {path: path.stat().st_mtime_ns for path in finished(tmp_path)}
    last = run_program(*arguments)
    assert last.returncode == 0, last.stderr
    assert f"going on: {len(stamps)} of 8 clips were already done" in last.stdout
    assert content(tmp_path / "data") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "videos", "whole"]


def finished(tmp_path):
    return list((tmp_path / "data.partial").glob("jobs/*/[0-9]*.npz"))


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.005)


def test_a_killed_writer_is_repeated_without_extracting_again(videos, tmp_path, monkeypatch):
    out = tmp_path / "data"

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        files.os, "replace", lambda a, b: no_space() if str(b) == str(out) else os.rename(a, b)
    )
    with pytest.raises(OSError, match="No space left"):
        program.extract(videos, out, workers=1)
    assert not out.exists() and len(finished(tmp_path)) == 3
    monkeypatch.undo()
    monkeypatch.setattr(pool, "_Worker", None)  # no worker is needed any more
    program.extract(videos, out, workers=1)
    assert len(store.read(out, "all")) == 3


def test_a_list_without_a_whole_video_is_not_cut(videos, tmp_path, capsys):
    path = tmp_path / "clips.csv"
    path.write_text(f"file,start,end\n{next(videos.glob('*.mp4')).name},0,1.5\n")
    program.extract(videos, tmp_path / "data", ClipOptions(csv=path, seconds=1.0), workers=1)
    said = capsys.readouterr().out
    assert "nothing was cut: every clip of the list" in said and "cut into" not in said


def test_what_is_complete_is_left_alone_and_what_differs_is_refused(
    videos, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "data"
    program.extract(videos, out, workers=1)
    stamp = (out / "clips.csv").stat().st_mtime_ns
    capsys.readouterr()
    program.extract(videos, out, workers=1)
    said = capsys.readouterr().out
    assert "complete" in said and len(said.splitlines()) == 1
    with pytest.raises(InputError, match=r"another list of clips.*another --out"):
        program.extract(videos, out, clips=ClipOptions(seconds=1.0))
    other = {**program.make_fingerprint("plain"), "audio_rate_hz": 8000}
    monkeypatch.setattr(program, "make_fingerprint", lambda backbone: other)
    with pytest.raises(InputError, match=r"another extractor.*audio_rate_hz: .*16000.*8000"):
        program.extract(videos, out)
    assert (out / "clips.csv").stat().st_mtime_ns == stamp
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"no scav\.json"):
        program.extract(videos, stranger)
    with pytest.raises(InputError, match=r"--out: expected a folder, .*thesis\.tex is a file"):
        program.extract(videos, stranger / "thesis.tex")


def test_unfinished_work_of_another_extraction_is_refused(videos, tmp_path):
    ledger = Ledger.beside(tmp_path / "data")
    run = {"fingerprint": program.make_fingerprint("plain"), "manifest": "another"}
    ledger.folder.mkdir()
    ledger.open(run)
    with pytest.raises(InputError, match=r"data\.partial holds unfinished.*the list.*remove"):
        program.extract(videos, tmp_path / "data", workers=1)
    run["fingerprint"] = {**run["fingerprint"], "libavcodec": "1.2.3"}
    shutil.rmtree(ledger.folder)
    ledger.folder.mkdir()
    ledger.open(run)
    with pytest.raises(InputError, match=r"libavcodec: expected '1\.2\.3'"):
        program.extract(videos, tmp_path / "data", workers=1)


def test_two_runs_for_one_data_set_do_not_mix(videos, tmp_path):
    with Ledger.beside(tmp_path / "data").locked():
        run = run_program("--videos", videos, "--out", tmp_path / "data", "--workers", 1)
    assert run.returncode == 2 and "another extraction is writing" in run.stderr


def test_a_damaged_ledger_file_is_done_again(tmp_path, random):
    ledger = Ledger(tmp_path)
    clip = program.Clip(
        id="x",
        visual=random.standard_normal((9, 3)).astype(np.float16),
        visual_span=(0.0, 1.0),
        audio=random.standard_normal((7, 5)).astype(np.float16),
        audio_span=(0.0, 1.12),
        source="x.mp4",
        start=0.1,
        end=1.3,
    )
    ledger.save(3, {5: clip}, {6: {"id": "y"}})
    assert ledger.is_done(3) and not ledger.is_done(2)
    got = ledger.clip(3, 5)
    np.testing.assert_array_equal(got.visual, clip.visual)
    arrays = {"visual": clip.visual, "audio": clip.audio}
    assert {**vars(got), **arrays} == {**vars(clip), **arrays}
    assert ledger.rejected(3) == {6: {"id": "y"}}
    path = ledger.path(3)
    path.write_bytes(path.read_bytes()[:-30])
    assert not ledger.is_done(3)
    with pytest.raises(InputError, match=r"damaged.*same command again"):
        Ledger(tmp_path).rejected(3)
    ledger.save(3, {5: clip}, {6: {"id": "y"}})
    ledger.save(4, {7: clip}, {})
    again = Ledger(tmp_path)
    for job, place in ((3, 5), (4, 7), (3, 5)):  # all of a job, and then one clip of it alone
        np.testing.assert_array_equal(again.clip(job, place).audio, clip.audio)
    path.write_bytes(path.read_bytes().replace(b'"y"', b'"z"'))
    assert ledger.is_done(3)
    with pytest.raises(InputError, match=r"damaged.*same command again"):
        Ledger(tmp_path).rejected(3)


def test_a_lost_run_file_adopts_no_job_blindly(tmp_path):
    """The jobs of this very run are kept; with those of another one it is refused."""
    one, other = ({"fingerprint": {}, "manifest": name} for name in ("one", "other"))
    ledger = Ledger(tmp_path)
    ledger.open(one)
    ledger.save(3, {}, {6: {"id": "y"}})
    ledger.save_lengths({"a.mp4": 1.5})
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"")):
        damage(ledger.path_of_run())
        again = Ledger(tmp_path)
        with pytest.raises(InputError, match=r"lost its run\.json and holds the work of another"):
            again.open(other)
        again.open(one)
        assert again.is_done(3) and again.lengths() == {"a.mp4": 1.5}
    ledger.path_of_run().unlink()
    ledger.path(3).unlink()
    ledger.open(other)
    assert ledger.lengths() is None  # they were of the other run


def test_another_content_of_the_same_size_is_another_list(tmp_path, random):
    (tmp_path / "videos").mkdir()
    file = tmp_path / "videos" / "a.mp4"
    file.write_bytes(random.bytes(50_000))
    before = list_clips(tmp_path / "videos").identity
    shutil.copytree(tmp_path / "videos", tmp_path / "elsewhere")
    assert list_clips(tmp_path / "elsewhere").identity == before
    for place in (0, 25_000, 49_999):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        now = list_clips(tmp_path / "videos").identity
        assert now != before
        before = now


PATCHED_DECODER = """
import av

original = av.open

def open(file, *arguments, **options):
    container = original(file, *arguments, **options)
    if str(file).endswith("d.mp4"):
        container.seek(no_such_option=1)
    return container

av.open = open
"""


def test_a_fault_of_ours_rejects_nothing_and_ends_in_one_line(videos, tmp_path, monkeypatch):
    """A call that another version of a package does not know, as PyAV 19's `av.open` was."""
    out, patch = tmp_path / "out", tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(PATCHED_DECODER)  # for workers too
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(patch), *sys.path]))
    arguments = ("--videos", videos, "--out", out, "--workers", 1)
    failed = run_program(*arguments)
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert failed.returncode == errors.EXIT_FAULT
    assert "d.mp4: TypeError" in line and "no_such_option" in line and "a fault of scav_jax" in line
    assert "Traceback" not in failed.stderr and not out.exists()
    assert not list(tmp_path.rglob("rejected.csv"))
    # What was encoded before it is kept; the second film may still have waited for its turn.
    assert len(list(tmp_path.rglob("jobs/**/*.npz"))) in (1, 2)
    monkeypatch.delenv("PYTHONPATH")
    assert run_program(*arguments).returncode == 0
    assert store.read_rejected(out) == [] and len(store.read(out, "all")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "plane"], "Did you mean 'plain'"),
        (["--clip-seconds", "0.2"], "--clip-seconds: expected at least 1"),
        (["--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["--split", "train"], "NAME=SHARE.*got 'train'"),
        (["--split", "train=0", "test=1"], "above 0.*'train=0'"),
        (["--split", "train=0.8", "test=0.1"], "sum to 1, got 0.9"),
        (["--split", "train=0.5", "train=0.5"], "differ.*'train'"),
        (["--split", "all=1"], "differ.*'all'"),
        (["--videos", "nowhere"], "expected a folder of videos"),
    ],
)
def test_wrong_options_get_one_line(videos, tmp_path, arguments, message, monkeypatch):
    from scav_jax.extract import __main__ as main

    base = ["--videos", str(videos), "--out", str(tmp_path / "data")]
    monkeypatch.setattr(sys, "argv", ["extract", *base, *arguments])
    with pytest.raises(InputError, match=message):
        main.main()
    assert not Path(tmp_path / "data").exists()
