"""One of several forms of one computation, chosen by the data: one for all runs under `vmap`."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def chosen(form: Int[Array, ""] | Bool[Array, ""], forms: Sequence[Callable], *operands):
    """`forms[form](*operands)`, or of the last form beyond it; not differentiated.

    A plain switch under `vmap` computes every form for every run, wherever each run chooses for
    itself. Here several runs take the form that the most demanding of them wants.

    Args:
      form: which; a later one is right wherever an earlier one is. True is the second of two.
      forms: functions of the operands, with results of one shape.
      *operands: arrays or trees of arrays.
    """
    number = jnp.minimum(jnp.asarray(form, jnp.int32), len(forms) - 1)

    @jax.custom_batching.custom_vmap
    def one_run(number, *operands):
        return jax.lax.switch(number, forms, *operands)

    @one_run.def_vmap
    def of_runs(runs: int, batched: list, number, *operands):
        numbers, *operands = jax.tree.map(
            lambda leaf, own: leaf if own else jnp.broadcast_to(leaf, (runs, *leaf.shape)),
            (number, *operands),
            tuple(batched),
        )
        results = chosen(jnp.max(numbers), [jax.vmap(one) for one in forms], *operands)
        return results, jax.tree.map(lambda _: True, results)

    return one_run(number, *operands)
