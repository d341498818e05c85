"""An index on disk: what is added comes back, and nothing that happens to a writer loses it."""

import errno
import json
import os
import random as randomness
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import lancedb
import numpy as np
import pytest

from scav_jax.base import files
from scav_jax.base.errors import InputError
from scav_jax.index import __main__ as index_main
from scav_jax.index import (
    catalog,
    create,
    encoding,
    open_index,
    program,
    rows,
    scan,
    snapshot,
    writing,
)
from scav_jax.index.products import widen
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import Sequences, resample_like
from scav_jax.sequences import sequences as whole

ROOT = Path(__file__).resolve().parents[1]


def embedded(count: int, steps=7, width=12, *, seed=0, prefix="clip", lengths=None) -> Embedded:
    """Clips whose sounds and pictures are alike; padding is NaN."""
    random = np.random.default_rng(seed)
    lengths = np.full(count, steps) if lengths is None else np.asarray(lengths)
    common = random.standard_normal((count, steps, width))
    streams = []
    for _ in range(2):
        values = (common + 0.3 * random.standard_normal(common.shape)).astype(np.float32)
        mean = np.stack([v[:n].mean(axis=0) for v, n in zip(values, lengths, strict=True)])
        values[np.arange(steps) >= lengths[:, None]] = np.nan
        windows = np.stack([0 * lengths, lengths], axis=1).astype(np.float32)
        streams.append((Sequences(values, lengths.astype(np.int32), windows), mean))
    (visual, of_visual), (audio, of_audio) = streams
    return Embedded(
        ids=[f"{prefix}{number}" for number in range(count)],
        sources=[f"videos/{number}.mp4" for number in range(count)],
        starts=np.arange(count) * 2.0,
        ends=np.arange(count) * 2.0 + 1.5,
        labels=[("dog", "door", "it's")[number % 3] for number in range(count)],
        visual=visual,
        audio=audio,
        visual_embeddings=of_visual,
        audio_embeddings=of_audio,
    )


def made(path: Path, count: int = 30, *, stored: str = "float32", **options):
    index = create(path, identity="model", storage=stored)
    if count:
        index.add(embedded(count, **options))
    return index


def own_ranks(index, clips: Embedded) -> list[str]:
    """The id that each clip's sound finds."""
    return [hits[0].id for hits in index.search(clips, "a2v", 1, "sequence")]


# ---- rows ------------------------------------------------------------------------------------


def test_what_is_added_comes_back(tmp_path):
    index, clips = made(tmp_path / "i"), embedded(30)
    assert len(index) == 30 and sorted(index.ids()) == sorted(clips.ids)
    hit = index.search(clips, "a2v", 1, "sequence")[4][0]
    assert (hit.id, hit.source, hit.start, hit.end, hit.label, hit.rank) == (
        *("clip4", "videos/4.mp4", 8.0, 9.5, "door"),
        1,
    )
    assert own_ranks(open_index(tmp_path / "i"), clips) == clips.ids


def test_duplicates_refuse_all_and_name_them(tmp_path):
    index = made(tmp_path / "i", 5)
    with pytest.raises(InputError, match=r"2 of 4 are there already: 'clip3', 'clip4'"):
        index.add(replace(embedded(4), ids=["new", "clip3", "clip4", "other"]))
    assert sorted(index.ids()) == sorted(embedded(5).ids) and index.info()["segments"] == 1
    with pytest.raises(InputError, match="'a' came before"):
        index.add(replace(embedded(3), ids=["a", "b", "a"]))
    with pytest.raises(InputError, match="on_duplicate"):
        index.add(embedded(1), on_duplicate="maybe")


def test_duplicates_replace_in_one_commit(tmp_path):
    index = made(tmp_path / "i", 5)
    other = replace(embedded(3, seed=1), ids=["clip1", "clip4", "new"])
    before = index.info()["version"]
    assert index.add(other, on_duplicate="replace") == 3
    assert len(index) == 6 and index.info()["version"] == before + 1
    assert own_ranks(index, other) == other.ids
    assert index.info()["deleted"] == 2
    assert index.add(embedded(6), on_duplicate="skip") == 1  # clip5 only
    assert own_ranks(index, other) == other.ids


def test_ids_with_quotes(tmp_path):
    index = made(tmp_path / "i", 0)
    clips = replace(embedded(2), ids=["it's", "a''b"])
    index.add(clips)
    with pytest.raises(InputError, match="there already"):
        index.add(clips)
    index.delete(["it's"])
    assert index.ids() == ["a''b"]


def test_delete_is_all_or_nothing(tmp_path):
    index, clips = made(tmp_path / "i", 9), embedded(9)
    with pytest.raises(InputError, match=r"1 of 2 are not there: 'nobody'; nothing"):
        index.delete(["clip2", "nobody"])
    assert len(index) == 9
    index.delete(["clip2", "clip7"])
    assert len(index) == 7 and not {"clip2", "clip7"} & set(own_ranks(index, clips))
    assert not {"clip2", "clip7"} & set(own_ranks(open_index(tmp_path / "i"), clips))


