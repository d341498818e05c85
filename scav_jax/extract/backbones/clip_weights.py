"""Hugging Face's names for CLIP's tensors -> Flax parameters, every tensor accounted for.

Released files say `vision_model.encoder...`; files of a bare tower may leave the prefix out.
"""

import zlib
from collections.abc import Mapping

import numpy as np

from scav_jax.base.errors import InputError, listed
from scav_jax.extract.backbones.clip_towers import ClipConfig, TextConfig, VisionConfig
from scav_jax.extract.backbones.weights import dense_params, norm_params, pair_shapes

PREFIXES = {"vision": "vision_model.", "text": "text_model."}
PROJECTIONS = {"vision": "visual_projection.weight", "text": "text_projection.weight"}
# Known, and of no use here: the contrastive temperature, and 0, 1, 2, ... as a buffer.
UNNEEDED = ("logit_scale", "embeddings.position_ids")
ATTENTION = ("q_proj", "k_proj", "v_proj")


def tensor_shapes(config: VisionConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    """Names, without a prefix, and shapes of a tower's tensors, its projection left out."""
    width, hidden = config.hidden_size, config.intermediate_size
    if isinstance(config, VisionConfig):
        side = config.patch_size
        shapes = {
            "embeddings.class_embedding": (width,),
            "embeddings.patch_embedding.weight": (width, 3, side, side),
            "embeddings.position_embedding.weight": (config.grid**2 + 1, width),
            **pair_shapes("pre_layrnorm", width),  # their spelling
            **pair_shapes("post_layernorm", width),
        }
    else:
        shapes = {
            "embeddings.token_embedding.weight": (config.vocab_size, width),
            "embeddings.position_embedding.weight": (config.max_position_embeddings, width),
            **pair_shapes("final_layer_norm", width),
        }
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        for name in (*ATTENTION, "out_proj"):
            shapes |= pair_shapes(f"{layer}.self_attn.{name}", width, width)
        shapes |= pair_shapes(f"{layer}.layer_norm1", width) | pair_shapes(
            f"{layer}.layer_norm2", width
        )
        shapes |= pair_shapes(f"{layer}.mlp.fc1", hidden, width)
        shapes |= pair_shapes(f"{layer}.mlp.fc2", width, hidden)
    return shapes


def select(
    arrays: Mapping[str, np.ndarray], config: ClipConfig, tower: str, project: bool, where: str
) -> dict[str, np.ndarray]:
    """The tensors of one tower under names without a prefix, all names and shapes checked.

    Args:
      arrays: the file's tensors.
      config: what the file's own configuration says.
      tower: "vision" or "text".
      project: whether the projection is wanted too.
      where: the file, for messages.

    Raises:
      InputError: a missing tensor, one of another shape, or one that nobody knows.
    """
    wanted = tower_of(config, tower, where)
    prefix = PREFIXES[tower]
    if project and wanted.projection_dim is None:
        raise InputError(f"{where}: expected a projection_dim in config.json, got null")
    shapes = _in_a_file(config, tower, project)
    arrays = _with_prefix(arrays, config)
    known = {name for one in _towers(config) for name in _in_a_file(config, one, True)}
    surplus = [name for name in arrays if name not in known and not name.endswith(UNNEEDED)]
    missing = [name for name in shapes if name not in arrays]
    if missing or surplus:
        raise InputError(
            f"{where}: expected the tensors that config.json implies, got {len(missing)} missing "
            f"({listed(missing)}) and {len(surplus)} unknown ({listed(surplus)}); do config.json "
            "and the weights belong together?"
        )
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise InputError(
                f"{where}: {name}: expected shape {list(shape)} as config.json implies, got "
                f"{list(arrays[name].shape)}; do config.json and the weights belong together?"
            )
        if not np.issubdtype(arrays[name].dtype, np.floating) and arrays[name].dtype.kind != "V":
            raise InputError(f"{where}: {name}: expected numbers, got {arrays[name].dtype}")
    return {name.removeprefix(prefix): arrays[name] for name in shapes}


def tower_of(config: ClipConfig, tower: str, where: str) -> VisionConfig | TextConfig:
    """That tower's configuration; `InputError` where the model has none."""
    wanted = getattr(config, tower)
    if wanted is None:
        raise InputError(f"{where}: expected a model with a {tower} tower, got one without")
    return wanted


def _towers(config: ClipConfig) -> list[str]:
    return [name for name in PREFIXES if getattr(config, name) is not None]


def _in_a_file(config: ClipConfig, tower: str, project: bool) -> dict[str, tuple[int, ...]]:
    """Names, with prefixes, and shapes of a tower's tensors, its projection among them or not."""
    wanted = getattr(config, tower)
    shapes = {PREFIXES[tower] + name: shape for name, shape in tensor_shapes(wanted).items()}
    if project:
        shapes[PROJECTIONS[tower]] = (wanted.projection_dim, wanted.hidden_size)
    return shapes


def _with_prefix(arrays: Mapping[str, np.ndarray], config: ClipConfig) -> dict[str, np.ndarray]:
    """The same tensors with the prefix that files of a bare tower may lack."""
    towers = _towers(config)
    if len(towers) != 1 or any(name.startswith(tuple(PREFIXES.values())) for name in arrays):
        return dict(arrays)
    outside = (*PROJECTIONS.values(), "logit_scale")
    prefix = PREFIXES[towers[0]]
    return {name if name in outside else prefix + name: x for name, x in arrays.items()}


def parameters(tensors: Mapping[str, np.ndarray], config: VisionConfig | TextConfig) -> dict:
    """Flax parameters (float32) from one tower's tensors as `select` gives them."""
    t = {name: np.asarray(x).astype(np.float32, copy=False) for name, x in tensors.items()}
    positions = t["embeddings.position_embedding.weight"]
    if isinstance(config, VisionConfig):
        kernel = t["embeddings.patch_embedding.weight"]  # [out, channel, row, column]
        kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, config.hidden_size)
        params = {
            "class_embedding": t["embeddings.class_embedding"],
            "patch_embedding": {"kernel": kernel},
            "position_embedding": positions,
            "input_norm": norm_params(t, "pre_layrnorm"),
            "output_norm": norm_params(t, "post_layernorm"),
        }
        projection = PROJECTIONS["vision"]
    else:
        params = {
            "token_embedding": t["embeddings.token_embedding.weight"],
            "position_embedding": positions,
            "output_norm": norm_params(t, "final_layer_norm"),
        }
        projection = PROJECTIONS["text"]
    if projection in t:
        params["projection"] = {"kernel": t[projection].T}
    for index in range(config.num_hidden_layers):
        params[f"block_{index}"] = _block(t, f"encoder.layers.{index}")
    return params


