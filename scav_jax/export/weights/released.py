"""The released weights of EquiAV and CAV-MAE as models of ours.

Files are read as data (`torch_files`): nothing in them is executed. Every tensor is accounted for:
it becomes a parameter, or a pattern here says why not, or the file is refused. The result is a
`Run` that `export` writes, so that evaluate, index, search and web take it.

EquiAV's blocks carry four norms each that its code never uses (147,456 numbers), CAV-MAE's too, and
the latter's decoder is for reconstruction. CAV-MAE's last block is shared by both modalities, with
norms for each: it is a block of either tower here, with the same weights.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scav_jax.base.errors import InputError, check_one_of, listed
from scav_jax.extract import backbones
from scav_jax.extract.backbones import torch_files, weights
from scav_jax.training.config import Config, as_dict
from scav_jax.training.runs import Run, build, parameter_shapes

PATCH, BINS, CHANNELS = 16, 128, 3
HEAD_WIDTH = 64  # of a ViT
FRAMES = 10  # of a clip, as both systems prepare them
LETTERS = {"visual": "v", "audio": "a"}
NAMES_SHOWN = 4
POSITION_TOLERANCE = 1e-4
# Wrappers around the model whose names a checkpoint may carry.
PREFIXES = ("module.", "__M__.")
# (mean, deviation) of the log-mel that each was trained with.
NORMALISED_BY = {"equiav": (-4.346, 4.332), "cav_mae": (-5.081, 4.4849)}
# What is in a file and used by nothing: pattern -> why.
UNUSED = {
    "equiav": {r"blocks_[av]\.\d+\.norm[12]_[av]\.(weight|bias)": "norms that the code never uses"},
    "cav_mae": {
        r"blocks_[av]\.\d+\.norm[12]_[av]\.(weight|bias)": "norms that the code never uses",
        r"blocks_u\.\d+\.norm[12]\.(weight|bias)": "norms of both modalities together",
        r"norm\.(weight|bias)": "the norm of both modalities together",
        r"decoder_.*|mask_token": "the decoder, for reconstruction",
    },
}

State = dict[str, np.ndarray]


def read(path: str | Path) -> State:
    """The tensors of a .pth, .pt or .safetensors file, wrappers' names taken off.

    Raises:
      InputError: another file, one that holds more than tensors, or NaN.
    """
    path = Path(path)
    read_file = weights.read if path.suffix == ".safetensors" else torch_files.read
    try:
        found = read_file(path)
    except OSError as error:
        raise InputError(f"{path}: expected a file of weights ({error})") from None
    if isinstance(found.get("model"), dict):
        found = found["model"]
    state = {}
    for name, values in found.items():
        while name.startswith(PREFIXES):
            name = name.removeprefix(next(p for p in PREFIXES if name.startswith(p)))
        if not isinstance(values, np.ndarray):
            raise InputError(
                f"{path}: expected tensors only, {name!r} is a {type(values).__name__}"
            )
        if name in state:
            raise InputError(f"{path}: expected each tensor once, got {name!r} under two names")
        state[name] = np.asarray(values, np.float32)
        if not np.isfinite(state[name]).all():
            raise InputError(
                f"{path}: expected finite weights, {name!r} has NaN or infinity; it is damaged, or "
                "of a training that diverged"
            )
    return state


def convert(path: str | Path, system: str, heads: int | None = None) -> tuple[Run, dict[str, int]]:
    """A released model as a run of ours.

    Args:
      path: of the weights.
      system: "equiav" or "cav_mae".
      heads: of attention; None takes the width in heads of 64, as in a ViT.

    Returns:
      The run, and how many numbers of the file nothing uses, by the reason.

    Raises:
      InputError: a file of something else: tensors that are missing, left over (named) or of
        another shape, positions that are not the fixed ones.
    """
    check_one_of("--from", system, UNUSED)
    reader = _Reader(read(path), path)
    config = _config(reader, system, heads)
    towers = {stream: _tower(reader, system, stream, config) for stream in LETTERS}
    make_heads = {"equiav": _equiav_heads, "cav_mae": _cav_mae_heads}[system]
    flat = flatten_dict({"encoders": towers, "heads": make_heads(reader)}, sep=".")
    if system == "cav_mae":
        flat["log_temperature.pixels"] = np.log(np.float32(0.05))  # the constant of its loss
    unused = reader.finish(UNUSED[system])
    encoders, objective = build(config)
    widths = {"visual": config.encoders.side**2 * CHANNELS, "audio": PATCH * BINS}
    like = flatten_dict(parameter_shapes(encoders, objective, widths), sep=".")
    shapes, expected = ({n: x.shape for n, x in some.items()} for some in (flat, like))
    wrong = [n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n)]
    if wrong:
        raise InputError(
            f"{path}: expected {system}'s layers, {sorted(wrong)[:NAMES_SHOWN]} differ"
        )
    return _run(config, unflatten_dict(flat, sep="."), widths, Path(path)), unused


def _run(config: Config, params: dict, widths: dict, path: Path) -> Run:
    options = {"visual": {"frames": FRAMES, "side": config.encoders.side}}
    fingerprint = backbones.make_fingerprint(backbones.load("pixels", options=options))
    about = {"fingerprint": fingerprint, "widths": widths, "clips": {}}
    document = as_dict(config) | {"features": about}
    return Run(path, document, *build(config), jax.tree.map(np.asarray, params), fingerprint)


class _Reader:
    """Tensors that are taken one after the other; what is left at the end is an error."""

    def __init__(self, state: State, path: str | Path):
        self._state, self._left, self._path = state, dict(state), path

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; `InputError` where there is none."""
        if name not in self._state:
            raise InputError(
                f"{self._path}: expected a tensor {name!r}, got none; it is of another system, or "
                "damaged"
            )
        return self._state[name].shape

    def size(self, name: str, axis: int) -> int:
        """Of one axis of a tensor; `InputError` where it has none, or nothing in it."""
        shape = self.shape(name)
        if len(shape) <= axis or 0 in shape:
            raise InputError(
                f"{self._path}: {name}: expected another shape than {list(shape)}; it is of "
                "another system, or damaged"
            )
        return shape[axis]

    def take(self, name: str, make: Callable = np.asarray) -> np.ndarray:
        """A tensor, which may be taken again."""
        self.shape(name)
        self._left.pop(name, None)
        try:
            return np.ascontiguousarray(make(self._state[name]))
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"{self._path}: {name}: expected another shape ({error})") from None

    def dense(self, name: str, bias: bool = True) -> dict:
        found = {"kernel": self.take(f"{name}.weight", np.transpose)}
        return found | ({"bias": self.take(f"{name}.bias")} if bias else {})

    def norm(self, name: str) -> dict:
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}

    def count(self, prefix: str) -> int:
        """How many blocks a list has."""
        pattern = re.compile(rf"{prefix}\.(\d+)\.")
        numbers = {int(found[1]) for name in self._state if (found := pattern.match(name))}
        return 1 + max(numbers, default=-1)

    def finish(self, unused: Mapping[str, str]) -> dict[str, int]:
        """How many numbers are used by nothing, by the reason; `InputError` for unknown tensors."""
        found: dict[str, int] = {}
        unknown = []
        for name, values in self._left.items():
            why = next((why for p, why in unused.items() if re.fullmatch(p, name)), None)
            if why is None:
                unknown.append(name)
            else:
                found[why] = found.get(why, 0) + values.size
        if unknown:
            raise InputError(
                f"{self._path}: expected no other tensors, got {len(unknown)} "
                f"({listed(sorted(unknown), NAMES_SHOWN)}); it is of another system, or damaged"
            )
        return found


