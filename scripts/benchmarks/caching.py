"""How large a batch fits, and what gradient caching and the loss cost.

    python scripts/benchmarks/caching.py [--quick] [--threads all] [--out FILE.json]

Memory: the whole training step of `configs/vggsound.py` is compiled, not run, with clips of 250 x
62 steps (native frame rate) and of 62 x 62 (features resampled on disk, `python -m
scav_jax.datasets`), and what XLA plans is read. XLA's CPU compiler does not schedule for memory and
drops the barriers that rematerialisation needs, so other devices may need less. Communication: the
same step of small towers on the devices that are there.

Time: a step of the paper's towers with and without caching; D with its loss and their gradients
beside the towers of one microbatch at the paper's widths, scaled to the batch; the towers' share of
the GEMM peak. FLOPs are of the traced program's matrix products, three times the forward pass.
"""

import time
from functools import partial

import contest
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from communication import communication_bytes
from contest import Contestant, compiled, race, table, verdict

from scav_jax import sharding
from scav_jax.distances import pairwise
from scav_jax.objectives import sequence_loss
from scav_jax.plan.compiled import memory_of
from scav_jax.sequences import AudioVisual, Batch, Sequences, as_batch, sequences
from scav_jax.train_step import init_state, make_train_step
from scav_jax.training import config_files
from scav_jax.training.runs import build, example_batch
from scav_jax.training.setup import optimizer_of

WIDTHS = {"visual": 768, "audio": 6144}
STEPS, NATIVE = 62, 250
LOSS_BATCH = 1024
# name, batch, microbatch, dtype of features, bar in GB
MEMORY = [
    ("batch 256, no caching", 256, 0, jnp.float32, 16),
    ("batch 4,096, cached", 4096, 64, jnp.float16, 12),
    ("batch 16,384, cached", 16384, 64, jnp.float16, 32),
]


def model(**changes):
    """-> (towers, objective, optimizer) of the paper."""
    document = config_files.load_file("vggsound")
    encoders, objective = build(document)
    optimizer = optimizer_of(document)
    return encoders.clone(**changes), objective, optimizer


def features(batch: int, visual_steps: int, dtype) -> Batch:
    """The shapes of a batch."""

    def stream(steps, width):
        values = jax.ShapeDtypeStruct((batch, steps, width), dtype)
        lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return Sequences(values, lengths, jax.ShapeDtypeStruct((batch, 2), jnp.float32))

    streams = stream(visual_steps, WIDTHS["visual"]), stream(STEPS, WIDTHS["audio"])
    numbers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return Batch(AudioVisual(*streams), numbers, jax.ShapeDtypeStruct((batch, 2), jnp.float32))


def random_like(shapes):
    """Random values of those shapes, whole sequences."""
    rng = np.random.default_rng(0)
    streams = (
        sequences(jnp.asarray(rng.normal(size=s.values.shape), jnp.float32).astype(s.values.dtype))
        for s in shapes.features
    )
    return as_batch(AudioVisual(*streams))


def state_of(parts):
    """The shapes of the training state."""
    encoders, objective, optimizer = parts
    initial = partial(init_state, encoders, objective, optimizer, example_batch(WIDTHS))
    return jax.eval_shape(partial(initial, seed=0))


def memory_rows(quick: bool) -> tuple[list[dict], list[dict]]:
    """-> (records, bars)."""
    print(f"\nMemory of a step, GB\n{'':48} {'features, state':>15} {'temporary':>9} {'total':>6}")
    records, bars = [], []
    parts = model()
    for name, batch, microbatch, dtype, bar in MEMORY[: 1 if quick else None]:
        for visual_steps in (STEPS,) if quick else (STEPS, NATIVE):
            begin = time.perf_counter()
            step = jax.jit(make_train_step(*parts, 0, microbatch=microbatch), donate_argnums=0)
            program = step.lower(state_of(parts), features(batch, visual_steps, dtype)).compile()
            memory = memory_of(program)
            figures = [memory.arguments / 1e9, memory.temporary / 1e9, memory.total / 1e9]
            title = f"{name}, {jnp.dtype(dtype).name}, {visual_steps} x {STEPS}"
            print(f"{title:48} {figures[0]:15.2f} {figures[1]:9.2f} {figures[2]:6.2f}", flush=True)
            took = time.perf_counter() - begin
            records.append({"name": title, "compile_s": took} | memory._asdict())
            if visual_steps == STEPS:
                figure = f"{figures[2]:.2f} GB"
                bars.append(verdict(f"{name}: <= {bar} GB", figure, figures[2] <= bar))
    return records, bars


SMALL = {"width": 128, "feedforward": 512, "visual_hidden": 256, "audio_hidden": 256}


