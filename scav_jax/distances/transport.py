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

from scav_jax.sequences import Sequences, step_mask, zero_padding

FULL_PRECISION = jax.lax.Precision.HIGHEST
CONVERGED = 1e-3  # of the mass may be in wrong columns of the plan; ott's own threshold
LANES = 8  # columns are padded to a multiple of it: unaligned rows halve the speed on a CPU
CACHE_BYTES = 2**19  # of one core: costs of a tile that fit in it are iterated on at its speed
COPIES = 8  # arrays of cost size that solving and differentiating a tile keeps
POTENTIALS = "potentials"
KEEP_POTENTIALS = jax.checkpoint_policies.save_only_these_names(POTENTIALS)


@runtime_checkable
class Method(Protocol):
    """How problems with costs `[P, N, M]` and masks of real rows and columns are solved.

    Hashable. No method needs a gradient of its own: `plans` and `half_self` say what it is.
    """

    def scales(self, width: int) -> tuple[float, float]:
        """What squared differences of latents and of positions (in 0..1) count in the costs."""
        ...

    def potentials(self, costs, rows, columns) -> tuple[Array, Array, Array]:
        """(f `[P, N]`, g `[P, M]`, 0 in the padding; the plan's mass in wrong columns `[P]`)."""
        ...

    def values(self, costs, f, g, rows, columns) -> Float[Array, " P"]:
        """OT of every problem."""
        ...

    def plans(self, costs, f, g, rows, columns) -> tuple[Array, Array]:
        """The gradients `[P, N, M]` of the values for costs that move with rows, with columns."""
        ...

    def half_self(self, costs, f, g, mask) -> tuple[Array, Array]:
        """(OT(X, X) / 2 of problems of items with themselves, its gradient for their rows)."""
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
    (N + M numbers a pair), or nothing, whichever fits half of `memory_bytes`.

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
    centre = _centre(visual, audio)
    distances, errors = _cross_terms(method, tile, visual, audio, centre)
    if debiased:
        pairs = tile.rows * tile.columns
        of_visual, error = _self_terms(method, visual, centre, pairs)
        distances, errors = distances - of_visual[:, None], jnp.maximum(errors, error[:, None])
        of_audio, error = _self_terms(method, audio, centre, pairs)
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
    if n * m + n + m <= numbers:
        return "f", "g", "costs"
    return ("f", "g") if n + m <= numbers else ()


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
    """0 at the first step, 1 at the last real one; 0 for a single step."""
    last = jnp.maximum(lengths - 1, 1).astype(dtype)[..., None]
    return jnp.arange(steps, dtype=dtype).reshape((1,) * lengths.ndim + (-1,)) / last


def _centre(visual: Sequences, audio: Sequences) -> Float[Array, " C"]:
    """The mean of all first steps, held: near enough to all steps, and no pass over them.

    It is taken off before products are taken, which changes no difference and avoids cancellation.
    """
    first = [zero_padding(x.values[:, :1], x.lengths)[:, 0] for x in (visual, audio)]
    return jax.lax.stop_gradient(jnp.mean(jnp.concatenate(first), axis=0))


def _centred(values, lengths, centre) -> Float[Array, "B T C"]:
    """Steps less the centre; finite in the padding, whatever it holds."""
    return zero_padding(values, lengths) - centre[None, None]


def _tile_costs(scales, visual, audio, visual_lengths, audio_lengths, centre):
    """Costs `[q k, N, M']` of q by k pairs; M' is M padded to whole vector lanes."""
    v = _centred(visual, visual_lengths, centre)
    a = _centred(audio, audio_lengths, centre)
    a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % LANES), (0, 0)))
    products = jnp.einsum("qnc,kmc->qknm", v, a, precision=FULL_PRECISION)
    v_squared = jnp.sum(v * v, axis=-1)[:, None, :, None]
    a_squared = jnp.sum(a * a, axis=-1)[None, :, None, :]
    apart = positions(visual_lengths, v.shape[1], v.dtype)[:, None, :, None]
    apart = apart - positions(audio_lengths, a.shape[1], a.dtype)[None, :, None, :]
    costs = scales[0] * (v_squared + a_squared - 2.0 * products) + scales[1] * apart**2
    return costs.reshape(-1, *costs.shape[2:])


def _tile_masks(
    n: int, m: int, visual_lengths, audio_lengths
) -> tuple[Bool[Array, "P N"], Bool[Array, "P M"]]:
    """Real rows and columns of a tile's problems."""
    q, k = len(visual_lengths), len(audio_lengths)
    rows = jnp.repeat(step_mask(visual_lengths, n), k, axis=0)
    columns = jnp.tile(step_mask(audio_lengths, m + -m % LANES), (q, 1))
    return rows, columns


