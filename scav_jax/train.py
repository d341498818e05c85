"""Training: `python -m scav_jax.train --config configs/demo.py --workdir runs/demo`.

`main` reads the command line; `train` reads top to bottom: data, model, state, loop, average.
Everything that makes up the run is in `WORKDIR`: `config.json`, `metrics.jsonl`, `tensorboard/`,
`checkpoints/`, `averaged/`. The same command resumes an interrupted run, bit for bit.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import logging as absl_logging
from tqdm import tqdm

import scav_jax
from scav_jax import datasets, embed, metrics, processes, profiling, retrieve, sharding
from scav_jax.batches import training_batches
from scav_jax.checkpoints import (
    AVERAGED,
    Checkpoints,
    Run,
    example_batch,
    open_workdir,
    parameter_shapes,
    save_averaged,
)
from scav_jax.config import ArgumentParser, parse, unpack
from scav_jax.distances import retrieval_form
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.features import check_resampled
from scav_jax.optimizer import learning_rate_schedule, make_optimizer
from scav_jax.prefetch import Prefetch
from scav_jax.profiling import Trace
from scav_jax.progress import progress_bar
from scav_jax.records import InputWarning, Meter, NoRecords, Records
from scav_jax.train_step import (
    Objective,
    TrainState,
    init_state,
    make_train_step,
    state_shardings,
)

COLLAPSED_SPREAD = 1e-3  # embeddings this close, relative to their length, are one point


@dataclass(frozen=True)
class DataSettings:
    """The `data` section.

    Attributes:
      path: a directory that `python -m scav_jax.extract` wrote.
      train_split, validation_split: names of its splits.
      batch_size: clips in a global batch, over all devices.
      align: "time", or "index" (the paper's wording: whole streams stretched onto each other).
      buckets: at most this many padded shapes.
      read_threads: threads that read ahead.
      features: "float16", as stored, or "float32": what batches are copied to the devices in; the
        towers compute the same.
      prefetch: batches that wait on the devices; 0 where two do not fit.
    """

    path: str
    train_split: str
    validation_split: str
    batch_size: int
    align: str
    buckets: int
    read_threads: int
    features: str
    prefetch: int


@dataclass(frozen=True)
class TrainSettings:
    """The `train` section.

    Attributes:
      steps: how many batches to train on.
      log_every: steps between lines of metrics.
      validate_every: steps between validations; each writes a checkpoint.
      checkpoint_every: steps between further checkpoints, or 0.
      keep_best: how many of the best checkpoints are kept and averaged (paper: 10).
      max_skipped_in_row: non-finite steps in a row that end the run.
      devices: how many devices to use; 0 is all.
      distance_memory_bytes: working memory of the distance matrix, beside latents and result;
        changes speed only.
      preemption_deadline_s: after SIGTERM, how many seconds there are to save in.
      profile: "start:stop" writes a trace of these steps to WORKDIR/profile; "" does not.
      microbatch: clips that are encoded at a time, over all devices, for the gradient of the whole
        batch in the memory of a part (see `gradient_cache`); 0 encodes all at once.
      remat: keeps less of each block for the gradient and computes it again.
      precision: of the towers' products, see `Encoders`: "float32", "tensorfloat32", "bfloat16".
        Validation and evaluation are in float32 always.
      shard_optimizer, shard_params: cut over the devices instead of whole on each.
    """

    steps: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    keep_best: int
    max_skipped_in_row: int
    devices: int
    distance_memory_bytes: int
    preemption_deadline_s: float
    profile: str
    microbatch: int = 0
    remat: bool = False
    precision: str = "float32"
    shard_optimizer: bool = False
    shard_params: bool = False

    def __post_init__(self):
        at_least_1 = ("steps", "log_every", "validate_every", "max_skipped_in_row")
        for name in (*at_least_1, "distance_memory_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}: expected at least 1, got {getattr(self, name)}")
        if self.preemption_deadline_s <= 0:
            raise InputError(
                f"train.preemption_deadline_s: expected more than 0, "
                f"got {self.preemption_deadline_s}"
            )


@dataclass(frozen=True)
class Setup:
    """What a config describes, ready to train."""

    config: dict
    data: DataSettings
    settings: TrainSettings
    encoders: Encoders
    objective: Objective
    training: datasets.Split
    validation: datasets.Split


# ---- what is trained -----------------------------------------------------------------------


def set_up(config: dict) -> Setup:
    """Builds everything that a resolved config names; every mistake is an `InputError`."""
    data = unpack("data", config["data"], DataSettings)
    settings = unpack("train", config["train"], TrainSettings)
    encoders = unpack("encoders", config["encoders"], Encoders)
    distance = dict(config["distance"])
    objective = unpack(
        "objective",
        config["objective"],
        Objective,
        distance=distance.pop("name", None),
        distance_options=distance,
    )
    training = datasets.read(Path(data.path), data.train_split)
    validation = datasets.read(Path(data.path), data.validation_split)
    for split in (training, validation):
        check_resampled(split.fingerprint, align=data.align, direction=encoders.pre_resample)
    setup = Setup(config, data, settings, encoders, objective, training, validation)
    # Sizes that do not fit fail here.
    parameter_shapes(training_encoders(setup), objective, _widths(setup))
    return setup


def training_encoders(setup: Setup) -> Encoders:
    """The towers as they are trained; everything else uses them in float32."""
    return setup.encoders.clone(precision=setup.settings.precision, remat=setup.settings.remat)


def _widths(setup: Setup) -> dict[str, int]:
    return {"visual": setup.training.visual_width, "audio": setup.training.audio_width}


def resolved_config(setup: Setup) -> dict:
    """What `config.json` holds: the config, and the features it was resolved with."""
    return setup.config | {
        "features": {
            "fingerprint": setup.training.fingerprint,
            "widths": _widths(setup),
            "clips": {
                setup.data.train_split: len(setup.training),
                setup.data.validation_split: len(setup.validation),
            },
        }
    }


def shared_document(setup: Setup) -> dict:
    """What all processes have to have in common: config, data and versions."""
    ids = {split.split: list(split.ids) for split in (setup.training, setup.validation)}
    return resolved_config(setup) | {
        "clips_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "version": {"scav_jax": scav_jax.__version__, "jax": jax.__version__},
    }


# ---- validation ----------------------------------------------------------------------------


def validate(setup: Setup, params) -> dict[str, float]:
    """R@1 in both directions by sequence and by aggregation, over the whole validation split."""
    mesh = sharding.local_mesh(min(jax.local_device_count(), setup.settings.devices or sys.maxsize))
    embedded = embed.embed(
        _run_of(setup, jax.device_get(params)),
        setup.validation,
        batch_size=setup.data.batch_size,
        mesh=mesh,
    )
    ranks_by = retrieval_form(setup.objective.distance, setup.objective.distance_options)
    similarities, distances = retrieve.all_against_all(embedded, *ranks_by)
    matrices = {"sequence": distances, "aggregation": -similarities}
    return {
        f"{method}_{direction}": metrics.recall_at_k(
            metrics.ranks(retrieve.queries_first(matrix, direction)), 1
        )
        for method, matrix in matrices.items()
        for direction in retrieve.DIRECTIONS
    }


def _run_of(setup: Setup, params) -> Run:
    fingerprint = setup.training.fingerprint
    return Run(None, setup.config, setup.encoders, setup.objective, params, fingerprint)


def score(objective: Objective, values: dict[str, float]) -> float:
    """What ranks checkpoints: the mean of both R@1, by the method that was trained for."""
    method = objective.losses[0]
    return 0.5 * (values[f"{method}_v2a"] + values[f"{method}_a2v"])


# ---- the loop ------------------------------------------------------------------------------


def train(config: dict, workdir: Path) -> Run | None:
    """Trains to the end and returns the averaged model; None if it was told to stop before.

    Args:
      config: the resolved config, nested dict.
      workdir: the run directory; holds nothing yet, or the same run, which is then resumed.
    """
    setup, mesh, dataset = processes.all_or_none(lambda: _prepare(config))
    processes.check_same(shared_document(setup))
    settings = setup.settings
    optimizer = unpack("optimizer", config["optimizer"], make_optimizer, steps=settings.steps)
    schedule = _learning_rates(config["optimizer"], settings.steps)
    _in_first(lambda: open_workdir(workdir, resolved_config(setup)))

    put = functools.partial(sharding.put_batch, mesh=mesh)
    batches = Prefetch(iter(dataset), put, ahead=setup.data.prefetch)
    checkpoints = Checkpoints(workdir, settings.keep_best)
    state, first = _start_or_resume(setup, optimizer, mesh, checkpoints, batches)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_function = jax.jit(
        make_train_step(
            training_encoders(setup),
            setup.objective,
            optimizer,
            config["seed"],
            memory_bytes=settings.distance_memory_bytes,
            microbatch=settings.microbatch,
            mesh=mesh,
        ),
        in_shardings=(places, sharding.batch_sharded(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    records = Records(workdir, first) if processes.is_first() else NoRecords()
    meter = Meter(setup.data.batch_size, in_flight=min(setup.data.prefetch, 1))
    slow_input = InputWarning(setup.data.read_threads)
    trace = Trace(workdir, profiling.steps_of(settings.profile, settings.steps))
    stop = processes.Preemption(settings.preemption_deadline_s, checkpoints.latest_written)
    shown = processes.is_first()
    bar = progress_bar("train", settings.steps, "step", initial=first, shown=shown)
    with contextlib.closing(records), contextlib.closing(batches), trace, bar:
        if first < settings.steps:
            bar.set_postfix_str("compiling the step")
        for step in range(first + 1, settings.steps + 1):
            batch = None  # its memory is free before the next one takes its place
            with meter.waiting():
                batch = next(batches)
            trace.before(step)
            state, step_metrics = step_function(state, batch)
            trace.after(step, step_metrics)
            meter.add(step_metrics)
            bar.update()
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                values = meter.summary() | {"learning_rate": float(schedule(step - 1))}
                _log(step, values, setup, records, bar, batch, state)
                if word := slow_input.words(values):
                    _say(word, bar)
            points = None
            if step % settings.validate_every == 0 or last:
                with meter.part("validation"):
                    whole = sharding.put_replicated(state.params, mesh)
                    points = _validate(step, setup, whole, records, bar)
                meter.restart()
            due = settings.checkpoint_every and step % settings.checkpoint_every == 0
            stopping = stop(step)
            if points is not None or due or stopping:
                with meter.part("checkpoint"):
                    checkpoints.save(step, state, batches.get_state(), points)
            if stopping and not last:
                checkpoints.close()
                stop.close()
                _say(f"terminated: saved step {step}; the same command resumes", bar)
                return None
        stop.close()
        if meter.steps:
            _say(_time_by_part(setup, optimizer, meter, state, batch), bar)
        return _finish(setup, workdir, checkpoints, records, state.params)


def _time_by_part(setup: Setup, optimizer, meter: Meter, state: TrainState, batch) -> str:
    """The table at the end; with the parts of a step where a profile was asked for."""
    parts = None
    if setup.settings.profile and jax.process_count() == 1:
        parts = profiling.parts_of_step(
            training_encoders(setup),
            setup.objective,
            optimizer,
            state,
            batch,
            memory_bytes=setup.settings.distance_memory_bytes,
            microbatch=setup.settings.microbatch,
        )
    return profiling.table(meter.totals, meter.steps, parts)


def _prepare(config: dict):
    """All that can be wrong with a config, its data and the devices, before anything is written."""
    setup = set_up(config)
    processes.check_devices(setup.settings.devices)
    mesh = sharding.make_mesh(setup.settings.devices or None)
    sharding.check_batch_size(setup.data.batch_size, mesh)
    sharding.check_microbatch(setup.settings.microbatch, setup.data.batch_size, mesh)
    unpack("optimizer", config["optimizer"], make_optimizer, steps=setup.settings.steps)
    profiling.steps_of(setup.settings.profile, setup.settings.steps)
    return setup, mesh, _training_dataset(setup)


def _in_first(work) -> None:
    """Does in process 0 what only one may do; its `InputError` is everyone's."""
    processes.all_or_none(lambda: work() if processes.is_first() else None)


def _training_dataset(setup: Setup):
    return training_batches(
        setup.training,
        batch_size=setup.data.batch_size,
        seed=setup.config["seed"],
        align=setup.data.align,
        buckets=setup.data.buckets,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        read_threads=setup.data.read_threads,
        dtype=setup.data.features,
    )


def _learning_rates(optimizer: dict, steps: int):
    """Step -> learning rate, as the optimizer has it: for the log."""
    rate, warmup_steps = optimizer["learning_rate"], optimizer["warmup_steps"]
    return learning_rate_schedule(learning_rate=rate, warmup_steps=warmup_steps, steps=steps)


def _start_or_resume(setup: Setup, optimizer, mesh, checkpoints: Checkpoints, batches):
    """The state to go on from, and how many steps it has seen; moves the batches there too."""
    example = example_batch(_widths(setup))
    state = init_state(setup.encoders, setup.objective, optimizer, example, setup.config["seed"])
    cut = {name: getattr(setup.settings, name) for name in ("shard_params", "shard_optimizer")}
    state = sharding.put(state, state_shardings(state, mesh, **cut))
    latest = checkpoints.restore_latest(state)
    if latest is None:
        _describe(setup, state, mesh)
        return state, 0
    first, state, batches_state = latest
    batches.set_state(batches_state)
    _say(f"resuming at step {first} of {setup.settings.steps}")
    return state, first


def _log(step: int, values: dict, setup: Setup, records: Records, bar: tqdm, batch, state) -> None:
    """Writes a line of metrics; ends the run if it no longer learns from anything."""
    records.write("train", step, values)
    bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['examples_per_s']:.0f} clips/s")
    if values["skipped_in_row"] >= setup.settings.max_skipped_in_row:
        raise InputError(_diagnosis(step, values, batch, state))
    if values["embedding_spread"] < COLLAPSED_SPREAD:
        _say(
            f"step {step}: collapse: all clips of a batch have nearly one embedding (relative "
            f"spread {values['embedding_spread']:.1e}); lower optimizer.learning_rate or lengthen "
            "optimizer.warmup_steps",
            bar,
        )