@pytest.mark.parametrize("stored", encoding.DTYPES)
def test_compact_changes_no_result(tmp_path, stored):
    lengths = np.random.default_rng(3).integers(2, 8, 40)
    index = made(tmp_path / "i", 40, stored=stored, lengths=lengths)
    index.add(embedded(20, seed=5, prefix="late"))
    index.delete([f"clip{n}" for n in range(0, 40, 3)])
    queries = embedded(6, seed=9)
    before = [index.search(queries, d, 20, "sequence") for d in ("a2v", "v2a")]
    files = index.info()["bytes"]
    done = index.compact()
    assert index.info()["segments"] == 1 and index.info()["deleted"] == 0
    assert len(done["swept"]) == 2 and files == done["bytes_before"]
    assert [index.search(queries, d, 20, "sequence") for d in ("a2v", "v2a")] == before
    again = open_index(tmp_path / "i")
    assert again.search(queries, "v2a", 20, "sequence") == before[1] and again.verify() == 46
    assert again.compact()["swept"] == []  # nothing left to do


def test_the_program_tells_what_an_index_holds_and_what_compacting_freed(tmp_path, capsys):
    index, path = made(tmp_path / "i", 5), str(tmp_path / "i")
    index.add(embedded(3, prefix="late"))
    index.delete(["clip0"])
    writing.folder_of(index.path, 7).mkdir()

    def told(*words):
        assert index_main.main([*words[:1], path, *words[1:]]) == 0
        return capsys.readouterr().out

    about = json.loads(told("info", "--json", "--verify"))
    assert about == index.info() | {"verified": 7}
    assert (about["clips"], about["both"], about["deleted"], about["width"]) == (7, 7, 1, 12)
    assert (about["segments"], about["orphan_segments"]) == (2, 1)
    assert (about["identity"], about["hubness"], about["path"]) == ("model", "none", path)
    files = [file for file in index.path.rglob("*") if file.is_file()]
    assert about["bytes"] == sum(file.stat().st_size for file in files)
    for_people = told("info")
    assert f"{'bytes':16} {about['bytes']:,}\n" in for_people and "verified" not in for_people
    freed = told("compact")
    after = json.loads(told("info", "--json"))
    assert f"{about['bytes']:,} -> {after['bytes']:,} bytes, 3 segments removed" in freed
    assert (after["segments"], after["deleted"], after["orphan_segments"]) == (1, 0, 0)
    assert told("delete", "clip1", "late0") == f"{path}: 2 clips deleted, 5 left\n"


def test_full_segments_stay_as_they_are_and_what_is_left_goes_together(tmp_path, monkeypatch):
    """Segments with dead rows or little in them, as many as make two full ones."""
    index = made(tmp_path / "i", 10)
    monkeypatch.setattr(writing, "SEGMENT_BYTES", index.snapshot.segments[0].bytes)
    for number, count in enumerate((10, 6, 7, 8), 1):
        index.add(embedded(count, seed=number, prefix=f"part{number}-"))
    index.delete([f"part1-{number}" for number in range(5)])
    assert index.compact()["swept"] == [f"{number:08}" for number in (1, 2, 3, 4)]
    counts = {number: len(one) for number, one in index.snapshot.segments.items()}
    assert counts == {0: 10, 5: 5 + 6 + 7, 6: 8}
    assert index.verify() == 36


def test_compact_of_nothing(tmp_path):
    index = made(tmp_path / "i", 3)
    index.delete(["clip0", "clip1", "clip2"])
    index.compact()
    assert len(index) == 0 and writing.segment_numbers(tmp_path / "i") == []
    index.add(embedded(2))
    assert len(index) == 2


def test_the_rows_of_many_commits_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "FRAGMENTS", 4)
    writer, clips = made(tmp_path / "i", 9), embedded(9)
    reader, before = open_index(tmp_path / "i"), writer.search(clips, "a2v", 9)

    def add(number):
        writer.add(embedded(2, seed=number, prefix=f"part{number}-"))
        table = writer._rows._table
        return table.stats()["fragment_stats"]["num_fragments"]

    assert [add(number) for number in range(1, 8)] == [2, 3, 4, 2, 3, 4, 2]
    assert reader.search(clips, "a2v", 9) == before and len(reader) == 9
    with monkeypatch.context() as killed:  # after the rows are joined, before that is noted
        killed.setattr(rows.Rows, "gather", lambda self: self.clean() or sys.exit())
        with pytest.raises(SystemExit):
            add(8)
    again = open_index(tmp_path / "i")
    assert again.verify() == len(again) == 9 + 2 * 7
    assert again.ids() == clips.ids + [f"part{n}-{one}" for n in range(1, 8) for one in range(2)]


# ---- readers and writers ---------------------------------------------------------------------


def test_readers_keep_their_snapshot(tmp_path):
    writer, clips = made(tmp_path / "i", 12), embedded(12)
    one, other = open_index(tmp_path / "i"), open_index(tmp_path / "i")
    before = one.search(clips, "a2v", 5, "sequence")
    writer.add(embedded(8, seed=4, prefix="late"))
    writer.delete(["clip0", "clip1"])
    assert len(one) == 12 and one.search(clips, "a2v", 5, "sequence") == before
    writer.compact()
    assert one.search(clips, "a2v", 5, "sequence") == before  # its files are gone, its pages not
    other.refresh()
    assert len(other) == 18 and other.search(clips, "a2v", 5, "sequence") != before
    one.refresh()
    assert one.search(clips, "a2v", 5, "exact") == other.search(clips, "a2v", 5, "exact")


