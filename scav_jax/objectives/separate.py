"""What does not change over a clip and what does, learned apart (ours).

On one grid the Euclidean distance of two sequences is a sum, D = D_static + D_dynamic, and the
larger part rules: SCAV and CAV look at which instrument it is and learn little of what is played.
Here each part has parameters, a temperature and a loss of its own, and they share nothing:

    r = cosine of both latent sequences, less their means over time, flattened on one grid;
        the towers see features less the clip's own mean over time
    s = cosine of vectors that a small MLP for each stream makes of those means
    L = CE(r / tau_dynamic) + CE(s / tau_static), each in both directions; no z-score

Clips are ranked by r + w s, with w of the validation split. As sequences of C + S channels whose
last S are constant over time, they are ranked by a distance: `2 (1 + w) - 2 (r + w s)`, see
`distances.static`, which is a product of matrices for the Euclidean one.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from scav_jax.base.errors import InputError, check_one_of
from scav_jax.base.ranges import AT_LEAST_0, AT_LEAST_1, check_ranges
from scav_jax.distances.static import SUFFIX
from scav_jax.encoders.sequential import Encoders, gelu, wide
from scav_jax.objectives import scale
from scav_jax.objectives.contrastive import (
    TEMPERATURES,
    aggregation_loss,
    sequence_loss,
    unit_smoothed,
)
from scav_jax.objectives.objective import (
    Cost,
    Material,
    Metrics,
    Objective,
    Outputs,
    Place,
    Views,
    Work,
    refuse_pixels,
    spread,
)
from scav_jax.objectives.sequential import Sequential, all_distances, distances_of, recalls
from scav_jax.sequences import (
    STREAMS,
    AudioVisual,
    Batch,
    Sequences,
    less,
    masked_mean,
    window_mean,
    zero_padding,
)

STATICS = ("separate", "remove", "keep")
DYNAMICS = ("cosine", "distance")
BRANCHES = ("mlp", "tower")
ALLOWED = {
    **dict.fromkeys(("temperature", "static_temperature"), TEMPERATURES),
    **dict.fromkeys(("dynamic_loss", "static_loss", "static_weight", "branch_blocks"), AT_LEAST_0),
    **dict.fromkeys(("branch_hidden", "branch_width", "branch_heads"), AT_LEAST_1),
}
START = {"cosine": 0.07, "distance": 1.0}
# Weights of the static part that validation tries, in deviations of the dynamic distance by those
# of the static one.
WEIGHTS = (0.0, *(2.0**power for power in range(-6, 5)))
STILL = 1e-6  # mean square of latents below which what varies is rounding
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Separate(Objective):
    """The static and the dynamic part of clips, each by its own loss.

    Attributes:
      name: "separate".
      distance: of `dynamic = "distance"`, a key of `distances.DISTANCES`; it ranks too. "cosine"
        takes the interpolated Euclidean distance, of which r is 1 - D / 2.
      statics: what becomes of the features' mean over the time that both streams cover. "separate":
        the towers do not see it, the static branch does; "remove": nobody sees it; "keep": the
        towers see it, and so does the branch.
      dynamic: the dynamic part compares latents less their means by their "cosine", or as they are
        by the "distance" of the config, as SCAV does.
      normalize: what becomes of D with `dynamic = "distance"`, see `Sequential`.
      temperature: of the dynamic part at the start; None is 0.07 for cosines and 1 for distances.
      static_temperature: of the static part at the start.
      dynamic_loss, static_loss: the weights of both. Without a static loss there is no branch.
      branch: of the static part: an "mlp" of the features' means, or a "tower", a Transformer of
        the features with their means whose latents are averaged, as CAV has it.
      branch_hidden, branch_width: of both forms.
      branch_blocks, branch_heads: of the tower.
      static_weight: w, at retrieval; None is what is best on validation.
    """

    name: str = "separate"
    statics: str = "separate"
    dynamic: str = "cosine"
    normalize: str = "z_score"
    temperature: float | None = None
    static_temperature: float = 0.07
    dynamic_loss: float = 1.0
    static_loss: float = 1.0
    branch: str = "mlp"
    branch_hidden: int = 256
    branch_width: int = 64
    branch_blocks: int = 2
    branch_heads: int = 4
    static_weight: float | None = None

    decided: ClassVar[tuple[str, ...]] = ("static_weight",)

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("statics", STATICS), ("dynamic", DYNAMICS), ("branch", BRANCHES)):
            check_one_of(f"objective.{name}", getattr(self, name), known)
        check_one_of("objective.normalize", self.normalize, scale.WORDS)
        check_ranges("objective", self, ALLOWED)
        if self.branch == "tower" and self.branch_width % self.branch_heads:
            raise InputError(
                f"objective.branch_width: expected a multiple of the {self.branch_heads} heads of "
                f"objective.branch_heads, got {self.branch_width}"
            )
        if not (self.dynamic_loss or self.has_static):
            raise InputError("objective.dynamic_loss: expected a loss above 0, got none")
        if self.dynamic == "cosine" and self.distance != "euclidean":
            raise InputError(
                "objective.dynamic: expected distance with distance.name="
                f"{self.distance}, cosine is of the Euclidean one"
            )
        if self.dynamic == "cosine" and self.normalize != "z_score":  # the default
            raise InputError(
                "objective.normalize: expected objective.dynamic=distance with "
                f"{self.normalize}, cosines are not normalised; leave it out"
            )
        if self.distance.endswith(SUFFIX):
            raise InputError(
                f"distance.name: expected the distance of the dynamic part alone, got "
                f"{self.distance!r}; leave out {SUFFIX}"
            )

    @property
    def has_static(self) -> bool:
        """Whether there is a branch for the static part."""
        return self.statics != "remove" and self.static_loss > 0

    @property
    def losses(self) -> dict[str, float]:
        """The losses that are summed, and their weights."""
        both = {"dynamic": self.dynamic_loss, "static": self.has_static and self.static_loss}
        return {name: float(weight) for name, weight in both.items() if weight}

    @property
    def methods(self) -> tuple[str, ...]:
        first = "sequence" if self.dynamic_loss else "aggregation"
        return first, "aggregation" if first == "sequence" else "sequence"

    def temperatures(self) -> dict[str, float]:
        start = START[self.dynamic] if self.temperature is None else self.temperature
        every = {"dynamic": start, "static": self.static_temperature}
        return {name: every[name] for name in self.losses}

    def heads(self, width: int) -> nn.Module | None:
        if not self.has_static:
            return None
        if self.branch == "mlp":
            return MeanBranches(self.branch_hidden, self.branch_width)
        return TowerBranches(
            self.branch_hidden, self.branch_width, self.branch_blocks, self.branch_heads
        )

    def check(self, material: Material) -> None:
        refuse_pixels(self, material)

    # ---- of each clip ----------------------------------------------------------------------------

    def shown(self, batch: Batch) -> AudioVisual:
        """Features less their mean over the time that both streams cover, or as they are."""
        if self.statics == "keep":
            return batch.features
        return AudioVisual(*(less(stream, window_mean(stream)) for stream in batch.features))

    def views(self, batch: Batch, key: Array) -> Views:
        return Views({"clip": self.shown(batch)}, batch.features if self.has_static else ())

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        """By stream: `dynamic`, the sequence that is compared, and `static`, a vector."""
        streams = {name: getattr(latents["clip"], name) for name in STREAMS}
        values = {name: {"dynamic": self._compared(one).values} for name, one in streams.items()}
        if self.has_static:
            for name in STREAMS:
                values[name]["static"] = heads(name, getattr(about, name))
        return Outputs(values, {name: (one.lengths, one.windows) for name, one in streams.items()})

    def _compared(self, latents: Sequences) -> Sequences:
        """Latents as the dynamic part compares them."""
        return _dynamics(latents) if self.dynamic == "cosine" else latents

    # ---- across clips ----------------------------------------------------------------------------

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The weighted sum of both losses.

        Returns:
          The loss, and aux: `dynamic` and `static`, the aux of each, `losses` by name, `distance`
          (what is known of D) and `parts`, a vector for each clip, stream and part.
        """
        latents, values = _latents_of(outputs), outputs.values
        aux: dict = {"losses": {}, "parts": jax.tree.map(lambda x: x.reshape(len(x), -1), values)}
        if "dynamic" in self.losses:
            distances, aux["distance"] = all_distances(self, latents, place)
            if self.dynamic == "cosine":  # r = 1 - D / 2
                distances, z_score = 0.5 * distances, False
            else:
                distances, z_score = scale.scaled(distances, memory), self.normalize == "z_score"
            aux["losses"]["dynamic"], aux["dynamic"] = sequence_loss(
                distances, log_temperature["dynamic"], normalize=z_score
            )
        if "static" in self.losses:
            aux["losses"]["static"], aux["static"] = aggregation_loss(
                *(values[name]["static"] for name in STREAMS), log_temperature["static"]
            )
        total = jnp.zeros((), jnp.float32)
        for name, weight in self.losses.items():
            total = total + weight * aux["losses"][name]
        return total, aux

    def memory(self) -> PyTree:
        by_distance = self.dynamic == "distance" and "dynamic" in self.losses
        return scale.memory(self.normalize) if by_distance else {}

    def remember(self, memory: PyTree, outputs: Outputs) -> PyTree:
        return scale.after(memory, lambda: distances_of(self, _latents_of(outputs)))

    def health(self, aux: dict) -> Metrics:
        metrics = {f"loss_{name}": value for name, value in aux["losses"].items()}
        for number, name in enumerate(self.losses):
            prefix, part = f"{name}_" if number else "", aux[name]
            distances = part["distances"] if name == "dynamic" else -part["similarities"]
            metrics[f"{prefix}temperature"] = part["temperature"]
            metrics |= recalls(distances, prefix)
        spreads = [spread(part) for part in jax.tree.leaves(aux["parts"])]
        metrics["embedding_spread"] = jnp.min(jnp.stack(spreads))
        return metrics

    def cost(self, work: Work) -> Cost:
        """Of SCAV and CAV; the branch is small beside the towers."""
        names = {"dynamic": "sequence", "static": "aggregation"}
        name = "+".join(names[loss] for loss in self.losses)
        return Sequential(name, self.distance, self.distance_options).cost(work)

    @property
    def title(self) -> str:
        if self.statics == "separate":
            return "static alone" if not self.dynamic_loss else "separate"
        kind = "centred" if self.statics == "remove" else "SCAV"
        return f"{kind} + static" if self.has_static else kind

    def in_words(self, distance: str) -> list[str]:
        words = [f"statics: {self.statics}"]
        if self.dynamic_loss:
            by_distance = [distance, scale.WORDS[self.normalize]]
            words += ["cosine"] if self.dynamic == "cosine" else by_distance
            words += [f"temperature from {self.temperatures()['dynamic']:g}"]
        if self.has_static:
            words += [f"static branch: {self.branch}"]
            words += [f"static weight {self.weight:g}"] if self.dynamic_loss else []
        return words

    # ---- when it is used -------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """w, 0 where validation has not decided yet."""
        return self.static_weight or 0.0

    def ranks_by(self) -> tuple[str, dict]:
        """The distance of the dynamic part, beside the static one where there is a branch."""
        name, options = super().ranks_by()
        if not self.has_static:
            return name, options
        more = {"static_width": self.branch_width, "static_weight": self.weight}
        return f"{name}{SUFFIX}", options | more

    def kept(
        self, heads: nn.Module | None, stream: str, latents: Sequences, features: Sequences
    ) -> tuple[Sequences, Float[Array, "B E"]]:
        """The dynamic sequence beside the static vector in every step; the static vector.

        The vector has length sqrt(C) beside C channels whose mean square is 1, so both parts count
        alike at w = 1. Without a branch: the dynamic sequence, and the mean of the latents.
        """
        sequence = self._compared(latents)
        if not self.has_static:
            return sequence, masked_mean(latents.values, latents.lengths)
        embedding = unit_smoothed(heads(stream, features))
        values = sequence.values
        beside = embedding[:, None] * jnp.sqrt(jnp.asarray(values.shape[-1], values.dtype))
        beside = jnp.broadcast_to(beside, (*values.shape[:-1], embedding.shape[-1]))
        values = jnp.concatenate([values, zero_padding(beside, latents.lengths)], axis=-1)
        return sequence.replace(values=values), embedding

    def decide(
        self, similarities: Float[np.ndarray, "V A"], distances: Float[np.ndarray, "V A"]
    ) -> dict[str, float]:
        """The weight with the best mean of both R@1; the smallest of several."""
        if not self.has_static or self.static_weight is not None:
            return {}
        return {"static_weight": best_weight(similarities, distances)}


