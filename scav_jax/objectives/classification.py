"""Labels: a linear layer behind the towers' means, trained alone or with the towers.

With `train.init_from=RUN` it asks what another objective has learned: by a linear probe
(`towers="frozen"`), or by fine-tuning everything. One label a clip is learned by the softmax's
cross-entropy, several by the binary one of each class, and mixup trains on pairs of clips:

    x = l x_i + (1 - l) x_j,  t = l t_i + (1 - l) t_j,  l ~ Beta(alpha, alpha)

of what is stored, so of features, pixels and log-mels (Zhang et al. 2018; the public code of EquiAV
and CAV-MAE mixes half of the clips with alpha = 10, sounds before their log-mel is taken). Which
clips are mixed follows from their numbers and the batch's, not from where they lie in it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from scav_jax import sharding
from scav_jax.base.errors import InputError, check_one_of, listed
from scav_jax.base.ranges import ABOVE_0, SHARE, check_ranges
from scav_jax.encoders.products import LAYER_NORM_EPSILON
from scav_jax.objectives.objective import (
    LOSS_OPERATIONS,
    Cost,
    Material,
    Metrics,
    Outputs,
    Place,
    Views,
    Work,
    clip_keys,
)
from scav_jax.objectives.pixels import OfPixels
from scav_jax.sequences import (
    STREAMS,
    AudioVisual,
    Batch,
    Sequences,
    masked_mean,
    step_mask,
    zero_padding,
)

HIGHEST = jax.lax.Precision.HIGHEST
TOWERS = ("trained", "frozen")
SEEN = ("both", *STREAMS)
NAMED = 3  # labels or clips in a message


@dataclass(frozen=True)
class Classification(OfPixels):
    """Classes of clips, from the mean over time of one stream's latents, or of both side by side.

    Attributes:
      classes: the names; () takes those of the training split, sorted.
      multi_label: a clip may have several.
      separator: between them in the data set's labels.
      streams: "visual", "audio" or "both": what is classified by.
      towers: "trained", or "frozen": a linear probe.
      mixup: the share of clips that are mixed with another one of the batch.
      mixup_alpha: of the Beta distribution that says how much.
      pixels: features are those of `extract --backbone pixels`, shown as EquiAV shows them: a drawn
        frame in training and the middle one afterwards, behind its last norms. The further options
        are theirs.
    """

    name: str = "classification"
    classes: tuple[str, ...] = ()
    multi_label: bool = False
    separator: str = ";"
    streams: str = "both"
    towers: str = "trained"
    mixup: float = 0.0
    mixup_alpha: float = 10.0
    pixels: bool = False

    methods: ClassVar[tuple[str, ...]] = ("aggregation",)

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("streams", SEEN), ("towers", TOWERS)):
            check_one_of(f"objective.{name}", getattr(self, name), known)
        if len(set(self.classes)) < len(self.classes):
            raise InputError(f"objective.classes: expected each once, got {self.classes}")
        check_ranges("objective", self, {"mixup": SHARE, "mixup_alpha": ABOVE_0})
        if self.multi_label and not self.separator:
            raise InputError("objective.separator: expected what lies between labels, got nothing")

    @property
    def title(self) -> str:
        return "Classification" if self.towers == "trained" else "Linear probe"

    def in_words(self, distance: str) -> list[str]:
        words = [f"{len(self.classes)} classes", f"towers {self.towers}"]
        words += ["picture and sound"] if self.streams == "both" else [f"{self.streams} alone"]
        return words + ([f"mixup {self.mixup:g}"] if self.mixup else [])

    @property
    def seen(self) -> tuple[str, ...]:
        """The streams that it classifies by."""
        return STREAMS if self.streams == "both" else (self.streams,)

    @property
    def frozen(self) -> tuple[str, ...]:
        if self.towers == "frozen":
            return ("encoders/",)
        return tuple(f"encoders/{stream}/" for stream in STREAMS if stream not in self.seen)

    def heads(self, width: int) -> nn.Module:
        return Head(self.seen, len(self.classes), self.pixels, self.towers == "frozen")

    # ---- labels ----------------------------------------------------------------------------------

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def labels_of(self, label: str) -> list[str]:
        """What a data set's label says: one class, or several."""
        parts = label.split(self.separator) if self.multi_label else [label]
        return [part.strip() for part in parts if part.strip()]

    def from_data(self, material: Material) -> dict[str, Any]:
        if self.classes:
            return {}
        there = {name for label in material.labels for name in self.labels_of(label)}
        return {"classes": tuple(sorted(there))}

    def targets(self, labels: Sequence[str]) -> Float[np.ndarray, "B C"]:
        """1 for each class that a label names, else 0."""
        found = np.zeros((len(labels), len(self.classes)), np.float32)
        for row, label in enumerate(labels):
            found[row, [self._numbers[name] for name in self.labels_of(label)]] = 1.0
        return found

    def check(self, material: Material) -> None:
        _check_features(self, material)
        _check_labels(self, material)

    # ---- of a batch, then of each clip -----------------------------------------------------------

    def mixed(self, batch: Batch, key: Array, place: Place) -> Batch:
        """The batch with some of its clips mixed with another one each, and their targets too."""
        if not self.mixup or len(batch.numbers) < 2:
            return batch

        def of_rows(rows: Batch, others: Batch) -> tuple[Batch, tuple]:
            return _mixed(self, key, rows, others), ()

        return sharding.against_all(of_rows, place.mesh)(batch, batch)[0]

    def views(self, batch: Batch, key: Array) -> Views:
        """Features as they are; of pixels, a drawn frame and the log-mel rolled."""
        features = super().views(batch, key).features if self.pixels else {"clip": batch.features}
        return Views(features, batch.targets)

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        """`logits` `[B, C]`, and the targets."""
        return Outputs({"logits": self.classify(heads, latents["clip"])}, {"targets": about})

    def classify(self, heads: nn.Module | None, latents: AudioVisual) -> Float[Array, "B C"]:
        return heads(latents)

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The mean over clips, and over classes where a clip may have several."""
        logits, targets = outputs.values["logits"], outputs.about["targets"]
        if self.multi_label:
            yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
            loss = -jnp.mean(targets * yes + (1.0 - targets) * no)
        else:
            loss = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))
        return loss, {"logits": logits, "targets": targets}

    def health(self, aux: dict) -> Metrics:
        """The share of clips whose likeliest class is (one of) theirs, of the most where mixed."""
        said = jnp.argmax(aux["logits"], axis=-1, keepdims=True)
        share = jnp.take_along_axis(aux["targets"], said, axis=-1)[:, 0]
        right = share >= jnp.max(aux["targets"], axis=-1)
        return {"accuracy": jnp.mean(right.astype(jnp.float32))}

    def score(self, found: Mapping[str, float]) -> float:
        return found["mAP" if self.multi_label else "accuracy"]

    def cost(self, work: Work) -> Cost:
        entries = float(work.clips) * max(len(self.classes), 1)
        products = 6.0 * entries * work.width * len(self.seen)
        return Cost(distance=0.0, loss=products + LOSS_OPERATIONS * entries, memory=0.0)

    # ---- when it is used -------------------------------------------------------------------------

    def shown(self, batch: Batch) -> AudioVisual:
        return super().shown(batch) if self.pixels else batch.features

    def embed(
        self, heads: nn.Module | None, stream: str, latents: Sequences
    ) -> Float[Array, "B E"]:
        """What the classifier is told of a stream; the mean of its latents, where it is told none.

        Picture and sound are not made to lie near each other.
        """
        return heads.mean(stream, latents)


class Head(nn.Module):
    """The streams' means side by side, and one linear layer.

    Attributes:
      streams: which.
      classes: how many.
      norms: a LayerNorm for each stream's tokens before their mean, named as EquiAV's are.
      frozen: nothing before the linear layer learns.
    """

    streams: tuple[str, ...]
    classes: int
    norms: bool = False
    frozen: bool = False

    def setup(self):
        if self.norms:
            for stream in self.streams:
                setattr(self, f"norm_{stream}", nn.LayerNorm(LAYER_NORM_EPSILON))
        start = nn.initializers.normal(0.01)
        self.linear = nn.Dense(self.classes, kernel_init=start, precision=HIGHEST)

    def __call__(self, latents: AudioVisual) -> Float[Array, "B C"]:
        means = [self.mean(stream, getattr(latents, stream)) for stream in self.streams]
        told = jnp.concatenate(means, axis=-1)
        return self.linear(jax.lax.stop_gradient(told) if self.frozen else told)

    def mean(self, stream: str, latents: Sequences) -> Float[Array, "B C"]:
        """Of the real steps."""
        values = latents.values
        if self.norms and stream in self.streams:  # a norm of NaN would have a gradient of NaN
            values = getattr(self, f"norm_{stream}")(zero_padding(values, latents.lengths))
        return masked_mean(values, latents.lengths)


# ---- mixup ---------------------------------------------------------------------------------------


def _mixed(o: Classification, key: Array, rows: Batch, others: Batch) -> Batch:
    """Some clips, each with another one of all clips; all are sorted by number to choose it."""
    rows, others = jax.tree.map(jnp.asarray, (rows, others))
    count = len(others.numbers)
    in_order = jnp.argsort(others.numbers)
    places = jnp.searchsorted(others.numbers[in_order], rows.numbers).astype(jnp.int32)

    def draw(key: Array, place: Array) -> tuple[Array, Array]:
        whether, which, how_much = jax.random.split(key, 3)
        step = jax.random.randint(which, (), 1, count)
        share = jax.random.beta(how_much, o.mixup_alpha, o.mixup_alpha)
        share = jnp.where(jax.random.bernoulli(whether, o.mixup), share, 1.0)
        return in_order[(place + step) % count], share

    partner, share = jax.vmap(draw)(clip_keys(key, rows.numbers), places)
    partners = jax.tree.map(lambda leaf: leaf[partner], others)
    streams = map(partial(jax.vmap(_blend), share), rows.features, partners.features)
    own = share[:, None]
    targets = own * rows.targets + (1.0 - own) * partners.targets
    return rows._replace(features=AudioVisual(*streams), targets=targets)


def _blend(share: Float[Array, ""], own: Sequences, other: Sequences) -> Sequences:
    """One clip's stream with another's over it: as long as its own, zeros where the other ends."""
    steps, dtype = own.values.shape[0], own.values.dtype
    real = step_mask(other.lengths, steps)[:, None]
    mine = own.values.astype(jnp.float32)
    theirs = jnp.where(real, other.values.astype(jnp.float32), 0.0)
    values = share * mine + (1.0 - share) * theirs
    values = jnp.round(values) if jnp.issubdtype(dtype, jnp.integer) else values
    return own.replace(values=jnp.where(share < 1.0, values, mine).astype(dtype))


# ---- what cannot be ------------------------------------------------------------------------------


def _check_features(o: Classification, material: Material) -> None:
    """Raises `InputError` where pixels are not said to be pixels, or the other way round."""
    if o.pixels:
        OfPixels.check(o, material)
        return
    if any(material.pixels.values()):
        raise InputError(
            f"objective.pixels: {material.where} has features of the backbone 'pixels', which the "
            "towers do not take as they are; set objective.pixels=true"
        )


def _check_labels(o: Classification, material: Material) -> None:
    """Raises `InputError` where a clip has no label, or one that is no class; or there is one."""
    where = material.where
    without = [number for number, label in enumerate(material.labels) if not o.labels_of(label)]
    if without:
        raise InputError(
            f"{where}: expected a label for every clip, {len(without):,} of "
            f"{len(material.ids):,} have none "
            f"({_some([material.ids[number] for number in without])}); extract with --clips, a CSV "
            "with a column 'label'"
        )
    if len(o.classes) < 2:
        raise InputError(
            f"{where}: expected two classes or more to tell apart, got {len(o.classes)}"
            + (f" ({o.classes[0]!r})" if o.classes else "")
        )
    known = set(o.classes)
    used = [name for label in material.labels for name in o.labels_of(label)]
    strange = sorted(set(used) - known)
    if strange:
        count = sum(name not in known for name in used)
        hint = (
            "; objective.multi_label=true reads several in one label"
            if not o.multi_label and any(o.separator in name for name in strange)
            else ""
        )
        raise InputError(
            f"{where}: expected labels of the {len(known):,} classes that are trained on, "
            f"{count:,} are none of them ({_some(strange)}); leave those clips out, or train on "
            f"clips of these classes too{hint}"
        )


def _some(names: Sequence[str]) -> str:
    return listed(map(repr, names), NAMED)
