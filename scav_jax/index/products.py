"""Distances as products of matrices, with a bound on their rounding; and the scores that are final.

The mean squared distance of sequences on one grid is `(|q|^2 + |x|^2 - 2 <q, x>) / n`, n = T C.
BLAS may add in any order; a sum of c products of float32 is then within `c u |q||x|` of the exact
one, u = 2^-24, and pieces of c = 2048 keep that small. So a product decides only which candidates
are near enough to matter (`nearest`); their final score is `mean_square`, the definition itself in
float64, whatever tiles, devices or bounds were used to find them.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

PIECE = 2048
ROUNDING = 2.0**-24
FINAL = 2.0**-46  # of a number of a final score; a TPU makes float64 of two float32
LARGE = 10**9  # multiplications that are worth compiling for their shape
MANY_QUERIES = 512
FEW_QUERIES = 4  # with these, memory is the limit: every thread streams its own rows
THREADS = min(os.cpu_count() or 1, 16)
_CACHED = 2**18  # numbers that stay in a core's cache


def rounding(numbers: int) -> float:
    """A bound on how far `squared` is from n times the final score, in units of |q|^2 + |x|^2.

    Both are at most so far from the exact value: products of pieces and their sum, and the last
    rounding of a score, relative to at most twice the unit.
    """
    pieces = -(-numbers // PIECE)
    return 1.01 * ROUNDING * (min(numbers, PIECE) + pieces + 18)


def thread_pool() -> ThreadPoolExecutor:
    """Threads for what NumPy does outside of Python's lock."""
    return ThreadPoolExecutor(THREADS)


def widen(stored: np.ndarray, out: np.ndarray | None = None) -> Float[np.ndarray, "..."]:
    """Stored numbers as float32, exactly; into `out` (ten times as fast) where that is given."""
    if stored.dtype == np.float32:
        return stored
    if out is None:
        out = np.empty(stored.shape, np.float32)
    np.copyto(out, stored, casting="unsafe")
    return out


def inner(
    queries: Float[np.ndarray, "Q n"], stored: Shaped[np.ndarray, "r n"]
) -> Float[np.ndarray, "Q r"]:
    """Products of queries with stored numbers (scales are not in them), summed piece by piece."""
    return start_inner(queries, stored)()


def start_inner(
    queries: Float[np.ndarray, "Q n"],
    stored: Shaped[np.ndarray, "r n"],
    on_device: Callable | None = None,
) -> Callable[[], np.ndarray]:
    """`inner` under way: XLA, where it is taken, computes while the caller does something else.

    Args:
      queries: the queries.
      stored: the candidates; not to be changed until the result was asked for.
      on_device: gives the queries as `to_device` returned them, where one has that.

    Returns:
      What waits for the products and returns them.
    """
    if len(queries) < FEW_QUERIES:
        return functools.partial(_inner_of_few, queries, stored)
    if len(queries) * stored.size > LARGE and len(queries) >= _queries_for_xla():
        asking = to_device(queries) if on_device is None else on_device()
        under_way = _compiled_inner()(asking, to_device(stored))
        return lambda: np.array(under_way)
    return functools.partial(_inner_of_some, queries, stored)


def to_device(array: np.ndarray):
    """An array where it is multiplied: itself on a CPU if it begins on a record's boundary."""
    import jax

    return jax.device_put(array, may_alias=True)


def _inner_of_some(queries, stored) -> Float[np.ndarray, "Q r"]:
    """The same by NumPy; nothing is compiled."""
    rows, numbers = stored.shape
    total = np.zeros((len(queries), rows), np.float32)
    part = np.empty_like(total)
    wide = np.empty((rows, min(PIECE, numbers)), np.float32)
    for begin in range(0, numbers, PIECE):
        piece = stored[:, begin : begin + PIECE]
        piece = widen(piece, wide[:, : piece.shape[1]])
        np.matmul(queries[:, begin : begin + PIECE], piece.T, out=part)
        np.add(total, part, out=total)
    return total


@functools.cache
def _queries_for_xla() -> float:
    """How many are needed at least until XLA is faster: on an accelerator any large product is.

    On a CPU of AVX-512 many are, by half; of few, and without it, NumPy is, up to ten times.
    """
    import jax

    if jax.default_backend() != "cpu":
        return 1
    known = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
    return MANY_QUERIES if any(name.startswith(("AVX512", "X86_V4")) for name in known) else np.inf


