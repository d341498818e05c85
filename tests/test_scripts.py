"""The two commands: what they may use, what they install and when, what they run and say."""

import ast
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import teeth

from scav_jax.datasets.chimes import presets

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
PROGRAMS = ("demo", "test")
FILES = (*PROGRAMS, "bootstrap.py")


def load(name: str):
    """A script as a module; those without the ending .py too."""
    path = str(SCRIPTS / name)
    loader = importlib.machinery.SourceFileLoader(f"script_{Path(name).stem}", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def bootstrap(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.delitem(sys.modules, "bootstrap", raising=False)
    return importlib.import_module("bootstrap")


@pytest.fixture
def demo(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "ROOT", str(tmp_path))
    return load("demo")


@pytest.fixture
def project(tmp_path):
    """A folder with the two files that decide what is installed, and a .venv that runs."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


@pytest.fixture
def installations(bootstrap, monkeypatch):
    """Replaces installing by a list of the extras that would have been installed."""
    done = []
    monkeypatch.setattr(bootstrap, "install", lambda environment, extras: done.append(set(extras)))
    return done


# ---- the files ---------------------------------------------------------------------------------


def test_every_breakage_can_still_be_made():
    """Or `teeth.py` would measure fewer tests than it says."""
    assert [b.name for b in teeth.BREAKAGES if teeth.file_of(b, ROOT) is None] == []


def test_constraints_are_pins_without_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pin = re.compile(r"[a-z0-9][a-z0-9-]*==[\w.+]+( ; [^;]+)?")
    assert len(lines) > 50
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert not any("://" in line or "@" in line for line in lines)


def test_constraints_pin_everything_that_pyproject_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [re.match(r"[\w.-]+", text)[0] for group in groups for text in group]
    names = {name.lower().replace("_", "-") for name in wanted}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    assert names - {"scav-jax"} <= pinned


def test_the_cudnn_of_cuda12_has_code_for_a_v100():
    """The last with sm_70 in all its libraries is 9.10, as their fat binaries say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = " ".join(project["optional-dependencies"]["cuda12"])
    assert "nvidia-cudnn-cu12>=9.10.2.21,<9.11;" in extra
    assert re.search(r"^nvidia-cudnn-cu12==9\.10\.", (ROOT / "constraints.txt").read_text(), re.M)


def test_constraints_serve_both_generations_of_jax():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    markers = {line.partition(" ; ")[2] for line in lines if line.startswith("jax==")}
    assert markers == {"python_full_version < '3.12'", "python_full_version >= '3.12'"}


@pytest.mark.parametrize("path", ["scripts/demo", "scripts/test", ".ci/run"])
def test_commands_are_executable(path):
    assert os.access(ROOT / path, os.X_OK)
    assert (ROOT / path).read_text().startswith("#!/usr/bin/env ")


def test_ci_is_a_shell_script():
    """Whatever runs it may do so by `bash .ci/run`, whose first lines Python would not be."""
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_scripts_import_the_standard_library_only(name):
    tree = ast.parse((SCRIPTS / name).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported <= sys.stdlib_module_names | {"bootstrap"}


@pytest.mark.parametrize("name", FILES)
def test_an_old_python_can_read_the_scripts(name):
    ast.parse((SCRIPTS / name).read_text(), feature_version=(3, 6))


# ---- which Python ------------------------------------------------------------------------------


def test_python_too_old_is_one_line(bootstrap, capsys):
    with pytest.raises(SystemExit) as stopped:
        bootstrap.use_supported_python(version=(3, 8, 18), which=lambda name: None)
    assert stopped.value.code == bootstrap.EXIT_SYSTEM
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("error: Python 3.11 to 3.14 is needed, this is 3.8.18 (")


def test_python_too_old_gives_way_to_a_newer_one(bootstrap, monkeypatch):
    versions = {"/old/python3": (3, 9, 1), "/new/python3.11": (3, 11, 4), "/shim/python3.12": None}
    which = {Path(path).name: path for path in versions}.get
    started = []
    monkeypatch.setattr(bootstrap, "version_of", versions.get)
    monkeypatch.setattr(bootstrap.os, "execv", lambda path, words: started.append(path))
    monkeypatch.setattr(bootstrap, "stop", lambda text: None)
    bootstrap.use_supported_python(version=(3, 9, 1), which=which)
    assert started == ["/new/python3.11"]  # python3.12 is a shim that does not run


def test_python_new_enough_goes_on(bootstrap):
    assert bootstrap.use_supported_python(version=(3, 11, 0), which=None) is None


def test_version_of_what_is_no_python(bootstrap, tmp_path):
    assert bootstrap.version_of(sys.executable) == tuple(sys.version_info[:3])
    assert bootstrap.version_of(str(tmp_path / "nothing")) is None
    assert bootstrap.version_of(shutil.which("false")) is None


# ---- when is something installed ---------------------------------------------------------------


def test_second_run_installs_nothing(bootstrap, installations, project):
    for _ in range(2):
        python = bootstrap.ensure(["test"], root=str(project))
        assert Path(python) == project / ".venv" / "bin" / "python"
    assert installations == [{"test"}]


def test_demo_after_test_installs_nothing_and_test_after_demo_adds(
    bootstrap, installations, project
):
    bootstrap.ensure([], root=str(project))
    bootstrap.ensure(["test"], root=str(project))
    bootstrap.ensure([], root=str(project))
    assert installations == [set(), {"test"}]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_install_again(bootstrap, installations, project, name):
    bootstrap.ensure(["test"], root=str(project))
    with open(project / name, "a") as file:
        file.write("# changed\n")
    bootstrap.ensure(["test"], root=str(project))
    assert len(installations) == 2


def test_key_has_the_python_and_the_place(bootstrap, project):
    environment = bootstrap.Environment(str(project))
    key = environment.key((3, 11, 7))
    assert key == environment.key((3, 11, 7))
    assert key != environment.key((3, 12, 1))
    moved = shutil.copytree(project, project.parent / "moved", symlinks=True)
    assert key != bootstrap.Environment(str(moved)).key((3, 11, 7))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 3}', "null"])
def test_damaged_stamp_installs_again(bootstrap, installations, project, damage):
    bootstrap.ensure([], root=str(project))
    Path(bootstrap.Environment(str(project)).stamp).write_text(damage)
    bootstrap.ensure([], root=str(project))
    assert len(installations) == 2


@pytest.mark.parametrize("uv", [True, False])
def test_killed_installation_is_done_anew(bootstrap, monkeypatch, project, uv):
    """A package that was half written counts as installed, unless the installer is told."""
    commands = []

    def killed(command, **_):
        if "-e" in command:
            raise KeyboardInterrupt
        return 0

    def works(command, **_):
        commands.append(command)
        return 0

    monkeypatch.setattr(bootstrap, "runs", lambda command: uv or not command[0].endswith("uv"))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    monkeypatch.setattr(bootstrap.subprocess, "call", killed)
    with pytest.raises(KeyboardInterrupt):
        bootstrap.ensure(["test"], root=str(project))
    monkeypatch.setattr(bootstrap.subprocess, "call", works)
    bootstrap.ensure(["test"], root=str(project))
    (command,) = [command for command in commands if "-e" in command]
    assert ("--reinstall" if uv else "--ignore-installed") in command
    assert command[-4:] == ["-c", "constraints.txt", "-e", ".[test]"]
    stamp = json.loads(Path(bootstrap.Environment(str(project)).stamp).read_text())
    assert stamp["extras"] == ["test"]


def test_pip_where_uv_fails_and_one_line_where_both_do(bootstrap, monkeypatch, project, capsys):
    tried = []
    answers = {"uv": 1, "pip": 0}

    def call(command, **_):
        tried.append("uv" if command[0].endswith("uv") else "pip")
        return answers[tried[-1]]

    monkeypatch.setattr(bootstrap, "runs", lambda command: True)
    monkeypatch.setattr(bootstrap.subprocess, "call", call)
    environment = bootstrap.Environment(str(project))
    bootstrap.install(environment, {"test"})
    assert tried == ["uv", "pip"]
    assert environment.interrupted_while() is None

    answers["pip"] = 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        bootstrap.ensure([], root=str(project))
    assert stopped.value.code == bootstrap.EXIT_SYSTEM
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert environment.installed(environment.key(tuple(sys.version_info[:3]))) is None


def test_half_made_environment_is_made_again(bootstrap, monkeypatch, tmp_path):
    environment = bootstrap.Environment(str(tmp_path))
    environment.begin(bootstrap.MAKING)
    rest = tmp_path / ".venv" / "lib" / "rest"
    rest.parent.mkdir()
    rest.touch()
    made = []

    def make_venv(command, **_):
        assert environment.interrupted_while() == bootstrap.MAKING  # until it is whole
        made.append(command[1:3])
        (tmp_path / ".venv" / "bin").mkdir()
        (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
        return 0

    monkeypatch.setattr(bootstrap.subprocess, "call", make_venv)
    assert bootstrap.make(environment) == tuple(sys.version_info[:3])
    assert made == [["-m", "venv"]] and not rest.exists()
    assert environment.interrupted_while() is None


def test_environment_of_an_old_python_is_left_alone(bootstrap, monkeypatch, project, capsys):
    monkeypatch.setattr(bootstrap, "version_of", lambda python: (3, 9, 2))
    with pytest.raises(SystemExit):
        bootstrap.ensure([], root=str(project))
    message = capsys.readouterr().err
    assert "should hold Python 3.11 to 3.14, its Python is 3.9.2; remove the folder" in message
    assert (project / ".venv" / "bin" / "python").exists()


def test_set_ups_at_once_wait_for_each_other(bootstrap, tmp_path, capsys):
    source = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import bootstrap\n"
    source += f"with bootstrap.one_at_a_time({str(tmp_path)!r}): print('in')"
    with bootstrap.one_at_a_time(str(tmp_path)):
        other = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "waiting" in other.stderr.readline()
        assert other.poll() is None
    out, _ = other.communicate(timeout=60)
    assert out == "in\n"


# ---- what the demo runs ------------------------------------------------------------------------


def modules(steps) -> list[str]:
    return [command[0] for _, command in steps]  # of `scav`


def test_demo_renders_and_extracts_until_features_are_complete(demo, tmp_path, capsys):
    assert modules(demo.data_steps()) == ["datasets", "extract"]
    features = tmp_path / demo.FEATURES
    features.mkdir(parents=True)
    assert len(demo.data_steps()) == 2  # a folder alone is no data set
    (features / "scav.json").touch()
    assert demo.data_steps() == []


def test_demo_trains_once_resumes_and_retrains_on_demand(demo, tmp_path, capsys):
    train = ["train", "--config", "demo", "--workdir", "runs/demo"]
    assert demo.training_steps(compare=False, retrain=False) == [("train", train)]
    (tmp_path / "runs/demo/checkpoints").mkdir(parents=True)
    assert demo.training_steps(compare=False, retrain=False) == [("train", train)]  # resumes
    (tmp_path / "runs/demo/averaged").mkdir()
    assert demo.training_steps(compare=False, retrain=False) == []
    (tmp_path / "runs/demo.1").mkdir()
    assert demo.training_steps(compare=False, retrain=True) == [("train", train)]
    assert (tmp_path / "runs/demo.2/averaged").is_dir()  # moved aside, nothing is lost
    assert not (tmp_path / "runs/demo").exists()


def test_demo_compares_with_the_baseline(demo, tmp_path):
    trained = demo.training_steps(compare=True, retrain=False)
    assert [command[2] for _, command in trained] == ["demo", "table1/cav:demo"]
    for _, command in demo.evaluation_steps(compare=True):
        assert command[-2:] == ["--compare", "runs/demo-cav"]
    splits = [command[command.index("--split") + 1] for _, command in demo.evaluation_steps(False)]
    assert splits == ["test", "unseen_instruments"]


def test_quick_demo_goes_from_rendering_to_a_search(demo, bootstrap, monkeypatch, tmp_path, capsys):
    extras, ran = [], []
    monkeypatch.setattr(bootstrap, "ensure", lambda extras=(), _all=extras: _all.extend(extras))
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda command, **_: ran.append(command) or 0)
    (tmp_path / "runs/demo").mkdir(parents=True)
    assert demo.main(["--quick"]) == 0
    names = [command[1] for command in ran]
    assert {command[0] for command in ran} == {str(tmp_path / ".venv/bin/scav")}
    order = ["datasets", "extract", "train", "evaluate", "index", "search"]
    assert (names, extras) == (order, ["index", "web"])
    assert (tmp_path / "runs/demo").is_dir()  # another run than the demo's
    index, model = (ran[order.index("index")][place] for place in (3, 5))
    page = f".venv/bin/scav web --index {index} --model {model} "
    assert page in capsys.readouterr().out.partition("next:")[2]


def test_the_demo_asks_with_a_film_that_it_has_rendered(demo):
    quick = next(words for name, words in demo.quick_steps() if name == "search")
    asked = {"tiny": quick[2], "demo": demo.next_steps(compare=False)[1][0].split()[3]}
    for preset, film in asked.items():
        files = {clip["file"] for clip in presets.clips(presets.preset(preset))}
        assert film.partition("/videos/")[2] in files


def test_next_steps_of_the_demo_are_commands_that_parse(demo):
    for command, _ in demo.next_steps(compare=True):
        scav, name, *words = command.split()
        assert scav == ".venv/bin/scav"
        importlib.import_module(f"scav_jax.{name}.__main__").parse(words)


@pytest.mark.parametrize("version", [(3, 10, 4), (3, 15, 0)])
def test_a_python_on_which_nothing_was_seen_to_run_is_refused(bootstrap, version, capsys):
    with pytest.raises(SystemExit):
        bootstrap.use_supported_python(version, which=lambda name: None)
    assert "Python 3.11 to 3.14 is needed" in capsys.readouterr().err
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (low, high) = bootstrap.OLDEST, bootstrap.NEWEST
    assert text == f">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"


def test_demo_stops_at_the_first_step_that_fails(demo, bootstrap, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(bootstrap, "ensure", lambda extras: "python")

    def call(command, **_):
        ran.append(command[1])
        return 2 if command[1] == "extract" else 0

    monkeypatch.setattr(bootstrap.subprocess, "call", call)
    assert demo.main([]) == 2
    assert ran == ["datasets", "extract"]
    assert "stopped in step 2 of 5 (extract)" in capsys.readouterr().err


def test_test_runs_every_check_and_hands_on_arguments(bootstrap, monkeypatch, capsys):
    script = load("test")
    ran = []

    def call(command, **_):
        ran.append(command)
        return 1 if command[2] == "ruff" and command[3] == "check" else 0

    monkeypatch.setattr(bootstrap, "ensure", lambda extras: "python")
    monkeypatch.setattr(bootstrap.subprocess, "call", call)
    assert script.main(["tests/test_x.py", "-k", "a b"]) == 1  # though pytest passed
    assert [command[2] for command in ran] == ["ruff", "ruff", "mypy", "pytest"]
    assert ran[-1][-3:] == ["tests/test_x.py", "-k", "a b"]
    assert "failed: ruff check" in capsys.readouterr().out


@pytest.mark.parametrize(("platforms", "on_a_card"), [("cuda", True), ("cpu", False)])
def test_tests_on_a_card_have_its_plugin_and_share_its_memory(
    bootstrap, monkeypatch, platforms, on_a_card
):
    script, wanted, environments = load("test"), [], []
    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(bootstrap, "ensure", lambda extras: wanted.extend(extras) or "python")
    monkeypatch.setattr(
        bootstrap.subprocess, "call", lambda command, env, **_: environments.append(env) or 0
    )
    assert script.main([]) == 0
    assert wanted == (["test", "cuda12"] if on_a_card else ["test"])
    share = environments[-1].get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    assert environments[-1].get("XLA_PYTHON_CLIENT_PREALLOCATE") == ("false" if on_a_card else None)
    if on_a_card:
        assert script.workers() <= 4 and 0 < 2 * script.workers() * float(share) <= 0.904
    else:
        assert share is None


@pytest.mark.slow
def test_what_needs_more_devices_than_there_are_is_left_out_and_counted():
    """Of a mesh that a test makes, of its own mark, and of its name."""
    chosen = [
        "tests/test_sharding.py",
        "tests/test_scaling.py::test_what_devices_share_is_what_one_computes[checksums-2]",
        "tests/test_scaling.py::test_a_loss_on_eight_devices_is_that_of_one",
    ]
    environ = dict(os.environ, JAX_NUM_CPU_DEVICES="1", JAX_PLATFORMS="cpu")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^left out: 4 need 8 devices$", done.stdout, re.M)
    assert "3 passed, 4 skipped" in done.stdout
