"""Does work that is killed again and again end with the same bytes?

    python scripts/benchmarks/kills.py --videos DIR [--kills 20] [--seed 0] [-- EXTRACT OPTIONS]
    python scripts/benchmarks/kills.py --train DATA [--kills 20] [--seed 0] [-- TRAIN OPTIONS]
    python scripts/benchmarks/kills.py --train DATA --two [--kills 20] [-- TRAIN OPTIONS]

Training is compared by its averaged parameters and its log without timings; with `--two`, a second
`scav train` on the same --workdir is started beside each killed one: one of them has to end with a
line, and nothing may be lost.

Of an extraction: one run goes through undisturbed. A second one is killed (SIGKILL, the whole
program with its workers) at random moments, among them while it starts and while it writes, and
started again each time; the last start goes on to the end. Shown: how many clips were done at each
kill (a kill loses what is in flight, and nothing that was done), and whether every file of the two
data sets is equal byte for byte.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOING_ON = re.compile(r"going on: ([\d,]+) of ([\d,]+) clips")


def start(command: list[str], log: Path) -> subprocess.Popen:
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait():
        sys.exit(f"extraction ended with exit code {process.returncode}:\n{log.read_text()}")


def done_before(log: Path) -> int:
    """How many clips a run found done when it started."""
    found = GOING_ON.search(log.read_text())
    return int(found[1].replace(",", "")) if found else 0


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ends_within(process: subprocess.Popen, seconds: float) -> bool:
    """Whether a run ends by itself; otherwise it is killed at that moment."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def killed_runs(command: list[str], folder: Path, kills: int, seconds: float, chance) -> list[dict]:
    """Kills at random moments; a run that ends before its moment is begun anew, from nothing."""
    rows: list[dict] = []
    out, log = folder / "killed", folder / "log"
    found = 0
    while len(rows) < kills:
        process = start([*command, "--out", str(out)], log)
        moment = chance.uniform(0.0, seconds / 2)
        if ends_within(process, moment):
            finish(process, log)
            shutil.rmtree(out)
            print("     (ended before its moment; begun anew)", flush=True)
            found = 0
            continue
        text = log.read_text()
        if GOING_ON.search(text):  # it came so far as to look
            before, found = found, done_before(log)
            if found < before:
                sys.exit(f"{before} clips were done, now {found}: the killed run lost something")
        rows.append({"after_s": moment, "found_done": found, "writing": "writing:" in text})
        words = "while writing" if rows[-1]["writing"] else ""
        print(f"{len(rows):4} {moment:10.2f} {found:28,}  {words}", flush=True)
    return rows


# ---- training --------------------------------------------------------------------------------

TIMINGS = ("examples_per_s", "input_share", "input_ms", "host_ms")
BUSY = "another `scav train` is at work"


def training(data: Path, options: list[str]) -> list[str]:
    """A small training, which saves often; options come after ours."""
    small = ["train.steps=120", "train.validate_every=20", "train.checkpoint_every=5"]
    small += ["train.log_every=7", "optimizer.warmup_steps=10", "data.batch_size=8"]
    words = ["--config", "demo", f"--config.data.path={data}"]
    words += [f"--config.{word}" for word in small]
    return [sys.executable, "-m", "scav_jax.train", *words, *options]


def result(run: Path) -> dict[str, str]:
    """What a run came to: its log without timings, and its averaged parameters."""
    from scav_jax.training.checkpoints import checksums
    from scav_jax.training.runs import load_run

    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = {
        f"{line['kind']} {line['step']}": repr(
            sorted((name, value) for name, value in line.items() if name not in TIMINGS)
        )
        for line in lines
    }
    loaded = load_run(run)
    sums = checksums(loaded.params).items()
    return found | {name: str(total) for name, total in sums} | {"steps": str(loaded.steps)}


def killed_trainings(command: list[str], folder: Path, kills: int, seconds: float, chance, two):
    """Kills at random moments until there were so many; ends earlier ones anew."""
    run, log, beside = folder / "killed", folder / "log", folder / "beside"
    counts = {"kills": 0, "ended": 0, "refused": 0}
    while counts["kills"] < kills:
        first = start([*command, "--workdir", str(run)], log)
        second = start([*command, "--workdir", str(run)], beside) if two else None
        if ends_within(first, chance.uniform(0.3, 1.0) * seconds):
            counts["ended"] += 1
        else:
            counts["kills"] += 1
        if second is not None and not ends_within(second, 1.0):
            counts["kills"] += 1
        said = log.read_text() + (beside.read_text() if two else "")
        counts["refused"] += said.count(BUSY)
        if "Traceback" in said:
            sys.exit(f"a traceback:\n{said}")
        print(f"{counts['kills']:4} kills, {counts['refused']} refused", flush=True)
        if (run / "averaged").is_dir():
            last = result(run)
            if last != result(folder / "whole"):
                sys.exit("a killed training did not end as the undisturbed one")
            shutil.rmtree(run)
    return counts


def trainings(arguments: argparse.Namespace, options: list[str]) -> None:
    command = training(arguments.train, options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        log = folder / "log"
        finish(start([*command, "--workdir", str(folder / "whole")], log), log)
        seconds = time.perf_counter() - begin
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        chance = random.Random(arguments.seed)
        counts = killed_trainings(command, folder, arguments.kills, seconds, chance, arguments.two)
        finish(start([*command, "--workdir", str(folder / "killed")], log), log)
        whole, killed = result(folder / "whole"), result(folder / "killed")
    differing = [
        name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name)
    ]
    print(f"\n{counts}; {len(whole)} lines and arrays, {len(differing)} differ {differing[:5]}")
    if differing:
        sys.exit("the killed training did not end as the undisturbed one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--videos", type=Path, help="a folder of videos, to extract")
    what.add_argument("--train", type=Path, help="a data set, to train on")
    parser.add_argument("--two", action="store_true", help="two trainers at a time")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    arguments, options = parser.parse_known_args()
    options = [option for option in options if option != "--"]
    if arguments.train is not None:
        trainings(arguments, options)
        return
    command = [sys.executable, "-m", "scav_jax.extract", "--videos", str(arguments.videos)]
    command += options
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        finish(start([*command, "--out", str(folder / "whole")], folder / "log"), folder / "log")
        seconds = time.perf_counter() - begin
        print(f"undisturbed: {seconds:.1f} s\n\nkill  after (s)  clips found done at its start")
        chance = random.Random(arguments.seed)
        rows = killed_runs(command, folder, arguments.kills, seconds, chance)
        last = start([*command, "--out", str(folder / "killed")], folder / "log")
        finish(last, folder / "log")
        found = done_before(folder / "log")
        print(f"last {'to the end':>10} {found:28,}")
        whole, killed = hashes(folder / "whole"), hashes(folder / "killed")
    differing = sorted(
        name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name)
    )
    print(f"\n{len(rows)} kills; {len(whole)} files, {len(differing)} differ {differing[:5]}")
    if arguments.out:
        figures = {"seconds": seconds, "kills": rows, "files": len(whole), "differ": differing}
        Path(arguments.out).write_text(json.dumps(figures, indent=1))
    if differing:
        sys.exit("the killed run did not end as the undisturbed one")


if __name__ == "__main__":
    main()
