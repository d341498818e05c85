"""Entropic transport between uniform marginals, solved through ott-jax: potentials of given costs.

    min_P <P, C> + epsilon KL(P | a b')     a_i = 1/n on n real rows, b_j = 1/m on m real columns

Its plan is `P = exp((f_i + g_j - C_ij) / epsilon)` with ott's potentials f and g, which carry the
marginals; in the padding they are 0 here. Everything works on a batch of problems `[P, N, M]`, and
nothing has a gradient: the distances take the plan for it (Danskin's envelope theorem).

ott takes seconds to import, so import this module where it is used.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

from scav_jax.distances.forms import chosen

PLAIN_ITERATIONS = 10  # before over-relaxation: far from the solution it may diverge
# Over-relaxation by 1 + excess overshoots, which decays by `excess` an iteration: the excess is as
# large as leaves about 1e-5 of that after the iterations there are.
EXCESSES = ((50, 0.75), (27, 0.5))  # (from this many iterations, excess)


class Potentials(NamedTuple):
    """Solutions of a batch of problems.

    Attributes:
      f: of the rows, 0 in the padding.
      g: of the columns, 0 in the padding.
      error: how much mass the plan moves into wrong columns, `sum_j |sum_i P_ij - b_j|`, in 0..2;
        its rows are exact.
    """

    f: Float[Array, "*problems N"]
    g: Float[Array, "*problems M"]
    error: Float[Array, "*problems"]


def uniform(mask: Bool[Array, "*problems T"], dtype) -> Float[Array, "*problems T"]:
    """Equal weights on real steps, which sum to 1, and 0 on padding."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return mask.astype(dtype) / count.astype(dtype)


def fixed_potentials(
    costs: Float[Array, "P N M"],
    rows: Bool[Array, "P N"],
    columns: Bool[Array, "P M"],
    *,
    epsilon: float,
    iterations: int,
    kernel: str = "auto",
) -> Potentials:
    """Alternating Sinkhorn iterations at one epsilon, the last of which leaves the rows exact.

    The minimum of every row, then of every column is taken off the costs first, so that
    `K = exp(-C / epsilon)` has a 1 in each of them. The iterations are matrix-vector products with
    K stored where that is stable (`kernel="auto"`): where no cost exceeds `largest_exponent` times
    epsilon. Then every entry of K is a normal number, and so are the products: the scalings
    `exp(f / epsilon)` reach `exp(range / epsilon)` at worst, since a plain Sinkhorn iteration never
    moves away from the solution in the maximum norm; with over-relaxation a third of that
    exponent was the most that was seen. Else the whole batch is solved in the log domain.

    Args:
      costs: finite.
      rows: which rows are real.
      columns: which columns are real.
      epsilon: > 0, in units of the costs.
      iterations: >= 1; each updates both potentials.
      kernel: "auto", or "stored" or "log" whatever the costs.
    """
    f_start, g_start, reduced = absorb_minima(costs, rows, columns)

    stored, log = (
        jax.vmap(partial(one, epsilon=epsilon, iterations=iterations)) for one in (_stored, _log)
    )
    solved = reduced, rows, columns
    if kernel == "auto":
        limit = epsilon * largest_exponent(costs.dtype)
        beyond = jnp.logical_not(jnp.max(reduced) <= limit)  # NaN too
        f, g, error = chosen(beyond, (stored, log), *solved)
    else:
        f, g, error = {"stored": stored, "log": log}[kernel](*solved)
    f, g = jnp.where(rows, f + f_start, 0.0), jnp.where(columns, g + g_start, 0.0)
    return Potentials(f, g, error)


def largest_exponent(dtype) -> float:
    """x up to which `exp(-x)` is a thousand times the smallest normal number: 80 in float32."""
    return -math.log(float(jnp.finfo(dtype).tiny)) - math.log(1000.0)


def absorb_minima(
    costs: Float[Array, "P N M"], rows: Bool[Array, "P N"], columns: Bool[Array, "P M"]
) -> tuple[Float[Array, "P N"], Float[Array, "P M"], Float[Array, "P N M"]]:
    """(f, g, costs - f - g >= 0) with a zero in every row and column; 0 in the padding."""
    real = rows[:, :, None] & columns[:, None, :]
    highest = jnp.asarray(jnp.inf, costs.dtype)
    f = jnp.min(jnp.where(columns[:, None, :], costs, highest), axis=2)
    f = jnp.where(rows, f, 0.0)
    reduced = costs - f[:, :, None]
    g = jnp.min(jnp.where(rows[:, :, None], reduced, highest), axis=1)
    g = jnp.where(columns, g, 0.0)
    return f, g, jnp.where(real, reduced - g[:, None, :], 0.0)


