"""Where does extraction spend its time, do decoding and encoding overlap, and is memory flat?

    python scripts/benchmarks/extraction.py --videos DIR [--clips N] [--repeat N] [--dtype bfloat16]

With CLIP B/32 and BEATs of the released sizes and seeded random weights:

stages   a clip's seconds by stage, each alone: decoding, resizing and cropping (PIL), handing over
         to another process, CLIP, BEATs; for the encoders the share of the speed of a large matrix
         product. Decoding and resizing are per core, encoding per machine.
overlap  the wall time of the whole program beside the time of its parts: 100 % is where the shorter
         part (decoding on all workers, or encoding) costs nothing.
memory   with --repeat N: N clips through the whole program with small models, so that decoding is
         the slower half; and again with an encoder that is slow, so that the queue is full: memory
         of the parent and of its largest worker, over the course of the run.

Wall time. On a CPU both halves share the cores, so overlap gains little there; beside it stands an
encoder that waits as long as decoding takes, as for an accelerator.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

if not any(word.startswith("--threads") for word in sys.argv):
    sys.argv.append("--threads=all")  # read by contest, before any library starts its threads

import beats as beats_benchmark
import clip as clip_benchmark
import contest
import jax
import numpy as np

from scav_jax.extract import backbones, handover, pool, program
from scav_jax.extract.backbones import Backbone, Prepared, beats, beats_weights
from scav_jax.extract.backbones.clip_model import FRAME_CHUNKS, ClipModel
from scav_jax.extract.backbones.clip_towers import ClipConfig, VisionConfig
from scav_jax.extract.backbones.clip_weights import random_weights
from scav_jax.extract.decoding import media
from scav_jax.extract.manifest import find_videos
from scav_jax.extract.selfcheck import small_clip_beats

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PARTS = 10  # of a run's course, in the table of its memory


def full_model(dtype: str) -> Backbone:
    vision = ClipConfig(vision=VisionConfig())
    clip_model = ClipModel(
        vision,
        random_weights(vision),
        dtype=dtype,
        batching=FRAME_CHUNKS,
    )
    sound = beats.Beats(beats_weights.random_checkpoint(beats_weights.ITER3_PLUS, 0), dtype)
    options = {"": {"dtype": dtype}}
    return backbones.load(
        "clip_beats", weights={"clip": clip_model, "beats": sound}, options=options
    )


def seconds(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def gemm(dtype: str) -> float:
    if dtype == "float32":
        return contest.gemm_peak(time.perf_counter)
    return clip_benchmark.gemm_peak(dtype, time.perf_counter)


# ---- stages ------------------------------------------------------------------------------------


def stages(paths: list[Path], model: Backbone, dtype: str) -> dict:
    """Seconds a clip of each stage, alone, and the encoders' share of the GEMM peak."""
    shrink, clips, video_s = model.preparer.visual.shrink, [], 0.0
    took = dict.fromkeys(("decode", "resize", "hand over", "CLIP", "BEATs"), 0.0)
    for path in paths:
        resizing = 0.0

        def timed(frame):
            nonlocal resizing
            begin = time.perf_counter()
            out = shrink(frame)
            resizing += time.perf_counter() - begin
            return out

        begin = time.perf_counter()
        with media.Reader(path, None, timed) as reader:
            decoded = reader.cut(0.0, None)
        took["decode"] += time.perf_counter() - begin - resizing
        took["resize"] += resizing
        video_s += decoded.frames_span[1]
        clip = Prepared(decoded.frames, model.preparer.audio.prepare(decoded.waveform))
        took["hand over"] += seconds(lambda clip=clip: hand_over(clip))
        clips.append(clip)
    frames = sum(len(clip.visual) for clip in clips)
    model.encode(clips[:1])  # compiles
    model.audio.encode([clip.audio for clip in clips])
    took["CLIP"] = seconds(lambda: model.visual.encode([clip.visual for clip in clips]))
    took["BEATs"] = seconds(lambda: model.audio.encode([clip.audio for clip in clips]))
    peak = gemm(dtype)
    samples = sum(len(clip.audio) for clip in clips)
    flops = {
        "CLIP": frames * clip_benchmark.operations(VisionConfig()),
        "BEATs": samples
        / beats_benchmark.SAMPLES
        * beats_benchmark.flops_of_a_clip(beats_weights.ITER3_PLUS),
    }
    print(f"\n{len(clips)} clips, {frames / len(clips):.0f} frames and ", end="")
    print(f"{video_s / len(clips):.1f} s each; GEMM {dtype}: {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'':12} {'ms/clip':>9} {'clips/s':>9} {'GFLOP/s':>9} {'of GEMM':>8}")
    rows = {}
    for name, total in took.items():
        rows[name] = {"ms_a_clip": 1e3 * total / len(clips), "clips_per_s": len(clips) / total}
        line = f"{name:12} {rows[name]['ms_a_clip']:9.1f} {rows[name]['clips_per_s']:9.2f}"
        if name in flops:
            rows[name] |= {"flops": flops[name] / total, "share": flops[name] / total / peak}
            line += f" {rows[name]['flops'] / 1e9:9,.0f} {rows[name]['share']:8.0%}"
        print(line, flush=True)
    about = {"clips": len(clips), "frames": frames, "video_s": video_s, "gemm_flops": peak}
    return {**about, "rows": rows}


