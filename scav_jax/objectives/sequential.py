"""SCAV, CAV and both (paper sections III-B, III-C): they differ by the losses that are summed."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from scav_jax import sharding
from scav_jax.base.errors import check_one_of
from scav_jax.base.ranges import check_range
from scav_jax.distances import find, pairwise, pairwise_with_aux
from scav_jax.distances.cost import PairCost
from scav_jax.objectives import scale
from scav_jax.objectives.contrastive import TEMPERATURES, aggregation_loss, sequence_loss
from scav_jax.objectives.cross_entropy import MatricesHeld, block_of, memory_of_losses, over_blocks
from scav_jax.objectives.objective import (
    FLOAT,
    LOSS_OPERATIONS,
    Cost,
    Metrics,
    Objective,
    Outputs,
    Place,
    Work,
    spread,
)
from scav_jax.sequences import AudioVisual, Sequences, masked_mean

KEPT = {"sequence": MatricesHeld(11, 3, 4), "aggregation": MatricesHeld(9, 2, 4)}
TITLES = {"sequence": "SCAV", "aggregation": "CAV", "sequence+aggregation": "CAV+SCAV"}


@dataclass(frozen=True)
class Sequential(Objective):
    """L_seq (SCAV), L_agg (CAV) or their sum, as the name says.

    Attributes:
      name: "sequence" (SCAV), "aggregation" (CAV) or "sequence+aggregation" (the multitask
        ablation, equal weights and a temperature each).
      distance: the distance of L_seq, a key of `distances.DISTANCES`. CAV does not train with it.
      normalize: "z_score" of the distance matrix along rows and columns; "deviation": D by the
        deviation that it had in the first batches, a scale without a z-score (ours); "none": an
        ablation of Table IV.
      temperature: lambda at the start (paper: 1).
      aggregation_temperature: tau at the start (paper: 0.07).
    """

    name: str = "sequence"
    normalize: str = "z_score"
    temperature: float = 1.0
    aggregation_temperature: float = 0.07

    def __post_init__(self):
        super().__post_init__()
        check_one_of("objective.name", self.name, TITLES)
        check_one_of("objective.normalize", self.normalize, scale.WORDS)
        for name in ("temperature", "aggregation_temperature"):
            check_range(f"objective.{name}", getattr(self, name), TEMPERATURES)

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that are summed: "sequence", "aggregation" or both."""
        return tuple(self.name.split("+"))

    @property
    def methods(self) -> tuple[str, ...]:
        """The way of retrieval that it trains for, then the other one."""
        first = self.losses[0]
        return first, "aggregation" if first == "sequence" else "sequence"

    def temperatures(self) -> dict[str, float]:
        every = {"sequence": self.temperature, "aggregation": self.aggregation_temperature}
        return {name: every[name] for name in self.losses}

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        """The latents of both streams."""
        streams = latents["clip"]
        return Outputs(
            [stream.values for stream in streams],
            [(stream.lengths, stream.windows) for stream in streams],
        )

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The sum of its losses.

        Returns:
          The loss, and aux: `latents`, `embeddings` (visual, audio), the aux of each loss under its
          name ("sequence", "aggregation"), and that of the distance ("distance").
        """
        latents = latents_of(outputs)
        embeddings = [masked_mean(stream.values, stream.lengths) for stream in latents]
        aux = {"latents": latents, "embeddings": embeddings}
        loss = jnp.zeros((), jnp.float32)
        if "sequence" in self.losses:
            distances, aux["distance"] = all_distances(self, latents, place)
            part, aux["sequence"] = sequence_loss(
                scale.scaled(distances, memory),
                log_temperature["sequence"],
                normalize=self.normalize == "z_score",
            )
            loss = loss + part
        if "aggregation" in self.losses:
            part, aux["aggregation"] = aggregation_loss(*embeddings, log_temperature["aggregation"])
            loss = loss + part
        return loss, aux

    def memory(self) -> PyTree:
        return scale.memory(self.normalize) if "sequence" in self.losses else {}

    def remember(self, memory: PyTree, outputs: Outputs) -> PyTree:
        return scale.after(memory, partial(distances_of, self, latents_of(outputs)))

    def health(self, aux: dict) -> Metrics:
        metrics = {}
        for name in self.losses:
            prefix = "" if name == self.losses[0] else f"{name}_"
            part = aux[name]
            metrics[f"{prefix}temperature"] = part["temperature"]
            # As the logits rank, which fall with D along each row and column.
            distances = part["distances"] if name == "sequence" else -part["similarities"]
            metrics |= recalls(distances, prefix)
        if "sequence" in aux:
            distances = aux["sequence"]["distances"]
            metrics["distance_mean"] = jnp.mean(distances)
            metrics["distance_spread"] = jnp.std(distances)
        metrics["embedding_spread"] = jnp.minimum(*(spread(e) for e in aux["embeddings"]))
        return metrics

    def ranks_by(self) -> tuple[str, dict]:
        """CAV trains with no distance: the interpolated Euclidean, as in the paper's Table I."""
        if "sequence" not in self.losses and self.distance != "euclidean":
            return "euclidean", {}
        return super().ranks_by()

    def cost(self, work: Work) -> Cost:
        """Forward and backward of all pairs, as the distance says."""
        pairs, count = float(work.clips) ** 2, len(self.losses)
        distance = 6.0 * pairs * work.width if "aggregation" in self.losses else 0.0
        memory = memory_of_losses(work.clips, work.rows, *(KEPT[name] for name in self.losses))
        backward = 0.0
        if "sequence" in self.losses:
            options = self.distance_options
            of_pair = find(self.distance, options).cost(work.steps, work.width, **options)
            distance += pairs * of_pair.operations
            of_pairs = min(work.memory_bytes, work.rows * work.clips * of_pair.memory)
            memory += of_pairs
            backward = _backward_bytes(work, of_pair, of_pairs)
        elif work.on_cpu:  # the gradient of one stream's latents is made beside both
            one_stream = work.steps[0] * work.width
            memory = max(memory, FLOAT * work.rows * (work.clips + one_stream))
        return Cost(distance, LOSS_OPERATIONS * count * pairs, memory, backward)

    @property
    def title(self) -> str:
        """CAV, SCAV or both, with the ablation if it is one."""
        name = TITLES[self.name]
        without = {"none": " without z-score", "deviation": " by one deviation"}
        return name + (without.get(self.normalize, "") if name != "CAV" else "")

    def in_words(self, distance: str) -> list[str]:
        if "sequence" not in self.losses:
            return []
        return [distance, scale.WORDS[self.normalize], f"temperature from {self.temperature:g}"]


