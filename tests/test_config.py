"""Config files, overrides and their mistakes: each is one line that names the key."""

import sys
from dataclasses import dataclass

import flax.linen
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from scav_jax import config
from scav_jax.errors import InputError

BODY = """
    return ConfigDict({
        "seed": 0,
        "data": {"path": "data/x", "batch_size": 32, "shuffle": True},
        "encoders": {"width": 512, "pre_resample": "visual_to_audio"},
        "distance": {"name": "euclidean", "rates": (1.0, 2.0)},
        "objective": {"name": "sequence", "temperature": 1.0},
        "optimizer": {"learning_rate": 7e-4, "clip_norm": None},
        "train": {"steps": 100, "note": None},
    })
"""


def write(folder, name, text):
    file = folder / "configs" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


@pytest.fixture
def file(tmp_path):
    text = f"from ml_collections import ConfigDict\ndef get_config():{BODY}"
    return write(tmp_path, "plain.py", text)


@pytest.fixture
def document(file):
    return config.load_file(file)


def test_a_file_is_loaded_and_locked(document):
    assert document.train.steps == 100
    with pytest.raises((AttributeError, KeyError)):
        document.train.stepz = 3


def test_variants_and_shared_code_load_without_traces(tmp_path):
    write(tmp_path, "base.py", f"from ml_collections import ConfigDict\ndef base():{BODY}")
    row = """
        from configs.base import base
        from configs.table.shared import STEPS
        def get_config(variant="max"):
            config = base()
            config.train.steps = STEPS[variant]
            return config
    """
    row = "\n".join(line[8:] for line in row.splitlines())
    path = write(tmp_path, "table/row.py", row)
    write(tmp_path, "table/shared.py", "STEPS = {'max': 7, 'small': 5}")
    modules, paths = dict(sys.modules), list(sys.path)
    assert config.load_file(path).train.steps == 7
    assert config.load_file(f"{path}:small").train.steps == 5
    assert sys.path == paths
    left = {name for name in sys.modules.keys() - modules.keys() if "config" in name}
    assert not left
    with pytest.raises(InputError, match=r"row.py, line 6: KeyError: 'tiny'"):
        config.load_file(f"{path}:tiny")


def test_two_trees_do_not_mix_and_a_foreign_configs_module_survives(tmp_path):
    foreign = object()
    sys.modules["configs"] = foreign
    try:
        for number in (1, 2):
            body = BODY.replace('"steps": 100', f'"steps": {number}')
            folder = tmp_path / str(number)
            write(folder, "base.py", f"from ml_collections import ConfigDict\ndef get():{body}")
            path = write(folder, "x.py", "from configs.base import get as get_config")
            assert config.load_file(path).train.steps == number
            assert sys.modules["configs"] is foreign
    finally:
        del sys.modules["configs"]


def test_a_file_elsewhere_finds_configs_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, "base.py", f"from ml_collections import ConfigDict\ndef base():{BODY}")
    (tmp_path / "mine.py").write_text("from configs import base\nget_config = base.base\n")
    monkeypatch.chdir(tmp_path)
    assert config.load_file("mine.py").seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "bad.py, line 1: SyntaxError"),
        ("x = 1\nimport no_such_module\n", "bad.py, line 2: ModuleNotFoundError.*no_such_module"),
        ("x = 1\n", r"expected a function get_config\(\)"),
        ("def get_config():\n    return {}\n", "expected .*ConfigDict, got dict"),
        (
            f"from ml_collections import ConfigDict\ndef get_config():{BODY}".replace(
                '"train"', '"tarin"'
            ),
            "unknown key 'tarin'. Did you mean 'train'",
        ),
        (
            f"from ml_collections import ConfigDict\ndef get_config():{BODY}".replace(
                '"seed": 0,', ""
            ),
            "expected a key 'seed'",
        ),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path, text, message):
    path = write(tmp_path, "bad.py", text)
    with pytest.raises(InputError, match=message) as caught:
        config.load_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_variant(file):
    with pytest.raises(InputError, match=r"Did you mean .*plain\.py'"):
        config.load_file(file.replace("plain", "plian"))
    with pytest.raises(InputError, match="expected no variant, got 'max'"):
        config.load_file(f"{file}:max")


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
        ("data.shuffle", "false", False),
        ("data.shuffle", "True", True),
        ("data.path", "123", "123"),
        ("data.path", "a=b, c", "a=b, c"),
        ("distance.rates", "(3, 4.5, 6)", (3.0, 4.5, 6.0)),
        ("train.note", "12", 12),
        ("train.note", "words", "words"),
    ],
)
def test_an_override_has_the_type_of_what_it_replaces(document, key, text, value):
    result = config.flatten(config.override(document, {key: text}))
    assert result[key] == value and type(result[key]) is type(value)
    untouched = config.flatten(document)
    assert {k: v for k, v in result.items() if k != key} == {
        k: v for k, v in untouched.items() if k != key
    }


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.steps", "1.5"),
        ("train.steps", "1e3"),
        ("train.steps", "none"),
        ("train.steps", True),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.learning_rate", "nan"),
        ("optimizer.clip_norm", "inf"),
        ("optimizer.clip_norm", "loose"),
        ("data.shuffle", "2"),
        ("data.path", 3),
        ("distance.rates", "3"),
        ("distance.rates", "(1, 'x')"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(document, key, text):
    with pytest.raises(InputError, match=rf"config\.{key}: expected .*, got "):
        config.override(document, {key: text})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.step", r"Did you mean 'steps'\? train has note, steps"),
        ("trian.steps", r"Did you mean 'train\.steps'\? the config has data, "),
        ("batch_size", r"Did you mean 'data\.batch_size'\? the config has data, "),
        ("encoders.learning_rate", r"Did you mean 'optimizer\.learning_rate'\? encoders has "),
        ("train.steps.more", "train.steps is a value"),
        ("train", r"expected a key of this section, as in config\.train\.note"),
        ("train.", "unknown key"),
    ],
)
def test_an_unknown_key_names_the_nearest(document, key, message):
    with pytest.raises(InputError, match=message):
        config.override(document, {key: "1"})


