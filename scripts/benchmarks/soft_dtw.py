"""How fast, how exact and how large is soft-DTW between all pairs of sequences?

    python scripts/benchmarks/soft_dtw.py [--quick] [--threads all] [--out FILE.json]

1,024 pairs of 62 x 62 and of 64 x 250 steps, forward and forward+backward: from given costs, which
is the recursion alone, and from latents of width 512 (32 x 32 sequences), where matrix products
are added for all contestants alike. Then DTW proper, gradients beside float64 ones from gamma 1e-3
to 10, and L_seq of B = 256 clips of 250 x 62 steps.

Peers: ott's SoftDTW under vmap; pysdtw and pytorch-softdtw-cuda, the CPU path of both (torch and
numba, float64 inside; for the second, its `soft_dtw_cuda.py` should be on PYTHONPATH); tslearn
(numba, float64). Those that are not installed are named.

One thread unless `--threads all`. Contestants take turns, so that other load hits all alike; times
are medians, of CPU time on one thread and of wall time on all; the column n says of how many.
Compilation is apart.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import contest
import jax
import jax.numpy as jnp
import numpy as np
from contest import (
    GIB,
    HIGHEST,
    MIB,
    Contestant,
    agree,
    compiled,
    race,
    table,
    torch_module,
    verdict,
    with_torch,
)

from scav_jax.distances import warping
from scav_jax.distances.dtw import dtw_matrix, soft_dtw, soft_dtw_matrix
from scav_jax.sequences import Sequences, sequences

warnings.filterwarnings("ignore")  # of the peers

BATCH, WIDTH, GAMMA = 32, 512, 0.1
PAIRS = BATCH**2
SHAPES = ((62, 62), (64, 250))
RECOMPUTE = 2**24  # bytes: fewer than the alignments of all pairs take
GAMMAS = (1e-3, 1e-2, 0.1, 1.0, 10.0)


# -- from given costs -----------------------------------------------------------------------------


@jax.custom_vjp
def ours_on(costs):
    """Costs `[N, M, B]` -> `[B]`; the derivative is computed along with the values."""
    return _in_tiles(costs, aligned=False)[0]


def _in_tiles(costs, aligned: bool):
    """(values, alignments or None), tile after tile; B is a multiple of their size."""
    n, m, pairs = costs.shape
    block = warping.fast_block(n, m, costs.dtype.itemsize, GIB)
    stream, group, _ = warping.tiling(pairs, 1, block)
    tiles = costs.reshape(n, m, -1, stream, group).transpose(2, 0, 3, 1, 4)
    lengths = [jnp.full((stream, group), steps, jnp.int32) for steps in (n, m)]
    solve = partial(warping.solve_tile, gamma=GAMMA, aligned=aligned)
    values, alignments = jax.lax.map(lambda tile: solve(tile, *lengths), tiles)
    if aligned:
        alignments = alignments.transpose(1, 3, 0, 2, 4).reshape(costs.shape)
    return values.reshape(pairs), alignments


ours_on.defvjp(
    partial(_in_tiles, aligned=True),
    lambda alignments, cotangent: (alignments * cotangent[None, None],),
)


def ott_on(costs):
    """Costs `[B, N, M]` -> `[B]` by ott, whose ground cost returns what it is given."""
    from ott.geometry.costs import CostFn, SoftDTW

    @jax.tree_util.register_pytree_node_class
    class Given(CostFn):
        def all_pairs(self, x, y):
            return x

        def __call__(self, x, y):
            raise NotImplementedError

    distance = SoftDTW(gamma=GAMMA, ground_cost=Given())
    return jax.vmap(lambda cost: distance(cost, cost))(costs)


def torch_recursions() -> dict[str, Callable]:
    """Name -> function of costs `[B, N, M]`, for the torch peers that are installed."""
    torch, found = torch_module(), {}
    if torch is None:
        return found
    try:
        from pysdtw.sdtw_cpu import SoftDTWcpu

        def by_pysdtw(costs):
            lengths = torch.tensor([costs.shape[1:]] * len(costs))
            return SoftDTWcpu.apply(costs, lengths, GAMMA, 0)

        found["pysdtw, CPU"] = by_pysdtw
    except ImportError:
        pass
    try:
        import numba

        numba.cuda.is_available()
        from soft_dtw_cuda import _SoftDTW

        found["pytorch-softdtw-cuda, CPU"] = lambda costs: _SoftDTW.apply(costs, GAMMA, 0)
    except Exception:  # its import needs parts of numba.cuda
        pass
    return found


def tslearn_on(costs, backward: bool, expected, repeats: int) -> Contestant | None:
    """tslearn's compiled float64 loops, pair after pair."""
    try:
        from tslearn.metrics.softdtw_variants import _njit_soft_dtw, _njit_soft_dtw_grad
    except ImportError:
        return None
    many = np.asarray(costs, np.float64)
    n, m = many.shape[1:]

    def call():
        values = np.zeros(len(many))
        for k, cost in enumerate(many):
            table = np.zeros((n + 2, m + 2))
            _njit_soft_dtw(cost, table, gamma=GAMMA)
            values[k] = table[n, m]
            if backward:
                extended = np.vstack((cost, np.zeros(m)))
                extended = np.hstack((extended, np.zeros((n + 1, 1))))
                alignment = np.zeros((n + 2, m + 2))
                alignment[n + 1, m + 1] = 1
                _njit_soft_dtw_grad(extended, table, alignment, gamma=GAMMA)
        return values

    agree("tslearn", call(), expected)
    return Contestant("tslearn, numba, float64", call, repeats=repeats)


