"""Two strangers, by dotted path: a distance, and an objective with all that one may have.

Each trains, is stopped, goes on to the same bits, and is evaluated. Then what holds for every
objective of ours: nothing of a clip depends on its row or its neighbours.
"""

import dataclasses
import json
from types import SimpleNamespace

import drawn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import TOWERS, assert_same_run, small_config, train_here, untrained, write_data

from scav_jax import objectives
from scav_jax.base import doors
from scav_jax.base.errors import InputError
from scav_jax.distances import alignment, check_padding, find, lift, pairwise
from scav_jax.encoders import Encoders, PatchEncoders
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.export import __main__ as export_program
from scav_jax.export.writing import export
from scav_jax.extract.backbones import load, make_fingerprint
from scav_jax.objectives import returns
from scav_jax.objectives.objective import Objective, Outputs, Views
from scav_jax.objectives.returns import loss_of, remembered, returned
from scav_jax.retrieval import model
from scav_jax.retrieval.validation import check_used
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.train_step import (
    loss_and_gradients,
    make_train_step,
    of_clips,
)
from scav_jax.training import runs
from scav_jax.training.config import distance_section
from scav_jax.training.runs import example_batch, load_run
from scav_jax.training.setup import set_up, widths

DISTANCE = """
from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scav_jax.sequences import masked_mean


def of_means(visual, audio, power: float = 1.0):
    means = [masked_mean(stream.values, stream.lengths) for stream in (visual, audio)]
    return jnp.sum((jnp.abs(means[0] - means[1]) + 1e-6) ** power)


def of_powers(visual, audio, powers=[1.0]):
    pass


def of_digits(visual, audio, digits=np.float32(1)):
    pass


def of_nothing(visual, audio, nan=float("nan")):
    pass


def of_blocks(visual, audio, block=2):
    pass


def of_one(visual):
    pass


def of_all_steps(visual, audio):
    return jnp.sum((visual.values.mean(0) - audio.values.mean(0)) ** 2)


def undecided(visual, audio, *, power):
    pass


def of_steps(visual, audio):
    return jnp.sum((visual.values - audio.values) ** 2, keepdims=True)[0]


NUMBER = 3
"""

OBJECTIVE = """
from __future__ import annotations

from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
from scav_jax.objectives import Objective, Outputs, Views, aggregation_loss, clip_keys
from scav_jax.objectives.objective import spread
from scav_jax.sequences import masked_mean


@dataclass(frozen=True)
class Noisy(Objective):
    noise: float = 0.1
    tau: float = field(default_factory=lambda: 0.2)
    methods = ("aggregation", "sequence")

    def temperatures(self):
        return {"noisy": self.tau}

    def heads(self, width):
        return nn.Dense(6)

    def views(self, batch, key):
        def noisy(key, values):
            return values.astype(jnp.float32) + self.noise * jax.random.normal(key, values.shape)

        keys, visual = clip_keys(key, batch.numbers), batch.features.visual
        visual = visual.replace(values=jax.vmap(noisy)(keys, visual.values))
        return Views({"clip": batch.features, "noisy": batch.features._replace(visual=visual)})

    def of_clips(self, heads, latents, about):
        return Outputs({k: [self.embed(heads, "", s) for s in latents[k]] for k in latents})

    def loss(self, log_temperature, outputs, memory, place):
        clip, noisy = outputs.values["clip"], outputs.values["noisy"]
        parts = [aggregation_loss(*view, log_temperature["noisy"])[0] for view in (clip, noisy)]
        return sum(parts) + jnp.mean((clip[0] - memory["mean"][None]) ** 2), {"embeddings": clip}

    def memory(self):
        return {"mean": jnp.ones(6)}

    def remember(self, memory, outputs):
        return {"mean": 0.9 * memory["mean"] + 0.1 * jnp.mean(outputs.values["clip"][0], axis=0)}

    def health(self, aux):
        return {"embedding_spread": spread(aux["embeddings"][0])}

    def embed(self, heads, stream, latents):
        return heads(masked_mean(latents.values, latents.lengths))


@dataclass(frozen=True)
class Bare(Objective):
    def of_clips(self, heads, latents, about):
        return Outputs([masked_mean(one.values, one.lengths) for one in latents["clip"]])

    def loss(self, log_temperature, outputs, memory, place):
        return jnp.mean((outputs.values[0] - outputs.values[1]) ** 2), {}
"""


