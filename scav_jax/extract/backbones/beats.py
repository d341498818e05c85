"""BEATs in Flax: sound -> tokens, stacked to one step every 0.16 s (Chen et al. 2022).

Log-mel frames are cut into patches of 16 frames x 16 mel bins, which a post-LN Transformer with
convolutional and gated relative positions turns into tokens. The eight tokens of a time step side
by side, lowest frequencies first, are the paper's audio feature: 6,144 numbers, 6.25 times a
second.

The released model, its names and its constants: microsoft/unilm, beats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from scav_jax import sharding
from scav_jax.base.errors import InputError
from scav_jax.base.log_mel import MEL_BINS
from scav_jax.encoders.positions import offset_buckets
from scav_jax.extract import fbank
from scav_jax.extract.backbones.beats_weights import (
    PATCH_SIDE,
    BeatsConfig,
    Checkpoint,
    read_checkpoint,
    to_params,
)
from scav_jax.extract.fbank_on_device import log_mel_on_device
from scav_jax.sequences import step_mask, zero_padding

LOG_MEL_CENTRE, LOG_MEL_SCALE = 15.41663, 2 * 6.55582
LAYER_NORM_EPSILON = 1e-5
GATE_WIDTH = 8  # two gates, each the sum of four projections
PATCHES_A_STEP = MEL_BINS // PATCH_SIDE  # 8
MAX_SECONDS = 60  # attention is over the whole sound: its memory grows with the square
# Static shapes: a sound's steps are padded up to one of these. 10 s are 62 steps.
STEP_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 376)
TOKENS_AT_ONCE = 2**14  # a device: 32 sounds of 10 s
DTYPES = ("float32", "bfloat16")


def step_count(samples: int) -> int:
    """Steps of 16 log-mel frames in a waveform; what is left over is dropped.

    >>> step_count(160_000), step_count(2_800), step_count(2_799)
    (62, 1, 0)
    """
    return fbank.frame_count(samples) // PATCH_SIDE


# -- the model ------------------------------------------------------------------------------------


def _precision(dtype: Any) -> jax.lax.Precision | None:
    """float32 products are full ones; accelerators would take fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _dense(width: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(width, use_bias, dtype=dtype, precision=_precision(dtype), name=name)


def _norm(x: Float[Array, "B T C"], dtype: Any, name: str) -> Float[Array, "B T C"]:
    """LayerNorm in float32, whatever the dtype of what goes in and comes out."""
    norm = nn.LayerNorm(LAYER_NORM_EPSILON, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)


def _patches(log_mels: Float[Array, "B frames 128"]) -> Float[Array, "B tokens 256"]:
    """16 x 16 patches, [frame, bin] flattened; token `8 t + f`: time-major, frequency fastest."""
    batch, frames, bins = log_mels.shape
    shape = (batch, frames // PATCH_SIDE, PATCH_SIDE, bins // PATCH_SIDE, PATCH_SIDE)
    patches = jnp.transpose(log_mels.reshape(shape), (0, 1, 3, 2, 4))
    return patches.reshape(batch, -1, PATCH_SIDE * PATCH_SIDE)


def _position_bias(
    table: Float[Array, "buckets H"], tokens: int, max_distance: int
) -> Float[Array, "H T T"]:
    """`bias[h, i, j]`, the table's row for the offset `j - i`, without a gather of `T x T`.

    The `2 T - 1` offsets and one number of padding, repeated and cut into rows one shorter than
    the period: every row stands one further to the right.
    """
    offsets = offset_buckets(np.arange(1 - tokens, tokens), len(table), max_distance)
    period = jnp.pad(table[offsets].T, ((0, 0), (0, 1)))  # [H, 2 T]
    rows = jnp.tile(period, (1, tokens))[:, : tokens * (2 * tokens - 1)]
    return rows.reshape(-1, tokens, 2 * tokens - 1)[:, :, tokens - 1 :]


class _Attention(nn.Module):
    """Self-attention with the gated relative position bias.

    `softmax_j(q_i.k_j / sqrt(d) + d_ij (g_a (g_b a_h - 1) + 2))`, both gates from the projected
    query (WavLM: from the layer's input). BEATs divides the logits by 32 before it subtracts their
    maximum and multiplies afterwards, which only float16 needs.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], mask: Bool[Array, "B T"], bias: Float[Array, "H T T"]
    ) -> Float[Array, "B T C"]:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (
            _dense(width, self.dtype, name)(x).reshape(shape) for name in ("query", "key", "value")
        )
        einsum = partial(
            jnp.einsum, precision=_precision(self.dtype), preferred_element_type=jnp.float32
        )

        gates = _dense(GATE_WIDTH, self.dtype, "gate")(query).astype(jnp.float32)
        gates = nn.sigmoid(jnp.sum(gates.reshape(*shape[:-1], 2, GATE_WIDTH // 2), axis=-1))
        head_scale = self.param("head_scale", nn.initializers.ones, (self.heads,))
        gain = gates[..., 0] * (gates[..., 1] * head_scale[None, None] - 1.0) + 2.0  # [B, T, H]

        logits = einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(shape[-1])
        logits = logits + jnp.transpose(gain, (0, 2, 1))[..., None] * bias[None]
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = einsum("bhqk,bkhd->bqhd", weights, value).astype(self.dtype)
        return _dense(width, self.dtype, "out")(mixed.reshape(batch, tokens, width))


class _Layer(nn.Module):
    """One post-LN layer: `x = LN(a x + Attention(x))`, `x = LN(a x + FFN(x))`, exact GELU."""

    config: BeatsConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], mask: Bool[Array, "B T"], bias: Float[Array, "H T T"]
    ) -> Float[Array, "B T C"]:
        c = self.config
        scale = (2 * c.encoder_layers) ** 0.25 if c.deep_norm else 1.0

        def add(x, y):  # in float32, whatever the dtype
            return scale * x.astype(jnp.float32) + y.astype(jnp.float32)

        y = _Attention(c.encoder_attention_heads, self.dtype, name="attention")(x, mask, bias)
        x = _norm(add(x, y), self.dtype, "attention_norm")
        y = _dense(c.encoder_ffn_embed_dim, self.dtype, "feedforward_in")(x)
        y = nn.gelu(y, approximate=False)
        y = _dense(c.encoder_embed_dim, self.dtype, "feedforward_out")(y)
        return _norm(add(x, y), self.dtype, "feedforward_norm")


class BeatsModel(nn.Module):
    """BEATs without its log-mel front end.

    Attributes:
      config: the architecture.
      dtype: of matrix products and activations; parameters, norms, softmax and residual sums are
        float32.
    """

    config: BeatsConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        log_mels: Float[Array, "B frames 128"],
        lengths: Int[Array, " B"],
    ) -> Float[Array, "B T D"]:
        """Log-mel frames -> steps of eight tokens.

        Padding is exact: what lies beyond a sound's length, NaN included, changes nothing.

        Args:
          log_mels: of `fbank`, not normalised; `16 T` frames.
          lengths: real steps of each sound, 0..T.

        Returns:
          `[B, T, 8 * width]` in the dtype, `feature = f * width + channel`, zero in the padding.
        """
        c = self.config
        tokens = log_mels.shape[1] // PATCH_SIDE * PATCHES_A_STEP
        token_lengths = lengths * PATCHES_A_STEP
        mask = step_mask(token_lengths, tokens)

        normalised = (log_mels - LOG_MEL_CENTRE) / LOG_MEL_SCALE
        x = _dense(c.embed_dim, self.dtype, "patch_embedding", c.conv_bias)(_patches(normalised))
        x = _norm(x, self.dtype, "patch_norm")
        if c.embed_dim != c.encoder_embed_dim:
            x = _dense(c.encoder_embed_dim, self.dtype, "projection")(x)
        x = zero_padding(x, token_lengths)
        x = x + nn.gelu(self._conv_position()(x), approximate=False)
        x = _norm(x, self.dtype, "norm")

        table = self.param(
            "position_table",
            nn.initializers.normal(0.02),
            (c.num_buckets, c.encoder_attention_heads),
        )
        bias = _position_bias(table, tokens, c.max_distance)
        for index in range(c.encoder_layers):
            x = _Layer(c, self.dtype, name=f"layer_{index}")(x, mask, bias)
        x = zero_padding(x, token_lengths)
        return x.reshape(len(x), -1, PATCHES_A_STEP * c.encoder_embed_dim)

    def _conv_position(self) -> nn.Conv:
        """As many steps out as in: BEATs pads half a kernel and drops the last step if even."""
        c = self.config
        before = c.conv_pos // 2
        return nn.Conv(
            c.encoder_embed_dim,
            (c.conv_pos,),
            feature_group_count=c.conv_pos_groups,
            padding=[(before, c.conv_pos - 1 - before)],
            dtype=self.dtype,
            precision=_precision(self.dtype),
            name="conv_position",
        )


@partial(jax.jit, static_argnames=("model",))
def _forward(
    model: BeatsModel,
    params: Any,
    waveforms: Float[Array, "B S"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T D"]:
    return model.apply({"params": params}, log_mel_on_device(waveforms), lengths)


# -- sounds in, features out ----------------------------------------------------------------------


class Beats:
    """A loaded BEATs: waveforms -> features, on all devices of this process.

    Attributes:
      config: the architecture.
      width: of a step, 6144 for the released models.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: Any = jnp.float32, devices: int | None = None
    ):
        """Puts the weights on the devices.

        Args:
          checkpoint: of `read_checkpoint` or `random_checkpoint`.
          dtype: of the computation, float32 or bfloat16; weights are kept in float32.
          devices: how many of this process's devices; None is all.
        """
        name = jnp.dtype(dtype).name
        if name not in DTYPES:
            raise InputError(f"BEATs: expected dtype float32 or bfloat16, got {name}")
        self.config = checkpoint.config
        self.width = PATCHES_A_STEP * self.config.encoder_embed_dim
        self._model = BeatsModel(self.config, jnp.dtype(dtype))
        self._weights = checkpoint.fingerprint()
        self._mesh: Mesh = sharding.local_mesh(devices)
        self._params = sharding.put_replicated(to_params(checkpoint), self._mesh)

    def encode(
        self, waveforms: Sequence[np.ndarray], alone: bool = False
    ) -> list[Float[np.ndarray, "_steps width"]]:
        """Every sound's features, `width` numbers for each 0.16 s.

        A sound's features do not depend on the sounds beside it (but for float32 rounding).

        Args:
          waveforms: `[S]` each: mono, 16 kHz, in [-1, 1], at most 60 s.
          alone: one sound a device at a time: no bit depends on the sounds beside it.

        Returns:
          float32 `[step_count(S), width]` each; no rows for a sound of less than 175 ms.

        Raises:
          InputError: too long, not finite, far outside of [-1, 1], or not one-dimensional floats.
        """
        sounds = _checked_sounds(waveforms)
        features = [np.zeros((0, self.width), np.float32) for _ in sounds]
        for indices, values in self._run(sounds, 1 if alone else None):
            for row, index in enumerate(indices):
                steps = step_count(len(sounds[index]))
                features[index] = values[row, :steps].astype(np.float32)
        return features

    def fingerprint(self) -> dict:
        """Everything that features depend on; JSON types only."""
        return {
            "name": "beats",
            "revision": 1,  # raise it when the features' values change
            "weights": self._weights,
            "config": asdict(self.config),
            "dtype": jnp.dtype(self._model.dtype).name,
            "log_mel": [LOG_MEL_CENTRE, LOG_MEL_SCALE],
            "fbank": {
                "rate_hz": fbank.RATE_HZ,
                "samples": [fbank.WINDOW_SAMPLES, fbank.HOP_SAMPLES, fbank.FFT_SAMPLES],
                "mel_bins": MEL_BINS,
                "hz": [fbank.LOW_HZ, fbank.HIGH_HZ],
                "preemphasis": fbank.PREEMPHASIS,
                "window": f"povey {fbank.POVEY_EXPONENT}",
                "floor": fbank.ENERGY_FLOOR,
            },
        }

    def _run(
        self, sounds: list[np.ndarray], each: int | None
    ) -> Iterable[tuple[list[int], np.ndarray]]:
        """Batches of one shape: (which sounds, the model's rows); the next one runs already."""
        running, samples = None, [len(sound) for sound in sounds]
        for indices, steps, rows in _batches(samples, self._mesh.size, each):
            waveforms = np.zeros((rows, _samples(steps)), np.float32)
            lengths = np.zeros(rows, np.int32)
            for row, index in enumerate(indices):
                sound = sounds[index][: _samples(steps)]
                waveforms[row, : len(sound)] = sound
                lengths[row] = step_count(len(sounds[index]))
            inputs = sharding.put_batch((waveforms, lengths), self._mesh)
            result = _forward(self._model, self._params, *inputs)
            if running is not None:
                yield running[0], np.asarray(running[1])
            running = indices, result
        if running is not None:
            yield running[0], np.asarray(running[1])


def load(path: str | Path, dtype: Any = jnp.float32, devices: int | None = None) -> Beats:
    """BEATs from a released `.pt` file or from what `convert` made of it.

    >>> features = load(path).encode([waveform])  # doctest: +SKIP

    Raises:
      InputError: no such model in the file; the message says what was expected.
    """
    return Beats(read_checkpoint(path), dtype, devices)


def _samples(steps: int) -> int:
    """The shortest waveform of so many steps."""
    return (steps * PATCH_SIDE - 1) * fbank.HOP_SAMPLES + fbank.WINDOW_SAMPLES


def _batches(
    samples: list[int], devices: int, each: int | None = None
) -> Iterable[tuple[list[int], int, int]]:
    """Which sounds run together, padded to how many steps and rows: few different shapes.

    Rows are the devices times a power of two: `each`, or as many as `TOKENS_AT_ONCE` allows.
    """
    by_bucket: dict[int, list[int]] = {}
    for index, count in enumerate(samples):
        steps = step_count(count)
        if steps:
            bucket = next(bucket for bucket in STEP_BUCKETS if steps <= bucket)
            by_bucket.setdefault(bucket, []).append(index)
    for bucket, indices in sorted(by_bucket.items()):
        most = each or max(1, TOKENS_AT_ONCE // (bucket * PATCHES_A_STEP))
        most = devices * 2 ** (most.bit_length() - 1)
        for begin in range(0, len(indices), most):
            chunk = indices[begin : begin + most]
            rows = -(-len(chunk) // devices)
            yield chunk, bucket, devices * 2 ** (rows - 1).bit_length()


def _checked_sounds(waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
    sounds = [np.asarray(waveform) for waveform in waveforms]
    for index, sound in enumerate(sounds):
        fbank.check_waveform(sound, f"sound {index}")
        if len(sound) > MAX_SECONDS * fbank.RATE_HZ:
            raise InputError(
                f"sound {index}: expected at most {MAX_SECONDS} s, over which BEATs attends at "
                f"once, got {len(sound) / fbank.RATE_HZ:.1f} s; cut it into clips, say of 10 s"
            )
    return sounds