def gradient_of(function):
    """-> (values, gradient of their sum)."""

    def both(costs):
        values, pull = jax.vjp(function, costs)
        return values, pull(jnp.ones_like(values))[0]

    return both


def transposed(function):
    """For costs as the peers have them, pairs first."""

    def ordered(costs):
        return function(jnp.moveaxis(costs, 0, -1))

    return ordered


def from_costs(shape, quick: bool, clock) -> dict:
    """Both races on given costs; returns the contestants by name for each, and the records."""
    costs = jax.jit(all_costs)(*latents(shape, 0)).reshape(PAIRS, *shape)
    pairs_last = jnp.moveaxis(costs, 0, -1) + 0.0
    expected = np.asarray(jax.jit(ours_on)(pairs_last))
    agree("ott", jax.jit(ott_on)(costs), expected)
    slow = 3 if quick else 10
    result = {}
    for work, backward in (("forward", False), ("forward and backward", True)):
        wrap = gradient_of if backward else lambda function: function
        contestants = [
            compiled("scav_jax, pairs last", wrap(ours_on), pairs_last, repeats=2 * slow),
            compiled("scav_jax, pairs first", wrap(transposed(ours_on)), costs, repeats=2 * slow),
            compiled("ott SoftDTW, vmap", wrap(ott_on), costs, repeats=slow),
        ]
        torch_peers = torch_recursions()
        contestants += [
            with_torch(name, function, [costs], backward, expected, slow)
            for name, function in torch_peers.items()
        ]
        peer = tslearn_on(costs, backward, expected, slow)
        contestants += [peer] if peer else []
        missing = {"pysdtw, CPU", "pytorch-softdtw-cuda, CPU"} - set(torch_peers)
        race(contestants, clock)
        title = f"From costs: {PAIRS} pairs of {shape[0]} x {shape[1]}, {work}"
        records = table(title, contestants, sorted(missing) + ([] if peer else ["tslearn"]))
        result[work] = {one.name: one for one in contestants}, records
    return result


# -- from latents ---------------------------------------------------------------------------------


def latents(shape, seed: int, batch: int = BATCH, width: int = WIDTH) -> list[jax.Array]:
    """Random sequences of unit variance, as a final LayerNorm leaves them."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, steps, width)), jnp.float32) for steps in shape]


def all_costs(visual, audio):
    """Channel-averaged squared differences `[Q, K, N, M]`, as a user writes them."""
    products = jnp.einsum("qnc,kmc->qknm", visual, audio, precision=HIGHEST)
    squares = jnp.sum(visual**2, -1)[:, None, :, None] + jnp.sum(audio**2, -1)[None, :, None, :]
    return (squares - 2.0 * products) / visual.shape[-1]


def ours(visual, audio, *, gamma=GAMMA, memory_bytes=GIB):
    """All pairs of latents, every step real."""
    visual, audio = sequences(visual), sequences(audio)
    return soft_dtw_matrix(visual, audio, block=None, memory_bytes=memory_bytes, gamma=gamma)[0]


def naive(visual, audio):
    """vmap of vmap of the definition."""

    def row(v: Sequences):
        return jax.vmap(lambda a: soft_dtw(v, a, gamma=GAMMA))(sequences(audio))

    return jax.vmap(row)(sequences(visual))


def ott_on_latents(visual, audio, gamma=GAMMA):
    """vmap of vmap of ott's SoftDTW; its costs sum over channels."""
    from ott.geometry.costs import SoftDTW

    distance = SoftDTW(gamma=gamma)
    visual, audio = (x / np.sqrt(x.shape[-1]).astype(np.float32) for x in (visual, audio))
    return jax.vmap(lambda v: jax.vmap(lambda a: distance(v, a))(audio))(visual)