@pytest.fixture(autouse=True)
def strangers(tmp_path, monkeypatch):
    folder = tmp_path / "strangers"
    folder.mkdir()
    (folder / "stranger_distance.py").write_text(DISTANCE)
    (folder / "stranger_objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(folder))


# The objective ranks by the stranger's distance; ours trains by it, too.
STRANGERS = {
    "objective": {"objective.name": "stranger_objective:Noisy", "objective.noise": "0.3",
                  "encoders.visual_blocks": 1},
    "distance": {"objective.name": "sequence"},
}  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_trains_goes_on_and_is_evaluated(tmp_path, stranger):
    changes = {"distance.name": "stranger_distance:of_means", "distance.power": "2.0"}
    changes |= {"train.steps": 6, "train.validate_every": 3, "train.checkpoint_every": 0}
    config = small_config(write_data(tmp_path / "data"), **changes, **STRANGERS[stranger])
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_here(config, whole) is not None
    assert train_here(config, stopped, stop_after=4) is None
    assert train_here(config, stopped) is not None
    assert_same_run(stopped, whole)
    assert_gradients_moved_biases(set_up(config), load_run(whole).params)
    said = ["--run", str(whole), "--split", "validation", "--bootstrap", "0"]
    assert evaluate_program.main(said) == 0
    found = json.loads(next(whole.glob("evaluation/*/metrics.json")).read_text())
    run = found["runs"][0]
    assert run["objective"] == STRANGERS[stranger]["objective.name"]
    assert run["distance"] == {"name": "stranger_distance:of_means", "options": {"power": 2.0}}


def assert_gradients_moved_biases(setup, params):
    """Of both towers, since `train_here` drew them; nothing decays a bias."""
    example = example_batch(widths(setup))
    begun = drawn.params(setup.encoders, setup.objective, example, setup.config.seed)
    biases = {
        jax.tree_util.keystr(path): np.any(now != first)
        for (path, now), first in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(begun), strict=True
        )
        if path[-1].key == "bias"
    }
    assert {name.split("'")[3] for name in biases} >= {"visual", "audio"} and all(biases.values())


@pytest.mark.usefixtures("figures_only")
def test_an_exported_stranger_is_loaded_and_evaluated_by_who_trusts_it(tmp_path, unchecked_shapes):
    names = {"objective": "stranger_objective:Noisy", "distance": "stranger_distance:of_means"}
    trust, extractor = list(names.values()), make_fingerprint(load("plain"))
    flags = " ".join(f"--trust {name}" for name in trust)
    data = write_data(tmp_path / "data", fingerprint=extractor)
    strange = {f"{section}.name": name for section, name in names.items()}
    untrained(small_config(data, **strange), tmp_path / "run")
    made = export(tmp_path / "run", tmp_path / "out")
    asked_for = (
        f"its objective {trust[0]} and its distance {trust[1]}: code .* say so with {flags} "
    )
    with pytest.raises(InputError, match=asked_for):
        model.load(tmp_path / "out")
    read = model.load(tmp_path / "out", trust=trust)
    assert f'load("DIR", trust={trust})' in (tmp_path / "out" / "README.md").read_text()
    assert read.identity == made.identity
    latents = sequences(jnp.ones((2, 3, 12)), jnp.array([3, 2]))
    head = read.run.params["heads"]
    tower = jax.export.deserialize(
        bytearray((tmp_path / "out" / "towers" / "audio_kept.jaxexport").read_bytes())
    )
    features = sequences(jnp.ones((2, 5, read.run.config["features"]["widths"]["audio"])))
    features = features.values, features.lengths, features.windows
    kept, lengths, found = tower.call(head, latents.values, latents.lengths, *features)
    np.testing.assert_array_equal(kept, latents.values)
    np.testing.assert_array_equal(lengths, latents.lengths)
    np.testing.assert_allclose(found, np.ones((2, 12)) @ head["kernel"] + head["bias"], atol=1e-5)
    asked = ["--data", str(data), "--split", "validation", "--bootstrap", "0"]
    asked += ["--out", str(tmp_path / "evaluation")]
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    for words in (["--run", out], ["--run", run, "--compare", out]):
        with pytest.raises(InputError, match=f"say so with {flags} "):
            evaluate_program.main([*words, *asked])
        assert evaluate_program.main([*words, *asked, *flags.split()]) == 0


