"""The two towers: features -> latents (paper section III-A).

Each stream goes through a projection MLP and a pre-LN Transformer whose attention carries the
gated relative position bias of BEATs (Chi et al. 2022, XLM-E; its form in WavLM and BEATs).
Masks are exact: padding, NaN included, changes neither values nor gradients.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scav_jax.errors import InputError
from scav_jax.positions import relative_buckets
from scav_jax.sequences import AudioVisual, Sequences, resample_pairs, step_mask, zero_padding

STREAMS = ("visual", "audio")
LAYER_NORM_EPSILON = 1e-5  # torch's default, which the paper's code inherits; flax has 1e-6
GATE_WIDTH = 8  # two gates, each the sum of four projections, as in BEATs
CONV_POSITION_KERNEL = 128
CONV_POSITION_GROUPS = 16


class Attention(nn.Module):
    """Self-attention with the gated relative position bias.

    `A_ij = softmax_j(q_i.k_j / sqrt(d) + r_ij)`, `r_ij = d_ij (g_a (g_b a_h - 1) + 2)`, where
    `d_ij` comes from the tower's table and the gates from the projected query (BEATs' form).
    """

    heads: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        bias: Float[Array, "H T T"],
        deterministic: bool,
    ) -> Float[Array, "B T C"]:
        width = x.shape[-1]
        head_width = width // self.heads
        shape = (self.heads, head_width)
        query = nn.DenseGeneral(shape, name="query")(x)
        key = nn.DenseGeneral(shape, name="key")(x)
        value = nn.DenseGeneral(shape, name="value")(x)

        gates = nn.Dense(GATE_WIDTH, name="gate")(query)  # [B, T, H, 8], shared by the heads
        gates = nn.sigmoid(jnp.sum(gates.reshape(*gates.shape[:-1], 2, GATE_WIDTH // 2), axis=-1))
        head_scale = self.param("head_scale", nn.initializers.ones, (1, 1, self.heads))
        gain = gates[..., 0] * (gates[..., 1] * head_scale - 1.0) + 2.0  # [B, T, H]
        gain = jnp.transpose(gain, (0, 2, 1))[..., None]  # [B, H, T, 1]

        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(head_width)
        logits = logits + gain * bias[None]
        lowest = jnp.finfo(logits.dtype).min
        logits = jnp.where(mask[:, None, None, :], logits, lowest)
        weights = jax.nn.softmax(logits, axis=-1)
        weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out")(mixed)


class Block(nn.Module):
    """One pre-LN Transformer block: attention, then a GELU feed-forward layer."""

    heads: int
    feedforward: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        bias: Float[Array, "H T T"],
        deterministic: bool,
    ) -> Float[Array, "B T C"]:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        y = nn.LayerNorm(LAYER_NORM_EPSILON, name="attention_norm")(x)
        y = Attention(self.heads, self.dropout, name="attention")(y, mask, bias, deterministic)
        x = x + drop(y)
        y = nn.LayerNorm(LAYER_NORM_EPSILON, name="feedforward_norm")(x)
        y = nn.gelu(nn.Dense(self.feedforward, name="feedforward_in")(y), approximate=False)
        y = nn.Dense(x.shape[-1], name="feedforward_out")(y)
        return x + drop(y)


class ConvPosition(nn.Module):
    """BEATs' convolutional position: `x + GELU(Conv1d(x))`, kernel 128, 16 groups."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T C"]:
        x = zero_padding(x, lengths)
        before = CONV_POSITION_KERNEL // 2
        conv = nn.Conv(
            x.shape[-1],
            (CONV_POSITION_KERNEL,),
            feature_group_count=CONV_POSITION_GROUPS,
            padding=[(before, CONV_POSITION_KERNEL - 1 - before)],
            name="conv",
        )
        return x + nn.gelu(conv(x), approximate=False)


