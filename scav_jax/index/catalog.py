"""What an index knows of its clips: the header that they share, a row for each, one writer's lock.

INDEX/
   index.json           the header: format version, the model's identity, distance, storage, width,
                        the root of its videos and how they are cut
   rows.lance           a LanceDB table with a row for each clip
   segments/00000000/   sequences and what is computed from them, appended and never changed
   segments/rows.json   the version of the table that was written last, and how many clips it has:
                        both are of one moment
   bank.npz             what scores are relative to, where there is that, see `bank`
   lock                 held by the one writer
   adding.json          the clips of an `add` that has not ended

Ids belong to the root. A clip's id is the one that it has in its folder of videos (the file's path
below it, or what its clips.csv says), behind the way from the root to that folder; its source is
the file's path below the root. So one file has one id whichever folder is given, and files that are
called alike in two folders have two.

A row says where a clip is from and where its sequences are. Each change is one commit, so a
reader sees the table before it or after it; old versions stay readable.
"""

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from reprlib import repr as short

import numpy as np
from jaxtyping import Float

from scav_jax.base.documents import read_object, unsealed, write_document
from scav_jax.base.errors import InputError, check_one_of
from scav_jax.base.locks import only_one
from scav_jax.distances import find, option_names
from scav_jax.distances.static import SUFFIX
from scav_jax.sequences import RESAMPLINGS

FORMAT_VERSION = 10
HEADER, SEGMENTS, COMMITTED = "index.json", "segments", "rows.json"
ADDING, BANK = "adding.json", "bank.npz"
STORAGES = ("float32", "bfloat16", "int8")
ABOUT = ("id", "source", "start", "end", "label")
WHOLE = 0.0  # clip seconds of an index whose videos are not cut
MEND = "bring it back from a copy, or build the index again"


