"""CLIP's two towers in Flax (Radford et al. 2021), for any ViT configuration of Hugging Face.

Pre-LN Transformers over patches (vision) and tokens (text). Parameters are float32; `dtype` is
that of the matrix products. The residual stream, norms and softmax are float32 always.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from scav_jax.base.documents import read_object
from scav_jax.base.errors import InputError

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
FLOAT32 = np.dtype(np.float32)
MOST_LAYERS, MOST_SIZE = 1_000, 2**24  # of a model that there can be
LEGACY_EOS = 2  # in old files, whatever the tokenizer says: then EOS is the highest id of a row


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower's shape. Defaults are transformers', since files leave them out."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def grid(self) -> int:
        """Patches along a side; pixels that fill no patch are left out, as a convolution does."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower's shape. Defaults are transformers', since files leave them out."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """One or both towers; `None` where the file has none."""

    vision: VisionConfig | None = None
    text: TextConfig | None = None


def read_config(source: str | Path | Mapping) -> ClipConfig:
    """A Hugging Face `config.json` (its path, its directory, or its content).

    Reads CLIPModel's (`vision_config`, `text_config`, one `projection_dim` for both) and those of
    the bare towers (`clip_vision_model`, `clip_text_model`).

    Raises:
      InputError: no such file, another kind of model, or a value that has no meaning here.
    """
    content, where = (source, "config") if isinstance(source, Mapping) else _read_json(source)
    kind = content.get("model_type", "clip" if "vision_config" in content else None)
    if kind == "clip_vision_model":
        return ClipConfig(vision=_tower_config(VisionConfig, content, where))
    if kind == "clip_text_model":
        return ClipConfig(text=_tower_config(TextConfig, content, where))
    if kind != "clip":
        raise InputError(
            f"{where}: model_type: expected clip, clip_vision_model or clip_text_model, "
            f"got {short(kind)}; only CLIP with a ViT is known here"
        )
    towers = {}
    for name, config in (("vision", VisionConfig), ("text", TextConfig)):
        fields = _mapping(content, f"{name}_config", where) or {}
        legacy = _mapping(content, f"{name}_config_dict", where)
        if legacy is not None:  # transformers lets it and its defaults win over the other
            fields = {**fields, **dataclasses.asdict(config()), **legacy}
        fields["projection_dim"] = content.get("projection_dim", 512)
        towers[name] = _tower_config(config, fields, f"{where}: {name}_config")
    return ClipConfig(**towers)


def _read_json(path: str | Path) -> tuple[dict, str]:
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        content = read_object(path, "CLIP's configuration", "download it again")
    except FileNotFoundError:
        raise InputError(f"{path}: expected CLIP's configuration, got no such file") from None
    return content, str(path)


def _mapping(content: Mapping, name: str, where: str) -> dict | None:
    """A part of a configuration that is an object; None where it is left out."""
    value = content.get(name)
    if value is None or isinstance(value, Mapping):
        return None if value is None else dict(value)
    raise InputError(f"{where}: {name}: expected a JSON object, got {short(value)}")


def _tower_config(config: type, fields: Mapping, where: str):
    """A tower's dataclass from the fields that it knows; the rest is for training."""
    values = {}
    for field in dataclasses.fields(config):
        if field.name in fields:
            values[field.name] = _value(field, fields[field.name], where)
    tower = config(**values)
    if fields.get("num_channels", 3) != 3:
        raise InputError(f"{where}: num_channels: expected 3, got {short(fields['num_channels'])}")
    if tower.hidden_size % tower.num_attention_heads:
        raise InputError(
            f"{where}: expected hidden_size divisible by num_attention_heads, got "
            f"{tower.hidden_size} and {tower.num_attention_heads}"
        )
    if isinstance(tower, VisionConfig) and tower.grid < 1:
        raise InputError(
            f"{where}: expected patch_size up to image_size, got {tower.patch_size} and "
            f"{tower.image_size}"
        )
    return tower


def _value(field: dataclasses.Field, value, where: str):
    """One checked value of a configuration."""
    if field.name == "hidden_act":
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise InputError(
                f"{where}: hidden_act: expected one of {sorted(ACTIVATIONS)}, got {short(value)}"
            )
        return value
    if field.name == "projection_dim" and value is None:
        return None
    if field.name in ("image_size", "patch_size", "eos_token_id") and isinstance(value, list):
        if not value or any(one != value[0] for one in value):
            raise InputError(f"{where}: {field.name}: expected one number, got {short(value)}")
        value = value[0]
    kinds = (int, float) if field.type is float else (int,)
    if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
        raise InputError(f"{where}: {field.name}: expected a positive number, got {short(value)}")
    most = MOST_LAYERS if field.name == "num_hidden_layers" else MOST_SIZE
    if value > most:
        raise InputError(f"{where}: {field.name}: expected at most {most:,}, got {short(value)}")
    return value


