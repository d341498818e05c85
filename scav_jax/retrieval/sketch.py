"""A sketch of a clip: one vector for each stream that knows what happens when.

The mean over time, which is the usual first stage of a search by sequences, does not know time. A
sketch does: latents, averaged over the cells of a grid of the clip's time, less a mean, become
coefficients of cosines over time and of directions of channels, of which some are kept:

    all = F (grid(latents) - mean) W,          F [steps, steps], W [C, C]
    sketch = unit(all[chosen], common, rest of a picture, rest of a sound)

The cosine of two sketches stands for the distance of the sequences. What is left out has a length,
the rest: it stands at another place for a picture than for a sound, for what is left out of one has
little to do with what is left out of the other. And one number is common to all and longer than the
others together: so sketches lie close together on a large sphere, where cosines rank as distances
do. Without both, a clip with longer latents than another's seems nearer than it is. What is kept is
learned by `sketching` (`scav sketch --run RUN`), after the training and without touching it, and
lies in

    RUN/sketch/maps.npz       mean [C], directions [C, C], chosen [2, S - 3]: waves and columns,
                              common [1]
    RUN/sketch/sketch.json    of which model, its grid, checksum, and recall on validation
"""

import functools
import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.documents import (
    MOST_TEXT_BYTES,
    arrays_in,
    read_document,
    sized_file,
    write_arrays,
    write_document,
)
from scav_jax.base.errors import InputError
from scav_jax.base.files import folder_atomically
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import STREAMS, Sequences

FOLDER, MAPS, ABOUT = "sketch", "maps.npz", "sketch.json"
ARRAYS = ("mean", "directions", "chosen", "common")
MEND = "delete that folder and run `scav sketch` again"
BESIDE = 1 + len(STREAMS)  # numbers of a sketch that are no coefficients
CLIPS_AT_ONCE = 256
TOUCH = 1e-6  # of a step: what a cell reads at least of the step at its middle


@dataclass(frozen=True)
class Sketch:
    """What makes sketches.

    Attributes:
      steps: cells of the grid.
      mean: `[C]`, taken off.
      directions: `[C, C]`, of channels.
      chosen: `[2, S - 3]`, the wave and the direction of each number.
      common: `[1]`, a number of all of them, before they are made of length 1.
    """

    steps: int
    mean: Float[np.ndarray, " C"]
    directions: Float[np.ndarray, "C C"]
    chosen: Int[np.ndarray, "2 S_less_3"]
    common: Float[np.ndarray, "1"]

    @property
    def numbers(self) -> int:
        """S, of a sketch."""
        return self.chosen.shape[1] + BESIDE

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is learned, by name."""
        chosen = np.asarray(self.chosen, np.int32)
        return dict(zip(ARRAYS, (self.mean, self.directions, chosen, self.common), strict=True))

    @property
    def name(self) -> str:
        """16 hexadecimal digits: sketches that the same makes can be compared."""
        found = hashlib.sha256(f"{self.steps}\n".encode())
        for name, values in self.arrays.items():
            found.update(f"{name} {values.shape}\n".encode() + values.tobytes())
        return found.hexdigest()[:16]

    def of(self, latents: Sequences, stream: str) -> Float[np.ndarray, "K S"]:
        """Sketches of K clips, of length 1; of one of which nothing is left, all numbers alike.

        Args:
          latents: of one stream.
          stream: which, "visual" or "audio".
        """
        if latents.values.shape[2] != len(self.mean):
            raise InputError(
                f"sketch: expected latents of width {len(self.mean)}, got "
                f"{latents.values.shape[2]}; {MEND}"
            )
        found = np.zeros((len(latents.values), self.numbers), np.float32)
        kept, rest = self.chosen.shape[1], STREAMS.index(stream) - len(STREAMS)
        found[:, kept] = self.common
        for begin in range(0, len(found), CLIPS_AT_ONCE):
            part = slice(begin, begin + CLIPS_AT_ONCE)
            cells = (
                on_grid(jax.tree.map(operator.itemgetter(part), latents), self.steps) - self.mean
            )
            turned = waves(self.steps) @ (cells @ self.directions)
            found[part, :kept] = turned[:, *self.chosen]
            left = np.square(turned).sum(axis=(1, 2)) - np.square(found[part, :kept]).sum(axis=1)
            found[part, rest] = np.sqrt(np.maximum(left, 0))
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        even = np.float32(found.shape[1] ** -0.5)
        return np.where(norms > 0, found / np.maximum(norms, np.float32(1e-30)), even)


@functools.cache
def cosines(steps: int) -> Float[np.ndarray, "steps steps"]:
    """The orthonormal cosine transform over time, DCT-II, in float64: a wave in each row."""
    number, place = np.arange(steps)[:, None], np.arange(steps)[None, :] + 0.5
    found = np.cos(np.pi * number * place / steps) * np.sqrt(2.0 / steps)
    found[0] /= np.sqrt(2.0)
    return found


@functools.cache
def waves(steps: int) -> Float[np.ndarray, "steps steps"]:
    """The same in float32, as sketches are."""
    return cosines(steps).astype(np.float32)


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


def sketched(embedded: Embedded, sketch: Sketch | None) -> Embedded:
    """Embedded clips with their sketches, of the streams that they have."""
    if sketch is None or not len(embedded):
        return embedded
    found = {
        f"{stream}_sketches": sketch.of(getattr(embedded, stream), stream)
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
        write_arrays(partial / MAPS, sketch.arrays)
        about = {"steps": sketch.steps, "numbers": sketch.numbers, "name": sketch.name}
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
        with sized_file(path / MAPS, "the maps of a sketch", MEND, MOST_TEXT_BYTES) as file:
            parts = arrays_in(file)
        sketch = Sketch(int(about["steps"]), *(parts[name] for name in ARRAYS))
        name = sketch.name
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
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