def hand_over(clip: Prepared) -> None:
    """Into a nameless file and out of it, as between two processes."""
    _, descriptor = handover.pack(clip)
    with open(descriptor, "rb") as file:
        np.frombuffer(file.read(), np.uint8)


# ---- overlap -----------------------------------------------------------------------------------


class Watched(Backbone):
    """Notes the seconds that encoding took, and waits as long as it is told to."""

    busy_s = 0.0
    pause_s = 0.0

    def encode(self, clips):
        begin = time.perf_counter()
        features = super().encode(clips)
        time.sleep(self.pause_s * len(clips))
        self.busy_s += time.perf_counter() - begin
        return features


def watched(model: Backbone) -> Watched:
    return Watched(**vars(model))


@contextlib.contextmanager
def folder_of(paths: list[Path]):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        for path in paths:
            (folder / "videos" / path.name).symlink_to(path.absolute())
        yield folder


class Waiting(Watched):
    """Computes nothing, as if an accelerator did."""

    def encode(self, clips):
        begin = time.perf_counter()
        time.sleep(self.pause_s * len(clips))
        self.busy_s += time.perf_counter() - begin
        return [(np.ones((9, 3)), np.ones((9, 3))) for _ in clips]


def overlap(paths: list[Path], every: list[Path], model: Backbone, workers: int) -> dict:
    """The whole program beside its two halves: with the model, and with one that waits."""
    idle = Waiting(**vars(model))
    with folder_of(every) as folder:
        every_s = run_program(folder, "alone", idle, workers)
        idle.pause_s, idle.busy_s = every_s / len(every), 0.0
        both_s = run_program(folder, "both", idle, workers)
    with folder_of(paths) as folder:
        real = watched(model)
        real_s = run_program(folder, "data", real, workers)
    hidden = (every_s + idle.busy_s - both_s) / min(every_s, idle.busy_s)
    print(
        f"\n{len(paths)} clips, {workers} workers: {real_s:.1f} s in all "
        f"({len(paths) / real_s:.2f} clips/s), {real.busy_s:.1f} s of it in the encoder"
    )
    print(
        f"{len(every)} clips, {workers} workers, an encoder that waits: {both_s:.1f} s in all "
        f"({len(every) / both_s:.2f} clips/s); decoding alone {every_s:.1f} s, encoding "
        f"{idle.busy_s:.1f} s; {hidden:.0%} of the shorter half is hidden",
        flush=True,
    )
    return {
        "clips": len(paths),
        "whole_s": real_s,
        "encode_s": real.busy_s,
        "waiting": {"clips": len(every), "whole_s": both_s, "decode_s": every_s, "hidden": hidden},
    }


