"""What the blocks of both kinds of towers are made of: attention, and the loop over blocks."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from scav_jax.base.errors import check_one_of
from scav_jax.encoders.dropout import Draws, draws_of, dropout
from scav_jax.encoders.precision import (
    MATMUL_PRECISIONS,
    as_multiplied,
    heads_first,
    laid_out,
    loaded,
    stored,
    wide,
)
from scav_jax.sequences import STREAMS, AudioVisual

# What of a block is computed again for its gradient, by `Encoders.remat`: nothing at all, in no
# loop over blocks; nothing that is dear to compute; or all of it.
REMATS = ("unrolled", "none", "blocks")


def check_remat(remat: str) -> None:
    """Raises `InputError` for what is no key of `REMATS`."""
    check_one_of("train.remat", remat, REMATS)


def both_towers(
    encoders: nn.Module, features: AudioVisual, rows: Int[Array, " B"] | None, dropped: bool
) -> AudioVisual:
    """Each stream through its tower (`encoders.tower`), with dropout masks of its own if `dropped`.

    `rows` of the global batch are those of the clips; None where they are all of it.
    """
    draws: list[Draws | None] = [None, None]
    if dropped:
        key = encoders.make_rng("dropout")
        rows = jnp.arange(len(features.visual.lengths), dtype=jnp.int32) if rows is None else rows
        draws = [draws_of(key, rows, tower) for tower in range(2)]
    visual, audio = (encoders.tower(name, name=name) for name in STREAMS)
    return AudioVisual(visual(features.visual, draws[0]), audio(features.audio, draws[1]))


def attend(
    query: Float[Array, "B M N d"],
    key: Float[Array, "B M N d"],
    value: Float[Array, "B M N d"],
    mask: Bool[Array, "B T"],
    *,
    precision: str,
    position: tuple[Float[Array, "B M N"], Float[Array, "H T T"]] | None = None,
    rate: float = 0.0,
    draws: Draws | None = None,
) -> Float[Array, "B T H d"]:
    """`softmax_j(q_i.k_j / sqrt(d) + g_i b_ij) v_j` over the steps j of the mask.

    Its gradient keeps what it was given and the weights; autodiff would keep three such maps.

    Not `jax.nn.dot_product_attention`: cuDNN's fused form draws dropout of its own, not a clip's,
    so that parts and devices would change numbers; it takes half precision only, and it wants the
    bias of each clip as a whole map, where gains and biases of steps do here.

    Args:
      query, key, value: of each step and head, or head and step, see `heads_first`.
      mask: which steps are real.
      precision: of the products, a key of `MATMUL_PRECISIONS`.
      position: float32 gains g of steps and biases b of pairs, a head each; gains as the query is.
      rate, draws: dropout of the weights.
    """
    if position is not None:
        gain, bias = position
        gain = gain if heads_first(precision) else gain.swapaxes(1, 2)
        position = gain[..., None], bias[None]
    return _attend(precision, rate, query, key, value, position, mask, draws)


def _letters(precision: str) -> tuple[str, str]:
    """Axes of what has queries' steps and of what has keys', for products."""
    return ("bhqd", "bhkd") if heads_first(precision) else ("bqhd", "bkhd")


def _product(form: str, precision: str, *factors: Array) -> Array:
    return jnp.einsum(form, *factors, precision=MATMUL_PRECISIONS[precision])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(precision, rate, query, key, value, position, mask, draws):
    return _attend_forward(precision, rate, query, key, value, position, mask, draws)[0]


def _attend_forward(precision, rate, query, key, value, position, mask, draws):
    # In bfloat16 rounded to it before the softmax, or the gradient's products would be in float32.
    q, k = _letters(precision)
    logits = wide(_product(f"{q},{k}->bhqk", precision, query, key))
    logits = logits / math.sqrt(query.shape[-1])
    if position is not None:
        logits = logits + position[0] * position[1]
    # Added, not chosen: on a GPU a loop would read a map of the constant for each block.
    masked = jnp.where(mask, 0.0, jnp.finfo(logits.dtype).min).astype(logits.dtype)
    logits = logits + masked[:, None, None, :]
    weights = laid_out(jax.nn.softmax(logits, axis=-1).astype(value.dtype))
    dropped = dropout(weights, rate, draws)
    mixed = _product(f"bhqk,{k}->{q}", precision, dropped, value)
    kept = *map(stored, (query, key, value, weights)), position, mask, draws
    return mixed.swapaxes(1, 2) if heads_first(precision) else mixed, kept


def _attend_backward(precision, rate, kept, cotangent):
    (query, key, value, weights), (position, mask, draws) = map(loaded, kept[:4]), kept[4:]
    dropped = dropout(weights, rate, draws)
    q, k = _letters(precision)
    cotangent = laid_out(cotangent.swapaxes(1, 2)) if heads_first(precision) else cotangent
    of_value = _product(f"bhqk,{q}->{k}", precision, dropped, cotangent)
    of_weights = _product(f"{q},{k}->bhqk", precision, cotangent, value)
    of_weights, weights = wide(dropout(of_weights, rate, draws)), wide(weights)
    along = jnp.sum(of_weights * weights, axis=-1, keepdims=True)
    of_logits = jnp.where(mask[:, None, None, :], weights * (of_weights - along), 0.0)
    scale = math.sqrt(query.shape[-1])
    of_product = (of_logits / scale).astype(query.dtype)
    if of_product.dtype == jnp.bfloat16:  # one map, which all below read
        of_logits = wide(of_product := laid_out(of_product)) * scale
    of_position = None
    if position is not None:
        gain, bias = position
        of_gain = jnp.sum(of_logits * bias, axis=-1, keepdims=True)
        of_position = of_gain, jnp.sum(of_logits * gain, axis=0, keepdims=True)
    of_query = _product(f"bhqk,{k}->{q}", precision, of_product, key)
    of_key = _product(f"bhqk,{q}->{k}", precision, of_product, query)
    return of_query, of_key, of_value, of_position, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def through_blocks(
    tower: nn.Module, block: nn.Module, count: int, x: Array, own: PyTree, shared: tuple
) -> Float[Array, "B T C"]:
    """x through `count` blocks, in a loop but for "unrolled"; parameters, stacked, are `blocks`.

    Args:
      tower: whose parameters they are, in its compact method; has `precision` and `remat`.
      block: bound to nothing; `block(x, own, *shared)` has the shape of x.
      count: of blocks, the first axis of every parameter.
      x: of the first block.
      own: what each block has for itself, along a first axis.
      shared: what all have.
    """
    if not count:
        return x

    def start(key: Array) -> PyTree:
        first = jax.tree.map(lambda leaf: leaf[0], own)
        of_one = lambda key: block.init(key, x, first, *shared)["params"]  # noqa: E731
        return jax.vmap(of_one)(jax.random.split(key, count))

    def one(x: Array, of_block: tuple) -> tuple[Array, None]:
        params, own = of_block
        return block.apply({"params": params}, x, own, *shared), None

    # `param` would trace `start` again to compare shapes.
    known = tower.has_variable("params", "blocks")
    params = tower.get_variable("params", "blocks") if known else tower.param("blocks", start)
    params = as_multiplied(tower, params)  # once, so that the loop reads and gathers half as much
    if tower.remat == "blocks":  # in a loop XLA cannot merge what is computed twice
        one = jax.checkpoint(one, prevent_cse=count == 1)
    # A loop copies what it keeps into arrays of all blocks, and fills these with zeros before.
    return jax.lax.scan(one, x, (params, own), unroll=tower.remat == "unrolled")[0]
