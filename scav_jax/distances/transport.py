"""All pairs of an optimal transport distance, in tiles of D, with gradients written by hand.

A tile is some visual times some audio sequences: their costs are one matrix product, and their
transport problems are solved together. What is particular to a distance is its `Method`.
"""

import math
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from scav_jax.distances.products import plain_products
from scav_jax.sequences import Sequences, step_mask, zero_padding

CONVERGED = 1e-3  # of the mass may be in wrong columns of the plan; ott's own threshold
LANES = 8  # columns are padded to a multiple of it: unaligned rows halve the speed on a CPU
CACHE_BYTES = 2**19  # of one core: costs of a tile that fit in it are iterated on at its speed
COPIES = 8  # arrays of cost size that solving and differentiating a tile keeps
POTENTIALS = "potentials"
KEEP_POTENTIALS = jax.checkpoint_policies.save_only_these_names(POTENTIALS)


class Costs(NamedTuple):
    """The costs `reduced + of_rows + of_columns` of a batch of problems.

    What depends on one side only moves that side's potential by as much, and nothing else. It is
    kept apart: `|v|^2` and `|a|^2` are many times what differs between pairs, and float32 would
    round that away.

    Attributes:
      reduced: `[P, N, M]`, the scaled products of both sides, negative.
      of_rows: `[P, N]`, 0 in the padding.
      of_columns: `[P, M]`, 0 in the padding.
    """

    reduced: Float[Array, "*P N M"]
    of_rows: Float[Array, "*P N"]
    of_columns: Float[Array, "*P M"]

    @property
    def whole(self) -> Float[Array, "*P N M"]:
        return self.reduced + self.of_rows[..., :, None] + self.of_columns[..., None, :]


@runtime_checkable
class Method(Protocol):
    """How problems with `Costs` and masks of real rows and columns are solved.

    Hashable. No method needs a gradient of its own: `plans` and `half_self` say what it is. All
    potentials are those of the reduced costs, in the form in which the method wants them back.
    """

    def scales(self, width: int) -> tuple[float, float]:
        """What squared differences of latents and of positions (in 0..1) count in the costs."""
        ...

    def products(self, subscripts: str, x: Array, y: Array) -> Array:
        """`einsum` of latents, as precisely as the method needs its costs."""
        ...

    def potentials(self, costs: Costs, rows, columns) -> tuple[Array, Array, Array]:
        """(f `[P, N, ...]`, g `[P, M, ...]`; the plan's mass in wrong columns `[P]`)."""
        ...

    def values(self, reduced, f, g, rows, columns) -> Float[Array, " P"]:
        """OT of every problem with the reduced costs alone."""
        ...

    def plans(self, reduced, f, g, rows, columns) -> tuple[Array, Array]:
        """The gradients `[P, N, M]` of the values for costs that move with rows, with columns."""
        ...

    def self_potentials(self, costs: Costs, mask) -> tuple[Array, Array, Array]:
        """`potentials` of problems of items with themselves."""
        ...

    def half_self(self, reduced, f, g, mask) -> tuple[Array, Array]:
        """(OT(X, X) / 2 with the reduced costs alone, its gradient for the items' rows)."""
        ...


def transport_matrix(
    method: Method,
    visual: Sequences,
    audio: Sequences,
    *,
    debiased: bool,
    block: int | None,
    memory_bytes: int,
) -> tuple[Float[Array, "Q K"], dict[str, Array]]:
    """All pairs of Q visual and K audio sequences.

    The terms that depend on one item only are computed once an item. The backward pass computes
    plans again, tile by tile; between the passes costs and potentials are kept, or only potentials
    (at most 2 (N + M) numbers a pair), or nothing, whichever fits half of `memory_bytes`.

    Args:
      method: of the distance.
      visual: `[Q, N, C]`.
      audio: `[K, M, C]`.
      debiased: whether OT(V, V) / 2 and OT(A, A) / 2 are taken off.
      block: pairs at a time, or None for what is fast within `memory_bytes`.
      memory_bytes: of what lives beside inputs, D and gradients. On top may come one more copy of
        the gradients, where there are self terms, and of the inputs, padded to whole tiles, where
        Q or K has no suitable divisor.

    Returns:
      D, and aux: `marginal_error` `[Q, K]`, how much mass the plan of a pair moves into wrong
      columns, `sum_j |sum_i P_ij - 1/m|` in 0..2, or one of its self terms, if that is more; and
      `converged` `[Q, K]`, whether that is less than 1e-3.
    """
    tile = _tile(visual, audio, block, memory_bytes)
    distances, errors = _cross_terms(method, tile, visual, audio)
    if debiased:
        pairs = tile.rows * tile.columns
        of_visual, error = _self_terms(method, visual, pairs)
        distances, errors = distances - of_visual[:, None], jnp.maximum(errors, error[:, None])
        of_audio, error = _self_terms(method, audio, pairs)
        distances, errors = distances - of_audio[None], jnp.maximum(errors, error[None])
    return distances, {"marginal_error": errors, "converged": errors < CONVERGED}


