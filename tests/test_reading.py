"""The benchmark of reading runs, and its arithmetic is right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scav_jax.datasets import sizes

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks" / "reading.py"


@pytest.mark.slow
def test_reading_is_measured_and_needs_follow(tmp_path):
    out = tmp_path / "figures.json"
    options = ["--clips", "4", "--batch-size", "2", "--repeats", "1"]
    options += ["--folder", str(tmp_path / "disk"), "--out", str(out)]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    ways = {(row["data"], row["way"]) for row in figures["reading"]}
    assert len(ways) == 2 * 7 and all(row["clips_per_s"] > 0 for row in figures["reading"])
    for name, rate in (("whole", 30), ("copies", None)):
        [row] = [r for r in figures["needs"] if (r["data"], r["steps_per_s"]) == (name, 1.0)]
        size = sizes.clip_bytes(10, rate)
        assert row["disk_bytes_per_s"] == pytest.approx(1024 * size, rel=0.2)
        assert row["set_bytes"] == pytest.approx(153_000 * size, rel=0.2)
        assert row["epoch_s"] == pytest.approx(153_000 / 1024)
    assert "SATA SSD" in done.stdout
    assert list((tmp_path / "disk").iterdir()) == []