def test_a_stranger_is_shared_by_who_trusts_it(tmp_path, unchecked_shapes, monkeypatch):
    """With its run, whose code was imported, or from the export alone."""
    data = write_data(tmp_path / "data", fingerprint=make_fingerprint(load("plain")))
    config = small_config(data, **{"distance.name": "stranger_distance:of_means"})
    run, out = untrained(config, tmp_path / "run"), tmp_path / "out"
    pushed = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "upload_folder",
        lambda _, repo_id, **__: pushed.append(repo_id) or SimpleNamespace(commit_url="there"),
    )
    words = ["--out", str(out), "--push", "me/mine"]
    assert export_program.main([*words, "--run", str(run)]) == 0
    with pytest.raises(InputError, match="say so with --trust stranger_distance:of_means"):
        export_program.main(words)
    assert export_program.main([*words, "--trust", "stranger_distance:of_means"]) == 0
    assert pushed == ["me/mine"] * 2


def test_a_strangers_distance_is_lifted_and_aligned_in_time():
    visual = sequences(jnp.ones((2, 4, 3)), jnp.array([4, 2]))
    audio = sequences(jnp.full((3, 2, 3), 3.0))
    found = pairwise("stranger_distance:of_means", visual, audio, power=2.0)
    np.testing.assert_allclose(found, np.full((2, 3), 12.0), rtol=1e-5)
    one, other = (jax.tree.map(lambda leaf: leaf[0], stream) for stream in (visual, audio))
    with pytest.raises(InputError, match=r"of_steps: .* a number for a pair, got .* shape \(1,\)"):
        pairwise("stranger_distance:of_steps", visual, visual)
    for got, words in ((None, "a NoneType"), (2j, "a complex"), (jnp.int32(3), "int32")):
        with pytest.raises(InputError, match=f"number .*, got {words}"):
            lift.all_pairs(lambda v, a: got, visual, audio, block=None, memory_bytes=1)  # noqa: B023
    weights = alignment("stranger_distance:of_means", one, other, power=2.0)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda: find("euclidian", {}), "Did you mean 'euclidean'"),
        (lambda: find("no_such_module:x", {}), "there is no module 'no_such_module'"),
        (lambda: find("stranger_distance:off_means", {}), "Did you mean 'of_means'"),
        (lambda: find("stranger_distance:NUMBER", {}), "expected a function of two sequences"),
        (
            lambda: check_padding("stranger_distance:of_all_steps", {}, 4),
            "however far both sequences are padded, got .* leave out what lies beyond `lengths`",
        ),
        (lambda: find("stranger_distance:of_one", {}), "is called otherwise: too many"),
        (lambda: find("stranger_distance:undecided", {}), "defaults, .*: missing a required"),
        (lambda: find("stranger_distance:of_means", {"pwer": 1}), "Did you mean 'power'"),
        (lambda: distance_section("stranger_distance:of_powers"), "powers of .* is a list"),
        (lambda: distance_section("stranger_distance:of_digits"), "digits of .* is a float32"),
        (lambda: distance_section("stranger_distance:of_nothing"), "nan of .* is not finite"),
        (lambda: find("stranger_distance:of_blocks", {}), "otherwise than .*block, .* has 'block'"),
        (lambda: objectives.find("sequense"), "Did you mean 'sequence'"),
        (lambda: objectives.find("stranger_distance:of_means"), "expected a subclass of"),
        (lambda: doors.find("x", "a b", {"c": 1}), "expected one of c, or package.module:Name"),
    ],
)
def test_a_door_that_leads_nowhere_is_named(look, message):
    with pytest.raises(InputError, match=message):
        look()


