"""How large is the program of a training step, and how long does it take to compile?

    python scripts/benchmarks/step_program.py [--only WORD] [--out FILE.json]

Compiles the paper's model (batch 8, 62 x 62 steps, `pre` visual-to-audio; nothing is run) with an
empty compilation cache and reads off XLA's optimized program: instructions (those inside of fusions
count), fusions, bytes accessed and FLOPs by XLA's cost analysis (a loop's body counts once), memory
and CPU seconds of tracing and of compiling. In float32 and bfloat16, with dropout and without.
About a minute a row on one core.
"""

import argparse
import re
import time
from pathlib import Path

import jax

from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.encoders import Encoders
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.plan.compiled import memory_of
from scav_jax.plan.costs import Workload
from scav_jax.plan.trial import lowered_step
from scav_jax.training.config_files import load_file
from scav_jax.training.runs import build

PAPER = Encoders(pre_resample="visual_to_audio")
VARIANTS = {
    "bfloat16": PAPER.clone(precision="bfloat16"),
    "float32": PAPER,
    "bfloat16, no dropout": PAPER.clone(precision="bfloat16", dropout=0.0),
    "float32, no dropout": PAPER.clone(dropout=0.0),
    "bfloat16, blocks": PAPER.clone(precision="bfloat16", remat="blocks"),
    "bfloat16, unrolled": PAPER.clone(precision="bfloat16", remat="unrolled"),
    # As few blocks as a loop could cost more than it saves.
    "demo": build(load_file("demo"))[0],
}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?\S+ = .+$", re.MULTILINE)
FUSION = re.compile(r"^\s+(?:ROOT )?\S+ = .* fusion\(", re.MULTILINE)


def paper_step(encoders: Encoders, batch: int, **features) -> Workload:
    """A step on 62 x 62 steps of CLIP's and BEATs' widths."""
    options = {"resample": "visual_to_audio"}
    objective = Sequential(distance="euclidean", distance_options=options)
    return Workload(
        encoders, objective, batch, visual=(62, 768), audio=(62, 6144), batches=1, **features
    )


def measured(encoders: Encoders) -> dict:
    """The figures of one step."""
    work = paper_step(encoders, 8)
    jax.clear_caches()
    begin = time.process_time()
    lowered = lowered_step(work, make_optimizer(steps=10, warmup_steps=1))
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    text, cost = compiled.as_text(), compiled.cost_analysis()
    memory = memory_of(compiled)
    return {
        "instructions": len(INSTRUCTION.findall(text)),
        "fusions": len(FUSION.findall(text)),
        "bytes_accessed": float(cost["bytes accessed"]),
        "flops": float(cost["flops"]),
        "temporary_bytes": memory.temporary if memory else None,
        "trace_cpu_s": traced - begin,
        "compile_cpu_s": done - traced,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="variants whose name begins with this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    found = {"jax": jax.__version__, "platform": jax.devices()[0].platform, "rows": {}}
    heads = ("instructions", "fusions", "GB", "GFLOP", "temp MB", "trace s", "compile s")
    print(f"{'':<22}" + "".join(f"{head:>13}" for head in heads))
    for name, encoders in VARIANTS.items():
        if not name.startswith(options.only):
            continue
        row = found["rows"][name] = measured(encoders)
        scales = (1, 1, 1e9, 1e9, 1e6, 1, 1)
        digits = (0, 0, 2, 1, 0, 1, 1)
        shown = zip(row.values(), scales, digits, strict=True)
        cells = "".join(f"{(value or 0) / scale:>13,.{n}f}" for value, scale, n in shown)
        print(f"{name:<22}{cells}", flush=True)
        if options.out:
            write_json(options.out, found)


if __name__ == "__main__":
    run_program(main)
