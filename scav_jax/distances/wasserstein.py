"""Wasserstein distance (paper section III-C, distance 3) in two forms, both through ott-jax.

"We follow [41] to make it differentiable and permutation sensitive." Steps are points with equal
weights, and their positions in time, from 0 at the first step to 1 at the last, add to the cost of
moving one onto another. With entropic transport, `a_i = 1/n` and `b_j = 1/m`,

    OT(V, A) = min_P <P, C> + epsilon KL(P | a b'),     P 1 = a,  P' 1 = b

`wasserstein` is ZeroSwot's loss [41], geomloss' debiased Sinkhorn divergence

    S(V, A) = OT(V, A) - OT(V, V) / 2 - OT(A, A) / 2
    C_ij = |v_i - a_j|^2 / 2 + position_weight^2 (p_i - p_j)^2 / 2

annealed from `diameter^2` down to `epsilon = blur^2` by `scaling^2` an iteration. geomloss measures
the diameter on the whole batch; here it is a setting, so that the distance of a pair does not
depend on what else is in the batch. Its few iterations do not converge, by design: the value is
geomloss'. The gradient is that of one further step with its potentials held, as in geomloss.

`sinkhorn` is the plain form: one epsilon, in the units of soft-DTW's costs, and as many iterations
as it takes to converge, several times cheaper than annealing when they are products with a stored
kernel (see `sinkhorn.py`):

    C_ij = mean_c (v_ic - a_jc)^2 + position_weight (p_i - p_j)^2

Its gradient is the plan, by Danskin's envelope theorem: exact at convergence.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scav_jax.base.errors import InputError
from scav_jax.distances.annealing import (
    annealed_potentials,
    annealed_self_potential,
    epsilons,
    further_step,
    less_potentials,
    plan_with_exact_rows,
)
from scav_jax.distances.narrow import in_float32
from scav_jax.distances.products import inner_products, plain_products
from scav_jax.distances.transport import (
    Costs,
    Method,
    mean_of_real,
    tile_costs,
    transport_matrix,
)
from scav_jax.sequences import Sequences, step_mask


@in_float32
def wasserstein(
    visual: Sequences,
    audio: Sequences,
    *,
    blur: float = 0.05,
    position_weight: float = 10.0,
    scaling: float = 0.5,
    diameter: float = 256.0,
) -> Float[Array, ""]:
    """ZeroSwot's debiased Sinkhorn divergence of one pair; the definition.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      blur: > 0, the square root of the final regularisation epsilon, in units of the latents.
      position_weight: >= 0, of the position coordinate; 0 makes it insensitive to order.
      scaling: in (0, 0.999], how fast the annealing goes; its square is applied to epsilon.
      diameter: an upper bound of the distances between points, where the annealing starts.

    Returns:
      A scalar, >= 0 up to convergence; smaller is closer. Padding is not read.

    Raises:
      InputError: an option out of its range.
    """
    method = Annealed(blur, position_weight, scaling, diameter)
    cross = _annealed_cost(method, visual, audio)
    return cross - _annealed_self_cost(method, visual) - _annealed_self_cost(method, audio)


@in_float32
def sinkhorn(
    visual: Sequences,
    audio: Sequences,
    *,
    epsilon: float = 0.1,
    iterations: int = 50,
    position_weight: float = 0.2,
    debiased: bool = True,
) -> Float[Array, ""]:
    """Entropic transport of one pair at a fixed epsilon; the definition, in the log domain.

    The value is the dual objective `<a, f> + <b, g>` after `iterations` Sinkhorn iterations
    (over-relaxed, see `sinkhorn.OverRelaxed`), a lower bound of OT that they converge to. The
    regulariser is epsilon times the relative entropy to the independent coupling `a b'`, as in
    `ot.solve(reg_type="KL")` of POT; with the plain entropy it were less by
    `epsilon (log n + log m)`.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      epsilon: regularisation > 0, in units of the channel-averaged squared difference.
      iterations: >= 1. Fifty do for latents of unit variance down to epsilon 0.03; `pairwise`
        says in aux which pairs converged.
      position_weight: >= 0, what it adds to a cost to move mass from the first step to the last;
        0 makes it insensitive to order. ZeroSwot's ratio of both at width 512 is 0.2.
      debiased: whether the mean of OT(V, V) and OT(A, A) is taken off, so that a sequence is at
        distance 0 from itself.

    Returns:
      A scalar; smaller is closer. Padding is not read.

    Raises:
      InputError: an option out of its range.
    """
    method = FixedEpsilon(epsilon, iterations, position_weight)
    cross = _fixed_cost(method, visual, audio)
    if not debiased:
        return cross
    both = _fixed_cost(method, visual, visual) + _fixed_cost(method, audio, audio)
    return cross - 0.5 * both


@in_float32
def transport_plan(visual: Sequences, audio: Sequences, **options) -> Float[Array, "N M"]:
    """How much mass `wasserstein` moves from each visual to each audio step, for plotting.

    Every real row sums to 1/n; columns sum to 1/m up to convergence. Padding is 0.
    """
    return _plan(Annealed(**options), visual, audio)


@in_float32
def sinkhorn_plan(
    visual: Sequences, audio: Sequences, *, debiased: bool = True, **options
) -> Float[Array, "N M"]:
    """How much mass `sinkhorn` moves from each visual to each audio step, for plotting.

    Every real row sums to 1/n; columns sum to 1/m up to convergence. Padding is 0. The plan between
    the two sequences is the same whether the distance is debiased or not.
    """
    del debiased
    return _plan(FixedEpsilon(**options), visual, audio)


def _plan(method: Method, visual: Sequences, audio: Sequences) -> Float[Array, "N M"]:
    costs, rows, columns = _one_problem(method, visual, audio)
    f, g, _ = method.potentials(costs, rows, columns)
    return method.plans(costs.reduced, f, g, rows, columns)[0][0]


def wasserstein_matrix(
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | None = None,
    memory_bytes: int = 2**30,
    blur: float = 0.05,
    position_weight: float = 10.0,
    scaling: float = 0.5,
    diameter: float = 256.0,
) -> tuple[Float[Array, "Q K"], dict[str, Array]]:
    """`wasserstein` of all pairs; see `transport_matrix`."""
    method = Annealed(blur, position_weight, scaling, diameter)
    return transport_matrix(
        method, visual, audio, debiased=True, block=block, memory_bytes=memory_bytes
    )


def sinkhorn_matrix(
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | None = None,
    memory_bytes: int = 2**30,
    epsilon: float = 0.1,
    iterations: int = 50,
    position_weight: float = 0.2,
    debiased: bool = True,
) -> tuple[Float[Array, "Q K"], dict[str, Array]]:
    """`sinkhorn` of all pairs; see `transport_matrix`."""
    method = FixedEpsilon(epsilon, iterations, position_weight)
    return transport_matrix(
        method, visual, audio, debiased=debiased, block=block, memory_bytes=memory_bytes
    )


# -- both as methods that solve batches of problems -----------------------------------------------


@dataclass(frozen=True)
class Annealed:
    """The settings of `wasserstein`, and what they make of given costs: a `Method`."""

    blur: float = 0.05
    position_weight: float = 10.0
    scaling: float = 0.5
    diameter: float = 256.0

    def __post_init__(self):
        _check("wasserstein", "blur", self.blur, "> 0", self.blur > 0)
        _check_position_weight("wasserstein", self.position_weight)
        slow = "in (0, 0.999], closer to 1 it anneals for ever"
        _check("wasserstein", "scaling", self.scaling, slow, 0 < self.scaling <= 0.999)
        wide = self.blur <= self.diameter < math.inf
        _check("wasserstein", "diameter", self.diameter, f">= blur {self.blur}", wide)

    def scales(self, width: int) -> tuple[float, float]:
        """(of squared differences, of squared differences of positions) in the costs."""
        del width
        return 0.5, 0.5 * self.position_weight**2

    def products(self, subscripts: str, x: Array, y: Array) -> Array:
        """To the last digit, which is a hundredth of the last epsilon."""
        return inner_products(subscripts, x, y)

    @property
    def schedule(self) -> list[float]:
        """The epsilon of every iteration."""
        return epsilons(self.blur, self.scaling, self.diameter)

    def potentials(self, costs, rows, columns):
        """Dual potentials after the annealed loop, and the error of the plan of its last step."""
        f, g = annealed_potentials(costs, rows, columns, self.schedule)
        plan, _ = self.plans(costs.reduced, f, g, rows, columns)
        return f, g, _wrong_mass(plan, columns)

    def values(self, reduced, f, g, rows, columns) -> Float[Array, " P"]:
        """One further step from both sides: `<a, softmin(C - g)> + <b, softmin(C' - f)>`."""
        rest, last = less_potentials(reduced, f, g, rows, columns), self.blur**2
        by_row = further_step(rest, f, columns, last)
        by_column = further_step(rest.swapaxes(1, 2), g, rows, last)
        return mean_of_real(by_row, rows) + mean_of_real(by_column, columns)

    def plans(self, reduced, f, g, rows, columns):
        """The gradients of the two terms of `values`: a plan with exact rows, one with columns."""
        rest, last = less_potentials(reduced, f, g, rows, columns), self.blur**2
        by_column = plan_with_exact_rows(rest.swapaxes(1, 2), columns, last)
        return plan_with_exact_rows(rest, rows, last), by_column.swapaxes(1, 2)

    def self_potentials(self, costs, mask):
        """The same of items with themselves, where f and g are one."""
        f = annealed_self_potential(costs, mask, self.schedule)
        _, plan = self.half_self(costs.reduced, f, f, mask)
        return f, f, _wrong_mass(plan, mask)

    def half_self(self, reduced, f, g, mask):
        """(OT(X, X) / 2, its gradient for costs of held columns)."""
        rest, last = less_potentials(reduced, f, g, mask, mask), self.blur**2
        value = mean_of_real(further_step(rest, f, mask, last), mask)
        return value, plan_with_exact_rows(rest, mask, last)


@dataclass(frozen=True)
class FixedEpsilon:
    """The settings of `sinkhorn`, and what they make of given costs: a `Method`."""

    epsilon: float = 0.1
    iterations: int = 50
    position_weight: float = 0.2
    kernel: str = "auto"

    def __post_init__(self):
        positive = 0 < self.epsilon < math.inf
        _check("sinkhorn", "epsilon", self.epsilon, "> 0; its limit at 0 is the EMD", positive)
        counted = type(self.iterations) is int and self.iterations >= 1
        _check("sinkhorn", "iterations", self.iterations, "a whole number >= 1", counted)
        _check_position_weight("sinkhorn", self.position_weight)

    def scales(self, width: int) -> tuple[float, float]:
        """(of squared differences, of squared differences of positions) in the costs."""
        return 1.0 / width, self.position_weight

    def products(self, subscripts: str, x: Array, y: Array) -> Array:
        """At full precision: epsilon is far above what float32 rounds away."""
        return plain_products(subscripts, x, y)

    def potentials(self, costs, rows, columns):
        """Dual potentials after the iterations, and the error of their plan."""
        from scav_jax.distances.sinkhorn import fixed_potentials

        f, g, error = fixed_potentials(
            costs.whole,
            rows,
            columns,
            epsilon=self.epsilon,
            iterations=self.iterations,
            kernel=self.kernel,
        )
        f = jnp.where(rows, f - costs.of_rows, 0.0)
        return f, jnp.where(columns, g - costs.of_columns, 0.0), error

    def values(self, reduced, f, g, rows, columns) -> Float[Array, " P"]:
        """`<a, f> + <b, g>` of KL-regularised transport; ott's potentials carry the marginals."""
        del reduced
        counts = (
            jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(f.dtype) for mask in (rows, columns)
        )
        entropy = sum(jnp.log(count) for count in counts)
        return mean_of_real(f, rows) + mean_of_real(g, columns) + self.epsilon * entropy

    def plans(self, reduced, f, g, rows, columns):
        """The plan, which is the gradient of `values` from either side.

        The last iteration made its rows exact. With f they would be so up to what float32 rounds
        off f over epsilon, in an exponent: no bound for latents of some hundreds.
        """
        del f
        rest = jnp.where(columns[:, None, :], reduced - g[:, None, :], jnp.inf)
        plan = plan_with_exact_rows(rest, rows, self.epsilon)
        return plan, plan

    def self_potentials(self, costs, mask):
        """The same of items with themselves."""
        return self.potentials(costs, mask, mask)

    def half_self(self, reduced, f, g, mask):
        """(OT(X, X) / 2, its gradient for costs of held columns)."""
        plan, _ = self.plans(reduced, f, g, mask, mask)
        value = 0.5 * self.values(reduced, f, g, mask, mask)
        return value, 0.5 * (plan + plan.swapaxes(1, 2))


