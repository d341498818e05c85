"""Every config file and variant: loads, quotes the paper, changes what its row says, and builds."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from scav_jax.base.errors import InputError
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.train_step import compute_loss, init_params
from scav_jax.training import config, config_files
from scav_jax.training.runs import build
from scav_jax.training.setup import optimizer_of

ROOT = Path(__file__).parents[1]
V2A, A2V = "visual_to_audio", "audio_to_visual"

# Transcribed from the paper's Table I: batch size, A->V Agg, A->V Seq, V->A Agg, V->A Seq.
TABLE_1 = {
    "cav": [(32, 10.2, 10.6, 10.3, 8.0), (192, 12.2, 12.7, 12.5, 11.6)],
    "cav_pre_v2a": [(32, 10.0, 10.6, 9.7, 7.9), (1024, 12.1, 12.2, 12.1, 11.6)],
    "scav_pre_v2a": [(32, 8.7, 18.7, 7.6, 18.3), (256, 11.9, 22.6, 10.1, 22.3)],
    "scav_pre_a2v": [(32, 9.0, 18.6, 8.1, 18.3), (64, 9.7, 20.8, 8.3, 20.5)],
    "scav_post_v2a": [(32, 9.5, 19.2, 8.2, 18.4), (96, 11.4, 21.3, 7.8, 21.3)],
    "scav_post_a2v": [(32, 9.3, 18.6, 7.7, 18.4), (64, 10.0, 20.6, 7.5, 20.1)],
    "scav_dtw": [(32, 9.2, 12.5, 9.8, 13.0), (64, 9.5, 14.2, 11.5, 15.9)],
    "scav_wass": [(32, 11.1, 15.0, 9.5, 14.8), (64, 11.3, 16.1, 9.7, 16.6)],
}
# Table II: VGGSound A->V, V->A, MUSIC A->V, V->A.
TABLE_2 = {
    "cav": (12.2, 12.5, 3.8, 2.8),
    "scav_pre_v2a": (22.6, 22.3, 9.3, 7.3),
    "scav_post_a2v": (21.3, 21.3, 9.5, 8.1),
}
# Table IV: A->V, V->A, and what the row changes in SCAV pre(v->a).
TABLE_4 = {
    "scav": (22.6, 22.3, {}),
    "without_normalization": (12.5, 12.7, {"objective.normalize": "none"}),
    "temperature_007": (18.6, 18.5, {"objective.temperature": 0.07}),
    "multitask": (15.3, 15.4, {"objective.name": "sequence+aggregation"}),
}
# What the rows of Table I are: objective, distance, its interpolation, interpolation of features.
ROWS = {
    "cav": ("aggregation", "euclidean", V2A, None),
    "cav_pre_v2a": ("aggregation", "euclidean", V2A, V2A),
    "scav_pre_v2a": ("sequence", "euclidean", V2A, V2A),
    "scav_pre_a2v": ("sequence", "euclidean", A2V, A2V),
    "scav_post_v2a": ("sequence", "euclidean", V2A, None),
    "scav_post_a2v": ("sequence", "euclidean", A2V, None),
    "scav_dtw": ("sequence", "soft_dtw", None, None),
    "scav_wass": ("sequence", "wasserstein", None, None),
}
VARIANTS = {
    "table1": ("max", "batch32", "demo"),
    "table2": ("max", "demo"),
    "table4": ("max", "demo"),
    "vggsound.py": ("39m", "38m", "v100_4096", "h200", "8gpu", "pod"),
    "demo.py": (
        *("scav", "frames", "antialiased", "rises", "finely"),
        *("augment", "augmented", "scale", "lambda005"),
    ),
    "temporal": ("temporal", "with_scav", "scav", "cav"),
    "temporal/vggsound.py": (None,),
    "temporal/vggsound_with_scav.py": (None,),
    "separate/demo.py": (
        *("separate", "by_distance", "soft_dtw", "wasserstein", "tower", "keep"),
        *("augment", "static", "centred"),
    ),
    "separate/vggsound.py": ("separate", "tower"),
    "equiav/audioset.py": ("128", "1024"),
    "equiav/demo.py": ("equivariant", "contrast"),
    "equiav/playing_demo.py": (None,),
    "equiav/labels.py": ("audioset20k", "vggsound", "linear", "demo", "demo_linear"),
}


def files():
    return sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py"))


def variants(path):
    """Of a file, or else of all files in its folder."""
    inside = Path(path).relative_to("configs")
    return VARIANTS.get(inside.as_posix(), VARIANTS.get(inside.parts[0]))


RUNNABLE = [path for path in files() if path.name != "base.py"]
ALL = [
    f"{path}:{variant}" if variant else str(path) for path in RUNNABLE for variant in variants(path)
]


def load(path):
    return config_files.load_file(str(ROOT / path))


def flat(document):
    return config.flatten(config.as_dict(document))


def docstring(path):
    return ast.get_docstring(ast.parse((ROOT / path).read_text()))


def test_there_is_one_file_for_each_row():
    names = {table: set() for table in ("table1", "table2", "table4")}
    for path in RUNNABLE:
        if path.parts[1] in names:
            names[path.parts[1]].add(path.stem)
    assert names == {"table1": set(TABLE_1), "table2": set(TABLE_2), "table4": set(TABLE_4)}


@pytest.mark.parametrize("path", [str(path) for path in RUNNABLE])
def test_a_config_says_its_command_and_hardware(path):
    text = docstring(path)
    name = path.removeprefix("configs/").removesuffix(".py")
    assert f"scav train --config {name} --workdir " in text
    assert "Hardware:" in text
    if "table" in path or "vggsound" in path:
        assert "V100" in text and "Not run by us" in text


@pytest.mark.parametrize("path", [str(path) for path in RUNNABLE])
def test_the_default_is_the_first_variant_and_a_wrong_one_is_named(path):
    first, *_ = variants(path)
    if first is None:
        return
    assert load(path) == load(f"{path}:{first}")
    with pytest.raises(InputError, match=rf"expected one of .*{first}.*got '{first}x'\. Did you"):
        load(f"{path}:{first}x")


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1(name):
    path = f"configs/table1/{name}.py"
    rows = re.findall(r"^ *(batch32|max)((?: +[\d.]+){5})$", docstring(path), re.MULTILINE)
    said = {variant: tuple(map(float, figures.split())) for variant, figures in rows}
    assert said == dict(zip(("batch32", "max"), TABLE_1[name], strict=True))
    for variant, (batch_size, *_) in zip(("batch32", "max"), TABLE_1[name], strict=True):
        assert load(f"{path}:{variant}").data.batch_size == batch_size
    for variant in VARIANTS["table1"]:
        row = flat(load(f"{path}:{variant}"))
        is_row = (
            row["objective.name"],
            row["distance.name"],
            row.get("distance.resample"),
            row["encoders.pre_resample"],
        )
        assert is_row == ROWS[name]
        assert row["objective.normalize"] == "z_score"
        assert (row["objective.temperature"], row["objective.aggregation_temperature"]) == (1, 0.07)


@pytest.mark.parametrize("name", TABLE_2)
def test_table_2(name):
    path = f"configs/table2/{name}.py"
    rows = re.findall(r"^ *(?:VGGSound|MUSIC) +([\d.]+) +([\d.]+)$", docstring(path), re.MULTILINE)
    assert tuple(float(figure) for row in rows for figure in row) == TABLE_2[name]
    for variant in VARIANTS["table2"]:
        same = load(f"configs/table1/{name}.py:{variant}")
        assert load(f"{path}:{variant}") == same


# Learning rates of demo variants that differ from the demo's own: chosen on validation, ours.
DEMO_RATES = {"cav": 5e-4, "temperature_007": 2e-3, "without_normalization": 4e-3}


def demo_rate(name, variant):
    if variant != "demo" or name not in DEMO_RATES:
        return {}
    return {"optimizer.learning_rate": DEMO_RATES[name]}


@pytest.mark.parametrize("name", TABLE_4)
def test_table_4(name):
    path = f"configs/table4/{name}.py"
    a2v, v2a, changes = TABLE_4[name]
    assert f"A->V {a2v}, V->A {v2a}." in docstring(path)
    for variant in VARIANTS["table4"]:
        best = load(f"configs/table1/scav_pre_v2a.py:{variant}")
        expected = config.override(best, changes | demo_rate(name, variant))
        assert load(f"{path}:{variant}") == expected


def test_the_papers_training_details():
    best = flat(load("configs/vggsound.py"))
    assert best == flat(load("configs/table1/scav_pre_v2a.py:max"))
    stated = {
        "optimizer.b1": 0.95,
        "optimizer.b2": 0.98,
        "optimizer.learning_rate": 7e-4,
        "train.steps": 250_000,
        "train.keep_best": 10,
        "encoders.dropout": 0.1,
        "encoders.width": 512,
        "encoders.visual_blocks": 8,
        "encoders.audio_blocks": 2,
        "encoders.visual_hidden": 2048,
        "encoders.audio_hidden": 768,
    }
    assert stated.items() <= best.items()


def test_equiavs_training_details():
    """As the released code says them: pretraining, and fine-tuning of both data sets."""
    stated = {
        "data.batch_size": 128,
        "train.steps": 20 * 1_900_000 // 128,
        "optimizer.warmup_steps": 2 * 1_900_000 // 128,
        "optimizer.learning_rate": 1e-4,
        "optimizer.final_learning_rate": 1e-6,
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 1e-5,
        "optimizer.clip_norm": 0.01,
        "objective.temperature": 0.07,
        "objective.centroid": 16,
        "objective.time_mask": 192,
        "objective.frequency_mask": 48,
        "objective.audio_mean": -4.346,
        "objective.audio_std": 4.332,
        **{f"encoders.{name}": 12 for name in ("visual_blocks", "audio_blocks", "heads")},
    }
    assert stated.items() <= flat(load("configs/equiav/audioset.py")).items()
    tuned = {
        "data.batch_size": 256,
        "train.steps": 50 * (153_000 // 256),
        "optimizer.warmup_steps": 153_000 // 256,
        "optimizer.learning_rate": 1e-4,
        "objective.mixup": 0.5,
        "objective.mixup_alpha": 10.0,
        "objective.audio_mean": -4.956,
        "objective.audio_std": 4.486,
        "encoders.drop_path": 0.1,
    }
    assert tuned.items() <= flat(load("configs/equiav/labels.py:vggsound")).items()


@pytest.mark.parametrize("path", [str(path) for path in RUNNABLE if "table" in str(path)])
def test_the_demo_of_a_row_changes_size_and_learning_rate_only(path):
    demo, full = (flat(load(f"{path}:{variant}")) for variant in ("demo", "max"))
    kept = ("objective.", "distance.", "encoders.pre_resample", "encoders.dropout", "data.align")
    assert {k: v for k, v in demo.items() if k.startswith(kept)} == {
        k: v for k, v in full.items() if k.startswith(kept)
    }
    own = flat(load("configs/demo.py"))
    own |= demo_rate(Path(path).stem, "demo")
    changed = {key for key in demo.keys() | own.keys() if demo.get(key) != own.get(key)}
    assert all(key.startswith(kept) for key in changed)


# ---- every config builds -------------------------------------------------------------------


_traced: dict[str, tuple] = {}
WHOLE = "configs/vggsound.py:pod"  # its loss is cut into blocks: the largest batch of ours
BLOCKS = ("visual_blocks", "audio_blocks")


SMALL = {"width": 64, "heads": 4, "feedforward": 96, "visual_hidden": 80, "audio_hidden": 72}


def narrow(document):
    """The same with small towers, where they have a size: sizes change no program.

    Blocks of sequences stand in the paper's towers, whose parameters are counted below.
    """
    theirs = {name: getattr(document.encoders, name, None) for name in (*SMALL, *BLOCKS)}
    least = SMALL | {name: int(document.encoders.name == "patches") for name in BLOCKS}
    sizes = {name: min(least[name], size) for name, size in theirs.items() if size is not None}
    return document.replace(encoders=sizes)


def kind(options):
    """What decides which program is traced: of a number, whether it is none, or, whole, one.

    `build` reads the numbers themselves, for every variant.
    """

    def of(value):
        if isinstance(value, float):
            return value != 0
        return min(value, 2) if isinstance(value, int) else value

    return {name: of(value) for name, value in vars(options).items()}


def trace(document, batch_size):
    """(parameter shapes, loss shape) of one step, without computing anything."""
    small = document.encoders.width < 512
    n, dv, m, da = (96, 384, 24, 2048) if small else (298, 768, 62, 6144)
    of_pixels = document.encoders.name == "patches"
    if of_pixels:
        n, dv, da = 10, 3 * document.encoders.side**2, 2048
    labelled = document.objective.name == "classification"
    if labelled:
        document = document.replace(objective={"classes": ("a", "b")})  # the data's, in a run
    encoders, objective = build(document)
    optimizer_of(document)

    def run():
        streams = jnp.zeros((batch_size, n, dv)), jnp.zeros((batch_size, m, da))
        batch = as_batch(AudioVisual(*map(sequences, streams)))
        batch = batch._replace(targets=jnp.ones((batch_size, 2)) if labelled else ())
        params = init_params(encoders, objective, batch, seed=0)
        memory = {"memory": objective.memory()}
        loss, aux = compute_loss(encoders, objective, params, batch, jax.random.key(1), **memory)
        if of_pixels:
            return params, loss, aux["logits" if labelled else "similarities"]
        sequential = aux if "sequence_weight" not in vars(objective) else aux["sequence"]
        parts = [
            name
            for name in ("sequence", "aggregation", "dynamic", "static")
            if "logits_v2a" in sequential.get(name, ())
        ]
        return params, loss, {name: sequential[name]["logits_v2a"] for name in parts}

    key = repr([kind(getattr(document, part)) for part in ("encoders", "distance", "objective")])
    key += f"{batch_size} {document.encoders.width}"
    if key not in _traced:  # a program that several rows share is traced once
        _traced[key] = jax.eval_shape(run)
    return _traced[key]


@pytest.mark.parametrize("path", ALL)
def test_a_config_builds(path):
    document = load(path)
    build(document)
    batch_size = document.data.batch_size if path == WHOLE else 8
    params, loss, logits = trace(narrow(document), batch_size)
    assert document.optimizer.warmup_steps < document.train.steps
    if document.encoders.name == "patches":
        columns = 2 if document.objective.name == "classification" else batch_size
        assert loss.shape == () and logits.shape == (batch_size, columns)
        return
    assert loss.shape == () and loss.dtype == jnp.float32
    parts = set(document.objective.name.split("+")) - {"temporal", "equivariant_playing"}
    if parts == {"separate"}:
        parts = set(build(document)[1].losses)
    assert set(logits) == parts
    assert len(params.get("log_temperature", {})) == len(parts)
    assert all(matrix.shape == (batch_size, batch_size) for matrix in logits.values())


@pytest.mark.parametrize(("variant", "millions"), [("39m", 39.27), ("38m", 38.22)])
def test_how_many_parameters_the_papers_towers_have(variant, millions):
    params, _, _ = trace(load(f"configs/vggsound.py:{variant}"), 8)
    count = sum(leaf.size for leaf in jax.tree.leaves(params["encoders"]))
    assert count / 1e6 == pytest.approx(millions, abs=0.02)