@dataclass(frozen=True)
class Header:
    """What all clips of an index have in common.

    Attributes:
      identity: names the model and the features that the latents are of.
      distance: ranks sequences, in its retrieval form.
      options: its options, all of them.
      storage: how sequences are stored, one of `STORAGES`.
      width: latent channels C; 0 until the first clips come.
      embedding_width: E, of embeddings; 0 until then.
      root: the folder that ids and sources of videos are relative to; None where nobody said so.
      clip_seconds: into which videos are cut; `WHOLE` where they are not, None where none came.
      bank: names the bank that scores are relative to; "" where clips are ranked by distances.
      bank_clips: how many it has.
      sketch, sketch_width: what makes sketches, the first stage, and S; "" where there are none.
      name: of this index alone, drawn when it was made; its segments have it too.
    """

    identity: str
    distance: str = "euclidean"
    options: dict = field(default_factory=dict)
    storage: str = "float32"
    width: int = 0
    embedding_width: int = 0
    root: str | None = None
    clip_seconds: float | None = None
    bank: str = ""
    bank_clips: int = 0
    sketch: str = ""
    sketch_width: int = 0
    name: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def one_grid(self) -> bool:
        """Whether sequences are compared step by step, on the grid of the target stream."""
        return self.distance in ("euclidean", f"euclidean{SUFFIX}")

    @property
    def static_width(self) -> int:
        """How many of the channels, the last ones, are constant over a clip (`distances.static`).

        Those of the clips are stored as they are, and a query's are multiplied by the weight, so
        any weight can be asked with.
        """
        return self.options.get("static_width", 0)

    def with_weight(self, weight: float | None) -> "Header":
        """The header of a search with this weight of the static part; None keeps the index's."""
        if weight is None:
            return self
        if not self.static_width:
            raise InputError(
                f"static weight: expected an index of a model with a static part, this one ranks "
                f"by {self.distance!r} alone; leave it out"
            )
        if not 0 <= weight < float("inf"):
            raise InputError(f"static weight: expected 0 or more, got {weight}")
        if self.bank and weight != self.options["static_weight"]:
            raise InputError(
                f"static weight: expected {self.options['static_weight']:g}, that of the bank's "
                f"distances, got {weight:g}; leave it out, or use --hubness none"
            )
        return replace(self, options=self.options | {"static_weight": float(weight)})

    def asked(self, static_weight: float | None = None, hubness: str | None = None) -> "Header":
        """The header of a search, see `Index.search`; `InputError` for what cannot be asked."""
        if hubness is not None:
            check_one_of("hubness", hubness, ("bank", "none"))
        if hubness == "bank" and not self.bank:
            raise InputError("hubness: expected an index built with --hubness bank; leave it out")
        header = replace(self, bank="") if hubness == "none" else self
        return header.with_weight(static_weight)

    def score_of(self, squares: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        """Distances, of mean squared differences of what is stored and a weighted query.

        With a static part of weight w: both differ by the lengths of static vectors, `(1 - w)^2`.
        Scores that are relative to a bank, `D - r / 2`, are made so too, of half of them both.
        """
        if not self.static_width:
            return squares
        share = self.width / (self.width - self.static_width)
        lengths = (1.0 - self.options["static_weight"]) ** 2
        return (squares * share - (0.5 * lengths if self.bank else lengths)).astype(np.float32)

    @property
    def first_stage(self) -> str:
        """The column that the first stage of a hybrid search reads."""
        return "sketches" if self.sketch else "embeddings"

    @property
    def first_stage_in_words(self) -> str:
        name, width = self.sketch, self.sketch_width
        return f"sketch {name} of {width} numbers" if name else "embedding"

    @property
    def target(self) -> str:
        """The stream whose steps are compared; the other one is interpolated at them."""
        resample = self.options.get("resample", RESAMPLINGS[0])
        return "audio" if resample == "visual_to_audio" else "visual"

    @property
    def stored_as(self) -> dict:
        """What sequences depend on, as JSON: that of every segment."""
        names = ("identity", "distance", "options", "storage", "bank", "sketch", "name")
        told = {name: getattr(self, name) for name in names}
        told["options"] = {k: v for k, v in self.options.items() if k != "static_weight"}
        return json.loads(json.dumps(told))

    def declared(self, path: Path, root: str | None, clip_seconds: float | None) -> "Header":
        """The header of an index to which such videos are added.

        Args:
          path: of the index, for messages.
          root: the folder that was named as root; None keeps what is.
          clip_seconds: see the attribute; None keeps what is.

        Raises:
          InputError: they contradict what the index was begun with.
        """
        if root is not None and self.root is not None and not same_folder(root, self.root):
            raise InputError(
                f"{path}: expected the root {self.root}, to which the ids of the index are "
                f"relative, got {root}; leave out --root, or build an index with that root. If the "
                "videos have moved, `scav index move` says where to"
            )
        if None not in (clip_seconds, self.clip_seconds) and clip_seconds != self.clip_seconds:
            raise InputError(
                f"{path}: expected {_cut_words(self.clip_seconds)}, as its videos were cut, got "
                f"{_cut_words(clip_seconds)}; give the same, or build another index"
            )
        return replace(
            self,
            root=root if self.root is None else self.root,
            clip_seconds=clip_seconds if self.clip_seconds is None else self.clip_seconds,
        )

    def stored_source(self, source: str) -> str:
        """A file's path as rows hold it: below the root, where it lies there."""
        below = f"{self.root}/".replace("//", "/")
        return source.removeprefix(below) if self.root else source

    def full_source(self, source: str) -> str:
        """A file's path with its folder, where that is known."""
        return os.path.join(self.root, source) if self.root else source


def same_folder(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _cut_words(clip_seconds: float | None) -> str:
    return f"--clip-seconds {clip_seconds:g}" if clip_seconds else "no --clip-seconds"


def make_header(
    identity: str, distance: tuple[str, dict], storage: str, root: str | Path | None = None
) -> Header:
    """A checked header."""
    name, options = distance
    find(name, options)
    check_one_of("storage", storage, STORAGES)
    if "resample" in option_names(name):
        options = {"resample": RESAMPLINGS[0], **options}
    root = None if root is None else os.path.abspath(root)
    own = secrets.token_hex(8)
    return Header(str(identity), name, options, storage, root=root, name=own)


def write_header(path: Path, header: Header) -> None:
    """Atomically."""
    write_document(path / HEADER, asdict(header))


def read_header(path: Path) -> Header:
    """The header of the index at `path`.

    Raises:
      InputError: no index there, or one of another format.
    """
    what = "the header of an index"
    try:
        document = read_object(path / HEADER, what, MEND)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path}: expected an index (a folder with {HEADER}), found none; "
            "make one with `scav index build`"
        ) from None
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected an index of format {FORMAT_VERSION}, got {short(version)}; build it "
            "again with this version"
        )
    return Header(**unsealed(document, f"{path / HEADER}: expected {what}", MEND))


def one_writer(path: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the index for writing; the system lets go of it when the holder ends, however it ends.

    Raises:
      InputError: another writer holds it.
    """
    return only_one(
        path,
        f"{path}: expected to be the only writer, another process is writing; wait until it is "
        "done (readers need not)",
    )
