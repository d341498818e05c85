"""The one command for a lent accelerator: nothing on the way may cost it the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import accelerator
import pytest

from scav_jax.training.config_files import load_file

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
# What a machine with jax, flax, optax, orbax, torch and numpy need not have.
ABSENT = ("grain", "ott", "av", "tensorflow_datasets", "array_record", "tensorboardX")
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (absent on purpose)", name=name)

sys.meta_path.insert(0, Absent())
"""
IMPORTING = """
import importlib, sys

for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, error.name)
"""
FAKE_ROWS = """
import os, time

def good(quick):
    return {"ms": float("nan"), "quick": quick, "shapes": (1, 2.5)}

def hangs(quick):
    time.sleep(60)

def dies(quick):
    print("about to die", flush=True)
    os._exit(7)

def fails(quick):
    raise ValueError("no such shape")

def lacks(quick):
    import no_such_package

def wrong(quick):
    from accelerator import no_such_name
"""
FAKE_TABLE = """
import accelerator
from accelerator import Row

names = ("good", "hangs", "good 2", "dies", "fails", "lacks", "wrong", "good 3")
accelerator.ROWS = {
    name: Row("fake_rows:" + name.split()[0], 5.0 if "good" in name else 1.0, beside="one")
    for name in names
}
accelerator.__file__ = __file__
accelerator.main()
"""


def environment(*paths) -> dict:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def test_modules_of_rows_need_nothing_that_can_be_absent():
    modules = sorted({row.what.partition(":")[0] for row in accelerator.ROWS.values()})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + IMPORTING, *modules],
        env=environment(BENCHMARKS, ROOT), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(done.stdout.splitlines()) <= {"accelerator_torch torch"}


def test_a_row_costs_no_other_row_its_figures(tmp_path):
    """One hangs, one dies, one fails, and all in one process: each says so, in JSON."""
    (tmp_path / "fake_rows.py").write_text(FAKE_ROWS)
    (tmp_path / "table.py").write_text(FAKE_TABLE)
    command = [sys.executable, str(tmp_path / "table.py"), "--quick", "--out", "found.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(BENCHMARKS, tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)
    rows = found["rows"]
    for name in ("good", "good 2", "good 3"):
        assert rows[name] == {"ms": None, "quick": True, "shapes": [1, 2.5]}
    assert rows["hangs"]["error"] == "given up after 1 s"
    assert rows["dies"] == {"error": "exit code 7", "where": "about to die\n"}
    assert rows["fails"]["error"] == "ValueError: no such shape"
    assert "no such shape" in done.stdout and "fake_rows.py" in rows["fails"]["where"]
    assert rows["lacks"] == {"missing": "No module named 'no_such_package'"}
    assert "no_such_name" in rows["wrong"]["error"]  # a mistake of ours, and no package
    assert {"versions", "card", "commit", "cores"} <= set(found["head"])


def test_no_row_begins_without_time(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--minutes", "0"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == len(accelerator.ROWS)
    assert {row["missing"] for row in rows.values()} == {"no time was left"}


def test_the_caller_s_packages_are_found_after_ours(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/brought/along")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    found = accelerator.environment(False, 0.0)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/brought/along"]
    assert found["JAX_PLATFORMS"] == "cuda,cpu"
    assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    limited = accelerator.environment(True, 128e9)
    assert limited["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert limited["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.2500"


def test_a_row_that_could_not_be_limited_says_so():
    name = "step in 32 GB, batch 4,096, cached"
    assert accelerator.shown_name(name, {"limit_gb": 32.0}, True) == name
    assert accelerator.shown_name(name, {"missing": "no time"}, True) == name
    for figures, limited in (({"limit_gb": 141.0}, True), ({}, False), ({"limit_gb": None}, False)):
        shown = accelerator.shown_name(name, figures, limited)
        assert shown == "step without a limit, batch 4,096, cached"


def test_pytorch_has_the_towers_of_the_config():
    encoders = load_file(str(ROOT / "configs" / "vggsound.py")).encoders
    for name in ("width", "heads", "feedforward", "dropout", "position_buckets"):
        assert accelerator.TOWERS[name] == getattr(encoders, name)
    for place, stream in enumerate(("visual", "audio")):
        for name in ("hidden", "blocks"):
            assert accelerator.TOWERS[name][place] == getattr(encoders, f"{stream}_{name}")


@pytest.mark.slow
def test_every_row_runs_to_its_end_without_what_can_be_absent(tmp_path):
    """Left out are those only that are of what is not there."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    out = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--quick", "--together"]
    done = subprocess.run(
        [*command, "--out", str(out)], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    absent = [name for name, row in rows.items() if "missing" in row]
    of_peers = ("by ott", "in PyTorch", "by pytorch-softdtw-cuda")
    assert all("from disk" in name or any(peer in name for peer in of_peers) for name in absent)
    assert len(rows) == len(accelerator.ROWS)
    assert rows["search, 1,000 x 10,000"]["clips_equal_cpu"]
    assert rows["soft-DTW, 62 x 62"]["largest_difference_to_cpu"] < 1e-5
    assert "step without a limit, batch 4,096, cached" in rows


@pytest.mark.slow
def test_the_rows_of_ott_and_from_disk_run_where_all_is_there(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--quick", "--together"]
    command += ["--out", str(out), "--only", "soft-DTW by ott", "from disk"]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 3
    for row in rows.values():
        assert row["ms"] > 0
    assert 0 <= rows["from disk, bfloat16, batch 1,024"]["input_share"] <= 1
