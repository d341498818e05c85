"""Static and dynamic parts apart: formulas against NumPy, what each part sees, and the corners."""

import json
import math
from dataclasses import replace
from functools import cache, partial

import drawn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import small_run

from scav_jax.base.errors import InputError
from scav_jax.distances import find, pairwise
from scav_jax.encoders import Encoders
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.export.writing import export
from scav_jax.extract.backbones import load, make_fingerprint
from scav_jax.features import store
from scav_jax.features.batches import evaluation_batches
from scav_jax.index import __main__ as index_program
from scav_jax.index import create, open_index
from scav_jax.objectives import Separate, Sequential, aggregation_loss, scale
from scav_jax.objectives.separate import best_weight
from scav_jax.retrieval import model, results
from scav_jax.retrieval.embed import Embedded, all_against_all, embed
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.train_step import (
    bound_heads,
    compute_loss,
    of_clips,
)
from scav_jax.training.runs import load_run

CLIPS, WIDTHS, STEPS = 5, (5, 9), (8, 4)
TOWERS = Encoders(
    width=8, heads=2, feedforward=6, visual_blocks=0, audio_blocks=0, visual_hidden=7,
    audio_hidden=6, position_buckets=8, position_max_distance=12, dropout=0.2,
    pre_resample="visual_to_audio",
)  # fmt: skip
SMALL = {"branch_hidden": 6, "branch_width": 5, "branch_heads": 1}


def clips(seed=0, *, ragged=True, shift=0.0):
    """Features whose padding is NaN; windows begin and end within steps."""
    rng = np.random.default_rng(seed)
    streams = []
    for number, (steps, width) in enumerate(zip(STEPS, WIDTHS, strict=True)):
        lengths = rng.integers(2, steps + 1, CLIPS) if ragged else np.full(CLIPS, steps)
        values = rng.normal(size=(CLIPS, steps, width)) + shift * (number + 1)
        values[np.arange(steps) >= lengths[:, None]] = np.nan
        cut = 0.3 * (1 - number)
        windows = np.stack([np.full(CLIPS, cut), lengths - 2 * cut], axis=1)
        made = [jnp.asarray(x, jnp.float32) for x in (values, windows)]
        streams.append(sequences(made[0], jnp.asarray(lengths, jnp.int32), made[1]))
    return as_batch(AudioVisual(*streams))


@cache
def params_of(objective):
    return drawn.params(TOWERS, objective, clips(), seed=1)


@cache
def outputs_of(objective):
    params = params_of(objective)
    return jax.jit(lambda batch: of_clips(TOWERS, objective, params, batch, None, None))


@jax.jit
def latents_of(params, features):
    return TOWERS.apply({"params": params}, features)


def loss_of(objective):
    return jax.jit(lambda params, batch: compute_loss(TOWERS, objective, params, batch)[0])


def mean_in_window(values, length, window):
    """Each step by the share of it that lies in [begin, begin + extent)."""
    total, weight = np.zeros(values.shape[1]), 0.0
    for step in range(int(length)):
        share = max(0.0, min(step + 1, window[0] + window[1]) - max(step, window[0]))
        total, weight = total + share * np.asarray(values[step], float), weight + share
    return total / weight


def by_hand(objective, batch):
    """-> the dynamic sequences of both streams, the static vectors: NumPy behind the towers."""
    params = params_of(objective)
    moved, means = [], []
    for stream in batch.features:
        rows = zip(*(np.asarray(leaf, float) for leaf in jax.tree.leaves(stream)), strict=True)
        of_clips = [mean_in_window(*row) for row in rows]
        means.append(np.stack(of_clips))
        values = np.asarray(stream.values) - means[-1][:, None]
        moved.append(stream.replace(values=jnp.asarray(values, jnp.float32)))
    latents = latents_of(params["encoders"], AudioVisual(*moved))
    dynamic = []
    for stream in latents:
        pairs = zip(np.asarray(stream.values, float), stream.lengths, strict=True)
        centred = [v[:n] - v[:n].mean(axis=0) for v, n in pairs]
        dynamic.append([x / math.sqrt((x**2).mean()) for x in centred])
    static = []
    for name, mean in zip(("visual", "audio"), means, strict=True):
        layers = [params["heads"][f"{name}_{layer}"] for layer in ("in", "out")]
        layers = [jax.tree.map(lambda leaf: np.asarray(leaf, float), layer) for layer in layers]
        x = mean @ layers[0]["kernel"] + layers[0]["bias"]
        x = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        static.append(np.asarray(x @ layers[1]["kernel"] + layers[1]["bias"]))
    return dynamic, static


