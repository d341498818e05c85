"""How fast are features read, and what disk keeps a batch of 1,024 fed?

    python scripts/benchmarks/reading.py [--clips 256] [--folder DIR] [--out FILE.json]

Data of VGGSound's shapes are generated: whole clips (300 visual steps of 768 and 62 audio steps of
6144, float16) and their copies with the visual steps at the audio steps
(`scav datasets resample`). Measured, cold (the files are dropped from the page cache)
and warm: the files from front to back, records in random order as bytes, clips (decoded, checked),
and training batches (read, trimmed, widened to float32, padded) on 0 to 4 read threads.

Then what VGGSound's 153,000 training clips need: bytes in all, and for each number of steps a
second the speed of the disk as long as the set does not lie in memory, and the cores that making
the batches takes at the measured speed; and how many steps a second usual disks can feed.
`--folder` says which disk is measured.
"""

import argparse
import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scav_jax.base.errors import InputError, run_program
from scav_jax.base.files import write_json
from scav_jax.base.progress import progress_bar
from scav_jax.features import batches, store
from scav_jax.features.clip import Clip
from scav_jax.features.resampled import write_resampled
from scav_jax.retrieval.results import aligned

VISUAL_STEPS, AUDIO_STEPS = 300, 62  # 10 s at 30 frames a second
VISUAL_WIDTH, AUDIO_WIDTH = 768, 6144
TRAINING_CLIPS = 153_000
BATCH = 1024
STEPS_PER_S = (0.5, 1.0, 2.0)
# What such things usually give when large records are read; measure yours with --folder.
DISKS_BYTES_PER_S = {"hard disk": 0.2e9, "SATA SSD": 0.5e9, "10 Gbit/s": 1.1e9, "NVMe": 3.0e9}
READ_THREADS = (0, 1, 2, 4)  # 0: in the thread that asks
NAMES = {"whole": "whole clips", "copies": "visual_to_audio copies"}


def generated(clips: int) -> Iterator[tuple[str, Clip]]:
    """Clips of random numbers; no two are alike, so nothing can be cached or compressed."""
    random = np.random.default_rng(0)

    def stream(steps: int, width: int) -> np.ndarray:
        return random.standard_normal((steps, width), np.float32).astype(np.float16)

    with progress_bar("generating", clips, "clip") as bar:
        for number in range(clips):
            yield (
                "train",
                Clip(
                    id=f"clip {number}",
                    visual=stream(VISUAL_STEPS, VISUAL_WIDTH),
                    visual_span=(0.0, 10.0),
                    audio=stream(AUDIO_STEPS, AUDIO_WIDTH),
                    audio_span=(0.0, AUDIO_STEPS * 0.16),
                    source=f"{number}.mp4",
                    start=0.0,
                    end=10.0,
                ),
            )
            bar.update()


def record_files(data: Path) -> list[Path]:
    return sorted(data.glob("*array_record*"))


def drop_from_cache(data: Path) -> bool:
    """Makes the next read come from the disk; False where the system has no way to ask for it."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in record_files(data):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return True


# ---- ways to read, each gives the number of clips -----------------------------------------------


def read_files(data: Path) -> int:
    """The files from front to back: the disk itself."""
    buffer = bytearray(2**23)
    for path in record_files(data):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return len(store.read(data, "train"))


def read_records(data: Path) -> int:
    """Records as bytes, in random order, one at a time."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource([str(path) for path in record_files(data)]) as source:
        for number in np.random.default_rng(1).permutation(len(source)).tolist():
            source[number]
        return len(source)


def read_clips(data: Path) -> int:
    """Clips, decoded and checked, in random order."""
    split = store.read(data, "train")
    for number in np.random.default_rng(1).permutation(len(split)).tolist():
        split[number]
    return len(split)


def read_batches(data: Path, batch_size: int, threads: int) -> int:
    """An epoch of training batches."""
    split = store.read(data, "train")
    made = iter(
        batches.training_batches(split, batch_size=batch_size, seed=0, read_threads=threads)
    )
    count = len(split) // batch_size
    for _ in range(count):
        next(made)
    if hasattr(made, "close"):
        made.close()
    return count * batch_size


