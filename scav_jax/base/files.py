"""Files and folders that appear whole or not at all; a full disk, said in one way."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from scav_jax.base.errors import InputError

_SAID = {  # what libraries make of the system's words
    "no space left": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "input/output error": errno.EIO,
    "permission denied": errno.EACCES,
    "operation not permitted": errno.EPERM,
    "too many open files": errno.EMFILE,
}
_NUMBERED = re.compile(r"\bos error (\d+)\b")  # Rust's way to say it
_LONGEST_NAME = 200  # bytes of a name that leave room for what is added


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Writes a file so that a reader, a kill or a power cut finds the old content or the new.

    Its folder is made.

    Raises:
      OSError: with the file's name; what was written of it is removed, since a full disk needs
        the space.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # names of files may be no text
    with file_atomically(path) as partial, open(partial, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def file_atomically(path: str | Path) -> Iterator[Path]:
    """A file to write, there already and empty; at the end it becomes `path`, as by the above.

    Its folder is made; a link stays, and what it leads to is written.
    """
    path = _behind_a_link(path)
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{_short(path.name)}.{os.getpid()}.partial")
    try:
        partial.touch()
        yield partial
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _at(error, path, partial) from None


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON that a person can read, atomically; makes the folder."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def check_may_be_written(*paths: str | Path | None) -> None:
    """For files that are written last: says before what takes long that it will be refused.

    Nothing is made; None is no file.

    Raises:
      InputError: a folder is there, or what is no file, such as a device; its folder is a file.
      OSError: of the system, with the file's name.
    """
    for path in (_behind_a_link(path) for path in paths if path is not None):
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise InputError(f"{path}: expected the name of a file to write, {what} is there")
        above = next(one for one in path.absolute().parents if one.exists())
        if not above.is_dir():
            raise InputError(f"{path}: expected a folder at {above}, a file is there")
        try:
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def check_name(path: Path) -> None:
    """Raises `InputError` for `.`, `..` and `/`: what is written beside another has a name."""
    if path.name in ("", ".."):
        raise InputError(
            f"{path}: expected a file or folder by its name, which is written beside it first and "
            "renamed; from inside of it, ../NAME"
        )


def _behind_a_link(path: str | Path) -> Path:
    """Where a link leads; what is no link as it is, for that name is the one to tell."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def _short(name: str) -> str:
    """A name, or what stands for a long one: file systems take 255 bytes."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


@contextlib.contextmanager
def folder_atomically(path: str | Path, *, replacing: bool = False) -> Iterator[Path]:
    """A folder to fill; at the end it becomes `path`.

    Nothing or an empty folder may be there, with `replacing` anything.

    A kill or a power cut leaves all of it or nothing under that name. After an error nothing is
    left; what a kill leaves goes when the same folder is written again.
    """
    path = Path(path)
    check_name(path)
    partial = path.with_name(f".{_short(path.name)}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync(partial)
        with _out_of_the_way(path) if replacing else contextlib.nullcontext():
            os.replace(partial, path)
        _sync_one(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _at(error, path, partial) from error.__cause__


@contextlib.contextmanager
def _out_of_the_way(path: Path) -> Iterator[None]:
    """Puts a folder aside for another one of its name; it comes back if that fails."""
    aside = path.with_name(f".{_short(path.name)}.old")
    shutil.rmtree(aside, ignore_errors=True)
    there = path.exists()
    if there:
        os.rename(path, aside)
    try:
        yield
    except BaseException:
        if there:
            os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sync(folder: str | Path, done: set[str] | None = None) -> None:
    """Makes a folder and all that is below it survive a power cut.

    Files in `done`, which are never written again, do so already; those that are synced join them.
    """
    done = set() if done is None else done
    for below, _, names in os.walk(folder):
        for path in (os.path.join(below, name) for name in names):
            if path not in done:
                _sync_one(path)
                done.add(path)
        _sync_one(below)


def _sync_one(path: str | Path) -> None:
    if os.name == "nt":
        return  # folders cannot be opened there, nor what is opened to be read be synced
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def full_disk_is_an_oserror(folder: str | Path, room: int = 0) -> Iterator[None]:
    """Says what the machine refused as the system does, whatever words a library has for it.

    Args:
      folder: where is written.
      room: with fewer free bytes than this, any error is that of a full disk.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        number = _system_error(str(error))
        if number is None and room and shutil.disk_usage(folder).free < room:
            number = errno.ENOSPC
        if number is not None:
            raise OSError(number, os.strerror(number), str(folder)) from error
        raise _at(error, folder) from error.__cause__


def check_readable(folder: str | Path) -> None:
    """Raises `PermissionError` for the first file in a folder, or below, that may not be read.

    For where a library has failed: several take what they may not open for damaged, or for absent.
    """

    def note(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise error

    for place, _, names in os.walk(folder, onerror=note):
        for name in names:
            try:
                os.close(os.open(Path(place, name), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
            except OSError as error:
                note(error)


def _at(error: BaseException, path: str | Path, partial: str | Path | None = None) -> BaseException:
    """The error, with the file's name where it is the system's and has none, or the partial one's.

    Where fewer bytes were written than given, libraries raise an `OSError` without a number.
    """
    if isinstance(error, OSError) and error.errno is None:
        return OSError(errno.EIO, str(error), str(path))
    if isinstance(error, OSError) and partial and str(error.filename) == str(partial):
        return OSError(error.errno, error.strerror, str(path))  # the name that was given
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)
    return error


def _system_error(words: str) -> int | None:
    """The number of the system's error that a message tells of; None for what is no refusal."""
    numbered = _NUMBERED.search(words)
    if numbered and int(numbered[1]) in _SAID.values():
        return int(numbered[1])
    return next((number for said, number in _SAID.items() if said in words.lower()), None)


def ids_sha256(ids: Iterable[str]) -> str:
    """The SHA-256 of a set of clips: equal means that two figures are over the same clips.

    The ids are sorted by code point, one a line: `LC_ALL=C sort ids.txt | sha256sum`.
    """
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest()


def walked(
    root: Path, note: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` of a folder, links followed, but each folder once: links may lead back.

    Folders come sorted, so that of two names for one it is always the same that counts; those that
    are taken from the second list are not entered.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=note, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield folder, folders, names
