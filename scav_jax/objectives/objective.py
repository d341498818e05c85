"""What an objective is: views of each clip -> towers -> heads -> a loss across clips.

The first three are of each clip alone, the loss is across clips, and everything that a training
step must keep single hangs on that cut: gradient caching repeats the part of each clip, devices
share the loss only, and what is random follows from the clip's number. What mixes clips before
that, `mixed`, is done with the whole batch, before it is cut. An objective is one file
with a subclass of `Objective` and one line in `OBJECTIVES`, or a dotted path to a user's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from scav_jax.base.errors import InputError
from scav_jax.distances import find, retrieval_form
from scav_jax.objectives.contrastive import unit_smoothed
from scav_jax.objectives.free import NOTHING, Free
from scav_jax.sequences import AudioVisual, Batch, Sequences, masked_mean, sequences

Metrics = dict[str, Float[Array, ""]]
FLOAT = 4  # bytes
LOSS_MATRICES = 11  # that a contrast without blocks keeps, as XLA has it
LOSS_OPERATIONS = 100.0  # on an entry of D, about


class Views(NamedTuple):
    """What the towers see of each clip.

    Attributes:
      features: by name, one pass of the towers each; "clip" is the clip as it is.
      about: leaves `[B, ...]` that `of_clips` needs besides: parameters, times, labels.
    """

    features: dict[str, AudioVisual]
    about: PyTree = ()


class Outputs(NamedTuple):
    """What the loss sees of each clip; every leaf is `[B, ...]`.

    Attributes:
      values: floating point, differentiated.
      about: anything else: lengths, labels, numbers.
    """

    values: PyTree
    about: PyTree = ()


class Place(NamedTuple):
    """Where a loss is computed; it changes no number.

    Attributes:
      memory_bytes: working memory of distances.
      mesh: over which the batch is cut; each device compares its visual rows with all audio.
    """

    memory_bytes: int
    mesh: Mesh | None = None


class Material(NamedTuple):
    """The features that a run trains on.

    Attributes:
      fingerprint: of their extractor.
      align: how streams are laid onto each other, "time" or "index".
      where: the data set and its split, for messages.
      ids: of the clips.
      seconds: `[K, 2]`, begin and end of what both streams of each clip cover.
      rates: `[K, 2]`, visual and audio steps a second.
      playable: by stream, how many frames of it lie side by side in a step and can be played, or
        in words why they cannot (`features.sides`).
      labels: of the clips, "" where none is known.
      pixels: by stream, whether its features are pixels; nothing, or None, where their extractor
        does not say (`features.sides`).
    """

    fingerprint: Mapping[str, Any]
    align: str
    where: str
    ids: Sequence[str]
    seconds: Float[np.ndarray, "K 2"]
    rates: Float[np.ndarray, "K 2"]
    playable: Mapping[str, int | str]
    labels: Sequence[str] = ()
    pixels: Mapping[str, bool | None] = MappingProxyType({})


class Work(NamedTuple):
    """One step's loss, as far as its cost goes.

    Attributes:
      clips: in a global batch.
      rows: clips on a device.
      steps: of the visual and the audio latents.
      width: of latents.
      memory_bytes: at most this much working memory for distances.
      on_cpu: whether it is compiled for a CPU.
    """

    clips: int
    rows: float
    steps: tuple[int, int]
    width: int
    memory_bytes: int
    on_cpu: bool = False


class Task(NamedTuple):
    """What a classifier says of B clips, and what is true.

    Attributes:
      logits: `[B, ..., classes]`.
      labels: `[B, ...]`.
      usable: `[B]`, whether the clip has that label at all.
    """

    logits: Float[Array, "B *views classes"]
    labels: Int[Array, " B *views"]
    usable: Bool[Array, " B"]


class Cost(NamedTuple):
    """What a loss costs beside the towers.

    Attributes:
      distance, loss: operations of its distances, and of the rest.
      memory: bytes beside what it sees of the clips, at most.
      backward: bytes beside that and its gradient, while the latter is made; 0 where that takes the
        place of what the loss sees (of means over time).
    """

    distance: float
    loss: float
    memory: float
    backward: float = 0.0


@dataclass(frozen=True)
class Objective:
    """What is minimised; a subclass says of_clips and loss, and what else differs.

    Fields of a subclass are options of the config's section `objective`, with their defaults.

    Attributes:
      name: of the section: a key of `OBJECTIVES`, or a dotted path.
      distance: ranks sequences in logs and in retrieval, and trains where the objective uses it.
      distance_options: its options, for example `{"resample": "visual_to_audio"}`.
      free: which changes of features say nothing new, and are made in training; of `data.augment`.
    """

    name: str = ""
    distance: str = "euclidean"
    distance_options: dict = field(default_factory=dict, hash=False)
    free: Free = NOTHING

    def __post_init__(self):
        find(self.distance, self.distance_options)

    # Ways of retrieval that make sense; the first is what it trains for.
    methods: ClassVar[tuple[str, ...]] = ("aggregation", "sequence")
    # What it tells clips by; none where it does not classify.
    classes: ClassVar[tuple[str, ...]] = ()
    multi_label: ClassVar[bool] = False  # whether a clip may be of several

    @property
    def ranks_sequences(self) -> bool:
        """Whether its latents are steps in time; else a clip is one vector, its embedding."""
        return "sequence" in self.methods

    # ---- what it learns besides the towers -------------------------------------------------------

    def temperatures(self) -> dict[str, float]:
        """Learned temperatures at the start; their logarithms are `params["log_temperature"]`."""
        return {}

    def heads(self, width: int) -> nn.Module | None:
        """Learned layers behind the towers, of latents of this width: `params["heads"]`."""
        return None

    @property
    def frozen(self) -> tuple[str, ...]:
        """How names of parameters begin that are not trained, as "encoders/visual/"."""
        return ()

    # ---- what it is told of the clips besides their features -------------------------------------

    def from_data(self, material: "Material") -> dict[str, Any]:
        """Options that the training clips decide, by name; a run's config holds them."""
        return {}

    def targets(self, labels: Sequence[str]) -> Float[np.ndarray, "B C"] | tuple:
        """What labels say of the classes, for `Batch.targets`; () where it does not ask."""
        return ()

    # ---- of the whole batch, before it is cut ----------------------------------------------------

    def mixed(self, batch: Batch, key: Array, place: "Place") -> Batch:
        """A batch whose clips are made of several, in training; here as it is.

        Args:
          batch: the global one. What is drawn follows from its clips' numbers, not from their rows.
          key: the step's.
          place: where the batch lies.
        """
        return batch

    # ---- of each clip alone ----------------------------------------------------------------------

    def views(self, batch: Batch, key: Array) -> Views:
        """What the towers see; here the clip as it is.

        Args:
          batch: some clips.
          key: the step's. Random numbers come from `clip_keys(key, batch.numbers)`, never from a
            clip's row, which microbatches and devices change.
        """
        return Views({"clip": batch.features})

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        """What the loss needs of each clip; it may not mix clips.

        Args:
          heads: the module of `heads`, bound to its parameters, or None.
          latents: of each view.
          about: of the views.
        """
        raise NotImplementedError(f"{type(self).__name__} should define of_clips")

    # ---- across clips: the global batch under jit, so that devices change nothing ----------------

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The loss of a batch, and aux: whatever `health` needs."""
        raise NotImplementedError(f"{type(self).__name__} should define loss")

    # ---- without gradient: in the training state, checkpointed, left alone by a skipped step -----

    def memory(self) -> PyTree:
        """What is kept from step to step, at the start."""
        return {}

    def remember(self, memory: PyTree, outputs: Outputs) -> PyTree:
        """The memory after a step."""
        return memory

    # ---- what it says, and which checkpoint is better --------------------------------------------

    def health(self, aux: dict) -> Metrics:
        """Scalars for the log; one called "embedding_spread" is watched for a collapse."""
        return {}

    def score(self, found: Mapping[str, float]) -> float:
        """What ranks checkpoints: the mean of both R@1, by the way of retrieval it trains for.

        Args:
          found: R@1 on validation, as `"sequence_v2a"`.
        """
        method = self.methods[0]
        return 0.5 * (found[f"{method}_v2a"] + found[f"{method}_a2v"])

    # What `under` takes away from clips, to see what tasks rest on.
    controls: ClassVar[tuple[str, ...]] = ()

    def tasks(self, outputs: Outputs) -> dict[str, Task]:
        """What its classifiers say of some clips, by the task's name; none here."""
        return {}

    def under(self, control: str) -> "Objective":
        """The same objective with views that lack something, one of `controls`."""
        raise NotImplementedError(f"{type(self).__name__} has no controls")

    def check(self, material: Material) -> None:
        """Raises `InputError` where it cannot train on these features.

        Here, where the towers see them as they are, and they are pixels.
        """
        if type(self).views is Objective.views:
            refuse_pixels(self, material)

    def cost(self, work: Work) -> Cost:
        """What its loss costs; here a contrast of one vector for each clip and stream."""
        pairs = float(work.clips) ** 2
        return Cost(
            distance=6.0 * pairs * work.width,
            loss=LOSS_OPERATIONS * pairs,
            memory=FLOAT * LOSS_MATRICES * work.rows * work.clips,
        )

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.name

    def in_words(self, distance: str) -> list[str]:
        """What distinguishes it from others of its kind; `distance` is its distance in words."""
        return []

    # ---- when it is used: what the towers see, then one vector a clip, of one stream alone ------

    def ranks_by(self) -> tuple[str, dict]:
        """The distance that ranks sequences in validation and retrieval, and its options."""
        return retrieval_form(self.distance, self.distance_options)

    def shown(self, batch: Batch) -> AudioVisual:
        """What the towers see of a clip after training."""
        return batch.features

    def embed(
        self, heads: nn.Module | None, stream: str, latents: Sequences
    ) -> Float[Array, "B E"]:
        """The embedding of one stream; here the mean over time of its latents."""
        return masked_mean(latents.values, latents.lengths)

    def classify(self, heads: nn.Module | None, latents: AudioVisual) -> Float[Array, "B C"]:
        """The logits of its classes."""
        raise NotImplementedError(f"{type(self).__name__} has no classes")

    def kept(
        self, heads: nn.Module | None, stream: str, latents: Sequences, features: Sequences
    ) -> tuple[Sequences, Float[Array, "B E"]]:
        """What is kept of one stream: the sequence that is compared, and the embedding.

        Here the latents as they are, or where a clip is one vector, that as a sequence of one step.

        Args:
          heads: bound to their parameters, or None.
          stream: "visual" or "audio".
          latents: of the towers.
          features: of the same clips as they are stored, before `shown`.
        """
        embedding = self.embed(heads, stream, latents)
        if self.ranks_sequences:
            return latents, embedding
        return sequences(unit_smoothed(embedding)[:, None]), embedding

    # ---- what validation decides once the towers are trained ------------------------------------

    @property
    def decided(self) -> tuple[str, ...]:
        """Its fields that `decide` may set; they are no part of what a model is."""
        return ()

    def decide(
        self, similarities: Float[np.ndarray, "V A"], distances: Float[np.ndarray, "V A"]
    ) -> dict[str, float]:
        """Values of its `decided` fields, of the validation split; {} where nothing is open.

        Args:
          similarities: cosines of embeddings, `[visual, audio]`, own pairs on the diagonal.
          distances: by `ranks_by`.
        """
        return {}


