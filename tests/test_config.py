"""Config files, overrides and their mistakes: each is one line that names the key."""

import dataclasses
import json
import os
import shutil
import sys

import pytest

from scav_jax.base import commands
from scav_jax.base.errors import InputError
from scav_jax.training import config, config_files, setup
from scav_jax.training.config import Config

IMPORT = "from scav_jax.training.config import Config\n"
BODY = "return Config().replace(train={'steps': 100}, seed=0)\n"


def write(folder, name, text):
    file = folder / "configs" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path, "plain.py", f"{IMPORT}def get_config():\n    {BODY}")


def flat(document):
    return config.flatten(config.as_dict(document))


# ---- files -------------------------------------------------------------------------------------


def test_a_file_is_loaded_and_frozen(file):
    document = config_files.load_file(file)
    assert document.train.steps == 100
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.train.steps = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.encoders.width = 3


def test_variants_and_shared_code_load_without_traces(tmp_path):
    write(tmp_path, "base.py", f"{IMPORT}def base():\n    {BODY}")
    row = """
        from configs.base import base
        from configs.table.shared import STEPS
        def get_config(variant="max"):
            return base().replace(train={"steps": STEPS[variant]})
    """
    row = "\n".join(line[8:] for line in row.splitlines())
    path = write(tmp_path, "table/row.py", row)
    write(tmp_path, "table/shared.py", "STEPS = {'max': 7, 'small': 5}")
    modules, paths = dict(sys.modules), list(sys.path)
    assert config_files.load_file(path).train.steps == 7
    assert config_files.load_file(f"{path}:small").train.steps == 5
    assert sys.path == paths
    left = {name for name in sys.modules.keys() - modules.keys() if "config" in name}
    assert not left
    with pytest.raises(InputError, match=r"row.py, line 5: KeyError: 'tiny'"):
        config_files.load_file(f"{path}:tiny")


def test_two_trees_do_not_mix_and_a_foreign_configs_module_survives(tmp_path):
    foreign = object()
    sys.modules["configs"] = foreign
    try:
        for number in (1, 2):
            body = BODY.replace("'steps': 100", f"'steps': {number}")
            folder = tmp_path / str(number)
            write(folder, "base.py", f"{IMPORT}def get():\n    {body}")
            path = write(folder, "x.py", "from configs.base import get as get_config")
            assert config_files.load_file(path).train.steps == number
            assert sys.modules["configs"] is foreign
    finally:
        del sys.modules["configs"]


def test_a_file_elsewhere_finds_configs_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, "base.py", f"{IMPORT}def base():\n    {BODY}")
    (tmp_path / "mine.py").write_text("from configs import base\nget_config = base.base\n")
    monkeypatch.chdir(tmp_path)
    assert config_files.load_file("mine.py").train.steps == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "bad.py, line 1: SyntaxError"),
        ("x = 1\nimport no_such_module\n", "bad.py, line 2: ModuleNotFoundError.*no_such_module"),
        ("x = 1\n", r"expected a function get_config\(\)"),
        ("def get_config():\n    return {}\n", "expected .*Config, got dict"),
        (
            f"{IMPORT}def get_config():\n    {BODY.replace('train', 'tarin')}",
            r"line 3: config.tarin.steps: unknown key. Did you mean 'train.steps'",
        ),
        (
            f"{IMPORT}def get_config():\n    {BODY.replace('100', '0')}",
            r"line 3: train.steps: expected at least 1, got 0",
        ),
        (f"{IMPORT}def get_config():\n    return Config(tarin=3)", r"line 3: TypeError: .*'tarin'"),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path, text, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = write(tmp_path, "bad.py", text)
    for path in (whole, os.path.relpath(whole)):
        with pytest.raises(InputError, match=message) as caught:
            config_files.load_file(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_or_variant(file):
    with pytest.raises(InputError, match=r"Did you mean .*plain\.py'"):
        config_files.load_file(file.replace("plain", "plian"))
    with pytest.raises(InputError, match="expected no variant, got 'max'"):
        config_files.load_file(f"{file}:max")


def test_a_folder_may_have_py_in_its_name(tmp_path, file):
    folder = tmp_path / "my.py.configs"
    folder.mkdir()
    shutil.copy(file, folder / "mine.py")
    assert config_files.load_file(str(folder / "mine.py")) == config_files.load_file(file)
    with pytest.raises(InputError, match=r"mine\.py: expected no variant, got 'max'"):
        config_files.load_file(f"{folder / 'mine.py'}:max")


# ---- overrides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "250", 250),
        ("train.steps", "1_000", 1000),
        ("train.steps", 8, 8),
        ("seed", "-3", -3),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", 2, 2.0),
        ("optimizer.clip_norm", "0.5", 0.5),
        ("optimizer.clip_norm", "none", None),
        ("encoders.pre_resample", "None", None),
        ("encoders.pre_resample", "audio_to_visual", "audio_to_visual"),
        ("encoders.conv_position", "false", False),
        ("encoders.conv_position", "True", True),
        ("data.path", "123", "123"),
        ("data.path", "a=b, c", "a=b, c"),
        ("distance.resample", "audio_to_visual", "audio_to_visual"),
        ("objective.normalize", "none", "none"),
    ],
)
def test_an_override_has_the_type_of_its_key(key, text, value):
    document = Config().replace(optimizer={"clip_norm": 1.0})
    result = flat(config.override(document, {key: text}))
    assert result[key] == value and type(result[key]) is type(value)
    assert {k: v for k, v in result.items() if k != key} == {
        k: v for k, v in flat(document).items() if k != key
    }