class Tower(nn.Module):
    """One stream's encoder: features `[B, T, D]` -> latents `[B, T, width]`."""

    width: int
    blocks: int
    hidden: int
    heads: int
    feedforward: int
    dropout: float
    position_buckets: int
    position_max_distance: int
    conv_position: bool

    @nn.compact
    def __call__(self, features: Sequences, deterministic: bool) -> Sequences:
        lengths, steps = features.lengths, features.values.shape[-2]
        mask = step_mask(lengths, steps)
        x = zero_padding(features.values, lengths)
        x = nn.gelu(nn.Dense(self.hidden, name="projection_in")(x), approximate=False)
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = nn.Dense(self.width, name="projection_out")(x)
        if self.conv_position:
            x = ConvPosition(name="conv_position")(x, lengths)
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)

        # One table a tower, shared by its blocks, as in BEATs.
        table = self.param(
            "position_table",
            nn.initializers.normal(0.02),
            (self.position_buckets, self.heads),
        )
        buckets = relative_buckets(steps, self.position_buckets, self.position_max_distance)
        bias = jnp.transpose(table[buckets], (2, 0, 1))
        for index in range(self.blocks):
            block = Block(self.heads, self.feedforward, self.dropout, name=f"block_{index}")
            x = block(x, mask, bias, deterministic)
        x = nn.LayerNorm(LAYER_NORM_EPSILON, name="final_norm")(x)
        return features.replace(values=zero_padding(x, lengths))


class Encoders(nn.Module):
    """Both towers (paper section III-A, Figure 2).

    With the defaults 39.3 M parameters; the paper says 38 M, which no plain reading gives.
    `feedforward=1536, conv_position=True` has 38.2 M and BEATs' own position encoding.

    Attributes:
      width: latent width C, of both towers.
      visual_blocks, audio_blocks: Transformer blocks (paper: 8 and 2).
      visual_hidden, audio_hidden: hidden widths of the projection MLPs (paper: 2048 and 768).
      heads, feedforward: of every block; `width` must be divisible by `heads`.
      dropout: rate on residuals, attention and the MLP (paper: 0.1).
      position_buckets, position_max_distance: of the relative position table (BEATs: 320, 800).
      conv_position: adds BEATs' convolutional position before the blocks.
      pre_resample: the paper's 'pre': a clip's features of one stream are interpolated to the
        steps of the other before the MLP, "visual_to_audio" or "audio_to_visual"; None is 'post'.
    """

    width: int = 512
    visual_blocks: int = 8
    audio_blocks: int = 2
    visual_hidden: int = 2048
    audio_hidden: int = 768
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1
    position_buckets: int = 320
    position_max_distance: int = 800
    conv_position: bool = False
    pre_resample: str | None = None

    @nn.compact
    def __call__(self, features: AudioVisual, *, deterministic: bool = True) -> AudioVisual:
        """Features `[B, T, D]` of both streams -> latents `[B, T, width]`, zero in the padding.

        Needs the random stream "dropout" unless `deterministic`.
        """
        if self.width % self.heads:
            raise InputError(
                "encoders: width should be divisible by heads, "
                f"got width {self.width} and {self.heads} heads"
            )
        if self.conv_position and self.width % CONV_POSITION_GROUPS:
            raise InputError(
                f"encoders: width should be divisible by {CONV_POSITION_GROUPS} for conv_position, "
                f"got width {self.width}"
            )
        if self.pre_resample is not None:
            features = resample_pairs(features, self.pre_resample)
        visual, audio = (Tower(**self.tower_settings(name), name=name) for name in STREAMS)
        return AudioVisual(
            visual(features.visual, deterministic), audio(features.audio, deterministic)
        )

    @nn.nowrap
    def tower_settings(self, stream: str) -> dict:
        """What makes the `Tower` of "visual" or "audio", alone as in both."""
        return {
            "width": self.width,
            "blocks": getattr(self, f"{stream}_blocks"),
            "hidden": getattr(self, f"{stream}_hidden"),
            "heads": self.heads,
            "feedforward": self.feedforward,
            "dropout": self.dropout,
            "position_buckets": self.position_buckets,
            "position_max_distance": self.position_max_distance,
            "conv_position": self.conv_position,
        }