def _validate(step: int, setup: Setup, params, records: Records, bar: tqdm) -> float:
    values = processes.from_first(lambda: validate(setup, params))
    records.write("validation", step, values)
    _say(f"step {step}: validation {_in_words(values)}", bar)
    return score(setup.objective, values)


def _finish(setup: Setup, workdir: Path, checkpoints: Checkpoints, records: Records, params) -> Run:
    """Averages the best checkpoints, validates the average and writes it."""
    checkpoints.wait()
    averaged, steps = checkpoints.average(params)
    values = processes.from_first(lambda: validate(setup, averaged))
    records.write("averaged", setup.settings.steps, values)
    processes.from_first(lambda: save_averaged(workdir, averaged, steps))
    checkpoints.close()
    if processes.is_first():
        print(f"averaged steps {', '.join(map(str, steps))}: validation {_in_words(values)}")
        print(f"run: {workdir}")
    return dataclasses.replace(
        _run_of(setup, averaged), path=workdir, config=resolved_config(setup), steps=tuple(steps)
    )


# ---- health, progress, signals ---------------------------------------------------------------


def _diagnosis(step: int, values: dict, batch, state: TrainState) -> str:
    shards = (shard.data for stream in batch for shard in stream.values.addressable_shards)
    largest = max(float(np.abs(np.asarray(values)).max()) for values in shards)
    leaves = (np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params))
    norm = float(np.sqrt(sum(leaf @ leaf for leaf in leaves)))
    return (
        f"step {step}: {values['skipped_in_row']} steps in a row had a loss or gradient that is "
        f"not finite (expected fewer than train.max_skipped_in_row); the parameters are untouched "
        f"by them, with norm {norm:.4g}, the largest feature is {largest:.4g}; lower "
        "optimizer.learning_rate, set optimizer.clip_norm=1.0, or look for outliers in the features"
    )


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(
        f"{method} R@1 A->V {values[f'{method}_a2v']:.1%} V->A {values[f'{method}_v2a']:.1%}"
        for method in ("sequence", "aggregation")
    )


