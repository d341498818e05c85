"""Tensors and plain values out of `.pt` files, without torch and without running what they say.

A `.pt` file is a pickle, and a pickle is a program: whoever loads one runs it. Here its opcodes are
read as data (`pickletools`). They can build numbers, strings, lists, dictionaries, sets and tuples;
of the names in them a dozen harmless ones are understood (`_KNOWN`) and any other refuses the file.
Python's own unpickler with a strict `find_class` would not do: a flipped bit in a memo index makes
it allocate tens of gigabytes.

Both formats are read: zip archives (torch 1.6 and later) and the pickle stream before it; tensors
are mapped into memory. Layouts: torch/serialization.py.

Whatever a file says of itself, reading it takes at most 64 MiB beside the mapped tensors, and what
those come to is at most four times the file: sizes are looked at before anything is unpacked, and a
pickle may take so many steps and no more.
"""

import errno
import io
import mmap
import pickletools
import struct
import zipfile
from pathlib import Path
from reprlib import repr as short  # of values that may be nested without end
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from scav_jax.base.documents import regular_file
from scav_jax.base.errors import InputError

MAGIC = 0x1950A86A20F9469CFC6C  # opens the old format
PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, .., lengths of name and extra field
MAX_PICKLE_BYTES = 2**23  # structure and configuration only: tensors lie beside it
MAX_STEPS = 2**18  # opcodes, and items that they copy: some 8,000 tensors
MAX_DIMENSIONS = 64
MAX_DIRECTORY_BYTES = 2**22  # of a zip archive: some 60,000 entries
MAX_PART_BYTES = 2**20  # that are unpacked at a time
MAX_GROWTH = 4  # what tensors come to, as a multiple of the file
SMALL_BYTES = 2**20  # what any file may come to
STORAGE_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


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
        with regular_file(path, "a .pt file", "check the path") as file:
            start = file.read(len(ZIP_MAGIC))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a .pt file, got none; check the path") from None
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
            f"{path}: expected a .pt file as torch.save writes it, got something else or a "
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


# -- the pickle, read as data ---------------------------------------------------------------------


class _Storage(NamedTuple):
    """A flat array that tensors are views of, or, in the old format, a part of one."""

    key: str
    begin: int