def check_fixed_epsilon(*, debiased: bool = True, **options) -> None:
    """Raises `InputError` for an option of `sinkhorn` out of its range."""
    del debiased  # both are possible
    FixedEpsilon(**options)


def _wrong_mass(plan: Float[Array, "P N M"], columns: Bool[Array, "P M"]) -> Float[Array, " P"]:
    """`sum_j |sum_i P_ij - 1/m|`, for a plan whose rows are exact."""
    count = jnp.maximum(jnp.sum(columns, axis=-1, keepdims=True), 1).astype(plan.dtype)
    # A product, since XLA would make the plan again for every row of a sum.
    ones = jnp.ones_like(plan[:, :, 0])
    sums = plain_products("pn,pnm->pm", ones, plan)
    wrong = jnp.abs(sums - 1.0 / count)
    return jnp.sum(jnp.where(columns, wrong, 0.0), axis=1)


def _check(distance: str, option: str, value, expected: str, holds: bool) -> None:
    if not holds:
        raise InputError(f"{distance}: {option} should be {expected}, got {value}")


def _check_position_weight(distance: str, weight: float) -> None:
    _check(distance, "position_weight", weight, ">= 0", 0 <= weight < math.inf)


# -- one pair: the definition, by automatic differentiation ---------------------------------------