@dataclasses.dataclass
class Rates:
    rates: tuple[float, ...] = (1.0, 2.0)


def test_a_tuple_is_read_item_by_item():
    document = dataclasses.replace(Config(), optimizer=config.settings_of("optimizer", Rates))
    found = config.override(document, {"optimizer.rates": "(3, 4.5, 6)"}).optimizer
    assert found.rates == (3.0, 4.5, 6.0) and set(map(type, found.rates)) == {float}
    for text in ("3", "(1, 'x')", "(", "{[]: 1}", "(" * 3000, f"(0x{'f' * 5000},)", 16**5000):
        with pytest.raises(InputError, match=r"config\.optimizer\.rates: expected "):
            config.override(document, {"optimizer.rates": text})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.steps", "1.5"),
        ("train.steps", "1e3"),
        ("train.steps", "none"),
        ("train.steps", "100_"),
        ("train.steps", "²"),
        ("train.steps", "٣"),
        ("train.steps", "9" * 5000),
        ("train.steps", True),
        ("seed", "0.5"),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.learning_rate", "nan"),
        ("optimizer.learning_rate", "1e-_3"),
        ("optimizer.learning_rate", "٣.٥"),
        ("optimizer.learning_rate", 10**400),
        ("optimizer.learning_rate", "1e400"),
        ("optimizer.clip_norm", "inf"),
        ("optimizer.clip_norm", "loose"),
        ("encoders.conv_position", "2"),
        ("data.path", 3),
        ("data.path", None),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(key, text):
    with pytest.raises(InputError, match=rf"config\.{key}: expected .*, got "):
        config.override(Config(), {key: text})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.step", r"Did you mean 'steps'\? train has steps, init_from, log_every"),
        ("trian.steps", r"Did you mean 'train\.steps'\? the config has data, "),
        ("batch_size", r"Did you mean 'data\.batch_size'\? the config has data, "),
        ("encoders.learning_rate", r"Did you mean 'optimizer\.learning_rate'\? encoders has "),
        ("encoders.precision", r"Did you mean 'train\.precision'"),
        ("distance.gamma", r"unknown key\..* distance has name, resample"),
        ("objective.distance", "unknown key"),
        ("train.steps.more", "train.steps is a value"),
        ("seed.more", "seed is a value"),
        ("train", r"expected a key of this section, as in config\.train\.steps"),
        ("train.", "expected a key of this section"),
        ("distance.name", "got '1'"),
        ("objective.name", "got '1'"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, message):
    with pytest.raises(InputError, match=message):
        config.override(Config(), {key: "1"})


