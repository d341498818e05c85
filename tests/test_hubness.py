"""Hubness: scores by their definition in NumPy, by every method, whatever becomes of an index."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import noise
from test_evaluate import FINGERPRINT, WIDTHS, write_run
from test_index import embedded
from test_search import clustered, ids, loops, replace_values, scores

from scav_jax import metrics
from scav_jax.base.documents import read_document, write_document
from scav_jax.base.errors import InputError
from scav_jax.distances import pairwise
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.evaluate import hubness as evaluate_hubness
from scav_jax.features import store
from scav_jax.index import __main__ as index_program
from scav_jax.index import create, mesh, open_index, searching
from scav_jax.retrieval import hubness
from scav_jax.retrieval.embed import embed
from scav_jax.retrieve import sequence_distances
from scav_jax.sequences import AudioVisual
from scav_jax.sequences import sequences as whole
from scav_jax.sharding import make_mesh
from scav_jax.training.runs import load_run

DIRECTIONS = ("a2v", "v2a")


def bank_of(steps=7, width=12, **options):
    return embedded(210, steps, width, seed=50, prefix="bank", **options)


def with_bank(path, clips, bank=None, **options):
    index = create(path, identity="model", bank=bank or bank_of(), **options)
    index.add(clips)
    return index


def by_definition(asking, clips, bank, direction: str, distances=loops) -> np.ndarray:
    """D less half of its mean over the ten nearest of the bank, queries by clips."""
    near = np.sort(distances(bank, clips, direction), axis=0)[:10].mean(axis=0)
    return distances(asking, clips, direction) - near / 2


def hubs(count=50, seed=3):
    """Clips of which some are near to all others: shrunk to the middle."""
    clips = embedded(count, seed=seed)
    factors = np.where(np.arange(count) % 5 == 0, 0.2, 1.0).astype(np.float32)[:, None, None]
    shrunk = {
        name: replace_values(one, one.values * factors)
        for name, one in (("visual", clips.visual), ("audio", clips.audio))
    }
    return replace(clips, **shrunk)


def moved(clips, common):
    """The clips with something in common that is so many times their spread."""
    far = common * np.random.default_rng(8).standard_normal(clips.visual.values.shape[2])
    streams = {name: getattr(clips, name) for name in ("visual", "audio")}
    return replace(clips, **{
        name: replace_values(one, one.values + far.astype(np.float32))
        for name, one in streams.items()
    })  # fmt: skip


@pytest.mark.parametrize("common", [0, 300])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_scores_are_those_of_the_definition(tmp_path, direction, common):
    clips, asking, bank = (moved(c, common) for c in (hubs(), embedded(11, seed=7), bank_of()))
    index = with_bank(tmp_path / "i", clips, bank)
    expected = by_definition(asking, clips, bank, direction)
    order = np.argsort(expected, axis=1)[:, :9]
    plain = np.argsort(loops(asking, clips, direction), axis=1)[:, :9]
    assert (order != plain).any(axis=1).mean() > 0.3  # it matters here
    for method in ("sequence", "exact", "hybrid:50"):
        hits = index.search(asking, direction, 9, method)
        assert index.report.measure == "score"
        assert ids(hits) == [[f"clip{n}" for n in row] for row in order]
        found = np.take_along_axis(expected, order, 1)
        np.testing.assert_allclose(scores(hits), found, rtol=1e-4, atol=1e-4)
        distances = np.take_along_axis(loops(asking, clips, direction), order, 1)
        np.testing.assert_allclose([[h.distance for h in of] for of in hits], distances, rtol=1e-4)
    hits = index.search(asking, direction, 9, "exact", hubness="none")
    assert ids(hits) == [[f"clip{n}" for n in row] for row in plain]
    assert hits[0][0].distance == hits[0][0].score and index.report.measure == "distance"
    cosines = index.search(asking, direction, 9, "aggregation")
    assert cosines == index.search(asking, direction, 9, "aggregation", hubness="none")


@pytest.mark.parametrize("devices", [1, 8])
def test_devices_find_the_same(tmp_path, devices):
    clips, asking = clustered(80, 6, 9, 3), clustered(6, 6, 9, 3, prefix="q")
    index = with_bank(tmp_path / "i", clips, clustered(200, 6, 9, 9))
    for direction in DIRECTIONS:
        expected, _ = searching.search(index.snapshot, asking, direction, 12, "sequence")
        found = mesh.OnMesh(index.snapshot, direction, make_mesh(devices)).search(asking, 12)
        for name in ("query", "segment", "row", "score"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_what_is_added_deleted_and_compacted_keeps_its_scores(tmp_path, stored):
    lengths = np.random.default_rng(3).integers(2, 8, 40)
    first, late = embedded(40, lengths=lengths), embedded(20, seed=5, prefix="late")
    bank = bank_of(lengths=np.random.default_rng(4).integers(2, 8, 210))
    grown = with_bank(tmp_path / "grown", first, bank, storage=stored)
    open_index(tmp_path / "grown").add(late)
    grown.refresh()
    asking = embedded(6, seed=9)
    if stored == "float32":  # the first clips decide the centre of the others
        once = create(tmp_path / "once", identity="model", bank=bank)
        everything = [embedded(1, seed=8, prefix="gone"), late, first]
        for clips in everything:
            once.add(clips)
        once.delete(["gone0"])
        for direction in DIRECTIONS:
            one, other = (i.search(asking, direction, 20, "exact") for i in (grown, once))
            assert ids(one) == ids(other)
            np.testing.assert_allclose(scores(one), scores(other), rtol=1e-5)
    grown.delete([f"clip{n}" for n in range(0, 40, 3)])
    before = [grown.search(asking, d, 20, "sequence") for d in DIRECTIONS]
    grown.compact()
    assert [grown.search(asking, d, 20, "exact") for d in DIRECTIONS] == before
    assert open_index(tmp_path / "grown").verify() == 46
    assert grown.info()["hubness"] == "bank of 210 clips"


def test_any_distance_has_it(tmp_path):
    """Of another one, by `pairwise`; sequences are stored as they are."""
    clips, asking, bank = hubs(20), embedded(5, seed=7), bank_of()

    def dtw(queries, candidates, direction):
        pair = (
            (queries.audio, candidates.visual)
            if direction == "a2v"
            else (queries.visual, candidates.audio)
        )
        one, other = (whole(jnp.asarray(stream.values)) for stream in pair)
        return np.asarray(jax.jit(partial(pairwise, "dtw"))(one, other))

    index = with_bank(tmp_path / "i", clips, bank, distance=("dtw", {}))
    for direction in DIRECTIONS:
        expected = by_definition(asking, clips, bank, direction, dtw)
        hits = index.search(asking, direction, 6, "sequence")
        order = np.argsort(expected, axis=1)[:, :6]
        assert ids(hits) == [[f"clip{n}" for n in row] for row in order]
        np.testing.assert_allclose(scores(hits), np.take_along_axis(expected, order, 1), rtol=1e-3)


def test_scores_never_fall_where_distances_grow(random):
    """To the bit, so that bounds on distances are bounds on scores."""
    distances = np.sort(random.random((4000, 1)).astype(np.float32), axis=0)
    near = random.random(30).astype(np.float32) + np.float32(0.1)
    found = hubness.scores(np.repeat(distances, 30, 1), near)
    assert (np.diff(found, axis=0) >= 0).all() and found.dtype == np.float32


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"at least 200 training clips .*got 199"):
        create(tmp_path / "i", identity="m", bank=embedded(199))
    assert "300 are wanted" in hubness.caution(299) and not hubness.caution(300)
    plain = create(tmp_path / "plain", identity="m")
    plain.add(embedded(3))
    with pytest.raises(InputError, match="built with --hubness bank"):
        plain.search(embedded(1), "a2v", 1, hubness="bank")
    index = with_bank(tmp_path / "i", embedded(3))
    file = tmp_path / "i" / "bank.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    for content in (bytes(data), b"", data[:100]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"bank.npz: expected"):
            index.add(embedded(2, prefix="x"))
        with pytest.raises(InputError, match=r"bank.npz: expected"):
            index.verify()
    assert len(index.search(embedded(1), "a2v", 3)[0]) == 3  # searching does not need it


# ---- of a run: evaluate and index build --------------------------------------------------------


@pytest.mark.usefixtures("figures_only")
def test_evaluate_and_index_take_the_bank_of_the_run(tmp_path, capsys):
    write_clips(tmp_path / "data", {"train": 205, "test": 24})
    run_path = write_run(tmp_path / "run", tmp_path / "data", distance={"name": "soft_dtw"})
    words = ["--run", str(run_path), "--split", "test", "--bootstrap", "40", "--hubness", "bank"]
    evaluate_program.main([*words, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "CAUTION: a bank of 205 clips is small" in told and "Sinkhorn, transductive  " in told
    assert "(paired 95 %); it looks at all queries at once, which no search can do" in told
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"][0]
    run = load_run(run_path)
    clips, bank = (embed(run, store.read(tmp_path / "data", name)) for name in ("test", "train"))
    distances, of_bank = (
        sequence_distances(AudioVisual(*pair), "dtw", {})
        for pair in (clips.latents, (clips.latents.visual, bank.latents.audio))
    )
    near = np.sort(of_bank, axis=1)[:, :10].mean(axis=1)
    expected = distances - near[:, None] / 2
    own = np.diagonal(expected)
    ranks = (expected <= own[None]).sum(axis=0)
    row = next(m for m in document["methods"] if "bank of 205" in m.get("label", ""))
    assert row["a2v"]["mean_rank"] == ranks.mean()
    raw = next(m for m in document["methods"] if m["method"] == "sequence")
    gain = document["hubness"]["rows"][0]["a2v"]
    shares = [m["a2v"]["recall_at_1"] for m in (row, raw)]
    assert gain["gain"] == pytest.approx(shares[0] - shares[1])
    assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]
    with np.load(tmp_path / "out" / "hubness.npz") as stored:
        assert stored["ids"].tolist() == clips.ids
        np.testing.assert_allclose(stored["visual_near"], near, rtol=1e-4)
        assert stored["audio_near"].shape == (24,) and stored["audio_near"].min() > 0

    index_words = ["build", str(tmp_path / "i"), "--model", str(run_path), "--hubness", "bank"]
    index_words += ["--data", str(tmp_path / "data"), "--split", "test"]
    assert index_program.main(index_words) == 0
    assert "bank of 205 clips is small" in capsys.readouterr().err
    index = open_index(tmp_path / "i")
    found = index.search(clips, "v2a", 24, "sequence")
    assert index.report.measure == "score" and index.info()["hubness"] == "bank of 205 clips"
    assert len(found) == 24
    with pytest.raises(InputError, match="expected hubness bank, as it was begun, got none"):
        index_program.main([w for w in index_words if w not in ("--hubness", "bank")])
    config = read_document(run_path / "config.json", "a config", "")
    config["features"]["content"] = {"train": "of other clips"}
    write_document(run_path / "config.json", config)
    with pytest.raises(InputError, match="other clips or features lie there now"):
        evaluate_program.main([*words, "--out", str(tmp_path / "out")])
    write_clips(tmp_path / "few", {"train": 150, "test": 24})
    other = write_run(tmp_path / "other", tmp_path / "few")
    with pytest.raises(InputError, match="got 150"):
        evaluate_program.main(["--run", str(other), *words[2:]])


def write_clips(folder, splits):
    random, clips = np.random.default_rng(0), []
    for split, count in splits.items():
        for number in range(count):
            about = {"id": f"{split} {number}", "source": f"{split}.mp4"}
            clip = noise(random, number, (8, 4), WIDTHS.values(), audio_span=(0.0, 2.0), **about)
            clips.append((split, clip))
    store.write(clips, folder, fingerprint=FINGERPRINT, videos="", rejected=[])


def test_gains_are_paired(random):
    ranks, others = random.integers(1, 4, 300), random.integers(1, 4, 300)
    found = metrics.paired_gain(ranks, others, bootstrap=500, seed=3)
    more = (ranks == 1).astype(float) - (others == 1)
    assert found["gain"] == pytest.approx(more.mean())
    half = (found["interval"][1] - found["interval"][0]) / 2
    assert half == pytest.approx(1.96 * more.std() / 300**0.5, rel=0.15)
    assert found == metrics.paired_gain(ranks, others, bootstrap=500, seed=3)


def test_the_matching_has_equal_sums_and_keeps_what_is_clear(random):
    distances = random.random((30, 30)).astype(np.float32)
    plan = np.exp(-evaluate_hubness.matching(distances))
    np.testing.assert_allclose(plan.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(axis=1), 1, rtol=1e-3)
    # A hub, as near to all, takes nobody's place.
    distances = 1 - 0.5 * np.eye(30, dtype=np.float32)
    distances[:, 0] -= 0.6
    assert (distances.argmin(axis=1) == 0).all()
    assert (evaluate_hubness.matching(distances)[1:].argmin(axis=1) == np.arange(1, 30)).all()
