"""A classifier in use: the logits of every clip of a split, and how often they are right.

A class that is exactly as likely as the right one counts against the clip, as in retrieval.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from scav_jax import metrics
from scav_jax.encoders import Towers
from scav_jax.features.store import Split
from scav_jax.objectives import Objective
from scav_jax.retrieval.embed import of_every_clip
from scav_jax.sequences import Batch
from scav_jax.train_step import bound_heads
from scav_jax.training.runs import Run

METRIC_NAMES = ACCURACY, MEAN_AVERAGE_PRECISION = ("accuracy", "mAP")
FIRST = (1, 5)  # of the likeliest classes, in which the right one is looked for


def metric_name(objective: Objective) -> str:
    """What a classifier is judged by, one of `METRIC_NAMES`."""
    return MEAN_AVERAGE_PRECISION if objective.multi_label else ACCURACY


def logits_of(
    run: Run,
    split: Split,
    batch_size: int = 64,
    *,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "K C"]:
    """The logits of every clip, in the order of the split; see `embed.embed` for the arguments."""
    function = partial(_logits, run.encoders, run.objective)
    parts = of_every_clip(run, split, function, batch_size, progress=progress, mesh=mesh)
    logits = np.concatenate(list(parts))
    metrics.check_finite(logits, "logits")
    return logits


@partial(jax.jit, static_argnums=(0, 1))
def _logits(
    encoders: Towers, objective: Objective, params: PyTree, batch: Batch
) -> Float[Array, "B C"]:
    variables = {"params": params["encoders"]}
    latents = encoders.apply(variables, objective.shown(batch), deterministic=True)
    return objective.classify(bound_heads(encoders, objective, params), latents)


def figures(
    objective: Objective,
    logits: Float[np.ndarray, "K C"],
    labels: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """How good logits are, beside the prior: what the same answer for every clip would have.

    Args:
      objective: a classifier; labels are of its classes.
      logits: of K clips.
      labels: of the same clips.
      bootstrap, seed: of the 95 % intervals over clips; 0 leaves them out.

    Returns:
      `n`; `figure`, the accuracy or mAP; `prior`; `classes`, how many; `classes_there`, of how many
      there are clips; and of one label a clip, with more than five classes, `top_5` and
      `prior_top_5`. With `_interval` appended their intervals; `per_class` by name, accuracies or
      average precisions. Shares in 0..1.
    """
    truth = np.asarray(objective.targets(labels)) > 0
    grade = _of_several if objective.multi_label else _of_one
    found, each = grade(logits, truth, {"bootstrap": bootstrap, "seed": seed})
    named = zip(objective.classes, each, strict=True)
    return {
        "n": len(labels),
        "classes": len(objective.classes),
        "classes_there": int(truth.any(axis=0).sum()),
        **found,
        "per_class": {name: float(value) for name, value in named if np.isfinite(value)},
    }


def _of_one(
    logits: Float[np.ndarray, "K C"], truth: Bool[np.ndarray, "K C"], resampled: dict
) -> tuple[dict, Float[np.ndarray, " C"]]:
    """Where a clip has one class: figures, and the accuracy of each class."""
    right, shares = truth.argmax(axis=1), np.sort(truth.mean(axis=0))[::-1]
    ranks = metrics.ranks(-logits, right)
    told = metrics.summary(ranks, FIRST, **resampled)
    found: dict = {}
    for k, name, prior in ((FIRST[0], "figure", "prior"), (FIRST[1], "top_5", "prior_top_5")):
        if k < logits.shape[1]:  # else it says nothing
            found |= {name: told[f"recall_at_{k}"], prior: float(shares[:k].sum())}
            if resampled["bootstrap"]:
                found[f"{name}_interval"] = told[f"recall_at_{k}_interval"]
    first = (ranks == 1).astype(float)
    with np.errstate(invalid="ignore"):
        return found, (first @ truth) / truth.sum(axis=0)


def _of_several(
    logits: Float[np.ndarray, "K C"], truth: Bool[np.ndarray, "K C"], resampled: dict
) -> tuple[dict, Float[np.ndarray, " C"]]:
    """Where a clip may have several: figures, and the average precision of each class."""
    told = metrics.mean_average_precision(logits, truth, **resampled)
    shares = truth.mean(axis=0)
    found = {"figure": told["mAP"], "prior": float(shares[shares > 0].mean())}
    if resampled["bootstrap"]:
        found["figure_interval"] = told["mAP_interval"]
    return found, metrics.average_precisions(logits, truth)[0]
