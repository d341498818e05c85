"""How fast, how exact and how large is the interpolated Euclidean distance of all pairs?

    python scripts/benchmarks/euclidean.py [--quick] [--threads all] [--out FILE.json]

Sequences of 62 steps and width 512 on one grid, B = 32, 128, 256, beside the two naive forms under
vmap of vmap (differences of equal lengths, and the definition, which resamples) and torch.cdist;
ragged ones, up to 300 visual and 20 to 62 audio steps, both ways of resampling, beside the
definition. Then accuracy beside float64, and L_seq of B = 256 clips of 250 x 62 steps.

One thread unless `--threads all`. Contestants take turns, so that other load hits all alike; times
are medians, of CPU time on one thread and of wall time on all; the column n says of how many.
Compilation is apart. Peers that are not installed are named.
"""

from functools import partial

import contest
import jax
import jax.numpy as jnp
import numpy as np
from contest import MIB, compiled, race, table, torch_module, verdict, with_torch

from scav_jax.distances.euclidean import euclidean, euclidean_matrix
from scav_jax.sequences import RESAMPLINGS, Sequences, sequences

STEPS, WIDTH = 62, 512
BATCHES = (32, 128, 256)
RAGGED_BATCH, LONGEST = 32, 300
KINDS = ("any", "four", "one")  # of audio lengths; `--quick` takes the first
NAIVE_PAIRS = 2**14  # 4 GB of differences and gradients
BACKWARD = {"forward": False, "forward and backward": True}


def ours(visual: Sequences, audio: Sequences, memory_bytes=contest.GIB, **options):
    """All pairs, as `pairwise` computes them."""
    return euclidean_matrix(visual, audio, block=None, memory_bytes=memory_bytes, **options)


def by_definition(visual: Sequences, audio: Sequences, **options):
    """vmap of vmap of the definition."""
    pair = partial(euclidean, **options)
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(visual, audio)


def by_differences(visual, audio):
    """vmap of vmap of the mean squared difference of equal lengths."""

    def pair(v, a):
        return jnp.mean((v - a) ** 2)

    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(visual, audio)


def by_product(visual, audio):
    """|v|^2 + |a|^2 - 2 <v, a> by automatic differentiation, not centred."""
    v, a = visual.reshape(len(visual), -1), audio.reshape(len(audio), -1)
    products = jnp.matmul(v, a.T, precision=contest.HIGHEST)
    return (jnp.sum(v * v, 1)[:, None] + jnp.sum(a * a, 1)[None] - 2 * products) / v.shape[1]


def wrapped(function, backward: bool):
    """The function, or its value and gradients of the sum."""
    if not backward:
        return function
    return jax.value_and_grad(lambda v, a: jnp.sum(function(v, a)), (0, 1))


# -- equal lengths --------------------------------------------------------------------------------


