"""Does a command for which there is no space, at any byte, say so in one line and lose nothing?

    python scripts/benchmarks/refusals.py extract --videos DIR [--limits 20] [-- EXTRACT OPTIONS]
    python scripts/benchmarks/refusals.py index --model RUN --data DATA [--limits 20]
    python scripts/benchmarks/refusals.py train --data DATA [--limits 20] [-- TRAIN OPTIONS]

The command runs again and again in one folder, each time under another limit on the size of a file
(RLIMIT_FSIZE, which the system answers as a full disk is answered: some bytes are written, then no
more), at random below the largest file that an undisturbed run writes, the smallest first. Each
has to end with exit code 3 and one line, or to go through; then it runs without a limit. Shown: the
lines, and whether the result is that of an undisturbed run (see `kills.py`, whose tasks these are).
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kills import Task, extraction, index_tasks, undisturbed, was_done

EXIT_SYSTEM = 3


def limited(limit: int) -> Callable[[], None]:
    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return apply


def largest_file(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refused(task: Task, folder: Path, limit: int) -> str:
    """Runs a command under a limit: what it says, or "" where it goes through."""
    # JAX's own cache of programs would keep what is cut off, for all who share it.
    without = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        task.words(folder),
        preexec_fn=limited(limit),
        env=without,
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    if done.returncode == 0 or was_done(done.stderr):
        return ""
    if done.returncode != EXIT_SYSTEM or len(errors) != 1 or "Traceback" in done.stderr:
        sys.exit(
            f"{task.name} under a limit of {limit:,} bytes: expected exit code {EXIT_SYSTEM} and "
            f"one line, got {done.returncode}:\n{done.stderr[-4000:]}"
        )
    return errors[0]


def compared(task: Task, limits: int, seed: int) -> dict:
    """One task under all limits; the figures."""
    chance, lines, before = random.Random(seed), Counter(), None
    with tempfile.TemporaryDirectory() as name:
        whole, other = Path(name, "whole"), Path(name, "limited")
        undisturbed(task, whole)
        largest = largest_file(whole)
        other.mkdir()
        task.begin(other)
        for limit in sorted(chance.sample(range(largest), limits)):
            said = refused(task, other, limit)
            lines[re.sub(r" at /\S+", " at FILE", said)[:72]] += 1
            there = task.done(other)
            if before is not None and there < before:
                sys.exit(f"{task.name}: {before} were done, now {there}: something was lost")
            before = there
        process = subprocess.run(task.words(other), capture_output=True, text=True)
        if process.returncode and not was_done(process.stderr):
            sys.exit(f"{task.name} without a limit: {process.stderr[-4000:]}")
        one, two = task.content(whole), task.content(other)
    differ = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    through = lines.pop("", 0)
    print(
        f"{task.name:8} {limits} limits below {largest:,} bytes: {limits - through} refused in one "
        f"line, {through} went through; {len(one)} compared, {len(differ)} differ {differ[:5]}"
    )
    for line, count in lines.most_common():
        print(f"    {count:3} x {line}", flush=True)
    return {"limits": limits, "through": through, "lines": dict(lines), "differ": differ}


def training(data: Path, options: list[str]) -> Task:
    """A training whose parameters are compared."""

    def words(folder: Path) -> list[str]:
        command = [sys.executable, "-m", "scav_jax.train", "--config", "demo", *options]
        return [*command, f"--config.data.path={data}", "--workdir", str(folder / "run")]

    def content(folder: Path) -> dict[str, str]:
        from scav_jax.retrieval.model import flat_parameters
        from scav_jax.training.runs import load_run

        parameters = flat_parameters(load_run(folder / "run").params)
        return {name: values.tobytes().hex() for name, values in parameters.items()}

    def done(folder: Path) -> int:
        steps = (folder / "run" / "checkpoints").glob("*")
        return max((int(path.name) for path in steps if path.name.isdigit()), default=0)

    return Task("train", words, lambda folder: None, "run/lock", content, done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("extract", "index", "train"))
    parser.add_argument("--videos", type=Path, help="a folder of videos, of extract")
    parser.add_argument("--model", type=Path, help="a run, of index")
    parser.add_argument("--data", type=Path, help="a data set with two splits, of index and train")
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the limits")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    arguments, options = parser.parse_known_args()
    options = [one for one in options if one != "--"]
    tasks = {
        "extract": lambda: [extraction(arguments.videos, options)],
        "index": lambda: index_tasks(arguments.model, arguments.data),
        "train": lambda: [training(arguments.data, options)],
    }[arguments.what]()
    found = {task.name: compared(task, arguments.limits, arguments.seed) for task in tasks}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=1))
    if any(one["differ"] for one in found.values()):
        sys.exit("a command that was refused something did not end as the undisturbed one")


if __name__ == "__main__":
    main()
