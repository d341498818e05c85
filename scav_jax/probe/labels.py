"""Labels from frozen features: a linear probe, and nearest neighbours.

The probe is multinomial logistic regression on standardised features, with the L2 penalty
`|W|^2 / (2 C n)`; C is what does best on validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar

STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # C
ITERATIONS = 300
NEAREST = (1, 5, 10)
BLOCK, PAIRS = 1024, 2**26  # queries, and of them and all others, at a time


@dataclass(frozen=True)
class Labelled:
    """Vectors of K clips and the class of each."""

    vectors: Float[np.ndarray, "K E"]
    labels: Sequence[str]

    def numbers(self, classes: Sequence[str]) -> Int[np.ndarray, " K"]:
        """Each clip's class by its number; -1 where it is none of these."""
        known = {label: number for number, label in enumerate(classes)}
        return np.array([known.get(label, -1) for label in self.labels])


def linear_probe(train: Labelled, validation: Labelled, asked: Labelled) -> dict:
    """Accuracy on `asked` of a probe that was fitted to `train`.

    Clips without a label, or with one that train does not have, are left out and counted.

    Returns:
      `accuracy`, `chance` (of the most frequent class), `C`, `n`, `left_out`, `classes`.

    Raises:
      InputError: train has fewer than two classes, or the others have none of them.
    """
    classes = sorted({label for label in train.labels if label})
    if len(classes) < 2:
        raise InputError(f"labels: expected two classes or more to learn, got {len(classes)}")
    mean, deviation = train.vectors.mean(axis=0), train.vectors.std(axis=0)
    fitted, chosen, tested = (
        _known(part, classes, mean, np.where(deviation > 0, deviation, 1.0))
        for part in (train, validation, asked)
    )
    for name, (_, numbers) in (("validation", chosen), ("split", tested)):
        if not len(numbers):
            raise InputError(f"labels: expected clips of train's classes in the {name}, got none")
    accuracies, start = {}, np.zeros((fitted[0].shape[1] + 1) * len(classes))
    weights = {}
    with progress_bar("linear probe", len(STRENGTHS) * ITERATIONS, "iteration") as bar:
        for number, strength in enumerate(STRENGTHS, 1):  # each starts where the last one ended
            start = weights[strength] = _fit(*fitted, len(classes), strength, start, bar.update)
            accuracies[strength] = _accuracy(start, *chosen, len(classes))
            bar.update(number * ITERATIONS - bar.n)
    best = max(STRENGTHS, key=lambda strength: (accuracies[strength], -strength))
    counts = np.bincount(tested[1], minlength=len(classes))
    return {
        "accuracy": _accuracy(weights[best], *tested, len(classes)),
        "chance": float(counts.max() / counts.sum()),
        "C": best,
        "n": len(tested[1]),
        "left_out": len(asked.labels) - len(tested[1]),
        "classes": len(classes),
    }


def _known(part: Labelled, classes: Sequence[str], mean, deviation):
    numbers = part.numbers(classes)
    return ((part.vectors - mean) / deviation)[numbers >= 0], numbers[numbers >= 0]


def _fit(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    strength: float,
    start: np.ndarray,
    told: Callable[[], object],
):
    """Weights and biases `[(E + 1) classes]` of the least penalised loss; tells each iteration."""
    features, labels = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    penalty = jnp.float32(0.5 / (strength * len(x)))

    def of_numpy(flat):
        weights = jnp.asarray(flat.reshape(-1, classes), jnp.float32)
        value, slope = _penalised_loss(weights, features, labels, penalty)
        return float(value), np.asarray(slope, np.float64).ravel()

    found = minimize(
        of_numpy,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS},
        callback=lambda _: told(),
    )
    return found.x


@jax.jit  # of arrays alone: one program for all strengths
@jax.value_and_grad
def _penalised_loss(weights, features, labels, penalty):
    products = jnp.matmul(features, weights[:-1], precision=jax.lax.Precision.HIGHEST)
    log_p = jax.nn.log_softmax(products + weights[-1][None])
    own = jnp.take_along_axis(log_p, labels[:, None], axis=1)
    return penalty * jnp.sum(weights[:-1] ** 2) - jnp.mean(own)


def _accuracy(flat: np.ndarray, x: np.ndarray, y: np.ndarray, classes: int) -> float:
    weights = flat.reshape(-1, classes)
    return float(((x @ weights[:-1] + weights[-1]).argmax(axis=1) == y).mean())


def neighbours(candidates: Labelled, asked: Labelled) -> dict:
    """The share of clips that have one of their own class among the k nearest, by cosine.

    Of equally near clips those of other classes come first, see `metrics`.

    Returns:
      `n`, and by k the share; clips without a label ask nothing.
    """
    classes = sorted({label for label in candidates.labels if label})
    own, others = asked.numbers(classes), candidates.numbers(classes)
    queries, keys = (unit_or_zero(part.vectors) for part in (asked, candidates))
    queries, own = queries[own >= 0], own[own >= 0]
    ranks, size = np.empty(len(own), int), max(min(BLOCK, PAIRS // max(len(keys), 1)), 1)
    blocks = range(0, len(own), size)
    shown = len(own) * len(keys) > PAIRS
    keys = keys.astype(np.float64)  # once
    for first in progress_bar("neighbours", len(blocks), "block", shown=shown, over=blocks):
        some = slice(first, first + size)
        near, alike = cosines(queries[some], keys), others == own[some, None]
        nearest = np.max(near, axis=1, where=alike, initial=-np.inf, keepdims=True)
        ranks[some] = 1 + np.count_nonzero((near >= nearest) & ~alike, axis=1)
    shares = {str(k): float(np.mean(ranks <= k)) for k in NEAREST} if len(own) else {}
    return {"n": len(own), **shares}


def cosines(
    queries: Float[np.ndarray, "Q E"], keys: Float[np.ndarray, "K E"]
) -> Float[np.ndarray, "Q K"]:
    """Of what `unit_or_zero` made; as in `retrieve`, what is equally near is so to the bit."""
    return (queries.astype(np.float64) @ keys.astype(np.float64, copy=False).T).astype(np.float32)


def unit_or_zero(vectors: Float[np.ndarray, "K E"]) -> Float[np.ndarray, "K E"]:
    """Vectors of length 1; of one without a direction, zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
