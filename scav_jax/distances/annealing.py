"""geomloss' annealed Sinkhorn loop: dual potentials of a batch of problems (Feydy 2020, 3.3.3).

    f_i <- (f_i + softmin_j(C_ij - g_j)) / 2    g_j <- (g_j + softmin_i(C_ij - f_i)) / 2
    softmin_j(x_j) = -epsilon log mean_j exp(-x_j / epsilon)

both from the old potentials, once for each epsilon of the schedule, from `diameter^2` down to
`blur^2`. The first epsilon is used twice beside the potentials' start, as in geomloss 0.2.5
(`epsilon_schedule`, `sinkhorn_loop`). It does not converge, by design.

At blur 0.05 epsilon is 0.0025, and float32 rounds a cost of 500 to a hundredth of that. Four means
keep its digits. Costs come less what depends on one side only (`Costs`), from products that lose
nothing (`products`). At the first epsilons, where all exponents are near 0 and epsilon multiplies
what is lost there, the logarithm of a mean is taken of what the mean of the exponents leaves. And
from then on potentials are sums of two numbers, which are taken off the costs before each step:
where mass moves next to nothing is left of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from scav_jax.distances.transport import Costs

FAR = 1e30  # a cost, in float32
CAREFUL = 2e4  # final epsilons, above which softmin is taken carefully


def epsilons(blur: float, scaling: float, diameter: float) -> list[float]:
    """The epsilon of every iteration, as geomloss 0.2.5 makes them for p = 2.

    >>> [round(e, 2) for e in epsilons(blur=0.5, scaling=0.5, diameter=3.0)]
    [9.0, 9.0, 2.25, 0.56, 0.25]
    """
    annealed = np.arange(2 * np.log(diameter), 2 * np.log(blur), 2 * np.log(scaling))
    return [diameter**2, *np.exp(annealed).tolist(), blur**2]


def annealed_potentials(
    costs: Costs, rows: Bool[Array, "P N"], columns: Bool[Array, "P M"], schedule: list[float]
) -> tuple[Float[Array, "P N 2"], Float[Array, "P M 2"]]:
    """(f, g) after the loop, less what `costs` keeps apart, as sums of two; 0 in the padding."""

    def new(reduced, f, g, epsilon, careful):
        by_row = softmin(reduced, g, columns, epsilon, careful)
        by_column = softmin(reduced.swapaxes(1, 2), f, rows, epsilon, careful)
        return jnp.where(rows, by_row, 0.0), jnp.where(columns, by_column, 0.0)

    reduced = _far_in_padding(costs.reduced, rows, columns)
    start = new(reduced, -costs.of_rows, -costs.of_columns, schedule[0], True)
    return _averaged(new, reduced, start, schedule)


def annealed_self_potential(
    costs: Costs, mask: Bool[Array, "P N"], schedule: list[float]
) -> Float[Array, "P N 2"]:
    """The one potential of problems of items with themselves; 0 in the padding."""

    def new(reduced, f, epsilon, careful):
        return (jnp.where(mask, softmin(reduced, f, mask, epsilon, careful), 0.0),)

    reduced = _far_in_padding(costs.reduced, mask, mask)
    start = new(reduced, -costs.of_rows, schedule[0], True)
    return _averaged(new, reduced, start, schedule)[0]


def _far_in_padding(reduced, rows, columns):
    """Costs that no mass moves at where the padding is, so that loops need no mask."""
    return jnp.where(rows[..., :, None] & columns[..., None, :], reduced, FAR)


def _averaged(new, reduced, potentials: tuple, schedule: list[float]) -> tuple:
    """`potentials <- (potentials + new(reduced, *potentials)) / 2`, once for every epsilon."""
    careful = sum(epsilon > CAREFUL * schedule[-1] for epsilon in schedule)

    def whole(old, epsilon):
        fresh = new(reduced, *old, epsilon, True)
        return tuple(0.5 * (x + y) for x, y in zip(old, fresh, strict=True)), None

    def in_two(old, epsilon):
        rest = _less(reduced, old[0], old[-1])
        changes = new(rest, *(jnp.zeros_like(high) for high, _ in old), epsilon, False)
        return tuple(_plus(*pair) for pair in zip(old, changes, strict=True)), None

    first, rest = (jnp.asarray(s, reduced.dtype) for s in (schedule[:careful], schedule[careful:]))
    potentials, _ = jax.lax.scan(whole, potentials, first)
    in_two_parts = tuple((x, jnp.zeros_like(x)) for x in potentials)
    in_two_parts, _ = jax.lax.scan(in_two, in_two_parts, rest)
    return tuple(jnp.stack(pair, axis=-1) for pair in in_two_parts)


def _plus(potential: tuple[Array, Array], change) -> tuple[Array, Array]:
    """A sum of two and half a change, again as a sum of two."""
    high, lost = _two_sum(potential[0], 0.5 * change)
    return _two_sum(high, lost + potential[1])


def _two_sum(x, y):
    """(x + y rounded, what was rounded away) (Knuth 1969)."""
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def _less(reduced, f: tuple[Array, Array], g: tuple[Array, Array]):
    """`C_ij - f_i - g_j` for potentials that are sums of two, rounded once."""
    first, lost = _two_sum(f[0][..., :, None], -reduced)
    total, also_lost = _two_sum(first, g[0][..., None, :])
    low = f[1][..., :, None] + g[1][..., None, :]
    # Made once: XLA would repeat it in each of the reductions over it.
    return jax.lax.optimization_barrier(-(total + (lost + also_lost + low)))


def less_potentials(
    reduced: Float[Array, "*P N M"],
    f: Float[Array, "*P N 2"],
    g: Float[Array, "*P M 2"],
    rows: Bool[Array, "*P N"],
    columns: Bool[Array, "*P M"],
) -> Float[Array, "*P N M"]:
    """What is left of the costs, 0 where mass moves: its `softmin` is a further step's change."""
    reduced = _far_in_padding(reduced, rows, columns)
    return _less(reduced, (f[..., 0], f[..., 1]), (g[..., 0], g[..., 1]))


