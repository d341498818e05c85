"""BEATs' weights: what a checkpoint says about its model, and its tensors as Flax parameters.

Names and shapes are those of the released checkpoints (microsoft/unilm, beats).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from scav_jax.base.documents import parse_json
from scav_jax.base.errors import InputError, listed
from scav_jax.extract.backbones import torch_files, weights
from scav_jax.extract.backbones.weights import dense_params, norm_params, pair_shapes

PATCH_SIDE = 16  # frames and mel bins of a patch
MOST_LAYERS, MOST_SIZE = 1_000, 2**24  # of a model that there can be
METADATA_KEY = "beats"  # of the safetensors file: JSON with cfg
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
# Settings whose other values no released checkpoint has, and which we do not implement. A setting
# that a checkpoint leaves out has the default of BEATs' own code.
ONLY = {
    "input_patch_size": (PATCH_SIDE, -1),
    "layer_norm_first": (False, False),
    "activation_fn": ("gelu", "relu"),
    "relative_position_embedding": (True, False),
    "gru_rel_pos": (True, False),
}
NAMES_SHOWN = 4

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BeatsConfig:
    """What a BEATs checkpoint's `cfg` says about its architecture, by BEATs' own names.

    The defaults are those of BEATs' code for what a `cfg` leaves out; they are not those of the
    released models (see `ITER3_PLUS`).

    Attributes:
      embed_dim: width of a patch's embedding.
      conv_bias: whether patches are embedded with a bias.
      encoder_layers, encoder_embed_dim, encoder_ffn_embed_dim, encoder_attention_heads: of the
        Transformer.
      deep_norm: residuals weigh (2 layers)^(1/4), or 1.
      conv_pos, conv_pos_groups: kernel and groups of the convolutional position.
      num_buckets, max_distance: of the relative position table.
      finetuned_model, predictor_class: whether there is a classifier, and of how many classes.
    """

    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    deep_norm: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 1280
    finetuned_model: bool = False
    predictor_class: int = 527

    def __post_init__(self):
        for divisor in ("encoder_attention_heads", "conv_pos_groups"):
            if self.encoder_embed_dim % getattr(self, divisor):
                raise InputError(
                    f"BEATs cfg: expected encoder_embed_dim {self.encoder_embed_dim} to be a "
                    f"multiple of {divisor}, got {getattr(self, divisor)}"
                )
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            raise InputError(
                "BEATs cfg: expected num_buckets to be a multiple of 4 and max_distance above a "
                f"quarter of it, got {self.num_buckets} and {self.max_distance}"
            )

    @classmethod
    def from_checkpoint(cls, cfg: Mapping[str, Any]) -> "BeatsConfig":
        """The configuration of a checkpoint; what only concerns training is passed over."""
        for name, (expected, default) in ONLY.items():
            value = cfg.get(name, default)
            if isinstance(value, np.ndarray) or value != expected:
                raise InputError(
                    f"BEATs cfg: expected {name} {expected!r}, got {short(value)}, which is not "
                    "implemented; use a released BEATs_iter checkpoint (tokenizers are others)"
                )
        named = {field.name: cfg[field.name] for field in fields(cls) if field.name in cfg}
        for field in fields(cls):
            value = named.get(field.name, field.default)
            most = MOST_LAYERS if field.name == "encoder_layers" else MOST_SIZE
            if type(value) is not field.type or (field.type is int and not 1 <= value <= most):
                raise InputError(
                    f"BEATs cfg: expected {field.name} to be a "
                    f"{f'number from 1 to {most:,}' if field.type is int else 'bool'}, got "
                    f"{short(value)}"
                )
        return cls(**named)

    def checkpoint_cfg(self) -> dict[str, Any]:
        """The `cfg` that `from_checkpoint` makes this of."""
        return {**{name: value for name, (value, _) in ONLY.items()}, **asdict(self)}


ITER3_PLUS = BeatsConfig(
    deep_norm=True, max_distance=800, finetuned_model=True, predictor_class=527
)  # "Fine-tuned BEATs_iter3+ (AS2M) (cpt2)", which the paper uses


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's content.

    Attributes:
      config: the architecture.
      state: float32 arrays by the checkpoint's names; the position table once, under layer 0.
    """

    config: BeatsConfig
    state: State

    def fingerprint(self) -> str:
        """A hash of what tokens depend on: every tensor but the classifier's."""
        digest = hashlib.sha256()
        for name in sorted(self.state):
            if not name.startswith("predictor."):
                array = np.ascontiguousarray(self.state[name], np.float32)
                digest.update(f"{name} {array.shape}\n".encode())
                digest.update(array.data)
        return digest.hexdigest()


