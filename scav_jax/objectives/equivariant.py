"""EquiAV: equivariance within a modality, centroids of predictions across (Kim et al., ICML 2024).

The towers see each clip as it is and augmented. A predictor that is told the augmentation's vector
turns the clip's tokens into what the augmented clip's embedding should be (NT-Xent within the
modality); its predictions for S other vectors, averaged, are what the modalities are compared by
(InfoNCE). With L2-normalised embeddings, temperature tau and cosines s:

    L = (L_inter + L_intra_visual + L_intra_audio) / 3
    L_intra = NT-Xent of predicted z_hat and augmented z', every other vector of either a negative
    L_inter = (CE over rows + CE over columns of s(visual centroid, audio centroid) / tau) / 2

The released code (JongSuk1/EquiAV, e6181c8) is the reference where the paper leaves something open.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from scav_jax.base.errors import InputError
from scav_jax.base.log_mel import MEL_BINS
from scav_jax.base.ranges import AT_LEAST_0, AT_LEAST_1, Range, check_ranges
from scav_jax.encoders.products import LAYER_NORM_EPSILON
from scav_jax.objectives import augment
from scav_jax.objectives.contrastive import TEMPERATURES, temperature
from scav_jax.objectives.objective import (
    FLOAT,
    LOSS_OPERATIONS,
    Cost,
    Metrics,
    Objective,
    Outputs,
    Place,
    Views,
    Work,
    clip_keys,
    spread,
)
from scav_jax.objectives.pixels import (
    OfPixels,
    heard_in_training,
    picture_of,
    picture_step,
    sound_steps,
)
from scav_jax.objectives.sequential import recalls
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
NORM_FLOOR = 1e-12  # torch's, of a vector's length
GLOROT = nn.initializers.xavier_uniform()


@dataclass(frozen=True)
class Equivariance(Objective):
    """Losses, heads and embedding, whatever a clip's augmentation is; a subclass says `views`.

    Its views are "clip", the clip as it is, and "augmented"; `about` has by stream `vector`
    `[B, P]`, which tells the augmentation, and `vectors` `[B, S, P]` of the centroid.

    Attributes:
      temperature: tau of all three losses (paper: 0.07).
      learn_temperature: one for within and one for across, from there on; the paper's are fixed.
      centroid: S, vectors whose predictions are averaged (paper: 16); 0 compares the means of the
        clips' tokens, the paper's ablation without a centroid.
      detach_inter_keys: no gradient through what is compared with, across modalities: what the
        released code has on several GPUs. The loss is the same, its gradient is not.
      hidden, intra_width, inter_width: of the heads (paper: 2048, 512, 512).
      code_width: of an augmentation's embedding (paper: 256).
    """

    temperature: float = 0.07
    learn_temperature: bool = False
    centroid: int = 16
    detach_inter_keys: bool = False
    hidden: int = 2048
    intra_width: int = 512
    inter_width: int = 512
    code_width: int = 256

    methods: ClassVar[tuple[str, ...]] = ("aggregation",)  # streams meet in their centroids only

    def __post_init__(self):
        super().__post_init__()
        widths = ("hidden", "intra_width", "inter_width", "code_width")
        allowed = dict.fromkeys(widths, AT_LEAST_1) | {"centroid": AT_LEAST_0}
        allowed |= {"temperature": TEMPERATURES if self.learn_temperature else Range(1e-6)}
        check_ranges("objective", self, allowed)

    def in_words(self, distance: str) -> list[str]:
        return [f"centroid of {self.centroid}"] if self.centroid else ["no centroid"]

    def temperatures(self) -> dict[str, float]:
        start = self.temperature
        return {"inter": start, "intra": start} if self.learn_temperature else {}

    def heads(self, width: int) -> nn.Module:
        return Heads(width, self.code_width, self.hidden, self.intra_width, self.inter_width)

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        """By stream: `predicted` z_hat, `augmented` z', `plain`, `centroid`, each `[B, E]`."""
        return Outputs(heads(latents, about))

    # ---- across clips ----------------------------------------------------------------------------

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        """The mean of the three losses.

        Returns:
          The loss, and aux: `losses` (inter, intra_visual, intra_audio), `gain` by stream,
          `similarities` and `embeddings` of the centroids, `temperatures`.
        """
        values = outputs.values
        tau = {
            name: temperature(log_temperature[name]) if self.learn_temperature else self.temperature
            for name in ("inter", "intra")
        }
        losses, gain = {}, {}
        for stream in STREAMS:
            predicted, augmented, plain = (
                values[stream][name] for name in ("predicted", "augmented", "plain")
            )
            losses[f"intra_{stream}"] = nt_xent(predicted, augmented, tau["intra"])
            gain[stream] = equivariance_gain(predicted, augmented, plain)
        embeddings = [values[stream]["centroid"] for stream in STREAMS]
        losses["inter"], similarities = info_nce(
            *embeddings, tau["inter"], detach_keys=self.detach_inter_keys
        )
        total = (losses["inter"] + losses["intra_visual"] + losses["intra_audio"]) / 3.0
        return total, {
            "losses": losses,
            "gain": gain,
            "similarities": similarities,
            "embeddings": embeddings,
            "temperatures": tau if self.learn_temperature else {},
        }

    def health(self, aux: dict) -> Metrics:
        gain = aux["gain"]
        metrics = {f"loss_{name}": value for name, value in aux["losses"].items()}
        metrics |= {f"temperature_{name}": value for name, value in aux["temperatures"].items()}
        metrics |= {f"equivariance_gain_{stream}": value for stream, value in gain.items()}
        metrics["equivariance_gain"] = 0.5 * (gain["visual"] + gain["audio"])
        metrics |= recalls(-aux["similarities"])
        metrics["embedding_spread"] = jnp.minimum(*(spread(e) for e in aux["embeddings"]))
        return metrics

    def cost(self, work: Work) -> Cost:
        """Products of all embeddings with each other: [2B, 2B] twice, [B, B] once."""
        pairs = 9.0 * float(work.clips) ** 2
        return Cost(
            distance=6.0 * pairs * max(self.intra_width, self.inter_width),
            loss=LOSS_OPERATIONS * pairs,
            memory=FLOAT * 3.0 * 9.0 * work.rows * work.clips,
        )

    # ---- when it is used -------------------------------------------------------------------------

    def codes(self, stream: str, latents: Sequences) -> Float[Array, "B S P"]:
        """The vectors that embeddings are made with, always the same of the same clip."""
        raise NotImplementedError(f"{type(self).__name__} should define codes")

    def embed(
        self, heads: nn.Module | None, stream: str, latents: Sequences
    ) -> Float[Array, "B E"]:
        """The centroid over fixed vectors: a number, where the paper's is a draw."""
        codes = self.codes(stream, latents) if self.centroid else None
        return heads.centroid(stream, latents, codes)