def torch_on_latents() -> dict[str, Callable]:
    """The torch recursions behind a batched product of all pairs of latents."""
    torch = torch_module()

    def behind_product(recursion):
        def distances(visual, audio):
            x, y = (z / z.shape[-1] ** 0.5 for z in (visual, audio))
            products = torch.einsum("qnc,kmc->qknm", x, y)
            squares = (x * x).sum(-1)[:, None, :, None] + (y * y).sum(-1)[None, :, None, :]
            costs = squares - 2.0 * products
            return recursion(costs.reshape(-1, *costs.shape[2:])).reshape(costs.shape[:2])

        return distances

    return {name: behind_product(function) for name, function in torch_recursions().items()}


def from_latents(shape, quick: bool, clock) -> dict:
    """Both races on latents; as `from_costs`."""
    inputs = latents(shape, 1)
    expected = np.asarray(jax.jit(ours)(*inputs))
    agree("ott", jax.jit(ott_on_latents)(*inputs), expected)
    slow = 3 if quick else 10
    recompute = partial(ours, memory_bytes=RECOMPUTE)
    result = {}
    for work, backward in (("forward", False), ("forward and backward", True)):

        def wrap(function, backward=backward):
            if not backward:
                return function
            return jax.value_and_grad(lambda v, a: jnp.sum(function(v, a)), (0, 1))

        contestants = [compiled("scav_jax", wrap(ours), *inputs, repeats=2 * slow)]
        if backward:
            name = f"scav_jax in {RECOMPUTE / MIB:.0f} MiB, recomputing"
            contestants.append(compiled(name, wrap(recompute), *inputs, repeats=3))
        contestants += [
            compiled("definition, vmap of vmap", wrap(naive), *inputs, repeats=slow),
            compiled("ott SoftDTW, vmap of vmap", wrap(ott_on_latents), *inputs, repeats=slow),
        ]
        contestants += [
            with_torch(name, function, inputs, backward, expected, slow)
            for name, function in torch_on_latents().items()
        ]
        race(contestants, clock)
        title = f"From latents of width {WIDTH}: the same pairs of {shape[0]} x {shape[1]}, {work}"
        result[work] = {one.name: one for one in contestants}, table(title, contestants)
    return result


def hard(quick: bool, clock) -> list[dict]:
    """DTW proper, the retrieval form, forward only."""
    visual, audio = latents(SHAPES[0], 2)

    def own(v, a):
        return dtw_matrix(sequences(v), sequences(a), block=None, memory_bytes=GIB)[0]

    contestants = [compiled("scav_jax", own, visual, audio)]
    missing = []
    try:
        from tslearn.metrics import cdist_dtw

        v, a = (np.asarray(x, np.float64) / np.sqrt(WIDTH) for x in (visual, audio))
        agree("tslearn", cdist_dtw(v[:4], a[:4]) ** 2, jax.jit(own)(visual[:4], audio[:4]))
        contestants.append(
            Contestant("tslearn cdist_dtw, numba, float64", lambda: cdist_dtw(v, a), repeats=3)
        )
    except ImportError:
        missing.append("tslearn")
    race(contestants, clock)
    title = f"DTW from latents of width {WIDTH}: {PAIRS} pairs of 62 x 62, forward"
    return table(title, contestants, missing)


# -- accuracy -------------------------------------------------------------------------------------


