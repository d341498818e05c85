"""The sum of several objectives, each with a weight, in one training.

Its name is theirs, "sequence+temporal"; its options are theirs with their names before them,
`temporal_queue`, and a weight for each, `temporal_weight`. The first one says how checkpoints are
ranked and how the model is used. Features as they are stored are one pass of the towers for all of
them; of whatever else one shows the towers, the others see nothing.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from scav_jax.base.errors import InputError
from scav_jax.objectives.objective import (
    OURS,
    Batch,
    Cost,
    Material,
    Metrics,
    Objective,
    Outputs,
    Place,
    Task,
    Views,
    Work,
)
from scav_jax.sequences import AudioVisual, Sequences

WEIGHT = "weight"
CLIP = "clip"  # the view that all share who show the features as they are


class Heads(nn.Module):
    """The heads of those that have any, by their names."""

    parts: Mapping[str, nn.Module]

    def of(self, part: str) -> nn.Module | None:
        """Those of one of them."""
        return self.parts.get(part)


@dataclasses.dataclass(frozen=True)
class Sum(Objective):
    """What `sum_of` makes a class of, with `PARTS` and fields for their options."""

    PARTS: ClassVar[Mapping[str, type[Objective]]] = {}

    def __post_init__(self):
        super().__post_init__()
        if not sum(self._weight(name) for name in self.parts) > 0:
            raise InputError(f"objective: expected a weight above 0 in {self.name}, got none")

    @functools.cached_property
    def parts(self) -> dict[str, Objective]:
        """The objectives."""
        found = {}
        for name, kind in self.PARTS.items():
            own = {f.name: getattr(self, f"{name}_{f.name}") for f in _options(kind)}
            shared = {key: getattr(self, key) for key in OURS[1:]}
            with _named_as_here(name, kind):
                found[name] = kind(name=name, **shared, **own)
        return found

    @property
    def first(self) -> Objective:
        """The one that says how the model is used."""
        return self.parts[self._first_name]

    @property
    def _first_name(self) -> str:
        return next(iter(self.PARTS))

    def _weight(self, name: str) -> float:
        weight = getattr(self, f"{name}_{WEIGHT}")
        if weight < 0:
            raise InputError(f"objective.{name}_{WEIGHT}: expected 0 or more, got {weight}")
        return weight

    @property
    def methods(self) -> tuple[str, ...]:  # type: ignore[override]  # of its parts
        return self.first.methods

    @property
    def controls(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(c for part in self.parts.values() for c in part.controls))

    def temperatures(self) -> dict[str, float]:
        return {
            f"{name}_{key}": value
            for name, part in self.parts.items()
            for key, value in part.temperatures().items()
        }

    def heads(self, width: int) -> nn.Module | None:
        made = {name: part.heads(width) for name, part in self.parts.items()}
        made = {name: heads for name, heads in made.items() if heads is not None}
        return Heads(made) if made else None

    def views(self, batch: Batch, key: Array) -> Views:
        features: dict[str, AudioVisual] = {}
        about = {}
        for name, part in self.parts.items():
            own = part.views(batch, key)
            for view, streams in own.features.items():
                shared = view == CLIP and streams is batch.features
                features[CLIP if shared else _view(name, view)] = streams
            about[name] = own.about
        return Views(features, about)

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        values, rest = {}, {}
        shared = {CLIP: latents[CLIP]} if CLIP in latents else {}
        for name, part in self.parts.items():
            prefix = _view(name, "")
            own = shared | {
                view.removeprefix(prefix): streams
                for view, streams in latents.items()
                if view.startswith(prefix)
            }
            values[name], rest[name] = part.of_clips(_heads(heads, name), own, about[name])
        return Outputs(values, rest)

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The weighted sum; aux has `losses` by name, and the aux of each under its name."""
        total = jnp.zeros((), jnp.float32)
        aux: dict = {"losses": {}}
        for name, part in self.parts.items():
            own = {key: log_temperature[f"{name}_{key}"] for key in part.temperatures()}
            loss, aux[name] = part.loss(own, _own(outputs, name), memory[name], place)
            aux["losses"][name] = loss
            total += self._weight(name) * loss
        return total, aux

    def memory(self) -> PyTree:
        return {name: part.memory() for name, part in self.parts.items()}

    def remember(self, memory: PyTree, outputs: Outputs) -> PyTree:
        return {
            name: part.remember(memory[name], _own(outputs, name))
            for name, part in self.parts.items()
        }

    def tasks(self, outputs: Outputs) -> dict[str, Task]:
        return {
            task: of_task
            for name, part in self.parts.items()
            for task, of_task in part.tasks(_own(outputs, name)).items()
        }

    def under(self, control: str) -> "Sum":
        changes: dict = {
            f"{n}_control": control for n, p in self.parts.items() if control in p.controls
        }
        return dataclasses.replace(self, **changes)

    def health(self, aux: dict) -> Metrics:
        """Of the first as they are called there, of the others with their names before them."""
        metrics = {f"loss_{name}": value for name, value in aux["losses"].items()}
        spreads = []
        for number, (name, part) in enumerate(self.parts.items()):
            own = part.health(aux[name])
            if "embedding_spread" in own:
                spreads.append(own.pop("embedding_spread"))
            metrics |= {f"{name}_{key}" if number else key: value for key, value in own.items()}
        if spreads:
            metrics["embedding_spread"] = jnp.min(jnp.stack(spreads))
        return metrics

    def score(self, found: Mapping[str, float]) -> float:
        return self.first.score(found)

    def check(self, material: Material) -> None:
        for name, part in self.parts.items():
            with _named_as_here(name, type(part)):
                part.check(material)

    def cost(self, work: Work) -> Cost:
        costs = [part.cost(work) for part in self.parts.values()]
        return Cost(*(sum(values) for values in zip(*costs, strict=True)))

    @property
    def title(self) -> str:
        return " + ".join(part.title for part in self.parts.values())

    def in_words(self, distance: str) -> list[str]:
        words = [word for part in self.parts.values() for word in part.in_words(distance)]
        return [*words, *(f"weight of {name} {self._weight(name):g}" for name in self.parts)]

    def ranks_by(self) -> tuple[str, dict]:
        return self.first.ranks_by()

    def shown(self, batch: Batch) -> AudioVisual:
        return self.first.shown(batch)

    def embed(
        self, heads: nn.Module | None, stream: str, latents: Sequences
    ) -> Float[Array, "B E"]:
        return self.first.embed(_heads(heads, self._first_name), stream, latents)

    def kept(
        self, heads: nn.Module | None, stream: str, latents: Sequences, features: Sequences
    ) -> tuple[Sequences, Float[Array, "B E"]]:
        return self.first.kept(_heads(heads, self._first_name), stream, latents, features)

    @property
    def decided(self) -> tuple[str, ...]:
        return tuple(f"{self._first_name}_{name}" for name in self.first.decided)

    def decide(
        self, similarities: Float[np.ndarray, "V A"], distances: Float[np.ndarray, "V A"]
    ) -> dict[str, float]:
        found = self.first.decide(similarities, distances)
        return {f"{self._first_name}_{name}": value for name, value in found.items()}