def best_weight(similarities: Float[np.ndarray, "V A"], dynamic: Float[np.ndarray, "V A"]) -> float:
    """The weight w of `dynamic + w (2 - 2 similarities)` that finds most own pairs first.

    Args:
      similarities: s, `[visual, audio]`; own pairs on the diagonal.
      dynamic: D of the dynamic part.

    Returns:
      A multiple of the deviation of D by that of 2 - 2 s, see `WEIGHTS`, of two digits.
    """
    static = 2.0 - 2.0 * similarities
    ratio = float(np.std(dynamic)) / max(float(np.std(static)), 1e-9)
    best, most = 0.0, -1
    for weight in (float(f"{multiple * ratio:.2g}") for multiple in WEIGHTS):
        summed = dynamic + np.float32(weight) * static
        own = np.diagonal(summed)
        found = sum(int(np.sum(np.sum(m <= own[:, None], axis=1) == 1)) for m in (summed, summed.T))
        if found > most:
            best, most = weight, found
    return best


# ---- parts of a clip -----------------------------------------------------------------------------


def _dynamics(latents: Sequences) -> Sequences:
    """Latents less their mean over time, with a mean square of 1 over steps and channels.

    Zero for a clip of which nothing changes: r is 0 with every other.
    """
    mean = masked_mean(latents.values, latents.lengths)
    moved = less(latents, mean)
    entries = (latents.lengths * moved.values.shape[-1]).astype(moved.values.dtype)
    power = jnp.sum(moved.values**2, axis=(-2, -1)) / entries
    moves = power > STILL
    inverse = jnp.where(moves, jax.lax.rsqrt(jnp.where(moves, power, 1.0)), 0.0)
    return moved.replace(values=moved.values * inverse[:, None, None])


