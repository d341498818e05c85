"""Do stored features have the frames and the seconds that ffprobe counts in the same files?

    python scripts/benchmarks/ffprobe.py DATA --videos DIR [--ffprobe PATH]

For every clip of a data set that is a whole file: the frames that ffprobe decodes beside the steps
of the picture, the time from the first frame to the end of the last beside the span that is stored,
and the time of the sound beside the steps of 0.16 s (BEATs and `plain` drop what does not fill a
step). ffprobe comes with FFmpeg; it is not needed for anything else.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from scav_jax.features import store

TOLERANCE_S = 0.04  # one frame at 25 Hz


def probe(ffprobe: str, path: Path) -> dict[str, dict]:
    """What ffprobe says of the first stream of each kind, frames counted by decoding them."""
    entries = "stream=codec_type,nb_read_frames,duration"
    line = [ffprobe, "-v", "error", "-count_frames", "-show_entries", entries, "-of", "json"]
    done = subprocess.run([*line, str(path)], capture_output=True, text=True, check=True)
    streams = json.loads(done.stdout)["streams"]
    return {stream["codec_type"]: stream for stream in reversed(streams)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="what `scav extract` wrote")
    parser.add_argument("--videos", type=Path, required=True, help="the folder it was made of")
    parser.add_argument("--ffprobe", default="ffprobe")
    arguments = parser.parse_args()
    differences, steps_less, checked = [], Counter(), 0
    for split in store.splits(arguments.data):
        clips = store.read(arguments.data, split)
        for index in range(len(clips)):
            clip = clips[index]
            if clip.id != clip.source:
                continue  # a part of a file
            found = probe(arguments.ffprobe, arguments.videos / clip.source)
            picture, sound = found["video"], found["audio"]
            frames = int(picture["nb_read_frames"])
            seconds = float(picture["duration"])
            sound_s = float(sound["duration"])
            checked += 1
            steps_less[int(sound_s / 0.16) - len(clip.audio)] += 1
            span = clip.visual_span[1] - clip.visual_span[0]
            for what, got, expected, tolerance in (
                ("frames", len(clip.visual), frames, 0),
                ("seconds of picture", span, seconds, TOLERANCE_S),
                ("seconds of the clip", clip.end, max(seconds, sound_s), TOLERANCE_S),
            ):
                if abs(got - expected) > tolerance:
                    differences.append(f"{clip.id}: {what} {got:g}, ffprobe {expected:g}")
    print(f"{checked} clips: {len(differences)} differ from ffprobe by more than a frame's time")
    print("\n".join(differences))
    print("whole steps of sound that are not stored -> clips:", dict(sorted(steps_less.items())))
    sys.exit(bool(differences) or not checked)


if __name__ == "__main__":
    main()
