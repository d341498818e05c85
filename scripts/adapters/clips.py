"""What the adapters share: the clips of a data set, cut out of their videos, and the file of
embeddings that `scav evaluate --embeddings` reads. Standard library and NumPy only: adapters run in
the environments of the models that they wrap.
"""

import argparse
import csv
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np


def parse(description):
    """The arguments that every adapter has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="a data set of scav extract")
    parser.add_argument("--split", required=True)
    parser.add_argument("--out", type=Path, required=True, help="FILE.npz")
    parser.add_argument("--weights", help="of the model, where it does not fetch them itself")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def of_split(data, split):
    """(id, video, start, end) of every clip of a split."""
    videos = Path(json.loads((data / "scav.json").read_text())["videos"])
    with open(data / "clips.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    if not rows:
        raise SystemExit(f"error: {data} has no clips in split {split!r}")
    return [(r["id"], videos / r["source"], float(r["start"]), float(r["end"])) for r in rows]


def cut(video, start, end, folder, name, rate_hz=16_000):
    """A clip as a video file and as a mono sound file, by ffmpeg."""
    files = folder / f"{name}.mp4", folder / f"{name}.wav"
    common = ["ffmpeg", "-loglevel", "error", "-y", "-ss", str(start), "-t", str(end - start)]
    of_sound = ["-vn", "-ac", "1", "-ar", str(rate_hz)]
    for file, options in zip(files, (["-an"], of_sound), strict=True):
        subprocess.run([*common, "-i", str(video), *options, str(file)], check=True)
    return files


def embed(arguments, encode, *, name, parameters, training, rate_hz=16_000):
    """Encodes every clip and writes the file; `encode(videos, sounds)` -> two arrays `[b, E]`."""
    clips = of_split(arguments.data, arguments.split)
    folder = arguments.out.absolute().parent
    if not os.access(folder, os.W_OK):  # said before hours of embedding
        raise SystemExit(f"error: --out: expected a file in a folder that may be written, {folder}")
    found = {"visual": [], "audio": []}
    for first in range(0, len(clips), arguments.batch_size):
        some = clips[first : first + arguments.batch_size]
        with tempfile.TemporaryDirectory() as folder:
            files = [
                cut(video, start, end, Path(folder), str(number), rate_hz)
                for number, (_, video, start, end) in enumerate(some)
            ]
            both = encode(*map(list, zip(*files, strict=True)))
        for stream, values in zip(found, both, strict=True):
            found[stream].append(np.asarray(values, np.float32))
        print(f"{first + len(some):,} of {len(clips):,} clips", flush=True)
    np.savez(
        arguments.out,
        ids=np.array([clip[0] for clip in clips]),
        name=np.array(name),
        parameters=np.array(parameters),
        training=np.array(training),
        **{stream: np.concatenate(parts) for stream, parts in found.items()},
    )