# What every objective has; all other fields are options of the section `objective`.
OURS = tuple(one.name for one in fields(Objective))


def embeds_its_own_way(objective: Objective) -> bool:
    """Whether it keeps something else than the latents of a whole clip and their mean."""
    return any(
        getattr(type(objective), name) is not getattr(Objective, name)
        for name in ("embed", "shown", "kept")
    )


def refuse_pixels(objective: Objective, material: Material) -> None:
    """Raises `InputError` for pictures from 0 to 255, which nothing would normalise."""
    if any(material.pixels.values()):
        raise InputError(
            f"objective {objective.name}: {material.where} has features of the backbone 'pixels', "
            "which the towers do not take as they are; train with objective.name=pixels or "
            "equivariant and encoders.name=patches (configs/equiav), or extract with another "
            "backbone"
        )


def clip_keys(key: Array, numbers: Int[Array, " B"]) -> Array:
    """A random key for each clip, from the step's key and the clips' numbers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def spread(embeddings: Float[Array, "B C"]) -> Float[Array, ""]:
    """How far a batch's embeddings lie apart, relative to their length; 0 when all are equal."""
    deviation = jnp.sum(jnp.var(embeddings, axis=0))
    return jnp.sqrt(deviation / (jnp.mean(jnp.sum(embeddings**2, axis=-1)) + 1e-12))