# ---- every objective ---------------------------------------------------------------------------

ENCODERS = Encoders(**TOWERS | {"audio_blocks": 0})  # an objective asks for both, not for depth
EVERY = [*objectives.OBJECTIVES, "stranger_objective:Noisy"]
SMALL = {"visual_tokens": 2, "audio_tokens": 4, "audio_frames": 3, "speeds": 2, "hidden": 6}
SMALL |= {"width": 5, "queue": 12, "positives": 2, "negatives": 3}
PATCHES = PatchEncoders(
    width=8, heads=2, feedforward=9, visual_blocks=1, audio_blocks=0, side=16, drop_path=0.3
)
HEADS = {"hidden": 10, "intra_width": 6, "inter_width": 5, "code_width": 7, "centroid": 2}
OF_PIXELS = {
    "pixels": {"audio_frames": 32},
    "equivariant": {"audio_frames": 32, "time_mask": 8, "frequency_mask": 3, **HEADS},
}
PLAYED = {"visual_tokens": 2, "audio_tokens": 4, "audio_frames": 3, "speeds": 2}
OF_LABELS = {"classes": ("a", "b", "c")}
OPTIONS = {"temporal": SMALL, "classification": OF_LABELS, **OF_PIXELS}
OPTIONS |= {"equivariant_playing": PLAYED | HEADS}


def made(name):
    """An objective of this name, small; towers that go with it, their parameters, and a batch."""
    objective = objectives.find(name)(name=name, **OPTIONS.get(name, {}))
    towers, clips = (PATCHES, of_pixels()) if name in OF_PIXELS else (ENCODERS, batch())
    return objective, towers, drawn.params(towers, objective, clips), clips


def batch(clips=8):
    """Clips of 1.4 to 2 s, at 4 frames and 2.5 steps of sound a second."""
    rng = np.random.default_rng(4)
    streams, ends = [], rng.uniform(1.4, 2.0, clips).astype(np.float32)
    for steps, rate, width in ((8, 4.0, 5), (5, 2.5, 9)):
        windows = np.stack([np.zeros_like(ends), ends * rate], axis=1)
        lengths = jnp.asarray(np.round(windows[:, 1]), jnp.int32)
        values = jnp.asarray(rng.normal(size=(clips, steps, width)), jnp.float32)
        streams.append(sequences(values, lengths, jnp.asarray(windows)))
    seconds = jnp.asarray(np.stack([np.zeros_like(ends), ends], axis=1))
    targets = jnp.asarray(rng.dirichlet(np.ones(3), clips), jnp.float32)
    return as_batch(AudioVisual(*streams))._replace(seconds=seconds, targets=targets)


def of_pixels(clips=8):
    rng = np.random.default_rng(5)
    visual = jnp.asarray(rng.integers(0, 256, (clips, 3, 16 * 16 * 3)), jnp.uint8)
    lengths = jnp.asarray(rng.integers(1, 4, clips), jnp.int32)
    audio = jnp.asarray(rng.normal(-4.0, 4.0, (clips, 2, 256)), jnp.float16)
    return as_batch(AudioVisual(sequences(visual, lengths), sequences(audio)))


# What is of a clip alone is the same for these and for "sequence".
ALSO_OF_LATENTS = ("aggregation", "sequence+aggregation")


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ALSO_OF_LATENTS])
def test_what_is_of_a_clip_alone_depends_on_nothing_else(name):
    """Clips in another order give their outputs in that order, and so they do among few others."""
    objective, towers, params, clips = made(name)
    key = jax.random.key(3)
    outputs = jax.jit(lambda b, rows: of_clips(towers, objective, params, b, rows, key))
    whole = jax.device_get(outputs(clips, clips.numbers))
    for order in ([5, 2, 7, 0, 1, 6, 4, 3], [5, 2, 7, 5, 2, 7, 5, 2]):
        some = np.asarray(order, np.int32)
        found = outputs(jax.tree.map(lambda leaf, some=some: np.asarray(leaf)[some], clips), some)
        expected = jax.tree.map(lambda leaf, some=some: leaf[some], whole)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@dataclasses.dataclass(frozen=True)
