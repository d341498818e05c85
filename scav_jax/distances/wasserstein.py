"""Wasserstein distance (paper section III-C, distance 3) through ott-jax.

"We follow [41] to make it differentiable and permutation sensitive": ZeroSwot's loss, a debiased
Sinkhorn divergence as in geomloss,

    S(V, A) = OT(V, A) - OT(V, V) / 2 - OT(A, A) / 2

with uniform marginals over real steps, the cost `|x - y|^2 / 2` and one extra coordinate
`position_weight * s / (length - 1)` a step, annealed from `diameter^2` down to
`epsilon = blur^2` by `scaling^2` an iteration. geomloss measures the diameter on the whole batch;
here it is a setting, so that the distance of a pair does not depend on what else is in the batch.
The loop runs in ott-jax's Sinkhorn solver with simultaneous, averaged updates, which is geomloss'
iteration; the gradient is that of one further step with its potentials held (envelope theorem).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scav_jax.sequences import Sequences, step_mask, zero_padding

FULL_PRECISION = jax.lax.Precision.HIGHEST


class _Cloud(NamedTuple):
    """A sequence as weighted points: `points [T, C + 1]`, `mask [T]`, True where real."""

    points: Float[Array, "T D"]
    mask: Bool[Array, "T"]


def wasserstein(
    visual: Sequences,
    audio: Sequences,
    *,
    blur: float = 0.05,
    position_weight: float = 10.0,
    scaling: float = 0.5,
    diameter: float = 256.0,
) -> Float[Array, ""]:
    """The debiased Sinkhorn divergence of one pair; the definition.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      blur: > 0, the square root of the final regularisation epsilon, in units of the latents.
      position_weight: >= 0, of the position coordinate; 0 makes it insensitive to order.
      scaling: in (0, 1), how fast the annealing goes; its square is applied to epsilon.
      diameter: an upper bound of the distances between points, where the annealing starts.

    Returns:
      A scalar, >= 0 up to convergence; smaller is closer.
    """
    options = Options(blur, position_weight, scaling, diameter)
    cross = _cross_term(visual, audio, options)
    return cross - _self_term(visual, options) - _self_term(audio, options)


def wasserstein_matrix(
    lift: Callable[..., Float[Array, "Q K"]], visual: Sequences, audio: Sequences, **options
) -> Float[Array, "Q K"]:
    """All pairs; the terms that depend on one item only are computed once an item."""
    chosen = Options(**options)
    cross = lift(lambda v, a: _cross_term(v, a, chosen))
    visual_self, audio_self = (
        jax.vmap(lambda one: _self_term(one, chosen))(stream) for stream in (visual, audio)
    )
    return cross - visual_self[:, None] - audio_self[None, :]


class Options(NamedTuple):
    """The settings of `wasserstein`, with the same defaults."""

    blur: float = 0.05
    position_weight: float = 10.0
    scaling: float = 0.5
    diameter: float = 256.0


def _cross_term(visual: Sequences, audio: Sequences, options: Options) -> Float[Array, ""]:
    """OT(V, A)."""
    x, y = _cloud(visual, options.position_weight), _cloud(audio, options.position_weight)
    f, g = _potentials(x, y, options)
    epsilon = options.blur**2
    # Each side's gradient comes from its own term, with the other side held (geomloss).
    return _mean(_softmin(x, _held(y), g, epsilon), x.mask) + _mean(
        _softmin(y, _held(x), f, epsilon), y.mask
    )


def _self_term(sequence: Sequences, options: Options) -> Float[Array, ""]:
    """OT(X, X) / 2."""
    x = _cloud(sequence, options.position_weight)
    f, g = _potentials(x, x, options)
    return _mean(_softmin(x, _held(x), 0.5 * (f + g), options.blur**2), x.mask)


def transport_plan(visual: Sequences, audio: Sequences, **options) -> Float[Array, "N M"]:
    """How much mass moves from each visual to each audio step; every real row sums to 1/n."""
    chosen = Options(**options)
    x, y = _cloud(visual, chosen.position_weight), _cloud(audio, chosen.position_weight)
    _, g = _potentials(x, y, chosen)
    logits = (g[None] - _costs(x.points, y.points)) / chosen.blur**2
    rows = jax.nn.softmax(jnp.where(y.mask[None], logits, -jnp.inf), axis=1)
    return jnp.where(x.mask[:, None], rows / jnp.sum(x.mask).astype(rows.dtype), 0.0)


def _cloud(sequence: Sequences, position_weight: float) -> _Cloud:
    steps = sequence.values.shape[-2]
    mask = step_mask(sequence.lengths, steps)
    values = zero_padding(sequence.values, sequence.lengths)
    last = jnp.maximum(sequence.lengths - 1, 1).astype(values.dtype)
    position = position_weight * jnp.arange(steps, dtype=values.dtype) / last
    position = jnp.where(mask, position, 0.0)
    return _Cloud(jnp.concatenate([values, position[:, None]], axis=-1), mask)


def _held(cloud: _Cloud) -> _Cloud:
    return _Cloud(jax.lax.stop_gradient(cloud.points), cloud.mask)


def _schedule(options: Options):
    """(ott's epsilon schedule, the number of iterations until its end was used once)."""
    from ott.geometry import epsilon_scheduler

    blur, _, scaling, diameter = options
    if not (blur > 0 and 0 < scaling < 1 and diameter >= blur):
        raise ValueError(
            "wasserstein: expected blur > 0, 0 < scaling < 1 and diameter >= blur, got "
            f"blur={blur}, scaling={scaling}, diameter={diameter}"
        )
    start = (diameter / blur) ** 2
    annealing = math.ceil(math.log(start) / (-2.0 * math.log(scaling)))
    schedule = epsilon_scheduler.Epsilon(target=blur**2, init=start, decay=scaling**2)
    return schedule, annealing + 1


def _costs(x: Float[Array, "N D"], y: Float[Array, "M D"]) -> Float[Array, "N M"]:
    """|x - y|^2 / 2, computed by centred products at full precision."""
    centre = jax.lax.stop_gradient(jnp.mean(y, axis=0))[None]
    x, y = x - centre, y - centre
    products = jnp.matmul(x, y.T, precision=FULL_PRECISION)
    squared = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None, :] - 2.0 * products
    return 0.5 * jnp.maximum(squared, 0.0)


