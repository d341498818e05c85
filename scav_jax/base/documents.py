"""Files that are read back: any bytes give their value, or one line that names the file.

What is opened is a file (a pipe would wait for ever, a folder has no bytes), of a size that is
bounded. JSON is strict: no key twice, no NaN, no infinity. What this project writes for itself is
*sealed*: it carries a checksum of its content, so that a changed digit is an error and not another
number.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from lzma import LZMAError
from pathlib import Path
from reprlib import repr as short  # of what may be as long as the file
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

from scav_jax.base.errors import InputError
from scav_jax.base.files import write_atomically, write_json
from scav_jax.base.names import shown

if TYPE_CHECKING:
    import numpy as np

# What NumPy's readers and Python's of archives raise of bytes that are no array, `ValueError` too.
NO_ARRAY = (
    *(OSError, EOFError, MemoryError, RuntimeError, OverflowError, SyntaxError, TypeError),
    *(TokenError, zipfile.BadZipFile, zlib.error, LZMAError),
)
# Python makes at most 32 bytes of a byte of JSON (`[[],[],...`), so 128 MiB of this.
MOST_JSON_BYTES = 2**22
MOST_TEXT_BYTES = 2**28
SAMPLE_BYTES = 4096
SEAL = "checksum"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


@contextlib.contextmanager
def regular_file(path: str | Path, what: str, mend: str) -> Iterator[IO[bytes]]:
    """A file, open for reading.

    Args:
      path: of the file.
      what: it is expected to be, for messages: "the config of a run".
      mend: what to do where it is not, for messages: "extract it again".

    Raises:
      InputError: a folder, a pipe, a device or a socket is there.
      OSError: nothing is there, or it may not be read.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path}: expected {what}, got a link to itself; {mend}") from None
    except ValueError:  # a zero byte, which no name of a file has
        raise InputError(
            f"{str(path)!r}: expected {what}, that is no name of a file; {mend}"
        ) from None
    if stat.S_ISREG(mode):
        # Not to wait, should a pipe have come in between.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            yield file
        return
    kind = _KINDS.get(stat.S_IFMT(mode), "a device")
    raise InputError(f"{path}: expected {what}, got {kind}; {mend}")


@contextlib.contextmanager
def sized_file(path: str | Path, what: str, mend: str, most: int | None) -> Iterator[IO[bytes]]:
    """`regular_file`, of at most `most` bytes; None is any size."""
    with regular_file(path, what, mend) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise InputError(
                f"{path}: expected {what} of at most {most:,} bytes, got {size:,}; {mend}"
            )
        yield file


def content_sample(path: str | Path) -> str:
    """A hash of the size, the beginning, the middle and the end of a file; "" if it cannot be read.

    Reading all of a video would take as long as decoding it.
    """
    unreadable = contextlib.suppress(OSError, ValueError, InputError)
    with unreadable, regular_file(path, "a video", "") as content:  # a pipe would be waited for
        size = os.fstat(content.fileno()).st_size
        found = hashlib.sha256(str(size).encode())
        for begin in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
            content.seek(max(begin, 0))
            found.update(content.read(SAMPLE_BYTES))
        return found.hexdigest()
    return ""


def read_bytes(path: str | Path, what: str, mend: str, most: int = MOST_TEXT_BYTES) -> bytes:
    """The bytes of a file, at most `most`; raises as `regular_file` does."""
    with sized_file(path, what, mend, most) as file:
        return file.read(most)


def read_arrays(
    path: str | Path, what: str, mend: str, most: int | None = None
) -> dict[str, "np.ndarray"]:
    """The arrays of an npz, by name; raises as `regular_file` does."""
    with sized_file(path, what, mend, most) as file:
        try:
            return arrays_in(file)
        except ValueError as error:
            words = shown(str(error).partition("\n")[0])
            raise InputError(f"{path}: expected {what} ({words}); {mend}") from None


