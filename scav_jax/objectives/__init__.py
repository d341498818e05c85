"""What is minimised. An objective is one file and one line here, or a user's dotted path.

objective      what every objective is: views, heads, loss, memory, health, score, cost, embedding
returns        what its methods gave, checked: one may be a stranger's
sequential     SCAV, CAV and both
separate       what changes over a clip and what does not, learned apart
free           changes of features that say nothing new: augmentation
scale          what distances are divided by before the softmax
pixels         what towers of patches see, and the contrast of it alone
equivariant    EquiAV; `augment`: what it does to pictures and log-mels, as vectors say
contrastive    their two losses; `cross_entropy`: the softmax over a matrix of distances
playing        its losses on features that can be played, which is the augmentation: ours
played         what objectives of played views share
temporal       speed, direction and order of views, and contrast
selection      its contrast, with positives and negatives from a queue
classification  labels of clips: linear probe and fine-tuning
sums           several in one training, by a name such as "sequence+temporal"
"""

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from scav_jax.base import doors
from scav_jax.base.errors import InputError
from scav_jax.objectives.classification import Classification
from scav_jax.objectives.contrastive import (
    aggregation_loss,
    normalize_distances,
    sequence_loss,
    temperature,
)
from scav_jax.objectives.equivariant import Equivariant
from scav_jax.objectives.objective import Objective, Outputs, Place, Views, clip_keys
from scav_jax.objectives.pixels import PixelContrast
from scav_jax.objectives.playing import EquivariantPlaying
from scav_jax.objectives.separate import Separate
from scav_jax.objectives.sequential import Sequential
from scav_jax.objectives.sums import sum_of
from scav_jax.objectives.temporal import Temporal
from scav_jax.sequences import Batch

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Classification",
    "Equivariant",
    "EquivariantPlaying",
    "Objective",
    "Outputs",
    "PixelContrast",
    "Place",
    "Separate",
    "Sequential",
    "Temporal",
    "Views",
    "aggregation_loss",
    "clip_keys",
    "find",
    "make",
    "normalize_distances",
    "sequence_loss",
    "temperature",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "sequence": Sequential,
    "aggregation": Sequential,
    "sequence+aggregation": Sequential,
    "separate": Separate,
    "temporal": Temporal,
    "pixels": PixelContrast,
    "equivariant": Equivariant,
    "equivariant_playing": EquivariantPlaying,
    "classification": Classification,
}


def find(name: str) -> type[Objective]:
    """The class of an objective: a key of `OBJECTIVES`, a sum of keys, or `package.module:Class`.

    Raises:
      InputError: neither, or what the path names is no objective.

    >>> find("sequence+temporal").__name__
    'Sum'
    """
    parts = name.split("+") if isinstance(name, str) and name not in OBJECTIVES else []
    if len(parts) > 1 and len(set(parts)) == len(parts) and set(parts) <= OBJECTIVES.keys():
        if "classification" in parts:
            raise InputError(
                f"objective.name: expected objectives without labels in a sum, got {name!r}; train "
                "the others first, then classification with train.init_from=RUN"
            )
        return sum_of(tuple((part, OBJECTIVES[part]) for part in parts))
    if len(parts) > 1 and any(":" in part for part in parts):
        raise InputError(
            f"objective.name: expected a sum of {', '.join(OBJECTIVES)}, got {name!r}; an "
            "objective of your own is trained alone"
        )
    found = doors.find("objective.name", name, OBJECTIVES)
    if not (inspect.isclass(found) and issubclass(found, Objective)):
        raise InputError(
            f"objective.name: expected a subclass of scav_jax.objectives.Objective, {name} is "
            f"{found!r}"
        )
    if name not in OBJECTIVES:
        _check_stranger(name, found)
    return found


def _check_stranger(name: str, cls: type[Objective]) -> None:
    """Raises `InputError` for a class that cannot be made or called as objectives are."""
    for one in fields(cls):
        if one.default is MISSING and one.default_factory is MISSING:
            raise InputError(f"objective {name}: expected a default for {one.name}, got none")
        ours = {same.name: same for same in fields(Objective)}.get(one.name)
        if ours and one.name != "name" and one.default != ours.default:
            raise InputError(
                f"objective {name}: expected no default of its own for {one.name}, which the "
                f"config sets (--config.distance.name), got {one.default!r:.40}; leave it out"
            )
    if cls.classes and cls.classify is Objective.classify:
        raise InputError(
            f"objective {name}: expected a method classify(self, heads, latents) beside `classes`, "
            "got none"
        )
    known, methods = {"aggregation", "sequence"}, cls.methods
    if not (isinstance(methods, tuple) and methods and known.issuperset(methods)):
        raise InputError(
            f'objective {name}: expected `methods` as ("aggregation",), ("sequence",) or both, got '
            f"{methods!r}"
        )
    for method, ours in inspect.getmembers(Objective, inspect.isfunction):
        own, given = getattr(cls, method), list(inspect.signature(ours).parameters)
        wanted = f"objective {name}: expected a method {method}({', '.join(given)})"
        if own is ours and method in ("of_clips", "loss"):
            raise InputError(f"{wanted}, got none")
        if own is ours or method.startswith("_"):
            continue
        try:
            inspect.signature(own).bind(*given)
        except (TypeError, ValueError) as error:
            raise InputError(f"{wanted}, its own is called otherwise: {error}") from None


def make(objective: Mapping[str, Any], distance: Mapping[str, Any]) -> Objective:
    """The objective that two sections of a config describe.

    Args:
      objective: its `name`, and its own options.
      distance: the distance's `name`, and its options.
    """
    options = {key: value for key, value in distance.items() if key != "name"}
    return find(objective["name"])(**objective, distance=distance["name"], distance_options=options)