def step_of(parts, batch: int, devices: int | None, microbatch: int):
    """-> (compiled step, its arguments), on the paper's features."""
    mesh = sharding.make_mesh(devices)
    encoders, objective, optimizer = parts
    state = init_state(encoders, objective, optimizer, example_batch(WIDTHS), seed=0)
    arguments = (
        sharding.put_replicated(state, mesh),
        sharding.put_batch(random_like(features(batch, STEPS, jnp.float16)), mesh),
    )
    whole, rows = sharding.replicated(mesh), sharding.batch_sharded(mesh)
    step = make_train_step(*parts, 0, microbatch=microbatch, mesh=mesh)
    step = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
    return step.lower(*arguments).compile(), arguments


def communication(batch: int) -> list[dict]:
    """Bytes that a device receives in a step, for 1, 2, 4, ... devices."""
    records = []
    for devices in (1, 2, 4, 8):
        if devices <= len(jax.devices()):
            program, _ = step_of(model(visual_blocks=2, **SMALL), batch, devices, batch // 2)
            received = communication_bytes(program, unknown_trips=STEPS)
            print(f"{devices} devices, batch {batch}: {sum(received.values()) / 1e6:.1f} MB a step")
            records.append({"devices": devices, "batch": batch} | received)
    return records


def caching_cost(quick: bool, clock) -> tuple[list[dict], list[dict]]:
    """A step of the paper's towers with and without caching."""
    batch, parts = (16, model(visual_blocks=2, **SMALL)) if quick else (32, model())
    contestants = []
    for name, microbatch in (("no caching", 0), ("cached, 2 parts", batch // 2)):
        program, arguments = step_of(parts, batch, 1, microbatch)
        call = partial(_run, program, arguments)
        contestants.append(Contestant(name, call, repeats=3 if quick else 10))
    race(contestants, clock)
    records = table(f"A step of {batch} clips", contestants)
    ratio = contestants[1].median_ms / contestants[0].median_ms
    return records, [verdict("caching: <= 1.4x the step", f"{ratio:.2f}x", ratio <= 1.4)]


def _run(program, arguments):
    return jax.block_until_ready(program(*arguments))


def loss_cost(quick: bool, clock) -> tuple[list[dict], list[dict]]:
    """D, its loss and gradients at `LOSS_BATCH` beside the towers, at the paper's widths."""
    batch, some = (64, 2) if quick else (LOSS_BATCH, 16)
    encoders, objective, optimizer = model()
    rng = np.random.default_rng(0)
    latents = [
        jnp.asarray(rng.normal(size=(batch, STEPS, encoders.width)), jnp.float32) for _ in range(2)
    ]

    def loss(*values):
        distances = pairwise("euclidean", *(sequences(x) for x in values))
        return sequence_loss(distances, jnp.zeros(()))[0]

    clips = random_like(features(some, STEPS, jnp.float16)).features
    state = init_state(encoders, objective, optimizer, example_batch(WIDTHS), seed=0)
    params = state.params["encoders"]

    def towers(params):
        rngs = {"dropout": jax.random.key(0)}
        outputs = encoders.apply({"params": params}, clips, deterministic=False, rngs=rngs)
        return sum(jnp.sum(stream.values**2) for stream in outputs)

    repeats = 3 if quick else 5
    contestants = [
        compiled("towers, forward and backward", jax.value_and_grad(towers), params,
                 repeats=repeats, share=some / batch),
        compiled("distance and loss, forward and backward", jax.value_and_grad(loss, (0, 1)),
                 *latents, repeats=repeats),
    ]  # fmt: skip
    race(contestants, clock)
    records = table(f"Parts of a step of {batch} clips, the paper's widths", contestants)
    of_towers, of_loss = (one.median_ms for one in contestants)
    share = of_loss / (of_loss + of_towers)
    bars = [
        verdict(f"distance and loss at {batch}: <= 5 % of a step", f"{share:.1%}", share <= 0.05)
    ]
    flops = 3 * forward_flops(encoders, params, clips)
    rate = flops / (of_towers / 1e3 * some / batch)
    peak = contest.gemm_peak(clock)
    print(f"the towers run at {rate / 1e9:.1f} of {peak / 1e9:.1f} GFLOP/s: {rate / peak:.0%}")
    return [*records, {"name": "GEMM peak", "flops": peak, "towers_share": rate / peak}], bars


def forward_flops(encoders, params, clips) -> float:
    """Of matrix products, counted on the traced program."""
    jaxpr = jax.make_jaxpr(lambda p: encoders.apply({"params": p}, clips))(params)
    total = 0
    for equation in _equations(jaxpr.jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = int(np.prod([shape[axis] for axis in contracted]))
            total += 2 * inner * int(np.prod(equation.outvars[0].aval.shape))
    return total


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(sub)


def main() -> None:
    arguments = contest.parse_arguments(__doc__.splitlines()[0])
    clock = contest.clock_of(arguments)
    memory, bars = memory_rows(arguments.quick)
    traffic = communication(16 if arguments.quick else 64)
    cost, cost_bars = caching_cost(arguments.quick, clock)
    parts, parts_bars = loss_cost(arguments.quick, clock)
    figures = {"memory": memory, "communication": traffic, "times": [*cost, *parts]}
    contest.write(arguments, figures | {"bars": [*bars, *cost_bars, *parts_bars]})


if __name__ == "__main__":
    main()