def further_step(
    rest: Float[Array, "*P N M"],
    f: Float[Array, "*P N 2"],
    columns: Bool[Array, "*P M"],
    epsilon: float,
) -> Float[Array, "*P N"]:
    """`softmin_j(C_ij - g_j)` from what is left of the costs: geomloss' last extrapolation."""
    return softmin(rest, jnp.zeros_like(rest[..., 0, :]), columns, epsilon) + jnp.sum(f, axis=-1)


def plan_with_exact_rows(
    rest: Float[Array, "P N M"], rows: Bool[Array, "P N"], epsilon: float
) -> Float[Array, "P N M"]:
    """The gradient of the mean of `further_step` over real rows: the rows sum to 1/n."""
    shares = jax.nn.softmax(rest * (-1.0 / epsilon), axis=2)
    count = jnp.maximum(jnp.sum(rows, axis=1), 1).astype(shares.dtype)
    return jnp.where(rows[:, :, None], shares / count[:, None, None], 0.0)


def softmin(
    costs: Float[Array, "*P N M"],
    g: Float[Array, "*P M"],
    columns: Bool[Array, "*P M"],
    epsilon,
    careful: bool = False,
) -> Float[Array, "*P N"]:
    """`-epsilon log mean_j exp((g_j - C_ij) / epsilon)` over real columns; the others are far.

    `careful`: to the last digits also where all exponents are near 0.
    """
    real = columns.astype(costs.dtype)
    count = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1.0)
    if careful:
        return _careful_softmin(costs, g[..., None, :], real[..., None, :], count, epsilon)
    exponents = (g[..., None, :] - costs) * (1.0 / epsilon)
    highest = jax.lax.stop_gradient(jnp.max(exponents, axis=-1, keepdims=True))
    log_mean = jnp.log(jnp.sum(jnp.exp(exponents - highest), axis=-1) / count)
    return -epsilon * (highest[..., 0] + log_mean)


def _careful_softmin(costs, g, real, count, epsilon):
    """`-epsilon log mean exp((g - costs) / epsilon)`, by the mean and what is beyond it.

    With x about its mean, `log mean exp x = log1p(mean(expm1(x) - x))`, where little is lost and
    nothing is multiplied by a large epsilon. Large x are moved down first.
    """
    # The costs' own mean is made once for all iterations; `real` is a factor, which is vectorized
    # where a selection is not.
    mean = (jnp.sum(g * real, axis=-1) - jnp.sum(costs * real, axis=-1)) / count
    mean = mean[..., None]
    x = (g - costs - mean) * real * (1.0 / epsilon)
    highest = jnp.max(x, axis=-1, keepdims=True)
    moved = jnp.where(highest > 1.0, highest, 0.0)
    x = x - moved
    beyond = jnp.sum((jnp.expm1(x) - x) * real, axis=-1) / count - moved[..., 0]
    # The highest is one of those that the mean is of.
    log_mean = moved[..., 0] + jnp.log1p(jnp.maximum(beyond, 1.0 / count - 1.0))
    return -(mean[..., 0] + epsilon * log_mean)
