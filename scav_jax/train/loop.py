"""Training, top to bottom: data, model, state, loop, average.

Everything that makes up the run is in `WORKDIR`: `config.json`, `metrics.jsonl`, `tensorboard/`,
`checkpoints/`, `averaged/`. The same command resumes an interrupted run, bit for bit.
"""

import contextlib
import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from scav_jax import metrics, sharding
from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.features.prefetch import Prefetch
from scav_jax.retrieval.validation import check_used, in_words, run_of, score, validate
from scav_jax.train_step import TrainState, init_state, make_train_step, state_shardings
from scav_jax.training import processes, profiling
from scav_jax.training.checkpoints import Checkpoints
from scav_jax.training.config import Config
from scav_jax.training.profiling import Trace
from scav_jax.training.records import InputWarning, Meter, NoRecords, Records
from scav_jax.training.runs import (
    Run,
    example_batch,
    identity,
    only_trainer,
    open_workdir,
    save_averaged,
)
from scav_jax.training.setup import (
    Setup,
    learning_rates,
    optimizer_of,
    prepare_training,
    resolved_config,
    shared_document,
    training_encoders,
    widths,
)
from scav_jax.training.start import Start, weights_to_start_from

COLLAPSED_SPREAD = 1e-3  # embeddings this close, relative to their length, are one point


def train(config: Config, workdir: Path) -> Run | None:
    """Trains to the end and returns the averaged model; None if it was told to stop before.

    Args:
      config: what to train, see `config`.
      workdir: the run directory; holds nothing yet, or the same run, which is then resumed.
    """
    setup, mesh, dataset = processes.all_or_none(lambda: prepare_training(config))
    processes.all_or_none(lambda: check_used(setup))
    processes.check_same(shared_document(setup))
    with contextlib.ExitStack() as held:
        _in_first(lambda: held.enter_context(only_trainer(workdir)))
        start = processes.all_or_none(lambda: weights_to_start_from(setup, workdir))
        resolved = resolved_config(setup, start and start.about)
        _in_first(lambda: open_workdir(workdir, resolved))
        return _train(setup, mesh, dataset, workdir, resolved, start)


def _train(
    setup: Setup, mesh, dataset, workdir: Path, resolved: dict, start: Start | None
) -> Run | None:
    """`train`, in a directory that is ours."""
    train_config = setup.config.train
    optimizer, schedule = optimizer_of(setup.config), learning_rates(setup.config)
    put = functools.partial(sharding.put_batch, mesh=mesh)
    batches = Prefetch(iter(dataset), put, ahead=setup.data.prefetch)
    checkpoints = Checkpoints(workdir, train_config.keep_best)
    meter = Meter(setup.data.batch_size, in_flight=min(setup.data.prefetch, 1))
    state, first = _start_or_resume(setup, optimizer, mesh, checkpoints, start, batches, meter)
    step_function = _step_on(mesh, setup, optimizer, state)
    records = NoRecords()
    if processes.is_first():
        records = Records(workdir, first, told=train_config.tracker, about=resolved)
    run = identity(resolved)
    slow_input = InputWarning(setup.data.read_threads)
    trace = Trace(workdir, profiling.steps_of(train_config.profile, train_config.steps))
    stop = processes.Preemption(train_config.preemption_deadline_s, checkpoints.latest_written)
    shown = processes.is_first()
    bar = progress_bar("train", train_config.steps, "step", initial=first, shown=shown)
    with _closing(checkpoints, records, batches), trace, bar:
        if first < train_config.steps:
            bar.set_postfix_str("compiling the step")
        for step in range(first + 1, train_config.steps + 1):
            batch = None  # its memory is free before the next one takes its place
            with meter.waiting():
                batch = next(batches)
            trace.before(step)
            state, step_metrics = step_function(state, batch)
            trace.after(step, step_metrics)
            meter.add(step_metrics, batch)
            if step == first + 1:
                bar.unpause()  # what its compilation took says nothing about the time left
            bar.update()
            last = step == train_config.steps
            if step % train_config.log_every == 0 or last:
                values = meter.summary()  # the schedule counts the steps that were taken
                values["learning_rate"] = float(schedule(step - 1 - values["skipped"]))
                _log(step, values, setup, records, bar, batch, state)
                if word := slow_input.words(values):
                    _say(word, bar)
            points, validated = None, last or step % train_config.validate_every == 0
            if validated:
                with meter.part("validation"):
                    whole = sharding.put_replicated(state.params, mesh)
                    points = _validate(step, setup, whole, records, bar)
                meter.restart()
            due = train_config.checkpoint_every and step % train_config.checkpoint_every == 0
            stopping = stop(step)
            if validated or due or stopping:
                with meter.part("checkpoint"):
                    there = {"batches": batches.get_state(), "meter": meter.pending()}
                    checkpoints.save(step, state, {"run": run, **there}, points)
            if stopping and not last:
                return _stopped(step, checkpoints, stop, bar)
        stop.close()
        if meter.steps:
            _say(_time_by_part(setup, optimizer, meter, state, batch), bar)
        return _finish(setup, workdir, resolved, checkpoints, records, state.params, bar)


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints, records: Records | NoRecords, batches: Prefetch):
    """Lets go of what a training holds, whichever way it ends."""
    with checkpoints.left_whole(), contextlib.closing(records), contextlib.closing(batches):
        yield