@dataclass(frozen=True)
class Equivariant(Equivariance, OfPixels):
    """EquiAV on the features of `extract --backbone pixels`, with the towers `patches`.

    Attributes:
      same_frame: augments the frame that is seen as it is; the released code draws another one.
      time_mask, frequency_mask: masks are narrower than this (paper: 192 frames, 48 bins).
      legacy: the released code's augmentations to the letter, see `augment`.
    """

    name: str = "equivariant"
    same_frame: bool = False
    time_mask: int = 192
    frequency_mask: int = 48
    legacy: bool = False

    title: ClassVar[str] = "EquiAV"

    def __post_init__(self):
        super().__post_init__()
        check_ranges("objective", self, dict.fromkeys(("time_mask", "frequency_mask"), AT_LEAST_0))
        if self.time_mask > self.audio_frames:
            raise InputError(
                f"objective.time_mask: expected at most the {self.audio_frames} frames of "
                f"objective.audio_frames, got {self.time_mask}"
            )

    def views(self, batch: Batch, key: Array) -> Views:
        """The clip as it is ("clip"), augmented ("augmented"), and the vectors that say how."""
        keys = clip_keys(key, jnp.asarray(batch.numbers))
        make = jax.vmap(lambda key, clip: _views_of(self, key, clip))
        clip, augmented, vectors = make(keys, jax.tree.map(jnp.asarray, batch.features))
        return Views({"clip": clip, "augmented": augmented}, vectors)

    def codes(self, stream: str, latents: Sequences) -> Float[Array, "B S P"]:
        vectors = bank(self, stream)
        return jnp.broadcast_to(vectors[None], (latents.lengths.shape[0], *vectors.shape))