def _view(part: str, view: str) -> str:
    """What a view that is one part's alone is called."""
    return f"{part}/{view}"


def _heads(heads: nn.Module | None, name: str) -> nn.Module | None:
    return None if heads is None else heads.of(name)


def _own(outputs: Outputs, name: str) -> Outputs:
    return Outputs(outputs.values[name], outputs.about[name])


def _options(kind: type[Objective]) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(kind) if f.name not in OURS]


@contextlib.contextmanager
def _named_as_here(name: str, kind: type[Objective]) -> Iterator[None]:
    """Complaints of a part name its options as the sum has them."""
    own = {f.name for f in _options(kind)}

    def in_sum(found: re.Match) -> str:
        return f"objective.{name}_{found[1]}" if found[1] in own else found[0]

    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"\bobjective\.(\w+)", in_sum, str(error))) from None


@functools.cache  # a class is the same whenever it is asked for: objectives are compared
def sum_of(kinds: tuple[tuple[str, type[Objective]], ...]) -> type[Objective]:
    """The class of a sum, of (name, class) of its parts; at least two, each once."""
    fields: list[tuple] = []
    for name, kind in kinds:
        fields.append((f"{name}_{WEIGHT}", float, dataclasses.field(default=1.0)))
        for f in _options(kind):
            copied = {key: getattr(f, key) for key in ("default", "default_factory", "hash")}
            fields.append((f"{name}_{f.name}", f.type, dataclasses.field(**copied)))
    made = dataclasses.make_dataclass(
        "Sum", fields, bases=(Sum,), frozen=True, namespace={"PARTS": dict(kinds)}
    )
    return made
