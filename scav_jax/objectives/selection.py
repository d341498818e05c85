"""Contrast with more than a batch: positives and negatives that each clip finds in a queue.

    L_i = -1/|P_i| sum_{p in P_i} log[ e^{s_ip / t} / (e^{s_ip / t} + sum_{n in N_i} e^{s_in / t}) ]

P_i is the clip's own key and its nearest neighbours in the queue, N_i the other clips of the batch
and some of the queue, drawn with probability ~ exp(s / selection temperature) without replacement.
s is the cosine. Keys of the batch keep their gradient, those of the queue have none: where nothing
is taken from the queue this is InfoNCE, `aggregation_loss`, in value and gradient.

The idea is of Jenni, Black and Collomosse (AAAI 2023); the formula is ours, no source has theirs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


class Chosen(NamedTuple):
    """For each of B clips, which places of a queue; where `found` is False there was none left."""

    which: Int[Array, "B k"]
    found: Bool[Array, "B k"]


def nearest(similarities: Float[Array, "B Q"], allowed: Bool[Array, "B Q"], count: int) -> Chosen:
    """The `count` most similar places among those that are allowed, the nearest first."""
    best, which = jax.lax.top_k(jnp.where(allowed, similarities, -jnp.inf), count)
    return Chosen(which, jnp.isfinite(best))


def drawn(
    keys: Array, logits: Float[Array, "B Q"], allowed: Bool[Array, "B Q"], count: int
) -> Chosen:
    """`count` places, drawn without replacement, each in proportion to exp(logit).

    The Gumbel-top-k trick: exactly that distribution. A clip's draw follows from its own key.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return nearest(logits + noise, allowed, count)


def without(allowed: Bool[Array, "B Q"], chosen: Chosen) -> Bool[Array, "B Q"]:
    """The places that are allowed and not chosen."""
    rows = jnp.arange(len(allowed))[:, None]
    return allowed & ~jnp.zeros_like(allowed).at[rows, chosen.which].max(chosen.found)


def info_nce(
    anchors: Float[Array, "B E"],
    keys: Float[Array, "B E"],
    temperature: float,
    queue: Float[Array, "Q E"] | None = None,
    positives: Chosen | None = None,
    negatives: Chosen | None = None,
) -> Float[Array, ""]:
    """The mean of L_i over the anchors.

    Args:
      anchors, keys: of length 1; row i of both is clip i.
      temperature: t.
      queue: past keys, of length 1; None, as long as the two others are, takes the batch alone.
      positives, negatives: places of the queue; disjoint.
    """
    logits = jnp.matmul(anchors, keys.T, precision=HIGHEST) / temperature
    own = jnp.eye(len(logits), dtype=bool)
    positive, is_positive = jnp.diagonal(logits)[:, None], jnp.ones((len(logits), 1), bool)
    negative = jnp.where(own, -jnp.inf, logits)
    if queue is not None:
        past = jnp.matmul(anchors, queue.T, precision=HIGHEST) / temperature
        if positives is not None:
            positive = jnp.concatenate([positive, _at(past, positives)], axis=1)
            is_positive = jnp.concatenate([is_positive, positives.found], axis=1)
        if negatives is not None:
            far = jnp.where(negatives.found, _at(past, negatives), -jnp.inf)
            negative = jnp.concatenate([negative, far], axis=1)
    rest = jax.nn.logsumexp(negative, axis=1, keepdims=True)
    each = jnp.where(is_positive, jnp.logaddexp(positive, rest) - positive, 0.0)
    return jnp.mean(jnp.sum(each, axis=1) / jnp.sum(is_positive.astype(each.dtype), axis=1))


def _at(past: Float[Array, "B Q"], chosen: Chosen) -> Float[Array, "B k"]:
    return jnp.take_along_axis(past, chosen.which, axis=1)
