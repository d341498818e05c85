"""What the README shows works: its example, and its commands in a fresh environment, in order."""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import av
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
import yaml

import scav_jax
from scav_jax import objectives
from scav_jax.__main__ import main, program
from scav_jax.base import commands as commands_module
from scav_jax.base import doors
from scav_jax.base.commands import split_overrides
from scav_jax.datasets.__main__ import BEATS_FILE
from scav_jax.distances import pairwise
from scav_jax.extract import backbones
from scav_jax.objectives.objective import Place
from scav_jax.sequences import STREAMS, AudioVisual, sequences
from scav_jax.training.config import as_dict, override
from scav_jax.training.config_files import find, load_file

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The later ones need what the first has made; `howto` and the reference are no tutorials.
TUTORIALS = ("own_videos", "silent_film", "generated_sound", "distance", "objective", "backbone")
READERS_OWN = ("mine.py", "mine.py:long", "NAME")
NOTEBOOKS = ("search_videos", "score_sounds")  # those of a trained model
# Instead of what a reader has, and of hours.
QUERY = "videos/instrument_000_03.mp4"
HERE = {"VIDEOS": "videos", "VIDEO.mp4": QUERY}
SMALL_CONFIG = [
    *("--config.data.batch_size=8", "--config.data.buckets=1", "--config.train.steps=10"),
    *("--config.optimizer.warmup_steps=2", "--config.train.validate_every=5"),
    *(f"--config.encoders.{stream}_blocks=0" for stream in STREAMS),
]
SMALL = {
    "extract": ["--workers", "1"],
    "plan": SMALL_CONFIG,
    "train": SMALL_CONFIG,
    "web": ["--help"],  # it would serve until it is stopped
}
# Of the tutorials; a calibration wants twenty clips, which `data/short` has.
SMALLER = {
    "extract": ["--workers", "1"],
    "train": [*SMALL_CONFIG, "--config.train.log_every=5"],
    "score --calibrate": [
        *("--data", "data/short", "--split", "validation"),
        *("--most-offset", "0.4", "--step", "0.1"),
    ],
    "score --lay": ["--most-offset", "0.4", "--step", "0.1"],
    "score pairs.csv": ["--most-offset", "0.4", "--step", "0.1"],
}
SHORT = (
    "scav extract --videos VIDEOS --clip-seconds 4 --out data/short "
    "--split train=0.6 validation=0.4"
)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


class CodeBlock(NamedTuple):
    """A fenced block of a page: its language, the file that it is, and why it is not run here."""

    language: str
    title: str | None
    code: str
    reason: str | None


def blocks(page: Path) -> list[CodeBlock]:
    """The fenced blocks of a page, in order; `<!-- not run: REASON -->` may stand before one."""
    fenced = re.compile(
        r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
        r"```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
        flags=re.MULTILINE | re.DOTALL,
    )
    found = fenced.finditer(page.read_text())
    return [CodeBlock(**{name: one[name] for name in CodeBlock._fields}) for one in found]


def commands(text: str) -> list[str]:
    """Every command of a page, `scav ...`, without what stands for more words."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"^(?:srun )?(scav [^`#\n]*)|`(scav [^`]*)`", text, flags=re.MULTILINE)
    return [(line or inline).strip() for line, inline in found]


def test_readme_is_short():
    assert len(README.split()) <= 1000


def test_every_extra_has_an_install_line_with_the_constraints():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = about["project"]["optional-dependencies"]
    line = r"^pip install -c constraints\.txt (?:-e )?(?:'\.\[([\w,]+)\]'|\.)"
    found = re.findall(line, README, flags=re.MULTILINE)
    assert "" in found  # plain use
    named = {name for names in found for name in names.split(",") if name}
    (of_dev,) = re.findall(r"scav_jax\[([\w,]+)\]", " ".join(extras["dev"]))
    assert named | set(of_dev.split(",")) == set(extras)
    for page in PAGES:
        installs = re.findall(r"pip install [^\n`]*\.\[", page.read_text())
        assert [one for one in installs if "-c constraints.txt" not in one] == [], page


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


def files_shown() -> dict[str, str]:
    """By its path, each file of a reader's that the README shows: a block that begins with one."""
    shown = [(re.match(r"# (\S+\.py)\n", block), block) for block in code_blocks("python")]
    return {path[1]: block for path, block in shown if path}


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    """A folder on the path, in which the files that the README shows lie as they are shown."""
    for path, code in files_shown().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_doors_are_short_and_their_commands_name_them(own_folder):
    shown = files_shown()
    assert len(shown) == 4
    assert max(len(code.splitlines()) for code in shown.values()) <= 20
    named = set(re.findall(r"\bmy_package[\w.]*:\w+", README))
    modules = {name.partition(":")[0].replace(".", "/") + ".py" for name in named}
    assert modules == set(shown) - {"mine.py"}
    for name in named:
        doors.find("the README", name, {})


