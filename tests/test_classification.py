"""Labels: losses, mixup and figures against NumPy; linear probes and fine-tuning end to end."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import FINGERPRINT, noise, parameters, records, small_config, train_here
from test_evaluate import write_run
from test_temporal import WITHOUT_BLOCKS

from scav_jax import metrics, objectives
from scav_jax.base.errors import InputError
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.features import store
from scav_jax.features.sides import pixels
from scav_jax.index import __main__ as index_program
from scav_jax.objectives import Classification, Equivariant, Place
from scav_jax.objectives.classification import Head
from scav_jax.objectives.objective import Material
from scav_jax.plan import estimate
from scav_jax.retrieval import classify
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.train_step import init_state, make_train_step
from scav_jax.training import runs

PLACE = Place(2**20)
NAMES = ("bell", "drum", "horn")
CLIPS, STEPS = 12, 5
LENGTHS = np.array([5, 3, 4, 1, 5, 2, 5, 4, 3, 5, 1, 2])


def batch(dtype=np.float32, clips=CLIPS):
    """Clips whose padding is NaN where it can be, with one label each."""
    rng = np.random.default_rng(3)
    streams = []
    for width in (4, 6):
        values = rng.normal(size=(clips, STEPS, width)).astype(np.float32)
        if dtype == np.uint8:
            values = rng.integers(0, 256, values.shape)
        else:
            values[np.arange(STEPS)[None] >= LENGTHS[:clips, None]] = np.nan
        streams.append(sequences(jnp.asarray(values.astype(dtype)), jnp.asarray(LENGTHS[:clips])))
    labels = [NAMES[number % 3] for number in range(clips)]
    targets = Classification(classes=NAMES).targets(labels)
    numbers = np.int32(7 * np.arange(clips)[::-1] % 83)
    made = as_batch(AudioVisual(*streams))._replace(numbers=numbers, targets=targets)
    return jax.tree.map(jnp.asarray, made)


# ---- losses -------------------------------------------------------------------------------------


def numpy_loss(logits, targets, several):
    """Clip by clip, class by class, from the formulas."""
    total = 0.0
    for row, target in zip(np.float64(logits), np.float64(targets), strict=True):
        if several:
            for x, t in zip(row, target, strict=True):
                p = 1 / (1 + math.exp(-x))
                total -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / len(row)
        else:
            exponents = [math.exp(x) for x in row]
            shares = [math.log(e / sum(exponents)) for e in exponents]
            total -= sum(t * s for t, s in zip(target, shares, strict=True))
    return total / len(logits)


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_is_the_formula_and_its_gradient_is_the_softmax_less_the_target(several, random):
    objective = Classification(classes=NAMES, multi_label=several)
    logits = random.normal(size=(6, 3)).astype(np.float32)
    targets = random.dirichlet(np.ones(3), 6).astype(np.float32)  # as mixup makes them
    if several:
        targets = random.uniform(size=(6, 3)).astype(np.float32)

    def loss(logits):
        outputs = objectives.Outputs({"logits": logits}, {"targets": jnp.asarray(targets)})
        return objective.loss({}, outputs, {}, PLACE)

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    assert float(value) == pytest.approx(numpy_loss(logits, targets, several), rel=1e-5)
    exponents = np.exp(logits)
    told = exponents / exponents.sum(axis=1, keepdims=True)
    told = exponents / (1 + exponents) if several else told
    scale = 6 * 3 if several else 6
    np.testing.assert_allclose(gradient, (told - targets) / scale, atol=1e-6)
    right = np.mean(logits.argmax(axis=1) == targets.argmax(axis=1))
    assert float(objective.health(aux)["accuracy"]) == pytest.approx(right)


@pytest.mark.parametrize("streams", ["both", "visual", "audio"])
def test_logits_are_a_linear_layer_of_the_means_of_real_steps(streams, random):
    objective = Classification(classes=NAMES, streams=streams)
    latents = batch().features
    latents = AudioVisual(*(s.replace(values=s.values[..., :4]) for s in latents))
    kernel = random.normal(size=(8 if streams == "both" else 4, 3)).astype(np.float32)
    params = {"linear": {"kernel": kernel, "bias": np.float32([1, 2, 3])}}
    heads = objective.heads(4).bind({"params": params})
    logits = objective.of_clips(heads, {"clip": latents}, ()).values["logits"]
    for row in range(CLIPS):
        means = [
            np.mean(np.float64(stream.values[row, : LENGTHS[row]]), axis=0)
            for name, stream in zip(("visual", "audio"), latents, strict=True)
            if streams in ("both", name)
        ]
        expected = np.concatenate(means) @ kernel + [1, 2, 3]
        np.testing.assert_allclose(logits[row], expected, atol=1e-5)
    np.testing.assert_allclose(
        objective.embed(heads, "audio", latents.audio)[1],
        np.mean(latents.audio.values[1, :3], axis=0),
        atol=1e-6,
    )


def test_frozen_towers_have_no_gradient_and_the_layer_has():
    latents = AudioVisual(*(s.replace(values=s.values[..., :4]) for s in batch().features))
    for frozen in (False, True):
        head = Head(("visual", "audio"), 3, norms=True, frozen=frozen)
        params = head.init(jax.random.key(0), latents)

        def loss(params, values, head=head):
            streams = [s.replace(values=v) for s, v in zip(latents, values, strict=True)]
            return jnp.sum(head.apply(params, AudioVisual(*streams)) ** 2)

        of_both = jax.jit(jax.grad(loss, (0, 1)))(params, [s.values for s in latents])
        of_params, of_values = jax.device_get(of_both)
        norms = {name: of_params["params"][name] for name in ("norm_visual", "norm_audio")}
        for moved in (norms, of_values):
            largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(moved))
            assert np.isfinite(largest) and (largest == 0.0) == frozen
        assert float(np.abs(of_params["params"]["linear"]["kernel"]).max()) > 0


def test_the_norms_of_pixels_are_those_that_equiav_has_learned():
    """By name and shape, which is how `train.init_from` takes parameters over."""
    ours = {name for name in ("norm_visual", "norm_audio")}
    shapes = {}
    steps = sequences(jnp.ones((1, 2, 8)))
    head = Classification(classes=NAMES, pixels=True).heads(8)
    shapes["ours"] = jax.eval_shape(lambda: head.init(jax.random.key(0), AudioVisual(steps, steps)))
    clip = AudioVisual(steps, steps)
    about = {s: {"vector": jnp.ones((1, w))} for s, w in (("visual", 18), ("audio", 24))}
    theirs = Equivariant(centroid=0, hidden=3, intra_width=3, inter_width=3, code_width=3).heads(8)
    latents = {"clip": clip, "augmented": clip}
    shapes["theirs"] = jax.eval_shape(lambda: theirs.init(jax.random.key(0), latents, about))
    for name in ours:
        assert shapes["ours"]["params"][name] == shapes["theirs"]["params"][name]
    assert set(shapes["ours"]["params"]) == ours | {"linear"}


# ---- mixup --------------------------------------------------------------------------------------


def mix(objective, clips, seed=0):
    return jax.jit(lambda clips: objective.mixed(clips, jax.random.key(seed), PLACE))(clips)


def partners(before, after):
    """(clip, partner, share) of each mixed clip, found by search: x = l x_i + (1 - l) x_j.

    The partner is zero behind its end.
    """
    found = []
    stored = np.nan_to_num(np.float64(before.features.audio.values))
    for i, length in enumerate(LENGTHS):
        got = np.float64(after.features.audio.values[i, :length])
        fits = []
        for j in range(CLIPS):
            own, other = stored[i, :length].ravel(), stored[j, :length].ravel()
            if i != j:
                way = own - other
                share = (got.ravel() - other) @ way / (way @ way)
                left = np.abs(share * own + (1 - share) * other - got.ravel()).max()
                fits.append((left, j, share))
        left, j, share = min(fits)
        assert left < 1e-5
        found.append((i, j, share))
    return found


def test_mixed_clips_are_blends_of_two_and_so_are_their_targets():
    clips, objective = batch(), Classification(classes=NAMES, mixup=1.0)
    after = mix(objective, clips)
    shares = []
    for i, j, share in partners(clips, after):
        target = share * np.asarray(clips.targets[i]) + (1 - share) * np.asarray(clips.targets[j])
        np.testing.assert_allclose(after.targets[i], target, atol=1e-5)
        own, other = (np.nan_to_num(np.float64(clips.features.visual.values[k])) for k in (i, j))
        expected = (share * own + (1 - share) * other)[: LENGTHS[i]]
        found = after.features.visual.values[i, : LENGTHS[i]]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        shares.append(share)
    assert min(shares) > 0.2 and max(shares) < 0.8 and np.std(shares) > 0.02
    for stream, before in zip(after.features, clips.features, strict=True):
        np.testing.assert_array_equal(stream.lengths, before.lengths)
    np.testing.assert_array_equal(after.numbers, clips.numbers)


# Nor from devices: the table of test_scaling.
def test_pairs_follow_from_numbers_and_not_from_rows():
    clips, objective = batch(), Classification(classes=NAMES, mixup=0.7)
    after = mix(objective, clips)
    order = jnp.asarray(np.random.default_rng(0).permutation(CLIPS))
    turned = jax.tree.map(lambda leaf: leaf[order], clips)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf)[np.asarray(order)], after)
    found = jax.device_get(mix(objective, turned))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    others = mix(objective, clips, seed=1)
    assert not np.array_equal(others.targets, after.targets)


def test_how_many_are_mixed_and_how_much():
    """Half of them; by Beta(2, 2), whose variance is 1/20; with every other clip alike often."""
    count = 2_000
    numbers = jnp.arange(count, dtype=jnp.int32)
    values = jnp.ones((count, 1, 1))
    stream = sequences(values)
    targets = jnp.eye(count, dtype=jnp.float32)
    clips = as_batch(AudioVisual(stream, stream))._replace(numbers=numbers, targets=targets)
    objective = Classification(classes=NAMES, mixup=0.5, mixup_alpha=2.0)
    found = np.asarray(mix(objective, clips).targets)
    own = np.diagonal(found)
    assert 0.45 < np.mean(own < 1) < 0.55
    shares = own[own < 1]
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 0.05) < 0.006
    assert ((found > 0).sum(axis=1) == 1 + (own < 1)).all()
    steps = (found - np.diag(own)).argmax(axis=1)[own < 1] - np.flatnonzero(own < 1)
    assert abs(np.mean(steps % count) / count - 0.5) < 0.05
    assert len(set(steps % count)) > 0.5 * len(shares)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_mixed_features_keep_their_dtype(dtype):
    clips, objective = batch(dtype), Classification(classes=NAMES, mixup=1.0)
    after = mix(objective, clips)
    assert after.features.visual.values.dtype == dtype
    if dtype == np.uint8:  # rounded, not cut off: on average nothing is lost
        exact = mix(objective, jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.uint8
                                            else x, clips))  # fmt: skip
        left = np.float64(after.features.audio.values) - np.float64(exact.features.audio.values)
        real = np.arange(STEPS)[None] < LENGTHS[:, None]
        assert np.abs(left[real]).max() <= 0.5 + 1e-4 and abs(left[real].mean()) < 0.1


def test_without_mixup_a_batch_stays_as_it_is():
    clips = batch()
    assert Classification(classes=NAMES).mixed(clips, jax.random.key(0), PLACE) is clips


# ---- figures ------------------------------------------------------------------------------------


def naive_average_precision(scores, truth, counts):
    """Over thresholds, largest first; everything at or above one is found at it."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = [n for s, n in zip(scores, counts, strict=True) if s >= threshold]
        pairs = zip(scores, truth, counts, strict=True)
        hits = sum(n for s, t, n in pairs if t and s >= threshold)
        if sum(found):
            recall = hits / sum(n for t, n in zip(truth, counts, strict=True) if t)
            total += (recall - before) * hits / sum(found)
            before = recall
    return total


