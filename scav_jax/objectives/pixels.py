"""Objectives of pixels: what towers of patches see of a clip, and the plain contrast on it.

`extract --backbone pixels` stores some frames, and the log-mel as it is. Towers see one frame at a
time, normalised by ImageNet's colours, and the log-mel cut or filled up to one length, normalised.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from scav_jax.base.errors import InputError
from scav_jax.base.log_mel import STACKED_FRAMES
from scav_jax.base.ranges import ABOVE_0, check_range
from scav_jax.encoders.products import LAYER_NORM_EPSILON
from scav_jax.objectives.contrastive import TEMPERATURES, aggregation_loss
from scav_jax.objectives.objective import (
    Material,
    Metrics,
    Objective,
    Outputs,
    Place,
    Views,
    clip_keys,
    spread,
)
from scav_jax.objectives.sequential import recalls
from scav_jax.sequences import (
    STREAMS,
    AudioVisual,
    Batch,
    Sequences,
    masked_mean,
    step_mask,
    whole_windows,
    zero_padding,
)

# ImageNet's mean and deviation of red, green and blue.
COLOUR_MEAN, COLOUR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class OfPixels(Objective):
    """What all objectives of pixels have: how a clip is shown to the towers.

    Attributes:
      roll: rolls the log-mel in time by a drawn number of frames in training.
      audio_frames: of 10 ms, to which a log-mel is cut or filled up with zeros (EquiAV: 1024).
      audio_mean, audio_std: what a log-mel is normalised by (EquiAV: AudioSet's; of VGGSound they
        are -4.956 and 4.486).
    """

    roll: bool = True
    audio_frames: int = 1024
    audio_mean: float = -4.346
    audio_std: float = 4.332

    methods: ClassVar[tuple[str, ...]] = ("aggregation",)  # tokens are places, not times

    def __post_init__(self):
        super().__post_init__()
        if self.audio_frames < 1 or self.audio_frames % STACKED_FRAMES:
            raise InputError(
                f"objective.audio_frames: expected a multiple of {STACKED_FRAMES}, got "
                f"{self.audio_frames}"
            )
        check_range("objective.audio_std", self.audio_std, ABOVE_0)

    def check(self, material: Material) -> None:
        about = material.fingerprint.get("backbone")
        for stream in STREAMS:
            if material.pixels.get(stream) is False:  # a side of one's own need not say
                side = about.get(stream, {}) if isinstance(about, dict) else {}
                raise InputError(
                    f"objective {self.name}: expected {stream} features of the backbone 'pixels', "
                    f"got those of {side.get('name', about)!r}; extract with --backbone pixels"
                )

    def views(self, batch: Batch, key: Array) -> Views:
        """A drawn frame, and the log-mel rolled."""

        def of_clip(key: Array, clip: AudioVisual) -> AudioVisual:
            frame, roll = jax.random.split(key)
            number = jax.random.randint(frame, (), 0, clip.visual.lengths)
            seen = picture_step(picture_of(clip.visual, number))
            return AudioVisual(seen, sound_steps(heard_in_training(self, roll, clip.audio)))

        keys = clip_keys(key, jnp.asarray(batch.numbers))
        return Views({"clip": jax.vmap(of_clip)(keys, jax.tree.map(jnp.asarray, batch.features))})

    def shown(self, batch: Batch) -> AudioVisual:
        """The middle frame and the whole log-mel, normalised."""
        features = jax.tree.map(jnp.asarray, batch.features)
        visual, audio = features
        pictures = jax.vmap(lambda one: picture_of(one, one.lengths // 2))(visual)
        sounds = jax.vmap(lambda one: log_mel_of(self, one))(audio)
        return AudioVisual(jax.vmap(picture_step)(pictures), jax.vmap(sound_steps)(sounds))


@dataclass(frozen=True)
class PixelContrast(OfPixels):
    """InfoNCE of the clips' mean tokens alone: EquiAV without augmentations, CAV from pixels.

    Attributes:
      temperature: tau at the start; it is learned.
    """

    name: str = "pixels"
    temperature: float = 0.07

    title: ClassVar[str] = "CAV of pixels"

    def __post_init__(self):
        super().__post_init__()
        check_range("objective.temperature", self.temperature, TEMPERATURES)

    def temperatures(self) -> dict[str, float]:
        return {"pixels": self.temperature}

    def heads(self, width: int) -> nn.Module:
        return LastNorms()

    def of_clips(
        self, heads: nn.Module | None, latents: dict[str, AudioVisual], about: PyTree
    ) -> Outputs:
        return Outputs([heads(stream, getattr(latents["clip"], stream)) for stream in STREAMS])

    def loss(
        self, log_temperature: dict[str, Array], outputs: Outputs, memory: PyTree, place: Place
    ) -> tuple[Float[Array, ""], dict]:
        loss, aux = aggregation_loss(*outputs.values, log_temperature["pixels"])
        return loss, aux | {"embeddings": outputs.values}

    def health(self, aux: dict) -> Metrics:
        return {
            "temperature": aux["temperature"],
            **recalls(-aux["similarities"]),
            "embedding_spread": jnp.minimum(*(spread(e) for e in aux["embeddings"])),
        }

    def embed(
        self, heads: nn.Module | None, stream: str, latents: Sequences
    ) -> Float[Array, "B E"]:
        return heads(stream, latents)


class LastNorms(nn.Module):
    """A LayerNorm for each stream's tokens, then their mean."""

    def setup(self):
        for stream in STREAMS:
            setattr(self, f"norm_{stream}", nn.LayerNorm(LAYER_NORM_EPSILON))

    def __call__(self, stream: str, latents: Sequences) -> Float[Array, "B C"]:
        values = zero_padding(latents.values, latents.lengths)
        return masked_mean(getattr(self, f"norm_{stream}")(values), latents.lengths)