def test_another_name_brings_its_own_options_at_their_defaults():
    changed = Config().replace(objective={"temperature": 0.07})
    found = config.override(changed, {"distance.blur": "0.1", "distance.name": "wasserstein"})
    options = flat(found)
    assert (options["distance.name"], options["distance.blur"]) == ("wasserstein", 0.1)
    assert options["distance.position_weight"] == 10.0 and "distance.resample" not in options
    assert found.objective == changed.objective
    assert config.override(changed, {"objective.name": "sequence"}) == changed
    other = config.override(changed, {"objective.name": "aggregation"})
    assert (other.objective.name, other.objective.temperature) == ("aggregation", 1.0)
    assert config.override(found, {"distance.name": "dtw"}).replace(
        distance={"name": "euclidean"}
    ) == dataclasses.replace(found, distance=Config().distance)


# ---- the command line --------------------------------------------------------------------------


def parser():
    made = commands.ConfigParser(description="Trains.")
    made.add_argument("--workdir", default="run", help="where the run is kept")
    made.add_argument("--quiet", action="store_true")
    return made


def read(argv):
    arguments = parser().parse_args(argv)
    return config_files.load(arguments), arguments


def test_a_command_line_is_read_and_can_be_read_again(file):
    argv = [
        "--config.train.steps=5", "--config", file, "--config.seed", "-1", "--workdir", "here",
        "--config.train.steps", "6",
    ]  # fmt: skip
    for _ in range(2):
        document, arguments = read(argv)
        assert (document.train.steps, document.seed) == (6, -1)
        assert (arguments.config, arguments.workdir, arguments.quiet) == (file, "here", False)
    document, arguments = read([f"--config={file}", "--quiet"])
    assert (document.train.steps, arguments.quiet) == (100, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config"),
        (["--config", "FILE", "--workdri=x"], "unknown argument .*Did you mean '--workdir'"),
        (["--config", "FILE", "--config.seed"], "--config.seed: expected a value"),
        (["--config", "FILE", "--config.seed", "--quiet"], "--config.seed: expected a value"),
        (["--config", "FILE", "--config.sead=1"], "Did you mean 'seed'"),
        (["--config", "FILE", "stray"], "unknown argument 'stray'"),
        (["--conf", "FILE"], "required: --config"),
    ],
)
def test_a_mistaken_command_line_is_one_line(file, argv, message):
    with pytest.raises(InputError, match=message) as caught:
        read([file if word == "FILE" else word for word in argv])
    assert "\n" not in str(caught.value)


def test_help_lists_the_flags_and_the_keys_of_a_file(file, capsys):
    for argv, lists_keys in [(["--help"], False), (["--config", file, "-h"], True)]:
        with pytest.raises(SystemExit) as caught:
            read(argv)
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert "--workdir" in printed and "--config.SECTION.KEY=VALUE" in printed
        assert ("--config.data.batch_size=256" in printed) == lists_keys


# ---- the document ------------------------------------------------------------------------------


def test_the_document_comes_back_and_another_versions_is_refused():
    written = Config().replace(distance={"name": "soft_dtw", "gamma": 0.2}, data={"buckets": 2})
    document = json.loads(json.dumps(config.as_dict(written))) | {"features": {"widths": {}}}
    assert config.from_dict(document, "run") == written
    for change, message in [
        (lambda d: d["train"].pop("steps"), "expected a key 'train.steps', it is missing"),
        (lambda d: d.pop("seed"), "expected a key 'seed'"),
        (lambda d: d["train"].update(stepz=3), "unknown key"),
        (lambda d: d["distance"].update(resample="visual_to_audio"), "unknown key"),
        (lambda d: d["distance"].update(name="manhattan"), "expected one of "),
    ]:
        other = json.loads(json.dumps(document))
        change(other)
        with pytest.raises(InputError, match=f"run: written by another version.*{message}"):
            config.from_dict(other, "run")


def test_code_that_a_document_names_and_that_is_not_there_is_said():
    document = config.as_dict(Config())
    for name in ("my_package.distances:distance", "scav_jax.distances:distance"):
        named = document | {"distance": {"name": name}}
        with pytest.raises(InputError, match=r"^run: distance: expected "):
            config.from_dict(named, "run")


def test_differences_are_said_in_words():
    old = {"seed": 0, "train": {"steps": 3, "rates": (1, 2)}}
    new = {"seed": 0, "train": {"steps": 4, "rates": [1, 2], "more": None}}
    assert config.difference(old, new) == (
        "train.more: expected no such key, got None; train.steps: expected 3, got 4"
    )
    assert config.difference(old, old) == ""


