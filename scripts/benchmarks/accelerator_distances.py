"""Rows of accelerator.py: distances of all pairs, those of training with their gradients."""

import time
from functools import partial

import jax
import numpy as np
from timing import median_seconds

from scav_jax.distances import pairwise
from scav_jax.retrieve import sequence_distances
from scav_jax.sequences import AudioVisual, Sequences, sequences

WIDTH, GAMMA = 512, 0.1
REPEATS = 10
COMPARED = 64  # clips of evaluation that the CPU compares too


def soft_dtw(quick: bool, visual_steps: int, clips: int = 32) -> dict:
    """All pairs of so many clips from latents, values and gradients, beside the same on the CPU."""

    def total(visual, audio):
        found = pairwise("soft_dtw", sequences(visual), sequences(audio), gamma=GAMMA)
        return found.sum(), found

    given = soft_dtw_latents(quick, visual_steps, clips)
    figures, found = with_gradients(total, given, quick)
    if clips > 32:  # which would take the CPU too long
        return figures
    return figures | {"largest_difference_to_cpu": largest_difference(found, on_cpu(total, given))}


def by_ott(quick: bool, visual_steps: int) -> dict:
    """ott's SoftDTW under vmap of vmap."""
    from ott.geometry.costs import SoftDTW

    one = SoftDTW(gamma=GAMMA)

    def total(visual, audio):
        scale = visual.shape[-1] ** -0.5  # its costs sum over channels, ours are means
        of_row = jax.vmap(one, (None, 0))
        found = jax.vmap(of_row, (0, None))(visual * scale, audio * scale)
        return found.sum(), found

    return with_gradients(total, soft_dtw_latents(quick, visual_steps, 32), quick)[0]


def soft_dtw_latents(quick: bool, visual_steps: int, clips: int) -> list[np.ndarray]:
    if quick:
        return latents((4, 9, 8), (4, 6, 8))
    return latents((clips, visual_steps, WIDTH), (clips, 62, WIDTH))


def ragged(quick: bool, resample: str) -> dict:
    """The Euclidean distance of 1,024 clips of 60 to 250 and 20 to 62 steps, with gradients."""
    clips, width = (8, 8) if quick else (1024, WIDTH)
    random = np.random.default_rng(0)
    lengths = [random.integers(low, high + 1, clips) for low, high in ((60, 250), (20, 62))]

    def total(visual, audio):
        both = (
            sequences(x, n.astype(np.int32)) for x, n in zip((visual, audio), lengths, strict=True)
        )
        found = pairwise("euclidean", *both, resample=resample)
        return found.sum(), found

    return with_gradients(total, latents((clips, 250, width), (clips, 62, width)), quick)[0]


def evaluation(quick: bool, distance: str) -> dict:
    """The distances of evaluation, latents and result on the host; some of them on the CPU too."""
    clips, steps, width = (8, 6, 8) if quick else (4000, 62, WIDTH)
    if distance == "dtw":
        clips //= 4
    both = latents((clips, steps, width), (clips, steps, width))
    options = {"resample": "visual_to_audio"} if distance == "euclidean" else {}
    gallery = AudioVisual(*map(on_host, both))
    some = jax.tree.map(lambda leaf: leaf[:COMPARED], gallery)
    call = partial(sequence_distances, gallery, distance, options)
    begin = time.perf_counter()
    found = call()
    first = time.perf_counter() - begin
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        expected = sequence_distances(some, distance, options)
    return {
        "ms": 1e3 * median_seconds(call, 2 if quick else 3),
        "pairs": clips**2,
        "first_s": first,
        "largest_difference_to_cpu": largest_difference(found[:COMPARED, :COMPARED], expected),
    }


# -- how ------------------------------------------------------------------------------------------


def latents(*shapes: tuple[int, int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def on_host(values: np.ndarray) -> Sequences:
    """`sequences`, without a device."""
    count, steps, _ = values.shape
    windows = np.tile(np.float32([0, steps]), (count, 1))
    return Sequences(values, np.full(count, steps, np.int32), windows)


def with_gradients(function, inputs: list[np.ndarray], quick: bool) -> tuple[dict, object]:
    """Milliseconds of values and gradients with what compiling took, and the values themselves."""
    inputs = jax.device_put(inputs)
    begin = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True)).lower(*inputs)
    traced = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    took = median_seconds(lambda: jax.block_until_ready(program(*inputs)), 2 if quick else REPEATS)
    temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", None)
    figures = {
        "ms": 1e3 * took,
        "trace_s": traced - begin,
        "compile_s": compiled - traced,
        "temporary_gib": temporary and temporary / 2**30,
    }
    (_, values), gradients = program(*inputs)
    return figures, jax.device_get((values, gradients))


def on_cpu(function, inputs: list[np.ndarray]):
    """Values and gradients on this machine's CPU."""
    there = jax.local_devices(backend="cpu")[0]
    with jax.default_device(there):
        program = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))
        (_, values), gradients = program(*jax.device_put(inputs, there))
    return jax.device_get((values, gradients))


def largest_difference(found, expected) -> float:
    """The largest over arrays, relative to the largest number in each."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)