# ---- a clip as towers see it ---------------------------------------------------------------------


def picture_of(frames: Sequences, number: Int[Array, ""]) -> Float[Array, "H W 3"]:
    """A frame in [0, 1]."""
    values = jnp.take(frames.values, number, axis=0).astype(jnp.float32)
    side = round((values.shape[0] / 3) ** 0.5)
    return values.reshape(side, side, 3) / 255.0


def log_mel_of(objective: OfPixels, sound: Sequences) -> Float[Array, "T F"]:
    """The normalised log-mel, cut or filled up; zeros are filled in before it is normalised."""
    steps, numbers = sound.values.shape
    real = step_mask(sound.lengths, steps)[:, None]
    values = jnp.where(real, sound.values.astype(jnp.float32), jnp.zeros(()))
    frames = values.reshape(steps * STACKED_FRAMES, numbers // STACKED_FRAMES)
    frames = frames[: objective.audio_frames]
    missing = objective.audio_frames - len(frames)
    frames = jnp.pad(frames, ((0, missing), (0, 0)))
    return (frames - objective.audio_mean) / objective.audio_std


def heard_in_training(objective: OfPixels, key: Array, sound: Sequences) -> Float[Array, "T F"]:
    """The log-mel, rolled where the objective rolls."""
    heard = log_mel_of(objective, sound)
    if not objective.roll:
        return heard
    return jnp.roll(heard, jax.random.randint(key, (), -len(heard), len(heard)), axis=0)


def picture_step(picture: Float[Array, "H W 3"]) -> Sequences:
    """A picture as the one step that a tower takes."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None] for x in (COLOUR_MEAN, COLOUR_STD))
    return _whole(((picture - mean) / std).reshape(1, -1))


def sound_steps(log_mel: Float[Array, "T F"]) -> Sequences:
    """A log-mel as the steps that a tower takes."""
    return _whole(log_mel.reshape(len(log_mel) // STACKED_FRAMES, -1))


def _whole(values: Float[Array, "T D"]) -> Sequences:
    lengths = jnp.full((), len(values), jnp.int32)
    return Sequences(values, lengths, whole_windows(lengths))