def _potentials(x: _Cloud, y: _Cloud, options: Options):
    """Dual potentials (f `[N]`, g `[M]`) after the annealed loop, without gradient.

    In geomloss' convention, plan = a b exp((f + g - C) / epsilon); ott's f + g carries
    `epsilon (log a + log b)` as well. Half of it is put on either side: any other share would stay
    in f and, with the other sign, in g for ever, and large as the first epsilon is, it would cost
    float32 its digits.
    """
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

    epsilon, iterations = _schedule(options)
    costs = jax.lax.stop_gradient(_costs(x.points, y.points))
    marginals = [c.mask.astype(costs.dtype) / jnp.sum(c.mask).astype(costs.dtype) for c in (x, y)]
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=costs, epsilon=epsilon), *marginals
    )
    solver = sinkhorn.Sinkhorn(
        lse_mode=True,
        min_iterations=iterations,
        max_iterations=iterations,
        inner_iterations=iterations,
        parallel_dual_updates=True,
        momentum=acceleration.Momentum(value=0.5),
    )
    # ott promotes ranks and dtypes itself; a caller's strict settings are about our code.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        solution = solver(problem, init=_first_potentials(x, y, epsilon(0)))
    shift = epsilon.target * _half_log_marginals(x, y, costs.dtype)
    return jnp.where(x.mask, solution.f - shift, 0.0), jnp.where(y.mask, solution.g - shift, 0.0)


def _first_potentials(x: _Cloud, y: _Cloud, epsilon):
    """geomloss' start, one softmin each way at the first epsilon, in ott's convention."""
    zeros = [jnp.zeros_like(cloud.points[:, 0]) for cloud in (x, y)]
    f, g = _softmin(x, y, zeros[1], epsilon), _softmin(y, x, zeros[0], epsilon)
    shift = epsilon * _half_log_marginals(x, y, f.dtype)
    return tuple(
        jax.lax.stop_gradient(jnp.where(cloud.mask, potential + shift, -jnp.inf))
        for cloud, potential in ((x, f), (y, g))
    )


def _half_log_marginals(x: _Cloud, y: _Cloud, dtype):
    return -0.5 * sum(jnp.log(jnp.sum(cloud.mask).astype(dtype)) for cloud in (x, y))


def _softmin(x: _Cloud, y: _Cloud, g: Float[Array, "M"], epsilon) -> Float[Array, "N"]:
    """`f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)` over the real steps of y."""
    exponents = (jax.lax.stop_gradient(g)[None] - _costs(x.points, y.points)) / epsilon
    lowest = jnp.finfo(exponents.dtype).min
    exponents = jnp.where(y.mask[None], exponents, lowest)
    count = jnp.log(jnp.sum(y.mask).astype(exponents.dtype))
    return -epsilon * (jax.nn.logsumexp(exponents, axis=1) - count)


def _mean(values: Float[Array, "T"], mask: Bool[Array, "T"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.sum(mask).astype(values.dtype)