def _latents_of(outputs: Outputs) -> AudioVisual:
    return AudioVisual(
        *(Sequences(outputs.values[name]["dynamic"], *outputs.about[name]) for name in STREAMS)
    )


# ---- the static branch ---------------------------------------------------------------------------


class MeanBranches(nn.Module):
    """A small MLP for each stream, of the mean of its features over the time that both cover."""

    hidden: int = 256
    width: int = 64

    def setup(self):
        for stream in STREAMS:
            setattr(self, f"{stream}_in", nn.Dense(self.hidden, precision=HIGHEST))
            setattr(self, f"{stream}_out", nn.Dense(self.width, precision=HIGHEST))

    def __call__(self, stream: str, features: Sequences) -> Float[Array, "B E"]:
        x = gelu(getattr(self, f"{stream}_in")(window_mean(features)))
        return getattr(self, f"{stream}_out")(x)


class TowerBranches(nn.Module):
    """CAV's form: a tower for each stream, of the features with their mean, averaged over time."""

    hidden: int = 256
    width: int = 64
    blocks: int = 2
    heads: int = 4

    def setup(self):
        sizes = {"visual_blocks": self.blocks, "audio_blocks": self.blocks, "heads": self.heads}
        sizes |= {"visual_hidden": self.hidden, "audio_hidden": self.hidden}
        encoders = Encoders(self.width, feedforward=4 * self.width, dropout=0.0, **sizes)
        for stream in STREAMS:
            setattr(self, stream, encoders.tower(stream))

    def __call__(self, stream: str, features: Sequences) -> Float[Array, "B E"]:
        values = wide(jnp.asarray(features.values))
        latents = getattr(self, stream)(features.replace(values=values))
        return masked_mean(latents.values, latents.lengths)
