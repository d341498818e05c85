"""How fast, how exact and how large is optimal transport between all pairs of sequences?

    python scripts/benchmarks/wasserstein.py [--quick] [--threads all] [--out FILE.json]

1,024 pairs of 62 x 62 steps, 50 Sinkhorn iterations at epsilon 0.1, forward and backward: from
given costs, which is what Sinkhorn itself takes, and from latents of width 512 (32 x 32 sequences),
where matrix products are added for all contestants alike. Then the paper's annealed form beside
geomloss, gradients beside a converged float64 reference, and memory at B = 256.

One thread unless `--threads all`. Contestants take turns, so that other load hits all alike; times
are medians, of CPU time on one thread and of wall time on all; the column n says of how many.
Compilation is apart. Peers that are not installed are named.
"""

import argparse
import json
import os
import sys


def _limit_threads() -> None:
    """One thread a library, before any of them is imported."""
    if "all" in sys.argv or "--threads=all" in sys.argv:
        return
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


_limit_threads()

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from functools import partial  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from scav_jax.distances.wasserstein import (  # noqa: E402
    FixedEpsilon,
    sinkhorn,
    sinkhorn_matrix,
    wasserstein,
    wasserstein_matrix,
)
from scav_jax.objectives import sequence_loss  # noqa: E402
from scav_jax.sequences import Sequences, sequences  # noqa: E402

BATCH, STEPS, WIDTH = 32, 62, 512
PAIRS, EPSILON, ITERATIONS, POSITION_WEIGHT = BATCH**2, 0.1, 50, 0.2
HIGHEST = jax.lax.Precision.HIGHEST
GIB = 2**30


# -- measuring ------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """One way to do the same work.

    Attributes:
      name: in the table.
      call: does the work once and returns when it is done.
      share: of the work that `call` does; its time is divided by it.
      repeats: how often at most.
      compile_s: seconds that compilation took.
      temp_bytes: of XLA's temporary memory; None where nothing knows.
    """

    name: str
    call: Callable[[], object]
    share: float = 1.0
    repeats: int = 10
    compile_s: float | None = None
    temp_bytes: int | None = None
    times: list = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Milliseconds of the whole work."""
        return 1e3 * float(np.median(self.times)) / self.share


