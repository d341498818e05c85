"""Interpolated Euclidean distance (paper section III-C, distance 1).

One sequence is linearly interpolated to the steps of the other, and the squared differences of
paired steps are averaged over steps and channels:

    d(V, A) = 1/(m C) sum_t |(W V)_t - A_t|^2      resample="visual_to_audio", m audio steps
    d(V, A) = 1/(n C) sum_t |V_t - (W A)_t|^2      resample="audio_to_visual", n visual steps

The mean over channels too (the plain mean squared error) matters only without the z-score: then
the ablation of the paper's Table IV falls to CAV's level only under this scale.

All pairs are products of matrices, `|x - y|^2 = |x|^2 + |y|^2 - 2<x, y>`, in one of two forms that
are chosen at run time, since lengths are data. Where all targets lie on one grid (clips of one
duration), every sequence is resampled once and one product serves all pairs
(`euclidean_one_grid`). Else the audio sequences are taken grid by grid, and the visual ones are
brought to each audio grid (`euclidean_many_grids`): by W itself for visual_to_audio, and by its
adjoint for audio_to_visual, since

    |V - W A|^2 = |V|^2 - 2 <W' V, A> + |W A|^2

where W'W is tridiagonal. So distinct visual lengths cost nothing, and products run over the audio
steps, which are few. Both forms centre the latents first, which changes no difference and takes
away the cancellation that a common part would cause, and keep only the latents for the gradient.

No one centre helps where clips lie in groups that are far apart, or one lies far from all others:
products would round what tells near clips from each other. That is noticed (`centre.scattered`),
and such streams are compared by differences, pair by pair: right, and some ten times slower. A few
clips (`PIVOTS` in all) are compared by the definition, which compiles in a tenth of the time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.distances import euclidean_many_grids, euclidean_one_grid, resampling
from scav_jax.distances.centre import PIVOTS, scattered
from scav_jax.distances.cost import FLOAT, PairCost
from scav_jax.distances.euclidean_blocks import Plan, moved_and_target, sum_dtype
from scav_jax.distances.euclidean_many_grids import (
    distances_by_pairs,
    ragged_distances,
    ragged_gradients,
)
from scav_jax.distances.euclidean_one_grid import (
    aligned_distances,
    aligned_gradients,
    one_grid_distances,
    one_grid_gradients,
)
from scav_jax.distances.forms import chosen
from scav_jax.distances.lift import all_pairs
from scav_jax.distances.narrow import in_float32
from scav_jax.distances.resampling import grid_of
from scav_jax.sequences import (
    RESAMPLINGS,
    Sequences,
    resample_like,
    resample_positions,
    zero_padding,
)

FORMS = aligned_distances, one_grid_distances, ragged_distances, distances_by_pairs
GRADIENTS = aligned_gradients, one_grid_gradients, ragged_gradients
FEW_GRIDS = 0.4  # audio grids per audio sequence, beyond which a product serves too few of them


# -- one pair: the definition ---------------------------------------------------------------------


@in_float32
def euclidean(
    visual: Sequences,
    audio: Sequences,
    *,
    resample: str = "visual_to_audio",
) -> Float[Array, ""]:
    """The distance of one pair; the definition that every faster form is tested against.

    Args:
      visual: one sequence `[N, C]`.
      audio: one sequence `[M, C]`.
      resample: which stream is interpolated to the steps of which.

    Returns:
      A scalar >= 0, smaller is closer; padding is not read.

    Raises:
      InputError: an unknown `resample`.

    >>> from scav_jax.sequences import sequences
    >>> v, a = sequences(jnp.array([[0.0], [2.0]])), sequences(jnp.array([[1.0]]))
    >>> float(euclidean(v, a)), float(euclidean(v, a, resample="audio_to_visual"))
    (0.0, 1.0)
    """
    check_options(resample)
    moved, target = moved_and_target(visual, audio, resample)
    difference = resample_like(moved, target).values - target.values
    squared = jnp.sum(zero_padding(difference, target.lengths) ** 2)
    return squared / (target.lengths * target.values.shape[-1]).astype(squared.dtype)


@in_float32
def interpolation_weights(
    visual: Sequences,
    audio: Sequences,
    *,
    resample: str = "visual_to_audio",
) -> Float[Array, "N M"]:
    """How much each target step reads of each source step, for plotting; target steps sum to 1."""
    check_options(resample)
    moved, target = moved_and_target(visual, audio, resample)
    steps, last = moved.values.shape[-2], moved.lengths - 1
    positions = resample_positions(moved.windows, target.windows, target.values.shape[-2])
    positions = jnp.clip(positions, 0.0, last.astype(positions.dtype))
    numbers = jnp.arange(steps, dtype=positions.dtype)
    weights = jnp.maximum(1.0 - jnp.abs(positions[:, None] - numbers[None, :]), 0.0)
    weights = zero_padding(weights, target.lengths)  # [target, moved]
    return weights.T if resample == "visual_to_audio" else weights


def check_options(resample: str) -> None:
    """Raises `InputError` for an unknown direction."""
    if resample not in RESAMPLINGS:
        raise InputError(
            f"euclidean: resample: expected {' or '.join(RESAMPLINGS)}, got {resample!r}."
            + did_you_mean(str(resample), RESAMPLINGS)
        )


# -- all pairs ------------------------------------------------------------------------------------


def euclidean_matrix(
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | None,
    memory_bytes: int,
    resample: str = "visual_to_audio",
) -> tuple[Float[Array, "Q K"], dict]:
    """All pairs of `[Q, N, C]` x `[K, M, C]` as products of matrices, exact for ragged lengths.

    Windows are data: no gradient flows to them.

    Args:
      visual: Q sequences.
      audio: K sequences.
      block: pairs at a time, at least one visual sequence with every audio; or None for as many as
        is fast within `memory_bytes`.
      memory_bytes: of what lives beside latents, result and gradients. One copy of the audio
        latents in another order comes on top where their grids differ.
      resample: which stream is interpolated to the steps of which.

    Returns:
      D, >= 0, and no further results.

    Raises:
      InputError: an unknown `resample`.
    """
    check_options(resample)
    audio = jax.tree.map(lambda leaf: resampling.vary(leaf, visual.lengths), audio)
    visual, audio = _in_range(visual), _in_range(audio)
    if len(visual.lengths) + len(audio.lengths) <= PIVOTS:
        return _by_definition(visual, audio, block, memory_bytes, resample), {}
    return _all_pairs(Plan(resample, block, memory_bytes), visual, audio), {}


def cost(
    steps: tuple[int, int], width: int, /, *, resample: str = "visual_to_audio", **_
) -> PairCost:
    """Of one pair in training: one sequence is brought to the steps of the other, for a product.

    Args:
      steps: of the visual and the audio sequence.
      width: of both.
      resample: as in `euclidean`.
    """
    visual, audio = steps
    target = min(visual, audio) if resample == "visual_to_audio" else visual

    def of_clips(rows: int, clips: int, memory_bytes: int, on_cpu: bool) -> float:
        plan = Plan(resample, None, memory_bytes)
        forms = euclidean_one_grid.planned_bytes, euclidean_many_grids.planned_bytes
        return max(
            of_form(plan, (rows, clips), steps, FLOAT * width, on_cpu=on_cpu) for of_form in forms
        )

    return PairCost(6.0 * target * width, of_clips=of_clips)


def _by_definition(
    visual: Sequences, audio: Sequences, block: int | None, memory_bytes: int, resample: str
) -> Float[Array, "Q K"]:
    dtype = visual.values.dtype

    def summable(stream: Sequences) -> Sequences:
        values = stream.values.astype(sum_dtype(stream))
        return stream.replace(values=values, windows=jax.lax.stop_gradient(stream.windows))

    streams = summable(visual), summable(audio)
    sizes = {"block": block, "memory_bytes": memory_bytes}
    distances, _ = all_pairs(euclidean, *streams, **sizes, resample=resample)
    # What is infinite is so where a value is: NaN, as in the other forms.
    return jnp.where(jnp.isinf(distances), jnp.nan, distances).astype(dtype)


def _in_range(stream: Sequences) -> Sequences:
    """Lengths that the array can hold: rows are read unchecked, whatever comes."""
    return stream.replace(lengths=jnp.clip(stream.lengths, 1, stream.values.shape[1]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_pairs(plan: Plan, visual: Sequences, audio: Sequences) -> Float[Array, "Q K"]:
    return _all_pairs_forward(plan, visual, audio)[0]


def _all_pairs_forward(plan: Plan, visual: Sequences, audio: Sequences):
    dtype = visual.values.dtype
    form = jnp.where(scattered(visual, audio), 3, _form(plan, visual, audio))
    distances = chosen(form, [partial(one, plan) for one in FORMS], visual, audio)
    return distances.astype(dtype), (visual, audio)


def _all_pairs_backward(plan: Plan, residuals, cotangent: Float[Array, "Q K"]):
    visual, audio = residuals
    sums, form = cotangent.astype(sum_dtype(visual)), _form(plan, visual, audio)
    gradients = chosen(form, [partial(one, plan) for one in GRADIENTS], visual, audio, sums)
    return tuple(
        stream.replace(values=gradient.astype(cotangent.dtype), lengths=None, windows=None)
        for stream, gradient in zip((visual, audio), gradients, strict=True)
    )


_all_pairs.defvjp(_all_pairs_forward, _all_pairs_backward)


def _form(plan: Plan, visual: Sequences, audio: Sequences) -> Int[Array, ""]:
    """0: every sequence lies on one grid; 1: every target does; 2: neither; 3: by differences.

    For audio_to_visual, one visual grid is worth a product over its steps only where the audio
    grids together have as many. For visual_to_audio, products of one or two audio sequences are
    slower than differences, but their gradients are not.
    """
    moved, target = moved_and_target(grid_of(visual), grid_of(audio), plan.resample)
    grids = resampling.count_grids(grid_of(audio))
    is_one = resampling.all_on_one(target, target)
    aligned = is_one & resampling.all_on_one(moved, target)
    if plan.resample == "audio_to_visual":
        is_one &= target.lengths[0] <= grids * jnp.max(audio.lengths)
        ragged = jnp.asarray(2, jnp.int32)
    else:
        ragged = jnp.where(grids > int(FEW_GRIDS * len(audio.lengths)), 3, 2)
    return jnp.where(aligned, 0, jnp.where(is_one, 1, ragged)).astype(jnp.int32)
