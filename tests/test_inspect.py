"""Inspection: counts, faults with their reasons, duplicates and leaks, the page."""

import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import noise
from test_media import click_track, flash_frames, write_video

from scav_jax.base.errors import InputError
from scav_jax.features import store
from scav_jax.inspect import __main__ as program
from scav_jax.inspect import near, page
from scav_jax.inspect.features import change, inspect_features
from scav_jax.inspect.findings import Facts, Fault, document
from scav_jax.inspect.videos import inspect_videos, is_variable

RATE = 16_000


def facts(name, split="train", source=None, **digests):
    return Facts(name, split, "x", source or f"{name}.mp4", 2.0, 25.0, digests)


def found_in(clips, faults=()):
    names = dict(kind="features", path="data", disk_bytes=1000, thresholds={}, about={})
    return document(clips, list(faults), **names)


# ---- the document ------------------------------------------------------------------------------


def test_duplicates_are_found_within_and_across_splits():
    clips = [
        facts("a", both="1", sound="1"),
        facts("b", both="1", sound="1"),
        facts("c", both="2", sound="2"),
        facts("d", "test", both="3", sound="2"),
        facts("e", "test", both="4", sound="4"),
        facts("f", both="5", sound="5"),
    ]
    found = found_in(clips)["duplicates"]
    # The pair (a, b) is equal in both, so its equal sound is not said again.
    assert found["both"] == {
        "groups": 1,
        "clips": 2,
        "across_splits": 0,
        "listed": [[["a", "train"], ["b", "train"]]],
    }
    assert found["sound"] == {
        "groups": 1,
        "clips": 2,
        "across_splits": 1,
        "listed": [[["c", "train"], ["d", "test"]]],
    }


