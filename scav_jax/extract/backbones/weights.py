"""Weights on disk: safetensors files read without copying, written whole or not at all.

The format is that of the `safetensors` library, which checks every file; tensors are views of the
mapped file, so that a worker process pays only for what it touches and several share the pages.
Models that are published without it are read from their `pytorch_model.bin`, as data
(`torch_files`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from scav_jax.base.documents import parse_json, read_object, regular_file
from scav_jax.base.errors import OUR_FAULTS, InputError, first_line, listed
from scav_jax.base.files import write_atomically
from scav_jax.extract.backbones import torch_files

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# What a download may bring: no weights of other frameworks, and `TORCH_FILE` only where there is
# nothing else.
DOWNLOADED = [
    *("config.json", "preprocessor_config.json", FILE, INDEX, "model-*-of-*.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
]
MOST_HEADER_BYTES = 2**23
METADATA = "__metadata__"  # of a header: text beside the tensors
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, or of the one model in a directory, by name.

    A directory holds `model.safetensors`, or `model.safetensors.index.json` and its shards, or a
    single file with that ending, or `pytorch_model.bin`, whose pickle is not executed. The arrays
    are read-only views of the mapped files.

    Raises:
      InputError: no such file, not a safetensors file, a damaged one, or a shard that is missing.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    if (path / FILE).exists():
        return _read_file(path / FILE)
    if (path / INDEX).exists():
        return _read_shards(path / INDEX)
    files = sorted(path.glob("*.safetensors"))
    if not files and (path / TORCH_FILE).exists():
        return _read_torch(path / TORCH_FILE)
    if len(files) != 1:
        others = sorted(p.name for p in path.iterdir())
        raise InputError(
            f"{path}: expected {FILE}, {INDEX} or {TORCH_FILE}, got {listed(others)}; "
            "weights in another format have to be converted to safetensors first"
        )
    return _read_file(files[0])


def write(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file, atomically; the bytes do not depend on the arrays' order.

    Args:
      path: of the file; its folder is made.
      arrays: by name, of any memory layout.
      metadata: text that travels in the file's header and changes no tensor.
    """
    from safetensors.numpy import save

    path = Path(path)
    # The library writes the memory as it lies: a transposed view would come back scrambled.
    content = save({name: np.asarray(x, order="C") for name, x in arrays.items()}, metadata)
    write_atomically(path, content)


def sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of the tensors alone: names, dtypes, shapes and values.

    The order of tensors, metadata, and how they are spread over files change nothing.

    >>> one, two = np.zeros(2), np.ones((3, 1))
    >>> sha256({"a": one, "b": two}) == sha256({"b": two, "a": one})
    True
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        head = json.dumps([name, array.dtype.name, list(array.shape)])
        total.update(head.encode() + b"\n")
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def pair_shapes(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weight and bias, as torch names them."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def dense_params(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A linear layer of torch's as one of Flax's."""
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def norm_params(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A norm of torch's as one of Flax's."""
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def locate(directory_or_hub_id: str | Path) -> Path:
    """The directory of that model: itself, or a snapshot of `owner/name[@revision]`.

    The snapshot is of config, weights and tokenizer; `pytorch_model.bin` comes only where the model
    has no safetensors.

    Raises:
      InputError: neither, or nothing could be had of the hub (see `snapshot`).
    """
    path = Path(directory_or_hub_id)
    if path.is_dir():
        return path
    match = HUB_ID.fullmatch(str(directory_or_hub_id))
    if path.exists() or not match:
        raise InputError(
            f"weights: expected a directory or a hub id like owner/name, got {directory_or_hub_id}"
        )
    folder = snapshot(match["id"], match["revision"], DOWNLOADED, "weights")
    if not any(folder.glob("*.safetensors")):
        folder = snapshot(match["id"], match["revision"], [*DOWNLOADED, TORCH_FILE], "weights")
    return folder


def snapshot(hub_id: str, revision: str | None, wanted: list[str], what: str) -> Path:
    """The files of a model on the Hugging Face hub, which checks and keeps what it downloads.

    Args:
      hub_id: `owner/name`.
      revision: a branch, a tag or a commit; None is the newest.
      wanted: patterns of file names.
      what: asks for it, for the message.

    Raises:
      InputError: nothing could be had: no network, no such model, no such revision.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except OUR_FAULTS:
        raise
    except Exception as error:  # HTTP, offline, cache and name errors have no common ancestor
        raise InputError(
            f"{what}: expected a directory or a model on the hub, got {hub_id!r}, which could not "
            f"be downloaded ({first_line(error)}); without a network, give a directory with "
            f"config.json and {FILE}"
        ) from error


def _read_file(path: Path) -> dict[str, np.ndarray]:
    header, begin = read_header(path)
    header.pop(METADATA, None)
    mapped = np.memmap(path, np.uint8, mode="r")
    return {name: _view(mapped, begin, name, entry, path) for name, entry in header.items()}


def read_header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file, which fits the file, and where in it the tensors begin.

    Raises:
      InputError: no such file, or another kind of file, or a part of one.
    """
    from safetensors import SafetensorError, safe_open

    mend = "download or convert it again"
    try:
        with regular_file(path, "a safetensors file", mend) as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MOST_HEADER_BYTES:
            raise ValueError(f"a header of more than {MOST_HEADER_BYTES:,} bytes")
        with safe_open(path, framework="numpy") as opened:  # checks it against the file's size
            opened.metadata()
        with open(path, "rb") as file:
            return parse_json(file.read(8 + size)[8:]), 8 + size
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a safetensors file, got no file of that name") from None
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise InputError(
            f"{path}: expected a safetensors file, got something else or a part of one "
            f"({_what(path, error)}); {mend}"
        ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model's state, as `torch.save` wrote it."""
    state = torch_files.read(path)
    other = [str(name) for name, value in state.items() if not isinstance(value, np.ndarray)]
    if other or not state:
        raise InputError(
            f"{path}: expected a tensor under every name, got something else under {listed(other)}"
            "; is it the state of one model?"
        )
    return state


def _view(mapped: np.ndarray, data: int, name: str, entry: dict, path: Path) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise InputError(
            f"{path}: {name}: expected a dtype of {sorted(DTYPES)}, got {entry['dtype']}"
        )
    begin = data + entry["data_offsets"][0]
    dtype = np.dtype(DTYPES[entry["dtype"]])
    return np.ndarray(tuple(entry["shape"]), dtype, buffer=mapped, offset=begin)


def _what(path: Path, error: Exception) -> str:
    """Why it is no safetensors file, in words."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        start = b""
    if start.startswith(b"version https://"):
        return "a git-lfs pointer: the weights themselves were not downloaded"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "a PyTorch pickle"
    return str(error).splitlines()[0]


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    what, mend = "the index of shards of a model", "download it again"
    places = read_object(index, what, mend, MOST_HEADER_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise InputError(f"{index}: expected JSON with a weight_map of names of files; {mend}")
    names = sorted(set(places.values()))
    if not all(Path(name).name == name and name.isprintable() and name for name in names):
        raise InputError(f"{index}: expected names of files beside it, got {listed(names)}")
    shards = {name: _read_file(index.with_name(name)) for name in names}
    lost = [name for name, shard in places.items() if name not in shards[shard]]
    if lost:
        raise InputError(
            f"{index}: expected every tensor in its shard, got none of {listed(lost)}; "
            "download the shards again"
        )
    return {name: shards[shard][name] for name, shard in places.items()}
