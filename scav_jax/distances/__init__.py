"""Sequential distances, each defined for one pair and lifted to all pairs by `pairwise`.

`D[i, j]` is visual sequence i against audio sequence j; smaller is closer. To add a distance:
one file with a function of two `Sequences`, one line in `DISTANCES`, one row in its tests; or a
function of one's own, named `package.module:function`.

euclidean      the definition, and which form of all pairs fits; `euclidean_one_grid` for clips of
               one length, `euclidean_many_grids` for ragged ones, `euclidean_blocks`, `resampling`
dtw            soft-DTW and DTW; `warping`: all pairs along anti-diagonals
wasserstein    both transport distances; `sinkhorn`: ott's solver, `transport`: all pairs in tiles
static         any of them beside what does not change over a clip: "euclidean+static"
checks, lift   what no distance can compare; all pairs of a distance that has a definition only
centre         what is taken off all clips before products
narrow         16 bits, which are computed in float32
cost           what one pair costs in training, for `scav plan`
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scav_jax.base import doors
from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.distances import dtw as _dtw
from scav_jax.distances import euclidean as _euclidean
from scav_jax.distances import static as _static
from scav_jax.distances import wasserstein as _wasserstein
from scav_jax.distances.checks import check_streams, in_range, usable
from scav_jax.distances.cost import PairCost, of_cells
from scav_jax.distances.lift import all_pairs
from scav_jax.distances.narrow import widened
from scav_jax.sequences import Sequences, sequences

MEMORY_BYTES = 2**30


class Distance(NamedTuple):
    """One distance.

    Attributes:
      pair: `(visual, audio, **options) -> scalar` for one pair `[N, C]`, `[M, C]`: the definition.
      alignment: the same arguments -> `[N, M]`, which steps it compares, for plotting; of a user's
        own distance, steps at the same time.
      matrix: `(visual, audio, *, block, memory_bytes, **options) -> (D, aux)`: a faster form of
        all pairs, equal to the definition; None lifts the definition.
      retrieval: the name of the form that is used for retrieval, or None for itself.
      check: `(**options)`, some or all of them; raises `InputError` for one out of its range.
      of_bfloat16: whether `matrix` multiplies bfloat16 as it is and sums in float32; else latents
        in it are made float32 first.
      cost: `((visual steps, audio steps), width, **options) -> PairCost` of one pair in training,
        for `scav plan`; by default 6 width + 400 operations for each two steps, as 50 iterations
        of Sinkhorn's take.
    """

    pair: Callable[..., Float[Array, ""]]
    alignment: Callable[..., Float[Array, "N M"]]
    matrix: Callable[..., tuple[Float[Array, "Q K"], dict]] | None = None
    retrieval: str | None = None
    check: Callable[..., object] | None = None
    of_bfloat16: bool = False
    cost: Callable[..., PairCost] = partial(of_cells, 400.0)


DISTANCES: dict[str, Distance] = {
    "euclidean": Distance(
        _euclidean.euclidean,
        _euclidean.interpolation_weights,
        _euclidean.euclidean_matrix,
        check=_euclidean.check_options,
        of_bfloat16=True,
        cost=_euclidean.cost,
    ),
    "soft_dtw": Distance(
        *(_dtw.soft_dtw, _dtw.soft_alignment, _dtw.soft_dtw_matrix),
        retrieval="dtw",
        check=_dtw.check_options,
        cost=partial(of_cells, 40.0),
    ),
    "dtw": Distance(
        *(_dtw.dtw, _dtw.hard_alignment, _dtw.dtw_matrix), cost=partial(of_cells, 10.0)
    ),
    "wasserstein": Distance(
        _wasserstein.wasserstein,
        _wasserstein.transport_plan,
        _wasserstein.wasserstein_matrix,
        check=_wasserstein.Annealed,
    ),
    "sinkhorn": Distance(
        *(_wasserstein.sinkhorn, _wasserstein.sinkhorn_plan, _wasserstein.sinkhorn_matrix),
        check=_wasserstein.check_fixed_epsilon,
    ),
}


def pairwise(
    name: str,
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | str = "auto",
    memory_bytes: int = MEMORY_BYTES,
    **options,
) -> Float[Array, "Q K"]:
    """All distances between Q visual and K audio sequences of ragged lengths.

    Args:
      name: a key of `DISTANCES`.
      visual: `[Q, N, C]` latents.
      audio: `[K, M, C]` latents.
      block: how many pairs are computed at once, or "auto": as many as is fast within
        `memory_bytes`. Changes neither values nor gradients.
      memory_bytes: of the working memory beside inputs, result and gradients.
      **options: of that distance, for example `resample="audio_to_visual"` or `gamma=1.0`.

    Returns:
      `D[i, j]` of visual i and audio j. A sequence whose length is not in 1..steps has NaN
      distances; one that holds NaN or infinity may make all of them NaN. Outside of `jit` both
      are errors instead; inside, `pairwise_with_aux` says which sequences they are. D has the
      dtype of the latents; that of 16 bits is computed in float32, and of float16 infinite beyond
      65,504.

    Raises:
      InputError: an unknown distance or option, or streams that cannot be compared.
    """
    distances, _ = pairwise_with_aux(
        name, visual, audio, block=block, memory_bytes=memory_bytes, **options
    )
    return distances


def pairwise_with_aux(
    name: str,
    visual: Sequences,
    audio: Sequences,
    *,
    block: int | str = "auto",
    memory_bytes: int = MEMORY_BYTES,
    **options,
) -> tuple[Float[Array, "Q K"], dict[str, Array]]:
    """`pairwise`, and what else is known of its result.

    Returns:
      D, and aux: `usable_visual` `[Q]` and `usable_audio` `[K]` (bool: length in range, values
      finite), and what the distance itself reports, such as convergence.
    """
    distance = find(name, options)
    check_streams(visual, audio)
    matrix = distance.matrix or partial(all_pairs, distance.pair)
    sizes = {"block": _checked(block, memory_bytes), "memory_bytes": memory_bytes}
    dtype = visual.values.dtype
    whole = dtype == jnp.bfloat16 and distance.of_bfloat16
    pair = (visual, audio) if whole else (widened(visual), widened(audio))
    distances, aux = matrix(*pair, **sizes, **options)
    distances = distances.astype(dtype)
    possible = in_range(visual)[:, None] & in_range(audio)[None, :]
    distances = jnp.where(possible, distances, jnp.asarray(jnp.nan, distances.dtype))
    visual, audio = jax.lax.stop_gradient((visual, audio))
    return distances, {"usable_visual": usable(visual), "usable_audio": usable(audio), **aux}


def check_padding(name: str, options: dict, width: int) -> None:
    """Raises `InputError` for a distance of a user's that depends on how far sequences are padded.

    Each batch is padded as its longest clips need it: the same pair would have several distances.

    Args:
      name: the distance; ours are tested.
      options: its options.
      width: of latents.
    """
    if ":" not in name or name.endswith(_static.SUFFIX):
        return
    random = np.random.default_rng(0)
    real = [random.normal(size=(steps, width)).astype(np.float32) for steps in (3, 4)]

    def padded(more: int) -> list[Sequences]:
        longer = (np.pad(one, ((0, more), (0, 0))) for one in real)
        return [sequences(jnp.asarray(one), jnp.asarray(len(one) - more)) for one in longer]

    distance = jax.jit(partial(find(name, options).pair, **options))
    once, again = (float(distance(*padded(more))) for more in (2, 7))
    if not np.isclose(once, again, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise InputError(
            f"distance {name}: expected the same number however far both sequences are padded, "
            f"got {once:g} and {again:g}; leave out what lies beyond `lengths` (`jnp.where` with "
            "scav_jax.sequences.step_mask)"
        )


def _checked(block: int | str, memory_bytes: int) -> int | None:
    """The block as an integer, or None for "auto"."""
    if isinstance(block, bool) or not (block == "auto" or (isinstance(block, int) and block >= 1)):
        raise InputError(f"block: expected 'auto' or a number of pairs from 1, got {block!r}")
    if memory_bytes < 1:
        raise InputError(f"memory_bytes: expected a number of bytes above 0, got {memory_bytes}")
    return None if isinstance(block, str) else block


def alignment(name: str, visual: Sequences, audio: Sequences, **options) -> Float[Array, "N M"]:
    """Which visual step a distance compares with which audio step, for one pair; non-negative."""
    return _alignment(find(name, options).alignment, tuple(options.items()), visual, audio)


@partial(jax.jit, static_argnums=(0, 1))
def _alignment(of_pair: Callable, options: tuple, visual: Sequences, audio: Sequences) -> Array:
    return of_pair(visual, audio, **dict(options))


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
    return _options(find(name, {}))


def _options(distance: Distance) -> tuple[str, ...]:
    return tuple(inspect.signature(distance.pair).parameters)[2:]  # after visual and audio


def find(name: str, options: dict) -> Distance:
    """The named distance, once it is known to take these options with these values.

    Args:
      name: a key of `DISTANCES`, or `package.module:function` of one pair, which is lifted; with
        "+static" behind it, see `distances.static`.
      options: keyword arguments of its definition.

    Raises:
      InputError: no such distance, no such option, or one out of its range.
    """
    base = name.removesuffix(_static.SUFFIX) if isinstance(name, str) else name
    found = doors.find("distance", base, DISTANCES)
    distance = found if isinstance(found, Distance) else _of_a_user(base, found)
    if base != name:
        distance = _with_static(distance)
    if options:
        known = _options(distance)
        for option in options:
            if option not in known:
                raise InputError(
                    f"distance {name!r}: expected options among {', '.join(known) or '(none)'}, "
                    f"got {option!r}." + did_you_mean(option, known)
                )
        if distance.check:
            try:
                distance.check(**options)
            except TypeError as error:  # what is no number cannot be compared with one
                said = ", ".join(f"{option}={value!r}" for option, value in options.items())
                raise InputError(
                    f"distance {name!r}: expected other values than {said}: {error}"
                ) from None
    return distance


def _with_static(distance: Distance) -> Distance:
    """A distance beside that of what does not change over a clip."""
    matrix = distance.matrix or partial(all_pairs, distance.pair)
    return Distance(
        _static.pair_with(distance.pair),
        _static.alignment_with(distance.alignment),
        _static.matrix_with(matrix),
        distance.retrieval and f"{distance.retrieval}{_static.SUFFIX}",
        _static.check_with(distance.check),
        distance.of_bfloat16,  # and no cost: it is counted as the dearest of ours
    )


# What `pairwise` takes besides options; `static` adds the last two.
TAKEN = ("name", "block", "memory_bytes", "static_width", "static_weight")


def _of_a_user(name: str, pair: Any) -> Distance:
    if not callable(pair):
        raise InputError(f"distance: expected a function of two sequences, {name} is {pair!r}")
    try:
        inspect.signature(pair).bind(None, None)
    except TypeError as error:
        raise InputError(
            f"distance: expected a function of a visual and an audio sequence, whose options have "
            f"defaults, {name} is called otherwise: {error}"
        ) from None
    found = Distance(
        pair, lambda visual, audio, **_: _euclidean.interpolation_weights(visual, audio)
    )
    if taken := [option for option in _options(found) if option in TAKEN]:
        raise InputError(
            f"distance: expected options called otherwise than {', '.join(TAKEN)}, {name} has "
            f"{taken[0]!r}"
        )
    return found
