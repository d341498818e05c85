"""The programs: which there are, how fast they answer, what the wheel carries."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scav_jax
from scav_jax.__main__ import listing, main, program
from scav_jax.base import commands, compiled, progress
from scav_jax.base.commands import LIES_IN, PROGRAMS, Parser
from scav_jax.base.errors import EXIT_INPUT, InputError
from scav_jax.base.progress import progress_bar
from scav_jax.training.config_files import find, load_file, names

ROOT = Path(__file__).resolve().parents[1]
NOTHING = ("None", "[]", "()", "0.0", "''", "argparse.SUPPRESS")  # defaults that say nothing
MODULES = {name: "scav_jax." + LIES_IN.get(name, name.replace(" ", ".")) for name in PROGRAMS}
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "lancedb")
ANSWER_S = 1.0  # of CPU
ANSWER = """
import atexit, json, os, runpy, sys, time

def tell():
    with open(os.environ["ANSWERED"], "w") as file:
        json.dump({"modules": list(sys.modules), "seconds": time.process_time()}, file)

atexit.register(tell)
sys.argv[0] = "-m"
module, sys.argv[1:] = sys.argv[1], sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def answer(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess, dict]:
    """A program run in an empty folder; and what it imported, in how many seconds of CPU."""
    told = folder / "told.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ANSWERED": str(told)}
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done, json.loads(told.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_and_a_usage_error_come_before_everything_is_imported(name, tmp_path):
    done, told = answer(tmp_path, MODULES[name], "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: scav {name} ")
    wrong, told_too = answer(tmp_path, MODULES[name], "--hlep")
    assert wrong.returncode == EXIT_INPUT and wrong.stdout == ""
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    for answered in (told, told_too):
        assert set(HEAVY) & set(answered["modules"]) == set()
        assert answered["seconds"] < ANSWER_S


def test_every_option_says_what_it_does_and_what_it_is_by_itself():
    silent, untold = [], []
    for file in sorted(Path(scav_jax.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(call, ast.Call):
                continue
            called = ast.unparse(call)
            if called.startswith("add('--") or ast.unparse(call.func).endswith(".add_argument"):
                words = {given.arg: given.value for given in call.keywords}
                if not {"help", None} & set(words):  # None: what `**shared` brings
                    silent.append(f"{file.name}: {called}")
                default, told = words.get("default"), words.get("help")
                said = not default or isinstance(told, ast.Name) or "default" in ast.unparse(told)
                if not said and ast.unparse(default) not in NOTHING:
                    untold.append(f"{file.name}: {called}")
    assert silent == ["commands.py: finder.add_argument('--config', nargs='?')"]  # shows no help
    assert untold == []


def test_scav_is_the_same_programs(tmp_path):
    done, told = answer(tmp_path, "scav_jax", "--help")
    assert done.returncode == 0 and done.stdout == listing() + "\n"
    assert "numpy" not in told["modules"]
    by_scav, _ = answer(tmp_path, "scav_jax", "index", "build", "--help")
    by_module, _ = answer(tmp_path, "scav_jax.index", "build", "--help")
    assert by_scav.stdout == by_module.stdout and by_scav.returncode == 0
    wrong, _ = answer(tmp_path, "scav_jax", "trian", "--config", "demo")
    assert wrong.returncode == EXIT_INPUT and wrong.stderr.count("\n") == 1
    assert "Did you mean 'train'?" in wrong.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize(
    ("words", "least"),
    [
        ("index build x --model m --workers -1", 0),
        ("index tune x --model m --queries 0", 1),
        ("score a.mp4 --model m --workers -1", 0),
        ("inspect --videos . --workers 0", 1),
        ("probe --run r --split test --changed -1", 0),
        ("evaluate --run r --split test --batch-size 0", 1),
        ("sketch --run r --numbers 0", 1),
        ("web --index x --model m --max-megabytes 0", 1),
        ("datasets chimes --out x --workers 0", 1),
    ],
)
def test_a_number_that_cannot_be_is_named_before_anything_is_read(
    words, least, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["scav", *words.split()])
    # What is compiled here is checked by jaxtyping: no other process can run it.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    *_, option, number = words.split()
    with pytest.raises(SystemExit, match=str(EXIT_INPUT)):
        main()
    assert f"{option}: expected {least} or more, got {number}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1_000", " -3 ", "+7", str(2**63 - 1)])
def test_whole_numbers_are_read_as_python_writes_them(text):
    assert commands.whole(text) == int(text)
    assert commands.number(text) == float(text)


@pytest.mark.parametrize("text", ["1e-3", ".5", "5.", "-1_0.5e+2", " 7 "])
def test_numbers_are_read_as_python_writes_them(text):
    assert commands.number(text) == float(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("search q.mp4 --index x --model m --k 10_", "a whole number, got '10_'"),
        ("search q.mp4 --index x --model m --k 3000000000", "at most 2147483647, got 3000000000"),
        ("search q.mp4 --index x --model m --end inf", "a finite number, got 'inf'"),
        ("index build x --model m --static-weight nan", "a finite number, got 'nan'"),
        ("score a.mp4 --model m --step 1e400", "a finite number, got '1e400'"),
        ("evaluate --run r --split test --seed ٣", "a whole number, got '٣'"),
        ("evaluate --run r --split test --hybrid 1,²", "whole numbers with commas"),
        ("export --run r --out o --onnx 62,²", "visual and the audio steps of a clip"),
        (f"datasets chimes --out x --seed {'9' * 5000}", "a whole number, got '9999"),
        ("plan --config demo --devices 1.5", "a whole number, got '1.5'"),
        ("extract --videos v --out o --num-shards x", "a whole number, got 'x'"),
        ("extract --videos v --out o --timeout-seconds 1e300", "at most 604800, got 1e+300"),
    ],
)
def test_what_is_no_number_is_refused_in_a_line(words, said, capsys):
    program = next(name for name in MODULES if words.startswith(name))
    main = importlib.import_module(f"{MODULES[program]}.__main__").main
    with pytest.raises((SystemExit, InputError)) as caught:
        main(words.removeprefix(program).split())
    refused = isinstance(caught.value, InputError)
    told = str(caught.value) if refused else capsys.readouterr().err.removesuffix("\n")
    assert said in told and "\n" not in told and len(told) < 300


