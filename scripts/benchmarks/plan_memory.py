"""Does `scav plan` say what the compiler says of a training step's memory?

    python scripts/benchmarks/plan_memory.py [--paper] [--batches 4096,16384] [--devices 8]
        [--card h200] [--out FILE.json]

Compiles the step of small towers at each batch (about a minute each, nothing is run), for SCAV, CAV
and both, where the loss is most of the memory, and compares XLA's memory analysis with the plan.
`--paper`: the paper's model, in both precisions and with all of `train.remat` where a batch is
encoded whole, and in parts of 64 clips of stored float16; `--devices`: cut over as many, a CPU's
virtual ones where there are no more, of which each has its share (parts are of 64 clips a device).
The bar: every total within 10 %. Here, on the device that is there, or with `--card` on described
cards that need not be (as `card_program.py` does): `scav plan` counts for accelerators, whose
distances work on more steps at a time.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
from card_program import CARDS, FLAGS, devices_of
from card_program import lowered_step as lowered_for_cards
from step_program import PAPER, paper_step

from scav_jax.base.errors import run_program
from scav_jax.encoders import Encoders
from scav_jax.encoders.layers import REMATS
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.plan.compiled import memory_of
from scav_jax.plan.costs import Workload
from scav_jax.plan.memory import planned_memory
from scav_jax.plan.trial import lowered_step

MIB = 2**20
SHAPE = (6, 8)  # steps and width of both streams
BAR = 0.1


def work(name: str, batch: int, **where) -> Workload:
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
    return Workload(
        towers,
        Sequential(name=name),
        batch,
        visual=SHAPE,
        audio=SHAPE,
        batches=1,
        **where,
    )


def paper_work(name: str, batch: int, precision: str, remat: str, **where) -> Workload:
    """A step of the paper's model: whole at 256, else cached."""
    towers = PAPER.clone(precision=precision, remat=remat)
    part, size = (64 * where["devices"], 2) if batch > 256 else (0, 4)
    work = paper_step(towers, batch, microbatch=part, feature_bytes=(size, size), **where)
    objective = dataclasses.replace(work.objective, name=name)
    return dataclasses.replace(work, objective=objective)


def works(
    paper: bool, batches: list[int], objectives: list[str], **where
) -> Iterator[tuple[str, Workload]]:
    for name, batch in itertools.product(objectives, batches):
        if not paper:
            yield name, work(name, batch, **where)
            continue
        for precision in ("float32", "bfloat16"):
            remats = REMATS if batch == 256 else ("none",)
            if where["on_cpu"]:  # `unrolled` is for cards: a CPU's compiler keeps more of it
                remats = [remat for remat in remats if remat != "unrolled"]
            for remat in remats:
                step = paper_work(name, batch, precision, remat, **where)
                yield f"{name}, {precision}, {remat}", step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", help="default 4096,16384, with --paper 256 too")
    parser.add_argument("--objectives", default="sequence,aggregation,sequence+aggregation")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--paper", action="store_true", help="the paper's model")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--card", choices=CARDS, help="compiled for it; it need not be there")
    options = parser.parse_args()
    if options.card:
        lowered = partial(lowered_for_cards, devices=devices_of(options.card, options.devices))
    else:
        jax.config.update("jax_num_cpu_devices", options.devices)
        lowered = partial(lowered_step, optimizer=make_optimizer(steps=10, warmup_steps=1))
    on_cpu = not options.card and jax.default_backend() == "cpu"
    batches = [4096, 16384] if not options.paper else [256, 4096, 16384]
    if options.batches:
        batches = [int(word) for word in options.batches.split(",")]
    objectives, where = options.objectives.split(","), {"devices": options.devices}
    rows = []
    print(f"{'step':<36}{'batch':>7}{'XLA MiB':>10}{'planned':>10}{'off':>8}")
    for name, step in works(options.paper, batches, objectives, on_cpu=on_cpu, **where):
        compiled = lowered(step).compile(compiler_options=FLAGS if options.card else None)
        xla, planned = memory_of(compiled).total, planned_memory(step).total
        off = planned / xla - 1
        rows.append({"step": name, "batch": step.batch, "xla": xla, "planned": planned})
        line = f"{name:<36}{step.batch:>7,}{xla / MIB:>10,.1f}{planned / MIB:>10,.1f}{off:>8.1%}"
        print(line, flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    worst = max(abs(row["planned"] / row["xla"] - 1) for row in rows)
    print(f"bar: every total within {BAR:.0%}, the worst is off by {worst:.1%}")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    run_program(main)