def _block(t: Mapping[str, np.ndarray], layer: str) -> dict[str, dict]:
    attention = f"{layer}.self_attn"
    return {
        "attention_norm": norm_params(t, f"{layer}.layer_norm1"),
        "qkv": {
            "kernel": np.concatenate([t[f"{attention}.{n}.weight"] for n in ATTENTION]).T,
            "bias": np.concatenate([t[f"{attention}.{n}.bias"] for n in ATTENTION]),
        },
        "out": dense_params(t, f"{attention}.out_proj"),
        "feedforward_norm": norm_params(t, f"{layer}.layer_norm2"),
        "feedforward_in": dense_params(t, f"{layer}.mlp.fc1"),
        "feedforward_out": dense_params(t, f"{layer}.mlp.fc2"),
    }


def random_weights(config: ClipConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 tensors under Hugging Face's names, prefixes included, for tests and self-checks.

    The numbers come from PCG64's raw stream, which NumPy promises never to change, and depend on
    each tensor's own name: a tower has the same weights with and without the other. No value is
    special (norms are not one, biases are not zero), so that every tensor matters.
    """
    shapes = {}
    for tower in _towers(config):
        shapes |= _in_a_file(config, tower, getattr(config, tower).projection_dim is not None)
    return {name: _random(name, shape, seed) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    count = int(np.prod(shape))
    stream = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw = stream.random_raw(-(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]
    uniform = (raw >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)  # [-1, 1)
    if "norm" in name or "layrnorm" in name:
        centre, spread = (1.0, 0.3) if name.endswith("weight") else (0.0, 0.1)
    elif "embedding" in name and "patch" not in name:
        centre, spread = 0.0, 0.5
    elif len(shape) > 1:  # variance 1 / inputs keeps activations of order one
        centre, spread = 0.0, float(np.sqrt(3 / np.prod(shape[1:])))
    else:
        centre, spread = 0.0, 0.1
    return (np.float32(centre) + np.float32(spread) * uniform).reshape(shape)
