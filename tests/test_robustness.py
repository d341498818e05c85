"""What real folders hold: every file is extracted rightly or rejected with its reason.

Each row of `FILES` is one generated file and what has to become of it; the whole folder goes
through the program once. Files that break off, decoders that hang and folders that may not be read
follow below it.
"""

import csv
import dataclasses
import os
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from films import without_pictures
from test_media import click_track, cut, flash_frames, write_video

from scav_jax.extract import backbones, manifest, program
from scav_jax.extract.backbones.plain import PlainAudio
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding import media
from scav_jax.extract.decoding.missing import TRUNCATION_S
from scav_jax.extract.decoding.usable import check_usable
from scav_jax.features import store

RATE = 16_000
LOUD = click_track(3, RATE, [1.0])
MOVING = list(flash_frames(3, [1.0]))
NOISE = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)
QUARTER_TURNS = {  # clockwise: the upper left 2 x 2 of the matrix in a track's header
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


@dataclass
class Rejected:
    """The stage and the start of the reason in rejected.csv."""

    stage: str
    reason: str


@dataclass
class Extracted:
    """What is stored: steps of picture and sound, and the seconds that the picture covers."""

    frames: int
    audio_steps: int
    seconds: float


def turned(path: Path, degrees: int) -> Path:
    """The file with a header that says: turn the picture clockwise by so much."""
    content = bytearray(path.read_bytes())
    # The picture's track comes first; 40 bytes from a version 0 header's name its matrix begins.
    at = content.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), QUARTER_TURNS[degrees], strict=True):
        content[at + place : at + place + 4] = (value * 65_536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


def fast(path: Path) -> Path:
    """A moment of sound whose header says a thousand million samples a second."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(10**9)
        file.writeframes(bytes(4000))
    return path


def sparse(path: Path) -> Path:
    """Three hours with a picture a minute, and sound in the first four seconds only."""
    minutes = range(0, 180 * 60 * 1000, 60_000)
    frames = [np.full((64, 96, 3), 20 + number, np.uint8) for number in range(len(minutes))]
    track = click_track(4, 8_000, [1.0])
    return write_video(path, frames, track, audio_rate=8_000, timestamps=list(minutes))


def surround(count: int) -> np.ndarray:
    return np.repeat(LOUD, count, axis=0)


def write(folder: Path, name: str, frames=MOVING, track=LOUD, rate=RATE, **options) -> Path:
    return write_video(folder / name, frames, track, audio_rate=rate, **options)


# name -> (how the file is made, what becomes of it). 3 s of sound are 18 steps of 0.16 s.
WHOLE = Extracted(75, 18, 3.0)
FILES = {
    "good.mp4": (write, WHOLE),
    "zero.mp4": (lambda f, n: (f / n).write_bytes(b""), Rejected("open", "empty")),
    "zeros.mp4": (
        lambda f, n: (f / n).write_bytes(bytes(100_000)),
        Rejected("open", "not a readable video"),
    ),
    "text.mp4": (
        lambda f, n: (f / n).write_text("I am not a video\n" * 400),
        Rejected("open", "not a readable video"),
    ),
    "list.mp4": (  # a play list may not open other files
        lambda f, n: (f / n).write_text("#EXTM3U\n#EXTINF:3,\ngood.mp4\n"),
        Rejected("open", "not a readable video"),
    ),
    "concat.mp4": (
        lambda f, n: (f / n).write_text("ffconcat version 1.0\nfile good.mp4\n"),
        Rejected("open", "not a readable video: it is no video, or a play list"),
    ),
    "raw.mp4": (  # MLV, whose parts lie beside it
        lambda f, n: (f / n).write_bytes(b"MLVI\x34\0\0\0v2.0" + bytes(40)),
        Rejected("open", "not a readable video: it is no video, or a play list"),
    ),
    "pipe.mp4": (lambda f, n: os.mkfifo(f / n), Rejected("open", "a pipe")),
    "mute.mp4": (lambda f, n: write(f, n, track=None), Rejected("open", "no audio stream")),
    "subtitles.mp4": (
        lambda f, n: (f / n).write_text("1\n00:00:00,000 --> 00:00:09,000\nhello\n"),
        Rejected("open", "no video stream"),
    ),
    "blind.mp4": (lambda f, n: write(f, n, frames=None), Rejected("open", "no video stream")),
    "no-frames.mp4": (lambda f, n: without_pictures(write(f, n)), Rejected("decode", "no frames")),
    "silent.mp4": (lambda f, n: write(f, n, track=0 * LOUD), Rejected("check", "silent")),
    "still.mp4": (lambda f, n: write(f, n, frames=[NOISE] * 75), Rejected("check", "still")),
    "one-frame.mp4": (lambda f, n: write(f, n, frames=MOVING[:1]), Rejected("check", "too short")),
    "sound-longer.mp4": (
        lambda f, n: write(f, n, track=click_track(5, RATE, [1.0])),
        Extracted(75, 31, 3.0),
    ),
    "sound-shorter.mp4": (
        lambda f, n: write(f, n, track=click_track(1.6, RATE, [1.0])),
        Extracted(75, 10, 3.0),
    ),
    "variable.mkv": (
        lambda f, n: write(f, n, timestamps=[40 * i + 17 * (i % 3) for i in range(75)]),
        Extracted(76, 18, 3.04),  # the last picture comes late and stays for a period
    ),
    "turned-90.mp4": (lambda f, n: turned(write(f, n), 90), WHOLE),
    "turned-180.mp4": (lambda f, n: turned(write(f, n), 180), WHOLE),
    "turned-270.mp4": (lambda f, n: turned(write(f, n), 270), WHOLE),
    "odd.mkv": (
        lambda f, n: write(
            f, n, flash_frames(3, [1.0], size=(97, 61)), size=(97, 61), pixels="yuv444p"
        ),
        WHOLE,
    ),
    "tiny.mp4": (lambda f, n: write(f, n, flash_frames(3, [1], size=(16, 2)), size=(16, 2)), WHOLE),
    "stereo.mp4": (lambda f, n: write(f, n, track=surround(2)), WHOLE),
    "surround.mkv": (lambda f, n: write(f, n, track=surround(6)), WHOLE),
    "8-khz.mp4": (lambda f, n: write(f, n, track=click_track(3, 8_000, [1.0]), rate=8_000), WHOLE),
    "96-khz.mkv": (
        lambda f, n: write(f, n, track=click_track(3, 96_000, [1.0]), rate=96_000),
        WHOLE,
    ),
    "three-hours.mkv": (lambda f, n: sparse(f / n), Rejected("decode", "too long")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, (make, _) in FILES.items():
        make(folder, name)
    return folder


@pytest.fixture(scope="module")
def extraction(folder, tmp_path_factory):
    """What the program said, its rejections by file, and the data set."""
    out = tmp_path_factory.mktemp("out") / "data"
    program.extract(folder, out, workers=2)
    with open(out / "rejected.csv", newline="") as file:
        rejected = {row["file"]: row for row in csv.DictReader(file)}
    clips = store.read(out, "all")
    return rejected, {clips[i].id: clips[i] for i in range(len(clips))}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_extracted_rightly_or_rejected_with_its_reason(extraction, name):
    rejected, clips = extraction
    expected = FILES[name][1]
    if isinstance(expected, Rejected):
        assert name not in clips
        assert rejected[name]["stage"] == expected.stage
        assert rejected[name]["reason"].startswith(expected.reason), rejected[name]
        return
    assert name not in rejected, rejected[name]
    clip = clips[name]
    begin, end = clip.visual_span
    assert len(clip.visual) == expected.frames
    assert begin == pytest.approx(0.0, abs=0.02) and end == pytest.approx(expected.seconds, abs=0.1)
    assert abs(len(clip.audio) - expected.audio_steps) <= 1


def test_every_file_is_counted_once(extraction):
    rejected, clips = extraction
    assert sorted([*rejected, *clips]) == sorted(FILES)


@pytest.mark.parametrize("degrees", QUARTER_TURNS)
def test_turned_videos_are_upright(folder, degrees):
    flat = cut(folder / "good.mp4", size=None).frames
    upright = np.rot90(flat, -degrees // 90, axes=(1, 2))
    path = folder / f"turned-{degrees}.mp4"
    np.testing.assert_array_equal(cut(path, size=None).frames, upright)
    with media.Reader(path, None, lambda frame: frame[:8, :4]) as reader:
        np.testing.assert_array_equal(reader.cut(0.0, None).frames, upright[:, :8, :4])
    small = cut(path, size=(32, 48)).frames  # as wide and high as asked, whatever the turn
    assert small.shape[1:] == (48, 32, 3)
    brightness = upright[:, :32, :32].mean(axis=(1, 2, 3))
    assert np.corrcoef(small[:, :16].mean(axis=(1, 2, 3)), brightness)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("name", "share"),  # of the loudness of white noise up to 8 kHz
    [
        ("stereo.mp4", 1.0),
        ("surround.mkv", 5 / 6),  # the mean of six channels, one of which holds deep sounds only
        ("8-khz.mp4", 1.0),
        ("96-khz.mkv", (8 / 48) ** 0.5),  # what was above 8 kHz is gone
    ],
)
def test_sound_of_any_kind_keeps_its_time_and_loudness(folder, name, share):
    mono, other = cut(folder / "good.mp4").waveform, cut(folder / name).waveform
    seen = [int(np.abs(wave).argmax()) / RATE for wave in (mono, other)]
    assert all(1.0 <= moment <= 1.03 for moment in seen)
    loudness = [np.sqrt(np.mean(w[15_500:17_000] ** 2)) for w in (mono, other)]
    assert loudness[1] / loudness[0] == pytest.approx(share, rel=0.2)  # codecs lose some


def test_clips_of_three_sparse_hours_are_told_apart_quickly(folder):
    begin = time.monotonic()
    with media.Reader(folder / "three-hours.mkv", (64, 64)) as reader:
        for start in (3_600.0, 10_000.0):
            with pytest.raises(Unusable, match="no sound"):
                reader.cut(start, start + 10.0)
    with media.Reader(folder / "three-hours.mkv", (64, 64)) as reader:
        clip = reader.cut(0.0, 10.0)
    assert len(clip.waveform) == pytest.approx(4 * RATE, abs=RATE // 10)
    assert time.monotonic() - begin < 20


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["moov-first.mp4", "a.mkv", "a.avi", "a.ts"])
def test_a_file_that_breaks_off_anywhere_never_gives_other_features(tmp_path, layout):
    """At 24 offsets: refused with a reason, or what is left is that part of the whole."""
    whole = tmp_path / layout
    options = {"options": {"movflags": "faststart"}} if layout == "moov-first.mp4" else {}
    write(tmp_path, layout, audio_codec="aac", **options)
    content = whole.read_bytes()
    reference = cut(whole)
    offsets = np.linspace(1, len(content) - 1, 24).astype(int)
    # Matroska says how long the file is, but not each stream.
    tolerance = {".mp4": TRUNCATION_S, ".mkv": 0.5, ".avi": 0.5, ".ts": 3.0}
    kept = 0
    for offset in [*offsets.tolist(), *range(len(content) - 8, len(content))]:
        path = tmp_path / f"cut-{offset}{whole.suffix}"
        path.write_bytes(content[:offset])
        try:
            clip = cut(path)
            check_usable(clip)
        except Unusable as unusable:
            assert unusable.reason and unusable.stage in ("open", "decode", "check")
            continue
        kept += 1
        lost = reference.frames_span[1] - clip.frames_span[1]
        assert 0 <= lost <= tolerance[whole.suffix] + 1e-3
        count = len(clip.frames)
        np.testing.assert_array_equal(clip.frames[: count - 1], reference.frames[: count - 1])
        heard = min(len(clip.waveform), len(reference.waveform)) - RATE // 10
        np.testing.assert_allclose(clip.waveform[:heard], reference.waveform[:heard], atol=1e-4)
    assert kept < len(offsets) or whole.suffix == ".ts"


class Sleepy(PlainAudio):
    """A side that hangs, as a decoder does, on sound that lasts about 2 s."""

    def prepare(self, waveform):
        if len(waveform) < 2.5 * RATE:
            time.sleep(60)
        return super().prepare(waveform)


def test_a_decoder_that_hangs_costs_its_own_clip_only(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    write(videos, "a.mp4")
    write(videos, "hangs.mp4", flash_frames(2, [1.0]), click_track(2, RATE, [1.0]))
    write(videos, "z.mp4")
    model = dataclasses.replace(backbones.load("plain"), audio=Sleepy())
    begin = time.monotonic()
    program.extract(videos, tmp_path / "data", backbone=model, workers=1, timeout_s=3.0)
    assert 6.0 < time.monotonic() - begin < 60  # tried twice
    assert store.read(tmp_path / "data", "all").ids == ["a.mp4", "z.mp4"]
    with open(tmp_path / "data" / "rejected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["hangs.mp4"]
    assert rows[0]["reason"].startswith("timed out: over 3 s for one clip")
    assert "rejected 1: timed out 1" in capsys.readouterr().out


def test_a_folder_that_may_not_be_read_is_listed_and_the_rest_is_done(tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    (videos / "closed").mkdir(parents=True)
    write(videos, "good.mp4")
    write(videos / "closed", "hidden.mp4")
    scandir = os.scandir

    def refuse(path):  # permissions do not bind the administrator, who may run the tests
        if isinstance(path, str) and path.endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files, unreadable, _ = manifest.find_videos(videos)
    assert files == ["good.mp4"] and unreadable[0]["file"] == "closed"
    program.extract(videos, tmp_path / "data", workers=1)
    with open(tmp_path / "data" / "rejected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["stage"]) for row in rows] == [("closed", "list")]
    assert rows[0]["reason"].startswith("no permission to read it")
    assert store.read(tmp_path / "data", "all").ids == ["good.mp4"]


def test_rates_that_nobody_records_are_refused(tmp_path):
    """They would be filtered for half a minute."""
    with (
        media.Reader(fast(tmp_path / "fast.wav"), None, kinds=("audio",)) as reader,
        pytest.raises(Unusable, match=r"sound of 1,000,000,000 samples a second"),
    ):
        reader.cut(0.0, None)