@jax.tree_util.register_pytree_node_class
class StoredKernel(geometry.Geometry):
    """A geometry that keeps its kernel: ott's own evaluates it again for every product."""

    def apply_kernel(self, vec, eps=None, axis=0):
        """The kernel, transposed for axis 0, times a vector; epsilon is fixed."""
        del eps
        kernel = self._kernel_matrix.T if axis == 0 else self._kernel_matrix
        return jnp.matmul(kernel, vec, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_pytree_node_class
class OverRelaxed(sinkhorn.Sinkhorn):
    """Sinkhorn whose updates go further than to the optimum of a block (Thibault et al. 2021).

    Fifty iterations then come ten times as near as plain ones, or nearer. ott's own momentum does
    the same by two powers a number and iteration, which cost more than the matrix products; here
    they are square roots. The first iterations and the last are plain.
    """

    def one_iteration(self, ot_prob, state, iteration, compute_error):
        """ott's hook for an iteration, without the error that ott takes at the last.

        That one is a branch whose sides differ under `shard_map`; here it is `_wrong_mass`.
        """
        del compute_error
        step = self.lse_step if self.lse_mode else self.kernel_step
        return step(ot_prob, state, iteration)

    def relaxing(self, iteration):
        """Whether this iteration is over-relaxed."""
        return (iteration >= PLAIN_ITERATIONS) & (iteration < self.max_iterations - 1)

    @property
    def excess(self) -> float:
        """By how much an update exceeds the plain one."""
        return next((e for least, e in EXCESSES if self.max_iterations >= least), 0.0)

    def kernel_step(self, ot_prob, state, iteration):
        """One iteration on scalings: ott's hook for `lse_mode=False`."""
        geom, relaxing = ot_prob.geom, self.relaxing(iteration)
        v = geom.update_scaling(state.fu, ot_prob.b, iteration, axis=0)
        v = self._relaxed_scaling(state.gv, v, relaxing)
        u = geom.update_scaling(v, ot_prob.a, iteration, axis=1)
        u = self._relaxed_scaling(state.fu, u, relaxing)
        return state.set(potentials=(u, v))

    def lse_step(self, ot_prob, state, iteration):
        """One iteration on potentials: ott's hook for `lse_mode=True`."""
        geom, f, g = ot_prob.geom, state.fu, state.gv
        weight = jnp.where(self.relaxing(iteration), 1.0 + self.excess, 1.0)
        new = geom.update_potential(f, g, jnp.log(ot_prob.b), iteration, axis=0)
        g = self.momentum(weight, g, new, lse_mode=True)
        new = geom.update_potential(f, g, jnp.log(ot_prob.a), iteration, axis=1)
        return state.set(potentials=(self.momentum(weight, f, new, lse_mode=True), g))

    def _relaxed_scaling(self, old, new, relaxing):
        """`new (new / old)^excess`; padding is 0 and stays so."""
        if self.excess == 0.0:
            return new
        ratio = new / jnp.where(old > 0, old, 1.0)
        root = jnp.sqrt(ratio)
        power = root * jnp.sqrt(root) if self.excess == 0.75 else root
        return new * jnp.where(relaxing, power, 1.0)


def _stored(reduced, rows, columns, epsilon: float, iterations: int) -> Potentials:
    """One problem by products with the stored kernel."""
    kernel = jnp.exp(-reduced / epsilon)
    geom = StoredKernel(cost_matrix=reduced, kernel_matrix=kernel, epsilon=epsilon)
    start = rows.astype(reduced.dtype), columns.astype(reduced.dtype)
    f, g = _solved(iterations, geom, rows, columns, start, lse_mode=False)
    scalings = geom.scaling_from_potential(f), geom.scaling_from_potential(g)
    sums = geom.marginal_from_scalings(*scalings, axis=0)
    return Potentials(f, g, _wrong_mass(sums, columns))


def _log(reduced, rows, columns, epsilon: float, iterations: int) -> Potentials:
    """One problem, the same iterations in the log domain."""
    geom = geometry.Geometry(cost_matrix=reduced, epsilon=epsilon)
    f, g = (jnp.where(mask, 0.0, -jnp.inf).astype(reduced.dtype) for mask in (rows, columns))
    f, g = _solved(iterations, geom, rows, columns, (f, g), lse_mode=True)
    exponents = (f[:, None] + g[None, :] - reduced) / epsilon
    return Potentials(f, g, _wrong_mass(jnp.sum(jnp.exp(exponents), axis=0), columns))


def _solved(iterations: int, geom, rows, columns, start, lse_mode: bool):
    """(f, g) after so many iterations."""
    solver = OverRelaxed(
        min_iterations=iterations,
        max_iterations=iterations,
        inner_iterations=iterations,
        lse_mode=lse_mode,
    )
    marginals = [uniform(mask, geom.cost_matrix.dtype) for mask in (rows, columns)]
    # ott promotes ranks and dtypes itself; a caller's strict settings are about our code.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        solution = solver(linear_problem.LinearProblem(geom, *marginals), init=start)
    return solution.f, solution.g


def _wrong_mass(sums: Float[Array, " M"], columns: Bool[Array, " M"]) -> Float[Array, ""]:
    """How far the column sums of a plan are from where they should be, in total."""
    return jnp.sum(jnp.where(columns, jnp.abs(sums - uniform(columns, sums.dtype)), 0.0))