def test_average_precision_is_that_of_loops_ties_and_resampling_included(random):
    scores = random.integers(0, 4, (15, 3)).astype(float)
    truth = random.uniform(size=(15, 3)) < 0.4
    counts = random.integers(0, 3, (2, 15)).astype(float)
    found = metrics.average_precisions(scores, truth, counts)
    for sample in range(2):
        for c in range(3):
            expected = naive_average_precision(scores[:, c], truth[:, c], counts[sample])
            assert found[sample, c] == pytest.approx(expected)
    constant = metrics.average_precisions(np.zeros((15, 3)), truth)[0]
    np.testing.assert_allclose(constant, truth.mean(axis=0))
    told = metrics.mean_average_precision(scores, truth, bootstrap=40, seed=5)
    rng, means = np.random.default_rng(5), []
    for row in rng.integers(0, 15, (40, 15)):
        times = np.bincount(row, minlength=15)
        each = [
            naive_average_precision(scores[:, c], truth[:, c], times)
            for c in range(3)
            if times @ truth[:, c]
        ]
        means.append(np.mean(each))
    np.testing.assert_allclose(told["mAP_interval"], np.percentile(means, [2.5, 97.5]))
    assert told == metrics.mean_average_precision(scores, truth, bootstrap=40, seed=5)
    rare = np.arange(15)[:, None] == 3  # a third of the samples have no clip of any class
    low, high = metrics.mean_average_precision(scores[:, :1], rare, bootstrap=40)["mAP_interval"]
    assert 0 < low <= high <= 1