@pytest.mark.parametrize("ragged", [False, True])
def test_the_loss_is_the_formula(ragged):
    """Cosines of flattened sequences on one grid; of ragged ones, 1 - D / 2 of each pair."""
    objective, batch = Separate(**SMALL, static_loss=0.5), clips(3, ragged=ragged)
    loss, aux = jax.jit(partial(compute_loss, TOWERS, objective))(params_of(objective), batch)
    (visual, audio), static = by_hand(objective, batch)
    r = np.zeros((CLIPS, CLIPS))
    for i, v in enumerate(visual):
        for j, a in enumerate(audio):
            if ragged:
                windows = (0, len(v)), (0, len(a))
                d = reference.interpolated_euclidean(v, a, *windows, "visual_to_audio")
                r[i, j] = 1 - d / 2
            else:
                r[i, j] = v.ravel() @ a.ravel() / math.sqrt((v**2).sum() * (a**2).sum())
    np.testing.assert_allclose(1 - aux["dynamic"]["distances"], r, atol=2e-5)
    expected = reference.cross_entropy_of_rows(r / 0.07) + reference.cross_entropy_of_rows(
        r.T / 0.07
    )
    expected = expected / 2 + 0.5 * reference.aggregation_loss(*static, 0.07)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert set(params_of(objective)["log_temperature"]) == {"dynamic", "static"}


@pytest.mark.parametrize("branch", ["mlp", "tower"])
def test_a_constant_in_the_features_changes_the_static_part_alone(branch):
    objective = Separate(**SMALL, branch=branch)
    one, other = (outputs_of(objective)(clips(shift=shift)).values for shift in (0.0, 3.0))
    for stream in ("visual", "audio"):
        pair = one[stream], other[stream]
        np.testing.assert_allclose(*(x["dynamic"] for x in pair), atol=2e-4)
        assert np.abs(pair[0]["static"] - pair[1]["static"]).max() > 0.1


def test_what_varies_around_the_mean_does_not_reach_the_small_branch():
    """Steps in another order: the static vectors stay, the dynamic sequences do not."""
    objective, batch = Separate(**SMALL), clips(ragged=False)
    whole = jax.tree.map(lambda s: s, batch.features)
    turned = AudioVisual(*(s.replace(values=s.values[:, ::-1]) for s in whole))
    one, other = (outputs_of(objective)(batch._replace(features=f)).values for f in (whole, turned))
    for stream in ("visual", "audio"):
        np.testing.assert_allclose(one[stream]["static"], other[stream]["static"], atol=1e-5)
        assert np.abs(one[stream]["dynamic"] - other[stream]["dynamic"]).max() > 0.1


# ---- corners -------------------------------------------------------------------------------------


def test_a_clip_of_which_nothing_changes_is_near_no_other(random):
    """What is left less its mean is rounding, which is not made as long as what changes."""
    values = 3.0 + np.array([1e-5, 1.0])[:, None, None] * random.normal(size=(2, 6, 8))
    stream = sequences(jnp.asarray(values, jnp.float32))
    outputs = Separate(statics="remove").of_clips(None, {"clip": AudioVisual(stream, stream)}, ())
    still, moving = outputs.values["visual"]["dynamic"]
    assert (still == 0).all()
    assert jnp.mean(moving**2) == pytest.approx(1, rel=1e-5)


def test_statics_that_are_kept_without_their_loss_are_scav():
    """Loss and gradients, dropout included; what is only logged differs, and is left out here."""
    kept = Separate(statics="keep", dynamic="distance", static_loss=0.0)
    found = []
    for objective, name in ((kept, "dynamic"), (Sequential(), "sequence")):

        @jax.jit
        def value_and_gradients(params, batch, objective=objective):
            key = jax.random.key(2)
            return jax.value_and_grad(
                lambda params: compute_loss(TOWERS, objective, params, batch, key)[0]
            )(params)

        params = params_of(objective)
        assert set(params) == {"encoders", "log_temperature"}
        loss, gradients = value_and_gradients(params, clips(4))
        found.append((loss, gradients["encoders"], gradients["log_temperature"][name]))
    # Two programs: a compiler may round them in two ways.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *found)
    assert kept.ranks_by() == Sequential().ranks_by() and kept.heads(8) is None
    assert kept.score({"sequence_v2a": 0.5, "sequence_a2v": 0.3}) == 0.4


