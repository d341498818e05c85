"""Sketches: by their definition, learned so that they keep what the mean loses, in an index."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
from test_evaluate import write_run
from test_hubness import write_clips
from test_index import embedded
from test_search import ids, loops, replace_values

from scav_jax.base.errors import InputError
from scav_jax.export import __main__ as export_program
from scav_jax.export import writing
from scav_jax.features import store
from scav_jax.index import __main__ as index_program
from scav_jax.index import create, open_index
from scav_jax.index.first_stage import __main__ as program
from scav_jax.retrieval import model as retrieval_model
from scav_jax.retrieval import sketching
from scav_jax.retrieval.sketch import Sketch, load_sketch, on_grid, save_sketch, sketched
from scav_jax.retrieve import aggregation_similarities
from scav_jax.sequences import Sequences


def sketch_of(width=12, steps=4, seed=0) -> Sketch:
    """Of 15 numbers."""
    random = np.random.default_rng(seed)
    mean, directions = random.standard_normal(width), random.standard_normal((width, width))
    places = random.choice(steps * width, 12, replace=False)
    chosen = np.stack([places // width, places % width])
    maps = mean.astype(np.float32), directions.astype(np.float32), chosen
    return Sketch(steps, *maps, np.float32([7.0]))


def without_means(count: int, seed: int, steps=12, width=16):
    """Clips whose means over time say nothing: only when something happens does."""
    clips = embedded(count, steps, width, seed=seed)
    streams = {}
    for name in ("visual", "audio"):
        values = getattr(clips, name).values
        values = values - values.mean(axis=1, keepdims=True)
        streams[name] = replace_values(getattr(clips, name), values)
    noise = np.random.default_rng(seed + 1).standard_normal((2, count, width))
    return replace(clips, **streams, visual_embeddings=noise[0], audio_embeddings=noise[1])


def test_a_grid_has_means_over_its_cells(random):
    lengths = np.int32([9, 5, 9, 1])
    windows = np.float32([[0, 9], [0.5, 4.9], [-0.4, 9.9], [0, 1]])
    values = random.standard_normal((4, 9, 3)).astype(np.float32)
    values[np.arange(9) >= lengths[:, None]] = np.nan
    found = on_grid(Sequences(values, lengths, windows), 4)
    fine = 3000  # points of a cell
    for clip, (begin, extent) in enumerate(windows.astype(float)):
        for cell in range(4):
            at = begin + extent * (cell + (np.arange(fine) + 0.5) / fine) / 4
            inside = at[(at >= 0) & (at < lengths[clip])].astype(int)
            np.testing.assert_allclose(found[clip, cell], values[clip, inside].mean(0), atol=2e-3)
    whole = Sequences(values[:1], lengths[:1], windows[:1])
    np.testing.assert_allclose(on_grid(whole, 9), values[:1], atol=1e-5)
    flat = Sequences(np.ones_like(values), lengths, windows)
    np.testing.assert_allclose(on_grid(flat, 20), 1, rtol=1e-6)  # more cells than steps


def test_a_sketch_is_its_definition(random):
    lengths = [7, 3, 7, 7, 2, 7, 5]
    sketch, clips = sketch_of(), embedded(7, lengths=lengths)
    found = sketch.of(clips.audio, "audio")
    cells = on_grid(clips.audio, 4).astype(float) - sketch.mean
    turned = scipy.fft.dct(cells, axis=1, norm="ortho") @ sketch.directions
    columns = [turned[:, w, d] for w, d in sketch.chosen.T]
    rest = np.sqrt(np.square(turned).sum(axis=(1, 2)) - np.square(columns).sum(axis=0))
    expected = np.stack([*columns, np.full(7, 7.0), np.zeros(7), rest], axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    picture = sketch.of(clips.audio, "visual")
    np.testing.assert_array_equal(picture[:, [*range(13), 14, 13]], found)
    alone = sketch.of(embedded(7, lengths=lengths).take([4]).audio, "audio")
    np.testing.assert_allclose(alone[0], found[4], atol=1e-6)
    none = {"directions": 0 * sketch.directions, "common": np.zeros(1, np.float32)}
    nothing = replace(sketch, **none).of(clips.audio, "audio")
    np.testing.assert_allclose(np.linalg.norm(nothing, axis=1), 1, rtol=1e-6)
    with pytest.raises(InputError, match="width 12, got 9"):
        sketch.of(embedded(2, width=9).audio, "audio")


def test_what_is_learned_keeps_what_the_mean_loses():
    train, test = without_means(150, 0), without_means(100, 9)
    sketch = sketching.learn(train, {}, sketching.Fitting(numbers=64))
    assert sketch.numbers == 64 and sketch.steps == 12
    first = loops(test, test, "a2v").argmin(axis=1)
    shares = []
    for vectors in (
        (test.audio_embeddings, test.visual_embeddings),
        (sketch.of(test.audio, "audio"), sketch.of(test.visual, "visual")),
    ):
        nearest = np.argsort(-aggregation_similarities(*vectors), axis=1)[:, :10]
        shares.append(np.mean((nearest == first[:, None]).any(axis=1)))
    assert shares[0] < 0.3 and shares[1] > 0.95


def test_all_coefficients_have_the_product_of_what_they_are_of():
    """Both changes of basis are rotations; the static channels count with their weight."""
    train = without_means(30, 0)
    for options, weights in (({}, 1.0), ({"static_width": 4, "static_weight": 0.25}, 0.25)):
        sketch = sketching.learn(train, options, sketching.Fitting(numbers=12 * 16 + 3))
        scale = np.ones(16)
        scale[12:] = np.sqrt(weights)
        flat = [
            ((stream.values - sketch.mean) * scale).reshape(30, -1)
            for stream in (train.audio, train.visual)
        ]
        both = np.concatenate(flat)
        assert sketch.common == pytest.approx(3 * np.sqrt(np.square(both).sum(axis=1).mean()))
        flat = [np.append(one, np.full((30, 1), sketch.common), axis=1) for one in flat]
        units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in flat]
        found = sketch.of(train.audio, "audio") @ sketch.of(train.visual, "visual").T
        np.testing.assert_allclose(found, units[0] @ units[1].T, atol=1e-4)
    # The numbers that are kept are those that vary most.
    few = sketching.learn(train, {}, sketching.Fitting(numbers=20))
    both = [few.of(train.audio, "audio"), few.of(train.visual, "visual")]
    spread = np.square(both).sum(axis=(0, 1))
    assert spread[0] > spread[-4]
    with pytest.raises(InputError, match="at most 12 x 16"):
        sketching.learn(train, {}, sketching.Fitting(numbers=200))


def test_cosines_of_sketches_rank_as_distances_where_lengths_differ(random):
    """Longer latents than others' are not nearer for that."""
    clips, others = without_means(100, 0), without_means(100, 5)
    factors = random.uniform(0.7, 1.3, (100, 1, 1))
    longer = replace_values(others.visual, others.visual.values * factors)
    clips = replace(clips, visual=longer)
    first = loops(clips, clips, "a2v").argmin(axis=1)
    sketch = sketching.learn(clips, {}, sketching.Fitting(numbers=12 * 16 + 3))
    kept = []
    for one in (sketch, replace(sketch, common=np.zeros(1, np.float32))):
        vectors = one.of(clips.audio, "audio"), one.of(clips.visual, "visual")
        cosines = aggregation_similarities(*vectors)
        kept.append(np.mean(cosines.argmax(axis=1) == first))
    assert kept[0] > 0.9 and kept[1] < 0.7, kept