def test_figures_of_one_label_stand_beside_the_commonest_answers():
    classes = tuple("abcdefgh")
    labels = ["a", "a", "a", "b", "c", "d", "e", "f", "g", "g"]
    objective = Classification(classes=classes)
    logits = np.zeros((10, 8))
    for row, label in enumerate(labels):
        logits[row, classes.index(label)] = 1.0
    logits[0] = 0.0  # every class alike: counts against the clip
    logits[3] = np.arange(8)  # b is the seventh
    logits[4] = [0, 3, 2, 1, 0, 0, 0, 0]  # c is the second
    found = classify.figures(objective, logits, labels, bootstrap=50, seed=1)
    assert (found["figure"], found["top_5"]) == (0.7, 0.8)
    assert (found["prior"], found["prior_top_5"]) == (0.3, pytest.approx(0.8))
    assert (found["n"], found["classes"], found["classes_there"]) == (10, 8, 7)
    assert found["per_class"] == {"a": pytest.approx(2 / 3), "b": 0.0, "c": 0.0, "d": 1.0, "e": 1.0,
                                  "f": 1.0, "g": 1.0}  # fmt: skip
    low, high = found["figure_interval"]
    assert low < 0.7 < high
    assert found == classify.figures(objective, logits, labels, bootstrap=50, seed=1)
    few = classify.figures(Classification(classes=classes[:2]), logits[:4, :2], labels[:4])
    assert "top_5" not in few