@pytest.mark.parametrize("distance", ["euclidean", "soft_dtw", "wasserstein"])
def test_removed_statics_are_scav_of_centred_features(distance):
    """The loss of plain SCAV on features that somebody else has centred, by any distance."""
    removed, batch = Separate(statics="remove", dynamic="distance", distance=distance), clips(2)
    params = params_of(removed)
    loss = loss_of(removed)(params, batch)
    theirs = {"encoders": params["encoders"], "log_temperature": {"sequence": jnp.zeros(())}}
    centred = batch._replace(features=removed.shown(batch))
    scav = loss_of(Sequential(distance=distance))
    np.testing.assert_allclose(loss, scav(theirs, centred), rtol=1e-6)
    assert "heads" not in params and abs(loss - scav(theirs, batch)) > 1e-3


def test_the_static_part_alone_is_cavs_form():
    """The loss of CAV on the branch's vectors; of towers, their mean over time."""
    alone, batch = Separate(**SMALL, dynamic_loss=0.0, branch="tower"), clips(1)
    params = params_of(alone)
    static = {name: one["static"] for name, one in outputs_of(alone)(batch).values.items()}
    vectors = [static[name] for name in ("visual", "audio")]
    expected, _ = aggregation_loss(*vectors, params["log_temperature"]["static"])
    np.testing.assert_allclose(loss_of(alone)(params, batch), expected, rtol=1e-6)
    assert set(params["log_temperature"]) == {"static"}
    assert alone.methods[0] == "aggregation"
    own = Encoders(
        width=5, heads=1, feedforward=20, visual_blocks=2, audio_blocks=2, visual_hidden=6,
        audio_hidden=6, dropout=0.0,
    )  # fmt: skip
    latents = jax.jit(own.apply)({"params": params["heads"]}, batch.features)
    for ours, stream in zip(vectors, latents, strict=True):
        lengths = np.asarray(stream.lengths)
        means = [v[:n].mean(axis=0) for v, n in zip(stream.values, lengths, strict=True)]
        np.testing.assert_allclose(ours, np.stack(means), atol=1e-5)