def _stopped(step: int, checkpoints: Checkpoints, stop, bar: tqdm) -> None:
    """What there is to do once the last step before the end is saved."""
    checkpoints.close()
    stop.close()
    _say(f"{processes.stopped()[0]}: saved step {step}; the same command resumes", bar)


def _time_by_part(setup: Setup, optimizer, meter: Meter, state: TrainState, batch) -> str:
    """The table at the end; with the parts of a step where a profile was asked for."""
    parts = None
    if setup.config.train.profile and jax.process_count() == 1:
        parts = profiling.parts_of_step(
            training_encoders(setup),
            setup.objective,
            optimizer,
            state,
            batch,
            memory_bytes=setup.config.train.distance_memory_bytes,
            microbatch=setup.config.train.microbatch,
        )
    return profiling.table(meter.totals, meter.steps, parts)


def _in_first(work) -> None:
    """Does in process 0 what only one may do; its `InputError` is everyone's."""
    processes.all_or_none(lambda: work() if processes.is_first() else None)


def _step_on(mesh, setup: Setup, optimizer, state: TrainState):
    """The compiled step: everything stays where the state is, the old state's memory is reused."""
    train_config = setup.config.train
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
    sizes = train_config.distance_memory_bytes, train_config.microbatch
    whose = training_encoders(setup), setup.objective, optimizer, setup.config.seed
    return _compiled_once(*whose, *sizes, mesh, (tree, tuple(leaves)))