class _Tensor(NamedTuple):
    """A tensor that the pickle describes; the array is made when all of it is read."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Bag(dict):
    """The attributes of an object that only carries attributes."""


class _Name(NamedTuple):
    """A name that is understood."""

    module: str
    name: str


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> _Tensor:
    # ignored: requires_grad, backward hooks, metadata
    if not isinstance(storage, _Storage):
        raise InputError("a tensor without a storage: damaged?")
    if max(len(shape), len(strides)) > MAX_DIMENSIONS:
        raise InputError(f"a tensor of {len(shape)} dimensions: damaged?")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _hashable(items) -> list:
    """Keys and members: plain ones, since the hash of tuples in tuples may take for ever."""
    items = list(items)
    for item in items:
        if not isinstance(item, (str, bytes, int, float, type(None))):
            raise InputError(f"a key or member that is a {type(item).__name__}: not supported")
    return items


def _dictionary(items=()) -> dict:
    pairs = list(items)
    return dict(zip(_hashable(key for key, _ in pairs), (v for _, v in pairs), strict=True))


# What a pickle may name, and what a call of it means; None where it is no more than a name.
_KNOWN = {
    _Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    _Name("torch._utils", "_rebuild_parameter"): lambda data, *_ignored: data,
    _Name("torch", "Size"): tuple,
    _Name("collections", "OrderedDict"): _dictionary,
    _Name("builtins", "set"): lambda items=(): set(_hashable(items)),
    _Name("__builtin__", "set"): lambda items=(): set(_hashable(items)),
    _Name("argparse", "Namespace"): _Bag,
    _Name("types", "SimpleNamespace"): _Bag,
    _Name("BEATs", "BEATsConfig"): _Bag,
    **{_Name("torch", name): None for name in STORAGE_DTYPES},
}
# Opcodes that push their argument, and those that push something new.
_PUSH = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_NEW = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set},
}
_COPIED = (list, tuple, dict, set, frozenset)
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Bounded:
    """The beginning of a file, as much of it as a pickle may have."""

    def __init__(self, file: io.BytesIO | mmap.mmap):
        self._file, self.tell = file, file.tell
        self._end = file.tell() + MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        return self._checked(self._file.read(min(count, self._left())))

    def readline(self) -> bytes:
        if isinstance(self._file, io.BytesIO):
            return self._file.readline()
        begin = self._file.tell()
        end = self._file.find(b"\n", begin, begin + self._left())
        return self.read(MAX_PICKLE_BYTES if end < 0 else end + 1 - begin)

    def _left(self) -> int:
        return self._end - self._file.tell()

    def _checked(self, content: bytes) -> bytes:
        if self._left() <= 0:
            raise InputError(
                f"expected a pickle of at most {MAX_PICKLE_BYTES:,} bytes, got more; refused"
            )
        return content


class _Pickle:
    """Runs the opcodes of one pickle on a stack of plain values.

    Attributes:
      value: what the pickle holds.
      storages: what its tensors lie in: type and number of elements, by key.
    """

    def __init__(self, file: io.BytesIO | mmap.mmap):
        self.storages: dict[str, tuple[np.dtype, int]] = {}
        self.stack: list = []
        self.marked: list[list] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.steps = 0
        for opcode, argument, _ in pickletools.genops(_Bounded(file)):
            self._spend(1)
            self._step(opcode.name, argument)
        (self.value,) = self.stack

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise InputError(
                f"expected tensors and a few plain values, got a pickle of more than {MAX_STEPS:,} "
                "steps; refused"
            )

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _SHORT_TUPLES:
            count = _SHORT_TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise InputError(
                    f"expected tensors and plain values, got the opcode {name}; refused"
                )
            operation(*([] if argument is None else [argument]))

    def _memoize(self):
        self.memo[len(self.memo)] = self.stack[-1]

    def _mark(self):
        self.marked.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _pop(self):
        self.stack.pop()

    def _pop_mark(self):
        self._since_mark()

    def _dup(self):
        self.stack.append(self.stack[-1])

    def _list(self):
        items = self._since_mark()
        self.stack.append(items)

    def _tuple(self):
        items = tuple(self._since_mark())
        self.stack.append(items)

    def _dict(self):
        items = self._since_mark()
        self.stack.append(_dictionary(zip(items[::2], items[1::2], strict=True)))

    def _frozenset(self):
        items = frozenset(_hashable(self._since_mark()))
        self.stack.append(items)

    def _append(self):
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self):
        items = self._since_mark()
        self._top(list).extend(items)

    def _additems(self):
        items = self._since_mark()
        self._top(set).update(_hashable(items))

    def _setitem(self):
        key, value = self.stack[-2:]
        del self.stack[-2:]
        self._top(dict).update(_dictionary([(key, value)]))

    def _setitems(self):
        items = self._since_mark()
        self._top(dict).update(_dictionary(zip(items[::2], items[1::2], strict=True)))

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise InputError(f"items for a {type(self.stack[-1]).__name__}: damaged?")
        return self.stack[-1]

    def _global(self, words: str):
        self._push_name(*words.split(" ", 1))

    def _stack_global(self):
        name = self.stack.pop()
        self._push_name(self.stack.pop(), name)

    def _push_name(self, module: Any, name: Any):
        if not (isinstance(module, str) and isinstance(name, str)):
            raise InputError("a name that is not a string: damaged?")
        if (module, name) not in _KNOWN:
            raise InputError(
                "expected tensors and plain values, got a pickle that names "
                f"{f'{module}.{name}'!r:.100}, which could run code; refused"
            )
        self.stack.append(_Name(module, name))

    def _reduce(self):
        arguments = self.stack.pop()
        name = self.stack.pop()
        known = _KNOWN[name] if isinstance(name, _Name) else None
        if known is None or not isinstance(arguments, tuple):
            raise InputError("a call of something that cannot be called: damaged?")
        self._spend(sum(len(one) for one in arguments if isinstance(one, _COPIED)))
        self.stack.append(known(*arguments))

    def _newobj(self):
        name = self.stack[-2]
        if not isinstance(name, _Name) or _KNOWN[name] is not _Bag:
            raise InputError("a new object of something that is no class: damaged?")
        self._reduce()

    def _build(self):
        state = self.stack.pop()
        # A state dictionary of torch's carries `_metadata` beside its items: of no use here.
        if isinstance(self._top(dict), _Bag):
            self._spend(len(state))
            self.stack[-1].update(state)

    def _binpersid(self):
        tag, kind, key, _location, numel, *view = self.stack.pop()
        if tag != "storage" or not isinstance(kind, _Name) or kind.name not in STORAGE_DTYPES:
            raise InputError(f"expected a storage of {sorted(STORAGE_DTYPES)}, got {short(kind)}")
        if type(numel) is not int or numel < 0 or not isinstance(key, str):
            raise InputError(f"storage {short(key)}: expected its size, got {short(numel)}")
        begin = 0
        if view and view[0] is not None:  # the old format: a storage inside a storage
            _view_key, begin, _view_size = view[0]
        found = (STORAGE_DTYPES[kind.name], numel)
        if self.storages.setdefault(key, found) != found:
            raise InputError(f"storage {short(key)} has two types or sizes: damaged?")
        self.stack.append(_Storage(key, begin))


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
        content = _Pickle(io.BytesIO(_unpacked(archive, entries[pickles[0]], MAX_PICKLE_BYTES)))
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
    if _Pickle(file).value != MAGIC:
        raise InputError("expected a .pt file, got another pickle")
    if _Pickle(file).value != PROTOCOL:
        raise InputError(f"expected torch's serialization protocol {PROTOCOL}")
    if not _Pickle(file).value["little_endian"]:
        raise InputError("expected little-endian tensors; save it on such a machine")
    content = _Pickle(file)
    keys = _Pickle(file).value
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
        if isinstance(value, _Tensor):
            array = _array(value, self.storages[value.storage.key])
            self.bytes += array.nbytes
            _check_growth(self.bytes, self.file, "tensors that come")
            return array
        if isinstance(value, (_Name, _Storage)):
            raise InputError(f"expected tensors and plain values, got {short(value)}")
        if isinstance(value, dict):
            return {self.plain(key): self.plain(item) for key, item in value.items()}
        return type(value)(self.plain(item) for item in value)  # list, tuple, set, frozenset


def _array(tensor: _Tensor, data: np.ndarray) -> np.ndarray:
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
