"""Does a command that is killed again and again end as one that is not?

    python scripts/benchmarks/kills.py extract --videos DIR [--kills 20] [-- EXTRACT OPTIONS]
    python scripts/benchmarks/kills.py index --model RUN --data DATA [--kills 20]

One run goes through undisturbed. A second one is killed (SIGKILL, the whole program with its
workers) at random moments and started again each time; the last start goes on to the end. Shown:
how much was done at each kill (a kill loses what is in flight, and nothing that was done), and
whether the two end alike: a data set byte for byte, an index clip for clip (`index_content`).

`index` does so for build, add, delete and compact; every index is read and verified after every
kill, and DATA has two splits, the second of which is added.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Its table library warns where a process that has used it starts others.
warnings.filterwarnings("ignore", message="lancedb fork support")
# What a delete and an add say that were killed when all was done.
ALREADY = ("are not there: ", "are there already: ")


@dataclass(frozen=True)
class Task:
    """A command whose killed runs are compared with one that goes through.

    Attributes:
      name: of the command.
      words: the command, for a folder to work in.
      begin: makes what is there before it, in an empty folder.
      begun: a file in that folder that the work makes when it begins, and that may go before it.
      content: what the command has made, to be compared.
      done: how much of it is there after a kill; raises where what is there is broken.
    """

    name: str
    words: Callable[[Path], list[str]]
    begin: Callable[[Path], None]
    begun: str
    content: Callable[[Path], dict[str, str]]
    done: Callable[[Path], int]


def start(command: list[str], log: Path) -> subprocess.Popen:
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def was_done(words: str) -> bool:
    return any(said in words for said in ALREADY)


def finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait() and not was_done(log.read_text()):
        sys.exit(f"the command ended with exit code {process.returncode}:\n{log.read_text()}")


def started_on(task: Task, folder: Path, log: Path) -> subprocess.Popen:
    """Starts a task and returns when its work has begun, or it has ended."""
    begun = folder / task.begun
    # A run that was killed leaves it behind; the work of this one begins when it is there anew.
    begun.unlink(missing_ok=True)
    process = start(task.words(folder), log)
    while process.poll() is None and not begun.exists():
        time.sleep(0.002)
    return process


def ends_within(process: subprocess.Popen, seconds: float) -> bool:
    """Whether a run ends by itself; otherwise it is killed at that moment."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def undisturbed(task: Task, folder: Path) -> float:
    """Runs a task once in a folder; how long it worked, in seconds."""
    folder.mkdir()
    task.begin(folder)
    log = folder.with_suffix(".log")
    process = started_on(task, folder, log)
    begin = time.perf_counter()
    finish(process, log)
    return time.perf_counter() - begin


def killed(task: Task, folder: Path, kills: int, seconds: float, chance) -> list[dict]:
    """Kills at random moments; a run that ends before its moment is begun anew, from nothing."""
    rows: list[dict] = []
    log = folder.with_suffix(".log")
    folder.mkdir()
    task.begin(folder)
    before = task.done(folder)
    while len(rows) < kills:
        process = started_on(task, folder, log)
        moment = chance.uniform(0.0, seconds)
        if ends_within(process, moment):
            finish(process, log)
            shutil.rmtree(folder)
            folder.mkdir()
            task.begin(folder)
            before = task.done(folder)
            continue
        done = task.done(folder)
        if done < before:
            sys.exit(f"{before} clips were done, now {done}: the killed run lost something")
        rows.append({"after_s": moment, "done": done})
        before = done
    finish(start(task.words(folder), log), log)
    return rows


def compared(task: Task, kills: int, seed: int) -> dict:
    """Kills one task; the figures."""
    with tempfile.TemporaryDirectory() as name:
        whole, other = Path(name, "whole"), Path(name, "killed")
        seconds = undisturbed(task, whole)
        rows = killed(task, other, kills, seconds, random.Random(seed))
        one, two = task.content(whole), task.content(other)
    differ = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    between = len({row["done"] for row in rows})
    print(
        f"{task.name:10} {seconds:6.2f} s of work, {len(rows)} kills, {between} states seen, "
        f"{len(one)} compared, {len(differ)} differ {differ[:5]}",
        flush=True,
    )
    return {"seconds": seconds, "kills": rows, "compared": len(one), "differ": differ}


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Tasks -------------------------------------------------------------------------------------------


