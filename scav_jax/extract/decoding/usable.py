"""Which clips there is nothing to learn from: too short, silent, still."""

import functools
import math

import numpy as np
from jaxtyping import Float, UInt8

from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.media import Media
from scav_jax.extract.fbank import RATE_HZ

MIN_CLIP_S = 1.0  # less picture and sound than this together has nothing to contrast
SILENT_PEAK = 1e-4  # of full scale
STILL_LEVELS = 2.5  # of 255: re-encoded still pictures reach 2, slight motion starts at 6
STILL_GRID = 8


def check_usable(media: Media) -> None:
    """Raises `Unusable` for a clip that has nothing to learn from: too short, silent, still."""
    begin, end = media.frames_span
    if media.waveform is not None:
        end = min(end, len(media.waveform) / RATE_HZ)
    shared = end - max(begin, 0.0)
    if shared < MIN_CLIP_S - 1e-3:
        both = media.frames is not None and media.waveform is not None
        raise Unusable(
            "check",
            f"too short: {max(shared, 0.0):.2f} s{' with picture and sound' if both else ''}, "
            f"at least {MIN_CLIP_S:g} s are needed",
        )
    if media.waveform is not None:
        peak = float(np.abs(media.waveform).max())
        if peak < SILENT_PEAK:
            raise Unusable("check", f"silent: its peak is {peak:.1e} of full scale")
    change = math.inf if media.frames is None else largest_change(media.frames)
    if change < STILL_LEVELS:
        raise Unusable(
            "check", f"still: no part of the picture changes by more than {change:.2f} of 255"
        )


def largest_change(frames: UInt8[np.ndarray, "N height width 3"]) -> float:
    """The largest change over time of the mean of any cell of an 8 x 8 grid, in levels of 255.

    Means of cells, because neither sensor noise nor compression noise is motion.
    """
    count, height, width, _ = frames.shape
    grid = min(STILL_GRID, height, width)
    low, high = np.float32(np.inf), np.float32(-np.inf)
    at_once = max(1, 2**22 // (height * width * 3))
    for begin in range(0, count, at_once):
        means = grid_means(frames[begin : begin + at_once], grid)
        low, high = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0))
    return float(np.max(high - low))


def grid_means(
    images: UInt8[np.ndarray, "n height width 3"], grid: int
) -> Float[np.ndarray, "n cells"]:
    """Mean of each of the `grid` x `grid` cells, [row, column, channel] flattened.

    Pixels at the right and at the bottom that fill no cells are left out. Columns are summed by a
    matrix product, which is several times faster than reducing short axes; sums of bytes are
    integers, which float32 has exactly below 2**24.
    """
    rows, columns = images.shape[1] // grid, images.shape[2] // grid
    part = images[:, : rows * grid, : columns * grid]
    lines = part.reshape(-1, columns * grid * 3).astype(np.float32)
    sums = (lines @ _column_sums(grid, columns)).reshape(len(images), grid, rows, grid * 3)
    return sums.sum(axis=2).reshape(len(images), -1) / np.float32(rows * columns)


@functools.lru_cache(maxsize=16)  # of pictures of so many sizes
def _column_sums(grid: int, columns: int) -> Float[np.ndarray, "pixels cells"]:
    """1 where a pixel column and channel lies in a grid column of the same channel."""
    cells = np.kron(np.eye(grid, dtype=np.float32), np.ones((columns, 1), np.float32))
    return np.kron(cells, np.eye(3, dtype=np.float32))