class Listed(objectives.Sequential):
    """A field without a hash."""

    weights: list = dataclasses.field(default_factory=lambda: [1.0])


def test_shapes_are_one_s_own_and_of_any_objective():
    """They are traced once for a config."""
    widths, towers = {"visual": 5, "audio": 9}, ENCODERS.clone(visual_blocks=0)
    first = runs.parameter_shapes(towers, objectives.Sequential(), widths)
    again = runs.parameter_shapes(towers, objectives.Sequential(), widths)
    assert jax.tree.leaves(first)[0] is jax.tree.leaves(again)[0]
    first["encoders"].clear()
    assert runs.parameter_shapes(towers, Listed(), widths) == again
    wider = runs.parameter_shapes(towers, objectives.Sequential(), widths | {"audio": 7})
    assert jax.tree.structure(wider) == jax.tree.structure(again) and wider != again


# The others are in the table of test_scaling, where blocks are.
def test_microbatches_change_no_number_of_a_stranger():
    """With a memory that has seen other clips."""
    (objective, _, _, clips), key = made("stranger_objective:Noisy"), jax.random.key(3)
    towers = ENCODERS.clone(visual_blocks=0)
    params = drawn.params(towers, objective, clips)
    settings = {"memory": {"mean": jnp.arange(6.0)}}
    (loss, (_, outputs)), gradients = jax.jit(
        lambda p: loss_and_gradients(towers, objective, p, clips, key, **settings)
    )(params)
    (cut_loss, (_, cut_outputs)), cut_gradients = jax.jit(
        lambda p: loss_and_gradients(towers, objective, p, clips, key, microbatch=2, **settings)
    )(params)
    np.testing.assert_allclose(cut_loss, loss, rtol=1e-5)
    for one, other in ((outputs, cut_outputs), (gradients, cut_gradients)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, other)


def test_a_memory_is_kept_learned_from_and_left_alone_by_a_bad_step():
    objective = objectives.find("stranger_objective:Noisy")(name="stranger_objective:Noisy")
    clips, optimizer, towers = batch(), optax.sgd(0.1), ENCODERS.clone(visual_blocks=0)
    state = drawn.state(towers, objective, optimizer, clips)
    step = jax.jit(make_train_step(towers, objective, optimizer, seed=0))
    after, _ = step(state, clips)
    key = jax.random.fold_in(jax.random.key(0), 0)
    see = jax.jit(lambda params: of_clips(towers, objective, params, clips, None, key))
    seen = see(state.params).values["clip"][0]
    expected = 0.9 * np.ones(6) + 0.1 * np.asarray(seen).mean(axis=0)
    np.testing.assert_allclose(after.memory["mean"], expected, rtol=1e-5)
    audio = clips.features.audio
    poisoned = audio.replace(values=audio.values.at[0].set(jnp.nan))
    for memory, got in (({"n": 1.0}, r"'n': 'float32\[\]'"), ({"mean": jnp.ones(5)}, r"32\[5\]")):
        with pytest.raises(
            InputError, match=rf"Noisy: expected `remember` to .*\[6\].*, got .*{got}"
        ):
            wrong = type("Noisy", (type(objective),), {"remember": lambda *_, m=memory: m})
            remembered(wrong(name="Noisy"), state.memory, Outputs(()))
    bad = clips._replace(features=clips.features._replace(audio=poisoned))
    skipped, metrics = step(after, bad)
    assert metrics["skipped"] == 1
    np.testing.assert_array_equal(skipped.memory["mean"], after.memory["mean"])


