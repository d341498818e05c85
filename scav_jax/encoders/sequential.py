"""The paper's towers: features -> latents (paper section III-A).

Each stream goes through a projection MLP and a pre-LN Transformer whose attention carries the
gated relative position bias of BEATs (Chi et al. 2022, XLM-E; its form in WavLM and BEATs).
Masks are exact: padding, NaN included, changes neither values nor gradients.
The latents that come out are float32, whatever the precision.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scav_jax.base.errors import InputError
from scav_jax.encoders.layers import (
    LAYER_NORM_EPSILON,
    Dropout,
    attend,
    check_precision,
    gelu,
    layer_norm,
    products_in,
    row_numbers,
    wide,
)
from scav_jax.encoders.positions import relative_buckets
from scav_jax.sequences import (
    STREAMS,
    AudioVisual,
    Sequences,
    resample_pairs,
    step_mask,
    zero_padding,
)

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
    precision: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        bias: Float[Array, "H T T"],
        rows: Int[Array, " B"],
        deterministic: bool,
    ) -> Float[Array, "B T C"]:
        width = x.shape[-1]
        shape = (self.heads, width // self.heads)
        products = products_in(self.precision)
        query = nn.DenseGeneral(shape, name="query", **products)(x)
        key = nn.DenseGeneral(shape, name="key", **products)(x)
        value = nn.DenseGeneral(shape, name="value", **products)(x)

        gates = nn.Dense(GATE_WIDTH, name="gate", **products)(query)  # [B, T, H, 8], heads share
        gates = wide(gates).reshape(*gates.shape[:-1], 2, GATE_WIDTH // 2)
        gates = nn.sigmoid(jnp.sum(gates, axis=-1))
        head_scale = self.param("head_scale", nn.initializers.ones, (1, 1, self.heads))
        gain = gates[..., 0] * (gates[..., 1] * head_scale - 1.0) + 2.0  # [B, T, H]
        gain = jnp.transpose(gain, (0, 2, 1))[..., None]  # [B, H, T, 1]

        drop = Dropout(self.dropout, name="drop")
        mixed = attend(
            *(query, key, value, mask),
            precision=self.precision,
            bias=gain * bias[None],
            drop=lambda weights: drop(weights, rows, deterministic),
        )
        return nn.DenseGeneral(width, axis=(-2, -1), name="out", **products)(mixed)


class Block(nn.Module):
    """One pre-LN Transformer block: attention, then a GELU feed-forward layer."""

    heads: int
    feedforward: int
    dropout: float
    precision: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        bias: Float[Array, "H T T"],
        rows: Int[Array, " B"],
        deterministic: bool,
    ) -> Float[Array, "B T C"]:
        products = products_in(self.precision)
        drop = Dropout(self.dropout, name="drop")
        y = layer_norm(x, "attention_norm")
        attention = Attention(self.heads, self.dropout, self.precision, name="attention")
        x = x + drop(attention(y, mask, bias, rows, deterministic), rows, deterministic)
        y = layer_norm(x, "feedforward_norm")
        y = nn.Dense(self.feedforward, name="feedforward_in", **products)(y)
        y = gelu(y)
        y = nn.Dense(x.shape[-1], name="feedforward_out", **products)(y)
        return x + drop(y, rows, deterministic)


class ConvPosition(nn.Module):
    """BEATs' convolutional position: `x + GELU(Conv1d(x))`, kernel 128, 16 groups."""

    precision: str

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
            **products_in(self.precision),
        )
        return x + gelu(conv(x))


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
    precision: str
    remat: bool

    @nn.compact
    def __call__(
        self, features: Sequences, rows: Int[Array, " B"], deterministic: bool
    ) -> Sequences:
        products = products_in(self.precision)
        lengths, steps = features.lengths, features.values.shape[-2]
        mask = step_mask(lengths, steps)
        x = zero_padding(features.values, lengths)
        x = nn.Dense(self.hidden, name="projection_in", **products)(x)
        x = gelu(x)
        x = Dropout(self.dropout, name="projection_drop")(x, rows, deterministic)
        x = nn.Dense(self.width, name="projection_out", **products)(x)
        if self.conv_position:
            x = ConvPosition(self.precision, name="conv_position")(x, lengths)
        x = Dropout(self.dropout, name="drop")(x, rows, deterministic)

        # One table a tower, shared by its blocks, as in BEATs.
        table = self.param(
            "position_table",
            nn.initializers.normal(0.02),
            (self.position_buckets, self.heads),
        )
        buckets = relative_buckets(steps, self.position_buckets, self.position_max_distance)
        bias = jnp.transpose(table[buckets], (2, 0, 1))
        block_class = nn.remat(Block, static_argnums=(5,)) if self.remat else Block
        for index in range(self.blocks):
            block = block_class(
                self.heads, self.feedforward, self.dropout, self.precision, name=f"block_{index}"
            )
            x = block(x, mask, bias, rows, deterministic)
        x = nn.LayerNorm(LAYER_NORM_EPSILON, name="final_norm")(wide(x))
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
      precision: "float32"; "tensorfloat32", the device's default for float32 products; or
        "bfloat16" products and activations. Parameters and latents are float32 in all of them.
      remat: keeps only the blocks' inputs for the gradient and computes the rest again: less
        memory, about a third more time, the same numbers.
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
    precision: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        features: AudioVisual,
        *,
        deterministic: bool = True,
        rows: Int[Array, " B"] | None = None,
    ) -> AudioVisual:
        """Features `[B, T, D]` of both streams -> latents `[B, T, width]`, zero in the padding.

        Stored float16 is widened here, exactly.

        Args:
          features: both streams of B clips.
          deterministic: no dropout; else the random stream "dropout" is needed.
          rows: which rows of the global batch the clips are, for their dropout masks; None where
            they are all of it.
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
        check_precision(self.precision)
        rows = row_numbers(features) if rows is None else rows
        features = AudioVisual(
            *(stream.replace(values=wide(jnp.asarray(stream.values))) for stream in features)
        )
        if self.pre_resample is not None:
            features = resample_pairs(features, self.pre_resample)
        visual, audio = (self.tower(name, name=name) for name in STREAMS)
        return AudioVisual(
            visual(features.visual, rows, deterministic), audio(features.audio, rows, deterministic)
        )

    @nn.nowrap
    def tower(self, stream: str, name: str | None = None) -> Tower:
        """The tower of "visual" or "audio", alone as in both."""
        return Tower(
            width=self.width,
            blocks=getattr(self, f"{stream}_blocks"),
            hidden=getattr(self, f"{stream}_hidden"),
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
            position_buckets=self.position_buckets,
            position_max_distance=self.position_max_distance,
            conv_position=self.conv_position,
            precision=self.precision,
            remat=self.remat,
            name=name,
        )