def test_damage_and_other_models_are_named(tmp_path):
    sketch = sketch_of()
    assert load_sketch(tmp_path, lambda: "me") is None
    save_sketch(tmp_path, sketch_of(seed=3), "me", {})
    save_sketch(tmp_path, sketch, "me", {"validation": []})
    assert load_sketch(tmp_path, lambda: "me").name == sketch.name
    with pytest.raises(InputError, match="of the model you, it is of me"):
        load_sketch(tmp_path, lambda: "you")
    file = tmp_path / "sketch" / "maps.npz"
    content = file.read_bytes()
    changed = bytearray(content)
    changed[content.index(sketch.directions.tobytes()) + 5] ^= 1
    for damaged in (b"", content[:90], changed):
        file.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match=r"sketch: expected"):
            load_sketch(tmp_path, lambda: "me")
    file.write_bytes(content)
    (tmp_path / "sketch" / "sketch.json").unlink()
    with pytest.raises(InputError, match="expected a sketch"):
        load_sketch(tmp_path, lambda: "me")


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_hybrid_chooses_by_sketches(tmp_path, stored):
    sketch = sketch_of(16)
    clips, asking = (sketched(without_means(n, s), sketch) for n, s in ((200, 0), (5, 10)))
    index = create(tmp_path / "i", identity="m", storage=stored, sketch=sketch.name)
    index.add(clips.take(range(150)))
    index.add(clips.take(range(150, 200)))
    assert index.info()["first_stage"] == f"sketch {sketch.name} of 15 numbers"
    index.delete(["clip3"])
    for compacted in (False, True):
        if compacted:
            index.compact()
        hits = index.search(asking, "a2v", 6, "hybrid:6")
        assert index.report.method == "hybrid"
        similar = asking.audio_sketches @ clips.visual_sketches.T
        similar[:, 3] = -1
        chosen = np.argsort(-similar, axis=1)[:, :6]
        far = np.take_along_axis(loops(asking, clips, "a2v"), chosen, 1)
        order = np.take_along_axis(chosen, np.argsort(far, axis=1), 1)
        expected = [[f"clip{n}" for n in row] for row in order]
        if stored == "int8":  # whose distances change places where they are close
            assert list(map(set, ids(hits))) == list(map(set, expected))
        else:
            assert ids(hits) == expected
    means = index.search(asking, "a2v", 3, "aggregation")  # is as it was
    cosines = asking.audio_embeddings @ clips.visual_embeddings.T
    cosines /= np.linalg.norm(clips.visual_embeddings, axis=1)
    assert ids(means)[0][0] == f"clip{cosines[0].argmax()}"
    plain = replace(asking, visual_sketches=None, audio_sketches=None, sketched_by="")
    assert len(index.search(plain, "a2v", 3, "exact")) == 5
    for other in (plain, sketched(plain, sketch_of(16, seed=4))):
        with pytest.raises(InputError, match=f"queries with the sketch {sketch.name}"):
            index.search(other, "a2v", 3, "hybrid:6")
        with pytest.raises(InputError, match=f"clips with the sketch {sketch.name}, got"):
            index.add(replace(other, ids=[f"x{n}" for n in range(5)]))
    if stored == "float32":
        (folder,) = (tmp_path / "i" / "segments").glob("0*")
        file = folder / "visual.sketches"
        data = bytearray(file.read_bytes())
        data[64 * 5 + 3] ^= 4
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"visual.sketches, row 5"):
            open_index(tmp_path / "i").verify()


