"""The same extraction on a Ray cluster, with Ray Data: `--engine ray` (extra `ray`).

Tasks decode jobs wherever there are cores, actors hold the models wherever there are accelerators,
clips flow from one to the other through Ray's object store, and this process keeps what comes back
in the same ledger. Videos and weights must lie where every node sees them. Without a cluster, Ray
starts one on this machine.
"""

import math
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scav_jax.base.errors import InputError
from scav_jax.extract import backbones, jobs, pool
from scav_jax.extract.backbones import Backbone
from scav_jax.extract.encoding import TellProgress
from scav_jax.extract.jobs import Job, JobResult, Outcome
from scav_jax.extract.ledger import Ledger

JOBS_A_TASK = 16  # starting a process that may hang or crash is worth it for several
CLIPS_A_BATCH = 8  # for an encoder: 300 MB of 10 s at 25 frames/s
COLUMN = "pickled"


def run(
    waiting: deque[Job],
    videos: Path,
    ledger: Ledger,
    model: Backbone,
    workers: int,
    timeout_s: float,
    progress: TellProgress,
) -> None:
    """Does the jobs and keeps each in the ledger when all of its clips came back.

    Args:
      waiting: the jobs that are not done.
      videos: absolute, and the same on every node.
      ledger: where this process keeps jobs.
      model: of `backbones.load`, since actors load it again.
      workers: decoding tasks at a time.
      timeout_s: the wall-clock limit for decoding one clip.
      progress: as for `encoding.Results`.
    """
    if not waiting:
        return
    rows = _rows(waiting, videos, model, workers, timeout_s)
    open_jobs = {job.number: (job, JobResult()) for job in waiting}
    for row in rows:
        number, outcome, features = pickle.loads(row[COLUMN])
        job, result = open_jobs[number]
        progress(1, *result.add(outcome, features))
        if len(result) == len(job.clips):
            ledger.save(number, result.clips, result.rejected)
            del open_jobs[number]
    if open_jobs:
        raise RuntimeError(f"Ray ended with {len(open_jobs)} jobs unfinished; run it again")


def _rows(
    waiting: deque[Job], videos: Path, model: Backbone, workers: int, timeout_s: float
) -> Iterator[dict]:
    ray = _start()
    tasks = max(1, math.ceil(len(waiting) / JOBS_A_TASK), min(workers, len(waiting)))
    listed = ray.data.from_items(
        [{COLUMN: pickle.dumps(job)} for job in waiting], override_num_blocks=tasks
    )
    work = partial(jobs.prepare, videos=videos, preparer=model.preparer)
    clips = listed.map_batches(
        _decode,
        fn_kwargs={"work": work, "timeout_s": timeout_s},
        batch_size=None,  # a block is a task's jobs
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=workers),
    )
    if model.encodes:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        clips = clips.map_batches(
            _Encode,
            fn_constructor_kwargs={
                **model.names,
                "weights": model.weights,
                "options": model.options,
            },
            batch_size=CLIPS_A_BATCH,
            num_gpus=1 if gpus else 0,
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=max(gpus, 1)),
        )
    return clips.iter_rows()


def _start() -> Any:
    """Ray, joined to the cluster that RAY_ADDRESS names, or started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError(
            "--engine ray: expected Ray Data to be installed, got none: pip install "
            "-c constraints.txt '.[ray]'"
        ) from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # we have one
    return ray


def _decode(batch: dict, *, work: Callable, timeout_s: float) -> Iterator[dict]:
    """A task: decodes jobs in a process of its own, which may hang or crash; yields clips.

    A job that is done again sends what it has not sent yet.
    """
    waiting = deque(pickle.loads(job) for job in batch[COLUMN])
    sent: set[tuple[int, int]] = set()
    for job, event in jobs.run(work, waiting, workers=1, timeout_s=timeout_s):
        if isinstance(event, pool.Step):
            outcome: Outcome = event.result
            if (job.number, outcome.place) not in sent:
                sent.add((job.number, outcome.place))
                prepared = outcome.prepared
                features = prepared and (prepared.visual, prepared.audio)
                yield _column([(job.number, replace(outcome, prepared=None), features)])


class _Encode:
    """An actor that holds the models."""

    def __init__(self, **origin):
        self._model = backbones.load(**origin)

    def __call__(self, batch: dict) -> dict:
        rows = [pickle.loads(row) for row in batch[COLUMN]]
        clips = [backbones.Prepared(*prepared) for _, _, prepared in rows if prepared is not None]
        features = iter(self._model.encode(clips) if clips else [])
        return _column(
            (number, outcome, prepared and next(features)) for number, outcome, prepared in rows
        )


def _column(rows: Any) -> dict:
    """Objects as a column of bytes."""
    pickled = [pickle.dumps(row, protocol=5) for row in rows]
    column = np.empty(len(pickled), object)
    column[:] = pickled
    return {COLUMN: column}