def measure(data: Path, name: str, batch_size: int, repeats: int) -> list[dict]:
    ways = {
        "files, front to back": read_files,
        "records, random": read_records,
        "clips, random": read_clips,
    }
    for threads in READ_THREADS:
        label = "batches, in the loop" if threads == 0 else f"batches, {threads} threads"
        ways[label] = lambda data, threads=threads: read_batches(data, batch_size, threads)
    size = sum(path.stat().st_size for path in record_files(data))
    clip_bytes = size / len(store.read(data, "train"))
    read_batches(data, batch_size, 1)  # imports and first uses are not measured
    rows = []
    for way, call in ways.items():
        for state in ("cold", "warm"):
            times = []
            for _ in range(repeats):
                if state == "cold" and not drop_from_cache(data):
                    break
                begin, cpu = time.perf_counter(), time.process_time()
                clips = call(data)
                times.append((time.perf_counter() - begin, time.process_time() - cpu, clips))
            if times:
                seconds, cpu_s, clips = sorted(times)[len(times) // 2]
                rate = clips / seconds
                rows.append(
                    dict(
                        data=name,
                        way=way,
                        state=state,
                        clips_per_s=rate,
                        bytes_per_s=rate * clip_bytes,
                        cpu_s_per_clip=cpu_s / clips,
                    )
                )
    return rows


# ---- what training needs -----------------------------------------------------------------------


def needs(rows: list[dict], clip_bytes: dict[str, float]) -> list[dict]:
    """For each kind of data and pace: the disk, and the cores that make the batches."""
    found = []
    for name, size in clip_bytes.items():
        warm = [r for r in rows if r["data"] == name and r["state"] == "warm"]
        core_s = next(r["cpu_s_per_clip"] for r in warm if r["way"] == "batches, in the loop")
        for pace in STEPS_PER_S:
            clips = BATCH * pace
            found.append(
                dict(
                    data=name,
                    steps_per_s=pace,
                    clips_per_s=clips,
                    disk_bytes_per_s=clips * size,
                    cores=clips * core_s,
                    set_bytes=TRAINING_CLIPS * size,
                    epoch_s=TRAINING_CLIPS / clips,
                )
            )
    return found


def speed_table(rows: list[dict]) -> str:
    lines = [["data", "read as", "", "clips/s", "GB/s", "CPU ms/clip"]]
    for r in rows:
        figures = f"{r['clips_per_s']:,.0f}", f"{r['bytes_per_s'] / 1e9:.2f}"
        cpu = f"{1e3 * r['cpu_s_per_clip']:.2f}"
        lines.append([NAMES[r["data"]], r["way"], r["state"], *figures, cpu])
    return "\n".join(aligned(lines, words=3))


def needs_table(rows: list[dict]) -> str:
    lines = [["data", "steps/s", "clips/s", "disk, GB/s", "cores", "epoch, s", "set, GB"]]
    for r in rows:
        lines.append(
            [
                NAMES[r["data"]],
                f"{r['steps_per_s']:g}",
                f"{r['clips_per_s']:,.0f}",
                f"{r['disk_bytes_per_s'] / 1e9:.2f}",
                f"{r['cores']:.1f}",
                f"{r['epoch_s']:,.0f}",
                f"{r['set_bytes'] / 1e9:,.0f}",
            ]
        )
    return "\n".join(aligned(lines, words=1))


def disks_table(clip_bytes: dict[str, float]) -> str:
    """Steps a second that usual disks feed, and the minutes of a cold epoch."""
    lines = [["disk", "GB/s", *(f"{NAMES[n]}: {u}" for n in NAMES for u in ("steps/s", "min"))]]
    for disk, speed in DISKS_BYTES_PER_S.items():
        figures = []
        for size in clip_bytes.values():
            figures.append(f"{speed / size / BATCH:.2f}")
            figures.append(f"{TRAINING_CLIPS * size / speed / 60:.1f}")
        lines.append([disk, f"{speed / 1e9:g}", *figures])
    return "\n".join(aligned(lines, words=1))


@contextlib.contextmanager
def working_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="reading-", dir=chosen))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=256, help="how many are generated (1.2 MB)")
    parser.add_argument("--batch-size", type=int, default=64, help="of the batches (2.5 MB a clip)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write: the disk that is measured")
    parser.add_argument("--out", type=Path, help="writes the figures as JSON")
    options = parser.parse_args()
    if not 2 <= options.batch_size <= options.clips or options.repeats < 1:
        raise InputError("expected 2 <= --batch-size <= --clips and --repeats of at least 1")
    with working_folder(options.folder) as folder:
        store.write(
            generated(options.clips), folder / "whole", fingerprint={}, videos="", rejected=[]
        )
        write_resampled(folder / "whole", folder / "copies")
        rows, clip_bytes = [], {}
        for name in NAMES:
            data = folder / name
            size = sum(path.stat().st_size for path in record_files(data))
            clip_bytes[name] = size / options.clips
            rows += measure(data, name, options.batch_size, options.repeats)
    wanted = needs(rows, clip_bytes)
    print(f"{options.clips} clips, batches of {options.batch_size}, {os.cpu_count()} cores\n")
    print(speed_table(rows))
    print(f"\nWhat {TRAINING_CLIPS:,} clips in batches of {BATCH:,} need, read from the disk:\n")
    print(needs_table(wanted))
    print(f"\nWhat disks feed in batches of {BATCH:,}, and a cold epoch in minutes:\n")
    print(disks_table(clip_bytes))
    if options.out:
        machine = {"processor": platform.processor(), "cores": os.cpu_count()}
        write_json(options.out, {"machine": machine, "reading": rows, "needs": wanted})


if __name__ == "__main__":
    run_program(main)
