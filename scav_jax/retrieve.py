"""Aggregation, sequence and hybrid(k) retrieval (paper section III-D), as functions of arrays.

Matrices are `[visual, audio]` whoever asks; `direction` says who queries whom: "v2a" finds sounds
for a video, "a2v" videos for a sound. It has nothing to do with which stream a distance resamples.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.distances import find, pairwise
from scav_jax.sequences import AudioVisual, Sequences, unit

DIRECTIONS = ("a2v", "v2a")
TIMED_QUERIES = 32  # asked at once while timing
_ROWS, _COLUMNS = 256, 4096  # of one block of the distance matrix
_RANKED = 64  # queries of hybrid at a time


@dataclass(frozen=True)
class Hit:
    """One clip that was found.

    Attributes:
      id: the clip.
      source: its file.
      start, end: where it is in the file, in seconds.
      label: its class, or "".
      score: what ranks: the distance, or for aggregation a cosine (larger is closer); in an index
        with a bank, the distance less half of how near the clip comes to that (smaller is closer).
      rank: from 1.
      distance: of the sequences, smaller is closer; None where they were not compared.
      dynamic, static: which part found it, where a model learned both apart: the distance of what
        changes over the clip, and the cosine of what does not.
    """

    id: str
    source: str
    start: float
    end: float
    label: str
    score: float
    rank: int
    distance: float | None = None
    dynamic: float | None = None
    static: float | None = None


def with_parts(hit: Hit, cosine: float, weight: float) -> Hit:
    """A hit of `D = D_dynamic + weight (2 - 2 cosine)` that says what both parts are."""
    distance = hit.score if hit.distance is None else hit.distance
    dynamic = distance - weight * (2.0 - 2.0 * cosine)
    return replace(hit, dynamic=dynamic, static=cosine)


def queries_first(
    matrix: Float[np.ndarray, "V A"], direction: str
) -> Float[np.ndarray, "queries candidates"]:
    """The same matrix with a row for each query of that direction."""
    if direction == "v2a":
        return matrix
    if direction == "a2v":
        return matrix.T
    raise ValueError(f"direction: expected one of {DIRECTIONS}, got {direction!r}")


def aggregation_similarities(
    visual_embeddings: Float[np.ndarray, "V C"], audio_embeddings: Float[np.ndarray, "A C"]
) -> Float[np.ndarray, "V A"]:
    """Cosines of time-averaged latents: what CAV trains, and the hybrid's first stage.

    BLAS rounds a product by where it stands in the matrix. In float64, then rounded, equal
    candidates are equal, as ranks count them.

    Returns:
      float32 in [-1, 1], larger is closer.

    Raises:
      InputError: an embedding without a direction (all zero, or not finite).
    """
    visual = unit(visual_embeddings, "visual")
    audio = unit(audio_embeddings, "audio").astype(np.float64)
    found = np.empty((len(visual), len(audio)), np.float32)
    for begin in range(0, len(visual), _ROWS):
        rows = slice(begin, begin + _ROWS)
        found[rows] = visual[rows].astype(np.float64) @ audio.T
    return found


def sequence_distances(
    latents: AudioVisual,
    name: str,
    options: dict,
    *,
    progress: bool = False,
) -> Float[np.ndarray, "V A"]:
    """All sequential distances, a block at a time.

    Args:
      latents: `[V, N, C]` visual and `[A, M, C]` audio sequences, on the host.
      name: a distance of `scav_jax.distances`.
      options: its options.
      progress: show a bar with the rate and the time left.

    Returns:
      float32 `[V, A]`, smaller is closer.
    """
    visual, audio = latents
    shape = len(visual.lengths), len(audio.lengths)
    distances = np.empty(shape, np.float32)
    block_distances = pairwise_of(name, options)
    row_blocks, column_blocks = _blocks(shape[0], _ROWS), _blocks(shape[1], _COLUMNS)
    what, pairs = f"distances ({name})", shape[0] * shape[1]
    with progress_bar(what, pairs, "pair", shown=progress, scale=True) as bar:
        for columns in column_blocks:
            candidates = jax.tree.map(lambda leaf, c=columns: jnp.asarray(leaf[c]), audio)
            for rows in row_blocks:
                queries = jax.tree.map(lambda leaf, r=rows: jnp.asarray(leaf[r]), visual)
                distances[rows, columns] = block_distances(queries, candidates)
                done = rows.stop * (columns.stop - columns.start) + shape[0] * columns.start
                bar.update(max(0, done - bar.n))
        bar.update(pairs - bar.n)
    return distances


def own_distances(
    visual: Sequences, audio: Sequences, name: str, options: dict
) -> Float[Array, " K"]:
    """The distance of each clip's own pair; to be traced.

    Args:
      visual, audio: of K clips.
      name: the distance.
      options: its options.
    """
    return jax.vmap(functools.partial(find(name, options).pair, **options))(visual, audio)


def pairwise_of(name: str, options: dict) -> Callable:
    """`pairwise` under a distance, compiled once for its options."""
    return _compiled(name, tuple(sorted(options.items())))


@functools.cache
def _compiled(name: str, options: tuple[tuple[str, object], ...]) -> Callable:
    return jax.jit(functools.partial(pairwise, name, **dict(options)))


def _blocks(count: int, size: int) -> list[slice]:
    """Slices that cover `range(count)`; the last reaches back, so all have one (compiled) size."""
    size = min(size, count)
    begins = [min(begin, count - size) for begin in range(0, count, size)]
    return [slice(begin, begin + size) for begin in begins]


def hybrid_ranks(
    similarities: Float[np.ndarray, "V A"],
    distances: Float[np.ndarray, "V A"],
    ks: Sequence[int],
    direction: str,
) -> Int[np.ndarray, "ks queries"]:
    """Ranks of hybrid(k) retrieval: the k most similar candidates, ordered by distance.

    Candidates that are not among the k follow them in the order of the first stage. So k = 1 has
    exactly the ranks of aggregation-based retrieval, and k = all exactly those of sequence-based.
    Ties count against the query in both stages: of equally similar candidates the right one comes
    last, and the wrong ones enter the k by distance.

    Args:
      similarities: `[V, A]`, larger is closer; clip i's own pair is on the diagonal.
      distances: `[V, A]`, smaller is closer.
      ks: numbers of pre-selected candidates, each in 1..candidates.
      direction: "v2a" or "a2v".

    Returns:
      int64 `[len(ks), queries]`, from 1.
    """
    similarities = queries_first(similarities, direction)
    distances = queries_first(distances, direction)
    if similarities.shape != distances.shape or len(set(similarities.shape)) != 1:
        raise InputError(
            f"expected square similarities and distances of one shape, got {similarities.shape} "
            f"and {distances.shape}"
        )
    check_ks(ks, len(distances))
    result = np.empty((len(ks), len(distances)), np.int64)
    for begin in range(0, len(distances), _RANKED):
        rows = slice(begin, begin + _RANKED)
        some = np.ascontiguousarray(similarities[rows]), np.ascontiguousarray(distances[rows])
        result[:, rows] = _hybrid_ranks(*some, begin, ks)
    return result


def _hybrid_ranks(
    similar: Float[np.ndarray, "Q K"], far: Float[np.ndarray, "Q K"], first: int, ks: Sequence[int]
) -> Int[np.ndarray, "ks Q"]:
    """Of some queries, whose own clips are those from `first` on; nothing is sorted for it."""
    each, count = np.arange(len(far)), far.shape[1]
    own = each + first
    first_stage = np.count_nonzero(similar >= similar[each, own, None], axis=1)
    close = far <= far[each, own, None]
    close[each, own] = False
    ordered = np.partition(similar, [count - k for k in ks], axis=1)
    ranks = np.empty((len(ks), len(far)), np.int64)
    for row, k in enumerate(ks):
        least = ordered[:, count - k, None]  # of the first k
        inside, level = similar > least, similar == least
        # Those as similar as the last one enter by distance: the close ones first.
        entering = np.minimum(k - inside.sum(axis=1), (close & level).sum(axis=1))
        within = 1 + (close & inside).sum(axis=1) + entering
        ranks[row] = np.where(first_stage <= k, within, first_stage)
    return ranks


def check_ks(ks: Sequence[int], candidates: int) -> None:
    """Raises `InputError` unless every k of hybrid(k) is in 1..candidates."""
    for k in ks:
        if not 1 <= k <= candidates:
            raise InputError(
                f"hybrid k: expected 1 to {candidates} (the number of candidates), got {k}; "
                "leave it out"
            )


def top_k(
    similarities: Float[np.ndarray, "queries candidates"], k: int
) -> Int[np.ndarray, "queries k"]:
    """The k most similar candidates of each query, the most similar first."""
    chosen = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(similarities, chosen, axis=1)
    return np.take_along_axis(chosen, np.argsort(-values, axis=1, kind="stable"), axis=1)


@functools.cache
def _own_candidates(name: str, direction: str, options: tuple[tuple[str, object], ...]) -> Callable:
    def all_queries(
        asking: Sequences,
        asked: Sequences,
        queries: Int[Array, " Q"],
        candidates: Int[Array, "Q k"],
    ) -> Float[Array, "Q k"]:
        def one(numbers: tuple[Array, Array]) -> Float[Array, " k"]:
            query = jax.tree.map(lambda leaf: leaf[numbers[0]][None], asking)
            chosen = jax.tree.map(lambda leaf: leaf[numbers[1]], asked)
            if direction == "v2a":
                return pairwise(name, query, chosen, **dict(options))[0]
            return pairwise(name, chosen, query, **dict(options))[:, 0]

        # One query after the other: under `vmap`, a distance that chooses its form at run time
        # would compute every form.
        return jax.lax.map(one, (queries, candidates))

    return jax.jit(all_queries)


def rerank(
    latents: AudioVisual,
    name: str,
    options: dict,
    queries: Int[np.ndarray, " Q"],
    candidates: Int[np.ndarray, "Q k"],
    direction: str,
) -> Float[np.ndarray, "Q k"]:
    """Distances of chosen candidates only: the hybrid's second stage as a search would run it.

    Args:
      latents: of the whole gallery; quicker if it is on the device already.
      name: the distance.
      options: its options.
      queries: Q clip numbers.
      candidates: the k clip numbers that each query's first stage has chosen.
      direction: "v2a" or "a2v".

    Returns:
      float32 `[Q, k]`, smaller is closer.
    """
    asking, asked = latents if direction == "v2a" else latents[::-1]
    distances_of = _own_candidates(name, direction, tuple(sorted(options.items())))
    return np.asarray(
        distances_of(
            *jax.device_put((asking, asked)), jnp.asarray(queries), jnp.asarray(candidates)
        )
    )


def seconds_per_query(
    latents: AudioVisual,
    visual_embeddings: Float[np.ndarray, "K C"],
    audio_embeddings: Float[np.ndarray, "K C"],
    name: str,
    options: dict,
    ks: Sequence[int],
    *,
    sample: int = TIMED_QUERIES,
) -> dict[str, float]:
    """How long each method takes to rank its candidates for one query.

    Latents that are asked for are on the device (of one stream at a time, since a gallery may fill
    it), embeddings on the host. Measured on `sample` queries of each
    direction asked at once, after a run that compiles; the shortest of three runs (fewer where a
    run is slow), mean of both directions.

    Returns:
      Seconds under "aggregation", "sequence" and "hybrid <k>" for each k.
    """
    count = len(visual_embeddings)
    chosen = np.unique(np.linspace(0, count - 1, min(sample, count)).round().astype(int))
    embeddings = {"v2a": (visual_embeddings, audio_embeddings)}
    embeddings["a2v"] = embeddings["v2a"][::-1]

    def first_stage(there: AudioVisual, direction: str, k: int) -> Int[np.ndarray, "Q k"]:
        asking, asked = embeddings[direction]
        return top_k(unit(asking[chosen]) @ unit(asked).T, k)

    def hybrid(there: AudioVisual, direction: str, k: int) -> np.ndarray:
        found = first_stage(there, direction, k)
        queries = np.arange(len(chosen))
        return np.argsort(rerank(there, name, options, queries, found, direction), axis=1)

    def sequence(there: AudioVisual, direction: str) -> np.ndarray:
        return np.argsort(
            queries_first(sequence_distances(there, name, options), direction), axis=1
        )

    methods: dict[str, Callable[[AudioVisual, str], np.ndarray]] = {
        "aggregation": functools.partial(first_stage, k=count),
        "sequence": sequence,
    }
    methods |= {f"hybrid {k}": functools.partial(hybrid, k=k) for k in ks}
    seconds = dict.fromkeys(methods, 0.0)
    for direction in DIRECTIONS:
        there = _asking_some(latents, chosen, direction)
        for method, run in methods.items():
            taken = _shortest(functools.partial(run, there, direction))
            seconds[method] += taken / (len(DIRECTIONS) * len(chosen))
        del there  # before the other stream comes
    return seconds


def _asking_some(
    latents: AudioVisual, chosen: Int[np.ndarray, " Q"], direction: str
) -> AudioVisual:
    """The clips that ask, and all that are asked for, on the device."""
    asking = 0 if direction == "v2a" else 1
    streams = list(latents)
    streams[asking] = jax.tree.map(lambda leaf: leaf[chosen], streams[asking])
    return AudioVisual(*jax.device_put(streams))


def _shortest(run: Callable[[], np.ndarray], repeats: int = 3, slow: float = 2.0) -> float:
    """Seconds of the fastest of a few runs, after one that compiles."""
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < slow:
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