def _one_problem(method: Method, visual: Sequences, audio: Sequences):
    """(costs of a batch of this one pair, real rows `[1, N]`, real columns `[1, M]`)."""
    rows = step_mask(visual.lengths, visual.values.shape[-2])
    columns = step_mask(audio.lengths, audio.values.shape[-2])
    costs = _pair_costs(method, visual, audio)
    return jax.tree.map(lambda x: x[None], costs), rows[None], columns[None]


def _pair_costs(method: Method, visual: Sequences, audio: Sequences) -> Costs:
    """The ground costs of one pair: those of a tile of one."""
    one = (x[None] for x in (visual.values, audio.values, visual.lengths, audio.lengths))
    costs = tile_costs(method, *one)
    steps = audio.values.shape[-2]
    return Costs(costs.reduced[0, :, :steps], costs.of_rows[0], costs.of_columns[0, :steps])


_held = jax.lax.stop_gradient


def _annealed_cost(method: Annealed, visual: Sequences, audio: Sequences) -> Float[Array, ""]:
    """OT(V, A); each side's gradient comes from its own term, with the other held (geomloss)."""
    costs, rows, columns = _one_problem(method, _held(visual), _held(audio))
    f, g, _ = method.potentials(costs, rows, columns)
    f, g, rows, columns = f[0], g[0], rows[0], columns[0]
    of_visual = _pair_costs(method, visual, _held(audio))
    of_audio = _pair_costs(method, _held(visual), audio)
    rest = less_potentials(of_visual.reduced, f, g, rows, columns)
    by_row = further_step(rest, f, columns, method.blur**2) + of_visual.of_rows
    rest = less_potentials(of_audio.reduced, f, g, rows, columns).T
    by_column = further_step(rest, g, rows, method.blur**2) + of_audio.of_columns
    return mean_of_real(by_row, rows) + mean_of_real(by_column, columns)