@pytest.mark.parametrize("found", [(jnp.ones(1), {}), jnp.ones(()), (jnp.ones(()), 3.0), None])
def test_a_loss_is_a_number_and_a_dictionary(found, monkeypatch):
    objective = objectives.find("stranger_objective:Noisy")(name="stranger_objective:Noisy")
    monkeypatch.setattr(type(objective), "loss", lambda *_: found)
    with pytest.raises(InputError, match="Noisy: expected `loss` to return a number and a dict"):
        loss_of(objective, {}, None, {}, None)
    monkeypatch.setattr(type(objective), "loss", lambda *_: (jnp.int32(1), {}))
    with pytest.raises(InputError, match="a loss in floating point, got int32"):
        loss_of(objective, {}, None, {}, None)
    for methods, got in (
        ("sequence", "'sequence'"),
        (["sequence"], r"\['sequence'\]"),
        ((), r"\(\)"),
    ):
        monkeypatch.setattr(type(objective), "methods", methods)
        with pytest.raises(InputError, match=rf"expected `methods` as .*, got {got}"):
            objectives.find(objective.name)


ONE = jnp.ones(())
WIDE, NARROW = (sequences(jnp.ones((2, 3, width))) for width in (5, 4))
SHOWN = as_batch(AudioVisual(WIDE, NARROW))
ASKED = {
    "temperatures": returns.temperatures_of,
    "memory": returns.memory_of,
    "heads": lambda o: returns.of_heads(o, {"params": o.heads(3)}),
    "views": lambda o: returns.views_of(o, o.views(None, None), SHOWN),
    "of_clips": lambda o: returns.outputs_of(o, o.of_clips(None, {}, ()), 4),
    "loss": lambda o: loss_of(o, {}),
    "health": lambda o: returns.health_of(o, {}),
    "score": lambda o: returns.score_of(o, {}),
    "mixed": lambda o: returns.mixed_of(o, o.mixed(None, None, None), 4),
    "decide": lambda o: returns.decided_by(o, None, None),
}


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("temperatures", {"a": 0.0}, "above 0 by names, got 'a': 0"),
        ("temperatures", {"a": "x"}, "above 0 by names, got 'a': 'x'"),
        ("temperatures", {"a": np.nan}, "above 0 by names, got 'a': nan"),
        ("temperatures", {3: 1.0}, "above 0 by names, got 3: 1.0"),
        ("memory", {"a": "x"}, "`memory` to return arrays of .*, got str in it"),
        ("memory", jax.random.key(3), r"jax\.random\.key_data.*, got key<fry>\[\]"),
        ("memory", {"a": jnp.ones((0, 3))}, r"not empty, \['a'\] is float32\[0, 3\]"),
        ("heads", {"a": jnp.ones((4, 0))}, r"not empty, \['a'\] is float32\[4, 0\]"),
        ("views", Views({}), "an AudioVisual by each name, got {}"),
        ("views", Views({"clip": ONE}), "an AudioVisual by each name, got {'clip': 'ArrayImpl'}"),
        (
            "views",
            Views({"clip": AudioVisual(NARROW, WIDE)}),
            r"\[clips, steps, 5\], .* got \[2, 3, 4\] as visual of 'clip'",
        ),
        (
            "views",
            Views({"clip": SHOWN.features, "still": AudioVisual(WIDE, ONE)}),
            r"\[clips, steps, 4\], .* got \[\] as audio of 'still'",
        ),
        ("of_clips", Outputs(jnp.ones((3, 2))), r"\[4, .*, got float32\[3, 2\] \(values\)"),
        ("of_clips", Outputs((), {"n": 1.0}), r"\[4, .*, got float32\[\] \(about\['n'\]\)"),
        ("of_clips", Outputs((), "x"), r"\[4, .*, got str \(about\)"),
        ("of_clips", Outputs([jnp.ones(4, int)]), r"floating .*int32\[4\] \(values\[0\]\)"),
        ("loss", (ONE, {3: 1}), "to name what it tells `health`, got 3"),
        ("health", {"loss": ONE}, "otherwise than the log .*, got 'loss'"),
        ("health", {"step": ONE}, "otherwise than the log .*, got 'step'"),
        ("health", {"a": jnp.ones(2)}, r"a number by each name, a is float32\[2\]"),
        ("health", {"a": "x"}, "a number by each name, a is str"),
        ("health", {"a": jnp.complex64(1)}, r"a number by each name, a is complex64\[\]"),
        (
            "mixed",
            as_batch(AudioVisual(*2 * [sequences(jnp.ones((2, 3, 1)))])),
            "4 clips, .* got 2",
        ),
        ("decide", {"tau": 1.0}, r"finite numbers by names of `decided`, \(\), got 'tau': 1"),
        ("score", None, "to return a finite number, got None"),
        ("score", np.nan, "to return a finite number, got nan"),
    ],
)
def test_what_an_objective_gives_is_what_is_asked(method, given, words):
    noisy = objectives.find("stranger_objective:Noisy")
    giving = type("Noisy", (noisy,), {method: lambda *_: given})(name="n:N")
    with pytest.raises(InputError, match=f"objective n:N: expected .*{words}"):
        ASKED[method](giving)