def compiled(name: str, function, *inputs, **settings) -> Contestant:
    """A contestant that is one jitted call."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*inputs).compile()
    took = time.perf_counter() - begin
    memory = program.memory_analysis()
    return Contestant(
        name,
        lambda: jax.block_until_ready(program(*inputs)),
        compile_s=took,
        temp_bytes=getattr(memory, "temp_size_in_bytes", None),
        **settings,
    )


def race(contestants: list[Contestant], clock) -> None:
    """In turns; an untimed call first, or whoever follows a large one would pay for its caches."""
    for turn in range(max(one.repeats for one in contestants)):
        for one in contestants:
            if turn < one.repeats:
                one.call()
                begin = clock()
                one.call()
                one.times.append(clock() - begin)


def table(title: str, contestants: list[Contestant], missing=()) -> list[dict]:
    """Prints one race and returns it as records; ratios are to the first contestant."""
    first = contestants[0].median_ms
    print(f"\n{title}\n{'':46} {'ms':>9} {'ratio':>7} {'temp MiB':>9} {'compile s':>9} {'n':>3}")
    records = []
    for one in contestants:
        temp = "-" if one.temp_bytes is None else f"{one.temp_bytes / 2**20:.1f}"
        took = "-" if one.compile_s is None else f"{one.compile_s:.1f}"
        ratio = one.median_ms / first
        print(
            f"{one.name:46} {one.median_ms:9.1f} {ratio:7.2f} {temp:>9} {took:>9} "
            f"{len(one.times):3}"
        )
        records.append(
            {
                "work": title,
                "name": one.name,
                "ms": one.median_ms,
                "ratio": ratio,
                "temp_bytes": one.temp_bytes,
                "compile_s": one.compile_s,
                "repeats": len(one.times),
            }
        )
    for name in missing:
        print(f"{name:46} not installed")
    return records


def verdict(bar: str, figure: str, holds: bool) -> dict:
    """Prints whether a bar is reached."""
    print(f"{'PASS' if holds else 'FAIL'}  {bar}: {figure}", flush=True)
    return {"bar": bar, "figure": figure, "holds": bool(holds)}


# -- peers on given costs: costs [P, N, M] -> (values [P], plans [P, N, M]) -----------------------


def ours(costs, epsilon=EPSILON, iterations=ITERATIONS, tile=32):
    """What `sinkhorn_matrix` does with the costs of its tiles."""
    method = FixedEpsilon(epsilon, iterations)
    pairs, n, m = costs.shape
    lanes = m + -m % 8

    def part(costs):
        rows = jnp.ones((tile, n), bool)
        columns = jnp.broadcast_to(jnp.arange(lanes) < m, (tile, lanes))
        costs = jnp.pad(costs, ((0, 0), (0, 0), (0, lanes - m)))
        f, g, _ = method.potentials(costs, rows, columns)
        plan, _ = method.plans(costs, f, g, rows, columns)
        return method.values(costs, f, g, rows, columns), plan[:, :, :m]

    values, plans = jax.lax.map(part, costs.reshape(-1, tile, n, m))
    return values.reshape(pairs), plans.reshape(costs.shape)


def by_hand(costs, epsilon=EPSILON, iterations=ITERATIONS):
    """The textbook scaling iteration on a stored kernel, minima absorbed, gradient = plan."""
    _, n, m = costs.shape
    f_start = jnp.min(costs, axis=2)
    reduced = costs - f_start[:, :, None]
    g_start = jnp.min(reduced, axis=1)
    kernel = jnp.exp(-(reduced - g_start[:, None, :]) / epsilon)

    def step(scalings, _):
        u, _ = scalings
        v = 1 / m / jnp.einsum("pnm,pn->pm", kernel, u, precision=HIGHEST)
        return (1 / n / jnp.einsum("pnm,pm->pn", kernel, v, precision=HIGHEST), v), None

    ones = jnp.ones_like(f_start), jnp.ones_like(g_start)
    (u, v), _ = jax.lax.scan(step, ones, None, length=iterations)
    values = jnp.mean(f_start + epsilon * jnp.log(u), axis=1)
    values += jnp.mean(g_start + epsilon * jnp.log(v), axis=1) + epsilon * np.log(n * m)
    return values, kernel * u[:, :, None] * v[:, None, :]


def stock_ott(costs, lse_mode: bool, epsilon=EPSILON, iterations=ITERATIONS):
    """ott's Sinkhorn on its own Geometry; its gradient is Danskin's (`use_danskin=True`)."""
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    solver = ott_sinkhorn.Sinkhorn(
        lse_mode=lse_mode,
        min_iterations=iterations,
        max_iterations=iterations,
        inner_iterations=iterations,
        use_danskin=True,
    )

    def one(cost):
        problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=epsilon))
        return solver(problem).reg_ot_cost

    values, pull = jax.vjp(jax.vmap(one), costs)
    return values, pull(jnp.ones_like(values))[0]


def pot_on(costs: np.ndarray, sample: int, method: str) -> Contestant | None:
    """POT's float64 loop on a few of the problems; the plan is what it returns."""
    try:
        import ot
    except ImportError:
        return None
    few = np.asarray(costs[:sample], np.float64)
    weights = np.full(STEPS, 1 / STEPS)

    def call():
        for cost in few:
            ot.bregman.sinkhorn(
                weights, weights, cost, EPSILON, method, ITERATIONS, stopThr=0, warn=False
            )

    name = f"POT {method}, float64, {sample} pairs extrapolated"
    return Contestant(name, call, share=sample / PAIRS, repeats=3)