def _annealed_self_cost(method: Annealed, sequence: Sequences) -> Float[Array, ""]:
    """OT(X, X) / 2."""
    costs, mask, _ = _one_problem(method, _held(sequence), _held(sequence))
    f, g, _ = method.self_potentials(costs, mask)
    costs = _pair_costs(method, sequence, _held(sequence))
    f, g, mask = f[0], g[0], mask[0]
    rest = less_potentials(costs.reduced, f, g, mask, mask)
    by_row = further_step(rest, f, mask, method.blur**2) + costs.of_rows
    return mean_of_real(by_row, mask)


def _fixed_cost(method: FixedEpsilon, visual: Sequences, audio: Sequences) -> Float[Array, ""]:
    """OT(V, A) as the dual objective, whose gradient at held potentials is the plan."""
    in_log_domain = replace(method, kernel="log")
    costs, rows, columns = _one_problem(method, visual, audio)
    held = _held(costs)
    f, g, _ = in_log_domain.potentials(held, rows, columns)
    plan, _ = method.plans(held.reduced, f, g, rows, columns)
    value = method.values(held.reduced, f, g, rows, columns)
    value += mean_of_real(held.of_rows, rows) + mean_of_real(held.of_columns, columns)
    return (value + jnp.sum(plan * (costs.whole - held.whole)))[0]