def test_a_commit_opens_what_is_new_alone(tmp_path, monkeypatch):
    """Segments that are mapped stay so, but for another one under a number that was free again."""
    writer = made(tmp_path / "i", 9)
    reader, first = open_index(tmp_path / "i"), writer.snapshot.segments[0]
    writer.add(embedded(5, seed=1, prefix="once"))
    reader.refresh()
    writer.delete([f"once{number}" for number in range(5)])
    assert writer.compact()["swept"] == ["00000001"]
    synced = []
    monkeypatch.setattr(files, "_sync_one", lambda path: synced.append(str(path)))
    writer.add(embedded(5, seed=2, prefix="again"))
    assert writer.snapshot.segments[0] is first
    versions = [path for path in synced if path.endswith(".manifest")]
    assert len(versions) == len(set(versions)) == 1
    reader.refresh()
    assert own_ranks(reader, embedded(5, seed=2, prefix="again")) == [f"again{n}" for n in range(5)]
    many = [*writer.ids(), "nobody"]
    assert sorted(writer._rows.existing(many)) == sorted(writer.ids())
    monkeypatch.setattr(rows, "NAMED", 0.0)
    monkeypatch.setattr(rows, "IDS_AT_ONCE", 4)
    assert sorted(writer._rows.existing(many)) == sorted(writer.ids())
    with pytest.raises(InputError, match="14 of 15 are there already"):
        writer.check_new(many)


@pytest.mark.parametrize("failure", [InputError("the sixth"), KeyboardInterrupt("the sixth")])
def test_small_parts_go_in_together(failure, monkeypatch):
    """Those of one kind, at least so many or so late; none is lost by what fails after it."""
    monkeypatch.setattr(program, "CLIPS_AT_ONCE", 5)

    def parts():
        yield from (embedded(2, prefix=name) for name in "abcd")
        yield replace(embedded(2, prefix="e"), audio=None, audio_embeddings=None)
        raise failure

    found = []
    with pytest.raises(type(failure), match="the sixth"):
        for part in program._gathered(parts()):
            found.append(part)
    assert [[name[0] for name in part.ids] for part in found] == [[*"aabbcc"], [*"dd"], [*"ee"]]
    np.testing.assert_array_equal(found[0].visual.lengths, 6 * [7])
    monkeypatch.setattr(program, "COMMIT_SECONDS", -1.0)
    assert [len(part) for part in program._gathered(embedded(2, prefix=p) for p in "ab")] == [2, 2]


@pytest.mark.parametrize("more", [0, 2])
def test_a_reader_knows_its_index_from_another_in_its_place(tmp_path, more):
    """Of as many versions or of more; what was found would be of other clips."""
    index = made(tmp_path / "i", 9)
    other = made(tmp_path / "other", 9, seed=3, prefix="other")
    for number in range(more):
        other.add(embedded(1, prefix=f"more{number}"))
    (tmp_path / "i").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "i")
    for read in (index.follow, index.refresh, lambda: index.delete(["clip0"])):
        with pytest.raises(InputError, match=r"i: expected the index that was opened, another one"):
            read()
    (tmp_path / "i").rename(tmp_path / "other")
    (tmp_path / "away").rename(tmp_path / "i")
    index.follow()
    assert index.search(embedded(1), "a2v", 1)[0][0].id == "clip0"


def test_a_reader_follows_a_root_that_moves(tmp_path):
    index = create(tmp_path / "i", identity="model", root=tmp_path)
    (tmp_path / "there").mkdir()
    open_index(tmp_path / "i").move(tmp_path / "there")
    assert index.follow() and index.header.root == str(tmp_path / "there") and not index.follow()


def test_a_second_writer_is_refused(tmp_path):
    index = made(tmp_path / "i", 2)
    with catalog.one_writer(tmp_path / "i"):
        for write in (index.compact, lambda: index.add(embedded(1, prefix="x"))):
            with pytest.raises(InputError, match="only writer, another process is"):
                write()
        assert own_ranks(index, embedded(2)) == ["clip0", "clip1"]  # readers are not
    index.add(embedded(1, prefix="x"))


WRITERS = """
import os, pathlib, sys
sys.path[:0] = [{tests!r}]
from test_index import embedded, made
from scav_jax.index import open_index, rows

rows.FRAGMENTS = 2  # every add joins what earlier ones left

def write(path, number, compacting):
    index = open_index(path) if path.exists() else made(path, 0)
    print("ready", flush=True)
    while True:
        index.add(embedded(10, 40, 64, seed=number, prefix=f"part{{number}}-"))
        if compacting:
            index.delete([f"part{{number}}-0"])
            index.compact()
            index.add(embedded(1, 40, 64, seed=number, prefix=f"part{{number}}-"))
        print(number, flush=True)
        number += 1

for line in sys.stdin:
    path, number, compacting = line.split("|")
    if os.fork() == 0:
        try:
            print(os.getpid(), flush=True)
            write(pathlib.Path(path), int(number), bool(int(compacting)))
        finally:
            os._exit(1)
    os.wait()
    print("killed", flush=True)
"""