def from_costs(quick: bool, clock) -> tuple[list[dict], list[Contestant]]:
    """The race on given costs."""
    visual, audio = latents(0)
    costs = jax.jit(all_costs)(visual.values, audio.values).reshape(PAIRS, STEPS, STEPS)
    slow = 3 if quick else 10
    contestants = [
        compiled("scav_jax sinkhorn", ours, costs),
        compiled("hand-written scaling", by_hand, costs),
        compiled(
            "ott kernel mode, Danskin", partial(stock_ott, lse_mode=False), costs, repeats=slow
        ),
        compiled("ott lse mode, Danskin", partial(stock_ott, lse_mode=True), costs, repeats=slow),
    ]
    peers = [pot_on(np.asarray(costs), 16, "sinkhorn")]
    peers += [] if quick else [pot_on(np.asarray(costs), 4, "sinkhorn_log")]
    contestants += [peer for peer in peers if peer]
    race(contestants, clock)
    title = (
        f"From costs: {PAIRS} pairs of {STEPS} x {STEPS}, {ITERATIONS} iterations, value and plan"
    )
    return table(title, contestants, [] if all(peers) else ["POT"]), contestants


# -- from latents ---------------------------------------------------------------------------------


def latents(seed: int, width: int = WIDTH, batch: int = BATCH) -> tuple[Sequences, Sequences]:
    """Random sequences of unit variance, as a final LayerNorm leaves them."""
    rng = np.random.default_rng(seed)
    shape = batch, STEPS, width
    return tuple(sequences(jnp.asarray(rng.normal(size=shape), jnp.float32)) for _ in range(2))


def all_costs(visual, audio):
    """Channel-averaged squared differences and positions `[Q, K, N, M]`, as a user writes them."""
    products = jnp.einsum("qnc,kmc->qknm", visual, audio, precision=HIGHEST)
    squares = jnp.sum(visual**2, -1)[:, None, :, None] + jnp.sum(audio**2, -1)[None, :, None, :]
    positions = jnp.linspace(0.0, 1.0, STEPS)
    apart = positions[:, None] - positions[None, :]
    return (squares - 2.0 * products) / visual.shape[-1] + POSITION_WEIGHT * apart**2


def through_costs(solve):
    """Latents -> (sum of values, gradients), with the plan as the gradient of the costs."""

    def gradients(visual, audio):
        costs, pull = jax.vjp(all_costs, visual, audio)
        values, plans = solve(costs.reshape(PAIRS, STEPS, STEPS))
        return jnp.sum(values), pull(plans.reshape(costs.shape))

    return gradients


def gradients_of(matrix):
    """Latents -> (sum of D, gradients) by automatic differentiation of a matrix form."""

    def total(visual, audio):
        return jnp.sum(matrix(sequences(visual), sequences(audio)))

    return jax.value_and_grad(total, (0, 1))


def naive(visual: Sequences, audio: Sequences, pair):
    """vmap of vmap of the definition."""
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(visual, audio)


def from_latents(quick: bool, clock) -> tuple[list[dict], list[Contestant]]:
    """The race on latents, forward and backward; and forward only."""
    inputs = tuple(stream.values for stream in latents(0))
    slow = 3 if quick else 10

    def fast(v, a, **options):
        return sinkhorn_matrix(v, a, **options)[0]

    def with_aux(v, a):
        distances, aux = sinkhorn_matrix(v, a, debiased=False)
        return distances, aux["marginal_error"]

    plain = partial(fast, debiased=False)
    contestants = [
        compiled("scav_jax sinkhorn, not debiased", gradients_of(plain), *inputs),
        compiled("scav_jax sinkhorn, debiased", gradients_of(fast), *inputs),
        compiled("hand-written scaling", through_costs(by_hand), *inputs),
        compiled(
            "ott kernel mode, Danskin",
            through_costs(partial(stock_ott, lse_mode=False)),
            *inputs,
            repeats=slow,
        ),
        compiled(
            "ott lse mode, Danskin",
            through_costs(partial(stock_ott, lse_mode=True)),
            *inputs,
            repeats=slow,
        ),
        compiled(
            "definition, vmap of vmap",
            gradients_of(partial(naive, pair=partial(sinkhorn, debiased=False))),
            *inputs,
            repeats=slow,
        ),
    ]
    race(contestants, clock)
    title = f"From latents of width {WIDTH}: the same pairs, forward and backward"
    records = table(title, contestants)
    forward = [
        compiled("scav_jax sinkhorn", _on_values(plain), *inputs),
        compiled("scav_jax sinkhorn, convergence used too", _on_values(with_aux), *inputs),
        compiled("hand-written scaling", lambda v, a: through_costs(by_hand)(v, a)[0], *inputs),
    ]
    race(forward, clock)
    return records + table("The same, forward only", forward), contestants


