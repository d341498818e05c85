"""The static and the dynamic part of what ranks, each as a row of the table.

Of a model that learned both apart ("separate"), the dynamic part is the distance without the
static one; the static one is aggregation, and their sum is what ranks sequences.

Of any model that is ranked by the interpolated Euclidean distance, D is the sum of two parts on
one grid, D = D_static + D_dynamic exactly: the distance of both means over time, and that of both
sequences less these. `--parts` ranks by each, and by both with a deviation of their own. Where
nothing changes over a pair, as of one step, the dynamic part is 0 and not what rounding leaves.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scav_jax import metrics
from scav_jax.base.errors import InputError
from scav_jax.distances.static import SUFFIX
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieve import queries_first, sequence_distances
from scav_jax.sequences import Sequences, masked_mean

STATIC = "scav_jax.distances.static:euclidean_static"
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
    alone = sequence_distances(embedded.latents, name, options | {"static_weight": 0.0})
    return [Part("dynamic part", alone, alone)]


def check_euclidean(name: str) -> None:
    """Raises `InputError` for another distance, which is no sum of two parts."""
    if name != "euclidean":
        raise InputError(
            f"--parts: expected the Euclidean distance, which is a sum of two parts, got {name}; "
            "leave it out"
        )


def of_euclidean(
    embedded: Embedded, distances: Float[np.ndarray, "V A"], name: str, options: dict
) -> list[Part]:
    """Both parts of the Euclidean distance, and their sum by deviations.

    Args:
      embedded: all clips.
      distances: D of them.
      name, options: of D.

    Raises:
      InputError: another distance, which is no such sum.
    """
    check_euclidean(name)
    static = sequence_distances(embedded.latents, STATIC, options)
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


def _mean_square(latents: Sequences) -> Float[np.ndarray, " K"]:
    """Over real steps and channels."""
    squares = masked_mean(jnp.square(latents.values), jnp.asarray(latents.lengths))
    return np.asarray(squares.mean(axis=-1))