def parser():
    made = config.ArgumentParser("Trains.")
    made.add_argument("--workdir", default="run", help="where the run is kept")
    made.add_argument("--quiet", action="store_true")
    return made


def test_a_command_line_is_read_and_can_be_read_again(file):
    argv = [
        "--config.train.steps=5", "--config", file, "--config.seed", "-1", "--workdir", "here",
        "--config.train.steps", "6",
    ]  # fmt: skip
    for _ in range(2):
        document, arguments = config.parse(parser(), argv)
        assert (document.train.steps, document.seed) == (6, -1)
        assert isinstance(document, FrozenConfigDict)
        assert (arguments.config, arguments.workdir, arguments.quiet) == (file, "here", False)
    document, arguments = config.parse(parser(), [f"--config={file}", "--quiet"])
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
        config.parse(parser(), [file if word == "FILE" else word for word in argv])
    assert "\n" not in str(caught.value)


def test_help_lists_the_flags_and_the_keys_of_a_file(file, capsys):
    for argv, lists_keys in [(["--help"], False), (["--config", file, "-h"], True)]:
        with pytest.raises(SystemExit) as caught:
            config.parse(parser(), argv)
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert "--workdir" in printed and "--config.SECTION.KEY=VALUE" in printed
        assert ("--config.data.batch_size=32" in printed) == lists_keys


@dataclass
class Optimizer:
    learning_rate: float
    steps: int
    clip_norm: float | None = None


class Tower(flax.linen.Module):
    width: int = 3


def test_a_section_becomes_what_it_configures(document):
    made = config.unpack("optimizer", document.optimizer, Optimizer, steps=9)
    assert made == Optimizer(7e-4, 9, None)
    frozen = FrozenConfigDict(document)
    assert config.unpack("optimizer", frozen.optimizer, Optimizer, steps=9) == made
    assert config.unpack("tower", {"width": 4}, Tower).width == 4
    assert config.unpack("open", {"a": 1}, lambda **options: options) == {"a": 1}


@pytest.mark.parametrize(
    ("section", "constructor", "given", "message"),
    [
        ({"learning_rat": 1.0}, Optimizer, {"steps": 1}, "'learning_rat'. Did you mean 'learning_"),
        ({"clip_norm": 1.0}, Optimizer, {"steps": 1}, "expected a key 'learning_rate'"),
        ({"learning_rate": 1.0, "steps": 2}, Optimizer, {"steps": 1}, "unknown key 'steps'"),
        ({"name": "x"}, Tower, {}, "unknown key 'name'. It has width"),
    ],
)
def test_left_over_or_missing_keys_are_errors(section, constructor, given, message):
    with pytest.raises(InputError, match=message):
        config.unpack("x", section, constructor, **given)


def test_json_and_back(document):
    text = config.to_json(document)
    assert text == config.to_json(FrozenConfigDict(document)) == config.to_json(document.to_dict())
    read = config.from_json(text)
    assert read["train"] == {"steps": 100, "note": None}
    assert config.to_json(read) == text
    assert config.difference(document, read) == ""


def test_differences_are_said_in_words():
    old = ConfigDict({"seed": 0, "train": {"steps": 3, "rates": (1, 2)}})
    new = {"seed": 0, "train": {"steps": 4, "rates": [1, 2], "more": None}}
    assert config.difference(old, new) == (
        "train.more: expected no such key, got None; train.steps: expected 3, got 4"
    )
    assert config.difference(old, old.to_dict()) == ""
