"""What the README shows works: its example, and its commands in a fresh environment, in order."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import scav_jax
from scav_jax import objectives
from scav_jax.__main__ import program
from scav_jax.distances import pairwise
from scav_jax.extract import backbones
from scav_jax.objectives.objective import Place
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.training.config_files import find

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READERS_OWN = ("mine.py", "mine.py:long")
# Instead of what a reader has, and of hours.
HERE = {"VIDEOS": "videos", "VIDEO.mp4": "videos/instrument_000_03.mp4"}
SMALL_CONFIG = [
    *("--config.data.batch_size=8", "--config.data.buckets=1", "--config.train.steps=10"),
    *("--config.optimizer.warmup_steps=2", "--config.train.validate_every=5"),
    *("--config.encoders.visual_blocks=1", "--config.encoders.audio_blocks=1"),
]
SMALL = {
    "extract": ["--workers", "1"],
    "plan": SMALL_CONFIG,
    "train": SMALL_CONFIG,
    "web": ["--help"],  # it would serve until it is stopped
}


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every command of a page, `scav ...`, without what stands for more words."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"^(?:srun )?(scav [^`#\n]*)|`(scav [^`]*)`", text, flags=re.MULTILINE)
    return [(line or inline).strip() for line, inline in found]


def test_readme_is_short():
    assert len(README.split()) <= 1000


def test_example_runs():
    example = next(block for block in code_blocks("python") if "pairwise" in block)
    printed = io.StringIO()
    names = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), names)
    distances = np.asarray(names["D"])
    assert distances.shape == (4, 4)
    assert np.isfinite(distances).all() and distances.std() > 0
    assert np.isfinite(float(names["loss"]))
    assert printed.getvalue().startswith("(4, 4) ")


# What a reader's module imports around the README's three doors.
OWN_MODULE = """
from dataclasses import dataclass
import jax.numpy as jnp
from scav_jax.extract.backbones.sides import Visual
from scav_jax.objectives import Objective, Outputs
from scav_jax.sequences import masked_mean
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    """The name of a module in which the README's distance, objective and backbone stand."""
    doors = [
        next(block for block in code_blocks("python") if start in block)
        for start in ("def distance(", "class Margin(", "class Dino(")
    ]
    (tmp_path / "of_the_readme.py").write_text("\n\n".join([OWN_MODULE, *doors]))
    monkeypatch.syspath_prepend(tmp_path)
    yield "of_the_readme"
    sys.modules.pop("of_the_readme", None)


def test_the_doors_open(own_module, random):
    lengths = np.array([5, 3, 4])
    values = random.normal(size=(2, 3, 5, 4)).astype(np.float32)
    means = np.array([[one[i, :n].mean(0) for i, n in enumerate(lengths)] for one in values])
    values[:, np.arange(5) >= lengths[:, None]] = np.nan
    clips = [sequences(jnp.asarray(one), jnp.asarray(lengths)) for one in values]
    apart = means[0][:, None] - means[1][None]
    D = pairwise(f"{own_module}:distance", *clips, power=1.5)
    np.testing.assert_allclose(D, (np.abs(apart) ** 1.5).mean(-1), rtol=1e-5)

    name = f"{own_module}:Margin"
    objective = objectives.make({"name": name, "margin": 0.2}, {"name": "euclidean"})
    outputs = objective.of_clips(None, {"clip": AudioVisual(*clips)}, ())
    loss, _ = objective.loss({}, outputs, {}, Place(2**30, None))
    D = (apart**2).sum(-1)
    hinge = np.maximum(np.diag(D)[:, None] - D + 0.2, 0).mean()
    np.testing.assert_allclose(loss, hinge, rtol=1e-5)

    weights = {f"{own_module}:Dino": "dino.safetensors"}
    made = backbones.load(visual=f"{own_module}:Dino", audio="plain", weights=weights)
    assert made.visual.width == 384


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_configs_and_files_exist(page):
    text = page.read_text()
    for command in commands(text):
        words = command.split()[1:]
        if words[0] in ("PROGRAM", "--help"):
            continue
        program(words)
        if "--config" in words:
            name = words[words.index("--config") + 1]
            if name not in READERS_OWN:
                find(name)
    for path in re.findall(r"\b(?:configs|scripts|tests|scav_jax|docs)/[\w./]*\w", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_citation_is_that_of_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == scav_jax.__version__
    names = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert names == ["Tsiamas", "Pascual", "Yeh", "Serrà"]


# ---- the commands, in a fresh environment ------------------------------------------------------


def wheel(folder: Path) -> Path:
    """This project built, from a copy: building writes beside its sources."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("scav_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "dist" / done.stdout.split()[-1]


def environment(folder: Path, built: Path) -> Path:
    """A new environment with the wheel in it; the packages that it needs are those of this one."""
    # A pip of its own would take longer than all that it is for.
    borrowed_pip = importlib.util.find_spec("pip") is not None
    without = ["--without-pip"] if borrowed_pip else []
    subprocess.run([sys.executable, "-m", "venv", *without, folder], check=True)
    python = folder / "bin" / "python"
    pip = (
        [sys.executable, "-m", "pip", "--python", python] if borrowed_pip else [python, "-m", "pip"]
    )
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", built]
    subprocess.run(install, check=True)
    borrowed = Path(packages.stdout.strip()) / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """`bin` of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "build").mkdir()
    built = wheel(folder / "build")
    inside = zipfile.ZipFile(built).namelist()
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")}
    carried = {
        name.removeprefix("scav_jax/") for name in inside if name.startswith("scav_jax/configs/")
    }
    assert carried == configs
    assert {name.partition("/")[0] for name in inside if ".dist-info/" not in name} == {"scav_jax"}
    return environment(folder / "environment", built)


@pytest.mark.slow
def test_commands_run_in_order_in_a_fresh_folder(installed, tmp_path):
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environ["PATH"] = f"{installed}{os.pathsep}{environ['PATH']}"

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
        return done.stdout

    where = run("python", "-c", "import scav_jax; print(scav_jax.__file__)")
    assert where.startswith(str(installed.parent))
    run("scav", "datasets", "chimes", "--preset", "tiny", "--out", "rendered")
    (tmp_path / "videos").mkdir()
    for file in (tmp_path / "rendered").rglob("*.mp4"):  # without the list that came with them
        shutil.copy(file, tmp_path / "videos")
    (block,) = code_blocks("sh")
    printed = {}
    for line in block.splitlines():
        words = [HERE.get(word, word) for word in shlex.split(line)]
        printed[words[1]] = run(*words, *SMALL.get(words[1], []))
    assert "SCAV" in printed["evaluate"] and "memory" in printed["plan"]
    first = next(line for line in printed["search"].splitlines() if line.split()[:1] == ["1"])
    assert ".mp4" in first
    for name in ("mine.html", "found.html", "data/mine/rejected.csv", "exported/config.json"):
        assert (tmp_path / name).is_file(), name
    own = next(block for block in code_blocks("python") if "# mine.py" in block)
    (tmp_path / "mine.py").write_text(own)
    assert "--config.train.steps=300" in run("scav", "train", "--config", "mine.py", "--help")