def extraction(videos: Path, options: list[str]) -> Task:
    def words(folder: Path) -> list[str]:
        command = [sys.executable, "-m", "scav_jax.extract", "--videos", str(videos)]
        return [*command, *options, "--out", str(folder / "data")]

    def done(folder: Path) -> int:
        whole = folder / "data" / "clips.csv"
        if whole.exists():  # it was killed when all was done
            return len(whole.read_text().splitlines())
        return len(list((folder / "data.partial").rglob("*.npz")))

    def contents(folder: Path) -> dict[str, str]:
        return hashes(folder / "data")

    return Task("extract", words, lambda folder: None, "data.partial/lock", contents, done)


def index_content(path: Path) -> dict[str, str]:
    """What an index holds, by id: what is known of each clip, and its stored bytes."""
    import numpy as np

    from scav_jax.index import open_index

    index = open_index(path)
    index.verify()
    content = {}
    for number, segment in index.snapshot.segments.items():
        for row in np.flatnonzero(index.snapshot.live[number]).tolist():
            (about,) = index._rows.at(np.asarray([[number, row]])).values()
            digest = hashlib.sha256(repr(sorted(about.items())).encode())
            for name in sorted(segment.streams):
                for column in ("values", "embeddings"):
                    digest.update(segment.streams[name].record(column, row).tobytes())
            content[about["id"]] = digest.hexdigest()
    return content


def index_tasks(model: Path, data: Path) -> list[Task]:
    """Build, add, delete and compact, each on an index as the one before would leave it."""
    from scav_jax.features import store

    first, second = list(store.splits(data))[:2]
    ids = store.read(data, first).ids[::2]
    source = ["--model", str(model), "--data", str(data), "--split"]

    def index(*words: str) -> Callable[[Path], list[str]]:
        command = [sys.executable, "-m", "scav_jax.index", words[0]]
        return lambda folder: [*command, str(folder / "i"), *words[1:]]

    build, add = index("build", *source, first), index("add", *source, second)
    delete, compact = index("delete", *ids), index("compact")

    def after(*commands: Callable[[Path], list[str]]) -> Callable[[Path], None]:
        """Copies what these commands leave; they run once."""
        kept = Path(tempfile.mkdtemp())

        def begin(folder: Path) -> None:
            if not (kept / "i").exists():
                for words in commands:
                    subprocess.run(words(kept), check=True, capture_output=True)
            shutil.copytree(kept / "i", folder / "i")

        return begin

    def count(folder: Path) -> int:
        ready = (folder / "i" / "index.json").exists()
        return len(index_content(folder / "i")) if ready else 0

    def contents(folder: Path) -> dict[str, str]:
        return index_content(folder / "i")

    return [
        Task("build", build, lambda folder: None, "i/lock", contents, count),
        Task("add", add, after(build), "i/lock", contents, count),
        Task("delete", delete, after(build, add), "i/lock", contents, lambda f: -count(f)),
        Task("compact", compact, after(build, add, delete), "i/lock", contents, count),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("extract", "index"))
    parser.add_argument("--videos", type=Path, help="a folder of videos, of extract")
    parser.add_argument("--model", type=Path, help="a run, of index")
    parser.add_argument("--data", type=Path, help="a data set with two splits, of index")
    parser.add_argument("--only", help="of index: build, add, delete or compact")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    arguments, options = parser.parse_known_args()
    if arguments.what == "extract":
        tasks = [extraction(arguments.videos, [one for one in options if one != "--"])]
    else:
        tasks = index_tasks(arguments.model, arguments.data)
        tasks = [task for task in tasks if arguments.only in (None, task.name)]
    found = {task.name: compared(task, arguments.kills, arguments.seed) for task in tasks}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(found, indent=1))
    if any(one["differ"] for one in found.values()):
        sys.exit("a killed run did not end as the undisturbed one")


if __name__ == "__main__":
    main()
