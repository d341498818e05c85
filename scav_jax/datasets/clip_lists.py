"""What the builders of published data sets share: wanted clips, files on disk, lists, draws.

A builder reads a published list, gives every clip a split (before it looks at the disk, so that
splits do not depend on what could be downloaded), finds the files, and writes what
`scav extract --clips` takes, with `missing.csv` beside it.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scav_jax.base.errors import InputError, listed
from scav_jax.base.files import walked, write_atomically
from scav_jax.base.names import is_text, shown
from scav_jax.base.tables import csv_text

AS_PUBLISHED = "give the list as it was published"
COLUMNS = ("file", "start", "end", "id", "label", "split")  # of a list of clips
MISSING_COLUMNS = ("file", "id", "label", "split")
# What people keep downloads in, the first preferred; other files are passed over.
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".flv")
SPLITS = ("train", "validation", "test")  # the order in which they are shown


@dataclass(frozen=True)
class Listed:
    """One entry of a published list.

    Attributes:
      id: unique in the list.
      video: the id of the video that it is from.
      label: its class.
      split: which part of the data set it belongs to.
      file: what its file is called by most who have it.
      key: what names it on disk, whatever the spelling.
    """

    id: str
    video: str
    label: str
    split: str
    file: str
    key: Hashable


def draw(names: Iterable[str], count: int, seed: str) -> list[str]:
    """`count` of the names, those whose hash with the seed comes first.

    The same names give the same draw in any order; a name that joins or leaves the list moves at
    most one other in or out.
    """
    names = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())
    return names[:count]


def video_files(videos: Path) -> tuple[list[str], list[str]]:
    """The video files below a folder, relative to it, with forward slashes, sorted.

    Returns:
      The files, and those that no extraction can use, which stand for no clip: without a byte, a
      pipe, a link to nothing, a name that is no text.

    Raises:
      InputError: no such folder, one that may not be read, or no video file in it.
    """
    if not videos.is_dir():
        raise InputError(f"--videos: expected a folder of videos, {videos} is not one")

    def refuse(error: OSError) -> None:
        raise InputError(
            f"--videos: expected folders that may be read, {error.filename}: {error.strerror}"
        ) from None

    files: list[str] = []
    unfit: list[str] = []
    for folder, _, names in walked(videos, refuse):
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("._"):
                path = Path(folder) / name
                file = path.relative_to(videos).as_posix()
                (files if is_text(file) and _has_bytes(path) else unfit).append(file)
    if not files:
        raise InputError(
            f"--videos: expected video files ({' '.join(SUFFIXES)}) below {videos}, found none"
            + (f" but {unfit_in_words(unfit)}" if unfit else "")
        )
    return sorted(files), sorted(unfit)


def _has_bytes(path: Path) -> bool:
    try:
        about = path.stat()
    except OSError:  # a link to nothing
        return False
    return stat.S_ISREG(about.st_mode) and about.st_size > 0


def unfit_in_words(unfit: Sequence[str]) -> str:
    """What `video_files` says of files that cannot be used."""
    return (
        f"{len(unfit):,} that are empty, pipes, links to nothing or have names that are no text in "
        f"UTF-8: {listed(list(map(shown, unfit)), 3)}"
    )


@dataclass(frozen=True)
class Located:
    """Where clips lie.

    Attributes:
      files: id -> file; ids that are not there are missing.
      repeated: how many clips are there more than once (one file of each is taken).
      other: how many video files belong to no clip of the list.
    """

    files: dict[str, str]
    repeated: int
    other: int


def locate(
    wanted: Sequence[Listed], files: Sequence[str], key_of: Callable[[str], Hashable | None]
) -> Located:
    """Finds the file of every clip.

    Args:
      wanted: the list.
      files: as `video_files` gives them.
      key_of: the key of a file's name without its suffix, None for names of another kind.

    Raises:
      InputError: not one clip is there: the folder is not of this data set.
    """
    by_key: dict[Hashable, list[str]] = {}
    for file in files:
        key = key_of(PurePosixPath(file).stem)
        if key is not None:
            by_key.setdefault(key, []).append(file)
    found = {clip.id: by_key[clip.key] for clip in wanted if clip.key in by_key}
    if not found:
        raise InputError(
            f"--videos: expected files such as {wanted[0].file}, none of the {len(files):,} video "
            f"files there (such as {files[0]}) is a clip of the list; check the folder and the list"
        )
    names = {clip.id: PurePosixPath(clip.file).stem for clip in wanted}
    taken = {name: min(some, key=_preference(names[name])) for name, some in found.items()}
    repeated = sum(len(some) > 1 for some in found.values())
    return Located(taken, repeated, len(files) - sum(map(len, found.values())))


def _preference(usual: str) -> Callable[[str], tuple]:
    """Of several files of one clip: the usual name, suffix by suffix, the least deep folder."""

    def rank(file: str) -> tuple:
        path = PurePosixPath(file)
        return path.stem != usual, SUFFIXES.index(path.suffix.lower()), len(path.parts), file

    return rank


def beside(out: Path, what: str) -> Path:
    """`missing.csv` beside `clips.csv`; beside another name, `NAME.missing.csv`."""
    return out.with_name(f"{what}.csv" if out.stem == "clips" else f"{out.stem}.{what}.csv")


def write_clip_list(out: Path, wanted: Sequence[Listed], located: Located) -> None:
    """Writes the list of the clips that are there, and `missing.csv` of those that are not."""
    rows = [
        {"file": located.files[clip.id], "id": clip.id, "label": clip.label, "split": clip.split}
        for clip in wanted
        if clip.id in located.files
    ]
    missing = [
        {name: getattr(clip, name) for name in MISSING_COLUMNS}
        for clip in wanted
        if clip.id not in located.files
    ]
    write_csv(beside(out, "missing"), MISSING_COLUMNS, missing)
    write_csv(out, COLUMNS, rows)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Writes a CSV, whole or not at all; cells that a row lacks stay empty."""
    write_atomically(path, csv_text(columns, rows))