@pytest.fixture(scope="module")
def writers():
    """A process that has imported everything, and makes a writer for each line that it reads."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS.format(tests=str(ROOT / "tests"))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("compacting", [False, True], ids=["add", "compact"])
def test_kill_at_any_moment_leaves_an_index(tmp_path, writers, compacting):
    path, chance = tmp_path / "i", randomness.Random(11 + compacting)
    said, under_way = -1, set()
    for commits in range(2):  # before it is killed, at least; on a slow machine the first has none
        print(f"{path}|{said + 1}|{int(compacting)}", file=writers.stdin, flush=True)
        pid = int(writers.stdout.readline())
        assert writers.stdout.readline() == "ready\n"
        lines = [writers.stdout.readline() for _ in range(commits)]
        time.sleep(chance.uniform(0.1, 0.9))
        os.kill(pid, signal.SIGKILL)
        lines += iter(writers.stdout.readline, "killed\n")
        said = max([said, *(int(line) for line in lines)])
        index = open_index(path)
        parts = {}
        for one in index.ids():
            parts.setdefault(int(one[4:].split("-")[0]), set()).add(one)
        # Everything that was said to be committed is there; what was under way is whole or not.
        assert set(range(said + 1)) <= set(parts) and max(parts, default=-1) <= said + 1
        finished = [ids for part, ids in parts.items() if part <= said and part not in under_way]
        assert all(len(ids) == 10 for ids in finished)
        assert all(len(ids) in ((9, 10) if compacting else (10,)) for ids in parts.values())
        assert index.verify() == len(index)
        if said >= 0:
            clips = embedded(10, 40, 64, seed=0, prefix="part0-")
            assert own_ranks(index, clips)[1:] == clips.ids[1:]
        under_way.add(said + 1)  # nobody goes on with it
        said = max(parts, default=-1)
    (path / "segments" / "00099999").mkdir()  # as a kill between the segment and its rows leaves
    (path / "segments" / ".00200000.partial").mkdir()
    assert open_index(path).info()["orphan_segments"] >= 1
    assert {"00099999", ".00200000.partial"} <= set(open_index(path).compact()["swept"])
    assert open_index(path).verify() == len(index)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("change", "there"),
    [
        (lambda index: index.add(embedded(3, prefix="new")), 8),
        (lambda index: index.add(replace(embedded(2), ids=["clip1", "new"]), "replace"), 6),
        (lambda index: index.delete(["clip1", "clip3"]), 3),
    ],
    ids=["add", "replace", "delete"],
)
def test_a_kill_beside_a_change_of_the_table_leaves_an_index(
    tmp_path, monkeypatch, change, there, moment
):
    """Before the table is changed, what comes is noted; after it, what is there is not yet."""
    index, note = made(tmp_path / "i", 5), rows.Rows.note_version

    def killed(self, coming=None):
        if coming is not None:
            note(self, coming)
        if (moment == "before") == (coming is not None):
            raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(rows.Rows, "note_version", killed)
        change(index)
    again = open_index(tmp_path / "i")
    assert again.verify() == len(again) == (5 if moment == "before" else there)


def test_a_create_that_was_killed_can_be_made_again(tmp_path):
    made(tmp_path / "i", 3)
    (tmp_path / "i" / "index.json").unlink()  # what is written last
    with pytest.raises(InputError, match="expected an index"):
        open_index(tmp_path / "i")
    index = made(tmp_path / "i", 4)
    assert len(index) == 4 and own_ranks(index, embedded(4)) == embedded(4).ids


def test_an_orphan_segment_is_not_overwritten_nor_read(tmp_path):
    index = made(tmp_path / "i", 4)
    commit = index._rows.add
    index._rows.add = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
    keep = writing.sweep
    writing.sweep = lambda *_: []  # as after a kill: nobody cleans up
    try:
        with pytest.raises(KeyboardInterrupt):
            index.add(embedded(3, prefix="lost"))
    finally:
        writing.sweep, index._rows.add = keep, commit
    again = open_index(tmp_path / "i")
    assert len(again) == 4 and again.info()["orphan_segments"] == 1
    again.add(embedded(3, seed=2, prefix="kept"))
    assert writing.segment_numbers(tmp_path / "i") == [0, 1, 2]
    assert own_ranks(again, embedded(3, seed=2, prefix="kept")) == ["kept0", "kept1", "kept2"]
    assert again.compact()["swept"] == ["00000000", "00000001", "00000002"]


def test_later_clips_are_sketched_as_the_first(tmp_path):
    """One basis for an index, so that segments can be put together."""
    index = made(tmp_path / "i", 12)
    index.add(embedded(9, seed=5, prefix="late"))
    first, second = (one.encoding.basis for one in index.snapshot.segments.values())
    assert np.array_equal(first.table, second.table)
    index.delete(["clip1"])
    index.compact()
    (basis,) = (one.encoding.basis for one in index.snapshot.segments.values())
    assert np.array_equal(basis.table, first.table)
    asking = embedded(4, seed=8)
    assert index.search(asking, "a2v", 5, "exact") == index.search(asking, "a2v", 5, "sequence")


# ---- disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", [one for one in encoding.COLUMNS if one != "sketches"])
@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_a_flipped_byte_is_named(tmp_path, column, stored):
    made(tmp_path / "i", 9, stored=stored)
    file = tmp_path / "i" / "segments" / "00000000" / f"visual.{column}"
    data = bytearray(file.read_bytes())
    data[len(data) // 9 * 5 + 3] ^= 4
    file.write_bytes(data)
    retrieval = {"values": "sequence", "embeddings": "aggregation"}.get(column, "exact")
    index = open_index(tmp_path / "i")
    if column == "fine":
        with pytest.raises(InputError, match=r"visual.fine, row 5.*clip 'clip5'"):
            index.verify()
    else:
        with pytest.raises(InputError, match=rf"visual.{column}, row 5.*clip 'clip5'"):
            index.search(embedded(2, seed=8), "a2v", 3, retrieval)
    with pytest.raises(InputError, match="clip5"):
        open_index(tmp_path / "i").verify()
    index.delete(["clip5"])  # as the message says
    index.compact()
    assert open_index(tmp_path / "i").verify() == 8


def test_a_damaged_list_of_rows_or_a_cut_off_file_is_named(tmp_path):
    made(tmp_path / "i", 9)
    file = tmp_path / "i" / "segments" / "00000000" / "audio.rows.npy"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"audio.rows.npy: .*have changed"):
        open_index(tmp_path / "i")
    file.write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"audio.rows.npy: expected .* cut off"):
        open_index(tmp_path / "i")


@pytest.mark.parametrize("moment", [0, 1, 4, 9])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, moment):
    index, clips = made(tmp_path / "i", 6), embedded(6)
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > moment:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_sync_one", full)
    with pytest.raises(OSError, match="No space left"):
        index.add(embedded(4, prefix="more"))
    monkeypatch.undo()
    assert len(writing.segment_numbers(tmp_path / "i")) == 1  # the space is free again
    assert own_ranks(open_index(tmp_path / "i"), clips) == clips.ids
    assert index.add(embedded(4, prefix="more")) == 4


def test_a_disk_that_is_full_for_the_table_loses_nothing(tmp_path, monkeypatch):
    """LanceDB's own error, from a real limit on the size of files."""
    index = made(tmp_path / "i", 6)
    write, soft = writing.write_segment, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*given, **named):
        write(*given, **named)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, soft[1]))

    monkeypatch.setattr(writing, "write_segment", limited)
    try:
        with pytest.raises(OSError) as raised:
            index.add(embedded(4, prefix="more"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    monkeypatch.undo()
    assert raised.value.errno == errno.EFBIG and len(index) == 6
    assert writing.segment_numbers(tmp_path / "i") == [0]
    index = open_index(tmp_path / "i")
    assert index.verify() == 6 and index.add(embedded(4, prefix="more")) == 4


def test_errors_of_the_table_are_system_errors():
    for words, number in (
        ("No space left on device", errno.ENOSPC),
        ("File too large", errno.EFBIG),
        ("Read-only file system", errno.EROFS),
        ("whatever the system calls it (os error 122)", errno.EDQUOT),
    ):
        with pytest.raises(OSError) as raised, files.full_disk_is_an_oserror("somewhere"):
            raise RuntimeError(f"lance error: LanceError(IO): {words} (os error)")
        assert raised.value.errno == number
    with pytest.raises(RuntimeError), files.full_disk_is_an_oserror("somewhere"):
        raise RuntimeError("No such file or directory (os error 2)")  # damage is no refusal


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped"])
def test_a_damaged_table_is_one_line(tmp_path, damage):
    """Files of older versions are not read; of the others, each is missed."""
    made(tmp_path / "i", 3)
    refused = 0
    for file in sorted((tmp_path / "i" / "rows.lance").rglob("*.*")):
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(b"" if damage == "empty" else bytes(255 - byte for byte in content))
        try:
            open_index(tmp_path / "i").verify()
        except InputError as error:
            refused += 1
            assert (
                "rows" in str(error)
                and "bring it back from a copy" in str(error)
                and "\n" not in str(error)
            )
        file.write_bytes(content)
    assert refused >= 1
    assert open_index(tmp_path / "i").verify() == 3


def test_a_table_that_may_not_be_read_is_not_called_damaged(tmp_path, seal):
    made(tmp_path / "i", 3)
    seal(next((tmp_path / "i" / "rows.lance" / "data").iterdir()))
    with pytest.raises(PermissionError, match=r"rows\.lance"):
        open_index(tmp_path / "i").verify()


CHANCE = randomness.Random(3)
LIMITS = {  # of files, in bytes
    "gather": CHANCE.sample(range(9000), 6),
    "add": [*CHANCE.sample(range(9000), 6), 700],
    "delete": [0, *CHANCE.sample(range(900), 3)],
    "compact": [0, *CHANCE.sample(range(9000), 3)],
}


@pytest.mark.parametrize("operation", LIMITS)
def test_no_space_at_any_byte_loses_nothing(tmp_path, operation, monkeypatch):
    """A real limit on the size of files: whatever it stops, all of it is done or nothing."""
    if operation == "gather":
        monkeypatch.setattr(rows, "FRAGMENTS", 1)
    index, clips = made(tmp_path / "i", 9), embedded(9)
    index.add(embedded(5, seed=2, prefix="late"))
    refused = 0
    for number, limit in enumerate(LIMITS[operation], 1):
        if operation == "compact":
            index.delete([f"late{number}"])
        more = embedded(3, seed=limit, prefix=f"m{limit}-")
        work = {
            "add": lambda more=more: index.add(more),
            "gather": lambda more=more: index.add(more),
            "delete": lambda: index.delete(["late0"]),
            "compact": index.compact,
        }[operation]
        before = sorted(open_index(tmp_path / "i").ids())
        soft = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
            work()
        except OSError as error:
            refused += 1
            assert error.errno == errno.EFBIG and error.filename
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
            assert sorted(open_index(tmp_path / "i").ids()) == before
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        again = open_index(tmp_path / "i")
        assert again.verify() == len(again) and own_ranks(again, clips) == clips.ids
        assert again.info()["orphan_segments"] == 0 or operation not in ("add", "gather")
        index.refresh()
        if "late0" not in index.ids():
            index.add(embedded(1, seed=2, prefix="late"))
    assert refused >= 2
    index.compact()
    assert open_index(tmp_path / "i").verify() == len(index)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, None])
