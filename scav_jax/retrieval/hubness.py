"""Hubness: how near a clip is, relative to how near it is to queries in general.

Some clips of a gallery are near to many queries, and stand in the way of the right ones. Queries of
the training data, the bank, say how far each clip usually is:

    score(q, x) = (D(q, x) - m_x) / s_x

with m and s the mean and the deviation of D over the bank, by direction: sounds of the bank ask for
pictures, pictures for sounds. Per clip it grows with D, so bounds on D are bounds on it. No other
query is looked at.
"""

import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import Embedded, embed
from scav_jax.retrieval.own_data import own_split
from scav_jax.training.runs import Run

LEAST, ENOUGH, TAKEN = 200, 300, 1024  # clips of a bank: refused below, wanted, taken of more
STILL = 1e-3  # of the mean: a deviation below is of a clip that all queries are as far from


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


def moments(
    count: int, sums: Float[np.ndarray, " K"], squares: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Means and deviations of K clips, float32.

    Args:
      count: queries of the bank.
      sums, squares: of the distances to them, and of their squares.
    """
    means = sums / count
    deviations = np.sqrt(np.maximum(squares / count - means**2, 0.0))
    deviations = np.maximum(deviations, STILL * np.abs(means) + 1e-30)
    return means.astype(np.float32), deviations.astype(np.float32)


def moments_of(
    distances: Float[np.ndarray, "B K"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """The same of all distances of B queries of the bank."""
    wide = distances.astype(np.float64)
    return moments(len(wide), wide.sum(axis=0), np.square(wide).sum(axis=0))


def scores(
    distances: Float[np.ndarray, "*shape"],
    means: Float[np.ndarray, "*shape"] | Float[np.ndarray, " K"],
    deviations: Float[np.ndarray, "*shape"] | Float[np.ndarray, " K"],
) -> Float[np.ndarray, "*shape"]:
    """`(D - m) / s` in float64, rounded once to float32: of one clip it never falls where D grows.

    A bound on D thus becomes a bound on the score, to the bit.
    """
    return ((distances.astype(np.float64) - means) / deviations).astype(np.float32)