def expected_shapes(config: BeatsConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint; the position table once, under layer 0."""
    c = config
    width, kernel = c.encoder_embed_dim, c.conv_pos
    head_width = width // c.encoder_attention_heads
    shapes = {"patch_embedding.weight": (c.embed_dim, 1, PATCH_SIDE, PATCH_SIDE)}
    if c.conv_bias:
        shapes["patch_embedding.bias"] = (c.embed_dim,)
    shapes |= pair_shapes("layer_norm", c.embed_dim)
    if c.embed_dim != width:
        shapes |= pair_shapes("post_extract_proj", width, c.embed_dim)
    shapes |= {
        "encoder.pos_conv.0.weight_g": (1, 1, kernel),
        "encoder.pos_conv.0.weight_v": (width, width // c.conv_pos_groups, kernel),
        "encoder.pos_conv.0.bias": (width,),
        **pair_shapes("encoder.layer_norm", width),
        TABLE.format(0): (c.num_buckets, c.encoder_attention_heads),
    }
    for index in range(c.encoder_layers):
        layer = f"encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= pair_shapes(f"{layer}.self_attn.{name}", width, width)
        shapes |= {
            **pair_shapes(f"{layer}.self_attn.grep_linear", 8, head_width),
            f"{layer}.self_attn.grep_a": (1, c.encoder_attention_heads, 1, 1),
            **pair_shapes(f"{layer}.self_attn_layer_norm", width),
            **pair_shapes(f"{layer}.fc1", c.encoder_ffn_embed_dim, width),
            **pair_shapes(f"{layer}.fc2", width, c.encoder_ffn_embed_dim),
            **pair_shapes(f"{layer}.final_layer_norm", width),
        }
    if c.finetuned_model:
        shapes |= pair_shapes("predictor", c.predictor_class, width)
    return shapes


# -- files ----------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A released `.pt` file, or what `convert` made of it.

    Raises:
      InputError: another kind of file, a model that we do not have, missing or surplus tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        cfg, state = _read_safetensors(path)
    else:
        content = torch_files.read(path)
        if not (isinstance(content.get("cfg"), dict) and isinstance(content.get("model"), dict)):
            raise InputError(
                f"{path}: expected BEATs' checkpoint with 'cfg' and 'model', got "
                f"{sorted(map(str, content))[:NAMES_SHOWN]}; is it another model's?"
            )
        cfg, state = content["cfg"], content["model"]
    try:
        return make_checkpoint(cfg, state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def make_checkpoint(cfg: Mapping[str, Any], state: Mapping[str, Any]) -> Checkpoint:
    """Checks the parts of a checkpoint against each other."""
    config = BeatsConfig.from_checkpoint(cfg)
    return Checkpoint(config, _checked(_without_copies(state, config), expected_shapes(config)))


def _without_copies(state: Mapping[str, Any], config: BeatsConfig) -> dict[str, Any]:
    """Without the position tables of layers 1, 2, ..: BEATs' layers share the first one's."""
    state = dict(state)
    first = state.get(TABLE.format(0))
    for index in range(1, config.encoder_layers):
        copy = state.pop(TABLE.format(index), first)
        if first is not None and not np.array_equal(copy, first):
            raise InputError(
                f"{TABLE.format(index)}: expected the same table as layer 0's, got another; "
                "is this a checkpoint of BEATs?"
            )
    return state


def _checked(state: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> State:
    for what, names in (("lacks", shapes.keys() - state), ("has also", state.keys() - shapes)):
        if names:
            raise InputError(
                f"expected the {len(shapes)} tensors that the cfg asks for, but the file {what} "
                f"{listed(sorted(map(str, names)), NAMES_SHOWN)}; is it a checkpoint of BEATs with "
                "its own cfg?"
            )
    for name, shape in shapes.items():
        array = state[name]
        if not isinstance(array, np.ndarray) or array.shape != shape:
            got = array.shape if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{name}: expected shape {shape}, got {got}")
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise InputError(f"{name}: expected floating point numbers, got {array.dtype}")
    return {name: np.asarray(state[name], np.float32) for name in shapes}


def convert(source: str | Path, target: str | Path) -> None:
    """Writes a `.pt` checkpoint as safetensors, which opens faster; `read_checkpoint` reads both.

    The metadata hold `cfg` as JSON under "beats". The file appears whole or not at all.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors; choose one")
    checkpoint = read_checkpoint(source)
    about = {"cfg": checkpoint.config.checkpoint_cfg()}
    metadata = {METADATA_KEY: json.dumps(about, sort_keys=True)}
    weights.write(target, checkpoint.state, metadata)


def _read_safetensors(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    state = weights.read(path)
    metadata = weights.read_header(path)[0].get(weights.METADATA) or {}
    try:
        about = parse_json(metadata.get(METADATA_KEY, "null"))
    except ValueError:
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("cfg"), dict):
        raise InputError(
            f"{path}: expected BEATs' cfg in the metadata under {METADATA_KEY!r}, got none; "
            "make the file with scav extract backbones"
        )
    return about["cfg"], state


# -- parameters -----------------------------------------------------------------------------------


def folded_position_kernel(state: State) -> np.ndarray:
    """The kernel `[kernel, in / groups, out]` of `weight_g`, `weight_v`: weight_norm with dim=2.

    `w[:, :, k] = g[k] v[:, :, k] / ||v[:, :, k]||`.
    """
    gain = state["encoder.pos_conv.0.weight_g"].astype(np.float64)
    direction = state["encoder.pos_conv.0.weight_v"].astype(np.float64)
    norm = np.sqrt(np.sum(np.square(direction), axis=(0, 1), keepdims=True))
    return (gain * direction / norm).transpose(2, 1, 0).astype(np.float32)


def to_params(checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameters of `beats.BeatsModel`, float32."""
    config, state = checkpoint.config, checkpoint.state
    patches = {"kernel": state["patch_embedding.weight"].reshape(config.embed_dim, -1).T}
    if config.conv_bias:
        patches["bias"] = state["patch_embedding.bias"]
    params = {
        "patch_embedding": patches,
        "patch_norm": norm_params(state, "layer_norm"),
        "conv_position": {
            "kernel": folded_position_kernel(state),
            "bias": state["encoder.pos_conv.0.bias"],
        },
        "norm": norm_params(state, "encoder.layer_norm"),
        "position_table": state[TABLE.format(0)],
    }
    if config.embed_dim != config.encoder_embed_dim:
        params["projection"] = dense_params(state, "post_extract_proj")
    for index in range(config.encoder_layers):
        params[f"layer_{index}"] = _layer_params(state, f"encoder.layers.{index}")
    return params


def _layer_params(state: State, layer: str) -> dict[str, Any]:
    attention = f"{layer}.self_attn"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return {
        "attention": {
            **{ours: dense_params(state, f"{attention}.{its}") for ours, its in names.items()},
            "gate": dense_params(state, f"{attention}.grep_linear"),
            "head_scale": state[f"{attention}.grep_a"].reshape(-1),
        },
        "attention_norm": norm_params(state, f"{layer}.self_attn_layer_norm"),
        "feedforward_in": dense_params(state, f"{layer}.fc1"),
        "feedforward_out": dense_params(state, f"{layer}.fc2"),
        "feedforward_norm": norm_params(state, f"{layer}.final_layer_norm"),
    }


def random_checkpoint(config: BeatsConfig, seed: int) -> Checkpoint:
    """`random_weights` as a checkpoint."""
    return Checkpoint(config, random_weights(config, seed))


def random_weights(config: BeatsConfig, seed: int) -> dict[str, np.ndarray]:
    """Weights under the released names: for tests, self-checks and timing, not for features.

    Every tensor is random, so that no zero or one hides a mistake, and of a scale at which
    activations stay near 1. The same on every machine.
    """
    state = {}
    rng = np.random.default_rng(seed)
    for name, shape in expected_shapes(config).items():
        noise = rng.standard_normal(shape, np.float32)
        if ("norm." in name and name.endswith("weight")) or name.endswith("grep_a"):
            state[name] = 1 + 0.1 * noise
        elif name.endswith("weight_g"):
            state[name] = 1 + 0.2 * np.abs(noise)
        elif name.endswith("relative_attention_bias.weight"):
            state[name] = 0.5 * noise
        elif name.endswith("bias"):
            state[name] = 0.1 * noise
        else:
            fan_in = math.prod(shape[1:])
            state[name] = noise / np.float32(math.sqrt(fan_in))
    return state
