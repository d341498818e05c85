"""What distances are divided by before the softmax: nothing, or their deviation at the start.

A z-score gives every row of D the deviation 1, again in every step. "deviation" divides D by one
number, the mean deviation of D in the first batches, which then stays: the logits start on the
same scale, and nothing else of the z-score is left. It is a memory: checkpointed and resumed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

FIRST_BATCHES = 10
WORDS = {
    "z_score": "with z-score",
    "deviation": f"by the deviation of the first {FIRST_BATCHES} batches",
    "none": "without z-score",
}


def memory(normalize: str) -> PyTree:
    """What is kept from step to step: the mean deviation so far, and of how many batches."""
    if normalize != "deviation":
        return {}
    return {"deviation": jnp.zeros((), jnp.float32), "batches": jnp.zeros((), jnp.int32)}


def scaled(distances: Float[Array, "B B"], memory: PyTree) -> Float[Array, "B B"]:
    """D by its scale, through which no gradient flows; D itself without a memory."""
    if not memory:
        return distances
    scale = _with(memory, distances)["deviation"]
    return distances / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def after(memory: PyTree, distances: Callable[[], Float[Array, "B B"]]) -> PyTree:
    """The memory after a batch; D is computed for the first ones only."""
    if not memory:
        return memory
    first = memory["batches"] < FIRST_BATCHES
    return jax.lax.cond(first, lambda: _with(memory, distances()), lambda: memory)


def _with(memory: PyTree, distances: Float[Array, "B B"]) -> PyTree:
    """The memory with the deviation of one more batch in its mean, while these are few."""
    found = jnp.std(jax.lax.stop_gradient(distances)).astype(jnp.float32)
    count = memory["batches"]
    mean = memory["deviation"] + (found - memory["deviation"]) / (count + 1).astype(jnp.float32)
    first = count < FIRST_BATCHES
    return {
        "deviation": jnp.where(first, mean, memory["deviation"]),
        "batches": count + first.astype(jnp.int32),
    }