# -- tiles ----------------------------------------------------------------------------------------


class _Tile(NamedTuple):
    """A tile of D is `rows` by `columns` pairs, of which the backward pass finds `kept`."""

    rows: int
    columns: int
    kept: tuple[str, ...]


def _tile(visual: Sequences, audio: Sequences, block: int | None, memory_bytes: int) -> _Tile:
    """As square as possible, of at most `block` pairs, or of what is fast within the memory."""
    (queries, n, width), (candidates, m, _) = visual.values.shape, audio.values.shape
    m += -m % LANES
    size = visual.values.dtype.itemsize
    if block is None:
        pair_bytes = COPIES * n * m * size + 2 * (n + m) * width * size
        block = max(1, memory_bytes // 2 // pair_bytes)
        if jax.default_backend() == "cpu":
            block = min(block, max(1, CACHE_BYTES // (n * m * size)))
    rows = min(queries, math.isqrt(block))
    columns = min(candidates, block // rows)
    rows = min(queries, block // columns)
    return _Tile(
        _even(queries, rows),
        _even(candidates, columns),
        _kept(n, m, memory_bytes // 2 // (queries * candidates * size)),
    )


def _kept(n: int, m: int, numbers: int) -> tuple[str, ...]:
    """What is kept of every pair, of as many numbers as that."""
    potentials = 2 * (n + m)
    if n * m + potentials <= numbers:
        return "f", "g", "costs"
    return ("f", "g") if potentials <= numbers else ()


def _even(total: int, most: int) -> int:
    """The size of parts, from half of `most`, that fills the last part best; the largest such."""
    return min(range(most, most // 2, -1), key=lambda size: -total % size)


def _in_parts(stream: Sequences, size: int):
    """Values `[parts, size, T, C]` and lengths `[parts, size]`; what is left over has length 1."""
    missing = -len(stream.lengths) % size
    values = jnp.pad(stream.values, ((0, missing), (0, 0), (0, 0)))
    lengths = jnp.pad(stream.lengths, (0, missing), constant_values=1)
    return values.reshape(-1, size, *values.shape[1:]), lengths.reshape(-1, size)


def _alike(*arrays):
    """The same arrays; inside of `shard_map`, all of them vary over the same mesh axes.

    Loops and derivatives written by hand need that; a selection that is never made gives it.
    """
    ones = (jax.lax.stop_gradient(x).reshape(-1)[0].astype(jnp.float32) for x in arrays)
    nothing = sum(jnp.where(False, one, 0.0) for one in ones)
    return [jnp.where(False, nothing.astype(x.dtype), x) for x in arrays]


def _zeros_like(x):
    """Zeros that vary over the same mesh axes as x, which `jnp.zeros_like` do not."""
    return jnp.where(False, x, 0.0)


# -- costs ----------------------------------------------------------------------------------------


def positions(lengths: Int[Array, "*B"], steps: int, dtype) -> Float[Array, "*B T"]:
    """-1/2 at the first step, 1/2 at the last real one; -1/2 for a single step."""
    last = jnp.maximum(lengths - 1, 1).astype(dtype)[..., None]
    return jnp.arange(steps, dtype=dtype).reshape((1,) * lengths.ndim + (-1,)) / last - 0.5


def one_sided(scales, values, lengths) -> Float[Array, "*B T"]:
    """What the costs of steps hold of one side alone: `|x|^2` and its position's; 0 in padding."""
    at = positions(lengths, values.shape[-2], values.dtype)
    costs = scales[0] * jnp.sum(values * values, axis=-1) + scales[1] * at * at
    return zero_padding(costs[..., None], lengths)[..., 0]


def mean_of_real(values: Float[Array, "*P T"], mask: Bool[Array, "*P T"]) -> Float[Array, "*P"]:
    """The mean over real steps."""
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / count.astype(values.dtype)


def _about_own_means(
    values: Float[Array, "*B T C"], lengths: Int[Array, "*B"]
) -> tuple[Float[Array, "*B T C"], Float[Array, "*B C"]]:
    """(steps less the mean of their sequence, finite in the padding; the means, held)."""
    x = zero_padding(values, lengths)
    mean = jnp.sum(x, axis=-2) / lengths[..., None].astype(x.dtype)
    mean = jax.lax.stop_gradient(mean)
    return zero_padding(x - mean[..., None, :], lengths), mean


def tile_costs(method: Method, visual, audio, visual_lengths, audio_lengths) -> Costs:
    """Costs `[q k, N, M']` of q by k pairs; M' is M padded to whole vector lanes.

    About the means of both sequences, `e` apart, no product is larger than it must be:
    `|v + e - a|^2 = |v|^2 + 2 <v, e> + |e|^2 + |a|^2 - 2 <a, e> - 2 <v, a>`.
    """
    (v, of_v), (a, of_a) = (
        _about_own_means(x, lengths)
        for x, lengths in ((visual, visual_lengths), (audio, audio_lengths))
    )
    a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % LANES), (0, 0)))
    at_v = positions(visual_lengths, v.shape[1], v.dtype)
    at_a = positions(audio_lengths, a.shape[1], a.dtype)
    scales = method.scales(v.shape[-1])
    apart = of_v[:, None] - of_a[None]
    along_v = plain_products("qnc,qkc->qkn", v, apart)
    along_a = plain_products("kmc,qkc->qkm", a, apart)
    at_both = at_v[:, None, :, None] * at_a[None, :, None, :]
    products = method.products("qnc,kmc->qknm", v, a)
    reduced = -2.0 * (scales[0] * products + scales[1] * at_both)
    constant = scales[0] * jnp.sum(apart * apart, axis=-1, keepdims=True)
    of_rows = one_sided(scales, v, visual_lengths)[:, None] + 2.0 * scales[0] * along_v
    of_rows += jnp.where(step_mask(visual_lengths, v.shape[1])[:, None], constant, 0.0)
    of_columns = one_sided(scales, a, audio_lengths)[None] - 2.0 * scales[0] * along_a
    return Costs(*(x.reshape(-1, *x.shape[2:]) for x in (reduced, of_rows, of_columns)))


def _tile_masks(
    n: int, m: int, visual_lengths, audio_lengths
) -> tuple[Bool[Array, "P N"], Bool[Array, "P M"]]:
    """Real rows and columns of a tile's problems."""
    q, k = len(visual_lengths), len(audio_lengths)
    rows = jnp.repeat(step_mask(visual_lengths, n), k, axis=0)
    columns = jnp.tile(step_mask(audio_lengths, m + -m % LANES), (q, 1))
    return rows, columns


# -- OT(V, A) of all pairs ------------------------------------------------------------------------


def _cross_terms(method: Method, tile: _Tile, visual: Sequences, audio: Sequences):
    """(OT(V, A), its error) `[Q, K]`."""
    queries, candidates = len(visual.lengths), len(audio.lengths)
    v, v_lengths = _in_parts(visual, tile.rows)
    a, a_lengths = _in_parts(audio, tile.columns)
    tiles = _tiles(method, tile.kept, *_alike(v, a, v_lengths, a_lengths))

    def whole(x):
        x = x.reshape(*x.shape[:2], tile.rows, tile.columns).swapaxes(1, 2)
        return x.reshape(len(v) * tile.rows, -1)[:queries, :candidates]

    return tuple(whole(x) for x in tiles)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiles(method: Method, kept, visual, audio, visual_lengths, audio_lengths):
    """(values, errors) `[visual parts, audio parts, pairs of a tile]` of sequences in parts."""
    return _solve(method, (), visual, audio, visual_lengths, audio_lengths)[0]


def _solve(method: Method, kept, visual, audio, visual_lengths, audio_lengths):
    """((values, errors), what is to be kept) of every tile."""
    masks = partial(_tile_masks, visual.shape[2], audio.shape[2])

    def tile(v, v_lengths, a, a_lengths):
        costs = tile_costs(method, v, a, v_lengths, a_lengths)
        rows, columns = masks(v_lengths, a_lengths)
        f, g, errors = method.potentials(costs, rows, columns)
        values = method.values(costs.reduced, f, g, rows, columns)
        values += mean_of_real(costs.of_rows, rows) + mean_of_real(costs.of_columns, columns)
        found = {"f": f, "g": g, "costs": costs.reduced}
        return (values, errors), {name: found[name] for name in kept}

    def row(part):
        return jax.lax.map(lambda other: tile(*part, *other), (audio, audio_lengths))

    return jax.lax.map(row, (visual, visual_lengths))


def _tiles_forward(method, kept, *inputs):
    results, found = _solve(method, kept, *inputs)
    return results, (inputs, found)


def _tiles_backward(method, kept, residuals, cotangents):
    """Tile by tile, the plans take the gradient from costs to latents."""
    (visual, audio, visual_lengths, audio_lengths), found = residuals
    masks = partial(_tile_masks, visual.shape[2], audio.shape[2])

    def tile(v, v_lengths, a, a_lengths, weights, found):
        def costs_of(v, a):
            costs = tile_costs(method, v, a, v_lengths, a_lengths)
            return costs.whole, costs

        _, pull, costs = jax.vjp(costs_of, v, a, has_aux=True)
        rows, columns = masks(v_lengths, a_lengths)
        if kept:
            f, g = found["f"], found["g"]
        else:
            f, g, _ = method.potentials(costs, rows, columns)
        reduced = found.get("costs", costs.reduced)
        of_visual, of_audio = method.plans(reduced, f, g, rows, columns)
        weights = weights[:, None, None]
        return pull(weights * of_visual)[0], pull(weights * of_audio)[1]

    def row(audio_gradient, part):
        v, v_lengths, *of_row = part

        def column(v_gradient, other):
            a, a_lengths, a_gradient, *of_tile = other
            of_v, of_a = tile(v, v_lengths, a, a_lengths, *of_tile)
            return v_gradient + of_v, a_gradient + of_a

        others = audio, audio_lengths, audio_gradient, *of_row
        v_gradient, audio_gradient = jax.lax.scan(column, _zeros_like(v), others)
        return audio_gradient, v_gradient

    parts = visual, visual_lengths, cotangents[0], found
    audio_gradient, visual_gradient = jax.lax.scan(row, _zeros_like(audio), parts)
    return visual_gradient, audio_gradient, None, None


_tiles.defvjp(_tiles_forward, _tiles_backward)


# -- OT(X, X) / 2 of all items --------------------------------------------------------------------


def _self_terms(method: Method, stream: Sequences, items: int):
    """(OT(X, X) / 2, its error) `[Q]`, at most so many items at a time."""
    total = len(stream.lengths)

    @partial(jax.checkpoint, policy=KEEP_POTENTIALS)
    def part(inputs):
        costs = _item_costs(method, *inputs)
        held = jax.lax.stop_gradient(costs)
        mask = step_mask(inputs[1], costs.reduced.shape[-1])
        f, g, error = checkpoint_name(method.self_potentials(held, mask), POTENTIALS)
        value, plan = method.half_self(held.reduced, f, g, mask)
        value += mean_of_real(held.of_rows, mask)
        return value + jnp.sum(plan * (costs.whole - held.whole), axis=(1, 2)), error

    parts = _alike(*_in_parts(stream, _even(total, min(items, total))))
    return tuple(x.reshape(-1)[:total] for x in jax.lax.map(part, tuple(parts)))


def _item_costs(method: Method, values, lengths) -> Costs:
    """Costs of items to themselves, about their own means; they move with the rows only."""
    x, _ = _about_own_means(values, lengths)
    y = jax.lax.stop_gradient(x)
    at = positions(lengths, x.shape[1], x.dtype)
    products = method.products("bnc,bmc->bnm", x, y)
    scales = method.scales(x.shape[-1])
    reduced = -2.0 * (scales[0] * products + scales[1] * at[:, :, None] * at[:, None, :])
    of_columns = one_sided(scales, y, lengths)
    return Costs(reduced, one_sided(scales, x, lengths), of_columns)