def test_what_the_machine_says_of_a_segment_is_said_and_nothing_is_lost(
    tmp_path, monkeypatch, number
):
    index, clips = made(tmp_path / "i", 6), embedded(6)
    short = OSError("24576 requested and 4064 written")
    error = short if number is None else OSError(number, os.strerror(number))
    write = Path.write_bytes

    def refuse(path, content):
        if path.name == "audio.rows.npy":
            raise error
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError) as raised:
        index.add(embedded(4, prefix="more"))
    monkeypatch.undo()
    assert raised.value.errno == (number or errno.EIO) and raised.value.filename
    assert writing.segment_numbers(tmp_path / "i") == [0]
    assert own_ranks(open_index(tmp_path / "i"), clips) == clips.ids


def test_a_read_only_index_can_be_searched(tmp_path, monkeypatch):
    made(tmp_path / "i", 4)
    opened = os.open

    def refuse(path, flags, *more, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    index = open_index(tmp_path / "i")
    assert own_ranks(index, embedded(4)) == embedded(4).ids and index.verify() == 4
    with pytest.raises(OSError, match="Read-only"):
        index.add(embedded(1, prefix="x"))


# ---- an index knows its own rows -------------------------------------------------------------


def two_parts(path: Path, seed: int, stored="float32", **options):
    index = create(path, identity="model", storage=stored, **options)
    index.add(embedded(6, seed=seed))
    index.add(embedded(4, seed=seed + 1, prefix="late"))
    return index


def put(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copy(source, target)
        return
    shutil.rmtree(target)
    shutil.copytree(source, target)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("rows.lance", r"00000000, row 0: .* names there \('clip0'\).*mixed-up copy"),
        ("segments", r"00000000: expected a segment of this index, .* another \(name: "),
        ("segments/00000001", r"00000001: expected a segment of this index, .* \(name: "),
        (
            "index.json",
            r"expected a segment of this index, .* another \(name: |lies there now; open",
        ),
    ],
)
def test_a_part_of_another_index_is_named_when_it_is_opened(tmp_path, part, words):
    """Of the same model, with as many clips that are called alike: other clips were found."""
    two_parts(tmp_path / "one", seed=0)
    two_parts(tmp_path / "other", seed=20)
    reader = open_index(tmp_path / "one")
    put(tmp_path / "other" / part, tmp_path / "one" / part)
    for use in (lambda: open_index(tmp_path / "one"), reader.refresh):
        with pytest.raises(InputError, match=words) as raised:
            use()
        assert "\n" not in str(raised.value)


