"""A sketch of a clip: one vector for each stream that knows what happens when.

The mean over time, which is the usual first stage of a search by sequences, does not know time. A
sketch does: latents, averaged over the cells of a coarse grid of the clip's time, become a few
numbers a cell by a linear map, which are laid side by side:

    sketch = unit(flatten(grid(latents) W + b)),  W [C, dims] and b [dims] of each stream

The cosine of two sketches stands for the distance of the sequences. The maps are learned by
`sketching` (`scav sketch --run RUN`), after the training and without touching it, and lie in

    RUN/sketch/maps.npz       visual_map [C, dims], visual_bias [dims], the same of audio
    RUN/sketch/sketch.json    of which model, its grid, checksum, and recall on validation
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scav_jax.base.documents import read_document, write_document
from scav_jax.base.errors import InputError
from scav_jax.base.files import folder_atomically, write_atomically
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import STREAMS, Sequences

FOLDER, MAPS, ABOUT = "sketch", "maps.npz", "sketch.json"
MEND = "delete that folder and run `scav sketch` again"
CLIPS_AT_ONCE = 256
TOUCH = 1e-6  # of a step: what a cell reads at least of the step at its middle


@dataclass(frozen=True)
class Sketch:
    """What makes sketches.

    Attributes:
      steps: cells of the grid.
      arrays: `visual_map`, `visual_bias`, `audio_map`, `audio_bias`, float32.
    """

    steps: int
    arrays: dict[str, np.ndarray]

    @property
    def dims(self) -> int:
        """Numbers a cell."""
        return self.arrays["audio_map"].shape[1]

    @property
    def name(self) -> str:
        """16 hexadecimal digits: sketches that the same makes can be compared."""
        found = hashlib.sha256(f"{self.steps}\n".encode())
        for name, values in sorted(self.arrays.items()):
            found.update(f"{name} {values.shape}\n".encode() + values.tobytes())
        return found.hexdigest()[:16]

    def of(self, stream: str, latents: Sequences) -> Float[np.ndarray, "K S"]:
        """Sketches of one stream of K clips, of length 1."""
        maps, bias = (self.arrays[f"{stream}_{what}"] for what in ("map", "bias"))
        values = np.asarray(latents.values)
        if values.shape[2] != len(maps):
            raise InputError(
                f"sketch: expected latents of width {len(maps)}, got {values.shape[2]}; {MEND}"
            )
        found = np.empty((len(values), self.steps * self.dims), np.float32)
        for begin in range(0, len(values), CLIPS_AT_ONCE):
            part = slice(begin, begin + CLIPS_AT_ONCE)
            cells = on_grid(_part(latents, part), self.steps) @ maps + bias
            found[part] = cells.reshape(len(cells), -1)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return np.where(norms > 0, found / np.maximum(norms, 1e-30), found.shape[1] ** -0.5)


def on_grid(latents: Sequences, steps: int) -> Float[np.ndarray, "K steps C"]:
    """Means over the cells of a grid of the time that both streams of a clip cover.

    Args:
      latents: `[K, T, C]`, with lengths and windows.
      steps: how many cells lie in a window. One that holds no step reads the nearest.
    """
    values, lengths = np.asarray(latents.values, np.float32), np.asarray(latents.lengths)
    windows = np.asarray(latents.windows, np.float64)
    number = np.arange(values.shape[1])
    real = number < lengths[:, None]
    edges = windows[:, :1] + windows[:, 1:] * np.linspace(0.0, 1.0, steps + 1)
    low, high = edges[:, :-1, None], edges[:, 1:, None]
    shares = np.clip(np.minimum(number + 1.0, high) - np.maximum(number, low), 0.0, 1.0)
    middle = np.clip(np.floor((low + high) / 2), 0, lengths[:, None, None] - 1)
    shares = np.where(real[:, None], shares + TOUCH * (number == middle), 0.0)
    shares /= shares.sum(axis=2, keepdims=True)
    return shares.astype(np.float32) @ np.where(real[..., None], values, np.float32(0))


def _part(latents: Sequences, part: slice) -> Sequences:
    return Sequences(latents.values[part], latents.lengths[part], latents.windows[part])


def sketched(embedded: Embedded, sketch: Sketch | None) -> Embedded:
    """Embedded clips with their sketches, of the streams that they have."""
    if sketch is None or not len(embedded):
        return embedded
    found = {
        f"{stream}_sketches": sketch.of(stream, getattr(embedded, stream))
        for stream in STREAMS
        if getattr(embedded, stream) is not None
    }
    return replace(embedded, **found, sketched_by=sketch.name)


def save_sketch(folder: Path, sketch: Sketch, identity: str, figures: dict) -> None:
    """Writes `FOLDER/sketch`, whole or not at all; an older one is replaced.

    Args:
      folder: of the run, or of an exported model.
      sketch: what is written.
      identity: of the model whose latents it takes.
      figures: what it was found to be worth.
    """
    with folder_atomically(folder / FOLDER, replacing=True) as partial:
        content = io.BytesIO()
        np.savez(content, **{name: sketch.arrays[name] for name in sorted(sketch.arrays)})
        write_atomically(partial / MAPS, content.getvalue())
        about = {"steps": sketch.steps, "dims": sketch.dims, "name": sketch.name}
        write_document(partial / ABOUT, about | {"identity": identity, "figures": figures})


def load_sketch(folder: Path, identity: Callable[[], str]) -> Sketch | None:
    """The sketch of a run or an exported model; None where there is none.

    Args:
      folder: of the run.
      identity: says which model that is; asked only where there is a sketch.

    Raises:
      InputError: it is damaged, or of another model.
    """
    if not (folder / FOLDER).is_dir():
        return None
    path = folder / FOLDER
    try:
        about = read_document(path / ABOUT, "what a sketch is", MEND)
        with np.load(path / MAPS, allow_pickle=False) as stored:
            sketch = Sketch(int(about["steps"]), {name: stored[name] for name in stored.files})
        name = sketch.name
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: expected a sketch, it cannot be read ({error}); {MEND}"
        ) from None
    if name != about["name"]:
        raise InputError(f"{path}: expected the sketch {about['name']}, got {name}; {MEND}")
    if about["identity"] != identity():
        raise InputError(
            f"{path}: expected a sketch of the model {identity()}, it is of {about['identity']}, "
            f"as the run was before; {MEND}"
        )
    return sketch
