"""Does a training that is killed again and again end with the same bytes?

    python scripts/benchmarks/killed_trainings.py --data DATA [--kills 20] [-- TRAIN OPTIONS]
    python scripts/benchmarks/killed_trainings.py --data DATA --two [--kills 20]

A small training goes through undisturbed. A second one is killed (SIGKILL) at random moments and
started again each time. Compared are its averaged parameters and its log without timings. With
`--two`, a second `scav train` on the same --workdir is started beside each killed one: one of them
has to end with a line, and nothing may be lost. `kills.py` does the same to other programs.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from kills import ends_within, finish, start

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data set to train on")
    parser.add_argument("--two", action="store_true", help="two trainers at a time")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments, options = parser.parse_known_args()
    command = training(arguments.data, [option for option in options if option != "--"])
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


if __name__ == "__main__":
    main()