def test_a_row_that_the_table_names_twice_is_named(tmp_path):
    index = two_parts(tmp_path / "i", seed=0)
    known = [np.array(part) for part in index._rows.known()]
    for twice in (known + known, [np.concatenate([part, part[:1]]) for part in known]):
        with pytest.raises(InputError, match=r"00000000, row 0: .* names there"):
            index.snapshot.now(index.path, index.header, twice)


def test_segments_that_changed_places_are_named(tmp_path):
    two_parts(tmp_path / "i", seed=0)
    folder = tmp_path / "i" / "segments"
    for old, new in (("00000000", "x"), ("00000001", "00000000"), ("x", "00000001")):
        (folder / old).rename(folder / new)
    with pytest.raises(InputError, match=r"00000000, row \d: .*'clip\d'"):
        open_index(tmp_path / "i")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stored": "int8"}, "storage: expected 'float32', got 'int8'"),
        (
            {"distance": ("euclidean", {"resample": "audio_to_visual"})},
            "options.resample: expected",
        ),
    ],
)
def test_a_segment_of_another_kind_of_index_is_named(tmp_path, options, words):
    two_parts(tmp_path / "one", seed=0)
    two_parts(tmp_path / "other", seed=0, **options)
    put(tmp_path / "other" / "segments" / "00000001", tmp_path / "one" / "segments" / "00000001")
    with pytest.raises(InputError, match=rf"segments/00000001: .*one of another \(.*{words}"):
        open_index(tmp_path / "one")


