#!/usr/bin/env python3
"""What a clean clone must pass: the README's two commands, on the oldest and the newest Python.

The oldest runs the whole suite here. Beside it the newest, in a copy of these files, goes the
whole way from rendering to a search and compares what it decodes and encodes with stored values,
with nothing installed but what users get. Where time is left then, it runs the tests of all that
reads media and keeps files, the parts that packages differ in, kills and processes among them.
Arguments go to pytest; then only the oldest runs.
"""

import concurrent.futures
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

NEWEST_TESTS = ("media", "extract", "checkpoints", "index", "web")
LATEST_TESTS_S = 18 * 60  # CI gives 25 minutes; on a slower machine they are named, not run
NOT_COPIED = shutil.ignore_patterns(".venv", ".git", "data", "runs", "build", "__pycache__")


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


def run(python, root, *command, said=None):
    """Whether a script of ours ends well, and how long it takes; `said` is a file for all of it."""
    print(f"\n$ {python} {' '.join(command)}", file=said, flush=True)
    began = time.monotonic()
    code = subprocess.call([python, *command], cwd=root, stdout=said, stderr=said)
    words = "passed" if code == 0 else "FAILED"
    print(f"{words} in {time.monotonic() - began:.0f} s", file=said, flush=True)
    return code == 0


def main_job(interpreter, copy, said):
    """Whether it goes from rendering to a search, and decodes and encodes what is known."""
    passed = run(interpreter, copy, "scripts/demo", "--quick", said=said)
    python = os.path.join(copy, ".venv", "bin", "python")
    return passed & run(python, copy, "-m", "scav_jax.extract", "--selfcheck", said=said)


def both(oldest, newest):
    """Whether the whole suite passes on the oldest and the main job on the newest, side by side."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "said"), "w+") as said:
        copy = os.path.join(folder, "scav_jax")
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            job = beside.submit(main_job, newest, copy, said)
            passed = run(oldest, ROOT, "scripts/test")
            passed &= job.result()
        said.seek(0)
        print(said.read(), flush=True)
        if time.monotonic() - began > LATEST_TESTS_S:
            print(f"{newest}: no time left for the tests of {', '.join(NEWEST_TESTS)}: NOT RUN")
            return passed
        files = [f"tests/test_{part}.py" for part in NEWEST_TESTS]
        return passed & run(newest, copy, "scripts/test", *files)


def main(arguments):
    found = pythons()
    oldest, newest = min(found, default=None), max(found, default=None)
    if oldest is None:
        bootstrap.stop(f"{bootstrap.SUPPORTED} is needed, none is on this machine")
    if newest == oldest or arguments:
        passed = run(found[oldest], ROOT, "scripts/test", *arguments)
    else:
        passed = both(found[oldest], found[newest])
    return 0 if passed else 1


if __name__ == "__main__":
    bootstrap.run(main)
