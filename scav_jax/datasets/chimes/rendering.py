"""Renders a data set: performances in parallel, each file whole or absent, resumable."""

import json
import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from scav_jax import __version__
from scav_jax.base.children import single_threaded
from scav_jax.base.documents import read_object
from scav_jax.base.errors import InputError
from scav_jax.base.files import write_atomically
from scav_jax.base.interrupts import not_for_children
from scav_jax.base.progress import progress_bar
from scav_jax.datasets import clip_lists
from scav_jax.datasets.chimes.instrument import Instrument, make_instrument
from scav_jax.datasets.chimes.performance import Score, compose, motion_of
from scav_jax.datasets.chimes.picture import Camera, Scene, paint_scene
from scav_jax.datasets.chimes.presets import Parameters, Performance, clips, performances
from scav_jax.datasets.chimes.presets import override as override_parameters
from scav_jax.datasets.chimes.presets import preset as preset_parameters
from scav_jax.datasets.chimes.room import make_room
from scav_jax.datasets.chimes.sound import make_notes, synthesize
from scav_jax.datasets.chimes.video import encode_mp4

RENDERER = 1  # raise it whenever the same parameters come to mean other pictures or sounds
DESCRIPTION, CLIPS = "chimes.json", "clips.csv"
CLIPS_A_PROCESS = 30  # a process takes half a second to start: worth it from here on


def render(
    out: str | Path,
    *,
    preset: str = "demo",
    seed: int = 0,
    workers: int | None = None,
    overrides: tuple[str, ...] | list[str] = (),
) -> Path:
    """Renders a preset into a folder, or the rest of it where a former run was interrupted.

    Writes `<split>/<performance>.mp4`, `chimes.json` (what was rendered, with what) and, last,
    `clips.csv`. Processes are started by "spawn": call it under `if __name__ == "__main__":` in a
    script of your own.

    Args:
      out: the folder; made if missing.
      preset: a key of `presets.PRESETS`: "tiny", "demo", "large", "rooms", "mixed" or "static".
      seed: everything random comes from it and the names of performances and instruments.
      workers: processes; by default one a core, fewer for little work. The bytes do not depend
        on it.
      overrides: `name=value` for fields of `presets.Parameters`, as "flash=0.3".

    Returns:
      The path of `clips.csv`.

    Raises:
      InputError: an unknown preset or parameter, or a folder that holds something else.
    """
    parameters = override_parameters(preset_parameters(preset), overrides)
    if seed < 0:
        raise InputError(f"chimes: expected a seed of at least 0, got {seed}")
    if workers is not None and workers < 1:
        raise InputError(f"chimes: expected workers of at least 1, got {workers}")
    out = Path(out)
    description = {
        "data": "chimes: rendered by scav_jax, not recorded; label every figure from it as ours",
        "renderer": RENDERER,
        "preset": preset,
        "seed": seed,
        "parameters": asdict(parameters),
        "versions": {"scav_jax": __version__, "av": av.__version__, "numpy": np.__version__},
    }
    todo = [p for p in performances(parameters) if not (out / p.file).exists()]
    _claim(out, description, complete=not todo)
    _render_missing(out, parameters, seed, todo, workers)
    for stale in out.glob("*/*.partial"):  # of a run that was killed
        stale.unlink(missing_ok=True)
    clip_lists.write_csv(out / CLIPS, clip_lists.COLUMNS, clips(parameters))
    return out / CLIPS


def _claim(out: Path, description: dict, complete: bool) -> None:
    """Writes `chimes.json`, or checks that the folder is being filled with this very data."""
    path = out / DESCRIPTION
    if not path.exists():
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: expected a folder, got a file; give --out another name")
        if out.exists() and any(out.iterdir()):
            raise InputError(
                f"{out}: expected an empty folder or one with {DESCRIPTION}, got a folder with "
                "other files; give --out another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(description, indent=2).encode() + b"\n")
        return
    try:
        found = read_object(path, "a description of rendered data", "give --out another folder")
        found["parameters"], found["versions"] = dict(found["parameters"]), dict(found["versions"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: expected a description of rendered data, got something unreadable; "
            "give --out another folder"
        ) from None
    differences = _differences(description, found)
    if not complete:  # files of two versions of an encoder should not be mixed
        differences += _differences(description["versions"], found["versions"])
    if differences:
        raise InputError(
            f"{out} holds other data: {'; '.join(differences)}. "
            "Give --out another folder, or the former settings"
        )


def _differences(expected: dict, got: dict) -> list[str]:
    expected, got = ({**d, **d.get("parameters", {})} for d in (expected, got))
    ignored = {"data", "parameters", "versions"}
    return [
        f"expected {key} {expected.get(key)!r}, it has {got.get(key)!r}"
        for key in sorted((expected.keys() | got.keys()) - ignored)
        if expected.get(key) != got.get(key)
    ]


def _render_missing(
    out: Path, parameters: Parameters, seed: int, todo: list[Performance], workers: int | None
) -> None:
    """Renders performances in processes of one thread each."""
    clips_todo = len(todo) * parameters.clips_per_performance
    if not todo:
        return
    if workers is None:
        workers = min(os.cpu_count() or 1, math.ceil(clips_todo / CLIPS_A_PROCESS))
    for split in {p.split for p in todo}:
        (out / split).mkdir(exist_ok=True)
    progress = progress_bar("rendering chimes", clips_todo, "clip")
    spawn = multiprocessing.get_context("spawn")
    todo = sorted(todo, key=lambda p: p.name)  # an instrument is painted once for all in a row
    with progress, single_threaded():
        pool = ProcessPoolExecutor(min(workers, len(todo)), spawn, initializer=_end_with_parent)
        try:
            with not_for_children():
                jobs = [pool.submit(render_performance, out, p, parameters, seed) for p in todo]
            for job in as_completed(jobs):
                job.result()
                progress.update(parameters.clips_per_performance)
        except BrokenProcessPool:
            raise RuntimeError(
                "a rendering process was killed (out of memory?); the same command resumes"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; without it, it would wait for work for ever.

    Ctrl-C, which a terminal tells to all, ends it at once: what it renders may take a minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):  # Windows has no masks
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=4)
def _build(id: str, parameters: Parameters, seed: int) -> tuple[Instrument, Scene, np.ndarray]:
    instrument = make_instrument(id, parameters, seed)
    scene = paint_scene(instrument, parameters, seed)
    return instrument, scene, make_notes(instrument, parameters, seed)


def render_performance(
    out: Path, performance: Performance, parameters: Parameters, seed: int
) -> None:
    """Renders one performance to its file; the file appears when it is complete."""
    instrument, scene, notes = _build(performance.instrument, parameters, seed)
    score = compose(instrument, performance, parameters, seed)
    motion = motion_of(instrument, performance, score, parameters, seed)
    room = make_room(performance.room, parameters, seed) if performance.room else None
    camera = Camera(scene, motion, performance, parameters, seed, room and room.lit)
    if parameters.other_times:
        score = compose(instrument, performance, parameters, seed, "what is heard")
    sound = synthesize(instrument, notes, performance, score, parameters, seed)
    if room is not None:
        sound = room.heard(sound, parameters.audio_rate_hz)
    write_atomically(out / performance.file, encode_mp4(camera.frames, sound, parameters))


def score_of(performance: Performance, parameters: Parameters, seed: int) -> Score:
    """What is struck when in a performance: the truth that its video shows."""
    instrument = make_instrument(performance.instrument, parameters, seed)
    return compose(instrument, performance, parameters, seed)