def test_a_scale_of_the_first_batches_stays():
    """D by one number, the mean deviation of ten batches, through which no gradient flows."""
    rng = np.random.default_rng(0)
    matrices = [jnp.asarray(rng.uniform(1, 1 + n, (4, 4)), jnp.float32) for n in range(1, 13)]
    memory = scale.memory("deviation")
    for number, distances in enumerate(matrices):
        expected = np.mean([np.std(m) for m in matrices[: min(number + 1, 10)]])
        scaled = scale.scaled(distances, memory)
        np.testing.assert_allclose(scaled, distances / expected, rtol=1e-5)
        gradient = jax.grad(lambda d, m=memory: scale.scaled(d, m)[0, 0])(distances)
        np.testing.assert_allclose(gradient.sum(), 1 / expected, rtol=1e-5)
        assert np.count_nonzero(gradient) == 1
        memory = scale.after(memory, lambda d=distances: d)
    assert int(memory["batches"]) == 10
    assert scale.scaled(matrices[0], scale.memory("z_score")) is matrices[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statics": "kept"}, "objective.statics: .*Did you mean 'keep'"),
        ({"dynamic": "cosin"}, "Did you mean 'cosine'"),
        ({"distance": "soft_dtw"}, "expected distance with distance.name=soft_dtw"),
        ({"distance": "dtw+static", "dynamic": "distance"}, "leave out"),
        ({"normalize": "zscore"}, "Did you mean 'z_score'"),
        ({"normalize": "deviation"}, "expected objective.dynamic=distance with deviation"),
        ({"dynamic_loss": 0.0, "static_loss": 0.0}, "a loss above 0"),
        ({"static_weight": -1.0}, "static_weight: expected at least 0"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Separate(**options)


# ---- a run ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_carries_its_weight(tmp_path, unchecked_shapes):
    """Trained, stopped and resumed with its scale; evaluated, exported and indexed."""
    extractor = make_fingerprint(load("plain"))
    data = small_run.write_data(tmp_path / "data", fingerprint=extractor)
    options = {"dynamic": "distance", "normalize": "deviation", **SMALL}
    changes = {f"objective.{name}": value for name, value in options.items()}
    changes |= {"objective.name": "separate", "train.steps": 6, "train.validate_every": 3}
    document = small_run.small_config(data, **changes)
    assert small_run.train_here(document, tmp_path / "whole")
    assert small_run.train_here(document, tmp_path / "stopped", stop_after=4) is None
    run = small_run.train_here(document, tmp_path / "stopped")
    whole, stopped = (small_run.parameters(tmp_path / name) for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)
    assert small_run.records(tmp_path / "whole") == small_run.records(tmp_path / "stopped")
    weight = load_run(tmp_path / "whole").objective.static_weight
    assert (
        weight
        == run.objective.static_weight
        == small_run.records(tmp_path / "whole")[-1]["static_weight"]
    )
    assert run.config["objective"]["static_weight"] is None  # the config is as it was given

    said = ["--run", str(tmp_path / "whole"), "--split", "validation", "--bootstrap", "0"]
    assert evaluate_program.main([*said, "--static-weight", "3", "--out", str(tmp_path / "e")]) == 0
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())["runs"][0]
    rows = {results.method_name(one): one for one in found["methods"]}
    assert {"static part", "dynamic part", "sum, static weight 3"} <= set(rows)
    with pytest.raises(InputError, match="expected the Euclidean distance"):
        evaluate_program.main([*said, "--parts"])

    exported = export(tmp_path / "whole", tmp_path / "exported")
    loaded = model.load(tmp_path / "exported")
    assert loaded.identity == exported.identity == model.load(tmp_path / "whole").identity
    assert loaded.distance == (
        "euclidean+static",
        {"resample": "visual_to_audio", "static_width": 5, "static_weight": weight},
    )
    embedded = embed(loaded.run, store.read(data, "validation"))
    _, distances = all_against_all(embedded, *loaded.distance)
    index = create(tmp_path / "i", identity=loaded.identity, distance=loaded.distance)
    index.add(embedded)
    for row, hits in zip(distances, index.search(embedded, "v2a", 5), strict=True):
        assert [hit.id for hit in hits] == [embedded.ids[n] for n in np.argsort(row)]
    words = ["build", str(tmp_path / "j"), "--model", str(tmp_path / "exported")]
    words += ["--data", str(data), "--split", "validation", "--static-weight"]
    assert index_program.main([*words, "0"]) == 0
    assert open_index(tmp_path / "j").header.options["static_weight"] == 0.0
    with pytest.raises(InputError, match=r"expected static weight 0\.0, as it was begun, got 0\.5"):
        index_program.main([*words, "0.5"])
    tower = jax.export.deserialize(
        bytearray((tmp_path / "exported" / "towers" / "audio_kept.jaxexport").read_bytes())
    )
    features = next(iter(evaluation_batches(store.read(data, "validation"), batch_size=5)))
    stream = features.features.audio
    latents = run.encoders.apply(
        {"params": run.params["encoders"]}, run.objective.shown(features)
    ).audio
    values, _, vectors = tower.call(
        run.params["heads"], latents.values, latents.lengths,
        jnp.asarray(stream.values, jnp.float32), stream.lengths, stream.windows,
    )  # fmt: skip
    np.testing.assert_allclose(vectors, embedded.audio_embeddings, atol=1e-5)
    np.testing.assert_allclose(values[:, 0], embedded.audio.values[:, 0], atol=1e-4)


# ---- retrieval -----------------------------------------------------------------------------------


def kept(objective, batch):
    """Both streams as an index takes them; r and s of all pairs, in NumPy."""
    params = params_of(objective)
    latents = latents_of(params["encoders"], objective.shown(batch))

    @jax.jit
    def keep(latents, features):
        heads = bound_heads(TOWERS, objective, params)
        streams = ("visual", "audio")
        return {
            name: objective.kept(heads, name, getattr(latents, name), getattr(features, name))
            for name in streams
        }

    found = keep(latents, batch.features)
    (visual, audio), static = by_hand(objective, batch)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in static]
    cosines = [[cosine(v, a) for a in audio] for v in visual]
    return found, np.array(cosines), units[0] @ units[1].T


