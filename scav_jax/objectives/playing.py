"""EquiAV's losses on frozen sequences, with playing as the augmentation: ours, not the paper's.

Kim et al. (ICML 2024) augment pixels and log-mels. Frozen features cannot be augmented so, but
those that have seen one moment a step can be played (`scav_jax.views`), and what was played takes
the place of the augmentation's vector:

    (k, direction, begin, extent)    played 2^k times as fast, 0 forward or 1 backward, where the
                                     excerpt begins and how much it covers, in shares of the clip

(0, 0, 0, 1) is the clip played plainly, which is what the towers see beside the excerpt. So the
model is to be equivariant in time, where the paper's is in space, colour and spectrum; the log's
`equivariance_gain` says whether knowing the vector is worth anything. No figure is comparable with
the paper's. Losses, predictor and heads are those of `equivariant`.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scav_jax import views
from scav_jax.objectives.equivariant import Equivariance
from scav_jax.objectives.objective import Batch, Views, clip_keys
from scav_jax.objectives.played import STREAMS, OfPlayed, check_width
from scav_jax.sequences import AudioVisual, Sequences

DRAWN = 3  # uniform numbers that a vector is made of


@dataclass(frozen=True)
class EquivariantPlaying(Equivariance, OfPlayed):
    """EquiAV's losses of clips and of excerpts of them, for each stream an excerpt of its own."""

    name: str = "equivariant_playing"

    title: ClassVar[str] = "EquiAV by playing"

    def in_words(self, distance: str) -> list[str]:
        return [*super().in_words(distance), f"{self.speeds} speeds"]

    def views(self, batch: Batch, key: Array) -> Views:
        """The whole clip ("clip"), an excerpt of each stream ("augmented"), and their vectors."""
        numbers, features, seconds = jax.tree.map(
            jnp.asarray, (batch.numbers, batch.features, batch.seconds)
        )
        clip, played, vectors = jax.vmap(self._views_of)(clip_keys(key, numbers), features, seconds)
        return Views({"clip": clip, "augmented": played}, vectors)

    def _views_of(self, key: Array, clip: AudioVisual, seconds: Float[Array, "2"]):
        check_width(clip.audio.values.shape[-1], self.audio_frames)
        there, played, vectors = views.covered(clip, seconds), [], {}
        for own_key, stream in zip(jax.random.split(key), STREAMS, strict=True):
            drawn = jax.random.uniform(own_key, (1 + self.centroid, DRAWN))
            drawn = self.vectors(drawn, there[1] - there[0])
            excerpt = excerpt_of(drawn[0], there)
            sizes = self.tokens_of(stream), self.frames_of(stream)
            played.append(views.play(getattr(clip, stream), seconds, excerpt, *sizes).sequence)
            vectors[stream] = {"vector": drawn[0]}
            vectors[stream] |= {"vectors": drawn[1:]} if self.centroid else {}
        return self.whole(clip, seconds), AudioVisual(*played), vectors

    def vectors(
        self, drawn: Float[Array, "S 3"], duration: Float[Array, ""]
    ) -> Float[Array, "S 4"]:
        """Vectors of a clip of this length, from numbers in [0, 1).

        The speed is uniform over those whose excerpt fits into the clip, and normal where none
        does; then the direction, and where it begins.
        """
        lengths = self.window_s * 2.0 ** jnp.arange(self.speeds, dtype=jnp.float32)
        fit = jnp.sum((lengths <= duration + views.TOLERANCE_S).astype(jnp.float32))
        speeds = jnp.floor(drawn[:, 0] * jnp.maximum(fit, 1.0))
        extents = jnp.minimum(self.window_s * 2.0**speeds / duration, 1.0)
        directions = jnp.floor(2.0 * drawn[:, 1])
        return jnp.stack([speeds, directions, drawn[:, 2] * (1.0 - extents), extents], axis=1)

    def codes(self, stream: str, latents: Sequences) -> Float[Array, "B S 4"]:
        """Of excerpts of each clip: the same draw, in its own length."""
        key = jax.random.key(STREAMS.index(stream))
        drawn = jax.random.uniform(key, (self.centroid, DRAWN))
        durations = latents.lengths.astype(jnp.float32) * self.token_s(stream)
        return jax.vmap(self.vectors, (None, 0))(drawn, durations)


def excerpt_of(vector: Float[Array, "4"], there: Float[Array, "2"]) -> views.Excerpt:
    """The excerpt that a vector tells, of a clip that has steps for these seconds."""
    speed, direction, begin, extent = vector
    duration = there[1] - there[0]
    first = there[0] + begin * duration
    span = jnp.stack([first, first + extent * duration])
    return views.Excerpt(span, speed.astype(jnp.int32), direction.astype(jnp.int32))
