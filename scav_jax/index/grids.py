"""Which sequences are stored, and how queries meet them.

The interpolated Euclidean distance compares step by step on the grid of its target stream (audio,
for `visual_to_audio`). An index stores both streams of a clip on that clip's own target grid. A
clip's own pair is then compared as it was in training; all clips of one duration are compared by
one product of matrices.

At search time a query has no partner. A query of the target stream brings the grid: candidates of
another length are stretched onto it, from their own. A query of the other stream is interpolated
at the grid of each candidate, as the definition says. Windows are whole on a stored grid: a part
of a step at the ends, which trimming left, is not told apart.

All other distances compare sequences of any lengths, and store them as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index.layout import STREAMS, Header
from scav_jax.sequences import Sequences, resample_like

AT_ONCE = 256  # clips


def stored_sequences(embedded: Embedded, header: Header) -> dict[str, Sequences]:
    """Both streams as an index stores them.

    Raises:
      InputError: a clip without one of the streams.
    """
    streams = {name: getattr(embedded, name) for name in STREAMS}
    missing = [name for name, stream in streams.items() if stream is None]
    if missing:
        raise InputError(
            f"expected clips with picture and sound to index, got no {missing[0]} latents; embed "
            "both streams"
        )
    if header.one_grid:
        moved = "visual" if header.target == "audio" else "audio"
        streams[moved] = _on_grid_of(streams[moved], streams[header.target])
    return streams


def _on_grid_of(moved: Sequences, target: Sequences) -> Sequences:
    """Each sequence interpolated at the steps of its own partner."""
    if moved.values.shape == target.values.shape and all(
        np.array_equal(getattr(moved, name), getattr(target, name))
        for name in ("lengths", "windows")
    ):
        return moved
    parts = []
    for begin in range(0, len(moved.lengths), AT_ONCE):
        cut = slice(begin, begin + AT_ONCE)
        pair = jax.tree.map(lambda leaf, cut=cut: jnp.asarray(leaf[cut]), (moved, target))
        parts.append(jax.device_get(_resample_pairs(*pair)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


_resample_pairs = jax.jit(jax.vmap(resample_like))


def interpolate(
    values: Float[np.ndarray, "n S C"], begin: float, extent: float, steps: int
) -> Float[np.ndarray, "n steps C"]:
    """`sequences.resample` of sequences of one length and window to a whole grid, in NumPy."""
    last = values.shape[1] - 1
    pace = np.float32(extent) / np.float32(steps)
    centres = np.arange(steps, dtype=np.float32) + np.float32(0.5)
    positions = np.float32(begin) + centres * pace - np.float32(0.5)
    positions = np.clip(positions, np.float32(0), np.float32(last))
    left = np.minimum(np.floor(positions).astype(np.int64), last)
    weight = (positions - left.astype(np.float32))[None, :, None]
    lower, upper = values[:, left], values[:, np.minimum(left + 1, last)]
    return lower + weight * (upper - lower)


class Queries:
    """Query sequences of one stream, and their form on the grids of candidates.

    Attributes:
      stream: "visual" or "audio".
      sequences: `[Q, T, C]` with lengths and windows, on the host.
    """

    def __init__(self, stream: str, sequences: Sequences, header: Header):
        self.stream, self.sequences = stream, jax.tree.map(np.asarray, sequences)
        self.is_target = header.target == stream

    def __len__(self) -> int:
        return len(self.sequences.lengths)

    def part(self, rows: slice) -> "Queries":
        """Some of the queries."""
        cut = object.__new__(Queries)
        cut.stream, cut.is_target = self.stream, self.is_target
        cut.sequences = jax.tree.map(lambda leaf: leaf[rows], self.sequences)
        return cut

    def groups(self, steps: int) -> list[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n T C"]]]:
        """Queries that are compared with candidates of `steps` steps on one grid.

        Returns:
          For each grid, the numbers of the queries and their values on it. A grid that is not of
          `steps` steps is one that candidates are brought to.
        """
        values, lengths = self.sequences.values, self.sequences.lengths
        if self.is_target:
            different = np.unique(lengths)
            if len(different) == 1:  # most often, and then nothing need be copied
                whole = np.ascontiguousarray(values[:, : different[0]], np.float32)
                return [(np.arange(len(self)), whole)]
            return [
                (numbers, np.ascontiguousarray(values[numbers, :length], np.float32))
                for length in different
                for numbers in [np.flatnonzero(lengths == length)]
            ]
        result = np.empty((len(self), steps, values.shape[2]), np.float32)
        keys = np.column_stack([lengths, self.sequences.windows])
        for key in np.unique(keys, axis=0):
            same = np.flatnonzero((keys == key).all(axis=1))
            source = values[same, : int(key[0])].astype(np.float32)
            if key[0] == steps and abs(key[1]) <= 0.5 and abs(key[1] + key[2] - steps) <= 0.5:
                result[same] = source  # on that grid already
            else:
                result[same] = interpolate(source, key[1], key[2], steps)
        return [(np.arange(len(self)), result)]


def query_streams(direction: str) -> tuple[str, str]:
    """(the stream that asks, the one that is asked)."""
    if direction not in ("a2v", "v2a"):
        raise InputError(f"direction: expected a2v or v2a, got {direction!r}")
    return ("audio", "visual") if direction == "a2v" else ("visual", "audio")


def queries_of(embedded: Embedded, direction: str, header: Header) -> Queries:
    """The sequences that ask.

    Raises:
      InputError: they were not embedded, are of another width, or not finite.
    """
    stream = query_streams(direction)[0]
    sequences = getattr(embedded, stream)
    if sequences is None or getattr(embedded, f"{stream}_embeddings") is None:
        what = "sound" if stream == "audio" else "picture"
        raise InputError(
            f"expected queries with {stream} latents for {direction}, got none; embed the {what} "
            "of the query, or search in the other direction"
        )
    width = sequences.values.shape[2]
    if header.width and width != header.width:
        raise InputError(
            f"expected queries of width {header.width}, got {width}; embed them with the model of "
            "the index"
        )
    queries = Queries(stream, sequences, header)
    real = np.arange(sequences.values.shape[1]) < np.asarray(sequences.lengths)[:, None]
    finite = (np.isfinite(sequences.values).all(axis=2) | ~real).all(axis=1)
    if not finite.all():
        raise InputError(
            f"query {embedded.ids[int(np.flatnonzero(~finite)[0])]!r}: expected finite latents, "
            "got NaN or infinity; look at the model's training log"
        )
    return queries
