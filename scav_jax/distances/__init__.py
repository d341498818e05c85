"""Sequential distances, each defined for one pair and lifted to all pairs by `pairwise`.

`D[i, j]` is visual sequence i against audio sequence j; smaller is closer. To add a distance:
one file with a function of two `Sequences`, one line in `DISTANCES`, one row in its tests.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from scav_jax.distances import dtw as _dtw
from scav_jax.distances import euclidean as _euclidean
from scav_jax.distances import wasserstein as _wasserstein
from scav_jax.distances.lift import all_pairs
from scav_jax.errors import InputError, did_you_mean
from scav_jax.sequences import Sequences

BLOCK_BYTES = 256 * 2**20


class Distance(NamedTuple):
    """One distance.

    Attributes:
      pair: `(visual, audio, **options) -> scalar` for one pair `[N, C]`, `[M, C]`: the definition.
      alignment: the same arguments -> `[N, M]`, which steps it compares, for plotting.
      copies: how many arrays of pair size it keeps; sets the block size only.
      matrix: a faster form of all pairs, equal to the definition, or None.
      retrieval: the name of the form that is used for retrieval, or None for itself.
    """

    pair: Callable[..., Float[Array, ""]]
    alignment: Callable[..., Float[Array, "N M"]]
    copies: int
    matrix: Callable[..., Float[Array, "Q K"]] | None = None
    retrieval: str | None = None


DISTANCES: dict[str, Distance] = {
    "euclidean": Distance(
        _euclidean.euclidean,
        _euclidean.interpolation_weights,
        copies=2,
        matrix=_euclidean.euclidean_matrix,
    ),
    "soft_dtw": Distance(_dtw.soft_dtw, _dtw.soft_alignment, copies=8, retrieval="dtw"),
    "dtw": Distance(_dtw.dtw, _dtw.hard_alignment, copies=4),
    "wasserstein": Distance(
        _wasserstein.wasserstein,
        _wasserstein.transport_plan,
        copies=6,
        matrix=_wasserstein.wasserstein_matrix,
    ),
}


def pairwise(
    name: str,
    visual: Sequences,
    audio: Sequences,
    *,
    block_bytes: int = BLOCK_BYTES,
    **options,
) -> Float[Array, "Q K"]:
    """All distances between Q visual and K audio sequences of ragged lengths.

    Args:
      name: a key of `DISTANCES`.
      visual: `[Q, N, C]` latents.
      audio: `[K, M, C]` latents.
      block_bytes: memory budget for what lives beside the result; does not change the values.
      **options: of that distance, for example `resample="audio_to_visual"` or `gamma=1.0`.

    Returns:
      `D[i, j]` of visual i and audio j.

    Raises:
      InputError: an unknown distance or option, or latents of different width.
    """
    distance = find(name, options)
    if visual.values.shape[-1] != audio.values.shape[-1]:
        raise InputError(
            f"distance {name!r}: both streams should have one width, got visual "
            f"{visual.values.shape} and audio {audio.values.shape}; encode them first"
        )
    pair_bytes = _pair_bytes(name, visual, audio) * distance.copies

    def lift(pair, **pair_options) -> Float[Array, "Q K"]:
        return all_pairs(
            lambda v, a: pair(v, a, **pair_options),
            visual,
            audio,
            pair_bytes=pair_bytes,
            block_bytes=block_bytes,
        )

    if distance.matrix is None:
        return lift(distance.pair, **options)
    return distance.matrix(lift, visual, audio, **options)


def alignment(name: str, visual: Sequences, audio: Sequences, **options) -> Float[Array, "N M"]:
    """Which visual step a distance compares with which audio step, for one pair; non-negative."""
    return find(name, options).alignment(visual, audio, **options)


def retrieval_form(name: str, options: dict) -> tuple[str, dict]:
    """The distance that ranks what `name` trained, and its share of the options.

    It is the same distance, except that DTW proper ranks what soft-DTW trained (section III-C).

    >>> retrieval_form("soft_dtw", {"gamma": 0.1})
    ('dtw', {})
    """
    ranks = find(name, options).retrieval or name
    known = option_names(ranks)
    return ranks, {option: value for option, value in options.items() if option in known}


def option_names(name: str) -> tuple[str, ...]:
    """The options that a distance takes."""
    parameters = inspect.signature(find(name, {}).pair).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def find(name: str, options: dict) -> Distance:
    """The named distance, once it is known to take these options; else `InputError`."""
    if name not in DISTANCES:
        raise InputError(
            f"distance: expected one of {', '.join(DISTANCES)}, got {name!r}."
            + did_you_mean(name, list(DISTANCES))
        )
    if options:
        known = option_names(name)
        for option in options:
            if option not in known:
                raise InputError(
                    f"distance {name!r}: expected options among {', '.join(known) or '(none)'}, "
                    f"got {option!r}." + did_you_mean(option, known)
                )
    return DISTANCES[name]


def _pair_bytes(name: str, visual: Sequences, audio: Sequences) -> int:
    """Bytes of one array of pair size: step by step, or step by channel for the Euclidean."""
    (n, width), m = visual.values.shape[-2:], audio.values.shape[-2]
    entries = max(n, m) * width if name == "euclidean" else (n + m) * max(n, m)
    return entries * jax.numpy.dtype(visual.values.dtype).itemsize
