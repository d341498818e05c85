"""Ranks and recall of retrieval, average precision of classes: numpy only.

The tie rule of every figure in this package: a candidate that is exactly as close as the right one
counts against the query. So a collapsed model, for which all candidates are equally close, has
R@1 = 0 and not 1. Ranks are counted, never read off a sort, and a NaN is an error, never a query
that quietly disappears.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar

RECALLS = (1, 5, 10)
INTERVAL = 0.95
_TAILS = (100 * (1 - INTERVAL) / 2, 100 * (1 + INTERVAL) / 2)
FEW_QUERIES = 100  # below, R@1 may be off by 10 points either way and more
TIE_RULE = "a candidate exactly as close as the right one counts against the query"
LONG = 1 << 28  # scores of clips and classes in all samples, whose precisions take seconds
_BLOCK_VALUES = 1 << 24  # comparisons held at once while counting


def check_finite(matrix: Float[np.ndarray, "Q K"], what: str = "distances") -> None:
    """Raises `InputError` if a matrix holds NaN or infinity; the message says where and how many.

    Args:
      matrix: `[Q, K]`.
      what: its name in the message.
    """
    bad_rows = np.flatnonzero(~np.isfinite(matrix.sum(axis=1, dtype=np.float64)))
    if not bad_rows.size:
        return
    row = int(bad_rows[0])
    column = int(np.flatnonzero(~np.isfinite(matrix[row]))[0])
    raise InputError(
        f"expected finite {what}, got {matrix[row, column]} for row {row}, column {column} "
        f"({bad_rows.size} of {len(matrix)} rows have such values); the model or its features "
        "hold NaN: look at the training log and check the features"
    )


def right_candidates(
    matrix: Float[np.ndarray, "Q K"], positives: Int[np.ndarray, " Q"] | None
) -> Int[np.ndarray, " Q"]:
    """Which candidate is the right one of each query; by default query i has candidate i."""
    queries, candidates = matrix.shape
    if positives is None:
        if queries != candidates:
            raise InputError(
                f"expected as many queries as candidates, got {queries} and {candidates}; say "
                "which candidate is the right one of each query (positives)"
            )
        return np.arange(queries)
    positives = np.asarray(positives)
    if positives.shape != (queries,) or not np.issubdtype(positives.dtype, np.integer):
        raise InputError(
            f"expected one right candidate (an integer) for each of {queries} queries, got "
            f"{positives.dtype} of shape {positives.shape}"
        )
    if queries and (positives.min() < 0 or positives.max() >= candidates):
        raise InputError(
            f"expected right candidates in 0..{candidates - 1}, got "
            f"{positives.min()}..{positives.max()}"
        )
    return positives


def ranks(
    distances: Float[np.ndarray, "Q K"], positives: Int[np.ndarray, " Q"] | None = None
) -> Int[np.ndarray, " Q"]:
    """The rank of each query's right candidate: 1 + how many others are closer or exactly as close.

    Args:
      distances: `[Q, K]`, query by candidate, smaller is closer (pass `-similarities`).
      positives: `[Q]`, the right candidate of each query; by default the one with its number.

    Returns:
      int64 `[Q]` in 1..K.

    Raises:
      InputError: a NaN or an infinity, or `positives` that do not fit.

    >>> ranks(np.array([[0.1, 0.5], [0.2, 0.2]]))
    array([1, 2])
    """
    distances = np.asarray(distances)
    positives = right_candidates(distances, positives)
    check_finite(distances)
    result = np.empty(len(distances), np.int64)
    block = max(1, _BLOCK_VALUES // max(1, distances.shape[1]))
    for begin in range(0, len(distances), block):
        rows = distances[begin : begin + block]
        right = np.take_along_axis(rows, positives[begin : begin + block, None], axis=1)
        # The right candidate counts itself: that is the 1 of a rank that begins at 1.
        result[begin : begin + block] = np.count_nonzero(rows <= right, axis=1)
    return result


def recall_at_k(ranks: Int[np.ndarray, " Q"], k: int) -> float:
    """The share of queries, 0..1, whose right candidate is among the first k.

    >>> recall_at_k(np.array([1, 3, 2, 9]), 2)
    0.5
    """
    if k < 1:
        raise InputError(f"expected k of at least 1, got {k}")
    return float(np.mean(_checked_ranks(ranks) <= k))


def gallery_recall(ranks: Int[np.ndarray, " Q"], candidates: int, size: int, k: int) -> float:
    """Recall at k in smaller galleries: the mean over all subsets of the candidates, exactly.

    A query that ranks its own among `candidates` has r - 1 others before it. In a gallery of `size`
    that holds its own, the number of these follows a hypergeometric distribution.

    Args:
      ranks: `[Q]`, from 1.
      candidates: how many each query had.
      size: of the smaller galleries, 1..candidates.
      k: as in `recall_at_k`, which this is where `size` is `candidates`.

    >>> gallery_recall(np.array([1, 3]), candidates=3, size=2, k=1)  # of 2 others both are before
    0.5
    """
    from scipy.stats import hypergeom

    if not 1 <= size <= candidates:
        raise InputError(f"expected galleries of 1..{candidates} clips, got {size}")
    before, times = np.unique(_checked_ranks(ranks) - 1, return_counts=True)
    if candidates == 1:  # of no others SciPy says NaN
        return 1.0
    found = hypergeom.cdf(k - 1, candidates - 1, before, size - 1)
    return float(found @ times / times.sum())


def margin(queries: int) -> float:
    """How far a share of so many queries may be off either way, at worst (95 %, at a half).

    >>> round(margin(13), 2), round(margin(550), 2)
    (0.27, 0.04)
    """
    return 0.98 / queries**0.5


def few_queries(queries: int, what: str = "R@1") -> str:
    """What so few queries cannot tell of a share, in words; "" where there are enough.

    >>> few_queries(13)
    'N = 13 is few: R@1 may be off by 27 points either way, differences below that say nothing'
    """
    if queries >= FEW_QUERIES:
        return ""
    return (
        f"N = {queries} is few: {what} may be off by {100 * margin(queries):.0f} points either "
        "way, differences below that say nothing"
    )


def told_apart(share: float, queries: int) -> float:
    """A share rounded down to what so few queries tell apart, their standard error; as it is else.

    So a checkpoint is not better than a later one by the luck of one query in thirteen.

    >>> told_apart(5 / 13, 13) == told_apart(4 / 13, 13), told_apart(0.1234, 550)
    (True, 0.1234)
    """
    if queries >= FEW_QUERIES:
        return share
    step = 0.5 / queries**0.5
    return int(share / step + 1e-9) * step


def summary(
    ranks: Int[np.ndarray, " Q"],
    ks: Sequence[int] = RECALLS,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """Recalls, median and mean rank, each with its 95 % bootstrap interval over queries.

    Args:
      ranks: `[Q]`, from 1.
      ks: which recalls.
      bootstrap: how many resamples of the queries; 0 leaves the intervals out.
      seed: of the resampling: the same seed gives the same intervals.

    Returns:
      `n`, `recall_at_<k>` (0..1), `median_rank`, `mean_rank`, and with `_interval` appended to
      each name but `n` its (low, high) percentiles; of a recall of 0 or 1, which no resample
      changes, the exact bound (Clopper-Pearson). Plain Python numbers.
    """
    ranks = _checked_ranks(ranks)
    values = _figures(ranks[None], ks)
    result: dict = {"n": len(ranks)} | {name: float(value[0]) for name, value in values.items()}
    if bootstrap:
        chosen = _resampled(len(ranks), bootstrap, seed)
        samples = [_figures(ranks[some], ks) for some in chosen]
        for name in values:
            result[f"{name}_interval"] = _interval([figures[name] for figures in samples])
        for k in ks:
            exact = _interval_where_all_agree(ranks <= k, 0.0)
            result[f"recall_at_{k}_interval"] = exact or result[f"recall_at_{k}_interval"]
    return result


def paired_gain(
    ranks: Int[np.ndarray, " Q"],
    others: Int[np.ndarray, " Q"],
    k: int = 1,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """How much more often one of two ways finds the right candidate among the first k.

    Args:
      ranks, others: of the same queries, by both ways.
      k: of the recall.
      bootstrap, seed: of the 95 % interval, queries resampled with both their ranks; 0 leaves it
        out.

    Returns:
      `gain` in -1..1 and `interval`, (low, high); where both ways find the same, exact as for
      `summary`.
    """
    ranks, others = _checked_ranks(ranks), _checked_ranks(others)
    if len(ranks) != len(others):
        raise InputError(f"expected ranks of the same queries, got {len(ranks)} and {len(others)}")
    more = (ranks <= k).astype(float) - (others <= k)
    result: dict = {"gain": float(more.mean())}
    if bootstrap:
        chosen = _resampled(len(more), bootstrap, seed)
        result["interval"] = _interval_where_all_agree(more, -1.0) or _interval(
            [more[some].mean(axis=1) for some in chosen]
        )
    return result


def per_class(ranks: Int[np.ndarray, " Q"], labels: Sequence[str]) -> dict[str, dict]:
    """The summary of the queries of each class, without intervals; `{}` where no label is known.

    Every candidate competes, whatever its class: only the queries are divided.
    """
    ranks = _checked_ranks(ranks)
    if len(labels) != len(ranks):
        raise InputError(f"expected a label for each of {len(ranks)} queries, got {len(labels)}")
    names = np.asarray(labels)
    return {
        str(name): summary(ranks[names == name], bootstrap=0) for name in np.unique(names) if name
    }


def average_precisions(
    scores: Float[np.ndarray, "K C"],
    truth: Bool[np.ndarray, "K C"],
    weights: Float[np.ndarray, "S K"] | None = None,
) -> Float[np.ndarray, "S C"]:
    """Average precision of each class: the sum of (recall gained) x precision over all thresholds.

    Clips with one score are one threshold, so what tells nothing has a class's own share.

    Args:
      scores: `[K, C]`, larger is likelier.
      truth: `[K, C]`, which clips have which class.
      weights: `[S, K]`, how often each clip counts in each of S samples; None is once, in one.

    Returns:
      `[S, C]`, NaN where a sample has no clip of a class.

    >>> average_precisions(np.array([[3.0], [2.0], [1.0]]), np.array([[True], [False], [True]]))
    array([[0.83333333]])
    """
    check_finite(scores, "scores")
    counts = np.ones((len(scores), 1)) if weights is None else np.ascontiguousarray(weights.T)
    found = np.full((counts.shape[1], scores.shape[1]), np.nan)
    for column in range(scores.shape[1]):
        order = np.argsort(-scores[:, column], kind="stable")
        sorted_scores, own = scores[order, column], truth[order, column]
        last = np.append(np.flatnonzero(np.diff(sorted_scores)), len(order) - 1)
        # Recall is gained at the thresholds of clips that have the class, which are few.
        last = last[np.unique(np.searchsorted(last, np.flatnonzero(own)))]
        if not len(last):
            continue
        counted = np.cumsum(counts[order[: last[-1] + 1]], axis=0)[last]
        right = np.cumsum(counts[order[own]], axis=0)[np.cumsum(own)[last] - 1]
        gained = np.diff(right, axis=0, prepend=0.0)
        precision = right / np.maximum(counted, 1.0)
        there = right[-1] > 0
        found[there, column] = (gained * precision).sum(axis=0)[there] / right[-1, there]
    return found


def mean_average_precision(
    scores: Float[np.ndarray, "K C"],
    truth: Bool[np.ndarray, "K C"],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """mAP over the classes that some clip has, with its 95 % bootstrap interval over clips.

    Returns:
      `n`, `mAP`, and `mAP_interval` unless `bootstrap` is 0. Plain numbers.
    """
    there = truth.any(axis=0)
    if not there.any():
        raise InputError("expected clips of a class, got none")
    scores, truth = scores[:, there], truth[:, there]
    count = len(scores)
    result: dict = {"n": count, "mAP": float(average_precisions(scores, truth).mean())}
    means = []
    with progress_bar(
        "intervals", bootstrap, "sample", shown=bootstrap * scores.size > LONG
    ) as bar:
        for chosen in _resampled(count, bootstrap, seed):
            weights = np.stack([np.bincount(row, minlength=count) for row in chosen]).astype(float)
            found = average_precisions(scores, truth, weights)
            # A sample of clips, of which some have no class, may have none of any.
            means.append(np.nanmean(found[np.isfinite(found).any(axis=1)], axis=1))
            bar.update(len(chosen))
    if any(map(len, means)):
        result["mAP_interval"] = _interval(means)
    return result


def _checked_ranks(ranks: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not ranks.size or not np.issubdtype(ranks.dtype, np.integer):
        raise InputError(
            f"expected the integer ranks of at least one query, got {ranks.dtype} of shape "
            f"{ranks.shape}"
        )
    if ranks.min() < 1:
        raise InputError(f"expected ranks from 1, got {ranks.min()}")
    return ranks


def _figures(ranks: Int[np.ndarray, "S Q"], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Each figure of S samples of ranks, `[S]`."""
    figures = {f"recall_at_{k}": np.mean(ranks <= k, axis=1) for k in ks}
    figures["median_rank"] = np.median(ranks, axis=1)
    figures["mean_rank"] = np.mean(ranks, axis=1)
    return figures


def _resampled(count: int, samples: int, seed: int) -> Iterator[Int[np.ndarray, "S count"]]:
    """Numbers of so many queries or clips drawn with replacement, some samples at a time."""
    random, block = np.random.default_rng(seed), max(1, _BLOCK_VALUES // 8 // count)
    for begin in range(0, samples, block):
        yield random.integers(0, count, size=(min(block, samples - begin), count))


def _interval(blocks: list[Float[np.ndarray, " S"]]) -> list[float]:
    """The percentile interval of a figure of all samples, (low, high)."""
    return [float(bound) for bound in np.percentile(np.concatenate(blocks), _TAILS)]


def _interval_where_all_agree(values: Shaped[np.ndarray, " Q"], least: float) -> list[float] | None:
    """As far as so many without an exception can tell; None where there is one.

    Args: what each has, `least` (0 or -1) to 1.
    """
    value = float(values[0])
    if (values != values[0]).any():
        return None
    unseen = 1 - (_TAILS[0] / 100) ** (1 / len(values))  # so rare is seen by none in 2.5 %
    return [value - (value - least) * unseen, value + (1 - value) * unseen]
