"""The paper's towers: features -> latents (paper section III-A).

Each stream goes through a projection MLP and a pre-LN Transformer whose attention carries the
gated relative position bias of BEATs (Chi et al. 2022, XLM-E; its form in WavLM and BEATs).
Masks are exact: padding, NaN included, changes neither values nor gradients.
The latents that come out are float32, whatever the precision.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scav_jax.base.errors import InputError, check_one_of
from scav_jax.base.ranges import AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges
from scav_jax.encoders.dropout import Draws, dropout
from scav_jax.encoders.layers import attend, both_towers, check_remat, through_blocks
from scav_jax.encoders.positions import check_buckets, relative_buckets
from scav_jax.encoders.precision import (
    MATMUL_PRECISIONS,
    STEP_MULTIPLES,
    check_precision,
    heads_first,
    wide,
)
from scav_jax.encoders.products import Dense, LayerNorm, Unkept, gelu, query_key_value
from scav_jax.sequences import (
    RESAMPLINGS,
    AudioVisual,
    Sequences,
    check_both_streams,
    resample_pairs,
    step_mask,
    with_rises,
    zero_padding,
)

GATE_WIDTH = 8  # two gates, each the sum of four projections, as in BEATs
DROPPED_IN_BLOCK = 3  # attention's weights, what it gives, what the layers behind it give
# What both towers have alike.
OF_BOTH = (
    *("width", "heads", "feedforward", "dropout", "conv_position", "precision", "remat"),
    *("position_buckets", "position_max_distance"),
)
JOINS = ("beside", "mean")
CONV_POSITION_KERNEL = 128
CONV_POSITION_GROUPS = 16
ALLOWED = {
    **dict.fromkeys(("width", "visual_hidden", "audio_hidden", "heads", "feedforward"), AT_LEAST_1),
    **dict.fromkeys(("visual_blocks", "audio_blocks", "visual_rise"), AT_LEAST_0),
    "dropout": BELOW_1,
    "pre_points": AT_LEAST_1,
}


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
        x: Float[Array, "B T C"] | Unkept,
        mask: Bool[Array, "B T"],
        bias: Float[Array, "H T T"],
        draws: Draws | None,
    ) -> Float[Array, "B T C"]:
        query, key, value = query_key_value(x, self.heads, self.precision)
        gates = Dense(GATE_WIDTH, self.precision, name="gate")(query)  # heads share it
        head_scale = self.param("head_scale", nn.initializers.ones, (1, 1, self.heads))
        gates = wide(gates).reshape(*gates.shape[:-1], 2, GATE_WIDTH // 2)
        gain = _gain(heads_first(self.precision), jnp.sum(gates, axis=-1), head_scale)
        mixed = attend(
            *(query, key, value, mask),
            precision=self.precision,
            position=(gain, bias),
            rate=self.dropout,
            draws=draws,
        )
        return Dense(x.shape[-1], self.precision, axes=2, name="out")(mixed)


# Its gradient would write and read four more arrays.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _gain(
    by_head: bool, gates: Float[Array, "B M N 2"], head_scale: Float[Array, "1 1 H"]
) -> Float[Array, "B M N"]:
    gates = nn.sigmoid(gates)
    head_scale = head_scale.swapaxes(1, 2) if by_head else head_scale
    return gates[..., 0] * (gates[..., 1] * head_scale - 1.0) + 2.0


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
        draws: Draws | None,
        mask: Bool[Array, "B T"],
        bias: Float[Array, "H T T"],
    ) -> Float[Array, "B T C"]:
        of_weights, of_attention, of_feedforward = (
            draws and draws.of(place) for place in range(DROPPED_IN_BLOCK)
        )
        y = LayerNorm(kept=False, name="attention_norm")(x)
        attention = Attention(self.heads, self.dropout, self.precision, name="attention")
        x = x + dropout(attention(y, mask, bias, of_weights), self.dropout, of_attention)
        y = LayerNorm(kept=False, name="feedforward_norm")(x)
        y = Dense(self.feedforward, self.precision, name="feedforward_in")(y)
        y = Dense(x.shape[-1], self.precision, name="feedforward_out")(Unkept(gelu, (y,)))
        return x + dropout(y, self.dropout, of_feedforward)


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
            dtype=jnp.bfloat16 if self.precision == "bfloat16" else None,
            precision=MATMUL_PRECISIONS[self.precision],
            name="conv",
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
    remat: str

    @nn.compact
    def __call__(self, features: Sequences, draws: Draws | None = None) -> Sequences:
        """Latents; without `draws` there is no dropout."""
        lengths, given = features.lengths, features.values.shape[-2]
        steps = given + -given % STEP_MULTIPLES[self.precision]
        x = jnp.pad(features.values, ((0, 0), (0, steps - given), (0, 0)))
        x = zero_padding(x, lengths)
        x = gelu(Dense(self.hidden, self.precision, name="projection_in")(x))
        x = dropout(x, self.dropout, draws and draws.at(0))
        x = Dense(self.width, self.precision, name="projection_out")(x)
        if self.conv_position:
            x = ConvPosition(self.precision, name="conv_position")(x, lengths)
        x = dropout(x, self.dropout, draws and draws.at(1))

        # One table a tower, shared by its blocks, as in BEATs.
        table = self.param(
            "position_table",
            nn.initializers.normal(0.02),
            (self.position_buckets, self.heads),
        )
        buckets = relative_buckets(steps, self.position_buckets, self.position_max_distance)
        bias = jnp.transpose(table[buckets], (2, 0, 1))
        if draws:
            places = jnp.arange(2, 2 + self.blocks * DROPPED_IN_BLOCK)
            draws = draws.at(places.reshape(self.blocks, DROPPED_IN_BLOCK))
        block = Block(self.heads, self.feedforward, self.dropout, self.precision, parent=None)
        shared = step_mask(lengths, steps), bias
        x = through_blocks(self, block, self.blocks, x, draws, shared)
        x = LayerNorm(widens=True, name="final_norm")(x[:, :given])
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
      pre_points: at how many moments of each step, evenly over it, 'pre' reads (ours); the paper's
        1 is the centre, 4 read each of 25 frames a second at steps of 0.16 s.
      pre_join: what was read at several is laid "beside" each other or its "mean" is taken.
      visual_rise: how much visual features rose since the step before is laid beside them, times
        this; 0 leaves it out (ours).
      precision: "float32"; "tensorfloat32", the device's default for float32 products; or
        "bfloat16" products and activations. Parameters and latents are float32 in all of them.
      remat: what of a block is computed again for the gradient instead of kept, with the same
        numbers: "none" but norms, GELUs and dropout; "blocks", all but their inputs: least memory,
        a third more time; "unrolled", nothing, and a tower's blocks are no loop: fewest bytes on a
        card, most memory, longest compilation.
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
    pre_points: int = 1
    pre_join: str = "beside"
    visual_rise: float = 0.0
    precision: str = "float32"
    remat: str = "none"

    of_pixels: ClassVar[bool] = False

    def __post_init__(self):
        _check_options(self)
        super().__post_init__()

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
        dropped = bool(self.dropout) and not deterministic
        return both_towers(self, self.read(features), rows, dropped)

    @nn.nowrap
    def read(self, features: AudioVisual) -> AudioVisual:
        """What the towers take: float32, with the rises that are asked for, resampled by 'pre'."""
        check_both_streams(features, "encoders")
        visual, audio = (
            stream.replace(values=wide(jnp.asarray(stream.values))) for stream in features
        )
        if self.visual_rise:
            visual = with_rises(visual, self.visual_rise)
        features = AudioVisual(visual, audio)
        if self.pre_resample is None:
            return features
        return resample_pairs(features, self.pre_resample, self.pre_points, self.pre_join)

    @property
    def in_words(self) -> list[str]:
        """What distinguishes how it reads features."""
        points = f", {self.pre_points} points a step: {self.pre_join}" * (self.pre_points > 1)
        words = [f"features resampled {self.pre_resample}{points}"] if self.pre_resample else []
        return words + [f"visual rises times {self.visual_rise:g}"] * bool(self.visual_rise)

    @property
    def reading(self) -> dict[str, str | float | None]:
        """How it reads clips, as far as copies of features that are resampled already go."""
        points, rise = self.pre_points, self.visual_rise
        return {"direction": self.pre_resample, "points": points, "rise": rise}

    @nn.nowrap
    def tower(self, stream: str, name: str | None = None) -> Tower:
        """The tower of "visual" or "audio", alone as in both."""
        own = {size: getattr(self, f"{stream}_{size}") for size in ("blocks", "hidden")}
        return Tower(**own, **{option: getattr(self, option) for option in OF_BOTH}, name=name)


def _check_options(encoders: Encoders) -> None:
    """Raises `InputError` for options that make no towers, whatever the features are."""
    check_ranges("encoders", encoders, ALLOWED)
    width, heads = encoders.width, encoders.heads
    if width % heads:
        raise InputError(
            f"encoders: width should be divisible by heads, got width {width} and {heads} heads"
        )
    if encoders.conv_position and width % CONV_POSITION_GROUPS:
        raise InputError(
            f"encoders: width should be divisible by {CONV_POSITION_GROUPS} for conv_position, "
            f"got width {width}"
        )
    check_buckets(encoders.position_buckets, encoders.position_max_distance)
    check_one_of("encoders.pre_join", encoders.pre_join, JOINS)
    if encoders.pre_resample is not None:
        check_one_of("encoders.pre_resample", encoders.pre_resample, RESAMPLINGS)
    elif encoders.pre_points > 1:
        raise InputError(
            "encoders.pre_points: expected 1, or more with encoders.pre_resample, got "
            f"{encoders.pre_points}"
        )
    check_precision(encoders.precision)
    check_remat(encoders.remat)
