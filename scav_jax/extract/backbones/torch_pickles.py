"""The pickles that `torch.save` writes, read as data: nothing in them is run.

A pickle is a program: whoever loads one runs it. Here its opcodes are read as data (`pickletools`).
They can build numbers, strings, lists, dictionaries, sets and tuples; of the names in them a dozen
harmless ones are understood (`KNOWN`) and any other refuses the file. Python's own unpickler with a
strict `find_class` would not do: a flipped bit in a memo index makes it allocate tens of gigabytes.
"""

import io
import mmap
import pickletools
from reprlib import repr as short  # of values that may be nested without end
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from scav_jax.base.errors import InputError

MAX_PICKLE_BYTES = 2**23  # structure and configuration only: tensors lie beside it
MAX_STEPS = 2**18  # opcodes, and items that they copy: some 8,000 tensors
MAX_DIMENSIONS = 64
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


class Storage(NamedTuple):
    """A flat array that tensors are views of, or, in the old format, a part of one."""

    key: str
    begin: int


class Tensor(NamedTuple):
    """A tensor that the pickle describes; the array is made when all of it is read."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class Bag(dict):
    """The attributes of an object that only carries attributes."""


class Name(NamedTuple):
    """A name that is understood."""

    module: str
    name: str


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> Tensor:
    # ignored: requires_grad, backward hooks, metadata
    if not isinstance(storage, Storage):
        raise InputError("a tensor without a storage: damaged?")
    if max(len(shape), len(strides)) > MAX_DIMENSIONS:
        raise InputError(f"a tensor of {len(shape)} dimensions: damaged?")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


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


def _by_turns(items: list) -> dict:
    """Of keys and values in turn."""
    return _dictionary(zip(items[::2], items[1::2], strict=True))


# What a pickle may name, and what a call of it means; None where it is no more than a name.
KNOWN = {
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_parameter"): lambda data, *_ignored: data,
    Name("torch", "Size"): tuple,
    Name("collections", "OrderedDict"): _dictionary,
    Name("builtins", "set"): lambda items=(): set(_hashable(items)),
    Name("__builtin__", "set"): lambda items=(): set(_hashable(items)),
    Name("argparse", "Namespace"): Bag,
    Name("types", "SimpleNamespace"): Bag,
    Name("BEATs", "BEATsConfig"): Bag,
    **{Name("torch", name): None for name in STORAGE_DTYPES},
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
# Opcodes that make something of the items since the last mark.
_MADE = {
    **{"LIST": list, "TUPLE": tuple, "DICT": _by_turns},
    "FROZENSET": lambda items: frozenset(_hashable(items)),
}
# Those that add items to what is on top: its kind, how, and how many (None: all since a mark).
_ADDED = {
    "APPEND": (list, list.extend, 1),
    "APPENDS": (list, list.extend, None),
    "ADDITEMS": (set, lambda there, items: there.update(_hashable(items)), None),
    "SETITEM": (dict, lambda there, items: there.update(_by_turns(items)), 2),
    "SETITEMS": (dict, lambda there, items: there.update(_by_turns(items)), None),
}
_COPIED = (list, tuple, dict, set, frozenset)
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Bounded:
    """The beginning of a file, as much of it as a pickle may have."""

    def __init__(self, file: io.BytesIO | mmap.mmap):
        self._file, self.tell = file, file.tell
        self._end = file.tell() + MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        content = self._file.read(min(count, self._left()))
        if self._left() <= 0:
            raise InputError(
                f"expected a pickle of at most {MAX_PICKLE_BYTES:,} bytes, got more; refused"
            )
        return content

    def readline(self) -> bytes:
        if isinstance(self._file, io.BytesIO):
            return self._file.readline()
        begin = self._file.tell()
        end = self._file.find(b"\n", begin, begin + self._left())
        return self.read(MAX_PICKLE_BYTES if end < 0 else end + 1 - begin)

    def _left(self) -> int:
        return self._end - self._file.tell()


class Pickle:
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
        elif name in _MADE:
            items = self._since_mark()
            self.stack.append(_MADE[name](items))
        elif name in _ADDED:
            kind, add, count = _ADDED[name]
            items = self._since_mark() if count is None else self._last(count)
            add(self._top(kind), items)
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

    def _last(self, count: int) -> list:
        items, self.stack[-count:] = self.stack[-count:], []
        return items

    def _pop(self):
        self.stack.pop()

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
        if (module, name) not in KNOWN:
            raise InputError(
                "expected tensors and plain values, got a pickle that names "
                f"{f'{module}.{name}'!r:.100}, which could run code; refused"
            )
        self.stack.append(Name(module, name))

    def _reduce(self):
        arguments = self.stack.pop()
        name = self.stack.pop()
        known = KNOWN[name] if isinstance(name, Name) else None
        if known is None or not isinstance(arguments, tuple):
            raise InputError("a call of something that cannot be called: damaged?")
        self._spend(sum(len(one) for one in arguments if isinstance(one, _COPIED)))
        self.stack.append(known(*arguments))

    def _newobj(self):
        name = self.stack[-2]
        if not isinstance(name, Name) or KNOWN[name] is not Bag:
            raise InputError("a new object of something that is no class: damaged?")
        self._reduce()

    def _build(self):
        state = self.stack.pop()
        # A state dictionary of torch's carries `_metadata` beside its items: of no use here.
        if isinstance(self._top(dict), Bag):
            self._spend(len(state))
            self.stack[-1].update(state)

    def _binpersid(self):
        tag, kind, key, _location, numel, *view = self.stack.pop()
        if tag != "storage" or not isinstance(kind, Name) or kind.name not in STORAGE_DTYPES:
            raise InputError(f"expected a storage of {sorted(STORAGE_DTYPES)}, got {short(kind)}")
        if type(numel) is not int or numel < 0 or not isinstance(key, str):
            raise InputError(f"storage {short(key)}: expected its size, got {short(numel)}")
        begin = 0
        if view and view[0] is not None:  # the old format: a storage inside a storage
            _view_key, begin, _view_size = view[0]
        found = (STORAGE_DTYPES[kind.name], numel)
        if self.storages.setdefault(key, found) != found:
            raise InputError(f"storage {short(key)} has two types or sizes: damaged?")
        self.stack.append(Storage(key, begin))
