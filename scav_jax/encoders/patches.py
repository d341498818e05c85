"""Two Vision Transformers over 16 x 16 patches: EquiAV's towers (Kim et al., ICML 2024).

A picture is a step of the visual stream, `[side, side, 3]` numbers in a row; a step of sound is 16
frames of a log-mel side by side, so that it is a column of patches. Each step becomes as many
tokens as it has patches: patch embedding, fixed sine-cosine position (of row and column, as in
MAE), a learned vector of the modality, then pre-LN blocks. There is no last norm: it belongs to
the objective, which has one for clips and another for augmented ones. Dosovitskiy et al. 2021 (An
Image is Worth 16x16 Words), He et al. 2022 (Masked Autoencoders).
"""

import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scav_jax.base.errors import InputError
from scav_jax.base.ranges import AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges
from scav_jax.encoders.dropout import Draws, dropout
from scav_jax.encoders.layers import attend, both_towers, check_remat, through_blocks
from scav_jax.encoders.precision import check_precision, wide
from scav_jax.encoders.products import Dense, LayerNorm, Unkept, gelu, query_key_value
from scav_jax.sequences import (
    AudioVisual,
    Sequences,
    check_both_streams,
    step_mask,
    zero_padding,
)

PATCH = 16  # pixels, or frames and mel bins, along a side
CHANNELS = 3  # of the patch embedding; a log-mel is three equal channels
POSITION_BASE = 10_000.0
# What both towers have alike.
OF_BOTH = ("width", "heads", "feedforward", "side", "drop_path", "precision", "remat")
ALLOWED = {
    **dict.fromkeys(("width", "heads", "feedforward", "side"), AT_LEAST_1),
    **dict.fromkeys(("visual_blocks", "audio_blocks"), AT_LEAST_0),
    "drop_path": BELOW_1,
}
GLOROT = nn.initializers.xavier_uniform()
# Query, key and value are one layer in the public code, which starts it as such.
GLOROT_OF_THREE = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class PatchAttention(nn.Module):
    """Self-attention, `softmax(q k / sqrt(d)) v`."""

    heads: int
    precision: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"] | Unkept, mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        query, key, value = query_key_value(x, self.heads, self.precision, GLOROT_OF_THREE)
        mixed = attend(query, key, value, mask, precision=self.precision)
        return Dense(x.shape[-1], self.precision, axes=2, start=GLOROT, name="out")(mixed)


class PatchBlock(nn.Module):
    """One pre-LN block: attention, then a GELU feed-forward layer."""

    heads: int
    feedforward: int
    precision: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        own: tuple[Draws | None, Float[Array, ""]],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T C"]:
        draws, rate = own  # how often a clip goes past the block's layers
        of_attention, of_feedforward = (draws and draws.of(place) for place in range(2))
        dense = partial(Dense, precision=self.precision, start=GLOROT)
        y = LayerNorm(kept=False, name="attention_norm")(x)
        y = PatchAttention(self.heads, self.precision, name="attention")(y, mask)
        x = x + dropout(y, rate, of_attention, whole=True)
        y = LayerNorm(kept=False, name="feedforward_norm")(x)
        y = dense(self.feedforward, name="feedforward_in")(y)
        y = dense(x.shape[-1], name="feedforward_out")(Unkept(gelu, (y,)))
        return x + dropout(y, rate, of_feedforward, whole=True)