# ---- ranges ------------------------------------------------------------------------------------

# By what a section is named: of its keys, values out of their range and how a message names that.
OUT_OF_RANGE = {
    "seed": {"seed": [(-1, "0 to"), (2**32, "0 to"), (10**20, "0 to")]},
    "data": {
        "batch_size": [(1, "at least 2"), (10**20, "at most")],
        **{key: [(-1, "at least 0")] for key in ("read_threads", "prefetch")},
        "buckets": [(0, "at least 1")],
        "augment": [(-0.1, "0 to 1"), (1.1, "0 to 1")],
        "align": [("clock", "one of time, index")],
        "features": [("float64", "one of float32, float16")],
    },
    "train": {
        "steps": [(0, "at least 1"), (10**20, "at most")],
        **{key: [(0, "at least 1")] for key in ("log_every", "validate_every", "keep_best")},
        **{key: [(-1, "at least 0")] for key in ("checkpoint_every", "devices", "microbatch")},
        **{key: [(0, "")] for key in ("max_skipped_in_row", "distance_memory_bytes")},
        "preemption_deadline_s": [(0.0, "more than 0")],
        "profile": [("3:1", "start:stop")],
        **{key: [("half", "one of")] for key in ("remat", "precision", "tracker")},
    },
    "encoders": {
        **{key: [(0, "at least 1")] for key in ("heads", "width", "feedforward")},
        **{key: [(0, "at least 1")] for key in ("visual_hidden", "audio_hidden", "pre_points")},
        **{key: [(-1, "at least 0")] for key in ("visual_blocks", "audio_blocks")},
        "visual_rise": [(-0.5, "at least 0")],
        "dropout": [(1.0, "0 up to, not including, 1"), (1.5, ""), (-0.1, "")],
        "position_buckets": [(1, "at least 4"), (3200, "800 of 3200, got 800")],
        "position_max_distance": [(0, "1 to"), (80, "more than a quarter"), (10**9, "1 to")],
        "pre_resample": [("visual", "one of visual_to_audio")],
        "pre_join": [("above", "one of beside")],
    },
    "encoders=patches": {
        **{key: [(0, "at least 1")] for key in ("heads", "width", "feedforward", "side")},
        **{key: [(-1, "at least 0")] for key in ("visual_blocks", "audio_blocks")},
        "drop_path": [(1.0, "0 up to, not including, 1"), (-0.1, "")],
    },
    "optimizer": {
        "learning_rate": [(-1.0, "at least 0")],
        "warmup_steps": [(-1, "0 <= warmup_steps < train.steps"), (250_000, "")],
        **{key: [(1.5, "0 up to, not including, 1"), (-0.1, "")] for key in ("b1", "b2")},
        "weight_decay": [(-5.0, "at least 0")],
        "clip_norm": [(0.0, "more than 0")],
        "final_learning_rate": [(-1.0, "0 up to"), (1.0, "0 up to")],
    },
    "distance": {"resample": [("visual", "visual_to_audio or")]},
    "distance=soft_dtw": {"gamma": [(0.0, "above 0")]},
    "distance=wasserstein": {
        "blur": [(0.0, "> 0")],
        "position_weight": [(-1.0, ">= 0")],
        "scaling": [(0.0, r"in \(0, 0\.999\]"), (1.0 - 1e-9, "")],
        "diameter": [(0.01, ">= blur")],
    },
    "distance=sinkhorn": {
        "epsilon": [(0.0, "> 0")],
        "iterations": [(0, ">= 1")],
        "position_weight": [(-1.0, ">= 0")],
    },
    "distance=dtw+static": {
        "static_width": [(-1, "at least 0")],
        "static_weight": [(-1.0, "0 or more")],
    },
    "objective": {
        "temperature": [(-1.0, "0.01 to 100"), (0.0, ""), (1e3, "")],
        "aggregation_temperature": [(0.0, "0.01 to 100")],
        "normalize": [("mean", "one of")],
    },
    "objective=separate": {
        **{key: [(0.0, "0.01 to 100")] for key in ("temperature", "static_temperature")},
        **{key: [(-1.0, "at least 0")] for key in ("dynamic_loss", "static_loss", "static_weight")},
        **{key: [(0, "at least 1")] for key in ("branch_hidden", "branch_width", "branch_heads")},
        "branch_blocks": [(-1, "at least 0")],
        **{key: [("no", "one of")] for key in ("statics", "dynamic", "branch", "normalize")},
    },
    "objective=temporal": {
        **{key: [(0, "at least 1")] for key in ("hidden", "width", "audio_frames")},
        **{key: [(1, "at least 2")] for key in ("visual_tokens", "audio_tokens")},
        **{key: [(-1, "at least 0")] for key in ("queue", "positives", "negatives")},
        **{key: [(0.0, "more than 0")] for key in ("temperature", "selection_temperature")},
        **{key: [(-1.0, "at least 0")] for key in ("weight_vv", "weight_va", "weight_speed")},
        **{key: [(-1.0, "at least 0")] for key in ("weight_direction", "weight_order")},
        "window_s": [(0.0, "more than 0")],
        "speeds": [(0, "1 to 16"), (2000, "1 to 16")],
        **{key: [("both", "one of")] for key in ("nn_space", "control")},
    },
    "objective=equivariant": {
        "temperature": [(0.0, "at least 1e-06")],
        **{key: [(0, "at least 1")] for key in ("hidden", "code_width")},
        **{key: [(0, "at least 1")] for key in ("intra_width", "inter_width")},
        **{key: [(-1, "at least 0")] for key in ("centroid", "time_mask", "frequency_mask")},
        "audio_frames": [(0, "a multiple of 16")],
        "audio_std": [(0.0, "more than 0")],
    },
    "objective=equivariant_playing": {
        "temperature": [(0.0, "at least 1e-06")],
        "centroid": [(-1, "at least 0")],
        **{key: [(0, "at least 1")] for key in ("hidden", "code_width", "audio_frames")},
        **{key: [(0, "at least 1")] for key in ("intra_width", "inter_width")},
        **{key: [(1, "at least 2")] for key in ("visual_tokens", "audio_tokens")},
        "window_s": [(0.0, "more than 0")],
        "speeds": [(0, "1 to 16")],
    },
    "objective=pixels": {
        "temperature": [(0.0, "0.01 to 100")],
        "audio_frames": [(0, "a multiple of 16")],
        "audio_std": [(0.0, "more than 0")],
    },
    "objective=classification": {
        **{key: [("none", "one of")] for key in ("streams", "towers")},
        "mixup": [(1.5, "0 to 1")],
        "mixup_alpha": [(0.0, "more than 0")],
        "audio_frames": [(0, "a multiple of 16")],
        "audio_std": [(0.0, "more than 0")],
    },
}
# Any number and any word is possible; what data decide is checked with them.
FREE = {"name", "path", "train_split", "validation_split", "backbone", "init_from"}
FREE |= {"audio_mean", "classes", "separator"}