def _describe(setup: Setup, state: TrainState, mesh) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    where = f" of {jax.process_count()} processes" if processes.many() else ""
    _say(
        f"{setup.objective.name} objective, {count / 1e6:.1f} M parameters, "
        f"{len(setup.training)} training and {len(setup.validation)} validation clips, "
        f"batch {setup.data.batch_size} on {mesh.size} {jax.devices()[0].platform} device(s){where}"
    )


def _say(words: str, bar: tqdm | None = None) -> None:
    """A line on stderr, above the bar; one process says it for all."""
    if processes.is_first():
        (bar or tqdm).write(words, file=sys.stderr)


def _not_of_closed_loops(unraisable) -> None:
    """tensorstore answers a write that was given up in a loop that is closed: nobody waits."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser("Train SCAV, CAV or both on extracted features; resumes by itself.")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="where the run is kept, e.g. runs/demo"
    )
    processes.add_arguments(parser)
    config, arguments = parse(parser, argv)
    processes.start(arguments)
    # Orbax and its threads log what is then raised; one line is enough.
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda _: None
    sys.unraisablehook = _not_of_closed_loops
    if (arguments.workdir / AVERAGED).is_dir():
        setup = set_up(config.to_dict())
        open_workdir(arguments.workdir, resolved_config(setup))
        if processes.is_first():
            print(
                f"{arguments.workdir}: training is finished; evaluate it with "
                f"`python -m scav_jax.evaluate --run {arguments.workdir} --split test`"
            )
        return 0
    done = train(config.to_dict(), arguments.workdir)
    return 0 if done else processes.EXIT_TERMINATED


if __name__ == "__main__":
    processes.run_program(main)
