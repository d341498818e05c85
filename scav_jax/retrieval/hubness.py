"""Hubness: how near a clip is, relative to how near it is to queries in general.

Some clips of a gallery are near to many queries, and stand in the way of the right ones. Queries of
the training data, the bank, say how near each clip comes to others' queries:

    score(q, x) = D(q, x) - r_x / 2

with r_x the mean of D over the ten queries of the bank that are nearest to x, by direction: sounds
of the bank ask for pictures, pictures for sounds. That is cross-domain similarity local scaling
(CSLS; Conneau et al., ICLR 2018) with queries that are not looked at all at once. Per clip it grows
with D, so bounds on D are bounds on it. Mean and deviation over all of the bank say less: which
clips are near to those that can be taken for them is what matters.
"""

import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import Embedded, embed
from scav_jax.retrieval.own_data import own_split
from scav_jax.training.runs import Run

LEAST, ENOUGH, TAKEN = 200, 300, 1024  # clips of a bank: refused below, wanted, taken of more
NEAREST = 10  # queries of the bank that say how near a clip comes


def training_clips(run: Run) -> Split:
    """The training clips that a bank is of, at most `TAKEN` of them, at random.

    Raises:
      InputError: the run's training data are not there, or too few.
    """
    try:
        split = own_split(run, "train")
    except InputError as error:
        raise InputError(
            f"hubness: expected the training data of the run, of which the bank is ({error}); "
            "bring them back, or use --hubness none"
        ) from None
    check_enough(len(split))
    chosen = np.random.default_rng(0).permutation(len(split))[:TAKEN]
    return split.take(np.sort(chosen))


def check_enough(clips: int) -> None:
    """Raises `InputError` where so few clips say more of themselves than of queries in general."""
    if clips < LEAST:
        raise InputError(
            f"hubness: expected a bank of at least {LEAST} training clips (better {ENOUGH}), got "
            f"{clips}: fewer make the ranks worse; use --hubness none"
        )


def caution(clips: int) -> str:
    """What is to be said of a bank of so many clips; "" where there are enough."""
    if clips >= ENOUGH:
        return ""
    return f"CAUTION: a bank of {clips} clips is small, at least {ENOUGH} are wanted"


def bank_of(run: Run, batch_size: int = 64, *, progress: bool = False) -> Embedded:
    """Training clips, embedded: the queries that clips are compared with."""
    return embed(run, training_clips(run), batch_size, progress=progress)


def nearness(distances: Float[np.ndarray, "K B"]) -> Float[np.ndarray, " K"]:
    """r of K clips, float32, of their distances to queries of the bank: all, or the nearest."""
    nearest = np.partition(distances, NEAREST - 1, axis=1)[:, :NEAREST]
    return nearest.mean(axis=1, dtype=np.float64).astype(np.float32)


def scores(
    distances: Float[np.ndarray, "*shape"],
    near: Float[np.ndarray, "*shape"] | Float[np.ndarray, " K"],
) -> Float[np.ndarray, "*shape"]:
    """`D - r / 2` in float64, rounded once to float32: of one clip it never falls where D grows.

    A bound on D thus becomes a bound on the score, to the bit.
    """
    return (distances.astype(np.float64) - 0.5 * near.astype(np.float64)).astype(np.float32)