# ---- what the shapes say -------------------------------------------------------------------------


def _config(reader: _Reader, system: str, heads: int | None) -> Config:
    width = reader.size("modality_v", 2)
    heads = heads or max(width // HEAD_WIDTH, 1)
    if width % heads:
        raise InputError(
            f"--heads: expected a number that divides the width of {width}, got {heads}"
        )
    side = math.isqrt(reader.size("pos_embed_v", 1)) * PATCH
    shared = reader.count("blocks_u")
    for letter in LETTERS.values():
        reader.size(f"blocks_{letter}.0.mlp.fc1.weight", 0)  # towers without a block are none
    mean, std = NORMALISED_BY[system]
    objective: dict = {
        "name": {"equiav": "equivariant", "cav_mae": "pixels"}[system],
        "audio_frames": reader.size("pos_embed_a", 1) * PATCH // (BINS // PATCH),
        "audio_mean": mean,
        "audio_std": std,
    }
    if system == "equiav":
        frames = objective["audio_frames"]
        objective |= {
            "hidden": reader.size("pred_v_intra.fc1.weight", 0),
            "intra_width": reader.size("pred_v_intra.fc3.weight", 0),
            "inter_width": reader.size("pred_v_inter.fc3.weight", 0),
            "code_width": reader.size("aug_encoder_v.0.weight", 0),
            "time_mask": min(192, frames),
        }
    return Config().replace(
        data={"path": "", "backbone": "pixels", "buckets": 1},
        encoders={
            "name": "patches",
            "width": width,
            "visual_blocks": reader.count("blocks_v") + shared,
            "audio_blocks": reader.count("blocks_a") + shared,
            "heads": heads,
            "feedforward": reader.size("blocks_v.0.mlp.fc1.weight", 0),
            "side": side,
        },
        objective=objective,
    )


# ---- layers --------------------------------------------------------------------------------------


def _tower(reader: _Reader, system: str, stream: str, config: Config) -> dict:
    letter, heads = LETTERS[stream], config.encoders.heads
    _check_positions(reader, letter, config.encoders.width)
    tower = {
        "modality": reader.take(f"modality_{letter}", lambda x: x.reshape(-1)),
        "patches": {
            "kernel": reader.take(f"patch_embed_{letter}.proj.weight", _patch_kernel),
            "bias": reader.take(f"patch_embed_{letter}.proj.bias"),
        },
    }
    own, shared = reader.count(f"blocks_{letter}"), reader.count("blocks_u")
    blocks = [_block(reader, f"blocks_{letter}.{number}", "", heads) for number in range(own)]
    blocks += [
        _block(reader, f"blocks_u.{number}", f"_{letter}", heads) for number in range(shared)
    ]
    if blocks:
        tower["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    return tower


def _patch_kernel(weight: np.ndarray) -> np.ndarray:
    """`[C, channels, 16, 16]` -> `[16 16 3, C]`; one channel is the first of three equal ones."""
    missing = CHANNELS - weight.shape[1]
    weight = np.pad(weight, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _block(reader: _Reader, name: str, norms: str, heads: int) -> dict:
    width = reader.size(f"{name}.attn.proj.weight", 0)
    each = (heads, width // heads)
    weight = reader.take(f"{name}.attn.qkv.weight", lambda x: x.reshape(3, *each, width))
    bias = reader.take(f"{name}.attn.qkv.bias", lambda x: x.reshape(3, *each))
    attention = {
        part: {"kernel": np.moveaxis(weight[k], -1, 0), "bias": bias[k]}
        for k, part in enumerate(("query", "key", "value"))
    }
    out = reader.dense(f"{name}.attn.proj")
    attention["out"] = out | {"kernel": out["kernel"].reshape(*each, width)}
    return {
        "attention_norm": reader.norm(f"{name}.norm1{norms}"),
        "attention": attention,
        "feedforward_norm": reader.norm(f"{name}.norm2{norms}"),
        "feedforward_in": reader.dense(f"{name}.mlp.fc1"),
        "feedforward_out": reader.dense(f"{name}.mlp.fc2"),
    }


def _check_positions(reader: _Reader, letter: str, width: int) -> None:
    """Ours are computed; a file with learned ones holds another model."""
    stored = reader.take(f"pos_embed_{letter}")[0]
    rows = BINS // PATCH if letter == "a" else math.isqrt(len(stored))
    row, column = np.divmod(np.arange(len(stored)), max(len(stored) // rows, 1))
    omega = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    angles = [place[:, None] * omega for place in (column, row)]
    fixed = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    if fixed.shape != stored.shape or np.abs(fixed - stored).max() > POSITION_TOLERANCE:
        raise InputError(
            f"pos_embed_{letter}: expected the fixed sine-cosine positions of {rows} rows, got "
            "others; learned positions are not supported"
        )


def _equiav_heads(reader: _Reader) -> dict:
    heads = {}
    for stream, letter in LETTERS.items():
        heads[f"norm_{stream}"] = reader.norm(f"norm_{letter}")
        heads[f"norm_{stream}_augmented"] = reader.norm(f"norm_{letter}_aug")
        heads[f"code_{stream}"] = {
            f"dense_{k}": reader.dense(f"aug_encoder_{letter}.{2 * (k - 1)}") for k in (1, 2, 3)
        }
        heads[f"predictor_{stream}"] = _predictor(reader, f"cross_attn_{letter}")
        for kind in ("intra", "inter"):
            name = f"pred_{letter}_{kind}"
            heads[f"{kind}_{stream}"] = {
                f"{ours}_{k}": make(f"{name}.{theirs}{k}")
                for k in (1, 2, 3)
                for ours, theirs, make in (("dense", "fc", reader.dense), ("norm", "norm",
                                                                           reader.norm))
            }  # fmt: skip
    return heads


def _predictor(reader: _Reader, name: str) -> dict:
    found = {"norm_codes": reader.norm(f"{name}.norm_aug"), "norm": reader.norm(f"{name}.norm")}
    for ours in ("query", "key", "value"):
        layer = f"{name}.attn.to_{ours[0]}"
        found[ours] = {
            "kernel": reader.take(
                f"{layer}.weight", lambda x: x.T.reshape(x.shape[1], -1, HEAD_WIDTH)
            ),
            "bias": reader.take(f"{layer}.bias", lambda x: x.reshape(-1, HEAD_WIDTH)),
        }
    out = reader.take(f"{name}.attn.to_out.weight", lambda x: x.T.reshape(-1, HEAD_WIDTH, len(x)))
    found["out"] = {"kernel": out}
    return found | {
        "mlp_in": reader.dense(f"{name}.mlp.fc1"),
        "mlp_out": reader.dense(f"{name}.mlp.fc2"),
    }


def _cav_mae_heads(reader: _Reader) -> dict:
    return {f"norm_{stream}": reader.norm(f"norm_{letter}") for stream, letter in LETTERS.items()}
