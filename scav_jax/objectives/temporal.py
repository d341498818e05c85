"""Temporal self-supervision beside contrast (Jenni, Black, Collomosse, AAAI 2023).

Of each clip two excerpts are played, each seen and heard. Classifiers tell speed and direction of
every view and, of two views, the order in time, within and across modalities; views of one clip are
contrasted with those of others, of the batch and of a queue of past ones. These tasks are the
paper's. What no source confirms is ours: every constant, the forms of heads and losses, and that
pictures are features of frames that a Transformer is trained on (as Dave, Jenni and Shah,
arXiv:2312.13008, argue for), not pixels.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from scav_jax import views
from scav_jax.base.errors import InputError, check_one_of
from scav_jax.base.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, check_ranges
from scav_jax.objectives.contrastive import unit_smoothed
from scav_jax.objectives.objective import (
    FLOAT,
    LOSS_MATRICES,
    LOSS_OPERATIONS,
    Batch,
    Cost,
    Metrics,
    Outputs,
    Place,
    Task,
    Views,
    Work,
    clip_keys,
    spread,
)
from scav_jax.objectives.played import OfPlayed, check_width
from scav_jax.objectives.selection import HIGHEST, Chosen, drawn, info_nce, nearest, without
from scav_jax.objectives.sequential import recalls
from scav_jax.sequences import STREAMS, AudioVisual, Sequences, masked_mean

EXCERPTS = ("first", "second")
ORDERED = {  # task -> the stream of the first excerpt, of the second
    "order_vv": ("visual", "visual"),
    "order_aa": ("audio", "audio"),
    "order_va": ("visual", "audio"),
    "order_av": ("audio", "visual"),
}
TOLD_OF_A_VIEW = tuple(f"{task}_{stream}" for task in ("speed", "direction") for stream in STREAMS)
SPACES = ("same_modality", "cross_modal")
CONTROLS = ("none", "static", "shuffled")
ALLOWED = {
    **dict.fromkeys(("hidden", "width"), AT_LEAST_1),
    **dict.fromkeys(("queue", "positives", "negatives"), AT_LEAST_0),
    **dict.fromkeys(("temperature", "selection_temperature"), ABOVE_0),
}
QUEUE_MATRICES = 8  # [clips, queue], as XLA has them


@dataclass(frozen=True)
class Temporal(OfPlayed):
    """weight_vv L(v, v') + weight_va L(v, a) + the tasks' cross-entropies, each with its weight.

    L(v, v') contrasts both excerpts seen, L(v, a) the first one seen and heard, each both ways.
    All defaults are ours.

    Attributes:
      hidden: of every head.
      width: of what is contrasted.
      temperature: of the contrast, fixed.
      queue: how many past clips are kept; 0 contrasts the batch alone.
      positives, negatives: how many each clip takes from the queue.
      selection_temperature: of the draw of negatives; small takes the hardest.
      nn_space: neighbours are sought among the queue's keys of the anchor's own modality
        ("same_modality"), or of the one it is contrasted with ("cross_modal").
      weight_vv, weight_va, weight_speed, weight_direction, weight_order: of the sum; a task's
        weight is that of each of its classifiers (2, 2 and 4).
      control: "static" shows a still in place of each clip, "shuffled" the steps of each view in an
        order of chance: what tasks rest on. "none" trains.
    """

    hidden: int = 512
    width: int = 128
    temperature: float = 0.1
    queue: int = 4096
    positives: int = 4
    negatives: int = 512
    selection_temperature: float = 0.1
    nn_space: str = "same_modality"
    weight_vv: float = 1.0
    weight_va: float = 1.0
    weight_speed: float = 1.0
    weight_direction: float = 1.0
    weight_order: float = 1.0
    control: str = "none"

    methods = ("aggregation", "sequence")
    title: ClassVar[str] = "Temporal"
    together: ClassVar[int] = 2
    controls: ClassVar[tuple[str, ...]] = CONTROLS[1:]

    def __post_init__(self):
        super().__post_init__()
        _check_options(self)

    def heads(self, width: int) -> nn.Module:
        return Heads(self.speeds, self.hidden, self.width)

    # ---- of each clip alone ----------------------------------------------------------------------

    def views(self, batch: Batch, key: Array) -> Views:
        """Both excerpts; `about` has labels, what is true of speeds at large, number and key."""
        keys = clip_keys(key, batch.numbers)
        features, about = jax.vmap(partial(_played, self))(
            keys, batch.features, jnp.asarray(batch.seconds)
        )
        about |= {"number": jnp.asarray(batch.numbers), "key": jax.vmap(jax.random.key_data)(keys)}
        return Views(features, about)

    def of_clips(self, heads: nn.Module, latents: dict[str, AudioVisual], about: PyTree) -> Outputs:
        """By task, logits; and by stream, `keys` `[B, 2, width]` of both excerpts."""
        pooled = {
            stream: jnp.stack(
                [_mean(getattr(latents[excerpt], stream)) for excerpt in EXCERPTS], axis=1
            )
            for stream in STREAMS
        }
        return Outputs(heads(pooled), about)

    # ---- across clips ----------------------------------------------------------------------------

    def tasks(self, outputs: Outputs) -> dict[str, Task]:
        values, about = outputs
        return {
            name: Task(values[name], label, about["usable"])
            for name, label in about["labels"].items()
        }

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The loss, and aux: `losses`, `accuracies` by task, `similarities`, `embeddings`."""
        keys, about = outputs.values["keys"], outputs.about
        aux: dict = {"losses": {}, "accuracies": {}}
        loss = jnp.zeros((), jnp.float32)
        for name, task in self.tasks(outputs).items():
            aux["losses"][name], aux["accuracies"][name] = cross_entropy(task)
            loss += getattr(self, f"weight_{name.split('_')[0]}") * aux["losses"][name]
        seen, heard = keys["visual"][:, 0], keys["audio"][:, 0]
        contrast = partial(self._contrast, about, memory)
        visual, audio = ("visual", seen), ("audio", heard)
        vv = contrast(0, visual, ("visual", keys["visual"][:, 1]))
        va = contrast(2, visual, audio)
        aux["losses"] |= {"vv": vv, "va": va}
        aux["similarities"] = jnp.matmul(seen, heard.T, precision=HIGHEST)
        aux["embeddings"] = [seen, heard]
        aux["speed_prior"] = jnp.max(jnp.mean(about["speed_prior"], axis=0))
        return loss + self.weight_vv * vv + self.weight_va * va, aux

    def _contrast(self, about: PyTree, memory: PyTree, number: int, one, other):
        """The mean of both ways; each side is (stream, keys), `number` counts the draws before."""
        both = []
        for draw, (anchor, key) in enumerate(((one, other), (other, one)), number):
            chosen = self._chosen(about, memory, draw, anchor, key[0])
            both.append(info_nce(anchor[1], key[1], self.temperature, *chosen))
        return 0.5 * (both[0] + both[1])

    def _chosen(
        self, about: PyTree, memory: PyTree, draw: int, anchor, stream: str
    ) -> tuple[Array | None, Chosen | None, Chosen | None]:
        """What anchors take from the queue: its keys of a stream, and which of them."""
        if not self.queue:
            return None, None, None
        own, keys = anchor
        space = memory[own if self.nn_space == "same_modality" else stream]
        similarities = jax.lax.stop_gradient(jnp.matmul(keys, space.T, precision=HIGHEST))
        number = about["number"][:, None]
        allowed = (memory["number"] >= 0)[None] & (memory["number"][None] != number)
        near = nearest(similarities, allowed, self.positives) if self.positives else None
        if not self.negatives:
            return memory[stream], near, None
        rest = allowed if near is None else without(allowed, near)
        own_keys = jax.vmap(lambda data: jax.random.fold_in(jax.random.wrap_key_data(data), draw))
        logits = similarities / self.selection_temperature
        far = drawn(own_keys(about["key"]), logits, rest, self.negatives)
        return memory[stream], near, far

    # ---- the queue -------------------------------------------------------------------------------

    def memory(self) -> PyTree:
        if not self.queue:
            return {}
        return {
            "visual": jnp.zeros((self.queue, self.width), jnp.float32),
            "audio": jnp.zeros((self.queue, self.width), jnp.float32),
            "number": jnp.full((self.queue,), -1, jnp.int32),  # of no clip: the place is empty
            "next": jnp.zeros((), jnp.int32),
        }

    def remember(self, memory: PyTree, outputs: Outputs) -> PyTree:
        """The first excerpt's keys take the oldest places, in the order of the batch."""
        if not self.queue:
            return memory
        keys = outputs.values["keys"]
        new = {"number": outputs.about["number"]} | {s: keys[s][:, 0] for s in STREAMS}
        new = {name: rows[-self.queue :] for name, rows in new.items()}
        count = len(new["number"])
        at = (memory["next"] + jnp.arange(count, dtype=jnp.int32)) % self.queue
        kept = {name: memory[name].at[at].set(rows) for name, rows in new.items()}
        return kept | {"next": (memory["next"] + count) % self.queue}

    # ---- what it says ----------------------------------------------------------------------------

    def health(self, aux: dict) -> Metrics:
        """Beside `accuracy_speed_*` stands `prior_speed`; direction's prior is 1/2, order's 1/3."""
        metrics = {f"loss_{name}": value for name, value in aux["losses"].items()}
        metrics |= {f"accuracy_{name}": value for name, value in aux["accuracies"].items()}
        metrics["prior_speed"] = aux["speed_prior"]
        metrics |= recalls(-aux["similarities"])
        metrics["embedding_spread"] = jnp.minimum(*(spread(e) for e in aux["embeddings"]))
        return metrics

    def under(self, control: str) -> "Temporal":
        return dataclasses.replace(self, control=control)

    def cost(self, work: Work) -> Cost:
        """Two matrices of the batch; four of the batch and the queue, and their choice."""
        pairs, past = float(work.clips) ** 2, 4.0 * work.clips * self.queue
        return Cost(
            distance=6.0 * (2 * pairs + past) * self.width,
            loss=LOSS_OPERATIONS * (2 * pairs + past),
            memory=FLOAT
            * work.rows
            * (2 * LOSS_MATRICES * work.clips + QUEUE_MATRICES * self.queue),
        )

    def in_words(self, distance: str) -> list[str]:
        words = [f"{self.speeds} speeds", f"queue {self.queue}"]
        return words + ([f"control {self.control}"] if self.control != "none" else [])

    # ---- when it is used -------------------------------------------------------------------------

    def embed(self, heads: nn.Module, stream: str, latents: Sequences) -> Float[Array, "B E"]:
        """What is contrasted: the mean over time behind the projection, of length 1."""
        return heads.projected(_mean(latents))


class Heads(nn.Module):
    """Classifiers of a view, of two views, and one projection of all that is contrasted.

    One for both streams, so that their latents can be compared step by step too.
    """

    speeds: int
    hidden: int
    width: int

    def setup(self):
        self.speed = {stream: Mlp(self.hidden, self.speeds) for stream in STREAMS}
        self.direction = {stream: Mlp(self.hidden, 2) for stream in STREAMS}
        self.order = {name: Mlp(self.hidden, views.ORDERS) for name in ORDERED}
        self.projection = Mlp(self.hidden, self.width)

    def __call__(self, pooled: dict[str, Float[Array, "B 2 C"]]) -> PyTree:
        found: dict = {}
        for stream in STREAMS:
            found[f"speed_{stream}"] = self.speed[stream](pooled[stream])
            found[f"direction_{stream}"] = self.direction[stream](pooled[stream])
        for name, (one, two) in ORDERED.items():
            both = jnp.concatenate([pooled[one][:, 0], pooled[two][:, 1]], axis=-1)
            found[name] = self.order[name](both)
        return found | {"keys": {stream: self.projected(pooled[stream]) for stream in STREAMS}}

    def projected(self, pooled: Float[Array, "*batch C"]) -> Float[Array, "*batch E"]:
        """Keys of length 1."""
        return unit_smoothed(self.projection(pooled))


class Mlp(nn.Module):
    """Two layers with GELU between."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch out"]:
        dense = partial(nn.Dense, precision=HIGHEST)
        return dense(self.out, name="out")(nn.gelu(dense(self.hidden, name="in")(x)))


def _mean(latents: Sequences) -> Float[Array, "B C"]:
    return masked_mean(latents.values, latents.lengths)


def cross_entropy(task: Task) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean cross-entropy over usable clips and their views, and the share that is right."""
    log_p = jax.nn.log_softmax(task.logits)
    wrong = -jnp.take_along_axis(log_p, task.labels[..., None], axis=-1)[..., 0]
    right = (jnp.argmax(task.logits, axis=-1) == task.labels).astype(wrong.dtype)
    rows = (len(task.labels), -1)
    each = jnp.stack([wrong.reshape(rows).mean(axis=1), right.reshape(rows).mean(axis=1)])
    each = jnp.where(task.usable[None], each, 0.0)
    count = jnp.maximum(jnp.sum(task.usable.astype(each.dtype)), 1.0)
    loss, accuracy = jnp.sum(each, axis=1) / count
    return loss, accuracy


# ---- views of one clip -----------------------------------------------------------------------


def _played(
    objective: Temporal, key: Array, clip: AudioVisual, seconds: Float[Array, "2"]
) -> tuple[dict[str, AudioVisual], dict]:
    """Two excerpts of a clip, each seen and heard, each view with a direction of its own."""
    o = objective
    check_width(clip.audio.values.shape[-1], o.audio_frames)
    pair_key, direction_key, control_key = jax.random.split(key, 3)
    there = views.covered(clip, seconds)
    *excerpts, usable = views.draw_pair(pair_key, there, o.window_s, o.speeds)
    directions = jax.random.randint(direction_key, (2, 2), 0, 2)
    features, labels = {}, {name: [] for name in TOLD_OF_A_VIEW}
    for number, (name, excerpt) in enumerate(zip(EXCERPTS, excerpts, strict=True)):
        streams = []
        for column, stream in enumerate(STREAMS):
            own = excerpt._replace(direction=directions[number, column])
            own_key = jax.random.fold_in(control_key, 2 * number + column)
            view = _view(o, stream, getattr(clip, stream), seconds, own, own_key)
            streams.append(view.sequence)
            labels[f"speed_{stream}"].append(own.speed)
            labels[f"direction_{stream}"].append(views.direction_of(view.times))
        features[name] = AudioVisual(*streams)
    true = {name: jnp.stack(of_views).astype(jnp.int32) for name, of_views in labels.items()}
    order = views.order_of(excerpts[0].span, excerpts[1].span).astype(jnp.int32)
    prior = views.speed_prior(there[1] - there[0], o.window_s, o.speeds)
    true |= dict.fromkeys(ORDERED, order)
    return features, {"labels": true, "usable": usable, "speed_prior": prior}


def _view(
    o: Temporal,
    stream: str,
    source: Sequences,
    seconds: Float[Array, "2"],
    excerpt: views.Excerpt,
    key: Array,
) -> views.View:
    """An excerpt of one stream, and what a control leaves of it."""
    tokens, frames = o.tokens_of(stream), o.frames_of(stream)
    source = views.still(source, frames) if o.control == "static" else source
    view = views.play(source, seconds, excerpt, tokens, frames)
    if o.control != "shuffled":
        return view
    return view._replace(sequence=views.shuffled(key, view.sequence, frames))


# ---- what cannot be ---------------------------------------------------------------------------


def _check_options(o: Temporal) -> None:
    """Raises `InputError` for options that make no sense, whatever the features are."""
    weights = (name for name in vars(o) if name.startswith("weight_"))
    check_ranges("objective", o, ALLOWED | dict.fromkeys(weights, AT_LEAST_0))
    for name, known in (("nn_space", SPACES), ("control", CONTROLS)):
        check_one_of(f"objective.{name}", getattr(o, name), known)
    if o.queue and o.positives + o.negatives > o.queue:
        raise InputError(
            f"objective.queue: expected at least positives + negatives = "
            f"{o.positives + o.negatives}, got {o.queue}; or 0, for none of them"
        )