# ---- views of a clip -----------------------------------------------------------------------------


def _views_of(objective: Equivariant, key: Array, clip: AudioVisual):
    """-> one clip as it is, augmented, and its vectors: `vector` `[P]`, `vectors` `[S, P]`."""
    visual_key, audio_key = jax.random.split(key)
    o, vectors = objective, {}
    # -- picture
    own, other, draw = jax.random.split(visual_key, 3)
    number = jax.random.randint(own, (), 0, clip.visual.lengths)
    seen = picture_of(clip.visual, number)
    another = jax.random.randint(other, (), 0, clip.visual.lengths)
    source = seen if o.same_frame else picture_of(clip.visual, another)
    vectors["visual"] = _drawn(o, "visual", draw, len(seen), 0)
    picture = augment.augment_picture(vectors["visual"]["vector"], source)
    # -- sound
    own, draw = jax.random.split(audio_key)
    heard = heard_in_training(o, own, clip.audio)
    vectors["audio"] = _drawn(o, "audio", draw, *heard.shape)
    sound = augment.augment_sound(vectors["audio"]["vector"], heard, legacy=o.legacy)
    plain = AudioVisual(picture_step(seen), sound_steps(heard))
    return plain, AudioVisual(picture_step(picture), sound_steps(sound)), vectors


def _drawn(o: Equivariant, stream: str, key: Array, rows: int, columns: int) -> dict:
    """The vector that is applied, and those of the centroid, which cost no pass of the towers."""
    keys = jax.random.split(key, 1 + o.centroid)
    vectors = jax.vmap(lambda key: _sample(o, stream, key, rows, columns))(keys)
    return {"vector": vectors[0]} | ({"vectors": vectors[1:]} if o.centroid else {})


def _sample(o: Equivariant, stream: str, key: Array, rows: int, columns: int) -> Array:
    if stream == "visual":
        return augment.sample_picture(key, rows)
    masks = {"time_mask": o.time_mask, "frequency_mask": o.frequency_mask}
    return augment.sample_sound(key, rows, columns, legacy=o.legacy, **masks)


def bank(objective: Equivariant, stream: str) -> Float[Array, "S P"]:
    """The vectors that embeddings are made with, always the same; in the paper's sizes."""
    keys = jax.random.split(jax.random.key(STREAMS.index(stream)), objective.centroid)
    size = {"visual": (224, 224), "audio": (objective.audio_frames, MEL_BINS)}[stream]
    return jax.vmap(lambda key: _sample(objective, stream, key, *size))(keys)


# ---- losses --------------------------------------------------------------------------------------


