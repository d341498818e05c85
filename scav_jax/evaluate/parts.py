"""The static and the dynamic part of what ranks, each as a row of the table.

Of a model that learned both apart ("separate"), the dynamic part is the distance without the
static one; the static one is aggregation, and their sum is what ranks sequences.

Of any model that is ranked by the interpolated Euclidean distance, D is the sum of two parts on
one grid, D = D_static + D_dynamic exactly: the distance of both means over time, and that of both
sequences less these. `--parts` ranks by each, and by both with a deviation of their own. Where
nothing changes over a pair, as of one step, the dynamic part is 0 and not what rounding leaves.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scav_jax import metrics
from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.distances.narrow import widened
from scav_jax.distances.static import SUFFIX
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieve import queries_first, sequence_distances
from scav_jax.sequences import AudioVisual, Sequences, masked_mean, resample_like

ROWS = 512  # clips whose means are taken at a time
ROUNDED = np.float32(2.0**-20)  # of mean squares: a difference of distances below it is rounding


class Part(NamedTuple):
    """One more way to rank, `[visual, audio]` for each direction; smaller is closer."""

    label: str
    a2v: Float[np.ndarray, "V A"]
    v2a: Float[np.ndarray, "V A"]

    def ranks(self, direction: str) -> Int[np.ndarray, " queries"]:
        """Of every query's own clip."""
        return metrics.ranks(queries_first(getattr(self, direction), direction))


def labels(name: str, options: dict) -> dict[str, str]:
    """What the usual methods are called where two parts were learned apart."""
    if not name.endswith(SUFFIX):
        return {}
    weight = options["static_weight"]
    return {"aggregation": "static part", "sequence": f"sum, static weight {weight:g}"}


def of_both(embedded: Embedded, name: str, options: dict) -> list[Part]:
    """The dynamic part of a distance that has a static one beside it; else nothing."""
    if not name.endswith(SUFFIX):
        return []
    without = options | {"static_weight": 0.0}
    alone = sequence_distances(embedded.latents, name, without, progress=True)
    return [Part("dynamic part", alone, alone)]


def check_euclidean(name: str) -> None:
    """Raises `InputError` for another distance, which is no sum of two parts."""
    if name != "euclidean":
        raise InputError(
            f"--parts: expected the Euclidean distance, which is a sum of two parts, got {name}; "
            "leave it out"
        )


def of_euclidean(
    embedded: Embedded, distances: Float[np.ndarray, "V A"], options: dict
) -> list[Part]:
    """Both parts of the Euclidean distance, and their sum by deviations.

    Args:
      embedded: all clips.
      distances: D of them.
      options: of D.
    """
    static = static_distances(embedded.latents, **options)
    visual, audio = map(_mean_square, embedded.latents)
    dynamic = distances - static
    dynamic[dynamic < ROUNDED * (visual[:, None] + audio[None])] = 0.0  # no order, nor a deviation
    summed = {
        axis: sum(part / np.maximum(part.std(axis=axis, keepdims=True), 1e-12)
                  for part in (static, dynamic))
        for axis in (0, 1)
    }  # fmt: skip
    return [
        Part("static part of D", static, static),
        Part("dynamic part of D", dynamic, dynamic),
        Part("both parts by deviation", summed[0], summed[1]),
    ]


def static_distances(
    latents: AudioVisual, *, resample: str = "visual_to_audio"
) -> Float[np.ndarray, "V A"]:
    """D_static: `|mean_t v' - mean_t a|^2 / C`, with v' at the steps of a.

    Means are taken once for each grid of the targets, not for each pair.

    Args:
      latents: `[V, N, C]` and `[A, M, C]`, on the host.
      resample: as of `euclidean`.
    """
    there = resample == "visual_to_audio"
    moved, target = latents if there else reversed(latents)
    own = _in_blocks(_means, target)
    grids = np.column_stack([target.lengths, target.windows])
    _, firsts, kinds = np.unique(grids, axis=0, return_index=True, return_inverse=True)
    found = np.empty((len(moved.lengths), len(target.lengths)), np.float32)
    with progress_bar("static part", found.size, "pair", scale=True) as bar:
        for kind, first in enumerate(firsts):
            grid = jax.tree.map(lambda leaf, row=first: jnp.asarray(leaf[row]), target)
            columns = np.flatnonzero(kinds.reshape(-1) == kind)
            means, some = _in_blocks(partial(_means_on, grid), moved), own[columns]
            for begin in range(0, len(means), ROWS):
                rows = slice(begin, begin + ROWS)
                found[rows, columns] = _mean_squares(means[rows], some)
            bar.update(len(means) * len(columns))
    return found if there else found.T


def _in_blocks(of_clips: Callable, stream: Sequences) -> Float[np.ndarray, "K C"]:
    """`of_clips(stream)`, some clips at a time."""
    blocks = (
        jax.tree.map(lambda leaf, rows=slice(begin, begin + ROWS): jnp.asarray(leaf[rows]), stream)
        for begin in range(0, len(stream.lengths), ROWS)
    )
    return np.concatenate([np.asarray(of_clips(block), np.float64) for block in blocks])


@jax.jit
def _means(stream: Sequences) -> Float[Array, "B C"]:
    return masked_mean(widened(stream).values, stream.lengths)


@jax.jit
def _means_on(grid: Sequences, stream: Sequences) -> Float[Array, "B C"]:
    """Of each clip at the steps of one target."""

    def of_one(clip: Sequences) -> Float[Array, " C"]:
        resampled = resample_like(clip, grid)
        return masked_mean(resampled.values, resampled.lengths)

    return jax.vmap(of_one)(widened(stream))


def _mean_squares(
    x: Float[np.ndarray, "X C"], y: Float[np.ndarray, "Y C"]
) -> Float[np.ndarray, "X Y"]:
    """Of differences over channels; in float64, so that near means are told apart."""
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None]
    return np.maximum(squares - 2.0 * (x @ y.T), 0.0) / x.shape[1]


def _mean_square(latents: Sequences) -> Float[np.ndarray, " K"]:
    """Over real steps and channels."""
    squares = masked_mean(jnp.square(latents.values), jnp.asarray(latents.lengths))
    return np.asarray(squares.mean(axis=-1))
