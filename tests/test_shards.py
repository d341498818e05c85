"""Shards: which clips are whose, what is refused, what is missing, and the same data set."""

import json

import pytest
from test_extract import content, good_video, read_rejected, run_program

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.extract import program, shards
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import WHOLE_VIDEOS, ClipOptions, list_clips
from scav_jax.extract.shards import Shard


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        good_video(folder / f"{number}.mp4", 2 + number, seed=number)
    (folder / "bad.mp4").write_text("hello")
    return folder


def shard_of(videos, out, index, count, clips=WHOLE_VIDEOS):
    program.extract(videos, out, workers=1, shard=Shard(index, count), clips=clips)


def test_every_clip_belongs_to_one_shard(videos):
    listing = list_clips(videos)
    parts = [shard.part(listing) for shard in shards.all_shards(3)]
    files = [[clip.file for clip in part.clips] for part in parts]
    assert files == [["0.mp4", "3.mp4"], ["1.mp4", "bad.mp4"], ["2.mp4"]]
    assert [list(part.sizes) for part in parts] == files


def test_shards_of_cut_videos_join_to_the_same_bytes(videos, tmp_path):
    """More shards than videos, one of which has nothing to do."""
    clips = ClipOptions(seconds=1.5, shares={"train": 0.6, "test": 0.4})
    program.extract(videos, tmp_path / "whole", workers=1, clips=clips)
    out = tmp_path / "data"
    for index in (5, 0, 4, 2, 1, 3):
        shard_of(videos, out, index, 6, clips=clips)
    program.merge(videos, out, count=6, clips=clips)
    for split in ("train", "test"):
        assert content(out, split) == content(tmp_path / "whole", split)
    whole = sorted((tmp_path / "whole").iterdir())
    assert [path.read_bytes() for path in whole] == [
        (out / path.name).read_bytes() for path in whole
    ]
    assert list(read_rejected(out / "rejected.csv")) == ["bad.mp4"]
    assert not (tmp_path / "data.partial").exists()


def test_a_finished_shard_is_not_done_again_and_a_damaged_job_is(videos, tmp_path, capsys):
    out = tmp_path / "data"
    for index in range(2):
        shard_of(videos, out, index, 2)
    ledger = Shard(1, 2).ledger(Ledger.beside(out))
    path = ledger.path(0)
    stamp = ledger.path(1).stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"1 of 2 jobs are missing.*--shard-index 1 again"):
        program.merge(videos, out, count=2)
    capsys.readouterr()
    shard_of(videos, out, 1, 2)
    assert "going on: 1 of 2 clips were already done" in capsys.readouterr().out
    assert ledger.path(1).stat().st_mtime_ns == stamp
    program.merge(videos, out, count=2)
    assert out.exists()


def test_what_does_not_belong_together_is_refused(videos, tmp_path):
    out = tmp_path / "data"
    shard_of(videos, out, 0, 2)
    with pytest.raises(InputError, match=r"in 2 shards, this is one in 3 shards: go on with"):
        shard_of(videos, out, 0, 3)
    with pytest.raises(InputError, match=r"in 2 shards, this is one without shards"):
        program.extract(videos, out, workers=1)
    with pytest.raises(InputError, match=r"unfinished work.*list of clips is another"):
        shard_of(videos, out, 0, 2, ClipOptions(seconds=1.0))
    with pytest.raises(InputError, match=r"in 2 shards, this is one in 3"):
        program.merge(videos, out, count=3)
    shard_of(videos, out, 1, 2)
    with pytest.raises(InputError, match=r"shard 0 of 2 was made from another list of clips"):
        program.merge(videos, out, count=2, clips=ClipOptions(seconds=1.0))
    path = Shard(1, 2).ledger(Ledger.beside(out)).path_of_run()
    run = json.loads(path.read_text())
    run["fingerprint"]["libavcodec"] = "1.2.3"
    write_document(path, run)
    with pytest.raises(InputError, match=r"shard 0 of 2 and shard 1 of 2.*libavcodec: .*'1\.2\.3'"):
        program.merge(videos, out, count=2)
    other = tmp_path / "other"
    ledger = Ledger.beside(other)
    with ledger.locked():
        ledger.open({"fingerprint": {}, "manifest": ""})
    with pytest.raises(InputError, match="without shards: go on without --num-shards"):
        shard_of(videos, other, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-shards", 2], "--num-shards: expected together with --shard-index"),
        (["--shard-index", 1], "--num-shards: expected together"),
        (["--merge"], "--num-shards: expected together"),
        (["--num-shards", 2, "--shard-index", 2], "--shard-index: expected 0 to 1"),
        (["--num-shards", 2, "--shard-index", -1], "--shard-index: expected 0 to 1"),
        (["--num-shards", 0, "--merge"], "--num-shards: expected more than 0"),
        (["--num-shards", 2, "--shard-index", 1, "--merge"], "--merge: expected no --shard-index"),
        (["--engine", "rey"], "--engine: expected one of local, ray, got 'rey'. Did you mean"),
        (["--option", "dtype=bfloat16"], "--option dtype: expected one that the visual or audio"),
        (["--option", "clip.dtype=x"], "--option: expected NAME=VALUE"),
        (["--weights", "clip=x"], "--weights clip: expected the name of a side with weights"),
        (["--weights", "clip"], "--weights: expected NAME=PATH"),
        (["--backbone", "clip_beats"], "--weights clip=PATH: expected the weights"),
        (["--backbone", "clip_beat"], "--backbone: expected one of .* Did you mean 'clip_beats'"),
        (["--backbone", "plain", "--audio", "plain"], "--backbone: expected no --visual"),
        (["--visual", "plain"], "--visual, --audio: expected both"),
        (["--visual", "plian", "--audio", "plain"], "--visual: .* Did you mean 'plain'"),
        (["--visual", "none", "--audio", "none"], "expected a side for one of them"),
        (
            ["--visual", "scav_jax.extract.decoding.media:Media", "--audio", "none"],
            "expected a class of",
        ),
    ],
)
def test_wrong_options_get_one_line(videos, tmp_path, arguments, message, monkeypatch):
    from scav_jax.extract import __main__ as main

    base = ["extract", "--videos", videos, "--out", tmp_path / "data", *arguments]
    monkeypatch.setattr("sys.argv", list(map(str, base)))
    with pytest.raises(InputError, match=message):
        main.main()
    assert list(tmp_path.iterdir()) == []


def test_the_program_says_what_is_missing(videos, tmp_path):
    base = ["--videos", videos, "--out", tmp_path / "data", "--num-shards", 2]
    done = run_program(*base, "--shard-index", 1, "--workers", 1)
    assert done.returncode == 0 and "1 shards are not finished yet: 0" in done.stdout
    merged = run_program(*base, "--merge")
    assert merged.returncode == 2
    assert merged.stderr.startswith("error: ") and "1 are not: 0;" in merged.stderr
    assert len(merged.stderr.strip().splitlines()) == 1
