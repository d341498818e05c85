"""Hybrid retrieval against a naive search, its extremes, and blocks against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax import metrics, retrieve
from scav_jax.base.errors import InputError
from scav_jax.distances import DISTANCES
from scav_jax.sequences import AudioVisual, Sequences

DIRECTIONS = ("v2a", "a2v")


def matrices(seed, clips=19, levels=None):
    """Asymmetric similarities and distances; with `levels`, full of ties."""
    random = np.random.default_rng(seed)
    if levels is None:
        return random.normal(size=(2, clips, clips)).astype(np.float32)
    return random.integers(0, levels, (2, clips, clips)).astype(np.float32)


def random_latents(seed, clips=11, visual_steps=9, audio_steps=5, width=3, ragged=True):
    random = np.random.default_rng(seed)

    def stream(steps):
        values = random.normal(size=(clips, steps, width)).astype(np.float32)
        lengths = random.integers(2, steps + 1, clips) if ragged else np.full(clips, steps)
        lengths = lengths.astype(np.int32)
        values[np.arange(steps) >= lengths[:, None]] = 0
        windows = np.stack([np.zeros(clips), lengths], axis=1).astype(np.float32)
        return Sequences(values, lengths, windows)

    return AudioVisual(stream(visual_steps), stream(audio_steps))


def naive_hybrid_rank(similar, far, right, k):
    """Sort twice, as a search would, with the right candidate last among equals."""
    candidates = range(len(similar))
    first = sorted(candidates, key=lambda c: (-similar[c], c == right, far[c]))
    second = sorted(first[:k], key=lambda c: (far[c], c == right)) + first[k:]
    return 1 + second.index(right)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("levels", [None, 1, 2, 5])
def test_hybrid_ranks_equal_a_naive_search(direction, levels):
    similarities, distances = matrices(0, levels=levels)
    ks = range(1, 20)
    ranks = retrieve.hybrid_ranks(similarities, distances, ks, direction)
    for k, row in zip(ks, ranks, strict=True):
        for query, rank in enumerate(row):
            if direction == "v2a":
                similar, far = similarities[query], distances[query]
            else:
                similar, far = similarities[:, query], distances[:, query]
            assert rank == naive_hybrid_rank(similar, far, query, k), (k, query)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("levels", [None, 1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_extremes_are_exactly_aggregation_and_sequence(direction, levels, seed):
    similarities, distances = matrices(seed, clips=37, levels=levels)
    one, everything = retrieve.hybrid_ranks(similarities, distances, [1, 37], direction)
    aggregation = metrics.ranks(-retrieve.queries_first(similarities, direction))
    sequence = metrics.ranks(retrieve.queries_first(distances, direction))
    np.testing.assert_array_equal(one, aggregation)
    np.testing.assert_array_equal(everything, sequence)
    assert metrics.summary(one) == metrics.summary(aggregation)
    assert metrics.summary(everything) == metrics.summary(sequence)


def test_hybrid_finds_no_more_than_its_first_stage():
    similarities, distances = matrices(5, clips=40)
    for direction in DIRECTIONS:
        first_stage = metrics.ranks(-retrieve.queries_first(similarities, direction))
        for k, ranks in zip(
            (2, 7, 20),
            retrieve.hybrid_ranks(similarities, distances, (2, 7, 20), direction),
            strict=True,
        ):
            assert ((ranks <= k) == (first_stage <= k)).all()


def test_ranks_are_a_permutation_of_the_candidates():
    """Every candidate taken as the right one in turn: no rank is given twice."""
    similarities, distances = matrices(8, clips=12)
    rolled = []
    for shift in range(12):
        # Query 0's right candidate is the one that the roll brings to the diagonal.
        pair = np.roll(similarities, -shift, 1), np.roll(distances, -shift, 1)
        rolled.append(retrieve.hybrid_ranks(*pair, [4], "v2a")[0, 0])
    assert sorted(rolled) == list(range(1, 13))


def test_directions_are_rows_and_columns():
    matrix = np.arange(6.0).reshape(2, 3)
    assert retrieve.queries_first(matrix, "v2a")[1, 2] == 5
    assert retrieve.queries_first(matrix, "a2v")[2, 1] == 5
    with pytest.raises(ValueError, match="direction"):
        retrieve.queries_first(matrix, "visual_to_audio")


@pytest.mark.parametrize("k", [0, 20, -1])
def test_k_out_of_range(k):
    with pytest.raises(InputError, match="hybrid k: expected 1 to 19"):
        retrieve.hybrid_ranks(*matrices(0), [k], "v2a")


def test_cosines_by_hand():
    visual = np.array([[3.0, 4.0], [0.0, -2.0]])
    audio = np.array([[10.0, 0.0], [0.0, 1.0], [4.0, -3.0]])
    expected = [[0.6, 0.8, 0.0], [0.0, -1.0, 0.6]]
    np.testing.assert_allclose(
        retrieve.aggregation_similarities(visual, audio), expected, atol=1e-7
    )


@pytest.mark.parametrize(("clips", "width"), [(46, 513), (134, 64), (143, 64), (216, 16)])
def test_equal_candidates_are_equally_similar_wherever_they_stand(random, clips, width):
    """So a collapsed model finds nothing: BLAS rounds the edges of a matrix otherwise."""
    one, other = random.normal(size=(2, 1, width))
    similar = retrieve.aggregation_similarities(*(np.repeat(x, clips, 0) for x in (one, other)))
    assert (metrics.ranks(-similar) == clips).all() and (metrics.ranks(-similar.T) == clips).all()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_embeddings_without_direction(value):
    audio = np.ones((4, 3), np.float32)
    audio[2] = value
    with pytest.raises(InputError, match=r"audio embeddings .* number 2 .1 of 4"):
        retrieve.aggregation_similarities(np.ones((4, 3), np.float32), audio)


@pytest.mark.parametrize("name", ["euclidean", "dtw"])
@pytest.mark.parametrize("ragged", [True, False])
def test_blocks_equal_the_definition(monkeypatch, name, ragged):
    """Blocks of a size that divides neither axis, so that the last one reaches back."""
    latents = random_latents(1, ragged=ragged)
    monkeypatch.setattr(retrieve, "_ROWS", 4)
    monkeypatch.setattr(retrieve, "_COLUMNS", 7)
    blocked = retrieve.sequence_distances(latents, name, {})
    visual, audio = latents
    definition = jax.jit(DISTANCES[name].pair)
    for i in range(11):
        for j in range(11):
            one = [
                jax.tree.map(lambda leaf, c=c: jnp.asarray(leaf[c]), s)
                for s, c in ((visual, i), (audio, j))
            ]
            expected = float(definition(*one))
            assert blocked[i, j] == pytest.approx(expected, rel=2e-5, abs=2e-6), (i, j)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rerank_computes_the_same_distances(direction):
    """With an option that is not the default, and a distance that tells the streams apart."""
    latents = random_latents(2)
    options = {"resample": "audio_to_visual"}
    matrix = retrieve.queries_first(
        retrieve.sequence_distances(latents, "euclidean", options), direction
    )
    random = np.random.default_rng(0)
    queries = np.array([3, 0, 10, 7, 5])
    candidates = np.stack([random.permutation(11)[:4] for _ in queries])
    found = retrieve.rerank(latents, "euclidean", options, queries, candidates, direction)
    expected = np.take_along_axis(matrix[queries], candidates, axis=1)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_top_k_is_ordered():
    similarities = matrices(4)[0]
    chosen = retrieve.top_k(similarities, 6)
    expected = np.argsort(-similarities, axis=1)[:, :6]
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(retrieve.top_k(similarities, 19)[:, :6], expected)


def test_seconds_per_query_times_every_method_on_its_queries(monkeypatch):
    """Each method ranks the candidates of the queries that are timed, in both directions."""
    latents = random_latents(3)
    embeddings = [stream.values.mean(1) for stream in latents]
    found: dict[int, list[np.ndarray]] = {}
    monkeypatch.setattr(
        retrieve, "_shortest", lambda run: found.setdefault(len(found), run()) is None or 1.0
    )
    seconds = retrieve.seconds_per_query(latents, *embeddings, "dtw", {}, [5], sample=3)
    assert seconds == dict.fromkeys(("aggregation", "sequence", "hybrid 5"), pytest.approx(1 / 3))
    distances, count = retrieve.sequence_distances(latents, "dtw", {}), len(latents.audio.lengths)
    chosen = np.array([0, (count - 1) / 2, count - 1]).round().astype(int)
    similarities = retrieve.aggregation_similarities(*embeddings)
    for number, direction in enumerate(retrieve.DIRECTIONS):
        first, sequence, hybrid = (found[3 * number + one] for one in range(3))
        near = retrieve.queries_first(similarities, direction)[chosen]
        far = retrieve.queries_first(distances, direction)[chosen]
        np.testing.assert_array_equal(first, np.argsort(-near, axis=1, kind="stable"))
        np.testing.assert_array_equal(sequence, np.argsort(far, axis=1))
        among = np.take_along_axis(far, first[:, :5], axis=1)
        np.testing.assert_array_equal(hybrid, np.argsort(among, axis=1))
