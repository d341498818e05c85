"""Search: every method against NumPy loops, and what exactness promises, to the bit."""

import argparse
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_index import embedded, made

from scav_jax.base import names
from scav_jax.base.errors import InputError
from scav_jax.index import (
    catalog,
    create,
    mesh,
    open_index,
    products,
    pruned,
    scan,
    searching,
    sketches,
)
from scav_jax.index import program as index_commands
from scav_jax.index import rows as table
from scav_jax.index.nearest import NearestSoFar
from scav_jax.index.pruned import Bounds
from scav_jax.index.scan import Queries, Scan
from scav_jax.index.segments import StoredStream
from scav_jax.retrieval import model as retrieval_model
from scav_jax.retrieval.model import Model
from scav_jax.search import __main__ as program
from scav_jax.search import asking as asking_module
from scav_jax.sequences import Sequences
from scav_jax.sharding import make_mesh

METHODS = ("aggregation", "sequence", "exact", "hybrid:4")


def loops(queries, clips, direction: str) -> np.ndarray:
    """Mean squared differences of clips of one length, one pair after the other, in float64."""
    asking, asked = ("audio", "visual") if direction == "a2v" else ("visual", "audio")
    a, b = (getattr(one, name).values for one, name in ((queries, asking), (clips, asked)))
    result = np.empty((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i, j] = np.mean(np.square(x.astype(np.float64) - y.astype(np.float64)))
    return result


def ids(hits) -> list[list[str]]:
    return [[one.id for one in found] for found in hits]


def scores(hits) -> np.ndarray:
    return np.asarray([[one.score for one in found] for found in hits])


def clustered(count: int, steps: int, width: int, seed: int, prefix="clip"):
    """Clips of a few kinds with some variation, some of them the same: what bounds can prune."""
    random = np.random.default_rng(seed)
    kinds = np.random.default_rng(seed // 1000).standard_normal((7, steps, width))
    clips = embedded(count, steps, width, seed=seed, prefix=prefix)
    base = kinds[random.integers(0, 7, count)] * 2
    base[count // 2 : count // 2 + 5] = base[0]
    streams = {}
    for name, stream in (("visual", clips.visual), ("audio", clips.audio)):
        values = (base + 0.2 * random.standard_normal(base.shape)).astype(np.float32)
        values[count // 2 : count // 2 + 5] = values[0]  # ties, to the bit
        streams[name] = replace_values(stream, values)
    means = {f"{name}_embeddings": s.values.mean(axis=1) for name, s in streams.items()}
    return replace(clips, **streams, **means)


def replace_values(stream: Sequences, values: np.ndarray) -> Sequences:
    return Sequences(values, stream.lengths, stream.windows)


# ---- against loops ---------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 3, 11])  # few queries take another way than many
@pytest.mark.parametrize("direction", ["a2v", "v2a"])
def test_sequence_is_the_loop(tmp_path, direction, queries):
    clips, asking = embedded(50), embedded(queries, seed=7)
    index = made(tmp_path / "i", 50)
    expected = loops(asking, clips, direction)
    hits = index.search(asking, direction, 8, "sequence")
    order = np.argsort(expected, axis=1)[:, :8]
    assert ids(hits) == [[f"clip{n}" for n in row] for row in order]
    np.testing.assert_allclose(scores(hits), np.take_along_axis(expected, order, 1), rtol=1e-6)
    assert [[one.rank for one in found] for found in hits] == [list(range(1, 9))] * queries


def test_aggregation_is_the_cosine(tmp_path):
    clips, asking = embedded(50), embedded(5, seed=7)
    hits = made(tmp_path / "i", 50).search(asking, "v2a", 6, "aggregation")
    q, x = asking.visual_embeddings, clips.audio_embeddings
    cosines = q @ x.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)[None]
    order = np.argsort(-cosines, axis=1)[:, :6]
    assert ids(hits) == [[f"clip{n}" for n in row] for row in order]
    np.testing.assert_allclose(scores(hits), np.take_along_axis(cosines, order, 1), rtol=1e-5)


def test_hybrid_ranks_the_first_stages_choice_by_distance(tmp_path):
    clips, asking = embedded(200), embedded(5, seed=7)
    index = made(tmp_path / "i", 200)
    hits = index.search(asking, "a2v", 3, "hybrid:6")
    assert index.report.method == "hybrid"
    first = index.search(asking, "a2v", 6, "aggregation")
    expected = loops(asking, clips, "a2v")
    for number, found in enumerate(hits):
        chosen = [int(one.id[4:]) for one in first[number]]
        chosen.sort(key=lambda clip: expected[number, clip])
        assert [one.id for one in found] == [f"clip{clip}" for clip in chosen[:3]]


def test_hybrid_of_all_is_sequence(tmp_path):
    asking, index = embedded(5, seed=7), made(tmp_path / "i", 40)
    everything = index.search(asking, "a2v", 40, "sequence")
    assert index.search(asking, "a2v", 40, "hybrid:40") == everything
    assert index.report.method == "sequence"  # it is faster so


def test_a_hybrid_search_switches_by_what_a_pair_costs():
    """Short sequences are compared outright from fewer candidates on than long ones."""

    def done(chosen, numbers, queries):
        header = catalog.Header("model")
        return searching.switched("hybrid", chosen, 100_000, queries, header, numbers)

    assert done(500, 1024, 1000) == "sequence" == done(10_000, 62 * 512, 1000)
    assert done(5000, 62 * 512, 1000) == "hybrid"
    assert done(20_000, 1024, 1) == "hybrid"  # products of one query read everything, too


def test_second_stage_over_all_candidates_is_sequence(tmp_path, monkeypatch):
    """Pairs alone and by products of all, with bounds and without, and no switch to all."""
    asking, index = embedded(70, seed=7), made(tmp_path / "i", 40)
    everything = index.search(asking, "a2v", 10, "sequence")
    monkeypatch.setattr(searching, "switched", lambda method, *_: method)
    for pair, worth, sketch in ((0, 0, 0), (1000, 0, 0), (1000, 0, 99), (0, 99, 0)):
        monkeypatch.setattr(pruned, "pair_cost", lambda *_, pair=pair: pair)
        monkeypatch.setattr(pruned, "WORTH", worth)
        monkeypatch.setattr(pruned, "SKETCH", sketch)
        assert index.search(asking, "a2v", 10, "hybrid:40") == everything


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_the_second_stage_compares_few_of_the_chosen(tmp_path, monkeypatch, stored):
    """What its bounds rule out is not read, and the result is that of comparing all of them."""
    monkeypatch.setattr(searching, "switched", lambda method, *_: method)
    index = create(tmp_path / "i", identity="m", storage=stored)
    index.add(clustered(300, 20, 12, 4))
    asking = clustered(9, 20, 12, 4, prefix="q")
    compared, offer = [], Scan.offer

    def counting(scan, nearest, queries, *rest):
        compared.append(len(queries))
        offer(scan, nearest, queries, *rest)

    monkeypatch.setattr(Scan, "offer", counting)
    found = index.search(asking, "a2v", 5, "hybrid:200")
    assert sum(compared) < 0.5 * 9 * 200
    compared.clear()
    monkeypatch.setattr(pruned, "WORTH", 10**6)
    assert index.search(asking, "a2v", 5, "hybrid:200") == found and sum(compared) == 9 * 200


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_long_sequences_are_compared_alone_with_the_same_scores(tmp_path, monkeypatch, stored):
    index, asking = made(tmp_path / "i", 30, stored=stored), embedded(6, seed=3)
    together = index.search(asking, "a2v", 30, "sequence")
    monkeypatch.setattr(scan, "LONG", 1)
    alone = []
    differences = StoredStream.differences
    monkeypatch.setattr(
        StoredStream,
        "differences",
        lambda *given, **how: alone.append(1) or differences(*given, **how),
    )
    assert index.search(asking, "a2v", 30, "sequence") == together and alone
    # Whatever found them, each record is looked at when it is first read.
    monkeypatch.setattr(searching, "switched", lambda method, *_: method)
    assert open_index(index.path).search(asking, "a2v", 30, "hybrid:30") == together
    file = index.path / "segments" / "00000000" / "visual.values"
    data = bytearray(file.read_bytes())
    data[len(data) // 30 * 5 + 3] ^= 4
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"visual.values, row 5.*clip 'clip5'"):
        open_index(index.path).search(asking, "a2v", 30, "hybrid:30")


def test_hits_are_read_by_name_or_all_at_once(tmp_path, monkeypatch):
    index, asking = made(tmp_path / "i", 60), embedded(7, seed=3)
    index.add(embedded(40, seed=5, prefix="late"))
    found = index.search(asking, "a2v", 3, "sequence")
    for named in (0, 10**6):  # never all; always
        monkeypatch.setattr(table, "NAMED", named)
        assert index.search(asking, "a2v", 3, "sequence") == found
    assert {one.id[:4] for hits in found for one in hits} == {"clip", "late"}


@pytest.fixture(autouse=True)
def bounds_pay(monkeypatch):
    """A few short clips are compared outright: here, exact search rules out what it can."""
    monkeypatch.setattr(searching, "SKETCHING", -1)
    monkeypatch.setattr(searching, "BOUNDING", 0)


@pytest.fixture
def without_accelerators(monkeypatch):
    """Where there is one it compares all, and bounds rule nothing out."""
    monkeypatch.setattr(mesh, "accelerators", list)


def test_exact_search_compares_all_where_that_is_faster(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(mesh, "accelerators", list)
    index = made(tmp_path / "i", 30)
    many, few = embedded(8, seed=1), embedded(7, seed=1)
    assert index.search(many, "a2v", 3, "exact") == index.search(many, "a2v", 3, "sequence")
    index.search(many, "a2v", 3, "exact")
    assert index.report.method == "sequence" and index.report.pruning.pairs == 0
    assert index.search(few, "a2v", 3, "sequence") == index.search(few, "a2v", 3, "exact")
    assert index.report.method == "exact" and index.report.pruning.pairs == 7 * 30
    numbers = ((62 * 512, 10_000), (62 * 512, 500), (16 * 64, 100_000))
    done = [searching.switched("exact", 10, n, 1000, index.header, size) for size, n in numbers]
    assert done == ["exact", "sequence", "sequence"]


# ---- exactness -------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_accelerators")
def test_exact_is_sequence_on_many_seeds(tmp_path, monkeypatch):
    # So few clips are compared outright: here, what bounds save is taken to be worth it.
    monkeypatch.setattr(pruned, "pair_cost", lambda *_: 0)
    pruned_shares = []
    stored = ("float32", "bfloat16", "int8")
    for seed in range(12):
        random = np.random.default_rng(seed)
        count, steps, width = (int(random.integers(*r)) for r in ((20, 90), (1, 24), (3, 20)))
        bank = clustered(200, steps, width, seed + 7000) if seed % 2 else None  # see test_hubness
        index = create(tmp_path / str(seed), identity="m", storage=stored[seed % 3], bank=bank)
        index.add(clustered(count, steps, width, seed))
        asking = clustered(int(random.integers(1, 9)), steps, width, seed, prefix="q")
        for direction, kept in itertools.product(("a2v", "v2a"), (0, 2**20)):
            k = int(random.integers(1, 12))
            monkeypatch.setattr(pruned, "KEPT", kept)
            everything = index.search(asking, direction, k, "sequence")
            assert index.search(asking, direction, k, "exact") == everything, seed
            pruned_shares.append(index.report.pruning.share)
    assert np.mean(np.asarray(pruned_shares) > 0.3) > 0.5  # else nothing was tested


def test_bounds_are_below_the_scores(tmp_path, monkeypatch):
    for stored in ("float32", "bfloat16", "int8"):
        index = create(tmp_path / stored, identity="m", storage=stored)
        clips = clustered(60, 13, 9, 5)
        index.add(clips)
        asking = Queries.of(clustered(8, 13, 9, 6), "a2v", index.header)
        scanned = Scan(asking, index.snapshot)
        (tile,) = scanned.tiles()
        (grid,) = scanned.grids(tile.steps)
        stream = tile.segment.streams["visual"]
        about = stream.rows[tile.rows]
        pairs = [one.ravel() for one in np.meshgrid(np.arange(8), np.arange(60), indexing="ij")]
        places = (pairs[0], 0 * pairs[0], pairs[1])
        exact = scanned.scores(*places).reshape(8, 60).astype(float)
        of = Bounds(scanned)
        values = stream.read("values", tile.rows).astype(np.float64) * about["scale"][:, None]
        for column in ("coarse", "fine"):
            asked = of.of(column, grid)
            squared = asked.squared(stream.read(column, tile.rows), about)
            for number in range(60):
                # A pair is never left out while the limit is its own score or more.
                limits = exact[:, number, None]
                assert (squared[:, [number]] <= asked.thresholds(about, limits)).all()
            for each in (0, 10**6):  # pairs alone; by products
                monkeypatch.setattr(pruned, "sketch_pair_cost", lambda _, each=each: each)
                low = of.pairs(column, *places).reshape(8, 60)
                assert (low <= exact).all()
            # Nor are bounds too low: hardly below what the definition says.
            basis = tile.segment.encoding.basis
            selection, both = basis.selection(column, 13), []
            for one in (grid.values, values):
                turned = np.einsum("ntc,ft->nfc", one.reshape(-1, 13, 9), sketches.cosines(13))
                turned = turned @ basis.directions
                order = np.sort(np.argsort(-basis.table[9:][sketches._bins(13)].ravel(),
                                           kind="stable")[: selection.count])  # fmt: skip
                own = turned.reshape(len(one), -1)[:, order]
                rest = np.square(one).sum(axis=1) - np.square(own).sum(axis=1)
                both.append(np.column_stack([own, np.sqrt(np.maximum(rest, 0))]))
            right = np.square(both[0][:, None] - both[1][None]).mean(axis=2)
            right *= both[0].shape[1] / grid.values.shape[1]
            assert (right <= exact * 1.00001).all()
            far = right > 0.1 * right.mean()
            assert (low[far] > 0.75 * right[far]).all() and low.mean() > 0.93 * right.mean()


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_bounds_that_hold_all_of_a_sequence_are_below_its_scores(tmp_path, stored):
    """Clips that do not change: a sketch is as far from another as they are, but for rounding."""
    clips = embedded(60, 13, 9, seed=5)
    flat = {
        name: replace_values(one, np.tile(one.values[:, :1], (1, 13, 1)))
        for name, one in (("visual", clips.visual), ("audio", clips.audio))
    }
    clips = replace(clips, **flat)
    index = create(tmp_path / "i", identity="m", storage=stored)
    index.add(clips)
    asking = Queries.of(clips, "a2v", index.header)
    scanned = Scan(asking, index.snapshot)
    pairs = [one.ravel() for one in np.meshgrid(np.arange(60), np.arange(60), indexing="ij")]
    places = (pairs[0], 0 * pairs[0], pairs[1])
    exact = scanned.scores(*places)
    low = Bounds(scanned).pairs("fine", *places)
    assert (low <= exact).all() and low.mean() > 0.95 * exact.mean()


def test_limits_are_the_kth_score_and_not_a_better_one(tmp_path, monkeypatch):
    """The pairs with the lowest bounds hold one of the five nearest; the others come later."""
    monkeypatch.setattr(searching, "switched", lambda method, *_: method)
    random = np.random.default_rng(0)
    clips = embedded(160, 20, 12)
    noise = random.standard_normal((160, 20, 12))
    noise[6:10] = noise[0]
    flat = 4 * random.standard_normal((160, 1, 12))
    flat[:6] = 0
    flat[6:10] = np.sqrt([0.5, 0.6, 0.7, 0.8])[:, None, None]
    stream = replace_values(clips.visual, (noise + flat).astype(np.float32))
    index = create(tmp_path / "i", identity="m")
    index.add(replace(clips, visual=stream, audio=stream))
    asking = searching_take(replace(clips, visual=stream, audio=stream), 0)
    assert ids(index.search(asking, "a2v", 5, "sequence")) == [
        [f"clip{n}" for n in (0, 6, 7, 8, 9)]
    ]
    for method in ("exact", "hybrid:150"):
        found = index.search(asking, "a2v", 5, method)
        assert ids(found)[0][0] == "clip0"
        if method == "exact":
            assert found == index.search(asking, "a2v", 5, "sequence")
    everything = (np.zeros(160, np.int64), np.zeros(160, np.int64), np.arange(160))
    scanned = Scan(Queries.of(asking, "a2v", index.header), index.snapshot)
    monkeypatch.setattr(pruned, "SKETCH", 0)
    found = pruned.nearest_of_chosen(scanned, *everything, 5)
    assert sorted(index.snapshot.segments[0].keys[found[2]].tolist()) == [0, 6, 7, 8, 9]


@pytest.mark.parametrize("steps", [1, 3, 8, 62])
def test_sketches_are_never_further_apart_than_sequences(steps):
    """Of clips that the basis is not of, too, and of those that it holds entirely."""
    random = np.random.default_rng(steps)
    clips = embedded(40, steps, 10, seed=1)
    centre = np.full(10, 0.25, np.float32)
    basis = sketches.Basis.of({"audio": clips.audio, "visual": clips.visual}, centre)
    assert basis.loose < 1e-5
    walks = np.cumsum(random.standard_normal((30, steps, 10)), axis=1)
    flat = np.tile(random.standard_normal((10, 1, 10)), (1, steps, 1))  # one frequency
    noise = random.standard_normal((10, steps, 10)) * 1e-3
    sequences = np.concatenate([walks, flat, noise, flat + noise, 0 * noise]).astype(np.float32)
    real = np.square(sequences[:, None] - sequences[None]).sum(axis=(2, 3), dtype=np.float64)
    real = np.sqrt(real)
    for column, size in zip(("coarse", "fine"), sketches.sizes(steps, 10), strict=True):
        parts = list(basis.sketch(column, sequences))
        found = np.concatenate([part[1] for part in parts])
        off = np.concatenate([part[2] for part in parts])
        assert found.shape == (70, size) and (off <= 0.01 * np.sqrt(size) + 0.01 * real.max()).all()
        apart = np.sqrt(np.square(found[:, None] - found[None]).sum(axis=2))
        most = real * np.sqrt(1 + basis.loose) + off[:, None] + off[None]
        assert (apart <= most).all()
        # The norm stays what it is: what is left out is in the last number.
        norms = np.sqrt(np.square(sequences.astype(np.float64)).sum(axis=(1, 2)))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), norms, rtol=1e-6, atol=1e-9)


def test_an_index_that_began_with_zeros_finds_large_clips(tmp_path):
    def times(factor, clips):
        streams = {
            name: replace_values(getattr(clips, name), getattr(clips, name).values * factor)
            for name in ("visual", "audio")
        }
        return replace(clips, **streams)

    index = create(tmp_path / "i", identity="m")
    index.add(times(np.float32(0), embedded(2, prefix="nothing")))
    index.add(times(np.float32(1e12), embedded(40)))
    asking = times(np.float32(1e12), embedded(4, seed=7))
    found = index.search(asking, "a2v", 5, "sequence")
    assert index.search(asking, "a2v", 5, "exact") == found


@pytest.mark.usefixtures("without_accelerators")
def test_what_does_not_count_is_not_found_where_fewer_than_k_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pruned, "pair_cost", lambda *_: 0)  # all that bounds leave is compared
    index, asking = made(tmp_path / "i", 30), embedded(9, seed=7)
    index.delete([f"clip{number}" for number in range(0, 30, 4)])
    for where in (None, "label = 'dog'"):
        found = index.search(asking, "a2v", 30, "sequence", where=where)
        assert index.search(asking, "a2v", 30, "exact", where=where) == found


@pytest.mark.usefixtures("without_accelerators")
def test_principal_directions_rule_out_what_means_do_not(tmp_path, monkeypatch):
    """Clips with the same mean over any part of the time that differ in a few directions."""
    monkeypatch.setattr(pruned, "pair_cost", lambda *_: 0)
    random = np.random.default_rng(0)
    signs = np.tile([1.0, -1.0], 12)[None, :, None]
    few = random.standard_normal((200, 1, 3)) @ random.standard_normal((3, 24)) * 3
    clips = embedded(200, 24, 24)
    noise = 0.1 * random.standard_normal((2, 200, 24, 24))
    streams = {
        name: replace_values(getattr(clips, name), (signs * few + one).astype(np.float32))
        for name, one in zip(("visual", "audio"), noise, strict=True)
    }
    index = create(tmp_path / "i", identity="m")
    clips = replace(clips, **streams)
    index.add(clips)
    assert index.search(clips, "a2v", 3, "exact") == index.search(clips, "a2v", 3, "sequence")
    index.search(clips, "a2v", 3, "exact")
    assert index.report.pruning.share > 0.9


@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_chosen_are_the_nearest_also_where_cosines_tie(tmp_path, k, random):
    """Some embeddings come thrice, some differ by less than products round."""
    clips = embedded(60)
    values = random.standard_normal((20, clips.visual_embeddings.shape[1])).astype(np.float32)
    values = np.concatenate([values, values, values * np.float32(1 + 1e-7)])
    index = create(tmp_path / "i", identity="m")
    index.add(replace(clips, visual_embeddings=values))
    asking = random.standard_normal((9, values.shape[1])).astype(np.float32)
    queries = Queries.of(replace(embedded(9), audio_embeddings=asking), "a2v", index.header)
    report = searching.Report("aggregation")
    query, segment, row, _ = searching._nearest_by_cosine(index.snapshot, queries, k, k, report)
    found = searching.most_similar(queries, index.snapshot, k)
    assert (np.diff(found[0]) >= 0).all() and len(found[0]) == 9 * k
    expected = sorted(zip(query.tolist(), segment.tolist(), row.tolist(), strict=True))
    assert sorted(zip(*(column.tolist() for column in found), strict=True)) == expected


def test_ties_are_in_the_order_of_adding(tmp_path):
    clips = embedded(12)
    same = replace_values(clips.visual, np.tile(clips.visual.values[:1], (12, 1, 1)))
    index = create(tmp_path / "i", identity="m")
    index.add(replace(clips, visual=same))
    index.add(replace(embedded(12, prefix="late"), visual=same))
    expected = [[f"clip{n}" for n in range(12)] + ["late0", "late1", "late2"]]
    one = embedded(1, seed=3)
    for method in ("sequence", "exact"):
        assert ids(index.search(one, "a2v", 15, method)) == expected
    index.delete(["clip3"])
    index.compact()
    expected[0].remove("clip3")
    assert ids(index.search(one, "a2v", 14, "exact")) == expected


@pytest.mark.parametrize("by", ["NumPy", "XLA"])
def test_products_stay_within_their_bound(random, monkeypatch, by):
    """Also where cancellation is worst: near pairs far from zero."""
    monkeypatch.setattr(products, "_queries_for_xla", lambda: 1 if by == "XLA" else np.inf)
    monkeypatch.setattr(products, "LARGE", 0)
    for numbers in (40, 5000):
        x = (100 + random.standard_normal((6, numbers))).astype(np.float32)
        q = x[:5] + np.float32(1e-3)
        exact = np.square(q[:, None].astype(np.float64) - x[None].astype(np.float64)).sum(axis=2)
        for queries in (q, q[:2]):
            own, squares = products.squares_of(queries), products.squares_of(x)
            found = products.squared(
                products.inner(queries, x), own, squares, np.ones(6, np.float32)
            )
            error = np.abs(found - exact[: len(queries)])
            bound = products.rounding(numbers) * (own[:, None] + squares[None])
            assert (error <= bound).all() and bound.max() < 0.01 * np.max(own + squares[:1])


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_final_scores_are_sums_rounded_once_and_rough_ones_near_them(tmp_path, random, stored):
    """Of what is stored, as `math.fsum` has it; from far, where float32 loses most digits."""
    clips, asking = embedded(30, 7, 24, seed=1), embedded(5, 7, 24, seed=2)
    far = 300 + random.standard_normal(asking.audio.values.shape)
    asking = replace(asking, audio=replace_values(asking.audio, far.astype(np.float32)))
    index = create(tmp_path / "i", identity="m", storage=stored)
    index.add(clips)
    hits = index.search(asking, "a2v", 30, "sequence")
    stream = index.snapshot.segments[0].streams["visual"]
    stored = stream.read("values", slice(0, 30)).astype(np.float32)
    kept = (stored * stream.rows["scale"][:30, None]).astype(np.float64)
    centred = asking.audio.values - index.snapshot.encoding.centre
    for query, of in zip(centred.reshape(5, -1).astype(np.float64), hits, strict=True):
        exact = {
            f"clip{n}": math.fsum(((query - x) ** 2).flat) / x.size for n, x in enumerate(kept)
        }
        assert [np.float32(exact[hit.id]) for hit in of] == [np.float32(hit.score) for hit in of]
    apart = (centred.reshape(5, 1, -1) - kept.astype(np.float32)).reshape(150, -1)
    rough = products.mean_square(apart, 24).astype(np.float64)
    final = products.mean_square(apart.astype(np.float64), 24)
    assert 0 < np.max(np.abs(rough - final) / final) <= products.rough_rounding(24)


def test_a_score_is_certain_where_no_other_sum_rounds_otherwise():
    middle = 1 + 2.0**-24  # between two numbers of float32
    apart = 40 * products.FINAL
    scores = middle + np.array([-2, -0.5, 0, 0.5, 2]) * apart
    assert products.certain(scores, 40).tolist() == [True, False, False, False, True]


def test_nearest_so_far_keeps_all_that_can_be_near(random):
    distances = random.standard_normal((4, 300))
    errors = np.full(4, 0.05)
    nearest = NearestSoFar(4, 5)
    for begin in range(0, 300, 60):
        block = distances[:, begin : begin + 60].astype(np.float32)
        nearest.offer(np.arange(4), block, errors, 0, np.arange(begin, begin + 60))
    query, _, row = nearest.candidates()
    for number in range(4):
        kth = np.sort(distances[number])[4]
        sure = set(np.flatnonzero(distances[number] <= kth))
        may = set(np.flatnonzero(distances[number] <= kth + 0.11))
        assert sure <= set(row[query == number]) <= may


# ---- lengths and padding ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", ["a2v", "v2a"])
def test_padding_and_company_change_nothing(tmp_path, monkeypatch, method, direction):
    # Whether a hybrid search compares all depends on how many ask; what it finds otherwise not.
    monkeypatch.setattr(searching, "switched", lambda method, *_: method)
    lengths = np.random.default_rng(1).integers(1, 8, 25)
    index = made(tmp_path / "i", 25, lengths=lengths)
    asking = embedded(6, seed=4, lengths=[7, 3, 3, 1, 7, 5])
    together = index.search(asking, direction, 5, method)
    for number in range(6):
        alone = searching_take(asking, number)
        for stream in (alone.audio, alone.visual):
            assert stream.values.shape[1] <= 7
        assert index.search(alone, direction, 5, method)[0] == together[number]
    if method == "exact":
        assert together == index.search(asking, direction, 5, "sequence")


def searching_take(clips, number: int):
    """One clip, without its padding."""
    cut = {}
    for name in ("visual", "audio"):
        stream = getattr(clips, name)
        length = int(stream.lengths[number])
        rows = slice(number, number + 1)
        cut[name] = Sequences(
            stream.values[rows, :length], stream.lengths[rows], stream.windows[rows]
        )
        cut[f"{name}_embeddings"] = getattr(clips, f"{name}_embeddings")[rows]
    lists = {n: getattr(clips, n)[number : number + 1] for n in ("ids", "sources", "labels")}
    times = {n: getattr(clips, n)[number : number + 1] for n in ("starts", "ends")}
    return replace(clips, **cut, **lists, **times)


def test_lengths_that_differ_are_stretched(tmp_path):
    """Against the definition: pairs of whole sequences."""
    lengths = [7, 4, 5, 7, 2]
    clips = embedded(5, lengths=lengths)
    index = made(tmp_path / "i", 5, lengths=lengths)
    asking = embedded(2, seed=4, lengths=[6, 4])
    for direction in ("a2v", "v2a"):
        hits = index.search(asking, direction, 5, "sequence")
        query = asking.audio if direction == "a2v" else asking.visual
        for number, found in enumerate(hits):
            for hit in found:
                other = clips.visual if direction == "a2v" else clips.audio
                place = int(hit.id[4:])
                streams = [
                    jax.tree.map(lambda leaf, n=n: jax.numpy.asarray(leaf[n]), one)
                    for one, n in ((query, number), (other, place))
                ]
                visual, audio = streams if direction == "v2a" else streams[::-1]
                from scav_jax.distances.euclidean import euclidean

                assert hit.score == pytest.approx(float(euclidean(visual, audio)), rel=1e-5)


def test_candidates_that_are_stretched_are_as_many_as_their_grid_allows(tmp_path, monkeypatch):
    """Short clips and a long query: tiles are of the stretched size, and so is what is made."""
    index, asking = made(tmp_path / "i", 90, steps=2), embedded(1, steps=40)
    everything = index.search(asking, "a2v", 5, "sequence")
    width, made_at_once, interpolate = asking.audio.values.shape[2], [], scan.interpolate

    def watched(values, begin, extent, steps):
        made_at_once.append(len(values))
        return interpolate(values, begin, extent, steps)

    monkeypatch.setattr(scan, "interpolate", watched)
    monkeypatch.setattr(scan, "STRETCHED", 8 * 40 * width)
    scanned = Scan(Queries.of(asking, "a2v", index.header), index.snapshot)
    tiles = list(scanned.tiles(tile_bytes=4 * 40 * width * 20))
    assert [one.rows.stop - one.rows.start for one in tiles] == [20, 20, 20, 20, 10]
    assert index.search(asking, "a2v", 5, "sequence") == everything
    assert sum(made_at_once) >= 90 and max(made_at_once) == 8


# ---- filters, sizes, mistakes ----------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_filters(tmp_path, method):
    index, asking = made(tmp_path / "i", 30), embedded(3, seed=5)
    every = index.search(asking, "a2v", 30, method.replace("4", "30"))
    kept = index.search(
        asking, "a2v", 30, method.replace("4", "30"), "label = 'dog' AND start < 20"
    )
    for all_of, some in zip(every, kept, strict=True):
        wanted = [one.id for one in all_of if one.label == "dog" and one.start < 20]
        assert [one.id for one in some] == wanted and len(wanted) == 4
    assert ids(index.search(asking, "a2v", 3, method, "id = 'nobody'")) == [[], [], []]
    assert index.report.candidates == 0


@pytest.mark.parametrize(
    "where, words", [("lable = 'dog'", "No field named lable"), ("label = 'dog", "expected a cond")]
)
def test_bad_filters_are_one_line(tmp_path, where, words):
    index = made(tmp_path / "i", 3)
    with pytest.raises(InputError, match=words) as raised:
        index.search(embedded(1), "a2v", 1, "exact", where)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_index_and_a_large_k(tmp_path, method):
    index, asking = made(tmp_path / "i", 0), embedded(3, seed=5)
    assert index.search(asking, "a2v", 5, method) == [[], [], []]
    index.add(embedded(4))
    hits = index.search(asking, "a2v", 99, method)
    assert [sorted(one) for one in ids(hits)] == [["clip0", "clip1", "clip2", "clip3"]] * 3


def test_bad_searches_are_one_line(tmp_path):
    index, asking = made(tmp_path / "i", 3), embedded(1, seed=5)
    nan = replace_values(asking.audio, np.full_like(asking.audio.values, np.nan))
    wrong = [
        (lambda: index.search(asking, "sideways"), "a2v or v2a"),
        (lambda: index.search(asking, "a2v", 0), "k: expected at least 1"),
        (lambda: index.search(asking, "a2v", 1, "hybrid"), "hybrid:K"),
        (lambda: index.search(asking, "a2v", 1, "hybrid:0"), "hybrid:K"),
        (lambda: index.search(replace(asking, audio=None), "a2v"), "embed the sound"),
        (lambda: index.search(replace(asking, visual=None), "v2a"), "embed the picture"),
        (lambda: index.search(embedded(1, width=5), "a2v"), "width 12, got 5"),
        (lambda: index.search(replace(asking, audio=nan), "a2v"), "'clip0': expected finite"),
    ]
    for call, words in wrong:
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    index.search(replace(asking, visual=None, visual_embeddings=None), "a2v")  # needs no picture


@pytest.mark.parametrize(
    ("said", "way_on"),
    [
        ("a.png: cannot be used: no audio stream", r"; one still picture has no time"),
        ("a.JPG: cannot be used: too short: 0.04 s, at least", r"; one still picture has no time"),
        ("a.mp4: cannot be used: no audio stream", "; --video asks by its picture$"),
        ("a.mp4: cannot be used: too short: 0.04 s, at least", "at least$"),
    ],
)
def test_what_cannot_ask_is_told_how_to(said, way_on):
    asked = argparse.Namespace(
        files=[Path("a")], video=False, both=False, clip_seconds=None, start=0.0, end=None
    )

    class Refusing(Model):
        def __init__(self):
            pass

        def embed(self, *_, **__):
            raise InputError(said)

    with pytest.raises(InputError, match=way_on):
        asking_module.embed_queries(Refusing(), asked)


# ---- other distances -------------------------------------------------------------------------


def test_any_distance_in_both_stages(tmp_path, monkeypatch):
    lengths = [7, 4, 5, 7, 2, 3, 6, 7, 1, 4]
    clips = embedded(10, lengths=lengths)
    index = create(tmp_path / "i", identity="m", distance=("dtw", {}))
    index.add(clips)
    asking = embedded(3, seed=4, lengths=[6, 4, 7])
    monkeypatch.setattr(searching, "PAIRWISE_ROWS", 4)
    from reference import dtw

    for direction in ("a2v", "v2a"):
        q, x = (asking.audio, clips.visual) if direction == "a2v" else (asking.visual, clips.audio)
        expected = np.asarray(
            [
                [dtw(a[:n], b[:m]) for b, m in zip(x.values, x.lengths, strict=True)]
                for a, n in zip(q.values, q.lengths, strict=True)
            ]
        )
        hits = index.search(asking, direction, 10, "sequence")
        order = np.argsort(expected, axis=1)
        assert ids(hits) == [[f"clip{n}" for n in row] for row in order]
        np.testing.assert_allclose(scores(hits), np.sort(expected, axis=1), rtol=1e-4)
        some = index.search(asking, direction, 2, "hybrid:5")
        assert index.report.method == "hybrid"
        first = index.search(asking, direction, 5, "aggregation")
        for number, found in enumerate(some):
            chosen = sorted(
                (int(one.id[4:]) for one in first[number]), key=lambda c: expected[number, c]
            )
            assert [one.id for one in found] == [f"clip{c}" for c in chosen[:2]]
    everything = index.search(asking, "a2v", 2, "sequence")
    assert index.search(asking, "a2v", 2) == everything  # there are no bounds to leave out by
    assert index.report.method == "sequence"


@pytest.mark.parametrize("bank", [False, True])
def test_both_streams_ask_each_on_its_own_scale(tmp_path, monkeypatch, bank):
    clips, asking = embedded(30, 5, 9), embedded(4, 5, 9, seed=3, prefix="q")
    asking = replace(asking, visual=replace_values(asking.visual, 9 * asking.visual.values))
    stored = clustered(200, 5, 9, 9) if bank else None
    index = create(tmp_path / "i", identity="m", bank=stored)
    index.add(clips)
    sounds = replace(embedded(3, 5, 9, prefix="alone"), visual=None, visual_embeddings=None)
    index.add(sounds)
    index.delete(["clip4"])
    kept = [n for n in range(30) if n != 4]
    each = [loops(asking, clips, direction)[:, kept] for direction in ("a2v", "v2a")]
    own = each
    if bank:
        to_bank = [loops(stored, clips, direction)[:, kept] for direction in ("a2v", "v2a")]
        near = [np.sort(one, axis=0)[:10].mean(axis=0) for one in to_bank]
        own = [one - half / 2 for one, half in zip(each, near, strict=True)]
    expected = sum((one - one.mean(1, keepdims=True)) / one.std(1, keepdims=True) for one in own)
    monkeypatch.setattr(searching, "BOTH_PAIRS", 60)
    hits = index.search(asking, "both", 6)
    order = np.argsort(expected, axis=1)[:, :6]
    assert ids(hits) == [[f"clip{kept[n]}" for n in row] for row in order]
    np.testing.assert_allclose(scores(hits), np.take_along_axis(expected, order, 1), atol=2e-4)
    mean = np.take_along_axis((each[0] + each[1]) / 2, order, 1)
    np.testing.assert_allclose([[h.distance for h in of] for of in hits], mean, rtol=1e-4)
    assert index.report.measure == "score"
    some = index.search(asking, "both", 2, where="id = 'clip7' OR id = 'alone0'")
    assert ids(some) == [["clip7"]] * 4
    for method in ("aggregation", "hybrid:9"):
        with pytest.raises(InputError, match="exact or sequence where both streams ask, got"):
            index.search(asking, "both", 6, method)


# ---- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_devices_find_what_one_machine_finds(tmp_path, monkeypatch, devices, stored):
    """Queries of two lengths, some at a time."""
    monkeypatch.setattr(mesh, "QUERIES", 3)
    index = create(tmp_path / "i", identity="m", storage=stored)
    index.add(clustered(61, 9, 12, 4))
    index.add(replace(embedded(8, 6, 12, prefix="short")))
    index.delete(["clip7", "short3"])
    asking = clustered(11, 9, 12, 4, prefix="q")
    lengths = np.array([9, 6, 9, 9, 6, 9, 6, 9, 9, 9, 9], np.int32)
    windows = np.stack([0 * lengths, lengths], axis=1).astype(np.float32)
    streams = {name: getattr(asking, name) for name in ("visual", "audio")}
    ragged = {name: Sequences(one.values, lengths, windows) for name, one in streams.items()}
    asking = replace(asking, **ragged)
    for direction, k in (("a2v", 5), ("v2a", 64)):
        found = mesh.OnMesh(index.snapshot, direction, make_mesh(devices)).search(asking, k)
        assert index.hits_of(found, 11) == index.search(asking, direction, k, "sequence")


def test_devices_have_all_where_their_last_is_surely_beyond_the_kth():
    distances = np.array([[1.0, 1.2, 1.1, 1.4]])  # two devices with two each
    assert mesh._are_all(distances, np.array([0.04]), 2, 2)
    assert not mesh._are_all(distances, np.array([0.06]), 2, 2)


def test_devices_ask_for_more_where_rounding_needs_it(tmp_path, monkeypatch, random):
    """Candidates that differ by less than products can tell."""
    clips = embedded(80)
    close = np.tile(clips.visual.values[:1], (80, 1, 1))
    close = (close + 1e-6 * random.standard_normal(close.shape)).astype(np.float32)
    index = create(tmp_path / "i", identity="m")
    index.add(replace(clips, visual=replace_values(clips.visual, close)))
    monkeypatch.setattr(mesh, "SLACK", 0)
    asking = embedded(9, seed=3)
    found = mesh.OnMesh(index.snapshot, "a2v", make_mesh(2)).search(asking, 3)
    assert index.hits_of(found, 9) == index.search(asking, "a2v", 3, "sequence")


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_what_a_device_may_round_otherwise_is_computed_again(tmp_path, monkeypatch, stored):
    index = create(tmp_path / "i", identity="m", storage=stored)
    index.add(embedded(40))
    asking, nearest = embedded(9, seed=3), mesh._nearest

    def wrong(*given):
        def found(*arrays):
            distances, rows, finals = nearest(*given)(*arrays)
            return distances, rows, finals + 1

        return found

    monkeypatch.setattr(mesh, "_nearest", wrong)
    expected = index.search(asking, "a2v", 5, "sequence")
    devices = make_mesh(2)
    found = mesh.OnMesh(index.snapshot, "a2v", devices).search(asking, 5)
    assert index.hits_of(found, 9) != expected
    monkeypatch.setattr(products, "FINAL", 1.0)
    found = mesh.OnMesh(index.snapshot, "a2v", devices).search(asking, 5)
    assert index.hits_of(found, 9) == expected


def test_accelerators_are_used_where_they_have_room_and_it_pays(tmp_path, monkeypatch):
    """The same hits; the sequences go there once for each state of the index."""
    index, asking = create(tmp_path / "i", identity="m"), clustered(11, 9, 12, 4, prefix="q")
    index.add(clustered(61, 9, 12, 4))
    free, sent = 2 * 61 * 9 * 12 * 8, []
    monkeypatch.setattr(mesh, "accelerators", lambda: jax.local_devices()[:2])
    monkeypatch.setattr(mesh, "_free_bytes", lambda device: free)
    put = mesh.OnMesh._put
    monkeypatch.setattr(
        mesh.OnMesh, "_put", lambda self, steps: sent.append(self.direction) or put(self, steps)
    )

    def equal(retrieval="exact", **how):
        with monkeypatch.context() as without:
            without.setattr(mesh, "accelerators", list)
            expected = open_index(index.path).search(asking, "a2v", 5, retrieval, **how)
        assert index.search(asking, "a2v", 5, retrieval, **how) == expected

    index.search(clustered(1, 9, 12, 4), "a2v", 5)
    assert not sent
    equal()
    equal("sequence")
    assert sent == ["a2v"] and index.report.method == "sequence"
    equal("hybrid:7")
    equal(where="id != 'clip3'")
    index.delete(["clip7"])
    equal()
    assert sent == ["a2v", "a2v"]
    free = 61 * 9 * 12 // 2  # where 0.8 of both is less than 60 clips need
    index.delete(["clip8"])
    equal()
    assert sent == ["a2v", "a2v"]


# ---- storage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stored, share", [("bfloat16", 2e-3), ("int8", 5e-3)])
def test_rounded_storage_scores_nearly_the_same(tmp_path, stored, share):
    asking = clustered(9, 11, 16, 4, prefix="q")
    found = []
    for name in ("float32", stored):
        index = create(tmp_path / name, identity="m", storage=name)
        index.add(clustered(70, 11, 16, 4))
        hits = index.search(asking, "a2v", 70, "sequence")
        found.append(np.asarray([[{o.id: o.score for o in h}[f"clip{n}"] for n in range(70)]
                                 for h in hits]))  # fmt: skip
    spread = found[0].max()
    assert 0 < np.abs(found[1] - found[0]).max() < share * spread
    assert index.info()["bytes"] < 0.75 * open_index(tmp_path / "float32").info()["bytes"]


# ---- programs --------------------------------------------------------------------------------


def test_tune_proposes_a_k_that_serves(tmp_path, monkeypatch):
    index = made(tmp_path / "i", 60)
    asking = embedded(60).take(range(0, 60, 3))
    found = index_commands.tuned(index, asking, k=1, ks=[1, 3, 60])
    assert [row["k"] for row in found["rows"]] == [1, 3, 60]
    assert found["rows"][-1]["recall"] == 1.0 and found["rows"][-1]["method"] == "sequence"
    assert "proposed: --retrieval" in index_commands.tuning_table(found) and json.dumps(found)
    good = [row["k"] for row in found["rows"] if row["recall"] >= index_commands.WANTED]
    assert found["proposed"] in {f"hybrid:{min(good)}", "exact", "sequence"}
    asked, timed = [], index_commands._timed
    monkeypatch.setattr(
        index_commands, "_timed", lambda *words: asked.append(words[-1]) or timed(*words)
    )
    monkeypatch.setattr(searching, "switched", lambda *_: "sequence")  # as without bounds
    index_commands.tuned(index, asking, k=1, ks=[1])
    assert asked == ["exact", "hybrid:1"]
    with pytest.raises(InputError, match="the index is empty"):
        index_commands.tuned(made(tmp_path / "e", 0), asking)


@pytest.mark.parametrize(
    ("seconds", "proposed"),
    [
        ({"exact": 3e-3, "sequence": 4e-3}, "hybrid:3"),  # the first K that serves
        ({"exact": 1e-3, "sequence": 4e-3}, "exact"),  # no K is faster
        ({"exact": 4e-3, "sequence": 1e-3}, "sequence"),
    ],
)
def test_tune_proposes_what_is_fastest_of_what_serves(tmp_path, monkeypatch, seconds, proposed):
    """Of a way to search that serves: that of the least K, or one of those that miss nothing."""
    index = made(tmp_path / "i", 6)
    index.search(embedded(1), "v2a", 1, "exact")  # which leaves a report
    right = [[SimpleNamespace(id=one) for one in found] for found in ("ab", "cd")]
    half = [[SimpleNamespace(id=one) for one in found] for found in ("ax", "xd")]
    seconds = seconds | {"hybrid:1": 1e-4, "hybrid:3": 2e-3, "hybrid:6": 2.5e-3}
    asked = []

    def timed(index, queries, direction, k, retrieval):
        asked.append((direction, k, retrieval))
        return (half if retrieval == "hybrid:1" else right), seconds[retrieval]

    monkeypatch.setattr(index_commands, "_timed", timed)
    found = index_commands.tuned(index, embedded(2), "v2a", k=2, ks=[6, 1, 3])
    assert [(row["k"], row["recall"]) for row in found["rows"]] == [(1, 0.5), (3, 1.0), (6, 1.0)]
    assert asked == [
        ("v2a", 2, way) for way in ("exact", "sequence", "hybrid:1", "hybrid:3", "hybrid:6")
    ]
    assert (found["clips"], found["queries"], found["proposed"]) == (6, 2, proposed)
    told = index_commands.tuning_table(found).splitlines()
    assert told[0] == "6 clips, 2 queries v2a" and told[-1] == f"proposed: --retrieval {proposed}"
    assert told[4].split()[:3] == ["hybrid:3", "1.000", "2.00"]
    assert told[6].split() == ["exact", "1.000", f"{1e3 * seconds['exact']:.2f}"]


@pytest.mark.parametrize(
    ("clips", "k", "proposed"),
    [(3, 10, [3]), (60, 1, [1, 2, 5, 10, 20, 50, 60]), (500, 6, [10, 20, 50, 100, 200, 500])],
)
def test_tune_looks_at_round_numbers_and_at_all(clips, k, proposed):
    assert index_commands._proposed_ks(clips, k) == proposed


class Stand(Model):
    """A model whose queries are known."""

    identity = "model"
    distance = ("euclidean", {"resample": "visual_to_audio"})

    def __init__(self):
        pass

    def embed(self, files, *, streams, **_):
        found = embedded(len(files), seed=0)
        others = {"visual", "audio"} - set(streams)
        return replace(
            found, **{f"{one}{of}": None for one in others for of in ("", "_embeddings")}
        )


@pytest.fixture
def stand(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    monkeypatch.setattr(retrieval_model, "load_as_asked", lambda _: Stand())


def test_search_program(tmp_path, capsys, stand):
    made(tmp_path / "i", 9)
    here = str(Path.cwd() / "b" / ".." / "clips" / "a.mp4")
    assert (names.from_here(here), names.from_here("/b.mp4")) == ("clips/a.mp4", "/b.mp4")
    given = [str(tmp_path / "i"), "a.wav", "b.wav", "--model", "m", "--k", "2"]
    assert program.main(given) == 0
    text = capsys.readouterr().out
    assert "sound of videos/0.mp4" in text and "videos/1.mp4  [door]" in text
    assert "clips were ruled out by bounds" in text
    assert program.main([*given, "--video", "--json", "--filter", "label = 'dog'"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["direction"] for one in found["queries"]] == ["v2a", "v2a"]
    first = found["queries"][0]["hits"][0]
    assert first["id"] == "clip0" and first["rank"] == 1 and len(found["queries"][0]["hits"]) == 2
    assert {h["label"] for q in found["queries"] for h in q["hits"]} == {"dog"}
    assert program.main([*given, "--both"]) == 0
    assert "sound and picture of videos/0.mp4" in capsys.readouterr().out
    assert program.main([*given, "--filter", "start > 99"]) == 0
    assert "nothing: no clip with a picture is in the index, or" in capsys.readouterr().out
    assert found["search"]["method"] == "exact" and 0 <= found["search"]["pruned_share"] <= 1


def test_a_query_that_is_longer_than_what_it_finds_is_said(tmp_path, capsys, stand, monkeypatch):
    made(tmp_path / "i", 9)
    given = [str(tmp_path / "i"), "a.wav", "--model", "m", "--k", "2"]
    assert program.main(given) == 0 and "NOTE" not in capsys.readouterr().err
    embed = Stand.embed
    longer = lambda *a, **k: (lambda one: replace(one, ends=one.ends + 30.0))(embed(*a, **k))  # noqa: E731
    monkeypatch.setattr(Stand, "embed", longer)
    undrawn = lambda model, hits, stream: [None] * len(hits)  # noqa: E731
    monkeypatch.setattr(asking_module, "latents_from_files", undrawn)
    assert program.main([*given, "--html", "found.html"]) == 0
    page = Path("found.html").read_text()
    said = capsys.readouterr().err
    hits = open_index(tmp_path / "i").search(embed(None, ["a"], streams=["audio"]), "a2v", 2)
    most = max(one.end - one.start for one in hits[0])
    assert f"lasts {most:.1f} s at most" in said and f"--clip-seconds {most:g} asks" in said
    assert f"what it found {most:.1f} s at most" in page and "ask with a part of it" in page


def test_search_program_writes_a_page(tmp_path, capsys, stand, monkeypatch):
    index = made(tmp_path / "i", 9)
    monkeypatch.setattr(
        asking_module, "latents_from_files", lambda model, hits, stream: [None] * len(hits)
    )
    page = tmp_path / "found.html"
    given = [str(tmp_path / "i"), "a.wav", "b.wav", "--model", "m", "--k", "2"]
    assert program.main([*given, "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert said.err.strip() == str(page)
    html = page.read_text()
    assert html.count("Videos found for the sound of") == 2
    queries = Stand().embed([0, 1], streams=("audio",))
    for hits in index.search(queries, "a2v", 2, "exact"):
        for hit in hits:
            assert f"{hit.score:.4g}" in html and hit.source.rpartition("/")[2] in html


def test_search_program_says_what_is_wrong(tmp_path, stand, monkeypatch):
    made(tmp_path / "i", 0)
    given = [str(tmp_path / "i"), "a.wav", "--model", "m"]
    with pytest.raises(InputError, match="the index is empty"):
        program.main(given)
    with pytest.raises(InputError, match="not allowed with argument"):
        program.main([*given, "--sound", "--video"])
    with pytest.raises(InputError, match="--k: expected 1 or more"):
        program.main([*given, "--k", "0"])
    with pytest.raises(InputError, match="expected an index"):
        program.main([str(tmp_path / "none"), *given[1:]])
    with monkeypatch.context() as unloaded:  # said before the model is loaded
        unloaded.setattr(retrieval_model, "load_as_asked", None)
        with pytest.raises(InputError, match=r"no\.wav: expected a video or a sound file"):
            program.main([given[0], "no.wav", *given[2:]])
    monkeypatch.setattr(Stand, "identity", "another")
    with pytest.raises(InputError, match="the model another, it was built with model"):
        program.main(given)