def _on_values(matrix):
    return lambda v, a: matrix(sequences(v), sequences(a))


# -- the paper's form -----------------------------------------------------------------------------


def annealed(quick: bool, clock) -> list[dict]:
    """`wasserstein` beside geomloss: the same schedule, geomloss on the pairs side by side."""
    batch = 8 if quick else 16
    visual, audio = latents(1, batch=batch)
    inputs = visual.values, audio.values
    contestants = [
        compiled("scav_jax wasserstein", gradients_of(_first(wasserstein_matrix)), *inputs),
        compiled(
            "definition, vmap of vmap",
            gradients_of(partial(naive, pair=wasserstein)),
            *inputs,
            repeats=3,
        ),
    ]
    peer = geomloss_on(*(np.asarray(x) for x in inputs), repeats=3)
    race(contestants + ([peer] if peer else []), clock)
    title = (
        f"Paper's form (debiased, annealed): {batch**2} pairs of {STEPS} x {STEPS}, width {WIDTH}"
    )
    return table(title, contestants + ([peer] if peer else []), [] if peer else ["geomloss"])


def _first(matrix):
    return lambda v, a: matrix(v, a)[0]


def geomloss_on(visual: np.ndarray, audio: np.ndarray, repeats: int) -> Contestant | None:
    """geomloss' SamplesLoss on every pair, batched, with the position as one more coordinate."""
    try:
        import torch
        from geomloss import SamplesLoss
    except ImportError:
        return None
    if "all" not in sys.argv:
        torch.set_num_threads(1)
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=0.05, scaling=0.5, diameter=256.0, backend="tensorized"
    )
    position = 10.0 * np.linspace(0.0, 1.0, STEPS)[None, :, None]

    def points(x):
        whole = np.broadcast_to(position, (*x.shape[:2], 1))
        return torch.tensor(np.concatenate([x, whole], axis=2), dtype=torch.float32)

    v, a = points(visual), points(audio)
    rows = torch.arange(len(v)).repeat_interleave(len(a))
    columns = torch.arange(len(a)).repeat(len(v))

    def call():
        x, y = v.clone().requires_grad_(), a.clone().requires_grad_()
        loss(x[rows], y[columns]).sum().backward()
        return x.grad, y.grad

    return Contestant("geomloss, tensorized, torch on the CPU", call, repeats=repeats)


# -- accuracy -------------------------------------------------------------------------------------


def converged_plans(costs: np.ndarray, epsilon: float, tolerance: float = 1e-12) -> np.ndarray:
    """Plans of `[P, N, M]` costs in float64, over-relaxed in the log domain until they converge."""
    _, n, m = costs.shape
    f, g = np.min(costs, axis=2), np.zeros(costs.shape[::2])

    def soft_minimum(values, axis):
        lowest = values.min(axis=axis, keepdims=True)
        total = np.exp((lowest - values) / epsilon).sum(axis=axis)
        return lowest.squeeze(axis) - epsilon * np.log(total)

    for turn in range(100_000):
        over = 0.75 if turn >= 20 and turn % 100 < 90 else 0.0
        new = soft_minimum(costs - f[:, :, None], 1) - epsilon * np.log(m)
        g = new + over * (new - g)
        new = soft_minimum(costs - g[:, None, :], 2) - epsilon * np.log(n)
        f = new + over * (new - f)
        if turn % 100 == 99:
            plans = np.exp((f[:, :, None] + g[:, None, :] - costs) / epsilon)
            if np.abs(plans.sum(axis=1) - 1 / m).sum(axis=1).max() < tolerance:
                return plans
    raise RuntimeError("the float64 reference did not converge")


def pair_gradients(plans, visual, audio):
    """Each pair's gradients for its own latents `[Q, K, N, C]`, `[Q, K, M, C]`, in float64."""
    plans = plans.reshape(len(visual), len(audio), STEPS, STEPS)
    of_v = plans.sum(3)[..., None] * visual[:, None] - np.einsum("qknm,kmc->qknc", plans, audio)
    of_a = plans.sum(2)[..., None] * audio[None] - np.einsum("qknm,qnc->qkmc", plans, visual)
    return [2.0 / visual.shape[-1] * x for x in (of_v, of_a)]