def test_figures_of_several_labels():
    objective = Classification(classes=NAMES, multi_label=True)
    labels = ["drum; bell", "drum", "bell ;drum;", "bell"]
    logits = np.array([[2.0, 1.0, 9.0], [1.0, 0.5, 9.0], [3.0, 0.0, 9.0], [0.0, -1.0, 9.0]])
    found = classify.figures(objective, logits, labels, bootstrap=0)
    bell = (1 + 1 + 3 / 4) / 3  # found first, second and last
    assert found["per_class"] == {"bell": pytest.approx(bell), "drum": 1.0}
    assert found["figure"] == pytest.approx((bell + 1) / 2)
    assert found["prior"] == pytest.approx(0.75)
    assert (found["classes"], found["classes_there"]) == (3, 2)


# ---- what cannot be -----------------------------------------------------------------------------


def material(labels, backbone="plain"):
    ids = [f"clip {number}" for number in range(len(labels))]
    none = np.zeros((len(labels), 2))
    made_by = {"backbone": {stream: {"name": backbone} for stream in ("visual", "audio")}}
    where = "time", "data (train)"
    return Material(made_by, *where, ids, none, none, {}, labels, pixels(made_by))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["bell", "", "drum", " "], {}, r"2 of 4 have none \('clip 1', 'clip 3'\)"),
        ([""] * 3, {}, "expected a label for every clip, 3 of 3 have none"),
        (["bell"] * 3, {"classes": ()}, r"two classes or more to tell apart, got 1 \('bell'\)"),
        (["bell", "gong", "tom"], {}, r"2 are none of them \('gong', 'tom'\)"),
        (["bell;drum", "bell"], {}, "multi_label=true reads several in one label"),
        (["bell;gong", "bell"], {"multi_label": True}, r"1 are none of them \('gong'\)"),
        (["bell", "drum"], {"backbone": "pixels"}, "set objective.pixels=true"),
        (["bell", "drum"], {"pixels": True}, "of the backbone 'pixels', got those of 'plain'"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(labels, options, message):
    backbone = {"backbone": options.pop("backbone")} if "backbone" in options else {}
    objective = Classification(**{"classes": NAMES} | options)
    told = material(labels, **backbone)
    objective = dataclasses.replace(objective, **objective.from_data(told))
    with pytest.raises(InputError, match=message):
        objective.check(told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": "vidual"}, "objective.streams: .*Did you mean 'visual'"),
        ({"towers": "froze"}, "objective.towers: .*Did you mean 'frozen'"),
        ({"mixup": 1.5}, "objective.mixup: expected 0 to 1"),
        ({"mixup_alpha": 0.0}, "objective.mixup_alpha: expected more than 0"),
        ({"classes": ("a", "a")}, "objective.classes: expected each once"),
        ({"multi_label": True, "separator": ""}, "objective.separator"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        Classification(**options)


def test_a_sum_with_classification_is_refused():
    with pytest.raises(InputError, match="expected objectives without labels in a sum"):
        objectives.find("sequence+classification")


# ---- runs ---------------------------------------------------------------------------------------


def write_data(folder, names=NAMES, clips=29, shift=4.0):
    """As `small_run.write_data`; every class has its own mean in the sound, so it can be told."""
    random = np.random.default_rng(0)
    made = []
    for number in range(clips):
        which = number % len(names)
        steps = random.integers(9, 13), random.integers(4, 6)
        clip = noise(random, number, steps, label=names[which])
        clip = dataclasses.replace(
            clip, audio=(clip.audio + shift * np.eye(6)[which]).astype(np.float16)
        )
        made.append(("validation" if number >= clips - 6 else "train", clip))
    store.write(made, folder, fingerprint=FINGERPRINT, videos="", rejected=[])
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("labelled") / "data")


def learn(data, workdir, stop_after=None, **changes):
    """Whether a training came to its end; SIGTERM comes after a step."""
    settings = {"train.steps": 20, "train.validate_every": 10, "train.checkpoint_every": 0}
    settings |= {"objective.name": "classification", "optimizer.learning_rate": 0.1}
    settings |= {"encoders.dropout": 0.0, "optimizer.weight_decay": 0.1}
    return train_here(small_config(data, **settings | changes), workdir, stop_after) is not None


@pytest.fixture(scope="module")
def probe(trained, data, tmp_path_factory):
    """A linear probe that starts from a SCAV run, of mixed clips; once stopped in between."""
    folder = tmp_path_factory.mktemp("classifier")
    changes = {"objective.towers": "frozen", "objective.mixup": 0.5}
    changes |= {"train.init_from": str(trained / "run")}
    assert learn(data, folder / "whole", **changes)
    assert not learn(data, folder / "stopped", stop_after=13, **changes)
    assert learn(data, folder / "stopped", **changes)
    return folder


def test_a_run_that_was_stopped_is_the_same_bit_for_bit(probe):
    both = [parameters(probe / name) for name in ("whole", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert records(probe / "whole") == records(probe / "stopped")


def test_a_linear_probe_leaves_the_towers_that_it_starts_from(probe, trained):
    """To the bit, in spite of weight decay; and it learns."""
    ours, theirs = parameters(probe / "whole"), parameters(trained / "run")
    towers = [name for name in theirs if name.startswith("['encoders']")]
    assert len(towers) > 10
    for name in towers:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert {name for name in ours if name not in towers} == {
        "['heads']['linear']['kernel']",
        "['heads']['linear']['bias']",
    }
    validated = [line for line in records(probe / "whole") if "validation" in json.dumps(line)]
    assert validated[-1]["accuracy"] >= 0.5  # of three classes


def test_its_config_holds_the_classes_and_evaluate_prints_accuracy(probe, data, capsys):
    run = runs.load_run(probe / "whole")
    assert run.objective.classes == NAMES
    said = ["--run", str(probe / "whole"), "--split", "validation", "--bootstrap", "30"]
    assert evaluate_program.main(said) == 0
    printed = capsys.readouterr().out
    document = json.loads(
        next((probe / "whole").glob("evaluation/*/classification.json")).read_text()
    )
    found, split = document["runs"][0], store.read(data, "validation")
    logits = classify.logits_of(run, split, 4)
    right = [NAMES.index(label) for label in split.labels]
    accuracy = np.mean(logits.argmax(axis=1) == right)
    assert found["figure"] == accuracy and found["measured"] == "accuracy"
    assert (found["n"], found["classes"], found["prior"]) == (6, 3, pytest.approx(1 / 3))
    assert f"{100 * accuracy:.1f}" in printed and "[" in printed and "Linear probe" in printed
    assert "N = 6 is few" in printed
    last = [line for line in records(probe / "whole") if "accuracy" in line][-1]
    assert last["accuracy"] == pytest.approx(accuracy)


def test_a_classifier_is_no_model_to_search_with_and_no_row_beside_others(probe, trained, tmp_path):
    run = str(probe / "whole")
    with pytest.raises(InputError, match=r"this one classifies.*the run that it started from"):
        index_program.main(
            ["build", str(tmp_path / "i"), "--model", run, "--data", "x", "--split", "y"]
        )
    said = ["--run", run, "--split", "validation"]
    with pytest.raises(InputError, match="expected classifiers beside a classifier"):
        evaluate_program.main([*said, "--compare", str(trained / "run")])
    for asked in ("--hybrid 1", "--static-weight 0", "--gallery 5", "--baselines", "--parts",
                  "--hubness bank"):  # fmt: skip
        option = asked.split()[0]
        with pytest.raises(InputError, match=f"{option}: expected a run that retrieves"):
            evaluate_program.main([*said, *asked.split()])


def test_fine_tuning_one_stream_leaves_the_other_tower_alone():
    """Weight decay would move it; the other one learns, and so does its layer."""
    objective = Classification(classes=NAMES, streams="audio")
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    clips = jax.tree.map(jnp.nan_to_num, batch())
    start = init_state(WITHOUT_BLOCKS, objective, optimizer, clips, seed=0)
    after, _ = jax.jit(make_train_step(WITHOUT_BLOCKS, objective, optimizer, seed=0))(start, clips)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), start.params, after.params)
    assert all(jax.tree.leaves(same["encoders"]["visual"]))
    assert not any(jax.tree.leaves(same["encoders"]["audio"]))
    assert not any(jax.tree.leaves(same["heads"]))


def test_several_labels_are_evaluated_by_map(tmp_path, capsys):
    """A run directory with random parameters, on a data set of its own."""
    data = write_data(tmp_path / "data", names=("bell", "drum;bell", "horn"))
    options = {"name": "classification", "multi_label": True, "classes": NAMES}
    run = write_run(tmp_path / "run", data, **options)
    said = ["--run", str(run), "--split", "train", "--bootstrap", "0"]
    assert evaluate_program.main(said) == 0
    assert "mAP" in capsys.readouterr().out
    unknown = write_data(tmp_path / "unknown", names=("bell", "gong"))
    with pytest.raises(InputError, match="none of them"):
        evaluate_program.main([*said, "--data", str(unknown)])


def test_an_unlabelled_data_set_is_refused_before_anything_is_written(tmp_path):
    data = write_data(tmp_path / "data", names=("",))
    with pytest.raises(InputError, match="expected a label for every clip, 23 of 23 have none"):
        learn(data, tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_the_plan_counts_the_data_s_classes_or_the_paper_s(data):
    config = small_config(data, **{"objective.name": "classification"})
    stored = estimate.stored_features(config)
    assert estimate.workload(config, 1, stored).objective.classes == NAMES
    nowhere = small_config("nowhere", **{"objective.name": "classification"})
    work = estimate.workload(nowhere, 1, estimate.stored_features(nowhere))
    assert len(work.objective.classes) == 309
