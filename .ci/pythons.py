#!/usr/bin/env python3
"""What a clean clone must pass: the README's two commands, on the oldest and the newest Python.

The oldest runs the whole suite here. Beside it the newest, in a copy of these files, goes the
whole way from rendering to a search and compares what it decodes and encodes with stored values,
with nothing installed but what users get; then it runs the tests of all that reads media and keeps
files, the parts that packages differ in. What it prints follows. Arguments go to pytest; then only
the oldest runs.
"""

import contextlib
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

NEWEST_TESTS = ("media", "extract", "clip_beats", "checkpoints", "index", "search", "web")
ON_THE_NEWEST = "--on-the-newest"  # this program for itself
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


def run(python, root, *command):
    """Whether a script of ours ends well, and how long it takes."""
    print(f"\n$ {python} {' '.join(command)}", flush=True)
    began = time.monotonic()
    code = subprocess.call([python, *command], cwd=root)
    print(f"{'passed' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return code == 0


def on_the_newest(interpreter):
    """Whether the main job and the tests of media and files pass in an environment of their own."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "scav_jax")
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        passed = run(interpreter, copy, "scripts/demo", "--quick")
        python = os.path.join(copy, ".venv", "bin", "python")
        passed &= run(python, copy, "-m", "scav_jax.extract", "--selfcheck")
        files = [f"tests/test_{part}.py" for part in NEWEST_TESTS]
        return passed & run(interpreter, copy, "scripts/test", "--quick", *files)


@contextlib.contextmanager
def beside(interpreter):
    """Runs `on_the_newest` meanwhile, in a process of its own; yields what waits for its answer."""
    with tempfile.TemporaryFile() as said:
        words = [sys.executable, os.path.abspath(__file__), ON_THE_NEWEST, interpreter]
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)

        def passed():
            code = process.wait()
            said.seek(0)
            sys.stdout.write(said.read().decode(errors="replace"))
            return code == 0

        try:
            yield passed
        finally:
            process.terminate()


def main(arguments):
    if arguments[:1] == [ON_THE_NEWEST]:
        return 0 if on_the_newest(arguments[1]) else 1
    found = pythons()
    oldest, newest = min(found, default=None), max(found, default=None)
    if oldest is None:
        bootstrap.stop(f"{bootstrap.SUPPORTED} is needed, none is on this machine")
    if newest == oldest or arguments:
        return 0 if run(found[oldest], ROOT, "scripts/test", *arguments) else 1
    with beside(found[newest]) as newest_passed:
        passed = run(found[oldest], ROOT, "scripts/test")
        return 0 if passed & newest_passed() else 1


if __name__ == "__main__":
    bootstrap.run(main)