def _precision(dtype) -> jax.lax.Precision:
    """Accelerators round float32 products to TF32 or bfloat16 unless told not to."""
    full = jnp.dtype(dtype) == jnp.float32
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    """In float32, by the variance's definition: the mean of squares minus the squared mean loses
    the digits that CLIP's few huge channels leave."""
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class PreNormBlock(nn.Module):
    """One pre-LN Transformer block: attention, then two dense layers."""

    heads: int
    feedforward: int
    activation: str
    epsilon: float
    dtype: np.dtype = FLOAT32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], mask: Bool[Array, "T T"] | None
    ) -> Float[Array, "B T C"]:
        """`mask[q, k]`: whether step q may see step k; None: all see all."""
        y = _norm(self.epsilon, "attention_norm")(x)
        x = x + self._attention(y, mask).astype(x.dtype)
        y = _norm(self.epsilon, "feedforward_norm")(x)
        y = ACTIVATIONS[self.activation](self._dense(self.feedforward, "feedforward_in")(y))
        return x + self._dense(x.shape[-1], "feedforward_out")(y).astype(x.dtype)

    def _dense(self, width: int, name: str) -> nn.Dense:
        precision = _precision(self.dtype)
        return nn.Dense(width, dtype=self.dtype, precision=precision, name=name)

    def _attention(
        self, x: Float[Array, "B T C"], mask: Bool[Array, "T T"] | None
    ) -> Float[Array, "B T C"]:
        batch, steps, width = x.shape
        head_width = width // self.heads
        # query, key and value in one matrix product
        qkv = self._dense(3 * width, "qkv")(x).reshape(batch, steps, 3, self.heads, head_width)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        precision = _precision(self.dtype)
        logits = jnp.einsum(
            "bqhd,bkhd->bhqk",
            query,
            key,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        logits = logits * head_width**-0.5
        if mask is not None:
            logits = jnp.where(mask[None, None], logits, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=precision)
        return self._dense(width, "out")(mixed.reshape(batch, steps, width))


def _blocks(config: VisionConfig | TextConfig, dtype) -> list[PreNormBlock]:
    return [
        PreNormBlock(
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.layer_norm_eps,
            dtype,
            name=f"block_{index}",
        )
        for index in range(config.num_hidden_layers)
    ]


def _projection(width: int) -> nn.Dense:
    """No bias, and float32: one small product that decides similarities."""
    return nn.Dense(width, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="projection")


class VisionTower(nn.Module):
    """Pixels -> one vector a picture.

    Attributes:
      config: the tower's shape.
      project: the embedding that is compared with texts, instead of the pooled step.
      dtype: of the matrix products.
    """

    config: VisionConfig
    project: bool = False
    dtype: np.dtype = FLOAT32

    @nn.compact
    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """Normalised pixels -> the class step after the last norm, projected if asked.

        Returns: float32; D is `hidden_size`, or `projection_dim` if projected.
        """
        config, precision = self.config, _precision(self.dtype)
        width = config.hidden_size
        # A convolution whose stride is its kernel is a matrix product of the patches.
        x = nn.Dense(
            width, use_bias=False, dtype=self.dtype, precision=precision, name="patch_embedding"
        )(patches(pixels, config.patch_size)).astype(jnp.float32)
        class_step = self.param("class_embedding", nn.initializers.normal(0.02), (width,))
        first = jnp.broadcast_to(class_step[None, None], (len(x), 1, width))
        x = jnp.concatenate([first, x], axis=1)
        positions = (config.grid**2 + 1, width)
        position = self.param("position_embedding", nn.initializers.normal(0.02), positions)
        x = _norm(config.layer_norm_eps, "input_norm")(x + position[None])
        for block in _blocks(config, self.dtype):
            x = block(x, None)
        x = _norm(config.layer_norm_eps, "output_norm")(x[:, 0])
        if not self.project:
            return x
        return _projection(config.projection_dim)(x)


def patches(pixels: Float[Array, "B S S 3"], side: int) -> Float[Array, "B P L"]:
    """Squares of `side` pixels, row by row, each flattened as [row, column, channel]."""
    batch, size = pixels.shape[:2]
    grid = size // side
    x = pixels[:, : grid * side, : grid * side]
    x = x.reshape(batch, grid, side, grid, side, 3)
    return jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape(batch, grid * grid, side * side * 3)


class TextTower(nn.Module):
    """Token ids -> one vector a text; attributes as in `VisionTower`."""

    config: TextConfig
    project: bool = False
    dtype: np.dtype = FLOAT32

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Ids, each row with an EOS -> the EOS step after the last norm, projected if asked.

        Steps see earlier ones only, so whatever follows the EOS changes nothing.
        """
        config, steps = self.config, ids.shape[1]
        normal = nn.initializers.normal(0.02)
        tokens = self.param("token_embedding", normal, (config.vocab_size, config.hidden_size))
        positions = (config.max_position_embeddings, config.hidden_size)
        position = self.param("position_embedding", normal, positions)
        x = tokens[ids] + position[None, :steps]
        mask = jnp.asarray(np.tril(np.ones((steps, steps), bool)))
        for block in _blocks(config, self.dtype):
            x = block(x, mask)
        last = eos_position(ids, config.eos_token_id)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        x = _norm(config.layer_norm_eps, "output_norm")(x)
        if not self.project:
            return x
        return _projection(config.projection_dim)(x)


def eos_position(ids: Int[Array, "B T"], eos_token_id: int) -> Int[Array, " B"]:
    """Where each row is pooled: its first EOS, which old files leave to the highest id.

    >>> eos_position(jnp.asarray([[5, 9, 7, 7], [5, 6, 9, 7]]), 7).tolist()
    [2, 3]
    >>> eos_position(jnp.asarray([[5, 9, 7, 7], [5, 6, 9, 7]]), LEGACY_EOS).tolist()
    [1, 2]
    """
    if eos_token_id == LEGACY_EOS:
        return jnp.argmax(ids, axis=1)
    return jnp.argmax(ids == eos_token_id, axis=1)
