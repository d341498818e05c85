"""Sketches: short vectors that are never further apart than the sequences they are of.

A sequence is turned into coefficients: cosines over time (DCT-II) of its channels in a basis of
their principal directions. That is a rotation, so distances stay as they are; for sequences that
change slowly, or whose channels go together, a few coefficients hold most of it. A sketch is the
coefficients that hold most, and one number more: the norm of all that is left out. With P the
projection on those that are kept,

    |q - x|^2 >= |P q - P x|^2 + (|q - P q| - |x - P x|)^2,

so the distance of two sketches is a lower bound on that of their sequences.

The basis is that of the clips that came first, both streams together; any other would be as right,
only looser. Two sketches are stored: `coarse`, as many numbers as channels, and `fine`, an eighth
of the sequence.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scav_jax.index import products
from scav_jax.retrieval.sketch import cosines
from scav_jax.sequences import Sequences

BINS = 64  # of frequencies, relative to the highest
SHARE = 8  # a fine sketch has one number for so many of the sequence
OF_DIRECTIONS, OF_ENERGY = 2048, 256  # clips that a basis is of
AT_ONCE = 128  # clips
ROUNDING = 1e-10  # of what is computed here, in float64, in units of |x|^2


def sizes(steps: int, width: int) -> tuple[int, int]:
    """How many numbers the coarse and the fine sketch of a sequence have."""
    coarse = max(width, 2)
    return coarse, min(max(steps * width // SHARE, coarse), steps * width + 1)


def _bins(steps: int) -> Int[np.ndarray, " f"]:
    """The bin of each frequency; the mean has its own."""
    frequencies = np.arange(steps)
    return np.where(frequencies == 0, 0, 1 + frequencies * (BINS - 1) // steps)


@dataclass(frozen=True)
class Selection:
    """Which coefficients of sequences of one length are kept, by frequency.

    Attributes:
      count: how many.
      cosines: `[f, T]`, the frequencies that any of them has.
      widest: how many directions are looked at.
      parts: for each frequency, directions of the basis and their places among all.
      weights: `[count + 1]` float32, about how large each number of a sketch is; what is rounded
        to bytes is divided by it.
    """

    count: int
    cosines: np.ndarray
    widest: int
    parts: list[tuple[np.ndarray, slice]]
    weights: np.ndarray


class Basis:
    """Directions of channels, and how much coefficients hold.

    Attributes:
      table: `[C + BINS, C]` float32, as it is stored: directions as columns, then the mean square
        of the coefficients of each bin of frequencies and direction.
      loose: directions are rounded: how far their products are from those of orthonormal ones.
    """

    def __init__(self, table: Float[np.ndarray, "rows C"]):
        self.table = table
        width = table.shape[1]
        self.directions = np.ascontiguousarray(table[:width], np.float64)
        own = self.directions.T @ self.directions
        self.loose = 1.01 * float(np.linalg.norm(own - np.eye(width))) + ROUNDING
        self._selections: dict[tuple[str, int], Selection] = {}

    @classmethod
    def of(cls, streams: dict[str, Sequences], centre: Float[np.ndarray, " C"]) -> "Basis":
        """The basis of some clips."""
        width = len(centre)
        # Directions need many clips, or they fit only those that they are of.
        together = np.zeros((width, width))
        for one in _sample(streams, centre, OF_DIRECTIONS):
            some = one[:, :: max(one.shape[1] // 8, 1)].reshape(-1, width)
            together += some.T @ some
        directions = np.linalg.eigh(together)[1][:, ::-1].astype(np.float32)
        sums, counts = np.zeros((BINS, width)), np.zeros(BINS)
        for one in _sample(streams, centre, OF_ENERGY):
            steps = one.shape[1]
            turned = np.matmul(cosines(steps), one) @ directions.astype(np.float64)
            np.add.at(sums, _bins(steps), np.square(turned).sum(axis=0))
            np.add.at(counts, _bins(steps), len(one))
        energy = sums / np.maximum(counts, 1)[:, None]
        known = 1 + np.flatnonzero(counts[1:])  # other lengths have frequencies in between
        if len(known):
            energy[1:] = np.stack(
                [np.interp(np.arange(1, BINS), known, column[known]) for column in energy.T], axis=1
            )
        energy = energy.astype(np.float32)
        if not energy.any():  # later clips, of any size, would be divided by next to nothing
            energy[:] = 1.0
        return cls(np.concatenate([directions, energy]))

    def selection(self, column: str, steps: int) -> Selection:
        """What a sketch keeps of sequences of a length: `coarse` or `fine`."""
        if (column, steps) not in self._selections:
            width = self.table.shape[1]
            energy = self.table[width:][_bins(steps)].ravel()
            count = sizes(steps, width)[column == "fine"] - 1
            largest = np.argsort(-energy, kind="stable")
            chosen = np.sort(largest[:count])  # by frequency
            rest = energy[largest[count:]].sum(dtype=np.float64)
            used, first = np.unique(chosen // width, return_index=True)
            parts = [
                (chosen[a:b] % width, slice(a, b))
                for a, b in itertools.pairwise([*first.tolist(), count])
            ]
            widest = min(-(-(int((chosen % width).max()) + 1) // 64) * 64, width)
            large = np.sqrt(np.append(energy[chosen], rest))
            weights = np.maximum(large, 1e-3 * large.max() + 1e-30).astype(np.float32)
            self._selections[column, steps] = Selection(
                count, cosines(steps)[used], widest, parts, weights
            )
        return self._selections[column, steps]

    def stored_weights(self, column: str, steps: int) -> Float[np.ndarray, " m"]:
        """What stored numbers are to be multiplied with, besides the scale of each clip.

        Bytes have one step for all numbers of a clip, which differ in size; other numbers have
        none.
        """
        weights = self.selection(column, steps).weights
        return weights if column == "fine" else np.ones_like(weights)

    def sketch(
        self, column: str, sequences: Float[np.ndarray, "n T C"]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "n m"], Float[np.ndarray, " n"]]]:
        """A sketch of sequences less the centre, `coarse` or `fine`.

        Yields:
          Which sequences, their sketches and how far off each is at most, float64.
        """
        parts = [
            slice(begin, min(begin + AT_ONCE, len(sequences)))
            for begin in range(0, len(sequences), AT_ONCE)
        ]
        selection = self.selection(column, sequences.shape[1])
        if len(parts) == 1:
            yield parts[0], *self._sketch(selection, sequences)
            return
        with products.thread_pool() as threads:
            for begin in range(0, len(parts), products.THREADS):
                pair = parts[begin : begin + products.THREADS]
                made = threads.map(lambda part: self._sketch(selection, sequences[part]), pair)
                for part, one in zip(pair, made, strict=True):
                    yield part, *one

    def _sketch(self, selection: Selection, sequences) -> tuple[np.ndarray, np.ndarray]:
        values = sequences.transpose(1, 0, 2).astype(np.float64, order="C")
        squares = sum(np.vecdot(step, step) for step in values)
        steps, count, width = values.shape
        waves = selection.cosines @ values.reshape(steps, -1)
        # One product of a round width: BLAS takes six times as long for several of odd ones.
        turned = waves.reshape(-1, width) @ self.directions[:, : selection.widest]
        turned = turned.reshape(-1, count, selection.widest)
        result = np.empty((count, selection.count + 1))
        for one, (directions, columns) in zip(turned, selection.parts, strict=True):
            result[:, columns] = one[:, directions]
        inside = np.vecdot(result[:, :-1], result[:, :-1])
        rest = np.sqrt(np.maximum(squares - inside, 0.0))
        result[:, -1] = rest
        # |a - b| = |a^2 - b^2| / (a + b), and at most the root of |a^2 - b^2|.
        off = np.sqrt((2 * self.loose + ROUNDING) * squares)
        return result, off / np.maximum(rest / np.maximum(off, 1e-150), 1.0)


def _sample(
    streams: dict[str, Sequences], centre: Float[np.ndarray, " C"], most: int
) -> Iterator[Float[np.ndarray, "n T C"]]:
    """Some clips spread over all, both streams, less the centre, by length."""
    for stream in streams.values():
        lengths, values = np.asarray(stream.lengths), stream.values
        chosen = np.unique(np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(int))
        for length in np.unique(lengths[chosen]):
            same = chosen[lengths[chosen] == length]
            for begin in range(0, len(same), AT_ONCE):
                part = np.asarray(values)[same[begin : begin + AT_ONCE], :length]
                yield part.astype(np.float64) - centre