class PatchTower(nn.Module):
    """One stream's ViT: steps `[B, T, D]` -> tokens `[B, T P, width]`, P patches a step."""

    stream: str
    width: int
    blocks: int
    heads: int
    feedforward: int
    side: int
    drop_path: float
    precision: str
    remat: str

    @nn.compact
    def __call__(self, features: Sequences, draws: Draws | None = None) -> Sequences:
        """Tokens; without `draws` no block is left out."""
        values = zero_padding(wide(jnp.asarray(features.values)), features.lengths)
        clips, steps, _ = values.shape
        cut = self._pictures if self.stream == "visual" else self._sound
        patches, positions = cut(values)
        x = Dense(self.width, self.precision, start=GLOROT, name="patches")(patches)
        each = patches.shape[-2] if self.stream == "visual" else patches.shape[-2] // steps
        lengths = features.lengths * each
        modality = self.param("modality", nn.initializers.normal(0.02), (self.width,))
        x = x + (positions + modality[None])[None].astype(x.dtype)
        # A picture attends to itself; a log-mel is one picture.
        pictures = steps if self.stream == "visual" else 1
        mask = step_mask(lengths, steps * each).reshape(clips * pictures, -1)
        if draws:  # all pictures of a clip share its fate
            draws = Draws(*(jnp.repeat(word, pictures) for word in draws))
        x = self._through_blocks(x, mask, draws)
        x = zero_padding(wide(x).reshape(clips, steps * each, self.width), lengths)
        return Sequences(x, lengths, features.windows * each)

    def _through_blocks(self, x, mask, draws):
        if draws:
            draws = draws.at(jnp.arange(self.blocks * 2).reshape(self.blocks, 2))
        # Deeper ones more often.
        depths = jnp.arange(self.blocks, dtype=jnp.float32) / max(self.blocks - 1, 1)
        block = PatchBlock(self.heads, self.feedforward, self.precision, parent=None)
        own = draws, self.drop_path * depths
        return through_blocks(self, block, self.blocks, x, own, (mask,))

    def _pictures(self, values: Float[Array, "B T D"]):
        """-> patches `[B T, P, 16 16 3]` row by row, their positions `[P, width]`."""
        count = self.side // PATCH
        shape = (-1, count, PATCH, count, PATCH, CHANNELS)
        cut = values.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
        rows, columns = jnp.divmod(jnp.arange(count * count), count)
        patches = cut.reshape(-1, count * count, PATCH * PATCH * CHANNELS)
        return patches, self._positions(rows, columns, values.dtype)

    def _sound(self, values: Float[Array, "B T D"]):
        """-> patches `[B, T P, 16 16 3]`, those of a step together; positions `[T P, width]`.

        A patch has mel bins along its rows and frames along its columns.
        """
        clips, steps, numbers = values.shape
        count = numbers // PATCH**2
        cut = values.reshape(clips, steps, PATCH, count, PATCH).transpose(0, 1, 3, 4, 2)
        patches = cut.reshape(clips, steps * count, PATCH * PATCH, 1)
        patches = jnp.broadcast_to(patches, (*patches.shape[:-1], CHANNELS))
        columns = jnp.repeat(jnp.arange(steps), count)
        rows = jnp.tile(jnp.arange(count), steps)
        flat = patches.reshape(clips, steps * count, PATCH * PATCH * CHANNELS)
        return flat, self._positions(rows, columns, values.dtype)

    def _positions(
        self, rows: Int[Array, " P"], columns: Int[Array, " P"], dtype: jnp.dtype
    ) -> Float[Array, "P C"]:
        """Sine-cosine of the column in the first half of channels, of the row in the second."""
        quarter = self.width // 4
        omega = jnp.asarray(POSITION_BASE ** -(np.arange(quarter) / quarter), dtype)
        halves = []
        for place in (columns, rows):
            angle = place.astype(dtype)[:, None] * omega[None]
            halves += [jnp.sin(angle), jnp.cos(angle)]
        return jnp.concatenate(halves, axis=-1)


class PatchEncoders(nn.Module):
    """Both ViTs. The defaults are ViT-B/16, as in the paper (Kim et al., ICML 2024).

    Attributes:
      width: of tokens; divisible by 4 (positions) and by heads.
      visual_blocks, audio_blocks: of each tower (paper: 12).
      heads, feedforward: of every block (paper: 12, 3072).
      side: of pictures in pixels, a multiple of 16 (paper: 224).
      drop_path: rate of stochastic depth in the last block, for fine-tuning (paper: 0.1 there).
      precision, remat: as of `Encoders`.
    """

    width: int = 768
    visual_blocks: int = 12
    audio_blocks: int = 12
    heads: int = 12
    feedforward: int = 3072
    side: int = 224
    drop_path: float = 0.0
    precision: str = "float32"
    remat: str = "none"

    of_pixels: ClassVar[bool] = True  # what `extract --backbone pixels` stores
    reading: ClassVar[dict] = {"direction": None}
    in_words: ClassVar[list[str]] = []

    def __post_init__(self):
        check_ranges("encoders", self, ALLOWED)
        if self.width % 4 or self.width % self.heads or self.side % PATCH:
            raise InputError(
                "encoders: width should be divisible by 4 and by heads, and side by "
                f"{PATCH}, got width {self.width}, {self.heads} heads and side {self.side}"
            )
        check_precision(self.precision)
        check_remat(self.remat)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        features: AudioVisual,
        *,
        deterministic: bool = True,
        rows: Int[Array, " B"] | None = None,
    ) -> AudioVisual:
        """Pictures `[B, N, side side 3]` and log-mel `[B, M, 16 F]` -> tokens, zero in the padding.

        Args: as of `Encoders`.
        """
        check_both_streams(features, "encoders")
        self._check(*(stream.values.shape[-1] for stream in features))
        dropped = bool(self.drop_path) and not deterministic
        return both_towers(self, features, rows, dropped)

    @nn.nowrap
    def read(self, features: AudioVisual) -> AudioVisual:
        """What the towers take: pictures and log-mel as they are stored."""
        return features

    @nn.nowrap
    def _check(self, visual: int, audio: int) -> None:
        if visual != self.side**2 * CHANNELS:
            got = math.isqrt(visual // CHANNELS)
            what = f"{got}" if got**2 * CHANNELS == visual else f"none: {visual} numbers a step"
            raise InputError(
                f"encoders.side: expected pictures of {self.side} pixels a side, got {what}; set "
                "encoders.side to that of the features, or extract with --backbone pixels "
                f"--side {self.side}"
            )
        if audio % PATCH**2:
            raise InputError(
                f"encoders: expected sound in steps of {PATCH} frames of a log-mel with a multiple "
                f"of {PATCH} bins, got {audio} numbers a step; extract with --backbone pixels"
            )

    @nn.nowrap
    def tower(self, stream: str, name: str | None = None) -> PatchTower:
        """The tower of "visual" or "audio", alone as in both."""
        own = {"stream": stream, "blocks": getattr(self, f"{stream}_blocks")}
        return PatchTower(**own, **{option: getattr(self, option) for option in OF_BOTH}, name=name)