def relative_error(results, expected) -> float:
    """The largest relative error of any pair's gradient, in its own norm."""
    worst = 0.0
    for result, right in zip(results, expected, strict=True):
        wrong = np.linalg.norm(np.asarray(result, np.float64) - right, axis=(2, 3))
        worst = max(worst, float(np.max(wrong / np.linalg.norm(right, axis=(2, 3)))))
    return worst


def accuracy() -> tuple[list[dict], float]:
    """Gradients in float32 after 50 iterations against converged float64 ones."""
    title = "Gradients after 50 iterations, against converged float64 (relative, worst of 25 pairs)"
    print(
        f"\n{title}\n{'width':>6} {'epsilon':>8} {'sinkhorn':>10} {'plain scaling':>14} converged"
    )
    records, at_bar = [], 0.0
    for width in (512, 64):
        values = [stream.values for stream in latents(2, width, batch=5)]
        exact = [np.asarray(x, np.float64) for x in values]
        costs = np.asarray(all_costs_64(*exact)).reshape(-1, STEPS, STEPS)
        for epsilon in (1.0, 0.1, 0.03):
            expected = pair_gradients(converged_plans(costs, epsilon), *exact)
            result, converged = _gradient_of_each_pair(values, epsilon)
            error = relative_error(result, expected)
            plans = by_hand(jnp.asarray(costs, jnp.float32), epsilon)[1]
            plain = relative_error(pair_gradients(np.asarray(plans, float), *exact), expected)
            print(f"{width:6} {epsilon:8} {error:10.1e} {plain:14.1e} {converged:.0%} of pairs")
            records.append(
                {"width": width, "epsilon": epsilon, "error": error, "plain_error": plain}
            )
            if epsilon == 0.03:
                at_bar = max(at_bar, error)
    return records, at_bar


def _gradient_of_each_pair(values, epsilon: float):
    """`pair_gradients` by `sinkhorn_matrix`, and the share of pairs that say they converged."""

    def distances(v, a):
        return sinkhorn_matrix(sequences(v), sequences(a), epsilon=epsilon, debiased=False)

    @jax.jit
    def of_pair(i, j):
        gradients = jax.grad(lambda v, a: distances(v, a)[0][i, j], (0, 1))(*values)
        return gradients[0][i], gradients[1][j]

    indices = range(len(values[0]))
    pairs = [[of_pair(i, j) for j in indices] for i in indices]
    converged = jax.jit(distances)(*values)[1]["converged"]
    return [
        np.array([[pair[k] for pair in row] for row in pairs]) for k in (0, 1)
    ], converged.mean()


def all_costs_64(visual, audio):
    """`all_costs` in numpy."""
    squares = np.sum(visual**2, -1)[:, None, :, None] + np.sum(audio**2, -1)[None, :, None, :]
    products = np.einsum("qnc,kmc->qknm", visual, audio)
    positions = np.linspace(0.0, 1.0, STEPS)
    apart = positions[:, None] - positions[None, :]
    return (squares - 2.0 * products) / visual.shape[-1] + POSITION_WEIGHT * apart**2


def finite_everywhere() -> bool:
    """Whether gradients are finite from epsilon 0.01 to 10."""
    values = [stream.values for stream in latents(3, batch=4)]
    return all(
        np.isfinite(x).all()
        for epsilon in (0.01, 0.03, 0.1, 1.0, 10.0)
        for x in _gradient_of_each_pair(values, epsilon)[0]
    )


# -- memory ---------------------------------------------------------------------------------------


