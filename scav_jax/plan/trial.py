"""The training step of a plan, compiled and run on random features: what XLA says, what is used."""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import numpy as np

from scav_jax import sharding
from scav_jax.plan.compiled import memory_of
from scav_jax.plan.costs import Workload, flops
from scav_jax.plan.memory import planned_memory
from scav_jax.sequences import AudioVisual, Batch, Sequences
from scav_jax.train_step import init_state, make_train_step, state_shardings
from scav_jax.training.profiling import memory_in_use
from scav_jax.training.runs import example_batch

SECONDS = 10.0  # that a random clip lasts
DRAWN = 256  # clips of random features; a larger batch has them again and again
DTYPES = {1: np.uint8, 2: np.float16, 4: np.float32}  # of a batch's numbers, by their bytes


def _shapes(work: Workload, optimizer):
    """State and batch as shapes with the shardings that training gives them; and the mesh."""
    mesh = sharding.make_mesh(work.devices)
    example = example_batch({"visual": work.visual[1], "audio": work.audio[1]})
    state = jax.eval_shape(lambda: init_state(work.encoders, work.objective, optimizer, example, 0))
    places = state_shardings(
        state, mesh, shard_params=work.shard_params, shard_optimizer=work.shard_optimizer
    )
    shaped = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    rows = sharding.batch_sharded(mesh)
    batch = _batch(work, lambda shape, dtype: np.broadcast_to(np.zeros((), dtype), shape))
    batch = jax.tree.map(lambda x: shaped(x, rows), batch)
    return jax.tree.map(shaped, state, places), batch, places, mesh


def _batch(work: Workload, values_of: Callable[[tuple, type], np.ndarray]) -> Batch:
    """Whole sequences of values of a shape and a dtype, on the host."""
    dtypes = [DTYPES[size] for size in work.feature_bytes]

    def stream(steps: int, width: int, dtype: type) -> Sequences:
        values = values_of((work.batch, steps, width), dtype)
        windows = np.tile(np.float32([0, steps]), (work.batch, 1))
        return Sequences(values, np.full(work.batch, steps, np.int32), windows)

    classes = work.objective.classes
    return Batch(
        AudioVisual(stream(*work.visual, dtypes[0]), stream(*work.audio, dtypes[1])),
        np.arange(work.batch, dtype=np.int32),
        np.tile(np.float32([0, SECONDS]), (work.batch, 1)),
        work.objective.targets(classes[:1] * work.batch) if classes else (),
    )


def lowered_step(
    work: Workload, optimizer, platforms: tuple[str, ...] | None = None
) -> jax.stages.Lowered:
    """The training step as JAX hands it to XLA; nothing is computed.

    Args:
      work: the step.
      optimizer: as in training.
      platforms: what it is for, such as `("cuda",)`, which need not be here; None: the devices.
    """
    state, batch, places, mesh = _shapes(work, optimizer)
    step = make_train_step(
        work.encoders,
        work.objective,
        optimizer,
        0,
        memory_bytes=work.distance_bytes,
        microbatch=work.microbatch,
        mesh=mesh,
    )
    everywhere = sharding.replicated(mesh)
    jitted = jax.jit(step, out_shardings=(places, everywhere), donate_argnums=0)
    return jitted.trace(state, batch).lower(lowering_platforms=platforms)


def compared(compiled: jax.stages.Compiled, work: Workload) -> dict:
    """What XLA says of the step, beside the plan (one batch on the devices, as XLA sees it).

    XLA counts what is in a loop once, so FLOPs with gradient caching are not its strength; and on
    the CPU it undoes rematerialisation (it merges what is computed twice). What a backend does not
    say is None.
    """
    found, counted = memory_of(compiled), counted_flops(compiled)
    platform = jax.devices()[0].platform
    one = dataclasses.replace(work, batches=1, on_cpu=platform == "cpu")
    return {
        "memory_bytes": None if found is None else found._asdict() | {"total": found.total},
        "planned_bytes": planned_memory(one).total,
        "flops": None if counted is None else counted * work.devices,
        "planned_flops": flops(work).total,
        "platform": platform,
    }


def counted_flops(compiled: jax.stages.Compiled) -> float | None:
    """XLA's count for one device; None on backends that do not count, or not this program."""
    try:
        found = compiled.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    count = (found or {}).get("flops", -1.0)
    return float(count) if count >= 0 else None  # XLA's word for an unknown one is -1


def run(
    compiled: jax.stages.Compiled,
    work: Workload,
    optimizer,
    repeats: int = 3,
    most_s: float = math.inf,
) -> dict:
    """Runs the step on random features.

    Args:
      compiled: of `lowered_step`.
      work: the step.
      optimizer: what it was lowered with.
      repeats: runs whose median is taken, after one that is not counted.
      most_s: seconds after which no further run begins; one is counted in any case.

    Returns:
      `step_s`, seconds; `flops_per_s`, what the model needs (nothing computed twice) a second, over
      all devices; `memory_in_use_bytes`, the most on a device so far, None where it does not say.
    """
    _, _, places, mesh = _shapes(work, optimizer)
    batch = sharding.put_batch(random_batch(work), mesh)
    example = example_batch({"visual": work.visual[1], "audio": work.audio[1]})
    state = init_state(work.encoders, work.objective, optimizer, example, 0)
    state, times = jax.device_put(state, places), []
    while len(times) < 2 or (len(times) <= repeats and sum(times) < most_s):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begin)
    seconds, count = float(np.median(times[1:])), flops(work)
    return {
        "step_s": seconds,
        "flops_per_s": (count.total - count.recomputed) / seconds,
        "memory_in_use_bytes": memory_in_use(),
    }


def random_batch(work: Workload) -> Batch:
    """Whole sequences of random features, on the host; `DRAWN` clips differ."""
    random = np.random.default_rng(0)

    def values(shape: tuple, dtype: type) -> np.ndarray:
        some = min(work.batch, DRAWN), *shape[1:]
        if dtype == np.uint8:
            drawn = random.integers(0, 256, some, np.uint8)
        else:
            drawn = random.standard_normal(some, np.float32).astype(dtype)
        return drawn[np.arange(work.batch) % len(drawn)]  # as many as the batch has

    return _batch(work, values)