@pytest.mark.parametrize("which", OUT_OF_RANGE)
def test_a_value_out_of_its_range_is_refused_before_data_are_read(which):
    section, _, name = which.partition("=")
    base = Config().replace(**{section: {"name": name}}) if name else Config()
    setup.check_config(base)
    keys = {"seed"} if section == "seed" else vars(getattr(base, section)).keys() - FREE
    kept = {key for key in keys if isinstance(flat(base).get(f"{section}.{key}"), bool)}
    assert keys - kept == OUT_OF_RANGE[which].keys()
    for key, values in OUT_OF_RANGE[which].items():
        for value, words in values:
            changes = {"seed": value} if section == "seed" else {f"{section}.{key}": value}
            with pytest.raises(InputError, match=f"{key}\\b.*{words}") as caught:
                setup.set_up(config.override(base, changes | {"data.path": "/nowhere"}))
            assert "\n" not in str(caught.value)


def test_what_options_may_be_has_one_meaning():
    off = {"encoders": {"visual_blocks": 0, "dropout": 0.0}, "optimizer": {"weight_decay": 0.0}}
    setup.check_config(Config().replace(**off, train={"checkpoint_every": 0}, seed=2**32 - 1))
    learned = {"name": "equivariant", "learn_temperature": True, "temperature": 1e-3}
    with pytest.raises(InputError, match=r"objective\.temperature: expected 0\.01 to 100"):
        setup.check_config(Config().replace(objective=learned))