EMBED = "`embed` to return floating point .* got"


@pytest.mark.parametrize(
    ("method", "wrong", "words"),
    [
        ("embed", lambda _, __, ___, latents: latents.values, rf"{EMBED} float32\[5, 5, 12\]"),
        ("embed", lambda *_: jnp.ones((3, 2)), rf"{EMBED} float32\[3, 2\]"),
        ("embed", lambda *_: jnp.ones((5, 2), int), rf"{EMBED} int32\[5, 2\]"),
        ("embed", lambda _, __, stream, ___: jnp.ones((5, len(stream))), "`embed` .*, got 6 of pi"),
        ("kept", lambda _, __, ___, latents, ____: latents, "`kept` to return .* got Sequences"),
        ("shown", lambda self, batch: batch, "`shown` to return AudioVisual, got a Batch"),
        ("ranks_by", lambda self: "euclidean", "`ranks_by` to return .*, got 'euclidean'"),
        ("score", lambda self, found: found["n"] * np.nan, "`score` to return a finite .* got nan"),
        ("decided", ("nu",), r"`decided` as a tuple of its fields, got \('nu',\)"),
        ("frozen", ["encoders/"], r"`frozen` as a tuple of names, got \['encoders/'\]"),
        ("frozen", ("encoder/",), "`frozen` to begin names of parameters, 'encoder/' begins none"),
        ("frozen", ("",), "`frozen` to leave something to train"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_asked_of_a_trained_objective_is_known_before_the_work(bare, method, wrong, words):
    with pytest.MonkeyPatch.context() as patch:
        own = objectives.find("stranger_objective:Bare")  # another class: programs are kept by it
        patch.setattr("stranger_objective.Bare", type("Bare", (own,), {method: wrong}))
        with pytest.raises(InputError, match=rf"Bare: expected .*{words}"):
            check_used(set_up(bare))


@pytest.fixture
def bare(data):
    """The config of a stranger's objective with little of its own."""
    return small_config(data, **{"objective.name": "stranger_objective:Bare"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda self, outputs: None, "its own is called otherwise: too many"),
        (Objective.loss, "got none"),
    ],
)
def test_an_objective_has_the_methods_that_are_called(method, words, monkeypatch):
    name = "stranger_objective:Noisy"
    noisy = objectives.find(name)
    with pytest.raises(InputError, match="Noisy: expected `views` to return Views, got a dict"):
        returned(noisy(name=name), "views", {}, Views)
    monkeypatch.setattr(noisy, "loss", method)
    with pytest.raises(InputError, match=rf"a method loss\(self, log_temperature, .*{words}"):
        objectives.find(name)


def test_views_are_drawn_anew_in_every_step():
    objective = objectives.find("stranger_objective:Noisy")(name="stranger_objective:Noisy")
    clips, still = batch(), ENCODERS.clone(dropout=0.0)
    params = drawn.params(still, objective, clips)
    see = jax.jit(lambda key: of_clips(still, objective, params, clips, None, key).values)
    first, again, second = (jax.device_get(see(jax.random.key(seed))) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_array_equal(first["clip"][0], second["clip"][0])
    assert np.abs(np.asarray(first["noisy"][0] - second["noisy"][0])).min() > 1e-6
