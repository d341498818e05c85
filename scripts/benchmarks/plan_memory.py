"""Does `scav plan` say what the compiler says of a training step's memory?

    python scripts/benchmarks/plan_memory.py [--batches 256,4096,16384] [--out FILE.json]

Compiles the step of small towers at each batch (about a minute each, nothing is run), for SCAV, CAV
and both, where the loss is most of the memory, and compares XLA's memory analysis with the plan.
The bar: every total within 10 %.
"""

import argparse
import json
from pathlib import Path

from scav_jax.base.errors import run_program
from scav_jax.encoders import Encoders
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.plan.costs import Workload, planned_memory
from scav_jax.plan.trial import compared, lowered_step

MIB = 2**20
SHAPE = (6, 8)  # steps and width of both streams
BAR = 0.1


def work(name: str, batch: int) -> Workload:
    """A step of which the loss is most."""
    towers = Encoders(
        width=16,
        visual_blocks=1,
        audio_blocks=1,
        visual_hidden=16,
        audio_hidden=16,
        heads=2,
        feedforward=16,
        pre_resample="visual_to_audio",
    )
    return Workload(towers, Sequential(name=name), batch, visual=SHAPE, audio=SHAPE, batches=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", default="256,4096,16384")
    parser.add_argument("--objectives", default="sequence,aggregation,sequence+aggregation")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'objective':<22}{'batch':>7}{'XLA MiB':>10}{'planned':>10}{'off':>8}")
    for name in options.objectives.split(","):
        for batch in map(int, options.batches.split(",")):
            step = work(name, batch)
            compiled = lowered_step(step, make_optimizer(steps=10, warmup_steps=1)).compile()
            found = compared(compiled, step)
            xla, planned = found["memory_bytes"]["total"], planned_memory(step).total
            off = planned / xla - 1
            rows.append({"objective": name, "batch": batch, "xla": xla, "planned": planned})
            line = f"{name:<22}{batch:>7,}{xla / MIB:>10,.1f}{planned / MIB:>10,.1f}{off:>8.1%}"
            print(line, flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    worst = max(abs(row["planned"] / row["xla"] - 1) for row in rows)
    print(f"bar: every total within {BAR:.0%}, the worst is off by {worst:.1%}")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    run_program(main)