def run_program(folder: Path, name: str, model: Backbone, workers: int, **options) -> float:
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        return seconds(
            lambda: program.extract(
                folder / "videos", folder / name, backbone=model, workers=workers, **options
            )
        )


# ---- memory ------------------------------------------------------------------------------------


def resident(process: int) -> int:
    """Bytes of a process that are not shared with a file."""
    with open(f"/proc/{process}/statm") as file:
        _, pages, shared, *_ = map(int, file.read().split())
    return (pages - shared) * PAGE_BYTES


class Watch(threading.Thread):
    """Samples the memory of this process and of its children four times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples, self._stop_now = [], threading.Event()

    def run(self):
        while not self._stop_now.wait(0.25):
            children = [worker.process.pid for worker in list(WORKERS)]
            sizes = []
            for child in children:
                with contextlib.suppress(OSError, ValueError):
                    sizes.append(resident(child))
            self.samples.append((all_resident(os.getpid()), max(sizes, default=0)))

    def stop(self) -> np.ndarray:
        self._stop_now.set()
        self.join()
        return np.asarray(self.samples)


WORKERS: list = []


def all_resident(process: int) -> int:
    """Bytes of a process, what it maps from its workers included."""
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * PAGE_BYTES


def memory(paths: list[Path], count: int, workers: int, pause_s: float) -> dict:
    """`count` clips, the same files again and again; the largest in each tenth of the run."""
    original = pool._Worker.__init__

    def noted(self, *arguments):
        original(self, *arguments)
        WORKERS.append(self)

    model = watched(small_clip_beats())
    model.pause_s = pause_s
    with folder_of(paths) as folder:
        rows = [f"{paths[n % len(paths)].name},clip{n}" for n in range(count)]
        (folder / "clips.csv").write_text("file,id\n" + "\n".join(rows) + "\n")
        WORKERS.clear()
        pool._Worker.__init__ = noted
        watch = Watch()
        watch.start()
        took = run_program(folder, "data", model, workers, clips=folder / "clips.csv")
        samples = watch.stop() / contest.MIB
        pool._Worker.__init__ = original
    parts = [part.max(axis=0) for part in np.array_split(samples, PARTS)]
    print(f"\n{count} clips, {took:.0f} s, encoder slowed by {pause_s:g} s a clip; MiB at most")
    for who, column in (("this process", 0), ("its largest worker", 1)):
        print(f"{who:20}" + "".join(f"{part[column]:8.0f}" for part in parts), flush=True)
    return {"clips": count, "seconds": took, "pause_s": pause_s, "mib": np.array(parts).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--clips", type=int, default=8, help="for stages and overlap")
    parser.add_argument("--repeat", type=int, default=0, help="clips for the course of memory")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", default="all", choices=("one", "all"))
    parser.add_argument("--out", help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    files = find_videos(arguments.videos)[0]
    chosen = files[:: max(1, len(files) // max(arguments.clips, 1))][: arguments.clips]
    paths = [arguments.videos / file for file in chosen]
    every = [arguments.videos / file for file in files]
    device = jax.local_devices()[0].device_kind
    print(f"{len(jax.local_devices())} x {device}, jax {jax.__version__}")
    figures = {"device": device, "dtype": arguments.dtype, "workers": arguments.workers}
    if paths:
        model = full_model(arguments.dtype)
        figures["stages"] = stages(paths, model, arguments.dtype)
        figures["overlap"] = overlap(paths, every, model, arguments.workers)
        del model
    if arguments.repeat:
        figures["memory"] = [
            memory(every, arguments.repeat, arguments.workers, 0.0),
            memory(every, max(arguments.repeat // 10, 20), arguments.workers, 1.0),
        ]
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