@functools.lru_cache(maxsize=2)
def _compiled_once(encoders, objective, optimizer, seed, memory_bytes, microbatch, mesh, places):
    """The step of whatever is equal: who goes on or begins anew in a process compiles nothing."""
    places = jax.tree.unflatten(*places)
    step = make_train_step(
        encoders,
        objective,
        optimizer,
        seed,
        memory_bytes=memory_bytes,
        microbatch=microbatch,
        mesh=mesh,
    )
    return jax.jit(
        step,
        in_shardings=(places, sharding.batch_sharded(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def _start_or_resume(
    setup: Setup, optimizer, mesh, checkpoints: Checkpoints, start: Start | None, batches, meter
):
    """The state to go on from, and how many steps it has seen; moves batches and log there too."""
    example = example_batch(widths(setup))
    state = init_state(setup.encoders, setup.objective, optimizer, example, setup.config.seed)
    if start is not None:
        params, fresh = start.applied_to(state.params)
        state = state.replace(params=params, opt_state=optimizer.init(params))
    cut = {name: getattr(setup.config.train, name) for name in ("shard_params", "shard_optimizer")}
    state = jax.device_put(state, state_shardings(state, mesh, **cut))
    latest = checkpoints.restore_latest(state)
    if latest is None:
        _describe(setup, state, mesh)
        if start is not None:
            _say(start.in_words(fresh))
        return state, 0
    first, state, there = latest
    batches.set_state(there["batches"])
    meter.go_on(there["meter"])
    _say(f"resuming at step {first} of {setup.config.train.steps}")
    return state, first


def _log(step: int, values: dict, setup: Setup, records: Records, bar: tqdm, batch, state) -> None:
    """Writes a line of metrics; ends the run if it no longer learns from anything."""
    records.write("train", step, values)
    told = f"loss {values['loss']:.3f}, {values['examples_per_s']:.0f} clips/s"
    bar.set_postfix_str(told, refresh=False)  # it is drawn in its own time
    train_config = setup.config.train
    if values["skipped_in_row"] >= min(train_config.max_skipped_in_row, train_config.steps):
        raise InputError(_diagnosis(step, values, batch, state))
    if step <= train_config.log_every and values.get("weights_gradient_norm") == 0.0:
        _say(_no_gradient(step, setup), bar)
    if values.get("embedding_spread", np.inf) < COLLAPSED_SPREAD:
        _say(
            f"step {step}: collapse: all clips of a batch have nearly one embedding (relative "
            f"spread {values['embedding_spread']:.1e}); lower optimizer.learning_rate or lengthen "
            "optimizer.warmup_steps",
            bar,
        )


def _validate(step: int, setup: Setup, params, records: Records, bar: tqdm) -> float | None:
    """Validates, writes it down and returns the checkpoint's score, see `_score_among_best`."""
    values = processes.from_first(lambda: validate(setup, params))
    records.write("validation", step, values)
    _say(f"step {step}: validation {in_words(values)}", bar)
    warmup = setup.config.optimizer.warmup_steps
    return _score_among_best(step, warmup, score(setup, values), len(setup.validation))


def _score_among_best(step: int, warmup: int, score: float, clips: int) -> float | None:
    """What enters a checkpoint among the best; None, so that it does not, during the warm-up.

    Of few clips it is rounded to what they tell apart; of equal scores the latest counts as best.
    """
    return None if step <= warmup else metrics.told_apart(score, clips)


def _finish(
    setup: Setup,
    workdir: Path,
    resolved: dict,
    checkpoints: Checkpoints,
    records: Records,
    params,
    bar: tqdm,
) -> Run:
    """Averages the best checkpoints, validates the average and writes it."""
    checkpoints.wait()
    averaged, steps = checkpoints.average(params)
    values = processes.from_first(lambda: validate(setup, averaged))
    records.write("averaged", setup.config.train.steps, values)
    decided = {name: values[name] for name in setup.objective.decided if name in values}
    processes.from_first(lambda: save_averaged(workdir, averaged, steps, decided))
    checkpoints.close()
    bar.close()  # what is printed stands below it
    if processes.is_first():
        print(f"averaged steps {', '.join(map(str, steps))}: validation {in_words(values)}")
        print(f"run: {workdir}")
    return dataclasses.replace(
        run_of(setup, averaged),
        path=workdir,
        config=resolved,
        objective=dataclasses.replace(setup.objective, **decided),
        steps=tuple(steps),
    )


# ---- what a run says -------------------------------------------------------------------------


def _diagnosis(step: int, values: dict, batch, state: TrainState) -> str:
    shards = (shard.data for stream in batch.features for shard in stream.values.addressable_shards)
    largest = max(float(np.abs(np.asarray(values)).max()) for values in shards)
    leaves = (np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params))
    norm = float(np.sqrt(sum(leaf @ leaf for leaf in leaves)))
    return (
        f"step {step}: {values['skipped_in_row']} steps in a row had a loss or gradient that is "
        "not finite (expected fewer than train.max_skipped_in_row, and than all); the parameters "
        f"are untouched by them, with norm {norm:.4g}, the largest feature is {largest:.4g}; lower "
        "optimizer.learning_rate, set optimizer.clip_norm=1.0, or look for outliers in the features"
    )


def _no_gradient(step: int, setup: Setup) -> str:
    objective = setup.objective
    return (
        f"step {step}: no gradient: it was 0 in all steps so far, for every weight, so that "
        f"nothing is learned; expected an objective ({objective.name}) and a distance "
        f"({objective.distance}) that are differentiable and not constant: look for "
        "stop_gradient, round, argmax or a comparison on the way from latents to the loss"
    )


def _describe(setup: Setup, state: TrainState, mesh) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    where = f" of {jax.process_count()} processes" if processes.many() else ""
    _say(
        f"{setup.objective.name} objective, {count / 1e6:.1f} M parameters, "
        f"{len(setup.training)} training and {len(setup.validation)} validation clips, "
        f"batch {setup.data.batch_size} on {mesh.size} {jax.devices()[0].platform} device(s){where}"
    )
    what = "accuracy" if setup.objective.classes else "R@1"
    if word := metrics.few_queries(len(setup.validation), what):
        _say(f"validation: {word}; the best checkpoints are the latest of those alike")


def _say(words: str, bar: tqdm | None = None) -> None:
    """A line on stderr, above the bar; one process says it for all."""
    if processes.is_first():
        (bar or tqdm).write(words, file=sys.stderr)