def large_batch(matrix, execute: bool, clock) -> dict:
    """L_seq and its gradient for B = 256 at n = 250, m = 62, width 512."""
    batch, n, m = 256, 250, 62
    key_v, key_a = jax.random.split(jax.random.key(0))
    shapes = [jax.ShapeDtypeStruct((batch, steps, WIDTH), jnp.float32) for steps in (n, m)]

    def loss(v, a):
        return sequence_loss(matrix(sequences(v), sequences(a))[0], jnp.zeros(()))[0]

    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
    temp = program.memory_analysis().temp_size_in_bytes
    seconds = None
    if execute:
        v, a = (jax.random.normal(k, s.shape) for k, s in zip((key_v, key_a), shapes, strict=True))
        begin = clock()
        value, gradients = jax.block_until_ready(program(v, a))
        seconds = clock() - begin
        assert np.isfinite(value) and all(bool(jnp.all(jnp.isfinite(x))) for x in gradients)
    return {"temp_bytes": temp, "seconds": seconds}


# -- all ------------------------------------------------------------------------------------------


def gemm_peak(clock) -> float:
    """FLOP/s of a large float32 matrix product."""
    x = jnp.ones((2048, 2048))
    one = compiled("gemm", lambda x: jnp.matmul(x, x, precision=HIGHEST), x)
    race([one], clock)
    return 2 * 2048**3 / (min(one.times))


def hardware_shares(costs: Contestant, latent: Contestant, peak: float) -> dict:
    """How much of the machine the fast form uses."""
    rate = 2 * ITERATIONS * PAIRS * STEPS * STEPS * 4 / (costs.median_ms / 1e3)
    flops = 3 * 2 * PAIRS * STEPS * STEPS * WIDTH / (latent.median_ms / 1e3)
    print(
        f"\nGEMM peak {peak / 1e9:.0f} GFLOP/s; from latents {flops / peak:.0%} of it in the three"
        f" matrix products alone; from costs {rate / 1e9:.0f} GB/s of kernel read"
    )
    return {"gemm_peak": peak, "gemm_share": flops / peak, "kernel_bytes_per_s": rate}


def main() -> None:
    """Runs everything and prints the bars."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats, nothing large executed"
    )
    parser.add_argument("--threads", choices=("one", "all"), default="one")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.threads == "all" else time.process_time
    if jax.default_backend() != "cpu":
        clock = time.perf_counter
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, threads: {arguments.threads}")
    cost_records, on_costs = from_costs(arguments.quick, clock)
    latent_records, on_latents = from_latents(arguments.quick, clock)
    annealed_records = annealed(arguments.quick, clock)
    shares = hardware_shares(on_costs[0], on_latents[0], gemm_peak(clock))
    accuracy_records, error = accuracy()
    memory = {
        name: large_batch(matrix, not arguments.quick, clock)
        for name, matrix in (("sinkhorn", sinkhorn_matrix), ("wasserstein", wasserstein_matrix))
    }
    print("\nBars")
    times = {one.name: one.median_ms for one in on_costs}
    own, hand = times["scav_jax sinkhorn"], times["hand-written scaling"]
    stock = min(times["ott kernel mode, Danskin"], times["ott lse mode, Danskin"])
    own_latents, hand_latents = on_latents[0].median_ms, on_latents[2].median_ms
    bars = [
        verdict("from costs within 1.1x of hand-written", f"{own / hand:.2f}x", own <= 1.1 * hand),
        verdict(
            "from latents within 1.1x of hand-written",
            f"{own_latents / hand_latents:.2f}x",
            own_latents <= 1.1 * hand_latents,
        ),
        verdict(
            "from costs >= 6x stock ott, its faster mode", f"{stock / own:.1f}x", stock >= 6 * own
        ),
        verdict("gradient within 1e-3 of float64 at epsilon 0.03", f"{error:.1e}", error <= 1e-3),
        verdict("gradients finite, epsilon 0.01 to 10", "all", finite_everywhere()),
    ]
    for name, figures in memory.items():
        took = "not executed" if figures["seconds"] is None else f"{figures['seconds']:.0f} s"
        figure = f"{figures['temp_bytes'] / GIB:.2f} GiB temporary, {took}"
        bars.append(verdict(f"{name}, B = 256 in 8 GiB", figure, figures["temp_bytes"] < 8 * GIB))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(
                {
                    "device": jax.devices()[0].device_kind,
                    "threads": arguments.threads,
                    "races": cost_records + latent_records + annealed_records,
                    "hardware": shares,
                    "accuracy": accuracy_records,
                    "memory": memory,
                    "bars": bars,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
