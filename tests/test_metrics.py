"""Ranks and recall against matrices written out by hand, a naive loop and pytrec_eval."""

import hashlib
import itertools

import numpy as np
import pytest
import pytrec_eval
import scipy.stats

from scav_jax import metrics
from scav_jax.base.errors import InputError
from scav_jax.base.files import ids_sha256

# Four queries, eight candidates; the right ones are 0, 1, 2, 3. Rows by hand:
# 0: nothing is closer                      -> 1
# 1: 0.1 and 0.2 are closer                 -> 3
# 2: two others are exactly as close        -> 3
# 3: everything is closer                   -> 8
DISTANCES = np.array(
    [
        [0.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
        [0.1, 0.3, 0.2, 0.7, 0.6, 0.5, 0.4, 0.9],
        [0.5, 0.9, 0.5, 0.7, 0.6, 0.5, 0.8, 0.9],
        [0.0, 0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6],
    ]
)
RANKS = np.array([1, 3, 3, 8])


def naive_rank(row, right):
    others = [value for column, value in enumerate(row) if column != right]
    return 1 + sum(value < row[right] for value in others) + others.count(row[right])


def tied_distances(seed, queries=23, candidates=23, levels=9):
    return np.random.default_rng(seed).integers(0, levels, (queries, candidates)).astype(float)


def test_matrix_written_by_hand():
    ranks = metrics.ranks(DISTANCES, np.arange(4))
    np.testing.assert_array_equal(ranks, RANKS)
    assert ranks.dtype == np.int64
    assert [metrics.recall_at_k(ranks, k) for k in (1, 2, 3, 7, 8)] == [0.25, 0.25, 0.75, 0.75, 1]


@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_a_naive_loop_with_ties_and_any_positives(seed):
    random = np.random.default_rng(seed)
    distances, positives = tied_distances(seed, 17, 29), random.integers(0, 29, 17)
    expected = [naive_rank(row, right) for row, right in zip(distances, positives, strict=True)]
    np.testing.assert_array_equal(metrics.ranks(distances, positives), expected)


def test_blocks_do_not_change_the_ranks(monkeypatch):
    distances = tied_distances(0)
    whole = metrics.ranks(distances)
    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 5 * 23 + 1)
    np.testing.assert_array_equal(metrics.ranks(distances), whole)


def test_recall_in_smaller_galleries_is_the_mean_over_all_subsets():
    ranks, candidates = np.array([1, 3, 5, 2, 4]), 5
    for size in range(1, candidates + 1):
        for k in (1, 2, 3):
            found = []
            for rank in ranks:
                others = [other for other in range(1, candidates + 1) if other != rank]
                for gallery in itertools.combinations(others, size - 1):
                    found.append(sum(other < rank for other in gallery) < k)
            expected = np.mean(found)  # as many subsets of each query
            got = metrics.gallery_recall(ranks, candidates, size, k)
            assert got == pytest.approx(expected, abs=1e-12)
    for k in (1, 2, 3):
        whole = metrics.gallery_recall(ranks, candidates, candidates, k)
        assert whole == pytest.approx(metrics.recall_at_k(ranks, k), abs=1e-12)
    assert metrics.gallery_recall(np.array([1]), 1, 1, 1) == 1.0  # alone, it is found
    for size in (0, 6):
        with pytest.raises(InputError, match=r"galleries of 1\.\.5"):
            metrics.gallery_recall(ranks, candidates, size, 1)


def test_a_query_is_a_row():
    """On an asymmetric matrix the transpose has other ranks, so a wrong axis is seen."""
    distances = np.random.default_rng(1).normal(size=(13, 13))
    assert (metrics.ranks(distances) != metrics.ranks(distances.T)).any()
    rows = [naive_rank(distances[i], i) for i in range(13)]
    columns = [naive_rank(distances[:, i], i) for i in range(13)]
    np.testing.assert_array_equal(metrics.ranks(distances), rows)
    np.testing.assert_array_equal(metrics.ranks(distances.T), columns)


def test_a_collapsed_model_finds_nothing():
    ranks = metrics.ranks(np.full((7, 7), 0.25, np.float32))
    np.testing.assert_array_equal(ranks, np.full(7, 7))
    assert metrics.recall_at_k(ranks, 1) == 0


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_pytrec_eval(k):
    distances = np.random.default_rng(k).permuted(np.tile(np.arange(31.0), (31, 1)), axis=1)
    judged = {f"q{i}": {f"c{i}": 1} for i in range(31)}
    scores = {f"q{i}": {f"c{j}": -distances[i, j] for j in range(31)} for i in range(31)}
    measured = pytrec_eval.RelevanceEvaluator(judged, {f"success.{k}"}).evaluate(scores)
    expected = np.mean([figures[f"success_{k}"] for figures in measured.values()])
    assert metrics.recall_at_k(metrics.ranks(distances), k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(2, 2), (3, 5)])