def test_a_segment_that_is_rounded_otherwise_is_named(tmp_path):
    """The same clips in another order of adding: what came first decides the centre."""
    for name, order in (("one", (0, 9)), ("other", (9, 0))):
        index = create(tmp_path / name, identity="model", storage="int8")
        for seed in order:
            index.add(embedded(5, seed=seed, prefix=f"s{seed}-"))
    put(tmp_path / "other" / "segments" / "00000001", tmp_path / "one" / "segments" / "00000001")
    with pytest.raises(InputError, match="00000001"):
        open_index(tmp_path / "one")


@pytest.mark.parametrize("file", ["centre.npy", "basis.npy"])
def test_segments_that_rounding_tells_apart_are_named(file, unchecked_shapes):
    first, same, other = (
        SimpleNamespace(folder=f"i/{number}", checksums={"centre.npy": 1} | {file: found})
        for number, found in enumerate((2, 2, 3))
    )
    snapshot._check_one_encoding([first, same])
    for segments in ([first, other], [first, same, other]):
        with pytest.raises(InputError, match=rf"i/2: .* the index of i/0, its {file} is another"):
            snapshot._check_one_encoding(segments)


@pytest.mark.parametrize("change", ["delete", "compact"])
def test_a_table_of_another_moment_is_named(tmp_path, change):
    """With all that lies beside it: what counts the versions is among the segments."""
    index = two_parts(tmp_path / "i", seed=0)
    shutil.copytree(tmp_path / "i", tmp_path / "old")
    index.delete(["clip1"])
    if change == "compact":
        index.compact()
    for part in tmp_path.glob("old/rows*"):
        put(part, tmp_path / "i" / part.name)
    with pytest.raises(InputError, match=r"rows.lance: expected version \d+ of the rows"):
        open_index(tmp_path / "i")


def test_rows_that_another_program_took_away_are_missed(tmp_path):
    index = made(tmp_path / "i", 3)
    index.add(embedded(2, seed=1, prefix="late"), "replace")
    index.add(embedded(3, seed=2), "replace")
    lancedb.connect(str(tmp_path / "i")).open_table("rows").delete("id = 'clip1'")
    with pytest.raises(InputError, match=r"rows.lance: expected 5 rows, .* got 4: another program"):
        open_index(tmp_path / "i")
    with pytest.raises(InputError, match=r"rows.lance: expected 5 rows"):
        index.delete(["clip0"])


@pytest.mark.parametrize("change", ["add", "delete"])
def test_a_table_whose_newest_version_is_gone_is_named(tmp_path, change):
    """LanceDB goes back to the version before: an index without the clips, or with them again."""
    index = made(tmp_path / "i", 3)
    index.add(embedded(2, seed=1, prefix="late")) if change == "add" else index.delete(["clip1"])
    count = len(index)
    newest = min((tmp_path / "i" / "rows.lance" / "_versions").iterdir())  # names count down
    content = newest.read_bytes()
    newest.unlink()
    with pytest.raises(InputError, match=r"rows.lance: expected version \d+ of the rows"):
        open_index(tmp_path / "i")
    newest.write_bytes(content)
    assert open_index(tmp_path / "i").verify() == count


def test_what_is_told_of_clips_is_verified(tmp_path):
    """The same sequences under other names: the table of another person's index."""
    for name, prefix in (("one", "clip"), ("other", "film")):
        create(tmp_path / name, identity="model").add(embedded(5, prefix=prefix))
    put(tmp_path / "other" / "rows.lance", tmp_path / "one" / "rows.lance")
    index = open_index(tmp_path / "one")
    with pytest.raises(InputError, match=r"00000000, row 0: .*\('film0'\)"):
        index.verify()
    assert open_index(tmp_path / "other").verify() == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"format_version": 6}', "[" * 9999])
def test_a_damaged_header_is_one_line(tmp_path, text):
    made(tmp_path / "i", 1)
    (tmp_path / "i" / "index.json").write_text(text)
    with pytest.raises(InputError, match=r"expected (the header of )?an index"):
        open_index(tmp_path / "i")


# ---- what can be wrong -----------------------------------------------------------------------


def test_bad_input_is_one_line(tmp_path):
    index = made(tmp_path / "i", 4)
    clips = embedded(2, prefix="x")
    bad = replace(clips.audio, values=np.where(np.isnan(clips.audio.values), 0, np.nan))
    wrong = [
        (lambda: create(tmp_path / "i", identity="m"), "path where nothing is"),
        (lambda: create(tmp_path / "j", identity="m", storage="int4"), "float32, bfloat16, int8"),
        (lambda: create(tmp_path / "j", identity="m", distance=("euclid", {})), "Did you mean"),
        (lambda: open_index(tmp_path / "nothing"), "expected an index"),
        (lambda: open_index(tmp_path / "i", "other"), "model other, it was built with model"),
        (lambda: index.add(replace(clips, audio=None)), "expected audio latents, or the steps"),
        (lambda: index.add(replace(clips, audio=bad)), "clip 'x0': expected finite audio"),
        (lambda: index.add(embedded(2, width=8, prefix="y")), "width 12, got"),
        (
            lambda: index.add(replace(clips, audio_embeddings=0 * clips.audio_embeddings)),
            "positive length",
        ),
    ]
    for call, words in wrong:
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert len(open_index(tmp_path / "i")) == 4 and not (tmp_path / "j").exists()
    assert writing.segment_numbers(tmp_path / "i") == [0]