def test_the_doors_open(own_folder, random):
    lengths = np.array([5, 3, 4])
    values = random.normal(size=(2, 3, 5, 4)).astype(np.float32)
    means = np.array([[one[i, :n].mean(0) for i, n in enumerate(lengths)] for one in values])
    values[:, np.arange(5) >= lengths[:, None]] = np.nan
    clips = [sequences(jnp.asarray(one), jnp.asarray(lengths)) for one in values]
    apart = means[0][:, None] - means[1][None]
    D = pairwise("my_package.distances:distance", *clips, power=1.5)
    np.testing.assert_allclose(D, (np.abs(apart) ** 1.5).mean(-1), rtol=1e-5)

    name = "my_package.objectives:Margin"
    objective = objectives.make({"name": name, "margin": 0.2}, {"name": "euclidean"})
    outputs = objective.of_clips(None, {"clip": AudioVisual(*clips)}, ())
    loss, _ = objective.loss({}, outputs, {}, Place(2**30, None))
    D = (apart**2).sum(-1)
    hinge = np.maximum(np.diag(D)[:, None] - D + 0.2, 0).mean()
    np.testing.assert_allclose(loss, hinge, rtol=1e-5)

    light = backbones.load(visual="my_package.backbones:Light", audio="plain").visual
    frames = random.integers(256, size=(2, *light.frame_size, 3)).astype(np.uint8)
    features = light.prepare(frames, None)
    assert features.shape == (2, light.width) and features.dtype == np.float32
    np.testing.assert_allclose(features, frames.reshape(2, -1, 3).mean(1) / 255, rtol=1e-5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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


OF_OTHERS = {"--network"}  # Docker's
BY_STREAM_OR_SIDE = {"--visual", "--audio", "--frames", "--side"}  # are put together


def test_options_in_prose_exist():
    """Those that a sentence names alone, `--option`; whole commands are read by their parsers."""
    source = "\n".join(path.read_text() for path in (ROOT / "scav_jax").rglob("*.py"))
    known = {*re.findall(r'"(--[a-z][a-z-]*)"', source), *BY_STREAM_OR_SIDE, *OF_OTHERS}
    benchmarks = {ROOT / "docs" / "results.md"}  # it names options of theirs
    for page in set(PAGES) - benchmarks:
        named = set(re.findall(r"`(--[a-z][a-z-]*)", page.read_text()))
        assert named <= known, f"{page}: {named - known}"


class Parsed(BaseException):  # no `Exception`, which `run_program` tells in a line
    """A command line was read, and its program was not run."""


@pytest.fixture
def parse_only(monkeypatch, own_folder):
    """Runs a command of a page as far as its program has read the command line."""
    read = commands_module.Parser.parse_args

    def parsed(self, args=None, namespace=None):
        arguments = read(self, args, namespace)
        raise Parsed(arguments)

    def run(line: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        # What is compiled here is checked by jaxtyping: no other process can run it.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        with pytest.raises(Parsed) as found:
            main()
        return found.value.args[0]

    monkeypatch.setattr(commands_module.Parser, "parse_args", parsed)
    for page in TUTORIALS:
        for block in blocks(ROOT / "docs" / "tutorials" / f"{page}.md"):
            if block.title:
                (own_folder / block.title).write_text(block.code)
    return run


def whole_commands(page: Path) -> list[str]:
    """Lines of blocks that are commands as they stand, without what they leave open."""
    found = []
    for block in blocks(page):
        if block.language in ("", "sh"):
            code = re.sub(r"\\\n\s*", " ", block.code)
            lines = (line.split(" #")[0].strip() for line in code.splitlines())
            found += [line for line in lines if line.startswith("scav ") and "..." not in line]
    return found


# Programs are run as `scav` runs them, whatever is imported by now.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_read_the_commands_of_every_page(page, parse_only):
    """Those that are not run too: unknown options, missing ones, keys that no config has."""
    for line in whole_commands(page):
        arguments = parse_only(line)
        overrides = split_overrides(shlex.split(line))[1]
        if getattr(arguments, "config", None) and arguments.config not in READERS_OWN:
            config = as_dict(override(load_file(arguments.config), overrides))
            objectives.make(config["objective"], config["distance"])


def test_objectives_that_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"objective\.name=([\w.:+]+)", page.read_text()):
            if "+" in name or ":" not in name:  # else a reader's own
                objectives.find(name)


def test_messages_of_troubleshooting_stand_in_the_source():
    """What a page quotes is what a program says: the words of one literal."""
    source = "\n".join(path.read_text() for path in (ROOT / "scav_jax").rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # of literals that go over lines
    assert len(quoted) > 40
    assert [words for words in quoted if words not in joined] == []


def test_one_checkpoint_of_beats_is_named():
    """The paper's, which was fine-tuned; the one before that has other features."""
    sources = [*PAGES, *(ROOT / "scav_jax").rglob("*.py"), ROOT / "scripts" / "slurm_extract.sh"]
    named = {name for page in sources for name in re.findall(r"BEATs_\w+\.pt", page.read_text())}
    assert named == {BEATS_FILE}


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


# Many commands in one process: what is imported and compiled is so once.
DRIVER = """
import json, sys
sys.path[0] = "."
from scav_jax.__main__ import main
for number, (kind, what) in enumerate(json.load(sys.stdin)):
    print("step", number, flush=True)
    if kind == "python":
        exec(compile(what, "a page", "exec"), {"__name__": "a_page"})
        continue
    sys.argv = ["scav", *what]
    print(what, file=sys.stderr)
    try:
        assert main() == 0
    except SystemExit as end:
        assert not end.code, what
"""
Step = tuple[str, str | list[str]]  # "python" and code, or "scav" and its words


def steps_of(tutorial: str, done: set[str], folder: Path) -> list[Step]:
    """What a page has its reader do, small; files that it shows are written at once."""
    steps = []
    for block in blocks(ROOT / "docs" / "tutorials" / f"{tutorial}.md"):
        if block.title:
            (folder / block.title).write_text(block.code)
        elif block.language == "python":
            steps.append(("python", block.code.replace("VIDEO.mp4", QUERY)))
        elif block.language == "sh" and not block.reason:
            lines = re.sub(r" *\\\n *", " ", block.code).splitlines()
            new = [line for line in lines if line not in done]
            steps += [small(line) for line in new]
            done |= set(new)
    return steps


def small(line: str, how: dict[str, list[str]] | None = None) -> Step:
    """A command with what is here, and in seconds."""
    how = SMALLER if how is None else how
    words = [HERE.get(word, word) for word in shlex.split(line)][1:]
    return "scav", [*words, *how.get(words[0], []), *how.get(" ".join(words[:2]), [])]


def stripped(source: Path, target: Path, kind: str) -> None:
    """One stream of a file, as it is (a picture), or as a WAV (a sound)."""
    with av.open(str(source)) as file, av.open(str(target), "w") as made:
        stream = getattr(file.streams, kind)[0]
        if kind == "video":
            copy = made.add_stream_from_template(stream)
            for packet in file.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    made.mux(packet)
            return
        sound = made.add_stream("pcm_s16le", rate=stream.rate)
        for frame in file.decode(stream):
            made.mux(sound.encode(frame))
        made.mux(sound.encode(None))


def cells_of(notebook: str) -> str:
    """The code of a notebook, with a model and videos that are there."""
    path = ROOT / "scripts" / "notebooks" / f"{notebook}.ipynb"
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    here = (
        'import os\nos.environ.update(SCAV_MODEL="exported", SCAV_VIDEOS="few", MPLBACKEND="agg")'
    )
    return "\n\n".join([here, *(cell.source for cell in cells)])


def tutorial_steps(folder: Path, done: set[str]) -> list[Step]:
    """Every tutorial's commands and examples, for the folder where the README's have run."""
    (folder / "SOUNDS").mkdir()
    (folder / "few").mkdir()
    films = sorted((folder / "videos").glob("*.mp4"))
    stripped(films[0], folder / "FILM.mp4", "video")
    for film, name in zip(films, "ab", strict=False):
        stripped(film, folder / "SOUNDS" / f"{name}.wav", "audio")
    for film in films[:2]:
        shutil.copy(film, folder / "few")
    steps = [small(SHORT)]
    for tutorial in TUTORIALS:
        steps += steps_of(tutorial, done, folder)
    return [*steps, *(("python", cells_of(notebook)) for notebook in NOTEBOOKS)]


def check_tutorials(said: str, folder: Path) -> None:
    """What the steps of the tutorials have to leave and to say."""
    assert "(3, 3) True" in said  # the distance's example: finite gradients beside NaN
    assert re.search("sounds alone +2\n", said)  # of the index
    assert "2 scored, median" in said
    assert "own above a stranger in" in said and "R@1" in said.rpartition("sound -> picture")[2]
    for name in ("sounds.html", "laid.html", "scores.json", "runs/hardest/averaged"):
        assert (folder / name).exists(), name
    assert '"right"' in (folder / "runs" / "hardest" / "metrics.jsonl").read_text()
    about = (folder / "data" / "brightness" / "scav.json").read_text()
    assert "my_backbone:Brightness" in about


@pytest.mark.slow
def test_commands_run_in_order_in_a_fresh_folder(installed, tmp_path):
    """The README's, then the tutorials'; the first and the last as processes of their own."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environ["PATH"] = f"{installed}{os.pathsep}{environ['PATH']}"

    def run(*words: str, given: str | None = None) -> str:
        how = {"cwd": tmp_path, "env": environ, "input": given, "text": True}
        done = subprocess.run(words, **how, capture_output=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
        return done.stdout

    where = run("python", "-c", "import scav_jax; print(scav_jax.__file__)")
    assert where.startswith(str(installed.parent))
    rendering = "scav datasets chimes --preset tiny --out rendered"
    run(*shlex.split(rendering))
    (tmp_path / "videos").mkdir()
    for file in (tmp_path / "rendered").rglob("*.mp4"):  # without the list that came with them
        shutil.copy(file, tmp_path / "videos")
    (block,) = code_blocks("sh")
    first, *lines, last = block.splitlines()
    (tmp_path / "mine.py").write_text(files_shown()["mine.py"])

    run("scav", *small(first)[1])
    steps = [small(line, SMALL) for line in lines]
    steps.append(("scav", ["train", "--config", "mine.py", "--help"]))
    names = [words[0] for _, words in steps]
    steps += tutorial_steps(tmp_path, {rendering, *block.splitlines()})
    _, *said = re.split(
        r"^step \d+\n", run("python", "-c", DRIVER, given=json.dumps(steps)), flags=re.M
    )
    run("scav", *small(last, SMALL)[1])

    assert len(said) == len(steps)
    printed = {name: text for name, text in zip(names[:-1], said, strict=False)}
    assert "SCAV" in printed["evaluate"] and "memory" in printed["plan"]
    best = next(line for line in printed["search"].splitlines() if line.split()[:1] == ["1"])
    assert ".mp4" in best
    for name in ("mine.html", "found.html", "data/mine/rejected.csv", "exported/config.json"):
        assert (tmp_path / name).is_file(), name
    assert "--config.train.steps=300" in said[len(names) - 1]
    check_tutorials("".join(said[len(names) :]), tmp_path)