@functools.cache
def _compiled_inner():
    """The same by XLA."""
    import jax

    return jax.jit(jax_inner)


def jax_inner(queries, stored):
    """The same as a JAX function."""
    import jax
    import jax.numpy as jnp

    total = jnp.zeros((len(queries), len(stored)), jnp.float32)
    for begin in range(0, queries.shape[1], PIECE):
        piece = stored[:, begin : begin + PIECE].astype(jnp.float32)
        part = queries[:, begin : begin + PIECE]
        total += jnp.matmul(part, piece.T, precision=jax.lax.Precision.HIGHEST)
    return total


def _inner_of_few(queries, stored) -> Float[np.ndarray, "Q r"]:
    """The same for a few queries: rows of a size that the cache holds, over the threads."""
    rows, numbers = stored.shape
    size = max(_CACHED // numbers, 1)
    total = np.empty((len(queries), rows), np.float32)

    def some(begin: int) -> None:
        tile = widen(stored[begin : begin + size])
        for number, query in enumerate(queries):
            total[number, begin : begin + size] = dots(query[None], tile)

    with thread_pool() as threads:
        list(threads.map(some, range(0, rows, size)))
    return total


def dots(
    queries: Float[np.ndarray, "#p n"], values: Float[np.ndarray, "p n"]
) -> Float[np.ndarray, " p"]:
    """Products of pairs, summed piece by piece; one query is paired with all."""
    pieces = [slice(begin, begin + PIECE) for begin in range(0, values.shape[1], PIECE)]
    return sum(np.vecdot(queries[:, piece], values[:, piece]) for piece in pieces)


def squared(
    products: Float[np.ndarray, "Q r"],
    query_squares: Float[np.ndarray, " Q"],
    squares: Float[np.ndarray, " r"],
    scales: Float[np.ndarray, " r"],
) -> Float[np.ndarray, "Q r"]:
    """`|q - x|^2` from products, in place; may be slightly negative."""
    products *= (-2 * scales)[None, :]
    products += squares.astype(np.float32)[None, :]
    products += query_squares.astype(np.float32)[:, None]
    return products


def mean_square(differences: Float[np.ndarray, "p n"], width: int) -> Float[np.ndarray, " p"]:
    """Final scores, of differences in float64: in whatever order a machine adds, the same float32.

    But for one that lies within `FINAL` of where float32 rounds up or down. Of differences in
    float32 in half the time, within `rough_rounding` of final.
    """
    steps = differences.reshape(len(differences), -1, width)
    sums = np.vecdot(steps, steps).astype(np.float64).sum(axis=1)
    return (sums / differences.shape[1]).astype(np.float32)


def rough_rounding(width: int) -> float:
    """How far `mean_square` of differences in float32 is from the final score, relative to it."""
    return 1.01 * ROUNDING * (width + 8)


def certain(scores: Float64[np.ndarray, " p"], numbers: int) -> Bool[np.ndarray, " p"]:
    """Which of a device's final scores `mean_square` rounds to the same float32, whatever it adds.

    Args:
      scores: sums of squares in float64, or what an accelerator has for it.
      numbers: that were summed.
    """
    apart = FINAL * numbers * scores
    return (scores - apart).astype(np.float32) == (scores + apart).astype(np.float32)


def squares_of(values: Float[np.ndarray, "r n"]) -> Float64[np.ndarray, " r"]:
    """Squared norms, within `rounding` of exact; one pass over the numbers, on all cores."""

    def some(rows: slice) -> Float64[np.ndarray, " n"]:
        pieces = (values[rows, begin : begin + PIECE] for begin in range(0, values.shape[1], PIECE))
        with np.errstate(over="ignore", invalid="ignore"):  # a caller sees infinity
            return sum(np.vecdot(piece, piece).astype(np.float64) for piece in pieces)

    size = max(-(-len(values) // THREADS), -(-_CACHED // max(values.shape[1], 1)))
    parts = [slice(begin, begin + size) for begin in range(0, len(values), size)]
    if len(parts) <= 1:
        return some(slice(None))
    with thread_pool() as threads:
        return np.concatenate(list(threads.map(some, parts)))
