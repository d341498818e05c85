"""Config files, overrides and their mistakes: each is one line that names the key."""

import dataclasses
import json
import sys

import pytest

from scav_jax.base import commands
from scav_jax.base.errors import InputError
from scav_jax.training import config, config_files
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
def test_a_broken_file_is_one_line_with_its_place(tmp_path, text, message):
    path = write(tmp_path, "bad.py", text)
    with pytest.raises(InputError, match=message) as caught:
        config_files.load_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_variant(file):
    with pytest.raises(InputError, match=r"Did you mean .*plain\.py'"):
        config_files.load_file(file.replace("plain", "plian"))
    with pytest.raises(InputError, match="expected no variant, got 'max'"):
        config_files.load_file(f"{file}:max")


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
    for text in ("3", "(1, 'x')", "("):
        with pytest.raises(InputError, match=r"config\.optimizer\.rates: expected "):
            config.override(document, {"optimizer.rates": text})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.steps", "1.5"),
        ("train.steps", "1e3"),
        ("train.steps", "none"),
        ("train.steps", True),
        ("seed", "0.5"),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.learning_rate", "nan"),
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


def test_differences_are_said_in_words():
    old = {"seed": 0, "train": {"steps": 3, "rates": (1, 2)}}
    new = {"seed": 0, "train": {"steps": 4, "rates": [1, 2], "more": None}}
    assert config.difference(old, new) == (
        "train.more: expected no such key, got None; train.steps: expected 3, got 4"
    )
    assert config.difference(old, old) == ""