def test_a_run_gets_one_and_its_index_and_export_have_it(tmp_path, capsys, monkeypatch):
    write_clips(tmp_path / "data", {"train": 40, "validation": 15, "test": 24})
    run = write_run(tmp_path / "run", tmp_path / "data")
    assert retrieval_model.load(run).sketch is None
    small = ["--run", str(run), "--numbers", "16"]
    assert program.main(small) == 0
    told = capsys.readouterr().out
    assert "embedding" in told and "A->V @10" in told and "CAUTION: N = 15 is few" in told
    about = json.loads((run / "sketch" / "sketch.json").read_text())
    rows = about["figures"]["validation"]
    assert [row["numbers"] for row in rows] == [12, 16] and set(rows[1]["a2v"]) == {"10"}
    model = retrieval_model.load(run)
    assert model.sketch.name == about["name"]
    words = ["--model", str(run), "--data", str(tmp_path / "data"), "--split", "test"]
    assert index_program.main(["build", str(tmp_path / "i"), *words]) == 0
    index = open_index(tmp_path / "i", model.identity)
    assert index.header.sketch == about["name"]
    assert index_program.main(["tune", str(tmp_path / "i"), *words, "--k", "2"]) == 0
    queries = model.embed_split(store.read(tmp_path / "data", "test"))
    assert ids(index.search(queries, "v2a", 24, "hybrid:24")) == ids(
        index.search(queries, "v2a", 24, "sequence")
    )
    monkeypatch.setattr(writing, "model_card", lambda *_: "of features that nobody extracted")
    monkeypatch.setattr(writing, "serialized_tower", lambda *_: b"")  # no shapes that are symbols
    export_program.main(["--run", str(run), "--out", str(tmp_path / "exported")])
    assert retrieval_model.load(tmp_path / "exported").sketch.name == about["name"]

    for words, told in ((["--numbers", "9999"], "16 to 4096"), (["--clips", "1"], "at least 2")):
        with pytest.raises(InputError, match=told):
            program.main([*small[:2], *words])
    (run / "sketch" / "sketch.json").unlink()
    (run / "sketch" / "sketch.json").mkdir()
    monkeypatch.setattr(sketching, "training_split", None)  # is not begun
    with pytest.raises(InputError, match=r"sketch.json: expected the name of a file"):
        program.main(small)
