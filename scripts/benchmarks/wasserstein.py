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

from functools import partial

import contest
import jax
import jax.numpy as jnp
import numpy as np
from contest import HIGHEST, Contestant, compiled, race, table, verdict

from scav_jax.distances.transport import Costs
from scav_jax.distances.wasserstein import (
    FixedEpsilon,
    sinkhorn,
    sinkhorn_matrix,
    wasserstein,
    wasserstein_matrix,
)
from scav_jax.sequences import Sequences, sequences

BATCH, STEPS, WIDTH = 32, 62, 512
PAIRS, EPSILON, ITERATIONS, POSITION_WEIGHT = BATCH**2, 0.1, 50, 0.2


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
        whole = Costs(costs, jnp.zeros_like(costs[:, :, 0]), jnp.zeros_like(costs[:, 0]))
        f, g, _ = method.potentials(whole, rows, columns)
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
    torch = contest.torch_module()
    try:
        from geomloss import SamplesLoss
    except ImportError:
        return None
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


# -- all ------------------------------------------------------------------------------------------


def hardware_shares(costs: Contestant, latent: Contestant, peak: float) -> dict:
    """How much of the machine the fast form uses."""
    rate = 2 * ITERATIONS * PAIRS * STEPS * STEPS * 4 / (costs.median_ms / 1e3)
    flops = 3 * 2 * PAIRS * STEPS * STEPS * WIDTH / (latent.median_ms / 1e3)
    print(
        f"\nGEMM peak {peak / 1e9:.0f} GFLOP/s; from latents {flops / peak:.0%} of it in the three"
        f" matrix products alone; from costs {rate / 1e9:.0f} GB/s of kernel read"
    )
    return {"gemm_peak": peak, "gemm_share": flops / peak, "kernel_bytes_per_s": rate}


def bars_of(on_costs: list[Contestant], on_latents: list[Contestant], error: float) -> list[dict]:
    """The bars on speed and gradients."""
    times = {one.name: one.median_ms for one in on_costs}
    own, hand = times["scav_jax sinkhorn"], times["hand-written scaling"]
    stock = min(times["ott kernel mode, Danskin"], times["ott lse mode, Danskin"])
    own_latents, hand_latents = on_latents[0].median_ms, on_latents[2].median_ms
    return [
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


def main() -> None:
    """Runs everything and prints the bars."""
    arguments = contest.parse_arguments(__doc__.split("\n")[0])
    quick, clock = arguments.quick, contest.clock_of(arguments)
    memory = {  # first: it reads this process' peak memory
        name: contest.large_batch(partial(matrix, block=None, memory_bytes=contest.GIB), not quick)
        for name, matrix in (("sinkhorn", sinkhorn_matrix), ("wasserstein", wasserstein_matrix))
    }
    cost_records, on_costs = from_costs(quick, clock)
    latent_records, on_latents = from_latents(quick, clock)
    races = cost_records + latent_records + annealed(quick, clock)
    shares = hardware_shares(on_costs[0], on_latents[0], contest.gemm_peak(clock))
    accuracy_records, error = accuracy()
    print("\nBars")
    bars = bars_of(on_costs, on_latents, error)
    bars += [contest.large_batch_verdict(name, figures) for name, figures in memory.items()]
    figures = {"races": races, "hardware": shares, "accuracy": accuracy_records}
    contest.write(arguments, figures | {"memory": memory, "bars": bars})


if __name__ == "__main__":
    main()
