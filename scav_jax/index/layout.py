"""What an index is on disk: names, format version, and the header that says what it holds.

INDEX/
   index.json           the header: format version, the model's identity, distance, storage, width
   rows.lance           one row for each clip: where it is from, and where its sequences are
   segments/00000000/   sequences and what is computed from them, appended and never changed
   lock                 held by the one writer
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scav_jax.distances import find, option_names
from scav_jax.errors import InputError, did_you_mean
from scav_jax.files import write_json
from scav_jax.sequences import DIRECTIONS as RESAMPLINGS

FORMAT_VERSION = 2
HEADER, SEGMENTS, LOCK, TABLE = "index.json", "segments", "lock", "rows"
STREAMS = ("visual", "audio")
STORAGES = ("float32", "bfloat16", "int8")
SEGMENT_BYTES = 2**28  # of one stream's sequences in one segment, about


@dataclass(frozen=True)
class Header:
    """What all clips of an index have in common.

    Attributes:
      identity: names the model and the features that the latents are of.
      distance: ranks sequences, in its retrieval form.
      options: its options, all of them.
      storage: how sequences are stored, one of `STORAGES`.
      width: latent channels C; 0 until the first clips come.
    """

    identity: str
    distance: str = "euclidean"
    options: dict = field(default_factory=dict)
    storage: str = "float32"
    width: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def one_grid(self) -> bool:
        """Whether sequences are compared step by step, on the grid of the target stream."""
        return self.distance == "euclidean"

    @property
    def target(self) -> str:
        """The stream whose steps are compared; the other one is interpolated at them."""
        resample = self.options.get("resample", RESAMPLINGS[0])
        return "audio" if resample == "visual_to_audio" else "visual"


def make_header(identity: str, distance: tuple[str, dict], storage: str) -> Header:
    """A checked header."""
    name, options = distance
    find(name, options)
    if storage not in STORAGES:
        raise InputError(
            f"storage: expected one of {', '.join(STORAGES)}, got {storage!r}."
            + did_you_mean(str(storage), STORAGES)
        )
    if "resample" in option_names(name):
        options = {"resample": RESAMPLINGS[0], **options}
    # How the training multiplied is no business of the index: it has a storage of its own.
    options = {key: value for key, value in options.items() if key != "storage"}
    return Header(str(identity), name, options, storage)


def write_header(path: Path, header: Header) -> None:
    """Atomically."""
    write_json(path / HEADER, asdict(header))


def read_header(path: Path) -> Header:
    """The header of the index at `path`.

    Raises:
      InputError: no index there, or one of another format.
    """
    try:
        document = json.loads((path / HEADER).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path}: expected an index (a folder with {HEADER}), found none; "
            "make one with `python -m scav_jax.index build`"
        ) from None
    except ValueError:
        raise InputError(f"{path / HEADER}: expected JSON, it is damaged; build again") from None
    if document.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected an index of format {FORMAT_VERSION}, got "
            f"{document.get('format_version')!r}; build it again with this version"
        )
    return Header(**document)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_table(path: Path) -> None:
    """Makes a commit durable: LanceDB leaves that to the system."""
    for folder, _, files in os.walk(path / f"{TABLE}.lance"):
        for file in files:
            handle = os.open(Path(folder) / file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(folder))


def bytes_of(path: Path) -> int:
    """What an index takes on disk."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