@pytest.mark.parametrize("stream", ["visual", "audio"])
def test_latents_whose_squares_overflow_are_refused(tmp_path, stream):
    """Else they would be at no distance from anything: searches would find fewer clips."""
    index = made(tmp_path / "i", 4)
    clips = embedded(3, prefix="x")
    of_stream = getattr(clips, stream)
    direction = "v2a" if stream == "visual" else "a2v"
    for factor, refused in ((1e12, False), (1e18, True), (1e30, True)):
        values = np.array(of_stream.values)
        values[1] *= factor
        large = replace(clips, **{stream: of_stream.replace(values=values)})
        if not refused:
            found = index.search(large, direction, k=4)
            assert [len(hits) for hits in found] == [4, 4, 4]
            continue
        with pytest.raises(InputError, match=r"query 'x1': expected finite .*1e\+15"):
            index.search(large, direction, k=4)
        with pytest.raises(InputError, match=rf"clip 'x1': expected finite {stream} .*1e\+15"):
            index.add(large)
    assert len(open_index(tmp_path / "i")) == 4


def test_another_format_is_refused(tmp_path):
    made(tmp_path / "i", 1)
    header = tmp_path / "i" / "index.json"
    text = header.read_text()
    own = catalog.FORMAT_VERSION
    for other in (own - 1, own + 1):
        header.write_text(text.replace(f'"format_version": {own}', f'"format_version": {other}'))
        with pytest.raises(InputError, match=f"format {own}, got {other}; build it again"):
            open_index(tmp_path / "i")


def test_lancedb_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(InputError, match=r"constraints\.txt '\.\[index\]'"):
        create(tmp_path / "i", identity="m")


# ---- storage ---------------------------------------------------------------------------------


def test_storage_rounds_as_it_says(random):
    values = random.standard_normal((9, 40)).astype(np.float32) * random.uniform(0.1, 9, (9, 1))
    values = values.astype(np.float32)
    centre = random.standard_normal(40).astype(np.float32)
    for name, dtype in encoding.DTYPES.items():
        offset = 0 if name == "float32" else centre
        stored, scales = encoding.rounded(values - offset, name)
        assert stored.dtype == dtype
        back = widen(stored) * scales[:, None] + offset
        error = np.abs(back - values)
        largest = np.abs(values - centre).max(axis=1, keepdims=True)
        bound = {"float32": 0 * largest, "bfloat16": largest / 256, "int8": largest / 253}[name]
        assert (error <= bound + 1e-6).all()
    assert (np.abs(stored).max(axis=1) == 127).all()  # each clip has its own scale


def test_constant_clips_have_a_scale():
    stored, scales = encoding.rounded(np.zeros((2, 3), np.float32), "int8")
    assert (stored == 0).all() and (scales == 1).all()


def test_every_flipped_bit_changes_the_sum(random):
    record = random.integers(0, 256, (1, 128), dtype=np.uint8)
    sums = encoding.word_sums(record)
    for bit in range(128 * 8):
        flipped = record.copy()
        flipped[0, bit // 8] ^= 1 << (bit % 8)
        assert encoding.word_sums(flipped) != sums


# ---- grids -----------------------------------------------------------------------------------


def test_interpolation_is_that_of_the_distance(random):
    for steps, begin, extent, to in ((9, 0.4, 8.1, 5), (4, 0.0, 4.0, 11), (6, -0.3, 5.9, 6)):
        values = random.standard_normal((3, steps, 5)).astype(np.float32)
        window = np.tile(np.asarray([begin, extent], np.float32), (3, 1))
        source = whole(jnp.asarray(values), None, jnp.asarray(window))
        target = whole(jnp.zeros((3, to, 5), jnp.float32))
        expected = jax.vmap(resample_like)(source, target).values
        found = scan.interpolate(values, begin, extent, to)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pictures_are_stored_on_the_grid_of_their_own_sound(tmp_path, random):
    index = create(tmp_path / "i", identity="m")
    clips, pictures = embedded(4, steps=5), embedded(4, steps=13, seed=3)
    lengths = np.asarray([13, 9, 13, 2], np.int32)
    windows = np.asarray([[0, 13], [0.5, 8.2], [0, 12.5], [0, 2]], np.float32)
    visual = Sequences(np.nan_to_num(pictures.visual.values), lengths, windows)
    index.add(replace(clips, visual=visual))
    expected = jax.jit(jax.vmap(resample_like))(
        jax.tree.map(jnp.asarray, visual), jax.tree.map(jnp.asarray, clips.audio)
    ).values
    (segment,) = index.snapshot.segments.values()
    stream = segment.streams["visual"]
    stored = stream.read("values", slice(0, 4)).reshape(4, 5, 12)
    np.testing.assert_allclose(stored, expected, atol=1e-6)
    hit = index.search(clips, "a2v", 1, "sequence")[0][0]
    by_hand = np.mean((np.asarray(expected)[:, :, :] - clips.audio.values[0]) ** 2, axis=(1, 2))
    assert hit.score == pytest.approx(by_hand.min(), rel=1e-5)