def _backward_bytes(work: Work, of_pair: PairCost, of_pairs: float) -> float:
    """While the gradient of latents is made of D's; `of_pairs` is what all pairs work with."""
    if of_pair.of_clips:
        return of_pair.of_clips(round(work.rows), work.clips, work.memory_bytes, work.on_cpu)
    # D and its gradient; and the visual gradient, which comes in blocks of clips, is put into order
    # beside itself.
    matrices = 2.0 * FLOAT * work.rows * work.clips
    in_order = FLOAT * work.rows * work.steps[0] * work.width if work.on_cpu else 0.0
    return matrices + in_order + of_pairs


def latents_of(outputs: Outputs) -> AudioVisual:
    """The latents of both streams, that `Sequential.of_clips` put into its outputs."""
    pairs = zip(outputs.values, outputs.about, strict=True)
    return AudioVisual(*(Sequences(values, *rest) for values, rest in pairs))


def distances_of(objective: Objective, latents: AudioVisual) -> Float[Array, "B B"]:
    """D of a batch by the objective's distance."""
    return pairwise(objective.distance, *latents, **objective.distance_options)


def all_distances(
    objective: Objective, latents: AudioVisual, place: Place
) -> tuple[Float[Array, "B B"], dict]:
    """The same, each device its visual rows, and what is known of it."""

    def compare(visual: Sequences, audio: Sequences):
        """-> (D of these visual clips, what is known of it), what follows from the audio alone."""
        distances, aux = pairwise_with_aux(
            objective.distance,
            visual,
            audio,
            memory_bytes=place.memory_bytes,
            **objective.distance_options,
        )
        of_audio = {"usable_audio": aux.pop("usable_audio")}
        return (distances, aux), of_audio

    (distances, of_rows), of_audio = sharding.against_all(compare, place.mesh)(*latents)
    return distances, of_rows | of_audio


def recalls(distances: Float[Array, "B B"], prefix: str = "") -> Metrics:
    """R@1 of both directions, as logs have it."""
    return {
        f"{prefix}recall_v2a": recall_at_1(distances, axis=1),
        f"{prefix}recall_a2v": recall_at_1(distances, axis=0),
    }


def recall_at_1(distances: Float[Array, "B B"], axis: int) -> Float[Array, ""]:
    """The share of queries whose own pair beats every other; a tie counts against the query."""

    def add(number: Int[Array, ""], found: Int[Array, ""]) -> Int[Array, ""]:
        some, is_own = block_of(distances, axis, number)
        own = jnp.min(jnp.where(is_own, some, jnp.inf), axis=axis, keepdims=True)
        return found + jnp.sum(jnp.sum(some <= own, axis=axis) == 1)

    found = over_blocks(distances, add, jnp.zeros((), jnp.int32))
    return found.astype(jnp.float32) / len(distances)
