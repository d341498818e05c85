#!/usr/bin/env python3
"""What a clean clone must pass: the README's two commands, on the oldest and the newest Python.

The oldest runs the whole suite here. The newest goes the whole way from rendering to a search in a
copy of these files, with nothing installed but what users get, and compares what it decodes and
encodes with stored values. Arguments go to pytest; then only the oldest runs.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

import bootstrap  # noqa: E402

# CI gives 25 minutes; the newest takes up to four. On a slower machine it is named, not run.
LATEST_START_S = 20 * 60
NOT_COPIED = shutil.ignore_patterns(".venv", ".git", "data", "runs", "__pycache__")


def pythons():
    """{(major, minor): command} of the supported Pythons that this machine has."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = {}
    for minor in range(bootstrap.OLDEST[1], bootstrap.NEWEST[1] + 1):
        name = f"python3.{minor}"
        places = sorted(glob.glob(os.path.join(pyenv, "versions", f"3.{minor}.*", "bin", "python")))
        for python in [sys.executable, shutil.which(name), *places]:
            if python and (bootstrap.version_of(python) or (0,))[:2] == (3, minor):
                found[3, minor] = python
                break
        print(f"Python 3.{minor}: {found.get((3, minor), 'not on this machine: NOT TESTED')}")
    return found


def run(python, root, *command):
    """Whether a script of ours ends well, and how long it takes."""
    print(f"\n$ {python} {' '.join(command)}", flush=True)
    began = time.monotonic()
    code = subprocess.call([python, *command], cwd=root)
    print(f"{'passed' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return code == 0


def main(arguments):
    found = pythons()
    oldest, newest = min(found, default=None), max(found, default=None)
    if oldest is None:
        bootstrap.stop(f"{bootstrap.SUPPORTED} is needed, none is on this machine")
    began = time.monotonic()
    passed = run(found[oldest], ROOT, "scripts/test", *arguments)
    late = time.monotonic() - began > LATEST_START_S
    if late and newest != oldest:
        print(f"Python {newest[0]}.{newest[1]}: no time left: NOT TESTED")
    if newest != oldest and not arguments and not late:
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "scav_jax")
            shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
            passed &= run(found[newest], copy, "scripts/demo", "--quick")
            python = os.path.join(copy, ".venv", "bin", "python")
            passed &= run(python, copy, "-m", "scav_jax.extract", "--selfcheck")
    return 0 if passed else 1


if __name__ == "__main__":
    bootstrap.run(main)