def arrays_in(file: IO[bytes]) -> dict[str, "np.ndarray"]:
    """The arrays of an npz, by name; nothing in it is executed. `ValueError` where it is none."""
    import numpy as np

    try:
        if not zipfile.is_zipfile(file):  # NumPy takes anything else for a pickle, and would
            raise ValueError("it is no npz")  # have it loaded
        file.seek(0)
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("a single array")
        return {name: stored[name] for name in stored.files}
    except NO_ARRAY as error:
        raise ValueError(str(error) or type(error).__name__) from None


def write_arrays(path: str | Path, arrays: "Mapping[str, np.ndarray]") -> None:
    """Writes an npz, atomically; makes the folder."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle
    write_atomically(path, content.getvalue())


def read_text(path: str | Path, what: str, mend: str) -> str:
    """What `read_bytes` reads as text in UTF-8, without a byte order mark."""
    try:
        return read_bytes(path, what, mend).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len((error.object[: error.start] + b".").splitlines())
        raise InputError(
            f"{path}, line {line}: expected {what} in UTF-8: {error}; {mend}"
        ) from None


def read_json(path: str | Path, what: str, mend: str, most: int = MOST_JSON_BYTES) -> Any:
    """What a JSON file holds; `InputError` where it is none, else as `regular_file`."""
    content = read_bytes(path, what, mend, most)
    try:
        return parse_json(content)
    except ValueError as error:
        raise InputError(f"{path}: expected {what} as JSON: {error}; {mend}") from None


def read_object(path: str | Path, what: str, mend: str, most: int = MOST_JSON_BYTES) -> dict:
    """The same where it has to be a JSON object."""
    value = read_json(path, what, mend, most)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected {what} as a JSON object, got {short(value)}; {mend}")
    return value


def parse_json(content: bytes | str, *, finite: bool = True) -> Any:
    """The value of strict JSON.

    Args:
      content: UTF-8.
      finite: refuses NaN, infinity and numbers that no float64 holds.

    Raises:
      ValueError: in a line: not JSON, nested too deeply, a key twice, or a number that is refused.
    """
    text = content if isinstance(content, str) else content.decode()
    numbers: dict = {"parse_constant": _constant, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=_unique, **numbers)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has the key {short(name)} twice")
        found[name] = value
    return found


def _constant(name: str) -> None:
    raise ValueError(f"expected finite numbers, it has {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, it has {short(text)}")
    return value


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.steps": 300, ...}`: the values by their dotted keys.

    >>> flatten({"train": {"steps": 300}, "seed": 0})
    {'seed': 0, 'train.steps': 300}
    """
    flat: dict = {}
    for key in sorted(document):
        value = document[key]
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# ---- sealed documents ------------------------------------------------------------------------


def write_document(path: str | Path, value: dict) -> None:
    """Writes a JSON object with a checksum of its content, atomically; makes the folder."""
    content = {key: item for key, item in value.items() if key != SEAL}
    if Path(path).is_dir():
        raise InputError(f"{path}: expected a file, or a place for one, got a folder; remove it")
    write_json(path, content | {SEAL: checksum(content)})


def read_document(path: str | Path, what: str, mend: str, most: int = MOST_JSON_BYTES) -> dict:
    """What `write_document` wrote, without the checksum.

    Raises:
      InputError: it is not what was written; else as `regular_file`.
    """
    return unsealed(read_object(path, what, mend, most), f"{path}: expected {what}", mend)


def unsealed(document: dict, expected: str, mend: str) -> dict:
    """A document as it was read, without its checksum; `InputError` where that is wrong."""
    written = document.get(SEAL)
    content = {key: value for key, value in document.items() if key != SEAL}
    if written is None:
        raise InputError(
            f"{expected} with its checksum, it has none: another version of scav_jax wrote it, or "
            f"it was edited; {mend}"
        )
    if written != _checksum_or_none(content):
        raise InputError(
            f"{expected} as it was written, its checksum says that it was damaged or edited; {mend}"
        )
    return content


def checksum(value: Any) -> str:
    """16 hexadecimal digits of a JSON value, whatever the order of its keys."""
    plain = json.loads(json.dumps(value))  # keys are strings from here on
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _checksum_or_none(value: Any) -> str | None:
    try:
        return checksum(value)
    except RecursionError:  # nested as deeply as can just be read: not by us
        return None