def unit_clamped(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Rows divided by their length, or by 1e-12 if that is more, as torch's `normalize` does."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squared > 0, squared, jnp.ones_like(squared)))
    return x / jnp.maximum(length, NORM_FLOOR)


def nt_xent(
    predicted: Float[Array, "B E"],
    augmented: Float[Array, "B E"],
    tau: float | Float[Array, ""],
) -> Float[Array, ""]:
    """NT-Xent (SimCLR): `-log e^{s(i, i')} / sum of e^s` over all others of both, the own included.

    Args:
      predicted, augmented: not normalised; row i of both is clip i.
      tau: the temperature.

    >>> import jax.numpy as jnp
    >>> round(float(nt_xent(jnp.eye(3), jnp.eye(3), 1.0)), 4)
    0.9048
    """
    a, b = unit_clamped(predicted), unit_clamped(augmented)
    both = jnp.concatenate([a, b])
    logits = jnp.matmul(both, both.T, precision=HIGHEST) / tau
    logits = jnp.where(jnp.eye(len(both), dtype=bool), -jnp.inf, logits)
    own = jnp.sum(a * b, axis=-1) / tau
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.concatenate([own, own]))


def info_nce(
    visual: Float[Array, "B E"],
    audio: Float[Array, "B E"],
    tau: float | Float[Array, ""],
    *,
    detach_keys: bool = False,
) -> tuple[Float[Array, ""], Float[Array, "B B"]]:
    """Both directions' cross-entropy of cosines, and the cosines `[visual, audio]`.

    Args:
      visual, audio: not normalised.
      tau: the temperature.
      detach_keys: no gradient through what a query is compared with, its own pair included.
    """
    v, a = unit_clamped(visual), unit_clamped(audio)
    keys = jax.lax.stop_gradient((v, a)) if detach_keys else (v, a)
    of_visual = jnp.matmul(v, keys[1].T, precision=HIGHEST)
    of_audio = jnp.matmul(a, keys[0].T, precision=HIGHEST)
    total = sum(
        jnp.mean(jax.nn.logsumexp(s / tau, axis=1) - jnp.diagonal(s) / tau)
        for s in (of_visual, of_audio)
    )
    return 0.5 * total, of_visual


def equivariance_gain(
    predicted: Float[Array, "B E"], augmented: Float[Array, "B E"], plain: Float[Array, "B E"]
) -> Float[Array, ""]:
    """`cos(predicted, augmented) - cos(plain, augmented)`: what knowing the vector is worth."""
    predicted, augmented, plain = (unit_clamped(x) for x in (predicted, augmented, plain))
    return jnp.mean(jnp.sum((predicted - plain) * augmented, axis=-1))


# ---- layers --------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Last norms, augmentation encoders, predictors and heads of both modalities.

    Attributes:
      width: of tokens.
      code_width, hidden, intra_width, inter_width: see `Equivariant`.
    """

    width: int
    code_width: int = 256
    hidden: int = 2048
    intra_width: int = 512
    inter_width: int = 512

    def setup(self):
        for stream in STREAMS:
            setattr(self, f"norm_{stream}", nn.LayerNorm(LAYER_NORM_EPSILON))
            setattr(self, f"norm_{stream}_augmented", nn.LayerNorm(LAYER_NORM_EPSILON))
            setattr(self, f"code_{stream}", CodeEncoder(self.code_width))
            setattr(self, f"predictor_{stream}", Predictor(self.width))
            setattr(self, f"intra_{stream}", Projector(self.hidden, self.intra_width))
            setattr(self, f"inter_{stream}", Projector(self.hidden, self.inter_width))

    def __call__(self, latents: dict[str, AudioVisual], vectors: PyTree) -> PyTree:
        """What the losses need of each clip, see `Equivariant.of_clips`."""
        return {stream: self._of_stream(stream, latents, vectors[stream]) for stream in STREAMS}

    def _of_stream(self, stream: str, latents: dict[str, AudioVisual], vectors: dict) -> dict:
        clip, augmented = (getattr(latents[name], stream) for name in ("clip", "augmented"))
        seen = self._tokens(f"{stream}_augmented", augmented)
        tokens, intra = self._tokens(stream, clip), getattr(self, f"intra_{stream}")
        plain = intra(masked_mean(tokens.values, tokens.lengths))
        return {
            "predicted": intra(self._predicted(stream, tokens, vectors["vector"][:, None])),
            "augmented": intra(masked_mean(seen.values, seen.lengths)),
            "plain": jax.lax.stop_gradient(plain),
            "centroid": self.centroid(stream, clip, vectors.get("vectors")),
        }

    def centroid(
        self, stream: str, latents: Sequences, codes: Float[Array, "B S P"] | None
    ) -> Float[Array, "B E"]:
        """Head of the mean prediction for S vectors; of the mean token where there are none."""
        tokens = self._tokens(stream, latents)
        if codes is None:
            found = masked_mean(tokens.values, tokens.lengths)
        else:
            found = self._predicted(stream, tokens, codes)
        return getattr(self, f"inter_{stream}")(found)

    def _tokens(self, name: str, latents: Sequences) -> Sequences:
        values = zero_padding(latents.values, latents.lengths)
        return latents.replace(values=getattr(self, f"norm_{name}")(values))

    def _predicted(self, stream: str, tokens: Sequences, codes: Float[Array, "B S P"]):
        return getattr(self, f"predictor_{stream}")(tokens, getattr(self, f"code_{stream}")(codes))


class CodeEncoder(nn.Module):
    """An augmentation's vector -> its embedding: three layers, QuickGELU behind two."""

    width: int

    @nn.compact
    def __call__(self, codes: Float[Array, "B S P"]) -> Float[Array, "B S E"]:
        x = codes
        for name in ("dense_1", "dense_2"):
            x = nn.Dense(self.width, kernel_init=GLOROT, precision=HIGHEST, name=name)(x)
            x = x * nn.sigmoid(1.702 * x)
        return nn.Dense(self.width, kernel_init=GLOROT, precision=HIGHEST, name="dense_3")(x)


