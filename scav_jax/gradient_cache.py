"""Gradient caching: the gradient of a loss over a whole batch, in the memory of a part of it.

A contrastive loss needs what the towers and heads give of every clip at once (its outputs), but not
the activations behind them. So the batch is encoded part by part, keeping outputs only; the loss is
differentiated with respect to these; and each part is encoded again and takes its share of that
gradient back to the parameters. Exact for any loss, for one more forward pass of the towers (Gao et
al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from scav_jax import sharding
from scav_jax.sequences import Batch

Outputs = PyTree  # of arrays with the clips first: `values`, differentiated, and `about`
# (parameters, some clips, their rows in the global batch, key or None) -> their outputs
Encode = Callable[[PyTree, Batch, Int[Array, " B"], Array | None], Outputs]
# (what else the loss has parameters for, outputs of all clips) -> (loss, aux)
Loss = Callable[[PyTree, Outputs], tuple[Float[Array, ""], PyTree]]


def value_and_gradients(
    encode: Encode,
    loss: Loss,
    params: PyTree,
    others: PyTree,
    batch: Batch,
    key: Array | None,
    *,
    microbatch: int,
    mesh: Mesh | None = None,
) -> tuple[tuple[Float[Array, ""], PyTree], tuple[PyTree, PyTree]]:
    """`loss(others, encode(params, batch))` and its gradients, `microbatch` clips at a time.

    Both passes see the same dropout and views: they follow from the key and a clip's row or number.

    Args:
      encode: views, towers and heads; outputs of a clip may depend on that clip only.
      loss: of all outputs.
      params: of `encode`.
      others: further parameters, of `loss`.
      batch: B clips' features; they are cut, never copied as a whole.
      key: handed to `encode`.
      microbatch: clips at a time over all devices; divides B, and is a multiple of the devices.
      mesh: over which the batch is cut. Every device encodes its own rows in parts of
        `microbatch / devices`, and parameters' gradients are summed over devices once, at the end.

    Returns:
      (loss, aux), (gradients of params, gradients of others).
    """
    size = len(batch.numbers)
    parts, rows = size // microbatch, jnp.arange(size, dtype=jnp.int32)
    first_pass = sharding.on_own_rows(partial(_encode_parts, encode, parts), mesh)
    outputs = first_pass((params, key), (batch, rows))

    def of_values(others, values):
        return loss(others, outputs._replace(values=values))

    result, (of_others, of_outputs) = jax.value_and_grad(of_values, (0, 1), has_aux=True)(
        others, outputs.values
    )
    second_pass = sharding.on_own_rows(partial(_pull_back, encode, parts), mesh, summed=True)
    of_params = second_pass((params, key), (batch, rows, of_outputs))
    return result, (of_params, of_others)


def _part(tree: PyTree, parts: int, number: Int[Array, ""]) -> PyTree:
    """The rows number, number + parts, number + 2 parts, ... of every leaf."""

    def take(leaf: Array) -> Array:
        cut = leaf.reshape(-1, parts, *leaf.shape[1:])
        return jax.lax.dynamic_index_in_dim(cut, number, 1, keepdims=False)

    return jax.tree.map(take, tree)


def _encode_parts(encode: Encode, parts: int, whole, rows) -> Outputs:
    """The outputs of all rows, one part after the other."""
    params, key = whole

    def encode_part(number: Int[Array, ""]) -> Outputs:
        return encode(params, *_part(rows, parts, number), key)

    def put(number: Int[Array, ""], outputs: Outputs) -> Outputs:
        # In place; stacked by a scan, they would have to be copied into order afterwards.
        return jax.tree.map(
            lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, number, 1),
            outputs,
            encode_part(number),
        )

    shapes = jax.eval_shape(encode_part, jax.ShapeDtypeStruct((), jnp.int32))
    empty = jax.tree.map(lambda x: jnp.zeros((len(x), parts, *x.shape[1:]), x.dtype), shapes)
    outputs = jax.lax.fori_loop(0, parts, put, empty)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)


def _pull_back(encode: Encode, parts: int, whole, rows) -> PyTree:
    """The gradient of `params` that the outputs' gradient gives, summed part by part."""
    params, key = whole

    def add(number: Int[Array, ""], total: PyTree) -> PyTree:
        some, own_rows, of_outputs = _part(rows, parts, number)
        _, pull_back = jax.vjp(lambda params: encode(params, some, own_rows, key).values, params)
        return jax.tree.map(jnp.add, total, *pull_back(of_outputs))

    return jax.lax.fori_loop(0, parts, add, jax.tree.map(jnp.zeros_like, params))
