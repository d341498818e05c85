"""Interpolated Euclidean distance (paper section III-C, distance 1).

One sequence is linearly interpolated to the steps of the other, and the squared differences of
paired steps are averaged over steps and channels:

    d(V, A) = 1/(m C) sum_t |(W V)_t - A_t|^2      resample="visual_to_audio", m audio steps
    d(V, A) = 1/(n C) sum_t |V_t - (W A)_t|^2      resample="audio_to_visual", n visual steps

The mean over channels too (the plain mean squared error) matters only without the z-score: then
the ablation of the paper's Table IV falls to CAV's level only under this scale.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scav_jax.sequences import (
    DIRECTIONS,
    Sequences,
    resample_like,
    resample_positions,
    step_mask,
    zero_padding,
)

# TF32 and bf16, the accelerators' defaults, lose what the z-score then amplifies.
FULL_PRECISION = jax.lax.Precision.HIGHEST


def euclidean(
    visual: Sequences, audio: Sequences, *, resample: str = "visual_to_audio"
) -> Float[Array, ""]:
    """The distance of one pair; the definition that every faster form is tested against.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      resample: which stream is interpolated to the steps of which.

    Returns:
      A scalar >= 0, smaller is closer; padding is not read.

    >>> from scav_jax.sequences import sequences
    >>> v, a = sequences(jnp.array([[0.0], [2.0]])), sequences(jnp.array([[1.0]]))
    >>> float(euclidean(v, a)), float(euclidean(v, a, resample="audio_to_visual"))
    (0.0, 1.0)
    """
    moved, target = _moved_and_target(visual, audio, resample)
    difference = resample_like(moved, target).values - target.values
    squared = jnp.sum(zero_padding(difference, target.lengths) ** 2)
    return squared / _pair_count(target).astype(squared.dtype)


def _moved_and_target(visual, audio, resample: str):
    if resample == "visual_to_audio":
        return visual, audio
    if resample == "audio_to_visual":
        return audio, visual
    raise ValueError(f"resample: expected one of {DIRECTIONS}, got {resample!r}")


def _pair_count(target: Sequences):
    return target.lengths * target.values.shape[-1]


def one_target_grid(target: Sequences) -> Array:
    """Whether all targets have one length and window: then one resampling serves every pair."""
    same_length = jnp.all(target.lengths == target.lengths[:1])
    return same_length & jnp.all(target.windows == target.windows[:1])


def euclidean_on_one_grid(moved: Sequences, target: Sequences) -> Float[Array, "X Y"]:
    """All pairs as one matrix product, for targets that share length and window.

    `|x - y|^2 = |x|^2 + |y|^2 - 2<x, y>` over flattened steps and channels. Both sides are centred
    step by step first by what all of them share, which changes no difference and takes away the
    cancellation that a common part would cause.

    Returns:
      D[moved, target], >= 0.
    """
    grid = jax.tree.map(lambda leaf: leaf[0], target)
    moved_values = jax.vmap(lambda one: resample_like(one, grid).values)(moved)
    target_values = zero_padding(target.values, target.lengths)
    mask = step_mask(grid.lengths, target.values.shape[-2])[:, None]
    count = grid.lengths.astype(target_values.dtype)
    centre = 0.5 * (jnp.mean(moved_values, 0) + jnp.mean(target_values, 0))
    centre = jax.lax.stop_gradient(centre)[None]
    x = jnp.where(mask, moved_values - centre, 0.0).reshape(len(moved_values), -1)
    y = jnp.where(mask, target_values - centre, 0.0).reshape(len(target_values), -1)
    products = jnp.matmul(x, y.T, precision=FULL_PRECISION)
    squared = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None, :] - 2.0 * products
    return jnp.maximum(squared, 0.0) / (count * target.values.shape[-1])


def euclidean_matrix(
    lift: Callable[..., Float[Array, "Q K"]],
    visual: Sequences,
    audio: Sequences,
    *,
    resample: str = "visual_to_audio",
) -> Float[Array, "Q K"]:
    """All pairs `[Q, N, C]` x `[K, M, C]`: one matrix product where the targets share a grid.

    That is the common case (clips of one duration); it is found at run time, since lengths are
    data. `lift` computes the definition for every pair otherwise.
    """
    moved, target = _moved_and_target(visual, audio, resample)

    def on_one_grid() -> Float[Array, "Q K"]:
        distances = euclidean_on_one_grid(moved, target)
        return distances if resample == "visual_to_audio" else distances.T

    return jax.lax.cond(
        one_target_grid(target), on_one_grid, lambda: lift(euclidean, resample=resample)
    )


def interpolation_weights(
    visual: Sequences, audio: Sequences, *, resample: str = "visual_to_audio"
) -> Float[Array, "N M"]:
    """How much each target step reads of each source step, for plotting; target steps sum to 1."""
    moved, target = _moved_and_target(visual, audio, resample)
    steps, last = moved.values.shape[-2], moved.lengths - 1
    positions = resample_positions(moved.windows, target.windows, target.values.shape[-2])
    positions = jnp.clip(positions, 0.0, last.astype(positions.dtype))
    taps = jnp.arange(steps, dtype=positions.dtype)
    weights = jnp.maximum(1.0 - jnp.abs(positions[:, None] - taps[None, :]), 0.0)  # [target, moved]
    weights = zero_padding(weights, target.lengths)
    return weights.T if resample == "visual_to_audio" else weights