class Predictor(nn.Module):
    """u(h, {t_s}): cross-attention from augmentations to tokens.

    `e_s = mean(h) + attention(LN(t_s), h, h)`, `e_s + MLP(LN(e_s))`, and the mean over s last.
    """

    width: int
    heads: int = 8
    head_width: int = 64

    @nn.compact
    def __call__(self, tokens: Sequences, codes: Float[Array, "B S E"]) -> Float[Array, "B C"]:
        like = {"kernel_init": GLOROT, "precision": HIGHEST}
        shape = (self.heads, self.head_width)
        asking = nn.LayerNorm(LAYER_NORM_EPSILON, name="norm_codes")(codes)
        query = nn.DenseGeneral(shape, name="query", **like)(asking)
        key, value = (
            nn.DenseGeneral(shape, name=name, **like)(tokens.values) for name in ("key", "value")
        )
        logits = jnp.einsum("bshd,bnhd->bhsn", query, key, precision=HIGHEST)
        mask = step_mask(tokens.lengths, key.shape[1])[:, None, None]
        logits = jnp.where(mask, logits * self.head_width**-0.5, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=-1)
        mixed = jnp.einsum("bhsn,bnhd->bshd", weights, value, precision=HIGHEST)
        out = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=False, name="out", **like)
        x = masked_mean(tokens.values, tokens.lengths)[:, None] + out(mixed)
        y = nn.LayerNorm(LAYER_NORM_EPSILON, name="norm")(x)
        y = nn.gelu(nn.Dense(4 * self.width, name="mlp_in", **like)(y), approximate=False)
        x = x + nn.Dense(self.width, name="mlp_out", **like)(y)
        return jnp.mean(x, axis=1)


class Projector(nn.Module):
    """Three layers with a norm behind each and ReLU behind the first two."""

    hidden: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B C"]) -> Float[Array, "B E"]:
        for number, width in ((1, self.hidden), (2, self.hidden), (3, self.width)):
            x = nn.Dense(width, kernel_init=GLOROT, precision=HIGHEST, name=f"dense_{number}")(x)
            x = nn.LayerNorm(LAYER_NORM_EPSILON, name=f"norm_{number}")(x)
            x = nn.relu(x) if number < 3 else x
        return x
