"""Which clips there is nothing to learn from: too short, silent, still."""

import math

import numpy as np
from jaxtyping import UInt8

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
    rows, columns = height // grid, width // grid
    sums = np.kron(np.eye(grid), np.ones((columns, 1)))  # columns -> cells, for each channel
    sums = np.kron(sums, np.eye(3)).astype(np.float32)
    low, high = np.float32(np.inf), np.float32(-np.inf)
    at_once = max(1, 2**22 // (height * width * 3))
    for begin in range(0, count, at_once):
        part = frames[begin : begin + at_once, : rows * grid, : columns * grid]
        lines = part.reshape(-1, columns * grid * 3).astype(np.float32) @ sums
        means = lines.reshape(len(part), grid, rows, -1).sum(axis=2) / np.float32(rows * columns)
        low, high = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0))
    return float(np.max(high - low))