def test_parts_are_means_over_time_whatever_the_number_of_steps():
    steps = np.arange(2.0 * near.PARTS)[:, None]
    np.testing.assert_allclose(near._parts(steps), steps.reshape(-1, 2).mean(axis=1)[:, None])
    few = steps[: near.PARTS // 2]
    np.testing.assert_allclose(near._parts(few), few.repeat(2, axis=0))
    beside = near._parts(steps[: near.PARTS + 1])  # 33 steps: a part is of two, by their shares
    assert beside[0, 0] == pytest.approx(1 / 33)


def test_a_third_clip_makes_a_weaker_group_worth_saying():
    clips = [facts("a", both="1", sound="1"), facts("b", both="1", sound="1")]
    found = found_in([*clips, facts("c", both="2", sound="1")])["duplicates"]
    assert (found["both"]["clips"], found["sound"]["clips"]) == (2, 3)


def test_clips_of_one_file_are_no_copies_of_it():
    one = [facts(name, source="one.mp4", file="1") for name in "ab"]
    assert found_in(one)["duplicates"]["file"]["groups"] == 0
    two = [*one, facts("c", source="two.mp4", file="1")]
    assert found_in(two)["duplicates"]["file"]["clips"] == 3


def sounding(random, steps=50, width=40):
    return 3.0 + np.cumsum(random.normal(size=(steps, width)), axis=0)


@pytest.mark.parametrize("few", [0.0, 1.0])
def test_near_pairs_are_those_of_each_pair_alone(random, monkeypatch, few):
    """Of more clips than a tile, with streams that lack, products one by one or all of a tile."""
    monkeypatch.setattr(near, "TILE", 4)
    monkeypatch.setattr(near, "FEW", few)
    kinds = [{"picture": sounding(random), "sound": sounding(random, 24)} for _ in range(3)]
    signatures = []
    for number in range(13):
        noisy = {w: v + 0.4 * random.normal(size=v.shape) for w, v in kinds[number % 3].items()}
        lacks = {6: "picture", 7: "sound", 9: "sound", 11: "picture", 12: "sound"}.get(number)
        signatures.append({w: near.signature(v) for w, v in noisy.items() if w != lacks})
    signatures[5] = {}
    expected = {}
    for j, other in enumerate(signatures):
        for i, one in enumerate(signatures[:j]):
            both = sorted(one.keys() | other.keys())
            shares = [
                float(one[w].change.astype(float) @ other[w].change.astype(float))
                if w in one
                and w in other
                and one[w].means.astype(float) @ other[w].means.astype(float) >= near.ALIKE
                else -1.0
                for w in both
            ]
            if both and np.mean(shares) >= near.SIMILAR[len(both)]:
                expected[i, j] = min(np.mean(shares), 1.0)
    found = near.near_pairs(signatures)
    assert [pair[2] for pair in found] == sorted((pair[2] for pair in found), reverse=True)
    assert {pair[:2]: pair[2] for pair in found} == pytest.approx(expected, abs=1e-5)
    assert len(expected) == 6 and (9, 12) in expected  # neither has sound


def test_copies_that_were_encoded_again_are_near(random, monkeypatch):
    """By how they change, in both streams; neither a common constant nor one stream is enough."""
    streams = [{"picture": sounding(random), "sound": sounding(random, 24)} for _ in range(5)]
    again = {w: v + 0.1 * random.normal(size=v.shape) for w, v in streams[1].items()}
    faster = {"picture": again["picture"][::2], "sound": again["sound"]}  # another frame rate
    half = {"picture": streams[2]["picture"], "sound": sounding(random, 24)}
    still = [{w: np.full((20, 40), 3.0 + k) for w in ("picture", "sound")} for k in (0, 0)]
    signatures = [
        {w: s for w, v in one.items() if (s := near.signature(v)) is not None}
        for one in (*streams, again, faster, half, *still)
    ]
    pairs = near.near_pairs(signatures)
    assert sorted(pair[:2] for pair in pairs) == [(1, 5), (1, 6), (5, 6)]
    assert all(0.5 <= similarity <= 1.0 for *_, similarity in pairs)

    def clip(number, split, source, **digests):
        return Facts(f"c{number}", split, "", source, 2.0, 25.0, digests, False, signatures[number])

    clips = [
        clip(0, "train", "x"),
        clip(1, "train", "y"),
        clip(5, "test", "z"),
        clip(6, "test", "z"),
    ]
    found = found_in(clips)
    close = found["near_duplicates"]
    assert (close["pairs"], close["across_splits"]) == (2, 2)  # c5 and c6 are of one file
    assert close["listed"][0][:4] in (
        ["c1", "train", "c5", "test"],
        ["c1", "train", "c6", "test"],
    )
    assert "LEAK: near-duplicates across splits: 2 pairs" in page.text(found)
    assert "pairs, those across" not in page.html(found)  # all are named
    monkeypatch.setattr(page, "SHOWN", 1)
    shown = page.html(found_in([*clips, facts("d", "test", source="x"), facts("e", source="z")]))
    assert "<p>1 of 2 pairs, those across splits first; --json has all.</p>" in shown
    assert "Sources in several splits (2; the first 1, --json has all)" in shown
    assert len(close["listed"]) == 2
    equal = [clip(1, "train", "y", both="1"), clip(5, "test", "z", both="1")]
    assert found_in(equal)["near_duplicates"]["pairs"] == 0  # said already


def test_sources_in_several_splits_are_leaks():
    clips = [facts("a", source="v"), facts("b", "test", source="v"), facts("c"), facts("d", "test")]
    clips += [facts("e", source="u"), facts("f", "test", source="u")]
    found = found_in(clips)
    both = ["test", "train"]
    assert found["shared_sources"] == {"count": 2, "listed": [["u", both], ["v", both]]}
    assert "LEAK: sources with clips in several splits: 2, as u in test and train" in page.text(
        found
    )
    assert "LEAK" not in page.text(found_in([facts("a"), facts("d", "test")]))


def test_faults_are_counted_by_stage_and_category():
    faults = [
        Fault("x", "train", "check", "silent: its peak is 0"),
        Fault("y", "test", "check", "silent: its peak is 1e-5"),
        Fault("z", "", "open", "no audio stream"),
    ]
    found = found_in([facts("a")], faults)
    assert [(f["stage"], f["reason"], f["clips"]) for f in found["faults"]] == [
        ("check", "silent", 2),
        ("open", "no audio stream", 1),
    ]
    assert found["faults"][0]["listed"][1] == ["y", "silent: its peak is 1e-5"]
    assert found["splits"]["train"]["faults"] == 1
    assert found["splits"]["test"] == dict(clips=0, hours=0, labels=0, sources=0, faults=1)


def test_nothing_usable_is_shown_all_the_same():
    found = found_in([], [Fault("x", "train", "check", "silent")])
    assert "0 usable clips" in page.text(found)
    assert "silent" in page.html(found)


@pytest.mark.parametrize("times, variable", [([], False), ([0, 1], False), (range(9), False)])
def test_even_frames_are_not_variable(times, variable):
    assert is_variable(list(times)) is variable
    # Decoding order does not matter, a single odd interval among many neither.
    reordered = [40 * k + time for k in range(30) for time in (0, 30, 10, 20)]
    assert not is_variable(reordered)
    assert not is_variable([*range(0, 2000, 10), 2050])
    assert is_variable([0, 10, 20, 50, 60, 100])


# ---- a data set --------------------------------------------------------------------------------


def make_clip(random, number, source=None, frames=50, **changes):
    about = {"source": source or f"{number}.mp4", "label": "<drum>" if number % 2 else "bell"}
    about |= {"visual_span": (0.04, 0.04 + frames / 25), "audio_span": (0.0, 12 * 0.16)}
    about |= {"start": 0.0, "end": frames / 25}
    return noise(random, number, (frames, 12), (5, 7), **about | changes)


@pytest.fixture
def data(tmp_path, random):
    clips = [make_clip(random, number) for number in range(6)]
    clips.append(make_clip(random, 6, visual=clips[0].visual, audio=clips[0].audio))
    clips.append(make_clip(random, 7, audio=clips[1].audio, frames=100))
    still = clips[2].visual[:1].repeat(50, axis=0)
    clips.append(make_clip(random, 8, visual=still))
    splits = ["train"] * 5 + ["test"] * 4
    rejected = [
        dict(file=f"{n}.mp4", start="0", end="", id=f"{n}", stage="check", reason=f"silent: {n}")
        for n in range(3)
    ]
    out = tmp_path / "data"
    pairs = list(zip(splits, clips, strict=True))
    store.write(pairs, out, fingerprint={"rate_hz": 1}, videos="v", rejected=rejected)
    return out


def test_a_data_set_is_inspected(data):
    found = inspect_features(data)
    assert json.loads(json.dumps(found)) == found
    assert (found["clips"], found["sources"], found["kind"]) == (9, 9, "features")
    assert found["hours"] == pytest.approx((8 * 2 + 4) / 3600)
    assert found["splits"]["train"]["clips"] == 5 and found["splits"]["test"]["labels"] == 2
    assert found["labels"] == {"bell": {"train": 3, "test": 2}, "<drum>": {"train": 2, "test": 2}}
    assert next(iter(found["labels"])) == "bell"  # most clips
    assert found["frame_rate"]["common"] == [[25.0, 9]]
    lengths = found["seconds"]
    assert [lengths[key] for key in ("least", "median", "most")] == [2.0, 2.0, 4.0]
    assert lengths["mean"] == pytest.approx(20 / 9)
    assert lengths["common"] == [[2.0, 8], [4.0, 1]]
    assert lengths["histogram"]["counts"] == [8, *[0] * 22, 1]
    assert [(f["reason"], f["clips"]) for f in found["faults"]] == [
        ("silent", 3),
        ("constant picture", 1),
    ]
    copies = found["duplicates"]
    assert copies["picture and sound"]["listed"] == [[["clip 0", "train"], ["clip 6", "test"]]]
    assert copies["sound"]["listed"] == [[["clip 1", "train"], ["clip 7", "test"]]]
    assert copies["picture"]["groups"] == 0
    assert found["disk"]["bytes"] == sum(file.stat().st_size for file in data.iterdir())


def test_a_clip_that_cannot_be_read_is_a_fault(data, monkeypatch):
    read = store.Split.__getitem__

    def broken(self, index):
        if self.ids[index] == "clip 3":
            raise InputError("clip 'clip 3': spoilt")
        return read(self, index)

    monkeypatch.setattr(store.Split, "__getitem__", broken)
    found = inspect_features(data)
    assert found["clips"] == 8
    assert ["clip 3", "unreadable: clip 'clip 3': spoilt"] in [
        example for fault in found["faults"] for example in fault["listed"]
    ]


def test_what_does_not_change_is_constant(random):
    values = random.standard_normal((40, 6)).astype(np.float16)
    assert change(values) > 0.9
    shifted = 30 + 0.1 * values  # moves by 0.3 % of its size
    assert change(shifted) == pytest.approx(0.1 / 30, rel=0.2)
    assert change(np.zeros((4, 3), np.float16)) == 0.0


# ---- a folder of videos ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")

    def video(name, seconds=2, seed=0, frames=None, track=None, **options):
        frames = frames if frames is not None else flash_frames(seconds, [0.48], seed=seed)
        track = track if track is not None else click_track(seconds, RATE, [0.5], seed=seed)
        return write_video(folder / name, list(frames), track, audio_rate=RATE, **options)

    video("good.mp4", 3, seed=1)
    shutil.copy(folder / "good.mp4", folder / "copy.mp4")
    video("other.mp4", seed=2)
    video("silent.mp4", track=np.zeros((1, 2 * RATE), np.float32))
    noise = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    video("still.mp4", frames=[noise] * 50)
    video("short.mp4", frames=list(flash_frames(1, [0.1]))[:10], track=click_track(1, RATE, [0.1]))
    write_video(folder / "mute.mp4", list(flash_frames(2, [0.5])), None, audio_rate=RATE)
    (folder / "text.mp4").write_text("hello, I am not a video\n" * 100)
    (folder / "notes.txt").write_text("a note")
    (folder / "list.csv").write_text(
        "file,start,end,id,label,split\n"
        "good.mp4,0,1.2,one,drum,train\ngood.mp4,0,0.3,brief,drum,train\n"
        "good.mp4,1.2,2.8,two,drum,test\n"
        "copy.mp4,0,1.2,three,bell,test\nabsent.mp4,,,four,bell,test\n"
    )
    return folder


def test_a_folder_is_inspected(videos):
    found = inspect_videos(videos, workers=1)
    assert (found["clips"], found["kind"]) == (3, "videos")
    assert {(f["stage"], f["reason"]): f["clips"] for f in found["faults"]} == {
        ("check", "silent"): 1,
        ("check", "still"): 1,
        ("check", "too short"): 1,
        ("open", "no audio stream"): 1,
        ("open", "not a readable video"): 1,
    }
    assert found["duplicates"]["file"]["listed"] == [[["copy.mp4", "all"], ["good.mp4", "all"]]]
    assert found["duplicates"]["sound"]["groups"] == found["duplicates"]["picture"]["groups"] == 0
    assert found["frame_rate"]["median"] == 25 and found["variable_frame_rate"] == 0
    assert found["seconds"]["most"] == pytest.approx(3, abs=0.1)
    size = sum(file.stat().st_size for file in videos.glob("*.mp4"))
    assert found["disk"]["bytes"] == size
    assert found["about"]["files passed over"] == {".txt": 1, ".csv": 1}


def test_a_list_shows_leaks(videos, tmp_path, capsys):
    json_file, html_file = tmp_path / "out" / "found.json", tmp_path / "out" / "page.html"
    arguments = ["--videos", videos, "--clips", videos / "list.csv", "--workers", 1]
    program.main([str(a) for a in [*arguments, "--json", json_file, "--html", html_file]])
    said = capsys.readouterr().out
    found = json.loads(json_file.read_text())
    # A clip that is too short says nothing of those after it.
    assert found["clips"] == 3 and [one["clips"] for one in found["faults"]] == [1, 1]
    assert [one["reason"] for one in found["faults"]] == ["too short", "missing"]
    assert found["shared_sources"]["listed"] == [["good.mp4", ["test", "train"]]]
    assert found["duplicates"]["file"]["across_splits"] == 1
    assert "LEAK: groups of equal file across splits: 1" in said and "missing" in said
    assert "LEAK: groups of equal picture" not in said  # within the equal files
    text = html_file.read_text()
    assert "LEAK: groups of equal file across splits: 1" in text


# ---- the page and the program ------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are closed in order, and what would be fetched."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_whole_document(data, tmp_path, capsys):
    program.main([str(data), "--html", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert "9 usable clips" in said and "picture and sound" in said and "variable" not in said
    assert "test: CAUTION: N = 4 is few: R@1 may be off by 49 points" in said
    text = (tmp_path / "page.html").read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.sources) == 2 and all(s.startswith("data:image") for s in parsed.sources)
    assert "<script" not in text and "<drum>" not in text
    for words in ("usable clips", "constant picture", "Splits", "Labels", "1% of their own size"):
        assert words in text
    assert "most often: silent" in text and re.search(r"group 1\b.*clip 0 \(train\)", text, re.S)
    assert re.search(r"seconds +2 +2 +2\.222 +4 +2 x 8, 4 x 1\n", said)
    assert [page._size(size) for size in (999, 1000, 2.5e6, 3e12)] == [
        "999 B",
        "1 kB",
        "2.5 MB",
        "3 TB",
    ]
    assert (page._short("a" * 99)[-2:], page._short("$a")) == ("a…", r"\$a")


def test_wrong_calls_are_one_line(data, tmp_path):
    for arguments, message in [
        ([], "one of the two"),
        ([data, "--videos", data], "one of the two"),
        ([data, "--workers", 2], "with --videos only"),
        (["--videos", data, "--workers", 0], "1 or more"),
        ([tmp_path / "absent"], "does not exist"),
        (["--videos", tmp_path / "absent"], "is not one"),
    ]:
        with pytest.raises(InputError, match=message):
            program.main([str(argument) for argument in arguments])


# ---- scav doctor -------------------------------------------------------------------------------


def test_doctor_names_what_is_missing_and_nobody(monkeypatch, tmp_path, capsys):
    from importlib import metadata

    from scav_jax.inspect.doctor import __main__ as doctor

    required = ["numpy>=2", "pillow>=9999", "no-such-package>=1", 'absent-too>=1; extra == "web"']
    required += ['pytest>=1; extra == "ray"', 'absent-three>=1; extra == "ray"']
    required += [f'{name}; extra == "web"' for name in ("numpy", "scav-jax")]  # say nothing of it
    monkeypatch.setattr(metadata, "requires", lambda _: required)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert doctor.main(["--quick", "--weights", f"clip={tmp_path / 'none'}"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^numpy +[\d.]+$", told, re.M)
    assert re.search(r"^pillow +[\d.]+ +EXPECTED >=9999$", told, re.M)
    assert re.search(r"^no-such-package +MISSING: no-such-package>=1$", told, re.M)
    assert re.search(r"^\[web\] +not installed: absent-too$", told, re.M)  # an extra may be absent
    assert re.search(r"^absent-three +MISSING", told, re.M)  # but not half of it
    assert "h264" in told and "libavcodec" in told and "GiB free in ~" in told
    assert str(tmp_path) not in told
    last = told.splitlines()[-1]
    assert last == "4 to look at: pillow, no-such-package, absent-three, clip"


def test_doctor_tells_the_memory_of_devices_and_codecs_that_are_absent(monkeypatch):
    import av
    import jax

    from scav_jax.inspect.doctor import machine

    def device(**stats):
        told = dict(platform="gpu", id=1, device_kind="Card", memory_stats=lambda: stats or None)
        return SimpleNamespace(**told)

    monkeypatch.setattr(jax, "devices", lambda: [device(bytes_limit=3 << 30), device()])
    assert machine.devices() == [("gpu 1", "Card, 3.0 GiB", "ok"), ("gpu 1", "Card", "ok")]
    monkeypatch.setattr(av, "codecs_available", {*machine.CODECS} - {"h264"})
    assert machine.decoders()[-1][1:] == (", ".join(machine.CODECS[1:]), "MISSING: h264")


@pytest.mark.parametrize("home", ["/", "/absent", "~"])  # "~": nobody says where it is
def test_doctor_is_of_use_without_a_home(home, monkeypatch, capsys):
    import huggingface_hub

    from scav_jax.inspect.doctor import __main__ as doctor
    from scav_jax.inspect.doctor import machine

    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(os.path, "expanduser", lambda _: home)
    cache = Path("~/hub" if home == "~" else "/absent/hub").expanduser  # as the hub's library asks
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(cache()))
    for part in ("packages", "devices", "decoders"):
        monkeypatch.setattr(machine, part, list)
    code = doctor.main(["--quick"])
    told = capsys.readouterr().out
    assert sys.executable in told
    assert (code, "home" in told.splitlines()[-1]) == ((0, False) if home == "/" else (1, True))