def test_not_finite_is_an_error_that_says_where(bad, where):
    distances = np.random.default_rng(0).normal(size=(6, 6))
    distances[where] = bad
    with pytest.raises(InputError, match=f"row {where[0]}, column {where[1]} .1 of 6"):
        metrics.ranks(distances)


def test_all_nan_is_an_error():
    with pytest.raises(InputError, match="nan"):
        metrics.ranks(np.full((3, 3), np.nan))


def test_positives_must_fit():
    distances = np.zeros((2, 3))
    with pytest.raises(InputError, match="as many queries as candidates"):
        metrics.ranks(distances)
    for positives in ([0, 3], [-1, 0]):
        with pytest.raises(InputError, match="expected"):
            metrics.ranks(distances, np.array(positives))


def test_summary_by_hand():
    summary = metrics.summary(RANKS, bootstrap=0)
    assert summary == {
        "n": 4,
        "recall_at_1": 0.25,
        "recall_at_5": 0.75,
        "recall_at_10": 1.0,
        "median_rank": 3.0,
        "mean_rank": 3.75,
    }


def test_summary_needs_ranks_from_one():
    for wrong in (np.array([], int), np.array([0, 1])):
        with pytest.raises(InputError, match="expected"):
            metrics.summary(wrong)


def test_intervals_are_seeded_and_hold_the_figure():
    ranks = metrics.ranks(tied_distances(3, 200, 200, 5000))
    first, again = metrics.summary(ranks, seed=1), metrics.summary(ranks, seed=1)
    assert first == again
    assert first["mean_rank_interval"] != metrics.summary(ranks, seed=2)["mean_rank_interval"]
    for name in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank"):
        low, high = first[f"{name}_interval"]
        assert low <= first[name] <= high


def test_intervals_do_not_depend_on_the_block(monkeypatch):
    whole = metrics.summary(RANKS, bootstrap=50)
    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 8 * len(RANKS) * 7)
    assert metrics.summary(RANKS, bootstrap=50) == whole


def test_an_interval_leaves_as_much_out_above_as_below():
    ranks = np.array([1, 2] * 500)
    low, high = metrics.summary(ranks, bootstrap=20_000)["recall_at_1_interval"]
    deviation = np.sqrt(0.25 / 1000)
    np.testing.assert_allclose([0.5 - low, high - 0.5], 1.96 * deviation, rtol=0.08)


@pytest.mark.parametrize("queries", [1, 40, 1000])
def test_all_or_none_found_is_no_certainty(queries):
    """Where nothing varies a resample tells nothing: scipy's Clopper-Pearson bound."""
    found, missed = np.full(queries, 1), np.full(queries, 50)
    unseen = scipy.stats.binomtest(0, queries).proportion_ci().high
    all_found = metrics.summary(found)["recall_at_10_interval"]
    none_found = metrics.summary(missed)["recall_at_10_interval"]
    np.testing.assert_allclose(all_found, [1 - unseen, 1], rtol=1e-9)
    np.testing.assert_allclose(none_found, [0, unseen], rtol=1e-9)
    assert metrics.summary(missed)["median_rank_interval"] == [50, 50]
    same = metrics.paired_gain(found, found)
    assert same["gain"] == 0
    np.testing.assert_allclose(same["interval"], [-unseen, unseen], rtol=1e-9)
    only = metrics.paired_gain(found, missed)  # the unseen ones may be found by the other alone
    np.testing.assert_allclose(only["interval"], [1 - 2 * unseen, 1], rtol=1e-9)


def test_interval_has_the_binomial_width_and_covers():
    """95 % of the intervals of repeated experiments hold the true recall (within chance)."""
    random, truth, n = np.random.default_rng(0), 0.3, 250
    covered, widths = 0, []
    for experiment in range(200):
        ranks = np.where(random.random(n) < truth, 1, 2)
        low, high = metrics.summary(ranks, (1,), bootstrap=200, seed=experiment)[
            "recall_at_1_interval"
        ]
        covered += low <= truth <= high
        widths.append(high - low)
    assert 178 <= covered <= 199
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(truth * (1 - truth) / n), rel=0.1)


def test_per_class_divides_the_queries_only():
    classes = metrics.per_class(RANKS, ["dog", "cat", "", "dog"])
    assert list(classes) == ["cat", "dog"]
    assert classes["dog"]["n"] == 2
    assert classes["dog"]["recall_at_1"] == 0.5
    assert classes["cat"]["median_rank"] == 3
    assert metrics.per_class(RANKS, [""] * 4) == {}
    with pytest.raises(InputError, match="a label for each of 4"):
        metrics.per_class(RANKS, ["dog"])


def test_hash_of_the_ids_is_of_the_set():
    expected = hashlib.sha256(b"a\nb\nc\n").hexdigest()
    assert ids_sha256(["b", "a", "c"]) == expected
    assert ids_sha256(["b", "a"]) != expected
    assert ids_sha256(["ab"]) != ids_sha256(["a", "b"])
