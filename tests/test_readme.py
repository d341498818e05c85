"""What the README shows works: its example runs, its modules, files and commands exist."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import yaml

import scav_jax

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_example_runs():
    (example,) = code_blocks("python")
    printed = io.StringIO()
    names = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), names)
    distances = np.asarray(names["D"])
    assert distances.shape == (4, 4)
    assert np.isfinite(distances).all() and distances.std() > 0
    assert np.isfinite(float(names["loss"]))
    assert printed.getvalue().startswith("(4, 4) ")


def test_example_is_short():
    (example,) = code_blocks("python")
    statements = [line for line in example.splitlines() if line and "import" not in line]
    assert len(statements) <= 15


def test_modules_are_those_of_the_map():
    section = README.partition("## The modules")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    on_the_map = re.findall(r"^    (\w+) {2,}\S", scav_jax.__doc__, flags=re.MULTILINE)
    assert listed == on_the_map


def test_commands_and_files_exist():
    for module in set(re.findall(r"python -m (scav_jax[\w.]*)", README)):
        assert importlib.util.find_spec(module), module
    for path in set(re.findall(r"\b(?:configs|scripts|tests|scav_jax)/[\w./]+", README)):
        if path != "scav_jax/distances/mine.py":  # the reader's own
            assert (ROOT / path.rstrip(".")).exists(), path


def test_citation_is_that_of_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == scav_jax.__version__
    names = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert names == ["Tsiamas", "Pascual", "Yeh", "Serrà"]
