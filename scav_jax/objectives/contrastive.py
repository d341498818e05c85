"""The two contrastive losses: L_agg of CAV (paper section III-B) and L_seq of SCAV (III-C).

Both are symmetric cross-entropies over a `[B, B]` matrix whose diagonal holds the matching pairs;
row i is visual i. They are written once for the global batch: under `jit` with a sharded batch
the same lines are the multi-device loss.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scav_jax.base.ranges import Range
from scav_jax.objectives.cross_entropy import statistics, symmetric_cross_entropy

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # CLIP clips its logit scale at 100 as well
TEMPERATURES = Range(MIN_TEMPERATURE, MAX_TEMPERATURE)  # beyond them one would never learn
NORM_FLOOR = 1e-12

Aux = dict[str, Float[Array, "..."]]


@jax.custom_vjp
def temperature(log_temperature: Float[Array, ""]) -> Float[Array, ""]:
    """The temperature (tau or lambda) from its learnable logarithm, clipped to [0.01, 100].

    Beyond a bound its gradient is that of the bound where it leads back, and 0 where it leads on:
    a clip's own would be 0, and a temperature that once left would never learn again.
    """
    return jnp.clip(jnp.exp(log_temperature), MIN_TEMPERATURE, MAX_TEMPERATURE)


def _temperature_backward(log_temperature, cotangent):
    leads_on = jnp.where(
        cotangent > 0,
        log_temperature <= math.log(MIN_TEMPERATURE),
        log_temperature >= math.log(MAX_TEMPERATURE),
    )
    return (jnp.where(leads_on, 0.0, cotangent * temperature(log_temperature)),)


temperature.defvjp(lambda log: (temperature(log), log), _temperature_backward)


def normalize_distances(distances: Float[Array, "B K"], axis: int) -> Float[Array, "B K"]:
    """z-score along an axis, the positive included: the paper's normalisation of D (III-C).

    `(d - mean) / sqrt(var + floor)` with the unbiased variance, as torch's default has it.
    Gradients flow through mean and variance, so a loss on the result is invariant to
    `D -> a D + b` with a > 0. A constant row becomes zeros with zero gradient.

    Args:
      distances: `D[visual, audio]`.
      axis: 1 for visual to audio (each row), 0 for audio to visual (each column).
    """
    mean, inverse_deviation = statistics(distances, axis)
    return (distances - mean) * inverse_deviation


def sequence_loss(
    distances: Float[Array, "B B"],
    log_temperature: Float[Array, ""],
    *,
    normalize: bool = True,
) -> tuple[Float[Array, ""], Aux]:
    """L_seq of SCAV (paper section III-C).

    -1/2B sum_i [log softmax_j(-d_v2a[i, j] / lambda)_i + log softmax_j(-d_a2v[j, i] / lambda)_i]

    where `d_v2a` and `d_a2v` are D z-scored over its rows and its columns.

    Args:
      distances: `D[visual, audio]` of the global batch, matching pairs on the diagonal.
      log_temperature: log lambda, one for both directions; the paper starts at lambda = 1.
      normalize: False is the ablation "w/o distance matrix normalisation" (Table IV).

    Returns:
      The loss, and aux: `distances`, `normalized_v2a`, `normalized_a2v`, `logits_v2a`,
      `logits_a2v` (all `[B, B]`, row i is visual i) and `temperature`.

    >>> loss, aux = sequence_loss(1.0 - jnp.eye(3), jnp.zeros(()))
    >>> round(float(loss), 4)
    0.3029
    """
    scale = temperature(log_temperature)
    v2a = normalize_distances(distances, axis=1) if normalize else distances
    a2v = normalize_distances(distances, axis=0) if normalize else distances
    logits_v2a, logits_a2v = -v2a / scale, -a2v / scale
    loss = symmetric_cross_entropy(distances, scale, normalize)
    return loss, {
        "distances": distances,
        "normalized_v2a": v2a,
        "normalized_a2v": a2v,
        "logits_v2a": logits_v2a,
        "logits_a2v": logits_a2v,
        "temperature": scale,
    }


def aggregation_loss(
    visual_embeddings: Float[Array, "B C"],
    audio_embeddings: Float[Array, "B C"],
    log_temperature: Float[Array, ""],
) -> tuple[Float[Array, ""], Aux]:
    """L_agg of CAV: InfoNCE on cosines of mean-pooled latents (paper section III-B).

    Args:
      visual_embeddings: mean over time of the visual latents, not normalised.
      audio_embeddings: the same for the audio latents.
      log_temperature: log tau; the paper starts at tau = 0.07.

    Returns:
      The loss, and aux: `similarities`, `logits_v2a`, `logits_a2v` (`[B, B]`, row i is visual i;
      here both logits are one matrix) and `temperature`.
    """
    scale = temperature(log_temperature)
    similarities = jnp.matmul(
        unit_smoothed(visual_embeddings),
        unit_smoothed(audio_embeddings).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    logits = similarities / scale
    loss = symmetric_cross_entropy(-similarities, scale, False)
    return loss, {
        "similarities": similarities,
        "logits_v2a": logits,
        "logits_a2v": logits,
        "temperature": scale,
    }


def unit_smoothed(x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    """Rows `x / sqrt(|x|^2 + 1e-12)`: of length 1; a zero row stays zero, its gradient finite."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(squared + NORM_FLOOR)