# -- OT(V, A) of all pairs ------------------------------------------------------------------------


def _cross_terms(method: Method, tile: _Tile, visual: Sequences, audio: Sequences, centre):
    """(OT(V, A), its error) `[Q, K]`."""
    queries, candidates = len(visual.lengths), len(audio.lengths)
    v, v_lengths = _in_parts(visual, tile.rows)
    a, a_lengths = _in_parts(audio, tile.columns)
    tiles = _tiles(method, tile.kept, *_alike(v, a, v_lengths, a_lengths, centre))

    def whole(x):
        x = x.reshape(*x.shape[:2], tile.rows, tile.columns).swapaxes(1, 2)
        return x.reshape(len(v) * tile.rows, -1)[:queries, :candidates]

    return tuple(whole(x) for x in tiles)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiles(method: Method, kept, visual, audio, visual_lengths, audio_lengths, centre):
    """(values, errors) `[visual parts, audio parts, pairs of a tile]` of sequences in parts."""
    return _solve(method, (), visual, audio, visual_lengths, audio_lengths, centre)[0]


def _solve(method: Method, kept, visual, audio, visual_lengths, audio_lengths, centre):
    """((values, errors), what is to be kept) of every tile."""
    masks = partial(_tile_masks, visual.shape[2], audio.shape[2])
    scales = method.scales(visual.shape[-1])

    def tile(v, v_lengths, a, a_lengths):
        costs = _tile_costs(scales, v, a, v_lengths, a_lengths, centre)
        rows, columns = masks(v_lengths, a_lengths)
        f, g, errors = method.potentials(costs, rows, columns)
        values = method.values(costs, f, g, rows, columns)
        found = {"f": f, "g": g, "costs": costs}
        return (values, errors), {name: found[name] for name in kept}

    def row(part):
        return jax.lax.map(lambda other: tile(*part, *other), (audio, audio_lengths))

    return jax.lax.map(row, (visual, visual_lengths))


def _tiles_forward(method, kept, *inputs):
    results, found = _solve(method, kept, *inputs)
    return results, (inputs, found)


def _tiles_backward(method, kept, residuals, cotangents):
    """Tile by tile, the plans take the gradient from costs to latents."""
    (visual, audio, visual_lengths, audio_lengths, centre), found = residuals
    masks = partial(_tile_masks, visual.shape[2], audio.shape[2])
    scales = method.scales(visual.shape[-1])

    def tile(v, v_lengths, a, a_lengths, weights, found):
        def costs_of(v, a):
            return _tile_costs(scales, v, a, v_lengths, a_lengths, centre)

        costs, pull = jax.vjp(costs_of, v, a)
        costs = found.get("costs", costs)
        rows, columns = masks(v_lengths, a_lengths)
        if kept:
            f, g = found["f"], found["g"]
        else:
            f, g, _ = method.potentials(costs, rows, columns)
        of_visual, of_audio = method.plans(costs, f, g, rows, columns)
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
    return visual_gradient, audio_gradient, None, None, None


_tiles.defvjp(_tiles_forward, _tiles_backward)


# -- OT(X, X) / 2 of all items --------------------------------------------------------------------


def _self_terms(method: Method, stream: Sequences, centre, items: int):
    """(OT(X, X) / 2, its error) `[Q]`, at most so many items at a time."""
    total = len(stream.lengths)
    scales = method.scales(stream.values.shape[-1])

    @partial(jax.checkpoint, policy=KEEP_POTENTIALS)
    def part(inputs):
        costs = _item_costs(scales, *inputs, centre)
        held = jax.lax.stop_gradient(costs)
        mask = step_mask(inputs[1], costs.shape[-1])
        f, g, error = checkpoint_name(method.potentials(held, mask, mask), POTENTIALS)
        value, plan = method.half_self(held, f, g, mask)
        return value + jnp.sum(plan * (costs - held), axis=(1, 2)), error

    *parts, centre = _alike(*_in_parts(stream, _even(total, min(items, total))), centre)
    return tuple(x.reshape(-1)[:total] for x in jax.lax.map(part, tuple(parts)))


def _item_costs(scales, values, lengths, centre) -> Float[Array, "B T T"]:
    """Costs of items to themselves, which move with the rows only."""
    x = _centred(values, lengths, centre)
    y = jax.lax.stop_gradient(x)
    products = jnp.einsum("bnc,bmc->bnm", x, y, precision=FULL_PRECISION)
    squares = jnp.sum(x * x, axis=-1)[:, :, None] + jnp.sum(y * y, axis=-1)[:, None, :]
    at = positions(lengths, x.shape[1], x.dtype)
    apart = at[:, :, None] - at[:, None, :]
    return scales[0] * (squares - 2.0 * products) + scales[1] * apart**2
