"""Tensors and plain values out of `.pt` files, without torch and without running what they say.

Both formats are read: zip archives (torch 1.6 and later) and the pickle stream before it; tensors
are mapped into memory. Layouts: torch/serialization.py.

Whatever a file says of itself, reading it takes at most 64 MiB beside the mapped tensors, and what
those come to is at most four times the file: sizes are looked at before anything is unpacked, and a
pickle may take so many steps and no more.
"""

import errno
import io
import mmap
import struct
import zipfile
from pathlib import Path
from reprlib import repr as short  # of values that may be nested without end
from typing import IO, Any

import numpy as np

from scav_jax.base.documents import regular_file
from scav_jax.base.errors import InputError
from scav_jax.extract.backbones.torch_pickles import MAX_PICKLE_BYTES, Name, Pickle, Storage, Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # opens the old format
PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, .., lengths of name and extra field
MAX_DIRECTORY_BYTES = 2**22  # of a zip archive: some 60,000 entries
MAX_PART_BYTES = 2**20  # that are unpacked at a time
MAX_GROWTH = 4  # what tensors come to, as a multiple of the file
SMALL_BYTES = 2**20  # what any file may come to


def read(path: str | Path) -> dict:
    """What a `.pt` file holds: a dictionary, with a read-only array for every tensor.

    Tensors that share a storage share memory here too. Objects that only carry attributes
    (`argparse.Namespace`, BEATs' configuration) become dictionaries; what an ordered dictionary
    carries beside its items (a module's `_metadata`) is left out.

    Raises:
      InputError: no file, no `.pt` file, truncated, or naming what no file of tensors needs.
      OSError: the file cannot be opened or read.
    """
    path = Path(path)
    try:
        with regular_file(path, "a .pt or .pth file", "check the path") as file:
            start = file.read(len(ZIP_MAGIC))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a .pt or .pth file, got none; check the path") from None
    try:
        value = _read_zip(path) if start == ZIP_MAGIC else _read_stream(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # Whatever a broken file provokes in numpy, zipfile and below; the system's errors (a disk that
    # fails) are no such thing, but for a seek to nowhere.
    except (ImportError, NameError):
        raise  # no file brings those about
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(
            f"{path}: expected a .pt or .pth file as torch.save writes it, got something else or a "
            f"truncated one ({_one_line(error)}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected a checkpoint, which is a dictionary, got a {type(value).__name__}; "
            "give another file"
        )
    return value


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


# -- the two formats ------------------------------------------------------------------------------


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_zip(path: Path) -> Any:
    whole = np.frombuffer(_mapped(path), np.uint8)
    with open(path, "rb") as file, zipfile.ZipFile(_SmallReads(file)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise InputError(
                f"expected a .pt archive with one data.pkl, got entries {short(sorted(entries))}"
            )
        prefix = pickles[0].removesuffix("data.pkl")
        order = entries.get(f"{prefix}byteorder")
        if order is not None and _unpacked(archive, order, len("little")) != b"little":
            raise InputError("expected little-endian tensors; save it on such a machine")
        content = Pickle(io.BytesIO(_unpacked(archive, entries[pickles[0]], MAX_PICKLE_BYTES)))
        # Storages lie as they are in torch's archives; what is packed is unpacked into memory.
        packed = [
            info.file_size
            for key in content.storages
            if (info := entries.get(f"{prefix}data/{key}")) and info.compress_type
        ]
        _check_growth(sum(packed), len(whole), "entries that unpack")
        data = {}
        for key, (dtype, numel) in content.storages.items():
            info = entries.get(f"{prefix}data/{key}")
            if info is None or info.file_size != numel * dtype.itemsize:
                raise InputError(
                    f"storage {short(key)}: expected {short(numel * dtype.itemsize)} bytes, got "
                    f"{'none' if info is None else info.file_size}: truncated?"
                )
            data[key] = _numbers(key, dtype, numel, _entry_bytes(archive, info, whole))
    return _Resolver(data, len(whole)).plain(content.value)


def _check_growth(size: int, file: int, what: str) -> None:
    """Raises `InputError` where a file of so many bytes would come to many more."""
    if size > max(MAX_GROWTH * file, SMALL_BYTES):
        raise InputError(
            f"expected {what} to at most {MAX_GROWTH} times the {file:,} bytes of the file, got "
            f"{short(size)}; refused"
        )


class _SmallReads:
    """A file that is read a few MiB at a time, a zip archive's directory too."""

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self.close, self._file = file.seek, file.tell, file.close, file
        self.seekable = file.seekable

    def read(self, count: int = -1) -> bytes:
        content = self._file.read(count if count >= 0 else MAX_DIRECTORY_BYTES + 1)
        if len(content) > MAX_DIRECTORY_BYTES:
            raise InputError(
                f"expected a .pt archive with a directory of at most {MAX_DIRECTORY_BYTES:,} "
                "bytes, got a larger one; refused"
            )
        return content


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """The content of an entry, never more than `most` bytes of it, nor than it says."""
    if info.file_size > most:
        raise InputError(
            f"{short(info.filename)}: expected at most {most:,} bytes, got {info.file_size:,}; "
            "refused"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{short(info.filename)}: packed in an unknown way; refused")
    parts, left = [], info.file_size
    with archive.open(info) as entry:
        while left and (part := entry.read(min(left, MAX_PART_BYTES))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _entry_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, whole: np.ndarray) -> np.ndarray:
    """An entry's content: a part of the mapped file, or decompressed."""
    if info.compress_type != zipfile.ZIP_STORED:
        return np.frombuffer(_unpacked(archive, info, info.file_size), np.uint8)
    header = bytes(whole[info.header_offset : info.header_offset + ZIP_LOCAL_HEADER.size])
    signature, name, extra = ZIP_LOCAL_HEADER.unpack(header)
    if signature != ZIP_MAGIC:
        raise InputError(f"zip entry {short(info.filename)} has no header: damaged?")
    begin = info.header_offset + ZIP_LOCAL_HEADER.size + name + extra
    return whole[begin : begin + info.file_size]


def _read_stream(path: Path) -> Any:
    file = _mapped(path)
    if Pickle(file).value != MAGIC:
        raise InputError("expected a .pt or .pth file, got another pickle")
    if Pickle(file).value != PROTOCOL:
        raise InputError(f"expected torch's serialization protocol {PROTOCOL}")
    if not Pickle(file).value["little_endian"]:
        raise InputError("expected little-endian tensors; save it on such a machine")
    content = Pickle(file)
    keys = Pickle(file).value
    if sorted(keys) != sorted(content.storages):
        raise InputError("the storages that follow are not those of the tensors: damaged?")
    data = {}
    whole = np.frombuffer(file, np.uint8)
    begin = file.tell()
    for key in keys:
        dtype, numel = content.storages[key]
        (found,) = struct.unpack("<q", bytes(whole[begin : begin + 8]))
        if found != numel:
            raise InputError(f"storage {key!r}: expected {numel} elements, got {found}")
        end = begin + 8 + numel * dtype.itemsize
        data[key] = _numbers(key, dtype, numel, whole[begin + 8 : end])
        begin = end
    return _Resolver(data, len(whole)).plain(content.value)


def _numbers(key: str, dtype: np.dtype, numel: int, raw: np.ndarray) -> np.ndarray:
    """A storage's bytes as numbers."""
    nbytes = numel * dtype.itemsize
    if len(raw) != nbytes:
        raise InputError(f"storage {key!r}: expected {nbytes} bytes, got {len(raw)}: truncated?")
    return raw.view(dtype)


# -- from what the pickle describes to plain values -----------------------------------------------


class _Resolver:
    """Replaces tensors by arrays and attribute bags by dictionaries, each object once."""

    def __init__(self, storages: dict[str, np.ndarray], file: int):
        self.storages, self.file, self.bytes = storages, file, 0
        self.done: dict[int, Any] = {}

    def plain(self, value: Any) -> Any:
        if isinstance(value, (str, bytes, bool, int, float, type(None))):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = self._plain(value)
        return self.done[id(value)]

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            array = _array(value, self.storages[value.storage.key])
            self.bytes += array.nbytes
            _check_growth(self.bytes, self.file, "tensors that come")
            return array
        if isinstance(value, (Name, Storage)):
            raise InputError(f"expected tensors and plain values, got {short(value)}")
        if isinstance(value, dict):
            return {self.plain(key): self.plain(item) for key, item in value.items()}
        return type(value)(self.plain(item) for item in value)  # list, tuple, set, frozenset


def _array(tensor: Tensor, data: np.ndarray) -> np.ndarray:
    """The view of its storage that a tensor is; what would reach outside is refused."""
    shape, strides = tensor.shape, tensor.strides
    numbers = (tensor.storage.begin, tensor.offset, *shape, *strides)
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
        raise InputError(
            f"a tensor of shape {short(shape)} with strides {short(strides)}: damaged?"
        )
    if 0 in shape:
        return np.empty(shape, data.dtype)
    begin = tensor.storage.begin + tensor.offset
    last = begin + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(data):
        raise InputError(f"a tensor of shape {short(shape)} reaches beyond its storage: damaged?")
    steps = tuple(stride * data.dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(data[begin:], shape, steps, writeable=False)