def matching(shape, seed: int, batch: int) -> list[jax.Array]:
    """Sequences that show the same course of events, at their own pace and with noise."""
    rng = np.random.default_rng(seed)
    course = rng.normal(size=(batch, max(shape), WIDTH))
    return [
        jnp.asarray(
            course[:, np.arange(steps) * max(shape) // steps]
            + 0.3 * rng.normal(size=(batch, steps, WIDTH)),
            jnp.float32,
        )
        for steps in shape
    ]


def gradient_errors(inputs, gamma: float) -> dict[str, float]:
    """Of ours and of ott's, relative to the largest entry of ours in float64."""

    def gradients(function, values):
        weights = np.random.default_rng(5).normal(size=(len(values[0]), len(values[1])))

        def total(v, a):
            return jnp.sum(function(v, a, gamma=gamma) * jnp.asarray(weights, v.dtype))

        return [np.asarray(x) for x in jax.jit(jax.grad(total, (0, 1)))(*values)]

    exact = [np.asarray(x, np.float64) for x in inputs]
    with jax.enable_x64(True):
        expected = gradients(ours, [jnp.asarray(x) for x in exact])
    errors = {}
    for name, function in (("scav_jax", ours), ("ott", ott_on_latents)):
        results = gradients(function, inputs)
        errors[name] = max(
            float(np.max(np.abs(x - y)) / np.max(np.abs(y)))
            for x, y in zip(results, expected, strict=True)
        )
    return errors


def accuracy(quick: bool) -> list[dict]:
    """Gradients in float32 against float64, by gamma."""
    title = "Gradients in float32 against float64, largest relative error, 16 pairs of 64 x 250"
    print(f"\n{title}\n{'latents':>10} {'gamma':>8} {'scav_jax':>10} {'ott':>10}")
    records = []
    for kind, make in (("unrelated", latents), ("matching", matching)):
        inputs = make(SHAPES[1], 3, batch=4)
        for gamma in GAMMAS[:: 2 if quick else 1]:
            errors = gradient_errors(inputs, gamma)
            print(f"{kind:>10} {gamma:8} {errors['scav_jax']:10.1e} {errors['ott']:10.1e}")
            records.append({"latents": kind, "gamma": gamma, **errors})
    return records


# -- memory ---------------------------------------------------------------------------------------


def large_batch_alone() -> dict:
    """`contest.large_batch` in a process of its own, whose peak memory is its own."""
    command = [sys.executable, __file__, "--large-batch", *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- all ------------------------------------------------------------------------------------------


def speed_bars(costs: dict, from_: str, shape) -> list[dict]:
    """The bars on one kind of input and one shape, forward and backward."""
    contestants = costs["forward and backward"][0]
    own, *_ = contestants.values()
    ott = next(one for name, one in contestants.items() if name.startswith("ott"))
    ratio = ott.median_ms / own.median_ms
    least = 3 if shape == SHAPES[0] else 10
    where = f"{shape[0]} x {shape[1]} from {from_}"
    bars = [verdict(f"{where}: >= {least}x ott", f"{ratio:.1f}x", ratio >= least)]
    if shape == SHAPES[0]:
        for name, one in contestants.items():
            if "sdtw" in name or "softdtw" in name:
                ratio = one.median_ms / own.median_ms
                bars.append(verdict(f"{where}: >= 3x {name}", f"{ratio:.1f}x", ratio >= 3))
    else:
        share = own.temp_bytes / ott.temp_bytes
        figure = f"{own.temp_bytes / MIB:.0f} of {ott.temp_bytes / MIB:.0f} MiB, 1/{1 / share:.0f}"
        bars.append(verdict(f"{where}: <= 1/8 of ott's memory", figure, share <= 1 / 8))
    return bars


def all_pairs(visual: Sequences, audio: Sequences):
    """As `pairwise` computes them."""
    return soft_dtw_matrix(visual, audio, block=None, memory_bytes=GIB, gamma=GAMMA)


def main() -> None:
    """Runs everything and prints the bars."""
    if "--large-batch" in sys.argv:
        print(json.dumps(contest.large_batch(all_pairs, "--quick" not in sys.argv)))
        return
    arguments = contest.parse_arguments(__doc__.split("\n")[0])
    quick, clock = arguments.quick, contest.clock_of(arguments)
    by_input = {
        (kind, shape): measure(shape, quick, clock)
        for kind, measure in (("costs", from_costs), ("latents", from_latents))
        for shape in SHAPES
    }
    races = [x for both in by_input.values() for _, records in both.values() for x in records]
    races += hard(quick, clock)
    peak = contest.gemm_peak(clock)
    own = by_input["latents", SHAPES[0]]["forward and backward"][0]["scav_jax"]
    share = 3 * 2 * PAIRS * 62 * 62 * WIDTH / (own.median_ms / 1e3) / peak
    print(f"\nGEMM peak {peak / 1e9:.0f} GFLOP/s; 62 x 62 from latents reaches {share:.0%} of it")
    errors = accuracy(quick)
    memory = large_batch_alone()
    print("\nBars, forward and backward")
    bars = [bar for key, both in by_input.items() for bar in speed_bars(both, *key)]
    worst = max(x["scav_jax"] for x in errors)
    bars.append(verdict("gradients within 1e-3 of float64", f"{worst:.1e}", worst <= 1e-3))
    bars.append(contest.large_batch_verdict("soft-DTW", memory))
    figures = {"races": races, "gemm_peak": peak, "gemm_share": share, "gradient_errors": errors}
    contest.write(arguments, figures | {"memory": memory, "bars": bars})


if __name__ == "__main__":
    main()