def cosine(v, a):
    """Of sequences on one grid."""
    same = v.shape == a.shape
    return (v * a).sum() / (np.linalg.norm(v) * np.linalg.norm(a)) if same else np.nan


def test_clips_are_stored_as_one_vector_whose_product_is_r_and_weighted_s(tmp_path):
    """Found by products of matrices, with any weight that is asked for later."""
    objective = Separate(**SMALL, static_weight=0.25)
    found, r, s = kept(objective, clips(6, ragged=False))
    (visual, of_visual), (audio, of_audio) = found["visual"], found["audio"]
    name, options = objective.ranks_by()
    assert (name, options["static_weight"]) == ("euclidean+static", 0.25)
    for w in (0.25, 0.0, 2.0):
        distances = pairwise(name, visual, audio, **options | {"static_weight": w})
        np.testing.assert_allclose(distances, 2 * (1 + w) - 2 * (r + w * s), atol=1e-4)
    clips_ = Embedded(
        ids=[str(n) for n in range(CLIPS)], sources=["a"] * CLIPS, starts=np.arange(CLIPS) * 1.0,
        ends=np.arange(CLIPS) + 1.0, labels=[""] * CLIPS,
        **jax.tree.map(np.asarray, {"visual": visual, "audio": audio}),
        visual_embeddings=np.asarray(of_visual), audio_embeddings=np.asarray(of_audio),
    )  # fmt: skip
    index = create(tmp_path / "i", identity="x", distance=(name, options), storage="float32")
    index.add(clips_)
    for w in (None, 0.0, 2.0):
        weight = 0.25 if w is None else w
        for direction in ("v2a", "a2v"):
            by_query = (r + weight * s) if direction == "v2a" else (r + weight * s).T
            for retrieval in ("exact", "sequence", "hybrid:4"):
                hits = index.search(clips_, direction, CLIPS, retrieval, static_weight=w)
                for row, of_query in zip(by_query, hits, strict=True):
                    order = [int(hit.id) for hit in of_query]
                    if retrieval != "hybrid:4":
                        assert order == np.argsort(-row).tolist()
                    scores = [hit.score for hit in of_query]
                    np.testing.assert_allclose(scores, 2 * (1 + weight) - 2 * row[order], atol=2e-4)
            hit, query = hits[1][0], 1
            cosine = s[query, int(hit.id)] if direction == "v2a" else s[int(hit.id), query]
            np.testing.assert_allclose(hit.static, cosine, atol=1e-5)
            other = r[query, int(hit.id)] if direction == "v2a" else r[int(hit.id), query]
            np.testing.assert_allclose(hit.dynamic, 2 - 2 * other, atol=2e-4)
    with pytest.raises(InputError, match="static weight: expected 0 or more"):
        index.search(clips_, static_weight=-1.0)
    with pytest.raises(InputError, match="static weight: expected 0 or more"):
        create(tmp_path / "j", identity="x", distance=(name, options), static_weight=-1.0)
    ordinary = create(tmp_path / "o", identity="x", distance=("euclidean", {}))
    with pytest.raises(InputError, match="static weight: expected an index of a model with a stat"):
        ordinary.search(clips_, static_weight=1.0)
    bank = clips_.take([n % CLIPS for n in range(200)])
    own = create(tmp_path / "k", identity="x", distance=(name, options), bank=bank, static_weight=2)
    own.add(clips_)
    for direction, similar in (("v2a", r + 2 * s), ("a2v", (r + 2 * s).T)):
        hits = own.search(clips_, direction, CLIPS, hubness="none")
        assert [[int(hit.id) for hit in of] for of in hits] == np.argsort(-similar).tolist()
        by_bank = own.search(clips_, direction, CLIPS)
        assert own.search(clips_, direction, CLIPS, static_weight=2.0) == by_bank
        far = 6 - 2 * np.asarray(similar)
        for query, of_query in enumerate(by_bank):  # ten of the bank are a clip's nearest
            order = [int(hit.id) for hit in of_query]
            expected = far[query, order] - far.min(axis=0)[order] / 2
            np.testing.assert_allclose([hit.score for hit in of_query], expected, atol=5e-4)
            found_at = [hit.distance for hit in of_query]
            np.testing.assert_allclose(found_at, far[query, order], atol=5e-4)
    with pytest.raises(InputError, match="static weight: expected 2, that of the bank's"):
        own.search(clips_, static_weight=0.0)