def test_two_words_name_a_program_before_one():
    assert program(["datasets", "chimes", "--out", "x"]) == ("datasets chimes", ["--out", "x"])
    assert program(["datasets", "music"]) == ("datasets", ["music"])
    for word in ("embed", "model", "train.loop", "extract.selfcheck"):
        with pytest.raises(InputError, match="expected a program"):
            program([word])


def test_only_programs_answer_as_programs():
    """`if __name__ == "__main__"` stands in what `scav` lists, and nowhere else."""

    def answers(path: Path) -> bool:
        return any(re.match("if .*__main__", line) for line in path.read_text("utf-8").splitlines())

    package = Path(scav_jax.__file__).parent
    found = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if answers(path)
    }
    assert found == {"scav_jax.__main__"} | {f"{module}.__main__" for module in MODULES.values()}


# ---- what the wheel carries --------------------------------------------------------------------


def test_every_package_is_in_the_wheel_and_the_configs_too():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "scav_jax").rglob("*.py")}
    expected = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    configs = {path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py")}
    expected |= {".".join(("scav_jax", *folder.parts)) for folder in configs}
    assert sorted(packages) == sorted(expected)
    assert project["tool"]["setuptools"]["package-dir"] == {"scav_jax.configs": "configs"}


def test_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_file("demo").train.steps == 325
    assert find("vggsound:v100_4096") == (ROOT / "configs/vggsound.py", "v100_4096")
    assert load_file("vggsound:v100_4096").data.batch_size == 4096
    assert {"demo", "vggsound", "table1/cav"} <= set(names()) and "base" not in names()
    (tmp_path / "mine.py").write_text(
        "from configs import base\n\ndef get_config(variant='a'):\n"
        "    return base.chimes_demo().replace(train={'steps': {'a': 3, 'b': 4}[variant]})\n"
    )
    assert [load_file(name).train.steps for name in ("mine.py", "mine.py:b")] == [3, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmo", "Did you mean 'demo'"),
        ("table1/cab", "Did you mean 'table1/cav'"),
        ("configs/demo", "Did you mean 'demo'"),
        ("./configs/vgsound.py", r"no file 'configs/vgsound.py'.* one of demo, .*, vggsound"),
        ("vggsound:39n", "Did you mean '39m'"),
    ],
)
def test_a_config_that_is_none_names_the_nearest(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_file(name)


# -- what XLA has compiled ---------------------------------------------------------------------


@pytest.fixture
def user(monkeypatch, tmp_path):
    """A process that has not imported JAX, of a user with a home of their own."""
    for name in [name for name in os.environ if name.startswith(("JAX_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield monkeypatch
    for name in (compiled.ENABLED, compiled.DIRECTORY, *compiled.DEFAULTS):
        monkeypatch.delenv(name, raising=False)


def test_what_is_compiled_is_kept_in_the_user_s_cache(user, tmp_path):
    user.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled.keep_compiled()
    folder = Path(os.environ[compiled.DIRECTORY])
    assert folder.is_dir() and folder.parent == tmp_path / "cache" / "scav_jax" / "compiled"
    script = "import jax; jax.jit(lambda x: jax.numpy.sort(x) @ x)(jax.numpy.ones(9))"
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert any(folder.iterdir())


def test_the_user_s_own_word_on_the_cache_counts(user, tmp_path):
    user.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
    assert compiled._user_cache().is_relative_to(tmp_path / "home")
    user.setenv("JAX_ENABLE_COMPILATION_CACHE", "False")
    compiled.keep_compiled()
    assert compiled.DIRECTORY not in os.environ and not (tmp_path / "home").exists()
    user.delenv("JAX_ENABLE_COMPILATION_CACHE")
    user.setenv(compiled.DIRECTORY, "")
    compiled.keep_compiled()
    assert os.environ[compiled.DIRECTORY] == ""


def test_a_program_keeps_nothing_where_its_command_line_says_so(user, tmp_path):
    """Before and behind a subcommand; the namespace is as without."""

    def parsed(*words):
        parser = Parser(prog="p")
        parser.add_subparsers(dest="what").add_parser("build")
        return vars(parser.parse_args(words))

    user.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for words in (("--no-compilation-cache", "build"), ("build", "--no-compilation-cache")):
        assert parsed(*words) == {"what": "build"}
        assert os.environ.pop(compiled.ENABLED) == "false"
        assert compiled.DIRECTORY not in os.environ and not (tmp_path / "cache").exists()
    assert parsed("build") == {"what": "build"}
    assert compiled.DIRECTORY in os.environ and compiled.ENABLED not in os.environ


def test_without_a_place_for_the_cache_programs_run_all_the_same(user, tmp_path):
    (tmp_path / "home").write_text("no folder")
    compiled.keep_compiled()
    assert compiled.DIRECTORY not in os.environ


def test_a_bar_in_a_file_is_lines_and_words_stand_between(capsys):
    with progress_bar("work", 2, "clip") as outer:
        for number in progress_bar("within", 2, "clip", over=range(2)):
            outer.update()
            outer.write(f"said {number}", file=sys.stderr)
            print("printed", file=sys.stderr)
    written = capsys.readouterr().err
    assert not set(written) & {"\r", "\x1b"}
    lines = written.splitlines()
    assert [line.split(":")[0] for line in lines if ":" in line].count("work") == 2
    closed = progress._Lines()
    for state in ("\rall", "\rall", "\n"):
        closed.write(state)
    assert capsys.readouterr().err == "all\n"
    assert lines.count("printed") == 2 and lines.count("said 0") == 1 and "2/2" in lines[-1]
