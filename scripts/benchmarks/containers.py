"""One film in every container, shifted, uneven, piped, joined: do we decode what FFmpeg does?

    python scripts/benchmarks/containers.py [--ffmpeg PATH] [--only WORD ...] [--out FILE.json]

A film of 6 s flashes and clicks at 3.0 s. It is written to each container with its timestamps
shifted and with a longer picture or sound; read as the file it is, as a muxer leaves it that wrote
to a pipe (it cannot go back to fill in lengths) and through one, and as two copies joined byte by
byte. FFmpeg's own program says when every frame and sample is shown; each flash and each click must
land within a frame (40 ms) of that, or the file must be rejected with its reason.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import wave
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from scav_jax.base.containers import saved
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding import media
from scav_jax.extract.decoding.usable import check_usable

FRAME_S = 0.04
FPS, SIZE, RATE = 25, (96, 64), 48_000
MOMENT, SECONDS, MORE = 3.0, 6.0, 3.0
H264 = "-c:v libx264 -preset ultrafast -crf 30 -g 25 -pix_fmt yuv420p"
B_FRAMES = "-c:v libx264 -preset veryfast -crf 30 -g 25 -bf 2 -pix_fmt yuv420p"
AAC = "-c:a aac -b:a 64k"
MPEG4 = "-c:v mpeg4 -qscale:v 5 -g 25"
# name -> (suffix, muxer, options)
CONTAINERS = {
    "mp4": ("mp4", "mp4", f"{B_FRAMES} {AAC}"),
    "mp4-fragments": ("mp4", "mp4", f"{H264} {AAC} -movflags frag_keyframe+empty_moov"),
    "mp4-no-edits": ("mp4", "mp4", f"{B_FRAMES} {AAC} -use_editlist 0"),
    "mov": ("mov", "mov", f"{H264} -c:a pcm_s16le"),
    "mkv": ("mkv", "matroska", f"{B_FRAMES} {AAC}"),
    "webm": ("webm", "webm", "-c:v libvpx -b:v 200k -deadline realtime -c:a libopus -b:a 48k"),
    "avi": ("avi", "avi", f"{MPEG4} -c:a libmp3lame -b:a 64k"),
    "ts": ("ts", "mpegts", f"{B_FRAMES} {AAC}"),
    "m2ts": ("m2ts", "mpegts", f"{H264} -c:a ac3 -b:a 96k -mpegts_m2ts_mode 1"),
    "flv": ("flv", "flv", f"{H264} {AAC}"),
    "ogv": ("ogv", "ogg", "-c:v libtheora -q:v 6 -g 25 -c:a libvorbis -q:a 3"),
    "mpg": ("mpg", "mpeg", "-c:v mpeg2video -qscale:v 5 -g 25 -bf 2 -c:a mp2 -b:a 96k"),
    "vob": ("vob", "vob", "-c:v mpeg2video -qscale:v 5 -g 25 -c:a ac3 -b:a 96k"),
    "wmv": ("wmv", "asf", "-c:v wmv2 -qscale:v 5 -g 25 -c:a wmav2 -b:a 64k"),
    "3gp": ("3gp", "3gp", f"-c:v mpeg4 -qscale:v 5 -g 25 -pix_fmt yuv420p {AAC}"),
    "nut": ("nut", "nut", f"{B_FRAMES} {AAC}"),
}
OFFSETS = {"none": 0.0, "5 s": 5.0, "50,000 s": 50_000.0, "negative": -5.0}
LENGTHS = {
    "equal": (SECONDS, SECONDS),
    "longer sound": (SECONDS, SECONDS + MORE),
    "longer picture": (SECONDS + MORE, SECONDS),
}
WAYS = ("file", "pipe", "joined")


@dataclass(frozen=True)
class Cell:
    """One file, and what became of it.

    Attributes:
      container, offset, lengths, way: which one.
      verdict: "right", "rejected", "WRONG", or "not made" where FFmpeg's muxer refuses.
      words: the reason, or what differs.
      flashes, clicks: seconds, ours.
      true_flashes, true_clicks: FFmpeg's.
    """

    container: str
    offset: str
    lengths: str
    way: str
    verdict: str
    words: str = ""
    flashes: tuple[float, ...] = ()
    clicks: tuple[float, ...] = ()
    true_flashes: tuple[float, ...] = ()
    true_clicks: tuple[float, ...] = ()


# ---- the films --------------------------------------------------------------------------------


def write_sources(folder: Path) -> None:
    """Raw picture and sound of both lengths; they flash and click at `MOMENT`."""
    random = np.random.default_rng(0)
    width, height = SIZE
    texture = random.integers(0, 60, (height, 2 * width, 3), dtype=np.uint8)
    for seconds in (SECONDS, SECONDS + MORE):
        with open(folder / f"{seconds:g}.rgb", "wb") as file:
            for index in range(round(seconds * FPS)):
                frame = texture[:, index % width : index % width + width].copy()
                frame[:] = 255 if index == round(MOMENT * FPS) else frame
                file.write(frame.tobytes())
        track = 0.003 * random.standard_normal(round(seconds * RATE))
        begin, count = round(MOMENT * RATE), round(0.02 * RATE)
        track[begin : begin + count] += 0.5 * random.standard_normal(count)
        with wave.open(str(folder / f"{seconds:g}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((track.clip(-1, 1) * 32767).astype("<i2").tobytes())


def write_film(
    ffmpeg: str, sources: Path, path: Path, container: str, offset: str, lengths: str, way: str
) -> None:
    """Raises `CalledProcessError` where the muxer does not take it."""
    _, muxer, options = CONTAINERS[container]
    picture, sound = LENGTHS[lengths]
    width, height = SIZE
    shift = OFFSETS[offset]
    line = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {FPS} -i {sources}/{picture:g}.rgb"
    line += f" -i {sources}/{sound:g}.wav -map 0:v -map 1:a {options} -flags:v +bitexact"
    line += " -threads 1 -muxdelay 0 -muxpreload 0"
    if shift:
        line += f" -output_ts_offset {shift} -avoid_negative_ts disabled"
    target = "pipe:1" if way == "pipe" else str(path)
    command = [ffmpeg, "-v", "error", "-y", *line.split(), "-f", muxer, target]
    done = subprocess.run(command, check=True, capture_output=True)
    if way == "pipe":
        path.write_bytes(done.stdout)
    elif way == "joined":
        path.write_bytes(2 * path.read_bytes())


# ---- what is decoded --------------------------------------------------------------------------


def of_ffmpeg(ffmpeg: str, path: Path, folder: Path) -> tuple[list[float], list[float]]:
    """When FFmpeg's program shows the flashes and plays the clicks, in seconds."""
    pictures, sounds = folder / "pictures", folder / "sounds"
    shown, heard = folder / "pictures.txt", folder / "sounds.txt"

    def run(options: str, beside: str) -> None:
        """Of one stream: lines of two would be mixed. Both make the file's beginning."""
        command = [ffmpeg, "-v", "error", "-nostdin", "-y", "-i", str(path), *options.split()]
        command += ["-map", beside, "-f", "null", "-"]
        subprocess.run(command, capture_output=True, check=True)

    # Times go to files of their own: what it logs is mixed with what its other threads say.
    grey = f"scale=8:8,format=gray,metadata=add:key=of:value=frame,metadata=print:file={shown}"
    run(f"-map 0:v:0 -vf {grey} -fps_mode passthrough -f rawvideo {pictures}", "0:a:0")
    times = [float(t) for t in re.findall(r"pts_time:(-?[\d.]+)", shown.read_text())]
    levels = np.fromfile(pictures, np.uint8)
    levels = levels[: len(levels) // 64 * 64].reshape(-1, 64).mean(axis=1)
    flashes = [time for time, level in zip(times, levels, strict=True) if level > 180]
    mono = "-map 0:a:0 -ac 1 -c:a pcm_f32le -f"
    run(f"{mono} f32le {sounds} {mono} framecrc {heard}", "0:v:0")
    base = re.search(r"#tb 0: (\d+)/(\d+)", heard.read_text())
    lines = re.findall(r"^0, +-?\d+, +(-?\d+), +\d+, +(\d+),", heard.read_text(), re.MULTILINE)
    rate = int(re.search(r"#sample_rate 0: (\d+)", heard.read_text())[1])
    samples, clicks, at = np.fromfile(sounds, "<f4"), [], 0
    for ticks, size in lines:
        part = samples[at : at + int(size) // 4]
        at += len(part)
        loud = np.flatnonzero(np.abs(part) > 0.25)
        if len(loud):
            clicks.append(int(ticks) * int(base[1]) / int(base[2]) + loud[0] / rate)
    assert at == len(samples), "a line of each frame"
    return _apart(flashes), _apart(clicks)


def _apart(moments: list[float]) -> list[float]:
    """The first of each group that lies within 0.2 s."""
    kept: list[float] = []
    for moment in sorted(moments):
        if not kept or moment - kept[-1] > 0.2:
            kept.append(moment)
    return kept


def of_ours(path: Path) -> tuple[list[float], list[float]]:
    """The same of our decoder; `Unusable` where it rejects."""
    with media.Reader(path, SIZE) as reader:
        clip = reader.cut(0.0, None)
    check_usable(clip)
    begin, end = clip.frames_span
    period = (end - begin) / len(clip.frames)
    levels = clip.frames.mean(axis=(1, 2, 3))
    flashes = [begin + index * period for index in np.flatnonzero(levels > 180)]
    loud = np.flatnonzero(np.abs(clip.waveform) > 0.25) / media.RATE_HZ
    return _apart(flashes), _apart(loud.tolist())


def read_through_fifo(path: Path, fifo: Path) -> tuple[list[float], list[float]]:
    """`of_ours` of a named pipe into which another thread writes the file."""
    os.mkfifo(fifo)

    def write() -> None:
        with open(fifo, "wb") as file:
            file.write(path.read_bytes())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        with saved(fifo) as file:
            return of_ours(file)
    finally:
        fifo.unlink()


# ---- the table --------------------------------------------------------------------------------


def judge(ffmpeg: str, sources: Path, folder: Path, key: tuple[str, str, str, str]) -> Cell:
    container, _, _, way = key
    path = folder / f"film.{CONTAINERS[container][0]}"
    try:
        _write(ffmpeg, sources, path, key)
        true = of_ffmpeg(ffmpeg, path, folder)
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode("utf8", "replace").strip().splitlines()
        return Cell(*key, "not made", words[-1] if words else "")
    try:
        ours = read_through_fifo(path, folder / "fifo") if way == "pipe" else of_ours(path)
    except Unusable as unusable:
        return Cell(*key, "rejected", unusable.reason)
    words = []
    for what, got, expected in zip(("flashes", "clicks"), ours, true, strict=True):
        same = len(got) == len(expected)
        if not same or any(abs(a - b) > FRAME_S for a, b in zip(got, expected, strict=True)):
            words.append(f"{what} at {_shown(got)}, FFmpeg's at {_shown(expected)}")
    verdict = "WRONG" if words else "right"
    return Cell(*key, verdict, "; ".join(words), *map(tuple, (*ours, *true)))


def _write(ffmpeg: str, sources: Path, path: Path, key: tuple[str, str, str, str]) -> None:
    try:
        write_film(ffmpeg, sources, path, *key)
    except subprocess.CalledProcessError:
        if key[3] != "pipe":
            raise
        write_film(ffmpeg, sources, path, *key[:3], "file")  # then it is read through one only


def _shown(moments: list[float]) -> str:
    return " ".join(f"{moment:.3f}" for moment in moments) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ffmpeg", default="ffmpeg", help="FFmpeg's program")
    parser.add_argument("--only", nargs="+", help="cells with these words in their names")
    parser.add_argument("--out", type=Path, help="a JSON of all cells")
    options = parser.parse_args()
    cells = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder)
        for key in itertools.product(CONTAINERS, OFFSETS, LENGTHS, WAYS):
            if options.only and not all(word in key for word in options.only):
                continue
            cells.append(judge(options.ffmpeg, folder, folder, key))
            print(f"{', '.join(key):48} {cells[-1].verdict:9} {cells[-1].words}", flush=True)
    counts = Counter(cell.verdict for cell in cells)
    print(f"{len(cells)} cells: {dict(counts)}")
    if options.out:
        rows = [asdict(cell) for cell in cells]
        options.out.write_text(json.dumps({"counts": counts, "cells": rows}, indent=1))
    sys.exit(bool(counts["WRONG"]))


if __name__ == "__main__":
    main()