def test_any_distance_takes_a_static_part_beside_it():
    """All pairs are the definition, which is the distance of the rest and the static one."""
    found, _, s = kept(Separate(**SMALL), clips(7))
    (visual, _), (audio, _) = found["visual"], found["audio"]
    rest = [x.replace(values=x.values[..., :8]) for x in (visual, audio)]
    for name in ("euclidean", "dtw"):
        options = {"static_width": 5, "static_weight": 0.5}
        distances = pairwise(f"{name}+static", visual, audio, **options)
        expected = np.asarray(pairwise(name, *rest)) + 0.5 * (2 - 2 * s)
        np.testing.assert_allclose(distances, expected, atol=1e-4)
        one, other = (jax.tree.map(lambda leaf: leaf[2], x) for x in (visual, audio))
        pair = find(f"{name}+static", {}).pair(one, other, **options)
        np.testing.assert_allclose(pair, distances[2, 2], atol=1e-5)
        common = [x.replace(values=x.values.at[..., 8:].add(1000.0)) for x in (visual, audio)]
        np.testing.assert_allclose(
            pairwise(f"{name}+static", *common, **options), expected, atol=1e-3
        )


def test_the_weight_is_the_best_on_validation_and_the_smallest_of_several():
    rng = np.random.default_rng(0)
    truth = np.eye(12)
    static, dynamic = (truth + rng.normal(size=(12, 12)) * 0.45 for _ in range(2))

    def found(weight):
        summed = -2 * dynamic + weight * (2 - 2 * static)
        return sum(
            np.mean([row[n] < np.delete(row, n).min() for n, row in enumerate(m)])
            for m in (summed, summed.T)
        )

    weight = best_weight(static.astype(np.float32), (-2 * dynamic).astype(np.float32))
    tried = [m * np.std(2 * dynamic) / np.std(2 * static) for m in 2.0 ** np.arange(-6, 5)]
    tried = [0.0, *(float(f"{w:.2g}") for w in tried)]
    best = max(found(w) for w in tried)
    assert weight in tried and found(weight) == best > max(found(0), found(1e6))
    assert all(found(w) < best for w in tried if w < weight)
    assert best_weight(np.zeros((12, 12), np.float32), (1 - truth).astype(np.float32)) == 0.0
    chosen = Separate().decide(static, -2 * dynamic)
    assert chosen == {"static_weight": best_weight(static, -2 * dynamic)}
    assert replace(Separate(), static_weight=1.0).decide(static, dynamic) == {}


def test_the_static_part_of_bfloat16_is_no_difference_of_rounded_squares(random):
    vectors = random.normal(size=(2, CLIPS, 1, 64)) * 0.02 + random.normal(size=(CLIPS, 1, 64))
    values = np.concatenate([np.zeros((2, CLIPS, 3, 2)), vectors.repeat(3, axis=2)], axis=3)
    rounded = [sequences(jnp.asarray(some, jnp.bfloat16)) for some in values]
    exact = [s.replace(values=s.values.astype(jnp.float32)) for s in rounded]
    of_16, expected = (
        pairwise("euclidean+static", *some, static_width=64) for some in (rounded, exact)
    )
    assert of_16.dtype == jnp.bfloat16
    np.testing.assert_allclose(of_16.astype(jnp.float32), expected, rtol=2.0**-8)
    pair = find("euclidean+static", {}).pair(*(jax.tree.map(lambda x: x[0], s) for s in rounded),
                                             static_width=64)  # fmt: skip
    assert pair.dtype == jnp.bfloat16
    np.testing.assert_allclose(pair.astype(jnp.float32), expected[0, 0], rtol=2.0**-8)