def latents(batch: int, seed: int = 0, steps=(STEPS, STEPS)) -> list[jax.Array]:
    """Random sequences of unit variance, as a final LayerNorm leaves them."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, count, WIDTH) for count in steps)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def equal_lengths(batch: int, work: str, quick: bool, clock):
    """-> (contestants by name, records)."""
    inputs, backward = latents(batch), BACKWARD[work]
    fast = wrapped(lambda v, a: ours(sequences(v), sequences(a))[0], backward)
    contestants = [
        compiled("scav_jax", fast, *inputs, repeats=10 if quick else 30),
        compiled("one product, autodiff", wrapped(by_product, backward), *inputs),
    ]
    contestants.append(differences_on(inputs, backward))
    missing = []
    if torch_module() is None:
        missing.append("torch.cdist")
    else:
        contestants.append(cdist_on(inputs, backward))
    race(contestants, clock)
    title = f"Equal lengths: B = {batch}, {STEPS} x {WIDTH}, {work}"
    return {one.name: one for one in contestants}, table(title, contestants, missing)


def differences_on(inputs, backward: bool) -> contest.Contestant:
    """The naive form; of a large batch only some rows, or its memory would not fit."""
    visual, audio = inputs
    rows = min(len(visual), NAIVE_PAIRS // len(audio)) if backward else len(visual)
    name = "differences, vmap of vmap"
    if rows < len(visual):
        name += f", {rows} rows"
    return compiled(
        name,
        wrapped(by_differences, backward),
        visual[:rows],
        audio,
        share=rows / len(visual),
        repeats=10 if rows * len(audio) < 2**13 else 3,
    )


def cdist_on(inputs, backward: bool) -> contest.Contestant:
    """torch.cdist of flattened sequences, as most people write it."""
    torch = torch_module()

    def distances(v, a):
        return torch.cdist(v.flatten(1), a.flatten(1)) ** 2 / (STEPS * WIDTH)

    return with_torch("torch.cdist", distances, inputs, backward, by_product(*inputs), 10)


def equal_bars(races: dict, peak: float) -> list[dict]:
    """The bars on equal lengths."""
    bars = []
    for batch in BATCHES:
        by_name = races[batch, "forward and backward"][0]
        own = by_name["scav_jax"]
        naive = next(one for name, one in by_name.items() if name.startswith("differences"))
        ratio = naive.median_ms / own.median_ms
        bars.append(verdict(f"B = {batch}: >= 40x vmap of vmap", f"{ratio:.0f}x", ratio >= 40))
        if "torch.cdist" in by_name:
            ratio = by_name["torch.cdist"].median_ms / own.median_ms
            bars.append(verdict(f"B = {batch}: >= 1.3x torch.cdist", f"{ratio:.1f}x", ratio >= 1.3))
        if batch == 128:
            times = naive.temp_bytes / own.temp_bytes
            figure = (
                f"{own.temp_bytes / MIB:.1f} of {naive.temp_bytes / MIB:.0f} MiB, 1/{times:.0f}"
            )
            bars.append(verdict("B = 128: <= 1/50 of the naive memory", figure, times >= 50))
    own = races[256, "forward"][0]["scav_jax"]
    share = 2 * 256**2 * STEPS * WIDTH / (own.median_ms / 1e3) / peak
    bars.append(verdict("B = 256 forward: >= 50 % of the GEMM peak", f"{share:.0%}", share >= 0.5))
    return bars


# -- ragged ---------------------------------------------------------------------------------------


def ragged(kind: str) -> tuple[Sequences, Sequences]:
    """Sequences of their own lengths; `kind` says which audio lengths there are."""
    rng = np.random.default_rng(3)
    visual, audio = latents(RAGGED_BATCH, 3, (LONGEST, STEPS))
    of_visual = rng.integers(60, LONGEST + 1, RAGGED_BATCH)
    of_audio = {
        "any": rng.integers(20, STEPS + 1, RAGGED_BATCH),
        "four": rng.choice([20, 31, 47, STEPS], RAGGED_BATCH),
        "one": np.full(RAGGED_BATCH, STEPS),
    }[kind]
    of_visual[0], of_audio[0] = LONGEST, STEPS
    return (
        sequences(visual, jnp.asarray(of_visual, jnp.int32)),
        sequences(audio, jnp.asarray(of_audio, jnp.int32)),
    )


def ragged_race(kind: str, resample: str, work: str, quick: bool, clock):
    """-> (contestants by name, records)."""
    visual, audio = ragged(kind)
    backward = BACKWARD[work]

    def on_values(function):
        def call(v, a):
            streams = visual.replace(values=v), audio.replace(values=a)
            return function(*streams, resample=resample)

        return wrapped(call, backward)

    inputs = visual.values, audio.values
    contestants = [
        compiled("scav_jax", on_values(lambda *x, **o: ours(*x, **o)[0]), *inputs, repeats=20),
        compiled(
            "definition, vmap of vmap",
            on_values(by_definition),
            *inputs,
            repeats=3 if quick else 10,
        ),
    ]
    race(contestants, clock)
    title = f"Ragged: B = {RAGGED_BATCH}, {kind} audio lengths, {resample}, {work}"
    return {one.name: one for one in contestants}, table(title, contestants)


def ragged_bars(races: dict) -> list[dict]:
    """The bars on ragged lengths, for every kind of lengths."""
    least = {"audio_to_visual": 30, "visual_to_audio": 4}
    bars = []
    for (kind, resample, work), (by_name, _) in races.items():
        own, naive = by_name.values()
        ratio = naive.median_ms / own.median_ms
        bar = least[resample] if BACKWARD[work] else 1
        name = f"{kind} audio lengths, {resample}, {work}: >= {bar}x the definition"
        bars.append(verdict(name, f"{ratio:.1f}x", ratio >= bar))
    return bars


# -- accuracy -------------------------------------------------------------------------------------


def resampled(values: np.ndarray, steps: int) -> np.ndarray:
    """Linear interpolation in float64, ends held (`torch.nn.functional.interpolate`)."""
    position = np.clip((np.arange(steps) + 0.5) * len(values) / steps - 0.5, 0, len(values) - 1)
    left = np.minimum(position.astype(int), max(len(values) - 2, 0))
    right = np.minimum(left + 1, len(values) - 1)
    weight = (position - left)[:, None]
    return values[left] * (1 - weight) + values[right] * weight


def in_float64(visual: Sequences, audio: Sequences, resample: str) -> np.ndarray:
    """Loops over all pairs."""

    def clips(stream):
        values = np.asarray(stream.values, np.float64)
        return [v[:length] for v, length in zip(values, np.asarray(stream.lengths), strict=True)]

    def pair(v, a):
        moved, target = (v, a) if resample == "visual_to_audio" else (a, v)
        return np.mean((resampled(moved, len(target)) - target) ** 2)

    return np.array([[pair(v, a) for a in clips(audio)] for v in clips(visual)])


def worst(result, expected) -> float:
    """The largest relative error of an entry."""
    return float(np.max(np.abs(np.asarray(result, np.float64) - expected) / expected))


def accuracy(kinds) -> list[dict]:
    """The bars on accuracy."""
    rng = np.random.default_rng(5)
    values = [
        jnp.asarray(30 + 0.01 * rng.normal(size=(64, STEPS, WIDTH)), jnp.float32) for _ in range(2)
    ]
    bars = []
    streams = [sequences(x) for x in values]
    result, _ = jax.jit(ours)(*streams)
    error = worst(result, in_float64(*streams, "visual_to_audio"))
    bars.append(
        verdict("mean 30, noise 0.01: relative error <= 2e-6", f"{error:.1e}", error <= 2e-6)
    )
    for resample in RESAMPLINGS:
        for kind in kinds:
            streams = ragged(kind)
            result, _ = jax.jit(partial(ours, resample=resample))(*streams)
            error = worst(result, in_float64(*streams, resample))
            name = f"{kind} audio lengths, {resample}: relative error <= 1e-6"
            bars.append(verdict(name, f"{error:.1e}", error <= 1e-6))
    return bars


# -- all ------------------------------------------------------------------------------------------


def main() -> None:
    """Runs everything and prints the bars."""
    arguments = contest.parse_arguments(__doc__.split("\n")[0])
    quick, clock = arguments.quick, contest.clock_of(arguments)
    kinds = KINDS[:1] if quick else KINDS
    memory = contest.large_batch(ours, not quick)  # first: it reads this process' peak memory
    peak = contest.gemm_peak(clock)
    print(f"GEMM peak {peak / 1e9:.0f} GFLOP/s")
    equal = {
        (batch, work): equal_lengths(batch, work, quick, clock)
        for batch in BATCHES
        for work in BACKWARD
    }
    uneven = {
        (kind, resample, work): ragged_race(kind, resample, work, quick, clock)
        for kind in kinds
        for resample in RESAMPLINGS
        for work in BACKWARD
    }
    print("\nBars, forward and backward unless said")
    bars = equal_bars(equal, peak) + ragged_bars(uneven) + accuracy(kinds)
    bars.append(contest.large_batch_verdict("euclidean", memory))
    races = [x for both in (equal, uneven) for _, records in both.values() for x in records]
    contest.write(arguments, {"races": races, "gemm_peak": peak, "memory": memory, "bars": bars})


if __name__ == "__main__":
    main()
